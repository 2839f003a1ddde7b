"""The state of head and optimizer as one process would have it, whatever the number of processes and shards.

The centres of a shared head, and what the optimizer keeps for each centre, become `Rows` of one matrix; the entries of
the optimizer are numbered as in one process. So a checkpoint does not know how many processes wrote it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from facebones.heads.partial_fc import Head
from facebones.heads.sharded import ReplicatedHead, ShardedHead
from facebones.system.sharded_checkpoint import Rows

CENTRES = "centres"  # of `PartialFC`


def head_state(head: Head) -> dict[str, Any]:
    """The state of a head under the names that it has in one process."""
    if isinstance(head, ReplicatedHead):
        return head.head.state_dict()
    if not isinstance(head, ShardedHead):
        return head.state_dict()
    whole: dict[str, Any] = head.heads[0].state_dict()
    return whole | {CENTRES: _rows(head, [one.centres.detach() for one in head.heads])}


def load_head_state(head: Head, state: Mapping[str, Any]) -> None:
    """Restore what `head_state` returned."""
    if isinstance(head, ReplicatedHead):
        head.head.load_state_dict(state)
    elif isinstance(head, ShardedHead):
        for one, block in zip(head.heads, state[CENTRES].blocks, strict=True):
            one.load_state_dict({**state, CENTRES: block})
    else:
        head.load_state_dict(state)


def optimizer_state(optimizer: torch.optim.Optimizer, whole: Mapping[str, nn.Module], head: Head) -> dict[str, Any]:
    """The optimizer's `state_dict` as in one process.

    Args:
        optimizer: of the training.
        whole: what is trained beside the head and every process has, by name.
        head: the head.
    """
    own = optimizer.state_dict()
    if not isinstance(head, ShardedHead):
        return own
    groups, copies = _numbered(optimizer, whole, head)
    state = {}
    for number, indices in copies.items():
        entries = [own["state"][index] for index in indices if index in own["state"]]
        if len(entries) == len(indices):
            state[number] = {key: _merged(head, [entry[key] for entry in entries]) for key in entries[0]}
    return {
        "state": state,
        "param_groups": [{**kept, "params": group} for kept, group in zip(own["param_groups"], groups, strict=True)],
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, whole: Mapping[str, nn.Module], head: Head, state: Mapping[str, Any]
) -> None:
    """Restore what `optimizer_state` returned."""
    if not isinstance(head, ShardedHead):
        optimizer.load_state_dict(dict(state))
        return
    own = optimizer.state_dict()
    _, copies = _numbered(optimizer, whole, head)
    entries: dict[int, Any] = {}
    for number, entry in state["state"].items():
        for place, index in enumerate(copies[number]):
            entries[index] = {
                key: value.blocks[place] if isinstance(value, Rows) else value for key, value in entry.items()
            }
    groups = [
        {**saved, "params": kept["params"]}
        for saved, kept in zip(state["param_groups"], own["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def _numbered(
    optimizer: torch.optim.Optimizer, whole: Mapping[str, nn.Module], head: ShardedHead
) -> tuple[list[list[int]], dict[int, list[int]]]:
    """The numbers that the parameters of each group have in one process, and for each number the own indices."""
    names = dict(_names(whole, head))
    numbers: dict[str, int] = {}
    copies: dict[int, list[int]] = {}
    groups, index = [], 0
    for group in optimizer.param_groups:
        found = []
        for parameter in group["params"]:
            number = numbers.setdefault(names[parameter], len(numbers))
            copies.setdefault(number, []).append(index)
            found.append(number)
            index += 1
        groups.append(list(dict.fromkeys(found)))
    return groups, copies


def _names(whole: Mapping[str, nn.Module], head: ShardedHead) -> Iterator[tuple[Tensor, str]]:
    """Each parameter with its name in one process; the copies of a parameter have one name."""
    for place, module in whole.items():
        for name, parameter in module.named_parameters():
            yield parameter, f"{place}.{name}"
    for one in head.heads:
        for name, parameter in one.named_parameters():
            yield parameter, f"head.{name}"
        if one.sampled is not None:
            yield one.sampled.leaf, "sample"


def _merged(head: ShardedHead, values: Sequence[Any]) -> Any:
    """One value for the copies of a parameter: the rows of all, where each shard has rows of its own."""
    shapes = [one.centres.shape for one in head.heads]
    if [getattr(value, "shape", None) for value in values] == shapes:
        return _rows(head, list(values))
    return values[0]


def _rows(head: ShardedHead, blocks: list[Tensor]) -> Rows:
    return Rows(blocks=blocks, start=head.heads[0].shard.start, total=head.num_classes)
