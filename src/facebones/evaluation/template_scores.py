"""Scores of template pairs from the features of images, by the published rules for IJB-B and IJB-C.

An image has two features: its embedding and that of its mirror image. A pooling says how they are used:

* F1: they are added; F0: the mirror image is left out.
* N1: the length is kept; N0: it is scaled to 1.
* D1: multiplied by the score that the face detector gave the image; D0: not.

A template is the sum over its media of the mean over that medium's images, scaled to length 1. The score of a pair of
templates is the dot product. Published tables use N1D1F1.

A mean over a medium is a weighted sum, so a template is one weighted sum over its images: a medium needs only the
number of its images in the template. Poolings differ only in the weights and in what is summed (the embeddings, or
their sums with the mirror images), so one pass over the features serves all of them.

Source: the published evaluation of J. Deng et al., "ArcFace" (arXiv 1801.07698); these scores agree with it
(tests/golden/templates.npz).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facebones.errors import ConfigError, DataError, UnknownNameError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

BLOCK_IMAGES = 2048  # 8 MiB of features of size 512: the second use of a block finds it in the processor's cache
BLOCK_TEMPLATES = 256  # whose scores with all others are computed together
BLOCK_PAIRS = 512  # whose features stay in the processor's cache
# A matrix product computes a score many times faster than pair by pair, but also scores of pairs not listed.
MOST_SCORES_A_PAIR = 30
MOST_PARTNERS = 0.9  # of all partners in the list; a batch with more is multiplied with all


@dataclass(frozen=True, order=True, kw_only=True)
class Pooling:
    """How the features of an image are weighted before they are pooled: N, D and F of the published evaluation.

    Attributes:
        keep_norm: N; whether a feature keeps its length, which reflects the quality of the image.
        detector_score: D; whether it is multiplied by the detector's score.
        flip: F; whether the mirror image's embedding is added.
    """

    keep_norm: bool = True
    detector_score: bool = True
    flip: bool = True

    @property
    def name(self) -> str:
        """Such as "N1D1F1"."""
        return f"N{self.keep_norm:d}D{self.detector_score:d}F{self.flip:d}"

    def __str__(self) -> str:
        return self.name


ALL_POOLINGS = tuple(
    Pooling(keep_norm=keep_norm, detector_score=detector_score, flip=flip)
    for keep_norm, detector_score, flip in product((False, True), repeat=3)
)
USUAL_POOLING = Pooling()


def parse_pooling(text: str) -> tuple[Pooling, ...]:
    """Parse names such as "N1D1F1", separated by commas, or "all"; duplicates count once.

    Raises:
        UnknownNameError: a name is none of the eight; the message offers the nearest.
        ConfigError: the text holds no name.

    >>> [pooling.name for pooling in parse_pooling("N1D1F1,N0D0F1")]
    ['N1D1F1', 'N0D0F1']
    """
    known = {pooling.name: pooling for pooling in ALL_POOLINGS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError("--pooling: names nothing; give one such as N1D1F1, or all")
    for name in names:
        if name not in known and name != "all":
            raise UnknownNameError("pooling", name, [*known, "all"])
    if "all" in names:
        return ALL_POOLINGS
    return tuple(dict.fromkeys(known[name] for name in names))


def pool_templates(
    features_Nx2xD: npt.NDArray[np.floating[Any]],
    template_of_image: IntArray,
    medium_of_image: IntArray,
    detector_score: FloatArray,
    poolings: Sequence[Pooling] = (USUAL_POOLING,),
    *,
    template_ids: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None,
    name: str = "templates",
) -> dict[Pooling, FloatArray]:
    """Pool the features of the images of each template, for all poolings in one pass over the features.

    The features are read in order, in blocks of images, so they may be a memory map larger than memory.

    Args:
        features_Nx2xD: (N, 2, D), `[:, 0]` the embeddings and `[:, 1]` those of the mirror images.
        template_of_image: (N,) from 0 to T - 1.
        medium_of_image: (N,) number of the medium; two templates may share one.
        detector_score: (N,).
        poolings: how to pool; each gives a result.
        template_ids: (T,) names of the templates, for errors; their index by default.
        name: of the set, for errors.

    Returns:
        (T, D) float32 of length 1, for each pooling.

    Raises:
        DataError: shapes that do not match, or a template is zero or not finite; the message names it and the pooling.
    """
    images = len(template_of_image)
    if features_Nx2xD.ndim != 3 or features_Nx2xD.shape[:2] != (images, 2) or not images:
        raise DataError(
            f"{name}: features of shape {features_Nx2xD.shape} for {images} images; give (images, 2, embedding size)"
        )
    if medium_of_image.shape != (images,) or detector_score.shape != (images,):
        raise DataError(
            f"{name}: {medium_of_image.size} media and {detector_score.size} detector scores for {images} images;"
            " give one each"
        )
    templates = int(template_of_image.max()) + 1 if template_ids is None else len(template_ids)
    share = _share_of_medium(template_of_image, medium_of_image)
    sums = {}
    for flip in sorted({pooling.flip for pooling in poolings}):
        alike = [pooling for pooling in dict.fromkeys(poolings) if pooling.flip == flip]
        sums[flip] = (alike, np.zeros((len(alike), templates, features_Nx2xD.shape[2]), np.float32))
    for start in range(0, images, BLOCK_IMAGES):
        block = slice(start, start + BLOCK_IMAGES)
        with np.errstate(all="ignore"):  # a feature that is not finite shows in its template
            _add_block(sums, features_Nx2xD[block], template_of_image[block], share[block], detector_score[block])
    pooled = {pooling: one for alike, several in sums.values() for pooling, one in zip(alike, several, strict=True)}
    for pooling, one in pooled.items():
        _normalise(one, range(templates) if template_ids is None else template_ids, f"{name}, pooling {pooling}")
    return {pooling: pooled[pooling] for pooling in poolings}


def _share_of_medium(template_of_image: IntArray, medium_of_image: IntArray) -> FloatArray:
    """(N,) 1 / number of images that an image's medium has in its template."""
    together = template_of_image.astype(np.int64) << 32 | medium_of_image.astype(np.int64) & 0xFFFFFFFF
    _, group, count = np.unique(together, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / count[group], dtype=np.float32)


def _add_block(
    sums: Mapping[bool, tuple[Sequence[Pooling], FloatArray]],
    features_Bx2xD: npt.NDArray[np.floating[Any]],
    template_B: IntArray,
    share_B: FloatArray,
    detector_score_B: FloatArray,
) -> None:
    """Add the images of a block to the sums of their templates.

    The rows of a template are gathered; then the sums of the poolings with one kind of feature are one small matrix
    product: weights (S, L) times features (L, D), for L images.
    """
    order = np.argsort(template_B, kind="stable")
    template = template_B[order]
    edges = np.concatenate([[0], np.flatnonzero(np.diff(template)) + 1, [template.size]])
    segments = list(zip(template[edges[:-1]].tolist(), *map(np.ndarray.tolist, (edges[:-1], edges[1:])), strict=True))
    share, score = share_B[order], detector_score_B[order]
    rows = features_Bx2xD[order, 0].astype(np.float32, copy=False)
    for flip, (poolings, sums_SxTxD) in sums.items():  # the one without the mirror images comes first
        if flip:
            rows += features_Bx2xD[order, 1]
        weights = np.stack([_weights(pooling, rows, share, score) for pooling in poolings])
        for one, start, stop in segments:
            sums_SxTxD[:, one] += weights[:, start:stop] @ rows[start:stop]


def _weights(pooling: Pooling, rows: FloatArray, share: FloatArray, score: FloatArray) -> FloatArray:
    """(B,) factor of each image's feature in the sum of its template."""
    weights = share * score if pooling.detector_score else share
    if pooling.keep_norm:
        return weights
    return np.asarray(weights / np.sqrt(np.einsum("bd,bd->b", rows, rows)))


def _normalise(pooled: FloatArray, template_ids: Sequence[int] | npt.NDArray[np.integer[Any]], what: str) -> None:
    """Scale each template to length 1, in place."""
    with np.errstate(all="ignore"):
        length = np.sqrt(np.einsum("td,td->t", pooled, pooled))
    usable = np.isfinite(length) & (length > 0)
    if not usable.all():
        template = int(np.argmin(usable))
        raise DataError(
            f"{what}: template {template_ids[template]} has length {length[template]}, so no direction; check its"
            " images and the weights of the backbone"
        )
    pooled /= length[:, None]


class PairScorer:
    """Scores of listed pairs of templates by the dot product; what depends only on the list is computed once.

    The pairs are processed in the order of their first template. Where the pairs of a few hundred templates are a large
    share of all pairs with the same partners, they are picked from a matrix product; otherwise the pairs are multiplied
    one by one.
    """

    def __init__(self, pair_a: IntArray, pair_b: IntArray, templates: int) -> None:
        """Take (P,) pairs of indices from 0 to `templates` - 1; memory: 8 bytes per pair."""
        self._pairs = pair_a.size
        self._partners, partner = _numbered(pair_b, templates)
        self._batches = [
            (places, _picked(pair_a[places], pair_b[places], self._partners, partner[places], templates))
            for places in _batches(pair_a)
        ]

    def scores(self, templates_TxD: FloatArray) -> FloatArray:
        """Scores of the pairs, (P,) float32; how pairs are batched changes a score by about 1e-7."""
        scores = np.empty(self._pairs, dtype=np.float32)
        partners = templates_TxD[self._partners]  # gathered once for all batches that use them
        for places, batch in self._batches:
            if isinstance(batch, _Product):
                columns = partners if batch.columns is self._partners else templates_TxD[batch.columns]
                scores[places] = np.take(templates_TxD[batch.rows] @ columns.T, batch.picked)
            else:
                scores[places] = _one_by_one(templates_TxD, *batch)
        return scores


class _Product(NamedTuple):
    """Pairs whose scores are picked from the product of templates `rows` with templates `columns`."""

    rows: npt.NDArray[np.intp]
    columns: npt.NDArray[np.intp]
    picked: npt.NDArray[np.intp]  # (K,) places in the flat product


def _batches(pair_a: IntArray) -> Iterator[slice | npt.NDArray[np.intp]]:
    """Yield the places of the pairs of a few first templates at a time; slices if the list is sorted already."""
    if (pair_a[1:] >= pair_a[:-1]).all():
        ordered, order = pair_a, None
    else:
        order = np.argsort(pair_a.astype(np.uint16) if pair_a.max() < 1 << 16 else pair_a, kind="stable")
        ordered = pair_a[order]
    first_pairs = np.concatenate([[0], np.flatnonzero(ordered[1:] != ordered[:-1]) + 1])
    edges = [*first_pairs[::BLOCK_TEMPLATES].tolist(), pair_a.size]
    for start, stop in pairwise(edges):
        yield slice(start, stop) if order is None else order[start:stop]


def _picked(
    pair_a: IntArray, pair_b: IntArray, partners: npt.NDArray[np.intp], partner: IntArray, templates: int
) -> _Product | tuple[IntArray, IntArray]:
    """How the pairs of at most BLOCK_TEMPLATES first templates are scored: by a product, or one by one.

    `partners` are those of the whole list. A batch with most of them is multiplied with all, which is faster than
    gathering its own.
    """
    rows, row = _numbered(pair_a, templates)
    columns, column = _numbered(pair_b, templates)
    if rows.size * columns.size > MOST_SCORES_A_PAIR * pair_a.size:
        return pair_a, pair_b
    if columns.size > MOST_PARTNERS * partners.size:
        columns, column = partners, partner
    return _Product(rows, columns, row * np.intp(columns.size) + column)


def _one_by_one(templates: FloatArray, pair_a: IntArray, pair_b: IntArray) -> FloatArray:
    """Scores of pairs, (K,)."""
    scores = np.empty(pair_a.size, dtype=np.float32)
    for start in range(0, pair_a.size, BLOCK_PAIRS):
        block = slice(start, start + BLOCK_PAIRS)
        np.einsum("pd,pd->p", templates[pair_a[block]], templates[pair_b[block]], out=scores[block])
    return scores


def _numbered(templates: IntArray, count: int) -> tuple[npt.NDArray[np.intp], IntArray]:
    """Distinct numbers below `count`, ascending, and the position of each number among them."""
    occurs = np.zeros(count, dtype=np.bool_)
    occurs[templates] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs, dtype=np.int32) - 1)[templates]
