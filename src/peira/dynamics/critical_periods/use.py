"""Commands for a person's own matrices and two-view tables."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from peira.data import DataError, read_table
from peira.data.tables import write_table
from peira.dynamics.critical_periods.completion import Steps, check_covered, matrix_transfer
from peira.dynamics.critical_periods.deficits import DeficitSchedule
from peira.dynamics.critical_periods.digits import blur
from peira.dynamics.critical_periods.matrices import read_matrix
from peira.dynamics.critical_periods.pathways import PathwayTask, compress, two_views
from peira.dynamics.critical_periods.reduced import pathway_dynamics
from peira.dynamics.critical_periods.scan import view_scan
from peira.engine.files import atomic_path

__all__ = ["modes", "transfer", "views"]

ONSETS = Annotated[str, typer.Option(help="steps at which a deficit begins, with commas")]
LENGTH = Annotated[int, typer.Option(help="steps that it lasts")]
OUT = Annotated[Path | None, typer.Option(help="CSV to write")]
MATRIX = "CSV, TSV or .npy; empty or NaN where nothing was observed"


def modes(
    matrix: Annotated[Path, typer.Argument(help="input-output correlations (CSV, TSV or .npy)")],
    onsets: ONSETS = "0,50,100,200,400",
    length: LENGTH = 150,
    depths: Annotated[
        str, typer.Option(help="weight matrices of a pathway, with commas")
    ] = "2,3,4",
    k0: Annotated[float, typer.Option(help="initial strength of a mode")] = 0.01,
    rate: Annotated[float, typer.Option(help="learning rate")] = 0.01,
    steps: int = 3000,
    top: Annotated[int, typer.Option(help="how many modes to show", min=1)] = 4,
    large: Annotated[bool, typer.Option("--large", help="large initial weights")] = False,
    out: OUT = None,
) -> None:
    """Predict from a correlation matrix which of its modes a temporary deficit would cost."""
    values = read_matrix(matrix)
    if np.isnan(values).any():
        row, column = (int(place) + 1 for place in np.argwhere(np.isnan(values))[0])
        raise DataError("empty entry", path=matrix, row=row, column=column, expected="a number")
    singular = np.linalg.svd(values, compute_uv=False)[:top]
    starts, levels = _integers(onsets, "onsets"), _integers(depths, "depths")
    solved = pathway_dynamics(
        singular, levels, k0, [DeficitSchedule(start=one, length=length) for one in starts],
        rate, steps, "large" if large else "small", every=steps,
    )  # fmt: skip
    if not np.isfinite(solved.k).all():
        raise DataError("the equation diverged", value=rate, expected="a lower learning rate")
    rows = [
        {"mode": mode, "singular value": s, "depth": depth}
        | {f"onset {start}": solved.ratio[i, j, mode] for i, start in enumerate(starts)}
        for mode, s in enumerate(singular)
        for j, depth in enumerate(levels)
    ]
    _show(pd.DataFrame(rows), "strength in the gated pathway / strength in the other", out)


def transfer(
    first: Annotated[Path, typer.Argument(help=f"matrix learned first: {MATRIX}")],
    second: Annotated[Path, typer.Argument(help=f"matrix learned then: {MATRIX}")],
    depth: Annotated[int, typer.Option(help="factors; 1 learns no features", min=1)] = 3,
    pretrain: Annotated[str, typer.Option(help="steps on the first matrix, with commas")] = (
        "0,1000,5000"
    ),
    steps: Annotated[int, typer.Option(help="steps on the second", min=1)] = 5000,
    rate: Annotated[float | None, typer.Option(help="learning rate; default from the size")] = None,
    holdout: Annotated[float, typer.Option(help="share of the second's entries to test on")] = 0.1,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    out: OUT = None,
    completed: Annotated[
        Path | None, typer.Option(help=".npy to write: the second matrix completed, best branch")
    ] = None,
) -> None:
    """Does learning one matrix first damage the completion of another?"""
    one, two = read_matrix(first), read_matrix(second)
    check_covered(~np.isnan(one), str(first))
    check_covered(~np.isnan(two), str(second))
    if two.shape != one.shape:
        raise DataError("shape of the matrix", second, value=two.shape, expected=f"{one.shape}")
    branches = _integers(pretrain, "pretrain")
    found = [
        matrix_transfer(
            one, two, depth=depth, pretrain_steps=branches, steps=steps, rate=rate,
            holdout=holdout, seed=seed,
            watch={part: _bar(f"{part} matrix, seed {seed}") for part in ("first", "second")},
        )
        for seed in range(seeds)
    ]  # fmt: skip
    losses, damage = (
        np.array([getattr(one, name) for one in found]) for name in ("test_loss", "damage")
    )
    rows = pd.DataFrame(
        {
            "steps on the first": branches,
            "test loss": losses.mean(axis=0),
            "damage": damage.mean(axis=0),
            "lowest": damage.min(axis=0),
            "highest": damage.max(axis=0),
        }
    )
    _show(rows, "held-out entries of the second matrix (1 = predicting 0)", out)
    if completed is not None:
        best = int(losses.mean(axis=0).argmin())
        with atomic_path(completed) as temporary, open(temporary, "wb") as file:
            np.save(file, np.mean([one.completed[best] for one in found], axis=0))
        Console().print(f"written to {completed}", highlight=False)


def views(
    table: Annotated[Path, typer.Argument(help="CSV or TSV: numbers in two groups, and a label")],
    first: Annotated[
        str, typer.Option(help="columns of pathway a, with commas; from:to for a run")
    ],
    second: Annotated[str, typer.Option(help="columns of pathway b, which has the deficit")],
    label: Annotated[str, typer.Option(help="column to predict: a class or a number")] = "label",
    kind: Annotated[str, typer.Option(help="gate_path or blur")] = "gate_path",
    sigma: Annotated[float, typer.Option(help="width of the blur, in columns")] = 2.0,
    onsets: ONSETS = "0,250,500,1000,2000",
    length: LENGTH = 500,
    depth: Annotated[int, typer.Option(min=1)] = 3,
    width: Annotated[int, typer.Option(help="units of each hidden layer", min=1)] = 32,
    steps: Annotated[int, typer.Option(min=1)] = 4000,
    rate: Annotated[float, typer.Option(help="learning rate")] = 0.2,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    out: OUT = None,
) -> None:
    """When does a temporary deficit of one group of columns lose it its share for good?"""
    if kind not in ("gate_path", "blur"):
        raise DataError("kind of deficit", value=kind, expected="gate_path or blur")
    task = read_views(table, first, second, label, sigma if kind == "blur" else None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        found = view_scan(
            compress(task), _integers(onsets, "onsets"), length, seeds,
            deficit=DeficitSchedule(kind), depth=depth, width=width, steps=steps, rate=rate,  # type: ignore[arg-type]
            progress=lambda steps: track(steps, "training", console=Console(stderr=True)),
        )  # fmt: skip
    _show(
        found.frame(),
        f"loss of pathway b's share; without a deficit {found.baseline.mean():.3f}",
        out,
    )
    for warning in said:
        Console().print(f"careful: {warning.message}")
    if not found.window:
        Console().print("no critical period: no damage is certain over these seeds")


def read_views(path: Path, first: str, second: str, label: str, sigma: float | None) -> PathwayTask:
    """A table as the task of two pathways: columns centred, classes one-hot and centred.

    Raises `DataError` naming the file and the column for unknown or constant columns, a column in
    both groups, an empty cell, or a single class.
    """
    header = read_table(path, {label: "str"})
    names = [str(name) for name in header.columns]
    groups = [_columns(path, text, names) for text in (first, second)]
    both = set(groups[0]) & set(groups[1])
    if both or label in {*groups[0], *groups[1]}:
        twice = sorted(both)[0] if both else label
        raise DataError("column is used twice", path=path, column=twice)
    frame = read_table(path, dict.fromkeys([*groups[0], *groups[1]], "float"))
    sides = [_scaled(path, frame[group]) for group in groups]
    blurred = None if sigma is None else blur(sides[1], (sides[1].shape[1],), sigma)
    return two_views(*sides, _targets(path, header[label]), blurred)


def _columns(path: Path, text: str, names: list[str]) -> list[str]:
    found: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        ends = part.split(":") if ":" in part and part not in names else [part, part]
        for end in ends:
            if end not in names:
                shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
                raise DataError("no such column", path=path, value=end, expected=shown)
        start, stop = names.index(ends[0]), names.index(ends[-1])
        found += names[start : stop + 1]
    return found


def _scaled(path: Path, frame: pd.DataFrame) -> np.ndarray:
    values = frame.to_numpy(dtype=float)
    for place, name in enumerate(frame.columns):
        empty = np.flatnonzero(np.isnan(values[:, place]))
        if len(empty):
            raise DataError("empty cell", path=path, row=int(empty[0]) + 2, column=str(name))
    centred = values - values.mean(axis=0)
    spread = centred.std(axis=0)
    if not spread.any():
        raise DataError("columns are all constant", path=path, column=str(frame.columns[0]))
    # One scale for the whole group, so that constant columns (edges of images) stay at 0 and no
    # direction has a variance above 1: a learning rate then suits any number of columns.
    return centred / (np.linalg.norm(centred, 2) / len(centred) ** 0.5)


def _targets(path: Path, column: pd.Series[Any]) -> np.ndarray:
    numbers = pd.to_numeric(column, errors="coerce")
    kinds = sorted(set(column))
    if len(kinds) < 2:
        raise DataError("only one value to predict", path=path, column=str(column.name))
    if numbers.notna().all() and len(kinds) > 20:
        values = numbers.to_numpy(dtype=float)[:, None]
        return (values - values.mean()) / values.std()
    one_hot = (column.to_numpy()[:, None] == np.array(kinds, dtype=object)).astype(float)
    return one_hot - one_hot.mean(axis=0)


def _integers(text: str, name: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise DataError(name, value=text, expected="whole numbers with commas") from error


def _bar(title: str) -> Steps:
    def steps(total: int, _: Any) -> Iterator[int]:
        loop: Iterable[int] = range(1, total + 1)
        yield from track(loop, title, console=Console(stderr=True))

    return steps


def _show(frame: pd.DataFrame, title: str, out: Path | None) -> None:
    shown = Table(title=title)
    for name in frame.columns:
        shown.add_column(str(name), justify="right")
    for values in frame.itertuples(index=False):
        shown.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
    Console().print(shown)
    if out is not None:
        write_table(out, frame)
        Console().print(f"written to {out}", highlight=False)
