"""The second stage: a function of one number, by ridge regression on random outer units."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, check_random_state

from peira.engine.errors import PeiraError, nearest

Array = npt.NDArray[np.float64]
OuterActivation = Literal["relu", "quadratic-linear"]
OUTER_ACTIVATIONS = ("relu", "quadratic-linear")
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class LinkRegressor(RegressorMixin, BaseEstimator):
    """g(z) = c + (1/m_1) sum_i a_i sigma_1(s_i z + b_i) by ridge regression of `a`.

    What stage 2 of the layer-wise training solves: after stage 1 all rows of W are parallel, so
    the outer layer sees one number z, and with its biases drawn anew it is a random-feature
    regression in one dimension, whose need of samples does not grow with d.

    Args:
        width: m_1, the number of outer units.
        activation: sigma_1. "relu", or "quadratic-linear": t^2 below 1 in size, else 2|t| - 1.
        ridge: penalty on the sum of (a_i/m_1)^2, per sample; "auto" takes the one of `RIDGES` with
            the least leave-one-out error (in closed form). Labels of heavy tails need it.
        bias_scale: standard deviation of the biases, in units of z.
        random_state: seed of the biases; each is used with both signs s.

    Attributes:
        signs_, biases_: s and b, (width,).
        ridge_: the penalty used.
        weights_: a/m_1, (width,).
        intercept_: c.
    """

    def __init__(
        self,
        width: int = 256,
        activation: OuterActivation = "relu",
        ridge: float | Literal["auto"] = "auto",
        bias_scale: float = 2.0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.width = width
        self.activation = activation
        self.ridge = ridge
        self.bias_scale = bias_scale
        self.random_state = random_state

    def fit(self, z: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> Self:
        """Fit to features `z` of unit scale and labels `y`."""
        if self.activation not in OUTER_ACTIVATIONS:
            known = nearest(self.activation, OUTER_ACTIVATIONS)
            raise PeiraError(f"unknown outer activation {self.activation!r}; {known}")
        draws = check_random_state(self.random_state)
        # Both signs for every bias: the fit does not depend on the sign of the feature.
        biases = self.bias_scale * draws.standard_normal((self.width + 1) // 2)
        self.signs_ = np.tile([1.0, -1.0], len(biases))[: self.width]
        self.biases_ = np.repeat(biases, 2)[: self.width]
        units = self._units(z)
        centre = units.mean(axis=0)
        units -= centre
        target = y - y.mean()
        values, vectors = np.linalg.eigh(units.T @ units / len(units))
        scores = units @ vectors
        moment = scores.T @ target / len(units)
        errors = {
            ridge: _left_out_error(scores, target, moment, values + ridge)
            for ridge in (RIDGES if self.ridge == "auto" else (self.ridge,))
        }
        self.ridge_ = min(errors, key=errors.__getitem__)
        self.weights_ = vectors @ (moment / (values + self.ridge_))
        self.intercept_ = float(y.mean() - centre @ self.weights_)
        return self

    def predict(self, z: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
        """g at each of `z`."""
        check_is_fitted(self)
        return self._units(np.asarray(z, dtype=np.float64)) @ self.weights_ + self.intercept_

    def _units(self, z: Array) -> Array:
        inputs = np.multiply.outer(z, self.signs_) + self.biases_
        if self.activation == "relu":
            return np.maximum(inputs, 0.0, out=inputs)
        size = np.abs(inputs)
        return np.where(size < 1, inputs**2, 2 * size - 1)


def _left_out_error(scores: Array, target: Array, moment: Array, shifted: Array) -> float:
    """Mean squared error of every label by the fit to all others, the penalty kept as it is.

    Args:
        scores: centred units in the eigenvectors of their covariance, (n, width).
        target: centred labels, (n,).
        moment: covariance of both, (width,).
        shifted: eigenvalues plus ridge.
    """
    residual = target - scores @ (moment / shifted)
    leverage = (1 + scores**2 @ (1 / shifted)) / len(target)
    return float(np.square(residual / (1 - leverage)).mean())
