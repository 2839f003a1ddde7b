"""A run's folder, its checkpoints, and the weights that leave it.

A checkpoint is one dictionary of tensors, numbers and text with everything that training needs to go on; it is read
with torch's weights-only loader, so that a stranger's file cannot run code. Writes are atomic.
"""

import io
import json
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from facebones.backbones import Backbone, create_backbone, lookup_backbone
from facebones.config import Recipe, dump_recipe, load_recipe
from facebones.errors import CheckpointError, ConfigError
from facebones.files import atomic_write, write_json

MISSING_KEYS_SHOWN = 3
METADATA_KEY = "facebones"  # of a safetensors file: the model card as JSON


@dataclass(frozen=True)
class RunFolder:
    """The files of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved recipe."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: what was measured while training."""
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        """The final figures."""
        return self.path / "result.json"

    @property
    def environment(self) -> Path:
        """Versions, device and data of the run."""
        return self.path / "environment.json"

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best mean accuracy over the validation sets."""
        return self.path / "checkpoints" / "best.pt"

    @property
    def weights(self) -> Path:
        """The trained backbone; model.json beside it says what it is."""
        return self.path / "model.safetensors"

    def refuse_existing(self) -> None:
        """Raise ConfigError where the folder already holds a run."""
        if self.config.exists() or self.last.exists():
            raise ConfigError(
                f"{self.path}: already holds a run; go on with `facebones resume {self.path}`"
                " or choose another --output"
            )

    def create(self, recipe: Recipe) -> None:
        """Make the folder of a new run.

        Raises:
            ConfigError: the folder already holds a run, or cannot be made.
        """
        self.refuse_existing()
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
            self.metrics.unlink(missing_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be written: {error.strerror}; choose another --output") from error
        with atomic_write(self.config) as file:
            file.write(dump_recipe(recipe).encode())

    def open(self) -> Recipe:
        """The recipe of the run that is here; what a killed process left half-written is removed.

        Raises:
            CheckpointError: there is no run here.
        """
        if not self.config.is_file():
            raise CheckpointError(f"{self.path}: holds no run (no config.yaml); begin one with `facebones train`")
        for leftover in (*self.path.glob(".*.tmp"), *self.last.parent.glob(".*.tmp")):
            leftover.unlink()
        return load_recipe(self.config)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state atomically.

    Raises:
        RunError: the disk is full or the place cannot be written; an older checkpoint there is kept.
    """
    buffer = io.BytesIO()  # torch's own writer hides the reason of a failed write
    torch.save(dict(state), buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a `.pt` or `.pth` file's dictionary onto the CPU, weights only.

    Raises:
        CheckpointError: missing, cut short, no checkpoint, or holding anything but tensors and plain values.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, or is no checkpoint; refused, nothing in it was run"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path}: no checkpoint, or cut short; restore it from where it came") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of weights")
    return content


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
            `.safetensors` file, or a state dict under InsightFace's key names (`backbone.pth`).
        name: the backbone; needed where the file does not say it, checked where it does.
        embedding_size: likewise; taken from the last layer's shape where the file does not say it.

    Returns:
        the backbone, and the path of the file that was read.

    Raises:
        CheckpointError: missing, broken, or weights of another backbone or embedding size.
    """
    path = _file_of(checkpoint)
    weights, said_name, said_size = _read_weights(path)
    if said_name and name and lookup_backbone(name).name != lookup_backbone(said_name).name:
        raise CheckpointError(f"{path}: holds a {said_name}, not a {name}; leave --backbone out or give the right one")
    name = name or said_name
    if name is None:
        raise CheckpointError(f"{path}: does not say which backbone it is; give --backbone NAME")
    found_size = said_size or _last_vector_size(weights)
    if embedding_size is not None and embedding_size != found_size:
        raise CheckpointError(f"{path}: its embeddings have {found_size} elements, not {embedding_size}")
    with torch.device("meta"):
        backbone = create_backbone(name, found_size)
    check_weights(backbone, weights, str(path))
    backbone.load_state_dict(weights, assign=True)
    return backbone.float().eval(), path


def check_weights(backbone: Backbone, weights: Mapping[str, Tensor], where: str) -> None:
    """Hold the names and shapes of weights against a backbone's.

    Raises:
        CheckpointError: some do not fit; the message names the first.
    """
    expected = backbone.state_dict()
    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    shaped = [key for key in expected if key in weights and weights[key].shape != expected[key].shape]
    for problem, keys in (("lacks", missing), ("has no place for", unexpected), ("differs in the shape of", shaped)):
        if keys:
            shown = ", ".join(str(key) for key in keys[:MISSING_KEYS_SHOWN])
            more = f" and {len(keys) - MISSING_KEYS_SHOWN} more" if len(keys) > MISSING_KEYS_SHOWN else ""
            subject = f"it {problem}" if problem != "has no place for" else f"{backbone.name} {problem}"
            raise CheckpointError(f"{where}: not the weights of {backbone.name}: {subject} {shown}{more}")


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
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = load_checkpoint(path)
    name, size = None, None
    if "recipe" in content and "backbone" in content:
        backbone = content["recipe"]["backbone"]
        content, name, size = content["backbone"], backbone["name"], backbone["embedding_size"]
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds no state dict (names to tensors) of a backbone")
    return content, name, size


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None, int | None]:
    try:
        data = path.read_bytes()
        weights = load_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        card = json.loads(header.get("__metadata__", {}).get(METADATA_KEY, "{}"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: no safetensors file, or cut short; restore it from where it came") from error
    return weights, card.get("backbone"), card.get("embedding_size")


def _last_vector_size(weights: Mapping[str, Tensor]) -> int:
    """The embedding size: every backbone ends in a normalisation with one weight an element."""
    vectors = [tensor for tensor in weights.values() if tensor.ndim == 1]
    return len(vectors[-1]) if vectors else 512
