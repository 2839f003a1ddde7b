"""Error rates by group: does a model work alike for everyone? Several models on one set, at a global threshold each.

`statistics.group_rates` says what is measured, `data.group_lists` how a file of groups is written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import facebones
from facebones.data.group_lists import Grouping, groups_file, read_groups
from facebones.errors import ConfigError, DataError
from facebones.evaluation.calibrate import check_rate
from facebones.evaluation.embed import embed
from facebones.evaluation.models import BATCH_SIZE, Model, open_models
from facebones.evaluation.protocol import Protocol, protocols_with_pairs
from facebones.evaluation.runtimes import with_runtime
from facebones.statistics.bootstrap import REPLICATES
from facebones.statistics.calibration import ScoredPairs
from facebones.statistics.fairness import ALPHA
from facebones.statistics.group_permutation import PERMUTATIONS
from facebones.statistics.group_rates import GroupedPairs, compare_groups
from facebones.statistics.resampling import TOLERANCE
from facebones.system.files import check_output, write_json

FORMAT = 1
RESULT = "groups.json"


def evaluate_groups(
    models: Mapping[str, Model | Path | str] | Model | Path | str,
    data: Protocol | Path | str,
    groups: Path | str | None = None,
    *,
    threshold: float | None = None,
    false_match_rate: float | None = None,
    flip: bool = True,
    bootstrap: int = REPLICATES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    output: Path | str | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    runtime: str | None = None,
    progress: bool = False,
    **opening: Any,
) -> dict[str, Any]:
    """Measure FMR and FNMR by group at one threshold for all, with intervals, indices of inequality and tests.

    Args:
        models: a model or several by name, or what `load_model` opens.
        data: what `find_protocols` finds, such as "lfw.bin" or "folder=friends"; or a `Protocol`. One set.
        groups: a file of groups (`data.group_lists`); by default those that the set states, or the file beside it.
        threshold: a pair is accepted where its cosine is at least this.
        false_match_rate: instead, the threshold with this FMR on all pairs of the set. Without both, the threshold that
            `calibrate` has kept beside the weights, if there is one only.
        flip: whether the embeddings of image and mirror image are added.
        bootstrap: replicates, over people where they are known.
        permutations: of the groups in each test.
        seed: of both.
        output: a folder; `groups.json` is written there.
        batch_size: images per forward pass.
        workers: threads that read images; None uses all cores.
        runtime: name of `evaluation.runtimes`; None runs PyTorch, and ONNX files by ONNX Runtime.
        progress: show the progress on stderr.
        opening: further options of `open_models`.

    Returns:
        "groupings": for each column of the file its "name", "groups", "images_without_group", "mixed_templates", and
        under "results", for each model, what `GroupComparison.to_json` returns; "thresholds": of each model; "notes".

    Raises:
        FaceBonesError: a model, the set or the file cannot be used, or there is no threshold; in one line.
    """
    check_options(threshold, false_match_rate)
    protocol = one_set_with_pairs(data)
    protocol.check()
    faces = protocol.faces()
    groupings = protocol.groupings() if groups is None else []
    path = protocol.path if groupings else groups_file(protocol.path) if groups is None else Path(groups)
    groupings = groupings or read_groups(path, faces, protocol.set)
    if output is not None:
        check_output(Path(output), [RESULT])
    if false_match_rate is not None:
        check_supported(protocol, false_match_rate)
    opened = open_models(models if isinstance(models, Mapping) else {"model": models}, **opening)
    flip, images = flip or protocol.needs_flip, protocol.images()
    if runtime is not None:
        opened = with_runtime(opened, runtime, [images], batch_size=batch_size, flip=flip)
    given = {name: _given_threshold(name, one, flip, threshold, false_match_rate) for name, one in opened.items()}
    features = embed(opened, images, flip=flip, batch_size=batch_size, workers=workers, progress=progress)
    drawing: dict[str, Any] = {"replicates": bootstrap, "permutations": permutations, "seed": seed}
    thresholds: dict[str, float] = {}
    found: list[dict[str, Any]] = [{} for _ in groupings]
    for name in opened:
        pairs = protocol.scored_pairs(features.pop(name))
        thresholds[name] = threshold_at(pairs, false_match_rate) if false_match_rate is not None else given[name]
        for results, grouping in zip(found, groupings, strict=True):
            parts = grouped(pairs, grouping, faces.person)
            results[name] = compare_groups(parts, grouping.groups, thresholds[name], **drawing).to_json()
    content = {
        "format": FORMAT,
        "facebones": facebones.__version__,
        "protocol": "groups",
        "pairs_of": protocol.name,
        "set": protocol.set,
        "data": str(protocol.path),
        "groups_file": str(path),
        "models": {name: model.describe() for name, model in opened.items()},
        "thresholds": thresholds,
        "options": {"false_match_rate": false_match_rate, "flip": flip, "alpha": ALPHA, **drawing},
        "people_known": faces.person is not None,
        "groupings": [_section(one, results) for one, results in zip(groupings, found, strict=True)],
        "notes": protocol.notes(),
    }
    if output is not None:
        write_json(Path(output) / RESULT, content)
    return content


def threshold_at(pairs: ScoredPairs, false_match_rate: float) -> float:
    """The lowest threshold that accepts no more than this share of the impostor pairs.

    Raises:
        DataError: the rate is below 1 / impostor pairs.

    >>> pairs = ScoredPairs(np.array([0.9, 0.5, 0.4, 0.3, 0.2]), np.array([True, False, False, False, False]))
    >>> 0.4 < threshold_at(pairs, 0.25) <= 0.5
    True
    """
    impostors = np.sort(pairs.score[~pairs.is_same])[::-1]
    accepted = int(false_match_rate * impostors.size * (1 + TOLERANCE))
    if not accepted:
        raise DataError(
            f"a false match rate of {false_match_rate:g} is below 1 / {impostors.size:,} impostor pairs; give a higher"
            " --fmr, or --threshold"
        )
    if accepted >= impostors.size:
        return float(impostors[-1])
    return float(np.nextafter(impostors[accepted], np.inf))


def check_supported(protocol: Protocol, false_match_rate: float) -> None:
    """Refuse a rate that the pairs of a set are too few for, before any image is embedded.

    Raises:
        DataError: the rate is below 1 / impostor pairs.
    """
    made_up_NxVxD = np.random.default_rng(0).standard_normal((len(protocol.images()), 2, 2), dtype=np.float32)
    threshold_at(protocol.scored_pairs(made_up_NxVxD), false_match_rate)  # which pairs there are needs no model


def grouped(pairs: ScoredPairs, grouping: Grouping, person: Any) -> GroupedPairs:
    """The pairs with the groups and the people of their items."""
    if pairs.items is None:
        raise ConfigError("the protocol does not number the images of its pairs; groups need another set")
    first, second = pairs.items
    return GroupedPairs(
        score=pairs.score, is_same=pairs.is_same, first=first, second=second, group=grouping.group, person=person
    )


def check_options(threshold: float | None, false_match_rate: float | None) -> None:
    """Refuse both, or a rate that is none."""
    if threshold is not None and false_match_rate is not None:
        raise ConfigError("a threshold and a false match rate: give one of them")
    if false_match_rate is not None:
        check_rate(false_match_rate)


def one_set_with_pairs(data: Protocol | Path | str) -> Protocol:
    """The only set with pairs.

    Raises:
        FaceBonesError: there is none, or several.
    """
    found = protocols_with_pairs(data)
    if len(found) != 1:
        raise ConfigError(
            f"{data}: {len(found)} sets with pairs; name one, since files of groups and of scores belong to a set"
        )
    return found[0]


def _given_threshold(
    name: str, model: Model, flip: bool, threshold: float | None, false_match_rate: float | None
) -> float:
    """The threshold of a model before its pairs are scored; 0 where they decide it."""
    if threshold is not None or false_match_rate is not None:
        return threshold or 0.0
    return _kept_threshold(name, model, flip)


def _kept_threshold(name: str, model: Model, flip: bool) -> float:
    """The threshold that `calibrate` has kept beside the weights."""
    calibration = model.calibration
    if calibration is None:
        raise ConfigError(f"{name}: no threshold; give --threshold or --fmr, or run `facebones calibrate` first")
    kept = [float(one["threshold"]) for one in calibration["thresholds"]]
    if len(kept) != 1:
        shown = ", ".join(
            f"{one['threshold']:.4f} (FMR {one['false_match_rate']:g})" for one in calibration["thresholds"]
        )
        raise ConfigError(f"{name}: {len(kept)} calibrated thresholds, {shown}; give one of them by --threshold")
    if calibration["flip"] != flip:
        made = "with" if calibration["flip"] else "without"
        raise ConfigError(
            f"{name}: its threshold was made {made} mirror images; evaluate likewise, or give --threshold"
        )
    return kept[0]


def _section(grouping: Grouping, results: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": grouping.name,
        "groups": list(grouping.groups),
        "images_without_group": grouping.without,
        "mixed_templates": grouping.mixed,
        "results": dict(results),
    }
