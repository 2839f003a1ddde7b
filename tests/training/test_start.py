"""A training that begins with given weights: what it takes, what it refuses, and what it records."""

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from facebones.backbones import create_backbone, state_dicts, timm_models
from facebones.backbones.weights import METADATA_KEY, load_backbone
from facebones.cli.main import main
from facebones.errors import CheckpointError
from facebones.run_folder import RunFolder
from facebones.system.checkpoint import load_checkpoint
from facebones.training import run as runs
from facebones.training.run import resume, train
from facebones.training.start import read_start
from facebones.training.trainer import Trainer

SIZE = 16


@pytest.fixture(scope="session")
def finished(tiny_backbone, small_data, tmp_path_factory):
    """A finished run."""
    from facebones.recipe import recipe_from_dict

    folder = tmp_path_factory.mktemp("start") / "run"
    recipe = {
        "backbone": {"name": tiny_backbone, "embedding_size": SIZE},
        "data": {"path": str(small_data), "workers": 0},
        "training": {"epochs": 1, "batch_size": 7, "seed": 3},
    }
    train(recipe_from_dict(recipe), folder, "cpu")
    return RunFolder(folder)


def bare(finished, tmp_path):
    """A state dict alone, in the wrapping of other projects."""
    weights = load_file(finished.weights)
    torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, tmp_path / "x.pth")
    return tmp_path / "x.pth"


FORMS = {
    "a run": lambda finished, _: finished.path,
    "a checkpoint": lambda finished, _: finished.last,
    "a safetensors file": lambda finished, _: finished.weights,
    "a state dict": bare,
}


def first_state(recipe, folder, monkeypatch):
    """The state that is saved before the first step, and the content of environment.json."""

    def stop(self, batches):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs.Trainer, "train_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, folder, "cpu")
    return load_checkpoint(RunFolder(folder).last), json.loads(RunFolder(folder).environment.read_bytes())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_training_begins_with_the_weights(finished, tiny_recipe, tmp_path, monkeypatch, form):
    path = form(finished, tmp_path)
    state, environment = first_state(tiny_recipe(**{"backbone.weights": str(path)}), tmp_path / "run", monkeypatch)
    expected = load_file(finished.weights)
    assert state["backbone"].keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state["backbone"][name], value), name
    assert Path(environment["weights"]["path"]).is_relative_to(path)
    assert len(environment["weights"]["sha256_of_tensors"]) == 64


def test_the_digest_is_of_the_tensors_and_the_rest_of_the_run_is_as_with_random_weights(
    finished, tiny_recipe, tmp_path, monkeypatch
):
    states, digests = [], []
    for number, weights in enumerate((finished.path, bare(finished, tmp_path), "")):
        recipe = tiny_recipe(**{"backbone.weights": str(weights)})
        state, environment = first_state(recipe, tmp_path / f"{number}", monkeypatch)
        states.append(state)
        digests.append(environment.get("weights", {}).get("sha256_of_tensors"))
    assert digests[0] == digests[1] and digests[2] is None
    for key in ("head", "rng"):
        for name, value in states[2][key].items():
            assert torch.equal(states[0][key][name], value), (key, name)


def test_the_path_is_absolute_and_is_not_read_again(finished, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moved = bare(finished, tmp_path)
    recipe = tiny_recipe(**{"backbone.weights": "x.pth"})
    first_state(recipe, tmp_path / "run", monkeypatch)
    folder = RunFolder(tmp_path / "run")
    assert f"weights: {tmp_path / 'x.pth'}" in folder.config.read_text()
    moved.rename(tmp_path / "y.pth")
    assert resume(folder.path, "cpu")["steps"] == 28
    assert json.loads(folder.environment.read_bytes())["weights"]["path"] == str(tmp_path / "x.pth")

    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "y.pth").rename(moved)
    first_state(recipe, elsewhere, monkeypatch)
    config = RunFolder(elsewhere).config
    config.write_text(config.read_text().replace("x.pth", "z.pth"))
    assert resume(elsewhere, "cpu")["steps"] == 28
    assert folder.weights.read_bytes() == RunFolder(elsewhere).weights.read_bytes()


def test_a_run_that_ended_before_its_first_save_begins_with_them_all_the_same(
    finished, tiny_recipe, tmp_path, monkeypatch
):
    recipe = tiny_recipe(**{"backbone.weights": str(finished.path)})
    train(recipe, tmp_path / "whole", "cpu")
    first_state(recipe, tmp_path / "run", monkeypatch)
    RunFolder(tmp_path / "run").last.unlink()
    resume(tmp_path / "run", "cpu")
    assert RunFolder(tmp_path / "run").weights.read_bytes() == RunFolder(tmp_path / "whole").weights.read_bytes()


def magface(weights, path):
    """Write a file of MagFace's form, with variances so small that its eps shows; returns the network."""
    for key in ("bn1.running_var", "features.running_var"):
        weights[key].uniform_(1e-5, 1e-4)
    torch.save({"state_dict": {f"features.module.{key}": value for key, value in weights.items()}}, path)
    return load_backbone(path, "iresnet18")[0]


def test_magfaces_weights_begin_with_their_embeddings_under_our_eps(scaled_backbone, tiny_recipe, tmp_path, capsys):
    path = tmp_path / "x.pth"
    theirs = magface(scaled_backbone("iresnet18", embedding_size=SIZE).state_dict(), path)
    start = read_start(tiny_recipe(**{"backbone.name": "iresnet18", "backbone.weights": str(path)}))
    assert "with eps 1e-05 instead of 2e-05; its running variances are increased" in capsys.readouterr().err
    ours, plain = (create_backbone("iresnet18", SIZE).eval() for _ in range(2))
    start.fill(ours)
    plain.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        expected, found, without = (network.double()(x) for network in (theirs, ours, plain))
    largest = expected.abs().max()
    assert (found - expected).abs().max() < 1e-5 * largest < 1e-2 * (without - expected).abs().max()


def broken(path):
    path.write_bytes(b"nothing")
    return []


def not_finite(path):
    weights = create_backbone("tiny_for_tests", SIZE).state_dict()
    weights["conv.weight"][0] = torch.nan
    torch.save(weights, path)
    return []


def of_size(size):
    def write(path):
        torch.save(create_backbone("tiny_for_tests", size).state_dict(), path)
        return []

    return write


def of_another(path):
    card = {METADATA_KEY: json.dumps({"backbone": "shufflefacenet_0_5", "embedding_size": SIZE})}
    save_file({"x": torch.zeros(1)}, path.with_suffix(".safetensors"), card)
    return ["--backbone.weights", str(path.with_suffix(".safetensors"))]


def misshapen(path):
    weights = create_backbone("tiny_for_tests", SIZE).state_dict()
    torch.save(weights | {"conv.weight": torch.zeros(8, 3, 5, 5)}, path)
    return []


def deploy_form(path):
    torch.save(create_backbone("facelivtv2_xs", SIZE).deploy().state_dict(), path)
    return ["--backbone", "facelivtv2_xs"]


REFUSED = {
    "missing": (lambda path: [], "no such run or file; give a run's folder or a file of weights"),
    "broken": (broken, "x.pth: "),
    "nan": (not_finite, "x.pth: conv.weight holds values that are not finite"),
    "another size": (of_size(24), "24 elements, and the recipe asks for 16; give --backbone.embedding_size 24"),
    "another backbone": (of_another, "x.safetensors: holds shufflefacenet_0_5, not tiny_for_tests; give --backbone"),
    "another shape": (misshapen, "x.pth: not the weights of tiny_for_tests: it differs in the shape of conv.weight"),
    "in deploy form": (
        deploy_form,
        "x.pth: holds facelivtv2_xs in deploy form, whose batch normalisation is folded away",
    ),
    "an empty folder": (lambda path: path.mkdir() or [], "has the run begun?"),
    "all frozen": (lambda path: of_size(SIZE)(path) or ["--backbone.frozen", "3"], "give at most 2"),
}


@pytest.mark.parametrize(("write", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line_without_a_folder(tiny_backbone, small_data, tmp_path, capsys, monkeypatch, write, message):
    monkeypatch.setattr(state_dicts, "list_backbones", lambda: [tiny_backbone])  # to compare with all takes seconds
    path = tmp_path / "x.pth"
    more = write(path)
    words = ["train", "demo", "--data", str(small_data), "--backbone", tiny_backbone, "--output", str(tmp_path / "run")]
    words += ["--backbone.embedding_size", str(SIZE), "--batch-size", "7", "--workers", "0", "--device", "cpu"]
    words += ["--validation.sets", "tiny"]
    assert main([*words, "--backbone.weights", str(path), *more]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("facebones: ") and message in line
    assert not (tmp_path / "run").exists()


def test_frozen_stages_need_weights(tiny_recipe, tmp_path):
    with pytest.raises(Exception, match=r"backbone\.frozen 1 would keep random weights; give --backbone\.weights"):
        train(tiny_recipe(**{"backbone.frozen": 1}), tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


TIMM = "timm:mobilenetv3_small_050"


@pytest.fixture
def pretrained(monkeypatch):
    """timm's weights without a network: each parameter is 0.01; returns the models that were asked for."""
    original, asked = timm_models.import_timm().create_model, []

    def create_model(model, pretrained=False, **options):
        network = original(model, pretrained=False, **options)
        if pretrained:
            asked.append(model)
            for parameter in network.parameters():
                torch.nn.init.constant_(parameter, 0.01)
        return network

    monkeypatch.setattr(timm_models.import_timm(), "create_model", create_model)
    return asked


def test_timm_weights_fill_the_body(pretrained, tiny_recipe, tmp_path, monkeypatch):
    recipe = tiny_recipe(**{"backbone.weights": "timm", "backbone.name": TIMM})
    state, environment = first_state(recipe, tmp_path / "run", monkeypatch)
    assert pretrained == ["mobilenetv3_small_050"]
    names = dict(create_backbone(TIMM, SIZE).named_parameters())
    for name in names:
        filled = bool((state["backbone"][name] == torch.tensor(0.01)).all())
        assert filled == name.startswith("body."), name
    assert environment["weights"]["path"] == "timm"
    assert "weights: timm" in RunFolder(tmp_path / "run").config.read_text()


def test_timm_has_no_weights_or_cannot_load_them(tiny_recipe, tmp_path, monkeypatch):
    with pytest.raises(Exception, match="timm has no weights for tiny_for_tests"):
        train(tiny_recipe(**{"backbone.weights": "timm"}), tmp_path / "run", "cpu")

    def unreachable(model, pretrained=False, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(timm_models.import_timm(), "create_model", unreachable)
    with pytest.raises(Exception, match=r"timm's pretrained weights cannot be loaded: no route; check"):
        train(tiny_recipe(**{"backbone.weights": "timm", "backbone.name": TIMM}), tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------- frozen stages, lower rates


def steps_of(recipe, count):
    """A trainer after some steps, and the state of its backbone before them."""
    trainer = Trainer(recipe, torch.device("cpu"))
    before = {name: value.clone() for name, value in trainer.backbone.state_dict().items()}
    with closing(trainer.step_batches()) as batches:
        for _ in range(count):
            trainer.train_step(next(batches))
    return trainer, before


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_frozen_stages_do_not_change_at_all(tiny_recipe, optimizer):
    trainer, before = steps_of(tiny_recipe(**{"backbone.frozen": 1, "optimizer.name": optimizer}), 5)
    frozen = ("conv.", "norm2d.", "prelu.")
    for name, value in trainer.backbone.state_dict().items():
        if name.startswith(frozen):
            assert torch.equal(value, before[name]), name
        elif not name.startswith("unused."):
            assert not torch.equal(value, before[name]), name
    stepped = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    held = {name for name, p in trainer.backbone.named_parameters() if any(p is one for one in stepped)}
    assert held == {name for name in before if name.startswith(("linear.", "unused.", "norm."))} - {
        *("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"),
    }


@pytest.mark.parametrize("clip_of", ["all", "backbone"])
def test_frozen_stages_count_in_no_gradient_norm(tiny_recipe, clip_of):
    recipe = tiny_recipe(**{"backbone.frozen": 2, "training.clip_norm": 0.5, "training.clip_of": clip_of})
    trainer, _ = steps_of(recipe, 2)
    assert all(p.grad is None for p in trainer.backbone.parameters())
    assert all(norm > 0 for _, norm in trainer.meter.read_back())


def test_a_step_of_each_stage_is_shorter_by_its_factor(tiny_recipe):
    options = {"optimizer.momentum": 0.0, "optimizer.weight_decay": 0.0, "backbone.dropout": 0.0}
    plain, before = steps_of(tiny_recipe(**options), 1)
    decayed, _ = steps_of(tiny_recipe(**options, **{"optimizer.layer_decay": 0.25}), 1)
    factors = {"conv.weight": 1 / 16, "prelu.weight": 1 / 16, "linear.weight": 1 / 4, "norm.weight": 1}
    own, others = decayed.backbone.state_dict(), plain.backbone.state_dict()
    for name, factor in factors.items():
        assert (others[name] - before[name]).abs().max() > 0
        assert torch.allclose(own[name] - before[name], factor * (others[name] - before[name]), rtol=1e-3, atol=1e-7)
    assert torch.equal(decayed.head.centres, plain.head.centres)
    assert decayed.latest["learning_rate"] == plain.latest["learning_rate"]


def test_groups_are_as_before_where_nothing_is_frozen_or_slowed(tiny_recipe):
    for decay_norm in (True, False):
        trainer, _ = steps_of(tiny_recipe(**{"optimizer.decay_norm_and_prelu": decay_norm}), 0)
        groups = trainer.optimizer.param_groups
        assert len(groups) == (1 if decay_norm else 2) and all("lr_factor" not in group for group in groups)
        parameters = [*trainer.backbone.parameters(), trainer.head.sampled.leaf]
        expected = [[p for p in parameters if decay_norm or p.ndim >= 2], [p for p in parameters if p.ndim < 2]]
        for group, wanted in zip(groups, expected, strict=False):
            assert len(group["params"]) == len(wanted)
            assert all(one is other for one, other in zip(group["params"], wanted, strict=True))


def test_another_layer_decay_or_number_of_frozen_stages_is_another_run(finished, tiny_recipe, tmp_path, monkeypatch):
    weights = {"backbone.weights": str(finished.path), "backbone.frozen": 1, "optimizer.layer_decay": 0.5}
    first_state(tiny_recipe(**weights), tmp_path / "run", monkeypatch)
    config = RunFolder(tmp_path / "run").config
    text = config.read_text()
    for then, now in (("frozen: 1", "frozen: 0"), ("layer_decay: 0.5", "layer_decay: 1.0")):
        config.write_text(text.replace(then, now))
        with pytest.raises(CheckpointError, match=r"was made with \S+ \S+, and config\.yaml says"):
            resume(tmp_path / "run", "cpu")


@pytest.mark.slow
def test_frozen_stages_train_compiled(tiny_recipe):
    options = {"backbone.frozen": 1, "backbone.dropout": 0.0, "optimizer.layer_decay": 0.5}
    plain, before = steps_of(tiny_recipe(**options), 3)
    compiled, _ = steps_of(tiny_recipe(**options, **{"training.compile": True}), 3)
    for name, value in compiled.backbone.state_dict().items():
        expected, start = plain.backbone.state_dict()[name].double(), before[name].double()
        # Compiled code sums in another order, and each step carries that on: the bound is a part of what was learnt.
        assert (value - expected).norm() <= 1e-3 * (expected - start).norm() + 1e-5, name
    assert torch.equal(compiled.backbone.norm2d.running_mean, before["norm2d.running_mean"])
