"""Plefka's expansion: magnetisations instead of spins, all updated at once, in pattern space.

Minus beta times the free energy at fixed magnetisations, expanded to first order in beta, gives
m_i = tanh(beta h_i(m)); the second order adds Onsager's reaction -beta^2 m_i sum_j J_ij(m)^2
(1 - m_j^2), J_ij(m) = dh_i/dm_j. The energy is linear in each spin, so fields are those of the
Monte Carlo with m for sigma. Of the squared J_ij only what is diagonal in the patterns is kept:
cross terms of independent patterns average out for P > 2. For P = 2 they do not, and the series in
beta would have to be summed (Mezard, Parisi and Virasoro 1987).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
from jaxtyping import Bool, Float, Int, Real

from peira.memory.spins import PatternEnergy

# Patterns at a time: their power sums stay in the first-level cache.
TILE = 512


@dataclass(frozen=True)
class Magnetisations:
    """Where the iteration came to rest.

    Attributes:
        m: magnetisations in [-1, 1].
        iterations: updates of all spins until then, of each replica.
        converged: whether each replica came to rest.
    """

    m: Float[np.ndarray, "replicas spins"]
    iterations: Int[np.ndarray, " replicas"]
    converged: Bool[np.ndarray, " replicas"]


def plefka(
    energy: PatternEnergy,
    start: Real[np.ndarray, "replicas spins"],
    beta: float,
    order: int = 2,
    damping: float = 0.5,
    tol: float = 1e-4,
    steps: int = 500,
) -> Magnetisations:
    """Iterate the mean-field equations of first or second order from each start.

    Args:
        energy: the couplings.
        start: magnetisations or spins in [-1, 1].
        beta: inverse temperature, finite.
        order: 1 is naive mean field, 2 has the reaction term.
        damping: share of the old magnetisation that is kept.
        tol: at rest when no magnetisation would move by more.
        steps: updates at most.

    Raises:
        ValueError: another order, a beta that is not positive and finite, a start out of range.
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, not {order}")
    if not (0 < beta < np.inf):
        raise ValueError(f"beta must be positive and finite, not {beta:g}")
    m = np.array(np.atleast_2d(start), dtype=np.float64)
    if m.shape[1] != energy.N or not (np.abs(m) <= 1).all():
        raise ValueError(f"start must hold {energy.N} magnetisations in [-1, 1] per replica")
    iterations, converged = np.zeros(len(m), int), np.zeros(len(m), bool)
    for r in range(len(m)):
        while iterations[r] < steps and not converged[r]:
            h, reaction = mean_fields(energy, m[r])
            argument = beta * h
            if order == 2:
                argument -= beta**2 * m[r] * reaction
            move = np.tanh(argument) - m[r]
            m[r] += (1 - damping) * move
            converged[r] = np.abs(move).max() <= tol
            iterations[r] += 1
    return Magnetisations(m, iterations, converged)


def mean_fields(
    energy: PatternEnergy, m: Float[np.ndarray, " spins"]
) -> tuple[Float[np.ndarray, " spins"], Float[np.ndarray, " spins"]]:
    """Fields h_i(m) = -dH/dm_i, and sum_j J_ij(m)^2 (1 - m_j^2) of the terms diagonal in patterns.

    In J_ij the spin j is left in its pattern's power sums: an error of order 1/N of the reaction.
    """
    h, reaction = _kernel(energy.P)(energy.rows, m, energy.weights)
    return h * energy.scale, reaction * energy.scale**2


@cache
def _kernel(P: int) -> Callable[..., tuple[Any, Any]]:
    """The sums of `mean_fields`, compiled for one P so that the loops hold no branches."""

    @numba.njit(cache=True, fastmath={"reassoc", "contract", "nsz", "arcp"})
    def sums(rows, m, weights):  # type: ignore[no-untyped-def]
        spins, patterns = rows.shape
        h, reaction = np.zeros(spins), np.zeros(spins)
        one, two, three, four, five, free = np.empty((6, TILE))
        for first in range(0, patterns, TILE):
            last = min(first + TILE, patterns)
            for sum_ in (one, two, three, four, five, free):
                sum_[:] = 0.0
            for i in range(spins):
                row = rows[i, first:last]
                for mu in range(len(row)):
                    x = np.float64(row[mu])
                    y = x * m[i]
                    free[mu] += x * x - y * y
                    one[mu] += y
                    if P > 2:
                        two[mu] += y * y
                    if P > 3:
                        three[mu] += y * y * y
                    if P > 4:
                        four[mu] += y * y * y * y
                    if P > 5:
                        five[mu] += y * y * y * y * y
            factors = weights[first:last]
            for i in range(spins):
                row = rows[i, first:last]
                total, squares = 0.0, 0.0
                for mu in range(len(row)):
                    x = np.float64(row[mu])
                    y = x * m[i]
                    z = y * y
                    a = one[mu] - y
                    # e_{P-1} without this spin, and e_{P-2}.
                    high, low = a, 1.0
                    if P > 2:
                        b = two[mu] - z
                        high, low = (a * a - b) / 2, a
                    if P > 3:
                        c = three[mu] - y * z
                        high, low = (a * (a * a - 3 * b) + 2 * c) / 6, high
                    if P > 4:
                        d = four[mu] - z * z
                        next_ = (a * (a * (a * a - 6 * b) + 8 * c) + 3 * b * b - 6 * d) / 24
                        high, low = next_, high
                    if P > 5:
                        f = five[mu] - y * z * z
                        u = a * a
                        next_ = a * (u * (u - 10 * b) + 15 * b * b - 30 * d)
                        next_ += 20 * c * (u - b) + 24 * f
                        high, low = next_ / 120, high
                    factor = factors[mu] * x
                    total += factor * high
                    squares += factor * low * factor * low * (free[mu] - x * x + z)
                h[i] += total
                reaction[i] += squares
        return h, reaction

    return sums
