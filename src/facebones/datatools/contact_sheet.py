"""Contact sheets: a PNG with rows of faces and captions, to see at a glance what a data set holds."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from facebones.data.images import ImageArray, decode, is_image_name
from facebones.data.pair_bins import PairSet
from facebones.data.training_set import TrainingSet, evenly
from facebones.datatools import lettering
from facebones.errors import ConfigError, DataError, RunError, counted
from facebones.system.files import atomic_write

TILE = 112
FRAME = 1
IN_ROW = 8
GAP = 8  # between two faces
PAIR_GAP = 2  # between the two faces of a pair
BETWEEN_PAIRS = 16  # so that four pairs are as wide as eight faces
MARGIN = 28
CONTENT = IN_ROW * (TILE + 2 * FRAME) + (IN_ROW - 1) * GAP
TITLE_SIZE, TEXT_SIZE, MARK_SIZE = 17, 13, 12
LONGEST_MARK = 28  # letters below a pair
PAPER, EDGE, RULE = (252, 252, 251), (212, 210, 206), (224, 222, 218)
INK, GREY, MISSING = (38, 40, 44), (104, 106, 110), (238, 237, 234)
GENUINE, IMPOSTOR = (64, 128, 92), (184, 92, 72)


@dataclass(frozen=True)
class _Tile:
    """One face, or the two of a pair; None for an unreadable image."""

    images: Sequence[ImageArray | None]
    mark: str = ""
    colour: lettering.Colour | None = None  # of a bar below the faces


@dataclass(frozen=True)
class _Row:
    """Faces or pairs below a caption; a long row is broken into lines."""

    caption: str
    tiles: Sequence[_Tile]
    colour: lettering.Colour | None = None  # of a square before the caption


def refuse_image_of(folder: Path, sheet: Path, *, beside_folders: bool = False) -> None:
    """Refuse a sheet that would replace an image below a folder that is read, also by a link.

    Args:
        folder: of images; a file has none below.
        sheet: the file to write.
        beside_folders: an image beside the folders of people is none that is read, so it may be replaced.

    Raises:
        ConfigError: the sheet is such an image.
    """
    if not sheet.is_file() or not is_image_name(sheet.name):
        return
    root = Path(os.path.realpath(folder))
    for place in (Path(os.path.realpath(sheet)), Path(os.path.realpath(sheet.parent)) / sheet.name):
        outside = not place.is_relative_to(root) or place == root
        if outside or (beside_folders and place.parent == root and any(each.is_dir() for each in root.iterdir())):
            continue
        raise ConfigError(f"{sheet}: is an image of {folder}, which would be lost; choose another place")


def write_contact_sheet(path: Path, sets: Sequence[tuple[Path, TrainingSet | PairSet]]) -> None:
    """Write some images of each set, evenly spread, as a PNG.

    A row shows an identity of a training set, or genuine or impostor pairs of a verification set.

    Args:
        path: the PNG file; it appears when it is complete.
        sets: each with the path for its heading.

    Raises:
        RunError, ConfigError: the file cannot be written.
    """
    _save(path, [_section(name, data) for name, data in sets])


def write_face_sheet(path: Path, title: str, rows: Sequence[tuple[str, Sequence[ImageArray]]]) -> None:
    """Write rows of faces as a PNG.

    Args:
        path: the PNG file; it appears when it is complete.
        title: the heading.
        rows: each a caption and its images, (H, W, 3) uint8 RGB.

    Raises:
        RunError, ConfigError: the file cannot be written.
    """
    _save(path, [(title, [_Row(caption, [_Tile([image]) for image in images]) for caption, images in rows])])


def write_pair_sheet(path: Path, title: str, pairs: Sequence[tuple[str, ImageArray, ImageArray]]) -> None:
    """Write pairs of faces side by side as a PNG, four in a row.

    Args:
        path: the PNG file; it appears when it is complete.
        title: the heading.
        pairs: each a mark of up to 28 letters and its two images, (H, W, 3) uint8 RGB.

    Raises:
        RunError, ConfigError: the file cannot be written.
    """
    tiles = [_Tile([first, second], mark[:LONGEST_MARK]) for mark, first, second in pairs]
    _save(path, [(title, [_Row("", tiles)])])


def _save(path: Path, sections: Sequence[tuple[str, Sequence[_Row]]]) -> None:
    blocks = [_blank(MARGIN // 2)]
    for number, (title, rows) in enumerate(sections):
        blocks += [_rule()] * (number > 0) + [_heading(title)]
        blocks += [block for row in rows for block in _drawn_row(row)]
    sheet = np.concatenate([*blocks, _blank(MARGIN // 2)])
    done, encoded = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    if not done:
        size = f"{sheet.shape[1]}x{len(sheet)}"
        raise RunError(f"{path}: a contact sheet of {size} pixels cannot be encoded; inspect fewer sets")
    with atomic_write(path) as file:
        file.write(encoded.tobytes())


def _section(path: Path, data: TrainingSet | PairSet) -> tuple[str, list[_Row]]:
    if isinstance(data, PairSet):
        return f"{path.name}: {counted(len(data), 'pair')}", _pair_rows(data)
    identities = counted(len(np.unique(data.labels)), "identity", "identities")
    return f"{path.name}: {counted(len(data), 'image')} of {identities}", _identity_rows(data)


def _identity_rows(data: TrainingSet) -> list[_Row]:
    rows = []
    for label in evenly(np.unique(data.labels).tolist(), IN_ROW):
        images = evenly(np.flatnonzero(data.labels == label).tolist(), IN_ROW)
        rows.append(_Row(f"identity {data.identity_name(label)}", [_Tile([_pixels(data, index)]) for index in images]))
    return rows


def _pair_rows(data: PairSet) -> list[_Row]:
    rows: list[_Row] = []
    for kind, colour, wanted in (("genuine", GENUINE, True), ("impostor", IMPOSTOR, False)):
        pairs = evenly(np.flatnonzero(data.is_same == wanted).tolist(), IN_ROW)
        tiles = [_Tile([_pixels(data, 2 * k), _pixels(data, 2 * k + 1)], f"pair {k}", colour) for k in pairs]
        if tiles:
            rows.append(_Row(f"{kind} pairs", tiles, colour))
    return rows


def _pixels(data: TrainingSet | PairSet, index: int) -> ImageArray | None:
    try:
        encoded = data.images[index] if isinstance(data, PairSet) else data.read(index)[0]
        return decode(encoded, "an image of the contact sheet")
    except DataError:
        return None  # shown as broken; the inspection names it


def _heading(title: str) -> ImageArray:
    """Draw a title; what follows a colon is set smaller and grey."""
    block, (name, _, details) = _blank(44), title.partition(": ")
    room = CONTENT - lettering.text_width(details, TEXT_SIZE) - MARGIN
    x = lettering.write(
        block, lettering.shortened(name, TITLE_SIZE + 2, room), (MARGIN, 28), TITLE_SIZE, INK, bold=True
    )
    lettering.write(block, details, (x + 12, 28), TEXT_SIZE, GREY)
    return block


def _rule() -> ImageArray:
    block = _blank(25)
    block[12, MARGIN : MARGIN + CONTENT] = RULE
    return block


def _drawn_row(row: _Row) -> list[ImageArray]:
    blocks = []
    if row.caption:
        blocks.append(caption := _blank(26))
        x = MARGIN
        if row.colour:
            caption[8:18, x : x + 10] = row.colour
            x += 17
        room = CONTENT + MARGIN - x
        lettering.write(caption, lettering.shortened(row.caption, TEXT_SIZE, room), (x, 18), TEXT_SIZE, GREY)
    faces = max((len(tile.images) for tile in row.tiles), default=1)
    step = IN_ROW // faces
    for start in range(0, len(row.tiles), step):
        blocks.append(_line(row.tiles[start : start + step], GAP if faces == 1 else BETWEEN_PAIRS))
    return blocks


def _line(tiles: Sequence[_Tile], gap: int) -> ImageArray:
    drawn = [_tile(tile) for tile in tiles]
    block, x = _blank(len(drawn[0]) + GAP), MARGIN
    for tile in drawn:
        block[: len(tile), x : x + tile.shape[1]] = tile
        x += tile.shape[1] + gap
    return block


def _tile(tile: _Tile) -> ImageArray:
    space = np.full((TILE + 2 * FRAME, PAIR_GAP, 3), PAPER, dtype=np.uint8)
    faces = [part for image in tile.images for part in (space, _face(image))][1:]
    drawn = np.concatenate(faces, axis=1)
    if not tile.mark:
        return drawn
    below = np.full((26, drawn.shape[1], 3), PAPER, dtype=np.uint8)
    if tile.colour:
        below[2:5] = tile.colour
    mark = lettering.shortened(tile.mark, MARK_SIZE, drawn.shape[1])
    lettering.write(below, mark, (0, 18), MARK_SIZE, GREY)
    return np.concatenate([drawn, below])


def _face(image: ImageArray | None) -> ImageArray:
    """Scale a face into a square with a thin frame."""
    framed = np.full((TILE + 2 * FRAME, TILE + 2 * FRAME, 3), EDGE, dtype=np.uint8)
    inside = framed[FRAME:-FRAME, FRAME:-FRAME]
    inside[:] = MISSING if image is None else PAPER
    if image is None:
        start = (TILE - lettering.text_width("broken", MARK_SIZE)) // 2
        lettering.write(inside, "broken", (start, TILE // 2 + 4), MARK_SIZE, IMPOSTOR)
        return framed
    scale = TILE / max(image.shape[:2])
    width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
    x, y = (TILE - width) // 2, (TILE - height) // 2
    inside[y : y + height, x : x + width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return framed


def _blank(height: int) -> ImageArray:
    return np.full((height, CONTENT + 2 * MARGIN, 3), PAPER, dtype=np.uint8)
