"""What it costs to read an image from LMDB and Parquet, beside RecordIO: opening, and reads in a shuffled order.

The formats take turns in one process, over the same JPEGs, which are in the system's cache. Each figure is the median
of the rounds; a ratio is that of the format's reading to RecordIO's in the same round.

python benchmarks/data_formats.py --images 20000 --output formats.json
"""

import argparse
import json
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from facebones.data.folders import open_training_set
from facebones.data.images import decode
from facebones.data.record_writer import RecordWriter
from facebones.data.recordio import Header, pack

SIZE, EACH = 112, 20


def jpegs(count: int) -> list[bytes]:
    """JPEGs of about the size that faces have, by smooth noise."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(min(count, 2000)):  # the sizes repeat, the contents of the files do not need to differ
        small = random.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        pixels = cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        made.append(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
    return [made[place % len(made)] for place in range(count)]


def write_sets(folder: Path, images: list[bytes]) -> dict[str, Path]:
    """The same images in each format."""
    import lmdb
    import msgpack
    import pyarrow as arrow
    from pyarrow import parquet

    labels = [place // EACH for place in range(len(images))]
    with RecordWriter(folder / "train.rec") as writer:
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            writer.write(key, pack(Header(float(label), key), image))
    for name, dumps in (("msgpack", msgpack.dumps), ("pickle", pickle.dumps)):
        with lmdb.open(str(folder / f"{name}.lmdb"), map_size=2**34) as opened, opened.begin(write=True) as writing:
            for key, row in enumerate(zip(images, labels, strict=True)):
                writing.put(str(key).encode(), dumps(row))
    structs = arrow.array(
        [{"bytes": image, "path": f"{key}.jpg"} for key, image in enumerate(images)],
        arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())]),
    )
    table = arrow.table({"image": structs, "label": labels})
    for name, options in {
        "groups of 100, snappy": {"row_group_size": 100},
        "one group, snappy": {"row_group_size": len(images)},
        "one group, zstd": {"row_group_size": len(images), "compression": "zstd"},
        "groups of 100, none": {"row_group_size": 100, "compression": "none", "use_dictionary": ["label"]},
    }.items():
        (folder / name).mkdir()
        parquet.write_table(table, folder / name / "train.parquet", **options)
    return {
        "recordio": folder / "train.rec",
        "lmdb, msgpack": folder / "msgpack.lmdb",
        "lmdb, pickle": folder / "pickle.lmdb",
        **{f"parquet, {path.name}": path for path in sorted(folder.iterdir()) if (path / "train.parquet").exists()},
    }


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--reads", type=int, default=2000, help="images that are read in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    images = jpegs(arguments.images)
    with tempfile.TemporaryDirectory() as name:
        paths = write_sets(Path(name), images)
        opening = {each: [seconds(lambda path=path: open_training_set(path))] for each, path in paths.items()}
        sets = {each: open_training_set(path) for each, path in paths.items()}
        reading: dict[str, list[float]] = {each: [] for each in [*sets, "decoding"]}
        for round_ in range(arguments.rounds):
            order = np.random.default_rng(round_).integers(0, len(images), arguments.reads).tolist()
            for each, data in sets.items():
                reading[each].append(seconds(lambda data=data, order=order: [data.read(index) for index in order]))
            reading["decoding"].append(seconds(lambda order=order: [decode(images[index], "") for index in order]))
    rows = {}
    for each, times in reading.items():
        ratio = statistics.median(one / other for one, other in zip(times, reading["recordio"], strict=True))
        micros = statistics.median(times) / arguments.reads * 1e6
        opened = f"{opening[each][0]:.2f} s" if each in opening else ""
        rows[each] = {"microseconds": micros, "ratio": ratio, "opening_seconds": opening.get(each, [None])[0]}
        print(f"{each:<34}{micros:>9.1f} us an image {ratio:>7.1f} x RecordIO   {opened}", flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps({"images": len(images), "bytes": len(b"".join(images)), "rows": rows}))
    print(f"{len(images)} images of {len(b''.join(images)) / len(images):.0f} bytes")


if __name__ == "__main__":
    main()
