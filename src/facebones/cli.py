"""The command line: names to functions, options, one-line errors and the exit status.

Exit status: 0 done; 1 the run failed; 2 bad input; 130 or 143 stopped by SIGINT or SIGTERM.
Progress goes to stderr and results to stdout. Commands import what they need when they run, so that help is quick.
"""

import argparse
import errno
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from facebones import __version__
from facebones.errors import ConfigError, FaceBonesError
from facebones.training.interrupts import Interrupted, stop_signals

Arguments = argparse.Namespace

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Command:
    """A row of the table of commands.

    Attributes:
        help: one line.
        example: what one would type.
        options: adds the command's options to its parser.
        run: does the work.
        takes_recipe_fields: whether `--section.field value` is understood.
    """

    help: str
    example: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Arguments], None]
    takes_recipe_fields: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # results may name files in letters that stdout has not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        arguments = _parse(argv)
        _run(arguments)
        print(end="", flush=True)
    except FaceBonesError as error:
        if "--debug" in argv:
            raise
        _say(str(error))
        return error.exit_status
    except BrokenPipeError:  # the reader of stdout, such as `head`, has seen enough
        _drop_stdout()
    except OSError as error:
        if "--debug" in argv or not (error.filename or error.errno in FULL):
            raise
        return _report(error)
    except Interrupted as stop:
        _say(f"stopped by {stop}; {_continuation(arguments)}")
        return 128 + stop.signal
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    return 0


def _run(arguments: Arguments) -> None:
    """Run the command; a signal breaks it off, save a training, which saves first."""
    if arguments.command_name in {"train", "resume"}:
        arguments.command.run(arguments)
        return
    with stop_signals() as stop, stop.at_once():
        arguments.command.run(arguments)


def _report(error: OSError) -> int:
    """Say what no command has foreseen, such as a folder that may not be entered; returns the exit status."""
    if error.filename:
        _say(f"{error.filename}: {error.strerror}")
        return 2
    _drop_stdout()  # files are named, so it is stdout that is full
    _say(f"standard output: {error.strerror}; free space or send it elsewhere")
    return 1


def _say(message: str) -> None:
    """Print one line, whatever names from strangers it quotes."""
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message)
    print(f"facebones: {line}", file=sys.stderr)


def _drop_stdout() -> None:
    """Give up on what stdout still holds, or Python's own last flush would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _continuation(arguments: Arguments) -> str:
    """How to go on with a command that was stopped."""
    name = arguments.command_name
    if name in {"train", "resume"}:
        from facebones.run_folder import RunFolder

        run = RunFolder(arguments.output if name == "train" else arguments.run_folder)
        device = "" if arguments.device == "auto" else f" --device {arguments.device}"
        return f"go on with: {run.resume_command}{device}"
    if name == "demo":
        return f"go on with: facebones demo --output {shlex.quote(str(arguments.output))}"
    if name == "data convert":
        from facebones.data.conversion import partial_folder

        if partial_folder(arguments.destination).exists():
            words = shlex.join(map(str, (arguments.source, arguments.destination)))
            return f"go on with: facebones data convert {words} --resume"
    return "nothing is left half-done; begin again with the same command"


# ---------------------------------------------------------------------------------------------------- parsing


def _parse(argv: list[str]) -> Arguments:
    parser = _build_parser()
    arguments, unknown = parser.parse_known_args(argv)
    command: Command = arguments.command
    arguments.overrides = _overrides(unknown) if command.takes_recipe_fields else {}
    if unknown and not command.takes_recipe_fields:
        raise ConfigError(f"unknown option or argument: {unknown[0]}; see facebones {arguments.command_name} --help")
    return arguments


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="facebones",
        description="Train, verify and compare face-recognition backbones under one fair ArcFace recipe.",
        epilog="example: facebones demo --output demo",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"facebones {__version__}")
    groups: dict[str, Any] = {"": parser.add_subparsers(metavar="COMMAND", required=True)}
    for name, command in COMMANDS.items():
        group, _, leaf = name.rpartition(" ")
        if group not in groups:
            heading = groups[""].add_parser(group, help=GROUPS[group], description=GROUPS[group], allow_abbrev=False)
            groups[group] = heading.add_subparsers(metavar="COMMAND", required=True)
        child = groups[group].add_parser(
            leaf,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=f"example:\n  {command.example}",
            formatter_class=_RecipeHelp if command.takes_recipe_fields else argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.options(child)
        child.add_argument("--debug", action="store_true", help="show the traceback of an error")
        child.set_defaults(command=command, command_name=name)
    return parser


class _Parser(argparse.ArgumentParser):
    """Reports a misuse as everything else is reported: in one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


class _RecipeHelp(argparse.RawDescriptionHelpFormatter):
    """Adds the fields of a recipe to the help, which is the only time that they are needed here."""

    def format_help(self) -> str:
        from facebones.config import field_help

        rows = "\n".join(f"  --{name} VALUE\n        {text}" for name, text in field_help())
        return f"{super().format_help()}\nfields of the recipe:\n{rows}\n"


def _overrides(unknown: list[str]) -> dict[str, str]:
    """`--section.field value` and `--section.field=value` as a mapping."""
    overrides: dict[str, str] = {}
    words = iter(unknown)
    for word in words:
        if not word.startswith("--"):
            raise ConfigError(f"unexpected argument: {word}; options are --section.field VALUE")
        name, has_value, value = word[2:].partition("=")
        if not has_value:
            following = next(words, None)
            if following is None or following.startswith("--"):
                raise ConfigError(f"{word}: a value is missing")
            value = following
        overrides[name] = value
    return overrides


# --------------------------------------------------------------------------------------------------- commands


def _train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe that comes along")
    parser.add_argument("--output", required=True, type=Path, metavar="RUN", help="folder of the run, made here")
    parser.add_argument("--data", metavar="PATH", help="training data; sets data.path")
    parser.add_argument("--backbone", metavar="NAME", help="sets backbone.name")
    parser.add_argument("--batch-size", metavar="N", help="sets training.batch_size")
    parser.add_argument("--seed", metavar="N", help="sets training.seed")
    parser.add_argument("--workers", metavar="N", help="sets data.workers")
    _device_option(parser)


SHORT_OPTIONS = {
    "data": "data.path",
    "backbone": "backbone.name",
    "batch_size": "training.batch_size",
    "seed": "training.seed",
    "workers": "data.workers",
}


def _train(arguments: Arguments) -> None:
    from facebones.config import load_recipe

    for option, field in SHORT_OPTIONS.items():
        if (value := getattr(arguments, option)) is not None:
            if field in arguments.overrides:
                raise ConfigError(f"--{option.replace('_', '-')} and --{field} are the same; give one of them")
            arguments.overrides[field] = value
    recipe = load_recipe(arguments.recipe, arguments.overrides)

    from facebones.training.loop import train

    _print_run(arguments.output, train(recipe, arguments.output, arguments.device))


def _resume_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="folder of the run")
    parser.add_argument("--data", metavar="PATH", help="where the training data lies from now on, if it has moved")
    parser.add_argument("--workers", type=_not_negative, metavar="N", help="sets data.workers from now on")
    _device_option(parser)


def _resume(arguments: Arguments) -> None:
    from facebones.training.loop import resume

    result = resume(arguments.run_folder, arguments.device, arguments.data, arguments.workers)
    _print_run(arguments.run_folder, result)


def _print_run(output: Path, result: dict[str, Any]) -> None:
    for row in result["final"]:
        measured = row["accuracy"] is not None
        figures = f"accuracy {row['accuracy']:.2%} +- {row['accuracy_std']:.2%}" if measured else "not measured"
        print(f"{row['set']}: {figures}")
    print(f"trained backbone: {output / 'model.safetensors'}")


def _pairs_options(parser: argparse.ArgumentParser) -> None:
    _checkpoint_option(parser, "a run, a file of weights, or an ONNX file")
    parser.add_argument("--data", required=True, nargs="+", type=Path, metavar="SET.bin", help="pair sets, or a folder")
    parser.add_argument("--backbone", metavar="NAME", help="the backbone, where the file does not say it")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write result.json, scores and the ROC picture here")
    parser.add_argument("--batch-size", type=_positive, default=128, metavar="N", help="images a forward pass [128]")
    _device_option(parser)
    _json_option(parser)


def _evaluate_pairs(arguments: Arguments) -> None:
    from facebones.evaluation.pairs import evaluate_pairs, pairs_table
    from facebones.tables import print_table

    result = evaluate_pairs(
        arguments.checkpoint,
        arguments.data,
        backbone=arguments.backbone,
        output=arguments.output,
        batch_size=arguments.batch_size,
        device=arguments.device,
    )
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print_table(*pairs_table(result), title=f"{result['backbone']} ({result['checkpoint']})")


def _export_options(parser: argparse.ArgumentParser) -> None:
    _checkpoint_option(parser, "a run, or a file of weights")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE.onnx", help="what to write; refused where it exists"
    )
    parser.add_argument("--backbone", metavar="NAME", help="the backbone, where the file does not say it")
    parser.add_argument(
        "--fold-preprocessing",
        action="store_true",
        help="take pixels, uint8 (B, 112, 112, 3), and scale them inside",
    )
    parser.add_argument("--int8", action="store_true", help="quantise to 8 bits, by images of --calibration")
    parser.add_argument("--calibration", type=Path, metavar="DATA", help="a training set, or a .bin, for --int8")
    parser.add_argument("--calibration-images", type=_positive, metavar="N", help="images drawn from it [256]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the drawing [0]")
    parser.add_argument(
        "--data",
        nargs="+",
        type=Path,
        default=[],
        metavar="SET.bin",
        help="pair sets, or a folder: compare with torch on their faces too; with --int8, accuracy before and after",
    )
    _json_option(parser)


def _export(arguments: Arguments) -> None:
    if arguments.int8 != (arguments.calibration is not None):
        raise ConfigError("--int8 and --calibration DATA go together: the images say how large the activations get")
    if arguments.calibration_images and not arguments.int8:
        raise ConfigError("--calibration-images is for --int8")

    from facebones.export import export_backbone, export_lines, export_table
    from facebones.quantization import Calibration
    from facebones.tables import print_table

    images = {"images": arguments.calibration_images} if arguments.calibration_images else {}
    result = export_backbone(
        arguments.checkpoint,
        arguments.output,
        backbone=arguments.backbone,
        fold_preprocessing=arguments.fold_preprocessing,
        calibration=Calibration(arguments.calibration, seed=arguments.seed, **images) if arguments.int8 else None,
        data=arguments.data,
    )
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print("\n".join(export_lines(result)))
    if arguments.int8:
        print_table(*export_table(result))


def _backbones_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help='shell pattern, such as "mobile*"')
    _json_option(parser)


def _backbones(arguments: Arguments) -> None:
    from facebones.efficiency import describe_backbones
    from facebones.tables import print_table

    rows = describe_backbones(arguments.pattern)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    columns = ("backbone", "parameters", "unused", "MACs", "also called", "what it is")
    print_table(columns, [_backbone_cells(row) for row in rows], title="512-d, 112x112 input; FLOPs = 2 x MACs")


def _backbone_cells(row: dict[str, Any]) -> tuple[str, ...]:
    also_called = ", ".join(row["aliases"])
    if row["problem"]:
        return row["name"], "-", "-", "-", also_called, f"{row['summary']}; not here: {row['problem']}"
    unused, macs = row["unused_parameters"], f"{row['macs'] / 1e6:,.1f} M"
    return row["name"], f"{row['parameters']:,}", f"{unused:,}", macs, also_called, row["summary"]


def _profile_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "networks",
        nargs="*",
        default=["*"],
        metavar="NAME",
        help="a backbone, an alias, a shell pattern, a run, a file of weights, an ONNX file [all backbones]",
    )
    parser.add_argument("--backbone", metavar="NAME", help="the backbone, where a file of weights does not say it")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write profile.json, .csv, .png and .pdf here")
    parser.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="for images/s and memory [32]")
    parser.add_argument("--threads", type=_positive, metavar="N", help="of the CPU [what torch takes]")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"), help="by autocast [fp32]")
    parser.add_argument("--channels-last", action="store_true", help="lay images and weights out as (B, H, W, C)")
    parser.add_argument(
        "--seconds", type=_positive_seconds, default=2.0, metavar="S", help="least time a figure of a network [2]"
    )
    _device_option(parser)
    _json_option(parser)


def _profile(arguments: Arguments) -> None:
    from facebones.profiling import Conditions, profile
    from facebones.profiling.profiler import headline, profile_table
    from facebones.tables import print_table

    conditions = Conditions(
        device=arguments.device,
        threads=arguments.threads,
        precision=arguments.precision,
        channels_last=arguments.channels_last,
        batch_size=arguments.batch_size,
        seconds=arguments.seconds,
    )
    result = profile(arguments.networks, conditions, backbone=arguments.backbone, output=arguments.output)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print_table(*profile_table(result), title=headline(result))


def _inspect_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", type=Path, help="a training set, a .bin, or a folder of them")
    parser.add_argument("--output", type=Path, metavar="PNG", help="write a contact sheet here")
    _json_option(parser)


def _inspect(arguments: Arguments) -> None:
    from facebones.data.inspection import inspect_data

    inspection = inspect_data(arguments.path, contact_sheet=arguments.output)
    if arguments.json:
        print(json.dumps(inspection.to_json(), indent=2))
    else:
        print("\n".join(inspection.lines()))


def _convert_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SRC", type=Path, help="train.rec or its folder, an image folder, a .bin, a pair list"
    )
    parser.add_argument("destination", metavar="DST", type=Path, help="what to make: a folder, a .rec or a .bin")
    parser.add_argument("--images", type=Path, metavar="DIR", help="where the images of a pair list lie")
    parser.add_argument("--resume", action="store_true", help="go on with a conversion that was broken off")


def _convert(arguments: Arguments) -> None:
    from facebones.data.conversion import convert

    print(convert(arguments.source, arguments.destination, images=arguments.images, resume=arguments.resume))


def _synthesize_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("destination", metavar="DST", type=Path, help="folder, made here")
    parser.add_argument("--identities", type=_whole, default=200, metavar="N", help="people to train on [200]")
    parser.add_argument("--images-per-identity", type=_whole, default=20, metavar="N", help="images of each [20]")
    parser.add_argument("--pairs", type=_whole, default=1000, metavar="N", help="pairs of each verification set [1000]")
    parser.add_argument("--seed", type=_whole, default=0, metavar="N", help="seed of everything [0]")


def _synthesize(arguments: Arguments) -> None:
    from facebones.data.synthetic import synthesize

    summary = synthesize(
        arguments.destination,
        identities=arguments.identities,
        images_per_identity=arguments.images_per_identity,
        pairs=arguments.pairs,
        seed=arguments.seed,
    )
    print(summary)


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="folder, made here [demo]")
    _device_option(parser)


def _demo(arguments: Arguments) -> None:
    from facebones.demo import demo

    demo(arguments.output, arguments.device)


def _checkpoint_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="RUN|FILE", help=what)


def _device_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps [auto]")


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number") from error


def _not_negative(text: str) -> int:
    number = _whole(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def _positive(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too low; give 1 or more")
    return number


def _positive_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no positive time")
    return seconds


GROUPS = {"evaluate": "measure a trained backbone", "data": "look into data, convert it, make some"}

COMMANDS = {
    "demo": Command(
        "synthesise faces, train two small backbones on them and compare both on unseen people",
        "facebones demo --output demo",
        _demo_options,
        _demo,
    ),
    "train": Command(
        "train a backbone by a recipe",
        "facebones train vggface2_arcface --data faces_vgg_112x112 --output runs/mbf \\\n"
        "      --backbone mobilefacenet_wide --training.epochs 10",
        _train_options,
        _train,
        takes_recipe_fields=True,
    ),
    "resume": Command(
        "go on with a run that was stopped or killed", "facebones resume runs/mbf", _resume_options, _resume
    ),
    "evaluate pairs": Command(
        "verify pairs (LFW, CFP-FP, AgeDB-30, ...) by the published protocol",
        "facebones evaluate pairs --checkpoint runs/mbf --data lfw.bin cfp_fp.bin --output results/mbf",
        _pairs_options,
        _evaluate_pairs,
    ),
    "export": Command(
        "write a trained backbone as an ONNX file, in fp32 or 8 bits, after comparing it with torch",
        "facebones export --checkpoint runs/mbf --output mbf.onnx --data lfw.bin",
        _export_options,
        _export,
    ),
    "backbones": Command(
        "list the backbones with their cost", 'facebones backbones "mobile*"', _backbones_options, _backbones
    ),
    "profile": Command(
        "count and measure what networks cost: parameters, FLOPs, latency, throughput, memory",
        'facebones profile mobilefacenet_wide "mixfacenet*" runs/mbf --output profile',
        _profile_options,
        _profile,
    ),
    "data inspect": Command(
        "count, check and show what a data set holds",
        "facebones data inspect faces_vgg_112x112 --output sheet.png",
        _inspect_options,
        _inspect,
    ),
    "data convert": Command(
        "convert between train.rec, image folders, pair lists and .bin, image bytes untouched",
        "facebones data convert faces_vgg_112x112 vgg_images",
        _convert_options,
        _convert,
    ),
    "data synthesize": Command(
        "draw faces of people who do not exist, in the field's own formats",
        "facebones data synthesize synthetic --identities 200 --seed 1",
        _synthesize_options,
        _synthesize,
    ),
}
