"""The features of a synthetic person that all their images share: proportions, colours and marks."""

from dataclasses import dataclass

import numpy as np

RGB = tuple[float, float, float]

# Skin from the palest to the deepest; a person's lies on the line through them.
SKIN_TONES = np.array(
    ((240, 208, 190), (233, 192, 166), (219, 172, 140), (198, 148, 112), (168, 120, 86), (132, 90, 64), (98, 66, 48))
)
# A colour, how often a person of pale skin has it, and how often one of deep skin.
HAIR_COLOURS = (
    ((30, 27, 28), 2.0, 5.0),  # black
    ((52, 40, 36), 2.0, 3.0),
    ((78, 56, 42), 2.0, 1.2),  # brown
    ((106, 74, 52), 2.0, 0.6),
    ((128, 80, 52), 1.0, 0.4),  # chestnut
    ((150, 118, 82), 1.5, 0.2),
    ((186, 152, 106), 1.5, 0.15),  # blond
    ((150, 84, 50), 1.0, 0.15),  # ginger
    ((126, 122, 120), 0.8, 0.8),  # grey
    ((184, 181, 176), 0.7, 0.7),
)
IRIS_COLOURS = (
    ((62, 40, 28), 1.5, 5.0),  # dark brown
    ((96, 64, 38), 1.5, 2.5),
    ((112, 96, 58), 1.0, 0.4),  # hazel
    ((92, 110, 84), 1.0, 0.2),
    ((86, 118, 144), 1.3, 0.1),  # blue
    ((122, 134, 142), 1.0, 0.1),
)
FACIAL_HAIR = ("none", "none", "none", "none", "stubble", "moustache", "goatee", "beard")
GLASSES_SHAPES = ("round", "square", "wide")
FRAME_COLOURS = ((34, 32, 34), (84, 56, 38), (58, 66, 84), (134, 112, 74), (104, 104, 108), (96, 48, 50), (60, 74, 62))


@dataclass(frozen=True, kw_only=True)
class Glasses:
    """Glasses, and the share of images in which their owner wears them."""

    shape: str
    size: float
    frame: float
    colour: RGB
    worn: float


@dataclass(frozen=True, kw_only=True)
class Hair:
    """Hair in head units: its volume, its length, and its line on the face."""

    colour: RGB
    volume: float  # beyond the skull; 0 is shaven, up to 1.5 cropped
    sides: float  # volume above the ears, as a share of that on top
    length: float  # y at which the sides end
    line: float  # y of the hairline above the nose
    temples: float  # recession of the hairline at the temples; negative: it is lower there
    peak: float  # length of a peak in the middle
    parting: float  # x of the parting
    fringe: float  # length of the hair on one side of the parting
    curl: float  # roughness of the outline
    phase: float


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One synthetic person.

    Lengths are pixels of an average aligned face, measured from between the eyes, y down; widths are half widths.
    """

    forehead_width: float
    cheek_width: float
    jaw_width: float
    chin_width: float
    chin_y: float
    eye_x: float
    eye_width: float
    eye_height: float
    eye_slant: float
    eye_depth: float
    eye_crease: float
    iris_size: float
    iris_colour: RGB
    brow_gap: float
    brow_length: float
    brow_thickness: float
    brow_arch: float
    brow_slant: float
    nose_y: float
    nose_width: float
    nose_bridge: float
    nose_depth: float
    mouth_y: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    lip_redness: float
    cupid_bow: float
    ear_size: float
    ear_out: float
    cheekbones: float
    folds: float
    skin: RGB
    hair: Hair
    facial_hair: str
    marks: tuple[tuple[float, float, float, float], ...]  # x, y, radius, darkness
    glasses: Glasses | None


def draw_identity(rng: np.random.Generator) -> Identity:
    """Sample a person; features are independent, so a single one does not identify a person.

    Only the colours of hair and eyes depend on that of the skin.
    """
    uniform = rng.uniform
    cheek_width = uniform(35.5, 44.5)
    mouth_y = uniform(36, 46)
    depth = uniform(0, 1)
    return Identity(
        forehead_width=cheek_width * uniform(0.85, 1.0),
        cheek_width=cheek_width,
        jaw_width=cheek_width * uniform(0.66, 0.89),
        chin_width=cheek_width * uniform(0.26, 0.54),
        chin_y=mouth_y + uniform(15, 26),
        eye_x=uniform(15.2, 20.4),
        eye_width=uniform(5.6, 9.0),
        eye_height=uniform(2.0, 4.2),
        eye_slant=uniform(-0.24, 0.16),
        eye_depth=uniform(0.0, 1.0),
        eye_crease=uniform(0.0, 1.0),
        iris_size=uniform(2.6, 3.7),
        iris_colour=_colour(rng, IRIS_COLOURS, depth, 0.08),
        brow_gap=uniform(6.0, 12.5),
        brow_length=uniform(7.0, 12.5),
        brow_thickness=uniform(0.7, 2.8),
        brow_arch=uniform(-0.5, 4.5),
        brow_slant=uniform(-0.16, 0.11),
        nose_y=mouth_y * uniform(0.42, 0.58),
        nose_width=uniform(4.8, 11.0),
        nose_bridge=uniform(1.8, 4.6),
        nose_depth=uniform(8, 18),
        mouth_y=mouth_y,
        mouth_width=uniform(10.5, 18.5),
        upper_lip=uniform(0.9, 4.4),
        lower_lip=uniform(1.4, 5.4),
        lip_redness=uniform(0.1, 1.0),
        cupid_bow=uniform(0.0, 1.0),
        ear_size=uniform(8, 13),
        ear_out=uniform(0.0, 5.0),
        cheekbones=uniform(0.0, 1.0),
        folds=uniform(0.0, 1.0),
        skin=_skin(rng, depth),
        hair=_hair(rng, depth),
        facial_hair=str(rng.choice(FACIAL_HAIR)),
        marks=_marks(rng, mouth_y),
        glasses=_glasses(rng),
    )


def _skin(rng: np.random.Generator, depth: float) -> RGB:
    """Skin between the palest (0) and the deepest (1) tone, somewhat more rosy or more olive."""
    steps = np.linspace(0, 1, len(SKIN_TONES))
    tone = np.array([np.interp(depth, steps, channel) for channel in SKIN_TONES.T])
    olive = rng.normal(0, 3.5)
    return _rgb(tone + rng.normal(0, 2.5) + np.array((-olive, 0.6 * olive, -0.4 * olive)))


def _colour(
    rng: np.random.Generator, palette: tuple[tuple[RGB, float, float], ...], depth: float, spread: float
) -> RGB:
    """Choose from a palette as often as skin of this depth has the colour."""
    odds = np.array([(1 - depth) * pale + depth * deep for _, pale, deep in palette])
    colour = palette[rng.choice(len(palette), p=odds / odds.sum())][0]
    return _rgb(np.array(colour) * (1 + rng.normal(0, spread) + rng.normal(0, 0.3 * spread, 3)))


def _rgb(colour: np.ndarray[tuple[int], np.dtype[np.float64]]) -> RGB:
    red, green, blue = np.clip(colour, 8, 250).tolist()
    return red, green, blue


def _hair(rng: np.random.Generator, depth: float) -> Hair:
    kind = rng.uniform()
    volume = 0.0 if kind < 0.07 else rng.uniform(0.5, 1.5) if kind < 0.15 else rng.uniform(3, 14)
    long = bool(rng.uniform() < 0.45) and volume > 2
    return Hair(
        colour=_colour(rng, HAIR_COLOURS, depth, 0.09),
        volume=volume,
        sides=rng.uniform(0.55, 0.95) if long else rng.uniform(0.1, 0.8),
        length=rng.uniform(22, 95) if long else rng.uniform(-14, 14),
        line=rng.uniform(-45, -29),
        temples=rng.uniform(-7, 5),
        peak=max(0.0, rng.uniform(-7, 4)),
        parting=rng.uniform(-24, 24),
        fringe=max(0.0, rng.uniform(-12, 16)),
        curl=max(0.0, rng.uniform(-1.2, 3.0)),
        phase=rng.uniform(0, 2 * np.pi),
    )


def _marks(rng: np.random.Generator, mouth_y: float) -> tuple[tuple[float, float, float, float], ...]:
    """Sample up to three moles and, for some people, freckles across nose and cheeks."""
    moles = [
        (rng.uniform(-30, 30), rng.uniform(-24, mouth_y + 10), rng.uniform(0.7, 1.4), rng.uniform(0.4, 0.75))
        for _ in range(rng.integers(0, 4))
    ]
    freckled = rng.uniform() < 0.2
    freckles = [
        (rng.normal(0, 17), rng.normal(14, 5), rng.uniform(0.45, 0.75), rng.uniform(0.12, 0.26))
        for _ in range(rng.integers(12, 24) if freckled else 0)
    ]
    return tuple(moles + freckles)


def _glasses(rng: np.random.Generator) -> Glasses | None:
    if rng.uniform() > 0.25:
        return None
    return Glasses(
        shape=str(rng.choice(GLASSES_SHAPES)),
        size=rng.uniform(9.5, 13.5),
        frame=rng.uniform(0.6, 1.9),
        colour=_rgb(np.array(FRAME_COLOURS[rng.integers(len(FRAME_COLOURS))]) + rng.normal(0, 6)),
        worn=rng.uniform(0.3, 0.9),
    )
