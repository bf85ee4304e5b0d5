"""The study's picture: accuracy round by round, every method, gain by noise, the theory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from peira.engine.figures import GREY, INK, quiet, slide, title
from peira.engine.verdict import mean_interval, select

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CYCLE, PLAIN = "#d1495b", "#57606a"
COLOURS = {"ccl": CYCLE, "vanilla": PLAIN, "random": "#2e6f95"}
CURVES = {"vanilla": "plain training", "random": "random cycle", "ccl": "cyclical curriculum"}
# Top to bottom: label -> cell fields.
CONDITIONS: dict[str, dict[str, Any]] = {
    "cyclical curriculum": {"method": "ccl"},
    "  scores exp, 5": {"method": "ccl", "transform": "exp", "lam": 5.0},
    "  scores exp, 0.5": {"method": "ccl", "transform": "exp", "lam": 0.5},
    "  scores exp, 0.25": {"method": "ccl", "transform": "exp", "lam": 0.25},
    "  ageing": {"method": "ageing"},
    "  self-paced": {"method": "self-paced"},
    "  after full epochs": {"method": "full-then-cyclic"},
    "  the same, self-paced": {"method": "full-then-self-paced"},
    "sharp cycle": {"method": "sharp"},
    "random cycle": {"method": "random"},
    "hard cycle (anti)": {"method": "hard"},
    "growing": {"method": "growing"},
    "  exponential pace": {"method": "exponential"},
    "  parabolic pace": {"method": "parabolic"},
    "shrinking": {"method": "shrinking"},
    "self-paced learning": {"method": "spl"},
    "  in stages": {"method": "stage-spl"},
    "easiest 25% only": {"method": "pruned"},
    "easiest 70% only": {"method": "pruned", "keep": 0.7},
    "co-teaching (2 networks)": {"method": "co-teaching"},
    "label smoothing": {"method": "smoothing"},
}


def draw(table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Four panels on one slide (13.3 x 7.5 inches)."""
    from peira.training.ccl.study import group

    figure = slide(13.3, 7.5)
    grid = figure.add_gridspec(2, 3, width_ratios=[1.25, 1.0, 0.95])
    _curves(figure.add_subplot(grid[0, 0]), curves, group)
    _gains_by_noise(figure.add_subplot(grid[1, 0]), table, group)
    _methods(figure.add_subplot(grid[:, 1]), table, group)
    _comparisons(figure.add_subplot(grid[0, 2]), table, group)
    _theory(figure.add_subplot(grid[1, 2]), table)
    for axes in figure.axes:
        quiet(axes)
    return figure


def _curves(axes: Axes, curves: pd.DataFrame, group: Any) -> None:
    for method, label in CURVES.items():
        rows = select(curves, {**group(method, noise_rate=0.3), "name": "test"})
        if not len(rows):
            continue
        wide = rows.pivot_table(index="step", columns="seed", values="value")
        wide = wide.dropna().astype(float)
        epochs = wide.index.to_numpy(dtype=float) / _samples(rows)
        mean = wide.mean(axis=1).to_numpy()
        colour = COLOURS[method]
        low, high = wide.min(axis=1).to_numpy(), wide.max(axis=1).to_numpy()
        axes.fill_between(epochs, low, high, color=colour, alpha=0.13, lw=0)
        axes.plot(epochs, mean, color=colour, lw=1.8, label=label, marker=".", ms=4)
    axes.set(xlabel="samples seen, in passes over the data", ylabel="test accuracy")
    lines = [line.get_ydata() for line in axes.lines]
    if lines:
        late = np.concatenate([np.asarray(line, dtype=float)[3:] for line in lines])
        axes.set_ylim(max(0.0, float(late.min(initial=1.0)) - 0.06), 1.0)
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    title(axes, "30% of the labels flipped: mean and range over seeds")


def _samples(rows: pd.DataFrame) -> float:
    """Training samples of the cells: the digits have 898."""
    return float(min(rows["train"].iloc[0], 898))


def _gains_by_noise(axes: Axes, table: pd.DataFrame, group: Any) -> None:
    rates = sorted(set(select(table, {"task": "train", "data": "digits"})["noise_rate"]))
    for metric, label, colour in (
        ("last5_test", "last five rounds", CYCLE),
        ("selected_test", "round chosen on validation data", "#2e6f95"),
    ):
        shown = []
        for rate in rates:
            gains = _gain(table, metric, group(noise_rate=rate), group("vanilla", noise_rate=rate))
            if len(gains) > 1:
                shown.append((rate, 100 * gains.mean(), *(100 * x for x in mean_interval(gains))))
        if shown:
            x, middle, low, high = np.array(shown).T
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
            axes.plot(x, middle, "o-", color=colour, lw=1.8, label=label)
    axes.axhline(0, color=GREY, lw=1, ls="--", zorder=0)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
    axes.set(xlabel="training labels flipped", ylabel="gain over plain training, points")
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    title(axes, "Gain of the cycle: mean and 95% interval")


def _gain(table: pd.DataFrame, metric: str, ours: Any, theirs: Any) -> np.ndarray:
    first, second = (select(table, rows).set_index("seed")[metric] for rows in (ours, theirs))
    return (first - second).dropna().to_numpy(dtype=float)


def _methods(axes: Axes, table: pd.DataFrame, group: Any) -> None:
    base = group("vanilla", noise_rate=0.3)
    shown = []
    for label, where in CONDITIONS.items():
        gains = 100 * _gain(table, "last5_test", {**group(noise_rate=0.3), **where}, base)
        if len(gains):
            shown.append((label, gains))
    for place, (label, gains) in enumerate(shown[::-1]):
        colour = CYCLE if label == "cyclical curriculum" else INK
        axes.plot(gains, np.full(len(gains), place), "o", color=colour, ms=4, alpha=0.35, mew=0)
        axes.plot(mean_interval(gains), [place, place], color=colour, lw=1.6)
        axes.plot(gains.mean(), place, "o", color=colour, ms=6)
    axes.axvline(0, color=GREY, lw=1, ls="--", zorder=0)
    axes.set_yticks(range(len(shown)), [label for label, _ in shown[::-1]])
    for label in axes.get_yticklabels():
        label.set_horizontalalignment("left")
    axes.tick_params(axis="y", pad=128, length=0)
    if shown:
        values = np.concatenate([gains for _, gains in shown])
        axes.set_xlim(values.min() - 2, values.max() + 2)
    axes.set(xlabel="points of test accuracy over plain training, last five rounds")
    title(axes, "Every method, 30% flipped, equal samples")


def _comparisons(axes: Axes, table: pd.DataFrame, group: Any) -> None:
    """Wins, ties and losses of the cycle over data sets and seeds, clean labels."""
    from peira.training.ccl.study import MONOTONE

    opponents = ("vanilla", *MONOTONE)
    counts = []
    for opponent in opponents:
        gains = [
            _gain(table, "selected_test", group(data=data), group(opponent, data=data))
            for data in sorted(set(table["data"]))
        ]
        every = np.concatenate(gains)
        counts.append([(every > 0).sum(), (every == 0).sum(), (every < 0).sum()])
    left = np.zeros(len(opponents))
    for part, name, colour in zip(
        np.array(counts).T, ("won", "tied", "lost"), (CYCLE, "#d0d7de", PLAIN), strict=True
    ):
        bars = axes.barh(range(len(opponents)), part, left=left, color=colour, label=name)
        labels = [str(count) if count else "" for count in part]
        axes.bar_label(bars, labels, label_type="center", fontsize=9,
                       color=INK if name == "tied" else "white")  # fmt: skip
        left = left + part
    axes.set_yticks(range(len(opponents)), ["plain", *MONOTONE])
    axes.invert_yaxis()
    axes.set(xlabel="comparisons: data set and seed, clean labels")
    axes.set_ylim(3.6, -1.1)
    axes.legend(frameon=False, fontsize=9, ncols=3, loc="upper left")
    title(axes, "The cycle against ...")


def _theory(axes: Axes, table: pd.DataFrame) -> None:
    from peira.training.ccl.study import BIASES, NOISES, region

    theory = select(table, {"task": "theory"})
    epochs = int(theory["epochs"].max()) if len(theory) else 20
    best, mean = region(0.5, epochs)
    levels = best.astype(int) + mean.astype(int)
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    palette = ["#eef1f4", "#f0b7be", CYCLE]
    axes.pcolormesh(BIASES, NOISES, levels, cmap=ListedColormap(palette), vmin=0, vmax=2)
    names = ("not", "at its best round", "on average over rounds")
    axes.legend(
        [Patch(color=colour) for colour in palette], names, fontsize=8.5, frameon=True,
        loc="upper right", framealpha=0.9,
    )  # fmt: skip
    axes.set(xlabel="bias of the easy data", ylabel="noise of the hard data")
    title(axes, "Theory: cycle below both its ends")
