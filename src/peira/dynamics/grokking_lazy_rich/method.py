"""Predict, bring about, delay or take away grokking with one number, the output scale alpha.

`PolyGrokModel` trains the paper's polynomial network exactly and at a cost that does not depend on
its width. `grok_forecast` says of any module and data, before training, whether the paper's three
conditions for grokking hold; `grok_gap` measures the delay on any pair of loss curves. The scale
itself is `peira.dynamics.ScaledOutput`, the alignment `peira.dynamics.kernel_task_alignment`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from peira.data.errors import DataError
from peira.dynamics.grokking_lazy_rich.gap import GrokGap, grok_gap, logarithmic_steps
from peira.dynamics.grokking_lazy_rich.polynomial import (
    Components,
    Descent,
    LinearisedTwin,
    Task,
    gradient_flow,
    infinite_neurons,
    initial_weights,
    neurons,
    population_loss,
    quadratic_task,
)
from peira.dynamics.probes import empirical_ntk, kernel_task_alignment

__all__ = [
    "Components",
    "Descent",
    "GrokForecast",
    "GrokGap",
    "LinearisedTwin",
    "PolyGrokModel",
    "Task",
    "gradient_flow",
    "grok_forecast",
    "grok_gap",
    "infinite_neurons",
    "initial_weights",
    "logarithmic_steps",
    "neurons",
    "population_loss",
    "quadratic_task",
]

# Part of the largest stable learning rate that is taken where none is given: the kernel grows
# while features are learned.
CAUTION = 0.1


class PolyGrokModel(RegressorMixin, BaseEstimator):
    """The paper's polynomial network as a scikit-learn regressor that keeps its learning curves.

    f(x) - f_0(x) with f(x) = (alpha / N) sum_i [w_i.x + (eps / 2) (w_i.x)^2] is fitted by
    full-batch gradient descent on the mean squared error, exactly for any width (paper, section
    4). The paper's inputs have variance 1 / D in each column.

    Args:
        alpha: output scale; large trains lazily, small learns features.
        eps: curvature; small starts with a kernel that is misaligned with curved targets.
        width: number N of neurons, or infinity.
        steps: of gradient descent.
        learning_rate: in the paper's units, eta; None takes a tenth of the largest stable one at
            the start.
        seed: draws the weights.

    Attributes:
        curves_: dict of arrays: step, train_loss, test_loss (NaN without validation data),
            linearised_train_loss, linearised_test_loss, movement (|W - W_0|^2 / |W_0|^2),
            alignment (of the tangent kernel with the targets, centred).
        mean_: wbar at the steps of the curves, (T, D).
        second_: M there, (T, D, D).
        kernel_loss_: test loss of regression with the initial kernel, NaN without validation data.
        largest_learning_rate_: beyond which gradient descent diverges from the start.
        n_iter_: steps taken.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        eps: float = 0.05,
        width: float = 500,
        steps: int = 5000,
        learning_rate: float | None = None,
        seed: int = 0,
    ) -> None:
        self.alpha = alpha
        self.eps = eps
        self.width = width
        self.steps = steps
        self.learning_rate = learning_rate
        self.seed = seed

    def fit(
        self,
        X: Float[ndarray, "P D"],
        y: Float[ndarray, " P"],
        validation: tuple[ndarray, ndarray] | None = None,
    ) -> PolyGrokModel:
        """Train.

        Args:
            X, y: training inputs and targets.
            validation: inputs and targets that only the curves see.

        Raises:
            DataError: fewer than two samples, constant targets, alpha or eps or width that is not
                positive, or training that diverges (with the step and the largest stable rate).
        """
        for _ in self.fit_steps(X, y, validation):
            pass
        return self

    def fit_steps(
        self, X: ndarray, y: ndarray, validation: tuple[ndarray, ndarray] | None = None
    ) -> Iterator[int]:
        """`fit` as a loop to watch or to leave early: yields the number of each step taken."""
        X, y = validate_data(self, X, y, dtype=float, y_numeric=True, ensure_min_samples=2)
        if not np.ptp(y) > 0:
            raise DataError("targets", value=float(y[0]), expected="targets that are not constant")
        if not self.width >= 1:
            raise DataError("width", value=self.width, expected="1 or more, or infinity")
        descent = self._descent(X, y)
        twin = LinearisedTwin(descent)
        held_out = None if validation is None else tuple(map(np.asarray, validation))
        self.kernel_loss_ = math.nan
        if held_out is not None:
            self.kernel_loss_ = float(np.mean((twin.predict(held_out[0]) - held_out[1]) ** 2))
        rows: list[dict[str, float]] = []
        orders: list[tuple[ndarray, ndarray]] = []
        kept = set(logarithmic_steps(self.steps))
        self._descent_ = descent
        for step in range(self.steps + 1):
            if step:
                descent.step()
            self._check(step, descent)
            if step in kept:
                rows.append(_row(step, descent, twin, held_out))
                orders.append(descent.order())
                self.curves_ = {name: np.array([row[name] for row in rows]) for name in rows[0]}
                self.mean_, self.second_ = (np.stack(part) for part in zip(*orders, strict=True))
            self.n_iter_ = step
            if step:
                yield step

    def predict(self, X: Float[ndarray, "n D"]) -> Float[ndarray, " n"]:
        """The trained network's outputs, less those at its start."""
        check_is_fitted(self)
        return self._descent_.predict(validate_data(self, X, dtype=float, reset=False))[0]

    def gap(self, fraction: float = 0.05) -> GrokGap:
        """The delay of the validation loss, on the logarithmic steps of the curves."""
        check_is_fitted(self)
        train, test, at = (self.curves_[k] for k in ("train_loss", "test_loss", "step"))
        if np.isnan(test).any():
            raise DataError("no test losses", expected="fit(X, y, validation=(X_test, y_test))")
        return grok_gap(train, test, fraction, steps=at)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        # At small alpha a large linear part forces an even larger quadratic one: the model cannot
        # fit the linear targets of scikit-learn's check.
        tags.regressor_tags.poor_score = True
        return tags

    def _descent(self, x: ndarray, y: ndarray) -> Descent:
        size = x.shape[1]
        if math.isinf(self.width):
            factor = infinite_neurons(size, self.eps)
        else:
            factor = neurons(initial_weights(int(self.width), size, self.seed), self.eps)
        trial = Descent(x, y, factor, alpha=self.alpha, eps=self.eps, rate=1.0)
        largest = float(trial.largest_stable_rate()[0])
        # eta = rate N / alpha^2; an infinite network is spoken of in units of rate.
        unit = (1.0 if math.isinf(self.width) else self.width) / self.alpha**2
        self.largest_learning_rate_ = largest * unit
        asked = self.learning_rate
        rate = CAUTION * largest if asked is None else asked / unit
        return Descent(x, y, factor, alpha=self.alpha, eps=self.eps, rate=rate)

    def _check(self, step: int, descent: Descent) -> None:
        loss = float(descent.train_loss[0])
        if not loss < 1e6 * float(np.mean(descent.y**2)):
            raise DataError(
                f"training diverged at step {step}",
                value=self.learning_rate,
                expected="learning_rate well below the largest stable one at the start, "
                f"{self.largest_learning_rate_:.3g}",
            )


def _row(
    step: int, descent: Descent, twin: LinearisedTwin, held_out: tuple[ndarray, ...] | None
) -> dict[str, float]:
    test = linearised = math.nan
    if held_out is not None:
        test = float(np.mean((descent.predict(held_out[0])[0] - held_out[1]) ** 2))
        linearised = float(np.mean((twin.predict(held_out[0], step) - held_out[1]) ** 2))
    return {
        "step": float(step),
        "train_loss": float(descent.train_loss[0]),
        "test_loss": test,
        "linearised_train_loss": twin.train_loss(step),
        "linearised_test_loss": linearised,
        "movement": float(descent.movement()[0]),
        "alignment": descent.alignment(descent.x[0], descent.y[0]),
    }


@dataclass(frozen=True)
class GrokForecast:
    """What the start of a network says about its training (the paper's three conditions).

    Attributes:
        alignment: of the initial kernel with the targets, centred, trace over outputs.
        chance: the alignment's mean over shuffled targets.
        kernel_error: error of regression with the initial kernel on samples it has not seen, as a
            share of the targets' variance (five folds): the height of the plateau.
        movement: |delta|^2 / |theta|^2 of the smallest change of the weights that fits the targets
            in the linearised network. Small: it can stay lazy. Large: a fit needs new features.
        data_ratio: samples / (input size)^2.
        verdict: what follows, in words.
    """

    alignment: float
    chance: float
    kernel_error: float
    movement: float
    data_ratio: float
    verdict: str


def grok_forecast(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Float[Tensor, "n"] | Float[Tensor, "n k"],
    *,
    folds: int = 5,
    seed: int = 0,
) -> GrokForecast:
    """Will this network grok on these data? Judged from its initial tangent kernel alone.

    The paper's conditions are (1) leading eigenvectors of the initial kernel that are misaligned
    with the targets, (2) data enough to generalise but not so many that train and test fall
    together, (3) a lazy start. The numbers are exact; the verdict's limits (0.5, twice the input
    size, 2) are rules of thumb that fit the delays measured on the polynomial task in 40
    dimensions.

    Args:
        model: at its initial weights. Its outputs are taken as centred.
        x, y: the training data.
        folds: of the cross-validated kernel regression.
        seed: of folds and shuffles.

    Raises:
        DataError: fewer than two samples per fold, constant targets, shapes that do not fit.
    """
    targets = y.double().reshape(len(y), -1)
    if len(x) != len(targets) or len(x) < 2 * folds:
        raise DataError(
            "samples",
            value=(len(x), len(targets)),
            expected=f"as many inputs as targets, at least {2 * folds}",
        )
    kernel = empirical_ntk(model, x, mode="trace").double()
    alignment = kernel_task_alignment(kernel, targets)
    generator = torch.Generator().manual_seed(seed)
    shuffles = [targets[torch.randperm(len(x), generator=generator)] for _ in range(20)]
    chance = float(np.mean([kernel_task_alignment(kernel, shuffled) for shuffled in shuffles]))
    order = torch.randperm(len(x), generator=generator)
    error = _fold_error(kernel, targets, order.chunk(folds))
    weights = sum(float(p.detach().double().square().sum()) for p in model.parameters())
    size = x[0].numel()
    found = {
        "alignment": alignment,
        "chance": chance,
        "kernel_error": error,
        "movement": _needed_movement(model, x, targets) / weights,
        "data_ratio": len(x) / size**2,
    }
    return GrokForecast(**found, verdict=_verdict(found, len(x), size))


def _fold_error(kernel: Tensor, y: Tensor, folds: Sequence[Tensor]) -> float:
    """Squared error of regression with `kernel` on left-out folds over the variance of y."""
    whole = torch.arange(len(y))
    wrong = 0.0
    for held_out in folds:
        known = whole[~torch.isin(whole, held_out)]
        mean = y[known].mean(0)
        weights = torch.linalg.pinv(kernel[known][:, known], hermitian=True) @ (y[known] - mean)
        wrong += float((kernel[held_out][:, known] @ weights + mean - y[held_out]).square().sum())
    return wrong / float((y - y.mean(0)).square().sum())


def _needed_movement(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """y^T K^-1 y with the kernel of all outputs: |delta|^2 of the least change that fits y."""
    n, k = y.shape
    full = empirical_ntk(model, x, mode="full").double()
    if full.shape[2] != k:
        raise DataError("targets", value=k, expected=f"{full.shape[2]} columns, as outputs")
    matrix = full.permute(0, 2, 1, 3).reshape(n * k, n * k)
    flat = y.reshape(-1)
    return float(flat @ torch.linalg.pinv(matrix, hermitian=True) @ flat)


def _verdict(found: dict[str, float], samples: int, size: int) -> str:
    if found["kernel_error"] < 0.5:
        return "no grokking: the initial kernel already generalises, test falls with train"
    if samples < 2 * size:
        return "no grokking: too few samples for their size, a fit will not generalise"
    if found["movement"] < 2:
        return "too lazy: fits without new features and may never generalise; lower alpha"
    return "grokking: a fit needs new features, test falls later; a larger alpha delays it more"
