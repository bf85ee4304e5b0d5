"""The NAT network: lazy reads of N-caches, joint features, score (section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from peira.graphs.nat.joint import CODES, Entries, Joint, code_counts, join
from peira.graphs.nat.ncache import Backend, Hash, Offers, Table, hash_slot, write
from peira.graphs.nat.pooling import JointPool, Pool

Parts = Literal["both", "joint", "self"]


class TimeCode(nn.Module):
    """cos(t w + phi) of a time, w_i = 10^(-9 i / (d - 1)) at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequency = nn.Parameter(10 ** -torch.linspace(0, 9, width))
        self.phase = nn.Parameter(torch.zeros(width))

    def forward(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape width"]:
        # Unix seconds need float64: float32 rounds them to two minutes.
        return torch.cos(t[..., None] * self.frequency + self.phase).float()


@dataclass(frozen=True)
class Read:
    """What the caches said about some nodes before a batch: needed again to write it.

    Attributes:
        nodes: the ids, ascending.
        self_rep: S', their self representations with the last message taken in.
        values: per hop, the values z' of all slots, zero where empty.
    """

    nodes: Int[Tensor, " nodes"]
    self_rep: Float[Tensor, "nodes self_dim"]
    values: list[Float[Tensor, "nodes slots features"]]

    def rows(self, ids: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Row of each id; raises `ValueError` for one that was not read."""
        rows = torch.searchsorted(self.nodes, ids).clamp(max=len(self.nodes) - 1)
        if not torch.equal(self.nodes[rows], ids):
            raise ValueError("these nodes were not read: score the batch that is to be written")
        return rows


class NATNetwork(nn.Module):
    """Scores candidate partners of a node from the N-caches of both.

    Node ids run from 1 to `num_nodes`; 0 is the empty slot. Caches are state, not parameters, but
    part of `state_dict`.

    Args:
        num_nodes: highest node id.
        edge_features: features of each event, row 0 zeros for "no event"; None for none.
        node_features: features of each node, row 0 zeros; None for none.
        slots: table sizes (M_1, M_2); its length is the number of hops, 0 to 2.
        value_dim: F, width of a neighbour's representation.
        self_dim: width of the self representation.
        position_dim: width of the embedding of the position code.
        joint_dim: width of the pooled vector; None takes that of the node features or, without
            any, 172 (the width that the official files pad to).
        heads, dropout, pool: see `JointPool`.
        time_dim: width of the time code.
        time_unit: what a time is divided by before its code is taken. The official code takes raw
            seconds (1.0), where one step of the optimiser turns the phase many times over.
        alpha: probability that a newcomer overrides an occupied slot.
        hash: see `ncache.hash_slot`.
        parts: what the score sees: pooled joint vector, both self representations, or both.
        seed: of the hash and of the coins.
        backend: `numba` on the CPU, `torch` anywhere; `auto` takes the faster one.
    """

    def __init__(
        self,
        num_nodes: int,
        edge_features: Float[Tensor, "events+1 edge_dim"] | None = None,
        node_features: Float[Tensor, "nodes+1 node_dim"] | None = None,
        *,
        slots: tuple[int, ...] = (32, 16),
        value_dim: int = 4,
        self_dim: int = 72,
        position_dim: int = 16,
        joint_dim: int | None = None,
        heads: int = 2,
        dropout: float = 0.1,
        pool: Pool = "sum",
        time_dim: int = 1,
        time_unit: float = 1.0,
        alpha: float = 0.9,
        hash: Hash = "prime",
        parts: Parts = "both",
        seed: int = 0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if len(slots) > 2 or any(m < 1 for m in slots):
            raise ValueError(f"slots must be at most two numbers, 1 or more; got {slots}")
        none = torch.zeros(1, 0)
        self.register_buffer(
            "edge_x", none if edge_features is None else edge_features.float(), False
        )
        self.register_buffer(
            "node_x",
            torch.zeros(num_nodes + 1, 0) if node_features is None else node_features.float(),
            False,
        )
        self.num_nodes, self.slots, self.alpha = num_nodes, (1, *slots), alpha
        self.hash, self.seed, self.parts, self.backend = hash, seed, parts, backend
        self.value_dim, self.time_unit = value_dim, time_unit
        node_dim, edge_dim = self.node_x.shape[1], self.edge_x.shape[1]
        joint_dim = joint_dim or node_dim or 172
        message = self_dim + edge_dim + time_dim
        self.time_code = TimeCode(time_dim)
        self.self_message = nn.Linear(message, self_dim, bias=False)
        self.value_message = nn.Linear(message, value_dim, bias=False)
        self.self_update = nn.GRUCell(self_dim, self_dim)
        self.value_update = nn.GRUCell(value_dim, value_dim)
        self.position = nn.Embedding(CODES, position_dim)
        self.pool = JointPool(node_dim + value_dim + position_dim, joint_dim, heads, dropout, pool)
        width = joint_dim * (parts != "self") + 2 * self_dim * (parts != "joint")
        self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        for layer in (self.score[0], self.score[2]):
            nn.init.xavier_normal_(layer.weight)
        self.tables: list[Table] = []
        self.reset()

    def reset(self) -> None:
        """Forget the stream: empty caches, zero self representations."""
        device, rows = self.position.weight.device, self.num_nodes + 1
        self.tables = [Table.empty(rows, m, self.value_dim, device) for m in self.slots]
        width = self.self_update.hidden_size
        self.self_rep = torch.zeros(rows, width, device=device)
        self.last_partner = torch.zeros(rows, dtype=torch.int64, device=device)
        self.last_edge = torch.zeros(rows, dtype=torch.int64, device=device)
        self.last_time = torch.zeros(rows, dtype=torch.float64, device=device)
        self.events_seen = 0

    def get_extra_state(self) -> dict[str, Any]:
        """Everything read from the stream so far, so that weights never part from their caches."""
        return {
            "tables": [
                {name: part.clone() for name, part in table.tensors().items()}
                for table in self.tables
            ],
            "self": [part.clone() for part in self._self_state()],
            "events_seen": self.events_seen,
            "hash": (self.hash, self.seed),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Put back what `get_extra_state` returned."""
        device = self.position.weight.device
        self.tables = [
            Table(**{name: part.clone().to(device) for name, part in table.items()})
            for table in state["tables"]
        ]
        self.self_rep, self.last_partner, self.last_edge, self.last_time = (
            part.clone().to(device) for part in state["self"]
        )
        self.events_seen = state["events_seen"]
        self.hash, self.seed = state["hash"]

    def _self_state(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.self_rep, self.last_partner, self.last_edge, self.last_time

    def read(self, nodes: Int[Tensor, " nodes"]) -> Read:
        """Lazy read: messages stored raw at write time become vectors now, with gradient.

        S'[u] = GRU(W_s [S[partner] | edge | time code], S[u]) and, for every occupied slot,
        z' = GRU(W_z [S[key] | edge | time code], z). The gradient ends at what is stored.
        """
        return Read(
            nodes,
            self._read_self(nodes),
            [self._read_values(table, nodes) for table in self.tables],
        )

    def _read_self(self, nodes: Int[Tensor, " nodes"]) -> Float[Tensor, "nodes self_dim"]:
        message = self._message(
            self.self_message,
            self.last_partner[nodes],
            self.last_edge[nodes],
            self.last_time[nodes],
        )
        return self.self_update(message, self.self_rep[nodes])

    def _read_values(
        self, table: Table, nodes: Int[Tensor, " nodes"]
    ) -> Float[Tensor, "nodes slots features"]:
        keys = table.key[nodes]
        row, slot = keys.nonzero(as_tuple=True)
        held = nodes[row], slot
        message = self._message(
            self.value_message, keys[row, slot].long(), table.edge[held].long(), table.time[held]
        )
        value = self.value_update(message, table.value[held])
        return value.new_zeros(*keys.shape, self.value_dim).index_put((row, slot), value)

    def _message(
        self,
        linear: nn.Linear,
        partner: Int[Tensor, " messages"],
        edge: Int[Tensor, " messages"],
        time: Float[Tensor, " messages"],
    ) -> Float[Tensor, "messages width"]:
        """W [S[partner] | edge features | time code], block by block.

        Where nodes are fewer than messages, W S is taken once per node and then looked up.
        """
        width, edge_dim = self.self_rep.shape[1], self.edge_x.shape[1]
        of_self, of_edge, of_time = linear.weight.split(
            [width, edge_dim, linear.in_features - width - edge_dim], dim=1
        )
        if len(partner) > len(self.self_rep):
            message = (self.self_rep @ of_self.T).index_select(0, partner)
        else:
            message = self.self_rep[partner] @ of_self.T
        message = message + self.time_code(time / self.time_unit) @ of_time.T
        return message + self.edge_x[edge] @ of_edge.T if edge_dim else message

    def entries(self, read: Read) -> Entries:
        """Occupied entries of the nodes read, all hops. A node is always its own hop-0 key."""
        keys = torch.cat([table.key[read.nodes].long() for table in self.tables], dim=1)
        keys[:, 0] = read.nodes
        bits = torch.cat(
            [torch.full((m,), 1 << hop, device=keys.device) for hop, m in enumerate(self.slots)]
        )
        row, column = keys.nonzero(as_tuple=True)
        start = torch.zeros(len(keys) + 1, dtype=torch.int64, device=keys.device)
        start[1:] = torch.bincount(row, minlength=len(keys)).cumsum(0)
        values = torch.cat(read.values, dim=1)
        return Entries(start, keys[row, column], bits[column], values[row, column])

    def forward(
        self,
        src: Int[Tensor, " events"],
        candidates: Int[Tensor, "events options"],
        t: Float[Tensor, " events"],
    ) -> tuple[Float[Tensor, "events options"], Read]:
        """Logits that each source meets each of its candidates next, and what was read for it.

        The published model does not look at the time `t` of the question; the argument is there
        because stream models share this signature.
        """
        nodes = torch.cat([src, candidates.flatten()]).unique()
        read = self.read(nodes)
        u = read.rows(src)[:, None].expand_as(candidates).flatten()
        v = read.rows(candidates.flatten())
        parts = [] if self.parts == "self" else [self._joint(self.entries(read), u, v)]
        if self.parts != "joint":
            parts += [read.self_rep[u], read.self_rep[v]]
        return self.score(torch.cat(parts, dim=1)).view_as(candidates), read

    def _joint(
        self, entries: Entries, u: Int[Tensor, " pairs"], v: Int[Tensor, " pairs"]
    ) -> Float[Tensor, "pairs joint_dim"]:
        joint = join(entries, u, v, self.backend)
        dropping = self.training and self.pool.dropout.p > 0
        if self.pool.pool == "sum" and not dropping:
            return self.pool.pooled_sum(self._member_sum(entries, joint, u, v))
        members = len(joint.pair)
        value = entries.value.new_zeros(members, self.value_dim)
        value = value.index_add(0, joint.member, entries.value.index_select(0, joint.entry))
        x = [value, self.position(joint.code)]
        if self.node_x.shape[1]:
            times = torch.bincount(joint.member, minlength=members)
            x.insert(0, self.node_x[joint.key] * times[:, None])
        return self.pool(torch.cat(x, dim=1), joint.pair, len(u))

    def _member_sum(
        self, entries: Entries, joint: Joint, u: Int[Tensor, " pairs"], v: Int[Tensor, " pairs"]
    ) -> Float[Tensor, "pairs width"]:
        """Sum of the members' features: two sums per node and a count of the 64 codes per pair."""
        nodes = len(entries.start) - 1
        row = torch.repeat_interleave(entries.start.diff())
        value = entries.value.new_zeros(nodes, self.value_dim).index_add(0, row, entries.value)
        x = [value[u] + value[v], code_counts(joint, len(u)) @ self.position.weight]
        if self.node_x.shape[1]:
            feature = self.node_x.new_zeros(nodes, self.node_x.shape[1])
            feature = feature.index_add(0, row, self.node_x[entries.key])
            x.insert(0, feature[u] + feature[v])
        return torch.cat(x, dim=1)

    @torch.no_grad()
    def write(
        self,
        src: Int[Tensor, " events"],
        dst: Int[Tensor, " events"],
        t: Float[Tensor, " events"],
        edge: Int[Tensor, " events"],
        read: Read | None = None,
    ) -> None:
        """Take a batch of events, in order of time, into the caches; `backward` comes before it.

        Args:
            src, dst, t, edge: both ends, time and row of the edge features of each event.
            read: what `forward` returned for the batch, so that what is written is what was scored;
                None reads now.
        """
        if read is None:
            read = self.read(torch.cat([src, dst]).unique())
        # Both ends of an event side by side, so that offers stay in order of events.
        owner, partner = torch.stack([src, dst], 1).flatten(), torch.stack([dst, src], 1).flatten()
        t, edge = t.double().repeat_interleave(2), edge.repeat_interleave(2)
        event = self.events_seen + torch.arange(len(owner), device=owner.device) // 2
        row = read.rows(owner)
        own = read.values[0][row, 0]
        offers = [Offers(owner, event, owner, edge, t, own)]
        if len(self.slots) > 1:
            offers.append(self._first_hop(owner, partner, event, edge, t, row, read))
        if len(self.slots) > 2:
            offers.append(self._second_hop(owner, partner, event, row, read))
        for hop, (table, offer) in enumerate(zip(self.tables, offers, strict=True)):
            write(
                table, offer, hop=hop, alpha=self.alpha, kind=self.hash, seed=self.seed,
                backend=self.backend,
            )  # fmt: skip
        self._write_self(owner, partner, edge, t, row, read)
        self.events_seen += len(src)

    def _first_hop(
        self,
        owner: Tensor, partner: Tensor, event: Tensor, edge: Tensor, t: Tensor, row: Tensor,
        read: Read,
    ) -> Offers:  # fmt: skip
        slot = hash_slot(partner, self.slots[1], self.hash, self.seed)
        known = self.tables[1].key[owner, slot] == partner
        value = read.values[1][row, slot] * known[:, None]
        return Offers(owner, event, partner, edge, t, value)

    def _second_hop(
        self, owner: Tensor, partner: Tensor, event: Tensor, row: Tensor, read: Read
    ) -> Offers:
        """Every first-hop entry of an end is offered to the other end's second hop."""
        table = self.tables[1]
        giver, slot = table.key[owner].nonzero(as_tuple=True)
        held = owner[giver], slot
        return Offers(
            partner[giver], event[giver], table.key[held].long(), table.edge[held].long(),
            table.time[held], read.values[1][row[giver], slot],
        )  # fmt: skip

    def _write_self(
        self, owner: Tensor, partner: Tensor, edge: Tensor, t: Tensor, row: Tensor, read: Read
    ) -> None:
        self.self_rep[owner] = read.self_rep.detach()[row]
        # Only the last message of each node stays: events are in order, so the highest position.
        position = torch.arange(len(owner), device=owner.device)
        last = torch.full((len(read.nodes),), -1, device=owner.device)
        last = last.scatter_reduce(0, row, position, "amax")
        last = last[last >= 0]
        nodes = owner[last]
        self.last_partner[nodes], self.last_edge[nodes] = partner[last], edge[last]
        self.last_time[nodes] = t[last]
