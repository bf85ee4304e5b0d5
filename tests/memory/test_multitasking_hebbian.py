"""Numbers of multitasking Hebbian networks: closed forms, brute force, published states."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import erf

from peira import Run
from peira.data import DataError
from peira.engine.catalogue import paper
from peira.memory.multitasking_hebbian import baselines, use
from peira.memory.multitasking_hebbian.files import read_rows
from peira.memory.multitasking_hebbian.loss import parallel_loss, squared_errors
from peira.memory.multitasking_hebbian.network import MultitaskingHebbian, pattern_energy
from peira.memory.multitasking_hebbian.patterns import (
    dataset_entropy,
    fill_blanks,
    ladder_spins,
    mean_examples,
    mixed_spins,
    noisy_examples,
    ternary_patterns,
)
from peira.memory.multitasking_hebbian.pictures import paste, quadrants
from peira.memory.multitasking_hebbian.study import Cell, Study, couple, draw_patterns
from peira.memory.multitasking_hebbian.theory import (
    Theory,
    critical_dilution,
    examples_needed,
    ladder_overlaps,
    name_of,
    one_step_overlaps,
    parallel_overlap,
    regime,
    still_followed,
)
from peira.memory.spins import heat_bath


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_patterns_have_the_asked_blanks_and_fair_signs(rng: np.random.Generator) -> None:
    drawn = ternary_patterns(4, 50_000, 0.3, rng)
    assert (drawn == 0).mean(axis=1) == pytest.approx(0.3, abs=0.01)
    assert drawn.mean(axis=1) == pytest.approx(0, abs=0.02)
    exact = ternary_patterns(4, 1001, 0.3, rng, exact=True)
    assert (exact == 0).sum(axis=1).tolist() == [300] * 4
    with pytest.raises(ValueError, match=r"dilution is 1; expected a share of blanks in \[0, 1\)"):
        ternary_patterns(2, 10, 1.0, rng)


def test_ladder_and_mixture_of_a_few_spins(rng: np.random.Generator) -> None:
    patterns = np.array([[1, 0, 0, -1, 0], [-1, -1, 0, 1, 0], [-1, 1, 1, 1, 0]])
    assert ladder_spins(patterns, rng)[:4].tolist() == [1, -1, 1, -1]
    assert mixed_spins(patterns, rng)[[0, 2, 3]].tolist() == [-1, 1, 1]
    coins = {ladder_spins(patterns, rng)[4] for _ in range(50)}
    assert coins == {-1, 1}


def test_means_of_examples_have_the_moments_of_examples(rng: np.random.Generator) -> None:
    xi = ternary_patterns(2, 40_000, 0.4, rng)
    seen = noisy_examples(xi, 0.3, 7, rng)
    for means in (seen.mean(axis=1), mean_examples(xi, 0.3, 7, rng)):
        present = xi != 0
        assert not means[~present].any()
        assert (means * xi)[present].mean() == pytest.approx(0.3, abs=0.01)
        # Also by the definition of rho.
        power = 0.3**2 * (1 + dataset_entropy(0.3, 7))
        assert (means**2)[present].mean() == pytest.approx(power, rel=0.02)
    with pytest.raises(ValueError, match="quality r is 0"):
        noisy_examples(xi, 0.0, 7, rng)


@pytest.mark.parametrize(("k", "published"), [(3, 0.6180), (4, 0.5437), (5, 0.5188), (8, 0.5020)])
def test_critical_dilutions(k: int, published: float) -> None:
    assert critical_dilution(k) == pytest.approx(published, abs=6e-5)
    # Where the first pattern's field no longer exceeds the others together.
    ladder = ladder_overlaps(k, critical_dilution(k))
    assert ladder[0] == pytest.approx(ladder[1:].sum())


def test_two_patterns_are_always_stable() -> None:
    assert critical_dilution(2) == 1.0


def test_parallel_overlaps_at_zero_temperature() -> None:
    published = {0.1: 0.4545, 0.25: 0.3984, 0.5: 0.3125, 0.6: 0.272, 0.7: 0.2235, 0.8: 0.164,
                 0.9: 0.0905}  # fmt: skip
    for d, m in published.items():
        assert parallel_overlap(3, d) == pytest.approx(m, abs=6e-5)


@pytest.mark.parametrize(
    ("d", "temperature", "published"),
    [
        (0.6, 0.05, (0.368, 0.272, 0.176)),
        (0.7, 0.05, (0.286, 0.223, 0.161)),
        (0.8, 0.05, (0.196, 0.164, 0.132)),
        (0.9, 0.05, (0.099, 0.091, 0.082)),
        (0.5, 0.5, (0.468, 0.155, 0.0)),
        (0.7, 0.5, (0.204, 0.204, 0.204)),
        (0.8, 0.5, (0.152, 0.152, 0.152)),
        (0.9, 0.5, (0.085, 0.085, 0.085)),
    ],
)
def test_states_below_the_ladder(d: float, temperature: float, published: tuple[float]) -> None:
    theory = Theory(3, d, temperature)
    n = theory.solve(ladder_overlaps(3, d))
    assert theory.overlaps(n)[0] == pytest.approx(published, abs=6e-4)
    # Without examples' noise both order parameters are one.
    assert theory.overlaps(n)[0] == pytest.approx(n[0], abs=1e-9)


def test_five_patterns_in_parallel() -> None:
    assert regime(0.7, 5, 0.5).overlaps == pytest.approx([0.162] * 5, abs=6e-4)


def test_equations_with_noise_against_drawn_noise(rng: np.random.Generator) -> None:
    theory = Theory(3, 0.4, 0.3, entropy=0.5)
    n = theory.solve(ladder_overlaps(3, 0.4))
    xi = ternary_patterns(3, 400_000, 0.4, rng)
    # Each pattern has its own noise: the fields of the network itself, before any average.
    x = xi * (1 + math.sqrt(0.5) * rng.standard_normal(xi.shape))
    t = np.tanh(n[0] @ x / (0.3 * 0.6))
    assert (x * t).mean(axis=1) / 1.5 == pytest.approx(n[0], abs=0.004)
    assert (xi * t).mean(axis=1) == pytest.approx(theory.overlaps(n)[0], abs=0.004)
    curvature = (x * (1 - t**2)) @ x.T / x.shape[1] / (0.3 * 0.6 * 1.5)
    assert theory.instability(n)[0] == pytest.approx(np.linalg.eigvalsh(curvature)[-1], abs=0.01)


@pytest.mark.parametrize("entropy", [0.0, 0.3])
def test_solutions_are_stationary_points_of_the_free_energy(entropy: float) -> None:
    theory = Theory(3, 0.3, 0.4, entropy)
    n = theory.solve(np.array([[0.6, 0.3, 0.1], [0.3, 0.3, 0.3], [0.5, 0.0, 0.0]]))
    h = 1e-4
    for point in n:
        steps = h * np.eye(3)
        up, down = theory.free_energy(point + steps), theory.free_energy(point - steps)
        assert (up - down) / (2 * h) == pytest.approx([0, 0, 0], abs=2e-6)
        # The Hessian is (1+rho)/(1-d) (1 - linearised equations).
        corners = [
            [(point + a + b, point - a - b, point + a - b, point - a + b) for b in steps]
            for a in steps
        ]
        curve = [
            [theory.free_energy(np.stack(four)) @ [1, 1, -1, -1] / (4 * h * h) for four in row]
            for row in corners
        ]
        lowest = np.linalg.eigvalsh(curve)[0] * 0.7 / (1 + entropy)
        assert 1 - lowest == pytest.approx(theory.instability(point[None])[0], abs=1e-4)


@pytest.mark.parametrize(("d", "rho"), [(0.0, 0.0), (0.5, 0.0), (0.8, 1.0)])
def test_paramagnet_ends_at_temperature_one(d: float, rho: float) -> None:
    nothing = np.zeros((1, 3))
    assert Theory(3, d, 0.8, rho).instability(nothing)[0] == pytest.approx(1 / 0.8)
    assert regime(d, 3, 1.05, rho).name == "paramagnetic"
    assert regime(d, 3, 0.9, rho).name != "paramagnetic"


def test_pure_state_beats_the_mixture_below_two_thirds_near_the_critical_noise() -> None:
    assert regime(0.64, 3, 0.97).name == "pure"
    assert regime(0.69, 3, 0.97).name == "parallel"


def test_regimes_and_their_names() -> None:
    cold = regime(0.25, 3, 0.05)
    assert cold.name == "hierarchical"
    # The third pattern's share of the field, d^2, is no larger than T: m = m_0 tanh(m / ((1-d) T)).
    assert cold.overlaps[:2] == pytest.approx(ladder_overlaps(3, 0.25)[:2], abs=1e-3)
    third = cold.overlaps[2]
    assert third == pytest.approx(0.75 * 0.25**2 * np.tanh(third / (0.75 * 0.05)), rel=2e-3)
    coldest = regime(0.25, 3, 0.005)
    assert coldest.overlaps == pytest.approx(ladder_overlaps(3, 0.25), abs=1e-6)
    assert cold.stable
    assert any(state.name == "pure" and not state.stable for state in cold.others)
    assert all(s.free_energy > cold.free_energy for s in cold.others if s.stable)
    assert regime(0.0, 3, 0.3).name == "pure"
    assert regime(0.8, 3, 0.5).name == "parallel"
    assert name_of(np.array([0.3, -0.3, 0.0])) == "parallel"
    assert name_of(np.array([0.5, 0.2, 0.0])) == "hierarchical"


def test_steep_noise_is_integrated_to_its_limit() -> None:
    # One pattern, T -> 0: the sign of 1 + sqrt(rho) z.
    for rho in (0.2, 0.5, 1.0):
        theory = Theory(1, 0.3, 0.01, rho)
        m = theory.overlaps(theory.solve(np.array([[0.7]])))[0, 0] / 0.7
        assert m == pytest.approx(erf(1 / math.sqrt(2 * rho)), abs=2e-3)


def test_signal_to_noise() -> None:
    assert one_step_overlaps(1, 0.3, 0.5)[0] == pytest.approx(0.7 * erf(1.0))
    d = critical_dilution(4)
    below, above = (one_step_overlaps(4, d + side)[0] for side in (-0.01, 0.01))
    assert below == pytest.approx(1 - d + 0.01, abs=1e-9)
    # Sites where all three others oppose: (1-d)^4 / 8 of all, each costing 2.
    assert above == pytest.approx((1 - d - 0.01) * (1 - (1 - d - 0.01) ** 3 / 4), abs=1e-9)


def test_examples_needed_go_as_one_over_r_squared() -> None:
    few, many = (examples_needed(r, 0.25) for r in (0.2, 0.02))
    assert many / few == pytest.approx(100, rel=0.05)
    enough = [one_step_overlaps(3, 0.25, dataset_entropy(0.2, m))[0] / 0.75 for m in (few - 1, few)]
    assert enough[0] < 0.95 <= enough[1]
    # erf(x) = 0.95 at x = 1.386: rho = 0.2603.
    assert examples_needed(0.1, 0.25, patterns=1) == math.ceil(99 / 0.2603)
    assert examples_needed(1.0, 0.25) == 1
    with pytest.raises(ValueError, match=r"first of 5 patterns stays 0\.\d+ right"):
        examples_needed(0.2, 0.6, patterns=5, target=0.999)


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="temperature is 0; expected more than 0"):
        regime(0.5, 3, 0.0)
    with pytest.raises(ValueError, match="patterns is 0"):
        Theory(0, 0.5, 1.0)
    with pytest.raises(ValueError, match="entropy is -1"):
        Theory(2, 0.5, 1.0, -1)


def test_followed_overlaps_stop_at_the_first_wrong_one() -> None:
    right = ladder_overlaps(5, 0.4)
    assert still_followed(right, 0.4) == 5
    right[2] *= 1.6
    assert still_followed(right, 0.4) == 2
    assert still_followed(-right, 0.4) == 0


def test_energies_are_the_published_ones(rng: np.random.Generator) -> None:
    k, m, n, d, r = 3, 5, 24, 0.25, 0.6
    rho = dataset_entropy(r, m)
    xi = ternary_patterns(k, n, d, rng)
    seen = noisy_examples(xi, r, m, rng)
    states = fill_blanks(np.zeros((9, n)), rng)
    power = r**2 * (1 + rho)
    supervised = pattern_energy(seen.mean(axis=1), d, power).energy(states)
    unsupervised = pattern_energy(seen.reshape(-1, n), d, power, m).energy(states)
    signal = np.einsum("kai,si->sk", seen, states) / (r * n * m)
    theirs = -n / (2 * (1 - d) * (1 + rho)) * (signal**2).sum(axis=1)
    each = np.einsum("kai,si->ska", seen, states)
    theirs_each = -(each**2).sum(axis=(1, 2)) / (2 * n * m * r**2 * (1 - d) * (1 + rho))
    # Self terms are constant: differences between states are the published ones.
    assert supervised - supervised[0] == pytest.approx(theirs - theirs[0], rel=1e-5, abs=1e-5)
    assert unsupervised - unsupervised[0] == pytest.approx(theirs_each - theirs_each[0], rel=1e-9)


def test_heat_bath_has_the_boltzmann_averages(rng: np.random.Generator) -> None:
    xi = ternary_patterns(2, 8, 0.3, rng)
    energy = pattern_energy(xi, 0.3, 1.0)
    every = np.array(list(product((-1, 1), repeat=8)))
    weight = np.exp(-energy.energy(every) / 0.7)
    exact = weight @ (every @ xi.T / 8) ** 2 / weight.sum()
    trace = heat_bath(energy, fill_blanks(np.zeros((50, 8)), rng), 1 / 0.7, 2000, rng, xi)
    assert (trace.overlaps[20:] ** 2).mean(axis=(0, 1)) == pytest.approx(exact, abs=0.01)


def test_loss_is_affine_in_the_energy(rng: np.random.Generator) -> None:
    d, n = 0.4, 500
    xi = ternary_patterns(3, n, d, rng, exact=True)
    states = fill_blanks(np.zeros((20, n)), rng)
    m = states @ xi.T.astype(float) / n
    plus, minus = squared_errors(states, xi)
    assert plus == pytest.approx((2 - d) + 2 * m)
    assert m**2 == pytest.approx(((2 - d) ** 2 - plus * minus) / 4)
    whole = -n / (2 * (1 - d)) * (m**2).sum(axis=1)
    from_loss = n * (parallel_loss(states, xi) - 3 * (2 - d) ** 2) / (8 * (1 - d))
    assert from_loss == pytest.approx(whole)
    energies = pattern_energy(xi, d, 1.0).energy(states)
    assert energies - energies[0] == pytest.approx(whole - whole[0])


def test_baselines_have_the_couplings_they_name(rng: np.random.Generator) -> None:
    n = 30
    xi = ternary_patterns(3, n, 0.3, rng)
    states = fill_blanks(np.zeros((4, n)), rng).astype(float)

    def fields(couplings: np.ndarray) -> np.ndarray:
        return states @ (couplings - np.diag(np.diag(couplings)))

    inverse = xi.T @ np.linalg.inv(xi @ xi.T.astype(float) / n) @ xi / n
    ours = baselines.pseudo_inverse(xi).fields(states)
    assert ours == pytest.approx(fields(inverse), abs=1e-5)
    whole = ternary_patterns(3, n, 0.0, rng).astype(float)
    uncut = baselines.diluted_links(whole, 0.0, rng).fields(states)
    assert uncut == pytest.approx(fields(whole.T @ whole / n), abs=1e-4)
    assert baselines.hopfield(whole, rng).fields(states) == pytest.approx(uncut, abs=1e-4)
    # Couplings that are cut are exactly absent: flipping one spin changes only the others' fields.
    cut = baselines.diluted_links(whole, 0.5, rng)
    turned = states[:1] * np.where(np.arange(n) == 0, -1, 1)
    found = (cut.fields(states[:1]) - cut.fields(turned))[0] / (2 * states[0, 0])
    ratio = found[1:] / ((whole.T @ whole)[0, 1:] / n)
    assert set(ratio.round(2)) == {0.0, 2.0}
    with pytest.raises(ValueError, match="linearly independent"):
        baselines.pseudo_inverse(np.stack([xi[0], xi[0]]))


@pytest.fixture
def lesson(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Archetypes, examples (rows) and labels: K = 3, N = 3000, d = 0.25, r = 0.5, M = 40."""
    xi = ternary_patterns(3, 3000, 0.25, rng)
    return xi, noisy_examples(xi, 0.5, 40, rng).reshape(120, -1), np.repeat(["a", "b", "c"], 40)


@pytest.mark.parametrize("mode", ["supervised", "unsupervised"])
def test_networks_learn_what_they_cannot_see(
    lesson: tuple[np.ndarray, np.ndarray, np.ndarray], mode: str, rng: np.random.Generator
) -> None:
    xi, rows, labels = lesson
    network = MultitaskingHebbian(beta=20, mode=mode, random_state=1).fit(rows, labels)
    assert network.count_ == 3
    assert network.examples_ == 40
    assert network.dilution_ == pytest.approx(0.25, abs=0.01)
    assert network.quality_ == pytest.approx(0.5, abs=0.02)
    assert network.entropy_ == pytest.approx(0.075, rel=0.1)
    # The top of the couplings' spectrum is where the paramagnet ends: T = 1.
    power = 0.25 * 1.075
    kinds = {"supervised": rows.reshape(3, 40, -1).mean(axis=1), "unsupervised": rows}
    published = pattern_energy(kinds[mode], 0.25, power, 1 if mode == "supervised" else 40)
    state = ladder_spins(xi, rng)[None]
    ours, theirs = network.energy_.energy(state), published.energy(state)
    assert ours == pytest.approx(theirs, rel=0.05)
    answer = network.recall(xi[:1], archetypes=xi)
    assert answer.regimes == ("hierarchical",)
    # The cue names the first pattern; which of the others comes second is drawn.
    sizes = -np.sort(-np.abs(answer.overlaps[0]))
    assert sizes == pytest.approx([0.74, 0.19, 0.047], abs=0.04)
    again = MultitaskingHebbian(20, mode, 1).restore(network.learned())
    assert (again.recall(xi[:1]).states == answer.states).all()


def test_stored_patterns_are_recalled_together(rng: np.random.Generator) -> None:
    xi = ternary_patterns(3, 4000, 0.8, rng).astype(float)
    xi[xi == 0] = np.nan
    network = MultitaskingHebbian(beta=2, mode="storing", random_state=0).fit(xi)
    assert (network.quality_, network.entropy_, network.count_) == (1.0, 0.0, 3)
    answer = network.recall(np.zeros(4000), sweeps=200)
    assert answer.regimes == ("parallel",)
    assert np.abs(answer.overlaps[0]).mean() == pytest.approx(0.152, abs=0.02)
    assert answer.energies[-1, 0] < answer.energies[0, 0]


def test_missing_entries_of_single_examples(rng: np.random.Generator) -> None:
    xi = ternary_patterns(2, 4000, 0.5, rng)
    rows = noisy_examples(xi, 0.6, 30, rng).reshape(60, -1)
    rows = np.where(rng.random(rows.shape) < 0.2, 0, rows)
    network = MultitaskingHebbian().fit(rows, np.repeat([0, 1], 30))
    assert network.dilution_ == pytest.approx(0.5, abs=0.02)
    # An entry that is missing in a fifth of the examples counts as 0 there.
    assert network.quality_ == pytest.approx(0.8 * 0.6, abs=0.02)


def test_what_a_network_refuses(rng: np.random.Generator) -> None:
    rows = np.array([[1, 0, -1], [1, 1, 0]])
    with pytest.raises(ValueError, match=r"examples, row 2, column 1: got 2; expected -1, 1, or 0"):
        MultitaskingHebbian(mode="storing").fit([[1, 0, -1], [2, 1, 0]])
    with pytest.raises(ValueError, match="row 2: all blank"):
        MultitaskingHebbian(mode="storing").fit([[1.0, 1.0], [np.nan, 0.0]])
    with pytest.raises(ValueError, match="needs a label"):
        MultitaskingHebbian().fit(rows)
    with pytest.raises(ValueError, match=r"labels have shape \(3,\)"):
        MultitaskingHebbian().fit(rows, ["a", "b", "c"])
    with pytest.raises(ValueError, match="beta is 0"):
        MultitaskingHebbian(beta=0).fit(rows, ["a", "b"])
    with pytest.raises(ValueError, match="mode is 'teacher'"):
        MultitaskingHebbian(mode="teacher").fit(rows)
    coins = fill_blanks(np.zeros((40, 500)), rng)
    with pytest.raises(ValueError, match=r"no pattern in common \(r estimated <= 0\)"):
        MultitaskingHebbian(mode="unsupervised").fit(coins)
    opposed = np.tile([[1, -1, 1, -1], [-1, 1, -1, 1]], (3, 1))
    with pytest.raises(ValueError, match="agree no more than chance"):
        MultitaskingHebbian().fit(opposed, [0] * 6)
    with pytest.raises(ValueError, match="call fit"):
        MultitaskingHebbian().recall(rows)
    network = MultitaskingHebbian(mode="storing").fit(ternary_patterns(2, 50, 0.2, rng))
    with pytest.raises(ValueError, match="cues have 3 entries; expected 50"):
        network.recall(rows)
    with pytest.raises(ValueError, match="sweeps is 1"):
        network.recall(np.zeros(50), sweeps=1)


def test_what_a_network_remarks_on(rng: np.random.Generator) -> None:
    with pytest.warns(UserWarning, match="8 patterns are more than log N = 4.6 at dilution"):
        MultitaskingHebbian(mode="storing").fit(ternary_patterns(8, 100, 0.1, rng))
    uneven = np.concatenate([ternary_patterns(1, 400, d, rng) for d in (0.2, 0.7)])
    with pytest.warns(UserWarning, match=r"patterns have 0\.\d+ to 0\.\d+ blanks"):
        MultitaskingHebbian(mode="storing").fit(uneven)
    with pytest.warns(UserWarning, match="one example of each pattern"):
        MultitaskingHebbian().fit(ternary_patterns(2, 400, 0.5, rng), ["a", "b"])


def test_pictures_are_blank_outside_their_windows(rng: np.random.Generator) -> None:
    images = rng.integers(0, 17, (3, 8, 8))
    pasted = paste(images, 12, 7, rng)
    assert pasted.shape == (3, 144)
    assert (pasted != 0).sum(axis=1).tolist() == [64] * 3
    assert (pasted > 0).sum(axis=1).tolist() == (images > 7).sum(axis=(1, 2)).tolist()
    parts = quadrants(images[0], 7)
    assert (parts != 0).sum(axis=1).tolist() == [16] * 4
    assert (parts.sum(axis=0) == np.where(images[0] > 7, 1, -1).ravel()).all()
    with pytest.raises(DataError, match="canvas too small; got 7; expected a side of 8"):
        paste(images, 7, 7, rng)


def test_both_rules_of_one_seed_see_the_same_examples() -> None:
    cell = Cell(part="teacher", spins=60, quality=0.4, examples=6)
    drawn = np.random.default_rng(3)
    xi = ternary_patterns(3, 60, 0.25, drawn)
    seen = noisy_examples(xi, 0.4, 6, drawn)
    power = 0.4**2 * (1 + dataset_entropy(0.4, 6))
    expected = {
        "supervised": pattern_energy(seen.mean(axis=1), 0.25, power),
        "unsupervised": pattern_energy(seen.reshape(18, 60), 0.25, power, 6),
    }
    states = fill_blanks(np.zeros((3, 60)), drawn)
    for rule, energy in expected.items():
        rng = np.random.default_rng(3)
        one = cell.changed({"rule": rule})
        found = couple(one, draw_patterns(one, rng), rng).fields(states)
        assert found == pytest.approx(energy.fields(states))


def test_one_seed_of_the_study_at_the_published_size() -> None:
    study = paper("multitasking-hebbian").study()
    assert isinstance(study, Study)
    found = study.measure(Cell(), Run(11))
    assert [found[f"m_{k}"] for k in (1, 2, 3)] == pytest.approx([0.75, 0.1875, 0.0469], abs=0.03)
    warm = Cell(dilution=0.8, temperature=0.5, start="random", rounds=12)
    assert study.measure(warm, Run(11))["balance"] > 0.6
    dense = study.measure(Cell(dilution=0.0), Run(11))
    assert dense["m_1"] == pytest.approx(1, abs=1e-3)
    assert dense["second"] < 0.03


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, net, out = tmp_path / "rows.csv", tmp_path / "net.npz", tmp_path / "states.csv"
    use.simulate(rows, spins=400, examples=30)
    use.learn(rows, net)
    said = capsys.readouterr().out
    assert "theory: hierarchical" in said
    assert "quality r" in said
    use.recall(net, rows, out, sweeps=10)
    said = capsys.readouterr().out
    assert "hierarchical" in said
    assert "p1: +0.7" in said
    states = pd.read_csv(out)
    assert states.shape == (90, 400)
    assert set(np.unique(states)) == {-1, 1}
    use.learn(rows, net, mode="unsupervised")
    use.recall(net, rows, out, sweeps=4)
    assert "p1" in capsys.readouterr().out
    use.regime(0.8, temperature=0.5)
    assert "theory: parallel" in capsys.readouterr().out
    use.examples_needed(0.2, 0.25)
    assert capsys.readouterr().out.startswith(f"{examples_needed(0.2, 0.25)} examples")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("label,a,b\nx,1,\ny,-1,0\n")
    rows, labels, names = read_rows(table, "label", labelled=True)
    assert np.isnan(rows[0, 1])
    assert rows[1].tolist() == [-1, 0]
    assert (list(labels), names) == (["x", "y"], ["a", "b"])
    table.write_text("label,a,b\nx,1,\ny,-1,3\n")
    with pytest.raises(DataError, match=r"row 3, column 'b': wrong entry; got 3.0; expected -1, 1"):
        read_rows(table, "label")
    table.write_text("label,a,b\nx,1,\ny,-1,no\n")
    with pytest.raises(DataError, match=r"row 3, column 'b': wrong value; got 'no'"):
        read_rows(table, "label")
    table.write_text("label,a,b\nx,0,\ny,-1,1\n")
    with pytest.raises(DataError, match=r"row 2: all blank"):
        read_rows(table, "label")
    with pytest.raises(DataError, match="no column 'kind'"):
        read_rows(table, "kind", labelled=True)
    arrays = tmp_path / "rows.npz"
    np.savez(arrays, x=np.array([[1.0, np.nan], [-1, 1]]), y=np.array([0, 1]))
    rows, labels, _ = read_rows(arrays, "y", labelled=True)
    assert rows.shape == (2, 2)
    assert list(labels) == [0, 1]
    np.savez(arrays, z=np.ones(3))
    table.write_text("label,a,b\nx,1,\ny,-1,1\n")
    with pytest.raises(DataError, match="no rows; got"):
        read_rows(arrays, "y")
    with pytest.raises(DataError, match="no such temperature; got -1"):
        use.learn(table, tmp_path / "net.npz", temperature=-1)
