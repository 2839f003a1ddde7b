"""Draw the head of a synthetic person: a coarse surface in three dimensions, with features on it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facebones.synthetic.drawing import Canvas, Colour, Points, View, smooth
from facebones.synthetic.identity import Glasses, Identity

Array = npt.NDArray[np.float64]

NEUTRAL_RELIEF = 128
SIDES = (-1.0, 1.0)
COSINE, SINE = (wave(np.linspace(0, 2 * np.pi, 16, endpoint=False)) for wave in (np.cos, np.sin))
ACROSS = np.linspace(-1, 1, 9)
EYE_LIFT = -4.0
SHADOW = (0.52, 0.42, 0.42)
PROFILE_STEP = 0.25
PROFILE_HEIGHTS = np.arange(-70, 90, PROFILE_STEP)
STRANDS = ((255, 235, 210), (0, 0, 0))
EYE_WHITE = (226, 220, 214)
MOUTH_INSIDE = (58, 22, 24)
TEETH = (232, 226, 214)


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
        rows = (  # height, half width, depth, centre
            (-66, 0.2 * forehead, 8, 0),
            (-60, 0.5 * forehead, 20, 0),
            (-46, 0.85 * forehead, 36, 0),
            (-22, forehead, 42, 0),
            (8, cheek, 42, 0),
            (one.mouth_y - 6, (cheek + jaw) / 2 + 2, 34, 5),
            (one.mouth_y + 6, jaw, 28, 9),
            (self.chin_y - 4, chin, 15, 20),
            (self.chin_y, 0.5 * chin, 8, 24),
        )
        self._heights, *columns = np.array(rows, dtype=float).T
        self._widths, self._depths, self._centres = columns
        self._profile = np.stack([np.interp(PROFILE_HEIGHTS, self._heights, row) for row in columns], axis=1)

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
        """Points (N, 3) of the silhouette of the head turned by `yaw`, widened by `grow`."""
        width, depth = self._widths + grow, self._depths + grow
        reach = np.hypot(width * np.cos(yaw), depth * np.sin(yaw))
        x, z = width**2 * np.cos(yaw) / reach, depth**2 * np.sin(yaw) / reach
        y = self._heights - grow * np.array((1, 1, 0.6, 0, 0, 0, 0, 0.5, 1))
        right = np.stack((x, y, self._centres + z), axis=1)
        left = np.stack((-x, y, self._centres - z), axis=1)
        return smooth(np.vstack((right, left[::-1])))

    def _mouth_corners(self) -> Points:
        half, y = self.mouth_half_width, self.identity.mouth_y - 2.2 * self.expression.smile
        return self.on_surface(np.array((-half, half)), y + 0.3 * self.expression.mouth_open)

    @property
    def mouth_half_width(self) -> float:
        """Half the width of the mouth, including the effect of a smile."""
        return self.identity.mouth_width * (1 + 0.14 * self.expression.smile) - 0.25 * self.expression.mouth_open


def draw_head(canvas: Canvas, relief: Canvas, view: View, head: Head, wears_glasses: bool) -> None:
    """Draw the head on `canvas`, and its soft light and shade on the grey `relief`, where 128 is neutral."""
    identity = head.identity
    _draw_behind(canvas, view, head)
    canvas.fill(view(head.outline(view.yaw)), identity.skin)
    _draw_relief(relief, view, head)
    _draw_facial_hair(canvas, view, head)
    _draw_mouth(canvas, view, head)
    for side in SIDES:
        _draw_eye(canvas, relief, view, head, side)
        _draw_brow(canvas, view, head, side)
    _draw_nose(canvas, relief, view, head)
    if identity.marks:
        x, y, radii, darkness = np.array(identity.marks).T
        for place, radius, dark in zip(view(head.on_surface(x, y)), radii * view.scale, darkness.tolist(), strict=True):
            canvas.dot(place, radius, _shaded(identity.skin, dark))
    _draw_front_hair(canvas, view, head)
    if identity.glasses is not None and wears_glasses:
        _draw_glasses(canvas, view, head, identity.glasses)


def _shaded(colour: Colour, amount: float) -> list[float]:
    """Darken a colour towards its shadow."""
    return [value * (1 - amount * (1 - shadow)) for value, shadow in zip(colour, SHADOW, strict=True)]


def _mixed(first: Colour, second: Colour, share: float) -> list[float]:
    """Mix two colours, `share` of the second."""
    return [(1 - share) * one + share * other for one, other in zip(first, second, strict=True)]


def _ellipse(x: float, y: float, width: float, height: float) -> tuple[Array, Array]:
    return x + width * COSINE, y + height * SINE


def _between(first: Points, second: Points) -> Points:
    """Outline of the area between two curves (N, 2) of the same direction."""
    return np.concatenate((first, second[::-1]))


def _draw_behind(canvas: Canvas, view: View, head: Head) -> None:
    """Draw the hair behind the head, the neck and the ears."""
    one, hair = head.identity, head.identity.hair
    if hair.volume > 0 and hair.length > 12:
        half = one.cheek_width + 0.9 * hair.volume
        x = np.array((-0.9, -1.05, -1, -0.8, 0.8, 1, 1.05, 0.9)) * half
        y = np.array((-40, 0, hair.length * 0.7, hair.length, hair.length, hair.length * 0.7, 0, -40))
        canvas.fill(view(_curly(smooth(np.stack((x, y, np.full(8, -8.0)), axis=1)), head)), _shaded(hair.colour, 0.3))
    neck = one.jaw_width * 0.8
    corners = np.array(((-neck, 30, -12), (neck, 30, -12), (neck * 1.1, 130, -16), (-neck * 1.1, 130, -16)))
    canvas.fill(view(corners), _shaded(one.skin, 0.35))
    for side in SIDES:
        x, y = _ellipse(side * (one.cheek_width + 0.4 * one.ear_out - 1), 6, 3 + one.ear_out, one.ear_size)
        canvas.fill(view(np.stack((x, y, np.full(len(x), -4.0)), axis=1)), _shaded(one.skin, 0.12))
        x, y = _ellipse(side * (one.cheek_width + 0.6 * one.ear_out), 5, 0.6 * one.ear_out, 0.6 * one.ear_size)
        canvas.fill(view(np.stack((x, y, np.full(len(x), -4.0)), axis=1)), _shaded(one.skin, 0.4))


def _curly(outline: Points, head: Head) -> Points:
    """Roughen an outline (N, 3) with the person's curls."""
    hair = head.identity.hair
    wave = 1 + hair.curl / 45 * np.sin(np.arange(len(outline)) * 2.1 + hair.phase)
    rough: Points = outline * np.stack((wave, wave, np.ones(len(outline))), axis=1)
    return rough


def _draw_relief(relief: Canvas, view: View, head: Head) -> None:
    """Draw light and shade of the skull: sockets, cheekbones, folds, chin."""
    one, expression = head.identity, head.expression
    x, below_lip = one.eye_x, one.mouth_y + one.lower_lip + 5 + 0.7 * expression.mouth_open
    socket, cheekbone, hollow = -8 - 26 * one.eye_depth, 4 + 16 * one.cheekbones, -22 * one.cheekbones
    patches = np.array(
        [  # x, y, half width, half height, light
            (-0.96 * x, -1.5, 9.5, 7.5, socket),
            (0.96 * x, -1.5, 9.5, 7.5, socket),
            (-x - 6, 17, 9, 5.5, cheekbone),
            (x + 6, 17, 9, 5.5, cheekbone),
            (-x - 10, 31, 6, 9, hollow),
            (x + 10, 31, 6, 9, hollow),
            (0, below_lip, one.mouth_width * 0.6, 1.8, -30),
            (0, head.chin_y - 7, one.chin_width * 0.6, 3.5, 14),
        ]
    )[:, :, None]
    outlines = view(head.on_surface(patches[:, 0] + patches[:, 2] * COSINE, patches[:, 1] + patches[:, 3] * SINE))
    for outline, light in zip(outlines, patches[:, 4, 0].tolist(), strict=True):
        relief.fill(outline, NEUTRAL_RELIEF + light)
    fold_x = np.array((one.nose_width + 1, one.nose_width + 5, head.mouth_half_width + 4))
    fold_y = np.array((one.nose_y - 1, one.nose_y + 7, one.mouth_y - 2))
    depth = 12 + 26 * one.folds + 18 * max(0.0, expression.smile)
    for fold in view(head.on_surface(np.stack((-fold_x, fold_x)), fold_y)):
        relief.line(fold, NEUTRAL_RELIEF - depth, 2 * view.scale)


def _draw_facial_hair(canvas: Canvas, view: View, head: Head) -> None:
    one = head.identity
    if one.facial_hair == "none":
        return
    colour = _mixed(one.skin, one.hair.colour, 0.35 if one.facial_hair == "stubble" else 0.8)
    half, mouth = head.mouth_half_width, one.mouth_y
    if one.facial_hair in ("stubble", "beard"):
        rim = head.outline(view.yaw, -0.5)
        below = rim[rim[:, 1] > 8]
        edge_x = np.array((-0.92, -0.86, -0.5, 0, 0.5, 0.86, 0.92)) * one.jaw_width
        edge_y = np.array((8, 26, mouth - 3, mouth - 7, mouth - 3, 26, 8.0))
        edge = smooth(np.stack((edge_x, edge_y), axis=1), closed=False)
        canvas.fill(view(np.vstack((below, head.on_surface(*edge.T)))), colour)
    if one.facial_hair in ("moustache", "goatee", "beard"):
        x = np.array((-half - 2, -half * 0.5, 0, half * 0.5, half + 2, half * 0.5, 0, -half * 0.5))
        y = np.array(
            (mouth + 2, one.nose_y + 7, one.nose_y + 6, one.nose_y + 7, mouth + 2, mouth - 1, mouth - 2, mouth - 1)
        )
        canvas.fill(view(head.on_surface(*smooth(np.stack((x, y), axis=1)).T)), colour)
    if one.facial_hair == "goatee":
        x, y = _ellipse(0, head.chin_y - 5, one.chin_width * 0.75, 8)
        canvas.fill(view(head.on_surface(x, y)), colour)


def _draw_mouth(canvas: Canvas, view: View, head: Head) -> None:
    one, expression = head.identity, head.expression
    half, gap = head.mouth_half_width, expression.mouth_open
    middle, corner = one.mouth_y, one.mouth_y - 2.2 * expression.smile + 0.3 * gap
    arch = 1 - ACROSS**2
    seam = corner + (middle - corner) * arch
    bow = one.cupid_bow * 1.6 * np.exp(-((ACROSS / 0.2) ** 2)) * min(1.0, one.upper_lip / 2)
    top = seam - (one.upper_lip * arch**0.7 - bow)
    low_seam = seam + gap * arch
    teeth_end = seam + np.minimum(0.6 * gap, 2.6) * arch
    bottom = low_seam + one.lower_lip * arch**0.8
    curves = view(head.on_surface(half * ACROSS, np.stack((top, seam, teeth_end, low_seam, bottom)), 1.0))  # (5, 9, 2)
    lip = _mixed(_shaded(one.skin, 0.18), (176, 62, 66), 0.15 + 0.4 * one.lip_redness)
    if gap > 0.5:
        canvas.fill(_between(curves[1], curves[3]), MOUTH_INSIDE)
        canvas.fill(_between(curves[1], curves[2]), TEETH)
    canvas.fill(_between(curves[0], curves[1]), _shaded(lip, 0.18))
    canvas.fill(_between(curves[3], curves[4]), lip)
    canvas.line(curves[1], _shaded(lip, 0.75), 0.5 * view.scale)


def _draw_eye(canvas: Canvas, relief: Canvas, view: View, head: Head, side: float) -> None:
    """Draw eyeball and iris, then the lids over them: this needs no mask."""
    one, expression = head.identity, head.expression
    opening = one.eye_height * expression.lids
    reach = max(one.iris_size + 1 - 0.9 * opening, 1.4)  # distance that a lid needs to hide the iris
    arch = np.sqrt(1 - ACROSS**2)
    lids = np.stack((-opening * arch, 0.75 * opening * arch))
    covers = lids + np.array((-reach, reach))[:, None] * arch**0.5
    creases = lids + np.stack((-2.2 * arch, 5 * arch + 1.5 * one.folds))
    tilt = side * one.eye_slant * one.eye_width * ACROSS
    x = side * one.eye_x + one.eye_width * ACROSS
    curves = view(head.on_surface(x, np.concatenate((lids, covers, creases)) + tilt, EYE_LIFT))  # (6, 9, 2)
    upper, lower, upper_cover, lower_cover, crease, bag = curves
    gaze_x, gaze_y = expression.gaze
    iris = view(head.on_surface(side * one.eye_x + gaze_x, gaze_y - 0.1 * opening, EYE_LIFT))

    canvas.fill(_between(upper, lower), EYE_WHITE)
    canvas.dot(iris, one.iris_size * view.scale, one.iris_colour)
    canvas.dot(iris, 0.45 * one.iris_size * view.scale, (14, 12, 12))
    canvas.dot(iris + (-0.9 * view.scale, -1.0 * view.scale), 0.55 * view.scale, (245, 245, 245))
    canvas.fill(_between(upper_cover, upper), _shaded(one.skin, 0.12 + 0.2 * one.eye_depth))
    canvas.fill(_between(lower, lower_cover), _shaded(one.skin, 0.05))
    canvas.line(upper, (36, 24, 22), 0.9 * view.scale)
    canvas.line(crease, _shaded(one.skin, 0.55), 0.4 * view.scale)
    relief.line(bag, NEUTRAL_RELIEF - 10 - 22 * one.folds, 1.2 * view.scale)


def _draw_brow(canvas: Canvas, view: View, head: Head, side: float) -> None:
    one = head.identity
    t = np.linspace(-1, 1, 7) * side  # -1 by the nose, 1 by the temple
    x = side * one.eye_x * 1.02 + side * t * one.brow_length
    rise = one.brow_arch * (1 - (t - 0.3) ** 2) + head.expression.brow_raise
    y = -one.brow_gap - rise + t * one.brow_slant * one.brow_length
    thickness = one.brow_thickness * np.clip(1.15 - 0.55 * np.abs(t + 0.35), 0.25, 1)
    outline = head.on_surface(np.concatenate((x, x[::-1])), np.concatenate((y - thickness, (y + thickness)[::-1])))
    canvas.fill(view(outline), _mixed(_shaded(one.hair.colour, 0.35), one.skin, 0.2))


def _draw_nose(canvas: Canvas, relief: Canvas, view: View, head: Head) -> None:
    one = head.identity
    bridge, wing, tip = one.nose_bridge, one.nose_width, one.nose_y
    x = np.array(
        (-bridge, bridge, bridge * 1.1, wing * 0.7, wing, wing * 0.6, 0, -wing * 0.6, -wing, -wing * 0.7, -bridge * 1.1)
    )
    y = np.array(
        (-5, -5, tip * 0.5, tip - 6, tip - 0.5, tip + 2.6, tip + 3.4, tip + 2.6, tip - 0.5, tip - 6, tip * 0.5)
    )
    out = np.array((1, 1, 0.35, 0.2, 0.1, 0.3, 0.7, 0.3, 0.1, 0.2, 0.35)) * one.nose_depth
    out[:2] = 1.0
    outline = smooth(head.on_surface(x, y, out))
    if abs(view.yaw) > 0.3:  # the tip stands out beyond the wings
        canvas.fill(view(outline), _shaded(one.skin, 0.06))
    ridge = head.on_surface(
        0.0, np.array((-4, tip * 0.5, tip - 2)), np.array((1.0, 0.55, 1.0)) * (1, one.nose_depth, one.nose_depth)
    )
    for side in SIDES:
        flank_x = side * np.array((bridge + 1, bridge + 1.5, wing))
        flank = head.on_surface(flank_x, np.array((-4, tip * 0.5, tip)), np.array((0, 1, 1.0)))
        relief.fill(view(np.vstack((ridge, flank[::-1]))), NEUTRAL_RELIEF - 30 - 14 * side * np.sign(view.yaw or 1))
        nostril_x, nostril_y = _ellipse(side * wing * 0.45, tip + 2.2, wing * 0.24, 1.1)
        canvas.fill(view(head.on_surface(nostril_x, nostril_y, 0.5 * one.nose_depth)), _shaded(one.skin, 0.95))
        wing_x = side * np.array((0.75, 1.05, 1.0, 0.7)) * wing
        wing_line = head.on_surface(wing_x, tip + np.array((-4.5, -2, 1.5, 2.8)), 0.25 * one.nose_depth)
        canvas.line(view(wing_line), _shaded(one.skin, 0.5), 0.6 * view.scale)
    relief.line(view(ridge), NEUTRAL_RELIEF + 36, 2.4 * view.scale)
    relief.dot(view(ridge[-1]), 2.6 * view.scale, NEUTRAL_RELIEF + 30)
    under = head.on_surface(np.array((-wing, 0, wing)) * 0.7, tip + 4.5)
    relief.line(view(under), NEUTRAL_RELIEF - 34, 1.6 * view.scale)


def _draw_front_hair(canvas: Canvas, view: View, head: Head) -> None:
    """Fill from the outer outline of the hair down to the hairline, and side strands to where they end."""
    one, hair = head.identity, head.identity.hair
    if hair.volume <= 0:
        return
    shell = _curly(head.outline(view.yaw, hair.volume), head)
    rim = head.outline(view.yaw, 0.3)
    side_end = min(hair.length, 10.0)
    half = len(shell) // 2  # an outline runs down the right, then up the left
    right, left = (side[side[:, 1] < side_end] for side in (shell[:half], shell[half:]))
    inner = (rim[:, 1] < side_end) & (rim[:, 1] > hair.line + 8)
    inner_right, inner_left = rim[:half][inner[:half]], rim[half:][inner[half:]]
    t = np.linspace(0.82, -0.82, 9)
    line_y = hair.line - hair.temples * (1 - np.abs(np.abs(t) - 0.55) / 0.55).clip(0) + 8 * np.abs(t) ** 3
    line_y = line_y + hair.peak * np.exp(-((t / 0.16) ** 2))
    line_x = t * one.forehead_width
    fallen = np.sign(hair.parting or 1.0) * (hair.parting - line_x) > 0
    line_y = line_y + np.where(fallen, hair.fringe, 0.25 * hair.fringe)
    hairline = smooth(head.on_surface(line_x, line_y, 1.0), closed=False)
    outline = np.vstack((left, right, inner_right[::-1], hairline, inner_left[::-1]))
    canvas.fill(view(outline), hair.colour)
    _draw_strands(canvas, view, head)


def _draw_strands(canvas: Canvas, view: View, head: Head) -> None:
    """Draw some lighter and darker strands from the parting to the sides."""
    one, hair = head.identity, head.identity.hair
    end = np.linspace(-1, 1, 8)
    x = hair.parting * np.array((0.6, 0.5, 0))[:, None] + one.forehead_width * np.array((0, 0.5, 1))[:, None] * end
    y = np.stack((np.full(8, -62.0), -60 + 8 * abs(end), hair.line - 8 + np.minimum(14 * abs(end), 5)))
    strands = view(smooth(head.on_surface(x.T, y.T - 0.4 * hair.volume, 2.0), closed=False, steps=3))  # (8, 7, 2)
    for number, strand in enumerate(strands):
        canvas.line(strand, _mixed(hair.colour, STRANDS[number % 2], 0.16), 0.8 * view.scale)


def _draw_glasses(canvas: Canvas, view: View, head: Head, glasses: Glasses) -> None:
    one = head.identity
    height = glasses.size * {"round": 0.95, "square": 0.75, "wide": 0.6}[glasses.shape]
    power = 1.0 if glasses.shape == "round" else 0.45
    cos, sin = COSINE, SINE
    for side in SIDES:
        x = side * one.eye_x * 1.03 + glasses.size * np.sign(cos) * np.abs(cos) ** power
        rim = np.stack((x, 1.5 + height * np.sign(sin) * np.abs(sin) ** power, np.full(len(x), 44.0)), axis=1)
        canvas.line(view(rim), glasses.colour, glasses.frame * view.scale, closed=True)
        hinge = side * (one.eye_x + glasses.size)
        arm = np.array(((hinge, -1, 44), (side * (one.cheek_width + 1), 0, 12), (side * one.cheek_width, 3, -4)))
        canvas.line(view(arm), glasses.colour, glasses.frame * view.scale)
    gap = max(one.eye_x - glasses.size, 1.0)
    bridge = np.array(((-gap, 0, 44), (0, -1.5, 46), (gap, 0, 44)))
    canvas.line(view(bridge), glasses.colour, glasses.frame * view.scale)
