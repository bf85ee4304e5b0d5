"""What a person sees while a study runs; on standard error, so that output stays data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from peira.engine.tasks import Job, Outcome

# Seconds between two lines where the output is a file and bars cannot move.
LINE_EVERY = 10.0


class Bars:
    """One bar for all cells and one for each cell under way; plain lines without a terminal."""

    def __init__(self, slug: str, console: Console) -> None:
        self._slug, self._console = slug, console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._rows: dict[Job, TaskID] = {}
        self._whole = self._bars.add_task(f"[bold]{slug}[/] cells", total=None)
        self._done = self._total = self._failed = 0
        self._said = time.monotonic()

    def __enter__(self) -> Bars:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._console.is_terminal:
            self._bars.stop()

    def plan(self, total: int) -> None:
        """How many cells and seeds there are to measure."""
        self._total = total
        self._bars.update(self._whole, total=total)

    def begin(self, job: Job) -> None:
        self._rows[job] = self._bars.add_task(f"  {escape(job.label)}", total=None)

    def step(self, job: Job, name: str, step: int, total: int) -> None:
        row = self._rows[job]
        words = f"  {escape(job.label)} · {escape(name)}"
        self._bars.update(row, completed=step, total=total, description=words)

    def end(self, job: Job, outcomes: Sequence[Outcome]) -> None:
        if job in self._rows:
            self._bars.remove_task(self._rows.pop(job))
        self._done += len(outcomes)
        self._bars.update(self._whole, completed=self._done)
        self._failed += sum(bool(outcome.error) for outcome in outcomes)
        if self._failed:
            self._bars.update(
                self._whole,
                description=f"[bold]{self._slug}[/] cells [red]{self._failed} failed[/]",
            )
        now = time.monotonic()
        last = self._done == self._total
        if not self._console.is_terminal and (last or now - self._said > LINE_EVERY):
            self._said = now
            self._console.print(
                f"{self._slug}: {self._done}/{self._total} cells measured", highlight=False
            )
