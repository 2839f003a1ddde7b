"""Disturbs a command by a fault, gives it again without, and compares the end with the undisturbed one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_commands import COMMANDS, Command, make_inputs

HERE = Path(__file__).parent
CHANGES_DATA = ("cut", "gone")
# How a command may end by a fault, unless it ends well.
STOPPED = {"kill": (-signal.SIGKILL,), "term": (143, -15), "term twice": (143, -15), "int": (130,)}
FAILED = dict.fromkeys(("full", "quota", "read-only", "failing", "removed", *CHANGES_DATA, "memory"), (1, 2))
STATUSES: dict[str, tuple[int, ...]] = {**STOPPED, **FAILED, "clock": ()}
MISSING = "not_found.csv"
ORIGINS = (".conversion.json", ".alignment.json")
MOST_KILLS = 200  # of a training
KILLS_UNTIL_LATER = 20  # after so many kills of a training, the next may come after twice the time
SOURCE = HERE.parents[1] / "src"


@dataclass(frozen=True)
class Ended:
    """How a process ended: as `subprocess` says it, in which time, with which words, and whether something hung."""

    status: int
    seconds: float
    hung: bool
    said: str
    within: bool = False
    beside: int = 0

    @property
    def last_line(self) -> str:
        """Of stderr, where there is one: stdout, such as where a report is, follows when its buffer is written."""
        lines = self.said.splitlines() or [""]
        return next((line for line in reversed(lines) if line.startswith("facebones: ")), lines[-1])


class Server:
    """A process of `fork_server.py`."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(SOURCE), str(HERE), *filter(None, sys.path)])
        own = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path, "COLUMNS": "200"}
        self._process = subprocess.Popen(
            [sys.executable, HERE / "fork_server.py", "facebones.training.run", "torch._dynamo"],
            env=os.environ | own, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request; returns the answer."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("the fork server has ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it, and what it has started."""
        assert self._process.stdin and self._process.stdout
        self.ask(rest=True)
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@dataclass
class Undisturbed:
    """A command without a fault: its end, its changes in order, and its time."""

    content: dict[str, Any]
    changes: list[str]
    seconds: float


@dataclass
class Harness:
    """Runs commands in work folders beside common inputs.

    Attributes:
        folder: for inputs and work folders.
        kills: processes that a signal has ended so far.
    """

    folder: Path
    server: Server
    kills: int = 0
    known: dict[str, Undisturbed] = field(default_factory=dict)

    def undisturbed(self, command: Command) -> Undisturbed:
        """The end of a command without a fault; all that is compared with it."""
        if command.name not in self.known:
            for _ in range(2):  # the first imports, so that the second has the time of all others
                with self.work(command) as work:
                    ended = self.run(work, command.words, changes=str(self.folder / "changes"))
                    assert ended.status == 0, ended.said
                    found = json.loads((self.folder / "changes").read_text())
                    self.server.ask(
                        **{"import": [name for name in found["modules"] if not name.startswith("facebones_plugin_")]}
                    )
                    self.known[command.name] = Undisturbed(command.content(work), found["changes"], ended.seconds)
        return self.known[command.name]

    @contextmanager
    def work(self, command: Command) -> Iterator[Path]:
        """A new work folder, whose inputs are links, but for the one that a fault may change."""
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(self.folder / "inputs", work, copy_function=os.link)
        (work / "made").mkdir()
        changed = work / command.data
        if changed.exists():
            changed.unlink()
            shutil.copy(self.folder / "inputs" / command.data, changed)
        yield work

    def run(self, work: Path, words: Sequence[str], **request: Any) -> Ended:
        """Run a command line in a fork."""
        log = self.folder / "log"
        log.write_bytes(b"")
        answer = self.server.ask(words=list(words), folder=str(work), log=str(log), **request)
        self.kills += answer["status"] == -signal.SIGKILL
        return Ended(said=log.read_text(errors="replace"), **answer)

    def check_again(self, command: Command, work: Path) -> str:
        """Give a command again after a fault; returns what is wrong with its end, or nothing."""
        ended = self.run(work, command.again(command, work))
        if ended.status or ended.hung:
            return f"the same command again: status {ended.status}, {ended.last_line}"
        return differences(self.undisturbed(command).content, command.content(work))


def kill_again_and_again(harness: Harness, command: Command, kills: int, chance: random.Random) -> str:
    """Kill trainings at any moment, and continue each until it is done; returns in words what was done.

    Raises:
        AssertionError: one of them ended other than without a kill.
    """
    whole, trainings, in_a_save = harness.undisturbed(command), 0, 0
    begun, goal = harness.kills, harness.kills + kills
    checkpoints = f"{command.output}/checkpoints"
    while harness.kills < goal:
        with harness.work(command) as work:
            status, since = -1, harness.kills
            while status:
                # Each kill may come later than the one before, so that a training gets on however slow the machine is.
                latest = whole.seconds / 2 * (1 + (harness.kills - since) / KILLS_UNTIL_LATER)
                delay, within = chance.uniform(0, latest), str(work / checkpoints) if chance.random() < 0.5 else ""
                words = command.again(command, work)
                ended = harness.run(work, words, signals=[[delay, signal.SIGKILL]], within=within)
                assert not (flaw := flaws(ended, [-signal.SIGKILL])), f"{flaw}, killed after {delay:.3f} s"
                in_a_save += ended.within
                assert harness.kills < since + MOST_KILLS, f"it gets nowhere: {ended.said}"
                status = ended.status
            assert not (flaw := differences(whole.content, command.content(work))), flaw
            trainings += 1
    assert not harness.server.ask(rest=True)["hung"], "processes are left"
    return f"{command.name}: {harness.kills - begun} kills of {trainings} trainings, {in_a_save} in a save"


def disturb(harness: Harness, command: Command, fault: str, at: int) -> str:
    """Bring a fault about at a change that a command makes, and give it again; returns what is wrong, or nothing.

    Args:
        harness: the harness.
        command: the command.
        fault: a key of `STATUSES`.
        at: number of the change, from 1 on.
    """
    with harness.work(command) as work:
        argument = {"removed": str(work / "made"), "memory": 2**23 * (2 + at % 8)}.get(fault, str(work / command.data))
        ended = harness.run(work, command.words, fault=[fault, at, argument])
        if flaw := flaws(ended, STATUSES[fault]):
            return flaw
        if ended.status == 0:
            flaw = differences(harness.undisturbed(command).content, command.content(work))
            return flaw and _unlike_changed_data(harness, command, fault, work)
        if fault in CHANGES_DATA:
            shutil.copy(harness.folder / "inputs" / command.data, work / command.data)
        if fault == "removed":  # what was written after that is of no use
            shutil.rmtree(work / "made", ignore_errors=True)
        (work / "made").mkdir(exist_ok=True)
        if flaw := harness.check_again(command, work):
            return f"{flaw}, after: {ended.last_line}"
    return ""


def run_twice_at_once(harness: Harness, command: Command) -> str:
    """Run a command twice at the same time on one output; returns what is wrong, or nothing."""
    with harness.work(command) as work:
        ended = harness.run(work, command.words, beside=True)
        if {ended.status, ended.beside} - {0, 1, 2} or "Traceback" in ended.said or ended.hung:
            return f"status {ended.status} and {ended.beside}: {ended.said[-500:]}"
        if 0 not in {ended.status, ended.beside}:
            return f"both have failed: {ended.said[-500:]}"
        return differences(harness.undisturbed(command).content, command.content(work))


def kill_a_worker(harness: Harness, command: Command, after: float) -> str:
    """Kill a process that a command has started, and continue; returns what is wrong, or nothing."""
    with harness.work(command) as work:
        ended = harness.run(work, command.words, signals=[[after, signal.SIGKILL]], of_child=True)
        return flaws(ended, (1,)) or (harness.check_again(command, work) if ended.status else "")


def _unlike_changed_data(harness: Harness, command: Command, fault: str, work: Path) -> str:
    """How the output differs from that of the command where its data was changed before, as one may do."""
    found = command.content(work)
    shutil.rmtree(work / "made", ignore_errors=True)  # the fault may have removed it
    (work / "made").mkdir()
    if fault not in CHANGES_DATA or harness.run(work, command.words).status:
        return differences(harness.undisturbed(command).content, found)
    same = command.content(work)
    lost = command.data.partition("/")[2].encode()
    if any(lost in content for name, content in found.items() if name.endswith(MISSING)):  # said, in other words
        return ""
    for name in [name for name in {**found, **same} if name.endswith(ORIGINS)]:  # of the data at the start
        found.pop(name, None)
        same.pop(name, None)
    return differences(same, found)


def differences(expected: dict[str, Any], found: dict[str, Any]) -> str:
    """What differs in two outputs, in words."""
    lost, more = sorted({*expected} - {*found}), sorted({*found} - {*expected})
    other = sorted(name for name in {*expected} & {*found} if expected[name] != found[name])
    parts = {"missing": lost, "left over": more, "other": other}
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in parts.items() if names)


def flaws(ended: Ended, statuses: Sequence[int]) -> str:
    """What is wrong with how a disturbed command ended, or nothing: status 0, or one of these with one line."""
    if ended.hung:
        return f"hung, or left a process, after {ended.seconds:.1f} s, status {ended.status}: {ended.said[-4000:]}"
    if ended.status < 0 and ended.status in statuses:
        return ""
    if "Traceback" in ended.said:
        return f"traceback: {ended.last_line}"
    if ended.status and ended.status not in statuses:
        return f"status {ended.status}: {ended.last_line}"
    if ended.status and (not ended.last_line.startswith("facebones: ") or "standard output" in ended.last_line):
        return f"status {ended.status} without a line: {ended.last_line}"
    return ""


@contextmanager
def harness(folder: Path) -> Iterator[Harness]:
    """A harness whose inputs are made, in this folder."""
    server = Server()
    try:
        make_inputs(folder / "inputs")
        made = Harness(folder, server)
        prepared = {"run": COMMANDS["train"], "results": COMMANDS["evaluate pairs"]}
        for name, command in prepared.items():
            with made.work(command) as work:
                ended = made.run(work, command.words)
                assert ended.status == 0, ended.said
                shutil.copytree(work / command.output, folder / "inputs" / name)
        yield made
    finally:
        server.close()
