"""How a model with a constant tangent kernel trains on squared error, in closed form.

Gradient descent at learning rate eta on C(f) = |f - y|^2 / 2 moves the function along the kernel
gradient (Jacot et al. 2018, sections 3 and 5); with K(X, X) = V diag(lambda) V^T on the n training
points X and r the rate, eta itself or eta / n where C is a mean over the points,

    f_t(X) = y + V d_t V^T (f_0(X) - y),
    f_t(x) = f_0(x) + K(x, X) V (1 - d_t) / lambda V^T (y - f_0(X)),

where d_t = exp(-r lambda t) under gradient flow and (1 - r lambda)^t after t steps of descent.
An infinitely wide network starts as a Gaussian process and stays one.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from peira.data.errors import DataError
from peira.engine.errors import PeiraError

Floats = npt.NDArray[np.float64]
Method = Literal["flow", "descent"]
Loss = Literal["half-sum", "half-mean", "mse"]

# Entries of a kernel that differ by less, relative to its largest, are rounding: single precision.
SYMMETRY = 1e-5


class Modes(NamedTuple):
    """Principal components of a kernel: values (n,) descending, vectors (n, n) in columns."""

    values: Floats
    vectors: Floats


@dataclass(frozen=True)
class Forecast:
    """The function during training.

    Attributes:
        times: (T,).
        train: outputs on the training points, (T, n) or (T, n, k) as the targets are.
        test: outputs elsewhere, (T, m) or (T, m, k); None without a kernel between the points.
        error: |f_t(X) - y|^2 / 2, (T,).
    """

    times: Floats
    train: Floats
    test: Floats | None
    error: Floats


@dataclass(frozen=True)
class EnsembleForecast:
    """The Gaussian process that infinitely wide networks are after training for each time.

    Attributes:
        times: (T,).
        mean: (T, m) or (T, m, k).
        covariance: of one output, (T, m, m); outputs are independent.
    """

    times: Floats
    mean: Floats
    covariance: Floats

    @property
    def deviation(self) -> Floats:
        """Standard deviation over networks, (T, m)."""
        return np.sqrt(np.maximum(np.diagonal(self.covariance, axis1=1, axis2=2), 0.0))


@dataclass(frozen=True)
class EarlyStop:
    """When to stop training.

    Attributes:
        time: of the least risk; 0 (do not train) and infinity (to the end) are possible.
        risk: expected squared error per target against the noise-free values, at that time; by
            generalised cross-validation, against new noisy targets.
        degrees: effective number of fitted parameters, sum_i (1 - d_t(lambda_i)).
        times, risks: the curve that was searched, (T,).
        mode_times: 1 / (r lambda_i) of each principal component, (n,): what is slower than
            `time` is not learned.
    """

    time: float
    risk: float
    degrees: float
    times: Floats
    risks: Floats
    mode_times: Floats


def check_kernel(kernel: npt.ArrayLike, targets: int | None = None) -> Floats:
    """The kernel of the training points as a symmetric float64 matrix.

    Raises `DataError` where it is not square, not finite, not symmetric (names the entry), or not
    of as many points as there are `targets`.
    """
    k = np.asarray(kernel, dtype=np.float64)
    if k.ndim != 2 or k.shape[0] != k.shape[1] or not k.size:
        raise DataError(f"the kernel has the shape {k.shape}", expected="a square matrix")
    if targets is not None and len(k) != targets:
        raise DataError(f"the kernel is of {len(k)} points", expected=f"{targets}, one per target")
    if not np.isfinite(k).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(k))[0])
        raise DataError(
            "the kernel has a value that is no number", None, row, column, float(k[row, column])
        )
    gap = np.abs(k - k.T)
    if gap.max() > SYMMETRY * np.abs(k).max():
        row, column = (int(i) for i in np.unravel_index(gap.argmax(), gap.shape))
        raise DataError(
            "the kernel is not symmetric",
            None,
            row,
            column,
            float(k[row, column]),
            f"{k[column, row]:g}, as at row {column}, column {row}",
        )
    return (k + k.T) / 2


def modes(kernel: npt.ArrayLike) -> Modes:
    """Principal components of a kernel, the fastest learned first.

    Raises `DataError` as `check_kernel` does, and where the kernel has an eigenvalue that is
    negative beyond rounding.
    """
    k = check_kernel(kernel)
    values, vectors = eigh(k)
    lowest = -SYMMETRY * len(k) * np.abs(k).max()
    if values[0] < lowest:
        raise DataError(
            "the kernel is not positive semi-definite: its least eigenvalue",
            value=float(values[0]),
            expected="0 or more",
        )
    return Modes(np.maximum(values[::-1], 0.0), np.ascontiguousarray(vectors[:, ::-1]))


def training_forecast(
    kernel: npt.ArrayLike | Modes,
    y: npt.ArrayLike,
    times: npt.ArrayLike,
    *,
    learning_rate: float = 1.0,
    method: Method = "flow",
    loss: Loss = "half-sum",
    initial: npt.ArrayLike | None = None,
    cross: npt.ArrayLike | None = None,
    initial_test: npt.ArrayLike | None = None,
) -> Forecast:
    """What a network of constant tangent kernel gives at each time of its training.

    Args:
        kernel: tangent kernel of the training points, (n, n), or its `modes`.
        y: targets, (n,) or (n, k); outputs share the kernel.
        times: (T,); steps of gradient descent, or times of gradient flow in the same unit.
            Infinity is the end of training.
        learning_rate: eta.
        method: "flow" or "descent".
        loss: "half-sum" is |f - y|^2 / 2 summed over points and outputs, "half-mean" its mean over
            the points (the paper's cost), "mse" the mean over points and outputs of (f - y)^2
            (`torch.nn.MSELoss`).
        initial: outputs on the training points at the start; 0 by default.
        cross: tangent kernel of other points with the training points, (m, n).
        initial_test: outputs on the other points at the start; 0 by default.

    Raises:
        DataError: shapes that do not fit, values that are no numbers, an asymmetric kernel.
    """
    targets, flat = _targets(y)
    found = _modes_of(kernel, len(targets))
    rate = pace(*targets.shape, learning_rate, loss)
    when = _times(times)
    start = _like(initial, targets.shape, "initial")
    gap = found.vectors.T @ (start - targets)
    decay = _decay(rate * found.values, when, method)
    residual = np.einsum("ni,ti,ik->tnk", found.vectors, decay, gap, optimize=True)
    test = None
    if cross is not None:
        other = _cross(cross, len(targets))
        first = _like(initial_test, (len(other), targets.shape[1]), "initial_test")
        growth = _growth(found.values, rate, when, method)
        seen = other @ found.vectors
        test = first - np.einsum("mi,ti,ik->tmk", seen, growth, gap, optimize=True)
    return Forecast(
        when,
        _squeeze(targets + residual, flat),
        None if test is None else _squeeze(test, flat),
        0.5 * (residual**2).sum(axis=(1, 2)),
    )


def ensemble_forecast(
    ntk: npt.ArrayLike | Modes,
    nngp: npt.ArrayLike,
    y: npt.ArrayLike,
    times: npt.ArrayLike,
    *,
    learning_rate: float = 1.0,
    method: Method = "flow",
    loss: Loss = "half-sum",
    cross: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    nngp_test: npt.ArrayLike | None = None,
) -> EnsembleForecast:
    """Mean and covariance over infinitely wide networks, each trained from its own start.

    With A_t = Theta(x, X) V (1 - d_t) / lambda V^T: mean A_t y, covariance
    Sigma(x, x') + A_t Sigma(X, X) A_t^T - A_t Sigma(X, x') - Sigma(x, X) A_t^T.
    Training the last layer only is `ntk` = `nngp`; its end is the posterior of the Gaussian
    process of covariance `nngp`.

    Args:
        ntk, nngp: both kernels of the training points, (n, n); see `kernels`.
        y, times, learning_rate, method, loss: as in `training_forecast`.
        cross: (nngp, ntk) of other points with the training points, each (m, n), in the order of
            `InfiniteKernels`; None asks for the training points themselves.
        nngp_test: nngp of the other points, (m, m).

    Raises:
        DataError: as `training_forecast`, and `cross` without `nngp_test` or the other way round.
    """
    targets, flat = _targets(y)
    found = _modes_of(ntk, len(targets))
    prior = check_kernel(nngp, len(targets))
    rate = pace(*targets.shape, learning_rate, loss)
    when = _times(times)
    if (cross is None) != (nngp_test is None):
        raise DataError("cross and nngp_test go together", expected="both or neither")
    if cross is None or nngp_test is None:
        left, between, here = found.vectors * found.values, prior, prior
    else:
        between, theta = (_cross(part, len(targets)) for part in cross)
        left, here = theta @ found.vectors, check_kernel(nngp_test, len(theta))
    means, covariances = [], []
    for growth in _growth(found.values, rate, when, method):
        smoother = (left * growth) @ found.vectors.T
        means.append(smoother @ targets)
        shared = smoother @ between.T
        covariances.append(here + smoother @ prior @ smoother.T - shared - shared.T)
    return EnsembleForecast(when, _squeeze(np.stack(means), flat), np.stack(covariances))


def mode_times(
    kernel: npt.ArrayLike | Modes,
    *,
    learning_rate: float = 1.0,
    loss: Loss = "half-sum",
    outputs: int = 1,
) -> Floats:
    """Time 1 / (r lambda_i) in which the error along component i falls by a factor e, (n,)."""
    found = kernel if isinstance(kernel, Modes) else modes(kernel)
    rate = pace(len(found.values), outputs, learning_rate, loss)
    with np.errstate(divide="ignore"):
        return 1 / (rate * found.values)


def early_stop_time(
    kernel: npt.ArrayLike | Modes,
    y: npt.ArrayLike,
    noise: float | None = None,
    *,
    learning_rate: float = 1.0,
    method: Method = "flow",
    loss: Loss = "half-sum",
    initial: npt.ArrayLike | None = None,
) -> EarlyStop:
    """When the expected error of a network of constant kernel is least.

    Large components of the kernel are learned first (section 5 of the paper), and noise is spread
    over all of them. Component i has moved the share 1 - d_t(lambda_i) of the way to its noisy
    target at time t, so that |f_t - y|^2 + 2 noise sum_i (1 - d_t) - n noise is an unbiased
    estimate of the squared error against the noise-free targets (Mallows 1973).

    Args:
        kernel, y, learning_rate, method, loss, initial: as in `training_forecast`.
        noise: variance of the targets' noise; None takes the time of the least generalised
            cross-validation error, n |f_t - y|^2 / (n - sum_i (1 - d_t))^2, which needs none.

    Raises:
        DataError: as `training_forecast`, and a negative noise.
    """
    targets, _ = _targets(y)
    if noise is not None and not (np.isfinite(noise) and noise >= 0):
        raise DataError("noise", value=noise, expected="a variance, 0 or more")
    found = _modes_of(kernel, len(targets))
    rate = pace(*targets.shape, learning_rate, loss)
    gap = found.vectors.T @ (_like(initial, targets.shape, "initial") - targets)
    energy = (gap**2).sum(axis=1)
    outputs = targets.shape[1]

    def risk(times: Floats) -> Floats:
        return _risk(_decay(rate * found.values, times, method), energy, outputs, noise)

    times = _search_grid(rate * found.values, method)
    risks = risk(times)
    best = int(np.argmin(risks))
    time, least = float(times[best]), float(risks[best])
    if method == "flow" and 1 < best < len(times) - 2:
        finer = np.geomspace(times[best - 1], times[best + 1], 101)
        around = risk(finer)
        time, least = float(finer[around.argmin()]), float(around.min())
    degrees = float((1 - _decay(rate * found.values, np.array([time]), method)).sum())
    with np.errstate(divide="ignore"):
        slow = 1 / (rate * found.values)
    return EarlyStop(time, least, degrees, times, risks, slow)


def pace(points: int, outputs: int, learning_rate: float, loss: Loss) -> float:
    """The rate that multiplies the kernel: eta, eta / n or 2 eta / (n k), by the loss.

    Raises `DataError` for a learning rate that is not positive, `PeiraError` for another loss.
    """
    if not (np.isfinite(learning_rate) and learning_rate > 0):
        raise DataError("learning_rate", value=learning_rate, expected="a number greater than 0")
    scale = {"half-sum": 1.0, "half-mean": 1 / points, "mse": 2 / (points * outputs)}
    if loss not in scale:
        raise PeiraError(f"loss is {loss!r}; expected one of {', '.join(scale)}")
    return learning_rate * scale[loss]


def _decay(rates: Floats, times: Floats, method: Method) -> Floats:
    """d_t of every time and component, (T, n)."""
    _check_method(method)
    with np.errstate(invalid="ignore"):
        if method == "flow":
            decay = np.exp(-np.outer(times, rates))
        else:
            if rates.max(initial=0.0) >= 2:
                warnings.warn(
                    f"gradient descent diverges: learning rate x largest eigenvalue is "
                    f"{rates.max():g}, 2 or more",
                    UserWarning,
                    stacklevel=3,
                )
            decay = (1 - rates) ** times[:, None]
    # A component that the kernel does not see stays, however long one trains.
    decay[:, rates == 0] = 1.0
    return decay


def _growth(values: Floats, rate: float, times: Floats, method: Method) -> Floats:
    """(1 - d_t) / lambda, (T, n); its limit rate * t where lambda vanishes, 0 there at the end."""
    _check_method(method)
    rates = rate * values
    moved = 1 - _decay(rates, times, method)
    slow = rates[None, :] * np.where(np.isfinite(times), times, 0.0)[:, None] < 1e-8
    slow &= np.isfinite(times)[:, None]
    growth = np.divide(moved, values, out=np.zeros_like(moved), where=values > 0)
    growth[slow] = np.broadcast_to(rate * times[:, None], moved.shape)[slow]
    # At the end: the pseudo-inverse, without what is zero but for rounding.
    ended = ~np.isfinite(times)
    growth[np.ix_(ended, values <= len(values) * np.finfo(float).eps * values.max(initial=0))] = 0
    return growth


def _risk(decay: Floats, energy: Floats, outputs: int, noise: float | None) -> Floats:
    """Estimated risk per target at each time: Mallows's, or generalised cross-validation."""
    n = len(energy)
    residual = decay**2 @ energy
    left = decay.sum(axis=1)
    if noise is not None:
        mallows: Floats = (residual + outputs * noise * (n - 2 * left)) / (n * outputs)
        return mallows
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(left < 1e-9 * n, np.inf, n * residual / (left**2 * outputs))


def _search_grid(rates: Floats, method: Method) -> Floats:
    """0, times from before the fastest component to after the slowest, infinity."""
    seen = rates[rates > len(rates) * np.finfo(float).eps * rates.max(initial=0)]
    if not len(seen):
        return np.array([0.0])
    grid = np.geomspace(0.01 / seen.max(), 30 / seen.min(), 400)
    if method == "descent":
        grid = np.unique(np.round(grid))
    return np.concatenate([[0.0], grid[grid > 0], [np.inf]])


def _check_method(method: str) -> None:
    if method not in ("flow", "descent"):
        raise PeiraError(f"method is {method!r}; expected 'flow' or 'descent'")


def _targets(y: npt.ArrayLike) -> tuple[Floats, bool]:
    targets = np.asarray(y, dtype=np.float64)
    if targets.ndim not in (1, 2) or not targets.size:
        raise DataError(f"targets have the shape {targets.shape}", expected="(n,) or (n, k)")
    if not np.isfinite(targets).all():
        row = int(np.argwhere(~np.isfinite(targets))[0][0])
        raise DataError("a target is no number", row=row)
    return targets.reshape(len(targets), -1), targets.ndim == 1


def _times(times: npt.ArrayLike) -> Floats:
    when = np.atleast_1d(np.asarray(times, dtype=np.float64))
    if when.ndim != 1 or not (when >= 0).all():
        raise DataError("times", value=np.asarray(times).tolist(), expected="numbers of 0 or more")
    return when


def _like(values: npt.ArrayLike | None, shape: tuple[int, ...], name: str) -> Floats:
    if values is None:
        return np.zeros(shape)
    found = np.asarray(values, dtype=np.float64)
    if found.ndim == 1:
        found = found[:, None]
    if found.shape != shape:
        raise DataError(f"{name} has the shape {found.shape}", expected=f"{shape}")
    return found


def _cross(cross: npt.ArrayLike, n: int) -> Floats:
    found = np.asarray(cross, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] != n:
        raise DataError(
            f"the kernel with other points has the shape {found.shape}", expected=f"(m, {n})"
        )
    return found


def _modes_of(kernel: npt.ArrayLike | Modes, targets: int) -> Modes:
    if not isinstance(kernel, Modes):
        kernel = modes(check_kernel(kernel, targets))
    elif len(kernel.values) != targets:
        raise DataError(f"modes of {len(kernel.values)} points", expected=f"{targets} targets")
    return kernel


def _squeeze(values: Floats, flat: bool) -> Floats:
    return values[..., 0] if flat else values
