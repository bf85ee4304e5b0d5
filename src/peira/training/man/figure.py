"""The study's picture: accuracy, K, probes of blocks, memory and time, ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from peira.engine.figures import GREY, INK, quiet, slide, title
from peira.engine.verdict import mean_interval, select
from peira.training.man.study import main_rows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAN, LOCAL, PLAIN, SAVED = "#d1495b", "#2e6f95", "#57606a", "#e0a030"
# Top to bottom, in groups: what stands behind each block.
GROUPS = (
    {"e2e": "end to end"},
    {
        "man": "MAN: average + copy",
        "released": "as released",
        "redrawn": "other initial weights",
        "vector": "average + vector",
        "lb2": "two learnable copies",
        "lb": "learnable copy only",
        "ema": "average only",
        "greedy": "nothing: greedy",
    },
    {"man-dgl": "MAN before DGL's head", "dgl": "DGL"},
    {"man-infopro": "MAN before InfoPro's heads", "infopro": "InfoPro"},
)
COLOURS = {"e2e": PLAIN, "man": MAN, "man-dgl": MAN, "man-infopro": MAN}


def draw(table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Five panels on one slide."""
    figure = slide(13.3, 7)
    grid = figure.add_gridspec(2, 3, width_ratios=[0.95, 1, 1])
    panels = [figure.add_subplot(grid[:, 0])]
    panels += [figure.add_subplot(grid[row, column]) for row in (0, 1) for column in (1, 2)]
    rows = main_rows(table)
    memory = table[table["part"] == "memory"]
    if len(rows):
        _methods(panels[0], rows)
        _modules(panels[1], rows)
    _probes(panels[2], curves)
    _trade(panels[3], memory)
    _imagenet(panels[4], memory)
    for axes in panels:
        quiet(axes)
    return figure


def _methods(axes: Axes, rows: pd.DataFrame) -> None:
    rows = rows[rows["modules"].isin([1, rows["modules"].max()]) & (rows["momentum"] == 0.995)]
    place, ticks = 0.0, {}
    for group in GROUPS:
        for name, label in group.items():
            values = 100 * rows.loc[rows["method"] == name, "accuracy"].to_numpy()
            if len(values):
                _one_method(axes, values, place, COLOURS.get(name, LOCAL))
                ticks[place] = label
                place -= 1
        place -= 0.6
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.set(xlabel="test accuracy (%): seeds, mean, 95% interval")
    axes.margins(x=0.16)
    title(axes, f"Each of {rows['modules'].max()} blocks trained on its own")


def _one_method(axes: Axes, values: np.ndarray, place: float, colour: str) -> None:
    level = np.full(len(values), place)
    axes.plot(values, level, "o", color=colour, ms=4, alpha=0.45, mew=0)
    right = values.max()
    if len(values) > 1:
        axes.plot(mean_interval(values), [place, place], color=colour, lw=2)
        right = max(right, mean_interval(values)[1])
    axes.plot(values.mean(), place, "o", color=colour, ms=7)
    axes.annotate(
        f"{values.mean():.1f}", (right, place), (8, 0), textcoords="offset points", va="center",
        fontsize=9, color=colour,
    )  # fmt: skip


def _modules(axes: Axes, rows: pd.DataFrame) -> None:
    rows = rows[rows["momentum"] == 0.995]
    best = 100 * rows.loc[rows["method"] == "e2e", "accuracy"]
    axes.axhline(best.mean(), color=PLAIN, lw=1.5, ls="--")
    axes.annotate(
        "end to end", (1, best.mean()), (-2, 4), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", fontsize=9, color=PLAIN,
    )  # fmt: skip
    for name, colour, label in (("man", MAN, "MAN"), ("greedy", LOCAL, "greedy")):
        groups = rows[rows["method"] == name].groupby("modules")["accuracy"]
        _line(axes, groups, colour, label)
    ticks = sorted(rows["modules"].unique())[1:]
    axes.set(xscale="log", xlabel="local modules K", ylabel="test accuracy (%)")
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    title(axes, "More modules cost accuracy")


def _line(axes: Axes, groups: Any, colour: str, label: str) -> None:
    found = [(key, 100 * values.to_numpy()) for key, values in groups]
    places = [key for key, _ in found]
    axes.plot(places, [values.mean() for _, values in found], "o-", color=colour, lw=2, label=label)
    if found and min(len(values) for _, values in found) > 1:
        low, high = zip(*(mean_interval(values) for _, values in found), strict=True)
        axes.fill_between(places, low, high, color=colour, alpha=0.18, lw=0)


def _probes(axes: Axes, curves: pd.DataFrame) -> None:
    rows = curves[(curves["name"] == "probe") & (curves["momentum"] == 0.995)]
    deepest = rows["modules"].max()
    for name, colour, label in (
        ("e2e", PLAIN, "end to end"), ("man", MAN, "MAN"), ("greedy", LOCAL, "greedy"),
    ):  # fmt: skip
        part = select(rows, {"method": name, "modules": 1 if name == "e2e" else deepest})
        _line(axes, part.groupby("step")["value"], colour, label)
    axes.set_xticks(sorted(rows["step"].unique()))
    axes.set(xlabel="block", ylabel="test accuracy (%)")
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    title(axes, "Linear probe of each block")


def _trade(axes: Axes, rows: pd.DataFrame) -> None:
    rows = rows[~rows["network"].isin(["resnet101", "resnet152", "resnet34"])]
    plain = rows[rows["method"] == "e2e"]
    if not len(plain):
        return
    series: Sequence[tuple[str, str, str]] = (
        ("man-dgl", MAN, "MAN"), ("checkpoint", SAVED, "checkpointing, exact gradients"),
    )  # fmt: skip
    for name, colour, label in series:
        part = rows[rows["method"] == name].sort_values("modules")
        axes.plot(part["step_seconds"], part["saved_mib"], "o-", color=colour, lw=2, label=label)
        for _, row in part.iterrows():
            axes.annotate(
                f"K = {row['modules']}", (row["step_seconds"], row["saved_mib"]), (6, 5),
                textcoords="offset points", fontsize=8.5, color=colour,
            )  # fmt: skip
    axes.plot(plain["step_seconds"], plain["saved_mib"], "s", color=PLAIN, ms=8, label="end to end")
    axes.set(xlabel="seconds of one training step", ylabel="MiB held for backward passes")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.15)
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    network = str(plain["network"].iloc[0]).replace("resnet", "ResNet-")
    title(axes, f"Memory against time, {network}, batch {plain['batch'].iloc[0]}")


def _imagenet(axes: Axes, rows: pd.DataFrame) -> None:
    title(axes, "Memory on ImageNet pictures, K = 2")
    rows = rows[rows["network"].isin(["resnet34", "resnet101", "resnet152"])]
    wide = rows.pivot_table(index="network", columns="method", values="saved_mib")
    wide = wide.reindex(columns=["e2e", "man-infopro"]).dropna()
    axes.axvline(55, color=MAN, lw=1.5, ls="--")
    axes.text(54, 0.99, "published: below 55%", color=MAN, fontsize=9, ha="right", va="top",
              transform=axes.get_xaxis_transform())  # fmt: skip
    names = [str(name).replace("resnet", "ResNet-") for name in wide.index]
    if len(wide):
        shares = (100 * wide["man-infopro"] / wide["e2e"]).to_numpy()
        axes.barh(names, shares, color=MAN, height=0.5)
        for place, share in enumerate(shares):
            axes.text(share - 1, place, f"{share:.0f}%", ha="right", va="center", color="white")
    axes.set(xlim=(0, 100), ylim=(-0.6, max(len(names), 1) - 0.1))
    axes.set_xlabel("% of what backpropagation holds", color=INK)
    if not names:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, color=GREY, ha="center")
