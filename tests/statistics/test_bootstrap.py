"""Replicates against lists of pairs that are resampled and counted one by one."""

import itertools

import numpy as np
import pytest

from facebones.errors import DataError
from facebones.statistics import resampling
from facebones.statistics.bootstrap import (
    mean_of_metrics,
    resample_accuracy,
    resample_open_set,
    resample_rank,
    resample_verification,
)
from facebones.statistics.curves import area_under_curve, equal_error_rate, roc, true_accept_rate_at
from facebones.statistics.metric import Metric
from facebones.statistics.resampling import RESOLUTION, pairs_design, probes_design

TARGETS = (0.05, 0.2, 0.5)
NAMES = (*(("tar", far) for far in TARGETS), "auc", "eer")


def by_name(metrics):
    """Metrics by name, those with an operating point by name and point."""
    found = {}
    for one in metrics:
        metric = one if isinstance(one, Metric) else one.metric
        found[(metric.name, *metric.at.values()) if metric.at else metric.name] = one
    return found


def verification(*arguments, **options):
    return by_name(resample_verification(*arguments, **options))


def small_pairs(seed=0, identities=12, genuine=40, impostors=60, decimals=1):
    """Few pairs of few persons, with many equal scores."""
    random = np.random.default_rng(seed)
    first = random.integers(identities, size=genuine + impostors)
    step = random.integers(1, identities, size=first.size)
    is_same = np.arange(first.size) < genuine
    second = np.where(is_same, first, (first + step) % identities)
    likeness = random.standard_normal(identities)
    scores = [
        np.round(
            is_same * 1.2 + 0.3 * (likeness[first] + likeness[second]) + random.standard_normal(first.size), decimals
        )
        for _ in range(2)
    ]
    return scores, is_same, (first * 7, second * 7)  # numbers with gaps


def metrics_of_list(scores, is_same):
    curve = roc(scores, is_same)
    return [*(true_accept_rate_at(curve, far) for far in TARGETS), area_under_curve(curve), equal_error_rate(curve)]


def metrics_of_weights(scores, is_same, weight):
    """Walk down the distinct scores with weighted pairs; weights may be below 0, so the first crossing counts."""
    far, tar, points = 0.0, 0.0, [(0.0, 0.0)]
    for score in sorted(set(scores.tolist()), reverse=True):
        here = scores == score
        far += weight[here & ~is_same].sum() / weight[~is_same].sum()
        tar += weight[here & is_same].sum() / weight[is_same].sum()
        points.append((far, tar))
    steps = list(itertools.pairwise(points))
    rates = [next((before[1] for before, after in steps if after[0] > target + 1e-9), 1.0) for target in TARGETS]
    auc = sum((after[0] - before[0]) * (after[1] + before[1]) / 2 for before, after in steps)
    (x, y), (u, v) = next((before, after) for before, after in steps if sum(after) >= 1 - 1e-12)
    return [*rates, auc, x + (1 - x - y) / (u + v - x - y) * (u - x)]


@pytest.mark.parametrize("decimals", [1, 8])
def test_pairs_are_resampled_as_an_explicit_list_would_be(decimals):
    scores, is_same, _ = small_pairs(decimals=decimals)
    metrics = verification(scores, is_same, far_targets=TARGETS, replicates=30, seed=5)
    counts = pairs_design(is_same, None, 30, 5).counts[1:].astype(int)
    pairs = np.concatenate([np.flatnonzero(is_same), np.flatnonzero(~is_same)])
    for row, count in enumerate(counts):
        resampled = np.repeat(pairs, count)
        for model in range(2):
            expected = metrics_of_list(scores[model][resampled], is_same[resampled])
            found = [metrics[name].replicates[row, model] for name in NAMES]
            np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("decimals", [1, 8])
def test_identities_are_resampled_as_weights_of_single_pairs_say(decimals):
    scores, is_same, (first, second) = small_pairs(decimals=decimals)
    metrics = verification(scores, is_same, (first, second), far_targets=TARGETS, replicates=30, seed=5)
    counts = pairs_design(is_same, (first, second), 30, 5).counts[1:]
    for row, count in enumerate(counts):
        weight = np.where(is_same, count[first // 7], count[first // 7] + count[second // 7] - 1).astype(float)
        for model in range(2):
            expected = metrics_of_weights(scores[model], is_same, weight)
            found = [metrics[name].replicates[row, model] for name in NAMES]
            np.testing.assert_allclose(found, expected, atol=1e-9)


def test_values_are_those_of_the_exact_curve():
    scores, is_same, identities = small_pairs()
    metrics = verification(scores, is_same, identities, far_targets=TARGETS, replicates=2)
    for model in range(2):
        assert [metrics[name].values[model] for name in NAMES] == metrics_of_list(scores[model], is_same)


def test_cells_of_many_pairs_keep_the_resolution():
    scores, is_same, (first, second) = small_pairs(1, identities=300, genuine=1000, impostors=9000, decimals=8)
    metrics = verification(scores[:1], is_same, (first, second), far_targets=TARGETS, replicates=3)
    counts = pairs_design(is_same, (first, second), 3, 0).counts[1:]
    for row, count in enumerate(counts):
        weight = np.where(is_same, count[first // 7], count[first // 7] + count[second // 7] - 1).astype(float)
        expected = metrics_of_weights(scores[0], is_same, weight)
        assert metrics["auc"].replicates[row, 0] == pytest.approx(expected[3], abs=5e-5)
        assert metrics["eer"].replicates[row, 0] == pytest.approx(expected[4], rel=RESOLUTION)
        for name, tar in zip(NAMES[:3], expected[:3], strict=True):
            assert tar - 2 * RESOLUTION <= metrics[name].replicates[row, 0] <= tar + 1e-9


def test_variance_is_that_of_pairs_that_share_a_person():
    """Sum over all pairs of pairs that share a person, each once: sum U_i^2 - sum of the cells' squares."""
    _, is_same, (first, second) = small_pairs(2, identities=60, genuine=600, impostors=1500)
    random = np.random.default_rng(0)
    hard = random.random(60) < 0.3
    correct = random.random(first.size) > 0.05 + 0.3 * (hard[first // 7] | hard[second // 7])
    centred = np.where(is_same, correct - correct[is_same].mean(), correct - correct[~is_same].mean())
    by_person = [centred[(first == person) | (second == person)].sum() for person in np.unique(first)]
    cells = {}
    for x, y, value in zip(first[~is_same], second[~is_same], centred[~is_same], strict=True):
        key = frozenset((x, y))
        cells[key] = cells.get(key, 0.0) + value
    expected = (np.square(by_person).sum() - np.square(list(cells.values())).sum()) / first.size**2
    metric = resample_accuracy([correct], is_same, (first, second), replicates=8000)
    assert metric.variance([1]) == pytest.approx(expected, rel=0.06)
    assert metric.values[0] == correct.mean()


def test_spread_is_that_of_resampled_lists_where_persons_have_many_pairs():
    """Redrawn by persons, a list holds an impostor pair c_i c_j times; with little chance in single pairs it agrees."""
    random = np.random.default_rng(3)
    first, second = (side.ravel() for side in np.triu_indices(60))
    is_same = first == second
    first, second, is_same = (np.concatenate([side, np.repeat(side[is_same], 9)]) for side in (first, second, is_same))
    likeness, quality = random.standard_normal((2, 60))
    scores = np.where(is_same, 2.5 + quality[first], likeness[first] + likeness[second])
    scores += 0.5 * random.standard_normal(scores.size)
    metrics = verification([scores], is_same, (first, second), far_targets=TARGETS, replicates=1500)
    resampled = []
    for _ in range(1500):
        count = np.bincount(random.integers(60, size=60), minlength=60)
        pairs = np.repeat(np.arange(first.size), np.where(is_same, count[first], count[first] * count[second]))
        resampled.append(metrics_of_list(scores[pairs], is_same[pairs]))
    for name, deviation in zip(NAMES, np.std(resampled, axis=0), strict=True):
        assert metrics[name].replicates[:, 0].std() == pytest.approx(deviation, rel=0.15), name


@pytest.mark.parametrize("name", ["accuracy", *NAMES])
def test_persons_of_a_single_pair_vary_as_pairs_do(name):
    """Such pairs are independent, and what is counted once for each person must be subtracted."""
    first, second = np.arange(4000), np.append(np.arange(1000), np.arange(7000, 10_000))
    is_same = first == second
    scores = [1.5 * is_same + np.random.default_rng(0).standard_normal(4000)]
    variance = []
    for identities in (None, (first, second)):
        metrics = verification(scores, is_same, identities, far_targets=TARGETS, replicates=600)
        metrics["accuracy"] = resample_accuracy([(scores[0] > 0.75) == is_same], is_same, identities, replicates=4000)
        variance.append(metrics[name].variance([1]))
    assert variance[1] == pytest.approx(variance[0], rel=0.2)


@pytest.mark.parametrize("known", [False, True])
def test_groups_of_too_many_units_leave_the_variance(monkeypatch, known):
    scores, is_same, identities = small_pairs(4, identities=1500, genuine=3000, impostors=3000, decimals=8)
    arguments = ([scores[0] > 0.6], is_same, identities if known else None)
    alone = resample_accuracy(*arguments).variance([1])
    monkeypatch.setattr(resampling, "MOST_UNITS", 500)
    assert resample_accuracy(*arguments).variance([1]) == pytest.approx(alone, rel=0.2)


def test_same_seed_same_draws_and_models_share_them():
    scores, is_same, identities = small_pairs()
    one = verification([scores[0], scores[0]], is_same, identities, far_targets=TARGETS, replicates=20, seed=1)
    two = verification([scores[0]], is_same, identities, far_targets=TARGETS, replicates=20, seed=1)
    other = verification([scores[0]], is_same, identities, far_targets=TARGETS, replicates=20, seed=2)
    for name in NAMES:
        np.testing.assert_array_equal(one[name].replicates[:, 0], one[name].replicates[:, 1])
        np.testing.assert_array_equal(one[name].replicates[:, 0], two[name].replicates[:, 0])
        assert one[name].variance([1, -1]) == pytest.approx(0.0, abs=1e-15)
    assert (other["auc"].replicates != two["auc"].replicates).any()


def test_target_that_cannot_be_measured_says_why():
    scores, is_same, _ = small_pairs()
    metrics = verification(scores, is_same, far_targets=(1e-3, 1 / 60, 0.5), replicates=2)
    assert metrics["tar", 1e-3] == Metric(
        name="tar", at={"far": 0.001}, rule="strict", reason="0.001 is below 1 / 60 impostor pairs"
    )
    assert metrics["tar", 1 / 60].values.shape == (2,)
    assert list(metrics) == [("tar", 1e-3), ("tar", 1 / 60), ("tar", 0.5), "auc", "eer"]


def test_rank_is_resampled_by_the_probes_subjects():
    random = np.random.default_rng(0)
    subject = np.sort(random.integers(20, size=100))
    hits = random.random((2, 100)) < 0.7
    metric = resample_rank(hits, subject, rank=1, replicates=25, seed=3)
    counts = probes_design(np.zeros(100, dtype=bool), subject, 25, 3).counts[1:].astype(int)
    for row, count in enumerate(counts):
        resampled = np.repeat(np.arange(100), count[np.unique(subject, return_inverse=True)[1]])
        np.testing.assert_allclose(metric.replicates[row], hits[:, resampled].mean(axis=1), atol=1e-12)
    assert metric.discordant[0, 1] == (hits[0] & ~hits[1]).sum()


def open_set(seed=0, probes=300):
    random = np.random.default_rng(seed)
    subject = random.integers(40, size=probes)
    is_impostor = subject % 2 == 0
    hits = (random.random((2, probes)) < 0.8) & ~is_impostor
    scores = np.round(random.standard_normal((2, probes)) + 1.5 * hits, 2)
    return scores, hits, is_impostor, subject


def tpir(scores, hits, is_impostor, fpir):
    """Largest share of mated searches with a hit at or above a threshold that admits so many impostor searches."""
    thresholds = [t for t in [*scores, np.inf] if (scores[is_impostor] >= t).mean() <= fpir]
    return max((hits & (scores >= t))[~is_impostor].mean() for t in thresholds)


def test_open_set_is_counted_and_resampled_by_subjects():
    scores, hits, is_impostor, subject = open_set()
    (metric,) = resample_open_set(scores, hits, is_impostor, subject, fpir_targets=[0.1], replicates=15, seed=3)
    counts = probes_design(is_impostor, subject, 15, 3).counts[1:].astype(int)
    for model in range(2):
        assert metric.values[model] == pytest.approx(tpir(scores[model], hits[model], is_impostor, 0.1))
        for row, count in enumerate(counts):
            resampled = np.repeat(np.arange(subject.size), count[subject])
            expected = tpir(scores[model][resampled], hits[model][resampled], is_impostor[resampled], 0.1)
            assert metric.replicates[row, model] == pytest.approx(expected)


def test_mean_of_two_galleries_shares_the_draws():
    scores, hits, is_impostor, subject = open_set()
    parts = [
        resample_open_set(scores, hits, impostors, subject, fpir_targets=[0.1], replicates=15)[0]
        for impostors in (is_impostor, ~is_impostor)
    ]
    mean = mean_of_metrics(parts)
    np.testing.assert_allclose(mean.replicates, (parts[0].replicates + parts[1].replicates) / 2)
    other = resample_open_set(scores, hits, is_impostor, subject, fpir_targets=[0.1], replicates=16)
    with pytest.raises(ValueError, match="2 kinds of draws"):
        mean_of_metrics([parts[0], *other])


SAME = np.array([True, True, False, False])
RIGHT = [np.array([True, False, True, True])]


@pytest.mark.parametrize(
    ("is_same", "identities", "message"),
    [
        (SAME, ([0, 1, 0], [0, 1, 1, 0]), r"shapes \(3,\) and \(4,\) for 4 pairs"),
        (SAME, ([0, 1, 0, 1], [0, 1, 1, -1]), "pair 3: identity -1 is unknown"),
        (SAME, ([0.0, 1, 0, 1], [0, 1, 1, 0]), "float64"),
        (SAME, ([0, 1, 0, 1], [0, 0, 1, 0]), "pair 1: labelled genuine, but its identities are 1 and 0"),
        (SAME, ([0, 1, 0, 1], [0, 1, 1, 1]), "pair 3: labelled impostor, but its identities are 1 and 1"),
        (np.ones(4, dtype=bool), ([7] * 4, [7] * 4), "identities: 1 cannot be resampled"),
        (np.ones(1, dtype=bool), None, "pairs: 1 cannot be resampled"),
        (SAME.astype(int), None, "one boolean for each pair"),
        (np.append(SAME, True), None, r"array 0 has shape \(4,\)"),
    ],
)
def test_unfit_pairs_are_refused_in_one_line(is_same, identities, message):
    with pytest.raises(DataError, match=message) as error:
        resample_accuracy(RIGHT, is_same, identities)
    assert "\n" not in str(error.value)


def test_pairs_of_one_kind_have_an_accuracy_but_no_curve():
    is_same = np.ones(4, dtype=bool)
    assert resample_accuracy(RIGHT, is_same).values[0] == 0.75
    with pytest.raises(DataError, match="0 impostor pairs"):
        verification([np.arange(4.0)], is_same, far_targets=[0.1])


def test_unknown_subjects_and_no_models_are_refused():
    with pytest.raises(DataError, match="probe 1: identity -1"):
        resample_rank(RIGHT, [0, -1, 2, 3], rank=1)
    with pytest.raises(DataError, match="no models"):
        resample_rank([], [0, 1], rank=1)
    with pytest.raises(ValueError, match="replicates: 1"):
        resample_rank(RIGHT, [0, 1, 2, 3], rank=1, replicates=1)
    with pytest.raises(ValueError, match="score 2 is nan"):
        verification([np.array([1, 2, np.nan, 0])], SAME, far_targets=[0.5])
