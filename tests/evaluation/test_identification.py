"""Identification 1:N: cases worked by hand, plain counting, and the edges."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facebones.data.ijb_lists import SubjectList
from facebones.errors import DataError
from facebones.evaluation import ijb_identification as identification
from facebones.evaluation.ijb_identification import Searches, identify, open_set_result, search


def listed(*pairs):
    """A list of (template, subject)."""
    templates, subjects = zip(*pairs, strict=True)
    return SubjectList(template=np.array(templates, np.int32), subject=np.array(subjects, np.int64))


def setup(scores, gallery, probes):
    """Templates whose dot products are the scores: gallery templates are axes, probe templates rows of scores.

    Args:
        scores: (probes, gallery templates).
        gallery: subject of each gallery template.
        probes: subject of each probe.
    """
    scores = np.array(scores, dtype=np.float32)
    templates = np.concatenate([np.eye(len(gallery), dtype=np.float32), scores])
    gallery_list = listed(*enumerate(gallery))
    return templates, gallery_list, listed(*enumerate(probes, len(gallery)))


def test_ranks_by_hand():
    found = search(
        *setup(
            [
                [0.9, 0.1, 0.2],  # subject 11 first
                [0.9, 0.1, 0.2],  # subject 22 last
                [0.5, 0.3, 0.4],  # subject 33 second
                [0.7, 0.8, 0.9],  # in no gallery
            ],
            gallery=[11, 22, 33],
            probes=[11, 22, 33, 44],
        )
    )
    assert found.rank_of_probe.tolist() == [1, 3, 2, 0]
    assert found.is_mated.tolist() == [True, True, True, False]
    np.testing.assert_array_equal(found.own_score, np.float32([0.9, 0.1, 0.4, -np.inf]))
    np.testing.assert_array_equal(found.top_score, np.float32([0.9, 0.9, 0.5, 0.9]))
    assert found.subjects == 3


@pytest.mark.parametrize(
    ("row", "rank"),
    [([0.5, 0.5, 0.1], 2), ([0.5, 0.5, 0.5], 3), ([0.5, 0.1, 0.1], 1), ([0.1, 0.1, 0.9], 3), ([-0.0, 0.0, -0.1], 2)],
)
def test_other_subjects_with_the_same_score_rank_before(row, rank):
    for column in range(3):  # wherever it stands in the gallery
        order = np.roll(np.arange(3), column)
        found = search(*setup([np.array(row)[order]], gallery=np.array([1, 2, 3])[order], probes=[1]))
        assert found.rank_of_probe.tolist() == [rank]


def test_several_templates_of_a_subject_count_as_their_best():
    gallery = [2, 1, 2, 1, 3]
    scores = [
        [0.8, 0.1, 0.7, 0.9, 0.0],  # the two templates of subject 2 are one competitor
        [0.8, 0.2, 0.9, 0.3, 0.1],
        [0.5, 0.5, 0.5, 0.5, 0.4],
    ]
    found = search(*setup(scores, gallery, probes=[1, 3, 2]))
    assert found.rank_of_probe.tolist() == [1, 3, 2]
    assert found.subjects == 3
    np.testing.assert_array_equal(found.own_score, np.float32([0.9, 0.1, 0.5]))


def searches(mated, impostors):
    """Searches with the given (rank, own score) of the mated ones and top scores of the impostors."""
    rank = [rank for rank, _ in mated] + [0] * len(impostors)
    own = [score for _, score in mated] + [-np.inf] * len(impostors)
    top = [max(score, 0.95) if rank > 1 else score for rank, score in mated] + list(impostors)
    return Searches(
        subjects=5,
        rank_of_probe=np.array(rank, np.int32),
        own_score=np.array(own, np.float32),
        top_score=np.array(top, np.float32),
    )


MATED = [(1, 0.9), (1, 0.6), (1, 0.5), (1, 0.3), (2, 0.93)]
IMPOSTORS = [0.8, 0.7, 0.6, 0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.0]


@pytest.mark.parametrize(
    ("fpir", "tpir", "reached"),
    [
        (0.1, 1 / 5, 0.1),  # 0.8 is accepted, 0.7 is not: of the subjects found first only 0.9
        (0.2, 1 / 5, 0.2),  # 0.6 must stay out, and with it the subject found with 0.6
        (0.3, 3 / 5, 0.3),  # down to just above 0.4
        (0.39, 3 / 5, 0.3),
        (0.4, 4 / 5, 0.4),
        (0.5, 4 / 5, 0.5),
        (0.7, 4 / 5, 0.5),  # three searches have 0.1: with them it would be 0.8
        (0.8, 4 / 5, 0.8),
        (1.0, 4 / 5, 1.0),  # rank 2 is never a true positive, whatever its score
    ],
)
def test_open_set_by_hand(fpir, tpir, reached):
    result = open_set_result(searches(MATED, IMPOSTORS), [fpir])
    (rate,) = result.rates
    assert (rate.tpir, rate.fpir_reached, rate.unmeasurable) == (pytest.approx(tpir), pytest.approx(reached), None)
    assert (result.mated, result.impostors) == (5, 10)
    accepted = result.searches.rank_of_probe == 1
    if rate.threshold is not None:
        accepted &= result.searches.own_score >= rate.threshold
    assert accepted.sum() / 5 == pytest.approx(tpir)
    assert not accepted[4:].any()
    if rate.threshold is not None:
        assert np.mean(np.float32(IMPOSTORS) >= rate.threshold) == pytest.approx(reached)


def test_det_by_hand():
    result = open_set_result(searches([(1, 0.9), (1, 0.5), (2, 0.7), (1, 0.6)], [0.6, 0.4]))
    np.testing.assert_allclose(result.det_fpir, [0, 0.5, 0.5, 1.0])
    np.testing.assert_allclose(result.det_fnir, [0.75, 0.5, 0.25, 0.25])


@pytest.mark.parametrize(
    ("mated", "impostors", "fpir", "reason"),
    [
        (MATED, IMPOSTORS, 0.01, "10 impostor searches measure no FPIR below 1.00e-01"),
        (MATED, IMPOSTORS[1:], 0.1, "9 impostor searches measure no FPIR below 1.11e-01"),
        (MATED, [], 0.1, "there are no impostor searches"),
        ([], IMPOSTORS, 0.1, "there are no searches for a subject in the gallery"),
    ],
)
def test_what_cannot_be_measured_says_so(mated, impostors, fpir, reason):
    result = open_set_result(searches(mated, impostors), [fpir])
    (rate,) = result.rates
    assert (rate.tpir, rate.fpir_reached, rate.threshold, rate.unmeasurable) == (None, None, None, reason)


@pytest.mark.parametrize("fpir", [-0.1, 1.1, np.nan])
def test_a_target_that_is_no_rate_is_refused(fpir):
    with pytest.raises(ValueError, match="is not a rate"):
        open_set_result(searches(MATED, IMPOSTORS), [fpir])


def small_set():
    """Two galleries of two subjects; a probe of each, and one of nobody."""
    scores = [
        # G1: 1, 2; G2: 3, 4
        [0.9, 0.1, 0.2, 0.3],  # 1: first in both
        [0.2, 0.5, 0.6, 0.1],  # 2: first in G1, second together
        [0.1, 0.2, 0.4, 0.5],  # 3: second in G2 and together
        [0.3, 0.4, 0.2, 0.1],  # 4: last
        [0.8, 0.7, 0.1, 0.0],  # nobody
    ]
    templates, gallery, probes = setup(scores, [1, 2, 3, 4], [1, 2, 3, 4, 9])
    halves = {
        name: SubjectList(template=gallery.template[half], subject=gallery.subject[half])
        for name, half in (("G1", slice(0, 2)), ("G2", slice(2, 4)))
    }
    return templates, halves, probes


def test_galleries_together_and_alone_by_hand():
    result = identify(*small_set(), ranks=(1, 2, 4), fpir_targets=(1 / 3, 0.1))
    assert result.rank_of_probe.tolist() == [1, 2, 2, 4, 0]
    assert (result.probes, result.searched, result.closed_set.subjects) == (5, 4, 4)
    assert result.rank_rates == {1: 0.25, 2: 0.75, 4: 1.0}
    assert result.cmc.tolist() == [0.25, 0.75, 0.75, 1.0]
    first, second = result.open_set["G1"], result.open_set["G2"]
    assert first.searches.rank_of_probe.tolist() == [1, 1, 0, 0, 0]
    assert second.searches.rank_of_probe.tolist() == [0, 0, 2, 2, 0]
    # G1: impostor searches reach 0.2, 0.4 and 0.8; one may pass, so the threshold lies just above 0.4.
    assert (first.rates[0].tpir, first.rates[0].fpir_reached) == (1.0, pytest.approx(1 / 3))
    assert second.rates[0].tpir == 0.0
    assert result.mean_tpir == {1 / 3: 0.5, 0.1: None}


def test_json_is_finite():
    content = json.loads(json.dumps(identify(*small_set()).to_json(), allow_nan=False))
    assert content["rank_rates"] == {"1": 0.25, "5": 1.0, "10": 1.0}
    assert content["mean_tpir"] == [{"fpir": 0.1, "tpir": None}, {"fpir": 0.01, "tpir": None}]
    assert content["galleries"]["G1"]["impostors"] == 3


def test_nothing_to_find_is_refused():
    templates, galleries, probes = small_set()
    strangers = SubjectList(template=probes.template, subject=probes.subject + 100)
    with pytest.raises(DataError, match="faces: no probe's subject is in a gallery"):
        identify(templates, galleries, strangers, name="faces")
    with pytest.raises(DataError, match="faces: no gallery"):
        identify(templates, {}, probes, name="faces")


@st.composite
def searches_to_do(draw):
    """Galleries with several templates of a subject and many equal scores."""
    gallery = draw(st.lists(st.integers(0, 5), min_size=1, max_size=9))
    probes = draw(st.lists(st.integers(0, 7), min_size=1, max_size=12))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    return random.integers(0, draw(st.sampled_from([2, 5, 1000])), (len(probes), len(gallery))) / 8, gallery, probes


@given(searches_to_do(), st.sampled_from([0.1, 0.25, 0.5, 0.9, 1.0]))
@settings(deadline=None)
def test_agrees_with_plain_counting(case, fpir):
    scores, gallery, probes = case
    found = search(*setup(scores, gallery, probes))
    alarms, hits, mated = [], [], 0
    for place, subject in enumerate(probes):
        best = {
            other: max(s for s, whose in zip(scores[place], gallery, strict=True) if whose == other)
            for other in gallery
        }
        if subject not in best:
            assert found.rank_of_probe[place] == 0
            alarms.append(max(best.values()))
            continue
        rank = 1 + sum(score >= best[subject] for other, score in best.items() if other != subject)
        assert found.rank_of_probe[place] == rank
        mated += 1
        hits += [best[subject]] if rank == 1 else []
    (rate,) = open_set_result(found, [fpir]).rates
    if not mated or not alarms or fpir < 1 / len(alarms):
        assert rate.tpir is None
        return
    allowed = [t for t in sorted({*alarms, *hits, 10**9}) if sum(a >= t for a in alarms) / len(alarms) <= fpir]
    assert rate.tpir == sum(hit >= allowed[0] for hit in hits) / mated
    assert rate.fpir_reached <= fpir


def test_blocks_do_not_matter(monkeypatch):
    random = np.random.default_rng(0)
    case = setup(random.integers(0, 9, (50, 20)) / 8, random.integers(0, 9, 20), random.integers(0, 12, 50))
    whole = search(*case)
    monkeypatch.setattr(identification, "BLOCK_PROBES", 7)
    parts = search(*case)
    for name in ("rank_of_probe", "own_score", "top_score"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
