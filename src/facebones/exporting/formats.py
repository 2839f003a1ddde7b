"""The formats of deployment: how a network becomes a file, and how the file is computed again.

Every file takes `NETWORK_INPUT`: (B, 3, 112, 112) float32, RGB in [-1, 1]. ExecuTorch and LiteRT files take one face.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facebones.backbones.base import IMAGE_SIZE, Backbone, deploy_form
from facebones.data.images import ImageArray
from facebones.errors import ConfigError, UnknownNameError
from facebones.exporting.onnx_file import describe, write_int8, write_model
from facebones.onnx.backbone import OnnxBackbone
from facebones.onnx.graph import NETWORK_INPUT, quiet, to_onnx
from facebones.onnx.openvino import compile_openvino, save_openvino
from facebones.onnx.quantize import METHOD

ALL = "all"
STEM = "model"  # of the files' names
LARGEST_BATCH = 1024  # of a torch.export file


@dataclass
class Material:
    """What the formats are made of; each ONNX file is made once.

    Attributes:
        network: as it was trained, in eval mode on the CPU.
        checkpoint: the file that it came from.
        folder: for files that other files are made of.
        calibration: images for the ranges of activations, (112, 112, 3) uint8 RGB.
        float_layers: layers that 8-bit files leave in fp32.
    """

    network: Backbone
    checkpoint: Path
    folder: Path
    calibration: Sequence[ImageArray]
    float_layers: Sequence[str] = ()

    @cached_property
    def deployed(self) -> Backbone:
        """The network in deploy form."""
        return deploy_form(self.network)

    @cached_property
    def fp32(self) -> OnnxBackbone:
        """The network as ONNX."""
        return write_model(self.folder / "fp32.onnx", to_onnx(self.deployed, str(self.checkpoint)), self._metadata())

    @cached_property
    def int8(self) -> OnnxBackbone:
        """The same in 8 bits, as `facebones export --int8` makes it."""
        metadata = {**self._metadata(), "quantization": METHOD}
        return write_int8(self.fp32, self.folder / "int8.onnx", self.calibration, metadata, self.float_layers)

    def _metadata(self) -> dict[str, str]:
        return describe(self.deployed, self.checkpoint, NETWORK_INPUT)


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format.

    Attributes:
        precision: "fp32", "fp16" or "int8", of the weights; in "int8" of the activations too.
        files: names of the files, the one that is opened first.
        write: writes them; it gets the path of the first.
        open: the path and the largest batch, to a network that computes on the CPU.
        packages: import names of what both need.
        extra: the extra that installs them.
    """

    precision: str
    files: tuple[str, ...]
    write: Callable[[Material, Path], None]
    open: Callable[[Path, int], Backbone]
    packages: tuple[str, ...] = ()
    extra: str = ""

    @property
    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [name for name in self.packages if find_spec(name) is None]


def find_formats(words: str | Sequence[str]) -> dict[str, bool]:
    """The formats that are asked for, in the order of the table, and whether each is asked for by name.

    Args:
        words: names, or one text with commas between them; ALL stands for all.

    Raises:
        UnknownNameError: no such format.
        ConfigError: no name.

    >>> find_formats("onnx-int8,onnx")
    {'onnx': True, 'onnx-int8': True}
    """
    names = [word.strip() for word in words.split(",")] if isinstance(words, str) else list(words)
    names = [name for name in names if name]
    if not names:
        raise ConfigError(f"--formats: none; give {ALL}, or names such as onnx,onnx-int8")
    if unknown := [name for name in names if name not in FORMATS and name != ALL]:
        raise UnknownNameError("format", unknown[0], [*FORMATS, ALL], where="--formats")
    return {name: name in names for name in FORMATS if name in names or ALL in names}


class ComputedBackbone(Backbone):
    """A file as a network, computed in batches by a function.

    Args:
        compute: (batch, 3, H, W) float32 to (batch, D).
        batch: the one size of batches that it takes; None: any.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], batch: int | None) -> None:
        super().__init__()
        self._compute, self._batch = (compute,), batch  # in a tuple, a module is not registered as a part

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Embed faces (B, 3, 112, 112)."""
        step = self._batch or max(1, len(x_B3HW))
        return torch.cat([self._embed(x_B3HW[start : start + step], step) for start in range(0, len(x_B3HW), step)])

    def _embed(self, x_B3HW: Tensor, size: int) -> Tensor:
        count = len(x_B3HW)
        filled = torch.cat([x_B3HW, x_B3HW[-1:].expand(size - count, -1, -1, -1)]) if count < size else x_B3HW
        return self._compute[0](filled.contiguous())[:count].float()


# ------------------------------------------------------------------------------------------------------------- ONNX


def _write_onnx(material: Material, path: Path) -> None:
    path.write_bytes(material.fp32.path.read_bytes())


def _write_onnx_fp16(material: Material, path: Path) -> None:
    """Input and output stay float32; numbers beyond the range of fp16 are clipped to it."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of each number that is clipped; the comparison shows the effect
        model = convert_float_to_float16(onnx.load(str(material.fp32.path)), keep_io_types=True)
    write_model(path, model, material.fp32.metadata)


def _write_onnx_int8(material: Material, path: Path) -> None:
    path.write_bytes(material.int8.path.read_bytes())


def _open_onnx(path: Path, _: int) -> Backbone:
    return OnnxBackbone(path)


# --------------------------------------------------------------------------------------------------------- OpenVINO


def _write_openvino(material: Material, path: Path) -> None:
    save_openvino(material.fp32.path, path)


def _write_openvino_fp16(material: Material, path: Path) -> None:
    save_openvino(material.fp32.path, path, half=True)


def _write_openvino_int8(material: Material, path: Path) -> None:
    save_openvino(material.int8.path, path)


def _open_openvino(path: Path, batch_size: int) -> Backbone:
    infer = compile_openvino(path, (batch_size, 3, IMAGE_SIZE, IMAGE_SIZE), "f32")
    return ComputedBackbone(lambda x: torch.from_numpy(infer(x.numpy())[0]), batch_size)


# ------------------------------------------------------------------------------------------- torch.export, ExecuTorch


def _write_torch_export(material: Material, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    torch.export.save(_traced(material.deployed, 2, ({0: batch},)), path)


def _traced(network: Backbone, faces: int, dynamic_shapes: Any = None) -> torch.export.ExportedProgram:
    """The network as torch's graph, without the lines of code and the paths of this machine."""
    images = torch.zeros(faces, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        program = torch.export.export(network, (images,), dynamic_shapes=dynamic_shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _open_torch_export(path: Path, _: int) -> Backbone:
    return ComputedBackbone(torch.export.load(path).module(), None)


def _write_executorch(material: Material, path: Path) -> None:
    """With the kernels of XNNPACK, for processors of phones and computers."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(_traced(material.deployed, 1), partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def _open_executorch(path: Path, _: int) -> Backbone:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(path)).load_method("forward")
    return ComputedBackbone(lambda x: method.execute([x])[0].clone(), 1)


# ----------------------------------------------------------------------------------------------------------- LiteRT


def _write_litert(material: Material, path: Path) -> None:
    import litert_torch

    images = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    litert_torch.convert(material.deployed, (images,)).export(str(path))


def _open_litert(path: Path, _: int) -> Backbone:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=torch.get_num_threads())
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()

    def compute(x_1CHW: Tensor) -> Tensor:
        interpreter.set_tensor(taken["index"], x_1CHW.numpy())
        interpreter.invoke()
        return torch.from_numpy(np.array(interpreter.get_tensor(given["index"])))

    return ComputedBackbone(compute, 1)


_ONNX: dict[str, Any] = {
    "open": _open_onnx,
    "packages": ("onnx", "onnxscript", "onnxruntime"),
    "extra": "export",
}
_OPENVINO: dict[str, Any] = {
    "open": _open_openvino,
    "packages": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "extra": "openvino",
}
FORMATS = {
    "onnx": Format(precision="fp32", files=(f"{STEM}.onnx",), write=_write_onnx, **_ONNX),
    "onnx-fp16": Format(precision="fp16", files=(f"{STEM}_fp16.onnx",), write=_write_onnx_fp16, **_ONNX),
    "onnx-int8": Format(precision="int8", files=(f"{STEM}_int8.onnx",), write=_write_onnx_int8, **_ONNX),
    "openvino": Format(
        precision="fp32", files=(f"{STEM}_openvino.xml", f"{STEM}_openvino.bin"), write=_write_openvino, **_OPENVINO
    ),
    "openvino-fp16": Format(
        precision="fp16",
        files=(f"{STEM}_openvino_fp16.xml", f"{STEM}_openvino_fp16.bin"),
        write=_write_openvino_fp16,
        **_OPENVINO,
    ),
    "openvino-int8": Format(
        precision="int8",
        files=(f"{STEM}_openvino_int8.xml", f"{STEM}_openvino_int8.bin"),
        write=_write_openvino_int8,
        **_OPENVINO,
    ),
    "torch-export": Format(
        precision="fp32", files=(f"{STEM}.pt2",), write=_write_torch_export, open=_open_torch_export
    ),
    "executorch": Format(
        precision="fp32",
        files=(f"{STEM}.pte",),
        write=_write_executorch,
        open=_open_executorch,
        packages=("executorch",),
        extra="executorch",
    ),
    "litert": Format(
        precision="fp32",
        files=(f"{STEM}.tflite",),
        write=_write_litert,
        open=_open_litert,
        packages=("litert_torch", "ai_edge_litert"),
        extra="litert",
    ),
}
