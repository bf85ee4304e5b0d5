"""One time window prepared for scoring: projected graph, degrees, its open triangles in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from peira.data.hypergraph import TemporalHypergraph
from peira.graphs.simplicial_closure.complexes import CHUNK, OrientedComplex


@dataclass(frozen=True, eq=False)
class OpenTriangles:
    """A block of open triangles.

    Attributes:
        nodes: node numbers; first the node of lowest degree (ties: lowest number), then the other
            two ascending. This is the order of the published code, on which its labels and the
            features of its supervised score depend.
        edges: index of the edges (first-second, second-third, first-third) in `Window.complex`.
    """

    nodes: Int[np.ndarray, "m 3"]
    edges: Int[np.ndarray, "m 3"]

    def __len__(self) -> int:
        return len(self.nodes)


class Window:
    """A hypergraph's window with everything that scores of its open triangles need.

    Args:
        h: the simplices that may be known to a score.
    """

    def __init__(self, h: TemporalHypergraph) -> None:
        self.h = h
        self.kept: dict[Any, Any] = {}

    @cached_property
    def complex(self) -> OrientedComplex:
        """The window arranged for counting."""
        return OrientedComplex.of(self.h)

    @cached_property
    def adjacency(self) -> sparse.csr_array:
        """Projected weights W between node numbers, columns ascending in each row."""
        return self.h.projection

    @cached_property
    def degree(self) -> Int[np.ndarray, " n"]:
        """Number of neighbours of each node in the projected graph."""
        return np.diff(self.adjacency.indptr).astype(np.int64)

    @cached_property
    def simplex_degree(self) -> Int[np.ndarray, " n"]:
        """Number of simplices (repeats included) that hold each node."""
        return np.bincount(self.h.nodes, minlength=self.h.num_nodes)

    @cached_property
    def ends(self) -> Int[np.ndarray, "edges 2"]:
        """Node numbers of both ends of each edge."""
        c = self.complex
        return np.column_stack([c.order[c.tails], c.order[c.heads]])

    def open_triangles(self, chunk: int = CHUNK) -> Iterator[OpenTriangles]:
        """Triangles of the projected graph that no simplex of the window holds, block by block."""
        for block in self.complex.triangles(chunk):
            is_open = block.face_counts == 0
            if is_open.any():
                yield _oriented(self.complex, block.ranks[is_open], block.edges[is_open])

    def weights(self, triangles: OpenTriangles) -> Float[np.ndarray, "m 3"]:
        """W of the three pairs of each triangle, in the order of its edges."""
        return self.complex.weights[triangles.edges].astype(np.float64)


def _oriented(
    complex: OrientedComplex, ranks: Int[np.ndarray, "m 3"], edges: Int[np.ndarray, "m 3"]
) -> OpenTriangles:
    nodes = complex.order[ranks]
    swap = nodes[:, 1] > nodes[:, 2]
    nodes[swap, 1:] = nodes[swap, :0:-1]
    in_order = edges[:, [0, 2, 1]]
    in_order[swap] = edges[swap][:, [1, 2, 0]]
    return OpenTriangles(nodes, in_order)
