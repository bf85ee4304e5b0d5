"""The dynamic disjunctive graph of a shop under way, and batches of such graphs.

Nodes are the operations that still matter: those not begun, in process, or ended and blocking their
machine. Arcs join consecutive operations of a job, in both directions (conjunctive), and all
operations of one machine (disjunctive). When a job leaves a machine its node goes, with all its
arcs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numba import njit
from torch import Tensor

from peira.control.isbjssp.simulator import (
    BEGUN,
    BLOCKING,
    DURATION,
    END,
    GIVEN,
    LEGAL,
    LENGTH,
    MACHINE,
    MIDWAY,
    NOW,
    PORTION,
    PROCESSING,
    SINCE,
    START,
    STATUS,
    TAIL,
    UP_AT,
    WAITING,
    WHOLE,
    Episode,
)

if TYPE_CHECKING:
    from torch_geometric.data import Data

FEATURES = (
    "not begun",
    "in process",
    "ended, blocking",
    "ended, gone",
    "duration / job's work",
    "job's work up to and with it / job's work",
    "operations from it on / machines",
    "waiting time / job's work",
    "remaining processing / job's work, -1 if not in process",
    "machine is down",
    "blocked time / job's work",
    "duration / longest duration of the shop",
)


class Scene(Protocol):
    """What training and dispatching ask of one state, in any form that a network reads."""

    @property
    def action(self) -> Int[np.ndarray, " actions"]:
        """The nodes that can be moved now."""
        ...

    @property
    def action_job(self) -> Int[np.ndarray, " actions"]:
        """Their jobs."""
        ...


class Scenes(Protocol):
    """Several states as one; actions of one state follow each other."""

    @property
    def action(self) -> Int[Tensor, " actions"]:
        """The nodes that can be moved now."""
        ...

    @property
    def action_graph(self) -> Int[Tensor, " actions"]:
        """The state that an action belongs to."""
        ...

    @property
    def graph_count(self) -> int:
        """Number of states."""
        ...

    def to(self, device: torch.device | str) -> Scenes:
        """The same on another device."""
        ...


class Graph(NamedTuple):
    """One state. Nodes of a job are consecutive, in the job's order.

    `action` lists the nodes that can be moved now, `action_job` their jobs.
    """

    x: Float[np.ndarray, "nodes features"]
    job: Int[np.ndarray, " nodes"]
    operation: Int[np.ndarray, " nodes"]
    machine: Int[np.ndarray, " nodes"]
    action: Int[np.ndarray, " actions"]
    action_job: Int[np.ndarray, " actions"]
    machine_count: int


class Batch(NamedTuple):
    """Several graphs as one: the block-diagonal adjacency in three pieces.

    `follows` marks nodes whose row before is their job's previous operation (conjunctive arcs);
    `machine` numbers the machines of all graphs (disjunctive arcs: the nodes that share one);
    `graph` says which graph a node is of. `action_graph` is sorted.
    """

    x: Float[Tensor, "nodes features"]
    follows: Bool[Tensor, " nodes"]
    machine: Int[Tensor, " nodes"]
    graph: Int[Tensor, " nodes"]
    action: Int[Tensor, " actions"]
    action_graph: Int[Tensor, " actions"]
    machine_count: int
    graph_count: int

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(*(v.to(device) if isinstance(v, Tensor) else v for v in self))


@njit(cache=True)
def _suspended(state, job):
    """Whether the machine stands still under the job in process, and the work that remains."""
    operation = state.jobs[BEGUN, job] - 1
    machine, now = state.operations[MACHINE, job, operation], state.clock[NOW]
    visit = state.machines[GIVEN, machine] - 1
    duration = state.operations[DURATION, job, operation]
    begun = state.operations[START, job, operation]
    worked, down = now - begun, False
    for window in range(state.closed.shape[2]):
        start, end = state.closed[0, machine, window], state.closed[1, machine, window]
        if begun < start <= now:
            worked -= min(now, end) - start
            down |= now < end
    after = state.visits[PORTION, machine, visit] * duration // WHOLE
    length = state.visits[MIDWAY, machine, visit]
    if length > 0 and worked >= after:
        lost = min(worked - after, length)
        down |= lost < length
        worked -= lost
    return down, max(duration - worked, 0)


@njit(cache=True)
def standing(state):
    """Which machines are down, and the remaining work of the jobs in process."""
    jobs, machines, closed, now = state.jobs, state.machines, state.closed, state.clock[NOW]
    down = np.zeros(machines.shape[1], np.bool_)
    for machine in range(down.size):
        down[machine] = machines[UP_AT, machine] > now
        for window in range(closed.shape[2]):
            down[machine] |= closed[0, machine, window] <= now < closed[1, machine, window]
    remaining = np.zeros(jobs.shape[1], np.int64)
    for job in range(remaining.size):
        if jobs[STATUS, job] == PROCESSING:
            stands, remaining[job] = _suspended(state, job)
            down[state.operations[MACHINE, job, jobs[BEGUN, job] - 1]] |= stands
    return down, remaining


@njit(cache=True)
def completion_bounds(state):
    """No operation can end sooner, for all that is known now; without machine conflicts to come.

    Of an operation that is over, the time it ended; of one in process, now plus the work that
    remains; of one not begun, its duration after the job's previous one, from now at the earliest.
    Shape (jobs, operations); -1 where a job has fewer operations.
    """
    jobs, operations, now = state.jobs, state.operations, state.clock[NOW]
    _, remaining = standing(state)
    bounds = np.full(operations.shape[1:], -1, np.int64)
    for job in range(jobs.shape[1]):
        end, begun = now, jobs[BEGUN, job]
        for operation in range(jobs[LENGTH, job]):
            if operation >= begun:
                end = max(end, now) + operations[DURATION, job, operation]
            elif operation == begun - 1 and jobs[STATUS, job] == PROCESSING:
                end = now + remaining[job]
            else:
                end = operations[END, job, operation]
            bounds[job, operation] = end
    return bounds


@njit(cache=True)
def _write(state, static, x, place, action):
    """Fill the rows of one graph (place: job, operation, machine); returns nodes and actions."""
    jobs, operations, now = state.jobs, state.operations, state.clock[NOW]
    longest, machines = max(operations[DURATION].max(), 1), state.machines.shape[1]
    down, remaining = standing(state)
    rows = actions = 0
    for job in range(jobs.shape[1]):
        status, begun, length = jobs[STATUS, job], jobs[BEGUN, job], jobs[LENGTH, job]
        work, waited = max(operations[TAIL, job, 0], 1), now - jobs[SINCE, job]
        held = status in (PROCESSING, BLOCKING)
        asks = status in (WAITING, BLOCKING)
        for operation in range(0 if static else begun - held, length):
            machine = operations[MACHINE, job, operation]
            tail, duration = operations[TAIL, job, operation], operations[DURATION, job, operation]
            here, row = held and operation == begun - 1, x[rows]
            row[:] = 0.0
            row[0] = operation >= begun
            row[1] = here and status == PROCESSING
            row[2] = here and status == BLOCKING
            row[3] = operation < begun and not here
            row[4] = duration / work
            row[5] = (operations[TAIL, job, 0] - tail + duration) / work
            row[6] = (length - operation) / machines
            row[7] = waited / work if asks and operation == begun else 0.0
            row[8] = remaining[job] / work if here and status == PROCESSING else -1.0
            row[9] = down[machine]
            row[10] = waited / work if here and status == BLOCKING else 0.0
            row[11] = duration / longest
            place[0, rows], place[1, rows], place[2, rows] = job, operation, machine
            if jobs[LEGAL, job] == 1 and operation == begun:
                action[actions] = rows
                actions += 1
            rows += 1
    return rows, actions


def observe(episode: Episode, static: bool = False) -> Graph:
    """The graph of the present state.

    Args:
        static: keep the nodes of operations whose job has left (the ordinary disjunctive graph).
    """
    shop = episode.shop
    size = shop.operation_count
    x, place = np.empty((size, len(FEATURES)), np.float32), np.empty((3, size), np.int64)
    action = np.empty(shop.job_count, np.int64)
    rows, actions = _write(episode.state, static, x, place, action)
    action = action[:actions] if not episode.done else action[:0]
    job, operation, machine = place[:, :rows]
    return Graph(x[:rows], job, operation, machine, action, job[action], shop.machine_count)


def collate(graphs: Sequence[Graph]) -> Batch:
    """Join graphs of any sizes into one batch."""
    sizes = [len(graph.x) for graph in graphs]
    counts = [len(graph.action) for graph in graphs]
    machines = [graph.machine_count for graph in graphs]
    first_node, first_machine = offsets(sizes), offsets(machines)
    numbers = np.arange(len(graphs))
    graph = np.repeat(numbers, sizes)
    job = np.concatenate([graph.job for graph in graphs])
    follows = np.zeros(len(job), np.bool_)
    follows[1:] = (job[1:] == job[:-1]) & (graph[1:] == graph[:-1])
    machine = np.concatenate([graph.machine for graph in graphs]) + first_machine[graph]
    action = np.concatenate([graph.action for graph in graphs])
    action += np.repeat(first_node, counts)
    return Batch(
        x=torch.from_numpy(np.concatenate([graph.x for graph in graphs])),
        follows=torch.from_numpy(follows),
        machine=torch.from_numpy(machine),
        graph=torch.from_numpy(graph),
        action=torch.from_numpy(action),
        action_graph=torch.from_numpy(np.repeat(numbers, counts)),
        machine_count=sum(machines),
        graph_count=len(graphs),
    )


def offsets(sizes: Sequence[int]) -> Int[np.ndarray, " graphs"]:
    """Row at which each of several blocks begins when they are stacked."""
    return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)


def to_pyg(graph: Graph) -> Data:
    """The graph as PyTorch Geometric `Data`: x, edge_index and edge_type.

    Types of arcs: 0 from the job's previous operation, 1 from its next one, 2 between operations of
    one machine. `action` lists the nodes that can be moved.
    """
    from torch_geometric.data import Data

    nodes = np.arange(len(graph.job))
    ahead = nodes[1:][graph.job[1:] == graph.job[:-1]]
    same = graph.machine[:, None] == graph.machine[None, :]
    np.fill_diagonal(same, False)
    one, other = np.nonzero(same)
    source = np.concatenate([ahead - 1, ahead, one])
    target = np.concatenate([ahead, ahead - 1, other])
    kind = np.repeat([0, 1, 2], [len(ahead), len(ahead), len(one)])
    return Data(
        x=torch.from_numpy(graph.x),
        edge_index=torch.from_numpy(np.stack([source, target])),
        edge_type=torch.from_numpy(kind),
        action=torch.from_numpy(graph.action),
    )
