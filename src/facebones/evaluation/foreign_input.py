"""The input of models from elsewhere whose files do not state it: what is likely, with a note."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from facebones.data.preprocessing import OURS, Preprocessing
from facebones.errors import ConfigError, DataError
from facebones.evaluation.models import Model
from facebones.system.progress import say

if TYPE_CHECKING:
    from facebones.onnx.scaling import Scaling


def with_likely_input(
    models: Mapping[str, Model], preprocessing: Preprocessing | Mapping[str, Any] | None
) -> dict[str, Model]:
    """The models with the preprocessing that is given, or else the likely one of each, which is said.

    Args:
        models: by name; their files do not state their input.
        preprocessing: the whole of it, or some of its fields, which replace those of each model's likely one.

    Raises:
        ConfigError: mean or scale is given, and all models scale 8-bit pixels themselves.
    """
    folded = [name for name, model in models.items() if (onnx := model.as_onnx) is not None and onnx.folded]
    changed = {}
    for name, model in models.items():
        if isinstance(preprocessing, Preprocessing):
            chosen = preprocessing
        else:
            chosen = _given_or_likely(name, model, preprocessing or {})
        if name in folded and len(folded) < len(models):  # mean and scale are meant for the others
            chosen = Preprocessing(colour=chosen.colour)
        changed[name] = replace(model, preprocessing=chosen)
    return changed


def _given_or_likely(name: str, model: Model, given: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing of a file that does not state it, with a note; fields that are given need none."""
    likely, why = _likely_preprocessing(model)
    chosen = replace(likely, **given)
    if why is not None and len(given) < len(fields(Preprocessing)):
        say(f"note: {name} {why}: it gets {_in_words(chosen)} (--mean, --scale and --colour change it)")
    return chosen


def _likely_preprocessing(model: Model) -> tuple[Preprocessing, str | None]:
    """The likely preprocessing: by its thresholds, by what the graph begins with, by its form, or ours; and why."""
    if (calibrated := _calibrated_input(model)) is not None:
        return calibrated, "has thresholds that were made with this input"
    onnx = model.as_onnx
    scaling = onnx.scaling if onnx is not None else None
    if onnx is not None and onnx.folded:
        colour = scaling.colour if scaling is not None else OURS.colour
        return Preprocessing(colour=colour), "swaps channels inside the graph" if colour != OURS.colour else None
    if scaling is not None and (scaling.takes_pixels or scaling.takes_unit or scaling.colour != OURS.colour):
        return _before_graph(scaling)
    known = getattr(model.network, "known_input", None)  # a plug-in's network may be any module
    if known is not None:
        return Preprocessing(**known), "is of an author whose input is known"
    if scaling is not None and not scaling.is_understood:
        return OURS, f"has preprocessing inside the graph ({scaling}), which does not show what numbers it is to get"
    return OURS, "does not state its preprocessing"


def _calibrated_input(model: Model) -> Preprocessing | None:
    """What somebody has told `calibrate` of this file; None if nobody has."""
    try:
        return (
            None
            if (calibration := model.calibration) is None
            else Preprocessing(**calibration["model"]["preprocessing"])
        )
    except (DataError, ConfigError, KeyError, TypeError):
        return None  # whoever uses the thresholds says that they are damaged


def _before_graph(scaling: "Scaling") -> tuple[Preprocessing, str]:
    """What a graph must be given that begins with preprocessing; and why."""
    likely = Preprocessing(colour=scaling.colour)
    if scaling.takes_pixels or scaling.takes_unit:
        likely = replace(likely, mean=0, scale=1 if scaling.takes_pixels else 255)
    taken = "; the network behind is taken to compute on RGB" if scaling.swapped else ""
    return likely, f"has preprocessing inside the graph ({scaling}{taken})"


def _in_words(preprocessing: Preprocessing) -> str:
    """A preprocessing, such as "(x - 127.5) / 127.5, RGB"."""
    mean, scale = preprocessing.mean, preprocessing.scale
    values = f"pixels from 0 to {255 / scale:g}" if mean == 0 and scale in (1, 255) else f"(x - {mean:g}) / {scale:g}"
    return f"{values}, {preprocessing.colour.upper()}"
