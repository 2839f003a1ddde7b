"""The public function: one ONNX file, or a folder of many formats."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from facebones.errors import ConfigError
from facebones.exporting.every_format import export_formats
from facebones.exporting.onnx_file import export_onnx
from facebones.onnx.quantize import Calibration


def export(
    model: str | Path,
    output: str | Path,
    *,
    formats: str | Sequence[str] | None = None,
    backbone: str | None = None,
    fold_preprocessing: bool = False,
    calibration: Calibration | str | Path | None = None,
    data: Sequence[str | Path] = (),
    batch_size: int = 128,
    float_layers: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a trained backbone, in deploy form (`Backbone.deploy`), for use elsewhere; compare it with PyTorch.

    Without `formats` it is one ONNX file with a free batch size. The file is discarded if its fp32 embeddings differ
    from those of the given network by more than 1e-4 of their norm.

    With `formats` it is a folder, with export.json and export.md: for each format the difference from PyTorch, the
    accuracy on each set, size and latency. A format that fails, or crashes, stops no other, and its files are removed;
    "failed" lists those that were asked for by name. Files of 16 and 8 bits stay where they are below their bounds.

    Args:
        model: a run's folder or a file of weights.
        output: the `.onnx` file, or the folder; it must not exist.
        formats: names of `formats.FORMATS`, such as "onnx-int8", in a list or with commas between them; "all".
        backbone: its name, if the file does not state it.
        fold_preprocessing: the graph takes uint8 RGB pixels (B, 112, 112, 3) and scales them; otherwise it takes scaled
            images (B, 3, 112, 112) float32. For one ONNX file only.
        calibration: images for activation ranges (a training set or `.bin` pair set): one ONNX file is quantised to 8
            bits; of many formats, those of 8 bits are calibrated on them, and otherwise on drawn faces.
        data: pair sets, or folders of them. Their faces join the comparison with PyTorch. The accuracy on each set is
            measured for all formats; for one ONNX file with `calibration`, in fp32 and int8.
        batch_size: images per forward pass in that measurement.
        float_layers: layers that stay in fp32 in files of 8 bits: "first", "last", or a layer's name, such as
            "blocks.0.2.0".

    Returns:
        the content of export.json; or of one ONNX file "output", "checkpoint", "opset", "bytes", "metadata", "parity"
        (the largest difference from PyTorch on random pixels and on each set of faces, relative to the norm) and with
        `calibration` "int8", the effect of quantisation. Where 8 bits are below their bound, "int8_diagnosis", or
        "diagnosis" in "int8", names the layers that lose: see `int8_diagnosis.diagnose`.

    Raises:
        UnknownNameError: no such backbone, format or layer.
        ConfigError: the output exists or cannot be written, or packages are missing.
        CheckpointError, DataError: weights or images are missing or broken.
        RunError: no format could be written.
    """
    if isinstance(calibration, str | Path):
        calibration = Calibration(Path(calibration))
    if formats is None:
        return export_onnx(
            model,
            output,
            backbone=backbone,
            fold_preprocessing=fold_preprocessing,
            calibration=calibration,
            data=data,
            batch_size=batch_size,
            float_layers=float_layers,
        )
    if fold_preprocessing:
        raise ConfigError("--fold-preprocessing: is for one ONNX file; leave it out, or leave out --formats")
    return export_formats(
        Path(model),
        Path(output),
        formats=formats,
        backbone=backbone,
        calibration=calibration,
        data=[Path(item) for item in data],
        batch_size=batch_size,
        float_layers=float_layers,
    )
