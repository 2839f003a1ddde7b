"""Draw a synthetic person, from back to front."""

import numpy as np

from facebones.synthetic.drawing import NEUTRAL, NEUTRAL_RGB, WHITE, Canvas, Relief, View, grey, shaded, smooth
from facebones.synthetic.features import draw_features
from facebones.synthetic.hair import draw_back_hair, draw_beard_behind, draw_facial_hair, draw_front_hair, is_long
from facebones.synthetic.head import COSINE, SIDES, SINE, Head, at_depth, ellipse
from facebones.synthetic.identity import Glasses

BLUSH = (NEUTRAL + 4, NEUTRAL - 5, NEUTRAL - 4)


def draw_neck(canvas: Canvas, relief: Relief, view: View, head: Head) -> None:
    """Draw what stands behind face and clothes: hair and neck, in the shadow of the chin."""
    one = head.identity
    draw_back_hair(canvas, view, head)
    neck = 0.7 * one.jaw_width
    x = np.array((-0.98, -0.96, -1.0, -1.25, -2.2, 2.2, 1.25, 1.0, 0.96, 0.98)) * neck
    y = np.array((26, 56, 74, 88, 104, 104, 88, 74, 56, 26.0))
    canvas.fill(view(at_depth(x, y, -10.0)), shaded(one.skin, 0.14))
    x, y = ellipse(0, head.chin_y - 6, 1.1 * neck, 24)
    relief.broad.fill(view(at_depth(x, y, -4.0)), grey(NEUTRAL - 44))


def draw_head(canvas: Canvas, relief: Relief, view: View, head: Head, wears_glasses: bool) -> None:
    """Draw the head on `canvas`, and its soft light and shade on `relief`."""
    identity = head.identity
    _draw_ears(canvas, view, head)
    draw_beard_behind(canvas, view, head)
    outline = view(head.outline(view.yaw))
    canvas.fill(outline, identity.skin)
    relief.form.fill(outline, WHITE)
    relief.broad.fill(outline, NEUTRAL_RGB)  # the shadow of the chin ends here
    middle = outline.mean(axis=0)
    relief.broad.line(middle + 0.89 * (outline - middle), grey(NEUTRAL - 12), 5 * view.scale, closed=True)
    _draw_skull(relief, view, head)
    draw_facial_hair(canvas, relief, view, head)
    draw_features(canvas, relief, view, head)
    if identity.marks:
        x, y, radii, darkness = np.array(identity.marks).T
        for place, radius, dark in zip(view(head.on_surface(x, y)), radii * view.scale, darkness.tolist(), strict=True):
            canvas.dot(place, radius, shaded(identity.skin, dark))
    draw_front_hair(canvas, relief, view, head)
    if identity.glasses is not None and wears_glasses:
        _draw_glasses(canvas, view, head, identity.glasses)


def _draw_ears(canvas: Canvas, view: View, head: Head) -> None:
    one = head.identity
    if is_long(one.hair):
        return  # the hair hides them
    for side in SIDES:
        middle = side * (one.cheek_width + 0.35 * one.ear_out - 1)
        x, y = ellipse(middle, 5, 3 + 0.8 * one.ear_out, one.ear_size)
        canvas.fill(view(at_depth(x + side * 0.1 * (5 - y), y, -4.0)), shaded(one.skin, 0.14))
        x, y = ellipse(middle + side * 0.8, 4, 1 + 0.45 * one.ear_out, 0.62 * one.ear_size)
        canvas.fill(view(at_depth(x + side * 0.1 * (5 - y), y, -4.0)), shaded(one.skin, 0.32))


def _draw_skull(relief: Relief, view: View, head: Head) -> None:
    """Draw light and shade of the skull: forehead, sockets, cheekbones, folds, chin."""
    one, expression = head.identity, head.expression
    x, below_lip = one.eye_x, one.mouth_y + one.lower_lip + 4 + 0.7 * expression.mouth_open
    socket, cheekbone, hollow = -14 - 22 * one.eye_depth, 8 + 14 * one.cheekbones, -4 - 20 * one.cheekbones
    patches = np.array(
        [  # x, y, half width, half height, light
            (0, -30, 0.5 * one.forehead_width, 9, 12),
            (-0.94 * x, -3, 10, 7, socket),
            (0.94 * x, -3, 10, 7, socket),
            (-x - 5, 15, 8.5, 6, cheekbone),
            (x + 5, 15, 8.5, 6, cheekbone),
            (-x - 9, 31, 6, 9, hollow),
            (x + 9, 31, 6, 9, hollow),
            (0, below_lip, one.mouth_width * 0.6, 2.4, -24),
            (0, head.chin_y - 7, one.chin_width * 0.6, 4, 14),
        ]
    )[:, :, None]
    outlines = view(head.on_surface(patches[:, 0] + patches[:, 2] * COSINE, patches[:, 1] + patches[:, 3] * SINE))
    for outline, light in zip(outlines, patches[:, 4, 0].tolist(), strict=True):
        relief.broad.fill(outline, grey(NEUTRAL + light))
    blush_x, blush_y = ellipse(x + 3, 22, 6, 5)
    for outline in view(head.on_surface(np.stack((-blush_x, blush_x)), blush_y)):
        relief.fine.fill(outline, BLUSH)
    fold_x = np.array((one.nose_width + 1, one.nose_width + 5, head.mouth_half_width + 4))
    fold_y = np.array((one.nose_y, one.nose_y + 7, one.mouth_y - 2))
    depth = 6 + 22 * one.folds + 14 * max(0.0, expression.smile)
    relief.fine.line(
        view(head.on_surface(np.stack((-fold_x, fold_x)), fold_y)), grey(NEUTRAL - depth), 1.6 * view.scale
    )


def _draw_glasses(canvas: Canvas, view: View, head: Head, glasses: Glasses) -> None:
    one = head.identity
    height = glasses.size * {"round": 0.95, "square": 0.78, "wide": 0.66}[glasses.shape]
    power = 1.0 if glasses.shape == "round" else 0.6
    for side in SIDES:
        x = side * one.eye_x * 1.03 + glasses.size * np.sign(COSINE) * np.abs(COSINE) ** power
        rim = at_depth(x, 1.5 + height * np.sign(SINE) * np.abs(SINE) ** power, 44.0)
        canvas.line(view(smooth(rim, steps=3)), glasses.colour, glasses.frame * view.scale, closed=True)
        hinge = side * (one.eye_x + glasses.size)
        arm = np.array(((hinge, -1, 44), (side * (one.cheek_width + 1), 0, 12), (side * one.cheek_width, 3, -4)))
        canvas.line(view(arm), glasses.colour, glasses.frame * view.scale)
    gap = max(one.eye_x - glasses.size, 1.0)
    bridge = np.array(((-gap, 0, 44), (0, -1.5, 46), (gap, 0, 44)))
    canvas.line(view(bridge), glasses.colour, glasses.frame * view.scale)
