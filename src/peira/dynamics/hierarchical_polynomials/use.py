"""Commands for a person's own table of numbers and a label."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.base import clone
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from peira.data import DataError, load_model, read_table, save_model
from peira.data.tables import write_table
from peira.dynamics.hierarchical_polynomials.baselines import PolynomialThenLink, TunedKernelRidge
from peira.dynamics.hierarchical_polynomials.method import (
    HermiteFeatures,
    HierarchicalPolynomialRegressor,
    hierarchical_target,
)

__all__ = ["compare", "fit", "link", "predict", "score", "simulate"]

TABLE = Annotated[Path, typer.Argument(help="CSV or TSV of numbers, one example a row")]
TARGET = Annotated[str, typer.Option(help="column of the label")]
COLUMNS = Annotated[
    str, typer.Option(help="columns to learn from: bmi,age,bp; default all numeric ones")
]
DEGREE = Annotated[int, typer.Option(min=1, help="degree k of the hidden feature")]
MODEL = Annotated[Path, typer.Argument(help="model file written by fit")]
# Rows of the link's table, over the feature's range in training.
LINK_ROWS = 101
RANGE = 3.0
FEWEST = 20
# Relative excess of Mardia's kurtosis, and excess kurtosis of the feature, that are remarked on.
NORMAL, HEAVY = 0.1, 3.0


def fit(
    table: TABLE,
    model: Annotated[Path, typer.Argument(help="model file to write")],
    target: TARGET = "y",
    columns: COLUMNS = "",
    degree: DEGREE = 2,
    split: Annotated[float, typer.Option(help="share of the rows for the feature")] = 0.5,
    whiten: Annotated[bool, typer.Option(help="make columns uncorrelated, of unit scale")] = True,
    terms: Annotated[int, typer.Option(min=0, help="terms of the feature to show")] = 8,
    seed: int = 0,
) -> None:
    """Find the hidden feature and the curve on it, say what the data are like, save the model."""
    console = Console()
    rows, label = _read(table, target, columns)
    _refuse_few(len(rows), table)
    order = np.random.default_rng(seed).permutation(len(rows))
    held, kept = np.split(order, [len(rows) // 5])
    estimator = HierarchicalPolynomialRegressor(
        degree, split=split, whiten=whiten, random_state=seed
    )
    said = f"learning from {len(rows):,} rows of {rows.shape[1]} columns"
    with console.status(said), warnings.catch_warnings():
        # Said once, among the remarks.
        warnings.filterwarnings("ignore", message=".*rows for stage 1")
        trial = clone(estimator).fit(rows.iloc[kept], label[kept])
        tested = r2_score(label[held], trial.predict(rows.iloc[held]))
        found = estimator.fit(rows, label)
    save_model(model, found)
    console.print(_about(found, tested))
    if terms and isinstance(found.inner_, HermiteFeatures):
        console.print(_largest_terms(found, terms))
    for remark in remarks(found):
        console.print(remark, highlight=False)
    console.print(f"model: {model}", highlight=False)


def predict(
    model: MODEL,
    table: TABLE,
    out: Annotated[Path, typer.Argument(help="CSV to write: feature and prediction")],
) -> None:
    """Feature and predicted label of every row of a table."""
    found = _load(model)
    rows = _rows(found, table)
    z = found.feature(rows)
    written = pd.DataFrame({"feature": z, "prediction": found.link(z)})
    write_table(out, written)
    Console().print(f"{len(rows):,} rows: {out}", highlight=False)


def score(model: MODEL, table: TABLE, target: TARGET = "y") -> None:
    """How well a saved model tells the label of rows that it was not fitted to."""
    found = _load(model)
    label = _label(table, target)
    rows = _rows(found, table)
    z = found.feature(rows)
    shown = Table("measure", "value")
    shown.add_row("rows", f"{len(rows):,}")
    shown.add_row("R2", f"{r2_score(label, found.link(z)):.3f}")
    shown.add_row("mean squared error", f"{np.square(label - found.link(z)).mean():.4g}")
    shown.add_row("correlation of feature and label", f"{np.corrcoef(z, label)[0, 1]:.3f}")
    Console().print(shown)


def link(
    model: MODEL,
    out: Annotated[Path, typer.Argument(help="CSV to write: feature and label it stands for")],
) -> None:
    """The curve from feature to label, as a table within three standard deviations."""
    found = _load(model)
    z = np.linspace(-RANGE, RANGE, LINK_ROWS)
    write_table(out, pd.DataFrame({"feature": z, "label": found.link(z)}))
    Console().print(f"{LINK_ROWS} points of the curve: {out}", highlight=False)


def compare(
    table: TABLE,
    target: TARGET = "y",
    columns: COLUMNS = "",
    degree: DEGREE = 2,
    folds: Annotated[int, typer.Option(min=2, help="parts of the cross-validation")] = 5,
    seed: int = 0,
) -> None:
    """Cross-validated R2 of the layer-wise network, its classical twin, kernels, linear models."""
    rows, label = _read(table, target, columns)
    _refuse_few(len(rows), table)
    ridge = RidgeCV(np.geomspace(1e-3, 1e4, 15))
    scaled = StandardScaler()
    learners = {
        "layer by layer": HierarchicalPolynomialRegressor(degree, random_state=seed),
        "polynomial, then spline": make_pipeline(
            scaled, PolynomialThenLink(degree, random_state=seed)
        ),
        f"polynomial of degree {degree}, ridge": make_pipeline(
            scaled, PolynomialFeatures(degree, include_bias=False), StandardScaler(), ridge
        ),
        "linear, ridge": make_pipeline(scaled, ridge),
        "kernel: NTK": make_pipeline(scaled, TunedKernelRidge("ntk", random_state=seed)),
        "kernel: RBF": make_pipeline(scaled, TunedKernelRidge("rbf", random_state=seed)),
    }
    parts = list(KFold(folds, shuffle=True, random_state=seed).split(rows))
    x = rows.to_numpy()
    shown = Table("learner", "R2, mean of folds", "lowest", "highest")
    for name, learner in track(learners.items(), "fitting", console=Console(stderr=True)):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*rows for stage 1")
            values = [
                r2_score(label[test], clone(learner).fit(x[train], label[train]).predict(x[test]))
                for train, test in parts
            ]
        shown.add_row(name, *(f"{f(values):.3f}" for f in (np.mean, np.min, np.max)))
    Console().print(shown)


def simulate(
    out: Annotated[Path, typer.Argument(help="CSV to write: x0, x1, ..., y")],
    rows: Annotated[int, typer.Option(min=8)] = 4096,
    dimension: Annotated[int, typer.Option(min=2, help="number of columns d")] = 16,
    degree: DEGREE = 2,
    link: Annotated[str, typer.Option(help="cubic, even or square")] = "cubic",
    true_feature: Annotated[bool, typer.Option(help="write p(x) too, as a last column")] = False,
    seed: int = 0,
) -> None:
    """Write a table with a hidden polynomial feature, to try the other commands on."""
    rng = np.random.default_rng(seed)
    target = hierarchical_target(dimension, degree, link, rng=rng)  # type: ignore[arg-type]
    x, y = target.sample(rows, rng)
    frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(dimension)])
    frame["y"] = y
    if true_feature:
        frame["true_feature"] = target.feature(x)
    write_table(out, frame)
    Console().print(f"{rows:,} rows of {dimension} columns: {out}", highlight=False)


def remarks(found: HierarchicalPolynomialRegressor) -> list[str]:
    """What of the method's assumptions the fitted data do not meet, in words."""
    known = found.diagnostics_
    said = []
    if known["rows_per_d^k"] < 1:
        total = (known["stage1_rows"] + known["stage2_rows"]) / known["rows_per_d^k"]
        said.append(
            f"few rows: {known['rows_per_d^k']:.2g} per d^k in the stage that finds the feature; "
            f"give {total:,.0f} for 1, four times as many to find it well"
        )
    if abs(known["mean_slope"]) < 2 * known["mean_slope_error"]:
        said.append(
            "no feature: on rows that it was not learnt from it does not go with the label "
            f"(slope {known['mean_slope']:.2g} +- {known['mean_slope_error']:.2g}); the link has "
            "no linear part, the degree is wrong, or the rows are too few"
        )
    if abs(known["input_excess_kurtosis"]) > NORMAL:
        side = "above" if known["input_excess_kurtosis"] > 0 else "below"
        said.append(
            f"rows are not normal (Mardia's kurtosis is {abs(known['input_excess_kurtosis']):.0%} "
            f"{side} its normal value): the sample guarantee does not hold, trust the score"
        )
    if known["feature_excess_kurtosis"] > HEAVY:
        said.append(
            f"the feature is far from normal (excess kurtosis "
            f"{known['feature_excess_kurtosis']:.1f}): few directions carry it, so it is biased"
        )
    return said


def _about(found: HierarchicalPolynomialRegressor, tested: float) -> Table:
    known = found.diagnostics_
    shown = Table("quantity", "value")
    shown.add_row("R2 on kept-out rows (a fifth)", f"{tested:.3f}")
    shown.add_row(
        "rows of stage 1 and 2", f"{known['stage1_rows']:,.0f} + {known['stage2_rows']:,.0f}"
    )
    shown.add_row("rows of stage 1 per d^k", f"{known['rows_per_d^k']:.3g}")
    shown.add_row("steps of stage 1", f"{known['steps']:.0f}")
    shown.add_row("feature and label, stage 2", f"{known['correlation']:.3f}")
    shown.add_row("slope E g'(z)", f"{known['mean_slope']:.3f} +- {known['mean_slope_error']:.3f}")
    shown.add_row("excess kurtosis of the feature", f"{known['feature_excess_kurtosis']:.2f}")
    shown.add_row("of the rows (Mardia, relative)", f"{known['input_excess_kurtosis']:+.2f}")
    return shown


def _largest_terms(found: HierarchicalPolynomialRegressor, number: int) -> Table:
    shown = Table("term of the feature (whitened columns)", "coefficient", "share")
    for row in found.terms().head(number).itertuples():
        shown.add_row(row.term, f"{row.coefficient:+.3f}", f"{row.share:.1%}")
    return shown


def _read(path: Path, target: str, columns: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Columns to learn from and the label, every value a finite number."""
    frame = read_table(path, {target: "float"})
    chosen = [name.strip() for name in columns.split(",") if name.strip()]
    if target in chosen:
        raise DataError("the label is among the columns", path=path, column=target)
    if not chosen:
        chosen = [str(name) for name in frame.select_dtypes("number").columns if name != target]
    if not chosen:
        raise DataError("no numeric columns beside the label", path=path)
    frame = _numbers(path, [*chosen, target])
    return frame[chosen], frame[target].to_numpy()


def _numbers(path: Path, names: list[str]) -> pd.DataFrame:
    """These columns of the file; a value that is missing is named with its row."""
    frame = read_table(path, dict.fromkeys(names, "float"))[names]
    gaps = np.argwhere(frame.isna().to_numpy())
    if len(gaps):
        row, column = gaps[0]
        raise DataError(
            "empty cell", path, int(row) + 2, names[column], expected="a number in every row"
        )
    return frame


def _rows(found: HierarchicalPolynomialRegressor, path: Path) -> pd.DataFrame:
    return _numbers(path, [str(name) for name in found.feature_names_in_])


def _label(path: Path, target: str) -> np.ndarray:
    return _numbers(path, [target])[target].to_numpy()


def _refuse_few(rows: int, path: Path) -> None:
    if rows < FEWEST:
        raise DataError("too few rows", path, value=rows, expected=f"{FEWEST} or more")


def _load(path: Path) -> HierarchicalPolynomialRegressor:
    found = load_model(path)
    if not isinstance(found, HierarchicalPolynomialRegressor):
        raise DataError("not a model of this paper", path, value=type(found).__name__)
    return found
