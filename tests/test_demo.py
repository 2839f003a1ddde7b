import pytest

from facebones.cli.main import main
from facebones.study import demo as module
from facebones.study.study import load_study


@pytest.mark.slow
def test_the_demo_leaves_a_report_and_trains_nothing_twice(tmp_path, monkeypatch, capsys):
    for name, number in (("IDENTITIES", 8), ("IMAGES_PER_IDENTITY", 8), ("PAIRS", 20)):
        monkeypatch.setattr(module, name, number)
    output = tmp_path / "demo"
    words = ["demo", "--output", str(output), "--device", "cpu"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert all(backbone in first for backbone in load_study("demo").backbones)
    assert first.splitlines()[-1] == f"report: {output / 'study' / 'report' / 'report.html'}"
    assert (output / "study" / "report" / "report.html").is_file()
    assert (output / "faces.png").read_bytes().startswith(b"\x89PNG")

    weights = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
    assert len(weights) == 6
    assert main(words) == 0
    assert capsys.readouterr().out == first
    assert weights == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}


def test_the_demo_refuses_an_unknown_device_before_it_draws(tmp_path, capsys):
    output = tmp_path / "demo"
    assert main(["demo", "--output", str(output), "--device", "tpu"]) == 2
    assert "tpu" in capsys.readouterr().err
    assert not output.exists()
