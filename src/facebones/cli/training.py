"""Commands that train, and one that imports the logs of other trainers: train, resume, logs."""

import argparse
from pathlib import Path
from typing import Any

from facebones.cli.options import (
    Arguments,
    Command,
    apply_recipe_options,
    data_option,
    device_option,
    devices_option,
    json_option,
    not_negative,
    print_json,
    recipe_options,
)
from facebones.system.progress import tell

# Options of `train` only, by the field of the recipe that each sets.
TRAIN_OPTIONS = {
    **{"data": "data.path", "backbone": "backbone.name", "seed": "training.seed", "workers": "data.workers"},
    "log": "log.trackers",
}


def _train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or a name that `facebones recipes` lists")
    parser.add_argument("--output", required=True, type=Path, metavar="RUN", help="run folder, created here")
    data_option(parser, "training data; short for --data.path")
    parser.add_argument("--backbone", metavar="NAME", help="short for --backbone.name")
    parser.add_argument("--seed", metavar="N", help="short for --training.seed")
    parser.add_argument("--workers", metavar="N", help="short for --data.workers")
    recipe_options(parser)
    parser.add_argument("--log", metavar="NAME,...", help="short for --log.trackers: tensorboard, wandb, ...")
    device_option(parser)
    devices_option(parser)


def _train(arguments: Arguments) -> None:
    from facebones.recipe import load_recipe
    from facebones.system.process_group import agreed, joined
    from facebones.training.run import train

    with joined(arguments.device) as world:
        with agreed(world):
            typed = apply_recipe_options(arguments, TRAIN_OPTIONS)
            recipe = load_recipe(arguments.recipe, arguments.overrides, typed)
        result = train(recipe, arguments.output, arguments.device)
        if world.is_first:
            _print_run(arguments.output, result)


def _resume_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="run folder")
    data_option(parser, "new path of the training data, if it has moved")
    parser.add_argument("--workers", type=not_negative, metavar="N", help="replaces data.workers of the recipe")
    device_option(parser)
    devices_option(parser)


def _resume(arguments: Arguments) -> None:
    from facebones.system.process_group import joined
    from facebones.training.run import resume

    with joined(arguments.device) as world:
        result = resume(arguments.run_folder, arguments.device, arguments.data, arguments.workers)
        if world.is_first:
            _print_run(arguments.run_folder, result)


def _print_run(output: Path, result: dict[str, Any]) -> None:
    from facebones.system.number_format import percent

    for row in result["final"]:
        measured = row["accuracy"] is not None
        accuracy = f"accuracy {percent(row['accuracy'], row['accuracy_std'])}" if measured else "not measured"
        shuffled = row.get("accuracy_shuffled")  # of a set whose own folds hold one kind of pair
        more = f"; over shuffled folds {percent(shuffled)}" if shuffled is not None else ""
        tell(f"{row['set']}: {accuracy}{more}")
    tell(f"trained backbone: {output / 'model.safetensors'}")


def _logs_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="log files of one run, oldest first")
    parser.add_argument("--output", required=True, type=Path, metavar="RUN", help="run folder, created here")
    json_option(parser)


def _logs(arguments: Arguments) -> None:
    from facebones.importers.run_from_logs import convert_logs
    from facebones.reporting.console import print_logs

    summary = convert_logs(arguments.logs, arguments.output)
    if arguments.json:
        print_json(summary)
    else:
        print_logs(summary)


COMMANDS = {
    "train": Command(
        "train a backbone by a recipe",
        "facebones train vggface2_arcface --data faces_vgg_112x112 --output runs/mbf \\\n"
        "      --backbone mobilefacenet_wide --epochs 10 --lr 0.05",
        _train_options,
        _train,
        takes_recipe_fields=True,
    ),
    "resume": Command(
        "continue a stopped or killed training run", "facebones resume runs/mbf", _resume_options, _resume
    ),
    "logs": Command(
        "make a run folder from text logs of InsightFace's arcface_torch and trainers derived from it",
        "facebones logs work_dirs/r50/training.log --output runs/r50",
        _logs_options,
        _logs,
        takes_plugins=False,
    ),
}
