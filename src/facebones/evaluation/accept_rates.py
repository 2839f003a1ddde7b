"""Scored pairs as TAR at low FARs: what the protocols of many pairs count, and by which rate models are compared.

Each rate is read twice: strictly, so that the target is never exceeded, and as the published tables of IJB read it, at
the FAR nearest to the target. Models are compared by the strict one, with a bootstrap over identities.

Source: the published evaluation of J. Deng et al., "ArcFace" (arXiv 1801.07698), for the reading of the tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.errors import DataError
from facebones.statistics.bootstrap import REPLICATES, ResampledMetric, resample_verification
from facebones.statistics.curves import (
    RocCurve,
    area_under_curve,
    corners,
    equal_error_rate,
    published_true_accept_rate_at,
    roc,
    true_accept_rate_at,
)
from facebones.statistics.metric import Metric, MetricComparison
from facebones.statistics.significance import compare_models
from facebones.system.files import atomic_write

FAR_TARGETS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
MAIN_FAR = 1e-4  # models are chosen by the TAR at the smallest FAR from here on that the data can measure

Scores = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class AcceptRate:
    """True accept rate at a target false accept rate; fractions.

    Attributes:
        far: the target.
        published: TAR at the FAR nearest to the target, as the published tables read it; None if unmeasurable.
        far_reached: that FAR, which may exceed the target; None if unmeasurable.
        strict: the largest TAR whose FAR is at most the target; None if unmeasurable.
        unmeasurable: why there is no rate, or None.
    """

    far: float
    published: float | None = None
    far_reached: float | None = None
    strict: float | None = None
    unmeasurable: str | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class TemplateResult:
    """Result of one model on the 1:1 protocol; rates are fractions.

    Attributes:
        pairs: number of pairs P.
        genuine: number of genuine pairs.
        impostors: number of impostor pairs.
        rates: true accept rates, by target.
        auc: area under the exact ROC curve.
        eer: equal error rate of that curve.
        roc: the corners of that curve.
    """

    pairs: int
    genuine: int
    impostors: int
    rates: tuple[AcceptRate, ...]
    auc: float
    eer: float
    roc: RocCurve

    def to_json(self) -> dict[str, Any]:
        """Return all attributes but `roc`; every number is finite."""
        content = {key: value for key, value in vars(self).items() if key != "roc"}
        return content | {"rates": [dict(vars(rate)) for rate in self.rates]}


def verify_templates(
    scores_P: npt.NDArray[np.floating[Any]],
    is_same_P: npt.NDArray[np.bool_],
    far_targets: Sequence[float] = FAR_TARGETS,
    name: str = "templates",
) -> TemplateResult:
    """Measure scored template pairs.

    Args:
        scores_P: (P,) finite similarities.
        is_same_P: (P,) bool, true for a genuine pair.
        far_targets: at which false accept rates to give the true accept rate.
        name: of the pairs, for errors.

    Raises:
        DataError: no pairs, pairs of one kind only, labels that do not match the scores, or a score is not finite.
        ValueError: a target is outside [0, 1].
    """
    try:
        curve = roc(scores_P, is_same_P)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    rates = tuple(_accept_rate(curve, far) for far in far_targets)
    bends = corners(curve)
    return TemplateResult(
        pairs=curve.genuine + curve.impostors,
        genuine=curve.genuine,
        impostors=curve.impostors,
        rates=rates,
        auc=area_under_curve(bends),
        eer=equal_error_rate(bends),
        roc=bends,
    )


def compare_on_templates(
    name: str,
    scores: Mapping[str, Scores],
    is_same_P: npt.NDArray[np.bool_],
    identities: tuple[npt.ArrayLike, npt.ArrayLike],
    *,
    bootstrap: int = REPLICATES,
    seed: int = 0,
) -> tuple[dict[str, TemplateResult], list[MetricComparison]]:
    """Measure each model on scored template pairs, and compare the models by bootstrap over identities.

    Args:
        name: of the pairs, for errors.
        scores: model -> (P,) similarities.
        is_same_P: (P,) bool, true for a genuine pair.
        identities: subject of the first and of the second template of each pair, (P,) each.
        bootstrap: number of bootstrap replicates.
        seed: of the bootstrap.

    Returns:
        the result of each model, and the comparison by strict TAR at each FAR, AUC and EER.

    Raises:
        DataError: scores that do not match the labels, or pairs of one kind only.
    """
    results = {model: verify_templates(row, is_same_P, name=f"{name}, {model}") for model, row in scores.items()}
    metrics = resample_verification(
        list(scores.values()), is_same_P, identities, far_targets=FAR_TARGETS, replicates=bootstrap, seed=seed
    )
    return results, compare_models(list(scores), with_main_rate(metrics))


def with_main_rate(metrics: Sequence[ResampledMetric | Metric]) -> list[ResampledMetric | Metric]:
    """Mark the TAR at the smallest measurable FAR from `MAIN_FAR` on as the main metric."""
    measured = [one for one in metrics if isinstance(one, ResampledMetric) and one.metric.name == "tar"]
    main = next((one for one in measured if one.metric.at["far"] >= MAIN_FAR), None)
    return [
        replace(one, metric=replace(one.metric, main=True)) if one is main and isinstance(one, ResampledMetric) else one
        for one in metrics
    ]


def write_curves(output: Path, curves: Mapping[str, RocCurve], files: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Write ROC curves by model: `far`, `tar` and `threshold` (K,), `genuine` and `impostors`."""
    for model, curve in curves.items():
        with atomic_write(output / files[model]) as file:
            np.savez(
                file,
                far=curve.false_accept_rate,
                tar=curve.true_accept_rate,
                threshold=curve.threshold,
                genuine=curve.genuine,
                impostors=curve.impostors,
            )
    return {"roc": dict(files)}


def _accept_rate(curve: RocCurve, far: float) -> AcceptRate:
    if far < 1 / curve.impostors:
        reason = f"{curve.impostors} impostor pairs measure no FAR below {1 / curve.impostors:.2e}"
        return AcceptRate(far=far, unmeasurable=reason)
    published, far_reached = published_true_accept_rate_at(curve, far)
    return AcceptRate(far=far, published=published, far_reached=far_reached, strict=true_accept_rate_at(curve, far))
