"""Verification sets: every form in the wild is read, nothing else is, and nothing in a file is ever run."""

import array
import io
import os
import pickle
import pickletools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facebones.data.images import decode
from facebones.data.pair_bins import read_pairs, write_pairs
from facebones.data.pair_lists import read_pair_list, read_pair_set
from facebones.data.safe_pickle import read_pickle
from facebones.errors import DataError

FACES = Path(__file__).parents[3] / "shared" / "faces" / "celeba_cfp"
IMAGES = [b"\xff\xd8\xff\x00a", b"\xff\xd8\xff'\n\\"]

# What Python 2.7.18 wrote for (IMAGES, [True]) by protocols 0 to 2, and for bytearrays and [1] by protocol 2.
PYTHON_2 = [
    b"((lp0\nS'\\xff\\xd8\\xff\\x00a'\np1\naS\"\\xff\\xd8\\xff'\\n\\\\\"\np2\na(lp3\nI01\natp4\n.",
    b"(]q\x00(U\x05\xff\xd8\xff\x00aq\x01U\x06\xff\xd8\xff'\n\\q\x02e]q\x03I01\natq\x04.",
    b"\x80\x02]q\x00(U\x05\xff\xd8\xff\x00aq\x01U\x06\xff\xd8\xff'\n\\q\x02e]q\x03\x88a\x86q\x04.",
    b"\x80\x02]q\x00(c__builtin__\nbytearray\nq\x01X\x08\x00\x00\x00\xc3\xbf\xc3\x98\xc3\xbf\x00aq\x02U\x07latin-1q"
    b"\x03\x86q\x04Rq\x05h\x01X\t\x00\x00\x00\xc3\xbf\xc3\x98\xc3\xbf'\n\\q\x06U\x07latin-1q\x07\x86q\x08Rq\te]q\nK"
    b"\x01a\x86q\x0b.",
]

IMAGE_FORMS = {
    "bytes": bytes,
    "bytearray": bytearray,
    "latin-1": lambda image: image.decode("latin-1"),
    "array": lambda image: np.frombuffer(image, np.uint8),
    "owned": lambda image: np.array(bytearray(image)),
    "column": lambda image: np.frombuffer(image, np.uint8)[:, None].copy(),
}
LABEL_FORMS = {
    "bool": list,
    "int": lambda labels: [int(label) for label in labels],
    "numpy bool": lambda labels: [np.bool_(label) for label in labels],
    "numpy int64": lambda labels: [np.int64(label) for label in labels],
    "array": np.array,
    "big-endian": lambda labels: np.array(labels, dtype=">i4"),
    "tuple": tuple,
}


def save(folder: Path, content: object, protocol: int = 4) -> Path:
    path = folder / "lfw.bin"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("content", PYTHON_2)
def test_files_of_python_2(tmp_path, content):
    pairs = read_pairs(save(tmp_path, content))
    assert (pairs.name, list(pairs.images), pairs.is_same.tolist()) == ("lfw", IMAGES, [True])


@pytest.mark.parametrize("labels", LABEL_FORMS)
@pytest.mark.parametrize("images", IMAGE_FORMS)
@pytest.mark.parametrize("protocol", range(6))
def test_files_of_python_3(tmp_path, protocol, images, labels):
    form = ([IMAGE_FORMS[images](image) for image in IMAGES * 2], LABEL_FORMS[labels]([True, False]))
    for content in (form, list(form)):
        pairs = read_pairs(save(tmp_path, content, protocol))
        assert list(pairs.images) == IMAGES * 2
        assert pairs.is_same.dtype == np.bool_
        assert pairs.is_same.tolist() == [True, False]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "images",
    [
        lambda images: np.array([np.frombuffer(image, np.uint8) for image in images], dtype=object),
        lambda images: np.array(images, dtype=object),
        lambda images: np.array(images, dtype=object)[:, None],
        np.array,  # texts of one length
        lambda images: [np.bytes_(image) for image in images],
        lambda images: [array.array("B", image) for image in images],
        lambda images: np.array([bytearray(image) for image in images], dtype=object),
    ],
    ids=["object array", "objects", "column of objects", "texts", "scalars", "byte arrays", "bytearrays"],
)
def test_containers_of_images(tmp_path, protocol, images):
    long = [image * 20 for image in IMAGES * 2]
    pairs = read_pairs(save(tmp_path, (images(long), [True, False]), protocol))
    assert (list(pairs.images), pairs.is_same.tolist(), pairs.notes) == (long, [True, False], ())


@pytest.mark.parametrize("protocol", range(2, 6))  # Python itself refuses the others
def test_files_in_memory(tmp_path, protocol):
    content = ([io.BytesIO(image) for image in IMAGES], np.array([True]))
    assert list(read_pairs(save(tmp_path, content, protocol)).images) == IMAGES


def test_equally_long_images_in_one_array(tmp_path):
    image = b"\xff\xd8\xff" + bytes(range(100))
    content = (np.stack([np.frombuffer(image, np.uint8)] * 2), [True])
    assert list(read_pairs(save(tmp_path, content)).images) == [image] * 2


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "labels",
    [
        [1.0, 0.0],
        [1, -1],
        [1.0, -1.0],
        [np.float32(1), np.float32(0)],
        np.array([1.0, 0.0]),
        np.array([1, 0], ">f2"),
        np.array([[1], [-1]], np.int8),
        np.array([True, False], dtype=object),
    ],
)
def test_labels_as_numbers(tmp_path, protocol, labels):
    assert read_pairs(save(tmp_path, (IMAGES * 2, labels), protocol)).is_same.tolist() == [True, False]


PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("order", ["bgr", "rgb"])
@pytest.mark.parametrize(
    "images",
    [
        lambda images: images,
        list,
        lambda images: list(images.transpose(0, 3, 1, 2)),
        lambda images: [np.dstack([image, image[:, :, :1]]) for image in images],
    ],
    ids=["array", "list", "channels first", "with alpha"],
)
def test_decoded_pixels(tmp_path, images, order):
    pairs = read_pairs(save(tmp_path, (images(PIXELS), [True, False])), order)
    expected = PIXELS if order == "rgb" else PIXELS[:, :, :, ::-1]
    for encoded, pixels in zip(pairs.images, expected, strict=True):
        np.testing.assert_array_equal(decode(encoded, "a BMP"), pixels)
    assert len(pairs.notes) == 1
    assert f"4 images are decoded pixels, taken as {order.upper()}" in pairs.notes[0]


def test_decoded_grey_pixels(tmp_path):
    pairs = read_pairs(save(tmp_path, (list(PIXELS[:2, :, :, 0]), [True])))
    np.testing.assert_array_equal(decode(pairs.images[1], "a BMP"), np.repeat(PIXELS[1, :, :, :1], 3, axis=2))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_files_of_numpy_1(tmp_path, protocol):
    content = pickle.dumps(([np.frombuffer(image, np.uint8) for image in IMAGES], [np.bool_(True)]), protocol)
    for length in (22, 19):  # of the two module names, where the protocol writes it
        content = content.replace(bytes([length]) + b"numpy._core", bytes([length - 1]) + b"numpy.core")
    content = content.replace(b"numpy._core", b"numpy.core")
    assert b"_core" not in content
    assert list(read_pairs(save(tmp_path, content)).images) == IMAGES


def test_same_image_object_twice(tmp_path):
    assert list(read_pairs(save(tmp_path, ([IMAGES[0]] * 2, [True]))).images) == [IMAGES[0]] * 2


class Calls:
    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), f"{os.name}.system"),
        (os.popen, ("touch {}",), "os.popen"),
        (eval, ("open('{}', 'w')",), ".eval"),
        (np.load, ("{}",), "numpy.load"),
        (getattr, (np, "load"), ".getattr"),
    ],
)
def test_function_is_refused_by_name_and_not_run(tmp_path, protocol, function, arguments, name):
    trap = tmp_path / "trap"
    filled = [each.format(trap) if isinstance(each, str) else each for each in arguments if each is not np]
    path = save(tmp_path, ([Calls(function, *filled)], [True]), protocol)
    with pytest.raises(DataError, match=rf"lfw\.bin, byte \d+: the pickle asks for \S*{name}, .*nothing was run"):
        read_pairs(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"(ios\nsystem\n.", "asks for os.system"),
        (b"(inumpy\ndtype\n.", "no function of a pair list"),
        (b"Pstranger\n.", "asks for the instruction PERSID"),
        (b"\x82\x01.", "asks for the instruction EXT1"),
        (b"}.", "asks for the instruction EMPTY_DICT"),
        (b"cnumpy\nndarray\n(tR.", "no function of a pair list"),
        (b"cnumpy\ndtype\n(U\x02O8I0\nI1\ntR.", "holds a PickledType instead of a pair"),
        (b"cnumpy\ndtype\n(U\x04V999I0\nI1\ntR.", "numpy array of type V999"),
        (b"cnumpy\ndtype\n)\x81.", "asks for the instruction NEWOBJ"),
        (b"cnumpy\ndtype\n(dS'a'\nb.", "asks for the instruction DICT"),
        (b"c_io\nBytesIO\n)R.", "no function of a pair list"),
        (b"c_io\nBytesIO\n(U\x01at\x81.", "asks for the instruction NEWOBJ"),
        (b"c_io\nFileIO\n)\x81.", "asks for _io.FileIO"),
        (b"carray\narray\n(U\x01d]tR.", "array.array of type 'd'"),
        (pickle.dumps(io.StringIO("a")), "asks for _io.StringIO"),
        (pickle.dumps((np.array([[b"a"], [3]], dtype=object), [True])), "image 1 is a int instead of bytes"),
        (pickle.dumps((np.zeros((2, 3)), [True])), "a numpy array of float64, shape"),
        (pickle.dumps((np.asfortranarray(np.array([[b"a"] * 2] * 2, dtype=object)), [True] * 2)), "of objects in col"),
        (pickle.dumps((IMAGES, [1.5])), "is_same, pair 0: 1.5 instead of True or False"),
        (pickle.dumps((IMAGES, [float("nan")])), "is_same, pair 0: nan instead of True or False"),
        (pickle.dumps((IMAGES * 3, [1, 0, -1])), "is_same, pair 2: -1 instead of True or False"),
        (b"cos\nsys\ntem\n.", "asks for os.sys"),
        (pickle.dumps(np.array([None])), "holds a list of 1 instead of a pair"),
        (pickle.dumps(np.datetime64("2020-01-01")), "numpy array of type M8"),
        (b"\x80\x04\x8c\x03a\nx\x8c\x01b\x93.", r"asks for a\\nx\.b"),
    ],
)
def test_what_no_pair_list_needs_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as error:
        read_pairs(save(tmp_path, content))
    assert "\n" not in str(error.value)


def _numpy_array_of(shape: bytes, raw: bytes) -> bytes:
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n"
        + shape
        + b"cnumpy\ndtype\n(U\x02u1I0\nI1\ntRI00\n"
        + raw
        + b"tb."
    )


def _arrays_over_one_buffer(array: bytes) -> bytes:
    """2,000 images of which each is an array over the same 60,000 bytes (memo 0) of one type (memo 1)."""
    images = array * 2_000
    buffer = b"B" + (60_000).to_bytes(4, "little") + b"a" * 60_000 + b"q\x000"
    return buffer + b"cnumpy\ndtype\n(U\x02u1I0\nI1\ntRq\x010](" + images + b"e](" + b"\x88" * 1_000 + b"e\x86."


def _long_text() -> bytes:
    """60,000 bytes, memorised as 0."""
    return b"X" + (60_000).to_bytes(4, "little") + b"a" * 60_000 + b"q\x000"


@pytest.mark.parametrize(
    "content",
    [
        b"\x8e" + (2**62).to_bytes(8, "little") + b".",
        b"\x96" + (2**40).to_bytes(8, "little") + b".",
        b"B\xff\xff\xff\xff.",
        b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xff.",
        b"N" + b"p99999999999999999999\n" + b".",
        _numpy_array_of(b"(I1099511627776\nt", b"U\x01a"),
        _numpy_array_of(b"(I-1\nI-1\nt", b"U\x01a"),
        _numpy_array_of(b"(I1099511627776\nI0\nt", b"U\x00"),
        _numpy_array_of(b"(I1099511627776\nt", b"U\x00").replace(b"U\x02u1", b"U\x02S0"),
        _numpy_array_of(b"(I1099511627776\nt", b"]").replace(b"U\x02u1", b"U\x02O8"),
        # Shapes whose product takes hours, or gigabytes.
        _numpy_array_of(b"(" + b"\x8a\xff" + b"\x7f" * 255 + b"q\x00" + b"h\x00" * 50_000 + b"t", b"U\x00"),
        _numpy_array_of(b"(U\xff" + b"A" * 255 + b"J\x80\x96\x98\x00t", b"U\x01a"),
        _numpy_array_of(b"(" + b"I1\n" * 50_000 + b"t", b"U\x01a"),
        # Images of one byte each, tiny files that refer to one text, and tiny decoded images.
        pickle.dumps((np.zeros((60_000, 1), np.uint8), [True] * 30_000)),
        pickle.dumps((np.array([b"ab"] * 60_000), [True] * 30_000)),
        _long_text() + b"](" + b"c_io\nBytesIO\n)\x81(h\x00K\x00Ntb" * 2_000 + b"e](\x88e\x86.",
        b"F" + b"1" * 100_000 + b"\n.",
        b"L" + b"9" * 100_000 + b"L\n.",
        b"X\x00\x01\x00\x00" + b"a" * 256 + b"q\x00" + b"c_codecs\nencode\n(h\x00U\x06latin1tR" * 50_000 + b".",
        _long_text()
        + b"cnumpy\ndtype\n(U\x02u1I0\nI1\ntRq\x01]("
        + b"cnumpy.core.numeric\n_frombuffer\n(h\x00h\x01M\x60\xea\x85U\x01CtR" * 2_000
        + b"e](\x88e\x86.",
        _arrays_over_one_buffer(b"cnumpy.core.numeric\n_frombuffer\n(h\x00h\x01M\x60\xea\x85U\x01CtR"),
        _arrays_over_one_buffer(
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\nM\x60\xea\x85h\x01I00\nh\x00tb"
        ),
    ],
)
def test_small_file_cannot_ask_for_much_memory(tmp_path, content):
    path = save(tmp_path, content)
    tracemalloc.start()
    with pytest.raises(DataError):
        read_pairs(path)
    assert tracemalloc.get_traced_memory()[1] < 30 * len(content) + 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("form", [str, lambda text: np.frombuffer(text.encode(), np.uint8)], ids=["text", "array"])
def test_one_image_that_is_named_over_and_over_is_held_once(tmp_path, form):
    path = save(tmp_path, ([form("a" * 60_000)] * 2_000, [True] * 1_000))
    tracemalloc.start()
    assert read_pairs(path).images[-1] == b"a" * 60_000
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_numpy_array_by_hand_is_otherwise_read():
    assert read_pickle(_numpy_array_of(b"(I3\nt", b"U\x03abc"), "x").values.tobytes() == b"abc"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\xff\xd8\xff\xe0", r"byte 0: not a pickle \(0xff is no instruction\)"),
        (b"hello", "byte 0: not a sound pickle"),
        (pickle.dumps((IMAGES, [True]))[:-3], "the pickle is cut short"),
        (3, "holds a int instead of a pair"),
        ((IMAGES,), "holds a tuple of 1 instead of a pair"),
        ((3, [True]), "the images are a int instead of a list"),
        ((IMAGES, None), "is_same is None instead of a list"),
        (([], []), "holds no image"),
        ((IMAGES[:1], [True]), "1 images, an odd number"),
        ((IMAGES, [True, False]), "2 images for 2 pairs; each pair needs two"),
        ((IMAGES * 2, [True]), "4 images for 1 pairs"),
        (([IMAGES[0], 3], [True]), "image 1 is a int instead of bytes"),
        (([IMAGES[0], "\u4e00"], [True]), "image 1 is a str instead of bytes"),
        (([IMAGES[0], np.zeros(3, np.int64)], [True]), "image 1 is a numpy array of int64 instead of bytes"),
        ((IMAGES, [2]), "is_same, pair 0: 2 instead of True or False"),
        ((IMAGES, ["yes"]), "is_same, pair 0: a str instead of True or False"),
    ],
)
def test_what_is_no_verification_set(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as error:
        read_pairs(save(tmp_path, content))
    assert str(error.value).startswith(str(tmp_path / "lfw.bin"))


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"lfw\.bin: cannot be read: No such file"):
        read_pairs(tmp_path / "lfw.bin")


codes = st.sampled_from([op.code.encode("latin-1") for op in pickletools.opcodes])
pieces = st.one_of(codes, st.binary(max_size=6), st.sampled_from([b"1\n", b"numpy\ndtype\n", b"_codecs\nencode\n"]))


@given(st.lists(pieces, max_size=30).map(b"".join))
def test_any_bytes_are_refused_or_read(content):
    try:
        read_pickle(content, "any.bin")
    except DataError as error:
        assert str(error).startswith("any.bin, byte ")
        assert "\n" not in str(error)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.binary(), st.binary(), st.booleans()), min_size=1, max_size=4))
def test_written_file_is_read_by_us_and_by_pickle(tmp_path, rows):
    images = [image for first, second, _ in rows for image in (first, second)]
    same = [label for *_, label in rows]
    write_pairs(tmp_path / "a.bin", images, np.array(same))
    pairs = read_pairs(tmp_path / "a.bin")
    assert (list(pairs.images), pairs.is_same.tolist(), len(pairs)) == (images, same, len(rows))
    with (tmp_path / "a.bin").open("rb") as file:
        assert pickle.load(file, encoding="bytes") == (images, same)


def test_wrong_counts_are_not_written(tmp_path):
    with pytest.raises(DataError, match="3 images for 1 pairs"):
        write_pairs(tmp_path / "a.bin", IMAGES + IMAGES[:1], [True])
    assert list(tmp_path.iterdir()) == []


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


def test_column_of_row_numbers_that_pandas_writes(tmp_path):
    text = ",first,second,same\n0,Ann/Ann_0001.jpg,Ann/Ann_0012.png,1\n1,Ann/Ann_0001.jpg,Bo_Li/Bo_Li_0001.jpg,0\n"
    assert read_pair_list(write_lfw(tmp_path, text), tmp_path).is_same.tolist() == [True, False]


def test_images_of_a_flat_folder(tmp_path):
    path = write_lfw(tmp_path, "Ann 1 12\nAnn 1 Bo_Li 1\n")
    for image in list(tmp_path.glob("*/*")):
        image.rename(tmp_path / image.name)
    assert read_pair_list(path, tmp_path).images[3] == b"Bo_Li/Bo_Li_0001.jpg"


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", "   "])
def test_plain_list(tmp_path, separator):
    lines = [["Ann/Ann_0001.jpg", "Ann/Ann_0012.png", "1"], ["Bo_Li/Bo_Li_0001.jpg", "Ann/Ann_0001.jpg", "0"]]
    path = write_lfw(tmp_path, "\n\n".join(separator.join(line) for line in lines))
    pairs = read_pair_list(path, tmp_path)
    assert [image.decode() for image in pairs.images] == [*lines[0][:2], *lines[1][:2]]
    assert pairs.is_same.tolist() == [True, False]


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
        ("a.jpg 1\nb.jpg -1\n", "line 2: .* is not 'image mark'"),
        ("Ann/Ann_0001.jpg 1\n../b.jpg 1\n", r"line 2: \.\./b\.jpg leads out of"),
        (f"{'9' * 5000}\n", "line 1: '9+' is not 'image image 0|1'"),
        (f"1 1\nAnn 1 {'9' * 5000}\nAnn 1 12\n", "line 2: .* is not 'name n m'"),
        ("10 300\nAnn 1 12\n", "line 1: promises 6000 pairs, but 1 lines follow"),
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


@pytest.mark.faces
@pytest.mark.skipif(not FACES.is_dir(), reason=f"no real faces at {FACES}")
def test_real_file_is_read_as_by_pickle():
    pairs = read_pairs(FACES / "lfw.bin")
    with (FACES / "lfw.bin").open("rb") as file:
        images, same = pickle.load(file, encoding="bytes")
    assert list(pairs.images) == images
    assert pairs.is_same.tolist() == same
    assert (len(pairs), int(pairs.is_same.sum())) == (6000, 3000)
