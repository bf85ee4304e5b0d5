"""Curvature of batches against closed forms, brute force and plain torch loops."""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import math
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import ks_2samp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import peira
from peira.data import DataError
from peira.dynamics.batch_hessian_lr import examples, experiments, matrices, study, use
from peira.dynamics.batch_hessian_lr.baselines import AdaHessian, ArmijoSGD
from peira.dynamics.batch_hessian_lr.law import (
    Landscape,
    _entry_variance,
    batch_spectrum_law,
    curvature,
)
from peira.dynamics.batch_hessian_lr.model import build, mlp
from peira.dynamics.batch_hessian_lr.rates import (
    heavy_ball,
    max_lr,
    min_damping,
    noise_scale,
    noise_scale_lr,
    rescale_lr,
)
from peira.dynamics.batch_hessian_lr.sweep import (
    LRSweep,
    ShuffledBatches,
    load_flat,
    lr_range_test,
    measure_max_lr,
)
from peira.dynamics.batch_hessian_lr.tuner import SLQTuner

torch.set_num_threads(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Given(nn.Module):
    """Example i has the loss w^T A_i w / 2: its Hessian is A_i, at every w."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(size, dtype=torch.float64))

    def forward(self, a: Tensor) -> Tensor:
        return (a @ self.w) @ self.w / 2


def mean_output(outputs: Tensor, _: Tensor) -> Tensor:
    return outputs.mean()


def given(a: Tensor) -> tuple[Given, tuple[Tensor, Tensor]]:
    return Given(a.shape[1]), (a, torch.zeros(len(a)))


def noisy_matrices(n: int, size: int, spikes: tuple[float, ...], sigma: float) -> Tensor:
    noise = torch.randn(n, size, size, generator=seeded(1), dtype=torch.float64)
    noise = (noise + noise.mT) * (sigma / math.sqrt(2))
    noise -= noise.mean(dim=0)
    return noise + torch.diag(torch.tensor([*spikes, *[0.0] * (size - len(spikes))]).double())


def small_problem() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs = torch.randn(30, 4, generator=seeded(2), dtype=torch.float64)
    return model, (inputs, torch.randint(0, 3, (30,), generator=seeded(3)))


def test_effective_batch_has_the_finite_population_in_it() -> None:
    assert matrices.effective_batch(10) == 10
    assert matrices.effective_batch(50, 100) == 100
    assert matrices.effective_batch(100, 100) == math.inf
    for wrong in (0, 101):
        with pytest.raises(DataError, match="impossible batch size"):
            matrices.effective_batch(wrong, 100)


def test_theorems_in_closed_form() -> None:
    """P/b sigma^2 = 2 and lambda = 2; gamma = 1/2, s = 1 and lambda = 3."""
    up = matrices.spiked_wigner(2.0, 100, 50, 1.0)
    assert (up.eigenvalue, up.overlap) == (3.0, 0.5)
    assert up.transition == pytest.approx(math.sqrt(2))
    assert matrices.spiked_wigner(-2.0, 100, 50, 1.0).eigenvalue == -3
    hidden = matrices.spiked_wigner(-1.0, 100, 50, 1.0)
    assert hidden.eigenvalue == pytest.approx(-2 * math.sqrt(2))
    assert hidden.overlap == 0
    up = matrices.spiked_wishart(3.0, 100, 200, 1.0)
    assert up.eigenvalue == pytest.approx(3.75)
    assert up.overlap == pytest.approx(0.7)
    hidden = matrices.spiked_wishart(1.0, 100, 200, 1.0)
    assert hidden.eigenvalue == pytest.approx((1 + math.sqrt(0.5)) ** 2)


@pytest.mark.parametrize("theorem", ["wigner", "wishart"])
def test_eigenvalue_and_overlap_are_continuous_at_the_transition(theorem: str) -> None:
    call = matrices.spiked_wigner if theorem == "wigner" else matrices.spiked_wishart
    edge = call(1e-9, 100, 300, 1.0)
    just_above = call(edge.transition * (1 + 1e-6), 100, 300, 1.0)
    assert just_above.eigenvalue == pytest.approx(edge.eigenvalue, rel=1e-9)
    assert just_above.overlap == pytest.approx(0, abs=1e-5)


def dense_wigner(spike: float, size: int, rng: np.random.Generator) -> np.ndarray:
    """The matrix itself: (x + y) / sqrt(2) off the diagonal, variance 1 / size there."""
    noise = rng.normal(size=(size, size))
    matrix = (noise + noise.T) / math.sqrt(2 * size)
    matrix[0, 0] += spike
    return matrix


def dense_wishart(spike: float, size: int, rng: np.random.Generator) -> np.ndarray:
    vectors = rng.normal(size=(2 * size, size))
    vectors[:, 0] *= math.sqrt(spike)
    return vectors.T @ vectors / (2 * size)


@pytest.mark.parametrize("method", ["wigner", "wishart"])
def test_tridiagonal_draws_are_distributed_like_dense_matrices(method: str) -> None:
    """Top eigenvalue, overlap, and the sums of squares: two-sample Kolmogorov-Smirnov tests."""
    rng = np.random.default_rng(0)
    ours, theirs = [], []
    for _ in range(250):
        if method == "wigner":
            drawn, dense = matrices.draw_wigner(1.4, 24, 24, 1.0, rng), dense_wigner(1.4, 24, rng)
        else:
            drawn, dense = matrices.draw_wishart(2.2, 24, 48, 1.0, rng), dense_wishart(2.2, 24, rng)
        squares = float((drawn.diagonal**2).sum() + 2 * (drawn.beside**2).sum())
        ours.append((*drawn.largest(), squares))
        values, vectors = np.linalg.eigh(dense)
        theirs.append((values[-1], vectors[0, -1] ** 2, float((dense**2).sum())))
    for a, b in zip(np.array(ours).T, np.array(theirs).T, strict=True):
        assert ks_2samp(a, b).pvalue > 0.003


def test_the_largest_eigenpair_of_a_tridiagonal_matrix() -> None:
    matrix = matrices.Tridiagonal(np.array([2.0, 2.0]), np.array([1.0]))
    assert matrix.largest() == pytest.approx((3.0, 0.5))


@pytest.mark.parametrize("spike", [0.6, 1.5, 2.5])
def test_random_matrices_follow_the_theorems(spike: float) -> None:
    for method in ("wigner", "wishart"):
        found = experiments.random_matrix(peira.Run(0), method, 1000, spike, 40)
        assert found["eigenvalue_error"] < 0.02
        assert found["overlap_error"] < 0.03


def test_noise_is_that_of_explicit_matrices() -> None:
    a = noisy_matrices(12, 8, (5.0,), 1.0)
    model, data = given(a)
    point = Landscape(model, mean_output, data)
    u = torch.randn(8, generator=seeded(4)).double()
    expected = ((a - a.mean(dim=0)) @ u).square().sum(dim=1) * 12 / 11
    torch.testing.assert_close(point.noise(u).sort().values, expected.sort().values)
    scale = torch.rand(8, generator=seeded(5)).double() + 0.5
    scaled = scale[:, None] * a * scale
    expected = ((scaled - scaled.mean(dim=0)) @ u).square().sum(dim=1) * 12 / 11
    torch.testing.assert_close(point.noise(u, scale).sort().values, expected.sort().values)


def test_entry_variance_is_the_mean_squared_entry() -> None:
    a = noisy_matrices(20, 10, (5.0,), 1.0)
    model, data = given(a)
    point = Landscape(model, mean_output, data)
    exact = float((a - a.mean(dim=0)).square().sum(dim=(1, 2)).mean()) * 20 / 19 / 100
    draws = np.array([_entry_variance(point, seeded(seed)).value for seed in range(40)])
    assert abs(draws.mean() - exact) < 4 * draws.std() / math.sqrt(40)
    assert draws.std() < 0.1 * exact


def test_the_law_holds_where_noise_is_independent() -> None:
    """Wigner noise: measured, theorem and directional estimate are one; both edges."""
    model, data = given(noisy_matrices(400, 60, (6.0, -5.0), 1.0))
    law = batch_spectrum_law(model, mean_output, data, [10, 40], count=40, generator=seeded())
    assert law.largest == pytest.approx(6.0, rel=1e-3)
    assert law.smallest == pytest.approx(-5.0, rel=1e-3)
    for row in law.measured:
        for estimator in ("directional", "iid", "fit"):
            predicted = law.largest_at(row.batch, estimator)
            assert predicted.value == pytest.approx(row.largest.value, rel=0.03)
            assert predicted.low < predicted.value < predicted.high
        assert law.smallest_at(row.batch).value == pytest.approx(row.smallest.value, rel=0.04)
        assert law.overlap_at(row.batch) == pytest.approx(row.overlap.value, abs=0.05)
    assert law.fit.value == pytest.approx(law.coefficient.value, rel=0.2)
    assert law.exponent == pytest.approx(-1, abs=0.25)
    theorem = matrices.spiked_wigner(6.0, 60, 10 / (1 - 10 / 400), 1.0)
    assert law.largest_at(10).value == pytest.approx(theorem.eigenvalue, rel=0.02)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_a_batch_of_all_examples_sees_the_full_curvature(kind: str) -> None:
    model, data = small_problem()
    law = batch_spectrum_law(model, F.cross_entropy, data, [30], kind=kind, count=2)
    assert law.largest_at(30).value == law.largest_at(30, "iid").value == law.largest
    assert law.smallest_at(30).value == law.smallest
    assert law.overlap_at(30) == 1
    row = law.measured[0]
    assert row.effective == math.inf
    assert row.largest.value == pytest.approx(law.largest, rel=1e-2)
    assert row.overlap.value == pytest.approx(1, abs=1e-2)
    with pytest.raises(DataError, match="a fit needs two batch sizes"):
        _ = law.fit
    with pytest.raises(DataError, match="impossible batch size; got 31"):
        batch_spectrum_law(model, F.cross_entropy, data, [31])


def test_gauss_newton_uses_the_multiplicative_theorem() -> None:
    """Least squares on Gaussian inputs of one wide direction: a spiked covariance, times 2."""
    inputs = torch.randn(2000, 40, generator=seeded(6), dtype=torch.float64)
    inputs[:, 0] *= 3
    model = nn.Linear(40, 1, bias=False).double()
    data = (inputs, torch.zeros(2000, 1).double())
    law = batch_spectrum_law(
        model, F.mse_loss, data, [40], kind="ggn", count=60, samples=1000, generator=seeded()
    )
    theorem = matrices.spiked_wishart(9.0, 40, 40 / (1 - 40 / 2000), 1.0).eigenvalue * 2
    assert law.measured[0].largest.value == pytest.approx(theorem, rel=0.05)
    assert law.largest_at(40, "iid").value == pytest.approx(theorem, rel=0.15)


def test_curvature_reports_both_ends_density_and_batches() -> None:
    model, data = small_problem()
    found = curvature(model, F.cross_entropy, data, batch=5, k=3, generator=seeded())
    weights = list(model.parameters())
    flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(
        F.cross_entropy(model(data[0]), data[1]), weights, create_graph=True
    )])  # fmt: skip
    rows = [torch.autograd.grad(entry, weights, retain_graph=True) for entry in flat]
    exact = torch.linalg.eigvalsh(
        torch.stack([torch.cat([g.reshape(-1) for g in r]) for r in rows])
    )
    ends = torch.cat([exact[-3:].flip(0), exact[:3].flip(0)])
    torch.testing.assert_close(found.extremes.values, ends, atol=2e-3 * float(exact[-1]), rtol=0)
    mean, error = found.density.mean(lambda x: x)
    assert abs(mean - float(exact.mean())) < 5 * error
    assert found.batches is not None
    assert len(found.batches.largest) == 24
    assert float(found.batches.largest.mean()) > float(exact[-1])


def heavy_ball_moments(lr: float, mu: float, mean: float, variance: float) -> float:
    """Growth of the second moments of heavy ball on a quadratic of random curvature, exactly."""
    a = np.array([[1 + mu - lr * mean, -mu], [1.0, 0.0]])
    noise = np.array([[-lr, 0.0], [0.0, 0.0]])
    return float(np.abs(np.linalg.eigvals(np.kron(a, a) + variance * np.kron(noise, noise))).max())


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
def test_the_largest_rate_is_where_second_moments_begin_to_grow(mu: float) -> None:
    """One weight: lambda = E h and c = Var h / lambda are all there is."""
    h = 2 + torch.randn(500, 1, 1, generator=seeded(7), dtype=torch.float64)
    model, data = given(h)
    law = batch_spectrum_law(model, mean_output, data, samples=500)
    batch = 5
    variance = float(h.var()) / matrices.effective_batch(batch, 500)
    lr = max_lr(law, batch, momentum=mu).value
    assert heavy_ball_moments(0.999 * lr, mu, law.largest, variance) < 1
    assert heavy_ball_moments(1.001 * lr, mu, law.largest, variance) > 1
    published = max_lr(law, batch, momentum=mu, published=True).value
    assert published == pytest.approx(2 * (1 + mu) / law.largest_at(batch).value)
    assert (published > 1.001 * lr) == (mu > 0)
    full = max_lr(law, 500, momentum=mu).value
    assert full == pytest.approx(2 * (1 + mu) / law.largest)


def test_adams_limit_is_that_of_its_recursion() -> None:
    """With a fixed preconditioner: x - lr m / d, m an average with beta."""
    model, data = given(torch.full((10, 1, 1), 3.0, dtype=torch.float64))
    law = batch_spectrum_law(model, mean_output, data)
    # The gradient of w^2 3/2 at 1 is 3, without noise: D = 3 + damping.
    damping, beta = 0.5, 0.8
    lr = max_lr(law, 4, "adam", momentum=beta, damping=damping).value

    def growth(rate: float) -> float:
        slope = 3.0 / (3.0 + damping)
        step = rate * np.array([(1 - beta) * slope, beta])
        matrix = np.array([1.0 - step[0], -step[1], (1 - beta) * slope, beta]).reshape(2, 2)
        return float(np.abs(np.linalg.eigvals(matrix)).max())

    assert growth(0.999 * lr) < 1 < growth(1.001 * lr)


def test_adams_preconditioner_is_the_mean_square_of_batch_gradients() -> None:
    model, (inputs, targets) = small_problem()
    data = (inputs[:6], targets[:6])
    scale = Landscape(model, F.cross_entropy, data).adam_scale(2, 0.01)
    squares = []
    for pair in itertools.combinations(range(6), 2):
        picked = list(pair)
        loss = F.cross_entropy(model(data[0][picked]), data[1][picked])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        squares.append(torch.cat([g.reshape(-1) for g in gradients]).square())
    expected = torch.stack(squares).mean(dim=0).sqrt() + 0.01
    torch.testing.assert_close(scale**-2, expected)
    flat = nn.Linear(4, 3).double()
    still = (torch.zeros(6, 4).double(), torch.zeros(6, 3).double())
    nn.init.zeros_(flat.bias)
    with pytest.raises(DataError, match="no gradient at all: Adam needs damping"):
        Landscape(flat, F.mse_loss, still).adam_scale(2, 0.0)


def test_least_damping_makes_the_rate_the_largest_one() -> None:
    model, data = small_problem()
    law = batch_spectrum_law(model, F.cross_entropy, data)
    for momentum in (0.0, 0.9):
        damping = min_damping(law, 4, 0.1, momentum)
        step = 0.1 * (1 - momentum) / damping.value
        assert step == pytest.approx(max_lr(law, 4, momentum=momentum).value)
        assert damping.low < damping.value < damping.high
    assert min_damping(law, 4, 0.2).value == pytest.approx(2 * min_damping(law, 4, 0.1).value)


def test_rates_are_rescaled_by_rule_or_by_law() -> None:
    assert rescale_lr(0.1, 32, 256) == pytest.approx(0.8)
    assert rescale_lr(0.1, 64, 256, "adam") == pytest.approx(0.2)
    model, data = small_problem()
    law = batch_spectrum_law(model, F.cross_entropy, data)
    expected = 0.1 * law.largest_at(2).value / law.largest_at(16).value
    by_law = rescale_lr(0.1, 2, 16, law=law)
    assert by_law == pytest.approx(expected)
    assert 0.1 < by_law < 0.8
    for wrong in ((0.0, 2, 4), (0.1, 0, 4)):
        with pytest.raises(DataError, match="must be positive"):
            rescale_lr(*wrong)
    with pytest.raises(DataError, match="unknown optimiser"):
        rescale_lr(0.1, 2, 4, "lamb")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="impossible momentum"):
        max_lr(law, 2, momentum=1.0)


def test_heavy_ball_contracts_both_ends_alike() -> None:
    lr, mu = heavy_ball(9.0, 1.0)
    assert (lr, mu) == (0.25, 0.25)
    for h in (9.0, 1.0):
        roots = np.roots([1, -(1 + mu - lr * h), mu])
        assert np.abs(roots).max() == pytest.approx(math.sqrt(mu), rel=1e-6)
    with pytest.raises(DataError, match="impossible curvatures"):
        heavy_ball(1.0, 2.0)


def test_noise_scale_of_a_mean() -> None:
    """Gradients 2 (w - y_i) of one weight at 0: variance 4 Var y over 4 mean^2."""
    y = torch.tensor([[1.0], [3.0], [5.0]])
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    assert noise_scale(model, F.mse_loss, (torch.ones(3, 1), y)) == pytest.approx(4 / 9)
    assert noise_scale_lr(0.1, 10, 40, 30.0) == pytest.approx(0.1 * 4 / 1.75)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_rates_side_by_side_are_plain_training(optimizer: str) -> None:
    model, data = small_problem()
    rates = [0.3, 0.02]
    momenta = {"sgd": [0.0, 0.0], "momentum": [0.7, 0.9], "adam": [0.9, 0.9]}[optimizer]
    name = "adam" if optimizer == "adam" else "sgd"
    found = measure_max_lr(
        model, F.cross_entropy, data, 7, rates, target=0.5, optimizer=name, momentum=momenta,
        every=10,
        horizon=25, generator=seeded(),
    )  # fmt: skip
    assert [step for step, _ in found.curve] == [10, 20]
    for row, (rate, momentum) in enumerate(zip(rates, momenta, strict=True)):
        network = copy.deepcopy(model)
        plain = (
            torch.optim.Adam(network.parameters(), lr=rate)
            if name == "adam"
            else torch.optim.SGD(network.parameters(), lr=rate, momentum=momentum)
        )
        order = ShuffledBatches(30, 7, seeded())
        for step in range(1, 26):
            picked = next(order)
            plain.zero_grad()
            F.cross_entropy(network(data[0][picked]), data[1][picked]).backward()
            plain.step()
            if step == 20:
                middle = F.cross_entropy(network(data[0]), data[1]).item()
                assert float(found.curve[1][1][row]) == pytest.approx(middle, rel=1e-9)
        final = F.cross_entropy(network(data[0]), data[1]).item()
        assert float(found.losses[row]) == pytest.approx(final, rel=1e-9)
        loaded = copy.deepcopy(model)
        load_flat(loaded, found.weights[row])
        assert F.cross_entropy(loaded(data[0]), data[1]).item() == pytest.approx(final, rel=1e-9)


def test_the_largest_rate_of_a_quadratic_is_two_over_its_curvature() -> None:
    data = examples.quadratic(0, size=20, condition=10.0)
    model = build("linear", 20, 1, 0)
    rates = np.geomspace(0.05, 2.0, 60)
    found = measure_max_lr(
        model, F.mse_loss, (data.inputs, data.targets), 80, rates.tolist(), target=1e-3,
        horizon=2000,
    )  # fmt: skip
    assert found.largest == max(rate for rate in rates if rate < 2 / 4.0)
    assert {*found.outcomes[-10:]} == {"diverged"}


def test_slow_and_diverged_are_told_apart() -> None:
    losses = torch.tensor([1.5, 0.4, 0.3, 3.0, math.nan, math.inf])
    none = torch.empty(0)
    found = LRSweep(8, torch.arange(1.0, 7.0), losses, start=2.3, target=1.0, weights=none)
    assert found.outcomes == ["slow", "learned", "learned", *["diverged"] * 3]
    assert found.largest == 3
    assert math.isnan(LRSweep(8, torch.ones(1), torch.tensor([1.5]), 2.3, 1.0, none).largest)


def test_batches_go_through_all_examples_and_resume() -> None:
    order = ShuffledBatches(10, 3, seeded())
    first = torch.cat([next(order) for _ in range(3)])
    assert len(first.unique()) == 9
    next(order)
    state = copy.deepcopy(order.state_dict())
    ahead = [next(order) for _ in range(5)]
    again = ShuffledBatches(10, 3, seeded(9))
    again.load_state_dict(state)
    assert all(torch.equal(a, next(again)) for a in ahead)
    with pytest.raises(DataError, match="impossible batch size"):
        ShuffledBatches(10, 11)


def test_the_range_test_ends_near_the_stability_limit() -> None:
    data = examples.quadratic(0, size=20, condition=10.0)
    model = build("linear", 20, 1, 0)
    before = copy.deepcopy(model.state_dict())
    found = lr_range_test(
        model, F.mse_loss, (data.inputs, data.targets), 80, low=1e-3, high=10.0, steps=200
    )
    # The smoothed loss lags behind, and this loss is almost nothing by then.
    assert 1 < found.divergence * 4.0 / 2 < 8
    assert found.rates[-1] < 10.0
    assert found.steepest < found.divergence
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_line_search_keeps_armijos_condition() -> None:
    w = nn.Parameter(torch.tensor([3.0, -2.0]))
    curvatures = torch.tensor([8.0, 0.5])
    optimizer = ArmijoSGD([w], lr=10.0)

    def loss() -> Tensor:
        return (curvatures * w**2).sum() / 2

    for _ in range(60):
        before, at = loss().item(), w.detach().clone()
        optimizer.step(loss)
        rate = optimizer.param_groups[0]["lr"]
        slope = float((curvatures * at).square().sum())
        assert loss().item() <= before - 0.1 * rate * slope + 1e-6
    assert loss().item() < 1e-6
    assert optimizer.param_groups[0]["evaluations"] > 60
    with pytest.raises(peira.PeiraError, match="needs the closure"):
        optimizer.step()


def test_adahessian_is_newton_on_a_diagonal_quadratic() -> None:
    w = nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
    curvatures = torch.tensor([8.0, 0.5], dtype=torch.float64)
    optimizer = AdaHessian([w], lr=0.15, eps=0.0, generator=seeded())
    (w.grad,) = torch.autograd.grad((curvatures * w**2).sum() / 2, w, create_graph=True)
    optimizer.step()
    torch.testing.assert_close(w.detach(), torch.tensor([3.0, -2.0]).double() * 0.85)


def quadratic_tuner(**options: object) -> tuple[nn.Module, torch.optim.SGD, SLQTuner]:
    data = examples.quadratic(0, size=20, condition=25.0)
    model = build("linear", 20, 1, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    tuner = SLQTuner(
        optimizer, model, F.mse_loss, (data.inputs, data.targets), 80, generator=seeded(), **options
    )
    return model, optimizer, tuner


@pytest.mark.parametrize("published", [False, True])
def test_the_tuner_finds_the_best_rate_and_momentum_of_a_quadratic(published: bool) -> None:
    """Full batches see no noise: heavy ball of [4/25, 4]."""
    _, optimizer, tuner = quadratic_tuner(published=published)
    lr, momentum = heavy_ball(4.0, 4.0 / 25)
    group = optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(lr, rel=1e-6)
    assert group["momentum"] == pytest.approx(momentum, rel=1e-6)
    entry = tuner.history[0]
    assert entry.batch_largest == pytest.approx(entry.largest)
    assert tuner.get_last_lr() == [group["lr"]]


def test_the_tuner_measures_when_it_should_and_resumes() -> None:
    model, optimizer, tuner = quadratic_tuner(every=2)
    for _ in range(4):
        optimizer.step()
        tuner.step()
    assert [entry.epoch for entry in tuner.history] == [0, 2, 4]
    state = tuner.state_dict()
    assert json.loads(json.dumps({k: x for k, x in state.items() if k != "generator"}))
    other, second, again = quadratic_tuner(every=2)
    other.load_state_dict(model.state_dict())
    second.load_state_dict(optimizer.state_dict())
    again.load_state_dict(state)
    for scheduler, stepped in ((tuner, optimizer), (again, second)):
        for _ in range(2):
            stepped.step()
            scheduler.step()
    assert again.history == tuner.history
    assert again.last_epoch == 6


def test_noise_lowers_the_rate_as_much_as_momentum_adds_it_up() -> None:
    model, data = given(noisy_matrices(300, 40, (6.0,), 1.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.0)
    tuner = SLQTuner(
        optimizer, model, mean_output, data, 8, examples=300, steps=40, generator=seeded()
    )
    entry = tuner.history[0]
    excess = entry.batch_largest - entry.largest
    assert excess == pytest.approx(40 / 8 / 6.0, rel=0.1)
    assert entry.floor == pytest.approx(math.sqrt(excess * entry.largest), rel=1e-6)
    lr, mu = heavy_ball(entry.largest, entry.floor)
    assert entry.lr == pytest.approx(1 / (1 / lr + excess / (1 - mu)))
    growth = heavy_ball_moments(entry.lr, entry.momentum, entry.largest, excess * entry.largest)
    assert growth < 1


def test_vanishing_curvature_does_not_raise_the_rate_unless_published() -> None:
    for published in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        inputs = torch.randn(200, 4, generator=seeded(8))
        data = (inputs, (inputs[:, 0] > 0).long())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.0)
        tuner = SLQTuner(
            optimizer, model, F.cross_entropy, data, 32, published=published, generator=seeded()
        )
        before = optimizer.param_groups[0]["lr"]
        with torch.no_grad():
            # A classifier that is far too sure of what it gets right.
            model[0].weight.zero_()
            model[0].weight[0, 0] = 50.0
            model[2].weight.zero_()
            model[2].weight[:, 0] = torch.tensor([-50.0, 50.0])
        optimizer.step()
        tuner.step()
        after = optimizer.param_groups[0]["lr"]
        assert tuner.history[-1].largest < tuner.history[0].largest / 2
        assert (after > 2 * before) == published


def test_the_tuner_takes_loaders_and_data_sets_and_refuses_optimisers_without_momentum() -> None:
    model, data = small_problem()
    loader = DataLoader(TensorDataset(*data), batch_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for form in (loader, loader.dataset):
        tuner = SLQTuner(optimizer, model, F.cross_entropy, form, 8, examples=30)
        # All thirty examples, whatever their order: the full Hessian's top eigenvalue.
        law = batch_spectrum_law(model, F.cross_entropy, data)
        assert tuner.history[0].largest == pytest.approx(law.largest, rel=1e-3)
        assert tuner.history[0].batch_largest == pytest.approx(law.largest_at(8).value, rel=1e-2)
    with pytest.raises(DataError, match="no momentum; got 'Adam'"):
        SLQTuner(torch.optim.Adam(model.parameters()), model, F.cross_entropy, loader, 8)


def test_dropout_is_frozen_with_a_warning() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    _, data = small_problem()
    with pytest.warns(UserWarning, match="Dropout in training mode"):
        first = batch_spectrum_law(model, F.cross_entropy, data, generator=seeded())
    second = batch_spectrum_law(model.eval(), F.cross_entropy, data, generator=seeded())
    assert first.largest == second.largest
    assert first.coefficient == second.coefficient


def test_smallest_damping_is_rate_over_the_mean_square_limit() -> None:
    for rate, batch in ((0.03, 1), (0.03, 4), (0.1, 4)):
        found = experiments.smallest_damping(peira.Run(0), rate, batch, 32, 32, 2000)
        assert 0.5 < found["damping"] / found["damping_predicted"] < 2


def test_published_networks_have_their_published_sizes() -> None:
    with torch.device("meta"):
        millions = {
            name: sum(p.numel() for p in build(name, 0, 100, 0).parameters()) / 1e6
            for name in ("wrn-28-10", "preresnet110")
        }
    assert millions["wrn-28-10"] == pytest.approx(36.5, abs=0.1)
    assert millions["preresnet110"] == pytest.approx(1.73, abs=0.02)
    pictures = torch.randn(2, 3, 32, 32)
    for name in ("vgg16", "preresnet110"):
        assert build(name, 0, 7, 0)(pictures).shape == (2, 7)
    one, same, other = (build("relu-8", 5, 3, seed)[1].weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_known_quadratic_has_its_spectrum_and_fits() -> None:
    data = examples.quadratic(3, size=10, condition=50.0)
    hessian = 2 * data.inputs.T @ data.inputs / len(data.inputs)
    expected = torch.from_numpy(np.geomspace(0.08, 4, 10))
    torch.testing.assert_close(torch.linalg.eigvalsh(hessian), expected)
    solution = torch.linalg.lstsq(data.inputs, data.targets).solution
    assert float(F.mse_loss(data.inputs @ solution, data.targets)) < 1e-20


def blobs_csv(path: Path, n: int = 120) -> Path:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n)
    points = rng.normal(size=(n, 3)) * [1, 10, 0.1] + labels[:, None] * [2, 20, 0.2]
    frame = pd.DataFrame(points, columns=["a", "b", "c"])
    frame.assign(label=np.where(labels, "yes", "no")).to_csv(path, index=False)
    return path


def test_files_are_read_as_they_say(tmp_path: Path) -> None:
    x, y, classes = examples.read_examples(blobs_csv(tmp_path / "t.csv"))
    assert (x.shape, classes) == ((120, 3), 2)
    torch.testing.assert_close(x.mean(dim=0), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.std(dim=0, correction=0), torch.ones(3))
    np.savez(tmp_path / "d.npz", x=np.ones((5, 2, 2)), y=np.array([0.5, 1, 2, 3, 4]))
    x, y, outputs = examples.read_examples(tmp_path / "d.npz", regression=True)
    assert (tuple(x.shape), tuple(y.shape), outputs) == ((5, 2, 2), (5, 1), 1)
    pictures, labels = tmp_path / "images-idx3-ubyte.gz", tmp_path / "labels-idx1-ubyte"
    raw = b"\0\0\x08\x03" + struct.pack(">3I", 4, 2, 2) + bytes([0, 255, 51, 0] * 4)
    pictures.write_bytes(gzip.compress(raw))
    labels.write_bytes(b"\0\0\x08\x01" + struct.pack(">I", 4) + bytes([7, 3, 7, 3]))
    x, y, classes = examples.read_examples(pictures, labels=labels)
    assert x.shape == (4, 1, 2, 2)
    assert float(x[0, 0, 0, 1]) == 1
    assert y.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((3, 2))}, r"no array 'y'; got \['x'\]"),
        ({"x": np.ones((3, 2)), "y": np.array([0, 1])}, "differ in number"),
        ({"x": np.array([[1.0], [np.nan]]), "y": np.array([0, 1])}, "row 2: not a finite number"),
        ({"x": np.ones(3), "y": np.arange(3)}, "inputs must be numbers"),
        ({"x": np.ones((3, 2)), "y": np.zeros(3)}, "one of several classes"),
        ({"x": np.ones((999, 2)), "y": np.arange(999)}, "need --regression"),
    ],
)
def test_broken_archives_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=message):
        examples.read_examples(tmp_path / "d.npz")


def test_broken_files_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("a,b,label\n1,2,x\n3,,y\n")
    with pytest.raises(DataError, match="row 3, column 'b': missing value"):
        examples.read_examples(table)
    table.write_text("a,label\n1,x\nfoo,y\n")
    with pytest.raises(DataError, match="row 3, column 'a': wrong value; got 'foo'"):
        examples.read_examples(table)
    (tmp_path / "d.npz").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        examples.read_examples(tmp_path / "d.npz")
    with pytest.raises(DataError, match="no such file"):
        examples.read_examples(tmp_path / "none.csv")
    (tmp_path / "images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(DataError, match="need --labels"):
        examples.read_examples(tmp_path / "images-idx3-ubyte")


def test_commands_measure_rescale_and_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, found = blobs_csv(tmp_path / "t.csv"), tmp_path / "law.json"
    use.law(table, sizes="4,16,64", widths="8", count=4, out=found)
    shown = capsys.readouterr().out
    assert "largest lr (sgd)" in shown
    assert "nothing is said about generalisation" in " ".join(shown.split())
    rates = json.loads(found.read_text())["rates"]
    assert list(rates) == ["4", "16", "64"]
    assert rates["4"] < rates["16"] < rates["64"]
    use.rescale(0.1, 4, 64, law=found)
    assert f"{0.1 * rates['64'] / rates['4']:.4g}" in capsys.readouterr().out
    with pytest.raises(DataError, match="not measured at this batch size; got 8"):
        use.rescale(0.1, 8, 64, law=found)
    with pytest.raises(DataError, match="of another optimiser"):
        use.rescale(0.1, 4, 64, optimizer="adam", law=found)
    with pytest.raises(DataError, match="not a law"):
        use.rescale(0.1, 4, 64, law=table)
    weights = tmp_path / "w.safetensors"
    use.train(table, weights, batch=16, epochs=4, widths="8")
    assert "momentum" in capsys.readouterr().out
    network = mlp([3, 8, 2])
    network.load_state_dict(load_file(weights))
    x, y, _ = examples.read_examples(table)
    assert float((network(x).argmax(dim=1) == y).float().mean()) > 0.8
    use.law(table, sizes="4", widths="8", weights=weights, optimizer="adam", kind="ggn", count=3)
    assert "full ggn" in capsys.readouterr().out
    with pytest.raises(DataError, match="weights of another network"):
        use.law(table, widths="9", weights=weights)
    with pytest.raises(DataError, match=r"not a \.safetensors file"):
        use.law(table, weights=table)


def test_own_models_are_loaded_and_bad_ones_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, code = blobs_csv(tmp_path / "t.csv"), tmp_path / "net.py"
    code.write_text(
        "from torch import nn\n"
        "def make(): return nn.Linear(3, 2)\n"
        "def wide(): return nn.Linear(4, 2)\n"
        "def many(): return nn.Linear(3, 5)\n"
        "def broken(): return 1 / 0\n"
        "def nothing(): return None\n"
    )
    use.law(table, sizes="4,16", model=f"{code}:make", count=3)
    assert "120, 8" in capsys.readouterr().out
    for name, message in {
        "wide": "does not take inputs of shape",
        "many": r"do not fit the targets; got \(2, 5\); expected \(examples, 2\)",
        "broken": "failed: ZeroDivisionError",
        "nothing": "returned no model; got 'NoneType'",
        "absent": "no function 'absent'",
    }.items():
        with pytest.raises(DataError, match=message):
            use.law(table, model=f"{code}:{name}")
    for reference, message in {
        "net.py": "expected FILE.py:FUNCTION",
        "none.py:make": "no such file",
    }.items():
        with pytest.raises(DataError, match=message):
            use.law(table, model=reference)
    for options, message in (
        ({"sizes": "4,x"}, "--sizes must be whole numbers"),
        ({"sizes": "400"}, "impossible batch size; got 400; expected 1 to 120"),
        ({"kind": "fisher"}, "unknown curvature"),
        ({"optimizer": "lamb"}, "unknown optimiser"),
        ({"activation": "cos"}, "unknown activation"),
    ):
        with pytest.raises(DataError, match=message):
            use.law(table, **options)


def rows(topic: str, method: str, **columns: object) -> pd.DataFrame:
    fields = study.Cell(topic=topic, method=method).model_dump()
    return pd.DataFrame({**{k: x for k, x in fields.items() if k not in columns}, **columns})


def test_slopes_are_those_of_the_claim() -> None:
    batch = np.array([1.0, 2, 4, 8, 16, 32])
    sgd = np.minimum(0.1 * batch, 1.6)
    parts = [
        rows("largest-rate", "sgd", batch=batch, lr_max=sgd, seed=0),
        rows("largest-rate", "adam", batch=batch, lr_max=0.01 * np.sqrt(batch), seed=0),
    ]
    found = study.scaling(pd.concat(parts)).set_index("method")
    assert found.loc["sgd", "slope_small"] == pytest.approx(1)
    assert found.loc["sgd", "slope_last"] == pytest.approx(0)
    assert found.loc["sgd", "slope_compared"] == pytest.approx(1)
    assert found.loc["adam", "slope_compared"] == pytest.approx(0.5)


def test_the_worst_size_and_moment_decide_inflation() -> None:
    table = rows(
        "spectrum", "hessian", seed=0, moment=[0, 0, 0, 9, 9, 9], batch=[2, 4, 8] * 2,
        largest=[9.0, 5.0, 3.0, 4.0, 4.5, 3.0], full_largest=2.0, full_smallest=-1.0,
        excess=[7.0, 3.0, 1.0, 2.0, 2.5, 1.0], deficit=[3.0, 2.0, 0.5, 0.3, 0.2, 0.1],
    )  # fmt: skip
    found = study.inflation(table).iloc[0]
    assert found["least_excess"] == 0.5
    assert found["least_deficit"] == pytest.approx(0.1)
    # 4.0, 4.5, 3.0 against 2, 4, 8.
    assert found["rank"] == pytest.approx(-0.5)


def test_prediction_errors_are_octaves() -> None:
    table = rows(
        "spectrum", "hessian", seed=0, moment=0, batch=[2, 4], excess=[4.0, 2.0],
        excess_directional=[8.0, 1.0], excess_iid=[1.0, 0.5],
    )  # fmt: skip
    found = study.prediction_errors(table).iloc[0]
    assert found["error_directional"] == 1
    assert found["error_iid"] == 2


def test_overlaps_near_the_transition_do_not_count() -> None:
    table = rows(
        "matrix", "wigner", seed=0, spike=[0.8, 1.0, 1.5],
        eigenvalue_error=[0.01, 0.02, 0.005], overlap_error=[0.02, 0.3, 0.01],
    )  # fmt: skip
    found = study.worst_errors(table).iloc[0]
    assert found["eigenvalue_error"] == 0.02
    assert found["overlap_error"] == 0.02


def test_rules_start_from_the_rate_at_sixteen() -> None:
    batch = np.array([4.0, 16.0, 64.0])
    table = rows(
        "largest-rate", "sgd", batch=batch, seed=0, lr_max=batch / 100, lr_law=batch / 50,
        lr_full=1.0, lr_range_test=0.5, noise_scale=1e9,
    )  # fmt: skip
    found = study.rule_errors(table).set_index("rule")["error"]
    assert found["linear"] == pytest.approx(0)
    assert found["law"] == pytest.approx(1)
    assert found["law, from B = 16"] == pytest.approx(0)
    assert found["square root"] == pytest.approx(1)
    assert found["noise scale"] == pytest.approx(0, abs=1e-6)


def test_scales_cover_every_topic_and_the_grid_comes_first() -> None:
    topics = {"spectrum", "matrix", "largest-rate", "damping", "learner"}
    for name in ("smoke", "small", "paper"):
        cells = study.Study.scales[name].conditions()
        assert {cell.topic for cell in cells} == topics
        learners = [cell for cell in cells if cell.topic == "learner"]
        assert learners[0].method == "grid"
    assert {cell.task for cell in study.paper_cells()} >= {"cifar100", "digits"}
    assert len(experiments.GRID) == 24


def test_the_learner_is_judged_on_the_grids_own_loss() -> None:
    run = peira.Run(0)
    settings = {"task": "quadratic", "network": "linear", "batch": 400, "every": 1}
    grid = experiments.learner(run, "grid", horizon=30, **settings)
    ours = experiments.learner(peira.Run(0), "slq", horizon=30, **settings)
    assert grid["steps_to_target"] <= 30
    steps = ours["steps_to_target"]
    if isinstance(steps, peira.Censored):
        assert steps.after == 45
        assert ours["loss_ratio"] > 1
    else:
        assert steps <= 45
        assert ours["loss_ratio"] <= 1
    assert grid["gradients"] == 24 * 30
    assert experiments.first_at([(5, 3.0), (10, 1.0), (15, 0.5)], 1.0) == 10
    assert experiments.first_at([(5, 3.0)], 1.0) is None
