"""Was the training data of a report's runs audited for overlap with the sets that it reports, and what was found?

An audit counts for a run and a set only where the digests of the training data and of the set's images are those that
the run and the evaluation have recorded. One that only has the same names is named, and not used.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facebones.reporting.evaluations import OVERLAP
from facebones.reporting.results import Run
from facebones.reporting.runs import OTHER_SHAPE, number, read_json, text, unexpected
from facebones.reporting.variants import with_equal_fingerprints
from facebones.reporting.words import listed

if TYPE_CHECKING:
    from facebones.reporting.tables import Table

ASKED_FOR = ("folder",)  # protocols that a path alone does not name


@dataclass(frozen=True)
class ReportedSet:
    """A set that a report has a metric of.

    Attributes:
        name: such as "lfw".
        place: what `data overlap` takes for it, as far as it is known.
        images: fingerprint of its images, as its evaluation has recorded it; empty if unknown.
        pairs: digest of its images and labels, as a run that validated on it has recorded it; empty if unknown.
    """

    name: str
    place: str
    images: str = ""
    pairs: str = ""


@dataclass(frozen=True, kw_only=True)
class AuditedSet:
    """What an audit found in one set.

    Attributes:
        name: of the set.
        images: in the set.
        fingerprint: of these.
        pairs: digest of images and labels; empty for other sets, and in files of older versions.
        found: images by kind: "identical", "near" and, where people were looked for, "person".
        people: trained people whom they show, likely.
    """

    name: str
    images: int
    fingerprint: str
    pairs: str
    found: Mapping[str, int]
    people: int

    def is_of(self, reported: ReportedSet) -> bool:
        """Whether it is of the very images."""
        return bool(
            (reported.images and reported.images == self.fingerprint)
            or (reported.pairs and reported.pairs == self.pairs)
        )


@dataclass(frozen=True, kw_only=True)
class Audit:
    """An audit of `data overlap`.

    Attributes:
        file: its overlap.json.
        training: fingerprint of the training data, and where they were.
        sets: what it found.
        by_chance: share of strangers' images that are listed as of a person trained on; None: nobody looked for people.
    """

    file: Path
    training: Mapping[str, Any]
    sets: Sequence[AuditedSet]
    by_chance: float | None


def read_audit(file: Path) -> Audit:
    """Read overlap.json.

    Raises:
        DataError: it is damaged.
    """
    content = read_json(file)
    try:
        people = content["people"]
        return Audit(
            file=file,
            training=dict(content["training"]),
            sets=[_audited(one, content.get("findings", ())) for one in content["sets"]],
            by_chance=None if people is None else number(people["false_rate"]),
        )
    except OTHER_SHAPE as error:
        raise unexpected(file, error) from error


def _audited(content: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]) -> AuditedSet:
    name = text(content["set"])
    people = {number(one["person"]) for one in findings if one["kind"] == "person" and one["set"] == name}
    return AuditedSet(
        name=name,
        images=int(number(content["images"])),
        fingerprint=text(content.get("fingerprint", "")),
        pairs=text(content.get("pairs_sha256", "")),
        found={text(kind): int(number(count)) for kind, count in content["found"].items()},
        people=len(people),
    )


def evaluated(section: Mapping[str, Any]) -> ReportedSet:
    """The set of a section of an evaluation's "results"."""
    place = text(section.get("data") or section["set"])
    asked = section["protocol"] in ASKED_FOR
    return ReportedSet(
        text(section["set"]),
        f"{section['protocol']}={place}" if asked else place,
        images=text(section.get("fingerprint", "")),
    )


def validated(runs: Sequence[Run], names: Sequence[str]) -> list[ReportedSet]:
    """The sets of these names that runs validated on, each as often as there are digests of it."""
    found = []
    for run in runs:
        known = run.environment.get("validation")
        final = {row["set"] for row in run.result.get("final", ())}
        for name in names:
            if name not in final:
                continue
            own = known.get(name) if isinstance(known, dict) else None
            digest = own.get("sha256") if isinstance(own, dict) else None
            found.append(ReportedSet(name, _beside(run, name), pairs=digest if isinstance(digest, str) else ""))
    return list(dict.fromkeys(found))


def _beside(run: Run, name: str) -> str:
    """Where the set of this name is: as the recipe says, or beside the training data."""
    given = next((str(one) for one in run.recipe.get("validation", {}).get("sets", ()) if Path(one).stem == name), name)
    if given != name:
        return given
    data = Path(_place(run).split(":")[0])  # of several, the first
    return str((data.parent if data.suffix else data) / f"{name}.bin")


def is_audit(file: Path) -> bool:
    """Whether a file is an audit of overlap, by its name."""
    return file.name == f"{OVERLAP}.json"


class OverlapAudits:
    """The audits that a report has read, and the evaluated sets that they are compared with."""

    def __init__(self) -> None:
        self._audits: dict[Path, tuple[Audit, list[Table]]] = {}
        self._evaluated: dict[ReportedSet, None] = {}

    def add(self, file: Path, tables: "list[Table]") -> None:
        """Add an audit with its tables; one that was read before counts once.

        Raises:
            DataError: it is damaged.
        """
        self._audits[file.resolve()] = (read_audit(file), tables)

    def add_set(self, section: Mapping[str, Any]) -> None:
        """Add the set of a section of an evaluation's "results"."""
        self._evaluated[evaluated(section)] = None

    def sentences(self, runs: Sequence[Run], output: Path) -> list[str]:
        """See `overlap_sentences`."""
        return overlap_sentences(runs, self._sets(runs), [audit for audit, _ in self._audits.values()], output)

    def tables(self, runs: Sequence[Run]) -> "list[Table]":
        """The tables of all audits, marked where they are of other data than the report."""
        sets = self._sets(runs)
        return [with_marks(one, audit, runs, sets) for audit, tables in self._audits.values() for one in tables]

    def _sets(self, runs: Sequence[Run]) -> list[ReportedSet]:
        """The evaluated sets, then those that runs validated on alone."""
        known = {one.name for one in self._evaluated}
        final = dict.fromkeys(text(row["set"]) for run in runs for row in run.result.get("final", ()))
        return [*self._evaluated, *validated(runs, [name for name in final if name not in known])]


def overlap_sentences(
    runs: Sequence[Run], sets: Sequence[ReportedSet], audits: Sequence[Audit], output: Path
) -> list[str]:
    """Which sets were audited against the training data and what was found, and how to audit the others.

    Args:
        runs: of the report.
        sets: that it reports.
        audits: that were found.
        output: where an audit would be found, for the command.

    Returns:
        sentences; commands in them are between backticks. None where no run or no set is reported.
    """
    if not runs or not sets:
        return []
    groups: dict[str, list[Run]] = {}
    for run in with_equal_fingerprints([run for run in runs if isinstance(run.environment.get("data"), dict)]):
        content = {key: value for key, value in run.environment["data"].items() if key != "path"}
        groups.setdefault(json.dumps(content, sort_keys=True, default=str), []).append(run)
    told, used = [], set[Path]()
    for group in groups.values():
        own = [audit for audit in audits if _is_trained_on(audit, group[0])]
        used |= {audit.file for audit in own}
        told += _of_training_data(_place(group[0]), sets, own, output)
    if groups:
        told += [
            f"{audit.file} is of other training data ({audit.training.get('data')}) than the runs here, and not used."
            for audit in audits
            if audit.file not in used
        ]
    return told + _unknown_data(runs)


def _is_trained_on(audit: Audit, run: Run) -> bool:
    from facebones.data.training_set import CONTENT_KEYS, same_data  # with OpenCV

    data = run.environment["data"]
    return data.get("labels_sha256") is not None and not {*same_data(data, audit.training)} & {*CONTENT_KEYS}


def _place(run: Run) -> str:
    data = run.environment.get("data")
    known = data.get("path") if isinstance(data, dict) else None
    return str(known or run.recipe.get("data", {}).get("path") or "TRAIN")


def _of_training_data(path: str, sets: Sequence[ReportedSet], audits: Sequence[Audit], output: Path) -> list[str]:
    """What is known of one training set."""
    told, left = [], list(sets)
    for audit in audits:
        matched = {one.name: one for reported in left for one in audit.sets if one.is_of(reported)}
        left = [reported for reported in left if not any(one.is_of(reported) for one in audit.sets)]
        if matched:
            told.append(_found(path, audit, list(matched.values())))
    undated = [one for one in left if audits and not (one.images or one.pairs)]
    if undated:
        told.append(
            f"No audit can be matched with {_names(undated)}: an older version measured that and recorded no digest of"
            " its images; evaluate again."
        )
    left = [one for one in left if one not in undated]
    audited = {one.name: audit.file for audit in audits for one in audit.sets}
    if other := [one for one in left if one.name in audited]:
        told.append(
            f"{audited[other[0].name]} is of other images of {_names(other)} than those measured, and not used."
        )
    if left:
        places = list(dict.fromkeys(one.place for one in left))
        command = shlex.join(["facebones", "data", "overlap", path, *places, "--output", str(output / OVERLAP)])
        told.append(
            f"Whether the training data, {path}, hold images or people of {_names(left)} was not checked. `{command}`"
            " checks the images, with --model FILE the people too; then report again."
        )
    return told


def _names(sets: Sequence[ReportedSet]) -> str:
    return listed(list(dict.fromkeys(one.name for one in sets)))


def _found(path: str, audit: Audit, sets: Sequence[AuditedSet]) -> str:
    """What an audit found in the sets that are reported."""
    parts = ". ".join(_found_in(one) for one in sets)
    if audit.by_chance is None:
        people = "Shared people were not looked for; data overlap --model does."
    else:
        people = f"As of a person trained on, {100 * audit.by_chance:.2g} % of strangers' images are listed by chance."
    return f"The training data, {path}, were audited ({audit.file}). {parts}. {people}"


def _found_in(one: AuditedSet) -> str:
    identical, near = (one.found.get(kind, 0) for kind in ("identical", "near"))
    words = f"Of the {one.images:,} images of {one.name}, {identical + near:,} are in them"
    if identical + near:
        words += f" ({identical:,} identical, {near:,} nearly)"
    if "person" in one.found:
        words += f", and {one.found['person']:,} likely show a person of them ({one.people:,} people)"
    return words


def _unknown_data(runs: Sequence[Run]) -> list[str]:
    """What no audit here can know: the data of models from elsewhere, and of weights that a run began with."""
    alone = [run.name for run in runs if not isinstance(run.environment.get("data"), dict) and run.state == "done"]
    begun = [run.name for run in runs if run.environment.get("weights")]
    told = []
    if alone:
        verb = "was" if len(alone) == 1 else "were"
        told.append(f"What {listed(alone)} {verb} trained on is not recorded, so nothing is said of its overlap.")
    if begun:
        told.append(f"{listed(begun)} began with trained weights; what these were trained on was not audited.")
    return told


def with_marks(table: "Table", audit: Audit, runs: Sequence[Run], sets: Sequence[ReportedSet]) -> "Table":
    """The table of an audit, marked where it is of other data than the report."""
    trained = [run for run in runs if isinstance(run.environment.get("data"), dict)]
    if trained and not any(_is_trained_on(audit, run) for run in trained):
        return replace(table, title=f"{table.title} (not those of this report)")
    others = [
        any(one.name == reported.name for reported in sets) and not any(one.is_of(reported) for reported in sets)
        for one in audit.sets
    ]
    rows = [
        [replace(row[0], text=f"{row[0].text} (other images)"), *row[1:]] if other else row
        for row, other in zip(table.rows, others, strict=True)
    ]
    return replace(table, rows=rows)
