"""Commands that look into data, convert it and make some."""

import argparse
import json
from pathlib import Path

from facebones.commands.command import Arguments, Command, json_option, whole


def _inspect_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", type=Path, help="a training set, a .bin, or a folder of them")
    parser.add_argument("--output", type=Path, metavar="PNG", help="write a contact sheet here")
    json_option(parser)


def _inspect(arguments: Arguments) -> None:
    from facebones.data.inspection import inspect_data

    inspection = inspect_data(arguments.path, contact_sheet=arguments.output)
    if arguments.json:
        print(json.dumps(inspection.to_json(), indent=2))
    else:
        print("\n".join(inspection.lines()))


def _convert_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SRC", type=Path, help="train.rec or its folder, an image folder, a .bin, a pair list"
    )
    parser.add_argument("destination", metavar="DST", type=Path, help="what to make: a folder, a .rec or a .bin")
    parser.add_argument("--images", type=Path, metavar="DIR", help="where the images of a pair list lie")
    parser.add_argument("--resume", action="store_true", help="go on with a conversion that was broken off")


def _convert(arguments: Arguments) -> None:
    from facebones.data.conversion import convert

    print(convert(arguments.source, arguments.destination, images=arguments.images, resume=arguments.resume))


def _synthesize_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("destination", metavar="DST", type=Path, help="folder, made here")
    parser.add_argument("--identities", type=whole, default=200, metavar="N", help="people to train on [200]")
    parser.add_argument("--images-per-identity", type=whole, default=20, metavar="N", help="images of each [20]")
    parser.add_argument("--pairs", type=whole, default=1000, metavar="N", help="pairs of each verification set [1000]")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of everything [0]")


def _synthesize(arguments: Arguments) -> None:
    from facebones.data.synthetic import synthesize

    summary = synthesize(
        arguments.destination,
        identities=arguments.identities,
        images_per_identity=arguments.images_per_identity,
        pairs=arguments.pairs,
        seed=arguments.seed,
    )
    print(summary)


COMMANDS = {
    "data inspect": Command(
        "count, check and show what a data set holds",
        "facebones data inspect faces_vgg_112x112 --output sheet.png",
        _inspect_options,
        _inspect,
    ),
    "data convert": Command(
        "convert between train.rec, image folders, pair lists and .bin, image bytes untouched",
        "facebones data convert faces_vgg_112x112 vgg_images",
        _convert_options,
        _convert,
    ),
    "data synthesize": Command(
        "draw faces of people who do not exist, in the field's own formats",
        "facebones data synthesize synthetic --identities 200 --seed 1",
        _synthesize_options,
        _synthesize,
    ),
}
