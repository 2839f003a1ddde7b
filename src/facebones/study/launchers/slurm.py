"""Workers on a Slurm cluster: one array job, through submitit. The jobs are queued again when they are pre-empted."""

import os
import shutil
from pathlib import Path
from typing import Any

from facebones.errors import ConfigError, MissingExtraError, first_line
from facebones.study.launchers.options import LauncherOptions
from facebones.study.launchers.worker_job import WorkerJob

FOLDER = "slurm"
LOG_VARIABLE = "SUBMITIT_LOG_LEVEL"
SIGNAL_SECONDS = 120  # ahead of the time limit
MOST_TIMEOUTS = 10_000


def check_slurm(options: LauncherOptions) -> None:
    """Refuse a machine from which nothing can be submitted.

    Raises:
        MissingExtraError: submitit is not installed.
        ConfigError: there is no Slurm here.
    """
    _import_submitit()
    missing = [name for name in ("sbatch", "srun") if shutil.which(name) is None]
    if options.cluster == "slurm" and missing:
        raise ConfigError(f"--launcher slurm: there is no {missing[0]} here; run it where jobs are submitted")


def submit(job: WorkerJob, workers: int, output: Path, options: LauncherOptions) -> str:
    """Submit workers as one array job; returns its number.

    Raises:
        ConfigError: the cluster has refused it.
    """
    submitit = _import_submitit()
    folder = (output / FOLDER / "%j").absolute()
    try:
        executor = submitit.AutoExecutor(folder, cluster=options.cluster, slurm_max_num_timeout=MOST_TIMEOUTS)
        executor.update_parameters(**_parameters(options))
        jobs = executor.submit_array([job] * workers)
    except (RuntimeError, OSError, ValueError, NameError, submitit.core.utils.FailedJobError) as error:
        raise ConfigError(f"--launcher slurm: the job was refused: {first_line(error)}") from error
    return str(jobs[0].job_id).partition("_")[0]


def _import_submitit() -> Any:
    """The module, imported so that the log handlers of this process stay open.

    By default submitit configures logging, which closes every handler, and absl's handlers close their stream.

    Raises:
        MissingExtraError: submitit is not installed.
    """
    before = os.environ.get(LOG_VARIABLE)
    os.environ[LOG_VARIABLE] = "NOCONFIG"
    try:
        import submitit
    except ImportError as error:
        raise MissingExtraError("slurm") from error
    finally:
        del os.environ[LOG_VARIABLE]
        if before is not None:
            os.environ[LOG_VARIABLE] = before
    return submitit


def _parameters(options: LauncherOptions) -> dict[str, Any]:
    own = {"partition": options.partition, "account": options.account, "qos": options.qos}
    own |= {"constraint": options.constraint}
    parameters: dict[str, Any] = {f"slurm_{key}": value for key, value in own.items() if value}
    if options.memory:
        parameters["mem_gb"] = options.memory
    return parameters | {
        "name": "facebones",
        "timeout_min": options.minutes,
        "cpus_per_task": options.cpus,
        "gpus_per_node": options.gpus,
        "slurm_signal_delay_s": SIGNAL_SECONDS,
        "slurm_additional_parameters": {"requeue": True},
    }
