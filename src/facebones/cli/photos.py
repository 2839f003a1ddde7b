"""Commands that use a model on photos: two photos, many photos, one photo against many."""

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facebones.cli.evaluation import embedding_options, foreign_model_options, given_preprocessing
from facebones.cli.options import (
    MODEL_HELP,
    TRAINED_HELP,
    Arguments,
    Command,
    device_option,
    json_option,
    positive,
    print_json,
    runtime_option,
    share,
)
from facebones.errors import ConfigError, counted, some
from facebones.system.hub import is_hub_address, parse_address
from facebones.system.number_format import small_rate
from facebones.system.progress import printable, say, tell

if TYPE_CHECKING:
    from facebones.datatools.landmarks import FaceDetector
    from facebones.evaluation.match import Threshold
    from facebones.evaluation.photos import PhotoEmbeddings

MODEL_VARIABLE = "FACEBONES_MODEL"
SHOWN_MISSING = 5


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="RUN|FILE", help=f"{MODEL_HELP} [${MODEL_VARIABLE}]")
    foreign_model_options(parser)


def _face_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--detector",
        type=Path,
        metavar="FILE.onnx",
        help="the face detector YuNet [$FACEBONES_DETECTOR, or what `facebones download detector` has fetched]",
    )
    parser.add_argument("--confidence", type=share, metavar="P", help="least score of a face [0.6]")
    parser.add_argument("--face", choices=("largest", "central"), help="which of several faces in a photo [largest]")
    parser.add_argument("--aligned", action="store_true", help="the photos are aligned faces: look for no face")


def _fmr_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fmr", type=share, metavar="RATE", help="the model's threshold for this false match rate [the lowest kept]"
    )


def _opened_detector(arguments: Arguments) -> "FaceDetector | None":
    """The detector that is asked for; None for aligned faces."""
    finding = {name: value for name in ("confidence", "face") if (value := getattr(arguments, name)) is not None}
    if arguments.aligned:
        if finding or arguments.detector is not None:
            raise ConfigError("--aligned looks for no face: leave out --detector, --confidence and --face")
        return None
    from facebones.datatools.detector_file import open_detector

    return open_detector(arguments.detector or "auto", **finding)


def _opening(arguments: Arguments) -> dict[str, Any]:
    """Options of `load_model`, and the model."""
    model = _model_name(arguments)
    if not model:
        raise ConfigError(f"no model: give --model RUN|FILE, or set {MODEL_VARIABLE}")
    named = ("backbone", "output_name", "device", "runtime")
    given = {name: value for name in named if (value := getattr(arguments, name)) is not None}
    return {"model": _trained(model), "preprocessing": given_preprocessing(arguments), **given}


def _model_name(arguments: Arguments) -> str:
    return arguments.model or os.environ.get(MODEL_VARIABLE, "")


def _trained(model: str) -> str:
    if "/" not in model and not Path(model).suffix and not Path(model).exists():
        from facebones.backbones import list_backbones

        if model in list_backbones():
            raise ConfigError(f"--model {model}: has random weights, which know nobody; give a run or a file")
    return model


# ---------------------------------------------------------------------------------------------------------- match


def _match_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", metavar="PHOTO", help="a photo")
    parser.add_argument("other", metavar="OTHER_PHOTO", help="the photo that it is compared with")
    _model_options(parser)
    _face_options(parser)
    _fmr_option(parser)
    device_option(parser)
    runtime_option(parser)
    parser.add_argument("--show", type=Path, metavar="PNG", help="write both faces and the answer as a picture here")
    json_option(parser)


def _match(arguments: Arguments) -> None:
    opening = _opening(arguments)
    if arguments.show is not None:
        _check_picture(arguments)
    detector = _opened_detector(arguments)
    from facebones.evaluation.match import match_photos

    match = match_photos(
        opening.pop("model"),
        arguments.photo,
        arguments.other,
        detector=detector,
        false_match_rate=arguments.fmr,
        **opening,
    )
    if arguments.show is not None:
        from facebones.reporting.plots.match import plot_match

        plot_match(match, arguments.show)
    if arguments.json:
        print_json(match.to_json())
        return
    tell(f"score {match.score:.4f}: {_decision(match.same_person)}")
    tell(_promise(match.threshold, arguments))
    for face in match.faces:
        tell(_face_words(face, arguments.face))
    if arguments.show is not None:
        tell(f"wrote {arguments.show}")


def _check_picture(arguments: Arguments) -> None:
    """Check before any work that --show can be written, and replaces no input."""
    from facebones.reporting.plots.style import check_plot_name
    from facebones.system.files import check_not_input, check_writable

    check_plot_name(arguments.show)
    check_writable(arguments.show)
    check_not_input(arguments.show, [arguments.photo, arguments.other])


def _decision(same_person: bool | None) -> str:
    if same_person is None:
        return "no decision, the model has no threshold"
    return "the same person" if same_person else "not shown to be one person"


def _promise(threshold: "Threshold | None", arguments: Arguments) -> str:
    """A threshold and its promise in words, or how to get one."""
    if threshold is None:
        model, copied = shlex.quote(_model_name(arguments)), ""
        if is_hub_address(model):  # thresholds are kept beside the weights, and the Hub's cache is no place for them
            address = parse_address(model)
            revision = f" --revision {address.revision}" if address.revision else ""
            model, copied = address.name, f"hf download {address.repository}{revision} --local-dir {address.name} && "
        return (
            f"for a decision, choose a threshold on pairs that are like these photos: {copied}facebones calibrate"
            f" --model {model}{_input_words(arguments)} --data PAIRS --fmr 1e-3 --output {model}"
        )
    return (
        f"threshold {threshold.threshold:.4f}: accepts at most {small_rate(threshold.false_match_rate)} of pairs of"
        f" strangers (FMR), with {100 * threshold.confidence:g} % confidence on photos like {some(threshold.sets)}"
        f" ({threshold.impostors:,} pairs), where it accepts {100 * threshold.true_accept_rate:.2f} % of genuine pairs"
    )


def _input_words(arguments: Arguments) -> str:
    """The options that decide the embeddings of a foreign model, as they were given: thresholds hold for one input."""
    names = ("backbone", "mean", "scale", "colour", "output_name")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    return "".join(
        f" --{name.replace('_', '-')} {shlex.quote(f'{value:g}' if isinstance(value, float) else value)}"
        for name, value in given.items()
    )


def _face_words(face: Any, choice: str | None) -> str:
    """Where the face in a photo is."""
    if face.landmarks is None:
        return f"{face.what}: taken as an aligned face"
    x, y, width, height = (round(side) for side in face.box)
    words = f"{face.what}: face of {width}x{height} pixels at {x}, {y}, detector score {face.score:.2f}"
    if face.faces > 1:
        which, other = (
            ("largest", "--face central: the most central")
            if choice != "central"
            else ("most central", "--face largest: the largest")
        )
        words += f"; {face.faces} faces in the photo, the {which} one is used ({other})"
    return words


# ---------------------------------------------------------------------------------------------------------- embed


def _embed_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", metavar="PHOTO", nargs="+", help="photos, or folders of photos at any depth")
    _model_options(parser)
    _face_options(parser)
    embedding_options(parser, devices=False)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="e.npz, or e.parquet (extra `parquet`)"
    )


def _embed(arguments: Arguments) -> None:
    from facebones.evaluation.photos import check_embeddings_file, embed_photos, not_found_file

    opening = _opening(arguments)
    check_embeddings_file(arguments.output)
    found = embed_photos(
        opening.pop("model"),
        arguments.photos,
        detector=_opened_detector(arguments),
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        progress=True,
        **opening,
    )
    found.save(arguments.output)
    _note_left_out(found, f"; all of them: {not_found_file(arguments.output)}")
    size = found.embedding.shape[1]
    tell(f"wrote {arguments.output}: {counted(len(found), 'face')}, {size} numbers each")


def _note_left_out(found: "PhotoEmbeddings", more: str) -> None:
    """Say which photos have no row, and which had several faces."""
    for note in found.notes:
        say(f"note: {note}")
    if found.missing:
        listed = some([f"{path} ({reason})" for path, reason in found.missing], SHOWN_MISSING)
        everything = more if len(found.missing) > SHOWN_MISSING else ""
        total = len(found) + len(found.missing)
        say(f"note: {len(found.missing)} of {counted(total, 'photo')} left out: {listed}{everything}")
    if several := int((found.faces > 1).sum()):
        say(f"note: {counted(several, 'photo')} with several faces, of which one was taken (--face)")


# --------------------------------------------------------------------------------------------------------- search


def _search_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", metavar="PHOTO", help="the photo of the person who is looked for")
    _model_options(parser)
    parser.add_argument(
        "--gallery",
        required=True,
        nargs="+",
        metavar="FOLDER|FILE",
        help="where to look: photos and folders, or one .npz file of `facebones embed` alone",
    )
    parser.add_argument("--top", type=positive, default=10, metavar="N", help="how many are listed [10]")
    _face_options(parser)
    _fmr_option(parser)
    embedding_options(parser, devices=False)
    json_option(parser)


def _search(arguments: Arguments) -> None:
    opening = _opening(arguments)
    detector = _opened_detector(arguments)
    from facebones.evaluation.match import search_photos

    gallery = arguments.gallery[0] if len(arguments.gallery) == 1 else arguments.gallery
    found = search_photos(
        opening.pop("model"),
        arguments.photo,
        gallery,
        top=arguments.top,
        detector=detector,
        false_match_rate=arguments.fmr,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        progress=True,
        **opening,
    )
    if arguments.json:
        print_json(found.to_json())
        return
    from facebones.reporting.console import print_table

    _note_left_out(found.gallery, "; --json lists all")
    rows = [
        [str(rank), f"{score:.4f}", *_reached(score, found.threshold), path]
        for rank, (score, path) in enumerate(zip(found.scores.tolist(), found.paths, strict=True), 1)
    ]
    columns = ["rank", "score", *(["threshold"] if found.threshold else []), "photo"]
    print_table(columns, rows, title=printable(_face_words(found.face, arguments.face), breaks=False))
    tell(_promise(found.threshold, arguments))
    if found.threshold is not None:
        expected = found.threshold.false_match_rate * len(found.gallery)
        of = f"of {len(found.gallery):,} strangers" if len(found.gallery) > 1 else "of a stranger"
        tell(f"that is of one comparison: {of} it accepts up to {expected:.2g} on average")


def _reached(score: float, threshold: "Threshold | None") -> list[str]:
    if threshold is None:
        return []
    return ["reached" if score >= threshold.threshold else "below"]


# ------------------------------------------------------------------------------------------------------ demo-page


def _page_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=TRAINED_HELP)
    foreign_model_options(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="write index.html and its files here")
    parser.add_argument(
        "--onnxruntime-web",
        type=Path,
        metavar="FILE.tgz",
        help="what `npm pack onnxruntime-web@1.30.0` writes [the one in the cache folder]",
    )
    parser.add_argument("--detector", type=Path, metavar="FILE.onnx", help="the face detector YuNet [as for match]")
    parser.add_argument("--title", metavar="TEXT", help="the model's name on the page")


def _page(arguments: Arguments) -> None:
    from facebones.reporting.demo_page import write_demo_page

    opening = {name: value for name in ("backbone", "output_name") if (value := getattr(arguments, name)) is not None}
    page = write_demo_page(
        _trained(arguments.model),
        arguments.output,
        onnxruntime_web=arguments.onnxruntime_web,
        detector=arguments.detector or "auto",
        title=arguments.title,
        preprocessing=given_preprocessing(arguments),
        device="cpu",
        **opening,
    )
    for note in page.notes:
        say(f"note: {note}")
    if page.detector is not None:
        tell(f"faces are found by {page.detector}")
    tell(f"wrote {page.path}: {page.bytes / 1e6:.1f} MB with its files; open it in a browser, it needs no server")


# ------------------------------------------------------------------------------------------------------- download


def _download_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="FILE.onnx", help="put it here [the cache folder]")


def _download(arguments: Arguments) -> None:
    from facebones.datatools.detector_file import download_detector

    path = download_detector(arguments.output)
    tell(f"{path}: the face detector YuNet, MIT licence, digest checked")


COMMANDS = {
    "match": Command(
        "say whether two photos show one person",
        "facebones match a.jpg b.jpg --model runs/mbf --show match.png",
        _match_options,
        _match,
    ),
    "embed": Command(
        "embed the face of each photo into one file",
        "facebones embed photos --model runs/mbf --output photos.npz",
        _embed_options,
        _embed,
    ),
    "search": Command(
        "find the photos of a gallery that are most like one photo",
        "facebones search a.jpg --model runs/mbf --gallery photos.npz",
        _search_options,
        _search,
    ),
    "demo-page": Command(
        "write a page that matches two photos in the browser, without a network",
        "facebones demo-page runs/mbf --output page --onnxruntime-web onnxruntime-web-1.30.0.tgz",
        _page_options,
        _page,
    ),
    "download detector": Command(
        "fetch the face detector that match, embed, search and data align use",
        "facebones download detector",
        _download_options,
        _download,
        takes_plugins=False,
    ),
}
