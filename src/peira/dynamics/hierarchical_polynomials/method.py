"""Hierarchical polynomials learned layer by layer (Wang, Nichani & Lee, ICLR 2024)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import kurtosis, skew
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data

from peira.dynamics.hierarchical_polynomials.baselines import TunedKernelRidge
from peira.dynamics.hierarchical_polynomials.features import (
    HermiteFeatures,
    InnerActivation,
    InnerFeatures,
    SphereFeatures,
)
from peira.dynamics.hierarchical_polynomials.link import LinkRegressor, OuterActivation
from peira.dynamics.hierarchical_polynomials.network import ThreeLayerNetwork
from peira.dynamics.hierarchical_polynomials.targets import HierarchicalTarget, hierarchical_target
from peira.engine.errors import PeiraError

__all__ = [
    "HermiteFeatures",
    "HierarchicalPolynomialRegressor",
    "HierarchicalTarget",
    "LinkRegressor",
    "SphereFeatures",
    "ThreeLayerNetwork",
    "TunedKernelRidge",
    "hierarchical_target",
]

Array = npt.NDArray[np.float64]
# Up to here the exact features are cheaper than random units that come near them.
MOST_EXACT_FEATURES = 4096
RANDOM_WIDTH = 4096
HOLDOUT = 0.2
FEWEST_ROWS = 8
# Whitened directions have at least this share of the largest variance; others are constants.
NEGLIGIBLE_VARIANCE = 1e-10


class HierarchicalPolynomialRegressor(RegressorMixin, BaseEstimator):
    """y = g(p(x)): one hidden polynomial feature p of degree k, and the curve g on top of it.

    The layer-wise training of a three-layer network h(x) = (1/m_1) sum_i a_i sigma_1(<w_i, h_0(x)>
    + b_i) with frozen inner features h_0. It starts at zero by its symmetric initialisation
    (a_i, w_i), (-a_i, w_i), and while W is small sigma_1 acts linearly:

    1. on the first part of the rows, T steps of gradient descent on W from zero. All w_i become
       parallel to the same direction, the kernel gradient descent with the kernel of h_0, which is
       computed in closed form for every T; T is where the correlation with held-out rows of this
       same part is highest. <w, h_0(x)>, scaled to mean zero and variance one, is the feature.
    2. on the other part, with the biases b drawn anew, ridge regression of `a`: see
       `LinkRegressor`.

    About d^k rows find the feature if the rows are standard normal (or nearly: see `whiten`), if
    p(x) is nearly normal (many comparable terms) and if the link has a linear part, E g'(z) != 0.
    `diagnostics_` says how far the data are from that. p and g are found up to an affine map.

    Args:
        degree: k, degree of the hidden feature; 1 is the single-index model.
        inner_width: "exact" is the infinitely wide Hermite layer (`HermiteFeatures`); a number is
            that many random units (`SphereFeatures`); "auto" is exact up to 4,096 features, else
            4,096 random units.
        inner_activation: of random units: "hermite", "relu" or "gelu".
        outer_width: m_1.
        outer_activation: sigma_1 of stage 2, "relu" or "quadratic-linear".
        ridge: penalty of stage 2; "auto" is the best of five by leave-one-out error.
        bias_scale: spread of the biases of stage 2, in standard deviations of the feature.
        steps: most steps of stage 1, of size 1/lambda_max.
        split: share of the rows for stage 1.
        whiten: shift and rotate-and-scale (symmetrically) the columns to mean zero and unit
            covariance first; without it, X must be so already.
        device: where torch computes the features, "cpu" or "cuda".
        random_state: seed of the split, the units and the biases.

    Attributes:
        mean_, whitener_: x -> (x - mean) @ whitener; absent without `whiten`.
        inner_: the fitted inner layer.
        direction_: w, (inner_.width_,), scaled so that the feature has unit variance.
        offset_: what is subtracted, so that the feature has mean zero.
        link_: the fitted `LinkRegressor`.
        steps_: T, the steps of stage 1 that were best on the held-out rows.
        diagnostics_: what `fit` found out about the assumptions, see `fit`.
    """

    def __init__(
        self,
        degree: int = 2,
        inner_width: int | Literal["auto", "exact"] = "auto",
        inner_activation: InnerActivation = "hermite",
        outer_width: int = 256,
        outer_activation: OuterActivation = "relu",
        ridge: float | Literal["auto"] = "auto",
        bias_scale: float = 2.0,
        steps: int = 200,
        split: float = 0.5,
        whiten: bool = True,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.degree = degree
        self.inner_width = inner_width
        self.inner_activation = inner_activation
        self.outer_width = outer_width
        self.outer_activation = outer_activation
        self.ridge = ridge
        self.bias_scale = bias_scale
        self.steps = steps
        self.split = split
        self.whiten = whiten
        self.device = device
        self.random_state = random_state

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Learn feature and link from rows `X` (n, d) and labels `y` (n,).

        Sets `diagnostics_`, plain numbers by name: `stage1_rows`, `stage2_rows`, `rows_per_d^k`
        (of stage 1; below 1/2 warns), `steps`, `holdout_correlation` (feature and label on the
        rows that chose T), `correlation` (on stage 2, which stage 1 never saw: the share of the
        label that the linear part of the link carries), `mean_slope` and `mean_slope_error` (E
        g'(z) by Stein's lemma, E[z y], per unit of the label's standard deviation),
        `feature_skewness`, `feature_excess_kurtosis` (0 if p(x) is normal) and
        `input_excess_kurtosis` (Mardia's, relative; 0 if the rows are normal).

        Raises:
            ValueError: X is not 2-D or has NaN; fewer than 8 rows.
            PeiraError: also a ValueError: a parameter out of range, a constant label, a feature
                that is not finite.
        """
        self._check_parameters()
        X, y = validate_data(
            self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=FEWEST_ROWS
        )
        y = np.asarray(y, dtype=np.float64)
        if y.min() == y.max():
            raise BadInput(f"the label is constant ({y[0]:g}): there is nothing to learn")
        random = check_random_state(self.random_state)
        if self.whiten:
            self.mean_, self.whitener_ = whitening(X)
        x = self._whitened(X)
        first, second = self._split(len(x), random)
        self._warn_of_few_rows(len(first), x.shape[1])
        self.inner_ = self._inner_layer(x.shape[1], random).fit(x)
        holdout_correlation = self._find_feature(x[first], y[first])
        z = self._standardised(x[second])
        self.link_ = LinkRegressor(
            self.outer_width,
            self.outer_activation,
            self.ridge,
            self.bias_scale,
            random_state=random.randint(2**31 - 1),
        ).fit(z, y[second])
        self.diagnostics_ = {
            "stage1_rows": float(len(first)),
            "stage2_rows": float(len(second)),
            "rows_per_d^k": len(first) / x.shape[1] ** self.degree,
            "steps": float(self.steps_),
            "holdout_correlation": holdout_correlation,
            **_about_feature(z, y[second]),
            "input_excess_kurtosis": excess_kurtosis(x),
        }
        return self

    def feature(self, X: npt.ArrayLike) -> Float[np.ndarray, "n"]:
        """p(x) as found: mean zero and variance one on the rows of stage 2, sign arbitrary."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return (self._response(self._whitened(X)) - self.offset_) / self.scale_

    def link(self, z: npt.ArrayLike) -> Float[np.ndarray, "..."]:
        """g(z) as found, for values `z` of `feature`, any shape."""
        check_is_fitted(self)
        z = np.asarray(z, dtype=np.float64)
        return self.link_.predict(z.ravel()).reshape(z.shape)

    def predict(self, X: npt.ArrayLike) -> Float[np.ndarray, "n"]:
        """g(p(x)) for rows `X` (n, d)."""
        return self.link(self.feature(X))

    def terms(self) -> pd.DataFrame:
        """The feature as a polynomial of the whitened columns, largest terms first.

        Columns `term` ("age * bmi", "He2(bmi)"), `coefficient` of the normalised Hermite product,
        and `share`, its square over the sum of all squares.

        Raises `PeiraError` for an inner layer of random units.
        """
        check_is_fitted(self)
        if not isinstance(self.inner_, HermiteFeatures):
            raise BadInput("random units have no terms: fit with inner_width='exact'")
        names = getattr(self, "feature_names_in_", [f"x{i}" for i in range(self.n_features_in_)])
        coefficient = self.direction_ / self.scale_
        table = pd.DataFrame(
            {
                "term": [_term(row, names) for row in self.inner_.powers_],
                "coefficient": coefficient,
                "share": coefficient**2 / (coefficient**2).sum(),
            }
        )
        return table.sort_values("share", ascending=False, ignore_index=True)

    def network(self) -> ThreeLayerNetwork:
        """The same function as a torch module, to train on or to take apart.

        Its input is the whitened rows: (X - mean_) @ whitener_.
        """
        check_is_fitted(self)
        return ThreeLayerNetwork.from_stages(
            self.inner_, self.direction_ / self.scale_, self.offset_ / self.scale_, self.link_
        )

    def _check_parameters(self) -> None:
        width = self.inner_width
        wrong = {
            "degree": not _is_count(self.degree) and "1 or a larger whole number",
            "outer_width": not _is_count(self.outer_width) and "1 or a larger whole number",
            "steps": not _is_count(self.steps) and "1 or a larger whole number",
            "split": not 0 < self.split < 1 and "above 0 and below 1",
            "ridge": self.ridge != "auto" and not self.ridge > 0 and "above 0 or 'auto'",
            "inner_width": not (width in ("auto", "exact") or _is_count(width))
            and "a whole number, 'auto' or 'exact'",
        }
        for name, expected in wrong.items():
            if expected:
                raise BadInput(f"{name}={getattr(self, name)!r}; expected {expected}")

    def _whitened(self, X: Array) -> Array:
        return (X - self.mean_) @ self.whitener_ if self.whiten else X

    def _split(self, n: int, random: np.random.RandomState) -> tuple[Array, Array]:
        order = random.permutation(n)
        size = min(max(round(self.split * n), FEWEST_ROWS // 2), n - FEWEST_ROWS // 2)
        return order[:size], order[size:]

    def _warn_of_few_rows(self, rows: int, dimension: int) -> None:
        needed = dimension**self.degree
        if rows < needed / 2:
            warnings.warn(
                f"{rows} rows for stage 1, but a feature of degree {self.degree} in {dimension} "
                f"dimensions takes about d^k = {needed:,}: give {math.ceil(needed / self.split):,} "
                f"rows or more, fewer columns or a lower degree",
                UserWarning,
                stacklevel=3,
            )

    def _inner_layer(self, dimension: int, random: np.random.RandomState) -> InnerFeatures:
        exact = math.comb(dimension + self.degree, self.degree) - 1
        width = self.inner_width
        if width == "exact" or (width == "auto" and exact <= MOST_EXACT_FEATURES):
            return HermiteFeatures(self.degree)
        return SphereFeatures(
            RANDOM_WIDTH if width == "auto" else width,
            self.degree,
            self.inner_activation,
            random_state=random.randint(2**31 - 1),
        )

    def _find_feature(self, x: Array, y: Array) -> float:
        """Stage 1: sets `direction_` and `steps_`; the correlation on the held-out rows."""
        kept = len(x) - max(2, round(HOLDOUT * len(x)))
        path = DescentPath(self.inner_, x[:kept], y[:kept], self.device)
        steps = np.unique(np.geomspace(1, self.steps, 40).round().astype(int))
        responses = self._response(x[kept:], path.weights(steps))
        correlations = correlation(responses, y[kept:, None])
        best = int(np.argmax(correlations))
        self.steps_ = int(steps[best])
        whole = DescentPath(self.inner_, x, y, self.device)
        self.direction_ = whole.weights(np.array([self.steps_]))[:, 0]
        return float(correlations[best])

    def _standardised(self, x: Array) -> Array:
        """The feature of rows that have no labels yet; sets its `offset_` and `scale_`."""
        response = self._response(x)
        self.offset_, self.scale_ = float(response.mean()), float(response.std())
        if self.scale_ == 0:
            warnings.warn(
                "stage 1 found no feature (its labels or all columns are constant): the model is "
                "the mean label",
                UserWarning,
                stacklevel=3,
            )
            self.scale_ = 1.0
        return (response - self.offset_) / self.scale_

    def _response(self, x: Array, weights: Array | None = None) -> Array:
        """<w, h_0(x)> of rows, for one direction (the fitted one) or columns of several."""
        weights = self.direction_ if weights is None else weights
        w = torch.from_numpy(weights).to(self.device)
        blocks = self.inner_.blocks(x, self.device)
        return np.concatenate([(block.T @ w).cpu().numpy() for block in blocks])


class BadInput(PeiraError, ValueError):
    """Rows, labels or parameters that the method cannot use."""


class DescentPath:
    """Gradient descent on w from zero for |<w, h_0(x)> - y|^2/2n, at any step, in closed form.

    Features and labels are centred. With the singular values of the features, step T has gone
    (1 - (1 - lambda/lambda_max)^T) of the way to least squares in the direction of eigenvalue
    lambda, the step size being 1/lambda_max. The smaller of the two Gram matrices is decomposed.

    Args:
        inner: fitted inner layer.
        x: rows, (n, d).
        y: labels, (n,).
        device: where the features are computed.
    """

    def __init__(self, inner: InnerFeatures, x: Array, y: Array, device: str = "cpu") -> None:
        target = torch.from_numpy(y - y.mean()).to(device)
        if len(x) < inner.width_:
            features = torch.cat(list(inner.blocks(x, device)), dim=1)
            features -= features.mean(dim=1, keepdim=True)
            values, vectors = _eigh(features.T @ features / len(x))
            # Eigenvectors of the other Gram matrix, up to the square root of the eigenvalue, which
            # the filter takes care of.
            basis, moment = features @ vectors, vectors.T @ target / len(x)
        else:
            gram, cross = _moments(inner.blocks(x, device), target)
            values, basis = _eigh(gram)
            moment = basis.T @ cross
        self._basis, self._moment, self._values = basis, moment, values.clamp_min(0)

    def weights(self, steps: npt.NDArray[np.int64]) -> Float[np.ndarray, "features steps"]:
        """w after each number of steps, one column each."""
        eigenvalues = self._values[:, None]
        rate = eigenvalues / eigenvalues.max()
        # log1p keeps small rates exact; at rate 1 the first step is the last.
        left = torch.exp(torch.log1p(-rate) * torch.from_numpy(steps).to(rate.device))
        gone = torch.where(eigenvalues > 0, (1 - left) / eigenvalues, 0.0)
        return (self._basis @ (gone * self._moment[:, None])).cpu().numpy()


def _eigh(gram: Float[torch.Tensor, "m m"]) -> tuple[torch.Tensor, torch.Tensor]:
    if not torch.isfinite(gram).all():
        raise BadInput(
            "the features are not finite: products of the columns overflow; standardise them or "
            "set whiten=True"
        )
    values, vectors = torch.linalg.eigh(gram)
    return values, vectors


def _moments(
    blocks: Iterator[Float[torch.Tensor, "features rows"]], target: Float[torch.Tensor, "n"]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Covariance of the features and their covariance with a centred target, block by block."""
    gram = cross = total = 0.0
    seen = 0
    for block in blocks:
        rows = block.shape[1]
        gram = gram + block @ block.T
        cross = cross + block @ target[seen : seen + rows]
        total = total + block.sum(dim=1)
        seen += rows
    mean = total / seen
    return gram / seen - torch.outer(mean, mean), cross / seen


def _is_count(value: object) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and value >= 1


def whitening(X: Float[np.ndarray, "n d"]) -> tuple[Array, Array]:
    """Mean, and the symmetric matrix that makes the covariance of (X - mean) @ matrix one.

    Directions without variance (constant or dependent columns) become zero.
    """
    mean = X.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(X, rowvar=False, bias=True).reshape(2 * X.shape[1:]))
    varies = values > NEGLIGIBLE_VARIANCE * max(values[-1], np.finfo(float).tiny)
    roots = np.where(varies, 1 / np.sqrt(np.where(varies, values, 1.0)), 0.0)
    return mean, (vectors * roots) @ vectors.T


def correlation(a: Float[np.ndarray, "n ..."], b: Float[np.ndarray, "n ..."]) -> Array:
    """Pearson's correlation along the first axis; 0 where one of them does not vary."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    size = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return np.where(size > 0, (a * b).sum(axis=0) / np.where(size > 0, size, 1.0), 0.0)


def excess_kurtosis(x: Float[np.ndarray, "n d"]) -> float:
    """Mardia's kurtosis of whitened rows over its normal value r (r + 2), less 1."""
    squares = (x**2).sum(axis=1)
    # Equals the number of directions that vary, whitened or not.
    rank = float(squares.mean())
    return float((squares**2).mean() / (rank * (rank + 2)) - 1) if rank else math.nan


def _about_feature(z: Array, y: Array) -> dict[str, float]:
    scaled = (y - y.mean()) / (y.std() or 1.0)
    products = z * scaled
    return {
        "correlation": float(correlation(z, y)),
        "mean_slope": float(products.mean()),
        "mean_slope_error": float(products.std() / math.sqrt(len(z))),
        "feature_skewness": float(skew(z)),
        "feature_excess_kurtosis": float(kurtosis(z)),
    }


def _term(powers: npt.NDArray[np.int64], names: list[str]) -> str:
    factors = (
        names[column] if power == 1 else f"He{power}({names[column]})"
        for column, power in enumerate(powers)
        if power
    )
    return " * ".join(factors)
