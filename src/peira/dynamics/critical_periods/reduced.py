"""Two pathways, mode by mode: the paper's differential equations, for whole sweeps at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numba import njit

from peira.data import DataError
from peira.dynamics.critical_periods.deficits import (
    Condition,
    check_kinds,
    check_mode,
    schedules,
    when,
)

Init = Literal["small", "large"]
Method = Literal["euler", "rk4"]


@dataclass(frozen=True)
class Dynamics:
    """Mode strengths over time of every condition and depth.

    Attributes:
        times: number of steps after which the strengths hold.
        k: strengths of pathways a and b, in units of the singular values; shape (conditions,
            depths, modes, 2, times).
    """

    times: Int[np.ndarray, " times"]
    k: Float[np.ndarray, "conditions depths modes 2 times"]

    @property
    def share(self) -> Float[np.ndarray, "conditions depths modes"]:
        """K_b / (K_a + K_b) at the end."""
        a, b = self.k[..., 0, -1], self.k[..., 1, -1]
        return b / (a + b)

    @property
    def ratio(self) -> Float[np.ndarray, "conditions depths modes"]:
        """K_b / K_a at the end."""
        return self.k[..., 1, -1] / self.k[..., 0, -1]


def pathway_dynamics(
    singular_values: Float[np.ndarray, " modes"] | Sequence[float],
    depths: Sequence[int] = (2, 3, 4),
    k0: float | Float[np.ndarray, " modes"] | Float[np.ndarray, "modes 2"] = 0.01,
    deficits: Sequence[Condition] = (None,),
    dt: float = 0.01,
    steps: int = 1000,
    init: Init = "small",
    method: Method = "euler",
    every: int = 1,
    rng: np.random.Generator | None = None,
) -> Dynamics:
    """Integrate the reduced equations of two linear pathways.

    In each mode of singular value S the strengths K_a and K_b (entries of U^T Ω V) obey
    p' = f(p) (S - K_a - K_b) with f(p) = p^(D-1) and K = p^D from small balanced weights, and
    f(p) = (p^2+1)^((D-1)/2) and K = p f(p) from large ones (conserved q^2 - p^2 = 1 between
    layers). A gated pathway stands still; a mode taken out of pathway a counts for nothing and
    stands still there.

    Args:
        singular_values: S of each mode.
        depths: number of weight matrices of each pathway.
        k0: initial strength: one number, one for each mode, or one for each mode and pathway.
        deficits: for each condition None, a deficit or several; `gate_path` and `gate_mode`.
        dt: time of one step; the network's learning rate.
        steps: number of steps.
        init: `small` or `large` initial weights.
        method: `euler`, which from small balanced weights is the network's gradient descent to
            the last digit, or `rk4` for the solution of the equation.
        every: steps between recorded strengths; the first and the last are always there.
        rng: draws deficits that have a probability.

    Raises:
        DataError: a k0 that is not positive where init is small, a depth below 1, a dt that is
            not positive, a deficit beyond the steps, of another kind or of a mode that is absent.

    Source: the paper's two-pathway model; small initial weights Fig. 2, large ones Fig. 1.
    """
    s = np.asarray(singular_values, dtype=float).ravel()
    order = np.asarray(depths, dtype=np.int64).ravel()
    if order.size == 0 or (order < 1).any():
        raise DataError("depths", value=list(depths), expected="1 or more each")
    for name, value in (("dt", dt), ("steps", steps), ("every", every)):
        if not value > 0:
            raise DataError(name, value=value, expected="above 0")
    check_kinds(deficits, ("gate_path", "gate_mode"), "the reduced equation")
    frozen = when(deficits, "gate_path", steps, rng)
    removed = modes_removed(deficits, len(s), steps, rng)
    start = _start(k0, len(s), order, init)
    times = np.unique(np.append(np.arange(0, steps + 1, every), steps))
    k = np.empty((len(deficits), len(order), len(s), 2, len(times)))
    _sweep(s, order, start, frozen, removed, dt, times, init == "large", method == "rk4", k)
    return Dynamics(times, k)


def modes_removed(
    conditions: Sequence[Condition],
    modes: int,
    steps: int,
    rng: np.random.Generator | None = None,
) -> Bool[np.ndarray, "conditions modes steps"]:
    """For each training and mode, the steps in which pathway a lacks the mode."""
    removed = np.zeros((len(conditions), modes, steps), bool)
    for rows, condition in zip(removed, conditions, strict=True):
        for deficit in schedules(condition):
            if deficit.kind == "gate_mode":
                rows[check_mode(deficit, modes)] |= deficit.steps(steps, rng)
    return removed


def strength(
    p: Float[np.ndarray, "*n"], depth: int, init: Init = "small"
) -> Float[np.ndarray, "*n"]:
    """K of a pathway from p, the strength of one layer."""
    base = np.abs(p) if init == "small" else np.sqrt(p**2 + 1)
    return p * base ** (depth - 1)


def layer_strength(
    k: Float[np.ndarray, "*n"], depth: int, init: Init = "small"
) -> Float[np.ndarray, "*n"]:
    """p of one layer from the strength K of its pathway."""
    k = np.asarray(k, dtype=float)
    if init == "small":
        return np.sign(k) * np.abs(k) ** (1 / depth)
    # K grows with p everywhere and is convex for p > 0: Newton from above converges.
    size = np.abs(k)
    p = np.minimum(size, size ** (1 / depth))
    for _ in range(60):
        root = p**2 + 1
        slope = root ** ((depth - 3) / 2) * (1 + depth * p**2)
        p = p - (p * root ** ((depth - 1) / 2) - size) / slope
    return np.sign(k) * p


def conserved(
    k_a: Float[np.ndarray, "*n"], k_b: Float[np.ndarray, "*n"], depth: int, init: Init = "small"
) -> Float[np.ndarray, "*n"]:
    """What the race of two pathways of one depth conserves while neither has a deficit.

    F(p) - F(q) with F the integral of 1/f. Small weights: F(p) = log p at depth 2, else
    p^(2-D)/(2-D); large ones: F(p) = p 2F1(1/2, (D-1)/2; 3/2; -p^2).

    Args:
        k_a, k_b: strengths of the pathways (positive where init is small).
        depth: weight matrices of each pathway.
    """
    p, q = (layer_strength(k, depth, init) for k in (k_a, k_b))
    return _clock(p, depth, init) - _clock(q, depth, init)


def lasting_strengths(
    k_a: Float[np.ndarray, "*n"],
    k_b: Float[np.ndarray, "*n"],
    singular_value: Float[np.ndarray, "*n"] | float,
    depth: int,
) -> Float[np.ndarray, "*n 2"]:
    """Where two pathways from small weights end when no deficit comes any more.

    The end is on the line K_a + K_b = S, at the value of `conserved` that the state has now: no
    integration is needed, and the damage of a deficit is known on the day it ends.

    Raises `DataError` for strengths or singular values that are not positive.
    """
    numbers = (np.asarray(x, dtype=float) for x in (k_a, k_b, singular_value))
    k_a, k_b, s = np.broadcast_arrays(*numbers)
    lowest = float(min(k_a.min(), k_b.min(), s.min()))
    if not lowest > 0:
        raise DataError("strengths and singular values", value=lowest, expected="above 0")
    p, q = (layer_strength(k, depth) for k in (k_a, k_b))
    # Both pathways move along one clock, on which p and q are known; bisect for where they add up.
    larger = _clock(np.maximum(p, q), depth, "small")
    low, high = (
        _clock(layer_strength(part * s, depth), depth, "small") - larger for part in (0.5, 1)
    )
    for _ in range(100):
        middle = (low + high) / 2
        short = sum(strength(_after(x, middle, depth), depth) for x in (p, q)) < s
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return np.stack([strength(_after(x, low, depth), depth) for x in (p, q)], axis=-1)


def _clock(p: Float[np.ndarray, "*n"], depth: int, init: Init) -> Float[np.ndarray, "*n"]:
    if init == "large":
        from scipy.special import hyp2f1

        return p * hyp2f1(0.5, (depth - 1) / 2, 1.5, -(p**2))
    return np.log(p) if depth == 2 else p ** (2.0 - depth) / (2 - depth)


def _after(
    p: Float[np.ndarray, "*n"], clock: Float[np.ndarray, "*n"], depth: int
) -> Float[np.ndarray, "*n"]:
    """p when `clock` more has passed, from small weights."""
    if depth == 2:
        return p * np.exp(clock)
    return (p ** (2.0 - depth) + (2 - depth) * clock) ** (1 / (2 - depth))


def _start(
    k0: object, modes: int, depths: Int[np.ndarray, " depths"], init: Init
) -> Float[np.ndarray, "depths modes 2"]:
    """Initial p of shape (depths, modes, 2)."""
    k = np.asarray(k0, dtype=float)
    k = k[:, None] if k.ndim == 1 else k
    try:
        k = np.broadcast_to(k, (modes, 2))
    except ValueError as error:
        raise DataError(
            "shape of k0", value=np.shape(k0), expected=f"one number, ({modes},) or ({modes}, 2)"
        ) from error
    if init == "small" and not (k > 0).all():
        raise DataError("k0 of small initial weights", value=float(k.min()), expected="above 0")
    return np.stack([layer_strength(k, int(depth), init) for depth in depths])


@njit(cache=True)
def _speed(p, depth, large):
    base = p * p + 1.0 if large else p * p
    power = 1.0
    for _ in range((depth - 1) // 2):
        power *= base
    return power * np.sqrt(base) if (depth - 1) % 2 else power


@njit(cache=True)
def _rates(p, q, s, depth, large, frozen, removed):
    f, g = _speed(p, depth, large), _speed(q, depth, large)
    left = s - g * q - (0.0 if removed else f * p)
    return (0.0 if removed else f * left), (0.0 if frozen else g * left)


@njit(cache=True)
def _rk4(p, q, s, depth, large, frozen, removed, dt):
    a, b = _rates(p, q, s, depth, large, frozen, removed)
    c, d = _rates(p + dt / 2 * a, q + dt / 2 * b, s, depth, large, frozen, removed)
    e, f = _rates(p + dt / 2 * c, q + dt / 2 * d, s, depth, large, frozen, removed)
    g, h = _rates(p + dt * e, q + dt * f, s, depth, large, frozen, removed)
    return p + dt / 6 * (a + 2 * c + 2 * e + g), q + dt / 6 * (b + 2 * d + 2 * f + h)


@njit(cache=True)
def _sweep(s, depths, start, frozen, removed, dt, times, large, rk4, k):
    conditions, _, modes, _, records = k.shape
    for condition in range(conditions):
        for level in range(len(depths)):
            depth = depths[level]
            for mode in range(modes):
                p, q = start[level, mode]
                out = k[condition, level, mode]
                step = 0
                for record in range(records):
                    while step < times[record]:
                        gated = frozen[condition, step]
                        lost = removed[condition, mode, step]
                        if rk4:
                            p, q = _rk4(p, q, s[mode], depth, large, gated, lost, dt)
                        else:
                            a, b = _rates(p, q, s[mode], depth, large, gated, lost)
                            p, q = p + dt * a, q + dt * b
                        step += 1
                    out[0, record] = _speed(p, depth, large) * p
                    out[1, record] = _speed(q, depth, large) * q
