"""States of several processes, and threads that stand for the processes."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from facebones.system import process_group
from facebones.system.distributed import World
from facebones.system.sharded_checkpoint import Rows

SIZES = [1, 2, 3, 4, 5]


def on_each(size, work, canonical=0):
    """Call `work(world)` for each process of a world, each in a thread; returns the results."""
    return Processes(size, canonical).run(work)


class Processes:
    """Threads that stand for processes; what they tell each other passes through a list."""

    def __init__(self, size, canonical=0):
        self.size, self.canonical = size, canonical
        self.barrier = threading.Barrier(size, timeout=20)
        self.told = [None] * size

    def run(self, work):
        worlds = [World(rank=rank, size=self.size, canonical=self.canonical) for rank in range(self.size)]
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(self.size) as pool:
            patch.setattr(process_group, "gather_objects", self.gather)
            return [future.result() for future in [pool.submit(work, world) for world in worlds]]

    def gather(self, world, value):
        self.told[world.rank] = value
        self.barrier.wait()
        found = list(self.told)
        self.barrier.wait()
        return found


def whole_state(classes, step=3):
    """What one process alone would save, with all that makes a state hard to keep."""
    generator = torch.Generator().manual_seed(classes + step)
    centres, momentum, square = (torch.randn(classes, 6, generator=generator) for _ in range(3))
    return {
        "recipe": {
            "training": {"path": "caf\u00e9 \udcff", "rate": 0.1, "none": None, "flag": True},
            "$odd": [],
            "é": "",
        },
        "backbone": {
            "a.b": torch.randn(3, 2, 3, 3, generator=generator).to(memory_format=torch.channels_last),
            "half": torch.randn(5, generator=generator).bfloat16(),
            "count": torch.tensor(7),
            "empty": torch.zeros(0, 4),
            "flags": torch.tensor([True, False, True]),
            "strided": torch.arange(12.0).view(3, 4).T,
        },
        "a": {"b": torch.ones(1), "c.d": torch.ones(2)},
        "a.b": torch.full((1,), 2.0),
        "head": {"weight": centres, "nested": [momentum.double()]},
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0)}, 1: {"exp_avg": momentum, "exp_avg_sq": square}, "1": {}},
            "param_groups": [{"betas": (0.9, 0.999), "params": [0, 1], "lr": 1e-300}],
        },
        "step": step,
        "numbers": [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan, 2**80, -1],
        "rng": {"cpu": torch.get_rng_state()},
    }


SPREAD = (
    ("head", "weight"),
    ("head", "nested", 0),
    ("optimizer", "state", 1, "exp_avg"),
    ("optimizer", "state", 1, "exp_avg_sq"),
)


def shared_state(whole, world):
    """What one of several processes holds of a state."""
    return cut(whole, world, ())


def cut(value, world, place):
    if isinstance(value, dict):
        return {key: cut(inner, world, (*place, key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(cut(inner, world, (*place, number)) for number, inner in enumerate(value))
    if place not in SPREAD:
        return value
    ranges = world.class_ranges(len(value))
    return Rows([value[rows.start : rows.stop].clone() for rows in ranges], ranges[0].start, len(value))


def blank(value):
    """A state of the same structure with other numbers."""
    if isinstance(value, dict):
        return {key: blank(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(blank, value))
    if isinstance(value, Rows):
        return Rows([torch.full_like(block, 99) for block in value.blocks], value.start, value.total)
    return torch.zeros_like(value) if isinstance(value, Tensor) else value


def assert_same(found, expected, place="state"):
    """To the bit, with the same types, order of keys, and strides."""
    assert type(found) is type(expected), place
    if isinstance(expected, dict):
        assert [*map(repr, found)] == [*map(repr, expected)], place
        for key in expected:
            assert_same(found[key], expected[key], f"{place}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), place
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{place}.{number}")
    elif isinstance(expected, Rows):
        assert (found.start, found.total) == (expected.start, expected.total), place
        assert_same(list(found.blocks), list(expected.blocks), place)
    elif isinstance(expected, Tensor):
        assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride()), place
        assert torch.equal(found, expected), place
    elif isinstance(expected, float):
        assert found.hex() == expected.hex(), place
    else:
        assert found == expected, place


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
