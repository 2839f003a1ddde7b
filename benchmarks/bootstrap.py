"""Claim: 1000 replicates of all 1:1 figures at IJB-C's size take seconds, where a plain loop would take an hour.

The loop redraws the identities, lists the weight of every pair and sorts nothing anew: it walks along scores that were
ordered once, weighing each pair by c_i + c_j - 1. It is timed over a few replicates in this process; the standard errors
of both ways are printed side by side. Memory is what this process used at most (Linux).
Run: python benchmarks/bootstrap.py
"""

import resource
import time

import numpy as np

from facebones.evaluation.bootstrap import verification_figures

PAIRS, SUBJECTS, TEMPLATES = 15_658_489, 3_531, 23_124
GENUINE = 19_557
FAR_TARGETS = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
REPLICATES, LOOP_REPLICATES = 1000, 5


def made_up_scores(models, seed=0):
    """Draw M arrays (P,) of float32 scores, (P,) labels and the subjects of both sides; subjects differ in quality."""
    random = np.random.default_rng(seed)
    subject = np.arange(TEMPLATES, dtype=np.int32) % SUBJECTS
    same = np.arange(PAIRS) < GENUINE
    first = random.integers(TEMPLATES, size=PAIRS)
    other = (first + SUBJECTS * random.integers(1, 5, size=PAIRS)) % (SUBJECTS * 6)
    far = random.integers(TEMPLATES, size=PAIRS)
    a, b = subject[first], np.where(same, subject[first], subject[far])
    b = np.where(~same & (a == b), (b + 1) % SUBJECTS, b)
    del other, far, first
    quality, likeness = random.standard_normal((2, SUBJECTS))
    scores = []
    for _ in range(models):
        score = 0.1 * random.standard_normal(PAIRS, dtype=np.float32)
        score += np.where(same, 0.6 + 0.1 * quality[a], 0.02 * (likeness[a] + likeness[b])).astype(np.float32)
        scores.append(score)
    return scores, same, (a, b)


def plain_replicate(order, same, a, b, counts):
    """Weigh every pair, in the order of falling scores, and read the figures off the sums."""
    weight = np.where(same, counts[a], counts[a] + counts[b] - 1)[order]
    genuine = np.cumsum(np.where(same[order], weight, 0))
    impostors = np.cumsum(np.where(same[order], 0, weight))
    far, tar = impostors / impostors[-1], genuine / genuine[-1]
    rates = [tar[max(np.argmax(far > target) - 1, 0)] for target in FAR_TARGETS]
    auc = np.sum(np.diff(far) * (tar[1:] + tar[:-1])) / 2
    return [*rates, auc, far[np.argmax(far >= 1 - tar)]]


def main():
    """Time one and three models, then the loop, and print the ratio for each replicate."""
    scores, same, (a, b) = made_up_scores(3)
    print(f"{PAIRS} pairs, {SUBJECTS} subjects, {REPLICATES} replicates, all TARs, AUC and EER")
    timed = {}
    for models in (1, 3):
        start = time.perf_counter()
        figures = verification_figures(scores[:models], same, (a, b), far_targets=FAR_TARGETS, replicates=REPLICATES)
        timed[models] = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{models} model(s): {timed[models]:.1f} s, peak memory {peak:.1f} GiB with the scores")
    start = time.perf_counter()
    order = np.argsort(-scores[0])
    sorting = time.perf_counter() - start
    random = np.random.default_rng(1)
    start = time.perf_counter()
    loop = np.array(
        [
            plain_replicate(order, same, a, b, np.bincount(random.integers(SUBJECTS, size=SUBJECTS), minlength=SUBJECTS))
            for _ in range(LOOP_REPLICATES)
        ]
    )
    each = (time.perf_counter() - start) / LOOP_REPLICATES
    print(f"plain loop: sorting {sorting:.1f} s, then {each:.2f} s for each replicate")
    for (name, figure), column in zip(figures.items(), loop.T, strict=True):
        if hasattr(figure, "replicates"):
            ours = figure.replicates[:, 0]
            print(f"  {name:18s} ours {figure.values[0]:.5f} {ours.std():.5f}  loop {column.mean():.5f} {column.std():.5f}")
    print(f"ratio {each * REPLICATES / timed[1]:.0f} for one model, {3 * each * REPLICATES / timed[3]:.0f} for three")


if __name__ == "__main__":
    main()
