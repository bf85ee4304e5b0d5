"""Kernels of infinite networks and forecasts of training against how others get them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from peira.dynamics.probes.forecast import training_forecast
from peira.dynamics.probes.infinite import kernels

Benchmark = Callable[..., Any]


def points(n: int, features: int = 64) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, features))


def neural_tangents(activation: str) -> Callable[[np.ndarray], object]:
    """The same kernel by google/neural-tangents, in double precision."""
    stax = pytest.importorskip("neural_tangents.stax")
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    layer = {
        "relu": stax.Relu,
        "tanh": lambda: stax.ElementwiseNumerical(jax.numpy.tanh, deg=64),
    }[activation]
    layers = [part for _ in range(2) for part in (stax.Dense(1, b_std=0.1), layer())]
    _, _, kernel = stax.serial(*layers, stax.Dense(1, b_std=0.1))
    compiled = jax.jit(lambda x: kernel(x, None, ("nngp", "ntk")))
    return lambda x: jax.block_until_ready(compiled(x).ntk)


@pytest.mark.benchmark(group="ntk: infinite ReLU network, 2,000 points")
def test_relu_kernel_peira(benchmark: Benchmark) -> None:
    benchmark(kernels, points(2000), depth=3, bias_var=0.01)


@pytest.mark.benchmark(group="ntk: infinite ReLU network, 2,000 points")
def test_relu_kernel_neural_tangents(benchmark: Benchmark) -> None:
    kernel = neural_tangents("relu")
    kernel(points(2000))
    benchmark(kernel, points(2000))


def product_rule(x: np.ndarray, nodes: int = 64) -> np.ndarray:
    """Two tanh layers by a Gauss-Hermite rule on both axes, a row of the kernel at a time."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    w = w / w.sum()
    weights = np.outer(w, w)
    sigma = x @ x.T / x.shape[1] + 0.01
    theta = sigma
    for _ in range(2):
        deviation = np.sqrt(np.diag(sigma))
        c = np.clip(sigma / np.outer(deviation, deviation), -1, 1)
        value, slope = np.empty_like(sigma), np.empty_like(sigma)
        for i in range(len(x)):
            u = np.tanh(deviation[i] * z)
            mixed = c[i, :, None, None] * z[:, None] + np.sqrt(1 - c[i] ** 2)[:, None, None] * z
            v = np.tanh(deviation[:, None, None] * mixed)
            value[i] = np.einsum("ab,a,jab->j", weights, u, v, optimize=True)
            slope[i] = np.einsum("ab,a,jab->j", weights, 1 - u**2, 1 - v**2, optimize=True)
        sigma = value + 0.01
        theta = slope * theta + sigma
    return theta


@pytest.mark.benchmark(group="ntk: infinite tanh network, 150 points")
def test_tanh_kernel_peira(benchmark: Benchmark) -> None:
    found = benchmark(kernels, points(150), depth=3, activation="tanh", bias_var=0.01)
    np.testing.assert_allclose(found.ntk, product_rule(points(150)), rtol=1e-5, atol=1e-7)


@pytest.mark.benchmark(group="ntk: infinite tanh network, 150 points")
def test_tanh_kernel_product_rule(benchmark: Benchmark) -> None:
    benchmark.pedantic(product_rule, (points(150),), rounds=2)  # type: ignore[attr-defined]


@pytest.mark.benchmark(group="ntk: infinite tanh network, 150 points")
def test_tanh_kernel_neural_tangents(benchmark: Benchmark) -> None:
    kernel = neural_tangents("tanh")
    kernel(points(150))
    benchmark(kernel, points(150))


def descended(kernel: np.ndarray, y: np.ndarray, rate: float) -> np.ndarray:
    """A thousand steps of gradient descent on the function, one after the other."""
    f = np.zeros_like(y)
    for _ in range(1000):
        f = f - rate * kernel @ (f - y)
    return f


@pytest.mark.benchmark(group="ntk: 1,000 steps of descent, 500 points")
def test_forecast_peira(benchmark: Benchmark) -> None:
    kernel, y = kernels(points(500), depth=3, bias_var=0.01).ntk, points(500)[:, :1]
    found = benchmark(training_forecast, kernel, y, 1000, learning_rate=1e-3, method="descent")
    np.testing.assert_allclose(found.train[0], descended(kernel, y, 1e-3), atol=1e-8)


@pytest.mark.benchmark(group="ntk: 1,000 steps of descent, 500 points")
def test_forecast_loop(benchmark: Benchmark) -> None:
    kernel, y = kernels(points(500), depth=3, bias_var=0.01).ntk, points(500)[:, :1]
    benchmark(descended, kernel, y, 1e-3)
