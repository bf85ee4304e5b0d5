"""A person's own graphex: any symmetric function or table, constant on the cells of a grid."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from jaxtyping import Float, Int
from numba import njit
from scipy.sparse import csr_array
from scipy.special import gammaln

from peira.graphs.graphex_mfg.graphex import MOST_POINTS, adjacency_of

# Share of the edge ends in the outer half of a grid that calls for a longer one.
TAIL_SHARE = 0.02


@dataclass(frozen=True, eq=False)
class TabulatedGraphex:
    """W(a, b) = table[i, j] for a in cell i and b in cell j of a grid, zero beyond the grid.

    The core has one class for each cell, with neighbours exactly as the table says. Graphs of such
    a graphex turn dense as they grow without end, because the grid ends; a graph of size nu is as
    sparse as the cells far out make it, so degree laws need a size, and the neighbours of the
    periphery are those of the last cell with an edge.

    Args:
        grid: borders of the cells, from 0 upwards.
        table: W on each pair of cells, symmetric, in [0, 1].

    Raises:
        ValueError: a grid that does not rise from 0, or a table that is not such a W.

    Example:
        >>> from peira.graphs import SIS, solve
        >>> own = TabulatedGraphex.from_function(lambda a, b: 0.9 * np.exp(-a * b - a - b), 20.0)
        >>> equilibrium = solve(SIS(horizon=10), own, kstar=3, iterations=50)
        >>> equilibrium.exploitability.shape
        (203,)
    """

    grid: Float[np.ndarray, " borders"]
    table: Float[np.ndarray, "cells cells"]

    def __post_init__(self) -> None:
        grid, table = np.asarray(self.grid, dtype=float), np.asarray(self.table, dtype=float)
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "table", table)
        if grid.ndim != 1 or len(grid) < 2 or grid[0] != 0 or not (np.diff(grid) > 0).all():
            raise ValueError("the grid must rise from 0 and have at least two borders")
        if table.shape != (len(grid) - 1,) * 2:
            raise ValueError(
                f"{len(grid)} borders make {len(grid) - 1} cells, but the table has shape "
                f"{table.shape}"
            )
        wrong = ~((table >= 0.0) & (table <= 1.0))
        if wrong.any():
            i, j = np.argwhere(wrong)[0]
            raise ValueError(f"W must lie in [0, 1]; got {table[i, j]} in cells ({i}, {j})")
        uneven = np.abs(table - table.T) > 1e-9
        if uneven.any():
            i, j = np.argwhere(uneven)[0]
            raise ValueError(
                f"W must be symmetric; got {table[i, j]} and {table[j, i]} in cells ({i}, {j})"
            )
        if not table.any():
            raise ValueError("W is zero on the whole grid: its graphs have no edge")

    @classmethod
    def from_function(
        cls,
        w: Callable[[np.ndarray, np.ndarray], np.ndarray],
        reach: float,
        cells: int = 200,
    ) -> Self:
        """A function W(a, b), averaged over cells that are equally wide in log(1 + a).

        Args:
            w: takes arrays that broadcast against each other.
            reach: where the grid ends; W is taken as zero beyond.
            cells: number of cells.

        Raises:
            ValueError: reach not positive, fewer than one cell, or as the class.

        Warns:
            UserWarning: more than 2% of the edge ends are in the outer half of the grid, so that
                W beyond it may matter.
        """
        if not reach > 0 or cells < 1:
            raise ValueError(f"reach must be positive and cells at least 1; got {reach}, {cells}")
        grid = np.expm1(np.linspace(0.0, np.log1p(reach), cells + 1))
        # Three Gauss-Legendre points in each cell.
        nodes, weights = np.polynomial.legendre.leggauss(3)
        points = (0.5 * (nodes + 1) * np.diff(grid)[:, None] + grid[:-1, None]).ravel()
        values = np.broadcast_to(w(points[:, None], points), (3 * cells,) * 2)
        mean = np.einsum("ipjq,p,q->ij", values.reshape(cells, 3, cells, 3), weights, weights) / 4
        self = cls(grid, mean)
        outer = grid[:-1] >= 0.5 * reach
        share = (self.xi * self.widths)[outer].sum() / self.edge_mass
        if share > TAIL_SHARE:
            warnings.warn(
                f"{share:.0%} of the edge ends lie beyond half of the grid: raise reach={reach:g}",
                UserWarning,
                stacklevel=2,
            )
        return self

    def __call__(
        self, a: Float[np.ndarray, "*shape"], b: Float[np.ndarray, "*shape"]
    ) -> np.ndarray:
        """W(a, b)."""
        i, j = (np.searchsorted(self.grid, x, side="right") - 1 for x in (a, b))
        inside = (i < len(self.table)) & (j < len(self.table))
        last = len(self.table) - 1
        return np.where(inside, self.table[np.minimum(i, last), np.minimum(j, last)], 0.0)

    @cached_property
    def widths(self) -> Float[np.ndarray, " cells"]:
        """Length of each cell."""
        return np.diff(self.grid)

    @cached_property
    def xi(self) -> Float[np.ndarray, " cells"]:
        """Integral of W over b; a node of the cell has Poisson(nu xi) neighbours."""
        return self.table @ self.widths

    @property
    def edge_mass(self) -> float:
        """Integral of W over the quadrant."""
        return float(self.xi @ self.widths)

    def expected_edges(self, nu: float) -> float:
        """Mean number of edges at size `nu`."""
        return 0.5 * nu**2 * self.edge_mass

    def expected_nodes(self, nu: float) -> float:
        """Mean number of nodes that are not isolated at size `nu`."""
        return float(-nu * np.expm1(-nu * self.xi) @ self.widths)

    def degree_law(self, largest: int, nu: float | None = None) -> Float[np.ndarray, " degrees"]:
        """Share of the nodes that have degree 1, ..., `largest` at size `nu`.

        Raises:
            ValueError: no size: there is no limiting law on a grid that ends.
        """
        nodes = self._nodes(largest, nu)
        return nodes.sum(axis=1) / self.expected_nodes(_sized(nu))

    def core_shares(self, kstar: int, nu: float | None = None) -> Float[np.ndarray, " cells"]:
        """Share of each cell among the nodes with more than `kstar` neighbours at size `nu`."""
        size = _sized(nu)
        present = -size * np.expm1(-size * self.xi) * self.widths
        core = np.maximum(present - self._nodes(kstar, nu).sum(axis=0), 0.0)
        return core / core.sum()

    def _nodes(self, largest: int, nu: float | None) -> Float[np.ndarray, "degrees cells"]:
        """Expected number of nodes of each degree 1, ..., `largest` in each cell."""
        size = _sized(nu)
        rate = size * self.xi
        k = np.arange(1, largest + 1)[:, None]
        with np.errstate(divide="ignore"):
            poisson = np.exp(k * np.log(rate) - rate - gammaln(k + 1))
        return size * poisson * self.widths

    def neighbour_matrix(self) -> Float[np.ndarray, "cells cells"]:
        """W(a_i, a_j) |cell j| / xi_i; a cell without edges sees what the periphery sees."""
        matrix = self.table * self.widths
        matrix[self.xi == 0] = matrix[self._last]
        return matrix / matrix.sum(1, keepdims=True)

    def light_neighbours(self) -> Float[np.ndarray, " cells"]:
        """Neighbours of the last cell with an edge."""
        return self.neighbour_matrix()[self._last]

    @property
    def _last(self) -> int:
        return int(np.flatnonzero(self.xi)[-1])

    def core_class(
        self, degrees: Int[np.ndarray, " nodes"], nu: float
    ) -> Int[np.ndarray, " nodes"]:
        """Cell whose expected degree nu xi is nearest; the first of several alike."""
        expected, cell = np.unique(nu * self.xi, return_index=True)
        return cell[np.searchsorted(0.5 * (expected[1:] + expected[:-1]), degrees)]

    def sample(self, nu: float, rng: np.random.Generator) -> csr_array:
        """A random graph of size `nu`, exactly: symmetric adjacency matrix, no isolated nodes.

        Raises:
            ValueError: nu not positive, or so many points that memory would not hold them.
        """
        if not nu > 0:
            raise ValueError(f"the size nu must be positive, got {nu}")
        if nu * self.grid[-1] > MOST_POINTS:
            raise ValueError(
                f"nu={nu} on a grid up to {self.grid[-1]:g} needs {nu * self.grid[-1]:.1e} "
                "candidate points; lower nu or end the grid earlier"
            )
        counts = rng.poisson(nu * self.widths)
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        return adjacency_of(*_edges_of_cells(first, counts, self.table, rng))


def _sized(nu: float | None) -> float:
    if nu is None:
        raise ValueError("a graphex on a grid has no limiting degree law: give the size nu")
    return nu


@njit(cache=True)
def _edges_of_cells(first, counts, table, rng):  # type: ignore[no-untyped-def]
    """Edges among points that lie in cells, each pair with the probability of its two cells.

    Points of cell i have the numbers first[i], ...; geometric steps skip the pairs without an edge.
    """
    head, end = [np.int64(0) for _ in range(0)], [np.int64(0) for _ in range(0)]
    for i in range(len(counts)):
        for j in range(i + 1):
            p = table[i, j]
            pairs = counts[i] * counts[j] if j < i else counts[i] * (counts[i] - 1) // 2
            at = np.int64(-1)
            while p > 0:
                skipped = 0.0 if p >= 1 else np.floor(np.log1p(-rng.random()) / np.log1p(-p))
                if skipped >= pairs - 1 - at:
                    break
                at += 1 + np.int64(skipped)
                if j < i:
                    row, column = at // counts[j], at % counts[j]
                else:
                    row, column = _pair_within(at)
                head.append(first[i] + row)
                end.append(first[j] + column)
    return np.array(head), np.array(end)


@njit(cache=True)
def _pair_within(at):  # type: ignore[no-untyped-def]
    """The pair (row, column), column < row, that has the number `at` in the order of rows."""
    row = np.int64((1 + np.sqrt(1 + 8.0 * at)) / 2)
    # The root may be off by one where it is rounded.
    while row * (row - 1) // 2 > at:
        row -= 1
    while row * (row + 1) // 2 <= at:
        row += 1
    return row, at - row * (row - 1) // 2
