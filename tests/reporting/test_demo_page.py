"""The page that matches two photos: what it needs is said in one line, and a browser answers as `match_photos` does."""

import errno
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import chromium
from playwright.sync_api import Error

import facebones
from facebones.cli.main import main
from facebones.errors import RunError
from facebones.evaluation.match import match_photos
from facebones.reporting import demo_page
from facebones.reporting.demo_page import PACKAGE, VERSION, write_demo_page

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory, small_data):
    """A foreign ONNX file with thresholds: its embedding is the colours of the image's parts."""
    from onnx import helper

    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, 112, 112])
    rows = helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, ["batch", 147])
    nodes = [
        helper.make_node("AveragePool", ["image"], ["parts"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["parts"], ["rows"]),
    ]
    graph = helper.make_graph(nodes, "parts", [image], [rows])
    path = tmp_path_factory.mktemp("model") / "parts.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8), path)
    facebones.calibrate(
        path, small_data / "tiny.bin", false_match_rates=[0.5], output=path, preprocessing={"scale": 99}
    )
    return path


@pytest.fixture(scope="module")
def photos(photo_of, tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    drawn = {
        "a": photo_of(0),
        "same": photo_of(0, 1),
        "other": photo_of(2),
        "two": photo_of(0, 1, ((100, 92), (4, 196))),
    }
    drawn["unmarked"] = np.where((drawn["a"] == (0, 255, 0)).all(axis=2)[:, :, None], 90, drawn["a"]).astype(np.uint8)
    for name, photo in drawn.items():
        cv2.imwrite(str(folder / f"{name}.png"), cv2.cvtColor(photo, cv2.COLOR_RGB2BGR))
    (folder / "text.png").write_text("no image")
    return folder


# ---------------------------------------------------------------------------------------------------- without npm


def test_without_the_package_one_line_says_how_to_get_it(onnx_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "other.tgz").write_bytes(b"another package")
    line = ["demo-page", str(onnx_model), "--output", str(tmp_path / "page")]
    for more, told in (
        ([], f"{PACKAGE}: cannot be read"),
        (["--onnxruntime-web", str(tmp_path / "other.tgz")], "not the"),
    ):
        assert main([*line, *more]) == 2
        *_, error = capsys.readouterr().err.splitlines(keepends=True)
        assert told in error and f"run `npm pack onnxruntime-web@{VERSION}`" in error
        # What to put, and where the command looks for it, whatever was given.
        kept = tmp_path / "facebones" / PACKAGE
        assert f"give the file {PACKAGE} that it writes as --onnxruntime-web, or put it at {kept}\n" in error
    assert not (tmp_path / "page").exists()


def test_the_model_is_checked_before_the_package_is_wanted(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "no.onnx").write_bytes(b"no network")
    assert main(["demo-page", str(tmp_path / "no.onnx"), "--output", str(tmp_path / "page")]) == 2
    error = capsys.readouterr().err
    assert "no.onnx" in error and "npm" not in error
    assert not (tmp_path / "page").exists()


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setattr(demo_page, "_runtime", lambda _: {"library": b"</script>", "wasm": b"\0asm"})


@pytest.mark.usefixtures("no_package")
def test_models_that_a_browser_cannot_run_are_one_line(onnx_model, tmp_path, tiny_backbone, capsys):
    (tmp_path / "two.onnx").write_bytes(onnx_model.read_bytes())
    (tmp_path / "two.onnx.data").touch()
    half = onnx.load(onnx_model)
    for one in (*half.graph.input, *half.graph.output):
        one.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(half, tmp_path / "half.onnx")
    cases = {
        str(tmp_path / "two.onnx"): "its weights are in a second file",
        str(tmp_path / "half.onnx"): "float16",
        tiny_backbone: "has random weights",
    }
    for model, told in cases.items():
        assert main(["demo-page", model, "--output", str(tmp_path / "page")]) == 2
        assert told in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "page").exists()


@pytest.mark.usefixtures("no_package")
def test_a_detector_that_cannot_be_used_is_left_out_and_said(onnx_model, tmp_path, monkeypatch, green_detector):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FACEBONES_DETECTOR", raising=False)
    page = write_demo_page(onnx_model, tmp_path / "page", title="<b>")
    (note,) = page.notes
    assert page.detector is None
    assert note == f"users click on the eyes, for lack of a face detector: {demo_page.MISSING_DETECTOR}"
    assert b"</script>" not in (tmp_path / "page" / "runtime.js").read_bytes()
    assert "<b>" not in (tmp_path / "page" / "model.js").read_text()
    (tmp_path / "no.onnx").write_bytes(b"no network")
    assert (
        "cannot run this form" in write_demo_page(onnx_model, tmp_path / "page", detector=tmp_path / "no.onnx").notes[0]
    )
    page = write_demo_page(onnx_model, tmp_path / "page", detector=green_detector)
    assert page.detector == green_detector and page.notes == ()
    assert page.bytes == sum(path.stat().st_size for path in (tmp_path / "page").iterdir())


@pytest.mark.usefixtures("no_package")
def test_auto_names_the_file_that_it_found(onnx_model, tmp_path, monkeypatch, green_detector, capsys):
    line = ["demo-page", str(onnx_model), "--output", str(tmp_path / "page")]
    monkeypatch.setenv("FACEBONES_DETECTOR", str(green_detector))
    assert main(line) == 0
    assert f"faces are found by {green_detector}\n" in capsys.readouterr().out
    (tmp_path / "no.onnx").write_bytes(b"no network")
    monkeypatch.setenv("FACEBONES_DETECTOR", str(tmp_path / "no.onnx"))
    assert main(line) == 0
    out, err = capsys.readouterr()
    assert f"note: {tmp_path / 'no.onnx'}: ONNX Runtime cannot run this form" in err and "found by" not in out
    monkeypatch.setenv("FACEBONES_DETECTOR", str(tmp_path / "gone.onnx"))
    assert main(line) == 2
    assert "gone.onnx: cannot be read: No such file or directory; $FACEBONES_DETECTOR names" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ the folder


@pytest.mark.usefixtures("no_package")
def test_files_of_others_are_not_replaced_and_are_said(onnx_model, tmp_path, capsys):
    output = tmp_path / "site"
    output.mkdir()
    (output / "index.html").write_text("my own page")
    line = ["demo-page", str(onnx_model), "--output", str(output)]
    assert main(line) == 2
    told = "index.html: exists, and `facebones demo-page` did not write it; choose another --output\n"
    assert capsys.readouterr().err.endswith(told)
    assert [path.name for path in output.iterdir()] == ["index.html"]
    (output / "index.html").rename(output / "letters.txt")
    for _ in range(2):  # an earlier page is replaced
        assert main(line) == 0
        assert (
            f"note: {output}: holds 1 file or folder that is no part of the page: letters.txt\n"
            in capsys.readouterr().err
        )
    assert (output / "letters.txt").read_text() == "my own page"


def failing_at(call, at, reason):
    """A call that fails with an error of the system the `at`-th time; and the arguments of all its calls."""
    seen = []

    def failing(*arguments):
        seen.append(arguments)
        if len(seen) == at:
            raise OSError(reason, os.strerror(reason))
        return call(*arguments)

    return failing, seen


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize("at", range(1, 6))
def test_on_a_full_disk_an_earlier_page_stays_whole(onnx_model, tmp_path, at):
    page = tmp_path / "page"
    write_demo_page(onnx_model, page, detector=None, title="earlier")
    before = {path.name: path.read_bytes() for path in page.iterdir()}
    for output in (page, tmp_path / "new"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", failing_at(os.fsync, at, errno.ENOSPC)[0])
            with pytest.raises(RunError, match=r"cannot be written: No space left on device; free space"):
                write_demo_page(onnx_model, output, detector=None, title="later")
    assert {path.name: path.read_bytes() for path in page.iterdir()} == before
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize("at", range(1, 6))
def test_a_stop_at_any_file_leaves_no_page_that_is_not_whole(onnx_model, tmp_path, at):
    page = tmp_path / "page"
    write_demo_page(onnx_model, page, detector=None, title="earlier")
    with pytest.MonkeyPatch.context() as patch:
        replace, moved = failing_at(Path.replace, at, errno.EIO)
        patch.setattr(Path, "replace", replace)
        with pytest.raises(RunError, match="cannot be written: Input/output error"):
            write_demo_page(onnx_model, page, detector=None, title="later")
    assert not (page / "index.html").exists()
    assert "index.html" not in [target.name for _, target in moved[:4]]
    write_demo_page(onnx_model, page, detector=None, title="later")
    assert sorted(path.name for path in page.iterdir()) == sorted(demo_page.FILES)


# ----------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def package(request, tmp_path_factory):
    """The package of ONNX Runtime for browsers, 33 MB, kept in pytest's cache."""
    folder = request.config.cache.mkdir("onnxruntime-web")
    if not (folder / PACKAGE).is_file():
        if shutil.which("npm") is None:
            pytest.skip("npm is not here to fetch onnxruntime-web")
        own = tmp_path_factory.mktemp("npm")  # several processes may fetch it at a time
        command = ["npm", "pack", f"onnxruntime-web@{VERSION}"]
        done = subprocess.run(command, cwd=own, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            pytest.skip(f"onnxruntime-web cannot be fetched: {done.stderr.strip().splitlines()[-1:]}")
        shutil.move(own / PACKAGE, folder / f"{os.getpid()}.tmp")
        (folder / f"{os.getpid()}.tmp").replace(folder / PACKAGE)
    return folder / PACKAGE


@pytest.fixture(scope="module")
def browser():
    with ExitStack() as stack:
        try:
            found = stack.enter_context(chromium())
        except Error as error:
            pytest.fail(f"no browser to look at the page with: `make test` installs one ({error})", pytrace=False)
        yield found


@pytest.fixture(scope="module")
def address(package, onnx_model, green_detector, tmp_path_factory):
    output = tmp_path_factory.mktemp("demo") / "page"
    line = ["demo-page", str(onnx_model), "--output", str(output), "--onnxruntime-web", str(package)]
    assert main([*line, "--detector", str(green_detector), "--title", "Parts"]) == 0
    return (output / "index.html").as_uri()


@pytest.fixture
def page(browser, address):
    """The page, opened from the disk; what it asked for, and its errors."""
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.asked, page.errors = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.set_default_timeout(60_000)
    page.goto(address)
    page.get_by_text("Two photos, please.").wait_for()
    yield page
    page.close()


def give(page, place, photo):
    page.locator("input").nth(place).set_input_files(photo)


@pytest.mark.parametrize("second", ["same", "other", "two"])
def test_the_browser_answers_as_match_photos_does(page, photos, onnx_model, green_detector, second):
    pair = photos / "a.png", photos / f"{second}.png"
    for place, photo in enumerate(pair):
        give(page, place, photo)
    page.locator("#scale").wait_for()
    match = match_photos(onnx_model, *pair, detector=green_detector)
    text = page.locator("#promise").inner_text()
    assert float(text.split()[1].rstrip(";")) == pytest.approx(match.score, abs=0.005)
    assert f"threshold {match.threshold.threshold:.4f}: it accepts at most 0.5 of pairs of strangers" in text
    verdict = page.locator("#verdict").inner_text()
    assert verdict == ("The same person" if match.same_person else "Not shown to be one person")
    assert ("2 faces, the largest is used" in page.locator(".hint").nth(1).inner_text()) is (second == "two")
    assert all(url.startswith(("file:", "blob:")) for url in page.asked) and page.errors == []


def test_without_a_face_a_click_on_each_eye_aligns_it(page, photos, onnx_model):
    give(page, 0, photos / "a.png")
    give(page, 1, photos / "unmarked.png")
    page.get_by_text("No face found. Click on both eyes, first the one on the left.").wait_for()
    assert page.locator("#verdict").inner_text() == "Two photos, please."
    whole = page.locator(".whole").nth(1)
    box = whole.bounding_box()
    for x, y in demo_page.REFERENCE[:2] + (100, 92):
        whole.click(position={"x": (x + 0.5) / 320 * box["width"], "y": (y + 0.5) / 320 * box["height"]})
    page.locator("#scale").wait_for()
    assert float(page.locator("#promise").inner_text().split()[1].rstrip(";")) > 0.95
    give(page, 1, photos / "text.png")
    page.get_by_text("text.png: no readable image").wait_for()
    assert page.locator("#scale").is_hidden()


def test_the_page_has_no_connection(page):
    for target in ("https://example.org/", "index.html"):
        assert page.evaluate("target => fetch(target).then(() => 'sent', () => 'refused')", target) == "refused"
    assert (
        page.evaluate(
            "() => new Promise(done => { const i = new Image(); i.onload = () => done('sent');"
            " i.onerror = () => done('refused'); i.src = 'https://example.org/a.png'; })"
        )
        == "refused"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible_and_fits_a_phone(page, photos, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 375, "height": 700})
    for place, name in enumerate(("a", "other")):
        give(page, place, photos / f"{name}.png")
    page.locator("#scale").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["help"]) for one in found if one["impact"] in ("serious", "critical")] == []
