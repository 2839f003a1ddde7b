"""`facebones evaluate templates` and `identification`: trained backbones on an IJB-B or IJB-C folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facebones.backbones.base import IMAGE_SIZE
from facebones.data.ijb_lists import TemplateSet, read_template_set
from facebones.data.ijb_pairs import PAIR_LIST
from facebones.data.image_sources import LooseCrops
from facebones.evaluation.autotune_runtime import with_runtime
from facebones.evaluation.embed import embed
from facebones.evaluation.embedder import Embedder
from facebones.evaluation.feature_store import Features
from facebones.evaluation.identification import identify_templates
from facebones.evaluation.identification_comparison import compare_on_searches
from facebones.evaluation.models import describe, open_models
from facebones.evaluation.template_comparison import (
    Scores,
    check_identities,
    compare_on_templates,
    each_known,
)
from facebones.evaluation.template_scores import USUAL_SETTING, PoolingSetting
from facebones.evaluation.templates import pooled_templates, template_scores
from facebones.evaluation.work import Work
from facebones.reporting.plots.style import picture_paths
from facebones.system.files import atomic_write, check_output, write_json

FEATURES_FOLDER = "features"


@dataclass(frozen=True, kw_only=True)
class TemplateWork(Work):
    """What both commands take; the bootstrap is over identities.

    Attributes:
        data: the folder that holds `loose_crop` and `meta`.
        output: folder for the figures as JSON, scores, pictures, and the features, which a stopped pass goes on with
            and a later evaluation of the same models takes up.
    """

    data: Path


def evaluate_template_pairs(
    work: TemplateWork, settings: Sequence[PoolingSetting] = (USUAL_SETTING,)
) -> dict[str, Any]:
    """Verify the template pairs of a target (1:1), and test the differences between models.

    With an output, the scores are written as MODEL_TARGET.npy, or MODEL_TARGET_SETTING.npy where there are several
    settings.

    Returns:
        what templates.json holds: the models, and of each setting their figures with intervals and tests.

    Raises:
        FaceBonesError: the folder or the weights cannot be used, or the output could not be written.
    """
    template_set = read_template_set(work.data)
    subjects = _subjects(template_set)
    files = {
        (model, setting): f"{model}_{_setting_name(template_set, setting, settings)}.npy"
        for model in work.checkpoints
        for setting in settings
    }
    pictures = {setting: f"roc{f'_{setting}' if len(settings) > 1 else ''}" for setting in settings}
    if work.output is not None:
        drawn = [path.name for base in pictures.values() for path in picture_paths(base)]
        check_output(work.output, ["templates.json", *files.values(), *drawn])
    models, features = _embed(work, template_set)
    scores: dict[PoolingSetting, dict[str, Scores]] = {setting: {} for setting in settings}
    for model in models:
        for setting, row in template_scores(template_set, features[model], settings):
            scores[setting][model] = row if work.output is None else _kept(work.output / files[model, setting], row)
    comparisons = [
        compare_on_templates(
            f"{template_set.name} {setting}",
            scores[setting],
            template_set.is_same,
            (subjects[template_set.pair_a], subjects[template_set.pair_b]),
            replicates=work.replicates,
            seed=work.seed,
        )
        for setting in settings
    ]
    content = _content(work, models, template_set) | {"verification": [one.to_json() for one in comparisons]}
    if work.output is not None:
        write_json(work.output / "templates.json", content)
        for setting, comparison in zip(settings, comparisons, strict=True):
            comparison.draw(work.output / pictures[setting])
    return content


def evaluate_identification(work: TemplateWork, setting: PoolingSetting = USUAL_SETTING) -> dict[str, Any]:
    """Search the galleries of a target with its probes (1:N), and test the differences between models.

    Returns:
        what identification.json holds.

    Raises:
        FaceBonesError: as `evaluate_template_pairs`, or the folder has no galleries or probes.
    """
    template_set = read_template_set(work.data)
    galleries, _ = template_set.identification_lists()
    if work.output is not None:
        bases = ("cmc", *(f"det_{name}" for name in galleries))
        drawn = [path.name for base in bases for path in picture_paths(base)]
        check_output(work.output, ["identification.json", *drawn])
    models, features = _embed(work, template_set)
    results = {}
    for model in models:
        pooled = pooled_templates(template_set, features[model], (setting,))
        results[model] = identify_templates(template_set, pooled[setting])
    comparison = compare_on_searches(template_set, results, work.replicates, work.seed)
    content = _content(work, models, template_set) | {"setting": str(setting), "identification": comparison.to_json()}
    if work.output is not None:
        write_json(work.output / "identification.json", content)
        comparison.draw(work.output)
    return content


def check_target(folder: Path) -> None:
    """Say at once what would make both evaluations of a folder fail: its lists, and whether the images are there.

    Of the images the first one is read.

    Raises:
        DataError: a list is missing or broken, the lists do not fit together, or the image cannot be read.
    """
    template_set = read_template_set(folder)
    template_set.identification_lists()
    _subjects(template_set)
    _source(template_set).read(0, IMAGE_SIZE)


def _source(template_set: TemplateSet) -> LooseCrops:
    return LooseCrops(template_set.name, template_set.image_folder, template_set.image_names, template_set.landmarks)


def _embed(work: TemplateWork, template_set: TemplateSet) -> tuple[dict[str, Embedder], dict[str, Features]]:
    source = _source(template_set)
    models = open_models(work.checkpoints, backbone=work.backbone, device=work.device, preprocessing=work.preprocessing)
    models = with_runtime(models, work.runtime, [source], batch_size=work.batch_size)
    folder = None if work.output is None else work.output / FEATURES_FOLDER
    features = embed(models, source, batch_size=work.batch_size, workers=work.workers, folder=folder, progress=True)
    return models, features


def _subjects(template_set: TemplateSet) -> npt.NDArray[np.int64]:
    """Subject of each template, held against the labels of the pairs."""
    subjects = each_known(template_set.identities())
    check_identities(
        template_set.path / "meta" / f"{template_set.name}_{PAIR_LIST}",
        template_set.template_ids,
        (template_set.pair_a, template_set.pair_b),
        template_set.is_same,
        subjects,
    )
    return subjects


def _kept(path: Path, scores: Scores) -> Scores:
    """Write scores and give them back as a map of the file: those of many models need not be in memory at once."""
    with atomic_write(path) as file:
        np.save(file, scores)
    return np.asarray(np.load(path, mmap_mode="r"))


def _setting_name(template_set: TemplateSet, setting: PoolingSetting, settings: Sequence[PoolingSetting]) -> str:
    return template_set.name if len(settings) == 1 else f"{template_set.name}_{setting}"


def _content(work: TemplateWork, models: Mapping[str, Embedder], template_set: TemplateSet) -> dict[str, Any]:
    return {
        "target": template_set.name,
        "data": str(work.data),
        "images": len(template_set),
        "templates": int(template_set.template_ids.size),
        "models": {name: describe(embedder) for name, embedder in models.items()},
    }
