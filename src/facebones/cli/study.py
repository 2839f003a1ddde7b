"""Commands that compare: compare, demo and report."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facebones.cli.options import (
    Arguments,
    Command,
    apply_recipe_options,
    data_option,
    device_option,
    json_option,
    positive,
    print_json,
    recipe_options,
    runtime_option,
)
from facebones.errors import ConfigError
from facebones.system.progress import tell

if TYPE_CHECKING:
    from facebones.study.compare import Worker
    from facebones.study.launchers.options import LauncherOptions
    from facebones.study.study import Study

REPORT_FOLDER = "report"
# Fields of a study that are options, with their help; a LIST is joined by commas.
STUDY_OPTIONS = (
    ("recipe", "NAME", "name or file of a recipe"),
    ("data", "PATH", "training data"),
    ("backbones", "LIST", "comma-separated names, patterns, runs and ONNX files"),
    (
        "seeds",
        "LIST",
        "comma-separated whole numbers; or auto:POINTS: add seeds until a difference of POINTS would be found",
    ),
    ("evaluate", "LIST", "comma-separated evaluation sets: names beside the data, paths, or PROTOCOL=PATH"),
    (
        "pair_sets",
        "LIST",
        "comma-separated pair sets instead of the study's, to measure and to validate on: names beside the data, or"
        " paths",
    ),
    ("ijb", "LIST", "comma-separated IJB-B or IJB-C folders"),
    ("profile", "BOOL", "true or false"),
)


def _compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="a YAML file, or a name that `facebones studies` lists")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the study, created here")
    for key, metavar, text in STUDY_OPTIONS:
        if key == "data":
            data_option(parser, f"{text}; sets {key}")
        else:
            parser.add_argument(f"--{key.replace('_', '-')}", metavar=metavar, help=f"{text}; sets {key}")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="trainings at the same time [1]")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show the planned runs, their progress and hours; train nothing",
    )
    parser.add_argument(
        "--accept-version",
        action="store_true",
        help="continue runs of an older version even where this version computes other numbers",
    )
    parser.add_argument("--watch", action="store_true", help="show the progress of workers elsewhere; train nothing")
    parser.add_argument(
        "--launcher",
        default="local",
        metavar="NAME",
        help="what starts the workers: local, slurm, ray, or print, a shell line for each training [local]",
    )
    parser.add_argument(
        "--worker",
        action="store_true",
        help="train what no other worker has taken, then end; the last worker measures and reports",
    )
    parser.add_argument("--only", metavar="LIST", help="comma-separated names of the trainings that this process takes")
    _title_option(parser)
    recipe_options(parser)
    runtime_option(parser)
    device_option(parser)
    json_option(parser)


def _compare(arguments: Arguments) -> None:
    from facebones.study.launchers.options import PREFIX, read_launcher
    from facebones.study.study import load_study

    texts = {key: arguments.overrides.pop(key) for key in list(arguments.overrides) if key.startswith(PREFIX)}
    launched = read_launcher(arguments.launcher, texts)
    typed = apply_recipe_options(arguments)
    given = {key: getattr(arguments, key) for key, _, _ in STUDY_OPTIONS}
    study = load_study(arguments.study, overrides=arguments.overrides, typed=typed, **given)
    from facebones.study.compare import compare, preview

    options = {key: getattr(arguments, key) for key in ("device", "runtime", "accept_version")}
    if arguments.dry_run:
        _print_plan(preview(study, arguments.output, **options), as_json=arguments.json)
    elif arguments.watch:
        from facebones.study.launch import watch

        watch(study, arguments.output)
    elif arguments.launcher != "local":
        _launch(arguments, study, launched, options)
    else:
        worker = _worker(arguments, launched.expiry)
        content = compare(study, arguments.output, worker=worker, title=arguments.title, **options)
        _print_study(content, as_json=arguments.json)


def _worker(arguments: Arguments, expiry: float) -> "Worker":
    """How this process works beside others on the study."""
    from facebones.study.compare import Worker

    only = [name for name in (arguments.only or "").split(",") if name]
    shared = arguments.worker or bool(only)
    return Worker(jobs=arguments.jobs, only=only, wait=not arguments.worker, shared=shared, expiry=expiry)


def _launch(arguments: Arguments, study: "Study", launched: "LauncherOptions", options: dict[str, Any]) -> None:
    """Start workers elsewhere by the same command, and print what there is to know."""
    from facebones.study.launch import launch, result_of

    if arguments.worker:
        raise ConfigError(f"--worker: --launcher {arguments.launcher} starts the workers; leave one of them out")
    if arguments.only and arguments.launcher == "print":
        raise ConfigError("--only: --launcher print gives a line for each training; leave one of them out")
    for line in launch(study, arguments.output, arguments.launcher, launched, arguments.words, **options):
        tell(*line.splitlines())
    if arguments.launcher == "ray":
        _print_study(result_of(arguments.output), as_json=arguments.json)


def _print_plan(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    from facebones.reporting.console import print_table
    from facebones.study.display import plan_hours, plan_table

    if as_json:
        print_json(rows)
        return
    print_table(*plan_table(rows))
    tell(plan_hours(rows))


def _print_study(content: dict[str, Any], *, as_json: bool) -> None:
    """Print the results; raises RunError if a part has failed."""
    from facebones.reporting.console import print_table
    from facebones.study.compare import raise_failures
    from facebones.study.display import study_table, study_title

    if as_json:
        print_json(content)
    elif "elsewhere" in content:
        tell(content["elsewhere"])
        return
    else:
        print_table(*study_table(content), title=study_title(content))
        _print_answer(content["answer"], content["report"])
    raise_failures(content)


def _print_answer(sentences: Sequence[str], page: str) -> None:
    from facebones.reporting.console import print_items

    print_items(sentences)
    tell(f"report: {page}")


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="folder, created here [demo]")
    device_option(parser)
    json_option(parser)


def _demo(arguments: Arguments) -> None:
    from facebones.study.demo import demo

    _print_study(demo(arguments.output, arguments.device), as_json=arguments.json)


def _title_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--title", default="", metavar="TEXT", help="title of the report [the name of the study]")


def _report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folder of a study, run or evaluation")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder, created here [report, in the first DIR]")
    _title_option(parser)
    parser.add_argument(
        "--faces",
        nargs="+",
        type=Path,
        default=(),
        metavar="SET",
        help="show the worst pairs of these evaluated pair sets as faces: .bin files, pair lists, or folders of them",
    )
    json_option(parser)


def _report(arguments: Arguments) -> None:
    from facebones.reporting.report import PAGE, write_report

    output = arguments.output or arguments.folders[0] / REPORT_FOLDER
    content = write_report(arguments.folders, output, title=arguments.title, faces=arguments.faces, progress=True)
    if arguments.json:
        print_json(content)
    else:
        _print_answer(content["answer"], str(output / PAGE))


COMMANDS = {
    "demo": Command(
        "synthesize faces, train three small backbones on them, and report how they compare",
        "facebones demo --output demo",
        _demo_options,
        _demo,
        takes_plugins=False,
    ),
    "compare": Command(
        "train all backbones of a study by one recipe, then evaluate, profile and report them",
        "facebones compare compact_faithful --data faces_vgg_112x112 --output comparisons/compact --jobs 2",
        _compare_options,
        _compare,
        takes_recipe_fields=True,
    ),
    "report": Command(
        "write a page, tables and plots of studies, runs and evaluations",
        "facebones report comparisons/compact runs/theirs --output report",
        _report_options,
        _report,
    ),
}
