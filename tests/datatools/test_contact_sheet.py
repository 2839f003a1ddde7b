import cv2
import numpy as np
import pytest

from facebones.datatools.contact_sheet import CONTENT, MARGIN, PAPER, write_face_sheet, write_pair_sheet
from facebones.datatools.lettering import shortened, text_width, write

FACE = np.full((112, 112, 3), 90, dtype=np.uint8)


def sheet(path):
    return cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)


def paper(width=200):
    return np.full((24, width, 3), 255, dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 8, 9, 20])
def test_long_rows_are_broken_and_the_sheet_keeps_its_width(tmp_path, count):
    write_face_sheet(tmp_path / "faces.png", "People: some", [("a row", [FACE] * count)])
    drawn = sheet(tmp_path / "faces.png")
    assert drawn.shape[1] == CONTENT + 2 * MARGIN
    assert (drawn == 90).all(axis=2).sum() == count * FACE.shape[0] * FACE.shape[1]


def test_four_pairs_are_as_wide_as_eight_faces(tmp_path):
    write_face_sheet(tmp_path / "faces.png", "a", [("b", [FACE] * 8)])
    write_pair_sheet(tmp_path / "pairs.png", "a", [("0.91 lfw 12, 345", FACE, FACE)] * 4)
    used = [
        np.flatnonzero((sheet(tmp_path / name) == 90).all(axis=(2)).any(axis=0)) for name in ("faces.png", "pairs.png")
    ]
    assert used[0][0] == used[1][0] and used[0][-1] == used[1][-1]


def test_a_sheet_of_nothing_has_its_title(tmp_path):
    write_pair_sheet(tmp_path / "pairs.png", "No pairs", [])
    assert (sheet(tmp_path / "pairs.png") != PAPER).any()


def test_a_narrow_image_stands_in_the_middle_of_its_square(tmp_path):
    write_face_sheet(tmp_path / "faces.png", "a", [("b", [FACE[:, :56]])])
    columns = np.flatnonzero((sheet(tmp_path / "faces.png") == 90).all(axis=2).any(axis=0))
    assert len(columns) == 56 and columns[0] == MARGIN + 1 + 28


def test_a_long_name_keeps_the_sheet_narrow(tmp_path):
    write_face_sheet(tmp_path / "faces.png", "n" * 5000, [("m" * 5000, [FACE])])
    drawn = sheet(tmp_path / "faces.png")
    assert drawn.shape[1] == CONTENT + 2 * MARGIN
    assert (drawn[:, -MARGIN:] == PAPER).all()


def test_text_stands_on_its_baseline():
    page = paper()
    end = write(page, "Hx", (10, 18), 13, (0, 0, 0))
    rows, columns, _ = np.nonzero(page < 128)
    assert rows.max() in {16, 17} and rows.min() >= 6
    assert columns.min() >= 10 and columns.max() < end <= 40


def test_letters_of_other_alphabets_are_written_and_unknown_ones_marked():
    unlike = [paper() for _ in range(4)]
    for page, text in zip(unlike, ("?", "\u0416", "\u00e9", "\u4e2d"), strict=True):
        write(page, text, (5, 18), 13, (0, 0, 0))
    assert (unlike[0] != unlike[1]).any() and (unlike[0] != unlike[2]).any()
    np.testing.assert_array_equal(unlike[0], unlike[3])


def test_text_beyond_the_paper_is_cut_off():
    page = paper(20)
    write(page, "a long line of text", (5, 4), 16, (0, 0, 0))
    write(page, "a long line of text", (5, 40), 16, (0, 0, 0))
    write(page, "outside", (50, 12), 16, (0, 0, 0))
    assert (page < 255).any()


@pytest.mark.parametrize("text", ["n" * 90, "ab" * 3000])
def test_a_line_is_shortened_to_its_room(text):
    line = shortened(text, 13, 120)
    assert 80 < text_width(line, 13) <= 120
    assert line[0] == text[0] and line[-1] == text[-1] and "\N{HORIZONTAL ELLIPSIS}" in line
