"""Templates 1:1: against the published scores and tables, against plain loops, and at the edges."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from facebones.data.ijb_lists import read_template_set
from facebones.errors import ConfigError, DataError, UnknownNameError
from facebones.evaluation import template_scores
from facebones.evaluation.accept_rates import FAR_TARGETS, verify_templates
from facebones.evaluation.ijb_identification import identify_templates
from facebones.evaluation.ijb_verification import evaluate_templates
from facebones.evaluation.template_scores import (
    ALL_POOLINGS,
    USUAL_POOLING,
    PairScorer,
    Pooling,
    parse_pooling,
    pool_templates,
)
from facebones.synthetic.dataset import synthesize

ROOT = Path(__file__).parents[2]


def load_benchmark():
    spec = importlib.util.spec_from_file_location("templates_benchmark", ROOT / "benchmarks" / "templates.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden():
    """The golden arrays, templates as index, features as (N, 2, D)."""
    with np.load(ROOT / "tests" / "golden" / "templates.npz") as file:
        content = dict(file)
    ids, template = np.unique(content["template_of_image"], return_inverse=True)
    size = content["features"].shape[1] // 2
    return content | {
        "features": np.stack([content["features"][:, :size], content["features"][:, size:]], axis=1),
        "images": (
            template.astype(np.int32),
            content["media_of_image"].astype(np.int32),
            content["detector_score"],
        ),
        "pairs": [np.searchsorted(ids, content[key]).astype(np.int32) for key in ("pair_a", "pair_b")],
    }


@pytest.mark.parametrize(("block", "most"), [(2048, 30), (100, 10**9), (7, 0)])
@pytest.mark.parametrize("pooling", ALL_POOLINGS, ids=str)
def test_agrees_with_the_published_scores(golden, monkeypatch, pooling, block, most):
    monkeypatch.setattr(template_scores, "BLOCK_IMAGES", block)
    monkeypatch.setattr(template_scores, "MOST_SCORES_A_PAIR", most)
    pooled = pool_templates(golden["features"], *golden["images"], [pooling])
    scores = PairScorer(*golden["pairs"], len(pooled[pooling])).scores(pooled[pooling])
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, golden[f"scores_{pooling}"], rtol=0, atol=1e-6)


def test_the_poolings_differ_by_more_than_the_tolerance(golden):
    scores = [golden[f"scores_{pooling}"] for pooling in ALL_POOLINGS]
    differences = [np.abs(one - other).max() for place, one in enumerate(scores) for other in scores[:place]]
    assert min(differences) > 1e-3


def test_all_poolings_in_one_pass_are_those_of_one_each(golden, tmp_path):
    np.save(tmp_path / "features.npy", golden["features"])
    features = np.load(tmp_path / "features.npy", mmap_mode="r")
    pooled = pool_templates(features, *golden["images"], ALL_POOLINGS)
    assert tuple(pooled) == ALL_POOLINGS
    for pooling, templates in pooled.items():
        alone = pool_templates(golden["features"], *golden["images"], [pooling])[pooling]
        np.testing.assert_allclose(templates, alone, rtol=0, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(templates, axis=1), 1, rtol=0, atol=1e-6)


def test_a_medium_that_two_templates_share_is_one_in_each():
    features = np.array([[3, 0], [1, 0], [0, 4], [0, 8]], dtype=np.float32)[:, None].repeat(2, axis=1)
    template = np.array([0, 0, 0, 1], dtype=np.int32)
    medium = np.array([5, 5, 6, 5], dtype=np.int32)
    pooled = pool_templates(features, template, medium, np.ones(4, np.float32))[USUAL_POOLING]
    np.testing.assert_allclose(pooled, [[2 / np.sqrt(20), 4 / np.sqrt(20)], [0, 1]], atol=1e-7)


def test_the_order_of_the_images_does_not_matter(golden, monkeypatch):
    monkeypatch.setattr(template_scores, "BLOCK_IMAGES", 64)
    order = np.random.default_rng(0).permutation(len(golden["features"]))
    plain = pool_templates(golden["features"], *golden["images"])[USUAL_POOLING]
    shuffled = pool_templates(golden["features"][order], *(column[order] for column in golden["images"]))
    np.testing.assert_allclose(shuffled[USUAL_POOLING], plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("most", [0, 30, 10**9])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("templates", [5, 300, 70_000])
def test_scores_are_dot_products(monkeypatch, templates, ordered, most):
    monkeypatch.setattr(template_scores, "MOST_SCORES_A_PAIR", most)
    monkeypatch.setattr(template_scores, "BLOCK_TEMPLATES", 64)
    random = np.random.default_rng(templates)
    vectors = random.standard_normal((templates, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pair_a, pair_b = random.integers(0, templates, (2, 1500)).astype(np.int32)
    if ordered:
        pair_a.sort()
    wanted = np.sum(vectors[pair_a].astype(np.float64) * vectors[pair_b], axis=1)
    scores = PairScorer(pair_a, pair_b, templates).scores(vectors)
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", ALL_POOLINGS, ids=str)
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_template_without_direction_is_named(pooling, value):
    features = np.ones((3, 2, 4), dtype=np.float32)
    features[1] = value
    images = (np.arange(3, dtype=np.int32), np.arange(3, dtype=np.int32), np.ones(3, np.float32))
    with pytest.raises(DataError, match=rf"^faces, pooling {pooling}: template 70 has length (0|nan|inf)") as caught:
        pool_templates(features, *images, [pooling], template_ids=[60, 70, 80], name="faces")
    assert "\n" not in str(caught.value)


def test_a_detector_score_of_zero_everywhere_is_named():
    images = (np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.float32))
    with pytest.raises(DataError, match="template 0 has length 0"):
        pool_templates(np.ones((1, 2, 4), np.float32), *images)


@pytest.mark.parametrize("shape", [(2, 2, 4), (3, 4), (3, 1, 4), (3, 3, 4)])
def test_features_that_do_not_fit_are_refused(shape):
    images = (np.zeros(3, np.int32), np.zeros(3, np.int32), np.ones(3, np.float32))
    with pytest.raises(DataError, match=r"features of shape \(.*\) for 3 images"):
        pool_templates(np.ones(shape, np.float32), *images)


def test_names_of_poolings():
    assert [str(pooling) for pooling in ALL_POOLINGS] == [f"N{n}D{d}F{f}" for n in "01" for d in "01" for f in "01"]
    assert str(USUAL_POOLING) == "N1D1F1"
    assert parse_pooling("all") == ALL_POOLINGS
    assert parse_pooling("N0D1F0") == (Pooling(keep_norm=False, detector_score=True, flip=False),)
    assert list(map(str, parse_pooling(" N1D1F1, N0D0F0,N1D1F1"))) == ["N1D1F1", "N0D0F0"]
    with pytest.raises(UnknownNameError, match="unknown pooling 'N1D1F2'; did you mean 'N1D1F1'"):
        parse_pooling("N1D1F2")
    with pytest.raises(ConfigError, match="names nothing"):
        parse_pooling(" , ")


def published_table(scores, is_same):
    """TAR and FAR as the published programs read them from scikit-learn's curve."""
    far, tar, _ = roc_curve(is_same, scores)
    far, tar = np.flipud(far), np.flipud(tar)
    nearest = [min(zip(abs(far - target), range(len(far)), strict=True))[1] for target in FAR_TARGETS]
    return [(tar[index], far[index]) for index in nearest]


@pytest.mark.parametrize("decimals", [1, 3, 9])
@pytest.mark.parametrize("genuine", [3, 500])
def test_metrics_agree_with_scikit_learn(genuine, decimals):
    random = np.random.default_rng(genuine)
    is_same = np.arange(20_000) < genuine
    scores = np.round(random.normal(0.0, 0.2, is_same.size) + 0.5 * is_same, decimals).astype(np.float32)
    result = verify_templates(scores, is_same)
    far, tar, _ = roc_curve(is_same, scores, drop_intermediate=False)
    for rate, table in zip(result.rates, published_table(scores, is_same), strict=True):
        if rate.far < 1 / (20_000 - genuine):
            assert (rate.published, rate.strict, rate.far_reached) == (None, None, None)
            assert f"{20_000 - genuine} impostor pairs measure no FAR below" in rate.unmeasurable
        else:
            assert (rate.published, rate.far_reached) == table
            assert rate.strict == tar[far <= rate.far].max()
            assert rate.unmeasurable is None
    assert [rate.unmeasurable is None for rate in result.rates] == [False, False, True, True, True, True]
    assert result.auc == pytest.approx(roc_auc_score(is_same, scores), abs=1e-12)
    assert (result.pairs, result.genuine, result.impostors) == (20_000, genuine, 20_000 - genuine)


@pytest.mark.parametrize(("impostors", "measurable"), [(999, False), (1000, True), (1001, True)])
def test_a_target_is_measurable_from_one_impostor_pair_on(impostors, measurable):
    is_same = np.arange(impostors + 2) < 2
    result = verify_templates(np.linspace(1, 0, is_same.size), is_same, [1e-3])
    assert (result.rates[0].strict is not None) == measurable


def test_json_is_finite():
    result = verify_templates(np.array([0.9, 0.1, 0.2], np.float32), np.array([True, False, False]))
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["rates"][0]["strict"] is None
    assert (content["pairs"], content["auc"], content["eer"]) == (3, 1.0, 0.0)


@pytest.mark.parametrize(
    ("scores", "is_same", "message"),
    [
        ([0.1, 0.2], [True, True], "set: all 2 pairs are genuine"),
        ([0.1, np.nan], [True, False], "set: score 1 is nan"),
        ([0.1], [True, False], r"set: scores have shape \(1,\)"),
        ([], [], "set: no pairs"),
    ],
)
def test_unfit_pairs_are_refused(scores, is_same, message):
    with pytest.raises(DataError, match=message):
        verify_templates(np.array(scores), np.array(is_same, dtype=bool), name="set")


def test_the_benchmarks_plain_loops_agree(tmp_path):
    benchmark = load_benchmark()
    subject, template_set = benchmark.made_up_set(0.02)
    benchmark.write_features(tmp_path / "features.npy", template_set, subject)
    features = np.load(tmp_path / "features.npy", mmap_mode="r")
    result = evaluate_templates(template_set, features)[USUAL_POOLING]
    _, rates, area = benchmark.plain_loops(template_set, features)
    benchmark.check_same_answers(result, rates, area)
    assert 0.05 < result.rates[-1].strict < 0.95
    assert result.eer > 0.05


def noisy_features(template_set, seed=0):
    """Features that tell who it is, as far as their noise lets them."""
    random = np.random.default_rng(seed)
    _, subject = np.unique(template_set.identities()[template_set.template_of_image], return_inverse=True)
    noise = 1.5 * random.standard_normal((len(template_set), 2, 32))
    return (random.standard_normal((subject.max() + 1, 32))[subject][:, None] + noise).astype(np.float32)


@pytest.mark.faces
def test_real_lists_from_end_to_end(real_faces):
    template_set = read_template_set(real_faces / "ijb_lfw")
    features = noisy_features(template_set)
    results = evaluate_templates(template_set, features, ALL_POOLINGS)
    assert tuple(results) == ALL_POOLINGS
    assert all(0.9 < result.auc < 1 for result in results.values())
    pooled = pool_templates(
        features,
        template_set.template_of_image,
        template_set.medium_of_image,
        template_set.detector_score,
    )[USUAL_POOLING]
    found = identify_templates(template_set, pooled)
    assert (found.probes, found.searched, found.closed_set.subjects) == (169, 169, 120)
    assert 0.5 < found.rank_rates[1] <= found.rank_rates[5] <= found.rank_rates[10] <= 1


def test_a_synthetic_set_is_read_and_evaluated(tmp_path):
    synthesize(tmp_path / "set", identities=2, images_per_identity=1, pairs=20, template_subjects=3, seed=1, workers=1)
    template_set = read_template_set(tmp_path / "set" / "ijb")
    features = noisy_features(template_set)
    result = evaluate_templates(template_set, features)[USUAL_POOLING]
    assert result.pairs == template_set.is_same.size
    assert template_set.identities().min() > 0
    assert all((template_set.image_folder / name).is_file() for name in template_set.image_names)
