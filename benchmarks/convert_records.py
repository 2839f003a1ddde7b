"""Compare a conversion that leaves the images as they are with one that decodes and encodes them again.

Each direction runs several times, ours and the plain one in turn, in one process and over the same images; the ratio is
that of the quickest runs. The plain one does what a short script would do: it decodes with OpenCV, encodes as JPEG of
quality 95 and writes the same files, but checks nothing. Time is that of the wall, for ours writes files from as many
processes as there are cores: measure on a machine that does nothing else. What the file system takes in one process is
measured too, with the same contents and names already in memory.

    python benchmarks/convert_records.py [--data train.rec] [--output FOLDER]
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from facebones.data.image_folder import ImageFolder
from facebones.data.record_set import RecordSet
from facebones.data.record_writer import RecordWriter
from facebones.data.recordio import Header, pack
from facebones.datatools.convert import convert

Conversion = Callable[[Path, Path], object]
QUALITY = (cv2.IMWRITE_JPEG_QUALITY, 95)


def generate(path: Path, identities: int, images_each: int, seed: int) -> None:
    """Write a record file of smooth random images, 112x112, JPEG of quality 95; they cost what aligned faces do."""
    random = np.random.default_rng(seed)
    with RecordWriter(path) as writer:
        for index in range(identities * images_each):
            coarse = random.integers(0, 256, (28, 28, 3), dtype=np.uint8)
            smooth = cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC)
            encoded = cv2.imencode(".jpg", smooth, QUALITY)[1].tobytes()
            writer.write(index, pack(Header(float(index // images_each), index), encoded))


def encode_again(encoded: bytes) -> bytes:
    """Decode and encode: what the plain conversion does to each image."""
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    return cv2.imencode(".jpg", pixels, QUALITY)[1].tobytes()


def plain_to_folder(source: Path, destination: Path) -> None:
    """From record file to folder with a second encoding."""
    data = RecordSet(source)
    for index in range(len(data)):
        encoded, label = data.read(index)
        folder = destination / f"{label:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:08d}.jpg").write_bytes(encode_again(encoded))


def plain_to_records(source: Path, destination: Path) -> None:
    """From folder to record file with a second encoding."""
    with RecordWriter(destination) as writer:
        for label, folder in enumerate(sorted(path for path in source.iterdir() if path.name[0] != ".")):
            for number, file in enumerate(sorted(folder.iterdir())):
                writer.write(
                    label * 2**16 + number, pack(Header(float(label), number), encode_again(file.read_bytes()))
                )


def files_to_folder(contents: dict[str, bytes], _: Path, destination: Path) -> None:
    """Write files whose names and contents are known: what is left of a conversion to a folder if all else is free."""
    for folder in dict.fromkeys(name.rpartition("/")[0] for name in contents):
        (destination / folder).mkdir(parents=True)
    for name, content in contents.items():
        descriptor = os.open(f"{destination}/{name}", os.O_WRONLY | os.O_CREAT, 0o666)
        os.write(descriptor, content)
        os.close(descriptor)


def files_to_records(names: list[str], source: Path, destination: Path) -> None:
    """Read files whose names are known, and write their bytes one after another."""
    with destination.open("wb", buffering=2**18) as file:
        for name in names:
            descriptor = os.open(f"{source}/{name}", os.O_RDONLY)
            file.write(os.read(descriptor, 2**16))
            os.close(descriptor)


def seconds(work: Conversion, source: Path, destination: Path) -> float:
    """Time one conversion into a place that is empty before and after."""
    start = time.perf_counter()
    work(source, destination)
    elapsed = time.perf_counter() - start
    shutil.rmtree(destination) if destination.is_dir() else destination.unlink()
    for name in (destination.with_suffix(".idx"), destination.with_name("property")):
        name.unlink(missing_ok=True)
    return elapsed


def compare(title: str, conversions: tuple[Conversion, ...], paths: tuple[Path, Path], images: int, runs: int) -> None:
    """Run ours, the plain one and the bare files in turn; print the quickest of each, and the ratio."""
    rounds = [[seconds(conversion, *paths) for conversion in conversions] for _ in range(runs)]
    ours, plain, files = (min(times) / images * 1e6 for times in zip(*rounds, strict=True))
    print(
        f"{title}: {ours:.1f} us per image, the file system alone {files:.1f} us; "
        f"decoded and encoded again {plain:.1f} us: ratio {plain / ours:.1f}"
    )


def main() -> None:
    """Measure both directions."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="a .rec file (default: one of random images is made)")
    parser.add_argument("--output", type=Path, help="where to write (default: memory, /dev/shm, where there is one)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    memory = Path("/dev/shm")
    base = arguments.output or (memory if memory.is_dir() else Path(tempfile.gettempdir()))
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(dir=base) as name:
        work = Path(name)
        source = arguments.data or work / "generated.rec"
        if arguments.data is None:
            generate(source, identities=100, images_each=20, seed=arguments.seed)
        folder = work / "images"
        convert(source, folder)
        data = ImageFolder(folder)
        names = [data.relative_path(index) for index in range(len(data))]
        contents = {name: (folder / name).read_bytes() for name in names}
        print(f"{len(data)} images of {arguments.data or 'random smooth noise'}, written to {base}")
        to_folder = (convert, plain_to_folder, partial(files_to_folder, contents))
        compare(".rec to folder", to_folder, (source, work / "folder"), len(data), arguments.runs)
        to_records = (convert, plain_to_records, partial(files_to_records, names))
        compare("folder to .rec", to_records, (folder, work / "again.rec"), len(data), arguments.runs)


if __name__ == "__main__":
    main()
