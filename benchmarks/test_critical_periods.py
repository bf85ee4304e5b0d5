"""Sweeps of the equation against SciPy, branched transfers against the published restarts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from peira.dynamics.critical_periods.completion import (
    Completion,
    initial_factors,
    low_rank_matrix,
    matrix_transfer,
    observe,
)
from peira.dynamics.critical_periods.deficits import DeficitSchedule
from peira.dynamics.critical_periods.digits import digit_views
from peira.dynamics.critical_periods.pathways import (
    PathwayTask,
    PathwayTrainer,
    balanced_pathways,
    compress,
    gaussian_pathways,
    hierarchy,
)
from peira.dynamics.critical_periods.reduced import pathway_dynamics

torch.set_num_threads(1)

S, DEPTHS, ONSETS, LENGTH, STEPS, DT = (
    [3.87, 2.65, 1.73, 1.0],
    (2, 4),
    (0, 100, 400),
    150,
    1000,
    0.01,
)


def once(benchmark: Callable[..., None], call: Callable[[], object], rounds: int = 3) -> None:
    benchmark.pedantic(call, rounds=rounds, warmup_rounds=1)  # type: ignore[attr-defined]


@pytest.mark.benchmark(group="critical-periods sweep of the equation")
def test_sweep_peira(benchmark: Callable[..., None]) -> None:
    deficits = [DeficitSchedule(start=onset, length=LENGTH) for onset in ONSETS]
    benchmark(lambda: pathway_dynamics(S, DEPTHS, deficits=deficits, steps=STEPS, every=STEPS))


@pytest.mark.benchmark(group="critical-periods sweep of the equation")
def test_sweep_python_loop(benchmark: Callable[..., None]) -> None:
    """Step by step, one trajectory after the other, as the official code does."""

    def trajectory(depth: int, s: float, onset: int) -> float:
        p = q = 0.01 ** (1 / depth)
        for t in range(STEPS):
            left = s - p**depth - q**depth
            p, q = (
                p + DT * np.sqrt(p**2) ** (depth - 1) * left,
                q if onset <= t < onset + LENGTH else q + DT * np.sqrt(q**2) ** (depth - 1) * left,
            )
        return q**depth

    once(benchmark, lambda: [trajectory(d, s, o) for d in DEPTHS for s in S for o in ONSETS])


@pytest.mark.benchmark(group="critical-periods sweep of the equation")
def test_sweep_scipy(benchmark: Callable[..., None]) -> None:
    """An adaptive solver for each trajectory, in pieces between changes of the gate."""

    def trajectory(depth: int, s: float, onset: int) -> float:
        state = np.full(2, 0.01 ** (1 / depth))
        marks = [0.0, onset * DT, (onset + LENGTH) * DT, STEPS * DT]
        for piece in range(3):
            live = np.array([1.0, piece != 1])

            def rhs(_: float, y: np.ndarray, live: np.ndarray = live) -> np.ndarray:
                return live * y ** (depth - 1) * (s - (y**depth).sum())

            if marks[piece + 1] > marks[piece]:
                state = solve_ivp(rhs, marks[piece : piece + 2], state, rtol=1e-6).y[:, -1]
        return float(state[1])

    once(benchmark, lambda: [trajectory(d, s, o) for d in DEPTHS for s in S for o in ONSETS])


# The published numbers of steps, a hundredth of each.
VISITS = (0, 10, 50, 100, 200, 400, 600, 800, 1000)
SIDE, LATER, RATE = 40, 300, 0.2


def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    first, second = (low_rank_matrix(SIDE, rank, rng) for rank in (5, 2))
    return first, second, observe((SIDE, SIDE), 500, rng)


@pytest.mark.benchmark(group="critical-periods transfer after 9 first tasks")
def test_transfer_peira(benchmark: Callable[..., None]) -> None:
    first, second, mask = problem()
    settings = {"pretrain_steps": VISITS, "steps": LATER, "rate": RATE, "init_scale": 0.01}
    once(benchmark, lambda: matrix_transfer(first, second, mask, **settings))


@pytest.mark.benchmark(group="critical-periods transfer after 9 first tasks")
def test_transfer_restarts(benchmark: Callable[..., None]) -> None:
    """Our steps, but from the beginning for each number of steps on the first matrix."""
    first, second, mask = problem()

    def restart(visit: int) -> float:
        factors = initial_factors((SIDE, SIDE), 3, 0.01, rng=np.random.default_rng(0))
        for target, steps in ((first, visit), (second, LATER)):
            trainer = Completion([factors], [target], [mask], RATE)
            for _ in range(steps):
                trainer.step()
            factors = trainer.members()[0]
        return float(trainer.errors(second)[0])

    once(benchmark, lambda: [restart(visit) for visit in VISITS])


@pytest.mark.benchmark(group="critical-periods transfer after 9 first tasks")
def test_transfer_torch_restarts(benchmark: Callable[..., None]) -> None:
    """The official loop: modules, autograd, SGD, from the beginning each time."""
    first, second, mask = problem()
    rows, columns = (torch.tensor(index) for index in np.nonzero(mask))
    targets = [torch.tensor(matrix, dtype=torch.float32) for matrix in (first, second)]

    def restart(visit: int) -> float:
        model = torch.nn.Sequential(*(torch.nn.Linear(SIDE, SIDE, bias=False) for _ in range(3)))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.01 ** (1 / 3) * SIDE**-0.5)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for step in range(visit + LATER):
            target = targets[step >= visit]
            product = model[2](model[1](model[0].weight.t()))
            seen = product[rows, columns] - target[rows, columns]
            loss = 0.5 * seen.pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    once(benchmark, lambda: [restart(visit) for visit in VISITS], rounds=2)


def torch_pathways(networks: list, task: PathwayTask) -> Callable[[], None]:
    """One step of each network by autograd, one network after the other."""
    views = [torch.tensor(view) for view in task.views]
    targets = torch.tensor(task.targets)
    weights = [
        [[torch.tensor(layer, requires_grad=True) for layer in path] for path in network]
        for network in networks
    ]
    optimizers = [torch.optim.SGD([*network[0], *network[1]], lr=0.01) for network in weights]

    def step() -> None:
        for network, optimizer in zip(weights, optimizers, strict=True):
            outputs = []
            for path, h in zip(network, views, strict=True):
                for layer in path:
                    h = layer @ h
                outputs.append(h)
            loss = 0.5 * (outputs[0] + outputs[1] - targets).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return step


def four_networks() -> tuple[list, PathwayTask]:
    task = hierarchy()
    return [balanced_pathways(task, 3, 100, 0.01, np.random.default_rng(0))] * 4, task


@pytest.mark.benchmark(group="critical-periods step of 4 pathway networks")
def test_pathways_peira(benchmark: Callable[..., None]) -> None:
    networks, task = four_networks()
    trainer = PathwayTrainer(networks, task, [None] * 4, 1)
    benchmark(lambda: trainer.step(0))


@pytest.mark.benchmark(group="critical-periods step of 4 pathway networks")
def test_pathways_torch(benchmark: Callable[..., None]) -> None:
    benchmark(torch_pathways(*four_networks()))


def digit_network() -> tuple[list, PathwayTask]:
    task = digit_views(np.random.default_rng(0)).task
    return [gaussian_pathways(task, 3, 32, 0.01, np.random.default_rng(0))], task


@pytest.mark.benchmark(group="critical-periods step on 1,000 digits")
def test_digits_peira(benchmark: Callable[..., None]) -> None:
    networks, task = digit_network()
    trainer = PathwayTrainer(networks, compress(task), [None], 1, 0.05)
    benchmark(lambda: trainer.step(0))


@pytest.mark.benchmark(group="critical-periods step on 1,000 digits")
def test_digits_uncompressed(benchmark: Callable[..., None]) -> None:
    networks, task = digit_network()
    trainer = PathwayTrainer(networks, task, [None], 1, 0.05)
    benchmark(lambda: trainer.step(0))


@pytest.mark.benchmark(group="critical-periods step on 1,000 digits")
def test_digits_torch(benchmark: Callable[..., None]) -> None:
    benchmark(torch_pathways(*digit_network()))
