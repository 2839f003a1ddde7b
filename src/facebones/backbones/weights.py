"""Weights of a backbone: written by a run, read from a run or a file, and checked against the network.

No pickled code runs: `.pt` and `.pth` files are read by torch's weights-only loader, and `.safetensors` hold none.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from facebones.backbones.base import LARGEST_EMBEDDING, Backbone
from facebones.backbones.registry import create_backbone, lookup_backbone
from facebones.backbones.state_dicts import (
    COUNTER,
    PREFERRED,
    Match,
    Tensors,
    embedding_size_of,
    find_state_dicts,
    fitting_networks,
    match_any,
)
from facebones.errors import CheckpointError, ConfigError, UnknownNameError

if TYPE_CHECKING:
    from facebones.run_folder import RunFolder

KEYS_SHOWN = 3
METADATA_KEY = "facebones"  # in a safetensors file: the model card as JSON
MAGFACE_EPS = 2e-5  # of all batch normalisation in MagFace's iResNets, whose files have "features." before the names


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
            `model.pt`, the files of the MixFaceNet authors.
        name: the backbone; required if the file does not name it, checked if it does.
        embedding_size: likewise; if the file does not state it, it is read from the shapes.

    Returns:
        the backbone, and the path of the file that was read.

    Raises:
        CheckpointError: a missing or broken file, or weights of another backbone or embedding size.
        UnknownNameError: `name` is not a backbone.
    """
    path = _file_of(model)
    if path.suffix == ".onnx":
        raise CheckpointError(f"{path}: is an ONNX file, which only evaluate and profile take; give a run or weights")
    held, stated_name, stated_size = _read_weights(path)
    name = _agreed_name(path, name, stated_name)
    if name is None:
        raise CheckpointError(f"{path}: does not say which backbone it is; {_advice(held)}")
    try:
        found_size = stated_size or embedding_size_of(name, held)
        if embedding_size is not None and embedding_size != found_size:
            raise CheckpointError(f"{path}: its embeddings have {found_size} elements, not {embedding_size}")
        with torch.random.fork_rng(devices=[]):  # loading leaves the caller's random state as it was
            backbone = create_backbone(name, found_size)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    _fill(backbone, held, path)
    return backbone.eval(), path


def _fill(backbone: Backbone, held: Mapping[str, Tensors], path: Path) -> None:
    """Load the state dict of a file that fits a network; notes say what was left out.

    Raises:
        CheckpointError: none fits, or several do.
    """
    expected = {key: tuple(tensor.shape) for key, tensor in backbone.state_dict().items()}
    match = match_any(expected, held)
    counters = {key: value for key, value in backbone.state_dict().items() if key.endswith(COUNTER)}
    weights = {**counters, **match.tensors}  # old files lack the counters
    try:
        check_weights(backbone, weights | {key: held[match.place][key] for key in match.surplus}, str(path))
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_instead(backbone.name, match, held)}") from error
    if match.others:
        _choose(match, path)
    if match.beside:
        shown = _listed(match.beside)
        _note(f"{path}: left out what {backbone.name} has no place for beside the network: {shown}")
    backbone.load_state_dict(weights)
    if "features" in match.wrapper.split(".") and lookup_backbone(backbone.name).family == "iresnet":
        _set_eps_of_magface(backbone, path)


def _choose(match: Match, path: Path) -> None:
    """Say which of several networks in a file is taken.

    Raises:
        CheckpointError: nothing says which one is meant.
    """
    if match.place.rpartition(".")[2] in PREFERRED and not match.others[0].endswith("."):
        _note(f"{path}: took {match.place}; left out {_listed(match.others)}, which fits as well")
        return
    here = match.place or "the top"
    pick = f"torch.load({str(path)!r})" + "".join(f"[{key!r}]" for key in match.place.split(".") if match.place)
    if match.others[0].endswith("."):
        here = match.wrapper or here
        pick = f"{{k: v for k, v in {pick}.items() if k.startswith({here!r})}}"
    raise CheckpointError(
        f"{path}: holds the network several times: {here} and {_listed(match.others)}; save the one that you mean, such"
        f" as by torch.save({pick}, 'weights.pth') in Python"
    )


def _note(text: str) -> None:
    from facebones.system.progress import say  # here: most files need no note

    say(f"note: {text}")


def _set_eps_of_magface(backbone: Backbone, path: Path) -> None:
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = MAGFACE_EPS
    _note(
        f"{path}: has 'features.' before the names, as MagFace's files have: batch normalisation computes with"
        f" its eps {MAGFACE_EPS:g}; its input is BGR from 0 to 1 (--mean 0 --scale 255 --colour bgr)"
    )


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
        raise CheckpointError(f"{path}: holds {held}, not {given}; leave --backbone out or give the right one")
    return held


def read_card(path: Path) -> Mapping[str, Any]:
    """The model card of a file of weights, such as "backbone" and "training_data"; empty for a bare state dict.

    Raises:
        CheckpointError: a missing or broken file.
    """
    return _read_file(path)[1]


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
    odd = [key for key in expected if expected[key].is_floating_point() and key in weights and _is_odd(weights[key])]
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
            raise CheckpointError(f"{where}: not the weights of {backbone.name}: {subject} {_listed(keys)}{instead}")


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    return ", ".join(f"{key!s:.80}" for key in keys[:KEYS_SHOWN]) + more


def _is_odd(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta


def _file_of(model: Path) -> Path:
    if not model.exists():
        raise CheckpointError(f"{model}: no such run or file; give --model a run's folder or a file of weights")
    if not model.is_dir():
        return model
    from facebones.run_folder import RunFolder

    folder = RunFolder(model)
    for path in (folder.weights, folder.last):
        if path.is_file():
            return path
    raise CheckpointError(f"{model}: neither model.safetensors nor checkpoints/last.pt is here; has the run begun?")


def _read_weights(path: Path) -> tuple[dict[str, Tensors], str | None, int | None]:
    """The state dicts in a file by their place, and the backbone's name and embedding size if it states them."""
    content, card = _read_file(path)
    held = find_state_dicts(content)
    if not held:
        keys = _listed(list(content)) or "nothing"
        raise CheckpointError(
            f"{path}: holds no state dict (names to tensors) of a backbone but {keys}; save one by"
            " torch.save(network.state_dict(), 'weights.pth')"
        )
    name, size = card.get("backbone"), card.get("embedding_size")
    sound = size is None or (isinstance(size, int) and 1 <= size <= LARGEST_EMBEDDING)
    if not isinstance(name, str | None) or not sound:
        raise CheckpointError(
            f"{path}: its model card says backbone {name!r:.40} of embedding size {size!r:.40}, which cannot be;"
            " restore the file from its source"
        )
    return held, name, size


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of a file, somewhere in which are tensors by name, and its model card."""
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of a checkpoint; only our own ones have a card, and of these the network's part is taken."""
    from facebones.system.checkpoint import load_checkpoint

    content = load_checkpoint(path)
    match content:
        case {
            "backbone": dict(weights),
            "recipe": {"backbone": {"name": name, "embedding_size": size}, "data": {"path": str(data)}},
        }:
            return weights, {"backbone": name, "embedding_size": size, "training_data": Path(data).name}
    return content, {}


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of the file, and the card in its metadata if there is one."""
    try:
        data = path.read_bytes()
        weights = load_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        card = json.loads(header.get("__metadata__", {}).get(METADATA_KEY, "{}"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:  # KeyError: a type unknown to torch
        raise CheckpointError(f"{path}: no safetensors file, or cut short; restore it from its source") from error
    return weights, card if isinstance(card, dict) else {}


def _advice(held: Mapping[str, Tensors]) -> str:
    """Name the registered backbones whose weights are in a file, or those that come closest."""
    fitting, close = fitting_networks(held)
    if not fitting:
        return f"no registered backbone fits its names and shapes{_closest(close)}"
    if len(fitting) > 1:  # with and without shuffle: the wrong one would run and give nonsense
        return f"its names and shapes fit {' and '.join(fitting)}, which compute different things; give the right one"
    return f"its names and shapes are those of {fitting[0]}; give --backbone {fitting[0]}"


def _instead(name: str, match: Match, held: Mapping[str, Tensors]) -> str:
    """For weights that do not fit a backbone: the registered ones that they fit, or those that come closest."""
    if match.fits:  # numbers of an odd type
        return ""
    fitting, close = fitting_networks(held)
    if fitting:
        return f"; its names and shapes are those of {' and '.join(fitting)}"
    return _closest([(other, found) for other, found in close if other != name]) if close else ""


def _closest(close: Sequence[tuple[str, Match]]) -> str:
    """The registered backbones that come closest, with what is missing."""
    return "; the closest: " + "; ".join(f"{name} ({_lack(match)})" for name, match in close) if close else ""


def _lack(match: Match) -> str:
    total = len(match.missing) + sum(not key.endswith(COUNTER) for key in match.tensors)
    parts = (
        (f"lacks {len(match.missing)} of {total} tensors", match.missing),
        (f"{len(match.misshapen)} of another shape", match.misshapen),
        (f"{len(match.surplus)} too many", match.surplus),
    )
    return ", ".join(f"{what}, such as {keys[0]!s:.80}" for what, keys in parts if keys)
