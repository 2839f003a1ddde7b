"""The IJB lists: what is read, and how each way of being broken is named."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from facebones.data import ijb_pairs as template_pairs
from facebones.data import text_lists
from facebones.data.ijb_lists import read_template_set
from facebones.data.ijb_pairs import joined_templates, read_pair_labels, read_scores
from facebones.errors import DataError

POINTS = "1.5 2.5 3.5 4.5 5.5 6.5 7.5 8.5 9.5 10.5"
LISTS = {
    "name_5pts_score.txt": f"a.jpg {POINTS} 0.9\nb.jpg {POINTS} 0.8\nc.jpg {POINTS} 0.7\nd.jpg {POINTS} 0.6\n",
    "face_tid_mid.txt": "a.jpg 10 1\nb.jpg 10 2\nc.jpg 7 2\nd.jpg 30 5\n",
    "template_pair_label.txt": "10 7 1\n7 30 0\n10 30 0\n",
    "1N_gallery_G1.csv": "TEMPLATE_ID,SUBJECT_ID\n10,1\n",
    "1N_gallery_G2.csv": "TEMPLATE_ID,SUBJECT_ID\n30,2\n",
    "1N_probe_mixed.csv": "TEMPLATE_ID,SUBJECT_ID\n7,1\n",
}


@pytest.fixture
def write(tmp_path):
    """Write the folder, with other contents (None: no such file) for some lists; answers its path."""

    def build(target="ijbc", **changes):
        (tmp_path / "meta").mkdir(exist_ok=True)
        for name, content in (LISTS | {key.replace("__", "."): value for key, value in changes.items()}).items():
            path = tmp_path / "meta" / f"{target}_{name}"
            if content is not None:
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path

    return build


@pytest.mark.parametrize("target", ["ijbb", "ijbc"])
def test_reads_every_list(write, target):
    found = read_template_set(write(target))
    assert (found.name, len(found), found.image_names) == (target, 4, ("a.jpg", "b.jpg", "c.jpg", "d.jpg"))
    assert found.landmarks.shape == (4, 5, 2)
    assert found.landmarks.dtype == np.float32
    assert found.landmarks[3].tolist() == [[1.5, 2.5], [3.5, 4.5], [5.5, 6.5], [7.5, 8.5], [9.5, 10.5]]
    np.testing.assert_array_equal(found.detector_score, np.float32([0.9, 0.8, 0.7, 0.6]))
    assert found.template_ids.tolist() == [7, 10, 30]
    assert found.template_of_image.tolist() == [1, 1, 0, 2]
    assert found.medium_of_image.tolist() == [1, 2, 2, 5]
    assert (found.pair_a.tolist(), found.pair_b.tolist()) == ([1, 0, 1], [0, 2, 2])
    assert found.is_same.tolist() == [True, False, False]
    assert found.pair_a.dtype == found.pair_b.dtype == np.int32
    galleries, probes = found.identification_lists()
    assert {name: (one.template.tolist(), one.subject.tolist()) for name, one in galleries.items()} == {
        "G1": ([1], [1]),
        "G2": ([2], [2]),
    }
    assert (probes.template.tolist(), probes.subject.tolist()) == ([0], [1])
    assert found.identities().tolist() == [1, 1, 2]


def test_other_order_of_the_second_list_is_handled_by_name(write):
    found = read_template_set(write(face_tid_mid__txt="d.jpg 30 5\nb.jpg 10 2\nc.jpg 7 2\na.jpg 10 1\n"))
    assert found.template_ids[found.template_of_image].tolist() == [10, 10, 7, 30]
    assert found.medium_of_image.tolist() == [1, 2, 2, 5]


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 20])
def test_blocks_do_not_matter(write, monkeypatch, size):
    monkeypatch.setattr(text_lists, "BLOCK_BYTES", max(size, 40))
    found = read_template_set(write(template_pair_label__txt="10 7 1\n7 30 0\n" * 50 + "10 30 0"))
    assert found.is_same.tolist() == [True, False] * 50 + [False]
    assert found.pair_b.tolist() == [0, 2] * 50 + [2]


@pytest.mark.parametrize("ending", ["", "\n", "\n\n  \n"])
def test_windows_line_ends_tabs_and_blank_ends(write, ending):
    changes = {name.replace(".", "__"): text.replace("\n", "\r\n").strip() + ending for name, text in LISTS.items()}
    changes["template_pair_label__txt"] = changes["template_pair_label__txt"].replace(" ", "\t")
    found = read_template_set(write(**changes))
    assert found.is_same.tolist() == [True, False, False]
    assert found.identities().tolist() == [1, 1, 2]


def test_names_of_the_authors_of_ijbb_are_known(write):
    lists = {"1N_gallery_G1__csv": None, "1N_gallery_S1__csv": LISTS["1N_gallery_G1.csv"]}
    assert read_template_set(write("ijbb", **lists)).galleries["G1"].template.tolist() == [1]


def test_lines_for_each_image_are_one_template(write):
    rows = 'TEMPLATE_ID,SUBJECT_ID,FILENAME\n10,1,img/1.png\n10,1,"a, b"\n'
    found = read_template_set(write(**{"1N_gallery_G1__csv": rows}))
    assert found.galleries["G1"].template.tolist() == [1]


def test_lists_of_excel_may_have_semicolons(write):
    rows = 'TEMPLATE_ID;SUBJECT_ID;FILENAME\n10;1;img/1.png\n10;1;"a, b"\n'
    found = read_template_set(write(**{"1N_gallery_G1__csv": rows}))
    assert found.galleries["G1"].template.tolist() == [1]


def test_without_identification_lists_the_pairs_say_who_is_who(write):
    lists = dict.fromkeys(("1N_gallery_G1__csv", "1N_gallery_G2__csv", "1N_probe_mixed__csv"))
    found = read_template_set(write(**lists))
    assert found.identities().tolist() == [0, 0, -1]
    with pytest.raises(DataError, match=r"ijbc_1N_gallery_G1.csv: no such file; identification"):
        found.identification_lists()


def test_missing_probes_are_named_when_asked_for(write):
    found = read_template_set(write(**{"1N_probe_mixed__csv": None}))
    with pytest.raises(DataError, match=r"ijbc_1N_probe_mixed.csv: no such file"):
        found.identification_lists()


IMAGE_LINE = f"a.jpg {POINTS} 0.9\n"
BROKEN = {
    "no image list": ("name_5pts_score.txt", None, r"name_5pts_score.txt: cannot be read: No such file"),
    "no media list": ("face_tid_mid.txt", None, r"face_tid_mid.txt: cannot be read: No such file"),
    "no pair list": ("template_pair_label.txt", None, r"template_pair_label.txt: cannot be read: No such file"),
    "empty list": ("face_tid_mid.txt", "\n \n", r"face_tid_mid.txt: holds no line"),
    "image only in the first": ("face_tid_mid.txt", "a.jpg 10 1\nb.jpg 10 2\nc.jpg 7 2\n",
                                r"5pts_score.txt, line 4: d.jpg is missing in ijbc_face_tid_mid.txt"),
    "image only in the second": ("face_tid_mid.txt", LISTS["face_tid_mid.txt"] + "e.jpg 7 9\n",
                                 r"face_tid_mid.txt, line 5: e.jpg is missing in ijbc_name_5pts"),
    "image twice": ("name_5pts_score.txt", LISTS["name_5pts_score.txt"] + IMAGE_LINE,
                    r"5pts_score.txt, line 5: a.jpg stands in line 1"),
    "image twice in the second": ("face_tid_mid.txt", LISTS["face_tid_mid.txt"] + "a.jpg 7 9\n",
                                  r"face_tid_mid.txt, line 5: a.jpg stands in line 1"),
    "image elsewhere": ("name_5pts_score.txt", IMAGE_LINE + IMAGE_LINE.replace("a.jpg", "../b.jpg"),
                        r"line 2: ../b.jpg leads out"),
    "image at the root": ("name_5pts_score.txt", IMAGE_LINE.replace("a.jpg", "/etc/x.jpg"), r"line 1: /etc/x.jpg le"),
    "eleven columns": ("name_5pts_score.txt", IMAGE_LINE + f"b.jpg {POINTS}\n", r"line 2: 'b.jpg .*' is not 'image x1"),
    "a column moved": ("name_5pts_score.txt", IMAGE_LINE[:-5] + "\n0.9 " + IMAGE_LINE, r"line 1: .* is not 'image x1"),
    "landmark is a word": ("name_5pts_score.txt", IMAGE_LINE.replace("2.5", "x2"), r"line 1: .* is not 'image x1"),
    "landmark is NaN": ("name_5pts_score.txt", IMAGE_LINE.replace("2.5", "nan"), r"line 1: .* in finite numbers"),
    "landmark is huge": ("name_5pts_score.txt", IMAGE_LINE.replace("2.5", "1e300"), r"line 1: .* in finite numbers"),
    "landmark of 1000 digits": ("name_5pts_score.txt", IMAGE_LINE.replace("2.5", "2" * 1000), r"line 1: .* in finite"),
    "name in latin-1": ("name_5pts_score.txt", IMAGE_LINE.encode() + b"\xe4" + IMAGE_LINE.encode(), r"line 2: .*UTF-8"),
    "template is a word": ("face_tid_mid.txt", "a.jpg 10 1\nb.jpg x 2\n", r"line 2: 'b.jpg x 2' is not 'image temp"),
    "template is negative": ("face_tid_mid.txt", "a.jpg -10 1\n", r"line 1: 'a.jpg -10 1' is not"),
    "medium is a fraction": ("face_tid_mid.txt", "a.jpg 10 1.5\n", r"line 1: 'a.jpg 10 1.5' is not"),
    "no medium": ("face_tid_mid.txt", "a.jpg 10 1\nb.jpg 10\nc.jpg 7 2 3\n", r"line 2: 'b.jpg 10' is not"),
    "label is 2": ("template_pair_label.txt", "10 7 1\n7 30 2\n", r"pair_label.txt, line 2: '7 30 2' is not"),
    "label is a word": ("template_pair_label.txt", "10 7 1\n7 30 yes\n", r"pair_label.txt, line 2: '7 30 yes' is not"),
    "label is negative": ("template_pair_label.txt", "10 7 -1\n", r"line 1: '10 7 -1' is not"),
    "two columns": ("template_pair_label.txt", "10 7 1\n7 30\n0 10 30 0\n", r"line 2: '7 30' is not"),
    "blank line between": ("template_pair_label.txt", "10 7 1\n\n7 30 0\n", r"line 2: '' is not"),
    "number too large": ("template_pair_label.txt", "10 7 1\n99999999999999999999 30 0\n", r"line 2: '9+ 30 0' is not"),
    "control characters": ("template_pair_label.txt", "10 7 1\n7\x0130 0 0\n", r"line 2: "),
    "control character in an image": ("name_5pts_score.txt", IMAGE_LINE + IMAGE_LINE.replace("a.jpg ", "b.jpg\x01"),
                                      r"line 2: .* is not 'image x1"),
    "control character in a medium": ("face_tid_mid.txt", "a.jpg 10 1\nb.jpg\x012 2\n", r"line 2: .* is not 'image t"),
    "pair of no image": ("template_pair_label.txt", "10 7 1\n7 30 0\n8 30 0\n", r"line 3: no image has the template 8"),
    "second of no image": ("template_pair_label.txt", "10 7 1\n7 31 0\n", r"line 2: no image has the template 31"),
    "gallery template twice": ("1N_gallery_G1.csv", "T,S\n10,1\n10,1\n", r"G1.csv, line 3: template 10 is listed"),
    "gallery template of two": ("1N_gallery_G1.csv", "T,S,F\n10,1,a\n10,2,b\n", r"G1.csv, line 3: template 10 is"),
    "probe template twice": ("1N_probe_mixed.csv", "T,S\n7,1\n7,1\n", r"mixed.csv, line 3: template 7 is listed"),
    "gallery of no image": ("1N_gallery_G2.csv", "T,S\n30,2\n31,3\n", r"G2.csv, line 3: no image has the template 31"),
    "probe of no image": ("1N_probe_mixed.csv", "T,S\n8,2\n", r"mixed.csv, line 2: no image has the template 8"),
    "two subjects": ("1N_probe_mixed.csv", "T,S\n10,3\n", r"mixed.csv, line 2: template 10 has the subject 1 in .*G1"),
    "no header": ("1N_gallery_G1.csv", "10,1\n", r"G1.csv, line 1: '10,1' is data; a header line"),
    "header alone": ("1N_gallery_G1.csv", "T,S\n", r"G1.csv: lists no template"),
    "subject is a word": ("1N_gallery_G1.csv", "T,S\n10,me\n", r"G1.csv, line 2: '10,me' is not"),
    "no subject": ("1N_gallery_G1.csv", "T,S\n10\n", r"G1.csv, line 2: '10' is not"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_list_is_one_line_with_file_and_line(write, case):
    name, content, message = BROKEN[case]
    with pytest.raises(DataError, match=message) as caught:
        read_template_set(write(**{name.replace(".", "__"): content}))
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"1", b"23", *(bytes([code]) for code in range(33))]), max_size=12).map(b"".join))
def test_columns_are_those_of_split(text):
    block = text.strip(b"\n") + b"\n"
    lines = [line.split() for line in block[:-1].split(b"\n")]
    for columns in (1, 2, 3):
        assert text_lists.has_columns(block, columns) == all(len(line) == columns for line in lines)
    if text_lists.has_columns(block, 2):
        numbers = text_lists.whole_numbers(block)
        fit = all(text_lists.is_whole_number(field) for line in lines for field in line)
        assert fit == (numbers is not None)
        assert not fit or numbers.tolist() == [int(field) for line in lines for field in line]


def test_line_numbers_go_on_from_block_to_block(write, monkeypatch):
    monkeypatch.setattr(text_lists, "BLOCK_BYTES", 100)
    with pytest.raises(DataError, match="line 1000: '7 30 3' is not"):
        read_pair_labels(write(template_pair_label__txt="10 7 1\n" * 999 + "7 30 3\n"))


def test_a_line_without_end_is_refused_before_it_fills_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_lists, "BLOCK_BYTES", 1000)
    (tmp_path / "pairs.txt").write_bytes(b"1" * 5000)
    with pytest.raises(DataError, match="line 1: longer than 1000 bytes"):
        read_pair_labels(tmp_path / "pairs.txt")


def test_a_folder_without_lists_and_one_with_both(write, tmp_path):
    with pytest.raises(DataError, match=r"meta: no ijbb_name_5pts_score.txt or ijbc_name_5pts_score.txt in it"):
        read_template_set(tmp_path)
    write("ijbb")
    with pytest.raises(DataError, match="holds lists of ijbb and ijbc"):
        read_template_set(write("ijbc"))


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("place", ["", "meta", "meta/ijbc_template_pair_label.txt"])
def test_pairs_alone(write, monkeypatch, place, table):
    if not table:
        monkeypatch.setattr(template_pairs, "LARGEST_TABLE", 0)
    pairs = read_pair_labels(write() / place)
    assert pairs.template_ids.tolist() == [7, 10, 30]
    assert (pairs.pair_a.tolist(), pairs.pair_b.tolist()) == ([1, 0, 1], [0, 2, 2])
    assert (len(pairs), pairs.is_same.tolist()) == (3, [True, False, False])
    assert pairs.pair_a.dtype == pairs.template_ids.dtype == np.int32
    assert pairs.identities().tolist() == [0, 0, -1]


def test_a_folder_without_pairs(tmp_path):
    with pytest.raises(DataError, match=r"holds no ijbX_template_pair_label.txt"):
        read_pair_labels(tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_subjects_are_the_connected_components_of_the_genuine_pairs(seed):
    random = np.random.default_rng(seed)
    templates, pairs = 300, 250
    pair_a, pair_b = random.integers(0, templates, (2, pairs)).astype(np.int32)
    is_same = random.random(pairs) < 0.6
    found = joined_templates(templates, pair_a, pair_b, is_same)
    genuine = coo_matrix((np.ones(is_same.sum()), (pair_a[is_same], pair_b[is_same])), (templates, templates))
    _, components = connected_components(genuine, directed=False)
    known = np.zeros(templates, dtype=bool)
    known[pair_a[is_same]] = known[pair_b[is_same]] = True
    assert (found[~known] == -1).all()
    together = np.unique(np.stack([found[known], components[known]]), axis=1)
    assert together.shape[1] == np.unique(found[known]).size == np.unique(components[known]).size
    assert found[known].min() == 0 and found.max() == np.unique(found[known]).size - 1


def test_a_long_chain_is_one_subject():
    order = np.random.default_rng(0).permutation(2000).astype(np.int32)
    found = joined_templates(2001, order[:-1], order[1:], np.ones(1999, dtype=bool))
    assert found.tolist() == [0] * 2000 + [-1]


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", "<f2", "<i4"])
@pytest.mark.parametrize("column", [False, True])
def test_scores_are_read(write, tmp_path, dtype, column):
    pairs = read_pair_labels(write())
    np.save(tmp_path / "scores.npy", np.array([1, -2, 0.0], dtype).reshape((-1, 1) if column else -1))
    scores = read_scores(tmp_path / "scores.npy", pairs)
    assert scores.tolist() == [1, -2, 0]
    assert scores.dtype == (np.float64 if dtype in ("<f8", "<i4") else np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros(4), "4 scores for 3 pairs"),
        (np.zeros((3, 2)), "3 x 2 scores for 3 pairs"),
        (np.zeros((1, 3)), "1 x 3 scores for 3 pairs"),
        (np.float64(3), "a single number as scores for 3 pairs"),
        (np.array([0, np.nan, np.inf]), "2 of 3 scores are not finite, the first at index 1"),
        (np.array(["a", "b", "c"]), "no .npy file of numbers"),
        (np.array([True, False, True]), "no .npy file of numbers"),
        (np.array([0j, 0j, 0j]), "no .npy file of numbers"),
    ],
)
def test_unfit_scores_are_refused(write, tmp_path, content, message):
    np.save(tmp_path / "scores.npy", content)
    with pytest.raises(DataError, match=message) as caught:
        read_scores(tmp_path / "scores.npy", read_template_set(write()))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_scores_are_refused(write, tmp_path):
    pairs = read_pair_labels(write())
    np.savez(tmp_path / "scores.npz", scores=np.zeros(3))
    np.save(tmp_path / "pickle.npy", np.array([{}, {}, {}]), allow_pickle=True)
    np.save(tmp_path / "cut.npy", np.zeros(3))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    (tmp_path / "text.npy").write_text("0.1 0.2 0.3")
    (tmp_path / "empty.npy").write_bytes(b"")
    for name, kind in {"no_type.npy": "()", "strange_type.npy": "[('', 'f4')]"}.items():
        header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': (True,)}}".encode()
        (tmp_path / name).write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))
    for name in ("scores.npz", "pickle.npy", "cut.npy", "text.npy", "empty.npy", "no_type.npy", "strange_type.npy"):
        with pytest.raises(DataError, match=f"{name}: no .npy file of numbers"):
            read_scores(tmp_path / name, pairs)
    for name in ("none.npy", "."):
        with pytest.raises(DataError, match="cannot be read"):
            read_scores(tmp_path / name, pairs)


@pytest.mark.faces
def test_real_faces(real_faces):
    found = read_template_set(real_faces / "ijb_lfw")
    galleries, probes = found.identification_lists()
    counts = (len(found), found.template_ids.size, found.is_same.size, found.is_same.sum(), len(probes))
    assert counts == (680, 289, 10676, 218, 169)
    assert {name: len(gallery) for name, gallery in galleries.items()} == {"G1": 60, "G2": 60}
    subjects = found.identities()
    assert np.unique(subjects).size == 120
    np.testing.assert_array_equal(subjects[found.pair_a] == subjects[found.pair_b], found.is_same)
    assert all((found.image_folder / name).is_file() for name in found.image_names)
