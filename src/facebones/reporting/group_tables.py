"""What `evaluate groups` prints: the rates of each group first, then indices of inequality, then what the tests say."""

from collections.abc import Mapping, Sequence
from typing import Any

from facebones.reporting.console import print_table
from facebones.statistics.group_rates import LEAST_PAIRS, LEAST_PEOPLE
from facebones.statistics.significance import SIGNIFICANT
from facebones.system.number_format import p_words, percent_interval, rounded
from facebones.system.progress import tell

ACROSS = "across groups"
INDEX_WORDS = {  # name: heading, factor, unit
    "fmr_difference": ("largest FMR difference", 100.0, " points"),
    "fmr_ratio": ("largest FMR ratio", 1.0, ""),
    "fnmr_difference": ("largest FNMR difference", 100.0, " points"),
    "fnmr_ratio": ("largest FNMR ratio", 1.0, ""),
    "fdr": ("FDR (1: alike)", 1.0, ""),
    "ir": ("IR (1: alike)", 1.0, ""),
    "garbe": ("GARBE (0: alike)", 1.0, ""),
}

Json = Mapping[str, Any]


def print_groups(content: Json) -> None:
    """Print the result of `evaluate_groups`."""
    people = content["people_known"]
    for section in content["groupings"]:
        for model, found in section["results"].items():
            title = (
                f"{content['set']}, {section['name']}: {model}, accepts cosines from {content['thresholds'][model]:.4f}"
            )
            print_table(rate_columns(people), rate_rows(found, people), title=title)
            print_table(["index", "value", "95 % interval"], [_index_row(one) for one in found["indices"]])
            for line in sentences(found):
                tell(line)
        for line in note_words(section, people):
            tell(f"note: {line}")
    if not people:
        tell("note: who is in the pairs is not known, so pairs count as independent of each other")
    for note in content["notes"]:
        tell(f"note: {note}")


def rate_columns(people: bool) -> list[str]:
    """Headings of `rate_rows`."""
    who = ["people"] if people else []
    return ["group", *who, "genuine pairs", "rejected", "FNMR", "impostor pairs", "accepted", "FMR"]


def rate_rows(found: Json, people: bool) -> list[list[str]]:
    """The rates of each group, and those of the pairs across groups."""
    rows = []
    fmr, fnmr = (found["rates"][kind] for kind in ("fmr", "fnmr"))
    for name, impostor, genuine in zip([*found["groups"], ACROSS], fmr, fnmr, strict=True):
        who = [f"{max(impostor['people'], genuine['people']):,}"] if people else []
        rows.append([name, *who, *_rate_cells(genuine), *_rate_cells(impostor)])
    return rows


def _rate_cells(rate: Json) -> list[str]:
    if rate["value"] is None:
        return ["0", "-", "-"]
    interval = percent_interval(rate["value"], rate["interval"]["low"], rate["interval"]["high"])
    return [f"{rate['pairs']:,}", f"{rate['errors']:,}", interval]


def _index_row(index: Json) -> list[str]:
    heading, factor, unit = INDEX_WORDS[index["name"]]
    if index["value"] is None:
        least = "" if (index["at_least"] or 1) <= 1 else f"; at least {rounded(index['at_least'])}"
        return [heading, "-", f"{index['reason']}{least}"]
    decimals = 2 if unit or heading.endswith("ratio") else 4
    value, low, high = (rounded(factor * number, decimals) for number in (index["value"], *_ends(index["interval"])))
    return [heading, f"{value}{unit}", f"{low} to {high}"]


def index_words(found: Json) -> list[str]:
    """Each index with its interval, in words."""
    return [
        f"{heading}: {value} [{interval}]" if one["value"] is not None else f"{heading}: {interval}"
        for one in found["indices"]
        for heading, value, interval in [_index_row(one)]
    ]


def _ends(interval: Json) -> tuple[float, float]:
    return interval["low"], interval["high"]


def sentences(found: Json) -> list[str]:
    """A sentence for each test."""
    lines = []
    for test in found["tests"]:
        kind = test["kind"].upper()
        if test["p_value"] is None:
            lines.append(f"{kind}: not tested: {test['reason']}")
            continue
        differ = "differs between groups" if test["adjusted"] <= SIGNIFICANT else "not significantly different"
        how = f"p = {p_words(test['adjusted'])}".replace("= <", "<")
        lines.append(f"{kind}: {differ} ({how}; groups exchanged among {test['permuted']})")
    return lines


def note_words(section: Json, people: bool) -> list[str]:
    """What a reader must know of a grouping: images without a group, and groups that are too small."""
    notes = []
    if section["images_without_group"]:
        without = section["images_without_group"]
        images = f"{without:,} {'image' if without == 1 else 'images'} without a group"
        notes.append(f"{section['name']}: {images}; {'its' if without == 1 else 'their'} pairs are left out")
    if section["mixed_templates"]:
        mixed = section["mixed_templates"]
        templates = f"{mixed:,} {'template' if mixed == 1 else 'templates'} of several groups"
        notes.append(f"{section['name']}: {templates}; {'its' if mixed == 1 else 'their'} pairs are left out")
    first = next(iter(section["results"].values()))
    least = f"{LEAST_PEOPLE} people" if people else f"{LEAST_PAIRS} pairs"
    for kind in ("fnmr", "fmr"):
        rates = first["rates"][kind][:-1]
        small: Sequence[str] = [name for name, rate in zip(first["groups"], rates, strict=True) if not rate["counts"]]
        if small:
            kinds = "genuine" if kind == "fnmr" else "impostor"
            notes.append(
                f"{', '.join(small)}: fewer than {least} in {kinds} pairs; no index and no test of {kind.upper()}"
                " includes them"
            )
    return notes
