"""The config.json of a published model: what it says of the weights beside it, and whether that is so.

`facebones push` writes it into a repository of the Hugging Face Hub. It is checked wherever its weights are loaded:
from the Hub's cache, from a clone, or from a folder that `push --output` has written.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import nn

from facebones.backbones.base import LARGEST_EMBEDDING
from facebones.errors import CheckpointError
from facebones.system.files import parse_json, read_at_most
from facebones.system.hub import origin, removable
from facebones.system.safetensors_file import open_regular

CONFIG, WEIGHTS, CALIBRATION = "config.json", "model.safetensors", "model.calibration.json"
LIBRARY = "facebones"
FORMAT = 1
LARGEST_CONFIG = 2**20  # bytes
LARGEST_CALIBRATION = 2**20
LARGEST_WEIGHTS = 2**32
LONGEST_NAME = 200


@dataclass(frozen=True, kw_only=True)
class StatedFile:
    """A file beside config.json.

    Attributes:
        sha256: of its bytes, as `sha256sum` prints it.
        size: in bytes.
    """

    sha256: str
    size: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """What is stated of a file on the disk.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            with open_regular(path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
                return cls(sha256=digest, size=file.tell())
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error

    @classmethod
    def of_bytes(cls, content: bytes) -> Self:
        """What is stated of a file with this content."""
        return cls(sha256=hashlib.sha256(content).hexdigest(), size=len(content))

    def to_json(self) -> dict[str, Any]:
        """Both attributes."""
        return {"sha256": self.sha256, "bytes": self.size}


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """What a config.json says that decides how the weights are loaded.

    Attributes:
        backbone: the registered name.
        embedding_size: D of the embeddings.
        parameters: of the network as it was trained.
        weights: model.safetensors.
        calibration: model.calibration.json, the thresholds; None if the model has none.
    """

    backbone: str
    embedding_size: int
    parameters: int
    weights: StatedFile
    calibration: StatedFile | None = None

    def to_json(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """The content of config.json, with further facts for people."""
        files = {WEIGHTS: self.weights.to_json()}
        if self.calibration is not None:
            files[CALIBRATION] = self.calibration.to_json()
        return {
            "library_name": LIBRARY,
            "format": FORMAT,
            "backbone": self.backbone,
            "embedding_size": self.embedding_size,
            "parameters": self.parameters,
            **more,
            "files": files,
        }

    def check_file(self, weights: Path) -> None:
        """Compare the file of weights with what is stated of it.

        Raises:
            CheckpointError: it has another size or digest.
        """
        found = StatedFile.of(weights)
        if found != self.weights:
            what = f"SHA-256 {found.sha256:.12}... instead of {self.weights.sha256:.12}..."
            if found.size != self.weights.size:
                what = f"{found.size:,} bytes instead of {self.weights.size:,}"
            raise CheckpointError(
                f"{origin(weights)}: not the weights that {CONFIG} beside it names: {what}; remove"
                f" {removable(weights)} and fetch the model again, or ask who published it"
            )

    def check_network(self, network: nn.Module, weights: Path) -> None:
        """Compare the loaded network with what is stated of it.

        Raises:
            CheckpointError: it is another backbone, or has another size or number of parameters.
        """
        held = getattr(network, "name", None), getattr(network, "embedding_size", None)
        if held != (self.backbone, self.embedding_size):
            raise CheckpointError(
                f"{origin(weights)}: holds {held[0]} of embedding size {held[1]}, and {CONFIG} beside it says"
                f" {self.backbone!r:.80} of {self.embedding_size}; ask who published it"
            )
        counted = sum(parameter.numel() for parameter in network.parameters())
        if counted != self.parameters:
            raise CheckpointError(
                f"{origin(weights)}: the network has {counted:,} parameters, and {CONFIG} beside it says"
                f" {self.parameters:,}; ask who published it"
            )


def config_beside(weights: Path) -> HubConfig | None:
    """The config.json beside a file of weights; None if there is none, or that of another program.

    Raises:
        CheckpointError: it is of facebones, and damaged or of a newer version.
    """
    path = weights.with_name(CONFIG)
    if weights.name != WEIGHTS or not path.is_file():
        return None
    content = _read(path)
    if not isinstance(content, dict) or content.get("library_name") != LIBRARY:
        return None
    return _checked(path, content)


def read_config(path: Path) -> HubConfig:
    """Read a config.json that must be of facebones.

    Raises:
        CheckpointError: it is of another program, damaged, or of a newer version.
    """
    content = _read(path)
    if not isinstance(content, dict) or content.get("library_name") != LIBRARY:
        raise CheckpointError(f"{path}: not of a facebones model; `facebones push` writes such a file")
    return _checked(path, content)


def _read(path: Path) -> Any:
    """The JSON of a file from anywhere; None if it is none."""
    with open_regular(path) as file:
        try:
            content = read_at_most(file, LARGEST_CONFIG + 1)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return parse_json(content) if len(content) <= LARGEST_CONFIG else None
    except ValueError:
        return None


def _checked(path: Path, content: Mapping[str, Any]) -> HubConfig:
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {content.get('format')!r:.20} is not known here; update facebones")
    match content:
        case {
            "backbone": str(backbone),
            "embedding_size": int(size),
            "parameters": int(parameters),
            "files": {"model.safetensors": weights, **others},
        } if backbone and len(backbone) <= LONGEST_NAME and 1 <= size <= LARGEST_EMBEDDING and parameters >= 0:
            stated = _stated(weights, LARGEST_WEIGHTS)
            calibration = _stated(others[CALIBRATION], LARGEST_CALIBRATION) if CALIBRATION in others else None
            if stated is not None and (calibration is not None or CALIBRATION not in others):
                return HubConfig(
                    backbone=backbone,
                    embedding_size=size,
                    parameters=parameters,
                    weights=stated,
                    calibration=calibration,
                )
    raise CheckpointError(f"{path}: damaged: it lacks what `facebones push` writes; fetch the model again")


def _stated(content: Any, most: int) -> StatedFile | None:
    """What is said of a file; None if that cannot be."""
    match content:
        case {"sha256": str(sha256), "bytes": int(size)} if len(sha256) == 64 and 0 <= size <= most:
            return StatedFile(sha256=sha256, size=size)
    return None
