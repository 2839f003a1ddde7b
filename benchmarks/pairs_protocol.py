"""Claim: `verify_pairs` counts the pairs protocol over 50 times faster than loops over folds and thresholds.

Both are timed in this process on the same embeddings, in turn; the answers are compared first, and the ratio is that of
the medians. The loops count again from boolean arrays at each threshold, as is usual in the field.
Run: python benchmarks/pairs_protocol.py
"""

import time

import numpy as np
from scipy.interpolate import interp1d
from sklearn.model_selection import KFold

from facebones.evaluation.verification import verify_pairs

PAIRS = 6000
EMBEDDING_SIZE = 512
REPEATS = 9
LARGEST_DIFFERENCE = 1e-12


def accuracy_below(distances, is_same, threshold):
    """Share of the pairs that a threshold decides rightly."""
    accepted = np.less(distances, threshold)
    right = np.sum(np.logical_and(accepted, is_same)) + np.sum(np.logical_and(~accepted, ~is_same))
    return right / distances.size


def rates_below(distances, is_same, threshold):
    """True and false accept rate of a threshold."""
    accepted = np.less(distances, threshold)
    true_accepts = np.sum(np.logical_and(accepted, is_same))
    false_accepts = np.sum(np.logical_and(accepted, np.logical_not(is_same)))
    return true_accepts / np.sum(is_same), false_accepts / np.sum(np.logical_not(is_same))


def plain_loops(embeddings, is_same, folds=10):
    """Go through the protocol threshold by threshold, as its text reads.

    Args:
        embeddings: (2P, D) of length 1.
        is_same: (P,) bool.
        folds: number of folds; each must hold pairs of both kinds.

    Returns:
        Accuracy (F,), threshold (F,), TAR (F,) and FAR (F,) of the folds.
    """
    distances = np.sum(np.square(embeddings[0::2].astype(np.float64) - embeddings[1::2]), axis=1)
    coarse, fine = np.arange(0, 4, 0.01), np.arange(0, 4, 0.001)
    columns = []
    for others, fold in KFold(folds).split(distances):
        rest = distances[others], is_same[others]
        own = distances[fold], is_same[fold]
        threshold = coarse[np.argmax([accuracy_below(*rest, t) for t in coarse])]
        fars = np.array([rates_below(*rest, t) for t in fine])[:, 1]
        far_threshold = 0.0
        if max(fars) >= 1e-3:
            far, first = np.unique(fars, return_index=True)
            far_threshold = interp1d(far, fine[first], kind="slinear")(1e-3)
        columns.append((accuracy_below(*own, threshold), threshold, *rates_below(*own, far_threshold)))
    return tuple(np.array(columns).T)


def made_up_pairs(pairs, embedding_size, seed=0):
    """Draw (2P, D) embeddings of length 1 and (P,) labels: genuine pairs share a direction, more or less."""
    random = np.random.default_rng(seed)
    is_same = np.arange(pairs) // max(pairs // 20, 1) % 2 == 0
    first = random.standard_normal((pairs, embedding_size))
    own = random.standard_normal((pairs, embedding_size))
    likeness = np.where(is_same, random.uniform(0.1, 0.9, pairs), random.uniform(-0.1, 0.25, pairs))[:, None]
    second = likeness * first + np.sqrt(1 - likeness**2) * own
    embeddings = np.stack([first, second], axis=1).reshape(2 * pairs, embedding_size)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True), is_same


def check_same_answers(embeddings, is_same):
    """Stop with an AssertionError where the two ways differ."""
    accuracy, threshold, tar, far = plain_loops(embeddings, is_same)
    result = verify_pairs(embeddings, is_same)
    differences = {
        "accuracy": np.abs(result.fold_accuracy - accuracy).max(),
        "threshold": np.abs(result.fold_threshold - threshold).max(),
        "TAR": abs(result.tar_at_far_1e3 - tar.mean()),
        "TAR deviation": abs(result.tar_at_far_1e3_std - tar.std()),
        "FAR": abs(result.far_reached - far.mean()),
    }
    for name, difference in differences.items():
        assert difference <= LARGEST_DIFFERENCE, f"{name} differs by {difference}"


def seconds(function, *arguments):
    """Time one call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main():
    """Check the answers, then time both ways and print the ratio."""
    embeddings, is_same = made_up_pairs(PAIRS, EMBEDDING_SIZE)
    check_same_answers(embeddings, is_same)
    timed = [[seconds(way, embeddings, is_same) for way in (plain_loops, verify_pairs)] for _ in range(REPEATS)]
    plain, ours = np.median(timed, axis=0)
    print(f"{PAIRS} pairs, {EMBEDDING_SIZE}-d, same answers")
    print(f"plain loops {1000 * plain:.0f} ms, verify_pairs {1000 * ours:.0f} ms (with AUC and EER)")
    print(f"ratio {plain / ours:.1f}")


if __name__ == "__main__":
    main()
