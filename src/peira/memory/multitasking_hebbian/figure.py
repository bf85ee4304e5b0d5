"""The study's picture: theory as lines, Monte Carlo as points, and what one state recalls."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from peira.engine.figures import GREY, INK, quiet, slide, title
from peira.engine.verdict import mean_interval, select
from peira.memory.multitasking_hebbian.theory import (
    Theory,
    critical_dilution,
    ladder_overlaps,
    regime,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#d1495b", "#2e6f95", "#e0a030")
ORDINALS = ("first", "second", "third")
RULES = {"supervised": "#2e6f95", "unsupervised": "#d1495b"}
NAMES = {
    "oracle": "oracle: blanks known",
    "supervised": "multitasking, teacher",
    "unsupervised": "multitasking, no teacher",
    "pseudo-inverse": "pseudo-inverse",
    "diluted-links": "couplings cut",
    "hopfield": "Hopfield, blanks filled",
}
PICTURES = {"digits": "4 digits pasted on a canvas", "quadrants": "4 quadrants of a digit"}
SHADES = {
    "pure": "#f3e3cc", "hierarchical": "#cfe0ec", "parallel": "#f3cdd2", "paramagnetic": "#eeeeee",
}  # fmt: skip


def draw(table: pd.DataFrame) -> Figure:
    """Six panels on one slide."""
    figure = slide(13.3, 7.5)
    panels = figure.subplots(2, 3)
    _overlaps(panels[0, 0], table, 0.05, "ladder")
    title(panels[0, 0], "Cold (T = 0.05): a hierarchy")
    critical = critical_dilution(3)
    panels[0, 0].plot([critical, critical], [0, 0.6], color=GREY, lw=1, ls=":")
    panels[0, 0].text(critical, 0.62, "$d_c$", ha="center", color=INK)
    _overlaps(panels[0, 1], table, 0.5, "random")
    title(panels[0, 1], "Warm (T = 0.5), from coins")
    _map(panels[0, 2])
    _learning(panels[1, 0], table)
    _growth(panels[1, 1], table)
    _pictures(panels[1, 2], table)
    for axes in panels.flat:
        quiet(axes)
    return figure


def _overlaps(axes: Axes, table: pd.DataFrame, temperature: float, start: str) -> None:
    where = {"part": "recall", "rule": "storing", "patterns": 3, "start": start}
    rows = select(table, {**where, "temperature": temperature})
    predicted = _predicted(temperature, start)
    for k, colour in enumerate(COLOURS):
        axes.plot(DILUTIONS, predicted[:, k], color=colour, lw=2, label=f"{ORDINALS[k]} pattern")
        for d, group in rows.groupby("dilution"):
            largest = group[group["spins"] == group["spins"].max()]
            _interval(axes, float(d), largest[f"size_{k + 1}"], colour)
    axes.set(xlabel="dilution d (share of blanks)", ylabel="overlap m", ylim=(-0.03, 1.02))
    axes.legend(frameon=False, fontsize=9, loc="upper right", title="line: theory, point: MC")


DILUTIONS = np.linspace(0.02, 0.96, 48)


@cache
def _predicted(temperature: float, start: str) -> np.ndarray:
    if start == "random":
        return np.array([regime(d, 3, temperature).overlaps for d in DILUTIONS])
    theories = [Theory(3, float(d), temperature) for d in DILUTIONS]
    return np.stack([t.overlaps(t.solve(ladder_overlaps(3, t.dilution)))[0] for t in theories])


def _map(axes: Axes) -> None:
    """Which state has the lowest free energy, K = 3."""
    from matplotlib.colors import ListedColormap

    dilutions, temperatures, names = _regimes()
    order = list(SHADES)
    values = np.array([[order.index(name) for name in row] for row in names])
    axes.pcolormesh(
        dilutions, temperatures, values, cmap=ListedColormap(list(SHADES.values())), vmin=0,
        vmax=len(order) - 1, shading="nearest", rasterized=True,
    )  # fmt: skip
    for name in order:
        inside = np.argwhere(values == order.index(name))
        if len(inside):
            row, column = np.median(inside, axis=0).astype(int)
            axes.text(
                dilutions[column], temperatures[row], name, ha="center", color=INK, fontsize=10
            )
    axes.set(xlabel="dilution d", ylabel="temperature T")
    title(axes, "Which state wins (K = 3, theory)")


@cache
def _regimes() -> tuple[np.ndarray, np.ndarray, list[list[str]]]:
    dilutions, temperatures = np.linspace(0.02, 0.98, 25), np.linspace(0.04, 1.08, 18)
    names = [[regime(float(d), 3, float(t)).name for d in dilutions] for t in temperatures]
    return dilutions, temperatures, names


def _learning(axes: Axes, table: pd.DataFrame) -> None:
    rows = select(table, {"part": "teacher", "patterns": 3})
    rows = rows.assign(x=rows["examples"] * rows["quality"] ** 2 / (1 - rows["quality"] ** 2))
    for (rule, r), group in rows.groupby(["rule", "quality"]):
        marker, shift = ("o", 1.0) if r == 0.2 else ("s", 1.06)
        for x, seeds in group.groupby("x"):
            nudge = shift * (0.97 if rule == "supervised" else 1.03)
            _interval(axes, float(x) * nudge, seeds["largest"] / 0.75, RULES[str(rule)], marker)
        axes.plot([], [], marker, color=RULES[str(rule)], label=f"{rule}, r = {r:g}")
    entropies = np.geomspace(0.08, 2.2, 24)
    axes.plot(1 / entropies, _learned(), color=INK, lw=1.5, label="theory", zorder=0)
    axes.set(
        xscale="log", xlabel=r"examples $M r^2/(1-r^2)$, d = 0.25, T = 0.1", ylim=(0, 1.05),
        ylabel="largest overlap / (1-d)",
    )  # fmt: skip
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")
    title(axes, "Learning with and without a teacher")


@cache
def _learned() -> np.ndarray:
    theories = [Theory(3, 0.25, 0.1, float(rho)) for rho in np.geomspace(0.08, 2.2, 24)]
    return np.array([t.overlaps(t.solve(ladder_overlaps(3, 0.25))).max() / 0.75 for t in theories])


def _growth(axes: Axes, table: pd.DataFrame) -> None:
    rows = select(table, {"part": "growth"})
    for n, group in rows.groupby("spins"):
        _interval(axes, float(n), group["followed"], COLOURS[0])
    if len(rows):
        d = float(rows["dilution"].iloc[0])
        n = np.geomspace(rows["spins"].min(), rows["spins"].max(), 50)
        rate = np.log(n) / np.log(1 / d)
        axes.plot(n, rate, color=GREY, ls="--", label="$d^K N = 1$")
        axes.plot(n, rate / 2, color=INK, label="$d^{2K} N = 1$: as small as chance")
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.set(xscale="log", xlabel="spins N", ylabel="patterns in the hierarchy", ylim=(0, None))
    title(axes, "How many patterns fit (d = 0.4)")


def _pictures(axes: Axes, table: pd.DataFrame) -> None:
    rows = select(table, {"part": "pictures"})
    shown = [rule for rule in reversed(NAMES) if len(select(rows, {"rule": rule}))]
    for data, colour, shift in (("digits", COLOURS[0], 0.2), ("quadrants", COLOURS[1], -0.2)):
        for place, rule in enumerate(shown):
            values = select(rows, {"rule": rule, "data": data})["shown"].to_numpy(dtype=float)
            if not len(values):
                continue
            axes.barh(place + shift, values.mean(), color=colour, height=0.36, alpha=0.85)
            low, high = mean_interval(values)
            axes.plot([low, min(high, 1)], [place + shift] * 2, color=INK, lw=1.2)
        axes.barh([0], [0], color=colour, alpha=0.85, label=PICTURES[data])
    axes.set_yticks(range(len(shown)), [NAMES[rule] for rule in shown])
    axes.set(xlabel="share of each pattern's pixels recalled", xlim=(0, 1.02))
    axes.legend(
        frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(-0.02, -0.14), ncols=2
    )
    title(axes, "Pictures with real blanks, all in one state")


def _interval(axes: Axes, x: float, values: Any, colour: str, marker: str = "o") -> None:
    numbers = np.asarray(values, dtype=float)
    low, high = mean_interval(numbers)
    axes.plot([x, x], [low, high], color=colour, lw=1.2)
    axes.plot(x, numbers.mean(), marker, color=colour, ms=5.5, mec="white", mew=0.6)
