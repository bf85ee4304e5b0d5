"""Joint neighbourhoods: which nodes occur at which hops of both ends of a pair."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from peira.graphs.nat.ncache import Backend

CODES = 64
"""Position codes: bits 0-2 say at which hops of u a node occurs, bits 3-5 at which hops of v."""


@dataclass(frozen=True)
class Entries:
    """Occupied cache entries of some nodes, node after node.

    Attributes:
        start: first entry of each node, and the number of entries at the end.
        key: id of the neighbour.
        bit: 1 << hop.
        value: the neighbour's representation, with its last interaction taken in.
    """

    start: Int[Tensor, " nodes+1"]
    key: Int[Tensor, " entries"]
    bit: Int[Tensor, " entries"]
    value: Float[Tensor, "entries features"]


@dataclass(frozen=True)
class Joint:
    """The distinct nodes ("members") in the joint neighbourhood of each pair.

    Attributes:
        pair: pair that each member belongs to.
        key: id of the member.
        code: its position code, 1..63.
        entry, member: incidences: cache entry `entry[i]` belongs to member `member[i]`.
    """

    pair: Int[Tensor, " members"]
    key: Int[Tensor, " members"]
    code: Int[Tensor, " members"]
    entry: Int[Tensor, " incidences"]
    member: Int[Tensor, " incidences"]


def join(
    entries: Entries,
    u: Int[Tensor, " pairs"],
    v: Int[Tensor, " pairs"],
    backend: Backend = "auto",
) -> Joint:
    """Join the dictionaries of both ends of each pair by key (section 4.2).

    Args:
        entries: dictionaries of the nodes that occur.
        u, v: rows of `entries` (not node ids) of both ends.
        backend: `numba` hashes pair by pair, `torch` sorts all keys at once. Members come in a
            different order; what they are is the same.
    """
    if backend == "numba" or (backend == "auto" and u.device.type == "cpu"):
        arrays = _join_numba(
            entries.start.numpy(), entries.key.numpy(), entries.bit.numpy(), u.numpy(), v.numpy()
        )
        return Joint(*map(torch.from_numpy, arrays))
    return _join_torch(entries, u, v)


def _join_torch(entries: Entries, u: Int[Tensor, " pairs"], v: Int[Tensor, " pairs"]) -> Joint:
    pairs = len(u)
    rows = torch.cat([u, v])
    count = (entries.start[1:] - entries.start[:-1])[rows]
    side = torch.arange(2 * pairs, device=u.device).repeat_interleave(count)
    offset = torch.arange(len(side), device=u.device) - (count.cumsum(0) - count)[side]
    entry = entries.start[rows][side] + offset
    key, pair = entries.key[entry], side % pairs
    # One int64 per (pair, key) sorts several times faster than rows of two columns.
    width = int(key.max()) + 1 if len(key) else 1
    unique, member = (pair * width + key).unique(return_inverse=True)
    code = torch.zeros(len(unique), dtype=torch.int64, device=u.device)
    code.index_add_(0, member, entries.bit[entry] << (3 * (side >= pairs).long()))
    return Joint(unique // width, unique % width, code, entry, member)


@numba.njit(cache=True)
def _join_numba(start, key, bit, u, v):
    total, widest = 0, 0
    for p in range(len(u)):
        size = start[u[p] + 1] - start[u[p]] + start[v[p] + 1] - start[v[p]]
        total += size
        widest = max(widest, size)
    places = 2
    while places < 2 * widest:
        places *= 2
    # `member_at[h]` counts only if it is one of this pair's members; older ones are leftovers.
    member_at = np.full(places, -1, np.int64)
    pair_of, key_of = np.empty(total, np.int64), np.empty(total, np.int64)
    code_of = np.zeros(total, np.int64)
    entry_of, member_of = np.empty(total, np.int64), np.empty(total, np.int64)
    members, incidences = 0, 0
    for p in range(len(u)):
        first = members
        for side in range(2):
            row = u[p] if side == 0 else v[p]
            for e in range(start[row], start[row + 1]):
                h = (key[e] * 2654435761 >> 7) & (places - 1)
                while member_at[h] >= first and key_of[member_at[h]] != key[e]:
                    h = (h + 1) & (places - 1)
                if member_at[h] < first:
                    member_at[h] = members
                    pair_of[members], key_of[members] = p, key[e]
                    members += 1
                code_of[member_at[h]] += bit[e] << (3 * side)
                entry_of[incidences], member_of[incidences] = e, member_at[h]
                incidences += 1
    return pair_of[:members], key_of[:members], code_of[:members], entry_of, member_of


def code_counts(joint: Joint, pairs: int) -> Float[Tensor, "pairs 64"]:
    """How many members of each pair have each position code."""
    flat = torch.bincount(joint.pair * CODES + joint.code, minlength=pairs * CODES)
    return flat.view(pairs, CODES).float()
