"""Regression and classification by infinitely wide networks, as scikit-learn estimators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from peira.data import DataError
from peira.dynamics.ntk.architecture import Architecture
from peira.dynamics.probes.forecast import Floats, early_stop_time, modes, training_forecast
from peira.dynamics.probes.infinite import InfiniteKernels, kernel_blocks, variances
from peira.engine.errors import PeiraError

# Ridges that leave-one-out chooses from, as shares of the kernel's mean diagonal.
RIDGES = np.geomspace(1e-6, 1.0, 13)
# Entries of a kernel are good to about this; a smaller squared distance is none.
SAME = 1e-9


class _KernelMachine(BaseEstimator):
    """What both estimators share: kernel, training to the end or for a time, prediction."""

    def __init__(
        self,
        depth: int = 3,
        activation: str | Callable[..., object] = "relu",
        beta: float = 0.1,
        ridge: float | Literal["loo"] = 1e-3,
        kernel: Literal["ntk", "nngp"] = "ntk",
        training_time: float | Literal["auto"] | None = None,
    ) -> None:
        self.depth = depth
        self.activation = activation
        self.beta = beta
        self.ridge = ridge
        self.kernel = kernel
        self.training_time = training_time

    def _fit(self, x: Floats, targets: Floats) -> None:
        """Dual coefficients of standardised targets (n, k)."""
        self._check_settings(x)
        self.X_fit_ = x
        # Every network of the ensemble starts near 0, and with unit variance.
        self.y_mean_ = targets.mean(axis=0)
        self.y_scale_ = np.where(targets.std(axis=0) > 0, targets.std(axis=0), 1.0)
        y = (targets - self.y_mean_) / self.y_scale_
        kernel = self._trained(self._kernels(x))
        self.ridge_, self.time_ = 0.0, np.inf
        if self.training_time is not None:
            self.time_ = self._time(kernel, y)
        elif self.ridge == "loo":
            self.ridge_ = leave_one_out(kernel, y)[0]
        else:
            self.ridge_ = float(self.ridge)
        self.dual_coef_ = self._smooth(kernel, y)

    def _check_settings(self, x: Floats) -> None:
        if self.kernel not in ("ntk", "nngp"):
            raise PeiraError(f"kernel is {self.kernel!r}; expected 'ntk' or 'nngp'")
        if self.ridge != "loo" and not (isinstance(self.ridge, (int, float)) and self.ridge >= 0):
            raise PeiraError(f"ridge is {self.ridge!r}; expected 0 or more, or 'loo'")
        nowhere = np.flatnonzero((x == 0).all(axis=1))
        if self.beta == 0 and len(nowhere):
            raise DataError(
                "a point is the zero vector, which a network without biases cannot learn",
                row=int(nowhere[0]),
                expected="beta > 0",
            )

    def _time(self, kernel: Floats, y: Floats) -> float:
        if self.training_time == "auto":
            return early_stop_time(kernel, y).time
        if not (isinstance(self.training_time, (int, float)) and self.training_time >= 0):
            raise PeiraError(
                f"training_time is {self.training_time!r}; expected 0 or more, 'auto' or None"
            )
        return float(self.training_time)

    def _smooth(self, kernel: Floats, y: Floats) -> Floats:
        """What the kernel with other points is multiplied by: (K + ridge)^-1 y, or its like."""
        if self.training_time is not None:
            # K times this is what training for that time has learned.
            eye = np.eye(len(kernel))
            learned = training_forecast(kernel, y, self.time_, cross=eye).test
            assert learned is not None
            return learned[0]
        regular = kernel + self.ridge_ * np.eye(len(kernel))
        if self.ridge_ == 0:
            _refuse_duplicates(kernel)
        try:
            solved: Floats = cho_solve(cho_factor(regular, lower=True, overwrite_a=True), y)
        except LinAlgError as error:
            raise DataError(
                f"the kernel is singular; {_closest(kernel)}", expected="ridge > 0"
            ) from error
        return solved

    @property
    def _architecture(self) -> Architecture:
        return Architecture.normalised(self.depth, self.activation, self.beta)

    def _kernels(self, x: Floats, x2: Floats | None = None) -> InfiniteKernels:
        return self._architecture.kernels(x, x2)

    def _trained(self, both: InfiniteKernels) -> Floats:
        return both.ntk if self.kernel == "ntk" else both.nngp

    def _settings(self) -> dict[str, Any]:
        net = self._architecture
        return {
            "depth": net.depth,
            "activation": net.activation,
            "weight_var": net.weight_var,
            "bias_var": net.beta**2,
            "gain": net.gain,
        }

    def _predict(self, x: Floats) -> Floats:
        """Means (m, k) in the targets' units, the kernel a block of rows at a time."""
        mean = np.empty((len(x), self.dual_coef_.shape[1]))
        for rows, block in kernel_blocks(x, self.X_fit_, **self._settings()):
            mean[rows] = self._trained(block) @ self.dual_coef_
        return mean * self.y_scale_ + self.y_mean_

    def _deviation(self, x: Floats) -> Floats:
        """Spread over networks (m, k), in the targets' units."""
        train = self._kernels(self.X_fit_)
        prior = variances(x, **self._settings())
        smoother = self._smooth(self._trained(train).copy(), np.eye(len(self.X_fit_)))
        spread = np.empty(len(x))
        for rows, block in kernel_blocks(x, self.X_fit_, **self._settings()):
            a = self._trained(block) @ smoother
            inside = np.einsum("mi,mi->m", a @ train.nngp - 2 * block.nngp, a)
            spread[rows] = prior[rows] + inside
        deviation: Floats = np.sqrt(np.maximum(spread, 0.0))[:, None] * self.y_scale_
        return deviation


class NTKRegressor(RegressorMixin, _KernelMachine):  # type: ignore[misc]
    """Least squares by an infinitely wide fully connected network, in closed form.

    The mean over networks trained by gradient descent from random weights (section 5 of the
    paper). Biases have variance beta^2, weights 1 - beta^2, and activities unit variance
    (`Architecture.normalised`); put a `StandardScaler` in front so that features weigh the same.

    Args:
        depth: weight layers: hidden layers + 1.
        activation: name (see `kernels`) or function.
        beta: standard deviation of the biases, 0 or more and below 1.
        ridge: added to the kernel's diagonal, whose size is about `depth`; 0 interpolates, "loo"
            takes the one of 13 with the least leave-one-out error. Not used with a training time.
        kernel: "ntk", or "nngp" for networks whose last layer alone is trained.
        training_time: stop after this time of gradient flow on |f - y|^2 / 2, at learning rate 1;
            "auto" takes the one of least generalised cross-validation error, None trains to the
            end.

    Attributes:
        X_fit_: training points, (n, features).
        dual_coef_: (n, outputs).
        ridge_, time_: what was used.
        y_mean_, y_scale_: by which targets were standardised.

    Raises:
        DataError: a zero vector where beta is 0; two equal points (named) where ridge is 0.
        PeiraError: settings out of bounds, a kernel larger than the memory.
    """

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Learn from points (n, features) and targets (n,) or (n, outputs)."""
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        self.flat_ = y.ndim == 1
        self._fit(X, y.reshape(len(y), -1).astype(np.float64))
        return self

    def predict(self, X: npt.ArrayLike, return_std: bool = False) -> Floats | tuple[Floats, Floats]:
        """Mean over networks, (m,) or (m, outputs) as the targets were.

        Args:
            X: points, (m, features).
            return_std: also give the standard deviation over networks, in the same shape; costs
                another fit.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        mean = self._predict(X)
        if not return_std:
            return mean[:, 0] if self.flat_ else mean
        deviation = self._deviation(X)
        return (mean[:, 0], deviation[:, 0]) if self.flat_ else (mean, deviation)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class NTKClassifier(ClassifierMixin, _KernelMachine):  # type: ignore[misc]
    """Classification by least squares on the classes' indicators, with an infinitely wide network.

    Args, attributes and errors as in `NTKRegressor`, and `classes_`.
    """

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Learn from points (n, features) and labels (n,)."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(
                "all labels are of one class", value=self.classes_[0], expected="2 classes or more"
            )
        self._fit(X, np.eye(len(self.classes_))[labels])
        return self

    def decision_function(self, X: npt.ArrayLike) -> Floats:
        """Score of each class, (m, classes); with two classes of the second, (m,)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        scores = self._predict(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """Labels, (m,)."""
        scores = self.decision_function(X)
        chosen = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        labels: npt.NDArray[Any] = self.classes_[chosen]
        return labels


def leave_one_out(kernel: Floats, targets: Floats) -> tuple[float, float]:
    """The ridge of `RIDGES` with the least leave-one-out error of kernel regression.

    Args:
        kernel: of the training points, (n, n).
        targets: (n, k).

    Returns:
        The ridge, and its mean squared error: of the residuals over 1 - H_ii, H the smoother.
    """
    found = modes(kernel)
    ridges = RIDGES * float(np.mean(np.diag(kernel)))
    share = found.values[:, None] / (found.values[:, None] + ridges)
    leverage = found.vectors**2 @ share
    coefficients = found.vectors.T @ targets
    errors = []
    for i in range(len(ridges)):
        fitted = found.vectors @ (share[:, i, None] * coefficients)
        errors.append((((targets - fitted) / (1 - leverage[:, i, None])) ** 2).mean())
    best = int(np.argmin(errors))
    return float(ridges[best]), float(errors[best])


def _refuse_duplicates(kernel: Floats) -> None:
    i, j, distance = closest_pair(kernel)
    if distance <= SAME:
        raise DataError(
            f"points {i} and {j} are the same to the network, so that its kernel is singular",
            expected="distinct points, or ridge > 0",
        )


def _closest(kernel: Floats) -> str:
    i, j, distance = closest_pair(kernel)
    return f"points {i} and {j} are the closest, {distance:.1g} apart in the kernel (relative)"


def closest_pair(kernel: Floats) -> tuple[int, int, float]:
    """The two points nearest to each other in a kernel's feature space.

    Returns their rows, and K_ii + K_jj - 2 K_ij relative to K_ii + K_jj.
    """
    if len(kernel) < 2:
        return 0, 0, np.inf
    diagonal = np.diag(kernel)
    total = diagonal[:, None] + diagonal[None, :]
    distance = (total - 2 * kernel) / np.where(total > 0, total, 1.0)
    np.fill_diagonal(distance, np.inf)
    i, j = (int(k) for k in np.unravel_index(distance.argmin(), distance.shape))
    return min(i, j), max(i, j), float(max(distance[i, j], 0.0))
