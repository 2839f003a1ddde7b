"""One network in many formats, and one table of what each changes and costs. A format that fails stops no other."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from facebones import __version__
from facebones.backbones.base import Backbone, deploy_form, is_deployed
from facebones.data.images import ImageArray
from facebones.data.pair_bins import PairSet
from facebones.errors import ConfigError, RunError, UnknownNameError
from facebones.evaluation.pairs import pair_set_files, read_sound_set
from facebones.evaluation.verification import PairSetResult, pair_set_notes
from facebones.exporting import format_work as work
from facebones.exporting.format_rows import (
    BELOW_BOUND,
    BOUNDS,
    FAILED,
    NOT_INSTALLED,
    WRITTEN,
    Row,
    accuracies,
    failed_by_name,
    judge,
    new_row,
    not_installed,
    refusal,
)
from facebones.exporting.format_table import markdown
from facebones.exporting.formats import FORMATS, find_formats
from facebones.exporting.onnx_file import FACES_COMPARED, first_faces, load_for_export
from facebones.onnx.graph_layers import FIRST, LAST
from facebones.onnx.quantize import Calibration
from facebones.plugins import imported_plugins
from facebones.profiling.conditions import ROUNDS
from facebones.system.crash_proof import CrashProof, State
from facebones.system.environment import processor_model, version_of
from facebones.system.files import (
    atomic_write,
    check_writable,
    check_written,
    publish_folder,
    temporary_folder,
    write_json,
)
from facebones.system.hub import origin
from facebones.system.progress import say

Given = ParamSpec("Given")
Result = TypeVar("Result")

DRAWN = "drawn faces"
DRAWN_CALIBRATION = 64  # people, of whom no face is compared
TIMED_SECONDS = 1.0
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "executorch", "litert-torch")


def export_formats(
    model: Path,
    output: Path,
    *,
    formats: str | Sequence[str],
    backbone: str | None = None,
    calibration: Calibration | None = None,
    data: Sequence[Path] = (),
    batch_size: int = 128,
    float_layers: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a network in several formats, with the table of them; see `export`."""
    asked = find_formats(formats)
    if output.exists():
        raise ConfigError(f"{output}: exists already; remove it or name a new folder")
    check_writable(output)
    if all(FORMATS[name].missing for name in asked):
        raise RunError(f"{output}: no format can be written; {_reasons(asked)}")
    network, path = load_for_export(model, backbone)
    deployed = deploy_form(network)
    _check_layers(deployed, float_layers)
    sets = _read_sets(data)
    drawn = calibration.draw() if calibration else None
    source, faces = _faces(list(sets.values()), drawn)
    ranges = draw_people(0, DRAWN_CALIBRATION) if drawn is None else drawn
    with temporary_folder(output) as scratch:
        with CrashProof(scratch / "log.txt") as process:
            making = _Making(process, scratch, faces, sets, batch_size)
            making.order = work.Order(
                model=model,
                backbone=backbone,
                folder=making.parts,
                calibration=ranges,
                float_layers=float_layers,
                threads=torch.get_num_threads(),
                plugins=imported_plugins(),
            )
            rows = making.rows(asked)
            if not any(row["state"] in WRITTEN for row in rows[1:]):
                raise RunError(f"{path}: no format was written; {rows[1]['format']}: {rows[1]['reason']}")
            making.add_latencies(rows)
            diagnosis = making.diagnosis(rows)
        result = {
            "output": str(output),
            "checkpoint": origin(path),
            **_description(deployed),
            "faces": {"source": source, "count": len(faces)},
            "calibration": {"source": str(calibration.data) if calibration else DRAWN, "count": len(ranges)},
            "float_layers": list(float_layers),
            "bounds": BOUNDS,
            "conditions": _conditions(),
            "formats": rows,
            "int8_diagnosis": diagnosis,
            "failed": failed_by_name(rows),
        }
        write_json(making.files / "export.json", result)
        with atomic_write(making.files / "export.md") as file:
            file.write(markdown(result).encode())
        publish_folder(making.files, output)
    written = [name for row in rows if row["state"] in WRITTEN for name in row["files"]]
    check_written(output / name for name in (*written, "export.json", "export.md"))
    return result


class _Making:
    """The files and rows of an export, made in a process that may crash."""

    order: work.Order

    def __init__(
        self,
        process: CrashProof,
        scratch: Path,
        faces: Sequence[ImageArray],
        sets: Mapping[Path, PairSet],
        batch_size: int,
    ) -> None:
        self.files, self.parts = scratch / "files", scratch / "parts"
        for folder in (self.files, self.parts):
            folder.mkdir()
        self._process, self._scratch = process, scratch
        self._faces, self._sets, self._batch_size = faces, sets, batch_size

    def rows(self, asked: Mapping[str, bool]) -> list[Row]:
        """Write all formats; returns the rows, that of the network first, without latencies."""
        reference = new_row(work.PYTORCH, asked_by_name=False)
        results = {work.PYTORCH: self._results(reference)}
        reference["bytes"] = self._do(work.size_of_weights)
        rows = [reference]
        for name, by_name in asked.items():
            row = new_row(name, by_name)
            rows.append(row)
            if FORMATS[name].missing:
                row["state"], row["reason"] = NOT_INSTALLED, not_installed(FORMATS[name])
                continue
            try:
                self._write(row)
                results[name] = self._results(row)
            except RunError as error:
                row["state"], row["reason"] = FAILED, str(error).replace(f"{self._scratch}{os.sep}", "")
                for file in self._paths(name):
                    file.unlink(missing_ok=True)
        self._add_accuracies(rows, results)
        return rows

    def add_latencies(self, rows: Sequence[Row]) -> None:
        """Time all that was written, in turns; where that crashes, latencies are missing and a note says so."""
        timed = {row["format"]: self._first(row["format"]) for row in rows if row["state"] in WRITTEN}
        say(f"latency of one face, {len(timed)} networks in turns")
        try:
            found = self._do(work.time_all, timed, TIMED_SECONDS)
        except RunError as error:
            say(f"note: no latencies: {error}")
            return
        for row in rows:
            row["latency"] = found.get(row["format"])

    def diagnosis(self, rows: Sequence[Row]) -> dict[str, Any] | None:
        """Where 8 bits lose, if a file of 8 bits is below its bound."""
        if not any(row["state"] == BELOW_BOUND and row["precision"] == "int8" for row in rows):
            return None
        say("int8 is below its bound: looking for the layers that lose, and trying other settings")
        try:
            return self._do(work.find_loss, self._faces)
        except RunError as error:
            say(f"note: no diagnosis: {error}")
            return None

    def _write(self, row: Row) -> None:
        name = row["format"]
        say(f"{name}: writing and comparing")
        self._do(work.write, name, self._first(name))
        row["parity"] = self._do(work.compare, name, self._first(name), self._faces)
        if reason := refusal(row):
            raise RunError(reason)
        row["files"] = list(FORMATS[name].files)
        row["bytes"] = sum(file.stat().st_size for file in self._paths(name))

    def _results(self, row: Row) -> dict[Path, PairSetResult]:
        found = {}
        for file, pair_set in self._sets.items():
            say(f"{row['format']}: {pair_set.name}")
            path = self._first(row["format"])
            found[file] = self._do(work.evaluate, row["format"], path, file, self._batch_size)
        return found

    def _add_accuracies(self, rows: Sequence[Row], results: Mapping[str, Mapping[Path, PairSetResult]]) -> None:
        for file, pair_set in self._sets.items():
            found = accuracies({name: one[file] for name, one in results.items()}, pair_set)
            for row in rows:
                row["sets"] += [found[row["format"]]] if row["format"] in found else []
        for row in rows[1:]:
            if row["state"] in WRITTEN:
                judge(row)

    def _do(
        self, function: Callable[Concatenate[State, Given], Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        if self._process.is_new:
            self._process.do(work.prepare, self.order)
        return self._process.do(function, *args, **kwargs)

    def _paths(self, name: str) -> list[Path]:
        return [self.files / file for file in FORMATS[name].files]

    def _first(self, name: str) -> Path:
        return self._paths(name)[0] if name in FORMATS else self.files


def draw_people(first: int, count: int) -> list[ImageArray]:
    """A drawn face, (112, 112, 3) uint8 RGB, of each of so many people, the same in each call."""
    from facebones.synthetic.image import draw_face, image_generator, numbered_identity

    people = range(first, first + count)
    return [draw_face(numbered_identity(0, one), image_generator(0, one, 1)).pixels for one in people]


def _read_sets(data: Sequence[Path]) -> dict[Path, PairSet]:
    """The pair sets by their files; notes on them are printed."""
    sets = {file: read_sound_set(file) for file in pair_set_files(data)}
    for note in (note for pair_set in sets.values() for note in pair_set_notes(pair_set)):
        say(f"note: {note}")
    return sets


def _faces(sets: Sequence[PairSet], drawn: Sequence[ImageArray] | None) -> tuple[str, list[ImageArray]]:
    """The faces on which embeddings are compared, and where they come from."""
    if sets:
        return ", ".join(one.name for one in sets), [face for one in sets for face in first_faces(one)]
    if drawn is not None:
        return "calibration", list(drawn[:FACES_COMPARED])
    return DRAWN, draw_people(DRAWN_CALIBRATION, FACES_COMPARED)


def _check_layers(network: Backbone, names: Sequence[str]) -> None:
    known = {name for name, _ in network.named_modules() if name} | {FIRST, LAST}
    if unknown := [name for name in names if name not in known]:
        raise UnknownNameError("layer", unknown[0], known, where="--float-layers")


def _reasons(names: Iterable[str]) -> str:
    return "; ".join(f"{name}: {not_installed(FORMATS[name])}" for name in names)


def _description(network: Backbone) -> dict[str, Any]:
    form = "deploy" if is_deployed(network) else None
    return {"backbone": network.name, "embedding_size": network.embedding_size, "form": form}


def _conditions() -> dict[str, Any]:
    return {
        "facebones": __version__,
        "processor": processor_model(work.CPU),
        "threads": torch.get_num_threads(),
        "rounds": ROUNDS,
        "seconds": TIMED_SECONDS,
        "packages": {name: version_of(name) for name in PACKAGES},
    }
