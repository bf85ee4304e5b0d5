"""Hierarchical targets g(p(x)) of standard normal inputs, and what stage 1 can find of them.

Simulated data: x ~ N(0, I_d), p of mean zero and variance one, no label noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from numpy.polynomial import HermiteE

from peira.engine.errors import PeiraError, nearest

Array = npt.NDArray[np.float64]
Link = Literal["cubic", "even", "square"]
Spread = Literal["spread", "concentrated"]

# Coefficients of the probabilists' He_0, He_1, ... All have variance of order one.
LINKS: dict[Link, HermiteE] = {
    # z + (z^3 - 3z)/sqrt 6: odd, so the feature's bias is small.
    "cubic": HermiteE([0, 1, 0, 1 / math.sqrt(6)]),
    # (z + (z^2 - 1)/sqrt 2)/sqrt 2.
    "even": HermiteE([0, 1 / math.sqrt(2), 1 / 2]),
    # z^2 - 1: E g' = 0, and stage 1 has nothing to find.
    "square": HermiteE([0, 0, 1]),
}


@dataclass(frozen=True)
class HierarchicalTarget:
    """y = g(p(x)), p(x) = sum of `weights` times products of Hermite polynomials.

    Attributes:
        dimension: d.
        degree: k.
        link: g, as a Hermite series.
        tensor: k = 1: a unit vector (d,). k = 2: a symmetric traceless matrix (d, d) of squared
            Frobenius norm 1/2, p = x^T A x. k = 3: columns of the triples, (terms, 3), p = sum of
            x_a x_b x_c over sqrt(terms).
    """

    dimension: int
    degree: int
    link: HermiteE
    tensor: Array

    def feature(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
        """p(x): mean zero, variance one for standard normal rows."""
        if self.degree == 1:
            return x @ self.tensor
        if self.degree == 2:
            return ((x @ self.tensor) * x).sum(axis=1)
        triples = self.tensor.astype(int)
        return x[:, triples].prod(axis=2).sum(axis=1) / math.sqrt(len(triples))

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Rows (n, d) and labels (n,)."""
        x = rng.standard_normal((n, self.dimension))
        return x, self.link(self.feature(x))

    def reachable_correlation(self) -> float:
        """Correlation of p with the degree-2 part of g(p(x)), to which stage 1 converges.

        The degree-2 part of f(x) is <E[Hessian of f]/2, x x^T - I>; for f = g(p) with p = x^T A x
        its matrix is E[g'(p)] A + 2 E[g''(p) A x x^T A]. For g of degree 3 with Hermite
        coefficients c and |A|_F^2 = 1/2 this is c_1 A + 4 c_2 A^2 + 24 c_3 A^3. Below one: the
        bias of Stein's lemma, because p(x) is not quite normal.

        Raises `PeiraError` where this closed form does not hold: degree k != 2, or g above 3.
        """
        coefficients = np.zeros(4)
        if self.degree != 2 or len(self.link.coef) > 4:
            raise PeiraError("the reachable correlation is known for k = 2 and g of degree 3")
        coefficients[: len(self.link.coef)] = self.link.coef
        a = self.tensor
        found = coefficients[1] * a + 4 * coefficients[2] * a @ a + 24 * coefficients[3] * a @ a @ a
        return float((a * found).sum() / (np.linalg.norm(a) * np.linalg.norm(found)))


def hierarchical_target(
    dimension: int,
    degree: int = 2,
    link: Link = "cubic",
    spread: Spread = "spread",
    rng: np.random.Generator | None = None,
) -> HierarchicalTarget:
    """A random target of the kind that the theory is about, or one that it leaves out.

    Args:
        dimension: d; at least 2 for a quadratic, 3 for a cubic.
        degree: k. 1: a random direction. 2: a Gaussian matrix, made traceless. 3: products of
            disjoint triples of columns, drawn at random.
        link: "cubic", "even" or "square", see `LINKS`.
        spread: "concentrated" puts a quadratic on two random directions, (u.x)^2 - (v.x)^2, whose
            distribution is far from normal.
        rng: draws the target.

    Raises `PeiraError` for a degree, dimension, link or spread that is not offered.
    """
    rng = rng or np.random.default_rng()
    if link not in LINKS:
        raise PeiraError(f"unknown link {link!r}; {nearest(link, LINKS)}")
    if spread not in get_args(Spread):
        raise PeiraError(f"unknown spread {spread!r}; {nearest(spread, get_args(Spread))}")
    if degree not in (1, 2, 3) or dimension < degree:
        raise PeiraError(
            f"degree {degree} in {dimension} dimensions; expected degree 1, 2 or 3 and no fewer "
            f"dimensions"
        )
    if degree == 1:
        tensor = rng.standard_normal(dimension)
        tensor /= np.linalg.norm(tensor)
    elif degree == 2:
        tensor = _quadratic(dimension, spread, rng)
    else:
        terms = dimension // 3
        tensor = rng.permutation(dimension)[: 3 * terms].reshape(terms, 3).astype(float)
    return HierarchicalTarget(dimension, degree, LINKS[link], tensor)


def _quadratic(dimension: int, spread: Spread, rng: np.random.Generator) -> Array:
    if spread == "concentrated":
        u, v = np.linalg.qr(rng.standard_normal((dimension, 2)))[0].T
        return (np.outer(u, u) - np.outer(v, v)) / 2
    draws = rng.standard_normal((dimension, dimension))
    matrix = draws + draws.T
    matrix -= np.trace(matrix) / dimension * np.eye(dimension)
    return matrix / (math.sqrt(2) * np.linalg.norm(matrix))
