"""Joint structure by temporal walks drawn anew for every pair (CAW, Wang et al. 2021)."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from peira.data.temporal import TemporalEdges

STEPS = 2


@numba.njit(cache=True)
def _sample(neighbour, time, weight, start, filled, roots, now, uniform, rate, node_out, time_out):
    """Walks back in time; an older event is drawn in proportion to exp(rate * its time)."""
    for r in range(len(roots)):
        for w in range(node_out.shape[1]):
            node, t = roots[r], now[r]
            node_out[r, w, 0], time_out[r, w, 0] = node, t
            for step in range(node_out.shape[2] - 1):
                low = start[node]
                high = low + np.searchsorted(time[low : low + filled[node]], t)
                if node == 0 or high == low:
                    node_out[r, w, step + 1 :] = 0
                    time_out[r, w, step + 1 :] = 0.0
                    break
                if rate > 0:
                    target = uniform[r, w, step] * weight[high - 1]
                    at = low + np.searchsorted(weight[low:high], target, side="right")
                    at = min(at, high - 1)
                else:
                    at = low + min(int(uniform[r, w, step] * (high - low)), high - low - 1)
                node, t = neighbour[at], time[at]
                node_out[r, w, step + 1], time_out[r, w, step + 1] = node, t


@numba.njit(cache=True)
def _count(walks_u, walks_v, counts):
    """Relative identity: how often each walked node stands at each step of u's and v's walks."""
    pairs, walks, length = walks_u.shape
    places = 4
    while places < 4 * walks * length:
        places *= 2
    key = np.zeros(places, np.int64)
    stamp = np.full(places, -1, np.int64)
    table = np.zeros((places, 2 * length), np.float32)
    for p in range(pairs):
        for write in range(2):
            for side in range(2):
                walk = walks_u if side == 0 else walks_v
                for w in range(walks):
                    for step in range(length):
                        node = walk[p, w, step]
                        if node == 0:
                            continue
                        h = (node * 2654435761 >> 7) & (places - 1)
                        while stamp[h] == p and key[h] != node:
                            h = (h + 1) & (places - 1)
                        if stamp[h] != p:
                            stamp[h], key[h] = p, node
                            table[h] = 0
                        if write:
                            counts[p, side, w, step] = table[h]
                        else:
                            table[h, side * length + step] += 1


class WalkNetwork(nn.Module):
    """Causal anonymous walks: what NAT's caches spare.

    For every pair `walks` temporal walks of two steps start at each end; nodes are named by how
    often they stand at each step of both ends' walks; an RNN reads each walk, the mean over walks
    goes through an MLP. Sampling and naming are compiled here; the official sampler is Python.

    Args:
        edges: the stream that it will be shown.
        width: of codes and of the RNN.
        walks: walks per node.
        rate: preference for recent events, per unit of time; 0 draws them uniformly.
        time_unit: what waiting times are divided by.
    """

    def __init__(
        self,
        edges: TemporalEdges,
        *,
        width: int = 72,
        walks: int = 32,
        rate: float = 0.0,
        time_unit: float = 1.0,
    ) -> None:
        super().__init__()
        ends = np.concatenate([edges.src, edges.dst]) + 1
        degree = np.bincount(ends, minlength=edges.num_nodes + 1)
        self.start = np.concatenate([[0], degree.cumsum()]).astype(np.int64)
        self.walks, self.rate, self.time_unit = walks, rate, time_unit
        self.origin = float(edges.t[0])
        self.name = nn.Sequential(nn.Linear(STEPS + 1, width), nn.ReLU(), nn.Linear(width, width))
        self.frequency = nn.Parameter(10 ** -torch.linspace(0, 9, width))
        self.rnn = nn.GRU(2 * width, width // 2, batch_first=True, bidirectional=True)
        self.score = nn.Sequential(
            nn.Linear(2 * (width // 2), width), nn.ReLU(), nn.Linear(width, 1)
        )
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        size = int(self.start[-1])
        self.neighbour = np.zeros(size, np.int64)
        self.time, self.weight = np.zeros(size), np.zeros(size)
        self.filled = np.zeros(len(self.start) - 1, np.int64)
        self.draws = np.random.default_rng(0)

    def get_extra_state(self) -> dict[str, Any]:
        """The stream so far, and where the draws stand."""
        arrays = {
            name: getattr(self, name).copy() for name in ("neighbour", "time", "weight", "filled")
        }
        return {"arrays": arrays, "draws": self.draws.bit_generator.state}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put back what `get_extra_state` returned."""
        for name, value in state["arrays"].items():
            setattr(self, name, value.copy())
        self.draws.bit_generator.state = state["draws"]

    def sample(
        self, roots: Int[np.ndarray, " roots"], now: Float[np.ndarray, " roots"]
    ) -> tuple[Int[np.ndarray, "roots walks steps"], Float[np.ndarray, "roots walks steps"]]:
        """Nodes and times of the walks from each root; 0 after a walk's end."""
        shape = (len(roots), self.walks, STEPS + 1)
        nodes, times = np.empty(shape, np.int64), np.empty(shape)
        uniform = self.draws.random((len(roots), self.walks, STEPS))
        _sample(
            self.neighbour, self.time, self.weight, self.start, self.filled, roots, now, uniform,
            self.rate, nodes, times,
        )  # fmt: skip
        return nodes, times

    def forward(
        self,
        src: Int[Tensor, " events"],
        candidates: Int[Tensor, "events options"],
        t: Float[Tensor, " events"],
    ) -> tuple[Float[Tensor, "events options"], None]:
        """Logits of each source with its candidates."""
        events, options = candidates.shape
        roots = torch.cat([src, candidates.flatten()]).cpu().numpy()
        now = torch.cat([t, t.repeat_interleave(options)]).cpu().numpy()
        nodes, times = self.sample(roots, now)
        u = np.repeat(np.arange(events), options)
        v = events + np.arange(events * options)
        counts = np.zeros((len(u), 2, self.walks, STEPS + 1, 2 * (STEPS + 1)), np.float32)
        _count(nodes[u], nodes[v], counts)
        ago = (now[:, None, None] - times) / self.time_unit
        device = self.frequency.device
        waited = torch.from_numpy(np.stack([ago[u], ago[v]], 1)).float().to(device)
        present = torch.from_numpy(np.stack([nodes[u], nodes[v]], 1) > 0).to(device)
        x = torch.from_numpy(counts).to(device) / self.walks
        name = self.name(x[..., : STEPS + 1]) + self.name(x[..., STEPS + 1 :])
        step = torch.cat([name, torch.cos(waited[..., None] * self.frequency)], -1)
        step = (step * present[..., None]).flatten(0, 2)
        _, last = self.rnn(step)
        walk = last.transpose(0, 1).reshape(len(u), 2 * self.walks, -1)
        return self.score(walk.mean(1)).view(events, options), None

    @torch.no_grad()
    def write(
        self,
        src: Int[Tensor, " events"],
        dst: Int[Tensor, " events"],
        t: Float[Tensor, " events"],
        edge: Int[Tensor, " events"],
        read: Any = None,
    ) -> None:
        """Append events to both ends' lists."""
        _append(
            self.neighbour, self.time, self.weight, self.start, self.filled,
            src.cpu().numpy(), dst.cpu().numpy(), t.cpu().numpy(), self.rate, self.origin,
        )  # fmt: skip


@numba.njit(cache=True)
def _append(neighbour, time, weight, start, filled, src, dst, t, rate, origin):
    for i in range(len(src)):
        for side in range(2):
            a, b = (src[i], dst[i]) if side == 0 else (dst[i], src[i])
            at = start[a] + filled[a]
            neighbour[at], time[at] = b, t[i]
            before = weight[at - 1] if filled[a] else 0.0
            weight[at] = before + np.exp(rate * (t[i] - origin))
            filled[a] += 1
