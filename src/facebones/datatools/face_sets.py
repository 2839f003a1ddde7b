"""The catalogue of the field's face sets: counts, terms, links and formats, each fact with its source.

The facts are in `face_sets.json`, which is edited by hand. A fact without a source is not verified.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from facebones.errors import UnknownNameError

CATALOGUE = Path(__file__).with_name("face_sets.json")
USES = ("training", "test")
KINDS = ("photos", "synthetic")
STATES = ("free", "by request", "withdrawn", "unknown")
# What facebones reads of a set, and how: docs/data_formats.md and docs/protocols.md.
FORMATS = ("recordio", "folder", "lmdb", "parquet", "bin", "pair list", "ijb lists")
FACTS = ("people", "images", "year", "paper", "terms", "state", "formats")


@dataclass(frozen=True)
class Fact:
    """A value and where it is from.

    Attributes:
        value: a number, a text, a list of texts; None or empty if nothing is known.
        source: key of a source; None for a fact that was not verified.
    """

    value: Any
    source: str | None


@dataclass(frozen=True)
class Checksum:
    """A published digest of a file of a set."""

    file: str
    algorithm: str
    digest: str
    source: str


@dataclass(frozen=True, kw_only=True)
class FaceSet:
    """A set of face images for training or testing.

    Attributes:
        name: usual name.
        also: other names, such as those of files.
        use: one of `USES`.
        kind: one of `KINDS`.
        link: page to get it from, or to read about it; "" if there is none.
        people: number of people.
        images: number of images.
        year: when it was published.
        paper: what to cite.
        terms: licence or terms of use, in short; they are to be read at their source.
        state: one of `STATES`: what happens to who wants it.
        formats: those in which facebones reads it, of `FORMATS`.
        note: what else one should know.
        checksums: published digests of its files.
    """

    name: str
    also: tuple[str, ...]
    use: str
    kind: str
    link: str
    people: Fact
    images: Fact
    year: Fact
    paper: Fact
    terms: Fact
    state: Fact
    formats: Fact
    note: str
    checksums: tuple[Checksum, ...]

    def facts(self) -> dict[str, Fact]:
        """The facts by name, in the order of `FACTS`."""
        return {name: getattr(self, name) for name in FACTS}


@dataclass(frozen=True)
class Catalogue:
    """All sets.

    Attributes:
        date: when the facts were last looked up, such as "2026-11-28".
        sources: title and address of each source, by key.
        sets: the sets.
    """

    date: str
    sources: Mapping[str, Mapping[str, str]]
    sets: tuple[FaceSet, ...]

    def find(self, words: Sequence[str]) -> tuple[FaceSet, ...]:
        """The sets that fit all words.

        Args:
            words: names or parts of them, shell patterns, or a use, kind, state or format, in upper or lower case. A
                name in full gives that set only.

        Raises:
            UnknownNameError: no set fits a word, or none fits all of them.

        >>> [each.name for each in read_catalogue().find(["webface", "lmdb"])]
        ['WebFace4M']
        """
        found = self.sets
        for word in words:
            fitting = tuple(each for each in found if _fits(each, word))
            exact = tuple(each for each in fitting if _plain(word) in map(_plain, (each.name, *each.also)))
            found = exact or fitting
            if not found:
                known = [name for each in self.sets for name in (each.name, *each.also)]
                raise UnknownNameError("face set", word, [*known, *USES, *KINDS, *STATES, *FORMATS])
        return found

    def to_json(self, sets: Iterable[FaceSet]) -> dict[str, Any]:
        """Some of the sets as plain values for JSON, with the sources that they name."""
        rows = [asdict(each) for each in sets]
        named = {fact["source"] for row in rows for fact in (*map(row.get, FACTS), *row["checksums"]) if fact}
        sources = {key: dict(source) for key, source in self.sources.items() if key in named}
        return {"date": self.date, "sources": sources, "sets": rows}

    def lines(self, one: FaceSet) -> list[str]:
        """All that is known of a set, as lines of text, with numbered sources below."""
        heading = f"{one.name} ({', '.join((one.use, one.kind, *(f'also called {name}' for name in one.also)))})"
        numbers = {key: place for place, key in enumerate(_sources_of(one), 1)}
        rows = {"link": one.link or "none known"} | {
            name: f"{_value(fact)} {_mark(fact, numbers)}" for name, fact in one.facts().items()
        }
        lines = [heading, *(f"  {name:<9}{text.rstrip()}" for name, text in rows.items())]
        if one.note:
            lines.append(f"  {'note':<9}{one.note}")
        if one.checksums:
            lines.append(f"  digests of its files [{numbers[one.checksums[0].source]}]")
            lines += [f"    {each.algorithm} {each.digest}  {each.file}" for each in one.checksums]
        lines += [
            f"  [{place}] {self.sources[key]['title']}: {self.sources[key]['url']}" for key, place in numbers.items()
        ]
        return [*lines, f"  looked up on {self.date}; read the terms at their source before you use a set"]


def _sources_of(one: FaceSet) -> list[str]:
    """The sources of a set's facts and digests, each once, in their order."""
    keys = [fact.source for fact in one.facts().values()] + [each.source for each in one.checksums]
    return list(dict.fromkeys(key for key in keys if key is not None))


def _mark(fact: Fact, numbers: Mapping[str, int]) -> str:
    if fact.source is None:
        return "(not verified)" if fact.value else ""
    return f"[{numbers[fact.source]}]"


@cache
def read_catalogue() -> Catalogue:
    """The catalogue of this version; nothing is looked up.

    >>> read_catalogue().find(["glint360k"])[0].people
    Fact(value=360232, source='partial-fc')
    """
    content = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    return Catalogue(content["date"], content["sources"], tuple(map(_face_set, content["sets"])))


def _face_set(row: Mapping[str, Any]) -> FaceSet:
    facts: dict[str, Any] = {name: Fact(**row[name]) for name in FACTS}
    sums = tuple(Checksum(**each) for each in row["checksums"])
    rest = {name: value for name, value in row.items() if name not in (*FACTS, "checksums", "also")}
    return FaceSet(also=tuple(row["also"]), checksums=sums, **facts, **rest)


def _fits(one: FaceSet, word: str) -> bool:
    plain = _plain(word)
    if word.lower() in (one.use, one.kind, one.state.value, *one.formats.value):
        return True
    names = [_plain(name) for name in (one.name, *one.also)]
    return any(plain in name or fnmatchcase(name, plain) for name in names) if plain else False


def _plain(name: str) -> str:
    """A name without what people write differently.

    >>> _plain("CASIA-WebFace"), _plain("casia_web*")
    ('casiawebface', 'casiaweb*')
    """
    return "".join(letter for letter in name.lower() if letter.isalnum() or letter in "*?.")


def short_number(value: int | None) -> str:
    """A number in few letters.

    >>> [short_number(value) for value in (None, 570, 85_742, 5_822_653, 260_890_076)]
    ['-', '570', '85.7 k', '5.82 M', '261 M']
    """
    if value is None:
        return "-"
    scale, unit = next(((scale, unit) for scale, unit in ((10**6, " M"), (10**3, " k")) if value >= scale), (1, ""))
    return f"{value / scale:.3g}{unit}"


def _value(fact: Fact) -> str:
    value = fact.value
    if isinstance(value, int) and value > 9999:
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(value) or "none known that facebones reads as it comes"
    return str(value) if value else "-"
