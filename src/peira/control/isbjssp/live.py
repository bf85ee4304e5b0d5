"""A real shop, followed as it happens: the caller reports events, a policy says what to do."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from peira import PeiraError
from peira.control.isbjssp.shop import JobShop
from peira.control.isbjssp.simulator import (
    BEGUN,
    BLOCKING,
    DONE,
    END,
    HOLDER,
    LEGAL,
    LENGTH,
    NOW,
    PROCESSING,
    SINCE,
    STATUS,
    UP_AT,
    draw_outages,
    enter,
    leave,
    mark_legal,
    new_state,
    swap_cycles,
)

# End of a shutdown that nobody knows yet.
NEVER = np.iinfo(np.int64).max // 2

Moves = list[tuple[int, int]]


class LiveShop:
    """State of a shop on the floor, where durations and shutdowns are what they turn out to be.

    Report events in order of time. Every report returns the moves to carry out at once, as (job,
    machine): the jobs that change places. While `legal` lists jobs, ask a policy
    (`network.next_action(live)`) or choose yourself, and `dispatch`.

    Args:
        shop: the instance; its durations are the planned ones.
    """

    def __init__(self, shop: JobShop) -> None:
        self.shop = shop
        self.state = new_state(shop, draw_outages(shop, 0.0))
        mark_legal(self.state)

    @property
    def now(self) -> int:
        """Time of the last report."""
        return int(self.state.clock[NOW])

    @property
    def done(self) -> bool:
        """Whether every job is out of the shop."""
        return bool((self.state.jobs[STATUS] == DONE).all())

    @property
    def legal(self) -> Int[np.ndarray, " legal"]:
        """Numbers of the jobs that can be moved now."""
        return np.flatnonzero(self.state.jobs[LEGAL])

    def dispatch(self, job: int) -> Moves:
        """Move a legal job to its next machine; raises `PeiraError` if it cannot be moved."""
        if job not in self.legal:
            raise PeiraError(f"job {job} cannot be moved now; legal: {self.legal.tolist()}")
        before = self.state.jobs[BEGUN].copy()
        leave(self.state, job)
        enter(self.state, job)
        return self._moves(before)

    def finished(self, job: int, time: int) -> Moves:
        """Report that a job has ended its operation; raises `PeiraError` if it was not in one."""
        self._report("job", job, self.shop.job_count, time)
        jobs = self.state.jobs
        if jobs[STATUS, job] != PROCESSING:
            raise PeiraError(f"job {job} is not in process at {time}")
        before = jobs[BEGUN].copy()
        self.state.operations[END, job, jobs[BEGUN, job] - 1] = time
        jobs[SINCE, job] = time
        if jobs[BEGUN, job] == jobs[LENGTH, job]:
            leave(self.state, job)
            jobs[STATUS, job] = DONE
        else:
            jobs[STATUS, job] = BLOCKING
        return self._moves(before)

    def down(self, machine: int, time: int) -> Moves:
        """Report that a machine has gone down; a job in process on it is suspended."""
        self._report("machine", machine, self.shop.machine_count, time)
        if self.state.machines[UP_AT, machine] > time:
            raise PeiraError(f"machine {machine} is down already at {time}")
        window = np.zeros((2, self.shop.machine_count, 1), np.int64)
        window[:, machine, 0] = time, NEVER
        self.state = self.state._replace(closed=np.concatenate([self.state.closed, window], 2))
        self.state.machines[UP_AT, machine] = NEVER
        return self._moves(self.state.jobs[BEGUN].copy())

    def up(self, machine: int, time: int) -> Moves:
        """Report that a machine is up again."""
        self._report("machine", machine, self.shop.machine_count, time)
        if self.state.machines[UP_AT, machine] <= time:
            raise PeiraError(f"machine {machine} is not down at {time}")
        closed = self.state.closed
        closed[1, machine][closed[1, machine] == NEVER] = time
        self.state.machines[UP_AT, machine] = time
        return self._moves(self.state.jobs[BEGUN].copy())

    def _report(self, what: str, number: int, count: int, time: int) -> None:
        if not 0 <= number < count:
            raise PeiraError(f"no {what} {number}; expected 0 .. {count - 1}")
        if time < self.now:
            raise PeiraError(f"time {time} is before the last report at {self.now}")
        self.state.clock[NOW] = time

    def _moves(self, before: Int[np.ndarray, " jobs"]) -> Moves:
        swap_cycles(self.state, self.shop.machine_count)
        mark_legal(self.state)
        holder = self.state.machines[HOLDER].tolist()
        moved = np.flatnonzero(self.state.jobs[BEGUN] != before)
        return [(int(job), holder.index(job)) for job in moved]
