"""`--devices N`: starts a command in N processes of this machine that work together, and ends with them.

The processes find each other through a store in this one. A signal is passed on once; a second one kills. If one of
them dies, the others notice it and end; this process says which one it was.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch

from facebones.errors import ConfigError
from facebones.system.processes import LAUNCHER_VARIABLE, facebones_command, stop_signals
from facebones.system.progress import say

POLL_SECONDS = 0.1
PATIENCE_SECONDS = 20.0  # for the others, once one has died: one that hangs is killed then
SAVING_SECONDS = 60.0  # after a signal
MOST_PROCESSES = 4096


def number_of_processes(devices: str, device: str) -> int:
    """The processes that `--devices` asks for: a number, or one for each GPU, or on CPUs one for each core.

    Raises:
        ConfigError: not a number, or more than there are GPUs.

    >>> number_of_processes("2", "cpu")
    2
    """
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if devices == "all":
        return gpus or os.cpu_count() or 1
    if not devices.isascii() or not devices.isdigit() or not 0 < int(devices) <= MOST_PROCESSES:
        raise ConfigError(f"--devices {devices}: give a number of processes, or all")
    if gpus and int(devices) > gpus:
        raise ConfigError(f"--devices {devices}: this machine has {gpus} GPUs; give at most {gpus}, or --device cpu")
    return int(devices)


def run_processes(argv: Sequence[str], count: int, continuation: Callable[[], str]) -> int:
    """Run `facebones ARGV` in several processes.

    Args:
        argv: the command line, with `--devices`, which the processes ignore.
        count: number of processes.
        continuation: how to continue; printed at the end if a process was killed or hung.

    Returns:
        The exit status: 0 if all have ended well, else that of the first one that has not.
    """
    limit = timedelta(seconds=300)
    store_class = torch.distributed.TCPStore  # type: ignore[attr-defined]
    store = store_class("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit)
    processes: list[subprocess.Popen[bytes]] = []
    with stop_signals() as stop:
        try:
            processes += [_start(argv, rank, count, store.port) for rank in range(count)]
            told = False
            while any(process.poll() is None for process in processes):
                if stop.received is not None and not told:
                    told = True
                    for process in processes:
                        process.send_signal(stop.received)
                if any(process.returncode for process in processes):
                    break
                time.sleep(POLL_SECONDS)
            _wait_for_rest(processes, stop.received)
        finally:  # also after a second signal
            for process in processes:
                process.kill()
                process.wait()
    if stop.received is None and any(process.returncode < 0 for process in processes):
        say(f"facebones: {continuation()}")
    return _status(processes, stop.received)


def _start(argv: Sequence[str], rank: int, count: int, port: int) -> "subprocess.Popen[bytes]":
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    environment = os.environ | {name: str(value) for name, value in own.items()}
    environment |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    environment[LAUNCHER_VARIABLE] = str(os.getpid())
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    return subprocess.Popen(  # noqa: S603 (our own command line)
        facebones_command(argv),
        stdin=subprocess.DEVNULL,
        env=environment,
        process_group=0,  # Ctrl-C on a terminal reaches the launcher only, which passes it on once
    )


def _wait_for_rest(processes: "Sequence[subprocess.Popen[bytes]]", passed_on: signal.Signals | None) -> None:
    """Wait for the others once one has failed; say which one was killed, if not by the signal that was passed on."""
    for rank, process in enumerate(processes):
        if process.returncode is not None and process.returncode < 0 and -process.returncode != passed_on:
            name = signal.Signals(-process.returncode).name
            say(f"process {rank} of {len(processes)} was killed by {name}; the others end")
    end = time.monotonic() + (PATIENCE_SECONDS if passed_on is None else SAVING_SECONDS)
    while time.monotonic() < end and any(process.poll() is None for process in processes):
        time.sleep(POLL_SECONDS)


def _status(processes: "Sequence[subprocess.Popen[bytes]]", passed_on: signal.Signals | None) -> int:
    """A status that a process chose is preferred to the death of another."""
    statuses = [process.returncode for process in processes if process.returncode]
    if chosen := [status for status in statuses if status > 0]:
        return chosen[0]
    if statuses and passed_on is not None:  # before they could save anything
        say(f"facebones: stopped by {passed_on.name}")
        return 128 + passed_on
    return 1 if statuses else 0
