"""`facebones profile`: count and measure networks, and write what was found as JSON, CSV and pictures."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from facebones.backbones import Backbone
from facebones.onnx.backbone import OnnxBackbone
from facebones.onnx.counts import count_onnx
from facebones.profiling.conditions import Conditions, Inference
from facebones.profiling.cost import count_operations, count_parameters, unused_parameters, weights_bytes
from facebones.profiling.latency import measure_timings
from facebones.profiling.memory import measure_peak_memory
from facebones.profiling.networks import Source, family_of, find_sources, open_network
from facebones.reporting.plots.profile import plot_profile
from facebones.system.files import atomic_write, check_writable, write_json
from facebones.system.progress import track

Row = dict[str, Any]
PICTURES = ("profile.png", "profile.pdf")
COLUMNS = {  # of the table: key of a row, its unit, and how it is printed
    "network": ("name", 1, "{}"),
    "parameters": ("parameters", 1, "{:,}"),
    "unused": ("unused_parameters", 1, "{:,}"),
    "MACs": ("macs", 1, "{:,}"),
    "2 x MACs": ("flops_2_macs", 1, "{:,}"),
    "2 x MACs + BN + act. + pool": ("flops_mixfacenet", 1, "{:,}"),
    "activations": ("activations", 1, "{:,}"),
    "weights, MB": ("weights_bytes", 1e6, "{:,.2f}"),
    "p50, ms": ("latency_p50_ms", 1, "{:,.2f}"),
    "p90, ms": ("latency_p90_ms", 1, "{:,.2f}"),
    "images/s": ("throughput_images_per_second", 1, "{:,.1f}"),
    "peak, MB": ("peak_memory_bytes", 1e6, "{:,.1f}"),
}


def profile(
    words: Sequence[str],
    conditions: Conditions | None = None,
    *,
    backbone: str | None = None,
    output: Path | None = None,
) -> dict[str, Any]:
    """Count and measure networks.

    Args:
        words: names, aliases and shell patterns of backbones; paths of runs, weights and ONNX files.
        conditions: how to measure.
        backbone: its name, for files of weights that do not say it.
        output: folder for profile.json, profile.csv, profile.png and profile.pdf.

    Returns:
        what profile.json holds: "conditions", and "networks", a row for each.

    Raises:
        FaceBonesError: an unknown name, a broken file, no such device, or an output that cannot be written.
    """
    conditions = conditions or Conditions()
    conditions.check()
    sources = find_sources(words, backbone)
    with conditions.threads_set():
        opened = [open_network(source, conditions.device) for source in track(sources, "building")]
        rows = [_count(source, network) for source, (network, _) in zip(sources, opened, strict=True)]
        if output is not None:
            check_writable(output / "profile.json")
        inferences = [Inference(network, device, conditions) for network, device in opened]
        timings = measure_timings(inferences, conditions.batch_size, conditions.seconds)
        result = {"conditions": conditions.describe(), "networks": rows}
    for row, timing, source in zip(rows, timings, track(sources, "peak memory"), strict=True):
        row.update(timing.summary(), peak_memory_bytes=measure_peak_memory(source, conditions))
    if output is not None:
        write_profile(result, output)
    return result


def profile_table(result: dict[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Column names and rows of a profile, for people; what is not known is "-"."""
    rows: list[Sequence[str]] = []
    for row in result["networks"]:
        cells = [(row[key], unit, form) for key, unit, form in COLUMNS.values()]
        rows.append([_cell(value, unit, form) for value, unit, form in cells])
    return tuple(COLUMNS), rows


def headline(result: dict[str, Any]) -> str:
    """Under what conditions was measured, in two lines."""
    facts = result["conditions"]
    layout = ", channels last" if facts["channels_last"] else ""
    providers = {row["provider"] for row in result["networks"]} - {None}
    onnx = f"; .onnx in ONNX Runtime ({', '.join(providers)}) at the file's own precision" if providers else ""
    return (
        f"{facts['device']}: {facts['processor']}, {facts['threads']} thread{'s' * (facts['threads'] > 1)}, "
        f"{facts['precision']}{layout}, torch {facts['torch']}{onnx}\n"
        f"latency of one {facts['image_size']}x{facts['image_size']} image; "
        f"images/s and peak memory at batch {facts['batch_size']}"
    )


def _cell(value: Any, unit: float, form: str) -> str:
    if value is None:
        return "-"
    return form.format(value if unit == 1 else value / unit)


def _count(source: Source, network: Backbone) -> Row:
    """What does not depend on the machine."""
    row: Row = {"name": source.name, "backbone": network.name, "family": family_of(network)}
    return row | (_count_file(network) if isinstance(network, OnnxBackbone) else _count_torch(network))


def _count_torch(network: Backbone) -> Row:
    operations = count_operations(network)
    return {
        "runtime": "torch",
        "provider": None,
        "parameters": count_parameters(network),
        "unused_parameters": sum(network.get_parameter(key).numel() for key in unused_parameters(network)),
        "macs": operations.macs,
        "flops_2_macs": operations.flops,
        "flops_mixfacenet": operations.flops_mixfacenet,
        "activations": operations.activations,
        "weights_bytes": weights_bytes(network),
    }


def _count_file(network: OnnxBackbone) -> Row:
    counts = count_onnx(network.path)
    return {
        "runtime": "onnxruntime",
        "provider": network.provider,  # it may compute elsewhere than torch does
        "parameters": counts["parameters"],
        "unused_parameters": None,
        "macs": counts["macs"],
        "flops_2_macs": None if counts["macs"] is None else 2 * counts["macs"],
        "flops_mixfacenet": None,
        "activations": counts["activations"],
        "weights_bytes": network.path.stat().st_size,
    }


def write_profile(result: dict[str, Any], output: Path) -> None:
    """Write profile.json, profile.csv and the pictures.

    Raises:
        RunError: the folder cannot be written.
    """
    write_json(output / "profile.json", result)
    rows = [row | result["conditions"] for row in result["networks"]]  # each row can be read alone
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(output / "profile.csv") as file:
        file.write(text.getvalue().encode())
    plot_profile(result["networks"], [output / picture for picture in PICTURES], headline(result))
