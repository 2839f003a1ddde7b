"""What study.json says of `seeds: auto`: after each round, how much the seeds vary, and why another one was added."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from facebones.reporting.runs import number, text
from facebones.reporting.tables import NOTHING, Cell, Table, text_cell
from facebones.statistics.significance import SIGNIFICANT
from facebones.system.number_format import rounded

RULE = (
    "seeds: auto adds a seed to every {noun} until Student's t test between the seeds of two {noun}s, at"
    f" {100 * SIGNIFICANT:g} %, would find the wanted difference with the wanted power. It looks at the last validation"
    " accuracy, and takes the two {noun}s that vary most between seeds to vary as much as the upper confidence limit of"
    " their spread says. The difference seen so far decides nothing. The table of added seeds has every round."
)


@dataclass(frozen=True, kw_only=True)
class Round:
    """What was decided after a round; differences and deviations are in points.

    Attributes:
        seeds: of each variant.
        more: whether another seed was called for.
        why: in words.
        set: whose validation accuracy decides; empty if unknown.
        levels: the two variants that vary most between seeds.
        deviation: their pooled standard deviation between seeds; None if nothing could be decided.
        upper: its upper confidence limit.
        power: of finding the wanted difference, if the deviation is at that limit.
        detectable: the smallest difference that would be found with the wanted power, at that limit; None in files of
            older versions.
        verdict: what follows, in words; empty in files of older versions.
    """

    seeds: int
    more: bool
    why: str
    set: str
    levels: Sequence[str]
    deviation: float | None
    upper: float | None
    power: float | None
    detectable: float | None
    verdict: str


@dataclass(frozen=True, kw_only=True)
class AddedSeeds:
    """The rounds of one study.

    Attributes:
        study: its name.
        difference: in points, that was to be found.
        power: wanted.
        confidence: of the upper limit of the spread, one-sided.
        most: seeds of each variant.
        hours: of training in all; 0 for any number.
        rounds: the first one to the last; at least one.
        content: the study's settings and decisions, as study.json has them.
    """

    study: str
    difference: float
    power: float
    confidence: float
    most: int
    hours: float
    rounds: Sequence[Round]
    content: Mapping[str, Any]


def read_added_seeds(content: Mapping[str, Any]) -> AddedSeeds:
    """The rounds of a study, checked.

    Args:
        content: of study.json, with "auto_seeds".

    Raises:
        KeyError: or another of `runs.OTHER_SHAPE`, if it has another shape.
    """
    settings = content["study"]["auto_seeds"]
    return AddedSeeds(
        study=text(content["study"]["name"]),
        **{name: number(settings[name]) for name in ("difference", "power", "confidence", "hours")},
        most=int(number(settings["most"])),
        rounds=[_round(row) for row in content["auto_seeds"]],
        content={"study": content["study"]["name"], "wanted": settings, "rounds": content["auto_seeds"]},
    )


def _round(row: Mapping[str, Any]) -> Round:
    known: dict[str, Any] = {name: " ".join(text(row.get(name, "")).split()) for name in ("set", "verdict")}
    for name in ("deviation", "upper", "power", "detectable"):
        known[name] = None if row.get(name) is None else number(row[name])
    return Round(
        seeds=int(number(row["seeds"])),
        more=bool(row["more"]),
        why=" ".join(text(row["why"]).split()),
        levels=[text(name) for name in row["levels"]],
        **known,
    )


def added_seeds_sentence(found: AddedSeeds) -> str:
    """What the last round decided, with the numbers that it decided by."""
    last, wanted = found.rounds[-1], f"a difference of {found.difference:g} points"
    if last.deviation is None or last.upper is None or last.power is None:
        return f"Seeds are added until {wanted} would be found; {last.why}."
    what = f" in {last.set} accuracy" if last.set else ""
    spread = (
        f"between seeds of {' and '.join(last.levels)} it varies by ± {rounded(last.deviation)} points (at most"
        f" ± {rounded(last.upper)}, {100 * found.confidence:g} % confidence)"
    )
    power = f"{last.seeds} seeds each would find {wanted}{what} with {100 * last.power:.0f} % power"
    if last.power >= found.power:
        return f"{power}, so no more were added: {spread}."
    detectable = (
        "" if last.detectable is None else f" and {rounded(last.detectable)} points with {100 * found.power:g} %"
    )
    follows = "one more is to be trained" if last.more else last.verdict or "no more were added"
    return f"{power}{detectable}: {spread}; {follows}."


def added_seeds_table(found: AddedSeeds, *, noun: str, several: bool) -> Table:
    """A row for each round.

    Args:
        found: the rounds of a study.
        noun: what a variant is called.
        several: whether other studies of the report have such a table.
    """
    budget = f", {found.hours:g} hours of training in all" if found.hours else ""
    sets = " and ".join(dict.fromkeys(one.set for one in found.rounds if one.set))
    return Table(
        key="added_seeds",
        title=f"Added seeds of {found.study}" if several else "Added seeds",
        note=(
            f"Wanted: {found.difference:g} points between any two {noun}s, found with {100 * found.power:g} % power."
            f" At most {found.most} seeds each{budget}. Spread: the pooled standard deviation of the last"
            f" {sets + ' ' if sets else ''}accuracy between the seeds of the two {noun}s that vary most; beside it its"
            f" upper {100 * found.confidence:g} % limit, at which the rest of the row takes it to be. Found, at"
            f" {100 * SIGNIFICANT:g} %, by Student's t test between seeds; the differences seen so far decide nothing."
        ),
        columns=(
            "seeds each",
            "vary most",
            "spread (points)",
            "at most",
            f"found with {100 * found.power:g} % power (points)",
            f"power for {found.difference:g} points",
            "decision",
        ),
        rows=[_cells(one, is_last=one is found.rounds[-1]) for one in found.rounds],
        section="trust",
    )


def _cells(one: Round, *, is_last: bool) -> list[Cell]:
    decision = one.verdict or one.why
    if not one.more and not is_last:
        decision += "; the next round had begun by other settings"
    return [
        Cell(text=str(one.seeds), value=one.seeds),
        text_cell(" and ".join(one.levels)) if one.levels else NOTHING,
        *(_points(value) for value in (one.deviation, one.upper, one.detectable)),
        NOTHING if one.power is None else Cell(text=f"{100 * one.power:.0f} %", value=100 * one.power),
        text_cell(decision),
    ]


def _points(value: float | None) -> Cell:
    return NOTHING if value is None else Cell(text=rounded(value), value=value)
