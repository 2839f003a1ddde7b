"""From encoded bytes to pixels, with every failure named."""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from facebones.data import MOST_PIXELS, OPENCV_KEEPS_LIMIT
from facebones.data.image_headers import image_size
from facebones.errors import DataError

ImageArray = npt.NDArray[np.uint8]


def decode(encoded: bytes, what: str | Callable[[], str], size: int | None = None) -> ImageArray:
    """Decode a JPEG, PNG, BMP or WebP image to RGB.

    Args:
        encoded: the file's bytes.
        what: how to name the image in an error, such as "train.rec, key 17", or a function that tells: where there are
            millions, names that nobody reads take their time.
        size: height and width of the result; the image is resized (bilinear) where it differs.

    Returns:
        uint8 array (H, W, 3), RGB.

    Raises:
        DataError: the bytes are no image that can be read, or one of more pixels than `data.MOST_PIXELS`.
    """
    buffer = np.frombuffer(encoded, dtype=np.uint8)
    try:
        admitted = buffer.size and (OPENCV_KEEPS_LIMIT or _is_admitted(encoded))
        image = cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB) if admitted else None
    except cv2.error:
        image = None
    if image is None:
        place = what() if callable(what) else what
        raise DataError(f"{place}: no readable image ({buffer.size} bytes); remove it or restore it from the source")
    if size is not None and image.shape[:2] != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.asarray(image, dtype=np.uint8)


def _is_admitted(encoded: bytes) -> bool:
    """Whether an image is of the formats above and small enough; of others nothing here knows the size."""
    size = image_size(encoded)
    return size is not None and size[0] * size[1] <= MOST_PIXELS
