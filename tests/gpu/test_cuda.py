"""What only a GPU can show; `make gpu` runs these tests.

Without one they are skipped, and pytest says how many. FACEBONES_GPU_TESTS_ON=cpu runs them on the CPU, to try the
tests themselves.
"""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from contextlib import closing
from itertools import islice

import numpy as np
import pytest
import torch
from torch.nn import functional

from facebones.data.folders import open_training_set
from facebones.data.loader import EpochOrder, training_batches
from facebones.errors import FaceBonesError
from facebones.evaluation.models import Model
from facebones.heads.margins import arcface
from facebones.heads.partial_fc import PartialFC
from facebones.recipe import OptimizerConfig
from facebones.run_folder import RunFolder
from facebones.system.checkpoint import load_checkpoint, save_checkpoint
from facebones.system.device import device_settings
from facebones.system.processes import Interrupted
from facebones.training.optimizer import build_optimizer, materialise_optimizer_state
from facebones.training.run import resume, train
from facebones.training.trainer import Trainer

DEVICE = torch.device(os.environ.get("FACEBONES_GPU_TESTS_ON", "cuda"))
IS_CUDA = DEVICE.type == "cuda"
pytestmark = pytest.mark.gpu
only_cuda = pytest.mark.skipif(not IS_CUDA, reason="asks CUDA itself")
needs_triton = pytest.mark.skipif(
    IS_CUDA and importlib.util.find_spec("triton") is None, reason="torch.compile needs triton on a GPU"
)
# Of matrix products: the same bits each time.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(scope="session", autouse=True)
def gpu():
    """Skip all tests; `tests/conftest.py` says how many there are."""
    if IS_CUDA and not torch.cuda.is_available():
        pytest.skip("needs a GPU with CUDA; `make gpu` runs these tests")


PLAIN = {"backbone.dropout": 0.0, "head.sample_rate": 1.0}  # nothing is drawn on the device


def trained(recipe, steps, device=DEVICE):
    """A trainer after its first steps, and its weights before them."""
    with device_settings(device):
        trainer = Trainer(recipe, device)
        before = weights(trainer)
        take(trainer, steps)
    return trainer, before


def take(trainer, steps):
    with device_settings(trainer.device), closing(trainer.step_batches()) as batches:
        for batch in islice(batches, steps):
            trainer.train_step(batch)
        trainer.read_back_metrics()


def weights(trainer):
    """All weights, on the CPU."""
    state = {**trainer.backbone.state_dict(), **trainer.head.state_dict(prefix="head.")}
    return {name: value.cpu().clone() for name, value in state.items()}


def change(trainer, before):
    """What the steps changed in everything that is learned, as one vector."""
    names = [name for name, _ in trainer.backbone.named_parameters()] + ["head.centres"]
    after = weights(trainer)
    return torch.cat([(after[name] - before[name]).flatten() for name in names])


def assert_same_step(found, expected, before):
    """The same loss and the same step, to rounding of fp32."""
    assert found.meter.loss == pytest.approx(expected.meter.loss, rel=1e-4)
    one, other = change(found, before), change(expected, before)
    assert other.norm() > 0 and (one - other).norm() < 1e-3 * other.norm()


def test_a_step_is_that_of_the_cpu(tiny_recipe):
    recipe = tiny_recipe(**PLAIN)
    expected, before = trained(recipe, 1, torch.device("cpu"))
    assert_same_step(trained(recipe, 1)[0], expected, before)


def test_the_layout_changes_no_more_than_rounding(tiny_recipe):
    expected, before = trained(tiny_recipe(**PLAIN, **{"training.channels_last": False}), 1)
    assert_same_step(trained(tiny_recipe(**PLAIN), 1)[0], expected, before)


def assert_similar_step(found, expected, before):
    """A loss and a step that differ as bf16 does from fp32."""
    assert found.meter.loss == pytest.approx(expected.meter.loss, rel=2e-2)
    assert functional.cosine_similarity(change(found, before), change(expected, before), dim=0) > 0.9


def test_bf16_steps_where_fp32_does(tiny_recipe):
    expected, before = trained(tiny_recipe(**PLAIN), 1)
    assert_similar_step(trained(tiny_recipe(**PLAIN, **{"training.precision": "bf16"}), 1)[0], expected, before)


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_fp16_skips_a_step_that_overflows_and_then_learns(tiny_recipe, rate):
    fields = {"training.precision": "fp16", "training.growth_interval": 2, "head.sample_rate": rate}
    trainer, before = trained(tiny_recipe(**PLAIN | fields), 0)
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 2.0**100})
    take(trainer, 1)
    learned = {name for name, _ in trainer.backbone.named_parameters()} | {"head.centres"}
    after = weights(trainer)
    assert all(torch.equal(after[name], before[name]) for name in learned)
    assert (trainer.skipped_steps, trainer.scaler.get_scale()) == (1, 2.0**99)
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 64.0, "_growth_tracker": 0})
    take(trainer, 4)
    assert (trainer.skipped_steps, trainer.scaler.get_scale()) == (1, 256.0)
    assert np.isfinite(trainer.meter.loss) and not torch.equal(weights(trainer)["head.centres"], before["head.centres"])


@only_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("clip", [0.0, 5.0])
def test_the_host_does_not_wait_in_a_step(tiny_recipe, precision, clip):
    fields = {"head.sample_rate": 1.0, "training.precision": precision, "training.clip_norm": clip}
    trainer, _ = trained(tiny_recipe(**fields), 2)
    with device_settings(DEVICE), closing(trainer.step_batches()) as batches:
        batch = next(batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.train_step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    trainer.read_back_metrics()


OPTIMIZERS = {
    "sgd": OptimizerConfig(learning_rate=0.1, weight_decay=0.01),
    "adamw": OptimizerConfig(name="adamw", learning_rate=0.01, weight_decay=0.01),
}


def sampled_steps(config, device, rate=0.1, classes=300, size=8, batch=5):
    """A head with its optimizer, and a step on drawn embeddings, whose sample is drawn on the CPU."""
    torch.manual_seed(0)
    head = PartialFC(classes, size, arcface, sample_rate=rate).to(device)
    optimizer = build_optimizer(config, head)
    materialise_optimizer_state(optimizer)

    def step(seed):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate
        generator = torch.Generator().manual_seed(seed)
        embedding = functional.normalize(torch.randn(batch, size, generator=generator)).to(device)
        label = torch.randint(classes, (batch,), generator=generator)
        index = torch.cat([label, torch.randint(classes, (25,), generator=generator)]).unique()
        head.sampled.draw(index.to(device))
        loss = head(embedding, label.to(device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item(), index

    return head, optimizer, step


def rows_of(head, optimizer):
    """The centres, and what the optimizer keeps for each, on the CPU."""
    (state,) = optimizer.state_dict()["state"].values()
    return {"centres": head.centres, **{key: value for key, value in state.items() if value.ndim == 2}}


@pytest.mark.parametrize("config", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_sampled_centres_step_as_on_the_cpu_and_leave_the_others_alone(config):
    sides = [sampled_steps(config, device) for device in (DEVICE, torch.device("cpu"))]
    for seed in range(4):
        before = {key: value.detach().cpu().clone() for key, value in rows_of(*sides[0][:2]).items()}
        (found, index), (expected, _) = (step(seed) for _, _, step in sides)
        assert found == pytest.approx(expected, rel=1e-3)
        others = torch.ones(300, dtype=torch.bool).index_fill(0, index, False)
        after = {key: value.detach().cpu() for key, value in rows_of(*sides[0][:2]).items()}
        assert all(torch.equal(after[key][others], before[key][others]) for key in before)
        assert not torch.equal(after["centres"][index], before["centres"][index])
    torch.testing.assert_close(sides[0][0].centres.detach().cpu(), sides[1][0].centres.detach(), rtol=1e-2, atol=1e-3)


def test_a_sample_is_drawn_on_the_device(tiny_recipe):
    trainer, before = trained(tiny_recipe(**PLAIN | {"head.sample_rate": 0.3}), 3)
    assert np.isfinite(trainer.meter.loss) and not torch.equal(weights(trainer)["head.centres"], before["head.centres"])


@only_cuda
def test_a_sampled_head_takes_a_part_of_the_memory():
    def extra(rate):
        head = PartialFC(200_000, 512, arcface, sample_rate=rate).to(DEVICE)
        optimizer = build_optimizer(OptimizerConfig(), head)
        embedding = functional.normalize(torch.randn(64, 512, device=DEVICE)).requires_grad_()
        label = torch.arange(64, device=DEVICE)
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats(DEVICE)
            before = torch.cuda.memory_allocated(DEVICE)
            head.draw_sample(label)
            head(embedding, label).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return torch.cuda.max_memory_allocated(DEVICE) - before

    assert extra(0.1) < 0.4 * extra(1.0)


def stopped_after(monkeypatch, steps):
    """Send SIGTERM to this process in the given step."""
    original = Trainer.train_step

    def step(self, batches):
        original(self, batches)
        if self.step == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "train_step", step)


def run_in_parts(recipe, folder, monkeypatch, devices):
    """Train on each device in turn, with a stop on all but the last."""
    for number, device in enumerate(devices):
        last = number == len(devices) - 1
        if not last:
            stopped_after(monkeypatch, 5 * number + 4)
        with contextlib.nullcontext() if last else pytest.raises(Interrupted):
            train(recipe, folder, str(device)) if number == 0 else resume(folder, str(device))
        monkeypatch.undo()


def last_weights(folder):
    state = load_checkpoint(RunFolder(folder).last)
    return {**state["backbone"], **{f"head.{name}": value for name, value in state["head"].items()}}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_run_ends_as_the_whole_one(tmp_path, tiny_recipe, monkeypatch, precision):
    """To the bit, if two undisturbed runs agree to the bit on this device; else to rounding."""
    recipe = tiny_recipe(**{"training.precision": precision})
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        train(recipe, tmp_path / "whole", str(DEVICE))
        train(recipe, tmp_path / "again", str(DEVICE))
        run_in_parts(recipe, tmp_path / "parts", monkeypatch, [DEVICE] * 3)
    finally:
        torch.use_deterministic_algorithms(False)
    whole, again, parts = (last_weights(tmp_path / name) for name in ("whole", "again", "parts"))
    exact = all(torch.equal(whole[name], again[name]) for name in whole)
    for name, value in whole.items():
        tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 5e-2, "atol": 5e-2}
        torch.testing.assert_close(parts[name], value, **tolerance)


def test_a_checkpoint_holds_the_whole_state(tmp_path, tiny_recipe):
    recipe = tiny_recipe(**{"training.precision": "fp16", "head.sample_rate": 0.3})
    trainer, _ = trained(recipe, 3)
    save_checkpoint(tmp_path / "last.pt", trainer.state_dict(0))
    other = Trainer(recipe, DEVICE)
    other.load_state_dict(load_checkpoint(tmp_path / "last.pt"), tmp_path / "last.pt")
    assert_equal(other.state_dict(0), trainer.state_dict(0))


def assert_equal(found, expected, where="state"):
    """The same nested values, tensors to the bit and on the same device."""
    if isinstance(expected, torch.Tensor):
        assert found.device == expected.device and torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_equal(found[key], expected[key], f"{where}.{key}")
    else:
        assert repr(found) == repr(expected), where


def test_a_run_moves_between_devices(tmp_path, tiny_recipe, monkeypatch):
    run_in_parts(tiny_recipe(), tmp_path / "run", monkeypatch, [DEVICE, "cpu", DEVICE])
    assert load_checkpoint(RunFolder(tmp_path / "run").last)["step"] == 28
    assert RunFolder(tmp_path / "run").result.is_file()


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("bf16", 0.99), ("fp16", 0.999)])
def test_embeddings_are_those_of_the_cpu(scaled_backbone, precision, least):
    images = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), dtype=np.uint8)
    network = scaled_backbone("shufflefacenet_0_5")
    expected = Model(network=network, device=torch.device("cpu"))(images, flip=True)
    model = Model(network=network.to(DEVICE), device=DEVICE, precision=precision, channels_last=True)
    found = model(images, flip=True)
    cosines = functional.cosine_similarity(torch.from_numpy(found), torch.from_numpy(expected), dim=2)
    assert found.shape == expected.shape and cosines.min() > least


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_pinned_memory(small_data, workers):
    data = open_training_set(small_data)
    order = EpochOrder(data, batch_size=4, batches_per_epoch=7, first=0, last=21, seed=0)
    expected = list(training_batches(order, workers=0))
    with closing(training_batches(order, workers=workers, pin_memory=IS_CUDA)) as batches:
        found = list(batches)
    assert len(found) == len(expected) == 21
    for pair, plain in zip(found, expected, strict=True):
        assert all(torch.equal(*both) for both in zip(pair, plain, strict=True))
        assert all(tensor.is_pinned() for tensor in pair) or not IS_CUDA


@only_cuda
def test_a_device_that_is_not_there_is_refused(tmp_path, tiny_recipe):
    with pytest.raises(FaceBonesError, match="no such device"):
        train(tiny_recipe(), tmp_path / "run", f"cuda:{torch.cuda.device_count()}")


PROCESS_GROUP = """
import sys, torch
from datetime import timedelta
from torch import distributed, nn
device, store = torch.device(sys.argv[1]), sys.argv[2]
backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
distributed.init_process_group(backend, f"file://{store}", rank=0, world_size=1, timeout=timedelta(seconds=60))
torch.manual_seed(0)
network = nn.Linear(4, 3).to(device)
wrapped = nn.parallel.DistributedDataParallel(network)
x = torch.arange(8.0, device=device).reshape(2, 4)
(expected,) = torch.autograd.grad(network(x).square().sum(), network.weight)
wrapped(x).square().sum().backward()
torch.testing.assert_close(network.weight.grad, expected)
for kind in (torch.float32, torch.bfloat16, torch.int64):
    total = torch.full((6,), 2, dtype=kind, device=device)
    gathered, exchanged = torch.empty_like(total), torch.empty_like(total)
    distributed.all_reduce(total, distributed.ReduceOp.MAX)
    distributed.all_gather_into_tensor(gathered, total)
    distributed.all_to_all_single(exchanged, total, [6], [6])
    assert gathered.tolist() == exchanged.tolist() == [2] * 6
work = distributed.all_reduce(total, group=distributed.new_group(), async_op=True)
work.wait()
objects = [None]
distributed.all_gather_object(objects, {"a": 1})
assert total.tolist() == [2] * 6 and objects == [{"a": 1}]
distributed.barrier()
distributed.destroy_process_group()
print("done")
"""


def test_nccl_with_one_process(tmp_path):
    words = [sys.executable, "-c", PROCESS_GROUP, str(DEVICE), str(tmp_path / "store")]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "done", done.stderr


# Last, because they take longest.
@needs_triton
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_steps(tiny_recipe, precision):
    expected, before = trained(tiny_recipe(**PLAIN), 1)
    fields = {"training.precision": precision, "training.compile": True}
    found = trained(tiny_recipe(**PLAIN, **fields), 1)[0]
    (assert_same_step if precision == "fp32" else assert_similar_step)(found, expected, before)
