"""The protocol `ijb_verification`: template pairs (1:1) of IJB-B and IJB-C, as TAR at a FAR.

docs/protocols.md has the rules in words; `template_scores` computes the scores, and `accept_rates` counts them.

Source: B. Maze et al., "IARPA Janus Benchmark - C: Face Dataset and Protocol", ICB (2018).
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from facebones.backbones.base import IMAGE_SIZE
from facebones.data.group_lists import Faces
from facebones.data.ijb_lists import GALLERY_LISTS, TemplateSet, listed_targets, read_template_set
from facebones.data.ijb_pairs import PAIR_LIST, read_pair_labels, read_scores
from facebones.data.image_sources import LooseCrops
from facebones.errors import DataError
from facebones.evaluation.accept_rates import (
    FAR_TARGETS,
    Scores,
    TemplateResult,
    compare_on_templates,
    verify_templates,
    write_curves,
)
from facebones.evaluation.protocol import Features, Protocol, ProtocolResult, register_protocol
from facebones.evaluation.run import result_content
from facebones.evaluation.template_scores import USUAL_POOLING, PairScorer, Pooling, pool_templates
from facebones.statistics.bootstrap import REPLICATES
from facebones.statistics.calibration import ScoredPairs
from facebones.statistics.metric import Metric
from facebones.system.files import atomic_write, check_output, write_json


class IJBFolder(Protocol):
    """Base of both protocols of an IJB folder.

    Args:
        path: the folder that holds `loose_crop` and `meta`.
    """

    keep_features = True
    needs_flip = True

    @classmethod
    def find(cls, path: Path) -> list[Self]:
        """The folder itself, where `meta` holds lists of IJB-B or IJB-C."""
        return [cls(path)] if listed_targets(path) else []

    @cached_property
    def template_set(self) -> TemplateSet:
        """The lists of the folder, read once.

        Raises:
            DataError: a list is missing or broken.
        """
        return read_template_set(self.path)

    def images(self) -> LooseCrops:
        """The photos, aligned by their landmarks."""
        found = self.template_set
        return LooseCrops(found.name, found.image_folder, found.image_names, found.landmarks)

    def without(self, found_N: npt.NDArray[np.bool_]) -> tuple[Self, None]:
        """The pairs, galleries and probes without the templates that hold an image that was found."""
        found = self.template_set
        kept_T = np.bincount(found.template_of_image, found_N, minlength=found.template_ids.size) == 0
        kept_P = kept_T[found.pair_a] & kept_T[found.pair_b]
        rest = copy(self)
        rest.__dict__["template_set"] = replace(
            found,
            pair_a=found.pair_a[kept_P],
            pair_b=found.pair_b[kept_P],
            is_same=found.is_same[kept_P],
            galleries={name: listed.of_templates(kept_T) for name, listed in found.galleries.items()},
            probes=None if found.probes is None else found.probes.of_templates(kept_T),
        )
        return rest, None

    def sizes(self) -> dict[str, int]:
        """Numbers of images, templates and pairs."""
        found = self.template_set
        return {"images": len(found), "templates": int(found.template_ids.size), "pairs": int(found.is_same.size)}


@register_protocol
class IJBVerification(IJBFolder):
    """Template pairs of an IJB folder: strict TAR at each FAR, AUC and EER.

    Args:
        path: the folder that holds `loose_crop` and `meta`.
        pooling: how images are pooled to templates; one result for each.
    """

    name = "ijb_verification"
    file = "templates.json"

    def __init__(self, path: Path | str, pooling: Sequence[Pooling] = (USUAL_POOLING,)) -> None:
        super().__init__(path)
        self.pooling = tuple(pooling)

    @cached_property
    def subjects(self) -> npt.NDArray[np.int64]:
        """(T,) subject of each template, consistent with the labels of the pairs."""
        found = self.template_set
        subjects = each_known(found.identities())
        check_identities(
            found.path / "meta" / f"{found.name}_{PAIR_LIST}",
            found.template_ids,
            (found.pair_a, found.pair_b),
            found.is_same,
            subjects,
        )
        return subjects

    def without(self, found_N: npt.NDArray[np.bool_]) -> tuple[Self, None]:
        """See `IJBFolder`; the templates keep their subjects, which may follow from pairs that are left out."""
        subjects = self.subjects
        rest, _ = super().without(found_N)
        rest.__dict__["subjects"] = subjects
        return rest, None

    def check(self) -> None:
        """Read the lists and the first image."""
        fresh = type(self)(self.path)
        _ = fresh.subjects
        fresh.images().read(0, IMAGE_SIZE)

    def images(self) -> LooseCrops:
        """The photos; subjects and labels that contradict each other are refused before any is embedded."""
        _ = self.subjects
        return super().images()

    def written_files(self, models: Sequence[str]) -> list[str]:
        """Scores as MODEL_TARGET.npy, curves as MODEL_TARGET_roc.npz; MODEL_TARGET_POOLING where there are several."""
        bases = [self._base(model, pooling) for model in models for pooling in self.pooling]
        return [f"{base}{ending}" for base in bases for ending in (".npy", "_roc.npz")]

    def scored_pairs(self, features_NxVxD: Features) -> ScoredPairs:
        """The template pairs, by the first pooling."""
        ((_, scores),) = template_scores(self.template_set, features_NxVxD, self.pooling[:1])
        found = self.template_set
        first, second = self.subjects[found.pair_a], self.subjects[found.pair_b]
        return ScoredPairs(scores.astype(np.float64), found.is_same, first, second, (found.pair_a, found.pair_b))

    def faces(self) -> Faces:
        """Images by their file names; people by their subject ids, where the folder has all its lists."""
        found, subjects = self.template_set, self.subjects
        known = found.probes is not None and len(found.galleries) == len(GALLERY_LISTS)
        return Faces(
            images=found.image_names,
            item=found.template_of_image,
            person=np.unique(subjects, return_inverse=True)[1],
            people=[str(subject) for subject in subjects.tolist()] if known else None,
        )

    def evaluate(self, features_NxVxD: Features) -> list[Metric]:
        """Verify the template pairs with one model; intervals by bootstrap over identities."""
        results = self.compare({"": features_NxVxD}, bootstrap=REPLICATES, seed=0)
        return [metric for result in results for metric in result.of("")]

    def compare(
        self, features: Mapping[str, Features], *, bootstrap: int, seed: int, output: Path | None = None
    ) -> list[ProtocolResult]:
        """Verify the template pairs with several models, and test their differences; one result for each pooling."""
        scores: dict[Pooling, dict[str, Scores]] = {pooling: {} for pooling in self.pooling}
        for model, rows in features.items():
            for pooling, row in template_scores(self.template_set, rows, self.pooling):
                kept = row if output is None else _kept(output / f"{self._base(model, pooling)}.npy", row)
                scores[pooling][model] = kept
        return [self._compared(pooling, scores[pooling], bootstrap, seed, output) for pooling in self.pooling]

    def _compared(
        self, pooling: Pooling, scores: Mapping[str, Scores], bootstrap: int, seed: int, output: Path | None
    ) -> ProtocolResult:
        found = self.template_set
        results, metrics = compare_on_templates(
            f"{found.name} {pooling}",
            scores,
            found.is_same,
            (self.subjects[found.pair_a], self.subjects[found.pair_b]),
            bootstrap=bootstrap,
            seed=seed,
        )
        files = {model: f"{self._base(model, pooling)}_roc.npz" for model in results}
        first = next(iter(results.values()))
        return self.result(
            metrics,
            str(pooling),
            sizes=self.sizes() | {"genuine": first.genuine, "impostors": first.impostors},
            details={model: result.to_json() for model, result in results.items()},
            curves={}
            if output is None
            else write_curves(output, {name: one.roc for name, one in results.items()}, files),
        )

    def _base(self, model: str, pooling: Pooling) -> str:
        target = f"{model}_{self.template_set.name}"
        return target if len(self.pooling) == 1 else f"{target}_{pooling}"


def each_known(subject_T: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Give each template of an unknown subject (-1) a subject of its own: (T,) numbers from 0."""
    unknown = subject_T < 0
    return np.where(unknown, subject_T.max(initial=-1) + np.cumsum(unknown), subject_T)


def check_identities(
    path: Path,
    template_ids: npt.NDArray[Any],
    pairs: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    is_same_P: Any,
    subject_T: npt.NDArray[np.int64],
) -> None:
    """Check the labels of pairs against the subjects of their templates.

    Args:
        path: the list of pairs, one per line.
        template_ids: (T,) names of the templates.
        pairs: the templates of each pair, (P,) and (P,) from 0 to T - 1.
        is_same_P: (P,) bool, true for a genuine pair.
        subject_T: (T,) the templates' subjects.

    Raises:
        DataError: they contradict each other; the message names the first such line.
    """
    first, second = pairs
    wrong = (subject_T[first] == subject_T[second]) != is_same_P
    if wrong.any():
        index = int(np.argmax(wrong))
        one, other = template_ids[first[index]], template_ids[second[index]]
        said, otherwise = ("1", "two subjects") if is_same_P[index] else ("0", "one subject")
        raise DataError(
            f"{path}, line {index + 1}: templates {one} and {other} are labelled {said}, but by the other lines and"
            f" lists they are of {otherwise}; correct one of them"
        )


def evaluate_scores(
    labels: Path,
    scores: Mapping[str, Path],
    *,
    output: Path | None = None,
    bootstrap: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure saved scores of template pairs, from this or another program.

    Args:
        labels: the list of pairs, the `meta` folder that holds it, or the IJB folder.
        scores: model -> `.npy` file of (P,) similarities, in the order of the list.
        output: folder for scores.json and the curves.
        bootstrap: number of bootstrap replicates over identities, which follow from the genuine pairs.
        seed: of the bootstrap.

    Returns:
        what scores.json holds.

    Raises:
        FaceBonesError: a file cannot be used, or the output cannot be written.
    """
    pairs = read_pair_labels(labels)
    target = pairs.path.name.partition("_")[0]
    files = {model: f"{model}_{target}_roc.npz" for model in scores}
    if output is not None:
        check_output(output, ["scores.json", *files.values()])
    read = {name: read_scores(path, pairs) for name, path in scores.items()}
    subjects = each_known(pairs.identities())
    check_identities(pairs.path, pairs.template_ids, (pairs.pair_a, pairs.pair_b), pairs.is_same, subjects)
    identities = subjects[pairs.pair_a], subjects[pairs.pair_b]
    results, metrics = compare_on_templates(target, read, pairs.is_same, identities, bootstrap=bootstrap, seed=seed)
    first = next(iter(results.values()))
    result = ProtocolResult(
        protocol=IJBVerification.name,
        set=target,
        data=pairs.path,
        sizes={"pairs": len(pairs), "genuine": first.genuine, "impostors": first.impostors},
        metrics=[replace(one, metric=one.metric.measured_by(IJBVerification.name, target)) for one in metrics],
        details={model: one.to_json() for model, one in results.items()},
        curves={} if output is None else write_curves(output, {name: one.roc for name, one in results.items()}, files),
    )
    models = {model: {"scores": str(path)} for model, path in scores.items()}
    content = result_content(IJBVerification.name, models, {"bootstrap": bootstrap, "seed": seed}, [result])
    if output is not None:
        write_json(output / "scores.json", content)
    return content


def template_scores(
    template_set: TemplateSet,
    features_Nx2xD: npt.NDArray[np.floating[Any]],
    pooling: Sequence[Pooling] = (USUAL_POOLING,),
) -> Iterator[tuple[Pooling, npt.NDArray[np.float32]]]:
    """Pool the features of a template set in one pass, then yield each pooling with the scores of the pairs, (P,).

    Args:
        template_set: N images, P pairs.
        features_Nx2xD: (N, 2, D) in the order of its images, possibly a memory map: `[:, 0]` the embedding of the
            image, `[:, 1]` that of its mirror image.
        pooling: how to pool.

    Raises:
        DataError: the features do not match the set, or a template has no direction; the message names it.
    """
    pooled = pooled_templates(template_set, features_Nx2xD, pooling)
    scorer = PairScorer(template_set.pair_a, template_set.pair_b, template_set.template_ids.size)
    for one in list(pooled):
        yield one, scorer.scores(pooled.pop(one))


def pooled_templates(
    template_set: TemplateSet,
    features_Nx2xD: npt.NDArray[np.floating[Any]],
    pooling: Sequence[Pooling] = (USUAL_POOLING,),
) -> dict[Pooling, npt.NDArray[np.float32]]:
    """Pool the features of a template set: (T, D) for each pooling; see `template_scores.pool_templates`."""
    return pool_templates(
        features_Nx2xD,
        template_set.template_of_image,
        template_set.medium_of_image,
        template_set.detector_score,
        pooling,
        template_ids=template_set.template_ids,
        name=template_set.name,
    )


def evaluate_templates(
    template_set: TemplateSet,
    features_Nx2xD: npt.NDArray[np.floating[Any]],
    pooling: Sequence[Pooling] = (USUAL_POOLING,),
) -> dict[Pooling, TemplateResult]:
    """Verify the template pairs of a set from the features of its images, for each pooling; see `template_scores`.

    Raises:
        DataError: as in `template_scores` and `verify_templates`.
    """
    return {
        one: verify_templates(scores, template_set.is_same, FAR_TARGETS, template_set.name)
        for one, scores in template_scores(template_set, features_Nx2xD, pooling)
    }


def _kept(path: Path, scores: Scores) -> Scores:
    """Write scores and return a map of the file: those of many models need not fit into memory together."""
    with atomic_write(path) as file:
        np.save(file, scores)
    return np.asarray(np.load(path, mmap_mode="r"))
