"""Training data, verification pairs and synthetic faces, in the formats of the field.

OpenCV is set up here, before any module of this package uses it: it reads its limits when it is imported, and its own
threads do not survive a fork (a data worker that inherits them hangs). The work is spread over processes and threads of
ours.
"""

import os
import sys

# A stranger's 20 kB PNG can claim a gigapixel.
MOST_PIXELS = 2**26
_LIMIT = "OPENCV_IO_MAX_IMAGE_PIXELS"
# Where others imported OpenCV first, a limit comes too late for it, and `images.decode` has to look by itself.
OPENCV_KEEPS_LIMIT = _LIMIT in os.environ or "cv2" not in sys.modules
os.environ.setdefault(_LIMIT, str(MOST_PIXELS))

import cv2  # noqa: E402 - it reads its limits here

cv2.setNumThreads(0)
