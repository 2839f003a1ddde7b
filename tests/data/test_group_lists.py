"""Files of groups: what is read, and what is refused in one line."""

import numpy as np
import pytest

from facebones.data import group_lists as module
from facebones.data.group_lists import Faces, groups_file, read_groups
from facebones.errors import DataError

PEOPLE = Faces(
    images=["ann/1.jpg", "ann/2.jpg", "bo, jr/1.jpg", "cy/1.jpg"],
    item=np.arange(4),
    person=np.array([0, 0, 1, 2]),
    people=["ann", "ann", "bo, jr", "cy"],
)
TEMPLATES = Faces(images=["1.jpg", "2.jpg", "3.jpg", "4.jpg"], item=np.array([0, 0, 1, 1]))


@pytest.fixture
def read(tmp_path):
    def _read(text, faces=PEOPLE):
        (tmp_path / "groups.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_groups(tmp_path / "groups.csv", faces, "friends")

    return _read


def test_people_have_groups(read):
    sex, age = read('person,sex,age\nann,f,old\n"bo, jr",m,\n\ncy,f,"young"\n')
    assert (sex.name, sex.groups, sex.group.tolist(), sex.without) == ("sex", ("f", "m"), [0, 0, 1, 0], 0)
    assert (age.groups, age.group.tolist(), age.without) == (("old", "young"), [0, 0, -1, 1], 1)


@pytest.mark.parametrize("mark", [";", "\t"])
def test_excel_may_separate_the_fields_otherwise(read, mark):
    text = 'person,sex,age\nann,f,old\nbo\\ jr,m,\n\ncy,f,"young, or so"\n'.replace(",", mark).replace("\\", ",")
    sex, age = read(text.replace(f"young{mark}", "young,"))
    assert (sex.groups, sex.group.tolist(), sex.without) == (("f", "m"), [0, 0, 1, 0], 0)
    assert (age.groups, age.group.tolist(), age.without) == (("old", "young, or so"), [0, 0, -1, 1], 1)


@pytest.mark.parametrize("text", ["\ufeff", "\u00a0\n", "\x1c"])
def test_a_file_of_blanks_that_only_text_knows_is_one_line(read, text):
    with pytest.raises(DataError, match="holds no line"):
        read(text)


def test_images_have_groups_and_those_without_are_counted(read):
    (camera,) = read(b"\xef\xbb\xbfIMAGE, camera\r\nann/2.jpg, door\r\nann/1.jpg,phone\r\n")
    assert camera.groups == ("door", "phone") and camera.group.tolist() == [1, 0, -1, -1] and camera.without == 2


def test_templates_have_the_group_of_their_images(read):
    (camera,) = read("image,camera\n1.jpg,a\n2.jpg,b\n3.jpg,b\n", TEMPLATES)
    assert camera.group.tolist() == [-1, 1] and (camera.mixed, camera.without) == (1, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no line"),
        ("name,sex\nann,f\n", r"line 1: 'name' is neither image nor person; the first column names the rows"),
        ("person\nann\n", r"line 1: 0 columns of groups; give 1 to 50, such as person,sex,age_band"),
        ("person,sex,\nann,f,x\n", r"line 1: column 3 has no name"),
        ("person,sex,sex\nann,f,m\n", r"line 1: the column 'sex' stands twice"),
        ("person,sex\nann,f,m\n", r"line 2: 3 fields for 2 columns"),
        ("person,sex\nann,f\ndee,m\n", r"line 3: no person 'dee' in friends; write names like 'ann'"),
        ("image,sex\n1.jpg,f\n", r"line 2: no image '1.jpg' in friends; write names like 'ann/1.jpg'"),
        ("person,sex\nann,f\ncy,m\nann,f\n", r"line 4: 'ann' stands in line 2 already; remove one"),
        ("person,sex\nann,f\ncy,f\n", r"the column 'sex' has one group only, 'f'; give two"),
        ("person,sex\nann," + 61 * "f" + "\n", r"line 2: 'f{60}'\.\.\. is longer than 60 characters"),
        ("person," + 61 * "f" + "\nann,f\n", r"line 1: 'f{60}'\.\.\. is longer than 60 characters"),
        ("person,sex\nann,\n", r"the column 'sex' has no group"),
        ('person,sex\n"ann,f\n', r"line 2: unexpected end of data; correct the quotes"),
        (b"person,sex\nann,\xff\n", r"line 2: not UTF-8 text"),
        (b"person,sex\nann,f\n" + b"x" * 3_000_000, r"longer than \d+ bytes"),
    ],
)
def test_a_broken_file_is_one_line(read, text, said):
    with pytest.raises(DataError, match=said) as caught:
        read(text)
    assert "groups.csv" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_rows_of_people_need_a_set_that_names_them(read):
    with pytest.raises(DataError, match="friends does not name its people; give rows of images"):
        read("person,sex\nann,f\n", TEMPLATES)


def test_too_many_groups_are_refused(read, monkeypatch):
    monkeypatch.setattr(module, "MOST_GROUPS", 2)
    with pytest.raises(DataError, match=r"line 4: more than 2 groups in 'age'; make bands"):
        read('person,age\nann,1\n"bo, jr",2\ncy,3\n')


def test_the_file_lies_in_the_folder_or_beside_the_file(tmp_path):
    (tmp_path / "lfw.bin").touch()
    with pytest.raises(
        DataError, match=r"groups.csv: no such file; write the groups of lfw.bin there, or give --groups"
    ):
        groups_file(tmp_path / "lfw.bin")
    (tmp_path / "groups.csv").touch()
    assert groups_file(tmp_path / "lfw.bin").name == groups_file(tmp_path).name == "groups.csv"
    (tmp_path / "lfw.groups.csv").touch()
    assert groups_file(tmp_path / "lfw.bin").name == "lfw.groups.csv"
