"""`facebones evaluate pairs`: one trained backbone on one or more pair sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from facebones.data.folders import pair_sets
from facebones.data.pairs import read_pairs
from facebones.errors import ConfigError, DataError
from facebones.evaluation.verification import PairSetResult, check_pair_set, evaluate_pair_set
from facebones.files import atomic_write, check_writable, write_json
from facebones.reporting.curve_plots import plot_roc
from facebones.run_folder import RunFolder
from facebones.weights import open_backbone


def evaluate_pairs(
    checkpoint: Path,
    data: Sequence[Path],
    *,
    backbone: str | None = None,
    output: Path | None = None,
    batch_size: int = 128,
    device: str = "auto",
) -> dict[str, Any]:
    """Verify pair sets with a trained backbone, by the published protocol.

    Args:
        checkpoint: a run's folder, a file of weights, or an ONNX file.
        data: `.bin` files, or folders that hold some.
        backbone: its name, where the file does not say it.
        output: folder for result.json, NAME_scores.npz (distance and is_same of each pair) and roc.png; those of an
            earlier evaluation are replaced.
        batch_size: images a forward pass.
        device: "auto", "cpu", "cuda", ...

    Returns:
        what result.json holds: the backbone, the checkpoint, and the figures of each set.

    Raises:
        FaceBonesError: a set or the weights cannot be used, or the output could not be written.
    """
    files = pair_set_files(data)
    if output is not None:
        _check_output(output, [path.stem for path in files])
    sets = [read_pairs(path) for path in files]
    for pair_set in sets:
        check_pair_set(pair_set)
    network, path, computing = open_backbone(checkpoint, backbone, device)
    results = [
        evaluate_pair_set(network, pair_set, device=computing, batch_size=batch_size, progress=True)
        for pair_set in sets
    ]
    content = {
        "backbone": network.name,
        "embedding_size": network.embedding_size,
        "checkpoint": str(path),
        "sets": [result.to_json() for result in results],
    }
    if output is not None:
        write_json(output / "result.json", content)
        for result, pair_set in zip(results, sets, strict=True):
            _write_scores(output / f"{result.name}_scores.npz", result, pair_set.is_same)
        plot_roc({result.name: result.verification.roc for result in results}, output / "roc.png")
    return content


def pairs_table(content: dict[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Column names and rows of the figures, for people."""
    columns = ("set", "pairs", "accuracy", "TAR@FAR=1e-3", "FAR reached", "AUC", "EER", "XNorm")
    rows: list[Sequence[str]] = [
        (
            figures["set"],
            f"{figures['pairs']:,}",
            f"{figures['accuracy']:.2%} +- {figures['accuracy_std']:.2%}",
            f"{figures['tar_at_far_1e3']:.2%} +- {figures['tar_at_far_1e3_std']:.2%}",
            f"{figures['far_reached']:.2e}",
            f"{figures['auc']:.5f}",
            f"{figures['eer']:.2%}",
            f"{figures['xnorm']:.2f}",
        )
        for figures in content["sets"]
    ]
    return columns, rows


def pair_set_files(data: Sequence[Path]) -> list[Path]:
    """The `.bin` files given or lying in the folders given; two of one name would overwrite each other's results."""
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


def _check_output(output: Path, names: Sequence[str]) -> None:
    if RunFolder(output).config.exists():
        raise ConfigError(
            f"{output}: holds a training run, whose result.json would be lost; choose another --output, such as"
            f" {output / 'pairs'}"
        )
    for name in ("result.json", "roc.png", *(f"{name}_scores.npz" for name in names)):
        check_writable(output / name)


def _write_scores(path: Path, result: PairSetResult, is_same: Any) -> None:
    with atomic_write(path) as file:
        np.savez(file, distance=result.verification.distances, is_same=is_same)
