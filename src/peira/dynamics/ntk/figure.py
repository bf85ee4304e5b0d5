"""The study's picture: kernels and their drift, rates of components, ensembles, errors by width."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from peira.engine.figures import GREY, INK
from peira.engine.verdict import mean_interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NARROW, MIDDLE, WIDE, ACCENT = "#e0a030", "#5b8e7d", "#2e6f95", "#d1495b"


def draw(table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Four panels: the paper's figures 1 to 3, and errors against width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 8.4), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    draw_errors(axes[1], table)
    for panel, ax, part in (
        (draw_kernels, axes[0], _of(curves, "circle", parametrisation="ntk")),
        (draw_ensemble, axes[2], _of(curves, "ensemble")),
        (draw_rates, axes[3], _of(curves, "component")),
    ):
        if len(part):
            panel(ax, part)
        else:
            ax.set_title("not measured")
    for letter, ax in zip("ABCD", axes, strict=True):
        ax.set_title(f"{letter}   {ax.get_title()}", loc="left", fontsize=11, color=INK)
        ax.set_title("")
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def draw_kernels(ax: Axes, curves: pd.DataFrame) -> None:
    """The kernel on the circle for the narrowest and the widest networks, before and after."""
    ax.set_title("The tangent kernel of a few networks, before and after training")
    widths = _ends(curves["width"])
    for width, colour in zip(widths, (NARROW, WIDE), strict=False):
        part = curves[curves["width"] == width]
        angle = _column(part, "angle").groupby(level="step").first().to_numpy()
        for name, style in (("kernel_start", "-"), ("kernel_end", ":")):
            for i, (_, values) in enumerate(_column(part, name).groupby(level="seed")):
                label = f"width {int(width):,}" if i == 0 and style == "-" else None
                ax.plot(
                    angle, values.to_numpy(), style, color=colour, lw=1.2, alpha=0.8, label=label
                )
    ax.plot([], [], "-", color=GREY, label="at the start")
    ax.plot([], [], ":", color=GREY, label="after training")
    ax.set_xlabel("angle of x on the circle (radians)")
    ax.set_ylabel("kernel of (1, 0) with x")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=9)


def draw_errors(ax: Axes, table: pd.DataFrame) -> None:
    """What vanishes with width: distance to the limit, drift, error of the forecast."""
    ax.set_title("Distances to the infinite-width limit (mean and 95% interval over seeds)")
    lines = {
        "kernel_error": ("start", "kernel at the start, to the limit", MIDDLE),
        "kernel_change": ("circle", "kernel after training, to the start", ACCENT),
        "forecast_error": ("circle", "function after training, to the forecast (of |y|)", WIDE),
    }
    every: list[float] = []
    for name in [name for name in lines if name in table]:
        experiment, label, colour = lines[name]
        rows = table[
            (table["experiment"] == experiment) & (table["parametrisation"] == "ntk")
        ].dropna(subset=[name])
        groups = rows.groupby("width")[name]
        mean, every = groups.mean(), [*every, *groups.groups]
        bars = np.array([mean_interval(values.to_numpy()) for _, values in groups]).reshape(-1, 2)
        spread = np.abs(bars.T - mean.to_numpy())
        exponent = np.polyfit(np.log(mean.index), np.log(mean), 1)[0] if len(mean) > 1 else np.nan
        ax.errorbar(
            mean.index, mean, spread, fmt="o-", ms=4, lw=1.4, capsize=2, color=colour,
            label=f"{label}: width$^{{{exponent:.2f}}}$",
        )  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ticks = sorted(set(every))
    ax.set_xticks(ticks, [f"{int(tick):,}" for tick in ticks], fontsize=9)
    ax.minorticks_off()
    ax.set_xlabel("width (neurons of a hidden layer)")
    ax.set_ylabel("relative distance")
    if every:
        ax.legend(frameon=False, fontsize=9, loc="lower left")


def draw_ensemble(ax: Axes, curves: pd.DataFrame) -> None:
    """Percentiles of many trained networks on the limit's Gaussian process."""
    from peira.dynamics.ntk.study import GRID, TRAINED

    ax.set_title("Networks as a Gaussian process: points are networks, lines the limit")
    widest = curves[curves["width"] == curves["width"].max()]
    widest = widest[widest["seed"] == widest["seed"].min()]
    for part, colour, label in (("start", GREY, "at the start"), ("end", WIDE, "after training")):
        mean, deviation = (_column(widest, f"{part}_{k}").to_numpy() for k in ("mean", "deviation"))
        edge = 1.2816 * deviation
        ax.fill_between(GRID, mean - edge, mean + edge, color=colour, alpha=0.18, lw=0)
        ax.plot(GRID, mean, color=colour, lw=1.4, label=f"{label}: mean, 10% to 90%")
        for place, size in (("low", 10), ("middle", 18), ("high", 10)):
            ax.scatter(GRID, _column(widest, f"{part}_{place}"), s=size, color=colour)
    trained = np.array(TRAINED)
    ax.plot(
        trained, np.cos(trained) * np.sin(trained), "x", color=ACCENT, ms=8, mew=2,
        label="training points",
    )  # fmt: skip
    ax.set_xlabel("angle of x on the circle (radians)")
    ax.set_ylabel("network's output")
    ax.legend(frameon=False, fontsize=9, ncols=2, loc="lower center")
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.25 * (high - low), high)


def draw_rates(ax: Axes, curves: pd.DataFrame) -> None:
    """Fitted decay of the error along single components against what the eigenvalue says."""
    ax.set_title("How fast each principal component of images is learned")
    widths = sorted(curves["width"].unique())
    for width, colour in zip(widths, (NARROW, MIDDLE, WIDE), strict=False):
        part = curves[curves["width"] == width]
        predicted, measured = (_column(part, f"{k}_rate") for k in ("predicted", "measured"))
        ax.scatter(
            predicted, measured, s=16, alpha=0.7, color=colour, label=f"width {int(width):,}"
        )
    ends = _column(curves, "predicted_rate").agg(["min", "max"])
    ax.plot(ends, ends, color=INK, lw=1, label="the limit")
    ax.set_xscale("log")
    ax.set_yscale("log", nonpositive="mask")
    ax.set_xlabel("rate of the eigenvalue (per step)")
    ax.set_ylabel("fitted rate (per step)")
    ax.legend(frameon=False, fontsize=9)


def _of(curves: pd.DataFrame, experiment: str, **where: str) -> pd.DataFrame:
    keep = curves["experiment"] == experiment
    for name, value in where.items():
        keep &= curves[name] == value
    return curves[keep]


def _column(curves: pd.DataFrame, name: str) -> pd.Series[float]:
    rows = curves[curves["name"] == name]
    return rows.set_index(["seed", "step"])["value"].sort_index().astype(float)


def _ends(widths: Iterable[int]) -> list[int]:
    found = sorted(set(widths))
    return found if len(found) < 2 else [found[0], found[-1]]
