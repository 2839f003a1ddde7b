"""The models that one command evaluates: what each is called, where it is, and how it wants its input."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from facebones.backbones.weights import read_card
from facebones.data.preprocessing import OURS, Preprocessing
from facebones.errors import ConfigError
from facebones.evaluation.embedder import Embedder, open_embedder
from facebones.onnx.backbone import OnnxBackbone
from facebones.system.progress import say

LONGEST_NAME = 100


def named_files(texts: Iterable[str], option: str) -> dict[str, Path]:
    """Read what an option names, each as `NAME=PATH` or as a path alone, whose last part without ending is the name.

    Raises:
        ConfigError: two of one name, or a name that cannot begin a file's name.

    >>> named_files(["runs/mbf", "theirs=models/r50.onnx"], "--checkpoint")
    {'mbf': PosixPath('runs/mbf'), 'theirs': PosixPath('models/r50.onnx')}
    """
    files: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            path, name = text, Path(text).resolve().name if Path(text).is_dir() else Path(text).stem
        if not name or not path or "/" in name or name.startswith(".") or len(name) > LONGEST_NAME:
            raise ConfigError(
                f"{option} {text}: give NAME=PATH, with a name of at most {LONGEST_NAME} letters, without '/' and '=',"
                " that can begin the names of files"
            )
        if name in files:
            raise ConfigError(f"{option}: two are called {name}; give each a name of its own: {option} NAME=PATH")
        files[name] = Path(path)
    return files


def open_models(
    checkpoints: Mapping[str, Path],
    *,
    backbone: str | None = None,
    device: str = "auto",
    preprocessing: Preprocessing | None = None,
) -> dict[str, Embedder]:
    """Open runs, files of weights and ONNX files, by name.

    Args:
        checkpoints: name -> a run's folder, a file of weights, or an ONNX file.
        backbone: the backbone of a file that does not say it; with one file only.
        device: "auto", "cpu", "cuda", ...
        preprocessing: of files that others made; ours know theirs. None takes ours, and says so.

    Raises:
        CheckpointError: missing, broken, or of another backbone.
        ConfigError: no such device, a backbone for several files, or preprocessing where no file takes it.
    """
    if backbone and len(checkpoints) > 1:
        raise ConfigError(f"--backbone {backbone}: goes with one --checkpoint; evaluate that file by itself")
    models = {name: open_embedder(path, backbone, device) for name, path in checkpoints.items()}
    foreign = [name for name, embedder in models.items() if not _says_its_input(embedder)]
    if preprocessing is not None and not foreign:
        raise ConfigError("--mean, --scale, --colour: every model here knows its own preprocessing; leave them out")
    for name in foreign:
        models[name] = replace(models[name], preprocessing=preprocessing or OURS)
        if preprocessing is None:
            say(
                f"{name}: does not say its preprocessing; taken as RGB, (x - 127.5) / 127.5 (--mean, --scale, --colour)"
            )
    return models


def describe(embedder: Embedder) -> dict[str, Any]:
    """What an evaluation's JSON says of a model."""
    network: Any = embedder.network
    return {
        "backbone": network.name,
        "embedding_size": network.embedding_size,
        "checkpoint": str(embedder.path),
        **embedder.settings(),
    }


def _says_its_input(embedder: Embedder) -> bool:
    if isinstance(embedder.network, OnnxBackbone):
        return embedder.network.said_name is not None or embedder.network.folded
    return embedder.path is not None and "backbone" in read_card(embedder.path)
