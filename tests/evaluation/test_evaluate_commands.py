"""The commands that evaluate: many models, what they write, what they refuse, and that a stop costs nothing."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import facebones
from facebones.backbones import create_backbone
from facebones.backbones.weights import save_weights
from facebones.cli.main import main as cli
from facebones.data.ijb_pairs import read_pair_labels
from facebones.data.image_sources import EncodedImages, LooseCrops
from facebones.data.pair_bins import read_pairs
from facebones.reporting.evaluations import read_pair_scores
from facebones.reporting.face_pairs import face_pairs
from facebones.reporting.load import load_results
from facebones.run_folder import RunFolder
from facebones.statistics.curves import corners, roc
from facebones.synthetic.dataset import synthesize


@pytest.fixture(scope="module")
def ijb(tmp_path_factory):
    """An IJB-C style folder of 20 people, 180 photos."""
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    synthesize(folder, identities=2, images_per_identity=1, pairs=20, template_subjects=20, workers=1)
    return folder / "ijb"


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_backbone):
    """Three files of weights, drawn by lot."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("first", "second", "third")):
        torch.manual_seed(seed)
        network = create_backbone(tiny_backbone, 16)
        save_weights(RunFolder(folder / name), network, {"backbone": tiny_backbone, "embedding_size": 16})
    return {name: folder / name / "model.safetensors" for name in ("first", "second", "third")}


def words_of(models, command, *more):
    named = [word for name, path in models.items() for word in ("--model", f"{name}={path}")]
    return ["evaluate", command, *named, *(str(word) for word in more), "--device", "cpu", "--bootstrap", "100"]


def run_json(capsys, words):
    assert cli([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def metric(section, name, **at):
    """The metric of a name at an operating point, in a section of a result file."""
    (found,) = [one for one in section["metrics"] if one["name"] == name and one["at"] == at]
    return found


def refusal(capsys, words):
    assert cli([str(word) for word in words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("facebones: ")]
    assert len(lines) == 1
    return lines[0]


# ----------------------------------------------------------------------------------------------------------- pairs


def test_pairs_of_many_models_have_intervals_tests_and_plots(models, small_data, tmp_path, capsys):
    words = words_of(models, "pairs", "--data", small_data / "tiny.bin", "--output", tmp_path / "out")
    content = run_json(capsys, words)
    (section,) = content["results"]
    assert json.loads((tmp_path / "out" / "pairs.json").read_text()) == content
    assert (content["format"], content["protocol"], content["facebones"]) == (2, "pairs", facebones.__version__)
    assert content["options"] == {"flip": True, "bootstrap": 100, "seed": 0}
    assert (section["protocol"], section["set"], section["setting"]) == ("pairs", "tiny", "")
    assert section["data"] == str(small_data / "tiny.bin") and section["sizes"] == {"pairs": 20}
    assert section["curves"] == {"roc": {name: f"{name}_tiny_scores.npz" for name in models}}
    assert list(content["models"]) == list(section["details"]) == list(models)
    tar = metric(section, "tar", far=0.001)
    assert (tar["reason"], tar["values"]) == ("0.001 is below 1 / 10 impostor pairs", {})
    assert [(one["name"], one["main"], one["higher_is_better"]) for one in section["metrics"]] == [
        ("accuracy", True, True),
        ("tar", False, True),
        ("auc", False, True),
        ("eer", False, False),
    ]
    assert (metric(section, "accuracy")["chance"], tar["rule"]) == (0.5, "strict")
    for name in ("accuracy", "auc", "eer"):
        measured = metric(section, name)
        assert [(one["first"], one["second"]) for one in measured["comparisons"]] == [
            ("first", "second"),
            ("first", "third"),
            ("second", "third"),
        ]
        for model in models:
            interval = measured["intervals"][model]
            assert 0 <= interval["low"] <= measured["values"][model] <= interval["high"] <= 1
            assert interval["resampled"] == "pairs" and interval["replicates"] == 100
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == sorted(
        ["pairs.json", "roc_tiny.pdf", "roc_tiny.png", *(f"{name}_tiny_scores.npz" for name in models)]
    )
    images = EncodedImages("tiny", read_pairs(small_data / "tiny.bin").images)
    for name in models:  # by which a report finds the images of a pair
        found = read_pair_scores(tmp_path / "out" / f"{name}_tiny_scores.npz")
        assert found.images_sha256 == images.fingerprint() and found.scores.shape == found.is_same.shape == (20,)
    assert cli(words) == 0
    printed = capsys.readouterr().out
    assert "*: not significantly different from the best" in printed
    assert "first - second" in printed and f"third: tiny_for_tests, {models['third']}" in printed


def test_the_worst_pairs_of_an_evaluation_can_be_shown_as_faces(models, small_data, tmp_path):
    assert cli(words_of(models, "pairs", "--data", small_data / "tiny.bin", "--output", tmp_path / "out")) == 0
    (section,) = json.loads((tmp_path / "out" / "pairs.json").read_text())["results"]
    (found,) = face_pairs(load_results(tmp_path / "out"), [small_data / "tiny.bin"])
    assert {model.run for model in found.models} == set(models)
    for model in found.models:
        wrong = round(20 * (1 - metric(section, "accuracy")["values"][model.run]))
        assert sum(model.errors) == wrong  # both folds of two pairs and thresholds are those of the protocol


def test_each_model_gets_what_it_gets_alone(models, small_data, capsys):
    together = run_json(capsys, words_of(models, "pairs", "--data", small_data / "tiny.bin"))["results"][0]["details"]
    for name, path in models.items():
        alone = run_json(capsys, words_of({name: path}, "pairs", "--data", small_data / "tiny.bin"))["results"][0]
        assert alone["details"][name] == together[name]
        assert metric(alone, "accuracy")["comparisons"] == []


def test_without_flip_the_mirror_image_counts_no_more(models, small_data, capsys):
    words = words_of(models, "pairs", "--data", small_data / "tiny.bin")
    both, plain = run_json(capsys, words), run_json(capsys, [*words, "--no-flip"])
    assert (both["options"]["flip"], plain["options"]["flip"]) == (True, False)
    assert both["results"][0]["details"]["first"]["xnorm"] != plain["results"][0]["details"]["first"]["xnorm"]


def test_a_list_of_pairs_is_a_set(models, small_data, tmp_path, capsys):
    assert cli(["data", "convert", str(small_data / "tiny.bin"), str(tmp_path / "tiny")]) == 0
    shutil.move(tmp_path / "tiny" / "pairs.txt", tmp_path / "list.txt")
    capsys.readouterr()
    listed = run_json(capsys, words_of(models, "pairs", "--data", tmp_path / "list.txt", "--root", tmp_path / "tiny"))
    packed = run_json(capsys, words_of(models, "pairs", "--data", small_data / "tiny.bin"))
    assert listed["results"][0]["details"]["first"]["auc"] == packed["results"][0]["details"]["first"]["auc"]
    line = refusal(capsys, words_of(models, "pairs", "--data", small_data / "tiny.bin", "--root", tmp_path))
    assert "goes with a list of pairs" in line


def test_names_of_models(models, small_data, tmp_path, capsys):
    path, data = models["first"], ["--data", small_data / "tiny.bin"]
    assert "two are called model" in refusal(
        capsys, ["evaluate", "pairs", "--model", path, "--model", models["second"], *data]
    )
    for name in ("a/b", "", ".hidden"):
        line = refusal(capsys, ["evaluate", "pairs", "--model", f"{name}={path}", *data])
        assert "give NAME=PATH" in line
    odd = tmp_path / "a=b.safetensors"
    shutil.copy(path, odd)
    assert list(run_json(capsys, words_of({}, "pairs", "--model", odd, *data))["models"]) == ["a=b"]


def test_preprocessing_is_for_files_that_do_not_state_theirs(models, small_data, tmp_path, tiny_backbone, capsys):
    data = ["--data", small_data / "tiny.bin"]
    assert "--mean, --scale, --colour" in refusal(capsys, words_of(models, "pairs", *data, "--scale", "128"))
    torch.save(create_backbone(tiny_backbone, 16).state_dict(), tmp_path / "theirs.pth")
    words = words_of({}, "pairs", "--model", tmp_path / "theirs.pth", "--backbone", tiny_backbone, *data)
    assert cli([*words, "--json"]) == 0
    captured = capsys.readouterr()
    assert "theirs does not state its preprocessing: it gets (x - 127.5) / 127.5, RGB" in captured.err
    usual = json.loads(captured.out)
    other = run_json(capsys, [*words, "--mean", "0", "--scale", "255", "--colour", "bgr"])
    assert other["models"]["theirs"]["preprocessing"] == {"mean": 0.0, "scale": 255.0, "colour": "bgr"}
    assert other["results"][0]["details"] != usual["results"][0]["details"]
    line = refusal(capsys, words_of(models, "pairs", "--backbone", tiny_backbone, *data))
    assert "goes with one --model" in line


# ------------------------------------------------------------------------------------------------------- templates


def test_templates_and_their_saved_scores_give_the_same_metrics(models, ijb, tmp_path, capsys):
    out = tmp_path / "out"
    content = run_json(capsys, words_of(models, "templates", "--data", ijb, "--output", out))
    (section,) = content["results"]
    assert (content["protocol"], section["set"], section["setting"]) == ("ijb_verification", "ijb", "N1D1F1")
    assert section["sizes"] == {"images": 180, "templates": 80, "pairs": 1200, "genuine": 60, "impostors": 1140}
    main = [one["at"] for one in section["metrics"] if one["main"]]
    assert main == [{"far": 1e-3}]  # the smallest FAR from 1e-4 on that 1140 impostor pairs measure
    curves = [f"{name}_ijbc_roc.npz" for name in models]
    assert list(section["curves"]["roc"].values()) == curves
    plots = {path.name for path in out.iterdir() if path.suffix in (".png", ".pdf")}
    assert len(plots) == 2 and all(name.startswith("roc") for name in plots)
    names = ["templates.json", "features", *plots, *(f"{name}_ijbc.npy" for name in models), *curves]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    saved = [f"{name}={out / f'{name}_ijbc.npy'}" for name in models]
    words = ["evaluate", "scores", "--labels", str(ijb / "meta"), *saved, "--bootstrap", "100"]
    again = run_json(capsys, [*words, "--output", str(tmp_path / "again")])
    assert again["results"][0]["details"] == section["details"]
    assert len(again["results"][0]["metrics"]) == 8
    for one, other in zip(again["results"][0]["metrics"], section["metrics"], strict=True):
        assert one["values"] == other["values"]
    written = [path.name for path in (tmp_path / "again").iterdir()]
    assert {"scores.json", *curves} <= set(written) and sum(name.endswith((".pdf", ".png")) for name in written) == 2
    for name in curves:  # the curve on disk is the curve of the scores
        saved_curve = np.load(out / name)
        scores, is_same = np.load(out / name.replace("_roc.npz", ".npy")), read_pair_labels(ijb).is_same
        bends = corners(roc(scores, is_same))
        np.testing.assert_array_equal(saved_curve["far"], bends.false_accept_rate)
        np.testing.assert_array_equal(saved_curve["tar"], bends.true_accept_rate)
        assert (int(saved_curve["genuine"]), int(saved_curve["impostors"])) == (60, 1140)
    assert cli(words) == 0
    assert "published" in capsys.readouterr().out


def test_all_poolings_come_from_one_pass(models, ijb, tmp_path, capsys, monkeypatch):
    reads = []
    original = LooseCrops.read
    monkeypatch.setattr(LooseCrops, "read", lambda *given: reads.append(given[1]) or original(*given))
    words = words_of(models, "templates", "--data", ijb, "--output", tmp_path)
    content = run_json(capsys, [*words, "--pooling", "all"])
    assert sorted(reads) == list(range(180))
    assert len({json.dumps(section["details"]["first"]) for section in content["results"]}) > 4
    scores = np.load(tmp_path / "first_ijbc_N0D0F0.npy")
    assert scores.dtype == np.float32 and scores.shape == (20 * 60,)
    usual = run_json(capsys, words)["results"][0]["details"]
    for name in models:
        among_all = content["results"][-1]["details"][name]
        assert usual[name]["auc"] == pytest.approx(among_all["auc"], abs=1e-5)
    assert len(reads) == 180  # the features are there


def test_identification_reads_the_features_that_are_there(models, ijb, tmp_path, capsys, monkeypatch):
    run_json(capsys, words_of(models, "templates", "--data", ijb, "--output", tmp_path))
    monkeypatch.setattr(LooseCrops, "read", lambda *_: pytest.fail("an image is read again"))
    words = words_of(models, "identification", "--data", ijb, "--output", tmp_path)
    (section,) = run_json(capsys, words)["results"]
    assert [(one["name"], one["at"], one["main"]) for one in section["metrics"]] == [
        ("rank", {"rank": 1}, True),
        ("rank", {"rank": 5}, False),
        ("rank", {"rank": 10}, False),
        ("tpir", {"fpir": 0.1}, False),
        ("tpir", {"fpir": 0.01}, False),
    ]
    for rank in (1, 10):
        for name in models:
            measured = metric(section, "rank", rank=rank)
            assert measured["values"][name] == section["details"][name]["rank_rates"][str(rank)]
            assert measured["intervals"][name]["resampled"] == "identities"
    tpir = metric(section, "tpir", fpir=0.1)["values"]
    for name in models:
        details = section["details"][name]
        assert tpir[name] == pytest.approx(details["mean_tpir"][0]["tpir"])
        assert section["curves"]["cmc"][name] == details["cmc"]
        det = section["curves"]["det_G1"][name]
        assert det["fpir"] == sorted(det["fpir"]) and det["fnir"] == sorted(det["fnir"], reverse=True)
        assert len(det["fpir"]) == len(det["fnir"]) and det["fpir"][-1] == 1
    assert {"cmc.png", "cmc.pdf", "det_G1.png", "det_G2.pdf", "identification.json"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert cli(words) == 0
    assert "Rank-5" in capsys.readouterr().out


def test_features_of_one_runtime_are_not_taken_for_those_of_another(models, ijb, tmp_path, capsys):
    words = words_of({"first": models["first"]}, "templates", "--data", ijb, "--output", tmp_path)
    content = run_json(capsys, [*words, "--runtime", "bf16"])
    assert (content["models"]["first"]["runtime"], content["models"]["first"]["precision"]) == ("bf16", "bf16")
    assert "first.features.npy: holds features of other runtime, precision" in refusal(capsys, words)
    assert run_json(capsys, [*words, "--runtime", "bf16"]) == content


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_pass_goes_on_and_gives_equal_scores(ijb, tmp_path, number):
    # A real backbone: a registered one that the child process knows as well.
    torch.manual_seed(0)
    network = create_backbone("shufflefacenet_0_5", 16)
    save_weights(RunFolder(tmp_path / "run"), network, {"backbone": "shufflefacenet_0_5", "embedding_size": 16})
    paths = {"first": tmp_path / "run"}
    words = [*words_of(paths, "templates", "--data", ijb, "--batch-size", "4"), "--output"]
    code = (
        "import sys; from facebones.evaluation import feature_store; feature_store.SYNC_SECONDS = 0.0;"
        "from facebones.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, *words, str(tmp_path / "stopped")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # as torch is set here; another number gives other last digits
        stderr=subprocess.PIPE,
        text=True,
    )
    record = tmp_path / "stopped" / "features" / "first.features.json"
    end = time.monotonic() + 60
    while not (record.exists() and json.loads(record.read_text() or "{}").get("complete", 0) >= 8):
        assert time.monotonic() < end and child.poll() is None
        time.sleep(0.01)
    os.kill(child.pid, number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode in (-number, 128 + number)
    assert not (tmp_path / "stopped" / "templates.json").exists()
    if number != signal.SIGKILL:
        assert f"continue with: facebones {shlex.join([*words, str(tmp_path / 'stopped')])}" in errors.splitlines()[-1]
    done = json.loads(record.read_text())["complete"]
    assert 8 <= done < 180
    assert cli([*words, str(tmp_path / "stopped")]) == 0
    assert cli([*words, str(tmp_path / "whole")]) == 0
    scores = [np.load(tmp_path / name / "first_ijbc.npy") for name in ("stopped", "whole")]
    np.testing.assert_array_equal(*scores)


# ---------------------------------------------------------------------------------------------------------- errors


def rewrite(path, change):
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)) + "\n")


def break_image(ijb):
    (ijb / "loose_crop" / "7.jpg").write_bytes(b"no image")
    return "loose_crop/7.jpg: no readable image"


def lose_image(ijb):
    (ijb / "loose_crop" / "7.jpg").unlink()
    return "loose_crop/7.jpg: cannot be read: No such file or directory"


def lose_template(ijb):
    rewrite(
        ijb / "meta" / "ijbc_face_tid_mid.txt",
        lambda lines: [line for line in lines if line.split()[1] != "2"],
    )
    return "is missing in ijbc_face_tid_mid.txt"


def pair_an_unknown(ijb):
    rewrite(ijb / "meta" / "ijbc_template_pair_label.txt", lambda lines: [*lines[:4], "1 999 0", *lines[5:]])
    return "ijbc_template_pair_label.txt, line 5: no image has the template 999"


def label_with_two(ijb):
    rewrite(ijb / "meta" / "ijbc_template_pair_label.txt", lambda lines: [*lines[:4], "1 2 2", *lines[5:]])
    return "ijbc_template_pair_label.txt, line 5: '1 2 2' is not 'template template 0|1'"


def contradict(ijb):
    def flip_first(lines):
        one, other, label = lines[0].split()
        return [f"{one} {other} {1 - int(label)}", *lines[1:]]

    rewrite(ijb / "meta" / "ijbc_template_pair_label.txt", flip_first)
    return "ijbc_template_pair_label.txt, line 1: templates 1 and 2 are labelled 0, but by the other lines and lists"


@pytest.mark.parametrize(
    "damage",
    [break_image, lose_image, lose_template, pair_an_unknown, label_with_two, contradict],
    ids=lambda made: made.__name__,
)
def test_a_damaged_folder_is_one_line(models, ijb, tmp_path, capsys, damage):
    shutil.copytree(ijb, tmp_path / "ijb")
    reason = damage(tmp_path / "ijb")
    line = refusal(capsys, words_of(models, "templates", "--data", tmp_path / "ijb", "--output", tmp_path / "out"))
    assert reason in line
    assert not (tmp_path / "out" / "templates.json").exists()


def test_scores_that_do_not_fit_are_one_line(ijb, tmp_path, capsys):
    np.save(tmp_path / "short.npy", np.zeros(7, np.float32))
    line = refusal(capsys, ["evaluate", "scores", "--labels", ijb, tmp_path / "short.npy"])
    assert "short.npy: 7 scores for 1200 pairs" in line
    line = refusal(capsys, ["evaluate", "scores", "--labels", tmp_path, tmp_path / "short.npy"])
    assert "name the file" in line


HEADERS = {
    "huge": "(10676, 99999999999999999999999)",
    "negative": "(-10676,)",
    "no tuple": "((((680",
    "deep": "(" * 2000 + ")" * 2000,
    "promising": "(99999999999,)",
}


def write_header(path, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))


@pytest.mark.parametrize("shape", HEADERS.values(), ids=HEADERS)
def test_hostile_headers_of_arrays_are_one_line(models, ijb, tmp_path, capsys, shape):
    write_header(tmp_path / "scores.npy", shape)
    line = refusal(capsys, ["evaluate", "scores", "--labels", ijb, tmp_path / "scores.npy"])
    assert "scores.npy: " in line
    words = words_of(models, "templates", "--data", ijb, "--output", tmp_path / "out")
    assert cli(words) == 0
    write_header(tmp_path / "out" / "features" / "second.features.npy", shape)
    capsys.readouterr()
    assert "second.features.npy: " in refusal(capsys, words)


def test_features_of_another_width_are_refused(models, ijb, tmp_path, capsys):
    words = words_of(models, "templates", "--data", ijb, "--output", tmp_path / "out")
    assert cli(words) == 0
    np.save(tmp_path / "out" / "features" / "second.features.npy", np.ones((180, 2, 8), np.float32))
    capsys.readouterr()
    assert "second.features.npy: has shape (180, 2, 8)" in refusal(capsys, words)


def test_a_folder_without_galleries_cannot_be_searched(models, ijb, tmp_path, capsys):
    shutil.copytree(ijb, tmp_path / "ijb")
    (tmp_path / "ijb" / "meta" / "ijbc_1N_gallery_G2.csv").unlink()
    assert "identification (1:N) needs it" in refusal(
        capsys, words_of(models, "identification", "--data", tmp_path / "ijb")
    )
    assert cli(words_of(models, "templates", "--data", tmp_path / "ijb")) == 0


def test_poolings(models, ijb, capsys):
    line = refusal(capsys, words_of(models, "templates", "--data", ijb, "--pooling", "N1D1F2"))
    assert "N1D1F2" in line
    line = refusal(capsys, words_of(models, "identification", "--data", ijb, "--pooling", "all"))
    assert "several poolings; give one" in line


# ------------------------------------------------------------------------------------------------------ real faces


@pytest.mark.slow
@pytest.mark.faces
def test_a_foreign_recogniser_on_real_faces(real_faces, tmp_path, capsys):
    recogniser = real_faces.parent / "models" / "mobile_512d.onnx"
    words = ["--model", f"mobile={recogniser}", "--scale", "128", "--data", str(real_faces / "ijb_lfw")]
    words += ["--output", str(tmp_path)]
    (section,) = run_json(capsys, ["evaluate", "templates", *words, "--pooling", "N1D0F1"])["results"]
    assert metric(section, "auc")["values"]["mobile"] >= 0.9999
    assert metric(section, "tar", far=1e-6)["values"] == {}
    (section,) = run_json(capsys, ["evaluate", "identification", *words, "--pooling", "N1D0F1"])["results"]
    assert metric(section, "rank", rank=1)["values"]["mobile"] > 0.99
    assert metric(section, "tpir", fpir=0.1)["values"]["mobile"] > 0.95
