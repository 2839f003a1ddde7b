"""Draw hair with strands, and facial hair."""

from functools import lru_cache

import numpy as np

from facebones.synthetic.drawing import (
    NEUTRAL,
    NEUTRAL_RGB,
    WHITE,
    Canvas,
    Points,
    Relief,
    View,
    grey,
    mixed,
    shaded,
    smooth,
)
from facebones.synthetic.head import Array, Head, at_depth
from facebones.synthetic.identity import RGB, Hair

CROPPED = 1.5  # volume up to which the skin shows through
COILED = 1.8  # curl from which hair lies in coils, not in strands
LONG = 16.0  # length from which hair falls behind the shoulders
STRANDS, COILS, ROOTS = 22, 72, 22
SHEEN = (255, 240, 222)
STUBBLE, BEARD = 0.24, 0.68
BEARD_DEPTH = 2.2
GOLDEN = 0.618034


def is_long(hair: Hair) -> bool:
    """Whether the hair falls beside the face, over the ears."""
    return hair.length >= LONG and hair.volume > CROPPED


def draw_back_hair(canvas: Canvas, view: View, head: Head) -> None:
    """Draw the hair that falls behind head and neck."""
    one, hair = head.identity, head.identity.hair
    if not is_long(hair):
        return
    half, end = one.cheek_width + 0.7 * hair.volume, hair.length
    right = np.array((0.8, 1.0, 1.04, 1.0, 0.86, 0.4)) * half
    down = np.array((-44, -4, 0.45 * end, 0.8 * end, end - 3, end))
    outline = smooth(at_depth(np.concatenate((right, -right[::-1])), np.concatenate((down, down[::-1])), -10.0))
    canvas.fill(view(_curly(outline, hair)), shaded(hair.colour, 0.3))
    across = np.concatenate((np.linspace(0.7, 1, 4), -np.linspace(0.7, 1, 4)))[:, None] * half
    heights = np.array((-20, 0.3 * end, 0.65 * end, end - 5))
    locks = np.stack(np.broadcast_arrays(across * (0.96, 1.0, 0.99, 0.88), heights, -9.0), axis=-1)
    locks[:, :, 0] += 0.5 * hair.curl * np.sin(2.3 * np.arange(4) + hair.phase)
    curves = view(smooth(locks, closed=False, steps=3))
    canvas.line(curves[::2], shaded(hair.colour, 0.14), 1.6 * view.scale)
    canvas.line(curves[1::2], shaded(hair.colour, 0.44), 1.0 * view.scale)


def draw_front_hair(canvas: Canvas, relief: Relief, view: View, head: Head) -> None:
    """Fill from the outer outline of the hair down to the hairline, then draw its roots and its strands or coils."""
    one, hair = head.identity, head.identity.hair
    if hair.volume <= 0:
        return
    cropped = hair.volume <= CROPPED
    colour = mixed(one.skin, hair.colour, 0.66) if cropped else list(hair.colour)
    shell, hairline = _shell(view, head), _hairline(head)
    relief.broad.line(view(hairline + (0, 2.0, 0)), grey(NEUTRAL - (8 if cropped else 26)), 4 * view.scale)
    outline = view(np.vstack((shell, _inner_edge(view, head, hairline))))
    canvas.fill(outline, shaded(colour, 0.12))
    relief.form.fill(outline, WHITE)
    if not cropped:  # the hair is round: dark by its outline, with a sheen between it and the hairline
        outer = shell[(np.linspace(0.14, 0.86, 9) * len(shell)).astype(int)]
        inner = hairline[::-1][(np.linspace(0.02, 0.98, 9) * len(hairline)).astype(int)]
        relief.broad.line(view(outer), grey(NEUTRAL - 20), 5 * view.scale)
        relief.broad.line(view(0.55 * inner + 0.45 * outer), grey(NEUTRAL + 22), 4 * view.scale)
    placed = view(hairline)
    places = placed[np.linspace(1, len(placed) - 2, ROOTS).astype(int)]
    down = (view.matrix[:, 1] * np.array((1.2, 2.2, 1.6, 2.8))[np.arange(ROOTS) % 4][:, None]).astype(float)
    canvas.line(
        np.stack((places - 0.2 * down, places + 0.7 * down), axis=1), mixed(colour, one.skin, 0.45), 0.5 * view.scale
    )
    if not cropped:
        if hair.curl > COILED:
            _draw_coils(canvas, view, hair, shell, hairline)
        else:
            _draw_strands(canvas, view, head, hairline)


def _curly(outline: Points, hair: Hair) -> Points:
    """Roughen an outline (N, 3) with the person's curls."""
    number = np.arange(len(outline))
    wave = 1 + hair.curl / 75 * (np.sin(1.1 * number + hair.phase) + 0.5 * np.sin(0.47 * number))
    rough = outline.copy()
    rough[:, :2] *= wave[:, None]
    return rough


def _side_end(hair: Hair) -> float:
    """Height at which the hair beside the face ends."""
    return min(hair.length, 44.0)


def _shell(view: View, head: Head) -> Points:
    """Outer outline of the hair from the end of its left side over the crown to that of its right; it tapers there."""
    hair, rim = head.identity.hair, head.outline(view.yaw)
    out, y = head.outline(view.yaw, 1.0) - rim, rim[:, 1]
    top = np.clip((-y - 6) / 36, 0, 1)
    share = hair.sides + (1 - hair.sides) * top * top * (3 - 2 * top)
    share = share * np.sqrt(np.clip((_side_end(hair) - y) / (44 if hair.length >= LONG else 20), 0, 1))
    lean = 0.012 * hair.parting * top * np.sign(rim[:, 0])  # fuller on the side away from the parting
    shell = _curly(rim + (hair.volume * share * (1 - lean))[:, None] * out, hair)
    half, above = len(rim) // 2, y < _side_end(hair)
    return np.vstack((shell[half:][above[half:]], shell[:half][above[:half]]))


def _hairline(head: Head) -> Points:
    """Edge of the hair on the forehead, from right to left."""
    one, hair = head.identity, head.identity.hair
    t = np.linspace(0.86, -0.86, 17)
    y = hair.line - hair.temples * (1 - np.abs(np.abs(t) - 0.55) / 0.55).clip(0) + 9 * np.abs(t) ** 3
    y = y + hair.peak * np.exp(-((t / 0.16) ** 2))
    x = t * one.forehead_width
    fallen = 1 / (1 + np.exp((x - hair.parting) * np.sign(hair.parting or 1.0) / 2.5))
    locks = 0.1 * hair.fringe * np.sin(11 * t + hair.phase)
    y = y + hair.fringe * (0.25 + 0.75 * fallen) + locks
    return smooth(head.on_surface(x, np.minimum(y, -9.0), 1.0), closed=False)


def _inner_edge(view: View, head: Head, hairline: Points) -> Points:
    """Edge of the hair towards the face: up the right side, along the hairline, down the left side."""
    hair, rim = head.identity.hair, head.outline(view.yaw)
    half, y = len(rim) // 2, rim[:, 1]
    covered = 1 - (0.1 if hair.length >= LONG else 0.06) * np.sqrt(np.clip((_side_end(hair) - y) / 24, 0, 1))
    edge = rim.copy()
    edge[:, 0] *= covered
    right = edge[:half][(y[:half] < _side_end(hair)) & (y[:half] > hairline[0, 1] + 2)]
    left = edge[half:][(y[half:] < _side_end(hair)) & (y[half:] > hairline[-1, 1] + 2)]
    return np.vstack((right[::-1], hairline, left[::-1]))


def _draw_strands(canvas: Canvas, view: View, head: Head, hairline: Points) -> None:
    """Draw strands of four tones from the parting down to the edges of the hair."""
    one, hair = head.identity, head.identity.hair
    end, shift = _spread(STRANDS)
    x = (
        hair.parting * np.array((0.7, 0.75, 0.45, 0))[:, None]
        + one.forehead_width * np.array((0, 0.3, 0.7, 0.98))[:, None] * end
    )
    line_y = np.interp(end, hairline[::-1, 0] / one.forehead_width, hairline[::-1, 1])
    side = np.abs(end) ** 3
    y = np.stack(
        (np.full(STRANDS, -64.0), -62 + 5 * end**2, 0.45 * line_y - 30 + 6 * side, line_y - 1.5 + 3 * shift + 4 * side)
    )
    x[1:] += hair.curl * np.sin(np.array((2.0, 4.5, 7.0))[:, None] + hair.phase + 3 * shift)
    lift = hair.volume * np.array((0.5, 0.5, 0.25, 0.0))[:, None]
    strands = view(smooth(head.on_surface(x.T, (y - lift).T, 2.0), closed=False, steps=3))
    tones = _tones(hair.colour)
    for number, tone in enumerate(tones):
        canvas.line(strands[number :: len(tones)], tone, 0.5 * view.scale)


def _draw_coils(canvas: Canvas, view: View, hair: Hair, shell: Points, hairline: Points) -> None:
    """Draw small arcs of four tones between the hairline and the outline of the hair."""
    share, shift = _spread(COILS)
    outer = shell[((0.5 + 0.3 * share) * len(shell)).astype(int)]
    inner = hairline[np.clip((0.5 - 0.49 * share) * len(hairline), 0, len(hairline) - 1).astype(int)]
    places = view(inner + (0.16 + 0.76 * shift)[:, None] * (outer - inner))
    turn = 2 * np.pi * shift[:, None] * 7 + hair.phase + np.linspace(0, 3.6, 5)
    arcs = places[:, None] + 1.1 * view.scale * np.stack((np.cos(turn), np.sin(turn)), axis=-1)
    tones = _tones(hair.colour)[1:]
    for number, tone in enumerate(tones):
        canvas.line(arcs[number :: len(tones)], tone, 0.5 * view.scale)


@lru_cache(maxsize=8)
def _spread(count: int) -> tuple[Array, Array]:
    """Return `count` even places from -1 to 1, and for each a number from 0 to 1 that looks random."""
    return np.linspace(-1, 1, count), (GOLDEN * np.arange(count, dtype=np.float64)) % 1


def _tones(colour: RGB) -> tuple[list[float], ...]:
    return mixed(colour, SHEEN, 0.075), shaded(colour, 0.34), mixed(colour, SHEEN, 0.03), shaded(colour, 0.22)


def draw_beard_behind(canvas: Canvas, view: View, head: Head) -> None:
    """Draw what a full beard adds to the outline of the jaw."""
    one = head.identity
    if one.facial_hair == "beard":
        outline = head.outline(view.yaw) + BEARD_DEPTH * (head.outline(view.yaw, 1.0) - head.outline(view.yaw))
        canvas.fill(view(outline[outline[:, 1] > 16]), mixed(one.skin, shaded(one.hair.colour, 0.3), 0.8))


def draw_facial_hair(canvas: Canvas, relief: Relief, view: View, head: Head) -> None:
    """Tint the skin where facial hair grows, with soft edges, and draw some hairs."""
    one = head.identity
    if one.facial_hair == "none":
        return
    strength = STUBBLE if one.facial_hair == "stubble" else BEARD
    hair = shaded(one.hair.colour, 0.1)
    factors = [min(250.0, NEUTRAL * tone / skin) for tone, skin in zip(hair, one.skin, strict=True)]
    tint = mixed(NEUTRAL_RGB, factors, strength)
    areas = []
    if one.facial_hair in {"stubble", "beard"}:
        areas.append(_beard_area(view, head))
    if one.facial_hair in {"moustache", "goatee"}:
        areas.append(_moustache(head))
    if one.facial_hair == "goatee":
        areas.append(_goatee(head))
    for area in areas:
        outline = view(area)
        middle = outline.mean(axis=0)
        for size, share in ((1.0, 0.4), (0.92, 0.7), (0.84, 1.0)) if strength == STUBBLE else ((1.0, 1.0),):
            relief.fine.fill(middle + size * (outline - middle), mixed(NEUTRAL_RGB, tint, share))
        if strength == BEARD:
            roots = middle + np.array((0.93, 0.82, 0.98, 0.88))[np.arange(len(outline)) % 4][:, None] * (
                outline - middle
            )
            tips = roots + 0.07 * (outline - middle) + view.matrix[:, 1] * 1.8
            hairs = np.stack((roots, tips), axis=1)
            canvas.line(hairs[::2], mixed(one.skin, hair, 0.35), 0.5 * view.scale)


def _beard_area(view: View, head: Head) -> Points:
    """Outline of cheeks, upper lip, jaw and chin as far as a beard grows."""
    one, mouth = head.identity, head.identity.mouth_y
    rim = head.outline(view.yaw)
    width = one.jaw_width
    x = np.array((-1.04, -0.95, -0.72, -0.4, 0, 0.4, 0.72, 0.95, 1.04)) * width
    lip = one.nose_y + 0.45 * (mouth - one.nose_y)
    y = np.array((6, 20, mouth - 9, mouth - 6, lip, mouth - 6, mouth - 9, 20, 6.0))
    edge = smooth(np.stack((x, y), axis=1), closed=False)
    return np.vstack((rim[rim[:, 1] > 6], head.on_surface(*edge.T)))


def _goatee(head: Head) -> Points:
    """Outline of a short beard on the chin, from below the lower lip."""
    one, wide = head.identity, head.identity.chin_width
    top = one.mouth_y + one.lower_lip + 0.7 * head.expression.mouth_open
    x = np.array((0, 0.2, 0.4, 0.66, 0.45, 0, -0.45, -0.66, -0.4, -0.2)) * wide
    y = np.array((top + 1, top + 3, top + 4, head.chin_y - 4, head.chin_y, head.chin_y + 2))
    return head.on_surface(*smooth(np.stack((x, np.concatenate((y, y[4:0:-1]))), axis=1)).T)


def _moustache(head: Head) -> Points:
    one, half, mouth = head.identity, head.mouth_half_width, head.identity.mouth_y
    low = mouth - one.upper_lip
    lip = max(one.nose_y + 0.4 * (mouth - one.nose_y), low - 6)
    x = np.array((-0.92, -0.55, 0, 0.55, 0.92, 0.55, 0, -0.55)) * half
    y = np.array((mouth - 1.5, lip + 1, lip, lip + 1, mouth - 1.5, low + 0.5, low - 0.6, low + 0.5))
    return head.on_surface(*smooth(np.stack((x, y), axis=1)).T)
