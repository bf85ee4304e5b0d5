"""The spin engine against sums over all tuples, Boltzmann's law and closed forms."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from scipy.special import erf

from peira.memory.spins import (
    PatternEnergy,
    binarise,
    fixed_point,
    flip,
    follow_branch,
    gauss_hermite,
    heat_bath,
    spinodal,
)

ORDERS = (2, 3, 4, 5, 6)
KINDS = ("signs", "blanks", "real")


def draw(kind: str, K: int, N: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "real":
        return rng.normal(size=(K, N)).astype(np.float32)
    return rng.choice([-1, 1] if kind == "signs" else [-1, 0, 1], size=(K, N))


def over_all_tuples(patterns: np.ndarray, weights: np.ndarray, P: int, spins: np.ndarray) -> float:
    """The definition: every set of P distinct spins."""
    x = patterns.astype(float) * spins
    sums = sum(x[:, list(chosen)].prod(axis=1) for chosen in combinations(range(len(spins)), P))
    return float(-(weights * sums).sum())


@pytest.mark.parametrize("P", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_energy_and_fields_are_the_sums_over_distinct_spins(kind: str, P: int) -> None:
    rng = np.random.default_rng(P)
    patterns, weights = draw(kind, 5, 9, rng), rng.random(5)
    energy = PatternEnergy(patterns, P, weights)
    states = rng.choice([-1, 1], size=(3, 9))
    expected = [over_all_tuples(patterns, weights, P, s) for s in states]
    np.testing.assert_allclose(energy.energy(states), expected, rtol=1e-10)
    for state, fields in zip(states, energy.fields(states), strict=True):
        for i in range(9):
            turned = state.copy()
            turned[i] *= -1
            change = over_all_tuples(patterns, weights, P, turned) - over_all_tuples(
                patterns, weights, P, state
            )
            assert change == pytest.approx(2 * state[i] * fields[i], abs=1e-9)


@pytest.mark.parametrize("P", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_energies_of_a_trace_are_those_of_its_states(kind: str, P: int) -> None:
    rng = np.random.default_rng(P)
    patterns = draw(kind, 40, 30, rng)
    energy = PatternEnergy(patterns, P, weights=30.0 ** (1 - P))
    trace = heat_bath(
        energy, rng.choice([-1, 1], size=(4, 30)), [0, 0.5, 5, math.inf], 7, rng, patterns
    )
    np.testing.assert_allclose(trace.energies[-1], energy.energy(trace.states), rtol=1e-8)
    np.testing.assert_allclose(trace.overlaps[-1], trace.states @ patterns.T / 30, atol=1e-6)


def test_long_runs_visit_states_as_boltzmann_says() -> None:
    rng = np.random.default_rng(0)
    energy = PatternEnergy(draw("real", 3, 5, rng), 3, 0.3)
    states = np.array(list(product([-1, 1], repeat=5)))
    beta = 0.7
    weights = np.exp(-beta * energy.energy(states))
    exact = weights / weights.sum()
    trace = heat_bath(energy, np.ones((20_000, 5), int), beta, 30, rng)
    index = ((trace.states > 0) * 2 ** np.arange(4, -1, -1)).sum(axis=1)
    seen = np.bincount(index, minlength=32) / 20_000
    assert np.abs(seen - exact).max() < 4 * np.sqrt(exact.max() / 20_000)


def test_zero_temperature_goes_downhill_to_a_local_minimum() -> None:
    rng = np.random.default_rng(1)
    energy = PatternEnergy(draw("signs", 30, 40, rng), 4, 40.0**-3)
    trace = heat_bath(energy, rng.choice([-1, 1], size=(6, 40)), math.inf, 60, rng)
    assert (np.diff(trace.energies, axis=0) <= 1e-12).all()
    assert (trace.flips[-1] == 0).all()
    assert (trace.states * energy.fields(trace.states) >= 0).all()


def test_a_spin_without_field_is_a_fair_coin_at_zero_temperature() -> None:
    pattern = np.ones((1, 2000), int)
    pattern[0, 1000:] = 0
    trace = heat_bath(
        PatternEnergy(pattern), np.ones((1, 2000), int), math.inf, 3, np.random.default_rng(2)
    )
    assert (trace.states[0, :1000] == 1).all()
    assert abs(int(trace.states[0, 1000:].sum())) < 4 * math.sqrt(1000)


def test_the_seed_determines_everything_and_replicas_are_independent() -> None:
    energy = PatternEnergy(draw("real", 6, 25, np.random.default_rng(3)), 4, 25.0**-3)
    start = np.ones((3, 25), int)
    first, again, other = (
        heat_bath(energy, start, 0.5, 9, np.random.default_rng(seed)) for seed in (4, 4, 5)
    )
    assert (first.states == again.states).all() and (first.energies == again.energies).all()
    assert (first.energies != other.energies).any()
    alone = heat_bath(energy, start[:1], 0.5, 9, np.random.default_rng(4))
    assert (alone.energies[:, 0] == first.energies[:, 0]).all()
    assert (first.energies[:, 0] != first.energies[:, 1]).any()


def test_a_schedule_is_followed_sweep_by_sweep() -> None:
    energy = PatternEnergy(np.ones((1, 500), int), 2, 1 / 500)
    schedule = np.array([[math.inf], [math.inf], [0.0]])
    trace = heat_bath(
        energy, np.ones((2, 500), int), schedule, 3, np.random.default_rng(6), np.ones((1, 500))
    )
    assert (trace.overlaps[:2] == 1).all() and (np.abs(trace.overlaps[2]) < 0.2).all()
    assert (trace.mean_overlaps(2) == trace.overlaps[1:].mean(axis=0)).all()


@pytest.mark.parametrize(
    ("patterns", "P", "message"),
    [
        (np.ones(4), 2, "matrix"),
        (np.ones((2, 3)), 4, "at most"),
        (np.full((2, 9), np.nan), 2, "finite"),
    ],
)
def test_bad_patterns_are_refused(patterns: np.ndarray, P: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatternEnergy(patterns, P)


def test_bad_states_and_temperatures_are_refused() -> None:
    energy = PatternEnergy(np.ones((2, 6)))
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="-1 and"):
        heat_bath(energy, np.zeros((1, 6), int), 1.0, 1, rng)
    with pytest.raises(ValueError, match="6 spins"):
        heat_bath(energy, np.ones((1, 5), int), 1.0, 1, rng)
    with pytest.raises(ValueError, match="beta"):
        heat_bath(energy, np.ones((1, 6), int), -1.0, 1, rng)


def test_quadrature_has_the_moments_of_a_normal_variable() -> None:
    z, w = gauss_hermite(21)
    assert [float(w @ z**k) for k in (0, 1, 2, 4, 6)] == pytest.approx([1, 0, 1, 3, 15], abs=1e-9)


def test_fixed_points_of_the_curie_weiss_magnet_and_its_critical_point() -> None:
    beta = 1.5
    found = fixed_point(lambda m: np.tanh(beta * m), np.array([[1.0], [-1.0], [0.0]]))
    assert found.converged.all()
    m = found.points[0, 0]
    assert m == pytest.approx(math.tanh(beta * m), abs=1e-9) and m > 0.8
    assert found.points[1, 0] == pytest.approx(-m, abs=1e-9) and found.points[2, 0] == 0
    assert not fixed_point(lambda m: -3 * m, np.ones((1, 1)), damping=0.0, steps=50).converged[0]


def test_the_hopfield_branch_dies_at_the_published_load() -> None:
    # Amit, Gutfreund and Sompolinsky (1985), T = 0: y (sqrt(2 alpha) + c(y)) = erf(y), 0.138.
    def update(y: np.ndarray, alpha: float) -> np.ndarray:
        c = 2 / math.sqrt(math.pi) * np.exp(-(y**2))
        return erf(y) / (math.sqrt(2 * alpha) + c)

    loads = np.linspace(0.05, 0.2, 16)
    branch = follow_branch(update, np.array([2.0]), loads, lambda y: bool(y[0] > 0.3))
    dead = np.isnan(branch[:, 0])
    assert loads[dead].min() == pytest.approx(0.14, abs=1e-9) and dead[np.argmax(dead) :].all()

    def alive(alpha: float) -> bool:
        found = fixed_point(lambda y: update(y, alpha), np.array([[2.0]]), steps=20_000)
        return bool(found.points[0, 0] > 0.3)

    assert spinodal(alive, 0.05, 0.2) == pytest.approx(0.1379, abs=2e-4)
    with pytest.raises(ValueError, match="there at"):
        spinodal(alive, 0.2, 0.3)


def test_pictures_become_spins() -> None:
    images = np.array([[[0, 9], [3, 200]], [[5, 5], [5, 6]]], np.uint8)
    assert binarise(images, 4).tolist() == [[-1, 1, -1, 1], [1, 1, 1, 1]]
    assert binarise(images).tolist() == [[-1, 1, -1, 1], [-1, -1, -1, 1]]
    spins = np.ones((50, 10), int)
    turned = flip(spins, 0.3, np.random.default_rng(0))
    assert ((turned == -1).sum(axis=1) == 3).all() and (turned.sum(axis=0) < 50).all()
    with pytest.raises(ValueError, match="share"):
        flip(spins, 1.2, np.random.default_rng(0))
