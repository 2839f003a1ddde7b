"""`facebones export`: a trained backbone as one ONNX file, written only where it answers as torch does."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facebones import __version__
from facebones.backbones import Backbone
from facebones.backbones.registry import IMAGE_SIZE
from facebones.backbones.weights import load_backbone, read_card
from facebones.data.images import ImageArray, decode
from facebones.data.pair_bins import PairSet, read_pairs
from facebones.data.preprocessing import to_network_input
from facebones.errors import ConfigError, RunError
from facebones.evaluation.pairs import pair_set_files
from facebones.evaluation.verification import check_pair_set
from facebones.onnx.backbone import OnnxBackbone
from facebones.onnx.graph import NETWORK_INPUT, OPSET, PIXEL_INPUT, InputForm, check_packages, quiet, to_onnx
from facebones.onnx.quantize import METHOD, Calibration, quantize, stack_images, what_changed
from facebones.system.files import atomic_write, check_writable

TOLERANCE = 1e-4  # of an embedding's norm
PARITY_BATCHES = (1, 2, 5)
FACES_COMPARED = 32  # of each set
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_backbone(
    checkpoint: Path,
    output: Path,
    *,
    backbone: str | None = None,
    fold_preprocessing: bool = False,
    calibration: Calibration | None = None,
    data: Sequence[Path] = (),
    batch_size: int = 128,
) -> dict[str, Any]:
    """Write a trained backbone as an ONNX file with a free batch size and its weights inside.

    Args:
        checkpoint: a run's folder or a file of weights.
        output: the file to write; refused where it exists.
        backbone: its name, where the file does not say it.
        fold_preprocessing: take uint8 pixels (B, 112, 112, 3), RGB, instead of scaled ones (B, 3, 112, 112).
        calibration: where given, the file is quantised to 8 bits, after it has been found to be right in fp32.
        data: pair sets, or folders of them. Their faces too are embedded for the comparison with torch, and an 8-bit
            file is verified on them, as it was before and as it is.
        batch_size: images a forward pass, where pair sets are verified.

    Returns:
        what the file is; "parity", the greatest differences from torch as parts of the norm; and with `calibration`
        "int8", what 8 bits have changed.

    Raises:
        ConfigError: the output exists or cannot be written, or packages are missing.
        CheckpointError, DataError: weights or images cannot be used.
        RunError: the network cannot be exported, or the file's embeddings differ from torch's by more than 1e-4 of
            their norm; nothing is written then.
    """
    _check(output)
    network, path = load_backbone(checkpoint, backbone)
    sets = [read_pairs(file) for file in pair_set_files(data)]
    for pair_set in sets:
        check_pair_set(pair_set)
    faces = {pair_set.name: _first_faces(pair_set) for pair_set in sets}
    drawn = calibration.draw() if calibration else []
    form = PIXEL_INPUT if fold_preprocessing else NETWORK_INPUT
    metadata = _metadata(network, path, form)
    with atomic_write(output) as file, _scratch_folder(output) as scratch:
        exported = _write_model(scratch / "fp32.onnx", to_onnx(network, str(path), form), metadata)
        result: dict[str, Any] = {"output": str(output), "checkpoint": str(path), "opset": OPSET}
        result["parity"] = _parity(network, exported, {"calibration": drawn, **faces}, path)
        if calibration:
            metadata |= {"quantization": METHOD}
            quantized = _quantized(exported, scratch / "int8.onnx", drawn, metadata)
            changes = what_changed(exported, quantized, drawn[:FACES_COMPARED], sets, batch_size)
            result["int8"] = {"calibration": str(calibration.data), "calibration_images": len(drawn), **changes}
            exported = quantized
        file.write(exported.path.read_bytes())
    return {**result, "bytes": output.stat().st_size, "metadata": metadata}


def export_lines(result: Mapping[str, Any]) -> list[str]:
    """What was written and how far it is from torch, for people."""
    metadata = result["metadata"]
    lines = [
        f"{result['output']}: {metadata['backbone']}, {metadata['embedding_size']}-d, {result['bytes'] / 1e6:.2f} MB,"
        f" opset {result['opset']}; takes {metadata['input_layout']}",
        f"preprocessing: {metadata['preprocessing']}",
        "greatest difference from torch in fp32, as part of the embedding's norm:",
        *(f"  {name}: {difference:.1e}" for name, difference in result["parity"].items()),
    ]
    if changes := result.get("int8"):
        lines.append(
            f"int8 after {changes['calibration_images']} images of {changes['calibration']}: cosine to fp32 on"
            f" {changes['cosine_images']} of these {changes['cosine_mean']:.4f} on average,"
            f" {changes['cosine_min']:.4f} at least"
        )
    return lines


def export_table(result: Mapping[str, Any]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Column names and rows of what 8 bits have changed, for people."""
    changes = result["int8"]
    before, after = changes["fp32"], changes["int8"]
    rows: list[Sequence[str]] = [
        ("size", f"{before['bytes'] / 1e6:.2f} MB", f"{after['bytes'] / 1e6:.2f} MB", f"{changes['size_ratio']:.3f}"),
        (
            "latency of one image",
            f"{before['latency_ms']:.2f} ms",
            f"{after['latency_ms']:.2f} ms",
            f"{changes['latency_ratio']:.3f}",
        ),
    ]
    for old, new in zip(before["sets"], after["sets"], strict=True):
        cells = [f"{figures['accuracy']:.2%} +- {figures['accuracy_std']:.2%}" for figures in (old, new)]
        rows.append((f"accuracy on {old['set']}", *cells, ""))
    return ("", "fp32", "int8", "int8 / fp32"), rows


def _check(output: Path) -> None:
    check_packages("exporting", PACKAGES, "export")
    if output.exists():
        raise ConfigError(f"{output}: exists already; remove it or choose another name")
    if output.suffix != ".onnx":
        raise ConfigError(f"{output}: name the file .onnx, so that other commands know what it is")
    check_writable(output)


def _first_faces(pair_set: PairSet) -> list[ImageArray]:
    some = pair_set.images[:FACES_COMPARED]
    return [decode(image, f"{pair_set.name}: image {index}", IMAGE_SIZE) for index, image in enumerate(some)]


def _metadata(network: Backbone, path: Path, form: InputForm) -> dict[str, str]:
    """What the file is to say of itself."""
    metadata = {
        "backbone": network.name,
        "embedding_size": str(network.embedding_size),
        "input_layout": form.layout,
        "preprocessing": form.preprocessing,
        "facebones_version": __version__,
    }
    training_data = read_card(path).get("training_data")
    return {**metadata, "training_data": training_data} if isinstance(training_data, str) else metadata


@contextmanager
def _scratch_folder(output: Path) -> Iterator[Path]:
    """A folder beside the output, where there must be room anyway, and which is removed."""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.", suffix=".tmp") as folder:
        yield Path(folder)


def _write_model(path: Path, model: Any, metadata: Mapping[str, str]) -> OnnxBackbone:
    """Write a model with our metadata in place of the exporter's, which tells where on the disk the source lies."""
    import onnx

    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.helper.set_model_props(model, dict(metadata))
    path.write_bytes(model.SerializeToString())
    return OnnxBackbone(path)


def _parity(
    network: Backbone, exported: OnnxBackbone, faces: Mapping[str, Sequence[ImageArray]], path: Path
) -> dict[str, float]:
    """The greatest differences between both networks' embeddings, as parts of the norm: on random pixels and faces.

    Raises:
        RunError: one is larger than it may be.
    """
    generator = torch.Generator().manual_seed(0)
    differences: dict[str, float] = {}
    for batch in PARITY_BATCHES:
        pixels = torch.randint(256, (batch, IMAGE_SIZE, IMAGE_SIZE, 3), generator=generator, dtype=torch.uint8)
        differences[f"random, batch of {batch}"] = _difference(network, exported, to_network_input(pixels))
    for name, images in faces.items():
        if images:
            differences[name] = _difference(network, exported, stack_images(images[:FACES_COMPARED]))
    for name, difference in differences.items():
        if not difference <= TOLERANCE:  # written so that NaN is refused
            raise RunError(
                f"{path}: {network.name} in ONNX differs from torch by {difference:.1e} of an embedding's norm on"
                f" {name}, where {TOLERANCE:.0e} is allowed; nothing was written; check the weights"
            )
    return differences


def _difference(network: Backbone, exported: OnnxBackbone, x_B3HW: Tensor) -> float:
    with torch.inference_mode():
        expected = network(x_B3HW).double()
        difference = (exported(x_B3HW).double() - expected).abs().amax(1)
        return float((difference / expected.norm(dim=1)).max())


def _quantized(
    exported: OnnxBackbone, target: Path, images: Sequence[ImageArray], metadata: Mapping[str, str]
) -> OnnxBackbone:
    import onnx

    with quiet():
        quantize(exported, target, images)
    return _write_model(target, onnx.load(str(target)), metadata)
