"""The input of models from elsewhere whose files do not state it: what is likely, with a note."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from facebones.data.preprocessing import OURS, Preprocessing
from facebones.evaluation.models import Model
from facebones.system.progress import say

if TYPE_CHECKING:
    from facebones.onnx.scaling import Scaling


def with_likely_input(models: Mapping[str, Model], preprocessing: Preprocessing | None) -> dict[str, Model]:
    """The models with the preprocessing that is given, or else the likely one of each.

    Raises:
        ConfigError: mean or scale is given, and all models scale 8-bit pixels themselves.
    """
    folded = [name for name, model in models.items() if (onnx := model.as_onnx) is not None and onnx.folded]
    changed = {}
    for name, model in models.items():
        chosen = preprocessing or _likely_preprocessing(name, model)
        if name in folded and len(folded) < len(models):  # mean and scale are meant for the others
            chosen = Preprocessing(colour=chosen.colour)
        changed[name] = replace(model, preprocessing=chosen)
    return changed


def _likely_preprocessing(name: str, model: Model) -> Preprocessing:
    """The preprocessing of a file that does not state it, with a note: by what its graph begins with, or ours."""
    onnx = model.as_onnx
    scaling = onnx.scaling if onnx is not None else None
    if onnx is not None and onnx.folded:
        colour = scaling.colour if scaling is not None else OURS.colour
        if colour != OURS.colour:
            say(f"note: {name} swaps channels inside the graph: it gets {colour.upper()} (--colour)")
        return Preprocessing(colour=colour)
    if scaling is not None and (scaling.takes_pixels or scaling.takes_unit or scaling.colour != OURS.colour):
        return _before_graph(name, scaling)
    known = getattr(model.network, "known_input", None)
    if known is not None:
        theirs = Preprocessing(**known)
        shown = f"(x - {theirs.mean:g}) / {theirs.scale:g}, {theirs.colour.upper()}"
        say(f"note: {name} gets the input of its authors: {shown} (--mean, --scale, --colour)")
        return theirs
    say(f"note: {name} does not state its preprocessing; using RGB, (x - 127.5) / 127.5 (--mean, --scale, --colour)")
    return OURS


def _before_graph(name: str, scaling: "Scaling") -> Preprocessing:
    """What a graph must be given that begins with preprocessing; with a note."""
    largest = 255 if scaling.takes_pixels else 1 if scaling.takes_unit else None
    likely = Preprocessing(colour=scaling.colour)
    if largest is not None:
        likely = replace(likely, mean=0, scale=255 / largest)
    given = "(x - 127.5) / 127.5" if largest is None else f"pixels from 0 to {largest}"
    why = ", because the network behind is taken to compute on RGB" if scaling.swapped else ""
    say(
        f"note: {name} has preprocessing inside the graph ({scaling}): it gets {given}, {scaling.colour.upper()}{why}"
        " (--mean, --scale, --colour)"
    )
    return likely
