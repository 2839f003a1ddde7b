"""Draw clothes, and what hides a part of the face: sunglasses, a mask, a hat, a hand or a thing held up."""

import numpy as np

from facebones.synthetic.backdrop import tone
from facebones.synthetic.drawing import NEUTRAL, Canvas, Relief, View, grey, mixed, shaded, smooth
from facebones.synthetic.head import SIDES, Array, Head, at_depth

CLOTHES = np.array(
    (
        (232, 229, 222), (200, 196, 188), (64, 72, 90), (46, 50, 60), (40, 39, 42), (112, 124, 138), (146, 162, 174),
        (120, 62, 60), (158, 98, 84), (92, 104, 82), (66, 86, 84), (186, 158, 122), (140, 112, 92), (204, 176, 168),
        (122, 104, 126),
    ),
    dtype=float,
)  # fmt: skip
MASKS = np.array(
    ((178, 202, 214), (234, 234, 230), (48, 50, 56), (150, 172, 160), (206, 190, 182), (92, 104, 122)), dtype=float
)
STRAP = (214, 212, 206)


def draw_clothes(canvas: Canvas, relief: Relief, view: View, head: Head, rng: np.random.Generator) -> None:
    """Draw shoulders in clothes with one of several necklines."""
    one = head.identity
    neck, collar = 0.72 * one.jaw_width, head.chin_y + rng.uniform(15, 23)
    slope, drop = rng.uniform(10, 24), (5.0, 11.0, 30.0)[rng.integers(3)]
    colour = tone(rng, CLOTHES)
    if view(np.array((0, collar - 10, -8.0)))[1] > len(canvas):
        return  # not in the picture
    x = np.array((150, 104, 62, neck + 5, neck + 1, 0.62 * neck, 0))
    y = collar + np.array((60 + slope, 14 + slope, 0.4 * slope + 3, -5, -3, 0.72 * drop, drop))
    line = np.stack((np.append(x, -x[-2::-1]), np.append(y, y[-2::-1])), axis=1)
    edge_x, edge_y = smooth(line, closed=False).T
    edge = at_depth(edge_x, edge_y, -8.0)
    below = np.array(((-150, 260, -8), (150, 260, -8.0)))
    canvas.fill(view(np.vstack((edge, below))), colour)
    neckline = view(edge[len(edge) // 2 - 13 : len(edge) // 2 + 14])
    canvas.line(neckline, mixed(colour, (255, 250, 240), 0.12), 3.2 * view.scale)
    canvas.line(neckline, shaded(colour, 0.3), 0.6 * view.scale)
    for side in SIDES:
        fold = np.array(
            ((side * (neck + 8), collar + 8, -8), (side * 52, collar + 34, -8), (side * 60, collar + 80, -8))
        )
        relief.broad.line(view(smooth(fold, closed=False)), grey(NEUTRAL - 18), 5 * view.scale)


def draw_occlusion(canvas: Canvas, relief: Relief, view: View, head: Head, rng: np.random.Generator) -> None:
    """Occlude the face in about a sixth of the images: by sunglasses, a mask, a hat, a hand or another object."""
    kind = rng.integers(0, 30)
    if kind == 0:
        _draw_sunglasses(canvas, view, head, rng)
    elif kind == 1:
        _draw_mask(canvas, relief, view, head, tone(rng, MASKS))
    elif kind == 2:
        _draw_hat(canvas, relief, view, head, rng)
    elif kind in {3, 4}:
        _draw_hand(canvas, view, head, rng)
    elif kind == 5:
        _draw_thing(canvas, view, rng)


def _draw_sunglasses(canvas: Canvas, view: View, head: Head, rng: np.random.Generator) -> None:
    around = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    dark, eye = tone(rng, CLOTHES) * 0.16 + 26, head.identity.eye_x
    for side in SIDES:
        x = side * eye * 1.04 + 13.5 * np.sign(np.cos(around)) * np.abs(np.cos(around)) ** 0.7
        lens = at_depth(x, 2.5 + 10 * np.sign(np.sin(around)) * np.abs(np.sin(around)) ** 0.7, 44.0)
        canvas.fill(view(lens), dark)
        upper = lens * (0.9, 0.75, 1) + (0.1 * side * eye, 0, 0)
        canvas.fill(view(upper[8:]), dark * 1.35 + 8)
        canvas.line(view(lens), dark * 0.6, 1.4 * view.scale, closed=True)
    width = head.identity.cheek_width
    top = np.array(
        (
            (-width - 1, 0, 0),
            (-eye - 12, -2, 40),
            (-4, -1.5, 46),
            (4, -1.5, 46),
            (eye + 12, -2, 40),
            (width + 1, 0, 0.0),
        )
    )
    canvas.line(view(top), dark * 0.6, 1.6 * view.scale)


def _draw_mask(canvas: Canvas, relief: Relief, view: View, head: Head, colour: Array) -> None:
    one = head.identity
    cheek, jaw, chin, top = 0.86 * one.cheek_width, 0.9 * one.jaw_width, head.chin_y, 0.62 * one.nose_y
    x = np.array((0, 0.3, 0.75, 1)) * cheek
    right_x = np.concatenate((x, np.array((1.0, 0.72, 0.3)) * jaw))
    right_y = np.array((top - 4, top - 1, top + 5, top + 9, one.mouth_y + 4, chin - 2, chin + 5))
    right_z = np.array((54, 48, 28, 10, 10, 26, 36))
    right = np.stack((right_x, right_y, right_z), axis=1)
    outline = view(smooth(np.vstack((right, (right * (-1, 1, 1))[:0:-1]))))
    for side in SIDES:
        for start, end in ((top + 9, -2), (one.mouth_y + 4, 14)):
            loop = np.array(((side * 0.97 * cheek, start, 10), (side * one.cheek_width, end, -4.0)))
            canvas.line(view(loop), STRAP, 0.8 * view.scale)
    canvas.fill(outline, colour)
    relief.fine.fill(outline, grey(NEUTRAL))
    relief.broad.fill(outline, grey(NEUTRAL + 4))
    relief.broad.line(outline, grey(NEUTRAL - 18), 3 * view.scale, closed=True)
    canvas.line(outline, shaded(colour, 0.18), 0.6 * view.scale, closed=True)
    for share in (0.3, 0.5, 0.7):
        y = top + share * (chin - top)
        pleat = np.array(
            (
                (-0.86 * jaw, y - 2, 14),
                (-0.4 * jaw, y + 1, 38),
                (0, y + 2, 48),
                (0.4 * jaw, y + 1, 38),
                (0.86 * jaw, y - 2, 14.0),
            )
        )
        canvas.line(view(smooth(pleat, closed=False)), shaded(colour, 0.2), 0.6 * view.scale)


def _draw_hat(canvas: Canvas, relief: Relief, view: View, head: Head, rng: np.random.Generator) -> None:
    """Draw a knitted hat, or a cap with a brim."""
    brim, colour = rng.uniform(-33, -24), tone(rng, CLOTHES)
    outline = head.outline(view.yaw, head.identity.hair.volume * 0.5 + 4)
    half, above = len(outline) // 2, outline[:, 1] < brim
    left, right = outline[half:][above[half:]], outline[:half][above[:half]]
    x = np.linspace(right[-1, 0], left[0, 0], 9)
    bow = 5 * (1 - np.linspace(-1, 1, 9) ** 2)
    edge = head.on_surface(x * 0.98, brim - 3 + bow, 5.0)
    canvas.fill(view(np.vstack((left, right, edge))), colour)
    relief.broad.line(view(edge + (0, 6, 0)), grey(NEUTRAL - 34), 5 * view.scale)
    if rng.uniform() < 0.5:
        ribs = np.stack((edge + (0, -16, 0), edge), axis=1)
        band = np.vstack((edge, (edge + (0, -14, 0))[::-1]))
        canvas.fill(view(band), shaded(colour, 0.12))
        canvas.line(view(ribs), shaded(colour, 0.34), 0.8 * view.scale)
    else:
        front = head.on_surface(x * 0.94, brim - 4 + 2.6 * bow, 16.0)
        canvas.fill(view(np.vstack((edge, front[::-1]))), shaded(colour, 0.3))
        canvas.line(view(front), shaded(colour, 0.5), 0.8 * view.scale)


def _draw_hand(canvas: Canvas, view: View, head: Head, rng: np.random.Generator) -> None:
    """Draw fingers of the person's own hand, from one side."""
    skin, side, height = head.identity.skin, SIDES[rng.integers(2)], rng.uniform(-12, 56)
    reach, lean, count = rng.uniform(8, 32), rng.uniform(22, 46), int(rng.integers(3, 5))
    lengths = (0, -5, -3, 4)
    for finger in range(count):
        tip = np.array((side * (reach - lengths[finger]), height + 8.6 * finger, 50))
        bent = (side * (reach + 26), height + 8.6 * finger + 0.3 * lean, 48)
        line = view(smooth(np.array((tip, bent, (side * 96, tip[1] + lean, 40))), closed=False))
        canvas.line(line, shaded(skin, 0.5), 9.2 * view.scale)
        canvas.line(line, shaded(skin, 0.1), 7.4 * view.scale)
        nail = line[0] + 0.12 * (line[1] - line[0])
        canvas.dot(nail, 1.9 * view.scale, mixed(skin, (238, 206, 196), 0.35))


def _draw_thing(canvas: Canvas, view: View, rng: np.random.Generator) -> None:
    """Draw a telephone, a book or a cup held in front of the face, out of focus only by its plainness."""
    corner, size, colour = rng.uniform(-50, 34, 2), rng.uniform(16, 40, 2), tone(rng, CLOTHES)
    around = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    cos, sin = np.cos(around), np.sin(around)
    x = corner[0] + size[0] * (0.5 + 0.5 * np.sign(cos) * np.abs(cos) ** 0.25)
    y = corner[1] + 12 + size[1] * (0.5 + 0.5 * np.sign(sin) * np.abs(sin) ** 0.25)
    outline = view(at_depth(x, y, 44.0))
    canvas.fill(outline, colour)
    canvas.fill(outline.mean(axis=0) + 0.82 * (outline - outline.mean(axis=0)), mixed(colour, (255, 252, 244), 0.1))
    canvas.line(outline, shaded(colour, 0.35), 0.8 * view.scale, closed=True)
