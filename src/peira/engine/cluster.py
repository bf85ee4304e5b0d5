"""The same jobs on a Ray cluster: an existing one, or one started on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from peira.engine.errors import DiskError, PeiraError
from peira.engine.local import ONE_THREAD, Watcher
from peira.engine.tasks import Job, Outcome, _outcome, perform


def run_on_ray(
    jobs: Sequence[Job], workers: int | None, watcher: Watcher
) -> Iterator[list[Outcome]]:
    """Do each job as a Ray task on one CPU; yield what each gave, in order of completion.

    Joins the cluster that `RAY_ADDRESS` names, else one that was started on this machine, else
    starts Ray here with `workers` CPUs. Where the workers do not share this machine's file system,
    checkpoints stay on their node. Ray does not tell which job is under way, so none is begun.

    Raises `PeiraError` when Ray is not installed or its cluster cannot be reached, and `DiskError`.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise PeiraError("--on ray needs Ray: pip install 'peira[ray]'") from error
    mine = not ray.is_initialized()
    if mine:
        _connect(ray, workers)
    try:
        # A failed cell is an Outcome already; a retry would only repeat a lost worker's fate.
        remote = ray.remote(perform).options(num_cpus=1, max_retries=0)
        waiting = {remote.remote(job): job for job in jobs}
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(ready)
            try:
                outcomes: list[Outcome] = ray.get(ready)
            except DiskError as error:
                # Ray adds its own trace to the words of what it passes on.
                raise DiskError(str(getattr(error, "cause", error))) from error
            except ray.exceptions.RayError as error:
                text = f"WorkerDied: {type(error).__name__}: {str(error).splitlines()[0]}"
                outcomes = [_outcome(task, error=text) for task in job.tasks]
            watcher.end(job, outcomes)
            yield outcomes
    finally:
        if mine:
            ray.shutdown()


def _connect(ray: Any, workers: int | None) -> None:
    import os

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    remote = bool(os.environ.get("RAY_ADDRESS"))
    try:
        ray.init(
            num_cpus=None if remote else workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            runtime_env={"env_vars": ONE_THREAD},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PeiraError(f"cannot reach the Ray cluster: {str(error).splitlines()[0]}") from error
