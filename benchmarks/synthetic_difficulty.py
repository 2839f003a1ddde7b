"""How far colour statistics and raw pixels alone verify unseen synthetic people: both must stay near chance.

Run `python benchmarks/synthetic_difficulty.py`; --help lists the options.
"""

import argparse
import time

import cv2
import numpy as np
import numpy.typing as npt

from facebones.synthetic.dataset import PAIR_SETS, draw_shot, plan_pairs

FIRST_UNSEEN = 1_000_000
Array = npt.NDArray[np.float64]


def colour_statistics(pixels: npt.NDArray[np.uint8]) -> Array:
    """Mean and spread of each channel, and a 4x4x4 colour histogram, brought to like scales."""
    flat = pixels.reshape(-1, 3)
    histogram = cv2.calcHist([pixels], [0, 1, 2], None, [4, 4, 4], [0, 256] * 3).ravel() / len(flat)
    return np.concatenate((flat.mean(axis=0) / 255, flat.std(axis=0) / 128, np.sqrt(histogram)))


def raw_pixels(pixels: npt.NDArray[np.uint8]) -> Array:
    """Grey values, centred, of unit length."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float64).ravel()
    grey -= grey.mean()
    return np.asarray(grey / np.linalg.norm(grey))


def ten_fold_accuracy(distances: Array, is_same: npt.NDArray[np.bool_]) -> float:
    """Mean accuracy over ten folds, each with the threshold that is best on the other nine."""
    thresholds = np.quantile(distances, np.linspace(0, 1, 401))
    right = (distances[:, None] < thresholds) == is_same[:, None]  # (P, T)
    folds = np.array_split(np.arange(len(distances)), 10)
    return float(np.mean([right[fold, np.delete(right, fold, axis=0).mean(axis=0).argmax()].mean() for fold in folds]))


def main() -> None:
    """Draw the pairs and print both accuracies for each pair set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name, poses in PAIR_SETS.items():
        plan = plan_pairs(FIRST_UNSEEN, arguments.pairs, poses)
        start = time.process_time()
        images = [draw_shot(arguments.seed, shot).pixels for shot in plan.shots]
        rate = len(images) / (time.process_time() - start)
        print(f"{name}: {arguments.pairs} pairs, {rate:.0f} images/s of one core's time")
        for baseline in (colour_statistics, raw_pixels):
            features = np.array([baseline(pixels) for pixels in images])
            distances = np.linalg.norm(features[0::2] - features[1::2], axis=1)
            accuracy = ten_fold_accuracy(distances, np.array(plan.is_same))
            print(f"  {baseline.__name__.replace('_', ' ')}: {100 * accuracy:.1f} % (chance is 50.0 %)")


if __name__ == "__main__":
    main()
