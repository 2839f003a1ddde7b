"""Lines of text on an image, in the typeface that Matplotlib brings along: any size, and letters of many languages."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from facebones.data.images import ImageArray

Colour = tuple[int, int, int]

ELLIPSIS = "…"
UNKNOWN = "?"
LONGEST = 200  # letters that are measured at most
DOTS_PER_INCH = 72  # so that a size is in pixels
SUBPIXELS = 64


def write(
    paper: ImageArray, text: str, place: tuple[int, int], size: int, colour: Colour, *, bold: bool = False
) -> int:
    """Write a line of text; what does not fit on the paper is cut off, and a letter without a glyph becomes "?".

    Args:
        paper: uint8 (H, W, 3), RGB, which is written on.
        text: the line.
        place: x of its start and y of its baseline.
        size: of the letters, in pixels.
        colour: RGB.
        bold: take the bold cut.

    Returns:
        x of its end.

    >>> paper = np.full((20, 100, 3), 255, dtype=np.uint8)
    >>> write(paper, "", (5, 15), 12, (0, 0, 0))
    5
    """
    x, baseline = place
    if not (line := _known(text, bold)):
        return x
    font = _set(line, size, bold)
    font.draw_glyphs_to_bitmap()
    ink = np.asarray(font.get_image())
    top = baseline - len(ink) + round(font.get_descent() / SUBPIXELS)
    skipped = max(0, -top)
    area = paper[max(top, 0) : max(top + len(ink), 0), x : x + ink.shape[1]]
    cover = ink[skipped : skipped + len(area), : area.shape[1], None] / 255
    area[:] = np.rint(area + cover * (np.array(colour) - area)).astype(np.uint8)
    return x + text_width(line, size, bold=bold)


def text_width(text: str, size: int, *, bold: bool = False) -> int:
    """Width of a line in pixels."""
    line = _known(text, bold)
    return round(_set(line, size, bold).get_width_height()[0] / SUBPIXELS) if line else 0


def shortened(text: str, size: int, width: int) -> str:
    """Leave out the middle of a line that is wider than `width` pixels.

    >>> shortened("short", 12, 100)
    'short'
    """
    kept = min(len(text), LONGEST)
    line = text if kept == len(text) else _without_middle(text, kept)
    while kept > 2 and text_width(line, size) > width:
        kept -= 1
        line = _without_middle(text, kept)
    return line


def _without_middle(text: str, kept: int) -> str:
    return text[: (kept + 1) // 2] + ELLIPSIS + text[len(text) - kept // 2 :]


def _set(line: str, size: int, bold: bool) -> Any:
    font, _ = _font(bold)
    font.set_size(size, DOTS_PER_INCH)
    font.set_text(line, 0.0)
    return font


def _known(text: str, bold: bool) -> str:
    """Replace letters that the typeface lacks, and line ends."""
    _, glyphs = _font(bold)
    return "".join(letter if ord(letter) in glyphs and letter.isprintable() else UNKNOWN for letter in text)


@lru_cache(maxsize=2)
def _font(bold: bool) -> tuple[Any, frozenset[int]]:
    """Return a font, and the code points of its letters."""
    import matplotlib as mpl
    from matplotlib.ft2font import FT2Font

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    font = FT2Font(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name))
    return font, frozenset(font.get_charmap())
