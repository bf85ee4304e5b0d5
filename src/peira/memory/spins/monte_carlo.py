"""Monte Carlo of spins with P-body couplings, from the patterns: no tensor of couplings is formed.

H(sigma) = - sum_mu w_mu e_P(x^mu_1 sigma_1, ..., x^mu_N sigma_N), where e_P is the elementary
symmetric polynomial: the sum over P *distinct* spins. It follows from the power sums
p_k = sum_i (x_i sigma_i)^k by Newton's identities, and so does the field on a spin, from the power
sums without that spin. The even ones never change and the odd ones are kept up to date, so a spin
costs O(K) instead of O(N^(P-1)).
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int, Int8, Real

ORDERS = (2, 3, 4, 5, 6)
SUMS = max(ORDERS)
# Sums over patterns may be reordered, so that they run in parallel lanes; infinities stay exact.
LANES = {"reassoc", "contract", "nsz"}


class PatternEnergy:
    """Energy of P-body Hebbian couplings with distinct indices, over real patterns.

    Args:
        patterns: entries of any size; zeros are blanks. Kept as bytes where all are -1, 0 or 1,
            which takes less memory, else in single precision.
        P: how many spins interact, 2 to 6.
        weights: factor of each pattern's term, or of all.

    Attributes:
        K, N, P: patterns, spins, spins per term.
        rows: the patterns transposed, one row per spin.
        scale, weights: the largest weight, and each pattern's share of it.

    Raises:
        ValueError: patterns that are not a finite matrix, or P outside 2..min(6, N).
    """

    def __init__(
        self,
        patterns: Real[np.ndarray, "patterns spins"],
        P: int = 2,
        weights: float | Float[np.ndarray, " patterns"] = 1.0,
    ) -> None:
        values = np.asarray(patterns)
        if values.ndim != 2 or not values.size or not np.isfinite(values).all():
            raise ValueError(
                f"patterns must be a finite (K, N) matrix, not of shape {values.shape}"
            )
        self.K, self.N = values.shape
        self.P = P
        if P not in ORDERS or self.N < P:
            raise ValueError(f"P must be 2 to 6 and at most the number of spins {self.N}, not {P}")
        kind = np.int8 if np.isin(values, (-1, 0, 1)).all() else np.float32
        # One row per spin: what an update reads is contiguous.
        self.rows = np.ascontiguousarray(values.T, dtype=kind)
        factors = np.array(np.broadcast_to(weights, (self.K,)), dtype=np.float64)
        # With equal weights the sums are of integers where the patterns are, and a zero is exact.
        self.scale = float(np.abs(factors).max()) or 1.0
        self.weights = factors / self.scale

    def energy(self, states: Int[np.ndarray, "replicas spins"]) -> Float[np.ndarray, " replicas"]:
        """H of each state of +-1 spins."""
        spins = self._spins(states)
        return self.scale * np.array(
            [_energy(self.P, _power_sums(self.rows, row), self.weights) for row in spins]
        )

    def fields(
        self, states: Int[np.ndarray, "replicas spins"]
    ) -> Float[np.ndarray, "replicas spins"]:
        """h_i = -dH/dsigma_i: turning spin i costs 2 sigma_i h_i."""
        spins = self._spins(states)
        return self.scale * np.array(
            [_fields(row, self.rows, self.weights, self.P) for row in spins]
        )

    def _spins(
        self, states: Int[np.ndarray, "replicas spins"]
    ) -> Int8[np.ndarray, "replicas spins"]:
        spins = np.atleast_2d(np.asarray(states))
        if spins.ndim != 2 or spins.shape[1] != self.N:
            raise ValueError(f"states of {self.N} spins expected, not of shape {spins.shape}")
        if not (np.abs(spins) == 1).all():
            raise ValueError("states must hold -1 and +1 only")
        return spins.astype(np.int8)


@dataclass(frozen=True)
class Trace:
    """What a Monte Carlo run went through, and where it ended."""

    states: Int8[np.ndarray, "replicas spins"]
    energies: Float[np.ndarray, "sweeps replicas"]
    overlaps: Float[np.ndarray, "sweeps replicas scores"]
    flips: Int[np.ndarray, "sweeps replicas"]

    def mean_overlaps(self, last: int) -> Float[np.ndarray, "replicas scores"]:
        """Mean overlap with each score pattern over the last `last` sweeps."""
        mean: Float[np.ndarray, "replicas scores"] = self.overlaps[-last:].mean(axis=0)
        return mean


def heat_bath(
    energy: PatternEnergy,
    states: Int[np.ndarray, "replicas spins"],
    beta: float | npt.ArrayLike,
    sweeps: int,
    rng: np.random.Generator,
    scores: Real[np.ndarray, "scores spins"] | None = None,
) -> Trace:
    """Update every spin once per sweep, in random order: +1 with 1/(1 + exp(-2 beta h_i)).

    Args:
        energy: the couplings.
        states: where the replicas start; not changed.
        beta: inverse temperature: one, one per replica, or a schedule (sweeps, replicas).
            `math.inf` is temperature 0, where a spin without field is a fair coin.
        sweeps: how many.
        rng: each replica draws from a stream of its own, seeded from here.
        scores: rows whose overlap with the states, score . sigma / N, is wanted after each sweep.

    Returns:
        Last states; energies, overlaps and number of flips after each sweep.

    Raises:
        ValueError: states that are not +-1 or of another length, negative or missing temperatures.
    """
    spins = energy._spins(states)
    replicas = len(spins)
    schedule = np.array(np.broadcast_to(np.asarray(beta, float), (sweeps, replicas)))
    if not (schedule >= 0).all():
        raise ValueError(f"beta must be 0 or more, not {schedule.min()}")
    wanted = np.zeros((0, energy.N)) if scores is None else np.asarray(scores)
    if wanted.ndim != 2 or wanted.shape[1] != energy.N:
        raise ValueError(f"scores of {energy.N} spins expected, not of shape {wanted.shape}")
    streams = rng.integers(2**64, size=replicas, dtype=np.uint64)
    energies = np.empty((sweeps, replicas))
    overlaps = np.empty((sweeps, replicas, len(wanted)))
    flips = np.empty((sweeps, replicas), np.int64)
    for r in range(replicas):
        _simulate(
            spins[r], energy.rows, energy.weights, energy.P,
            np.ascontiguousarray(schedule[:, r] * energy.scale), streams[r : r + 1],
            np.ascontiguousarray(wanted, np.float64), energies[:, r], overlaps[:, r], flips[:, r],
        )  # fmt: skip
    return Trace(spins, energies * energy.scale, overlaps, flips)


@numba.njit(cache=True, fastmath=LANES)
def _field(row, spin, p, weights, P):  # type: ignore[no-untyped-def]
    h = 0.0
    if P == 2:
        for mu in range(len(row)):
            x = np.float64(row[mu])
            h += weights[mu] * x * (p[0, mu] - x * spin)
    elif P == 3:
        for mu in range(len(row)):
            x = np.float64(row[mu])
            a = p[0, mu] - x * spin
            h += weights[mu] * x * (a * a - (p[1, mu] - x * x)) / 2
    elif P == 4:
        for mu in range(len(row)):
            x = np.float64(row[mu])
            a, b = p[0, mu] - x * spin, p[1, mu] - x * x
            c = p[2, mu] - x * x * x * spin
            h += weights[mu] * x * (a * (a * a - 3 * b) + 2 * c) / 6
    else:
        for mu in range(len(row)):
            x = np.float64(row[mu])
            y = x * x
            a, b = p[0, mu] - x * spin, p[1, mu] - y
            c, d = p[2, mu] - x * y * spin, p[3, mu] - y * y
            if P == 5:
                e = (a * (a * (a * a - 6 * b) + 8 * c) + 3 * b * b - 6 * d) / 24
            else:
                f = p[4, mu] - x * y * y * spin
                u = a * a
                e = a * (u * (u - 10 * b) + 15 * b * b - 30 * d) + 20 * c * (u - b) + 24 * f
                e /= 120
            h += weights[mu] * x * e
    return h


@numba.njit(cache=True)
def _power_sums(rows, spins):  # type: ignore[no-untyped-def]
    p = np.zeros((SUMS, rows.shape[1]))
    for i in range(rows.shape[0]):
        for mu in range(rows.shape[1]):
            x = np.float64(rows[i, mu]) * spins[i]
            power = x
            for k in range(SUMS):
                p[k, mu] += power
                power *= x
    return p


@numba.njit(cache=True)
def _energy(P, p, weights):  # type: ignore[no-untyped-def]
    total = 0.0
    e = np.empty(SUMS + 1)
    e[0] = 1.0
    for mu in range(p.shape[1]):
        for k in range(1, P + 1):
            e[k], sign = 0.0, 1.0
            for j in range(1, k + 1):
                e[k] += sign * e[k - j] * p[j - 1, mu]
                sign = -sign
            e[k] /= k
        total -= weights[mu] * e[P]
    return total


@numba.njit(cache=True)
def _fields(spins, rows, weights, P):  # type: ignore[no-untyped-def]
    p = _power_sums(rows, spins)
    h = np.empty(len(spins))
    for i in range(len(spins)):
        h[i] = _field(rows[i], float(spins[i]), p, weights, P)
    return h


@numba.njit(cache=True, fastmath=LANES)
def _turn(row, spin, p, P):  # type: ignore[no-untyped-def]
    """Change the odd power sums as a spin goes from `spin` to -`spin`."""
    for mu in range(len(row)):
        x = np.float64(row[mu])
        p[0, mu] -= 2 * spin * x
        if P > 2:
            p[2, mu] -= 2 * spin * x * x * x
        if P > 4:
            p[4, mu] -= 2 * spin * x * x * x * x * x


@numba.njit(cache=True)
def _uniform(stream):  # type: ignore[no-untyped-def]
    """The next number in [0, 1) of a splitmix64 stream (Steele, Lea and Flood 2014)."""
    stream[0] += np.uint64(0x9E3779B97F4A7C15)
    z = stream[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(z >> np.uint64(11)) * 2.0**-53


@numba.njit(cache=True)
def _simulate(  # type: ignore[no-untyped-def]
    spins, rows, weights, P, betas, stream, scores, energies, overlaps, flips
):
    n = len(spins)
    p = _power_sums(rows, spins)
    order = np.arange(n)
    for sweep in range(len(betas)):
        beta = betas[sweep]
        turned = 0
        for last in range(n - 1, 0, -1):
            other = int(_uniform(stream) * (last + 1))
            order[last], order[other] = order[other], order[last]
        for i in order:
            spin = float(spins[i])
            h = _field(rows[i], spin, p, weights, P)
            # At temperature 0 infinity times no field is a fair coin.
            argument = 0.0 if h == 0.0 else 2 * beta * h
            up = _uniform(stream) * (1.0 + np.exp(-argument)) < 1.0
            if up != (spin > 0):
                _turn(rows[i], spin, p, P)
                spins[i] = -spins[i]
                turned += 1
        energies[sweep] = _energy(P, p, weights)
        for score in range(len(scores)):
            overlaps[sweep, score] = np.dot(scores[score], spins.astype(np.float64)) / n
        flips[sweep] = turned
