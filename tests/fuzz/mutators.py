"""Mutations of files for the fuzzer: those of bytes, and those that keep to a format.

Everything follows from a `random.Random`, so a seed names an input.
"""

import io
import json
import pickletools
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from itertools import pairwise

from byte_mutators import BYTES, EXTREMES, NUMBERS, TEXTS, Mutation, attempt, changed_tree, extreme, flip, remove

Files = Mapping[str, bytes]  # name inside the input's folder to content

LARGEST_INPUT = 2**20  # bytes of a file; splices would grow it without end


def mutate(files: Files, others: list[Files], rng: random.Random) -> dict[str, bytes]:
    """Change one file of an input, or two; now and then one is lost or empty."""
    changed = dict(files)
    for _ in range(rng.choice((1, 1, 1, 2))):
        name = rng.choice(sorted(changed))
        if rng.random() < 0.01:
            changed.pop(name) if len(changed) > 1 and rng.random() < 0.5 else changed.update({name: b""})
            if name not in changed:
                continue
        content = changed[name]
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
            structured = _by_name(name)
            if structured and rng.random() < 0.6:
                content = attempt(rng.choice(structured), content, rng)
            elif rng.random() < 0.1:
                other = rng.choice(others).get(name, content)
                content = _splice(content, other, rng)
            else:
                content = rng.choice(BYTES)(content, rng)
        changed[name] = content[:LARGEST_INPUT]
    return changed


def _splice(content: bytes, other: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]


def _json(content: bytes, rng: random.Random) -> bytes:
    text = json.dumps(changed_tree(json.loads(content), rng), ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def _json_lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    place = rng.randrange(len(lines))
    lines[place] = _json(lines[place], rng)
    return b"\n".join(lines)


def _yaml(content: bytes, rng: random.Random) -> bytes:
    import yaml

    tree = changed_tree(yaml.safe_load(content), rng)
    return yaml.safe_dump(tree, allow_unicode=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def _yaml_aliases(content: bytes, rng: random.Random) -> bytes:
    """Each anchor holds the one before it twice or more."""
    lines = [b"a0: &a0 [x, x]"]
    lines += [b"a%d: &a%d [%s]" % (k, k, b", ".join([b"*a%d" % (k - 1)] * 9)) for k in range(1, rng.choice((3, 30)))]
    return b"\n".join(rng.sample([*lines, content], len(lines) + 1) if rng.random() < 0.2 else [*lines, content])


# ------------------------------------------------------------------------------------------------------- formats


def _field(content: bytes, rng: random.Random) -> bytes:
    """A field of a table in text is changed, lost or doubled."""
    lines = content.split(b"\n")
    place = rng.randrange(len(lines))
    separator = next((one for one in (b"\t", b",", b" ") if one in lines[place]), b" ")
    fields = lines[place].split(separator)
    number = rng.randrange(len(fields))
    new = rng.choice((rng.choice(NUMBERS), rng.choice(TEXTS).encode("utf-8", "surrogatepass"), rng.choice(fields)))
    fields[number : number + 1] = rng.choice(([], [new], [new], [fields[number]] * 2))
    lines[place] = separator.join(fields)
    return b"\n".join(lines)


def _pickle(content: bytes, rng: random.Random) -> bytes:
    """Instructions of a pickle are removed, repeated or exchanged, or get other arguments."""
    places = [place for _, _, place in pickletools.genops(content) if place is not None]
    places.append(len(content) if content.endswith(b".") else places[-1] + 1)
    cut = [content[a:b] for a, b in pairwise(places)]
    tail = content[places[-1] :]
    number = rng.randrange(len(cut))
    chance = rng.random()
    if chance < 0.2:
        del cut[number : number + rng.choice((1, 1, 3))]
    elif chance < 0.4:
        first = rng.randrange(len(cut))
        cut[number:number] = cut[first : first + rng.choice((1, 2, 5, 20))] * rng.choice((1, 1, 3, 50))
    elif chance < 0.6:
        cut[number:number] = [rng.choice(PICKLED)]
    elif chance < 0.7:
        cut[number:number] = [_bomb(rng)]
    elif chance < 0.8:
        other = rng.randrange(len(cut))
        cut[number], cut[other] = cut[other], cut[number]
    else:
        one = cut[number]
        cut[number] = one[:1] + (extreme(one[1:], rng) if len(one) > 1 else b"")
    return b"".join(cut) + tail


def _bomb(rng: random.Random) -> bytes:
    """Instructions that build what takes far more than their own bytes: as a tree, or by a call."""
    doubled = b"]" + b"".join(
        b"q" + bytes([k]) + b"0(" + b"h" + bytes([k]) + b"h" + bytes([k]) + b"l" for k in range(200)
    )
    call = rng.choice(
        (
            b"cbuiltins\nbytearray\n",
            b"c__builtin__\nbytearray\n",
            b"ctorch\nTensor\n",
            b"ctorch.storage\nUntypedStorage\n",
        )
    )
    number = rng.choice((b"J\xff\xff\xff\x7f", b"\x8a\x05\x00\x00\x00\x00\x10", b"K\x05"))
    return rng.choice((doubled, call + number + b"\x85R", call + number + b"\x85\x81", b"\x8a\xff" + b"\x7f" * 255))


PICKLED = [
    b"N",
    b"\x88",
    b"K\x00",
    b"J\xff\xff\xff\xff",
    b"J\xff\xff\xff\x7f",
    b"]",
    b"}",
    b")",
    b"(",
    b"0",
    b"2",
    b"t",
    b"l",
    b"e",
]
PICKLED += [
    b"R",
    b"b",
    b"\x81",
    b"\x94",
    b"q\x00",
    b"h\x00",
    b"h\x01",
    b"X\x02\x00\x00\x00ab",
    b"C\x01a",
    b"G" + b"\x7f\xf8" + bytes(6),
]
PICKLED += [
    b"cos\nsystem\n",
    b"cbuiltins\nset\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch\nSize\n",
    b"ctorch\ndevice\n",
]
PICKLED += [
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b"B\xff\xff\xff\x7f",
    b"Q",
    b"\x85",
    b"\x86",
    b"\x87",
    b"u",
    b"s",
    b"a",
]


def _zip(content: bytes, rng: random.Random) -> bytes:
    """A member is mutated, renamed, lost, doubled or compressed; names and checksums are sound again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    place = rng.randrange(len(members))
    name, held = members[place]
    chance = rng.random()
    if chance < 0.7:
        inner = _by_name(name) or [rng.choice(BYTES)]
        members[place] = (
            name,
            attempt(rng.choice(inner), held, rng) if rng.random() < 0.7 else rng.choice(BYTES)(held, rng),
        )
    elif chance < 0.8:
        members[place] = (
            rng.choice((rng.choice(TEXTS).encode(errors="replace").decode(), "../" + name, name + "x")),
            held,
        )
    elif chance < 0.9:
        members[place : place + 1] = rng.choice(([], [members[place]] * 2))
    else:
        members[place] = name, held + bytes(rng.choice((10, 2**20, 2**26)))
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method if chance < 0.9 else zipfile.ZIP_DEFLATED) as archive:
        for name, held in members:
            archive.writestr(name, held)
    return packed.getvalue()


def _zip_directory(content: bytes, rng: random.Random) -> bytes:
    """Bytes of the directory at the end of the archive, which says where members lie and how large they are."""
    start = content.rindex(b"PK\x01\x02") if rng.random() < 0.5 else content.index(b"PK\x01\x02")
    return content[:start] + rng.choice((flip, extreme, remove))(content[start:], rng)


def _protobuf(content: bytes, rng: random.Random) -> bytes:
    """A field of a message, perhaps one inside, is lost, doubled or changed; the lengths around it fit."""
    fields = list(_fields(content))
    if not fields:
        return rng.choice(BYTES)(content, rng)
    place = rng.randrange(len(fields))
    key, kind, value = fields[place]
    chance = rng.random()
    if chance < 0.1:
        del fields[place]
    elif chance < 0.2:
        fields[place:place] = [fields[place]] * rng.choice((1, 1, 100))
    elif chance < 0.25:
        fields[place] = rng.randrange(1, 30), kind, value
    elif kind == 2:
        inner = attempt(_protobuf, value, rng) if rng.random() < 0.85 else rng.choice(BYTES)(value, rng)
        fields[place] = key, kind, inner
    elif kind == 0:
        fields[place] = key, kind, rng.choice(EXTREMES)
    else:
        fields[place] = key, kind, flip(value, rng)
    return b"".join(map(_packed, fields))


def _fields(content: bytes) -> list[tuple[int, int, object]]:
    found: list[tuple[int, int, object]] = []
    place = 0
    while place < len(content):
        tag, place = _varint(content, place)
        if tag & 7 == 0:
            value, place = _varint(content, place)
        elif tag & 7 in (1, 5):
            size = 8 if tag & 7 == 1 else 4
            value, place = content[place : place + size], place + size
        elif tag & 7 == 2:
            size, place = _varint(content, place)
            value, place = content[place : place + size], place + size
        else:
            raise ValueError(tag)
        if place > len(content):
            raise ValueError(place)
        found.append((tag >> 3, tag & 7, value))
    return found


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (content[place] & 127) << shift
        shift, place = shift + 7, place + 1
        if not content[place - 1] & 128:
            return value, place


def _packed(field: tuple[int, int, object]) -> bytes:
    key, kind, value = field

    def number(left: int) -> bytes:
        digits = bytearray()
        while left > 127:
            digits.append(left & 127 | 128)
            left >>= 7
        return bytes([*digits, left])

    start = number(key << 3 | kind)
    if kind == 0:
        return start + number(int(value))
    return start + (number(len(value)) if kind == 2 else b"") + bytes(value)


def _npy(content: bytes, rng: random.Random) -> bytes:
    """The header of an array says something else; its length fits."""
    size = int.from_bytes(content[8:10], "little")
    header = content[10 : 10 + size]
    types = (
        b"'|O'",
        b"'<f2'",
        b"'<f8'",
        b"'<i8'",
        b"'|b1'",
        b"'<U9999'",
        b"'|V0'",
        b"'|S0'",
        b"[('a', '<f4')]",
        b"'<M8[s]'",
    )
    shapes = (
        b"(0,)",
        b"()",
        b"(-1,)",
        b"(4294967296, 4294967296)",
        b"(99999999999,)",
        b"(1,)" * 2,
        b"(2,)",
        b"(1, 1, 1)",
    )
    changed = rng.choice(
        (
            lambda: re.sub(rb"'[<|>=][^']*'", rng.choice(types), header, count=1),
            lambda: re.sub(rb"\([\d, ]*\)", rng.choice(shapes), header, count=1),
            lambda: header.replace(b"False", b"True"),
            lambda: rng.choice(BYTES)(header, rng),
            lambda: b"(" * rng.choice((50, 3000)) + header,
        )
    )()
    return content[:8] + (len(changed) % 2**16).to_bytes(2, "little") + changed + content[10 + size :]


def _safetensors(content: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header = attempt(_json, content[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def _records(content: bytes, rng: random.Random) -> bytes:
    """The frame or header of a record gets an extreme word or another label."""
    places = [found.start() for found in re.finditer(rb"\x0a\x23\xd7\xce", content) if found.start() % 4 == 0]
    place = rng.choice(places)
    if rng.random() < 0.5:
        label = struct.pack(
            "<f", rng.choice((0, -1, 1, 0.5, 3, 999, 16777215, 16777216, 1e30, float("nan"), float("inf")))
        )
        return content[: place + 12] + label + content[place + 16 :]
    return extreme(content[:place], rng)[:place] + _at(
        content[place:], rng.choice((4, 8, 12, 16, 20, 24, 28, 32, 36)), rng
    )


def _at(content: bytes, place: int, rng: random.Random) -> bytes:
    return content[:place] + (rng.choice(EXTREMES) % 2**32).to_bytes(4, "little") + content[place + 4 :]


def _png(content: bytes, rng: random.Random) -> bytes:
    """A part is changed, repeated, lost or moved, or claims another length; checksums are sound again."""
    parts, place = [], 8
    while place + 8 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        parts.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length], length))
        place += 12 + length
    number = rng.randrange(len(parts))
    kind, held, length = parts[number]
    chance = rng.random()
    if chance < 0.3:
        kind = rng.choice(
            (b"IDAT", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"acTL", b"fcTL", b"fdAT", b"eXIf")
        )
        packed = zlib.compress(bytes(rng.choice((0, 100, 2**20, 2**26))))
        parts.insert(number, (kind, rng.choice((packed, b"a\0\0" + packed, rng.randbytes(26), held)), -1))
    elif chance < 0.5:
        parts[number] = kind, extreme(held, rng), -1
    elif chance < 0.7:
        parts[number] = kind, rng.choice(BYTES)(held, rng), -1
    elif chance < 0.8:
        parts[number] = kind, held, rng.choice(EXTREMES) % 2**32
    else:
        parts[number : number + 1] = rng.choice(([], [parts[number]] * 2, [parts[number]] * 500))
    return content[:8] + b"".join(
        (len(held) if length < 0 else length).to_bytes(4, "big")
        + kind
        + held
        + zlib.crc32(kind + held).to_bytes(4, "big")
        for kind, held, length in parts
    )


FORMATS: dict[str, list[Mutation]] = {
    ".json": [_json],
    ".jsonl": [_json_lines],
    ".yaml": [_yaml, _yaml, _yaml_aliases],
    ".bin": [_pickle],
    ".pkl": [_pickle],
    ".pt": [_zip, _zip, _zip, _zip_directory],
    ".npz": [_zip, _zip_directory],
    ".pth": [_pickle],
    ".npy": [_npy],
    ".safetensors": [_safetensors],
    ".onnx": [_protobuf],
    ".rec": [_records],
    ".png": [_png],
    ".txt": [_field],
    ".csv": [_field],
    ".idx": [_field],
    ".log": [_field],
}


def _by_name(name: str) -> list[Mutation]:
    return FORMATS.get("." + name.rpartition(".")[2], [])
