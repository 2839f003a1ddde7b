"""Weights of a backbone: written by a run, read from a run or a file, and checked against the network.

No pickled code runs: `.pt` and `.pth` files are read by torch's weights-only loader, and `.safetensors` and `.h5` hold
none.
"""

import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from facebones.backbones.base import LARGEST_EMBEDDING, Backbone
from facebones.backbones.registry import create_backbone, lookup_backbone
from facebones.errors import CheckpointError, ConfigError, UnknownNameError, some
from facebones.system.hub import download, is_hub_address, parse_address, pinned
from facebones.system.regular_files import open_regular, read_regular

if TYPE_CHECKING:
    from facebones.run_folder import RunFolder

# Of the files that hold models. The content decides, except for .h5, .json, .onnx and .safetensors.
MODEL_SUFFIXES = frozenset({".bin", ".ckpt", ".h5", ".onnx", ".pt", ".pth", ".safetensors"})
METADATA_KEY = "facebones"  # in a safetensors file: the model card as JSON


def save_weights(folder: "RunFolder", backbone: Backbone, card: Mapping[str, Any]) -> None:
    """Write the trained backbone: model.safetensors, and its model card as model.json and in the file's metadata.

    Args:
        folder: the run's folder.
        backbone: the network.
        card: what the weights are; "backbone" and "embedding_size" at least, so that `load_backbone` needs no options.
    """
    from facebones.system.files import atomic_write, write_json

    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    with atomic_write(folder.weights) as file:
        # A single entry: safetensors writes several in random order, and equal runs should write equal files.
        file.write(save_safetensors(weights, {METADATA_KEY: json.dumps(card)}))
    write_json(folder.weights.with_suffix(".json"), card)


def load_backbone(model: Path, name: str | None = None, embedding_size: int | None = None) -> tuple[Backbone, Path]:
    """Load the backbone of a run or a file of weights, in eval mode on the CPU.

    Args:
        model: a run's folder (its final weights, or else its newest checkpoint), a checkpoint, a `.safetensors` file,
            or a state dict of other code: InsightFace's `backbone.pth` or `checkpoint_gpu_0.pt`, the published study's
            `model.pt`, the files of the MixFaceNet authors; or an `.h5` file of a GhostFaceNet. Also the address of a
            published model, such as hf:owner/name.
        name: the backbone; required if the file does not name it, checked if it does.
        embedding_size: likewise; if the file does not state it, it is read from the shapes.

    Returns:
        the backbone, and the path of the file that was read.

    Raises:
        CheckpointError: a missing or broken file, weights of another backbone or embedding size, or others than the
            config.json beside them says.
        RunError: a published model cannot be fetched.
        UnknownNameError: `name` is not a backbone.
    """
    path = _file_of(local_model(model))
    if path.suffix == ".onnx":
        raise CheckpointError(f"{path}: is an ONNX file, which only evaluate and profile take; give a run or weights")
    published = None
    if path.with_name("config.json").is_file():
        from facebones.backbones.hub_config import config_beside

        published = config_beside(path)
    if published is not None:
        published.check_file(path)
    content, stated_name, stated_size = _read_weights(path)
    name = _agreed_name(path, name, stated_name)
    try:
        with torch.random.fork_rng(devices=[]):  # loading leaves the caller's random state as it was
            backbone = _load_own(content, name, stated_size)
            if backbone is None:
                from facebones.backbones.foreign_weights import load_foreign  # here: our own files do not need it

                backbone = load_foreign(path, content, name, stated_size)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if embedding_size not in (None, backbone.embedding_size):
        raise CheckpointError(f"{path}: its embeddings have {backbone.embedding_size} elements, not {embedding_size}")
    if published is not None:
        published.check_network(backbone, path)
    return backbone.eval(), path


def local_model(model: Path | str) -> Path:
    """The model's file in the Hub's cache if it is named by an address of the Hub, else its path as it is.

    All that opens models calls this first. Only config.json, model.safetensors and the thresholds that config.json
    names are fetched, all of one commit. A path that begins with "hf:" is written "./hf:...".

    Raises:
        CheckpointError: no such repository, no access, not a facebones model, or damaged.
        RunError: the Hub cannot be reached, or the download was cut short.
        ConfigError: no address, or `huggingface_hub` is not installed.

    >>> local_model("runs/mbf")
    PosixPath('runs/mbf')
    """
    if not is_hub_address(model):
        return Path(model)
    from facebones.backbones.hub_config import CALIBRATION, CONFIG, LARGEST_CONFIG, WEIGHTS, StatedFile, read_config

    address = parse_address(model)
    config_path = download(address, CONFIG, most=LARGEST_CONFIG)
    address = pinned(address, config_path)
    try:
        config = read_config(config_path)
    except CheckpointError as error:
        raise CheckpointError(f"{model}: {str(error).removeprefix(f'{config_path}: ')}") from error
    weights = download(address, WEIGHTS, most=config.weights.size, size=config.weights.size)
    if config.calibration is not None:
        wanted = config.calibration
        found = download(address, CALIBRATION, most=wanted.size, size=wanted.size)
        if StatedFile.of(found) != wanted:
            raise CheckpointError(f"{address}: {CALIBRATION} is not the file that {CONFIG} names; fetch it again")
    return weights


def _load_own(content: Any, name: str | None, size: int | None) -> Backbone | None:
    """The backbone of a file that states it and holds its state dict as it is; None for any other file."""
    if name is None or size is None or not isinstance(content, dict):
        return None
    backbone = create_backbone(name, size)
    expected = backbone.state_dict()
    if content.keys() != expected.keys() or any(
        not isinstance(tensor, Tensor) or tensor.shape != expected[key].shape or _is_odd(tensor, expected[key])
        for key, tensor in content.items()
    ):
        return None
    backbone.load_state_dict(content)
    return backbone


def _agreed_name(path: Path, given: str | None, stated: str | None) -> str | None:
    """The backbone's registered name, from the caller and the file; None if neither names it."""
    wanted = lookup_backbone(given).name if given else None
    if not stated:
        return wanted
    try:
        held = lookup_backbone(stated).name
    except UnknownNameError as error:
        raise CheckpointError(f"{path}: {error}; if a plug-in registers it, name the plug-in by --import") from error
    if wanted not in (None, held):
        raise CheckpointError(f"{path}: holds {held}, not {given}; give --backbone {held}")
    return held


def read_card(path: Path) -> Mapping[str, Any]:
    """The model card of a file of weights, such as "backbone" and "training_data"; empty for a bare state dict.

    Raises:
        CheckpointError: a missing or broken file.
    """
    return _read_file(path)[1]


def weights_digest(path: Path) -> str:
    """Digest of a file of weights, and of the external data beside an ONNX file."""
    digest = hashlib.sha256()
    for part in (path, path.with_name(f"{path.name}.data")):
        try:
            with open_regular(part) as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CheckpointError(f"{part}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def check_weights(backbone: Backbone, weights: Mapping[str, Tensor], where: str) -> None:
    """Compare the names, shapes and types of weights with those of a backbone.

    Args:
        backbone: the network to be filled.
        weights: names to tensors.
        where: how the error begins: the file.

    Raises:
        CheckpointError: some do not fit; the message names the first.
    """
    expected = backbone.state_dict()
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    shaped = [key for key in expected if key in weights and weights[key].shape != expected[key].shape]
    odd = [key for key in expected if key in weights and _is_odd(weights[key], expected[key])]
    problems = (
        ("lacks", missing),
        ("has no place for", unexpected),
        ("differs in the shape of", shaped),
        ("holds no plain floating-point numbers in", odd),
    )
    for problem, keys in problems:
        if keys:
            subject = f"it {problem}" if problem != "has no place for" else f"{backbone.name} {problem}"
            instead = f"; it holds {unexpected[0]!s:.60} and the like" if keys is missing and unexpected else ""
            raise CheckpointError(f"{where}: not the weights of {backbone.name}: {subject} {listed(keys)}{instead}")


def listed(keys: Sequence[str]) -> str:
    """The first few names, and the number of the others."""
    return some([f"{key!s:.80}" for key in keys])


def _is_odd(tensor: Tensor, expected: Tensor) -> bool:
    """Whether plain floating-point numbers are expected, and the tensor holds others."""
    plain = tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta
    return expected.is_floating_point() and not plain


def _file_of(model: Path) -> Path:
    if not model.exists():
        raise CheckpointError(f"{model}: no such run or file; name a run's folder or a file of weights")
    if not model.is_dir():
        return model
    from facebones.run_folder import RunFolder

    folder = RunFolder(model)
    if folder.weights.is_file():
        return folder.weights
    if folder.has_last:
        from facebones.system.sharded_checkpoint import newest

        return newest(folder.last, folder.last_index)
    raise CheckpointError(
        f"{model}: neither model.safetensors nor checkpoints/last.pt or last.json is here; has the run begun?"
    )


def _read_weights(path: Path) -> tuple[Any, str | None, int | None]:
    """The content of a file, and the backbone's name and embedding size if it states them."""
    content, card = _read_file(path)
    name, size = card.get("backbone"), card.get("embedding_size")
    sound = size is None or (isinstance(size, int) and 1 <= size <= LARGEST_EMBEDDING)
    if not isinstance(name, str | None) or not sound:
        raise CheckpointError(
            f"{path}: its model card says backbone {_shown(name)} of embedding size {_shown(size)}, which cannot be;"
            " restore the file from its source"
        )
    return content, name, size


def _shown(value: object) -> str:
    """A value from a file, shortened: its lists may hold each other so often that `repr` would take forever."""
    return f"{reprlib.repr(value):.40}"


def _read_file(path: Path) -> tuple[Any, dict[str, Any]]:
    """The content of a file, somewhere in which are tensors by name, and its model card."""
    if path.suffix == ".h5":
        from facebones.backbones.keras_weights import read_keras  # here: no other file needs it

        return read_keras(path), {}
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)


def _read_checkpoint(path: Path) -> tuple[Any, dict[str, Any]]:
    """The content of a checkpoint; only our own ones have a card, and of these the network's part is taken."""
    from facebones.system.checkpoint import load_content

    content = _read_index(path) if path.suffix == ".json" else load_content(path)
    if not isinstance(content, dict | list | tuple):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of weights")
    match content:
        case {
            "backbone": dict(weights),
            "recipe": {"backbone": {"name": name, "embedding_size": size}, "data": {"path": str(data)}},
        }:
            return weights, {"backbone": name, "embedding_size": size, "training_data": Path(data).name}
    return content, {}


def _read_index(path: Path) -> dict[str, Any]:
    """The network in a checkpoint of several processes, and its recipe."""
    from facebones.system.sharded_checkpoint import load_parts

    return load_parts(path, ("backbone", "recipe"))


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of the file, and the card in its metadata if there is one."""
    try:
        data = read_regular(path)
        weights = load_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        card = json.loads(header.get("__metadata__", {}).get(METADATA_KEY, "{}"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:  # KeyError: a type unknown to torch
        from facebones.system.files import stand_in  # here: a sound file does not need it

        if instead := stand_in(path):
            raise CheckpointError(f"{path}: {instead}") from error
        raise CheckpointError(f"{path}: no safetensors file, or cut short; restore it from its source") from error
    return weights, card if isinstance(card, dict) else {}
