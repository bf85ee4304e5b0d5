"""When in-context learning appears: the model of three nested logits.

The phenomenological model of Reddy 2023, section 5: the loss of a network whose two attention
layers and classifier have one logit each. The closed form here is derived for a context of N pairs
of distinct labels:

    w  = e^beta / (e^beta + N)                          a label's attention to its own item
    z  = e^(alpha w) / (e^(alpha w) + 2N - 1)           the target's attention to its label
    z0 = 1 / (e^(alpha w) + 2N - 1)                     and to any other token
    p  = e^(xi z) / (e^(xi z) + (N - 1) e^(xi z0) + L - N)
    loss = -log p

and all three follow the gradient. `alpha w` acts only once `xi` has grown, `beta` only once
`alpha` has: each logit waits for the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from peira.data.errors import DataError
from peira.engine.errors import PeiraError

__all__ = ["ICLTiming", "TimingFit", "fit_timing", "icl_timing_model", "nested_logit_loss"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ICLTiming:
    """The course of the model.

    Attributes:
        time: of gradient flow.
        logits: (3, times): beta, alpha, xi.
        probability: of the right label.
        waiting_time: when it reaches the level asked for; infinity if not by the end.
    """

    time: Floats
    logits: Floats
    probability: Floats
    waiting_time: float


@dataclass(frozen=True)
class TimingFit:
    """The model held against a network's accuracy.

    Attributes:
        steps_per_unit: training steps in a unit of the model's time.
        start: initial value of the logits.
        error: root mean squared difference of the model's probability and the accuracy.
    """

    steps_per_unit: float
    start: float
    error: float


def nested_logit_loss(
    logits: Floats | tuple[float, float, float], L: int, N: int
) -> tuple[float, Floats]:
    """Loss and its gradient for (beta, alpha, xi)."""
    beta, alpha, xi = (float(value) for value in logits)
    w = 1 / (1 + N * np.exp(-beta))
    rest = (2 * N - 1) * np.exp(-alpha * w)
    z = 1 / (1 + rest)
    z0 = (1 - z) / (2 * N - 1)
    others = (N - 1) * np.exp(xi * (z0 - z))
    absent = (L - N) * np.exp(-xi * z)
    total = 1 + others + absent
    p, q = 1 / total, others / total
    by_attention = -xi * z * ((1 - p) * (1 - z) + q * z0)
    gradient = [by_attention * alpha * w * (1 - w), by_attention * w, q * z0 - (1 - p) * z]
    return float(np.log(total)), np.array(gradient)


def icl_timing_model(
    L: int, N: int, level: float = 0.5, start: float = 0.0, until: float = 1e5
) -> ICLTiming:
    """Gradient flow of the three nested logits.

    Args:
        L: labels, at least N.
        N: pairs in the context, of distinct labels.
        level: probability of the right label that ends the wait.
        start: initial value of all three. From 0 with L = N nothing ever moves: no logit has a
            gradient before another one is there. From a small value the wait is as log(1 / start).
        until: time to stop at; the flow also stops at probability 0.999.

    Raises:
        DataError: L below N, N below 2, or a level outside (1/L, 1).
    """
    from scipy.integrate import solve_ivp

    if N < 2:
        raise DataError("N is too small", value=N, expected="2 or more")
    if L < N:
        raise DataError(f"N = {N} distinct labels need as many labels", value=L, expected="L >= N")
    if not 1 / L < level < 1:
        raise DataError("no such level", value=level, expected=f"above 1/L = {1 / L:.3g}, below 1")

    def reached(_: float, y: Floats) -> float:
        return float(-np.log(level) - nested_logit_loss(y, L, N)[0])

    def done(_: float, y: Floats) -> float:
        return float(1e-3 - nested_logit_loss(y, L, N)[0])

    done.terminal = True  # type: ignore[attr-defined]
    solved = solve_ivp(
        lambda _, y: -nested_logit_loss(y, L, N)[1],
        (0.0, until),
        np.full(3, start),
        method="LSODA",
        events=[reached, done],
        rtol=1e-8,
        atol=1e-10,
    )
    if not solved.success:
        raise PeiraError(f"the flow could not be integrated: {solved.message}")
    probability = np.exp([-nested_logit_loss(y, L, N)[0] for y in solved.y.T])
    crossings = solved.t_events[0]
    waited = float(crossings[0]) if len(crossings) else float("inf")
    return ICLTiming(solved.t, solved.y, probability, waited)


def fit_timing(steps: Floats, accuracy: Floats, L: int, N: int) -> TimingFit:
    """Fit the model to a network's in-context accuracy: its time scale and its start.

    Args:
        steps: training steps, increasing.
        accuracy: in-context accuracy at those steps.
        L, N: of the network's task, whose contexts have N distinct labels (B = 1).

    Raises:
        DataError: fewer than four points, or steps that do not increase.
    """
    from scipy.optimize import minimize_scalar

    steps, accuracy = np.asarray(steps, float), np.asarray(accuracy, float)
    if len(steps) < 4 or steps.shape != accuracy.shape or not (np.diff(steps) > 0).all():
        raise DataError("steps must increase", value=len(steps), expected="four or more of them")

    def best(start: float) -> TimingFit:
        course = icl_timing_model(L, N, start=start, until=1e4)

        def error(log_scale: float) -> float:
            model = np.interp(steps / np.exp(log_scale), course.time, course.probability)
            return float(np.sqrt(np.mean((model - accuracy) ** 2)))

        grid = np.log(steps[-1]) + np.linspace(-12, 0, 97)
        near = grid[np.argmin([error(value) for value in grid])]
        found = minimize_scalar(error, bounds=(near - 0.125, near + 0.125), method="bounded")
        return TimingFit(float(np.exp(found.x)), start, float(found.fun))

    return min((best(start) for start in np.geomspace(1e-3, 1.0, 10)), key=lambda fit: fit.error)
