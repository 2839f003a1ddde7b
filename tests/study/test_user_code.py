"""A user's own files in `compare`: they reach the trainings, the evaluation and the report."""

import json
import shutil
from pathlib import Path

import pytest

from facebones.cli.main import main
from facebones.errors import ConfigError
from facebones.study.compare import compare, preview
from facebones.study.study import load_study

EXAMPLES = Path(__file__).parents[2] / "examples"
STUDY = """
import: [{plugins}]
recipe: demo
overrides: {{backbone.embedding_size: 16, data.workers: 0, training.batch_size: 14, training.epochs: 1, {overrides}}}
backbones: [{backbones}]
data: {data}
evaluate: [{evaluate}]
profile: false
"""


@pytest.fixture(scope="module")
def faces(small_data, tmp_path_factory):
    """Folders of photos and a list of them, as the examples read them."""
    root = tmp_path_factory.mktemp("user")
    photos = shutil.copytree(small_data.parent / "images", root / "friends.people")
    lines = [f"{photo.relative_to(root)},{photo.parent.name}" for photo in sorted(photos.glob("*/*.jpg"))]
    (root / "list.csv").write_text("\n".join(["path,person", *lines]) + "\n")
    shutil.copy(small_data / "tiny.bin", root)
    return root


def write(folder, **fields):
    path = folder / "mine.yaml"
    path.write_text(STUDY.format(**{"overrides": "log.every: 1", **fields}))
    return str(path)


@pytest.mark.slow
def test_all_examples_in_one_study_of_two_processes(faces, tmp_path):
    """Paths of plug-ins are relative to the study's file."""
    for example in EXAMPLES.glob("*.py"):
        shutil.copy(example, tmp_path)
    path = write(
        tmp_path,
        plugins="my_backbone.py, norm_head.py, csv_faces.py, tiny_protocol.py, print_callback.py",
        overrides="head.name: norm_margin, head.margin: 0.25, validation.sets: tiny, log.every: 1",
        backbones="my_backbone, shufflefacenet_0_5",
        data=faces / "list.csv",
        evaluate=f"tiny, {{protocol: nearest_photo, path: {faces / 'friends.people'}}}",
    )
    output = tmp_path / "out"
    assert main(["compare", path, "--output", str(output), "--jobs", "2", "--device", "cpu"]) == 0
    content = json.loads((output / "study.json").read_text())
    names = ["my_backbone", "shufflefacenet_0_5"]
    assert [(run["name"], run["state"]) for run in content["runs"]] == [(name, "done") for name in names]
    assert [(entry["protocol"], entry["error"]) for entry in content["evaluation"]] == [
        ("pairs", None),
        ("nearest_photo", None),
    ]
    assert content["study"]["evaluate"] == ["tiny", f"nearest_photo={faces / 'friends.people'}"]
    assert {Path(name).name for name in content["plugins"]} >= {path.name for path in EXAMPLES.glob("*.py")}
    for name in names:
        lines = (output / "runs" / name / "seed0" / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[0])["head"]["mean_norm"] > 0
        assert "callback: step 2 of 2" in (output / "runs" / name / "seed0.log").read_text()
    measured = json.loads((output / "evaluation" / "nearest_photo.json").read_text())
    (metric,) = measured["results"][0]["metrics"]
    assert (metric["name"], list(metric["values"])) == ("nearest", names)
    assert "nearest" in (output / "report" / "tables.md").read_text()
    assert {metric["name"] for metric in content["summary"][0]["metrics"]} == {"accuracy", "nearest"}


def test_a_plug_in_that_is_missing_is_named_with_its_place(faces, tmp_path):
    path = write(tmp_path, plugins="none.py", backbones="mine", data=faces, evaluate="tiny")
    with pytest.raises(ConfigError, match=r"mine\.yaml: import \S*none\.py: no such file"):
        load_study(path)


def test_a_backbone_of_the_script_itself_is_refused_because_the_trainings_lack_it(small_data, tmp_path, tiny_backbone):
    from facebones.backbones import lookup_backbone

    build = lookup_backbone(tiny_backbone).build
    path = write(tmp_path, plugins="", backbones=tiny_backbone, data=small_data, evaluate="tiny")
    build.__module__, before = "__main__", build.__module__
    try:
        with pytest.raises(ConfigError, match=rf"{tiny_backbone}: .*`import`"):
            compare(path, tmp_path / "out", device="cpu")
    finally:
        build.__module__ = before
    assert not (tmp_path / "out").exists()


EVALUATE = {
    "nearest": ("shufle=x", "unknown protocol 'shufle'"),
    "nothing there": ("pairs={data}/images", "no evaluation set of the protocols pairs"),
    "no such set": ("cfp", "cfp: no such verification set"),
    "twice": ("tiny, tiny", "tiny is listed twice"),
    "half a mapping": ("{{protocol: pairs}}", "an item is a name, a path, or {protocol: NAME, path: PATH}"),
}


@pytest.mark.parametrize(("item", "message"), EVALUATE.values(), ids=EVALUATE)
def test_an_item_of_evaluate_that_cannot_be_used_is_refused_in_one_line(small_data, tmp_path, capsys, item, message):
    (tmp_path / "images").mkdir()
    item = item.format(data=tmp_path)
    path = write(tmp_path, plugins="", backbones="shufflefacenet_0_5", data=small_data, evaluate=item)
    assert main(["compare", path, "--output", str(tmp_path / "out"), "--dry-run"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("facebones: "))
    assert message in line


def test_the_command_line_replaces_the_list(small_data, tmp_path):
    names = {"plugins": "", "backbones": "shufflefacenet_0_5", "evaluate": "cfp", "overrides": "validation.sets: tiny"}
    path = write(tmp_path, data=small_data, **names)
    study = load_study(path, evaluate=f"pairs={small_data / 'tiny.bin'}")
    assert [row["state"] for row in preview(study, tmp_path / "out", device="cpu")] == ["to do"]
