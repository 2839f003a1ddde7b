"""Draw eyes, brows, nose and mouth on a head."""

import numpy as np

from facebones.synthetic.drawing import (
    NEUTRAL,
    NEUTRAL_RGB,
    Canvas,
    Points,
    Relief,
    View,
    between,
    grey,
    mixed,
    shaded,
    smooth,
)
from facebones.synthetic.head import COSINE, EYE_LIFT, SIDES, SINE, SMILE_RISE, Head
from facebones.synthetic.identity import RGB

BOTH = np.array(SIDES)[:, None]

ACROSS = np.linspace(-1, 1, 9)
EYE_WHITE = (226, 219, 212)
EYE_SHADE = (124, 112, 108)  # of the upper lid
IRIS_LIGHT, PUPIL, GLINT = (236, 214, 170), (20, 17, 17), (246, 246, 244)
LASHES = (38, 28, 26)
NO_CREASE = 0.25  # eye_crease up to which the upper lid has no fold
BROWN = (58, 42, 34)
MOUTH_INSIDE = (84, 38, 38)
TEETH = (226, 219, 207)
TURNED = 0.3  # yaw from which the nose hides a part of the cheek


def draw_features(canvas: Canvas, relief: Relief, view: View, head: Head) -> None:
    """Draw eyes, brows, nose and mouth."""
    _draw_mouth(canvas, relief, view, head)
    _draw_eyes(canvas, relief, view, head)
    _draw_brows(canvas, view, head)
    _draw_nose(canvas, relief, view, head)


def lip_colour(skin: RGB, redness: float) -> list[float]:
    """Return the colour of lips: deeper and redder than the skin around them."""
    red, green, blue = skin
    return mixed(skin, (0.84 * red + 6, 0.56 * green + 12, 0.63 * blue + 14), 0.4 + 0.5 * redness)


def _draw_mouth(canvas: Canvas, relief: Relief, view: View, head: Head) -> None:
    one, expression = head.identity, head.expression
    half, gap = head.mouth_half_width, expression.mouth_open
    middle, corner = one.mouth_y, one.mouth_y - SMILE_RISE * expression.smile + 0.3 * gap
    arch = 1 - ACROSS**2
    seam = corner + (middle - corner) * arch
    bow = one.cupid_bow * 1.6 * np.exp(-((ACROSS / 0.2) ** 2)) * min(1.0, one.upper_lip / 2)
    top = seam - (one.upper_lip * arch**0.8 - bow)
    low_seam = seam + gap * arch
    teeth_end = seam + np.minimum(0.6 * gap, 2.6) * arch
    bottom = low_seam + one.lower_lip * arch**0.7
    light = low_seam + 0.45 * one.lower_lip * arch
    curves = view(head.on_surface(half * ACROSS, np.stack((top, seam, teeth_end, low_seam, bottom, light)), 1.0))
    lip = lip_colour(one.skin, one.lip_redness * (0.5 if one.facial_hair in {"beard", "goatee"} else 1.0))
    relief.fine.fill(between(curves[0], curves[4]), NEUTRAL_RGB)  # no beard on the lips
    if gap > 0.5:
        canvas.fill(between(curves[1], curves[3]), MOUTH_INSIDE)
        canvas.fill(between(curves[1][1:-1], curves[2][1:-1]), TEETH)
    canvas.fill(between(curves[0], curves[1]), shaded(lip, 0.22))
    canvas.fill(between(curves[3], curves[4]), lip)
    canvas.line(curves[3] if gap > 0.5 else curves[1], shaded(lip, 0.6), 0.5 * view.scale)
    relief.fine.line(curves[0], grey(NEUTRAL + 14), 0.8 * view.scale)
    relief.fine.line(curves[5, 2:-2], grey(NEUTRAL + 20), 0.35 * one.lower_lip * view.scale)


def _draw_eyes(canvas: Canvas, relief: Relief, view: View, head: Head) -> None:
    """Draw eyeball and iris, then the lids over them: this needs no mask."""
    one, scale = head.identity, view.scale
    gaze_x, gaze_y = head.expression.gaze
    opening = one.eye_height * head.expression.lids
    irises = view(head.on_surface(BOTH[:, 0] * one.eye_x + gaze_x, gaze_y - 0.15 * opening, EYE_LIFT))
    bags = []
    for curves, iris in zip(_eye_curves(view, head, opening), irises, strict=True):
        upper, lower, upper_cover, lower_cover, crease, bag, shade, lash = curves
        canvas.fill(between(upper, lower), mixed(EYE_WHITE, one.skin, 0.16))
        _draw_iris(canvas, iris, scale, head)
        canvas.fill(between(upper, shade), EYE_SHADE)
        canvas.fill(between(upper_cover, upper), shaded(one.skin, 0.1 + 0.12 * one.eye_depth))
        canvas.fill(between(lower, lower_cover), shaded(one.skin, 0.03))
        canvas.line(lower[1:-1], shaded(one.skin, 0.34), 0.5 * scale)
        canvas.fill(between(lash, upper), LASHES)
        if one.eye_crease > NO_CREASE:
            canvas.line(crease[1:-1], shaded(one.skin, 0.15 + 0.35 * one.eye_crease), 0.5 * scale)
        bags.append(bag[1:-1])
    relief.fine.line(np.array(bags), grey(NEUTRAL - 6 - 20 * one.folds), 1.2 * scale)


def _eye_curves(view: View, head: Head, opening: float) -> Points:
    """Curves (2, 8, 9, 2) of both eyes: lids, outer edges of their covers, crease, bag, shade and lashes."""
    one = head.identity
    reach = max(one.iris_size + 1 - 0.9 * opening, 1.4)  # distance that a lid needs to hide the iris
    arch = np.sqrt(1 - ACROSS**2)  # from the inner to the outer corner
    upper = -opening * arch * (1 - 0.12 * ACROSS)
    lower = 0.7 * opening * arch * (1 + 0.15 * ACROSS)
    rows = np.stack(
        (
            upper,
            lower,
            upper - reach * arch**0.5,
            lower + reach * arch**0.5,
            upper - 2.4 * arch - 0.3,
            lower + 4.6 * arch + 1.5 * one.folds,
            upper + min(0.9, 0.5 * opening) * arch,
            upper - (0.6 + 0.55 * np.maximum(ACROSS + 0.4, 0)) * arch**0.5,
        )
    )
    rows += one.eye_slant * one.eye_width * ACROSS
    return view(head.on_surface(BOTH[:, None] * (one.eye_x + one.eye_width * ACROSS), rows, EYE_LIFT))


def _draw_iris(canvas: Canvas, centre: Points, scale: float, head: Head) -> None:
    size, colour = head.identity.iris_size * scale, head.identity.iris_colour
    canvas.dot(centre, size, shaded(colour, 0.6))
    canvas.dot(centre, 0.84 * size, colour)
    canvas.dot(centre + (0, 0.3 * size), 0.5 * size, mixed(colour, IRIS_LIGHT, 0.22))
    canvas.dot(centre, 0.42 * size, PUPIL)
    canvas.dot(centre + (-0.32 * size, -0.3 * size), 0.6 * scale, GLINT)


def _draw_brows(canvas: Canvas, view: View, head: Head) -> None:
    one = head.identity
    t = np.linspace(-1, 1, 9)  # -1 by the nose, 1 by the temple
    x = one.eye_x * 1.02 + t * one.brow_length
    rise = one.brow_arch * (1 - (t - 0.3) ** 2) + head.expression.brow_raise
    y = -one.brow_gap - rise + t * one.brow_slant * one.brow_length
    thickness = one.brow_thickness * np.clip(1.1 - 0.6 * np.abs(t + 0.3), 0.12, 1)
    rows = np.stack((y - thickness, y + thickness, y - 1.25 * thickness - 0.2))
    edges = view(head.on_surface(BOTH[:, None] * x, rows))  # (2, 3, 9, 2)
    dark = mixed(shaded(one.hair.colour, 0.3), BROWN, 0.35)
    for upper, lower, _ in edges:
        canvas.fill(between(upper, lower), mixed(dark, one.skin, 0.38))
    roots, tips = 0.75 * edges[:, 1, :-1] + 0.25 * edges[:, 0, :-1], edges[:, 2, 1:]
    canvas.line(np.stack((roots, tips), axis=2).reshape(-1, 2, 2), mixed(dark, one.skin, 0.12), 0.5 * view.scale)


def _draw_nose(canvas: Canvas, relief: Relief, view: View, head: Head) -> None:
    one = head.identity
    bridge, wing, tip, depth = one.nose_bridge, one.nose_width, one.nose_y, one.nose_depth
    if abs(view.yaw) > TURNED:
        _draw_nose_outline(canvas, view, head)
    ridge_y = np.array((-5, tip * 0.5, tip - 2))
    ridge = head.on_surface(0.0, ridge_y, np.array((1.0, 0.55 * depth, depth)))
    flank_x = np.array((bridge + 1, bridge + 1.5, wing))
    flanks = head.on_surface(BOTH * flank_x, ridge_y + (0, 0, 1), np.array((0, 1, 1.0)))
    edge_x, edge_y = np.array((0.82, 1.05, 1.02, 0.74)) * wing, tip + np.array((-4.5, -2, 1.5, 3.0))
    edges = head.on_surface(BOTH * edge_x, edge_y, 0.25 * depth)
    hole_x, hole_y = wing * (0.43 + 0.22 * COSINE), tip + 2.4 + SINE - 0.08 * wing * COSINE
    holes = view(head.on_surface(BOTH * hole_x, hole_y, 0.5 * depth))
    for side, flank, hole in zip(SIDES, flanks, holes, strict=True):
        relief.fine.fill(view(between(ridge, flank)), grey(NEUTRAL - 15 - 9 * side * np.sign(view.yaw or 1)))
        canvas.fill(hole, shaded(one.skin, 0.72))
    relief.fine.line(view(edges), grey(NEUTRAL - 42), 1.1 * view.scale)
    under = head.on_surface(np.array((-0.8, -0.3, 0, 0.3, 0.8)) * wing, tip + np.array((3.6, 4.2, 4.8, 4.2, 3.6)))
    relief.fine.line(view(under), grey(NEUTRAL - 36), 1.8 * view.scale)
    shown = view(ridge)
    relief.fine.line(shown, grey(NEUTRAL + 15), 2.2 * view.scale)
    relief.fine.dot(shown[-1], 2.2 * view.scale, grey(NEUTRAL + 24))


def _draw_nose_outline(canvas: Canvas, view: View, head: Head) -> None:
    """Draw the tip of the nose, which stands out beyond the wings if the head is turned."""
    one, tip = head.identity, head.identity.nose_y
    bridge, wing = one.nose_bridge, one.nose_width
    x = np.array((0, 0.6 * wing, wing, 0.7 * wing, 1.1 * bridge, bridge))
    y = np.array((tip + 3.4, tip + 2.6, tip - 0.5, tip - 6, tip * 0.5, -5))
    out = np.array((0.7, 0.3, 0.1, 0.2, 0.35, 0)) * one.nose_depth
    mirrored = [np.concatenate((values, sign * values[:0:-1])) for values, sign in ((x, -1), (y, 1), (out, 1))]
    canvas.fill(view(smooth(head.on_surface(*mirrored))), shaded(one.skin, 0.05))
