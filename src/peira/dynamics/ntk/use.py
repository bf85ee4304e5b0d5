"""Commands for a person's own table, kernel or trained network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table
from sklearn.base import is_classifier
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from peira.data import DataError, load_model, read_table, save_model
from peira.data.arrays import read_npz, read_tensors
from peira.data.networks import own_module
from peira.data.tables import write_table
from peira.dynamics.ntk.architecture import Architecture, Nonlinearity
from peira.dynamics.ntk.estimators import NTKClassifier, NTKRegressor, closest_pair
from peira.dynamics.ntk.method import early_stop_time, lazy_report, mode_times, training_forecast
from peira.dynamics.probes.forecast import Floats, Loss, check_kernel, modes
from peira.engine.errors import nearest
from peira.engine.files import atomic_path

__all__ = ["fit", "forecast", "kernel", "lazy", "predict", "score"]

TABLE = Annotated[
    Path, typer.Argument(help="CSV or TSV, one point a row; or .npz with x (rows, features) and y")
]
MODEL = Annotated[Path, typer.Argument(help="model file written by fit")]
TARGET = Annotated[str, typer.Option(help="name of the target's column")]
FEATURES = Annotated[
    str, typer.Option(help="columns to learn from, a,b,c; default all but the target")
]
DEPTH = Annotated[int, typer.Option(min=1, help="weight layers: hidden layers + 1")]
ACTIVATION = Annotated[str, typer.Option(help="relu, tanh, erf, gelu, ...")]
BETA = Annotated[float, typer.Option(help="standard deviation of biases, 0 or more, below 1")]
RATE = Annotated[float, typer.Option(help="learning rate of gradient descent")]
LOSS = Annotated[
    Loss, typer.Option(help="half-sum: |f - y|^2 / 2, half-mean: over rows, mse: torch's MSELoss")
]
# More distinct whole numbers than this are quantities, not classes.
CLASSES = 10


def kernel(
    table: TABLE,
    out: Annotated[Path, typer.Argument(help=".npz to write: nngp, ntk")],
    other: Annotated[Path | None, typer.Option(help="table of other points, m rows")] = None,
    features: FEATURES = "",
    depth: DEPTH = 3,
    activation: ACTIVATION = "relu",
    beta: BETA = 0.1,
    standardise: Annotated[bool, typer.Option(help="features to mean 0, deviation 1")] = True,
) -> None:
    """Write the kernels of an infinitely wide network for the rows of a table, or of two."""
    frame = _frame(table)
    names = _feature_names(frame, table, features, None)
    x = _numbers(frame, table, names)
    scaler = StandardScaler(with_mean=standardise, with_std=standardise).fit(x)
    x2 = None if other is None else _numbers(_frame(other), other, names)
    spec = Architecture.normalised(depth, activation, beta)
    found = spec.kernels(scaler.transform(x), None if x2 is None else scaler.transform(x2))
    with atomic_path(out) as temporary, open(temporary, "wb") as file:
        np.savez(file, nngp=found.nngp, ntk=found.ntk)
    shown = Table("quantity", "value")
    shown.add_row("points x features", f"{len(x)} x {len(names)}")
    shown.add_row("kernels", " x ".join(map(str, found.ntk.shape)))
    if x2 is None:
        values = modes(found.ntk).values
        first, second, distance = closest_pair(found.ntk)
        shown.add_row("largest eigenvalue of the NTK", f"{values[0]:.4g}")
        shown.add_row("least eigenvalue of the NTK", f"{values[-1]:.4g}")
        shown.add_row("closest rows", f"{first + 2} and {second + 2}: {distance:.2g} (relative)")
    Console().print(shown)
    Console().print(f"written to {out}", highlight=False)


def fit(
    table: TABLE,
    model: Annotated[Path, typer.Argument(help="model file to write")],
    target: TARGET = "target",
    features: FEATURES = "",
    task: Annotated[
        Literal["auto", "regression", "classification"],
        typer.Option(help="auto: text, or up to 10 whole numbers, are classes"),
    ] = "auto",
    depth: DEPTH = 3,
    activation: ACTIVATION = "relu",
    beta: BETA = 0.1,
    ridge: Annotated[str, typer.Option(help="added to the kernel's diagonal, or loo")] = "loo",
    folds: Annotated[int, typer.Option(min=2, help="of the cross-validation")] = 5,
) -> None:
    """Fit an infinitely wide network to a table, cross-validate it, and save it."""
    frame = _frame(table)
    names = _feature_names(frame, table, features, target)
    x, y = _numbers(frame, table, names), _targets(frame, table, target)
    classes = task == "classification" or (task == "auto" and _are_classes(y))
    if task == "regression" and y.dtype.kind not in "iuf":
        raise DataError("the target is text", table, None, target, y.iloc[0], "numbers")
    if len(x) < folds:
        raise DataError(f"{len(x)} rows", table, expected=f"{folds} or more, one for each fold")
    if _ridge(ridge) == 0:
        _refuse_equal_rows(x, table)
    settings: dict[str, Any] = {
        "depth": depth, "activation": activation, "beta": beta, "ridge": _ridge(ridge)
    }  # fmt: skip
    learner = NTKClassifier(**settings) if classes else NTKRegressor(**settings)
    penalties = np.logspace(-4, 4, 17)
    linear = RidgeClassifierCV(penalties) if classes else RidgeCV(penalties)
    found = make_pipeline(StandardScaler(), learner)
    parts = (StratifiedKFold if classes else KFold)(folds, shuffle=True, random_state=0)
    with Console().status("cross-validating"):
        scores = {
            name: cross_val_score(one, x, y, cv=parts, error_score="raise")
            for name, one in (
                ("this network", found), ("linear model", make_pipeline(StandardScaler(), linear))
            )
        }  # fmt: skip
        found.fit(x, y)
    save_model(model, found)
    shown = Table(f"{folds}-fold cross-validation", "accuracy" if classes else "R2", "+-")
    for name, values in scores.items():
        shown.add_row(name, f"{values.mean():.3f}", f"{values.std(ddof=1):.3f}")
    Console().print(shown)
    kind = f"{len(y.unique())} classes" if classes else "regression"
    Console().print(
        f"{len(x)} rows, {len(names)} features, {kind}; ridge {found[-1].ridge_:.3g}: {model}",
        highlight=False,
    )


def predict(
    model: MODEL,
    table: TABLE,
    out: Annotated[Path, typer.Argument(help="CSV to write: the table with predictions")],
) -> None:
    """Predict the rows of a table; for regression also the spread over networks."""
    found = _load(model)
    frame = _frame(table)
    x = _numbers(frame, table, list(found.feature_names_in_))
    if is_classifier(found):
        frame["prediction"] = found.predict(x)
    else:
        frame["prediction"], frame["deviation"] = found.predict(x, return_std=True)
    write_table(out, frame)
    Console().print(f"{len(frame)} rows: {out}", highlight=False)


def score(model: MODEL, table: TABLE, target: TARGET = "target") -> None:
    """How well a model tells the targets of a table that it was not fitted to."""
    found = _load(model)
    frame = _frame(table)
    x, y = _numbers(frame, table, list(found.feature_names_in_)), _targets(frame, table, target)
    shown = Table("measure", "value")
    if is_classifier(found):
        shown.add_row("accuracy", f"{found.score(x, y.astype(found.classes_.dtype)):.3f}")
    else:
        error = found.predict(x) - y.to_numpy(dtype=float)
        shown.add_row("R2", f"{found.score(x, y):.3f}")
        shown.add_row("root mean square error", f"{np.sqrt(np.mean(error**2)):.4g}")
    shown.add_row("rows", str(len(x)))
    Console().print(shown)


def forecast(
    table: TABLE,
    target: TARGET = "target",
    features: FEATURES = "",
    kernel: Annotated[
        Path | None, typer.Option(help=".npz with `ntk` (or one array) of the table's rows")
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="variance of the target's noise; else by cross-validation")
    ] = None,
    learning_rate: RATE = 0.01,
    loss: LOSS = "half-sum",
    depth: DEPTH = 3,
    activation: ACTIVATION = "relu",
    beta: BETA = 0.1,
    out: Annotated[Path | None, typer.Option(help="CSV for time, error, risk")] = None,
) -> None:
    """How gradient descent on a wide network will go: pace, components, when to stop."""
    frame = _frame(table)
    y = _targets(frame, table, target)
    if y.dtype.kind not in "iuf":
        raise DataError("the target is text", table, None, target, y.iloc[0], "numbers")
    values = y.to_numpy(dtype=float) - y.mean()
    if kernel is None:
        names = _feature_names(frame, table, features, target)
        x = StandardScaler().fit_transform(_numbers(frame, table, names))
        matrix = Architecture.normalised(depth, activation, beta).kernels(x).ntk
    else:
        matrix = read_kernel(kernel, len(values))
    found = modes(matrix)
    settings: dict[str, Any] = {"learning_rate": learning_rate, "loss": loss}
    slow = mode_times(found, **settings)
    stop = early_stop_time(found, values, noise, **settings)
    curve = training_forecast(found, values, stop.times, **settings)
    energy = (found.vectors.T @ values) ** 2 / (values @ values)
    shown = Table("component", "eigenvalue", "steps to learn", "share of the target")
    for i in range(min(8, len(slow))):
        shown.add_row(str(i + 1), f"{found.values[i]:.4g}", f"{slow[i]:.4g}", f"{energy[i]:.1%}")
    Console().print(shown)
    says = Table("forecast", "value")
    says.add_row("largest stable learning rate", f"{2 * slow[0] * learning_rate:.4g}")
    says.add_row("stop after (steps)", f"{stop.time:.4g}")
    says.add_row("effective parameters there", f"{stop.degrees:.1f} of {len(values)}")
    says.add_row("estimated risk there (variance of target 1)", f"{stop.risk / values.var():.3f}")
    says.add_row("slowest component (steps)", f"{slow[-1]:.4g}")
    Console().print(says)
    if out is not None:
        rows = pd.DataFrame({"time": stop.times, "error": curve.error, "risk": stop.risks})
        write_table(out, rows)
        Console().print(f"written to {out}", highlight=False)


def lazy(
    before: Annotated[Path, typer.Argument(help=".safetensors before training")],
    after: Annotated[Path, typer.Argument(help=".safetensors of the same network after")],
    probe: Annotated[Path, typer.Argument(help="CSV or TSV of inputs to measure on")],
    activation: ACTIVATION = "relu",
    features: FEATURES = "",
    model: Annotated[
        str, typer.Option(help="FILE.py:FUNCTION that returns your network; else it is an MLP")
    ] = "",
) -> None:
    """Whether training kept to the tangent kernel of the start, or learned features."""
    frame = _frame(probe)
    x = _numbers(frame, probe, _feature_names(frame, probe, features, None))
    if model:
        network = own_module(model)
        states = [read_tensors(path)[0] for path in (before, after)]
    else:
        states = [read_mlp(path) for path in (before, after)]
        network = _mlp_of(states[0], activation)
        inputs = states[0]["0.weight"].shape[1]
        if x.shape[1] != inputs:
            raise DataError(f"{x.shape[1]} columns", probe, expected=f"{inputs}, as the MLP takes")
    report = lazy_report(network, *states, torch.from_numpy(np.array(x, np.float32)))
    change = report.change
    shown = Table("measure", "value")
    for name, value in (
        ("error of the expansion at the start", report.linear_error),
        ("change of the tangent kernel, relative", change.kernel_change),
        ("alignment of the tangent kernels", change.kernel_alignment),
        ("alignment of the representations", change.representation_alignment),
        ("change of the weights, relative", change.relative_weight_change),
        ("activities that kept their sign", change.sign_similarity),
        ("change of the outputs (root mean square)", report.moved),
    ):
        shown.add_row(name, f"{value:.4g}")
    Console().print(shown)
    told = 1 - report.linear_error
    Console().print(
        f"{'lazy' if report.lazy else 'not lazy'}: the network's expansion at the start tells "
        f"{max(told, 0):.0%} of what changed"
    )


def read_kernel(path: Path, points: int) -> Floats:
    """The training kernel of an .npz file: its array `ntk`, or the only one."""
    arrays = read_npz(path)
    if "ntk" not in arrays and len(arrays) != 1:
        raise DataError(
            "no array 'ntk'", path, value=sorted(arrays), expected="'ntk', or one array"
        )
    matrix = arrays.get("ntk", next(iter(arrays.values())))
    try:
        return check_kernel(matrix, points)
    except (DataError, TypeError, ValueError) as error:
        raise DataError(str(error), path) from error


def read_mlp(path: Path) -> dict[str, torch.Tensor]:
    """Weights and biases of a chain of linear layers, named as in `nn.Sequential` (0, 2, 4 ...).

    Layers are taken in the natural order of their names (fc2 before fc10); each must take what
    the one before gives.
    """
    tensors, _ = read_tensors(path)
    owners = {name.rpartition(".")[0] for name in tensors}
    state: dict[str, torch.Tensor] = {}
    size = None
    for i, owner in enumerate(sorted(owners, key=_natural)):
        weight = tensors.pop(f"{owner}.weight", None)
        if weight is None or weight.ndim != 2 or size not in (None, weight.shape[1]):
            shape = None if weight is None else tuple(weight.shape)
            expected = f"a matrix (outputs, {size or 'inputs'})"
            raise DataError(
                f"layer {owner!r} does not fit an MLP", path, None, None, shape, expected
            )
        size = weight.shape[0]
        state[f"{2 * i}.weight"] = weight.float()
        if (bias := tensors.pop(f"{owner}.bias", None)) is not None:
            state[f"{2 * i}.bias"] = bias.float()
    if tensors or not state:
        raise DataError("not an MLP", path, value=sorted(tensors), expected="weights and biases")
    return state


def _mlp_of(state: dict[str, torch.Tensor], activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for name, weight in state.items():
        if name.endswith("weight"):
            bias = name.replace("weight", "bias") in state
            layers += [nn.Linear(weight.shape[1], weight.shape[0], bias), Nonlinearity(activation)]
    return nn.Sequential(*layers[:-1])


def _natural(text: str) -> list[tuple[int, int, str]]:
    return [
        (1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", text)
    ]


def _frame(path: Path) -> pd.DataFrame:
    """A table; of an .npz file the columns x0, x1, ... of `x`, and its arrays of one axis."""
    if path.suffix != ".npz":
        return read_table(path)
    arrays = read_npz(path)
    x = arrays.pop("x", None)
    if x is None or x.ndim != 2 or not x.size or x.dtype.kind not in "iuf":
        shape = None if x is None else x.shape
        raise DataError("array 'x' of points", path, value=shape, expected="numbers (n, features)")
    frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])])
    for name, values in arrays.items():
        if values.shape == (len(x),):
            frame[name] = values
    return frame


def _refuse_equal_rows(x: pd.DataFrame, path: Path) -> None:
    first = x.groupby(list(x), sort=False).ngroup().to_numpy()
    again = np.flatnonzero(x.duplicated())
    if len(again):
        same = int(np.argmax(first == first[again[0]]))
        raise DataError(
            f"rows {same + 2} and {again[0] + 2} have the same features, so that the kernel is "
            "singular",
            path,
            expected="distinct rows, or a --ridge above 0",
        )


def _feature_names(frame: pd.DataFrame, path: Path, features: str, target: str | None) -> list[str]:
    names = [name.strip() for name in features.split(",") if name.strip()]
    names = names or [str(name) for name in frame if name != target]
    if not names:
        raise DataError("no columns beside the target", path=path)
    return names


def _numbers(frame: pd.DataFrame, path: Path, names: list[str]) -> pd.DataFrame:
    """The columns as finite numbers; read again where one is text, for the row of the error."""
    for name in names:
        if name not in frame:
            raise DataError(f"no column {name!r}; {nearest(name, map(str, frame))}", path)
        if frame[name].dtype.kind not in "iuf":
            read_table(path, {name: "float"})
    x = frame[names].astype(float)
    empty = np.argwhere(~np.isfinite(x.to_numpy()))
    if len(empty):
        row, column = (int(i) for i in empty[0])
        raise DataError("an empty cell", path, row + 2, names[column], expected="a number")
    return x


def _targets(frame: pd.DataFrame, path: Path, target: str) -> pd.Series[Any]:
    if target not in frame:
        raise DataError(f"no column {target!r}; {nearest(target, map(str, frame))}", path)
    y: pd.Series[Any] = frame[target]
    empty = np.flatnonzero(y.isna() | (y.astype(str) == ""))
    if len(empty):
        raise DataError("an empty cell", path, int(empty[0]) + 2, target, expected="a target")
    return y


def _are_classes(y: pd.Series[Any]) -> bool:
    return y.dtype.kind not in "iuf" or (bool((y == y.round()).all()) and y.nunique() <= CLASSES)


def _ridge(text: str) -> float | str:
    try:
        return text if text == "loo" else float(text)
    except ValueError:
        raise DataError("ridge", value=text, expected="a number of 0 or more, or loo") from None


def _load(path: Path) -> Pipeline:
    model = load_model(path)
    if not isinstance(model, Pipeline) or not isinstance(model[-1], (NTKRegressor, NTKClassifier)):
        raise DataError("not a model of this paper", path, value=type(model).__name__)
    return model
