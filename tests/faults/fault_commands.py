"""The commands that the harness disturbs: their small inputs, and what of their output counts."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NETWORK = """
from torch import nn
from facebones import register_backbone
from facebones.backbones.base import Backbone

class Net(Backbone):
    def __init__(self, embedding_size, dropout):
        super().__init__()
        self.embedding_size = embedding_size
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.1))
        self.last = nn.Linear(4 * 14 * 14, embedding_size)

    def forward(self, x):
        return self.last(self.layers(x))

@register_backbone()
def disturbed_net(embedding_size, dropout):
    "A network that trains in a moment."
    return Net(embedding_size, dropout)
"""
STUDY = """
recipe: demo
import: [net.py]
overrides:
  backbone.embedding_size: 8
  data.workers: 0
  training.batch_size: 14
  training.epochs: 2
  training.checkpoint_every: 1
  validation.sets: tiny
  validation.every: 2
  log.every: 1
backbones: [disturbed_net]
seeds: [0, 1]
data: data
profile: false
"""
IDENTITIES, IMAGES_EACH, PAIRS = 4, 7, 20
# `inputs` is a digest that counts the times of files.
TIMES = {
    *("inputs", "images_per_second", "seconds", "created", "started", "ended", "embedding_seconds", "images_per_s"),
    "latency",
}
# Of no interest: logs for people, locks, leases and their numbers, and a table whose latencies a .json file has, too.
IGNORED = re.compile(r"(.*/)?(seed\d+\.log|\.lock|\.[^/]+\.lease\.\d+|export\.md)")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that makes `out` in a work folder from inputs that lie beside it.

    Attributes:
        name: of the command, and what is special.
        words: of its line.
        output: what it makes; it lies alone in its folder.
        again: the words that continue it after a fault, from the work folder; by default the same.
        data: an input that it reads, for faults that change one.
    """

    name: str
    words: tuple[str, ...]
    output: str
    again: Callable[["Command", Path], tuple[str, ...]] = lambda self, _: self.words
    data: str = "data/train.rec"

    def content(self, work: Path) -> dict[str, Any]:
        """What counts of the output: each file without the times in it; hidden files, too."""
        place = work / "made"
        return {
            str(path.relative_to(place)): _content(path)
            for path in sorted(place.rglob("*"))
            if path.is_file() and not IGNORED.fullmatch(str(path.relative_to(place)))
        }


def _continued_training(command: Command, work: Path) -> tuple[str, ...]:
    if (work / command.output / "config.yaml").is_file():
        return "resume", command.output, "--device", "cpu"
    return command.words


def _with_resume(command: Command, work: Path) -> tuple[str, ...]:
    if (work / f"{command.output}.partial").exists():
        return *command.words, "--resume"
    return command.words


def _unless_whole(command: Command, work: Path) -> tuple[str, ...]:
    """A folder that appears with all its files is not written again."""
    return ("--version",) if (work / command.output).exists() else command.words


TRAIN = (
    *("train", "demo", "--import", "net.py", "--data", "data", "--backbone", "disturbed_net", "--output", "made/run"),
    *("--backbone.embedding_size", "8", "--batch-size", "14", "--training.checkpoint_every", "1", "--log.every", "1"),
    *("--validation.sets", "tiny", "--validation.every", "3", "--device", "cpu"),
)


def training(name: str, *words: str, epochs: int = 4) -> Command:
    """A training of two steps an epoch, with a save after each step and a validation after each third."""
    epoch_words = ("--training.epochs", str(epochs))
    return Command(name=name, words=(*TRAIN, *epoch_words, *words), output="made/run", again=_continued_training)


CPU = ("--device", "cpu")
NET = ("--import", "net.py")
COMMANDS = {
    command.name: command
    for command in (
        training("train", "--workers", "0"),
        training("long train", "--workers", "0", epochs=8),
        training(
            "long train, workers, saves in the background",
            *("--workers", "2", "--training.background_saves", "true"),
            epochs=8,
        ),
        Command(name="compare", words=("compare", "study.yaml", "--output", "made/study", *CPU), output="made/study"),
        Command(
            name="evaluate pairs",
            words=(
                *("evaluate", "pairs", *NET, "--model", "run", "--data", "data/tiny.bin"),
                *("--output", "made/results", *CPU),
            ),
            output="made/results",
            data="data/tiny.bin",
        ),
        Command(
            name="convert to folder",
            words=("data", "convert", "data", "made/images"),
            output="made/images",
            again=_with_resume,
        ),
        Command(
            name="convert to records",
            words=("data", "convert", "images", "made/records"),
            output="made/records",
            data="images/person1/3.jpg",
        ),
        Command(
            name="convert from LMDB",
            words=("data", "convert", "faces.lmdb", "made/records"),
            output="made/records",
            data="faces.lmdb",
        ),
        Command(
            name="align",
            words=("data", "align", "images", "made/faces", "--landmarks", "points.csv", "--workers", "2"),
            output="made/faces",
            again=_with_resume,
            data="images/person1/3.jpg",
        ),
        Command(
            name="embed",
            words=("data", "embed", *NET, "data", "--model", "teacher=run", "--output", "made/embeddings", *CPU),
            output="made/embeddings",
        ),
        Command(
            name="embed photos",
            words=("embed", "images", "--aligned", *NET, "--model", "run", "--output", "made/photos.npz", *CPU),
            output="made/photos.npz",
            data="images/person1/3.jpg",
        ),
        Command(
            name="export",
            words=("export", *NET, "--model", "run", "--output", "made/net.onnx"),
            output="made/net.onnx",
            data="run/model.safetensors",
        ),
        Command(
            name="export in formats",
            words=("export", "run", *NET, "--formats", "onnx,torch-export", "--output", "made/formats"),
            output="made/formats",
            again=_unless_whole,
            data="run/model.safetensors",
        ),
        Command(
            name="evaluate folder",
            words=("evaluate", "folder", *NET, "--model", "run", "--data", "images", "--output", "made/all", *CPU),
            output="made/all",
            data="images/person1/3.jpg",
        ),
        Command(
            name="evaluate groups",
            words=(
                *("evaluate", "groups", *NET, "--model", "run", "--data", "folder=images", "--groups", "groups.csv"),
                *("--fmr", "0.2", "--permutations", "100", "--output", "made/groups", *CPU),
            ),
            output="made/groups",
            data="groups.csv",
        ),
        Command(
            name="calibrate",
            words=(
                *("calibrate", *NET, "--model", "run", "--data", "data/tiny.bin", "--fmr", "0.5"),
                *("--output", "made/threshold.json", *CPU),
            ),
            output="made/threshold.json",
            data="data/tiny.bin",
        ),
        Command(
            name="find overlap",
            words=("data", "overlap", "data", "data/tiny.bin", "--output", "made/overlap"),
            output="made/overlap",
            data="data/tiny.bin",
        ),
        Command(
            name="push to a folder",
            words=("push", "run", "ann/net", "--license", "mit", *NET, "--output", "made/published"),
            output="made/published",
            again=_unless_whole,
            data="run/model.safetensors",
        ),
        Command(
            name="report",
            words=("report", "run", "results", "--output", "made/report"),
            output="made/report",
            data="run/metrics.jsonl",
        ),
    )
}

# Those that are killed at any moment of their time.
KILLED = [name for name in COMMANDS if name.startswith("long")]


def make_inputs(folder: Path) -> None:
    """Write what the commands read: faces as a folder and as records, pairs, landmarks, a network and a study."""
    import cv2
    import numpy as np

    from facebones.data.pair_bins import write_pairs
    from facebones.datatools.convert import convert

    def image(identity: int, number: int) -> bytes:
        pattern = np.random.default_rng(identity).integers(0, 200, (7, 7, 3), dtype=np.uint8)
        noise = np.random.default_rng([identity, number]).integers(0, 56, (112, 112, 3), dtype=np.uint8)
        return cv2.imencode(".jpg", cv2.resize(pattern, (112, 112), interpolation=cv2.INTER_NEAREST) + noise)[
            1
        ].tobytes()

    rows = ["path,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5"]
    for identity in range(IDENTITIES):
        (folder / f"images/person{identity}").mkdir(parents=True)
        for number in range(IMAGES_EACH):
            name = f"person{identity}/{number}.jpg"
            (folder / "images" / name).write_bytes(image(identity, number))
            rows.append(f"{name},38,52,74,52,56,72,42,92,71,92")
    (folder / "points.csv").write_text("\n".join(rows) + "\n")
    people = [f"person{identity},{'ab'[identity % 2]}" for identity in range(IDENTITIES)]
    (folder / "groups.csv").write_text("\n".join(["person,group", *people]) + "\n")
    convert(folder / "images", folder / "data")
    _write_lmdb(folder)
    same = [pair % 2 == 0 for pair in range(PAIRS)]
    people = [(100 + pair, 100 + pair if same[pair] else 500 + pair) for pair in range(PAIRS)]
    write_pairs(folder / "data/tiny.bin", [image(who, n) for pair in people for n, who in enumerate(pair)], same)
    (folder / "net.py").write_text(NETWORK)
    (folder / "study.yaml").write_text(STUDY)


def _write_lmdb(folder: Path) -> None:
    """Write the images as HSFace comes: one database, values packed with MessagePack."""
    import lmdb
    import msgpack

    images = sorted((folder / "images").glob("person*/*.jpg"))
    values: dict[str, Any] = {
        str(number): (path.read_bytes(), int(path.parent.name.removeprefix("person")))
        for number, path in enumerate(images)
    }
    about = {"__keys__": [key.encode() for key in values], "__len__": len(images), "__classnum__": IDENTITIES}
    database = lmdb.open(str(folder / "faces.lmdb"), subdir=False, lock=False, map_size=2**24)
    with database, database.begin(write=True) as writing:
        for key, value in {**values, **about}.items():
            writing.put(key.encode(), msgpack.dumps(value))


def _content(path: Path) -> Any:
    if path.suffix == ".pt":
        return _state(path)
    content = path.read_bytes()
    if path.name == "environment.json":  # which also records that data was changed and restored
        return {name: value for name, value in json.loads(content).items() if name not in {"data", "resumed"}}
    if path.suffix == ".json":
        return _without_times(json.loads(content))
    if path.suffix == ".jsonl":
        return [_without_times(json.loads(line)) for line in content.splitlines()]
    return content


def _state(path: Path) -> Any:
    from facebones.system.checkpoint import load_checkpoint

    state = load_checkpoint(path)
    del state["metrics_bytes"]  # the length of the lines depends on the times in them
    return _comparable(state)


def _comparable(value: Any) -> Any:
    """Tensors as bytes; numbers as text, since NaN is no equal of itself."""
    import torch

    if isinstance(value, torch.Tensor):
        return (
            str(value.dtype),
            tuple(value.shape),
            value.contiguous().view(torch.uint8).numpy().tobytes() if value.ndim else repr(value),
        )
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    return repr(value)


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [_without_times(item) for item in value]
    return value
