"""`facebones evaluate pairs`: trained backbones on pair sets, and whether they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facebones.data.folders import pair_sets
from facebones.data.image_sources import EncodedImages
from facebones.data.pair_bins import PairSet
from facebones.data.pair_lists import PAIR_LIST_SUFFIXES, read_pair_set
from facebones.errors import ConfigError, DataError
from facebones.evaluation.autotune_runtime import with_runtime
from facebones.evaluation.embed import embed
from facebones.evaluation.embedder import Embedder
from facebones.evaluation.models import describe, open_models
from facebones.evaluation.verification import PairSetResult, check_pair_set, correct_pairs, verify_features
from facebones.evaluation.work import Work
from facebones.reporting.comparison_table import tar_bands
from facebones.reporting.plots.curves import plot_roc
from facebones.reporting.plots.style import model_styles, picture_paths
from facebones.statistics.bootstrap import REPLICATES, Unmeasured, accuracy_figure, verification_figures
from facebones.statistics.significance import FigureComparison, compare_models, comparison_json
from facebones.system.files import atomic_write, check_output, write_json

FAR_TARGET = 1e-3


@dataclass(frozen=True, kw_only=True)
class PairsWork(Work):
    """What the command takes; the bootstrap is over pairs, for their files do not say who is who.

    Attributes:
        data: `.bin` files, lists of pairs, or folders that hold `.bin` files.
        root: the folder that lists of pairs start from; each list's own by default.
        flip: add the embedding of the mirror image, as the published protocol does.
        output: folder for pairs.json, MODEL_SET_scores.npz (distance and is_same of each pair) and the ROC pictures;
            those of an earlier evaluation are replaced.
    """

    data: Sequence[Path]
    root: Path | None = None
    flip: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class PairSetComparison:
    """Models on one pair set.

    Attributes:
        pair_set: the set.
        results: what the protocol answers, by model.
        figures: accuracy, TAR at FAR 0.001 (strict), AUC and EER of all models with intervals and tests, by name.
    """

    pair_set: PairSet
    results: Mapping[str, PairSetResult]
    figures: Mapping[str, FigureComparison | Unmeasured]

    def to_json(self) -> dict[str, Any]:
        """Give the set's name, each model's numbers, and the comparison of each figure."""
        return {"set": self.pair_set.name} | comparison_json(self.results, self.figures)


def evaluate_pairs(work: PairsWork) -> dict[str, Any]:
    """Verify pair sets with trained backbones by the published protocol, and test their differences.

    Returns:
        what pairs.json holds: the models, and of each set their figures with intervals and tests.

    Raises:
        FaceBonesError: a set or the weights cannot be used, or the output could not be written.
    """
    files = pair_set_files(work.data)
    if work.output is not None:
        scores = [_scores_name(model, path.stem) for model in work.checkpoints for path in files]
        check_output(work.output, ["pairs.json", *scores])
    sets = _read_sets(files, work.root)
    models = _open(work, sets)
    compared = []
    for pair_set in sets:
        results = _verify(work, models, pair_set)
        compared.append(compare_on_pairs(pair_set, results, work.replicates, work.seed))
    content = {
        "models": {name: describe(embedder) for name, embedder in models.items()},
        "flip": work.flip,
        "sets": [comparison.to_json() for comparison in compared],
    }
    if work.output is not None:
        write_json(work.output / "pairs.json", content)
        for comparison in compared:
            _write_scores(work.output, comparison)
        _draw(work.output, list(models), compared)
    return content


def compare_on_pairs(
    pair_set: PairSet, results: Mapping[str, PairSetResult], replicates: int = REPLICATES, seed: int = 0
) -> PairSetComparison:
    """Give every figure of models on a set its interval, and test the differences."""
    same = pair_set.is_same
    verifications = [result.verification for result in results.values()]
    accuracy = accuracy_figure(
        [correct_pairs(verification, same) for verification in verifications], same, replicates=replicates, seed=seed
    )
    curves = verification_figures(
        [-verification.distances for verification in verifications],
        same,
        far_targets=(FAR_TARGET,),
        replicates=replicates,
        seed=seed,
    )
    figures = compare_models(list(results), {"accuracy": accuracy, **curves})
    return PairSetComparison(pair_set=pair_set, results=results, figures=figures)


def pair_set_files(data: Sequence[Path]) -> list[Path]:
    """The files given, and the `.bin` files in the folders given; two of one name would overwrite each other's results.

    Raises:
        DataError: a folder without a set, or two sets of one name.
    """
    files: list[Path] = []
    for path in data:
        found = pair_sets(path) if path.is_dir() else [path]
        if not found:
            raise DataError(f"{path}: holds no pair set (NAME.bin)")
        files.extend(found)
    names = [path.stem for path in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"--data: two pair sets are called {twice[0]}; rename a file or evaluate them apart")
    return files


def read_sound_set(path: Path, root: Path | None = None) -> PairSet:
    """Read a set that can be verified; no image is decoded.

    Args:
        path: a `.bin` file, or a list of pairs.
        root: the folder that a list's paths start from.

    Raises:
        DataError: as `read_pair_set` and `check_pair_set`.
    """
    pair_set = read_pair_set(path, root)
    check_pair_set(pair_set)
    return pair_set


def _read_sets(files: Sequence[Path], root: Path | None) -> list[PairSet]:
    is_list = [path.suffix.lower() in PAIR_LIST_SUFFIXES for path in files]
    if root is not None and not any(is_list):
        raise ConfigError(f"--root {root}: goes with a list of pairs, and none is here; leave it out")
    return [read_sound_set(path, root if listed else None) for path, listed in zip(files, is_list, strict=True)]


def _open(work: PairsWork, sets: Sequence[PairSet]) -> dict[str, Embedder]:
    models = open_models(work.checkpoints, backbone=work.backbone, device=work.device, preprocessing=work.preprocessing)
    sources = [_source(pair_set) for pair_set in sets]
    return with_runtime(models, work.runtime, sources, batch_size=work.batch_size, flip=work.flip)


def _verify(work: PairsWork, models: Mapping[str, Embedder], pair_set: PairSet) -> dict[str, PairSetResult]:
    source = _source(pair_set)
    features = embed(models, source, batch_size=work.batch_size, workers=work.workers, flip=work.flip, progress=True)
    return {name: verify_features(features.pop(name), pair_set) for name in models}


def _source(pair_set: PairSet) -> EncodedImages:
    return EncodedImages(pair_set.name, pair_set.images)


def _scores_name(model: str, pair_set: str) -> str:
    return f"{model}_{pair_set}_scores.npz"


def _write_scores(output: Path, comparison: PairSetComparison) -> None:
    for model, result in comparison.results.items():
        with atomic_write(output / _scores_name(model, result.name)) as file:
            np.savez(file, distance=result.verification.distances, is_same=comparison.pair_set.is_same)


def _draw(output: Path, models: Sequence[str], compared: Sequence[PairSetComparison]) -> None:
    """One picture of all sets for one model; with several, a picture for each set."""
    if len(models) == 1:
        curves = {c.pair_set.name: c.results[models[0]].verification.roc for c in compared}
        plot_roc(curves, picture_paths(output / "roc"), models[0])
        return
    styles = model_styles(models)
    for comparison in compared:
        name = comparison.pair_set.name
        plot_roc(
            {model: result.verification.roc for model, result in comparison.results.items()},
            picture_paths(output / f"roc_{name}"),
            f"{name}: verification",
            styles=styles,
            bands=tar_bands(comparison.figures),
        )
