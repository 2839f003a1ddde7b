"""Commands that measure trained backbones."""

import argparse
import json
from pathlib import Path

from facebones.commands.command import Arguments, Command, checkpoint_option, device_option, json_option, positive


def _pairs_options(parser: argparse.ArgumentParser) -> None:
    checkpoint_option(parser, "a run, a file of weights, or an ONNX file")
    parser.add_argument("--data", required=True, nargs="+", type=Path, metavar="SET.bin", help="pair sets, or a folder")
    parser.add_argument("--backbone", metavar="NAME", help="the backbone, where the file does not say it")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write result.json, scores and the ROC picture here")
    parser.add_argument("--batch-size", type=positive, default=128, metavar="N", help="images a forward pass [128]")
    device_option(parser)
    json_option(parser)


def _evaluate_pairs(arguments: Arguments) -> None:
    from facebones.evaluation.pairs import evaluate_pairs, pairs_table
    from facebones.tables import print_table

    result = evaluate_pairs(
        arguments.checkpoint,
        arguments.data,
        backbone=arguments.backbone,
        output=arguments.output,
        batch_size=arguments.batch_size,
        device=arguments.device,
    )
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print_table(*pairs_table(result), title=f"{result['backbone']} ({result['checkpoint']})")


COMMANDS = {
    "evaluate pairs": Command(
        "verify pairs (LFW, CFP-FP, AgeDB-30, ...) by the published protocol",
        "facebones evaluate pairs --checkpoint runs/mbf --data lfw.bin cfp_fp.bin --output results/mbf",
        _pairs_options,
        _evaluate_pairs,
    ),
}
