"""Every finished cell as one MLflow run: params, metrics, curves, versions, data fingerprints."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING, Any

from peira.engine.errors import PeiraError
from peira.engine.files import home
from peira.engine.tasks import Outcome

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

# The most that one MLflow request takes, and what of it parameters leave to metrics.
BATCH, ROOM = 1000, 900
KEY, CELL, MACHINE = "peira.key", "peira.cell", "peira.machine"
# A metric's name starts with a letter, so these never collide.
SECONDS, MEMORY, CENSORED = "__seconds", "__peak_memory_mib", "__censored."


def default_uri() -> str:
    """The SQLite file in the user's data folder."""
    return f"sqlite:///{home() / 'mlflow.db'}"


class Store:
    """The finished cells of one paper.

    Args:
        slug: the paper; its MLflow experiment is `peira/<slug>`.
        uri: an MLflow tracking URI.

    Raises `PeiraError` in every method when the store cannot be read or written.
    """

    def __init__(self, slug: str, uri: str | None = None) -> None:
        self.slug, self.uri = slug, uri or default_uri()

    @cached_property
    def _client(self) -> MlflowClient:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        if self.uri == default_uri():
            home().mkdir(parents=True, exist_ok=True)
        if self.uri.startswith("sqlite:"):
            _probe(self.uri)
        from mlflow import MlflowClient

        # After the import, because MLflow configures its loggers itself.
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        return MlflowClient(self.uri)

    @cached_property
    def _experiment(self) -> str:
        name = f"peira/{self.slug}"
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        artifacts = None
        if self.uri.startswith("sqlite:"):
            artifacts = (home() / "mlartifacts" / self.slug).as_uri()
        return str(self._client.create_experiment(name, artifact_location=artifacts))

    def reach(self) -> None:
        """Talk to the store once; this makes the default file where there is none yet."""
        with _told(self.uri):
            self._client.search_experiments(max_results=1)

    def open(self) -> None:
        """Reach the store and clear away what a killed process left half-written.

        One study at a time is at work on a machine, so what another machine writes is left alone.
        """
        with _told(self.uri):
            for run in self._runs("attributes.status = 'RUNNING'"):
                if run.data.tags.get(MACHINE) == platform.node():
                    self._client.delete_run(run.info.run_id)

    def finished(self, keys: Sequence[str]) -> dict[str, Outcome]:
        """The outcomes that are there already, by key."""
        wanted = set(keys)
        with _told(self.uri):
            return {
                run.data.tags[KEY]: self._outcome(run)
                for run in self._runs("attributes.status = 'FINISHED'")
                if run.data.tags.get(KEY) in wanted
            }

    def forget(self, keys: Sequence[str]) -> None:
        """Mark the ended runs of these keys deleted (MLflow keeps them until `mlflow gc`)."""
        wanted = set(keys)
        with _told(self.uri):
            for status in ("FINISHED", "FAILED"):
                for run in self._runs(f"attributes.status = '{status}'"):
                    if run.data.tags.get(KEY) in wanted:
                        self._client.delete_run(run.info.run_id)

    def add(self, outcome: Outcome, revision: str) -> None:
        """Write one outcome; it counts as finished only once all of it is there."""
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        tags = {
            KEY: outcome.key,
            CELL: json.dumps(outcome.cell),
            MACHINE: platform.node(),
            "mlflow.runName": outcome.label,
            "mlflow.source.git.commit": revision.rstrip("+"),
            "peira.git": revision,
            **{f"peira.version.{name}": value for name, value in outcome.versions.items()},
            **{f"peira.data.{name}": value for name, value in outcome.inputs.items()},
        }
        if outcome.error:
            tags["peira.error"] = outcome.error[-5000:]
        numbers = {
            **outcome.metrics,
            **{f"{CENSORED}{name}": 1.0 for name in outcome.censored},
            SECONDS: outcome.seconds,
            MEMORY: outcome.peak_memory_mib,
        }
        points = [Metric(name, value, now, 0) for name, value in numbers.items()]
        points += [Metric(f"curve.{name}", y, now, step) for step, name, y in outcome.curves]
        params = [Param(name, str(value)) for name, value in outcome.cell.items()]
        params.append(Param("seed", str(outcome.seed)))
        with _told(self.uri):
            run = self._client.create_run(self._experiment, start_time=now, tags=tags).info.run_id
            # Each request costs several commits of the database: parameters go with the first.
            self._client.log_batch(run, metrics=points[:ROOM], params=params)
            for part in _batched(points[ROOM:], BATCH):
                self._client.log_batch(run, metrics=part)
            self._client.set_terminated(run, "FAILED" if outcome.error else "FINISHED")

    def _runs(self, where: str) -> Iterator[MlflowRun]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], where, max_results=1000, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _outcome(self, run: MlflowRun) -> Outcome:
        tags, metrics = run.data.tags, run.data.metrics
        names = [name for name in metrics if name.startswith("curve.")]
        curves = sorted(
            (point.step, name.removeprefix("curve."), _number(point.value))
            for name in names
            for point in self._client.get_metric_history(run.info.run_id, name)
        )
        return Outcome(
            key=tags[KEY],
            slug=self.slug,
            label=tags["mlflow.runName"],
            cell=json.loads(tags[CELL]),
            seed=int(run.data.params["seed"]),
            metrics={
                name: _number(value)
                for name, value in metrics.items()
                if not name.startswith(("curve.", "__"))
            },
            censored=tuple(
                name.removeprefix(CENSORED) for name in metrics if name.startswith(CENSORED)
            ),
            curves=tuple(curves),
            seconds=metrics[SECONDS],
            peak_memory_mib=metrics[MEMORY],
            inputs=_tagged(tags, "peira.data."),
            versions=_tagged(tags, "peira.version."),
        )


def _probe(uri: str) -> None:
    """Open an SQLite file once, because MLflow tries for minutes to open one that cannot be."""
    import sqlite3

    from sqlalchemy.engine import make_url

    with closing(sqlite3.connect(make_url(uri).database or ":memory:")) as connection:
        connection.execute("PRAGMA schema_version")


def _number(stored: float) -> float:
    """The number that was stored; MLflow's databases keep infinity as the largest float."""
    return math.copysign(math.inf, stored) if abs(stored) == sys.float_info.max else stored


def _tagged(tags: dict[str, str], prefix: str) -> dict[str, str]:
    return {k.removeprefix(prefix): v for k, v in tags.items() if k.startswith(prefix)}


def _batched(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


class _told:
    """Turn whatever MLflow, SQLAlchemy or the disk raise into one line with a remedy."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __enter__(self) -> None:
        warnings.filterwarnings("ignore", module="mlflow")

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if error is None or isinstance(error, PeiraError) or not isinstance(error, Exception):
            return
        line = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise PeiraError(
            f"store {self.uri} cannot be used ({type(error).__name__}: {line[:200]}); finished "
            "cells are kept and the same command continues once it can, or name another with "
            "--store"
        ) from error
