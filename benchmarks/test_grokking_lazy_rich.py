"""The closed training against autograd and against the recursion of the order parameters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from peira.dynamics.grokking_lazy_rich.network import PolyNetwork
from peira.dynamics.grokking_lazy_rich.polynomial import (
    Descent,
    LinearisedTwin,
    initial_weights,
    neurons,
    quadratic_task,
)
from peira.dynamics.probes import LinearisedModel

torch.set_num_threads(1)
D, P, N, EPS, RATE, STEPS = 40, 220, 500, 0.05, 3.0, 50
TASK = quadratic_task(D, P, 0)
WEIGHTS = initial_weights(N, D, 0)
X, Y = torch.from_numpy(TASK.x), torch.from_numpy(TASK.y)

Benchmark = Callable[..., object]


def descent(**settings: object) -> Descent:
    given = {"alpha": 1.0, "eps": EPS, "rate": RATE, **settings}
    return Descent(TASK.x, TASK.y, neurons(WEIGHTS, EPS), **given)


def steps(one: Descent) -> None:
    for _ in range(STEPS):
        one.step()


@pytest.mark.benchmark(group="grokking-lazy-rich 50 steps of 500 neurons")
def test_steps_peira(benchmark: Benchmark) -> None:
    benchmark(steps, descent())


@pytest.mark.benchmark(group="grokking-lazy-rich 50 steps of 500 neurons")
def test_steps_autograd(benchmark: Benchmark) -> None:
    net = PolyNetwork(torch.from_numpy(WEIGHTS), alpha=1.0, eps=EPS)
    start = net(X).detach()
    optimiser = torch.optim.SGD(net.parameters(), lr=RATE * N)

    def train() -> None:
        for _ in range(STEPS):
            optimiser.zero_grad()
            (net(X) - start - Y).square().mean().backward()
            optimiser.step()

    benchmark(train)


@pytest.mark.benchmark(group="grokking-lazy-rich 50 steps of 500 neurons")
def test_steps_moments(benchmark: Benchmark) -> None:
    """wbar and M updated themselves, in NumPy."""
    x, y, c = TASK.x, TASK.y, 2 * RATE / P
    mean, second = WEIGHTS.mean(0), WEIGHTS.T @ WEIGHTS / N

    def outputs(mean: np.ndarray, second: np.ndarray) -> np.ndarray:
        return x @ mean + EPS / 2 * np.einsum("pi,pi->p", x @ second, x)

    start = outputs(mean, second)

    def train() -> None:
        w, m = mean, second
        for _ in range(STEPS):
            r = outputs(w, m) - start - y
            g, big = r @ x, x.T @ (r[:, None] * x)
            moved, turned = big @ w, m @ big
            first = np.outer(w, g) + EPS * turned
            square = EPS * np.outer(g, moved) + (np.outer(g, g) + EPS**2 * big @ turned) / 2
            half = c**2 * square - c * first
            w, m = w - c * (g + EPS * moved), m + half + half.T

    benchmark(train)


@pytest.mark.benchmark(group="grokking-lazy-rich 8 alphas, 50 steps")
def test_alphas_peira(benchmark: Benchmark) -> None:
    benchmark(steps, descent(alpha=np.geomspace(0.25, 16, 8)))


@pytest.mark.benchmark(group="grokking-lazy-rich 8 alphas, 50 steps")
def test_alphas_onebyone(benchmark: Benchmark) -> None:
    alone = [descent(alpha=alpha) for alpha in np.geomspace(0.25, 16, 8)]

    def train() -> None:
        for one in alone:
            steps(one)

    benchmark(train)


@pytest.mark.benchmark(group="grokking-lazy-rich linearised twin after 50 steps")
def test_twin_peira(benchmark: Benchmark) -> None:
    one = descent()
    benchmark(lambda: LinearisedTwin(one).predict(TASK.x_test, STEPS))


@pytest.mark.benchmark(group="grokking-lazy-rich linearised twin after 50 steps")
def test_twin_jvp(benchmark: Benchmark) -> None:
    """The Taylor expansion as a module, trained by autograd."""
    net = PolyNetwork(torch.from_numpy(WEIGHTS), alpha=1.0, eps=EPS)
    start, tests = net(X).detach(), torch.from_numpy(TASK.x_test)

    def train() -> torch.Tensor:
        twin = LinearisedModel(net)
        optimiser = torch.optim.SGD(twin.parameters(), lr=RATE * N)
        for _ in range(STEPS):
            optimiser.zero_grad()
            (twin(X) - start - Y).square().mean().backward()
            optimiser.step()
        return twin(tests)

    benchmark(train)


@pytest.mark.benchmark(group="grokking-lazy-rich test loss")
def test_loss_peira(benchmark: Benchmark) -> None:
    """Over all inputs."""
    one = descent()
    benchmark(lambda: one.components(TASK.beta).total)


@pytest.mark.benchmark(group="grokking-lazy-rich test loss")
def test_loss_sampled(benchmark: Benchmark) -> None:
    """Over 1,000 inputs."""
    one = descent()
    benchmark(lambda: np.mean((one.predict(TASK.x_test)[0] - TASK.y_test) ** 2))
