"""What a command is, and the options that several share: one name, one meaning, one help."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Arguments = argparse.Namespace
RUNTIME_HELP = (
    "of the evaluation: eager, bf16, compiled, compiled-bf16, onnxruntime, openvino, openvino-bf16; auto: the fastest"
    " here whose embeddings are eager's [eager]"
)


@dataclass(frozen=True)
class Command:
    """A row of the table of commands.

    Attributes:
        help: one line.
        example: what one would type.
        options: adds the command's options to its parser.
        run: does the work.
        takes_recipe_fields: whether `--section.field value` is understood.
    """

    help: str
    example: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Arguments], None]
    takes_recipe_fields: bool = False


def checkpoint_option(parser: argparse.ArgumentParser, what: str) -> None:
    """--checkpoint, which names trained weights."""
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="RUN|FILE", help=what)


def device_option(parser: argparse.ArgumentParser) -> None:
    """--device."""
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps [auto]")


def runtime_option(parser: argparse.ArgumentParser) -> None:
    """--runtime, of an evaluation."""
    parser.add_argument("--runtime", metavar="NAME", help=RUNTIME_HELP)


def speed_option(parser: argparse.ArgumentParser) -> None:
    """--speed; `choose_by_speed` applies it."""
    parser.add_argument(
        "--speed",
        choices=("recipe", "auto"),
        default="recipe",
        help="auto: first measure which precision, and whether compiling, is fastest here; settings given here stay"
        " [recipe]",
    )


def choose_by_speed(arguments: Arguments) -> None:
    """Leave to the training what it may choose."""
    from facebones.recipe import CHOOSABLE

    if arguments.speed == "auto":
        arguments.overrides.setdefault("training.choose", ",".join(CHOOSABLE))


def json_option(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def whole(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number") from error


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
    """A time above 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text[:40]} is no positive time")
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
