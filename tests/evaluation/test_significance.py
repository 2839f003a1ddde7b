"""Tests and corrections against scipy and worked examples; intervals and tests against simulations of known truth."""

import json
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from facebones.statistics.bootstrap import (
    Figure,
    Unmeasured,
    accuracy_figure,
    rank_figure,
    verification_figures,
)
from facebones.statistics.significance import (
    compare_models,
    confidence_interval,
    holm,
    mcnemar,
    not_different_from_best,
    over_seeds,
    wilson,
)
from facebones.statistics.student import MOST_DEGREES, quantile, two_sided_p


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 30, 499, 3530, 20_000])
def test_student_agrees_with_scipy(degrees):
    tolerance = 1e-14 if degrees <= MOST_DEGREES else 2e-5
    for t in (0.0, 0.3, 1.0, 1.96, 4.0, -2.5):
        assert two_sided_p(t, degrees) == pytest.approx(2 * stats.t.sf(abs(t), degrees), rel=1e-9, abs=tolerance)
    for level in (0.5, 0.9, 0.95, 0.999):
        assert quantile(level, degrees) == pytest.approx(stats.t.ppf(0.5 + level / 2, degrees), rel=3e-4)


def test_student_never_answers_zero_for_a_finite_deviate():
    assert two_sided_p(30.0, 100) > 0
    assert two_sided_p(float("inf"), 5) == 0


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
    by_pairs = accuracy_figure(right, np.arange(300) < 150, replicates=20)
    interval = confidence_interval(by_pairs)
    assert interval.high == 1.0
    assert interval.low == pytest.approx(stats.binomtest(300, 300).proportion_ci(method="wilson").low, abs=1e-3)
    assert "300 outcomes" in interval.method
    subject = np.arange(300) // 10
    by_subject = rank_figure(right, subject, name="Rank-1", replicates=20)
    assert confidence_interval(by_subject).low < interval.low  # 30 subjects say less than 300 pairs
    comparison = compare_models(["a", "b"], [by_pairs])["accuracy"].comparisons[0]
    assert (comparison.difference, comparison.p_value, comparison.adjusted) == (0.0, 1.0, 1.0)


def test_a_difference_without_spread_is_judged_by_the_number_of_identities():
    scores = np.concatenate([np.linspace(2, 3, 10), np.linspace(0, 1, 10)])
    worse = np.concatenate([np.linspace(-3, -2, 10), np.linspace(0, 1, 10)])
    figures = verification_figures([scores, worse], np.arange(20) < 10, far_targets=[0.5], replicates=20)
    comparison = compare_models(["a", "b"], figures)["TAR at FAR 0.5"].comparisons[0]
    assert comparison.p_value == 2.0**-9


def figure_of(values, replicates=50, **more):
    """A figure whose models scatter by 0.01, independently."""
    noise = np.random.default_rng(0).standard_normal((replicates, len(values)))
    return Figure(
        name=more.pop("name", "TAR"),
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
    figures = [
        figure_of([0.80, 0.951, 0.95]),
        Unmeasured(name="TAR at FAR 1e-9", reason="too few"),
        figure_of([0.30, 0.10, 0.11], name="EER", higher_is_better=False),
    ]
    table = compare_models(names, figures)
    assert list(table) == ["TAR", "TAR at FAR 1e-9", "EER"]
    assert table["TAR at FAR 1e-9"] is figures[1]
    for name in ("TAR", "EER"):
        assert [(row.first, row.second) for row in table[name].comparisons] == [
            ("low", "best"),
            ("low", "near"),
            ("best", "near"),
        ]
        assert table[name].not_different_from_best == ("best", "near")
    every = [row for name in ("TAR", "EER") for row in table[name].comparisons]
    np.testing.assert_allclose([row.adjusted for row in every], holm([row.p_value for row in every]))
    near = table["TAR"].comparisons[2]
    assert near.difference == pytest.approx(0.001)
    deviation = figures[0].variance([0, 1, -1]) ** 0.5
    assert near.p_value == pytest.approx(2 * stats.t.sf(0.001 / deviation, 499))
    assert near.interval.high - near.interval.low == pytest.approx(2 * stats.t.ppf(0.975, 499) * deviation)


def test_table_is_json():
    figures = [figure_of([0.9, 1.0]), Unmeasured(name="TAR at FAR 1e-9", reason="too few")]
    table = {name: found.to_json() for name, found in compare_models(["a", "b"], figures).items()}
    read = json.loads(json.dumps(table, allow_nan=False))
    assert read["TAR"]["values"] == {"a": 0.9, "b": 1.0}
    assert read["TAR"]["intervals"]["a"]["resampled"] == "identities"
    assert read["TAR"]["comparisons"][0]["interval"]["replicates"] == 50
    assert read["TAR"]["not_different_from_best"] == ["b"]
    assert read["TAR at FAR 1e-9"] == {"figure": "TAR at FAR 1e-9", "values": None, "reason": "too few"}


def test_names_must_fit():
    with pytest.raises(ValueError, match="name of its own"):
        compare_models(["a", "a"], [figure_of([0.9, 0.8])])
    with pytest.raises(ValueError, match="for 2 models"):
        compare_models(["a"], [figure_of([0.9, 0.8])])


def test_best_is_alone_where_all_others_differ():
    table = compare_models(["a", "b", "c"], [figure_of([0.5, 0.9, 0.1])])["TAR"]
    assert table.not_different_from_best == ("b",)
    assert not_different_from_best(["a", "b", "c"], [0.5, 0.9, 0.1], ()) == ("a", "b", "c")


def test_one_model_has_intervals_and_nothing_to_compare_with():
    table = compare_models(["a"], {"TAR": figure_of([0.9])})["TAR"]
    assert table.intervals["a"].low < 0.9 < table.intervals["a"].high
    assert (table.comparisons, table.not_different_from_best) == ((), ("a",))
    unmeasured = Unmeasured(name="TAR", reason="too few")
    assert compare_models(["a", "b"], [unmeasured]) == {"TAR": unmeasured}


def test_mcnemar_stands_in_for_accuracy_and_widens_by_identities():
    random = np.random.default_rng(1)
    identity = np.repeat(np.arange(50), 20)
    other = np.where(np.arange(1000) % 2, (identity + 1) % 50, identity)
    favoured = random.standard_normal(50) > 0  # which of the two models does well with this person
    first = np.where(favoured[identity], 0.99, 0.8) > random.random(1000)
    second = np.where(favoured[identity], 0.8, 0.99) > random.random(1000)
    by_pairs = accuracy_figure([first, second], identity == other)
    by_identities = accuracy_figure([first, second], identity == other, (identity, other))
    row = compare_models(["a", "b"], [by_pairs])["accuracy"].comparisons[0]
    assert row.p_value == mcnemar((first & ~second).sum(), (second & ~first).sum())
    clustered = compare_models(["a", "b"], [by_identities])["accuracy"].comparisons[0]
    assert clustered.p_value > row.p_value
    assert "identities" in clustered.method


# Simulations. Persons differ in quality (their genuine scores) and in likeness to others (their impostor scores); all
# parts are normal, so every true figure has a closed form. Two models of equal quality share most of every part.

PERSONS, GENUINE_EACH, IMPOSTORS_EACH = 500, 4, 6
MEAN, QUALITY, LIKENESS, NOISE, SHARED = 4.5, 1.0, 0.5, 1.0, 0.7
THRESHOLD, FAR = 2.25, 0.1
DATA_SETS, NAIVE_DATA_SETS, REPLICATES = 2000, 250, 200
TAR_NAME = f"TAR at FAR {FAR:g}"


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


def true_figures():
    normal = NormalDist()
    genuine, impostor = np.hypot(QUALITY, NOISE), np.hypot(np.sqrt(2) * LIKENESS, NOISE)
    right_genuine = normal.cdf((MEAN - THRESHOLD) / genuine)
    right_impostors = normal.cdf(THRESHOLD / impostor)
    share = GENUINE_EACH / (GENUINE_EACH + IMPOSTORS_EACH)
    return {
        "accuracy": share * right_genuine + (1 - share) * right_impostors,
        TAR_NAME: normal.cdf((MEAN - impostor * normal.inv_cdf(1 - FAR)) / genuine),
        "AUC": normal.cdf(MEAN / np.hypot(genuine, impostor)),
        "EER": normal.cdf(-MEAN / (genuine + impostor)),
    }


def judged(scores, is_same, identities, seed):
    """All figures of two models and their comparison."""
    figures = verification_figures(scores, is_same, identities, far_targets=[FAR], replicates=REPLICATES, seed=seed)
    correct = (scores >= THRESHOLD) == is_same
    figures["accuracy"] = accuracy_figure(correct, is_same, identities, replicates=REPLICATES, seed=seed)
    return compare_models(["a", "b"], figures)


@pytest.fixture(scope="module")
def simulation():
    """Shares of data sets whose interval holds the truth, and where equal models are told apart, by figure."""
    random = np.random.default_rng(2026)
    first, second = simulated_pairs(random)
    truth = true_figures()
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
@pytest.mark.parametrize("name", ["accuracy", TAR_NAME, "AUC", "EER"])
def test_intervals_over_identities_hold_the_truth_as_often_as_they_say(simulation, name):
    assert 0.93 <= simulation["held"][name] <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("name", ["accuracy", TAR_NAME, "AUC", "EER"])
def test_equal_models_are_told_apart_as_often_as_the_level_says(simulation, name):
    assert 0.04 <= simulation["alarms"][name] <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("name", ["accuracy", TAR_NAME, "AUC", "EER"])
def test_intervals_over_pairs_are_too_narrow_where_persons_differ(simulation, name):
    assert simulation["naive"][name] < 0.92
    assert simulation["naive"][name] < simulation["held"][name] - 0.03
