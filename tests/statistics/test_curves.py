"""Curves against scikit-learn, scipy and counting by hand, over edge inputs that are spelled out and random ones."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score, roc_curve

from facebones.statistics import curves
from facebones.statistics.curves import (
    area_under_curve,
    corners,
    equal_error_rate,
    published_true_accept_rate_at,
    roc,
    true_accept_rate_at,
)

EDGES = {
    "all scores equal": ([0.5] * 6, [1, 0, 1, 0, 0, 0]),
    "ties everywhere": ([0.1, 0.1, 0.2, 0.2, 0.2, 0.3, 0.3, 0.3], [0, 1, 0, 1, 0, 1, 0, 1]),
    "one genuine, best": ([0.9, 0.1, 0.2, 0.3], [1, 0, 0, 0]),
    "one genuine, in the middle": ([0.25, 0.1, 0.2, 0.3], [1, 0, 0, 0]),
    "one impostor": ([0.25, 0.1, 0.2, 0.3], [0, 1, 1, 1]),
    "two pairs": ([1.0, 0.0], [1, 0]),
    "perfectly separated": ([0.9, 0.8, 0.7, 0.2, 0.1], [1, 1, 1, 0, 0]),
    "inverted": ([0.1, 0.2, 0.8, 0.9, 0.95], [1, 1, 0, 0, 0]),
    "negative distances": ([-0.1, -3.9, -1.2, -1.2, 0.0, -0.0], [1, 0, 1, 0, 1, 0]),
    "neighbouring doubles": ([1.0, np.nextafter(1.0, 2.0), 1.0, np.nextafter(1.0, 0.0)], [1, 0, 0, 1]),
    "huge and tiny": ([1e300, -1e300, 1e-300, 0.0], [1, 0, 0, 1]),
    "whole numbers": ([3, 1, 2, 2], [1, 0, 1, 0]),
}


@st.composite
def scored_pairs(draw):
    """Both kinds of pairs, with few distinct scores (many ties) or many."""
    genuine, impostors = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    score = draw(st.sampled_from([st.integers(0, 3), st.floats(-4, 4, allow_subnormal=False)]))
    scores = draw(st.lists(score, min_size=genuine + impostors, max_size=genuine + impostors))
    is_same = draw(st.permutations([True] * genuine + [False] * impostors))
    return np.array(scores, dtype=np.float64), np.array(is_same)


def assert_curve_is_right(scores, is_same):
    scores, is_same = np.asarray(scores), np.asarray(is_same, dtype=bool)
    curve = roc(scores, is_same)
    far, tar, threshold = roc_curve(is_same, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.false_accept_rate, far, rtol=0, atol=1e-15)
    np.testing.assert_allclose(curve.true_accept_rate, tar, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(curve.threshold, threshold)
    assert (curve.genuine, curve.impostors) == (is_same.sum(), (~is_same).sum())
    assert area_under_curve(curve) == pytest.approx(roc_auc_score(is_same, scores), abs=1e-12)
    u = mannwhitneyu(scores[is_same], scores[~is_same], method="asymptotic").statistic
    assert area_under_curve(curve) == pytest.approx(u / (curve.genuine * curve.impostors), abs=1e-12)
    assert equal_error_rate(curve) == pytest.approx(float(equal_error_rate_by_fractions(scores, is_same)), abs=1e-12)
    for target in (0.0, 1e-3, 1 / 3, 0.5, 1.0, *far):
        assert true_accept_rate_at(curve, target) == tar[far <= target].max()


def equal_error_rate_by_fractions(scores, is_same):
    """Walk along the curve in exact arithmetic until FAR >= FRR, then cut the last stretch."""
    genuine, impostors = int(is_same.sum()), int((~is_same).sum())
    far_before, tar_before = Fraction(0), Fraction(0)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        accepted = scores >= threshold
        far = Fraction(int((accepted & ~is_same).sum()), impostors)
        tar = Fraction(int((accepted & is_same).sum()), genuine)
        if far + tar >= 1:
            part = (1 - far_before - tar_before) / (far + tar - far_before - tar_before)
            return far_before + part * (far - far_before)
        far_before, tar_before = far, tar
    raise AssertionError("the curve ends at (1, 1)")


@pytest.mark.parametrize("name", EDGES)
def test_edge_inputs_agree_with_references(name):
    assert_curve_is_right(*EDGES[name])


@given(scored_pairs())
@settings(deadline=None)
def test_random_inputs_agree_with_references(pairs):
    assert_curve_is_right(*pairs)


@given(scored_pairs(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_the_pairs_does_not_matter(pairs, random):
    scores, is_same = pairs
    order = list(range(scores.size))
    random.shuffle(order)
    curve, shuffled = roc(scores, is_same), roc(scores[order], is_same[order])
    np.testing.assert_array_equal(curve.false_accept_rate, shuffled.false_accept_rate)
    np.testing.assert_array_equal(curve.true_accept_rate, shuffled.true_accept_rate)


@pytest.mark.parametrize(
    ("name", "auc", "eer"),
    [
        ("perfectly separated", 1.0, 0.0),
        ("inverted", 0.0, 1.0),
        ("all scores equal", 0.5, 0.5),
        ("one genuine, in the middle", 2 / 3, 1 / 3),
    ],
)
def test_known_values(name, auc, eer):
    curve = roc(*EDGES[name])
    assert area_under_curve(curve) == pytest.approx(auc, abs=1e-15)
    assert equal_error_rate(curve) == pytest.approx(eer, abs=1e-15)


def equal_error_rate_by_search(far, tar):
    """Bisect along the curve's straight stretches, given as its points, for the place where FAR = 1 - TAR."""
    low, high = 0.0, far.size - 1.0  # a place k + w is that share w of the way from point k to the next
    points = np.arange(far.size)
    while high - low > 1e-13 * far.size:
        middle = (low + high) / 2
        if np.interp(middle, points, far) < 1 - np.interp(middle, points, tar):
            low = middle
        else:
            high = middle
    return np.interp(low, points, far)


DTYPES = [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.5, 0.02])
def test_many_pairs_with_many_ties_agree_with_references(dtype, share):
    random = np.random.default_rng(3)
    is_same = random.random(20_000) < share
    scores = np.clip(60 + 12 * random.normal(size=is_same.size) + 20 * is_same, 0, 120).round().astype(dtype)
    assert np.unique(scores).size < 130
    curve = roc(scores, is_same)
    # Whole numbers up to 120 are exact in every type; so the answer may not depend on it.
    far, tar, threshold = roc_curve(is_same, scores.astype(np.float64), drop_intermediate=False)
    np.testing.assert_allclose(curve.false_accept_rate, far, rtol=0, atol=1e-15)
    np.testing.assert_allclose(curve.true_accept_rate, tar, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(curve.threshold, threshold)
    assert area_under_curve(curve) == pytest.approx(roc_auc_score(is_same, scores.astype(np.float64)), abs=1e-12)
    assert equal_error_rate(curve) == pytest.approx(equal_error_rate_by_search(far, tar), abs=1e-9)
    for target in (1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1.0):
        assert true_accept_rate_at(curve, target) == tar_by_counting(scores, is_same, target)


def tar_by_counting(scores, is_same, far):
    """Try every score as a threshold; none accepts nothing."""
    rates = [0.0]
    for threshold in np.unique(scores):
        accepted = scores >= threshold
        if np.count_nonzero(accepted & ~is_same) / np.count_nonzero(~is_same) <= far:
            rates.append(np.count_nonzero(accepted & is_same) / np.count_nonzero(is_same))
    return max(rates)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pairs", [2, 7, 10_000])
def test_equal_scores_are_chance(dtype, pairs):
    curve = roc(np.ones(pairs, dtype), np.arange(pairs) == 0)
    assert curve.false_accept_rate.tolist() == curve.true_accept_rate.tolist() == [0.0, 1.0]
    assert area_under_curve(curve) == 0.5
    assert equal_error_rate(curve) == 0.5
    assert true_accept_rate_at(curve, 0.999) == 0.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_that_differ_in_the_last_bit_only_are_no_tie(dtype):
    lower, higher = dtype(0.7), np.nextafter(dtype(0.7), dtype(1))
    curve = roc(np.array([higher, lower]), [True, False])
    assert area_under_curve(curve) == 1.0
    if dtype is np.float64:  # in single precision they are one score
        assert area_under_curve(roc(np.array([higher, lower], np.float32), [True, False])) == 0.5


def test_tied_scores_are_one_step():
    curve = roc([0.8, 0.8, 0.1], [True, False, False])
    assert curve.false_accept_rate.tolist() == [0.0, 0.5, 1.0]
    assert curve.true_accept_rate.tolist() == [0.0, 1.0, 1.0]


def test_target_that_the_curve_meets_exactly_is_not_missed():
    is_same = np.arange(6000) < 3000
    scores = np.where(is_same, 1.0, 0.0)
    scores[:100], scores[3000:3003] = 2.0, 3.0  # three impostors of 3000 come first: FAR 0.001
    curve = roc(scores, is_same)
    assert true_accept_rate_at(curve, 1e-3) == 1.0
    assert true_accept_rate_at(curve, np.nextafter(1e-3, 0)) == 0.0


def test_single_precision_scores_stay_single():
    scores = np.array([0.1, 0.2, 0.3], dtype=np.float32)
    assert roc(scores, [False, True, True]).threshold.dtype == np.float32


def test_input_is_not_written_to():
    scores, is_same = np.array([0.3, 0.1, 0.2]), np.array([True, False, True])
    roc(scores, is_same)
    assert scores.tolist() == [0.3, 0.1, 0.2]
    assert is_same.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("scores", "is_same", "message"),
    [
        ([], [], "no pairs"),
        ([0.1, 0.2], [True, True], "all 2 pairs are genuine"),
        ([0.1, 0.2], [False, False], "all 2 pairs are impostor"),
        ([0.1, np.nan, 0.2], [True, False, True], "score 1 is nan"),
        ([0.1, np.inf], [True, False], "score 1 is inf"),
        ([0.1, 0.2, 0.3], [True, False], r"shape \(3,\), labels \(2,\)"),
        ([[0.1, 0.2]], [[True, False]], r"shape \(1, 2\)"),
        ([0.1, 0.2], [1, 2], "other than 0 and 1"),
    ],
)
def test_input_without_a_curve_is_refused(scores, is_same, message):
    with pytest.raises(ValueError, match=message):
        roc(scores, is_same)


@pytest.mark.parametrize("far", [-1e-9, 1.0001, np.nan])
def test_a_far_that_is_no_rate_is_refused(far):
    with pytest.raises(ValueError, match="is not a rate"):
        true_accept_rate_at(roc([1.0, 0.0], [True, False]), far)


def published_reading(scores, is_same, target):
    """TAR and FAR as the published programs for IJB-B and IJB-C read them."""
    far, tar, _ = roc_curve(is_same, scores)
    far, tar = np.flipud(far), np.flipud(tar)
    _, nearest = min(zip(abs(far - target), range(len(far)), strict=True))
    return tar[nearest], far[nearest]


def assert_published_reading_is_right(scores, is_same):
    scores, is_same = np.asarray(scores), np.asarray(is_same, dtype=bool)
    curve = roc(scores, is_same)
    far, _, _ = roc_curve(is_same, scores)
    between = (far[1:] + far[:-1]) / 2  # as far from the one as from the other
    for target in (0.0, 1e-6, 1e-3, 0.1, 0.37, 1.0, *far, *between):
        assert published_true_accept_rate_at(curve, target) == published_reading(scores, is_same, target)


@pytest.mark.parametrize("step", [1, 2, 4096])
@pytest.mark.parametrize("name", EDGES)
def test_published_reading_at_edge_inputs(name, step, monkeypatch):
    monkeypatch.setattr(curves, "SEARCH_STEP", step)
    assert_published_reading_is_right(*EDGES[name])


@given(scored_pairs())
@settings(deadline=None)
def test_published_reading_of_random_inputs(pairs):
    assert_published_reading_is_right(*pairs)


@pytest.mark.parametrize("genuine", [2, 40, 1990])
@pytest.mark.parametrize("step", [3, 100, 4096])
def test_published_reading_far_from_the_next_point(genuine, step, monkeypatch):
    monkeypatch.setattr(curves, "SEARCH_STEP", step)
    is_same = np.arange(2000) < genuine
    assert_published_reading_is_right(np.random.default_rng(genuine).random(2000), is_same)


def test_published_reading_may_exceed_the_target_and_skips_points():
    # After the first pair come eight impostor pairs, one a step: scikit-learn leaves the points between them out.
    is_same = np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], dtype=bool)
    curve = roc(np.arange(12, 0, -1.0), is_same)
    assert published_true_accept_rate_at(curve, 0.5) == (1.0, 0.8)
    assert true_accept_rate_at(curve, 0.5) == 0.5


@given(scored_pairs())
@settings(deadline=None)
def test_corners_keep_every_metric(pairs):
    curve = roc(*pairs)
    bends = corners(curve)
    assert area_under_curve(bends) == pytest.approx(area_under_curve(curve), abs=1e-12)
    assert equal_error_rate(bends) == pytest.approx(equal_error_rate(curve), abs=1e-12)
    for far in (0.0, 0.1, 1 / 3, 1.0, *curve.false_accept_rate):
        assert true_accept_rate_at(bends, far) == true_accept_rate_at(curve, far)
    assert set(zip(bends.threshold, bends.false_accept_rate, bends.true_accept_rate, strict=True)) <= set(
        zip(curve.threshold, curve.false_accept_rate, curve.true_accept_rate, strict=True)
    )
    assert (bends.genuine, bends.impostors) == (curve.genuine, curve.impostors)


def test_corners_of_few_genuine_pairs_are_few():
    is_same = np.arange(1000) < 10
    assert corners(roc(np.random.default_rng(0).random(1000), is_same)).threshold.size <= 22


@pytest.mark.parametrize("far", [-1e-9, 1.0001, np.nan])
def test_a_published_target_that_is_no_rate_is_refused(far):
    with pytest.raises(ValueError, match="is not a rate"):
        published_true_accept_rate_at(roc([1.0, 0.0], [True, False]), far)
