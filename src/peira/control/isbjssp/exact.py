"""Optimal schedules with OR-Tools CP-SAT.

An operation holds its machine from its own start to the start of the job's next operation. With
these intervals, "no two overlap on a machine" is exactly the blocking job shop with swaps:
intervals that touch are jobs that follow each other, or change places, at one instant.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from ortools.sat.python import cp_model

from peira import PeiraError
from peira.control.isbjssp.schedule import Schedule
from peira.control.isbjssp.shop import JobShop
from peira.control.isbjssp.simulator import (
    BEGUN,
    BLOCKING,
    DONE,
    FINISH,
    GIVEN,
    NOW,
    PROCESSING,
    STATUS,
    TURN,
    UP_AT,
    Episode,
    State,
    draw_outages,
    new_state,
)


class NoSolution(PeiraError):
    """The solver found no schedule in the time it had."""


@dataclass(frozen=True, eq=False)
class Solution:
    """What the solver found.

    Attributes:
        orders: for each machine the jobs in the order in which it takes them, -1 at the end.
        makespan: of the best schedule found.
        bound: no schedule can be shorter.
        seconds: wall-clock time of the solver.
    """

    orders: Int[np.ndarray, "machines visits"]
    makespan: int
    bound: int
    seconds: float

    @property
    def proved(self) -> bool:
        """Whether the schedule is optimal."""
        return self.makespan == self.bound


def solve_shop(
    shop: JobShop,
    time_limit: float = 60.0,
    workers: int = 1,
    blocking: bool = True,
    seed: int = 0,
) -> Solution:
    """Shortest schedule without interruptions.

    Args:
        shop: the instance.
        time_limit: seconds; a schedule that is not yet proved optimal comes with its bound.
        workers: threads of the solver; with one, the same seed gives the same schedule.
        blocking: False allows storage between machines (the classical job shop).
        seed: of the solver's search.

    Raises `NoSolution` when the time is too short to find any schedule, and `PeiraError` for a
    blocking shop with operations that take no time: intervals without length do not exclude that
    jobs pass through each other.
    """
    if blocking and (shop.durations[shop.machines >= 0] == 0).any():
        raise PeiraError(f"{shop.name}: durations of 0; exact solutions need at least 1")
    state = new_state(shop, draw_outages(shop, 0.0))
    return _solve(shop, state, time_limit, workers, blocking, seed)


def _solve(
    shop: JobShop, state: State, time_limit: float, workers: int, blocking: bool, seed: int
) -> Solution:
    model, starts, makespan = _model(shop, state, blocking)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = seed
    began = time.perf_counter()
    status = solver.solve(model)
    seconds = time.perf_counter() - began
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        raise NoSolution(f"{shop.name}: no schedule found in {time_limit:g} s; allow more time")
    orders = _orders(shop, state, {key: solver.value(start) for key, start in starts.items()})
    bound = int(np.ceil(solver.best_objective_bound - 1e-6))
    return Solution(orders, solver.value(makespan), bound, seconds)


def _model(
    shop: JobShop, state: State, blocking: bool
) -> tuple[cp_model.CpModel, dict[tuple[int, int], cp_model.IntVar], cp_model.IntVar]:
    """Model of all operations that have not begun, from the present state of the shop on."""
    model, now = cp_model.CpModel(), int(state.clock[NOW])
    begun_of, status_of, finish_of = state.jobs[[BEGUN, STATUS, FINISH]].tolist()
    # A machine that is down now is expected back after the mean of what remains at most.
    guess = (int(shop.durations.max()) + 1) // 2
    ready = [now + guess if up > now else now for up in state.machines[UP_AT]]
    latest = max([now, *ready, *finish_of]) + int(shop.durations.sum())
    starts: dict[tuple[int, int], cp_model.IntVar] = {}
    busy: dict[int, list[cp_model.IntervalVar]] = defaultdict(list)
    ends: list[cp_model.LinearExprT] = []

    def hold(machine: int, start: cp_model.LinearExprT, end: cp_model.LinearExprT) -> None:
        length = model.new_int_var(0, latest, "")
        busy[machine].append(model.new_interval_var(start, length, end, ""))

    for job in range(shop.job_count):
        begun, length = begun_of[job], int(shop.lengths[job])
        for operation in range(begun, length):
            machine = int(shop.machines[job, operation])
            starts[job, operation] = model.new_int_var(ready[machine], latest, "")
        if status_of[job] == DONE:
            continue
        if status_of[job] in (PROCESSING, BLOCKING):
            free = finish_of[job] if status_of[job] == PROCESSING else now
            leaves = starts.get((job, begun), free)
            hold(int(shop.machines[job, begun - 1]), now, leaves if blocking else free)
            if begun < length:
                model.add(starts[job, begun] >= free)
            ends.append(free)
        for operation in range(begun, length):
            done = starts[job, operation] + int(shop.durations[job, operation])
            leaves = starts.get((job, operation + 1), done)
            if operation + 1 < length:
                model.add(leaves >= done)
            hold(
                int(shop.machines[job, operation]), starts[job, operation],
                leaves if blocking else done,
            )  # fmt: skip
            ends.append(done)
    for intervals in busy.values():
        model.add_no_overlap(intervals)
    makespan = model.new_int_var(now, latest, "makespan")
    model.add_max_equality(makespan, ends)
    model.minimize(makespan)
    return model, starts, makespan


def _orders(
    shop: JobShop, state: State, starts: dict[tuple[int, int], int]
) -> Int[np.ndarray, "machines visits"]:
    """Machine orders of the operations to come, behind the places that are taken already."""
    orders = np.full((shop.machine_count, shop.visits), -1, np.int64)
    place = state.machines[GIVEN].copy()
    for job, operation in sorted(starts, key=starts.__getitem__):
        machine = shop.machines[job, operation]
        orders[machine, place[machine]] = job
        place[machine] += 1
    return orders


def reoptimise_shop(
    shop: JobShop,
    p: float,
    seed: int | Sequence[int] = 0,
    time_limit: float = 1.0,
    workers: int = 1,
) -> Schedule:
    """Rolling horizon: solve, and solve what is left anew at every shutdown of an idle machine.

    The solver does not know how long a machine stays down; it counts on half the longest duration.

    Args:
        p: probability of a shutdown, each time an idle machine is about to take a job.
        seed: of the shutdowns.
        time_limit: seconds for each solution; the old plan stays when none is found.
    """
    plan = solve_shop(shop, time_limit, workers)
    episode = Episode(shop, draw_outages(shop, p, seed), plan.orders, alert=True)
    while not episode.done:
        if episode.interrupted:
            try:
                rest = _solve(shop, episode.state, time_limit, workers, True, 0)
                episode.change_orders(rest.orders)
            except NoSolution:
                episode.change_orders(episode.state.visits[TURN])
        else:
            episode.dispatch(int(episode.legal[0]))
    return Schedule.of(episode)
