"""Critical periods: equations against SciPy and networks, gradients against autograd, bad input."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import fractional_matrix_power, subspace_angles

from peira.data.errors import DataError
from peira.dynamics.critical_periods import (
    completion,
    deficits,
    digits,
    matrices,
    pathways,
    reduced,
    scan,
    spectrum,
    study,
    use,
)
from peira.dynamics.critical_periods.deficits import DeficitSchedule
from peira.engine.catalogue import paper
from peira.engine.errors import PeiraError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def solved_by_scipy(s, depth, k0, gate, end, init):
    """Strengths at `end` by an adaptive solver, piece by piece between changes of the gate."""

    def f(x):
        return np.abs(x) ** (depth - 1) if init == "small" else (x**2 + 1) ** ((depth - 1) / 2)

    state = reduced.layer_strength(np.array(k0), depth, init)
    marks = [0.0, *sorted(gate), end]
    for start, stop in pairwise(marks):
        gated = gate[0] <= start < gate[1]

        def rhs(_, y, gated=gated):
            left = s - (f(y) * y).sum()
            return f(y) * left * np.array([1.0, not gated])

        if stop > start:
            state = solve_ivp(rhs, (start, stop), state, rtol=1e-11, atol=1e-13).y[:, -1]
    return f(state) * state


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("init", "k0"), [("small", (0.02, 0.01)), ("large", (-0.03, 0.01))])
def test_the_sweep_solves_the_equation_as_scipy_does(depth, init, k0) -> None:
    dt, gate = 0.0005, (0.1, 0.25)
    deficit = DeficitSchedule(start=200, length=300)
    ours = reduced.pathway_dynamics(
        [3.0, 1.5], [depth], [k0] * 2, [deficit], dt, 1200, init, "rk4", every=1200
    )
    for mode, s in enumerate((3.0, 1.5)):
        theirs = solved_by_scipy(s, depth, k0, gate, 0.6, init)
        np.testing.assert_allclose(ours.k[0, 0, mode, :, -1], theirs, rtol=2e-7)


def test_ratios_of_the_card_s_table() -> None:
    """S = √15, k0 = 0.01, 150 steps of deficit, 3,000 of 0.01: measured before by other code."""
    conditions = [DeficitSchedule(start=onset) for onset in (0, 50, 100, 150)]
    ratio = reduced.pathway_dynamics([15**0.5], (2, 3, 4), deficits=conditions, steps=3000).ratio
    expected = [[0.003] * 3, [0.105, 0.013, 0.007], [0.857, 0.261, 0.043], [0.997, 0.998, 0.991]]
    np.testing.assert_allclose(ratio[:, :, 0], expected, atol=6e-4)


def test_euler_is_the_loop_over_steps() -> None:
    """One trajectory step by step, as a person would write it; a gate from step 5 to 8."""
    p, q, s, dt = 0.01 ** (1 / 3), 0.02 ** (1 / 3), 2.0, 0.05
    expected = [(p**3, q**3)]
    for step in range(60):
        left = s - p**3 - q**3
        p, q = p + dt * p**2 * left, q + (0 if 5 <= step < 9 else dt * q**2 * left)
        expected.append((p**3, q**3))
    k = reduced.pathway_dynamics(
        [s], [3], [[0.01, 0.02]], [DeficitSchedule(start=5, length=4)], dt, 60
    ).k[0, 0, 0]
    np.testing.assert_allclose(k.T, expected, rtol=1e-12)


@pytest.mark.parametrize("init", ["small", "large"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 13])
def test_the_race_conserves_its_quantity_outside_the_deficit_only(depth, init) -> None:
    k = reduced.pathway_dynamics(
        [2.0], [depth], [[0.3, 0.2]], [DeficitSchedule(start=0, length=50)], 1e-3, 600, init, "rk4"
    ).k[0, 0, 0]
    during, after, later = (
        float(reduced.conserved(k[0, at], k[1, at], depth, init)) for at in (0, 50, 600)
    )
    assert later == pytest.approx(after, rel=1e-9)
    assert abs(after - during) > 1e-3


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
def test_the_end_is_known_when_the_deficit_ends(depth) -> None:
    solved = reduced.pathway_dynamics(
        [3.0, 1.0], [depth], 0.05, [DeficitSchedule(start=40, length=100)], 0.01, 6000,
        method="rk4", every=20,
    )  # fmt: skip
    k = solved.k[0, 0]
    at = int(np.searchsorted(solved.times, 140))
    predicted = reduced.lasting_strengths(k[:, 0, at], k[:, 1, at], np.array([3.0, 1.0]), depth)
    np.testing.assert_allclose(predicted, k[:, :, -1], rtol=1e-6)
    # Above S the strengths fall back to it.
    high = reduced.lasting_strengths(2.0, 1.5, 3.0, depth)
    assert high.sum() == pytest.approx(3.0)


def test_strengths_of_layers_and_pathways_invert_each_other() -> None:
    k = np.array([-4.0, -0.01, 0.0, 1e-4, 0.3, 7.0])
    for depth in (1, 2, 3, 5, 13):
        for init in ("small", "large"):
            p = reduced.layer_strength(k, depth, init)
            np.testing.assert_allclose(reduced.strength(p, depth, init), k, rtol=1e-9, atol=1e-15)


def test_the_hierarchy_has_the_published_singular_values() -> None:
    task = pathways.hierarchy()
    assert task.targets.shape == (15, 8)
    np.testing.assert_allclose(task.modes[1] ** 2, [15, 7, 3, 3, 1, 1, 1, 1])
    assert task.targets.sum(axis=1).tolist() == [8, 4, 4, 2, 2, 2, 2, *[1] * 8]
    with pytest.raises(DataError, match=r"items of the hierarchy; got 6; expected 2, 4, 8"):
        pathways.hierarchy(6)


CONDITIONS = [
    None,
    DeficitSchedule(start=100),
    (DeficitSchedule(length=200), DeficitSchedule("gate_mode", 0, 600, mode=1)),
    DeficitSchedule("gate_mode", 50, 100, mode=5),
    DeficitSchedule(length=300, probability=0.9),
]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_equation_is_the_network(depth) -> None:
    """All modes, degenerate ones too, with every deficit that the equation has."""
    task = pathways.hierarchy()
    k0 = 0.01 * (1 + 0.1 * rng().standard_normal(8))
    network = pathways.balanced_pathways(task, depth, 20, k0, rng(1))
    np.testing.assert_allclose(
        pathways.initial_strengths(network, task), np.stack([k0, k0], 1), rtol=1e-9
    )
    trainer = pathways.PathwayTrainer(
        [network] * 5, task, CONDITIONS, 600, rngs=[rng(7) for _ in CONDITIONS]
    )
    found = []
    for step in range(600):
        trainer.step(step)
        found.append(trainer.strengths())
    solved = [
        reduced.pathway_dynamics(task.modes[1], [depth], k0, [one], steps=600, rng=rng(7))
        for one in CONDITIONS
    ]
    expected = np.stack([one.k[0, 0, :, :, 1:] for one in solved])
    np.testing.assert_allclose(np.stack(found, axis=-1), expected, atol=1e-11)


def test_the_network_comes_nearer_to_the_exact_solution_with_the_learning_rate() -> None:
    gaps = []
    for rate, steps in ((0.01, 300), (0.005, 600), (0.0025, 1200)):
        stepped, exact = (
            reduced.pathway_dynamics(
                [3.0], [3], 0.01, dt=rate, steps=steps, method=m, every=steps // 300
            ).k
            for m in ("euler", "rk4")
        )
        gaps.append(np.abs(stepped - exact).max())
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(2, rel=0.1)


def random_task(whole: bool = False) -> pathways.PathwayTask:
    draw = rng(3)
    x, blurred = draw.standard_normal((50, 7)), draw.standard_normal((50, 3))
    y, other = draw.standard_normal((2, 50, 4))
    views = (x[:, :4], x[:, 4:])
    return pathways.two_views(*views, y, blurred, other)


def torch_step(network, task, deficit, step, activation, rate):
    """The published step: detach gates, a mode leaves the response by its row and column."""
    act = {"linear": lambda x: x, "tanh": torch.tanh, "relu": torch.relu}[activation]
    on = deficit is not None and deficit.active(step)
    weights = [[torch.tensor(layer, requires_grad=True) for layer in path] for path in network]
    views = [torch.tensor(view) for view in task.views]
    y = torch.tensor(task.other_targets if on and deficit.kind == "task" else task.targets)
    if on and deficit.kind == "blur":
        views[1] = torch.tensor(task.blurred)
    outs = []
    for path, h in zip(weights, views, strict=True):
        for layer in path:
            h = act(layer @ h)
        outs.append(h)
    if on and deficit.kind == "gate_path":
        outs[1] = outs[1].detach()
    if on and deficit.kind == "gate_mode":
        u, _, zt = np.linalg.svd(task.targets)
        u, z = torch.tensor(u), torch.tensor(zt.T)
        k = u.T @ outs[0] @ z
        keep = torch.ones_like(k)
        keep[deficit.mode, :] = 0
        keep[:, deficit.mode] = 0
        outs[0] = u @ (k * keep) @ z.T
    (0.5 * (outs[0] + outs[1] - y).square().sum()).backward()
    return [
        [w.detach().numpy() - (0 if w.grad is None else rate * w.grad.numpy()) for w in path]
        for path in weights
    ]


@pytest.mark.parametrize("activation", ["linear", "tanh", "relu"])
def test_steps_are_autograd_s(activation) -> None:
    """Five networks with five deficits at once, each against torch."""
    task = random_task()
    conditions = [
        None,
        *(DeficitSchedule(kind, 0, 1) for kind in ("gate_path", "blur", "task")),
        DeficitSchedule("gate_mode", 0, 1, mode=2),
    ]
    networks = [pathways.gaussian_pathways(task, 3, 5, 1.0, rng(seed)) for seed in range(5)]
    trainer = pathways.PathwayTrainer(
        networks, task, conditions, 2, 0.3, later_rate=0.6, activation=activation
    )
    for step in range(2):
        trainer.step(step)
    for member, (network, deficit) in enumerate(zip(networks, conditions, strict=True)):
        rates = [0.3 if deficit else 0.6, 0.6]
        for step in range(2):
            network = torch_step(network, task, deficit, step, activation, rates[step])
        for path, ours in zip(network, trainer.weights, strict=True):
            for layer, mine in zip(path, ours, strict=True):
                np.testing.assert_allclose(mine[member], layer, atol=1e-12)


def test_a_compressed_task_trains_the_same_network() -> None:
    task = random_task()
    small = pathways.compress(task)
    assert small.targets.shape[1] == 10 < task.targets.shape[1] == 50
    network = pathways.gaussian_pathways(task, 2, 6, 0.5, rng(1))
    conditions = [DeficitSchedule(kind, 10, 20) for kind in ("gate_path", "blur", "task")]
    trainers = [
        pathways.PathwayTrainer([network] * 3, one, conditions, 100, 0.1) for one in (task, small)
    ]
    before = [trainer.loss() for trainer in trainers]
    for step in range(100):
        for trainer in trainers:
            trainer.step(step)
    for path, other in zip(*(trainer.weights for trainer in trainers), strict=True):
        for layer, same in zip(path, other, strict=True):
            np.testing.assert_allclose(layer, same, atol=1e-11)
    whole = digits.digit_views(rng(), whole=True).task
    # Both views and the blurred one lie in the span of the pixels that are ever used.
    rank = np.linalg.matrix_rank(whole.views[0])
    assert pathways.compress(whole).targets.shape[1] == rank <= 61
    drops = [was - trainer.loss() for was, trainer in zip(before, trainers, strict=True)]
    np.testing.assert_allclose(*drops, atol=1e-11)


def test_weights_for_which_the_equation_does_not_hold_are_warned_of() -> None:
    task = pathways.hierarchy()
    balanced = pathways.balanced_pathways(task, 3, 12, 0.01, rng())
    assert max(map(pathways.imbalance, balanced)) < 1e-12
    with pytest.warns(UserWarning) as seen:
        pathways.initial_strengths(pathways.gaussian_pathways(task, 3, 12, 0.1, rng()), task)
    assert "layers are not balanced" in str(seen[0].message)
    scaled = [[2 * path[0], *path[1:]] for path in balanced]
    with pytest.warns(UserWarning, match=r"differ by 1\d\d%"):
        pathways.initial_strengths(scaled, task)
    turned = np.linalg.qr(rng().standard_normal((15, 15)))[0]
    mixed = [[*path[:-1], turned @ path[-1]] for path in balanced]
    with pytest.warns(UserWarning, match="modes of the task mix"):
        pathways.initial_strengths(mixed, task)


def torch_completion(factors, target, mask, rate, steps):
    weights = [torch.tensor(layer, dtype=torch.float64, requires_grad=True) for layer in factors]
    optimizer = torch.optim.SGD(weights, lr=rate)
    for _ in range(steps):
        product = weights[0]
        for layer in weights[1:]:
            product = layer @ product
        loss = 0.5 * (product - torch.tensor(target))[torch.tensor(mask)].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [w.detach().numpy() for w in weights]


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("shape", [(6, 6), (7, 4), (4, 7)])
def test_completion_is_gradient_descent_of_the_published_loss(depth, shape) -> None:
    """Two members with matrices, masks and learning rates of their own."""
    draw = rng(2)
    factors = [
        completion.initial_factors(shape, depth, 0.1, rng=draw, dtype=float) for _ in range(2)
    ]
    targets = draw.standard_normal((2, *shape))
    masks = np.stack([completion.observe(shape, count, draw) for count in (12, 20)])
    trainer = completion.Completion(factors, targets, masks, (0.5, 0.2))
    for _ in range(30):
        trainer.step()
    for i, rate in enumerate((0.5, 0.2)):
        theirs = torch_completion(factors[i], targets[i], masks[i], rate, 30)
        for ours, layer in zip(trainer.members()[i], theirs, strict=True):
            np.testing.assert_allclose(ours, layer, atol=1e-12)
    observed = trainer.errors(targets, masks)
    difference = (trainer.product() - targets) ** 2
    assert observed[1] == pytest.approx(difference[1][masks[1]].mean())
    assert trainer.errors(targets)[0] == pytest.approx(difference[0].mean())


def test_branches_are_the_restarts_of_the_published_loop() -> None:
    first, second = (completion.low_rank_matrix(10, rank, rng(rank)) for rank in (4, 2))
    mask = completion.observe((10, 10), 60, rng(9))
    result = completion.matrix_transfer(
        first, second, mask, depth=3, pretrain_steps=(40, 0, 15), steps=50, rate=0.3,
        later_rate=0.5, init_scale=0.1, dtype=float,
    )  # fmt: skip
    start = completion.initial_factors((10, 10), 3, 0.1, rng=rng(0), dtype=float)
    for place, steps in enumerate((40, 0, 15)):
        factors = start
        if steps:
            factors = torch_completion(factors, first, mask, 0.3, steps)
        factors = torch_completion(factors, second, mask, 0.5, 50)
        product = factors[2] @ factors[1] @ factors[0]
        np.testing.assert_allclose(result.completed[place], product, atol=1e-10)
        assert result.test_loss[place] == pytest.approx(((product - second) ** 2).mean())
    assert result.damage[1] == 0
    assert result.curve.shape == (3, 51)
    assert result.steps[-1] == 50


def test_matrices_of_the_study() -> None:
    matrix = completion.low_rank_matrix(20, 3, rng())
    assert np.linalg.norm(matrix) == pytest.approx(20)
    assert np.linalg.matrix_rank(matrix) == 3
    assert completion.low_rank_matrix(20, 3, rng(), columns=9).shape == (20, 9)
    for angle in (0, 35, 90):
        second = completion.related_matrix(matrix, 2, angle, rng(1))
        assert np.linalg.matrix_rank(second) == 2
        assert np.linalg.norm(second) == pytest.approx(20)
        for one, two in ((matrix, second), (matrix.T, second.T)):
            left = np.linalg.svd(one)[0][:, :3], np.linalg.svd(two)[0][:, :2]
            np.testing.assert_allclose(np.degrees(subspace_angles(*left)), angle, atol=1e-4)


def test_initial_factors() -> None:
    gaussian = completion.initial_factors((50, 50), 3, 1e-3, rng=rng())
    assert [layer.std() for layer in gaussian] == pytest.approx([0.1 * 50**-0.5] * 3, rel=0.05)
    assert gaussian[0].dtype == np.float32
    orthogonal = completion.initial_factors((8, 8), 3, 0.01, "orthogonal", rng(), float)
    assert pathways.imbalance(orthogonal) < 1e-12
    product = orthogonal[2] @ orthogonal[1] @ orthogonal[0]
    np.testing.assert_allclose(product @ product.T, 0.01**2 * 8 * np.eye(8), atol=1e-15)
    identity = completion.initial_factors((5, 8), 2, 0.01, "identity", rng(), float)
    np.testing.assert_allclose(identity[1] @ identity[0], 0.01 * np.eye(5, 8), atol=1e-15)


def with_holes(rows: int = 12, columns: int = 9) -> tuple[np.ndarray, np.ndarray]:
    draw = rng(5)
    pair = [5 * completion.low_rank_matrix(rows, 2, draw, columns) for _ in range(2)]
    for matrix in pair:
        matrix[draw.random(matrix.shape) < 0.3] = np.nan
    return pair[0], pair[1]


def test_held_out_entries_are_not_trained_on() -> None:
    first, second = with_holes()
    settings = {"depth": 2, "pretrain_steps": (0, 50), "steps": 200, "seed": 1}
    result = completion.matrix_transfer(first, second, **settings)
    seen = ~np.isnan(second)
    kept = completion._keep_covered(seen, 0.1, rng(1))
    tested = seen & ~kept
    assert tested.sum() == round(0.1 * seen.sum())
    assert kept.any(axis=0).all()
    assert kept.any(axis=1).all()
    scale = np.sqrt(np.mean(second[kept] ** 2))
    by_hand = np.mean((result.completed[1] - second)[tested] ** 2) / scale**2
    assert result.test_loss[1] == pytest.approx(by_hand, rel=1e-5)
    changed = np.where(tested, 99.0, second)
    again = completion.matrix_transfer(first, changed, **settings)
    np.testing.assert_array_equal(again.completed, result.completed)
    assert again.test_loss[1] > 10 * result.test_loss[1]


def balanced_state(depth: int = 3, n: int = 6):
    draw = rng(4)
    weight = draw.standard_normal((n, n))
    return weight, draw.standard_normal((n, n)), np.linalg.svd(weight)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_singular_rates_are_the_derivative_of_the_decomposition(depth) -> None:
    weight, gradient, (u, s, vt) = balanced_state()
    rates = spectrum.singular_rates(u, s, vt.T, gradient, depth)
    flow = spectrum.end_to_end_rate(weight, gradient, depth)
    powers = sum(
        fractional_matrix_power(weight @ weight.T, (j - 1) / depth)
        @ gradient
        @ fractional_matrix_power(weight.T @ weight, (depth - j) / depth)
        for j in range(1, depth + 1)
    )
    np.testing.assert_allclose(flow, -powers.real, atol=1e-10)
    whole = rates.u @ np.diag(s) @ vt + u @ np.diag(rates.s) @ vt + u @ np.diag(s) @ rates.v.T
    np.testing.assert_allclose(whole, flow, atol=1e-10)
    assert rates.guarded == 0
    step = 1e-6
    ends = [np.linalg.svd(weight + sign * step * flow) for sign in (1, -1)]
    np.testing.assert_allclose((ends[0][1] - ends[1][1]) / (2 * step), rates.s, atol=1e-6)
    sides = [end[0] * np.sign((end[0] * u).sum(axis=0)) for end in ends]
    np.testing.assert_allclose((sides[0] - sides[1]) / (2 * step), rates.u, atol=1e-5)


def test_singular_rates_of_a_rectangle_leave_its_subspace() -> None:
    draw = rng(6)
    weight, gradient = draw.standard_normal((2, 7, 4))
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    rates = spectrum.singular_rates(u, s, vt.T, gradient, 3)
    whole = (rates.u * s) @ vt + (u * rates.s) @ vt + (u * s) @ rates.v.T
    np.testing.assert_allclose(whole, spectrum.end_to_end_rate(weight, gradient, 3), atol=1e-10)


def test_equal_singular_values_are_guarded() -> None:
    gradient = rng().standard_normal((5, 5))
    eye = np.eye(5)
    rates = spectrum.singular_rates(eye, np.full(5, 0.1), eye, gradient, 3)
    assert rates.guarded == 10
    assert np.abs(rates.u).max() == 0
    np.testing.assert_allclose(rates.s, -3 * 0.1 ** (4 / 3) * np.diag(gradient))
    # The matrix itself moves: all factors are 0.1^(1/3) times the identity.
    expected = -3 * 0.1 ** (4 / 3) * gradient
    np.testing.assert_allclose(spectrum.end_to_end_rate(0.1 * eye, gradient, 3), expected)
    mixed = spectrum.singular_rates(eye, np.array([2.0, 1, 1, 0, 0]), eye, gradient, 2)
    assert mixed.guarded == 2
    assert np.isfinite(mixed.u).all()


@pytest.mark.parametrize("start", ["orthogonal", "identity"])
def test_the_singular_flow_is_the_balanced_network(start) -> None:
    """Across a change of task, from equal singular values, nearer with a smaller rate."""
    tasks = [completion.low_rank_matrix(8, rank, rng(rank)) for rank in (3, 2)]
    mask = completion.observe((8, 8), 50, rng(1))
    factors = completion.initial_factors((8, 8), 3, 0.05, start, rng(2), float)
    gaps = []
    for rate, half in ((0.1, 200), (0.05, 400)):
        network = completion.Completion([factors], [tasks[0]], [mask], rate)
        found = []
        for step in range(2 * half):
            if step == half:
                network = completion.Completion(network.members(), [tasks[1]], [mask], rate)
            network.step()
            if (step + 1) % 50 == 0:
                found.append(np.linalg.svd(network.product()[0])[1])

        def gradient(w, step, half=half):
            return np.where(mask, w - tasks[step >= half], 0) / mask.sum()

        weight = factors[2] @ factors[1] @ factors[0]
        times, solved = spectrum.singular_flow(weight, gradient, 3, rate, 2 * half, every=50)
        assert times[-1] == 2 * half
        gaps.append(np.abs(np.array(found) - solved[1:]).max())
    assert gaps[0] < 0.02 * 8
    assert gaps[1] < 0.65 * gaps[0]


def made_up(deficit: DeficitSchedule | None, seed: int) -> float:
    """Damage 8, 8, 2, 0 at onsets 0, 10, 20, 30; seeds differ by a constant and a little."""
    if deficit is None:
        return 100.0 + seed
    damage = {0: 8, 10: 8, 20: 2, 30: 0}[deficit.start]
    return 100.0 + seed - damage * (1 + 0.01 * seed)


def test_a_scan_finds_the_window_and_its_end() -> None:
    found = scan.critical_period_scan(made_up, [30, 0, 10, 20], 5, seeds=4, steps=40)
    assert found.onsets == (0, 10, 20, 30)
    np.testing.assert_allclose(found.mean, np.array([8, 8, 2, 0]) * 1.015)
    assert found.window == (0, 10)
    # From 8 at step 10 to 2 at step 20: half of 8 at two thirds of the way.
    end, (low, high) = found.end
    assert [end, low, high] == pytest.approx([10 + 20 / 3] * 3)
    frame = found.frame()
    assert frame["critical"].tolist() == [True, True, False, False]
    assert (frame["low"] <= frame["damage"]).all()
    losses = scan.critical_period_scan(
        lambda deficit, seed: -made_up(deficit, seed), [0, 30], 5, higher_is_better=False
    )
    np.testing.assert_allclose(losses.mean, np.array([8, 0]) * 1.01)


def test_noise_has_no_critical_period() -> None:
    found = scan.critical_period_scan(
        lambda deficit, seed: float(rng(seed + 100 * (deficit.start if deficit else 7)).random()),
        [0, 1, 2], 5, seeds=4,
    )  # fmt: skip
    assert found.window == ()
    assert not found.certain


def test_a_scan_of_a_torch_model() -> None:
    """`gate` keeps the pathway's weights while it is on, its output still counts."""
    seen = []

    def train(deficit, seed):
        torch.manual_seed(seed)
        a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        optimizer = torch.optim.SGD([*a.parameters(), *b.parameters()], lr=0.1)
        x = torch.randn(16, 3)
        for step in range(20):
            out = b(x) if deficit is None else deficit.gate(b(x), step)
            before = b.weight.clone()
            loss = (a(x) + out - x[:, :2]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if deficit is not None:
                seen.append((deficit.active(step), bool((b.weight == before).all())))
        return -float(loss.detach())

    found = scan.critical_period_scan(train, [0, 10], 5, seeds=2, steps=20)
    assert found.damage.shape == (2, 2)
    assert all(active == still for active, still in seen)
    assert sum(active for active, _ in seen) == 20


def test_competition_over_the_same_view_is_what_costs_the_share() -> None:
    """Two pathways with one view lose an early race; with views of their own they do not."""
    draw = rng(1)
    x = draw.standard_normal((200, 6))
    y = x @ draw.standard_normal((6, 3))
    own = pathways.compress(pathways.two_views(x[:, :3], x[:, 3:], y))
    same = pathways.compress(pathways.two_views(x, x, y))
    ends = [
        scan.view_scan(one, [0, 1200], 300, depth=3, width=8, steps=1600, rate=0.02)
        for one in (own, same)
    ]
    assert ends[0].mean[0] < 0.02
    with pytest.warns(UserWarning, match=r"damage still fell by \d+% .* train longer"):
        scan.view_scan(own, [0], 300, depth=3, width=8, steps=400, rate=0.02)
    assert ends[1].mean[0] > 0.3
    assert abs(ends[1].mean[1]) < 0.02
    assert ends[1].window == (0,)


def test_schedules_say_what_is_wrong() -> None:
    for settings, message in (
        ({"length": -1}, r"length of a deficit; got -1; expected 0 or more"),
        ({"start": -3}, r"start of a deficit; got -3"),
        ({"kind": "gate-path"}, r"unknown deficit.*gate_path"),
        ({"mode": 2}, r"mode of a gate_path deficit; got 2"),
        ({"kind": "gate_mode"}, r"mode of a gate_mode deficit"),
        ({"probability": 0.0}, r"probability of a deficit; got 0.0"),
    ):
        with pytest.raises(DataError, match=message):
            DeficitSchedule(**settings)
    with pytest.raises(DataError, match=r"beyond the training.*90 to 240.*end by step 200"):
        DeficitSchedule(start=90).steps(200)
    with pytest.raises(DataError, match="give rng"):
        DeficitSchedule(probability=0.5).active(3)
    often = DeficitSchedule(length=4000, probability=0.9).steps(5000, rng())
    assert often[:4000].mean() == pytest.approx(0.9, abs=0.02)
    assert not often[4000:].any()
    assert DeficitSchedule("task", 2, 3).swap("usual", "other", 4) == "other"
    assert DeficitSchedule("task", 2, 3).swap("usual", "other", 5) == "usual"
    assert deficits.schedules(None) == ()


def test_methods_say_what_is_wrong() -> None:
    task = pathways.hierarchy()
    network = pathways.balanced_pathways(task, 2, 8, 0.01, rng())
    first, second = with_holes()
    empty = first.copy()
    empty[4] = np.nan
    mask = np.ones((12, 9), bool)
    mask[:, 2] = False
    full = np.nan_to_num(first)
    cases = [
        (lambda: reduced.pathway_dynamics([1.0], k0=0.0), r"k0 of small initial weights; got 0.0"),
        (lambda: reduced.pathway_dynamics([1.0], (0, 2)), r"depths; got \[0, 2\]"),
        (
            lambda: reduced.pathway_dynamics([1.0], deficits=[DeficitSchedule(start=900)]),
            r"beyond the training; got 'steps 900 to 1050'; expected to end by step 1000",
        ),
        (
            lambda: reduced.pathway_dynamics([1.0], deficits=[DeficitSchedule("blur")]),
            r"reduced equation has no such deficit; got 'blur'",
        ),
        (
            lambda: pathways.PathwayTrainer(
                [network], task, [DeficitSchedule("gate_mode", 0, 5, mode=8)], 10
            ),
            r"mode index of a deficit; got 8; expected 0 to 7",
        ),
        (
            lambda: pathways.PathwayTrainer([network], task, [DeficitSchedule("blur", 0, 5)], 10),
            r"this task has no such deficit; got 'blur'; expected gate_path, gate_mode",
        ),
        (
            lambda: pathways.PathwayTrainer([network], task, [None], 5, activation="gelu"),
            r"activation; got 'gelu'; expected linear, tanh, relu",
        ),
        (lambda: pathways.balanced_pathways(task, 3, 7), r"width; got 7; expected at least the 8"),
        (lambda: pathways.balanced_pathways(task, 3, 8, -1.0), r"k0 of balanced weights; got -1"),
        (
            lambda: completion.matrix_transfer(empty, second),
            r"first matrix has nothing observed in row 5",
        ),
        (
            lambda: completion.matrix_transfer(full, full, mask),
            r"mask has nothing observed in column 3",
        ),
        (lambda: completion.matrix_transfer(first, second[:5]), r"shape of the second matrix"),
        (
            lambda: completion.matrix_transfer(first, second, np.ones((12, 9))),
            "matrices with a mask must be complete",
        ),
        (
            lambda: completion.matrix_transfer(first, second, pretrain_steps=(-1, 5)),
            r"steps on the first matrix; got \(-1, 5\)",
        ),
        (lambda: completion.related_matrix(full, 2, 91, rng()), r"angle between the tasks; got 91"),
        (lambda: completion.low_rank_matrix(5, 6, rng()), r"rank; got 6; expected 1 to 5"),
        (lambda: scan.critical_period_scan(made_up, [], 5), "onsets"),
        (lambda: scan.critical_period_scan(made_up, [0, 0], 5), r"onsets; got \[0, 0\]"),
        (
            lambda: scan.critical_period_scan(made_up, [0, 30], 20, steps=40),
            r"beyond the training; got 'steps 30 to 50'",
        ),
    ]
    for call, message in cases:
        with pytest.raises(DataError, match=message):
            call()
    with pytest.raises(PeiraError, match=r"diverged: take a lower learning rate"):
        completion.matrix_transfer(first, second, rate=1e4, steps=200)
    with pytest.raises(PeiraError, match=r"onset 0, seed 0: score is nan"):
        scan.critical_period_scan(lambda d, _: float("nan") if d else 1.0, [0], 5)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_default_rate_is_a_tenth_over_the_largest_curvature(depth) -> None:
    """Hessian of the loss at the balanced solution of a matrix of rank 1, all entries seen."""
    target = completion.low_rank_matrix(4, 1, rng(), columns=5)
    u, s, vt = np.linalg.svd(target)
    root = s[0] ** (1 / depth)
    hidden = np.eye(4)[:, :1]
    ends = [vt[:1].T, *[hidden] * (depth - 1), u[:, :1]]
    weights = [torch.tensor(root * out @ into.T) for into, out in pairwise(ends)]

    def loss(flat):
        product = torch.eye(5, dtype=torch.float64)
        for layer, part in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
            product = part.view(layer.shape) @ product
        return 0.5 * (product - torch.tensor(target)).square().mean()

    flat = torch.cat([w.flatten() for w in weights])
    curvature = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1]
    assert loss(flat) < 1e-20
    assert completion.default_rate((4, 5), depth, 20) * curvature == pytest.approx(0.1)


def test_studies_matrices_share_what_they_do_not_vary() -> None:
    base = study.TRANSFER
    _, second, seen, later = study.matrices(base, 3)
    assert seen.sum() == later.sum() == 500
    other = study.matrices(base.changed({"rank": 10, "observed": 800}), 3)
    np.testing.assert_array_equal(second, other[1])
    assert (other[3] | seen == other[3]).all()
    assert np.linalg.matrix_rank(other[0]) == 10
    same = study.matrices(base.changed({"first_observed": 200, "observed": 400}), 3)
    np.testing.assert_array_equal(same[0], same[1])
    assert (same[2].sum(), same[3].sum()) == (200, 400)
    assert (same[2] & ~same[3]).sum() == 0


def test_damage_is_against_the_same_transfer_without_a_first_task() -> None:
    cells = [
        study.TRANSFER.changed({"depth": depth, "pretrain_steps": steps})
        for depth in (2, 3)
        for steps in (0, 8000)
    ]
    losses = [0.1, 0.4, 0.01, 0.5]
    table = pd.DataFrame(
        [
            {**cell.model_dump(), "seed": seed, "test_loss": loss + seed}
            for cell, loss in zip(cells, losses, strict=True)
            for seed in range(2)
        ]
    )
    damage = study.with_damage(table).groupby(["depth", "pretrain_steps"])["damage"].mean()
    np.testing.assert_allclose(damage, [0, 0.3, 0, 0.49])


@pytest.mark.parametrize("part", [None, "digits", "pathways", "transfer"])
def test_every_claim_has_a_verdict_whatever_was_run(part) -> None:
    metrics = {
        "digits": {"accuracy_b": 0.5},
        "pathways": {"ratio": 0.5, "norm_ratio": 0.5, "learned": 0.5, "ode_error": 0.0},
        "transfer": {},
    }
    cells = [cell for cell in study.small_cells() if cell.part == part]
    rows = [
        {**cell.model_dump(), "seed": 0, "test_loss": 1 / (place + 1), **metrics[cell.part]}
        for place, cell in enumerate(cells)
    ]
    judged = study.Study(paper("critical-periods").card)
    verdicts = list(judged.claims(pd.DataFrame(rows)))
    assert [verdict.claim for verdict in verdicts] == judged.card.ids()
    assert not any(verdict.verdict == "supported" for verdict in verdicts)


def test_digits_are_read_by_halves_or_whole() -> None:
    halves, whole = (digits.digit_views(rng(2), one) for one in (False, True))
    assert [view.shape for view in halves.task.views] == [(32, 1000)] * 2
    assert [view.shape for view in whole.task.views] == [(64, 1000)] * 2
    assert len(halves.test_labels) == 797
    # A half of a row of the whole: the same digit, the right columns.
    image = whole.task.views[1][:, 5].reshape(8, 8)
    np.testing.assert_allclose(halves.task.views[1][:, 5].reshape(8, 4), image[:, 4:])
    flat = digits.blur(np.full((2, 12), 3.0), (4, 3), 1.0)
    np.testing.assert_allclose(flat, 3.0)
    spike = np.zeros((1, 25))
    spike[0, 12] = 1
    spread = digits.blur(spike, (5, 5), 0.6)
    assert spread[0, 7] == pytest.approx(spread[0, 11]) and spread[0, 12] < 0.6
    with pytest.raises(DataError, match=r"blurred view; got '5x4'; expected 25 features"):
        digits.blur(spike, (5, 4), 1.0)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_matrices_are_read_with_their_holes(tmp_path) -> None:
    plain = write(tmp_path / "a.csv", "1,2,\n3,nan,-4e1\n")
    np.testing.assert_array_equal(matrices.read_matrix(plain), [[1, 2, np.nan], [3, np.nan, -40]])
    unseen = write(tmp_path / "u.csv", "1,2\n,\n3,4\n")
    assert np.isnan(matrices.read_matrix(unseen)[1]).all()
    named = write(tmp_path / "b.tsv", "x\ty\n1\t2\n\n3\t4\n")
    np.testing.assert_array_equal(matrices.read_matrix(named), [[1, 2], [3, 4]])
    np.save(tmp_path / "c.npy", np.eye(3))
    np.testing.assert_array_equal(matrices.read_matrix(tmp_path / "c.npy"), np.eye(3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3,x\n", r"a\.csv, row 2, column 2: wrong value; got 'x'; expected a number"),
        ("1,2\n3\n", r"row 2: row of another length; got 1; expected 2 cells"),
        ("1,2\n3,inf\n", r"row 2, column 2: wrong value; got 'inf'"),
        ("", r"a\.csv: no rows of numbers"),
        ("1,2\n", r"not a matrix; got \(1, 2\)"),
        ("1,2\n\n3,4\n,\n5\n", r"row 5: row of another length"),
    ],
)
def test_bad_matrices_are_named(tmp_path, text, message) -> None:
    with pytest.raises(DataError, match=message):
        matrices.read_matrix(write(tmp_path / "a.csv", text))


def test_bad_arrays_are_named(tmp_path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, None]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"not a readable \.npy"):
        matrices.read_matrix(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.array([[1, np.inf], [0, 1]]))
    with pytest.raises(DataError, match="row 1, column 2: infinite entry"):
        matrices.read_matrix(tmp_path / "b.npy")
    with pytest.raises(DataError, match="no such file"):
        matrices.read_matrix(tmp_path / "c.npy")


def test_commands_on_files(tmp_path, capsys) -> None:
    first, second = with_holes()
    for name, matrix in (("first", first), ("second", second)):
        pd.DataFrame(matrix).to_csv(tmp_path / f"{name}.csv", index=False, header=False)
    out, done = tmp_path / "out.csv", tmp_path / "done.npy"
    use.transfer(
        tmp_path / "first.csv", tmp_path / "second.csv", 2, "0,40", 100, seeds=2, out=out,
        completed=done,
    )  # fmt: skip
    table = pd.read_csv(out)
    expected = [
        completion.matrix_transfer(
            first, second, depth=2, pretrain_steps=(0, 40), steps=100, seed=seed
        ).test_loss
        for seed in range(2)
    ]
    np.testing.assert_allclose(table["test loss"], np.mean(expected, axis=0), rtol=1e-6)
    assert np.load(done).shape == (12, 9)
    pd.DataFrame(pathways.hierarchy().targets).to_csv(tmp_path / "y.csv", index=False, header=False)
    use.modes(tmp_path / "y.csv", "0,200", depths="2,3", out=out)
    table = pd.read_csv(out)
    np.testing.assert_allclose(table["singular value"] ** 2, [15, 15, 7, 7, 3, 3, 3, 3])
    assert table["onset 0"][0] < 0.02 < 0.99 < table["onset 200"][0]
    draw = rng()
    x = draw.standard_normal((60, 4))
    frame = pd.DataFrame(x, columns=list("abcd")).assign(label=np.where(x[:, 0] > 0, "up", "down"))
    frame.to_csv(tmp_path / "t.csv", index=False)
    use.views(
        tmp_path / "t.csv", "a:b", "c,d", onsets="0,50", length=20, steps=100, seeds=2, out=out
    )
    assert pd.read_csv(out)["onset"].tolist() == [0, 50]
    printed = " ".join(capsys.readouterr().out.split())
    assert "loss of pathway b's share" in printed
    assert "careful: the largest damage still fell by" in printed
    blurred = use.read_views(tmp_path / "t.csv", "a,b", "c:d", "label", 1.0)
    assert blurred.blurred is not None
    # One scale for a view: its largest variance is 1.
    assert np.linalg.norm(blurred.views[0], 2) == pytest.approx(1)


@pytest.mark.parametrize(
    ("first", "second", "label", "message"),
    [
        ("a", "z", "label", r"no such column; got 'z'; expected a, b, c, label"),
        ("a:b", "b:c", "label", r"column 'b': column is used twice"),
        ("a", "label", "label", r"column 'label': column is used twice"),
        ("a", "c", "label", r"row 3, column 'c': empty cell"),
        ("a", "b", "one", r"one"),
    ],
)
def test_bad_tables_are_named(tmp_path, first, second, label, message) -> None:
    table = write(tmp_path / "t.csv", "a,b,c,label\n1,2,3,x\n4,5,,y\n7,8,1,x\n")
    with pytest.raises(DataError, match=message):
        use.read_views(table, first, second, label, None)
