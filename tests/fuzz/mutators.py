"""Mutations of files for the fuzzer: of bytes, of numbers in text, and of what a format is made of.

Everything follows from a `random.Random`, so a seed names an input.
"""

import io
import json
import pickletools
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from itertools import pairwise

Files = Mapping[str, bytes]  # name inside the input's folder to content
Mutation = Callable[[bytes, random.Random], bytes]

LARGEST_INPUT = 2**20  # bytes of a file; splices would grow it without end
EXTREMES = [0, 1, 2, 3, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24 - 1, 2**24, 2**29 - 1]
EXTREMES += [2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
NUMBERS = [b"0", b"-1", b"1", b"3", b"255", b"16777215", b"2147483647", b"4294967296", b"9223372036854775807", b"1e308"]
NUMBERS += [b"-0", b"1e999", b"nan", b"inf", b"-inf", b"0x10", b"1_000", b"\xd9\xa3", b"9" * 30, b"9" * 5000, b""]
TEXTS = [
    "",
    "\x00",
    "\x1b[2J\x1b]0;title\x07",
    "\n",
    "a\rb",
    "../../etc/passwd",
    "/dev/zero",
    "a" * 300,
    "\ud800",
    "\u202e",
    "é",
]
TEXTS += ["%s%n{0}", "~", "nan", "<script>", "[bold]", "NUL", "-", "--help", "a" * 5000]
TOKENS = [
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\t",
    b"\r\n",
    b" ",
    b",",
    b'"',
    b"'",
    b"[",
    b"]",
    b"{",
    b"}",
    b":",
    b"&a ",
]
TOKENS += [
    b"*a",
    b"<<: ",
    b"!!python/object/apply:os.system ",
    b"- ",
    b"#",
    b"|",
    b"\x1b[31m",
    b"\xc2\x9b",
    b"[" * 300,
    b"{a: " * 100,
]


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


def attempt(mutation: Mutation, content: bytes, rng: random.Random) -> bytes:
    """The result of a mutation of a format, or of one of bytes where the content has that format no longer."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return mutation(content, rng)
    except Exception:  # noqa: BLE001 (a content that was mutated before raises anything)
        return rng.choice(BYTES)(content, rng)


# -------------------------------------------------------------------------------------------------------- bytes


def _span(content: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + int(2 ** rng.uniform(0, 9)))


def _flip(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return bytes([rng.randrange(256)])
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _remove(content: bytes, rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + content[end:]


def _insert(content: bytes, rng: random.Random) -> bytes:
    start, _ = _span(content, rng)
    return content[:start] + rng.choice((rng.choice(TOKENS), rng.randbytes(rng.randrange(1, 9)))) + content[start:]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return content[:end] + content[start:end] * rng.choice((1, 1, 2, 10, 200)) + content[end:]


def _number(content: bytes, rng: random.Random) -> bytes:
    """An integer of the file becomes an extreme one: of 1, 2, 4 or 8 bytes, in either order."""
    size, place = rng.choice((1, 2, 4, 4, 8)), rng.randrange(len(content) + 1)
    value = rng.choice(EXTREMES) if rng.random() < 0.8 else len(content) + rng.randrange(-8, 9)
    packed = (value % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
    return content[:place] + packed + content[place + size :]


def _digits(content: bytes, rng: random.Random) -> bytes:
    """A number in text becomes an extreme one."""
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?", content[:20_000]))
    if not found:
        return _flip(content, rng)
    one = rng.choice(found)
    return content[: one.start()] + rng.choice(NUMBERS) + content[one.end() :]


def _exchange(content: bytes, rng: random.Random) -> bytes:
    """Two lines, or two spans, change places."""
    lines = content.split(b"\n")
    if len(lines) > 2 and rng.random() < 0.7:
        a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
        lines[a], lines[b] = lines[b], lines[a]
        return b"\n".join(lines)
    a, b = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    return content[:a] + content[b:] + content[a:b]


BYTES: list[Mutation] = [_flip, _flip, _cut, _remove, _insert, _repeat, _number, _number, _digits, _exchange]


def _splice(content: bytes, other: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]


# -------------------------------------------------------------------------------------------------------- trees


def odd_value(rng: random.Random) -> object:
    """A value that a file may hold in place of any other."""
    deep: object = 1
    for _ in range(rng.choice((2, 50, 900))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return rng.choice(
        (
            *(None, True, False, {}, [], [None], {"": None}, [1, "a", {}], deep),
            *(0, -1, 1e308, 5e-324, 0.5, float("nan"), float("inf"), -float("inf")),
            *(rng.choice(EXTREMES), -rng.choice(EXTREMES), 10**30, 10**400),
            *(rng.choice(TEXTS), rng.choice(TEXTS), [0] * 5000),
        )
    )


def changed_tree(tree: object, rng: random.Random) -> object:
    """A copy of nested dictionaries and lists in which one place has another value, is gone, or stands twice."""
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        key = rng.choice(list(tree))
        rest = {name: value for name, value in tree.items() if name != key}
        chance = rng.random()
        if chance < 0.1:
            return rest
        if chance < 0.15:
            return {**rest, rng.choice(TEXTS): tree[key]}
        if chance < 0.2:
            return {**tree, rng.choice(TEXTS): odd_value(rng)}
        return {name: changed_tree(value, rng) if name == key else value for name, value in tree.items()}
    if isinstance(tree, list) and tree and rng.random() < 0.9:
        place = rng.randrange(len(tree))
        chance = rng.random()
        if chance < 0.1:
            return tree[:place] + tree[place + 1 :]
        if chance < 0.2:
            return tree[: place + 1] + tree[place:]
        return [*tree[:place], changed_tree(tree[place], rng), *tree[place + 1 :]]
    return odd_value(rng)


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
        cut[number] = one[:1] + (_number(one[1:], rng) if len(one) > 1 else b"")
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
    return content[:start] + rng.choice((_flip, _number, _remove))(content[start:], rng)


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
        fields[place] = key, kind, _flip(value, rng)
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
    return _number(content[:place], rng)[:place] + _at(
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
        parts[number] = kind, _number(held, rng), -1
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
