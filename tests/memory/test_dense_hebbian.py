"""Dense Hebbian memory against closed forms, published numbers, brute force and other solvers."""

from __future__ import annotations

import math
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from scipy.special import erf

from peira.cli.using import commands
from peira.data import DataError
from peira.memory.dense_hebbian.examples import (
    Examples,
    draw_averages,
    draw_examples,
    draw_patterns,
)
from peira.memory.dense_hebbian.method import (
    DenseHebbian,
    branches,
    coupling_tensor,
    critical_load,
    dense_energy,
    dense_examples_needed,
    glass,
    nearest_mean,
    order_parameters,
    phase_diagram,
    plefka,
    pseudo_inverse,
    retrieval_temperature,
    simulate,
    softmax_memory,
    tensor_heat_bath,
    tolerated_noise,
)
from peira.memory.dense_hebbian.plefka import mean_fields
from peira.memory.spins import PatternEnergy, flip, gauss_hermite, heat_bath


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("P", "load"), [(2, 0.1379), (3, 0.1261), (4, 0.03298), (6, 0.001314)])
def test_critical_loads_are_the_published_ones(P: int, load: float) -> None:
    # P = 2: Amit, Gutfreund and Sompolinsky 1987.
    assert critical_load(P) == pytest.approx(load, rel=2e-3)


@pytest.mark.parametrize("P", [3, 4, 6])
def test_the_equation_at_zero_temperature(P: int) -> None:
    alpha = 0.8 * critical_load(P)
    m = order_parameters(P, alpha).m
    inner = m ** (P - 1) / math.sqrt(2 * alpha * math.factorial(P - 1))
    assert m == pytest.approx(float(erf(inner)), abs=1e-8) and m > 0.9
    assert order_parameters(P, 1.02 * critical_load(P)).m == 0


@pytest.mark.parametrize(("rho", "m"), [(0.2, 0.975), (0.5, 0.843), (1.0, 0.683)])
@pytest.mark.parametrize("P", [2, 3, 4])
def test_without_load_the_overlap_depends_on_the_data_alone(P: int, rho: float, m: float) -> None:
    assert order_parameters(P, 0.0, 0.0, rho).m == pytest.approx(m, abs=1e-3)


@pytest.mark.parametrize(("P", "T"), [(3, 0.08), (4, 0.002), (4, 0.03), (6, 0.001)])
@pytest.mark.parametrize("rho", [0.0, 0.2])
def test_solutions_satisfy_the_published_equations_by_two_dimensional_quadrature(
    P: int, T: float, rho: float
) -> None:
    alpha = 0.5 * critical_load(P, T, rho)
    found = order_parameters(P, alpha, T, rho)
    overlap = found.n * (1 + rho)
    x = np.linspace(-8, 8, 4001)
    wx = np.exp(-(x**2) / 2) / np.exp(-(x**2) / 2).sum()
    z, wz = gauss_hermite(61) if rho else (np.zeros(1), np.ones(1))
    J0 = 1 / math.factorial(P)
    site = 1 + math.sqrt(rho) * z[:, None]
    signal = P * (1 + rho) ** (-P / 2) * overlap ** (P - 1) * site
    noise = math.sqrt(alpha * P * math.factorial(P) * found.q ** (P - 1)) * x
    t = np.tanh(J0 / T * (signal + noise))
    # Where the field is steep in z too, 61 nodes leave a few 1e-3.
    assert float(wz @ t @ wx) == pytest.approx(found.m, abs=4e-3 if rho else 1e-6)
    assert float(wz @ (site * t) @ wx) == pytest.approx(overlap, abs=4e-3 if rho else 1e-6)
    assert float(wz @ t**2 @ wx) == pytest.approx(found.q, abs=4e-3 if rho else 1e-6)


def test_examples_with_binomial_averages() -> None:
    data = Examples(0.5, 15)
    values, probabilities = data.sites()
    assert probabilities.sum() == pytest.approx(1) and values @ probabilities == pytest.approx(1)
    assert values**2 @ probabilities == pytest.approx(1 + data.rho)
    # Without load each spin follows the majority of its 15 examples.
    majority = probabilities[values > 0].sum() - probabilities[values < 0].sum()
    assert order_parameters(4, 0.0, 0.0, data).m == pytest.approx(majority, abs=1e-9)
    many, normal = Examples(0.5, 4000), Examples(0.5, 4000).rho
    assert order_parameters(4, 0.02, 0.02, many).m == pytest.approx(
        order_parameters(4, 0.02, 0.02, normal).m, abs=1e-4
    )
    assert Examples(1.0, 1).attenuation(4) == 1
    weak = Examples(0.4, 10, "unsupervised").attenuation(4)
    assert weak < Examples(0.4, 10).attenuation(4) < 1


@pytest.mark.parametrize("mode", ["supervised", "unsupervised"])
def test_couplings_have_the_norm_that_divides_them(mode: str) -> None:
    patterns = draw_patterns(200, 60, rng())
    data = Examples(0.6, 5, mode)  # type: ignore[arg-type]
    examples = draw_examples(patterns, 0.6, 5, rng(1)).reshape(200, 5, 60).astype(float)
    if mode == "supervised":
        products = examples.mean(axis=1)[:, :4].prod(axis=1)
    else:
        products = examples[:, :, :4].prod(axis=2).mean(axis=1)
    drawn = [
        (draw_examples(patterns, 0.6, 5, rng(s)).reshape(200, 5, 60) * patterns[:, None]).mean()
        for s in range(3)
    ]
    assert np.mean(drawn) == pytest.approx(0.6, abs=0.01)
    averages = draw_averages(patterns, 0.6, 5, rng(2))
    assert (averages**2).mean() == pytest.approx(0.36 + 0.64 / 5, abs=0.01)
    # 200 products scatter by about 15%.
    assert (products**2).mean() == pytest.approx(data.squared_norm(4), rel=0.5)
    rows = 200 if mode == "supervised" else 1000
    assert rows == dense_energy(patterns, 4, rng(), data).K


def test_both_branches_meet_at_the_critical_load_and_hold_the_iterated_solution() -> None:
    there = branches(4, 0.02, 0.05)
    assert there.alpha.max() == pytest.approx(critical_load(4, 0.02, 0.05), rel=1e-3)
    assert (there.m[there.stable].min() >= there.m[~there.stable].max()) and (~there.stable).any()
    alpha = 0.6 * there.alpha.max()
    order = np.argsort(there.alpha[there.stable])
    m = np.interp(alpha, there.alpha[there.stable][order], there.m[there.stable][order])
    assert m == pytest.approx(order_parameters(4, alpha, 0.02, 0.05).m, abs=1e-4)


@pytest.mark.parametrize(("P", "alpha", "T"), [(4, 0.02, 0.03), (3, 0.05, 0.1), (2, 0.05, 0.3)])
def test_the_free_energy_is_stationary_at_the_solution(P: int, alpha: float, T: float) -> None:
    from peira.memory.dense_hebbian import theory

    data = theory._data(P, 0.1)
    found = order_parameters(P, alpha, T, 0.1)
    x, C = found.n * 1.1, (1 - found.q) / T

    def f(x: float, C: float) -> float:
        return float(theory._free_energy(np.array([x]), np.array([C]), P, alpha, T, data)[0])

    assert f(x, C) == pytest.approx(found.free_energy, abs=1e-12)
    step = 1e-4
    assert (f(x + step, C) - f(x - step, C)) / (2 * step) == pytest.approx(0, abs=1e-6)
    assert (f(x, C + step) - f(x, C - step)) / (2 * step) == pytest.approx(0, abs=1e-6)


def test_free_energies_against_published_numbers() -> None:
    # Hopfield: retrieval is the lowest state up to 0.051 (Amit, Gutfreund and Sompolinsky 1987).
    loads = np.array([0.048, 0.054])
    phases = phase_diagram(2, 0.0, loads, [0.0])["phase"].tolist()
    assert phases == ["retrieval", "metastable"]
    # Ising 3-spin glass: ground state -0.8138 J at Var H = N J^2 / 2, one step of breaking.
    scale = math.sqrt(2 / 6)
    assert glass(3, 1.0, 0.0, 1)[0] * 1 == pytest.approx(-0.8138 * scale, rel=2e-3)
    # The bound of Guerra: one step lies above replica symmetry.
    assert glass(4, 0.02, 0.01, 1)[0] >= glass(4, 0.02, 0.01, 0)[0] - 1e-9
    # Sherrington-Kirkpatrick's limit of pairs has no retrieval: q > 0 below 1 + sqrt(alpha) only.
    assert glass(2, 0.25, 1.4)[1] > 0.01 and glass(2, 0.25, 1.55)[1] == 0


def test_the_phase_diagram_names_its_phases_and_shrinks_with_entropy() -> None:
    top = retrieval_temperature(4)
    # At alpha = 0 the overlap solves m = tanh(m^3 / 3! T).
    m = branches(4, 0.99 * top).m[0]
    assert m == pytest.approx(math.tanh(m**3 / (6 * 0.99 * top)), abs=1e-6)
    diagram = phase_diagram(4, 0.0, [0.0, 0.01, 0.03, 0.05], [0.0, 0.5 * top, 3 * top], steps=1)
    assert isinstance(diagram, pd.DataFrame)
    phases = diagram.pivot(index="T", columns="alpha", values="phase").to_numpy()
    assert phases[0].tolist() == ["retrieval", "retrieval", "retrieval", "glass"]
    assert phases[2].tolist() == ["paramagnet"] * 4
    for T in (0.0, 0.5 * top):
        loads = [critical_load(4, T, rho) for rho in (0.0, 0.05, 0.2)]
        assert loads == sorted(loads, reverse=True)
    assert critical_load(4, 2 * top) == 0


def test_examples_needed_is_the_smallest_number_and_grows_as_it_must() -> None:
    M = dense_examples_needed(0.5, 4, 0.95)
    needed = (1 - 0.25) / (M * 0.25)
    assert erf(1 / math.sqrt(2 * needed)) >= 0.95
    assert erf(1 / math.sqrt(2 * needed * M / (M - 1))) < 0.95
    supervised = [dense_examples_needed(r, 4, 0.9, "supervised", 0.005) for r in (0.05, 0.1)]
    unsupervised = [dense_examples_needed(r, 4, 0.9, "unsupervised", 0.005) for r in (0.2, 0.3)]
    slope = math.log(supervised[1] / supervised[0]) / math.log(2)
    assert slope == pytest.approx(-2, abs=0.05)
    assert math.log(unsupervised[1] / unsupervised[0]) / math.log(1.5) == pytest.approx(-8, abs=0.1)
    with pytest.raises(ValueError, match="not reached"):
        dense_examples_needed(0.5, 4, 0.95, alpha=0.1)


@pytest.mark.parametrize(("alpha", "m"), [(0.01, 1.0), (0.02, 0.981), (0.03, 0.972)])
def test_monte_carlo_with_cubically_many_patterns(alpha: float, m: float) -> None:
    runs = [simulate(48, round(alpha * 48**3), 4, rng(seed), replicas=12) for seed in range(3)]
    # Published for N = 72; half a per cent of the spins of a smaller network may differ.
    assert np.mean([run.m[0] for run in runs]) == pytest.approx(m, abs=0.035)


def test_monte_carlo_through_temperatures_agrees_with_the_theory() -> None:
    found = simulate(60, 1080, 4, rng(), T=[0.02, 0.04, 0.2], settle=10, average=20)
    expected = [order_parameters(4, 0.005, T).m for T in (0.02, 0.04, 0.2)]
    np.testing.assert_allclose(found.m, expected, atol=0.05)
    assert abs(found.m[2]) < 5 * found.error[2] < 0.2
    with pytest.raises(ValueError, match="replicas"):
        simulate(20, 3, 4, rng(), replicas=8)


@pytest.mark.parametrize("P", [2, 3, 4, 5, 6])
def test_fields_of_magnetisations_are_derivatives_of_the_energy(P: int) -> None:
    patterns = rng(P).normal(size=(7, 9)).astype(np.float32)
    energy = PatternEnergy(patterns, P, 0.3)
    m = rng(P + 1).uniform(-1, 1, 9)

    def h(m: np.ndarray) -> float:
        x = patterns.astype(float) * m
        sets = combinations(range(9), P)
        return -0.3 * sum(float(x[:, list(chosen)].prod(axis=1).sum()) for chosen in sets)

    fields, _ = mean_fields(energy, m)
    for i in range(9):
        up, down = m.copy(), m.copy()
        up[i], down[i] = 1.0, 0.0
        # The energy is linear in each magnetisation.
        assert fields[i] == pytest.approx(h(down) - h(up), abs=1e-8)


def test_the_reaction_term_is_that_of_the_full_couplings() -> None:
    N, K = 60, 2000
    patterns = draw_patterns(K, N, rng())
    energy = PatternEnergy(patterns, 4, float(N) ** -3)
    m = patterns[0] * 0.8
    reaction = mean_fields(energy, m)[1]
    columns = []
    for j in range(N):
        up, down = m.copy(), m.copy()
        up[j], down[j] = 1.0, 0.0
        columns.append(mean_fields(energy, up)[0] - mean_fields(energy, down)[0])
    couplings = np.array(columns)
    np.fill_diagonal(couplings, 0)
    exact = (couplings**2 * (1 - m**2)[:, None]).sum(axis=0)
    # Corrections are of order P^2 / 2N.
    assert reaction.mean() == pytest.approx(exact.mean(), rel=0.12)


def test_second_order_plefka_is_closer_to_monte_carlo_than_first() -> None:
    patterns = draw_patterns(3732, 72, rng(3))
    energy = dense_energy(patterns, 4, rng())
    targets, T = patterns[:8], 0.05
    trace = heat_bath(energy, targets, 1 / T, 220, rng(1), targets)
    sampled = np.diagonal(trace.overlaps[20:].mean(axis=0))
    solved = {}
    for order in (1, 2):
        found = plefka(energy, targets, 1 / T, order)
        assert found.converged.all()
        solved[order] = (found.m * targets).mean(axis=1)
    # Replicas that leave their pattern are no retrieval.
    stayed = sampled > 0.9
    errors = {order: np.abs(m - sampled)[stayed].mean() for order, m in solved.items()}
    assert stayed.sum() >= 6 and errors[2] < 0.004 and errors[2] < errors[1]
    with pytest.raises(ValueError, match="order"):
        plefka(energy, targets, 1.0, 3)
    with pytest.raises(ValueError, match="beta"):
        plefka(energy, targets, math.inf)


@pytest.mark.parametrize("P", [2, 3, 4])
def test_the_tensor_has_the_energies_and_dynamics_of_pattern_space(P: int) -> None:
    patterns = draw_patterns(12, 14, rng())
    tensor = coupling_tensor(patterns, P)
    assert len(tensor.couplings) == math.comb(14, P)
    energy = dense_energy(patterns, P, rng())
    states = draw_patterns(4, 14, rng(1))
    products = states[:, tensor.members].prod(axis=2)
    np.testing.assert_allclose(-products @ tensor.couplings, energy.energy(states), atol=1e-10)
    ended = tensor_heat_bath(tensor, states, math.inf, 30, rng(2))
    assert (ended * energy.fields(ended) >= -1e-12).all()
    with pytest.raises(ValueError, match="couplings"):
        coupling_tensor(draw_patterns(2, 200, rng()), 4)


def test_tensor_heat_bath_visits_states_as_boltzmann_says() -> None:
    tensor = coupling_tensor(draw_patterns(3, 5, rng()), 3)
    beta = 4.0
    states = np.array(list(product([-1, 1], repeat=5)), np.int8)
    weights = np.exp(beta * states[:, tensor.members].prod(axis=2) @ tensor.couplings)
    exact = weights / weights.sum()
    ended = tensor_heat_bath(tensor, np.ones((4000, 5), np.int8), beta, 12, rng(1))
    index = ((ended > 0) * 2 ** np.arange(4, -1, -1)).sum(axis=1)
    seen = np.bincount(index, minlength=32) / 4000
    assert np.abs(seen - exact).max() < 4.5 * math.sqrt(exact.max() / 4000)


def test_tolerated_noise_grows_as_signal_and_noise_say() -> None:
    large = [tolerated_noise(4, N, N) for N in (200, 400)]
    assert math.log2(large[1] / large[0]) == pytest.approx(1, abs=0.01)
    pairs = [tolerated_noise(2, N, N // 20) for N in (200, 400)]
    assert pairs[0] == pairs[1] > 1
    assert math.isnan(tolerated_noise(2, 72, 72))


def archetypes_and_examples() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    patterns = draw_patterns(6, 120, rng())
    return patterns, draw_examples(patterns, 0.6, 25, rng(1)), np.repeat(list("abcdef"), 25)


@pytest.mark.parametrize("mode", ["supervised", "unsupervised"])
@pytest.mark.parametrize("P", [2, 4])
def test_the_estimator_recalls_archetypes_that_it_never_saw(P: int, mode: str) -> None:
    patterns, X, y = archetypes_and_examples()
    memory = DenseHebbian(P, mode).fit(X, y)  # type: ignore[arg-type]
    assert memory.quality_ == pytest.approx(0.6, abs=0.03)
    assert memory.entropy_ == pytest.approx(0.64 / (25 * 0.36), rel=0.2)
    found = memory.retrieve(flip(patterns, 0.2, rng(2)))
    assert ((found.states * patterns).mean(axis=1) > 0.9).all()
    assert (memory.predict(flip(patterns, 0.2, rng(3))) == list("abcdef")).all()
    assert memory.score(X, y) > 0.8
    assert (np.diff(found.energies, axis=0) <= 1e-12).all()


def test_the_estimator_is_the_energy_of_the_paper() -> None:
    _, X, y = archetypes_and_examples()
    memory = DenseHebbian(4).fit(X, y)
    x = memory.averages_[0] * X[0]
    R = (memory.averages_[0] ** 2).mean()
    e4 = sum(np.prod(x[list(chosen)]) for chosen in combinations(range(12), 4))
    alone = PatternEnergy(memory.averages_[:1, :12], 4, 120.0**-3 * R**-2.0)
    assert alone.energy(X[:1, :12])[0] == pytest.approx(-(120.0**-3) * R**-2 * e4, rel=1e-5)
    found = memory.retrieve(X[:3], sweeps=5)
    assert memory._energy.energy(found.states) / 120 == pytest.approx(found.energies[-1])
    assert memory._energy.scale * memory._energy.weights[0] == pytest.approx(120.0**-3 * R**-2)


def test_the_estimator_takes_binary_values_in_three_forms_and_plefka() -> None:
    patterns, X, y = archetypes_and_examples()
    forms = [DenseHebbian().fit(form, y).averages_ for form in (X, X > 0, (X + 1) // 2)]
    assert (forms[0] == forms[1]).all() and (forms[0] == forms[2]).all()
    memory = DenseHebbian().fit(X, y)
    cues = flip(patterns, 0.15, rng(4))
    mean_field = memory.retrieve(cues, T=0.02, solver="plefka")
    assert ((mean_field.states * patterns).mean(axis=1) > 0.9).all()
    stored = DenseHebbian().fit(patterns)
    assert (stored.retrieve(cues).states == patterns).all() and math.isnan(stored.quality_)


def test_centring_tells_apart_pictures_that_share_a_background() -> None:
    background = np.ones((5, 80), np.int8)
    background[:, :30] = draw_patterns(5, 30, rng())
    background[:, 70:] = -1
    X, y = draw_examples(background[:, :70], 0.8, 20, rng(1)), np.repeat(np.arange(5), 20)
    X = np.concatenate([X, -np.ones((100, 10), np.int8)], axis=1)
    cues = flip(background, 0.1, rng(2))
    plain = DenseHebbian(4).fit(X, y)
    centred = DenseHebbian(4, centre=True).fit(X, y)
    assert (plain.predict(cues) == np.arange(5)).mean() < 0.8
    assert (centred.predict(cues) == np.arange(5)).all()
    assert (centred.retrieve(cues).states[:, 70:] == -1).all()


def test_bad_input_is_refused_with_the_place_and_the_remedy() -> None:
    _, X, y = archetypes_and_examples()
    grey = X.astype(float)
    grey[3, 4] = 0.5
    with pytest.raises(ValueError, match=r"row 4, column 5: 0.5 .*binarise"):
        DenseHebbian().fit(grey, y)
    with pytest.raises(ValueError, match="class z has 0 examples"):
        DenseHebbian().fit(X, y, classes=[*"abcdef", "z"])
    with pytest.raises(ValueError, match="no more than coins"):
        DenseHebbian().fit(np.array([[1, -1] * 8, [-1, 1] * 8]), [0, 0])
    with pytest.raises(ValueError, match="P must be"):
        DenseHebbian(6).fit(X[:, :5], y)
    with pytest.raises(ValueError, match="mode"):
        DenseHebbian(mode="teacher").fit(X, y)  # type: ignore[arg-type]
    memory = DenseHebbian().fit(X, y)
    with pytest.raises(ValueError, match="temperature"):
        memory.retrieve(X, T=-1)
    with pytest.raises(ValueError, match="119 spins"):
        memory.retrieve(X[:, 1:])
    with pytest.raises(ValueError, match="above 0"):
        memory.retrieve(X, solver="plefka")
    with pytest.raises(ValueError, match="quality r"):
        Examples(0.0, 3)
    with pytest.raises(ValueError, match="P must be"):
        critical_load(7)
    with pytest.warns(UserWarning, match="odd"):
        DenseHebbian(3).fit(X, y)
    with pytest.warns(UserWarning, match="beyond the critical 0.138"):
        DenseHebbian(2).fit(draw_patterns(60, 120, rng()))


def test_baselines_recall_what_they_can() -> None:
    patterns = draw_patterns(5, 60, rng())
    cues = flip(patterns, 0.15, rng(1))
    for states in (
        pseudo_inverse(patterns, cues, rng(2)),
        softmax_memory(patterns, cues),
        nearest_mean(patterns, cues),
    ):
        assert (states == patterns).all()
    # Every pattern is a fixed point of the projector.
    many = draw_patterns(40, 60, rng(3))
    assert (pseudo_inverse(many, many, rng(4)) == many).all()


def use(*arguments: object) -> Result:
    return CliRunner().invoke(commands("dense-hebbian"), [str(a) for a in arguments])


def pictures(folder: Path) -> tuple[Path, Path]:
    patterns, X, _ = archetypes_and_examples()
    learned, cues = folder / "pictures.npz", folder / "cues.npz"
    grey = np.where(X > 0, 200, 20).astype(np.uint8).reshape(-1, 10, 12)
    np.savez(learned, images=grey, labels=np.repeat(np.arange(6), 25))
    damaged = np.where(flip(patterns, 0.2, rng(5)) > 0, 200, 20).astype(np.uint8)
    np.savez(cues, images=damaged.reshape(-1, 10, 12), labels=np.arange(6))
    return learned, cues


def test_commands_complete_a_persons_pictures(tmp_path: Path) -> None:
    learned, cues = pictures(tmp_path)
    out = tmp_path / "completed.npz"
    result = use("retrieve", learned, cues, out, "--threshold", 127)
    assert result.exit_code == 0, result.output
    with np.load(out) as written:
        assert written["images"].shape == (6, 1, 10, 12)
        assert written["classes"].tolist() == list(range(6))
        patterns = archetypes_and_examples()[0]
        agreement = np.where(written["images"].reshape(6, 120) > 0, 1, -1) * patterns
        assert agreement.mean() > 0.9
    shown = use("compare", learned, "--threshold", 127)
    assert shown.exit_code == 0 and "pseudo-inverse" in shown.output, shown.output
    other = tmp_path / "other.npz"
    np.savez(other, images=np.zeros((2, 5, 5), np.uint8))
    refused = use("retrieve", learned, other, out)
    assert isinstance(refused.exception, DataError)
    assert "other.npz" in str(refused.exception) and "(1, 10, 12)" in str(refused.exception)


def test_commands_plan_a_memory(tmp_path: Path) -> None:
    table = tmp_path / "diagram.csv"
    result = use("phase-diagram", "--loads", 3, "--temperatures", 2, "--out", table)
    assert result.exit_code == 0, result.output
    assert len(pd.read_csv(table)) == 6 and "retrieval" in table.read_text()
    shown = use("examples-needed", "--quality", 0.5)
    assert shown.exit_code == 0 and str(dense_examples_needed(0.5, 4, 0.95)) in shown.output
