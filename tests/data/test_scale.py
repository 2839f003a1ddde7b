"""Ten million records, 200,000 files, 15 million pairs: memory is bounded, and arrays are as read line by line."""

import os
from unittest.mock import patch

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facebones.data import record_index, recordio
from facebones.data.record_index import Runs, read_index
from facebones.data.record_set import RecordSet
from facebones.data.record_writer import RecordWriter
from facebones.data.recordio import MAGIC, Header, pack
from facebones.errors import DataError

RECORDS, PEOPLE = 10_000_000, 100_000
FRAME = [("magic", "<u4"), ("length", "<u4"), ("flag", "<u4"), ("label", "<f4"), ("id", "<u8"), ("id2", "<u8")]

OPEN = """
import os
from facebones.data.folders import open_training_set
data = open_training_set(Path(sys.argv[1]))
assert (len(data), data.num_identities) == (int(sys.argv[2]), int(sys.argv[3]))
"""


# ------------------------------------------------------------------------------------- runs of numbers, and the index


@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=10), min_size=1, max_size=5))
def test_runs_are_the_numbers(blocks):
    runs = Runs.of(map(np.array, blocks))
    numbers = [number for block in blocks for number in block]
    places = np.arange(len(numbers))
    assert len(runs) == len(numbers)
    assert runs.at(places).tolist() == numbers
    twice = [number for number in sorted(numbers) if numbers.count(number) > 1]
    assert runs.repeated() == (twice[0] if twice else None)
    if twice:
        return
    assert runs.find(np.arange(-1, 32)).tolist() == [
        numbers.index(number) if number in numbers else -1 for number in range(-1, 32)
    ]
    by_number = runs.by_number()
    assert by_number.at(places).tolist() == np.argsort(numbers, kind="stable").tolist()
    for first in places.tolist():
        own = np.asarray(by_number.between(first, len(numbers))).tolist()
        assert own == by_number.at(places[first:]).tolist()
    assert len(by_number.firsts) == 1 + np.count_nonzero(np.diff(np.argsort(numbers)) != 1)


def plain_index(text):
    """Rows of keys and offsets, line by line, and the numbers of wrong lines."""
    rows, wrong = [], []
    lines = text.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
    for number, line in enumerate(lines, 1):
        fields = line.split(b"\t")
        if len(fields) != 2 or not all(field.isdigit() for field in fields):
            wrong.append(number)
            continue
        rows.append([min(int(field), 2**63 - 1) for field in fields])
        if rows[-1][1] % 4 or rows[-1][1] > 2**40 - 8:
            wrong.append(number)
    return rows, wrong


NUMBERS = st.sampled_from([0, 3, 4, 8, 12, 100, 10**9, 4 * 10**11, 2**63 - 1, 2**63, 10**25]).map(lambda n: b"%d" % n)
LINES = st.one_of(
    st.tuples(NUMBERS, st.sampled_from([b"\t", b"\t", b"\t", b" ", b""]), NUMBERS).map(b"".join),
    st.integers(0, 10**12).map(lambda number: b"%d\t%d" % (number, 4 * (number % 2**30))),
    st.sampled_from([b"", b"\t", b"1\t", b"\t4", b"-1\t4", b"1\t4\r", b"1\t4 ", b"x\t4", b"007\t0004", b"1\t4\t4"]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(
    lines=st.lists(st.one_of(LINES, *[st.integers(0, 99).map(lambda n: b"%d\t%d" % (n, 4 * n))] * 9), max_size=20),
    end=st.sampled_from([b"\n", b"\r\n"]),
    tail=st.sampled_from([b"", b"\n", b"\r\n", b"\n\n\n"]),
    block=st.sampled_from([64, 100, 2**18]),
)
def test_index_is_read_as_line_by_line(tmp_path, lines, end, tail, block):
    path = tmp_path / "a.idx"
    path.write_bytes(text := end.join(lines) + tail)
    rows, wrong = plain_index(text)
    with patch.object(record_index, "BLOCK_BYTES", block):
        if wrong:
            # Offsets are checked after the form of a block.
            with pytest.raises(DataError, match=rf"a\.idx, line ({'|'.join(map(str, wrong))}): "):
                read_index(path, tmp_path / "a.rec", 2**40)
            return
        keys, offsets = read_index(path, tmp_path / "a.rec", 2**40)
    assert [list(row) for row in zip(keys.at(np.arange(len(keys))), offsets, strict=True)] == rows


def test_line_without_an_end_is_refused_before_the_file_is_in_memory(tmp_path):
    path = tmp_path / "a.idx"
    path.write_bytes(b"1\t" + b"4" * 1000 + b"\n2\t8\n")
    for block in (16, 2**18):
        with patch.object(record_index, "BLOCK_BYTES", block), pytest.raises(DataError, match=r"a\.idx, line 1: "):
            read_index(path, tmp_path / "a.rec", 2**40)


@pytest.mark.parametrize("keys", ["ascending", "shuffled"])
def test_labels_are_read_block_by_block(tmp_path, keys):
    """Three labels, records of another kind between the images, blocks of four records."""
    order = np.arange(30) if keys == "ascending" else np.random.default_rng(0).permutation(30)
    with RecordWriter(tmp_path / "a.rec") as writer:
        for key in order.tolist():
            writer.write(key, pack(Header((1.0, 2.0), key)) if key % 7 == 6 else pack(Header(key % 3, key), b"image"))
    with patch.object(recordio, "HEADER_BLOCK", 4):
        data = RecordSet(tmp_path / "a.rec")
    images = [key for key in range(30) if key % 7 != 6]
    assert data.labels.tolist() == [key % 3 for key in images]
    assert data.records.keys[data.positions].tolist() == images
    assert [data.read(index)[1] for index in range(len(data))] == data.labels.tolist()


# ------------------------------------------------------------------------------------------------------------- scale


def write_records(folder, keys, labels, *, pairs=False):
    """Append records of a header each, as fast as NumPy writes; labels (N,), or (N, 2) of InsightFace's records."""
    records = np.zeros(len(keys), [*FRAME, ("labels", "<f4", 2)] if pairs else FRAME)
    records["magic"], records["length"], records["id"] = MAGIC, records.itemsize - 8, keys
    records["flag"], records["labels" if pairs else "label"] = 2 if pairs else 0, labels
    with (folder / "train.rec").open("ab") as file:
        offset = file.tell()
        records.tofile(file)
    with (folder / "train.idx").open("ab") as file:
        for start in range(0, len(keys), 100_000):
            own = enumerate(keys[start : start + 100_000].tolist(), start)
            file.write(b"".join(b"%d\t%d\n" % (key, offset + records.itemsize * place) for place, key in own))


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "most"), [("bare", 220), ("insightface", 220), ("shuffled", 600)])
def test_ten_million_records(tmp_path, added_memory, layout, most):
    if layout == "insightface":  # images, identities, and record 0 at the end
        write_records(tmp_path, np.arange(1, RECORDS + 1), np.arange(RECORDS) * PEOPLE // RECORDS)
        edges = np.arange(PEOPLE + 1) * (RECORDS // PEOPLE) + 1
        ends = np.column_stack([edges[:-1], edges[1:]])
        write_records(tmp_path, RECORDS + 1 + np.arange(PEOPLE), ends, pairs=True)
        write_records(tmp_path, np.zeros(1, int), [[RECORDS + 1, RECORDS + 1 + PEOPLE]], pairs=True)
    else:
        keys = np.arange(RECORDS) if layout == "bare" else np.random.default_rng(0).permutation(RECORDS)
        write_records(tmp_path, keys, keys % PEOPLE)
    assert added_memory(OPEN, tmp_path, RECORDS, PEOPLE) <= most  # MiB; offsets and labels of 8 bytes take 153


@pytest.mark.slow
def test_order_of_ten_million_images(tmp_path, added_memory):
    code = """
from facebones.data.loader import BlockOrder, full_order
before = peak()
for epoch in range(3):
    assert len(full_order(10_000_000, 0, epoch)) == len(BlockOrder(10_000_000, 1024, 0, epoch).order)
"""
    assert added_memory(code) <= 520  # MiB: torch, two orders of 8 bytes an image, and what is added to one


@pytest.mark.slow
def test_fifty_thousand_folders(tmp_path, added_memory):
    """Hard links to eight images: opened, fingerprinted, and a tenth of them read and decoded."""
    draw = np.random.default_rng(0)
    for number in range(8):
        image = cv2.imencode(".jpg", draw.integers(0, 256, (16, 16, 3), dtype=np.uint8))[1]
        (tmp_path / f".{number}.jpg").write_bytes(image.tobytes())  # no data: the name is hidden
    for person in range(50_000):
        folder = f"{tmp_path}/{person:05d}"
        os.mkdir(folder)  # noqa: PTH102 (half the time of a Path)
        for image in range(4):
            os.link(f"{tmp_path}/.{(person + image) % 8}.jpg", f"{folder}/{person:05d}_{image:04d}.jpg")
    assert added_memory(OPEN, tmp_path, 200_000, 50_000) <= 60
    code = f"""{OPEN}
from facebones.data.images import decode
assert data.fingerprint()["identities"] == int(sys.argv[3])
shapes = {{decode(data.read(index)[0], "an image").shape for index in range(0, len(data), 10)}}
assert shapes == {{(16, 16, 3)}}
"""
    assert added_memory(code, tmp_path, 200_000, 50_000) <= 80  # MiB; the names take 3, the folders' as text 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "millions", "read"),
    [
        ("{0} {1} {2}\n", 15, "ijb_pairs import read_pair_labels as read"),
        ("{0}.jpg {1}.jpg {2}\n", 3, "pair_lists import read_pair_set as read"),
        (
            "{0}.jpg {2}\n{1}.jpg {2}\n",
            1,
            "pair_lists import read_pair_set as read",
        ),
    ],
)
def test_millions_of_pairs_take_a_small_multiple_of_the_list(tmp_path, added_memory, line, millions, read):
    for image in range(100, 200):
        (tmp_path / f"{image}.jpg").write_bytes(b"an image")
    block = "".join(line.format(100 + pair % 97, 100 + pair % 89, pair % 2) for pair in range(100_000))
    with (path := tmp_path / "pairs.txt").open("w") as file:
        for _ in range(10 * millions):
            file.write(block)
    code = f"from facebones.data.{read}; data = read(sys.argv[1]); assert len(data) == {millions * 10**6}"
    assert added_memory(code, path) <= 3.5 * path.stat().st_size / 2**20
