"""What a step of descent sees: a minibatch, or all data with Gaussian weights (the SDE twin).

Draws come from a counter: they depend on the key of a run and on the step alone, so runs can be
stopped, resumed and computed in any order or together.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64, Int64
from numba import njit

GAMMA = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
S11, S27, S30, S31, S32 = (np.uint64(bits) for bits in (11, 27, 30, 31, 32))


def key_of(seed: int) -> np.uint64:
    """The key of a seed's draws."""
    return np.uint64(np.random.SeedSequence([seed, 0x5D]).generate_state(1, np.uint64)[0])


@njit(cache=True)
def mixed(counter: np.uint64) -> np.uint64:
    """64 random bits of a counter (SplitMix64, Steele et al. 2014)."""
    z = (counter + np.uint64(1)) * GAMMA
    z = (z ^ (z >> S30)) * FIRST
    z = (z ^ (z >> S27)) * SECOND
    return z ^ (z >> S31)


@njit(cache=True)
def draw_subset(key: np.uint64, step: int, size: int, chosen: Int64[np.ndarray, "batch"]) -> None:
    """Write a uniform subset of range(size) into `chosen` (Floyd's algorithm)."""
    batch = len(chosen)
    if batch == size:
        for i in range(size):
            chosen[i] = i
        return
    state = mixed(key ^ mixed(np.uint64(step)))
    for i in range(batch):
        last = size - batch + i
        bits = mixed(state + np.uint64(i)) >> S32
        candidate = np.int64((bits * np.uint64(last + 1)) >> S32)
        for j in range(i):
            if chosen[j] == candidate:
                candidate = last
                break
        chosen[i] = candidate


@njit(cache=True)
def draw_gaussian(
    key: np.uint64, step: int, batch: int, weight: Float64[np.ndarray, "size"]
) -> None:
    """Write weights of all data whose weighted gradient has minibatches' mean and covariance.

    With xi_i ~ N(0, 1): 1/P + sqrt((1/B - 1/P)/P) (xi_i - mean xi), so that the step is that of
    dw = -grad L dt + sqrt(T Sigma) dW, T = dt/B, Sigma the covariance of one datum's gradient.
    """
    size = len(weight)
    state = mixed(key ^ mixed(np.uint64(step)))
    total = 0.0
    for i in range(size):
        # Box and Muller: a radius and an angle of 53 random bits each.
        radius = (mixed(state + np.uint64(2 * i)) >> S11) + 1.0
        angle = (mixed(state + np.uint64(2 * i + 1)) >> S11) / 2.0**53
        weight[i] = math.sqrt(-2 * math.log(radius / 2.0**53)) * math.cos(2 * math.pi * angle)
        total += weight[i]
    scale = math.sqrt(max(0.0, 1 / batch - 1 / size) / size)
    for i in range(size):
        weight[i] = 1 / size + scale * (weight[i] - total / size)


@njit(cache=True)
def draw(key, step, size, batch, gaussian, chosen, weight):  # type: ignore[no-untyped-def]
    """Write the data that a step sees and the weight of each one's gradient."""
    if gaussian:
        for i in range(size):
            chosen[i] = i
        draw_gaussian(key, step, batch, weight)
    else:
        draw_subset(key, step, size, chosen)
        weight[:] = 1 / batch


@njit(cache=True)
def draw_many(keys, step, size, batch, gaussian):  # type: ignore[no-untyped-def]
    """`draw` for several runs: data (runs, seen) and their weights (runs, seen)."""
    seen = size if gaussian else batch
    chosen = np.empty((len(keys), seen), np.int64)
    weight = np.empty((len(keys), seen))
    for run in range(len(keys)):
        draw(keys[run], step, size, batch, gaussian, chosen[run], weight[run])
    return chosen, weight
