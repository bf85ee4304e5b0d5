"""Grokking, lazy and rich: the closed training against autograd, exact losses, bad input."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy import ndarray
from torch import nn
from torch.nn import functional as F

from peira.data.errors import DataError
from peira.dynamics.grokking_lazy_rich import (
    figure,
    gap,
    method,
    network,
    polynomial,
    scaled,
    study,
    use,
)
from peira.dynamics.probes import LinearisedModel, ScaledOutput, empirical_ntk, mlp
from peira.engine.cards import Card
from peira.engine.runs import Run

torch.set_num_threads(1)
D, P, EPS, ALPHA, RATE = 6, 15, 0.3, 0.7, 0.4


def task(samples: int = P, seed: int = 0) -> polynomial.Task:
    return polynomial.quadratic_task(D, samples, seed)


def weights(width: int, seed: int = 0) -> ndarray:
    return polynomial.initial_weights(width, D, seed)


def descent(width: int = 9, **settings: object) -> polynomial.Descent:
    given = {"alpha": ALPHA, "eps": EPS, "rate": RATE, **settings}
    data = task()
    factor = polynomial.neurons(weights(width), given["eps"])  # type: ignore[arg-type]
    return polynomial.Descent(data.x, data.y, factor, **given)  # type: ignore[arg-type]


def by_autograd(
    width: int, steps: int, *, centred: bool = True, decay: float = 0.0
) -> tuple[network.PolyNetwork, torch.Tensor, list[float]]:
    """The network itself, trained neuron by neuron."""
    data = task()
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    net = network.PolyNetwork(torch.from_numpy(weights(width)), alpha=ALPHA, eps=EPS)
    start = net(x).detach() if centred else torch.zeros(len(x))
    losses = []
    for _ in range(steps):
        loss = (net(x) - start - y).square().mean()
        (gradient,) = torch.autograd.grad(loss, [net.weight])
        with torch.no_grad():
            net.weight -= decay * net.weight + RATE * width / ALPHA**2 * gradient
        losses.append(float((net(x) - start - y).detach().square().mean()))
    return net, start, losses


@pytest.mark.parametrize("width", [2, 7, 9, 200])
@pytest.mark.parametrize(("centred", "decay"), [(True, 0.0), (False, 0.0), (True, 0.01)])
def test_the_closed_training_is_that_of_the_network(
    width: int, centred: bool, decay: float
) -> None:
    net, _, losses = by_autograd(width, 60, centred=centred, decay=decay)
    closed = descent(width, centred=centred, decay=decay)
    assert closed.factor.shape == (1, D + 1, min(width, D + 1))
    seen = []
    for _ in range(60):
        closed.step()
        seen.append(closed.train_loss[0])
    np.testing.assert_allclose(seen, losses, rtol=1e-9)
    for ours, theirs in zip(closed.order(), net.order(), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-9, atol=1e-11)
    before = torch.from_numpy(weights(width))
    moved = (net.weight.detach() - before).square().sum() / before.square().sum()
    assert closed.movement()[0] == pytest.approx(float(moved), rel=1e-9)
    grown = net.weight.detach().square().sum() / before.square().sum()
    assert closed.norm_ratio()[0] == pytest.approx(float(grown), rel=1e-9)


def test_the_order_parameters_obey_their_recursion() -> None:
    """wbar and M after a step from wbar and M before it alone: the paper's order parameters."""
    closed = descent(50)
    x = closed.x[0]
    c = 2 * RATE / (ALPHA * P)
    for _ in range(5):
        mean, second = closed.order()
        r = ALPHA * (x @ mean + EPS / 2 * np.einsum("pi,ij,pj->p", x, second, x))
        if closed.centred:
            start_mean, start_second = polynomial._order(closed.start[0], EPS)
            r -= ALPHA * (x @ start_mean + EPS / 2 * np.einsum("pi,ij,pj->p", x, start_second, x))
        r -= closed.y[0]
        g, big = r @ x, (x * r[:, None]).T @ x
        new_mean = mean - c * (g + EPS * big @ mean)
        first = np.outer(mean, g) + np.outer(g, mean) + EPS * (second @ big + big @ second)
        square = np.outer(g, g) + EPS * (np.outer(big @ mean, g) + np.outer(g, big @ mean))
        new_second = second - c * first + c**2 * (square + EPS**2 * big @ second @ big)
        closed.step()
        np.testing.assert_allclose(closed.order()[0], new_mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(closed.order()[1], new_second, rtol=1e-9, atol=1e-12)


def test_wide_networks_approach_the_infinite_one() -> None:
    data = task()
    ends = []
    for factor in (
        polynomial.infinite_neurons(D, EPS),
        polynomial.neurons(weights(300), EPS),
        polynomial.neurons(weights(300_000), EPS),
    ):
        closed = polynomial.Descent(data.x, data.y, factor, alpha=ALPHA, eps=EPS, rate=RATE)
        for _ in range(100):
            closed.step()
        ends.append(closed.predict(data.x_test)[0])
    errors = [np.abs(end - ends[0]).max() for end in ends[1:]]
    assert errors[1] < errors[0] / 5
    # Fluctuations of order parameters are of order 1 / sqrt(N): a tenth per hundredfold width.
    assert errors[1] < 0.03


def test_a_batch_trains_each_network_as_if_alone() -> None:
    alphas, epss, rates = [0.5, 1.0, 4.0], [0.3, 0.1, 0.5], [0.4, 0.2, 0.3]
    data = [task(seed=seed) for seed in range(3)]
    factors = [polynomial.neurons(weights(20, s), e) for s, e in enumerate(epss)]
    x, y = (np.stack([getattr(d, name) for d in data]) for name in ("x", "y"))
    together = polynomial.Descent(x, y, np.stack(factors), alpha=alphas, eps=epss, rate=rates)
    alone = [
        polynomial.Descent(d.x, d.y, f, alpha=a, eps=e, rate=r)
        for d, f, a, e, r in zip(data, factors, alphas, epss, rates, strict=True)
    ]
    for _ in range(50):
        together.step()
        for one in alone:
            one.step()
    for i, one in enumerate(alone):
        np.testing.assert_allclose(together.factor[i], one.factor[0], rtol=1e-12, atol=1e-14)
        assert together.train_loss[i] == pytest.approx(one.train_loss[0], rel=1e-12)
        assert together.components(data[i].beta, i).total == pytest.approx(
            one.components(data[i].beta).total, rel=1e-12
        )
    np.testing.assert_allclose(
        together.largest_stable_rate(), [one.largest_stable_rate()[0] for one in alone]
    )


@pytest.mark.parametrize("centred", [True, False])
def test_the_population_loss_is_the_mean_over_inputs(centred: bool) -> None:
    """Against a sum over 400,000 inputs, and each part against the moment that it stands for."""
    closed, beta = descent(9, centred=centred), task().beta
    for _ in range(10):
        closed.step()
    parts = closed.components(beta)
    x = np.random.default_rng(1).standard_normal((400_000, D)) / D**0.5
    error = closed.predict(x)[0] - (x @ beta) ** 2 / 2
    assert parts.total == pytest.approx(np.mean(error**2), rel=0.02)
    assert parts.variance == pytest.approx(np.mean(error) ** 2, rel=0.05)
    odd = (error - (closed.predict(-x)[0] - (x @ beta) ** 2 / 2)) / 2
    assert parts.linear == pytest.approx(np.mean(odd**2), rel=0.02)


def test_a_network_at_the_solution_has_no_loss() -> None:
    beta = task().beta
    w = polynomial.initial_weights(10, D, 0, aligned=1.0, solution=beta / (ALPHA * EPS) ** 0.5)
    net = network.PolyNetwork(torch.from_numpy(w), alpha=ALPHA, eps=EPS)
    mean, second = (part.numpy() for part in net.order())
    parts = polynomial.population_loss(mean, second, beta, alpha=ALPHA, eps=EPS)
    assert parts.total == pytest.approx(0, abs=1e-25)
    x = torch.from_numpy(task().x)
    np.testing.assert_allclose(net(x).detach(), (x @ torch.from_numpy(beta)) ** 2 / 2)
    with pytest.raises(DataError, match="even width"):
        polynomial.initial_weights(9, D, 0, aligned=0.5, solution=beta)


def test_the_linearised_twin_is_the_taylor_expansion_trained() -> None:
    width, data = 9, task()
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    net = network.PolyNetwork(torch.from_numpy(weights(width)), alpha=ALPHA, eps=EPS)
    twin = polynomial.LinearisedTwin(descent(width))
    linear = LinearisedModel(net)
    start = net(x).detach()
    optimiser = torch.optim.SGD(linear.parameters(), lr=RATE * width / ALPHA**2)
    for step in range(41):
        loss = (linear(x) - start - y).square().mean()
        if step in (0, 1, 7, 40):
            assert twin.train_loss(step) == pytest.approx(float(loss.detach()), rel=1e-9)
            other = torch.from_numpy(data.x_test[:20])
            theirs = (linear(other) - net(other)).detach().numpy()
            np.testing.assert_allclose(twin.predict(data.x_test[:20], step), theirs, atol=1e-10)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_the_twin_ends_in_regression_with_the_initial_kernel() -> None:
    data, width = task(), 9
    net = network.PolyNetwork(torch.from_numpy(weights(width)), alpha=ALPHA, eps=EPS)
    x, other = torch.from_numpy(data.x), torch.from_numpy(data.x_test)
    kernel = empirical_ntk(net, x, mode="trace", method="jacobian")
    np.testing.assert_allclose(
        polynomial.tangent_kernel(data.x, descent(width).start[0]) * ALPHA**2 / width, kernel
    )
    cross = empirical_ntk(net, other, x, mode="trace", method="jacobian")
    theirs = cross @ torch.linalg.solve(kernel, torch.from_numpy(data.y))
    twin = polynomial.LinearisedTwin(descent(width))
    np.testing.assert_allclose(twin.predict(data.x_test), theirs.numpy(), rtol=1e-6)
    assert twin.train_loss(math.inf) < 1e-20


@pytest.mark.parametrize("centred", [True, False])
def test_the_twin_s_population_loss_is_the_mean_over_inputs(centred: bool) -> None:
    closed = descent(9, centred=centred)
    twin, beta = polynomial.LinearisedTwin(closed), task().beta
    x = np.random.default_rng(1).standard_normal((200_000, D)) / D**0.5
    start = 0.0 if centred else closed.predict(x)[0]
    for step in (0, 20, math.inf):
        error = start + twin.predict(x, step) - (x @ beta) ** 2 / 2
        assert twin.components(beta, step).total == pytest.approx(np.mean(error**2), rel=0.03)


def test_small_steps_follow_the_order_parameters_equation() -> None:
    """The distance to gradient flow falls in proportion to the learning rate."""
    horizon, errors = 20.0, []
    for rate in (0.2, 0.1, 0.05):
        closed = descent(30, rate=rate)
        times = [0.0, horizon / rate]
        flow = [factor for _, factor in polynomial.gradient_flow(closed, times)]
        np.testing.assert_allclose(flow[0], closed.start[0])
        for _ in range(int(times[1])):
            closed.step()
        errors.append(np.abs(closed.factor[0] - flow[1]).max())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.15)


def test_weights_w_times_larger_are_alpha_and_eps_w_times_larger() -> None:
    """eta = rate N for the larger weights, rate N / w^2 for alpha = w."""
    w, data = 3.0, task()
    factors = polynomial.neurons(w * weights(20), EPS), polynomial.neurons(weights(20), w * EPS)
    larger = polynomial.Descent(data.x, data.y, factors[0], alpha=1.0, eps=EPS, rate=RATE)
    lazier = polynomial.Descent(data.x, data.y, factors[1], alpha=w, eps=w * EPS, rate=RATE)
    for _ in range(30):
        larger.step()
        lazier.step()
    np.testing.assert_allclose(larger.train_loss, lazier.train_loss, rtol=1e-9)
    np.testing.assert_allclose(
        larger.predict(data.x_test), lazier.predict(data.x_test), rtol=1e-8, atol=1e-12
    )


def test_trained_readouts_against_a_plain_loop() -> None:
    data, width, rate = task(), 8, 0.1
    w, a = weights(width), np.random.default_rng(5).standard_normal(width)
    ours = network.ReadoutDescent(
        data.x, data.y, w, a, alpha=ALPHA, eps=EPS, rate=rate, centred=True
    )
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    theirs = [torch.from_numpy(part.copy()).requires_grad_() for part in (w, a)]

    def outputs(x: torch.Tensor) -> torch.Tensor:
        z = x @ theirs[0].T
        return ALPHA * (theirs[1] * (z + EPS * z**2 / 2)).sum(1) / width

    start, other = outputs(x).detach(), torch.from_numpy(data.x_test)
    start_other = outputs(other).detach()
    optimiser = torch.optim.SGD(theirs, lr=rate * width / ALPHA**2)
    for _ in range(30):
        optimiser.zero_grad()
        (outputs(x) - start - y).square().mean().backward()
        optimiser.step()
        ours.step()
    expected = (outputs(other) - start_other).detach().numpy()
    np.testing.assert_allclose(ours.predict(data.x_test)[0], expected, rtol=1e-9, atol=1e-12)
    inputs = np.random.default_rng(1).standard_normal((400_000, D)) / D**0.5
    error = ours.predict(inputs)[0] - (inputs @ data.beta) ** 2 / 2
    assert ours.components(data.beta).total == pytest.approx(np.mean(error**2), rel=0.02)
    moved = sum(
        float((now.detach() - torch.from_numpy(then)).square().sum())
        for now, then in zip(theirs, (w, a), strict=True)
    )
    assert ours.movement()[0] == pytest.approx(moved / ((w**2).sum() + (a**2).sum()), rel=1e-9)


def test_a_larger_task_contains_the_smaller_one() -> None:
    small, large = task(10), task(25)
    np.testing.assert_array_equal(small.x, large.x[:10])
    np.testing.assert_array_equal(small.beta, large.beta)
    np.testing.assert_array_equal(small.x_test, large.x_test)
    assert large.x.var() == pytest.approx(1 / D, rel=0.2)


def test_eigenvector_targets_belong_to_the_initial_kernel() -> None:
    w = weights(2)
    data = polynomial.eigenvector_task(D, 10, w, EPS, 3, seed=0)
    x, y = np.vstack([data.x, data.x_test]), np.concatenate([data.y, data.y_test])
    net = network.PolyNetwork(torch.from_numpy(w), alpha=1.0, eps=EPS)
    kernel = empirical_ntk(net, torch.from_numpy(x), mode="trace", method="jacobian").numpy() * 2
    kernel -= kernel.mean()
    values = np.linalg.eigvalsh(kernel)
    np.testing.assert_allclose(kernel @ y, values[-3] * y, atol=1e-10)
    with pytest.raises(DataError, match="1 to 20"):
        polynomial.eigenvector_task(D, 10, w, EPS, 21, seed=0)


def test_alignment_is_the_published_one() -> None:
    """y^T K y / (|K| |y|^2) with the mean off y and the column means off K, as in the notebook."""
    closed, data = descent(9), task()
    x, y = data.x_test[:30], data.y_test[:30]
    net = network.PolyNetwork(torch.from_numpy(weights(9)), alpha=ALPHA, eps=EPS)
    kernel = empirical_ntk(net, torch.from_numpy(x), mode="trace", method="jacobian").numpy()
    centred, k = y - y.mean(), kernel - kernel.mean(axis=0)
    published = centred @ k @ centred / (np.linalg.norm(k) * np.linalg.norm(centred) ** 2)
    assert closed.alignment(x, y) == pytest.approx(published, rel=1e-9)


def test_the_modular_network_against_one_hot_inputs() -> None:
    net = network.ModularNetwork(5, 7, torch.Generator().manual_seed(0))
    pairs = torch.tensor([[0, 4], [3, 3]])
    hot = torch.cat([F.one_hot(pairs[:, 0], 5), F.one_hot(pairs[:, 1], 5)], dim=1).float()
    expected = ((hot @ net.first.T) ** 2) @ net.second.T / (10 * 7)
    torch.testing.assert_close(net(pairs), expected)


def test_the_image_network_has_the_published_scales() -> None:
    net = network.image_network(64, 3.0, 20, generator=torch.Generator().manual_seed(0))
    x = torch.rand(5, 64)
    first, second, third, last = net.parameters()
    h = F.relu(x @ first.T / 8)
    for w in (second, third):
        h = F.relu(h @ w.T / 20**0.5)
    torch.testing.assert_close(net(x), h @ last.T / 20)
    assert first.std().item() == pytest.approx(3, rel=0.05)
    kaiming = network.image_network(64, 3.0, 20, kaiming=True)
    spreads = [w.std().item() for w in kaiming.parameters()]
    assert spreads[0] == pytest.approx(3 * (2 / 64) ** 0.5, rel=0.06)
    assert spreads[2] == pytest.approx(3 * (2 / 20) ** 0.5, rel=0.15)


def test_the_transformer_against_full_attention() -> None:
    net = network.OneLayerTransformer(5, 8, 2, 12, torch.Generator().manual_seed(0)).double()
    nn.init.normal_(net.bias_in)
    pairs = torch.tensor([[0, 4], [3, 1], [2, 2]])
    tokens = torch.cat([pairs, torch.full((3, 1), 5)], dim=1)
    h = net.embed[tokens] + net.position
    heads = []
    for i in range(2):
        part = slice(4 * i, 4 * i + 4)
        q, k, v = (h @ w[part].T for w in (net.query, net.key, net.value))
        scores = (q @ k.transpose(1, 2)) / 2
        mask = torch.ones(3, 3, dtype=torch.bool).triu(1)
        heads.append(scores.masked_fill(mask, -1e10).softmax(-1) @ v)
    h = h + torch.cat(heads, dim=-1) @ net.attention_out.T
    h = h + F.relu(h @ net.mlp_in.T + net.bias_in) @ net.mlp_out.T + net.bias_out
    torch.testing.assert_close(net(pairs), (h @ net.unembed)[:, -1])


def test_gap_of_known_curves() -> None:
    train, test = [1.0, 0.5, 0.04, 0.01, 0.01, 0.01], [2.0, 2.4, 2.0, 1.0, 0.11, 0.09]
    found = gap.grok_gap(train, test)
    assert (found.train_step, found.test_step, found.ratio) == (2, 5, 2.5)
    assert str(found) == "train at step 2, test at 5: 2.5x"
    late = gap.grok_gap(train[:5], test[:5], steps=[0, 10, 20, 40, 80])
    assert late.ratio is None
    assert late.at_least == 4
    assert "test not by 80: more than 4x" in str(late)
    assert gap.grok_gap(train, test, 0.2).ratio == 2
    assert gap.grok_gap(test, test, reference=2.0).train_step == 5
    assert gap.grok_gap([1.0, 0.9], [1.0, 0.9]).at_least is None


@pytest.mark.parametrize(
    ("train", "test", "settings", "words"),
    [
        ([1.0, 0.5], [1.0], {}, "as many training losses"),
        ([1.0], [1.0], {}, "at least two"),
        ([1.0, 0.5], [1.0, 0.5], {"fraction": 1.5}, "between 0 and 1"),
        ([1.0, 0.5], [1.0, 0.5], {"steps": [3, 1]}, "increase"),
        ([math.nan, 0.5], [1.0, 0.5], {}, "finite number"),
    ],
)
def test_bad_curves_are_refused(
    train: list[float], test: list[float], settings: dict[str, object], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        gap.grok_gap(train, test, **settings)  # type: ignore[arg-type]


def test_steps_on_a_logarithmic_axis() -> None:
    steps = gap.logarithmic_steps(1000, per_decade=10)
    assert steps[:3] == [0, 1, 2]
    assert steps[-1] == 1000
    assert {10, 100} <= set(steps)
    assert gap.logarithmic_steps(1) == [0, 1]


def test_the_model_is_the_closed_training_with_its_history() -> None:
    data = task(20)
    model = method.PolyGrokModel(ALPHA, EPS, 30, steps=40, learning_rate=0.3 * 30 / ALPHA**2)
    model.fit(data.x, data.y, validation=(data.x_test, data.y_test))
    closed = polynomial.Descent(
        data.x, data.y, polynomial.neurons(weights(30), EPS), alpha=ALPHA, eps=EPS, rate=0.3
    )
    for _ in range(40):
        closed.step()
    np.testing.assert_allclose(model.predict(data.x_test), closed.predict(data.x_test)[0])
    assert model.curves_["train_loss"][-1] == pytest.approx(closed.train_loss[0])
    assert model.curves_["test_loss"][-1] == pytest.approx(
        np.mean((model.predict(data.x_test) - data.y_test) ** 2)
    )
    np.testing.assert_allclose(model.second_[-1], closed.order()[1])
    assert model.mean_.shape == (len(model.curves_["step"]), D)
    assert model.n_iter_ == 40
    linear = model.curves_["linearised_test_loss"]
    assert linear[0] == model.curves_["test_loss"][0]
    assert model.score(data.x, data.y) > 0


def test_training_that_diverges_names_the_largest_stable_rate() -> None:
    data = task(20)
    with pytest.raises(DataError, match=r"diverged at step \d+.*largest stable") as caught:
        method.PolyGrokModel(learning_rate=1e6).fit(data.x, data.y)
    named = float(str(caught.value).rsplit(" ", 1)[1])
    # A very lazy network stays at its initial kernel, where the limit is exact.
    stable, unstable = (
        method.PolyGrokModel(alpha=1e4, learning_rate=share * named / 1e8, steps=400)
        for share in (0.95, 1.05)
    )
    losses = stable.fit(data.x, data.y).curves_["train_loss"]
    assert losses[-1] < losses[0]
    with pytest.raises(DataError, match="diverged"):
        unstable.fit(data.x, data.y)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": 0.0}, "alpha.*greater than 0"),
        ({"eps": -1.0}, "eps.*greater than 0"),
        ({"width": 0}, "width"),
    ],
)
def test_bad_settings_of_the_model(settings: dict[str, float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        method.PolyGrokModel(**settings).fit(task().x, task().y)


def test_bad_data_of_the_model() -> None:
    with pytest.raises(DataError, match="not constant"):
        method.PolyGrokModel().fit(task().x, np.ones(P))
    with pytest.raises(ValueError, match="minimum of 2"):
        method.PolyGrokModel().fit(task().x[:1], task().y[:1])
    model = method.PolyGrokModel(steps=2).fit(task().x, task().y)
    with pytest.raises(DataError, match="validation"):
        model.gap()


@pytest.mark.slow
def test_the_model_is_a_scikit_learn_estimator() -> None:
    from sklearn.utils.estimator_checks import check_estimator

    check_estimator(method.PolyGrokModel(steps=300))


def test_an_infinitely_wide_model_needs_no_seed() -> None:
    data = task()
    first, second = (
        method.PolyGrokModel(width=math.inf, steps=10, seed=s).fit(data.x, data.y) for s in (0, 1)
    )
    np.testing.assert_array_equal(first.predict(data.x), second.predict(data.x))


def test_a_forecast_s_numbers_by_hand() -> None:
    """A linear network: its kernel is x.x' and the least change that fits is least squares'."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 40, generator=generator, dtype=torch.float64)
    y = x[:, 0] * 2
    net = nn.Sequential(nn.Linear(40, 1, bias=False)).double()
    found = method.grok_forecast(net, x, y)
    least = float(torch.linalg.lstsq(x, y).solution.square().sum())
    assert found.movement == pytest.approx(least / float(net[0].weight.detach().square().sum()))
    assert found.data_ratio == 30 / 1600
    assert found.alignment > 1.5 * found.chance
    assert 0 < found.kernel_error < 1.5
    assert "kernel already generalises" in found.verdict


class Column(nn.Module):
    """A polynomial network with its output as a column."""

    def __init__(self, dimension: int, alpha: float, eps: float) -> None:
        super().__init__()
        w = torch.from_numpy(polynomial.initial_weights(100, dimension, 0))
        self.net = network.PolyNetwork(w, alpha=alpha, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)[:, None]


def test_forecasts_of_the_three_conditions() -> None:
    def problem(dimension: int, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
        data = polynomial.quadratic_task(dimension, samples, 0)
        return torch.from_numpy(data.x), torch.from_numpy(data.y)

    # 78 products of 12 inputs and 40 samples of them: the kernel cannot know the others.
    x, y = problem(12, 40)
    misaligned = method.grok_forecast(Column(12, 1.0, 0.05), x, y)
    assert misaligned.kernel_error > 0.3
    assert misaligned.verdict.startswith("grokking")
    lazier = method.grok_forecast(Column(12, 100.0, 0.05), x, y)
    assert lazier.movement == pytest.approx(misaligned.movement / 1e4)
    assert lazier.verdict.startswith("too lazy")
    few = method.grok_forecast(Column(12, 1.0, 0.05), x[:20], y[:20])
    assert "too few" in few.verdict
    # 21 products and 100 samples: regression with a curved kernel finds the target.
    aligned = method.grok_forecast(Column(6, 1.0, 20.0), *problem(6, 100))
    assert aligned.kernel_error < 0.3
    assert "already generalises" in aligned.verdict
    with pytest.raises(DataError, match="at least 10"):
        method.grok_forecast(Column(12, 1.0, 0.05), x[:8], y[:8])


def test_output_scale_divides_the_learning_rate_for_the_same_first_step() -> None:
    """Functions that start at the same pace: the first change of the output is alike."""
    data = task(20)
    x, y = torch.from_numpy(data.x).float(), torch.from_numpy(data.y).float()
    changes = []
    for alpha in (1.0, 100.0):
        net = mlp((D, 30, 1), generator=torch.Generator().manual_seed(0))
        model = ScaledOutput(net, alpha)
        optimiser = torch.optim.SGD(net.parameters(), lr=model.learning_rate(1e-3))
        F.mse_loss(model(x)[:, 0], y).backward()
        optimiser.step()
        changes.append(model(x).detach())
    torch.testing.assert_close(changes[0], changes[1], rtol=2e-2, atol=1e-5)


def test_a_sweep_moves_less_at_larger_alpha() -> None:
    data = polynomial.quadratic_task(5, 40, 0, tests=40)
    parts = [torch.from_numpy(part).float() for part in (data.x, data.y, data.x_test, data.y_test)]
    moved = []
    for alpha in (0.3, 30.0):
        net = mlp((5, 40, 1), generator=torch.Generator().manual_seed(0))
        curve, change = scaled.regression_sweep(net, *parts, alpha, 0.2, 200)
        moved.append(change.kernel_change)
        assert curve.train_loss[-1] < curve.train_loss[0]
    assert moved[1] < moved[0] / 10
    with pytest.raises(DataError, match=r"diverged at step \d+.*below"):
        net = mlp((5, 40, 1), generator=torch.Generator().manual_seed(0))
        scaled.regression_sweep(net, *parts, 10.0, 50.0, 200)


def test_minibatches_go_round_and_the_learning_rate_warms_up() -> None:
    data = scaled.classification_task("digits", 0, samples=100)
    firsts = [scaled._batch(data, 40, step)[0][0] for step in (1, 2, 3, 4)]
    starts = [0, 40, 80, 20]
    assert all(torch.equal(a, data.train_inputs[i]) for a, i in zip(firsts, starts, strict=True))
    model = scaled.scaled_network("digits", 0, alpha=1.0, centred=True, width=8)
    before = [p.detach().clone() for p in model.model.parameters()]
    recipe = scaled.Recipe("adamw", 1e-2, warm_up=10)
    scaled.train_scaled(model, data, recipe, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.model.parameters(), strict=True))
    scaled.train_scaled(model, data, recipe, 2)
    pairs = zip(before, model.model.parameters(), strict=True)
    largest = max(float((a - b.detach()).abs().max()) for a, b in pairs)
    assert largest == pytest.approx(1e-3, rel=0.01)


def test_mnist_s_test_file_splits_in_two(real_data: Path) -> None:
    data = scaled.classification_task("mnist", 0, samples=1000)
    assert data.train_inputs.shape == (1000, 784)
    assert data.test_inputs.shape == (9000, 784)
    everything = torch.cat([data.train_labels, data.test_labels])
    assert everything.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


# The study.


def measured(cell: study.Cell, seed: int = 0) -> tuple[dict[str, object], Run]:
    run = Run(seed)
    card = Card.read(Path(study.__file__).parent / "card.toml")
    return dict(study.Study(card).measure(cell, run)), run


TINY = study.Cell(dimension=6, samples=25, width=30, eps=0.3, rate=2.0, steps=3000)


def test_the_study_s_gap_is_that_of_the_network_s_own_curves() -> None:
    """Thresholds from the study against a plain autograd loop with a million test inputs' law."""
    found, run = measured(TINY)
    data = polynomial.quadratic_task(6, 25, 0)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    w = torch.from_numpy(polynomial.initial_weights(30, 6, 0))
    net = network.PolyNetwork(w, alpha=1.0, eps=0.3)
    start, steps = net(x).detach(), int(found["fit_step"])
    losses = []
    for _ in range(steps + 1):
        loss = (net(x) - start - y).square().mean()
        (gradient,) = torch.autograd.grad(loss, [net.weight])
        with torch.no_grad():
            net.weight -= 2.0 * 30 * gradient
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 * losses[0] <= losses[-2]
    curve = pd.DataFrame(run.curves, columns=["step", "name", "value"])
    tests = curve[curve["name"] == "test"]
    below = tests[tests["value"] < 0.05]["step"].min()
    above = tests[tests["value"] >= 0.05]["step"].max()
    assert above < float(found["generalise_step"]) <= below
    assert found["gap"] == found["generalise_step"] / found["fit_step"]


def test_flow_and_small_steps_have_the_same_delay() -> None:
    flow, _ = measured(TINY.changed({"method": "flow", "rate": 0.2, "steps": 30_000}))
    steps, _ = measured(TINY.changed({"rate": 0.2, "steps": 30_000}))
    assert flow["gap"] == pytest.approx(steps["gap"], rel=0.08)
    assert flow["peak_test"] == pytest.approx(steps["peak_test"], rel=0.01)


def test_every_published_cell_can_be_built() -> None:
    cells = study.paper_cells()
    assert len(set(cells)) > 250
    for cell in {(c.task, c.method, c.eigenvector): c for c in cells}.values():
        if cell.task == "polynomial":
            data, descent = study.polynomial(cell, 0)
            assert np.isfinite(descent.train_loss[0])
            assert data.x.shape == (cell.samples, cell.dimension)
    sweep = [c.alpha for c in cells if c.eps == 0.25 and c.samples == 450 and c.norm == 1]
    assert sorted(2 * alpha for alpha in sweep) == [2**-5, 0.25, 0.5, 1, 2, 4, 8, 16, 32]


def table_of(**changes: dict[str, float]) -> pd.DataFrame:
    """Three seeds of the small scale's cells in which all claims hold, but for `changes`."""
    rows = []
    for cell in study.small_cells():
        for seed in range(3):
            lazy = math.log2(cell.alpha * cell.norm)
            row = {**cell.model_dump(), "seed": seed, "gap": 6 + lazy + seed / 10}
            row |= {"peak_test": 1.3 - cell.eps / 4 + seed / 100, "kernel_test": 1.0}
            row |= {"late_test": 1.5 if cell.samples == 60 else 0.02}
            row |= {"final_train": 0.01, "decomposition_error": 0.05, "alignment_share": 0.8}
            stuck = cell.alpha == 16 or cell.eps == 1.0
            row |= {"final_test": (0.4 if stuck else 0.04) + seed / 1000}
            row |= {"train_at_split": 0.1 + seed / 100, "peak_over_kernel": 1 + seed / 100}
            row |= {"norm_ratio": 2 + seed / 10}
            if cell.samples in (150, 800):
                row["gap"] = {150: 20, 800: 1.2}[cell.samples] + seed / 100
            if cell.aligned:
                row["gap"] = 1.1 + seed / 100
            if cell.task == "digits":
                row["gap"] = 1.2 + math.log10(cell.alpha) + seed / 100
            rows.append(row)
    table = pd.DataFrame(rows)
    for name, (select, value) in changes.items():
        table.loc[select(table), name] = value
    return table


@pytest.mark.parametrize(
    ("metric", "rows", "value", "claim"),
    [
        ("gap", lambda t: (t["alpha"] == 1) & (t["task"] == "polynomial"), 2.0, "C1"),
        ("late_test", lambda t: t["samples"] == 60, 0.5, "C2"),
        ("final_test", lambda t: t["alpha"] == 16, 0.01, "C3"),
        ("decomposition_error", lambda t: t["alpha"] == 1, 0.3, "C4"),
        ("final_test", lambda t: t["eps"] == 1, 0.01, "C5"),
        ("train_at_split", lambda t: t["alpha"] == 1, 0.6, "C6a"),
        ("peak_over_kernel", lambda t: t["alpha"] == 1, 1.7, "C6b"),
        ("gap", lambda t: t["task"] == "digits", 1.2, "C7"),
        ("gap", lambda t: t["norm"] == 2, 1.0, "C8"),
        ("norm_ratio", lambda t: t["alpha"] == 1, 0.5, "C9"),
        ("gap", lambda t: t["aligned"] == 0.5, 3.0, "C10"),
    ],
)
def test_each_claim_can_be_refuted(metric: str, rows: object, value: float, claim: str) -> None:
    card = Card.read(Path(study.__file__).parent / "card.toml")
    judge = study.Study(card)
    held = {verdict.claim: verdict.verdict for verdict in judge.claims(table_of())}
    assert set(held.values()) == {"supported"}
    changed = judge.claims(table_of(**{metric: (rows, value)}))  # type: ignore[arg-type]
    broken = {verdict.claim: verdict.verdict for verdict in changed}
    assert broken[claim] == "refuted"


def test_the_figure_draws_without_the_usual_cells(tmp_path: Path) -> None:
    found, run = measured(TINY.changed({"steps": 40}))
    values = {k: getattr(x, "after", x) for k, x in found.items()}
    row = {**TINY.changed({"steps": 40}).model_dump(), "seed": 0, **values}
    curves = pd.DataFrame(run.curves, columns=["step", "name", "value"]).assign(
        **{k: x for k, x in row.items() if k in study.Cell.model_fields or k == "seed"}
    )
    figure.draw(pd.DataFrame([row]), curves).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


# Commands on a person's files.


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    data = polynomial.quadratic_task(4, 60, 0)
    path = tmp_path / "table.csv"
    frame = pd.DataFrame(3 * data.x + 1, columns=list("abcd")).assign(y=data.y)
    frame.to_csv(path, index=False)
    return path


def test_a_table_and_an_npz_are_read_alike(csv: Path, tmp_path: Path) -> None:
    x, y = use.read_problem(csv, "y")
    np.savez(tmp_path / "same.npz", X=x, y=y)
    for ours, theirs in zip((x, y), use.read_problem(tmp_path / "same.npz", "y"), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    (train, target), (test, _) = use.read_split(csv, "y", 0.25, 0)
    assert (len(train), len(test)) == (45, 15)
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(train.var(0), 1 / 4)
    assert target.std() == pytest.approx(1)


def test_fit_and_gap_commands(csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "curves.csv"
    use.fit(csv, alpha=0.5, eps=0.5, width=math.inf, steps=200, out=out)
    said = capsys.readouterr().out
    assert "regression with the initial kernel" in said
    assert "delay at 0.05" in said
    curves = pd.read_csv(out)
    assert curves["step"].iloc[-1] == 200
    assert curves["train_loss"].iloc[-1] < curves["train_loss"].iloc[0]
    use.gap(out)
    found = gap.grok_gap(curves["train_loss"], curves["test_loss"], 0.5, steps=curves["step"])
    assert f"{found.train_step:g}" in capsys.readouterr().out


def test_forecast_and_sweep_commands(
    csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    use.forecast(csv, hidden="20")
    assert "alignment" in capsys.readouterr().out
    out = tmp_path / "sweep.csv"
    use.sweep(csv, alphas="0.5,5", hidden="20", steps=50, out=out)
    assert set(pd.read_csv(out)["alpha"]) == {0.5, 5.0}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b,y\n1,2,3\n4,oops,6\n", r"row 3, column 'b'.*'oops'.*a number"),
        ("a,b,y\n1,2,3\n4,,6\n", r"row 3, column 'b': missing value"),
        ("a,b,y\n1,2,3\n4,5,3\n", "constant targets.*targets that vary"),
        ("a,b,y\n1,2,3\n", "too few rows"),
        ("y\n1\n2\n", "no columns beside 'y'"),
        ("a,b,z\n1,2,3\n", "no column 'y'"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        use.read_problem(path, "y")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": np.zeros((3, 2))}, "no array 'y'"),
        ({"X": np.zeros((3, 2)), "y": np.arange(4)}, "shapes"),
        ({"X": np.full((3, 2), np.nan), "y": np.arange(3)}, r"row 1, column 1: missing value"),
        ({"X": np.array([["a"]]), "y": np.arange(1)}, "column 'X'.*numbers"),
    ],
)
def test_bad_npz_files_are_refused(tmp_path: Path, arrays: dict[str, ndarray], words: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=words):
        use.read_problem(tmp_path / "bad.npz", "y")


def test_other_bad_input_of_commands(csv: Path, tmp_path: Path) -> None:
    (tmp_path / "no.npz").write_text("text")
    with pytest.raises(DataError, match="not a readable"):
        use.read_problem(tmp_path / "no.npz", "y")
    with pytest.raises(DataError, match="no such file"):
        use.read_problem(tmp_path / "none.npz", "y")
    with pytest.raises(DataError, match="a test fraction of"):
        use.read_split(csv, "y", 0.99, 0)
    with pytest.raises(DataError, match="above 0 with commas"):
        use.sweep(csv, alphas="1,-3")
    with pytest.raises(DataError, match="whole numbers"):
        use.forecast(csv, hidden="20,x")
    path = tmp_path / "curves.csv"
    path.write_text("step,train_loss,test_loss\n0,1,1\n1,,0.5\n")
    with pytest.raises(DataError, match=r"row 3, column 'train_loss'"):
        use.gap(path)
