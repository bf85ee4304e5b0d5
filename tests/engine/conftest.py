"""The plug-in's paper in this process, and a watcher that counts or kills."""

from __future__ import annotations

import sys

import pytest

from peira.engine import catalogue
from peira.engine.tasks import Job


class Watcher:
    """Remembers what began; presses Ctrl-C at a step when told to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.began: list[Job] = []
        self.steps: list[int] = []

    def plan(self, total: int) -> None:
        pass

    def begin(self, job: Job) -> None:
        self.began.append(job)

    def step(self, job: Job, name: str, step: int, total: int) -> None:
        self.steps.append(step)
        if step == self.stop_at:
            raise KeyboardInterrupt

    def end(self, job: Job, outcomes) -> None:
        pass


@pytest.fixture
def coin(plugin, home, monkeypatch):
    """The paper `tiny-coin`, its study monkeypatchable."""
    monkeypatch.syspath_prepend(str(plugin))
    catalogue._entry_points.cache_clear()
    yield catalogue.paper("tiny-coin")
    catalogue._entry_points.cache_clear()
    for name in [name for name in sys.modules if name.startswith("peira_tiny")]:
        del sys.modules[name]
