"""Neural tangent kernels: architectures, estimators, reports, commands, the study's pieces."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_iris, make_friedman1
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from peira.data import DataError, load_model, save_model
from peira.dynamics.ntk import estimators, study, tables, use
from peira.dynamics.ntk.method import (
    Architecture,
    Nonlinearity,
    NTKClassifier,
    NTKRegressor,
    closest_pair,
    convolutional_kernels,
    ensemble_forecast,
    kernels,
    lazy_report,
    tangent_kernel,
)
from peira.dynamics.probes import NTKLinear, empirical_ntk, mlp
from peira.engine.errors import PeiraError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(n: int = 8, features: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, features))


def normalised_relu(x: np.ndarray, depth: int, beta: float) -> np.ndarray:
    """The limit written as in the paper: sqrt(2) ReLU, weights of variance 1 - beta^2."""
    sigma = (1 - beta**2) * x @ x.T / x.shape[1] + beta**2
    theta = sigma
    for _ in range(depth - 1):
        norm = np.sqrt(np.outer(np.diag(sigma), np.diag(sigma)))
        t = np.arccos(np.clip(sigma / norm, -1, 1))
        slope = (np.pi - t) / np.pi
        sigma = (1 - beta**2) * norm * (np.sin(t) + (np.pi - t) * np.cos(t)) / np.pi + beta**2
        theta = (1 - beta**2) * slope * theta + sigma
    return theta


def test_the_normalised_architecture_by_the_paper_s_recursion() -> None:
    spec = Architecture.normalised(4, beta=0.3)
    np.testing.assert_allclose(
        tangent_kernel(spec, points()), normalised_relu(points(), 4, 0.3), rtol=1e-6
    )
    assert spec.gain == pytest.approx(math.sqrt(2))
    for activation in ("tanh", "erf", "gelu"):
        x = points(5, 7)
        x *= math.sqrt(7) / np.linalg.norm(x, axis=1, keepdims=True)
        nngp = Architecture.normalised(3, activation, 0.2).kernels(x).nngp
        assert np.diag(nngp) == pytest.approx(np.ones(5))


def test_empirical_kernels_of_wide_networks_near_the_limit() -> None:
    spec = Architecture.normalised(3, width=800)
    limit = tangent_kernel(spec, points())
    found = [tangent_kernel(spec, points(), kind="empirical", seed=seed) for seed in (0, 1)]
    assert np.linalg.norm(found[0] - limit) < 0.15 * np.linalg.norm(limit)
    assert not np.allclose(*found)
    # Outputs share the kernel: the mean over many of them is nearer.
    many = Architecture.normalised(3, width=800)
    network = Architecture(3, gain=many.gain, weight_var=0.99, width=800, outputs=4).network(
        3, generator()
    )
    assert np.linalg.norm(
        tangent_kernel(network, points(), kind="empirical") - limit
    ) < 0.15 * np.linalg.norm(limit)


def test_the_kernel_of_several_outputs_is_the_limit_times_the_identity() -> None:
    spec = Architecture(2, "tanh", width=4000, outputs=3)
    x = points(4)
    network = spec.network(3, generator()).double()
    full = empirical_ntk(network, torch.from_numpy(x), mode="full").numpy()
    limit = np.einsum("nm,kl->nmkl", tangent_kernel(spec, x), np.eye(3))
    assert np.abs(full - limit).max() < 0.1 * limit.max()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.ReLU, "relu"),
        (nn.Tanh, "tanh"),
        (nn.GELU, "gelu"),
        (nn.SiLU, "silu"),
        (nn.Softplus, "softplus"),
        (lambda: Nonlinearity("erf", 1.3), "erf"),
    ],
)
def test_architectures_are_recognised(module: object, name: str) -> None:
    net = mlp((3, 8, 8, 2), module, parametrisation="ntk", weight_std=1.5, bias_std=0.2)
    spec = Architecture.of(net)
    gain = 1.3 if name == "erf" else 1.0
    assert (spec.depth, spec.activation, spec.gain) == (3, name, gain)
    assert (spec.width, spec.outputs) == (8, 2)
    settings = {"depth": 3, "activation": name, "weight_var": 2.25, "bias_var": 0.04, "gain": gain}
    np.testing.assert_allclose(tangent_kernel(net, points()), kernels(points(), **settings).ntk)


def test_leaky_slopes_and_linear_models_are_recognised() -> None:
    net = mlp((3, 8, 1), lambda: nn.LeakyReLU(0.3), parametrisation="ntk")
    expected = 0.7**2 * kernels(points(), depth=2).ntk
    odd = 0.3 * kernels(points(), depth=2, activation="linear").ntk
    # max(z, 0.3 z) = 0.7 relu(z) + 0.3 z; the mixed terms are 0.7 * 0.3 * 2 * E[relu(u) v].
    mixed = 0.7 * 0.3 * kernels(points(), depth=2, activation="linear").ntk
    np.testing.assert_allclose(tangent_kernel(net, points()), expected + 0.3 * odd + mixed)
    linear = NTKLinear(3, 2, bias_std=0.5)
    np.testing.assert_allclose(tangent_kernel(linear, points()), points() @ points().T / 3 + 0.25)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (mlp((3, 4, 1)), "layer 0; got 'Linear'; expected NTKLinear; the kernel of nn.Linear in"),
        (
            nn.Sequential(NTKLinear(3, 4), nn.BatchNorm1d(4), NTKLinear(4, 1)),
            "layer 1; got 'BatchNorm1d'.*couples the points",
        ),
        (nn.Sequential(NTKLinear(3, 4), nn.Dropout(), NTKLinear(4, 1)), "layer 1; got 'Dropout'"),
        (nn.Sequential(NTKLinear(3, 4), nn.ReLU()), "layers do not fit"),
        (mlp((3, 4, 4, 1), parametrisation="mean_field"), "differ in the scale"),
        (
            nn.Sequential(NTKLinear(3, 4), nn.ReLU(), NTKLinear(4, 4), nn.Tanh(), NTKLinear(4, 1)),
            "one kind of activation",
        ),
    ],
)
def test_models_without_a_known_limit_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(DataError, match=message):
        tangent_kernel(model, points())


def test_architectures_and_kinds_that_cannot_be_are_refused() -> None:
    with pytest.raises(PeiraError, match="no activation 'rel'"):
        Architecture(3, "rel").network(2)
    with pytest.raises(PeiraError, match=r"beta = 1\.0"):
        Architecture.normalised(3, beta=1.0)
    with pytest.raises(PeiraError, match="kind is 'exact'"):
        tangent_kernel(Architecture(), points(), kind="exact")
    with pytest.raises(DataError, match="row 1, column 2"):
        tangent_kernel(Architecture(), [[1, 2, 3], [4, 5, math.nan]], kind="empirical")


@parametrize_with_checks(
    [
        NTKRegressor(),
        NTKRegressor(ridge="loo"),
        NTKClassifier(),
        NTKClassifier(training_time="auto"),
    ]
)
def test_scikit_learn_s_checks(estimator: object, check: object) -> None:
    check(estimator)


def test_regression_is_kernel_ridge_on_the_limit() -> None:
    x, y = make_friedman1(90, random_state=0)
    train, test, targets, _ = train_test_split(x, y, random_state=0)
    ours = NTKRegressor(depth=3, beta=0.3, ridge=0.05).fit(train, targets).predict(test)
    both = np.concatenate([train, test])
    kernel = normalised_relu(both, 3, 0.3)
    n = len(train)
    theirs = KernelRidge(alpha=0.05, kernel="precomputed").fit(
        kernel[:n, :n], (targets - targets.mean()) / targets.std()
    )
    expected = theirs.predict(kernel[n:, :n]) * targets.std() + targets.mean()
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_without_ridge_it_interpolates_and_its_spread_vanishes_there() -> None:
    x, y = points(20), np.sin(points(20)[:, 0])
    model = NTKRegressor(ridge=0.0).fit(x, y)
    mean, deviation = model.predict(x, return_std=True)
    np.testing.assert_allclose(mean, y, atol=1e-8)
    np.testing.assert_allclose(deviation, 0, atol=1e-6)
    far = model.predict(3 * points(5, seed=9), return_std=True)[1]
    assert (far > 0.05 * y.std()).all()


@pytest.mark.parametrize("time", [0.5, 20.0])
@pytest.mark.parametrize("kernel", ["ntk", "nngp"])
def test_training_for_a_time_is_the_ensemble_s_forecast(kernel: str, time: float) -> None:
    x, test = points(12), points(4, seed=1)
    y = x[:, 0] * x[:, 1]
    model = NTKRegressor(kernel=kernel, training_time=time).fit(x, y)
    spec = Architecture.normalised(3)
    train, cross = spec.kernels(x), spec.kernels(test, x)
    moved = getattr(train, kernel)
    between = (cross.nngp, getattr(cross, kernel))
    expected = ensemble_forecast(
        moved, train.nngp, (y - y.mean()) / y.std(), time, cross=between,
        nngp_test=spec.kernels(test).nngp,
    )  # fmt: skip
    mean, deviation = model.predict(test, return_std=True)
    np.testing.assert_allclose(mean, expected.mean[0] * y.std() + y.mean(), atol=1e-9)
    np.testing.assert_allclose(deviation, expected.deviation[0] * y.std(), atol=1e-7)


def test_leave_one_out_is_what_leaving_one_out_gives() -> None:
    x, y = points(15), points(15, 1, seed=3)
    kernel = tangent_kernel(Architecture.normalised(2), x)
    ridge, error = estimators.leave_one_out(kernel, y)
    left = []
    for i in range(15):
        keep = np.arange(15) != i
        inverse = np.linalg.inv(kernel[np.ix_(keep, keep)] + ridge * np.eye(14))
        left.append(float(kernel[i, keep] @ inverse @ y[keep, 0] - y[i, 0]) ** 2)
    assert error == pytest.approx(np.mean(left))
    assert ridge in estimators.RIDGES * np.mean(np.diag(kernel))


def test_early_stopping_and_leave_one_out_beat_interpolation_of_noise() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    truth = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2])
    y = truth + rng.normal(scale=1.0, size=300)

    def error(**settings: object) -> float:
        model = NTKRegressor(**settings).fit(x[:200], y[:200])
        return float(np.mean((model.predict(x[200:]) - truth[200:]) ** 2))

    end = error(ridge=0.0)
    assert error(training_time="auto") < 0.85 * end
    assert error(ridge="loo") < 0.85 * end


def test_it_learns_real_tables() -> None:
    x, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), NTKClassifier(ridge="loo"))
    assert cross_val_score(pipeline, x, y, cv=5).mean() > 0.93
    x, y = make_friedman1(300, noise=0.5, random_state=0)
    pipeline = make_pipeline(StandardScaler(), NTKRegressor(ridge="loo"))
    ours = cross_val_score(pipeline, x, y, cv=5).mean()
    assert ours > cross_val_score(LinearRegression(), x, y, cv=5).mean() + 0.1


def test_several_targets_are_learned_as_if_alone() -> None:
    x, y = points(20), points(20, 2, seed=5)
    both = NTKRegressor().fit(x, y)
    for i in (0, 1):
        alone = NTKRegressor().fit(x, y[:, i]).predict(x[:4], return_std=True)
        together = both.predict(x[:4], return_std=True)
        np.testing.assert_allclose(together[0][:, i], alone[0])
        np.testing.assert_allclose(together[1][:, i], alone[1])


def test_fitted_models_survive_a_file(tmp_path: Path) -> None:
    x, y = load_iris(return_X_y=True)
    model = NTKClassifier(activation="erf").fit(x, y)
    save_model(tmp_path / "model", model)
    assert np.array_equal(load_model(tmp_path / "model").predict(x), model.predict(x))


def test_points_that_no_kernel_tells_apart_are_named() -> None:
    x = points(6)
    x[4] = x[1]
    with pytest.raises(DataError, match=r"points 1 and 4 are the same.*ridge > 0"):
        NTKRegressor(ridge=0.0).fit(x, np.arange(6.0))
    NTKRegressor(ridge=1e-3).fit(x, np.arange(6.0))
    x[4], x[2] = 7.0, 0.0
    with pytest.raises(DataError, match=r"row 2: a point is the zero vector.*beta > 0"):
        NTKClassifier(beta=0.0).fit(x, [0, 0, 0, 1, 1, 1])
    assert closest_pair(np.array([[2.0, 0, 1.9], [0, 2, 0], [1.9, 0, 2]]))[:2] == (0, 2)


def test_a_polynomial_activation_runs_out_of_dimensions() -> None:
    with pytest.raises(DataError, match=r"the kernel is singular; points \d+ and \d+"):
        NTKRegressor(depth=2, activation="square", ridge=0.0).fit(points(40), np.arange(40.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": "rbf"}, "expected 'ntk' or 'nngp'"),
        ({"ridge": -1.0}, "ridge is -1.0"),
        ({"ridge": "cv"}, "ridge is 'cv'"),
        ({"training_time": -2.0}, "training_time is -2.0"),
        ({"activation": "relo"}, "did you mean 'relu'"),
        ({"depth": 0}, "depth = 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(PeiraError, match=message):
        NTKRegressor(**settings).fit(points(), np.arange(8.0))


def trained(scale: float) -> tuple[nn.Module, dict, dict, torch.Tensor]:
    """A wide network before and after its weights moved by `scale` in a random direction."""
    net = Architecture(3, "tanh", width=256).network(3, generator())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    after = {
        name: value + scale * torch.randn(value.shape, generator=generator(1))
        for name, value in before.items()
    }
    return net, before, after, torch.from_numpy(points()).float()


def test_reports_tell_small_moves_from_large_ones() -> None:
    small, large = (lazy_report(*trained(scale)) for scale in (1e-3, 1.0))
    assert small.lazy
    assert not large.lazy
    assert small.linear_error < 0.01
    assert small.change.kernel_change < 0.01 < large.change.kernel_change
    net, before, after, x = trained(1e-3)
    net.load_state_dict(after)
    lazy_report(net, before, after, x)
    assert torch.equal(net.state_dict()["0.weight"], after["0.weight"])
    assert lazy_report(net, before, before, x).linear_error == 0
    with pytest.raises(DataError, match="another model"):
        lazy_report(net, before, {"0.weight": torch.zeros(2, 2)}, x)


def test_expansion_of_a_network_with_one_moving_layer_is_exact() -> None:
    net, before, after, x = trained(1.0)
    moved = {**before, "4.weight": after["4.weight"], "4.bias": after["4.bias"]}
    assert lazy_report(net, before, moved, x).linear_error < 1e-5


def test_components_are_spread_from_first_to_last() -> None:
    for n in (40, 200, 512):
        chosen = study.components(n)
        assert chosen[:2] == [0, 1]
        assert chosen[-1] == n - 1
        assert len(set(chosen)) == 20
        assert chosen == sorted(chosen)


def test_fitted_rates_of_known_decays() -> None:
    times = np.arange(101)
    for rate in (0.001, 0.02, 0.3, 2.0):
        assert study.fitted_rate(0.5 * np.exp(-rate * times)) == pytest.approx(rate)


def test_exponents_are_fitted_for_each_seed() -> None:
    rows = [
        {"experiment": "circle", "seed": seed, "width": width, "m": width**-0.7 * (1 + seed)}
        for seed in (0, 1)
        for width in (8, 16, 64)
    ]
    found = study.exponents(pd.DataFrame(rows), "m")
    assert found["exponent"].to_list() == pytest.approx([-0.7, -0.7])
    assert study.exponents(pd.DataFrame(rows[:2]), "m").empty


def test_descent_lowers_half_the_mean_squared_error() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    x, y = torch.tensor([[1.0], [1.0]]).double(), torch.tensor([[2.0], [2.0]]).double()
    assert study.descend(model, x, y, 0.5, range(1)) == pytest.approx((2.0, 0.5))


@pytest.mark.parametrize(
    "learner",
    ["ntk", "nngp", "rbf", "laplace", pytest.param("network", marks=pytest.mark.slow)],
)
def test_every_learner_does_well_on_iris(learner: str) -> None:
    parts = tables.table("iris", 0)
    assert (len(parts.train), len(parts.test)) == (100, 50)
    assert abs(parts.train.mean(axis=0)).max() < 1e-12
    assert tables.accuracy(learner, parts, 0) >= 0.85


def csv(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def iris(tmp_path: Path) -> Path:
    frame = load_iris(as_frame=True).frame
    frame["target"] = frame["target"].map({0: "setosa", 1: "versicolor", 2: "virginica"})
    frame.iloc[::2].to_csv(tmp_path / "train.csv", index=False)
    frame.iloc[1::2].to_csv(tmp_path / "test.csv", index=False)
    return tmp_path


def test_tables_are_classified(iris: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use.fit(iris / "train.csv", iris / "model")
    assert "3 classes" in capsys.readouterr().out
    use.score(iris / "model", iris / "test.csv")
    accuracy = float(capsys.readouterr().out.split("accuracy")[1].split()[1])
    assert accuracy > 0.85
    use.predict(iris / "model", iris / "test.csv", iris / "out.csv")
    found = pd.read_csv(iris / "out.csv")
    assert np.mean(found["prediction"] == found["target"]) == pytest.approx(accuracy, abs=1e-3)


def regression(path: Path) -> Path:
    x = points(60)
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    frame["y"] = x[:, 0] + np.sin(2 * x[:, 1])
    frame.to_csv(path, index=False)
    return path


def test_tables_are_regressed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = regression(tmp_path / "data.csv")
    use.fit(data, tmp_path / "model", target="y", features="a,b")
    use.predict(tmp_path / "model", data, tmp_path / "out.csv")
    use.score(tmp_path / "model", data, target="y")
    found = pd.read_csv(tmp_path / "out.csv")
    assert np.corrcoef(found["prediction"], found["y"])[0, 1] > 0.95
    assert (found["deviation"] >= 0).all()
    assert "60 rows, 2 features, regression" in capsys.readouterr().out


def test_kernels_and_forecasts_of_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = regression(tmp_path / "data.csv")
    use.kernel(data, tmp_path / "k.npz", features="a,b,c")
    with np.load(tmp_path / "k.npz") as file:
        ours = file["ntk"]
    scaled = StandardScaler().fit_transform(points(60))
    np.testing.assert_allclose(ours, normalised_relu(scaled, 3, 0.1), rtol=1e-6)
    use.kernel(data, tmp_path / "cross.npz", other=data, features="a,b,c")
    with np.load(tmp_path / "cross.npz") as file:
        np.testing.assert_allclose(file["ntk"], ours, rtol=1e-6)
    capsys.readouterr()
    use.forecast(data, "y", features="a,b,c", out=tmp_path / "curve.csv")
    first = capsys.readouterr().out
    use.forecast(data, "y", kernel=tmp_path / "k.npz")
    assert capsys.readouterr().out == first.split("written to")[0]
    curve = pd.read_csv(tmp_path / "curve.csv")
    assert (np.diff(curve["error"]) <= 1e-9).all()
    assert curve["error"].iloc[-1] < 1e-9


def test_lazy_networks_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = regression(tmp_path / "data.csv")
    net = nn.Sequential(nn.Linear(3, 400), nn.ReLU(), nn.Linear(400, 1))
    names = {"0": "fc2", "2": "fc10"}
    for path, shift in (("before", 0.0), ("near", 1e-4), ("far", 1.0)):
        state = {
            f"{names[n[0]]}.{n[2:]}": (value.detach() + shift).contiguous()
            for n, value in net.named_parameters()
        }
        save_file(state, tmp_path / path)
    use.lazy(tmp_path / "before", tmp_path / "near", data, features="a,b,c")
    assert "lazy: the network's expansion" in capsys.readouterr().out
    use.lazy(tmp_path / "before", tmp_path / "far", data, features="a,b,c")
    assert "not lazy" in capsys.readouterr().out
    with pytest.raises(DataError, match="4 columns; expected 3"):
        use.lazy(tmp_path / "before", tmp_path / "near", data)
    save_file({"a.weight": torch.zeros(4, 3), "b.weight": torch.zeros(2, 5)}, tmp_path / "bad")
    with pytest.raises(DataError, match=r"bad: layer 'b' does not fit an MLP; got \(2, 5\)"):
        use.lazy(tmp_path / "bad", tmp_path / "bad", data)
    with pytest.raises(DataError, match=r"not a \.safetensors file"):
        use.lazy(data, data, data)


def test_a_person_s_own_network_is_read_from_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = regression(tmp_path / "data.csv")
    own = tmp_path / "own.py"
    own.write_text(
        "from torch import nn\n"
        "def net(): return nn.Sequential(nn.Linear(3, 50), nn.LayerNorm(50), nn.Linear(50, 1))\n"
        "def number(): return 3\n"
    )
    state = nn.Sequential(nn.Linear(3, 50), nn.LayerNorm(50), nn.Linear(50, 1)).state_dict()
    save_file(state, tmp_path / "before")
    save_file({name: value + 1e-5 for name, value in state.items()}, tmp_path / "after")
    files = tmp_path / "before", tmp_path / "after", data
    use.lazy(*files, features="a,b,c", model=f"{own}:net")
    assert "lazy: the network's expansion" in capsys.readouterr().out
    for name, said in (("none", "no function 'none'"), ("number", "returned no model; got 'int'")):
        with pytest.raises(DataError, match=said):
            use.lazy(*files, model=f"{own}:{name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,target\n1,2\nx,3\n", "row 3, column 'a': wrong value; got 'x'; expected a number"),
        ("a,target\n1,2\n,3\n", "row 3, column 'a': an empty cell"),
        ("a,target\n1,2\n2,\n", "row 3, column 'target': an empty cell"),
        ("a,b\n1,2\n2,3\n", "no column 'target'"),
        ("target\n1\n2\n", "no columns beside the target"),
        ("a,target\n1,2\n2,3\n", "2 rows; expected 5 or more"),
    ],
)
def test_tables_that_cannot_be_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        use.fit(csv(tmp_path / "bad.csv", text), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_arrays_in_files_are_tables_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = regression(tmp_path / "data.csv")
    np.savez(tmp_path / "data.npz", x=points(60), y=pd.read_csv(data)["y"])
    use.forecast(data, "y", features="a,b,c")
    first = capsys.readouterr().out
    use.forecast(tmp_path / "data.npz", "y", features="x0,x1,x2")
    assert capsys.readouterr().out == first
    np.savez(tmp_path / "bad.npz", x=np.ones(3))
    with pytest.raises(DataError, match=r"array 'x' of points; got \(3,\); expected numbers"):
        use.kernel(tmp_path / "bad.npz", tmp_path / "k.npz")


def test_equal_rows_are_named_by_their_place_in_the_file(tmp_path: Path) -> None:
    frame = pd.read_csv(regression(tmp_path / "data.csv"))
    frame.loc[30, ["a", "b", "c"]] = frame.loc[7, ["a", "b", "c"]]
    frame.to_csv(tmp_path / "data.csv", index=False)
    with pytest.raises(DataError, match="rows 9 and 32 have the same features"):
        use.fit(tmp_path / "data.csv", tmp_path / "model", target="y", ridge="0")


def test_options_and_kernel_files_that_cannot_be_are_refused(tmp_path: Path) -> None:
    data = regression(tmp_path / "data.csv")
    with pytest.raises(DataError, match="ridge; got 'much'"):
        use.fit(data, tmp_path / "model", target="y", ridge="much")
    with pytest.raises(PeiraError, match=r"^no activation 'rleu'; did you mean 'relu'"):
        use.fit(data, tmp_path / "model", target="y", activation="rleu")
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        use.forecast(data, "y", kernel=data)
    np.savez(tmp_path / "k.npz", ntk=np.triu(np.ones((60, 60))))
    with pytest.raises(DataError, match=r"k\.npz: row 0, column 1: the kernel is not symmetric"):
        use.forecast(data, "y", kernel=tmp_path / "k.npz")
    np.savez(tmp_path / "k.npz", a=np.eye(3), b=np.eye(3))
    with pytest.raises(DataError, match="no array 'ntk'"):
        use.forecast(data, "y", kernel=tmp_path / "k.npz")
    save_model(tmp_path / "other", LinearRegression().fit([[1.0], [2.0]], [1.0, 2.0]))
    with pytest.raises(DataError, match="not a model of this paper; got 'LinearRegression'"):
        use.score(tmp_path / "other", data)


# `stax.serial` of neural-tangents 0.6.5: two Conv(3 x 3, SAME, W_std 1.3, b_std 0.2) with the
# activation, Flatten or GlobalAvgPool, Dense; upper triangles of both kernels of three images.
PICTURES = np.sin(np.arange(72.0)).reshape(3, 4, 3, 2)
# fmt: off
CONVOLUTIONS = {
    ("relu", "none"): (
        [0.3684947905336414, 0.26944735534580205, 0.17701894909933036,
         0.3677304637460569, 0.2657313835174009, 0.36350434062233705],
        [0.9916843716009243, 0.48351290390735246, 0.1846959948758479,
         0.9893913908206724, 0.47243468862918697, 0.9767130204834195]),
    ("relu", "average"): (
        [0.22197393144317537, 0.20852429919740462, 0.19733580975822013,
         0.22196526325890442, 0.2117319167403469, 0.22258262387027872],
        [0.36809943850807525, 0.30377756538656764, 0.2688854985951354,
         0.36849560376626117, 0.316657830179393, 0.3730464967706709]),
    ("erf", "none"): (
        [0.5616326233157449, 0.2945229127872595, -0.1428861874876318,
         0.5608999623808132, 0.2828666212484464, 0.5578411106934325],
        [1.7246686903409565, 0.7717574349590849, -0.5682334738260342,
         1.7218644519870336, 0.7350446517179081, 1.709540884879908]),
    ("erf", "average"): (
        [0.1563922909775681, 0.11867675089269049, 0.07254709356066655,
         0.15877082087026032, 0.13386528250253243, 0.17204886742208497],
        [0.3697162834327129, 0.23142788640616757, 0.09340901961949619,
         0.3768882171311212, 0.28159493083758946, 0.4164606834353569]),
}
# fmt: on


@pytest.mark.parametrize(("activation", "pooling"), CONVOLUTIONS)
def test_convolutions_agree_with_neural_tangents(activation: str, pooling: str) -> None:
    settings = {"depth": 3, "weight_var": 1.69, "bias_var": 0.04}
    names = {"activation": activation, "pooling": pooling}
    found = convolutional_kernels(PICTURES, **names, **settings)
    nngp, ntk_ = CONVOLUTIONS[activation, pooling]
    upper = np.triu_indices(3)
    np.testing.assert_allclose(found.nngp[upper], nngp, rtol=1e-12)
    np.testing.assert_allclose(found.ntk[upper], ntk_, rtol=1e-8)
    part = convolutional_kernels(PICTURES[:1], PICTURES[1:], **names, **settings)
    np.testing.assert_allclose(part.ntk, found.ntk[:1, 1:], rtol=1e-7)


def test_a_filter_of_one_pixel_on_one_pixel_is_the_dense_network() -> None:
    x = points(5, 4)
    found = convolutional_kernels(x[:, None, None, :], depth=3, filter_size=1, bias_var=0.1)
    np.testing.assert_allclose(found.ntk, kernels(x, depth=3, bias_var=0.1).ntk, rtol=1e-7)


def test_pictures_that_cannot_be_are_refused() -> None:
    with pytest.raises(DataError, match=r"x has the shape \(4, 3, 2\)"):
        convolutional_kernels(PICTURES[0], depth=2)
    with pytest.raises(DataError, match="x2 differs from x"):
        convolutional_kernels(PICTURES, PICTURES[:, :2], depth=2)
    with pytest.raises(PeiraError, match="an odd size"):
        convolutional_kernels(PICTURES, depth=2, filter_size=2)
    with pytest.raises(PeiraError, match="expected 'none' or 'average'"):
        convolutional_kernels(PICTURES, depth=2, pooling="max")
    with pytest.raises(DataError, match="row 2: x has a value that is no number"):
        convolutional_kernels(np.where(PICTURES[2, 0, 0, 0] == PICTURES, np.nan, PICTURES), depth=2)
