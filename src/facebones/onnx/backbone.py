"""An ONNX file as a backbone, run by ONNX Runtime: files of `facebones export`, and any other file with such an input.

An untrusted file is safe to open: ONNX Runtime runs no code from it, refuses unknown operators, and refuses weights
outside of the file's folder.
"""

import copy
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from facebones.backbones.base import Backbone
from facebones.errors import CheckpointError, ConfigError, counted
from facebones.onnx.scaling import Scaling, find_scaling
from facebones.onnx.signature import Array, Infer, Signature, find_signature
from facebones.system.files import stand_in

CUDA_PROVIDER, CPU_PROVIDER = "CUDAExecutionProvider", "CPUExecutionProvider"
ONLY_FATAL = 4  # log level of ONNX Runtime, which logs to stderr; errors raise exceptions too


class OnnxBackbone(Backbone):
    """A network in an ONNX file; inputs and outputs are CPU tensors on any device.

    Args:
        path: the file; external data (weights in further files) must lie in its folder.
        device: "cpu", "cuda" or "cuda:1"; "auto" takes CUDA if this ONNX Runtime has it.
        threads: CPU threads per operator; None takes torch's number.
        output_name: the output to take, of several that may be embeddings.

    Attributes:
        said_name: the registered name of the backbone, if `facebones export` wrote the file; else None.
        name: that name, or else the file's stem.
        embedding_size: D.
        metadata: the file's own metadata.
        signature: how the file takes faces and returns embeddings, found by running it.
        batch: images at a time, such as 1 or the file's fixed batch; None if it takes any number.
        folded: whether the graph takes uint8 pixels and scales them itself.
        provider: ONNX Runtime's execution provider.
        output_names: names of all outputs.

    Raises:
        CheckpointError: not an ONNX file, or its network does not map a face to an embedding.
        ConfigError: ONNX Runtime is missing, or does not support the device.
    """

    def __init__(
        self, path: Path, device: str = "cpu", threads: int | None = None, output_name: str | None = None
    ) -> None:
        super().__init__()
        self.path = path
        self._session = _open_session(path, device, threads or torch.get_num_threads())
        self.provider: str = self._session.get_providers()[0]
        try:
            self.metadata: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
            inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
            self.output_names = [output.name for output in outputs]
            self._infer: Infer | None = None  # of another runtime
            self.signature: Signature = find_signature(path, inputs, outputs, self._run_session, output_name)
        except UnicodeDecodeError as error:  # names of dimensions are read when a shape is
            raise CheckpointError(f"{path}: names or metadata in it are not UTF-8; export it again") from error
        # In files of other tools, "backbone" may mean anything.
        self.said_name = self.metadata.get("backbone") if "facebones_version" in self.metadata else None
        self.name = self.said_name or path.stem
        self.batch, self.embedding_size = self.signature.batch, self.signature.embedding_size
        self.folded = self.signature.dtype == np.uint8

    @cached_property
    def scaling(self) -> Scaling | None:
        """The preprocessing by which the graph begins; None if there is none, or the package onnx is missing."""
        return find_scaling(self.path, self.signature.input_name, self.signature.channels_last)

    def computed_by(self, infer: Infer, batch: int) -> Self:
        """The same file computed by another runtime, which takes batches of one size only."""
        other = copy.copy(self)
        other._infer, other.batch = infer, batch
        return other

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Embed faces (B, 3, 112, 112); a folded file gets the nearest 8-bit pixels, exact for 8-bit images.

        Raises:
            CheckpointError: ONNX Runtime cannot run the file on them.
        """
        images = self.to_file_input(x_B3HW)
        step = self.batch or max(1, len(images))
        answers = [self._embed(images[start : start + step]) for start in range(0, len(images), step)]
        return torch.from_numpy(np.concatenate(answers)).to(x_B3HW.device)

    def to_file_input(self, x_B3HW: Tensor) -> Array:
        """The file's input array, from a backbone's input (B, 3, H, W); another `Preprocessing` may have scaled it."""
        x = x_B3HW.detach().float()
        if self.folded:
            x = ((x + 1) * 127.5).round().clamp(0, 255)
        if self.signature.channels_last:
            x = x.permute(0, 2, 3, 1)
        return np.ascontiguousarray(x.cpu().numpy(), dtype=self.signature.dtype)

    def _embed(self, images: Array) -> npt.NDArray[np.float32]:
        count = len(images)
        if self.batch and count < self.batch:
            images = np.concatenate([images, np.repeat(images[-1:], self.batch - count, axis=0)])
        answers = (self._infer or self._run_session)(images)
        found = self.signature.embeddings(answers, len(images))
        if found is None:
            shape = getattr(answers[self.signature.output], "shape", "none")
            raise CheckpointError(f"{self.path}: its output is of shape {shape} for {len(images)} images, not (B, D)")
        return found[:count]

    def _run_session(self, images: Array) -> list[Array]:
        try:
            return list(self._session.run(None, {self._session.get_inputs()[0].name: images}))
        except _runtime_errors() as error:
            what = f"cannot be run on {counted(len(images), 'image')}: {_one_line(error)}"
            raise CheckpointError(f"{self.path}: {what}; restore or export it again") from error


def _open_session(path: Path, device: str, threads: int) -> Any:
    """Open an inference session on a device.

    The file is passed by path: ONNX Runtime then knows the folder in which external data must lie.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"{path}: an ONNX file needs ONNX Runtime; pip install 'facebones[export]'") from error
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give an ONNX file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = ONLY_FATAL
    providers = _providers(device, onnxruntime.get_available_providers())
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except _runtime_errors() as error:
        if instead := stand_in(path):
            raise CheckpointError(f"{path}: {instead}") from error
        raise CheckpointError(f"{path}: no ONNX file that can be run: {_one_line(error)}") from error
    # ONNX Runtime falls back to the CPU without an error.
    if device.startswith("cuda") and session.get_providers()[0] != CUDA_PROVIDER:
        raise ConfigError(f"--device {device}: ONNX Runtime cannot load CUDA or cuDNN; install them, or --device cpu")
    return session


def _providers(device: str, available: list[str]) -> list[Any]:
    kind, _, index = device.partition(":")
    if kind == "cuda" and CUDA_PROVIDER not in available:
        raise ConfigError(f"--device {device}: this ONNX Runtime has no CUDA; --device cpu, or install onnxruntime-gpu")
    if kind not in ("auto", "cpu", "cuda") or not (index or "0").isdecimal():
        raise ConfigError(f"--device {device}: ONNX files run on cpu or cuda")
    cuda = [(CUDA_PROVIDER, {"device_id": index or "0"})] if kind != "cpu" and CUDA_PROVIDER in available else []
    return [*cuda, CPU_PROVIDER]


def _runtime_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's exceptions, which share no base class; a name that is not UTF-8 and a shape of many dimensions."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (ValueError, *own)


def _one_line(error: Exception) -> str:
    """The message in one line of at most 200 characters, without ONNX Runtime's codes and the path."""
    message = " ".join(str(error).rpartition(" : ")[2].split())
    return re.sub(r"^Load model from .* failed:", "", message)[:200]
