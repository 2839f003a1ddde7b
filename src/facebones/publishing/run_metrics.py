"""The metrics of one model among the results of evaluations and studies, found by the digest of its weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facebones.errors import DataError
from facebones.reporting.evaluations import evaluation_files, metric_results, read_evaluation
from facebones.reporting.load import STUDY_FILE
from facebones.reporting.results import MetricResult
from facebones.reporting.runs import OTHER_SHAPE, unexpected

EVALUATION = "evaluation"  # the folder of a study that holds its results
THE_MODEL = "model"


@dataclass(frozen=True, kw_only=True)
class MeasuredMetric:
    """A metric that was measured of the model.

    Attributes:
        metric: which one, with the value and the interval of "model" alone.
        versions: "facebones" and "git_revision" of the evaluation: the version of its protocol.
        computed: "runtime" and "precision" of the network.
    """

    metric: MetricResult
    versions: dict[str, Any]
    computed: dict[str, Any]

    @property
    def value(self) -> float:
        """Its value."""
        return float(self.metric.values[THE_MODEL])

    @property
    def interval(self) -> dict[str, Any] | None:
        """Its confidence interval, as in the result file."""
        found = self.metric.intervals.get(THE_MODEL)
        return None if found is None else dict(found)

    def to_json(self) -> dict[str, Any]:
        """Everything, for config.json."""
        metric = self.metric
        return {
            **{"protocol": metric.protocol, "set": metric.set, "setting": metric.setting},
            **{"name": metric.name, "at": dict(metric.at), "rule": metric.rule, "main": metric.main},
            "higher_is_better": metric.higher_is_better,
            "value": self.value,
            "interval": self.interval,
            **self.versions,
            **self.computed,
        }


def measured_metrics(places: Sequence[Path], run: Path, weights_sha256: str) -> list[MeasuredMetric]:
    """The metrics of a model.

    Args:
        places: result files, folders of them, or studies, each of which must hold a result of the model. Also searched
            are the run's folder, and the study that it belongs to.
        run: folder of the run.
        weights_sha256: digest of its weights; a result of other weights is not one of the model.

    Returns:
        each metric once: of two results, the one that is found first.

    Raises:
        DataError: a place holds no result of the model, or a file is damaged.
    """
    found: dict[tuple[Any, ...], MeasuredMetric] = {}
    for place in places:
        here = list(_of_place(place, weights_sha256))
        if not here:
            raise DataError(
                f"{place}: holds no results of this model; give what `facebones evaluate --output` or `compare` wrote"
                " with its present weights"
            )
        _add(found, here)
    for place in _own_places(run):
        _add(found, list(_of_place(place, weights_sha256)))
    return list(found.values())


def _add(found: dict[tuple[Any, ...], MeasuredMetric], more: Sequence[MeasuredMetric]) -> None:
    for one in more:
        metric = one.metric
        at = tuple(sorted(metric.at.items()))
        found.setdefault((metric.protocol, metric.set, metric.setting, metric.name, at, metric.rule), one)


def _own_places(run: Path) -> list[Path]:
    """The run's folder, and the study around it: STUDY/runs/BACKBONE/SEED."""
    parents = run.resolve().parents
    in_study = len(parents) > 2 and parents[1].name == "runs" and (parents[2] / STUDY_FILE).is_file()
    return [run, *([parents[2]] if in_study else [])]


def _of_place(place: Path, weights_sha256: str) -> Iterator[MeasuredMetric]:
    for path in _files(place):
        content = read_evaluation(path)
        try:
            yield from _of_file(content, weights_sha256)
        except OTHER_SHAPE as error:
            raise unexpected(path, error) from error


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"{place}: no such file or folder; give a folder of results")
    inner = place / EVALUATION
    folders = [place, inner, *sorted(path for path in inner.glob("*") if path.is_dir())]
    return [path for folder in folders if folder.is_dir() for path in evaluation_files(folder)]


def _of_file(content: dict[str, Any], weights_sha256: str) -> Iterator[MeasuredMetric]:
    models = {name: model for name, model in content["models"].items() if isinstance(model, dict)}
    own = next((name for name, model in models.items() if model.get("weights_sha256") == weights_sha256), None)
    if own is None:
        return
    versions = {key: content.get(key) for key in ("facebones", "git_revision")}
    computed = {key: models[own].get(key) for key in ("runtime", "precision")}
    for section in content["results"]:
        for metric in metric_results(section, {own: THE_MODEL}):
            if THE_MODEL in metric.values:
                yield MeasuredMetric(metric=metric, versions=versions, computed=computed)
