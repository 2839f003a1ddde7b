"""Forged and damaged files of a sharded checkpoint are refused in one line that names the place."""

import json
import os
import random
import time
import tracemalloc
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file
from shared_states import assert_same, blank, on_each, shared_state, whole_state

from facebones.errors import CheckpointError
from facebones.system.distributed import World
from facebones.system.rows import Rows
from facebones.system.sharded_checkpoint import load_parts, load_sharded, load_state, save_sharded
from facebones.training.state import check_structure

WHOLE = whole_state(11)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    on_each(2, lambda world: save_sharded(folder / "last.json", shared_state(WHOLE, world), world))
    return folder


@pytest.fixture
def index(saved, tmp_path):
    """The path of a fresh copy."""
    for path in saved.rglob("*"):
        if path.is_file():
            copy = tmp_path / path.relative_to(saved)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return tmp_path / "last.json"


def refusal(index, pattern=None, world=None):
    """The line of the refusal by each reader; neither takes long, or much more memory than the index has bytes."""
    most = 2**24 + (index.stat().st_size if index.is_file() else 0)
    world = World() if world is None else world
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as refused:
            load_sharded(index, blank(WHOLE) if pattern is None else pattern, world)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 5 and peak < most
    line = str(refused.value)
    assert "\n" not in line and len(line) < len(str(index)) + 400
    return line


def replaced(content, *place, value):
    """Set a value deep in a content."""
    *above, last = place
    for key in above:
        content = content[key]
    if value is ...:
        del content[last]
    else:
        content[last] = value


INDEX = {
    "no format": (("format",), ..., "no index of a checkpoint"),
    "newer version": (("version",), 2, "has version 2 of the format"),
    "no folder": (("folder",), ..., "lacks folder, parts, matrices or state"),
    "folder of a list": (("folder",), ["a"], "lacks folder"),
    "folder above": (("folder",), "..", "no name of a folder beside it"),
    "folder far above": (("folder",), "../../etc", "no name of a folder"),
    "folder of the root": (("folder",), "/etc", "no name of a folder"),
    "folder of nothing": (("folder",), "", "no name of a folder"),
    "folder with a line": (("folder",), "last\n", "no name of a folder"),
    "other folder": (("folder",), "last-9-00", "is missing"),
    "no parts": (("parts",), [], "parts: none"),
    "part of text": (("parts", 0), "a", "parts.0: no name of a file"),
    "part above": (("parts", 0, "name"), "../last.json", "parts.0: no name"),
    "part of the root": (("parts", 1, "name"), "/etc/passwd", "parts.1: no name"),
    "part of NUL": (("parts", 1, "name"), "a\0b", "parts.1: no name"),
    "part twice": (("parts", 1, "name"), "part-0-of-2.safetensors", "parts: none, or one twice"),
    "part is missing": (("parts", 1, "name"), "part-7.safetensors", "is missing"),
    "other size": (("parts", 1, "bytes"), 7, "bytes instead of 7"),
    "size of a truth": (("parts", 1, "bytes"), True, "parts.1: no name"),
    "size below zero": (("parts", 1, "bytes"), -1, "parts.1: no name"),
    "matrices of a list": (("matrices",), [], "lacks folder, parts, matrices"),
    "matrix of text": (("matrices", "head.weight"), "x", "head.weight: no type and shape"),
    "matrix lacks": (("matrices", "head.weight"), ..., "holds head.weight, which last.json does not"),
    "unknown type": (("matrices", "head.weight", "dtype"), "F31", "head.weight: no type and shape"),
    "other type": (("matrices", "head.weight", "dtype"), "I32", "head.weight: not the rows that"),
    "no dimension": (("matrices", "head.weight", "shape"), [], "no type and shape"),
    "shape of floats": (("matrices", "head.weight", "shape"), [11.0, 6], "no type and shape"),
    "shape below zero": (("matrices", "head.weight", "shape"), [11, -6], "no type and shape"),
    "shape without end": (("matrices", "head.weight", "shape"), [11, 2**62], "not the rows that"),
    "shape beyond": (("matrices", "head.weight", "shape"), [11, 10**30], "no type and shape"),
    "more rows": (("matrices", "head.weight", "shape"), [12, 6], "the parts hold 11 rows of 12"),
    "fewer rows": (("matrices", "head.weight", "shape"), [10, 6], "the parts hold 11 rows of 10"),
    "rows of one part": (("matrices", "head.weight", "rows"), [[0, 11]], "no type and shape with rows of 2 parts"),
    "rows of text": (("matrices", "head.weight", "rows"), ["06", "6b"], "no type and shape"),
    "rows overlap": (("matrices", "head.weight", "rows"), [[0, 6], [5, 11]], "rows 5 to 11 of part 1 overlap"),
    "rows leave a gap": (("matrices", "head.weight", "rows"), [[0, 5], [6, 11]], "rows 6 to 11 of part 1 leave a gap"),
    "rows from below": (("matrices", "head.weight", "rows"), [[-1, 6], [6, 11]], "no type and shape"),
    "rows backwards": (("matrices", "head.weight", "rows"), [[0, 12], [12, 11]], "rows 12 to 11"),
    "rows moved": (("matrices", "head.weight", "rows"), [[0, 5], [5, 11]], "head.weight: not the rows that"),
    "state of a list": (("state",), [], "lacks folder"),
    "state of a tensor": (("state",), {"$tensor": "rng.cpu"}, "state: no dictionary"),
    "tensor twice": (("state", "step"), {"$tensor": "rng.cpu"}, "rng.cpu stands twice in the state"),
    "unknown tensor": (("state", "rng", "cpu"), {"$tensor": "none"}, "lacks none"),
    "tensor of a number": (("state", "rng", "cpu"), {"$tensor": 3}, "state.rng.cpu: '$tensor' is not understood"),
    "tensor and more": (("state", "rng", "cpu"), {"$tensor": "rng.cpu", "a": 1}, "state.rng.cpu: '$tensor'"),
    "unknown mark": (("state", "step"), {"$pickle": "x"}, "state.step: '$pickle' is not understood"),
    "float of text": (("state", "step"), {"$float": "12"}, "state.step: '$float' is not understood"),
    "items of text": (("state", "step"), {"$items": ["ab"]}, "state.step: no key with its value"),
    "key of a truth": (("state", "step"), {"$items": [[True, 1]]}, "state.step: no key with its value"),
    "key twice": (("state", "step"), {"$items": [[1, 1], [1, 2]]}, "state.step: no key with its value"),
    "unused matrix": (("state", "head"), {}, "matrices: head.nested.0 does not stand in the state"),
}  # fmt: skip


@pytest.mark.parametrize(("place", "value", "reason"), INDEX.values(), ids=INDEX)
def test_a_forged_index_is_refused(index, place, value, reason):
    content = json.loads(index.read_bytes())
    replaced(content, *place, value=value)
    index.write_text(json.dumps(content))
    line = refusal(index)
    assert line.startswith(str(index.parent)) and reason in line


TEXTS = {
    "empty": b"",
    "cut short": lambda text: text[:-9],
    "a list": b"[]",
    "NaN": lambda text: text.replace(b'"step": 3', b'"step": NaN'),
    "infinity": lambda text: text.replace(b'"step": 3', b'"step": -Infinity'),
    "a key twice": lambda text: text.replace(b'"step": 3', b'"step": 3, "step": 4'),
    "a number of a million digits": lambda text: text.replace(b'"step": 3', b'"step": 1' + b"0" * 10**6),
    "a list of a million levels": lambda text: text.replace(b'"step": 3', b'"step": ' + b"[" * 10**6 + b"]" * 10**6),
    "a list of 900 levels": lambda text: text.replace(b'"step": 3', b'"step": ' + b"[" * 900 + b"]" * 900),
    "no text": lambda text: text.replace(b'"step"', b'"st\xffp"'),
    "another encoding": lambda text: text.decode().encode("utf-16"),
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch /tmp/no'\ntR.",
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_an_index_that_is_no_json_is_refused(index, text):
    index.write_bytes(text if isinstance(text, bytes) else text(index.read_bytes()))
    assert refusal(index).startswith(f"{index}: ")


def test_an_index_larger_than_any_is_not_read(index):
    with index.open("ab") as file:
        file.truncate(2**40)
    assert "last.json: has more than" in refusal(index)


def part(index, number):
    return next(index.parent.glob(f"last-*/part-{number}-*"))


def header_and_values(path):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(path, header, index):
    """Write a part with another header, with a size that the index knows."""
    _, values = header_and_values(path)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)
    know_size(path, index)


def know_size(path, index):
    content = json.loads(index.read_bytes())
    for each in content["parts"]:
        if each["name"] == path.name:
            each["bytes"] = path.stat().st_size
    index.write_text(json.dumps(content))


HEADERS = {
    "tensor lacks": (("head.weight",), ..., "overlap, leave gaps"),
    "type unknown": (("head.weight", "dtype"), "F4", "head.weight"),
    "type of a list": (("head.weight", "dtype"), ["F32"], "head.weight"),
    "shape of text": (("head.weight", "shape"), "56", "head.weight"),
    "shape of a truth": (("head.weight", "shape"), [True, 30], "head.weight"),
    "shape of more": (("head.weight", "shape"), [6, 6], "head.weight"),
    "shape of other rows": (("head.weight", "shape"), [6, 5], "head.weight: not the rows that"),
    "shape of many dimensions": (("head.weight", "shape"), [30] + [1] * 10_000, "head.weight"),
    "shape of long numbers": (("head.weight", "shape"), [10**4000] * 30, "head.weight"),
    "no place": (("head.weight", "data_offsets"), ..., "head.weight"),
    "place below zero": (("head.weight", "data_offsets"), [-120, 0], "head.weight"),
    "place beyond": (("head.weight", "data_offsets"), [2**40, 2**40 + 120], "overlap, leave gaps"),
    "place shared": (("head.weight", "data_offsets"), [0, 120], "overlap, leave gaps"),
    "more fields": (("head.weight", "pickle"), "x", "head.weight"),
}


@pytest.mark.parametrize(("place", "value", "reason"), HEADERS.values(), ids=HEADERS)
def test_a_forged_part_is_refused(index, place, value, reason):
    path = part(index, 1)
    header, _ = header_and_values(path)
    assert header["head.weight"]["shape"] == [5, 6]
    replaced(header, *place, value=value)
    with_header(path, header, index)
    line = refusal(index)
    assert line.startswith(str(path)) and reason in line


@pytest.mark.parametrize("header", [b"[]", b"", b"{", b'{"a": NaN}', b"[" * 10**6, b"\xff\xff", b'"text"'])
def test_a_part_with_a_header_of_another_kind_is_refused(index, header):
    path = part(index, 0)
    with_header(path, header, index)
    assert refusal(index).startswith(f"{path}: ")


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 8 + b"{}", b"\xff\xff\xff\x7f" + b"\0" * 99, b"\0" * 8])
def test_a_part_with_another_length_of_header_is_refused(index, content):
    path = part(index, 0)
    path.write_bytes(content)
    assert f"{path}: has {len(content)} bytes instead of" in refusal(index)
    know_size(path, index)
    assert refusal(index).startswith(f"{path}: ")


@pytest.mark.parametrize("number", [0, 1])
def test_a_part_cut_short_or_too_long_is_refused(index, number):
    path = part(index, number)
    content = path.read_bytes()
    for broken in (content[:-1], content + b"\0"):
        path.write_bytes(broken)
        assert f"{path}: has {len(broken)} bytes instead of" in refusal(index)
        know_size(path, index)
        assert "overlap, leave gaps, or exceed the file" in refusal(index)


def test_links_that_leave_the_folder_are_refused(index, tmp_path):
    path = part(index, 1)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert f"{path}: is a link" in refusal(index)
    path.unlink()
    elsewhere.rename(path)
    folder = path.parent
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    assert "is a link" in refusal(index)
    folder.unlink()
    elsewhere.rename(folder)
    assert_same(load_sharded(index, blank(WHOLE), World()), WHOLE)
    (tmp_path / "moved").symlink_to(index.parent)  # above the checkpoint, links are the user's
    assert_same(load_sharded(tmp_path / "moved" / "last.json", blank(WHOLE), World()), WHOLE)


def test_pipes_and_folders_in_the_place_of_files_are_refused_without_waiting(index):
    path = part(index, 0)
    path.unlink()
    os.mkfifo(path)
    assert "part-0-of-2.safetensors" in refusal(index)
    path.unlink()
    path.mkdir()
    assert "part-0-of-2.safetensors" in refusal(index)
    index.unlink()
    os.mkfifo(index)
    assert "last.json: is no regular file" in refusal(index)


def test_a_tensor_without_numbers_but_of_great_size_takes_no_memory(index):
    """Shapes with a zero have no bytes, whatever the other dimensions are."""
    path = part(index, 0)
    header, _ = header_and_values(path)
    for shape in ([0, 2**62, 2**62], [2**62, 2**62, 0]):
        header["backbone.empty"]["shape"] = shape
        with_header(path, header, index)
        assert "backbone.empty" in refusal(index)


def test_what_differs_from_the_pattern_is_not_read_and_refused_by_its_place(index):
    pattern = blank(shared_state(WHOLE, World(rank=1, size=3)))
    check_structure(pattern, load_sharded(index, pattern, World()), "last.json")
    block = torch.zeros(4, 6)
    for place, other, line in (
        (("head", "weight"), Rows([block], 4, 12), "head.weight: holds rows 0 to 0 of (11, 6) of float32 instead of"),
        (("head", "weight"), Rows([block.half()], 4, 11), "instead of rows 4 to 8 of (11, 6) of float16"),
        (("head", "weight"), torch.zeros(12, 6), "instead of a tensor (12, 6)"),
        (("head", "weight"), 3, "instead of a int"),
        (("rng", "cpu"), Rows([block], 0, 4), "rng.cpu: holds rows 0 to 0 of (5056,) of uint8 instead of"),
        (("step",), Rows([block], 0, 4), "step: holds a int instead of rows 0 to 4"),
        (("backbone", "count"), Rows([block], 0, 4), "count: holds a tensor () of int64 instead of rows"),
        (("backbone", "half"), torch.zeros(6), "half: holds a tensor (5,) of bfloat16 instead of"),
    ):
        wrong = blank(shared_state(WHOLE, World(rank=1, size=3)))
        replaced(wrong, *place, value=other)
        with pytest.raises(CheckpointError) as refused:
            check_structure(wrong, load_sharded(index, wrong, World()), "last.json")
        assert line in str(refused.value)
    found = load_sharded(index, pattern, World())
    for start, blocks in ((3, [4]), (4, [2, 2]), (4, [3])):
        wrong = pattern | {"head": pattern["head"] | {"weight": Rows([torch.zeros(n, 6) for n in blocks], start, 11)}}
        with pytest.raises(CheckpointError, match=r"head\.weight: holds rows 4 to 8 of"):
            check_structure(wrong, found, "last.json")


def test_any_changed_byte_of_what_describes_the_tensors_is_read_or_refused(index):
    draw = random.Random(16)
    paths = [index, part(index, 0), part(index, 1)]
    whole = {path: path.read_bytes() for path in paths}
    described = {path: 8 + int.from_bytes(text[:8], "little") for path, text in whole.items()} | {index: 10**9}
    for _ in range(300):
        path = draw.choice(paths)
        text = bytearray(whole[path])
        for _ in range(draw.choice((1, 3))):
            place = draw.randrange(min(described[path], len(text)))
            text[place] = draw.choice(b'0123456789{}[]":,-.a$\x00\xff')
        path.write_bytes(text)
        with suppress(CheckpointError):
            check_structure(blank(WHOLE), load_sharded(index, blank(WHOLE), World()), "last.json")
        path.write_bytes(whole[path])
    assert_same(load_sharded(index, blank(WHOLE), World()), WHOLE)


def test_an_error_of_one_process_is_raised_in_all(index):
    part(index, 1).write_bytes(b"")

    def refused(world):
        return refusal(index, blank(shared_state(WHOLE, world)), world)

    assert all("part-1-of-2.safetensors: has 0 bytes instead of" in line for line in on_each(3, refused))


def test_each_part_is_a_file_of_the_library(index):
    """And what the library writes is read."""
    first, second = (load_file(part(index, number)) for number in (0, 1))
    assert torch.equal(torch.cat([first["head.weight"], second["head.weight"]]), WHOLE["head"]["weight"])
    assert torch.equal(first["backbone.a.b"], WHOLE["backbone"]["a.b"]) and first["backbone.count"].shape == ()
    save_file(first, part(index, 0))
    know_size(part(index, 0), index)
    assert_same(load_sharded(index, blank(WHOLE), World()), WHOLE)


def test_only_the_parts_of_the_state_that_are_asked_for_are_read(index):
    found = load_parts(index, ["backbone", "recipe", "none"])
    assert_same(found["recipe"], WHOLE["recipe"])
    assert all(torch.equal(found["backbone"][key], value) for key, value in WHOLE["backbone"].items())
    assert found.keys() == {"backbone", "recipe"}
    assert torch.equal(load_parts(index, ["head"])["head"]["weight"], WHOLE["head"]["weight"])


def test_a_process_reads_no_more_than_its_rows(tmp_path):
    classes = 100_000
    state = {"step": 1, "weight": torch.randn(classes, 32)}
    half = classes // 2

    def rows(start, stop):
        return {"step": 1, "weight": Rows([state["weight"][start:stop].clone()], start, classes)}

    on_each(2, lambda world: save_sharded(tmp_path / "a.json", rows(half * world.rank, half * (world.rank + 1)), world))
    before = io_bytes()
    wanted = rows(half - 10, half + 10)
    found = load_state(tmp_path / "a.pt", tmp_path / "a.json", blank(wanted), World())
    assert io_bytes() - before < 200_000
    assert_same(found, wanted)


def io_bytes():
    """Bytes that this process has read."""
    try:
        with open("/proc/self/io") as file:  # noqa: PTH123
            return int(next(line for line in file if line.startswith("rchar")).split()[1])
    except OSError:
        pytest.skip("this system does not say how much was read")
