"""The pairs protocol against published answers, against plain loops, and at its edges."""

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold

from facebones.data.image_sources import EncodedImages
from facebones.data.pair_bins import PairSet, read_pairs
from facebones.data.preprocessing import Preprocessing
from facebones.errors import DataError
from facebones.evaluation import verification
from facebones.evaluation.embed import embed
from facebones.evaluation.models import Model, load_model
from facebones.evaluation.verification import evaluate_pair_set, verify_features, verify_pairs

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"


def load_benchmark():
    spec = importlib.util.spec_from_file_location("pairs_protocol", ROOT / "benchmarks" / "pairs_protocol.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_benchmark()


def pairs_at(distances):
    """Embeddings (2P, 2) on the circle whose pairs have these squared distances."""
    angles = 2 * np.arcsin(np.sqrt(np.asarray(distances, dtype=np.float64)) / 2)
    first = np.tile([1.0, 0.0], (angles.size, 1))
    second = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.stack([first, second], axis=1).reshape(-1, 2)


def alternating(pairs):
    return np.arange(pairs) % 2 == 0


@pytest.fixture(scope="module")
def golden():
    with np.load(ROOT / "tests" / "golden" / "pairs.npz") as content:
        return dict(content)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_with_the_published_implementation(golden, dtype):
    result = verify_pairs(golden["embeddings"].astype(dtype), golden["is_same"])
    np.testing.assert_allclose(result.fold_accuracy, golden["fold_accuracy"], rtol=0, atol=1e-9)
    assert result.accuracy == pytest.approx(golden["fold_accuracy"].mean(), abs=1e-9)
    assert result.accuracy_std == pytest.approx(golden["fold_accuracy"].std(), abs=1e-9)
    for key in ("tar_at_far_1e3", "tar_at_far_1e3_std", "far_reached"):
        assert getattr(result, key) == pytest.approx(float(golden[key]), abs=1e-9)


@pytest.mark.parametrize("wrong_labels", [0, 5, 500])
@pytest.mark.parametrize("pairs", [1000, 1009])
def test_agrees_with_plain_loops(pairs, wrong_labels):
    embeddings, is_same = reference.made_up_pairs(pairs, 24)
    swapped = np.random.default_rng(1).choice(pairs, wrong_labels, replace=False)
    is_same[swapped] = ~is_same[swapped]
    reference.check_same_answers(embeddings, is_same)


def test_the_plain_loops_are_compared_on_rates_that_are_not_trivial():
    result = verify_pairs(*reference.made_up_pairs(2000, 24, seed=1))
    assert 0 < result.far_reached < 0.01
    assert 0.1 < result.tar_at_far_1e3 < 0.9
    assert 0.6 < result.accuracy < 0.95


@given(pairs=st.integers(2, 200), folds=st.integers(2, 20))
@settings(deadline=None)
def test_folds_are_those_of_scikit_learn(pairs, folds):
    if folds > pairs:
        return
    fold_of_pair = verification._fold_of_pair(pairs, folds)
    for index, (_, fold) in enumerate(KFold(folds).split(np.zeros(pairs))):
        np.testing.assert_array_equal(np.flatnonzero(fold_of_pair == index), fold)


@given(
    quarters=st.lists(st.integers(0, 400), min_size=20, max_size=60),
    thresholds=st.sampled_from([verification.ACCURACY_THRESHOLDS, verification.FAR_THRESHOLDS]),
)
@settings(max_examples=50, deadline=None)
def test_counts_are_strictly_below_each_threshold_also_on_the_grid(quarters, thresholds):
    distances = np.array(quarters) * 0.01  # many lie on the grid itself
    fold = verification._fold_of_pair(distances.size, 10)
    counted = verification._accepted(distances, fold, 10, thresholds)
    expected = [np.sum(distances[fold == index, None] < thresholds, axis=0) for index in range(10)]
    np.testing.assert_array_equal(counted, expected)


def test_first_of_equally_accurate_thresholds_is_taken():
    result = verify_pairs(pairs_at(np.where(alternating(20), 0.505, 3.0)), alternating(20))
    assert result.accuracy == 1.0
    np.testing.assert_allclose(result.fold_threshold, 0.51)


def test_far_threshold_is_interpolated_between_the_first_thresholds_of_each_rate():
    accepted = np.zeros(4000, dtype=np.intp)
    accepted[1000:] = 4  # 4 of 2000 from threshold 1.0 on: FAR 0.002
    assert verification._far_threshold(accepted, 2000) == pytest.approx(0.5)


def test_far_threshold_is_zero_where_the_grid_does_not_reach_the_target():
    assert verification._far_threshold(np.zeros(4000, dtype=np.intp), 2000) == 0.0
    assert verification._far_threshold(np.zeros(4000, dtype=np.intp), 0) == 0.0


def test_folds_of_one_kind_are_left_out_of_the_other_rate():
    is_same = np.arange(100) < 50  # folds 0-4 genuine, folds 5-9 impostors
    distances = np.where(is_same, 0.001, 2.0)
    result = verify_pairs(pairs_at(distances), is_same)
    assert result.tar_at_far_1e3 == 1.0  # not 0.5: five folds have no genuine pair to reject
    assert result.far_reached == 0.0
    assert (result.auc, result.eer) == (1.0, 0.0)


def test_impostors_in_one_fold_only_give_that_threshold_to_the_others_and_zero_to_it():
    is_same = np.arange(100) >= 10
    result = verify_pairs(pairs_at(np.where(is_same, 0.001, 2.0)), is_same)
    assert result.fold_threshold[0] == pytest.approx(0.01)
    assert (result.tar_at_far_1e3, result.far_reached) == (1.0, 0.0)


def test_curve_numbers_come_from_all_pairs():
    embeddings, is_same = reference.made_up_pairs(400, 16, 5)
    result = verify_pairs(embeddings, is_same)
    assert result.auc == pytest.approx(roc_auc_score(is_same, -result.distances), abs=1e-12)
    assert (result.roc.genuine, result.roc.impostors) == (is_same.sum(), (~is_same).sum())


def test_near_duplicates_keep_their_distance():
    embeddings = pairs_at(np.full(20, 1e-20))
    result = verify_pairs(embeddings, alternating(20))
    np.testing.assert_allclose(result.distances, 1e-20, rtol=1e-6)


def test_json_holds_every_number_and_no_big_array():
    embeddings, is_same = reference.made_up_pairs(40, 8)
    content = verify_pairs(embeddings, is_same).to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert set(content) == {
        *("pairs", "folds", "accuracy", "accuracy_std", "fold_accuracy", "fold_threshold"),
        *("tar_at_far_1e3", "tar_at_far_1e3_std", "far_reached", "auc", "eer"),
    }


def spoiled(row, value):
    embeddings, _ = reference.made_up_pairs(20, 8)
    embeddings[row] = value
    return embeddings


@pytest.mark.parametrize(
    ("embeddings", "is_same", "message"),
    [
        (
            pairs_at(np.ones(7)),
            alternating(7),
            "lfw: 7 pairs cannot fill the 10 folds of the protocol; give a set",
        ),
        (pairs_at(np.ones(20)), np.ones(20, dtype=bool), "lfw: all 20 pairs are genuine"),
        (pairs_at(np.ones(20)), np.zeros(20, dtype=bool), "lfw: all 20 pairs are impostor"),
        (pairs_at(np.ones(20))[:-1], alternating(20), "lfw: 39 images"),
        (np.ones(40), alternating(20), "one row for each image"),
        (spoiled(13, np.nan), alternating(20), "lfw: embedding 13 is not finite"),
        (spoiled(39, np.inf), alternating(20), "lfw: embedding 39 is not finite"),
        (spoiled(5, 2.0), alternating(20), "lfw: embedding 5 has length 5.65685 instead of 1"),
        (spoiled(6, 0.0), alternating(20), "lfw: embedding 6 has length 0 instead of 1"),
    ],
)
def test_unfit_input_is_one_line(embeddings, is_same, message):
    with pytest.raises(DataError, match=message) as caught:
        verify_pairs(embeddings, is_same, name="lfw")
    assert "\n" not in str(caught.value)


def test_one_fold_leaves_nothing_to_choose_a_threshold_on():
    with pytest.raises(ValueError, match="at least 2"):
        verify_pairs(pairs_at(np.ones(20)), alternating(20), folds=1)


class Flatten(torch.nn.Module):
    """A backbone whose embedding is a coarse view of the image itself."""

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)


def made_up_pair_set(pairs=20):
    """Random images; the second of a genuine pair is the first with a little noise."""
    random = np.random.default_rng(0)
    images, is_same = [], alternating(pairs)
    for same in is_same:
        first = np.kron(random.integers(0, 256, (4, 4, 3)), np.ones((28, 28, 1)))
        other = first if same else np.kron(random.integers(0, 256, (4, 4, 3)), np.ones((28, 28, 1)))
        for image in (first, other + random.normal(0, 5, first.shape)):
            images.append(cv2.imencode(".png", image.clip(0, 255).astype(np.uint8))[1].tobytes())
    return PairSet("made-up", images, is_same)


def test_a_pair_set_is_embedded_and_verified():
    result = evaluate_pair_set(Flatten(), made_up_pair_set(), device=torch.device("cpu"), batch_size=7)
    assert result.name == "made-up"
    assert result.verification.accuracy == 1.0
    assert result.verification.pairs == 20
    assert result.xnorm > 0
    content = result.to_json()
    assert (content["set"], content["accuracy"], content["xnorm"]) == ("made-up", 1.0, result.xnorm)


def test_a_pair_set_that_cannot_be_verified_fails_before_anything_is_embedded():
    class Refuse(torch.nn.Module):
        def forward(self, x):
            raise AssertionError("embedded")

    with pytest.raises(DataError, match="made-up: 6 pairs cannot fill the 10 folds"):
        evaluate_pair_set(Refuse(), made_up_pair_set(6), device=torch.device("cpu"), batch_size=7)


@pytest.mark.parametrize("flip", [True, False])
def test_features_of_a_pass_are_verified_as_the_pair_set_is(flip):
    pair_set, options = made_up_pair_set(), {"batch_size": 7, "flip": flip}
    alone = evaluate_pair_set(Flatten(), pair_set, device=torch.device("cpu"), **options)
    models = {"flatten": Model(network=Flatten(), device=torch.device("cpu"))}
    features = embed(models, EncodedImages(pair_set.name, pair_set.images), **options)["flatten"]
    assert features.shape[:2] == (40, 1 + flip)
    assert verify_features(features, pair_set).to_json() == alone.to_json()


@pytest.mark.faces
@pytest.mark.slow
def test_a_recogniser_trained_elsewhere_gets_its_known_accuracy_on_lfw():
    pytest.importorskip("onnxruntime", reason="the recogniser is an ONNX file: install the extra 'export'")
    model, pairs = SHARED / "models" / "mobile_512d.onnx", SHARED / "faces" / "celeba_cfp" / "lfw.bin"
    if not (model.is_file() and pairs.is_file()):
        pytest.skip(f"needs {model} and {pairs}")
    pair_set = read_pairs(pairs)
    models = {"mobile": load_model(model, device="cpu", preprocessing=Preprocessing(mean=127.5, scale=128))}
    source = EncodedImages(pair_set.name, pair_set.images)
    features = embed(models, source, batch_size=64, flip=False)["mobile"]
    result = verify_features(features, pair_set).verification
    assert 100 * result.accuracy == pytest.approx(99.18, abs=0.02)  # measured with other code: 99.18 % +- 0.50
    assert 100 * result.accuracy_std == pytest.approx(0.50, abs=0.02)
