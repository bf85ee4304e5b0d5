"""Event-driven simulation of a job shop without storage, with swaps and interruptions.

A job that has ended an operation keeps ("blocks") its machine until the machine it needs next can
take it. Finished jobs that block each other in a cycle move all at the same instant (a swap).
Machines go down at random.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int, Int64
from numba import njit

from peira import PeiraError
from peira.control.isbjssp.shop import JobShop
from peira.engine.errors import nearest

if TYPE_CHECKING:
    from peira.control.isbjssp.schedule import Schedule

Array = np.ndarray
When = Literal["idle", "running"]

# What a job is doing. A waiting job is in the input storage, which is unlimited.
WAITING, PROCESSING, BLOCKING, DONE = range(4)

RULES = ("FIFO", "LIFO", "SPT", "LPT", "MTWR", "LTWR", "MOR", "LOR", "STPT", "LTPT", "random")
FIFO, LIFO, SPT, LPT, MTWR, LTWR, MOR, LOR, STPT, LTPT, RANDOM = range(len(RULES))


class Deadlock(PeiraError):
    """Finished jobs block each other for ever: swaps are off, or a given order is impossible."""


class Outages(NamedTuple):
    """Shutdowns, by machine and by how many jobs the machine has been given before.

    `before` is the time down just before the idle machine takes a job, `midway` the time down while
    it processes it, after `portion` / `WHOLE` of the processing; 0 is no shutdown. `closed` holds
    shutdowns at given times, from its first to (without) its second row, in order of time.
    """

    before: Int64[Array, "machines visits"]
    midway: Int64[Array, "machines visits"]
    portion: Int64[Array, "machines visits"]
    closed: Int64[Array, "2 machines windows"]


WHOLE = 2**20

# Entries of `State.clock`: time, waiting time of all jobs, shutdowns of idle machines, so far.
NOW, WAITED, SHUTDOWNS = range(3)
# Rows of `State.jobs`: number of operations, operations begun, what the job is doing, since when it
# asks for its next machine, when the operation in process ends, whether the job can be moved now.
LENGTH, BEGUN, STATUS, SINCE, FINISH, LEGAL = range(6)
# Rows of `State.machines`: job on it, when it is up (again), jobs taken so far, whether the
# shutdown before its next job has been drawn.
HOLDER, UP_AT, GIVEN, TESTED = range(4)
# Layers of `State.operations`: given (with the work from the operation to the job's end), measured.
MACHINE, DURATION, TAIL, START, END, RELEASE = range(6)
# Layers of `State.visits`: the job whose turn it is, the shutdowns, when the one before came.
TURN, BEFORE, MIDWAY, PORTION, DOWN_FROM = range(5)


class State(NamedTuple):
    """A shop under way, as the kernels see it; -1 is "none" or "not yet".

    Few arrays, because handing a tuple to a kernel costs time for each of them.
    """

    clock: Int64[Array, " 3"]
    jobs: Int64[Array, "6 jobs"]
    machines: Int64[Array, "4 machines"]
    operations: Int64[Array, "6 jobs operations"]
    visits: Int64[Array, "5 machines visits"]
    closed: Int64[Array, "2 machines windows"]


def draw_outages(
    shop: JobShop,
    p: float,
    seed: int | Sequence[int] = 0,
    when: When = "idle",
    calendar: Iterable[tuple[int, int, int]] = (),
) -> Outages:
    """Shutdowns that do not depend on what the scheduler does.

    Whenever an idle machine is about to take a job it goes down first with probability `p`
    (`when="idle"`; machines whose jobs change places are not idle), or it goes down while it
    processes the job, which is suspended and resumed (`when="running"`), for a uniform
    1 .. longest duration. All is drawn beforehand: the k-th job a machine takes meets the
    machine's k-th draw whichever job it is, so rules are compared on equal shutdowns, and a larger
    `p` only adds shutdowns to those of a smaller one.

    Args:
        calendar: shutdowns at known times as (machine, start, end): the machine takes no job then,
            a job in process is suspended, a finished job may leave.

    Raises `PeiraError` for `p` outside [0, 1] or a calendar entry that makes no sense.
    """
    if not 0 <= p <= 1:
        raise PeiraError(f"shutdown probability p must be in [0, 1]; got {p!r}")
    size = (shop.machine_count, shop.visits)
    length = np.zeros(size, np.int64)
    portion = np.zeros(size, np.int64)
    if p > 0:
        rng = np.random.default_rng(seed)
        hit = rng.random(size) < p
        length = rng.integers(1, max(shop.durations.max(), 1) + 1, size) * hit
        portion = rng.integers(WHOLE, size=size)
    never, closed = np.zeros(size, np.int64), _windows(shop, calendar)
    if when == "idle":
        return Outages(length, never, portion, closed)
    return Outages(never, length, portion, closed)


def _windows(
    shop: JobShop, calendar: Iterable[tuple[int, int, int]]
) -> Int64[Array, "2 machines windows"]:
    windows: list[list[tuple[int, int]]] = [[] for _ in range(shop.machine_count)]
    for machine, start, end in sorted(calendar):
        if not (0 <= machine < shop.machine_count and 0 <= start < end):
            raise PeiraError(
                f"bad shutdown of machine {machine}, {start} .. {end}; expected a machine in "
                f"0 .. {shop.machine_count - 1} and 0 <= start < end"
            )
        row = windows[machine]
        if row and start <= row[-1][1]:
            start, end = row[-1][0], max(end, row.pop()[1])
        row.append((start, end))
    # A window (0, 0) is empty: it fills up the rows of machines with fewer shutdowns.
    width = max(map(len, windows))
    filled = [row + [(0, 0)] * (width - len(row)) for row in windows]
    return (
        np.array(filled, np.int64).reshape(shop.machine_count, width, 2).transpose(2, 0, 1).copy()
    )


def new_state(
    shop: JobShop, outages: Outages, orders: Int[Array, "machines visits"] | None = None
) -> State:
    """The shop at time 0: every job in the input storage, every machine free and up."""
    jobs, machines, visits = shop.job_count, shop.machine_count, shop.visits
    state = State(
        np.empty(3, np.int64),
        np.empty((6, jobs), np.int64),
        np.empty((4, machines), np.int64),
        np.empty((6, *shop.machines.shape), np.int64),
        np.empty((5, machines, visits), np.int64),
        outages.closed,
    )
    state.jobs[LENGTH] = shop.lengths
    state.operations[MACHINE], state.operations[DURATION] = shop.machines, shop.durations
    state.operations[TAIL] = shop.tails
    state.visits[TURN] = -1 if orders is None else orders
    state.visits[BEFORE], state.visits[MIDWAY] = outages.before, outages.midway
    state.visits[PORTION] = outages.portion
    reset(state)
    return state


@njit(cache=True)
def reset(state):
    """Put a state back to time 0."""
    state.clock[:] = 0
    state.jobs[BEGUN:] = 0
    state.machines[:] = 0
    state.machines[HOLDER] = -1
    state.operations[START:] = -1
    state.visits[DOWN_FROM] = -1


@njit(cache=True, forceinline=True)
def _is_open(state, machine):
    """Whether no known shutdown is on; if one is, note when it ends."""
    now, closed = state.clock[NOW], state.closed
    for window in range(closed.shape[2]):
        if closed[0, machine, window] <= now < closed[1, machine, window]:
            end = closed[1, machine, window]
            state.machines[UP_AT, machine] = max(state.machines[UP_AT, machine], end)
    return state.machines[UP_AT, machine] <= now


@njit(cache=True, forceinline=True)
def _finish(closed, machine, now, busy):
    """When `busy` units of processing from now on are done, with the known shutdowns between."""
    finish = now + busy
    for window in range(closed.shape[2]):
        if now < closed[0, machine, window] < finish:
            finish += closed[1, machine, window] - closed[0, machine, window]
    return finish


@njit(cache=True, forceinline=True)
def _is_up(state, machine):
    """Draw the shutdown before the next job, once, then say whether the idle machine is up."""
    machines = state.machines
    if machines[TESTED, machine] == 0:
        machines[TESTED, machine] = 1
        visit = machines[GIVEN, machine]
        down = state.visits[BEFORE, machine, visit]
        if down > 0:
            state.visits[DOWN_FROM, machine, visit] = state.clock[NOW]
            machines[UP_AT, machine] = state.clock[NOW] + down
            state.clock[SHUTDOWNS] += 1
    return _is_open(state, machine)


@njit(cache=True, forceinline=True)
def leave(state, job):
    """Take a finished job off its machine."""
    operation = state.jobs[BEGUN, job] - 1
    if operation >= 0:
        state.operations[RELEASE, job, operation] = state.clock[NOW]
        state.machines[HOLDER, state.operations[MACHINE, job, operation]] = -1


@njit(cache=True, forceinline=True)
def enter(state, job):
    """Put a job on the machine of its next operation and begin to process it."""
    now, operation = state.clock[NOW], state.jobs[BEGUN, job]
    machine = state.operations[MACHINE, job, operation]
    visit = state.machines[GIVEN, machine]
    busy = state.operations[DURATION, job, operation] + state.visits[MIDWAY, machine, visit]
    state.machines[HOLDER, machine] = job
    state.machines[GIVEN, machine] = visit + 1
    state.machines[TESTED, machine] = 0
    state.jobs[BEGUN, job] = operation + 1
    state.jobs[STATUS, job] = PROCESSING
    state.jobs[LEGAL, job] = 0
    state.jobs[FINISH, job] = _finish(state.closed, machine, now, busy)
    state.operations[START, job, operation] = now


@njit(cache=True, forceinline=True)
def _complete(state):
    """End the operations that are due; return how many jobs are not done."""
    # Arrays are taken out of the tuple before a loop: each access counts references.
    jobs, now = state.jobs, state.clock[NOW]
    remaining = 0
    for job in range(jobs.shape[1]):
        if jobs[STATUS, job] == PROCESSING and jobs[FINISH, job] <= now:
            state.operations[END, job, jobs[BEGUN, job] - 1] = now
            if jobs[BEGUN, job] == jobs[LENGTH, job]:
                leave(state, job)
                jobs[STATUS, job] = DONE
            else:
                jobs[STATUS, job] = BLOCKING
                jobs[SINCE, job] = now
        remaining += jobs[STATUS, job] != DONE
    return remaining


@njit(cache=True, forceinline=True)
def _wanted(state, machine):
    """The out-edge of a machine in the request graph: where the finished job on it has to go."""
    job = state.machines[HOLDER, machine]
    if job < 0 or state.jobs[STATUS, job] != BLOCKING:
        return -1
    target = state.operations[MACHINE, job, state.jobs[BEGUN, job]]
    turn = state.visits[TURN, target, state.machines[GIVEN, target]]
    return target if turn < 0 or turn == job else -1


@njit(cache=True, forceinline=True)
def _rotate(state, machine, longest):
    """Move the jobs of the cycle through `machine` at once, if all its machines are up."""
    length, at = 1, _wanted(state, machine)
    while at != machine:
        length += 1
        at = _wanted(state, at)
    if length > longest:
        return
    ring, up = np.empty(length, np.int64), True
    for place in range(length):
        up &= _is_open(state, at)
        ring[place] = state.machines[HOLDER, at]
        at = _wanted(state, at)
    if not up:
        return
    for job in ring:
        leave(state, job)
    for job in ring:
        enter(state, job)


@njit(cache=True, forceinline=True)
def swap_cycles(state, longest):
    """Find every cycle of the request graph, in which each machine has at most one out-edge."""
    jobs, machines, operations, visits = (
        state.jobs, state.machines, state.operations, state.visits,
    )  # fmt: skip
    seen = np.zeros(machines.shape[1], np.int64)
    for first in range(seen.size):
        at = first
        while at >= 0 and seen[at] == 0:
            seen[at] = first + 1
            job = machines[HOLDER, at]
            if job < 0 or jobs[STATUS, job] != BLOCKING:
                at = -1
                break
            at = operations[MACHINE, job, jobs[BEGUN, job]]
            turn = visits[TURN, at, machines[GIVEN, at]]
            if turn >= 0 and turn != job:
                at = -1
        if at >= 0 and seen[at] == first + 1:
            _rotate(state, at, longest)


@njit(cache=True, forceinline=True)
def mark_legal(state):
    """Mark the jobs whose next machine is free and up; return their number."""
    jobs, machines, operations, visits = (
        state.jobs, state.machines, state.operations, state.visits,
    )  # fmt: skip
    count = 0
    for job in range(jobs.shape[1]):
        jobs[LEGAL, job] = 0
        if jobs[STATUS, job] != WAITING and jobs[STATUS, job] != BLOCKING:
            continue
        target = operations[MACHINE, job, jobs[BEGUN, job]]
        if machines[HOLDER, target] >= 0:
            continue
        turn = visits[TURN, target, machines[GIVEN, target]]
        if (turn < 0 or turn == job) and _is_up(state, target):
            jobs[LEGAL, job] = 1
            count += 1
    return count


@njit(cache=True, forceinline=True)
def _pass_time(state):
    """Go to the next event; False if there is none."""
    jobs, machines, now = state.jobs, state.machines, state.clock[NOW]
    soonest, waiting = np.int64(-1), 0
    for job in range(jobs.shape[1]):
        if jobs[STATUS, job] == PROCESSING:
            if soonest < 0 or jobs[FINISH, job] < soonest:
                soonest = jobs[FINISH, job]
        elif jobs[STATUS, job] != DONE:
            waiting += 1
    for machine in range(machines.shape[1]):
        up = machines[UP_AT, machine]
        if up > now and (soonest < 0 or up < soonest):
            soonest = up
    if soonest < 0:
        return False
    state.clock[WAITED] += waiting * (soonest - now)
    state.clock[NOW] = soonest
    return True


@njit(cache=True)
def advance(state, longest_swap, alert):
    """Let time pass until a job can be moved.

    Returns the number of jobs that can; 0 when all jobs are done; -1 in a deadlock; -2 when
    `alert` is set and an idle machine has just gone down.
    """
    while True:
        shutdowns = state.clock[SHUTDOWNS]
        if _complete(state) == 0:
            return 0
        swap_cycles(state, longest_swap)
        count = mark_legal(state)
        if alert and state.clock[SHUTDOWNS] > shutdowns:
            return -2
        if count > 0:
            return count
        if not _pass_time(state):
            return -1


@njit(cache=True)
def uncontested(state):
    """The first legal job whose machine no other legal job needs; -1 if there is none."""
    jobs, machine = state.jobs, state.operations[MACHINE]
    rivals = np.zeros(state.machines.shape[1], np.int64)
    for job in range(jobs.shape[1]):
        if jobs[LEGAL, job] == 1:
            rivals[machine[job, jobs[BEGUN, job]]] += 1
    for job in range(jobs.shape[1]):
        if jobs[LEGAL, job] == 1 and rivals[machine[job, jobs[BEGUN, job]]] == 1:
            return job
    return -1


@njit(cache=True)
def move(state, job, longest_swap, alert):
    """Carry out one decision and let time pass until the next one; see `advance`."""
    leave(state, job)
    enter(state, job)
    return advance(state, longest_swap, alert)


@njit(cache=True)
def settle(state, count, longest_swap):
    """Take the decisions that leave no choice; see `advance`."""
    while count > 0:
        job = uncontested(state)
        if job < 0:
            return count
        count = move(state, job, longest_swap, False)
    return count


@njit(cache=True, forceinline=True)
def _priority(state, rule, job):
    """Smaller goes first."""
    operation = state.jobs[BEGUN, job]
    if rule == FIFO:
        return state.jobs[SINCE, job]
    if rule == LIFO:
        return -state.jobs[SINCE, job]
    if rule == SPT:
        return state.operations[DURATION, job, operation]
    if rule == LPT:
        return -state.operations[DURATION, job, operation]
    if rule == MTWR:
        return -state.operations[TAIL, job, operation]
    if rule == LTWR:
        return state.operations[TAIL, job, operation]
    if rule == MOR:
        return operation - state.jobs[LENGTH, job]
    if rule == LOR:
        return state.jobs[LENGTH, job] - operation
    if rule == STPT:
        return state.operations[TAIL, job, 0]
    return -state.operations[TAIL, job, 0]


@njit(cache=True, forceinline=True)
def _choose(state, rule, count, dice):
    """The legal job that a rule takes; ties go to the lowest job number."""
    best, lowest, legal = -1, np.int64(0), state.jobs[LEGAL]
    skip = int(dice * count) if rule == RANDOM else 0
    for job in range(legal.size):
        if legal[job] == 0:
            continue
        if rule == RANDOM:
            if skip == 0:
                return job
            skip -= 1
            continue
        value = _priority(state, rule, job)
        if best < 0 or value < lowest:
            best, lowest = job, value
    return best


@njit(cache=True)
def run_rule(state, count, longest_swap, rule, dice):
    """Simulate to the end under one rule; returns 0, or -1 in a deadlock.

    Args:
        count: number of legal jobs, as `advance` has returned it.
        dice: uniform numbers in [0, 1), one for each decision of the rule `random`.
    """
    decision = 0
    while count > 0:
        job = _choose(state, rule, count, dice[decision])
        count = move(state, job, longest_swap, False)
        decision += 1
    return count


class Policy(Protocol):
    """Whatever can pick the next job."""

    def next_action(self, episode: Episode) -> int:
        """One of `episode.legal`."""
        ...


class Episode:
    """A shop under way: ask `legal`, `dispatch` one of them, until `done`.

    Args:
        shop: the instance.
        outages: shutdowns from `draw_outages`; none by default.
        orders: for each machine the jobs in the order in which it must take them, -1 for "any".
        swap: False forbids cycles of two or more jobs to move at once.
        alert: stop with `interrupted` whenever an idle machine goes down, for `change_orders`.

    Raises `Deadlock` when no job can ever move again.
    """

    def __init__(
        self,
        shop: JobShop,
        outages: Outages | None = None,
        orders: Int[Array, "machines visits"] | None = None,
        swap: bool = True,
        alert: bool = False,
    ) -> None:
        self.shop = shop
        self.outages = draw_outages(shop, 0.0) if outages is None else outages
        self.state = new_state(shop, self.outages, orders)
        # A job whose next operation is on the machine it holds is a cycle of one: never a deadlock.
        self._rules = (shop.machine_count if swap else 1, alert)
        self._settle(advance(self.state, *self._rules))

    @property
    def now(self) -> int:
        """Time since the start."""
        return int(self.state.clock[NOW])

    @property
    def waited(self) -> int:
        """Waiting time of all jobs so far: the integral of the number of waiting jobs."""
        return int(self.state.clock[WAITED])

    @property
    def done(self) -> bool:
        """Whether every job is out of the shop."""
        return self.choices == 0

    @property
    def interrupted(self) -> bool:
        """Whether an idle machine has just gone down; only with `alert`."""
        return self.choices == -2

    @property
    def legal(self) -> Int[Array, " legal"]:
        """Numbers of the jobs that can be moved now."""
        return np.flatnonzero(self.state.jobs[LEGAL]) if self.choices > 0 else np.empty(0, np.int64)

    def dispatch(self, job: int) -> None:
        """Move a legal job to its next machine and let time pass until the next decision.

        Raises `PeiraError` if the job cannot be moved now.
        """
        jobs = self.state.jobs
        if self.choices <= 0 or not 0 <= job < jobs.shape[1] or not jobs[LEGAL, job]:
            raise PeiraError(f"job {job} cannot be moved now; legal: {self.legal.tolist()}")
        self._settle(move(self.state, job, *self._rules))

    def dispatch_forced(self) -> None:
        """Take the decisions that leave no choice: no other job can have that machine now."""
        self._settle(settle(self.state, self.choices, self._rules[0]))

    def change_orders(self, orders: Int[Array, "machines visits"]) -> None:
        """Take jobs in other orders from now on, and let time pass until the next decision."""
        self.state.visits[TURN] = orders
        self._settle(advance(self.state, *self._rules))

    def run(self, rule: str, rng: np.random.Generator | None = None) -> None:
        """Go on to the end under a dispatching rule of `RULES`."""
        if rule not in RULES:
            raise PeiraError(f"no dispatching rule {rule!r}; {nearest(rule, RULES)}")
        dice = np.zeros(self.shop.operation_count)
        if rule == "random":
            dice = (rng or np.random.default_rng(0)).random(self.shop.operation_count)
        self._settle(run_rule(self.state, self.choices, self._rules[0], RULES.index(rule), dice))

    def follow(self, policy: Policy) -> None:
        """Go on to the end under a policy."""
        self.dispatch_forced()
        while not self.done:
            self.dispatch(policy.next_action(self))
            self.dispatch_forced()

    def _settle(self, choices: int) -> None:
        self.choices = choices
        if choices == -1:
            status = self.state.jobs[STATUS]
            stuck = np.flatnonzero((status == WAITING) | (status == BLOCKING)).tolist()
            raise Deadlock(
                f"deadlock at time {self.now}: jobs {stuck} wait for each other; "
                "allow swaps, or give machine orders that can be carried out"
            )


def simulate_shop(
    shop: JobShop,
    rule: str | Policy = "FIFO",
    p: float = 0.0,
    seed: int | Sequence[int] = 0,
    when: When = "idle",
    swap: bool = True,
    calendar: Iterable[tuple[int, int, int]] = (),
) -> Schedule:
    """Schedule a shop with a dispatching rule or a policy.

    Args:
        shop: the instance.
        rule: one of `RULES` (ties go to the lowest job number), or a policy.
        p: probability of a shutdown, each time a machine is about to take a job.
        seed: of the shutdowns, and of the rule `random`.
        when: `idle` machines go down before they take a job, `running` ones while they process it.
        swap: False forbids jobs to change places.
        calendar: shutdowns at known times, as (machine, start, end).

    Raises `Deadlock`, and `PeiraError` for an unknown rule or `p` outside [0, 1].
    """
    from peira.control.isbjssp.schedule import Schedule

    episode = Episode(shop, draw_outages(shop, p, seed, when, calendar), swap=swap)
    if isinstance(rule, str):
        episode.run(rule, np.random.default_rng(seed))
    else:
        episode.follow(rule)
    return Schedule.of(episode)


def replay_orders(
    shop: JobShop,
    orders: Int[Array, "machines visits"],
    p: float = 0.0,
    seed: int | Sequence[int] = 0,
    when: When = "idle",
) -> Schedule:
    """Start every operation as early as the given machine orders allow.

    Args:
        orders: for each machine the jobs in the order in which it takes them, -1 at the end.

    Raises `Deadlock` if the orders cannot be carried out.
    """
    from peira.control.isbjssp.schedule import Schedule

    episode = Episode(shop, draw_outages(shop, p, seed, when), orders)
    episode.run("FIFO")
    return Schedule.of(episode)


def best_of_random(
    shop: JobShop, trials: int, p: float = 0.0, seed: int | Sequence[int] = 0, swap: bool = True
) -> int:
    """Smallest makespan of `trials` runs of the rule `random` on the same shutdowns.

    Raises `Deadlock` if every run ends in one, which can only happen without swaps.
    """
    state = new_state(shop, draw_outages(shop, p, seed))
    longest_swap = shop.machine_count if swap else 1
    rng, best = np.random.default_rng(seed), -1
    for _ in range(trials):
        reset(state)
        dice = rng.random(shop.operation_count)
        end = run_rule(state, advance(state, longest_swap, False), longest_swap, RANDOM, dice)
        if end == 0 and (best < 0 or state.clock[NOW] < best):
            best = int(state.clock[NOW])
    if best < 0:
        raise Deadlock(f"all {trials} random runs ended in a deadlock; allow swaps")
    return best
