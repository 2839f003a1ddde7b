"""The published protocol for verification pairs: LFW, CFP-FP, AgeDB-30, CALFW, CPLFW and sets laid out like them.

The published numbers are counted exactly as in the field's evaluation (10 folds in file order, a grid of distance
thresholds), so that results compare with published tables; the exact ROC, AUC and EER are added. docs/protocols.md has
the rules in words.

Sources: G. B. Huang et al., "Labeled Faces in the Wild", University of Massachusetts technical report 07-49 (2007),
for the ten folds; F. Schroff et al., "FaceNet", arXiv 1503.03832 (2015), section 4, for TAR at a FAR over squared
distances.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from facebones.backbones.base import IMAGE_SIZE
from facebones.data.images import aspect_note, image_size
from facebones.data.pair_bins import PairSet, distinct
from facebones.errors import DataError, counted
from facebones.evaluation.embed import ImageEmbeddings, embed_images, flip_sum_normalised, mean_norm
from facebones.evaluation.models import Features, Precision
from facebones.statistics.curves import RocCurve, area_under_curve, equal_error_rate, roc

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]
BoolArray = npt.NDArray[np.bool_]

FAR_TARGET = 1e-3
ACCURACY_THRESHOLDS = np.arange(0, 4, 0.01)
FAR_THRESHOLDS = np.arange(0, 4, 0.001)
NORM_TOLERANCE = 1e-2
SHUFFLE_SEED = 0  # of the folds of a set whose own folds hold one kind of pair
BLOCK = 512  # rows, an even number; in double precision they fit into the processor's cache


@dataclass(frozen=True, eq=False)
class PairResult:
    """Result of the pairs protocol; rates are fractions, distances are squared Euclidean, from 0 to 4.

    Attributes:
        pairs: number of pairs P.
        folds: number of folds F.
        accuracy: mean accuracy over the folds.
        accuracy_std: population standard deviation of the accuracy over the folds.
        fold_accuracy: (F,) accuracy of each fold at its threshold.
        fold_threshold: (F,) distance threshold that was most accurate on the other folds.
        tar_at_far_1e3: mean true accept rate at the thresholds that the other folds give for FAR 1e-3.
        tar_at_far_1e3_std: population standard deviation of that rate over the folds.
        far_reached: mean false accept rate at those same thresholds.
        auc: area under the exact ROC curve of all pairs.
        eer: equal error rate of that curve.
        one_kind_folds: number of folds that hold genuine pairs only or impostor pairs only. The threshold of such a
            fold comes from other proportions, so the published accuracy says little: 0 % for a weak model.
        accuracy_shuffled: mean accuracy over F folds that each get an equal share of both kinds, at random (seed 0);
            None unless `one_kind_folds` is above 0.
        correct_shuffled: (P,) bool, whether each pair is decided correctly there; None likewise.
        distances: (P,) float64, squared distance of each pair, in file order.
        roc: the exact ROC curve of all pairs; its scores are the negated distances.
    """

    pairs: int
    folds: int
    accuracy: float
    accuracy_std: float
    fold_accuracy: FloatArray
    fold_threshold: FloatArray
    tar_at_far_1e3: float
    tar_at_far_1e3_std: float
    far_reached: float
    auc: float
    eer: float
    distances: FloatArray
    roc: RocCurve
    one_kind_folds: int = 0
    accuracy_shuffled: float | None = None
    correct_shuffled: BoolArray | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the counts and rates, with lists for arrays; every number is finite.

        `one_kind_folds` and `accuracy_shuffled` are there for a set with such folds only.
        """
        left_out = ["distances", "roc", "correct_shuffled"]
        if not self.one_kind_folds:
            left_out += ["one_kind_folds", "accuracy_shuffled"]
        content = {key: value for key, value in vars(self).items() if key not in left_out}
        return content | {"fold_accuracy": self.fold_accuracy.tolist(), "fold_threshold": self.fold_threshold.tolist()}


@dataclass(frozen=True, eq=False)
class PairSetResult:
    """A backbone's result on one pair set.

    Attributes:
        name: name of the set, such as "lfw".
        verification: result of the pairs protocol.
        xnorm: mean length of the embeddings before normalisation.
    """

    name: str
    verification: PairResult
    xnorm: float

    def to_json(self) -> dict[str, Any]:
        """Return the name of the set, the verification and XNorm in one flat object."""
        return {"set": self.name, **self.verification.to_json(), "xnorm": self.xnorm}


def evaluate_pair_set(
    backbone: nn.Module,
    pair_set: PairSet,
    *,
    device: torch.device,
    batch_size: int,
    image_size: int = IMAGE_SIZE,
    precision: Precision = "fp32",
    channels_last: bool = False,
    folds: int = 10,
    flip: bool = True,
    progress: bool = False,
) -> PairSetResult:
    """Embed a pair set with a backbone and verify it; the options are those of `embed_images`.

    Raises:
        DataError: the set cannot be read or verified, in one line that starts with its name.
    """
    check_pair_set(pair_set, folds)
    embeddings = embed_images(
        backbone,
        pair_set.images,
        name=pair_set.name,
        device=device,
        batch_size=batch_size,
        image_size=image_size,
        precision=precision,
        channels_last=channels_last,
        flip=flip,
        progress=progress,
    )
    return verify_embeddings(embeddings, pair_set, folds)


def verify_features(features_2PxVxD: Features, pair_set: PairSet) -> PairSetResult:
    """Verify a pair set by the features of its images from `embed`, with or without mirror images.

    Raises:
        DataError: the set cannot be verified, in one line that starts with its name.
    """
    return verify_embeddings(ImageEmbeddings.of(pair_set.name, features_2PxVxD), pair_set)


def verify_embeddings(embeddings: ImageEmbeddings, pair_set: PairSet, folds: int = 10) -> PairSetResult:
    """Verify a pair set by the embeddings of its images from `embed_images`; errors as `verify_features`."""
    verification = verify_pairs(flip_sum_normalised(embeddings), pair_set.is_same, folds, pair_set.name)
    return PairSetResult(pair_set.name, verification, mean_norm(embeddings))


def check_pair_set(pair_set: PairSet, folds: int = 10) -> None:
    """Check the counts and labels of a set before it is embedded.

    Raises:
        DataError: fewer pairs than folds, or pairs of one kind only.
    """
    _check_pairs(len(pair_set.images), pair_set.is_same, folds, str(pair_set.path or pair_set.name))


def pair_set_notes(pair_set: PairSet, folds: int = 10) -> list[str]:
    """What a user must know about a set before reading its figures: how it was read, its images, its folds.

    Training, `evaluate` and `compare` say these notes beside the figures.
    """
    notes = list(pair_set.notes)
    where = str(pair_set.path or pair_set.name)
    if aspect := aspect_note(where, map(image_size, distinct(pair_set.images))):
        notes.append(aspect)
    if alike := one_kind_folds(pair_set.is_same, folds):
        notes.append(
            f"{where}: {alike} of the {folds} folds hold pairs of one kind only, in the order of the file; the accuracy"
            " as published then means little, so the accuracy over shuffled folds stands beside it"
        )
    return notes


def one_kind_folds(is_same_P: npt.NDArray[np.bool_], folds: int = 10) -> int:
    """Number of folds, contiguous in file order, that hold genuine pairs only or impostor pairs only.

    >>> one_kind_folds(np.repeat([True, False], 100)), one_kind_folds(np.tile([True, False], 100))
    (10, 0)
    """
    fold_P = _fold_of_pair(is_same_P.size, folds)
    genuine, pairs = np.bincount(fold_P[is_same_P], minlength=folds), np.bincount(fold_P, minlength=folds)
    return int(((genuine == 0) | (genuine == pairs)).sum())


def verify_pairs(
    embeddings_2PxD: npt.NDArray[np.floating[Any]],
    is_same_P: npt.NDArray[np.bool_],
    folds: int = 10,
    name: str = "pairs",
) -> PairResult:
    """Verify pairs of embeddings by the published protocol.

    The folds are contiguous, in file order; the first P % folds of them are one pair larger. A fold without genuine
    pairs has no true accept rate, one without impostor pairs no false accept rate: it is left out of the mean of that
    rate. Where the other folds hold no impostor pairs, or cannot reach FAR 1e-3, the threshold for FAR 1e-3 is 0.

    Args:
        embeddings_2PxD: (2P, D) floats of length 1; rows 2k and 2k + 1 are pair k.
        is_same_P: (P,) bool, true for a genuine pair.
        folds: number of folds, at least 2.
        name: of the pairs, for errors.

    Raises:
        DataError: fewer pairs than folds, pairs of one kind only, labels that do not match the embeddings, or an
            embedding that is not finite or not of length 1; the message names its row.
        ValueError: `folds` is below 2.
    """
    is_same = np.asarray(is_same_P, dtype=np.bool_)
    _check_pairs(len(embeddings_2PxD), is_same, folds, name)
    _check_rows(embeddings_2PxD, name)
    distances = _squared_distances(embeddings_2PxD)
    fold_P = _fold_of_pair(is_same.size, folds)
    fold_accuracy, fold_threshold = _accuracy(distances, is_same, fold_P, folds)
    tar, far = _rates_at_far_target(distances, is_same, fold_P, folds)
    curve = roc(-distances, is_same)
    one_kind = one_kind_folds(is_same, folds)
    correct_shuffled = _correct_over_shuffled_folds(distances, is_same, folds) if one_kind else None
    return PairResult(
        pairs=is_same.size,
        folds=folds,
        accuracy=float(fold_accuracy.mean()),
        accuracy_std=float(fold_accuracy.std()),
        fold_accuracy=fold_accuracy,
        fold_threshold=fold_threshold,
        tar_at_far_1e3=float(tar.mean()),
        tar_at_far_1e3_std=float(tar.std()),
        far_reached=float(far.mean()),
        auc=area_under_curve(curve),
        eer=equal_error_rate(curve),
        distances=distances,
        roc=curve,
        one_kind_folds=one_kind,
        accuracy_shuffled=None if correct_shuffled is None else float(correct_shuffled.mean()),
        correct_shuffled=correct_shuffled,
    )


def correct_pairs(result: PairResult, is_same_P: BoolArray) -> BoolArray:
    """Whether each pair is decided correctly at the threshold of its fold: (P,) bool."""
    threshold_P = result.fold_threshold[_fold_of_pair(result.pairs, result.folds)]
    return np.asarray((result.distances < threshold_P) == is_same_P)


def _correct_over_shuffled_folds(distances: FloatArray, is_same: BoolArray, folds: int) -> BoolArray:
    """Whether each pair is decided correctly, (P,), where both kinds are dealt over the folds at random."""
    random = np.random.default_rng(SHUFFLE_SEED)
    fold_P = np.empty(is_same.size, dtype=np.intp)
    for kind in (is_same, ~is_same):
        places = random.permutation(np.flatnonzero(kind))
        fold_P[places] = np.arange(places.size) * folds // max(places.size, folds)
    _, threshold = _accuracy(distances, is_same, fold_P, folds)
    return np.asarray((distances < threshold[fold_P]) == is_same)


def _check_pairs(rows: int, is_same: BoolArray, folds: int, name: str) -> None:
    if folds < 2:
        raise ValueError(f"folds: {folds} leaves no pairs to choose a threshold on; give at least 2")
    if is_same.ndim != 1 or rows != 2 * is_same.size:
        raise DataError(f"{name}: {rows} images for labels of shape {is_same.shape}; give two images for each label")
    if is_same.size < folds:
        advice = f"give a set of {folds} pairs or more, or leave this one out"
        raise DataError(
            f"{name}: {counted(is_same.size, 'pair')} cannot fill the {folds} folds of the protocol; {advice}"
        )
    if is_same.all() or not is_same.any():
        kind = "genuine" if is_same[0] else "impostor"
        raise DataError(f"{name}: all {is_same.size} pairs are {kind} pairs; verification needs both kinds")


def _check_rows(embeddings: npt.NDArray[np.floating[Any]], name: str) -> None:
    if embeddings.ndim != 2:
        raise DataError(f"{name}: embeddings have shape {embeddings.shape}; give one row for each image")
    norm = np.sqrt(np.concatenate([np.einsum("nd,nd->n", block, block) for block in _blocks(embeddings)]))
    if not (finite := np.isfinite(norm)).all():  # inf and NaN show in the norm
        row = int(np.argmin(finite))
        raise DataError(f"{name}: embedding {row} is not finite; check the weights and the precision")
    if not (unit := np.abs(norm - 1.0) <= NORM_TOLERANCE).all():
        row = int(np.argmin(unit))
        raise DataError(f"{name}: embedding {row} has length {norm[row]:.6g} instead of 1; normalise the embeddings")


def _squared_distances(embeddings: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """Squared Euclidean distance of each pair, (P,), by differences: 2 - 2 cos loses the digits of near pairs."""
    differences = (block[0::2] - block[1::2] for block in _blocks(embeddings))
    return np.concatenate([np.sum(np.square(block, out=block), axis=1) for block in differences])


def _blocks(embeddings: npt.NDArray[np.floating[Any]]) -> Iterator[FloatArray]:
    """Yield the rows in double precision, block by block, which stay in the processor's cache."""
    for start in range(0, len(embeddings), BLOCK):
        yield embeddings[start : start + BLOCK].astype(np.float64, copy=False)


def _fold_of_pair(pairs: int, folds: int) -> IntArray:
    """Index of the fold of each pair: contiguous, the first `pairs % folds` folds one pair larger."""
    size, larger = divmod(pairs, folds)
    return np.repeat(np.arange(folds), [size + (fold < larger) for fold in range(folds)])


def _accepted(distances: FloatArray, fold_P: IntArray, folds: int, thresholds: FloatArray) -> IntArray:
    """Count the pairs of each fold below each threshold: a histogram, summed along the thresholds.

    Returns:
        (F, K) counts of distance < threshold, for K thresholds.
    """
    bins = thresholds.size + 1  # the last holds the pairs that no threshold accepts
    first_accepting = np.searchsorted(thresholds, distances, side="right")
    histogram = np.bincount(fold_P * bins + first_accepting, minlength=folds * bins).reshape(folds, bins)
    return np.cumsum(histogram[:, :-1], axis=1)


def _accuracy(
    distances: FloatArray,
    is_same: BoolArray,
    fold_P: IntArray,
    folds: int,
) -> tuple[FloatArray, FloatArray]:
    """Accuracy of each fold at the threshold that is most accurate on the other folds, and that threshold: (F,), (F,).

    The first of equally accurate thresholds is taken.
    """
    genuine_accepted = _accepted(distances[is_same], fold_P[is_same], folds, ACCURACY_THRESHOLDS)
    impostors_accepted = _accepted(distances[~is_same], fold_P[~is_same], folds, ACCURACY_THRESHOLDS)
    impostors = np.bincount(fold_P[~is_same], minlength=folds)
    correct = genuine_accepted + impostors[:, None] - impostors_accepted  # (F, K)
    best = np.argmax(correct.sum(axis=0) - correct, axis=1)
    accuracy = correct[np.arange(folds), best] / np.maximum(np.bincount(fold_P, minlength=folds), 1)  # few pairs
    return accuracy, ACCURACY_THRESHOLDS[best]


def _rates_at_far_target(
    distances: FloatArray,
    is_same: BoolArray,
    fold_P: IntArray,
    folds: int,
) -> tuple[FloatArray, FloatArray]:
    """Measure true and false accept rates of the folds, each at the threshold from the other folds."""
    accepted = _accepted(distances[~is_same], fold_P[~is_same], folds, FAR_THRESHOLDS)  # (F, K)
    impostors = np.bincount(fold_P[~is_same], minlength=folds)
    others_accepted, others = accepted.sum(axis=0) - accepted, impostors.sum() - impostors
    threshold = np.array([_far_threshold(*counts) for counts in zip(others_accepted, others, strict=True)])
    below = distances < threshold[fold_P]
    return _fold_rate(below, is_same, fold_P, folds), _fold_rate(below, ~is_same, fold_P, folds)


def _far_threshold(accepted: IntArray, impostors: int) -> float:
    """Distance threshold for FAR_TARGET, from the accepted impostor pairs (K,) at each threshold of the grid.

    Interpolated linearly over the distinct FARs, each at the first threshold that has it; 0 where the grid does not
    reach the target.
    """
    far, first = np.unique(accepted / max(impostors, 1), return_index=True)
    return float(np.interp(FAR_TARGET, far, FAR_THRESHOLDS[first])) if far[-1] >= FAR_TARGET else 0.0


def _fold_rate(below: BoolArray, kind: BoolArray, fold_P: IntArray, folds: int) -> FloatArray:
    """Accepted share of the pairs of a kind, for each fold that has such pairs: up to (F,)."""
    total = np.bincount(fold_P[kind], minlength=folds)
    accepted = np.bincount(fold_P[kind & below], minlength=folds)
    return accepted[total > 0] / total[total > 0]
