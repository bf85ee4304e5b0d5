"""Job-shop instances: from arrays, from the field's text formats, at random."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int

from peira.data import DataError

LONGEST_DURATION = 99

FT06 = """\
6 6
2 1  0 3  1 6  3 7  5 3  4 6
1 8  2 5  4 10 5 10 0 10 3 4
2 5  3 4  5 8  0 9  1 1  4 7
1 5  0 5  2 5  3 3  4 8  5 9
2 9  1 3  4 5  5 4  0 3  3 1
1 3  3 3  5 9  0 10 4 4  2 1
"""


@dataclass(frozen=True, eq=False)
class JobShop:
    """Jobs, each an ordered list of operations with a machine and a duration.

    Args:
        machines: machine of every operation, counted from 0; rows of jobs with fewer operations are
            filled up with -1. A job may visit a machine more than once.
        durations: processing times, whole numbers in the unit of your choice; 0 beside a -1.
        name: what to call the instance in tables and figures.
        machine_count: number of machines; by default the largest machine number plus one.
        allow_zero: accept operations that take no time (orb07 of JSPLIB has one).

    Raises `DataError` for shapes that differ, jobs without operations, machines out of range,
    durations below 1 (0 with `allow_zero`) or not whole.
    """

    machines: Int[np.ndarray, "jobs operations"]
    durations: Int[np.ndarray, "jobs operations"]
    name: str = "shop"
    machine_count: int = 0
    allow_zero: bool = False

    def __post_init__(self) -> None:
        machines = _whole(self.machines, "machines")
        durations = _whole(self.durations, "durations")
        if machines.shape != durations.shape or machines.ndim != 2 or machines.size == 0:
            raise DataError(
                f"machines {machines.shape} and durations {durations.shape} do not match",
                expected="two arrays of one shape (jobs, operations), with at least one operation",
            )
        count = self.machine_count or int(machines.max()) + 1
        _check_operations(machines, durations, count, 1 - self.allow_zero)
        object.__setattr__(self, "machines", machines)
        object.__setattr__(self, "durations", durations)
        object.__setattr__(self, "machine_count", count)

    @property
    def job_count(self) -> int:
        """Number of jobs."""
        return self.machines.shape[0]

    @cached_property
    def lengths(self) -> Int[np.ndarray, " jobs"]:
        """Number of operations of each job."""
        return (self.machines >= 0).sum(1)

    @cached_property
    def tails(self) -> Int[np.ndarray, "jobs operations"]:
        """Work of the job from each operation on, with it."""
        return np.ascontiguousarray(self.durations[:, ::-1].cumsum(1)[:, ::-1])

    @cached_property
    def operation_count(self) -> int:
        """Number of operations of all jobs."""
        return int(self.lengths.sum())

    @cached_property
    def visits(self) -> int:
        """Largest number of operations that one machine has to process."""
        return int(np.bincount(self.machines[self.machines >= 0]).max())

    def __repr__(self) -> str:
        return f"JobShop({self.name}: {self.job_count} jobs, {self.machine_count} machines)"

    @classmethod
    def from_jobs(
        cls,
        jobs: list[list[tuple[int, int]]],
        name: str = "shop",
        machine_count: int = 0,
        allow_zero: bool = False,
    ) -> JobShop:
        """A shop from lists of (machine, duration), one list a job."""
        width = max((len(job) for job in jobs), default=0)
        machines = np.full((len(jobs), width), -1, np.int64)
        durations = np.zeros((len(jobs), width), np.int64)
        for row, job in enumerate(jobs):
            for column, (machine, duration) in enumerate(job):
                machines[row, column], durations[row, column] = machine, duration
        return cls(machines, durations, name, machine_count, allow_zero)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], allow_zero: bool = False) -> JobShop:
        """Read a JSPLIB / OR-Library file or a Taillard file.

        JSPLIB: a line `jobs machines`, then one line per job of pairs `machine duration` with
        machines from 0. Taillard: the same first line, then a block of durations and a block of
        machines from 1. Lines that start with `#` and headings before the numbers are skipped.

        Raises `DataError` that names the file, the line, the column and the value.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot be read as text: {error}", path=path) from error
        return cls.from_text(text, path.stem, path, allow_zero)

    @classmethod
    def from_text(
        cls, text: str, name: str = "shop", path: Path | None = None, allow_zero: bool = False
    ) -> JobShop:
        """Read an instance from text; see `from_file`."""
        rows = _number_rows(text, path)
        if not rows:
            raise DataError("no numbers", path=path, expected="a line 'jobs machines'")
        (line, size), body = rows[0], rows[1:]
        # Taillard's first line goes on with two seeds and two bounds.
        if len(size) not in (2, 6) or min(size[:2]) < 1:
            raise DataError(
                "bad size line", path, line, value=" ".join(map(str, size)),
                expected="two positive whole numbers: jobs machines",
            )  # fmt: skip
        jobs, machines = size[:2]
        if len(body) == 2 * jobs and all(len(row) == machines for _, row in body):
            pairs = _taillard_jobs(body, jobs, machines, path, 1 - allow_zero)
        else:
            pairs = _jsplib_jobs(body, jobs, machines, path, 1 - allow_zero)
        return cls.from_jobs(pairs, name, machines, allow_zero)

    @classmethod
    def random(
        cls,
        jobs: int,
        machines: int,
        rng: np.random.Generator,
        longest: int = LONGEST_DURATION,
        name: str = "random",
    ) -> JobShop:
        """Every job visits every machine once, in random order, for a uniform 1 .. `longest`."""
        order = rng.permuted(np.tile(np.arange(machines), (jobs, 1)), axis=1)
        return cls(order, rng.integers(1, longest + 1, (jobs, machines)), name)

    def to_text(self) -> str:
        """The instance in JSPLIB format."""
        lines = [f"{self.job_count} {self.machine_count}"]
        for machines, durations, length in zip(
            self.machines, self.durations, self.lengths, strict=True
        ):
            pairs = zip(machines[:length], durations[:length], strict=True)
            lines.append(" ".join(f"{machine} {duration}" for machine, duration in pairs))
        return "\n".join(lines) + "\n"


def ft06() -> JobShop:
    """The 6 x 6 instance of Fisher and Thompson (1963)."""
    return JobShop.from_text(FT06, "ft06")


def _whole(values: object, what: str) -> Int[np.ndarray, ...]:
    array = np.asarray(values)
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.rint(array)).all():
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise DataError(f"{what} are not whole numbers", expected="integers, in a finer time unit")
    return np.ascontiguousarray(array, np.int64)


def _check_operations(
    machines: Int[np.ndarray, "jobs operations"],
    durations: Int[np.ndarray, "jobs operations"],
    count: int,
    shortest: int,
) -> None:
    used = machines >= 0
    # Padding may only follow operations, never come between them.
    broken = (machines < -1) | (machines >= count)
    broken[:, 1:] |= used[:, 1:] & ~used[:, :-1]
    broken[:, 0] |= ~used[:, 0]
    if broken.any():
        job, operation = np.argwhere(broken)[0]
        raise DataError(
            f"job {job}, operation {operation}: machine out of range",
            value=int(machines[job, operation]), expected=f"0 .. {count - 1}",
        )  # fmt: skip
    wrong = used & (durations < shortest)
    if wrong.any():
        job, operation = np.argwhere(wrong)[0]
        raise DataError(
            f"job {job}, operation {operation}: duration too short",
            value=int(durations[job, operation]), expected=f"at least {shortest}",
        )  # fmt: skip


def _number_rows(text: str, path: Path | None) -> list[tuple[int, list[int]]]:
    """Line number and integers of every line that has numbers."""
    rows: list[tuple[int, list[int]]] = []
    for line, raw in enumerate(text.splitlines(), start=1):
        words = raw.partition("#")[0].split()
        heading = words and not rows and not _is_integer(words[0])
        if not words or heading or words[0].lower() in {"times", "machines"}:
            continue
        bad = next((i for i, word in enumerate(words) if not _is_integer(word)), None)
        if bad is not None:
            raise DataError("not a whole number", path, line, bad + 1, words[bad])
        rows.append((line, [int(word) for word in words]))
    return rows


def _is_integer(word: str) -> bool:
    return word.lstrip("+-").isdecimal()


def _jsplib_jobs(
    body: list[tuple[int, list[int]]], jobs: int, machines: int, path: Path | None, shortest: int
) -> list[list[tuple[int, int]]]:
    if len(body) != jobs:
        last = body[-1][0] if body else 1
        kind = "missing jobs" if len(body) < jobs else "more jobs than announced"
        raise DataError(kind, path, last, value=len(body), expected=f"{jobs} job lines")
    for line, row in body:
        if len(row) % 2:
            raise DataError(
                "odd count of numbers", path, line, value=len(row),
                expected="pairs 'machine duration'",
            )  # fmt: skip
        for column, value in enumerate(row, start=1):
            if column % 2:
                _check(value, "machine", 0, machines - 1, path, line, column)
            else:
                _check(value, "duration", shortest, None, path, line, column)
    return [list(zip(row[::2], row[1::2], strict=True)) for _, row in body]


def _taillard_jobs(
    body: list[tuple[int, list[int]]], jobs: int, machines: int, path: Path | None, shortest: int
) -> list[list[tuple[int, int]]]:
    for place, (line, row) in enumerate(body):
        for column, value in enumerate(row, start=1):
            if place < jobs:
                _check(value, "duration", shortest, None, path, line, column)
            else:
                _check(value, "machine", 1, machines, path, line, column)
    return [
        [(machine - 1, time) for machine, time in zip(order, row, strict=True)]
        for (_, row), (_, order) in zip(body[:jobs], body[jobs:], strict=True)
    ]


def _check(
    value: int, what: str, low: int, high: int | None, path: Path | None, line: int, column: int
) -> None:
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"{low} .. {high}"
        raise DataError(f"{what} out of range", path, line, column, value, expected)
