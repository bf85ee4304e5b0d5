"""The two-layer linear network in which the paper proves its theorem, followed exactly.

y = w^T W z with z = F x, x whitened, target beta^T x, squared loss, gradient flow from w ~ 0. Its
tangent kernel is x^T K x' with K = F^T (W^T W + |w|^2 I) F.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numba import njit
from numpy import ndarray as Array

from peira.data.errors import DataError

# The flow ends where the error is this share of the target.
CONVERGED = 1e-6
STEPS = 2_000_000

# Dormand and Prince's pair of orders 5 and 4.
_A = np.array(
    [
        [0, 0, 0, 0, 0, 0],
        [1 / 5, 0, 0, 0, 0, 0],
        [3 / 40, 9 / 40, 0, 0, 0, 0],
        [44 / 45, -56 / 15, 32 / 9, 0, 0, 0],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    ]
)
_E = np.array(
    [71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40], dtype=np.float64
)


def linear_flow(
    first: Float[Array, "n h d"],
    target: Float[Array, "n d"],
    *,
    second: Float[Array, "n h"] | None = None,
    factor: Float[Array, " d"] | None = None,
    tolerance: float = 1e-7,
) -> tuple[Float[Array, "n h d"], Float[Array, "n h"]]:
    """Train n networks by gradient flow until they fit.

    Args:
        first: initial weights W of the first layer.
        target: beta, one for each network.
        second: initial weights w of the second layer; None starts at zero.
        factor: singular values of F; the axes of `first` and `target` are its singular vectors.
            None is the identity, isotropic data.
        tolerance: relative error of one step of the integrator (Dormand-Prince 5(4)).

    Returns:
        W and w at the end, where |beta - F^T W^T w| <= 1e-6 |beta|.

    Raises:
        DataError: shapes that do not fit, or a flow that does not arrive: from w = 0 with W F beta
            = 0 nothing ever moves, a saddle.
    """
    first, target = np.array(first, dtype=np.float64), np.array(target, dtype=np.float64)
    n, h, d = first.shape
    if target.shape != (n, d):
        raise DataError("targets", value=target.shape, expected=f"shape {(n, d)}")
    second = np.zeros((n, h)) if second is None else np.array(second, dtype=np.float64)
    f = np.ones(d) if factor is None else np.asarray(factor, dtype=np.float64)
    if second.shape != (n, h) or f.shape != (d,):
        raise DataError(
            "second layer or factor", value=(second.shape, f.shape), expected=f"{(n, h)}, {(d,)}"
        )
    arrived = _flows(first, second, target, f, tolerance, _A, _E)
    if not arrived.all():
        raise DataError(
            f"{int((~arrived).sum())} of {n} flows do not arrive: at w = 0 with W orthogonal to "
            "the target nothing moves",
            expected="a small random `second`",
        )
    return first, second


def linear_kernel(
    first: Float[Array, "n h d"],
    second: Float[Array, "n h"],
    factor: Float[Array, " d"] | None = None,
) -> Float[Array, "n d d"]:
    """Tangent kernels K = F^T (W^T W + |w|^2 I) F on whitened inputs, one for each network."""
    d = first.shape[2]
    f = np.ones(d) if factor is None else np.asarray(factor)
    power = np.square(second).sum(1)[:, None, None]
    inner = first.transpose(0, 2, 1) @ first + power * np.eye(d)
    return f[:, None] * inner * f


def alignments(a: Float[Array, "n d d"], b: Float[Array, "n d d"]) -> Float[Array, " n"]:
    """<A, B> / (|A| |B|) of each pair of kernels."""
    inner = (a * b).sum((1, 2))
    return inner / np.sqrt((a * a).sum((1, 2)) * (b * b).sum((1, 2)))


def aligned_form(s: float, b: float, d: int) -> float:
    """Kernel alignment of rank 1 along the target, |W| = s, |beta| = b, d isotropic inputs."""
    a2 = (s**2 + np.sqrt(s**4 + 4 * b**2)) / 2
    b2 = a2 - s**2
    return float((a2 + b2) / np.sqrt((a2 + b2) ** 2 + (d - 1) * b2**2))


def isotropic_form(s: float, b: float, d: int) -> float:
    """Kernel alignment of d equal singular values, |W| = s, |beta| = b, d isotropic inputs."""
    share = s**2 / d
    a2 = (share + np.sqrt(share**2 + 4 * b**2)) / 2
    b2 = a2 - share
    return float((d * a2 + b2) / (np.sqrt(d) * np.sqrt((d - 1) * a2**2 + (a2 + b2) ** 2)))


def orthogonal_form(s: float, b: float, d: int) -> float:
    """Kernel alignment of rank 1 orthogonal to the target, with w infinitesimal at the start."""
    return float((s**2 + b) / np.sqrt((s**2 + b) ** 2 + 4 * b**2 + (d - 2) * b**2))


@njit(cache=True)
def _rate(state, h, beta, f, out):  # type: ignore[no-untyped-def]
    """d(w, W)/dt = (W g, w g^T) with g = F (beta - F^T W^T w); returns |beta - F^T W^T w|^2."""
    d = len(beta)
    out[:h] = 0.0
    squares = 0.0
    for j in range(d):
        sent = 0.0
        for i in range(h):
            sent += state[i] * state[h + j * h + i]
        error = beta[j] - f[j] * sent
        squares += error * error
        g = f[j] * error
        for i in range(h):
            out[h + j * h + i] = g * state[i]
            out[i] += g * state[h + j * h + i]
    return squares


@njit(cache=True)
def _flow(state, h, beta, f, tolerance, a, e):  # type: ignore[no-untyped-def]
    size = len(state)
    k = np.empty((7, size))
    middle = np.empty(size)
    enough = CONVERGED**2 * (beta**2).sum()
    squares = _rate(state, h, beta, f, k[0])
    step = 1e-3
    for _ in range(STEPS):
        if squares <= enough:
            return True
        for stage in range(1, 7):
            middle[:] = state
            for before in range(stage):
                middle += step * a[stage, before] * k[before]
            ahead = _rate(middle, h, beta, f, k[stage])
        worst = 0.0
        for i in range(size):
            error = 0.0
            for stage in range(7):
                error += e[stage] * k[stage, i]
            scale = 1e-3 + max(abs(state[i]), abs(middle[i]))
            worst = max(worst, abs(step * error) / scale)
        if worst <= tolerance:
            # The last stage is the first of the next step.
            state[:] = middle
            k[0] = k[6]
            squares = ahead
        if worst == 0.0:
            step *= 5.0
            if step > 1e12:
                return False
        else:
            step *= min(5.0, max(0.2, 0.9 * (tolerance / worst) ** 0.2))
    return False


@njit(cache=True)
def _flows(first, second, target, f, tolerance, a, e):  # type: ignore[no-untyped-def]
    """Every flow to its end, in place; which of them arrived."""
    n, h, d = first.shape
    arrived = np.zeros(n, np.bool_)
    state = np.empty(h + h * d)
    for network in range(n):
        state[:h] = second[network]
        for j in range(d):
            for i in range(h):
                state[h + j * h + i] = first[network, i, j]
        arrived[network] = _flow(state, h, target[network], f, tolerance, a, e)
        second[network] = state[:h]
        for j in range(d):
            for i in range(h):
                first[network, i, j] = state[h + j * h + i]
    return arrived
