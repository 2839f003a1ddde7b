"""The command line: parsing, errors in one line, and the exit status.

Exit status: 0 done; 1 the run failed; 2 bad input; 130 or 143 stopped by SIGINT or SIGTERM.
Progress goes to stderr, results go to stdout. Each command imports what it needs when it runs, so that help is quick.
"""

import argparse
import errno
import io
import os
import re
import resource
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from facebones import __version__
from facebones.cli import backbones, data, evaluation, photos, publishing, recipes, study, training, trust
from facebones.cli.options import Arguments, Command, current_names, import_option
from facebones.errors import ConfigError, FaceBonesError, RunError, first_line
from facebones.plugins import import_plugins, raised_in_plugin
from facebones.system.malloc import tune_malloc
from facebones.system.processes import TORCHRUN_VARIABLE, Interrupted, stop_signals, stop_with_parent
from facebones.system.progress import discard, open_closed_streams, printable, say

GROUPS = {
    "evaluate": "measure a trained backbone",
    "data": "inspect, convert, align and synthesize faces",
    "download": "fetch files that do not come with facebones",
}
# In the order of the help.
COMMANDS = (
    training.COMMANDS
    | study.COMMANDS
    | photos.COMMANDS
    | trust.COMMANDS
    | evaluation.COMMANDS
    | backbones.COMMANDS
    | publishing.COMMANDS
    | recipes.COMMANDS
    | data.COMMANDS
)

FIELD = re.compile(r"--\w+\.\w")
# Commands that take training data in several folders, and the argument that does.
TAKES_FOLDERS = {"train": "data", "resume": "data", "compare": "data", "data inspect": "path", "data convert": "source"}
# Of torch on the CPU; of the system's loader, for the parts of a library that is imported.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "std::bad_alloc", "failed to map segment")
# What libraries say of a failed allocation, but not of it alone; it counts where the memory is limited.
FAILED_CALLS = ("could not create a primitive", "could not create a memory", "annot allocate memory", "returned NULL")
NO_THREAD = "can't start new thread"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LACKING = {
    errno.ENOMEM: "use smaller batches, fewer workers or less data at a time",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or use fewer workers",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or use fewer workers",
}  # memory, processes, open files


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    status = 0
    open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold characters that stdout cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _check_present_folder()
        arguments = _parse(argv)
        status = _run(arguments, argv)
        print(end="", flush=True)
    except FaceBonesError as error:
        if "--debug" in argv:
            raise
        _say(str(error), anyone=_anyone_speaks(error))
        return error.exit_status
    except BrokenPipeError:  # the reader of stdout, such as `head`, has closed it
        discard(sys.stdout)
    except OSError as error:
        if "--debug" in argv or not (error.filename or error.errno in (*FULL, *LACKING)):
            raise
        return _report(error)
    except (RuntimeError, MemoryError, ImportError, SystemError) as error:
        if "--debug" in argv or (reason := _lacking_memory(error)) is None:
            raise
        _say(reason)
        return 1
    except Interrupted as stop:
        _say(f"stopped by {stop}; {_continuation(arguments, argv)}")
        return 128 + stop.signal
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    return status


def _check_present_folder() -> None:
    """Relative paths mean nothing without it, and libraries of torch end the process."""
    try:
        os.getcwd()  # noqa: PTH109
    except OSError as error:
        raise ConfigError(f"the present folder was removed ({error.strerror}); go to another one by `cd`") from error


def _run(arguments: Arguments, argv: list[str]) -> int:
    """Import the plug-ins and run the command; a signal ends it at once, but a training saves first.

    Returns:
        The exit status: of the processes that `--devices` starts, or 0.
    """
    tune_malloc()
    if (count := _processes(arguments)) > 1:
        from facebones.system.start_processes import run_processes

        return run_processes(argv, count, lambda: _continuation(arguments, argv))
    if "RANK" in os.environ or arguments.command_name in {"train", "resume", "compare"}:
        stop_with_parent()
    if arguments.command_name in {"train", "resume"}:
        with _lease():
            _import_and_run(arguments)
        return 0
    with stop_signals() as stop, stop.at_once():
        try:
            _import_and_run(arguments)
        except Exception:
            if stop.received is not None:  # a library mistook the signal for a failure of its own
                raise Interrupted(stop.received) from None
            raise
    return 0


def _processes(arguments: Arguments) -> int:
    """The processes to start; 1 for a command without `--devices`, and in a process that a launcher has started."""
    devices = getattr(arguments, "devices", None)
    if devices is None or "RANK" in os.environ:
        return 1
    from facebones.system.start_processes import number_of_processes

    return number_of_processes(devices, arguments.device)


def _lease() -> AbstractContextManager[None]:
    """The lease by which a worker of a study has taken this training; nothing in a training outside a study."""
    if "FACEBONES_LEASE" not in os.environ:
        return nullcontext()
    from facebones.study.training_lease import lease_held

    return lease_held()


def _import_and_run(arguments: Arguments) -> None:
    import_plugins(arguments.imports)
    try:
        arguments.command.run(arguments)
    except FaceBonesError:
        raise
    except Exception as error:
        if (place := raised_in_plugin(error)) is None:
            raise
        raise RunError(f"{place}: the plug-in raised {type(error).__name__}: {first_line(error)}") from error


def _lacking_memory(error: Exception) -> str | None:
    """What to say about an allocation that has failed; None if the error is another one."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, by name: it may not be imported
        return f"the GPU is out of memory; use smaller batches: {first_line(error)}"
    if NO_THREAD in str(error):
        return f"{NO_THREAD}: out of memory or of processes; raise the limits (ulimit -v, -u) or use fewer workers"
    signs = (*OUT_OF_MEMORY, *(FAILED_CALLS if _memory_is_limited() else ()))
    if isinstance(error, MemoryError) or any(words in str(error) for words in signs):
        more = f": {first_line(error)}" if str(error) else ""
        return f"out of memory{more:.200}; use smaller batches, fewer workers or less data at a time"
    return None


def _memory_is_limited() -> bool:
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _report(error: OSError) -> int:
    """Print an error that no command handles, such as a folder without permission; returns the exit status."""
    if error.filename:
        _say(f"{error.filename}: {error.strerror}")
        return 2
    if error.errno in LACKING:
        _say(f"{error.strerror}; {LACKING[error.errno]}")
        return 1
    discard(sys.stdout)  # errors of files have a name, so stdout is full
    _say(f"standard output: {error.strerror}; free space or send it elsewhere")
    return 1


def _say(message: str, *, anyone: bool = False) -> None:
    """Print one line to stderr; control characters in names are escaped. Of a group of processes, the first speaks."""
    if not anyone and os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":
        return
    try:
        print(f"facebones: {printable(message, breaks=False)}", file=sys.stderr, flush=True)
    except OSError:  # a full stderr leaves the exit status
        discard(sys.stderr)


def _anyone_speaks(error: FaceBonesError) -> bool:
    """Whether a process of the group was lost or not found: it may be the one that speaks."""
    return type(error).__name__ in ("LostProcessError", "MeetingError")  # by name: torch may not be imported


def _continuation(arguments: Arguments, argv: list[str]) -> str:
    """How to continue after a command was stopped."""
    name = arguments.command_name
    if name in {"train", "resume"}:
        from facebones.run_folder import RunFolder

        run = RunFolder(arguments.output if name == "train" else arguments.run_folder)
        if not run.config.is_file():
            return "there is no run to continue; run the same command again"
        if TORCHRUN_VARIABLE in os.environ:
            return "continue with the same torchrun command"
        device = "" if arguments.device == "auto" else f" --device {arguments.device}"
        devices = f" --devices {arguments.devices}" if arguments.devices else ""
        return f"continue with: {run.resume_command}{device}{devices}"
    if name == "demo":
        return f"continue with: facebones demo --output {shlex.quote(str(arguments.output))}"
    if name in {"data convert", "data align"}:
        from facebones.datatools.partial_folder import partial_path

        if partial_path(arguments.destination).exists():
            return f"continue with: facebones {shlex.join(argv)}{'' if arguments.resume else ' --resume'}"
    keeps = name in {"evaluate templates", "evaluate identification"} and arguments.output is not None
    if name in {"compare", "data embed"} or keeps:
        return f"continue with: facebones {shlex.join(argv)}"
    output = getattr(arguments, "output", None)
    if name in {"export", "push"} and output is not None and output.is_dir():
        return f"nothing is missing in {output}"  # such a folder appears as a whole
    writes_one_file = name == "calibrate"  # whose output may be a run, to keep the thresholds in
    if isinstance(output, Path) and not writes_one_file and output.is_dir() and any(output.iterdir()):
        return f"each file in {output} is whole, but some may be missing; run the same command again"
    return "no partial output is left; run the same command again"


# ---------------------------------------------------------------------------------------------------- parsing


def _parse(argv: list[str]) -> Arguments:
    fields, others = _split_fields(argv)
    others, notes = current_names(others)
    for note in notes:
        say(f"note: {note}")
    arguments, unknown = _build_parser().parse_known_args(others)
    unknown = [*fields, *unknown]
    command: Command = arguments.command
    if unknown and arguments.command_name in TAKES_FOLDERS:
        _refuse_side_by_side(getattr(arguments, TAKES_FOLDERS[arguments.command_name]), others, unknown[0])
    if arguments.command_name == "compare":
        arguments.words = current_names(argv)[0]  # a launcher gives them to its workers
    arguments.overrides = _overrides(unknown) if command.takes_recipe_fields else {}
    if unknown and not command.takes_recipe_fields:
        raise ConfigError(f"unknown option or argument: {unknown[0]}; see facebones {arguments.command_name} --help")
    return arguments


def _refuse_side_by_side(first: object, others: list[str], extra: str) -> None:
    """Say how several folders are given where a word too many is a path, as from a pattern without quotes."""
    if first is None or extra not in others or not Path(extra).exists():
        return
    following = others[others.index(str(first)) + 1] if str(first) in others[:-1] else extra
    joined = os.pathsep.join([str(first), following])
    raise ConfigError(
        f"unknown option or argument: {extra}; give several folders as one argument: {joined}, or a pattern in"
        " quotes, such as 'parts/*'"
    )


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="facebones",
        description="Train, verify and compare face-recognition backbones under one fair ArcFace recipe.",
        epilog="example: facebones demo --output demo",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"facebones {__version__}")
    groups: dict[str, Any] = {"": parser.add_subparsers(metavar="COMMAND", required=True)}
    for name, command in COMMANDS.items():
        group, _, leaf = name.rpartition(" ")
        if group not in groups:
            heading = groups[""].add_parser(group, help=GROUPS[group], description=GROUPS[group], allow_abbrev=False)
            groups[group] = heading.add_subparsers(metavar="COMMAND", required=True)
        _add_command(groups[group], leaf, name, command)
    return parser


def _add_command(group: Any, leaf: str, name: str, command: Command) -> None:
    """Add a command's parser to its group."""
    parser = group.add_parser(
        leaf,
        help=command.help,
        description=f"{command.help[0].upper()}{command.help[1:]}{'' if command.help.endswith('?') else '.'}",
        epilog=f"example:\n  {command.example}",
        formatter_class=_RecipeHelp if command.takes_recipe_fields else argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.options(parser)
    if command.takes_plugins:
        import_option(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(command=command, command_name=name, imports=[])


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage like all other errors: in one line."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register("type", Path, _given_path)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _given_path(text: str) -> Path:
    """A path; an empty one, as from an unset shell variable, would mean the current folder and is refused."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name; '.' is the present folder")
    return Path(text)


class _RecipeHelp(argparse.RawDescriptionHelpFormatter):
    """Appends the fields of a recipe to the help; nothing else in parsing needs them."""

    def format_help(self) -> str:
        from facebones.recipe import field_help

        rows = "\n".join(f"  --{name} VALUE\n        {text}" for name, text in field_help())
        return f"{super().format_help()}\nfields of the recipe:\n{rows}\n"


def _split_fields(argv: list[str]) -> tuple[list[str], list[str]]:
    """Separate `--section.field VALUE` and `--section.field=VALUE` from the other words.

    argparse would take VALUE for a positional argument.

    >>> _split_fields(["train", "--training.epochs", "4", "demo"])
    (['--training.epochs', '4'], ['train', 'demo'])
    """
    fields: list[str] = []
    others: list[str] = []
    words = iter(argv)
    for word in words:
        if not FIELD.match(word):
            others.append(word)
            continue
        fields.append(word)
        if "=" not in word and (value := next(words, None)) is not None:
            fields.append(value)
    return fields, others


def _overrides(unknown: list[str]) -> dict[str, str]:
    """`--section.field value` and `--section.field=value` as a mapping."""
    overrides: dict[str, str] = {}
    words = iter(unknown)
    for word in words:
        if not word.startswith("--"):
            raise ConfigError(f"unexpected argument: {word}; options are --section.field VALUE")
        name, has_value, value = word[2:].partition("=")
        if not has_value:
            following = next(words, None)
            if following is None or following.startswith("--"):
                raise ConfigError(f"{word}: a value is missing")
            value = following
        overrides[name] = value
    return overrides
