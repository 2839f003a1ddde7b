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

from facebones.data.pair_bins import read_pairs, write_pairs
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


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "form",
    [
        bytes,
        bytearray,
        np.bytes_,
        lambda image: np.frombuffer(image, np.uint8),
        lambda image: np.array(bytearray(image)),
        lambda image: array.array("B", image),
        lambda image: image.decode("latin-1"),
    ],
    ids=["bytes", "bytearray", "scalar", "array", "owned", "byte array", "latin-1"],
)
@pytest.mark.parametrize("most", [128, 256])
def test_images_far_larger_than_the_rest_of_the_file(tmp_path, protocol, form, most):
    """Python 3 writes some of them by two calls, of which the second only passes on what the first has built."""
    images = [bytes(np.random.default_rng(seed).integers(1, most, 5_000, np.uint8)) for seed in range(6)]
    path = save(tmp_path, ([form(image) for image in images], [True] * 3), protocol)
    assert list(read_pairs(path).images) == images


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
        # 2,000 texts of 60,000 bytes over one buffer (memo 0).
        _long_text().replace(b"X", b"B", 1)
        + b"cnumpy\ndtype\n(U\x06S60000I0\nI1\ntRq\x01]("
        + b"cnumpy.core.multiarray\nscalar\n(h\x01h\x00tR" * 2_000
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
        ((IMAGES[:1], [True]), "1 image, an odd number"),
        ((IMAGES, [True, False]), "2 images for 2 pairs; each pair needs two"),
        ((IMAGES * 2, [True]), "4 images for 1 pair;"),
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
    with pytest.raises(DataError, match="3 images for 1 pair;"):
        write_pairs(tmp_path / "a.bin", IMAGES + IMAGES[:1], [True])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faces
@pytest.mark.skipif(not FACES.is_dir(), reason=f"no real faces at {FACES}")
def test_real_file_is_read_as_by_pickle():
    pairs = read_pairs(FACES / "lfw.bin")
    with (FACES / "lfw.bin").open("rb") as file:
        images, same = pickle.load(file, encoding="bytes")
    assert list(pairs.images) == images
    assert pairs.is_same.tolist() == same
    assert (len(pairs), int(pairs.is_same.sum())) == (6000, 3000)
