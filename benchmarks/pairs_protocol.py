"""Claim: `verify_pairs` counts the pairs protocol many times faster than a plain loop over folds and thresholds.

Both are timed in this process on the same embeddings, alternating, best of several; the answers are compared first.
Run: python benchmarks/pairs_protocol.py
"""

import time

import numpy as np
from scipy.interpolate import interp1d
from sklearn.model_selection import KFold

from facebones.evaluation.verification import verify_pairs

PAIRS = 6000
EMBEDDING_SIZE = 512
REPEATS = 3
LARGEST_DIFFERENCE = 1e-12


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
    columns = []
    for others, fold in KFold(folds).split(distances):
        accuracies = [np.mean((distances[others] < t) == is_same[others]) for t in np.arange(0, 4, 0.01)]
        threshold = np.arange(0, 4, 0.01)[np.argmax(accuracies)]
        accuracy = np.mean((distances[fold] < threshold) == is_same[fold])
        fars = [np.mean(distances[others][~is_same[others]] < t) for t in np.arange(0, 4, 0.001)]
        far_threshold = 0.0
        if max(fars) >= 1e-3:
            far, first = np.unique(fars, return_index=True)
            far_threshold = interp1d(far, np.arange(0, 4, 0.001)[first], kind="slinear")(1e-3)
        below = distances[fold] < far_threshold
        columns.append((accuracy, threshold, below[is_same[fold]].mean(), below[~is_same[fold]].mean()))
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
    plain, ours = np.min(timed, axis=0)
    print(f"{PAIRS} pairs, {EMBEDDING_SIZE}-d, same answers")
    print(f"plain loops {1000 * plain:.0f} ms, verify_pairs {1000 * ours:.0f} ms (with AUC and EER)")
    print(f"ratio {plain / ours:.1f}")


if __name__ == "__main__":
    main()
