"""N-caches: every node's neighbours in a hash table of fixed size (section 4.1 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import numba
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Hash = Literal["prime", "released"]
Backend = Literal["auto", "numba", "torch"]

PRIME = 2654435761
_MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def hash_slot(
    key: Int[Tensor, " *entries"], slots: int, kind: Hash = "prime", seed: int = 0
) -> Int[Tensor, " *entries"]:
    """Slot of each key in a table of `slots` places.

    `prime`: (q a) mod M with a large prime q, the paper's equation. `released`: the official
    code's (a q + a^2 (q + 1)) mod M with q = seed mod 100; for even q it reaches 7 of 32 slots.
    """
    if kind == "prime":
        return key * PRIME % slots
    q = seed % 100
    return (key * q + key * key * (q + 1)) % slots


def coin(
    event: Int[Tensor, " *entries"], key: Int[Tensor, " *entries"], hop: int, seed: int
) -> Float[Tensor, " *entries"]:
    """Uniform number in [0, 1) that depends on nothing but event, key, hop and seed.

    Counter-based (the SplitMix64 finaliser), so that every device, backend and batch size tosses
    the same coins and a saved cache needs no generator state.
    """
    x = (
        (event * 8 + hop) * _signed(_MIX[0])
        + key * _signed(_MIX[1])
        + _signed(seed * _MIX[2] % 2**64)
    )
    x = (x ^ _shift(x, 30)) * _signed(_MIX[1])
    x = (x ^ _shift(x, 27)) * _signed(_MIX[2])
    x = x ^ _shift(x, 31)
    return _shift(x, 11).double() / 2.0**53


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shift(x: Int[Tensor, " *entries"], bits: int) -> Int[Tensor, " *entries"]:
    return (x >> bits) & (2 ** (64 - bits) - 1)


@numba.njit(cache=True, inline="always")
def _coin(event: int, key: int, hop: int, seed: int) -> float:
    m0, m1, m2 = (
        np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
    )  # fmt: skip
    x = np.uint64(event * 8 + hop) * m0 + np.uint64(key) * m1 + np.uint64(seed) * m2
    x = (x ^ (x >> np.uint64(30))) * m1
    x = (x ^ (x >> np.uint64(27))) * m2
    x = x ^ (x >> np.uint64(31))
    return np.float64(x >> np.uint64(11)) / 2.0**53


@dataclass
class Table:
    """One hop's dictionaries of all nodes: row u, slot s holds one neighbour.

    Attributes:
        key: neighbour's id, 0 where the slot is empty.
        edge: row of the edge features of the interaction that put it there.
        time: time of that interaction.
        value: the neighbour's representation, before that interaction is taken in.
    """

    key: Int[Tensor, "nodes slots"]
    edge: Int[Tensor, "nodes slots"]
    time: Float[Tensor, "nodes slots"]
    value: Float[Tensor, "nodes slots features"]

    @classmethod
    def empty(cls, nodes: int, slots: int, features: int, device: Any = "cpu") -> Table:
        """All slots empty. (What empty slots hold is never read, so zeros do.)"""
        return cls(
            torch.zeros(nodes, slots, dtype=torch.int32, device=device),
            torch.zeros(nodes, slots, dtype=torch.int32, device=device),
            torch.zeros(nodes, slots, dtype=torch.float64, device=device),
            torch.zeros(nodes, slots, features, device=device),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The four arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Offers:
    """Entries that ask for a place in a table, oldest event first.

    Attributes:
        owner: node whose table they go to.
        event: running number of the event that brings them.
        key, edge, time, value: as in `Table`.
    """

    owner: Int[Tensor, " offers"]
    event: Int[Tensor, " offers"]
    key: Int[Tensor, " offers"]
    edge: Int[Tensor, " offers"]
    time: Float[Tensor, " offers"]
    value: Float[Tensor, "offers features"]


def write(
    table: Table,
    offers: Offers,
    *,
    hop: int,
    alpha: float,
    kind: Hash = "prime",
    seed: int = 0,
    backend: Backend = "auto",
) -> None:
    """Put offers into their slots, all at once (Alg. 1 of the paper).

    An offer is accepted when its slot, as it was before the call, is empty or holds the same key,
    else with probability `alpha`. Of several accepted offers for one slot the latest event wins,
    then the latest entry time, then the highest key: the result depends on no order of threads.
    """
    if backend == "numba" or (backend == "auto" and table.key.device.type == "cpu"):
        slots = table.key.shape[1]
        _write_numba(
            *(part.numpy() for part in table.tensors().values()),
            offers.owner.numpy(), hash_slot(offers.key, slots, kind, seed).numpy(),
            offers.event.numpy(), offers.key.numpy(), offers.edge.numpy(), offers.time.numpy(),
            offers.value.numpy(), hop, alpha, seed,
        )  # fmt: skip
    else:
        _write_torch(table, offers, hop, alpha, kind, seed)


def _write_torch(
    table: Table, offers: Offers, hop: int, alpha: float, kind: Hash, seed: int
) -> None:
    slots = table.key.shape[1]
    place = offers.owner * slots + hash_slot(offers.key, slots, kind, seed)
    occupant = table.key.view(-1)[place]
    accepted: Bool[Tensor, " offers"] = (
        (occupant == 0)
        | (occupant == offers.key)
        | (coin(offers.event, offers.key, hop, seed) < alpha)
    )
    chosen = accepted.nonzero()[:, 0]
    # Stable sorts from the least to the most important: the last of each slot's run wins.
    for by in (offers.key, offers.time, offers.event, place):
        chosen = chosen[by[chosen].argsort(stable=True)]
    slot = place[chosen]
    last = torch.ones_like(slot, dtype=torch.bool)
    last[:-1] = slot[1:] != slot[:-1]
    slot, chosen = slot[last], chosen[last]
    table.key.view(-1)[slot] = offers.key[chosen].int()
    table.edge.view(-1)[slot] = offers.edge[chosen].int()
    table.time.view(-1)[slot] = offers.time[chosen]
    table.value.view(-1, table.value.shape[2])[slot] = offers.value[chosen]


@numba.njit(cache=True)
def _write_numba(
    keys, edges, times, values,
    owner, slot, event, key, edge, time, value, hop, alpha, seed,
):  # fmt: skip
    accepted = np.empty(len(owner), np.bool_)
    for i in range(len(owner)):
        occupant = keys[owner[i], slot[i]]
        accepted[i] = (
            occupant == 0 or occupant == key[i] or _coin(event[i], key[i], hop, seed) < alpha
        )
    # Offers come event by event: the latest event wins by being written last. Only among offers of
    # one event do time and key decide.
    for i in range(len(owner)):
        if not accepted[i]:
            continue
        beaten = False
        j = i - 1
        while j >= 0 and event[j] == event[i]:
            if accepted[j] and owner[j] == owner[i] and slot[j] == slot[i]:
                beaten |= time[j] > time[i] or (time[j] == time[i] and key[j] > key[i])
            j -= 1
        if not beaten:
            keys[owner[i], slot[i]] = key[i]
            edges[owner[i], slot[i]] = edge[i]
            times[owner[i], slot[i]] = time[i]
            values[owner[i], slot[i]] = value[i]
