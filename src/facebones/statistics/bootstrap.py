"""How far a figure may be off: bootstrap over identities, or over pairs where identities are unknown.

Pairs of one person are not independent, so identities are drawn with replacement, not pairs. Of S identities,
identity i is drawn c_i times; a genuine pair of i then weighs c_i and an impostor pair of i and j weighs c_i + c_j - 1.
All figures and all models share the draws, so that the difference of two models has its own, smaller uncertainty.

Why not c_i c_j for an impostor pair, as redrawing the list would have it? With d = c - 1 that is 1 + d_i + d_j +
d_i d_j. The sum d_i + d_j carries what pairs owe to their two persons, and the chance of a single pair twice, once for
each person; the product carries nothing but that chance, a third time. No weights count it once (P. McCullagh,
"Resampling and exchangeable arrays", Bernoulli 6 (2000)), but what is counted too often can be measured: it is the
variance over the cells of the table of two persons, and `Figure.variance` takes it off, as is done for regressions on
pairs (P. M. Aronow, C. Samii and V. A. Assenova, "Cluster-robust variance estimation for dyadic data", Political
Analysis 23 (2015)). Without this, intervals of sets with few pairs for each person (LFW) are up to sqrt(3) times too
wide. With it, 95 % intervals hold the truth as often as docs/protocols.md says ("How well it holds").

For speed, a score counts by its cell: impostor scores, ordered, are cut into cells of one rank and, below rank
1 / RESOLUTION, of a width of RESOLUTION of the rank, so that a replicate's FAR is off by half a percent of itself at
most. Values are exact; only the replicates use cells. More than MOST_UNITS identities or pairs are drawn in that many
random groups, which leaves the expected variance and bounds the memory.

Sources: R. M. Bolle, N. K. Ratha and S. Pankanti, "Error analysis of pattern recognition systems - the subsets
bootstrap", Computer Vision and Image Understanding 93 (2004), for drawing persons instead of pairs; A. B. Owen, "The
pigeonhole bootstrap", Annals of Applied Statistics 1 (2007), for the threefold count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.errors import DataError
from facebones.statistics.curve_replicates import TOLERANCE, curve_replicates
from facebones.statistics.curves import area_under_curve, equal_error_rate, roc, true_accept_rate_at
from facebones.statistics.resampling import (
    BoolArray,
    ColumnTotals,
    Design,
    FloatArray,
    IntArray,
    Kind,
    excess_covariance,
    pairs_design,
    probes_design,
)

Identities = tuple[npt.ArrayLike, npt.ArrayLike]

REPLICATES = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
    """A figure of M models on the same data, with what the bootstrap says of it.

    Attributes:
        name: such as "TAR at FAR 0.001".
        values: (M,) the figure on the data, each from 0 to 1.
        replicates: (R, M) the figure on each redrawn data set.
        excess: (M, M) covariance that the replicates have too much (see the module).
        resampled: what was drawn, "identities" or "pairs".
        units: how many of them there are.
        evidence: how many of them stand behind the figure; where no replicate differs, this alone says how sure it is.
        outcomes: number of pairs or probes.
        discordant: (M, M) count of outcomes that were right for the first model and wrong for the second, for
            figures that are a mean of outcomes; else None.
        higher_is_better: false for error rates.
    """

    name: str
    values: FloatArray
    replicates: FloatArray
    excess: FloatArray
    resampled: str
    units: int
    evidence: int
    outcomes: int
    discordant: IntArray | None = None
    higher_is_better: bool = True

    def variance(self, combination_M: npt.ArrayLike) -> float:
        """Variance of a weighted sum of the models' values, such as [1, 0] for one, [1, -1] for a difference.

        At most half of the replicates' variance is taken off: that is what is too much where pairs owe nothing to
        their persons.
        """
        weights = np.asarray(combination_M, dtype=np.float64)
        drawn = float(np.var(self.replicates @ weights, ddof=1)) * self.units / (self.units - 1)
        return drawn - min(max(float(weights @ self.excess @ weights), 0.0), drawn / 2)


@dataclass(frozen=True, kw_only=True)
class Unmeasured:
    """A figure that the data cannot give, and why in one line."""

    name: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Give the name and the reason."""
        return {"figure": self.name, "values": None, "reason": self.reason}


def accuracy_figure(
    correct_MP: Sequence[BoolArray] | BoolArray,
    is_same_P: npt.ArrayLike,
    identities: Identities | None = None,
    *,
    name: str = "accuracy",
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Figure:
    """Share of the pairs that each model decides rightly; its thresholds are taken as they are.

    The numbers of genuine and of impostor pairs belong to the protocol and do not vary over the replicates.

    Args:
        correct_MP: M arrays (P,) bool.
        is_same_P: (P,) bool, true for a genuine pair.
        identities: the persons of the first and of the second images, (P,) whole numbers from 0; None where unknown.
        name: of the figure.
        replicates: number R of redrawn data sets.
        seed: of the draws.

    Raises:
        DataError: shapes that do not fit, an unknown identity (below 0), labels that contradict the identities, or
            fewer than two identities or pairs.
    """
    correct = _rows(correct_MP, np.bool_)
    design = pairs_design(is_same_P, identities, replicates, seed)
    _check_length(correct, design)
    return _mean_figure(name, design, correct)


def verification_figures(
    scores_MP: Sequence[npt.NDArray[np.floating[Any]]] | npt.NDArray[np.floating[Any]],
    is_same_P: npt.ArrayLike,
    identities: Identities | None = None,
    *,
    far_targets: Sequence[float],
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Figure | Unmeasured]:
    """TAR at each FAR (strict), AUC and EER of M models on the same pairs, by name.

    A target below 1 / impostor pairs is answered by an `Unmeasured`.

    Args:
        scores_MP: M arrays (P,) of finite similarities.
        is_same_P: (P,) bool, true for a genuine pair.
        identities: the persons of the first and of the second images, (P,) whole numbers from 0; None where unknown.
        far_targets: false accept rates above 0.
        replicates: number R of redrawn data sets.
        seed: of the draws.

    Raises:
        DataError: as `accuracy_figure`, or pairs of one kind only.
        ValueError: a score that is not finite.
    """
    scores = _rows(scores_MP)
    design = pairs_design(is_same_P, identities, replicates, seed)
    _check_length(scores, design)
    names = {far: f"TAR at FAR {far:g}" for far in far_targets}
    return _curve_figures(design, scores, names, "impostor pairs")


def rank_figure(
    hits_MN: Sequence[BoolArray] | BoolArray,
    subject_N: npt.ArrayLike,
    *,
    name: str,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Figure:
    """Share of the probes whose subject is among the first k of the gallery, which is taken as it is.

    Args:
        hits_MN: M arrays (N,) bool, an entry for each probe whose subject is in the gallery.
        subject_N: (N,) its subject, a whole number from 0.
        name: such as "Rank-1".
        replicates: number R of redrawn data sets.
        seed: of the draws.

    Raises:
        DataError: shapes that do not fit, an unknown subject (below 0), or fewer than two subjects.
    """
    hits = _rows(hits_MN, np.bool_)
    design = probes_design(np.zeros(hits[0].size, dtype=np.bool_), subject_N, replicates, seed)
    _check_length(hits, design)
    return _mean_figure(name, design, hits)


def open_set_figures(
    scores_MN: Sequence[npt.NDArray[np.floating[Any]]] | npt.NDArray[np.floating[Any]],
    hits_MN: Sequence[BoolArray] | BoolArray,
    is_impostor_N: npt.ArrayLike,
    subject_N: npt.ArrayLike,
    *,
    fpir_targets: Sequence[float],
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Figure | Unmeasured]:
    """TPIR at each FPIR (strict) of M models searching one gallery, by name.

    Args:
        scores_MN: M arrays (N,): each probe's highest score in the gallery.
        hits_MN: M arrays (N,) bool: that score is its own subject's; void for impostor searches.
        is_impostor_N: (N,) bool, true where the probe's subject is not in the gallery.
        subject_N: (N,) the probe's subject, a whole number from 0.
        fpir_targets: false positive identification rates above 0.
        replicates: number R of redrawn data sets.
        seed: of the draws.

    Raises:
        DataError: as `rank_figure`, or searches of one kind only.
        ValueError: a score that is not finite.
    """
    scores, hits = _rows(scores_MN), _rows(hits_MN, np.bool_)
    design = probes_design(is_impostor_N, subject_N, replicates, seed)
    _check_length([*scores, *hits], design)
    is_impostor = np.asarray(is_impostor_N, dtype=np.bool_)
    # Whoever is found under a wrong name is found at no threshold: such a search goes below all others.
    lowered = [np.where(hit | is_impostor, score, score.min() - 1) for score, hit in zip(scores, hits, strict=True)]
    names = {fpir: f"TPIR at FPIR {fpir:g}" for fpir in fpir_targets}
    figures = _curve_figures(design, lowered, names, "impostor searches")
    return {name: figures[name] for name in names.values()}


def mean_of_figures(figures: Sequence[Figure], name: str) -> Figure:
    """Mean of a figure over parts of a protocol, such as two galleries, whose draws are the same.

    Raises:
        ValueError: no figures, or figures with other draws.
    """
    drawn = {(figure.replicates.shape, figure.resampled, figure.units) for figure in figures}
    if len(drawn) != 1:
        raise ValueError(f"{name}: {len(figures)} figures with {len(drawn)} kinds of draws; give figures of one kind")
    return Figure(
        name=name,
        values=np.mean([figure.values for figure in figures], axis=0),
        replicates=np.mean([figure.replicates for figure in figures], axis=0),
        excess=np.mean([figure.excess for figure in figures], axis=0),
        resampled=figures[0].resampled,
        units=figures[0].units,
        evidence=min(figure.evidence for figure in figures),
        outcomes=sum(figure.outcomes for figure in figures),
        higher_is_better=figures[0].higher_is_better,
    )


def _mean_figure(name: str, design: Design, outcomes: list[BoolArray]) -> Figure:
    """Mean of outcomes (N,), each kind with its share in the data."""
    kinds = [kind for kind in (design.genuine, design.impostors) if kind.rows.size]
    means = sum((_mean_rates(design, kind, outcomes) * kind.rows.size for kind in kinds), start=np.zeros(()))
    share = design.impostors.rows.size / design.outcomes
    influences = [row[design.impostors.rows].astype(np.float64) for row in outcomes]
    return Figure(
        name=name,
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


def _curve_figures(
    design: Design,
    scores: list[npt.NDArray[np.floating[Any]]],
    names: dict[float, str],
    impostors_are: str,
) -> dict[str, Figure | Unmeasured]:
    """Give the figures of all models, joined by figure; `names` has a name for each target."""
    genuine, impostors = design.genuine.rows.size, design.impostors.rows.size
    if not (genuine and impostors):
        raise DataError(f"{genuine} genuine and {impostors} {impostors_are}: a curve needs both; leave this set out")
    targets = [far for far in names if far * impostors >= 1 - TOLERANCE]
    is_same = np.zeros(design.outcomes, dtype=np.bool_)
    is_same[design.genuine.rows] = True
    values = np.array([_exact_figures(row, is_same, targets) for row in scores])  # (M, F)
    curves = [curve_replicates(design, row, targets) for row in scores]
    figures: dict[str, Figure | Unmeasured] = {
        name: Unmeasured(name=name, reason=f"{far:g} is below 1 / {impostors} {impostors_are}")
        for far, name in names.items()
    }
    for index, name in enumerate([*(names[far] for far in targets), "AUC", "EER"]):
        drawn = np.stack([curve.figures[1:, index] for curve in curves], axis=1)
        excess = excess_covariance(design.impostors, [curve.influence[index][curve.cell] for curve in curves])
        if name == "EER":
            excess += _roughness(drawn, np.stack([curve.smooth_eer[1:] for curve in curves], axis=1))
        figures[name] = Figure(
            name=name,
            values=values[:, index],
            replicates=drawn,
            excess=excess,
            resampled=design.resampled,
            units=design.units,
            evidence=design.genuine_units,
            outcomes=design.outcomes,
            higher_is_better=name != "EER",
        )
    return figures


def _roughness(drawn_RM: FloatArray, smooth_RM: FloatArray) -> FloatArray:
    """Covariance (M, M) by which replicates exceed their first order: steps of the curve, which redrawing makes larger.

    Chosen by simulation: without them, paired tests of the EER raise a false alarm in 4-6 % of data sets, with them in
    3-4 %. A TAR keeps them: without, 90-91 % of its intervals held the truth where few impostor pairs are accepted.
    """
    return np.atleast_2d(np.cov(drawn_RM.T)) - np.atleast_2d(np.cov(smooth_RM.T))


def _exact_figures(scores: npt.NDArray[np.floating[Any]], is_same: BoolArray, far_targets: list[float]) -> list[float]:
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
