"""Published parameters and "FLOPs" beside counted ones, and the convention by which each source counted.

Three conventions go by the one word FLOPs: multiply-accumulates (MACs) of convolutions and linear layers; twice these;
and all operations (`OperationCounts.flops_mixfacenet`). Where a network has attention, a source may also count its
products. The convention is deduced from the ratio of the published number to each count.

`costs` puts these and measured latencies into one file, of which `facebones costs` makes docs/costs.md.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import torch

from facebones.backbones.base import Backbone
from facebones.backbones.catalogue import catalogued_backbones, read_catalogue, read_published
from facebones.backbones.registry import create_backbone
from facebones.errors import ConfigError
from facebones.profiling.cost import count_operations, count_parameters
from facebones.profiling.latencies import check_measurable, measure_latencies, measuring_conditions, unsettled
from facebones.system.files import atomic_write, check_writable, parse_json
from facebones.system.progress import say, track
from facebones.system.regular_files import read_regular

UNITS = {"": 1, "M": 10**6, "G": 10**9}
MOST_DEVIATION = (
    0.03  # a published number that is further from a convention was not counted by it, unless it is rounded
)
AS_NEAR = 0.005  # conventions whose deviation is this near to the smallest one fit as well


@dataclass(frozen=True)
class Printed:
    """A number as a source prints it.

    Attributes:
        value: the number.
        rounding: half of the last digit that is printed, relative to the value.
    """

    value: float
    rounding: float

    @classmethod
    def parse(cls, text: str) -> "Printed":
        """Read a number with its unit, which is M, G or none.

        >>> Printed.parse("2.6 G")
        Printed(value=2600000000.0, rounding=0.019230769230769232)
        """
        digits, _, unit = text.partition(" ")
        number = Decimal(digits)
        half = Decimal(5).scaleb(int(number.as_tuple().exponent) - 1)
        return cls(float(number * UNITS[unit]), float(half / number))


@dataclass(frozen=True)
class Fit:
    """A convention, and how far a published number is from the count by it.

    Attributes:
        convention: its name.
        deviation: published / counted - 1.
    """

    convention: str
    deviation: float


def counts_by_convention(counts: Mapping[str, Any]) -> dict[str, int]:
    """A network's operations by each convention.

    Args:
        counts: "macs", "attention_macs" and "flops_mixfacenet", as `profile` writes them.
    """
    macs, every, attention = counts["macs"], counts["flops_mixfacenet"], counts["attention_macs"]
    found = {"MACs": macs, "2 x MACs": 2 * macs, "all operations": every}
    if not attention:
        return found
    with_products = (macs + attention, 2 * (macs + attention), every + 2 * attention)
    return found | {f"{name}, attention too": count for name, count in zip(found, with_products, strict=True)}


def deduce_conventions(flops: str, counts: Mapping[str, Any]) -> tuple[list[Fit], bool]:
    """The conventions by which a published number may have been counted.

    Args:
        flops: the number as printed.
        counts: the network's, as in `counts_by_convention`.

    Returns:
        the nearest convention and those that are as near, the nearest first, and whether it fits: it deviates by 3 % or
        by the rounding of the printed number at most.

    >>> counts = {"macs": 100_000_000, "attention_macs": 0, "flops_mixfacenet": 208_000_000}
    >>> deduce_conventions("101 M", counts)
    ([Fit(convention='MACs', deviation=0.010000000000000009)], True)
    >>> deduce_conventions("150 M", counts)[1]
    False
    """
    printed = Printed.parse(flops)
    fits = [Fit(name, printed.value / count - 1) for name, count in counts_by_convention(counts).items()]
    fits.sort(key=lambda fit: abs(fit.deviation))
    least = abs(fits[0].deviation)
    near = [fit for fit in fits if abs(fit.deviation) <= least + AS_NEAR]
    return near, least <= max(MOST_DEVIATION, printed.rounding)


def count_networks() -> list[dict[str, Any]]:
    """Parameters and operations of every built-in backbone, of the deploy form where there is one; takes some seconds.

    Raises:
        ConfigError: an extra is missing, so that a backbone cannot be counted.
    """
    return [count_network(row["name"], 512) for row in track(read_catalogue(), "counting")]


@cache
def count_network(name: str, embedding_size: int) -> dict[str, Any]:
    """Parameters and operations of a backbone for one image, under the keys of profile.json.

    They are of the deploy form where there is one; then "training_form" has those of the other.
    """
    try:
        with torch.device("meta"):
            network = create_backbone(name, embedding_size)
    except ConfigError as error:
        raise ConfigError(f"the page of costs needs every backbone: {error}") from error
    deployed = network.deploy()
    has_two = deployed is not network
    return {
        "name": name,
        "form": "deploy" if has_two else None,
        **_counts(deployed),
        "training_form": _counts(network) if has_two else None,
    }


def _counts(network: Backbone) -> dict[str, int]:
    operations = count_operations(network)
    return {
        "parameters": count_parameters(network),
        "macs": operations.macs,
        "attention_macs": operations.attention,
        "flops_2_macs": operations.flops,
        "flops_mixfacenet": operations.flops_mixfacenet,
    }


def compare_published(rows: Sequence[Mapping[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Published numbers beside counted ones.

    Args:
        rows: as in `backbones.catalogue.read_published`, which they are if None.

    Returns:
        the rows with "counted" (the counts of the network with that embedding), "parameters_deviation" (published /
        counted - 1, or None), "conventions" (of `deduce_conventions`; empty without FLOPs) and "fits".
    """
    return [_compare(row) for row in (read_published()["rows"] if rows is None else rows)]


def _compare(row: Mapping[str, Any]) -> dict[str, Any]:
    size = row.get("embedding_size", 512)
    counts = count_network(row["backbone"], size)
    near, fits = deduce_conventions(row["flops"], counts) if row["flops"] else ([], False)
    parameters = Printed.parse(row["parameters"]).value if row["parameters"] else None
    return {
        "backbone": row["backbone"],
        "embedding_size": size,
        "source": row["source"],
        "called": row.get("called"),
        "remark": row.get("remark"),
        "parameters": row["parameters"],
        "flops": row["flops"],
        "counted": {key: count for key, count in counts.items() if key not in ("name", "form", "training_form")},
        "parameters_deviation": None if parameters is None else parameters / counts["parameters"] - 1,
        "conventions": [asdict(fit) for fit in near],
        "fits": fits,
    }


def costs(
    output: str | Path | None = None, *, measure: bool = False, only: str | Sequence[str] = "*", seconds: float = 1.0
) -> dict[str, Any]:
    """Count every built-in backbone, compare published numbers with the counts, and measure latencies.

    Latencies are for one image, on one and two threads of the CPU, in torch, compiled, in ONNX Runtime and OpenVINO, in
    fp32 and int8. They are written after each network; a later call keeps them and measures what is missing, what a
    busy machine has disturbed, and what could not be measured.

    Args:
        output: the JSON file, which may hold latencies of earlier calls; None writes nothing.
        measure: measure latencies; otherwise those of the file are returned.
        only: name, alias or shell pattern of the backbones to measure, or several.
        seconds: the least time for each latency.

    Returns:
        "networks" (of `count_networks`), "published" (of `compare_published`), "conditions" of the latencies or None,
        and "latencies": by backbone, threads and runtime.

    Raises:
        UnknownNameError: no such backbone.
        ConfigError: an extra is missing, or the file is of another machine, other versions or other seconds.

    Example, which counts for half a minute, and which tests/profiling/test_published.py runs::

        costs()["published"][0]["conventions"][0]["convention"]
    """
    path = None if output is None else Path(output)
    patterns = [only] if isinstance(only, str) else only
    named = {row["name"] for pattern in patterns for row in catalogued_backbones(pattern)}
    conditions, latencies = _read_latencies(path)
    if path is not None:
        check_writable(path)
    if measure:
        check_measurable()
        conditions = _same_conditions(conditions, measuring_conditions(seconds), path)
    content = {
        "networks": count_networks(),
        "published": compare_published(),
        "conditions": conditions,
        "latencies": latencies,
    }
    todo = [
        row["name"] for row in read_catalogue() if row["name"] in named and unsettled(latencies.get(row["name"], {}))
    ]
    for number, name in enumerate(todo if measure else [], 1):
        say(f"{name}: network {number} of {len(todo)}")
        latencies[name] = measure_latencies(name, latencies.get(name, {}), seconds)
        if path is not None:
            _write(path, content)
    if path is not None:
        _write(path, content)
    return content


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Write the file with one backbone or published row per line, so that diffs are readable."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list):
            lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in value)
            text = f"[\n{lines}\n]"
        elif key == "latencies":
            lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in value.items())
            text = f"{{\n{lines}\n}}" if value else "{}"
        else:
            text = json.dumps(value)
        parts.append(f"{json.dumps(key)}: {text}")
    with atomic_write(path) as file:
        file.write(("{\n" + ",\n".join(parts) + "\n}\n").encode())


def _read_latencies(path: Path | None) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The conditions and latencies of a file that `costs` has written; none if there is no file."""
    if path is None or not path.exists():
        return None, {}
    try:
        content = parse_json(read_regular(path))
        conditions, latencies = content["conditions"], content["latencies"]
        cells = [cell for threads in latencies.values() for row in threads.values() for cell in row.values()]
        if not isinstance(conditions, dict | None) or not all("problem" in cell or "busy" in cell for cell in cells):
            raise TypeError("no latencies")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: no file of `facebones costs`; name another --output, or remove it") from error
    return conditions, latencies


def _same_conditions(known: Mapping[str, Any] | None, here: dict[str, Any], path: Path | None) -> dict[str, Any]:
    if known is not None and (other := [key for key in here if known.get(key) != here[key]]):
        told = "; ".join(f"{key} {known.get(key)}, here {here[key]}" for key in other)
        raise ConfigError(f"{path}: its latencies were measured with {told}; measure where it was, or remove the file")
    return here
