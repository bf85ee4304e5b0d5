"""What the layer-wise network is held against, each tuned on a third of the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, SplineTransformer, StandardScaler
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data

from peira.dynamics.hierarchical_polynomials.features import SphereFeatures
from peira.dynamics.probes.infinite import kernels
from peira.engine.errors import PeiraError, nearest

Array = npt.NDArray[np.float64]
Kernel = Literal["ntk", "rbf", "polynomial"]
KERNELS = ("ntk", "rbf", "polynomial")
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Squared length of the RBF kernel, in units of the number of columns.
RBF_LENGTHS = (1.0, 4.0)
VALIDATION = 1 / 3


class TunedKernelRidge(RegressorMixin, BaseEstimator):
    """Kernel ridge regression whose ridge (and length scale) is chosen on held-out rows.

    A third of the rows chooses, then all of them are fitted again. Solved by Cholesky
    factorisation. Rows are taken as they are: standardise columns of different units first.

    Args:
        kernel: "ntk" (tangent kernel of the infinitely wide ReLU network of `depth` weight
            layers, the arc-cosine kernels), "rbf" (squared lengths d and 4d), or "polynomial"
            ((1 + x.x'/d)^degree).
        degree: of the polynomial kernel.
        depth: weight layers of the tangent kernel.
        ridges: what is tried, as multiples of the mean diagonal of the kernel.
        random_state: draws the held-out rows.

    Attributes:
        ridge_, length_: what was chosen (length_ in units of d; 1 where there is none).
        rows_, weights_, mean_: training rows, dual coefficients, mean label.
    """

    def __init__(
        self,
        kernel: Kernel = "ntk",
        degree: int = 6,
        depth: int = 2,
        ridges: tuple[float, ...] = RIDGES,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.kernel = kernel
        self.degree = degree
        self.depth = depth
        self.ridges = ridges
        self.random_state = random_state

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Fit to rows `X` (n, d) and labels `y` (n,)."""
        if self.kernel not in KERNELS:
            raise PeiraError(f"unknown kernel {self.kernel!r}; {nearest(self.kernel, KERNELS)}")
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=5)
        order = check_random_state(self.random_state).permutation(len(X))
        # Held-out rows last: the training block is the leading one of the whole kernel.
        X, y = X[order], np.asarray(y, dtype=np.float64)[order]
        self.mean_ = float(y.mean())
        best = math.inf
        for length in RBF_LENGTHS if self.kernel == "rbf" else (1.0,):
            gram = self._kernel(X, None, length)
            error, ridge = self._choose(gram, y - self.mean_)
            if error < best:
                best, chosen = error, gram
                self.ridge_, self.length_ = ridge, length
        self.rows_ = X
        self.weights_ = _solve(chosen, y - self.mean_, self.ridge_)
        return self

    def predict(self, X: npt.ArrayLike) -> Float[np.ndarray, "n"]:
        """Labels of rows `X` (n, d)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self._kernel(X, self.rows_, self.length_) @ self.weights_ + self.mean_

    def _kernel(self, x: Array, x2: Array | None, length: float) -> Array:
        if self.kernel == "ntk":
            return kernels(x, x2, depth=self.depth, activation="relu", weight_var=2.0).ntk
        other = x if x2 is None else x2
        products = x @ other.T
        if self.kernel == "polynomial":
            products *= 1 / x.shape[1]
            products += 1
            return _power(products, self.degree)
        products *= -2
        products += (x**2).sum(axis=1)[:, None]
        products += (other**2).sum(axis=1)
        products *= -1 / (2 * length * x.shape[1])
        return np.exp(products, out=products)

    def _choose(self, gram: Array, y: Array) -> tuple[float, float]:
        """Lowest error on the held-out rows, and its ridge."""
        kept = len(y) - max(1, round(VALIDATION * len(y)))
        errors = {}
        # One buffer for all factorisations: fresh ones of this size cost as much as the copy.
        buffer = np.empty((kept, kept))
        for ridge in self.ridges:
            weights = _solve(gram[:kept, :kept], y[:kept], ridge, buffer)
            errors[ridge] = float(np.square(gram[kept:, :kept] @ weights - y[kept:]).mean())
        best = min(errors, key=errors.__getitem__)
        return errors[best], best


def _power(values: Array, exponent: int) -> Array:
    """values ** exponent by repeated squaring, several times as fast as `pow` on large arrays."""
    result: Array | None = None
    while True:
        if exponent % 2:
            result = values.copy() if result is None else np.multiply(result, values, out=result)
        exponent //= 2
        if not exponent:
            return np.ones_like(values) if result is None else result
        values *= values


def _solve(gram: Array, y: Array, ridge: float, buffer: Array | None = None) -> Array:
    """(K + ridge mean(diag K) I)^-1 y; `buffer`, of the kernel's shape, is overwritten."""
    shifted = np.empty(gram.shape) if buffer is None else buffer
    np.copyto(shifted, gram)
    diagonal = np.diag_indices_from(shifted)
    shifted[diagonal] += ridge * gram[diagonal].mean()
    try:
        # The transpose of a symmetric matrix is in LAPACK's order and needs no copy.
        factor = cho_factor(shifted.T, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError as error:
        raise PeiraError(f"the kernel is not positive definite with ridge {ridge:g}") from error
    return cho_solve(factor, y, check_finite=False)


class RandomFeatureRidge(RegressorMixin, BaseEstimator):
    """Ridge regression on a wide random layer of Hermite sums up to `degree`, kernel of h_0 alone.

    Args:
        degree: highest degree of the Hermite sum.
        width: random units.
        random_state: seed of the units and of the held-out rows that choose the ridge.
    """

    def __init__(self, degree: int = 6, width: int = 2048, random_state: int = 0) -> None:
        self.degree = degree
        self.width = width
        self.random_state = random_state

    def fit(self, X: Array, y: Array) -> Self:
        """Fit to rows `X` (n, d) and labels `y` (n,)."""
        self.features_ = SphereFeatures(
            self.width, self.degree, random_state=self.random_state
        ).fit(X)
        features = self.features_.transform(X)
        self.mean_, self.centre_ = float(y.mean()), features.mean(axis=0)
        features -= self.centre_
        order = np.random.default_rng(self.random_state).permutation(len(y))
        kept = order[: len(y) - max(1, round(VALIDATION * len(y)))]
        held = order[len(kept) :]
        target = y - self.mean_
        errors = {
            ridge: float(np.square(features[held] @ weights - target[held]).mean())
            for ridge, weights in self._paths(features[kept], target[kept])
        }
        best = min(errors, key=errors.__getitem__)
        self.weights_ = next(w for _, w in self._paths(features, target, (best,)))
        return self

    def predict(self, X: Array) -> Array:
        """Labels of rows `X` (n, d)."""
        return (self.features_.transform(X) - self.centre_) @ self.weights_ + self.mean_

    def _paths(
        self, features: Array, y: Array, ridges: tuple[float, ...] = RIDGES
    ) -> Iterator[tuple[float, Array]]:
        """Weights for each ridge, from the smaller of the two Gram matrices."""
        dual = len(features) < features.shape[1]
        gram = features @ features.T if dual else features.T @ features
        for ridge in ridges:
            if dual:
                yield ridge, features.T @ _solve(gram, y, ridge)
            else:
                yield ridge, _solve(gram, features.T @ y, ridge)


class PolynomialThenLink(RegressorMixin, BaseEstimator):
    """The classical twin: ridge regression on all monomials up to degree k, then a spline.

    The polynomial is fitted to the first part of the rows (ridge by generalised
    cross-validation), the spline of its value to the rest.

    Args:
        degree: k.
        knots: of the cubic spline, at quantiles; linear beyond the outer ones.
        split: share of the rows for the polynomial.
        random_state: draws the parts.
    """

    def __init__(
        self, degree: int = 2, knots: int = 10, split: float = 0.5, random_state: int = 0
    ) -> None:
        self.degree = degree
        self.knots = knots
        self.split = split
        self.random_state = random_state

    def fit(self, X: Array, y: Array) -> Self:
        """Fit to rows `X` (n, d) and labels `y` (n,)."""
        order = np.random.default_rng(self.random_state).permutation(len(y))
        first, second = np.split(order, [round(self.split * len(y))])
        self.polynomial_: Any = make_pipeline(
            PolynomialFeatures(self.degree, include_bias=False),
            StandardScaler(),
            RidgeCV(np.geomspace(1e-2, 1e4, 13)),
        ).fit(X[first], y[first])
        self.link_ = spline(self.knots).fit(self.polynomial_.predict(X[second])[:, None], y[second])
        return self

    def predict(self, X: Array) -> Array:
        """Labels of rows `X` (n, d)."""
        return self.link_.predict(self.feature(X)[:, None])

    def feature(self, X: Array) -> Array:
        """The polynomial of rows `X`, before the spline."""
        return self.polynomial_.predict(X)


def spline(knots: int) -> Any:
    """A ridge-regularised cubic spline of one number, linear beyond its outer knots."""
    return make_pipeline(
        SplineTransformer(knots, knots="quantile", extrapolation="linear"), Ridge(1e-3)
    )
