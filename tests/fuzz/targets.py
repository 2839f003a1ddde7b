"""What is fuzzed: each reader of files that may come from others, as a function of a folder that holds an input.

A target returns for sound input, and raises a `FaceBonesError` for any other. Everything else is a fault.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import seeds
from seeds import TINY, Files

from facebones.errors import DataError, FaceBonesError


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        read: reads the input in a folder, which is the working folder.
        seeds: makes sound inputs.
        fixed: beginnings of the names of files that are not mutated.
    """

    read: Callable[[Path], object]
    seeds: Callable[[], list[Files]]
    fixed: tuple[str, ...] = ()


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """A reader of the same input follows that may accept what this one refuses."""
    with contextlib.suppress(FaceBonesError):
        yield


def _records(folder: Path) -> None:
    from facebones.data.folders import open_labelled_images, open_training_set
    from facebones.datatools.inspect import inspect_data

    with _refusing():
        inspect_data(folder, threads=1).lines()
    _read_all(open_labelled_images(folder))
    open_training_set(folder)


def _read_all(data: object) -> None:
    """What a training does with a set: its fingerprint, its images, and a row for each identity."""
    from facebones.data.images import decode

    data.fingerprint()
    for index in range(len(data)):
        with contextlib.suppress(DataError):
            encoded, label = data.read(index)
            data.identity_name(label)
            decode(encoded, lambda index=index: data.describe(index), 112)
    bytes(2048 * data.num_identities)  # the class centres


def _pair_bins(folder: Path) -> None:
    from facebones.data.images import decode
    from facebones.data.pair_bins import distinct, read_pairs

    for one in distinct(read_pairs(folder / "set.bin").images):
        with _refusing():
            decode(one, "an image", 112)


def _pair_lists(folder: Path) -> None:
    from facebones.data.pair_lists import read_pair_set
    from facebones.evaluation.pairs import read_sound_set

    with _refusing():
        read_pair_set(folder / "pairs.txt", folder)
    read_sound_set(folder / "pairs.txt", folder)


def _groups(folder: Path) -> None:
    import numpy as np

    from facebones.data.group_lists import Faces, read_groups

    names = ["Ann", "Ann", "Bo, Li"]
    faces = Faces(images=["1.jpg", "2.jpg", "3.jpg"], item=np.arange(3), person=np.array([0, 0, 1]), people=names)
    read_groups(folder / "groups.csv", faces, "a set")


def _ijb(folder: Path) -> None:
    from facebones.data.ijb_lists import read_template_set
    from facebones.data.ijb_pairs import read_pair_labels

    with _refusing():
        read_pair_labels(folder).identities()
    found = read_template_set(folder)
    found.identities()
    found.identification_lists()


def _arrays(folder: Path) -> None:
    from types import SimpleNamespace

    import numpy as np

    from facebones.data.ijb_pairs import read_scores
    from facebones.reporting.evaluations import read_pair_scores, read_roc

    for path in folder.glob("*.npz"):
        with _refusing():
            read_roc(path)
        with _refusing():
            read_pair_scores(path)
    read_scores(folder / "scores.npy", SimpleNamespace(is_same=np.ones(3, bool)))


def _gallery(folder: Path) -> None:
    import numpy as np

    from facebones.evaluation.match import nearest
    from facebones.evaluation.photos import read_embeddings

    found = read_embeddings(folder / "photos.npz")
    nearest(found.embedding, np.ones(found.embedding.shape[1], np.float32), 3)
    str(found.path[0])


def _features(folder: Path) -> None:
    import torch

    from facebones.data.folders import open_labelled_images
    from facebones.evaluation.feature_store import FeatureFile
    from facebones.evaluation.teacher_embeddings import TeacherEmbeddings, TrainingImages

    data = open_labelled_images(Path("data"))
    with _refusing():
        found = TeacherEmbeddings("teacher.features.npy", data)
        found.rows(torch.arange(len(data)), None)
        found.class_means(data.labels, data.num_identities)
    settings = {"source": TrainingImages(data).fingerprint(), "dtype": "float16", "weights_sha256": "ab"}
    with FeatureFile(folder, "teacher", len(data), len(data), settings) as file:
        assert file.lacks(0) or file.features().shape[0] == len(data)


def _landmarks(folder: Path) -> None:
    from facebones.datatools.landmarks import LandmarkTable

    LandmarkTable(folder / "landmarks.csv")


def _logs(folder: Path) -> None:
    from facebones.importers.run_from_logs import convert_logs
    from facebones.reporting.load import load_results

    convert_logs([folder / "training.log"], folder / "imported")
    load_results(folder / "imported")


def _images(folder: Path) -> None:
    from facebones.data.images import decode
    from facebones.datatools.inspect import inspect_data

    (path,) = folder.glob("a/*")
    encoded = path.read_bytes()
    if len(encoded) % 16 == 0:  # it takes fifty times as long
        inspect_data(folder, threads=1).lines()
    decode(encoded, path.name, 112)


def _weights(folder: Path) -> None:
    from facebones.backbones.weights import load_backbone, read_card

    for path in [path for path in folder.iterdir() if path.suffix in (".pt", ".pth", ".safetensors")]:
        with _refusing():
            read_card(path)
        with _refusing():
            load_backbone(path)
        load_backbone(path, TINY)


def _hub_config(folder: Path) -> None:
    """A model of the Hub: what its config.json says, and the weights beside it."""
    from facebones.backbones.hub_config import read_config
    from facebones.backbones.weights import load_backbone

    with _refusing():
        load_backbone(folder / "model.safetensors")
    read_config(folder / "config.json").to_json({})


def _keras(folder: Path) -> None:
    from facebones.backbones.hdf5_file import read_hdf5
    from facebones.backbones.keras_weights import read_keras

    for path in folder.glob("*.h5"):
        with _refusing():
            read_keras(path)
        read_hdf5(path)


def _onnx(folder: Path) -> None:
    import torch

    from facebones.evaluation.models import load_model
    from facebones.onnx.graph import count_onnx

    with _refusing():
        count_onnx(folder / "a.onnx")
    network = load_model(folder / "a.onnx", device="cpu").network
    assert network.scaling is None or str(network.scaling)
    network(torch.zeros(1, 3, 112, 112))


def _sharded(folder: Path) -> None:
    from facebones.backbones.weights import load_backbone
    from facebones.system.sharded_checkpoint import load_parts

    with _refusing():
        load_backbone(folder / "last.json")
    load_parts(folder / "last.json", ("recipe", "backbone", "head"))


def _recipes(folder: Path) -> None:
    from facebones.recipe import dump_recipe, load_config, load_recipe

    with _refusing():
        load_config(folder / "recipe.yaml")
    dump_recipe(load_recipe(folder / "recipe.yaml"))


def _studies(folder: Path) -> None:
    from facebones.study.study import load_study

    load_study(str(folder / "study.yaml"))


def _results(folder: Path) -> None:
    """All that a report says in words and numbers; the plots take too long for a fuzzer."""
    import json

    from facebones.reporting.answer import answer
    from facebones.reporting.load import load_results
    from facebones.reporting.report import results_json
    from facebones.reporting.table_files import Beginning, table_texts
    from facebones.reporting.tables import report_tables

    results = load_results(folder)
    json.dumps(results_json(results), allow_nan=False)
    results.numbers()
    table_texts(report_tables(results), Beginning(title="a", sentences=answer(results).sentences, notes=[]))


def _resume(folder: Path) -> None:
    from facebones.training.run import resume

    resume("run", device="cpu")


TARGETS: Mapping[str, Target] = {
    "records": Target(_records, seeds.records),
    "lmdb": Target(_records, seeds.lmdb_sets),
    "parquet": Target(_records, seeds.parquet_sets),
    "pair_bins": Target(_pair_bins, seeds.pair_bins),
    "pair_lists": Target(_pair_lists, seeds.pair_lists, fixed=("Ann/", "Bo_Li/")),
    "groups": Target(_groups, seeds.groups),
    "ijb": Target(_ijb, seeds.ijb),
    "arrays": Target(_arrays, seeds.arrays),
    "gallery": Target(_gallery, seeds.gallery),
    "features": Target(_features, seeds.features, fixed=("data/",)),
    "landmarks": Target(_landmarks, seeds.landmarks),
    "logs": Target(_logs, seeds.logs),
    "images": Target(_images, seeds.images),
    "checkpoints": Target(_weights, seeds.checkpoints),
    "safetensors": Target(_weights, seeds.safetensors),
    "hub_config": Target(_hub_config, seeds.hub_config, fixed=("model.safetensors",)),
    "keras": Target(_keras, seeds.keras),
    "onnx": Target(_onnx, seeds.onnx_files),
    "sharded": Target(_sharded, seeds.sharded),
    "recipes": Target(_recipes, seeds.recipes),
    "studies": Target(_studies, seeds.studies),
    "run_folders": Target(_results, seeds.run_folders),
    "study_folders": Target(_results, seeds.study_folders),
    "resume": Target(_resume, seeds.stopped_run, fixed=("data/", "run/config.yaml")),
}
