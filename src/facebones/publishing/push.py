"""Publish a finished run on the Hugging Face Hub: `push`, the function behind `facebones push`."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import facebones
from facebones.backbones.hub_config import (
    CALIBRATION,
    CONFIG,
    LARGEST_CALIBRATION,
    LARGEST_CONFIG,
    LARGEST_WEIGHTS,
    WEIGHTS,
    HubConfig,
    StatedFile,
)
from facebones.errors import ConfigError, DataError
from facebones.profiling.cost import count_macs, count_parameters
from facebones.publishing.finished_run import FinishedRun, open_finished, published_thresholds
from facebones.publishing.model_card import Card
from facebones.publishing.run_metrics import MeasuredMetric, measured_metrics
from facebones.publishing.upload import upload
from facebones.system.files import atomic_write, check_written, publish_folder, temporary_folder
from facebones.system.hub import checked_repository

CARD = "README.md"
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
ASK_LICENSE = (
    "which licence do the weights have? Give --license ID as the Hub names it, such as mit, apache-2.0, cc-by-nc-4.0 or"
    " other; it is yours to choose, within the terms of the training data"
)
RESULT_FACTS = ("training_data", "training_images", "training_identities", "epochs", "steps")


@dataclass(frozen=True, kw_only=True)
class Published:
    """What `push` has published, or would publish.

    Attributes:
        repository: "owner/name".
        files: their sizes in bytes, by name.
        card: the text of README.md.
        address: of the model at its commit, as `load_model` takes it; None if nothing was uploaded.
        url: of the repository's page; None likewise.
        private: whether the repository is, or would be, private.
        output: the folder that was written instead, or None.
    """

    repository: str
    files: Mapping[str, int]
    card: str
    address: str | None = None
    url: str | None = None
    private: bool
    output: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """All attributes as plain values."""
        return {**vars(self), "files": dict(self.files), "output": self.output and str(self.output)}


def push(
    run: Path | str,
    repository: str,
    *,
    license: str | None,
    results: Path | str | Sequence[Path | str] = (),
    calibration: Path | str | None = None,
    public: bool = False,
    message: str | None = None,
    output: Path | str | None = None,
    dry_run: bool = False,
) -> Published:
    """Publish a finished run as a repository of the Hugging Face Hub, in one commit.

    The repository gets model.safetensors, config.json with the size, digest, cost and metrics of the model, README.md,
    and model.calibration.json if the model has thresholds. Paths of this machine are left out.

    Args:
        run: the run's folder.
        repository: "owner/name"; it is made if there is none.
        license: of the weights, as the Hub names it, such as "mit" or "cc-by-nc-4.0".
        results: results of evaluations, or studies, that hold metrics of these very weights; those in the run's folder
            and of the study around it are found without.
        calibration: a file of `calibrate`; None: the one beside the weights, if there is one.
        public: make a new repository public; without it, a new one is private, and a public one is refused.
        message: of the commit.
        output: write the files into this new folder, and upload nothing.
        dry_run: upload nothing.

    Raises:
        ConfigError: no licence, no repository's name, no token, or a folder that is there already.
        CheckpointError: not a finished run, or no access to the repository.
        DataError: results or thresholds are damaged, or not of these weights.
        RunError: the Hub cannot be reached; then no file of the repository has changed.

    docs/api.md has an example, which a test runs.
    """
    checked_repository(repository)
    if license is None or not LICENSE.fullmatch(license):
        raise ConfigError(ASK_LICENSE if license is None else f"--license {license:.80}: no identifier; {ASK_LICENSE}")
    folder = None if output is None else Path(output)
    if folder is not None and (folder.exists() or folder.is_symlink()):
        raise ConfigError(f"{folder}: exists already; choose another --output")
    opened = open_finished(Path(run))
    places = [results] if isinstance(results, Path | str) else results
    metrics = measured_metrics([Path(place) for place in places], opened.folder.path, opened.weights_sha256)
    thresholds = published_thresholds(opened, None if calibration is None else Path(calibration))
    files, card = _files(opened, repository, license, metrics, thresholds)
    sizes = {name: len(content) for name, content in files.items()}
    told: dict[str, Any] = {"repository": repository, "files": sizes, "card": card}
    if folder is not None:
        _write(folder, files)
        return Published(**told, private=not public, output=folder)
    if dry_run:
        return Published(**told, private=not public)
    made = upload(repository, files, public=public, message=message or f"{opened.network.name}, by facebones push")
    return Published(**told, address=made.address, url=made.url, private=made.private)


def _files(
    run: FinishedRun,
    repository: str,
    license_name: str,
    metrics: Sequence[MeasuredMetric],
    thresholds: Mapping[str, Any] | None,
) -> tuple[dict[str, bytes], str]:
    """The files of the repository by name, and the text of the card."""
    network, stated = run.network, None
    parameters, macs = count_parameters(network), count_macs(network)
    files: dict[str, bytes] = {WEIGHTS: run.weights_bytes()}
    if thresholds is not None:
        content = _json(CALIBRATION, thresholds)
        files[CALIBRATION], stated = content, StatedFile.of_bytes(content)
    config = HubConfig(
        backbone=network.name,
        embedding_size=network.embedding_size,
        parameters=parameters,
        weights=run.stated,
        calibration=stated,
    )
    more = {
        "macs": macs,
        "license": license_name,
        **{key: run.result[key] for key in RESULT_FACTS if isinstance(run.result.get(key), int | str)},
        "trained_with": dict(run.environment),
        "published_with": facebones.__version__,
        "metrics": [one.to_json() for one in metrics],
    }
    card = Card(
        repository=repository,
        license=license_name,
        run=run,
        parameters=parameters,
        macs=macs,
        metrics=metrics,
        thresholds=thresholds,
    ).write()
    files |= {CONFIG: _json(CONFIG, config.to_json(more)), CARD: card.encode(errors="backslashreplace")}
    _check_sizes(files)
    return files, card


def _json(name: str, content: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise DataError(f"{name}: a number in the results is not finite; make the results again") from error
    return text.encode(errors="backslashreplace") + b"\n"


def _check_sizes(files: Mapping[str, bytes]) -> None:
    """Refuse to publish what `load_model` would refuse to fetch."""
    for name, most in ((WEIGHTS, LARGEST_WEIGHTS), (CONFIG, LARGEST_CONFIG), (CALIBRATION, LARGEST_CALIBRATION)):
        if (size := len(files.get(name, b""))) > most:
            raise DataError(f"{name}: would have {size:,} bytes, and {most:,} are allowed; give fewer results")


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files into a new folder, which appears with all of them."""
    with temporary_folder(folder) as scratch:
        for name, content in files.items():
            with atomic_write(scratch / name) as file:
                file.write(content)
        publish_folder(scratch, folder)
    check_written(folder / name for name in files)
