"""The picture of the study, for a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

NAMES = {
    "bp": "backpropagation", "sf": "single forward (SF)", "top2input": "SF, top to input",
    "top2loss": "SF, top to loss", "ff_la": "FF, labels appended", "ff_vn": "FF, virtual nodes",
    "mlp": "no graph (MLP)", "labels": "label propagation", "fl": "FL", "topdown": "FL, top-down",
    "ff": "FF",
}  # fmt: skip
DATA = {"cora_ml": "Cora_ML", "cora": "Cora", "citeseer": "CiteSeer", "club": "karate club"}
LOCAL, GLOBAL, OTHER = "#0b6e8a", "#c4622d", "#9aa3a8"
SHADES = {"bp": GLOBAL, "mlp": OTHER, "labels": OTHER}


def draw(table: pd.DataFrame) -> Figure:
    """Accuracy and AUC by learner, memory by depth, accuracy by homophily."""
    figure = Figure(figsize=(12, 6.75), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=[1.25, 1])
    figure.suptitle(
        "Training a graph network layer by layer, without backpropagation between layers",
        fontsize=15,
    )
    _accuracy(figure.add_subplot(grid[:, 0]), table)
    _memory(figure.add_subplot(grid[0, 1]), table[table["task"] == "memory"])
    _homophily(figure.add_subplot(grid[1, 1]), table)
    return figure


def _accuracy(axes: Axes, table: pd.DataFrame) -> None:
    rows = table[table["task"] == "nodes"]
    main = "cora_ml" if (rows["data"] == "cora_ml").any() else "club"
    rows = rows[(rows["data"] == main) & (rows["conv"] == "gcn")]
    groups = [
        (group, part["test_accuracy"].to_numpy() * 100)
        for group, part in rows.groupby(["method", "patience"])
    ]
    groups.sort(key=lambda item: item[1].mean())
    for place, ((method, _), values) in enumerate(groups):
        shade = SHADES.get(method, LOCAL)
        axes.barh(place, values.mean(), color=shade, height=0.65)
        axes.plot(values, np.full(len(values), place), "o", color="black", ms=3.5, alpha=0.6)
        axes.text(1.5, place, f"{values.mean():.1f}", va="center", color="white", fontsize=11)
    shown = [_label(method, patience, rows) for (method, patience), _ in groups]
    axes.set_yticks(range(len(groups)), shown, fontsize=11)
    axes.set(xlabel="test accuracy (%); dots are splits", xlim=(0, 100))
    axes.set_title(f"Node classes, {DATA[main]}, GCN", loc="left")
    _bare(axes)


def _label(method: str, patience: int, rows: pd.DataFrame) -> str:
    several = rows.loc[rows["method"] == method, "patience"].nunique() > 1
    if not several:
        return NAMES[method]
    longest = rows.loc[rows["method"] == method, "patience"].max()
    return f"{NAMES[method]},\n" + ("all epochs" if patience == longest else "stopped early")


def _memory(axes: Axes, rows: pd.DataFrame) -> None:
    axes.set_title("Activations kept for the backward pass", loc="left")
    means = rows.groupby("layers")[["bp_saved_mib", "sf_saved_mib"]].mean()
    for name, method, shade in (
        ("bp_saved_mib", "bp", GLOBAL), ("sf_saved_mib", "sf", LOCAL),
    ):  # fmt: skip
        axes.plot(means.index, means[name], "o-", color=shade, lw=2)
        if len(means):
            axes.annotate(
                NAMES[method], (means.index[-1], means[name].iloc[-1]), color=shade,
                xytext=(-6, 7), textcoords="offset points", ha="right",
            )  # fmt: skip
    top = means.to_numpy().max(initial=1.0)
    axes.set(xlabel="layers", ylabel="MiB at the peak", ylim=(0, 1.2 * top))
    _bare(axes)


def _homophily(axes: Axes, table: pd.DataFrame) -> None:
    axes.set_title("Simulated blocks: when neighbours disagree", loc="left")
    keep = (table["task"] == "nodes") & (table["data"] == "blocks") & (table["conv"] == "gcn")
    rows: Any = table[keep]
    for method, shade in (("bp", GLOBAL), ("sf", LOCAL), ("mlp", OTHER)):
        part = rows[rows["method"] == method].groupby("homophily")["test_accuracy"]
        mean, low, high = part.mean() * 100, part.min() * 100, part.max() * 100
        axes.plot(mean.index, mean, "o-", color=shade, lw=2, label=NAMES[method])
        axes.fill_between(mean.index, low, high, color=shade, alpha=0.15, lw=0)
    axes.axhline(20, color=OTHER, lw=1, ls=":")
    axes.text(0.99, 21, "chance", color=OTHER, ha="right", transform=axes.get_yaxis_transform())
    axes.set(xlabel="share of neighbours of the same class", ylabel="test accuracy (%)")
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, loc="upper left")
    _bare(axes)


def _bare(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
