"""What a report is made of: runs, costs and figures, and what they say of each backbone over its seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facebones.errors import UnknownNameError
from facebones.statistics.significance import SIGNIFICANT, over_seeds

if TYPE_CHECKING:
    from facebones.reporting.plots.report_plots import Pictures

Line = Mapping[str, Any]
LOWER_IS_BETTER = ("EER",)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained, failed or unfinished network.

    Attributes:
        name: of the model in evaluations; no two runs of a report share one.
        backbone: what is compared. The runs of one backbone differ in their seeds only.
        seed: None where it is not known.
        folder: where it was read from.
        source: "run", "log" (of others, by `facebones logs`), or "file" (an ONNX file, or weights of others).
        state: "done", "failed", "unfinished" or "to do".
        error: of a run that failed; one line.
        recipe: sections of the resolved recipe; empty where it is not known.
        environment: versions, device, data; empty where it is not known.
        lines: of metrics.jsonl, in the order of writing; "kind" is "train" or "validation".
        result: what result.json holds; empty where there is none.
    """

    name: str
    backbone: str
    seed: int | None = None
    folder: Path
    source: str = "run"
    state: str = "done"
    error: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[Line] = ()
    result: Mapping[str, Any] = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[Line]:
        """Its lines of one kind, "train" or "validation"."""
        return [line for line in self.lines if line.get("kind") == kind]

    @property
    def steps(self) -> int | None:
        """Done so far."""
        known = self.result.get("steps")
        if known is not None:
            return int(known)
        return max((int(line["step"]) for line in self.lines), default=None)

    @property
    def final_loss(self) -> float | None:
        """Mean loss of the last interval that has one."""
        losses: list[float] = [line["loss"] for line in self.of_kind("train") if line.get("loss") is not None]
        return losses[-1] if losses else None

    def final_accuracy(self, pair_set: str) -> float | None:
        """At the last step, as measured while training."""
        rows = [row for row in self.result.get("final", ()) if row["set"] == pair_set]
        return float(rows[0]["accuracy"]) if rows and rows[0]["accuracy"] is not None else None

    def best_accuracy(self, pair_set: str) -> float | None:
        """The best of all steps, as measured while training; logs of others may know of more steps than they show."""
        rows = [line for line in self.of_kind("validation") if line["set"] == pair_set]
        values = [row.get(key) for row in rows for key in ("accuracy", "best_accuracy")]
        known = [*values, self.result.get("best", {}).get("sets", {}).get(pair_set)]
        return max((float(value) for value in known if value), default=None)  # 0 is a best that was never measured


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a backbone costs; None is not known or not measured.

    Attributes:
        parameters: all.
        macs: multiply-accumulates of convolutions and linear layers, one image.
        latency_ms: median, of one image.
        images_per_second: in batches.
        memory_bytes: peak, in batches.
    """

    parameters: int | None = None
    macs: int | None = None
    latency_ms: float | None = None
    images_per_second: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of all models that were evaluated together.

    Attributes:
        where: the set, such as "lfw" or "IJBC 1:1".
        name: such as "accuracy", "TAR at FAR 0.0001", "AUC", "EER", "Rank-1".
        kind: "pairs", "templates" or "identification".
        values: of each model; empty where the data cannot give the figure.
        intervals: of each model, "low", "high" and "resampled" among others, at 95 %.
        comparisons: of every two models: "first", "second", "difference", "interval", "p_value", "adjusted", "method".
        reason: why there are no values.
    """

    where: str
    name: str
    kind: str
    values: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    comparisons: Sequence[Mapping[str, Any]] = ()
    reason: str | None = None

    @property
    def lower_is_better(self) -> bool:
        """Whether a small value is a good one."""
        return self.name in LOWER_IS_BETTER

    @property
    def title(self) -> str:
        """Such as "lfw accuracy"."""
        return f"{self.where} {self.name}"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure of a backbone over its seeds.

    Attributes:
        mean: over the seeds.
        deviation: sample standard deviation; None of one seed.
        low: of a 95 % interval: of one seed that of the evaluation, of several Student's over the seeds, cut off at 0
            and 1; or None.
        high: likewise.
        values: of each run, by its name.
    """

    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class BackboneTest:
    """Two backbones compared by one figure, over all pairs of their runs.

    It is an intersection-union test: p is the largest of the tests of a run of one against a run of the other, each
    after Holm's correction, and 1 where these do not agree about which is better. So a difference counts only if it
    holds whichever seeds are compared. (R. L. Berger, Technometrics 24, 1982.)

    Attributes:
        first: a backbone.
        second: another.
        difference: mean over the pairs of runs of the first's value minus the second's.
        p_value: as above.
    """

    first: str
    second: str
    difference: float
    p_value: float

    @property
    def significant(self) -> bool:
        """At 5 %."""
        return self.p_value <= SIGNIFICANT


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that a report tells.

    Attributes:
        title: the study's name, or those of the folders.
        folders: what was read.
        runs: in the order of the folders.
        costs: of each backbone.
        figures: in the order of the evaluations.
        curves: set to model to ROC points: FAR and TAR, each (K,), as `evaluation.curves.RocCurve` has them.
        cmc: set to model to the rates of Rank-1, Rank-2, ...
        conditions: under which latency and memory were measured; empty without a profile.
        recipe: that all the runs share, without backbone and seed; what differs between runs is left out.
        notes: what could not be read or does not fit together; a line each.
        command: that makes the study again, or the runs.
    """

    title: str
    folders: Sequence[Path]
    runs: Sequence[Run]
    costs: Mapping[str, Cost]
    figures: Sequence[Figure]
    curves: Mapping[str, Mapping[str, Any]]
    cmc: Mapping[str, Mapping[str, Sequence[float]]]
    conditions: Mapping[str, Any]
    recipe: Mapping[str, Any]
    notes: Sequence[str]
    command: str

    @cached_property
    def backbones(self) -> list[str]:
        """In the order of the runs."""
        return list(dict.fromkeys(run.backbone for run in self.runs))

    @cached_property
    def pair_sets(self) -> list[str]:
        """Evaluated or validated."""
        evaluated = [figure.where for figure in self.figures if figure.kind == "pairs"]
        return list(dict.fromkeys(evaluated + self.validated_sets))

    @cached_property
    def validated_sets(self) -> list[str]:
        """Pair sets that were measured while training."""
        on_the_way = [line["set"] for run in self.runs for line in run.of_kind("validation")]
        at_the_end = [row["set"] for run in self.runs for row in run.result.get("final", ())]
        return list(dict.fromkeys(on_the_way + at_the_end))

    @property
    def scales_gradients(self) -> bool:
        """Whether a run was trained in fp16, its gradients scaled."""
        return any(line.get("gradient_scale") not in (None, 1) for run in self.runs for line in run.of_kind("train"))

    def runs_of(self, backbone: str) -> list[Run]:
        """Its seeds."""
        return [run for run in self.runs if run.backbone == backbone]

    def figure(self, where: str, name: str) -> Figure:
        """A figure; see `known_figures`.

        Raises:
            UnknownNameError: no evaluation has given it.
        """
        for one in self.known_figures:
            if (one.where, one.name) == (where, name):
                return one
        raise UnknownNameError("figure", f"{where} {name}", [one.title for one in self.known_figures])

    @cached_property
    def known_figures(self) -> list[Figure]:
        """The evaluated figures, and the accuracy at the end of training where there is none, as of others' logs.

        What training measured has no interval, and no test joins it with anything.
        """
        accuracies = {name: self._validated(name) for name in self.validated_sets}
        found = [
            replace(figure, values={**accuracies.get(figure.where, {}), **figure.values})
            if figure.kind == "pairs" and figure.name == "accuracy" and figure.values
            else figure
            for figure in self.figures
        ]
        evaluated = {figure.title for figure in found if figure.values}
        added = [
            Figure(where=where, name="accuracy", kind="pairs", values=values) for where, values in accuracies.items()
        ]
        return found + [figure for figure in added if figure.values and figure.title not in evaluated]

    def _validated(self, pair_set: str) -> dict[str, float]:
        return {run.name: value for run in self.runs if (value := run.final_accuracy(pair_set)) is not None}

    def main_figures(self) -> list[Figure]:
        """By which backbones are chosen: accuracy of each pair set, and one figure of each IJB evaluation.

        Of 1:1 this is the TAR at the smallest FAR that the data can measure, but not below 1e-4, and of 1:N Rank-1.
        """
        known = self.known_figures
        names = [figure.title for figure in known if figure.values and figure.name in ("accuracy", "Rank-1")]
        for where in dict.fromkeys(figure.where for figure in known if figure.kind == "templates"):
            rates = {
                far: figure
                for figure in known
                if figure.where == where
                and figure.values
                and (far := false_accept_rate_of(figure)) is not None
                and far >= 1e-4
            }
            if rates:
                names.append(rates[min(rates)].title)
        return [figure for figure in known if figure.title in names]

    def spread(self, figure: Figure, backbone: str) -> Spread | None:
        """A backbone's figure over its seeds; None where it has none."""
        values = {run.name: figure.values[run.name] for run in self.runs_of(backbone) if run.name in figure.values}
        if not values:
            return None
        found = over_seeds(list(values.values()))
        interval: Mapping[str, Any] | None = None
        if len(values) == 1:
            interval = figure.intervals.get(next(iter(values)))
        elif found.interval is not None:
            # All figures are rates; Student's t of two seeds does not know that.
            interval = {"low": max(found.interval.low, 0.0), "high": min(found.interval.high, 1.0)}
        low, high = (None, None) if interval is None else (interval["low"], interval["high"])
        return Spread(mean=found.mean, deviation=found.deviation, low=low, high=high, values=values)

    def tests(self, figure: Figure) -> list[BackboneTest]:
        """Every two backbones by one figure, in the order of the backbones; empty where nothing was tested."""
        owner = {run.name: run.backbone for run in self.runs}
        cells: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for test in figure.comparisons:
            first, second = owner.get(test["first"]), owner.get(test["second"])
            if first is None or second is None or first == second:
                continue
            sign = 1 if self.backbones.index(first) < self.backbones.index(second) else -1
            pair = (first, second) if sign == 1 else (second, first)
            cells.setdefault(pair, []).append((sign * test["difference"], test["adjusted"]))
        order = {name: place for place, name in enumerate(self.backbones)}
        pairs = sorted(cells, key=lambda pair: (order[pair[0]], order[pair[1]]))
        return [_backbone_test(pair, cells[pair]) for pair in pairs]

    def ranking(self, figure: Figure) -> list[str]:
        """The backbones that have the figure, the best first."""
        means = {name: spread.mean for name in self.backbones if (spread := self.spread(figure, name)) is not None}
        return sorted(means, key=lambda name: means[name], reverse=not figure.lower_is_better)

    def as_good_as(self, figure: Figure, backbone: str) -> list[str]:
        """The others that were tested against a backbone and do not differ from it significantly."""
        alike = []
        for test in self.tests(figure):
            if backbone in (test.first, test.second) and not test.significant:
                alike.append(test.second if test.first == backbone else test.first)
        return alike

    def numbers(self) -> list[dict[str, Any]]:
        """The overview: of each backbone its costs, its main figures over its seeds, and its seeds; None is not known.

        The keys are "backbone", the attributes of `Cost`, of each main figure its title (the mean), and the title with
        " deviation", " low" and " high" (see `Spread`), "seeds_done" and "seeds_planned".
        """
        rows = []
        figures = self.main_figures()
        for backbone in self.backbones:
            row = {"backbone": backbone, **vars(self.costs.get(backbone, Cost()))}
            for figure in figures:
                row |= _spread_numbers(figure.title, self.spread(figure, backbone))
            runs = self.runs_of(backbone)
            row |= {"seeds_done": sum(run.state == "done" for run in runs), "seeds_planned": len(runs)}
            rows.append(row)
        return rows

    def table(self) -> Any:
        """The overview for notebooks: `numbers` as a pandas DataFrame, or as they are where pandas is not installed."""
        try:
            import pandas
        except ImportError:
            return self.numbers()
        return pandas.DataFrame(self.numbers())

    def pictures(self) -> "Pictures":
        """Those of the report, by name, each drawn when it is taken: `results.pictures()["loss"]`."""
        from facebones.reporting.plots.report_plots import report_pictures

        return report_pictures(self)


def pareto_front(costs: Mapping[str, float], values: Mapping[str, float]) -> list[str]:
    """Names to which no other is at least as good in both and better in one: less cost, a larger value.

    >>> pareto_front({"a": 1, "b": 2, "c": 3}, {"a": 0.8, "b": 0.7, "c": 0.9})
    ['a', 'c']
    """
    front: list[str] = []
    for name in sorted(costs, key=lambda name: (costs[name], -values[name])):
        if not front or values[name] > values[front[-1]]:
            front.append(name)
    return front


def _spread_numbers(title: str, spread: Spread | None) -> dict[str, float | None]:
    names = {"": "mean", " deviation": "deviation", " low": "low", " high": "high"}
    return {f"{title}{ending}": getattr(spread, name, None) for ending, name in names.items()}


def false_accept_rate_of(figure: Figure) -> float | None:
    """At which the figure is the TAR; None of another figure.

    >>> false_accept_rate_of(Figure(where="lfw", name="TAR at FAR 0.001", kind="pairs"))
    0.001
    """
    head, _, rate = figure.name.partition("TAR at FAR ")
    try:
        return float(rate) if not head and rate else None
    except ValueError:
        return None


def _backbone_test(pair: tuple[str, str], outcomes: Sequence[tuple[float, float]]) -> BackboneTest:
    differences = [difference for difference, _ in outcomes]
    agree = all(value > 0 for value in differences) or all(value < 0 for value in differences)
    return BackboneTest(
        first=pair[0],
        second=pair[1],
        difference=sum(differences) / len(differences),
        p_value=max(p for _, p in outcomes) if agree else 1.0,
    )
