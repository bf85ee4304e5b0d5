"""TGN put together from the parts of PyTorch Geometric, as in its example."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from peira.data.temporal import TemporalEdges
from peira.graphs.nat.attention import PairScore, padded


class GeometricTGN(nn.Module):
    """`TGNMemory`, `LastNeighborLoader` and one `TransformerConv`: the peer in speed.

    Accuracy is judged on `MemoryNetwork`: in version 2.8 without torch-scatter, `LastAggregator`
    gives a node that has no message that of another node.

    Args:
        edges: the stream that it will be shown (sizes, event times and features).
        width: of memory, time code and vectors; 100 as in the example of PyTorch Geometric.
        neighbours: how many last neighbours attention sees.
        heads, dropout: of the attention.
        time_unit: times are divided by it and rounded down, as the memory keeps whole numbers.
    """

    def __init__(
        self,
        edges: TemporalEdges,
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
        msg = padded(edges.msg) if edges.msg.shape[1] else torch.zeros(len(edges) + 1, 1)
        self.register_buffer("msg", msg, persistent=False)
        self.time_unit = time_unit
        nodes, extra = edges.num_nodes + 1, msg.shape[1]
        self.memory = TGNMemory(
            nodes, extra, width, width, IdentityMessage(extra, width, width), LastAggregator()
        )
        self.attention = TransformerConv(
            width, width // heads, heads=heads, dropout=dropout, edge_dim=width + extra
        )
        self.loader = LastNeighborLoader(nodes, neighbours)
        self.score = PairScore(width)
        # The loader counts events as they come: their rows of features and their times.
        for name in ("shown", "shown_t"):
            shown = torch.zeros(len(edges), dtype=torch.int64)
            self.register_buffer(name, shown, persistent=False)
        self.register_buffer("row_of", torch.zeros(nodes, dtype=torch.int64), persistent=False)

    def reset(self) -> None:
        """Forget the stream."""
        self.memory.reset_state()
        # The loader is no module, so `to(device)` passes it by.
        for name in ("neighbors", "e_id", "_assoc"):
            setattr(self.loader, name, getattr(self.loader, name).to(self.msg.device))
        self.loader.reset_state()

    def get_extra_state(self) -> dict[str, Any]:
        """Pending messages and neighbour lists."""
        loader = self.loader
        return {
            "stores": (dict(self.memory.msg_s_store), dict(self.memory.msg_d_store)),
            "loader": (loader.neighbors.clone(), loader.e_id.clone(), loader.cur_e_id),
            "shown": (self.shown.clone(), self.shown_t.clone()),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put back what `get_extra_state` returned."""
        self.memory.msg_s_store, self.memory.msg_d_store = (dict(s) for s in state["stores"])
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
        asked = torch.cat([src, candidates.flatten()])
        nodes, links, e_id = self.loader(asked.unique())
        self.row_of[nodes] = torch.arange(len(nodes), device=nodes.device)
        z, last = self.memory(nodes)
        ago = last[links[0]] - self.shown_t[e_id]
        code = self.memory.time_enc(ago.to(z.dtype))
        z = self.attention(z, links, torch.cat([code, self.msg[self.shown[e_id]]], dim=-1))
        return self.score(z[self.row_of[asked]], candidates.shape), None

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
        self.memory.update_state(src, dst, ticks, self.msg[edge])
        self.memory.detach()
        count = self.loader.cur_e_id
        self.shown[count : count + len(src)] = edge
        self.shown_t[count : count + len(src)] = ticks
        self.loader.insert(src, dst)
