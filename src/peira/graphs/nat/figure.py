"""The picture of the study, for a slide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from peira.graphs.nat.study import ONE_VECTOR

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

NAMES = {
    "nat": "NAT", "nat-attention": "NAT, attention", "nat-joint": "NAT, joint only",
    "nat-self": "NAT, self only", "nat-one-hop": "NAT, 1 hop", "nat-no-hops": "NAT, no hops",
    "tgn": "TGN", "tgn-geometric": "TGN, PyG", "jodie": "JODIE", "dyrep": "DyRep",
    "tgat": "TGAT", "graphmixer": "GraphMixer", "cawn": "CAWN",
    "edgebank": "EdgeBank", "edgebank-window": "EdgeBank, window",
    "common-neighbours": "common neighbours", "common-recent": "common, recent",
}  # fmt: skip
JOINT, VECTOR, RULE = "#0b6e8a", "#d1752b", "#8a8a8a"


def colour(method: str) -> str:
    """By what the method knows: joint neighbourhood, one vector per node, a rule."""
    if method in ("nat-no-hops", "tgn-geometric", *ONE_VECTOR):
        return VECTOR
    return JOINT if method.startswith("nat") or method == "cawn" else RULE


def draw(table: pd.DataFrame) -> Figure:
    """AP in both modes, the closure task, speed, and table size."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    accuracy, closure, speed, size = figure.subplots(1, 4, width_ratios=[1.5, 1, 1, 1])
    links = table[table["task"] == "links"]
    _accuracy(accuracy, links)
    _closure(closure, links[links["data"] == "closure"])
    _speed(speed, table[table["task"] == "speed"])
    ours = links[(links["method"] == "nat") & (links["mode"] == "transductive")]
    _size(size, ours[ours["eval_batch_size"] > 1])
    for axes in (accuracy, closure, speed, size):
        axes.spines[["top", "right"]].set_visible(False)
        # A panel whose cells were not run stays blank.
        axes.set_visible(axes.has_data())
    return figure


def _accuracy(axes: Axes, links: pd.DataFrame) -> None:
    first = _decisive(links)
    real = links[(links["data"] == first) & (links["slots"] == 32)]
    real = real[(real["eval_batch_size"] > 1) & (real["edge_features"] == "used")]
    if not len(real):
        return
    means = real.groupby(["method", "mode"])["ap"].mean().unstack()
    order = means.sort_values("transductive").index if "transductive" in means else means.index
    for place, method in enumerate(order):
        for mode, face in (("transductive", colour(method)), ("inductive", "white")):
            ap = real[(real["method"] == method) & (real["mode"] == mode)]["ap"]
            axes.plot(
                ap, np.full(len(ap), place + (0.15 if mode == "transductive" else -0.15)), "o",
                color=colour(method), markerfacecolor=face, markersize=5,
            )  # fmt: skip
    axes.set_yticks(range(len(order)), [NAMES[m] for m in order])
    axes.plot([], [], "o", color="black", label="all nodes")
    axes.plot([], [], "o", color="black", markerfacecolor="white", label="new nodes")
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    axes.set_xlabel("average precision")
    axes.set_title(f"Next links, {first}", loc="left", fontsize=11)


def _decisive(links: pd.DataFrame) -> str:
    """The data set that the claims are judged on; a simulated one where no real one was run."""
    return next((d for d in ("wikipedia", "collegemsg") if (links["data"] == d).any()), "triadic")


def _closure(axes: Axes, rows: pd.DataFrame) -> None:
    methods = [m for m in NAMES if m in set(rows["method"])]
    if not methods:
        return
    order = sorted(methods, key=lambda m: rows[rows["method"] == m]["pooled_auc"].mean())
    for place, method in enumerate(order):
        auc = rows[rows["method"] == method]["pooled_auc"]
        axes.barh(place, auc.mean(), color=colour(method), height=0.6)
        axes.plot(auc, np.full(len(auc), place), "o", color="black", markersize=3)
    axes.axvline(0.5, color="black", linewidth=0.8, linestyle=":")
    axes.annotate("chance", (0.505, len(order) - 0.5), fontsize=8)
    axes.set_yticks(range(len(order)), [NAMES[m] for m in order])
    axes.set_xlim(0.4, 1)
    axes.set_xlabel("AUC, true partner against its twin")
    axes.set_title("Triadic closure", loc="left", fontsize=11)


def _speed(axes: Axes, rows: pd.DataFrame) -> None:
    if not len(rows):
        return
    bars = [
        (NAMES[method] + ("" if dropout else ", no dropout"), part, method)
        for (method, dropout), part in rows.groupby(["method", "dropout"])
    ]
    bars.sort(key=lambda bar: bar[1]["train_speed"].mean())
    for place, (_, part, method) in enumerate(bars):
        speed = part["train_speed"].mean()
        axes.barh(place, speed, color=colour(method), height=0.6)
        axes.annotate(f" {speed:,.0f}", (speed, place), va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_xlabel("events per second of one core")
    axes.set_title("Training speed", loc="left", fontsize=11)


def _size(axes: Axes, rows: pd.DataFrame) -> None:
    if not len(rows):
        return
    for data, face in {_decisive(rows): JOINT, "triadic": "white"}.items():
        if not (rows["data"] == data).any():
            continue
        axes.plot([], [], "o-", color=JOINT, markerfacecolor=face, markersize=4, label=data)
        for _, one in rows[rows["data"] == data].groupby("seed"):
            one = one.sort_values("slots")
            axes.plot(
                one["slots"], one["ap"], "o-", color=JOINT, markerfacecolor=face, markersize=4,
                linewidth=1,
            )  # fmt: skip
    sizes = sorted(rows["slots"].unique())
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(m) for m in sizes])
    axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel("slots of the first-hop table")
    axes.set_ylabel("average precision")
    axes.set_title("Size of the caches", loc="left", fontsize=11)
