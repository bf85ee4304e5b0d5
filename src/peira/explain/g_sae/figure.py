"""The study's picture: planted features, the curve over k, all baselines, steering."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from peira.engine.figures import GREY, INK, quiet, slide, title
from peira.engine.verdict import mean_interval, select

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"topk": "#57606a", "additive": "#2e6f95", "product": "#d1495b"}
LABELS = {
    "topk": "TopK",
    "additive": "g-SAE, z + βzv",
    "product": "g-SAE, zv",
    "shuffled": "g-SAE, shuffled gradients",
    "relu": "ReLU + L1",
    "gated": "Gated",
    "jumprelu": "JumpReLU",
    "end-to-end": "end-to-end (KL)",
    "random": "random directions",
    "pca": "principal components",
}
SELECTED = {
    "delta_none": ("no gradient", "o", "none"),
    "delta_gradient": ("gradient of the loss", "o", None),
    "delta_predicted": ("of own prediction", "D", None),
    "delta_shuffled": ("of another token", "x", None),
}


def draw(table: pd.DataFrame) -> Figure:
    """Four panels on one slide."""
    figure = slide(13.3, 7.5)
    axes = figure.subplots(2, 2)
    _planted(axes[0, 0], select(table, {"host": "planted"}))
    network = select(table, {"host": "text"})
    _curve(axes[0, 1], network)
    meet = _meeting_k(network)
    _methods(axes[1, 0], select(network, {"k": meet}), meet)
    _steering(axes[1, 1], select(network, {"k": meet}), meet)
    for one in axes.flat:
        quiet(one)
    return figure


def _meeting_k(network: pd.DataFrame) -> Any:
    found = network.loc[network["method"] == "pca", "k"]
    return found.iloc[0] if len(found) else 0


def _dot(
    axes: Axes, values: pd.Series[float], place: float, log: bool = False, **style: Any
) -> None:
    """Mean (on a log axis the geometric one) and 95% interval over seeds, at a height."""
    numbers = values.dropna().to_numpy(dtype=float)
    log = log and bool((numbers > 0).all())
    numbers = np.log(numbers) if log else numbers
    if not len(numbers):
        return
    centre, (low, high) = numbers.mean(), mean_interval(numbers)
    if log:
        centre, low, high = np.exp([centre, low, high])
    colour = style.pop("color")
    if np.isfinite(low):
        axes.plot([low, high], [place, place], color=colour, lw=1.8, alpha=0.7)
    axes.plot(centre, place, color=colour, ls="none", **style)


def _planted(axes: Axes, rows: pd.DataFrame) -> None:
    few = rows[rows["k"] == rows["k"].min()] if len(rows) else rows
    methods = [
        name for name in ("topk", "additive", "product", "shuffled") if name in set(few["method"])
    ]
    for place, method in enumerate(reversed(methods)):
        part = select(few, {"method": method})
        for metric, (_, marker, face) in SELECTED.items():
            if metric not in part:
                continue
            colour = COLOURS.get(method, GREY)
            style = {"marker": marker, "ms": 8, "mfc": face or colour, "mec": colour, "mew": 1.6}
            _dot(axes, part["loss_intact"] + part[metric], place, color=colour, **style)
    for metric, label in (("loss_intact", "intact"), ("loss_ablated", "mean ablated")):
        if len(few):
            level = few[metric].mean()
            axes.axvline(level, color=GREY, lw=1, ls="--", zorder=0)
            axes.annotate(
                label, (level, 1), (3, -2), xycoords=("data", "axes fraction"),
                textcoords="offset points", fontsize=8.5, color=GREY, va="top",
            )  # fmt: skip
    for label, marker, face in SELECTED.values():
        axes.plot([], [], marker=marker, color=INK, ls="none", mfc=face or INK, label=label)
    axes.set_yticks(range(len(methods)), [LABELS[name] for name in reversed(methods)])
    axes.set(
        xlabel="loss of the network on the reconstruction (nats)", ylim=(-0.6, len(methods) - 0.2)
    )
    axes.legend(frameon=False, fontsize=8.5, title="units selected by", title_fontsize=8.5,
                loc="lower right")  # fmt: skip
    k = int(few["k"].iloc[0]) if len(few) else 0
    title(axes, f"Planted: small features have all the effect (k = {k})")


def _curve(axes: Axes, network: pd.DataFrame) -> None:
    lines = [
        ("topk", "delta", "-", "TopK"),
        ("additive", "delta", "-", "g-SAE z + βzv, with gradient"),
        ("additive", "delta_none", ":", "  the same, without"),
        ("product", "delta", "-", "g-SAE zv, with gradient"),
        ("product", "delta_none", ":", "  the same, without"),
    ]
    for shift, (method, metric, style, label) in enumerate(lines):
        rows = select(network, {"method": method})
        if not len(rows) or metric not in rows:
            continue
        ks = np.sort(rows["k"].unique())
        groups = [rows.loc[rows["k"] == k, metric].to_numpy(dtype=float) for k in ks]
        means = np.array([group.mean() for group in groups])
        places = ks * 1.02 ** (shift - 2)
        axes.plot(places, means, ls=style, marker="o", ms=5, color=COLOURS[method], label=label)
        for place, group in zip(places, groups, strict=True):
            axes.plot(np.full(len(group), place), group, "_", color=COLOURS[method], ms=8)
    axes.set(
        xscale="log", yscale="log", xlabel="units that fire, k", ylabel="rise of the loss (nats)"
    )
    ks = np.sort(network["k"].unique())
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    if axes.lines:
        axes.legend(frameon=False, fontsize=8.5)
    title(axes, "Transformer on a grammar: faithfulness over k")


def _methods(axes: Axes, rows: pd.DataFrame, k: int) -> None:
    means = rows.groupby("method")["delta"].mean().sort_values(ascending=False)
    for place, method in enumerate(means.index):
        part = select(rows, {"method": method})
        colour = COLOURS.get(method, GREY)
        _dot(axes, part["delta"], place, True, color=colour, marker="o", ms=8)
        axes.plot(part["delta"], np.full(len(part), place), "|", color=colour, ms=9)
    axes.set_yticks(range(len(means)), [LABELS[name] for name in means.index])
    axes.set(xscale="log", xlabel="rise of the loss (nats)")
    title(axes, f"Transformer, all methods, k = {k}: mean, 95% interval, seeds")


def _steering(axes: Axes, rows: pd.DataFrame, k: int) -> None:
    if "steering_kl" not in rows:
        return
    steered = rows.dropna(subset=["steering_kl"])
    means = steered.groupby("method")["steering_kl"].mean().sort_values()
    for place, method in enumerate(means.index):
        part = select(steered, {"method": method})
        colour = COLOURS.get(method, GREY)
        _dot(axes, part["steering_kl"], place, color=colour, marker="o", ms=8)
        axes.plot(part["steering_kl"], np.full(len(part), place), "|", color=colour, ms=9)
    axes.set_yticks(range(len(means)), [LABELS[name] for name in means.index])
    axes.set(xlabel="KL of the next letter, mean over live units and texts (nats)")
    title(axes, f"Transformer, a push of equal length along a unit, k = {k}")
