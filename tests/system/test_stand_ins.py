"""A pointer or a web page instead of a large file is reported as such by every reader of large files."""

from pathlib import Path

import pytest

from facebones.backbones.weights import load_backbone
from facebones.data.folders import open_training_set
from facebones.data.pair_bins import read_pairs
from facebones.errors import FaceBonesError
from facebones.onnx.backbone import OnnxBackbone
from facebones.system.checkpoint import load_checkpoint

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 174664123\n" % (b"ab" * 32)
STAND_INS = {
    "Git LFS": (POINTER, "is a Git LFS pointer, not the file itself; fetch the file by `git lfs pull`"),
    "git-annex": (b"/annex/objects/SHA256E-s174664--0a.pth\n", "is a git-annex pointer"),
    "page": (b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>", "is a web page"),
    "page with blanks": (b"\xef\xbb\xbf\n\n  <html lang=en>" + bytes(2000), "is a web page"),
    "error of a bucket": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
}
READERS = {
    "x.pth": lambda path: load_backbone(path, "mobilefacenet"),
    "x.safetensors": lambda path: load_backbone(path, "mobilefacenet"),
    "last.pt": load_checkpoint,
    "x.onnx": OnnxBackbone,
    "lfw.bin": read_pairs,
    "train.rec": lambda path: open_training_set(str(path)),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(("content", "message"), STAND_INS.values(), ids=STAND_INS)
def test_they_are_named(tmp_path: Path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FaceBonesError, match=message) as error:
        READERS[name](tmp_path / name)
    assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)


def test_an_index_is_named_too(tmp_path: Path, small_data):
    (tmp_path / "train.rec").write_bytes((small_data / "train.rec").read_bytes())
    (tmp_path / "train.idx").write_bytes(POINTER)
    with pytest.raises(FaceBonesError, match=r"train\.idx: is a Git LFS pointer"):
        open_training_set(str(tmp_path / "train.rec"))
