"""Monte Carlo of dense Hebbian networks at loads K of order N^(P-1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int8

from peira.memory.dense_hebbian.examples import (
    Examples,
    draw_averages,
    draw_examples,
    draw_patterns,
)
from peira.memory.spins import PatternEnergy, heat_bath


@dataclass(frozen=True)
class Simulated:
    """Means over networks' replicas, one entry per temperature.

    Attributes:
        T: temperatures, in units where J0 = 1/P!.
        m: overlap with the pattern.
        error: standard error of m over the replicas, which retrieve different patterns.
        energy: per spin.
    """

    T: Float[np.ndarray, " T"]
    m: Float[np.ndarray, " T"]
    error: Float[np.ndarray, " T"]
    energy: Float[np.ndarray, " T"]


def dense_energy(
    patterns: Int8[np.ndarray, "K N"],
    P: int,
    rng: np.random.Generator,
    data: Examples | None = None,
) -> PatternEnergy:
    """Couplings of K patterns, or of freshly drawn examples of them.

    H = - N^(1-P) R^(-P/2) sum_mu e_P over distinct spins, J0 = 1/P!; R is the mean square of an
    averaged example. Unsupervised couplings are averaged over examples after the product.

    Args:
        patterns: what the examples are examples of.
        P: how many spins interact.
        rng: draws the examples.
        data: their quality and number; None stores the patterns themselves.
    """
    scale = float(patterns.shape[1]) ** (1 - P)
    if data is None:
        return PatternEnergy(patterns, P, scale)
    scale /= math.sqrt(data.squared_norm(P))
    if data.mode == "supervised":
        return PatternEnergy(draw_averages(patterns, data.r, data.M, rng), P, scale)
    return PatternEnergy(draw_examples(patterns, data.r, data.M, rng), P, scale / data.M)


def simulate(
    N: int,
    K: int,
    P: int,
    rng: np.random.Generator,
    data: Examples | None = None,
    T: float | Sequence[float] = 0.0,
    replicas: int = 8,
    settle: int = 10,
    average: int = 5,
) -> Simulated:
    """Retrieve patterns of one random network, from the patterns themselves.

    Args:
        N, K, P: spins, patterns, spins per coupling.
        rng: draws patterns, examples and the heat bath.
        data: examples of the patterns; None stores the patterns.
        T: a temperature, or several which the replicas go through one after the other.
        replicas: patterns that are retrieved, each in a replica of its own.
        settle: sweeps at each temperature before averaging.
        average: sweeps over which overlaps and energies are averaged.

    Raises:
        ValueError: fewer patterns than replicas.
    """
    if replicas > K:
        raise ValueError(f"{replicas} replicas retrieve different patterns, but there are {K}")
    patterns = draw_patterns(K, N, rng)
    energy = dense_energy(patterns, P, rng, data)
    temperatures = np.atleast_1d(np.asarray(T, float))
    betas = np.array([math.inf if t == 0 else 1 / t for t in temperatures])
    schedule = np.repeat(betas, settle + average)[:, None]
    targets = patterns[:replicas]
    trace = heat_bath(energy, targets, schedule, len(schedule), rng, targets)
    steps = (len(temperatures), settle + average, replicas)
    own = np.diagonal(trace.overlaps, axis1=1, axis2=2).reshape(steps)[:, settle:].mean(axis=1)
    energies = trace.energies.reshape(steps)[:, settle:].mean(axis=(1, 2)) / N
    spread = own.std(axis=1, ddof=1) if replicas > 1 else np.full(len(own), np.nan)
    return Simulated(temperatures, own.mean(axis=1), spread / math.sqrt(replicas), energies)
