"""Error rates by group: does a model work alike for everyone? Several models on one set, at a global threshold each.

`statistics.group_rates` says what is measured, `data.group_lists` how a file of groups is written.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import facebones
from facebones.data.group_lists import Grouping, groups_file, read_groups
from facebones.errors import ConfigError
from facebones.evaluation.embedded_set import ThresholdRule, embed_set, one_set_with_pairs
from facebones.evaluation.models import BATCH_SIZE, Model
from facebones.evaluation.protocol import Protocol
from facebones.statistics.bootstrap import REPLICATES
from facebones.statistics.calibration import ScoredPairs
from facebones.statistics.fairness import ALPHA
from facebones.statistics.group_permutation import PERMUTATIONS
from facebones.statistics.group_rates import GroupedPairs, compare_groups
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
    rule = ThresholdRule(threshold, false_match_rate)
    protocol = one_set_with_pairs(data)
    protocol.check()
    faces = protocol.faces()
    groupings = protocol.groupings() if groups is None else []
    path = protocol.path if groupings else groups_file(protocol.path) if groups is None else Path(groups)
    groupings = groupings or read_groups(path, faces, protocol.set)
    if output is not None:
        check_output(Path(output), [RESULT])
    rule.check(protocol)
    passing: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "runtime": runtime, "progress": progress}
    embedded = embed_set(models, protocol, rule, flip=flip, **passing, **opening)
    drawing: dict[str, Any] = {"replicates": bootstrap, "permutations": permutations, "seed": seed}
    thresholds: dict[str, float] = {}
    found: list[dict[str, Any]] = [{} for _ in groupings]
    for name, _, pairs, limit in embedded.scored():
        thresholds[name] = limit
        for results, grouping in zip(found, groupings, strict=True):
            parts = grouped(pairs, grouping, faces.person)
            results[name] = compare_groups(parts, grouping.groups, limit, **drawing).to_json()
    content = {
        "format": FORMAT,
        "facebones": facebones.__version__,
        "protocol": "groups",
        "pairs_of": protocol.name,
        "set": protocol.set,
        "data": str(protocol.path),
        "groups_file": str(path),
        "models": {name: model.describe() for name, model in embedded.models.items()},
        "thresholds": thresholds,
        "options": {"false_match_rate": false_match_rate, "flip": embedded.flip, "alpha": ALPHA, **drawing},
        "people_known": faces.person is not None,
        "groupings": [_section(one, results) for one, results in zip(groupings, found, strict=True)],
        "notes": protocol.notes(),
    }
    if output is not None:
        write_json(Path(output) / RESULT, content)
    return content


def grouped(pairs: ScoredPairs, grouping: Grouping, person: Any) -> GroupedPairs:
    """The pairs with the groups and the people of their items."""
    if pairs.items is None:
        raise ConfigError("the protocol does not number the images of its pairs; groups need another set")
    first, second = pairs.items
    return GroupedPairs(
        score=pairs.score, is_same=pairs.is_same, first=first, second=second, group=grouping.group, person=person
    )


def _section(grouping: Grouping, results: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": grouping.name,
        "groups": list(grouping.groups),
        "images_without_group": grouping.without,
        "mixed_templates": grouping.mixed,
        "results": dict(results),
    }
