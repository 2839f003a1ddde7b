"""The command that compares: many trainings from one file."""

import argparse
import json
from pathlib import Path

from facebones.commands.command import Arguments, Command, device_option, json_option, positive

# Fields of a study that the command line can set, with what is said of each.
STUDY_OPTIONS = (
    ("recipe", "NAME", "a recipe's name, or its file"),
    ("data", "PATH", "training data"),
    ("backbones", "LIST", "names, patterns, runs and ONNX files, commas between"),
    ("seeds", "LIST", "whole numbers, commas between"),
    ("pair_sets", "LIST", "names beside the data, or paths, commas between"),
    ("ijb", "LIST", "IJB-B or IJB-C folders, commas between"),
    ("profile", "BOOL", "true or false"),
)


def _compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="a YAML file, or the name of a study that comes along")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the study, made here")
    for key, metavar, text in STUDY_OPTIONS:
        parser.add_argument(f"--{key.replace('_', '-')}", metavar=metavar, help=f"{text}; sets {key}")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="trainings at a time [1]")
    parser.add_argument("--dry-run", action="store_true", help="show the runs and how far they are, and end")
    device_option(parser)
    json_option(parser)


def _compare(arguments: Arguments) -> None:
    from facebones.study.study import load_study

    given = {key: getattr(arguments, key) for key, _, _ in STUDY_OPTIONS}
    study = load_study(arguments.study, overrides=arguments.overrides, **given)
    from facebones.device import select_device
    from facebones.study import compare as work
    from facebones.study.plan import make_plan
    from facebones.tables import print_table

    select_device(arguments.device)
    if arguments.dry_run:
        rows = work.plan_rows(make_plan(study, arguments.output))
        print(json.dumps(rows, indent=2)) if arguments.json else print_table(*work.plan_table(rows))
        return
    content = work.compare(study, arguments.output, jobs=arguments.jobs, device=arguments.device)
    if arguments.json:
        print(json.dumps(content, indent=2))
    else:
        print_table(*work.study_table(content), title=f"{study.name}: mean over seeds +- standard deviation")
        print(f"study: {content['file']}")
    work.raise_failures(content)


COMMANDS = {
    "compare": Command(
        "train every backbone of a study by one recipe, and evaluate and profile them all",
        "facebones compare compact_faithful --data faces_vgg_112x112 --output comparisons/compact --jobs 2",
        _compare_options,
        _compare,
        takes_recipe_fields=True,
    ),
}
