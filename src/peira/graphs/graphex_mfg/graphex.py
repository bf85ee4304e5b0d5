"""Graphexes: limits of sparse graph sequences, their exact sampling and their degree laws.

A graphex W assigns to a pair of points of the half line a probability. The graph of size `nu` has a
unit-rate Poisson process of points (theta, alpha) on [0, nu] x R+ as candidate nodes, joins each
pair with probability W(alpha, alpha'), and forgets the points without an edge (Veitch and Roy 2015;
Borgs, Chayes, Cohn and Holden 2018). Every graphex here has the form W = h(x x') for weights x that
decrease in alpha, which is what makes exact sampling possible without visiting the infinitely many
points that stay isolated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int
from numba import njit
from scipy.sparse import csr_array
from scipy.special import gamma, gammainc, gammaln

# Points of the Poisson process that the sampler is willing to draw.
MOST_POINTS = 50_000_000


class Graphex(Protocol):
    """What the limit system needs to know of a graphex."""

    @property
    def edge_mass(self) -> float:
        """Integral of W over the quadrant; a graph of size nu has nu^2/2 times as many edges."""
        ...

    def neighbour_matrix(self) -> Float[np.ndarray, "classes classes"]:
        """Share of each core class among the neighbours of a core agent; rows sum to one."""
        ...

    def light_neighbours(self) -> Float[np.ndarray, " classes"]:
        """Share of each core class among the neighbours of a periphery agent."""
        ...

    def core_class(
        self, degrees: Int[np.ndarray, " nodes"], nu: float
    ) -> Int[np.ndarray, " nodes"]:
        """The core class whose expected degree at size `nu` is nearest to each degree."""
        ...

    def degree_law(self, largest: int, nu: float | None = None) -> Float[np.ndarray, " degrees"]:
        """Share of the nodes that have degree 1, ..., `largest`."""
        ...

    def core_shares(self, kstar: int, nu: float | None = None) -> Float[np.ndarray, " classes"]:
        """Share of each core class among the nodes with more than `kstar` neighbours."""
        ...


@dataclass(frozen=True)
class SeparablePowerLaw:
    """W(a, b) = (1 + a)^(-1/sigma) (1 + b)^(-1/sigma), the graphex of the paper's experiments.

    Its graphs have degree tail exponent 1 + sigma, so the average degree grows with the graph, as
    nu^(1 - sigma). Networks whose average degree stays finite (exponent above 2) have no graphex.

    Args:
        sigma: sparsity in (0, 1); 0 is the dense end.

    Raises:
        ValueError: sigma outside (0, 1).
    """

    sigma: float

    def __post_init__(self) -> None:
        _check_sigma(self.sigma)

    def __call__(
        self, a: Float[np.ndarray, "*shape"], b: Float[np.ndarray, "*shape"]
    ) -> np.ndarray:
        """W(a, b)."""
        return self.weight(a) * self.weight(b)

    def weight(self, alpha: Float[np.ndarray, "*shape"]) -> np.ndarray:
        """(1 + alpha)^(-1/sigma)."""
        return (1.0 + np.asarray(alpha)) ** (-1.0 / self.sigma)

    def xi(self, alpha: Float[np.ndarray, "*shape"]) -> np.ndarray:
        """Integral of W(alpha, b) over b; a node at alpha has Poisson(nu xi(alpha)) neighbours."""
        return self._total * self.weight(alpha)

    @property
    def _total(self) -> float:
        return self.sigma / (1.0 - self.sigma)

    @property
    def edge_mass(self) -> float:
        """(sigma / (1 - sigma))^2."""
        return self._total**2

    def expected_edges(self, nu: float) -> float:
        """Mean number of edges at size `nu`."""
        return 0.5 * nu**2 * self.edge_mass

    def expected_nodes(self, nu: float) -> float:
        """Mean number of nodes that are not isolated at size `nu`."""
        c, s = nu * self._total, self.sigma
        return nu * (c**s * gamma(1 - s) * gammainc(1 - s, c) - 1.0 + np.exp(-c))

    def degree_law(self, largest: int, nu: float | None = None) -> Float[np.ndarray, " degrees"]:
        """p_k = sigma Gamma(k - sigma) / (k! Gamma(1 - sigma)), or the exact law at size `nu`."""
        k, s = np.arange(1, largest + 1), self.sigma
        law = s * np.exp(gammaln(k - s) - gammaln(k + 1) - gammaln(1 - s))
        if nu is None:
            return law
        c = nu * self._total
        nodes = law * gamma(1 - s) * c**s * gammainc(k - s, c)
        return nodes * nu / self.expected_nodes(nu)

    def neighbour_matrix(self) -> Float[np.ndarray, "1 1"]:
        """One class: the neighbourhood of a core agent does not depend on its alpha."""
        return np.ones((1, 1))

    def light_neighbours(self) -> Float[np.ndarray, " 1"]:
        """All of them in the one class."""
        return np.ones(1)

    def core_shares(self, kstar: int, nu: float | None = None) -> Float[np.ndarray, " 1"]:
        """All of them in the one class."""
        return np.ones(1)

    def core_class(
        self, degrees: Int[np.ndarray, " nodes"], nu: float
    ) -> Int[np.ndarray, " nodes"]:
        """Zero for every node: there is one class."""
        return np.zeros(len(degrees), dtype=np.int64)

    def sample(self, nu: float, rng: np.random.Generator, tolerance: float = 1e-6) -> csr_array:
        """A random graph of size `nu`: symmetric adjacency matrix, no loops, no isolated nodes.

        Pairs of points with a weight above a cut, and pairs across it, are drawn exactly; edges
        between two points below it have the right intensity and are so rare that no two of them
        meet. The cut is placed where they would with probability below `tolerance`, which bounds
        the error in total variation.

        Raises:
            ValueError: nu not positive, or so many points that memory would not hold them.
        """
        return _sample(nu, rng, tolerance, self.sigma, self.sigma, 0.0, 1.0, False)


@dataclass(frozen=True)
class GeneralisedGamma:
    """W = 1 - exp(-2 w w') with weights of a generalised gamma process (Caron and Fox 2017).

    Weights have intensity w^(-1-sigma) exp(-tau w) / Gamma(1 - sigma). The graphex is not
    separable, so core agents of different weight see different neighbourhoods and the core is
    split into classes that hold equal shares of the edge ends.

    Args:
        sigma: sparsity in (0, 1).
        tau: exponential tempering of large weights, positive.
        classes: number of core classes (the paper's group uses 101).

    Raises:
        ValueError: sigma outside (0, 1), tau not positive, no class.
    """

    sigma: float
    tau: float = 1.0
    classes: int = 101

    def __post_init__(self) -> None:
        _check_sigma(self.sigma)
        if self.tau <= 0 or self.classes < 1:
            raise ValueError(
                f"tau must be positive and classes at least 1; got {self.tau}, {self.classes}"
            )

    def xi(self, weight: Float[np.ndarray, "*shape"]) -> np.ndarray:
        """Laplace exponent at twice the weight: ((2w + tau)^sigma - tau^sigma) / sigma."""
        s, tau = self.sigma, self.tau
        return ((2.0 * np.asarray(weight) + tau) ** s - tau**s) / s

    def _grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights on a fine logarithmic grid and the intensity mass of each."""
        log_w = np.linspace(np.log(1e-14), np.log(800.0 / self.tau), 40_001)
        w = np.exp(log_w)
        mass = np.exp(-self.sigma * log_w - self.tau * w) / gamma(1 - self.sigma)
        return w, mass * (log_w[1] - log_w[0])

    @property
    def edge_mass(self) -> float:
        """Integral of W."""
        w, mass = self._grid()
        return float(self.xi(w) @ mass)

    def expected_edges(self, nu: float) -> float:
        """Mean number of edges at size `nu`."""
        return 0.5 * nu**2 * self.edge_mass

    def expected_nodes(self, nu: float) -> float:
        """Mean number of nodes that are not isolated at size `nu`."""
        w, mass = self._grid()
        return float(nu * (-np.expm1(-nu * self.xi(w)) @ mass))

    def degree_law(self, largest: int, nu: float | None = None) -> Float[np.ndarray, " degrees"]:
        """Limiting law, which depends on sigma alone, or the exact law at size `nu`."""
        if nu is None:
            return SeparablePowerLaw(self.sigma).degree_law(largest)
        w, mass = self._grid()
        rate = nu * self.xi(w)
        k = np.arange(1, largest + 1)[:, None]
        poisson = np.exp(k * np.log(rate) - rate - gammaln(k + 1))
        return nu * (poisson @ mass) / self.expected_nodes(nu)

    def core_weights(self) -> Float[np.ndarray, " classes"]:
        """Weight that represents each class: medians of equal shares of the edge ends."""
        w, mass = self._grid()
        ends = np.cumsum(self.xi(w) * mass)
        return np.interp((np.arange(self.classes) + 0.5) / self.classes, ends / ends[-1], w)

    def neighbour_matrix(self) -> Float[np.ndarray, "classes classes"]:
        """W(w_i, w_j) / xi(w_j), made to sum to one over j."""
        w = self.core_weights()
        matrix = -np.expm1(-2.0 * np.outer(w, w)) / self.xi(w)
        return matrix / matrix.sum(1, keepdims=True)

    def light_neighbours(self) -> Float[np.ndarray, " classes"]:
        """Proportional to w_j / xi(w_j), the row of the matrix for weight zero."""
        w = self.core_weights()
        return w / self.xi(w) / (w / self.xi(w)).sum()

    def core_shares(self, kstar: int, nu: float | None = None) -> Float[np.ndarray, " classes"]:
        """Spread over the classes as the edge ends are, evenly."""
        return np.full(self.classes, 1.0 / self.classes)

    def core_class(
        self, degrees: Int[np.ndarray, " nodes"], nu: float
    ) -> Int[np.ndarray, " nodes"]:
        """Class whose expected degree nu xi(w) is nearest."""
        expected = nu * self.xi(self.core_weights())
        return np.searchsorted(0.5 * (expected[1:] + expected[:-1]), degrees)

    def sample(self, nu: float, rng: np.random.Generator, tolerance: float = 1e-6) -> csr_array:
        """A random graph of size `nu`; see `SeparablePowerLaw.sample`."""
        # x = sqrt(2) w turns 2 w w' into x x' and scales the intensity by 2^(sigma/2).
        scale = 2.0 ** (self.sigma / 2) / gamma(1 - self.sigma)
        return _sample(nu, rng, tolerance, self.sigma, scale, self.tau / np.sqrt(2.0), np.inf, True)


def _check_sigma(sigma: float) -> None:
    if not 0.0 < sigma < 1.0:
        raise ValueError(
            f"sigma must lie in (0, 1), got {sigma}: at 0 the graphs are dense (use a graphon), "
            "at 1 and above the average degree stays finite and there is no graphex"
        )


def _sample(
    nu: float,
    rng: np.random.Generator,
    tolerance: float,
    sigma: float,
    scale: float,
    tau: float,
    largest: float,
    exponential: bool,
) -> csr_array:
    """Graph of weights with intensity scale x^(-1-sigma) exp(-tau x) on (0, largest).

    An edge has probability x x', or 1 - exp(-x x') where `exponential`.
    """
    if not nu > 0:
        raise ValueError(f"the size nu must be positive, got {nu}")
    cut = min(_cut(nu, tolerance, sigma, scale), 0.5 * largest)
    points = nu * scale / sigma * (cut**-sigma - largest**-sigma)
    if points > MOST_POINTS:
        raise ValueError(
            f"nu={nu} at sigma={sigma} needs {points:.1e} candidate points; "
            "lower nu or sigma, or raise the tolerance"
        )
    core = _core_weights(rng, points, sigma, tau, cut, largest)
    mass = nu * scale * cut ** (1 - sigma) / (1 - sigma)

    def light(count: int, columns: int) -> np.ndarray:
        return _tail_weights(rng, (count, columns), sigma, tau, cut)

    heaviest = _in_proportion(core, rng.poisson(core.sum() * mass), rng)
    head, end, known = _across_edges(core, light(len(heaviest), 1), heaviest, exponential, rng)
    edges = [
        _core_edges(core, exponential, rng),
        (head, end),
        *_edges_among_light(core, known, light, mass, exponential, rng),
    ]
    return adjacency_of(*(np.concatenate(ends) for ends in zip(*edges, strict=True)))


def _edges_among_light(
    core: np.ndarray,
    known: np.ndarray,
    light: Callable[[int, int], np.ndarray],
    mass: float,
    exponential: bool,
    rng: np.random.Generator,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Edges between points below the cut.

    Args:
        known: weights of those that have a heavy neighbour; they are nodes len(core), ...
        light: draws points below the cut, in proportion to their weight.
        mass: expected sum of the weights below the cut.
    """
    n = len(core)
    order = np.argsort(-known)
    heads, ends = _core_edges(known[order], exponential, rng)
    joins, pairs = light(rng.poisson(known.sum() * mass), 1), light(rng.poisson(mass**2 / 2), 2)
    old = _in_proportion(known, len(joins), rng)
    left = np.append(known[old], pairs[:, 0])
    number = np.append(n + old, np.full(len(pairs), -1))
    right = np.append(joins, pairs[:, 1])
    new = _light_edges(core, left, number, right, exponential, n + len(known), rng)
    return [(n + order[heads], n + order[ends]), new]


def _cut(nu: float, tolerance: float, sigma: float, scale: float) -> float:
    """Weight below which two edges between light points meet with probability < tolerance.

    Their number is at most nu^3/2 times the second moment times the squared first moment of the
    weights below the cut (Mecke's formula).
    """
    exponent = (2.0 - sigma) + 2.0 * (1.0 - sigma)
    constant = 0.5 * nu**3 * scale**3 / ((2.0 - sigma) * (1.0 - sigma) ** 2)
    return float((tolerance / constant) ** (1.0 / exponent))


def _core_weights(
    rng: np.random.Generator, points: float, sigma: float, tau: float, cut: float, largest: float
) -> np.ndarray:
    """Poisson process of weights above the cut, in falling order."""
    u = rng.random(rng.poisson(points))
    x = (largest**-sigma + u * (cut**-sigma - largest**-sigma)) ** (-1.0 / sigma)
    if tau:
        x = x[rng.random(len(x)) < np.exp(-tau * x)]
    return np.sort(x)[::-1].copy()


def _tail_weights(
    rng: np.random.Generator, shape: tuple[int, int], sigma: float, tau: float, cut: float
) -> np.ndarray:
    """Weights below the cut with density proportional to x times the intensity.

    Rows that the tempering refuses are left out, which thins their number as it must.
    """
    x = cut * rng.random(shape) ** (1.0 / (1.0 - sigma))
    return x[rng.random(shape[0]) < np.exp(-tau * x.sum(1))]


def _in_proportion(
    weights: np.ndarray, count: int, rng: np.random.Generator
) -> Int[np.ndarray, " drawn"]:
    """Indices drawn with probability proportional to the weights."""
    total = np.cumsum(weights)
    return np.searchsorted(total[:-1], rng.random(count) * (total[-1] if len(total) else 0.0))


@njit(cache=True)
def _grow(array, size):  # type: ignore[no-untyped-def]
    if size < len(array):
        return array
    larger = np.empty(2 * len(array), np.int64)
    for i in range(len(array)):
        larger[i] = array[i]
    return larger


@njit(cache=True)
def _next_edge(x, other, j, n, exponential, rng):  # type: ignore[no-untyped-def]
    """First index from j on, below n, joined to a point of weight `other`, or n; x falls.

    Skips over non-edges by a geometric step under the bound p = x[j] * other, then accepts with
    the ratio of the true probability to the bound (Miller and Hagberg 2011).
    """
    while j < n:
        bound = min(1.0, x[j] * other)
        if bound < 1.0:
            skip = np.log1p(-rng.random()) / np.log1p(-bound)
            if skip >= n - j:
                return n
            j += int(skip)
        rate = x[j] * other
        p = -np.expm1(-rate) if exponential else rate
        if rng.random() * bound < p:
            return j
        j += 1
    return n


@njit(cache=True)
def _core_edges(x, exponential, rng):  # type: ignore[no-untyped-def]
    """Edges among points of falling weights x."""
    head, end = np.empty(1024, np.int64), np.empty(1024, np.int64)
    edges, n = 0, len(x)
    for i in range(n - 1):
        j = _next_edge(x, x[i], i + 1, n, exponential, rng)
        while j < n:
            head, end = _grow(head, edges), _grow(end, edges)
            head[edges], end[edges] = i, j
            edges += 1
            j = _next_edge(x, x[i], j + 1, n, exponential, rng)
    return head[:edges], end[:edges]


@njit(cache=True)
def _across_edges(x, tail, first, exponential, rng):  # type: ignore[no-untyped-def]
    """Edges between heavy points x and the light points that have a heavy neighbour.

    A light point is proposed once for every heavy neighbour and kept for the heaviest of them, so
    that it appears once. Returns the weights of those kept as well; they are nodes len(x), ...
    """
    head, end = np.empty(1024, np.int64), np.empty(1024, np.int64)
    kept = np.empty(len(tail))
    edges, n, found = 0, len(x), 0
    for t in range(len(tail)):
        i, weight = first[t], tail[t, 0]
        rate = x[i] * weight
        if exponential and rng.random() * rate >= -np.expm1(-rate):
            continue
        if _next_edge(x, weight, 0, i, exponential, rng) < i:
            continue
        while i < n:
            head, end = _grow(head, edges), _grow(end, edges)
            head[edges], end[edges] = i, n + found
            edges += 1
            i = _next_edge(x, weight, i + 1, n, exponential, rng)
        kept[found] = weight
        found += 1
    return head[:edges], end[:edges], kept[:found]


@njit(cache=True)
def _light_edges(x, left, number, right, exponential, node, rng):  # type: ignore[no-untyped-def]
    """Edges of light points that have no heavy neighbour, to a light point that has (its node
    number is given) or to another that has none (-1)."""
    n, edges = len(x), 0
    head, end = np.empty(len(left), np.int64), np.empty(len(left), np.int64)
    for t in range(len(left)):
        rate = left[t] * right[t]
        if exponential and rng.random() * rate >= -np.expm1(-rate):
            continue
        if _next_edge(x, right[t], 0, n, exponential, rng) < n:
            continue
        head[edges] = number[t]
        if number[t] < 0:
            if _next_edge(x, left[t], 0, n, exponential, rng) < n:
                continue
            head[edges] = node
            node += 1
        end[edges] = node
        node += 1
        edges += 1
    return head[:edges], end[:edges]


def adjacency_of(head: Int[np.ndarray, " edges"], end: Int[np.ndarray, " edges"]) -> csr_array:
    """Symmetric 0/1 matrix of an undirected simple graph.

    Loops and repeated edges are dropped, and nodes are renumbered so that none is isolated.
    """
    keep = head != end
    head, end = head[keep], end[keep]
    if head.max(initial=-1) > 4 * len(head) or end.max(initial=-1) > 4 * len(head):
        numbers = np.unique(np.concatenate([head, end]), return_inverse=True)[1]
        head, end = np.split(numbers, 2)
    size = int(max(head.max(initial=-1), end.max(initial=-1))) + 1
    rows, columns = np.concatenate([head, end]), np.concatenate([end, head])
    matrix = csr_array((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=(size, size))
    matrix.sum_duplicates()
    present = np.diff(matrix.indptr) > 0
    nodes = int(present.sum())
    return csr_array(
        (
            np.ones(matrix.nnz, dtype=np.int8),
            (np.cumsum(present) - 1)[matrix.indices],
            np.append(0, matrix.indptr[1:][present]),
        ),
        shape=(nodes, nodes),
    )
