"""State dicts of other code: a network's tensors are found by their names and shapes, whatever wraps them.

Trainers put the names of their wrappers before a network's (`module.`, `_orig_mod.`, `model.`, `backbone.`), or into
the middle (activation checkpointing, compiled parts), keep the state dict somewhere in a larger dictionary, and leave a
classifier beside it. No list of such names is needed: the wrapper is what stands before most of the names that fit.
"""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from facebones.backbones.base import Backbone, BackboneEntry, deploy_form
from facebones.backbones.registry import create_backbone, list_backbones, lookup_backbone
from facebones.errors import ConfigError

PROBED_SIZES = (7, 1021)  # a dimension that is 7 and then 1021 is the embedding size; from 512 on, tails may widen
FREE, FOLLOWS = -1, -2  # a dimension that is the embedding size, or is computed from it
COUNTER = "num_batches_tracked"  # of batch normalisation: old files lack it, and inference ignores it
# If several state dicts of a file fit, the first of these names is taken; the first of all is arcface_torch's.
PREFERRED = ("state_dict_backbone", "state_dict", "model_state_dict", "model")
DEEPEST = 32  # levels of dictionaries and lists that are searched
MOST_ITEMS = 300_000  # in all of them together; a checkpoint has some thousands
MOST_SEARCHED = 8  # state dicts of one file, the largest first
LONGEST_NAME = 16  # modules in the name of a tensor, counted from the end
LEAST_LIKENESS = 0.2  # below it a registered network is not called close

Shape = tuple[int, ...]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Match:
    """How the tensors of a file fill a network.

    Attributes:
        place: of the state dict in the file: "" at the top, or such as "state_dict" or "models[0].net".
        wrapper: what stands before the network's names in the file, such as "module.".
        tensors: the network's names to the file's tensors, whose shapes may differ.
        missing: names of the network that the file lacks, without counters of batch normalisation.
        misshapen: names whose tensor has another shape.
        surplus: names in the file (with the wrapper) that the network has no place for.
        beside: names in the file of other modules: a classifier, a loss.
        others: where else in the file the network is: wrappers, which end in a dot, or places of other state dicts.
    """

    place: str
    wrapper: str
    tensors: Mapping[str, Tensor]
    missing: list[str]
    misshapen: list[str]
    surplus: list[str]
    beside: list[str]
    others: list[str]

    @property
    def is_complete(self) -> bool:
        """Whether every tensor of the network is there, in its shape."""
        return not self.missing and not self.misshapen

    @property
    def fits(self) -> bool:
        """Whether it is complete and nothing of the network's own modules is left over."""
        return self.is_complete and not self.surplus

    @property
    def likeness(self) -> float:
        """Shared tensors as a part of all, 0 to 1."""
        shared = sum(not key.endswith(COUNTER) for key in self.tensors) - len(self.misshapen)
        return shared / max(1, shared + len(self.missing) + 2 * len(self.misshapen) + len(self.surplus))


def find_state_dicts(content: Any) -> dict[str, Tensors]:
    """The state dicts in the content of a checkpoint by their place: the tensors of each dictionary that has some.

    Lists are searched too, and a list of pairs (name, tensor) is a state dict. Those nearest to the top come first.
    """
    found = sorted(_state_dicts(content), key=lambda one: -len(one[1]))[:MOST_SEARCHED]
    return {_written(keys): tensors for keys, tensors in found}


def _state_dicts(content: Any) -> Iterator[tuple[tuple[str | int, ...], Tensors]]:
    """State dicts by the keys and indices that lead to them; a container within itself is not entered again.

    One that several others hold is entered a few times, for the places that it has: in each other, they have billions.
    """
    waiting: deque[tuple[tuple[str | int, ...], tuple[int, ...], Any]] = deque([((), (), content)])
    entered: Counter[int] = Counter()
    items = 0
    while waiting:
        keys, around, held = waiting.popleft()
        pairs = _items(held)
        items += len(pairs)
        if items > MOST_ITEMS:
            return
        tensors = {key: value for key, value in pairs if isinstance(key, str) and isinstance(value, Tensor)}
        if tensors:
            yield keys, tensors
        if len(keys) < DEEPEST:
            inside = (*around, id(held))
            for key, value in pairs:
                is_held = isinstance(key, str | int) and isinstance(value, dict | list | tuple)
                if is_held and id(value) not in inside and entered[id(value)] < MOST_SEARCHED:
                    entered[id(value)] += 1
                    waiting.append(((*keys, key), inside, value))


def _items(held: Any) -> list[tuple[Any, Any]]:
    if isinstance(held, dict):
        return [(key, value) for key, value in held.items() if isinstance(key, str | int)]
    pairs = [(one[0], one[1]) for one in held if isinstance(one, tuple | list) and len(one) == 2]
    if (
        pairs
        and len(pairs) == len(held)
        and all(isinstance(key, str) and isinstance(one, Tensor) for key, one in pairs)
    ):
        return pairs
    return list(enumerate(held))


def _written(keys: Iterable[str | int]) -> str:
    """A place as text: names with dots between, and indices in brackets."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


def match_any(expected: Mapping[str, Shape], held: Mapping[str, Tensors]) -> Match:
    """The best match of a network with the state dicts of a file.

    Args:
        expected: the network's names and shapes; -1 and -2 stand for any number.
        held: what `find_state_dicts` found; at least one.
    """
    matches = [_match(expected, tensors, place) for place, tensors in held.items()]
    best = max(matches, key=_rank)
    if best.fits and not best.others:
        return replace(best, others=[match.place for match in matches if match.fits and match is not best])
    return best


def _rank(match: Match) -> tuple[bool, int, float]:
    name = match.place.rpartition(".")[2]
    preference = -PREFERRED.index(name) if name in PREFERRED else -len(PREFERRED)
    return match.fits, preference if match.fits else 0, match.likeness


def _match(expected: Mapping[str, Shape], tensors: Tensors, place: str) -> Match:
    """Match by the wrapper with most votes; if names still lack, also without modules that the network has not."""
    matches = [_match_by_votes(expected, {key: key for key in tensors}, tensors, place)]
    if matches[0].missing:
        for base in {matches[0].wrapper, ""}:
            inner = _without_unknown_modules(expected, tensors, base)
            matches.append(_match_by_votes(expected, inner, tensors, place, base))
    return max(matches, key=lambda match: match.likeness)  # the first of equals


def _match_by_votes(
    expected: Mapping[str, Shape], names: Mapping[str, str], tensors: Tensors, place: str, base: str = ""
) -> Match:
    """Match under the wrapper with most votes.

    Args:
        expected: the network's names and shapes.
        names: names by which to match -> names in the file.
        tensors: of the file.
        place: of the state dict.
        base: what has been taken off in `names` already.
    """
    own = _common_module(expected)  # EdgeFace's names all begin with "model."; its file may lack that
    votes = _votes(expected, names, tensors, "")
    fewer = _votes(expected, names, tensors, own) if own else votes
    if max(fewer.values(), default=0) > max(votes.values(), default=0):
        votes = fewer
    else:
        own = ""
    wrapper = max(votes, key=lambda one: (votes[one], -len(one)), default="")
    found = {key: names[held] for key in expected if (held := wrapper + key.removeprefix(own)) in names}
    missing = [key for key in expected if key not in found and not key.endswith(COUNTER)]
    misshapen = [key for key, held in found.items() if not _has_shape(tensors[held], expected[key])]
    taken = set(found.values())
    names_in_network = [key.removeprefix(own) for key in expected]
    rest = [key for key in tensors if key not in taken]
    surplus, beside = _left_over(rest, tensors, base + wrapper, names_in_network)
    return Match(
        place=place,
        wrapper=base + wrapper,
        tensors={key: tensors[held] for key, held in found.items()},
        missing=missing,
        misshapen=misshapen,
        surplus=surplus,
        beside=beside,
        others=[one for one in votes if one != wrapper and votes[one] == votes[wrapper]] if not missing else [],
    )


def _votes(expected: Mapping[str, Shape], names: Mapping[str, str], tensors: Tensors, own: str) -> Counter[str]:
    """Count for each wrapper the names after it that the network has, in the network's shape."""
    deepest = max(key.count(".") for key in expected) + 1
    votes: Counter[str] = Counter()
    for name, held in names.items():
        parts = name.split(".")
        for start in range(max(0, len(parts) - deepest), len(parts)):
            key = own + ".".join(parts[start:])
            if key in expected and not key.endswith(COUNTER) and _has_shape(tensors[held], expected[key]):
                votes["".join(f"{part}." for part in parts[:start])] += 1
    return votes


def _without_unknown_modules(expected: Mapping[str, Shape], tensors: Tensors, wrapper: str) -> dict[str, str]:
    """Names after the wrapper without the modules that the network has nowhere -> names in the file."""
    known = {part for key in expected for part in key.split(".")}
    reduced: dict[str, list[str]] = {}
    for name in tensors:
        if name.startswith(wrapper):
            parts = [part for part in name.removeprefix(wrapper).split(".") if part in known]
            reduced.setdefault(".".join(parts), []).append(name)
    return {name: held[0] for name, held in reduced.items() if name and len(held) == 1}


def _left_over(
    rest: Iterable[str], tensors: Tensors, wrapper: str, network: Collection[str]
) -> tuple[list[str], list[str]]:
    """Names that the network has no place for: those of its own modules, and those of other modules of the file."""
    inside: dict[str, list[str]] = {}
    beside: list[str] = []
    for name in rest:
        if name.startswith(wrapper):
            inside.setdefault(name.removeprefix(wrapper).partition(".")[0], []).append(name)
        else:
            beside.append(name)
    modules, parts = {key.partition(".")[0] for key in network}, {part for key in network for part in key.split(".")}
    surplus: list[str] = []
    for module, names in inside.items():
        dimensions = [tensors[name].ndim for name in names]
        # Behind the embedding are no convolutions. Of a name that the network has somewhere, only a linear classifier.
        is_head = module not in modules and max(dimensions) <= 2 and (module not in parts or dimensions.count(2) == 1)
        (beside if is_head else surplus).extend(names)
    return surplus, beside


def _common_module(expected: Iterable[str]) -> str:
    """The module in which all of a network is, such as "model."; or ""."""
    first = {key.partition(".")[0] for key in expected}
    return f"{first.pop()}." if len(first) == 1 else ""


def _has_shape(tensor: Tensor, shape: Shape) -> bool:
    return tensor.ndim == len(shape) and all(
        wanted < 0 or size == wanted for size, wanted in zip(tensor.shape, shape, strict=True)
    )


# ------------------------------------------------------------------------------------------------ registered networks


def network_shapes(name: str) -> Sequence[Mapping[str, Shape]]:
    """Names and shapes of a registered network's state dict; -1 where the embedding size stands, -2 where it decides.

    Built as shapes alone, without memory, and once in a process.

    Returns:
        those of each form: the one that is trained, and the deploy form where that is another.

    Raises:
        ConfigError: it cannot be built here.
    """
    return _shapes_of(lookup_backbone(name))


@lru_cache(maxsize=256)
def _shapes_of(entry: BackboneEntry) -> Sequence[Mapping[str, Shape]]:
    built = (_built(entry, size) for size in PROBED_SIZES)
    return [_with_free_sizes(first, second) for first, second in zip(*built, strict=True)]


def _with_free_sizes(first: Mapping[str, Shape], second: Mapping[str, Shape]) -> Mapping[str, Shape]:
    shapes = {}
    for key, shape in first.items():
        pairs = zip(shape, second[key], strict=True)
        shapes[key] = tuple(a if a == b else FREE if (a, b) == PROBED_SIZES else FOLLOWS for a, b in pairs)
    return shapes


@lru_cache(maxsize=256)
def _built(entry: BackboneEntry, size: int) -> Sequence[Mapping[str, Shape]]:
    """Names and shapes for one embedding size, of each form."""
    with torch.device("meta"):
        return [shapes_of(form) for form in forms_of(create_backbone(entry.name, size))]


def forms_of(network: Backbone) -> list[Backbone]:
    """A network, and its deploy form where that is another."""
    return list(dict.fromkeys((network, deploy_form(network))))


def shapes_of(network: Backbone) -> dict[str, Shape]:
    """Names and shapes of a network's state dict."""
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def best_form(forms: Sequence[Mapping[str, Shape]], held: Mapping[str, Tensors]) -> tuple[int, Match]:
    """Which of a network's forms (`network_shapes`) the state dicts of a file match best, and how."""
    matches = [match_any(shapes, held) for shapes in forms]
    best = max(matches, key=_rank)  # the first of equals
    return matches.index(best), best


def embedding_size_of(name: str, held: Mapping[str, Tensors]) -> int:
    """The embedding size of a backbone's weights: what most of the dimensions that are it say.

    The order in the file gives no hint: safetensors sorts by name.
    """
    forms = network_shapes(name)
    form, match = best_form(forms, held)
    tensors = match.tensors
    sizes = Counter(
        size
        for key, shape in forms[form].items()
        if key in tensors and tensors[key].ndim == len(shape)
        for size, wanted in zip(tensors[key].shape, shape, strict=True)
        if wanted == FREE
    )
    if not sizes:
        return 512  # no tensor fits: the comparison of names and shapes reports what is wrong
    return sizes.most_common(1)[0][0]


def fitting_networks(held: Mapping[str, Tensors]) -> tuple[list[str], list[tuple[str, Match]]]:
    """Search the registered networks for those of a file.

    Returns:
        the names of the networks that fit; and those that come closest, the closest first, at most three.
    """
    matches = {}
    for name in _alike(held):
        matches[name] = best_form(network_shapes(name), held)[1]
    fitting = [name for name, match in matches.items() if match.fits]
    close = sorted(matches, key=lambda name: -matches[name].likeness)[:3]
    return fitting, [(name, matches[name]) for name in close if matches[name].likeness >= LEAST_LIKENESS]


def _alike(held: Mapping[str, Tensors]) -> list[str]:
    """Registered networks that share names with a file; all of them if none does. Most need not be built twice."""
    ends = {
        ".".join(parts[start:])
        for tensors in held.values()
        for parts in (name.split(".")[-LONGEST_NAME:] for name in tensors)
        for start in range(len(parts))
    }
    shared = {}
    for name in list_backbones():
        try:
            forms = _built(lookup_backbone(name), PROBED_SIZES[0])
        except ConfigError:  # its extra is not installed
            continue
        shared[name] = max(_share(names, ends) for names in forms)
    return [name for name in shared if shared[name] >= LEAST_LIKENESS] or list(shared)


def _share(names: Collection[str], ends: Collection[str]) -> float:
    """The part of a network's names that a file has, behind any wrapper."""
    own = _common_module(names)
    return sum(key in ends or key.removeprefix(own) in ends for key in names) / len(names)
