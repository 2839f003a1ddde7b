"""Commands that train, and one that reads trainings of others: train, resume, logs."""

import argparse
import json
from pathlib import Path
from typing import Any

from facebones.cli.options import (
    Arguments,
    Command,
    choose_by_speed,
    device_option,
    json_option,
    not_negative,
    speed_option,
)
from facebones.errors import ConfigError


def _train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a recipe that comes along")
    parser.add_argument("--output", required=True, type=Path, metavar="RUN", help="folder of the run, made here")
    parser.add_argument("--data", metavar="PATH", help="training data; sets data.path")
    parser.add_argument("--backbone", metavar="NAME", help="sets backbone.name")
    parser.add_argument("--batch-size", metavar="N", help="sets training.batch_size")
    parser.add_argument("--seed", metavar="N", help="sets training.seed")
    parser.add_argument("--workers", metavar="N", help="sets data.workers")
    speed_option(parser)
    device_option(parser)


SHORT_OPTIONS = {
    "data": "data.path",
    "backbone": "backbone.name",
    "batch_size": "training.batch_size",
    "seed": "training.seed",
    "workers": "data.workers",
}


def _train(arguments: Arguments) -> None:
    from facebones.recipe import load_recipe

    for option, field in SHORT_OPTIONS.items():
        if (value := getattr(arguments, option)) is not None:
            if field in arguments.overrides:
                raise ConfigError(f"--{option.replace('_', '-')} and --{field} are the same; give one of them")
            arguments.overrides[field] = value
    choose_by_speed(arguments)
    recipe = load_recipe(arguments.recipe, arguments.overrides)

    from facebones.training.run import train

    _print_run(arguments.output, train(recipe, arguments.output, arguments.device))


def _resume_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="folder of the run")
    parser.add_argument("--data", metavar="PATH", help="where the training data lies from now on, if it has moved")
    parser.add_argument("--workers", type=not_negative, metavar="N", help="sets data.workers from now on")
    device_option(parser)


def _resume(arguments: Arguments) -> None:
    from facebones.training.run import resume

    result = resume(arguments.run_folder, arguments.device, arguments.data, arguments.workers)
    _print_run(arguments.run_folder, result)


def _print_run(output: Path, result: dict[str, Any]) -> None:
    for row in result["final"]:
        measured = row["accuracy"] is not None
        figures = f"accuracy {row['accuracy']:.2%} +- {row['accuracy_std']:.2%}" if measured else "not measured"
        print(f"{row['set']}: {figures}")
    print(f"trained backbone: {output / 'model.safetensors'}")


def _logs_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="of one run, in the order of writing")
    parser.add_argument("--output", required=True, type=Path, metavar="RUN", help="folder of the run, made here")
    json_option(parser)


def _logs(arguments: Arguments) -> None:
    from facebones.importers.run import convert_logs
    from facebones.reporting.foreign_logs_table import print_logs

    summary = convert_logs(arguments.logs, arguments.output)
    if arguments.json:
        print(json.dumps(summary, indent=2))
    else:
        print_logs(summary)


COMMANDS = {
    "train": Command(
        "train a backbone by a recipe",
        "facebones train vggface2_arcface --data faces_vgg_112x112 --output runs/mbf \\\n"
        "      --backbone mobilefacenet_wide --training.epochs 10",
        _train_options,
        _train,
        takes_recipe_fields=True,
    ),
    "resume": Command(
        "go on with a run that was stopped or killed", "facebones resume runs/mbf", _resume_options, _resume
    ),
    "logs": Command(
        "make a run folder from the text logs of InsightFace's arcface_torch and of what derives from it",
        "facebones logs work_dirs/r50/training.log --output runs/r50",
        _logs_options,
        _logs,
    ),
}
