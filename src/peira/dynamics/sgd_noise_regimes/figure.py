"""The study's picture: crossovers, T_c against P, exponents of the perceptron, phase diagram."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from peira.dynamics.sgd_noise_regimes import judge
from peira.dynamics.sgd_noise_regimes.crossover import COLUMNS, characteristic_temperature
from peira.engine.errors import PeiraError
from peira.engine.figures import GREY, INK, quiet, slide, title
from peira.engine.verdict import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RED = "#c0392b"
PERCEPTRON, NETWORK = "#2e6f95", "#d1495b"
# Change of the tangent kernel, relative, beyond which a network is no longer lazy.
LAZY = 0.3


def draw(table: pd.DataFrame) -> Figure:
    """Six panels on one slide (13.3 x 7.4 inches)."""
    figure = slide(13.3, 7.6)
    left, right = figure.subfigures(1, 2, width_ratios=[1.9, 1.3])
    (upper, laws), (lower, exponents) = left.subplots(2, 2, width_ratios=[1.1, 1])
    map_axes, columns = right.subplots(2, 1, height_ratios=[1.7, 1])
    perceptron = judge.sweep_of_perceptron(judge.perceptron_runs(table))
    network = judge.network_runs(table)
    _crossover(upper, perceptron, "norm", "|w(t*)|", "Perceptron, depletion 1", PERCEPTRON)
    _crossover(lower, network, "weight_change", "|w(t*) - w(0)|", "Network, alpha = 2^15", NETWORK)
    _laws(laws, perceptron, network)
    _exponents(exponents, judge.perceptron_runs(table))
    _phases(map_axes, judge.phase_diagram(table))
    _columns(columns, table)
    for axes in (upper, lower, laws, exponents, columns):
        quiet(axes)
    return figure


def _critical(runs: pd.DataFrame, metric: str, level: float | None = None) -> pd.DataFrame:
    try:
        estimator = "intersection" if level is None else "level"
        return characteristic_temperature(runs, metric, estimator, level)
    except PeiraError:
        # Too few temperatures (a trial run): the panel shows the runs alone.
        return pd.DataFrame(columns=COLUMNS, dtype=float)


def _shade(colour: str, place: int, count: int) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    share = 0.65 * (1 - place / max(count - 1, 1))
    red, green, blue = (part + share * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def _crossover(
    axes: Axes, runs: pd.DataFrame, metric: str, label: str, what: str, colour: str
) -> None:
    """A metric against T for every size: means and intervals, the broken line, its break."""
    title(axes, f"{what}: noise acts above T_c")
    axes.set(xscale="log", yscale="log", xlabel="temperature T", ylabel=label)
    axes.set_xscale("log", base=2)
    if not len(runs):
        return
    fits = _critical(runs, metric).set_index("size")
    fitted = runs[runs["fitted"] == 1]
    sizes = sorted(fitted["size"].unique())
    for place, size in enumerate(sizes):
        shade = _shade(colour, place, len(sizes))
        part = fitted[fitted["size"] == size]
        logs = np.log(part.pivot_table(index="seed", columns="temperature", values=metric))
        t, middle = logs.columns.to_numpy(dtype=float), np.exp(logs.mean())
        bounds = np.exp([mean_interval(logs[c].dropna().to_numpy()) for c in logs])
        axes.errorbar(
            t, middle, np.abs(bounds.T - middle.to_numpy()), fmt="o", color=shade, ms=4, lw=1,
            label=f"P = {size:,}",
        )  # fmt: skip
        if size in fits.index and np.isfinite(fits.loc[size, "critical"]):
            fit = fits.loc[size]
            line = np.geomspace(t.min(), t.max(), 200)
            rise = np.maximum(1, line / fit["critical"]) ** fit["exponent"]
            axes.plot(line, fit["plateau"] * rise, color=shade, lw=1.2)
            axes.plot(fit["critical"], fit["plateau"], "D", color=INK, ms=4.5, zorder=5)
    axes.legend(frameon=False, fontsize=8, title="diamond: T_c", title_fontsize=8)


def _laws(axes: Axes, perceptron: pd.DataFrame, network: pd.DataFrame) -> None:
    """T_c against P, relative to its value at the smallest size, by three definitions."""
    title(axes, "T_c against the training set")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set(xlabel="training data P", ylabel="T_c(P) / T_c(smallest P)")
    definitions = (
        ("perceptron, break of |w|", perceptron, "norm", None, PERCEPTRON, "o"),
        ("network, break of |w - w(0)|", network, "weight_change", None, NETWORK, "o"),
        ("network, |w - w(0)| = 1% of |w(0)|", network, "relative_weight_change", judge.LEVEL,
         NETWORK, "s"),
    )  # fmt: skip
    for name, runs, metric, level, colour, marker in definitions:
        fits = _critical(runs, metric, level).dropna(subset=["critical"])
        if len(fits) < 2:
            continue
        sizes = fits["size"].to_numpy(dtype=float)
        values = fits[["critical", "low", "high"]].to_numpy(dtype=float) / fits["critical"].iloc[0]
        spread = np.abs(values[:, 1:] - values[:, :1]).T
        slope, at_one = np.polyfit(np.log(sizes), np.log(values[:, 0]), 1)
        axes.errorbar(sizes, values[:, 0], spread, fmt=marker, color=colour, ms=5, capsize=2)
        axes.plot(
            sizes, np.exp(at_one) * sizes**slope, color=colour, lw=1.5,
            ls="-" if level is None else "--",
            label=f"{name}\n{judge.law(judge.critical_by_seed(runs, metric, level))}",
        )  # fmt: skip
    if axes.lines:
        axes.legend(
            frameon=False, fontsize=7.5, loc="lower left", title="T_c ~ P^-a", title_fontsize=7.5
        )


def _exponents(axes: Axes, runs: pd.DataFrame) -> None:
    """Exponents of signal and time in P, measured and predicted, against the depletion."""
    title(axes, "Perceptron: exponents in P at T = 8")
    axes.set(xlabel="depletion chi of data near the boundary", ylabel="exponent")
    chi = np.linspace(0, 3, 100)
    laws = {
        "time": ("b: stop time t* ~ P^b", 1 + 2 / (1 + chi), "s"),
        "signal": ("gamma: signal w_1 ~ P^gamma", 1 / (1 + chi), "o"),
    }
    for metric, (label, theory, marker) in laws.items():
        colour = PERCEPTRON if metric == "signal" else INK
        axes.plot(chi, theory, color=colour, lw=1, ls="--")
        table = judge.slopes(runs, metric, judge.SIZES)
        for method, part in table.groupby("method"):
            slopes = part["slope"].to_numpy(dtype=float)
            low, high = mean_interval(slopes)
            middle = slopes.mean()
            axes.errorbar(
                float(str(method).removeprefix("chi ")), middle, [[middle - low], [high - middle]],
                fmt=marker, color=colour, ms=5, capsize=2,
                label=None if label in axes.get_legend_handles_labels()[1] else label,
            )  # fmt: skip
    axes.plot([], [], color=GREY, ls="--", lw=1, label="theory, P to infinity")
    axes.set_xticks([0, 1, 2, 3])
    axes.legend(frameon=False, fontsize=8)


def _phases(axes: Axes, grid: pd.DataFrame) -> None:
    """Test error over alpha and dt; where runs do not end, and where they would be unstable."""
    title(axes, "Test error (%) in output scale and learning rate")
    axes.set(xlabel="output scale alpha (feature learning to lazy)", ylabel="learning rate dt")
    if not len(grid):
        return
    shown = grid.groupby(["dt", "alpha"])[["test_error", "fitted", "broken", "kernel_change"]]
    means = shown.mean().unstack("alpha")
    dt, alpha = (
        np.log2(np.array(axis, dtype=float)) for axis in (means.index, means["fitted"].columns)
    )
    wrong = 100 * means["test_error"].to_numpy()
    ends, broken = (means[name].to_numpy() for name in ("fitted", "broken"))
    best, worst = _range(wrong[ends == 1])
    drawn = axes.pcolormesh(
        alpha, dt, np.ma.masked_where(ends < 1, wrong), cmap="viridis_r", vmin=best, vmax=worst,
        shading="nearest",
    )  # fmt: skip
    axes.set_facecolor("#eceff1")
    for i, j in np.ndindex(wrong.shape):
        if ends[i, j] == 1:
            dark = wrong[i, j] > (best + worst) / 2
            text, colour = f"{wrong[i, j]:.1f}", "white" if dark else INK
        elif broken[i, j] >= 0.5:
            text, colour = "breaks", RED
        else:
            text, colour = f"{wrong[i, j]:.1f}*", GREY
        axes.text(alpha[j], dt[i], text, ha="center", va="center", fontsize=7.5, color=colour)
    limit = math.log2(float(grid["stability_dt"].median()))
    axes.axhline(limit, color=RED, lw=1.5, ls="--")
    axes.annotate(
        "stability limit, dt = 2 / largest eigenvalue of the kernel", (alpha[0], limit), (-12, 4),
        textcoords="offset points", fontsize=7.5, color=RED,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
    )  # fmt: skip
    _lazy_boundary(axes, alpha, dt, np.where(ends == 1, means["kernel_change"].to_numpy(), np.nan))
    axes.set_xticks(alpha, [f"$2^{{{place:.0f}}}$" for place in alpha])
    axes.set_yticks(dt, [f"$2^{{{place:.0f}}}$" for place in dt])
    axes.tick_params(colors=INK, labelsize=8)
    axes.figure.colorbar(drawn, ax=axes, shrink=0.7, label="test error (%)")
    axes.set_title(
        f"white: kernel changes by {LAZY:.0%} (lazy to the right)   *: budget ended first",
        loc="right", y=-0.27, fontsize=7.5, color=INK,
    )  # fmt: skip


def _range(values: np.ndarray) -> tuple[float, float]:
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)


def _lazy_boundary(axes: Axes, alpha: np.ndarray, dt: np.ndarray, change: np.ndarray) -> None:
    """Where the tangent kernel has changed by LAZY, in log2 of both axes; lazy is to the right."""
    points = []
    for row, step in zip(change, dt, strict=True):
        known = np.flatnonzero(np.isfinite(row))
        logs = np.log(np.maximum(row[known], 1e-12)) - math.log(LAZY)
        crossing = np.flatnonzero((logs[:-1] > 0) & (logs[1:] <= 0))
        if len(crossing):
            i = crossing[-1]
            share = logs[i] / (logs[i] - logs[i + 1])
            left, right = alpha[known[i]], alpha[known[i + 1]]
            points.append((left + share * (right - left), step))
    if len(points) > 1:
        axes.plot(*zip(*points, strict=True), color="white", lw=2.5)


def _columns(axes: Axes, table: pd.DataFrame) -> None:
    """Error against dt at two output scales: SGD, gradient descent, the lazy limit."""
    title(axes, "Noise or step size? SGD against gradient descent")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="learning rate dt", ylabel="test error (%)")
    grid, whole = judge.phase_diagram(table), judge.phase_diagram(table, whole=True)
    for alpha, colour in zip(sorted(whole["alpha"].unique()), (NETWORK, PERCEPTRON), strict=False):
        for runs, style, name in ((grid, "o-", "SGD"), (whole, "s:", "GD, all data")):
            column = runs[runs["alpha"] == alpha]
            steps = judge.steady(column)
            errors = [100 * column.loc[column["dt"] == dt, "test_error"] for dt in steps]
            middle = np.array([part.mean() for part in errors])
            bounds = np.array([mean_interval(part.to_numpy(dtype=float)) for part in errors])
            if not len(middle):
                continue
            axes.errorbar(
                steps, middle, np.abs(bounds.T - middle), fmt=style, color=colour, ms=4, lw=1.2,
                capsize=2, mfc=colour if name == "SGD" else "white",
                label=f"{name}, alpha = 2^{math.log2(alpha):.0f}",
            )  # fmt: skip
    size = grid["size"].min() if len(grid) else 0
    lazy = table[(table["method"] == "max-margin") & (table["network"] == "mlp")]
    lazy = lazy[lazy["size"] == size]
    if len(lazy):
        axes.axhline(
            100 * lazy["test_error"].mean(), color=GREY, ls="--", lw=1,
            label="hard margin, initial tangent kernel",
        )  # fmt: skip
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=7, ncols=2, loc="lower left")
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.35 * (high - low), high)
