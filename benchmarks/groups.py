"""Claim: 95 % intervals of group rates and indices contain the true value, and the test of groups keeps its level.

Made-up sets of people in groups, with a few images each and all pairs of these. Scores have variance 1, of which a
share belongs to each person and a tenth to each pair of people; means set the true rates of each group at the threshold
0. Impostors across groups are accepted a third as often as those within. Said are, for each setting, the coverage of
the intervals, and how often the tests find a difference (at 0.05, not corrected): the false alarms where the groups are
alike, the power where not.

    python benchmarks/groups.py [--sets 1000] [--seed 0] [--output FILE.json]
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from facebones.statistics.fairness import INDICES
from facebones.statistics.group_rates import GroupedPairs, compare_groups

FloatArray = npt.NDArray[np.float64]
PAIR_SHARE = 0.1
ACROSS = 3.0  # times rarer


@dataclass(frozen=True)
class Setting:
    """People and true rates of each group.

    Attributes:
        people: of each group.
        fmr: true FMR within each group.
        fnmr: true FNMR of each group.
        images: of each person.
        share: of the variance that is of people.
    """

    people: Sequence[int]
    fmr: Sequence[float]
    fnmr: Sequence[float]
    images: int = 3
    share: float = 0.2


SETTINGS = (
    Setting((40, 40), (0.02, 0.02), (0.1, 0.1)),
    Setting((40, 40), (0.02, 0.04), (0.1, 0.2)),
    Setting((100, 100), (0.005, 0.005), (0.05, 0.05)),
    Setting((100, 100), (0.005, 0.01), (0.05, 0.1)),
    Setting((100, 50, 25), (0.02, 0.02, 0.02), (0.1, 0.1, 0.1)),
    Setting((100, 50, 25), (0.01, 0.02, 0.04), (0.05, 0.1, 0.2)),
    Setting((50, 50, 50, 50), (0.01, 0.01, 0.01, 0.01), (0.1, 0.1, 0.1, 0.1)),
    Setting((50, 50, 50, 50), (0.01, 0.01, 0.02, 0.04), (0.1, 0.1, 0.1, 0.2)),
    Setting((100, 100), (0.005, 0.005), (0.05, 0.05), share=0.5),
    Setting((100, 100), (0.001, 0.001), (0.02, 0.02)),
)


def make_set(setting: Setting, random: np.random.Generator) -> GroupedPairs:
    """All pairs of the images of all people."""
    group = np.repeat(np.arange(len(setting.people)), setting.people)
    person = np.repeat(np.arange(group.size), setting.images)
    first, second = np.triu_indices(person.size, 1)
    one, other = person[first], person[second]
    effect, genuine_effect = random.standard_normal((2, group.size))
    pair = random.standard_normal((group.size, group.size))
    same = one == other
    within = group[one] == group[other]
    fmr = np.where(within, np.array(setting.fmr)[group[one]], np.mean(setting.fmr) / ACROSS)
    mean = np.where(same, norm.isf(np.array(setting.fnmr)[group[one]]), norm.ppf(fmr))
    own = np.sqrt(1 - setting.share - PAIR_SHARE * ~same) * random.standard_normal(first.size)
    shared = np.sqrt(setting.share / 2) * (effect[one] + effect[other]) + np.sqrt(PAIR_SHARE) * pair[one, other]
    score = mean + own + np.where(same, np.sqrt(setting.share) * genuine_effect[one], shared)
    return GroupedPairs(score=score, is_same=same, first=first, second=second, group=group[person], person=person)


def simulate(setting: Setting, sets: int, seed: Sequence[int], replicates: int, permutations: int) -> dict[str, float]:
    """Coverage of each interval, and share of tests that find a difference at 0.05."""
    groups = [f"group {number}" for number in range(len(setting.people))]
    true = {"fmr": np.array(setting.fmr), "fnmr": np.array(setting.fnmr)}
    held: dict[str, list[bool]] = defaultdict(list)
    for number in range(sets):
        pairs = make_set(setting, np.random.default_rng([*seed, number]))
        found = compare_groups(pairs, groups, 0.0, replicates=replicates, permutations=permutations, seed=number)
        for kind, rates in found.rates.items():
            for rate, value in zip(rates, true[kind], strict=False):
                held[kind].append(rate.interval.low <= value <= rate.interval.high)
        for index, one in zip(INDICES, found.indices, strict=True):
            if one.interval is not None:
                value = float(index.of(*(true[kind] for kind in index.needs)))
                held[index.name].append(one.interval.low - 1e-12 <= value <= one.interval.high + 1e-12)
        for test in found.tests:
            held[f"{test.kind} test"].append(test.p_value is not None and test.p_value <= 0.05)
    return {name: float(np.mean(values)) for name, values in held.items()}


def main() -> None:
    """Simulate all settings, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", type=int, default=1000, help="made-up sets in a setting")
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--permutations", type=int, default=199)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    names = ["fmr", "fnmr", *(index.name for index in INDICES), "fmr test", "fnmr test"]
    print("  ".join(["people, FMR, FNMR, share of people", *names]))
    rows = []
    for place, setting in enumerate(SETTINGS):
        started = time.process_time()
        seed = (arguments.seed, place)
        found = simulate(setting, arguments.sets, seed, arguments.replicates, arguments.permutations)
        rows.append(vars(setting) | {"sets": arguments.sets, "found": found})
        cells = [f"{100 * found[name]:>{max(len(name), 5)}.1f}" if name in found else "-" for name in names]
        print(f"{setting.people}, {setting.fmr}, {setting.fnmr}, {setting.share:g}", end="")
        print("", *cells, f"({time.process_time() - started:.0f} s)", sep="  ", flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
