"""Export a trained backbone to one ONNX file, after comparing its embeddings with torch's."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from facebones import __version__
from facebones.backbones.base import IMAGE_SIZE, Backbone, deploy_form, is_deployed
from facebones.backbones.weights import load_backbone, read_card
from facebones.data.images import ImageArray, decode
from facebones.data.pair_bins import PairSet, read_pairs
from facebones.data.preprocessing import OURS, Preprocessing, to_network_input
from facebones.errors import ConfigError, RunError
from facebones.evaluation.pairs import pair_set_files
from facebones.evaluation.verification import check_pair_set, evaluate_pair_set
from facebones.exporting.int8_diagnosis import diagnose, is_below_bound
from facebones.onnx.backbone import OnnxBackbone
from facebones.onnx.graph import NETWORK_INPUT, OPSET, PIXEL_INPUT, InputForm, check_packages, quiet, to_onnx
from facebones.onnx.quantize import METHOD, Calibration, quantize, stack_images
from facebones.profiling.measurements import measure_timings
from facebones.system.files import atomic_write, check_writable, temporary_folder
from facebones.system.hub import origin

TOLERANCE = 1e-4  # relative to an embedding's norm
PARITY_BATCHES = (1, 2, 5)
FACES_COMPARED = 32  # of each set
TIMED_SECONDS = 1.0
CPU = torch.device("cpu")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_onnx(
    model: str | Path,
    output: str | Path,
    *,
    backbone: str | None = None,
    fold_preprocessing: bool = False,
    calibration: Calibration | str | Path | None = None,
    data: Sequence[str | Path] = (),
    batch_size: int = 128,
    float_layers: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a trained backbone, in deploy form (`Backbone.deploy`), as an ONNX file with a free batch size.

    The file is discarded if its fp32 embeddings differ from those of the given network by more than 1e-4 of their norm.

    Args:
        model: a run's folder or a file of weights.
        output: the `.onnx` file to write; it must not exist.
        backbone: its name, if the file does not state it.
        fold_preprocessing: the graph takes uint8 RGB pixels (B, 112, 112, 3) and scales them; otherwise it takes scaled
            images (B, 3, 112, 112) float32.
        calibration: images for activation ranges (a training set or `.bin` pair set): quantise the file to 8 bits.
        data: pair sets, or folders of them. Their faces join the comparison with torch; with `calibration`, the
            accuracy on each set is measured in fp32 and int8.
        batch_size: images per forward pass in that measurement.
        float_layers: layers that `calibration` leaves in fp32: "first", "last", or names as `int8_diagnosis` prints
            them.

    Returns:
        "output", "checkpoint", "opset", "bytes" and "metadata" of the file; "parity", the largest difference from torch
        on random pixels and on each set of faces, relative to the norm; with `calibration` also "int8", the effect of
        quantisation, which holds a "diagnosis" where that is below its bound.

    Raises:
        UnknownNameError: no such backbone or layer.
        ConfigError: the output exists or cannot be written, or packages are missing.
        CheckpointError, DataError: weights or images are missing or broken.
        RunError: the network cannot be exported, or its embeddings differ too much from torch's.
    """
    output = Path(output)
    _check(output)
    network, path = load_for_export(Path(model), backbone)
    sets = [read_pairs(file) for file in pair_set_files([Path(item) for item in data])]
    for pair_set in sets:
        check_pair_set(pair_set)
    faces = {pair_set.name: first_faces(pair_set) for pair_set in sets}
    if isinstance(calibration, str | Path):
        calibration = Calibration(Path(calibration))
    drawn = calibration.draw() if calibration else []
    form = PIXEL_INPUT if fold_preprocessing else NETWORK_INPUT
    deployed = deploy_form(network)
    metadata = describe(deployed, path, form)
    with atomic_write(output) as file, temporary_folder(output) as scratch:
        exported = write_model(scratch / "fp32.onnx", to_onnx(deployed, str(path), form), metadata)
        result: dict[str, Any] = {"output": str(output), "checkpoint": origin(path), "opset": OPSET}
        result["parity"] = _parity(network, exported, {"calibration": drawn, **faces}, path)
        if calibration:
            metadata |= {"quantization": METHOD}
            quantized = write_int8(exported, scratch / "int8.onnx", drawn, metadata, float_layers)
            changes = _effect_of_int8(exported, quantized, drawn[:FACES_COMPARED], sets, batch_size)
            if is_below_bound(changes["cosine_min"]):
                changes["diagnosis"] = diagnose(exported, quantized, drawn, drawn[:FACES_COMPARED], scratch)
            result["int8"] = {"calibration": str(calibration.data), "calibration_images": len(drawn), **changes}
            exported = quantized
        file.write(exported.path.read_bytes())
    return {**result, "bytes": output.stat().st_size, "metadata": metadata}


def _check(output: Path) -> None:
    check_packages("exporting", PACKAGES, "export")
    if output.exists():
        raise ConfigError(f"{output}: exists already; remove it or choose another name")
    if output.suffix != ".onnx":
        raise ConfigError(f"{output}: name the file .onnx, so that other commands recognise it")
    check_writable(output)


def load_for_export(model: Path, name: str | None) -> tuple[Backbone, Path]:
    """Load the backbone of a run or a file of weights; it takes our input whatever it was trained with.

    Returns:
        the network, in eval mode on the CPU, and the path of the file that was read.

    Raises:
        CheckpointError, UnknownNameError: as `load_backbone`.
    """
    network, path = load_backbone(model, name)
    known = getattr(network, "known_input", None)  # a plug-in's network may be any module
    if known:
        network = _TakesOurs(network, Preprocessing(**known)).eval()
    return network, path


class _TakesOurs(Backbone):
    """A network that was trained with another input, with our input."""

    def __init__(self, network: Backbone, theirs: Preprocessing) -> None:
        super().__init__()
        self.name, self.embedding_size, self.is_deployed = network.name, network.embedding_size, is_deployed(network)
        self.network, self._theirs = network, theirs

    def forward(self, x_B3HW: Tensor) -> Tensor:
        theirs = self._theirs
        x = x_B3HW.flip(1) if theirs.colour != OURS.colour else x_B3HW
        embeddings: Tensor = self.network(x * (OURS.scale / theirs.scale) + (OURS.mean - theirs.mean) / theirs.scale)
        return embeddings

    def deploy(self) -> Backbone:
        form = deploy_form(self.network)
        return self if form is self.network else _TakesOurs(form, self._theirs).eval()


def first_faces(pair_set: PairSet) -> list[ImageArray]:
    """The first images of a set, (112, 112, 3) uint8 RGB, at most `FACES_COMPARED`."""
    some = pair_set.images[:FACES_COMPARED]
    return [decode(image, f"{pair_set.name}: image {index}", IMAGE_SIZE) for index, image in enumerate(some)]


def describe(network: Backbone, path: Path, form: InputForm) -> dict[str, str]:
    """What an exported file says of itself: the metadata of the ONNX file."""
    metadata = {
        "backbone": network.name,
        "embedding_size": str(network.embedding_size),
        "input_layout": form.layout,
        "preprocessing": form.preprocessing,
        "facebones_version": __version__,
    }
    training_data = read_card(path).get("training_data")
    if is_deployed(network):
        metadata["form"] = "deploy"
    return {**metadata, "training_data": training_data} if isinstance(training_data, str) else metadata


def write_model(path: Path, model: Any, metadata: Mapping[str, str]) -> OnnxBackbone:
    """Write a model with our metadata; the exporter's contains paths of this machine."""
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
    """The largest differences between both networks' embeddings, relative to the norm, on random pixels and faces.

    Raises:
        RunError: one exceeds the tolerance.
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
        if not difference <= TOLERANCE:  # also true of NaN
            raise RunError(
                f"{path}: {network.name} in ONNX differs from torch by {difference:.1e} of an embedding's norm on"
                f" {name}; {TOLERANCE:.0e} is allowed; nothing was written; check the weights"
            )
    return differences


def _difference(network: Backbone, exported: OnnxBackbone, x_B3HW: Tensor) -> float:
    with torch.inference_mode():
        expected = network(x_B3HW).double()
        difference = (exported(x_B3HW).double() - expected).abs().amax(1)
        return float((difference / expected.norm(dim=1)).max())


def write_int8(
    exported: OnnxBackbone,
    target: Path,
    images: Sequence[ImageArray],
    metadata: Mapping[str, str],
    float_layers: Sequence[str] = (),
) -> OnnxBackbone:
    """Quantise an fp32 file to 8 bits, and write it with our metadata; errors as `quantize`."""
    import onnx

    with quiet():
        quantize(exported, target, images, float_layers=float_layers)
    return write_model(target, onnx.load(str(target)), metadata)


def _effect_of_int8(
    before: OnnxBackbone, after: OnnxBackbone, images: Sequence[ImageArray], sets: Sequence[PairSet], batch_size: int
) -> dict[str, Any]:
    """Compare an 8-bit file with its fp32 original.

    Returns:
        "cosine_images", "cosine_mean" and "cosine_min": the number of `images`, and the cosines between both files'
        embeddings; "fp32" and "int8", each with "bytes", "latency_ms" (median, one image) and "sets" (name, accuracy
        and its standard deviation over folds); "size_ratio" and "latency_ratio" (int8 / fp32).
    """
    x = stack_images(images)
    with torch.inference_mode():
        cosines = cosine_similarity(before(x), after(x))
    inferences = [partial(_embed_copies, network, x[:1]) for network in (before, after)]
    timings = measure_timings(inferences, batch_size=1, seconds=TIMED_SECONDS)
    milliseconds = [timing.summary()["latency_p50_ms"] for timing in timings]
    reports = [
        {
            "bytes": network.path.stat().st_size,
            "latency_ms": latency,
            "sets": [_accuracy(network, pair_set, batch_size) for pair_set in sets],
        }
        for network, latency in zip((before, after), milliseconds, strict=True)
    ]
    return {
        "cosine_images": len(images),
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
        "fp32": reports[0],
        "int8": reports[1],
        "size_ratio": after.path.stat().st_size / before.path.stat().st_size,
        "latency_ratio": milliseconds[1] / milliseconds[0],
    }


def _accuracy(network: OnnxBackbone, pair_set: PairSet, batch_size: int) -> dict[str, Any]:
    found = evaluate_pair_set(network, pair_set, device=CPU, batch_size=batch_size, progress=True).verification
    return {"set": pair_set.name, "accuracy": found.accuracy, "accuracy_std": found.accuracy_std}


def _embed_copies(network: OnnxBackbone, image: Tensor, copies: int) -> None:
    with torch.inference_mode():
        network(image.expand(copies, -1, -1, -1))
