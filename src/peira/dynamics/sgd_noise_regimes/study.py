"""How the paper's claims are tested: the cells, what one cell measures, the verdicts."""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Iterator, Sequence
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

import peira
from peira.dynamics.sgd_noise_regimes import images
from peira.dynamics.sgd_noise_regimes.compiled import CompiledMLP, compilable
from peira.dynamics.sgd_noise_regimes.descent import RUNNING, SGDRecipe, marks
from peira.dynamics.sgd_noise_regimes.ensemble import EnsembleDescent
from peira.dynamics.sgd_noise_regimes.judge import ALPHA, verdicts
from peira.dynamics.sgd_noise_regimes.method import (
    Perceptron,
    depleted_error,
    depleted_gaussian,
    draw_training,
    ending,
    error,
    max_margin,
    mean_field_mlp,
    measure,
    mnas,
    observe,
    seeded,
    split,
    stability_limit,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from peira.engine.verdict import Verdict

# Data that may train, whatever the size; the others test.
POOL = {"digits": 1024, "mnist": 8192, "cifar10": 16384}
# Training data on which tangent kernels before and after are compared, and on which the largest
# eigenvalue is measured.
PROBE, MANY = 64, 256
# Curves are drawn at steps that grow by this ratio.
RATIO = 4.0


class Cell(peira.Cell):
    """One descent to the point where all data are fitted."""

    task: Literal["perceptron", "digits", "mnist", "cifar10"] = Field(
        "perceptron", description="depleted Gaussian data, or two labels on pictures"
    )
    network: Literal["linear", "mlp", "mnas"] = "linear"
    method: Literal["sgd", "sde", "max-margin"] = Field(
        "sgd", description="minibatches, their stochastic differential equation, or the separator"
    )
    labels: Literal["true", "random"] = "true"
    depletion: float = Field(1.0, gt=-1, description="chi of the perceptron's data")
    dimension: int = Field(16, ge=2, description="d of the perceptron's data")
    size: int = Field(256, ge=2, description="P, training data")
    alpha: float = Field(ALPHA, gt=0, description="scale of the output")
    dt: float = Field(16.0, gt=0, description="length of a step")
    batch: int = Field(2, ge=1, description="B, data of a step")
    width: int = Field(64, ge=1, description="h of a network")
    depth: int = Field(2, ge=1, description="L, hidden layers")
    activation: Literal["relu", "gelu"] = "relu"
    steps: int = Field(10_000_000, ge=1, description="budget; what is not fitted then is censored")
    replicas: int = Field(16, ge=1, description="draws of a perceptron that one seed averages")

    @property
    def temperature(self) -> float:
        """T = dt / B; of a network with mean-field output dt / (B h)."""
        return self.dt / self.batch / (1 if self.network == "linear" else self.width)

    @property
    def recipe(self) -> SGDRecipe:
        """How the cell descends."""
        noise = "gaussian" if self.method == "sde" else "batches"
        return SGDRecipe(self.dt, self.alpha, self.batch, self.steps, noise)


def temperature_sweep(
    base: Cell, sizes: Sequence[int], temperatures: Sequence[float]
) -> list[Cell]:
    """Every size at every temperature."""
    pace = base.batch * (1 if base.network == "linear" else base.width)
    return [base.changed({"size": p, "dt": t * pace}) for p, t in product(sizes, temperatures)]


def phase_diagram(base: Cell, alphas: Sequence[float], dts: Sequence[float]) -> list[Cell]:
    """Every output scale with every step."""
    return [base.changed({"alpha": alpha, "dt": dt}) for alpha, dt in product(alphas, dts)]


def perceptron_cells(base: Cell) -> list[Cell]:
    """Power laws in T and P, the crossover, the collapse, the controls."""
    sizes = {0.0: [2**k for k in range(5, 12)], 1.0: [2**k for k in range(8, 13)]}
    sizes[3.0] = sizes[1.0]
    hot = [
        base.changed({"depletion": chi, "size": size})
        for chi, several in sizes.items()
        for size in several
    ]
    warm = [
        base.changed({"depletion": chi, "size": size, "dt": 4.0})
        for chi, size in product((0.0, 1.0), (256, 512))
    ]
    pairs = [(2.0, 1), (4.0, 2), (8.0, 4), (16.0, 8), (32.0, 16), (128.0, 64), (512.0, 256)]
    return [
        *hot,
        *warm,
        *temperature_sweep(base, (128, 256, 512, 1024), [2.0**k for k in range(-5, 4)]),
        *(base.changed({"dt": dt, "batch": batch}) for dt, batch in pairs),
        *(base.changed({"method": "sde", "dt": dt, "batch": batch}) for dt, batch in pairs[:3]),
        *(
            base.changed({"labels": "random", "size": size, "steps": 200_000, "replicas": 1})
            for size in (256, 1024)
        ),
        *(base.changed({"method": "max-margin", "size": size}) for size in (256, 1024)),
    ]


def small_cells() -> list[Cell]:
    """The whole paper on a laptop: the perceptron in full, digits for MNIST."""
    net = Cell(task="digits", network="mlp", batch=16, steps=100_000, replicas=1)
    grid = net.changed({"steps": 32_000})
    alphas = [2.0**k for k in range(-10, 12, 3)]
    whole, fewer, more = (grid.changed({"batch": batch}) for batch in (256, 4, 64))
    two = (0.5, 2.0**11)
    linear = Cell(task="digits", labels="random", steps=50_000, batch=16, replicas=1)
    return [
        *perceptron_cells(Cell()),
        *temperature_sweep(net, (128, 256, 512, 1024), [2.0**k for k in range(-21, -6, 2)]),
        *phase_diagram(grid, alphas, [2.0**k for k in range(-4, 11, 2)]),
        *phase_diagram(whole, two, [2.0**k for k in range(0, 7, 2)]),
        # The temperature of dt = 16, B = 16 with another batch.
        *phase_diagram(fewer, two, [4.0]),
        *phase_diagram(more, two, [64.0]),
        linear.changed({"size": 512}),
        *(net.changed({"method": "max-margin", "size": size}) for size in (256, 1024)),
    ]


def smoke_cells() -> list[Cell]:
    """Every code path, a few steps each."""
    base = Cell(size=64, steps=300, replicas=2)
    net = Cell(
        task="digits", network="mlp", size=48, width=8, batch=4, steps=40, dt=4.0, replicas=1
    )
    return [
        *(base.changed({"depletion": chi}) for chi in (0.0, 1.0)),
        base.changed({"method": "sde", "steps": 50}),
        base.changed({"labels": "random"}),
        base.changed({"method": "max-margin"}),
        *(net.changed({"alpha": alpha, "dt": dt}) for alpha, dt in ((1.0, 1e3), (2.0**11, 4.0))),
        net.changed({"activation": "gelu", "depth": 1}),
        net.changed({"method": "max-margin"}),
        net.changed({"network": "mnas", "width": 2, "steps": 4}),
        net.changed({"network": "linear", "labels": "random"}),
    ]


def paper_cells() -> list[Cell]:
    """The published sweeps of MNIST and the perceptron."""
    net = Cell(
        task="mnist", network="mlp", batch=16, depth=5, width=128, steps=10_000_000, replicas=1
    )
    sizes = [2**k for k in range(10, 14)]
    return [
        *perceptron_cells(Cell(steps=100_000_000)),
        *(
            cell
            for chi, d in product((0.0, 1.0, 3.0), (16, 32, 64, 128))
            for cell in temperature_sweep(
                Cell(depletion=chi, dimension=d, steps=100_000_000, replicas=1),
                [2**k for k in range(10, 15)],
                [2.0**k for k in range(-16, 2)],
            )
        ),
        *temperature_sweep(net, sizes, [2.0**k for k in range(-13, 3)]),
        *phase_diagram(
            net.changed({"size": 1024, "activation": "gelu"}),
            [2.0**k for k in range(-14, 12)],
            [2.0**k for k in range(-15, 16)],
        ),
        *temperature_sweep(
            net.changed({"network": "mnas", "width": 64}), sizes, [2.0**k for k in range(-20, 1)]
        ),
    ]


def cifar_cells() -> list[Cell]:
    """The published sweeps of CIFAR-10."""
    net = Cell(
        task="cifar10", network="mlp", batch=16, depth=5, width=128, steps=10_000_000, replicas=1
    )
    convolutional = net.changed({"network": "mnas", "width": 64})
    sizes = [2**k for k in range(10, 15)]
    return [
        *temperature_sweep(net, sizes, [2.0**k for k in range(-13, 3)]),
        *temperature_sweep(convolutional, sizes, [2.0**k for k in range(-20, 1)]),
        *phase_diagram(
            convolutional.changed({"size": 1024, "width": 32, "batch": 64}),
            [2.0**k for k in range(-14, 12)],
            [2.0**k for k in range(-13, 11)],
        ),
    ]


class Study(peira.Study[Cell]):
    """Perceptrons and networks that each stop when all their data are fitted."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(cells=smoke_cells, seeds=2),
        "small": peira.Scale(cells=small_cells, seeds=10),
        "paper": peira.Scale(cells=paper_cells, seeds=9),
        "cifar": peira.Scale(cells=cifar_cells, seeds=5),
    }
    batch_size = 64

    def seeds(self, cell: Cell, asked: int) -> int:
        """Four fewer outside the phase diagram, as published (9 and 5)."""
        in_diagram = cell.network == "mlp" and cell.alpha != ALPHA
        return asked if in_diagram or asked <= 5 else asked - 4

    def inputs(self, cell: Cell) -> dict[str, str]:
        if cell.task not in ("mnist", "cifar10"):
            return {}
        from peira.data import fingerprint
        from peira.data.images import mnist_paths

        if cell.task == "mnist":
            return {"mnist": fingerprint(mnist_paths())}
        return {"cifar10": fingerprint(images.cifar_paths())}

    def batch(self, cell: Cell) -> Hashable | None:
        """Convolutional networks of one shape, size and batch train together."""
        if cell.network != "mnas":
            return None
        return (
            cell.task,
            cell.width,
            cell.activation,
            cell.size,
            cell.batch,
            cell.steps,
            cell.method,
        )

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float | peira.Censored]:
        if cell.method == "max-margin":
            return separator(cell, run)
        if cell.task == "perceptron":
            return perceptrons(cell, run)
        if cell.network == "linear":
            return linear_classifier(cell, run)
        return self.measure_many([cell], [run])[0]

    def measure_many(
        self, cells: Sequence[Cell], runs: Sequence[peira.Run]
    ) -> list[dict[str, float | peira.Censored]]:
        return train_networks(cells, runs)

    def claims(self, table: pd.DataFrame) -> Iterator[Verdict]:
        return verdicts(self.claim, table)

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        from peira.dynamics.sgd_noise_regimes.figure import draw

        return draw(table)


@cache
def data_of(task: str) -> tuple[Tensor, Tensor]:
    """All data of a task on pictures and their labels."""
    readers = {"digits": images.digits_parity, "mnist": images.mnist_parity}
    found = readers[task]() if task in readers else images.cifar_animals()
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def problem(cell: Cell, run: peira.Run) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test data of a seed, the same for all cells of one size."""
    x, y = data_of(cell.task)
    x = pictures(x) if cell.network == "mnas" else x.flatten(1)
    pool, held_out = split(len(x), POOL[cell.task])
    rows = draw_training(pool, cell.size, run.seed)
    labels = y[rows]
    if cell.labels == "random":
        labels = torch.from_numpy(run.rng.choice([-1.0, 1.0], cell.size)).float()
    return x[rows], labels, x[held_out], y[held_out]


def pictures(x: Tensor) -> Tensor:
    """Rows of pixels as square pictures of one channel."""
    side = math.isqrt(x[0].numel())
    return x if x.ndim == 4 else x.view(-1, 1, side, side)


def network(cell: Cell, x: Tensor, seed: int) -> nn.Module:
    """The network of a seed at its initial weights."""
    if cell.network == "mnas":
        return seeded(lambda: mnas(x.shape[1], cell.width, cell.activation), seed)
    return seeded(lambda: mean_field_mlp(x.shape[1], cell.width, cell.depth, cell.activation), seed)


def train_networks(
    cells: Sequence[Cell], runs: Sequence[peira.Run]
) -> list[dict[str, float | peira.Censored]]:
    """Train the networks of some cells at once, each to its own stop."""
    device = runs[0].device
    data = [problem(cell, run) for cell, run in zip(cells, runs, strict=True)]
    models = [network(c, d[0], r.seed) for c, d, r in zip(cells, data, runs, strict=True)]
    before = [copy.deepcopy(model) for model in models]
    steps = runs[0].budget(cells[0].steps)
    recipes = [cell.changed({"steps": steps}).recipe for cell in cells]
    seeds = [run.seed for run in runs]
    descent: CompiledMLP | EnsembleDescent
    if len(models) == 1 and compilable(models[0]):
        x, y, *_ = data[0]
        descent = CompiledMLP(models[0], x.numpy(), y.numpy(), recipes[0], seeds[0])
    else:
        index = torch.arange(len(cells) * cells[0].size).view(len(cells), -1)
        x, y = (torch.cat([d[part] for d in data]).to(device) for part in (0, 1))
        descent = EnsembleDescent(
            [model.to(device) for model in models], x, y, index.to(device), recipes, seeds
        )
    looks = marks(steps, RATIO)
    for look in runs[0].steps(len(looks), save=(descent,), name="descent"):
        running = np.flatnonzero(descent.status == RUNNING)
        if not len(running):
            break
        descent.advance(looks[look - 1])
        for i in running:
            wrong = error(before[i].cpu(), models[i].cpu(), data[i][2], data[i][3])
            runs[i].log(looks[look - 1], test_error=wrong)
            models[i].to(device)
    return [
        {**finished(recipe, ending(descent, recipe, i)), **about_network(cell, old, new, parts)}
        for i, (cell, recipe, old, new, parts) in enumerate(
            zip(cells, recipes, before, models, data, strict=True)
        )
    ]


def finished(recipe: SGDRecipe, ended: dict[str, float]) -> dict[str, float | peira.Censored]:
    """How a run ended, its time censored where data were left unfitted."""
    budget = peira.Censored(recipe.steps * recipe.dt)
    return {
        "fitted": ended["fitted"],
        "broken": ended["broken"],
        "time": ended["time"] if ended["fitted"] else budget,
    }


def about_network(
    cell: Cell, before: nn.Module, after: nn.Module, parts: tuple[Tensor, ...]
) -> dict[str, float]:
    """Change of weights and kernel, errors, temperature, and the step that would be unstable."""
    found = measure(before.cpu(), after.cpu(), *parts, probe=PROBE)
    return {
        **found,
        "temperature": cell.temperature,
        "stability_dt": stability_limit(before, parts[0][:MANY]),
    }


def linear_classifier(cell: Cell, run: peira.Run) -> dict[str, float | peira.Censored]:
    """A perceptron on pictures."""
    x, y, x_test, y_test = problem(cell, run)
    weights = run.rng.standard_normal(x[0].numel())
    recipe = cell.changed({"steps": run.budget(cell.steps)}).recipe
    descent = Perceptron(x.flatten(1).numpy(), y.numpy(), recipe, run.seed, weights, centred=True)
    descent.advance(recipe.steps)
    moved = descent.weights - descent.initial
    right = y_test.numpy() * (x_test.flatten(1).numpy() @ moved) > 0
    return {
        **finished(recipe, ending(descent, recipe)),
        "unfitted": float(descent.unfitted().mean()),
        "test_error": float(np.mean(~right)),
        "temperature": cell.temperature,
    }


def perceptrons(cell: Cell, run: peira.Run) -> dict[str, float | peira.Censored]:
    """Geometric means over the replicas of one seed of where their perceptrons end."""
    found: dict[str, list[dict[str, float]]] = {"runs": []}
    recipe = cell.changed({"steps": run.budget(cell.steps)}).recipe
    for replica in run.steps(cell.replicas, save=(found,), name="replicas"):
        found["runs"] = [*found["runs"], one_perceptron(cell, recipe, run, replica)]
    rows = found["runs"]
    fitted = float(all(row["fitted"] for row in rows))
    times = np.array([row["time"] if row["fitted"] else recipe.steps * recipe.dt for row in rows])
    time = float(np.exp(np.log(np.maximum(times, recipe.dt)).mean()))
    return {
        "fitted": fitted,
        "broken": max(row["broken"] for row in rows),
        "time": time if fitted else peira.Censored(time),
        **{
            name: float(np.exp(np.mean([math.log(max(row[name], 1e-12)) for row in rows])))
            for name in ("signal", "noise", "norm")
        },
        "test_error": float(np.mean([row["test_error"] for row in rows])),
        "temperature": cell.temperature,
    }


def one_perceptron(cell: Cell, recipe: SGDRecipe, run: peira.Run, replica: int) -> dict[str, float]:
    """One draw of data, initial weights and batches; the same for all cells of one size."""
    seed = 1000 * run.seed + replica
    rng = np.random.default_rng(seed)
    x, y = depleted_gaussian(cell.size, cell.dimension, cell.depletion, rng)
    if cell.labels == "random":
        y = rng.choice([-1.0, 1.0], cell.size)
    descent = Perceptron(x, y, recipe, seed, rng.standard_normal(cell.dimension))
    u = np.eye(cell.dimension)[0]
    if replica > 1:
        descent.advance(recipe.steps)
    for mark in marks(recipe.steps, RATIO):
        if descent.status[0]:
            break
        descent.advance(mark)
        seen = observe(descent, u)
        run.log(int(descent.counters[0]), **{k: seen[k] for k in ("unfitted", "signal", "noise")})
    seen = observe(descent, u)
    return {
        **ending(descent, recipe),
        "signal": seen["signal"],
        "noise": seen["noise"],
        "norm": float(np.linalg.norm(descent.weights)),
        "test_error": depleted_error(seen["signal"], seen["noise"], cell.depletion),
    }


def separator(cell: Cell, run: peira.Run) -> dict[str, float | peira.Censored]:
    """Test error of the hard-margin separator: of the data, or of the initial tangent kernel."""
    if cell.task == "perceptron":
        wrong = []
        for replica in range(1, cell.replicas + 1):
            rng = np.random.default_rng(1000 * run.seed + replica)
            w = max_margin(*depleted_gaussian(cell.size, cell.dimension, cell.depletion, rng))
            wrong.append(depleted_error(w[0], float(np.linalg.norm(w[1:])), cell.depletion))
        return {"test_error": float(np.mean(wrong)), "fitted": 1.0}
    from sklearn.svm import SVC

    from peira.dynamics.probes import empirical_ntk

    x, y, x_test, y_test = problem(cell, run)
    model = network(cell, x, run.seed)
    kernel = empirical_ntk(model, x, mode="trace")
    scale = float(kernel.diagonal().mean())
    machine = SVC(C=1e6, kernel="precomputed").fit(kernel.numpy() / scale, y.numpy())
    test_kernel = empirical_ntk(model, x_test, x, mode="trace").numpy() / scale
    return {
        "test_error": float(np.mean(machine.predict(test_kernel) != y_test.numpy())),
        "fitted": float((machine.predict(kernel.numpy() / scale) == y.numpy()).all()),
    }
