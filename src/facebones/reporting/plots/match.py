"""The picture of a match: both aligned faces, the answer, and the score beside the threshold."""

from pathlib import Path
from typing import TYPE_CHECKING

from facebones.reporting.plots.style import PathName, new_figure, save_plot, set_text
from facebones.system.number_format import small_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from facebones.evaluation.match import Match

INK, GREY, RULE = "#1f2933", "#66727f", "#d5dbe1"
SAME, DIFFERENT, OPEN = "#00785a", "#b03a2e", "#4a5561"
LOWEST = -0.2  # scores below are drawn at the end of the scale


def plot_match(match: "Match", path: PathName) -> None:
    """Draw both faces side by side with the answer below.

    Args:
        match: what `match_photos` returns.
        path: the file; its suffix determines the format.

    Raises:
        RunError, ConfigError: the file cannot be written.
    """
    colour, answer = _answer(match.same_person)
    figure = new_figure(6.4, 5.0)
    figure.set_layout_engine(None)
    for place, (face, portrait) in enumerate(zip(match.faces, match.portraits, strict=True)):
        axes = figure.add_axes((0.055 + 0.46 * place, 0.34, 0.43, 0.55))
        axes.imshow(portrait, interpolation="lanczos")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=2.5)
        set_text(axes.set_title("", fontsize=9, color=GREY, pad=7), _short(Path(face.what).name))
    figure.text(0.055, 0.235, answer, fontsize=19, color=colour, weight="bold", va="center")
    figure.text(0.945, 0.235, f"score {match.score:.3f}", fontsize=19, color=INK, va="center", ha="right")
    _draw_scale(figure.add_axes((0.055, 0.12, 0.89, 0.06)), match, colour)
    set_text(figure.text(0.055, 0.035, "", fontsize=8, color=GREY, va="center"), _promise(match))
    save_plot(figure, path)


def _answer(same_person: bool | None) -> tuple[str, str]:
    if same_person is None:
        return OPEN, "no threshold, no decision"
    return (SAME, "the same person") if same_person else (DIFFERENT, "not shown to be one person")


def _draw_scale(axes: "Axes", match: "Match", colour: str) -> None:
    """The scale of scores, with the threshold and the score of this pair."""
    axes.set(xlim=(LOWEST, 1), ylim=(-1, 1))
    axes.axis("off")
    axes.plot([LOWEST, 1], [0, 0], color=RULE, linewidth=6, solid_capstyle="round", clip_on=False)
    if match.threshold is not None:
        cut = min(max(match.threshold.threshold, LOWEST), 1)
        axes.plot([cut, 1], [0, 0], color=SAME, alpha=0.35, linewidth=6, solid_capstyle="round", clip_on=False)
        axes.plot([cut, cut], [-0.9, 0.9], color=INK, linewidth=1.4, clip_on=False)
        axes.text(cut, -1.2, f"threshold {cut:.3f}", fontsize=8, color=INK, ha="center", va="top")
    axes.plot([min(max(match.score, LOWEST), 1)], [0], "o", color=colour, markersize=11, clip_on=False, zorder=3)


def _promise(match: "Match") -> str:
    if (threshold := match.threshold) is None:
        return "score: cosine of the two embeddings, from -1 to 1"
    return (
        f"The threshold accepts at most {small_rate(threshold.false_match_rate)} of pairs of strangers, with"
        f" {100 * threshold.confidence:g} % confidence, on photos like {', '.join(threshold.sets[:2])}."
    )


def _short(name: str) -> str:
    """A file's name of at most 40 letters."""
    return name if len(name) <= 40 else f"{name[:24]}...{name[-13:]}"
