"""Workers as tasks of a Ray cluster that is running already."""

import logging
from collections.abc import Callable
from typing import Any

from facebones.errors import ConfigError, MissingExtraError, first_line
from facebones.study.launchers.options import LauncherOptions
from facebones.study.launchers.worker_job import WorkerJob

RETRIES = 100  # of a task whose machine or process has died
WAIT_SECONDS = 1.0


def check_ray() -> None:
    """Refuse a Python without Ray.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import ray  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise MissingExtraError("ray") from error


def run_on_ray(job: WorkerJob, workers: int, options: LauncherOptions, show: Callable[[], object]) -> list[str]:
    """Run workers as tasks, and wait until all have ended.

    Args:
        job: a worker.
        workers: how many.
        options: what each of them needs.
        show: called every second.

    Returns:
        the errors of workers, in one line each.

    Raises:
        ConfigError: there is no cluster.
        Interrupted: SIGINT or SIGTERM arrived; the trainings have saved.
    """
    import ray

    connected = ray.is_initialized()
    if not connected:
        try:
            ray.init(address=options.address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"--launcher ray: no cluster at --launcher.address {options.address}: {first_line(error)};"
                " start one with `ray start --head`"
            ) from error
    try:
        return _run(ray, job, workers, options, show)
    finally:
        if not connected:
            ray.shutdown()


def _run(ray: Any, job: WorkerJob, workers: int, options: LauncherOptions, show: Callable[[], object]) -> list[str]:
    needs: dict[str, Any] = {"num_cpus": options.cpus, "num_gpus": options.gpus, "max_retries": RETRIES}
    if options.memory:
        needs["memory"] = int(options.memory * 1e9)
    task = ray.remote(**needs)(_work)
    running = [task.remote(job) for _ in range(workers)]
    errors = []
    try:
        while running:
            ended, running = ray.wait(running, timeout=WAIT_SECONDS)
            errors += [error for one in ended if (error := _error_of(ray, one))]
            show()
    except BaseException:
        for one in running:
            ray.cancel(one)  # raises KeyboardInterrupt in the task, which lets its trainings save
        ray.wait(running, num_returns=len(running), timeout=120)
        raise
    return errors


def _work(job: WorkerJob) -> int:
    return job()


def _error_of(ray: Any, task: Any) -> str | None:
    try:
        ray.get(task)
    except ray.exceptions.RayError as error:
        return first_line(getattr(error, "cause", None) or error)
    return None
