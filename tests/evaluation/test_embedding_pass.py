"""Many models in one pass, features on disk that survive a stop, and sources of images."""

import errno
import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from facebones.data.image_sources import EncodedImages, LooseCrops, read_batches
from facebones.data.images import decode
from facebones.data.preprocessing import REFERENCE, Preprocessing, align_face
from facebones.errors import ConfigError, DataError, RunError
from facebones.evaluation import feature_store
from facebones.evaluation.embed import ImageEmbeddings, embed, flip_sum_normalised, mean_norm
from facebones.evaluation.models import Model, load_model

CPU = torch.device("cpu")
SIZE, IMAGES = 16, 22


def png(pixels):
    return cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()


@pytest.fixture(scope="module")
def source():
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    return EncodedImages("made-up", [png(image) for image in pixels])


class Linear(nn.Module):
    def __init__(self, seed=0, width=5):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.Parameter(torch.randn(3 * SIZE * SIZE, width, generator=generator))

    def forward(self, x):
        return x.flatten(1) @ self.weights


def model(seed=0, network=None, **options):
    options = {"weights_sha256": f"weights {seed}", **options}
    return Model(network=network or Linear(seed), device=CPU, **options)


def run(models, source, folder=None, **options):
    return embed(models, source, **{"batch_size": 4, "workers": 2, "image_size": SIZE, "folder": folder, **options})


class Counted:
    """Counts the reads of another source."""

    def __init__(self, source):
        self.source, self.reads = source, Counter()
        self.name, self.fingerprint = source.name, source.fingerprint

    def __len__(self):
        return len(self.source)

    def read(self, index, size):
        self.reads[index] += 1
        return self.source.read(index, size)


class Stops(Linear):
    """Fails at the n-th batch; a batch is two forward passes, one of them for the mirror images."""

    def __init__(self, batch, stop, seed=0):
        super().__init__(seed)
        self.left, self.stop = 2 * batch, stop

    def forward(self, x):
        if not self.left:
            self.stop()
        self.left -= 1
        return super().forward(x)


def fail():
    raise KeyboardInterrupt


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work):
    """Do work in a child process; answer how it ended, in the way of `os.waitstatus_to_exitcode`."""
    time.sleep(0.1)  # threads that read images hold a lock of OpenCV while they end; a child would wait for it for ever
    child = os.fork()
    if not child:
        signal.alarm(120)
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def complete(folder, name):
    return json.loads((folder / f"{name}.features.json").read_text())["complete"]


def by_hand(network, source, flip=True):
    pixels = np.stack([decode(image, "image") for image in source.images])
    views = (pixels, pixels[:, :, ::-1]) if flip else (pixels,)
    with torch.inference_mode():
        x = [torch.from_numpy(view.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1 for view in views]
        return np.stack([network(view).numpy() for view in x], axis=1)


@pytest.mark.parametrize("batch_size", [4, 11, 100])
@pytest.mark.parametrize("on_disk", [False, True])
def test_many_models_share_one_reading(source, tmp_path, on_disk, batch_size):
    models, counted = {"a": model(1), "b": model(2, Linear(2, width=7))}, Counted(source)
    found = run(models, counted, tmp_path / "new" if on_disk else None, batch_size=batch_size)
    assert counted.reads == dict.fromkeys(range(IMAGES), 1)
    assert list(found) == ["a", "b"]
    for name, features in found.items():
        assert features.dtype == np.float32
        assert isinstance(features, np.memmap) == on_disk
        np.testing.assert_allclose(features, by_hand(models[name].network, source), atol=1e-3)
    if on_disk:
        assert {path.name for path in (tmp_path / "new").iterdir()} == {
            f"{name}.features.{ending}" for name in "ab" for ending in ("npy", "json")
        }
        in_memory = run(models, source, batch_size=batch_size)
        assert all(np.array_equal(found[name], in_memory[name]) for name in models)
        assert not found["a"].flags.writeable


def test_without_flip_there_is_one_view(source):
    calls = []

    class Noted(Linear):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    features = run({"a": model(network=Noted())}, source, flip=False)["a"]
    assert calls == [4] * 5 + [2]
    assert features.shape == (IMAGES, 1, 5)
    np.testing.assert_allclose(features, by_hand(Linear(), source, flip=False), atol=1e-3)
    parts = ImageEmbeddings.of("made-up", features)
    assert parts.mirrored is None
    norms = np.linalg.norm(features[:, 0].astype(np.float64), axis=1)
    np.testing.assert_allclose(flip_sum_normalised(parts), features[:, 0] / norms[:, None])
    assert mean_norm(parts) == pytest.approx(norms.mean())


@pytest.mark.parametrize("batch", [1, 3, 5])
@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_a_stopped_pass_goes_on_and_gives_the_same_bytes(source, tmp_path, monkeypatch, how, batch):
    monkeypatch.setattr(feature_store, "SYNC_SECONDS", 0.0 if how == "killed" else 1e9)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run({"a": model(1), "b": model(2)}, source, whole)
    models = {"a": model(1), "b": model(2, Stops(batch, kill if how == "killed" else fail, 2))}
    if how == "killed":
        assert in_child(lambda: run(models, source, stopped)) == -signal.SIGKILL
    else:
        with pytest.raises(KeyboardInterrupt):
            run(models, source, stopped)
    # The first model was a batch ahead.
    assert (complete(stopped, "a"), complete(stopped, "b")) == (min(4 * batch + 4, IMAGES), 4 * batch)
    counted = Counted(source)
    just_what_it_lacks = Stops(5 - batch, fail, 1)
    run({"a": model(1, just_what_it_lacks), "b": model(2)}, counted, stopped)
    assert set(counted.reads) == set(range(4 * batch, IMAGES))
    for path in whole.iterdir():
        assert (stopped / path.name).read_bytes() == path.read_bytes(), path.name


def test_an_unsynced_stop_does_again_what_is_not_on_the_disk(source, tmp_path):
    stopped = model(1, Stops(3, kill, 1))
    assert in_child(lambda: run({"a": stopped}, source, tmp_path)) == -signal.SIGKILL
    assert complete(tmp_path, "a") == 0
    assert np.array_equal(run({"a": model(1)}, source, tmp_path)["a"], run({"a": model(1)}, source)["a"])


def test_what_is_complete_is_only_read(source, tmp_path):
    first = run({"a": model(1)}, source, tmp_path)["a"]
    counted = Counted(source)
    again = run({"a": model(1, Stops(0, fail, 1)), "b": model(2)}, counted, tmp_path)
    assert np.array_equal(again["a"], first)
    assert np.array_equal(again["b"], run({"b": model(2)}, source)["b"])
    counted.reads.clear()
    run({"a": model(1, Stops(0, fail, 1))}, counted, tmp_path)
    assert not counted.reads


OTHERS = {
    "weights": (lambda source: ({"a": model(9)}, source, {}), "weights_sha256"),
    "images": (lambda source: ({"a": model(1)}, EncodedImages("x", source.images[::-1]), {}), "source"),
    "fewer images": (lambda source: ({"a": model(1)}, EncodedImages("x", source.images[:-1]), {}), "images, source"),
    "batch size": (lambda source: ({"a": model(1)}, source, {"batch_size": 5}), "batch_size"),
    "flip": (lambda source: ({"a": model(1)}, source, {"flip": False}), "flip"),
    "scaling": (lambda s: ({"a": model(1, preprocessing=Preprocessing(scale=128))}, s, {}), "preprocessing"),
    "precision": (lambda source: ({"a": model(1, precision="bf16")}, source, {}), "precision"),
}


@pytest.mark.parametrize(("other", "named"), OTHERS.values(), ids=OTHERS)
def test_features_of_something_else_are_refused_and_kept(source, tmp_path, other, named):
    run({"a": model(1)}, source, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    models, images, options = other(source)
    with pytest.raises(ConfigError, match=rf"a\.features\.npy: holds features of other {named}; remove it"):
        run(models, images, tmp_path, **options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def damage_record(**changes):
    def damage(npy, record):
        record.write_text(json.dumps(json.loads(record.read_text()) | changes))

    return damage


DAMAGES = {
    "no record": (lambda npy, record: record.unlink(), "which says what it holds, is missing"),
    "no json": (lambda npy, record: record.write_bytes(b"\xff{"), "is not a record"),
    "deep json": (lambda npy, record: record.write_text("[" * 50_000), "is not a record"),
    "a list": (lambda npy, record: record.write_text("[1]"), "is not a record"),
    "too many": (damage_record(complete=IMAGES + 1), "promises 23 complete images of 22"),
    "text": (damage_record(complete="all"), "promises 'all' complete"),
    "within a batch": (damage_record(complete=5), "promises 5 complete"),
    "cut short": (lambda npy, record: os.truncate(npy, npy.stat().st_size - 1), "cannot be read"),
    "missing": (lambda npy, record: npy.unlink(), "cannot be read"),
    "other type": (lambda npy, record: np.save(npy, np.zeros((IMAGES, 2, 5))), "does not hold the features of 22"),
    "pickle": (lambda npy, record: np.save(npy, np.array([{}] * 9), allow_pickle=True), "cannot be read"),
    "embedding size": (
        lambda npy, record: (
            np.save(npy, np.zeros((IMAGES, 2, 3), np.float32)),
            damage_record(complete=4)(npy, record),
        ),
        r"has shape \(22, 2, 3\), but .* says another",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_files_are_refused(source, tmp_path, damage, message):
    run({"a": model(1)}, source, tmp_path)
    damage(tmp_path / "a.features.npy", tmp_path / "a.features.json")
    with pytest.raises(ConfigError, match=message) as refusal:
        run({"a": model(1)}, source, tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "/etc/x"])
def test_names_that_are_no_file_names(source, tmp_path, name):
    with pytest.raises(ConfigError, match="cannot begin the name of a file"):
        run({name: model()}, source, tmp_path)


def test_two_processes_do_not_write_the_same_file(source, tmp_path):
    class Second(Linear):
        def forward(self, x):
            if (tmp_path / "a.features.npy").exists():
                with pytest.raises(ConfigError, match="another process is writing it"):
                    run({"a": model(1)}, source, tmp_path)
            return super().forward(x)

    run({"a": model(1, Second(1))}, source, tmp_path)


@pytest.mark.parametrize("calls", [["posix_fallocate"], ["pwrite"], ["fsync"], ["ftruncate", "posix_fallocate"]])
def test_a_full_disk(source, tmp_path, monkeypatch, calls):
    run({"b": model(2)}, source, tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for call in calls:
        monkeypatch.setattr(os, call, full)
    with pytest.raises(RunError, match=r"cannot be written: No space left on device; free space"):
        run({"a": model(1)}, source, tmp_path)
    monkeypatch.undo()
    assert np.array_equal(run({"a": model(1)}, source, tmp_path)["a"], run({"a": model(1)}, source)["a"])


def test_a_file_that_is_removed_while_it_is_written_gets_no_record(source, tmp_path):
    """The next pass would find a record without its file."""

    class Remover(Linear):
        def forward(self, x):
            shutil.rmtree(tmp_path / "new", ignore_errors=True)
            return super().forward(x)

    with pytest.raises(RunError, match=r"a.features.npy: was removed while it was written; run the same command again"):
        run({"a": model(1, Remover(1))}, source, tmp_path / "new")
    run({"a": model(1)}, source, tmp_path / "new")


def test_the_space_is_reserved_at_the_first_batch(source, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run({"a": model(1, Stops(1, fail, 1))}, source, tmp_path)
    status = (tmp_path / "a.features.npy").stat()
    assert status.st_size == 128 + IMAGES * 2 * 5 * 4
    assert status.st_blocks * 512 >= status.st_size


def test_nothing_is_left_where_the_first_batch_fails(tmp_path):
    with pytest.raises(DataError, match="x: image 0: no readable image"):
        run({"a": model(1)}, EncodedImages("x", [b"no"]), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_modes_of_all_networks_come_back(source):
    networks = Linear().train(), Linear().eval()
    run({"a": model(network=networks[0]), "b": model(network=networks[1])}, source)
    assert [network.training for network in networks] == [True, False]


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": 0}])
def test_numbers_below_one_are_refused(source, options):
    with pytest.raises(ValueError, match="at least 1"):
        run({"a": model()}, source, **options)


def test_a_model_without_a_digest_stays_in_memory(source, tmp_path):
    with pytest.raises(ValueError, match="a has no weights_sha256"):
        run({"a": model(weights_sha256="")}, source, tmp_path)
    assert run({"a": model(weights_sha256="")}, source)["a"].shape == (IMAGES, 2, 5)


def test_reading_stays_a_bounded_number_of_batches_ahead(source):
    many = Counted(EncodedImages("many", source.images * 40))
    batches = read_batches(many, range(0, len(many), 4), 4, SIZE, workers=1)
    next(batches)
    batches.close()
    assert len(many.reads) <= 4 * 10


def test_progress_shows_images_a_second(source, monkeypatch, capsys):
    monkeypatch.setattr("facebones.system.progress.PLAIN_LINE_SECONDS", 0.0)
    run({"a": model()}, source, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[1].startswith("embedding made-up: 8/22, ")
    assert lines[1].endswith(" images/s")


# Loose crops


def photo(seed, height=60, width=50):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def crops(tmp_path):
    folder = tmp_path / "loose_crop"
    folder.mkdir()
    for index in range(5):
        (folder / f"{index}.png").write_bytes(png(photo(index, 60 + index)))
    landmarks = REFERENCE / 2 + np.random.default_rng(1).normal(0, 2, (5, 5, 2))
    return folder, [f"{index}.png" for index in range(5)], landmarks


@pytest.mark.parametrize("size", [112, SIZE])
def test_loose_crops_are_aligned(crops, size):
    folder, files, landmarks = crops
    source = LooseCrops("photos", folder, files, landmarks)
    assert len(source) == 5
    for index in range(5):
        expected = align_face(photo(index, 60 + index), landmarks[index], "x", size)
        found = source.read(index, size).astype(int)
        assert found.shape == (size, size, 3)
        assert np.array_equal(found, expected) if size == 112 else np.abs(found - expected).max() <= 8


def test_the_fingerprint_knows_names_sizes_and_landmarks(crops):
    folder, files, landmarks = crops
    prints = [LooseCrops("photos", folder, files, landmarks).fingerprint()]
    assert LooseCrops("other name", folder, list(files), landmarks.copy()).fingerprint() == prints[0]
    prints += [LooseCrops("photos", folder, files[::-1], landmarks).fingerprint()]
    prints += [LooseCrops("photos", folder, files, landmarks + 1e-3).fingerprint()]
    (folder / "3.png").write_bytes(png(photo(3, 20)))
    prints += [LooseCrops("photos", folder, files, landmarks).fingerprint()]
    assert len(set(prints)) == 4


def test_photos_that_cannot_be_read_are_named(crops):
    folder, files, landmarks = crops
    source = LooseCrops("photos", folder, files, landmarks)
    (folder / "2.png").write_bytes(b"\x89PNG but no more")
    with pytest.raises(DataError, match=r"loose_crop/2\.png: no readable image"):
        run({"a": model(network=nn.Flatten())}, source)
    (folder / "2.png").unlink()
    for work in (source.fingerprint, lambda: source.read(2, 112), lambda: run({"a": model()}, source, folder / "out")):
        with pytest.raises(DataError, match=r"loose_crop/2\.png: cannot be read: No such file"):
            work()
    assert not (folder / "out").exists()


@pytest.mark.parametrize("file", ["../secret.jpg", "/etc/passwd", "a/../../b.jpg", "a\0.jpg"])
def test_photos_outside_of_the_folder_are_refused(crops, file):
    folder, files, landmarks = crops
    with pytest.raises(DataError, match="leads out of"):
        LooseCrops("photos", folder, [*files[:4], file], landmarks)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300, 7.0])
def test_landmarks_that_say_nothing_are_found_before_the_reading(crops, value):
    folder, files, landmarks = crops
    landmarks[3] = value
    with pytest.raises(DataError, match=r"loose_crop/3\.png: its landmarks are (not finite|all in one place); correct"):
        LooseCrops("photos", folder, files, landmarks)
    with pytest.raises(ValueError, match=r"shape \(4, 5, 2\) for 5 files"):
        LooseCrops("photos", folder, files, landmarks[:4])


# Networks that others trained


@pytest.mark.parametrize("colour", ["rgb", "bgr"])
@pytest.mark.parametrize(("mean", "scale"), [(127.5, 127.5), (127.5, 128.0), (0.0, 255.0), (0.0, 1.0), (110.0, 60.0)])
def test_preprocessing(mean, scale, colour):
    pixels = np.arange(256 * 3, dtype=np.uint8).reshape(256, 1, 1, 3) * np.array([1, 3, 7], np.uint8)
    embedder = model(network=nn.Flatten(), preprocessing=Preprocessing(mean=mean, scale=scale, colour=colour))
    found = embedder(pixels, flip=False)[:, 0]
    ordered = pixels[:, 0, 0, :: 1 if colour == "rgb" else -1].astype(np.float32)
    if (mean, scale) == (127.5, 127.5):  # as in training, to the last digit
        assert np.array_equal(found, (torch.from_numpy(ordered) / 127.5 - 1).numpy())
    if scale in (1.0, 128.0):
        assert np.array_equal(found, (ordered - np.float32(mean)) / np.float32(scale))
    np.testing.assert_allclose(found, (ordered.astype(np.float64) - mean) / scale, atol=5e-7)


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"mean": float("nan")}, {"scale": float("inf")}, {"colour": "gbr"}])
def test_preprocessing_that_makes_no_sense(wrong):
    with pytest.raises(ConfigError, match="preprocessing"):
        Preprocessing(**wrong)


def test_a_run_is_opened_with_the_digest_of_its_weights(tmp_path, tiny_backbone):
    from facebones.backbones import create_backbone
    from facebones.backbones.weights import save_weights
    from facebones.run_folder import RunFolder

    opened = []
    for name in ("one", "two"):
        folder = RunFolder(tmp_path / name)
        network = create_backbone(tiny_backbone, 16)
        save_weights(folder, network, {"backbone": tiny_backbone, "embedding_size": 16})
        opened += [
            load_model(folder.weights, device="cpu"),
            load_model(tmp_path / name, backbone=tiny_backbone, device="cpu"),
        ]
    assert opened[0].path == tmp_path / "one" / "model.safetensors"
    assert opened[0].weights_sha256 == opened[1].weights_sha256 != opened[2].weights_sha256
    assert len(opened[0].weights_sha256) == 64
    assert opened[0](np.zeros((2, 112, 112, 3), np.uint8), flip=True).shape == (2, 2, 16)


def test_every_image_of_an_ijb_folder(real_faces):
    folder = real_faces / "ijb_lfw"
    (listing,) = (folder / "meta").glob("*_name_5pts_score.txt")
    rows = [line.split() for line in listing.read_text().splitlines()]
    landmarks = np.array([row[1:11] for row in rows], dtype=np.float64).reshape(-1, 5, 2)
    source = LooseCrops("ijb", folder / "loose_crop", [row[0] for row in rows], landmarks)
    for index in range(0, len(source), 50):
        path = folder / "loose_crop" / Path(rows[index][0])
        expected = align_face(decode(path.read_bytes(), "x"), landmarks[index], "x")
        assert np.array_equal(source.read(index, 112), expected)
