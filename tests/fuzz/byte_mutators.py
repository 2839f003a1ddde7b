"""Mutations of bytes, of numbers in text, and of trees of values: what those of single formats are made of.

Everything follows from a `random.Random`, so a seed names an input.
"""

import random
import re
import warnings
from collections.abc import Callable

Mutation = Callable[[bytes, random.Random], bytes]

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


def flip(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return bytes([rng.randrange(256)])
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def remove(content: bytes, rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return content[:start] + content[end:]


def _insert(content: bytes, rng: random.Random) -> bytes:
    start, _ = _span(content, rng)
    return content[:start] + rng.choice((rng.choice(TOKENS), rng.randbytes(rng.randrange(1, 9)))) + content[start:]


def _repeat(content: bytes, rng: random.Random) -> bytes:
    start, end = _span(content, rng)
    return content[:end] + content[start:end] * rng.choice((1, 1, 2, 10, 200)) + content[end:]


def extreme(content: bytes, rng: random.Random) -> bytes:
    """An integer of the file becomes an extreme one: of 1, 2, 4 or 8 bytes, in either order."""
    size, place = rng.choice((1, 2, 4, 4, 8)), rng.randrange(len(content) + 1)
    value = rng.choice(EXTREMES) if rng.random() < 0.8 else len(content) + rng.randrange(-8, 9)
    packed = (value % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
    return content[:place] + packed + content[place + size :]


def _digits(content: bytes, rng: random.Random) -> bytes:
    """A number in text becomes an extreme one."""
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?", content[:20_000]))
    if not found:
        return flip(content, rng)
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


BYTES: list[Mutation] = [flip, flip, cut, remove, _insert, _repeat, extreme, extreme, _digits, _exchange]


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
