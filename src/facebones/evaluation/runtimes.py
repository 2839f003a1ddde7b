"""Runtimes: ways to compute a network for embedding. The reference is `eager`: plain PyTorch in fp32.

A compiled network, and a network in ONNX Runtime or OpenVINO, is prepared for one batch size; a smaller (last) batch is
padded. Padding changes no embedding, because in eval mode each image is computed independently. Autocast keeps the
layers in fp32 that a backbone asks for; OpenVINO in bf16 decides for each layer itself.

`--runtime`: run each model by a given runtime, or with `auto` by the fastest whose embeddings match eager's.

`auto` measures on this machine with the batch size and images at hand. The measurements are cached in the user's cache
folder, so that later evaluations do not measure again and decide alike (features on disk depend on the runtime). The
embeddings are compared with eager's every time, on images of the set.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

import facebones
from facebones.backbones import Backbone
from facebones.backbones.base import IMAGE_SIZE, evaluation_mode
from facebones.data.image_sources import ImageSource
from facebones.errors import ConfigError, FaceBonesError, UnknownNameError, first_line
from facebones.evaluation.models import Model, Precision
from facebones.onnx.backbone import OnnxBackbone
from facebones.onnx.graph import check_packages, to_onnx
from facebones.system.autotune_cache import load_measurement, save_measurement, warn_unusable
from facebones.system.environment import git_revision, processor_model, version_of
from facebones.system.progress import say

AUTO, EAGER, ONNX_RUNTIME = "auto", "eager", "onnxruntime"
# Lowest accepted cosines to eager in fp32 and bf16. Trained compact networks reach 0.9997 in bf16; untrained ones
# amplify rounding, to 0.98.
EXACT, ROUNDED = 0.99999, 0.999
MOST_COMPILED = 256  # networks per process; torch's default of 8 per class silently falls back to eager
Prepare = Callable[[Backbone, int], Backbone]  # from a network in eval mode and a batch size


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A way to compute.

    Attributes:
        precision: of convolutions and linear layers.
        prepare: builds the network that is called instead; None calls the network itself.
        setup_seconds: about the longest time to prepare a compact network on two cores.
        torch: whether PyTorch computes, on any device and channels-last; the others compute on the CPU.
        takes_onnx: whether it also computes ONNX files.
        packages: packages that must be installed; `_ONNX` is for torch networks only, which are exported first.
        extra: the extra that installs them.
    """

    precision: Precision = "fp32"
    prepare: Prepare | None = None
    setup_seconds: float = 0.0
    torch: bool = True
    takes_onnx: bool = False
    packages: tuple[str, ...] = ()
    extra: str = ""

    @property
    def lowest_cosine(self) -> float:
        """Lowest cosine between embeddings of an image by this runtime and by eager that `auto` accepts."""
        return EXACT if self.precision == "fp32" else ROUNDED


def lookup_runtime(name: str) -> Runtime:
    """The runtime of a name.

    Raises:
        UnknownNameError: no such runtime.
        ConfigError: "auto", which needs many images to choose by.
    """
    if name == AUTO:
        raise ConfigError(
            "--runtime auto measures on a set of images (evaluate, compare, data embed); here, name one of"
            f" {', '.join(RUNTIMES)}"
        )
    if name not in RUNTIMES:
        raise UnknownNameError("runtime", name, [*RUNTIMES, AUTO], where="--runtime")
    return RUNTIMES[name]


def check_runtime(name: str, model: Model) -> None:
    """Refuse a runtime that cannot compute a model here.

    Raises:
        ConfigError: the runtime takes no ONNX files, does not compute on the device, or is not installed.
    """
    if isinstance(model.network, OnnxBackbone):
        check_takes_onnx(name, model.path)
    else:
        check_available(name, model.device)


def check_available(name: str, device: torch.device) -> None:
    """Refuse a runtime that is not installed or cannot use the device; ConfigError as in `check_runtime`."""
    runtime = lookup_runtime(name)
    if not runtime.torch and device.type != "cpu":
        raise ConfigError(f"--runtime {name}: computes on the CPU only; use --device cpu or another runtime")
    check_packages(f"--runtime {name}", runtime.packages, runtime.extra)


def check_takes_onnx(name: str, path: Path | None) -> None:
    """Refuse a runtime that cannot compute an ONNX file; ConfigError as in `check_runtime`."""
    runtime = lookup_runtime(name)
    if not runtime.takes_onnx:
        able = ", ".join(one for one in RUNTIMES if RUNTIMES[one].takes_onnx)
        raise ConfigError(f"--runtime {name}: {path} is an ONNX file; take one of {able}, or leave out --runtime")
    packages = [package for package in runtime.packages if package not in _ONNX]
    check_packages(f"--runtime {name}", packages, runtime.extra)


def run_by(model: Model, name: str, batch_size: int) -> Model:
    """The same model computed by a runtime; one batch has been computed already.

    Args:
        model: as it was opened.
        name: of the runtime.
        batch_size: the largest batch that will be embedded.

    Raises:
        ConfigError: as `check_runtime`, or torch cannot compile here.
        RunError: the network cannot be converted for the runtime.
    """
    check_runtime(name, model)
    runtime, network = RUNTIMES[name], model.network
    if name == model.runtime:
        return model
    try:
        if runtime.prepare is not None:
            assert isinstance(network, Backbone)  # noqa: S101 (what load_model opens)
            with evaluation_mode(network):
                network = runtime.prepare(network, batch_size)
        prepared = replace(
            model, network=network, runtime=name, precision=runtime.precision, channels_last=runtime.torch
        )
        with evaluation_mode(network):
            prepared(np.zeros((batch_size, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8), flip=False)
    except FaceBonesError:
        raise
    except Exception as error:  # compilers and OpenVINO raise errors of many kinds
        reason = first_line(error)[:200]
        raise ConfigError(f"--runtime {name}: {reason}; choose another runtime; --debug shows all of it") from error
    return prepared


class FixedBatch(Backbone):
    """A network that computes batches of one size only.

    Args:
        original: the network whose name, embedding size and mode it has.
        compute: (batch_size, 3, H, W) float32 -> (batch_size, D).
        batch_size: the largest batch that it takes.
    """

    def __init__(self, original: Backbone, compute: Callable[[Tensor], Tensor], batch_size: int) -> None:
        super().__init__()
        self.name, self.embedding_size, self.batch_size = original.name, original.embedding_size, batch_size
        self.original = original
        self._compute = (compute,)  # in a tuple, a module is not registered as a part: its mode stays as it is

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Embed up to `batch_size` images."""
        count = len(x_B3HW)
        if count > self.batch_size:
            raise ValueError(f"{count} images; this network takes at most {self.batch_size}")
        if count < self.batch_size:  # pad alone loses the memory format that a compiled network expects
            channels_last = x_B3HW.is_contiguous(memory_format=torch.channels_last)
            filled = pad(x_B3HW, (0, 0, 0, 0, 0, 0, 0, self.batch_size - count))
            x_B3HW = filled.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        return self._compute[0](x_B3HW)[:count]


def _compiled(network: Backbone, batch_size: int) -> Backbone:
    import torch._dynamo.config
    import torch._inductor.config

    compiled = torch.compile(network, dynamic=False)

    def compute(x_B3HW: Tensor) -> Tensor:
        # Freezing makes weights constants. As an option of torch.compile it has no effect: dynamo reads the global.
        with torch._inductor.config.patch(freezing=True), torch._dynamo.config.patch(recompile_limit=MOST_COMPILED):
            answer: Tensor = compiled(x_B3HW)
            return answer

    return FixedBatch(network, compute, batch_size)


def _onnx_runtime(network: Backbone, batch_size: int) -> Backbone:
    with tempfile.TemporaryDirectory() as folder:
        path = _onnx_file(network, Path(folder))
        return FixedBatch(network, OnnxBackbone(path), batch_size)


def _openvino(precision: str) -> Prepare:
    def prepare(network: Backbone, batch_size: int) -> Backbone:
        from facebones.onnx.openvino import compile_openvino, onnx_in_openvino

        if isinstance(network, OnnxBackbone):
            return onnx_in_openvino(network, batch_size, precision)
        with tempfile.TemporaryDirectory() as folder:
            shape = (batch_size, 3, IMAGE_SIZE, IMAGE_SIZE)
            infer = compile_openvino(_onnx_file(network, Path(folder)), shape, precision)

        def compute(x_B3HW: Tensor) -> Tensor:
            return torch.from_numpy(infer(x_B3HW.numpy())[0].astype(np.float32, copy=False))

        return FixedBatch(network, compute, batch_size)

    return prepare


def _onnx_file(network: Backbone, folder: Path) -> Path:
    path = folder / "network.onnx"
    path.write_bytes(to_onnx(network, network.name).SerializeToString())
    return path


_ONNX = ("onnx", "onnxscript")
_OPENVINO = Runtime(
    prepare=_openvino("f32"),
    setup_seconds=15,
    torch=False,
    takes_onnx=True,
    packages=(*_ONNX, "openvino"),
    extra="openvino",
)
RUNTIMES = {
    EAGER: Runtime(),
    "bf16": Runtime(precision="bf16", setup_seconds=1),
    ONNX_RUNTIME: Runtime(
        prepare=_onnx_runtime,
        setup_seconds=15,
        torch=False,
        takes_onnx=True,
        packages=(*_ONNX, "onnxruntime"),
        extra="export",
    ),
    "openvino": _OPENVINO,
    "openvino-bf16": replace(_OPENVINO, precision="bf16", prepare=_openvino("bf16")),
    "compiled": Runtime(prepare=_compiled, setup_seconds=45),
    "compiled-bf16": Runtime(precision="bf16", prepare=_compiled, setup_seconds=45),
}


# ---------------------------------------------------------------------------------------------------------- `--runtime`


FEWEST_BATCHES = 16  # to measure takes some four batches a runtime
LARGEST_SHARE = 0.25  # trying another runtime may cost this share of the time that the best one so far takes
TIMED_BATCHES, TIMED_SECONDS = 5, 5.0  # whichever is reached first
CACHE = "runtimes"
PACKAGES = ("torch", "onnxruntime", "openvino")

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Speed:
    """Measured speed of a runtime.

    Attributes:
        setup_seconds: time to the first batch.
        images_per_second: afterwards.
    """

    setup_seconds: float
    images_per_second: float

    def seconds(self, count: int) -> float:
        """Time for a number of images, preparation included."""
        return self.setup_seconds + count / self.images_per_second


def with_runtime(
    models: Mapping[str, Model],
    runtime: str | None,
    sources: Sequence[ImageSource],
    *,
    batch_size: int,
    flip: bool = True,
    left_out: dict[str, str] | None = None,
) -> dict[str, Model]:
    """Models computed by a runtime.

    Args:
        models: as they were opened, by name.
        runtime: one of `RUNTIMES`; "auto"; None keeps PyTorch, and ONNX Runtime for ONNX files.
        sources: the images that will be embedded.
        batch_size: images per forward pass.
        flip: whether mirror images will be embedded too.
        left_out: if given, a model that the runtime fails to compute, while others work, is left out, and the reason
            is put here.

    Raises:
        UnknownNameError, ConfigError: no such runtime, or it cannot compute one of the models.
        DataError: an image cannot be read.
        RunError: a network cannot be converted for the runtime.
    """
    if runtime is None:
        return dict(models)
    if runtime != AUTO:
        lookup_runtime(runtime)
        for model in models.values():  # all before the first is compiled
            check_runtime(runtime, model)
    batch_size = min(batch_size, max(len(source) for source in sources))
    if runtime != AUTO:
        return _all_by(models, runtime, batch_size, left_out)
    count = sum(len(source) for source in sources) * (2 if flip else 1)
    images = np.stack([sources[0].read(index, IMAGE_SIZE) for index in range(min(batch_size, len(sources[0])))])
    return {name: choose(name, model, images, batch_size, count) for name, model in models.items()}


def _all_by(
    models: Mapping[str, Model], runtime: str, batch_size: int, left_out: dict[str, str] | None
) -> dict[str, Model]:
    prepared: dict[str, Model] = {}
    failures: dict[str, FaceBonesError] = {}
    for name, model in models.items():
        if model.runtime != runtime:
            say(f"{name}: preparing --runtime {runtime}")
        try:
            prepared[name] = run_by(model, runtime, batch_size)
        except FaceBonesError as error:
            if left_out is None or len(models) == 1:
                raise
            failures[name] = error
    if not prepared:
        raise next(iter(failures.values()))
    for name, failure in failures.items():
        say(f"note: {name} is left out: {failure}")
        assert left_out is not None  # noqa: S101 (else it was raised)
        left_out[name] = str(failure)
    return prepared


def choose(name: str, model: Model, images_BHWC: Images, batch_size: int, count: int) -> Model:
    """The model by the runtime that takes the least time for `count` images, preparation included.

    Args:
        name: of the model, for messages.
        model: as it was opened.
        images_BHWC: images on which a runtime is compared with eager.
        batch_size: the largest batch.
        count: images and mirror images that will be embedded.
    """
    plain = model.runtime  # eager, or ONNX Runtime for an ONNX file
    if count < FEWEST_BATCHES * batch_size:
        say(f"{name}: --runtime auto takes {plain}: {count} images are too few to try others")
        return model
    key = _conditions(model, batch_size)
    known = _read(key, plain)
    before = dict(known)
    trial = _Trial(model, images_BHWC, batch_size)
    for runtime in _able(model):
        if runtime not in known and _worth_trying(runtime, known, count):
            say(f"{name}: --runtime auto tries {runtime}")
            try:
                known[runtime] = trial.measure(runtime)
                trial.keep(min(known, key=lambda one: known[one].seconds(count)))
            except FaceBonesError as error:
                say(f"{name}: --runtime auto leaves out {runtime}: {error}")
    if known != before:
        save_measurement(CACHE, key, {runtime: asdict(speed) for runtime, speed in known.items()})
    for runtime in sorted(known, key=lambda one: known[one].seconds(count)):
        try:
            chosen, cosine = trial.prepared(runtime), trial.cosine(runtime)
        except FaceBonesError as error:
            say(f"{name}: --runtime auto leaves out {runtime}: {error}")
            continue
        if runtime == plain or cosine >= RUNTIMES[runtime].lowest_cosine:  # False for NaN
            speed, before_it = known[runtime].images_per_second, known[plain].images_per_second
            say(
                f"{name}: --runtime auto takes {runtime}: {speed:.0f} images/s, {plain} {before_it:.0f}"
                f" ({speed / before_it:.1f} times); smallest cosine to {plain} on {len(images_BHWC)} images"
                f" {cosine:.6f}"
            )
            return chosen
        say(
            f"{name}: --runtime auto refuses {runtime}: smallest cosine to {plain} {cosine:.6f},"
            f" required is {RUNTIMES[runtime].lowest_cosine}"
        )
    return model


def _able(model: Model) -> list[str]:
    """The runtimes that may compute a model, the one that computes it now first."""
    is_file = isinstance(model.network, OnnxBackbone)
    return [
        model.runtime,
        *(one for one in RUNTIMES if one != model.runtime and (RUNTIMES[one].takes_onnx or not is_file)),
    ]


def _worth_trying(runtime: str, known: Mapping[str, Speed], count: int) -> bool:
    best = min((speed.seconds(count) for speed in known.values()), default=math.inf)
    return RUNTIMES[runtime].setup_seconds <= LARGEST_SHARE * best


class _Trial:
    """A model by several runtimes, one of which will be used."""

    def __init__(self, model: Model, images_BHWC: Images, batch_size: int) -> None:
        self._model, self._images, self._batch_size = model, images_BHWC, batch_size
        self._prepared: dict[str, Model] = {}
        self._expected = self._embed(model)

    def prepared(self, runtime: str) -> Model:
        if runtime not in self._prepared:
            self._prepared[runtime] = run_by(self._model, runtime, self._batch_size)
        return self._prepared[runtime]

    def keep(self, runtime: str) -> None:
        """Release all prepared networks but one: together they may take gigabytes."""
        self._prepared = {name: model for name, model in self._prepared.items() if name == runtime}

    def measure(self, runtime: str) -> Speed:
        start = time.perf_counter()
        model = self.prepared(runtime)
        setup = time.perf_counter() - start
        batch = np.resize(self._images, (self._batch_size, *self._images.shape[1:]))  # repeats the images
        times: list[float] = []
        with evaluation_mode(model.network):
            model(batch, flip=False)
            while len(times) < TIMED_BATCHES and sum(times) < TIMED_SECONDS:
                start = time.perf_counter()
                model(batch, flip=False)
                times.append(time.perf_counter() - start)
        return Speed(setup, self._batch_size / statistics.median(times))

    def cosine(self, runtime: str) -> float:
        """Smallest cosine between embeddings of an image by this runtime and by the plain one."""
        return smallest_cosine(self._expected, self._embed(self.prepared(runtime)))

    def _embed(self, model: Model) -> npt.NDArray[np.float32]:
        with evaluation_mode(model.network):
            return model(self._images, flip=False)[:, 0]


def smallest_cosine(a_BD: npt.NDArray[np.float32], b_BD: npt.NDArray[np.float32]) -> float:
    """Smallest cosine between rows; NaN where an embedding is zero or not finite.

    >>> round(smallest_cosine(np.eye(2), np.array([[2.0, 0.0], [1.0, 1.0]])), 3)
    0.707
    """
    a, b = a_BD.astype(np.float64), b_BD.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(cosines.min())


def _conditions(model: Model, batch_size: int) -> str:
    """Everything that decides how fast a network is here."""
    network: Any = model.network
    computes = f"{model.device.type} {processor_model(model.device)}"
    versions = [f"facebones {facebones.__version__}", f"commit {git_revision()}"]
    versions += [f"{package} {version_of(package)}" for package in PACKAGES]
    name = f"{network.name} {model.weights_sha256[:16]}" if isinstance(network, OnnxBackbone) else network.name
    parts = [name, f"embedding {network.embedding_size}", f"batch {batch_size}", computes]
    return ", ".join([*parts, f"threads {torch.get_num_threads()}", *versions])


def _read(key: str, plain: str) -> dict[str, Speed]:
    """Cached speeds under these conditions; anything but positive numbers is ignored."""
    found = load_measurement(CACHE, key)
    if found is None:
        return {}
    try:
        speeds = {runtime: Speed(**row) for runtime, row in found.items()}
        fine = all(0 <= s.setup_seconds < math.inf and 0 < s.images_per_second < math.inf for s in speeds.values())
        if not (fine and speeds.keys() <= RUNTIMES.keys() and (plain in speeds or not speeds)):
            raise ValueError("no speeds")
    except (AttributeError, TypeError, ValueError):
        warn_unusable(CACHE, key.partition(",")[0])
        return {}
    return speeds
