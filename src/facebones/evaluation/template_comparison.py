"""Models compared on template pairs: the 1:1 figures of each, with intervals and tests; from scores alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.data.ijb_pairs import read_pair_labels, read_scores
from facebones.errors import DataError
from facebones.evaluation.templates import FAR_TARGETS, TemplateResult, verify_templates
from facebones.reporting.comparison_table import tar_bands
from facebones.reporting.plots.curves import plot_roc
from facebones.reporting.plots.style import model_styles, picture_paths
from facebones.statistics.bootstrap import REPLICATES, Unmeasured, verification_figures
from facebones.statistics.significance import FigureComparison, compare_models, comparison_json
from facebones.system.files import check_output, write_json

Scores = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class TemplateComparison:
    """Models on the same template pairs.

    Attributes:
        name: of the target, and of the setting where there is one.
        results: what the 1:1 protocol answers, by model.
        figures: strict TAR at each FAR, AUC and EER of all models with intervals and tests, by name.
    """

    name: str
    results: Mapping[str, TemplateResult]
    figures: Mapping[str, FigureComparison | Unmeasured]

    def to_json(self) -> dict[str, Any]:
        """Give the name, each model's numbers, and the comparison of each figure."""
        return {"name": self.name} | comparison_json(self.results, self.figures)

    def draw(self, base: Path) -> None:
        """Write the ROC picture of all models, as `base`.png and `base`.pdf."""
        plot_roc(
            {model: result.roc for model, result in self.results.items()},
            picture_paths(base),
            f"{self.name}: 1:1 verification",
            styles=model_styles(self.results),
            bands=tar_bands(self.figures),
        )


def compare_on_templates(
    name: str,
    scores: Mapping[str, Scores],
    is_same_P: npt.NDArray[np.bool_],
    identities: tuple[npt.ArrayLike, npt.ArrayLike],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> TemplateComparison:
    """Count the 1:1 figures of each model, give them intervals by bootstrap over identities, and test differences.

    Args:
        name: of the target.
        scores: model -> (P,) similarities.
        is_same_P: (P,) bool, true for a genuine pair.
        identities: subject of the first and of the second template of each pair, (P,) each.
        replicates: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: scores that do not fit, or a set that has no such figures.
    """
    results = {model: verify_templates(row, is_same_P, name=f"{name}, {model}") for model, row in scores.items()}
    figures = verification_figures(
        list(scores.values()), is_same_P, identities, far_targets=FAR_TARGETS, replicates=replicates, seed=seed
    )
    return TemplateComparison(name=name, results=results, figures=compare_models(list(scores), figures))


def each_known(subject_T: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Take each template whose subject is unknown (-1) as a person of its own: (T,) numbers from 0."""
    unknown = subject_T < 0
    return np.where(unknown, subject_T.max(initial=-1) + np.cumsum(unknown), subject_T)


def check_identities(
    path: Path,
    template_ids: npt.NDArray[Any],
    pairs: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    is_same_P: Any,
    subject_T: npt.NDArray[np.int64],
) -> None:
    """Hold the labels of pairs against the subjects of their templates.

    Args:
        path: the list of pairs, one a line.
        template_ids: (T,) the templates' names.
        pairs: the templates of each pair, (P,) and (P,) from 0 to T - 1.
        is_same_P: (P,) bool, true for a genuine pair.
        subject_T: (T,) the templates' subjects.

    Raises:
        DataError: they contradict each other; the first such line is named.
    """
    first, second = pairs
    wrong = (subject_T[first] == subject_T[second]) != is_same_P
    if wrong.any():
        index = int(np.argmax(wrong))
        one, other = template_ids[first[index]], template_ids[second[index]]
        said, otherwise = ("1", "two subjects") if is_same_P[index] else ("0", "one subject")
        raise DataError(
            f"{path}, line {index + 1}: templates {one} and {other} are labelled {said}, but by the other lines and"
            f" lists they are of {otherwise}; mend either"
        )


def evaluate_scores(
    labels: Path,
    scores: Mapping[str, Path],
    *,
    output: Path | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict[str, Any]:
    """Tabulate and draw again from saved scores of template pairs, ours or others'.

    Args:
        labels: the list of pairs, the `meta` folder that holds it, or the folder of the target.
        scores: model -> `.npy` file of (P,) similarities, in the order of the list.
        output: folder for scores.json and the ROC pictures.
        replicates: of the bootstrap over identities, which the genuine pairs tell.
        seed: of the bootstrap.

    Returns:
        what scores.json holds.

    Raises:
        FaceBonesError: a file cannot be used, or the output could not be written.
    """
    if output is not None:
        check_output(output, ["scores.json", *(path.name for path in picture_paths("roc"))])
    pairs = read_pair_labels(labels)
    read = {name: read_scores(path, pairs) for name, path in scores.items()}
    subjects = each_known(pairs.identities())
    check_identities(pairs.path, pairs.template_ids, (pairs.pair_a, pairs.pair_b), pairs.is_same, subjects)
    identities = subjects[pairs.pair_a], subjects[pairs.pair_b]
    name = pairs.path.name.partition("_")[0]
    comparison = compare_on_templates(name, read, pairs.is_same, identities, replicates=replicates, seed=seed)
    content = {
        "labels": str(pairs.path),
        "models": {model: {"scores": str(path)} for model, path in scores.items()},
        "verification": [comparison.to_json()],
    }
    if output is not None:
        write_json(output / "scores.json", content)
        comparison.draw(output / "roc")
    return content
