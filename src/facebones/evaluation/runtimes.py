"""Runtimes: ways to compute a network for embedding. The reference is `eager`: plain PyTorch in fp32.

A compiled network, and a network in ONNX Runtime or OpenVINO, is prepared for one batch size; a smaller (last) batch is
padded. Padding changes no embedding, because in eval mode each image is computed independently. Autocast keeps the
layers in fp32 that a backbone asks for; OpenVINO in bf16 decides for each layer itself.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from facebones.backbones import Backbone
from facebones.backbones.base import IMAGE_SIZE, evaluation_mode
from facebones.errors import ConfigError, FaceBonesError, UnknownNameError, first_line
from facebones.evaluation.models import Model, Precision
from facebones.onnx.backbone import OnnxBackbone
from facebones.onnx.graph import check_packages, to_onnx

AUTO, EAGER, ONNX_RUNTIME = "auto", "eager", "onnxruntime"
# Lowest accepted cosines to eager in fp32 and bf16. Trained compact networks reach 0.9997 in bf16; untrained ones
# amplify rounding, to 0.98.
EXACT, ROUNDED = 0.99999, 0.999
MOST_COMPILED = 256  # networks per process; torch's default of 8 per class silently falls back to eager
Prepare = Callable[[Backbone, int], Backbone]  # from a network in eval mode and a batch size


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A way to compute.

    Attributes:
        precision: of convolutions and linear layers.
        prepare: builds the network that is called instead; None calls the network itself.
        setup_seconds: about the longest time to prepare a compact network on two cores.
        torch: whether PyTorch computes, on any device and channels-last; the others compute on the CPU.
        packages: packages that must be installed.
        extra: the extra that installs them.
    """

    precision: Precision = "fp32"
    prepare: Prepare | None = None
    setup_seconds: float = 0.0
    torch: bool = True
    packages: tuple[str, ...] = ()
    extra: str = ""

    @property
    def lowest_cosine(self) -> float:
        """Lowest cosine between embeddings of an image by this runtime and by eager that `auto` accepts."""
        return EXACT if self.precision == "fp32" else ROUNDED


def lookup_runtime(name: str) -> Runtime:
    """The runtime of a name.

    Raises:
        UnknownNameError: no such runtime.
    """
    if name not in RUNTIMES:
        raise UnknownNameError("runtime", name, [*RUNTIMES, AUTO], where="--runtime")
    return RUNTIMES[name]


def check_runtime(name: str, model: Model) -> None:
    """Refuse a runtime that cannot compute a model here.

    Raises:
        ConfigError: the model is an ONNX file, or the runtime does not compute on the device or is not installed.
    """
    lookup_runtime(name)
    if isinstance(model.network, OnnxBackbone):
        check_takes_onnx(name, model.path)
    else:
        check_available(name, model.device)


def check_available(name: str, device: torch.device) -> None:
    """Refuse a runtime that is not installed or cannot use the device; ConfigError as in `check_runtime`."""
    runtime = lookup_runtime(name)
    if not runtime.torch and device.type != "cpu":
        raise ConfigError(f"--runtime {name}: computes on the CPU only; use --device cpu or another runtime")
    check_packages(f"--runtime {name}", runtime.packages, runtime.extra)


def check_takes_onnx(name: str, path: Path | None) -> None:
    """Refuse a runtime that cannot compute an ONNX file; ConfigError as in `check_runtime`."""
    if name != ONNX_RUNTIME:
        raise ConfigError(f"--runtime {name}: {path} is an ONNX file, which ONNX Runtime computes; leave out --runtime")


def run_by(model: Model, name: str, batch_size: int) -> Model:
    """The same model computed by a runtime; one batch has been computed already.

    Args:
        model: as it was opened.
        name: of the runtime.
        batch_size: the largest batch that will be embedded.

    Raises:
        ConfigError: as `check_runtime`, or torch cannot compile here.
        RunError: the network cannot be converted for the runtime.
    """
    check_runtime(name, model)
    runtime, network = RUNTIMES[name], model.network
    if name == model.runtime or isinstance(network, OnnxBackbone):
        return model
    try:
        if runtime.prepare is not None:
            assert isinstance(network, Backbone)  # noqa: S101 (what load_model opens)
            with evaluation_mode(network):
                network = runtime.prepare(network, batch_size)
        prepared = replace(
            model, network=network, runtime=name, precision=runtime.precision, channels_last=runtime.torch
        )
        with evaluation_mode(network):
            prepared(np.zeros((batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8), flip=False)
    except FaceBonesError:
        raise
    except Exception as error:  # compilers and OpenVINO raise errors of many kinds
        reason = first_line(error)[:200]
        raise ConfigError(f"--runtime {name}: {reason}; choose another runtime; --debug shows all of it") from error
    return prepared


class FixedBatch(Backbone):
    """A network that computes batches of one size only.

    Args:
        original: the network whose name, embedding size and mode it has.
        compute: (batch_size, 3, H, W) float32 -> (batch_size, D).
        batch_size: the largest batch that it takes.
    """

    def __init__(self, original: Backbone, compute: Callable[[Tensor], Tensor], batch_size: int) -> None:
        super().__init__()
        self.name, self.embedding_size, self.batch_size = original.name, original.embedding_size, batch_size
        self.original = original
        self._compute = (compute,)  # in a tuple, a module is not registered as a part: its mode stays as it is

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Embed up to `batch_size` images."""
        count = len(x_B3HW)
        if count > self.batch_size:
            raise ValueError(f"{count} images; this network takes at most {self.batch_size}")
        if count < self.batch_size:  # pad alone loses the memory format that a compiled network expects
            channels_last = x_B3HW.is_contiguous(memory_format=torch.channels_last)
            filled = pad(x_B3HW, (0, 0, 0, 0, 0, 0, 0, self.batch_size - count))
            x_B3HW = filled.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        return self._compute[0](x_B3HW)[:count]


def _compiled(network: Backbone, batch_size: int) -> Backbone:
    import torch._dynamo.config
    import torch._inductor.config

    compiled = torch.compile(network, dynamic=False)

    def compute(x_B3HW: Tensor) -> Tensor:
        # Freezing makes weights constants. As an option of torch.compile it has no effect: dynamo reads the global.
        with torch._inductor.config.patch(freezing=True), torch._dynamo.config.patch(recompile_limit=MOST_COMPILED):
            answer: Tensor = compiled(x_B3HW)
            return answer

    return FixedBatch(network, compute, batch_size)


def _onnx_runtime(network: Backbone, batch_size: int) -> Backbone:
    with tempfile.TemporaryDirectory() as folder:
        path = _onnx_file(network, Path(folder))
        return FixedBatch(network, OnnxBackbone(path), batch_size)


def _openvino(precision: str) -> Prepare:
    def prepare(network: Backbone, batch_size: int) -> Backbone:
        import openvino

        with tempfile.TemporaryDirectory() as folder:
            model = openvino.Core().read_model(str(_onnx_file(network, Path(folder))))
            model.reshape([batch_size, 3, IMAGE_SIZE, IMAGE_SIZE])
            options: dict[str, Any] = {
                "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "INFERENCE_PRECISION_HINT": precision,
            }
            request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()

        def compute(x_B3HW: Tensor) -> Tensor:
            answer = request.infer([np.ascontiguousarray(x_B3HW.numpy())], share_inputs=True)[0]
            return torch.from_numpy(np.array(answer, dtype=np.float32))  # a copy: the next batch overwrites this memory

        return FixedBatch(network, compute, batch_size)

    return prepare


def _onnx_file(network: Backbone, folder: Path) -> Path:
    path = folder / "network.onnx"
    path.write_bytes(to_onnx(network, network.name).SerializeToString())
    return path


_ONNX = ("onnx", "onnxscript")
RUNTIMES = {
    EAGER: Runtime(),
    "bf16": Runtime(precision="bf16", setup_seconds=1),
    ONNX_RUNTIME: Runtime(
        prepare=_onnx_runtime, setup_seconds=15, torch=False, packages=(*_ONNX, "onnxruntime"), extra="export"
    ),
    "openvino": Runtime(
        prepare=_openvino("f32"), setup_seconds=15, torch=False, packages=(*_ONNX, "openvino"), extra="openvino"
    ),
    "openvino-bf16": Runtime(
        precision="bf16",
        prepare=_openvino("bf16"),
        setup_seconds=15,
        torch=False,
        packages=(*_ONNX, "openvino"),
        extra="openvino",
    ),
    "compiled": Runtime(prepare=_compiled, setup_seconds=45),
    "compiled-bf16": Runtime(precision="bf16", prepare=_compiled, setup_seconds=45),
}
