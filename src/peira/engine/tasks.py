"""One cell and one seed as a unit of work that any process can do and any store can keep."""

from __future__ import annotations

import json
import re
import shutil
import sys
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peira.engine.cells import Cell, Censored, Measurement
from peira.engine.errors import DiskError, StudyError
from peira.engine.files import write_json
from peira.engine.memory import peak_memory, reset_peak_memory
from peira.engine.runs import Progress, Run, silent

if TYPE_CHECKING:
    import pandas as pd

    from peira.engine.catalogue import Paper

# What MLflow takes as a name, less what the store needs for itself.
NAME = re.compile(r"(?!curve\.)[A-Za-z][\w .:/-]*")


@dataclass(frozen=True)
class Task:
    """One cell and one seed of a study, and what its numbers depend on."""

    slug: str
    cell: Cell
    seed: int
    max_steps: int | None
    inputs: tuple[tuple[str, str], ...]
    revision: str

    @property
    def key(self) -> str:
        """16 hex digits: the same key means the same numbers."""
        identity = [
            self.slug, self.cell.model_dump(mode="json"), self.seed, self.max_steps, self.inputs,
            self.revision,
        ]  # fmt: skip
        return sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        return f"{self.cell}, seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What became of a task: its measurements, or the traceback."""

    key: str
    slug: str
    label: str
    cell: dict[str, Any]
    seed: int
    metrics: dict[str, float] = field(default_factory=dict)
    censored: tuple[str, ...] = ()
    curves: tuple[tuple[int, str, float], ...] = ()
    seconds: float = 0.0
    peak_memory_mib: float = 0.0
    inputs: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def reason(self) -> str:
        """The line of the traceback that names the error."""
        lines = self.error.strip().split("\n")
        frames = [number for number, line in enumerate(lines) if line.startswith("  File ")]
        after = lines[frames[-1] + 1 :] if frames else lines
        return next((line for line in after if line and not line.startswith(" ")), lines[-1])


@dataclass(frozen=True)
class Job:
    """Tasks that one process does together: one, or a batch for `measure_many`."""

    paper: Paper
    tasks: tuple[Task, ...]
    scratch: Path | None

    @property
    def label(self) -> str:
        more = len(self.tasks) - 1
        return self.tasks[0].label + (f" and {more} more" if more else "")

    @property
    def folder(self) -> Path | None:
        """Checkpoints of this job; another grouping of the same tasks has another folder."""
        if self.scratch is None:
            return None
        keys = "".join(task.key for task in self.tasks)
        name = keys if len(self.tasks) == 1 else f"batch-{sha256(keys.encode()).hexdigest()[:16]}"
        return self.scratch / "cells" / name

    def alone(self) -> list[Job]:
        """The same tasks as jobs of one."""
        return [Job(self.paper, (task,), self.scratch) for task in self.tasks]


class BatchWarning(UserWarning):
    """A batch that could not be measured together."""


def perform(job: Job, progress: Progress = silent) -> list[Outcome]:
    """Measure the tasks of a job, and leave the outcomes in its folder until they are stored.

    What a cell raises becomes its outcome. Where a batch raises, its cells are measured one by
    one, so that the fault of one does not cost the others. Raises `DiskError` alone.
    """
    folder = job.folder
    try:
        outcomes = _measure(job, folder, progress)
    except DiskError:
        raise
    # Whatever a cell raises is its result: the others must go on.
    except Exception as error:
        if len(job.tasks) == 1:
            return [_outcome(job.tasks[0], error=traceback.format_exc())]
        warnings.warn(
            f"{job.label}: measure_many failed ({type(error).__name__}: {error}); measuring one "
            "by one",
            BatchWarning,
            stacklevel=2,
        )
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        return [outcome for single in job.alone() for outcome in perform(single, progress)]
    if folder is not None:
        write_json(folder / "outcomes.json", [vars(outcome) for outcome in outcomes])
    return outcomes


def _measure(job: Job, folder: Path | None, progress: Progress) -> list[Outcome]:
    study = job.paper.study()
    limit_threads()
    reset_peak_memory()
    unseeded = "torch" not in sys.modules
    shared = job.scratch / "shared" if job.scratch is not None else None
    runs = [
        Run(task.seed, None, shared, task.max_steps, silent, task.revision) for task in job.tasks
    ]
    runs[0].lead(runs, folder, progress)
    if len(runs) == 1:
        measured: Sequence[Measurement] = [study.measure(job.tasks[0].cell, runs[0])]
    else:
        measured = study.measure_many([task.cell for task in job.tasks], runs)
    if unseeded and "torch" in sys.modules:
        raise StudyError("import torch (or the method) at the top of study.py: it was not seeded")
    return [
        _outcome(task, run, values, len(runs))
        for task, run, values in zip(job.tasks, runs, measured, strict=True)
    ]


def _outcome(
    task: Task,
    run: Run | None = None,
    measured: Measurement | None = None,
    shares: int = 1,
    error: str = "",
) -> Outcome:
    metrics, censored = split_censored(measured or {})
    points = sorted(run.curves, key=lambda point: point[:2]) if run else []
    _check_names(task, metrics, {name for _, name, _ in points})
    return Outcome(
        key=task.key,
        slug=task.slug,
        label=task.label,
        cell=task.cell.model_dump(mode="json"),
        seed=task.seed,
        metrics=metrics,
        censored=censored,
        # In the order in which the store gives them back.
        curves=tuple(points),
        seconds=run.seconds / shares if run else 0.0,
        peak_memory_mib=peak_memory() if run else 0.0,
        inputs=dict(task.inputs),
        versions=versions(),
        error=error,
    )


def _check_names(task: Task, metrics: Iterable[str], drawn: Iterable[str]) -> None:
    for name in (*metrics, *drawn):
        if not NAME.fullmatch(name):
            raise StudyError(f"{name!r} cannot be a metric's name: letters, digits, _ . - : / only")
    taken = {*type(task.cell).model_fields, "seed", "seconds"}
    for name in metrics:
        if name in taken:
            raise StudyError(f"metric {name!r} has the name of another column of the table")


def split_censored(measured: Measurement) -> tuple[dict[str, float], tuple[str, ...]]:
    """Times and budgets as numbers, and the names of those that are budgets."""
    metrics: dict[str, float] = {}
    for name, value in measured.items():
        number = value.after if isinstance(value, Censored) else value
        try:
            metrics[name] = float(number)
        except (TypeError, ValueError):
            raise StudyError(
                f"metric {name!r} is {value!r}; expected a number or Censored"
            ) from None
    return metrics, tuple(k for k, value in measured.items() if isinstance(value, Censored))


def outcome_from_json(value: Mapping[str, Any]) -> Outcome:
    """The `Outcome` whose `vars` were written as JSON."""
    curves = tuple((int(step), str(name), float(y)) for step, name, y in value["curves"])
    return Outcome(**{**value, "curves": curves, "censored": tuple(value["censored"])})


def tidy(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One row for each finished cell and seed: cell fields, seed, metrics, `*_censored`."""
    import pandas as pd

    finished = [outcome for outcome in outcomes if not outcome.error]
    censored = sorted({name for outcome in finished for name in outcome.censored})
    rows = [
        {
            **outcome.cell,
            "seed": outcome.seed,
            **outcome.metrics,
            **{f"{name}_censored": name in outcome.censored for name in censored},
            "seconds": outcome.seconds,
        }
        for outcome in finished
    ]
    return pd.DataFrame(rows)


def curves(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One row for each logged point: cell fields, seed, step, name, value."""
    import pandas as pd

    parts = []
    for outcome in outcomes:
        part = pd.DataFrame(list(outcome.curves), columns=["step", "name", "value"])
        parts.append(
            part.assign(**{k: [v] * len(part) for k, v in outcome.cell.items()}, seed=outcome.seed)
        )
    if not parts:
        return pd.DataFrame(columns=["step", "name", "value", "seed"])
    return pd.concat(parts, ignore_index=True)


def limit_threads() -> None:
    """One thread: cells run side by side, and sums keep their order."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def versions() -> dict[str, str]:
    """Versions of Python, Peira and the numerical libraries that are loaded."""
    named = ["numpy", "scipy", "pandas", "sklearn", "torch", "torch_geometric", "numba"]
    found = {"python": sys.version.split()[0], "peira": version("peira")}
    for name in named:
        if name in sys.modules:
            found[name] = str(getattr(sys.modules[name], "__version__", ""))
    return found
