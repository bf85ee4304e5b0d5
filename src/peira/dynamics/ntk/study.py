"""The paper's statements on finite networks: at the start, in training, along components."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.stats import kstest, spearmanr
from torch import Tensor, nn

import peira
from peira.data.images import digits, mnist
from peira.dynamics.ntk.architecture import Architecture
from peira.dynamics.ntk.method import tangent_kernel
from peira.dynamics.ntk.tables import Learner, Name, accuracy, table
from peira.dynamics.probes import empirical_ntk, learning_rate_scale
from peira.dynamics.probes.forecast import (
    Floats,
    ensemble_forecast,
    modes,
    training_forecast,
)
from peira.engine import verdict as v

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Four training points of the circle, in radians, and where functions and kernels are compared.
TRAINED = (-2.5, -0.7, 0.4, 1.9)
GRID = np.linspace(-np.pi, np.pi, 24, endpoint=False)
COMPONENTS = 20


class Cell(peira.Cell):
    """One measurement on networks of one width, one activation or one table."""

    experiment: Literal["start", "circle", "ensemble", "component", "sphere", "table"] = "circle"
    width: int = Field(512, ge=2, description="neurons of every hidden layer")
    depth: int = Field(4, ge=2, description="weight layers")
    activation: Literal["relu", "tanh", "erf", "square"] = "relu"
    parametrisation: Literal["ntk", "standard"] = "ntk"
    learning_rate: float | None = Field(
        None, gt=0, description="of half the mean squared error; none: 1 / largest eigenvalue"
    )
    steps: int = Field(200, ge=1, description="of full-batch gradient descent")
    networks: int = Field(200, ge=2, description="trained in an ensemble")
    points: int = Field(200, ge=4, description="images, or points on the sphere")
    images: Literal["digits", "mnist"] = "digits"
    data: Name = "iris"
    learner: Learner = "ntk"


def _cells(experiment: str, widths: tuple[int, ...], **settings: object) -> list[Cell]:
    return [Cell(experiment=experiment, width=width, **settings) for width in widths]


def _others(points: int) -> list[Cell]:
    """What has no network: kernels on the sphere."""
    sphere = Cell(experiment="sphere", depth=2, points=points)
    return [sphere.changed({"activation": name}) for name in ("relu", "tanh", "erf", "square")]


def _tables(*names: str) -> list[Cell]:
    learners = ("ntk", "nngp", "rbf", "laplace", "network")
    return [
        Cell(experiment="table", data=name, learner=learner)
        for name in names
        for learner in learners
    ]


def smoke_cells() -> list[Cell]:
    """Every code path on narrow networks."""
    return [
        *_cells("start", (16, 32, 64), depth=3),
        *_cells("circle", (16, 32, 64), depth=3, steps=20),
        *_cells("circle", (32,), depth=3, steps=20, parametrisation="standard"),
        *_cells("component", (16, 32, 64), depth=3, steps=10, points=40),
        *_cells("ensemble", (32,), depth=3, steps=10, networks=20),
        *_others(100),
        *_tables("iris"),
    ]


def small_cells() -> list[Cell]:
    """To width 2,048."""
    return [
        *_cells("start", (32, 64, 128, 256, 512, 1024, 2048), depth=3),
        *_cells("circle", (64, 128, 256, 512, 1024, 2048)),
        *_cells("circle", (512,), parametrisation="standard"),
        *_cells("component", (128, 512, 2048), depth=3, steps=100),
        *_cells("ensemble", (512,), depth=3, steps=60),
        *_others(100),
        *_tables("iris", "wine", "breast-cancer"),
    ]


def paper_cells() -> list[Cell]:
    """The published widths, depth 4 and learning rate 1."""
    published = {"learning_rate": 1.0}
    return [
        *_cells("start", (100, 500, 1000, 5000, 10_000)),
        *_cells("circle", (100, 500, 1000, 10_000), **published),
        *_cells("circle", (1000,), parametrisation="standard", **published),
        *_cells("component", (100, 1000, 10_000), steps=4000, points=512, images="mnist"),
        *_cells("ensemble", (50, 1000), steps=1000, **published),
        *_others(1000),
        *_tables("iris", "wine", "breast-cancer"),
    ]


class Study(peira.Study[Cell]):
    """Networks of growing width against the limit's kernel and its closed forms."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(cells=smoke_cells, seeds=2),
        "small": peira.Scale(cells=small_cells, seeds=8),
        "paper": peira.Scale(cells=paper_cells, seeds=10),
    }

    def seeds(self, cell: Cell, asked: int) -> int:
        """Of up to eight, fewer of what trains large networks: `small` has to fit its time."""
        fewer = {"circle": 8, "component": 3, "ensemble": 6, "table": 5}
        return min(asked, fewer.get(cell.experiment, asked)) if asked <= 8 else asked

    def inputs(self, cell: Cell) -> dict[str, str]:
        if cell.images != "mnist":
            return {}
        from peira.data import fingerprint
        from peira.data.images import mnist_paths

        return {"mnist": fingerprint(mnist_paths())}

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float | peira.Censored]:
        experiments = {
            "start": at_start,
            "circle": on_circle,
            "ensemble": of_ensemble,
            "component": along_components,
            "sphere": on_sphere,
            "table": on_table,
        }
        return experiments[cell.experiment](cell, run)

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        start = {"experiment": "start"}
        yield v.power_law(table, "width", "kernel_error", self.claim("C1"), start)

        circle = {"experiment": "circle", "parametrisation": "ntk"}
        slopes = exponents(v.select(table, circle), "kernel_change")
        yield v.below(slopes, "exponent", {"experiment": "circle"}, self.claim("C2"))

        falls, small = self.claim("C3").parts
        widest = {**circle, "width": _widest(table, "circle")}
        yield v.all_of(
            self.claim("C3"),
            [
                v.trend(table, "width", "forecast_error", falls, circle, falling=True),
                v.below(table, "forecast_error", widest, small),
            ],
        )

        order, first = self.claim("C4").parts
        widest = {"experiment": "component", "width": _widest(table, "component")}
        yield v.all_of(
            self.claim("C4"),
            [
                v.above(table, "rate_correlation", widest, order),
                v.above(table, "first_is_fastest", widest, first),
            ],
        )

        drawn, trained = self.claim("C5").parts
        widest = {"experiment": "ensemble", "width": _widest(table, "ensemble")}
        yield v.all_of(
            self.claim("C5"),
            [
                v.above(table, "gaussian_at_start", widest, drawn),
                v.above(table, "gaussian_after", widest, trained),
            ],
        )

        *curved, polynomial = self.claim("C6").parts
        judged = [
            v.above(table, "least_eigenvalue", _sphere(name), part)
            for name, part in zip(("relu", "tanh", "erf"), curved, strict=True)
        ]
        judged.append(v.below(table, "least_eigenvalue", _sphere("square"), polynomial))
        yield v.all_of(self.claim("C6"), judged)

        component = {"experiment": "component"}
        yield v.trend(table, "width", "deviation", self.claim("C7"), component, falling=True)

        controls = {"RBF": "rbf", "Laplace": "laplace", "NNGP": "nngp", "network": "network"}
        yield v.against_controls(
            v.larger,
            mean_accuracy(table),
            "accuracy",
            {"learner": "ntk"},
            {name: {"learner": learner} for name, learner in controls.items()},
            self.claim("C8"),
        )

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        from peira.dynamics.ntk.figure import draw

        return draw(table, curves)


def at_start(cell: Cell, run: peira.Run) -> dict[str, float | peira.Censored]:
    """Relative distance (Frobenius) of a random network's kernel to the limit, 12 points in R^4."""
    spec = Architecture.normalised(cell.depth, cell.activation, width=cell.width)
    x = run.rng.standard_normal((12, 4))
    limit = tangent_kernel(spec, x)
    network = spec.network(4, run.generator).to(run.device)
    found = tangent_kernel(network, x, kind="empirical")
    return {"kernel_error": float(np.linalg.norm(found - limit) / np.linalg.norm(limit))}


def on_circle(cell: Cell, run: peira.Run) -> dict[str, float | peira.Censored]:
    """Train on four points of the circle; hold kernel and function against the limit."""
    spec = Architecture(cell.depth, cell.activation, width=cell.width)
    x, grid = circle(np.array(TRAINED)), circle(GRID)
    y = x[:, 0] * x[:, 1]
    limit = modes(tangent_kernel(spec, x))
    rate = cell.learning_rate or len(x) / limit.values[0]
    network = spec.network(2, run.generator, cell.parametrisation).to(run.device)
    inputs, everywhere, targets = (
        torch.from_numpy(part).float().to(run.device) for part in (x, grid, y[:, None])
    )
    start, start_grid = _outputs(network, inputs), _outputs(network, everywhere)
    before = _kernel(network, everywhere, inputs)
    pace = learning_rate_scale(cell.parametrisation, cell.width)
    steps = run.steps(cell.steps, save=(network,))
    first, last = descend(network, inputs, targets, rate * pace, steps)
    after = _kernel(network, everywhere, inputs)
    trained = _outputs(network, everywhere)
    errors = []
    # By the limit's kernel, and by the network's own at the start.
    for kernel, cross in (
        (limit, tangent_kernel(spec, grid, x)),
        (modes(before[1] * pace), before[2] * pace),
    ):
        forecast = training_forecast(
            kernel, y, cell.steps, learning_rate=rate, method="descent", loss="half-mean",
            initial=start, cross=cross, initial_test=start_grid,
        )  # fmt: skip
        error = np.abs(trained - forecast.test[0]).max() / np.linalg.norm(y)
        errors.append(float(error))
    for i, angle in enumerate(GRID):
        run.log(i, angle=float(angle), kernel_start=before[0][12, i], kernel_end=after[0][12, i])
    size = np.linalg.norm(before[0])
    return {
        "kernel_change": float(np.linalg.norm(after[0] - before[0]) / size),
        "inflation": float(np.linalg.norm(after[0]) / size),
        "forecast_error": errors[0],
        "linear_error": errors[1],
        "loss_left": last / first,
    }


def of_ensemble(cell: Cell, run: peira.Run) -> dict[str, float | peira.Censored]:
    """Many networks at the start and after training, against the limit's Gaussian process."""
    spec = Architecture(cell.depth, cell.activation, width=cell.width)
    x, grid = circle(np.array(TRAINED)), circle(GRID)
    y = x[:, 0] * x[:, 1]
    train, cross = spec.kernels(x), spec.kernels(grid, x)
    rate = cell.learning_rate or len(x) / modes(train.ntk).values[0]
    inputs, everywhere, targets = (
        torch.from_numpy(part).float().to(run.device) for part in (x, grid, y[:, None])
    )
    outputs: dict[str, list[Floats]] = {"start": [], "end": []}
    # One after the other: a network's weights and gradients stay in the processor's cache.
    for _ in run.steps(cell.networks, save=(outputs,)):
        network = spec.network(2, run.generator).to(run.device)
        outputs["start"].append(_outputs(network, everywhere))
        descend(network, inputs, targets, rate, range(cell.steps))
        outputs["end"].append(_outputs(network, everywhere))
    start, end = (np.array(outputs[name]) for name in ("start", "end"))
    expected = ensemble_forecast(
        train.ntk, train.nngp, y, [0, cell.steps], learning_rate=rate, method="descent",
        loss="half-mean", cross=cross, nngp_test=spec.kernels(grid).nngp,
    )  # fmt: skip
    shares = []
    for i, found in enumerate((start, end)):
        standard = (found - expected.mean[i]) / expected.deviation[i]
        p = np.array([kstest(at, "norm").pvalue for at in standard.T])
        shares.append(float(np.mean(p > 0.01)))
        name = ("start", "end")[i]
        for j in range(len(GRID)):
            low, middle, high = np.quantile(found[:, j], (0.1, 0.5, 0.9))
            run.log(
                j,
                **{
                    f"{name}_low": low,
                    f"{name}_middle": middle,
                    f"{name}_high": high,
                    f"{name}_mean": expected.mean[i][j],
                    f"{name}_deviation": expected.deviation[i][j],
                },
            )
    return {"gaussian_at_start": shares[0], "gaussian_after": shares[1]}


def along_components(cell: Cell, run: peira.Run) -> dict[str, float | peira.Censored]:
    """Start with an error along one principal component per output, and see how it goes.

    The target of output i is f_0 + v_i / 2, v_i of mean square 1 (the paper's, with i = 2).
    """
    x = images(cell, run)
    spec = Architecture(cell.depth, cell.activation, width=cell.width, outputs=COMPONENTS)
    found = modes(tangent_kernel(spec, x))
    chosen = components(len(x))
    rate = cell.learning_rate or 0.5 * len(x) / found.values[0]
    network = spec.network(x.shape[1], run.generator).to(run.device)
    inputs, vectors = (
        torch.from_numpy(part).float().to(run.device) for part in (x, found.vectors[:, chosen])
    )
    with torch.no_grad():
        targets = network(inputs) + 0.5 * math.sqrt(len(x)) * vectors
    optimizer = torch.optim.SGD(network.parameters(), lr=rate / len(x))
    path: dict[str, list[list[float]]] = {"along": [], "beside": []}
    for _ in run.steps(cell.steps, save=(network, path)):
        gap = targets - network(inputs)
        _record(path, gap.detach() / math.sqrt(len(x)), vectors)
        optimizer.zero_grad()
        (0.5 * gap.square().sum()).backward()
        optimizer.step()
    with torch.no_grad():
        _record(path, (targets - network(inputs)) / math.sqrt(len(x)), vectors)
    along, beside = (np.array(path[name]) for name in ("along", "beside"))
    expected = -np.log1p(-rate * found.values[chosen] / len(x))
    rates = np.array([fitted_rate(curve) for curve in along.T])
    for index, predicted, measured in zip(chosen, expected, rates, strict=True):
        run.log(int(index) + 1, predicted_rate=float(predicted), measured_rate=float(measured))
    halved = np.array([_halved(curve) for curve in along.T])
    return {
        "rate_correlation": float(spearmanr(rates, expected).statistic),
        "rate_error": float(np.median(np.abs(np.log(np.maximum(rates, 1e-12) / expected)))),
        "first_is_fastest": float((halved[0] < halved[1:]).all()),
        "deviation": float(beside.max(axis=0)[1] / 0.5),
    }


def on_sphere(cell: Cell, run: peira.Run) -> dict[str, float | peira.Censored]:
    """Least eigenvalue, relative to the largest, of the limit on random points of a sphere."""
    x = run.rng.standard_normal((cell.points, 10))
    x *= math.sqrt(10) / np.linalg.norm(x, axis=1, keepdims=True)
    spec = Architecture.normalised(cell.depth, cell.activation)
    values = np.linalg.eigvalsh(tangent_kernel(spec, x))
    return {"least_eigenvalue": float(values[0] / values[-1])}


def on_table(cell: Cell, run: peira.Run) -> dict[str, float | peira.Censored]:
    """Test accuracy of one learner on one table."""
    return {"accuracy": accuracy(cell.learner, table(cell.data, run.seed), run.seed)}


def circle(angles: Floats) -> Floats:
    """Points of the unit circle, (n, 2)."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def images(cell: Cell, run: peira.Run) -> Floats:
    """Random images as rows of pixels in [0, 1]."""
    pixels, _ = mnist() if cell.images == "mnist" else digits()
    rows = run.rng.choice(len(pixels), cell.points, replace=False)
    return pixels.reshape(len(pixels), -1)[rows] / float(pixels.max())


def components(n: int) -> list[int]:
    """`COMPONENTS` of n principal components from the largest to the smallest, geometrically."""
    places = np.geomspace(1, n, COMPONENTS)
    for i in range(1, COMPONENTS):
        places[i] = max(round(places[i]), places[i - 1] + 1)
    return [int(place) - 1 for place in places]


def fitted_rate(error: Floats) -> float:
    """Decay per step over the time in which the error falls to 1/e^2, or all of it."""
    share = error / error[0]
    low = np.flatnonzero(share < math.exp(-2))
    last = int(low[0]) if len(low) else len(share) - 1
    return float(-math.log(max(share[last], 1e-12)) / last)


def descend(
    network: nn.Module, x: Tensor, y: Tensor, rate: float, steps: Iterable[int]
) -> tuple[float, float]:
    """Full-batch gradient descent on half the mean squared error; that error first and last."""
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)

    def error() -> Tensor:
        return 0.5 * (network(x) - y).square().sum() / len(x)

    with torch.no_grad():
        first = float(error())
    for _ in steps:
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    with torch.no_grad():
        return first, float(error())


def exponents(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Log-log slope of `metric` against width for every seed, with three widths or more."""
    import pandas as pd

    rows = [
        {"experiment": experiment, "seed": seed, "exponent": np.polyfit(*np.log(values.T), 1)[0]}
        for (experiment, seed), part in table.groupby(["experiment", "seed"])
        for values in [part[["width", metric]].to_numpy(dtype=float)]
        if len(values) >= 3
    ]
    return pd.DataFrame(rows)


def mean_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of every learner and seed, over the tables."""
    rows = v.select(table, {"experiment": "table"})
    if "accuracy" not in rows:
        return rows
    return rows.groupby(["learner", "seed"], as_index=False)["accuracy"].mean()


def _widest(table: pd.DataFrame, experiment: str) -> int:
    widths = v.select(table, {"experiment": experiment})["width"]
    return int(widths.max()) if len(widths) else 0


def _sphere(activation: str) -> dict[str, str]:
    return {"experiment": "sphere", "activation": activation}


def _outputs(network: nn.Module, x: Tensor) -> Floats:
    with torch.no_grad():
        return network(x)[..., 0].double().cpu().numpy()


def _kernel(network: nn.Module, grid: Tensor, x: Tensor) -> tuple[Floats, Floats, Floats]:
    """Tangent kernels grid-grid, train-train and grid-train."""
    together = torch.cat([grid, x])
    kernel = empirical_ntk(network, together, mode="trace").double().cpu().numpy()
    n = len(grid)
    return kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]


def _record(path: dict[str, list[list[float]]], gap: Tensor, vectors: Tensor) -> None:
    """Each output's error along its component, and the size of the rest."""
    along = (gap * vectors).sum(dim=0)
    path["along"].append(along.tolist())
    path["beside"].append((gap - along * vectors).norm(dim=0).tolist())


def _halved(error: Floats) -> float:
    low = np.flatnonzero(error < 0.5 * error[0])
    return float(low[0]) if len(low) else math.inf
