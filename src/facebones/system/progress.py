"""Messages for people on stderr, and progress: a bar on a terminal, a plain line now and then elsewhere."""

import os
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

Item = TypeVar("Item")

PLAIN_LINE_SECONDS = 10.0
BAR_SECONDS = 0.1


_silent: list[bool] = []
_shown: list["Progress"] = []  # at most one: two would overwrite each other on the terminal


def printable(text: str, *, breaks: bool = True) -> str:
    r"""A text with its control characters escaped: names in files from elsewhere may hold commands to the terminal.

    Args:
        text: may hold any characters.
        breaks: keep line feeds and tabs.

    >>> printable("a\x1b[2J\tb"), printable("a\nb", breaks=False)
    ('a\\x1b[2J\tb', 'a\\nb')
    """
    if text.isprintable():
        return text
    return "".join(letter if _is_harmless(letter, breaks) else repr(letter)[1:-1] for letter in text)


def _is_harmless(letter: str, breaks: bool) -> bool:
    return letter.isprintable() or unicodedata.category(letter) == "Zs" or (breaks and letter in "\n\t")


def say(text: str) -> None:
    """Print a line on stderr; control characters and line feeds are escaped.

    Where it cannot be written, such as to a full disk, the work continues without it.
    """
    if not _silent:
        try:
            print(printable(text, breaks=False), file=sys.stderr, flush=True)
        except OSError:
            discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Discard what a stream that cannot be written still buffers: Python's last flush would fail and be the status."""
    with suppress(OSError):  # of a stream without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_closed_streams() -> None:
    """Send to nowhere what the caller has closed, as `2>&-` does: else the next file that is opened takes its number.

    What a library writes to descriptor 2 would then go into that file, and Python's own stream is None.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def tell(*lines: object) -> None:
    """Print lines on stdout; control characters are escaped, and so are line feeds: a file's name may hold one."""
    for line in lines:
        print(printable(str(line), breaks=False))


@contextmanager
def silence(silent: bool = True) -> Iterator[None]:
    """Print nothing within the block: of several processes that do the same, one speaks."""
    if silent:
        _silent.append(True)
    try:
        yield
    finally:
        if silent:
            _silent.pop()


def track(
    items: Iterable[Item], description: str, total: int | None = None, *, size: int = 1, unit: str = ""
) -> Iterator[Item]:
    """Yield `items`, and show the number done, the total and the time left.

    Args:
        items: the items to iterate over.
        description: such as "converting".
        total: the number of units, if `items` has no length.
        size: units per item, such as the images of a batch; the last item may have fewer.
        unit: what is counted, such as "images"; the rate is shown, too.
    """
    description = printable(description, breaks=False)
    if total is None and isinstance(items, Sized):
        total = len(items) * size
    if _silent:
        return iter(items)
    show = _bar if sys.stderr.isatty() else _lines
    return show(items, description, total, size, unit)


def _bar(items: Iterable[Item], description: str, total: int | None, size: int, unit: str) -> Iterator[Item]:
    start = time.monotonic()
    with Bar(description, total) as bar:
        for done, item in enumerate(items, 1):
            yield item
            if bar.due():  # do not slow down millions of short items
                finished = min(done * size, total or done * size)
                seconds = time.monotonic() - start
                left = format_seconds(seconds / finished * (total - finished)) + " left" if total else ""
                bar.update(finished, f"{_rate(finished, seconds, unit)}  {left}" if unit else left)


class Bar:
    """A progress bar on a terminal, with lines above it; a bar within another one is a second row below it.

    It draws in the thread that updates it, so that processes that are forked meanwhile hold no lock of another thread.

    Args:
        description: what is being done.
        total: the number of units; None: unknown.
    """

    def __init__(self, description: str, total: int | None) -> None:
        self._description, self._total = description, total
        self._last = -BAR_SECONDS
        self._begun = False

    def __enter__(self) -> "Bar":
        if not _shown:
            _shown.append(_progress())
            _shown[0].start()
            self._begun = True
        self._progress = _shown[0]
        self._task = self._progress.add_task(self._description, total=self._total, words="")
        return self

    def due(self) -> bool:
        """Whether the last update is long enough ago for the next one."""
        return time.monotonic() - self._last >= BAR_SECONDS

    def update(self, done: int, words: str = "") -> None:
        """Show the units done, and words behind them."""
        self._last = time.monotonic()
        self._progress.update(self._task, completed=done, words=words)
        self._progress.refresh()

    def __exit__(self, *error: object) -> None:
        self._progress.remove_task(self._task)
        if self._begun:
            self._progress.stop()
            _shown.clear()


def _progress() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(None, table_column=Column(ratio=1, max_width=40)),  # what the words leave
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}", markup=False),
    ]
    return Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False, expand=True)


@contextmanager
def shown(description: str, total: int) -> Iterator[Bar | None]:
    """A bar within the block on a terminal; elsewhere, and where this process is silent, None."""
    if _silent or not sys.stderr.isatty():
        yield None
        return
    with Bar(description, total) as bar:
        yield bar


def _lines(items: Iterable[Item], description: str, total: int | None, size: int, unit: str) -> Iterator[Item]:
    first = last = time.monotonic()
    for number, item in enumerate(items):
        now = time.monotonic()
        first = now if number <= 1 else first  # the first item often takes longer: imports, compiling
        if now - last >= PLAIN_LINE_SECONDS and number:
            last, done = now, number * size
            words = f"{description}: {done}{f'/{total}' if total else ''}"
            if number > 1 and total:
                words += f", {format_seconds((now - first) / (number - 1) / size * (total - done))} left"
            if number > 1 and unit:
                words += f", {_rate(done - size, now - first, unit)}"
            print(words, file=sys.stderr, flush=True)
        yield item


def _rate(done: int, seconds: float, unit: str) -> str:
    return f"{done / max(seconds, 1e-9):,.1f} {unit}/s"


def format_seconds(seconds: float) -> str:
    """Format a duration: 42s, 3m05s, 2h07m, 3d04h.

    >>> format_seconds(185)
    '3m05s'
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
