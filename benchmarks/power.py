"""How often a difference between two levels is found: computed power against simulated studies, and the stopping rules.

    OMP_NUM_THREADS=1 python benchmarks/power.py [--studies 200000] [--rounds 4000] [--output power.json]

The first table has, for a difference in units of the spread between seeds and a number of seeds of each level, the
share of simulated studies in which the t test between seeds finds it, beside the computed power; and the share in which
all runs of one level are better than all of the other: with a large test set, each pair of runs is then significant.

The second compares rules that add seeds: `seeds: auto`, which looks at the spread (of the two levels that vary most,
the upper 80 % limit), and one that looks at the p-value after each seed and stops at 0.05. "False" is the share of
studies of equal levels in which the first two differ significantly in the end, "found" that of studies in which they
differ by one point.

The third has the verdict of a report, which asks about other seeds on other people (`statistics.seeds_and_set`), beside
the t test between the seeds alone. "Set" is the standard deviation of what a set has for one of the levels, in units of
the spread between seeds.
"""

import argparse
import json
import math
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

from facebones.statistics.seed_power import chance_of_order, detectable_difference, seed_noise, seed_power
from facebones.statistics.seeds_and_set import compare_levels

FloatArray = npt.NDArray[np.float64]

SEEDS, EFFECTS = (2, 3, 5, 10), (0.0, 1.0, 2.0, 4.0)
SPREADS, LEVELS = (0.25, 0.5, 0.7), (2, 4)  # points, of a wanted difference of one point
SETS = (0.0, 0.5, 1.0, 2.0)  # of the verdict
FIRST, MOST = 3, 20
CONFIDENCE, ALPHA = 0.8, 0.05


def p_values(first_NS: FloatArray, second_NS: FloatArray) -> FloatArray:
    """Student's t test of each of N studies, with equal numbers of seeds."""
    seeds = first_NS.shape[1]
    error_N = np.sqrt((first_NS.var(1, ddof=1) + second_NS.var(1, ddof=1)) / seeds)
    return np.asarray(2 * stdtr(2 * seeds - 2, -np.abs(first_NS.mean(1) - second_NS.mean(1)) / error_N))


def fixed(random: np.random.Generator, seeds: int, effect: float, studies: int) -> dict[str, Any]:
    """Computed and simulated power of a number of seeds."""
    first, second = random.standard_normal((2, studies, seeds))
    second = second + effect
    found = float(np.mean(p_values(first, second) <= ALPHA))
    ordered = float(np.mean((first.max(1) < second.min(1)) | (second.max(1) < first.min(1))))
    computed = seed_power(effect, 1.0, seeds)
    error = math.sqrt(computed * (1 - computed) / studies)
    row = {"seeds": seeds, "effect": effect, "computed": computed, "simulated": found, "error": error}
    return {**row, "ordered": ordered, "by_luck": chance_of_order(seeds)}


def stops_by_spread(values_LS: FloatArray) -> int:
    """Seeds at which `seeds: auto` stops, for a difference of 1."""
    for seeds in range(FIRST, MOST):
        part = values_LS[:, :seeds]
        upper = max(seed_noise([one, other], CONFIDENCE).upper for one, other in combinations(part, 2))
        if detectable_difference(upper, seeds) <= 1:
            return seeds
    return MOST


def stops_by_p_value(values_LS: FloatArray) -> int:
    """Seeds at which one stops who looks at the difference of the first two levels after each."""
    for seeds in range(FIRST, MOST):
        if p_values(values_LS[:1, :seeds], values_LS[1:2, :seeds])[0] <= ALPHA:
            return seeds
    return MOST


RULES = {"auto": stops_by_spread, "p-value": stops_by_p_value}


def sequential(random: np.random.Generator, rule: str, spread: float, levels: int, rounds: int) -> dict[str, Any]:
    """How a stopping rule ends, and how often the test is then significant."""
    stops, alarms, finds = [], 0, 0
    for _ in range(rounds):
        values = random.normal(0, spread, (levels, MOST))
        seeds = RULES[rule](values)
        first, second = values[:1, :seeds], values[1:2, :seeds]
        stops.append(seeds)
        alarms += bool(p_values(first, second)[0] <= ALPHA)
        if rule == "auto":  # whose stop does not depend on the difference
            finds += bool(p_values(first, second + 1)[0] <= ALPHA)
    row = {"rule": rule, "spread": spread, "levels": levels, "seeds": float(np.mean(stops)), "false": alarms / rounds}
    return {**row, "found": finds / rounds if rule == "auto" else None}


def verdict(random: np.random.Generator, seeds: int, of_set: float, effect: float, rounds: int) -> dict[str, Any]:
    """How often two levels differ significantly by both kinds of noise, and by that of the seeds alone."""
    first, second = random.standard_normal((2, rounds, seeds))
    second = second + effect + of_set * random.standard_normal((rounds, 1))
    both = [compare_levels(one, other, of_set**2).p_value <= ALPHA for one, other in zip(first, second, strict=True)]
    alone = p_values(first, second) <= ALPHA
    row = {"seeds": seeds, "set": of_set, "effect": effect}
    return {**row, "both": float(np.mean(both)), "seeds_alone": float(np.mean(alone))}


def main() -> None:
    """Simulate the tables and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=200_000, help="of a row of the first table")
    parser.add_argument("--rounds", type=int, default=4000, help="studies of a row of the second table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    tables: dict[str, list[dict[str, Any]]] = {"fixed": [], "sequential": [], "verdict": []}
    print("seeds  difference / spread  computed  simulated  standard error  all runs in order")
    for seeds in SEEDS:
        for effect in EFFECTS:
            row = fixed(random, seeds, effect, arguments.studies)
            tables["fixed"].append(row)
            print(
                f"{seeds:>5}  {effect:>19g}  {row['computed']:>8.2%}  {row['simulated']:>9.2%}  {row['error']:>14.2%}"
                f"  {row['ordered']:>17.2%}",
                flush=True,
            )
    print("rule     spread  levels  seeds   false   found")
    for rule, levels, spread in ((rule, levels, spread) for rule in RULES for levels in LEVELS for spread in SPREADS):
        if rule == "p-value" and (levels, spread) != (LEVELS[0], SPREADS[0]):  # it sees two levels, in any unit
            continue
        row = sequential(random, rule, spread, levels, arguments.rounds)
        tables["sequential"].append(row)
        found = "-" if row["found"] is None else f"{row['found']:.1%}"
        print(
            f"{rule:<7}  {spread:>6g}  {levels:>6}  {row['seeds']:>5.1f}  {row['false']:>6.1%}  {found:>6}", flush=True
        )
    print("seeds  set  difference / spread    both  seeds alone")
    random = np.random.default_rng([arguments.seed, 1])  # whatever --studies
    for seeds, of_set, effect in product(SEEDS, SETS, (0.0, 2.0)):
        row = verdict(random, seeds, of_set, effect, arguments.rounds)
        tables["verdict"].append(row)
        print(f"{seeds:>5}  {of_set:>3g}  {effect:>19g}  {row['both']:>6.1%}  {row['seeds_alone']:>11.1%}", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(tables, indent=2))


if __name__ == "__main__":
    main()
