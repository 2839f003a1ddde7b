"""`facebones report`: the results of studies, runs and evaluations as one page, tables, plots and JSON."""

import json
import math
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facebones import __version__
from facebones.errors import ConfigError, RunError
from facebones.reporting.answer import Answer, answer
from facebones.reporting.load import load_results
from facebones.reporting.page import cautions, page_text, save_page
from facebones.reporting.plots.report_plots import PLOT_KINDS, plot_files, write_plots
from facebones.reporting.results import MetricResult, Results, Run
from facebones.reporting.seeds import seed_tests
from facebones.reporting.table_files import Beginning, save_tables, table_texts
from facebones.reporting.tables import Table, report_tables
from facebones.reporting.variant_tests import VariantTest
from facebones.reporting.words import set_words
from facebones.system.files import check_written, write_json
from facebones.system.progress import say, track

if TYPE_CHECKING:
    from facebones.reporting.face_pairs import SetFaces

PAGE = "report.html"
RESULTS = "results.json"
PLOTS = "plots"
# Keys of results.json that list plots, and their folders; "pictures" is that of version 0.2.0.dev0.
PLOT_LISTS = {"plots": PLOTS, "pictures": "pictures"}
# Whatever an earlier list says, only names that a report may have written are removed.
PLOT_NAME = re.compile(rf"[a-z0-9_]+\.({'|'.join(PLOT_KINDS)})")


def write_report(
    folders: Sequence[Path], output: Path, *, title: str = "", faces: Sequence[Path] = (), progress: bool = False
) -> dict[str, Any]:
    """Write `report.html`, `tables.md`, `.tex` and `.csv`, `results.json`, and `plots/` (PNG, PDF, SVG).

    Args:
        folders: studies, runs, evaluations; see `load_results`.
        output: folder of the report, created if missing; an earlier report there is replaced, including its plots.
        title: of the page and the tables; by default the names of the folders, or of the study.
        faces: pair sets, or folders of them, whose worst pairs the page shows as faces; see `face_pairs`.
        progress: show the progress on stderr.

    Returns:
        the content of results.json: the sentences of the "answer" and, where they are more, those of every metric
        ("answer_details"), the file names of the "plots", with `faces` the pairs that are shown ("face_pairs"), and
        `results_json`.

    Raises:
        FaceBonesError: a folder holds nothing to report or something damaged, a set of faces was not evaluated, or the
            report cannot be written.
    """
    results = load_results(*folders, progress=progress)
    results = replace(results, title=title or results.title)
    for note in results.notes:
        say(f"note: {note}")
    shown, of_faces = _faces(results, faces)
    tables, words, numbers = _made(results, progress)
    plots = plot_files(results, output / PLOTS)
    content = {
        "answer": list(words.sentences),
        **({"answer_details": list(words.details)} if words.details else {}),
        "plots": [path.name for path in plots],
        **of_faces,
        **numbers,
    }
    # Everything is built and every path checked before the first write, so that an error leaves the old report whole.
    beginning = Beginning(title=results.title or "facebones", sentences=words.sentences, notes=cautions(results))
    texts, page = table_texts(tables, beginning), page_text(results, tables, words, shown)
    files = [output / name for name in (*texts, RESULTS, PAGE)]
    check_places(output, [*plots, *files])
    stale = listed_plots(output / RESULTS) - set(plots)
    write_plots(results, output / PLOTS, progress=progress)
    remove_plots(stale)
    save_tables(texts, output)
    write_json(output / RESULTS, content)
    save_page(page, output / PAGE)
    check_written([*plots, *files])
    return content


def _made(results: Results, progress: bool) -> tuple[list[Table], Answer, dict[str, Any]]:
    """The tables, the answer and the numbers of results.json: seconds each in a large study."""
    steps: tuple[Callable[[Results], Any], ...] = (report_tables, answer, results_json)
    tables, words, numbers = (make(results) for make in (track(steps, "making tables") if progress else steps))
    return tables, words, numbers


def _faces(results: Results, sets: Sequence[Path]) -> tuple["Sequence[SetFaces]", dict[str, Any]]:
    """The pairs to show, and what results.json says of them."""
    if not sets:
        return (), {}
    from facebones.reporting.face_pairs import face_pairs, faces_json  # few reports show faces

    found = face_pairs(results, sets)
    return found, {"face_pairs": faces_json(found)}


# ----------------------------------------------------------------------------------------------------------- JSON


def results_json(results: Results) -> dict[str, Any]:
    """Everything in a report except training lines and points of ROC curves.

    Returns:
        "facebones" (version), "title", "folders", "command", "notes" and "recipe" as in `Results`; and

        - "conditions": of the measured costs;
        - "backbones": of each variant, as `Results.numbers` has them: costs, main metrics, seeds done and planned;
        - "runs": of each its name, backbone, levels if there are factors, seed, folder, source, state, error, versions,
          steps, final_loss, and "accuracy": set to final and best validation accuracy;
        - "metrics": of each its "title", the fields of `MetricResult`, "backbones": the spread of each variant over its
          seeds, the best first, "tests" of every two variants and, of a main metric, "seeds": the `SeedTest` of every
          two variants with two seeds or more, from which the answer says how many seeds would tell;
        - "cmc": set to run to the hit rates at ranks 1, 2, ...
        - "tuning": of each study with `tune:`, what its study.json says of it: "people" on whom no trial trained,
          "pairs" of them, and "backbones", each with "levels" (of other factors), the number of the "chosen" trial and
          all "trials": "fields", "state", "accuracy", "steps", "step" and "error";
        - "overlap": whether training data were audited for overlap with the sets, and what was found, in sentences;
        - "added_seeds": of each study with `seeds: auto`, what was "wanted" and, of each of its "rounds", the numbers
          that decided whether there was another.

        None stands for an unknown value. NaN and infinities become None, because JSON lacks them.
    """
    content = {
        "facebones": __version__,
        "title": results.title,
        "folders": results.folders,
        "command": results.command,
        "notes": results.notes,
        "recipe": results.recipe,
        "conditions": results.conditions,
        "backbones": results.numbers(),
        "runs": [_run(run, results.validated_sets) for run in results.runs],
        "metrics": [_metric(results, metric) for metric in results.known_metrics],
        "cmc": {set_words(where): rates for where, rates in results.cmc.items()},
        "tuning": [tuning.content for tuning in results.tunings],
        "overlap": results.overlap,
        "added_seeds": [found.content for found in results.added_seeds],
    }
    plain: dict[str, Any] = _plain(content)
    return plain


def _run(run: Run, sets: Sequence[str]) -> dict[str, Any]:
    kept = ("name", "backbone", "seed", "folder", "source", "state", "error", "versions", "steps", "final_loss")
    accuracy = {name: {"final": run.final_accuracy(name), "best": run.best_accuracy(name)} for name in sets}
    levels = {"levels": run.levels} if run.levels else {}
    return {key: getattr(run, key) for key in kept} | levels | {"accuracy": accuracy}


def _metric(results: Results, metric: MetricResult) -> dict[str, Any]:
    fields = {key: value for key, value in vars(metric).items() if key != "comparisons"}
    spreads = {name: vars(results.spread(metric, name)) for name in results.ranking(metric)}
    tests = [_test(test) for test in results.tests(metric)]
    found = {"title": metric.title, **fields, "backbones": spreads, "tests": tests}
    return found | ({"seeds": [vars(one) for one in seed_tests(results, metric)]} if metric.main else {})


def _test(test: VariantTest) -> dict[str, Any]:
    return {**vars(test), "significant": test.significant}


def _plain(content: Any) -> Any:
    """The content with JSON's types only."""
    if isinstance(content, Mapping):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, Path):
        return str(content)
    return None if isinstance(content, float) and not math.isfinite(content) else content


# --------------------------------------------------------------------------------------------------------- folder


def check_places(output: Path, files: Iterable[Path]) -> None:
    """Refuse a folder in which a file could not be written, before the first is; nothing is left there.

    Args:
        output: folder of the report, existing or not.
        files: all files of the report.

    Raises:
        ConfigError: a folder is where a file should be or the reverse, a link is broken, or no file can be created.
    """
    for folder in (output, output / PLOTS):
        _check_folder(folder)
    for path in files:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder, but the report needs a file; move it or choose another --output")


def _check_folder(folder: Path) -> None:
    try:
        existing = next(place for place in (folder, *folder.absolute().parents) if place.exists() or place.is_symlink())
        if not existing.is_dir():
            kind = "is a file" if existing.exists() else "is a broken link"
            raise ConfigError(f"{existing}: {kind}, but the report needs a folder; choose another --output")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror}; choose another --output") from error


def listed_plots(results: Path) -> set[Path]:
    """Files of the plots that an earlier report lists; empty if its results.json cannot be read."""
    try:
        content = json.loads(results.read_bytes()) if results.is_file() else {}
    except (OSError, ValueError, RecursionError):  # not a report's; the new report replaces it
        return set()
    found: set[Path] = set()
    for key, folder in PLOT_LISTS.items():
        listed = content.get(key) if isinstance(content, dict) else None
        names = listed if isinstance(listed, list) else []
        known = (name for name in names if isinstance(name, str) and PLOT_NAME.fullmatch(name))
        found |= {results.parent / folder / name for name in known}
    return found


def remove_plots(paths: Collection[Path]) -> None:
    """Remove plots of an earlier report; files behind a linked folder stay, because they may be anybody's.

    Raises:
        RunError: a file cannot be removed.
    """
    for path in sorted(paths):
        if path.parent.is_symlink():
            continue
        try:
            if path.is_file() or path.is_symlink():
                path.unlink()
        except OSError as error:
            reason = f"cannot remove this plot of an earlier report: {error.strerror}"
            raise RunError(f"{path}: {reason}; remove it yourself") from error
    for folder in {path.parent for path in paths if path.parent.name != PLOTS}:  # of an earlier version
        if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
            folder.rmdir()
