"""Commands for a person's own tables and loss curves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy import ndarray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from peira.data import DataError, read_table
from peira.data.arrays import read_features, read_npz, refuse_gaps
from peira.data.tables import write_table
from peira.dynamics.grokking_lazy_rich.method import PolyGrokModel, grok_forecast, grok_gap
from peira.dynamics.grokking_lazy_rich.scaled import regression_sweep
from peira.dynamics.probes import mlp

__all__ = ["fit", "forecast", "gap", "sweep"]

TABLE = Annotated[
    Path, typer.Argument(help="CSV or TSV of number columns, or .npz with arrays X and y")
]
TARGET = Annotated[str, typer.Option(help="column to predict (tables only)")]
SHARE = Annotated[float, typer.Option(help="share of the rows that is held out to test")]
FRACTION = Annotated[float, typer.Option(help="of the loss at the start: the level of the delay")]
STEPS = Annotated[int, typer.Option(min=1, help="steps of gradient descent")]
ALPHA = Annotated[float, typer.Option(help="output scale: large is lazy")]
WIDTHS = Annotated[str, typer.Option(help="hidden widths of the ReLU network, with commas")]
OUT = Annotated[Path | None, typer.Option(help="CSV of the curves to write")]


def fit(
    data: TABLE,
    target: TARGET = "y",
    alpha: ALPHA = 1.0,
    eps: Annotated[float, typer.Option(help="curvature: small is misaligned")] = 0.05,
    width: Annotated[float, typer.Option(help="neurons; inf for infinitely many")] = 500,
    steps: STEPS = 5000,
    learning_rate: Annotated[float | None, typer.Option(help="a tenth of the largest")] = None,
    test_fraction: SHARE = 0.3,
    fraction: FRACTION = 0.05,
    seed: int = 0,
    out: OUT = None,
) -> None:
    """Train the paper's polynomial network on a table; show losses, twin, laziness, delay.

    Columns are standardised; targets count from the least training one, in standard deviations.
    """
    train, test = read_split(data, target, test_fraction, seed)
    # All readouts are positive, so that the network fits what rises from a least value.
    least = train[1].min()
    train, test = ((x, y - least) for x, y in (train, test))
    model = PolyGrokModel(alpha, eps, width, steps, learning_rate, seed)
    for _ in track(
        model.fit_steps(*train, validation=test),
        "training",
        steps,
        console=Console(stderr=True),
    ):
        pass
    curves = model.curves_
    shown = Table("step", "train", "test", "linearised test", "movement", "alignment")
    named = ("train_loss", "test_loss", "linearised_test_loss", "movement", "alignment")
    for row in np.unique(np.linspace(0, len(curves["step"]) - 1, 12).round().astype(int)):
        shown.add_row(
            f"{curves['step'][row]:,.0f}", *(f"{curves[name][row]:.3g}" for name in named)
        )
    console = Console()
    console.print(shown)
    console.print(f"regression with the initial kernel: test loss {model.kernel_loss_:.3g}")
    console.print(f"delay at {fraction:g} of the start: {model.gap(fraction)}", highlight=False)
    _write(out, curves)


def gap(
    curves: Annotated[Path, typer.Argument(help="CSV or TSV of loss curves, one moment a row")],
    train: Annotated[str, typer.Option(help="column of training losses")] = "train_loss",
    test: Annotated[str, typer.Option(help="column of test losses")] = "test_loss",
    step: Annotated[str, typer.Option(help="column of steps")] = "step",
    fraction: FRACTION = 0.05,
) -> None:
    """How much later the test loss falls than the training loss, from a log of any training."""
    table = read_table(curves, dict.fromkeys((train, test, step), "float"))
    for name in (train, test, step):
        missing = np.flatnonzero(table[name].isna())
        if len(missing):
            raise DataError(
                "empty value", curves, int(missing[0]) + 2, name, expected="a loss at every step"
            )
    shown = Table("level", "train at step", "test at step", "delay")
    for level in sorted({fraction, 0.1, 0.25, 0.5}):
        found = grok_gap(table[train], table[test], level, steps=table[step])
        moments = (found.train_step, found.test_step)
        late = "" if found.at_least is None else f"{found.at_least:.3g}x"
        shown.add_row(
            f"{level:g} of start",
            *("never" if at is None else f"{at:g}" for at in moments),
            late if found.ratio is not None or not late else f"more than {late}",
        )
    Console().print(shown)


def forecast(
    data: TABLE,
    target: TARGET = "y",
    hidden: WIDTHS = "200",
    alpha: ALPHA = 1.0,
    seed: int = 0,
) -> None:
    """Will a ReLU network grok on this table? Judged from its tangent kernel before training."""
    x, y = read_problem(data, target)
    network = mlp(
        (x.shape[1], *_widths(hidden), 1), generator=torch.Generator().manual_seed(seed)
    ).double()
    x, y, *_ = _standardised(x, y, x[:1], y[:1])
    found = grok_forecast(network, torch.from_numpy(x), torch.from_numpy(y) / alpha, seed=seed)
    shown = Table("quantity", "value", "meaning")
    rows = (
        ("alignment", found.alignment, f"of the initial kernel; {found.chance:.3g} by chance"),
        ("plateau", found.kernel_error, "kernel regression's error on unseen rows / variance"),
        (
            "movement",
            found.movement,
            "least |change|^2 / |weights|^2 that fits; below 2 it stays lazy",
        ),
        ("data ratio", found.data_ratio, "rows / (columns)^2"),
    )
    for name, value, meaning in rows:
        shown.add_row(name, f"{value:.3g}", meaning)
    Console().print(shown)
    Console().print(found.verdict, highlight=False)


def sweep(
    data: TABLE,
    target: TARGET = "y",
    alphas: Annotated[str, typer.Option(help="output scales, with commas")] = "0.3,1,3,10",
    hidden: WIDTHS = "100",
    steps: STEPS = 3000,
    learning_rate: Annotated[float, typer.Option(help="at alpha = 1; divided by alpha^2")] = 0.1,
    test_fraction: SHARE = 0.3,
    fraction: FRACTION = 0.25,
    seed: int = 0,
    out: OUT = None,
) -> None:
    """Train a ReLU network on a table at several output scales: which one generalises soonest?"""
    train, test = read_split(data, target, test_fraction, seed)
    parts = [torch.from_numpy(part).float() for part in (*train, *test)]
    shown = Table("alpha", "best test loss", "delay", "weights moved", "kernel changed")
    rows: dict[str, list[float]] = {"alpha": [], "step": [], "train_loss": [], "test_loss": []}
    for alpha in track(_numbers(alphas), "alphas", console=Console(stderr=True)):
        generator = torch.Generator().manual_seed(seed)
        network = mlp((parts[0].shape[1], *_widths(hidden), 1), generator=generator)
        curve, change = regression_sweep(network, *parts, alpha, learning_rate, steps)
        delay = grok_gap(curve.train_loss, curve.test_loss, fraction, steps=curve.steps)
        shown.add_row(
            f"{alpha:g}",
            f"{min(curve.test_loss):.3g}",
            str(delay),
            f"{change.relative_weight_change:.2g}",
            f"{change.kernel_change:.2g}",
        )
        rows["alpha"] += [alpha] * len(curve.steps)
        for name in ("train_loss", "test_loss"):
            rows[name] += getattr(curve, name)
        rows["step"] += curve.steps
    Console().print(shown)
    _write(out, {name: np.array(values) for name, values in rows.items()})


def read_problem(path: Path, target: str) -> tuple[ndarray, ndarray]:
    """Inputs (P, D) and targets (P,) of a table or an .npz file.

    Raises:
        DataError: no such file or column, values that are no finite numbers, too few rows.
    """
    if path.suffix == ".npz":
        x, y = _read_npz(path)
    else:
        x, y, _ = read_features(path, target)
    if len(x) < 2:
        raise DataError("too few rows", path=path, value=len(x), expected="2 or more")
    if not np.ptp(y) > 0:
        raise DataError(
            "constant targets", path=path, value=float(y[0]), expected="targets that vary"
        )
    return x, y


def read_split(
    path: Path, target: str, test_fraction: float, seed: int
) -> tuple[tuple[ndarray, ndarray], tuple[ndarray, ndarray]]:
    """Training and test part; columns have mean 0 and variance 1 / D, targets unit variance.

    Means and variances are those of the training part.
    """
    x, y = read_problem(path, target)
    held_out = round(test_fraction * len(x))
    if not 0 < held_out <= len(x) - 2:
        raise DataError(
            f"a test fraction of {test_fraction:g} of {len(x)} rows",
            path=path,
            expected="two rows or more to train and one or more to test",
        )
    order = np.random.default_rng(seed).permutation(len(x))
    test, train = order[:held_out], order[held_out:]
    parts = _standardised(x[train], y[train], x[test], y[test])
    return (parts[0], parts[1]), (parts[2], parts[3])


def _standardised(
    x: ndarray, y: ndarray, x_test: ndarray, y_test: ndarray
) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    # A column that does not vary says nothing; dividing by 1 leaves it at 0.
    spread = np.where(x.std(0) > 0, x.std(0), 1.0) * x.shape[1] ** 0.5
    scale = y.std() if y.std() > 0 else 1.0
    return (
        (x - x.mean(0)) / spread,
        (y - y.mean()) / scale,
        (x_test - x.mean(0)) / spread,
        (y_test - y.mean()) / scale,
    )


def _read_npz(path: Path) -> tuple[ndarray, ndarray]:
    found = read_npz(path, ("X", "y"))
    for name in ("X", "y"):
        if found[name].dtype.kind not in "fiu":
            raise DataError(
                "wrong kind", path=path, column=name, value=str(found[name].dtype),
                expected="numbers",
            )  # fmt: skip
    x, y = (found[name].astype(float) for name in ("X", "y"))
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise DataError(
            "shapes", path=path, value=(x.shape, y.shape), expected="X (P, D) and y (P,)"
        )
    refuse_gaps(x, path)
    refuse_gaps(y[:, None], path, ["y"])
    return x, y


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0:
        raise DataError("scales", value=text, expected="numbers above 0 with commas, as 0.3,1,3")
    return numbers


def _widths(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise DataError(
            "hidden widths", value=text, expected="whole numbers with commas, as 100,100"
        )
    return [int(part) for part in parts]


def _write(path: Path | None, columns: dict[str, ndarray]) -> None:
    if path is None:
        return
    import pandas as pd

    write_table(path, pd.DataFrame(columns))
    Console().print(f"written to {path}", highlight=False)
