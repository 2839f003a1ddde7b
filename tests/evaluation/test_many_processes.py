"""Passes that several processes share: the same bits as one process, errors in all of them, and resuming."""

import json
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from facebones.backbones import create_backbone
from facebones.data.image_sources import EncodedImages
from facebones.data.pair_bins import read_pairs, write_pairs
from facebones.errors import ConfigError
from facebones.evaluation import feature_store, many_processes
from facebones.evaluation.embed import embed
from facebones.evaluation.models import Model
from facebones.recipe import Recipe
from facebones.system import apart
from facebones.system.processes import CAN_FORK
from facebones.training.validation import Validation

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="no fork here")

CPU = torch.device("cpu")
SIZE, IMAGES, BATCH = 16, 59, 4
SECONDS = 60


def png(pixels):
    return cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()


@pytest.fixture(scope="module")
def source():
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    images = [png(image) for image in pixels]
    return EncodedImages("made-up", [*images, *images[:7]])


class Small(nn.Module):
    """Its last digits depend on the number of images in a batch."""

    def __init__(self, seed=0, width=5):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.Parameter(torch.randn(3 * SIZE * SIZE, width, generator=generator))

    def forward(self, x):
        return x.flatten(1) @ self.weights + len(x) * 1e-3


class Stops(Small):
    """Does something after `after[RANK]` batches, in the processes with these numbers; a batch is two passes."""

    def __init__(self, after, do, seed=0):
        super().__init__(seed)
        self.after, self.do, self.passes = after, do, 0

    def forward(self, x):
        if len(x) > 1:  # else it computes the shape
            if self.passes == 2 * self.after.get(int(os.environ.get("RANK", "0")), -1):
                self.do()
            self.passes += 1
        return super().forward(x)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    raise KeyboardInterrupt


def model(seed=0, network=None):
    return Model(network=network or Small(seed), device=CPU, weights_sha256=f"weights {seed}")


def run(models, source, folder=None, **options):
    return embed(models, source, **{"batch_size": BATCH, "workers": 1, "image_size": SIZE, "folder": folder, **options})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("size", "batch_size"), [(2, 4), (3, 4), (3, 40)])  # of 40: more processes than batches
@pytest.mark.parametrize("on_disk", [False, True])
def test_features_are_those_of_one_process_to_the_bit(
    in_group, source, tmp_path, monkeypatch, size, batch_size, on_disk
):
    monkeypatch.setattr(many_processes, "PIECE_BYTES", 64)
    models = {"a": model(1), "b": model(2, Small(2, width=7))}
    folder = tmp_path / "many" if on_disk else None

    def work(world):
        found = run(models, source, folder, batch_size=batch_size, world=world)
        return {name: np.array(rows) for name, rows in found.items()}

    first, *others = in_group(work, size)
    alone = run(models, source, tmp_path / "alone" if on_disk else None, batch_size=batch_size)
    assert others == [{}] * (size - 1)
    assert list(first) == ["a", "b"]
    assert all(np.array_equal(first[name], alone[name]) for name in models)
    if on_disk:
        assert contents(tmp_path / "many") == contents(tmp_path / "alone")


@pytest.fixture
def quick(monkeypatch):
    """Processes that record each batch, and find out within a second that another is lost."""
    monkeypatch.setattr(feature_store, "SYNC_SECONDS", 0.0)
    monkeypatch.setattr(apart, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(apart, "SILENT_SECONDS", 1.0)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_broken_image_ends_all_processes_with_its_line(in_group, source, tmp_path, on_disk):
    images = [*source.images]
    images[40] = b"broken"
    broken = EncodedImages("made-up", images)

    def work(world):
        run({"a": model(1)}, broken, tmp_path if on_disk else None, world=world)

    first, second, third = in_group(work, 3)
    assert first == third
    assert first.startswith("DataError: process 1: made-up: image 40: no readable image (6 bytes); ")
    assert second == first.replace("process 1: ", "")


@pytest.mark.usefixtures("quick")
def test_a_failing_model_ends_all_processes(in_group, source):
    def fail():
        raise RuntimeError("no memory\nand more")

    def work(world):
        run({"a": model(1, Stops({1: 2}, fail))}, source, world=world)

    assert in_group(work, 2) == ["CheckpointError: process 1: a: no memory", "CheckpointError: a: no memory"]


@pytest.mark.usefixtures("quick")
def test_killed_passes_resume_on_any_number_of_processes(in_group, source, tmp_path, monkeypatch):
    folder = tmp_path / "killed"

    def kill_all():
        """Process 0 ends last: the others ask it how the group is."""
        (tmp_path / f"ended {os.environ['RANK']}").touch()
        while os.environ["RANK"] == "0" and len(list(tmp_path.glob("ended *"))) < 4:
            time.sleep(0.05)
        kill()

    def work(after, do):
        def embed_part(world):
            network = Stops(after, do, 1)
            run({"a": model(1, network)}, source, folder, world=world)
            return network.passes // 2

        return embed_part

    def record():
        return json.loads((folder / "a.features.json").read_text())

    # 17 batches; the parts have 5, 4, 4 and 4 of them.
    with monkeypatch.context() as patient:
        patient.setattr(apart, "SILENT_SECONDS", SECONDS)
        assert in_group(work({0: 2, 1: 1, 2: 3, 3: 0}, kill_all), 4) == [-signal.SIGKILL] * 4
    with pytest.raises(KeyboardInterrupt):
        run({"a": model(1, Stops({0: 3}, interrupt, 1))}, source, folder)
    # Batches 0 and 1, 5, 9 to 11 of the group; then 2 to 4.
    assert (record()["complete"], record()["done"]) == (6 * BATCH, [[9 * BATCH, 12 * BATCH]])
    assert set(contents(folder)) == {"a.features.npy", "a.features.json"}
    first, second, third = in_group(work({2: 1}, kill), 3)  # 8 are left: 3, 3 and 2
    assert third == -signal.SIGKILL
    for rank, line in enumerate((first, second)):
        where = f"LostProcessError: process {rank} of 3: process 2 ({socket.gethostname()}, id "
        assert line.startswith(where) and line.endswith(") ended or does not answer")
    assert in_group(work({}, kill), 2) == [1, 0]
    run({"a": model(1)}, source, tmp_path / "alone")
    assert contents(folder) == contents(tmp_path / "alone")


@pytest.mark.usefixtures("quick")
def test_strangers_are_kept_out_while_one_process_of_a_group_writes(in_group, source, tmp_path):
    def intrude():
        os.environ["RANK"] = "9"
        run({"a": model(1)}, source, tmp_path)

    def work(world):
        run({"a": model(1, Stops({1: 1}, intrude))}, source, tmp_path, world=world)

    first, second = in_group(work, 2)
    assert second.startswith(f"ConfigError: {tmp_path}/a.features.npy: another process is writing it; wait")
    assert first == second.replace("ConfigError: ", "ConfigError: process 1: ")


DAMAGES = {
    "within a batch": ([[1, 8]], "promises images that are no whole batches"),
    "beyond the end": ([[4, 400]], "promises images that are no whole batches"),
    "backwards": ([[8, 4]], "promises images that are no whole batches"),
    "no pairs": ([[0, 4, 8]], "promises images that are no whole batches"),
    "no numbers": ([[True, 4]], "promises images that are no whole batches"),
    "a number": (7, "promises images that are no whole batches"),
}


@pytest.mark.parametrize(("done", "message"), DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("where", ["a.features.json", "a.features.3.json"])
def test_damaged_records_of_parts_are_refused(source, tmp_path, where, done, message):
    with pytest.raises(KeyboardInterrupt):
        run({"a": model(1, Stops({0: 3}, interrupt, 1))}, source, tmp_path)
    record = json.loads((tmp_path / "a.features.json").read_text()) | {"pass": "one"}
    (tmp_path / "a.features.json").write_text(json.dumps(record))
    damaged = record | {"done": done} if where == "a.features.json" else {"pass": "one", "done": done}
    (tmp_path / where).write_text(json.dumps(damaged))
    with pytest.raises(ConfigError, match=rf"a\.features\.npy: {where} {message}; remove it"):
        run({"a": model(1)}, source, tmp_path)


def test_parts_of_an_earlier_file_do_not_count(source, tmp_path):
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        run({"a": model(1, Stops({0: 3}, interrupt, 1))}, source, stopped)
    record = json.loads((stopped / "a.features.json").read_text())
    (stopped / "a.features.json").write_text(json.dumps(record | {"pass": "one"}))
    (stopped / "a.features.0.json").write_text(json.dumps({"pass": "another", "done": [[12, 60]]}))
    run({"a": model(1)}, source, stopped)
    run({"a": model(1)}, source, tmp_path / "alone")
    assert contents(stopped) == contents(tmp_path / "alone")


# ----------------------------------------------------------------------------------------------------------- memory


class Made:
    """Any number of images that take no memory."""

    name = "made"

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return self.images

    def read(self, index, size):
        return np.full((size, size, 3), index % 251, np.uint8)

    def fingerprint(self):
        return str(self.images)


@pytest.mark.parametrize("many", [50_000, pytest.param(500_000, marks=pytest.mark.slow)])
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux says what the most memory was")
def test_with_a_folder_the_memory_of_each_process_does_not_grow_with_the_images(in_group, tmp_path, many):
    def work(world):
        model_of_set, peaks = model(1, Small(1, width=128)), []
        for images in (5_000, many):  # a kilobyte of features each
            Path("/proc/self/clear_refs").write_text("5")  # forget the most memory until now
            run({"a": model_of_set}, Made(images), tmp_path / str(images), batch_size=500, world=world)
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            peaks.append(int(status["VmHWM"].split()[0]) / 1024)
        return peaks

    peaks = in_group(work, 2)
    assert all(large - small < 10 for small, large in peaks), peaks


# ---------------------------------------------------------------------------------------------------- validation


def validation_of(path):
    recipe = Recipe()
    return Validation(replace(recipe, validation=replace(recipe.validation, sets=["few"], batch_size=8)), path.parent)


def test_a_validation_gives_the_rows_of_one_process_in_every_process(in_group, pair_file, tiny_backbone):
    torch.manual_seed(0)
    validation, network = validation_of(pair_file), create_backbone(tiny_backbone, 16)

    def work(world):
        validation.try_out(network, CPU, world)
        return validation.measure(network, CPU, world)

    alone = validation.measure(network, CPU)
    assert in_group(work, 3) == [alone] * 3


def test_a_broken_image_of_a_validation_set_ends_all_processes(in_group, pair_file, tiny_backbone, tmp_path):
    pairs = read_pairs(pair_file)
    write_pairs(tmp_path / "few.bin", [*pairs.images[:30], b"broken", *pairs.images[31:]], pairs.is_same)
    validation, network = validation_of(tmp_path / "few.bin"), create_backbone(tiny_backbone, 16)
    first, second = in_group(lambda world: validation.try_out(network, CPU, world), 2)
    assert first.startswith("DataError: process 1: few: image 30: no readable image (6 bytes); ")
    assert second == first.replace("process 1: ", "")


def test_other_validation_sets_than_those_of_process_0_are_refused(in_group, pair_file, tiny_backbone, tmp_path):
    pairs = read_pairs(pair_file)
    write_pairs(tmp_path / "few.bin", pairs.images[::-1], pairs.is_same)
    sets, network = [validation_of(pair_file), validation_of(tmp_path / "few.bin")], create_backbone(tiny_backbone, 16)
    found = in_group(lambda world: sets[world.rank].try_out(network, CPU, world), 2)
    line = (
        "DataError: validation.sets: few of process 1 differs from that of process 0; give all machines the same files"
    )
    assert found == [line] * 2
