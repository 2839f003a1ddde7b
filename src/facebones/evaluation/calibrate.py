"""Thresholds for a model: `calibrate` chooses them on evaluation sets, and keeps them beside the model's weights.

`statistics.calibration` says what is promised, `statistics.likelihood_ratio` what a score is worth as evidence.
"""

import json
import math
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import facebones
from facebones.backbones.base import IMAGE_SIZE
from facebones.errors import ConfigError, DataError, counted
from facebones.evaluation.embed import embed
from facebones.evaluation.models import BATCH_SIZE, Model, load_model
from facebones.evaluation.protocol import Protocol, protocols_with_pairs
from facebones.statistics.calibration import CONFIDENCE, PromisedThreshold, ScoredPairs, pooled, promised_threshold
from facebones.statistics.likelihood_ratio import cross_fitted_cost, fit_isotonic, fit_logistic, least_cost
from facebones.system.files import check_writable, write_json
from facebones.system.hub import is_hub_address, parse_address
from facebones.system.regular_files import read_regular

FORMAT = 1
ENDING = ".calibration.json"
RATES = (1e-3,)
NUMBERS = ("threshold", "false_match_rate", "confidence", "true_accept_rate", "impostors")  # of a threshold


def calibrate(
    model: Model | Path | str,
    data: Protocol | Path | str | Sequence[Protocol | Path | str],
    *,
    false_match_rates: Sequence[float] = RATES,
    confidence: float = CONFIDENCE,
    flip: bool = True,
    output: Path | str | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    progress: bool = False,
    **opening: Any,
) -> dict[str, Any]:
    """Choose thresholds whose false match rates are at most the targets, and fit log-likelihood ratios.

    The pairs of several sets are pooled. A score is the cosine of two embeddings. The sets must be like the photos that
    the thresholds are used for, and the model may not have been trained or chosen on them.

    Args:
        model: a model, or what `load_model` opens.
        data: what `find_protocols` finds, such as "lfw.bin" or an IJB folder; or a `Protocol`, such as
            `FolderProtocol(path)`: all pairs of a labelled folder.
        false_match_rates: the targets, each above 0 and below 1.
        confidence: of each promise, one-sided.
        flip: whether the embeddings of image and mirror image are added; a threshold holds for scores made alike.
        output: a JSON file to write; or the model itself: then `Model.calibration` has it from now on.
        batch_size: images per forward pass.
        workers: threads that read images; None uses all cores.
        progress: show the progress on stderr.
        opening: further options of `load_model`.

    Returns:
        "thresholds", of each target that the pairs support what `PromisedThreshold.to_json` returns; "refused", the
        reason for each other target; "likelihood_ratio": "slope" and "intercept" of the logistic calibration, its
        "cllr" and that of the isotonic one, both on pairs that they were not fitted to, and "least_cllr".

    Raises:
        FaceBonesError: the model or a set cannot be used, the output cannot be written, or no target is supported.

    docs/api.md has an example, which a test runs.
    """
    if not false_match_rates:
        raise ConfigError("false_match_rates: none; give at least one, such as 0.001")
    for rate in false_match_rates:
        check_rate(rate)
    check_rate(confidence, "confidence", 0.95)
    protocols = _checked_sets(data)
    opened = model if isinstance(model, Model) else load_model(model, **opening)
    path = None if output is None else _output(Path(output), opened)
    embedding: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    parts = [_scored(opened, one, flip=flip or one.needs_flip, **embedding) for one in protocols]
    pairs = pooled(parts)
    thresholds, refused = _thresholds(pairs, false_match_rates, confidence)
    content = {
        "format": FORMAT,
        "facebones": facebones.__version__,
        "model": opened.describe(),
        "score": "cosine",
        "flip": flip,
        "sets": [_set(one, part) for one, part in zip(protocols, parts, strict=True)],
        "thresholds": [one.to_json() for one in thresholds],
        "refused": refused,
        "likelihood_ratio": _likelihood_ratio(pairs),
    }
    if path is not None:
        write_json(path, content)
    return content


def _checked_sets(data: Protocol | Path | str | Sequence[Protocol | Path | str]) -> list[Protocol]:
    """The sets whose pairs are pooled, each checked before a model is opened."""
    if not (protocols := protocols_with_pairs(data)):
        raise ConfigError("no evaluation set; give at least one")
    for protocol in protocols:
        protocol.check()
    _check_apart(protocols)
    return protocols


def _check_apart(protocols: Sequence[Protocol]) -> None:
    """Refuse sets that share images: their people are taken for different ones, and a pair would count twice.

    Raises:
        DataError: two sets share an image; names both.
    """
    owners: dict[bytes, str] = {}
    for protocol in protocols if len(protocols) > 1 else ():
        images = protocol.images()
        digests = {
            blake2b(images.read(index, IMAGE_SIZE).tobytes(), digest_size=16).digest() for index in range(len(images))
        }
        shared = [owners[digest] for digest in digests if digest in owners]
        if shared:
            raise DataError(
                f"{protocol.path}: shares {counted(len(shared), 'image')} with {shared[0]}, whose pairs would count"
                " twice; give one of them"
            )
        owners |= dict.fromkeys(digests, str(protocol.path))


def _scored(model: Model, protocol: Protocol, **embedding: Any) -> ScoredPairs:
    """The pairs of a set by the model; its embeddings are let go."""
    features = embed({"model": model}, protocol.images(), **embedding)
    return protocol.scored_pairs(features["model"])


def check_rate(rate: float, what: str = "false match rate", usual: float = 0.001) -> None:
    """Refuse a rate, by default that of a threshold, that is none.

    Raises:
        ConfigError: not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise ConfigError(f"{what} {rate:g}: is not between 0 and 1; give one such as {usual:g}")


def calibration_file(weights: Path) -> Path:
    """Where the thresholds of a file of weights are kept.

    >>> calibration_file(Path("runs/mbf/model.safetensors")).name
    'model.calibration.json'
    """
    return weights.with_suffix(ENDING)


def read_calibration(weights: Path, weights_sha256: str) -> dict[str, Any] | None:
    """The thresholds that are kept beside a file of weights; None if there are none.

    Raises:
        DataError: the file is broken, or made for other weights.
    """
    path = calibration_file(weights)
    return read_thresholds(path, weights_sha256, weights.name) if path.exists() else None


def read_thresholds(path: Path, weights_sha256: str, weights_name: str) -> dict[str, Any]:
    """The content of a file of `calibrate`, wherever it lies.

    Args:
        path: the file.
        weights_sha256: digest of the weights that it must be made for.
        weights_name: what an error calls them.

    Raises:
        DataError: the file is missing, broken, or made for other weights.
    """
    try:
        content = json.loads(read_regular(path))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; `facebones calibrate` writes one") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON; {_AGAIN}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: holds no thresholds of this version; {_AGAIN}")
    if content["model"].get("weights_sha256") != weights_sha256:
        raise DataError(f"{path}: was made for other weights than {weights_name} now holds; {_AGAIN}")
    try:
        _check_numbers(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{path}: its thresholds are damaged; {_AGAIN}") from error
    return content


def _check_numbers(content: dict[str, Any]) -> None:
    """Refuse what no calibration writes: JSON has whole numbers beyond all floats, and Python reads NaN from it.

    Raises:
        ValueError: or KeyError, TypeError, AttributeError or OverflowError: something is missing, no number, or not
            finite.
    """
    content["model"]["preprocessing"].items()
    for one in content["thresholds"]:
        if not all(math.isfinite(one[key]) for key in NUMBERS if one[key] is not None):
            raise ValueError("a number that is not finite")
    if not all(isinstance(one["set"], str) for one in content["sets"]) or not isinstance(content["flip"], bool):
        raise TypeError("not what a calibration says of its sets")


_AGAIN = "make it again by `facebones calibrate`, or remove it"


def _output(output: Path, model: Model) -> Path:
    """The file to write: a JSON file, or the one beside the model's weights."""
    if is_hub_address(output):
        address = parse_address(output)
        raise ConfigError(
            f"{output}: the Hub's cache keeps no thresholds of yours; take a copy of the model by `hf download"
            f" {address.repository} --local-dir {address.name}`, or name a .json file"
        )
    if output.suffix != ".json":
        places = [] if model.path is None else [model.path, model.path.parent]
        if model.path is None or output.resolve() not in [place.resolve() for place in places]:
            raise ConfigError(f"{output}: neither the model nor a .json file; name one of them")
        output = calibration_file(model.path)
    check_writable(output)
    return output


def _thresholds(
    pairs: ScoredPairs, rates: Sequence[float], confidence: float
) -> tuple[list[PromisedThreshold], dict[str, str]]:
    """A threshold for each target, and why there is none."""
    found, refused = [], {}
    for rate in sorted(set(rates), reverse=True):
        try:
            found.append(promised_threshold(pairs, rate, confidence))
        except DataError as error:
            refused[f"{rate:g}"] = str(error)
    if not found:
        raise DataError("; ".join(refused.values()))
    return found, refused


def _set(protocol: Protocol, part: ScoredPairs) -> dict[str, Any]:
    genuine = int(part.is_same.sum())
    return {
        "protocol": protocol.name,
        "set": protocol.set,
        "data": str(protocol.path),
        "genuine": genuine,
        "impostors": int(part.is_same.size) - genuine,
        "people": part.people,
    }


def _likelihood_ratio(pairs: ScoredPairs) -> dict[str, float | None]:
    logistic = fit_logistic(pairs.score, pairs.is_same)
    return {
        **logistic.to_json(),
        "cllr": cross_fitted_cost(pairs, fit_logistic),
        "isotonic_cllr": cross_fitted_cost(pairs, fit_isotonic),
        "least_cllr": least_cost(pairs.score, pairs.is_same),
    }
