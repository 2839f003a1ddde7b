"""Pairs drawn from a folder of people: balanced, without a person in two folds, and the same for the same seed."""

import numpy as np
import pytest

from facebones.cli.main import main
from facebones.data.pair_lists import read_pair_list
from facebones.datatools.sample_pairs import sample_pairs, write_sampled_pairs
from facebones.errors import ConfigError, DataError


def labels(counts):
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize(
    ("counts", "pairs"),
    [
        ([2] * 20, 20),
        ([3] * 40, 200),
        ([500] + [3] * 39, 200),
        ([1] * 40 + [4] * 20, 240),
        ([30] * 25, 2000),
        ([2] * 20, 20),
        ([2, 1] * 10, 20),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_folds_are_balanced_and_share_nobody(counts, pairs, seed):
    person = labels(counts)
    drawn = sample_pairs(person, pairs, seed, "faces")
    assert len({frozenset(pair[:2]) for pair in drawn}) == len(drawn) == pairs
    same = np.array([pair.same for pair in drawn])
    images = np.array([pair[:2] for pair in drawn])
    np.testing.assert_array_equal(person[images[:, 0]] == person[images[:, 1]], same)
    assert (images[:, 0] != images[:, 1]).all()
    assert (same.reshape(10, -1) == ([True] * (pairs // 20) + [False] * (pairs // 20))).all()
    folds = [set(person[fold].ravel().tolist()) for fold in images.reshape(10, -1, 2)]
    assert sum(map(len, folds)) == len(set.union(*folds))


def test_the_seed_decides():
    person = labels([4] * 40)
    first = sample_pairs(person, 200, 3, "faces")
    assert first == sample_pairs(person, 200, 3, "faces") != sample_pairs(person, 200, 4, "faces")


def test_somebody_with_many_photos_does_not_stand_for_all():
    person = labels([200] + [5] * 39)
    drawn = sample_pairs(person, 400, 0, "faces")
    share = np.mean([0 in person[list(pair[:2])] for pair in drawn])
    assert share < 0.06  # one of 40 people: 1/40 of the genuine pairs, 2/40 of the impostor pairs, or about so


def test_as_many_as_there_are_can_be_drawn():
    person = labels([3] * 20)  # two people a fold: six genuine pairs, nine impostor pairs
    assert len(sample_pairs(person, 120, 0, "faces")) == 120
    with pytest.raises(ConfigError, match="140 pairs are more than its people give in 10 folds; give --pairs 120"):
        sample_pairs(person, 140, 0, "faces")


@pytest.mark.parametrize(
    ("counts", "pairs", "error", "message"),
    [
        ([9] * 19, 20, DataError, "faces: 19 people; 10 folds without a common person need 20"),
        ([1] * 30, 20, ConfigError, "10 people or more must have two images"),
        ([9] * 20, 0, ConfigError, "pairs: 0 is not a multiple of 20"),
        ([9] * 20, 50, ConfigError, "pairs: 50 is not a multiple of 20"),
        ([9] * 20, 2 * 10**6, ConfigError, "from 20 to 1000000"),
    ],
)
def test_what_cannot_be_drawn(counts, pairs, error, message):
    with pytest.raises(error, match=message):
        sample_pairs(labels(counts), pairs, 0, "faces")


@pytest.fixture
def people(tmp_path):
    for person in range(20):
        (tmp_path / "faces" / f"a person {person}").mkdir(parents=True)
        for number in range(3):
            (tmp_path / "faces" / f"a person {person}" / f"{number}.jpg").write_bytes(f"{person}/{number}".encode())
    return tmp_path / "faces"


def test_the_list_is_read_as_it_was_drawn(people, tmp_path, capsys):
    assert main(["data", "pairs", str(people), str(tmp_path / "list.txt"), "--pairs", "40", "--seed", "7"]) == 0
    assert "40 pairs, half of them genuine, of " in capsys.readouterr().out
    pairs = read_pair_list(tmp_path / "list.txt", people)
    owners = [image.split(b"/")[0] for image in pairs.images]
    assert [first == second for first, second in zip(owners[::2], owners[1::2], strict=True)] == pairs.is_same.tolist()
    with pytest.raises(DataError, match=r"list\.txt: exists already"):
        write_sampled_pairs(people, tmp_path / "list.txt", pairs=40)


@pytest.mark.parametrize("name", [" 0.jpg", "a\tb.jpg", "a\nb.jpg"])
def test_names_that_a_list_cannot_hold_are_refused(people, tmp_path, name):
    for person in people.iterdir():
        for image in sorted(person.iterdir()):
            image.rename(person / image.name.replace("0.jpg", name))
    if name.startswith(" "):
        for person in people.iterdir():
            person.rename(people / f" {person.name}")
    with pytest.raises(DataError, match="a pair list cannot hold this name; rename the file"):
        write_sampled_pairs(people, tmp_path / "list.txt", pairs=120)
    assert not (tmp_path / "list.txt").exists()


def test_names_that_begin_with_a_quote_come_back_from_the_list(tmp_path):
    for person in range(40):
        for image in range(2):
            place = tmp_path / "faces" / f'"{person}", "Ann" Lee' / f"{image}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(f"{person} {image}".encode())
    write_sampled_pairs(tmp_path / "faces", tmp_path / "pairs.txt", pairs=20, seed=0)
    pairs = read_pair_list(tmp_path / "pairs.txt", tmp_path / "faces")
    people = [image.split()[0] for image in pairs.images]
    assert [one == other for one, other in zip(people[::2], people[1::2], strict=True)] == pairs.is_same.tolist()
