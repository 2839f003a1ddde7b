"""The weights of a backbone: out of a run, and in from a run or a file, checked against the network.

No pickled code runs: `.pt` and `.pth` files are read with torch's weights-only loader, `.safetensors` hold none.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from facebones.backbones import Backbone, create_backbone, list_backbones, lookup_backbone
from facebones.backbones.registry import LARGEST_EMBEDDING
from facebones.errors import CheckpointError, ConfigError
from facebones.run_folder import RunFolder
from facebones.system.checkpoint import load_checkpoint
from facebones.system.files import atomic_write, write_json

KEYS_SHOWN = 3
PROBED_SIZES = (7, 11)  # a dimension that is the one and then the other follows the embedding size
# Under these names others put the state dict of the network into a larger dictionary; the first is arcface_torch's.
WRAPPERS = ("state_dict_backbone", "state_dict", "model_state_dict", "model")
METADATA_KEY = "facebones"  # of a safetensors file: the model card as JSON


def save_weights(folder: RunFolder, backbone: Backbone, card: Mapping[str, Any]) -> None:
    """Write model.safetensors and model.json: the trained backbone and what it is.

    Args:
        folder: the run's.
        backbone: the network.
        card: at least "backbone" and "embedding_size".
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    with atomic_write(folder.weights) as file:
        # One entry only: safetensors writes several in a random order, and equal runs shall give equal files.
        file.write(save_safetensors(weights, {METADATA_KEY: json.dumps(card)}))
    write_json(folder.weights.with_suffix(".json"), card)


def load_backbone(
    checkpoint: Path, name: str | None = None, embedding_size: int | None = None
) -> tuple[Backbone, Path]:
    """Build the backbone that a run or a file of weights holds, in eval mode on the CPU.

    Args:
        checkpoint: a run's folder (its final weights, or else its newest checkpoint), one of its checkpoints, a
            `.safetensors` file, or a state dict of others: InsightFace's `backbone.pth` or `checkpoint_gpu_0.pt`, the
            study's `model.pt`, the MixFaceNet authors' files.
        name: the backbone; needed where the file does not say it, checked where it does.
        embedding_size: likewise; read from the shapes that follow it where the file does not say it.

    Returns:
        the backbone, and the path of the file that was read.

    Raises:
        CheckpointError: missing, broken, or weights of another backbone or embedding size.
    """
    path = _file_of(checkpoint)
    if path.suffix == ".onnx":
        raise CheckpointError(f"{path}: is an ONNX file, which only evaluate and profile take; give a run or weights")
    weights, said_name, said_size = _read_weights(path)
    if said_name and name and lookup_backbone(name).name != lookup_backbone(said_name).name:
        raise CheckpointError(f"{path}: holds {said_name}, not {name}; leave --backbone out or give the right one")
    name = name or said_name
    if name is None:
        raise CheckpointError(f"{path}: does not say which backbone it is; {_advice(weights)}")
    found_size = said_size or _embedding_size(name, weights)
    if embedding_size is not None and embedding_size != found_size:
        raise CheckpointError(f"{path}: its embeddings have {found_size} elements, not {embedding_size}")
    try:
        backbone = create_backbone(name, found_size)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    weights = _with_counters(weights, backbone)
    check_weights(backbone, weights, str(path))
    backbone.load_state_dict(weights)
    return backbone.eval(), path


def read_card(path: Path) -> Mapping[str, Any]:
    """What a file of weights says of itself, such as "backbone" and "training_data"; a bare state dict says nothing.

    Raises:
        CheckpointError: missing or broken.
    """
    return _read_file(path)[1]


def check_weights(backbone: Backbone, weights: Mapping[str, Tensor], where: str) -> None:
    """Hold the names, shapes and kinds of weights against a backbone's.

    Raises:
        CheckpointError: some do not fit; the message names the first.
    """
    expected = backbone.state_dict()
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    shaped = [key for key in expected if key in weights and weights[key].shape != expected[key].shape]
    odd = [key for key in expected if expected[key].is_floating_point() and key in weights and _is_odd(weights[key])]
    problems = (
        ("lacks", missing),
        ("has no place for", unexpected),
        ("differs in the shape of", shaped),
        ("holds no plain floating-point numbers in", odd),
    )
    for problem, keys in problems:
        if keys:
            shown = ", ".join(str(key) for key in keys[:KEYS_SHOWN])
            more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
            subject = f"it {problem}" if problem != "has no place for" else f"{backbone.name} {problem}"
            instead = f"; it holds {unexpected[0]!s:.60} and the like" if keys is missing and unexpected else ""
            raise CheckpointError(f"{where}: not the weights of {backbone.name}: {subject} {shown}{more}{instead}")


def _is_odd(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta


def _file_of(checkpoint: Path) -> Path:
    if not checkpoint.exists():
        raise CheckpointError(
            f"{checkpoint}: no such run or file; give --checkpoint a run's folder or a file of weights"
        )
    if not checkpoint.is_dir():
        return checkpoint
    folder = RunFolder(checkpoint)
    for path in (folder.weights, folder.last):
        if path.is_file():
            return path
    raise CheckpointError(
        f"{checkpoint}: neither model.safetensors nor checkpoints/last.pt is here; has the run begun?"
    )


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str | None, int | None]:
    """The weights of a file, and the backbone's name and embedding size where it says them."""
    content, card = _read_file(path)
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        keys = ", ".join(f"{key!s:.40}" for key in list(content)[:KEYS_SHOWN]) or "nothing"
        known = ", ".join(WRAPPERS)
        raise CheckpointError(
            f"{path}: holds no state dict (names to tensors) of a backbone, but {keys}; it may stand under {known}"
        )
    name, size = card.get("backbone"), card.get("embedding_size")
    sound = size is None or (isinstance(size, int) and 1 <= size <= LARGEST_EMBEDDING)
    if not isinstance(name, str | None) or not sound:
        raise CheckpointError(f"{path}: says backbone {name!r:.40} of embedding size {size!r:.40}, which are none")
    return content, name, size


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A state dict, bare or within a checkpoint of ours or of others, and what ours says of it."""
    content = load_checkpoint(path)
    match content:
        case {
            "backbone": dict(weights),
            "recipe": {"backbone": {"name": name, "embedding_size": size}, "data": {"path": str(data)}},
        }:
            return weights, {"backbone": name, "embedding_size": size, "training_data": Path(data).name}
    for key in WRAPPERS:
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    return _without_prefix(content), {}


def _without_prefix(weights: dict[str, Any]) -> dict[str, Any]:
    """Key names as the network has them, where a wrapper of torch stood around it when it was saved."""
    for prefix in ("module.", "_orig_mod."):
        if weights and all(str(key).startswith(prefix) for key in weights):
            weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _with_counters(weights: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """The weights with the batch counters of normalisation, which older files lack and inference does not need."""
    counters = {key: value for key, value in backbone.state_dict().items() if key.endswith("num_batches_tracked")}
    return counters | weights


def _advice(weights: Mapping[str, Tensor]) -> str:
    """Which registered backbones have just these names and shapes of weights."""
    fitting = [name for name in list_backbones() if _fits(name, weights)]
    if not fitting:
        return "give --backbone NAME (no registered one fits its names and shapes)"
    if len(fitting) > 1:  # as with and without shuffle: the wrong one would answer, and nonsense
        return f"its names and shapes fit {' and '.join(fitting)}, which compute different things; give the right one"
    return f"its names and shapes are those of {fitting[0]}; give --backbone {fitting[0]}"


def _fits(name: str, weights: Mapping[str, Tensor]) -> bool:
    try:
        with torch.device("meta"):
            names = create_backbone(name).state_dict().keys()
            if any(key not in names for key in weights):  # most end here
                return False
            backbone = create_backbone(name, _embedding_size(name, weights))
        check_weights(backbone, _with_counters(dict(weights), backbone), "")
    except (CheckpointError, ConfigError):
        return False
    return True


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of the file and our card in its metadata, where it has one."""
    try:
        data = path.read_bytes()
        weights = load_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        card = json.loads(header.get("__metadata__", {}).get(METADATA_KEY, "{}"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:  # KeyError: a type torch does not know
        raise CheckpointError(f"{path}: no safetensors file, or cut short; restore it from where it came") from error
    return _without_prefix(weights), card if isinstance(card, dict) else {}


def _embedding_size(name: str, weights: Mapping[str, Tensor]) -> int:
    """The embedding size of weights of a backbone: read where its shapes follow that size.

    The order of the file says nothing: safetensors sorts.
    """
    with torch.device("meta"):
        first, second = (create_backbone(name, size).state_dict() for size in PROBED_SIZES)
    for key, tensor in first.items():
        for dimension, sizes in enumerate(zip(tensor.shape, second[key].shape, strict=True)):
            if sizes == PROBED_SIZES and key in weights and weights[key].ndim == tensor.ndim:
                return weights[key].shape[dimension]
    return 512  # nothing fits: the check of names and shapes will say what
