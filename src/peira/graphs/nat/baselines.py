"""What NAT is compared with: memory rules, one-vector networks, GraphMixer, online walks."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from peira.data.temporal import TemporalEdges


class EdgeBank:
    """Score 1 for pairs that met before, in either direction (Poursafaei et al. 2022), else 0.

    Args:
        window: how long a meeting is remembered, in the unit of time; None for ever.
    """

    training = False

    def __init__(self, window: float | None = None) -> None:
        self.window = np.inf if window is None else window
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        self.last: dict[tuple[int, int], float] = {}

    def __call__(
        self, src: Tensor, candidates: Tensor, t: Tensor
    ) -> tuple[Float[Tensor, "events options"], None]:
        """1 or 0 for each source and candidate."""
        last = self.last
        scores = [
            [(u, v) in last and now - last[u, v] <= self.window for v in row]
            for u, row, now in zip(src.tolist(), candidates.tolist(), t.tolist(), strict=True)
        ]
        return torch.tensor(scores, dtype=torch.float64), None

    def write(self, src: Tensor, dst: Tensor, t: Tensor, edge: Tensor, read: Any = None) -> None:
        """Remember the batch."""
        for u, v, now in zip(src.tolist(), dst.tolist(), t.tolist(), strict=True):
            self.last[u, v] = self.last[v, u] = now


class CommonNeighbours:
    """Pairs that met before first; among the others (and among those) more common partners first.

    Args:
        halflife: a common partner counts 2^(-age / halflife), its age being the time since the
            older of the two last meetings; None counts every common partner 1.
    """

    training = False

    def __init__(self, halflife: float | None = None) -> None:
        self.halflife = halflife
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        self.last: dict[int, dict[int, float]] = {}

    def __call__(
        self, src: Tensor, candidates: Tensor, t: Tensor
    ) -> tuple[Float[Tensor, "events options"], None]:
        """A score in [0, 2): its whole part says whether the pair met."""
        scores = [
            [self._score(u, v, now) for v in row]
            for u, row, now in zip(src.tolist(), candidates.tolist(), t.tolist(), strict=True)
        ]
        return torch.tensor(scores, dtype=torch.float64), None

    def _score(self, u: int, v: int, now: float) -> float:
        of_u, of_v = self.last.get(u, {}), self.last.get(v, {})
        few, many = (of_u, of_v) if len(of_u) < len(of_v) else (of_v, of_u)
        ages = [now - min(when, many[a]) for a, when in few.items() if a in many]
        if self.halflife is None:
            weight = float(len(ages))
        else:
            weight = float(np.exp2(-np.array(ages) / self.halflife).sum())
        return float(v in of_u) + weight / (1 + weight)

    def write(self, src: Tensor, dst: Tensor, t: Tensor, edge: Tensor, read: Any = None) -> None:
        """Remember the batch."""
        for u, v, now in zip(src.tolist(), dst.tolist(), t.tolist(), strict=True):
            self.last.setdefault(u, {})[v] = now
            self.last.setdefault(v, {})[u] = now


class PairScore(nn.Module):
    """Linear, ReLU, Linear on both vectors of a pair."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(
        self, z: Float[Tensor, "nodes width"], u: Int[Tensor, "e k"], v: Int[Tensor, "e k"]
    ) -> Float[Tensor, "e k"]:
        return self.layers(torch.cat([z[u], z[v]], dim=-1))[..., 0]


class MemoryNetwork(nn.Module):
    """TGN, JODIE and TGAT on PyTorch Geometric's `TGNMemory` and `LastNeighborLoader`.

    Every node has one vector. `tgn`: GRU memory, one layer of graph attention over the last
    neighbours. `jodie`: RNN memory, vector projected in time, s (1 + w dt). `tgat`: no memory,
    attention over the last neighbours' times and features only.

    Args:
        edges: the stream that it will be shown (sizes, event times and features).
        kind: which network.
        width: of memory, time code and vectors; 100 as in the example of PyTorch Geometric.
        neighbours: how many last neighbours attention sees.
        heads, dropout: of the attention.
        time_unit: times are divided by it and rounded down, as the memory keeps whole numbers.
    """

    def __init__(
        self,
        edges: TemporalEdges,
        kind: Literal["tgn", "jodie", "tgat"] = "tgn",
        *,
        width: int = 100,
        neighbours: int = 10,
        heads: int = 2,
        dropout: float = 0.1,
        time_unit: float = 1.0,
    ) -> None:
        super().__init__()
        from torch_geometric.nn import TransformerConv
        from torch_geometric.nn.models.tgn import (
            IdentityMessage,
            LastAggregator,
            LastNeighborLoader,
            TGNMemory,
        )

        # The memory module drops messages of width 0.
        features = edges.msg if edges.msg.shape[1] else np.zeros((len(edges), 1), np.float32)
        self.register_buffer("msg", torch.from_numpy(features), persistent=False)
        self.kind, self.time_unit, self.width = kind, time_unit, width
        nodes, extra = edges.num_nodes + 1, features.shape[1]
        self.memory = TGNMemory(
            nodes, extra, width, width, IdentityMessage(extra, width, width), LastAggregator()
        )
        if kind == "jodie":
            self.memory.gru = nn.RNNCell(self.memory.gru.input_size, width)
            self.drift = nn.Linear(1, width)
        else:
            self.attention = TransformerConv(
                width, width // heads, heads=heads, dropout=dropout, edge_dim=width + extra
            )
            self.loader = LastNeighborLoader(nodes, neighbours)
        self.score = PairScore(width)
        self.register_buffer("shown", torch.zeros(len(edges), dtype=torch.int64), persistent=False)
        self.register_buffer(
            "shown_t", torch.zeros(len(edges), dtype=torch.int64), persistent=False
        )
        self.register_buffer("row_of", torch.zeros(nodes, dtype=torch.int64), persistent=False)

    def reset(self) -> None:
        """Forget the stream."""
        self.memory.reset_state()
        if self.kind != "jodie":
            # The loader is no module, so `to(device)` passes it by.
            for name in ("neighbors", "e_id", "_assoc"):
                setattr(self.loader, name, getattr(self.loader, name).to(self.msg.device))
            self.loader.reset_state()

    def get_extra_state(self) -> dict[str, Any]:
        """Pending messages and neighbour lists."""
        state: dict[str, Any] = {
            "stores": (dict(self.memory.msg_s_store), dict(self.memory.msg_d_store))
        }
        if self.kind != "jodie":
            loader = self.loader
            state["loader"] = (loader.neighbors.clone(), loader.e_id.clone(), loader.cur_e_id)
            state["shown"] = (self.shown.clone(), self.shown_t.clone())
        return state

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put back what `get_extra_state` returned."""
        self.memory.msg_s_store, self.memory.msg_d_store = (dict(s) for s in state["stores"])
        if self.kind != "jodie":
            neighbours, e_id, count = state["loader"]
            self.loader.neighbors, self.loader.e_id = neighbours.clone(), e_id.clone()
            self.loader.cur_e_id = count
            self.shown, self.shown_t = (part.clone() for part in state["shown"])

    def _ticks(self, t: Float[Tensor, " events"]) -> Int[Tensor, " events"]:
        return (t / self.time_unit).long()

    def forward(
        self,
        src: Int[Tensor, " events"],
        candidates: Int[Tensor, "events options"],
        t: Float[Tensor, " events"],
    ) -> tuple[Float[Tensor, "events options"], None]:
        """Logits of each source with its candidates."""
        nodes = torch.cat([src, candidates.flatten()]).unique()
        if self.kind == "jodie":
            self.row_of[nodes] = torch.arange(len(nodes), device=nodes.device)
            memory, last = self.memory(nodes)
            u, v = self.row_of[src][:, None], self.row_of[candidates]
            now = self._ticks(t)[:, None]
            z_u, z_v = (self._projected(memory[i], now - last[i]) for i in (u, v))
            pair = torch.cat([z_u.expand_as(z_v), z_v], dim=-1)
            return self.score.layers(pair)[..., 0], None
        nodes, links, e_id = self.loader(nodes)
        self.row_of[nodes] = torch.arange(len(nodes), device=nodes.device)
        z = self._attend(nodes, links, e_id)
        u = self.row_of[src][:, None].expand_as(candidates)
        return self.score(z, u, self.row_of[candidates]), None

    def _projected(self, z: Tensor, waited: Tensor) -> Tensor:
        # log1p keeps the projection in range whatever the unit of time.
        return z * (1 + self.drift(waited[..., None].float().log1p()))

    def _attend(self, nodes: Tensor, links: Tensor, e_id: Tensor) -> Float[Tensor, "nodes width"]:
        if self.kind == "tgn":
            z, last = self.memory(nodes)
        else:
            z = torch.zeros(len(nodes), self.width, device=nodes.device)
            last = self.memory.last_update[nodes]
        ago = last[links[0]] - self.shown_t[e_id]
        code = self.memory.time_enc(ago.to(z.dtype))
        return self.attention(z, links, torch.cat([code, self.msg[self.shown[e_id]]], dim=-1))

    @torch.no_grad()
    def write(
        self,
        src: Int[Tensor, " events"],
        dst: Int[Tensor, " events"],
        t: Float[Tensor, " events"],
        edge: Int[Tensor, " events"],
        read: Any = None,
    ) -> None:
        """Take in events, in order of time."""
        ticks = self._ticks(t)
        if self.kind == "tgat":
            ends = torch.cat([src, dst])
            self.memory.last_update.scatter_reduce_(0, ends, ticks.repeat(2), "amax")
        else:
            self.memory.update_state(src, dst, ticks, self.msg[edge - 1])
            self.memory.detach()
        if self.kind != "jodie":
            count = self.loader.cur_e_id
            self.shown[count : count + len(src)] = edge - 1
            self.shown_t[count : count + len(src)] = ticks
            self.loader.insert(src, dst)


class GraphMixer(nn.Module):
    """Links of each node mixed by a small MLP-Mixer (Cong et al. 2023); no memory, no attention.

    Each node keeps its last `links` events; each becomes [cos(dt w) | features] with fixed w;
    one mixer block over links and channels and a mean give its vector.

    Args:
        edges: the stream that it will be shown.
        width: of vectors and time code.
        links: how many events a node keeps.
        time_unit: what waiting times are divided by.
    """

    def __init__(
        self, edges: TemporalEdges, *, width: int = 100, links: int = 10, time_unit: float = 1.0
    ) -> None:
        super().__init__()
        self.register_buffer("msg", torch.from_numpy(edges.msg), persistent=False)
        # alpha = beta = sqrt(d): the frequencies of the paper.
        frequency = width ** (-torch.arange(width) / width**0.5 / 2)
        self.register_buffer("frequency", frequency, persistent=False)
        self.links, self.time_unit, self.nodes = links, time_unit, edges.num_nodes + 1
        self.enter = nn.Linear(width + edges.msg.shape[1], width)
        self.norm_links, self.norm_channels = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix_links = nn.Sequential(
            nn.Linear(links, links // 2), nn.GELU(), nn.Linear(links // 2, links)
        )
        self.mix_channels = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.leave = nn.Linear(width, width)
        self.score = PairScore(width)
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        device = self.frequency.device
        self.last_t = torch.zeros(self.nodes, self.links, dtype=torch.float64, device=device)
        self.last_edge = torch.zeros(self.nodes, self.links, dtype=torch.int64, device=device)
        self.count = torch.zeros(self.nodes, dtype=torch.int64, device=device)

    def get_extra_state(self) -> tuple[Tensor, Tensor, Tensor]:
        """The kept events."""
        return self.last_t.clone(), self.last_edge.clone(), self.count.clone()

    def set_extra_state(self, state: tuple[Tensor, Tensor, Tensor]) -> None:
        """Put back what `get_extra_state` returned."""
        self.last_t, self.last_edge, self.count = (part.clone() for part in state)

    def _vectors(
        self, nodes: Int[Tensor, " n"], now: Float[Tensor, " n"]
    ) -> Float[Tensor, "n width"]:
        edge = self.last_edge[nodes]
        waited = ((now[:, None] - self.last_t[nodes]) / self.time_unit).float()
        x = torch.cos(waited[..., None] * self.frequency)
        if self.msg.shape[1]:
            x = torch.cat([x, self.msg[(edge - 1).clamp(min=0)]], dim=-1)
        x = self.enter(x) * (edge > 0)[..., None]
        x = x + self.mix_links(self.norm_links(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.mix_channels(self.norm_channels(x))
        return self.leave(x.mean(1))

    def forward(
        self,
        src: Int[Tensor, " events"],
        candidates: Int[Tensor, "events options"],
        t: Float[Tensor, " events"],
    ) -> tuple[Float[Tensor, "events options"], None]:
        """Logits of each source with its candidates."""
        events, options = candidates.shape
        nodes = torch.cat([src, candidates.flatten()])
        z = self._vectors(nodes, torch.cat([t, t.repeat_interleave(options)]))
        rows = torch.arange(len(nodes), device=nodes.device)
        u = rows[:events, None].expand_as(candidates)
        return self.score(z, u, rows[events:].view(events, options)), None

    @torch.no_grad()
    def write(
        self,
        src: Int[Tensor, " events"],
        dst: Int[Tensor, " events"],
        t: Float[Tensor, " events"],
        edge: Int[Tensor, " events"],
        read: Any = None,
    ) -> None:
        """Keep the last events of each node, in rings."""
        ends = torch.stack([src, dst], 1).flatten()
        order = ends.argsort(stable=True)
        owner = ends[order]
        first: Bool[Tensor, " ends"] = torch.ones_like(owner, dtype=torch.bool)
        first[1:] = owner[1:] != owner[:-1]
        begins = first.nonzero()[:, 0]
        sizes = torch.diff(begins, append=begins.new_tensor([len(owner)]))
        position = torch.arange(len(owner), device=owner.device) - begins.repeat_interleave(sizes)
        # A batch that overfills a ring leaves its last events only.
        kept = position >= (sizes - self.links).repeat_interleave(sizes)
        place = (self.count[owner] + position) % self.links
        event = order // 2
        self.last_t[owner[kept], place[kept]] = t.double()[event][kept]
        self.last_edge[owner[kept], place[kept]] = edge[event][kept]
        self.count[owner[begins]] += sizes
