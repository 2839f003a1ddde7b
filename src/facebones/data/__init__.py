"""Training data, verification pairs and synthetic faces, in the formats of the field.

OpenCV is set up here, before any module of this package uses it: it reads its limits when it is imported, and its own
threads do not survive a fork (a data worker that inherits them hangs). The work is spread over processes and threads of
ours.
"""

import os

# A stranger's 20 kB PNG can claim a gigapixel.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))

import cv2

cv2.setNumThreads(0)
