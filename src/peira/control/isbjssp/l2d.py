"""A learned rival: "Learning to dispatch" (L2D), read from the graph of the schedule so far.

Zhang, Song, Cao, Zhang, Tan, Xu (2020), "Learning to Dispatch for Job Shop Scheduling via Deep
Reinforcement Learning", NeurIPS. Nodes are all operations, also those that are over. Arcs say what
comes before: the job's previous operation and, once an operation has begun, the one its machine
took before it. Undirected disjunctive arcs are left out, which is the paper's own choice.

What is adapted to shops with a clock and without buffers: bounds count from now on (the paper's
shop has no clock), they are divided by the mean load of a machine instead of 1000 (so that the unit
of time does not matter), and layer normalisation takes the place of batch normalisation (which has
nothing to average over when one shop asks at a time).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numba import njit
from torch import Tensor, nn

from peira.control.isbjssp.graph import completion_bounds, offsets
from peira.control.isbjssp.policy import DispatchPolicy, candidates, mean_by
from peira.control.isbjssp.simulator import (
    BEGUN,
    DURATION,
    LEGAL,
    LENGTH,
    MACHINE,
    RELEASE,
    START,
    Episode,
)


class ScheduleGraph(NamedTuple):
    """One state. Nodes of a job are consecutive, in the job's order.

    `x` has the lower bound of the completion time over a machine's mean load, and 1 for operations
    that have begun. `before` has the node of the job's previous operation and that of the machine's
    previous one, -1 for none. `action` and `action_job` are as in `Graph`.
    """

    x: Float[np.ndarray, "nodes 2"]
    before: Int[np.ndarray, "2 nodes"]
    action: Int[np.ndarray, " actions"]
    action_job: Int[np.ndarray, " actions"]


class ScheduleBatch(NamedTuple):
    """Several graphs as one; `before` is the number of nodes where there is no node before."""

    x: Float[Tensor, "nodes 2"]
    before: Int[Tensor, "2 nodes"]
    graph: Int[Tensor, " nodes"]
    action: Int[Tensor, " actions"]
    action_graph: Int[Tensor, " actions"]
    graph_count: int

    def to(self, device: torch.device | str) -> ScheduleBatch:
        """The same batch on another device."""
        return ScheduleBatch(*(v.to(device) if isinstance(v, Tensor) else v for v in self))


@njit(cache=True)
def _write(state, x, before, action):
    """Fill the rows of one graph; returns the number of actions."""
    jobs, operations = state.jobs, state.operations
    bounds = completion_bounds(state)
    load = max(operations[DURATION].sum(), 1) / state.machines.shape[1]
    # When an operation came to its machine; an operation without length comes before the one that
    # begins at the same instant.
    came, machine = np.full(x.shape[0], -1, np.int64), np.empty(x.shape[0], np.int64)
    row = actions = 0
    for job in range(jobs.shape[1]):
        begun = jobs[BEGUN, job]
        for operation in range(jobs[LENGTH, job]):
            x[row, 0] = bounds[job, operation] / load
            x[row, 1] = operation < begun
            before[0, row] = row - 1 if operation > 0 else -1
            before[1, row] = -1
            machine[row] = operations[MACHINE, job, operation]
            start = operations[START, job, operation]
            if operation < begun:
                came[row] = 2 * start + (operations[RELEASE, job, operation] != start)
            if jobs[LEGAL, job] == 1 and operation == begun:
                action[actions] = row
                actions += 1
            row += 1
    latest = np.full(state.machines.shape[1], -1, np.int64)
    for row in np.argsort(came):
        if came[row] >= 0:
            previous = latest[machine[row]]
            # A job that stays on its machine has one arc, not two.
            before[1, row] = previous if previous != before[0, row] else -1
            latest[machine[row]] = row
    return actions


class L2DNetwork(DispatchPolicy):
    """Graph isomorphism network over the schedule so far, an actor and a critic.

    h_v <- ReLU(norm(MLP(h_v + sum of h over the nodes before v))) (eq. 4 with epsilon 0); the mean
    over the nodes stands for the state; the actor scores candidate || state, the critic the state.

    Args:
        hidden: channels of the node embeddings (paper: 64).
        rounds: layers of messages (paper: 2).
    """

    def __init__(self, hidden: int = 64, rounds: int = 2) -> None:
        super().__init__()
        self.settings = {"hidden": hidden, "rounds": rounds}
        widths = [2] + [hidden] * rounds
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU(),
                nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.ReLU(),
            )
            for width in widths[:-1]
        )  # fmt: skip
        self.actor = nn.Sequential(nn.Linear(2 * hidden, 32), nn.Tanh(), nn.Linear(32, 1))
        self.critic = nn.Sequential(nn.Linear(hidden, 32), nn.Tanh(), nn.Linear(32, 1))

    def observe(self, episode: Episode) -> ScheduleGraph:
        """Bounds, flags and arcs of all operations."""
        nodes = episode.shop.operation_count
        x, before = np.empty((nodes, 2), np.float32), np.empty((2, nodes), np.int64)
        action = np.empty(episode.shop.job_count, np.int64)
        action = action[: _write(episode.state, x, before, action)]
        return ScheduleGraph(x, before, action, np.flatnonzero(episode.state.jobs[LEGAL]))

    def collate(self, scenes: Sequence[ScheduleGraph]) -> ScheduleBatch:
        """Join graphs of any sizes."""
        sizes = [len(scene.x) for scene in scenes]
        counts = [len(scene.action) for scene in scenes]
        first, numbers = offsets(sizes), np.arange(len(scenes))
        graph, action_graph = np.repeat(numbers, sizes), np.repeat(numbers, counts)
        before = np.concatenate([scene.before for scene in scenes], 1)
        before = np.where(before < 0, len(graph), before + first[graph])
        action = np.concatenate([scene.action for scene in scenes]) + first[action_graph]
        return ScheduleBatch(
            x=torch.from_numpy(np.concatenate([scene.x for scene in scenes])),
            before=torch.from_numpy(before),
            graph=torch.from_numpy(graph),
            action=torch.from_numpy(action),
            action_graph=torch.from_numpy(action_graph),
            graph_count=len(scenes),
        )

    def forward(
        self, batch: ScheduleBatch
    ) -> tuple[Float[Tensor, " actions"], Float[Tensor, " graphs"]]:
        """Unnormalised log-probability of every action, and the value of every graph."""
        h = batch.x
        for layer in self.layers:
            # The row of zeros is what nodes without another before them receive.
            padded = torch.cat([h, h.new_zeros(1, h.shape[1])])
            job, machine = (padded.index_select(0, before) for before in batch.before)
            h = layer(h + job + machine)
        mean = mean_by(h, batch.graph, batch.graph_count)
        return self.actor(candidates(h, mean, batch))[:, 0], self.critic(mean)[:, 0]
