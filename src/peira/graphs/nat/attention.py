"""Networks that attend to a node's events: TGN, JODIE, DyRep with a memory, TGAT without."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from peira.data.temporal import TemporalEdges
from peira.graphs.nat.history import History, HistoryNetwork, Recent
from peira.graphs.nat.model import TimeCode


def padded(features: Float[np.ndarray, "rows width"]) -> Float[Tensor, "rows+1 width"]:
    """The features with a row of zeros before them, for id 0."""
    return torch.from_numpy(np.vstack([np.zeros((1, features.shape[1]), np.float32), features]))


class PairScore(nn.Module):
    """Linear, ReLU, Linear on both vectors of a pair."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(
        self, z: Float[Tensor, "queries width"], shape: torch.Size
    ) -> Float[Tensor, "events options"]:
        """Logits of `questions`: z holds the sources, then all candidates, event by event."""
        z_u, z_v = z[: shape[0]], z[shape[0] :].view(*shape, -1)
        pair = torch.cat([z_u[:, None].expand_as(z_v), z_v], dim=-1)
        return self.layers(pair)[..., 0]


def questions(
    src: Int[Tensor, " events"],
    candidates: Int[Tensor, "events options"],
    t: Float[Tensor, " events"],
) -> tuple[Int[Tensor, " queries"], Float[Tensor, " queries"]]:
    """The nodes asked for, sources first, and when (float64)."""
    nodes, t = torch.cat([src, candidates.flatten()]), t.double()
    return nodes, torch.cat([t, t.repeat_interleave(candidates.shape[1])])


class EventAttention(nn.Module):
    """Attention of one query per node to the rows of its events, merged with its own vector.

    z = W_2 ReLU(W_1 [o | own]), o = multi-head attention (Xu et al. 2020, eq. 6 and 7).

    Args:
        query, row, own: widths of queries, rows and own vectors.
        width: of the result.
        heads, dropout: of the attention.
    """

    def __init__(
        self, query: int, row: int, own: int, width: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.value = nn.Linear(query, width), nn.Linear(row, width)
        # A bias of the keys would shift all scores of a query alike: the softmax is blind to it.
        self.key = nn.Linear(row, width, bias=False)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.merge = nn.Sequential(
            nn.Linear(width + own, width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(
        self,
        query: Float[Tensor, "nodes query"],
        rows: Float[Tensor, "nodes events row"],
        present: Bool[Tensor, "nodes events"],
        own: Float[Tensor, "nodes own"],
    ) -> Float[Tensor, "nodes width"]:
        return self.merge(torch.cat([self.attend(query, rows, present), own], dim=-1))

    def attend(
        self,
        query: Float[Tensor, "nodes query"],
        rows: Float[Tensor, "nodes events row"],
        present: Bool[Tensor, "nodes events"],
    ) -> Float[Tensor, "nodes width"]:
        """The attention alone; zero before the output layer where no event is present.

        (W_q q) . (W_k x) = (W_k' W_q q) . x and sum a (W_v x) = W_v sum a x: with one query per
        node no row is ever projected.
        """
        of_key, of_value = (
            part.weight.view(self.heads, -1, rows.shape[2]) for part in (self.key, self.value)
        )
        q = self.query(query).view(len(query), self.heads, -1)
        folded = torch.einsum("nhe,hed->nhd", q, of_key) / q.shape[2] ** 0.5
        present = present[:, None]
        # Finite, so that a node without events gives no NaN; its weights are then set to zero.
        score = (folded @ rows.transpose(1, 2)).masked_fill(~present, -1e9)
        weight = self.dropout(score.softmax(2) * present)
        value = torch.einsum("nhd,hed->nhe", weight @ rows, of_value)
        value = value + weight.sum(2)[..., None] * self.value.bias.view(self.heads, -1)
        return self.out(value.flatten(1))


class MemoryNetwork(nn.Module):
    """TGN, JODIE and DyRep in the common terms of Rossi et al. (2020, Table 1).

    Every node has one memory s. Its last message waits until the next read:
    s' = update([s_u | other | features | time code], s_u), with gradient through that one step.
    `tgn`: other is s_v, GRU, the vector is attention over the last events. `jodie`: other is s_v,
    RNN, the vector is s (1 + w dt). `dyrep`: other is attention over the last events of v before
    the message, RNN, the vector is s.

    Args:
        edges: the stream that it will be shown (sizes and features).
        kind: which network.
        width: of memory, time code and vectors; 100 as in the official TGN code.
        neighbours: how many last events attention sees.
        heads, dropout: of the attention.
        time_unit: what times are divided by.
    """

    def __init__(
        self,
        edges: TemporalEdges,
        kind: Literal["tgn", "jodie", "dyrep"] = "tgn",
        *,
        width: int = 100,
        neighbours: int = 10,
        heads: int = 2,
        dropout: float = 0.1,
        time_unit: float = 1.0,
    ) -> None:
        super().__init__()
        self.register_buffer("msg", padded(edges.msg), persistent=False)
        self.kind, self.time_unit = kind, time_unit
        nodes, extra = edges.num_nodes + 1, edges.msg.shape[1]
        self.code = TimeCode(width)
        self.update = (nn.GRUCell if kind == "tgn" else nn.RNNCell)(3 * width + extra, width)
        if kind == "jodie":
            self.drift = nn.Linear(1, width)
        else:
            self.attention = EventAttention(
                2 * width, 2 * width + extra, width, width, heads, dropout
            )
            self.recent = Recent(nodes, neighbours)
        self.score = PairScore(width)
        self.register_buffer("memory", torch.zeros(nodes, width))
        self.register_buffer("updated", torch.zeros(nodes, dtype=torch.float64))
        # The message that waits: the other end (0: none), row of the features, time.
        self.register_buffer("partner", torch.zeros(nodes, dtype=torch.int64))
        self.register_buffer("edge", torch.zeros(nodes, dtype=torch.int64))
        self.register_buffer("when", torch.zeros(nodes, dtype=torch.float64))
        if kind == "dyrep":
            # The partner's last events when the message was sent.
            self.sent = Recent(nodes, neighbours)

    def reset(self) -> None:
        """Forget the stream."""
        for name in ("memory", "updated", "partner", "edge", "when"):
            getattr(self, name).zero_()
        for part in self.children():
            if isinstance(part, Recent):
                part.reset()

    def read(
        self, nodes: Int[Tensor, " nodes"]
    ) -> tuple[Float[Tensor, "nodes width"], Float[Tensor, " nodes"]]:
        """Memories with their waiting messages taken in, and the times they are from."""
        partner, when = self.partner[nodes], self.when[nodes]
        own, waits = self.memory[nodes], partner > 0
        other = self.memory[partner]
        if self.kind == "dyrep":
            events = self.sent.partner[nodes], self.sent.edge[nodes], self.sent.t[nodes]
            other = self._attend(other, self.memory[events[0]], when, events)
        waited = self._code(when - self.updated[nodes])
        message = torch.cat([own, other, self.msg[self.edge[nodes]], waited], dim=-1)
        z = torch.where(waits[:, None], self.update(message, own), own)
        return z, torch.where(waits, when, self.updated[nodes])

    def _code(self, waited: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        return self.code((waited / self.time_unit).float())

    def _attend(
        self,
        own: Float[Tensor, "nodes width"],
        theirs: Float[Tensor, "nodes events width"],
        now: Float[Tensor, " nodes"],
        events: tuple[Int[Tensor, "nodes events"], Int[Tensor, "nodes events"], Tensor],
    ) -> Float[Tensor, "nodes width"]:
        partner, edge, t = events
        query = torch.cat([own, self._code(now * 0)], dim=-1)
        rows = torch.cat([theirs, self.msg[edge], self._code(now[:, None] - t)], dim=-1)
        return self.attention(query, rows, partner > 0, own)

    def forward(
        self,
        src: Int[Tensor, " events"],
        candidates: Int[Tensor, "events options"],
        t: Float[Tensor, " events"],
    ) -> tuple[Float[Tensor, "events options"], None]:
        """Logits of each source with its candidates."""
        asked, now = questions(src, candidates, t)
        if self.kind == "tgn":
            events = self.recent.newest(asked)
            nodes, row = torch.cat([asked, events[0].flatten()]).unique(return_inverse=True)
            memory, _ = self.read(nodes)
            theirs = memory[row[len(asked) :]].view(*events[0].shape, -1)
            z = self._attend(memory[row[: len(asked)]], theirs, now, events)
        else:
            nodes, row = asked.unique(return_inverse=True)
            memory, last = self.read(nodes)
            z = memory[row]
            if self.kind == "jodie":
                # log1p keeps the projection in range whatever the unit of time.
                waited = ((now - last[row]) / self.time_unit).float().clamp(min=0).log1p()
                z = z * (1 + self.drift(waited[:, None]))
        return self.score(z, candidates.shape), None

    @torch.no_grad()
    def write(
        self,
        src: Int[Tensor, " events"],
        dst: Int[Tensor, " events"],
        t: Float[Tensor, " events"],
        edge: Int[Tensor, " events"],
        read: Any = None,
    ) -> None:
        """Take in events, in order of time: of each node's messages the last one stays."""
        ends, others = torch.stack([src, dst], 1).flatten(), torch.stack([dst, src], 1).flatten()
        nodes, row = ends.unique(return_inverse=True)
        self.memory[nodes], self.updated[nodes] = self.read(nodes)
        position = torch.arange(len(ends), device=ends.device)
        last = torch.zeros_like(nodes).scatter_reduce(0, row, position, "amax")
        self.partner[nodes], self.edge[nodes] = others[last], edge[last // 2]
        self.when[nodes] = t.double()[last // 2]
        if self.kind == "dyrep":
            sent = self.recent.newest(others[last])
            self.sent.partner[nodes], self.sent.edge[nodes], self.sent.t[nodes] = sent
        if self.kind != "jodie":
            self.recent.append(src, dst, t, edge)


class TGAT(HistoryNetwork):
    """Two layers of attention over events drawn uniformly from the past (Xu et al. 2020).

    A layer gives z_u(t) from z_v(t_v) of the layer below, for events (v, t_v) of u before t; below
    the first are the node features. No memory.

    Args:
        edges: the stream that it will be shown.
        width: of vectors and time code.
        neighbours: how many events are drawn, with replacement, per node and layer.
        heads, dropout: of the attention.
        time_unit: what waiting times are divided by.
    """

    def __init__(
        self,
        edges: TemporalEdges,
        *,
        width: int = 100,
        neighbours: int = 20,
        heads: int = 2,
        dropout: float = 0.1,
        time_unit: float = 1.0,
    ) -> None:
        super().__init__()
        self.register_buffer("msg", padded(edges.msg), persistent=False)
        self.register_buffer("x", padded(edges.x), persistent=False)
        self.neighbours, self.time_unit = neighbours, time_unit
        self.nodes = edges.num_nodes + 1
        self.history = History(edges)
        self.code = TimeCode(width)
        self.layers = nn.ModuleList(
            EventAttention(
                below + width, below + width + edges.msg.shape[1], below, width, heads, dropout
            )
            for below in (edges.x.shape[1], width)
        )
        self.score = PairScore(width)

    def forward(
        self,
        src: Int[Tensor, " events"],
        candidates: Int[Tensor, "events options"],
        t: Float[Tensor, " events"],
    ) -> tuple[Float[Tensor, "events options"], None]:
        """Logits of each source with its candidates."""
        asked, now = questions(src, candidates, t)
        events = self._draw(asked, now)
        partner, edge, when = events
        # The first layer is taken once for each end of an event that was drawn.
        ends, place = (edge * self.nodes + partner).unique(return_inverse=True)
        when_of = now.new_zeros(len(ends)).scatter(0, place.flatten(), when.flatten())
        below = torch.cat([asked, ends % self.nodes])
        z = self._layer_of_features(below, torch.cat([now, when_of]))
        own, theirs = z[: len(asked)], z[len(asked) :][place]
        return self.score(self._layer(1, own, theirs, now, events), candidates.shape), None

    def _layer_of_features(
        self, nodes: Int[Tensor, " nodes"], now: Float[Tensor, " nodes"]
    ) -> Float[Tensor, "nodes width"]:
        events = self._draw(nodes, now)
        return self._layer(0, self.x[nodes], self.x[events[0]], now, events)

    def _layer(
        self,
        layer: int,
        own: Float[Tensor, "nodes below"],
        theirs: Float[Tensor, "nodes events below"],
        now: Float[Tensor, " nodes"],
        events: tuple[Int[Tensor, "nodes events"], Int[Tensor, "nodes events"], Tensor],
    ) -> Float[Tensor, "nodes width"]:
        partner, edge, t = events
        waited = torch.cat([now[:, None] * 0, now[:, None] - t], dim=1) / self.time_unit
        code = self.code(waited.float())
        rows = torch.cat([theirs, self.msg[edge], code[:, 1:]], dim=-1)
        return self.layers[layer](torch.cat([own, code[:, 0]], dim=-1), rows, partner > 0, own)

    def _draw(
        self, nodes: Int[Tensor, " nodes"], now: Float[Tensor, " nodes"]
    ) -> tuple[Int[Tensor, "nodes events"], Int[Tensor, "nodes events"], Tensor]:
        roots, until = (
            part.cpu().numpy()[:, None].repeat(self.neighbours, 1) for part in (nodes, now)
        )
        partner, edge, t = (
            torch.from_numpy(part).to(nodes.device) for part in self.history.draw(roots, until)
        )
        return partner, edge, t
