"""Commands that measure trained backbones, and say whether they differ."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from facebones.cli.options import (
    Arguments,
    Command,
    device_option,
    devices_option,
    json_option,
    models_option,
    not_negative,
    positive,
    print_json,
    runtime_option,
)
from facebones.evaluation.built_in import BUILT_IN

DEFAULT_BOOTSTRAP = 1000
MOST_PAIRS = 10_000_000


def finite(text: str) -> float:
    """A number of an option that is finite."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no finite number")
    return number


def _model_options(parser: argparse.ArgumentParser) -> None:
    models_option(parser)
    foreign_model_options(parser)
    embedding_options(parser)


def foreign_model_options(parser: argparse.ArgumentParser) -> None:
    """What a file of weights from elsewhere may not say of itself."""
    parser.add_argument("--backbone", metavar="NAME", help="the backbone, if the file does not name it")
    parser.add_argument(
        "--mean", type=finite, metavar="X", help="a foreign model's input is (x - mean) / scale [127.5]"
    )
    parser.add_argument("--scale", type=finite, metavar="X", help="likewise [127.5]")
    parser.add_argument("--colour", choices=("rgb", "bgr"), help="order of a foreign model's input channels [rgb]")
    parser.add_argument(
        "--output-name", metavar="NAME", help="the output of an ONNX file that is the embedding, if several may be"
    )


def embedding_options(parser: argparse.ArgumentParser, devices: bool = True) -> None:
    """How images are embedded."""
    parser.add_argument("--batch-size", type=positive, default=128, metavar="N", help="images per forward pass [128]")
    parser.add_argument("--workers", type=positive, metavar="N", help="threads that read images [one per core]")
    device_option(parser)
    if devices:
        devices_option(parser)
    runtime_option(parser)


def result_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Where results go, and how intervals are drawn."""
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"write {what} here")
    parser.add_argument(
        "--bootstrap", type=bootstrap_count, default=DEFAULT_BOOTSTRAP, metavar="N", help="bootstrap replicates [1000]"
    )
    parser.add_argument("--seed", type=not_negative, default=0, metavar="N", help="seed of the bootstrap [0]")
    json_option(parser)


def flip_option(parser: argparse.ArgumentParser) -> None:
    """--no-flip."""
    parser.add_argument("--no-flip", dest="flip", action="store_false", help="do not add the mirror image's embedding")


def _without_overlap_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--without-overlap",
        type=Path,
        metavar="FILE",
        help="overlap.json of `data overlap`, or its folder: measure each set again without the images that it lists",
    )


def bootstrap_count(text: str) -> int:
    """A number of resamples that an interval can be made of."""
    number = positive(text)
    if not 100 <= number <= 100_000:
        raise argparse.ArgumentTypeError(f"{number} replicates; give 100 to 100,000")
    return number


def given_preprocessing(arguments: Arguments) -> dict[str, Any] | None:
    """The fields of the preprocessing that are given; each model keeps its own for the others."""
    from facebones.data.preprocessing import Preprocessing

    given = {key: value for key in ("mean", "scale", "colour") if (value := getattr(arguments, key)) is not None}
    Preprocessing(**given)  # checks them before a model is opened
    return given or None


def _pairs_options(parser: argparse.ArgumentParser) -> None:
    _model_options(parser)
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        type=Path,
        metavar="SET",
        help="pair sets (.bin), pair lists, or folders of them",
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder of the images in pair lists [the list's own]")
    flip_option(parser)
    _without_overlap_option(parser)
    result_options(parser, "pairs.json, scores and ROC plots")


def _evaluate_pairs(arguments: Arguments) -> None:
    from facebones.evaluation.pairs import pair_protocols

    _run(arguments, lambda: pair_protocols(arguments.data, arguments.root), flip=arguments.flip)


def _folder_options(parser: argparse.ArgumentParser) -> None:
    _model_options(parser)
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        type=Path,
        metavar="DIR",
        help="folders with a folder for each person, or record files",
    )
    parser.add_argument(
        "--pairs",
        type=_pairs,
        metavar="all|N",
        help="pairs of two people: all, or N random ones, at most 10,000,000 [all]",
    )
    flip_option(parser)
    parser.set_defaults(without_overlap=None)  # a folder is measured as a whole
    result_options(parser, "folder.json and ROC plots")


def _pairs(text: str) -> int | None:
    if text == "all":
        return None
    number = positive(text)
    if number > MOST_PAIRS:
        raise argparse.ArgumentTypeError(f"{number} pairs are kept in memory; give at most {MOST_PAIRS:,}, or all")
    return number


def _evaluate_folder(arguments: Arguments) -> None:
    from facebones.evaluation.folder import FolderProtocol

    _run(arguments, lambda: [FolderProtocol(path, arguments.pairs) for path in arguments.data], flip=arguments.flip)


def _named_options(name: str, parser: argparse.ArgumentParser) -> None:
    """Of the command of a protocol that is known by its line in `built_in` alone."""
    known = BUILT_IN[name]
    _model_options(parser)
    parser.add_argument("--data", required=True, nargs="+", type=Path, metavar="DIR", help=known.folder)
    flip_option(parser)
    parser.set_defaults(without_overlap=None)  # these sets are measured as a whole
    result_options(parser, f"{name}.json, {known.results}")


def _evaluate_named(name: str, arguments: Arguments) -> None:
    from facebones.evaluation.protocol import lookup_protocol

    protocol = lookup_protocol(name)
    _run(arguments, lambda: [protocol(path) for path in arguments.data], flip=arguments.flip)


def _sets_options(parser: argparse.ArgumentParser) -> None:
    _model_options(parser)
    parser.add_argument("--data", required=True, nargs="+", type=Path, metavar="SET", help="files or folders of sets")
    parser.add_argument("--protocol", metavar="NAME", help="evaluate by this protocol only, such as one of a plug-in")
    flip_option(parser)
    _without_overlap_option(parser)
    result_options(parser, "a result file for each protocol, scores and plots")


def _evaluate_sets(arguments: Arguments) -> None:
    from facebones.evaluation.protocol import find_protocols

    def sets() -> list[Any]:
        return [one for path in arguments.data for one in find_protocols(path, arguments.protocol)]

    _run(arguments, sets, flip=arguments.flip)


def _ijb_options(parser: argparse.ArgumentParser) -> None:
    _model_options(parser)
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="an IJB-B or IJB-C folder")


def _templates_options(parser: argparse.ArgumentParser) -> None:
    _ijb_options(parser)
    parser.add_argument(
        "--pooling",
        default="N1D1F1",
        metavar="LIST",
        help="N1D1F1,N0D0F0,... or all: use of norm, detector score and flip [N1D1F1]",
    )
    _without_overlap_option(parser)
    result_options(parser, "templates.json, MODEL_TARGET.npy, ROC plots and the features")


def _evaluate_templates(arguments: Arguments) -> None:
    from facebones.evaluation.ijb_verification import IJBVerification
    from facebones.evaluation.template_scores import parse_pooling

    _run(arguments, lambda: [IJBVerification(arguments.data, parse_pooling(arguments.pooling))])


def _identification_options(parser: argparse.ArgumentParser) -> None:
    _ijb_options(parser)
    parser.add_argument(
        "--pooling", default="N1D1F1", metavar="NAME", help="use of norm, detector score and flip [N1D1F1]"
    )
    _without_overlap_option(parser)
    result_options(parser, "identification.json, CMC and DET plots and the features")


def _evaluate_identification(arguments: Arguments) -> None:
    from facebones.errors import ConfigError
    from facebones.evaluation.ijb_identification import IJBIdentification
    from facebones.evaluation.template_scores import parse_pooling

    pooling, *more = parse_pooling(arguments.pooling)
    if more:
        raise ConfigError(f"--pooling {arguments.pooling}: several poolings; give one")
    _run(arguments, lambda: [IJBIdentification(arguments.data, pooling)])


def _run(arguments: Arguments, protocols: Callable[[], Any], **options: Any) -> None:
    """Evaluate sets, and draw and print the results; raises RunError if a model was left out."""
    from facebones.errors import RunError
    from facebones.evaluation.models import named_files
    from facebones.evaluation.run import run_protocols
    from facebones.system.process_group import joined, share_threads

    taken = (
        "output",
        "backbone",
        "output_name",
        "batch_size",
        "workers",
        "device",
        "runtime",
        "seed",
        "without_overlap",
    )
    with joined(arguments.device) as world:
        share_threads()
        with world.agreed():
            models = named_files(arguments.model, "--model")
            preprocessing, sets = given_preprocessing(arguments), protocols()
        contents = run_protocols(
            {label: str(path) for label, path in models.items()},  # or a backbone's name
            sets,
            preprocessing=preprocessing,
            bootstrap=arguments.bootstrap,
            world=world,
            **{name: getattr(arguments, name) for name in taken},
            **options,
        )
        if world.is_first:
            _show(arguments, list(contents.values()))
    if left_out := next(iter(contents.values())).get("left_out"):
        raise RunError("; ".join(f"{name} was left out: {error}" for name, error in left_out.items()))


def _scores_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scores", nargs="+", metavar="[LABEL=]FILE.npy", help="one score per pair, in list order")
    parser.add_argument("--labels", required=True, type=Path, metavar="META", help="the pair list, or its folder")
    result_options(parser, "scores.json and ROC plots")


def _evaluate_scores(arguments: Arguments) -> None:
    from facebones.evaluation.ijb_verification import evaluate_scores
    from facebones.evaluation.models import named_files

    result = evaluate_scores(
        arguments.labels,
        named_files(arguments.scores, "scores"),
        output=arguments.output,
        bootstrap=arguments.bootstrap,
        seed=arguments.seed,
    )
    _show(arguments, [result])


def _show(arguments: Arguments, contents: list[Any]) -> None:
    if arguments.output is not None:
        from facebones.reporting.evaluation_plots import write_evaluation_plots
        from facebones.system.files import check_written

        # Hidden files are temporary ones, of another process or of one that was killed: they may go.
        results = [path for path in arguments.output.iterdir() if path.is_file() and not path.name.startswith(".")]
        for content in contents:
            write_evaluation_plots(content, arguments.output)
        check_written(results)
    if arguments.json:
        print_json(contents[0] if len(contents) == 1 else contents)
        return
    from facebones.reporting.console import print_evaluation

    for content in contents:
        print_evaluation(content)


COMMANDS = {
    "evaluate pairs": Command(
        "verify pairs (LFW, CFP-FP, AgeDB-30, ...) by the published protocol",
        "facebones evaluate pairs --model runs/mbf --model theirs=r50.onnx --data lfw.bin cfp_fp.bin",
        _pairs_options,
        _evaluate_pairs,
    ),
    "evaluate templates": Command(
        "verify template pairs (1:1) of IJB-B or IJB-C",
        "facebones evaluate templates --model runs/mbf --data IJBC --output results/ijbc",
        _templates_options,
        _evaluate_templates,
    ),
    "evaluate identification": Command(
        "search galleries (1:N) of IJB-B or IJB-C",
        "facebones evaluate identification --model runs/mbf --data IJBC --output results/ijbc",
        _identification_options,
        _evaluate_identification,
    ),
    "evaluate folder": Command(
        "verify all pairs of images of a folder of people, for low FARs",
        "facebones evaluate folder --model runs/mbf --data friends --output results/friends",
        _folder_options,
        _evaluate_folder,
    ),
    **{
        f"evaluate {name}": Command(
            known.help,
            f"facebones evaluate {name} --model runs/mbf --data {name} --output results/{name}",
            partial(_named_options, name),
            partial(_evaluate_named, name),
        )
        for name, known in BUILT_IN.items()
        if known.help
    },
    "evaluate sets": Command(
        "evaluate sets by every protocol that knows them, plug-ins included",
        "facebones evaluate sets --import my_protocol.py --model runs/mbf --data lfw.bin IJBC my_set",
        _sets_options,
        _evaluate_sets,
    ),
    "evaluate scores": Command(
        "tabulate and plot saved scores of template pairs",
        "facebones evaluate scores --labels IJBC/meta mbf=mbf_ijbc.npy r50=r50_ijbc.npy --output results/again",
        _scores_options,
        _evaluate_scores,
    ),
}
