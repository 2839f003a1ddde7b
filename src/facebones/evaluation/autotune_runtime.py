"""`--runtime`: run each model by a given runtime, or with `auto` by the fastest whose embeddings match eager's.

`auto` measures on this machine with the batch size and images at hand. The measurements are cached in the user's cache
folder, so that later evaluations do not measure again and decide alike (features on disk depend on the runtime). The
embeddings are compared with eager's every time, on images of the set.
"""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import facebones
from facebones.backbones.base import IMAGE_SIZE, evaluation_mode
from facebones.data.image_sources import ImageSource
from facebones.errors import FaceBonesError
from facebones.evaluation.models import Model
from facebones.evaluation.runtimes import AUTO, EAGER, RUNTIMES, check_runtime, lookup_runtime, run_by
from facebones.onnx.backbone import OnnxBackbone
from facebones.system.autotune_cache import load_measurement, save_measurement, warn_unusable
from facebones.system.environment import git_revision, processor_model, version_of
from facebones.system.progress import say

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
) -> dict[str, Model]:
    """Models computed by a runtime.

    Args:
        models: as they were opened, by name.
        runtime: one of `RUNTIMES`; "auto"; None keeps PyTorch, and ONNX Runtime for ONNX files.
        sources: the images that will be embedded.
        batch_size: images per forward pass.
        flip: whether mirror images will be embedded too.

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
        return {name: _run_by(name, model, runtime, batch_size) for name, model in models.items()}
    count = sum(len(source) for source in sources) * (2 if flip else 1)
    images = np.stack([sources[0].read(index, IMAGE_SIZE) for index in range(min(batch_size, len(sources[0])))])
    return {name: choose(name, model, images, batch_size, count) for name, model in models.items()}


def _run_by(name: str, model: Model, runtime: str, batch_size: int) -> Model:
    if model.runtime != runtime:
        say(f"{name}: preparing --runtime {runtime}")
    return run_by(model, runtime, batch_size)


def choose(name: str, model: Model, images_BHWC: Images, batch_size: int, count: int) -> Model:
    """The model by the runtime that takes the least time for `count` images, preparation included.

    Args:
        name: of the model, for messages.
        model: as it was opened.
        images_BHWC: images on which a runtime is compared with eager.
        batch_size: the largest batch.
        count: images and mirror images that will be embedded.
    """
    if isinstance(model.network, OnnxBackbone):
        say(f"{name}: --runtime auto: an ONNX file, computed by ONNX Runtime")
        return model
    if count < FEWEST_BATCHES * batch_size:
        say(f"{name}: --runtime auto takes eager: {count} images are too few to try others")
        return model
    key = _conditions(model, batch_size)
    known = _read(key)
    before = dict(known)
    trial = _Trial(model, images_BHWC, batch_size)
    for runtime in RUNTIMES:
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
        if runtime == EAGER or cosine >= RUNTIMES[runtime].lowest_cosine:  # False for NaN
            speed, plain = known[runtime].images_per_second, known[EAGER].images_per_second
            say(
                f"{name}: --runtime auto takes {runtime}: {speed:.0f} images/s, eager {plain:.0f} ({speed / plain:.1f}"
                f" times); smallest cosine to eager on {len(images_BHWC)} images {cosine:.6f}"
            )
            return chosen
        say(
            f"{name}: --runtime auto refuses {runtime}: smallest cosine to eager {cosine:.6f},"
            f" required is {RUNTIMES[runtime].lowest_cosine}"
        )
    return model


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
        """Smallest cosine between embeddings of an image by this runtime and by eager."""
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
    parts = [network.name, f"embedding {network.embedding_size}", f"batch {batch_size}", computes]
    return ", ".join([*parts, f"threads {torch.get_num_threads()}", *versions])


def _read(key: str) -> dict[str, Speed]:
    """Cached speeds under these conditions; anything but positive numbers is ignored."""
    found = load_measurement(CACHE, key)
    if found is None:
        return {}
    try:
        speeds = {runtime: Speed(**row) for runtime, row in found.items()}
        fine = all(0 <= s.setup_seconds < math.inf and 0 < s.images_per_second < math.inf for s in speeds.values())
        if not (fine and speeds.keys() <= RUNTIMES.keys() and (EAGER in speeds or not speeds)):
            raise ValueError("no speeds")
    except (AttributeError, TypeError, ValueError):
        warn_unusable(CACHE, key.partition(",")[0])
        return {}
    return speeds
