"""The rows of the table of formats: what each file changes, and whether that is within its bound."""

from collections.abc import Mapping, Sequence
from typing import Any

from facebones.data.pair_bins import PairSet
from facebones.evaluation.verification import PairResult, PairSetResult, correct_pairs
from facebones.exporting.format_work import PYTORCH
from facebones.exporting.formats import FORMATS, Format
from facebones.exporting.int8_diagnosis import LARGEST_LOSS, LEAST_COSINE, is_below_bound
from facebones.exporting.onnx_file import TOLERANCE
from facebones.statistics.bootstrap import resample_accuracy
from facebones.statistics.significance import compare_models

OK, BELOW_BOUND, FAILED, NOT_INSTALLED = "ok", "below bound", "failed", "not installed"
WRITTEN = (OK, BELOW_BOUND)
LEAST_FP16_COSINE = 0.999
BOUNDS = {
    "fp32_deviation": TOLERANCE,
    "fp16_cosine": LEAST_FP16_COSINE,
    "int8_cosine": LEAST_COSINE,
    "accuracy_loss": LARGEST_LOSS,
}

Row = dict[str, Any]


def new_row(name: str, asked_by_name: bool) -> Row:
    """The row of a format before anything is done."""
    return {
        "format": name,
        "precision": FORMATS[name].precision if name in FORMATS else "fp32",
        "files": [],
        "bytes": None,
        "state": OK,
        "reason": None,
        "parity": None,
        "sets": [],
        "latency": None,
        "asked_by_name": asked_by_name,
    }


def not_installed(one: Format) -> str:
    """Which packages a format lacks, and what installs them."""
    return f"{', '.join(one.missing)} missing; pip install 'facebones[{one.extra}]'"


def refusal(row: Row) -> str | None:
    """Why the file of a row cannot be kept, or None."""
    deviation = row["parity"]["deviation"]
    if deviation is None:
        return "its embeddings are zero or not finite"
    if row["precision"] == "fp32" and deviation > TOLERANCE:
        return f"differs from torch by {deviation:.1e} of an embedding's norm; {TOLERANCE:.0e} is allowed"
    return None


def judge(row: Row) -> None:
    """Compare a written row of 16 or 8 bits with its bound; set its state and reason.

    A loss of accuracy counts if its interval excludes 0: of few pairs, one decided otherwise is more than a point.
    """
    cosine = row["parity"]["cosine_min"]
    losses = [-one["difference"] for one in row["sets"] if one["difference_interval"][1] < 0]
    least = {"fp16": LEAST_FP16_COSINE, "int8": LEAST_COSINE}.get(row["precision"], 0.0)
    if not cosine >= least:
        row["state"], row["reason"] = BELOW_BOUND, f"least cosine {cosine:.4f}; bound {least}"
    elif losses and row["precision"] in ("fp16", "int8") and is_below_bound(1.0, max(losses)):
        points = 100 * max(losses)
        row["state"] = BELOW_BOUND
        row["reason"] = f"{points:.2f} points of accuracy lost; bound {100 * LARGEST_LOSS:g}"


def accuracies(results: Mapping[str, PairSetResult], pair_set: PairSet) -> dict[str, dict[str, Any]]:
    """Accuracy of the network and of each file on a set, with the paired difference from the network's.

    On a set with folds of one kind of pair it is that over shuffled folds, the set's main metric. Pairs are resampled.

    Args:
        results: of PYTORCH and the formats.
        pair_set: the set.

    Returns:
        by name: "set", "accuracy", "interval" (low, high); for files "difference", its "difference_interval" and
        "p_value", not corrected for the number of formats.
    """
    same = pair_set.is_same
    correct = {name: _correct(result.verification, same) for name, result in results.items()}
    found = {}
    for name in results:
        names = [name] if name == PYTORCH else [name, PYTORCH]
        (metric,) = compare_models(names, [resample_accuracy([correct[one] for one in names], same)])
        interval = metric.intervals[name]
        row = {"set": pair_set.name, "accuracy": metric.values[name], "interval": [interval.low, interval.high]}
        for one in metric.comparisons:
            row |= {
                "difference": one.difference,
                "difference_interval": [one.interval.low, one.interval.high],
                "p_value": one.p_value,
            }
        found[name] = row
    return found


def _correct(result: PairResult, is_same_P: Any) -> Any:
    shuffled = result.correct_shuffled
    return correct_pairs(result, is_same_P) if shuffled is None else shuffled


def failed_by_name(rows: Sequence[Row]) -> list[str]:
    """The formats that were asked for by name and were not written."""
    return [row["format"] for row in rows if row["asked_by_name"] and row["state"] not in WRITTEN]
