"""Where SGD noise starts to matter: sweeps over temperature and output scale, T_c, exponents.

Sclocchi, Geiger, Wyart, "Dissecting the Effects of SGD Noise in Distinct Regimes of Deep
Learning", ICML 2023, arXiv 2301.13703. Every run descends on the hinge loss of the centred and
scaled predictor until all its data are fitted, and stops there.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from peira.data.errors import DataError
from peira.dynamics.probes import (
    empirical_ntk,
    kernel_change,
    relative_weight_change,
    weight_change,
)
from peira.dynamics.sgd_noise_regimes.compiled import CompiledMLP, compilable
from peira.dynamics.sgd_noise_regimes.crossover import (
    Advice,
    Exponent,
    characteristic_temperature,
    fit_exponents,
    recommend,
)
from peira.dynamics.sgd_noise_regimes.descent import (
    BROKEN,
    FITTED,
    Descent,
    Noise,
    SGDRecipe,
    check_labels,
    marks,
)
from peira.dynamics.sgd_noise_regimes.ensemble import EnsembleDescent
from peira.dynamics.sgd_noise_regimes.network import Flat, mean_field_mlp, mnas, stability_limit
from peira.dynamics.sgd_noise_regimes.perceptron import (
    Perceptron,
    depleted_error,
    depleted_gaussian,
    max_margin,
)

__all__ = [
    "Advice",
    "Exponent",
    "SGDRecipe",
    "SignalNoise",
    "characteristic_temperature",
    "depleted_error",
    "depleted_gaussian",
    "fit_exponents",
    "max_margin",
    "mean_field_mlp",
    "mnas",
    "noise_sweep",
    "perceptron_signal_noise",
    "recommend",
    "stability_limit",
]

# Runs that train in one batch where the network is not compiled.
MEMBERS = 64
ROWS = 1024

Watch = Callable[[Iterable[Any], int], Iterable[Any]]


def noise_sweep(
    model_fn: Callable[[], nn.Module],
    x: Float[np.ndarray, "all ..."] | Float[Tensor, "all ..."],
    y: Float[np.ndarray, "all"] | Float[Tensor, "all"],
    temperatures: Sequence[float],
    alphas: Sequence[float] = (2.0**15,),
    sizes: Sequence[int] = (),
    seeds: Sequence[int] = range(5),
    *,
    batch: int = 16,
    steps: int = 100_000,
    pace: float = 1.0,
    noise: Noise = "batches",
    test: tuple[Any, Any] | None = None,
    probe: int = 0,
    watch: Watch = lambda parts, total: parts,
) -> pd.DataFrame:
    """Train a model at every temperature, output scale, training size and seed until all is fitted.

    Models that `mean_field_mlp` makes run compiled on the CPU; all others as ensembles, up to 64 at
    a time, on the device that `x` is on.

    Args:
        model_fn: makes the model, one output for each input; called once a seed with PyTorch's
            generator seeded. Modules that look at the batch (batch norm) or draw (dropout) are not
            what the method is about.
        x: all data, training and test.
        y: labels -1 and 1.
        temperatures: T = dt / (batch * pace).
        alphas: output scales; large trains lazily.
        sizes: of the training set, P; a seed's smaller sets are inside its larger ones. Empty: all
            data, or all but a quarter of them where `test` is not given.
        seeds: of initial weights, training set, batches.
        batch: B, at most the smallest size.
        steps: budget of a run; what does not fit its data by then is censored, and a warning says
            how many.
        pace: what multiplies the step, as `learning_rate_scale` of the probes gives it; the width
            for networks with a mean-field output.
        noise: "batches", or "gaussian" for the stochastic differential equation.
        test: data and labels to test on; otherwise what no training set may use.
        probe: training data on which the tangent kernels before and after are compared; 0 for none.
        watch: wraps the runs, to show progress.

    Returns:
        A row per run: alpha, temperature, size, seed, dt, batch, fitted, broken (1 or 0), steps and
        time (of the last change of weights; a lower bound where not fitted), weight_change,
        relative_weight_change, train_error, test_error (NaN without test data), kernel_change.

    Raises:
        DataError: labels that are not -1 and 1, alpha or temperature not above 0, a batch larger
            than a training set, sizes larger than the data, a model with several outputs.
    """
    data, labels = _tensors(x, y)
    check_labels(labels.cpu().numpy())
    sizes = list(sizes) or [len(data) if test is not None else len(data) * 3 // 4]
    if not 1 <= min(sizes) <= max(sizes) <= len(data):
        raise DataError("sizes", value=sizes, expected=f"1 to the {len(data)} data")
    pool, held_out = split(len(data), max(sizes))
    tested = (data[held_out], labels[held_out]) if test is None else _tensors(*test)
    tested = (tested[0].to(data.device), tested[1].to(data.device))
    recipes = {
        (alpha, t): SGDRecipe(t * batch * pace, alpha, batch, steps, noise)
        for alpha, t in product(alphas, temperatures)
    }
    runs = [(*key, seed) for seed in seeds for key in recipes]
    parts = [(size, runs[i : i + MEMBERS]) for size in sizes for i in range(0, len(runs), MEMBERS)]
    rows: list[dict[str, float]] = []
    for size, part in watch(parts, len(parts)):
        index = np.array([draw_training(pool, size, seed) for *_, seed in part])
        before = [_one_output(seeded(model_fn, s).to(data.device), data[:2]) for *_, s in part]
        models = copy.deepcopy(before)
        ends = train_all(
            models, data, labels, torch.from_numpy(index).to(data.device),
            [recipes[alpha, t] for alpha, t, _ in part], [seed for *_, seed in part],
        )  # fmt: skip
        for run, old, new, end, taken in zip(part, before, models, ends, index, strict=True):
            named = dict(zip(("alpha", "temperature", "seed"), run, strict=True))
            found = measure(old, new, data[taken], labels[taken], *tested, probe=probe)
            rows.append({**named, "size": size, "batch": batch, **end, **found})
    table = pd.DataFrame(rows)
    left = int((table["fitted"] == 0).sum())
    if left:
        warnings.warn(
            f"{left} of {len(table)} runs did not fit their data within {steps:,} steps or broke; "
            "their times are censored (columns fitted, broken)",
            UserWarning,
            stacklevel=2,
        )
    return table


def _tensors(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    """Data and labels as tensors of floats on one device, checked."""
    data = torch.as_tensor(x, dtype=torch.float32)
    labels = torch.as_tensor(y, dtype=torch.float32).to(data.device)
    if labels.ndim != 1 or len(data) != len(labels):
        raise DataError(
            "shapes of data and labels", value=(tuple(data.shape), tuple(labels.shape)),
            expected="(n, ...) and (n,)",
        )  # fmt: skip
    if not torch.isfinite(data).all():
        raise DataError("data that are not finite", expected="numbers")
    return data, labels


@torch.no_grad()
def _one_output(model: nn.Module, x: Float[Tensor, "n ..."]) -> nn.Module:
    """The model, with outputs (n, 1) flattened; raises `DataError` for any other shape but (n,)."""
    shape = tuple(model(x).shape)
    if shape not in ((len(x),), (len(x), 1)):
        raise DataError("outputs of the model", value=shape, expected="one number for each input")
    return model if len(shape) == 1 else Flat(model)


def split(count: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that may train and rows that never do, the same for every seed and size."""
    order = np.random.default_rng(0).permutation(count)
    return order[:largest], order[largest:]


def draw_training(pool: np.ndarray, size: int, seed: int) -> np.ndarray:
    """A seed's training set; its smaller ones are inside its larger ones."""
    return np.random.default_rng(seed).permutation(pool)[:size]


def seeded(model_fn: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The model of a seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_fn()


def train_all(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    index: Tensor,
    recipes: Sequence[SGDRecipe],
    seeds: Sequence[int],
) -> list[dict[str, float]]:
    """Train every model, in place, to its stop; how each ended."""
    if all(compilable(model) for model in models):
        ends = []
        for model, rows, recipe, seed in zip(models, index, recipes, seeds, strict=True):
            single = CompiledMLP(model, x[rows].flatten(1).numpy(), y[rows].numpy(), recipe, seed)
            single.advance(recipe.steps)
            ends.append(ending(single, recipe))
        return ends
    together = EnsembleDescent(models, x, y, index, recipes, seeds)
    together.advance(recipes[0].steps)
    return [ending(together, recipe, i) for i, recipe in enumerate(recipes)]


def ending(descent: Descent, recipe: SGDRecipe, member: int = 0) -> dict[str, float]:
    """How a run ended: fitted, broken, steps and time up to its last change of weights."""
    status, moved = descent.status[member], int(descent.moved[member])
    return {
        "dt": recipe.dt,
        "fitted": float(status == FITTED),
        "broken": float(status == BROKEN),
        "steps": float(moved),
        "time": moved * recipe.dt,
    }


def measure(
    before: nn.Module,
    after: nn.Module,
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    probe: int = 0,
) -> dict[str, float]:
    """How far a run went and how well its predictor f - f_0 does."""
    old, new = before.state_dict(), after.state_dict()
    found = {
        "weight_change": weight_change(old, new),
        "relative_weight_change": relative_weight_change(old, new),
        "train_error": error(before, after, x, y),
        "test_error": error(before, after, x_test, y_test) if len(y_test) else math.nan,
    }
    if probe:
        kernels = [empirical_ntk(model, x[:probe], mode="trace") for model in (before, after)]
        finite = all(torch.isfinite(kernel).all() for kernel in kernels)
        found["kernel_change"] = kernel_change(*kernels) if finite else math.inf
    return found


@torch.no_grad()
def error(before: nn.Module, after: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of data on the wrong side of f - f_0; outputs that are no numbers are wrong."""
    parts = [after(part) - before(part) for part in x.split(ROWS)]
    return float((~(y * torch.cat(parts) > 0)).float().mean())


@dataclass(frozen=True)
class SignalNoise:
    """A perceptron's run, its weights split along a direction and across it.

    Attributes:
        curves: by step: time, unfitted (share of data), signal, noise, and of the gradients at
            that moment gradient_mean (squared norm of the mean) and gradient_variance.
        direction: unit vector that signal is measured along.
        fitted: whether all data were fitted within the budget.
        time: of the last change of weights, steps x dt; a lower bound where not fitted.
        signal: w along the direction, at the end.
        noise: norm of what is across it, at the end.
    """

    curves: pd.DataFrame
    direction: Float[np.ndarray, "d"]
    fitted: bool
    time: float
    signal: float
    noise: float


def perceptron_signal_noise(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "n"],
    direction: Float[np.ndarray, "d"] | None = None,
    recipe: SGDRecipe | None = None,
    *,
    seed: int = 0,
    centred: bool = False,
) -> SignalNoise:
    """Train f = w.x / sqrt(d) by SGD until all is fitted; measure its signal and its noise.

    Args:
        x: data (n, d).
        y: labels -1 and 1.
        direction: true direction, any length; None takes the hard-margin separator's, or with a
            warning that of a soft margin where the data cannot be separated.
        recipe: step, batch, budget; None is dt = 1, B = 2, alpha = 2^15, a million steps.
        seed: of initial weights N(0, 1) and batches.
        centred: train f - f_0, as the official code does; see `Perceptron`.

    Raises:
        DataError: shapes that do not fit, labels that are not -1 and 1, data that are not finite,
            a direction of norm 0, a batch larger than the data.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    rng = np.random.default_rng(seed)
    recipe = recipe or SGDRecipe(dt=1.0, alpha=2.0**15, batch=2, steps=1_000_000)
    if x.ndim != 2:
        raise DataError("shape of the data", value=x.shape, expected="(n, d)")
    weights = rng.standard_normal(x.shape[1])
    descent = Perceptron(x, y, recipe, seed, weights, centred=centred)
    u = _direction(x, y, direction)
    rows = []
    for mark in marks(recipe.steps):
        if descent.status[0] or mark > recipe.steps:
            break
        descent.advance(mark)
        rows.append({"step": int(descent.counters[0]), **observe(descent, u)})
    last = rows[-1]
    ended = ending(descent, recipe)
    if not ended["fitted"]:
        warnings.warn(
            f"{last['unfitted']:.1%} of the data are not fitted after {recipe.steps:,} steps: the "
            "run is censored",
            UserWarning,
            stacklevel=2,
        )
    return SignalNoise(
        pd.DataFrame(rows), u, bool(ended["fitted"]), ended["time"], last["signal"], last["noise"]
    )


def observe(descent: Perceptron, u: Float[np.ndarray, "d"]) -> dict[str, float]:
    """Signal, noise, share of unfitted data and gradient statistics of a perceptron now."""
    w = descent.weights - (descent.initial if descent.start.any() else 0)
    signal = float(w @ u)
    mean, variance = descent.gradients()
    return {
        "time": float(descent.counters[0] * descent.recipe.dt),
        "unfitted": float(descent.unfitted().mean()),
        "signal": signal,
        "noise": float(np.linalg.norm(w - signal * u)),
        "gradient_mean": mean,
        "gradient_variance": variance,
    }


def _direction(x: np.ndarray, y: np.ndarray, given: np.ndarray | None) -> np.ndarray:
    if given is not None:
        given = np.asarray(given, np.float64)
        norm = np.linalg.norm(given)
        if given.shape != x.shape[1:] or not norm > 0:
            raise DataError("direction", value=given.shape, expected=f"{x.shape[1]} numbers, not 0")
        return given / norm
    try:
        return max_margin(x, y)
    except DataError:
        from sklearn.svm import LinearSVC

        warnings.warn(
            "no plane through the origin separates the data: signal is measured along a "
            "soft-margin direction",
            UserWarning,
            stacklevel=3,
        )
        machine = LinearSVC(fit_intercept=False, random_state=0).fit(x / np.abs(x).max(), y)
        return machine.coef_[0] / np.linalg.norm(machine.coef_[0])
