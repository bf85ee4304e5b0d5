"""Katz and personalised PageRank scores of triples, summed over the six ordered pairs."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.sparse.linalg import eigsh, gmres

from peira.graphs.simplicial_closure.windows import OpenTriangles, Window

DENSE_NODES = 4000
"""Below this number of nodes the resolvent is inverted outright."""

RESTART = 0.85
"""Probability of going on in a PageRank walk."""


def katz(
    window: Window, triangles: OpenTriangles, weighted: bool = True
) -> Float[np.ndarray, " m"]:
    """Sum of the six entries among three nodes of (I - βM)⁻¹ - I.

    M is W or its 0/1 version; β = min(1 / (4 σ₁(M)), 1/2).
    """
    return _pair_sums(window, "katz", weighted)[triangles.edges].sum(axis=1)


def ppr(window: Window, triangles: OpenTriangles, weighted: bool = True) -> Float[np.ndarray, " m"]:
    """Sum of the six entries among three nodes of 0.15 (I - 0.85 M D⁻¹)⁻¹, columns normalised."""
    return _pair_sums(window, "ppr", weighted)[triangles.edges].sum(axis=1)


def _pair_sums(window: Window, kind: str, weighted: bool) -> Float[np.ndarray, " edges"]:
    """K[a, b] + K[b, a] of each edge, computed once per window."""
    key = (kind, weighted)
    if key not in window.kept:
        matrix, scale = _system(window.adjacency, kind, weighted)
        a, b = window.ends.T
        if window.h.num_nodes < DENSE_NODES:
            inverse = np.linalg.inv(matrix.toarray())
            window.kept[key] = scale * (inverse[a, b] + inverse[b, a])
        else:
            window.kept[key] = scale * _iterative(matrix, a, b, _edges_in_open(window))
    return window.kept[key]


def _system(
    adjacency: sparse.csr_array, kind: str, weighted: bool
) -> tuple[sparse.csc_array, float]:
    """The matrix to invert and the factor of its inverse."""
    walk = adjacency.astype(np.float64)
    if not weighted:
        walk.data[:] = 1.0
    identity = sparse.identity(walk.shape[0], format="csr")
    if kind == "katz":
        return sparse.csc_array(identity - _katz_decay(walk) * walk), 1.0
    total = walk.sum(axis=0)
    per_column = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    return sparse.csc_array(identity - RESTART * walk @ sparse.diags_array(per_column)), 1 - RESTART


def _katz_decay(walk: sparse.csr_array) -> float:
    # W is symmetric and non-negative, so its largest singular value is its largest eigenvalue.
    start = np.ones(walk.shape[0])
    largest = eigsh(walk, k=1, which="LA", v0=start, return_eigenvectors=False)[0]
    return min(0.25 / float(largest), 0.5)


def _edges_in_open(window: Window) -> Int[np.ndarray, " some"]:
    used = np.zeros(len(window.ends), dtype=bool)
    for block in window.open_triangles():
        used[block.edges] = True
    return np.flatnonzero(used)


def _iterative(
    matrix: sparse.csc_array,
    a: Int[np.ndarray, " edges"],
    b: Int[np.ndarray, " edges"],
    wanted: Int[np.ndarray, " some"],
) -> Float[np.ndarray, " edges"]:
    """The same sums by GMRES, one column per node of a wanted edge; other edges get NaN."""
    sums = np.full(len(a), np.nan)
    sums[wanted] = 0.0
    seed = np.concatenate([a[wanted], b[wanted]])
    other = np.concatenate([b[wanted], a[wanted]])
    edge = np.concatenate([wanted, wanted])
    order = np.argsort(seed, kind="stable")
    nodes, starts = np.unique(seed[order], return_index=True)
    for node, rows in zip(nodes, np.split(order, starts[1:]), strict=True):
        # An edge occurs once per seed node, so plain indexed addition is exact.
        sums[edge[rows]] += _column(matrix, int(node))[other[rows]]
    return sums


def _column(matrix: sparse.csc_array, node: int) -> Float[np.ndarray, " n"]:
    unit = np.zeros(matrix.shape[0])
    unit[node] = 1.0
    solution, failed = gmres(matrix, unit, rtol=1e-6, atol=0.0)
    if failed:
        raise ArithmeticError(f"GMRES did not converge for node {node}")
    return solution
