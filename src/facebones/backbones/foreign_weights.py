"""Weights of other code: the network in their state dicts is found, chosen and loaded, and notes say what was done."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from facebones.backbones.authors import take_known_author
from facebones.backbones.base import Backbone
from facebones.backbones.equivalent_forms import as_registered
from facebones.backbones.registry import create_backbone
from facebones.backbones.state_dicts import (
    COUNTER,
    PREFERRED,
    Match,
    Tensors,
    best_form,
    embedding_size_of,
    find_state_dicts,
    fitting_networks,
    forms_of,
    shapes_of,
)
from facebones.backbones.weights import check_weights, listed
from facebones.errors import CheckpointError


def load_foreign(path: Path, content: Any, name: str | None, embedding_size: int | None) -> Backbone:
    """Build the backbone whose weights are somewhere in the content of a file.

    Args:
        path: the file.
        content: what it holds.
        name: the backbone, if it is known.
        embedding_size: likewise; None reads it from the shapes.

    Raises:
        CheckpointError: there are no weights, those of another backbone, or those of several.
        ConfigError: the backbone cannot be built here.
    """
    rewritten = {place: as_registered(tensors) for place, tensors in find_state_dicts(content).items()}
    held = {place: tensors for place, (tensors, _) in rewritten.items()}
    if not held:
        raise CheckpointError(
            f"{path}: holds no state dict (names to tensors) of a backbone but {_kind(content)}; save one by"
            " torch.save(network.state_dict(), 'weights.pth')"
        )
    if name is None:
        raise CheckpointError(f"{path}: does not say which backbone it is; {_advice(held)}")
    forms = forms_of(create_backbone(name, embedding_size or embedding_size_of(name, held)))
    number, match = best_form([shapes_of(form) for form in forms], held)
    _fill(forms[number], match, held, path)
    for done in rewritten[match.place][1].get(match.wrapper, ()):
        _note(f"{path}: {done}")
    return forms[number]


def _kind(content: Any) -> str:
    if isinstance(content, dict):
        return listed(list(content)) or "nothing"
    kinds = listed(list(dict.fromkeys(type(one).__name__ for one in content))) or "nothing"
    return f"a {type(content).__name__} of {kinds}" + (" without names" if "Tensor" in kinds else "")


def _fill(backbone: Backbone, match: Match, held: Mapping[str, Tensors], path: Path) -> None:
    """Load the state dict of a file that matches a network; notes say what was left out.

    Raises:
        CheckpointError: it does not fit, or several do.
    """
    counters = {key: value for key, value in backbone.state_dict().items() if key.endswith(COUNTER)}
    weights = {**counters, **match.tensors}  # old files lack the counters
    try:
        check_weights(backbone, weights | {key: held[match.place][key] for key in match.surplus}, str(path))
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_instead(backbone.name, match, held)}") from error
    if match.others:
        _choose(match, path)
    if match.beside:
        shown = listed(match.beside)
        _note(f"{path}: left out what {backbone.name} has no place for beside the network: {shown}")
    backbone.load_state_dict(weights)
    take_known_author(backbone, match, path)


def _choose(match: Match, path: Path) -> None:
    """Say which of several networks in a file is taken.

    Raises:
        CheckpointError: nothing says which one is meant.
    """
    if match.place.rpartition(".")[2] in PREFERRED and not match.others[0].endswith("."):
        _note(f"{path}: took {match.place}; left out {listed(match.others)}, which fits as well")
        return
    here = match.place or "the top"
    steps = re.findall(r"\[-?\d+\]|[^.\[]+", match.place)
    pick = f"torch.load({str(path)!r})" + "".join(one if one[0] == "[" else f"[{one!r}]" for one in steps)
    if match.others[0].endswith("."):
        here = match.wrapper or here
        pick = f"{{k: v for k, v in {pick}.items() if k.startswith({here!r})}}"
    raise CheckpointError(
        f"{path}: holds the network several times: {here} and {listed(match.others)}; save the one that you mean, such"
        f" as by torch.save({pick}, 'weights.pth') in Python"
    )


def _note(text: str) -> None:
    from facebones.system.progress import say  # here: most files need no note

    say(f"note: {text}")


def _advice(held: Mapping[str, Tensors]) -> str:
    """Name the registered backbones whose weights are in a file, or those that come closest."""
    fitting, close = fitting_networks(held)
    if not fitting:
        return f"no registered backbone fits its names and shapes{_closest(close)}"
    if len(fitting) > 1:
        names = " and ".join(fitting)
        if len({_evaluates_as(name) for name in fitting}) == 1:
            either = f"give either: --backbone {fitting[0]}"
            return f"its names and shapes fit {names}, which differ in training only; {either}"
        # With and without shuffle: the wrong one would run and give nonsense.
        return f"its names and shapes fit {names}, which compute different things; give the right one"
    return f"its names and shapes are those of {fitting[0]}; give --backbone {fitting[0]}"


def _evaluates_as(name: str) -> str:
    with torch.device("meta"):
        return getattr(create_backbone(name), "evaluates_as", "") or name  # a plug-in's network may be any module


def _instead(name: str, match: Match, held: Mapping[str, Tensors]) -> str:
    """For weights that do not fit a backbone: the registered ones that they fit, or those that come closest."""
    if match.fits:  # numbers of an odd type
        return ""
    fitting, close = fitting_networks(held)
    if fitting:
        return f"; its names and shapes are those of {' and '.join(fitting)}"
    return _closest([(other, found) for other, found in close if other != name]) if close else ""


def _closest(close: Sequence[tuple[str, Match]]) -> str:
    """The registered backbones that come closest, with what is missing."""
    return "; the closest: " + "; ".join(f"{name} ({_lack(match)})" for name, match in close) if close else ""


def _lack(match: Match) -> str:
    total = len(match.missing) + sum(not key.endswith(COUNTER) for key in match.tensors)
    parts = (
        (f"lacks {len(match.missing)} of {total} tensors", match.missing),
        (f"{len(match.misshapen)} of another shape", match.misshapen),
        (f"{len(match.surplus)} too many", match.surplus),
    )
    return ", ".join(f"{what}, such as {keys[0]!s:.80}" for what, keys in parts if keys)
