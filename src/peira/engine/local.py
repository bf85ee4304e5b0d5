"""Jobs on this machine: processes of one thread each; the loss of one costs its job only."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol

from peira.engine.errors import DiskError
from peira.engine.tasks import Job, Outcome, _outcome, perform

# Set before a worker starts, because the libraries read it when they load.
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")}


class Watcher(Protocol):
    """Who is told how the work goes; see `engine.progress`."""

    def plan(self, total: int) -> None: ...
    def begin(self, job: Job) -> None: ...
    def step(self, job: Job, name: str, step: int, total: int) -> None: ...
    def end(self, job: Job, outcomes: Sequence[Outcome]) -> None: ...


def run_here(jobs: Sequence[Job], watcher: Watcher) -> Iterator[list[Outcome]]:
    """Do the jobs one after another in this process (for debuggers and quick tests)."""
    for job in jobs:
        watcher.begin(job)
        outcomes = perform(job, lambda *a, job=job: watcher.step(job, *a))
        watcher.end(job, outcomes)
        yield outcomes


def run_in_pool(jobs: Sequence[Job], workers: int, watcher: Watcher) -> Iterator[list[Outcome]]:
    """Do the jobs in `workers` processes; yield what each gave, in order of completion.

    A worker that dies (out of memory, killed) costs its job only, which is recorded as failed.
    """
    waiting = deque(jobs)
    pool: list[_Worker] = []
    try:
        while waiting or any(worker.job for worker in pool):
            pool = [worker for worker in pool if worker.process.is_alive() or worker.job]
            while waiting and len(pool) < workers:
                pool.append(_Worker.start())
            for worker in pool:
                if worker.job is None and waiting:
                    watcher.begin(waiting[0])
                    worker.give(waiting.popleft())
            for worker in _ready(pool):
                outcomes = worker.receive(watcher)
                if outcomes is not None:
                    yield outcomes
    finally:
        for worker in pool:
            worker.process.terminate()
        for worker in pool:
            worker.process.join()


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection[Any, Any]
    job: Job | None = None

    @classmethod
    def start(cls) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        before = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(ONE_THREAD)
        try:
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        theirs.close()
        return cls(process, ours)

    def give(self, job: Job) -> None:
        """Hand over a job; where the process has died meanwhile, `receive` tells."""
        self.job = job
        with suppress(OSError):
            self.pipe.send(job)

    def receive(self, watcher: Watcher) -> list[Outcome] | None:
        """Pass on one message; return the outcomes when the job has ended."""
        job = self.job
        if job is None:
            return None
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            kind, content = "done", self._lost(job)
        if kind == "stop":
            raise DiskError(content)
        if kind == "step":
            watcher.step(job, *content)
            return None
        self.job = None
        watcher.end(job, content)
        outcomes: list[Outcome] = content
        return outcomes

    def _lost(self, job: Job) -> list[Outcome]:
        self.process.join()
        code = self.process.exitcode or 0
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        hint = ": probably out of memory" if code == -signal.SIGKILL else ""
        text = f"WorkerDied: the worker process ended with {cause}{hint}"
        return [_outcome(task, error=text) for task in job.tasks]


def _ready(pool: Sequence[_Worker]) -> list[_Worker]:
    readable = wait([worker.pipe for worker in pool if worker.job])
    return [worker for worker in pool if worker.pipe in readable]


def _serve(pipe: Connection[Any, Any]) -> None:
    # Ctrl-C reaches the whole group; the coordinating process alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        try:
            outcomes = perform(job, lambda *content: pipe.send(("step", content)))
            pipe.send(("done", outcomes))
        except DiskError as error:
            pipe.send(("stop", str(error)))


def _end_with_parent() -> None:
    # Without this a killed study would leave workers behind that write beside its successor.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
