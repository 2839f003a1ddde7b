"""Bootstrap of metrics: over identities, or over pairs where identities are unknown.

Pairs of one person are not independent, so identities are drawn with replacement, not pairs. Of S identities, identity
i is drawn c_i times; then a genuine pair of i weighs c_i, and an impostor pair of i and j weighs c_i + c_j - 1. All
metrics and all models share the draws, so that the difference of two models has its own, smaller variance.

Why c_i + c_j - 1 and not c_i c_j, as resampling the list of pairs implies? With d = c - 1, c_i c_j is 1 + d_i + d_j +
d_i d_j. The sum d_i + d_j carries the effect of the two persons, and the chance of a single pair twice, once for each
person; the product carries the chance of a single pair a third time. No weights count it exactly once (P. McCullagh,
"Resampling and exchangeable arrays", Bernoulli 6 (2000)), but the surplus can be measured: it is the variance over
pairs of persons. `ResampledMetric.variance` subtracts it, as regressions on pairs do (P. M. Aronow, C. Samii and V. A.
Assenova, "Cluster-robust variance estimation for dyadic data", Political Analysis 23 (2015)). Without this, intervals
on sets with few pairs per person (LFW) are up to sqrt(3) times too wide. With it, the coverage of 95 % intervals is as
in docs/protocols.md ("How well this holds").

Values are exact. The replicates count scores in cells, which changes a FAR by at most half a percent of itself. More
than MOST_UNITS identities or pairs are drawn in that many random groups, which keeps the expected variance and bounds
the memory.

Sources: R. M. Bolle, N. K. Ratha and S. Pankanti, "Error analysis of pattern recognition systems - the subsets
bootstrap", Computer Vision and Image Understanding 93 (2004), for drawing persons instead of pairs; A. B. Owen, "The
pigeonhole bootstrap", Annals of Applied Statistics 1 (2007), for the threefold count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.errors import DataError
from facebones.statistics.curves import area_under_curve, equal_error_rate, roc, true_accept_rate_at
from facebones.statistics.metric import Metric
from facebones.statistics.resampling import (
    TOLERANCE,
    BoolArray,
    ColumnTotals,
    Design,
    FloatArray,
    IntArray,
    Kind,
    curve_replicates,
    excess_covariance,
    pairs_design,
    probes_design,
)
from facebones.system.number_format import small_rate

Identities = tuple[npt.ArrayLike, npt.ArrayLike]
Scores = npt.NDArray[np.floating[Any]]

REPLICATES = 1000
ACCURACY = Metric(name="accuracy", chance=0.5, main=True)
AUC = Metric(name="auc")
EER = Metric(name="eer", higher_is_better=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class ResampledMetric:
    """A metric of M models on the same data, with its bootstrap replicates.

    Attributes:
        metric: which metric.
        values: (M,) the metric on the data, each from 0 to 1.
        replicates: (R, M) the metric on each resampled data set.
        excess: (M, M) covariance by which the replicates overestimate (see the module).
        resampled: what was drawn, "identities" or "pairs".
        units: number of identities or pairs.
        evidence: number of units behind the metric; the only measure of certainty where all replicates agree.
        outcomes: number of pairs or probes.
        discordant: (M, M) number of outcomes that the first model decides correctly and the second does not, for
            metrics that are a mean of outcomes; else None.
    """

    metric: Metric
    values: FloatArray
    replicates: FloatArray
    excess: FloatArray
    resampled: str
    units: int
    evidence: int
    outcomes: int
    discordant: IntArray | None = None

    def variance(self, combination_M: npt.ArrayLike) -> float:
        """Variance of a weighted sum of the models' values, such as [1, 0] for one model, [1, -1] for a difference.

        At most half of the variance of the replicates is subtracted: that is the surplus where pairs are independent of
        their persons.
        """
        weights = np.asarray(combination_M, dtype=np.float64)
        drawn = float(np.var(self.replicates @ weights, ddof=1)) * self.units / (self.units - 1)
        return drawn - min(max(float(weights @ self.excess @ weights), 0.0), drawn / 2)


def resample_accuracy(
    correct_MP: Sequence[BoolArray] | BoolArray,
    is_same_P: npt.ArrayLike,
    identities: Identities | None = None,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> ResampledMetric:
    """Share of the pairs that each model decides correctly, at thresholds that are held fixed.

    The numbers of genuine and of impostor pairs belong to the protocol and do not vary over the replicates.

    Args:
        correct_MP: M arrays (P,) bool.
        is_same_P: (P,) bool, true for a genuine pair.
        identities: persons of the first and of the second images, (P,) integers from 0; None if unknown.
        replicates: number R of resampled data sets.
        seed: of the draws.

    Raises:
        DataError: shapes that do not match, an unknown identity (below 0), labels that contradict the identities, or
            fewer than two identities or pairs.

    >>> is_same = np.array([True, True, False, False])
    >>> float(resample_accuracy([[True, False, True, True]], is_same, replicates=10).values[0])
    0.75
    """
    correct = _rows(correct_MP, np.bool_)
    design = pairs_design(is_same_P, identities, replicates, seed)
    _check_length(correct, design)
    return _mean_metric(ACCURACY, design, correct)


def resample_verification(
    scores_MP: Sequence[Scores] | Scores,
    is_same_P: npt.ArrayLike,
    identities: Identities | None = None,
    *,
    far_targets: Sequence[float],
    replicates: int = REPLICATES,
    seed: int = 0,
) -> list[ResampledMetric | Metric]:
    """TAR at each FAR (strict), AUC and EER of M models on the same pairs.

    A target below 1 / impostor pairs gives a `Metric` with a reason instead.

    Args:
        scores_MP: M arrays (P,) of finite similarities.
        is_same_P: (P,) bool, true for a genuine pair.
        identities: persons of the first and of the second images, (P,) integers from 0; None if unknown.
        far_targets: false accept rates above 0.
        replicates: number R of resampled data sets.
        seed: of the draws.

    Raises:
        DataError: as `resample_accuracy`, or pairs of one kind only.
        ValueError: a score is not finite.
    """
    scores = _rows(scores_MP)
    design = pairs_design(is_same_P, identities, replicates, seed)
    _check_length(scores, design)
    wanted = {far: Metric(name="tar", at={"far": far}, rule="strict") for far in far_targets}
    return _curve_metrics(design, scores, wanted, "impostor pairs")


def resample_rank(
    hits_MN: Sequence[BoolArray] | BoolArray,
    subject_N: npt.ArrayLike,
    *,
    rank: int,
    main: bool = False,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> ResampledMetric:
    """Rank-k rate: share of the probes whose subject is among the first k of the gallery, which is held fixed.

    Args:
        hits_MN: M arrays (N,) bool, an entry for each probe whose subject is in the gallery.
        subject_N: (N,) its subject, an integer from 0.
        rank: k.
        main: whether models are chosen by this rank.
        replicates: number R of resampled data sets.
        seed: of the draws.

    Raises:
        DataError: shapes that do not match, an unknown subject (below 0), or fewer than two subjects.
    """
    hits = _rows(hits_MN, np.bool_)
    design = probes_design(np.zeros(hits[0].size, dtype=np.bool_), subject_N, replicates, seed)
    _check_length(hits, design)
    return _mean_metric(Metric(name="rank", at={"rank": rank}, main=main), design, hits)


def resample_mean(
    values_MN: Sequence[Scores] | Scores,
    subject_N: npt.ArrayLike,
    metric: Metric,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> ResampledMetric:
    """Mean over probes of a value from 0 to 1 that is no outcome, such as an average precision.

    Args:
        values_MN: M arrays (N,), an entry for each probe.
        subject_N: (N,) its subject, an integer from 0.
        metric: what the mean is.
        replicates: number R of resampled data sets.
        seed: of the draws.

    Raises:
        DataError: as `resample_rank`.

    >>> found = resample_mean([[1.0, 0.5, 0.75]], [0, 1, 1], Metric(name="map"), replicates=10)
    >>> float(found.values[0]), found.resampled
    (0.75, 'identities')
    """
    values = _rows(values_MN, np.float64)
    design = probes_design(np.zeros(values[0].size, dtype=np.bool_), subject_N, replicates, seed)
    _check_length(values, design)
    (unit,) = design.genuine.units
    units = design.counts.shape[1]
    sums = np.stack([np.bincount(unit, row, minlength=units) for row in values], axis=1)  # (U, M)
    probes = design.counts[1:] @ np.bincount(unit, minlength=units)
    return ResampledMetric(
        metric=metric,
        values=np.array([row.mean() for row in values]),
        replicates=design.counts[1:] @ sums / probes[:, None],
        excess=np.zeros((len(values), len(values))),
        resampled=design.resampled,
        units=design.units,
        evidence=design.units,
        outcomes=design.outcomes,
    )


def resample_open_set(
    scores_MN: Sequence[Scores] | Scores,
    hits_MN: Sequence[BoolArray] | BoolArray,
    is_impostor_N: npt.ArrayLike,
    subject_N: npt.ArrayLike,
    *,
    fpir_targets: Sequence[float],
    replicates: int = REPLICATES,
    seed: int = 0,
) -> list[ResampledMetric | Metric]:
    """TPIR at each FPIR (strict) of M models that search one gallery, in the order of the targets.

    Args:
        scores_MN: M arrays (N,): highest score of each probe in the gallery.
        hits_MN: M arrays (N,) bool: whether that score belongs to the probe's subject; unused for impostor searches.
        is_impostor_N: (N,) bool, true where the probe's subject is not in the gallery.
        subject_N: (N,) subject of the probe, an integer from 0.
        fpir_targets: false positive identification rates above 0.
        replicates: number R of resampled data sets.
        seed: of the draws.

    Raises:
        DataError: as `resample_rank`, or searches of one kind only.
        ValueError: a score is not finite.
    """
    scores, hits = _rows(scores_MN), _rows(hits_MN, np.bool_)
    design = probes_design(is_impostor_N, subject_N, replicates, seed)
    _check_length([*scores, *hits], design)
    is_impostor = np.asarray(is_impostor_N, dtype=np.bool_)
    # A mated search that finds another subject is a hit at no threshold: it ranks below all others.
    lowered = [np.where(hit | is_impostor, score, score.min() - 1) for score, hit in zip(scores, hits, strict=True)]
    wanted = {fpir: tpir_metric(fpir) for fpir in fpir_targets}
    return _curve_metrics(design, lowered, wanted, "impostor searches")[: len(wanted)]


def tpir_metric(fpir: float, reason: str | None = None) -> Metric:
    """TPIR at a FPIR without a value; `reason` says why it cannot be measured."""
    return Metric(name="tpir", at={"fpir": fpir}, rule="strict", reason=reason)


def mean_of_metrics(parts: Sequence[ResampledMetric]) -> ResampledMetric:
    """Mean of a metric over parts of a protocol, such as two galleries, that share their draws.

    Raises:
        ValueError: no parts, or parts with different draws.
    """
    drawn = {(part.replicates.shape, part.resampled, part.units) for part in parts}
    if len(drawn) != 1:
        raise ValueError(f"mean of {len(parts)} metrics with {len(drawn)} kinds of draws; give metrics of one kind")
    return ResampledMetric(
        metric=parts[0].metric,
        values=np.mean([part.values for part in parts], axis=0),
        replicates=np.mean([part.replicates for part in parts], axis=0),
        excess=np.mean([part.excess for part in parts], axis=0),
        resampled=parts[0].resampled,
        units=parts[0].units,
        evidence=min(part.evidence for part in parts),
        outcomes=sum(part.outcomes for part in parts),
    )


def _mean_metric(metric: Metric, design: Design, outcomes: list[BoolArray]) -> ResampledMetric:
    """Mean of outcomes (N,); each kind keeps its share of the data."""
    kinds = [kind for kind in (design.genuine, design.impostors) if kind.rows.size]
    means = sum((_mean_rates(design, kind, outcomes) * kind.rows.size for kind in kinds), start=np.zeros(()))
    share = design.impostors.rows.size / design.outcomes
    influences = [row[design.impostors.rows].astype(np.float64) for row in outcomes]
    return ResampledMetric(
        metric=metric,
        values=np.array([row.mean() for row in outcomes]),
        replicates=means[1:] / design.outcomes,
        excess=excess_covariance(design.impostors, influences) * share**2,
        resampled=design.resampled,
        units=design.units,
        evidence=design.units,
        outcomes=design.outcomes,
        discordant=np.array([[np.count_nonzero(one & ~other) for other in outcomes] for one in outcomes]),
    )


def _mean_rates(design: Design, kind: Kind, outcomes: list[BoolArray]) -> FloatArray:
    """Share of true outcomes of a kind in each draw, (R + 1, M)."""
    columns = []
    for row in outcomes:
        column = row[kind.rows].astype(np.int32)
        wrong, right = ColumnTotals(kind, column, design.counts.shape[1], 2)(design.counts).T
        columns.append(right / np.maximum(wrong + right, 1.0))
    return np.stack(columns, axis=1)


def _curve_metrics(
    design: Design, scores: list[Scores], wanted: Mapping[float, Metric], impostors_are: str
) -> list[ResampledMetric | Metric]:
    """The metrics of `wanted`, by FAR, then AUC and EER, each of all models."""
    genuine, impostors = design.genuine.rows.size, design.impostors.rows.size
    if not (genuine and impostors):
        raise DataError(f"{genuine} genuine and {impostors} {impostors_are}: a curve needs both; leave this set out")
    targets = [far for far in wanted if far * impostors >= 1 - TOLERANCE]
    is_same = np.zeros(design.outcomes, dtype=np.bool_)
    is_same[design.genuine.rows] = True
    values = np.array([_exact_values(row, is_same, targets) for row in scores])  # (M, F)
    curves = [curve_replicates(design, row, targets) for row in scores]
    measured = []
    for index, metric in enumerate([*(wanted[far] for far in targets), AUC, EER]):
        drawn = np.stack([curve.values[1:, index] for curve in curves], axis=1)
        excess = excess_covariance(design.impostors, [curve.influence[index][curve.cell] for curve in curves])
        if metric is EER:
            excess += _roughness(drawn, np.stack([curve.smooth_eer[1:] for curve in curves], axis=1))
        measured.append(
            ResampledMetric(
                metric=metric,
                values=values[:, index],
                replicates=drawn,
                excess=excess,
                resampled=design.resampled,
                units=design.units,
                evidence=design.genuine_units,
                outcomes=design.outcomes,
            )
        )
    at_target = dict(zip(targets, measured, strict=False))
    too_low = f"is below 1 / {impostors} {impostors_are}"
    rates = [
        at_target.get(far) or replace(metric, reason=f"{small_rate(far)} {too_low}") for far, metric in wanted.items()
    ]
    return [*rates, *measured[len(targets) :]]


def _roughness(drawn_RM: FloatArray, smooth_RM: FloatArray) -> FloatArray:
    """Covariance (M, M) by which replicates exceed their first order: resampling makes the steps of a curve larger.

    Chosen by simulation: with this surplus kept, paired tests of the EER raise a false alarm in 3-4 % of data sets,
    with it subtracted in 4-6 %. A TAR keeps it: without, 90-91 % of its intervals contain the true value where few
    impostor pairs are accepted.
    """
    return np.atleast_2d(np.cov(drawn_RM.T)) - np.atleast_2d(np.cov(smooth_RM.T))


def _exact_values(scores: Scores, is_same: BoolArray, far_targets: list[float]) -> list[float]:
    curve = roc(scores, is_same)
    tar = [true_accept_rate_at(curve, far) for far in far_targets]
    return [*tar, area_under_curve(curve), equal_error_rate(curve)]


def _rows(table: Any, kind: Any = None) -> list[Any]:
    rows = [np.asarray(row, dtype=kind) for row in table]
    if not rows:
        raise DataError("no models; give an array for each")
    return rows


def _check_length(rows: Sequence[npt.NDArray[Any]], design: Design) -> None:
    for index, row in enumerate(rows):
        if row.shape != (design.outcomes,):
            raise DataError(f"array {index} has shape {row.shape}; give one entry for each of {design.outcomes} pairs")
