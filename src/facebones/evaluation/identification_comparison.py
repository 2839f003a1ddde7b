"""Models compared on 1:N searches: the figures of each, with intervals and tests over the probes' subjects."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facebones.data.ijb_lists import TemplateSet
from facebones.evaluation.identification import FPIR_TARGETS, RANKS, IdentificationResult
from facebones.reporting.plots.identification import plot_cmc, plot_det
from facebones.reporting.plots.style import model_styles, picture_paths
from facebones.statistics.bootstrap import (
    REPLICATES,
    Figure,
    Unmeasured,
    mean_of_figures,
    open_set_figures,
    rank_figure,
)
from facebones.statistics.significance import FigureComparison, compare_models, comparison_json


@dataclass(frozen=True, kw_only=True, eq=False)
class IdentificationComparison:
    """Models searching the same galleries with the same probes.

    Attributes:
        name: of the target.
        results: what the 1:N protocols answer, by model.
        figures: Rank-k, and TPIR at each FPIR as the mean of the galleries, of all models with intervals and tests.
    """

    name: str
    results: Mapping[str, IdentificationResult]
    figures: Mapping[str, FigureComparison | Unmeasured]

    def to_json(self) -> dict[str, Any]:
        """Give the name, each model's numbers, and the comparison of each figure."""
        return {"name": self.name} | comparison_json(self.results, self.figures)

    def draw(self, output: Path) -> None:
        """Write the CMC, and a DET for each gallery that has searches of both kinds."""
        styles = model_styles(self.results)
        curves = {model: result.cmc for model, result in self.results.items()}
        plot_cmc(curves, picture_paths(output / "cmc"), f"{self.name}: closed-set identification", styles=styles)
        for base, gallery in self._galleries().items():
            errors = {
                model: (result.open_set[gallery].det_fpir, result.open_set[gallery].det_fnir)
                for model, result in self.results.items()
            }
            title = f"{self.name}: open-set identification, gallery {gallery}"
            plot_det(errors, picture_paths(output / base), title, styles=styles)

    def _galleries(self) -> dict[str, str]:
        first = next(iter(self.results.values()))
        return {f"det_{name}": name for name, result in first.open_set.items() if result.mated and result.impostors}


def compare_on_searches(
    template_set: TemplateSet,
    results: Mapping[str, IdentificationResult],
    replicates: int = REPLICATES,
    seed: int = 0,
) -> IdentificationComparison:
    """Give the 1:N figures of models their intervals by bootstrap over the probes' subjects, and test differences.

    Raises:
        DataError: a set that has no such figures.
    """
    _, probes = template_set.identification_lists()
    searched = next(iter(results.values())).closed_set.is_mated
    draws = {"replicates": replicates, "seed": seed}
    figures: dict[str, Figure | Unmeasured] = {}
    for rank in RANKS:
        hits = [result.rank_of_probe[searched] <= rank for result in results.values()]
        figures[f"Rank-{rank}"] = rank_figure(hits, probes.subject[searched], name=f"Rank-{rank}", **draws)
    for name, parts in _open_set(results, probes.subject, draws).items():
        lacking = next((part for part in parts if isinstance(part, Unmeasured)), None)
        figures[name] = lacking or mean_of_figures([part for part in parts if isinstance(part, Figure)], name)
    return IdentificationComparison(
        name=template_set.name, results=results, figures=compare_models(list(results), figures)
    )


def _open_set(
    results: Mapping[str, IdentificationResult], subject_K: Any, draws: dict[str, int]
) -> dict[str, list[Figure | Unmeasured]]:
    """TPIR at each FPIR, by its name, of each gallery."""
    found: dict[str, list[Figure | Unmeasured]] = {f"TPIR at FPIR {fpir:g}": [] for fpir in FPIR_TARGETS}
    for gallery in next(iter(results.values())).open_set:
        searches = [result.open_set[gallery].searches for result in results.values()]
        mated = searches[0].is_mated
        if mated.all() or not mated.any():
            kind = "impostor" if mated.all() else "mated"
            for name, parts in found.items():
                parts.append(Unmeasured(name=name, reason=f"gallery {gallery} has no {kind} searches"))
            continue
        figures = open_set_figures(
            [one.top_score for one in searches],
            [one.rank_of_probe == 1 for one in searches],
            ~mated,
            subject_K,
            fpir_targets=FPIR_TARGETS,
            **draws,
        )
        for name, parts in found.items():
            parts.append(figures[name])
    return found
