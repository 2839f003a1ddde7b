"""The JSON of an evaluation (format 2) as `MetricResult` records and curves, checked on reading."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.errors import DataError
from facebones.reporting.results import EvaluatedSet, MetricResult
from facebones.reporting.runs import OTHER_SHAPE, number, read_json, text, unexpected
from facebones.statistics.curves import RocCurve, roc
from facebones.system.files import read_npz

FORMAT = 2
OLDER_FILES = ("pairs.json", "templates.json", "identification.json")
CURVE_ENDING = "_roc.npz"
CURVE_ARRAYS = ("far", "tar", "threshold", "genuine", "impostors")
SCORE_ARRAYS = ("distance", "is_same")
IMAGES_DIGEST = "images_sha256"  # beside these, since version 0.2
CALIBRATIONS = "*.calibration.json"
OVERLAP = "overlap"  # the folder of an audit beside what it is of
TRUST_FILES = ("groups.json", "quality.json", f"{OVERLAP}.json", f"{OVERLAP}/{OVERLAP}.json")
NOT_EVALUATIONS = (
    *TRUST_FILES,
    "study.json",
    "profile.json",
    "results.json",
    "result.json",
    "environment.json",
    "error.json",
    "model.json",
    "source.json",
    "training_metrics.json",
    "validation_metrics.json",
)


def evaluation_files(folder: Path) -> list[Path]:
    """Files in a folder that hold an evaluation: those of known names, then those of plug-in protocols."""
    known = [folder / name for name in OLDER_FILES if (folder / name).is_file()]
    others = (path for path in sorted(folder.glob("*.json")) if path.name not in (*OLDER_FILES, *NOT_EVALUATIONS))
    return known + [path for path in others if path.is_file() and _is_evaluation(path)]


def trust_files(folder: Path) -> list[Path]:
    """Files in a folder that hold thresholds, rates by group, quality or overlap."""
    known = (folder / name for name in TRUST_FILES)
    return [*sorted(folder.glob(CALIBRATIONS)), *(path for path in known if path.is_file())]


def _is_evaluation(path: Path) -> bool:
    try:
        content = read_json(path)
    except DataError:  # of another program
        return False
    return isinstance(content, dict) and {"format", "protocol", "models", "results"} <= content.keys()


def read_evaluation(path: Path) -> dict[str, Any]:
    """The content of an evaluation's file in format 2; an older file is translated.

    Raises:
        DataError: the file is damaged, or a newer version of facebones wrote it.
    """
    content = read_json(path)
    try:
        if content.get("format") is None:
            from facebones.reporting.format1 import translate_evaluation

            return translate_evaluation(content, path.name)
        check_format(content)
        return dict(content)
    except OTHER_SHAPE as error:
        raise unexpected(path, error) from error


def check_format(content: Mapping[str, Any]) -> None:
    """Refuse the file of a newer version.

    Raises:
        ValueError: the format is not known here.
    """
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r:.20} is not supported; update facebones")


def evaluated_set(section: Mapping[str, Any]) -> EvaluatedSet:
    """Which set a section of "results" is about."""
    return EvaluatedSet(text(section["protocol"]), text(section["set"]), text(section.get("setting", "")))


def metric_results(section: Mapping[str, Any], called: Mapping[str, str]) -> Iterator[MetricResult]:
    """The metrics of a section of "results".

    Args:
        section: of one evaluated set.
        called: models to read, to their names in the report.

    Raises:
        KeyError: or another of OTHER_SHAPE, if the section has another shape.
    """
    for content in section["metrics"]:
        identity = {
            **evaluated_set(section)._asdict(),
            "name": text(content["name"]),
            "at": {text(key): number(value) for key, value in content["at"].items()},
            "rule": text(content["rule"]),
            "higher_is_better": bool(content["higher_is_better"]),
            "chance": None if content["chance"] is None else number(content["chance"]),
            "main": bool(content["main"]),
        }
        if content["reason"] is not None:
            yield MetricResult(**identity, reason=text(content["reason"]))
        else:
            yield MetricResult(**identity, **_measured(content, called))


def _measured(content: Mapping[str, Any], called: Mapping[str, str]) -> dict[str, Any]:
    tests = [_comparison(test) for test in content["comparisons"]]
    return {
        "values": {called[model]: number(value) for model, value in content["values"].items() if model in called},
        "intervals": {called[model]: _interval(one) for model, one in content["intervals"].items() if model in called},
        "comparisons": [
            {**test, "first": called[test["first"]], "second": called[test["second"]]}
            for test in tests
            if test["first"] in called and test["second"] in called
        ],
    }


def _interval(content: Mapping[str, Any]) -> dict[str, Any]:
    low, high = number(content["low"]), number(content["high"])
    if low > high:
        raise ValueError(f"{low} to {high} is not an interval")
    return {**content, "low": low, "high": high}


def _comparison(content: Mapping[str, Any]) -> dict[str, Any]:
    names = {key: text(content[key]) for key in ("first", "second")}
    numbers = {key: number(content[key]) for key in ("difference", "p_value", "adjusted")}
    return {**content, **names, **numbers, "interval": _interval(content["interval"])}


def read_roc(file: Path) -> RocCurve:
    """The ROC, over cosines, that an evaluation has saved: as `distance` and `is_same`, or as the corners of the curve.

    Raises:
        DataError: the file is damaged.
    """
    try:
        if file.name.endswith(CURVE_ENDING):
            return _curve(read_npz(file, CURVE_ARRAYS))
        scores = read_npz(file, SCORE_ARRAYS)
        return roc(1 - scores["distance"] / 2, scores["is_same"])
    except (*OTHER_SHAPE, OSError) as error:
        raise unexpected(file, error) from error


@dataclass(frozen=True, kw_only=True, eq=False)
class PairScores:
    """What a model says of each pair of a set.

    Attributes:
        scores: (P,) float64 cosines, in the order of the set.
        is_same: (P,) bool, True for a genuine pair.
        images_sha256: digest of the set's images; None in files of older versions.
    """

    scores: npt.NDArray[np.float64]
    is_same: npt.NDArray[np.bool_]
    images_sha256: str | None


def read_pair_scores(file: Path) -> PairScores:
    """The scores of all pairs, in their order, that an evaluation has saved.

    Raises:
        DataError: the file is damaged.
    """
    try:
        arrays, digest = read_npz(file, SCORE_ARRAYS), None
        with suppress(ValueError):  # of an older version
            digest = str(read_npz(file, (IMAGES_DIGEST,))[IMAGES_DIGEST])
        scores, is_same = 1 - arrays["distance"].astype(np.float64) / 2, arrays["is_same"]
        if scores.ndim != 1 or is_same.shape != scores.shape or is_same.dtype != np.bool_:
            raise ValueError("not a score and a label for each pair")
        if not np.isfinite(scores).all():
            raise ValueError("a score that is not finite")
        return PairScores(scores=scores, is_same=is_same, images_sha256=digest)
    except (*OTHER_SHAPE, OSError) as error:
        raise unexpected(file, error) from error


def fold_thresholds(details: Any) -> list[float]:
    """The thresholds of a model's folds as cosines, by what an evaluation holds of the model; empty if unknown.

    Where folds hold one kind of pair, their thresholds say little: these are left out too.

    >>> fold_thresholds({"fold_threshold": [1.0, 1.5]})
    [0.5, 0.25]
    """
    known = (
        details.get("fold_threshold") if isinstance(details, Mapping) and not details.get("one_kind_folds") else None
    )
    return [1 - number(one) / 2 for one in known] if isinstance(known, list) else []


def _curve(arrays: Mapping[str, Any]) -> RocCurve:
    far, tar, threshold = (arrays[name] for name in CURVE_ARRAYS[:3])
    genuine, impostors = (int(arrays[name]) for name in CURVE_ARRAYS[3:])
    rising = all(rate.ndim == 1 and rate.size == threshold.size and (np.diff(rate) >= 0).all() for rate in (far, tar))
    if not rising or far.size < 2 or (far[0], far[-1]) != (0, 1) or min(genuine, impostors) < 1:
        raise ValueError("not a ROC curve")
    return RocCurve(far, tar, threshold, genuine, impostors)


def hit_rates(curves: Mapping[str, Any], model: str) -> list[float] | None:
    """The CMC of a model: hit rates at ranks 1, 2, ...; None if the evaluation has none."""
    rates = curves.get("cmc", {}).get(model)
    return None if rates is None else [number(rate) for rate in rates]
