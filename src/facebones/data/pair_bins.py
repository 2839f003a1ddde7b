"""Verification sets: InsightFace's `.bin` files, pickles of images and labels."""

import hashlib
import mmap
import os
import pickle
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import numpy.typing as npt

from facebones.data.images import MOST_PIXELS, decoded_shape, has_colours, image_suffix, uncompressed
from facebones.data.safe_pickle import PickledArray, PickledFile, read_pickle
from facebones.errors import DataError, counted
from facebones.system.regular_files import open_regular

PixelOrder = Literal["bgr", "rgb"]
LEAST_BYTES = 64  # of an image in an array of images: smaller ones would take more memory than the file


@dataclass(frozen=True)
class PairSet:
    """Pairs of face images, each of the same person or of two.

    Attributes:
        name: the set's name, such as "lfw".
        images: 2P encoded images; pair k is images 2k and 2k + 1.
        is_same: (P,) bool, True for a genuine pair.
        path: the file that the set was read from.
        notes: messages for the user about what was read.
        names: of M different images, such as "Ann_Lee/Ann_Lee_0001.jpg"; None where images have no names.
        name_of: (2P,) the place in `names` of each image; None likewise.
    """

    name: str
    images: Sequence[bytes]
    is_same: npt.NDArray[np.bool_]
    path: Path | None = None
    notes: tuple[str, ...] = ()
    names: Sequence[str] | None = None
    name_of: npt.NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.is_same)

    def digest(self) -> str:
        """SHA-256 of the labels and all images, in their order: the name in the environment.json of a run."""
        digest = hashlib.sha256(self.is_same.tobytes())
        for image in self.images:
            digest.update(hashlib.sha256(image).digest())
        return digest.hexdigest()


def read_pairs(path: str | os.PathLike[str], pixel_order: PixelOrder | None = None) -> PairSet:
    """Read a `.bin` file that Python 2 or 3 wrote, without running any code in it.

    The images are encoded, as strings, bytes, byte arrays, `io.BytesIO` or uint8 arrays, in a list or an array; or they
    are decoded pixels (uint8, (H, W, 3), (3, H, W) or (H, W), or a batch of one of these), which become BMP images,
    with a note. The labels are True and False, 1 and 0, or 1 and -1, as integers or floats.

    Args:
        path: the file.
        pixel_order: order of the channels of decoded pixels; None is "bgr", that of OpenCV.

    Raises:
        DataError: the file is missing, is not a pickle of `(images, is_same)`, or asks for more than plain data; or an
            order is given, and no image is decoded pixels in colour.
    """
    path = Path(path)
    content = _pickled(path)
    if isinstance(content, PickledArray) and content.objects is not None:
        content = content.objects
    if not isinstance(content, list | tuple) or len(content) != 2:
        _refuse(path, f"holds {_kind(content)} instead of a pair (images, is_same)")
    images, same = _listed_images(path, content[0]), _booleans(path, content[1])
    for image in images:
        _leave_batch(image)
    if not images:
        _refuse(path, "holds no image")
    if len(images) % 2:
        _refuse(path, f"{counted(len(images), 'image')}, an odd number; each pair needs two")
    if len(images) != 2 * len(same):
        _refuse(path, f"{counted(len(images), 'image')} for {counted(len(same), 'pair')}; each pair needs two images")
    # A small file can refer to one image a million times: convert it once.
    converted: dict[int, bytes] = {}
    pixels: dict[int, bool] = {}  # whether decoded pixels have colours
    for index, image in enumerate(images):
        if id(image) not in converted:
            converted[id(image)] = _image(path, index, image, pixel_order or "bgr")
            if isinstance(image, PickledArray) and _is_pixels(image):
                pixels[id(image)] = has_colours(image.values.shape)
    counts = Counter(pixels[id(image)] for image in images if id(image) in pixels)
    if pixel_order is not None and not counts[True]:
        raise DataError(f"{path}: no image is decoded pixels in colour, so --pixel-order changes nothing; leave it out")
    notes = _pixels_notes(path, counts[True], counts[False], pixel_order or "bgr")
    return PairSet(path.stem, [converted[id(image)] for image in images], same, path, notes)


def distinct(images: Sequence[bytes]) -> list[bytes]:
    """The images that are different objects: the same one may stand in many pairs."""
    return list({id(image): image for image in images}.values())


def write_pairs(path: str | os.PathLike[str], images: Sequence[bytes], is_same: Sequence[bool] | npt.ArrayLike) -> None:
    """Write a `.bin` file that `pickle.load` reads as a list of bytes and a list of booleans.

    Args:
        path: the file; it appears when it is complete.
        images: 2P encoded images.
        is_same: P booleans.

    Raises:
        DataError: there are not two images for each boolean.
        RunError, ConfigError: the file cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "pairs.bin"
    >>> write_pairs(path, [b"one", b"another"], [True])
    >>> read_pairs(path).images
    [b'one', b'another']
    """
    from facebones.system.files import atomic_write

    same = [bool(value) for value in np.asarray(is_same)]
    if not same or len(images) != 2 * len(same):
        raise DataError(
            f"{path}: {counted(len(images), 'image')} for {counted(len(same), 'pair')}; each pair needs two images"
        )
    with atomic_write(path) as file:
        pickle.dump(([bytes(image) for image in images], same), file, protocol=4)


def _pickled(path: Path) -> object:
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                _refuse(path, "the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                try:
                    return read_pickle(content, str(path))
                except DataError as error:
                    from facebones.system.files import stand_in  # here: a sound file does not need it

                    if instead := stand_in(path):
                        raise DataError(f"{path}: {instead}") from error
                    raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check the path") from error


def _listed_images(path: Path, images: object) -> list[object] | tuple[object, ...]:
    """The images as a list: of an array of objects or of texts its elements, of an array of pixels its rows."""
    if isinstance(images, list | tuple):
        return images
    if not isinstance(images, PickledArray):
        _refuse(path, f"the images are {_kind(images)} instead of a list")
    values = images.values
    if images.objects is not None or (values.dtype.kind == "S" and values.itemsize >= LEAST_BYTES):
        return images.to_list()
    if values.dtype != np.uint8 or values.ndim < 2 or values.nbytes < LEAST_BYTES * len(values):
        _refuse(path, f"the images are {_kind(images)}, shape {values.shape}, instead of a list")
    return [PickledArray(row) for row in values]


def _booleans(path: Path, values: object) -> npt.NDArray[np.bool_]:
    """Convert a list or array of booleans, of 0 and 1, or of -1 and 1; whole or floating point."""
    if isinstance(values, PickledArray):
        values = values.to_list()
    if not isinstance(values, list | tuple):
        _refuse(path, f"is_same is {_kind(values)} instead of a list")
    allowed = (-1, 1) if -1 in values and 0 not in values else (0, 1)
    for index, value in enumerate(values):
        if not isinstance(value, int | float) or value not in allowed:
            shown = value if isinstance(value, int | float) else _kind(value)
            _refuse(path, f"is_same, pair {index}: {shown} instead of True or False")
    return np.array([value == 1 for value in values], dtype=np.bool_)


def _image(path: Path, index: int, image: object, pixel_order: PixelOrder) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, PickledFile):
        return image.content
    if isinstance(image, PickledArray) and image.objects is None and image.values.dtype == np.uint8:
        if image.values.ndim > 3:
            _refuse(path, f"image {index} has shape {image.values.shape}, several images in one")
        if not _is_pixels(image):
            return image.values.tobytes()
        if image.values.size > 4 * MOST_PIXELS:
            _refuse(path, f"image {index} has shape {image.values.shape}, more than {MOST_PIXELS} pixels")
        return uncompressed(image.values, pixel_order)
    if isinstance(image, str):
        # Bytes of Python 2 that were read as latin-1 and saved again: each character is a byte.
        try:
            return image.encode("latin-1")
        except UnicodeEncodeError:
            pass
    _refuse(path, f"image {index} is {_kind(image)} instead of bytes")


def _leave_batch(image: object) -> None:
    """Drop the first axis of pixels in a batch of one: (1, H, W, 3) or (1, 3, H, W), in place."""
    if isinstance(image, PickledArray) and image.values.ndim == 4 and len(image.values) == 1:
        image.values = image.values[0]


def _is_pixels(image: object) -> bool:
    """Whether an image is decoded: an array in the shape of an image; one without channels might also be a file."""
    if not isinstance(image, PickledArray) or image.objects is not None or decoded_shape(image.values.shape) is None:
        return False
    if image.values.ndim == 3:  # whatever its first pixel is: some begin as JPEG and BMP files do
        return True
    return image_suffix(image.values.ravel()[:12].tobytes()) is None


def _pixels_notes(path: Path, coloured: int, grey: int, order: PixelOrder) -> tuple[str, ...]:
    """How many images are decoded pixels, and in which order their channels were taken."""
    taken = {"bgr": "BGR, the order of OpenCV", "rgb": "RGB"}[order]
    other = "rgb" if order == "bgr" else "bgr"
    shown = shlex.quote(str(path))
    notes = []
    if coloured:
        notes.append(
            f"{path}: {_images_are(coloured)} decoded pixels, taken as {taken}; if faces look blue in `facebones data"
            f" inspect {shown} --output sheet.png`, give --pixel-order {other} to `facebones data convert"
            f" {shown} NEW.bin`"
        )
    if grey:
        notes.append(f"{path}: {_images_are(grey)} decoded grey pixels")
    return tuple(notes)


def _images_are(count: int) -> str:
    return "1 image is" if count == 1 else f"{count} images are"


def _refuse(path: Path, reason: str) -> NoReturn:
    raise DataError(f"{path}: {reason}; not a verification set, or a broken one")


def _kind(value: object) -> str:
    if isinstance(value, PickledArray):
        return f"a numpy array of {'objects' if value.objects is not None else value.values.dtype}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}" if value is not None else "None"
