"""Where an 8-bit file departs from its fp32 original, and which other settings do better: each is tried.

One range serves a whole activation. A layer of which one channel is much larger than the others loses these. So does a
layer whose activations on later images leave the range that the images of calibration gave.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from facebones.data.images import ImageArray
from facebones.onnx.activations import LayerActivation, compare_activations
from facebones.onnx.backbone import OnnxBackbone
from facebones.onnx.graph import quiet
from facebones.onnx.graph_layers import FIRST, LAST
from facebones.onnx.quantize import quantize, stack_images

LEAST_COSINE = 0.9  # smallest between embeddings of a face in fp32 and in 8 bits
LARGEST_LOSS = 0.01  # of accuracy on a pair set
LEAST_LAYER_COSINE = 0.9
LARGEST_STEP = 0.1  # a layer's cosine this far below those of what it reads: it loses by itself
MOST_NAMED = 3  # layers that lose most
IMAGES_COMPARED = 8
MOST_CALIBRATION = 64  # images, in each trial
HELPFUL_SHARE = 0.5  # of the distance of the least cosine from 1: a setting helps if it leaves no more
AS_EXPORTED = "as exported"
LARGE_SPREAD = 30.0  # times the median channel: 8 bits leave the median two digits


def is_below_bound(cosine_min: float, loss: float | None = None) -> bool:
    """Whether 8 bits change the embeddings or the accuracy more than they should; also where either is not a number.

    >>> is_below_bound(0.95), is_below_bound(0.95, loss=0.02), is_below_bound(float("nan"))
    (False, True, True)
    """
    return not (cosine_min >= LEAST_COSINE and (loss is None or loss <= LARGEST_LOSS))


def diagnose(
    before: OnnxBackbone,
    after: OnnxBackbone,
    calibration: Sequence[ImageArray],
    faces: Sequence[ImageArray],
    folder: Path,
) -> dict[str, Any]:
    """Find the layers at which an 8-bit file departs, and try what may help.

    Args:
        before: the fp32 file.
        after: the file that `quantize` made of it.
        calibration: the images whose ranges it has, (112, 112, 3) uint8 RGB.
        faces: on which embeddings are compared, likewise.
        folder: for files that are made and removed.

    Returns:
        "bounds"; "layers": all activations in the order of computing, as `LayerActivation`; "first": the place among
        them of the first whose cosine is below its bound, or None; "worst": the layers that lose most, worst first;
        "trials": of each setting its "name", "options" of the command line, "cosine_min" and "cosine_mean" between
        embeddings in fp32 and in 8 bits; the file as it is comes first.
    """
    rows = compare_activations(before, after, faces[:IMAGES_COMPARED], folder)
    worst = worst_layers(rows)
    least, mean = embedding_cosines(before, after, faces)
    trials = [{"name": AS_EXPORTED, "options": "", "cosine_min": least, "cosine_mean": mean}]
    trials += [_tried(trial, before, calibration[:MOST_CALIBRATION], faces, folder) for trial in _trials(worst)]
    return {
        "bounds": {"embedding_cosine": LEAST_COSINE, "accuracy_loss": LARGEST_LOSS, "layer_cosine": LEAST_LAYER_COSINE},
        "layers": [row.to_json() for row in rows],
        "first": next((place for place, row in enumerate(rows) if row.cosine < LEAST_LAYER_COSINE), None),
        "worst": worst,
        "trials": trials,
    }


def worst_layers(rows: Sequence[LayerActivation]) -> list[str]:
    """Names of the layers at which the cosine falls most, worst first; where it falls nowhere much, the worst alone."""
    steps: dict[str, float] = {}
    for row in rows:
        steps[row.layer] = max(steps.get(row.layer, -1.0), row.step)
    named = sorted((name for name in steps if name != "input"), key=steps.__getitem__, reverse=True)
    return [name for place, name in enumerate(named[:MOST_NAMED]) if not place or steps[name] >= LARGEST_STEP]


class Trial(NamedTuple):
    """A setting that is tried: its name, its options of the command line, and its arguments of `quantize`."""

    name: str
    options: str
    arguments: dict[str, Any]


def _trials(worst: Sequence[str]) -> list[Trial]:
    one, all_of = [*worst[:1]], [*worst]
    tried: list[tuple[str, list[str]]] = [("first and last layer in fp32", [FIRST, LAST])]
    tried += [(f"{one[0]} in fp32", one)] if one else []
    tried += [(f"{', '.join(all_of)} in fp32", all_of)] if len(all_of) > 1 else []
    trials = [Trial(name, f"--float-layers {' '.join(layers)}", {"float_layers": layers}) for name, layers in tried]
    return [*trials, Trial("ranges from extremes, not means", "", {"extremes": True})]


def _tried(
    trial: Trial,
    before: OnnxBackbone,
    calibration: Sequence[ImageArray],
    faces: Sequence[ImageArray],
    folder: Path,
) -> dict[str, Any]:
    path = folder / "trial.onnx"
    with quiet():
        quantize(before, path, calibration, **trial.arguments)
    least, mean = embedding_cosines(before, OnnxBackbone(path), faces)
    path.unlink()
    path.with_suffix(".prepared.onnx").unlink(missing_ok=True)
    return {"name": trial.name, "options": trial.options, "cosine_min": least, "cosine_mean": mean}


def embedding_cosines(
    before: OnnxBackbone, after: OnnxBackbone, faces: Sequence[ImageArray]
) -> tuple[float | None, float | None]:
    """Least and mean cosine between the embeddings of faces; None if an embedding is zero or not finite."""
    x = stack_images(faces)
    with torch.inference_mode():
        one, other = before(x).double(), after(x).double()
    cosines = ((one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))).numpy()
    return (float(cosines.min()), float(cosines.mean())) if np.isfinite(cosines).all() else (None, None)


def advice(diagnosis: Mapping[str, Any], fp16_cosine: float | None = None) -> list[str]:
    """What a diagnosis says, in sentences.

    Args:
        diagnosis: what `diagnose` returns.
        fp16_cosine: the least cosine of the fp16 file, if that was measured.
    """
    layers, first = diagnosis["layers"], diagnosis["first"]
    sentences = []
    if first is None:
        sentences.append(f"No layer's cosine is below {LEAST_LAYER_COSINE}: small losses of many layers add up.")
    else:
        row = layers[first]
        sentences.append(
            f"The first layer that departs is {row['layer']} ({row['operator']}, activation {first + 1} of"
            f" {len(layers)}): cosine {row['cosine']:.3f}, norm {row['norm_int8']:.3g} in int8 and"
            f" {row['norm_fp32']:.3g} in fp32."
        )
    for name in diagnosis["worst"]:
        row = max((one for one in layers if one["layer"] == name), key=lambda one: one["step"])
        sentence = f"{name} ({row['operator']}) takes {max(row['step'], 0):.3f} off the cosine"
        spread = row["spread"]
        if spread is None or spread >= LARGE_SPREAD:
            times = "many times" if spread is None else f"{spread:,.0f} times"
            sentence += f"; its largest channel is {times} its median one, and sets the range for all"
        sentences.append(f"{sentence}.")
    return [*sentences, *_best_of(diagnosis["trials"], fp16_cosine)]


def _best_of(trials: Sequence[Mapping[str, Any]], fp16_cosine: float | None) -> list[str]:
    present, *others = trials
    before = -1.0 if present["cosine_min"] is None else present["cosine_min"]
    known = [one for one in others if one["cosine_min"] is not None]
    best = max(known, key=lambda one: one["cosine_min"], default=None)
    sentences = []
    if best is not None and best["cosine_min"] >= max(LEAST_COSINE, 1 - HELPFUL_SHARE * (1 - before)):
        how = f", by {best['options']}" if best["options"] else ""
        sentences.append(f"What helps: {best['name']}{how}: least cosine {best['cosine_min']:.4f}.")
    else:
        sentences.append("None of the settings that were tried helps much; weights are per channel already.")
        sentences.append("Try more images, of the kind that the model will see: --calibration, --calibration-images.")
    if fp16_cosine is None:
        return [*sentences, "Or take 16 bits, half the size of fp32: --formats onnx-fp16."]
    return [*sentences, f"16 bits (onnx-fp16), half the size of fp32, have least cosine {fp16_cosine:.6f}."]
