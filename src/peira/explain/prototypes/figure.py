"""The study's picture: prototypes beside real examples, accuracies, ablations, deletions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from peira.engine.figures import GREY, INK, quiet, slide, title
from peira.engine.verdict import mean_interval, select

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

OURS, OTHER = "#d1495b", "#2e6f95"
MAIN: dict[str, Any] = {
    "method": "prototypes",
    "lambda_1": 1.0,
    "lambda_2": 1.0,
    "lambda_ae": 1.0,
    "elastic": True,
}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "prototypes": {},
    "linear head": {"method": "linear"},
    "k-means centres": {"method": "kmeans"},
    "k-medoids": {"method": "kmedoids"},
    "5 neighbours, pixels": {"method": "knn"},
    "GLVQ, pixels": {"method": "glvq"},
    "no R1": {"lambda_1": 0.0},
    "no R2": {"lambda_2": 0.0},
    "no reconstruction": {"lambda_ae": 0.0},
    "no deformation": {"elastic": False},
}
ABLATIONS = {"all terms": {}, "no R1": {"lambda_1": 0.0}, "no R2": {"lambda_2": 0.0}}
TERMS = {
    "r1": "R1: prototype to nearest input",
    "r2": "R2: input to nearest prototype",
    "picture_distance": "decoded to nearest picture",
}
DELETED = {
    "deleted_nearest": "the nearest",
    "deleted_random": "a random one",
    "deleted_top": "largest in its logit",
    "deleted_lead": "largest in its lead",
}


def draw(table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """One slide (13.3 x 7.2 inches)."""
    figure = slide(13.3, 7.2)
    top, bottom = figure.subfigures(2, 1, height_ratios=[0.85, 1.5])
    _strip(top, curves)
    left, middle, right = bottom.subplots(1, 3, width_ratios=[1.1, 1.1, 0.9])
    _accuracies(left, table)
    _terms(middle, table)
    _deletions(right, table)
    for axes in (left, middle, right):
        quiet(axes)
    return figure


def _strip(figure: SubFigure, curves: pd.DataFrame) -> None:
    """Decoded prototypes over the training pictures nearest to them."""
    rows = select(curves, MAIN)
    parts = {
        name: rows[rows["name"] == name].sort_values("step")["value"].to_numpy(dtype=float)
        for name in ("decoded", "example", "prototype_class")
    }
    classes = parts["prototype_class"].astype(int)
    figure.suptitle(
        "Decoded prototypes (above) and the training pictures nearest to them in the latent space",
        x=0.005, ha="left", fontsize=11, fontweight="bold", color=INK,
    )  # fmt: skip
    if not len(classes):
        return
    order = np.argsort(classes, kind="stable")
    side = math.isqrt(len(parts["decoded"]) // len(classes))
    grid = figure.subplots(2, len(classes), squeeze=False)
    for line, name in zip(grid, ("decoded", "example"), strict=True):
        pictures = parts[name].reshape(len(classes), side, side)[order]
        for axes, picture, label in zip(line, pictures, classes[order], strict=True):
            axes.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("#d0d7de")
            if name == "decoded":
                axes.set_title(f"class {label}", fontsize=9, color=INK)


def _values(table: pd.DataFrame, where: dict[str, Any], metric: str) -> np.ndarray:
    rows = select(table, {**MAIN, **where})
    values = rows[metric].to_numpy(dtype=float) if metric in rows else np.empty(0)
    return values[np.isfinite(values)]


def _points(axes: Axes, place: float, values: np.ndarray, colour: str) -> None:
    """Seeds, their mean, and its 95% interval, on one horizontal line."""
    axes.plot(values, np.full(len(values), place), "o", color=colour, ms=4, alpha=0.4, mew=0)
    axes.plot(values.mean(), place, "o", color=colour, ms=7)
    if len(values) > 1:
        axes.plot(mean_interval(values), [place, place], color=colour, lw=2)


def _accuracies(axes: Axes, table: pd.DataFrame) -> None:
    for place, (label, where) in enumerate(reversed(CLASSIFIERS.items())):
        values = 100 * _values(table, where, "test_accuracy")
        if len(values):
            _points(axes, place, values, OURS if label == "prototypes" else OTHER)
            axes.annotate(
                f"{values.mean():.1f}", (1.01, place), xycoords=("axes fraction", "data"),
                va="center", fontsize=9, color=INK,
            )  # fmt: skip
    axes.set_yticks(range(len(CLASSIFIERS)), list(reversed(CLASSIFIERS)))
    axes.set_xlabel("test accuracy, %")
    title(axes, "Accuracy: seeds, mean, 95% interval")


def _terms(axes: Axes, table: pd.DataFrame) -> None:
    colours = (OURS, OTHER, "#e0a030")
    for index, (metric, label) in enumerate(TERMS.items()):
        base = _values(table, {}, metric)
        for place, where in enumerate(reversed(ABLATIONS.values())):
            values = _values(table, where, metric)
            if not len(values) or not len(base) or base.mean() <= 0:
                continue
            level = place + 0.25 * (1 - index)
            ratio = values / base.mean()
            axes.plot(
                ratio, np.full(len(ratio), level), "o", color=colours[index], ms=5, alpha=0.6,
                mew=0, label=label if place == len(ABLATIONS) - 1 else None,
            )  # fmt: skip
            axes.annotate(
                f"{ratio.mean():.3g}x", (ratio.max(), level), (6, 0), textcoords="offset points",
                va="center", fontsize=9, color=colours[index],
            )  # fmt: skip
    axes.axvline(1, color=GREY, lw=1, ls="--", zorder=0)
    axes.set_yticks(range(len(ABLATIONS)), list(reversed(ABLATIONS)))
    axes.set(xscale="log", xlabel="times the mean with all terms", ylim=(-0.6, 3.1))
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}x" if f"{x:e}"[0] in "25" else "")
    axes.margins(x=0.2)
    if axes.lines:
        axes.legend(frameon=False, fontsize=9, loc="upper right")
    title(axes, "Without R1 or R2: every seed")


def _deletions(axes: Axes, table: pd.DataFrame) -> None:
    for place, metric in enumerate(reversed(DELETED)):
        values = 100 * _values(table, {}, metric)
        if len(values):
            _points(axes, place, values, GREY if metric == "deleted_random" else OURS)
            axes.annotate(
                f"{values.mean():.0f}%", (values.max(), place), (8, 0),
                textcoords="offset points", va="center", fontsize=9, color=INK,
            )  # fmt: skip
    axes.set_yticks(range(len(DELETED)), list(reversed(DELETED.values())))
    axes.set(xlabel="test predictions that change, %", ylim=(-0.6, len(DELETED) - 0.4))
    axes.margins(x=0.15)
    title(axes, "Delete one prototype's row")
