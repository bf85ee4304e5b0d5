"""A hypergraph arranged for counting: nodes ranked by degree, edges and triples listed once.

Every triangle and every 4-clique is met exactly once, from its node of lowest degree, so the cost
is bounded by the out-degrees of this orientation instead of by the degrees of hubs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from numba import njit

from peira.data.hypergraph import TemporalHypergraph

CHUNK = 1_000_000
"""Triangles (or 4-cliques) that are held in memory at once by the streaming enumerations."""

_NO_ROWS = np.empty((0, 4), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class OrientedComplex:
    """The projected graph and the simplices of one window, with nodes renamed by rank.

    Ranks ascend with (degree, node number); an edge points to the higher rank.

    Attributes:
        order: node number of each rank.
        rank: rank of each node number.
        degree: projected degree of each rank.
        present: whether the rank occurs in a simplex of this window.
        indptr, heads, tails, weights: out-edges of each rank, heads ascending; tails repeat the
            rank; weights count the simplices that hold both ends.
        face_indptr, apexes, face_counts: per edge i -> j, the nodes k > j for which {i, j, k} is
            inside a simplex (a closed triangle), ascending, and in how many simplices it is.
        member_indptr, members: distinct simplices of at least four nodes, as ascending ranks.
        holder_indptr, holders: per rank, the distinct simplices that hold it.
    """

    order: Int[np.ndarray, " n"]
    rank: Int[np.ndarray, " n"]
    degree: Int[np.ndarray, " n"]
    present: Bool[np.ndarray, " n"]
    indptr: Int[np.ndarray, " n+1"]
    heads: Int[np.ndarray, " edges"]
    tails: Int[np.ndarray, " edges"]
    weights: Int[np.ndarray, " edges"]
    face_indptr: Int[np.ndarray, " edges+1"]
    apexes: Int[np.ndarray, " faces"]
    face_counts: Int[np.ndarray, " faces"]
    member_indptr: Int[np.ndarray, " distinct+1"]
    members: Int[np.ndarray, " members"]
    holder_indptr: Int[np.ndarray, " n+1"]
    holders: Int[np.ndarray, " members"]

    @classmethod
    def of(cls, h: TemporalHypergraph) -> OrientedComplex:
        """Arrange the simplices of `h` (all of its window)."""
        projection = h.projection
        degree = np.diff(projection.indptr).astype(np.int64)
        order = np.argsort(degree, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        tails, heads, weights = _orient(projection, rank)
        indptr = np.searchsorted(tails, np.arange(len(order) + 1))
        sizes, nodes, counts = h.distinct
        face_indptr, apexes, face_counts = _closed_triangles(
            indptr, heads, *_ranked(sizes, nodes, counts, rank, least=3)
        )
        member_indptr, members, _ = _ranked(sizes, nodes, counts, rank, least=4)
        holder_indptr, holders = _transpose(member_indptr, members, len(order))
        present = np.zeros(len(order), dtype=bool)
        present[rank[h.present]] = True
        return cls(
            order, rank, degree[order], present, indptr, heads, tails, weights, face_indptr,
            apexes, face_counts, member_indptr, members, holder_indptr, holders,
        )  # fmt: skip

    def edge_weights(
        self, a: Int[np.ndarray, " pairs"], b: Int[np.ndarray, " pairs"]
    ) -> Int[np.ndarray, " pairs"]:
        """Number of simplices that hold both nodes of each pair (node numbers)."""
        return _pair_weights(self.indptr, self.heads, self.weights, self.rank[a], self.rank[b])

    def triple_counts(self, triples: Int[np.ndarray, "m 3"]) -> Int[np.ndarray, " m"]:
        """Number of simplices that hold all three nodes of each triple (node numbers)."""
        ranked = np.sort(self.rank[triples], axis=1)
        return _triple_counts(
            self.indptr, self.heads, self.face_indptr, self.apexes, self.face_counts, ranked
        )

    def holds(self, sets: Int[np.ndarray, "m k"]) -> Bool[np.ndarray, " m"]:
        """Whether each set of three or four nodes is inside one simplex."""
        if sets.shape[1] == 3:
            return self.triple_counts(sets) > 0
        ranked = np.sort(self.rank[sets], axis=1)
        return _all_held(self.member_indptr, self.members, self.holder_indptr, self.holders, ranked)

    def closed_triples(self) -> Int[np.ndarray, "faces 3"]:
        """Every distinct triple that is inside a simplex, as node numbers (lowest rank first)."""
        edge = np.repeat(np.arange(len(self.heads)), np.diff(self.face_indptr))
        return self.order[np.column_stack([self.tails[edge], self.heads[edge], self.apexes])]

    def triangles(self, chunk: int = CHUNK) -> Iterator[Triangles]:
        """All triangles of the projected graph, in blocks of about `chunk`."""
        counts = _count_triangles(self.indptr, self.heads)
        for low, high, total in _blocks(counts, chunk):
            ranks = np.empty((total, 3), dtype=np.int64)
            edges = np.empty((total, 3), dtype=np.int64)
            counted = np.empty(total, dtype=np.int64)
            _fill_triangles(
                self.indptr, self.heads, self.face_indptr, self.apexes, self.face_counts,
                low, high, ranks, edges, counted,
            )  # fmt: skip
            yield Triangles(ranks, edges, counted)

    def tetrahedra(
        self, closed: bool, chunk: int = CHUNK
    ) -> Iterator[tuple[Int[np.ndarray, "m 4"], Int[np.ndarray, "m 4"]]]:
        """4-cliques that are (or are not) inside one simplex, in blocks of about `chunk`.

        Yields node numbers (a, b, c, d) by ascending rank and the number of simplices that hold
        each face (abc, abd, acd, bcd).
        """
        counts = self._scan_tetrahedra(0, len(self.order), closed)[2]
        for low, high, total in _blocks(counts, chunk):
            ranks = np.empty((total, 4), dtype=np.int64)
            faces = np.empty((total, 4), dtype=np.int64)
            self._scan_tetrahedra(low, high, closed, ranks, faces)
            yield self.order[ranks], faces

    def tetrahedron_types(self) -> tuple[Int[np.ndarray, " 81"], Int[np.ndarray, " 81"]]:
        """Counts of all 4-cliques and of those not inside one simplex, by their four faces.

        The index is the base-3 number of the ascending face classes (0 open, 1 in one simplex,
        2 in several).
        """
        every, unclosed, _ = self._scan_tetrahedra(0, len(self.order), closed=False)
        return every, unclosed

    def _scan_tetrahedra(self, low, high, closed, ranks=_NO_ROWS, faces=_NO_ROWS):
        every = np.zeros(81, dtype=np.int64)
        unclosed = np.zeros(81, dtype=np.int64)
        counts = np.zeros(len(self.order), dtype=np.int64)
        _tetrahedra(
            self.indptr, self.heads, self.face_indptr, self.apexes, self.face_counts,
            self.member_indptr, self.members, self.holder_indptr, self.holders,
            low, high, closed, every, unclosed, counts, ranks, faces,
        )  # fmt: skip
        return every, unclosed, counts


@dataclass(frozen=True, eq=False)
class Triangles:
    """A block of triangles: ranks ascending (i, j, k), edge indices (ij, ik, jk), face counts."""

    ranks: Int[np.ndarray, "m 3"]
    edges: Int[np.ndarray, "m 3"]
    face_counts: Int[np.ndarray, " m"]


def _orient(projection, rank):
    rows = np.repeat(np.arange(projection.shape[0]), np.diff(projection.indptr))
    tails, heads = rank[rows], rank[projection.indices]
    up = tails < heads
    tails, heads, weights = tails[up], heads[up], projection.data[up]
    order = np.lexsort((heads, tails))
    return tails[order], heads[order], weights[order]


def _ranked(sizes, nodes, counts, rank, least):
    """Distinct simplices of at least `least` nodes, members as ascending ranks."""
    keep = sizes >= least
    members = rank[nodes[np.repeat(keep, sizes)]]
    sizes = sizes[keep]
    simplex = np.repeat(np.arange(len(sizes)), sizes)
    members = members[np.lexsort((members, simplex))]
    return np.append(0, np.cumsum(sizes)).astype(np.int64), members, counts[keep]


def _transpose(indptr, members, n):
    simplex = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    order = np.argsort(members, kind="stable")
    return np.searchsorted(members[order], np.arange(n + 1)), simplex[order]


def _blocks(counts, chunk):
    """Ranges of nodes (low, high, total) whose totals stay near `chunk`."""
    ends = np.cumsum(counts)
    low, done = 0, 0
    while low < len(counts):
        high = max(int(np.searchsorted(ends, done + chunk, side="right")), low + 1)
        total = int(ends[high - 1]) - done
        if total:
            yield low, high, total
        low, done = high, int(ends[high - 1])


def _closed_triangles(indptr, heads, member_indptr, members, counts):
    holder_indptr, holders = _transpose(member_indptr, members, len(indptr) - 1)
    sizes = np.diff(member_indptr)
    room = int((sizes * (sizes - 1) * (sizes - 2) // 6).sum())
    face_indptr = np.zeros(len(heads) + 1, dtype=np.int64)
    apexes = np.empty(room, dtype=np.int64)
    face_counts = np.empty(room, dtype=np.int64)
    _fill_faces(
        indptr, heads, member_indptr, members, counts, holder_indptr, holders,
        face_indptr, apexes, face_counts,
    )  # fmt: skip
    total = face_indptr[-1]
    return face_indptr, apexes[:total].copy(), face_counts[:total].copy()


@njit(cache=True)
def _fill_faces(
    indptr, heads, member_indptr, members, counts, holder_indptr, holders,
    face_indptr, apexes, face_counts,
):  # fmt: skip
    n = len(indptr) - 1
    widest = 0
    for i in range(n):
        widest = max(widest, indptr[i + 1] - indptr[i])
    position = np.empty(n, dtype=np.int64)
    together = np.zeros((widest, widest), dtype=np.int64)
    filled = 0
    for i in range(n):
        start, stop = indptr[i], indptr[i + 1]
        for edge in range(start, stop):
            position[heads[edge]] = edge - start
        for held in range(holder_indptr[i], holder_indptr[i + 1]):
            s = holders[held]
            first, last = member_indptr[s], member_indptr[s + 1]
            for a in range(first, last):
                if members[a] <= i:
                    continue
                row = position[members[a]]
                for b in range(a + 1, last):
                    together[row, position[members[b]]] += counts[s]
        for row in range(stop - start):
            for column in range(row + 1, stop - start):
                if together[row, column] > 0:
                    apexes[filled] = heads[start + column]
                    face_counts[filled] = together[row, column]
                    together[row, column] = 0
                    filled += 1
            face_indptr[start + row + 1] = filled


@njit(cache=True)
def _find(values, low, high, wanted):
    """Index of `wanted` in the ascending values[low:high], or -1."""
    end = high
    while low < high:
        middle = (low + high) // 2
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < end and values[low] == wanted else -1


@njit(cache=True)
def _pair_weights(indptr, heads, weights, a, b):
    result = np.zeros(len(a), dtype=np.int64)
    for row in range(len(a)):
        low, high = min(a[row], b[row]), max(a[row], b[row])
        edge = _find(heads, indptr[low], indptr[low + 1], high)
        if edge >= 0:
            result[row] = weights[edge]
    return result


@njit(cache=True)
def _face_count(indptr, heads, face_indptr, apexes, face_counts, i, j, k):
    edge = _find(heads, indptr[i], indptr[i + 1], j)
    if edge < 0:
        return 0
    face = _find(apexes, face_indptr[edge], face_indptr[edge + 1], k)
    return face_counts[face] if face >= 0 else 0


@njit(cache=True)
def _triple_counts(indptr, heads, face_indptr, apexes, face_counts, ranked):
    result = np.zeros(len(ranked), dtype=np.int64)
    for row in range(len(ranked)):
        i, j, k = ranked[row]
        result[row] = _face_count(indptr, heads, face_indptr, apexes, face_counts, i, j, k)
    return result


@njit(cache=True)
def _held(member_indptr, members, holder_indptr, holders, a, b, c, d):
    """Whether one simplex holds all four, looked up through the node with fewest simplices."""
    rarest = a
    for node in (b, c, d):
        fewest = holder_indptr[rarest + 1] - holder_indptr[rarest]
        if holder_indptr[node + 1] - holder_indptr[node] < fewest:
            rarest = node
    for held in range(holder_indptr[rarest], holder_indptr[rarest + 1]):
        s = holders[held]
        low, high = member_indptr[s], member_indptr[s + 1]
        found = True
        for node in (a, b, c, d):
            if node != rarest and _find(members, low, high, node) < 0:
                found = False
                break
        if found:
            return True
    return False


@njit(cache=True)
def _all_held(member_indptr, members, holder_indptr, holders, ranked):
    result = np.zeros(len(ranked), dtype=np.bool_)
    for row in range(len(ranked)):
        a, b, c, d = ranked[row]
        result[row] = _held(member_indptr, members, holder_indptr, holders, a, b, c, d)
    return result


@njit(cache=True)
def _count_triangles(indptr, heads):
    n = len(indptr) - 1
    counts = np.zeros(n, dtype=np.int64)
    seen = np.full(n, -1, dtype=np.int64)
    for i in range(n):
        for edge in range(indptr[i], indptr[i + 1]):
            seen[heads[edge]] = i
        for edge in range(indptr[i], indptr[i + 1]):
            j = heads[edge]
            for far in range(indptr[j], indptr[j + 1]):
                counts[i] += seen[heads[far]] == i
    return counts


@njit(cache=True)
def _fill_triangles(
    indptr, heads, face_indptr, apexes, face_counts, low, high, ranks, edges, counted
):
    n = len(indptr) - 1
    seen = np.full(n, -1, dtype=np.int64)
    filled = 0
    for i in range(low, high):
        start, stop = indptr[i], indptr[i + 1]
        for edge in range(start, stop):
            seen[heads[edge]] = edge
        for edge in range(start, stop):
            j = heads[edge]
            face, last_face = face_indptr[edge], face_indptr[edge + 1]
            for far in range(indptr[j], indptr[j + 1]):
                k = heads[far]
                if seen[k] < start:
                    continue
                while face < last_face and apexes[face] < k:
                    face += 1
                closed = face < last_face and apexes[face] == k
                ranks[filled] = (i, j, k)
                edges[filled] = (edge, seen[k], far)
                counted[filled] = face_counts[face] if closed else 0
                filled += 1


@njit(cache=True)
def _common_above(indptr, heads, face_indptr, apexes, face_counts, seen, i, edge, nodes, faces):
    """Common out-neighbours k of i and j = heads[edge], with the face count of {i, j, k}."""
    j = heads[edge]
    face, last_face = face_indptr[edge], face_indptr[edge + 1]
    size = 0
    for far in range(indptr[j], indptr[j + 1]):
        k = heads[far]
        if seen[k] < indptr[i]:
            continue
        while face < last_face and apexes[face] < k:
            face += 1
        nodes[size] = k
        faces[size] = face_counts[face] if face < last_face and apexes[face] == k else 0
        size += 1
    return size


@njit(cache=True)
def _count_at(apexes, face_counts, face, last_face, node):
    """First face at or after `face` whose apex is not below `node`, and its count or 0."""
    while face < last_face and apexes[face] < node:
        face += 1
    if face < last_face and apexes[face] == node:
        return face, face_counts[face]
    return face, 0


@njit(cache=True)
def _face_code(a, b, c, d):
    """Base-3 number of the ascending face classes min(count, 2)."""
    ones, twos = 0, 0
    for count in (a, b, c, d):
        ones += count == 1
        twos += count > 1
    code = 0
    for place in range(4):
        digit = 0 if place < 4 - ones - twos else (1 if place < 4 - twos else 2)
        code = 3 * code + digit
    return code


@njit(cache=True)
def _tetrahedra(
    indptr, heads, face_indptr, apexes, face_counts,
    member_indptr, members, holder_indptr, holders,
    low, high, want_closed, every, unclosed, counts, ranks, faces,
):  # fmt: skip
    """Count the closed or the unclosed 4-cliques per lowest node; write them if `ranks` has rows.

    `every` and `unclosed` tally types; with `want_closed` they miss cliques with an open face.
    """
    n = len(indptr) - 1
    seen = np.full(n, -1, dtype=np.int64)
    common = np.empty(n, dtype=np.int64)
    face_ij = np.empty(n, dtype=np.int64)
    filled = 0
    for i in range(low, high):
        for edge in range(indptr[i], indptr[i + 1]):
            seen[heads[edge]] = edge
        for edge in range(indptr[i], indptr[i + 1]):
            j = heads[edge]
            size = _common_above(
                indptr, heads, face_indptr, apexes, face_counts, seen, i, edge, common, face_ij
            )
            for first in range(size):
                k = common[first]
                if want_closed and face_ij[first] == 0:
                    continue
                edge_ik = seen[k]
                edge_jk = _find(heads, indptr[j], indptr[j + 1], k)
                at_ik, at_jk = face_indptr[edge_ik], face_indptr[edge_jk]
                far = indptr[k]
                for second in range(first + 1, size):
                    node = common[second]
                    while far < indptr[k + 1] and heads[far] < node:
                        far += 1
                    if far == indptr[k + 1]:
                        break
                    if heads[far] != node:
                        continue
                    at_ik, f_ik = _count_at(
                        apexes, face_counts, at_ik, face_indptr[edge_ik + 1], node
                    )
                    at_jk, f_jk = _count_at(
                        apexes, face_counts, at_jk, face_indptr[edge_jk + 1], node
                    )
                    f_ij, f_il = face_ij[first], face_ij[second]
                    closed = min(f_ij, f_il, f_ik, f_jk) > 0 and _held(
                        member_indptr, members, holder_indptr, holders, i, j, k, node
                    )
                    code = _face_code(f_ij, f_il, f_ik, f_jk)
                    every[code] += 1
                    unclosed[code] += not closed
                    if closed != want_closed:
                        continue
                    counts[i] += 1
                    if len(ranks) > 0:
                        ranks[filled] = (i, j, k, node)
                        faces[filled] = (f_ij, f_il, f_ik, f_jk)
                        filled += 1
