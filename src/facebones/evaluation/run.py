"""Evaluation: images are embedded once, every protocol measures all models, results go to one JSON file a protocol.

`evaluate` is for Python, `run_protocols` for the commands and for studies. Both draw nothing: `reporting` reads the
result files.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import numpy as np
import numpy.typing as npt

import facebones
from facebones.backbones.base import IMAGE_SIZE
from facebones.data.image_sources import ImageSource, distinct
from facebones.data.preprocessing import Preprocessing
from facebones.errors import CheckpointError, ConfigError, DataError, counted, first_line
from facebones.evaluation.embed import embed
from facebones.evaluation.models import BATCH_SIZE, Model, open_models
from facebones.evaluation.protocol import Features, Protocol, ProtocolResult, given_protocols
from facebones.statistics.bootstrap import REPLICATES
from facebones.statistics.metric import Metric, MetricComparison
from facebones.system.distributed import ALONE, World

FORMAT = 2
FEATURES_FOLDER = "features"
WITHOUT_OVERLAP = "without overlap"  # the setting of metrics on what is not in the training data
BLOCK = 8192  # features in memory at a time

AnyModel = Model | Path | str
AnyProtocol = Protocol | Path | str
Found = npt.NDArray[np.bool_]


class Options(TypedDict, total=False):
    """Options that `evaluate` and `run_protocols` share; `evaluate` explains them."""

    device: str
    preprocessing: Preprocessing | Mapping[str, Any] | None
    batch_size: int
    workers: int | None
    runtime: str | None
    flip: bool
    bootstrap: int
    seed: int
    progress: bool
    world: World | None
    without_overlap: Path | str | None


# Of `run_protocols`, for commands: they show the progress.
DEFAULTS: dict[str, Any] = {
    "device": "auto",
    "preprocessing": None,
    "batch_size": BATCH_SIZE,
    "workers": None,
    "runtime": None,
    "flip": True,
    "bootstrap": REPLICATES,
    "seed": 0,
    "progress": True,
    "world": None,
    "without_overlap": None,
}


@overload
def evaluate(
    model: AnyModel, protocol: AnyProtocol | Sequence[AnyProtocol], **options: Unpack[Options]
) -> list[Metric]: ...
@overload
def evaluate(
    model: Mapping[str, AnyModel], protocol: AnyProtocol | Sequence[AnyProtocol], **options: Unpack[Options]
) -> list[MetricComparison]: ...
def evaluate(
    model: AnyModel | Mapping[str, AnyModel],
    protocol: AnyProtocol | Sequence[AnyProtocol],
    *,
    device: str = "auto",
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    runtime: str | None = None,
    flip: bool = True,
    bootstrap: int = REPLICATES,
    seed: int = 0,
    progress: bool = False,
    world: World | None = None,
    without_overlap: Path | str | None = None,
) -> list[Metric] | list[MetricComparison]:
    """Measure one model, or compare several, on evaluation sets.

    Args:
        model: a model, or what `load_model` opens; or several by name, which are compared.
        protocol: what `find_protocols` finds, such as "lfw.bin" or an IJB folder; a `Protocol`; or several of these.
        device: "auto", "cpu", "cuda", ...
        preprocessing: input that files from elsewhere expect, or some of its fields.
        batch_size: images per forward pass.
        workers: threads that read images; None uses all cores, or the share of each process in them.
        runtime: name of `evaluation.runtimes`; "auto" takes the fastest that embeds like PyTorch; None runs PyTorch,
            and ONNX files by ONNX Runtime.
        flip: add the embedding of the mirror image, as the published protocols do.
        bootstrap: number of bootstrap replicates.
        seed: of the bootstrap.
        progress: show the progress on stderr.
        world: processes that share the embedding, from `process_group.joined`; all call this function alike, and all
            get the metrics. They are those of one process. None: this process alone.
        without_overlap: overlap.json of `find_overlap`, or its folder: each set is measured a second time without what
            was found in the training data; the setting of these metrics ends with "without overlap".

    Returns:
        the metrics of one model, with values and intervals; or of several the comparison by each metric. One of several
        that cannot be used is left out with a note.

    Raises:
        FaceBonesError: a model or a set cannot be used; in one line.
    """
    models, world = model if isinstance(model, Mapping) else {"model": model}, world or ALONE
    with world.agreed():
        protocols = given_protocols(protocol)
    results = _measure(
        models,
        protocols,
        {},
        device=device,
        preprocessing=preprocessing,
        batch_size=batch_size,
        workers=workers,
        runtime=runtime,
        flip=flip,
        bootstrap=bootstrap,
        seed=seed,
        progress=progress,
        world=world,
        without_overlap=without_overlap,
    )[1]
    results = world.gather_objects(results)[0]
    if isinstance(model, Mapping):
        return [metric for result in results for metric in result.metrics]
    return [metric for result in results for metric in result.of("model")]


def run_protocols(
    models: Mapping[str, AnyModel],
    protocols: Sequence[Protocol],
    *,
    output: Path | None = None,
    backbone: str | None = None,
    output_name: str | None = None,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """Measure models by protocols, test their differences, and write one result file for each protocol.

    Args:
        models: name -> a model, or what `load_model` opens.
        protocols: the data sets, such as those of `find_protocols`.
        output: folder for the result files and the scores; protocols that keep features write them into `features`,
            where a stopped pass resumes and a later evaluation of the same models finds them. None writes nothing. Of
            several processes, the first writes all but the features.
        backbone: backbone of a file that does not state it; with one model only.
        output_name: the output of ONNX files that is the embedding, where several may be.
        options: as for `evaluate`; the progress is shown unless `progress` is False.

    Returns:
        for each protocol, by name, what its result file holds; "left_out" in it says why models were left out, because
        their file cannot be used or they failed while others did not.

    Raises:
        FaceBonesError: a model or a set cannot be used, or the output cannot be written.
    """
    given: dict[str, Any] = {**DEFAULTS, **options}
    given["world"] = world = given["world"] or ALONE
    with world.agreed():
        check_sets(protocols)
        if output is not None:
            _check_files(output, protocols, list(models))
    left_out: dict[str, str] = {}
    opened, results = _measure(
        models, protocols, left_out, output=output, backbone=backbone, output_name=output_name, **given
    )
    recorded = {name: given[name] for name in ("flip", "bootstrap", "seed")}
    if given["without_overlap"] is not None:
        recorded["without_overlap"] = str(given["without_overlap"])
    contents: dict[str, Any] = {}
    with world.apart():
        if world.is_first:
            contents = _contents([protocol.name for protocol in protocols], opened, results, recorded)
            if left_out:
                contents = {name: content | {"left_out": left_out} for name, content in contents.items()}
            if output is not None:
                from facebones.system.files import check_written

                _write(output, {protocol.file: contents[protocol.name] for protocol in protocols})
                measured = [name for name in opened if name not in left_out]
                check_written(output / file for one in protocols for file in one.written_files(measured))
    told: dict[str, Any] = world.gather_objects(contents)[0]
    return told


def result_content(
    protocol: str, models: Mapping[str, Any], options: Mapping[str, Any], results: Sequence[ProtocolResult]
) -> dict[str, Any]:
    """What a result file holds."""
    from facebones.system.environment import git_revision

    return {
        "format": FORMAT,
        "facebones": facebones.__version__,
        "git_revision": git_revision(),
        "protocol": protocol,
        "models": dict(models),
        "options": dict(options),
        "results": [result.to_json() for result in results],
    }


def _contents(
    protocols: Sequence[str], models: Mapping[str, Model], results: Sequence[ProtocolResult], options: Mapping[str, Any]
) -> dict[str, Any]:
    """What the result file of each protocol holds, by the protocol's name."""
    described = {name: model.describe() for name, model in models.items()}
    by_protocol = {name: [result for result in results if result.protocol == name] for name in protocols}
    return {name: result_content(name, described, options, rows) for name, rows in by_protocol.items()}


def _write(output: Path, contents: Mapping[str, Any]) -> None:
    from facebones.system.files import write_json

    for file, content in contents.items():
        write_json(output / file, content)


def _measure(
    models: Mapping[str, AnyModel],
    protocols: Sequence[Protocol],
    left_out: dict[str, str],
    *,
    batch_size: int,
    workers: int | None,
    runtime: str | None,
    flip: bool,
    bootstrap: int,
    seed: int,
    progress: bool,
    world: World,
    without_overlap: Path | str | None = None,
    output: Path | None = None,
    **opening: Any,
) -> tuple[dict[str, Model], list[ProtocolResult]]:
    """Open the models, embed each image set once, and give its features to the protocols that measure it.

    A model that cannot be used, while others can, is named in `left_out` with the reason. Of several processes, the
    first gets the results.
    """
    if not models or not protocols:
        raise ConfigError(f"{len(models)} models and {len(protocols)} evaluation sets; give at least one of both")
    with world.agreed():
        groups = protocols_by_images(protocols)
        sources = [group[0].images() for group in groups]
        left_apart = _found_before(without_overlap, groups, sources)
    opened = _opened(models, left_out, world, **opening)
    if runtime is not None:
        from facebones.evaluation.many_processes import run_in_all

        embedded = [distinct(source, batch_size) for source in sources]
        opened = run_in_all(opened, runtime, embedded, left_out=left_out, world=world, batch_size=batch_size, flip=flip)
    if world.size > 1:
        from facebones.evaluation.many_processes import check_alike

        check_alike(opened, sources, world, batch_size=batch_size, flip=flip)
    # Random weights, of a backbone that is named alone, have no digest by which features could be found again.
    keeps = all(model.weights_sha256 for model in opened.values())
    results: list[ProtocolResult] = []
    for group, source, found_N in zip(groups, sources, left_apart, strict=True):
        features = _embed(
            opened,
            source,
            left_out,
            batch_size=batch_size,
            workers=workers,
            image_size=IMAGE_SIZE,
            flip=flip or any(one.needs_flip for one in group),
            folder=_features_folder(output, group, groups) if keeps else None,
            progress=progress,
            world=world,
        )
        with world.apart():  # the others wait while process 0 compares
            if world.is_first:
                options: dict[str, Any] = {"bootstrap": bootstrap, "seed": seed, "output": output}
                found = _compared(group, source.name, features, left_out, found_N=found_N, **options)
                results += [replace(one, fingerprint=source.fingerprint()) for one in found]
        left_out |= world.gather_objects(left_out)[0]
    return opened, results


def _opened(models: Mapping[str, AnyModel], left_out: dict[str, str], world: World, **opening: Any) -> dict[str, Model]:
    if world.size == 1:
        return open_models(models, left_out=left_out, **opening)
    from facebones.evaluation.many_processes import open_in_all

    return open_in_all(models, left_out=left_out, world=world, **opening)


def _found_before(
    path: Path | str | None, groups: Sequence[Sequence[Protocol]], sources: Sequence[ImageSource]
) -> list[Found | None]:
    """For each set of images which of them an audit has found in the training data; None without an audit."""
    if path is None:
        return [None] * len(groups)
    from facebones.evaluation.overlap import KnownOverlap

    known = KnownOverlap(path)
    return [known.of(group[0].set, source) for group, source in zip(groups, sources, strict=True)]


def _compared(
    group: Sequence[Protocol],
    images: str,
    features: Mapping[str, Features],
    left_out: dict[str, str],
    *,
    found_N: Found | None,
    **options: Any,
) -> list[ProtocolResult]:
    """What the protocols of one set of images measure; a model whose embeddings have no direction is left out."""
    results: list[ProtocolResult] = []
    for protocol in group:
        try:
            measured = protocol.compare(features, **options)
        except DataError:
            sound = _with_direction(features)
            if not 0 < len(sound) < len(features):
                raise
            for name in features.keys() - sound:
                _leave_out(name, f"{images}: its embedding of an image is zero or not finite", left_out)
            features = {name: features[name] for name in features if name in sound}
            measured = protocol.compare(features, **options)
        results += measured if found_N is None else _with_rest(protocol, measured, features, found_N, options)
    return results


def _with_rest(
    protocol: Protocol,
    measured: Sequence[ProtocolResult],
    features: Mapping[str, Features],
    found_N: Found,
    options: Mapping[str, Any],
) -> list[ProtocolResult]:
    """The results on a whole set, and those without the images that were found in the training data."""
    told = f"{protocol.set}: {found_N.sum():,} of {counted(found_N.size, 'image')} are in the training data, it seems"
    try:
        rest, kept_N = protocol.without(found_N)
        kept = features if kept_N is None else {name: rows[kept_N] for name, rows in features.items()}
        # Scores and curves are those of the whole set.
        of_rest = rest.compare(kept, **{**options, "output": None})
    except DataError as error:
        return _noting(measured, f"{told}; the rest cannot be measured: {error}")
    settings = [f"{one.setting} {WITHOUT_OVERLAP}".strip() for one in of_rest]
    restated = [
        replace(
            one,
            setting=setting,
            metrics=[
                replace(row, metric=row.metric.measured_by(one.protocol, one.set, setting)) for row in one.metrics
            ],
        )
        for one, setting in zip(of_rest, settings, strict=True)
    ]
    return [*_noting(measured, f"{told}; the metrics without them follow"), *restated]


def _noting(results: Sequence[ProtocolResult], note: str) -> list[ProtocolResult]:
    return [replace(one, notes=[*one.notes, note]) for one in results]


def _embed(
    models: Mapping[str, Model], source: ImageSource, left_out: dict[str, str], **options: Any
) -> dict[str, Features]:
    """Features by all models; if one of several fails, each is tried alone, and those that fail are left out."""
    sound = {name: model for name, model in models.items() if name not in left_out}
    try:
        return embed(sound, source, **options)
    except (CheckpointError, RuntimeError) as error:  # torch raises RuntimeError
        if len(sound) == 1:
            raise
        failure = error
    features: dict[str, Features] = {}
    failed = []
    for name, model in sound.items():
        try:
            features |= embed({name: model}, source, **options)
        except (CheckpointError, RuntimeError) as error:
            _leave_out(name, first_line(error), left_out)
            failed.append(name)
    if len(failed) == len(sound):
        raise failure
    return features


def _with_direction(features: Mapping[str, Features]) -> set[str]:
    """The models whose embeddings of all images are finite and not zero."""
    sound = set()
    for model, rows_NxVxD in features.items():
        blocks = (rows_NxVxD[start : start + BLOCK] for start in range(0, len(rows_NxVxD), BLOCK))
        norms = (np.linalg.norm(block.sum(axis=1), axis=1) for block in blocks)
        if all(np.all(np.isfinite(row) & (row > 0)) for row in norms):
            sound.add(model)
    return sound


def _leave_out(name: str, reason: str, left_out: dict[str, str]) -> None:
    from facebones.system.progress import say

    left_out[name] = reason
    say(f"note: {name} is left out: {reason}")


def protocols_by_images(protocols: Sequence[Protocol]) -> list[list[Protocol]]:
    """Group the protocols that measure the same images, as the 1:1 and 1:N protocols of one IJB folder do."""
    places = Counter(protocol.path.resolve() for protocol in protocols)

    def images_of(protocol: Protocol) -> str:
        place = protocol.path.resolve()
        return f"{place} {protocol.images().fingerprint()}" if places[place] > 1 else str(place)

    keyed = sorted(enumerate(map(images_of, protocols)), key=lambda row: row[1])
    groups = [[index for index, _ in rows] for _, rows in groupby(keyed, key=lambda row: row[1])]
    return [[protocols[index] for index in group] for group in sorted(groups)]


def _features_folder(
    output: Path | None, group: Sequence[Protocol], groups: Sequence[Sequence[Protocol]]
) -> Path | None:
    if output is None or not any(one.keep_features for one in group):
        return None
    keeping = [one for one in groups if any(protocol.keep_features for protocol in one)]
    folder = output / FEATURES_FOLDER
    return folder if len(keeping) == 1 else folder / group[0].set


def check_sets(protocols: Sequence[Protocol]) -> None:
    """Refuse two sets of one name, whose results could not be distinguished.

    Raises:
        DataError: the message names them.
    """
    named = Counter((protocol.name, protocol.set) for protocol in protocols)
    for (_, name), count in named.items():
        if count > 1:
            raise DataError(f"--data: two evaluation sets are called {name}; rename one or evaluate them separately")


def _check_files(output: Path, protocols: Sequence[Protocol], models: Sequence[str]) -> None:
    """Refuse an output where a file cannot be written, or where two sets would write one file."""
    from facebones.system.files import check_output

    files = Counter(file for protocol in protocols for file in protocol.written_files(models))
    if twice := [file for file, count in files.items() if count > 1]:
        raise ConfigError(f"{output}: two sets would write {twice[0]}; give each its own output")
    check_output(output, [*{protocol.file: None for protocol in protocols}, *files])
