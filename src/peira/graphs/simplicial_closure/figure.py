"""The picture of the study, drawn from its table."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest

from peira.engine.verdict import mean_interval
from peira.graphs.simplicial_closure.closures import TYPES3
from peira.graphs.simplicial_closure.scores import MEAN_POWERS
from peira.graphs.simplicial_closure.structure import expected_fraction_open

COLOURS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d", "#666666")
WALKS = ("katz", "weighted-katz", "ppr", "weighted-ppr")


def draw(table: pd.DataFrame) -> Figure:
    """Three panels: closure probability by type, improvement by power of the mean, null model.

    Args:
        table: the study's table, one row per cell and seed; panels without rows stay empty.
    """
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1.1, 0.9))
    _closure_panel(left, table[table["part"] == "closures"])
    _means_panel(middle, table[table["part"] == "scores"])
    _null_panel(right, table[table["part"] == "null"])
    return figure


def _closure_panel(axes: Axes, rows: pd.DataFrame) -> None:
    position = np.arange(len(TYPES3))
    for number, (name, part) in enumerate(rows.groupby("data", sort=False)):
        colour = COLOURS[number % len(COLOURS)]
        p, low, high = np.array([_proportion(part.iloc[0], kind) for kind in TYPES3]).T
        x = position + 0.12 * (number - (rows["data"].nunique() - 1) / 2)
        some = p > 0
        axes.errorbar(
            x[some], p[some], [(p - low)[some], (high - p)[some]], fmt="o", markersize=4,
            elinewidth=1, color=colour, label=name,
        )  # fmt: skip
        axes.plot(x[p == 0], high[p == 0], "v", color=colour, markerfacecolor="none")
    axes.set_yscale("log")
    axes.set_xticks(position, TYPES3, rotation=45)
    axes.set_xlabel("ties of the three nodes (0 none, 1 weak, 2 strong)")
    axes.set_ylabel("closure probability (95% interval)")
    axes.set_title("More and stronger ties close more often\n▽ none closed: upper limit")
    if len(rows):
        axes.legend(frameon=False, fontsize="small", loc="lower right")


def _proportion(row: pd.Series, kind: str) -> tuple[float, float, float]:
    """Closed over open with its exact interval; NaN where nothing was open."""
    opened, closed = int(row[f"open {kind}"]), int(row[f"closed {kind}"])
    if opened == 0:
        return np.nan, np.nan, np.nan
    interval = binomtest(closed, opened).proportion_ci(0.95, method="exact")
    return closed / opened, interval.low, interval.high


def _means_panel(axes: Axes, rows: pd.DataFrame) -> None:
    names = [f"mean:{p:g}" for p in MEAN_POWERS]
    powers = np.clip(MEAN_POWERS, -4.6, 4.6)
    for number, (name, part) in enumerate(rows.groupby("data", sort=False)):
        colour = COLOURS[number % len(COLOURS)]
        for labels, style in (("correct", "-"), ("published", ":")):
            mine = part[part["labels"] == labels]
            if not len(mine):
                continue
            values = mine[names].iloc[0].to_numpy(dtype=float)
            label = name if labels == "correct" else None
            axes.plot(powers, values, style, color=colour, linewidth=1.8, label=label)
            if labels == "correct":
                best_walk = mine[list(WALKS)].iloc[0].max()
                axes.plot(4.95, best_walk, "<", color=colour, clip_on=False)
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.axvspan(-1, 1, color="grey", alpha=0.12, linewidth=0)
    axes.set_xticks([-4.6, -4, -2, 0, 2, 4, 4.6], ["min", "", "-2", "0", "2", "", "max"])
    axes.set_xlabel("power p of the generalised mean of the three weights")
    axes.set_ylabel("average precision over random")
    axes.set_title(
        "Ranking open triangles: solid, all closures;\ndotted, published labels; ◂ best walk score"
    )
    if len(rows):
        axes.legend(frameon=False, fontsize="small")


def _null_panel(axes: Axes, rows: pd.DataFrame) -> None:
    for number, (n, part) in enumerate(rows.groupby("n")):
        colour = COLOURS[number % len(COLOURS)]
        grouped = part.groupby("b")["fraction_open"]
        b = np.array(sorted(part["b"].unique()))
        mean = grouped.mean().to_numpy()
        low, high = np.array([mean_interval(group.to_numpy()) for _, group in grouped]).T
        axes.errorbar(b, mean, [mean - low, high - mean], fmt="o", color=colour, label=f"n = {n}")
        fine = np.linspace(b.min(), b.max(), 100)
        axes.plot(fine, [expected_fraction_open(int(n), x) for x in fine], color=colour)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("b (a triple is a simplex with p = n$^{-b}$)")
    axes.set_ylabel("fraction of triangles open (95% interval)")
    axes.set_title("Random triples\nlines: expectation")
    if len(rows):
        axes.legend(frameon=False, fontsize="small")
