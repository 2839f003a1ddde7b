"""The catalogue of face sets as a page of the documentation: `facebones data catalogue --markdown`."""

from collections.abc import Iterable

from facebones.datatools.face_sets import Catalogue, FaceSet, Fact, short_number

UNVERIFIED = "?"
_BEGINNING = """\
# Face sets: a catalogue

The sets that face recognition trains and tests on, with their counts, terms and links, and the formats in which
facebones reads them. Looked up on {date}; `facebones data catalogue` prints the same without a network, and
`facebones data catalogue NAME` one set with the source of each fact and the published digests of its files. **{mark}**
marks what was not verified. Read the terms at their source before you use a set: they change, and this page is
not legal advice.

<!-- This page is made by `facebones data catalogue --markdown`; edit src/facebones/datatools/face_sets.json. -->

- **State:** *free*: a link without asking; *by request*: a form or signed agreement; *withdrawn*: its publisher
  withdrew it, copies circulate; *unknown*: no page was found.
- **Reads:** the formats in which it comes, of those that facebones reads ([data formats](data_formats.md)); none if it
  has to be converted, or fetched image by image, into
  [a folder for each person](data_formats.md#image-folders).
"""
SECTIONS = (  # title, use, kind
    ("Training sets of photos", "training", "photos"),
    ("Synthetic training sets", "training", "synthetic"),
    ("Test sets", "test", "photos"),
)


def catalogue_page(catalogue: Catalogue) -> str:
    """The page, as Markdown."""
    parts = [_BEGINNING.format(date=catalogue.date, mark=UNVERIFIED)]
    for title, use, kind in SECTIONS:
        rows = [each for each in catalogue.sets if (each.use, each.kind) == (use, kind)]
        parts += [f"## {title}\n", *_table(catalogue, rows)]
    notes = [f"- **{each.name}.** {each.note}" for each in catalogue.sets if each.note]
    return "\n".join([*parts, "## Notes\n", *notes, ""])


def _table(catalogue: Catalogue, sets: Iterable[FaceSet]) -> list[str]:
    head = ["| set | people | images | year | paper | terms | state | reads |", "|---|---|---|---|---|---|---|---|"]
    return [*head, *(_row(catalogue, each) for each in sets), ""]


def short_cells(one: FaceSet) -> list[str]:
    """A row of a table in a terminal: name, people, images, year, state, formats, terms and paper."""
    return [
        one.name,
        marked(one.people, short_number(one.people.value)),
        marked(one.images, short_number(one.images.value)),
        str(one.year.value),
        one.state.value,
        marked(one.formats, ", ".join(one.formats.value) or "-"),
        marked(one.terms, one.terms.value or "-"),
        marked(one.paper, one.paper.value or "-"),
    ]


def _row(catalogue: Catalogue, one: FaceSet) -> str:
    _, people, images, year, _, formats, _, _ = short_cells(one)
    cells = [
        f"[{one.name}]({one.link})" if one.link else one.name,
        people,
        images,
        year,
        _linked(catalogue, one.paper),
        _linked(catalogue, one.terms),
        _linked(catalogue, one.state),
        formats,
    ]
    return f"| {' | '.join(cells)} |"


def marked(fact: Fact, text: str) -> str:
    """The text of a fact, with a mark if it was not verified.

    >>> marked(Fact(28000, None), "28 k"), marked(Fact(None, None), "-")
    ('28 k ?', '-')
    """
    return f"{text} {UNVERIFIED}" if fact.value and fact.source is None else text


def _linked(catalogue: Catalogue, fact: Fact) -> str:
    if not fact.value:
        return "-"
    if fact.source is None:
        return marked(fact, fact.value)
    return f"[{fact.value}]({catalogue.sources[fact.source]['url']})"
