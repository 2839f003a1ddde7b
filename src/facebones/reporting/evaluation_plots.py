"""Plots of an evaluation: ROC of each pair set and of template pairs, CMC and DET of searches, from its result file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from facebones.reporting.plots.curves import Band, plot_roc
from facebones.reporting.plots.identification import plot_cmc, plot_det
from facebones.reporting.plots.style import model_styles, picture_paths
from facebones.statistics.curves import RocCurve, roc
from facebones.system.files import read_npz

ROC_ARRAYS = ("far", "tar", "threshold", "genuine", "impostors")


def write_evaluation_plots(content: Mapping[str, Any], output: Path) -> None:
    """Draw the curves of a result file into the folder that holds it.

    Args:
        content: what the result file holds, format 2.
        output: the folder with the result file and its scores.
    """
    results = content["results"]
    if content["protocol"] == "pairs" and len(content["models"]) == 1:
        (model,) = content["models"]
        curves = {result["set"]: read_roc(output / result["curves"]["roc"][model]) for result in results}
        plot_roc(curves, picture_paths(output / "roc"), model)
        return
    for result in results:
        _plot_result(result, output, one_of_many=len(results) > 1)


def _plot_result(result: Mapping[str, Any], output: Path, *, one_of_many: bool) -> None:
    name = " ".join(filter(None, (result["set"], result["setting"])))
    pairs = result["protocol"] == "pairs"
    for kind, by_model in result["curves"].items():
        styles = model_styles(by_model)
        if kind == "roc":
            suffix = f"_{result['set']}" if pairs else f"_{result['setting']}" if one_of_many else ""
            curves = {model: read_roc(output / file) for model, file in by_model.items()}
            title = f"{name}: verification" if pairs else f"{name}: 1:1 verification"
            plot_roc(curves, picture_paths(output / f"roc{suffix}"), title, styles=styles, bands=tar_bands(result))
        elif kind == "cmc":
            plot_cmc(by_model, picture_paths(output / kind), f"{name}: closed-set identification", styles=styles)
        elif kind.startswith("det_"):
            errors = {model: (points["fpir"], points["fnir"]) for model, points in by_model.items()}
            title = f"{name}: open-set identification, gallery {kind.removeprefix('det_')}"
            plot_det(errors, picture_paths(output / kind), title, styles=styles)


def read_roc(file: Path) -> RocCurve:
    """The ROC curve of a file of scores (`distance`, `is_same`) or of a file of its points (`far`, `tar`, ...)."""
    if file.name.endswith("_scores.npz"):
        scores = read_npz(file, ("distance", "is_same"))
        return roc(-scores["distance"], scores["is_same"])
    points = read_npz(file, ROC_ARRAYS)
    return RocCurve(
        false_accept_rate=points["far"],
        true_accept_rate=points["tar"],
        threshold=points["threshold"],
        genuine=int(points["genuine"]),
        impostors=int(points["impostors"]),
    )


def tar_bands(result: Mapping[str, Any]) -> dict[str, Band]:
    """For `plot_roc`: of each model the intervals of its TAR at the measured FARs."""
    measured = [one for one in result["metrics"] if one["name"] == "tar" and one["intervals"]]
    if not measured:
        return {}
    far = np.array([one["at"]["far"] for one in measured])
    return {
        model: (
            far,
            np.array([one["intervals"][model]["low"] for one in measured]),
            np.array([one["intervals"][model]["high"] for one in measured]),
        )
        for model in measured[0]["intervals"]
    }
