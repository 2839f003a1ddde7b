"""The content of a report: runs, costs and metrics, and what they say about each variant over its seeds.

A variant is a backbone, or a backbone at its level of each factor (`reporting.variants`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from facebones.errors import UnknownNameError
from facebones.reporting.variant_tests import Contrast, VariantTest, variant_tests
from facebones.reporting.variants import BACKBONE, Levels, level_words, several_levels, variant_name
from facebones.reporting.words import headline, metric_title, metric_words
from facebones.statistics.significance import outcomes_interval, over_seeds

if TYPE_CHECKING:
    from facebones.reporting.added_seeds import AddedSeeds
    from facebones.reporting.tables import Table
    from facebones.reporting.tuning import Tuning

Line = Mapping[str, Any]


class EvaluatedSet(NamedTuple):
    """What a protocol was run on.

    Attributes:
        protocol: such as "pairs", "ijb_verification" or a plug-in's name.
        set: such as "lfw" or "IJBC".
        setting: such as the pooling "N1D1F1"; empty if the protocol has none.
    """

    protocol: str
    set: str
    setting: str = ""


class ScoreFile(NamedTuple):
    """Where the scores of all pairs of a set by one model are.

    Attributes:
        path: of the file, see `evaluations.read_pair_scores`.
        fold_thresholds: cosines above which the folds accept a pair; empty if unknown.
    """

    path: Path
    fold_thresholds: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained, failed or unfinished network.

    Attributes:
        name: of the model in evaluations; unique in a report.
        backbone: name of the network.
        levels: factor to level, where recipes of one backbone differ.
        tuned: recipe fields, "section.field", that its study's trials chose for it.
        seed: None if unknown.
        folder: where it was read from.
        source: "run", "log" (imported by `facebones logs`), or "file" (an ONNX file or weights).
        state: "done", "failed", "unfinished" or "to do".
        error: why a failed run failed; one line.
        recipe: sections of the resolved recipe; empty if unknown.
        environment: versions, device, data; empty if unknown.
        versions: "facebones", "git_revision" and "torch" of the training, as far as known.
        lines: of metrics.jsonl, in file order; "kind" is "train" or "validation".
        result: the content of result.json; empty if there is none.
    """

    name: str
    backbone: str
    levels: Levels = field(default_factory=dict)
    tuned: Sequence[str] = ()
    seed: int | None = None
    folder: Path
    source: str = "run"
    state: str = "done"
    error: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[Line] = ()
    result: Mapping[str, Any] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """What is compared: the backbone with its levels. The runs of one variant differ only in their seeds."""
        return variant_name(self.backbone, self.levels)

    def of_kind(self, kind: str) -> list[Line]:
        """Its lines of one kind, "train" or "validation"."""
        return [line for line in self.lines if line.get("kind") == kind]

    @property
    def steps(self) -> int | None:
        """Steps done so far."""
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
        """Validation accuracy at the last step."""
        rows = [row for row in self.result.get("final", ()) if row["set"] == pair_set]
        return float(rows[0]["accuracy"]) if rows and rows[0]["accuracy"] is not None else None

    def accuracy_interval(self, pair_set: str) -> dict[str, Any] | None:
        """Interval of that accuracy over the pairs, if the run says how many there are."""
        accuracy, sets = self.final_accuracy(pair_set), self.environment.get("validation")
        known = sets.get(pair_set) if isinstance(sets, Mapping) else None
        pairs = known.get("pairs") if isinstance(known, Mapping) else None
        if accuracy is None or type(pairs) is not int or pairs < 2 or not 0 <= accuracy <= 1:
            return None
        return outcomes_interval(accuracy, pairs).to_json()

    def best_accuracy(self, pair_set: str) -> float | None:
        """Best validation accuracy of all steps. An imported log may know more steps than it shows."""
        rows = [line for line in self.of_kind("validation") if line["set"] == pair_set]
        values = [row.get(key) for row in rows for key in ("accuracy", "best_accuracy")]
        known = [*values, self.result.get("best", {}).get("sets", {}).get(pair_set)]
        return max((float(value) for value in known if value), default=None)  # 0 means never measured


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a variant costs; None if unknown or not measured.

    Attributes:
        parameters: all of them.
        macs: multiply-accumulates of convolutions and linear layers, one image.
        latency_ms: median, one image.
        images_per_second: in batches.
        memory_bytes: peak, in batches.
        busy: whether the machine did other work while latency and images per second were measured.
    """

    parameters: int | None = None
    macs: int | None = None
    latency_ms: float | None = None
    images_per_second: float | None = None
    memory_bytes: int | None = None
    busy: bool = False


@dataclass(frozen=True, kw_only=True)
class MetricResult:
    """One metric of all models that were evaluated together, as an evaluation's JSON holds it.

    Attributes:
        name: such as "accuracy", "tar", "auc", "eer", "rank", "tpir", or a plug-in's own.
        at: operating point, such as {"far": 1e-4}.
        rule: how it is counted, such as "strict"; may be empty.
        higher_is_better: whether a large value is good.
        chance: what guessing reaches; None if that is not defined.
        main: whether variants are chosen by it.
        protocol: see `EvaluatedSet`.
        set: see `EvaluatedSet`.
        setting: see `EvaluatedSet`.
        values: of each model, a rate from 0 to 1; empty if the data cannot give the metric.
        intervals: of each model: "low", "high", "resampled" and more, at 95 %.
        comparisons: of every two models: "first", "second", "difference", "interval", "p_value", "adjusted", "method".
        reason: why there are no values.
    """

    name: str
    at: Mapping[str, float] = field(default_factory=dict)
    rule: str = ""
    higher_is_better: bool = True
    chance: float | None = None
    main: bool = False
    protocol: str
    set: str
    setting: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    comparisons: Sequence[Mapping[str, Any]] = ()
    reason: str | None = None

    @property
    def evaluated_set(self) -> EvaluatedSet:
        """Where it was measured."""
        return EvaluatedSet(self.protocol, self.set, self.setting)

    @property
    def words(self) -> str:
        """Display name without the set, such as "TAR at FAR 0.0001"."""
        return metric_words(self)

    @property
    def title(self) -> str:
        """Display name with the set, such as "lfw accuracy"."""
        return metric_title(self)

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for the same metric of the same set, whatever the models."""
        return (*self.evaluated_set, self.name, self.rule, *sorted(self.at.items()))


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A metric of a variant over its seeds.

    Attributes:
        mean: over the seeds.
        deviation: sample standard deviation; None for one seed.
        low: lower end of a 95 % interval: for one seed that of the evaluation, for several Student's t over the seeds,
            clipped to [0, 1]; or None.
        high: upper end.
        values: of each run, by its name.
    """

    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that a report tells.

    Attributes:
        title: the study's name, or those of the folders.
        folders: what was read.
        runs: in the order of the folders.
        costs: of each variant.
        metrics: in the order of the evaluations.
        curves: evaluated set to model to its ROC: a `statistics.curves.RocCurve`.
        cmc: evaluated set to model to the hit rates at ranks 1, 2, ...
        conditions: under which latency and memory were measured; empty without a profile.
        recipe: what all runs share, without backbone and seed.
        notes: what could not be read or does not fit together; a line each.
        command: reproduces the study, or the runs.
        tunings: of the studies that have one.
        trust: tables of thresholds, rates by group, quality and overlap.
        pair_scores: pair set to model to the file of its scores.
        overlap: sentences on the overlap of training data with the sets; commands are between backticks.
        added_seeds: the rounds of the studies with `seeds: auto`.
    """

    title: str
    folders: Sequence[Path]
    runs: Sequence[Run]
    costs: Mapping[str, Cost]
    metrics: Sequence[MetricResult]
    curves: Mapping[EvaluatedSet, Mapping[str, Any]]
    cmc: Mapping[EvaluatedSet, Mapping[str, Sequence[float]]]
    conditions: Mapping[str, Any]
    recipe: Mapping[str, Any]
    notes: Sequence[str]
    command: str
    tunings: Sequence["Tuning"] = ()
    trust: Sequence["Table"] = ()
    pair_scores: Mapping[EvaluatedSet, Mapping[str, ScoreFile]] = field(default_factory=dict)
    overlap: Sequence[str] = ()
    added_seeds: Sequence["AddedSeeds"] = ()

    @cached_property
    def variants(self) -> list[str]:
        """In the order of the runs."""
        return list(dict.fromkeys(run.variant for run in self.runs))

    @cached_property
    def backbones(self) -> list[str]:
        """In the order of the runs; without factors these are the variants."""
        return list(dict.fromkeys(run.backbone for run in self.runs))

    @cached_property
    def factors(self) -> list[str]:
        """Those that have more than one level."""
        return several_levels([run.levels for run in self.runs])

    @property
    def noun(self) -> str:
        """What a variant is called."""
        return "variant" if self.factors else "backbone"

    def first_run(self, variant: str) -> Run:
        """The first run of a variant: its backbone and levels are those of all."""
        return self._first_runs[variant]

    @cached_property
    def _first_runs(self) -> dict[str, Run]:
        return {run.variant: run for run in reversed(self.runs)}

    @cached_property
    def validated_sets(self) -> list[str]:
        """Pair sets that were measured during training."""
        on_the_way = [line["set"] for run in self.runs for line in run.of_kind("validation")]
        at_the_end = [row["set"] for run in self.runs for row in run.result.get("final", ())]
        return list(dict.fromkeys(on_the_way + at_the_end))

    @property
    def scales_gradients(self) -> bool:
        """Whether a run was trained in fp16 with scaled gradients."""
        return any(line.get("gradient_scale") not in (None, 1) for run in self.runs for line in run.of_kind("train"))

    def runs_of(self, variant: str) -> list[Run]:
        """The seeds of a variant."""
        return [run for run in self.runs if run.variant == variant]

    def metric(self, set: str, name: str, *, protocol: str | None = None, **at: float) -> MetricResult:
        """A metric among `known_metrics`, for example `results.metric("IJBC", "tar", far=1e-4)`.

        Args:
            set: such as "lfw".
            name: such as "accuracy".
            protocol: of the set, if several protocols have a metric of this name there.
            at: operating point.

        Raises:
            UnknownNameError: no evaluation has it.
        """
        for one in self.known_metrics:
            if (one.set, one.name) == (set, name) and protocol in (None, one.protocol) and at.items() <= one.at.items():
                return one
        asked = {"protocol": protocol or "pairs", "set": set, "name": name, "at": at}
        raise UnknownNameError("metric", metric_title(asked), [one.title for one in self.known_metrics])

    @cached_property
    def known_metrics(self) -> list[MetricResult]:
        """The evaluated metrics, and the final validation accuracy of runs and sets that were not evaluated.

        A validation accuracy has an interval if the run says how many pairs it is of; no test compares it.
        """
        validated = {one.identity: one for one in map(self._validated, self.validated_sets) if one.values}
        known = [
            _completed(metric, validated[metric.identity]) if metric.values and metric.identity in validated else metric
            for metric in self.metrics
        ]
        measured = {metric.identity for metric in known if metric.values}
        return known + [one for identity, one in validated.items() if identity not in measured]

    def _validated(self, pair_set: str) -> MetricResult:
        """What training itself measures: accuracy of the pairs protocol."""
        values = {run.name: value for run in self.runs if (value := run.final_accuracy(pair_set)) is not None}
        intervals = {run.name: one for run in self.runs if (one := run.accuracy_interval(pair_set)) is not None}
        return MetricResult(
            protocol="pairs",
            set=pair_set,
            name="accuracy",
            chance=0.5,
            main=True,
            values=values,
            intervals=intervals,
        )

    def main_metrics(self) -> list[MetricResult]:
        """The measured metrics by which variants are chosen; each protocol says which ones these are."""
        return [metric for metric in self.known_metrics if metric.main and metric.values]

    def headline_metrics(self) -> list[MetricResult]:
        """The main metrics, those of each set followed by its TAR at the lowest FAR that it can measure."""
        known = self.known_metrics
        sets = dict.fromkeys(metric.evaluated_set for metric in known if metric.main and metric.values)
        return [one for where in sets for one in headline(each for each in known if each.evaluated_set == where)]

    def spread(self, metric: MetricResult, variant: str) -> Spread | None:
        """A variant's metric over its seeds; None if it was not measured."""
        values = {run.name: metric.values[run.name] for run in self.runs_of(variant) if run.name in metric.values}
        if not values:
            return None
        found = over_seeds(list(values.values()))
        interval: Mapping[str, Any] | None = None
        if len(values) == 1:
            interval = metric.intervals.get(next(iter(values)))
        elif found.interval is not None:
            # Metrics are rates; Student's t of two seeds does not know that.
            interval = {"low": max(found.interval.low, 0.0), "high": min(found.interval.high, 1.0)}
        low, high = (None, None) if interval is None else (interval["low"], interval["high"])
        return Spread(mean=found.mean, deviation=found.deviation, low=low, high=high, values=values)

    def tests(self, metric: MetricResult) -> list[VariantTest]:
        """Every two variants by one metric, in the order of the variants; empty if nothing was tested."""
        owner = {run.name: run.variant for run in self.runs}
        return variant_tests(metric.comparisons, metric.values, owner, self.variants, factors=bool(self.factors))

    def contrasts(self, metric: MetricResult) -> list[Contrast]:
        """The tests of two levels of one factor, and of two backbones, with everything else equal."""
        found = []
        for test in self.tests(metric):
            first, second = (self._sides(name) for name in (test.first, test.second))
            if len(differing := [name for name in first if first[name] != second[name]]) == 1:
                (factor,) = differing
                within = [level_words(name, level) for name, level in first.items() if name != factor and level]
                found.append(
                    Contrast(
                        factor=factor,
                        within=", ".join(within),
                        levels=(first[factor] or "-", second[factor] or "-"),
                        test=test,
                    )
                )
        order = {name: place for place, name in enumerate([*self.factors, BACKBONE])}
        return sorted(found, key=lambda contrast: order[contrast.factor])

    def _sides(self, variant: str) -> dict[str, str]:
        """The backbone and its level of each factor that has several; empty for none."""
        run = self.first_run(variant)
        return {BACKBONE: run.backbone, **{factor: run.levels.get(factor, "") for factor in self.factors}}

    def ranking(self, metric: MetricResult) -> list[str]:
        """The variants that have the metric, the best first."""
        means = {name: spread.mean for name in self.variants if (spread := self.spread(metric, name)) is not None}
        return sorted(means, key=lambda name: means[name], reverse=metric.higher_is_better)

    def not_different_from(self, metric: MetricResult, variant: str) -> list[str]:
        """The variants that were tested against this one and do not differ from it significantly."""
        return [
            test.second if test.first == variant else test.first
            for test in self.tests(metric)
            if variant in (test.first, test.second) and not test.significant
        ]

    def numbers(self) -> list[dict[str, Any]]:
        """The overview: of each variant its costs, its main metrics over its seeds, and its seeds; None is unknown.

        The keys are "backbone", with factors "variant" (its name) and "levels", the attributes of `Cost`, of each main
        metric its title (the mean) and the title with " deviation", " low" and " high" (see `Spread`), "seeds_done" and
        "seeds_planned".
        """
        rows = []
        metrics = self.main_metrics()
        for variant in self.variants:
            first = self.first_run(variant)
            row: dict[str, Any] = {"backbone": first.backbone}
            if self.factors:
                row |= {"variant": variant, "levels": {factor: first.levels.get(factor) for factor in self.factors}}
            row |= vars(self.costs.get(variant, Cost()))
            for metric in metrics:
                row |= _spread_numbers(metric.title, self.spread(metric, variant))
            runs = self.runs_of(variant)
            row |= {"seeds_done": sum(run.state == "done" for run in runs), "seeds_planned": len(runs)}
            rows.append(row)
        return rows

    def table(self) -> Any:
        """The overview for notebooks: `numbers` as a pandas DataFrame, or as they are if pandas is not installed.

        Each factor is a column.
        """
        rows = [{**row, **row.pop("levels", {})} for row in self.numbers()]
        try:
            import pandas
        except ImportError:
            return rows
        return pandas.DataFrame(rows)


def _completed(metric: MetricResult, validated: MetricResult) -> MetricResult:
    """An evaluated metric with the validation accuracies of the runs that were not evaluated."""
    others = {name: one for name, one in validated.intervals.items() if name not in metric.values}
    return replace(metric, values={**validated.values, **metric.values}, intervals={**others, **metric.intervals})


def pareto_front(costs: Mapping[str, float], values: Mapping[str, float]) -> list[str]:
    """Names that no other name dominates: none has at most the cost and at least the value, and one of them better.

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
