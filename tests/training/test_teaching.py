"""Training with a teacher: its embeddings are made once, belong to each image, and are nothing that an export holds."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from teachers import write_teacher

from facebones.backbones.weights import load_backbone
from facebones.cli.main import main
from facebones.data.folders import open_training_set
from facebones.data.images import decode
from facebones.errors import CheckpointError, ConfigError, DataError
from facebones.evaluation.models import load_model
from facebones.evaluation.teacher_embeddings import TeacherEmbeddings, embed_training_set
from facebones.heads.distillation import TEACHER_LOSSES
from facebones.recipe import load_config
from facebones.run_folder import RunFolder
from facebones.system.checkpoint import load_checkpoint
from facebones.training.autotune import _conditions
from facebones.training.run import resume, train
from facebones.training.step import draw_mirrored, network_input
from facebones.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(small_data, tiny_backbone, tmp_path_factory):
    """A run that can be a teacher."""
    folder = tmp_path_factory.mktemp("teacher_run") / "big"
    sections = ["--backbone.name", tiny_backbone, "--backbone.embedding_size", "12", "--data.workers", "0"]
    lengths = ["--epochs", "1", "--batch-size", "14", "--validation.sets", "tiny"]
    assert main(["train", "demo", "--data", str(small_data), "--output", str(folder), *sections, *lengths]) == 0
    return folder


@pytest.fixture
def copied(small_data, tmp_path):
    return shutil.copytree(small_data, tmp_path / "faces")


def test_the_command_embeds_each_image_and_its_mirror_image(trained, copied, capsys):
    assert main(["data", "embed", str(copied), "--model", str(trained), "--batch-size", "5"]) == 0
    assert "--distillation.embeddings big" in capsys.readouterr().out
    data = open_training_set(copied)
    found = TeacherEmbeddings("big", data)
    assert (found.size, found.mirrored) == (12, True)
    images = np.array([3, 0, 27, 3])
    model, encoded = load_model(trained, device="cpu"), [data.read(index)[0] for index in images.tolist()]
    plain = model.embed(encoded)
    mirrored = model.embed(encoded, flip=True) - plain
    rows = found.rows(torch.from_numpy(images), torch.tensor([False, True, True, True])).numpy()
    expected = np.stack([plain[0], mirrored[1], mirrored[2], mirrored[3]])
    assert np.allclose(rows, expected, rtol=2e-3, atol=2e-3 * np.abs(plain).max())
    assert (copied / "big.features.npy").stat().st_size < 28 * 2 * 12 * 2 + 200
    again = (copied / "big.features.npy").read_bytes()
    assert main(["data", "embed", str(copied), "--model", str(trained), "--batch-size", "5"]) == 0
    assert (copied / "big.features.npy").read_bytes() == again


def test_class_means_are_means_of_directions(copied, tmp_path):
    data = open_training_set(copied)
    found = TeacherEmbeddings(write_teacher(tmp_path, copied), data)
    rows = np.load(found.path).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    means = found.class_means(data.labels, 5)
    for label in range(4):
        assert np.allclose(means[label], rows[data.labels == label].mean(axis=(0, 1)), atol=1e-6)
    assert not means[4].any()


def test_without_held_out_people_embeddings_still_belong_to_each_image(tiny_recipe, copied, tmp_path):
    """The file has those of all people, by their numbers in the whole set."""
    whole, path = open_training_set(copied), write_teacher(tmp_path, copied)
    options = {"data.path": str(copied), "distillation.embeddings": path, "data.held_out": 0.25}
    built = Trainer(tiny_recipe(**options), CPU)
    place = {decode(whole.read(index)[0], str).tobytes(): index for index in range(len(whole))}
    stored, seen = np.load(path).astype(np.float32), set()
    for ((images, labels, number),) in built.step_batches():
        places = [place[image.tobytes()] for image in images.numpy()]
        assert torch.equal(built.teaching.rows(number, None), torch.from_numpy(stored[places, 0]))
        assert [whole.labels[index] for index in places] == [built.data.people[label] for label in labels.tolist()]
        seen |= {*places}
    assert len(seen) == 21 and built.data.people.tolist() == [0, 1, 3]
    means = TeacherEmbeddings(path, built.data).class_means(built.data.labels, 3)
    assert torch.equal(means, TeacherEmbeddings(path, whole).class_means(whole.labels, 4)[[0, 1, 3]])


@pytest.mark.parametrize("workers", [0, 2])
def test_each_row_of_a_batch_has_the_embedding_of_its_image(tiny_recipe, copied, break_images, tmp_path, workers):
    """Also an image that replaces an unreadable one, and in the view that the network sees."""
    folder, _ = break_images(0, 9)
    options = {"data.path": str(folder), "data.max_unreadable": 2, "data.workers": workers}
    taught = {"distillation.embeddings": write_teacher(tmp_path, folder)}
    built = Trainer(tiny_recipe(**options, **taught), CPU)
    plain = Trainer(tiny_recipe(**options), CPU)
    numbers, stored = [], np.load(taught["distillation.embeddings"])
    for one, other in zip(built.step_batches(), plain.step_batches(), strict=True):
        ((images, labels, number), (images_plain, labels_plain, none)) = one[0], other[0]
        assert torch.equal(images, images_plain) and torch.equal(labels, labels_plain) and none is None
        assert number[labels != torch.from_numpy(built.data.labels)[number]].tolist() == []
        mirror = draw_mirrored(built, len(labels), 0)
        rows = built.teaching.rows(number, mirror)
        assert torch.equal(rows, torch.from_numpy(stored[number, mirror.long()].astype(np.float32)))
        assert torch.equal(
            network_input(built, images, mirror)[mirror], network_input(built, images.flip(2), None)[mirror]
        )
        numbers += number.tolist()
    assert len(numbers) == 4 * 28 and not {0, 9} & set(numbers) and {1, 10} <= set(numbers)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("name", TEACHER_LOSSES)
def test_each_loss_trains_and_leaves_a_plain_backbone(tiny_recipe, teacher, tmp_path, name, alone):
    options = {"distillation.embeddings": teacher, "distillation.loss": name, "distillation.alone": alone}
    recipe = tiny_recipe(**options, **{"training.epochs": 1})
    train(recipe, tmp_path / "run", "cpu")
    folder = RunFolder(tmp_path / "run")
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    logged = [line["head"] for line in lines if line["kind"] == "train"]
    assert all(np.isfinite(line["distillation_loss"]) for line in logged) and logged
    assert all(("teacher_cosine" in line) == (name != "relational") for line in logged)
    names = set(load_backbone(folder.weights)[0].state_dict())
    state = load_checkpoint(folder.last)
    assert set(state["backbone"]) == names and not any("projection" in key for key in names)
    expected = {"projection.weight"} if name != "relational" else set()
    assert set(state["distillation"]["loss"]) == expected | ({"loss.centres"} if name == "adadistill" else set())


def test_a_student_comes_closer_to_its_teacher(tiny_recipe, teacher):
    options = {"distillation.embeddings": teacher, "distillation.alone": True, "backbone.dropout": 0.0}
    built = Trainer(tiny_recipe(**options, **{"training.epochs": 30, "data.flip": False}), CPU)
    cosines = []
    for batches in built.step_batches():
        built.train_step(batches)
        built.read_back_metrics()
        cosines.append(built.meter.head["teacher_cosine"])
        built.meter.reset()
    assert abs(np.mean(cosines[:7])) < 0.3 and np.mean(cosines[-7:]) > 0.3


def test_without_labels_one_folder_of_images_will_do(tiny_recipe, small_data, tmp_path):
    folder, data = tmp_path / "faces", open_training_set(small_data)
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.jpg").write_bytes(data.read(number)[0])
    taught = {"data.path": str(folder), "distillation.embeddings": "teacher", "validation.sets": []}
    write_teacher(folder, folder)
    alone = tiny_recipe(**taught, **{"distillation.alone": True})
    assert _conditions(alone, CPU)  # of --autotune
    train(alone, tmp_path / "run", "cpu")
    for options in ({}, {"distillation.alone": True, "distillation.loss": "frozen_centres"}):
        with pytest.raises(DataError, match=r"all of one identity; .*--distillation.alone true"):
            train(tiny_recipe(**taught, **options), tmp_path / "other", "cpu")
    with pytest.raises(ConfigError, match=r"^data.held_out 0.5: of 1 person, 0 would remain, .* or 0$"):
        train(tiny_recipe(**taught, **{"distillation.alone": True, "data.held_out": 0.5}), tmp_path / "other", "cpu")
    assert not (tmp_path / "other").exists()


def test_embeddings_may_move_but_not_change(tiny_recipe, copied, tmp_path, monkeypatch):
    write_teacher(copied, copied)
    taught = {"data.path": str(copied), "distillation.embeddings": "teacher", "training.epochs": 1}
    train(tiny_recipe(**taught), tmp_path / "run", "cpu")
    moved = copied.rename(tmp_path / "elsewhere")
    resume(tmp_path / "run", "cpu", data=str(moved))
    rows = np.load(moved / "teacher.features.npy", mmap_mode="r+")
    rows[0, 0, 0] += 1
    rows.flush()
    with pytest.raises(CheckpointError, match="was trained with other embeddings than"):
        resume(tmp_path / "run", "cpu", data=str(moved))


def _cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def _record(**changes):
    def change(path):
        record = path.with_suffix(".json")
        record.write_text(json.dumps(json.loads(record.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no such embeddings; .* has none; make them by `facebones data embed"),
        (lambda path: path.with_suffix(".json").unlink(), "which says what it holds, cannot be read"),
        (_cut, "cannot be read"),
        (lambda path: path.write_bytes(b"PK\3\4" + bytes(100)), "cannot be read"),
        (lambda path: np.save(path, np.zeros((28, 2, 4), np.float32)), "holds no embeddings"),
        (lambda path: np.save(path, np.zeros((28, 2, 0), np.float16)), "holds no embeddings"),
        (lambda path: np.save(path, np.zeros((27, 2, 4), np.float16)), "embeddings of 27 images, and the data has 28"),
        (_record(complete=12), "12 of 28 images are embedded; run data embed again"),
        (_record(source=3), "does not say of which images"),
        (_record(source="[" * 10_000), "does not say of which images"),
        (_record(source='{"images": 28, "image_sample": "00"}'), "was made of other images than"),
    ],
)
def test_unusable_embeddings_are_one_line(tiny_recipe, copied, tmp_path, damage, message):
    path = copied / "teacher.features.npy"
    write_teacher(copied, copied)
    damage(path)
    taught = {"data.path": str(copied), "distillation.embeddings": "teacher"}
    with pytest.raises(DataError, match=message) as error:
        train(tiny_recipe(**taught), tmp_path / "run", "cpu")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_mirror_images_without_embeddings_are_refused(tiny_recipe, copied, tmp_path):
    taught = {"data.path": str(copied), "distillation.embeddings": write_teacher(tmp_path, copied, views=1)}
    with pytest.raises(ConfigError, match=r"no embeddings of mirror images; .* --data\.flip false"):
        train(tiny_recipe(**taught), tmp_path / "run", "cpu")
    train(tiny_recipe(**taught, **{"data.flip": False, "training.epochs": 1}), tmp_path / "run", "cpu")


def test_a_teacher_that_is_not_there_cannot_be_alone(tiny_recipe, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no teacher; give --distillation\.embeddings"):
        train(tiny_recipe(**{"distillation.alone": True}), tmp_path / "run", "cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "adadistill"}, "distillation.loss adadistill: has no effect without a teacher; give --distill"),
        ({"weight": 30, "kind": "cos"}, "distillation.weight 30.0, distillation.kind cos: has no effect without"),
        ({"embeddings": "x", "margin": 0.3}, "distillation.margin 0.3: has no effect with distillation.loss embed"),
        ({"embeddings": "x", "loss": "relational", "scale": 30}, "distillation.scale 30.0: .* relational, only with"),
    ],
)
def test_what_would_be_ignored_is_refused(tiny_recipe, tmp_path, options, message):
    recipe = tiny_recipe(**{f"distillation.{name}": value for name, value in options.items()})
    with pytest.raises(ConfigError, match=f"^{message}.*leave it out") as caught:
        train(recipe, tmp_path / "run", "cpu")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_the_recipe_distill_says_that_it_needs_a_teacher(small_data, tmp_path, capsys):
    command = ["train", "distill", "--data", str(small_data), "--output", str(tmp_path / "run")]
    assert main([*command, "--validation.sets", "tiny"]) == 2
    assert "distillation.alone: there is no teacher; give --distillation.embeddings" in capsys.readouterr().err


@pytest.mark.parametrize("taught", [True, False])
def test_a_run_is_continued_with_its_teacher_or_without_one(tiny_recipe, copied, tmp_path, taught):
    """Of equal sizes, student and teacher have no map between them whose absence would be noticed."""
    options = {"data.path": str(copied), "training.epochs": 1}
    path = write_teacher(tmp_path, copied, size=16)
    train(tiny_recipe(**options, **({"distillation.embeddings": path} if taught else {})), tmp_path / "run", "cpu")
    folder = RunFolder(tmp_path / "run")
    recorded = json.loads(folder.environment.read_bytes()).get("teacher")
    fingerprint = TeacherEmbeddings(path, open_training_set(copied)).fingerprint
    assert recorded == ({"embeddings": path, "fingerprint": fingerprint} if taught else None)
    recipe = load_config(folder.config)
    changed = replace(recipe.distillation, embeddings="" if taught else path)
    folder.write_recipe(replace(recipe, distillation=changed))
    then = "with a teacher, and config.yaml names none" if taught else "without a teacher, and config.yaml names /"
    with pytest.raises(CheckpointError, match=f"was trained {then}"):
        resume(tmp_path / "run", "cpu")
    folder.write_recipe(recipe)
    resume(tmp_path / "run", "cpu")


def test_a_run_of_an_older_version_records_no_teacher_and_no_change_of_it(tiny_recipe, teacher, tmp_path, capsys):
    train(tiny_recipe(**{"distillation.embeddings": teacher, "training.epochs": 1}), tmp_path / "run", "cpu")
    folder = RunFolder(tmp_path / "run")
    content = json.loads(folder.environment.read_bytes())
    del content["teacher"]
    folder.environment.write_text(json.dumps(content))
    resume(tmp_path / "run", "cpu")
    assert "changed since" not in capsys.readouterr().err


def test_random_weights_teach_nothing(copied, tiny_backbone):
    with pytest.raises(ConfigError, match="random weights, which teach nothing"):
        embed_training_set(copied, tiny_backbone, "random", device="cpu")
    assert not list(copied.glob("*.features.*"))
