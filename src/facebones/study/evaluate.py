"""Measures the finished models of a study together: every protocol, and what the networks cost."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from facebones.errors import CheckpointError, FaceBonesError, first_line
from facebones.evaluation.models import load_model
from facebones.evaluation.protocol import Protocol
from facebones.evaluation.run import run_protocols
from facebones.evaluation.runtimes import AUTO, check_available, check_takes_onnx
from facebones.plugins import imported_plugins
from facebones.profiling import Conditions
from facebones.profiling.profile import profile, write_profile
from facebones.reporting.evaluation_plots import write_evaluation_plots
from facebones.reporting.plots.profile import write_profile_plots
from facebones.run_folder import RunFolder
from facebones.study.plan import Plan
from facebones.study.planned_run import versions_here
from facebones.study.record import MODEL_LEFT_OUT, PROFILE, PROTOCOL, SET_LEFT_OUT, Entry, entry_title, finished_models
from facebones.study.study import ProfileSettings
from facebones.system.device import select_device
from facebones.system.processes import Interrupted, stop_signals
from facebones.system.progress import say


@dataclass(frozen=True, kw_only=True)
class Part:
    """A measurement of all models.

    Attributes:
        identity: its kind, and of a protocol the name and the set.
        file: its result, relative to the study's folder.
        decides: everything that decides its numbers, as JSON.
        measure: runs it; puts the models that failed, while others did not, into the dictionary with the reason.
    """

    identity: Mapping[str, Any]
    file: Path
    decides: Sequence[Any]
    measure: Callable[[dict[str, str]], Any]

    def is_current(self, before: Entry | None, output: Path) -> bool:
        """Whether an earlier measurement stands; the package version alone makes nothing be measured again."""
        if before is None or before["error"] is not None or not (output / self.file).is_file():
            return False
        # Until 0.2.0.dev0 the version was part of the digest.
        inputs = (_digest(self.decides), _digest([before["versions"].get("facebones"), *self.decides]))
        return before["file"] == str(self.file) and before["inputs"] in inputs


def check_evaluation(plan: Plan, device: str, runtime: str | None) -> dict[str, str]:
    """Refuse in seconds what would fail only after all trainings: open the models and check the data sets.

    Returns:
        why models cannot be used, by name, while others can; with a note for each.

    Raises:
        UnknownNameError, ConfigError: no such runtime or device, it cannot compute one of the models here, or the
            profile cannot be measured so.
        CheckpointError, DataError: a data set is missing, broken or unfit; a model is missing; or no model can be used.
    """
    if runtime not in (None, AUTO):
        check_available(runtime, select_device(device))
        for path in plan.trained.values():
            if path.suffix == ".onnx":
                check_takes_onnx(runtime, path)
    if plan.study.profile.enabled:
        _conditions(plan.study.profile, device).check("profile.")
    unusable: dict[str, str] = {}
    for name, path in plan.trained.items():
        try:
            _open(path, device)
        except CheckpointError as error:
            if not path.exists() or len(unusable) + 1 == len(plan.trained) + len(plan.runs):
                raise
            unusable[name] = str(error)
            say(f"note: {name} will be left out: {error}")
    for protocol in plan.protocols:
        protocol.check()
    return unusable


def _open(path: Path, device: str) -> None:
    """Open a model and drop it; weights on the CPU, because CUDA would keep memory that the trainings need."""
    load_model(path, device=device if path.suffix == ".onnx" else "cpu")


def evaluate_all(plan: Plan, device: str, runtime: str | None, before: Sequence[Entry]) -> list[Entry]:
    """Measure what has changed since the last time; a measurement that fails does not stop the others.

    A model or a set that can no longer be read is left out, and the others are measured. An image that cannot be
    decoded fails the whole measurement.

    Args:
        plan: the study.
        device: "auto", "cpu", ...
        runtime: as for `compare`.
        before: entries of the last time.

    Returns:
        An entry for each measurement: its file (relative to the study's folder), its error or None, the digest of its
        inputs and the versions that measured it; and an entry for each model and set that was left out.

    Raises:
        Interrupted: SIGINT or SIGTERM arrived.
    """
    models = {name: path for name, path in finished_models(plan).items() if name not in plan.unusable}
    known_bad = [{"kind": MODEL_LEFT_OUT, "name": name, "error": error} for name, error in plan.unusable.items()]
    return [*known_bad, *_measure_sound(plan, models, device, runtime, before)]


def _measure_sound(
    plan: Plan, models: Mapping[str, Path], device: str, runtime: str | None, before: Sequence[Entry]
) -> list[Entry]:
    """Measure models; if something fails, look for models and sets that cannot be read, and measure the others."""
    entries = _measure(plan, models, device, runtime, before)
    if all(entry["error"] is None for entry in entries):
        return [*_failed_models(entries), *entries]
    # Opening everything again takes a while, so it waits until something has failed.
    bad_models = _left_out(MODEL_LEFT_OUT, models, lambda path: _open(path, device))
    bad_sets = _left_out(SET_LEFT_OUT, _by_set(plan.protocols), lambda group: [one.check() for one in group])
    if not bad_models and not bad_sets:
        return [*_failed_models(entries), *entries]
    lost_models, lost_sets = ([entry["name"] for entry in bad] for bad in (bad_models, bad_sets))
    sound = {name: path for name, path in models.items() if name not in lost_models}
    plan = replace(plan, protocols=[one for one in plan.protocols if one.set not in lost_sets])
    known = [*(entry for entry in entries if entry["error"] is None), *before]
    entries = _measure(plan, sound, device, runtime, known)
    return [*bad_models, *_failed_models(entries), *bad_sets, *entries]


def _failed_models(entries: Sequence[Entry]) -> list[Entry]:
    """An entry for each model that failed in a measurement while others did not."""
    reasons: dict[str, str] = {}
    for entry in entries:
        reasons |= entry.get("left_out", {})
    return [{"kind": MODEL_LEFT_OUT, "name": name, "error": error} for name, error in reasons.items()]


def _measure(
    plan: Plan, models: Mapping[str, Path], device: str, runtime: str | None, before: Sequence[Entry]
) -> list[Entry]:
    parts = _parts(plan, models, device, runtime) if models else []
    return [_once(plan.output, part, before) for part in parts]


def _once(output: Path, part: Part, before: Sequence[Entry]) -> Entry:
    """Run a measurement, unless an earlier one stands."""
    known = next((entry for entry in before if part.identity.items() <= entry.items()), None)
    row = {**part.identity, "file": str(part.file), "error": None, "inputs": _digest(part.decides)}
    if known is not None and part.is_current(known, output):
        kept = {"left_out": known["left_out"]} if "left_out" in known else {}
        return {**row, "versions": known["versions"], **kept}
    say(f"measuring {entry_title(row)}")
    left_out: dict[str, str] = {}
    error = _error_of(partial(part.measure, left_out))
    if error is not None:
        say(f"{entry_title(row)}: failed: {error}")
    return {**row, "error": error, "versions": versions_here(), **({"left_out": left_out} if left_out else {})}


def _left_out(kind: str, named: Mapping[str, Any], read: Callable[[Any], Any]) -> list[Entry]:
    """An entry for each model or set that cannot be read."""
    entries = []
    for name, one in named.items():
        if (error := _error_of(partial(read, one))) is not None:
            say(f"{name}: left out: {error}")
            entries.append({"kind": kind, "name": name, "error": error})
    return entries


def _error_of(work: Callable[[], Any]) -> str | None:
    """Call `work`; returns its error, or None.

    Raises:
        Interrupted: SIGINT or SIGTERM arrived.
    """
    with stop_signals() as stop, stop.at_once():
        try:
            work()
        except (FaceBonesError, OSError, RuntimeError) as error:  # torch reports lack of memory by RuntimeError
            if stop.received is not None:  # a library mistook the signal for a failure of its own
                raise Interrupted(stop.received) from None
            return first_line(error)
    return None


def _by_set(protocols: Sequence[Protocol]) -> dict[str, list[Protocol]]:
    """Protocols by the name of their set; an IJB folder is measured by two."""
    groups: dict[str, list[Protocol]] = {}
    for protocol in protocols:
        groups.setdefault(protocol.set, []).append(protocol)
    return groups


def _parts(plan: Plan, models: Mapping[str, Path], device: str, runtime: str | None) -> list[Part]:
    weights = {name: _signature([_weights_file(path)]) for name, path in models.items()}
    common = [device, list(weights.items())]
    parts = [
        Part(
            identity={"kind": PROTOCOL, "protocol": group[0].name, "set": one_set},
            file=Path("evaluation", one_set or "", group[0].file),
            decides=[*common, _inputs(group, runtime)],
            measure=partial(
                _run_protocol,
                models,
                group,
                plan.output / "evaluation" / (one_set or ""),
                device=device,
                runtime=runtime,
            ),
        )
        for one_set, group in _together(plan.protocols)
    ]
    if plan.study.profile.enabled:
        settings = plan.study.profile
        conditions = [settings.batch_size, settings.threads, settings.precision, settings.seconds]
        decides = [*common, conditions + _plugin_digests()]
        parts.append(
            Part(
                identity={"kind": PROFILE},
                file=Path("profile.json"),
                decides=decides,
                measure=lambda _: profile_networks(plan, models, device),
            )
        )
    return parts


def _together(protocols: Sequence[Protocol]) -> list[tuple[str | None, list[Protocol]]]:
    """Sets that are measured into one file: small ones of a protocol together, a large one alone with its name."""
    groups: dict[tuple[str, str | None], list[Protocol]] = {}
    for protocol in protocols:
        groups.setdefault((protocol.name, protocol.set if protocol.keep_features else None), []).append(protocol)
    return [(one_set, group) for (_, one_set), group in groups.items()]


def _run_protocol(
    models: Mapping[str, Path],
    group: Sequence[Protocol],
    output: Path,
    left_out: dict[str, str],
    *,
    device: str,
    runtime: str | None,
) -> None:
    fresh = [copy(protocol) for protocol in group]  # what they read is freed with them
    (result,) = run_protocols(models, fresh, output=output, device=device, runtime=runtime).values()
    left_out |= result.get("left_out", {})
    write_evaluation_plots(result, output)


def _inputs(group: Sequence[Protocol], runtime: str | None) -> list[Any]:
    """What decides the numbers of a protocol, besides the models: its data, the runtime, and the user's own code."""
    files = [file for protocol in group for file in _files(protocol.path)]
    return _signature(files) + ([] if runtime is None else [runtime]) + _plugin_digests()


def _files(path: Path) -> list[Path]:
    """The files whose change is noticed: a file itself, the lists of an IJB folder, or the content of a folder."""
    if path.is_file():
        return [path]
    return sorted((path / "meta").glob("*")) or sorted(path.glob("*"))


def _plugin_digests() -> list[Any]:
    """Name and content of the plug-ins that are files: another network or protocol in them gives other numbers."""
    files = [Path(name) for name in imported_plugins() if name.endswith(".py")]
    return [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in files if path.is_file()]


def profile_networks(plan: Plan, models: Mapping[str, Path], device: str) -> dict[str, Any]:
    """Profile each network once, whatever its seeds and head, and each model that was trained elsewhere."""
    words: dict[str, Path] = {}
    networks = {run.name: run.network for run in plan.runs}
    for name, path in models.items():
        words.setdefault(networks.get(name, name), path)
    # An absolute path is never the name of a backbone. A training may be at two levels of a factor.
    paths = dict.fromkeys(str(path.absolute()) for path in words.values())
    result = profile([*paths], _conditions(plan.study.profile, device))
    rows = dict(zip(paths, result["networks"], strict=True))
    result["networks"] = [{**rows[str(path.absolute())], "name": name} for name, path in words.items()]
    write_profile(result, plan.output)
    write_profile_plots(result, plan.output)
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
    """Path, size and time of files: cheap to read, and different for other content."""
    return [
        [str(path.resolve()), *((stat := path.stat()).st_size, stat.st_mtime_ns)] if path.exists() else [str(path)]
        for path in files
    ]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
