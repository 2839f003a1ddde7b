"""Does a quality score tell which images a model fails on? Error versus discard, for score files and embedding norms.

`statistics.discard` says what is measured, `data.quality_scores` how a file of scores is written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import facebones
from facebones.data.quality_scores import read_quality
from facebones.errors import ConfigError, DataError
from facebones.evaluation.embedded_set import ThresholdRule, embed_set, one_set_with_pairs
from facebones.evaluation.models import BATCH_SIZE, Features, Model
from facebones.evaluation.protocol import Protocol
from facebones.statistics.bootstrap import REPLICATES
from facebones.statistics.calibration import ScoredPairs
from facebones.statistics.discard import (
    AT_RANDOM,
    best_possible,
    fnmr_after_discards,
    partial_area,
    range_of,
    resample_discards,
)
from facebones.statistics.significance import compare_models, confidence_interval
from facebones.system.files import check_output, write_json

FORMAT = 1
RESULT = "quality.json"
NORM = "embedding norm"
FALSE_MATCH_RATE = 1e-3
UP_TO = 0.3
BLOCK = 8192  # images in memory at a time


def evaluate_quality(
    models: Mapping[str, Model | Path | str] | Model | Path | str,
    data: Protocol | Path | str,
    scores: Mapping[str, Path | str] | None = None,
    *,
    threshold: float | None = None,
    false_match_rate: float | None = None,
    up_to: float = UP_TO,
    flip: bool = True,
    bootstrap: int = REPLICATES,
    seed: int = 0,
    output: Path | str | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    runtime: str | None = None,
    progress: bool = False,
    **opening: Any,
) -> dict[str, Any]:
    """Measure how fast FNMR falls as genuine pairs of the lowest quality are discarded, by quality score and model.

    Args:
        models: a model or several by name, or what `load_model` opens.
        data: what `find_protocols` finds, such as "lfw.bin" or "folder=friends"; or a `Protocol`. One set.
        scores: name -> file of quality scores. The norm of the model's own embedding is always measured beside them.
        threshold: a pair is rejected where its cosine is below this.
        false_match_rate: instead, the threshold with this FMR on all pairs of the set. Without both, 0.001.
        up_to: pAUC is the mean of FNMR from nothing discarded to this share of the genuine pairs, 0.01 to 0.9.
        flip: whether the embeddings of image and mirror image are added, also before the norm is taken.
        bootstrap: replicates, over people where they are known.
        seed: of the bootstrap.
        output: a folder; `quality.json` is written there.
        batch_size: images per forward pass.
        workers: threads that read images; None uses all cores.
        runtime: name of `evaluation.runtimes`; None runs PyTorch, and ONNX files by ONNX Runtime.
        progress: show the progress on stderr.
        opening: further options of `open_models`.

    Returns:
        under "results", for each model: "threshold", "genuine", "rejected", "fnmr" with its "interval", "metrics" (FNMR
        at each share and pAUC, with intervals, and tests between the scores and "at random"), "share_of_best" of each
        score (0 as at random, 1 as good as possible), and "curves".

    Raises:
        FaceBonesError: a model, the set or a file cannot be used, or no genuine pair is rejected; in one line.
    """
    ThresholdRule(threshold, false_match_rate)  # refuses both
    rule = ThresholdRule(threshold, (false_match_rate or FALSE_MATCH_RATE) if threshold is None else None)
    files = {name: Path(path) for name, path in (scores or {}).items()}
    if taken := {NORM, AT_RANDOM} & files.keys():
        raise ConfigError(f"scores: the name {taken.pop()!r} is taken; name the file another way")
    if not 0.01 <= up_to <= 0.9:
        raise ConfigError(f"discarding up to {up_to:g}: give a share of the genuine pairs from 0.01 to 0.9")
    protocol = one_set_with_pairs(data)
    protocol.check()
    given = _given_qualities(protocol, files)
    rule.check(protocol)
    if output is not None:
        check_output(Path(output), [RESULT])
    passing: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "runtime": runtime, "progress": progress}
    embedded = embed_set(models, protocol, rule, flip=flip, **passing, **opening)
    drawing = {"replicates": bootstrap, "seed": seed}
    results, people = {}, False
    for name, rows, pairs, limit in embedded.scored():
        people = pairs.first is not None
        qualities = {NORM: _by_item(norms(rows), protocol.items()), **given}
        results[name] = _measured(name, pairs, qualities, threshold=limit, up_to=up_to, drawing=drawing)
    content = {
        "format": FORMAT,
        "facebones": facebones.__version__,
        "protocol": "quality",
        "pairs_of": protocol.name,
        "set": protocol.set,
        "data": str(protocol.path),
        "scores": {name: str(path) for name, path in files.items()},
        "models": {name: model.describe() for name, model in embedded.models.items()},
        "options": {
            "false_match_rate": rule.false_match_rate,
            "up_to": up_to,
            "flip": embedded.flip,
            "bootstrap": bootstrap,
            "seed": seed,
        },
        "people_known": people,
        "results": results,
        "notes": protocol.notes(),
    }
    if output is not None:
        write_json(Path(output) / RESULT, content)
    return content


def norms(features_NxVxD: Features) -> npt.NDArray[np.float64]:
    """(N,) length of each embedding, image and mirror image added."""
    starts = range(0, len(features_NxVxD), BLOCK)
    parts = [features_NxVxD[start : start + BLOCK].sum(axis=1, dtype=np.float64) for start in starts]
    return np.concatenate([np.linalg.norm(part, axis=1) for part in parts])


def _given_qualities(protocol: Protocol, files: Mapping[str, Path]) -> dict[str, npt.NDArray[np.float64]]:
    """The scores of each file by the items of the pairs."""
    if not files:
        return {}
    faces = protocol.faces()
    return {name: _by_item(read_quality(path, faces.images, protocol.set), faces.item) for name, path in files.items()}


def _by_item(quality_N: npt.NDArray[np.float64], item_N: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The quality of each item: of its image, or the mean over the images of a template."""
    return np.bincount(item_N, quality_N) / np.maximum(np.bincount(item_N), 1)


def _measured(
    model: str,
    pairs: ScoredPairs,
    qualities: Mapping[str, npt.NDArray[np.float64]],
    *,
    threshold: float,
    up_to: float,
    drawing: Mapping[str, Any],
) -> dict[str, Any]:
    """What one model's pairs say of each score."""
    if pairs.items is None:
        raise ConfigError("the protocol does not number the images of its pairs; quality needs another set")
    first, second = pairs.items
    rejected = pairs.score < threshold
    count, genuine = int(np.sum(rejected & pairs.is_same)), int(pairs.is_same.sum())
    if not 0 < count < genuine:
        raise DataError(
            f"{model}: {count} of {genuine:,} genuine pairs are rejected at the threshold {threshold:.4f}, so"
            " discarding changes nothing; give another --fmr or --threshold, or a harder set"
        )
    of_pair = {name: np.minimum(one[first], one[second]) for name, one in qualities.items()}
    people = None if pairs.first is None or pairs.second is None else (pairs.first, pairs.second)
    found = resample_discards(of_pair, rejected, pairs.is_same, people, up_to=up_to, **drawing)
    names = [*qualities, AT_RANDOM]
    fnmr, shares = count / genuine, range_of(up_to)
    best = float(partial_area(best_possible(fnmr, shares)))
    return {
        "threshold": threshold,
        "genuine": genuine,
        "rejected": count,
        "fnmr": fnmr,
        "interval": confidence_interval(found[-1], len(qualities)).to_json(),  # at random: all pairs
        "metrics": [one.to_json() for one in compare_models(names, found)],
        "share_of_best": {
            name: (fnmr - float(found[-1].values[place])) / (fnmr - best) for place, name in enumerate(qualities)
        },
        "curves": {
            "discarded": shares.tolist(),
            "fnmr": {
                name: fnmr_after_discards(one[pairs.is_same], rejected[pairs.is_same], shares).tolist()
                for name, one in of_pair.items()
            },
            "best": best_possible(fnmr, shares).tolist(),
        },
    }
