"""Schedules: as a table, checked independently of the simulator, as a Gantt chart."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Int

from peira import PeiraError
from peira.control.isbjssp.shop import JobShop
from peira.control.isbjssp.simulator import DOWN_FROM, END, RELEASE, START, WHOLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from peira.control.isbjssp.simulator import Episode

COLUMNS = ("job", "operation", "machine", "start", "end_processing", "release", "down_time")


class InvalidSchedule(PeiraError, ValueError):
    """A schedule that breaks the rules of the shop; says which operation, and how."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """When every operation begins, ends and gives its machine free.

    Attributes:
        shop: the instance.
        table: one row per operation: job, operation, machine, start, end_processing, release,
            blocked_time (release - end_processing), down_time (shutdown during processing).
        outages: shutdowns of machines: machine, start, end, kind (idle, running, calendar).
    """

    shop: JobShop
    table: pd.DataFrame
    outages: pd.DataFrame

    @classmethod
    def of(cls, episode: Episode) -> Schedule:
        """The schedule of an episode; of one under way, what has happened up to now."""
        shop, state = episode.shop, episode.state
        job, operation = np.nonzero(state.operations[START] >= 0)
        start, end, release = (
            np.where(times < 0, episode.now, times)[job, operation]
            for times in (state.operations[START], state.operations[END], state.operations[RELEASE])
        )
        table = pd.DataFrame(
            {
                "job": job,
                "operation": operation,
                "machine": shop.machines[job, operation],
                "start": start,
                "end_processing": end,
                "release": release,
                "blocked_time": release - end,
                "down_time": np.maximum(end - start - shop.durations[job, operation], 0),
            }
        )
        return cls(shop, table, _outages(episode, table))

    @property
    def makespan(self) -> int:
        """When the last job is done."""
        return int(self.table["release"].max()) if len(self.table) else 0

    @property
    def orders(self) -> Int[np.ndarray, "machines visits"]:
        """For each machine the jobs in the order in which it took them, -1 at the end."""
        return machine_orders(self.shop, self.table)

    def validate(self, swap: bool = True) -> None:
        """Check this schedule; see `validate_schedule`."""
        validate_schedule(self.shop, self.table, self.outages, swap)


def machine_orders(shop: JobShop, table: pd.DataFrame) -> Int[np.ndarray, "machines visits"]:
    """Jobs by machine in order of start, filled up with -1."""
    orders = np.full((shop.machine_count, shop.visits), -1, np.int64)
    for machine, rows in table.sort_values(["start", "release"]).groupby("machine"):
        orders[machine, : len(rows)] = rows["job"]
    return orders


def _outages(episode: Episode, table: pd.DataFrame) -> pd.DataFrame:
    """All shutdowns that came to be, and which kind they are."""
    state, outages = episode.state, episode.outages
    machine, visit = np.nonzero(state.visits[DOWN_FROM] >= 0)
    begin = state.visits[DOWN_FROM, machine, visit]
    idle = _shutdowns(machine, begin, outages.before[machine, visit], "idle")
    hit = table.sort_values(["machine", "start", "release"])
    machine, visit = hit["machine"].to_numpy(), hit.groupby("machine").cumcount().to_numpy()
    planned = (hit["end_processing"] - hit["start"] - hit["down_time"]).to_numpy()
    begin = hit["start"].to_numpy() + outages.portion[machine, visit] * planned // WHOLE
    running = _shutdowns(machine, begin, outages.midway[machine, visit], "running")
    start, end = outages.closed
    machine = np.broadcast_to(np.arange(len(start))[:, None], start.shape)
    known = _shutdowns(machine.ravel(), start.ravel(), (end - start).ravel(), "calendar")
    both = pd.concat([idle, running, known])
    return both.sort_values(["start", "machine"], ignore_index=True)


def _shutdowns(
    machine: Int[np.ndarray, " n"],
    start: Int[np.ndarray, " n"],
    length: Int[np.ndarray, " n"],
    kind: str,
) -> pd.DataFrame:
    table = pd.DataFrame({"machine": machine, "start": start, "end": start + length, "kind": kind})
    return table[length > 0]


def validate_schedule(
    shop: JobShop,
    table: pd.DataFrame,
    outages: pd.DataFrame | None = None,
    swap: bool = True,
) -> None:
    """Check a schedule against the rules of the shop; knows nothing of the simulator.

    Args:
        table: columns job, operation, machine, start, end_processing, release, and optionally
            down_time; in any order.
        outages: columns machine, start, end, and optionally kind (`running` shutdowns come during
            processing); no operation may begin on a machine that is down.
        swap: False also forbids jobs that change places at one instant.

    Raises `InvalidSchedule` at the first broken rule: an operation missing or there twice, the
    wrong machine, the wrong length, a gap between giving a machine free and beginning the next
    operation (there is no storage), two jobs on one machine, a start on a machine that is down.
    """
    rows = _by_operation(shop, table)
    _check_jobs(shop, rows)
    _check_machines(rows)
    for outage in [] if outages is None else outages.to_dict("records"):
        # A shutdown during processing is in the operation's down_time and checked there.
        if outage.get("kind") != "running":
            _check_outage(rows, outage)
    if not swap:
        _check_no_swap(rows)


Rows = dict[tuple[int, int], dict[str, int]]


def _by_operation(shop: JobShop, table: pd.DataFrame) -> Rows:
    lacking = [name for name in COLUMNS[:-1] if name not in table]
    if lacking:
        raise InvalidSchedule(f"columns missing: {', '.join(lacking)}")
    rows: Rows = {}
    for record in table.to_dict("records"):
        try:
            row = {str(name): int(value) for name, value in record.items() if name in COLUMNS}
        except ValueError as error:
            raise InvalidSchedule(f"row {record}: {error}; expected whole numbers") from error
        key = (row["job"], row["operation"])
        if key in rows:
            raise InvalidSchedule(f"job {key[0]}, operation {key[1]} is there twice")
        rows[key] = {"down_time": 0} | row
    wanted = {(j, k) for j in range(shop.job_count) for k in range(int(shop.lengths[j]))}
    for word, keys in (("missing", wanted - rows.keys()), ("unknown", rows.keys() - wanted)):
        if keys:
            job, operation = min(keys)
            raise InvalidSchedule(f"job {job}, operation {operation} is {word}")
    return rows


def _check_jobs(shop: JobShop, rows: Rows) -> None:
    for (job, operation), row in rows.items():
        where = f"job {job}, operation {operation}"
        machine = int(shop.machines[job, operation])
        if row["machine"] != machine:
            raise InvalidSchedule(f"{where} is on machine {row['machine']}; expected {machine}")
        due = row["start"] + int(shop.durations[job, operation]) + row["down_time"]
        if row["start"] < 0 or row["down_time"] < 0 or row["end_processing"] != due:
            raise InvalidSchedule(
                f"{where} runs {row['start']} .. {row['end_processing']}; expected its end at {due}"
            )
        following = rows.get((job, operation + 1))
        leaves = row["end_processing"] if following is None else following["start"]
        if row["release"] != leaves or leaves < row["end_processing"]:
            raise InvalidSchedule(
                f"{where} ends at {row['end_processing']} and gives its machine free at "
                f"{row['release']}, but the job goes on at {leaves}: there is no storage"
            )


def _check_machines(rows: Rows) -> None:
    queues = defaultdict(list)
    for (job, operation), row in rows.items():
        queues[row["machine"]].append((row["start"], row["release"], job, operation))
    for machine, queue in queues.items():
        queue.sort()
        for (_, release, job, _), (start, _, later, _) in pairwise(queue):
            if start < release:
                raise InvalidSchedule(
                    f"machine {machine}: job {later} begins at {start} while job {job} holds it "
                    f"until {release}"
                )


def _check_outage(rows: Rows, outage: dict[str, int]) -> None:
    for (job, operation), row in rows.items():
        here = row["machine"] == outage["machine"]
        if here and outage["start"] <= row["start"] < outage["end"]:
            raise InvalidSchedule(
                f"job {job}, operation {operation} begins at {row['start']} on machine "
                f"{row['machine']}, which is down {outage['start']} .. {outage['end']}"
            )


def _check_no_swap(rows: Rows) -> None:
    """Jobs that move at one instant must not follow each other in a circle."""
    moves: dict[int, dict[int, int]] = defaultdict(dict)
    for (job, operation), row in rows.items():
        if operation and rows[job, operation - 1]["machine"] != row["machine"]:
            moves[row["start"]][rows[job, operation - 1]["machine"]] = row["machine"]
    for instant, step in moves.items():
        for first in step:
            at: int | None = step[first]
            for _ in step:
                if at == first:
                    raise InvalidSchedule(f"jobs change places in a circle at {instant}")
                at = step.get(at) if at is not None else None


def draw_gantt(schedule: Schedule, axes: Axes | None = None) -> Axes:
    """Draw machines over time: processing in the job's colour, blocking hatched, shutdowns grey."""
    import matplotlib.pyplot as plt

    if axes is None:
        height = 1.2 + 0.4 * schedule.shop.machine_count
        axes = plt.subplots(figsize=(9, height), layout="constrained")[1]
    colours = plt.get_cmap("tab20")
    for row in schedule.table.to_dict("records"):
        colour, machine = colours(row["job"] % 20), row["machine"]
        length = row["end_processing"] - row["start"]
        axes.barh(machine, length, left=row["start"], height=0.8, color=colour, linewidth=0)
        if row["blocked_time"]:
            axes.barh(
                machine, row["blocked_time"], left=row["end_processing"], height=0.8, color="white",
                edgecolor=colour, hatch="////", linewidth=0,
            )  # fmt: skip
        axes.text(
            row["start"] + length / 2, machine, str(row["job"]), ha="center", va="center",
            fontsize=7, clip_on=True,
        )  # fmt: skip
    for row in schedule.outages.to_dict("records"):
        axes.barh(
            row["machine"], row["end"] - row["start"], left=row["start"], height=0.25,
            color="0.25", label="down",
        )  # fmt: skip
    axes.set(
        xlabel="time", ylabel="machine", yticks=range(schedule.shop.machine_count),
        xlim=(0, max(schedule.makespan, 1)),
        title=f"{schedule.shop.name}: makespan {schedule.makespan}",
    )  # fmt: skip
    axes.invert_yaxis()
    return axes
