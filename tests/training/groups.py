"""Groups of real processes that train together, as torchrun would start them, for tests.

They are forked from a server that has imported torch, so that a process costs a fraction of a second instead of
several. Each one runs the command line, in one thread, with a file for what it prints.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path

PLUGIN = Path(__file__).with_name("slow_tiny_network.py")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("torch._dynamo", "torch.distributed", "torch.testing", "facebones.cli.main", "facebones.data.folders"),
        *("facebones.data.loader", "facebones.evaluation.verification", "facebones.training.run"),
    ]
)
SECONDS = 60  # after which a process ends by itself

RECIPE = f"""\
import: [{PLUGIN}]
backbone: {{name: slow_tiny, embedding_size: 16, dropout: 0.2}}
head: {{sample_rate: 0.7}}
data: {{workers: 0}}
training: {{epochs: 4, batch_size: 8, checkpoint_every: 2}}
validation: {{sets: [tiny], every: 5}}
log: {{every: 2}}
"""


def training_command(folder, data):
    """A run folder in `folder`, and the command line that trains in it by RECIPE."""
    from facebones.run_folder import RunFolder

    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    run = RunFolder(folder / "run")
    return run, ["train", str(recipe), "--output", str(run.path), "--data", str(data)]


def wait_for(condition, seconds):
    """The first true value of a condition."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "too slow"
        time.sleep(0.02)
    return found


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Group:
    """Processes that run `facebones ARGV` together.

    Args:
        argvs: the command line of each.
        folder: for what they print.
        wins: environment variables of all that replace what a launcher would say.
        environment: of all.
    """

    def __init__(self, argvs, folder, *, wins=None, **environment):
        self.folder = folder
        size, port = len(argvs), str(free_port())
        own = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own = own | {"OMP_NUM_THREADS": 1, "FACEBONES_TIME_LIMIT": 30} | environment
        self.processes = []
        for rank, argv in enumerate(argvs):
            mine = {
                name: str(value) for name, value in (own | {"RANK": rank, "LOCAL_RANK": rank} | (wins or {})).items()
            }
            process = SERVER.Process(target=be_one, args=(argv, mine, str(folder), rank))
            process.start()
            self.processes.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.signal(signal.SIGKILL)
        for process in self.processes:
            process.join(10)

    def signal(self, number, *ranks):
        for rank in ranks or range(len(self.processes)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid, number)

    def wait(self, seconds=SECONDS, *ranks):
        """The exit status of each, or of these, in at most so many seconds; None for one that has not ended."""
        end = time.monotonic() + seconds
        waited = [self.processes[rank] for rank in ranks or range(len(self.processes))]
        for process in waited:
            process.join(max(0.0, end - time.monotonic()))
        return [process.exitcode for process in waited]

    @property
    def running(self):
        return any(process.exitcode is None for process in self.processes)

    def said(self, rank):
        """The lines of one process on stderr that begin with `facebones:`."""
        return [line for line in self.all_said(rank) if line.startswith("facebones: ")]

    def all_said(self, rank):
        path = self.folder / f"stderr-{rank}"
        return path.read_text().splitlines() if path.is_file() else []


def be_one(argv, environment, folder, rank):
    signal.alarm(SECONDS)
    os.environ.update(environment)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    import torch

    from facebones.cli.main import main

    torch.set_num_threads(1)
    sys.exit(main(argv))


def wait_for_step(run, step, group, seconds=30):
    """Wait until the training has done this step."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError):
            if int((run / "step").read_text()) >= step:
                return
        assert all(process.exitcode is None for process in group.processes), [group.all_said(0), group.wait(0)]
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached in {seconds} s: {group.all_said(0)}")


def outcome(run):
    """The weights and the metrics without the speed, as bytes."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    return (run / "model.safetensors").read_bytes(), json.dumps(lines)
