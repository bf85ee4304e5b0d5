"""Hierarchical polynomials: closed forms against literal descent, quadrature and brute force."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.polynomial import hermite_e
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from peira.cli.using import commands
from peira.data import DataError, load_model, save_model
from peira.dynamics.hierarchical_polynomials import baselines, figure, method, study
from peira.dynamics.hierarchical_polynomials import use as use_module
from peira.dynamics.hierarchical_polynomials.features import (
    HermiteFeatures,
    SphereFeatures,
    hermite_table,
)
from peira.dynamics.hierarchical_polynomials.link import LinkRegressor
from peira.dynamics.hierarchical_polynomials.method import (
    DescentPath,
    HierarchicalPolynomialRegressor,
    correlation,
    whitening,
)
from peira.dynamics.hierarchical_polynomials.network import ThreeLayerNetwork
from peira.dynamics.hierarchical_polynomials.targets import LINKS, hierarchical_target
from peira.engine.errors import PeiraError

SLUG = "hierarchical-polynomials"


def normal_grid(dimension: int, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Hermite nodes and weights of the standard normal law in a few dimensions."""
    points, weights = hermite_e.hermegauss(nodes)
    weights = weights / weights.sum()
    grid = np.array(list(product(points, repeat=dimension)))
    return grid, np.array([math.prod(w) for w in product(weights, repeat=dimension)])


def quadratic(n: int = 1200, d: int = 8, link: str = "cubic", seed: int = 0):
    target = hierarchical_target(d, 2, link, rng=np.random.default_rng(seed))
    return target, *target.sample(n, np.random.default_rng(seed + 1))


@parametrize_with_checks(
    [
        HierarchicalPolynomialRegressor(random_state=0),
        baselines.TunedKernelRidge("rbf", random_state=0),
        HermiteFeatures(),
        SphereFeatures(width=16, random_state=0),
    ]
)
@pytest.mark.filterwarnings("ignore:.*rows for stage 1", "ignore:stage 1 found no feature")
def test_scikit_learn_conventions(estimator, check) -> None:
    check(estimator)


def test_hermite_polynomials_are_numpys() -> None:
    x = np.linspace(-3, 3, 7)
    table = hermite_table(torch.from_numpy(x), 5).numpy()
    for j in range(6):
        expected = hermite_e.hermeval(x, np.eye(6)[j]) / math.sqrt(math.factorial(j))
        np.testing.assert_allclose(table[j], expected, rtol=1e-12)


@pytest.mark.parametrize(("dimension", "degree"), [(1, 3), (3, 1), (3, 2), (2, 4)])
def test_hermite_features_are_orthonormal(dimension: int, degree: int) -> None:
    x, weights = normal_grid(dimension, degree + 1)
    features = HermiteFeatures(degree).fit_transform(x)
    assert features.shape[1] == math.comb(dimension + degree, degree) - 1
    np.testing.assert_allclose(
        features.T * weights @ features, np.eye(features.shape[1]), atol=1e-12
    )
    np.testing.assert_allclose(weights @ features, 0, atol=1e-12)


@pytest.mark.parametrize(("dimension", "degree"), [(1, 3), (4, 1), (5, 3), (3, 4)])
def test_hermite_features_are_the_products_of_their_powers(dimension: int, degree: int) -> None:
    x = np.random.default_rng(0).standard_normal((7, dimension))
    features = HermiteFeatures(degree).fit(x)
    assert len({tuple(row) for row in features.powers_}) == features.width_
    assert set(features.powers_.sum(axis=1)) == set(range(1, degree + 1))
    table = hermite_table(torch.from_numpy(x), degree).numpy()
    for found, powers in zip(features.transform(x).T, features.powers_, strict=True):
        expected = np.prod([table[power, :, i] for i, power in enumerate(powers)], axis=0)
        np.testing.assert_allclose(found, expected)


def test_hermite_kernel_is_the_isotropic_one() -> None:
    """Degree 2: (1/2) <x x^T - I, y y^T - I>, whatever the axes."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 20, 5))
    features = HermiteFeatures(2).fit(x)
    products = x @ y.T
    squares = (x**2).sum(1)[:, None] + (y**2).sum(1)
    expected = products + (products**2 - squares + 5) / 2
    np.testing.assert_allclose(features.transform(x) @ features.transform(y).T, expected)


def test_sphere_units_weigh_the_trace_more() -> None:
    """E over the sphere: (v.x)^2 (v.y)^2 -> (|x|^2 |y|^2 + 2 (x.y)^2)/(d (d + 2))."""
    d = 3
    x, y = np.random.default_rng(0).standard_normal((2, 4, d))
    features = SphereFeatures(400_000, 2, random_state=0).fit(x)
    measured = features.transform(x) @ features.transform(y).T / features.width
    xx, yy = (x**2).sum(1)[:, None], (y**2).sum(1)
    fourth = (xx * yy + 2 * (x @ y.T) ** 2) / (d * (d + 2))
    first = np.array([1.0])  # He_0
    expected = first + x @ y.T / d + (fourth - xx / d - yy / d + 1) / 2
    # Cross terms between He_0 and He_2 of one unit do not vanish off the unit variance.
    expected += ((xx / d - 1) + (yy / d - 1)) / math.sqrt(2)
    np.testing.assert_allclose(measured, expected, atol=0.02)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_sphere_units_are_torchs_activations(activation: str) -> None:
    x = np.random.default_rng(0).standard_normal((6, 3))
    features = SphereFeatures(10, activation=activation, random_state=1).fit(x)
    np.testing.assert_allclose(np.linalg.norm(features.directions_, axis=1), 1)
    layer = nn.functional.relu if activation == "relu" else nn.functional.gelu
    expected = layer(torch.from_numpy(x @ features.directions_.T)).numpy()
    np.testing.assert_allclose(features.transform(x), expected)


@pytest.mark.parametrize(("rows", "dimension"), [(60, 3), (12, 5)])
def test_descent_path_is_gradient_descent(rows: int, dimension: int) -> None:
    """More rows than features and fewer: both Gram matrices."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((rows, dimension)), rng.standard_normal(rows)
    inner = HermiteFeatures(2).fit(x)
    features = inner.transform(x)
    features -= features.mean(axis=0)
    target = y - y.mean()
    step = 1 / np.linalg.eigvalsh(features.T @ features / rows)[-1]
    w, walked = np.zeros(features.shape[1]), {}
    for t in range(1, 61):
        w = w - step * features.T @ (features @ w - target) / rows
        walked[t] = w
    steps = np.array([1, 2, 7, 60])
    expected = np.stack([walked[t] for t in steps], axis=1)
    np.testing.assert_allclose(DescentPath(inner, x, y).weights(steps), expected, atol=1e-10)


class Centred(nn.Module):
    def __init__(self, inner: HermiteFeatures, x: torch.Tensor) -> None:
        super().__init__()
        self.inner, self.mean = inner, inner.evaluate(x).T.mean(dim=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner.evaluate(x).T - self.mean


def test_literal_descent_on_w_of_the_network_is_stage_one() -> None:
    """Small W: sigma_1 is linear, all w_i are parallel, and their mean walks the closed form."""
    _, x, y = quadratic(n=200, d=4)
    rows, labels = torch.from_numpy(x), 1e-4 * torch.from_numpy(y - y.mean())
    inner = HermiteFeatures(2).fit(x)
    network = ThreeLayerNetwork(
        Centred(inner, rows), inner.width_, 32, weight_std=0.0,
        generator=torch.Generator().manual_seed(0),
    ).double()  # fmt: skip
    torch.nn.init.ones_(network.bias)
    assert torch.equal(network(rows), torch.zeros(200, dtype=torch.float64))
    features = network.inner(rows)
    largest = torch.linalg.eigvalsh(features.T @ features / 200)[-1]
    for _ in range(25):
        loss = (network(rows) - labels).square().mean() / 2
        (gradient,) = torch.autograd.grad(loss, network.weight)
        network.weight.data -= 32 / largest * gradient
    mean = (network.outer @ network.weight / 32).detach().numpy()
    expected = DescentPath(inner, x, 1e-4 * y).weights(np.array([25]))[:, 0]
    np.testing.assert_allclose(mean, expected, rtol=1e-8)
    assert np.linalg.matrix_rank(network.weight.detach().numpy(), tol=1e-10) == 1


@pytest.mark.parametrize("activation", ["relu", "quadratic-linear"])
def test_a_network_starts_at_zero(activation: str) -> None:
    draws = torch.Generator().manual_seed(0)
    network = ThreeLayerNetwork(nn.Identity(), 6, 10, activation, generator=draws)
    assert network(torch.randn(5, 6, generator=draws)).abs().max() < 1e-6
    assert network.weight.abs().max() > 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"inner_width": 40},
        {"inner_width": 40, "inner_activation": "relu", "outer_activation": "quadratic-linear"},
        {"whiten": False, "degree": 3, "outer_width": 31},
    ],
)
def test_the_network_is_the_regressor(settings: dict) -> None:
    _, x, y = quadratic(n=300, d=4)
    model = HierarchicalPolynomialRegressor(**{"random_state": 0, **settings}).fit(x, y)
    inputs = (x - model.mean_) @ model.whitener_ if model.whiten else x
    output = model.network()(torch.from_numpy(inputs)).detach().numpy()
    np.testing.assert_allclose(output, model.predict(x), atol=1e-8 * np.abs(y).max())


def test_left_out_error_is_that_of_refits() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal(25)
    y = z**2 + 0.1 * rng.standard_normal(25)
    errors = {}
    for ridge in (1e-3, 1e-1, 1.0):
        link = LinkRegressor(12, ridge=ridge, random_state=3).fit(z, y)
        units = np.maximum(np.multiply.outer(z, link.signs_) + link.biases_, 0)
        squares = []
        for left in range(25):
            rest = np.arange(25) != left
            # The penalty of all rows, as the closed form keeps it.
            fit = Ridge(alpha=25 * ridge).fit(units[rest], y[rest])
            squares.append((fit.predict(units[[left]])[0] - y[left]) ** 2)
        errors[ridge] = np.mean(squares)
        whole = Ridge(alpha=25 * ridge).fit(units, y)
        np.testing.assert_allclose(link.predict(z), whole.predict(units), atol=1e-8)
    from peira.dynamics.hierarchical_polynomials import link as module

    centred = units - units.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / 25)
    scores, target = centred @ vectors, y - y.mean()
    for ridge, expected in errors.items():
        moment = scores.T @ target / 25
        measured = module._left_out_error(scores, target, moment, values + ridge)
        assert measured == pytest.approx(expected, rel=1e-8)


def test_auto_ridge_takes_more_for_noise() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal(200)
    calm = LinkRegressor(random_state=0).fit(z, z**2)
    noisy = LinkRegressor(random_state=0).fit(z, z**2 + 5 * rng.standard_normal(200))
    assert calm.ridge_ < noisy.ridge_


@pytest.mark.parametrize("scale", [3.0, -3.0])
def test_labels_on_another_scale_give_the_same_model(scale: float) -> None:
    _, x, y = quadratic(n=400, d=5)
    model = HierarchicalPolynomialRegressor(random_state=0).fit(x, y)
    other = HierarchicalPolynomialRegressor(random_state=0).fit(x, scale * y + 7)
    np.testing.assert_allclose(other.predict(x), scale * model.predict(x) + 7, atol=1e-7)
    np.testing.assert_allclose(other.feature(x), np.sign(scale) * model.feature(x), atol=1e-8)


def test_whitening_makes_every_linear_map_of_the_columns_alike() -> None:
    _, x, y = quadratic(n=400, d=4)
    rng = np.random.default_rng(5)
    mapped = x @ rng.standard_normal((4, 4)) + 10
    plain, moved = (
        HierarchicalPolynomialRegressor(random_state=0).fit(rows, y).predict(rows)
        for rows in (x, mapped)
    )
    np.testing.assert_allclose(moved, plain, atol=1e-6)


def test_whitening_of_dependent_and_constant_columns() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 100))
    rows = np.column_stack([a, b, a + b, np.ones(100)])
    mean, matrix = whitening(rows)
    values = np.linalg.eigvalsh(np.cov((rows - mean) @ matrix, rowvar=False, bias=True))
    np.testing.assert_allclose(values, [0, 0, 1, 1], atol=1e-8)
    model = HierarchicalPolynomialRegressor(1, random_state=0).fit(rows, a**3)
    assert np.isfinite(model.predict(rows)).all()


@pytest.mark.parametrize(("degree", "spread"), [(1, "spread"), (2, "spread"), (2, "concentrated")])
def test_targets_have_mean_zero_and_variance_one(degree: int, spread: str) -> None:
    target = hierarchical_target(3, degree, spread=spread, rng=np.random.default_rng(2))
    x, weights = normal_grid(3, 4)
    p = target.feature(x)
    assert weights @ p == pytest.approx(0, abs=1e-12)
    assert weights @ p**2 == pytest.approx(1)
    if degree == 2:
        assert np.trace(target.tensor) == pytest.approx(0, abs=1e-12)
        assert np.linalg.matrix_rank(target.tensor) == (2 if spread == "concentrated" else 3)


def test_a_cubic_is_a_sum_of_disjoint_triples() -> None:
    target = hierarchical_target(7, 3, rng=np.random.default_rng(2))
    assert target.tensor.shape == (2, 3)
    assert len(set(target.tensor.ravel())) == 6
    x = np.random.default_rng(0).standard_normal((3, 7))
    by_hand = [
        sum(math.prod(row[int(c)] for c in triple) for triple in target.tensor) / math.sqrt(2)
        for row in x
    ]
    np.testing.assert_allclose(target.feature(x), by_hand)


def test_links_have_the_linear_part_they_should() -> None:
    z = np.array([0.7])
    assert LINKS["cubic"](z)[0] == pytest.approx(0.7 + (0.343 - 2.1) / math.sqrt(6))
    assert LINKS["even"](z)[0] == pytest.approx((0.7 + (0.49 - 1) / math.sqrt(2)) / math.sqrt(2))
    assert LINKS["square"](z)[0] == pytest.approx(0.49 - 1)
    points, weights = normal_grid(1, 6)
    slopes = {name: weights @ link.deriv()(points[:, 0]) for name, link in LINKS.items()}
    assert slopes["square"] == pytest.approx(0, abs=1e-12)
    assert slopes["cubic"] == pytest.approx(1)
    assert slopes["even"] == pytest.approx(1 / math.sqrt(2))


@pytest.mark.parametrize("link", ["cubic", "even"])
@pytest.mark.parametrize("spread", ["spread", "concentrated"])
def test_reachable_correlation_is_that_of_the_projection(link: str, spread: str) -> None:
    """The degree-2 part of g(p(x)) by quadrature, exact for polynomials of this degree."""
    target = hierarchical_target(3, 2, link, spread, np.random.default_rng(4))
    x, weights = normal_grid(3, 9)
    features = HermiteFeatures(2).fit_transform(x)[:, 3:]
    p, y = target.feature(x), target.link(target.feature(x))
    found = features.T @ (weights * y)
    true = features.T @ (weights * p)
    expected = found @ true / (np.linalg.norm(found) * np.linalg.norm(true))
    assert target.reachable_correlation() == pytest.approx(expected, abs=1e-10)
    if (link, spread) == ("even", "concentrated"):
        assert expected == pytest.approx(1 / math.sqrt(3))
    with pytest.raises(PeiraError, match="k = 2"):
        hierarchical_target(3, 1).reachable_correlation()


def test_a_quadratic_feature_and_its_link_are_found() -> None:
    target, x, y = quadratic(n=2 * 12 * 144, d=12)
    model = HierarchicalPolynomialRegressor(whiten=False, random_state=0).fit(x, y)
    x_test, y_test = target.sample(3000, np.random.default_rng(9))
    p, z = target.feature(x_test), model.feature(x_test)
    rho = float(correlation(z, p))
    assert abs(rho) > 0.85
    # Labels of this link have heavy tails: one row in a hundred can make most of the error.
    assert study.errors(model.predict(x_test), y_test)["trimmed_nmse"] < 0.2
    grid = np.linspace(-1.5, 1.5, 7)
    # The curve on the feature is the link shrunk by the feature's noise: same shape.
    assert np.corrcoef(model.link(np.sign(rho) * grid), target.link(grid))[0, 1] > 0.9
    known = model.diagnostics_
    assert known["stage1_rows"] == known["stage2_rows"] == 12 * 144
    assert known["rows_per_d^k"] == 12
    assert known["mean_slope"] > 3 * known["mean_slope_error"]
    assert known["mean_slope"] == pytest.approx(known["correlation"], abs=1e-12)
    assert abs(known["input_excess_kurtosis"]) < 0.05


def test_without_a_linear_part_nothing_is_found() -> None:
    target, x, y = quadratic(n=2 * 8 * 144, d=12, link="square")
    model = HierarchicalPolynomialRegressor(whiten=False, random_state=0).fit(x, y)
    x_test, _ = target.sample(3000, np.random.default_rng(9))
    assert abs(float(correlation(model.feature(x_test), target.feature(x_test)))) < 0.35


def test_single_index_and_cubic_features() -> None:
    for degree, dimension, n in ((1, 20, 400), (3, 6, 6000)):
        target = hierarchical_target(dimension, degree, rng=np.random.default_rng(0))
        x, y = target.sample(n, np.random.default_rng(1))
        model = HierarchicalPolynomialRegressor(degree, random_state=0).fit(x, y)
        x_test, _ = target.sample(2000, np.random.default_rng(2))
        found = correlation(model.feature(x_test), target.feature(x_test))
        assert abs(float(found)) > 0.8


def test_random_units_come_near_the_exact_layer() -> None:
    target, x, y = quadratic(n=2 * 8 * 64, d=8)
    x_test, _ = target.sample(2000, np.random.default_rng(9))
    exact, drawn = (
        HierarchicalPolynomialRegressor(inner_width=width, whiten=False, random_state=0)
        .fit(x, y)
        .feature(x_test)
        for width in ("exact", 600)
    )
    assert abs(float(correlation(exact, drawn))) > 0.9


def test_terms_name_the_columns() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.standard_normal((2000, 4)), columns=["age", "bmi", "bp", "s1"])
    y = np.exp(frame["age"] * frame["bp"] / 2) + frame["bmi"] ** 2
    terms = HierarchicalPolynomialRegressor(random_state=0).fit(frame, y).terms()
    assert set(terms["term"][:2]) == {"age * bp", "He2(bmi)"}
    assert terms["share"].sum() == pytest.approx(1)
    assert terms["share"][:2].sum() > 0.7
    with pytest.raises(PeiraError, match="random units have no terms"):
        HierarchicalPolynomialRegressor(inner_width=30, random_state=0).fit(frame, y).terms()


def test_stage_two_never_sees_the_rows_of_stage_one() -> None:
    """Labels of the second part changed: the feature is the same up to its own scale."""
    _, x, y = quadratic(n=300, d=4)
    model = HierarchicalPolynomialRegressor(whiten=False, random_state=0)
    order = np.random.RandomState(0).permutation(300)
    first, second = order[:150], order[150:]
    changed = y.copy()
    changed[second] = -5
    a, b = model.fit(x, y), clone(model).fit(x, changed)
    np.testing.assert_array_equal(a.direction_, b.direction_)
    changed = y.copy()
    changed[first] = np.random.default_rng(0).permutation(changed[first])
    assert not np.allclose(a.direction_, clone(model).fit(x, changed).direction_)


def test_diagnostics_tell_data_that_are_not_normal() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_t(3, (2000, 5))
    model = HierarchicalPolynomialRegressor(random_state=0).fit(x, x[:, 0] * x[:, 1])
    assert model.diagnostics_["input_excess_kurtosis"] > 0.3
    assert model.diagnostics_["feature_excess_kurtosis"] > 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"degree": 0}, "degree=0; expected 1 or a larger whole number"),
        ({"degree": 1.5}, "degree=1.5; expected"),
        ({"split": 1.0}, "split=1.0; expected above 0 and below 1"),
        ({"ridge": 0.0}, "ridge=0.0; expected above 0"),
        ({"steps": 0}, "steps=0"),
        ({"outer_width": 0}, "outer_width=0"),
        ({"inner_width": "wide"}, "inner_width='wide'; expected a whole number, 'auto' or 'exact'"),
        ({"inner_width": 9, "inner_activation": "rely"}, "unknown inner activation 'rely'"),
        ({"outer_activation": "relo"}, "unknown outer activation 'relo'"),
    ],
)
def test_bad_parameters(settings: dict, said: str) -> None:
    _, x, y = quadratic(n=50, d=3)
    with pytest.raises(PeiraError, match=said.replace("(", r"\(")):
        HierarchicalPolynomialRegressor(**settings).fit(x, y)


def test_bad_rows() -> None:
    _, x, y = quadratic(n=50, d=3)
    model = HierarchicalPolynomialRegressor(random_state=0)
    with pytest.raises(ValueError, match=r"label is constant \(2\)"):
        model.fit(x, np.full(50, 2.0))
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.where(x > 1, np.nan, x), y)
    with pytest.raises(ValueError, match="Expected 2D array"):
        model.fit(x[:, 0], y)
    with pytest.raises(ValueError, match="not finite"):
        HierarchicalPolynomialRegressor(2, whiten=False, random_state=0).fit(1e155 * x, y)
    with pytest.warns(UserWarning, match=r"20 rows for stage 1.*d\^k = 64: give 128 rows"):
        HierarchicalPolynomialRegressor(2, random_state=0).fit(*quadratic(n=40, d=8)[1:])


def test_a_model_comes_back_from_its_file(tmp_path: Path) -> None:
    x, y = load_diabetes(return_X_y=True)
    for width in ("auto", 50):
        model = HierarchicalPolynomialRegressor(1, inner_width=width, random_state=0).fit(x, y)
        save_model(tmp_path / "m.skops", model)
        again = load_model(tmp_path / "m.skops")
        np.testing.assert_array_equal(again.predict(x), model.predict(x))
        assert again.diagnostics_ == model.diagnostics_


@pytest.mark.parametrize("kernel", ["rbf", "polynomial"])
def test_kernel_ridge_is_scikit_learns(kernel: str) -> None:
    _, x, y = quadratic(n=120, d=4)
    model = baselines.TunedKernelRidge(kernel, degree=3, random_state=0).fit(x, y)
    diagonal = 1.0 if kernel == "rbf" else np.mean((1 + (x**2).sum(1) / 4) ** 3)
    settings = {
        "rbf": {"kernel": "rbf", "gamma": 1 / (2 * 4 * model.length_)},
        "polynomial": {"kernel": "polynomial", "gamma": 1 / 4, "coef0": 1, "degree": 3},
    }[kernel]
    peer = KernelRidge(alpha=model.ridge_ * diagonal, **settings).fit(x, y - y.mean())
    np.testing.assert_allclose(model.predict(x), peer.predict(x) + y.mean(), atol=1e-6)


def test_kernel_ridge_chooses_the_ridge_that_is_best_on_the_held_out_rows() -> None:
    _, x, y = quadratic(n=100, d=3)
    tuned = baselines.TunedKernelRidge("ntk", random_state=0).fit(x, y)
    order = np.random.RandomState(0).permutation(100)
    kept, held = order[:67], order[67:]
    gram = tuned._kernel(x, None, 1.0)
    errors = {}
    for ridge in baselines.RIDGES:
        shift = ridge * np.mean(np.diag(gram)[kept])
        system = gram[np.ix_(kept, kept)] + shift * np.eye(67)
        weights = np.linalg.solve(system, y[kept] - y.mean())
        predicted = gram[np.ix_(held, kept)] @ weights + y.mean()
        errors[ridge] = np.mean((predicted - y[held]) ** 2)
    assert tuned.ridge_ == min(errors, key=errors.get)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 6, 9])
def test_power_by_squaring(exponent: int) -> None:
    values = np.array([[-1.5, 0.0], [2.0, 0.3]])
    expected = values**exponent
    np.testing.assert_allclose(baselines._power(values.copy(), exponent), expected)


def test_random_feature_ridge_is_the_same_by_either_gram_matrix() -> None:
    model = baselines.RandomFeatureRidge(3, width=20)
    features = np.random.default_rng(0).standard_normal((30, 20))
    y = features[:, 0] ** 2
    wide = np.concatenate([features, np.zeros((30, 20))], axis=1)
    for ridge in (1e-2, 1.0):
        # The penalty is relative to the mean diagonal, which differs by the shape.
        (_, tall), (_, dual) = (
            next(iter(model._paths(part, y, (ridge * scale,))))
            for part, scale in ((features, 1.0), (wide, 30 / 20))
        )
        np.testing.assert_allclose(dual[:20], tall, atol=1e-10)


def test_trimmed_error_leaves_out_the_largest() -> None:
    y = np.arange(200.0)
    off = np.zeros(200)
    off[:2] = 100.0
    measured = study.errors(y + off, y)
    assert measured["nmse"] == pytest.approx(2 * 100**2 / 200 / y.var())
    assert measured["trimmed_nmse"] == 0


def test_fewer_samples_are_the_first_of_more() -> None:
    few, many = (study.Cell(dimension=5, ratio=ratio) for ratio in (1.0, 4.0))
    (one, x, y), (two, x_many, y_many) = (study.problem(cell, 3) for cell in (few, many))
    np.testing.assert_array_equal(one.tensor, two.tensor)
    np.testing.assert_array_equal(x, x_many[: len(x)])
    np.testing.assert_array_equal(y, y_many[: len(y)])
    x_test, _ = study.fresh(few, one, 3)
    assert not np.isin(x_test[:, 0], x_many[:, 0]).any()


def rows_of(**columns) -> pd.DataFrame:
    """Cells with these values and default settings otherwise, one row each."""
    size = max(len(values) for values in columns.values() if isinstance(values, list))
    plain = study.Cell().model_dump()
    return pd.DataFrame({**{name: [value] * size for name, value in plain.items()}, **columns})


def test_needed_rows_interpolate_on_the_logarithm() -> None:
    table = rows_of(
        dimension=[8, 8, 8, 16], ratio=[1.0, 2.0, 4.0, 1.0], seed=[0] * 4,
        correlation=[0.5, 0.7, 0.8, 0.4],
    )  # fmt: skip
    needed = study.needed_rows(table).set_index("dimension")["rows_needed"]
    assert needed[8] == pytest.approx(2 * 64 * math.sqrt(2))
    assert math.isnan(needed[16])


def test_spread_is_over_dimensions_that_were_all_measured() -> None:
    table = rows_of(
        dimension=[8, 16, 8, 16, 8], ratio=[1.0, 1.0, 2.0, 2.0, 4.0], seed=[0] * 5,
        correlation=[0.5, 0.7, 0.8, 0.75, 0.1],
    )  # fmt: skip
    spreads = study.spread_over_dimensions(table).set_index("ratio")["spread"]
    assert spreads.to_dict() == pytest.approx({1.0: 0.2, 2.0: 0.05})


def test_best_kernel_and_most_draws() -> None:
    table = rows_of(
        method=["ntk", "rbf", "ntk", "rbf", "three-layer", "three-layer"],
        seed=[0, 0, 1, 1, 0, 0],
        nmse=[0.3, 0.2, 0.4, 0.5, 0.1, 0.15],
        draws=[1, 1, 1, 1, 1, 4],
    )
    best = study.with_best_kernel(table)
    best = best[best["method"] == "best-kernel"].set_index("seed")["nmse"]
    assert best.to_dict() == {0: 0.2, 1: 0.4}
    most = study.of_most_draws(table)
    assert most[most["method"] == "three-layer"]["nmse"].tolist() == [0.15]


def test_figure_draws_what_there_is() -> None:
    table = rows_of(
        dimension=[8, 8, 16, 16], ratio=[1.0, 4.0, 1.0, 4.0], seed=[0] * 4,
        correlation=[0.5, 0.8, 0.6, 0.9], nmse=[1.0, 0.5, 0.9, 0.4], reachable=[0.9] * 4,
    )  # fmt: skip
    drawn = figure.draw(table)
    assert [bool(axes.lines) for axes in drawn.axes] == [True, True, True, False]


@pytest.fixture
def hidden(tmp_path: Path) -> Path:
    path = tmp_path / "hidden.csv"
    use("simulate", path, "--rows", 700, "--dimension", 5)
    return path


def use(*words: object) -> None:
    commands(SLUG)([str(word) for word in words], standalone_mode=False)


def test_commands_on_a_table(hidden: Path, tmp_path: Path, capsys) -> None:
    model, out = tmp_path / "model.skops", tmp_path / "out.csv"
    use("fit", hidden, model)
    said = capsys.readouterr().out
    assert "350 + 350" in said
    assert "He2(x" in said or "x0 * x" in said
    use("predict", model, hidden, out)
    written, rows = pd.read_csv(out), pd.read_csv(hidden)
    assert np.corrcoef(written["prediction"], rows["y"])[0, 1] > 0.7
    use("score", model, hidden)
    assert "R2" in capsys.readouterr().out
    use("link", model, out)
    curve = pd.read_csv(out)
    found = load_model(model)
    np.testing.assert_allclose(curve["label"], found.link(curve["feature"].to_numpy()))
    use("compare", hidden, "--folds", 2)
    said = capsys.readouterr().out
    assert all(name in said for name in ("layer by layer", "kernel: NTK", "linear, ridge"))


def test_remarks_on_what_the_data_are_not() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_t(3, (3000, 4))
    model = HierarchicalPolynomialRegressor(random_state=0)
    heavy = " ".join(use_module.remarks(model.fit(x, x[:, 0] * x[:, 1])))
    assert "above its normal value" in heavy
    assert "the feature is far from normal" in heavy
    normal = rng.standard_normal((3000, 4))
    nothing = use_module.remarks(model.fit(normal, rng.standard_normal(3000)))
    assert nothing[0].startswith("no feature")
    assert not any("rows are not normal" in remark for remark in nothing)
    with pytest.warns(UserWarning, match="rows for stage 1"):
        model.set_params(degree=3).fit(normal[:40], normal[:40, 0] ** 3)
    assert "give 128 for 1" in " ".join(use_module.remarks(model))


def test_commands_name_what_is_wrong(hidden: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.skops"
    frame = pd.read_csv(hidden)
    with pytest.raises(DataError, match="no column 'price'"):
        use("fit", hidden, model, "--target", "price")
    gap = frame.copy()
    gap.loc[6, "x1"] = np.nan
    gap.to_csv(tmp_path / "gap.csv", index=False)
    with pytest.raises(DataError, match=r"gap.csv, row 8, column 'x1': empty cell"):
        use("fit", tmp_path / "gap.csv", model)
    words = frame.astype({"x1": object})
    words.loc[3, "x1"] = "high"
    words.to_csv(tmp_path / "words.csv", index=False)
    with pytest.raises(DataError, match=r"row 5, column 'x1': wrong value; got 'high'"):
        use("fit", tmp_path / "words.csv", model, "--columns", "x0,x1")
    frame.head(10).to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(DataError, match="too few rows; got 10; expected 20 or more"):
        use("fit", tmp_path / "few.csv", model)
    (tmp_path / "no.skops").write_text("not a model")
    with pytest.raises(DataError, match="not a model saved by Peira"):
        use("predict", tmp_path / "no.skops", hidden, tmp_path / "out.csv")
    assert not model.exists()


def test_public_names_are_the_methods() -> None:
    import peira.dynamics

    assert peira.dynamics.HierarchicalPolynomialRegressor is method.HierarchicalPolynomialRegressor
