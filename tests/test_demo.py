import pytest

from facebones import demo as module
from facebones.cli import main

PICTURES = ("faces.png", "training.png", "roc.png")


@pytest.mark.slow
def test_the_demo_leaves_a_table_and_pictures_and_does_nothing_twice(tmp_path, monkeypatch, capsys):
    for name, number in (("IDENTITIES", 8), ("IMAGES_PER_IDENTITY", 8), ("PAIRS", 20)):
        monkeypatch.setattr(module, name, number)
    words = ["demo", "--output", str(tmp_path / "demo"), "--device", "cpu"]
    assert main(words) == 0
    first = capsys.readouterr()
    for backbone in module.BACKBONES:
        assert f"training {backbone} on 64 images of 8 identities" in first.err
        assert backbone in first.out
    assert "synthetic_profile: accuracy" in first.out
    assert all((tmp_path / "demo" / name).read_bytes().startswith(b"\x89PNG") for name in PICTURES)

    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
    assert main(words) == 0
    second = capsys.readouterr()
    assert "training shufflefacenet" not in second.err and second.out == first.out
    assert weights == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
