"""The study's picture: curves, speed-ups of all conditions, and the sweep of kept fractions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from peira.engine.figures import GREY, INK, quiet, slide, title
from peira.engine.verdict import select

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "dense": "#57606a",
    "ticket": "#d1495b",
    "l1-dense": "#2e6f95",
    "l2-dense": "#74a9cf",
    "shuffled": "#e0a030",
}
CURVES = {
    "ticket": "ticket (40% kept)",
    "l1-dense": "dense, same L1 norm",
    "l2-dense": "dense, same L2 norm",
    "dense": "dense",
    "shuffled": "ticket, shuffled in layers",
}
# What panel B shows, top to bottom: label -> cell fields beside the main comparison's.
CONDITIONS: Mapping[str, Mapping[str, Any]] = {
    "ticket": {"method": "ticket"},
    "  taken late": {"method": "ticket", "when": "late"},
    "  taken in transition": {"method": "ticket", "when": "transition"},
    "  taken at memorisation": {"method": "ticket", "when": "memorised"},
    "  shuffled in layers": {"method": "shuffled"},
    "  initial weights redrawn": {"method": "redrawn"},
    "dense, same L1 norm": {"method": "l1-dense"},
    "dense, same L2 norm": {"method": "l2-dense"},
    "dense, weight decay 3": {"method": "dense", "weight_decay": 3.0},
    "dense, Grokfast": {"method": "grokfast"},
    "random": {"method": "random"},
    "SNIP": {"method": "snip"},
    "GraSP": {"method": "grasp"},
    "SynFlow": {"method": "synflow"},
    "Transformer: ticket": {"method": "ticket", "network": "transformer"},
    "digits: ticket": {"method": "ticket", "task": "digits"},
}
MAIN = {
    "task": "addition",
    "network": "mlp",
    "weight_decay": 1.0,
    "when": "generalised",
    "keep": 0.4,
}
TIME = "generalise_step"


def draw(table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Three panels on one slide (13.3 x 6 inches)."""
    figure = slide(13.3, 6)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.15, 1.15, 0.8])
    _curves(left, curves)
    _speed_ups(middle, table)
    _sweep(right, table)
    for axes in (left, middle, right):
        quiet(axes)
    return figure


def _curves(axes: Axes, curves: pd.DataFrame) -> None:
    where = {**MAIN, "name": "test_accuracy"}
    for method, label in CURVES.items():
        rows = select(curves, {**where, "method": method})
        if not len(rows):
            continue
        steps, runs = _on_one_grid(rows)
        colour = COLOURS[method]
        axes.fill_between(steps, runs.min(axis=0), runs.max(axis=0), color=colour, alpha=0.18, lw=0)
        axes.plot(steps, runs.mean(axis=0), color=colour, lw=2.2, label=label)
    axes.set(xscale="log", ylim=(-0.02, 1.3), xlabel="training steps", ylabel="test accuracy")
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    title(axes, "Test accuracy: mean and range over seeds")
    if axes.lines:
        axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=2)


def _on_one_grid(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and accuracies by seed; a run that stopped keeps its last value."""
    wide = rows.pivot_table(index="step", columns="seed", values="value").sort_index()
    # Early evaluations fall on different steps in different seeds.
    wide = wide.interpolate(method="index", limit_area="inside").ffill().bfill()
    return wide.index.to_numpy(dtype=float), wide.to_numpy(dtype=float).T


def _speed_ups(axes: Axes, table: pd.DataFrame) -> None:
    shown = [(label, *speed_up(table, where)) for label, where in CONDITIONS.items()]
    shown = [row for row in shown if len(row[1])][::-1]
    for place, (label, ratios, never) in enumerate(shown):
        colour = COLOURS["ticket"] if label.endswith("ticket") else INK
        _one_speed_up(axes, place, ratios, never, colour)
    axes.axvline(1, color=GREY, lw=1, ls="--", zorder=0)
    axes.set_yticks(range(len(shown)), [label for label, _, _ in shown])
    axes.set(xscale="log", xlabel="times as fast as its dense network")
    axes.xaxis.set_major_formatter("{x:g}x")
    title(axes, "Speed-up: seeds, mean, 95% interval")


def _one_speed_up(
    axes: Axes, place: int, ratios: np.ndarray, never: np.ndarray, colour: str
) -> None:
    from peira.engine.verdict import mean_interval

    level = np.full(len(ratios), place)
    axes.plot(ratios[~never], level[~never], "o", color=colour, ms=4.5, alpha=0.5, mew=0)
    # Never within the budget: the speed-up is below dense time / budget.
    axes.plot(ratios[never], level[never], "<", color=GREY, ms=6)
    beyond = (ratios.max(), place)
    if never.any():
        text = f"never in {never.sum()} of {len(never)}"
    else:
        logs = np.log(ratios)
        centre, interval = float(np.exp(logs.mean())), np.exp(mean_interval(logs))
        axes.plot(interval, [place, place], color=colour, lw=2)
        axes.plot(centre, place, "o", color=colour, ms=7)
        text, beyond = f"{centre:.1f}x", (np.nanmax([beyond[0], interval[1]]), place)
    axes.annotate(
        text, beyond, (7, 0), textcoords="offset points", va="center", fontsize=8.5,
        color=GREY if never.any() else colour,
    )  # fmt: skip


def speed_up(table: pd.DataFrame, where: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Dense time / time of the condition, by seed, and whether the condition never came.

    Where it never came the ratio is an upper bound: dense time / budget. Seeds whose dense network
    never generalised are left out.
    """
    wanted = {**MAIN, "weight_decay": 0.1 if where.get("task") == "digits" else 1.0, **where}
    shape = {name: wanted[name] for name in ("task", "network")}
    decay = 0.1 if shape["task"] == "digits" else 1.0
    dense = select(table, {**shape, "method": "dense", "weight_decay": decay})
    ours = select(table, wanted)
    pairs = ours.merge(dense, on="seed", suffixes=("", "_dense"))
    flag = f"{TIME}_censored"
    if f"{flag}_dense" in pairs:
        pairs = pairs[~pairs[f"{flag}_dense"].astype(bool)]
    never = pairs[flag].to_numpy(dtype=bool) if flag in pairs else np.zeros(len(pairs), bool)
    return (pairs[f"{TIME}_dense"] / pairs[TIME]).to_numpy(dtype=float), never


def _sweep(axes: Axes, table: pd.DataFrame) -> None:
    swept = {name: value for name, value in MAIN.items() if name != "keep"}
    tickets = select(table, {**swept, "method": "ticket"})
    dense = select(table, {**swept, "method": "dense"}).assign(keep=1.0)
    for rows, colour in ((tickets, COLOURS["ticket"]), (dense, COLOURS["dense"])):
        if not len(rows):
            continue
        flag = f"{TIME}_censored"
        never = rows[flag].to_numpy(dtype=bool) if flag in rows else np.zeros(len(rows), bool)
        axes.plot(rows["keep"][~never], rows[TIME][~never], "o", color=colour, ms=5, alpha=0.8)
        axes.plot(rows["keep"][never], rows[TIME][never], "^", color=colour, ms=7, mfc="none")
        middle = rows.groupby("keep")[TIME].median()
        axes.plot(middle.index, middle, color=colour, lw=1.5)
    axes.set(yscale="log", xlabel="fraction of weights kept", ylabel="steps until generalised")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter(lambda x, _: f"{x:,.0f}" if f"{x:e}"[0] in "25" else "")
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    title(axes, "How much to keep (hollow: never)")
    axes.invert_xaxis()
