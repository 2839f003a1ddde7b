"""Claim: in at least 95 % of data sets, the promise of a threshold is kept or the threshold is refused.

Made-up impostor scores with a known false match rate at each threshold: standard normal, with a share of the variance
for each person ("people") and each pair of people. A set is N people with M images each, all pairs of images of two
people; or independent pairs whose people are not known. Effects are normal, or skewed as a few people's who resemble
many others ("skewed": gamma with shape 2, whose false match rate is counted in 20 million pairs).

    python benchmarks/calibration.py [--sets 2000] [--seed 0] [--output FILE.json]
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from facebones.errors import DataError
from facebones.statistics.calibration import ScoredPairs, promised_threshold

FloatArray = npt.NDArray[np.float64]
Random = np.random.Generator

# People, images each, target; None: that many independent pairs.
SIZES = ((None, 3000, 1e-3), (None, 30_000, 1e-3), (50, 3, 1e-2), (100, 2, 1e-2), (200, 1, 1e-3))
SHARES = (0.0, 0.2, 0.5)  # of the variance that is of people
PAIR_SHARE = 0.1  # of a pair of people
POPULATION = 20_000_000
BLOCK = 1_000_000


def effects(random: Random, size: int, skewed: bool) -> FloatArray:
    """Effects of mean 0 and variance 1."""
    if skewed:
        return (random.standard_gamma(2, size) - 2) / np.sqrt(2)
    return random.standard_normal(size)


def scores(random: Random, person: FloatArray, pair: FloatArray, share: float) -> FloatArray:
    """Impostor scores, one for each sum of the effects of two people."""
    shared = np.sqrt(share / 2) * person + np.sqrt(PAIR_SHARE) * pair
    return shared + np.sqrt(1 - share - PAIR_SHARE) * random.standard_normal(person.size)


def population(share: float, skewed: bool) -> Callable[[float], float]:
    """The false match rate at a threshold."""
    if not skewed:
        return lambda threshold: float(norm.sf(threshold))
    random, found = np.random.default_rng(12345), []
    for _ in range(POPULATION // BLOCK):
        person = effects(random, BLOCK, skewed) + effects(random, BLOCK, skewed)
        found.append(scores(random, person, random.standard_normal(BLOCK), share))
    drawn = np.sort(np.concatenate(found))
    return lambda threshold: 1 - float(np.searchsorted(drawn, threshold)) / POPULATION


def make_set(random: Random, people: int | None, images: int, share: float, skewed: bool) -> ScoredPairs:
    """Impostor pairs, and fifty genuine ones."""
    genuine = random.normal(3, 1, 50)
    if people is None:
        score = np.append(genuine, random.standard_normal(images))
        return ScoredPairs(score, np.arange(score.size) < 50)
    one, other = np.triu_indices(people, 1)
    person, pair = effects(random, people, skewed), random.standard_normal(one.size)
    rounds = images * images
    impostors = [scores(random, person[one] + person[other], pair, share) for _ in range(rounds)]
    first, second = np.append(np.arange(50) % people, np.tile(one, rounds)), np.tile(other, rounds)
    second = np.append(np.arange(50) % people, second)
    return ScoredPairs(np.concatenate([genuine, *impostors]), first == second, first, second)


def main() -> None:
    """Simulate all settings, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", type=int, default=2000, help="made-up sets in a setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    arguments = parser.parse_args()
    rows = []
    print("people  images  target  share  skewed    kept  refused  broken  design effect  rate / target  minutes")
    for (people, images, target), share, skewed in product(SIZES, SHARES, (False, True)):
        if (skewed and not share) or (people is None and share):  # effects are what is skewed
            continue
        rate_of, started = population(share, skewed), time.monotonic()
        rates, found_effects, refused = [], [], 0
        for number in range(arguments.sets):
            random = np.random.default_rng([arguments.seed, number])
            try:
                found = promised_threshold(make_set(random, people, images, share, skewed), target)
            except DataError:
                refused += 1
                continue
            rates.append(rate_of(found.threshold) / target)
            found_effects.append(found.design_effect)
        broken = sum(rate > 1 for rate in rates)
        row = {
            "people": people,
            "images": images,
            "target": target,
            "share": share,
            "skewed": skewed,
            "sets": arguments.sets,
            "kept": len(rates) - broken,
            "refused": refused,
            "broken": broken,
            "design_effect": float(np.median(found_effects)) if rates else None,
            "rate_to_target": float(np.median(rates)) if rates else None,
            "minutes": (time.monotonic() - started) / 60,
        }
        rows.append(row)
        effect, rate = (f"{row[key]:.2f}" if rates else "-" for key in ("design_effect", "rate_to_target"))
        print(
            f"{people or '-':>6}  {images:>6}  {target:>6g}  {share:>5g}  {skewed!s:>6}  {row['kept']:>6}  {refused:>7}"
            f"  {broken / arguments.sets:>6.2%}  {effect:>13}  {rate:>13}  {row['minutes']:>7.1f}",
            flush=True,
        )
        if arguments.output:
            arguments.output.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
