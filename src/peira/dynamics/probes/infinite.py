"""Kernels of infinitely wide fully connected networks: NNGP covariance and neural tangent kernel.

A network of `depth` L weight layers in NTK parametrisation (Jacot et al. 2018, section 4) is

    h_1 = s W_1 x / sqrt(n_0) + b b_1,    h_{l+1} = s W_{l+1} sigma(h_l) / sqrt(n_l) + b b_{l+1},

with all entries of W and b_l standard normal, s^2 = `weight_var`, b^2 = `bias_var`; f = h_L. As the
hidden widths grow, outputs become independent Gaussian processes of covariance Sigma_L and the
tangent kernel becomes Theta_L (their Proposition 1 and Theorem 1), per output:

    Sigma_1 = s^2 x.x'/n_0 + b^2,    Sigma_{l+1} = s^2 E[sigma(u) sigma(v)] + b^2,
    Theta_1 = Sigma_1,               Theta_{l+1} = s^2 E[sigma'(u) sigma'(v)] Theta_l + Sigma_{l+1},

(u, v) normal of mean zero and of covariance Sigma_l at the two points. All is numpy, float64.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from peira.data import DataError
from peira.engine.errors import PeiraError, nearest

Floats = npt.NDArray[np.float64]
Function = Callable[[Any], Any]

# Elements of a block of rows: its dozen temporaries stay in the processor's cache.
BLOCK = 1 << 16
# Terms of a Hermite series, an even number, and the nodes that its last terms' waves ask for.
TERMS = 256
MIN_NODES = 512
# Standard deviations to integrate over: beyond them a normal density is below 1e-31.
REACH = 12.0
# Step of the central difference: near the cube root of the rounding unit, where its error is least.
DIFFERENCE = 6e-6


class InfiniteKernels(NamedTuple):
    """Both kernels of the same pairs of points, each (n, m) and per output."""

    nngp: Floats
    ntk: Floats


class Activation(ABC):
    """Gaussian expectations of a nonlinearity and of its derivative."""

    @abstractmethod
    def of_points(self, variance: Floats) -> tuple[Any, Any]:
        """What `pair` needs of points with these variances (n,): arrays whose last axis is n."""

    @abstractmethod
    def pair(
        self, left: tuple[Any, Any], right: tuple[Any, Any], cov: Floats
    ) -> tuple[Floats, Floats]:
        """E[sigma(u) sigma(v)] and E[sigma'(u) sigma'(v)] for covariances `cov`, each (n, m)."""

    @abstractmethod
    def square(self, variance: Floats) -> Floats:
        """E[sigma(u)^2] of u of these variances, (n,)."""


class _ClosedForm(Activation):
    """Expectations as functions of the two variances and the covariance."""

    def __init__(self, expectations: Callable[[Floats, Floats, Floats], tuple[Floats, Floats]]):
        self.expectations = expectations

    def of_points(self, variance: Floats) -> tuple[Floats, None]:
        return variance, None

    def pair(
        self, left: tuple[Any, Any], right: tuple[Any, Any], cov: Floats
    ) -> tuple[Floats, Floats]:
        return self.expectations(left[0][:, None], right[0][None, :], cov)

    def square(self, variance: Floats) -> Floats:
        return self.expectations(variance, variance, variance)[0]


class _Series(Activation):
    """Expectations as power series of the correlation, from Hermite coefficients of each point.

    With sigma(sqrt(q) z) = sum_k a_k(q) h_k(z), h_k the orthonormal Hermite polynomials, Mehler's
    formula gives E[sigma(u) sigma(v)] = sum_k a_k(q) a_k(q') c^k at correlation c: one sum for each
    pair, where a Gauss-Hermite rule of two axes takes nodes^2 evaluations of sigma. What
    E[sigma(u)^2] has beyond the terms stands in one even and one odd term more, so that fully
    correlated points (c = 1 or -1) are exact. The a_k come from the trapezoidal rule, which on
    Gaussian integrals needs far fewer nodes than Gauss-Hermite's (Trefethen 2022, section 5).
    """

    def __init__(self, function: Function, derivative: Function | None, nodes: int):
        if nodes < MIN_NODES:
            raise PeiraError(f"nodes = {nodes}; expected {MIN_NODES} or more")
        self.function, self.derivative, self.nodes = function, derivative, nodes

    def of_points(self, variance: Floats) -> tuple[tuple[Floats, Floats], Floats]:
        at = np.sqrt(variance)[:, None] * _hermite(self.nodes)[0]
        slopes = _values(self.derivative, at) if self.derivative else _difference(self.function, at)
        coefficients = _coefficients(_values(self.function, at)), _coefficients(slopes)
        return coefficients, np.sqrt(variance)

    def pair(
        self, left: tuple[Any, Any], right: tuple[Any, Any], cov: Floats
    ) -> tuple[Floats, Floats]:
        c = _correlation(cov, left[1][:, None] * right[1][None, :])
        value, slope = (_power_series(a, b, c) for a, b in zip(left[0], right[0], strict=True))
        return value, slope

    def square(self, variance: Floats) -> Floats:
        z, weights, _ = _hermite(self.nodes)
        squares: Floats = _values(self.function, np.sqrt(variance)[:, None] * z) ** 2 @ weights
        return squares


class _Polynomial(Activation):
    """The series of a polynomial ends: exact, and without a division by the variances.

    E[p(u) p(v)] = sum_k E[p^(k)(u)] E[p^(k)(v)] cov^k / k!.
    """

    def __init__(self, coefficients: Sequence[float]):
        self.polynomial = np.polynomial.Polynomial(np.asarray(coefficients, dtype=np.float64))

    def of_points(self, variance: Floats) -> tuple[tuple[Floats, Floats], None]:
        derived = [self.polynomial.deriv(k) for k in range(self.polynomial.degree() + 2)]
        means = np.stack([_gaussian_mean(p, variance) for p in derived])
        return (_over_root_factorial(means[:-1]), _over_root_factorial(means[1:])), None

    def pair(
        self, left: tuple[Any, Any], right: tuple[Any, Any], cov: Floats
    ) -> tuple[Floats, Floats]:
        value, slope = (_power_series(a, b, cov) for a, b in zip(left[0], right[0], strict=True))
        return value, slope

    def square(self, variance: Floats) -> Floats:
        return _gaussian_mean(self.polynomial**2, variance)


def piecewise_linear(below: float, above: float) -> Activation:
    """sigma(z) = `below` z for z < 0 and `above` z for z > 0 (Cho & Saul 2009, degree 1).

    ReLU is (0, 1), the absolute value (-1, 1), leaky ReLU (slope, 1), the identity (1, 1).
    """
    odd, even = (above + below) / 2, (above - below) / 2

    def expectations(q: Floats, r: Floats, cov: Floats) -> tuple[Floats, Floats]:
        if even == 0:
            return odd**2 * cov, np.full_like(cov, odd**2)
        norm = np.sqrt(q) * np.sqrt(r)
        c = _correlation(cov, norm)
        asin = np.arcsin(c)
        absolute = norm * (np.sqrt(1 - c * c) + c * asin)
        return (
            odd**2 * cov + even**2 * (2 / np.pi) * absolute,
            odd**2 + even**2 * (2 / np.pi) * asin,
        )

    return _ClosedForm(expectations)


def leaky_relu(slope: float = 0.01) -> Activation:
    """max(z, `slope` z) for a slope below 1."""
    return piecewise_linear(slope, 1.0)


def polynomial(coefficients: Sequence[float]) -> Activation:
    """sigma(z) = sum_k coefficients[k] z^k; its expectations are exact."""
    if not len(coefficients) or not np.isfinite(np.asarray(coefficients, dtype=float)).all():
        raise PeiraError("a polynomial needs finite coefficients, the constant first")
    return _Polynomial(coefficients)


def numerical(
    function: Function, derivative: Function | None = None, nodes: int = 2048
) -> Activation:
    """Any activation, by quadrature of its Hermite coefficients.

    Args:
        function: elementwise, of numpy arrays or of torch tensors; continuous. Accurate to rounding
            where it is smooth on the scale of its input's standard deviation, to about 1e-5 where
            it has a kink.
        derivative: likewise; without it a central difference, good to about 1e-10.
        nodes: of the quadrature over 12 standard deviations on each side, 512 or more.
    """
    return _Series(function, derivative, nodes)


def _erf(q: Floats, r: Floats, cov: Floats) -> tuple[Floats, Floats]:
    """Williams 1997, equation 10."""
    product = (1 + 2 * q) * (1 + 2 * r)
    value = (2 / np.pi) * np.arcsin(_correlation(2 * cov, np.sqrt(product)))
    return value, (4 / np.pi) / np.sqrt(product - 4 * cov * cov)


def _sin(q: Floats, r: Floats, cov: Floats) -> tuple[Floats, Floats]:
    near, far = _waves(q, r, cov)
    return (near - far) / 2, (near + far) / 2


def _cos(q: Floats, r: Floats, cov: Floats) -> tuple[Floats, Floats]:
    near, far = _waves(q, r, cov)
    return (near + far) / 2, (near - far) / 2


def _waves(q: Floats, r: Floats, cov: Floats) -> tuple[Floats, Floats]:
    """E[cos(u - v)] and E[cos(u + v)]."""
    return np.exp(cov - (q + r) / 2), np.exp(-cov - (q + r) / 2)


def _gelu(q: Floats, r: Floats, cov: Floats) -> tuple[Floats, Floats]:
    """z Phi(z): Gaussian integration by parts (Stein) on both factors z."""
    product = (1 + q) * (1 + r)
    both = 0.25 + np.arcsin(_correlation(cov, np.sqrt(product))) / (2 * np.pi)
    inverse = 1 / (product - cov * cov)
    densities = np.sqrt(inverse) / (2 * np.pi)
    # E[u phi(u) Phi(v)] and its mirror image.
    first, second = cov * densities / (1 + q), cov * densities / (1 + r)
    value = cov * (both - q * first - r * second) + (q * r + cov * cov) * densities
    return value, both + first + second + densities * cov * inverse


def _sigmoid(z: Floats) -> Floats:
    from scipy.special import expit

    result: Floats = expit(z)
    return result


ACTIVATIONS: dict[str, Activation] = {
    "relu": piecewise_linear(0.0, 1.0),
    "leaky_relu": leaky_relu(),
    "abs": piecewise_linear(-1.0, 1.0),
    "linear": piecewise_linear(1.0, 1.0),
    "erf": _ClosedForm(_erf),
    "sin": _ClosedForm(_sin),
    "cos": _ClosedForm(_cos),
    "gelu": _ClosedForm(_gelu),
    "square": _Polynomial([0.0, 0.0, 1.0]),
    "tanh": numerical(np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "sigmoid": numerical(_sigmoid, lambda z: _sigmoid(z) * _sigmoid(-z)),
    "silu": numerical(lambda z: z * _sigmoid(z), lambda z: _sigmoid(z) * (1 + z * _sigmoid(-z))),
    "softplus": numerical(lambda z: np.logaddexp(0, z), _sigmoid),
}


def activation_of(activation: str | Function | Activation) -> Activation:
    """The expectations of a named activation or of a callable; raises `PeiraError` otherwise."""
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise PeiraError(f"no activation {activation!r}; {nearest(activation, ACTIVATIONS)}")
        return ACTIVATIONS[activation]
    if callable(activation):
        return numerical(activation)
    raise PeiraError(f"activation is {activation!r}; expected a name or a function")


def kernels(
    x: npt.ArrayLike,
    x2: npt.ArrayLike | None = None,
    *,
    depth: int,
    activation: str | Function | Activation = "relu",
    weight_var: float = 1.0,
    bias_var: float = 0.0,
    gain: float = 1.0,
    chunk: int | None = None,
) -> InfiniteKernels:
    """NNGP and neural tangent kernel of an infinitely wide fully connected network.

    Args:
        x: points, (n, features).
        x2: other points, (m, features); without them the kernel of `x` with itself.
        depth: weight layers, hidden layers + 1 (the paper's L); 1 is the linear model.
        activation: "relu", "leaky_relu", "abs", "linear", "erf", "sin", "cos", "gelu", "square",
            "tanh", "sigmoid", "silu", "softplus", `leaky_relu(slope)`, `polynomial(coefficients)`,
            `numerical(function, derivative, nodes)`, or just a function.
        weight_var: variance of the weights, before the division by the fan-in.
        bias_var: variance of the biases (the paper's beta^2).
        gain: factor in front of the activation: sqrt(2) for the normalised ReLU.
        chunk: rows at a time; by default as many as fit in the processor's cache.

    Returns:
        The kernels per output, (n, m), float64; those of a point of norm zero are finite.

    Raises:
        DataError: points that are not numbers, or of different sizes (names row and column).
        PeiraError: an unknown activation, one that is not finite, a depth below 1, a negative
            variance, or kernels larger than the machine's memory (see `kernel_blocks`).
    """
    left = points(x, "x")
    right = left if x2 is None else points(x2, "x2")
    refuse_beyond_memory(len(left), len(right))
    nngp, ntk = (np.empty((len(left), len(right))) for _ in range(2))
    settings = {"depth": depth, "activation": activation, "gain": gain, "chunk": chunk}
    blocks = kernel_blocks(
        left, None if x2 is None else right, weight_var=weight_var, bias_var=bias_var, **settings
    )
    for rows, block in blocks:
        nngp[rows], ntk[rows] = block
    return InfiniteKernels(nngp, ntk)


def kernel_blocks(
    x: npt.ArrayLike,
    x2: npt.ArrayLike | None = None,
    *,
    depth: int,
    activation: str | Function | Activation = "relu",
    weight_var: float = 1.0,
    bias_var: float = 0.0,
    gain: float = 1.0,
    chunk: int | None = None,
) -> Iterator[tuple[slice, InfiniteKernels]]:
    """The kernels of `kernels`, a block of rows at a time: none larger than `chunk` rows is held.

    Yields the rows' slice and their kernels, (rows, m).
    """
    left = points(x, "x")
    right = left if x2 is None else points(x2, "x2")
    if left.shape[1] != right.shape[1]:
        raise DataError(
            "x and x2 differ in their features",
            value=right.shape[1],
            expected=f"{left.shape[1]} columns, as x has",
        )
    dual = activation_of(activation)
    _check(depth, weight_var, bias_var, gain)
    step = chunk or max(1, BLOCK // len(right))
    if step < 1:
        raise PeiraError(f"chunk = {chunk}; expected 1 row or more")
    return _blocks(left, right, x2 is None, dual, (depth, weight_var, bias_var, gain), step)


def _blocks(
    left: Floats,
    right: Floats,
    same: bool,
    dual: Activation,
    settings: tuple[int, float, float, float],
    step: int,
) -> Iterator[tuple[slice, InfiniteKernels]]:
    depth, weight_var, bias_var, gain = settings
    scale = weight_var * gain**2
    variances = _variances(left, dual, settings)
    of_left = of_right = [dual.of_points(q) for q in variances[:-1]]
    if not same:
        of_right = [dual.of_points(q) for q in _variances(right, dual, settings)[:-1]]
    for start in range(0, len(left), step):
        rows = slice(start, min(start + step, len(left)))
        diagonal = np.arange(rows.start, rows.stop)
        nngp = weight_var / left.shape[1] * (left[rows] @ right.T) + bias_var
        ntk = nngp
        for layer in range(depth - 1):
            if same:
                # Exactly, or else rounding makes a point less than fully correlated with itself.
                nngp[diagonal - start, diagonal] = variances[layer][rows]
            value, slope = dual.pair(_rows(of_left[layer], rows), of_right[layer], nngp)
            nngp = scale * value + bias_var
            ntk = scale * slope * ntk + nngp
        yield rows, InfiniteKernels(nngp, ntk.copy() if depth == 1 else ntk)


def variances(
    x: npt.ArrayLike,
    *,
    depth: int,
    activation: str | Function | Activation = "relu",
    weight_var: float = 1.0,
    bias_var: float = 0.0,
    gain: float = 1.0,
) -> Floats:
    """The diagonal of the NNGP kernel, (n,), without the kernel."""
    _check(depth, weight_var, bias_var, gain)
    settings = (depth, weight_var, bias_var, gain)
    return _variances(points(x, "x"), activation_of(activation), settings)[-1]


def points(x: npt.ArrayLike, name: str = "x") -> Floats:
    """`x` as a matrix of finite numbers, (n, features); raises `DataError` with row and column."""
    try:
        found = np.ascontiguousarray(x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is not a matrix of numbers ({error})") from error
    if found.ndim != 2 or not found.size:
        raise DataError(f"{name} has the shape {found.shape}", expected="(points, features)")
    if not np.isfinite(found).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(found))[0])
        value = float(found[row, column])
        raise DataError(f"{name} has a value that is no number", None, row, column, value, "finite")
    return found


def _variances(
    x: Floats, dual: Activation, settings: tuple[int, float, float, float]
) -> list[Floats]:
    """Sigma_l(x, x) of every layer l = 1..depth."""
    depth, weight_var, bias_var, gain = settings
    found = [weight_var / x.shape[1] * np.einsum("np,np->n", x, x) + bias_var]
    for _ in range(depth - 1):
        found.append(weight_var * gain**2 * dual.square(found[-1]) + bias_var)
    return found


def _rows(of_points: Any, rows: slice) -> Any:
    if of_points is None:
        return None
    if isinstance(of_points, tuple):
        return tuple(_rows(part, rows) for part in of_points)
    return of_points[..., rows]


def _check(depth: int, weight_var: float, bias_var: float, gain: float) -> None:
    if depth < 1:
        raise PeiraError(f"depth = {depth}; expected 1 weight layer or more")
    for name, value in (("weight_var", weight_var), ("bias_var", bias_var), ("gain", gain)):
        if not (math.isfinite(value) and value >= 0):
            raise PeiraError(f"{name} = {value}; expected a number that is not negative")


def refuse_beyond_memory(n: int, m: int) -> None:
    """Raise `PeiraError` where two kernels of n x m numbers exceed the machine's memory."""
    needed = 2 * 8 * n * m
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return
    if needed > there:
        raise PeiraError(
            f"two kernels of {n:,} x {m:,} take {needed:,} bytes, this machine has {there:,}; "
            "use fewer points, or take rows at a time from kernel_blocks(..., chunk=rows)"
        )


def _correlation(cov: Floats, norm: Floats) -> Floats:
    """cov / norm within [-1, 1]; 0 where a point has norm zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        c = cov / norm
    return np.clip(np.nan_to_num(c, copy=False, nan=0.0, posinf=0.0, neginf=0.0), -1, 1, out=c)


def _gaussian_mean(polynomial: np.polynomial.Polynomial, variance: Floats) -> Floats:
    """E[p(u)], u normal of these variances: sum over even powers of (2m - 1)!! p_2m q^m."""
    even = polynomial.coef[::2]
    moments = np.cumprod(np.concatenate([[1.0], np.arange(1, 2 * len(even) - 1, 2)]))
    mean: Floats = np.polynomial.polynomial.polyval(variance, even * moments)
    return mean


def _over_root_factorial(derivatives: Floats) -> Floats:
    factorials = np.cumprod(np.concatenate([[1.0], np.arange(1.0, len(derivatives))]))
    return derivatives / np.sqrt(factorials)[:, None]


@cache
def _hermite(nodes: int) -> tuple[Floats, Floats, Floats]:
    """Nodes, their normal probabilities, and probability * h_k(node), (node, k)."""
    z = np.linspace(-REACH, REACH, nodes)
    weights = np.exp(-(z**2) / 2)
    weights /= weights.sum()
    # The root of the weight tames h_k, which is large at the outer nodes.
    basis = [np.zeros(nodes), np.sqrt(weights)]
    for k in range(TERMS - 1):
        basis.append((z * basis[-1] - math.sqrt(k) * basis[-2]) / math.sqrt(k + 1))
    return z, weights, np.sqrt(weights)[:, None] * np.stack(basis[1:], axis=1)


def _coefficients(values: Floats) -> Floats:
    """Hermite coefficients (k, n) of functions (n, node), and what the even and the odd part have
    beyond them."""
    _, weights, basis = _hermite(values.shape[1])
    found = values @ basis
    mirrored = values[:, ::-1]
    parts = []
    for parity, part in enumerate(((values + mirrored) / 2, (values - mirrored) / 2)):
        beyond = part**2 @ weights - (found[:, parity::2] ** 2).sum(axis=1)
        parts.append(np.sqrt(np.maximum(beyond, 0.0)))
    # TERMS is even: of the two terms more the first is even.
    return np.concatenate([found.T, np.stack(parts)])


def _values(function: Function, z: Floats) -> Floats:
    """The activation at `z`; raises `PeiraError` where it is not elementwise or not finite."""
    values = _evaluate(function, z)
    if values.shape != z.shape:
        raise PeiraError(
            f"the activation turns shape {z.shape} into {values.shape}; expected elementwise"
        )
    if not np.isfinite(values).all():
        worst = float(z[~np.isfinite(values)].flat[0])
        raise PeiraError(f"the activation is not finite at {worst:g}")
    return values


def _evaluate(function: Function, z: Floats) -> Floats:
    try:
        return np.asarray(function(z), dtype=np.float64)
    except (TypeError, AttributeError):
        # Torch functions refuse arrays.
        import torch

        with torch.no_grad():
            result: Floats = function(torch.from_numpy(z)).numpy()
        return result


def _difference(function: Function, z: Floats) -> Floats:
    step = DIFFERENCE * np.maximum(1.0, np.abs(z))
    return (_values(function, z + step) - _values(function, z - step)) / ((z + step) - (z - step))


def _power_series(a: Floats, b: Floats, c: Floats) -> Floats:
    """sum_k a[k, i] b[k, j] c[i, j]^k, without the trailing terms that rounding would swallow."""
    with np.errstate(divide="ignore"):
        size = np.log(np.abs(a).max(axis=1)) + np.log(np.abs(b).max(axis=1))
    return _horner(np.ascontiguousarray(a), b, c, size - size.max())


@njit(cache=True)
def _horner(a: Floats, b: Floats, c: Floats, size: Floats) -> Floats:
    """The sums, for tiles of each row as far as its largest |c| asks for; `size` is log |a b|."""
    rows, columns = c.shape
    tile = 32
    total = np.zeros((rows, columns))
    for start in range(0, columns, tile):
        stop = min(start + tile, columns)
        for i in range(rows):
            largest = 1e-300
            for j in range(start, stop):
                largest = max(largest, abs(c[i, j]))
            # A term below 1e-18 of the largest at c = 1; powers of |c| above 1 never shrink.
            decay = min(np.log(largest), 0.0)
            last = len(a) - 1
            while last > 0 and size[last] + last * decay < -41.0:
                last -= 1
            for k in range(last, -1, -1):
                factor = a[k, i]
                for j in range(start, stop):
                    total[i, j] = total[i, j] * c[i, j] + factor * b[k, j]
    return total
