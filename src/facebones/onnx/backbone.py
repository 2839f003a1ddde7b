"""An ONNX file as a backbone, run by ONNX Runtime: ours from `facebones export`, and others' with the same input.

ONNX Runtime parses the file: it runs no code of the file's own, refuses operators that it does not know, and refuses
weights kept outside of the file's folder.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from facebones.backbones import Backbone
from facebones.backbones.registry import IMAGE_SIZE
from facebones.errors import CheckpointError, ConfigError

INPUTS = {  # element type: what follows the batch in the input's shape
    "tensor(float)": (3, IMAGE_SIZE, IMAGE_SIZE),
    "tensor(uint8)": (IMAGE_SIZE, IMAGE_SIZE, 3),  # preprocessing folded into the graph
}
CUDA_PROVIDER, CPU_PROVIDER = "CUDAExecutionProvider", "CPUExecutionProvider"
ONLY_FATAL = 4  # of ONNX Runtime's log, which goes to stderr; what goes wrong arrives as an exception too


class OnnxBackbone(Backbone):
    """A network in an ONNX file; takes and gives CPU tensors, wherever it computes.

    Args:
        path: the file; weights beside it (external data) must lie in its folder.
        device: "cpu"; "cuda" or "cuda:1"; "auto" takes CUDA where this ONNX Runtime has it.
        threads: threads of an operator on the CPU; None takes as many as torch.

    Attributes:
        input_name: the name of the file's input.
        said_name: the backbone's name in the registry, where the file is ours and says it.
        name: that name, or else the file's.
        embedding_size: D.
        metadata: text that the file carries about itself.
        batch: the only batch size that the file takes, 1, or None where it takes any.
        folded: whether the graph takes uint8 pixels (B, H, W, 3) and scales them itself.
        provider: where ONNX Runtime computes.

    Raises:
        CheckpointError: no ONNX file, or no network from a face to an embedding.
        ConfigError: ONNX Runtime is missing, or has no such device.
    """

    def __init__(self, path: Path, device: str = "cpu", threads: int | None = None) -> None:
        super().__init__()
        self.path = path
        self._session = _open_session(path, device, threads or torch.get_num_threads())
        self.provider: str = self._session.get_providers()[0]
        self.metadata: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        # Others may use the word "backbone" in their files for anything.
        self.said_name = self.metadata.get("backbone") if "facebones_version" in self.metadata else None
        self.name = self.said_name or path.stem
        self.input_name, self.batch, self.folded = self._read_signature()
        with torch.inference_mode():  # shows that it runs at all, and what comes out, whatever the file says of it
            self.embedding_size = self(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)).shape[1]

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Embed faces; to a folded file go the nearest pixels, which for 8-bit images are the very pixels.

        Raises:
            CheckpointError: ONNX Runtime cannot run the file on them.
        """
        images = self.to_file_input(x_B3HW)
        step = self.batch or max(1, len(images))
        answers = [self._run(images[start : start + step]) for start in range(0, len(images), step)]
        return torch.from_numpy(np.concatenate(answers)).to(x_B3HW.device)

    def to_file_input(self, x_B3HW: Tensor) -> npt.NDArray[Any]:
        """What the file takes, from x as our backbones take it; x may be scaled otherwise, by `Preprocessing`."""
        x = x_B3HW.detach().float()
        if self.folded:
            x = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        return np.ascontiguousarray(x.cpu().numpy())

    def _run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        try:
            (answer,) = self._session.run(None, {self.input_name: images})
        except _runtime_errors() as error:
            raise CheckpointError(
                f"{self.path}: cannot be run on {len(images)} images: {_one_line(error)}; restore or export it again"
            ) from error
        if not isinstance(answer, np.ndarray) or answer.ndim != 2 or len(answer) != len(images):
            found = f"of shape {answer.shape}" if isinstance(answer, np.ndarray) else "without a shape"
            raise CheckpointError(f"{self.path}: its output is {found} for {len(images)} images, not (B, D)")
        return answer.astype(np.float32, copy=False)

    def _read_signature(self) -> tuple[str, int | None, bool]:
        """Of the input that the file declares: its name, the batch size, and whether preprocessing is folded."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise CheckpointError(
                f"{self.path}: has {len(inputs)} inputs and {len(outputs)} outputs; a backbone has one of each"
            )
        kind, shape = inputs[0].type, inputs[0].shape
        # A size that is text or None is whatever it is fed with.
        wanted = [(None, 1), *((None, size) for size in INPUTS.get(kind, ()))]
        sizes = [size if isinstance(size, int) else None for size in shape]
        if len(sizes) != len(wanted) or any(size not in fit for size, fit in zip(sizes, wanted, strict=True)):
            raise CheckpointError(
                f"{self.path}: its input is {kind} {shape}; known are float (B, 3, {IMAGE_SIZE}, {IMAGE_SIZE}) and "
                f"uint8 (B, {IMAGE_SIZE}, {IMAGE_SIZE}, 3) with a free batch or a batch of 1; export it again"
            )
        return inputs[0].name, sizes[0], kind == "tensor(uint8)"


def _open_session(path: Path, device: str, threads: int) -> Any:
    """An inference session on a device.

    By path and not by content: only so does ONNX Runtime know the folder in which external data must lie.
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
        raise CheckpointError(f"{path}: no ONNX file that can be run: {_one_line(error)}") from error
    if device.startswith("cuda") and session.get_providers()[0] != CUDA_PROVIDER:  # it would go on without a word
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
    """ONNX Runtime's own exceptions; they have no base in common."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))


def _one_line(error: Exception) -> str:
    """The message without ONNX Runtime's codes and the path again, in one line of a readable length."""
    message = " ".join(str(error).rpartition(" : ")[2].split())
    return re.sub(r"^Load model from .* failed:", "", message)[:200]
