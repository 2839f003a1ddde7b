"""Profile networks: count and measure each of them, and write profile.json and profile.csv."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from facebones.backbones.base import Backbone
from facebones.onnx.backbone import OnnxBackbone
from facebones.onnx.graph import count_onnx
from facebones.profiling.conditions import Conditions, Inference
from facebones.profiling.cost import count_operations, count_parameters, unused_parameters, weights_bytes
from facebones.profiling.measurements import measure_peak_memory, measure_timings
from facebones.profiling.networks import Source, family_of, find_sources, open_network
from facebones.system.files import atomic_write, check_writable, write_json
from facebones.system.progress import track

Row = dict[str, Any]


def profile(
    networks: str | Path | Sequence[str | Path],
    conditions: Conditions | None = None,
    *,
    backbone: str | None = None,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Count and measure networks.

    Args:
        networks: one or several names, aliases or shell patterns of backbones, or paths of runs, weights or ONNX files.
        conditions: device, threads, precision and length of the measurement.
        backbone: its name, for files of weights that do not state it.
        output: folder for profile.json and profile.csv.

    Returns:
        the content of profile.json: "conditions", and "networks", a row for each.

    Raises:
        FaceBonesError: an unknown name, a broken file, an unavailable device, or an output that cannot be written.

    >>> from facebones.profiling import Conditions
    >>> result = profile("study_mixfacenet_xs", Conditions(device="cpu", batch_size=2, seconds=0.01))
    >>> result["networks"][0]["macs"]
    2804520
    """
    conditions = conditions or Conditions()
    conditions.check()
    words = [networks] if isinstance(networks, str | Path) else networks
    sources = find_sources([str(word) for word in words], backbone)
    with conditions.threads_set():
        opened = [open_network(source, conditions.device) for source in track(sources, "building")]
        rows = [_count(source, network) for source, (network, _) in zip(sources, opened, strict=True)]
        if output is not None:
            check_writable(Path(output) / "profile.json")
        inferences = [Inference(network, device, conditions) for network, device in opened]
        timings = measure_timings(inferences, conditions.batch_size, conditions.seconds)
        result = {"conditions": conditions.describe(), "networks": rows}
    for row, timing, source in zip(rows, timings, track(sources, "peak memory"), strict=True):
        row.update(timing.summary(), peak_memory_bytes=measure_peak_memory(source, conditions))
    if output is not None:
        write_profile(result, Path(output))
    return result


def _count(source: Source, network: Backbone) -> Row:
    """The part of a row that does not depend on the machine."""
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
        "attention_macs": operations.attention,
        "flops_2_macs": operations.flops,
        "flops_mixfacenet": operations.flops_mixfacenet,
        "activations": operations.activations,
        "weights_bytes": weights_bytes(network),
    }


def _count_file(network: OnnxBackbone) -> Row:
    counts = count_onnx(network.path)
    return {
        "runtime": "onnxruntime",
        "provider": network.provider,  # may compute on another device than torch
        "parameters": counts["parameters"],
        "unused_parameters": None,
        "macs": counts["macs"],
        "attention_macs": None,
        "flops_2_macs": None if counts["macs"] is None else 2 * counts["macs"],
        "flops_mixfacenet": None,
        "activations": counts["activations"],
        "weights_bytes": network.path.stat().st_size,
    }


def write_profile(result: dict[str, Any], output: Path) -> None:
    """Write profile.json and profile.csv.

    Raises:
        RunError: the folder cannot be written.
    """
    write_json(output / "profile.json", result)
    rows = [row | result["conditions"] for row in result["networks"]]  # each row of the CSV file stands alone
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(output / "profile.csv") as file:
        file.write(text.getvalue().encode())
