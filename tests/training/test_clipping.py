"""Clipping the gradient: of the backbone alone, as the field's trainers do, or of backbone and head together."""

import math
from pathlib import Path

import pytest
import torch

from facebones.errors import ConfigError, FaceBonesError, RunError
from facebones.recipe import load_config, load_recipe, recipe_from_dict
from facebones.training.trainer import Trainer

OLDER_RUN = Path(__file__).parents[1] / "older" / "v0.2.0.dev0" / "run" / "config.yaml"
PLAIN_STEP = {"optimizer.weight_decay": 0.0, "optimizer.learning_rate": 1.0, "optimizer.momentum": 0.0}


def moved(recipe):
    """How far a step of rate 1 moves backbone and head, which are the norms of their gradients; and the norm logged."""
    built = Trainer(recipe, torch.device("cpu"))
    parts = [list(part.parameters()) for part in (built.backbone, built.head)]
    before = [[p.detach().clone() for p in part] for part in parts]
    built.train_step(next(built.step_batches()))
    built.read_back_metrics()
    steps = [
        torch.cat([(p.detach() - old).flatten() for p, old in zip(part, olds, strict=True)]).norm().item()
        for part, olds in zip(parts, before, strict=True)
    ]
    return *steps, built.latest["gradient_norm"]


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_the_backbone_is_clipped_by_its_own_norm_and_the_head_not_at_all(tiny_recipe, rate):
    options = PLAIN_STEP | {"head.sample_rate": rate}
    backbone, head, norm = moved(tiny_recipe(**options))
    assert min(backbone, head) > 0.2 and norm == pytest.approx(math.hypot(backbone, head), rel=1e-4)
    clip = {"training.clip_norm": 0.1}
    alone = moved(tiny_recipe(**options, **clip, **{"training.clip_of": "backbone"}))
    assert alone == pytest.approx((0.1, head, norm), rel=1e-4)
    joint = moved(tiny_recipe(**options, **clip))
    assert joint == pytest.approx((0.1 * backbone / norm, 0.1 * head / norm, norm), rel=1e-4)
    loose = moved(tiny_recipe(**options, **{"training.clip_norm": 1e4, "training.clip_of": "backbone"}))
    assert loose == pytest.approx((backbone, head, norm), rel=1e-6)


def test_an_infinite_gradient_of_the_head_alone_is_not_applied(tiny_recipe):
    recipe = tiny_recipe(**{"training.clip_norm": 1.0, "training.clip_of": "backbone", "head.sample_rate": 1.0})
    built = Trainer(recipe, torch.device("cpu"))
    built.head.centres.register_hook(lambda gradient: gradient * math.inf)
    before = [p.detach().clone() for p in built.backbone.parameters()]
    with pytest.raises(RunError, match="not applied"):
        built.train_step(next(built.step_batches()))
        built.read_back_metrics()
    assert all(map(torch.equal, before, built.backbone.parameters()))


@pytest.mark.parametrize("recipe", ["vggface2_arcface", "study_as_run", "ms1mv3_arcface", "casia_webface"])
def test_recipes_whose_source_clips_do_so(recipe):
    training = load_recipe(recipe).training
    assert (training.clip_norm, training.clip_of, training.growth_interval) == (5, "backbone", 100)


def test_clip_norm_alone_is_the_joint_norm_as_in_older_runs(tmp_path):
    assert load_config(OLDER_RUN).training.clip_norm == 5
    assert load_config(OLDER_RUN).training.clip_of == "all"
    (tmp_path / "r.yaml").write_text("training: {clip_norm: 3}")
    training = load_recipe(tmp_path / "r.yaml").training
    assert (training.clip_norm, training.clip_of, training.growth_interval) == (3, "all", 2000)


def test_a_group_of_fields_is_written_as_a_mapping_or_with_a_dot(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("training: {clip: {norm: 3, of: backbone}}")
    expected = recipe_from_dict({"training": {"clip_norm": 3, "clip_of": "backbone"}})
    assert load_recipe(path) == expected == recipe_from_dict({"training": {"clip": {"norm": 3, "of": "backbone"}}})
    changed = load_recipe(path, {"training.clip.norm": "4", "training.clip_of": "all"}).training
    assert (changed.clip_norm, changed.clip_of) == (4, "all")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{clip: {norm: 3}, clip_norm: 4}", "training.clip_norm: is given twice, by itself and in a group"),
        ("{clip: {nrm: 3}}", "training.clip: is a group of fields; give {norm: ..., of: ...}"),
        ("{clip: {norm: -1}}", "training.clip_norm: -1.0 is out of range"),
        ("{clip: {norm: {a: 1}}}", "training.clip_norm: {'a': '1'} is not a finite number"),
        ("{clip: {of: backbone}}", "training.clip: has no effect without 'norm'; give norm too"),
        ("{clip: {}}", "training.clip: is a group of fields; give {norm: ..., of: ...}"),
        ("{clip: {norm: 3, of: haed}}", "training.clip_of: unknown value 'haed'"),
        ("{clip: 5}", "training.clip: is a group of fields; give {norm: ..., of: ...}"),
        ("{checkpoint: {every: 5}}", "training.checkpoint: unknown key 'checkpoint'; did you mean 'checkpoint_every'?"),
        ("{epochs: {a: 5}}", "training.epochs: {'a': '5'} is not a whole number"),
    ],
)
def test_a_bad_group_is_refused_with_its_place(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(f"training: {text}")
    with pytest.raises(FaceBonesError) as error:
        load_recipe(tmp_path / "r.yaml")
    assert str(tmp_path / "r.yaml") in str(error.value) and message in str(error.value)


def test_a_group_and_its_field_on_the_command_line_are_one_field():
    with pytest.raises(ConfigError, match=r"--training\.clip_norm: .*under another name too"):
        load_recipe("demo", {"training.clip.norm": "3", "training.clip_norm": "4"})


@pytest.mark.parametrize("text", ["5", "{norm: 5, of: backbone}", "{}", ""])
def test_a_group_on_the_command_line_is_given_field_by_field(tmp_path, text):
    (tmp_path / "r.yaml").write_text("training: {epochs: 3}")
    with pytest.raises(FaceBonesError) as error:
        load_recipe(tmp_path / "r.yaml", {"training.clip": text})
    assert str(error.value) == (
        "--training.clip: is a group of fields; give --training.clip.norm ... --training.clip.of ..."
    )
