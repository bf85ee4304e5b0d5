"""What statistical mechanics and signal-to-noise predict, for N -> infinity and finite K.

Order parameters: m_mu = (1/N) sum_i xi_i^mu sigma_i with the archetypes, at most 1 - d, and n_mu,
the same with the means of the examples, divided by r (1 + rho). Temperatures are in units of the
energy H = -(N / (2 (1-d) (1+rho))) sum_mu (n_mu (1+rho))^2, whose paramagnet ends at T = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import brentq
from scipy.special import erf

from peira.memory.multitasking_hebbian.patterns import (
    check_dilution,
    check_quality,
    dataset_entropy,
    ternary_patterns,
)
from peira.memory.spins import fixed_point

RegimeName = Literal["pure", "hierarchical", "parallel", "paramagnetic"]

# All 3^K columns of ternary entries up to this K, a sample beyond.
MOST_ENUMERATED = 8
SAMPLED = 200_000
# Iterations between attempts at Newton's method, its steps, and how far it may lead.
PER_ROUND, ROUNDS, NEWTON, NEARBY = 250, 20, 8, 0.02
# Change by which a solution is at rest.
AT_REST = 1e-10
# Numbers held at once while fields are averaged over the examples' noise.
BLOCK = 2_000_000
# Overlaps below the first count as none, ratios above the second as equal.
NONE, EQUAL = 1e-3, 0.99


def ladder_overlaps(patterns: int, dilution: float) -> Float[np.ndarray, " patterns"]:
    """Overlaps of the hierarchical state at T = 0: m_k = (1-d) d^(k-1)."""
    check_dilution(dilution)
    return (1 - dilution) * dilution ** np.arange(patterns)


def parallel_overlap(patterns: int, dilution: float) -> float:
    """Overlap of the symmetric state with each pattern at T = 0: E|S| / K, S = sum of K entries."""
    columns, weights = ternary_columns(patterns, dilution)
    return float(weights @ np.abs(columns.sum(axis=1)) / patterns)


def critical_dilution(patterns: int) -> float:
    """d_c(K), beyond which the hierarchical state is no longer stable at T = 0.

    The first pattern's field (1-d) must exceed those of all others together, that is
    1 - 2d + d^K > 0. With two patterns or fewer it always does: 1.0.
    """
    if patterns < 3:
        return 1.0
    # The margin is positive at 1/2, and at its minimum it is negative; d = 1 is its other root.
    lowest = (2 / patterns) ** (1 / (patterns - 1))
    return float(brentq(lambda d: 1 - 2 * d + d**patterns, 0.5, lowest))


def one_step_overlaps(
    patterns: int, dilution: float, entropy: float = 0.0
) -> Float[np.ndarray, " patterns"]:
    """Signal-to-noise: overlaps after all spins of the hierarchical state follow their fields once.

    At T = 0. With one pattern this is (1-d) erf(1 / sqrt(2 rho)).
    """
    columns, weights = ternary_columns(patterns, dilution)
    ladder = ladder_overlaps(patterns, dilution)
    signal = columns @ ladder
    if entropy > 0:
        noise = np.sqrt(2 * entropy * (columns**2 @ ladder**2))
        spin = erf(np.divide(signal, noise, out=np.zeros_like(signal), where=noise > 0))
    else:
        spin = np.sign(signal.round(12))
    return (weights * spin) @ columns


def examples_needed(
    quality: float, dilution: float, patterns: int = 3, target: float = 0.95
) -> int:
    """Fewest examples M with which the first pattern stays at least `target` right for one step.

    Right means its overlap over 1 - d, from the hierarchical state at T = 0. M goes as r^-2.

    Raises:
        ValueError: no number of examples is enough at this dilution.
    """
    check_quality(quality)

    def excess(entropy: float) -> float:
        return one_step_overlaps(patterns, dilution, entropy)[0] / (1 - dilution) - target

    if excess(0.0) < 0:
        most = one_step_overlaps(patterns, dilution)[0] / (1 - dilution)
        raise ValueError(
            f"at dilution {dilution:g} the first of {patterns} patterns stays {most:.3f} right "
            f"whatever the examples; expected a target of at most that, got {target:g}"
        )
    if quality == 1 or excess(1e-9) < 0:
        return 1
    tolerated = brentq(excess, 1e-9, 1e6)
    return max(1, math.ceil(dataset_entropy(quality, 1) / tolerated))


@dataclass(frozen=True)
class Theory:
    """Self-consistency equations of K patterns at one dilution, temperature and entropy.

    Args:
        patterns: K.
        dilution: d, share of blanks.
        temperature: T > 0.
        entropy: rho of the examples; 0 is storing the archetypes themselves.

    Raises:
        ValueError: an argument out of its range.
    """

    patterns: int
    dilution: float
    temperature: float
    entropy: float = 0.0
    columns: Float[np.ndarray, "columns patterns"] = field(init=False, repr=False, compare=False)
    weights: Float[np.ndarray, " columns"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.patterns < 1:
            raise ValueError(f"patterns is {self.patterns}; expected at least 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature:g}; expected more than 0")
        if not self.entropy >= 0:
            raise ValueError(f"dataset entropy is {self.entropy:g}; expected 0 or more")
        columns, weights = ternary_columns(self.patterns, self.dilution)
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "weights", weights)

    def solve(
        self, starts: Float[np.ndarray, "starts patterns"]
    ) -> Float[np.ndarray, "starts patterns"]:
        """Solutions n reached from the starts by iterating the equations.

        Near critical points iteration is slow: Newton's method ends it where that leads to the
        same solution. What still moves after 5,000 iterations is returned as it is.
        """
        n = np.array(np.atleast_2d(starts), dtype=float)
        moving = np.ones(len(n), bool)
        for _ in range(ROUNDS):
            found = fixed_point(self._update, n[moving], damping=0, tol=AT_REST, steps=PER_ROUND)
            n[moving] = [
                point if rests else self._shortcut(point)
                for point, rests in zip(found.points, found.converged, strict=True)
            ]
            moving[moving] = ~found.converged
            if not moving.any():
                break
        return n

    def overlaps(
        self, n: Float[np.ndarray, "points patterns"]
    ) -> Float[np.ndarray, "points patterns"]:
        """m_mu = E[xi^mu tanh g] with the archetypes, at solutions n."""
        return np.stack([(self.weights * self._averages(point)[0]) @ self.columns for point in n])

    def free_energy(self, n: Float[np.ndarray, "points patterns"]) -> Float[np.ndarray, " points"]:
        """Free energy per spin: (1+rho) sum n^2 / (2(1-d)) - T E log 2cosh g."""
        cost = (1 + self.entropy) * (n**2).sum(axis=1) / (2 * (1 - self.dilution))
        return cost - self.temperature * np.array([self._log_sum(point) for point in n])

    def instability(self, n: Float[np.ndarray, "points patterns"]) -> Float[np.ndarray, " points"]:
        """Largest eigenvalue of the linearised equations; a state is stable below 1."""
        return np.array([np.linalg.eigvalsh(self._jacobian(point))[-1] for point in n])

    def _update(
        self, n: Float[np.ndarray, "points patterns"]
    ) -> Float[np.ndarray, "points patterns"]:
        # m_mu = E[xi tanh g], n_mu = (m_mu + rho n_mu E[xi^2 (1-tanh^2 g)] / (T (1-d))) / (1+rho)
        if not self.entropy:
            spins = np.tanh(n @ self.columns.T / (self.temperature * (1 - self.dilution)))
            return (spins * self.weights) @ self.columns
        found = np.empty_like(n)
        reaction = self.entropy / (self.temperature * (1 - self.dilution))
        for row, point in enumerate(n):
            mean, slope = self._averages(point)
            m = (self.weights * mean) @ self.columns
            present = (self.weights * slope) @ self.columns**2
            found[row] = (m + reaction * point * present) / (1 + self.entropy)
        return found

    def _shortcut(self, n: Float[np.ndarray, " patterns"]) -> Float[np.ndarray, " patterns"]:
        """Where Newton's method goes from `n`, if iteration would end there too; else `n`."""
        point = n
        for _ in range(NEWTON):
            residual = self._update(point[None])[0] - point
            if np.abs(residual).max() <= AT_REST:
                near = np.abs(point - n).max() < NEARBY
                return point if near and self._attracts(point, n) else n
            # The linearised equations are the derivative of the update.
            point = point + np.linalg.solve(np.eye(len(n)) - self._jacobian(point), residual)
        return n

    def _attracts(
        self, point: Float[np.ndarray, " patterns"], n: Float[np.ndarray, " patterns"]
    ) -> bool:
        """Whether iteration from `n`, which keeps zero and equal overlaps, is drawn to `point`."""
        levels = np.unique(np.abs(n).round(9))
        basis = np.array([np.sign(n) * np.isclose(np.abs(n), v, atol=1e-8) for v in levels if v])
        if not len(basis):
            return True
        basis /= np.linalg.norm(basis, axis=1, keepdims=True)
        return bool(np.linalg.eigvalsh(basis @ self._jacobian(point) @ basis.T)[-1] < 1)

    def _fields(
        self, n: Float[np.ndarray, " patterns"]
    ) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, " columns"]]:
        """Mean and standard deviation of g over the examples' noise, for each column."""
        scale = 1 / (self.temperature * (1 - self.dilution))
        spread = np.sqrt(self.entropy * (self.columns**2 @ n**2))
        return scale * (self.columns @ n), scale * spread

    def _averages(
        self, n: Float[np.ndarray, " patterns"]
    ) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, " columns"]]:
        """E_z tanh g and E_z (1 - tanh^2 g), for each column."""
        mean, spread = self._fields(n)
        if not self.entropy:
            t = np.tanh(mean)
            return t, 1 - t**2
        z, weights = self._noise()
        t, slope = np.empty_like(mean), np.empty_like(mean)
        for part in self._blocks(len(z)):
            inside = np.tanh(mean[part, None] + spread[part, None] * z)
            t[part] = inside @ weights
            slope[part] = (1 - inside**2) @ weights
        return t, slope

    def _log_sum(self, n: Float[np.ndarray, " patterns"]) -> float:
        mean, spread = self._fields(n)
        if not self.entropy:
            return float(self.weights @ np.logaddexp(mean, -mean))
        z, weights = self._noise()
        total = 0.0
        for part in self._blocks(len(z)):
            g = mean[part, None] + spread[part, None] * z
            total += float(self.weights[part] @ (np.logaddexp(g, -g) @ weights))
        return total

    def _jacobian(
        self, n: Float[np.ndarray, " patterns"]
    ) -> Float[np.ndarray, "patterns patterns"]:
        """(1 / (T (1-d) (1+rho))) E[x_mu x_nu (1 - tanh^2 g)], x_mu = xi_mu (1 + sqrt(rho) z_mu).

        The z_mu are independent; what g sees of them is z = sum_mu u_mu z_mu with the unit vector
        u ~ n xi, so E[z_mu | z] = u_mu z and E[z_mu z_nu | z] = delta + u_mu u_nu (z^2 - 1).
        """
        rho = self.entropy
        mean, spread = self._fields(n)
        z, weights = self._noise() if rho else (np.zeros(1), np.ones(1))
        moments = np.empty((3, len(mean)))
        for part in self._blocks(len(z)):
            slope = 1 - np.tanh(mean[part, None] + spread[part, None] * z) ** 2
            moments[:, part] = (slope @ (weights * np.stack([z**0, z, z**2])).T).T
        zeroth, first, second = moments
        signal = self.columns * n
        length = np.sqrt((signal**2).sum(axis=1, keepdims=True))
        u = np.divide(signal, length, out=np.zeros_like(signal), where=length > 0)
        # Where n and xi never meet there is no direction: u = 0 leaves E[z_mu z_nu] = delta.
        weighted = self.weights[:, None] * self.columns
        one = weighted.T @ (self.columns * zeroth[:, None])
        cross = (weighted * u).T @ (self.columns * first[:, None])
        own = np.diag((weighted * self.columns).T @ zeroth)
        along = (weighted * u).T @ (self.columns * u * (second - zeroth)[:, None])
        whole = one + math.sqrt(rho) * (cross + cross.T) + rho * (own + along)
        return whole / (self.temperature * (1 - self.dilution) * (1 + rho))

    def _noise(self) -> tuple[Float[np.ndarray, " nodes"], Float[np.ndarray, " nodes"]]:
        """Evenly spaced nodes for E over z ~ N(0, 1), fine enough for the steepest tanh.

        The trapezoid rule converges exponentially in the distance of tanh's poles, which is
        T / sqrt(rho) up to a factor; Gauss-Hermite nodes do not get closer where T is small.
        """
        spacing = min(0.25, 0.8 * self.temperature / math.sqrt(self.entropy))
        z = np.linspace(-8, 8, 2 * math.ceil(8 / spacing) + 1)
        weights = np.exp(-(z**2) / 2)
        return z, weights / weights.sum()

    def _blocks(self, nodes: int) -> list[slice]:
        size = max(1, BLOCK // nodes)
        return [slice(at, at + size) for at in range(0, len(self.weights), size)]


@lru_cache(maxsize=32)
def ternary_columns(
    patterns: int, dilution: float
) -> tuple[Float[np.ndarray, "columns patterns"], Float[np.ndarray, " columns"]]:
    """Entries that K patterns can have at one spin, and how likely each column is.

    All 3^K columns for K <= 8, else 200,000 drawn ones.
    """
    check_dilution(dilution)
    if patterns > MOST_ENUMERATED:
        drawn = ternary_patterns(patterns, SAMPLED, dilution, np.random.default_rng(0))
        return drawn.T.astype(float), np.full(SAMPLED, 1 / SAMPLED)
    columns = np.array(list(product((-1.0, 0.0, 1.0), repeat=patterns)))
    present = (columns != 0).sum(axis=1)
    weights = ((1 - dilution) / 2) ** present * dilution ** (patterns - present)
    return columns, weights


@dataclass(frozen=True)
class State:
    """One solution of the self-consistency equations.

    Attributes:
        name: `pure` (one pattern), `hierarchical`, `parallel` (equal overlaps) or `paramagnetic`.
        overlaps: m with the archetypes, largest first.
        free_energy: per spin.
        instability: largest eigenvalue of the linearised equations, stable below 1.
    """

    name: RegimeName
    overlaps: tuple[float, ...]
    free_energy: float
    instability: float

    @property
    def stable(self) -> bool:
        """Whether small disturbances die out."""
        return self.instability < 1


@dataclass(frozen=True)
class Regime(State):
    """The stable state of lowest free energy, and the `others` that were found."""

    others: tuple[State, ...] = ()


def regime(dilution: float, patterns: int, temperature: float, entropy: float = 0.0) -> Regime:
    """Which state wins at these settings, among those reached from ladders and mixtures.

    Args:
        dilution: d, share of blanks in a pattern.
        patterns: K.
        temperature: T > 0; 1 is where the paramagnet ends.
        entropy: rho of the examples, see `dataset_entropy`.

    Raises:
        ValueError: an argument out of its range.
    """
    theory = Theory(patterns, dilution, temperature, entropy)
    n = _distinct(theory.solve(_starts(patterns, dilution)))
    states = [
        State(name_of(m), tuple(m.tolist()), float(f), float(unstable))
        for m, f, unstable in zip(
            -np.sort(-theory.overlaps(n), axis=1),
            theory.free_energy(n),
            theory.instability(n),
            strict=True,
        )
    ]
    # At a critical point all are marginal: then the lowest of all.
    candidates = [state for state in states if state.stable] or states
    best = min(candidates, key=lambda state: state.free_energy)
    others = sorted((s for s in states if s is not best), key=lambda state: state.free_energy)
    return Regime(
        best.name, best.overlaps, best.free_energy, best.instability, others=tuple(others)
    )


def name_of(
    overlaps: Float[np.ndarray, " patterns"], none: float = NONE, equal: float = EQUAL
) -> RegimeName:
    """Name of a state: overlaps of size up to `none` are none, ratios above `equal` are equal."""
    sizes = np.abs(overlaps)
    sizes = sizes[sizes > none]
    if not len(sizes):
        return "paramagnetic"
    if len(sizes) == 1:
        return "pure"
    return "parallel" if sizes.min() > equal * sizes.max() else "hierarchical"


def _starts(patterns: int, dilution: float) -> Float[np.ndarray, "starts patterns"]:
    """Ladders over the first 1..K patterns, mixtures of the first 2..K, and nothing."""
    ladder = ladder_overlaps(patterns, dilution)
    first = np.tri(patterns, dtype=bool)
    mixtures = [np.where(row, parallel_overlap(int(row.sum()), dilution), 0.0) for row in first[1:]]
    return np.stack([*np.where(first, ladder, 0.0), *mixtures, np.zeros(patterns)])


def _distinct(n: Float[np.ndarray, "points patterns"]) -> Float[np.ndarray, "points patterns"]:
    kept: list[Float[np.ndarray, " patterns"]] = []
    for point in -np.sort(-np.abs(n), axis=1):
        if all(np.abs(point - other).max() > NONE for other in kept):
            kept.append(point)
    return np.stack(kept)


def still_followed(
    overlaps: Float[np.ndarray, " patterns"], dilution: float, within: float = 0.5
) -> int:
    """How many leading overlaps are within a share of the hierarchical (1-d) d^(k-1)."""
    predicted = ladder_overlaps(len(overlaps), dilution)
    right: Bool[np.ndarray, " patterns"] = np.abs(overlaps - predicted) <= within * predicted
    return int(np.logical_and.accumulate(right).sum())
