"""Embeddings of all images of a training set by one model: made once, read in each step of a training with a teacher.

`NAME.features.npy` beside the data holds them as (N, V, D) float16: of each image, and of its mirror image. The record
`NAME.features.json` says of which images and by which model (`feature_store`).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from facebones.data.folders import open_labelled_images
from facebones.data.image_sources import TrainingImages
from facebones.data.joined_sets import beside
from facebones.data.training_set import Integers, TrainingSet, evenly, same_data
from facebones.data.wrapped_sets import SomePeople
from facebones.errors import ConfigError, DataError
from facebones.evaluation.embed import embed
from facebones.evaluation.feature_record import read_record
from facebones.evaluation.many_processes import check_alike, open_in_all, run_in_all
from facebones.system.distributed import ALONE, World
from facebones.system.files import is_file, map_array

ENDING = ".features.npy"
SAMPLED_ROWS = 256
READ_ROWS = 4096  # at a time


def embed_training_set(
    path: str | Path,
    model: str | Path,
    name: str,
    *,
    folder: Path | None = None,
    runtime: str | None = None,
    flip: bool = True,
    batch_size: int = 128,
    workers: int | None = None,
    device: str = "auto",
    world: World = ALONE,
    **opening: Any,
) -> Path:
    """Embed all images of a training set; a stopped pass is continued.

    Args:
        path: the training set; its labels are not used, and one folder of images will do.
        model: the teacher: a run, checkpoint, safetensors or ONNX file.
        name: of the embeddings: a recipe names them by it.
        folder: where the files are written; None: beside the data.
        runtime: what computes the teacher, see `evaluation.runtimes`; None: PyTorch, or ONNX Runtime for its files.
        flip: embed the mirror images too, which a training that mirrors its images needs.
        batch_size: images per forward pass.
        workers: threads that read images; None: one per core.
        device: "auto", "cpu", "cuda", ...
        world: the processes that share the work.
        opening: further options of `open_models`, such as `preprocessing`.

    Returns:
        the file: (N, 2, D) float16, or (N, 1, D) without `flip`. 2 kB an image at D = 512.

    Raises:
        DataError: an image cannot be read.
        CheckpointError: the teacher cannot be used.
        ConfigError: the file holds embeddings of other images or of another model, or an embedding is no finite number
            of float16; or the model is a backbone's name, which has random weights.
        RunError: the disk is full.
    """
    with world.agreed():
        source = TrainingImages(open_labelled_images(Path(path)))
        folder = beside(path) if folder is None else folder
    models = open_in_all({name: model}, device=device, left_out={}, world=world, **opening)
    if not models[name].weights_sha256:
        raise ConfigError(f"--model {model}: has random weights, which teach nothing; give a run or a file")
    if runtime is not None:
        models = run_in_all(models, runtime, [source], left_out={}, world=world, batch_size=batch_size, flip=flip)
    if world.size > 1:
        check_alike(models, [source], world, batch_size=batch_size, flip=flip)
    embed(
        models,
        source,
        batch_size=batch_size,
        workers=workers,
        flip=flip,
        folder=folder,
        half=True,
        progress=True,
        world=world,
    )
    return folder / f"{name}{ENDING}"


class TeacherEmbeddings:
    """Embeddings of a training set that `embed_training_set` has written.

    Args:
        name_or_path: a name beside the data, or a path.
        data: the training set, whose images are looked up by their numbers in it. Of `SomePeople`, the embeddings are
            those of the original, as the file is: its record tells whether they are of the same images.

    Attributes:
        size: D.
        mirrored: whether the mirror images are embedded, too.
        fingerprint: identifies model and embeddings, wherever the file lies.

    Raises:
        DataError: there is no such file; or it is broken, incomplete, or of other images.
    """

    def __init__(self, name_or_path: str, data: TrainingSet) -> None:
        self.path = _find(name_or_path, beside(data.path))
        self._kept: Integers | None = data.kept if isinstance(data, SomePeople) else None
        whole = data.original if isinstance(data, SomePeople) else data
        self._rows: Any = self._open(len(whole))
        record = self._read_record()
        self._check(record, whole)
        self.size, self.mirrored = self._rows.shape[2], self._rows.shape[1] == 2
        self.fingerprint = self._fingerprint(record)

    def rows(self, image_B: Tensor, mirror_B: Tensor | None) -> Tensor:
        """The embeddings (B, D) float32 of images by number, or of their mirror images where `mirror_B` is true."""
        view = np.zeros(len(image_B), np.int64) if mirror_B is None else mirror_B.numpy().astype(np.int64)
        return torch.from_numpy(self._rows[self._places(image_B.numpy()), view].astype(np.float32))

    def class_means(self, labels: Integers, num_classes: int) -> Tensor:
        """The means (C, D) of the unit embeddings of each class, float32; 0 for a class without an image."""
        label_N = torch.from_numpy(np.asarray(labels, np.int64))
        sum_CD = torch.zeros(num_classes, self.size, dtype=torch.float64)
        for start in range(0, len(label_N), READ_ROWS):
            rows = torch.from_numpy(self._rows[self._places(slice(start, start + READ_ROWS))].astype(np.float64))
            sum_CD.index_add_(0, label_N[start : start + READ_ROWS], functional.normalize(rows, dim=2).mean(dim=1))
        counts = torch.bincount(label_N, minlength=num_classes)
        return (sum_CD / counts.clamp(min=1)[:, None]).float()

    def _places(self, images: Any) -> Any:
        """Rows of the file of images by number."""
        return images if self._kept is None else self._kept[images]

    def _open(self, images: int) -> Any:
        try:
            rows = map_array(self.path)
        except (OSError, ValueError) as error:
            raise self._broken(f"cannot be read ({error!s:.80})") from error
        fits = isinstance(rows, np.memmap) and rows.dtype == np.float16 and rows.ndim == 3 and rows.shape[1] in (1, 2)
        if not fits or not rows.shape[2]:
            raise self._broken("holds no embeddings (N, 2, D) of float16")
        if len(rows) != images:
            raise DataError(f"{self.path}: holds embeddings of {len(rows)} images, and the data has {images}; {_AGAIN}")
        return rows

    def _read_record(self) -> dict[str, Any]:
        path = self.path.with_suffix(".json")
        try:
            return read_record(path)
        except (OSError, ValueError) as error:
            raise self._broken(f"{path.name}, which says what it holds, cannot be read") from error

    def _check(self, record: dict[str, Any], data: TrainingSet) -> None:
        if record.get("complete") != len(data):
            done = record.get("complete")
            raise DataError(f"{self.path}: {done!s:.20} of {len(data)} images are embedded; run data embed again")
        try:
            then = json.loads(record["source"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise self._broken("its record does not say of which images") from error
        if not isinstance(then, dict):
            raise self._broken("its record does not say of which images")
        # Labels do not decide embeddings.
        if other := [key for key in same_data(data.fingerprint(), then) if key not in ("identities", "labels_sha256")]:
            raise DataError(
                f"{self.path}: was made of other images than {data.path} holds ({', '.join(other)}); {_AGAIN}"
            )

    def _fingerprint(self, record: dict[str, Any]) -> str:
        kept = {key: record.get(key) for key in ("weights_sha256", "preprocessing")}
        digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
        for row in evenly(range(len(self._rows)), SAMPLED_ROWS):
            digest.update(self._rows[row].tobytes())
        return digest.hexdigest()

    def _broken(self, what: str) -> DataError:
        return DataError(f"{self.path}: {what}; {_AGAIN}")


_AGAIN = "remove it and its .json, and make both again by `facebones data embed`"


def _find(name_or_path: str, folder: Path) -> Path:
    candidates = (Path(name_or_path), folder / f"{name_or_path}{ENDING}", folder / name_or_path)
    for candidate in candidates:
        if is_file(candidate):
            return candidate
    present = sorted(path.name.removesuffix(ENDING) for path in folder.glob(f"*{ENDING}"))
    held = f"{folder} has those named {', '.join(present[:5])}" if present else f"{folder} has none"
    raise DataError(
        f"distillation.embeddings {name_or_path}: no such embeddings; {held}; make them by `facebones data embed DATA"
        " --model TEACHER`"
    )
