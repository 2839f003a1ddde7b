"""Compare a whole training, from the command to the last validation, with the plain loop of the field's trainers.

Both follow the same recipe on the same faces: the loop of `plain.py` over a folder of images, and `facebones train
--autotune`, which starts with empty caches. Two trainings run at the same time, each on its half of the cores (by
`taskset`), one of each side first. This takes hours: a finished training is kept in --output and is not repeated when
the command is run again.

    python benchmarks/whole_training.py --data FOLDER --output DIR [--recipe small_data] [--seeds 0 1] [--jobs 2]

FOLDER holds train.rec and the pair sets of the recipe.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIDES = ("plain", "ours")
CACHES = ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR")


def plain_training(recipe_name: str, data: Path, folder: Path, seed: int) -> list[float]:
    """Train; the accuracy at each validation, the last one at the end."""
    import torch
    from plain import PlainFolder, PlainTraining
    from torch.utils.data import DataLoader

    from facebones.data.folders import find_pair_set
    from facebones.data.pair_bins import read_pairs
    from facebones.recipe import load_recipe

    recipe = load_recipe(recipe_name, {})
    assert follows(recipe), f"{recipe_name}: the plain loop cannot follow it"
    torch.manual_seed(seed)
    random.seed(seed)
    faces = PlainFolder(folder)
    batches = DataLoader(
        faces, recipe.training.batch_size, shuffle=True, drop_last=True, num_workers=recipe.data.workers
    )
    rate, margin = recipe.optimizer.learning_rate, recipe.head.options.combined().m2
    training = PlainTraining(recipe.backbone.name, len(faces.people), rate, margin)
    sets = [read_pairs(find_pair_set(name, data)) for name in recipe.validation.sets]
    total, step, accuracies = recipe.training.epochs * len(batches), 0, []
    start = time.monotonic()
    for _ in range(recipe.training.epochs):
        for x, labels in batches:
            learning_rate = recipe.optimizer.learning_rate * (1 - step / total) ** recipe.schedule.power
            training.optimizer.param_groups[0]["lr"] = learning_rate
            loss = training.step(x, labels)
            step += 1
            if step % 50 == 0:
                rate = (time.monotonic() - start) / step
                print(f"step {step} of {total}: loss {loss.item():.3f}, {rate:.2f} s a step", flush=True)
            if step % recipe.validation.every == 0 or step == total:
                accuracies.append(statistics.mean(plain_accuracy(training.network, pairs) for pairs in sets))
                print(f"step {step}: accuracy {accuracies[-1]:.4f}", flush=True)
    return accuracies


def follows(recipe: Any) -> bool:
    """Whether the plain loop, which has not all that a recipe can ask for, does what this one says."""
    head, optimizer, training = recipe.head.options.combined(), recipe.optimizer, recipe.training
    return (
        (head.scale, head.m1, head.m3, head.interclass_filter, head.sample_rate) == (64, 1, 0, 0, 1)
        and (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 5e-4)
        and (recipe.schedule.name, recipe.schedule.warmup_epochs) == ("polynomial", 0)
        and (recipe.backbone.embedding_size, recipe.backbone.dropout) == (512, 0)
        and (training.accumulation_steps, training.clip_norm) == (1, 0)
    )


def plain_accuracy(network: Any, pairs: Any) -> float:
    """Of a pair set by the published protocol, image and mirrored image summed."""
    import io

    import torch
    from PIL import Image
    from plain import plain_input

    from facebones.evaluation.verification import verify_pairs

    network.eval()
    embeddings = []
    with torch.no_grad():
        for first in range(0, len(pairs.images), 128):
            images = pairs.images[first : first + 128]
            x = torch.stack([plain_input(Image.open(io.BytesIO(image)).convert("RGB")) for image in images])
            embeddings.append(torch.nn.functional.normalize(network(x) + network(x.flip(3))))
    network.train()
    return verify_pairs(torch.cat(embeddings).numpy(), pairs.is_same).accuracy


def our_accuracies(run: Path) -> list[float]:
    """The accuracy at each validation of a run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    by_step: dict[int, list[float]] = {}
    for row in rows:
        if row["kind"] == "validation":
            by_step.setdefault(row["step"], []).append(row["accuracy"])
    return [statistics.mean(accuracies) for accuracies in by_step.values()]


def begin(side: str, seed: int, cores: list[int], arguments: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Begin a training on the given cores; what an earlier one has left goes first, what it measured included."""
    run, cache = arguments.output / f"{side}-{seed}", arguments.output / f"cache-{side}-{seed}"
    for left in (run, cache):
        shutil.rmtree(left, ignore_errors=True)
    words = [arguments.recipe, "--data", str(arguments.data), "--output", str(run), "--seed", str(seed)]
    if side == "plain":
        words = [sys.executable, __file__, "--plain", "--recipe", *words]
    else:
        words = [
            str(Path(sys.executable).with_name("facebones")),
            "train",
            *words,
            "--autotune",
            "--device",
            "cpu",
        ]
    own = {"OMP_NUM_THREADS": str(len(cores))} | {name: str(cache) for name in CACHES}
    with run.with_name(f"{run.name}.log").open("wb") as log:
        command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *words]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | own)


def train_all(missing: list[tuple[str, int]], arguments: argparse.Namespace) -> None:
    """Train, `--jobs` at once; each training leaves SIDE-SEED.json with its seconds and accuracies."""
    cores, queue = sorted(os.sched_getaffinity(0)), list(missing)
    share = len(cores) // arguments.jobs
    assert share, f"{len(cores)} cores for {arguments.jobs} trainings at once; give fewer --jobs"
    free = [cores[place * share : (place + 1) * share] for place in range(arguments.jobs)]
    running: dict[tuple[str, int], tuple[subprocess.Popen[bytes], list[int], float]] = {}
    try:
        while queue or running:
            while queue and free:
                training, mine = queue.pop(0), free.pop(0)
                running[training] = begin(*training, mine, arguments), mine, time.monotonic()
            time.sleep(0.1)
            for (side, seed), (process, mine, start) in list(running.items()):
                if process.poll() is None:
                    continue
                seconds = time.monotonic() - start
                run = arguments.output / f"{side}-{seed}"
                assert process.returncode == 0, f"{run}.log says why it failed"
                accuracies = json.loads(run.read_text()) if side == "plain" else our_accuracies(run)
                row = {"side": side, "seed": seed, "seconds": seconds, "accuracies": accuracies}
                run.with_name(f"{run.name}.json").write_text(json.dumps(row) + "\n")
                print(f"{side}, seed {seed}: {seconds / 60:.1f} min, accuracy {accuracies[-1]:.4f}", flush=True)
                del running[side, seed]
                free.append(mine)
    finally:
        for process, _, _ in running.values():
            process.terminate()


def main() -> None:
    """Train what is not there yet, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--recipe", default="small_data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.output.parent / "folder" if arguments.plain else arguments.output / "folder"
    if arguments.plain:
        accuracies = plain_training(arguments.recipe, arguments.data, folder, arguments.seed)
        arguments.output.write_text(json.dumps(accuracies) + "\n")
        return
    from facebones.data.folders import find_records
    from facebones.datatools.convert import convert

    arguments.output.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        records = find_records(arguments.data)
        assert records is not None, "--data is a folder with train.rec"
        convert(records, folder)
    # The plain loop takes longer: first one of it, and all of ours beside it.
    wanted = [("plain", seed) for seed in arguments.seeds]
    wanted[1:1] = [("ours", seed) for seed in arguments.seeds]
    train_all([each for each in wanted if not (arguments.output / "{}-{}.json".format(*each)).is_file()], arguments)
    rows = [json.loads((arguments.output / f"{s}-{seed}.json").read_text()) for s in SIDES for seed in arguments.seeds]
    for side in SIDES:
        own = [row for row in rows if row["side"] == side]
        accuracy = statistics.mean(row["accuracies"][-1] for row in own)
        print(f"{side}: {statistics.mean(row['seconds'] for row in own) / 60:.1f} min, accuracy {accuracy:.4f}")
    seconds = {(row["side"], row["seed"]): row["seconds"] for row in rows}
    ratios = [seconds["plain", seed] / seconds["ours", seed] for seed in arguments.seeds]
    print(f"plain / ours: {statistics.mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
