"""Structure of a hypergraph: open triangles against density and degree, egonets, random models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import linregress
from sklearn.linear_model import LogisticRegression

from peira.data.errors import DataError
from peira.data.hypergraph import TemporalHypergraph
from peira.graphs.simplicial_closure.complexes import OrientedComplex


def summary(h: TemporalHypergraph) -> dict[str, float]:
    """Size, density and triangles of a hypergraph.

    Returns:
        nodes (that occur), simplices, distinct simplices, edges, average_degree and density of the
        projected graph, mean_weight, open and closed triangles, fraction_open (NaN without any).
    """
    complex = OrientedComplex.of(h)
    opened, closed = 0, len(complex.apexes)
    for block in complex.triangles():
        opened += int((block.face_counts == 0).sum())
    nodes, edges = int(complex.present.sum()), len(complex.heads)
    return {
        "nodes": nodes,
        "simplices": len(h),
        "distinct": len(h.distinct[0]),
        "edges": edges,
        "average_degree": 2 * edges / nodes if nodes else float("nan"),
        "density": edges / comb(nodes, 2) if nodes > 1 else float("nan"),
        "mean_weight": float(complex.weights.mean()) if edges else float("nan"),
        "open": opened,
        "closed": closed,
        "fraction_open": opened / (opened + closed) if opened + closed else float("nan"),
    }


def of_size(h: TemporalHypergraph, size: int) -> TemporalHypergraph:
    """Only the simplices of exactly `size` nodes (the paper's second panel keeps size 3)."""
    return h.select(h.sizes == size)


def open_against_degree(summaries: Sequence[Mapping[str, float]]) -> tuple[float, float, float]:
    """Line of fraction open on log average degree over data sets: slope, intercept, R².

    Source: Benson et al. 2018, Fig. 2D and 2E.
    """
    x = np.log([s["average_degree"] for s in summaries])
    y = np.array([s["fraction_open"] for s in summaries])
    line = linregress(x, y)
    return float(line.slope), float(line.intercept), float(line.rvalue**2)


def egonet(h: TemporalHypergraph, ego: int) -> TemporalHypergraph:
    """Every simplex cut down to the ego and its neighbours; simplices left empty are dropped."""
    inside = np.zeros(h.num_nodes, dtype=bool)
    projection = h.projection
    inside[projection.indices[projection.indptr[ego] : projection.indptr[ego + 1]]] = True
    inside[ego] = True
    kept = inside[h.nodes]
    simplex = np.repeat(np.arange(len(h)), h.sizes)[kept]
    sizes = np.bincount(simplex, minlength=len(h))
    some = sizes > 0
    return type(h)(sizes[some], h.nodes[kept], h.times[some], h.ids, h.labels, h.name)


def egonet_features(
    h: TemporalHypergraph, egos: int, rng: np.random.Generator
) -> Float[np.ndarray, "egos 3"]:
    """Log average degree, log density and fraction open of the egonets of random nodes.

    Egos are drawn without replacement from the nodes of at least one triangle of the projection.

    Raises:
        DataError: if fewer nodes than `egos` are in a triangle.
    """
    complex = OrientedComplex.of(h)
    in_triangle = np.zeros(len(complex.order), dtype=bool)
    for block in complex.triangles():
        in_triangle[block.ranks] = True
    eligible = complex.order[in_triangle]
    if len(eligible) < egos:
        raise DataError(
            f"{h.name} has too few nodes in triangles", value=len(eligible), expected=f">= {egos}"
        )
    rows = []
    for ego in rng.choice(eligible, size=egos, replace=False):
        s = summary(egonet(h, int(ego)))
        rows.append([np.log(s["average_degree"]), np.log(s["density"]), s["fraction_open"]])
    return np.array(rows)


def classify_systems(
    features: Float[np.ndarray, "m f"], systems: Sequence[str], rng: np.random.Generator
) -> tuple[float, float]:
    """Held-out accuracy of telling the kind of system from egonet features, and of guessing.

    Multinomial logistic regression (C = 10) on a random 80% of the egonets of each kind; guessing
    draws a kind with its frequency. The paper averages 20 draws of 100 egos per data set.
    """
    kinds = np.asarray(systems)
    train = np.zeros(len(kinds), dtype=bool)
    for kind in np.unique(kinds):
        rows = rng.permutation(np.flatnonzero(kinds == kind))
        train[rows[: round(0.8 * len(rows))]] = True
    model = LogisticRegression(C=10, solver="newton-cg", max_iter=10_000)
    model.fit(features[train], kinds[train])
    _, counts = np.unique(kinds[train], return_counts=True)
    return float(model.score(features[~train], kinds[~train])), float(
        ((counts / train.sum()) ** 2).sum()
    )


def random_triples(n: int, b: float, rng: np.random.Generator) -> TemporalHypergraph:
    """Null model: each of the n-choose-3 triples is a simplex with probability n^-b.

    Times number the simplices in random order.
    """
    total = comb(n, 3)
    chosen = rng.choice(total, size=rng.binomial(total, n**-b), replace=False)
    nodes = _unrank_triples(chosen, n)
    m = len(nodes)
    ids = np.arange(1, n + 1)
    return TemporalHypergraph(
        np.full(m, 3), nodes.ravel(), np.arange(m), ids, name=f"random triples n={n} b={b}"
    )


def expected_fraction_open(n: int, b: float) -> float:
    """Expected open over expected open and closed triangles of `random_triples`.

    A triple is closed with probability p = n^-b; it is open if it is not a simplex and each of its
    pairs is in one of the n - 3 simplices with a further node: (1 - p)(1 - (1 - p)^(n-3))³.
    """
    p = n**-b
    opened = (1 - p) * (1 - (1 - p) ** (n - 3)) ** 3
    return opened / (opened + p)


def affiliation_process(
    n: int, m: int, rng: np.random.Generator, loyalty: float = 0.9, largest: int = 5
) -> TemporalHypergraph:
    """Simulated teams: members are drawn in proportion to their past ties with the team.

    Each of `m` events has 2..`largest` members. The first is uniform; each further one is, with
    probability `loyalty`, drawn in proportion to its projected weights to those already in (where
    there are any), otherwise uniform. Strong ties therefore recur, as in the data of the paper.

    Args:
        n: number of nodes.
        m: number of events, at times 0..m-1.
        rng: source of randomness.
        loyalty: probability of drawing by past ties, in [0, 1].
        largest: largest team.
    """
    weights = np.zeros((n, n))
    events: list[tuple[float, list[int]]] = []
    for time in range(m):
        team = [int(rng.integers(n))]
        size = int(rng.integers(2, largest + 1))
        while len(team) < size:
            pull = weights[team].sum(axis=0)
            pull[team] = 0.0
            if rng.random() >= loyalty or pull.sum() == 0:
                pull = np.ones(n)
                pull[team] = 0.0
            team.append(int(rng.choice(n, p=pull / pull.sum())))
        weights[np.ix_(team, team)] += 1
        events.append((time, team))
    return TemporalHypergraph.from_events(events, max_size=largest, name="affiliation process")


def _unrank_triples(index: Int[np.ndarray, " m"], n: int) -> Int[np.ndarray, "m 3"]:
    """The index-th triple i < j < k of 0..n-1 in lexicographic order."""
    lower = np.arange(n)
    by_first = np.append(0, np.cumsum((n - 1 - lower) * (n - 2 - lower) // 2))
    i = np.searchsorted(by_first, index, side="right") - 1
    rest = index - by_first[i]
    by_second = np.append(0, np.cumsum(n - 1 - lower))
    second = np.searchsorted(by_second, rest + by_second[i + 1], side="right") - 1
    k = rest + by_second[i + 1] - by_second[second] + second + 1
    return np.column_stack([i, second, k])
