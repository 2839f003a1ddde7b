"""Whether a process that another one has named still lives; known only of processes of this very machine."""

import os
import socket
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

DEAD, ALIVE, UNKNOWN = "dead", "alive", "unknown"
HOST = socket.gethostname()
_START_FIELD = 19  # of what follows the name in /proc/PID/stat: time of the start, in ticks since the machine booted
_STATE_FIELD = 0
_ENDED = "ended"


def this_process() -> dict[str, Any]:
    """Names this process to others: host, process, when it started, and which process table it is in."""
    return {"host": HOST, "pid": os.getpid(), "start": _start(os.getpid()), "table": process_table()}


def fate(process: Mapping[str, Any]) -> str:
    """DEAD or ALIVE of a process of this machine; UNKNOWN of one of another machine or container.

    A number that another process has taken since is told by the time of its start.

    Args:
        process: what `this_process` returned there.

    >>> fate(this_process())
    'alive'
    """
    pid, start, table = process.get("pid"), process.get("start"), process.get("table")
    if type(pid) is not int or pid <= 0 or not table or table != process_table():
        return UNKNOWN
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return DEAD
    except (PermissionError, OverflowError):  # it is another user's
        pass
    found = _start(pid)
    if not found or not start:
        return UNKNOWN
    return ALIVE if found == start else DEAD


@cache
def process_table() -> str:
    """The boot of this machine and its set of process numbers; "" if the system does not tell.

    Containers have process numbers of their own, and machines may share a name, so a host name is not enough.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{boot.read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return _output("sysctl", "-n", "kern.bootsessionuuid")  # macOS


def _start(pid: int) -> str:
    """When a process started, in any form; "ended" if only its exit status is left, "" if it cannot be told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return _ENDED if fields[_STATE_FIELD] in {"Z", "X"} else fields[_START_FIELD]
    except (OSError, IndexError):
        return "" if Path("/proc/self/stat").exists() else _output("ps", "-o", "lstart=", "-p", str(pid))


def _output(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603 (no input)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
