"""The look of each variant of a report: colours for levels, markers and dashes for backbones, where these are few."""

from facebones.reporting.plots.style import COLOURS, DASHES, MARKERS, Style, model_styles
from facebones.reporting.results import Results


def variant_styles(results: Results) -> dict[str, Style]:
    """The look of each variant: that of `model_styles`, but with factors and several backbones by both.

    Then variants of equal levels share the colour, and those of one backbone the marker and the dash, unless there are
    more of them than looks.
    """
    styles = model_styles(results.variants)
    levels = list(dict.fromkeys(_levels(results, name) for name in results.variants))
    several = 1 < len(results.backbones) < len(results.variants)
    if not several or len(levels) > len(COLOURS) or len(results.backbones) > len(DASHES):
        return styles
    for name, style in styles.items():
        place = results.backbones.index(results.first_run(name).backbone)
        colour = COLOURS[levels.index(_levels(results, name))]
        style |= {"color": colour, "linestyle": DASHES[place], "marker": MARKERS[place]}
    return styles


def side_by_side(results: Results) -> dict[str, float]:
    """Steps by which each variant's mark is moved along the axis of costs: those of one backbone cost the same.

    Without factors nothing is moved.
    """
    shifts = dict.fromkeys(results.variants, 0.0)
    if results.factors:
        for backbone in results.backbones:
            own = [name for name in results.variants if results.first_run(name).backbone == backbone]
            shifts |= {name: place - (len(own) - 1) / 2 for place, name in enumerate(own)}
    return shifts


def _levels(results: Results, variant: str) -> tuple[str | None, ...]:
    run = results.first_run(variant)
    return tuple(run.levels.get(factor) for factor in results.factors)
