"""The picture of the study: calibration and accuracy by method, and what lies behind them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from peira.engine import verdict as v
from peira.engine.figures import GREY, INK, quiet, slide, title
from peira.engine.verdict import mean_interval
from peira.weights.bd_kd import judge
from peira.weights.bd_kd.judge import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {
    "ce": "labels alone",
    "smoothing": "label smoothing",
    "scaled": "labels, then temperature",
    "kd": "frozen teacher (KD)",
    "dml": "mutual learning (DML)",
    "kdcl": "KDCL",
    "switokd": "SwitOKD",
    "dml-matched": "forward, weight 3",
    "reverse": "reverse",
    "sum": "forward + reverse",
    "sum-matched": "forward + reverse, weight 3",
    "smooth": "BD-KD, smooth rule",
    "inverted": "BD-KD, weights swapped",
    "bdkd": "BD-KD",
}
OURS, PEER, OTHER = "#d1495b", "#00798c", "#edae49"
COLOURS = {
    "bdkd": OURS, "inverted": OTHER, "dml": PEER, "sum": INK, "sum-matched": GREY,
    "ce": GREY, "kd": "#7a5195",
}  # fmt: skip


def draw(table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Six panels; means and 95% intervals over seeds."""
    figure = slide(15.0, 8.2)
    grid = figure.add_gridspec(2, 4, width_ratios=(1.15, 0.8, 1.05, 1.05))
    first = figure.add_subplot(grid[:, 0])
    axes = [first, figure.add_subplot(grid[:, 1], sharey=first)]
    axes += [figure.add_subplot(grid[row, column]) for row in (0, 1) for column in (2, 3)]
    for one in axes:
        quiet(one)
    main, clean = judge.main_setting(table), judge.clean_setting(table)
    methods = [m for m in NAMES if len(_values(table, main, m, "ece"))]
    settings = {_label(base): base for base in (main, clean) if base}
    _by_method(axes[0], table, settings, methods, "ece")
    _by_method(axes[1], table, {_label(main): main}, methods, "accuracy")
    axes[0].set_yticks(range(len(methods)), [NAMES[m] for m in methods])
    for label, method in zip(axes[0].get_yticklabels(), methods, strict=True):
        label.set(color=OURS if method == "bdkd" else INK)
    axes[0].set_ylim(len(methods) - 0.4, -1.1)
    axes[1].tick_params(labelleft=False)
    title(axes[0], "Calibration of the student")
    title(axes[1], "and its accuracy")
    axes[0].set_xlabel("expected calibration error (%), 15 bins")
    axes[1].set_xlabel("test accuracy (%)")
    _entropies(axes[2], curves, main)
    _capacity(axes[3], table, main)
    _simulator(axes[4], table)
    _temperatures(axes[5], table, main)
    return figure


def _label(base: Group) -> str:
    wrong = base.get("noise", 0)
    return f"{base.get('task', '')}, {f'{wrong:.0%} wrong' if wrong else 'clean'} labels"


def _values(table: pd.DataFrame, base: Group, method: str, metric: str) -> np.ndarray:
    if not base or metric not in table:
        return np.empty(0)
    return v.select(table, judge.group(base, method))[metric].dropna().to_numpy(dtype=float)


def _mean(values: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean and the two lengths of its error bar."""
    middle = float(values.mean())
    low, high = mean_interval(values)
    spread = np.nan_to_num(np.array([[middle - low], [high - middle]]))
    return middle, spread


def _by_method(
    axes: Axes,
    table: pd.DataFrame,
    settings: dict[str, Group],
    methods: Sequence[str],
    metric: str,
) -> None:
    for number, (label, base) in enumerate(settings.items()):
        shown = False
        for place, method in enumerate(methods):
            values = 100 * _values(table, base, method, metric)
            if not len(values):
                continue
            middle, spread = _mean(values)
            colour = OURS if method == "bdkd" else INK
            axes.errorbar(
                middle, place + 0.16 * number, xerr=spread, fmt="o" if number == 0 else "s",
                color=colour, mfc=colour if number == 0 else "white", ms=6, lw=1.3, capsize=2,
                label=None if shown else label,
            )  # fmt: skip
            shown = True
    axes.grid(axis="x", color="#e8eaed", lw=0.8)
    axes.set_axisbelow(True)
    if len(settings) > 1 and axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=2)


def _entropies(axes: Axes, curves: pd.DataFrame, base: Group) -> None:
    title(axes, "Entropies come together")
    axes.set(xlabel="epoch", ylabel="mean |H$_s$ - H$_t$| at T (nats)")
    if not base or not len(curves):
        return
    rows = curves[curves["name"] == "entropy_gap"]
    for method in ("dml", "sum", "sum-matched", "inverted", "bdkd"):
        part = v.select(rows, judge.group(base, method))
        if not len(part):
            continue
        wide = part.pivot_table(index="step", columns="seed", values="value")
        bounds = np.array([mean_interval(row) for row in wide.to_numpy(dtype=float)])
        axes.plot(wide.index, wide.mean(axis=1), color=COLOURS[method], lw=1.8, label=NAMES[method])
        axes.fill_between(wide.index, *bounds.T, color=COLOURS[method], alpha=0.15, lw=0)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)


def _capacity(axes: Axes, table: pd.DataFrame, base: Group) -> None:
    title(axes, "Accuracy by the teacher's size")
    axes.set(
        xscale="log", xlabel="parameters of teacher / student", ylabel="student's accuracy (%)"
    )
    axes.set_xlim(1, 300)
    if not base:
        return
    alone = 100 * _values(table, base, "ce", "accuracy")
    if len(alone):
        axes.axhline(alone.mean(), color=GREY, lw=1.5, ls="--", label=NAMES["ce"])
        axes.axhspan(*mean_interval(alone), color=GREY, alpha=0.12, lw=0)
    free = {name: value for name, value in base.items() if name != "teacher"}
    for method, shift in (("dml", 0.97), ("bdkd", 1.03)):
        rows = v.select(table, {**free, "method": method})
        for number, (_, part) in enumerate(rows.groupby("teacher")):
            middle, spread = _mean(100 * part["accuracy"].to_numpy(dtype=float))
            axes.errorbar(
                part["size_ratio"].iloc[0] * shift, middle, spread, fmt="o", ms=6, lw=1.3,
                capsize=2, color=COLOURS[method], label=None if number else NAMES[method],
            )  # fmt: skip
    axes.legend(frameon=False, fontsize=8)


def _simulator(axes: Axes, table: pd.DataFrame) -> None:
    title(axes, "Known posterior: is ECE the true error?")
    axes.set(xlabel="true calibration error (%)", ylabel="ECE of 2,000 samples (%)")
    base = judge.simulator_setting(table)
    if not base or "true_error" not in table:
        axes.text(0.5, 0.5, "not in this scale", ha="center", color=GREY, transform=axes.transAxes)
        return
    highest = 0.0
    for method in NAMES:
        x, y = (100 * _values(table, base, method, name) for name in ("true_error", "ece"))
        if not len(x):
            continue
        colour = COLOURS.get(method, INK)
        axes.scatter(x, y, s=9, color=colour, alpha=0.35, lw=0)
        (mx, sx), (my, sy) = _mean(x), _mean(y)
        axes.errorbar(mx, my, sy, sx, "o", ms=6, color=colour, lw=1.3, label=NAMES[method])
        highest = max(highest, x.max(), y.max())
    axes.plot([0, highest], [0, highest], color=GREY, lw=1, ls="--")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _temperatures(axes: Axes, table: pd.DataFrame, base: Group) -> None:
    title(axes, "Fitted on validation data")
    axes.set(xlabel="fitted temperature (1: nothing to correct)")
    methods = [m for m in ("ce", "smoothing", "kd", "dml", "kdcl", "switokd", "sum", "bdkd")
               if len(_values(table, base, m, "temperature"))]  # fmt: skip
    for place, method in enumerate(methods):
        values = np.log(_values(table, base, method, "temperature"))
        middle, spread = _mean(values)
        ends = np.exp([[middle - spread[0, 0]], [middle + spread[1, 0]]])
        axes.errorbar(
            np.exp(middle), place, xerr=abs(ends - np.exp(middle)), fmt="o", ms=6, lw=1.3,
            capsize=2, color=OURS if method == "bdkd" else INK,
        )  # fmt: skip
    axes.axvline(1, color=GREY, lw=1, ls="--")
    axes.set_yticks(range(len(methods)), [NAMES[m] for m in methods])
    axes.invert_yaxis()
