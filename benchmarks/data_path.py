"""Claim: batches of faces come as fast as OpenCV decodes, 2.5 times as fast as from a plain image folder, by each core.

Three references. Raw: `cv2.imdecode` over images in memory, which keeps no result; what it is to plain is the most that
any way around this decoder could be. Plain: what the field's trainers do, that is Pillow, a random flip, to a tensor
and normalised image by image, torch's collate and DataLoader over a folder. Bare: the raw loop in several processes at
once, which is what the machine gives. Ours is the way of `facebones train` from a `.rec`; against plain, with the
batch flipped and normalised too, as the training step does.

Each side is a process of its own with one thread; all take their turns, and a ratio is the median of those within a
turn. A side with workers first uses up what these have prepared while others were measured. Memory is what all
processes hold together (PSS), as it grows with each worker; the index is that of the file, repeated to 3 million.

    python benchmarks/data_path.py [--data FOLDER] [--turns 11] [--output FILE.json]
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

BATCH_SIZE = 128
BATCHES = 10  # that a side is measured over in a turn
INDEX = 3_000_000
SETTLE = 0.3  # seconds in which workers fill their queue and rest
MIB = 2**20

Side = Callable[[], float]


def generate(path: Path, images: int, seed: int) -> None:
    """Write a record file of smooth random images, 112x112, JPEG of some 5 kB, which decode in the time of faces."""
    import cv2

    from facebones.data.record_writer import RecordWriter
    from facebones.data.recordio import Header, pack

    noise = np.random.default_rng(seed)
    with RecordWriter(path) as writer:
        for index in range(images):
            coarse = noise.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            smooth = cv2.resize(coarse, (112, 112), interpolation=cv2.INTER_CUBIC)
            encoded = cv2.imencode(".jpg", smooth, (cv2.IMWRITE_JPEG_QUALITY, 90))[1].tobytes()
            writer.write(index + 1, pack(Header(float(index // 16), index + 1), encoded))


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def raw_side(records: Path, _: Path) -> Side:
    """Decode, and nothing else."""
    import cv2

    from facebones.data.folders import open_training_set

    data = open_training_set(records)
    encoded = [np.frombuffer(data.read(index)[0], np.uint8) for index in range(min(len(data), BATCHES * BATCH_SIZE))]
    encoded = (encoded * BATCHES * BATCH_SIZE)[: BATCHES * BATCH_SIZE]

    def decode_all() -> None:
        for buffer in encoded:
            cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB)

    return lambda: seconds(decode_all)


def from_loader(batches: Iterator[object], workers: int) -> Side:
    """Take batches that are made meanwhile, after those that were ready before."""

    def take(count: int) -> None:
        for _ in range(count):
            next(batches)

    def side() -> float:
        if not workers:
            return seconds(lambda: take(BATCHES))
        take(6 * workers)
        elapsed = seconds(lambda: take(BATCHES))
        time.sleep(SETTLE)
        return elapsed

    return side


def our_batches(records: Path, workers: int, index: int = 0) -> Iterator[object]:
    """Batches without end, as `facebones train` gets them; with `index`, of a set that is as long."""
    from facebones.data.folders import open_training_set
    from facebones.data.loader import EpochOrder, training_batches
    from facebones.data.record_set import RecordSet
    from facebones.system.malloc import tune_malloc

    tune_malloc()
    data = open_training_set(records)
    if index:
        assert isinstance(data, RecordSet)
        file, columns = data.records, (data, ("positions", "labels"), data.records, ("keys", "offsets"))
        for owner, names in (columns[:2], columns[2:]):
            for name in names:
                setattr(owner, name, np.resize(getattr(owner, name), index))
        assert len(file) == len(data) == index
    per_epoch = len(data) // BATCH_SIZE
    order = EpochOrder(data, batch_size=BATCH_SIZE, batches_per_epoch=per_epoch, first=0, last=10**9, seed=0)
    return training_batches(order, workers=workers)


def our_side(workers: int, network_input: bool) -> Callable[[Path, Path], Side]:
    """From the record file; with `network_input`, flipped at random, normalised and channels-last."""

    def build(records: Path, _: Path) -> Side:
        import torch

        from facebones.data.preprocessing import to_network_input

        batches = our_batches(records, workers)
        if network_input:
            plain, batches = batches, None
            batches = (to_network_input(images, True, torch.rand(len(images)) < 0.5) for images, _ in plain)
        return from_loader(batches, workers)

    return build


def plain_side(workers: int) -> Callable[[Path, Path], Side]:
    """From the folder of images, an image at a time."""

    def build(_: Path, folder: Path) -> Side:
        from plain import PlainFolder
        from torch.utils.data import DataLoader, RandomSampler

        data = PlainFolder(folder)
        endless = RandomSampler(data, replacement=True, num_samples=10**9)  # for it, workers begin once only
        return from_loader(iter(DataLoader(data, BATCH_SIZE, sampler=endless, num_workers=workers)), workers)

    return build


SIDES: dict[str, Callable[[Path, Path], Side]] = {
    "raw": raw_side,
    "ours": our_side(0, network_input=False),
    "ours to network input": our_side(0, network_input=True),
    "plain": plain_side(0),
    "ours, 1 worker": our_side(1, network_input=False),
    "ours, 2 workers": our_side(2, network_input=False),
    "plain, 2 workers": plain_side(2),
}
BARE = "raw, 2 processes at once"


def serve(name: str, records: Path, folder: Path, pipe: Connection) -> None:
    """In a process of its own: answer each message with the seconds of a turn, until there are no more."""
    import torch

    torch.set_num_threads(1)
    side = SIDES[name](records, folder)
    side()
    pipe.send("ready")
    while pipe.recv():
        pipe.send(side())
    del side  # ends its workers


class Served:
    """A side in its process."""

    def __init__(self, name: str, records: Path, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(name, records, folder, other))
        self.process.start()
        other.close()
        self.pipe.recv()

    def begin(self) -> None:
        """Let it take its turn."""
        self.pipe.send(True)

    def turn(self) -> float:
        """Images a second in a turn."""
        self.begin()
        return self.result()

    def result(self) -> float:
        """Images a second in the turn that was begun."""
        return BATCHES * BATCH_SIZE / self.pipe.recv()

    def close(self) -> None:
        """End the process."""
        self.pipe.send(False)
        self.process.join()


def measure(records: Path, folder: Path, turns: int) -> dict[str, list[float]]:
    """Images a second of each side in each turn."""
    sides = {name: Served(name, records, folder) for name in SIDES}
    second = Served("raw", records, folder)
    rates: dict[str, list[float]] = {name: [] for name in (*SIDES, BARE)}
    for turn in range(turns):
        order = list(sides)
        random.Random(turn).shuffle(order)  # so that no side always follows the same one
        for name in order:
            rates[name].append(sides[name].turn())
        for side in (sides["raw"], second):
            side.begin()
        # Both have as much to do: the machine gives what the slower one took its time for.
        rates[BARE].append(2 * min(side.result() for side in (sides["raw"], second)))
    for side in (*sides.values(), second):
        side.close()
    return rates


def memory_of(workers: int, records: Path, pipe: Connection) -> None:
    """In a process of its own: MiB of PSS of all processes, and of USS of a worker, after some hundred batches."""
    import torch

    torch.set_num_threads(1)
    batches = our_batches(records, workers, INDEX)
    for _ in range(40 * workers):
        next(batches)
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    held = [smaps(number) for number in processes]
    alone = held[-1]["Private_Clean"] + held[-1]["Private_Dirty"]
    pipe.send((sum(each["Pss"] for each in held) / MIB, alone / MIB, held[-1]["Pss"] / MIB))
    del batches  # ends the workers


def smaps(process: int | None) -> dict[str, int]:
    """The sums over the memory maps of a process, in bytes."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(size) * 1024 for name, size, _ in (line.replace(":", " ").split() for line in lines)}


def measure_memory(records: Path) -> dict[str, float]:
    """What each worker adds, of 1, 2 and 4."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for workers in (1, 2, 4):
        ours, other = context.Pipe()
        process = context.Process(target=memory_of, args=(workers, records, other))
        process.start()
        found[workers] = ours.recv()
        process.join()
    return {
        "index_images": INDEX,
        "pss_added_by_each_worker_mib": (found[4][0] - found[1][0]) / 3,
        "pss_added_by_the_second_worker_mib": found[2][0] - found[1][0],
        "uss_of_a_worker_mib": found[2][1],
        "pss_of_a_worker_mib": found[2][2],
    }


def compared(rates: dict[str, list[float]]) -> list[dict[str, float | str | None]]:
    """Ratios within each turn: median, quartiles, and what is claimed of it."""
    wanted = (
        ("ours", "raw", 0.9), ("ours to network input", "plain", 2.5), ("ours, 2 workers", "ours, 1 worker", 1.8),
        ("raw", "plain", None), (BARE, "raw", None), ("ours, 1 worker", "raw", None), ("ours, 2 workers", BARE, None),
        ("ours, 2 workers", "plain, 2 workers", None),
    )  # fmt: skip
    rows: list[dict[str, float | str | None]] = []
    for first, second, claim in wanted:
        ratios = [a / b for a, b in zip(rates[first], rates[second], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append({"side": first, "of": second, "ratio": middle, "low": low, "high": high, "claim": claim})
    return rows


def main() -> None:
    """Measure, print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="a .rec file or its folder (default: random images are made)")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    from facebones.data.folders import find_records
    from facebones.datatools.convert import convert

    with tempfile.TemporaryDirectory() as name:
        records = find_records(arguments.data) if arguments.data else Path(name) / "train.rec"
        assert records is not None, "--data is a .rec file or a folder with one"
        if not arguments.data:
            generate(records, arguments.images, arguments.seed)
        convert(records, Path(name) / "folder")
        print(f"{arguments.data or 'random smooth noise'}, batches of {BATCH_SIZE}, {os.cpu_count()} cores", flush=True)
        rates = measure(records, Path(name) / "folder", arguments.turns)
        memory = measure_memory(records) if platform.system() == "Linux" else {}
    for side, of_turns in rates.items():
        print(f"{side:26} {statistics.median(of_turns):8,.0f} images/s")
    rows = compared(rates)
    for row in rows:
        claim = f"; claimed {row['claim']}" if row["claim"] else ""
        print(f"{row['side']:>26} / {row['of']:26} {row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f}){claim}")
    for title, value in memory.items():
        print(f"{title.replace('_', ' '):38} {value:10,.0f}")
    if arguments.output:
        import cv2

        medians = {side: statistics.median(of_turns) for side, of_turns in rates.items()}
        machine = {"machine": platform.platform(), "cores": os.cpu_count(), "opencv": cv2.__version__}
        content = {**machine, "images_per_second": medians, "ratios": rows, "memory": memory}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
