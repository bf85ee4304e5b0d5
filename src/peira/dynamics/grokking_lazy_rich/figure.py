"""The study's picture: one run explained, its test loss taken apart, what moves the delay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from peira.engine.figures import GREY, INK, quiet, slide, title
from peira.engine.verdict import mean_interval, select

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN, TEST = "#2e6f95", "#d1495b"
PARTS = {"alignment": "#e0a030", "linear": "#74a9cf", "variance": "#57606a"}
MAIN: Mapping[str, Any] = {
    "task": "polynomial",
    "method": "descent",
    "alpha": 1.0,
    "eps": 0.05,
    "samples": 220,
    "width": 500,
    "centred": True,
    "norm": 1.0,
    "aligned": 0.0,
    "decay": 0.0,
}
# Panel D, top to bottom: label -> fields beside the grokking network's.
CONDITIONS: Mapping[str, Mapping[str, Any]] = {
    "grokking network": {},
    "  gradient flow": {"method": "flow"},
    "  infinitely wide": {"width": None},
    "60 samples": {"samples": 60},
    "150 samples": {"samples": 150},
    "800 samples": {"samples": 800},
    "eps = 0.2": {"eps": 0.2},
    "eps = 1": {"eps": 1.0},
    "initial weights x 0.5": {"norm": 0.5},
    "initial weights x 2": {"norm": 2.0},
    "half-way to the solution": {"aligned": 0.5},
    "  and not centred": {"aligned": 0.5, "centred": False},
    "alpha = 4": {"alpha": 4.0},
    "alpha = 4, weight decay": {"alpha": 4.0, "decay": 1e-4, "centred": False},
}


def draw(table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Four panels on one slide (13.3 x 7.5 inches)."""
    figure = slide()
    axes = figure.subplots(2, 2, width_ratios=[1.25, 1])
    runs = _main_runs(table, curves)
    _one_run(axes[0, 0], runs)
    _parts(axes[1, 0], runs)
    _laziness(axes[0, 1], table)
    _conditions(axes[1, 1], table)
    for each in axes.flat:
        quiet(each)
    return figure


def _main_runs(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Curves of the grokking network and of its gradient flow, the typical seed numbered 0.

    Typical is the median delay. At scales without that network the first cell stands for it.
    """
    shape = dict(MAIN)
    if not len(select(table, shape)):
        shape = {name: table.iloc[0][name] for name in MAIN}
    rows = select(table, shape)
    if "gap" in rows and rows["gap"].notna().any():
        rows = rows.sort_values("gap")
    typical = int(rows["seed"].iloc[len(rows) // 2])
    runs = {method: select(curves, {**shape, "method": method}) for method in ("descent", "flow")}
    line = rows.loc[rows["seed"] == typical, "kernel_test"]
    return {
        **{method: run[run["seed"] == typical] for method, run in runs.items()},
        "others": runs["descent"][runs["descent"]["seed"] != typical],
        "kernel": line,
    }


def _curve(rows: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one run's curve, without the moment before training."""
    rows = rows[(rows["name"] == name) & (rows["step"] > 0)].sort_values("step")
    return rows["step"].to_numpy(dtype=float), rows["value"].to_numpy(dtype=float)


def _faint(axes: Axes, others: pd.DataFrame, name: str, colour: str) -> None:
    for _, run in others.groupby("seed"):
        axes.plot(*_curve(run, name), color=colour, lw=0.8, alpha=0.35)


def _one_run(axes: Axes, runs: dict[str, pd.DataFrame]) -> None:
    for name, colour, label in (("train", TRAIN, "training loss"), ("test", TEST, "test loss")):
        _faint(axes, runs["others"], name, colour)
        axes.plot(*_curve(runs["descent"], name), color=colour, lw=2.4, label=label)
        steps, values = (part[::4] for part in _curve(runs["flow"], name))
        axes.plot(
            steps, values, "o", color=colour, ms=4.5, mfc="white", mew=1.1, zorder=3,
            label="  order parameters' equation",
        )  # fmt: skip
        twin = _curve(runs["descent"], f"twin_{name}")
        axes.plot(*twin, color=colour, lw=1.5, ls="--", label="  linearised twin")
    for height in runs["kernel"].dropna():
        axes.axhline(height, color=INK, lw=1.3, ls=":", label="regression with initial kernel")
    axes.axhline(0.05, color=GREY, lw=0.8, zorder=0)
    axes.annotate(
        "level of the delay", (0.995, 0.05), (0, 3), xycoords=("axes fraction", "data"),
        textcoords="offset points", fontsize=8, color=GREY, ha="right",
    )  # fmt: skip
    _log_axes(axes, (4e-3, 2.2))
    title(axes, "Grokking without regularisation (faint: other seeds)")


def _parts(axes: Axes, runs: dict[str, pd.DataFrame]) -> None:
    for name, colour in PARTS.items():
        _faint(axes, runs["others"], f"{name}_part", colour)
        curve = _curve(runs["descent"], f"{name}_part")
        axes.plot(*curve, color=colour, lw=2, label=f"{name} part")
    axes.plot(*_curve(runs["descent"], "test"), color=TEST, lw=2.4, label="sum = exact test loss")
    steps, values = (part[::3] for part in _curve(runs["descent"], "sampled"))
    axes.plot(steps, values, "+", color=INK, ms=7, label="loss on 1,000 test inputs", zorder=4)
    _log_axes(axes, (2e-4, 2.2))
    title(axes, "The test loss taken apart")


def _log_axes(axes: Axes, limits: tuple[float, float]) -> None:
    axes.set(
        xscale="log", yscale="log", ylim=limits, xlabel="training steps",
        ylabel="loss (start = 1)",
    )  # fmt: skip
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False, fontsize=8, loc="lower left")


def _gaps(table: pd.DataFrame, where: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Delays by seed, and which are lower bounds because the test loss did not come down."""
    if "gap" not in table:
        return np.empty(0), np.empty(0, bool)
    rows = select(table, where)
    rows = rows[rows["gap"].notna()]
    never = rows["gap_censored"] if "gap_censored" in rows else np.zeros(len(rows))
    return rows["gap"].to_numpy(dtype=float), np.asarray(never, dtype=float) == 1


def _laziness(axes: Axes, table: pd.DataFrame) -> None:
    weights = {alpha: {**MAIN, "norm": alpha} for alpha in (0.5, 1.0, 2.0)}
    digits = {"task": "digits", "centred": True}
    alphas = sorted(set(table["alpha"]))
    series = (
        ("polynomial, alpha", TEST, "o", {a: {**MAIN, "alpha": a} for a in alphas}),
        ("polynomial, initial weights x", "#e0a030", "s", weights),
        ("digits, alpha (level 0.3)", TRAIN, "D", {a: {**digits, "alpha": a} for a in alphas}),
    )
    for label, colour, marker, cells in series:
        at, middle = [], []
        for value, where in cells.items():
            gaps, never = _gaps(table, where)
            if not len(gaps):
                continue
            level = np.full(len(gaps), value)
            axes.plot(level[~never], gaps[~never], marker, color=colour, ms=5, alpha=0.6, mew=0)
            axes.plot(level[never], gaps[never], "^", color=colour, ms=6, mfc="none")
            if not never.any():
                at.append(value)
                middle.append(float(np.exp(np.log(gaps).mean())))
        axes.plot(at, middle, color=colour, lw=1.6, marker=marker, ms=4, label=label)
    axes.set(
        xscale="log", yscale="log", xlabel="scale (right: lazier)",
        ylabel="test step / training step", ylim=(0.9, 90),
    )  # fmt: skip
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.yaxis.set_minor_formatter(lambda x, _: f"{x:g}x" if f"{x:e}"[0] in "25" else "")
    axes.legend(frameon=False, fontsize=8.5, loc="upper right")
    title(axes, "Laziness sets the delay (triangles: at least)")


def _conditions(axes: Axes, table: pd.DataFrame) -> None:
    found = [(label, *_gaps(table, {**MAIN, **where})) for label, where in CONDITIONS.items()]
    found = [row for row in found if len(select(table, {**MAIN, **CONDITIONS[row[0]]}))][::-1]
    for place, (_, gaps, never) in enumerate(found):
        level = np.full(len(gaps), place)
        colour = GREY if never.all() else INK
        axes.plot(gaps[~never], level[~never], "o", color=colour, ms=4.5, alpha=0.5, mew=0)
        axes.plot(gaps[never], level[never], ">", color=GREY, ms=6, mfc="none")
        text, beyond = "does not fit", 1.0
        if len(gaps):
            logs = np.log(gaps)
            centre, interval = float(np.exp(logs.mean())), np.exp(mean_interval(logs))
            beyond = float(gaps.max())
            if never.any():
                text = f"never in {never.sum()} of {len(never)}"
            else:
                axes.plot(interval, [place, place], color=colour, lw=2)
                axes.plot(centre, place, "o", color=colour, ms=7)
                text, beyond = f"{centre:.1f}x", float(np.nanmax([beyond, interval[1]]))
        axes.annotate(
            text, (beyond, place), (7, 0), textcoords="offset points", va="center", fontsize=8.5,
            color=colour,
        )  # fmt: skip
    axes.axvline(1, color=GREY, lw=1, ls="--", zorder=0)
    axes.set_yticks(range(len(found)), [label for label, *_ in found])
    axes.set(xscale="log", xlabel="test step / training step", xlim=(0.8, 2e4))
    axes.xaxis.set_major_formatter("{x:,.0f}x")
    title(axes, "What else moves it: seeds, mean, 95% interval")
