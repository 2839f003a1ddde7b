"""Trained networks that are ready to embed faces: opened from a run, weights, an ONNX file, or a backbone's name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from facebones.backbones import Backbone, create_backbone, lookup_backbone
from facebones.backbones.base import IMAGE_SIZE, evaluation_mode
from facebones.backbones.weights import load_backbone, local_model, read_card, weights_digest
from facebones.data.preprocessing import OURS, Preprocessing, to_network_input
from facebones.errors import CheckpointError, ConfigError, DataError, UnknownNameError
from facebones.system.device import device_settings, select_device, to_device
from facebones.system.hub import is_hub_address, origin, parse_address

if TYPE_CHECKING:
    from facebones.datatools.landmarks import FaceDetector
    from facebones.onnx.backbone import OnnxBackbone

Precision = Literal["fp32", "bf16", "fp16"]
Batch = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]
Image = Path | str | bytes | Batch

AUTOCAST_TYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCH_SIZE = 128
LONGEST_NAME = 100
BLOTCHES = 7  # on a side of an image of noise


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A network with everything that embedding faces takes: device, preprocessing, precision, origin of its weights.

    Attributes:
        network: on `device`; (B, 3, H, W) float32 -> (B, D).
        device: where the network is.
        preprocessing: how the network expects its input.
        precision: fp32, or the type of torch's autocast.
        channels_last: feed the network in the channels-last memory format.
        runtime: what computes the network; see `evaluation.runtimes`.
        path: file of the weights, or None.
        weights_sha256: digest of that file; features on disk are stored under it.

    Raises:
        ConfigError: other preprocessing for an ONNX file that contains its own.
    """

    network: nn.Module
    device: torch.device
    preprocessing: Preprocessing = OURS
    precision: Precision = "fp32"
    channels_last: bool = False
    runtime: str = "eager"
    path: Path | None = None
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        onnx = self.as_onnx
        if onnx is not None and onnx.folded and replace(self.preprocessing, colour=OURS.colour) != OURS:
            raise ConfigError(f"{onnx.path}: takes 8-bit pixels and scales them itself; leave out --mean and --scale")

    @property
    def as_onnx(self) -> "OnnxBackbone | None":
        """The network if it is an ONNX file, else None."""
        return self.network if is_onnx(self.network) else None  # type: ignore[return-value]

    @property
    def calibration(self) -> dict[str, Any] | None:
        """The thresholds that `calibrate` has kept beside the weights; None if there are none.

        Raises:
            DataError: their file is broken, or made for other weights.
        """
        if self.path is None:
            return None
        from facebones.evaluation.calibrate import read_calibration

        return read_calibration(self.path, self.weights_sha256)

    def embed(
        self,
        images: Sequence[Image] | Image,
        *,
        flip: bool = False,
        batch_size: int = BATCH_SIZE,
        detector: "FaceDetector | Path | str | None" = None,
    ) -> Features:
        """Embed aligned faces, or with a detector the faces of photos.

        Args:
            images: paths, encoded images (bytes), or uint8 arrays (H, W, 3) in RGB; or one of them alone.
            flip: add the embedding of the mirror image, as the published protocols do.
            batch_size: images per forward pass.
            detector: finds and aligns the face of each photo, as for `detector_file.open_detector`, such as "auto".
                None: the images are aligned faces; one of another size is resized to 112x112.

        Returns:
            (N, D) float32, not normalised.

        Raises:
            DataError: an image cannot be read, or a photo has no face; the message names it.
            CheckpointError: the detector is missing or broken.

        >>> model = load_model("mobilefacenet", device="cpu")
        >>> model.embed([np.zeros((112, 112, 3), np.uint8)]).shape
        (1, 512)
        """
        alone = isinstance(images, Path | str | bytes) or _is_array(images, 3)
        listed: list[Any] = [images] if alone else list(images)  # type: ignore[arg-type]
        if not listed or batch_size < 1:
            raise DataError(f"{len(listed)} images in batches of {batch_size}; give at least 1 of both")
        finder = None
        if detector is not None:
            from facebones.datatools.detector_file import open_detector

            finder = open_detector(detector)
        sums = []
        with evaluation_mode(self.network):
            for start in range(0, len(listed), batch_size):
                chunk = listed[start : start + batch_size]
                pixels = np.stack([_pixels(image, start + place, finder) for place, image in enumerate(chunk)])
                sums.append(self(pixels, flip).sum(axis=1))
        return np.concatenate(sums)

    def match(
        self,
        a: Image | Features,
        b: Image | Features,
        *,
        flip: bool = False,
        detector: "FaceDetector | Path | str | None" = None,
    ) -> float:
        """Cosine of two faces, from -1 to 1; higher means more alike. `match_photos` says more of two photos.

        Args:
            a: an image as for `embed`, or an embedding (D,).
            b: likewise.
            flip: as for `embed`.
            detector: as for `embed`.

        Raises:
            DataError: an image cannot be read, a photo has no face, or an embedding is zero or not finite.
            CheckpointError: the detector is missing or broken.
        """
        given: dict[str, Any] = {"flip": flip, "detector": detector}
        rows = [one if _is_array(one, 1) else self.embed(one, **given)[0] for one in (a, b)]  # type: ignore[arg-type]
        first, second = (np.asarray(row, dtype=np.float64) for row in rows)
        length = float(np.linalg.norm(first) * np.linalg.norm(second))
        if not 0 < length < np.inf:
            raise DataError("match: an embedding is zero or not finite; check the image and the weights")
        return float(first @ second) / length

    def __call__(self, images_BHWC: Batch, flip: bool) -> Features:
        """Embed a batch (B, H, W, 3) uint8 RGB, with `flip` its mirror images too; torch's random state is unchanged.

        The network should be in eval mode.

        Returns:
            (B, 2, D) float32 of images and mirror images; (B, 1, D) without `flip`. Neither summed nor normalised.
        """
        kind = self.device.type
        autocast = torch.autocast(kind, AUTOCAST_TYPE[self.precision], self.precision != "fp32")
        with device_settings(self.device), torch.inference_mode(), autocast:
            images = to_device(torch.from_numpy(images_BHWC), self.device)
            x = to_network_input(images, self.channels_last, preprocessing=self.preprocessing)  # (B, 3, H, W)
            views = (x, x.flip(3)) if flip else (x,)
            answers = torch.stack([self.network(view).float() for view in views], dim=1)  # (B, V, D)
        return np.asarray(answers.cpu().numpy(), dtype=np.float32)

    def settings(self) -> dict[str, Any]:
        """Everything that decides the embeddings of an image, as plain values."""
        return {
            "weights_sha256": self.weights_sha256,
            "preprocessing": self.preprocessing.to_json(),
            "runtime": self.runtime,
            "precision": self.precision,
            "channels_last": self.channels_last,
            "device": self.device.type,
        }

    def describe(self) -> dict[str, Any]:
        """What a result file says about the model."""
        network: Any = self.network
        return {
            "backbone": network.name,
            "embedding_size": network.embedding_size,
            "checkpoint": "" if self.path is None else str(origin(self.path)),
            **self.settings(),
        }


def load_model(
    path_or_name: Path | str,
    *,
    backbone: str | None = None,
    device: str = "auto",
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    runtime: str | None = None,
    output_name: str | None = None,
) -> Model:
    """Open a model for embedding and evaluation.

    Args:
        path_or_name: a run folder, checkpoint, safetensors or ONNX file; hf:owner/name@revision, a published model;
            or a registered backbone, whose weights are drawn from torch's random state, which is left as it was.
        backbone: name of the backbone of a file that does not state it.
        device: "auto", "cpu", "cuda", ...
        preprocessing: input that a file from elsewhere expects; ours is RGB, (x - 127.5) / 127.5. A mapping gives some
            of its fields, and leaves the others as they are likely.
        runtime: name of `evaluation.runtimes`, such as "onnxruntime"; None runs PyTorch, and ONNX files by ONNX
            Runtime.
        output_name: the output of an ONNX file that is the embedding, if several may be.

    Raises:
        CheckpointError: missing, broken, or of another backbone; or neither a file nor a registered backbone.
        ConfigError: no such device, a runtime that cannot compute the model here, or preprocessing for a file that
            states its own.

    >>> load_model("mobilefacenet", device="cpu").network.embedding_size
    512
    """
    (model,) = open_models(
        {str(path_or_name): path_or_name},
        backbone=backbone,
        device=device,
        preprocessing=preprocessing,
        output_name=output_name,
    ).values()
    if runtime is None:
        return model
    from facebones.evaluation.runtimes import run_by

    return run_by(model, runtime, BATCH_SIZE)


def open_backbone(
    checkpoint: Path, name: str | None, device: str, output_name: str | None = None
) -> tuple[Backbone, Path, torch.device]:
    """Build the network of a run, a file of weights or an ONNX file, ready to embed.

    Args:
        checkpoint: as for `load_backbone`, or a `.onnx` file.
        name: the backbone; needed where the file does not state it, checked where it does.
        device: "auto", "cpu", "cuda", ...; where the network computes.
        output_name: the output of an ONNX file that is the embedding, if several may be.

    torch's random state is left as it was.

    Returns:
        the backbone, the path of the file that was read, and the device for its input.

    Raises:
        CheckpointError: missing, broken, or of another backbone.
        ConfigError: no such device.
    """
    checkpoint = local_model(checkpoint)
    if checkpoint.suffix == ".onnx":
        from facebones.onnx.backbone import OnnxBackbone

        network = OnnxBackbone(checkpoint, device, output_name=output_name)
        if name and (network.said_name is None or lookup_backbone(name).name != network.said_name):
            held = network.said_name or "a network of its own"
            raise CheckpointError(f"{checkpoint}: holds {held}, not {name}; leave --backbone out")
        return network, checkpoint, torch.device("cpu")
    computing = select_device(device)
    with torch.random.fork_rng(devices=[]):  # a network is built with random weights before it gets its own
        backbone, path = load_backbone(checkpoint, name)
    return backbone.to(computing), path, computing


def open_models(
    models: Mapping[str, Model | Path | str],
    *,
    backbone: str | None = None,
    device: str = "auto",
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    output_name: str | None = None,
    left_out: dict[str, str] | None = None,
) -> dict[str, Model]:
    """Open several models by name; those that are open already stay as they are.

    Args:
        models: name -> a model, or what `load_model` opens.
        backbone: backbone of a file that does not state it; with one model only.
        device: "auto", "cpu", "cuda", ...
        preprocessing: of files that do not state it, or some of its fields. None takes the likely one, with a note.
        output_name: the output of ONNX files that is the embedding, where several may be.
        left_out: if given, a file that cannot be used is left out, and the reason is put here under its name; unless
            it is the only one, or all of them cannot be used.

    Raises:
        CheckpointError: missing, broken, or of another backbone.
        ConfigError: no such device, a backbone for several files, preprocessing where every file states its own, or an
            output name that no file has.
    """
    if backbone and len(models) > 1:
        raise ConfigError(f"--backbone {backbone}: goes with one --model; evaluate that file by itself")
    opened: dict[str, Model] = {}
    failures: list[CheckpointError] = []

    def open_or_leave_out(name: str, work: Callable[[], Model]) -> None:
        try:
            opened[name] = work()
        except CheckpointError as error:
            if left_out is None or len(models) == 1 or not Path(str(models[name])).exists():
                raise
            opened.pop(name, None)
            failures.append(error)
            left_out[name] = str(error)
            _note(f"{name} is left out: {error}")
            if len(failures) == len(models):
                raise failures[0] from None

    for name, model in models.items():
        open_or_leave_out(name, partial(_open, model, backbone, device, output_name))
    _check_output_name(output_name, opened)
    fresh = [name for name in opened if not isinstance(models[name], Model)]
    opened |= _with_input({name: opened[name] for name in fresh}, preprocessing, list(opened))
    for name in fresh:
        open_or_leave_out(name, partial(_checked, opened[name]))
    return opened


def _with_input(
    opened: Mapping[str, Model], preprocessing: Preprocessing | Mapping[str, Any] | None, names: Sequence[str]
) -> dict[str, Model]:
    """The models with the input that they expect; notes say what is not plain from their files.

    Raises:
        ConfigError: preprocessing is given, and every file states its own.
    """
    for name, model in opened.items():
        _note_form(name, model)
    silent = {name: model for name, model in opened.items() if not states_input(model)}
    if preprocessing is not None and not silent:
        raise ConfigError(f"preprocessing (--mean, --scale, --colour): {', '.join(names)} states its own; leave it out")
    if not silent:
        return dict(opened)
    from facebones.evaluation.foreign_input import with_likely_input  # here: our own files state their input

    return {**opened, **with_likely_input(silent, preprocessing)}


def _checked(model: Model) -> Model:
    """Embed two images of noise, one of single pixels and one of large blotches, before the first set is read.

    Raises:
        CheckpointError: an embedding is not finite, or both are zero.
    """
    if model.path is None:
        return model
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (size, size, 3), dtype=np.uint8) for size in (IMAGE_SIZE, BLOTCHES)]
    with evaluation_mode(model.network):
        rows = model(np.stack([_with_mean(_enlarged(image)) for image in images]), flip=False)
    if not np.isfinite(rows).all():
        raise CheckpointError(f"{model.path}: its embedding of a sound image is not finite; export or train it again")
    if not np.any(rows):
        raise CheckpointError(f"{model.path}: its embeddings of sound images are all zero; export or train it again")
    return model


def _enlarged(image_SxSx3: Batch) -> Batch:
    repeats = IMAGE_SIZE // len(image_SxSx3)
    return np.asarray(image_SxSx3.repeat(repeats, axis=0).repeat(repeats, axis=1))


def _with_mean(image_HWC: Batch) -> Batch:
    """The image with a mean of about 127.5."""
    shifted = image_HWC + (127.5 - image_HWC.mean())
    return np.asarray(np.clip(shifted, 0, 255).round(), dtype=np.uint8)


def _check_output_name(output_name: str | None, opened: Mapping[str, Model]) -> None:
    files = [onnx for model in opened.values() if (onnx := model.as_onnx) is not None]
    if output_name is not None and not any(output_name in onnx.output_names for onnx in files):
        raise ConfigError(f"--output-name {output_name}: no ONNX file among {', '.join(opened)} has such an output")


def _note_form(name: str, model: Model) -> None:
    """Say how an ONNX file is used, where that is not plain from the file."""
    onnx = model.as_onnx
    for note in onnx.signature.notes if onnx is not None else ():
        _note(f"{name} {note}")
    if onnx is not None and onnx.folded and onnx.said_name is None:
        _note(f"{name} takes 8-bit pixels: its preprocessing is inside the graph")


def named_files(texts: Iterable[str], option: str) -> dict[str, Path]:
    """Parse the values of an option, each `NAME=PATH`, or a path whose last part without ending is the name.

    Raises:
        ConfigError: two of one name, or a name that cannot begin a file name.

    >>> named_files(["runs/mbf", "theirs=models/r50.onnx"], "--model")
    {'mbf': PosixPath('runs/mbf'), 'theirs': PosixPath('models/r50.onnx')}
    """
    files: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            path, name = text, Path(text).resolve().name if Path(text).is_dir() else Path(text).stem
            name = parse_address(text).name if is_hub_address(text) else name
        if not name or not path or "/" in name or name.startswith(".") or len(name) > LONGEST_NAME:
            raise ConfigError(
                f"{option} {text}: give NAME=PATH, with a name of at most {LONGEST_NAME} letters, without '/' and '=',"
                " that can begin the names of files"
            )
        if name in files:
            raise ConfigError(f"{option}: two are called {name}; give each its own name: {option} NAME=PATH")
        files[name] = Path(path)
    return files


def is_onnx(network: nn.Module) -> bool:
    """Whether a network is an ONNX file; does not import ONNX Runtime to find out."""
    return type(network).__module__ == "facebones.onnx.backbone"


def _open(path_or_name: Model | Path | str, backbone: str | None, device: str, output_name: str | None) -> Model:
    if isinstance(path_or_name, Model):
        return path_or_name
    path = Path(path_or_name)
    # A path wins over a name: a run called "mobilefacenet" must not become a network with random weights.
    named = isinstance(path_or_name, str) and "/" not in path_or_name and not is_hub_address(path_or_name)
    if named and not path.suffix and not path.exists():
        return _fresh(str(path_or_name), device)
    network, file, computing = open_backbone(path, backbone, device, output_name)
    channels_last = not is_onnx(network)
    if channels_last:  # up to 1.8 times the speed of torch's convolutions
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Model(
        network=network,
        device=computing,
        channels_last=channels_last,
        runtime="eager" if channels_last else "onnxruntime",
        path=file,
        weights_sha256=weights_digest(file),
    )


def _fresh(name: str, device: str) -> Model:
    """A registered backbone with new weights."""
    try:
        lookup_backbone(name)
    except UnknownNameError as error:
        raise CheckpointError(f"{name}: no such run or file, and {error}") from error
    with torch.random.fork_rng(devices=[]):
        network = create_backbone(name).eval()
    _note(f"{name}: a registered backbone with random weights")
    computing = select_device(device)
    network = network.to(computing).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Model(network=network, device=computing, channels_last=True)


def _note(text: str) -> None:
    from facebones.system.progress import say

    say(f"note: {text}")


def states_input(model: Model) -> bool:
    """Whether the file says what input the model expects, or there is no file."""
    if (onnx := model.as_onnx) is not None:
        return onnx.said_name is not None
    return model.path is None or "backbone" in read_card(model.path)


def _is_array(image: object, dimensions: int) -> bool:
    return isinstance(image, np.ndarray) and image.ndim == dimensions


def _pixels(image: Image, index: int, detector: "FaceDetector | None") -> Batch:
    """The pixels of an image as `Model.embed` takes it: (112, 112, 3) uint8."""
    from facebones.datatools.photo_faces import find_face, read_photo

    photo, what = read_photo(image, None if isinstance(image, Path | str) else f"image {index}")
    return find_face(photo, detector, what).image
