"""Faults of a plug-in are one line that names its file, and end with status 1 or 2."""

import pytest

from facebones.cli.main import main
from facebones.synthetic.dataset import synthesize

CALLBACK = """
import facebones
from facebones.training.callbacks import Callback

@facebones.register_callback
class Breaks(Callback):
    def on_end(self, run, result):
        return 1 / 0
"""
HEAD = """
import torch
import facebones

@facebones.register_head("no_head")
class NoHead(torch.nn.Module):
    def __init__(self, options, num_classes, embedding_size, shard=None):
        super().__init__()
"""
LABELS = """
import numpy as np
import facebones
from facebones.data.training_set import TrainingSet

@facebones.register_data_format
class Negative(TrainingSet):
    name = "negative"

    @classmethod
    def find(cls, path):
        return path.suffix == ".neg"

    @classmethod
    def open(cls, path):
        return cls(path)

    def __init__(self, path):
        self.path, self.labels = path, np.array([0, 1, -1])

    def read(self, index):
        return b""
"""
TEXT = LABELS.replace("[0, 1, -1]", "[0, 1] * 8").replace('return b""', 'return "image.jpg", self.labels[index]')


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugin") / "faces"
    synthesize(folder, identities=4, images_per_identity=4, pairs=20, workers=1)
    return folder


def train(tmp_path, data, code, *words):
    (tmp_path / "mine.py").write_text(code)
    options = ["--import", str(tmp_path / "mine.py"), "--data", str(data), "--output", str(tmp_path / "run")]
    small = ["--device", "cpu", "--epochs", "1", "--batch-size", "8", "--data.workers", "0", "--validation.sets", "[]"]
    return main(["train", "demo", "--backbone", "study_mixfacenet_xs", *options, *small, *words])


def only_error(capsys):
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("facebones: ")]
    return line


def test_a_plugin_that_raises_in_the_middle_is_one_line_with_its_place(tmp_path, faces, capsys):
    assert train(tmp_path, faces, CALLBACK) == 1
    line = only_error(capsys)
    assert f"{tmp_path / 'mine.py'}, line 8" in line and "ZeroDivisionError" in line


def test_a_head_that_is_none_is_refused_before_the_run(tmp_path, faces, capsys):
    assert train(tmp_path, faces, HEAD, "--head.name", "no_head") == 2
    assert "facebones.heads.partial_fc.Head" in only_error(capsys)
    assert not (tmp_path / "run").exists()


def test_labels_of_a_data_format_are_checked(tmp_path, capsys):
    (tmp_path / "x.neg").touch()
    assert train(tmp_path, tmp_path / "x.neg", LABELS) == 2
    assert "negative" in only_error(capsys)


def test_a_data_format_that_returns_no_bytes_is_blamed_and_not_the_image(tmp_path, capsys):
    (tmp_path / "x.neg").touch()
    assert train(tmp_path, tmp_path / "x.neg", TEXT, "--data.max_unreadable", "4") == 2
    assert "str instead of an image's bytes" in only_error(capsys)
