"""Tables of costs for the terminal: a profile of networks, and an exported file."""

from collections.abc import Mapping, Sequence
from typing import Any

PROFILE_COLUMNS = {  # heading: key of a row, unit, format
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


def profile_table(result: Mapping[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Column names and rows of a profile (the content of profile.json); unknown values are "-"."""
    rows: list[Sequence[str]] = [
        [_cell(row[key], unit, form) for key, unit, form in PROFILE_COLUMNS.values()] for row in result["networks"]
    ]
    return tuple(PROFILE_COLUMNS), rows


def profile_headline(result: Mapping[str, Any]) -> str:
    """The conditions of a profile, in two lines: the title of its table and plot."""
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


def export_lines(result: Mapping[str, Any]) -> list[str]:
    """What `export` wrote, and its difference from torch."""
    metadata = result["metadata"]
    lines = [
        f"{result['output']}: {metadata['backbone']}, {metadata['embedding_size']}-d, {result['bytes'] / 1e6:.2f} MB,"
        f" opset {result['opset']}; takes {metadata['input_layout']}",
        f"preprocessing: {metadata['preprocessing']}",
        "largest difference from torch in fp32, relative to the embedding's norm:",
        *(f"  {name}: {difference:.1e}" for name, difference in result["parity"].items()),
    ]
    if changes := result.get("int8"):
        lines.append(
            f"int8 after {changes['calibration_images']} images of {changes['calibration']}: cosine to fp32 on"
            f" {changes['cosine_images']} of these: mean {changes['cosine_mean']:.4f},"
            f" minimum {changes['cosine_min']:.4f}"
        )
    return lines


def export_table(result: Mapping[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Column names and rows that compare fp32 with int8, of an export with calibration."""
    changes = result["int8"]
    before, after = changes["fp32"], changes["int8"]
    rows: list[Sequence[str]] = [
        ("size", f"{before['bytes'] / 1e6:.2f} MB", f"{after['bytes'] / 1e6:.2f} MB", f"{changes['size_ratio']:.3f}"),
        (
            "latency of one image",
            f"{before['latency_ms']:.2f} ms",
            f"{after['latency_ms']:.2f} ms",
            f"{changes['latency_ratio']:.3f}",
        ),
    ]
    for old, new in zip(before["sets"], after["sets"], strict=True):
        cells = [f"{row['accuracy']:.2%} +- {row['accuracy_std']:.2%}" for row in (old, new)]
        rows.append((f"accuracy on {old['set']}", *cells, ""))
    return ("", "fp32", "int8", "int8 / fp32"), rows
