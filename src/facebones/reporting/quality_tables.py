"""What `evaluate quality` prints and draws: FNMR as pairs of low quality are discarded, and pAUC, by quality score."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facebones.reporting.console import metric_cells, print_table, print_tests
from facebones.reporting.plots.discard import plot_discards
from facebones.reporting.plots.style import plot_paths
from facebones.reporting.words import metric_words
from facebones.statistics.discard import AT_RANDOM
from facebones.system.number_format import percent_interval, small_rate
from facebones.system.progress import tell

Json = Mapping[str, Any]


def print_quality(content: Json) -> None:
    """Print the result of `evaluate_quality`."""
    for model, found in content["results"].items():
        metrics, names = found["metrics"], [*found["curves"]["fnmr"], AT_RANDOM]
        cells = [metric_cells(metric, names) for metric in metrics]
        share = [f"{100 * found['share_of_best'][name]:.0f} %" if name != AT_RANDOM else "0 %" for name in names]
        columns = ["pairs are discarded by", *map(metric_words, metrics), "of the best possible"]
        title = f"{content['set']}: {operating_point(model, found, content)}"
        print_table(columns, list(zip(names, *cells, share, strict=True)), title=title)
        print_tests(metrics, names, title)
    if not content["people_known"]:
        tell("note: who is in the pairs is not known, so pairs count as independent of each other")
    for note in content["notes"]:
        tell(f"note: {note}")


def write_quality_plots(content: Json, output: Path) -> None:
    """Draw the curves of each model: quality_MODEL."""
    for model, found in content["results"].items():
        plot_discards(
            found["curves"],
            found["metrics"],
            plot_paths(output / f"quality_{model}"),
            f"{content['set']}, {model}: error versus discard",
        )


def operating_point(model: str, found: Json, content: Json) -> str:
    """The threshold of a model, and the genuine pairs that it rejects."""
    rate = content["options"]["false_match_rate"]
    where = f"threshold {found['threshold']:.4f}" + ("" if rate is None else f" (FMR {small_rate(rate)})")
    interval = percent_interval(found["fnmr"], found["interval"]["low"], found["interval"]["high"])
    return f"{model}, {where}: {found['rejected']:,} of {found['genuine']:,} genuine pairs rejected, FNMR {interval}"
