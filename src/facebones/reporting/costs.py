"""What the variants of a report cost: counted by studies and from their networks, measured by profiles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from facebones.reporting.results import Cost, Run
from facebones.reporting.runs import OTHER_SHAPE, checked_levels, counted_cost, number, read_json, text, unexpected
from facebones.reporting.variants import variant_name
from facebones.system.hub import is_hub_address, parse_address


@dataclass
class Costs:
    """The costs that have been read so far.

    Attributes:
        studied: as studies tell them, by variant.
        profiled: as separate profiles tell them, by the name or file that was profiled.
        conditions: of the first profile.
        notes: what was left out, and why.
    """

    studied: dict[str, Cost] = field(default_factory=dict)
    profiled: dict[str, Cost] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add_counts(self, summary: Sequence[Mapping[str, Any]]) -> None:
        """Take parameters and MACs from the summary of a study."""
        for row in summary:
            cost = Cost(parameters=_whole(row["parameters"]), macs=_whole(row["macs"]))
            self.studied[variant_name(text(row["backbone"]), checked_levels(row))] = cost

    def share_profiles(self, summary: Sequence[Mapping[str, Any]]) -> None:
        """Give the profile of a study's backbone to its variants, unless levels change the network itself."""
        for row in summary:
            name, levels = text(row["backbone"]), checked_levels(row)
            variant, profiled = variant_name(name, levels), self.studied.get(name)
            if levels and profiled is not None and profiled.parameters == self.studied[variant].parameters:
                self.studied[variant] = profiled

    def read_profile(self, path: Path, costs: dict[str, Cost]) -> None:
        """Read a profile; latency and memory only if measured under the conditions of the profiles before.

        Args:
            path: a profile.json.
            costs: `studied` for that of a study, else `profiled`.

        Raises:
            DataError: the file is damaged.
        """
        content = read_json(path)
        try:
            conditions = dict(content["conditions"])
            comparable = self.conditions in ({}, conditions)
            if comparable:
                self.conditions = conditions
            else:
                self.notes.append(f"{path}: measured under other conditions; its latency and memory are left out")
            for row in content["networks"]:
                name = text(row["name"])  # in a study, of a variant; a level may hold a "/"
                costs[name if name in costs else _profiled_name(row)] = _profiled_cost(row, comparable)
        except OTHER_SHAPE as error:
            raise unexpected(path, error) from error

    def of(self, variant: str, run: Run) -> Cost:
        """The cost of a variant; measured values count only if the measured network has the same size.

        Args:
            variant: its name, without the factors that are found in recipes.
            run: its first.
        """
        known = self.studied.get(variant)
        if known is not None and known.parameters is not None and run.variant == variant:
            return known
        known, built = known or self.profiled.get(run.backbone) or self.profiled.get(run.name), counted_cost(run)
        if known is None or known.parameters is None or built.parameters is None:
            return _completed(known or Cost(), built)
        if known.parameters != built.parameters:
            self.notes.append(
                f"{run.variant}: has {built.parameters:,} parameters, but {known.parameters:,} in the profile"
                " (another embedding size?); its latency and memory are left out"
            )
            return built
        return _completed(known, built)


def _completed(known: Cost, built: Cost) -> Cost:
    return replace(
        known,
        parameters=built.parameters if known.parameters is None else known.parameters,
        macs=built.macs if known.macs is None else known.macs,
    )


def _profiled_name(row: Mapping[str, Any]) -> str:
    """A backbone's name, or that of the run or file that was profiled."""
    name = text(row["name"])
    if is_hub_address(name):
        return parse_address(name).name
    return name if name == row.get("backbone") or ":" in name else Path(name).name or name


def _profiled_cost(row: Mapping[str, Any], measured: bool) -> Cost:
    # The counts of a run are those of the form that is trained; a deploy form has others.
    parameters, macs = (_whole(row.get(f"trained_{key}") or row[key]) for key in ("parameters", "macs"))
    cost = Cost(parameters=parameters, macs=macs)
    if not measured:
        return cost
    return replace(
        cost,
        latency_ms=_known(row["latency_p50_ms"]),
        images_per_second=_known(row["throughput_images_per_second"]),
        memory_bytes=_whole(row.get("peak_memory_bytes")),
        busy=row.get("busy") is True,  # unknown in files of older versions
    )


def _known(value: Any) -> float | None:
    return None if value is None else number(value)


def _whole(value: Any) -> int | None:
    return None if value is None else int(number(value))
