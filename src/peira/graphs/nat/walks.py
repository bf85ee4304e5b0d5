"""Causal anonymous walks: joint structure by walks drawn anew for every pair (Wang et al. 2021)."""

from __future__ import annotations

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from peira.data.temporal import TemporalEdges
from peira.graphs.nat.attention import padded
from peira.graphs.nat.history import History, HistoryNetwork

STEPS = 2


@numba.njit(cache=True)
def _name(walks_u, walks_v, names):
    """Relative identity: how often each walked node stands at each step of u's and v's walks.

    Fills `names` (pairs, 2 ends of the walk, walks, steps, 2 ends that count) with rows of the
    returned table of distinct counts per step; row 0 is all zeros.
    """
    pairs, walks, length = walks_u.shape
    places = 4
    while places < 4 * walks * length:
        places *= 2
    key = np.zeros(places, np.int64)
    stamp = np.full(places, -1, np.int64)
    table = np.zeros((places, 2 * length), np.int64)
    row_of = np.full((walks + 1) ** length, -1, np.int64)
    row_of[0] = 0
    distinct = np.zeros((len(row_of), length), np.float32)
    rows = 1
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
                        if not write:
                            table[h, side * length + step] += 1
                            continue
                        for end in range(2):
                            code = 0
                            for i in range(length):
                                code = code * (walks + 1) + table[h, end * length + i]
                            if row_of[code] < 0:
                                row_of[code] = rows
                                for i in range(length):
                                    distinct[rows, i] = table[h, end * length + i]
                                rows += 1
                            names[p, side, w, step, end] = row_of[code]
    return distinct[:rows]


class WalkNetwork(HistoryNetwork):
    """CAW-N-mean: what NAT's caches spare.

    For every pair `walks` temporal walks of two steps start at each end; nodes are named by how
    often they stand at each step of both ends' walks, f(counts of u) + f(counts of v); an RNN reads
    each walk with its time codes and event features, the mean over walks goes through an MLP.
    Sampling and naming are compiled here; the official sampler is Python.

    Args:
        edges: the stream that it will be shown.
        width: of codes and of the RNN.
        walks: walks per node.
        rate: preference for recent events, per unit of time; 0, as in the official script, draws
            them uniformly.
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
        self.register_buffer("msg", padded(edges.msg), persistent=False)
        self.walks, self.time_unit = walks, time_unit
        self.history = History(edges, rate)
        self.name = nn.Sequential(nn.Linear(STEPS + 1, width), nn.ReLU(), nn.Linear(width, width))
        self.frequency = nn.Parameter(10 ** -torch.linspace(0, 9, width))
        self.rnn = nn.GRU(
            2 * width + edges.msg.shape[1], width // 2, batch_first=True, bidirectional=True
        )
        self.score = nn.Sequential(
            nn.Linear(2 * (width // 2), width), nn.ReLU(), nn.Linear(width, 1)
        )

    def sample(
        self, roots: Int[np.ndarray, " roots"], now: Float[np.ndarray, " roots"]
    ) -> tuple[
        Int[np.ndarray, "roots walks steps"],
        Int[np.ndarray, "roots walks steps"],
        Float[np.ndarray, "roots walks steps"],
    ]:
        """Nodes of the walks from each root, the events that lead to them and their times.

        A walk goes back in time; after its end all are 0.
        """
        node, time = (part[:, None].repeat(self.walks, 1) for part in (roots, now))
        nodes, edges, times = [node], [np.zeros_like(node)], [time]
        for _ in range(STEPS):
            node, edge, time = self.history.draw(node, time)
            nodes.append(node)
            edges.append(edge)
            times.append(time)
        return np.stack(nodes, -1), np.stack(edges, -1), np.stack(times, -1)

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
        nodes, edges, times = self.sample(roots, now)
        u = np.repeat(np.arange(events), options)
        v = events + np.arange(events * options)
        names = np.zeros((len(u), 2, self.walks, STEPS + 1, 2), np.int64)
        distinct = _name(nodes[u], nodes[v], names)
        device = self.frequency.device
        # Few counts are distinct: each is put through the network once.
        code = self.name(torch.from_numpy(distinct).to(device) / self.walks)
        of_u, of_v = torch.from_numpy(names).to(device).view(-1, 2).unbind(1)
        ends = torch.from_numpy(np.stack([u, v], 1).ravel()).to(device)
        ago = ((now[:, None, None] - times) / self.time_unit).astype(np.float32)
        # Time codes and features are the same in all pairs of a root.
        waited = torch.cos(torch.from_numpy(ago).to(device)[..., None] * self.frequency)
        walked = torch.cat([waited, self.msg[torch.from_numpy(edges).to(device)]], dim=-1)
        present = torch.from_numpy(nodes > 0).to(device)[ends].view(-1, STEPS + 1, 1)
        named = code.index_select(0, of_u) + code.index_select(0, of_v)
        named = named.view(-1, STEPS + 1, named.shape[1])
        walked = walked[ends].view(len(named), STEPS + 1, -1)
        _, last = self.rnn(torch.cat([named, walked], dim=-1) * present)
        walk = last.transpose(0, 1).reshape(len(u), 2 * self.walks, -1)
        return self.score(walk.mean(1)).view(events, options), None
