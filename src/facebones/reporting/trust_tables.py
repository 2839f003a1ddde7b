"""Tables of what `calibrate`, `evaluate groups`, `evaluate quality` and `data overlap` have written, for a report."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from facebones.errors import DataError
from facebones.reporting.console import metric_cells
from facebones.reporting.group_tables import index_words, note_words, rate_columns, rate_rows, sentences
from facebones.reporting.quality_tables import operating_point
from facebones.reporting.runs import OTHER_SHAPE, read_json, text, unexpected
from facebones.reporting.tables import Table, text_cell
from facebones.reporting.words import metric_words
from facebones.statistics.discard import AT_RANDOM
from facebones.system.number_format import percent_interval, rounded, small_rate

FORMAT = 1
KINDS = {"identical": "identical", "near": "nearly identical", "person": "likely of a person trained on"}

Json = Mapping[str, Any]


def read_trust(path: Path) -> list[Table]:
    """The tables of a file.

    Raises:
        DataError: it is damaged, or a newer version of facebones wrote it.
    """
    content = read_json(path)
    try:
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r:.20} is not supported; update facebones")
        return READERS.get(path.name, _calibration)(content)
    except (*OTHER_SHAPE, StopIteration) as error:
        raise unexpected(path, error) from error


def _calibration(content: Json) -> list[Table]:
    rows = [
        (
            small_rate(one["false_match_rate"]),
            rounded(one["threshold"], 4),
            f"{one['accepted']:,} of {one['impostors']:,}",
            f"{one['upper_bound']:.2g}",
            percent_interval(one["true_accept_rate"], one["interval"]["low"], one["interval"]["high"]),
        )
        for one in content["thresholds"]
    ]
    confidence = content["thresholds"][0]["confidence"]
    refused = [f"No threshold promises {rate}: {text(why)}." for rate, why in content["refused"].items()]
    note = f"Photos like those of {', '.join(text(one['set']) for one in content['sets'])}. The bound holds with"
    columns = ["FMR at most", "accept cosines from", "impostor pairs accepted", "bound of the FMR", "TAR"]
    title = f"{text(content['model']['backbone'])}: thresholds that keep a promise"
    return [_table("thresholds", title, " ".join([f"{note} {confidence:.0%} confidence.", *refused]), columns, rows)]


def _groups(content: Json) -> list[Table]:
    people, tables = bool(content["people_known"]), []
    for section in content["groupings"]:
        for model, found in section["results"].items():
            told = [line[0].upper() + line[1:] for line in (*sentences(found), *index_words(found))]
            told += note_words(section, people)
            title = f"{content['set']} by {section['name']}: {model}"
            note = f"At one threshold, cosine {content['thresholds'][model]:.4f}. " + ". ".join(told) + "."
            tables.append(_table("groups", title, note, rate_columns(people), rate_rows(found, people)))
    return tables


def _quality(content: Json) -> list[Table]:
    tables = []
    for model, found in content["results"].items():
        metrics, names = found["metrics"], [*found["curves"]["fnmr"], AT_RANDOM]
        share = {AT_RANDOM: "0 %"} | {name: f"{100 * part:.0f} %" for name, part in found["share_of_best"].items()}
        cells = [metric_cells(metric, names) for metric in metrics]
        rows = zip(names, *cells, [share[name] for name in names], strict=True)
        columns = ["pairs are discarded by", *map(metric_words, metrics), "of the best possible"]
        title, note = f"{content['set']}: quality scores, {model}", f"{operating_point(model, found, content)}."
        tables.append(_table("quality", title, note, columns, rows))
    return tables


def _overlap(content: Json) -> list[Table]:
    rows = [
        (text(one["set"]), f"{one['images']:,}", *(f"{found[kind]:,}" if kind in found else "-" for kind in KINDS))
        for one in content["sets"]
        for found in [one["found"]]
    ]
    note = f"Images of the test sets that are in the training data, {text(content['training']['data'])}, too."
    if (people := content["people"]) is None:
        note += " Shared people were not looked for (give a --model)."
    else:
        note += (
            f" People by {text(people['model'])}, cosine {people['cut_off']:.3f} and above: strangers reach it in"
            f" {people['false_rate']:.2%}."
        )
    return [_table("overlap", "Overlap of training and test data", note, ["set", "images", *KINDS.values()], rows)]


READERS: dict[str, Callable[[Json], list[Table]]] = {
    "groups.json": _groups,
    "quality.json": _quality,
    "overlap.json": _overlap,
}


def _table(key: str, title: str, note: str, columns: Any, rows: Any) -> Table:
    cells = [[text_cell(text(word)) for word in row] for row in rows]
    if not cells:
        raise DataError("no rows")
    return Table(key=key, title=title, note=note, columns=list(columns), rows=cells, section="trust")
