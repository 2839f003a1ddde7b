"""Runs command lines in forks of one process, which has imported everything: a start takes milliseconds, not seconds.

Reads requests from stdin and answers on stdout, a line of JSON each. A request has

* "words": of the command line; "folder": where to run it; "log": the file that stdout and stderr are
  appended to;
* "fault": for `Injection`, or none; "changes": the file that takes the changes that were counted, or none;
* "signals": pairs of seconds after the start and a signal; "of_child": whether they go to a child of the process;
  "within": a folder, if they are sent only while a file is being written there;
* "beside": whether the same command line runs twice at a time; the second one writes to the same log.

An answer has "status" as `subprocess` has it, "seconds", "within": whether a half-written file was there when the
signal was sent, and "hung": whether something had to be killed in the end. What a process leaves that SIGKILL has ended
may live on for some seconds; the request "rest" waits for it.
"""

import ctypes
import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HANG_SECONDS = 60.0
ORPHAN_SECONDS = 20.0
POLL_SECONDS = 0.001
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


class Fork:
    """What the commands use of `subprocess.Popen`, for a facebones command: a fork of this process that runs it."""

    def __init__(self, words, stdin, stdout, stderr, env, process_group):
        self.returncode = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            from facebones.system import processes

            for number in processes.STOP_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            os.environ.clear()
            os.environ.update(env)
            _main(words[words.index("facebones") + 1 :], stdout.fileno())

    def poll(self, flags=os.WNOHANG):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, flags)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self):
        return self.poll(0)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def _main(words: list[str], output: int) -> None:
    """Run a command line in this process, and end it."""
    from facebones.cli.main import main

    status = 1
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        status = main(words)
    except BaseException:  # noqa: BLE001 (it ends here, as at the end of Python)
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        for thread in _threads():  # as the interpreter does at its end
            thread.join()
        os._exit(status)


def _threads():
    import threading

    return [one for one in threading.enumerate() if one is not threading.current_thread() and not one.daemon]


def prepare(modules: list[str]) -> None:
    """Import what the commands use, and let the trainings of a study be forks."""
    import importlib

    import torch

    from facebones.study.launchers import local
    from facebones.system import processes
    from facebones.system.environment import git_revision

    for name in modules:
        with suppress(ImportError):  # a name of no module of its own
            importlib.import_module(name)
    torch.set_num_threads(1)
    git_revision()  # once, and not in each fork
    local.subprocess = SimpleNamespace(Popen=Fork, DEVNULL=None)
    local.POLL_SECONDS, local.LOOK_SECONDS, processes.PARENT_SECONDS = 0.02, 0.2, 0.1


def _child(request: dict[str, Any]) -> None:
    os.setsid()
    os.chdir(request["folder"])
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND)
    faulthandler.dump_traceback_later(HANG_SECONDS - 5, file=log)
    if request.get("fault") is not None or request.get("changes"):
        from fault_injection import Injection, install

        injection = Injection(request["folder"], *(request.get("fault") or ()))
        write, known = open, {*sys.modules}
        install(injection)
        leave = os._exit

        own = os.getpid()

        def end(status: int) -> None:
            if os.getpid() == own:
                with write(request["changes"], "w") as file:
                    json.dump({"changes": injection.changes, "modules": sorted({*sys.modules} - known)}, file)
            leave(status)

        if request.get("changes"):
            os._exit = end
    _main(request["words"], log)


def children(pid: int) -> list[int]:
    """The processes that a process has started and that live."""
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _run(request: dict[str, Any]) -> dict[str, Any]:
    begun = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(request)
    second = os.fork() if request.get("beside") else None
    if second == 0:
        _child(request)
    signals, hung, within = [*request.get("signals", [])], False, False
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        seconds = time.monotonic() - begun
        if found:
            break
        if signals and seconds >= signals[0][0]:
            targets = children(pid)[:1] if request.get("of_child") else [pid]
            folder = request.get("within")
            if targets and (not folder or _is_written(folder)):
                within = bool(folder)
                _, number = signals.pop(0)
                os.kill(targets[0], number)
        if seconds > HANG_SECONDS:
            hung = True
            os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS / 5 if request.get("within") else POLL_SECONDS)
    answer = {"status": os.waitstatus_to_exitcode(status), "seconds": seconds, "within": within}
    if second:
        answer["beside"] = os.waitstatus_to_exitcode(os.waitpid(second, 0)[1])
    return answer | {"hung": hung or not (answer["status"] == -signal.SIGKILL or _orphans_ended())}


def _is_written(folder: str) -> bool:
    with suppress(OSError):
        return any(name.endswith(".tmp") for name in os.listdir(folder))  # noqa: PTH208
    return False


def _orphans_ended() -> bool:
    """Wait for what the command has started, which is ours now; kill what does not end by itself."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        time.sleep(POLL_SECONDS)
    for orphan in children(os.getpid()):
        os.kill(orphan, signal.SIGKILL)
    return False


def serve() -> None:
    """Answer requests until stdin is closed."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    prepare(sys.argv[1:])
    for line in sys.stdin:
        request = json.loads(line)
        if "import" in request:
            prepare(request["import"])
            answer: dict[str, Any] = {}
        elif "rest" in request:
            answer = {"hung": not _orphans_ended()}
        else:
            answer = _run(request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
