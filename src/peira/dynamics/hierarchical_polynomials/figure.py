"""The study's picture: recovery over n/d^k, errors of all learners, samples needed, controls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from peira.dynamics.hierarchical_polynomials import study
from peira.engine.figures import GREY, INK, quiet, slide, title
from peira.engine.verdict import mean_interval, select

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RED, BLUE, SKY, SAND, GREEN = "#d1495b", "#2e6f95", "#74a9cf", "#e0a030", "#5b8c5a"
LEARNERS = {
    "three-layer": ("three layers, layer by layer", RED, "o-"),
    "classical": ("polynomial, then spline", SAND, "s-"),
    "oracle": ("true p, fitted g", GREEN, "^-"),
    "ntk": ("kernel: NTK", BLUE, "o--"),
    "rbf": ("kernel: RBF", SKY, "s--"),
    "polynomial": ("kernel: polynomial, degree kq", "#1b4965", "^--"),
    "random-features": ("random features, degree kq", GREY, "v:"),
    "two-layer": ("two layers by Adam", INK, "P"),
    "end-to-end": ("three layers by Adam, end to end", INK, "X"),
}


def draw(table: pd.DataFrame) -> Figure:
    """Four panels on one slide (13.3 x 8.4 inches)."""
    figure = slide(13.3, 8.4)
    panels = figure.subplots(2, 2)
    found = study.of_most_draws(table)
    _recovery(panels[0, 0], found)
    _errors(panels[0, 1], table)
    _needed(panels[1, 0], found)
    _bias(panels[1, 1], found)
    for axes in panels.flat:
        quiet(axes)
    return figure


def _recovery(axes: Axes, found: pd.DataFrame) -> None:
    from matplotlib import colormaps

    for degree, style in ((2, "o-"), (3, "D:")):
        rows = select(found, study.recovery(degree=degree))
        dimensions = sorted(rows["dimension"].unique())
        shades = colormaps["viridis" if degree == 2 else "autumn"](
            np.linspace(0, 0.85 if degree == 2 else 0.6, len(dimensions))
        )
        for d, colour in zip(dimensions, shades, strict=True):
            part = rows[rows["dimension"] == d]
            _line(axes, part, "ratio", "correlation", style, colour, f"k = {degree}, d = {d}")
    axes.axhline(study.LEVEL, color=GREY, lw=1, ls="--", zorder=0)
    axes.set(xlabel="samples of stage 1 / $d^k$", ylabel="correlation of the feature with p(x)")
    _log2(axes)
    axes.set_ylim(0, 1)
    _legend(axes, fontsize=8, ncols=2, loc="lower right")
    title(axes, "A  The feature is found from about $d^k$ samples")


def _errors(axes: Axes, table: pd.DataFrame) -> None:
    dimension = _compared_dimension(table)
    for place, (method, (label, colour, style)) in enumerate(LEARNERS.items()):
        rows = select(table, study.compared(method, dimension=dimension))
        if len(rows):
            # Side by side, so that intervals at the same number of samples can be told apart.
            shift = 2 ** (0.04 * (place - len(LEARNERS) / 2))
            rows = rows.assign(total=2 * rows["ratio"] * shift)
            _line(axes, rows, "total", "nmse", style, colour, label, median=True)
    axes.set(xlabel="all samples / $d^2$", ylabel="test error / variance of the label")
    axes.axhline(1, color=GREY, lw=1, ls="--", zorder=0)
    _log2(axes)
    axes.set_ylim(0, 1.6)
    _legend(axes, fontsize=7.5, loc="lower left", bbox_to_anchor=(0, 0.06), ncols=2)
    title(axes, f"B  Equal data, g = z + He$_3$/√6, d = {dimension}: median of seeds, range")


def _compared_dimension(table: pd.DataFrame) -> int:
    """The dimension in which most learners were compared, 16 if it is one of them."""
    rows = table[table["draws"] == 1]
    methods = rows.groupby("dimension")["method"].nunique()
    return 16 if methods.get(16, 0) >= 3 else int(methods.idxmax())


def _needed(axes: Axes, found: pd.DataFrame) -> None:
    needed = study.needed_rows(found).dropna()
    if not len(needed):
        axes.set_axis_off()
        return
    _line(axes, needed, "dimension", "rows_needed", "o", RED, "measured")
    middle = needed.groupby("dimension")["rows_needed"].apply(lambda n: np.exp(np.log(n).mean()))
    d = np.array([middle.index.min(), middle.index.max()], dtype=float)
    slope, intercept = np.polyfit(np.log(needed["dimension"]), np.log(needed["rows_needed"]), 1)
    axes.plot(d, np.exp(intercept) * d**slope, color=RED, lw=1.5, label=f"fit: d$^{{{slope:.2f}}}$")
    centre = float(np.exp(np.mean(np.log(middle) - 2 * np.log(middle.index.to_numpy(float)))))
    axes.plot(d, centre * d**2, color=GREY, ls="--", lw=1.5, label="d$^2$, the paper")
    axes.plot(
        d,
        centre * d**2 * (d / d[0]) ** 2,
        color=BLUE,
        ls=":",
        lw=1.5,
        label="d$^4$, earlier guarantee",
    )
    axes.set(
        xscale="log", yscale="log", xlabel="dimension d",
        ylabel="samples of stage 1",
    )  # fmt: skip
    axes.set_xticks(middle.index, [str(d) for d in middle.index])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:,.0f}")
    _legend(axes, fontsize=9)
    title(axes, f"C  Samples of stage 1 for correlation {study.LEVEL:g} (k = 2)")


def _bias(axes: Axes, found: pd.DataFrame) -> None:
    conditions: list[tuple[str, dict[str, Any], str, str]] = [
        (f"g with He$_2$, d = {d}", {"dimension": d, "link": "even"}, "o-", colour)
        for d, colour in ((10, SKY), (16, BLUE), (24, "#1b4965"))
    ]
    two = {"spread": "concentrated", "link": "even"}
    conditions += [
        ("the same, p of two directions, d = 16", {"dimension": 16, **two}, "s-", SAND),
        ("g = z² - 1 (E g' = 0), d = 16", {"dimension": 16, "link": "square"}, "X", RED),
    ]
    for label, where, style, colour in conditions:
        rows = select(found, study.recovery(degree=2, **where))
        if not len(rows):
            continue
        _line(axes, rows, "ratio", "correlation", style, colour, label)
        if where["link"] == "even":
            axes.axhline(rows["reachable"].mean(), color=colour, lw=1, ls="--", zorder=0)
    axes.set(xlabel="samples of stage 1 / $d^2$", ylabel="correlation of the feature with p(x)")
    _log2(axes)
    axes.set_ylim(0, 1)
    _legend(axes, fontsize=8, loc="lower left", bbox_to_anchor=(0, 0.02))
    title(axes, "D  Where it must fail (dashed: limit for infinite n, from theory)")


def _line(
    axes: Axes,
    rows: pd.DataFrame,
    x: str,
    y: str,
    style: str,
    colour: Any,
    label: str,
    median: bool = False,
) -> None:
    """Mean over seeds and its 95% interval, or median and range."""
    centres, ends = [], []
    groups = rows.groupby(x)[y]
    for _, values in groups:
        numbers = values.to_numpy(dtype=float)
        centres.append(np.median(numbers) if median else numbers.mean())
        ends.append((numbers.min(), numbers.max()) if median else mean_interval(numbers))
    places = np.array(sorted(rows[x].unique()), dtype=float)
    low, high = np.array(ends).T
    spread = np.abs(np.nan_to_num(np.array([centres - low, high - centres])))
    axes.errorbar(
        places, centres, spread, fmt=style, color=colour, lw=1.6, ms=5, elinewidth=1,
        capsize=2, label=label,
    )  # fmt: skip


def _legend(axes: Axes, **settings: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, **settings)


def _log2(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
