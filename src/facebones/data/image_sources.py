"""Sources of face images to embed: encoded images in memory, training sets, files, or loose crops that are aligned."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from facebones.data.images import ImageArray, decode, read_image_file, single_threaded_opencv
from facebones.errors import DataError

if TYPE_CHECKING:
    from facebones.data.training_set import TrainingSet

CHUNK = 16  # images per task of a thread: tasks of one image cost a tenth of the reading time


class ImageSource(Protocol):
    """N face images that several threads can read in any order."""

    @property
    def name(self) -> str:
        """Name of the images in errors and in the progress display."""

    def __len__(self) -> int: ...

    def read(self, index: int, size: int) -> ImageArray:
        """Decode an image and align it if needed: (size, size, 3) uint8, RGB.

        Raises:
            DataError: the image cannot be read; the message names it.
        """

    def fingerprint(self) -> str:
        """Identify these images without decoding them.

        Raises:
            DataError: an image is missing; the message names it.
        """


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """Encoded images in memory, such as those of a pair set; images of another size are resized.

    Attributes:
        name: see `ImageSource`.
        images: (N,) JPEG, PNG, ...
    """

    name: str
    images: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, size: int) -> ImageArray:
        """See `ImageSource`."""
        return decode(self.images[index], f"{self.name}: image {index}", size)

    def encoded(self, index: int) -> bytes:
        """The bytes of an image."""
        return self.images[index]

    def fingerprint(self) -> str:
        """See `ImageSource`: a digest of all bytes, in their order."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(hashlib.sha256(image).digest())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """The images of a training set.

    Attributes:
        data: N images.
    """

    data: "TrainingSet"

    @property
    def name(self) -> str:
        """See `ImageSource`."""
        return str(self.data.path)

    def __len__(self) -> int:
        return len(self.data)

    def read(self, index: int, size: int) -> ImageArray:
        """See `ImageSource`."""
        return decode(self.data.read(index)[0], partial(self.data.describe, index), size)

    def fingerprint(self) -> str:
        """See `ImageSource`: that of the training set, as JSON."""
        return json.dumps(self.data.fingerprint(), sort_keys=True)


@dataclass(frozen=True, eq=False)
class DistinctImages:
    """A source that names images several times, with each of them once, as an `ImageSource`.

    Attributes:
        source: N images.
        order: (M,) the places in the source that are read, in this order.
        row: (N,) for each place in the source, which of the M images stands there.
    """

    source: ImageSource
    order: npt.NDArray[np.intp]
    row: npt.NDArray[np.intp]

    @property
    def name(self) -> str:
        """See `ImageSource`."""
        return self.source.name

    def __len__(self) -> int:
        return len(self.order)

    def read(self, index: int, size: int) -> ImageArray:
        """See `ImageSource`; an error names the place in the source."""
        return self.source.read(int(self.order[index]), size)

    def fingerprint(self) -> str:
        """See `ImageSource`: that of the source."""
        return self.source.fingerprint()

    def at_places(self, rows_M: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A row for each place in the source, (N, ...), from those of the images that are read, (M, ...)."""
        return rows_M if len(self.order) == len(self.row) else rows_M[self.row]


def distinct(source: ImageSource, batch_size: int = 1) -> DistinctImages:
    """Find the images of a source that are equal byte for byte; only `EncodedImages` are compared.

    The pairs of LFW name 7,701 images at 12,000 places. The last digits of an embedding depend on the size of its
    batch, so no batch changes its size: repeated images fill up the last whole batch, and the smaller batch behind it
    stays as it is.

    Args:
        source: N images.
        batch_size: images per forward pass.

    >>> found = distinct(EncodedImages("pairs", [b"one", b"two", b"one", b"three"]))
    >>> found.order.tolist(), found.row.tolist()
    ([0, 1, 3], [0, 1, 0, 2])
    """
    everything = np.arange(len(source))
    if not isinstance(source, EncodedImages):
        return DistinctImages(source, everything, everything)
    whole = len(source) - len(source) % batch_size
    known: dict[object, int] = {}
    # Anything but bytes is an error of a data format: reading reports it.
    keys = [image if isinstance(image, bytes) else place for place, image in enumerate(source.images[:whole])]
    first = np.array([known.setdefault(key, place) for place, key in enumerate(keys)], dtype=np.intp)
    is_first = first == everything[:whole]
    once, repeated = np.flatnonzero(is_first), np.flatnonzero(~is_first)
    order = np.concatenate([once, repeated[: -len(once) % batch_size], everything[whole:]])
    if len(order) == len(source):
        return DistinctImages(source, everything, everything)
    behind = np.arange(len(order) - len(everything[whole:]), len(order))
    return DistinctImages(source, order, np.concatenate([np.searchsorted(once, first), behind]))


class ImageFiles:
    """Image files of a folder, read when they are needed; images of another size are resized.

    Args:
        name: see `ImageSource`.
        folder: where the files are.
        files: (N,) their names inside the folder.

    Raises:
        DataError: a name leads out of the folder.
    """

    def __init__(self, name: str, folder: Path, files: Sequence[str]) -> None:
        from facebones.data.text_lists import leads_out

        self.name = name
        self.folder = folder
        self.files = files
        self._prefix = os.path.join(folder, "")  # noqa: PTH118 (a Path per read takes longer than the read)
        for file in files:
            if "\0" in file or leads_out(file):
                raise DataError(f"{name}: {file!r:.60} leads out of {folder}; name a file within it")

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int, size: int) -> ImageArray:
        """See `ImageSource`."""
        return decode(self.encoded(index), partial(self._what, index), size)

    def encoded(self, index: int) -> bytes:
        """The bytes of a file, before it is aligned.

        Raises:
            DataError: it cannot be read.
        """
        try:
            return read_image_file(self._what(index))
        except OSError as error:
            raise self._missing(index, error) from error

    def fingerprint(self) -> str:
        """See `ImageSource`: a digest of names and sizes in bytes, without reading the files."""
        return self._digest(b"")

    def _digest(self, more: bytes) -> str:
        digest = hashlib.sha256(more)
        for index, file in enumerate(self.files):
            try:
                size = os.stat(self._prefix + file).st_size  # noqa: PTH116 (half the time of a Path)
            except OSError as error:
                raise self._missing(index, error) from error
            digest.update(os.fsencode(f"{file}\0{size}\0"))
        return digest.hexdigest()

    def _what(self, index: int) -> str:
        return self._prefix + self.files[index]

    def _missing(self, index: int, error: OSError) -> DataError:
        return DataError(f"{self._what(index)}: cannot be read: {error.strerror}; restore it from its source")


class LooseCrops(ImageFiles):
    """Face photos in a folder with five landmarks each, aligned to the reference when they are read.

    Args:
        name: see `ImageSource`.
        folder: where the photos are.
        files: (N,) their names inside the folder.
        landmarks_Nx5x2: (N, 5, 2) x, y in pixels of the photo, in the order of `preprocessing.REFERENCE`.

    Raises:
        DataError: a name leads out of the folder, or landmarks are unusable (not finite, or all in one place).
        ValueError: the landmarks do not have the shape (N, 5, 2).
    """

    def __init__(
        self, name: str, folder: Path, files: Sequence[str], landmarks_Nx5x2: npt.NDArray[np.floating[Any]]
    ) -> None:
        from facebones.data.preprocessing import REFERENCE, similarity_transforms

        if landmarks_Nx5x2.shape != (len(files), 5, 2):
            raise ValueError(f"landmarks have shape {landmarks_Nx5x2.shape} for {len(files)} files; give (N, 5, 2)")
        super().__init__(name, folder, files)
        self._landmarks = np.ascontiguousarray(landmarks_Nx5x2, dtype=np.float64)
        # All at once: one by one takes a seventh of the reading time, and finds a broken one hours later.
        self._transforms = similarity_transforms(self._landmarks, REFERENCE, self._what)

    def read(self, index: int, size: int) -> ImageArray:
        """See `ImageSource`."""
        from facebones.data.preprocessing import ALIGNED_SIZE, warp

        photo = decode(self.encoded(index), partial(self._what, index))
        return warp(photo, self._transforms[index] * (size / ALIGNED_SIZE), size)

    def fingerprint(self) -> str:
        """See `ImageSource`: a digest of names, sizes in bytes and landmarks, without reading the photos."""
        return self._digest(self._landmarks.tobytes())


def read_batches(
    source: ImageSource, starts: Iterable[int], batch_size: int, size: int, workers: int
) -> Generator[npt.NDArray[np.uint8]]:
    """Yield batches of images; threads read a few batches ahead.

    Threads are as fast as processes here: OpenCV decodes and warps without Python's lock. Its own threads are off until
    the generator ends or is closed.

    Args:
        source: N images.
        starts: the first image of each batch.
        batch_size: images per batch; a batch at the end of the source has the rest.
        size: height and width, pixels.
        workers: threads.

    Yields:
        (B, size, size, 3) uint8, RGB.

    Raises:
        DataError: an image cannot be read.
    """

    def read_into(batch: npt.NDArray[np.uint8], start: int, chunk: range) -> None:
        for place in chunk:
            batch[place] = source.read(start + place, size)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="reader")
    waiting: deque[tuple[npt.NDArray[np.uint8], list[Future[None]]]] = deque()
    ahead = 1 + -(-2 * workers * CHUNK // batch_size)  # every thread has work while the caller embeds a batch
    with single_threaded_opencv():
        try:
            for start in starts:
                batch = np.empty((min(batch_size, len(source) - start), size, size, 3), dtype=np.uint8)
                chunks = [range(len(batch))[place : place + CHUNK] for place in range(0, len(batch), CHUNK)]
                waiting.append((batch, [pool.submit(read_into, batch, start, chunk) for chunk in chunks]))
                if len(waiting) > ahead:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _finished(batch: npt.NDArray[np.uint8], parts: list[Future[None]]) -> npt.NDArray[np.uint8]:
    for part in parts:
        part.result()
    return batch
