"""Real networks: reading edge lists, cleaning them, and fitting a graphex to them."""

from __future__ import annotations

import gzip
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array, csr_array, issparse
from scipy.special import zeta

from peira.data.errors import DataError
from peira.graphs.graphex_mfg.graphex import SeparablePowerLaw, adjacency_of

# Share of the nodes kept in the thinned graph of the tail-index estimator.
KEPT = 0.5


@dataclass(frozen=True)
class GraphexFit:
    """Separable power-law graphex of an observed network.

    Attributes:
        sigma: estimated sparsity, corrected for the size of the network.
        sigma_interval: 95% interval from the spread of the estimator over the nodes.
        tail_index: the estimate without the correction, right in the limit of large networks.
        nu: estimated size, from the number of edges.
        tail_exponent: exponent of the degree tail, estimated on its own as a check.
        nodes, edges: of the cleaned network.
    """

    sigma: float
    sigma_interval: tuple[float, float]
    tail_index: float
    nu: float
    tail_exponent: float
    nodes: int
    edges: int

    @property
    def graphex(self) -> SeparablePowerLaw:
        """The fitted graphex."""
        return SeparablePowerLaw(self.sigma)


def read_network(path: str | Path) -> csr_array:
    """Adjacency matrix of an undirected simple graph in a text file (also .gz).

    Reads edge lists `u v`, separated by white space or commas, with any names for nodes: SNAP
    (comments with #), KONECT `out.*` (comments with %), Matrix Market `.mtx` (first row after the
    comments gives the shape). Further columns are ignored, as is a first row `src dst ...` of
    column names; loops, repeated edges and directions are dropped.

    Raises:
        DataError: no such file, a row with fewer than two fields, no edge left.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("no such file", path=path)
    heads: list[str] = []
    ends: list[str] = []
    for row, fields in _rows(path):
        if len(fields) < 2:
            raise DataError(
                "an edge needs two nodes", path, row, value=" ".join(fields), expected="`u v`"
            )
        heads.append(fields[0])
        ends.append(fields[1])
    numbers = np.unique(np.array(heads + ends, dtype=str), return_inverse=True)[1]
    return _with_edges(adjacency_of(numbers[: len(heads)], numbers[len(heads) :]), path)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of the rows that hold edges."""
    opened = gzip.open if path.suffix == ".gz" else open
    matrix_market = ".mtx" in path.suffixes
    first = True
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for row, line in enumerate(file, start=1):
                fields = line.replace(",", " ").split()
                if not fields or fields[0][0] in "#%":
                    continue
                if not (first and (matrix_market or _is_header(fields))):
                    yield row, fields
                first = False
    except (UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise DataError(f"not a text file ({error})", path=path) from error


def _is_header(fields: list[str]) -> bool:
    return fields[0].lower() in {"src", "source", "from", "u", "node1", "head"}


def adjacency(graph: Any) -> csr_array:
    """Adjacency matrix of an undirected simple graph, without loops and isolated nodes.

    Args:
        graph: a path (see `read_network`), a networkx graph, a square SciPy sparse matrix, or an
            integer array of edges with shape (edges, 2) or, as in PyTorch Geometric, (2, edges).

    Raises:
        DataError: anything else, or a graph without edges.
    """
    if isinstance(graph, str | Path):
        return read_network(graph)
    if hasattr(graph, "edges") and hasattr(graph, "adj"):
        number = {node: index for index, node in enumerate(graph)}
        edges = np.array([(number[e[0]], number[e[1]]) for e in graph.edges], dtype=np.int64)
        return _with_edges(adjacency_of(*edges.reshape(-1, 2).T))
    if issparse(graph):
        if graph.shape[0] != graph.shape[1]:
            raise DataError("adjacency matrix is not square", value=graph.shape)
        matrix = coo_array(graph)
        kept = matrix.data != 0
        return _with_edges(adjacency_of(matrix.row[kept], matrix.col[kept]))
    edges = np.asarray(graph)
    if edges.ndim != 2 or 2 not in edges.shape or not np.issubdtype(edges.dtype, np.integer):
        raise DataError(
            "not a graph", value=f"{edges.dtype} array of shape {edges.shape}",
            expected="a file, a networkx graph, a sparse matrix or edges of shape (n, 2)",
        )  # fmt: skip
    head, end = edges.T if edges.shape[1] == 2 else edges
    return _with_edges(adjacency_of(head.astype(np.int64), end.astype(np.int64)))


def _with_edges(matrix: csr_array, path: Path | None = None) -> csr_array:
    if matrix.nnz == 0:
        raise DataError("graph without edges", path=path)
    return matrix


def degrees_of(matrix: csr_array) -> Int[np.ndarray, " nodes"]:
    """Number of neighbours of each node."""
    return np.diff(matrix.indptr).astype(np.int64)


def fit_graphex(graph: Any) -> GraphexFit:
    """Fit a separable power-law graphex to a network (anything `adjacency` takes).

    Keeping each node with probability p = 1/2 turns size nu into p nu, and the number of nodes
    grows as nu^(1 + sigma), so log(nodes / E[nodes left with an edge]) / log(1/p) - 1 tends to
    sigma (Naulet, Sharma, Veitch and Roy 2017). At the size of real networks this tail index is
    too large (0.54 for sigma = 1/2, nu = 100); `sigma` has the bias taken off that the exact
    expected numbers of nodes give. The edges give nu = sqrt(2 edges / edge mass).

    Raises:
        DataError: graph without edges, or with degrees too regular for a graphex.

    Warns:
        UserWarning: degree tail exponent above 2, where the average degree stays finite and the
            graphex limit does not hold; or a network too small for the correction.
    """
    degrees = degrees_of(adjacency(graph))
    edges = int(degrees.sum()) // 2
    left = KEPT * (1.0 - (1.0 - KEPT) ** degrees)
    index = _tail_index(1.0, left.mean())
    if not 0.0 < index < 1.0:
        raise DataError(
            f"degrees too regular for a power-law graphex: tail index {index:.3f} of "
            f"{len(degrees)} nodes",
            expected="a sparse network with many small degrees and a few hubs",
        )
    sigma = index - _bias(index, edges)
    if sigma <= 0.0:
        sigma = index
        warnings.warn(
            "too few nodes of small degree to correct sigma for the size of the network; it is "
            "the tail index, which is too large",
            UserWarning,
            stacklevel=2,
        )
    half = 1.96 * left.std() / math.sqrt(len(left)) / left.mean() / math.log(1.0 / KEPT)
    exponent = tail_exponent(degrees)
    if exponent > 2.0:
        warnings.warn(
            f"degree tail exponent {exponent:.2f} is above 2: such networks keep a finite average "
            "degree as they grow, and the graphex limit is not justified for them",
            UserWarning,
            stacklevel=2,
        )
    interval = (float(max(0.0, sigma - half)), float(min(1.0, sigma + half)))
    return GraphexFit(
        sigma, interval, index, _size(sigma, edges), exponent, len(degrees), edges
    )  # fmt: skip


def _size(sigma: float, edges: int) -> float:
    return math.sqrt(2.0 * edges / SeparablePowerLaw(sigma).edge_mass)


def _tail_index(nodes: float, left: float) -> float:
    return math.log(nodes / left) / math.log(1.0 / KEPT) - 1.0


def _bias(sigma: float, edges: int) -> float:
    """Tail index of the expected numbers of nodes at the size that `edges` give, minus sigma."""
    graphex, nu = SeparablePowerLaw(sigma), _size(sigma, edges)
    return _tail_index(graphex.expected_nodes(nu), graphex.expected_nodes(KEPT * nu)) - sigma


def tail_exponent(degrees: Int[np.ndarray, " nodes"], fewest: int = 50) -> float:
    """Exponent of a discrete power law fitted to the largest degrees by maximum likelihood.

    The start of the tail minimises the Kolmogorov-Smirnov distance, among starts that leave at
    least `fewest` nodes (Clauset, Shalizi and Newman 2009).
    """
    values, counts = np.unique(degrees, return_counts=True)
    nodes_above = counts[::-1].cumsum()[::-1]
    starts = np.flatnonzero(nodes_above >= min(fewest, len(degrees)))
    fits = [_fit_tail(values[i:], counts[i:]) for i in starts[:100]]
    return min(fits)[1]


def _fit_tail(
    values: Int[np.ndarray, " distinct"], counts: Int[np.ndarray, " distinct"]
) -> tuple[float, float]:
    """Kolmogorov-Smirnov distance and exponent of a power law from values[0] on."""
    grid = np.arange(1.01, 6.0, 0.01)
    mean_log = (counts * np.log(values)).sum() / counts.sum()
    likelihood: Float[np.ndarray, " grid"] = -grid * mean_log - np.log(zeta(grid, values[0]))
    exponent = float(grid[likelihood.argmax()])
    fitted = 1.0 - zeta(exponent, values + 1) / zeta(exponent, values[0])
    observed = counts.cumsum() / counts.sum()
    return float(np.abs(fitted - observed).max()), exponent
