"""What nodes remember of a stream: all of their events, or the last few."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from peira.data.temporal import TemporalEdges


class Recent(nn.Module):
    """The last `links` events of each node; part of `state_dict`.

    Args:
        nodes: number of ids, 0 included.
        links: how many events a node keeps.
    """

    def __init__(self, nodes: int, links: int) -> None:
        super().__init__()
        self.register_buffer("partner", torch.zeros(nodes, links, dtype=torch.int64))
        self.register_buffer("edge", torch.zeros(nodes, links, dtype=torch.int64))
        self.register_buffer("t", torch.zeros(nodes, links, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(nodes, dtype=torch.int64))

    def reset(self) -> None:
        """Forget the stream."""
        for part in self.buffers():
            part.zero_()

    def newest(
        self, nodes: Int[Tensor, " n"]
    ) -> tuple[Int[Tensor, "n links"], Int[Tensor, "n links"], Float[Tensor, "n links"]]:
        """Partner, row of the features and time of each node's events, newest first; 0 for none."""
        links = self.partner.shape[1]
        back = torch.arange(1, links + 1, device=nodes.device)
        place = (self.count[nodes][:, None] - back) % links
        nodes = nodes[:, None]
        return self.partner[nodes, place], self.edge[nodes, place], self.t[nodes, place]

    @torch.no_grad()
    def append(
        self,
        src: Int[Tensor, " events"],
        dst: Int[Tensor, " events"],
        t: Float[Tensor, " events"],
        edge: Int[Tensor, " events"],
    ) -> None:
        """Take in events, in order of time, at both ends."""
        links = self.partner.shape[1]
        ends, others = torch.stack([src, dst], 1).flatten(), torch.stack([dst, src], 1).flatten()
        order = ends.argsort(stable=True)
        owner = ends[order]
        first: Bool[Tensor, " ends"] = torch.ones_like(owner, dtype=torch.bool)
        first[1:] = owner[1:] != owner[:-1]
        begins = first.nonzero()[:, 0]
        sizes = torch.diff(begins, append=begins.new_tensor([len(owner)]))
        position = torch.arange(len(owner), device=owner.device) - begins.repeat_interleave(sizes)
        # A batch that overfills a ring leaves its last events only.
        kept = position >= (sizes - links).repeat_interleave(sizes)
        at = owner[kept], ((self.count[owner] + position) % links)[kept]
        event = (order // 2)[kept]
        self.partner[at], self.edge[at] = others[order[kept]], edge[event]
        self.t[at] = t.double()[event]
        self.count[owner[begins]] += sizes


class History:
    """All events of each node so far, oldest first, to draw from those before some time.

    Args:
        edges: the stream that will be shown; room is made for its events.
        rate: an event is drawn in proportion to exp(rate * its time); 0 draws uniformly.
    """

    def __init__(self, edges: TemporalEdges, rate: float = 0.0) -> None:
        ends = np.concatenate([edges.src, edges.dst]) + 1
        degree = np.bincount(ends, minlength=edges.num_nodes + 1)
        self.start = np.concatenate([[0], degree.cumsum()]).astype(np.int64)
        self.rate, self.origin = rate, float(edges.t[0])
        # Seeded by torch, as the weights of the network that draws are.
        self.draws = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        self.reset()

    def reset(self) -> None:
        """Forget the stream; draws go on, so that an epoch does not repeat those of the last."""
        size = int(self.start[-1])
        self.neighbour, self.edge = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.time, self.weight = np.zeros(size), np.zeros(size)
        self.filled = np.zeros(len(self.start) - 1, np.int64)

    def state(self) -> dict[str, Any]:
        """The stream so far, and where the draws stand."""
        arrays = {name: getattr(self, name).copy() for name in self._arrays}
        return {"arrays": arrays, "draws": self.draws.bit_generator.state}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        for name, value in state["arrays"].items():
            setattr(self, name, value.copy())
        self.draws.bit_generator.state = state["draws"]

    _arrays = ("neighbour", "edge", "time", "weight", "filled")

    def draw(
        self, roots: Int[np.ndarray, "*shape"], now: Float[np.ndarray, "*shape"]
    ) -> tuple[Int[np.ndarray, "*shape"], Int[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
        """Neighbour, row of the features and time of one event of each root, before its `now`.

        All three are 0 where there is none, and for root 0.
        """
        found = [np.zeros(roots.shape, kind) for kind in (np.int64, np.int64, np.float64)]
        _draw(
            self.neighbour, self.edge, self.time, self.weight, self.start, self.filled,
            roots.ravel(), now.ravel(), self.draws.random(roots.size), self.rate > 0,
            *(part.reshape(-1) for part in found),
        )  # fmt: skip
        return tuple(found)

    def append(
        self,
        src: Int[Tensor, " events"],
        dst: Int[Tensor, " events"],
        t: Float[Tensor, " events"],
        edge: Int[Tensor, " events"],
    ) -> None:
        """Take in events, in order of time, at both ends."""
        _append(
            self.neighbour, self.edge, self.time, self.weight, self.start, self.filled,
            *(part.cpu().numpy() for part in (src, dst, t, edge)), self.rate, self.origin,
        )  # fmt: skip


class HistoryNetwork(nn.Module):
    """A network whose only state is the stream that it was shown; subclasses set `history`."""

    history: History

    def reset(self) -> None:
        """Forget the stream."""
        self.history.reset()

    def get_extra_state(self) -> dict[str, Any]:
        """The stream so far."""
        return self.history.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put back what `get_extra_state` returned."""
        self.history.restore(state)

    @torch.no_grad()
    def write(
        self,
        src: Int[Tensor, " events"],
        dst: Int[Tensor, " events"],
        t: Float[Tensor, " events"],
        edge: Int[Tensor, " events"],
        read: Any = None,
    ) -> None:
        """Append events to both ends' histories."""
        self.history.append(src, dst, t, edge)


@numba.njit(cache=True)
def _draw(
    neighbour, edge, time, weight, start, filled, roots, now, uniform, weighted,
    to_neighbour, to_edge, to_time,
):  # fmt: skip
    for i in range(len(roots)):
        low = start[roots[i]]
        high = low + np.searchsorted(time[low : low + filled[roots[i]]], now[i])
        if roots[i] == 0 or high == low:
            continue
        if weighted:
            target = uniform[i] * weight[high - 1]
            at = low + np.searchsorted(weight[low:high], target, side="right")
        else:
            at = low + int(uniform[i] * (high - low))
        at = min(at, high - 1)
        to_neighbour[i], to_edge[i], to_time[i] = neighbour[at], edge[at], time[at]


@numba.njit(cache=True)
def _append(neighbour, edge, time, weight, start, filled, src, dst, t, row, rate, origin):
    for i in range(len(src)):
        for side in range(2):
            a, b = (src[i], dst[i]) if side == 0 else (dst[i], src[i])
            at = start[a] + filled[a]
            neighbour[at], edge[at], time[at] = b, row[i], t[i]
            before = weight[at - 1] if filled[a] else 0.0
            weight[at] = before + np.exp(rate * (t[i] - origin))
            filled[a] += 1
