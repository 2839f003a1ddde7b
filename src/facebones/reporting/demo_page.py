"""A static page that matches two photos in the browser: model, detector and ONNX Runtime lie in its folder.

The page works from a disk and without a network: its content security policy allows no connection, so no photo leaves
the device. `page_assets/demo.js` does there what `match_photos` does here.
"""

import base64
import gzip
import hashlib
import json
import os
import tarfile
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from facebones.data.preprocessing import REFERENCE
from facebones.datatools.detector_file import VARIABLE, detector_file, detector_path
from facebones.errors import CheckpointError, ConfigError, FaceBonesError, counted, some
from facebones.evaluation.match import kept_threshold
from facebones.evaluation.models import Model, is_onnx, load_model
from facebones.evaluation.photos import scored_with_flip
from facebones.system.files import atomic_write, cache_folder, cannot_write, check_output, check_written
from facebones.system.hub import is_hub_address, parse_address
from facebones.system.regular_files import read_regular

VERSION = "1.30.0"  # of onnxruntime-web
PACKAGE = f"onnxruntime-web-{VERSION}.tgz"
# The registry's own digest of the package.
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
MEMBERS = {"library": "package/dist/ort.wasm.bundle.min.mjs", "wasm": "package/dist/ort-wasm-simd-threaded.wasm"}
MISSING_DETECTOR = "`facebones download detector` fetches one, --detector FILE names one"
MOST_BYTES = 2**29  # of a model: a browser has to hold it
SIDE = 640  # pixels of the image that YuNet's file declares
STRIDE = 32  # sizes below are channels and numbers of a cell
PAGE = "index.html"
FILES = (PAGE, "page.js", "runtime.js", "model.js", "detector.js")
MARK, MARK_BYTES = b"facebones", 4096  # what each of them has near its beginning, in capitals or not


@dataclass(frozen=True, kw_only=True)
class DemoPage:
    """What `write_demo_page` has written.

    Attributes:
        path: of the page.
        bytes: of all files.
        detector: the file of the face detector that the page holds; None: the user clicks on the eyes.
        notes: messages for the user.
    """

    path: Path
    bytes: int
    detector: Path | None
    notes: tuple[str, ...]


def write_demo_page(
    model: Path | str,
    output: Path | str,
    *,
    onnxruntime_web: Path | str | None = None,
    detector: Path | str | None = "auto",
    title: str | None = None,
    **opening: Any,
) -> DemoPage:
    """Write a page that matches two photos in the browser.

    Args:
        model: a run or a file of weights, which is exported (extra `export`), or an ONNX file.
        output: the folder of the page; the files of an earlier page are replaced.
        onnxruntime_web: the package that `npm pack onnxruntime-web@1.30.0` writes; None: the one in the cache folder.
        detector: YuNet's file, "auto" for the one of this user, if there is one, or None: users click on the eyes.
        title: of the page; by default the model's name.
        opening: further options of `load_model`.

    Raises:
        ConfigError: the package is missing, or the output cannot be written or holds other files with these names.
        CheckpointError: the model cannot be used, or not by a browser.
        RunError: the disk is full; an earlier page is still whole.
    """
    output = Path(output)
    check_output(output, FILES)
    _refuse_others(output)
    opened = load_model(model, **opening)
    path = _for_browser(opened)
    settings = _settings(opened, title or _name(model))
    detector_path, found, notes = _detector(detector)
    runtime = _runtime(None if onnxruntime_web is None else Path(onnxruntime_web))
    content = path.read_bytes() if is_onnx(opened.network) else _exported(path)
    files = {
        PAGE: _asset("demo.html").replace("{{style}}", _asset("demo.css")).encode(),
        "page.js": _asset("demo.js").encode(),
        "runtime.js": _script(runtime),
        "model.js": _script({"model": content}, settings),
        "detector.js": _script({} if found is None else {"detector": found}),
    }
    _write_together(output, files)
    check_written([output / name for name in files])
    total = sum(map(len, files.values()))
    notes = (*notes, *_other_files(output))
    return DemoPage(path=output / PAGE, bytes=total, detector=detector_path, notes=notes)


def _refuse_others(output: Path) -> None:
    """Refuse a folder where a file of the page would replace one that no earlier call has written."""
    for path in [output / name for name in FILES if (output / name).exists()]:
        try:
            with path.open("rb") as file:
                ours = MARK in file.read(MARK_BYTES).lower()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}; choose another --output") from error
        if not ours:
            raise ConfigError(f"{path}: exists, and `facebones demo-page` did not write it; choose another --output")


def _other_files(output: Path) -> list[str]:
    """A note on what else is in the folder: who publishes it publishes that, too."""
    others = sorted(path.name for path in output.iterdir() if path.name not in FILES and not path.name.startswith("."))
    if not others:
        return []
    count = counted(len(others), "file or folder that is no part", "files and folders that are no part")
    return [f"{output}: holds {count} of the page: {some(others)}"]


def _write_together(output: Path, files: dict[str, bytes]) -> None:
    """Write all files or, on a full disk, none; the page itself, the first of them, takes its place last.

    An earlier page is removed before the files that it loads are replaced: a page that is there is whole.
    """
    with ExitStack() as stack:
        for name, text in files.items():
            file = stack.enter_context(atomic_write(output / name))
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            (output / PAGE).unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(output / PAGE, error) from error


def _asset(name: str) -> str:
    return resources.files("facebones.reporting").joinpath(f"page_assets/{name}").read_text(encoding="utf-8")


def _script(parts: dict[str, bytes], settings: dict[str, Any] | None = None) -> bytes:
    """A script that hands compressed files to the page: a page on a disk may load scripts, and nothing else."""
    packed = {name: base64.b64encode(gzip.compress(part, 6, mtime=0)).decode() for name, part in parts.items()}
    given: dict[str, Any] = packed if settings is None else {"settings": settings, **packed}
    text = json.dumps(given).replace("<", "\\u003c")
    return f"globalThis.FACEBONES = {{ ...globalThis.FACEBONES, ...{text} }};\n".encode()


def _runtime(given: Path | None) -> dict[str, bytes]:
    """The files of ONNX Runtime for browsers, from its package: the given one, or that in the cache folder."""
    kept = cache_folder() / PACKAGE
    package = kept if given is None else given
    by_hand = (
        f"where there is a network, run `npm pack onnxruntime-web@{VERSION}`; give the file {PACKAGE} that it writes as"
        f" --onnxruntime-web, or put it at {kept}"
    )
    try:
        with package.open("rb") as file:
            digest = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    except OSError as error:
        raise ConfigError(f"{package}: cannot be read: {error.strerror}; {by_hand}") from error
    if digest != INTEGRITY:
        raise ConfigError(f"{package}: not the package onnxruntime-web {VERSION}; {by_hand}")
    with tarfile.open(package) as archive:
        members = {name: archive.extractfile(member) for name, member in MEMBERS.items()}
        return {name: member.read() for name, member in members.items() if member is not None}


def _name(model: Path | str) -> str:
    """What the page calls a model: the name of its repository, run or file."""
    return parse_address(model).name if is_hub_address(model) else Path(str(model)).stem


def _exported(path: Path) -> bytes:
    """A run or a file of weights as one ONNX file."""
    from facebones.exporting import export

    with tempfile.TemporaryDirectory() as folder:
        export(path, Path(folder) / "model.onnx")
        return (Path(folder) / "model.onnx").read_bytes()


def _for_browser(model: Model) -> Path:
    """Path of a model; refuses one that no page can hold."""
    if model.path is None:
        raise ConfigError("a registered backbone has random weights; give a run or a file")
    if not is_onnx(model.network):
        return model.path
    if model.path.with_name(f"{model.path.name}.data").exists():
        raise CheckpointError(f"{model.path}: its weights are in a second file; save it as one for a browser")
    if model.path.stat().st_size > MOST_BYTES:
        raise CheckpointError(f"{model.path}: more than {MOST_BYTES >> 20} MB are too much for a browser")
    return model.path


def _settings(model: Model, title: str) -> dict[str, Any]:
    """What the page has to know of the model."""
    signature = model.as_onnx.signature if model.as_onnx is not None else None
    kind = "float32" if signature is None else np.dtype(signature.dtype).name
    if kind == "float16":
        raise CheckpointError(f"{model.path}: takes float16, which browsers lack; give a file that takes float32")
    threshold = kept_threshold(model)
    return {
        "title": title,
        "preprocessing": model.preprocessing.to_json(),
        "type": kind,
        "channelsLast": signature is not None and signature.channels_last,
        "batch": 1 if signature is None else signature.batch or 1,
        "output": 0 if signature is None else signature.output,
        "size": int(model.describe()["embedding_size"]),
        "flip": scored_with_flip(model),
        "threshold": None if threshold is None else threshold.to_json(),
        "reference": REFERENCE.tolist(),
    }


def _detector(detector: Path | str | None) -> tuple[Path | None, bytes | None, tuple[str, ...]]:
    """Path and content of the face detector, if there is one that ONNX Runtime runs; and why not."""
    if detector is None:
        return None, None, ()
    try:
        path = detector_file(detector)
    except FaceBonesError as error:
        if detector != "auto" or os.environ.get(VARIABLE):  # named by the user
            raise
        reason = str(error) if detector_path().exists() else MISSING_DETECTOR
        return None, None, (f"users click on the eyes, for lack of a face detector: {reason}",)
    try:
        content = read_regular(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    if not _runs(content):
        return None, None, (f"{path}: ONNX Runtime cannot run this form of YuNet, so users click on the eyes",)
    return path, _with_free_size(content), ()


def _with_free_size(content: bytes) -> bytes:
    """The detector for photos of any size: its graph takes them, though its file declares 640x640.

    What lies around a photo moves the landmarks by some pixels, so the page should not fill it up to 640x640.
    """
    try:
        import onnx
    except ImportError:
        return content
    model = onnx.load_from_string(content)
    for value in (*model.graph.input, *model.graph.output):
        for place, size in enumerate(value.type.tensor_type.shape.dim):
            if size.dim_value >= STRIDE:
                size.dim_param = f"{value.name}_{place}"
    del model.graph.value_info[:]
    freed: bytes = model.SerializeToString()
    return freed if _runs(freed, SIDE // 2) else content


def _runs(content: bytes, side: int = SIDE) -> bool:
    try:
        import onnxruntime
    except ImportError:
        return True  # the page itself says if it cannot
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        image = np.zeros((1, 3, side, side), np.float32)
        names = {one.name for one in session.get_outputs()}
        session.run(None, {session.get_inputs()[0].name: image})
    except Exception:  # noqa: BLE001 (ONNX Runtime's errors share no base class)
        return False
    return {"cls_8", "obj_8", "bbox_8", "kps_8"} <= names
