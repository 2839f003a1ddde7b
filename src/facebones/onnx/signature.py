"""How an ONNX file takes faces and returns embeddings: found by running it, because declared shapes are often wrong.

Exporters write a free batch before graphs that take one image, sizes that are not the real ones, and further outputs
such as the embedding's norm. So two images are tried first, then one, then the declared batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.backbones.base import IMAGE_SIZE
from facebones.errors import CheckpointError, some

TYPES: dict[str, npt.DTypeLike] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}
SAME = 0.02  # relative: an image's embedding alone and in a batch; kernels of 8 bits scale by the whole batch
PARALLEL = 0.99999  # cosine of two outputs that have one direction, such as an embedding and its normalised copy
LARGEST_BATCH = 512

Array = npt.NDArray[Any]
Infer = Callable[[Array], list[Array]]  # the file's input -> all its outputs


@dataclass(frozen=True, kw_only=True)
class Signature:
    """How a file takes faces and returns embeddings.

    Attributes:
        input_name: of the one input.
        dtype: of the input's numbers.
        channels_last: whether it takes (B, H, W, 3); otherwise (B, 3, H, W).
        batch: images at a time; None for any number.
        output: index of the embedding among the outputs.
        embedding_size: D.
        notes: what a user should know about it.
    """

    input_name: str
    dtype: npt.DTypeLike
    channels_last: bool
    batch: int | None
    output: int
    embedding_size: int
    notes: tuple[str, ...] = ()

    def embeddings(self, answers: Sequence[Array], images: int) -> npt.NDArray[np.float32] | None:
        """The embeddings (B, D) in the outputs for some images; None if the output has another shape."""
        answer = answers[self.output]
        return _as_rows(answer, images) if isinstance(answer, np.ndarray) else None


def find_signature(
    path: Path, inputs: Sequence[Any], outputs: Sequence[Any], infer: Infer, output_name: str | None = None
) -> Signature:
    """Find out by running a file how it is to be used.

    Args:
        path: the file, for errors.
        inputs: as ONNX Runtime describes them.
        outputs: likewise.
        infer: runs the file; raises CheckpointError.
        output_name: the output to take, of several.

    Raises:
        CheckpointError: it does not map faces to embeddings, or several outputs may be embeddings.
    """
    name, dtype, layouts = _input(path, inputs)
    names = [output.name for output in outputs]
    failure: CheckpointError | None = None
    for channels_last in layouts:
        trial = _Trial(infer, dtype, channels_last)
        declared = [_batch(one.shape) for one in (*inputs, *outputs)]
        known = [size for size in (2, 1, *dict.fromkeys(declared)) if size]
        count = next((size for size in known if trial.run(size)), None)
        if count is None:
            failure = failure or trial.failure
            continue
        single = 1 if trial.run(1) else count
        index, choice = _output(path, names, trial.answers[single], single, output_name)
        batch, why = _images_at_a_time(trial, index, single, declared[0])
        form = [f"takes {np.dtype(dtype).name} input"] if dtype == np.float16 else []
        form += ["takes its input as (B, H, W, 3)"] if channels_last and dtype != np.uint8 else []
        rows = _as_rows(trial.answers[single][index], single)
        assert rows is not None  # noqa: S101 (it was chosen for that)
        return Signature(
            input_name=name,
            dtype=dtype,
            channels_last=channels_last,
            batch=batch,
            output=index,
            embedding_size=rows.shape[1],
            notes=tuple(filter(None, [choice, *form, why])),
        )
    assert failure is not None  # noqa: S101 (there is a layout, and it failed)
    raise failure


class _Trial:
    """Runs of a file on a few images in one layout."""

    def __init__(self, infer: Infer, dtype: npt.DTypeLike, channels_last: bool) -> None:
        self._infer, self._dtype, self._channels_last = infer, dtype, channels_last
        self.answers: dict[int, list[Array]] = {}
        self.failure: CheckpointError | None = None

    def images(self, count: int) -> Array:
        """The same noise for each number of images, the last of which is always the same image."""
        random = np.random.default_rng(0)
        shape = (IMAGE_SIZE, IMAGE_SIZE, 3) if self._channels_last else (3, IMAGE_SIZE, IMAGE_SIZE)
        pixels = np.stack([random.integers(0, 256, shape) for _ in range(count)])[::-1]
        scaled = pixels if self._dtype == np.uint8 else pixels / 127.5 - 1
        return np.ascontiguousarray(scaled.astype(self._dtype))

    def run(self, count: int) -> bool:
        """Whether the file runs on a number of images."""
        if count not in self.answers:
            try:
                self.answers[count] = self._infer(self.images(count))
            except CheckpointError as error:
                if self.failure is None or count == 1:
                    self.failure = error
                return False
        return True


def _input(path: Path, inputs: Sequence[Any]) -> tuple[str, npt.DTypeLike, list[bool]]:
    """The input's name and type, and the layouts (whether channels are last) that its declared sizes leave open."""
    if len(inputs) != 1:
        raise CheckpointError(f"{path}: has {len(inputs)} inputs; a backbone has one; export it with the image only")
    kind, shape = inputs[0].type, inputs[0].shape
    dtype = TYPES.get(kind)
    sizes = [size if isinstance(size, int) and size > 0 else None for size in shape] or [None] * 4  # none: any rank
    layouts = []
    if dtype is not None and len(sizes) == 4:
        for channels_last in (True, False) if dtype == np.uint8 else (False, True):
            wanted = (IMAGE_SIZE, IMAGE_SIZE, 3) if channels_last else (3, IMAGE_SIZE, IMAGE_SIZE)
            if all(size in (None, fit) for size, fit in zip(sizes[1:], wanted, strict=True)):
                layouts.append(channels_last)
    if not layouts:
        raise CheckpointError(
            f"{path}: its input is {kind} {shape}; known are float, float16 and uint8 of (B, 3, {IMAGE_SIZE},"
            f" {IMAGE_SIZE}) or (B, {IMAGE_SIZE}, {IMAGE_SIZE}, 3); export it again"
        )
    assert dtype is not None  # noqa: S101 (else there is no layout)
    if (sizes[0] or 1) > LARGEST_BATCH:
        raise CheckpointError(
            f"{path}: takes {sizes[0]} images at a time, and {LARGEST_BATCH} are the most here; export it with a free"
            " batch, or a smaller one"
        )
    return inputs[0].name, dtype, layouts


def _batch(shape: Sequence[Any]) -> int | None:
    size = shape[0] if shape else None
    return size if isinstance(size, int) and 0 < size <= LARGEST_BATCH else None


def _output(
    path: Path, names: Sequence[str], answers: Sequence[Array], images: int, wanted: str | None
) -> tuple[int, str | None]:
    """The index of the output that is the embedding, and a note if there was a choice."""
    rows = {index: _as_rows(answer, images) for index, answer in enumerate(answers)}
    fitting = {index: row for index, row in rows.items() if row is not None and row.shape[1] > 1}
    if wanted is not None and len(names) > 1:
        if wanted not in names:
            raise CheckpointError(f"{path}: has no output {wanted!r:.80}; it has {_listed(names, answers)}")
        fitting = {index: row for index, row in fitting.items() if names[index] == wanted}
    if not fitting:
        usable = [names[index] for index, row in rows.items() if row is not None and row.shape[1] > 1]
        fix = f"choose another one by --output-name: {', '.join(usable)[:200]}" if usable else "export it again"
        raise CheckpointError(f"{path}: {_not_an_embedding(names, answers, images, wanted)}; {fix}")
    first, *others = fitting
    if any(not _parallel(fitting[first], fitting[other]) for other in others):
        shown = _listed([names[index] for index in fitting], [answers[index] for index in fitting])
        raise CheckpointError(f"{path}: several outputs may be the embedding: {shown}; choose one by --output-name")
    if len(names) == 1:
        return first, None
    return first, f"has {len(names)} outputs, {_listed(names, answers)}; took {names[first]} (--output-name)"


def _not_an_embedding(names: Sequence[str], answers: Sequence[Any], images: int, wanted: str | None) -> str:
    count = "one image" if images == 1 else f"{images} images"
    if wanted is None and len(names) > 1:
        return f"none of its {len(names)} outputs is an embedding (B, D) for {count}: {_listed(names, answers)}"
    answer = answers[names.index(wanted) if wanted in names else 0]
    which = f"its output {wanted:.40}" if wanted in names and len(names) > 1 else "its output"
    if not isinstance(answer, np.ndarray):
        return f"{which} for {count} has no shape; an embedding is (B, D)"
    return f"{which} for {count} is {_shown(answer, images)}; an embedding is (B, D)"


def _shown(answer: Array, images: int) -> str:
    """Shape of an output that is no embedding, and what it is instead."""
    what = ""
    if answer.dtype.kind not in "fiu":
        what = f" and of {answer.dtype}"
    elif answer.size == 0:
        what = ", empty"
    elif answer.ndim == 0 or (answer.size == 1 and images > 1):
        what = ", one number" + (" for all of them" if images > 1 else "")
    elif answer.size == images:
        what = ", one number for each"
    elif answer.ndim == 1:
        what = ", flat"
    elif answer.shape[0] != images:
        what = f", with {answer.shape[0]} rows"
    elif answer.ndim > 2:
        what = ", a feature map for each"
    return f"of shape {answer.shape}{what}"


def _images_at_a_time(trial: _Trial, index: int, single: int, declared: int | None) -> tuple[int | None, str | None]:
    """The batch size (None: any), and a note if it is not what the file declares."""
    if single > 1:
        return single, f"takes {single} images at a time: the last ones are padded"
    if 2 not in trial.answers:
        return 1, "takes one image at a time" + ("" if declared == 1 else ", whatever it declares")
    alone, together = _as_rows(trial.answers[1][index], 1), _as_rows(trial.answers[2][index], 2)
    assert alone is not None  # noqa: S101 (it was chosen for that)
    if together is None:
        return 1, f"takes one image at a time: its output for 2 images is {_shown(trial.answers[2][index], 2)}"
    if together.shape[1] != alone.shape[1] or not _same(together[1], alone[0]):
        return 1, "gives an image another embedding in a batch than alone: one image at a time"
    return None, None


def _as_rows(answer: Array, images: int) -> npt.NDArray[np.float32] | None:
    """An output as (B, D) if it can be one, such as (B, D, 1, 1), or (D,) of one image."""
    if not isinstance(answer, np.ndarray) or answer.dtype.kind not in "fiu" or not answer.size:
        return None
    shape = answer.shape if answer.ndim > 1 or images > 1 else (1, *answer.shape)
    if len(shape) < 2 or shape[0] != images or sum(size > 1 for size in shape[1:]) > 1:
        return None
    return answer.reshape(images, -1).astype(np.float32, copy=False)


def _same(a: Array, b: Array) -> bool:
    finite = np.isfinite(a).all() and np.isfinite(b).all()
    return not finite or bool(np.abs(a - b).max() <= SAME * np.abs(b).max() + 1e-6)


def _parallel(a: Array, b: Array) -> bool:
    if a.shape != b.shape:
        return False
    product, lengths = float((a[0] * b[0]).sum()), float(np.linalg.norm(a[0]) * np.linalg.norm(b[0]))
    return product >= PARALLEL * lengths > 0


def _listed(names: Sequence[str], answers: Sequence[Any]) -> str:
    shown = [f"{name:.40} {getattr(answer, 'shape', '')}" for name, answer in zip(names, answers, strict=True)]
    return some(shown, 6)
