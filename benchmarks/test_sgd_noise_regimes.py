"""Descent to zero hinge loss: compiled and batched runs against PyTorch's own loop, one by one."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.svm import SVC
from torch import nn

from peira.dynamics.sgd_noise_regimes import method, network
from peira.dynamics.sgd_noise_regimes.compiled import CompiledMLP
from peira.dynamics.sgd_noise_regimes.descent import SGDRecipe
from peira.dynamics.sgd_noise_regimes.ensemble import EnsembleDescent
from peira.dynamics.sgd_noise_regimes.perceptron import Perceptron, depleted_gaussian, max_margin

torch.set_num_threads(1)
RUNS, STEPS, SIZE, BATCH = 16, 100, 256, 16
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(SIZE, 64, generator=GENERATOR)
Y = torch.where(X[:, :3].sum(1) > 0, 1.0, -1.0)
# A margin that no run reaches in so few steps: every side takes all of them.
RECIPE = SGDRecipe(1.0, 2.0**-4, BATCH, STEPS)


def mlps() -> list[network.Flat]:
    """Sixteen of the study's networks."""
    return [
        method.mean_field_mlp(64, 64, 2, generator=torch.Generator().manual_seed(seed))
        for seed in range(RUNS)
    ]


def convolutional() -> list[nn.Module]:
    """Sixteen narrow convolutional networks on pictures of 8 x 8."""
    return [
        nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            method.mnas(1, 2, generator=torch.Generator().manual_seed(seed)),
        )
        for seed in range(RUNS)
    ]


def torch_loop(models: list[nn.Module], steps: int) -> None:
    """The published algorithm as one writes it in PyTorch: a run after the other."""
    for model in models:
        start = copy.deepcopy(model)(X).detach()
        optimizer = torch.optim.SGD(model.parameters(), lr=RECIPE.dt)
        for _ in range(steps):
            chosen = torch.randperm(SIZE)[:BATCH]
            margin = RECIPE.alpha * Y[chosen] * (model(X[chosen]) - start[chosen])
            loss = (1 - margin).clamp(min=0).mean() / RECIPE.alpha
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def ensemble(models: list[nn.Module], steps: int) -> None:
    """All runs in one batch."""
    index = torch.arange(SIZE).repeat(RUNS, 1)
    descent = EnsembleDescent(models, X, Y, index, [RECIPE] * RUNS, range(RUNS))
    descent.advance(steps)


def rounds(
    benchmark: Callable[..., None], run: Callable[..., None], make: Callable[[], list]
) -> None:
    """Three rounds with fresh networks, after one that compiles."""
    benchmark.pedantic(run, setup=lambda: ((make(),), {}), rounds=3, warmup_rounds=1)  # type: ignore[attr-defined]


@pytest.mark.benchmark(group="sgd-noise-regimes 16 MLPs, 100 steps")
def test_mlp_runs_peira(benchmark: Callable[..., None]) -> None:
    def run(models: list[network.Flat]) -> None:
        for seed, model in enumerate(models):
            CompiledMLP(model, X.numpy(), Y.numpy(), RECIPE, seed).advance(STEPS)

    rounds(benchmark, run, mlps)


@pytest.mark.benchmark(group="sgd-noise-regimes 16 MLPs, 100 steps")
def test_mlp_runs_ensemble(benchmark: Callable[..., None]) -> None:
    rounds(benchmark, lambda models: ensemble(models, STEPS), mlps)


@pytest.mark.benchmark(group="sgd-noise-regimes 16 MLPs, 100 steps")
def test_mlp_runs_torch(benchmark: Callable[..., None]) -> None:
    rounds(benchmark, lambda models: torch_loop(models, STEPS), mlps)


@pytest.mark.benchmark(group="sgd-noise-regimes 16 convolutional networks, 10 steps")
def test_convolutional_runs_peira(benchmark: Callable[..., None]) -> None:
    rounds(benchmark, lambda models: ensemble(models, 10), convolutional)


@pytest.mark.benchmark(group="sgd-noise-regimes 16 convolutional networks, 10 steps")
def test_convolutional_runs_torch(benchmark: Callable[..., None]) -> None:
    rounds(benchmark, lambda models: torch_loop(models, 10), convolutional)


POINTS, LABELS = depleted_gaussian(256, 16, 1.0, np.random.default_rng(0))
# Fewer steps than it takes to fit all data: both sides take all of them.
LINEAR = SGDRecipe(4.0, 2.0**15, 2, 300)


@pytest.mark.benchmark(group="sgd-noise-regimes perceptron, 300 steps")
def test_perceptron_peira(benchmark: Callable[..., None]) -> None:
    def run() -> None:
        Perceptron(POINTS, LABELS, LINEAR, 0, np.zeros(16)).advance(LINEAR.steps)

    benchmark(run)


@pytest.mark.benchmark(group="sgd-noise-regimes perceptron, 300 steps")
def test_perceptron_numpy(benchmark: Callable[..., None]) -> None:
    def run() -> None:
        rng, w, root = np.random.default_rng(0), np.zeros(16), math.sqrt(16)
        for _ in range(LINEAR.steps):
            chosen = rng.choice(len(POINTS), LINEAR.batch, replace=False)
            x, y = POINTS[chosen], LABELS[chosen]
            wrong = y * (x @ w) / root < LINEAR.margin
            w += LINEAR.dt / LINEAR.batch / root * (y * wrong) @ x

    benchmark(run)


@pytest.mark.benchmark(group="sgd-noise-regimes hard margin, 256 data")
def test_hard_margin_peira(benchmark: Callable[..., None]) -> None:
    benchmark(lambda: max_margin(POINTS, LABELS))


@pytest.mark.benchmark(group="sgd-noise-regimes hard margin, 256 data")
def test_hard_margin_sklearn(benchmark: Callable[..., None]) -> None:
    machine = SVC(C=1e8, kernel="linear")
    # Mirrored, so that the plane goes through the origin.
    x, y = np.vstack([POINTS, -POINTS]), np.append(LABELS, -LABELS)
    benchmark(lambda: machine.fit(x, y))
