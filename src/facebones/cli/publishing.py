"""The command that publishes a model."""

import argparse
from pathlib import Path

from facebones.cli.options import Arguments, Command, json_option, print_json
from facebones.system.progress import tell


def _push_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a finished training")
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository; it is made if there is none")
    parser.add_argument(
        "--license", metavar="ID", help="required: the licence of the weights, such as mit, cc-by-nc-4.0 or other"
    )
    parser.add_argument(
        "--results",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR|FILE",
        help="results of evaluations, or studies, that hold metrics of this model [its own folder and its study]",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="thresholds by `facebones calibrate` [those beside the weights]",
    )
    parser.add_argument("--public", action="store_true", help="everybody may see the model [only its owner]")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write the files here, and upload nothing")
    parser.add_argument("--dry-run", action="store_true", help="show the files and the card, and upload nothing")
    json_option(parser)


def _push(arguments: Arguments) -> None:
    from facebones.publishing.push import push

    taken = ("license", "results", "calibration", "public", "message", "output", "dry_run")
    published = push(arguments.run, arguments.repository, **{name: getattr(arguments, name) for name in taken})
    if arguments.json:
        print_json(published.to_json())
        return
    if arguments.dry_run:
        tell(*published.card.splitlines())
    for name, size in published.files.items():
        tell(f"{name}: {size:,} bytes")
    visibility = "private" if published.private else "public"
    if published.address is not None:
        tell(f"pushed to {published.url}, which is {visibility}; use it by --model {published.address}")
    elif published.output is not None:
        tell(f"wrote {published.output}; nothing was uploaded")
    else:
        tell(f"nothing was uploaded; a new repository {published.repository} would be {visibility}")


COMMANDS = {
    "push": Command(
        "publish a finished run on the Hugging Face Hub, with a card of what was measured",
        "facebones push runs/mbf ann/mbf --license cc-by-nc-4.0 --results results/mbf",
        _push_options,
        _push,
    ),
}
