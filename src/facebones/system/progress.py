"""Messages for people on stderr, and progress: a bar on a terminal, a plain line now and then elsewhere."""

import os
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from typing import TextIO, TypeVar

Item = TypeVar("Item")

PLAIN_LINE_SECONDS = 10.0
BAR_SECONDS = 0.1


_silent: list[bool] = []


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
    """Print a line on stderr; control characters are escaped.

    Where it cannot be written, such as to a full disk, the work continues without it.
    """
    if not _silent:
        try:
            print(printable(text), file=sys.stderr, flush=True)
        except OSError:
            discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Discard what a stream that cannot be written still buffers: Python's last flush would fail and be the status."""
    with suppress(OSError):  # of a stream without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def tell(text: object) -> None:
    """Print lines on stdout; control characters are escaped."""
    print(printable(str(text)))


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
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    if unit:
        columns.insert(3, TextColumn("{task.fields[rate]}"))
    start = last = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total, rate=unit)
        for done, item in enumerate(items, 1):
            yield item
            if (now := time.monotonic()) - last < BAR_SECONDS:  # do not slow down millions of short items
                continue
            last = now
            finished = min(done * size, total or done * size)
            progress.update(task, completed=finished, rate=_rate(finished, now - start, unit))


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
