"""The published 1:1 protocol of IJB-B and IJB-C: true accept rates of template pairs at false accept rates.

Each rate is read twice: as the published tables read it, at the FAR nearest to the target, and strictly, so that the
target is never exceeded. docs/protocols.md has the rules in words; `template_scores` makes the scores.

Sources: B. Maze et al., "IARPA Janus Benchmark - C: Face Dataset and Protocol", ICB (2018); the published evaluation of
J. Deng et al., "ArcFace" (arXiv 1801.07698), for the reading of the tables.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.data.ijb_lists import TemplateSet
from facebones.errors import DataError
from facebones.evaluation.template_scores import USUAL_SETTING, PairScorer, PoolingSetting, pool_templates
from facebones.statistics.curves import (
    RocCurve,
    area_under_curve,
    corners,
    equal_error_rate,
    published_true_accept_rate_at,
    roc,
    true_accept_rate_at,
)

FAR_TARGETS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True, kw_only=True)
class AcceptRate:
    """True accept rate at a target for the false accept rate; fractions.

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
    """What the 1:1 protocol answers; rates are fractions.

    Attributes:
        pairs: number of pairs P.
        genuine: how many of them are genuine.
        impostors: how many are not.
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
        """Give all but `roc`; every number is finite."""
        content = {key: value for key, value in vars(self).items() if key != "roc"}
        return content | {"rates": [dict(vars(rate)) for rate in self.rates]}


def verify_templates(
    scores_P: npt.NDArray[np.floating[Any]],
    is_same_P: npt.NDArray[np.bool_],
    far_targets: Sequence[float] = FAR_TARGETS,
    name: str = "templates",
) -> TemplateResult:
    """Count the 1:1 figures of scored template pairs.

    Args:
        scores_P: (P,) finite similarities.
        is_same_P: (P,) bool, true for a genuine pair.
        far_targets: at which false accept rates to give the true accept rate.
        name: what to call the pairs in errors.

    Raises:
        DataError: no pairs, pairs of one kind only, labels that do not fit the scores, or a score that is not finite.
        ValueError: a target lies outside 0 to 1.
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


def template_scores(
    template_set: TemplateSet,
    features_Nx2xD: npt.NDArray[np.floating[Any]],
    settings: Sequence[PoolingSetting] = (USUAL_SETTING,),
) -> Iterator[tuple[PoolingSetting, npt.NDArray[np.float32]]]:
    """Pool the features of a template set in one pass, then yield each setting with the scores of the pairs, (P,).

    Args:
        template_set: N images, P pairs.
        features_Nx2xD: (N, 2, D) in the order of its images, possibly a memory map: `[:, 0]` the embedding of the
            image, `[:, 1]` that of its mirror image.
        settings: how to pool.

    Raises:
        DataError: the features do not fit the set, or a template has no direction: then it is named.
    """
    pooled = pooled_templates(template_set, features_Nx2xD, settings)
    scorer = PairScorer(template_set.pair_a, template_set.pair_b, template_set.template_ids.size)
    for setting in list(pooled):
        yield setting, scorer.scores(pooled.pop(setting))


def pooled_templates(
    template_set: TemplateSet,
    features_Nx2xD: npt.NDArray[np.floating[Any]],
    settings: Sequence[PoolingSetting] = (USUAL_SETTING,),
) -> dict[PoolingSetting, npt.NDArray[np.float32]]:
    """Pool the features of a template set: (T, D) for each setting; see `template_scores.pool_templates`."""
    return pool_templates(
        features_Nx2xD,
        template_set.template_of_image,
        template_set.medium_of_image,
        template_set.detector_score,
        settings,
        template_ids=template_set.template_ids,
        name=template_set.name,
    )


def evaluate_templates(
    template_set: TemplateSet,
    features_Nx2xD: npt.NDArray[np.floating[Any]],
    settings: Sequence[PoolingSetting] = (USUAL_SETTING,),
    far_targets: Sequence[float] = FAR_TARGETS,
) -> dict[PoolingSetting, TemplateResult]:
    """Verify the template pairs of a set from the features of its images, for each setting; see `template_scores`.

    Raises:
        DataError: as in `template_scores` and `verify_templates`.
    """
    return {
        setting: verify_templates(scores, template_set.is_same, far_targets, template_set.name)
        for setting, scores in template_scores(template_set, features_Nx2xD, settings)
    }


def _accept_rate(curve: RocCurve, far: float) -> AcceptRate:
    if far < 1 / curve.impostors:
        reason = f"{curve.impostors} impostor pairs measure no FAR below {1 / curve.impostors:.2e}"
        return AcceptRate(far=far, unmeasurable=reason)
    published, far_reached = published_true_accept_rate_at(curve, far)
    return AcceptRate(far=far, published=published, far_reached=far_reached, strict=true_accept_rate_at(curve, far))
