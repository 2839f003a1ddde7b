"""Commands that inspect, align, convert, sample and synthesize data."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facebones.cli.evaluation import embedding_options, foreign_model_options, given_preprocessing
from facebones.cli.options import (
    MODEL_HELP,
    TRAINED_HELP,
    Arguments,
    Command,
    device_option,
    json_option,
    not_negative,
    positive,
    print_json,
    runtime_option,
    share,
    whole,
)
from facebones.errors import ConfigError
from facebones.system.progress import tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from facebones.datatools.face_sets import Catalogue, FaceSet

WIDE = 150  # columns of a terminal that shows terms and papers of face sets


def _inspect_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        metavar="PATH",
        type=Path,
        help="a training set (several: a:b, or 'parts/*'), a .bin, or a folder of them",
    )
    parser.add_argument("--output", type=Path, metavar="PNG", help="write a contact sheet here")
    json_option(parser)


def _inspect(arguments: Arguments) -> None:
    from facebones.datatools.inspect import inspect_data

    inspection = inspect_data(arguments.path, contact_sheet=arguments.output)
    if arguments.json:
        print_json(inspection.to_json())
    else:
        tell(*inspection.lines())


def _align_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", type=Path, help="folder of photos, usually SRC/<person>/*.jpg")
    parser.add_argument("destination", metavar="DST", type=Path, help="folder of 112x112 faces to create")
    parser.add_argument(
        "--landmarks",
        type=Path,
        metavar="FILE.csv",
        help="rows path,x1,y1,x2,y2,... of 5 or 68 points: paths inside SRC, pixels of the displayed image",
    )
    parser.add_argument(
        "--detector",
        type=Path,
        metavar="FILE.onnx",
        help="or YuNet: face_detection_yunet_2023mar.onnx of OpenCV's model zoo, github.com/opencv/opencv_zoo",
    )
    parser.add_argument("--confidence", type=share, metavar="P", help="with --detector: least score of a face [0.6]")
    parser.add_argument(
        "--face", choices=("largest", "central"), help="with --detector: which of several faces [largest]"
    )
    parser.add_argument("--format", default="jpg", choices=("jpg", "png"), help="encoding of the faces [jpg]")
    parser.add_argument("--quality", type=positive, metavar="N", help="JPEG quality, up to 100 [95]")
    parser.add_argument("--output", type=Path, metavar="PNG", help="write a contact sheet here")
    parser.add_argument("--workers", type=positive, metavar="N", help="threads [one per core]")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted alignment")
    json_option(parser)


def _align(arguments: Arguments) -> None:
    if (arguments.landmarks is None) == (arguments.detector is None):
        raise ConfigError("give one of --landmarks FILE.csv and --detector FILE.onnx: they say where the faces are")
    finding = _given(arguments, "confidence", "face")
    if finding and arguments.detector is None:
        raise ConfigError("--confidence and --face are for --detector")
    if arguments.quality is not None and arguments.format != "jpg":
        raise ConfigError("--quality is for --format jpg; PNG loses nothing")

    from facebones.datatools.align_folder import Encoding, align_folder
    from facebones.datatools.landmarks import FaceDetector, LandmarkTable

    encoding = Encoding(format=arguments.format, **_given(arguments, "quality"))
    done = align_folder(
        arguments.source,
        arguments.destination,
        FaceDetector(arguments.detector, **finding) if arguments.detector else LandmarkTable(arguments.landmarks),
        encoding=encoding,
        workers=arguments.workers,
        contact_sheet=arguments.output,
        resume=arguments.resume,
    )
    if arguments.json:
        print_json(done.to_json())
    else:
        tell(*str(done).splitlines())


def _given(arguments: Arguments, *names: str) -> dict[str, Any]:
    """The options that are on the command line."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def _pairs_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SRC", type=Path, help="folder SRC/<person>/*.jpg of people who are not in the training set"
    )
    parser.add_argument("destination", metavar="LIST.txt", type=Path, help="the pair list to write")
    parser.add_argument("--pairs", type=positive, default=600, metavar="N", help="a multiple of 20 [600]")
    parser.add_argument("--seed", type=not_negative, default=0, metavar="N", help="seed of the sampling [0]")


def _pairs(arguments: Arguments) -> None:
    from facebones.datatools.sample_pairs import write_sampled_pairs

    tell(write_sampled_pairs(arguments.source, arguments.destination, pairs=arguments.pairs, seed=arguments.seed))


def _convert_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SRC",
        type=Path,
        help="train.rec or its folder, an image folder, LMDB, Parquet (several: a:b, 'parts/*'), .bin, a pair list",
    )
    parser.add_argument("destination", metavar="DST", type=Path, help="the folder, .rec or .bin to create")
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder of a pair list's images [its own]")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted conversion")
    parser.add_argument(
        "--pixel-order", choices=("bgr", "rgb"), help="channels of decoded pixels in a .bin [bgr, as OpenCV has them]"
    )


def _convert(arguments: Arguments) -> None:
    from facebones.datatools.convert import convert

    options = {name: getattr(arguments, name) for name in ("root", "resume", "pixel_order")}
    tell(*str(convert(arguments.source, arguments.destination, **options)).splitlines())


def _synthesize_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("destination", metavar="DST", type=Path, help="folder to create")
    parser.add_argument("--identities", type=whole, default=200, metavar="N", help="people to train on [200]")
    parser.add_argument("--images-per-identity", type=whole, default=20, metavar="N", help="images per person [20]")
    parser.add_argument("--pairs", type=whole, default=1000, metavar="N", help="pairs of each verification set [1000]")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of everything [0]")


def _synthesize(arguments: Arguments) -> None:
    from facebones.synthetic.dataset import synthesize

    summary = synthesize(
        arguments.destination,
        identities=arguments.identities,
        images_per_identity=arguments.images_per_identity,
        pairs=arguments.pairs,
        seed=arguments.seed,
    )
    tell(summary)


def _embed_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="DATA", type=Path, help="the training set (several: a:b, or 'parts/*'), or a folder of faces"
    )
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        metavar="[NAME=]RUN|FILE",
        help=f"the teacher: {MODEL_HELP}",
    )
    foreign_model_options(parser)
    embedding_options(parser)
    parser.add_argument("--no-flip", dest="flip", action="store_false", help="do not embed the mirror images")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write the embeddings here [beside the data]")


def _embed(arguments: Arguments) -> None:
    from facebones.evaluation.models import named_files
    from facebones.evaluation.teacher_embeddings import embed_training_set
    from facebones.system.process_group import joined, share_threads

    taken = ("backbone", "output_name", "runtime", "flip", "batch_size", "workers", "device")
    teachers = named_files(arguments.model, "--model")
    if len(teachers) > 1:
        raise ConfigError(f"--model: {len(teachers)} teachers are given; embed the data with one after the other")
    ((name, model),) = teachers.items()
    preprocessing = given_preprocessing(arguments)
    with joined(arguments.device) as world:
        share_threads()
        path = embed_training_set(
            arguments.path,
            str(model),
            name,
            folder=arguments.output,
            preprocessing=preprocessing,
            world=world,
            **{key: getattr(arguments, key) for key in taken},
        )
        if world.is_first:
            tell(f"wrote {path}; train with --distillation.embeddings {path if arguments.output else name}")


def _catalogue_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        metavar="NAME",
        nargs="*",
        help="a set, which is shown whole; or a part of names, and words such as training, test, synthetic, free, lmdb",
    )
    parser.add_argument("--markdown", action="store_true", help="print the page of the documentation")
    json_option(parser)


def _catalogue(arguments: Arguments) -> None:
    from facebones.datatools.face_sets import read_catalogue

    catalogue = read_catalogue()
    if arguments.markdown:
        if arguments.json or arguments.words:
            raise ConfigError("--markdown prints the whole page; leave NAME and --json out")
        from facebones.datatools.face_sets_page import catalogue_page

        print(catalogue_page(catalogue), end="")
        return
    found = catalogue.find(arguments.words)
    if arguments.json:
        print_json(catalogue.to_json(found))
    elif len(found) == 1:
        tell(*catalogue.lines(found[0]))
    else:
        _print_sets(catalogue, found)


def _print_sets(catalogue: "Catalogue", sets: "Sequence[FaceSet]") -> None:
    """Print tables of sets; a wide terminal shows terms and papers too."""
    from rich.console import Console

    from facebones.datatools.face_sets_page import SECTIONS, short_cells
    from facebones.reporting.console import print_table

    console = Console()
    columns = ["set", "people", "images", "year", "state", "reads", "terms", "paper"]
    shown = len(columns) if not console.is_terminal or console.width >= WIDE else columns.index("terms")
    for title, use, kind in SECTIONS:
        if rows := [short_cells(each)[:shown] for each in sets if (each.use, each.kind) == (use, kind)]:
            print_table(columns[:shown], rows, title=title)
    tell(
        f"{len(sets)} sets, looked up on {catalogue.date}; ? = not verified;"
        " 'facebones data catalogue NAME' shows one with its sources"
    )


def _overlap_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "train", metavar="TRAIN", type=Path, help="the training set (several: a:b, or 'parts/*'), as for train --data"
    )
    parser.add_argument(
        "sets",
        metavar="SETS",
        nargs="+",
        type=Path,
        help="pair sets (.bin), pair lists, IJB folders, or folders of them",
    )
    parser.add_argument("--model", metavar="RUN|FILE", help=f"compare people too, by this model: {TRAINED_HELP}")
    parser.add_argument(
        "--false-rate",
        type=share,
        metavar="P",
        help="share of images of other people that may be listed by mistake [0.01]",
    )
    foreign_model_options(parser)
    parser.add_argument("--batch-size", type=positive, default=128, metavar="N", help="images per forward pass [128]")
    parser.add_argument("--workers", type=positive, metavar="N", help="threads [one per core]")
    device_option(parser)
    runtime_option(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        required=True,
        help="write overlap.json, overlap.csv and contact sheets here",
    )
    json_option(parser)


def _overlap(arguments: Arguments) -> None:
    from facebones.evaluation.overlap import find_overlap

    preprocessing = given_preprocessing(arguments)
    if arguments.model is None and (
        unused := _given(arguments, "false_rate", "backbone", "output_name", "runtime") or preprocessing
    ):
        raise ConfigError(
            f"--{next(iter(unused)).replace('_', '-')}: goes with --model; give a model to compare people"
        )
    taken = ("model", "backbone", "output_name", "batch_size", "workers", "device", "runtime")
    result = find_overlap(
        arguments.train,
        arguments.sets,
        arguments.output,
        preprocessing=preprocessing,
        progress=True,
        **_given(arguments, "false_rate", *taken),
    )
    if arguments.json:
        print_json(result.to_json())
    else:
        tell(*result.lines(), f"wrote {arguments.output}")


COMMANDS = {
    "data inspect": Command(
        "count, check and show the images of a data set",
        "facebones data inspect faces_vgg_112x112 --output sheet.png",
        _inspect_options,
        _inspect,
    ),
    "data align": Command(
        "find faces in photos, or read their landmarks, and align them to 112x112 as ArcFace expects",
        "facebones data align photos faces --detector face_detection_yunet_2023mar.onnx --output sheet.png",
        _align_options,
        _align,
        takes_plugins=False,
    ),
    "data pairs": Command(
        "sample verification pairs from a folder of people, in ten folds without a common person",
        "facebones data pairs faces/test pairs.txt --pairs 600",
        _pairs_options,
        _pairs,
        takes_plugins=False,
    ),
    "data convert": Command(
        "convert between train.rec, image folders, pair lists and .bin, or from LMDB and Parquet; image bytes stay",
        "facebones data convert faces_vgg_112x112 vgg_images",
        _convert_options,
        _convert,
    ),
    "data embed": Command(
        "embed all images of a training set with a teacher, for distillation",
        "facebones data embed faces_vgg_112x112 --model r100=glint360k_r100.onnx",
        _embed_options,
        _embed,
    ),
    "data catalogue": Command(
        "the field's face sets: people, images, terms, links, and the formats that facebones reads",
        "facebones data catalogue synthetic lmdb",
        _catalogue_options,
        _catalogue,
        takes_plugins=False,
    ),
    "data overlap": Command(
        "find test images and people that the training data hold",
        "facebones data overlap faces_vgg_112x112 lfw.bin IJBC --model glint360k_r100.onnx --output overlap",
        _overlap_options,
        _overlap,
    ),
    "data synthesize": Command(
        "draw faces of people who do not exist, in the field's own formats",
        "facebones data synthesize synthetic --identities 200 --seed 1",
        _synthesize_options,
        _synthesize,
        takes_plugins=False,
    ),
}
