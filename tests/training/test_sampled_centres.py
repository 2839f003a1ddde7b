"""A step with sampled centres is a dense step on the sampled rows, and nothing at all on the others."""

import math
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from facebones.heads.margins import arcface
from facebones.heads.partial_fc import PartialFC
from facebones.heads.sampled_centres import lazy_zeros
from facebones.recipe import OptimizerConfig
from facebones.training.optimizer import build_optimizer, materialise_optimizer_state
from facebones.training.trainer import Trainer

CLASSES, SIZE, BATCH, RATE = 300, 8, 5, 0.1
OPTIMIZERS = {
    "sgd": OptimizerConfig(learning_rate=0.1, weight_decay=0.01),
    "sgd without momentum": OptimizerConfig(learning_rate=0.1, weight_decay=0.01, momentum=0.0),
    "adamw": OptimizerConfig(name="adamw", learning_rate=0.01, weight_decay=0.01),
}
every_optimizer = pytest.mark.parametrize("config", OPTIMIZERS.values(), ids=OPTIMIZERS)


def build(config, rate=RATE, classes=CLASSES):
    torch.manual_seed(0)
    head = PartialFC(classes, SIZE, partial(arcface, margin=0.3), sample_rate=rate)
    return head, build_optimizer(config, head)


def batch(seed, classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    embedding = functional.normalize(torch.randn(BATCH, SIZE, generator=generator))
    return embedding, torch.randint(classes, (BATCH,), generator=generator)


@pytest.fixture(params=[7, 2048], autouse=True)
def block_rows(request, monkeypatch):
    monkeypatch.setattr("facebones.heads.cosines.CPU_ROWS", request.param)
    return request.param


def tolerance(block_rows):
    """What a step may differ by: rounding only in one block, more where a product is cut into several.

    Some processors (AVX2) round the cut product differently: the last digit of a cosine, 6e-8, becomes 1e-4 in the
    gradient of a centre, by the scale of 64 and the centre's norm of 0.03.
    """
    return {"rtol": 1e-5, "atol": 1e-7} if block_rows >= CLASSES else {"rtol": 1e-3, "atol": 2e-4}


def step(head, optimizer, *batches):
    """One step; answers the indices that were drawn."""
    head.draw_sample(torch.cat([label for _, label in batches]))
    for embedding, label in batches:
        (head(embedding, label).loss / len(batches)).backward()
    drawn = None if head.sampled is None else head.sampled.index
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return drawn


def state_of(optimizer):
    """The tensors of the centres' state that have a row a class, and the others."""
    (state,) = optimizer.state_dict()["state"].values() or [{}]
    rows = {key: value.clone() for key, value in state.items() if value.ndim == 2}
    return rows, {key: value.clone() for key, value in state.items() if value.ndim != 2}


@every_optimizer
def test_rows_that_are_not_drawn_keep_value_and_state_bit_by_bit(config):
    head, optimizer = build(config)
    for seed in range(3):
        step(head, optimizer, batch(seed))
    before, (rows_before, _) = head.centres.clone(), state_of(optimizer)
    index = step(head, optimizer, batch(3))
    drawn = torch.zeros(CLASSES, dtype=torch.bool)
    drawn[index] = True
    assert drawn.sum() == RATE * CLASSES
    changed = (head.centres != before).any(1)
    assert torch.equal(changed, drawn)
    for key, rows in state_of(optimizer)[0].items():
        assert rows.shape == (CLASSES, SIZE)
        assert torch.equal((rows != rows_before[key]).any(1), drawn), key


@every_optimizer
def test_rows_that_are_drawn_take_the_step_of_a_dense_optimizer(config, block_rows):
    """The reference is torch's optimizer over a copy of the drawn rows alone, with their state."""
    head, optimizer = build(config)
    for seed in range(4):
        whole, (rows, others) = head.centres.clone(), state_of(optimizer)
        embedding, label = batch(seed)
        index = step(head, optimizer, (embedding, label))
        copy = torch.nn.Parameter(whole[index])
        reference = build_optimizer(config, torch.nn.ParameterList([copy]))
        if rows or others:
            reference.state[copy] = {key: value[index] for key, value in rows.items()} | others
        logits = functional.linear(functional.normalize(embedding), functional.normalize(copy))
        column = torch.searchsorted(index, label)
        functional.cross_entropy(arcface(logits.clamp(-1, 1), column, margin=0.3), column).backward()
        reference.step()
        torch.testing.assert_close(head.centres[index], copy.detach(), **tolerance(block_rows))
        for key, value in state_of(optimizer)[0].items():
            torch.testing.assert_close(value[index], reference.state[copy][key], **tolerance(block_rows))


@every_optimizer
def test_at_a_rate_of_nearly_one_all_is_as_at_one(config, block_rows):
    """Sampling itself changes nothing: with all rows drawn, steps equal those of the plain head.

    Bit by bit in one block; cut into blocks, one step within rounding, for each further step would amplify it.
    """
    sampled, plain = build(config, 0.9999), build(config, 1.0)
    whole = block_rows >= CLASSES
    for seed in range(4 if whole else 1):
        step(*sampled, batch(seed))
        step(*plain, batch(seed))
    # Adam's first step has the size of the rate, whatever the gradient's; the gradients stand in its state.
    pairs = [(sampled[0].centres, plain[0].centres)] if whole or config.name == "sgd" else []
    for found, expected in zip(state_of(sampled[1]), state_of(plain[1]), strict=True):
        assert found.keys() == expected.keys()
        pairs += [(found[key], expected[key]) for key in found]
    for found, expected in pairs:
        assert torch.equal(found, expected) or not whole
        torch.testing.assert_close(found, expected, **tolerance(block_rows))


def test_one_sample_serves_all_batches_of_a_step_and_holds_all_their_classes():
    head, optimizer = build(OPTIMIZERS["sgd"])
    before = head.centres.clone()
    batches = [batch(seed) for seed in range(4)]
    index = step(head, optimizer, *batches)
    labels = torch.cat([label for _, label in batches])
    assert torch.isin(labels, index).all()
    assert (head.centres != before).any(1).sum() == RATE * CLASSES


class Sizes(TorchDispatchMode):
    """Counts the bytes of each tensor that an operation of torch makes, and does not get."""

    def __init__(self):
        super().__init__()
        self.bytes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {storage._cdata for storage in storages((args, kwargs))}
        answer = function(*args, **(kwargs or {}))
        self.bytes += [storage.nbytes() for storage in storages(answer) if storage._cdata not in given]
        return answer


def storages(tree):
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@every_optimizer
@pytest.mark.parametrize("rate", [0.01, 1.0])
def test_no_tensor_of_a_step_is_of_the_size_of_the_centres(config, rate):
    """The largest is the byte a class of the draw; at a rate of 1, the same measure finds the gradient."""
    classes = 20_000
    head, optimizer = build(config, rate, classes)
    step(head, optimizer, batch(0, classes))  # makes the state
    with Sizes() as sizes:
        step(head, optimizer, batch(1, classes))
    whole = classes * SIZE * 4
    assert (max(sizes.bytes) <= classes) if rate < 1 else (max(sizes.bytes) >= whole)


def test_the_state_takes_memory_only_where_it_was_written():
    zeros = lazy_zeros(torch.empty(1000, SIZE))
    assert torch.equal(zeros, torch.zeros(1000, SIZE))
    zeros[7] = 1
    assert zeros.sum() == SIZE
    assert lazy_zeros(torch.empty(0, SIZE)).shape == (0, SIZE)
    assert lazy_zeros(torch.empty(3, dtype=torch.float64)).dtype == torch.float64


@every_optimizer
def test_a_filled_state_has_the_shapes_of_a_trained_one(config):
    head, optimizer = build(config)
    step(head, optimizer, batch(0))
    fresh_head, fresh = build(config)
    materialise_optimizer_state(fresh)
    shapes = [{key: value.shape for part in state_of(o) for key, value in part.items()} for o in (optimizer, fresh)]
    assert shapes[0] == shapes[1]
    assert torch.equal(fresh_head.centres, build(config)[0].centres)


@every_optimizer
def test_steps_go_on_from_a_loaded_state(config):
    head, optimizer = build(config)
    step(head, optimizer, batch(0))
    other, loaded = build(config)
    materialise_optimizer_state(loaded)
    other.load_state_dict(head.state_dict())
    loaded.load_state_dict(deepcopy(optimizer.state_dict()))
    loaded.param_groups[0]["lr"] = config.learning_rate
    for pair in ((head, optimizer), (other, loaded)):
        torch.manual_seed(5)
        step(*pair, batch(1))
    assert torch.equal(head.centres, other.centres)


def centres_and_state(trainer):
    index = next(i for i, p in enumerate(trainer.optimizer.param_groups[0]["params"]) if p is trainer.head.sampled.leaf)
    state = trainer.optimizer.state_dict()["state"].get(index, {})
    return [trainer.head.centres.clone(), *(value.clone() for value in state.values())]


def test_a_step_that_the_scaler_skips_leaves_centres_and_state(tiny_recipe):
    options = {"training.precision": "fp16", "head.sample_rate": 0.3, "optimizer.name": "adamw", "head.scale": 8}
    trainer = Trainer(tiny_recipe(**options), torch.device("cpu"))
    steps = trainer.step_batches()
    while trainer.step == trainer.skipped_steps:  # the first scales are too much for float16
        trainer.train_step(next(steps))
        trainer.read_back_metrics()
    before, skipped = centres_and_state(trainer), trainer.skipped_steps
    assert len(before) == 4
    trainer.backbone.linear.weight.register_hook(lambda gradient: gradient * math.inf)
    trainer.train_step(next(steps))
    trainer.read_back_metrics()
    assert trainer.skipped_steps == skipped + 1
    assert all(map(torch.equal, before, centres_and_state(trainer)))


def test_the_rows_count_in_the_norm_and_are_clipped(tiny_recipe):
    options = {"head.sample_rate": 0.3, "training.batch_size": 2, "training.accumulation_steps": 2}
    norms, seen = [], []
    for clip_norm in (0.0, 0.5):
        trainer = Trainer(tiny_recipe(**options, **{"training.clip_norm": clip_norm}), torch.device("cpu"))

        def look(optimizer, *_):
            seen.append([p.grad.clone() for p in optimizer.param_groups[0]["params"] if p.grad is not None])

        handle = trainer.optimizer.register_step_pre_hook(look)
        # Before the rows' own, which takes their gradient.
        trainer.optimizer._optimizer_step_pre_hooks.move_to_end(handle.id, last=False)
        trainer.train_step(next(trainer.step_batches()))
        trainer.read_back_metrics()
        norms.append(trainer.latest["gradient_norm"])
    total = torch.nn.utils.get_total_norm(seen[0]).item()
    without_rows = torch.nn.utils.get_total_norm(seen[0][:-1]).item()
    assert norms[0] == norms[1] == pytest.approx(total) and total > 1.001 * without_rows
    torch.testing.assert_close(seen[1][-1], seen[0][-1] * 0.5 / total, rtol=1e-4, atol=1e-8)


@every_optimizer
def test_what_fills_the_state_has_the_strides_of_the_state(config, monkeypatch):
    """CUDA's fused steps refuse tensors of which one is laid out otherwise, also where they are empty."""
    seen = []
    for name in ("_fused_sgd_", "_fused_adamw_"):
        real = getattr(torch, name)

        def spy(*lists, real=real, **others):
            seen.extend(zip(*(each for each in lists[:3] if each), strict=True))
            return real(*lists, **others)

        monkeypatch.setattr(torch, name, spy)
    materialise_optimizer_state(build(config)[1])
    assert seen and all(len({tensor.stride() for tensor in tensors}) == 1 for tensors in seen)
