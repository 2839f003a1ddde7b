"""One step of the training: what it applies, what it refuses, what it counts."""

import json
import math
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from facebones import load_results
from facebones.backbones import create_backbone
from facebones.backbones.weights import load_backbone
from facebones.cli.main import main
from facebones.cli.training import _print_run
from facebones.errors import RunError
from facebones.recipe import OptimizerConfig
from facebones.reporting.plots.report_plots import report_plots
from facebones.run_folder import RunFolder, read_metrics
from facebones.training.callbacks import Callback
from facebones.training.logs import Meter, MetricsLog, validation_line
from facebones.training.optimizer import build_optimizer
from facebones.training.run import TrainingLoop, resume, train
from facebones.training.step import draw_mirrored, network_input
from facebones.training.trainer import Trainer

CPU = torch.device("cpu")
aten = torch.ops.aten


def trainer(recipe):
    return Trainer(recipe, CPU)


def first_batches(built, count=1):
    steps = built.step_batches()
    return [next(steps) for _ in range(count)]


def parameters(built):
    return torch.cat([p.detach().flatten() for p in (*built.backbone.parameters(), *built.head.parameters())])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_changes_every_parameter_that_is_used(tiny_recipe, optimizer):
    built = trainer(tiny_recipe(**{"optimizer.name": optimizer, "head.sample_rate": 1.0}))
    before = {name: p.clone() for name, p in built.backbone.named_parameters()}
    built.train_step(first_batches(built)[0])
    same = [name for name, p in built.backbone.named_parameters() if torch.equal(p, before[name])]
    assert same == ["unused.weight", "unused.bias"]


def test_accumulated_gradients_are_those_of_one_large_batch(tiny_recipe):
    """Batch normalisation sees the small batches, so the network here has its own fixed in eval mode."""
    common = {"data.flip": False, "backbone.dropout": 0.0, "head.sample_rate": 1.0}
    whole = trainer(tiny_recipe(**common, **{"training.batch_size": 6}))
    parts = trainer(tiny_recipe(**common, **{"training.batch_size": 2, "training.accumulation_steps": 3}))
    for built in (whole, parts):
        built.backbone.eval()
        built.backbone.train = lambda mode=True: None
        built.train_step(first_batches(built)[0])
    assert whole.steps_per_epoch == parts.steps_per_epoch and whole.step == parts.step == 1
    torch.testing.assert_close(parameters(whole), parameters(parts), rtol=1e-4, atol=2e-4)  # sums in another order
    assert whole.meter.loss == pytest.approx(parts.meter.loss)


@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_clipping_bounds_the_step(tiny_recipe, clip_norm):
    options = {"training.clip_norm": clip_norm, "optimizer.weight_decay": 0.0, "optimizer.learning_rate": 1.0}
    built = trainer(tiny_recipe(**options))
    before = parameters(built)
    built.train_step(first_batches(built)[0])
    built.read_back_metrics()
    moved = (parameters(built) - before).norm().item()
    assert built.latest["gradient_norm"] > 0.5
    assert moved == pytest.approx(clip_norm or built.latest["gradient_norm"], rel=1e-3)


def test_flip_mirrors_about_half_of_the_images(tiny_recipe):
    built = trainer(tiny_recipe())
    images = torch.randint(0, 256, (400, 8, 8, 3), dtype=torch.uint8)
    found = network_input(built, images, draw_mirrored(built, len(images), 0))
    assert draw_mirrored(trainer(tiny_recipe(**{"data.flip": False})), len(images), 0) is None
    plain = network_input(built, images, None)
    mirrored = torch.tensor([torch.equal(a, b.flip(2)) for a, b in zip(found, plain, strict=True)])
    same = torch.tensor([torch.equal(a, b) for a, b in zip(found, plain, strict=True)])
    assert (mirrored ^ same).all() and 150 < mirrored.sum() < 250


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_is_not_applied(tiny_recipe, bad, precision):
    built = trainer(tiny_recipe(**{"training.precision": precision}))
    built.backbone.linear.weight.register_hook(lambda gradient: gradient * bad)
    before = parameters(built)
    with pytest.raises(RunError, match=r"step 1: loss [\d.]+, gradient norm (nan|inf): not applied"):
        built.train_step(first_batches(built)[0])
        built.read_back_metrics()
    assert torch.equal(parameters(built), before)


@pytest.mark.parametrize("options", [{}, {"head.sample_rate": 0.5}, {"optimizer.name": "adamw"}])
def test_a_step_that_is_left_out_changes_nothing_that_is_saved(tiny_recipe, options):
    built = trainer(tiny_recipe(**options))
    built.backbone.linear.weight.register_hook(lambda gradient: gradient * math.nan)
    batches = first_batches(built)[0]
    before = parameters(built)
    built.train_step(batches)
    assert torch.equal(parameters(built), before)
    moments = [value for state in built.optimizer.state.values() for value in state.values()]
    assert moments and not any(value.any() for value in moments)


def test_the_error_names_the_first_bad_step_and_nothing_of_it_is_kept(tiny_recipe, tmp_path):
    built = trainer(tiny_recipe())
    good, bad, after = first_batches(built, 3)
    built.train_step(good)
    hook = built.backbone.linear.weight.register_hook(lambda gradient: gradient * math.nan)
    built.train_step(bad)
    hook.remove()
    built.train_step(after)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(RunError, match=r"step 2: .*not applied"):
        TrainingLoop(built, RunFolder(tmp_path))._save(None)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


class Questions(TorchDispatchMode):
    """Counts what makes the host wait for the device: a value, or a size that depends on values."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (aten._local_scalar_dense, aten.nonzero, aten.equal, aten._unique2):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"training.precision": "bf16"}, {"training.clip_norm": 1.0}])
def test_a_step_asks_the_device_nothing_and_reading_back_once(tiny_recipe, options):
    built = trainer(tiny_recipe(**{"head.sample_rate": 1.0}, **options))  # a sample's size is a question
    batches = first_batches(built, 2)
    built.train_step(batches[0])
    with Questions() as questions:
        built.train_step(batches[1])
    assert questions.found == []
    with Questions() as questions:
        built.read_back_metrics()
        assert built.meter.read_back() == []
        assert built.head.centres.norm().item() > 0
    assert len(questions.found) == 1  # of the norm just above: questions are found, and reading back is one copy


def test_in_fp16_the_scaler_skips_bad_steps_and_gives_up_at_last(tiny_recipe):
    built = trainer(tiny_recipe(**{"training.precision": "fp16", "training.epochs": 20}))
    built.backbone.linear.weight.register_hook(lambda gradient: gradient * math.inf)
    before = parameters(built)
    steps = built.step_batches()
    with pytest.raises(RunError, match="not applied"):
        for _ in range(40):
            built.train_step(next(steps))
            built.read_back_metrics()
    assert torch.equal(parameters(built), before)
    assert (built.step, built.meter.skipped, built.meter.loss) == (17, 17, None)
    assert built.scaler.get_scale() == 0.5


def test_in_fp16_training_goes_on_after_skipped_steps(tiny_recipe):
    built = trainer(tiny_recipe(**{"training.precision": "fp16"}))
    hook = built.backbone.linear.weight.register_hook(lambda gradient: gradient * math.inf)
    steps = built.step_batches()
    before = parameters(built)
    for _ in range(3):
        built.train_step(next(steps))
    assert torch.equal(parameters(built), before) and built.scaler.get_scale() == 65536 / 8
    hook.remove()
    for _ in range(10):  # the first ones may still be too much for float16
        built.train_step(next(steps))
    built.read_back_metrics()
    assert not torch.equal(parameters(built), before)
    assert built.meter.counted > 0 and math.isfinite(built.meter.loss)


def test_weight_decay_can_leave_out_norm_prelu_and_biases():
    backbone = create_backbone("shufflefacenet_0_5")
    everything = build_optimizer(OptimizerConfig(), backbone)
    chosen = build_optimizer(OptimizerConfig(decay_norm_and_prelu=False, weight_decay=0.1), backbone)
    assert [group["weight_decay"] for group in everything.param_groups] == [5e-4]
    decayed, others = chosen.param_groups
    assert decayed["weight_decay"] == 0.1 and others["weight_decay"] == 0
    assert all(p.ndim >= 2 for p in decayed["params"]) and all(p.ndim < 2 for p in others["params"])
    count = sum(len(group["params"]) for group in chosen.param_groups)
    assert count == len(everything.param_groups[0]["params"]) == len(list(backbone.parameters()))


def test_metrics_hold_what_is_promised(tiny_recipe, tmp_path):
    train(tiny_recipe(), tmp_path / "run", "cpu")
    lines = read_metrics(RunFolder(tmp_path / "run").metrics)
    training = [line for line in lines if line["kind"] == "train"]
    validation = [line for line in lines if line["kind"] == "validation"]
    assert [line["step"] for line in training] == list(range(2, 29, 2))
    assert [line["epoch"] for line in training] == [(step - 1) // 7 + 1 for step in range(2, 29, 2)]
    assert [line["step"] for line in validation] == [5, 10, 15, 20, 25, 28]
    for key in ("loss", "learning_rate", "gradient_scale", "gradient_norm", "images_per_second"):
        assert all(isinstance(line[key], float) for line in training), key
    for key in ("xnorm", "accuracy", "accuracy_std", "tar_at_far_1e3", "far_reached", "auc", "eer", "best_accuracy"):
        assert all(isinstance(line[key], float) for line in validation), key
    best = [line["best_accuracy"] for line in validation]
    assert best == [max(line["accuracy"] for line in validation[: n + 1]) for n in range(6)]


def test_training_lowers_the_loss(tiny_recipe, tmp_path):
    recipe = tiny_recipe(
        **{"training.epochs": 20, "head.scale": 16, "head.m2": 0.1, "log.every": 7, "head.sample_rate": 1.0}
    )
    train(recipe, tmp_path / "run", "cpu")
    losses = [line["loss"] for line in read_metrics(RunFolder(tmp_path / "run").metrics) if line["kind"] == "train"]
    assert losses[-1] < 0.3 * losses[0]


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(tiny_recipe, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny_recipe(**{"training.seed": seed}), tmp_path / name, "cpu")
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.slow
def test_a_compiled_backbone_takes_the_same_step_and_is_saved_under_the_same_keys(tiny_recipe):
    plain, compiled = (
        trainer(tiny_recipe(**{"training.compile": compile, "backbone.dropout": 0.0})) for compile in (False, True)
    )
    before = parameters(plain)
    for built in (plain, compiled):
        torch.manual_seed(0)  # both were built before either draws its flips
        built.train_step(first_batches(built)[0])
    states = [built.state_dict(0) for built in (plain, compiled)]
    assert states[0]["backbone"].keys() == states[1]["backbone"].keys()
    torch.testing.assert_close(states[0]["backbone"], states[1]["backbone"], rtol=1e-4, atol=1e-5)
    assert (parameters(plain) - before).abs().max() > 1e-2


def test_a_run_whose_every_step_was_skipped_is_no_success(tiny_recipe, tmp_path):
    recipe = tiny_recipe(**{"training.precision": "fp16", "training.epochs": 1, "head.scale": 1e30})
    for go in (lambda: train(recipe, tmp_path / "run", "cpu"), lambda: resume(tmp_path / "run", "cpu")):
        with pytest.raises(RunError, match="skipped all 7 steps, so nothing was trained"):
            go()
    folder = RunFolder(tmp_path / "run")
    assert folder.read_error()["type"] == "UntrainedError", "by which a tuning knows that another try ends so again"
    assert not folder.result.exists() and not folder.weights.exists()


def test_the_result_says_how_many_steps_were_skipped(tiny_recipe, tmp_path, capsys):
    result = train(tiny_recipe(**{"training.precision": "fp16"}), tmp_path / "run", "cpu")
    assert "its scaler skips steps while it searches its scale; they count" in capsys.readouterr().err
    lines = read_metrics(RunFolder(tmp_path / "run").metrics)
    assert result["skipped_steps"] == sum(line.get("skipped_steps", 0) for line in lines) < result["steps"]


def test_what_is_one_is_said_in_the_singular(tiny_recipe, tmp_path, capsys):
    train(tiny_recipe(**{"training.epochs": 1, "training.batch_size": 28}), tmp_path / "run", "cpu")
    assert "4 identities: 1 epoch of 1 step, fp32, cpu" in capsys.readouterr().err


@pytest.mark.parametrize("wide", [1, 2])
def test_images_of_another_aspect_are_noted_once(tiny_recipe, small_data, tmp_path, capsys, wide):
    faces = shutil.copytree(small_data.parent / "images", tmp_path / "faces")
    for path in sorted(faces.glob("*/*.jpg"))[:wide]:
        cv2.imwrite(str(path), np.zeros((112, 96, 3), np.uint8))
    options = {"training.epochs": 1, "data.path": str(faces), "validation.sets": []}
    train(tiny_recipe(**options), tmp_path / "run", "cpu")
    are = {
        1: "1 of 28 images is not square (112x96: 1); it is",
        2: "2 of 28 images are not square (112x96: 2); they are",
    }
    said = capsys.readouterr().err
    assert said.count(f"note: {faces}: {are[wide]} stretched to the network's input") == said.count("not square") == 1


def test_a_validation_without_a_finite_embedding_is_noted_and_ends_no_run(tiny_recipe, tmp_path, monkeypatch, capsys):
    original = TrainingLoop._validate

    def broken_at_ten(self, log):
        if self.trainer.step in (10, 28):
            self.trainer.backbone.norm.running_var.fill_(math.nan)
        original(self, log)

    monkeypatch.setattr(TrainingLoop, "_validate", broken_at_ten)
    result = train(tiny_recipe(), tmp_path / "run", "cpu")
    lines = read_metrics(RunFolder(tmp_path / "run").metrics)
    accuracy = {line["step"]: line["accuracy"] for line in lines if line["kind"] == "validation"}
    assert accuracy[5] > 0 and all(accuracy[step] is None for step in (10, 15, 28))
    assert result["final"][0]["accuracy"] is None and result["best"]["mean_accuracy"] == accuracy[5]
    assert result["final"][0]["best_accuracy"] == accuracy[5]
    assert "note: tiny: image 0: the embedding has norm nan" in capsys.readouterr().err
    resume(tmp_path / "run", "cpu")
    assert report_plots(load_results(tmp_path / "run"))["accuracy_tiny"].axes
    _print_run(tmp_path / "run", result)
    assert capsys.readouterr().out.startswith("tiny: not measured\n")


def test_margins_that_insightface_would_not_combine_are_noted(tiny_recipe, tmp_path, capsys):
    for number, (margins, noted) in enumerate([((1, 0.5, 0.2), True), ((1, 0.5, 0), False), ((1, 0, 0.2), False)]):
        options = {f"head.{name}": value for name, value in zip(("m1", "m2", "m3"), margins, strict=True)}
        train(tiny_recipe(**{"training.epochs": 1, **options}), tmp_path / str(number), "cpu")
        assert ("InsightFace's margin_list [1, 0.5, 0.2] applies m3 alone" in capsys.readouterr().err) is noted


def test_the_meter_survives_a_save():
    first, second = Meter(), Meter()
    first.add(torch.tensor(2.0), torch.tensor(1.0))
    first.add(torch.tensor(5.0), torch.tensor(math.nan))
    assert first.read_back()[0] == (2.0, 1.0) and first.read_back() == []
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.add(torch.tensor(4.0), torch.tensor(1.0))
    second.read_back()
    assert (second.loss, second.skipped) == (3.0, 1)


@pytest.mark.parametrize("earlier", [{}, {"teacher_cosine": 0.5}])
def test_metrics_that_an_older_version_lacked_are_means_over_the_steps_that_have_them(earlier):
    meter = Meter()
    meter.load_state_dict({"loss_sum": 2.0, "counted": 1, "skipped": 1, "head": earlier})
    assert meter.head == earlier
    for norm in (10.0, 20.0):
        head = {"norm": torch.tensor(norm)} | {name: torch.tensor(0.8) for name in earlier}
        meter.add(torch.tensor(2.0), torch.tensor(1.0), head)
    meter.read_back()
    assert meter.loss == 2 and meter.head == pytest.approx({"norm": 15} | dict.fromkeys(earlier, 0.7))
    meter.reset()
    meter.add(torch.tensor(2.0), torch.tensor(1.0), {"norm": torch.tensor(4.0)})
    meter.read_back()
    assert meter.head == {"norm": 4}


def test_weights_come_back_from_run_checkpoint_and_safetensors(tiny_recipe, tmp_path):
    train(tiny_recipe(), tmp_path / "run", "cpu")
    folder = RunFolder(tmp_path / "run")
    x = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        outputs = [load_backbone(path)[0](x) for path in (folder.path, folder.last, folder.weights)]
    assert outputs[0].shape == (2, 16)
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    assert load_backbone(folder.path)[1] == folder.weights


@pytest.mark.parametrize("alias", ["r18", "mbf"])
def test_a_state_dict_in_insightface_keys_is_evaluated(alias, small_data, tmp_path, capsys):
    torch.save(create_backbone(alias, 64).state_dict(), tmp_path / "backbone.pth")
    words = ["evaluate", "pairs", "--checkpoint", tmp_path / "backbone.pth", "--backbone", alias]
    words += ["--data", small_data / "tiny.bin", "--device", "cpu", "--json"]
    assert main([str(word) for word in words]) == 0
    assert json.loads(capsys.readouterr().out)["models"]["backbone"]["embedding_size"] == 64


def test_long_embeddings_are_logged_in_powers_of_ten():
    names = ("accuracy", "accuracy_std", "best_accuracy", "tar_at_far_1e3", "auc")
    values = {"set": "lfw", **dict.fromkeys(names, 0.5)}
    for length, shown in ((22.345, "22.34"), (12345.678, "12345.68"), (4.5678e21, "4.57e+21"), (math.nan, "nan")):
        assert validation_line({**values, "xnorm": length}).endswith(f"XNorm {shown}")


def test_a_log_rounds_as_the_tables_do():
    """533 of 800 pairs are 66.625 %."""
    values = dict.fromkeys(("accuracy", "accuracy_std", "best_accuracy", "tar_at_far_1e3"), 533 / 800)
    line = validation_line({"set": "lfw", **values, "auc": 0.5, "xnorm": 1.0})
    assert line.startswith("  lfw: accuracy 66.63 % ± 66.63 (best 66.63 %)  TAR@FAR=1e-3 66.63 %  AUC")


def test_a_run_folder_that_is_removed_ends_the_training_at_the_next_save(tiny_recipe, tmp_path):
    """A save would make the folder again, without the recipe that `resume` needs."""

    class Remover(Callback):
        def on_step(self, run, step):
            if step == 2:
                shutil.rmtree(tmp_path / "run")

    with pytest.raises(RunError, match="run: the run folder was removed while its training went on"):
        train(tiny_recipe(), tmp_path / "run", "cpu", callbacks=[Remover()])
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_line_that_could_not_be_written_is_no_second_error_when_the_log_is_closed(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", 0)
    with Path("/dev/full").open("wb") as full:
        os.dup2(full.fileno(), log._file.fileno())
    with pytest.raises(RunError, match=r"metrics.jsonl: cannot be written: No space left on device"):
        log.write("train", {"step": 1})
    log.close()
