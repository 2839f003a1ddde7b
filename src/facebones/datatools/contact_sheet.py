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
from facebones.errors import ConfigError, DataError, RunError, counted
from facebones.system.files import atomic_write

TILE = 112
FRAME = 4
CAPTION_WIDTH = 150
LINE = 24
INK = (30, 30, 30)
PAPER = 255
IN_ROW = 8
LONGEST_MARK = 28  # letters below a pair
GREY = (90, 90, 90)
GENUINE, IMPOSTOR = (0, 130, 0), (200, 0, 0)


@dataclass(frozen=True)
class _Tile:
    """One face, or the two of a pair; None for an unreadable image."""

    images: Sequence[ImageArray | None]
    mark: str = ""
    color: tuple[int, int, int] = (200, 200, 200)


_Row = tuple[str, list[_Tile]]  # a caption, and the tiles next to it


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

    A row shows an identity of a training set, or some pairs of a verification set, marked genuine or impostor.

    Args:
        path: the PNG file; it appears when it is complete.
        sets: each with the path for its heading.

    Raises:
        RunError, ConfigError: the file cannot be written.
    """
    _save(path, [block for name, data in sets for block in _section(name, data)])


def write_face_sheet(path: Path, title: str, rows: Sequence[tuple[str, Sequence[ImageArray]]]) -> None:
    """Write rows of faces as a PNG.

    Args:
        path: the PNG file; it appears when it is complete.
        title: the heading.
        rows: each a caption and its images, (H, W, 3) uint8 RGB.

    Raises:
        RunError, ConfigError: the file cannot be written.
    """
    _save(path, [_heading(title), *(_row(caption, [_Tile([image]) for image in images]) for caption, images in rows)])


def write_pair_sheet(path: Path, title: str, pairs: Sequence[tuple[str, ImageArray, ImageArray]]) -> None:
    """Write pairs of faces side by side as a PNG, four in a row.

    Args:
        path: the PNG file; it appears when it is complete.
        title: the heading.
        pairs: each a mark of up to 28 letters and its two images, (H, W, 3) uint8 RGB.

    Raises:
        RunError, ConfigError: the file cannot be written.
    """
    tiles = [_Tile([first, second], mark[:LONGEST_MARK], GREY) for mark, first, second in pairs]
    rows = {start: tiles[start : start + IN_ROW // 2] for start in range(0, len(tiles), IN_ROW // 2)}
    _save(path, [_heading(title), *(_row(f"{start + 1} to {start + len(row)}", row) for start, row in rows.items())])


def _save(path: Path, blocks: Sequence[ImageArray]) -> None:
    width = max(block.shape[1] for block in blocks)
    sheet = np.concatenate([_widen(block, width) for block in blocks])
    done, encoded = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    if not done:
        raise RunError(f"{path}: a contact sheet of {width}x{len(sheet)} pixels cannot be encoded; inspect fewer sets")
    with atomic_write(path) as file:
        file.write(encoded.tobytes())


def _section(path: Path, data: TrainingSet | PairSet) -> list[ImageArray]:
    if isinstance(data, PairSet):
        title, rows = f"{path.name}: {counted(len(data), 'pair')}", _pair_rows(data)
    else:
        identities = counted(len(np.unique(data.labels)), "identity", "identities")
        title = f"{path.name}: {counted(len(data), 'image')} of {identities}"
        rows = _identity_rows(data)
    return [_heading(title), *(_row(caption, tiles) for caption, tiles in rows)]


def _heading(title: str) -> ImageArray:
    return _text(title, width=max(10 * len(title) + 12, CAPTION_WIDTH), height=LINE + 12, scale=0.5)


def _identity_rows(data: TrainingSet) -> list[_Row]:
    rows = []
    for label in evenly(np.unique(data.labels).tolist(), IN_ROW):
        images = evenly(np.flatnonzero(data.labels == label).tolist(), IN_ROW)
        rows.append((f"identity {data.identity_name(label)}", [_Tile([_pixels(data, index)]) for index in images]))
    return rows


def _pair_rows(data: PairSet) -> list[_Row]:
    rows: list[_Row] = []
    for mark, color, wanted in (("genuine", GENUINE, True), ("impostor", IMPOSTOR, False)):
        pairs = evenly(np.flatnonzero(data.is_same == wanted).tolist(), IN_ROW)
        tiles = [
            _Tile([_pixels(data, 2 * pair), _pixels(data, 2 * pair + 1)], f"{mark}, pair {pair}", color)
            for pair in pairs
        ]
        rows += [(mark, tiles[start : start + IN_ROW // 2]) for start in range(0, len(tiles), IN_ROW // 2)]
    return rows


def _pixels(data: TrainingSet | PairSet, index: int) -> ImageArray | None:
    try:
        encoded = data.images[index] if isinstance(data, PairSet) else data.read(index)[0]
        return decode(encoded, "an image of the contact sheet")
    except DataError:
        return None  # shown as broken; the inspection names it


def _row(caption: str, tiles: Sequence[_Tile]) -> ImageArray:
    drawn = [_tile(tile) for tile in tiles]
    height = max(tile.shape[0] for tile in drawn)
    columns = [_text(caption, width=CAPTION_WIDTH, height=height), *(_heighten(tile, height) for tile in drawn)]
    return np.concatenate(columns, axis=1)


def _tile(tile: _Tile) -> ImageArray:
    faces = np.concatenate([_face(image) for image in tile.images], axis=1)
    framed = np.full((faces.shape[0] + 2 * FRAME, faces.shape[1] + 2 * FRAME, 3), tile.color, dtype=np.uint8)
    framed[FRAME:-FRAME, FRAME:-FRAME] = faces
    if tile.mark:
        framed = np.concatenate([framed, _text(tile.mark, framed.shape[1], LINE, color=tile.color)])
    return _margin(framed)


def _face(image: ImageArray | None) -> ImageArray:
    if image is None:
        return _text("broken", TILE, TILE, color=(200, 0, 0))
    scale = TILE / max(image.shape[:2])
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    small = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return _widen(_heighten(small, TILE), TILE)


def _text(text: str, width: int, height: int, *, color: tuple[int, int, int] = INK, scale: float = 0.45) -> ImageArray:
    """Draw a line of text on white; OpenCV has ASCII letters only, others become question marks."""
    paper = np.full((height, width, 3), PAPER, dtype=np.uint8)
    shown = text.encode("ascii", "replace").decode()
    cv2.putText(paper, shown, (6, height // 2 + 5), cv2.FONT_HERSHEY_SIMPLEX, scale, color, 1, cv2.LINE_AA)
    return paper


def _margin(image: ImageArray) -> ImageArray:
    return np.pad(image, ((FRAME, FRAME), (FRAME, FRAME), (0, 0)), constant_values=PAPER)


def _widen(image: ImageArray, width: int) -> ImageArray:
    return np.pad(image, ((0, 0), (0, width - image.shape[1]), (0, 0)), constant_values=PAPER)


def _heighten(image: ImageArray, height: int) -> ImageArray:
    return np.pad(image, ((0, height - image.shape[0]), (0, 0), (0, 0)), constant_values=PAPER)
