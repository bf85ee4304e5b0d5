"""The study's picture: votes in training, accuracy at equal operations, sparsity that was asked."""

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

COLOURS = {"layer": "#2e6f95", "channel": "#d1495b"}
MAIN: dict[str, Any] = {"method": "consensus", "sparsity": 0.5, "polarization": 1.0, "skip": False}
CHANNEL = {**MAIN, "mode": "channel"}
# Rows of panel B, top to bottom: label -> group, metric, colour.
ROWS: tuple[tuple[str, Mapping[str, Any], str, str], ...] = (
    ("dense", {"method": "dense"}, "accuracy", INK),
    ("consensus, blocks", {**MAIN, "mode": "layer"}, "accuracy", COLOURS["layer"]),
    ("consensus, channels", CHANNEL, "accuracy", COLOURS["channel"]),
    ("  closed channels skipped", {**CHANNEL, "skip": True}, "accuracy", COLOURS["channel"]),
    ("no polarization: gated", {**CHANNEL, "polarization": 0.0}, "dynamic_accuracy", GREY),
    ("no polarization: extracted", {**CHANNEL, "polarization": 0.0}, "accuracy", GREY),
    ("L1 filters", {**CHANNEL, "method": "l1"}, "accuracy", GREY),
    ("L1 filters, fine-tuned", {**CHANNEL, "method": "l1-tuned"}, "accuracy", GREY),
    ("network slimming", {**CHANNEL, "method": "slimming"}, "accuracy", GREY),
    ("batch-norm polarization", {**CHANNEL, "method": "bn-polarization"}, "accuracy", GREY),
    ("L0 gates", {**CHANNEL, "method": "hard-concrete"}, "accuracy", GREY),
    ("random channels, alone", {**CHANNEL, "method": "random"}, "accuracy", GREY),
    ("thin network, alone", {**CHANNEL, "method": "thin"}, "accuracy", GREY),
)


def draw(table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Three panels on one slide (13.3 x 5.5 inches)."""
    figure = slide(13.3, 5.5)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.0, 1.15, 0.8])
    _votes(left, curves)
    _accuracies(middle, table)
    _targets(right, table)
    for axes in (left, middle, right):
        quiet(axes)
    return figure


def _votes(axes: Axes, curves: pd.DataFrame) -> None:
    for mode, colour in COLOURS.items():
        for polarization, style, label in ((1.0, "-", "with"), (0.0, "--", "without")):
            where = {**MAIN, "mode": mode, "polarization": polarization, "name": "split_votes"}
            rows = select(curves, where)
            if not len(rows):
                continue
            wide = rows.pivot_table(index="step", columns="seed", values="value")
            steps, runs = wide.index.to_numpy(dtype=float), wide.to_numpy(dtype=float)
            axes.fill_between(
                steps, runs.min(axis=1), runs.max(axis=1), color=colour, alpha=0.12, lw=0
            )
            names = {"layer": "blocks", "channel": "channels"}
            axes.plot(
                steps, runs.mean(axis=1), style, color=colour, lw=2,
                label=f"{names[mode]}, {label} polarization",
            )  # fmt: skip
    axes.set(xlabel="training steps", ylabel="split of the votes, mean s (1 - s)", ylim=(0, None))
    if axes.lines:
        axes.set_ylim(0, 1.45 * axes.get_ylim()[1])
        axes.legend(frameon=False, fontsize=9, loc="upper right")
    title(axes, "Do the inputs agree? Mean and range")


def _accuracies(axes: Axes, table: pd.DataFrame) -> None:
    shown = []
    for label, where, metric, colour in reversed(ROWS):
        rows = select(table, where)
        if metric in rows and rows[metric].notna().any():
            shown.append((label, 100 * rows[metric].to_numpy(dtype=float), colour))
    if not shown:
        return
    means = np.array([values.mean() for _, values, _ in shown])
    # What collapsed would squeeze all others into a line: it is written at the edge.
    low = min(
        values.min() for (_, values, _), m in zip(shown, means, strict=True) if _near(m, means)
    )
    high = max(values.max() for _, values, _ in shown)
    margin = 0.08 * max(high - low, 1.0)
    axes.set_xlim(low - margin, high + margin)
    for place, (_, values, colour) in enumerate(shown):
        _one_accuracy(axes, place, values, colour, low - margin)
    axes.set_yticks(range(len(shown)), [label for label, _, _ in shown])
    axes.set_ylim(-0.6, len(shown) + 0.1)
    axes.set_xlabel("test accuracy, %")
    title(axes, "Half the operations: mean, 95% interval")


def _near(mean: float, means: np.ndarray) -> bool:
    """Whether a condition is within 15 points of the typical one."""
    return abs(mean - float(np.median(means))) < 15


def _one_accuracy(axes: Axes, place: int, values: np.ndarray, colour: str, edge: float) -> None:
    mean = float(values.mean())
    at = (max(mean, edge), place)
    if mean < edge:
        axes.plot(*at, "<", color=colour, ms=8, clip_on=False)
    else:
        axes.plot(values, np.full(len(values), place), "o", color=colour, ms=4, alpha=0.4, mew=0)
        axes.plot(mean_interval(values), [place, place], color=colour, lw=2)
        axes.plot(*at, "o", color=colour, ms=7)
    # Beside the arrow of what lies beyond the edge, above the others.
    aside: dict[str, Any] = {"ha": "left", "va": "center"} if mean < edge else {"ha": "center"}
    axes.annotate(
        f"{mean:.1f}", at, (8, 0) if mean < edge else (0, 6), textcoords="offset points",
        fontsize=8, color=colour, **aside,
    )  # fmt: skip


def _targets(axes: Axes, table: pd.DataFrame) -> None:
    for mode, colour in COLOURS.items():
        where = {name: value for name, value in MAIN.items() if name != "sparsity"}
        rows = select(table, {**where, "mode": mode})
        if not len(rows):
            continue
        shift = -0.5 if mode == "layer" else 0.5
        axes.plot(
            100 * rows["sparsity"] + shift, 100 * (1 - rows["open_cost"]), "o", color=colour,
            ms=5, alpha=0.7, mew=0, label={"layer": "blocks", "channel": "channels"}[mode],
        )  # fmt: skip
    axes.plot([0, 100], [0, 100], color=GREY, lw=1, ls="--", zorder=0)
    axes.set(xlabel="removal asked for, %", ylabel="operations removed, %", xlim=(0, 100))
    axes.set_ylim(0, 100)
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    title(axes, "Sparsity is the user's")
