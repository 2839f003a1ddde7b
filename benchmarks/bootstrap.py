"""Claim: 1000 replicates of all 1:1 metrics at IJB-C's size take seconds, a plain loop about ten minutes.

Two plain replicates are timed in this process: one lists the pairs of the resampled identities again (an impostor pair
c_i c_j times) and computes the curve of the list; the other, less plain, weighs pairs by c_i + c_j - 1 and walks along
scores that were ordered once. The replicates of the second are the same as ours, so their metrics are compared first.
Memory is the most that this process used up to that point (Linux). Run: python benchmarks/bootstrap.py
"""

import resource
import time

import numpy as np

from facebones.statistics.bootstrap import resample_verification
from facebones.statistics.curves import area_under_curve, equal_error_rate, roc, true_accept_rate_at
from facebones.statistics.resampling import pairs_design

PAIRS, GENUINE, SUBJECTS, TEMPLATES = 15_658_489, 19_557, 3_531, 23_124
FAR_TARGETS = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
REPLICATES, PLAIN_REPLICATES = 1000, 3
LARGEST_DIFFERENCE = 2e-3  # of one replicate: half a percent of the FAR, read off the curve


def made_up_scores(models, seed=0):
    """Draw M arrays (P,) of float32 scores, (P,) labels and the subjects of both sides; subjects differ in quality."""
    random = np.random.default_rng(seed)
    is_same = np.arange(PAIRS) < GENUINE
    first = (random.integers(TEMPLATES, size=PAIRS) % SUBJECTS).astype(np.int32)
    step = random.integers(1, SUBJECTS, size=PAIRS, dtype=np.int32)
    second = np.where(is_same, first, (first + step) % SUBJECTS)
    quality, likeness = random.standard_normal((2, SUBJECTS), dtype=np.float32)
    scores = []
    for _ in range(models):
        score = 0.1 * random.standard_normal(PAIRS, dtype=np.float32)
        score += np.where(is_same, 0.6 + 0.1 * quality[first], 0.02 * (likeness[first] + likeness[second]))
        scores.append(score)
    return scores, is_same, (first, second)


def replicate_of_list(scores, is_same, first, second, counts):
    """List the resampled pairs and compute their curve."""
    times = np.where(is_same, counts[first], counts[first] * counts[second])
    curve = roc(np.repeat(scores, times), np.repeat(is_same, times))
    tar = [true_accept_rate_at(curve, far) for far in FAR_TARGETS]
    return [*tar, area_under_curve(curve), equal_error_rate(curve)]


def replicate_of_weights(order, is_same, first, second, counts):
    """Weigh every pair, in the order of falling scores, and read the metrics off the sums."""
    weight = np.where(is_same, counts[first], counts[first] + counts[second] - 1)[order]
    genuine = np.cumsum(np.where(is_same[order], weight, 0))
    impostors = np.cumsum(np.where(is_same[order], 0, weight))
    far, tar = impostors / impostors[-1], genuine / genuine[-1]
    rates = [tar[np.argmax(far > target) - 1] for target in FAR_TARGETS]
    auc = np.sum(np.diff(far) * (tar[1:] + tar[:-1])) / 2
    return [*rates, auc, far[np.argmax(far >= 1 - tar)]]


def seconds(function, *arguments):
    """Time one call; give its answer too."""
    start = time.perf_counter()
    answer = function(*arguments)
    return time.perf_counter() - start, answer


def bootstrap(scores, is_same, identities):
    """Ours, of all models given: (names, (R, F) replicates of the first model)."""
    metrics = resample_verification(scores, is_same, identities, far_targets=FAR_TARGETS, replicates=REPLICATES)
    names = [" ".join([one.metric.name, *(f"{point:g}" for point in one.metric.at.values())]) for one in metrics]
    return names, np.stack([one.replicates[:, 0] for one in metrics], axis=1)


def main():
    """Time one and three models, then the plain replicates; compare the answers and print the ratios."""
    scores, is_same, identities = made_up_scores(3)
    print(f"{PAIRS} pairs, {SUBJECTS} subjects, {REPLICATES} replicates of {len(FAR_TARGETS)} TARs, AUC and EER")
    ours = {}
    for models in (1, 3):
        ours[models], (names, replicates) = seconds(bootstrap, scores[:models], is_same, identities)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{models} model(s): {ours[models]:.1f} s, peak memory {peak:.1f} GiB, the scores of 3 models included")
    drawn = pairs_design(is_same, identities, REPLICATES, 0).counts[1 : 1 + PLAIN_REPLICATES].astype(np.int64)
    order = np.argsort(-scores[0])
    weights = [seconds(replicate_of_weights, order, is_same, *identities, counts) for counts in drawn]
    difference = np.abs(np.array([answer for _, answer in weights]) - replicates[:PLAIN_REPLICATES]).max(axis=0)
    print(
        "largest difference: " + ", ".join(f"{name} {value:.1e}" for name, value in zip(names, difference, strict=True))
    )
    assert difference.max() <= LARGEST_DIFFERENCE, "the replicates are not the same"
    lists = [seconds(replicate_of_list, scores[0], is_same, *identities, counts) for counts in drawn]
    for name, timed in (("list and curve", lists), ("weights along ordered scores", weights)):
        each = min(spent for spent, _ in timed)
        ratios = ", ".join(f"{n * each * REPLICATES / ours[n]:.0f} ({n} model(s))" for n in ours)
        print(f"plain replicate, {name}: {each:.2f} s each, {each * REPLICATES:.0f} s for all; ratio {ratios}")


if __name__ == "__main__":
    main()
