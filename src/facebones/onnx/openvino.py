"""ONNX files in OpenVINO: compiled for one batch size, and saved in its own format (IR)."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facebones.onnx.backbone import OnnxBackbone
from facebones.onnx.signature import Array, Infer


def compile_openvino(path: Path, shape: Sequence[int], precision: str) -> Infer:
    """Compile a file for the CPU.

    Args:
        path: an ONNX file, or the .xml file of an IR.
        shape: of the input, the batch first.
        precision: OpenVINO's name, "f32" or "bf16".

    Returns:
        a function from the input to all outputs, in the file's order; the next call leaves its answers as they are.
    """
    core = _core()
    model = core.read_model(str(path))
    model.reshape(list(shape))
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    outputs = range(len(model.outputs))

    def infer(images: Array) -> list[Array]:
        answers = request.infer([np.ascontiguousarray(images)], share_inputs=True)
        return [np.array(answers[index]) for index in outputs]  # copies: the next batch overwrites this memory

    return infer


def save_openvino(source: Path, target: Path, *, half: bool = False) -> None:
    """Save an ONNX file as OpenVINO's IR: `target`, an .xml, and its weights in a .bin beside it.

    Args:
        source: the ONNX file.
        target: the .xml file.
        half: store fp32 weights in 16 bits; OpenVINO computes them in fp32 on processors without fp16.
    """
    import openvino

    openvino.save_model(_core().read_model(str(source)), str(target), compress_to_fp16=half)


@cache
def _core() -> Any:
    """OpenVINO's core, one for the process.

    Each core gives the thread a stack for signal handlers and takes back the one before it when it is released. With
    two of them, released in the order they were made in, the thread is left with memory that is gone: the next signal,
    such as Ctrl-C, ends the process without a message.
    """
    import openvino

    return openvino.Core()


def onnx_in_openvino(network: OnnxBackbone, batch_size: int, precision: str) -> OnnxBackbone:
    """The same file computed by OpenVINO, in its own batches or, if it takes any, in batches of the given size."""
    batch = network.batch or batch_size
    probe = network.to_file_input(torch.zeros(1, 3, 112, 112))
    return network.computed_by(compile_openvino(network.path, (batch, *probe.shape[1:]), precision), batch)
