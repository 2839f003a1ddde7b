"""Claim: intervals of error versus discard hold the true value; a score that says nothing differs from chance in 5 %.

Made-up sets of people with a few images each and all genuine pairs of these. Images have a hidden quality; a pair is
rejected the more often, the lower that of its worse image is, and people differ. Three scores: two that see the hidden
quality through noise of their own, equally good, and one that is noise alone. True values are those of a set of 40,000
people. Said are the coverage of FNMR at each discarded share and of pAUC, how often the noise (false alarm) and a
good score (power) differ from discarding at random, and how often the two good ones differ (false alarm), by pAUC.

    python benchmarks/quality.py [--sets 300] [--seed 0] [--output FILE.json]
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facebones.statistics.discard import SHARES, fnmr_after_discards, partial_area, range_of, resample_discards
from facebones.statistics.significance import compare_models

UP_TO = 0.3
MANY = 40_000
SETTINGS = (  # people, images of each, whether people are known, intercept of rejection
    (100, 3, True, 3.5),
    (300, 3, True, 3.5),
    (300, 6, True, 3.5),
    (1000, 2, True, 5.0),
    (300, 3, False, 3.5),
)
PAIRS = (("noise", "at random"), ("good", "at random"), ("good", "also good"))

FloatArray = npt.NDArray[np.float64]


def made_up(
    people: int, images: int, intercept: float, random: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], dict[str, FloatArray]]:
    """Person and rejection of each genuine pair, and its quality by each score."""
    hidden = random.normal(size=(people, images)) + 0.5 * random.normal(size=(people, 1))
    seen = {name: hidden + 0.5 * random.normal(size=hidden.shape) for name in ("good", "also good")}
    seen["noise"] = random.normal(size=hidden.shape)
    one, other = np.triu_indices(images, 1)
    margin = intercept + 1.5 * np.minimum(hidden[:, one], hidden[:, other]) + random.normal(size=(people, 1))
    rejected = random.random(margin.shape) < 1 / (1 + np.exp(margin))
    quality = {name: np.minimum(row[:, one], row[:, other]).ravel() for name, row in seen.items()}
    return np.repeat(np.arange(people), one.size), rejected.ravel(), quality


def truth(images: int, intercept: float, seed: int) -> dict[str, FloatArray]:
    """Of each score FNMR at each share, then pAUC."""
    _, rejected, quality = made_up(MANY, images, intercept, np.random.default_rng(seed))
    grid = np.concatenate([SHARES, range_of(UP_TO)])
    curves = {name: fnmr_after_discards(row, rejected, grid) for name, row in quality.items()}
    curves["at random"] = np.full(grid.size, rejected.mean())
    return {name: np.append(row[: len(SHARES)], partial_area(row[len(SHARES) :])) for name, row in curves.items()}


def measure(people: int, images: int, known: bool, intercept: float, *, sets: int, seed: int) -> dict[str, object]:
    """Coverage and rates of tests over made-up sets of one setting."""
    right = truth(images, intercept, seed)
    held = {name: np.zeros(len(SHARES) + 1) for name in right}
    differ, rejected_share = dict.fromkeys(PAIRS, 0), 0.0
    for number in range(sets):
        person, rejected, quality = made_up(people, images, intercept, np.random.default_rng([seed, number]))
        identities = (person, person) if known else None
        same = np.ones(person.size, dtype=bool)
        found = resample_discards(quality, rejected, same, identities, up_to=UP_TO, replicates=500, seed=number)
        compared = compare_models(list(right), found)
        for place, metric in enumerate(compared):
            for name, interval in metric.intervals.items():
                held[name][place] += interval.low <= right[name][place] <= interval.high
        p_values = {(one.first, one.second): one.p_value for one in compared[-1].comparisons}
        for pair in PAIRS:
            differ[pair] += p_values[pair] <= 0.05
        rejected_share += rejected.mean() / sets
    return {
        "people": people,
        "images": images,
        "people_known": known,
        "fnmr": rejected_share,
        "held": {name: (row / sets).tolist() for name, row in held.items()},
        "differ": {" - ".join(pair): count / sets for pair, count in differ.items()},
    }


def main() -> None:
    """Measure all settings and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    print("| people | images | known | FNMR | FNMR held | pAUC held | noise found | good found | good ones differ |")
    print("|--:|--:|---|--:|--:|--:|--:|--:|--:|")
    for setting in SETTINGS:
        start = time.process_time()
        row = measure(*setting, sets=arguments.sets, seed=arguments.seed)
        rows.append(row | {"seconds": time.process_time() - start})
        rates = [rate for name, held in row["held"].items() for rate in held[:-1]]
        areas = [held[-1] for held in row["held"].values()]
        found = [f"{100 * rate:.1f} %" for rate in row["differ"].values()]
        spans = [f"{100 * min(one):.1f} to {100 * max(one):.1f} %" for one in (rates, areas)]
        known = "yes" if row["people_known"] else "no"
        cells = [f"{row['people']:,}", row["images"], known, f"{100 * row['fnmr']:.1f} %", *spans, *found]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
