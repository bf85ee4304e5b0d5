"""40 spins with couplings of four: the tensor, pattern space and Plefka's equations.

One network of 320 random patterns at T = 0.04, where all are retrieved. Peers form the N^4 / 24
couplings, as the definition says. `sweeps` is equal work, `state` three ways to the thermal state
of one pattern (50 sweeps give its overlap to about 0.005), `couplings` what comes before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from peira.memory.dense_hebbian.examples import draw_patterns
from peira.memory.dense_hebbian.method import (
    CouplingTensor,
    coupling_tensor,
    dense_energy,
    plefka,
    tensor_heat_bath,
)
from peira.memory.spins import PatternEnergy, heat_bath

Benchmark = Callable[..., Any]
BETA = 1 / 0.04


@cache
def network() -> tuple[np.ndarray, PatternEnergy, CouplingTensor]:
    patterns = draw_patterns(320, 40, np.random.default_rng(0))
    energy = dense_energy(patterns, 4, np.random.default_rng(0))
    tensor = coupling_tensor(patterns, 4)
    # Compile before the clock runs.
    heat_bath(energy, patterns[:1], BETA, 1, np.random.default_rng(0))
    tensor_heat_bath(tensor, patterns[:1], BETA, 1, np.random.default_rng(0))
    plefka(energy, patterns[:1], BETA, steps=1)
    return patterns, energy, tensor


@pytest.mark.benchmark(group="sweeps")
def test_sweeps_peira(benchmark: Benchmark) -> None:
    patterns, energy, _ = network()
    trace = benchmark(heat_bath, energy, patterns[:1], BETA, 50, np.random.default_rng(1))
    assert trace.states[0] @ patterns[0] > 36


@pytest.mark.benchmark(group="sweeps")
def test_sweeps_tensor(benchmark: Benchmark) -> None:
    patterns, _, tensor = network()
    args = tensor, patterns[:1], BETA, 50, np.random.default_rng(1)
    states = benchmark.pedantic(tensor_heat_bath, args, rounds=5)
    assert states[0] @ patterns[0] > 36


@pytest.mark.benchmark(group="state")
def test_state_peira(benchmark: Benchmark) -> None:
    patterns, energy, _ = network()
    found = benchmark(plefka, energy, patterns[:1], BETA)
    assert found.m[0] @ patterns[0] > 36


@pytest.mark.benchmark(group="state")
def test_state_heat_bath(benchmark: Benchmark) -> None:
    patterns, energy, _ = network()
    trace = benchmark(
        heat_bath, energy, patterns[:1], BETA, 50, np.random.default_rng(1), patterns[:1]
    )
    assert trace.mean_overlaps(40)[0, 0] > 0.9


@pytest.mark.benchmark(group="state")
def test_state_tensor(benchmark: Benchmark) -> None:
    patterns, _, tensor = network()
    args = tensor, patterns[:1], BETA, 50, np.random.default_rng(1)
    benchmark.pedantic(tensor_heat_bath, args, rounds=5)


@pytest.mark.benchmark(group="couplings")
def test_couplings_peira(benchmark: Benchmark) -> None:
    patterns, _, _ = network()
    assert benchmark(dense_energy, patterns, 4, np.random.default_rng(0)).K == 320


@pytest.mark.benchmark(group="couplings")
def test_couplings_numpy(benchmark: Benchmark) -> None:
    patterns, _, tensor = network()

    def form() -> np.ndarray:
        sets = np.array(list(combinations(range(40), 4)))
        first, second, third, fourth = (patterns[:, sets[:, k]] for k in range(4))
        return np.einsum(
            "ka,ka,ka,ka->a", *(x.astype(np.float32) for x in (first, second, third, fourth))
        )

    couplings = benchmark.pedantic(form, rounds=2)
    np.testing.assert_allclose(couplings * 40.0**-3, tensor.couplings, atol=1e-4)
