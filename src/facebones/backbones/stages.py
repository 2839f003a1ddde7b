"""The stages of a backbone, from the stem to the embedding layer: frozen, or trained at rates of their own.

A stage is a run of modules in the order in which the network registers them. Every parameter is in exactly one stage. A
network names the module that ends each stage but the last (`stage_ends`), in the order of computing. For one that names
none, each child module with a weight of two or more dimensions begins a stage, and normalisation and activations belong
to the stage before them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from facebones.errors import ConfigError

LAST = "embedding"  # the name of the last stage


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of a backbone.

    Attributes:
        name: of the module that ends it, or `LAST`.
        modules: those in it, without the containers around them.
        parameters: theirs.
    """

    name: str
    modules: Sequence[nn.Module]
    parameters: Sequence[nn.Parameter]


def stages_of(network: nn.Module) -> list[Stage]:
    """The stages of a network, the first one first.

    >>> from torch import nn
    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4))
    >>> [(stage.name, len(stage.parameters)) for stage in stages_of(network)]
    [('2', 4), ('embedding', 2)]
    """
    ends = [*_stage_ends(network)]
    groups = _cut(network, ends)
    stages: list[Stage] = []
    seen: set[nn.Parameter] = set()
    modules: list[nn.Module] = []
    for name, group in zip([*ends, LAST], groups, strict=True):
        modules += group
        own = dict.fromkeys(p for module in modules for p in module.parameters(recurse=False) if p not in seen)
        if own:  # a stage without parameters is part of the next one
            stages.append(Stage(name=name, modules=modules, parameters=[*own]))
            seen.update(own)
            modules = []
    return stages


def _cut(network: nn.Module, ends: Sequence[str]) -> list[list[nn.Module]]:
    """All modules: each is in the stage of the end that holds it or is registered next."""
    groups: list[list[nn.Module]] = [[] for _ in range(len(ends) + 1)]
    place = len(ends)
    for name, module in reversed([*network.named_modules()]):
        place = next((number for number, end in enumerate(ends) if _is_in(name, end)), place)
        groups[place].insert(0, module)
    return groups


def _is_in(name: str, module: str) -> bool:
    return f"{name}.".startswith(f"{module}.")


def _stage_ends(network: nn.Module, prefix: str = "") -> Iterator[str]:
    if declared := getattr(network, "stage_ends", ()):
        yield from (f"{prefix}{name}" for name in declared)
        return
    children = list(network.named_children())
    holding = [place for place, (_, child) in enumerate(children) if any(p.ndim >= 2 for p in child.parameters())]
    if len(holding) == 1 and not any(True for _ in network.parameters(recurse=False)):
        name, child = children[holding[0]]  # a wrapper
        yield from _stage_ends(child, f"{prefix}{name}.")
    yield from (f"{prefix}{children[place - 1][0]}" for place in holding[1:])


def freeze(network: nn.Module, count: int) -> None:
    """Let the first `count` stages keep their weights: they need no gradient.

    Raises:
        ConfigError: no stage would be trained.
    """
    if not count:
        return
    stages = stages_of(network)
    if count >= len(stages):
        names = ", ".join(stage.name for stage in stages)
        raise ConfigError(
            f"backbone.frozen {count}: the network has {len(stages)} stages ({names}), of which the last one always"
            f" trains; give at most {len(stages) - 1}"
        )
    for stage in stages[:count]:
        for parameter in stage.parameters:
            parameter.requires_grad_(False)


class TrainingMode:
    """Training mode for a network whose first stages are frozen: those stay in evaluation mode.

    So their running statistics do not move, and they drop nothing.

    Args:
        network: the network.
        frozen: how many of its stages are frozen.
    """

    def __init__(self, network: nn.Module, frozen: int) -> None:
        self._network = network
        kept = {module for stage in stages_of(network)[:frozen] for module in stage.modules} if frozen else set()
        # A container with parts that train must train too: it may drop something itself.
        self._frozen = [module for module in kept if kept.issuperset(module.modules())]

    def begin(self) -> None:
        """Put the network into training mode."""
        self._network.train()
        for module in self._frozen:
            module.training = False


def layer_factors(network: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """For each parameter the factor of its learning rate: 1 in the last stage, `decay` times as much in each earlier.

    >>> from torch import nn
    >>> factors = layer_factors(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 4)), 0.5)
    >>> list(factors.values())
    [0.5, 0.5, 1.0, 1.0]
    """
    stages = stages_of(network)
    return {p: decay ** (len(stages) - 1 - number) for number, stage in enumerate(stages) for p in stage.parameters}
