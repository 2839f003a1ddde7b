"""The head of a synthetic person: a coarse surface in three dimensions, on which all features lie."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facebones.synthetic.drawing import Points, smooth
from facebones.synthetic.identity import Identity

Array = npt.NDArray[np.float64]

SIDES = (-1.0, 1.0)
COSINE, SINE = (wave(np.linspace(0, 2 * np.pi, 16, endpoint=False)) for wave in (np.cos, np.sin))
EYE_LIFT = -4.0
SMILE_RISE = 2.8  # of the corners of the mouth
PROFILE_STEP = 0.25
PROFILE_HEIGHTS = np.arange(-70, 90, PROFILE_STEP)
# How far the rows of the surface rise if the head is widened by 1: the crown, and the chin downwards.
RISE = np.array((-1, -1, -0.85, -0.6, -0.25, 0, 0, 0, 0, 0.1, 0.5, 0.9, 1))


@dataclass(frozen=True, kw_only=True)
class Expression:
    """Expression of a face in one image; lengths as in `Identity`."""

    mouth_open: float
    smile: float  # -1 ... 1.5
    brow_raise: float
    lids: float  # 0 closed ... 1 open
    gaze: tuple[float, float]


class Head:
    """The surface of a person's head with an expression.

    At each height, the head seen from above is half an ellipse with a half width, a depth and a centre.
    """

    def __init__(self, identity: Identity, expression: Expression) -> None:
        self.identity, self.expression = identity, expression
        one = identity
        self.chin_y = one.chin_y + 0.7 * expression.mouth_open
        forehead, cheek, jaw, chin = one.forehead_width, one.cheek_width, one.jaw_width, one.chin_width
        below = self.chin_y - one.mouth_y
        rows = (  # height, half width, depth, centre
            (-68, 0.16 * forehead, 6, 0),
            (-64, 0.45 * forehead, 18, 0),
            (-56, 0.76 * forehead, 29, 0),
            (-44, 0.93 * forehead, 37, 0),
            (-26, forehead, 42, 0),
            (-8, 0.45 * forehead + 0.55 * cheek, 43, 0),
            (8, cheek, 42, 1),
            (one.mouth_y - 12, 0.66 * cheek + 0.34 * jaw, 37, 4),
            (one.mouth_y + 1, jaw, 31, 8),
            (one.mouth_y + 0.42 * below, 0.6 * jaw + 0.4 * chin, 24, 13),
            (one.mouth_y + 0.76 * below, 0.94 * chin, 16, 19),
            (one.mouth_y + 0.94 * below, 0.58 * chin, 10, 23),
            (self.chin_y, 0.2 * chin, 8, 24),
        )
        self._heights, *columns = np.array(rows, dtype=float).T
        self._widths, self._depths, self._centres = columns
        self._profile = np.stack([np.interp(PROFILE_HEIGHTS, self._heights, row) for row in columns], axis=1)
        self._outlines: dict[tuple[float, float], Points] = {}

    def on_surface(self, x: Array | float, y: Array | float, lift: Array | float = 0.0) -> Points:
        """Points (..., 3) of the surface at x, y, lifted towards the camera; beyond its edge, points of its rim."""
        rows = np.asarray((y - PROFILE_HEIGHTS[0]) / PROFILE_STEP).astype(np.intp)
        profile = self._profile.take(rows, axis=0, mode="clip")
        across = x / profile[..., 0]
        points = np.empty((*across.shape, 3))
        points[..., 0] = x
        points[..., 1] = y
        points[..., 2] = profile[..., 2] + profile[..., 1] * np.sqrt(np.maximum(1 - across * across, 0)) + lift
        return points

    def landmarks(self) -> Points:
        """Eyes, nose tip and mouth corners (5, 3), left in the image first."""
        one = self.identity
        corners = self._mouth_corners()
        tip = self.on_surface(0.0, one.nose_y, one.nose_depth)
        return np.vstack((self.on_surface(np.array((-one.eye_x, one.eye_x)), 0.0, EYE_LIFT), tip[None], corners))

    def outline(self, yaw: float, grow: float = 0.0) -> Points:
        """Silhouette (104, 3) of the head turned by `yaw`, widened by `grow`: down the right, up the left."""
        if (yaw, grow) not in self._outlines:
            width, depth = self._widths + grow, self._depths + grow
            reach = np.hypot(width * np.cos(yaw), depth * np.sin(yaw))
            x, z = width**2 * np.cos(yaw) / reach, depth**2 * np.sin(yaw) / reach
            y = self._heights + grow * RISE
            controls = np.empty((2 * len(y), 3))
            controls[: len(y), 0], controls[: len(y), 1], controls[: len(y), 2] = x, y, self._centres + z
            left = controls[: len(y) - 1 : -1]
            left[:, 0], left[:, 1], left[:, 2] = -x, y, self._centres - z
            self._outlines[yaw, grow] = smooth(controls)
        return self._outlines[yaw, grow]

    def _mouth_corners(self) -> Points:
        half, y = self.mouth_half_width, self.identity.mouth_y - SMILE_RISE * self.expression.smile
        return self.on_surface(np.array((-half, half)), y + 0.3 * self.expression.mouth_open)

    @property
    def mouth_half_width(self) -> float:
        """Half the width of the mouth, including the effect of a smile."""
        return self.identity.mouth_width * (1 + 0.14 * self.expression.smile) - 0.25 * self.expression.mouth_open


def ellipse(x: float, y: float, width: float, height: float) -> tuple[Array, Array]:
    """Return x and y of 16 points of an ellipse with these half axes."""
    return x + width * COSINE, y + height * SINE


def at_depth(x: Array, y: Array, z: float) -> Points:
    """Return the points (N, 3) of a plane across the line of sight of an unturned head."""
    points = np.empty((len(x), 3))
    points[:, 0], points[:, 1], points[:, 2] = x, y, z
    return points
