"""The contracted kernel against one gradient per output; networks together against one by one;
the exact linear flow against SciPy's integrator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

from peira.dynamics.probes import jacobian
from peira.dynamics.rich_lazy_rank.inits import gaussian_init, shuffle_weights
from peira.dynamics.rich_lazy_rank.linear import linear_flow
from peira.dynamics.rich_lazy_rank.network import RateRNN, output_kernel
from peira.dynamics.rich_lazy_rank.tasks import two_alternatives
from peira.dynamics.rich_lazy_rank.training import Cohort

torch.set_num_threads(1)
UNITS, TRIALS, NETWORKS = 300, 32, 20


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(hidden: int, seed: int = 0) -> RateRNN:
    net = RateRNN(3, hidden, 3, generator=generator(seed))
    net.set_recurrent(gaussian_init(hidden, generator=generator(seed)))
    return net


INPUTS, LABELS = two_alternatives(TRIALS, generator())


@pytest.mark.benchmark(group="rich-lazy-rank kernel of all outputs, 300 units")
def test_kernel_peira(benchmark: Callable[..., None]) -> None:
    benchmark(output_kernel, network(UNITS), INPUTS)


def kernel_by_gradients(net: RateRNN) -> torch.Tensor:
    """One autograd.grad for each output, as the official code has it; rows allocated once."""
    outputs = net(INPUTS).flatten()
    rows = torch.empty(len(outputs), UNITS**2)
    for i, output in enumerate(outputs):
        rows[i] = torch.autograd.grad(output, net.recurrent.weight, retain_graph=True)[0].flatten()
    return rows @ rows.T


@pytest.mark.benchmark(group="rich-lazy-rank kernel of all outputs, 300 units")
def test_kernel_per_output(benchmark: Callable[..., None]) -> None:
    benchmark.pedantic(kernel_by_gradients, (network(UNITS),), rounds=2)  # type: ignore[attr-defined]


@pytest.mark.benchmark(group="rich-lazy-rank kernel of all outputs, 300 units")
def test_kernel_vmapped_jacobian(benchmark: Callable[..., None]) -> None:
    def kernel(net: RateRNN) -> torch.Tensor:
        rows = jacobian(net, INPUTS, ["recurrent"]).flatten(0, 1)
        return rows @ rows.T

    benchmark.pedantic(kernel, (network(UNITS),), rounds=2)  # type: ignore[attr-defined]


@pytest.mark.benchmark(group="rich-lazy-rank training step of 20 networks, 100 units")
def test_training_step_peira(benchmark: Callable[..., None]) -> None:
    cohort = Cohort([network(100, seed) for seed in range(NETWORKS)], 3e-3)
    x, y = INPUTS.expand(NETWORKS, -1, -1, -1), LABELS.expand(NETWORKS, -1, -1)
    benchmark(cohort.step, x.contiguous(), y.contiguous())


@pytest.mark.benchmark(group="rich-lazy-rank training step of 20 networks, 100 units")
def test_training_step_one_by_one(benchmark: Callable[..., None]) -> None:
    nets = [network(100, seed) for seed in range(NETWORKS)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=3e-3, momentum=0.9) for net in nets]

    def step() -> None:
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(INPUTS).flatten(0, 1), LABELS.flatten()).backward()
            optimizer.step()

    benchmark(step)


def linear_problem() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.normal(size=(20, 10))
    first = rng.normal(size=(20, 10, 10)) * 0.15
    return first, target / np.linalg.norm(target, axis=1, keepdims=True)


@pytest.mark.benchmark(group="rich-lazy-rank linear flow, 20 targets of 10 inputs")
def test_linear_flow_peira(benchmark: Callable[..., None]) -> None:
    first, target = linear_problem()
    linear_flow(first[:1], target[:1])
    benchmark(linear_flow, first, target)


@pytest.mark.benchmark(group="rich-lazy-rank linear flow, 20 targets of 10 inputs")
def test_linear_flow_scipy(benchmark: Callable[..., None]) -> None:
    first, target = linear_problem()

    def flow(start: np.ndarray, beta: np.ndarray) -> np.ndarray:
        def rate(_: float, state: np.ndarray) -> np.ndarray:
            w, matrix = state[:10], state[10:].reshape(10, 10)
            error = beta - matrix.T @ w
            return np.concatenate([matrix @ error, np.outer(w, error).ravel()])

        state = np.concatenate([np.zeros(10), start.ravel()])
        return solve_ivp(rate, (0, 40), state, method="RK45", rtol=1e-7, atol=1e-10).y[:, -1]

    def flows() -> list[np.ndarray]:
        return [flow(start, beta) for start, beta in zip(first, target, strict=True)]

    benchmark.pedantic(flows, rounds=3)  # type: ignore[attr-defined]


@pytest.mark.benchmark(group="rich-lazy-rank degree-preserving shuffle, 300 units, 9,000 edges")
def test_degree_shuffle_peira(benchmark: Callable[..., None]) -> None:
    benchmark(shuffle_weights, sparse_matrix(), "degrees", generator=generator())


@pytest.mark.benchmark(group="rich-lazy-rank degree-preserving shuffle, 300 units, 9,000 edges")
def test_degree_shuffle_networkx(benchmark: Callable[..., None]) -> None:
    """networkx's directed edge swap, whose swaps are three edges each, as many swaps."""
    networkx = pytest.importorskip("networkx")
    graph = networkx.from_numpy_array(sparse_matrix().numpy().T, create_using=networkx.DiGraph)
    swaps = 10 * graph.number_of_edges()

    def shuffle() -> None:
        networkx.directed_edge_swap(graph.copy(), nswap=swaps, max_tries=20 * swaps, seed=0)

    benchmark.pedantic(shuffle, rounds=1)  # type: ignore[attr-defined]


def sparse_matrix() -> torch.Tensor:
    draws = generator()
    there = torch.rand(300, 300, generator=draws) < 0.1
    return (there * torch.randn(300, 300, generator=draws)).fill_diagonal_(0)
