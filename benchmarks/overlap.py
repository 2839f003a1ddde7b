"""Claim: `find_overlap` finds at least 99 % of planted images and people, and lists at most 1 % of strangers' images.

Some people of a training set are held back as strangers. From the images of the others, changed copies become a test
set: one for each kind of change. Other images of trained people, which are taken out of the training data, become the
test set of shared people; images of strangers become the test set of both. The time for 100,000 training images and
12,000 test images is extrapolated from that of the images compared here.

Run: OMP_NUM_THREADS=1 python benchmarks/overlap.py FACES [--model FILE.onnx --scale 128 --runtime openvino]
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from facebones.data.folders import open_training_set
from facebones.data.images import decode
from facebones.data.pair_bins import write_pairs
from facebones.evaluation.overlap import find_overlap

SIDE = 112
WANTED = 100_000, 12_000  # training and test images of the extrapolation


def encoded(image, quality=95):
    """A JPEG of an RGB image."""
    return cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def resized(image, side):
    """The image scaled down to a side."""
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)


def cropped(image, side, random):
    """A crop of a share of the side, at a random place, enlarged to the old size."""
    size = round(side * SIDE)
    top, left = random.integers(0, SIDE - size + 1, 2)
    return cv2.resize(image[top : top + size, left : left + size], (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)


def brightened(image, random):
    """Another brightness and contrast; what exceeds 8 bits is clipped."""
    return np.clip(image * random.uniform(0.7, 1.3) + random.uniform(-30, 30), 0, 255).astype(np.uint8)


def realigned(image, random):
    """As by other landmarks: turned by up to 5 degrees, scaled by up to 10 %, shifted by up to 4 pixels."""
    matrix = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), random.uniform(-5, 5), random.uniform(0.9, 1.1))
    matrix[:, 2] += random.uniform(-4, 4, 2)
    return cv2.warpAffine(image, matrix, (SIDE, SIDE))


CHANGES = {
    "copied": None,
    "jpeg_30": lambda image, random: encoded(image, 30),
    "jpeg_10": lambda image, random: encoded(image, 10),
    "resized_56": lambda image, random: encoded(resized(image, 56)),
    "resized_32": lambda image, random: encoded(resized(image, 32)),
    "mirrored": lambda image, random: encoded(image[:, ::-1]),
    "brightened": lambda image, random: encoded(brightened(image, random)),
    "cropped_95": lambda image, random: encoded(cropped(image, 0.95, random)),
    "cropped_90": lambda image, random: encoded(cropped(image, 0.9, random)),
    "cropped_85": lambda image, random: encoded(cropped(image, 0.85, random)),
    "realigned": lambda image, random: encoded(realigned(image, random)),
    "all_at_once": lambda image, random: encoded(
        brightened(cropped(image, random.uniform(0.9, 1), random)[:, ::-1], random), 40
    ),
}


def plant(folder, source, people, planted, seed):
    """Write a training folder, and test sets as .bin: of each change, of shared people, and of strangers.

    Returns:
        the training folder; the test files by name; and of each set but "strangers" the person of each image.
    """
    random = np.random.default_rng(seed)
    data = open_training_set(source)
    chosen = random.permutation(data.num_identities)[:people]
    strangers, trained = np.split(chosen, [people // 4])
    images, shared, owners = [], [], []
    for person in trained:
        numbers = random.permutation(np.flatnonzero(data.labels == person))
        held = numbers[: len(numbers) // 4] if len(numbers) >= 8 else []
        shared += [data.read(int(number))[0] for number in held]
        owners += [str(person)] * len(held)
        (folder / "train" / str(person)).mkdir(parents=True)
        for number in numbers[len(held) :]:
            content = data.read(int(number))[0]
            (folder / "train" / str(person) / f"{number}.jpg").write_bytes(content)
            images.append((str(person), content))
    others = [data.read(int(number))[0] for number in np.flatnonzero(np.isin(data.labels, strangers))]
    sets, persons = {"shared": shared, "strangers": others}, {"shared": owners}
    for name, change in CHANGES.items():
        picked = random.choice(len(images), planted, replace=False)
        parts = [images[number][1] for number in picked]
        persons[name] = [images[number][0] for number in picked]
        sets[name] = [part if change is None else change(decode(part, name), random) for part in parts]
    files = {}
    for name, contents in sets.items():
        files[name] = folder / f"{name}.bin"
        even = contents[: len(contents) // 2 * 2]
        write_pairs(files[name], even, np.arange(len(even) // 2) % 2 == 0)
    return folder / "train", files, persons


def counts(result, persons, kinds):
    """For each set its number of images, and those that were found; of planted ones, with the right person."""
    total = {one["set"]: one["images"] for one in result.sets}
    found = {name: set() for name in total}
    for one in result.findings:
        if one.kind in kinds and (one.set == "strangers" or persons[one.set][one.image] == one.name):
            found[one.set].add(one.image)
    return total, found


def main():
    """Plant, audit, and print what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("faces", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--scale", type=float)
    parser.add_argument("--runtime")
    parser.add_argument("--people", type=int, default=400)
    parser.add_argument("--planted", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train, files, persons = plant(folder, given.faces, given.people, given.planted, given.seed)
        images = [file for name, file in files.items() if name != "shared"]
        start, start_of_work = time.perf_counter(), time.process_time()
        result = find_overlap(train, images, folder / "images", workers=1)
        seconds, work = time.perf_counter() - start, time.process_time() - start_of_work
        trained = result.training["images"]
        total, found = counts(result, persons, ("identical", "near"))
        print(f"{trained} training images of {result.training['identities']} people")
        for name in [*CHANGES, "strangers"]:
            print(f"{name:12} found {len(found[name])} of {total[name]} ({len(found[name]) / total[name]:.2%})")
        tests = sum(total.values())
        print(f"{trained} x {tests} images: {work:.0f} s of processor time, {seconds:.0f} s by the clock, one thread")
        # Reading and registration grow with the images, not with their pairs: this is an upper bound.
        wanted = work / (trained * tests) * WANTED[0] * WANTED[1] / 60
        print(f"{WANTED[0]:,} x {WANTED[1]:,} images: at most {wanted:.0f} min of processor time")
        told = {"near": {name: [len(found[name]), total[name]] for name in total}, "minutes": wanted}
        if given.model:
            told["people"] = people_found(given, folder, train, files, persons)
        if given.output:
            given.output.write_text(json.dumps(told, indent=2) + "\n")


def people_found(given, folder, train, files, persons):
    """Audit the shared people and the strangers, and print what was found."""
    sets = {name: files[name] for name in ("shared", "strangers")}
    preprocessing = {"scale": given.scale} if given.scale else None
    start = time.perf_counter()
    result = find_overlap(
        train,
        list(sets.values()),
        folder / "people",
        model=given.model,
        preprocessing=preprocessing,
        runtime=given.runtime,
        workers=1,
        progress=True,
    )
    total, found = counts(result, persons, ("person",))
    right, false, owners = found["shared"], len(found["strangers"]), persons["shared"][: total["shared"]]
    everybody, people = set(owners), {owners[image] for image in right}
    print(f"cut-off {result.people['cut_off']:.3f}, {result.people['repeated_count']} people under two labels")
    print(f"images of trained people: found {len(right)} of {total['shared']} ({len(right) / total['shared']:.2%})")
    print(f"trained people: found {len(people)} of {len(everybody)} ({len(people) / len(everybody):.2%})")
    print(f"images of strangers: found {false} of {total['strangers']} ({false / total['strangers']:.2%})")
    print(f"{time.perf_counter() - start:.0f} s with embeddings")
    return {
        "cut_off": result.people["cut_off"],
        "images": [len(right), total["shared"]],
        "people": [len(people), len(everybody)],
        "strangers": [false, total["strangers"]],
    }


if __name__ == "__main__":
    main()
