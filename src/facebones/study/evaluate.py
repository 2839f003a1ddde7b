"""The finished models of a study, measured all at once: pair sets, IJB targets, and what the networks cost."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import facebones
from facebones.errors import FaceBonesError, first_line
from facebones.evaluation.models import open_backbone
from facebones.evaluation.pairs import pair_protocols, read_sound_set
from facebones.evaluation.protocol import Protocol, lookup_protocol
from facebones.evaluation.run import run_protocols
from facebones.evaluation.runtimes import AUTO, check_available, check_takes_onnx
from facebones.profiling import Conditions, profile
from facebones.profiling.profile import write_profile
from facebones.reporting.evaluation_plots import write_evaluation_plots
from facebones.run_folder import RunFolder
from facebones.study.plan import DONE, Plan
from facebones.study.study import MODEL_PART, ProfileSettings
from facebones.system.device import select_device
from facebones.system.progress import say
from facebones.system.signals import Interrupted, stop_signals

IJB_PROTOCOLS = {"templates": "ijb_verification", "identification": "ijb_identification"}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A measurement of all models.

    Attributes:
        name: "pairs", "profile", or as "templates IJBC".
        file: what it leaves, relative to the study's folder.
        inputs: digest of all that decides its outcome.
        measure: does it.
    """

    name: str
    file: Path
    inputs: str
    measure: Callable[[], Any]


def finished_models(plan: Plan) -> dict[str, Path]:
    """Name to run or file, of what can be measured."""
    return {run.name: run.folder.path for run in plan.runs if run.state == DONE} | dict(plan.trained)


def check_evaluation(plan: Plan, device: str, runtime: str | None) -> None:
    """Refuse what would fail only after all trainings, in seconds: models are opened, pair sets and IJB lists read.

    Raises:
        UnknownNameError, ConfigError: no such runtime or device, it cannot compute one of the models here, or the
            profile cannot be measured so.
        CheckpointError, DataError: a model, a pair set or an IJB folder is missing, broken or unfit.
    """
    if runtime not in (None, AUTO):
        check_available(runtime, select_device(device))
        for path in plan.trained.values():
            if path.suffix == ".onnx":
                check_takes_onnx(runtime, path)
    if plan.study.profile.enabled:
        _conditions(plan.study.profile, device).check("profile.")
    for path in plan.trained.values():
        _open(path, device)
    for path in plan.pair_sets:  # one after the other, so that no two are in memory
        read_sound_set(path)
    for folder in plan.study.ijb:
        for name in IJB_PROTOCOLS.values():
            lookup_protocol(name)(Path(folder)).check()


def _open(path: Path, device: str) -> None:
    """Open a model and let it go; weights on the CPU, as they would leave something on the GPU of the trainings."""
    open_backbone(path, None, device if path.suffix == ".onnx" else "cpu")


def evaluate_all(plan: Plan, device: str, runtime: str | None, before: Mapping[str, Any]) -> dict[str, Any]:
    """Measure what has changed since the last time; a part that fails does not stop the others.

    Nor does a model or a pair set that cannot be read any more: the others are measured without it. What fails later,
    as an image that cannot be decoded, takes the whole part with it.

    Args:
        plan: the study.
        device: "auto", "cpu", ...
        runtime: as in `runtime_choice.with_runtime`.
        before: what the last call returned.

    Returns:
        of each part its file (relative to the study's folder), its error or None, and the digest of its inputs; and
        likewise of each model ("model NAME") and pair set ("pair set NAME") that was left out.

    Raises:
        Interrupted: SIGINT or SIGTERM came.
    """
    models = finished_models(plan)
    rows = _measure(plan, models, device, runtime, before)
    if all(row["error"] is None for row in rows.values()):
        return rows
    # Only now is everything opened once more: it takes a while, and as a rule nothing has failed.
    bad_models = _left_out(models, lambda path: _open(path, device))
    bad_sets = _left_out({path.stem: path for path in plan.pair_sets}, read_sound_set)
    if not bad_models and not bad_sets:
        return rows
    sound = {name: path for name, path in models.items() if name not in bad_models}
    plan = replace(plan, pair_sets=[path for path in plan.pair_sets if path.stem not in bad_sets])
    known = {**before, **{name: row for name, row in rows.items() if row["error"] is None}}
    left_out = {f"{MODEL_PART}{name}": row for name, row in bad_models.items()}
    left_out |= {f"pair set {name}": row for name, row in bad_sets.items()}
    return left_out | _measure(plan, sound, device, runtime, known)


def _measure(
    plan: Plan, models: Mapping[str, Path], device: str, runtime: str | None, before: Mapping[str, Any]
) -> dict[str, Any]:
    parts = _parts(plan, models, device, runtime) if models else []
    return {part.name: _once(plan.output, part, before.get(part.name)) for part in parts}


def _once(output: Path, part: Part, before: Any) -> dict[str, Any]:
    row = {"file": str(part.file), "error": None, "inputs": part.inputs}
    if before == row and (output / part.file).is_file():
        return row
    say(f"measuring {part.name}")
    row["error"] = _error_of(part.measure)
    if row["error"] is not None:
        say(f"{part.name}: failed: {row['error']}")
    return row


def _left_out(paths: Mapping[str, Path], read: Callable[[Path], Any]) -> dict[str, Any]:
    """Of each that cannot be read a row as that of a part, by name."""
    rows = {}
    for name, path in paths.items():
        if (error := _error_of(partial(read, path))) is not None:
            say(f"{name}: left out: {error}")
            rows[name] = {"file": str(path), "error": error, "inputs": ""}
    return rows


def _error_of(work: Callable[[], Any]) -> str | None:
    """Do it; returns what it failed of, or None.

    Raises:
        Interrupted: SIGINT or SIGTERM came.
    """
    with stop_signals() as stop, stop.at_once():
        try:
            work()
        except (FaceBonesError, OSError, RuntimeError) as error:  # torch says of memory in a RuntimeError
            if stop.received is not None:  # a library took the stop for a failure of its own
                raise Interrupted(stop.received) from None
            return first_line(error)
    return None


def _parts(plan: Plan, models: Mapping[str, Path], device: str, runtime: str | None) -> list[Part]:
    weights = {name: _signature([_weights_file(path)]) for name, path in models.items()}
    folder = plan.output / "evaluation"
    parts = []

    by = [] if runtime is None else [runtime]

    def add(name: str, file: Path, inputs: list[Any], measure: Callable[[], Any]) -> None:
        digest = _digest([facebones.__version__, device, list(weights.items()), inputs])
        parts.append(Part(name=name, file=file.relative_to(plan.output), inputs=digest, measure=measure))

    def run(protocols: Sequence[Protocol], output: Path) -> Any:
        contents = run_protocols(models, protocols, output=output, device=device, runtime=runtime)
        for content in contents.values():
            write_evaluation_plots(content, output)

    if plan.pair_sets:
        inputs = _signature(plan.pair_sets) + by
        add("pairs", folder / "pairs.json", inputs, lambda: run(pair_protocols(plan.pair_sets), folder))
    for data in map(Path, plan.study.ijb):
        # Below a folder of its own: features and pictures have the same names for every target.
        target = folder / data.resolve().name
        inputs = _signature(sorted((data / "meta").glob("*"))) + by
        for name, protocol in IJB_PROTOCOLS.items():
            set_of = lookup_protocol(protocol)(data)
            add(f"{name} {target.name}", target / f"{name}.json", inputs, partial(run, [set_of], target))
    if plan.study.profile.enabled:
        settings = plan.study.profile
        conditions = [settings.batch_size, settings.threads, settings.precision, settings.seconds]
        add("profile", plan.output / "profile.json", conditions, lambda: profile_networks(plan, models, device))
    return parts


def profile_networks(plan: Plan, models: Mapping[str, Path], device: str) -> dict[str, Any]:
    """Profile each backbone among the models once, whatever its seeds, and each model that others trained."""
    words: dict[str, Path] = {}
    backbones = {run.name: run.backbone for run in plan.runs}
    for name, path in models.items():
        words.setdefault(backbones.get(name, name), path)
    # As absolute paths, which no backbone is called.
    result = profile([str(path.absolute()) for path in words.values()], _conditions(plan.study.profile, device))
    for name, row in zip(words, result["networks"], strict=True):
        row["name"] = name
    write_profile(result, plan.output)
    return result


def _conditions(settings: ProfileSettings, device: str) -> Conditions:
    return Conditions(
        device=device,
        threads=settings.threads or None,
        precision=settings.precision,
        batch_size=settings.batch_size,
        seconds=settings.seconds,
    )


def _weights_file(path: Path) -> Path:
    return RunFolder(path).weights if path.is_dir() else path


def _signature(files: Sequence[Path]) -> list[Any]:
    """Path, size and time of files: cheap, and another content gets another one."""
    return [
        [str(path.resolve()), *((stat := path.stat()).st_size, stat.st_mtime_ns)] if path.exists() else [str(path)]
        for path in files
    ]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
