"""Lists of pairs: every form in the wild is read, a broken one is named by its line, and none leaves its folder."""

import csv
from pathlib import Path

import numpy as np
import pytest

from facebones.data.pair_bins import write_pairs
from facebones.data.pair_lists import read_pair_list, read_pair_set
from facebones.errors import DataError
from facebones.evaluation.verification import one_kind_folds


def write_lfw(root: Path, text: str) -> Path:
    for name in ("Ann/Ann_0001.jpg", "Ann/Ann_0012.png", "Bo_Li/Bo_Li_0001.jpg"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(name.encode())
    (root / "pairs.txt").write_text(text)
    return root / "pairs.txt"


def test_list_of_lfw(tmp_path):
    path = write_lfw(tmp_path, "1\t1\nAnn\t1\t12\nAnn\t1\tBo_Li\t1\n")
    pairs = read_pair_list(path, tmp_path)
    first, other, stranger = b"Ann/Ann_0001.jpg", b"Ann/Ann_0012.png", b"Bo_Li/Bo_Li_0001.jpg"
    assert list(pairs.images) == [first, other, first, stranger]
    assert pairs.is_same.tolist() == [True, False]
    assert pairs.name == "pairs"


def test_an_image_is_read_once_however_its_name_is_written(tmp_path):
    names = ["Ann/Ann_0001.jpg", "./Ann/Ann_0001.jpg", "Ann//./Ann_0001.jpg", "Ann\\Ann_0001.jpg"]
    lines = [f"{names[0]} {name} 1" for name in names] + [f"{names[1]} Bo_Li/Bo_Li_0001.jpg 0"] * 4
    pairs = read_pair_list(write_lfw(tmp_path, "\n".join(lines)), tmp_path)
    assert len({id(image) for image in pairs.images}) == 2


def test_list_of_lfw_with_a_single_number_above(tmp_path):
    path = write_lfw(tmp_path, "1\nAnn 1 12\nAnn 1 Bo_Li 1\n")
    assert read_pair_list(path, tmp_path).is_same.tolist() == [True, False]


FORMS_OF_LFW = {
    "without heading": "",
    "pairs alone": "10\n",
    "names of columns": "name\timagenum1\timagenum2\n",
}


@pytest.mark.parametrize("heading", FORMS_OF_LFW.values(), ids=FORMS_OF_LFW)
@pytest.mark.parametrize("separator", ["\t", ",", " "])
def test_lists_of_lfw_without_folds_are_dealt_over_the_folds(tmp_path, heading, separator):
    write_lfw(tmp_path, "")
    rows = [["Ann", "1", "12"]] * 10 + [["Ann", "1", "Bo_Li", "1"]] * 10
    text = heading + "\n".join("\t".join(row) + ("\t" if len(row) == 3 else "") for row in rows)
    (tmp_path / "pairs.txt").write_text(text.replace("\t", separator))
    pairs = read_pair_list(tmp_path / "pairs.txt", tmp_path)
    assert pairs.is_same.tolist() == [True, False] * 10
    assert "10 of 10 would hold pairs of one kind only" in pairs.notes[0]


def test_a_list_without_folds_whose_order_is_sound_keeps_it(tmp_path):
    rows = ["Ann 1 12", "Ann 1 Bo_Li 1", "Ann 12 Bo_Li 1", "Ann 12 1"] * 10
    headless = read_pair_list(write_lfw(tmp_path, "\n".join(rows)), tmp_path)
    assert headless.is_same.tolist() == [True, False, False, True] * 10
    assert headless.notes == ()


@pytest.mark.parametrize(
    ("genuine", "impostor", "form"),
    [
        ("1", "0", "{a},{b},{m}"),
        ("1", "-1", "{a},{b},{m}"),
        ("1", "0", "{m} {a} {b}"),
        ("1", "-1", "{m}\t{a}\t{b}"),
        ("True", "False", "{a};{b};{m}"),
        ("1.0", "0.0", '"{a}","{b}",{m}'),
    ],
)
@pytest.mark.parametrize("heading", ["", "names"])
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_marks_headings_and_backslashes(tmp_path, genuine, impostor, form, heading, slash):
    names = [name.replace("/", slash) for name in ("Ann/Ann_0001.jpg", "Ann/Ann_0012.png", "Bo_Li/Bo_Li_0001.jpg")]
    lines = [form.format(a=names[0], b=names[1], m=genuine), form.format(a=names[0], b=names[2], m=impostor)]
    lines = [form.format(a="first", b="second", m="label"), *lines] if heading else lines
    pairs = read_pair_list(write_lfw(tmp_path, "\n".join(lines)), tmp_path)
    assert pairs.is_same.tolist() == [True, False]
    assert pairs.images[3] == b"Bo_Li/Bo_Li_0001.jpg"


@pytest.mark.parametrize(
    "form",
    [
        '"{a}","{b}",{m}',
        '{m},"{a}","{b}"',
        '"{a}", "{b}", {m}',
        '"{a}";"{b}";{m}',
        '"{a}"\t"{b}"\t{m}',
        '"{a}" "{b}" {m}',
        '"{a}"   "{b}"   "{m}"  ',
        '"{a}","{b}",{m},',
    ],
)
@pytest.mark.parametrize("folder", ["Lee, Ann", "Lee; Ann; B", "Ann Lee", 'Ann "Bo" Lee', "O'Neal", "a,b;c d"])
@pytest.mark.parametrize("heading", [False, True])
def test_quotes_protect_separators_as_in_csv(tmp_path, form, folder, heading):
    (tmp_path / folder).mkdir()
    for number in "12":
        (tmp_path / folder / f"{number}.jpg").write_bytes(number.encode())
    first, second = (f"{folder}/{number}.jpg".replace('"', '""') for number in "12")
    lines = [form.format(a=first, b=second, m=1), form.format(a=second, b=second, m=0)]
    lines = [form.format(a="first, image", b="second", m="same"), *lines] if heading else lines
    pairs = read_pair_list(write_lfw(tmp_path, "\n".join(lines)), tmp_path)
    assert (list(pairs.images), pairs.is_same.tolist()) == ([b"1", b"2", b"2", b"2"], [True, False])


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_a_csv_writer_writes_is_read(tmp_path, quoting, delimiter):
    names = ['a,b/1 "x";y.jpg', "c d/2.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(name.encode())
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting)
        writer.writerows([("first", "second", "same"), (*names, 1), (*names[::-1], 0)])
    pairs = read_pair_list(tmp_path / "pairs.csv", tmp_path)
    assert [image.decode() for image in pairs.images] == [*names, *names[::-1]]


def test_a_quote_without_an_end_is_an_error_of_its_line(tmp_path):
    text = 'Ann/Ann_0001.jpg,Ann/Ann_0012.png,1\n"Ann/Ann_0001.jpg,Ann/Ann_0012.png,1\nAnn/Ann_0001.jpg,a.jpg,0\n'
    with pytest.raises(DataError, match=r"pairs\.txt, line 2: a quote without its end; correct the line"):
        read_pair_list(write_lfw(tmp_path, text), tmp_path)
    with pytest.raises(DataError, match=r"pairs\.txt, line 1: "):
        read_pair_list(write_lfw(tmp_path, f'"{"a" * 200_000}",b,1\n'), tmp_path)


HEADED_FORMS = {
    "lfw": ("folds pairs", ["1 1", "Ann 1 12", "Ann 1 Bo_Li 1"]),
    "development": ("pairs", ["1", "Ann 1 12", "Ann 1 Bo_Li 1"]),
    "lfw without counts": ("name image image", ["Ann 1 12", "Ann 1 Bo_Li 1"]),
    "lfw without counts, four": ("name image name image", ["Ann 1 12", "Ann 1 Bo_Li 1"]),
    "calfw": (
        "image fold",
        ["Ann/Ann_0001.jpg 1", "Ann/Ann_0012.png 1", "Ann/Ann_0001.jpg 0", "Bo_Li/Bo_Li_0001.jpg 0"],
    ),
    "mark last": ("a b same", ["Ann/Ann_0001.jpg Ann/Ann_0012.png 1", "Ann/Ann_0001.jpg Bo_Li/Bo_Li_0001.jpg 0"]),
    "mark first": ("same a b", ["1 Ann/Ann_0001.jpg Ann/Ann_0012.png", "0 Ann/Ann_0001.jpg Bo_Li/Bo_Li_0001.jpg"]),
}


@pytest.mark.parametrize("separator", [" ", "\t", ","])
@pytest.mark.parametrize(("heading", "rows"), HEADED_FORMS.values(), ids=HEADED_FORMS)
def test_a_heading_is_skipped_in_every_form(tmp_path, heading, rows, separator):
    read = []
    for lines in (rows, [heading, *rows], ["", heading, "", *rows]):
        text = "\n".join(lines).replace(" ", separator)
        pairs = read_pair_list(write_lfw(tmp_path, text), tmp_path)
        read.append((pairs.images, pairs.is_same.tolist(), pairs.notes))
    assert read[0] == read[1] == read[2]
    assert read[0][1] == [True, False]


def test_pandas_numbers_the_rows_of_every_form(tmp_path):
    for heading, rows in (HEADED_FORMS["calfw"], HEADED_FORMS["mark last"], HEADED_FORMS["mark first"]):
        lines = [",".join(["", *heading.split()]), *(",".join([str(n), *row.split()]) for n, row in enumerate(rows))]
        pairs = read_pair_list(write_lfw(tmp_path, "\n".join(lines)), tmp_path)
        assert (pairs.is_same.tolist(), pairs.images[3]) == ([True, False], b"Bo_Li/Bo_Li_0001.jpg")


@pytest.mark.parametrize(("folds", "each"), [(2, 10), (5, 4), (20, 1), (4, 5), (1, 10)])
def test_another_number_of_folds_than_ten_is_said_and_dealt(tmp_path, folds, each):
    """Halves of a list's five folds would hold one kind of pair; the ten must be parts of the five."""
    person = tmp_path / "P"
    person.mkdir()
    for number in range(2 * folds * each + 1):
        (person / f"P_{number:04d}.jpg").write_bytes(str(number).encode())
    rows = [f"{folds} {each}"]
    for number in range(2 * folds * each):
        genuine = number // each % 2 == 0
        rows.append(f"P {number} {number + 1}" if genuine else f"P {number} P {number + 1}")
    pairs = read_pair_list(write_lfw(tmp_path, "\n".join(rows)), tmp_path)
    assert len(pairs) == 2 * folds * each
    assert one_kind_folds(pairs.is_same) == 0
    assert f"states {folds} fold" in pairs.notes[0]
    assert "the evaluation takes 10" in pairs.notes[0]
    stated = [int(image) // (2 * each) for image in pairs.images[::2]]  # the fold of each pair in the list
    for fold in np.array_split(np.array(stated), 10):
        assert len(set(fold.tolist())) <= max(1, folds // 10) or folds == 4


def test_another_number_of_folds_with_too_few_pairs_for_ten_keeps_the_order(tmp_path):
    pairs = read_pair_list(write_lfw(tmp_path, "2 1\n" + "Ann 1 12\nAnn 1 Bo_Li 1\n" * 2), tmp_path)
    assert pairs.is_same.tolist() == [True, False] * 2
    assert "states 2 folds" in pairs.notes[0]


def test_ten_folds_are_those_of_the_list(tmp_path):
    rows = ["10 1", *["Ann 1 12", "Ann 1 Bo_Li 1"] * 10]
    assert read_pair_list(write_lfw(tmp_path, "\n".join(rows)), tmp_path).notes == ()


def test_column_of_row_numbers_that_pandas_writes(tmp_path):
    text = ",first,second,same\n0,Ann/Ann_0001.jpg,Ann/Ann_0012.png,1\n1,Ann/Ann_0001.jpg,Bo_Li/Bo_Li_0001.jpg,0\n"
    assert read_pair_list(write_lfw(tmp_path, text), tmp_path).is_same.tolist() == [True, False]


def test_images_of_a_flat_folder(tmp_path):
    path = write_lfw(tmp_path, "Ann 1 12\nAnn 1 Bo_Li 1\n")
    for image in list(tmp_path.glob("*/*")):
        image.rename(tmp_path / image.name)
    assert read_pair_list(path, tmp_path).images[3] == b"Bo_Li/Bo_Li_0001.jpg"


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", "   ", ";", "; "])
def test_plain_list(tmp_path, separator):
    lines = [["Ann/Ann_0001.jpg", "Ann/Ann_0012.png", "1"], ["Bo_Li/Bo_Li_0001.jpg", "Ann/Ann_0001.jpg", "0"]]
    path = write_lfw(tmp_path, "\n\n".join(separator.join(line) for line in lines))
    pairs = read_pair_list(path, tmp_path)
    assert [image.decode() for image in pairs.images] == [*lines[0][:2], *lines[1][:2]]
    assert pairs.is_same.tolist() == [True, False]


ROW_NUMBERS = ["", "index", "Unnamed: 0", "Index", "idx", "row"]


@pytest.mark.parametrize("name", ROW_NUMBERS)
@pytest.mark.parametrize("first", [0, 1, 700])
@pytest.mark.parametrize("form", ["calfw", "mark last", "mark first"])
def test_a_column_of_row_numbers_is_skipped_by_its_name(tmp_path, name, first, form):
    heading, rows = HEADED_FORMS[form]
    lines = [[name, *heading.split()], *([str(first + n), *row.split()] for n, row in enumerate(rows))]
    pairs = read_pair_list(write_lfw(tmp_path, "\n".join(map(",".join, lines))), tmp_path)
    assert (pairs.is_same.tolist(), pairs.images[3]) == ([True, False], b"Bo_Li/Bo_Li_0001.jpg")


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (3, 1, 5, 0, 2, 4)])
@pytest.mark.parametrize("label", ["label", "Same", "is_same", "issame"])
def test_further_columns_are_left_out_by_their_names_with_a_note(tmp_path, order, label):
    rows = [
        ["img1", "img2", label, "score", "fold", "index"],
        ["Ann/Ann_0001.jpg", "Ann/Ann_0012.png", "1", "0.7", "1", "0"],
        ["Ann/Ann_0001.jpg", "Bo_Li/Bo_Li_0001.jpg", "0", "1", "0", "1"],
    ]
    text = "\n".join(",".join(row[place] for place in order) for row in rows)
    pairs = read_pair_list(write_lfw(tmp_path, text), tmp_path)
    assert pairs.is_same.tolist() == [True, False]
    assert b"Bo_Li/Bo_Li_0001.jpg" in pairs.images[2:]
    [note] = pairs.notes
    assert "score" in note and "fold" in note and "not read" in note and "img1" not in note


@pytest.mark.parametrize("separator", [",", ";"])
def test_marks_behind_a_comma_or_a_semicolon(tmp_path, separator):
    path = write_marked(tmp_path, 20, 13, [1, 2] * 10)
    path.write_text(path.read_text().replace("\t", separator))
    assert len(read_pair_list(path, tmp_path)) == 33


def test_commas_in_names_between_semicolons(tmp_path):
    (tmp_path / "Lee, Ann").mkdir()
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "Lee, Ann" / name).write_bytes(name.encode())
    path = tmp_path / "pairs.csv"
    path.write_text("Lee, Ann/1.jpg;Lee, Ann/2.jpg;1\n")
    assert read_pair_list(path, tmp_path).images == [b"1.jpg", b"2.jpg"]


@pytest.mark.parametrize("impostor", ["0", "-1"])
def test_a_list_of_calfw_may_mark_impostors_by_either_number(tmp_path, impostor):
    path = write_marked(tmp_path, 20, 13, [1, 2] * 10)
    path.write_text(path.read_text().replace("\t0", f"\t{impostor}"))
    pairs = read_pair_list(path, tmp_path)
    assert (len(pairs), int(pairs.is_same.sum())) == (33, 20)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_lists_in_the_encodings_of_excel(tmp_path, encoding):
    text = "a,b,same\r\nAnn/Ann_0001.jpg,Bo_Li/Bo_Li_0001.jpg,0\r\nÉva.jpg,Éva.jpg,1\r\n"
    (tmp_path / "Éva.jpg").write_bytes(b"Eva")
    path = write_lfw(tmp_path, "")
    path.write_bytes((("\ufeff" if encoding == "utf-16-be" else "") + text).encode(encoding))
    assert read_pair_list(path, tmp_path).is_same.tolist() == [False, True]
    if encoding.startswith("utf-16"):
        path.write_bytes(path.read_bytes() + b"\xd8")
        with pytest.raises(DataError, match=r"byte \d+: not UTF-16 text"):
            read_pair_list(path, tmp_path)


def write_marked(root: Path, genuine: int, impostor: int, marks: list[int]) -> Path:
    """A list as CALFW has it: all genuine pairs, marked with their folds, then all impostor pairs, marked 0."""
    lines = []
    for pair in range(genuine + impostor):
        mark = marks[pair] if pair < genuine else 0
        for side in "ab":
            lines.append(f"{pair:03d}{side}.jpg\t{mark}")
            (root / f"{pair:03d}{side}.jpg").write_bytes(f"{pair}{side}".encode())
    (root / "pairs_CALFW.txt").write_text("\r\n".join(lines) + "\n")
    return root / "pairs_CALFW.txt"


def test_list_of_calfw_is_dealt_over_the_folds_by_its_marks(tmp_path):
    marks = [10, 9, 8, 7, 6, 5, 4, 3, 2, 1] * 3  # three genuine pairs in each fold, not in their order
    pairs = read_pair_list(write_marked(tmp_path, 30, 20, marks), tmp_path)
    np.testing.assert_array_equal(pairs.is_same.reshape(10, 5), [[True] * 3 + [False] * 2] * 10)
    numbers = [int(image[:-1]) for image in pairs.images[::2]]
    assert numbers == [int(image[:-1]) for image in pairs.images[1::2]]
    assert {image[-1:] for image in pairs.images[::2]} == {b"a"}
    for fold, chosen in enumerate(np.reshape(numbers, (10, 5)).tolist()):
        assert [marks[pair] for pair in chosen[:3]] == [fold + 1] * 3
        assert chosen[3:] == [30 + 2 * fold, 31 + 2 * fold]


def test_list_of_cplfw_with_one_mark_only(tmp_path):
    pairs = read_pair_list(write_marked(tmp_path, 20, 13, [1] * 20), tmp_path)
    assert (len(pairs), int(pairs.is_same.sum())) == (33, 20)
    assert sorted(int(image[:-1]) for image in pairs.images[::2]) == list(range(33))


def test_list_of_xqlfw(tmp_path):
    """LFW's form with tabs, several folds and names of one word."""
    lines = ["2\t1", "Ann\t1\t12", "Ann\t1\tBo_Li\t1", "Ann\t12\t1", "Bo_Li\t1\tAnn\t12"]
    path = write_lfw(tmp_path, "\n".join(lines) + "\n").rename(tmp_path / "xqlfw_pairs.txt")
    pairs = read_pair_set(path)
    assert pairs.is_same.tolist() == [True, False, True, False]
    assert pairs.images[-1] == b"Ann/Ann_0012.png"


def test_a_pair_set_is_a_bin_file_or_a_list(tmp_path):
    path = write_lfw(tmp_path, "Ann/Ann_0001.jpg Ann/Ann_0012.png 1\n")
    (tmp_path / "lists").mkdir()
    elsewhere = path.rename(tmp_path / "lists" / "pairs.txt")
    pairs = read_pair_set(elsewhere, tmp_path)
    write_pairs(tmp_path / "pairs.bin", pairs.images, pairs.is_same)
    assert list(read_pair_set(tmp_path / "pairs.bin").images) == list(pairs.images)
    with pytest.raises(DataError, match=r"Ann_0001\.jpg cannot be read: No such file.*--root"):
        read_pair_set(elsewhere)
    with pytest.raises(DataError, match=r"pairs\.bin: a .bin file holds its images"):
        read_pair_set(tmp_path / "pairs.bin", tmp_path)


@pytest.mark.parametrize(
    ("root", "name"),
    [(".", "../secret.txt"), (".", "ann/../../secret.txt"), ("..", "../secret.txt"), ("../list", "../secret.txt")],
)
def test_a_list_cannot_leave_a_root_that_is_given_by_dots(tmp_path, monkeypatch, root, name):
    (tmp_path / "above" / "list" / "ann").mkdir(parents=True)
    for secret in (tmp_path / "secret.txt", tmp_path / "above" / "secret.txt"):
        secret.write_text("a secret")
    monkeypatch.chdir(tmp_path / "above" / "list")
    Path("list.txt").write_text(f"{name} {name} 1\n")
    with pytest.raises(DataError, match=r"list\.txt, line 1: .*secret\.txt leads out of \.+"):
        read_pair_set("list.txt", root)


def test_a_list_may_go_about_inside_its_root(tmp_path, monkeypatch):
    """By a link that its owner has set, by a whole path, up and down again, by a name that begins with dots."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root" / "ann").mkdir(parents=True)
    (tmp_path / "elsewhere" / "1.jpg").write_bytes(b"linked")
    (tmp_path / "root" / "..2.jpg").write_bytes(b"dotted")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "root")
    Path("list.txt").write_text(f"link/1.jpg ..2.jpg 0\n{tmp_path}/root/link/1.jpg ann/../..2.jpg 0\n")
    for root in (".", "../root", tmp_path / "root"):
        assert read_pair_set("list.txt", root).images == [b"linked", b"dotted"] * 2
    assert read_pair_set("list.txt").images == [b"linked", b"dotted"] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no pair"),
        ("a.jpg 1\nb.jpg 0\n", "line 2: mark 0, but its pair began with mark 1"),
        ("a.jpg 1\nb.jpg 1\nc.jpg 0\n", "line 3: an image without a second one; two lines make a pair"),
        ("a.jpg 1\nb.jpg one\n", "line 2: 'b.jpg one' is not 'image mark'"),
        ("a.jpg 1\nb.jpg c.jpg 1\n", "line 2: .* is not 'image mark'"),
        ("a.jpg 1\nb.jpg -1\n", "line 2: mark -1, but its pair began with mark 1"),
        ("a.jpg 0\nb.jpg 0\nc.jpg -1\nd.jpg -1\n", "line 4: impostor pairs are marked 0 or -1, and this list has both"),
        ("a.jpg -2\nb.jpg -2\n", "line 1: .* is not 'image mark'"),
        ("a,b,label,score\na.jpg,b,1,0.5\n", "line 2: .* name the columns .* two of image files and one named label"),
        ("a,b,score,fold\na.jpg,b.jpg,1,0\n", "line 2: .* name the columns .* two of image files and one named label"),
        ("a.jpg,b.jpg,1,0.5\n", "line 1: .* name the columns .* two of image files and one named label"),
        ("Ann/Ann_0001.jpg 1\n../b.jpg 1\n", r"line 2: \.\./b\.jpg leads out of"),
        (f"{'9' * 5000}\n", "line 1: '9+' is not 'image image 0|1'"),
        (f"1 1\nAnn 1 {'9' * 5000}\nAnn 1 12\n", "line 2: .* is not 'name n m'"),
        ("10 300\nAnn 1 12\n", "line 1: promises 6000 pairs, but 1 line follows"),
        ("1 1\nAnn 1 12\nAnn 1\n", "line 3: 'Ann 1' is not 'name n m' or 'name n other m'"),
        ("1 1\nAnn 1 12\nAnn one Bo_Li 1\n", "line 3: 'Ann one Bo_Li 1' is not"),
        ("1 1\nAnn 1 12\nAnn 1 Bo_Li 7\n", r"line 3: .*Bo_Li/Bo_Li_0007\.jpg cannot be read: No such file"),
        (
            "Ann/Ann_0001.jpg Ann/Ann_0012.png 1\nAnn/Ann_0001.jpg\n",
            "line 2: 'Ann/Ann_0001.jpg' is not 'image image 0|1'",
        ),
        ("Ann/Ann_0001.jpg Ann/Ann_0012.png 2\n", "line 1: .* is not 'image image 0|1'"),
        ("Ann/Ann_0001.jpg ../../etc/passwd 0\n", r"line 1: \.\./\.\./etc/passwd leads out of"),
        ("Ann/Ann_0001.jpg ..\\..\\etc\\passwd 0\n", r"line 1: \.\./\.\./etc/passwd leads out of"),
        ("Ann/Ann_0001.jpg \\etc\\passwd 0\n", r"line 1: /etc/passwd leads out of"),
        ("Ann/Ann_0001.jpg Ann/Ann_0012.png 0\n1 Ann/Ann_0001.jpg Ann/Ann_0012.png\n", "line 2: .* is not 'image"),
        (
            "Ann/Ann_0001.jpg Ann/Ann_0012.png 0\nAnn/Ann_0001.jpg Ann/Ann_0012.png -1\n",
            "line 2: .* are marked 0 or -1, and this list has both",
        ),
        ("first second same\nthird fourth same\n", "line 1: 'first second same' is not 'image image 0|1'"),
        ("Ann/Ann_0001.jpg /etc/passwd 0\n", r"line 1: /etc/passwd leads out of"),
        ("1 1\n../Ann 1 12\n../Ann 1 Ann 1\n", r"line 2: \.\./Ann/\.\./Ann_0001\.jpg .*"),
    ],
)
def test_broken_list_is_named_by_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_pair_list(write_lfw(tmp_path, text), tmp_path)


def test_list_that_is_no_text(tmp_path):
    (tmp_path / "pairs.txt").write_bytes(b"a b \xff")
    with pytest.raises(DataError, match=r"pairs\.txt, byte 4: not UTF-8 text"):
        read_pair_list(tmp_path / "pairs.txt", tmp_path)
