"""What a command is, and the options that several commands share: one name, one meaning, one help text."""

import argparse
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from facebones.errors import ConfigError

Arguments = argparse.Namespace

TRAINED_HELP = "a run, checkpoint, safetensors or ONNX file, or hf:OWNER/NAME, a published model"
MODEL_HELP = f"{TRAINED_HELP}; or the name of a registered backbone (random weights)"
RUNTIME_HELP = (
    "how models are computed: eager, bf16, compiled, compiled-bf16, onnxruntime, openvino, openvino-bf16; auto, where"
    " many images are embedded: the fastest one here whose embeddings agree with those of eager [eager]"
)
# Options of `train` and `compare` that are short for a field of the recipe.
RECIPE_OPTIONS = {
    "lr": "optimizer.learning_rate",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
}
# Options that were renamed in 0.2: the old name still works and says so. Remove them in 0.3.
RENAMED_OPTIONS = {
    "--checkpoint": "--model",
    "--settings": "--pooling",
    "--setting": "--pooling",
    "--replicates": "--bootstrap",
}
LARGEST_WHOLE = 2**63 - 1


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        help: one line.
        example: a command line that works as it stands.
        options: adds the command's options to its parser.
        run: does the work.
        takes_recipe_fields: whether `--section.field value` sets a field of a recipe.
        takes_plugins: whether `--import` is an option: the command uses models, recipes, studies or data.
    """

    help: str
    example: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Arguments], None]
    takes_recipe_fields: bool = False
    takes_plugins: bool = True


# ----------------------------------------------------------------------------------------------- shared options


def import_option(parser: argparse.ArgumentParser) -> None:
    """--import; the command line imports the plug-ins before the command runs."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE|MODULE",
        help="import your own backbones, heads, protocols or data formats first; repeat it for several",
    )


def models_option(parser: argparse.ArgumentParser) -> None:
    """--model, repeated for several models, each with a name if it is given one."""
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        metavar="[LABEL=]RUN|FILE|NAME",
        help=f"{MODEL_HELP}; repeat it to compare models",
    )


def data_option(parser: argparse.ArgumentParser, text: str) -> None:
    """--data of a training; repeated, its paths are joined into one, which `data.joined_sets.data_roots` reads."""
    parser.add_argument(
        "--data",
        action=_JoinedPaths,
        metavar="PATH",
        help=f"{text}; repeat it, or give a pattern such as 'parts/*', for data in several folders",
    )


class _JoinedPaths(argparse.Action):
    """Joins the values of a repeated option as in the variable PATH."""

    def __call__(self, parser: object, namespace: Arguments, values: Any, option_string: object = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is None else os.pathsep.join([before, values]))


def device_option(parser: argparse.ArgumentParser) -> None:
    """--device."""
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps [auto]")


def devices_option(parser: argparse.ArgumentParser) -> None:
    """--devices, of commands that several processes can do together; `main` starts them."""
    parser.add_argument(
        "--devices",
        metavar="N|all",
        help="work with N processes of this machine together; all: one for each GPU, or for each core of a CPU",
    )


def runtime_option(parser: argparse.ArgumentParser) -> None:
    """--runtime, of an evaluation."""
    parser.add_argument("--runtime", metavar="NAME", help=RUNTIME_HELP)


def recipe_options(parser: argparse.ArgumentParser) -> None:
    """Short names of the recipe's most used fields, and --autotune; `apply_recipe_options` reads them."""
    for option, field in RECIPE_OPTIONS.items():
        parser.add_argument(f"--{option.replace('_', '-')}", metavar="N", help=f"short for --{field}")
    parser.add_argument(
        "--autotune",
        action="store_true",
        help="measure first which precision, with or without torch.compile, trains fastest here;"
        " what the command line sets is kept",
    )


def apply_recipe_options(arguments: Arguments, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Turn short options into overrides of recipe fields.

    Args:
        arguments: the parsed command line; its `overrides` are extended.
        more: options beyond `RECIPE_OPTIONS`, by the field that each sets.

    Returns:
        the fields that short options set, to the names of these options: how an error names a bad value.

    Raises:
        ConfigError: the short and the long form of one field are both given.
    """
    typed = {}
    for option, field in {**(more or {}), **RECIPE_OPTIONS}.items():
        if (value := getattr(arguments, option)) is None:
            continue
        if field in arguments.overrides:
            raise ConfigError(f"--{option.replace('_', '-')} and --{field} are the same; give one of them")
        arguments.overrides[field] = value
        typed[field] = f"--{option.replace('_', '-')}"
    if arguments.autotune:
        from facebones.recipe_sections import CHOOSABLE

        arguments.overrides.setdefault("training.choose", ",".join(CHOOSABLE))
    return typed


def json_option(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def print_json(content: Any) -> None:
    r"""Print a result as JSON that every parser takes, in ASCII.

    A file name that is no Unicode, which Python holds as lone surrogates, is printed as `tell` prints it; a number that
    is not finite, which JSON does not have, as null.

    >>> print_json({"path": "d\udcff.jpg", "score": float("nan")})
    {
      "path": "d\\udcff.jpg",
      "score": null
    }
    """
    print(json.dumps(_valid(content), indent=2, allow_nan=False))


def _valid(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_valid(key): _valid(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def current_names(words: list[str]) -> tuple[list[str], list[str]]:
    """Replace renamed options by their current names.

    Returns:
        The words of the command line, and a note for each old name.

    >>> current_names(["export", "--checkpoint", "runs/mbf"])
    (['export', '--model', 'runs/mbf'], ['--checkpoint is now --model'])
    >>> current_names(["train", "demo", "--speed", "auto"])
    (['train', 'demo', '--autotune'], ['--speed auto is now --autotune'])
    """
    renamed: list[str] = []
    notes: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            renamed += [word, *rest]
            break
        name, equals, value = word.partition("=")
        if name == "--speed":
            renamed += _autotune(value if equals else next(rest, ""))
            notes.append("--speed auto is now --autotune")
        elif name in RENAMED_OPTIONS:
            renamed.append(f"{RENAMED_OPTIONS[name]}{equals}{value}")
            notes.append(f"{name} is now {RENAMED_OPTIONS[name]}")
        else:
            renamed.append(word)
    return renamed, list(dict.fromkeys(notes))


def _autotune(speed: str) -> list[str]:
    """The options that `--speed SPEED` stands for."""
    if speed not in {"auto", "recipe"}:
        raise ConfigError(f"--speed {speed[:40]}: is auto or recipe; --autotune replaces --speed auto")
    return ["--autotune"] if speed == "auto" else []


# ------------------------------------------------------------------------------------------- values of options


def whole(text: str) -> int:
    """A whole number, of a size that libraries in C can take."""
    try:
        number = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number") from error
    if abs(number) > LARGEST_WHOLE:
        raise argparse.ArgumentTypeError(f"{text[:40]} is too large; give {LARGEST_WHOLE} or less")
    return number


def not_negative(text: str) -> int:
    """A whole number, 0 or more."""
    number = whole(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is negative")
    return number


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    number = whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too low; give 1 or more")
    return number


def positive_seconds(text: str) -> float:
    """A time in seconds, above 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text[:40]} is not a positive time")
    return seconds


def share(text: str) -> float:
    """A number above 0, up to 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text[:40]} is not above 0 and up to 1")
    return number
