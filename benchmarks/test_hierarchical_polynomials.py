"""Closed-form stage 1 against descent step by step; fits against kernel ridge of scikit-learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import PolynomialFeatures

from peira.dynamics.hierarchical_polynomials.baselines import TunedKernelRidge
from peira.dynamics.hierarchical_polynomials.features import HermiteFeatures
from peira.dynamics.hierarchical_polynomials.method import (
    DescentPath,
    HierarchicalPolynomialRegressor,
    hierarchical_target,
)

ROWS, DIMENSION = 4000, 16
TARGET = hierarchical_target(DIMENSION, 2, "cubic", rng=np.random.default_rng(0))
X, Y = TARGET.sample(ROWS, np.random.default_rng(1))
X_TEST, Y_TEST = TARGET.sample(4000, np.random.default_rng(2))
STEPS = np.unique(np.geomspace(1, 200, 40).round().astype(int))


def error(model) -> float:
    """Mean squared error over the variance, on fresh rows."""
    return float(np.square(model.predict(X_TEST) - Y_TEST).mean() / Y_TEST.var())


def fitted(benchmark: Callable[..., object], model, rounds: int = 3):
    found = benchmark.pedantic(lambda: model.fit(X, Y), rounds=rounds, warmup_rounds=1)
    benchmark.extra_info["error"] = error(found)
    return found


@pytest.mark.benchmark(group="hierarchical-polynomials fit of 4000 rows")
def test_fit_peira(benchmark) -> None:
    model = HierarchicalPolynomialRegressor(2, whiten=False, random_state=0)
    ours = error(fitted(benchmark, model, rounds=10))
    peer = KernelRidge(alpha=0.1, kernel="rbf", gamma=1 / (8 * DIMENSION)).fit(X, Y)
    assert ours < error(peer)


@pytest.mark.benchmark(group="hierarchical-polynomials fit of 4000 rows")
def test_fit_kernel_ridge_one_setting(benchmark) -> None:
    """One setting, the best of the search on these rows, that nobody had to search for."""
    fitted(benchmark, KernelRidge(alpha=0.1, kernel="rbf", gamma=1 / (8 * DIMENSION)))


@pytest.mark.benchmark(group="hierarchical-polynomials fit of 4000 rows")
def test_fit_sklearn_mlp(benchmark) -> None:
    """Three layers, all trained, by scikit-learn's own network."""
    fitted(
        benchmark,
        MLPRegressor(hidden_layer_sizes=(256, 256), early_stopping=True, random_state=0),
        rounds=1,
    )


@pytest.mark.benchmark(group="hierarchical-polynomials stage 1, 40 stopping times")
def test_stage1_peira(benchmark) -> None:
    inner = HermiteFeatures(2).fit(X)
    found = benchmark(lambda: DescentPath(inner, X[:2000], Y[:2000]).weights(STEPS))
    np.testing.assert_allclose(found, descent(inner, X[:2000], Y[:2000]), atol=1e-9)


@pytest.mark.benchmark(group="hierarchical-polynomials stage 1, 40 stopping times")
def test_stage1_step_by_step(benchmark) -> None:
    """The same weights by 200 steps on features that are computed once."""
    inner = HermiteFeatures(2).fit(X)
    benchmark.pedantic(lambda: descent(inner, X[:2000], Y[:2000]), rounds=5, warmup_rounds=1)


def descent(inner: HermiteFeatures, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    features = inner.transform(x)
    features -= features.mean(axis=0)
    target = y - y.mean()
    step = len(x) / np.linalg.norm(features, 2) ** 2
    w, kept = np.zeros(features.shape[1]), []
    for t in range(1, STEPS[-1] + 1):
        w -= step * features.T @ (features @ w - target) / len(x)
        if t in STEPS:
            kept.append(w.copy())
    return np.stack(kept, axis=1)


@pytest.mark.benchmark(group="hierarchical-polynomials features of degree 3, d = 16")
def test_features_peira(benchmark) -> None:
    features = HermiteFeatures(3).fit(X)
    found = benchmark.pedantic(lambda: features.transform(X), rounds=5, warmup_rounds=1)
    assert found.shape == (ROWS, 968)


@pytest.mark.benchmark(group="hierarchical-polynomials features of degree 3, d = 16")
def test_features_sklearn(benchmark) -> None:
    """Plain monomials of the same number; not orthogonal."""
    monomials = PolynomialFeatures(3, include_bias=False).fit(X)
    benchmark.pedantic(lambda: monomials.transform(X), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="hierarchical-polynomials kernel ridge with 10 settings, 2000 rows")
def test_kernel_search_peira(benchmark) -> None:
    model = TunedKernelRidge("rbf", random_state=0)
    benchmark.pedantic(lambda: model.fit(X[:2000], Y[:2000]), rounds=2, warmup_rounds=1)


@pytest.mark.benchmark(group="hierarchical-polynomials kernel ridge with 10 settings, 2000 rows")
def test_kernel_search_sklearn(benchmark) -> None:
    """The same held-out search with `KernelRidge` anew for every setting."""

    def search() -> KernelRidge:
        best = (np.inf, None)
        for length in (1, 4):
            for ridge in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
                model = KernelRidge(
                    alpha=ridge, kernel="rbf", gamma=1 / (2 * length * DIMENSION)
                ).fit(X[:1600], Y[:1600])
                lost = np.square(model.predict(X[1600:2000]) - Y[1600:2000]).mean()
                best = min(best, (lost, (ridge, length)), key=lambda pair: pair[0])
        ridge, length = best[1]
        return KernelRidge(alpha=ridge, kernel="rbf", gamma=1 / (2 * length * DIMENSION)).fit(
            X[:2000], Y[:2000]
        )

    benchmark.pedantic(search, rounds=1, warmup_rounds=1)
