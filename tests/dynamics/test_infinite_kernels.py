"""Infinite-width kernels and their training dynamics: closed forms, quadrature, another library."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.special import erf
from torch import nn

from peira.data.errors import DataError
from peira.dynamics.probes import forecast, infinite
from peira.dynamics.probes.forecast import (
    check_kernel,
    early_stop_time,
    ensemble_forecast,
    mode_times,
    modes,
    training_forecast,
)
from peira.dynamics.probes.infinite import (
    kernel_blocks,
    kernels,
    leaky_relu,
    numerical,
    polynomial,
    variances,
)
from peira.dynamics.probes.scaling import mlp
from peira.dynamics.probes.tangent import empirical_ntk
from peira.engine.errors import PeiraError

POINTS = np.array([[1.0, 2.0, -1.0], [0.5, -0.3, 0.8], [0.0, 0.0, 0.0], [-2.0, 1.5, 0.25]])

# Upper triangles, row by row, of 3 dense layers with W_std = 1.3, b_std = 0.2 on POINTS, computed
# by neural-tangents 0.6.5 in double precision (`stax.serial`, parameterization "ntk").
# fmt: off
NEURAL_TANGENTS = {
    "relu": ("relu", [
        2.515765500000001, 0.4889515711820016, 0.23858619508254367, 1.4132179911648013,
        0.496550401666667, 0.1426774681942595, 0.4724557653762037,
        0.10236100000000004, 0.24283339116727784, 2.641463651041667,
    ], [
        7.433496500000002, 0.532187483258323, 0.3287471601576317, 2.157034904744318,
        1.375851205000001, 0.20992849227704072, 0.47110173111905285,
        0.19328300000000007, 0.3341231307105659, 7.810590953125001,
    ]),
    "leaky": (leaky_relu(0.1), [
        2.565187006550001, 0.3836485736329345, 0.21907278891622364, 1.2759001315443164,
        0.5053856847401669, 0.13743108547500626, 0.35043411885331044,
        0.10327307610000003, 0.22268950196885137, 2.693411690427605,
    ], [
        7.581423019650003, 0.3428066414473009, 0.31324145491538435, 2.0385128154954506,
        1.4020190542205007, 0.21033491860425663, 0.23643968130656356,
        0.19568122830000007, 0.31790306705867943, 7.966097071282815,
    ]),
    "abs": ("abs", [
        9.875462000000002, 3.312200777655231, 1.0269189291044598, 7.8463381354461905,
        1.7986016066666677, 0.47444566188569426, 3.4597509359143497,
        0.22184400000000007, 1.0511598978977132, 10.378254604166667,
    ], [
        29.478786000000007, 4.757362421927994, 1.3093419829194586, 10.794233204268384,
        5.248204820000003, 0.6379644303241112, 5.23452982509853,
        0.5179320000000002, 1.3391246799085823, 30.987163812500004,
    ]),
    "erf": ("erf", [
        0.8780063531163624, -0.1187379558297448, 0.1134097690319493, 0.1450669323497692,
        0.689462497175559, 0.1623462243103435, -0.1953798983138911,
        0.249228381258071, 0.11246774030404315, 0.8812503628567292,
    ], [
        3.6676657194075455, -0.4731174997225138, 0.21819999132006207, 0.3305927846722067,
        2.2157265780018127, 0.3570007503990611, -0.7149053967826905,
        0.6025284650046647, 0.21551966981754417, 3.7166887425471855,
    ]),
    "sin": ("sin", [
        0.740808092673209, -0.01568863960591399, 0.0936055909545164, 0.08488465337190665,
        0.6435902539073743, 0.14482783572770414, -0.04644821698244157,
        0.2000106759922758, 0.09255613697152558, 0.7408854620686283,
    ], [
        4.477073227226237, -0.16536975213897784, 0.15963790142221526, 0.14799177650277986,
        2.033991706099434, 0.307989155714378, -0.26893863620894687,
        0.46005993172608567, 0.1564911325016406, 4.623462669919762,
    ]),
    "gelu": ("gelu", [
        2.285039870464776, 0.2096930504665828, 0.09416281780397817, 1.0819302558751496,
        0.308719926122917, 0.0732384017670965, 0.1904687821105576,
        0.06703534234328232, 0.0951016752451943, 2.4128631935362437,
    ], [
        7.111529539027612, 0.17345971391921147, 0.13514386136545115, 1.7170233187980974,
        0.8782662801581438, 0.11081396385274962, 0.11532506669955052,
        0.10369001410565336, 0.13626800768938152, 7.509006592778868,
    ]),
    "0.5 + z - 0.3 z^2 + 0.2 z^3": (polynomial([0.5, 1.0, -0.3, 0.2]), [
        426762.73608421214, -635.7469905694581, -30.960384126303676, 33511.733502876144,
        27.09093204503663, 2.089803162471891, -1069.5991834117756,
        1.8639654074754186, -39.18986891837497, 618536.43870429,
    ], [
        2305906.229654431, -1936.9346122576092, -27.916347780375837, 98001.3466680673,
        103.49075199038234, 4.875360169329687, -3378.4803784999995,
        3.9298806406711617, -39.03513188638614, 3357069.7182608843,
    ]),
}
# fmt: on


@pytest.mark.parametrize("name", NEURAL_TANGENTS)
def test_closed_forms_agree_with_neural_tangents(name: str) -> None:
    activation, nngp, ntk = NEURAL_TANGENTS[name]
    ours = kernels(POINTS, depth=3, activation=activation, weight_var=1.69, bias_var=0.04)
    upper = np.triu_indices(4)
    np.testing.assert_allclose(ours.nngp[upper], nngp, rtol=1e-12)
    # Theirs rounds the angle between a point and itself to 1e-8.
    np.testing.assert_allclose(ours.ntk[upper], ntk, rtol=1e-8)


def gauss_hermite(
    function: Callable[[np.ndarray], np.ndarray], q: float, r: float, cov: float, nodes: int = 100
) -> float:
    """E[function(u) function(v)] by the product rule on two axes."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    w = w / w.sum()
    c = cov / math.sqrt(q * r)
    v = math.sqrt(r) * (c * z[:, None] + math.sqrt(max(1 - c * c, 0)) * z[None, :])
    u = math.sqrt(q) * z
    return float(np.einsum("i,j,i,ij->", w, w, function(u), function(v)))


SMOOTH = {
    "tanh": (np.tanh, lambda z: 1 - np.tanh(z) ** 2),
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2),
    "silu": (
        lambda z: z / (1 + np.exp(-z)),
        lambda z: (1 + np.exp(-z) + z * np.exp(-z)) / (1 + np.exp(-z)) ** 2,
    ),
    "softplus": (lambda z: np.log1p(np.exp(z)), lambda z: 1 / (1 + np.exp(-z))),
    "erf": (erf, lambda z: 2 / np.sqrt(np.pi) * np.exp(-(z**2))),
    "cos": (np.cos, lambda z: -np.sin(z)),
    "square": (np.square, lambda z: 2 * z),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize(("q", "r", "c"), [(0.3, 0.5, 0.4), (0.6, 0.2, -0.97), (0.4, 0.4, 1.0)])
def test_expectations_agree_with_a_product_rule(name: str, q: float, r: float, c: float) -> None:
    function, derivative = SMOOTH[name]
    cov = c * math.sqrt(q * r)
    expected = [gauss_hermite(f, q, r, cov) for f in (function, derivative)]
    for activation in (infinite.ACTIVATIONS[name], numerical(function)):
        points = [activation.of_points(np.array([v])) for v in (q, r)]
        found = [float(part[0, 0]) for part in activation.pair(*points, np.array([[cov]]))]
        assert found == pytest.approx(expected, abs=2e-9)


def test_a_kink_given_as_a_function_comes_close_to_its_closed_form() -> None:
    exact = kernels(POINTS, depth=3, bias_var=0.1)
    for relu in (lambda z: np.maximum(z, 0), torch.relu):
        ours = kernels(POINTS, depth=3, activation=relu, bias_var=0.1)
        np.testing.assert_allclose(ours.nngp, exact.nngp, rtol=5e-5)
        np.testing.assert_allclose(ours.ntk, exact.ntk, rtol=5e-5)


def test_products_of_squares_by_hand() -> None:
    """E[u^2 v^2] = q r + 2 cov^2, E[2u 2v] = 4 cov (Isserlis)."""
    x = np.array([[1.0, 1.0], [2.0, 0.0]])
    q, r, cov = 1.0, 2.0, 1.0
    found = kernels(x, depth=2, activation="square")
    assert found.nngp[0, 1] == pytest.approx(q * r + 2 * cov**2)
    assert found.ntk[0, 1] == pytest.approx(4 * cov * cov + found.nngp[0, 1])
    assert variances(x, depth=2, activation="square") == pytest.approx([3.0, 12.0])


def test_normalised_relu_keeps_the_norm_of_points_on_the_sphere() -> None:
    """With gain sqrt(2) and weight_var + bias_var = 1, Sigma_l(x, x) = 1 in all layers."""
    x = POINTS[[0, 1, 3]]
    x = x / np.linalg.norm(x, axis=1, keepdims=True) * math.sqrt(3)
    settings = {"weight_var": 0.99, "bias_var": 0.01, "gain": math.sqrt(2)}
    for depth in (1, 2, 5):
        assert np.diag(kernels(x, depth=depth, **settings).nngp) == pytest.approx([1.0] * 3)


def test_depth_one_is_the_linear_model() -> None:
    expected = 2 / 3 * POINTS @ POINTS.T + 0.5
    found = kernels(POINTS, depth=1, weight_var=2, bias_var=0.5)
    np.testing.assert_allclose(found.nngp, expected)
    np.testing.assert_allclose(found.ntk, expected)
    found.nngp[0, 0] = 0
    assert found.ntk[0, 0] == pytest.approx(expected[0, 0])


def test_linear_networks_in_closed_form() -> None:
    """A deep linear network without biases: Sigma_L = Sigma_1, Theta_L = L Sigma_1."""
    found = kernels(POINTS, depth=4, activation="linear")
    np.testing.assert_allclose(found.nngp, POINTS @ POINTS.T / 3)
    np.testing.assert_allclose(found.ntk, 4 * POINTS @ POINTS.T / 3)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_blocks_and_other_points_give_the_same_kernel(activation: str) -> None:
    x = np.random.default_rng(0).normal(size=(37, 5))
    settings = {"depth": 3, "activation": activation, "bias_var": 0.1}
    whole = kernels(x, **settings)
    for part in (kernels(x, chunk=5, **settings), kernels(x, x.copy(), **settings)):
        np.testing.assert_allclose(part.ntk, whole.ntk, rtol=1e-7)
        np.testing.assert_allclose(part.nngp, whole.nngp, rtol=1e-7)
    np.testing.assert_allclose(kernels(x[:4], x[9:], **settings).ntk, whole.ntk[:4, 9:])
    np.testing.assert_allclose(variances(x, **settings), np.diag(whole.nngp))
    seen = [
        (rows, block.ntk.shape) for rows, block in kernel_blocks(x, x[:3], chunk=20, **settings)
    ]
    assert seen == [(slice(0, 20), (20, 3)), (slice(20, 37), (17, 3))]
    assert np.linalg.eigvalsh(whole.ntk)[0] > 0


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "cos", "square"])
def test_a_point_of_norm_zero_is_finite(activation: str) -> None:
    found = kernels(POINTS, depth=3, activation=activation)
    assert np.isfinite(found.nngp).all()
    assert np.isfinite(found.ntk).all()
    if activation in ("relu", "tanh", "gelu"):
        np.testing.assert_allclose(found.ntk[2], 0, atol=1e-14)


def test_wide_networks_approach_the_limit_as_one_over_root_width() -> None:
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(6, 4)))
    limit = kernels(x.numpy(), depth=3, activation="tanh", weight_var=1.5, bias_var=0.2)
    error = []
    for width in (32, 128, 512):
        gaps = []
        for seed in range(6):
            net = mlp(
                (4, width, width, 1),
                nn.Tanh,
                parametrisation="ntk",
                weight_std=math.sqrt(1.5),
                bias_std=math.sqrt(0.2),
                generator=torch.Generator().manual_seed(seed),
            ).double()
            found = empirical_ntk(net, x, mode="trace").numpy()
            gaps.append(np.linalg.norm(found - limit.ntk) / np.linalg.norm(limit.ntk))
        error.append(np.mean(gaps))
    slope = np.polyfit(np.log([32, 128, 512]), np.log(error), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.15)
    assert error[-1] < 0.08


def test_outputs_of_random_networks_have_the_nngp_covariance() -> None:
    x = np.random.default_rng(2).normal(size=(4, 3))
    rng, width, nets = np.random.default_rng(0), 64, 20_000
    # Given the first layer the outputs of a one-hidden-layer network are exactly Gaussian.
    hidden = np.cos(
        rng.normal(size=(nets, width, 3)) @ x.T / math.sqrt(3) + rng.normal(size=(nets, width, 1))
    )
    found = np.einsum("nwi,nwj->ij", hidden, hidden) / (nets * width)
    limit = kernels(x, depth=2, activation=np.cos, bias_var=1.0).nngp - 1.0
    np.testing.assert_allclose(found, limit, atol=4e-3)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([1.0, 2.0], r"x has the shape \(2,\); expected \(points, features\)"),
        ([[1.0, 2.0], [3.0, math.nan]], "row 1, column 1: x has a value that is no number"),
        ([["a", "b"]], "x is not a matrix of numbers"),
        (np.empty((0, 3)), "shape"),
    ],
)
def test_points_that_are_none_are_refused(x: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        kernels(x, depth=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, "depth = 0; expected 1"),
        ({"activation": "relo"}, "no activation 'relo'; did you mean 'relu'"),
        ({"activation": 3}, "expected a name or a function"),
        ({"bias_var": -1.0}, "bias_var = -1.0"),
        ({"activation": np.log}, "not finite at"),
        ({"activation": lambda z: z.sum()}, "expected elementwise"),
        ({"activation": numerical(np.tanh)}, ""),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    if not message:
        assert kernels(POINTS, depth=2, **settings).ntk.shape == (4, 4)
        return
    with pytest.raises(PeiraError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        kernels(POINTS, **{"depth": 2, **settings})


def test_features_must_agree_and_nodes_suffice() -> None:
    with pytest.raises(DataError, match="got 2; expected 3 columns"):
        kernels(POINTS, POINTS[:, :2], depth=2)
    with pytest.raises(PeiraError, match="expected 512 or more"):
        numerical(np.tanh, nodes=16)


def test_kernels_beyond_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infinite.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1}.get(name, 100))
    with pytest.raises(
        PeiraError, match=r"4 x 4 take 256 bytes.*kernel_blocks\(\.\.\., chunk=rows"
    ):
        kernels(POINTS, depth=2)


CIRCLE = np.array([[math.cos(a), math.sin(a)] for a in np.arange(5) * 2 * math.pi / 5 + 0.1])
OTHERS = np.array([[math.cos(a), math.sin(a)] for a in (0.3, 1.9, 4.0)])
PRODUCT = CIRCLE[:, 0] * CIRCLE[:, 1]
ERF = {"depth": 3, "activation": "erf", "weight_var": 1.96, "bias_var": 0.09}
NT = {"learning_rate": 1.0, "loss": "half-mean"}

# `nt.predict.gradient_descent_mse_ensemble(kernel_fn, x, y, learning_rate=1.0)` of neural-tangents
# 0.6.5 for ERF, CIRCLE, PRODUCT at OTHERS: mean, upper triangle of the covariance.
# fmt: off
ENSEMBLES = {
    ("ntk", 2.0): (
        [0.012089556454586122, 0.025196398359593402, 0.14621511208757626],
        [0.06545512173020007, 0.014613623561077482, 0.026282676792922288,
         0.10701087764314532, 0.03197767396690476, 0.05786452674215947]),
    ("ntk", 30.0): (
        [0.038173005779753404, 0.07955810982998322, 0.4616770135259271],
        [0.01714766151736935, -0.009873785705990151, 0.001980403496187,
         0.0699530530073379, 0.005522619191924677, 0.00764146382765829]),
    ("ntk", math.inf): (
        [0.03830259403035014, 0.07982819063873839, 0.46324429687974117],
        [0.017145510947478626, -0.00987485196838142, 0.0019807197011158517,
         0.06995237065470794, 0.005519358837316302, 0.007640058906370983]),
    ("nngp", 2.0): (
        [0.0015175514363208618, 0.004379015144728915, 0.02261556756780239],
        [0.313118487169475, 0.07044835690854032, -0.04136212032578018,
         0.32763354792303934, 0.01681579803243302, 0.3104794891422932]),
    ("nngp", 30.0): (
        [0.01641726504016984, 0.04737332160564365, 0.24466107566978504],
        [0.02552203729599567, -0.011230839720624747, 0.004410124546180116,
         0.06906446965360336, 0.007106754923765543, 0.017572019442623432]),
    ("nngp", math.inf): (
        [0.031112206375744685, 0.0897767414300143, 0.4636549303264053],
        [0.01701506078867132, -0.010205649670156108, 0.001975029224128899,
         0.0685484813301116, 0.005492575996716542, 0.007599901461391667]),
}
# fmt: on


@pytest.mark.parametrize(("trained", "time"), ENSEMBLES)
def test_ensembles_agree_with_neural_tangents(trained: str, time: float) -> None:
    train, cross = kernels(CIRCLE, **ERF), kernels(OTHERS, CIRCLE, **ERF)
    here = kernels(OTHERS, **ERF).nngp
    moved = train.ntk if trained == "ntk" else train.nngp
    between = cross if trained == "ntk" else (cross.nngp, cross.nngp)
    found = ensemble_forecast(moved, train.nngp, PRODUCT, time, cross=between, nngp_test=here, **NT)
    mean, covariance = ENSEMBLES[trained, time]
    np.testing.assert_allclose(found.mean[0], mean, rtol=1e-6)
    np.testing.assert_allclose(found.covariance[0][np.triu_indices(3)], covariance, rtol=2e-6)
    np.testing.assert_allclose(found.deviation[0] ** 2, np.diag(found.covariance[0]))


def test_single_networks_agree_with_neural_tangents() -> None:
    """`nt.predict.gradient_descent_mse(kernel, y, learning_rate=1.0)` at t = 2 and 30, 0.6.5."""
    found = training_forecast(
        kernels(CIRCLE, **ERF).ntk,
        PRODUCT,
        [2.0, 30.0],
        initial=np.linspace(-1, 1, 5),
        cross=kernels(OTHERS, CIRCLE, **ERF).ntk,
        initial_test=[0.5, -0.2, 0.1],
        **NT,
    )
    # fmt: off
    np.testing.assert_allclose(found.train, [
        [-0.3536984578549073, 0.20766670291246225, -0.1374117827201027, 0.014670231983379134,
         0.268773305679169],
        [0.09730695075372786, 0.208013789713952, -0.4338803326395759, 0.49401933554699257,
         -0.3654597433750957]], rtol=1e-7)
    np.testing.assert_allclose(found.test, [
        [1.206499507687051, 0.3152588247268871, -0.41396682014983266],
        [1.5681877884387374, 0.4043071593347572, 0.047347182454237004]], rtol=1e-7)
    # fmt: on


def feature_model(n: int, m: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4)) / 2, rng.normal(size=(m, 4)) / 2


@pytest.mark.parametrize("loss", ["half-sum", "mse"])
def test_descent_is_what_torch_does_to_a_linear_model(loss: str) -> None:
    """Six points in four dimensions: the kernel is singular, what it does not see stays."""
    features, others = feature_model(6, 3)
    targets = np.random.default_rng(1).normal(size=(6, 2))
    model = nn.Linear(4, 2, bias=False).double()
    x, z, y = (torch.from_numpy(part) for part in (features, others, targets))
    start = [model(part).detach().numpy() for part in (x, z)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(17):
        optimizer.zero_grad()
        gap = model(x) - y
        (gap.square().sum() / 2 if loss == "half-sum" else gap.square().mean()).backward()
        optimizer.step()
    found = training_forecast(
        features @ features.T,
        targets,
        17,
        learning_rate=0.3,
        method="descent",
        loss=loss,
        initial=start[0],
        cross=others @ features.T,
        initial_test=start[1],
    )
    np.testing.assert_allclose(found.train[0], model(x).detach().numpy(), rtol=1e-9)
    np.testing.assert_allclose(found.test[0], model(z).detach().numpy(), rtol=1e-9)
    assert found.error[0] == pytest.approx(float((model(x) - y).detach().square().sum()) / 2)


def test_flow_is_the_solution_of_the_differential_equation() -> None:
    features, others = feature_model(5, 2, seed=3)
    joint = np.concatenate([features, others])
    kernel = joint @ features.T
    y = np.arange(5.0)
    solved = solve_ivp(
        lambda _, f: -0.7 * kernel @ (f[:5] - y), (0, 9), np.zeros(7), rtol=1e-10, atol=1e-12
    ).y[:, -1]
    found = training_forecast(kernel[:5], y, [0, 9], learning_rate=0.7, cross=kernel[5:])
    np.testing.assert_allclose(found.train[1], solved[:5], rtol=1e-7)
    np.testing.assert_allclose(found.test[1], solved[5:], rtol=1e-7)
    np.testing.assert_allclose(found.test[0], 0, atol=1e-14)


def test_the_end_of_training_is_the_pseudo_inverse_even_of_a_singular_kernel() -> None:
    features, others = feature_model(7, 3, seed=5)
    y = np.random.default_rng(0).normal(size=7)
    found = training_forecast(features @ features.T, y, math.inf, cross=others @ features.T)
    weights = np.linalg.lstsq(features, y, rcond=None)[0]
    np.testing.assert_allclose(found.test[0], others @ weights, rtol=1e-8)


def test_covariance_of_trained_ensembles_by_matrix_exponentials() -> None:
    train = kernels(CIRCLE, **ERF)
    found = ensemble_forecast(train.ntk, train.nngp, PRODUCT, 3.0, learning_rate=0.1)
    left = expm(-0.3 * train.ntk)
    np.testing.assert_allclose(found.mean[0], PRODUCT - left @ PRODUCT, atol=1e-10)
    np.testing.assert_allclose(found.covariance[0], left @ train.nngp @ left.T, atol=1e-10)


def test_mode_times_are_what_the_error_takes() -> None:
    kernel = kernels(CIRCLE, **ERF).ntk
    found = modes(kernel)
    slow = mode_times(found, learning_rate=0.2)
    assert (np.diff(slow) >= 0).all()
    trained = training_forecast(found, found.vectors[:, 3], slow[3], learning_rate=0.2)
    np.testing.assert_allclose(
        trained.train[0], (1 - math.exp(-1)) * found.vectors[:, 3], atol=1e-12
    )
    assert mode_times(kernel, loss="mse", outputs=2) == pytest.approx(10 / (2 * found.values))


def test_early_stopping_of_one_point_in_closed_form() -> None:
    """(1 - h)^2 y^2 + 2 noise h is least at 1 - h = noise / y^2: t = ln(y^2 / noise) / (eta k)."""
    stop = early_stop_time([[2.0]], [3.0], noise=1.5, learning_rate=0.1)
    assert stop.time == pytest.approx(math.log(9 / 1.5) / 0.2, rel=1e-3)
    assert stop.degrees == pytest.approx(1 - 1.5 / 9, rel=1e-3)
    assert early_stop_time([[2.0]], [3.0], noise=0.0).time == math.inf
    assert early_stop_time([[2.0]], [0.1], noise=1.0).time == 0.0


@pytest.mark.parametrize("noise", [0.25, None])
@pytest.mark.parametrize("method", ["flow", "descent"])
def test_early_stopping_comes_close_to_the_best_time(noise: float | None, method: str) -> None:
    rng = np.random.default_rng(0)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 120))
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    truth = np.sin(2 * angle)
    y = truth + rng.normal(scale=0.5, size=120)
    kernel = kernels(x, depth=3, bias_var=0.1).ntk
    stop = early_stop_time(kernel, y, noise, learning_rate=0.01, method=method)
    times = np.append(stop.times, stop.time)
    path = training_forecast(kernel, y, times, learning_rate=0.01, method=method).train
    risk = ((path - truth) ** 2).mean(axis=1)
    assert risk[-1] < 2 * risk.min()
    assert risk[-1] < 0.1 * risk[-2]
    if method == "descent":
        assert stop.time == round(stop.time)


def test_the_estimated_risk_is_unbiased() -> None:
    rng = np.random.default_rng(4)
    kernel = modes(kernels(CIRCLE, **ERF).ntk)
    noise = rng.normal(scale=0.6, size=(500, 5))
    stops = [early_stop_time(kernel, PRODUCT + e, 0.36) for e in noise]
    times = stops[0].times
    # All draws at once: outputs share the kernel.
    path = training_forecast(kernel, (PRODUCT + noise).T, times).train
    risk = ((path - PRODUCT[:, None]) ** 2).mean(axis=1)
    gap = np.array([stop.risks for stop in stops]).T - risk
    error = gap.std(axis=1) / math.sqrt(500)
    assert (np.abs(gap.mean(axis=1)) < 4 * error + 1e-12).all()


def test_descent_warns_where_it_diverges() -> None:
    with pytest.warns(UserWarning, match="diverges: learning rate x largest eigenvalue is 4"):
        training_forecast(2 * np.eye(2), [1.0, 2.0], 5, learning_rate=2.0, method="descent")


ASYMMETRIC = np.array([[1.0, 0.5], [0.1, 1.0]])


@pytest.mark.parametrize(
    ("kernel", "y", "message"),
    [
        (ASYMMETRIC, [1, 2], "row 0, column 1: the kernel is not symmetric; got 0.5; expected 0.1"),
        (np.eye(3), [1, 2], "the kernel is of 3 points; expected 2"),
        (np.ones((2, 3)), [1, 2], "expected a square matrix"),
        ([[1, math.nan], [math.nan, 1]], [1, 2], "row 0, column 1: the kernel has a value"),
        ([[1, 2], [2, 1]], [1, 2], "least eigenvalue; got -1"),
        (np.eye(2), [1, math.inf], "row 1: a target is no number"),
        (np.eye(2), np.ones((2, 1, 1)), "targets have the shape"),
    ],
)
def test_kernels_and_targets_that_cannot_be_are_refused(
    kernel: object, y: object, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        training_forecast(kernel, y, 1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"method": "adam"}, "expected 'flow' or 'descent'"),
        ({"loss": "mae"}, "expected one of half-sum, half-mean, mse"),
        ({"initial": [1.0]}, "initial has the shape"),
        ({"cross": np.ones((3, 1))}, r"expected \(m, 2\)"),
        ({"times": [-1.0]}, "times"),
    ],
)
def test_forecasts_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(PeiraError, match=message):
        training_forecast(np.eye(2), [1.0, 2.0], **{"times": 1.0, **settings})


def test_ensembles_and_stops_that_cannot_be_are_refused() -> None:
    with pytest.raises(DataError, match="go together"):
        ensemble_forecast(np.eye(2), np.eye(2), [1, 2], 1.0, nngp_test=np.eye(3))
    with pytest.raises(DataError, match="noise; got -1"):
        early_stop_time(np.eye(2), [1, 2], noise=-1)
    with pytest.raises(DataError, match="modes of 2 points; expected 3 targets"):
        training_forecast(modes(np.eye(2)), [1, 2, 3], 1.0)
    assert check_kernel(ASYMMETRIC + ASYMMETRIC.T, 2).shape == (2, 2)
    assert forecast.SYMMETRY < 1e-4
