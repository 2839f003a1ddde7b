"""The protocol `ijb_identification`: searches in the galleries (1:N) of IJB-B and IJB-C.

Metrics: Rank-k of the closed set, and TPIR at a FPIR of the open set as the mean of the galleries. The bootstrap
resamples the subjects of the probes.

Counting of the published 1:N protocols of IJB-B and IJB-C: which subject of a gallery is a probe?

Closed set: the probes whose subject is in one of the galleries are searched in both together; the metric is the share
found at rank 1, 5, 10. Open set: each gallery alone is searched with all probes; those whose subject it lacks are
impostor searches, and a threshold bounds the share of them that are accepted.

The score of a subject for a probe is the best of its templates in the gallery. Tie rules, all pessimistic: another
subject with the same score ranks before the right one; searches with equal scores are accepted together, so a threshold
whose FPIR would exceed the target by a tie is not used.

Sources: B. Maze et al., "IARPA Janus Benchmark - C: Face Dataset and Protocol", ICB (2018); P. Grother, M. Ngan, "Face
Recognition Vendor Test (FRVT)", NIST interagency report 8009 (2014), for FPIR and FNIR.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.backbones.base import IMAGE_SIZE
from facebones.data.ijb_lists import SubjectList, TemplateSet
from facebones.errors import DataError
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

FloatArray = npt.NDArray[np.float32]
RateArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int32]
SubjectArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

RANKS = (1, 5, 10)
LARGEST_RANK = 50  # of the CMC curve
FPIR_TARGETS = (0.1, 0.01)
BLOCK_PROBES = 1024


@dataclass(frozen=True, eq=False, kw_only=True)
class Searches:
    """Results of searching a gallery with K probes.

    Attributes:
        subjects: number of subjects in the gallery.
        rank_of_probe: (K,) int32, from 1; 0 where the gallery lacks the probe's subject.
        own_score: (K,) float32, score of the probe's own subject; -inf where the gallery lacks it.
        top_score: (K,) float32, score of the best subject, own or not.
    """

    subjects: int
    rank_of_probe: IntArray
    own_score: FloatArray
    top_score: FloatArray

    @property
    def is_mated(self) -> BoolArray:
        """(K,) whether the gallery holds the probe's subject."""
        return np.asarray(self.rank_of_probe > 0)


@dataclass(frozen=True, kw_only=True)
class IdentificationRate:
    """True positive identification rate at a target false positive identification rate; fractions.

    Attributes:
        fpir: the target: share of impostor searches at or above the threshold.
        tpir: share of the mated searches that find their subject at rank 1, at or above the threshold; None if
            unmeasurable.
        fpir_reached: the FPIR at that threshold, at most the target; None if unmeasurable.
        threshold: the lowest score that is accepted; None if unmeasurable, or if everything may be accepted.
        unmeasurable: why there is no rate, or None.
    """

    fpir: float
    tpir: float | None = None
    fpir_reached: float | None = None
    threshold: float | None = None
    unmeasurable: str | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class OpenSetResult:
    """The open-set searches of one gallery.

    Attributes:
        searches: the search with each probe.
        mated: number of probes whose subject the gallery holds.
        impostors: number of the other probes.
        rates: TPIR, by FPIR target.
        det_fpir: (M,) float64, FPIR of each threshold from the highest down; ascending, ends at 1; empty where there
            are no searches of one kind.
        det_fnir: (M,) float64, 1 - TPIR there; descending.
    """

    searches: Searches
    mated: int
    impostors: int
    rates: tuple[IdentificationRate, ...]
    det_fpir: RateArray
    det_fnir: RateArray

    def to_json(self) -> dict[str, Any]:
        """Return counts and rates; every number is finite."""
        rates = [dict(vars(rate)) for rate in self.rates]
        return {"subjects": self.searches.subjects, "mated": self.mated, "impostors": self.impostors, "rates": rates}


@dataclass(frozen=True, eq=False, kw_only=True)
class IdentificationResult:
    """Result of one model on the 1:N protocols; rates are fractions.

    Attributes:
        probes: number of probes K.
        closed_set: both galleries together, searched with each probe.
        searched: number of probes whose subject is in one of the galleries.
        rank_rates: share of those found within rank 1, 5, 10, by rank.
        cmc: (R,) float64, the same for each rank from 1 to 50, or to the number of subjects if that is less.
        open_set: each gallery alone, by its name.
        mean_tpir: mean TPIR of the galleries, by FPIR target; None where one of them has none.
    """

    probes: int
    closed_set: Searches
    searched: int
    rank_rates: Mapping[int, float]
    cmc: RateArray
    open_set: Mapping[str, OpenSetResult]
    mean_tpir: Mapping[float, float | None]

    @property
    def rank_of_probe(self) -> IntArray:
        """(K,) rank of each probe's subject in both galleries together, 0 where it is in neither."""
        return self.closed_set.rank_of_probe

    def to_json(self) -> dict[str, Any]:
        """Return all metrics, without those of each probe and without the DET curves; every number is finite."""
        return {
            "probes": self.probes,
            "subjects": self.closed_set.subjects,
            "searched": self.searched,
            "rank_rates": {str(rank): rate for rank, rate in self.rank_rates.items()},
            "cmc": self.cmc.tolist(),
            "mean_tpir": [{"fpir": fpir, "tpir": tpir} for fpir, tpir in self.mean_tpir.items()],
            "galleries": {name: result.to_json() for name, result in self.open_set.items()},
        }


def identify_templates(template_set: TemplateSet, templates_TxD: FloatArray) -> IdentificationResult:
    """Search the galleries of a template set with its probes; see `identify`.

    Args:
        template_set: T templates.
        templates_TxD: (T, D) of length 1, such as `template_scores.pool_templates` makes.

    Raises:
        DataError: the set lacks galleries or probes, or no probe's subject is in a gallery.
    """
    return identify(templates_TxD, *template_set.identification_lists(), name=template_set.name)


def identify(
    templates_TxD: FloatArray,
    galleries: Mapping[str, SubjectList],
    probes: SubjectList,
    *,
    ranks: Sequence[int] = RANKS,
    fpir_targets: Sequence[float] = FPIR_TARGETS,
    name: str = "templates",
) -> IdentificationResult:
    """Search galleries with probes, all together (closed set) and each alone (open set).

    Args:
        templates_TxD: (T, D) of length 1; the score of two is their dot product.
        galleries: templates and subjects of each gallery.
        probes: templates and subjects of the K probes.
        ranks: of the closed set.
        fpir_targets: of the open set.
        name: of the set, for errors.

    Raises:
        DataError: there is no gallery, or no probe's subject is in one.
        ValueError: a target is outside [0, 1].
    """
    if not galleries:
        raise DataError(f"{name}: no gallery to search; identification (1:N) needs one")
    together = SubjectList(
        template=np.concatenate([gallery.template for gallery in galleries.values()]),
        subject=np.concatenate([gallery.subject for gallery in galleries.values()]),
    )
    closed = search(templates_TxD, together, probes)
    if not closed.is_mated.any():
        raise DataError(f"{name}: no probe's subject is in a gallery; restore the lists of one edition")
    found = closed.rank_of_probe[closed.is_mated]
    open_set = {
        key: open_set_result(search(templates_TxD, gallery, probes), fpir_targets) for key, gallery in galleries.items()
    }
    return IdentificationResult(
        probes=len(probes),
        closed_set=closed,
        searched=found.size,
        rank_rates={rank: float(np.mean(found <= rank)) for rank in ranks},
        cmc=np.array([np.mean(found <= rank) for rank in range(1, min(LARGEST_RANK, closed.subjects) + 1)]),
        open_set=open_set,
        mean_tpir={fpir: _mean_tpir(open_set, place) for place, fpir in enumerate(fpir_targets)},
    )


def search(templates_TxD: FloatArray, gallery: SubjectList, probes: SubjectList) -> Searches:
    """Search a gallery with each probe.

    Returns:
        Rank of the probe's own subject: 1 + the other subjects whose score is as high or higher.
    """
    order = np.argsort(gallery.subject, kind="stable")
    subjects, first = np.unique(gallery.subject[order], return_index=True)
    gallery_rows = templates_TxD[gallery.template[order]]
    place = np.minimum(np.searchsorted(subjects, probes.subject), subjects.size - 1)
    mated = subjects[place] == probes.subject
    rank = np.zeros(len(probes), dtype=np.int32)
    own, top = np.empty(len(probes), np.float32), np.empty(len(probes), np.float32)
    for start in range(0, len(probes), BLOCK_PROBES):
        block = slice(start, start + BLOCK_PROBES)
        scores = templates_TxD[probes.template[block]] @ gallery_rows.T
        if subjects.size < len(gallery):
            scores = np.maximum.reduceat(scores, first, axis=1)  # (B, subjects)
        own[block] = scores[np.arange(len(scores)), place[block]]
        top[block] = scores.max(axis=1)
        rank[block] = (scores >= own[block, None]).sum(axis=1)  # includes its own score, so ranks start at 1
    return Searches(
        subjects=subjects.size,
        rank_of_probe=np.where(mated, rank, 0).astype(np.int32),
        own_score=np.where(mated, own, -np.inf).astype(np.float32),
        top_score=top,
    )


def open_set_result(searches: Searches, fpir_targets: Sequence[float] = FPIR_TARGETS) -> OpenSetResult:
    """Measure the open-set searches of a gallery.

    A search with a probe whose subject the gallery lacks is a false positive where its best score is at or above the
    threshold. At a target, the lowest threshold whose FPIR does not exceed it is used.

    Raises:
        ValueError: a target is outside [0, 1].
    """
    alarms = np.sort(searches.top_score[~searches.is_mated])
    hits = np.sort(searches.own_score[searches.rank_of_probe == 1])
    mated = int(np.count_nonzero(searches.is_mated))
    fpir, fnir = np.empty(0), np.empty(0)
    if mated and alarms.size:
        thresholds = np.unique(np.concatenate([alarms, hits]))[::-1]
        fpir = (alarms.size - np.searchsorted(alarms, thresholds)) / alarms.size
        # Below the last score all impostor searches are false positives, and there are no further hits.
        fnir = 1.0 - (hits.size - np.searchsorted(hits, thresholds)) / mated
    return OpenSetResult(
        searches=searches,
        mated=mated,
        impostors=alarms.size,
        rates=tuple(_identification_rate(alarms, hits, mated, target) for target in fpir_targets),
        det_fpir=fpir,
        det_fnir=fnir,
    )


def _identification_rate(alarms: FloatArray, hits: FloatArray, mated: int, fpir: float) -> IdentificationRate:
    """TPIR at a target, from the ascending scores of impostor searches and of subjects found at rank 1."""
    if not 0.0 <= fpir <= 1.0:
        raise ValueError(f"fpir: {fpir} is not a rate; give a number from 0 to 1")
    if not mated or not alarms.size:
        lacking = "impostor searches" if mated else "searches for a subject in the gallery"
        return IdentificationRate(fpir=fpir, unmeasurable=f"there are no {lacking}")
    if fpir < 1 / alarms.size:
        reason = f"{alarms.size} impostor searches measure no FPIR below {1 / alarms.size:.2e}"
        return IdentificationRate(fpir=fpir, unmeasurable=reason)
    allowed = int(np.searchsorted(np.arange(1, alarms.size + 1) / alarms.size, fpir, side="right"))
    if allowed == alarms.size:
        return IdentificationRate(fpir=fpir, tpir=hits.size / mated, fpir_reached=1.0)
    refused = alarms[alarms.size - 1 - allowed]  # the highest score that must be refused, with its equals
    threshold = np.nextafter(refused, np.float32(np.inf))
    return IdentificationRate(
        fpir=fpir,
        tpir=(hits.size - int(np.searchsorted(hits, threshold))) / mated,
        fpir_reached=(alarms.size - int(np.searchsorted(alarms, threshold))) / alarms.size,
        threshold=float(threshold),
    )


def _mean_tpir(open_set: Mapping[str, OpenSetResult], place: int) -> float | None:
    rates = [result.rates[place].tpir for result in open_set.values()]
    known = [rate for rate in rates if rate is not None]
    return float(np.mean(known)) if len(known) == len(rates) else None


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
