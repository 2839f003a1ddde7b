"""What `export` prints: of one ONNX file its difference from PyTorch, of many formats their table."""

from collections.abc import Mapping, Sequence
from typing import Any

from facebones.exporting.format_table import (
    bounds_words,
    formats_table,
    formats_title,
    fp16_cosine,
    layers_table,
    trials_table,
)
from facebones.exporting.int8_diagnosis import advice
from facebones.reporting.console import print_items, print_table, with_form
from facebones.system.number_format import percent
from facebones.system.progress import tell


def print_export(result: Mapping[str, Any]) -> None:
    """Print what `exporting.export` returns."""
    if "formats" in result:
        print_table(*formats_table(result), title=formats_title(result))
        print_items([bounds_words(result)])
        _print_diagnosis(result["int8_diagnosis"], fp16_cosine(result))
        return
    tell(*export_lines(result))
    if changes := result.get("int8"):
        print_table(*export_table(result))
        _print_diagnosis(changes.get("diagnosis"), None)


def _print_diagnosis(diagnosis: Mapping[str, Any] | None, fp16: float | None) -> None:
    if diagnosis is None:
        return
    print_table(*layers_table(diagnosis), title="int8 is below its bound: activations in fp32 and in int8")
    print_table(*trials_table(diagnosis), title="tried against it")
    print_items(advice(diagnosis, fp16))


def export_lines(result: Mapping[str, Any]) -> list[str]:
    """What `export` wrote, and its difference from torch."""
    metadata = result["metadata"]
    lines = [
        f"{result['output']}: {with_form(metadata['backbone'], metadata.get('form'))}, {metadata['embedding_size']}-d,"
        f" {result['bytes'] / 1e6:.2f} MB,"
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
        cells = [percent(row["accuracy"], row["accuracy_std"]) for row in (old, new)]
        rows.append((f"accuracy on {old['set']}", *cells, ""))
    return ("", "fp32", "int8", "int8 / fp32"), rows
