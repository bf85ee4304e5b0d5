"""Scores that rank open triangles by how likely they are to close, each from one window alone.

A score is a function `(window, triangles) -> one number per triangle`; higher means sooner closed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Float, Int
from numba import njit

from peira.engine.errors import PeiraError
from peira.graphs.simplicial_closure.hodge import simplicial_ppr
from peira.graphs.simplicial_closure.walks import katz, ppr
from peira.graphs.simplicial_closure.windows import OpenTriangles, Window

Score = Callable[[Window, OpenTriangles], Float[np.ndarray, " m"]]

MEAN_POWERS = (-np.inf, *np.arange(-4, 4.01, 0.25).tolist(), np.inf)
"""The 35 powers p of the generalised mean that the paper compares (Fig. 7)."""


def power_mean(values: Float[np.ndarray, "m k"], p: float) -> Float[np.ndarray, " m"]:
    """Generalised mean M_p of each row: ((Σ vᵖ) / k)^(1/p); minimum, geometric, maximum limits.

    Values are non-negative; a zero in a row makes its mean zero for p <= 0.
    """
    if p == np.inf:
        return values.max(axis=1)
    if p == -np.inf:
        return values.min(axis=1)
    count = values.shape[1]
    with np.errstate(divide="ignore"):
        if p == 0:
            return values.prod(axis=1) ** (1 / count)
        if p == -1:
            return count / (1 / values).sum(axis=1)
        return ((values**p).sum(axis=1) / count) ** (1 / p)


def generalized_mean(
    window: Window, triangles: OpenTriangles, p: float = -1.0, sort: bool = True
) -> Float[np.ndarray, " m"]:
    """M_p of the three weights W_ij, W_jk, W_ik.

    The weights are sorted first, so that triangles with the same weights get the same score to the
    last bit. `sort=False` adds them in the order of the nodes as the published code does, whose
    rounding splits such ties.
    """
    weights = window.weights(triangles)
    return power_mean(np.sort(weights, axis=1) if sort else weights, p)


def common_neighbors(window: Window, triangles: OpenTriangles) -> Float[np.ndarray, " m"]:
    """Number of fourth nodes tied to all three."""
    return _shared(window, triangles)[:, 3]


def jaccard(window: Window, triangles: OpenTriangles) -> Float[np.ndarray, " m"]:
    """Nodes tied to all three, over nodes tied to at least one."""
    shared = _shared(window, triangles)
    either = window.degree[triangles.nodes].sum(axis=1) - shared[:, :3].sum(axis=1) + shared[:, 3]
    return shared[:, 3] / either


def adamic_adar(window: Window, triangles: OpenTriangles) -> Float[np.ndarray, " m"]:
    """Sum of 1 / log(degree) over the nodes tied to all three."""
    return _shared(window, triangles)[:, 4]


def preferential_attachment(window: Window, triangles: OpenTriangles) -> Float[np.ndarray, " m"]:
    """Product of the three projected degrees."""
    return window.degree[triangles.nodes].astype(np.float64).prod(axis=1)


def simplex_preferential_attachment(
    window: Window, triangles: OpenTriangles
) -> Float[np.ndarray, " m"]:
    """Product of the numbers of simplices that hold each node."""
    return window.simplex_degree[triangles.nodes].astype(np.float64).prod(axis=1)


def mean_of_edges(
    window: Window, triangles: OpenTriangles, kind: str = "common"
) -> Float[np.ndarray, " m"]:
    """A classical link-prediction score of the projected graph, averaged over the three pairs.

    `kind` is common (neighbours), jaccard, adamic-adar or preferential (attachment).
    """
    return _edge_scores(window)[kind][triangles.edges].mean(axis=1)


def _edge_scores(window: Window) -> dict[str, Float[np.ndarray, " edges"]]:
    if "edge scores" not in window.kept:
        a, b = window.ends.T
        indptr, indices = window.adjacency.indptr, window.adjacency.indices
        common, adamic = _shared_by_two(indptr, indices, _inverse_log(window.degree), a, b)
        degree_a, degree_b = window.degree[a], window.degree[b]
        window.kept["edge scores"] = {
            "common": common.astype(np.float64),
            "jaccard": common / (degree_a + degree_b - common),
            "adamic-adar": adamic,
            "preferential": (degree_a * degree_b).astype(np.float64),
        }
    return window.kept["edge scores"]


def features(window: Window, triangles: OpenTriangles) -> Float[np.ndarray, "m 26"]:
    """The 26 features of the supervised score.

    Three weights, three degrees, three simplex degrees, three pairwise and one three-way number of
    common neighbours; then the logarithms of the first nine and log(1 + x) of the last four.
    """
    shared = _shared(window, triangles)[:, :4]
    first = np.column_stack(
        [
            window.weights(triangles),
            window.degree[triangles.nodes],
            window.simplex_degree[triangles.nodes],
        ]
    )
    # The published code counts the pairs ij, ik, jk here although its weights run ij, jk, ik.
    shared = shared[:, [0, 2, 1, 3]]
    return np.column_stack([first, shared, np.log(first), np.log1p(shared)])


SCORES: dict[str, Score] = {
    "harmonic": partial(generalized_mean, p=-1.0),
    "geometric": partial(generalized_mean, p=0.0),
    "arithmetic": partial(generalized_mean, p=1.0),
    "common": common_neighbors,
    "jaccard": jaccard,
    "adamic-adar": adamic_adar,
    "preferential": preferential_attachment,
    "simplex-preferential": simplex_preferential_attachment,
    "katz": partial(katz, weighted=False),
    "weighted-katz": partial(katz, weighted=True),
    "ppr": partial(ppr, weighted=False),
    "weighted-ppr": partial(ppr, weighted=True),
    "simplicial-ppr": simplicial_ppr,
    "simplicial-ppr-gradient": partial(simplicial_ppr, part="gradient"),
    "simplicial-ppr-curl": partial(simplicial_ppr, part="curl"),
    "simplicial-ppr-harmonic": partial(simplicial_ppr, part="harmonic"),
    "pairwise-common": partial(mean_of_edges, kind="common"),
    "pairwise-jaccard": partial(mean_of_edges, kind="jaccard"),
    "pairwise-adamic-adar": partial(mean_of_edges, kind="adamic-adar"),
    "pairwise-preferential": partial(mean_of_edges, kind="preferential"),
}
"""Every unsupervised score by name."""

SUPERVISED = "supervised"
"""Name of the score that is learned from an earlier split."""


def named(score: str | Score) -> Score:
    """The score of that name; `mean:P` is the generalised mean of power P (`mean:-0.5`).

    Raises:
        PeiraError: if there is none.
    """
    if callable(score):
        return score
    if score in SCORES:
        return SCORES[score]
    kind, _, power = score.partition(":")
    if kind == "mean" and _is_number(power):
        return partial(generalized_mean, p=float(power))
    known = ", ".join((*SCORES, SUPERVISED))
    raise PeiraError(f"unknown score {score!r}; expected one of {known}, or mean:P")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _inverse_log(degree: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """1 / log(degree), and 0 below degree 2, where no node can be a common neighbour."""
    return np.where(degree > 1, 1 / np.log(np.maximum(degree, 2)), 0.0)


def _shared(window: Window, triangles: OpenTriangles) -> Float[np.ndarray, "m 5"]:
    """Common neighbours of the pairs ij, jk, ik, of all three, and Adamic-Adar of all three."""
    pairs = _edge_scores(window)["common"][triangles.edges]
    indptr, indices = window.adjacency.indptr, window.adjacency.indices
    three = _shared_by_three(indptr, indices, _inverse_log(window.degree), triangles.nodes)
    return np.column_stack([pairs, three])


@njit(cache=True)
def _first_not_below(values, low, end, wanted):
    """First position from `low` whose value is at least `wanted`, in strides that double."""
    stride = 1
    while low + stride < end and values[low + stride] < wanted:
        low += stride
        stride *= 2
    high = min(low + stride, end)
    while low < high:
        middle = (low + high) // 2
        if values[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
def _shared_by_three(indptr, indices, inverse_log, nodes):
    """Common neighbours of all three and their Adamic-Adar sum; the first has fewest neighbours."""
    shared = np.zeros((len(nodes), 2))
    for row in range(len(nodes)):
        i, j, k = nodes[row]
        at_j, at_k = indptr[j], indptr[k]
        end_j, end_k = indptr[j + 1], indptr[k + 1]
        for position in range(indptr[i], indptr[i + 1]):
            z = indices[position]
            at_j = _first_not_below(indices, at_j, end_j, z)
            if at_j == end_j:
                break
            if indices[at_j] != z:
                continue
            at_k = _first_not_below(indices, at_k, end_k, z)
            if at_k == end_k:
                break
            if indices[at_k] == z:
                shared[row, 0] += 1
                shared[row, 1] += inverse_log[z]
    return shared


@njit(cache=True)
def _shared_by_two(indptr, indices, inverse_log, a, b):
    common = np.zeros(len(a), dtype=np.int64)
    adamic = np.zeros(len(a))
    for row in range(len(a)):
        at_a, at_b = indptr[a[row]], indptr[b[row]]
        while at_a < indptr[a[row] + 1] and at_b < indptr[b[row] + 1]:
            if indices[at_a] == indices[at_b]:
                common[row] += 1
                adamic[row] += inverse_log[indices[at_a]]
                at_a += 1
                at_b += 1
            elif indices[at_a] < indices[at_b]:
                at_a += 1
            else:
                at_b += 1
    return common, adamic
