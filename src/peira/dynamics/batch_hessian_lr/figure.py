"""The study's picture: spectra, random matrices, largest rates, damping and the learner."""

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

BLUE, RED, ORANGE, GREEN = "#2e6f95", "#d1495b", "#e0a030", "#4c956c"
MOMENT_COLOURS = (BLUE, GREEN, RED)
LEARNER_STYLE = {
    "grid": ("best of 24-point grid", INK, "-"),
    "slq": ("SLQ tuner", RED, "-"),
    "slq-published": ("SLQ, published rule", RED, ":"),
    "line-search": ("Armijo line search", ORANGE, "-"),
    "adahessian": ("AdaHessian", GREEN, "-"),
    "range-test": ("range test, momentum 0.9", BLUE, "-"),
    "full-curvature": ("SGD, 2 / λ₁ at start", GREY, "-"),
}


def draw(table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Six panels on one slide (13.3 x 7.5 inches)."""
    figure = slide()
    panels = figure.subplots(2, 3)
    _spectra(panels[0, 0], table)
    _predictions(panels[0, 1], table)
    _matrices(panels[0, 2], table)
    _rates(panels[1, 0], table)
    _damping(panels[1, 1], table)
    _learners(panels[1, 2], curves)
    for axes in panels.flat:
        quiet(axes)
        if axes.get_legend_handles_labels()[0] and not axes.get_legend():
            axes.legend(frameon=False, fontsize=8)
    return figure


def _interval(rows: pd.DataFrame, x: str, y: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, mean and half-width of the 95% interval over seeds (0 for one seed)."""
    grouped = rows.groupby(x)[y]
    mean = grouped.mean().to_numpy()
    high = np.array([mean_interval(values.dropna().to_numpy())[1] for _, values in grouped])
    return np.array(sorted(rows[x].unique()), dtype=float), mean, np.nan_to_num(high - mean)


def _points(axes: Axes, rows: pd.DataFrame, x: str, y: str, **style: Any) -> None:
    at, mean, half = _interval(rows, x, y)
    axes.errorbar(at, mean, half, fmt="o", ms=4.5, capsize=2, lw=1.2, **style)


def _log(axes: Axes, *, base: int = 2, both: bool = True) -> None:
    axes.set_xscale("log", base=base)
    axes.xaxis.set_major_formatter("{x:g}")
    if both:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")


def _spectra(axes: Axes, table: pd.DataFrame) -> None:
    rows = select(table, {"topic": "spectrum", "method": "hessian"})
    moments = sorted(set(rows["moment"]))
    for moment, colour in zip(moments, MOMENT_COLOURS, strict=False):
        part = select(rows, {"moment": moment})
        label = "initial weights" if not moment else f"after {moment:,} steps"
        _points(axes, part, "batch", "largest", color=colour, label=label)
        _points(axes, part, "batch", "smallest", color=colour, mfc="white")
        part = part.assign(law=part["full_largest"] + part["excess_directional"])
        axes.plot(*_interval(part, "batch", "law")[:2], color=colour, lw=1.2)
        axes.plot(*_interval(part, "batch", "smallest_predicted")[:2], color=colour, lw=1.2)
        axes.axhline(part["full_largest"].mean(), color=colour, lw=0.8, ls=":")
    _log(axes, both=False)
    axes.set(xlabel="batch size B", ylabel="eigenvalue of the batch Hessian")
    title(axes, "Extremal curvature of batches")
    axes.text(
        0.97, 0.62, "points: measured (open: smallest)\nlines: directional law\ndotted: all data",
        transform=axes.transAxes, ha="right", fontsize=8, color=GREY,
    )  # fmt: skip


def _predictions(axes: Axes, table: pd.DataFrame) -> None:
    rows = select(table, {"topic": "spectrum", "method": "hessian"})
    rows = rows[rows["excess"] > 0]
    for name, label, colour in (
        ("excess_directional", "directional: E|(Hᵢ - H)u₁|²", RED),
        ("excess_iid", "independent entries: E|Hᵢ - H|²/P", GREY),
    ):
        shown = rows[rows[name] > 0]
        axes.scatter(
            shown["excess"], shown[name], s=13, color=colour, alpha=0.55, lw=0, label=label
        )
    if len(rows):
        ends = np.array([rows["excess"].min(), rows["excess"].max()])
        axes.plot(ends, ends, color=INK, lw=1.2)
        axes.fill_between(ends, ends / 2, ends * 2, color=INK, alpha=0.08, lw=0)
    _log(axes, base=10)
    axes.set(xlabel="measured excess of λ₁'(B) over λ₁", ylabel="predicted excess")
    title(axes, "Noise of networks is not independent")


def _matrices(axes: Axes, table: pd.DataFrame) -> None:
    for method, colour, label in (
        ("wigner", BLUE, "additive (Wigner)"),
        ("wishart", ORANGE, "multiplicative (Wishart)"),
    ):
        rows = select(table, {"topic": "matrix", "method": method})
        _points(axes, rows, "spike", "eigenvalue", color=colour, label=label)
        axes.plot(*_interval(rows, "spike", "eigenvalue_predicted")[:2], color=colour, lw=1.2)
        _points(axes, rows, "spike", "overlap", color=colour, mfc="white")
        axes.plot(*_interval(rows, "spike", "overlap_predicted")[:2], color=colour, lw=1.2, ls="--")
    axes.axvline(1, color=GREY, lw=0.8, ls=":")
    axes.set(
        xlabel="spike, in units of the transition", ylabel="eigenvalue (filled), overlap (open)"
    )
    title(axes, "Random matrices follow the theorems")


def _rates(axes: Axes, table: pd.DataFrame) -> None:
    for method, colour, label in (("sgd", BLUE, "SGD"), ("adam", RED, "Adam")):
        rows = select(table, {"topic": "largest-rate", "method": method})
        _points(axes, rows, "batch", "lr_max", color=colour, label=f"{label}, measured")
        at, predicted, _ = _interval(rows, "batch", "lr_law")
        axes.plot(at, predicted, color=colour, lw=1.4, label=f"{label}, law at the start")
        if 16 in at:
            start = rows[rows["batch"] == 16]["lr_max"].mean()
            power = 1.0 if method == "sgd" else 0.5
            rule = "linear rule" if method == "sgd" else "square-root rule"
            axes.plot(at, start * (at / 16) ** power, color=colour, lw=1, ls=":", label=rule)
    _log(axes)
    axes.set(xlabel="batch size B", ylabel="largest learning rate", ylim=(0.004, 90))
    if axes.lines:
        axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    title(axes, "Largest rate that learns")


def _damping(axes: Axes, table: pd.DataFrame) -> None:
    rows = select(table, {"topic": "damping"})
    rates = sorted(set(rows["learning_rate"]))
    for rate, colour in zip(rates, (BLUE, GREEN, RED), strict=False):
        part = select(rows, {"learning_rate": rate})
        _points(axes, part, "batch", "damping", color=colour, label=f"learning rate {rate:g}")
        axes.plot(*_interval(part, "batch", "damping_predicted")[:2], color=colour, lw=1.2)
    _log(axes)
    axes.set(xlabel="batch size B", ylabel="smallest damping that settles")
    title(axes, "Damping of RMSprop; lines: lr / largest rate")


def _learners(axes: Axes, curves: pd.DataFrame) -> None:
    import pandas as pd

    where: Mapping[str, Any] = {"topic": "learner", "task": "digits", "name": "train_loss"}
    for method, (label, colour, style) in LEARNER_STYLE.items():
        rows = select(curves, {**where, "method": method})
        if not len(rows):
            continue
        # A diverged run has no number for its loss any more.
        losses = pd.to_numeric(rows["value"], errors="coerce").replace(np.inf, np.nan)
        wide = rows.assign(value=losses).pivot_table(index="step", columns="seed", values="value")
        middle = wide.median(axis=1)
        axes.plot(middle.index, middle, color=colour, ls=style, lw=1.8, label=label)
    axes.set_yscale("log")
    low = axes.get_ylim()[0]
    axes.set(ylim=(low, 3000), xlabel="training steps (digits, B = 64)", ylabel="training loss")
    title(axes, "Learners: median over seeds")
