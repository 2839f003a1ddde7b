"""Draw a synthetic image, aligned or as a loose crop: a pure function of seed, identity number and image number."""

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from facebones.data.images import ImageArray
from facebones.data.preprocessing import ALIGNED_SIZE, REFERENCE
from facebones.synthetic.backdrop import background
from facebones.synthetic.drawing import SUPERSAMPLING, Canvas, Points, Relief, View, rotation, similarity
from facebones.synthetic.face import draw_head, draw_neck
from facebones.synthetic.head import Head
from facebones.synthetic.identity import Identity, draw_identity
from facebones.synthetic.scene import draw_expression, draw_light, draw_pose, expose, photograph, shine
from facebones.synthetic.wear import draw_clothes, draw_occlusion

IDENTITY_ITSELF = 0  # the image number for the features of an identity


@dataclass(frozen=True)
class FaceImage:
    """A drawn face.

    Attributes:
        pixels: uint8 (H, W, 3), RGB.
        landmarks: float32 (5, 2), x and y of eyes, nose tip and mouth corners, left in the image first.
        score: simulated detector score, 0 to 1, lower for turned faces.
        jpeg_quality: JPEG quality of `encoded`.
    """

    pixels: ImageArray
    landmarks: npt.NDArray[np.float32]
    score: float
    jpeg_quality: int

    def encoded(self) -> bytes:
        """Return the image as a JPEG file."""
        bgr = cv2.cvtColor(self.pixels, cv2.COLOR_RGB2BGR)
        return cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, self.jpeg_quality))[1].tobytes()


@lru_cache(maxsize=1024)
def numbered_identity(seed: int, identity: int) -> Identity:
    """Return person number `identity` of a seed."""
    return draw_identity(np.random.default_rng((seed, identity, IDENTITY_ITSELF)))


def image_generator(seed: int, identity: int, image: int) -> np.random.Generator:
    """Return the random generator of one image; the images of a person are numbered from 1."""
    if image <= IDENTITY_ITSELF:
        raise ValueError(f"image number {image}: images are numbered from 1")
    return np.random.default_rng((seed, identity, image))


def draw_face(identity: Identity, rng: np.random.Generator, *, pose: str = "any") -> FaceImage:
    """Draw an aligned face, 112x112, with the remaining error of a five-point aligner.

    Args:
        identity: the person.
        rng: source of everything that differs between two images of the person.
        pose: "frontal", "profile" or "any".
    """
    target = REFERENCE + rng.normal(0, 0.9, (5, 2)) + rng.normal(0, 0.8, 2)
    return _draw(identity, rng, pose, target, (ALIGNED_SIZE, ALIGNED_SIZE))


def draw_loose_crop(identity: Identity, rng: np.random.Generator, *, pose: str = "any") -> FaceImage:
    """Draw a face as in a detector's loose crop: 160 to 200 pixels, turned, not centred.

    The landmarks have the error of a detector.
    """
    width, height = (int(side) for side in rng.integers(160, 201, 2))
    angle, scale = rng.normal(0, 0.2), rng.uniform(0.95, 1.3)
    turn = scale * np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    middle = np.array((width, height)) / 2 + rng.normal(0, 6, 2)
    target = (REFERENCE - REFERENCE.mean(axis=0)) @ turn.T + middle
    drawn = _draw(identity, rng, pose, target, (height, width))
    detected = np.clip(drawn.landmarks + rng.normal(0, 0.7, (5, 2)), 0, (width - 1, height - 1))
    return replace(drawn, landmarks=detected.astype(np.float32))


def _draw(identity: Identity, rng: np.random.Generator, pose: str, target: Points, size: tuple[int, int]) -> FaceImage:
    """Draw a face; a similarity transform fits its five points to `target` (5, 2)."""
    height, width = size
    head = Head(identity, draw_expression(rng))
    view = _camera(head, draw_pose(rng, pose), target)
    light = draw_light(rng)
    canvas = Canvas(background(rng, height * SUPERSAMPLING, width * SUPERSAMPLING))
    relief = Relief(height, width)
    worn = rng.uniform() < identity.glasses.worn if identity.glasses else False
    draw_neck(canvas, relief, view, head)
    draw_clothes(canvas, relief, view, head, rng)
    draw_head(canvas, relief, view, head, worn)
    draw_occlusion(canvas, relief, view, head, rng)
    lit = shine(canvas.averaged(), relief, view, identity.cheek_width, light)
    pixels = photograph(expose(lit, light), rng)
    return FaceImage(
        pixels=pixels,
        landmarks=view(head.landmarks()).astype(np.float32),
        score=float(np.clip(0.99 - 0.3 * abs(np.sin(view.yaw)) - abs(rng.normal(0, 0.03)), 0.3, 1)),
        jpeg_quality=int(rng.integers(60, 97)),
    )


def _camera(head: Head, pose: tuple[float, float, float], target: Points) -> View:
    turned = rotation(*pose)[:2]
    linear, offset = similarity(head.landmarks() @ turned.T, target)
    return View(linear @ turned, offset, yaw=pose[0])
