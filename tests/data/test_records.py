"""RecordIO: what is written is read back, real files are understood, broken ones are named."""

import contextlib
import mmap
import pickle
import struct
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facebones.data import record_writer
from facebones.data.record_writer import RecordWriter, cut
from facebones.data.recordio import MAGIC, MAGIC_BYTES, Header, RecordFile, pack, split, unpack
from facebones.errors import DataError, FaceBonesError, RunError

FACES = Path(__file__).parents[3] / "shared" / "faces" / "celeba_cfp"

# Payloads in which the magic number is not rare, at places that are multiples of 4 and others that are not.
payloads = st.lists(st.sampled_from([MAGIC_BYTES, b"\x0a", b"#\xd7\xce", b"abcd", b"xyz"]), max_size=12).map(b"".join)
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)


def write(path: Path, payloads: dict[int, bytes]) -> Path:
    with RecordWriter(path) as writer:
        for key, payload in payloads.items():
            writer.write(key, payload)
    return path


def images(count: int) -> dict[int, bytes]:
    return {key: pack(Header(float(key % 3), key), bytes(range(key))) for key in range(count)}


@same_folder
@given(st.lists(payloads, min_size=1, max_size=5), st.sampled_from([1, 30, record_writer.WRITE_BYTES]))
def test_any_payload_is_read_back(tmp_path, payloads, write_bytes):
    with patch.object(record_writer, "WRITE_BYTES", write_bytes):
        path = write(tmp_path / "a.rec", dict(enumerate(payloads)))
    file = RecordFile(path)
    assert [file.read(position) for position in range(len(file))] == payloads


@given(payloads)
def test_no_part_holds_the_magic_at_a_multiple_of_four(payload):
    parts = cut(payload)
    assert MAGIC_BYTES.join(parts) == payload
    for part in parts:
        assert MAGIC_BYTES not in [part[place : place + 4] for place in range(0, len(part), 4)]
    assert all(len(part) % 4 == 0 for part in parts[:-1])


def test_layout_of_a_record_in_several_parts(tmp_path):
    path = write(tmp_path / "a.rec", {5: b"abcd" + MAGIC_BYTES + MAGIC_BYTES + b"e"})
    first = struct.pack("<II", MAGIC, 1 << 29 | 4) + b"abcd"
    middle = struct.pack("<II", MAGIC, 2 << 29)
    last = struct.pack("<II", MAGIC, 3 << 29 | 1) + b"e\0\0\0"
    assert path.read_bytes() == first + middle + last
    assert path.with_suffix(".idx").read_text() == "5\t0\n"


@given(
    st.one_of(
        st.floats(width=32, allow_nan=False), st.lists(st.floats(width=32, allow_nan=False), min_size=1).map(tuple)
    ),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(),
)
def test_header_is_read_back(label, identifier, second, content):
    record = pack(Header(label, identifier, second), content)
    assert unpack(record) == (Header(label, identifier, second), content)
    assert b"".join(split(record)) == record


def test_header_bytes_are_those_of_mxnet():
    assert pack(Header(2.0, 7), b"x") == struct.pack("<IfQQ", 0, 2.0, 7, 0) + b"x"
    assert pack(Header((1.0, 9.0), 0)) == struct.pack("<IfQQff", 2, 0.0, 0, 0, 1.0, 9.0)


@given(st.binary(max_size=40))
def test_short_record_is_refused_or_split(record):
    try:
        head, content = split(record)
    except DataError:
        assert len(record) < 24 + 4 * int.from_bytes(record[:4], "little")
    else:
        assert head + content == record


@pytest.mark.parametrize("with_index", [True, False])
def test_headers_of_many_records(tmp_path, with_index):
    records = {
        3: pack(Header(1.0, 3), b"image"),
        1: pack(Header((4.0, 5.0, 6.0), 1), b"img"),
        2: pack(Header((7.0,), 2), MAGIC_BYTES + b"x"),
    }
    path = write(tmp_path / "a.rec", records)
    if not with_index:
        path.with_suffix(".idx").unlink()
    table = RecordFile(path).headers(np.arange(3))
    assert table.flags.tolist() == [0, 3, 1]
    np.testing.assert_array_equal(table.labels, np.array([[1, np.nan], [4, 5], [7, np.nan]], np.float32))
    assert table.ids.tolist() == [3, 1, 2]
    assert table.sizes.tolist() == [5, 3, 5]


def test_keys_and_positions(tmp_path):
    records = RecordFile(write(tmp_path / "a.rec", {key: pack(Header(0.0, key), b"%d" % key) for key in (4, 0, 9)}))
    assert records.positions_of([9, 5, 4, 10]).tolist() == [2, -1, 0, -1]
    assert records.read_key(9)[24:] == b"9"
    with pytest.raises(DataError, match=r"no record has key 5; keys are 0 to 9"):
        records.read_key(5)


def test_without_index_the_file_is_scanned(tmp_path):
    path = write(tmp_path / "a.rec", images(20))
    indexed = RecordFile(path)
    path.with_suffix(".idx").unlink()
    scanned = RecordFile(path)
    assert scanned.index_path is None
    np.testing.assert_array_equal(scanned.offsets, indexed.offsets)
    np.testing.assert_array_equal(scanned.keys, indexed.keys)


def test_pickled_file_has_no_map_and_reads_on(tmp_path):
    records = RecordFile(write(tmp_path / "a.rec", images(3)))
    before = records.read(2)
    copy = pickle.loads(pickle.dumps(records))
    assert copy._map is None
    assert copy.read(2) == before


def test_file_that_shrank_is_noticed(tmp_path):
    path = write(tmp_path / "a.rec", images(3))
    records = pickle.loads(pickle.dumps(RecordFile(path)))  # as a worker gets it, which opens the file anew
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="has changed since"):
        records.read(0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:-4], r"a\.rec, byte 140: the record claims 28 bytes, but the file ends at byte 172"),
        (lambda data: data[:143], r"a\.rec, byte 140: the file ends at byte 143 in the middle of a record"),
        (lambda data: data[:4] + b"\xff\xff\xff\x1f" + data[8:], r"byte 0: the record claims 536870911 bytes"),
        (lambda data: data[:32] + b"JUNK" + data[36:], r"byte 32: 0x4b4e554a instead of the magic number 0xced7230a"),
        (lambda data: data[:39] + b"\x60" + data[40:], r"byte 32: a part of kind 3 out of its order"),
        (lambda data: data[:144] + b"\x1c\x00\x00\x20" + data[148:], r"the file ends inside a record of several"),
    ],
)
def test_broken_file_is_named_by_byte(tmp_path, spoil, message):
    path = write(tmp_path / "a.rec", {key: pack(Header(0.0, key), bytes(key)) for key in range(5)})
    path.with_suffix(".idx").unlink()
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        RecordFile(path)


def test_broken_record_is_named_when_it_is_read(tmp_path):
    path = write(tmp_path / "a.rec", images(5))
    data = path.read_bytes()
    path.write_bytes(data[:32] + b"JUNK" + data[36:])
    records = RecordFile(path)
    assert records.read(0)
    with pytest.raises(DataError, match=r"a\.rec, byte 32: 0x4b4e554a"):
        records.read(1)
    with pytest.raises(DataError, match=r"a\.rec, byte 32: 0x4b4e554a"):
        records.headers(np.arange(5))


def test_record_too_short_for_its_header(tmp_path):
    records = RecordFile(write(tmp_path / "a.rec", {8: b"short"}))
    with pytest.raises(DataError, match=r"a\.rec, key 8, byte 0: a record of 5 bytes, but its header needs 24"):
        records.headers(np.arange(1))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("0\t0\n1 32\n", r"a\.idx, line 2: '1 32' is not 'key<TAB>offset'"),
        ("0\t0\n1\t\n", r"a\.idx, line 2: '1\\t' is not"),
        ("0\t0\n-1\t32\n", r"a\.idx, line 2: '-1\\t32' is not"),
        ("0\t0\n\n1\t32\n", r"a\.idx, line 2: '' is not"),
        ("", r"a\.idx, line 1: '' is not"),
        ("0\t0\n1\t4000\n", r"a\.idx, line 2: key 1: byte offset 4000 is outside the file"),
        ("0\t0\n1\t33\n", r"a\.idx, line 2: key 1: byte offset 33 is not a multiple of 4"),
        ("0\t0\n1\t99999999999999999999\n", r"a\.idx, line 2: key 1: byte offset \d+ is outside the file"),
        ("0\t0\n1\t32\n0\t68\n", r"a\.idx, line 3: key 0 a second time, byte 0 has it too"),
        ("0\t0\n1\t32\n2\t0\n", r"a\.idx, line 3: key 2: byte offset 0 is that of key 0, too; restore"),
    ],
)
def test_broken_index_is_named_by_line(tmp_path, index, message):
    path = write(tmp_path / "a.rec", images(5))
    path.with_suffix(".idx").write_text(index)
    with pytest.raises(DataError, match=message):
        RecordFile(path)


@pytest.mark.parametrize("payload", [b"abcd", MAGIC_BYTES * 3], ids=["whole", "in parts"])
@pytest.mark.parametrize("lines", [1, 4, 5])
def test_index_that_was_cut_short_loses_no_image_in_silence(tmp_path, lines, payload):
    path = write(tmp_path / "a.rec", images(4) | {9: pack(Header(0.0, 9), payload)})
    index = path.with_suffix(".idx")
    kept = index.read_text().splitlines(keepends=True)[:lines]
    index.write_text("".join(reversed(kept)))  # the order of the lines means nothing
    if lines == 5:
        assert len(RecordFile(path)) == 5
        return
    size, end = path.stat().st_size, 32 if lines == 1 else 140
    with pytest.raises(DataError) as error:
        RecordFile(path)
    assert str(error.value).startswith(f"{index}: cut short: its last record, key {lines - 1}, ends at byte {end}")
    assert f"{path} has {size} bytes; restore the index, or remove it to have" in str(error.value)
    index.unlink()
    assert len(RecordFile(path)) == 5


frames = st.tuples(st.sampled_from([0, 0, 0, 1, 3]), st.integers(0, 20), st.integers(0, 3))


@same_folder
@given(frames=st.lists(frames, max_size=30), order=st.permutations(range(31)))
def test_all_records_of_an_index_are_no_larger_than_the_file(tmp_path, frames, order):
    """Each frame has a kind, claims so many words and is followed by fewer: the next may lie within it."""
    frames = [*frames, (0, 0, 0)]
    content = b"".join(
        struct.pack("<II", MAGIC, kind << 29 | 4 * claim) + bytes(4 * own) for kind, claim, own in frames
    )
    starts = np.cumsum([0, *(8 + 4 * own for _, _, own in frames)]).tolist()
    (tmp_path / "a.rec").write_bytes(content)
    (tmp_path / "a.idx").write_text("".join(f"{key}\t{starts[key]}\n" for key in order if key < len(frames)))
    records, total = RecordFile(tmp_path / "a.rec"), 0
    for position in range(len(records)):
        with contextlib.suppress(DataError):
            total += len(records.read(position))
    assert total <= len(content)


def test_record_within_another_is_refused_when_it_is_read(tmp_path):
    path = write(tmp_path / "a.rec", {0: bytes(24) + struct.pack("<I", 4) + b"abcd", 1: b"e"})
    content = bytearray(path.read_bytes())
    content[28:32] = MAGIC_BYTES  # in the payload of record 0, which no writer does
    path.write_bytes(content)
    path.with_suffix(".idx").write_text("0\t0\n1\t40\n")
    assert RecordFile(path).read(0)
    path.with_suffix(".idx").write_text("0\t0\n2\t28\n1\t40\n")
    records = RecordFile(path)
    assert records.read(1) == b"abcd"
    with pytest.raises(DataError, match=r"byte 0: the record claims 32 bytes, but the index has another at byte 28"):
        records.read(0)


def test_index_with_line_ends_of_windows_or_none_at_the_end(tmp_path):
    path = write(tmp_path / "a.rec", images(2))
    path.with_suffix(".idx").write_bytes(b"0\t0\r\n1\t32")
    assert RecordFile(path).offsets.tolist() == [0, 32]


def test_same_id_twice_in_a_scanned_file(tmp_path):
    path = write(tmp_path / "a.rec", {0: pack(Header(0.0, 7), b"a"), 1: pack(Header(0.0, 7), b"b")})
    path.with_suffix(".idx").unlink()
    with pytest.raises(DataError, match=r"key 7, byte 36: key 7 a second time, byte 0 has it too"):
        RecordFile(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: path.touch(), "the file is empty"),
        (lambda path: path.mkdir(), "not a file"),
    ],
)
def test_missing_or_empty_file(tmp_path, make, message):
    make(tmp_path / "a.rec")
    with pytest.raises(DataError, match=message):
        RecordFile(tmp_path / "a.rec")


@same_folder
@given(st.binary(min_size=1, max_size=120))
def test_strange_bytes_are_refused_or_read(tmp_path, content):
    path = tmp_path / "strange.rec"
    path.write_bytes(content)
    try:
        records = RecordFile(path)
        assert all(isinstance(records.read(position), bytes) for position in range(len(records)))
    except FaceBonesError as error:
        assert "\n" not in str(error)


def test_nothing_appears_when_writing_fails(tmp_path):
    with pytest.raises(ValueError, match="stop"), RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, b"abcd")
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_while_finishing_leaves_nothing(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("facebones.data.recordio.os.fsync", full)
    with pytest.raises(RunError, match="No space left"), RecordWriter(tmp_path / "a.rec") as writer:
        writer.write(0, b"abcd")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faces
@pytest.mark.skipif(not FACES.is_dir(), reason=f"no real faces at {FACES}")
def test_file_of_mxnet_is_written_again_byte_for_byte(tmp_path):
    records = RecordFile(FACES / "train.rec")
    assert (len(records), records.keys[-1]) == (10913, 0)
    assert unpack(records.read_key(0))[0] == Header((10310.0, 10913.0), 0)
    with RecordWriter(tmp_path / "train.rec") as writer:
        for position, key in enumerate(records.keys.tolist()):
            writer.write(key, records.read(position))
    for name in ("train.rec", "train.idx"):
        assert (tmp_path / name).read_bytes() == (FACES / name).read_bytes()


def test_reading_ahead_asks_for_each_record_and_leaves_out_what_is_between(tmp_path):
    size = 50_000
    path = write(tmp_path / "a.rec", {key: bytes([key]) * size for key in range(24)})
    file = RecordFile(path)

    class Asked:
        def __init__(self):
            self.parts = []

        def size(self):
            return file.size

        def madvise(self, option, start, length):
            assert option == mmap.MADV_WILLNEED and start % mmap.PAGESIZE == 0
            self.parts.append(range(start, start + length))

    file._map = asked = Asked()
    file.read_ahead(np.array([20, 2, 3, 21]))
    for position in (2, 3, 20, 21):
        assert any(file.offsets[position] in part for part in asked.parts)
    for position in (8, 15):
        assert not any(file.offsets[position] in part for part in asked.parts)
    assert max(part.stop for part in asked.parts) <= file.size
    again = RecordFile(path)
    again.read_ahead(np.arange(24))
    assert again.read(23) == bytes([23]) * size
