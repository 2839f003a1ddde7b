"""Commands on what a model promises: thresholds, error rates by group, and quality scores."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from facebones.cli.evaluation import (
    bootstrap_count,
    embedding_options,
    finite,
    flip_option,
    foreign_model_options,
    given_preprocessing,
    result_options,
)
from facebones.cli.options import TRAINED_HELP, Arguments, Command, json_option, models_option, print_json

# What `calibrate` and both evaluations take, by one name.
COMMON = ("flip", "output", "batch_size", "workers", "backbone", "output_name", "device", "runtime")


def _calibrate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="RUN|FILE", help=TRAINED_HELP)
    foreign_model_options(parser)
    embedding_options(parser, devices=False)
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="SET",
        help="sets whose pairs are taken together; folder=DIR: all pairs of a folder of people",
    )
    parser.add_argument(
        "--fmr",
        nargs="+",
        type=finite,
        metavar="RATE",
        default=[1e-3],
        help="false match rates to keep: how often two people are taken for one at most [0.001]",
    )
    parser.add_argument(
        "--confidence", type=finite, default=0.95, metavar="X", help="how sure it must be that each rate is kept [0.95]"
    )
    flip_option(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="MODEL|FILE.json",
        help="the model, to store the thresholds beside its weights; or a JSON file",
    )
    json_option(parser)


def _calibrate(arguments: Arguments) -> None:
    from facebones.evaluation.calibrate import calibrate

    passed = _passed(arguments, "confidence")
    content = calibrate(arguments.model, arguments.data, false_match_rates=arguments.fmr, **passed)
    from facebones.reporting.console import print_calibration

    _tell(arguments, content, print_calibration)
    if content["refused"]:
        from facebones.errors import DataError

        raise DataError("; ".join(content["refused"].values()))


def _set_options(parser: argparse.ArgumentParser) -> None:
    """The models of an evaluation, and its one set."""
    models_option(parser)
    foreign_model_options(parser)
    embedding_options(parser, devices=False)
    parser.add_argument(
        "--data", required=True, metavar="SET", help="a set with pairs; folder=DIR: all pairs of a folder of people"
    )


def _groups_options(parser: argparse.ArgumentParser) -> None:
    _set_options(parser)
    parser.add_argument(
        "--groups",
        type=Path,
        metavar="FILE",
        help="CSV: a column image or person, and one for each grouping [the file beside the set]",
    )
    parser.add_argument(
        "--threshold",
        type=finite,
        metavar="X",
        help="accept pairs whose cosine is at least X [the threshold that `calibrate` has stored]",
    )
    parser.add_argument(
        "--fmr", type=finite, metavar="RATE", help="instead: the threshold with this false match rate on all pairs"
    )
    flip_option(parser)
    parser.add_argument(
        "--permutations",
        type=bootstrap_count,
        default=999,
        metavar="N",
        help="how often a test exchanges the groups at random [999]",
    )
    result_options(parser, "groups.json")


def _evaluate_groups(arguments: Arguments) -> None:
    from facebones.evaluation.groups import evaluate_groups

    models = _models(arguments)
    passed = _passed(arguments, "threshold", "bootstrap", "permutations", "seed")
    content = evaluate_groups(models, arguments.data, arguments.groups, false_match_rate=arguments.fmr, **passed)
    from facebones.reporting.group_tables import print_groups

    _tell(arguments, content, print_groups)


def _quality_options(parser: argparse.ArgumentParser) -> None:
    _set_options(parser)
    parser.add_argument(
        "--scores",
        nargs="+",
        default=[],
        metavar="[LABEL=]FILE",
        help="quality scores, a line 'image,score' for each image [the embedding norm alone]",
    )
    parser.add_argument(
        "--fmr",
        type=finite,
        metavar="RATE",
        help="the threshold with this false match rate on all pairs [0.001]",
    )
    parser.add_argument("--threshold", type=finite, metavar="X", help="instead: reject pairs whose cosine is below X")
    parser.add_argument(
        "--up-to", type=finite, default=0.3, metavar="SHARE", help="discard up to this share of the pairs [0.3]"
    )
    flip_option(parser)
    result_options(parser, "quality.json and the plots")


def _evaluate_quality(arguments: Arguments) -> None:
    from facebones.evaluation.models import named_files
    from facebones.evaluation.quality import evaluate_quality

    models = _models(arguments)
    scores = named_files(arguments.scores, "--scores") if arguments.scores else None
    passed = _passed(arguments, "threshold", "up_to", "bootstrap", "seed")
    content = evaluate_quality(models, arguments.data, scores, false_match_rate=arguments.fmr, **passed)
    from facebones.reporting.quality_tables import print_quality, write_quality_plots

    if arguments.output is not None:
        write_quality_plots(content, arguments.output)
    _tell(arguments, content, print_quality)


def _models(arguments: Arguments) -> dict[str, str]:
    """The models by label; a file, or a backbone's name."""
    from facebones.evaluation.models import named_files

    return {label: str(path) for label, path in named_files(arguments.model, "--model").items()}


def _passed(arguments: Arguments, *own: str) -> dict[str, Any]:
    """The options that a function takes by their own names: the common ones, and these."""
    taken = {name: getattr(arguments, name) for name in (*COMMON, *own)}
    return {**taken, "preprocessing": given_preprocessing(arguments), "progress": True}


def _tell(arguments: Arguments, content: Any, print_content: Callable[[Any], None]) -> None:
    """Print a result as JSON, or for people."""
    if arguments.json:
        print_json(content)
    else:
        print_content(content)


COMMANDS = {
    "calibrate": Command(
        "choose thresholds that keep a false match rate with stated confidence",
        "facebones calibrate --model runs/mbf --data lfw.bin folder=friends --fmr 1e-3 1e-4 --output runs/mbf",
        _calibrate_options,
        _calibrate,
    ),
    "evaluate groups": Command(
        "false match and non-match rates by group of people, at one threshold",
        "facebones evaluate groups --model runs/mbf --data folder=friends --groups sexes.csv --fmr 1e-3",
        _groups_options,
        _evaluate_groups,
    ),
    "evaluate quality": Command(
        "error versus discard: do quality scores, or the embedding norm, tell where a model fails",
        "facebones evaluate quality --model runs/mbf --data lfw.bin --scores crfiqa.csv --output results/quality",
        _quality_options,
        _evaluate_quality,
    ),
}
