"""Where the face detector's file is looked for, and how it is fetched: checked by its digest, or one line."""

import hashlib
import io
import urllib.error

import pytest

from facebones.cli.main import main
from facebones.datatools import detector_file
from facebones.datatools.detector_file import detector_path, download_detector, open_detector
from facebones.errors import CheckpointError

CONTENT = b"the detector"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FACEBONES_DETECTOR", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def zoo(monkeypatch):
    """The zoo as far as it matters: each fetch is noted, and answered by `zoo.content` or an error."""

    class Zoo:
        content, fetched = CONTENT, []

        def open(self, address, timeout):
            self.fetched.append((address, timeout))
            if isinstance(self.content, Exception):
                raise self.content
            return io.BytesIO(self.content)

    zoo = Zoo()
    zoo.fetched = []
    monkeypatch.setattr("urllib.request.urlopen", zoo.open)
    monkeypatch.setattr(detector_file, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return zoo


def test_it_is_fetched_once_into_the_cache(zoo, cache, capsys):
    assert main(["download", "detector"]) == 0
    path = cache / "facebones" / "face_detection_yunet_2023mar.onnx"
    assert path == detector_path() and path.read_bytes() == CONTENT
    assert str(path) in capsys.readouterr().out
    ((address, timeout),) = zoo.fetched
    assert address.startswith("https://") and timeout > 0
    assert download_detector() == path and len(zoo.fetched) == 1
    path.write_bytes(b"cut")
    assert download_detector().read_bytes() == CONTENT and len(zoo.fetched) == 2


def test_another_place(zoo, cache, tmp_path, capsys):
    assert main(["download", "detector", "--output", str(tmp_path / "new" / "d.onnx")]) == 0
    assert (tmp_path / "new" / "d.onnx").read_bytes() == CONTENT and not cache.exists()
    assert main(["download", "detector", "--output", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err and len(zoo.fetched) == 1


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (urllib.error.URLError(OSError(-2, "Name or service not known")), "Name or service not known"),
        (urllib.error.HTTPError("x", 404, "Not Found", None, None), "Not Found"),
        (TimeoutError("timed out"), "timed out"),
        (b"<html>sign in first</html>", "sent 26 bytes that are not the face detector"),
    ],
)
def test_where_it_cannot_be_fetched_one_line_says_where_to_put_it(zoo, cache, capsys, answer, told):
    zoo.content = answer
    assert main(["download", "detector"]) == 1
    line = capsys.readouterr().err
    assert told in line and line.count("\n") == 1
    assert f"save {detector_file.ADDRESS} and put it at {detector_path()}" in line
    assert not cache.exists()


def test_it_is_looked_for_by_path_by_variable_and_in_the_cache(green_detector, monkeypatch):
    assert open_detector(green_detector, face="central").face == "central"
    with pytest.raises(CheckpointError, match="no face detector: run `facebones download detector`, or save https:"):
        open_detector()
    detector_path().parent.mkdir(parents=True)
    detector_path().write_bytes(green_detector.read_bytes())
    with pytest.raises(CheckpointError, match="not the published file; run `facebones download detector` again"):
        open_detector()
    monkeypatch.setattr(detector_file, "SHA256", hashlib.sha256(green_detector.read_bytes()[:232_590]).hexdigest())
    found = open_detector()
    assert open_detector(found) is found
    monkeypatch.setenv("FACEBONES_DETECTOR", "elsewhere.onnx")
    with pytest.raises(CheckpointError, match=r"elsewhere.onnx: cannot be read"):
        open_detector()


@pytest.mark.faces
def test_the_digest_is_that_of_a_published_file(yunet):
    """The zoo's own record of its file of smaller weights; of the other file there is no copy here."""
    assert hashlib.sha256(yunet.read_bytes()).hexdigest() == (
        "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10"
    )
    open_detector(yunet)
