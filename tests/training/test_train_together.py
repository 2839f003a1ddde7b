"""Several processes train as one: loss, weights and centres are those of one process with the same batches."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from facebones.system.processes import CAN_FORK

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="no fork here")

PROGRAM = Path(__file__).with_name("train_together.py")
CLIPPED = {"epochs": 2, "batch_size": 10, "channels_last": False, "clip_norm": 1.0}
# What each case sets, by section; 4 classes, so that 5 processes are more than classes.
SETTINGS = {
    "sgd": {},
    "accumulated, sampled": {"training": {"batch_size": 7, "accumulation_steps": 2}, "head": {"sample_rate": 0.4}},
    "adamw, backbone clipped": {
        "optimizer": {"name": "adamw", "learning_rate": 1e-4},
        "training": {"clip_of": "backbone"},
    },
    "cosface, repeated flips": {"head": {"name": "cosface"}, "data": {"flip_draw": "repeated"}},
    "adaface, sampled": {"head": {"name": "adaface", "sample_rate": 0.4}},
    "magface": {"head": {"name": "magface", "lower_norm": 1.0}},
    "curricularface, sampled": {"head": {"name": "curricularface", "sample_rate": 0.4, "margin": 0.1}},
    "elasticface plus": {"head": {"name": "elasticface", "plus": True}},
    "uce, sampled": {"head": {"name": "uce", "sample_rate": 0.4}},
    "sphereface2": {"head": {"name": "sphereface2"}},
    "subcenter": {"head": {"name": "subcenter_arcface"}},
    "teacher": {"distillation": {"loss": "embedding_cosine", "weight": 3.0}},
    "adadistill, held out": {
        **{"distillation": {"loss": "adadistill"}, "head": {"sample_rate": 0.4}, "data": {"held_out": 0.25}},
    },
    "relational, no head": {"distillation": {"loss": "relational", "alone": True}},
    "frozen, layer decay": {
        "backbone": {"frozen": 1, "dropout": 0.0},
        "optimizer": {"layer_decay": 0.5, "decay_norm_and_prelu": False},
        "head": {"sample_rate": 0.4},
    },
    "bf16": {"training": {"precision": "bf16"}},
    "fp16": {"training": {"precision": "fp16"}},
}
# Half precision rounds each process's sums, and AdamW's first step has the sign of the gradient, also where it is 0
# but for rounding.
LOOSE = {"bf16": 2e-2, "fp16": 5e-3, "adamw, backbone clipped": 1e-4}


# In how many processes: three divide neither the images of a batch nor the classes.
QUICK = [(name, size) for name in SETTINGS for size in ((1, 2, 3, 4, 5) if name == "sgd" else (1, 3))]
SLOW = [(name, size) for name in SETTINGS for size in (1, 2, 5) if name != "sgd"]


def recipe(data, settings, teacher=""):
    settings = dict(settings)
    if "distillation" in settings:
        settings["distillation"] = settings["distillation"] | {"embeddings": teacher}
    sections = {
        "backbone": {"name": "Shared", "embedding_size": 16},
        "data": {"path": str(data), "workers": 0},
        "training": CLIPPED,
        "optimizer": {"learning_rate": 0.1},
    }
    for section, values in settings.items():
        sections[section] = sections.get(section, {}) | values
    return sections


def run(cases, folder):
    """The results of each case: those of process 0, with the centres of all processes joined."""
    (folder / "cases.json").write_text(json.dumps(cases))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, PROGRAM, folder / "cases.json", folder],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = []
    for number, case in enumerate(cases):
        parts = [torch.load(folder / f"{number}-{rank}.pt") for rank in range(case["size"])]
        for part in parts:
            assert torch.allclose(part["measured"], parts[0]["measured"], rtol=0, atol=0, equal_nan=True)
            assert part["scale"] == parts[0]["scale"]
            for name, value in part["backbone"].items():
                assert torch.equal(value, parts[0]["backbone"][name]), (case, name)
            for name, value in part["head"].items():
                assert torch.equal(value, parts[0]["head"][name]), (case, name)
        joined = {key: torch.cat([part[key] for part in parts]) for key in ("centres", "momentum")}
        results.append(parts[0] | joined)
    return results


def difference(one, other):
    """The relative difference of two lists of tensors, taken as one vector each."""
    first, second = (torch.cat([value.double().flatten() for value in values]) for values in (one, other))
    return ((first - second).norm() / second.norm().clamp_min(1e-12)).item()


@pytest.fixture(scope="module")
def trained(small_data, teacher, tmp_path_factory):
    """One step each of the quick or slow settings in several numbers of processes: (setting, size) -> result."""

    @cache
    def results(is_slow):
        compared = SLOW if is_slow else QUICK
        recipes = {name: recipe(small_data, SETTINGS[name], teacher) for name in SETTINGS}
        cases = [{"size": size, "steps": 1, "recipe": recipes[name]} for name, size in compared]
        return dict(zip(compared, run(cases, tmp_path_factory.mktemp("together")), strict=True))

    return results


@pytest.mark.parametrize(
    ("name", "size", "is_slow"),
    [
        *((name, size, False) for name, size in QUICK if size > 1),
        *(pytest.param(name, size, True, marks=pytest.mark.slow) for name, size in SLOW if size > 1),
    ],
)
def test_one_step_is_that_of_one_process(trained, name, size, is_slow):
    results = trained(is_slow)
    found, one, bound = results[name, size], results[name, 1], LOOSE.get(name, 1e-6)
    assert difference([found["measured"][:, 0]], [one["measured"][:, 0]]) < bound  # loss
    for key in ("centres", "momentum"):
        assert found[key].shape == one[key].shape
        assert difference([found[key]], [one[key]]) < (bound if key == "centres" else 50 * bound), key
    values = [list(result["backbone"].values()) for result in (found, one)]
    assert difference(*values) < bound
    assert found["head"].keys() == one["head"].keys()
    for key, value in one["head"].items():
        assert difference([found["head"][key]], [value]) < bound, key
    assert found["distillation"].keys() == one["distillation"].keys()
    for key, value in one["distillation"].items():
        assert difference([found["distillation"][key]], [value]) < bound, key


def test_a_second_step_still_agrees(small_data, tmp_path):
    """Running statistics, momentum and the order of the images continue alike."""
    cases = [{"size": size, "steps": 4, "recipe": recipe(small_data, {})} for size in (1, 2)]
    one, two = run(cases, tmp_path)
    assert len(one["measured"]) == 4
    assert difference(list(two["backbone"].values()), list(one["backbone"].values())) < 1e-4


def test_margins_drawn_at_random_stay_equal_over_steps(small_data, tmp_path):
    """In some steps a process has no centre in the sample; the third of three never has one."""
    head = {"name": "elasticface", "sample_rate": 0.3, "deviation": 0.3}
    settings = {"head": head, "training": {"batch_size": 3}, "optimizer": {"learning_rate": 1e-3}}
    one, three = run([{"size": size, "steps": 5, "recipe": recipe(small_data, settings)} for size in (1, 3)], tmp_path)
    assert torch.equal(three["head"]["_extra_state"], one["head"]["_extra_state"])
    assert difference([three["measured"][:, 0]], [one["measured"][:, 0]]) < 1e-4


def test_canonical_shards_give_the_same_bits(small_data, tmp_path):
    settings = {
        "training": {"canonical_shards": 4, "batch_size": 8, "accumulation_steps": 1},
        "backbone": {"dropout": 0.3},
        "head": {"sample_rate": 0.5},
        "data": {"crop": 0.5, "low_resolution": 0.5, "photometric": 0.5, "erasing": 0.5},
    }
    cases = [{"size": size, "steps": 4, "recipe": recipe(small_data, settings)} for size in (1, 2, 4)]
    plain = {"training": {"batch_size": 8}, "head": {"sample_rate": 0.5}, "data": settings["data"]}
    cases.append({"size": 1, "steps": 4, "recipe": recipe(small_data, plain)})
    one, *others, unsharded = run(cases, tmp_path)
    for other in others:
        for key in ("measured", "centres", "momentum"):
            assert torch.equal(other[key], one[key]), key
        for name, value in one["backbone"].items():
            assert torch.equal(other["backbone"][name], value), name
    assert not torch.equal(one["measured"], unsharded["measured"])


def test_canonical_shards_with_frozen_stages_give_the_same_bits(small_data, tmp_path):
    settings = {
        "training": {"canonical_shards": 2, "batch_size": 8},
        "backbone": {"frozen": 1, "dropout": 0.3},
        "optimizer": {"layer_decay": 0.5},
    }
    one, two = run([{"size": size, "steps": 3, "recipe": recipe(small_data, settings)} for size in (1, 2)], tmp_path)
    for key in ("measured", "centres", "momentum"):
        assert torch.equal(two[key], one[key]), key
    for name, value in one["backbone"].items():
        assert torch.equal(two["backbone"][name], value), name
    assert one["backbone"]["norm2d.num_batches_tracked"] == 0 and one["backbone"]["norm.num_batches_tracked"] == 3


def test_own_batch_norm_normalises_each_part(small_data, tmp_path):
    own = {"training": {"batch_norm": "own"}}
    cases = [{"size": size, "steps": 1, "recipe": recipe(small_data, own)} for size in (1, 2)]
    one, two = run(cases, tmp_path)
    assert difference(list(two["backbone"].values()), list(one["backbone"].values())) > 1e-4
