"""The plots of one evaluation, drawn from its result and score files: ROC, CMC, DET and Rank-1 of all its models."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from facebones.reporting.evaluations import evaluated_set, metric_results, read_roc
from facebones.reporting.plots.curves import plot_cmc, plot_det, plot_roc, roc_bands
from facebones.reporting.plots.distractors import plot_distractors
from facebones.reporting.plots.style import Style, model_styles, plot_paths
from facebones.reporting.runs import OTHER_SHAPE, unexpected
from facebones.reporting.words import set_words
from facebones.statistics.curves import RocCurve

Draw = Callable[[tuple[Path, ...]], None]
DET = "det_"  # and the name of a gallery


def write_evaluation_plots(result: Mapping[str, Any], output: Path) -> list[Path]:
    """Draw the curves of an evaluation.

    Args:
        result: content of a result file, format 2.
        output: folder of the result file and of the score files that it names.

    Returns:
        the files, PNG and PDF: of ROC curves `roc_SET`, `roc_SETTING` if one set was evaluated in several settings, or
        `roc` (all sets of a single model); `cmc`; `det_GALLERY`; and `distractors`.

    Raises:
        DataError: a score file is missing or damaged.
        RunError, ConfigError: the disk is full, or the folder cannot be written.
    """
    styles = model_styles(result["models"])
    files: list[Path] = []
    for name, draw in _plots(result, output, styles):
        paths = plot_paths(output / name)
        try:
            draw(paths)
        except OTHER_SHAPE as error:
            raise unexpected(output, error) from error
        files += paths
    return files


def _plots(result: Mapping[str, Any], output: Path, styles: Mapping[str, Style]) -> Iterator[tuple[str, Draw]]:
    """Name and drawing function of each plot."""
    sections = result["results"]
    with_roc = [section for section in sections if section["curves"].get("roc")]
    models = list(result["models"])
    if len(models) == 1 and len({evaluated_set(one).set for one in with_roc}) > 1:
        yield "roc", partial(_draw_sets, with_roc, models[0], output)
    else:
        for section in with_roc:
            yield _roc_name(section, with_roc, models), partial(_draw_models, section, output, styles)
    for section in sections:
        title = set_words(section)
        if rates := section["curves"].get("cmc"):
            yield "cmc", partial(_draw_cmc, rates, f"{title}: closed-set identification", styles)
        if among := section["curves"].get("distractors"):
            yield (
                "distractors",
                partial(_draw_distractors, among, f"{title}: Rank-1 by the number of distractors", styles),
            )
        for kind, errors in section["curves"].items():
            if kind.startswith(DET) and errors:
                gallery = kind.removeprefix(DET)
                yield kind, partial(_draw_det, errors, f"{title}: open-set identification, gallery {gallery}", styles)


def _roc_name(section: Mapping[str, Any], sections: list[Mapping[str, Any]], models: list[str]) -> str:
    """With the set, or the setting if one set was evaluated in several settings."""
    if section["setting"]:
        return f"roc_{section['setting']}" if len(sections) > 1 else "roc"
    return "roc" if len(models) == len(sections) == 1 else f"roc_{section['set']}"


def _draw_sets(sections: list[Mapping[str, Any]], model: str, output: Path, paths: tuple[Path, ...]) -> None:
    """All sets of one model in one plot."""
    curves = {set_words(section): _curve(section["curves"]["roc"][model], output) for section in sections}
    plot_roc(curves, paths, model)


def _draw_models(
    section: Mapping[str, Any], output: Path, styles: Mapping[str, Style], paths: tuple[Path, ...]
) -> None:
    """All models on one set, with the intervals of their TARs."""
    curves = {model: _curve(entry, output) for model, entry in section["curves"]["roc"].items()}
    bands = roc_bands(metric_results(section, {model: model for model in curves}), curves)
    plot_roc(curves, paths, f"{set_words(section)}: verification", styles=styles, bands=bands)


def _curve(entry: Any, output: Path) -> RocCurve:
    return read_roc(output / Path(entry).name)


def _draw_cmc(rates: Mapping[str, Any], title: str, styles: Mapping[str, Style], paths: tuple[Path, ...]) -> None:
    plot_cmc(rates, paths, title, styles=styles)


def _draw_distractors(
    among: Mapping[str, Any], title: str, styles: Mapping[str, Style], paths: tuple[Path, ...]
) -> None:
    plot_distractors(among, paths, title, styles=styles)


def _draw_det(errors: Mapping[str, Any], title: str, styles: Mapping[str, Style], paths: tuple[Path, ...]) -> None:
    curves = {model: (points["fpir"], points["fnir"]) for model, points in errors.items()}
    plot_det(curves, paths, title, styles=styles)
