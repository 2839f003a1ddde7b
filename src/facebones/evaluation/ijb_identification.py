"""The protocol `ijb_identification`: searches in the galleries (1:N) of IJB-B and IJB-C.

Metrics: Rank-k of the closed set, and TPIR at a FPIR of the open set as the mean of the galleries. The bootstrap
resamples the subjects of the probes. `identification` has the counting.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.backbones.base import IMAGE_SIZE
from facebones.data.ijb_lists import TemplateSet
from facebones.evaluation.identification import FPIR_TARGETS, RANKS, IdentificationResult, identify_templates
from facebones.evaluation.ijb_verification import IJBFolder, pooled_templates
from facebones.evaluation.protocol import Features, ProtocolResult, register_protocol
from facebones.evaluation.template_scores import USUAL_POOLING, Pooling
from facebones.statistics.bootstrap import (
    REPLICATES,
    ResampledMetric,
    mean_of_metrics,
    resample_open_set,
    resample_rank,
    tpir_metric,
)
from facebones.statistics.metric import Metric, MetricComparison
from facebones.statistics.significance import compare_models

MAIN_RANK = 1  # models are chosen by this one


@register_protocol
class IJBIdentification(IJBFolder):
    """Searches in the galleries of an IJB folder with its probes.

    Args:
        path: the folder that holds `loose_crop` and `meta`.
        pooling: how images are pooled to templates.
    """

    name = "ijb_identification"
    file = "identification.json"

    def __init__(self, path: Path | str, pooling: Pooling = USUAL_POOLING) -> None:
        super().__init__(path)
        self.pooling = pooling

    def check(self) -> None:
        """Read the lists and the first image."""
        fresh = type(self)(self.path)
        fresh.images().read(0, IMAGE_SIZE)

    def images(self) -> Any:
        """The photos; a folder without galleries or probes is refused before any is embedded."""
        self.template_set.identification_lists()
        return super().images()

    def evaluate(self, features_NxVxD: Features) -> list[Metric]:
        """Search with one model; intervals by bootstrap over subjects."""
        (result,) = self.compare({"": features_NxVxD}, bootstrap=REPLICATES, seed=0)
        return result.of("")

    def compare(
        self,
        features: Mapping[str, Features],
        *,
        bootstrap: int,
        seed: int,
        output: Path | None = None,
    ) -> list[ProtocolResult]:
        """Search with several models, and test their differences."""
        results = {}
        for model, rows in features.items():
            pooled = pooled_templates(self.template_set, rows, (self.pooling,))
            results[model] = identify_templates(self.template_set, pooled[self.pooling])
        first = next(iter(results.values()))
        result = self.result(
            compare_on_searches(self.template_set, results, bootstrap, seed),
            str(self.pooling),
            sizes=self.sizes() | {"probes": first.probes, "subjects": first.closed_set.subjects},
            details={model: one.to_json() for model, one in results.items()},
            curves=_curves(results),
        )
        return [result]


def compare_on_searches(
    template_set: TemplateSet,
    results: Mapping[str, IdentificationResult],
    bootstrap: int = REPLICATES,
    seed: int = 0,
) -> list[MetricComparison]:
    """Compare models by Rank-k and TPIR at each FPIR, by bootstrap over the subjects of the probes.

    Raises:
        DataError: a set without such metrics.
    """
    _, probes = template_set.identification_lists()
    searched = next(iter(results.values())).closed_set.is_mated
    options = {"replicates": bootstrap, "seed": seed}
    metrics: list[ResampledMetric | Metric] = []
    for rank in RANKS:
        hits = [result.rank_of_probe[searched] <= rank for result in results.values()]
        metrics.append(resample_rank(hits, probes.subject[searched], rank=rank, main=rank == MAIN_RANK, **options))
    galleries = [_open_set(name, results, probes.subject, options) for name in next(iter(results.values())).open_set]
    for parts in zip(*galleries, strict=True):  # by target
        unmeasured = next((part for part in parts if isinstance(part, Metric)), None)
        metrics.append(unmeasured or mean_of_metrics([part for part in parts if isinstance(part, ResampledMetric)]))
    return compare_models(list(results), metrics)


def _open_set(
    gallery: str,
    results: Mapping[str, IdentificationResult],
    subject_K: npt.NDArray[np.int64],
    options: Mapping[str, int],
) -> Sequence[ResampledMetric | Metric]:
    """TPIR at each FPIR target of one gallery."""
    searches = [result.open_set[gallery].searches for result in results.values()]
    mated = searches[0].is_mated
    if mated.all() or not mated.any():
        reason = f"gallery {gallery} has no {'impostor' if mated.all() else 'mated'} searches"
        return [tpir_metric(fpir, reason) for fpir in FPIR_TARGETS]
    return resample_open_set(
        [one.top_score for one in searches],
        [one.rank_of_probe == 1 for one in searches],
        ~mated,
        subject_K,
        fpir_targets=FPIR_TARGETS,
        **options,
    )


def _curves(results: Mapping[str, IdentificationResult]) -> dict[str, dict[str, Any]]:
    """The CMC, and for each gallery with searches of both kinds the corners of the DET."""
    curves: dict[str, dict[str, Any]] = {"cmc": {model: result.cmc.tolist() for model, result in results.items()}}
    for gallery, first in next(iter(results.values())).open_set.items():
        if first.mated and first.impostors:
            curves[f"det_{gallery}"] = {
                model: _det_corners(result.open_set[gallery].det_fpir, result.open_set[gallery].det_fnir)
                for model, result in results.items()
            }
    return curves


def _det_corners(fpir: npt.NDArray[np.float64], fnir: npt.NDArray[np.float64]) -> dict[str, list[float]]:
    """The points of a DET without those inside horizontal and vertical stretches, which do not change the plot."""
    inside = np.zeros(fpir.size, dtype=np.bool_)
    for rate in (fpir, fnir):
        same = rate[1:] == rate[:-1]
        inside[1:-1] |= same[1:] & same[:-1]
    return {"fpir": fpir[~inside].tolist(), "fnir": fnir[~inside].tolist()}
