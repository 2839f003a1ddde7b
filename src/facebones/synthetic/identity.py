"""The features of a synthetic person that all their images share: proportions, colours and marks."""

from dataclasses import dataclass

import numpy as np

RGB = tuple[float, float, float]

PALE_SKIN, DARK_SKIN = np.array((236.0, 196.0, 172.0)), np.array((124.0, 84.0, 62.0))
HAIR_COLOURS = ((28, 24, 24), (52, 36, 28), (84, 56, 36), (122, 86, 52), (178, 140, 88), (136, 66, 36), (150, 146, 142))
IRIS_COLOURS = ((58, 36, 22), (92, 62, 34), (88, 98, 58), (72, 104, 132), (112, 122, 128))
FACIAL_HAIR = ("none", "none", "none", "stubble", "moustache", "goatee", "beard")
GLASSES_SHAPES = ("round", "square", "wide")


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
    volume: float  # beyond the skull; 0 is shaven
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
    """Sample a person; all features are independent, so a single one does not identify a person."""
    uniform = rng.uniform
    cheek_width = uniform(37, 47)
    mouth_y = uniform(36, 46)
    return Identity(
        forehead_width=cheek_width * uniform(0.84, 1.03),
        cheek_width=cheek_width,
        jaw_width=cheek_width * uniform(0.66, 0.96),
        chin_width=cheek_width * uniform(0.28, 0.58),
        chin_y=mouth_y + uniform(15, 26),
        eye_x=uniform(15.2, 20.4),
        eye_width=uniform(5.6, 9.0),
        eye_height=uniform(1.7, 4.2),
        eye_slant=uniform(-0.28, 0.22),
        eye_depth=uniform(0.0, 1.0),
        iris_size=uniform(2.6, 3.7),
        iris_colour=_colour(rng, IRIS_COLOURS, 8),
        brow_gap=uniform(6.0, 12.5),
        brow_length=uniform(7.0, 12.5),
        brow_thickness=uniform(0.7, 3.4),
        brow_arch=uniform(-0.5, 4.5),
        brow_slant=uniform(-0.28, 0.28),
        nose_y=uniform(15.5, 26.0),
        nose_width=uniform(4.8, 11.0),
        nose_bridge=uniform(1.6, 4.6),
        nose_depth=uniform(8, 18),
        mouth_y=mouth_y,
        mouth_width=uniform(10.5, 18.5),
        upper_lip=uniform(0.9, 4.4),
        lower_lip=uniform(1.4, 5.4),
        lip_redness=uniform(0.1, 1.0),
        cupid_bow=uniform(0.0, 1.0),
        ear_size=uniform(8, 14),
        ear_out=uniform(0.0, 7.0),
        cheekbones=uniform(0.0, 1.0),
        folds=uniform(0.0, 1.0),
        skin=_skin(rng),
        hair=_hair(rng),
        facial_hair=str(rng.choice(FACIAL_HAIR)),
        marks=_marks(rng, mouth_y),
        glasses=_glasses(rng),
    )


def _skin(rng: np.random.Generator) -> RGB:
    tone = PALE_SKIN + rng.uniform() * (DARK_SKIN - PALE_SKIN) + rng.normal(0, 5, 3)
    return _rgb(tone)


def _colour(rng: np.random.Generator, palette: tuple[RGB, ...], spread: float) -> RGB:
    return _rgb(np.array(palette[rng.integers(len(palette))]) + rng.normal(0, spread, 3))


def _rgb(colour: np.ndarray[tuple[int], np.dtype[np.float64]]) -> RGB:
    red, green, blue = np.clip(colour, 8, 250).tolist()
    return red, green, blue


def _hair(rng: np.random.Generator) -> Hair:
    bald = rng.uniform() < 0.1
    return Hair(
        colour=_colour(rng, HAIR_COLOURS, 8),
        volume=0.0 if bald else rng.uniform(2, 15),
        length=-60.0 if bald else float(rng.choice((rng.uniform(-22, 12), rng.uniform(12, 90)))),
        line=rng.uniform(-45, -27),
        temples=rng.uniform(-9, 10),
        peak=max(0.0, rng.uniform(-6, 7)),
        parting=rng.uniform(-24, 24),
        fringe=max(0.0, rng.uniform(-12, 17)),
        curl=max(0.0, rng.uniform(-1.5, 3.0)),
        phase=rng.uniform(0, 2 * np.pi),
    )


def _marks(rng: np.random.Generator, mouth_y: float) -> tuple[tuple[float, float, float, float], ...]:
    """Sample up to three moles and, for some people, freckles across nose and cheeks."""
    moles = [
        (rng.uniform(-30, 30), rng.uniform(-24, mouth_y + 10), rng.uniform(0.8, 1.7), rng.uniform(0.5, 0.8))
        for _ in range(rng.integers(0, 4))
    ]
    freckled = rng.uniform() < 0.2
    freckles = [
        (rng.normal(0, 17), rng.normal(14, 5), rng.uniform(0.5, 0.8), rng.uniform(0.15, 0.3))
        for _ in range(rng.integers(12, 24) if freckled else 0)
    ]
    return tuple(moles + freckles)


def _glasses(rng: np.random.Generator) -> Glasses | None:
    if rng.uniform() > 0.25:
        return None
    return Glasses(
        shape=str(rng.choice(GLASSES_SHAPES)),
        size=rng.uniform(9.5, 13.5),
        frame=rng.uniform(0.7, 2.2),
        colour=_rgb(rng.uniform(20, 110, 3)),
        worn=rng.uniform(0.3, 0.9),
    )
