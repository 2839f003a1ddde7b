"""Run inputs in a child process with a memory limit and a time limit, and tell what came of each.

A child reads many inputs, one after another. It tells the number of each before it reads it, so the input that a child
died of is known; a new child continues with the next one.
"""

import contextlib
import json
import os
import pickle
import re
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

import seeds

from facebones.errors import FaceBonesError

SECONDS = 10.0  # of processor time for an input
WAITING = 6  # times as long by the clock: other work on the machine must not look like a reader that hangs
FREE_BYTES = 512 * 2**20
BYTES_EACH = 20  # of memory for each byte of input, beside the free ones
LONGEST_MESSAGE = 10_000  # letters; a name in a file may be long, a message must not be as long as a file
TRACED = 10  # one in so many inputs is traced, to count the lines that are reached
SOURCE = str(Path(__file__).parents[2] / "src" / "facebones")

Files = Mapping[str, bytes]
Read = Callable[[Path], object]


class Outcome(NamedTuple):
    """What came of an input: "read", "refused", or a fault: "raised", "memory", "hung", "died"; and in which words."""

    kind: str
    words: str
    seconds: float = 0.0
    lines: frozenset[tuple[str, int]] = frozenset()

    @property
    def is_fault(self) -> bool:
        """Whether a reader must not end so."""
        return self.kind not in ("read", "refused")

    @property
    def sort(self) -> str:
        """The words without what differs from input to input."""
        text = re.sub(r"(['\"]).*?\1", "_", self.words.split("\n")[0])
        return f"{self.kind}: {re.sub(r'[^ ]*[/0-9][^ ]*', '_', text)[:80]}"


def run_inputs(read: Read, inputs: Iterable[Files], *, trace: int = 0, seconds: float = SECONDS) -> Iterator[Outcome]:
    """The outcome of each input, in order.

    Args:
        read: reads the input in a folder.
        inputs: the files of each.
        trace: every so many inputs, the lines that are reached are told; 0 for none.
        seconds: the most that an input may take, of processor time; `WAITING` times as many by the clock.
    """
    waiting = list(inputs)
    done = 0
    while done < len(waiting):
        with _Child(read, waiting[done:], trace, seconds) as child:
            for outcome in child.outcomes():
                done += 1
                yield outcome


def made_in_child(make: Callable[[], list[Files]]) -> list[Files]:
    """What a function returns, called in a child: threads that it starts would make later forks hang."""
    receiving, sending = os.pipe()
    if not (process := os.fork()):
        try:
            with os.fdopen(sending, "wb") as told:
                pickle.dump(make(), told)
        except BaseException:  # noqa: BLE001 (whatever it is, the child ends here)
            traceback.print_exc()
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as answer:
        content = answer.read()
    os.waitpid(process, 0)
    return pickle.loads(content)


class _Child:
    def __init__(self, read: Read, inputs: list[Files], trace: int, seconds: float) -> None:
        self.read, self.inputs, self.trace, self.seconds = read, inputs, trace, seconds

    def __enter__(self) -> "_Child":
        self.folder = tempfile.TemporaryDirectory(prefix="fuzz")
        receiving, sending = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.process = os.fork()
        if not self.process:
            try:
                os.close(receiving)
                with os.fdopen(sending, "wb") as told:
                    self._work(told)
            except BaseException:  # noqa: BLE001 (whatever it is, the child ends here)
                traceback.print_exc()
            os._exit(0)
        os.close(sending)
        self.answers = os.fdopen(receiving, "rb")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.process, 0)
        self.answers.close()
        self.folder.cleanup()

    def outcomes(self) -> Iterator[Outcome]:
        """Outcomes up to the last input, or up to the one that the child died of."""
        for _ in self.inputs:
            begun = time.monotonic()
            # The child's own alarm comes first; this one is for a child that is stuck where no signal reaches it.
            if not select.select([self.answers], [], [], WAITING * self.seconds + 20)[0]:
                yield Outcome("hung", "no answer", time.monotonic() - begun)
                return
            try:
                yield pickle.load(self.answers)
            except (EOFError, pickle.UnpicklingError):
                _, status = os.waitpid(self.process, 0)
                number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
                kind = "hung" if number in (signal.SIGALRM, signal.SIGPROF) else "died"
                name = signal.Signals(number).name if number else f"status {os.WEXITSTATUS(status)}"
                yield Outcome(kind, name, time.monotonic() - begun)
                return

    # ------------------------------------------------------------------------------------------- in the child

    def _work(self, told: IO[bytes]) -> None:
        if os.environ.get("FUZZ_VERBOSE") is None:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        folder = Path(self.folder.name) / "input"
        for number, files in enumerate(self.inputs):
            seeds.place(files, folder)
            os.chdir(folder)
            traced = bool(self.trace) and number % self.trace == 0
            outcome = self._outcome(folder, sum(map(len, files.values())), traced)
            os.chdir("/")
            pickle.dump(outcome, told)
            told.flush()

    def _outcome(self, folder: Path, size: int, traced: bool) -> Outcome:
        begun = time.monotonic()
        lines: set[tuple[str, int]] = set()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (_mapped_bytes() + FREE_BYTES + BYTES_EACH * size, hard))
        # Their signals end the process, in whatever code it is.
        signal.setitimer(signal.ITIMER_PROF, self.seconds)
        signal.setitimer(signal.ITIMER_REAL, WAITING * self.seconds)
        try:
            with _traced(lines) if traced else contextlib.nullcontext():
                self.read(folder)
            kind, words = "read", ""
        except FaceBonesError as error:
            kind, words = "refused", str(error)
            if len(words) > LONGEST_MESSAGE + len(str(folder)):
                kind, words = "raised", f"a message of {len(words)} letters: {words[:200]}"
        except MemoryError as error:
            kind, words = "memory", _described(error)
        except BaseException as error:  # noqa: BLE001 (any of them is a fault)
            words = _described(error)
            kind = "memory" if "alloc" in words.lower() and isinstance(error, RuntimeError) else "raised"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        return Outcome(kind, words, time.monotonic() - begun, frozenset(lines))


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()


def _described(error: BaseException) -> str:
    """Type and message, and where in the package it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if SOURCE in frame.filename][-3:]
    places = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*own, frames[-1])) if frames else ""
    return f"{type(error).__name__}: {str(error)[:300]}\nat {places}".replace("\x00", "")


@contextlib.contextmanager
def _traced(lines: set[tuple[str, int]]) -> Iterator[None]:
    def enter(frame, event, argument):
        return each if frame.f_code.co_filename.startswith(SOURCE) else None

    def each(frame, event, argument):
        lines.add((frame.f_code.co_filename[len(SOURCE) + 1 :], frame.f_lineno))
        return each

    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(None)


# --------------------------------------------------------------------------------------------------------- findings


@dataclass
class Finding:
    """A fault, and the files that show it."""

    target: str
    outcome: Outcome
    files: Files
    number: int
    count: int = field(default=1)

    def save(self, folder: Path) -> Path:
        """Write the files, and how to replay them."""
        place = folder / self.target / f"{self.number}_{self.outcome.kind}"
        seeds.place(self.files, place / "input")
        command = f"python tests/fuzz/run.py --target {self.target} --replay {place / 'input'}"
        content = {"outcome": self.outcome.kind, "words": self.outcome.words, "seconds": self.outcome.seconds}
        (place / "found.json").write_text(json.dumps({**content, "replay": command}, indent=2) + "\n")
        return place


def smaller(read: Read, found: Files, outcome: Outcome, fixed: tuple[str, ...], tries: int = 60) -> Files:
    """Files that show the same fault with fewer bytes, by removing ever smaller parts."""
    deadline = time.monotonic() + 60
    best = dict(found)

    def same(files: Files) -> bool:
        (other,) = run_inputs(read, [files])
        return other.sort == outcome.sort

    for name in sorted(best, key=lambda name: -len(best[name])):
        if name.startswith(fixed):
            continue
        part = len(best[name]) // 2
        while part and tries and time.monotonic() < deadline:
            place = 0
            while place < len(best[name]) and tries and time.monotonic() < deadline:
                tries -= 1
                shorter = {**best, name: best[name][:place] + best[name][place + part :]}
                if same(shorter):
                    best = shorter
                else:
                    place += part
            part //= 2
    return best
