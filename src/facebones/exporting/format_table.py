"""The table of formats, and the diagnosis of 8 bits, as text: the same in a terminal and in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from facebones.exporting.int8_diagnosis import advice
from facebones.system.number_format import percent_interval, points
from facebones.system.progress import printable

BUSY = "busy"
BEFORE_FIRST = 2  # activations shown before the first that departs
NONE = "-"

Table = tuple[list[str], list[list[str]]]  # headings and rows


def formats_table(result: Mapping[str, Any]) -> Table:
    """The formats of an export: headings and rows.

    Args:
        result: what `export` returns for formats.
    """
    sets = [one["set"] for one in result["formats"][0]["sets"]]
    columns = ["format", "MB", "deviation", "least cosine"]
    for name in sets:
        columns += [f"{name} [95 %]", f"{name}: to fp32, points"]
    columns += ["latency, ms", "state"]
    return columns, [_format_row(row, sets) for row in result["formats"]]


def _format_row(row: Mapping[str, Any], sets: Sequence[str]) -> list[str]:
    parity = row["parity"] or {}
    deviation, cosine = parity.get("deviation"), parity.get("cosine_min")
    cells = [
        row["format"],
        NONE if row["bytes"] is None else f"{row['bytes'] / 1e6:.2f}",
        NONE if deviation is None else f"{deviation:.1e}",
        NONE if cosine is None else f"{cosine:.6f}",
    ]
    measured = {one["set"]: one for one in row["sets"]}
    for name in sets:
        cells += _accuracy_cells(measured.get(name))
    state = row["state"] if row["reason"] is None else f"{row['state']}: {row['reason']}"
    return [*cells, _latency_cell(row["latency"]), state]


def _accuracy_cells(one: Mapping[str, Any] | None) -> list[str]:
    if one is None:
        return [NONE, NONE]
    accuracy = percent_interval(one["accuracy"], *one["interval"])
    if "difference" not in one:
        return [accuracy, NONE]
    low, high = one["difference_interval"]
    return [accuracy, f"{points(one['difference'])} [{points(low)}, {points(high)}]"]


def _latency_cell(latency: Mapping[str, Any] | None) -> str:
    if latency is None:
        return NONE
    return f"{latency['latency_p50_ms']:.2f}" + (f" {BUSY}" if latency["busy"] else "")


def formats_title(result: Mapping[str, Any]) -> str:
    """What was exported, on what it was compared, and where it was timed: two lines."""
    form = f" ({result['form']} form)" if result["form"] else ""
    faces, ranges, conditions = result["faces"], result["calibration"], result["conditions"]
    threads = conditions["threads"]
    has_int8 = any(row["precision"] == "int8" for row in result["formats"])
    calibrated = f"; int8 calibrated on {ranges['count']}: {ranges['source']}" if has_int8 else ""
    return (
        f"{result['output']}: {result['backbone']}{form}, {result['embedding_size']}-d; compared with PyTorch on"
        f" {faces['count']} faces: {faces['source']}{calibrated}\n"
        f"{conditions['processor']}, {threads} thread{'s' * (threads > 1)}; latency of one face, median;"
        f" {BUSY}: the machine did other work meanwhile"
    )


def bounds_words(result: Mapping[str, Any]) -> str:
    """The bounds of the states, in one sentence."""
    bounds = result["bounds"]
    return (
        f"Bounds: deviation {bounds['fp32_deviation']:.0e} of an embedding's norm in fp32 (else the file is discarded);"
        f" least cosine {bounds['fp16_cosine']} in fp16 and {bounds['int8_cosine']} in int8; there also"
        f" {100 * bounds['accuracy_loss']:g} point of accuracy lost, if the interval excludes 0."
    )


def layers_table(diagnosis: Mapping[str, Any]) -> Table:
    """The activations around the first that departs, and those of the layers that lose most: headings and rows."""
    layers, first = diagnosis["layers"], diagnosis["first"]
    shown = set(range(max(0, first - BEFORE_FIRST), first + 1)) if first is not None else set()
    for name in diagnosis["worst"]:
        own = [place for place, row in enumerate(layers) if row["layer"] == name]
        shown.add(max(own, key=lambda place: float(layers[place]["step"])))
    rows = [
        [
            str(place + 1),
            layers[place]["layer"],
            layers[place]["operator"],
            *(_number(layers[place][key], ".4g") for key in ("norm_fp32", "norm_int8")),
            *(_number(layers[place][key], ".3f") for key in ("cosine", "step")),
            _number(layers[place]["spread"], ",.1f"),
        ]
        for place in sorted(shown)
    ]
    columns = [
        "place",
        "layer",
        "operator",
        "norm fp32",
        "norm int8",
        "cosine",
        "lost here",
        "largest / median channel",
    ]
    return columns, rows


def trials_table(diagnosis: Mapping[str, Any]) -> Table:
    """What was tried against the loss: headings and rows."""
    rows = [
        [one["name"], _number(one["cosine_min"], ".4f"), _number(one["cosine_mean"], ".4f"), one["options"] or NONE]
        for one in diagnosis["trials"]
    ]
    return ["tried", "least cosine", "mean cosine", "options"], rows


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def fp16_cosine(result: Mapping[str, Any]) -> float | None:
    """The least cosine of the ONNX file in fp16, if there is one."""
    found = [row["parity"]["cosine_min"] for row in result["formats"] if row["format"] == "onnx-fp16" and row["parity"]]
    return found[0] if found else None


def markdown(result: Mapping[str, Any]) -> str:
    """The page beside the files: the table, the bounds, and where there is one the diagnosis of 8 bits."""
    title, conditions = formats_title(result).splitlines()
    parts = [f"# {result['backbone']}", title, conditions, _markdown_table(formats_table(result)), bounds_words(result)]
    if diagnosis := result["int8_diagnosis"]:
        sentences = "\n".join(f"- {sentence}" for sentence in advice(diagnosis, fp16_cosine(result)))
        parts += ["## Where int8 loses", sentences, _markdown_table(layers_table(diagnosis))]
        parts += [_markdown_table(trials_table(diagnosis))]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    columns, rows = table
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _escaped(cell: str) -> str:
    return printable(cell, breaks=False).replace("|", "\\|")
