"""A measured number as data: what it is, its value, its interval, and how models compare by it.

Nothing here is a display string: `reporting` turns a metric into words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: lower bound.
        high: upper bound.
        level: share of such intervals that contain the true value.
        method: how it was computed.
        resampled: what the bootstrap resampled, "identities" or "pairs"; "seeds" for an interval over training seeds.
        replicates: number of bootstrap replicates; 0 without a bootstrap.
    """

    low: float
    high: float
    level: float
    method: str
    resampled: str
    replicates: int

    def to_json(self) -> dict[str, Any]:
        """Return all attributes."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number that a protocol measures; with a value for one model, without as the identity of a comparison.

    Attributes:
        name: "accuracy", "tar", "auc", "eer", "rank", "tpir", or a name of a plug-in.
        at: operating point, such as {"far": 1e-4}, {"rank": 1} or {"fpir": 0.01}.
        rule: how the value is read at the operating point, such as "strict"; empty where there is one way only.
        higher_is_better: False for error rates.
        chance: value that guessing reaches, or None.
        main: whether backbones are chosen by this metric.
        protocol: name of the protocol.
        set: name of the data set.
        setting: variant of the protocol, such as "N1D1F1"; empty where there is one only.
        value: from 0 to 1 for rates; None if it is not measured.
        interval: confidence interval of the value, or None.
        reason: why the metric could not be measured, or None.

    >>> Metric(name="tar", at={"far": 1e-4}, rule="strict", value=0.97).identity
    Metric(name='tar', at={'far': 0.0001}, rule='strict')
    """

    name: str
    at: Mapping[str, float] = field(default_factory=dict)
    rule: str = ""
    higher_is_better: bool = True
    chance: float | None = None
    main: bool = False
    protocol: str = ""
    set: str = ""
    setting: str = ""
    value: float | None = None
    interval: Interval | None = None
    reason: str | None = None

    @property
    def identity(self) -> "Metric":
        """The same metric without value, interval and reason."""
        return replace(self, value=None, interval=None, reason=None)

    def measured_by(self, protocol: str, set_name: str, setting: str = "") -> "Metric":
        """The same metric of a protocol on a set."""
        return replace(self, protocol=protocol, set=set_name, setting=setting)

    def __repr__(self) -> str:
        shown = {key: value for key, value in vars(self).items() if value != getattr(_PLAIN, key)}
        return f"Metric({', '.join(f'{key}={value!r}' for key, value in shown.items())})"


_PLAIN = Metric(name="")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models compared by one metric.

    Attributes:
        first: name of a model.
        second: name of the other model.
        difference: value of the first minus value of the second.
        interval: of the difference, not corrected for multiple comparisons.
        p_value: two-sided, of the hypothesis that there is no difference.
        adjusted: p-value after Holm's correction.
        method: name of the test.
    """

    first: str
    second: str
    difference: float
    interval: Interval
    p_value: float
    adjusted: float
    method: str

    def to_json(self) -> dict[str, Any]:
        """Return all attributes."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class MetricComparison:
    """All models, and all pairs of models, by one metric.

    Attributes:
        metric: which metric, without a value; its `reason` says why it could not be measured, if so.
        values: value by name of model; empty if it could not be measured.
        intervals: interval by name of model; a model without an interval is missing.
        comparisons: all M (M - 1) / 2 pairs of models; empty without tests.
        best: name of the best model, the first of equals; None if it could not be measured.
        not_different_from_best: names of the best model and of those that do not differ from it significantly.
    """

    metric: Metric
    values: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    best: str | None = None
    not_different_from_best: tuple[str, ...] = ()

    def of(self, model: str) -> Metric:
        """The metric of one model, with value and interval."""
        return replace(self.metric, value=self.values.get(model), interval=self.intervals.get(model))

    def to_json(self) -> dict[str, Any]:
        """Return what a result file says about the metric; protocol, set and setting are those of its section."""
        metric = self.metric
        return {
            "name": metric.name,
            "at": dict(metric.at),
            "rule": metric.rule,
            "higher_is_better": metric.higher_is_better,
            "chance": metric.chance,
            "main": metric.main,
            "reason": metric.reason,
            "values": dict(self.values),
            "intervals": {model: interval.to_json() for model, interval in self.intervals.items()},
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
            "best": self.best,
            "not_different_from_best": list(self.not_different_from_best),
        }


def best_model(metric: Metric, values: Mapping[str, float]) -> str | None:
    """Name of the best model by a metric, the first of equals; None without values.

    >>> best_model(Metric(name="eer", higher_is_better=False), {"a": 0.02, "b": 0.01})
    'b'
    """
    if not values:
        return None
    choose = max if metric.higher_is_better else min
    return choose(values, key=values.__getitem__)


def untested(metrics: Mapping[str, Sequence[Metric]]) -> list[MetricComparison]:
    """Join the metrics of several models without tests, in the order in which they first occur.

    >>> found = untested({"a": [Metric(name="auc", value=0.9)], "b": [Metric(name="auc", value=0.8)]})
    >>> found[0].best, found[0].values
    ('a', {'a': 0.9, 'b': 0.8})
    """
    joined: list[tuple[Metric, dict[str, Metric]]] = []
    for model, measured in metrics.items():
        for metric in measured:
            for identity, by_model in joined:
                if identity == metric.identity:
                    by_model[model] = metric
                    break
            else:
                joined.append((metric.identity, {model: metric}))
    return [_joined(identity, by_model) for identity, by_model in joined]


def _joined(identity: Metric, by_model: Mapping[str, Metric]) -> MetricComparison:
    values = {model: metric.value for model, metric in by_model.items() if metric.value is not None}
    reasons = [metric.reason for metric in by_model.values() if metric.reason]
    best = best_model(identity, values)
    return MetricComparison(
        metric=identity if values else replace(identity, reason=reasons[0] if reasons else "not measured"),
        values=values,
        intervals={model: metric.interval for model, metric in by_model.items() if metric.interval is not None},
        best=best,
        not_different_from_best=tuple(values),
    )
