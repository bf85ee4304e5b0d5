"""`peira run`: the cells of a study, measured, stored, judged, drawn."""

from __future__ import annotations

import inspect
import math
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from peira.engine.catalogue import Paper, paper
from peira.engine.cells import Cell, Study
from peira.engine.errors import PeiraError, StudyError
from peira.engine.files import atomic_path, home, read_json, write_json
from peira.engine.local import Watcher, run_here, run_in_pool
from peira.engine.revision import code_fingerprint, git_revision
from peira.engine.store import Store
from peira.engine.tasks import Job, Outcome, Task, curves, outcome_from_json, tidy
from peira.engine.verdict import Verdict, not_measured

if TYPE_CHECKING:
    import pandas as pd


FIGURES = ("png", "svg")


@dataclass(frozen=True)
class Request:
    """What a person asked `peira run` for.

    Attributes:
        slug: the paper.
        scale: `smoke`, `small` or `paper`.
        seeds: number of seeds, 0, 1, ...; None takes the scale's.
        cells: cell field -> values; only cells that match are run.
        settings: cell field -> value, set in all cells.
        max_steps: upper bound on the steps of every loop.
        workers: processes; 0 works in this one; None takes one for each core.
        store: MLflow tracking URI; None is the SQLite file in the user's data folder.
        on: `local` processes or a `ray` cluster.
        fresh: measure again what is finished already.
    """

    slug: str
    scale: str = "small"
    seeds: int | None = None
    cells: Mapping[str, Sequence[str]] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    max_steps: int | None = None
    workers: int | None = None
    store: str | None = None
    on: Literal["local", "ray"] = "local"
    fresh: bool = False

    @property
    def changed(self) -> dict[str, Any]:
        """What makes this another experiment than the scale as it is written."""
        asked = {
            "seeds": self.seeds,
            "cells": {name: list(values) for name, values in self.cells.items()},
            "set": dict(self.settings),
            "max_steps": self.max_steps,
        }
        return {name: value for name, value in asked.items() if value}


@dataclass(frozen=True)
class Result:
    """The table of a study and what it says; `no_figure` is why there is none."""

    request: Request
    verdicts: tuple[Verdict, ...]
    outcomes: tuple[Outcome, ...]
    folder: Path
    store: str
    seconds: float
    no_figure: str = ""

    @property
    def table(self) -> pd.DataFrame:
        return tidy(self.outcomes)

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error]


def run_study(request: Request, watcher: Watcher) -> Result:
    """Measure what is not finished, then judge the claims and draw the figure.

    Raises `PeiraError` for anything a person can put right; finished cells are never lost.
    """
    began = time.perf_counter()
    subject = paper(request.slug)
    study = subject.study()
    tasks = plan(subject, study, request)
    scratch = home() / "scratch" / subject.slug
    with _alone(scratch, subject.slug):
        store = Store(subject.slug, request.store)
        store.open()
        keys = [task.key for task in tasks]
        known = {} if request.fresh else store.finished(keys)
        if not request.fresh:
            known |= _store_left_behind(subject, scratch, set(keys) - set(known), store)
        waiting = [task for task in tasks if task.key not in known]
        # What failed before, or is to be measured again; a cell and seed has one run.
        store.forget([task.key for task in waiting])
        known |= _measure(subject, study, waiting, request, scratch, store, watcher)
        outcomes = tuple(known[key] for key in keys)
        for task in tasks:
            if not known[task.key].error:
                _clear(Job(subject, (task,), scratch))
        # An interrupted scale that has cells to continue may need what they share.
        if not any(scratch.glob("cells/*")):
            shutil.rmtree(scratch / "shared", ignore_errors=True)
        return _conclude(subject, study, request, outcomes, store.uri, began)


def _store_left_behind(
    subject: Paper, scratch: Path, wanted: set[str], store: Store
) -> dict[str, Outcome]:
    """Store what was measured when the coordinating process was killed before it was stored."""
    found: dict[str, Outcome] = {}
    for path in sorted(scratch.glob("cells/*/outcomes.json")):
        for value in read_json(path) or []:
            if value["key"] in wanted - set(found):
                found[value["key"]] = outcome_from_json(value)
                store.add(found[value["key"]], git_revision(subject.package))
    return found


def plan(subject: Paper, study: Study[Any], request: Request) -> list[Task]:
    """The tasks that a request stands for, cells first and seeds fastest."""
    scale = study.scale(request.scale)
    cells = [cell.changed(request.settings) for cell in scale.conditions()]
    cells = list(dict.fromkeys(_matching(cells, request.cells)))
    seeds = scale.seeds if request.seeds is None else request.seeds
    if seeds < 1:
        raise StudyError(f"--seeds {seeds}: at least 1 is needed")
    if request.max_steps is not None and request.max_steps < 1:
        raise StudyError(f"--max-steps {request.max_steps}: at least 1 is needed")
    least, words = (1, "1") if request.on == "ray" else (0, "0 (this process)")
    if request.workers is not None and request.workers < least:
        raise StudyError(f"--workers {request.workers}: {words} or more is needed")
    revision = code_fingerprint(subject.package)
    return [
        Task(subject.slug, cell, seed, request.max_steps, inputs, revision)
        for cell in cells
        for inputs in [tuple(sorted(study.inputs(cell).items()))]
        for seed in range(study.seeds(cell, seeds))
    ]


def _matching(cells: Sequence[Cell], wanted: Mapping[str, Sequence[str]]) -> Iterator[Cell]:
    allowed = {
        name: [getattr(cells[0].changed({name: value}), name) for value in values]
        for name, values in wanted.items()
    }
    found = [
        cell for cell in cells if all(getattr(cell, k) in values for k, values in allowed.items())
    ]
    if not found:
        there = {name: sorted({str(getattr(cell, name)) for cell in cells}) for name in wanted}
        said = "; ".join(f"{name}: {', '.join(values)}" for name, values in there.items())
        raise StudyError(f"--cells: no cell of this scale matches; it has {said}")
    yield from found


def _measure(
    subject: Paper,
    study: Study[Any],
    tasks: Sequence[Task],
    request: Request,
    scratch: Path,
    store: Store,
    watcher: Watcher,
) -> dict[str, Outcome]:
    jobs = group(subject, study, tasks, scratch)
    if request.fresh:
        for job in jobs:
            _clear(job)
        shutil.rmtree(scratch / "shared", ignore_errors=True)
    revision = git_revision(subject.package)
    done: dict[str, Outcome] = {}
    watcher.plan(len(tasks))
    by_first = {job.tasks[0].key: job for job in jobs}
    for outcomes in _execute(jobs, request, watcher):
        for outcome in outcomes:
            store.add(outcome, revision)
            done[outcome.key] = outcome
        _clear(by_first[outcomes[0].key], [o.key for o in outcomes if o.error])
    return done


def _clear(job: Job, failed: Sequence[str] = ()) -> None:
    """Remove the checkpoints of a job, batched and single, but for those of failed tasks."""
    for part in (job, *job.alone()):
        if part.folder is not None and not any(task.key in failed for task in part.tasks):
            shutil.rmtree(part.folder, ignore_errors=True)


def _execute(jobs: Sequence[Job], request: Request, watcher: Watcher) -> Iterator[list[Outcome]]:
    if request.on == "ray":
        from peira.engine.cluster import run_on_ray

        return run_on_ray(jobs, request.workers, watcher)
    workers = _cores() if request.workers is None else request.workers
    return run_in_pool(jobs, workers, watcher) if workers else run_here(jobs, watcher)


def _cores() -> int:
    import os

    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def group(subject: Paper, study: Study[Any], tasks: Sequence[Task], scratch: Path) -> list[Job]:
    """Single tasks as they come, tasks of one batch key in groups of the study's size."""
    keyed = [(study.batch(task.cell), number, task) for number, task in enumerate(tasks)]
    groups: list[list[Task]] = []
    for key, members in groupby(
        sorted(keyed, key=lambda item: (repr(item[0]), item[1])), lambda i: i[0]
    ):
        some = [task for _, _, task in members]
        size = 1 if key is None else study.batch_size
        groups += [some[start : start + size] for start in range(0, len(some), size)]
    order = {task.key: number for number, task in enumerate(tasks)}
    groups.sort(key=lambda group: order[group[0].key])
    return [Job(subject, tuple(group), scratch) for group in groups]


@contextmanager
def _alone(scratch: Path, slug: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        scratch.mkdir(parents=True, exist_ok=True)
        lock = FileLock(scratch / "lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise PeiraError(
            f"another `peira run {slug}` is at work on this machine: wait for it, or stop it "
            "and run this again to continue where it was"
        ) from error
    except OSError as error:
        raise PeiraError(
            f"cannot write {scratch}: {error.strerror}; set PEIRA_HOME to a folder that can be "
            "written"
        ) from error
    try:
        yield
    finally:
        lock.release()


def judge(study: Study[Any], outcomes: Sequence[Outcome]) -> tuple[Verdict, ...]:
    """One verdict for each claim of the card, in its order.

    Raises `StudyError` when the study judges a claim twice, not at all, or one that is not there,
    and when its `claims` raises.
    """
    table = tidy(outcomes)
    if table.empty:
        return tuple(not_measured(claim) for claim in study.card.claims)
    try:
        verdicts = list(study.claims(table))
    except PeiraError:
        raise
    except Exception as error:
        failed = [outcome for outcome in outcomes if outcome.error]
        first = f"; {len(failed)} failed, {failed[0].label}: {failed[0].reason}" if failed else ""
        raise StudyError(
            f"{study.card.slug}: the claims cannot be judged from this table: "
            f"{_raised(error, study)}; {len(table)} finished cells are kept{first}"
        ) from error
    judged, wanted = [verdict.claim for verdict in verdicts], study.card.ids()
    if sorted(judged) != sorted(wanted):
        raise StudyError(
            f"{study.card.slug}: study.py judges {judged}, card.toml has {wanted}: "
            "each claim needs one verdict"
        )
    return tuple(sorted(verdicts, key=lambda verdict: wanted.index(verdict.claim)))


def _raised(error: Exception, study: Study[Any]) -> str:
    """`KeyError: 'x' (study.py, line 71)`: what was raised, and where in the paper's code."""
    frames = traceback.extract_tb(error.__traceback__)
    home = Path(inspect.getfile(type(study))).parent
    last = ([frame for frame in frames if Path(frame.filename).parent == home] or frames)[-1]
    words = traceback.format_exception_only(error)[0].splitlines()[0]
    return f"{words} ({Path(last.filename).name}, line {last.lineno})"


def _conclude(
    subject: Paper,
    study: Study[Any],
    request: Request,
    outcomes: tuple[Outcome, ...],
    store: str,
    began: float,
) -> Result:
    name = request.scale + ("-changed" if request.changed else "")
    result = Result(
        request, judge(study, outcomes), outcomes, subject.records / name, store,
        time.perf_counter() - began,
    )  # fmt: skip
    write_json(result.folder / "result.json", record(result))
    # A figure that cannot be drawn costs nothing else, and no older one may stand in its place.
    for suffix in FIGURES:
        (result.folder / f"figure.{suffix}").unlink(missing_ok=True)
    try:
        draw(study, outcomes, result.folder)
    except PeiraError:
        raise
    except Exception as error:
        return replace(result, no_figure=_raised(error, study))
    return result


def draw(study: Study[Any], outcomes: Sequence[Outcome], folder: Path) -> None:
    """Save the study's figure as `figure.png` and `figure.svg`; none for an empty table."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table = tidy(outcomes)
    if not len(table):
        return
    # Fixed ids and no date: the same numbers give the same file.
    with plt.rc_context({"svg.hashsalt": "peira", "figure.dpi": 150}):
        figure = study.figure(table, curves(outcomes))
        for suffix in FIGURES:
            with atomic_path(folder / f"figure.{suffix}") as path:
                metadata = {"Date": None} if suffix == "svg" else None
                figure.savefig(path, bbox_inches="tight", metadata=metadata)
        plt.close(figure)


def record(result: Result) -> dict[str, Any]:
    """A result as plain data: what `list`, `show` and `report` read."""
    outcomes = result.outcomes
    return {
        "paper": result.request.slug,
        "scale": result.request.scale,
        "changed": result.request.changed,
        "folder": result.folder.name,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(result.seconds, 2),
        "cell_seconds": round(sum(outcome.seconds for outcome in outcomes), 2),
        "peak_memory_mib": max((outcome.peak_memory_mib for outcome in outcomes), default=0.0),
        "seeds": len({outcome.seed for outcome in outcomes}),
        "cells": len({str(outcome.cell) for outcome in outcomes}),
        "verdicts": [finite(asdict(verdict)) for verdict in result.verdicts],
        "failed": [
            {
                "label": outcome.label,
                "cell": outcome.cell,
                "seed": outcome.seed,
                "error": outcome.reason,
            }
            for outcome in result.failed
        ],
        "rows": finite(result.table.to_dict("records")),
        "inputs": {k: v for outcome in outcomes for k, v in outcome.inputs.items()},
        "versions": _versions(outcomes),
        "git": git_revision(paper(result.request.slug).package),
        "store": result.store,
    }


def _versions(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Library -> its version, or its versions where the cells were measured with several."""
    found: dict[str, list[str]] = {}
    for outcome in outcomes:
        for name, version in outcome.versions.items():
            found.setdefault(name, []).append(version)
    return {name: " and ".join(dict.fromkeys(versions)) for name, versions in found.items()}


def finite(value: Any) -> Any:
    """`value` with NaN and infinities as None, and NumPy's numbers as Python's, for JSON."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(item) for k, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
