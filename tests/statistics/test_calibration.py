"""Thresholds keep their promise, by simulation with known false match rates; log-likelihood ratios against theory."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from facebones.errors import DataError
from facebones.statistics.calibration import ScoredPairs, pairs_needed, pooled, promised_threshold
from facebones.statistics.likelihood_ratio import (
    cost,
    cross_fitted_cost,
    fit_isotonic,
    fit_logistic,
    least_cost,
)


def _unknown(impostors, random, genuine=50):
    score = np.concatenate([random.normal(3, 1, genuine), random.normal(size=impostors)])
    return ScoredPairs(score, np.arange(score.size) < genuine)


def _of_people(people, images, effect, random, genuine=50):
    """Impostor scores are standard normal; each person and each pair of people has a share of the variance."""
    one, other = np.triu_indices(people, 1)
    person, pair = random.normal(size=people), random.normal(size=one.size)
    shared = effect * (person[one] + person[other] + pair)
    own = np.sqrt(1 - 3 * effect**2)
    score = np.concatenate([shared + own * random.normal(size=one.size) for _ in range(images)])
    first = np.concatenate([np.arange(genuine) % people, np.tile(one, images)])
    second = np.concatenate([np.arange(genuine) % people, np.tile(other, images)])
    return ScoredPairs(np.concatenate([random.normal(3, 1, genuine), score]), first == second, first, second)


def _kept(make, target, sets):
    """How many thresholds keep the target, of those that are promised, and how many are refused."""
    kept = refused = 0
    for seed in range(sets):
        try:
            found = promised_threshold(make(np.random.default_rng(seed)), target)
        except DataError:
            refused += 1
            continue
        kept += norm.sf(found.threshold) <= target
    return kept, refused


@pytest.mark.parametrize(("impostors", "target"), [(2995, 0.001), (1000, 0.01), (400, 0.05)])
def test_the_promise_is_kept_for_independent_pairs(impostors, target):
    kept, refused = _kept(lambda random: _unknown(impostors, random), target, 400)
    assert refused == 0 and binomtest(400 - kept, 400, 0.05, "greater").pvalue > 0.001
    assert kept < 400  # else it would be too careful


@pytest.mark.parametrize("effect", [0.0, 0.3, 0.5])
def test_the_promise_is_kept_where_pairs_share_people(effect):
    kept, refused = _kept(lambda random: _of_people(60, 3, effect, random), 0.01, 200)
    assert binomtest(200 - refused - kept, 200, 0.05, "greater").pvalue > 0.001
    assert effect == 0.5 or kept > 150


def test_pairs_of_shared_people_count_for_less():
    random = np.random.default_rng(0)
    shared = _of_people(60, 3, 0.4, random)
    found = promised_threshold(shared, 0.02)
    naive = promised_threshold(ScoredPairs(shared.score, shared.is_same), 0.02)
    assert found.design_effect > 5 and naive.design_effect == 1.0
    assert found.threshold > naive.threshold and found.people == 60


def test_the_threshold_is_as_low_as_the_bound_allows():
    pairs = _unknown(5000, np.random.default_rng(1))
    found = promised_threshold(pairs, 0.01)
    impostors = np.sort(pairs.score[~pairs.is_same])[::-1]
    assert found.accepted == int((impostors >= found.threshold).sum()) and found.upper_bound <= 0.01
    # Clopper and Pearson's bound of one pair more would break the target.
    more = binomtest(found.accepted + 1, 5000, alternative="less").proportion_ci(0.95).high
    assert found.upper_bound < 0.01 < more
    assert found.upper_bound == pytest.approx(
        binomtest(found.accepted, 5000, alternative="less").proportion_ci(0.95).high, abs=1e-9
    )


def test_equal_scores_are_accepted_together():
    score = np.repeat([0.9, 0.5, 0.4, 0.1], [20, 40, 40, 4000])
    is_same = np.arange(score.size) < 20
    found = promised_threshold(ScoredPairs(score, is_same), 0.015)
    assert found.accepted == 40 and 0.4 < found.threshold <= 0.5
    found = promised_threshold(ScoredPairs(score, is_same), 0.01)
    assert found.accepted == 0 and found.threshold > 0.5


def test_a_target_that_the_pairs_cannot_support_is_refused_with_the_number_that_would():
    pairs = _unknown(2994, np.random.default_rng(0))
    with pytest.raises(DataError, match="2,994 impostor pairs cannot promise it; that takes 2,995 pairs or more"):
        promised_threshold(pairs, 0.001)
    assert promised_threshold(_unknown(2995, np.random.default_rng(0)), 0.001).accepted == 0
    with pytest.raises(DataError, match=r"of 60 people.* cannot promise it; that takes about [\d,]+ people"):
        promised_threshold(_of_people(60, 1, 0.4, np.random.default_rng(0)), 0.001)
    assert pairs_needed(0.001) == 2995 and pairs_needed(1e-6) == 2_995_731


def test_pairs_of_one_kind_and_rates_that_are_none_are_refused():
    with pytest.raises(DataError, match="2 genuine and 0 impostor pairs"):
        promised_threshold(ScoredPairs(np.ones(2), np.ones(2, bool)), 0.01)
    with pytest.raises(ValueError, match=r"false_match_rate: 0.0 is not between"):
        promised_threshold(_unknown(10, np.random.default_rng(0)), 0.0)


def test_pooled_sets_keep_their_people_apart():
    random = np.random.default_rng(0)
    known, unknown = _of_people(20, 1, 0.3, random), _unknown(100, random)
    both = pooled([known, unknown])
    assert both.people == 20 + 50 + 200 and both.score.size == known.score.size + unknown.score.size
    assert np.array_equal(both.first == both.second, both.is_same)
    assert pooled([unknown, unknown]).people is None
    effect = promised_threshold(pooled([unknown, _unknown(400, random)]), 0.05).design_effect
    assert effect == 1.0


# ------------------------------------------------------------------------------------------------ likelihood ratios


def _normal_pairs(genuine=3000, impostors=30_000, seed=0):
    random = np.random.default_rng(seed)
    score = np.concatenate([random.normal(2, 1, genuine), random.normal(0, 1, impostors)])
    return ScoredPairs(score, np.arange(score.size) < genuine)


def test_the_logistic_calibration_finds_the_true_ratio():
    pairs = _normal_pairs()  # the true ratio is 2 x score - 2
    found = fit_logistic(pairs.score, pairs.is_same)
    assert found.slope == pytest.approx(2, abs=0.08) and found.intercept == pytest.approx(-2, abs=0.08)
    isotonic = fit_isotonic(pairs.score, pairs.is_same)(np.array([0.0, 1.0, 2.0]))
    assert isotonic == pytest.approx([-2, 0, 2], abs=0.5)


def test_the_logistic_calibration_is_that_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    pairs = _normal_pairs(2000, 20_000)
    theirs = LogisticRegression(C=1e8, class_weight="balanced", tol=1e-10).fit(pairs.score[:, None], pairs.is_same)
    found = fit_logistic(pairs.score, pairs.is_same)
    assert found.slope == pytest.approx(float(theirs.coef_[0, 0]), rel=2e-2)  # without Platt's smoothing
    assert found.intercept == pytest.approx(float(theirs.intercept_[0]), rel=2e-2)


def test_cost_has_its_landmarks():
    same = np.array([True, True, False, False])
    assert cost(np.zeros(4), same) == 1.0
    assert cost(np.array([50.0, 50, -50, -50]), same) == pytest.approx(0, abs=1e-12)
    assert cost(np.array([-5.0, -5, 5, 5]), same) > 5  # confident and wrong
    # By hand: log2(1 + 1/3) for each genuine pair, log2(1 + 1/3) for each impostor pair.
    assert cost(np.log([3.0, 3, 1 / 3, 1 / 3]), same) == pytest.approx(np.log2(4 / 3))


def test_the_least_cost_is_that_of_the_best_rising_map():
    # Pool adjacent violators by hand: scores 1 2 3 4, genuine at 2 and 4: steps 0, 1/2, 1 of the ratio.
    score, same = np.array([1.0, 2, 3, 4]), np.array([False, True, False, True])
    assert least_cost(score, same) == pytest.approx(0.5)
    pairs = _normal_pairs()
    exact = cost(2 * pairs.score - 2, pairs.is_same)
    assert exact - 0.02 < least_cost(pairs.score, pairs.is_same) < exact


def test_kinds_that_do_not_overlap_have_a_finite_calibration():
    score, same = np.array([0.9, 0.8, 0.7, 0.1, 0.0, -0.1]), np.arange(6) < 3
    assert least_cost(score, same) == 0
    for fit in (fit_logistic, fit_isotonic):
        ratio = fit(score, same)(np.array([-1.0, 0.4, 1.0]))
        assert np.isfinite(ratio).all() and ratio[0] < 0 < ratio[2]


@pytest.mark.parametrize("fit", [fit_logistic, fit_isotonic])
def test_cross_fitting_tells_the_cost_on_new_pairs(fit):
    pairs = _normal_pairs(400, 4000)
    fresh = _normal_pairs(20_000, 20_000, seed=1)
    on_new = cost(fit(pairs.score, pairs.is_same)(fresh.score), fresh.is_same)
    assert cross_fitted_cost(pairs, fit) == pytest.approx(on_new, abs=0.05)


def test_people_are_never_on_both_sides_of_a_fold():
    seen = []

    def fit(score, is_same):
        seen.append(score)
        return fit_logistic(score, is_same)

    first = np.repeat(np.arange(40), 20)
    second = np.where(np.arange(800) % 2 == 0, first, (first + 1 + np.arange(800) % 7) % 40)
    pairs = ScoredPairs(first + second / 100, first == second, first, second)
    cross_fitted_cost(pairs, fit, folds=4)
    for scores in seen:  # a score is its people here
        people = {int(score) for score in scores} | {round((score % 1) * 100) for score in scores}
        assert len(people) == 30


def test_a_fold_of_one_kind_has_no_cost():
    score = np.linspace(0, 1, 12)
    assert cross_fitted_cost(ScoredPairs(score, np.arange(12) > 10), fit_logistic) is None


def test_scores_that_are_all_equal_cannot_be_calibrated():
    with pytest.raises(DataError, match="4 pairs with equal scores"):
        fit_logistic(np.ones(4), np.array([True, False, True, False]))
