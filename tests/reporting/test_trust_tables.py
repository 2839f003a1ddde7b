"""Thresholds, rates by group, quality and overlap in a report; their real files are read where they are written."""

import json

import pytest

from facebones.errors import DataError
from facebones.reporting.answer import Answer
from facebones.reporting.load import load_results
from facebones.reporting.page import page_text
from facebones.reporting.tables import report_tables

CALIBRATION = {
    "format": 1,
    "model": {"backbone": "mbf"},
    "sets": [{"set": "lfw", "people": 5749}],
    "thresholds": [
        {
            **{"false_match_rate": 0.001, "threshold": 0.39271, "confidence": 0.95, "upper_bound": 0.00099},
            **{"accepted": 1, "impostors": 3000, "true_accept_rate": 0.965, "interval": {"low": 0.957, "high": 0.971}},
        }
    ],
    "refused": {"0.0001": "that takes 29,956 pairs or more"},
}
OVERLAP = {
    "format": 1,
    "training": {"data": "faces"},
    "people": {"model": "r50.onnx", "cut_off": 0.5, "false_rate": 0.01},
    "sets": [{"set": "<b>lfw</b>", "images": 12_000, "found": {"identical": 1, "near": 2, "person": 3_000}}],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.calibration.json").write_text(json.dumps(CALIBRATION))
    (tmp_path / "overlap.json").write_text(json.dumps(OVERLAP))
    return tmp_path


def test_thresholds_and_overlap_stand_in_a_section_of_their_own(folder):
    results = load_results(folder)
    thresholds, overlap = results.trust
    assert [cell.text for cell in thresholds.rows[0]] == [
        *("0.001", "0.3927", "1 of 3,000", "0.00099", "96.50 % [95.70, 97.10]")
    ]
    assert "95% confidence. No threshold promises 0.0001: that takes 29,956 pairs or more." in thresholds.note
    assert [cell.text for cell in overlap.rows[0]] == ["<b>lfw</b>", "12,000", "1", "2", "3,000"]
    page = page_text(results, report_tables(results), Answer(sentences=[], rules=[]))
    assert 'href="#trust"' in page and "&lt;b&gt;lfw" in page and "<b>lfw" not in page


@pytest.mark.parametrize("name", ["model.calibration.json", "groups.json", "quality.json", "overlap.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 2}', '{"format": 1, "sets": [[]], "people": 3}'])
def test_a_damaged_file_is_one_line(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=name.replace(".", r"\.")) as caught:
        load_results(tmp_path)
    assert "\n" not in str(caught.value)
