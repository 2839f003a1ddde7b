"""Commands about networks: list them, measure their cost, export them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facebones.cli.options import (
    Arguments,
    Command,
    device_option,
    json_option,
    not_negative,
    positive,
    positive_seconds,
    print_json,
)
from facebones.errors import ConfigError, RunError, UnknownNameError, counted
from facebones.system.progress import tell

if TYPE_CHECKING:
    from facebones.onnx.quantize import Calibration


def _backbones_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help='shell pattern, such as "mobile*"')
    parser.add_argument("--markdown", action="store_true", help="print docs/backbones.md")
    parser.add_argument(
        "--catalogue", action="store_true", help="count every backbone and print the catalogue that this command reads"
    )
    json_option(parser)


def _backbones(arguments: Arguments) -> None:
    if arguments.markdown or arguments.catalogue:
        print(_whole_file(arguments), end="")
        return
    rows = _describe(arguments.pattern)
    if arguments.json:
        print_json(rows)
        return
    from facebones.reporting.console import print_table

    columns = ("backbone", "parameters", "unused", "MACs", "also called", "what it is")
    print_table(columns, [_backbone_cells(row) for row in rows], title="512-d, 112x112 input; FLOPs = 2 x MACs")


def _whole_file(arguments: Arguments) -> str:
    option, content = ("--markdown", "page") if arguments.markdown else ("--catalogue", "file")
    if arguments.json or arguments.pattern != "*" or (arguments.markdown and arguments.catalogue):
        raise ConfigError(f"{option} prints the whole {content}; leave PATTERN and other options out")
    if arguments.markdown:
        from facebones.reporting.backbones_page import backbones_page

        return backbones_page()
    from facebones.backbones.catalogue import format_catalogue
    from facebones.profiling.cost import count_catalogue

    return format_catalogue(count_catalogue())


def _describe(pattern: str) -> list[dict[str, Any]]:
    """Count timm's models now; read our own from the catalogue, which takes no torch."""
    if pattern.startswith("timm:"):
        from facebones.profiling.cost import describe_backbones

        return describe_backbones(pattern)
    from facebones.backbones.catalogue import catalogued_backbones

    rows = _describe_plugins(pattern)
    try:
        return [*catalogued_backbones(pattern), *rows]
    except UnknownNameError:
        if not rows:
            raise
        return rows


def _describe_plugins(pattern: str) -> list[dict[str, Any]]:
    """Build and count the backbones of plug-ins; torch is needed only if there are plug-ins."""
    from facebones.plugins import has_plugins

    if not has_plugins():
        return []
    from facebones.profiling.cost import describe_plugins

    return describe_plugins(pattern)


def _backbone_cells(row: dict[str, Any]) -> tuple[str, ...]:
    also_called = ", ".join(row["aliases"])
    if row["problem"]:
        return row["name"], "-", "-", "-", also_called, f"{row['summary']}; not available: {row['problem']}"
    unused, macs = row["unused_parameters"], f"{row['macs'] / 1e6:,.1f} M"
    return row["name"], f"{row['parameters']:,}", f"{unused:,}", macs, also_called, row["summary"]


def _profile_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "networks",
        nargs="*",
        default=["*"],
        metavar="NAME",
        help="backbones, aliases, shell patterns, runs, weights or ONNX files [all backbones]",
    )
    parser.add_argument("--backbone", metavar="NAME", help="the backbone, if a file does not name it")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write profile.json, .csv, .png and .pdf here")
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=32,
        metavar="N",
        help="images per forward pass, for images/s and memory [32]",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads [torch's default]")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"), help="of autocast [fp32]")
    parser.add_argument("--channels-last", action="store_true", help="memory layout (B, H, W, C)")
    parser.add_argument(
        "--seconds", type=positive_seconds, default=2.0, metavar="S", help="least time per measurement [2]"
    )
    device_option(parser)
    json_option(parser)


def _profile(arguments: Arguments) -> None:
    from facebones.profiling import Conditions
    from facebones.profiling.profile import profile
    from facebones.reporting.console import print_table, profile_headline, profile_table
    from facebones.reporting.plots.profile import write_profile_plots

    conditions = Conditions(
        device=arguments.device,
        threads=arguments.threads,
        precision=arguments.precision,
        channels_last=arguments.channels_last,
        batch_size=arguments.batch_size,
        seconds=arguments.seconds,
    )
    result = profile(arguments.networks, conditions, backbone=arguments.backbone, output=arguments.output)
    if arguments.output is not None:
        write_profile_plots(result, arguments.output)
    if arguments.json:
        print_json(result)
    else:
        print_table(*profile_table(result), title=profile_headline(result))


def _costs_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE.md",
        help="the page; its data go into a .json file beside it",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure the latencies that the .json file lacks or has from a busy machine",
    )
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="NAME", help="backbones or shell patterns to measure [all]"
    )
    parser.add_argument("--seconds", type=positive_seconds, default=1.0, metavar="S", help="least time per latency [1]")


def _costs(arguments: Arguments) -> None:
    output: Path = arguments.output
    if output.suffix == ".json":
        raise ConfigError(f"{output}: its data go into this .json file; name the page .md")

    from facebones.profiling.published import costs
    from facebones.reporting.costs_page import costs_page
    from facebones.system.files import atomic_write, check_writable

    check_writable(output)
    content = costs(
        output.with_suffix(".json"), measure=arguments.measure, only=arguments.only, seconds=arguments.seconds
    )
    with atomic_write(output) as file:
        file.write(costs_page(content).encode())
    tell(f"{output}: {counted(len(content['networks']), 'backbone')}, {len(content['latencies'])} of them measured")


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "named", nargs="?", type=Path, metavar="MODEL", help="a run, checkpoint or safetensors file; short for --model"
    )
    parser.add_argument("--model", type=Path, metavar="RUN|FILE", help="the same")
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE.onnx|DIR",
        help="file to write, or folder with --formats; must not exist",
    )
    parser.add_argument(
        "--formats",
        metavar="LIST",
        help="write many formats and a table of them: all, or names with commas between them: onnx, onnx-fp16,"
        " onnx-int8, openvino, openvino-fp16, openvino-int8, torch-export, executorch, litert",
    )
    parser.add_argument("--backbone", metavar="NAME", help="the backbone, if the file does not name it")
    parser.add_argument(
        "--fold-preprocessing",
        action="store_true",
        help="the model takes pixels, uint8 (B, 112, 112, 3), and scales them itself",
    )
    parser.add_argument("--int8", action="store_true", help="quantise to 8 bits, calibrated on images of --calibration")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="DATA",
        help="a training set, or a .bin, for --int8, or for formats of 8 bits [drawn faces]",
    )
    parser.add_argument("--calibration-images", type=positive, metavar="N", help="images sampled from it [256]")
    parser.add_argument("--seed", type=not_negative, metavar="N", help="seed of the sample [0]")
    parser.add_argument(
        "--float-layers",
        nargs="+",
        default=[],
        metavar="NAME",
        help="layers that stay in fp32 in files of 8 bits: first, last, or names such as blocks.0.2.0",
    )
    parser.add_argument(
        "--data",
        "--pairs",
        nargs="+",
        type=Path,
        default=[],
        metavar="SET.bin",
        help="pair sets or a folder: also compare with torch on their faces; with --formats the accuracy of each"
        " format, with --int8 before and after",
    )
    json_option(parser)


def _export(arguments: Arguments) -> None:
    calibration, model = _calibration(arguments), _exported_model(arguments)

    from facebones.exporting import export

    result = export(
        model,
        arguments.output,
        formats=arguments.formats,
        backbone=arguments.backbone,
        fold_preprocessing=arguments.fold_preprocessing,
        calibration=calibration,
        data=arguments.data,
        float_layers=arguments.float_layers,
    )
    if arguments.json:
        print_json(result)
    else:
        from facebones.reporting.export_tables import print_export

        print_export(result)
    if failed := result.get("failed"):
        raise RunError(f"{arguments.output}: not written: {', '.join(failed)}; the table says why")


def _exported_model(arguments: Arguments) -> Path:
    given: list[Path] = [path for path in (arguments.named, arguments.model) if path is not None]
    if len(given) != 1:
        raise ConfigError("give one model to export, as MODEL or as --model RUN|FILE")
    return given[0]


def _calibration(arguments: Arguments) -> "Calibration | None":
    """The images that give the ranges of the activations, checked against the other options."""
    if arguments.formats is not None and arguments.int8:
        raise ConfigError("--int8: is for one ONNX file; with --formats name onnx-int8")
    if arguments.formats is None and arguments.int8 != (arguments.calibration is not None):
        raise ConfigError("--int8 and --calibration DATA go together: the images give the range of the activations")
    sample = {"images": arguments.calibration_images, "seed": arguments.seed}
    sample = {key: value for key, value in sample.items() if value is not None}
    if sample and arguments.calibration is None:
        raise ConfigError("--calibration-images and --seed are for --int8, or --formats with --calibration")
    if arguments.float_layers and not (arguments.int8 or arguments.formats):
        raise ConfigError("--float-layers is for --int8 and --formats")
    if arguments.calibration is None:
        return None

    from facebones.onnx.quantize import Calibration

    return Calibration(arguments.calibration, **sample)


COMMANDS = {
    "backbones": Command(
        "list the backbones with their cost", 'facebones backbones "mobile*"', _backbones_options, _backbones
    ),
    "profile": Command(
        "measure the cost of networks: parameters, FLOPs, latency, throughput, memory",
        'facebones profile mobilefacenet_wide "mixfacenet*" runs/mbf --output profile',
        _profile_options,
        _profile,
    ),
    "costs": Command(
        "compare published costs with counted ones, and measure latencies in every runtime",
        'facebones costs --output costs.md --measure --only "mobilefacenet*"',
        _costs_options,
        _costs,
        takes_plugins=False,
    ),
    "export": Command(
        "export a trained backbone to ONNX, or to all formats with a table of what each changes; checked against torch",
        "facebones export runs/mbf --formats all --output exported --pairs lfw.bin",
        _export_options,
        _export,
    ),
}
