"""Claims about the 1:1 protocol of templates, at the size of IJB-C, on made-up features.

* Pooling, scoring, ROC and table together are at least 6 times faster than the published rules written as plain loops.
* Pooling all eight settings costs less than 3 times what pooling one costs. (Each has its own scores and its own curve;
  what the whole costs for eight is printed as well.)
* Memory grows by at most 1.5 GiB beyond the features, which stay in a file that is mapped into memory.

Both ways run in this process, on the same features; the answers are compared. Run: python benchmarks/templates.py
[--scale 0.1]; the scale is that of images and templates, the pairs shrink with its square.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import auc, roc_curve

from facebones.data.ijb_lists import TemplateSet
from facebones.evaluation.accept_rates import FAR_TARGETS
from facebones.evaluation.ijb_verification import evaluate_templates
from facebones.evaluation.template_scores import ALL_POOLINGS, BLOCK_TEMPLATES, USUAL_POOLING, pool_templates

IMAGES, TEMPLATES, GALLERY, PAIRS, GENUINE = 469_375, 23_124, 3_531, 15_658_489, 19_557
EMBEDDING_SIZE = 512
LARGEST_DIFFERENCE = 1e-4  # of rates: near a threshold, single precision may turn a pair or two
REPEATS = 3
MIB = 2**20


def made_up_set(scale, seed=0):
    """Draw lists with the counts of IJB-C: each image in a template, about three images a medium, listed in order.

    A share of the pairs of gallery and probe templates is listed, gallery template by gallery template.
    """
    random = np.random.default_rng(seed)
    images, templates, gallery = (round(count * scale) for count in (IMAGES, TEMPLATES, GALLERY))
    template_of_image = np.sort(
        np.concatenate([np.arange(templates), random.integers(0, templates, images - templates)])
    )
    medium_of_image = np.cumsum(random.random(images) < 1 / 3)
    subject = np.concatenate([np.arange(gallery), random.integers(0, gallery, templates - gallery)])
    own = np.arange(gallery, templates)[: round(GENUINE * scale)]
    cells = random.choice(gallery * (templates - gallery), round(PAIRS * scale**2) - own.size, replace=False)
    pair_a = np.concatenate([subject[own], cells // (templates - gallery)])
    pair_b = np.concatenate([own, gallery + cells % (templates - gallery)])
    order = np.argsort(pair_a, kind="stable")
    pair_a, pair_b = pair_a[order].astype(np.int32), pair_b[order].astype(np.int32)
    return subject, TemplateSet(
        name="made up",
        path=Path("made up"),
        image_names=range(images),
        landmarks=np.zeros((images, 5, 2), np.float32),
        detector_score=random.uniform(0.5, 1, images).astype(np.float32),
        template_ids=np.arange(templates, dtype=np.int32),
        template_of_image=template_of_image.astype(np.int32),
        medium_of_image=medium_of_image.astype(np.int32),
        pair_a=pair_a,
        pair_b=pair_b,
        is_same=subject[pair_a] == subject[pair_b],
        galleries={},
        probes=None,
    )


def write_features(path, template_set, subject, seed=1):
    """Write (N, 2, D) features: noise around a direction of the subject, in blocks."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((subject.max() + 1, EMBEDDING_SIZE), dtype=np.float32)
    noise = random.uniform(3, 50, template_set.template_ids.size).astype(np.float32)  # some templates are hopeless
    shape = (len(template_set), 2, EMBEDDING_SIZE)
    features = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, shape[0], 8192):
        block = features[start : start + 8192]
        template = template_set.template_of_image[start : start + 8192]
        drawn = random.standard_normal(block.shape, dtype=np.float32)
        block[:] = centres[subject[template]][:, None] + noise[template, None, None] * drawn
    features.flush()


def plain_loops(template_set, features):
    """Go through the rules of N1D1F1 as the field's programs do, template by template and medium by medium.

    Returns:
        Seconds of pooling, scoring and curve; the published rates, and the area under the curve.
    """
    seconds = [time.perf_counter()]
    inputs = (features[:, 0] + features[:, 1]) * template_set.detector_score[:, None]
    templates, media = template_set.template_of_image, template_set.medium_of_image
    pooled = np.zeros((template_set.template_ids.size, inputs.shape[1]))
    for count, template in enumerate(np.unique(templates)):
        (rows,) = np.where(templates == template)
        own, own_media = inputs[rows], media[rows]
        means = []
        for medium in np.unique(own_media):
            (frames,) = np.where(own_media == medium)
            means.append(own[frames[0]] if frames.size == 1 else own[frames].mean(axis=0))
        pooled[count] = np.sum(means, axis=0)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    seconds.append(time.perf_counter())
    scores = np.zeros(template_set.is_same.size)
    for start in range(0, scores.size, 100_000):
        block = slice(start, start + 100_000)
        first, second = pooled[template_set.pair_a[block]], pooled[template_set.pair_b[block]]
        scores[block] = np.sum(first * second, axis=-1)
    seconds.append(time.perf_counter())
    far, tar, _ = roc_curve(template_set.is_same, scores)
    area = auc(far, tar)
    far, tar = np.flipud(far), np.flipud(tar)
    rates = [tar[np.argmin(np.abs(far - target))] for target in FAR_TARGETS]
    seconds.append(time.perf_counter())
    return np.diff(seconds), rates, area


class MemoryWatch:
    """The largest memory of this process that no file backs, beyond what it had at the start.

    Pages of the mapped features are the system's cache: it takes them back when it needs them.
    """

    def __enter__(self):
        self.start = self.largest = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    @property
    def growth(self):
        """MiB."""
        return (self.largest - self.start) / 1024

    def _watch(self):
        while not self._over.wait(0.005):
            self.largest = max(self.largest, self._now())

    @staticmethod
    def _now():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def timed(work, *arguments):
    """Run; what it answers, the seconds, and the growth of memory in MiB."""
    with MemoryWatch() as watch:
        start = time.perf_counter()
        answer = work(*arguments)
        seconds = time.perf_counter() - start
    return answer, seconds, watch.growth


def pool(template_set, features, settings):
    """Pool, and let go what comes of it."""
    images = (template_set.template_of_image, template_set.medium_of_image, template_set.detector_score)
    pool_templates(features, *images, settings)


def bare_products(template_set):
    """Seconds of nothing but the matrix products that the scores of one setting are picked from."""
    templates = np.random.default_rng(0).standard_normal((template_set.template_ids.size, EMBEDDING_SIZE), np.float32)
    rows, columns = np.unique(template_set.pair_a), np.unique(template_set.pair_b)
    partners = templates[columns].T
    start = time.perf_counter()
    for first in range(0, rows.size, BLOCK_TEMPLATES):
        templates[rows[first : first + BLOCK_TEMPLATES]] @ partners
    return time.perf_counter() - start


def check_same_answers(result, rates, area):
    """Stop with an AssertionError where the two ways differ."""
    assert abs(result.auc - area) < LARGEST_DIFFERENCE, (result.auc, area)
    for ours, plain in zip(result.rates, rates, strict=True):
        if ours.published is not None:
            assert abs(ours.published - plain) < max(LARGEST_DIFFERENCE, 3 / result.genuine), (ours, plain)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of IJB-C's images and templates")
    scale = parser.parse_args().scale
    subject, template_set = made_up_set(scale)
    with tempfile.TemporaryDirectory() as folder:
        write_features(Path(folder) / "features.npy", template_set, subject)
        features = np.load(Path(folder) / "features.npy", mmap_mode="r")
        print(
            f"scale {scale}: {len(template_set)} images, {template_set.template_ids.size} templates,"
            f" {template_set.is_same.size} pairs ({template_set.is_same.sum()} genuine),"
            f" features {features.nbytes / MIB:.0f} MiB in a mapped file"
        )
        pool(template_set, features, [USUAL_POOLING])  # brings the file into the system's cache, for all ways
        pooling = [
            [timed(pool, template_set, features, settings)[1] for settings in ([USUAL_POOLING], ALL_POOLINGS)]
            for _ in range(REPEATS)
        ]
        results, one, growth_one = timed(evaluate_templates, template_set, features, [USUAL_POOLING])
        _, eight, growth_eight = timed(evaluate_templates, template_set, features, ALL_POOLINGS)
        parts, rates, area = plain_loops(template_set, features)
    check_same_answers(results[USUAL_POOLING], rates, area)
    for rate in results[USUAL_POOLING].rates:
        figures = (
            f"TAR {rate.published:.4f} at {rate.far_reached:.2e}, strict {rate.strict:.4f}" if rate.strict else "-"
        )
        print(f"  FAR {rate.far:.0e}: {rate.unmeasurable or figures}")
    print(f"plain loops {parts.sum():.1f} s (pooling {parts[0]:.1f}, scores {parts[1]:.1f}, curve {parts[2]:.1f})")
    print(f"facebones, N1D1F1 {one:.2f} s, memory grew by {growth_one:.0f} MiB that no file backs")
    print(f"facebones, all eight {eight:.2f} s, memory grew by {growth_eight:.0f} MiB that no file backs")
    pooling_one, pooling_eight = np.min(pooling, axis=0)
    print(f"pooling alone: one {pooling_one:.2f} s, eight {pooling_eight:.2f} s")
    print(
        f"ratio {parts.sum() / one:.1f}; eight settings cost {pooling_eight / pooling_one:.2f} times one to pool,"
        f" {eight / one:.2f} times to evaluate"
    )
    products = min(bare_products(template_set) for _ in range(REPEATS))
    print(
        f"the bare matrix products of a setting take {products:.2f} s, and each setting has its own:"
        f" eight cannot cost less than {(pooling_eight + 8 * products) / one:.2f} times one"
    )


if __name__ == "__main__":
    main()
