"""The frozen inner layer: random units on the sphere, and what they become at infinite width."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from itertools import combinations_with_replacement
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data
from torch import Tensor

from peira.engine.errors import PeiraError, nearest

Array = npt.NDArray[np.float64]
InnerActivation = Literal["hermite", "relu", "gelu"]
INNER_ACTIVATIONS = ("hermite", "relu", "gelu")
# Numbers of one block of features: its temporaries stay near the processor's cache.
BLOCK = 1 << 19


def hermite_table(x: Float[Tensor, "..."], degree: int) -> Float[Tensor, "degree_1 ..."]:
    """Normalised probabilists' Hermite polynomials He_j(x)/sqrt(j!), j = 0 .. degree, stacked.

    They are orthonormal under the standard normal distribution.
    """
    table = [torch.ones_like(x), x]
    for j in range(1, degree):
        table.append((x * table[j] - math.sqrt(j) * table[j - 1]) / math.sqrt(j + 1))
    return torch.stack(table[: degree + 1])


class InnerFeatures(TransformerMixin, BaseEstimator):
    """A frozen inner layer: a scikit-learn transformer whose work is done by torch."""

    def fit(self, X: npt.ArrayLike, y: object = None) -> Self:
        """Draw or enumerate the features for the number of columns of `X` (n, d)."""
        X = validate_data(self, X, dtype=np.float64)
        self._prepare(X.shape[1])
        return self

    def transform(self, X: npt.ArrayLike) -> Float[np.ndarray, "n features"]:
        """The features of `X` (n, d)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        # Features are rows while they are computed: written so, they need not be transposed.
        columns = np.empty((self.width_, len(X)))
        seen = 0
        for block in self.blocks(X):
            columns[:, seen : seen + block.shape[1]] = block.numpy()
            seen += block.shape[1]
        return columns.T

    def blocks(self, X: Array, device: str = "cpu") -> Iterator[Float[Tensor, "features rows"]]:
        """The features of consecutive rows of `X`, one column a row: few enough to fit memory."""
        rows = max(1, BLOCK // self.width_)
        for start in range(0, len(X), rows):
            x = torch.from_numpy(np.array(X[start : start + rows], dtype=np.float64, copy=True))
            yield self.evaluate(x.to(device))

    @abstractmethod
    def evaluate(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "features rows"]:
        """The features, one column for each row of `x`."""

    @abstractmethod
    def _prepare(self, dimension: int) -> None:
        """Set what is fitted, `width_` included."""


class HermiteFeatures(InnerFeatures):
    """All products of normalised Hermite polynomials of total degree 1 to `degree`.

    An inner layer of infinite width without sampling noise: C(d + k, k) - 1 features, orthonormal
    for standard normal inputs. They span what Hermite-sum units <v, x> of all directions v span,
    and weigh every direction of one degree alike; units on the unit sphere give a quadratic's trace
    (d + 2)/2 times the weight of the rest (see `SphereFeatures`).

    Args:
        degree: k, at least 1.

    Attributes:
        powers_: power of every column in every feature, (features, d).
        plan_: how they are computed, one product of consecutive rows at a time, see `_plan`.
        width_: number of features.
    """

    def __init__(self, degree: int = 2) -> None:
        self.degree = degree

    def _prepare(self, dimension: int) -> None:
        sets = [
            chosen
            for j in range(1, self.degree + 1)
            for chosen in combinations_with_replacement(range(dimension), j)
        ]
        self.powers_ = np.zeros((len(sets), dimension), dtype=np.int64)
        for row, chosen in enumerate(sets):
            np.add.at(self.powers_[row], list(chosen), 1)
        self.width_ = len(sets)
        self.plan_ = self._plan(dimension)

    def evaluate(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "features rows"]:
        table = hermite_table(x.T, self.degree)
        features = x.new_empty(self.width_, len(x))
        for power, column, start, stop, first, last in self.plan_.tolist():
            if first == last:
                features[start] = table[power, column]
            else:
                torch.mul(features[first:last], table[power, column], out=features[start:stop])
        return features

    def _plan(self, dimension: int) -> npt.NDArray[np.int64]:
        """Rows (power, column, start, stop, first, last) whose work is done from top to bottom.

        Features start to stop are He_power of the column times features first to last, which have
        the degree that is left and only later columns: the end of the block of that degree. An
        empty range is the constant.
        """
        ends, plan, start = [0], [], 0
        for degree in range(1, self.degree + 1):
            for column in range(dimension):
                later = dimension - column - 1
                for power in range(degree, 0, -1):
                    left = degree - power
                    if left and not later:
                        continue
                    number = math.comb(later + left - 1, left) if left else 1
                    last = ends[left]
                    first = last - number if left else last
                    plan.append((power, column, start, start + number, first, last))
                    start += number
            ends.append(start)
        return np.array(plan, dtype=np.int64)


class SphereFeatures(InnerFeatures):
    """sigma_2(V x): a layer of random units whose directions are uniform on the unit sphere.

    Args:
        width: m_2, the number of units.
        degree: k; highest degree of the Hermite sum, unused by the other activations.
        activation: "hermite" (sum of the normalised He_0 to He_k), "relu" or "gelu" (exact).
        random_state: seed of the directions.

    Attributes:
        directions_: V, (width, d), rows of norm 1.
        width_: number of features.
    """

    def __init__(
        self,
        width: int = 4096,
        degree: int = 2,
        activation: InnerActivation = "hermite",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.width = width
        self.degree = degree
        self.activation = activation
        self.random_state = random_state

    def _prepare(self, dimension: int) -> None:
        if self.activation not in INNER_ACTIVATIONS:
            known = nearest(self.activation, INNER_ACTIVATIONS)
            raise PeiraError(f"unknown inner activation {self.activation!r}; {known}")
        draws = check_random_state(self.random_state).standard_normal((self.width, dimension))
        self.directions_ = draws / np.linalg.norm(draws, axis=1, keepdims=True)
        self.width_ = self.width

    def evaluate(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "features rows"]:
        inputs = torch.from_numpy(self.directions_).to(x.device) @ x.T
        if self.activation == "hermite":
            return _hermite_sum(inputs, self.degree)
        if self.activation == "relu":
            return inputs.relu()
        return torch.nn.functional.gelu(inputs)


def _hermite_sum(x: Float[Tensor, "..."], degree: int) -> Float[Tensor, "..."]:
    """He_0(x)/sqrt(0!) + ... + He_k(x)/sqrt(k!), without keeping the terms."""
    before, term = torch.ones_like(x), x
    total = before + term
    for j in range(1, degree):
        before, term = term, (x * term).sub_(before, alpha=math.sqrt(j)).div_(math.sqrt(j + 1))
        total += term
    return total
