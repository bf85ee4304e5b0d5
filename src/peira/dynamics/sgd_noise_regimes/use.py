"""Commands for a person's own data with two labels: CSV, TSV, or arrays in an .npz file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from peira.data import DataError, read_table
from peira.data.arrays import read_features, read_npz, refuse_gaps
from peira.data.tables import write_table
from peira.dynamics.sgd_noise_regimes import method
from peira.dynamics.sgd_noise_regimes.crossover import ENOUGH_SIZES, ENOUGH_TEMPERATURES

__all__ = ["advise", "critical", "perceptron", "sweep"]

DATA = Annotated[
    Path,
    typer.Argument(help="CSV or TSV with a column of two labels, or .npz with arrays x and y"),
]
LABEL = Annotated[str, typer.Option(help="name of the label's column")]
RUNS = Annotated[Path, typer.Argument(help="CSV with a row per run, as `sweep` writes it")]
BATCH = Annotated[int, typer.Option(min=1, help="data of a step")]
STEPS = Annotated[int, typer.Option(min=1, help="budget of a run")]
METRIC = Annotated[str, typer.Option(help="column whose plateau ends at T_c")]
LEVEL = Annotated[
    float | None, typer.Option(help="T_c is where the metric reaches this, not where it breaks")
]


def sweep(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="CSV to write: a row per run")],
    label: LABEL = "label",
    sizes: Annotated[str, typer.Option(help="training sizes, such as 128,256,512")] = "",
    coldest: Annotated[float, typer.Option(help="lowest temperature")] = 2.0**-21,
    hottest: Annotated[float, typer.Option(help="highest temperature")] = 2.0**-9,
    count: Annotated[int, typer.Option(min=1, help="temperatures, evenly spaced in log")] = 7,
    alphas: Annotated[str, typer.Option(help="output scales, large is lazy")] = "32768",
    batch: BATCH = 16,
    width: Annotated[int, typer.Option(min=1, help="units of a hidden layer")] = 64,
    depth: Annotated[int, typer.Option(min=1, help="hidden layers")] = 2,
    seeds: Annotated[int, typer.Option(min=1)] = 5,
    steps: STEPS = 100_000,
) -> None:
    """Train a fully connected network at every temperature and size; print T_c of every size."""
    if not 0 < coldest <= hottest:
        raise DataError("coldest", value=coldest, expected=f"above 0 and at most {hottest:g}")
    x, y = read_data(data, label)
    table = method.noise_sweep(
        lambda: method.mean_field_mlp(x.shape[1], width, depth),
        x,
        y,
        np.geomspace(coldest, hottest, count).tolist(),
        _numbers(alphas, "alphas"),
        [int(size) for size in _numbers(sizes, "sizes")],
        range(seeds),
        batch=batch,
        steps=steps,
        pace=width,
        watch=_watch,
    )
    write_table(out, table)
    console = Console()
    for alpha, part in table.groupby("alpha"):
        if part["temperature"].nunique() >= ENOUGH_TEMPERATURES:
            _show_critical(part, "weight_change", f"alpha = {alpha:g}")
    console.print(f"written to {out}", highlight=False)


def critical(runs: RUNS, metric: METRIC = "weight_change", level: LEVEL = None) -> None:
    """T_c of every size, and the exponents of the power laws, from a table of runs."""
    for name, part in _by_alpha(_read_runs(runs, metric)):
        fits = _show_critical(part, metric, name, level)
        if (
            level is None
            and part["size"].nunique() >= ENOUGH_SIZES
            and fits["critical"].notna().all()
        ):
            _show_exponents(part)


def advise(
    runs: RUNS,
    batch: Annotated[int, typer.Option(min=1, help="B of the training in question")],
    learning_rate: Annotated[float, typer.Option(help="its learning rate, of plain SGD")],
    size: Annotated[int, typer.Option(min=1, help="P, its training set")],
    pace: Annotated[float, typer.Option(help="of the sweep: learning rate / (T B)")] = 1.0,
    metric: METRIC = "weight_change",
    level: LEVEL = None,
) -> None:
    """Say whether the noise of a batch and a learning rate matters, from a table of runs."""
    for name, part in _by_alpha(_read_runs(runs, metric)):
        fits = _fits(part, metric, level)
        advice = method.recommend(fits, batch, learning_rate / pace, size)
        words = {
            "below": "noise does not matter: larger batches give the same model",
            "at": "within the interval of T_c",
            "above": "noise shapes the model: batch and learning rate matter through their ratio",
        }
        shown = Table("quantity", "value", title=name)
        shown.add_row("T = learning rate / batch", f"{advice.temperature:.3g}")
        shown.add_row("T_c", _interval(advice.critical, advice.low, advice.high))
        shown.add_row(advice.regime + " T_c", words[advice.regime])
        shown.add_row(f"same noise at batch {2 * batch}", f"{advice.same_noise * pace:.3g}")
        if advice.extrapolated:
            shown.add_row("note", "the size is outside the sizes measured: T_c is extrapolated")
        Console().print(shown)


def perceptron(
    data: DATA,
    label: LABEL = "label",
    dt: Annotated[float, typer.Option(help="learning rate")] = 1.0,
    batch: BATCH = 2,
    steps: STEPS = 1_000_000,
    seed: int = 0,
    out: Annotated[Path | None, typer.Option(help="CSV of the curves to write")] = None,
) -> None:
    """Train a linear classifier by SGD until all is fitted; show its signal and its noise."""
    x, y = read_data(data, label)
    recipe = method.SGDRecipe(dt, 2.0**15, batch, steps)
    found = method.perceptron_signal_noise(x, y, recipe=recipe, seed=seed)
    shown = Table("step", "unfitted", "signal", "noise", "signal / noise")
    for row in found.curves.itertuples():
        ratio = row.signal / row.noise if row.noise else math.inf
        shown.add_row(
            f"{row.step:,}", f"{row.unfitted:.2%}", f"{row.signal:.3g}", f"{row.noise:.3g}",
            f"{ratio:.3g}",
        )  # fmt: skip
    console = Console()
    console.print(shown)
    ending = "all data fitted" if found.fitted else "NOT all fitted (censored)"
    console.print(f"{ending} at t = {found.time:g}, T = {recipe.temperature:g}", highlight=False)
    if out is not None:
        write_table(out, found.curves)
        console.print(f"written to {out}", highlight=False)


def read_data(path: Path, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of numbers, every column at mean 0 and spread 1, and labels -1 and 1.

    Args:
        path: CSV or TSV, numbers but for the label's column; or .npz with x (n, ...) and y (n,).
        label: column of the label; two values, the smaller is -1.
    """
    x, y = _read_arrays(path) if path.suffix == ".npz" else read_features(path, label, "str")[:2]
    values = np.unique(y)
    if len(values) != 2:
        raise DataError(
            f"{len(values)} different labels", path=path, column=label,
            value=values[:5].tolist(), expected="two",
        )  # fmt: skip
    spread = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1), np.where(
        y == values[1], 1.0, -1.0
    )


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    arrays = read_npz(path, ("x", "y"))
    x, y = arrays["x"], arrays["y"]
    if len(x) != len(y) or y.ndim != 1 or not np.issubdtype(x.dtype, np.number):
        raise DataError(
            "shapes of x and y", path=path, value=(x.shape, y.shape), expected="(n, ...) and (n,)"
        )
    x = x.reshape(len(x), -1).astype(float)
    refuse_gaps(x, path)
    return x, y


def _numbers(text: str, name: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise DataError(name, value=text, expected="numbers with commas between") from None


def _read_runs(path: Path, metric: str) -> pd.DataFrame:
    columns = {"size": "int", "temperature": "float", "seed": "int", metric: "float"}
    return read_table(path, columns)  # type: ignore[arg-type]


def _by_alpha(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    if "alpha" not in table:
        return [("", table)]
    return [(f"alpha = {alpha:g}", part) for alpha, part in table.groupby("alpha")]


def _fits(part: pd.DataFrame, metric: str, level: float | None) -> pd.DataFrame:
    if level is None:
        return method.characteristic_temperature(part, metric)
    return method.characteristic_temperature(part, metric, "level", level)


def _show_critical(
    part: pd.DataFrame, metric: str, title: str, level: float | None = None
) -> pd.DataFrame:
    fits = _fits(part, metric, level)
    shown = Table("P", "T_c [95%]", "plateau", "exponent in T", "runs left out", title=title)
    for row in fits.itertuples():
        shown.add_row(
            str(row.size), _interval(row.critical, row.low, row.high), f"{row.plateau:.3g}",
            f"{row.exponent:.2f}", str(row.censored),
        )  # fmt: skip
    Console().print(shown)
    return fits


def _show_exponents(part: pd.DataFrame) -> None:
    meaning = {
        "a": "T_c ~ P^-a",
        "delta": "|w - w0| ~ T^delta",
        "gamma": "|w - w0| ~ P^gamma",
        "tau": "t* ~ T^tau",
        "b": "t* ~ P^b",
    }
    shown = Table("law", "exponent [95%]", "runs", "of them censored")
    for name, found in method.fit_exponents(part).items():
        shown.add_row(
            meaning[name], _interval(found.value, found.low, found.high), str(found.runs),
            str(found.censored),
        )  # fmt: skip
    Console().print(shown)


def _interval(value: float, low: float, high: float) -> str:
    return "not reached" if math.isnan(value) else f"{value:.3g} [{low:.3g}, {high:.3g}]"


def _watch(parts: Iterable[Any], total: int) -> Iterable[Any]:
    return track(parts, "training", total=total, console=Console(stderr=True))
