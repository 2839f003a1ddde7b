"""The plot of a profile: every name readable, also where networks lie on one another."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.text import Annotation

from facebones.errors import DataError
from facebones.reporting.plots.labels import LONGEST_LABEL, overlaps, place_labels
from facebones.reporting.plots.profile import plot_profile

COSTS = json.loads((Path(__file__).parents[1] / "golden" / "backbones.json").read_text())["backbones"]
REGISTRY = [
    {
        "name": name,
        "family": name.partition("face")[0],
        "macs": int(cost["macs_millions"] * 1e6),
        "parameters": cost["parameters"],
        "latency_p50_ms": 2 + cost["macs_millions"] / 20,
    }
    for name, cost in COSTS.items()
]


def draw(drawn, path, rows):
    """The figure as it is written."""
    plot_profile(rows, [path], "cpu: a processor")
    return drawn[0]


def names_and_markers(axes):
    """Texts, their boxes and the markers' boxes (N, 4), as drawn, in pixels."""
    texts = [child for child in axes.get_children() if isinstance(child, Annotation)]
    labels = [super(Annotation, text).get_window_extent().extents for text in texts]
    markers = []
    for collection in axes.collections:
        centre = axes.transData.transform(collection.get_offsets()[0])
        path = collection.get_paths()[0].vertices * np.sqrt(collection.get_sizes()[0]) * axes.figure.dpi / 72
        markers.append([*(centre + path.min(axis=0)), *(centre + path.max(axis=0))])
    return [text.get_text() for text in texts], np.array(labels), np.array(markers)


@pytest.mark.slow
def test_no_name_of_the_registry_lies_on_another_or_on_a_marker(tmp_path, drawn):
    figure = draw(drawn, tmp_path / "profile.png", REGISTRY)
    assert (tmp_path / "profile.png").stat().st_size > 10_000
    assert len(figure.axes) == 2
    for axes in figure.axes:
        names, labels, markers = names_and_markers(axes)
        assert names == list(COSTS)
        assert len(markers) == len(names)
        shared = overlaps(labels, labels)
        np.fill_diagonal(shared, 0)
        assert not shared.any()
        assert not overlaps(labels, markers).any()
        left, bottom, right, top = axes.bbox.extents
        assert (labels >= [left, bottom, left, bottom]).all() and (labels <= [right, top, right, top]).all()


@pytest.mark.parametrize("spread", [0.0, 5.0, 100.0])
def test_labels_of_a_crowd_are_apart(spread):
    draws = np.random.default_rng(0)
    corners = 400 + draws.normal(0, spread, (30, 2)) if spread else np.full((30, 2), 400.0)
    markers = np.concatenate([corners, corners + 10], axis=1)
    sizes = np.stack([draws.uniform(40, 150, 30), np.full(30, 14.0)], axis=1)
    labels = place_labels(markers, sizes, (0, 0, 1000, 900))
    assert np.allclose(labels[:, 2:] - labels[:, :2], sizes)
    assert labels.min() >= 0 and labels[:, 2].max() <= 1000 and labels[:, 3].max() <= 900
    shared = overlaps(labels, labels)
    np.fill_diagonal(shared, 0)
    assert not shared.any()
    assert not overlaps(labels, markers).any()


def test_a_lone_label_stands_at_its_marker_and_a_full_plot_still_has_all():
    (label,) = place_labels(np.array([[50.0, 50, 60, 60]]), np.array([[30.0, 10]]), (0, 0, 200, 200))
    assert overlaps(label[None], np.array([[50.0, 50, 60, 60]]), gap=6).any()
    crowd = np.tile([5.0, 5, 8, 8], (9, 1))
    assert place_labels(crowd, np.tile([30.0, 10], (9, 1)), (0, 0, 40, 20)).shape == (9, 4)


def test_what_is_not_known_is_left_out_and_long_paths_are_shortened(tmp_path, drawn):
    path = "runs/" * 20 + "mobilefacenet.onnx"
    unknown = {"name": path, "family": "onnx", "macs": None, "parameters": 5, "latency_p50_ms": 3.0}
    figure = draw(drawn, tmp_path / "profile.pdf", [REGISTRY[5], unknown])
    assert (tmp_path / "profile.pdf").read_bytes()[:5] == b"%PDF-"
    by_macs, by_parameters = [names_and_markers(axes)[0] for axes in figure.axes]
    assert by_macs == [REGISTRY[5]["name"]]
    shown = by_parameters[1]
    assert len(shown) == LONGEST_LABEL and shown.startswith("...") and path.endswith(shown[3:])


def test_a_plot_of_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match="no networks to draw"):
        plot_profile([], [tmp_path / "profile.png"], "")
    assert not list(tmp_path.iterdir())
