"""How the workers of a study are started: the launcher, and its options `--launcher.NAME VALUE`."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_type_hints

from facebones.errors import ConfigError, UnknownNameError
from facebones.strict_yaml import check_value, setting
from facebones.system.lease import EXPIRY_SECONDS

PREFIX = "launcher."
LAUNCHERS = ("local", "slurm", "ray", "print")
CLUSTERS = ("slurm", "local")
TIME = re.compile(r"(?:(?P<days>\d{1,3})-(?=\d))?(?P<parts>\d{1,6}(?::\d{1,2}){0,2})")
_JOBS = ("workers", "gpus", "cpus", "memory")
# The options of each launcher, besides `expiry`.
OPTIONS = {
    "local": (),
    "print": (),
    "slurm": (*_JOBS, "time", "partition", "account", "qos", "constraint", "cluster"),
    "ray": (*_JOBS, "address"),
}


@dataclass(frozen=True, kw_only=True)
class LauncherOptions:
    """What a launcher asks for; each worker gets the same."""

    workers: int = setting(0, "workers to start; 0: one for each training that is not done", minimum=0)
    gpus: int = setting(0, "GPUs of a worker", minimum=0)
    cpus: int = setting(1, "processors of a worker", minimum=1)
    memory: float = setting(0.0, "memory of a worker, GB; 0: the cluster's default", minimum=0)
    time: str = setting("60", "Slurm: time limit in its forms: minutes, HH:MM:SS, D-HH:MM:SS")
    partition: str = setting("", "Slurm: partition")
    account: str = setting("", "Slurm: account")
    qos: str = setting("", "Slurm: quality of service")
    constraint: str = setting("", "Slurm: features that a node must have")
    cluster: str = setting("slurm", "slurm, or local: processes on this machine, to try it", choices=CLUSTERS)
    address: str = setting("auto", "Ray: address of the cluster; auto: the one that this machine is part of")
    expiry: float = setting(EXPIRY_SECONDS, "seconds of silence after which a worker counts as dead", minimum=5)

    @property
    def minutes(self) -> int:
        """The time limit."""
        return minutes_of(self.time)


def read_launcher(launcher: str, texts: Mapping[str, str]) -> LauncherOptions:
    """The options of a launcher from a command line.

    Args:
        launcher: one of LAUNCHERS.
        texts: the value of each option, by `launcher.NAME`.

    Raises:
        UnknownNameError: no such launcher or option.
        ConfigError: a value of the wrong kind or out of range.

    >>> read_launcher("slurm", {"launcher.gpus": "1", "launcher.time": "1-12:00:00"}).minutes
    2160
    """
    if launcher not in LAUNCHERS:
        raise UnknownNameError("launcher", launcher, LAUNCHERS, "--launcher")
    fields = {item.name: item for item in dataclasses.fields(LauncherOptions)}
    hints, values = get_type_hints(LauncherOptions), {}
    for key, text in texts.items():
        name = key.removeprefix(PREFIX)
        known = (*OPTIONS[launcher], "expiry")
        if name not in known:
            if others := [other for other in LAUNCHERS if name in OPTIONS[other]]:
                raise ConfigError(f"--{key}: is an option of --launcher {' and '.join(others)}, not of {launcher}")
            raise UnknownNameError("option", f"--{key}", [f"--{PREFIX}{one}" for one in known])
        values[name] = check_value(text, hints[name], fields[name].metadata, f"--{key}")
    options = LauncherOptions(**values)
    minutes_of(options.time)
    return options


def minutes_of(time: str) -> int:
    """A time limit of Slurm in minutes, rounded up.

    >>> [minutes_of(text) for text in ("90", "2:30", "12:00:00", "1-6", "1-06:30:00")]
    [90, 3, 720, 1800, 1830]
    """
    match = TIME.fullmatch(time)
    parts = [int(part) for part in match["parts"].split(":")] if match else []
    if match is None or not any([*parts, int(match["days"] or 0)]):
        raise ConfigError(f"--launcher.time {time[:40]}: is no time; give minutes, HH:MM:SS or D-HH:MM:SS")
    if match["days"]:  # the first part is hours
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:  # minutes, or minutes:seconds
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return int(match["days"] or 0) * 1440 + hours * 60 + minutes + (seconds > 0)
