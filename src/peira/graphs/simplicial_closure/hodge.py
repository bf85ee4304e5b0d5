"""Personalised PageRank on edges through the normalised Hodge operator, and its decomposition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse.linalg import LinearOperator, gmres, lsqr, splu

from peira.graphs.simplicial_closure.complexes import OrientedComplex
from peira.graphs.simplicial_closure.windows import OpenTriangles, Window

DENSE_EDGES = 8000
"""Up to this number of edges the operator is factorised; beyond it each column is iterated."""

TELEPORT = 1 / 0.85 - 1
"""β₀, the weight of the identity for a walk that goes on with probability 0.85."""

BLOCK = 512
"""Columns that are solved for at once."""

Part = Literal["whole", "gradient", "curl", "harmonic"]
PARTS: tuple[Part, ...] = ("whole", "gradient", "curl", "harmonic")


def simplicial_ppr(
    window: Window, triangles: OpenTriangles, part: Part = "whole"
) -> Float[np.ndarray, " m"]:
    """Sum of |S| over the six ordered pairs of edges of each triangle.

    S = β₀ (β₀ I + L₁D⁻¹)⁻¹ with L₁ = grad gradᵀ + curlᵀ curl, the curl taken over closed
    triangles. `part` is S itself or its orthogonal projection on gradients (range of grad), on
    curls (range of curlᵀ), or what is left (harmonic).

    Source: Benson et al. 2018, Table 2 and S6; Schaub et al. 2018, arXiv 1807.05044.
    """
    flows = _flows(window, parts=("whole",) if part == "whole" else PARTS)[part]
    first, second, third = triangles.edges.T
    total = np.zeros(len(triangles))
    for a, b in ((first, second), (first, third), (second, third)):
        total += np.abs(flows[a, b]) + np.abs(flows[b, a])
    return total


@dataclass(frozen=True, eq=False)
class HodgeOperator:
    """grad (edges x nodes), curl (closed triangles x edges) and the normalisation D of edges."""

    grad: sparse.csr_array
    curl: sparse.csr_array
    norm: Float[np.ndarray, " edges"]

    @classmethod
    def of(cls, complex: OrientedComplex) -> HodgeOperator:
        """Operators of one window; every edge points from lower to higher rank.

        D[e] = number of closed triangles on e + the degrees of its two ends (the absolute column
        sums of curl and of gradᵀ grad's incidence).
        """
        edges = len(complex.heads)
        rows = np.arange(edges)
        grad = _signed(
            [rows, rows], [complex.tails, complex.heads], [-1, 1], (edges, len(complex.order))
        )
        closed = [block.edges[block.face_counts > 0] for block in complex.triangles()]
        sides = np.concatenate(closed) if closed else np.empty((0, 3), dtype=np.int64)
        rows = np.arange(len(sides))
        curl = _signed([rows] * 3, list(sides.T), [1, -1, 1], (len(sides), edges))
        on_triangles = np.bincount(sides.ravel(), minlength=edges)
        norm = on_triangles + complex.degree[complex.tails] + complex.degree[complex.heads]
        return cls(grad, curl, norm.astype(np.float64))

    @cached_property
    def laplacian(self) -> sparse.csr_array:
        """L₁ = grad gradᵀ + curlᵀ curl."""
        return sparse.csr_array(self.grad @ self.grad.T + self.curl.T @ self.curl)


def _signed(
    rows: list[np.ndarray], columns: list[np.ndarray], signs: list[int], shape: tuple[int, int]
) -> sparse.csr_array:
    values = np.repeat(np.array(signs, dtype=np.float64), len(rows[0]))
    return sparse.csr_array((values, (np.concatenate(rows), np.concatenate(columns))), shape=shape)


Solver = Callable[[Float[np.ndarray, "edges c"]], Float[np.ndarray, "edges c"]]


def _flows(window: Window, parts: tuple[Part, ...]) -> dict[Part, sparse.csr_array]:
    """Entries of S (and of its parts) for all pairs of edges of one open triangle."""
    key = ("flows", parts)
    if key not in window.kept:
        operator = HodgeOperator.of(window.complex)
        rows, columns = _edge_pairs(window)
        window.kept[key] = _entries(operator, rows, columns, parts)
    return window.kept[key]


def _edge_pairs(window: Window) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    edges = len(window.complex.heads)
    codes = [np.empty(0, dtype=np.int64)]
    for block in window.open_triangles():
        for a in range(3):
            for b in range(3):
                if a != b:
                    codes.append(block.edges[:, b] * edges + block.edges[:, a])
    unique = np.unique(np.concatenate(codes))
    return unique % edges, unique // edges


def _entries(
    operator: HodgeOperator,
    rows: Int[np.ndarray, " pairs"],
    columns: Int[np.ndarray, " pairs"],
    parts: tuple[Part, ...],
) -> dict[Part, sparse.csr_array]:
    edges = len(operator.norm)
    solve, split = _solver(operator), _splitter(operator) if len(parts) > 1 else None
    values = {part: np.zeros(len(rows)) for part in parts}
    wanted = np.unique(columns)
    for start in range(0, len(wanted), BLOCK):
        block = wanted[start : start + BLOCK]
        unit = np.zeros((edges, len(block)))
        unit[block, np.arange(len(block))] = 1.0
        flow = solve(unit)
        pieces: dict[Part, np.ndarray] = {"whole": flow} | (split(flow) if split else {})
        low, high = np.searchsorted(columns, [block[0], block[-1] + 1])
        inside = np.searchsorted(block, columns[low:high])
        for part in parts:
            values[part][low:high] = pieces[part][rows[low:high], inside]
    shape = (edges, edges)
    return {part: sparse.csr_array((values[part], (rows, columns)), shape=shape) for part in parts}


def _solver(operator: HodgeOperator) -> Solver:
    """Columns of S. L₁D⁻¹ is similar to the symmetric D^-½ L₁ D^-½, which Cholesky factorises."""
    root = np.sqrt(operator.norm)
    if len(root) > DENSE_EDGES:
        return _iterative_solver(operator)
    system = operator.laplacian.toarray()
    system /= root[:, None]
    system /= root
    system[np.diag_indices_from(system)] += TELEPORT
    factor = cho_factor(system, lower=True, overwrite_a=True, check_finite=False)

    def solve(flow: Float[np.ndarray, "edges c"]) -> Float[np.ndarray, "edges c"]:
        scaled = cho_solve(factor, flow / root[:, None], overwrite_b=True, check_finite=False)
        return TELEPORT * root[:, None] * scaled

    return solve


def _iterative_solver(operator: HodgeOperator) -> Solver:
    grad, curl, norm = operator.grad, operator.curl, operator.norm

    def apply(x: Float[np.ndarray, " edges"]) -> Float[np.ndarray, " edges"]:
        y = x / norm
        return TELEPORT * x + grad @ (grad.T @ y) + curl.T @ (curl @ y)

    system = LinearOperator((len(norm), len(norm)), matvec=apply)

    def solve(flow: Float[np.ndarray, "edges c"]) -> Float[np.ndarray, "edges c"]:
        columns = [gmres(system, column, rtol=1e-6, atol=0.0) for column in flow.T]
        if any(failed for _, failed in columns):
            raise ArithmeticError("GMRES did not converge for the simplicial PageRank")
        return TELEPORT * np.column_stack([column for column, _ in columns])

    return solve


def _splitter(
    operator: HodgeOperator,
) -> Callable[[Float[np.ndarray, "edges c"]], dict[Part, Float[np.ndarray, "edges c"]]]:
    gradient = _projector(operator.grad)
    curl = _projector(sparse.csr_array(operator.curl.T))

    def split(flow: Float[np.ndarray, "edges c"]) -> dict[Part, Float[np.ndarray, "edges c"]]:
        along, around = gradient(flow), curl(flow)
        return {"gradient": along, "curl": around, "harmonic": flow - along - around}

    return split


def _projector(basis: sparse.csr_array) -> Solver:
    """Orthogonal projection onto the columns of `basis`, which may be linearly dependent.

    A slightly shifted Gram matrix is factorised, on the smaller side of `basis`; two steps of
    refinement take the error of the shift to its cube.
    """
    rows, columns = basis.shape
    if min(rows, columns) > DENSE_EDGES:
        return _iterative_projector(basis)
    by_columns = columns <= rows
    gram = sparse.csc_array(basis.T @ basis if by_columns else basis @ basis.T)
    if gram.shape[0] == 0 or gram.nnz == 0:
        return np.zeros_like
    shift = 1e-7 * float(gram.diagonal().max())
    solve = _shifted_solver(gram, shift)

    def project(flow: Float[np.ndarray, "edges c"]) -> Float[np.ndarray, "edges c"]:
        if not by_columns:
            rest = flow
            for _ in range(3):
                rest = shift * solve(rest)
            return flow - rest
        target = basis.T @ flow
        weights = np.zeros_like(target)
        for _ in range(3):
            weights += solve(target - gram @ weights)
        return basis @ weights

    return project


def _shifted_solver(gram: sparse.csc_array, shift: float) -> Solver:
    if gram.nnz < 0.05 * gram.shape[0] ** 2 and gram.shape[0] > 1000:
        identity = sparse.identity(gram.shape[0], format="csc")
        return splu(sparse.csc_matrix(gram + shift * identity)).solve
    dense = gram.toarray()
    dense[np.diag_indices_from(dense)] += shift
    factor = cho_factor(dense, lower=True, overwrite_a=True, check_finite=False)
    return lambda right: cho_solve(factor, right, check_finite=False)


def _iterative_projector(basis: sparse.csr_array) -> Solver:
    def project(flow: Float[np.ndarray, "edges c"]) -> Float[np.ndarray, "edges c"]:
        columns = [basis @ lsqr(basis, column, atol=1e-8, btol=1e-8)[0] for column in flow.T]
        return np.column_stack(columns)

    return project
