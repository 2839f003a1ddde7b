"""`data.held_out`: a training set without some of its people, who are the same everywhere, and those people alone."""

import os
import pickle
import shutil

import numpy as np
import pytest

from facebones.data.folders import open_training_set
from facebones.data.joined_sets import JoinedSets
from facebones.data.record_shards import RecordShards
from facebones.data.record_writer import RecordWriter
from facebones.data.recordio import Header, pack
from facebones.data.training_set import TrainingSet, register_data_format
from facebones.data.wrapped_sets import SomePeople, held_out_only, held_out_people, without_held_out
from facebones.errors import ConfigError


@pytest.fixture
def sets(small_data, tmp_path):
    """Paths of the small data in each form; the shards have no images of their label 1."""
    images, records = small_data.parent / "images", open_training_set(small_data)
    for part, people in (("a", (0, 1)), ("b", (2, 3))):
        for person in people:
            shutil.copytree(images / f"person{person}", tmp_path / part / f"person{person}")
    for number in range(2):
        with RecordWriter(tmp_path / f"web_{number}.rec") as writer:
            for key, index in enumerate(range(number, len(records), 2)):
                encoded, label = records.read(index)
                writer.write(key, pack(Header(float(label + (label > 0)), key), encoded))

    @register_data_format
    class OneFile(TrainingSet):
        name = "one file"

        @classmethod
        def find(cls, path):
            return path.suffix == ".one"

        def __init__(self, path):
            self.path, self.labels = path, records.labels

        def read(self, index):
            return records.read(index)

    (tmp_path / "faces.one").touch()
    return {
        "records": small_data,
        "folder": images,
        "joined": os.pathsep.join([str(tmp_path / "a"), str(tmp_path / "b")]),
        "shards": tmp_path / "web_*.rec",
        "plug-in": tmp_path / "faces.one",
    }


@pytest.mark.parametrize("form", ["records", "folder", "joined", "shards", "plug-in"])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_both_parts_hold_the_images_and_names_of_the_whole(sets, form, share):
    whole = open_training_set(sets[form])
    assert isinstance(whole, {"joined": JoinedSets, "shards": RecordShards}.get(form, TrainingSet))
    parts = without_held_out(whole, share), held_out_only(whole, share)
    assert [part.num_identities for part in parts] == [4 - 4 * share, 4 * share]
    assert np.array_equal(np.sort(np.concatenate([part.kept for part in parts])), np.arange(28))
    assert not {*parts[0].people.tolist()} & {*parts[1].people.tolist()}
    sizes = whole.image_sizes()
    for part in parts:
        assert sorted({*part.labels.tolist()}) == list(range(part.num_identities)) and (np.diff(part.kept) > 0).all()
        for index, number in enumerate(part.kept.tolist()):
            encoded, label = whole.read(number)
            assert part.read(index) == (encoded, part.labels[index])
            assert part.identity_name(part.labels[index]) == whole.identity_name(label)
            assert part.describe(index) == whole.describe(number)
        for key, found in part.image_sizes().items():
            assert np.array_equal(found, sizes[key][part.kept])
        assert part.fingerprint() != whole.fingerprint()
    assert (
        parts[0]
        .notes[-1]
        .endswith(
            f"data.held_out {share:g}: {4 * share:.0f} of 4 people, with {28 * share:.0f} images,"
            f" {'is' if share == 0.25 else 'are'} not trained on"
        )
    )


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_every_form_of_the_same_data_holds_out_the_same_images(sets, share):
    parts = {form: without_held_out(open_training_set(path), share) for form, path in sets.items()}
    images = {form: [part.read(index)[0] for index in range(len(part))] for form, part in parts.items()}
    del parts["shards"]  # in another order
    assert sorted(images.pop("shards")) == sorted(images["records"])
    assert all(found == images["records"] for found in images.values())
    assert len({part.fingerprint()["labels_sha256"] for part in parts.values()}) == 1
    assert len({part.fingerprint()["image_sample"] for part in parts.values()}) == 1


def test_what_is_read_soon_is_announced_by_the_numbers_of_the_whole(sets, monkeypatch):
    whole, announced = open_training_set(sets["records"]), []
    part = pickle.loads(pickle.dumps(SomePeople(whole, np.array([0, 2]))))
    monkeypatch.setattr(type(whole), "read_ahead_some", lambda _, indices: announced.append(indices.tolist()))
    assert part.kept.tolist() == [*range(7), *range(14, 21)]
    part.read_ahead(5, 9)
    part.read_ahead_some(np.array([0, 8, 13]))
    assert announced == [[5, 6, 14, 15], [0, 15, 20]]


def test_who_is_held_out_depends_on_both_numbers_alone():
    """Also on another machine and in another version: a study may be continued there."""
    assert held_out_people(20, 0.25).tolist() == [2, 4, 6, 13, 19]
    assert [len(held_out_people(1000, share)) for share in (0, 1e-9, 0.1, 0.9)] == [0, 1, 100, 900]
    assert {*held_out_people(1000, 0.1)} < {*held_out_people(1000, 0.2)}


def test_nobody_held_out_is_the_set_itself(small_data):
    data = open_training_set(small_data)
    assert without_held_out(data, 0.0) is data and not len(held_out_only(data, 0.0))


@pytest.mark.parametrize(("people", "share"), [(1, 0.1), (2, 0.1), (3, 0.5), (4, 0.9)])
def test_two_people_must_remain(people, share):
    with pytest.raises(ConfigError, match=rf"^data.held_out {share}: of {people} (person|people), [01] would remain"):
        held_out_people(people, share)
