"""Pattern space against couplings, 3^K columns at once against loops, means drawn at once.

N = 5,000 spins, dilution 0.25; the coupling matrix is N x N in single precision, its sweep is
compiled too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import numba
import numpy as np
import pytest

from peira.memory.multitasking_hebbian.network import pattern_energy
from peira.memory.multitasking_hebbian.patterns import (
    dataset_entropy,
    ladder_spins,
    mean_examples,
    noisy_examples,
    ternary_patterns,
)
from peira.memory.multitasking_hebbian.theory import Theory, ladder_overlaps
from peira.memory.spins import heat_bath

Benchmark = Callable[..., Any]
K, N, D, BETA, SWEEPS = 3, 5000, 0.25, 20.0, 10
QUALITY, EXAMPLES = 0.4, 50


@cache
def stored() -> tuple[np.ndarray, np.ndarray]:
    """Archetypes and the hierarchical state of them."""
    rng = np.random.default_rng(0)
    patterns = ternary_patterns(K, N, D, rng)
    return patterns, ladder_spins(patterns, rng)


@cache
def seen() -> np.ndarray:
    """Single examples of the archetypes, 150 rows."""
    drawn = noisy_examples(stored()[0], QUALITY, EXAMPLES, np.random.default_rng(1))
    return drawn.reshape(-1, N)


@pytest.mark.benchmark(group="recall")
def test_recall_peira(benchmark: Benchmark) -> None:
    patterns, start = stored()
    rng = np.random.default_rng(2)
    _in_pattern_space(patterns, start, 1.0, 1, rng)
    state = benchmark(_in_pattern_space, patterns, start, 1.0, 1, rng)
    assert patterns[0] @ state.astype(float) / N == pytest.approx(1 - D, abs=0.03)


@pytest.mark.benchmark(group="recall")
def test_recall_couplings(benchmark: Benchmark) -> None:
    patterns, start = stored()
    rng = np.random.default_rng(2)
    _sweeps(np.zeros((4, 4), np.float32), start[:4].copy(), BETA, rng.random((1, 4)), rng)
    state = benchmark.pedantic(_with_couplings, (patterns, start, N * (1 - D), rng), rounds=3)
    assert patterns[0] @ state.astype(float) / N == pytest.approx(1 - D, abs=0.03)


@pytest.mark.benchmark(group="unsupervised")
def test_unsupervised_peira(benchmark: Benchmark) -> None:
    start = stored()[1]
    rng = np.random.default_rng(2)
    power = QUALITY**2 * (1 + dataset_entropy(QUALITY, EXAMPLES))
    benchmark(_in_pattern_space, seen(), start, power, EXAMPLES, rng)


@pytest.mark.benchmark(group="unsupervised")
def test_unsupervised_couplings(benchmark: Benchmark) -> None:
    start = stored()[1]
    power = QUALITY**2 * (1 + dataset_entropy(QUALITY, EXAMPLES))
    rng = np.random.default_rng(2)
    scale = N * (1 - D) * power * EXAMPLES
    benchmark.pedantic(_with_couplings, (seen(), start, scale, rng), rounds=3)


@pytest.mark.benchmark(group="equations")
def test_equations_peira(benchmark: Benchmark) -> None:
    theory = Theory(6, 0.4, 0.2)
    point = ladder_overlaps(6, 0.4)[None]
    found = benchmark(theory._update, point)
    assert found[0] == pytest.approx(_looped(point[0], 0.4, 0.2))


@pytest.mark.benchmark(group="equations")
def test_equations_loops(benchmark: Benchmark) -> None:
    benchmark.pedantic(_looped, (ladder_overlaps(6, 0.4), 0.4, 0.2), rounds=5)


@pytest.mark.benchmark(group="teacher")
def test_teacher_peira(benchmark: Benchmark) -> None:
    benchmark(mean_examples, stored()[0], QUALITY, 240, np.random.default_rng(3))


@pytest.mark.benchmark(group="teacher")
def test_teacher_examples(benchmark: Benchmark) -> None:
    patterns, rng = stored()[0], np.random.default_rng(3)
    benchmark.pedantic(lambda: noisy_examples(patterns, QUALITY, 240, rng).mean(axis=1), rounds=5)


def _in_pattern_space(
    patterns: np.ndarray, start: np.ndarray, power: float, terms: int, rng: np.random.Generator
) -> np.ndarray:
    energy = pattern_energy(patterns, D, power, terms)
    return heat_bath(energy, start[None], BETA, SWEEPS, rng).states[0]


def _with_couplings(
    patterns: np.ndarray, start: np.ndarray, scale: float, rng: np.random.Generator
) -> np.ndarray:
    values = patterns.astype(np.float32)
    couplings = values.T @ values / np.float32(scale)
    np.fill_diagonal(couplings, 0)
    return _sweeps(couplings, start.copy(), BETA, rng.random((SWEEPS, N)), rng)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _sweeps(couplings, spins, beta, coins, rng):  # type: ignore[no-untyped-def]
    """Heat bath with all fields kept up to date: O(N) for each spin that turns."""
    fields = couplings @ spins.astype(np.float32)
    for sweep in range(len(coins)):
        order = rng.permutation(len(spins))
        for i in order:
            up = coins[sweep, i] * (1 + math.exp(-2 * beta * fields[i])) < 1
            if up != (spins[i] > 0):
                fields -= 2 * spins[i] * couplings[i]
                spins[i] = -spins[i]
    return spins


def _looped(n: np.ndarray, dilution: float, temperature: float) -> list[float]:
    found = [0.0] * len(n)
    for column in product((-1, 0, 1), repeat=len(n)):
        weight, field = 1.0, 0.0
        for entry, overlap in zip(column, n, strict=True):
            weight *= (1 - dilution) / 2 if entry else dilution
            field += entry * overlap
        mean = weight * math.tanh(field / (temperature * (1 - dilution)))
        for k, entry in enumerate(column):
            found[k] += mean * entry
    return found
