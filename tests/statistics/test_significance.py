"""Tests and corrections against scipy and worked examples; intervals and tests against simulations of known truth."""

import json
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from facebones.statistics.bootstrap import (
    ResampledMetric,
    resample_accuracy,
    resample_rank,
    resample_verification,
)
from facebones.statistics.metric import Metric
from facebones.statistics.significance import (
    compare_models,
    confidence_interval,
    holm,
    mcnemar,
    not_different_from,
    over_seeds,
    wilson,
)


@pytest.mark.parametrize(("right", "outcomes"), [(0, 10), (7, 10), (10, 10), (5990, 6000)])
def test_wilson_agrees_with_scipy(right, outcomes):
    expected = stats.binomtest(right, outcomes).proportion_ci(0.95, method="wilson")
    assert wilson(right / outcomes, outcomes, NormalDist().inv_cdf(0.975)) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 6), (3, 3), (5, 14), (40, 61), (400, 500), (5100, 4900)])
def test_mcnemar_is_the_exact_test_less_half_the_observed_chance(first, second):
    exact = stats.binomtest(first, first + second).pvalue
    observed = stats.binom.pmf(first, first + second, 0.5)
    expected = exact - (observed if first != second else observed / 2)
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(second, first) == mcnemar(first, second)


def test_mcnemar_goes_over_into_the_normal_deviate():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5100, 4901) == pytest.approx(mcnemar(5100, 4900), rel=0.03)
    assert mcnemar(3_000_000, 3_004_000) == pytest.approx(2 * stats.norm.sf(4000 / np.sqrt(6_004_000)), rel=1e-9)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.04], [0.04]),
        ([], []),
        ([0.5, 0.01, 0.5], [1.0, 0.03, 1.0]),
        ([0.01, 0.02, 0.03, 0.04], [0.04, 0.06, 0.06, 0.06]),  # 4 x 0.01, 3 x 0.02, then 2 x 0.03, 0.04 held up
        # with a tie
        ([0.001, 0.2, 0.013, 0.013, 0.05], [0.005, 0.2, 0.052, 0.052, 0.1]),
        # in order: 5 x 0.0005, 4 x 0.005, 3 x 0.01, 2 x 0.03, then 0.04 held up
        ([0.01, 0.0005, 0.04, 0.03, 0.005], [0.03, 0.0025, 0.06, 0.06, 0.02]),
    ],
)
def test_holm_agrees_with_worked_examples(p_values, adjusted):
    np.testing.assert_allclose(holm(p_values), adjusted, atol=1e-15)


@pytest.mark.parametrize("p_value", [-0.1, 1.1, np.nan])
def test_holm_refuses_what_is_no_probability(p_value):
    with pytest.raises(ValueError, match="from 0 to 1"):
        holm([0.5, p_value])


def test_one_seed_has_no_spread():
    assert over_seeds([0.9]).to_json() == {"mean": 0.9, "deviation": None, "seeds": 1, "interval": None}
    with pytest.raises(ValueError, match="none"):
        over_seeds([])


def test_seeds_agree_with_scipy():
    values = [0.991, 0.993, 0.9925, 0.9935]
    spread = over_seeds(values, level=0.9)
    expected = stats.t.interval(0.9, 3, np.mean(values), stats.sem(values))
    assert (spread.interval.low, spread.interval.high) == pytest.approx(expected, rel=1e-12)
    assert spread.deviation == pytest.approx(np.std(values, ddof=1))


def test_all_right_is_not_certain():
    right = np.ones((2, 300), dtype=bool)
    by_pairs = resample_accuracy(right, np.arange(300) < 150, replicates=20)
    interval = confidence_interval(by_pairs)
    assert interval.high == 1.0
    assert interval.low == pytest.approx(stats.binomtest(300, 300).proportion_ci(method="wilson").low, abs=1e-3)
    assert "300 outcomes" in interval.method
    subject = np.arange(300) // 10
    by_subject = resample_rank(right, subject, rank=1, replicates=20)
    assert confidence_interval(by_subject).low < interval.low  # 30 subjects say less than 300 pairs
    comparison = compare_models(["a", "b"], [by_pairs])[0].comparisons[0]
    assert (comparison.difference, comparison.p_value, comparison.adjusted) == (0.0, 1.0, 1.0)


def test_a_difference_without_spread_is_judged_by_the_number_of_identities():
    scores = np.concatenate([np.linspace(2, 3, 10), np.linspace(0, 1, 10)])
    worse = np.concatenate([np.linspace(-3, -2, 10), np.linspace(0, 1, 10)])
    metrics = resample_verification([scores, worse], np.arange(20) < 10, far_targets=[0.5], replicates=20)
    comparison = compare_models(["a", "b"], metrics)[0].comparisons[0]
    assert comparison.p_value == 2.0**-9


UNMEASURED = Metric(name="tar", at={"far": 1e-9}, reason="too few")


def metric_of(values, replicates=50, **more):
    """A metric whose models scatter by 0.01, independently."""
    noise = np.random.default_rng(0).standard_normal((replicates, len(values)))
    return ResampledMetric(
        metric=more.pop("metric", Metric(name="tar")),
        values=np.array(values),
        replicates=np.array(values) + 0.01 * noise,
        excess=np.zeros((len(values), len(values))),
        resampled="identities",
        units=500,
        evidence=500,
        outcomes=3000,
        **more,
    )


def test_all_pairs_of_models_are_compared_and_corrected_together():
    names = ["low", "best", "near"]
    metrics = [
        metric_of([0.80, 0.951, 0.95]),
        UNMEASURED,
        metric_of([0.30, 0.10, 0.11], metric=Metric(name="eer", higher_is_better=False)),
    ]
    table = compare_models(names, metrics)
    assert [one.metric for one in table] == [metrics[0].metric, UNMEASURED, metrics[2].metric]
    assert (table[1].values, table[1].comparisons, table[1].best) == ({}, (), None)
    for place in (0, 2):
        assert [(row.first, row.second) for row in table[place].comparisons] == [
            ("low", "best"),
            ("low", "near"),
            ("best", "near"),
        ]
        assert table[place].not_different_from_best == ("best", "near")
    every = [row for place in (0, 2) for row in table[place].comparisons]
    np.testing.assert_allclose([row.adjusted for row in every], holm([row.p_value for row in every]))
    near = table[0].comparisons[2]
    assert near.difference == pytest.approx(0.001)
    deviation = metrics[0].variance([0, 1, -1]) ** 0.5
    assert near.p_value == pytest.approx(2 * stats.t.sf(0.001 / deviation, 499))
    assert near.interval.high - near.interval.low == pytest.approx(2 * stats.t.ppf(0.975, 499) * deviation)


def test_table_is_json():
    measured, unmeasured = (one.to_json() for one in compare_models(["a", "b"], [metric_of([0.9, 1.0]), UNMEASURED]))
    read = json.loads(json.dumps(measured, allow_nan=False))
    assert read["values"] == {"a": 0.9, "b": 1.0}
    assert read["intervals"]["a"]["resampled"] == "identities"
    assert read["comparisons"][0]["interval"]["replicates"] == 50
    assert (read["best"], read["not_different_from_best"]) == ("b", ["b"])
    assert (read["name"], read["at"], read["higher_is_better"], read["reason"]) == ("tar", {}, True, None)
    assert (unmeasured["reason"], unmeasured["at"]) == ("too few", {"far": 1e-9})
    assert (unmeasured["values"], unmeasured["intervals"], unmeasured["comparisons"]) == ({}, {}, [])


def test_names_must_fit():
    with pytest.raises(ValueError, match="unique name"):
        compare_models(["a", "a"], [metric_of([0.9, 0.8])])
    with pytest.raises(ValueError, match="for 2 models"):
        compare_models(["a"], [metric_of([0.9, 0.8])])


def test_best_is_alone_where_all_others_differ():
    table = compare_models(["a", "b", "c"], [metric_of([0.5, 0.9, 0.1])])[0]
    assert table.not_different_from_best == ("b",)
    assert not_different_from("b", ["a", "b", "c"], ()) == ("a", "b", "c")


def test_one_model_has_intervals_and_nothing_to_compare_with():
    table = compare_models(["a"], [metric_of([0.9])])[0]
    assert table.intervals["a"].low < 0.9 < table.intervals["a"].high
    assert (table.comparisons, table.not_different_from_best) == ((), ("a",))
    (unmeasured,) = compare_models(["a", "b"], [UNMEASURED])
    assert (unmeasured.metric, unmeasured.values) == (UNMEASURED, {})


def test_mcnemar_stands_in_for_accuracy_and_widens_by_identities():
    random = np.random.default_rng(1)
    identity = np.repeat(np.arange(50), 20)
    other = np.where(np.arange(1000) % 2, (identity + 1) % 50, identity)
    favoured = random.standard_normal(50) > 0  # which of the two models does well with this person
    first = np.where(favoured[identity], 0.99, 0.8) > random.random(1000)
    second = np.where(favoured[identity], 0.8, 0.99) > random.random(1000)
    by_pairs = resample_accuracy([first, second], identity == other)
    by_identities = resample_accuracy([first, second], identity == other, (identity, other))
    row = compare_models(["a", "b"], [by_pairs])[0].comparisons[0]
    assert row.p_value == mcnemar((first & ~second).sum(), (second & ~first).sum())
    clustered = compare_models(["a", "b"], [by_identities])[0].comparisons[0]
    assert clustered.p_value > row.p_value
    assert "identities" in clustered.method


# Simulations. Persons differ in quality (their genuine scores) and in likeness to others (their impostor scores); all
# parts are normal, so every true metric has a closed form. Two models of equal quality share most of every part.

PERSONS, GENUINE_EACH, IMPOSTORS_EACH = 500, 4, 6
MEAN, QUALITY, LIKENESS, NOISE, SHARED = 4.5, 1.0, 0.5, 1.0, 0.7
THRESHOLD, FAR = 2.25, 0.1
DATA_SETS, NAIVE_DATA_SETS, REPLICATES = 2000, 250, 200


def simulated_pairs(random):
    genuine = np.repeat(np.arange(PERSONS), GENUINE_EACH)
    first = np.repeat(np.arange(PERSONS), IMPOSTORS_EACH)
    second = (first + random.integers(1, PERSONS, size=first.size)) % PERSONS
    return np.append(genuine, first), np.append(genuine, second)


def simulated_scores(random, first, second):
    def two_models(size):
        own = np.sqrt(1 - SHARED) * random.standard_normal((2, size))
        return np.sqrt(SHARED) * random.standard_normal(size) + own

    quality, likeness, noise = (two_models(size) for size in (PERSONS, PERSONS, first.size))
    genuine = MEAN + QUALITY * quality[:, first]
    impostor = LIKENESS * (likeness[:, first] + likeness[:, second])
    return np.where(first == second, genuine, impostor) + NOISE * noise


def true_metrics():
    normal = NormalDist()
    genuine, impostor = np.hypot(QUALITY, NOISE), np.hypot(np.sqrt(2) * LIKENESS, NOISE)
    right_genuine = normal.cdf((MEAN - THRESHOLD) / genuine)
    right_impostors = normal.cdf(THRESHOLD / impostor)
    share = GENUINE_EACH / (GENUINE_EACH + IMPOSTORS_EACH)
    return {
        "accuracy": share * right_genuine + (1 - share) * right_impostors,
        "tar": normal.cdf((MEAN - impostor * normal.inv_cdf(1 - FAR)) / genuine),
        "auc": normal.cdf(MEAN / np.hypot(genuine, impostor)),
        "eer": normal.cdf(-MEAN / (genuine + impostor)),
    }


def judged(scores, is_same, identities, seed):
    """All metrics of two models and their comparison."""
    metrics = resample_verification(scores, is_same, identities, far_targets=[FAR], replicates=REPLICATES, seed=seed)
    correct = (scores >= THRESHOLD) == is_same
    metrics.append(resample_accuracy(correct, is_same, identities, replicates=REPLICATES, seed=seed))
    return {one.metric.name: one for one in compare_models(["a", "b"], metrics)}


@pytest.fixture(scope="module")
def simulation():
    """Shares of data sets whose interval holds the truth, and where equal models differ significantly, by metric."""
    random = np.random.default_rng(2026)
    first, second = simulated_pairs(random)
    truth = true_metrics()
    held, alarms, naive = ({name: [] for name in truth} for _ in range(3))
    for seed in range(DATA_SETS):
        scores = simulated_scores(random, first, second)
        table = judged(scores, first == second, (first, second), seed)
        unaware = judged(scores, first == second, None, seed) if seed < NAIVE_DATA_SETS else {}
        for name, value in truth.items():
            interval = table[name].intervals["a"]
            held[name].append(interval.low <= value <= interval.high)
            alarms[name].append(table[name].comparisons[0].p_value <= 0.05)
            if unaware:
                interval = unaware[name].intervals["a"]
                naive[name].append(interval.low <= value <= interval.high)
    shares = [{name: float(np.mean(kept)) for name, kept in part.items()} for part in (held, alarms, naive)]
    print("held, alarms, naive:", *shares)
    return dict(zip(("held", "alarms", "naive"), shares, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["accuracy", "tar", "auc", "eer"])
def test_intervals_over_identities_hold_the_truth_as_often_as_they_say(simulation, name):
    assert 0.93 <= simulation["held"][name] <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("name", ["accuracy", "tar", "auc", "eer"])
def test_equal_models_differ_significantly_as_often_as_the_level_says(simulation, name):
    assert 0.04 <= simulation["alarms"][name] <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("name", ["accuracy", "tar", "auc", "eer"])
def test_intervals_over_pairs_are_too_narrow_where_persons_differ(simulation, name):
    assert simulation["naive"][name] < 0.92
    assert simulation["naive"][name] < simulation["held"][name] - 0.03
