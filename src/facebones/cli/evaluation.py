"""Commands that measure trained backbones, and say whether they differ."""

import argparse
import json
from pathlib import Path
from typing import Any

from facebones.cli.options import (
    Arguments,
    Command,
    device_option,
    json_option,
    not_negative,
    positive,
    runtime_option,
)

CHECKPOINT_HELP = "a run, a file of weights or an ONNX file; repeat it to compare"
DEFAULT_REPLICATES = 1000


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no finite number")
    return number


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, action="append", metavar="[NAME=]RUN|FILE", help=CHECKPOINT_HELP)
    parser.add_argument("--backbone", metavar="NAME", help="the backbone, where the file does not say it")
    parser.add_argument("--mean", type=_finite, metavar="X", help="of others' files: their input is (x - mean) / scale")
    parser.add_argument("--scale", type=_finite, metavar="X", help="likewise [127.5 both]")
    parser.add_argument("--colour", choices=("rgb", "bgr"), help="likewise, the order of the colours [rgb]")
    parser.add_argument("--batch-size", type=positive, default=128, metavar="N", help="images a forward pass [128]")
    parser.add_argument("--workers", type=positive, metavar="N", help="threads that read images [the cores]")
    device_option(parser)
    runtime_option(parser)


def _result_options(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"write {what} here")
    parser.add_argument(
        "--replicates", type=_replicates, default=DEFAULT_REPLICATES, metavar="N", help="of the bootstrap [1000]"
    )
    parser.add_argument("--seed", type=not_negative, default=0, metavar="N", help="of the bootstrap [0]")
    json_option(parser)


def _replicates(text: str) -> int:
    number = positive(text)
    if not 100 <= number <= 100_000:
        raise argparse.ArgumentTypeError(f"{number} replicates; give 100 to 100,000")
    return number


def _preprocessing(arguments: Arguments) -> Any:
    from facebones.data.preprocessing import Preprocessing

    given = {key: value for key in ("mean", "scale", "colour") if (value := getattr(arguments, key)) is not None}
    return Preprocessing(**given) if given else None


def _pairs_options(parser: argparse.ArgumentParser) -> None:
    _model_options(parser)
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        type=Path,
        metavar="SET",
        help="pair sets (.bin), lists of pairs, or folders",
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="where the paths in lists start [the list's folder]")
    parser.add_argument("--no-flip", dest="flip", action="store_false", help="leave the mirror images out")
    _result_options(parser, "pairs.json, scores and ROC pictures")


def _evaluate_pairs(arguments: Arguments) -> None:
    from facebones.evaluation.pairs import pair_protocols
    from facebones.reporting.evaluation_tables import print_pairs

    _run(arguments, pair_protocols(arguments.data, arguments.root), print_pairs, flip=arguments.flip)


def _ijb_options(parser: argparse.ArgumentParser) -> None:
    _model_options(parser)
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="an IJB-B or IJB-C folder")


def _templates_options(parser: argparse.ArgumentParser) -> None:
    _ijb_options(parser)
    parser.add_argument(
        "--settings",
        default="N1D1F1",
        metavar="LIST",
        help="N1D1F1,N0D0F0,... or all: norm, detector score, flip [N1D1F1]",
    )
    _result_options(parser, "templates.json, MODEL_TARGET.npy, ROC pictures and the features")


def _evaluate_templates(arguments: Arguments) -> None:
    from facebones.evaluation.ijb_verification import IJBVerification
    from facebones.evaluation.template_scores import parse_pooling
    from facebones.reporting.evaluation_tables import print_templates

    _run(arguments, [IJBVerification(arguments.data, parse_pooling(arguments.settings))], print_templates)


def _identification_options(parser: argparse.ArgumentParser) -> None:
    _ijb_options(parser)
    parser.add_argument("--setting", default="N1D1F1", metavar="NAME", help="norm, detector score, flip [N1D1F1]")
    _result_options(parser, "identification.json, CMC and DET pictures and the features")


def _evaluate_identification(arguments: Arguments) -> None:
    from facebones.errors import ConfigError
    from facebones.evaluation.ijb_identification import IJBIdentification
    from facebones.evaluation.template_scores import parse_pooling
    from facebones.reporting.evaluation_tables import print_identification

    pooling, *more = parse_pooling(arguments.setting)
    if more:
        raise ConfigError(f"--pooling {arguments.setting}: several poolings; give one")
    _run(arguments, [IJBIdentification(arguments.data, pooling)], print_identification)


def _run(arguments: Arguments, protocols: Any, print_tables: Any, **options: Any) -> None:
    """Evaluate sets of one protocol, draw and print the result."""
    from facebones.evaluation.models import named_files
    from facebones.evaluation.run import run_protocols

    taken = ("output", "backbone", "batch_size", "workers", "device", "runtime", "seed")
    (content,) = run_protocols(
        named_files(arguments.checkpoint, "--model"),
        protocols,
        preprocessing=_preprocessing(arguments),
        bootstrap=arguments.replicates,
        **{name: getattr(arguments, name) for name in taken},
        **options,
    ).values()
    _show(arguments, content, print_tables)


def _scores_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scores", nargs="+", metavar="[NAME=]FILE.npy", help="a score a pair, in the list's order")
    parser.add_argument("--labels", required=True, type=Path, metavar="META", help="the list of pairs, or its folder")
    _result_options(parser, "scores.json and ROC pictures")


def _evaluate_scores(arguments: Arguments) -> None:
    from facebones.evaluation.ijb_verification import evaluate_scores
    from facebones.evaluation.models import named_files
    from facebones.reporting.evaluation_tables import print_templates

    result = evaluate_scores(
        arguments.labels,
        named_files(arguments.scores, "scores"),
        output=arguments.output,
        bootstrap=arguments.replicates,
        seed=arguments.seed,
    )
    _show(arguments, result, print_templates)


def _show(arguments: Arguments, result: Any, print_tables: Any) -> None:
    if arguments.output is not None:
        from facebones.reporting.evaluation_plots import write_evaluation_plots

        write_evaluation_plots(result, arguments.output)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print_tables(result)


COMMANDS = {
    "evaluate pairs": Command(
        "verify pairs (LFW, CFP-FP, AgeDB-30, ...) by the published protocol",
        "facebones evaluate pairs --checkpoint runs/mbf --checkpoint theirs=r50.onnx --data lfw.bin cfp_fp.bin",
        _pairs_options,
        _evaluate_pairs,
    ),
    "evaluate templates": Command(
        "verify template pairs (1:1) of IJB-B or IJB-C",
        "facebones evaluate templates --checkpoint runs/mbf --data IJBC --output results/ijbc",
        _templates_options,
        _evaluate_templates,
    ),
    "evaluate identification": Command(
        "search galleries (1:N) of IJB-B or IJB-C",
        "facebones evaluate identification --checkpoint runs/mbf --data IJBC --output results/ijbc",
        _identification_options,
        _evaluate_identification,
    ),
    "evaluate scores": Command(
        "tabulate and draw again from saved scores of template pairs",
        "facebones evaluate scores --labels IJBC/meta mbf=mbf_ijbc.npy r50=r50_ijbc.npy --output results/again",
        _scores_options,
        _evaluate_scores,
    ),
}
