"""The study's picture: two phases, the trade-off, both networks side by side, the waiting time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from peira.dynamics.icl_abrupt.timing import icl_timing_model
from peira.engine.figures import GREY, INK, quiet, slide, title
from peira.engine.verdict import mean_interval, select

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

IC, IWL, CLA, ATTENTION = "#d1495b", "#2e6f95", "#e0a030", "#5b8c5a"
CURVES = {
    "ic": ("ICL (novel classes)", IC, "-"),
    "iwl": ("IWL (context of no use)", IWL, "-"),
    "cla": ("probability on context labels", CLA, "-"),
    "tla2": ("layer 2: target to its labels", ATTENTION, "-"),
    "ila1": ("layer 1: label to its item", ATTENTION, "--"),
}


def draw(
    table: pd.DataFrame, curves: pd.DataFrame, base: Mapping[str, Any], both: pd.DataFrame
) -> Figure:
    """Four panels on one slide (13.3 x 7.5 inches)."""
    figure = slide()
    panels = figure.subplots(2, 2, width_ratios=[1.1, 1])
    _phases(panels[0, 0], curves, base)
    conditions = laws(table, base)
    _trade_off(panels[0, 1], table, base, conditions)
    _side_by_side(panels[1, 1], both, base, conditions)
    _waiting(panels[1, 0], curves, table, base)
    for axes in panels.flat:
        quiet(axes)
    return figure


def _phases(axes: Axes, curves: pd.DataFrame, base: Mapping[str, Any]) -> None:
    rows = select(curves, {"method": "full", **base})
    for name, (label, colour, style) in CURVES.items():
        wide = _by_seed(rows[rows["name"] == name])
        if not len(wide):
            continue
        axes.fill_between(wide.index, wide.min(axis=1), wide.max(axis=1), color=colour, alpha=0.15)
        axes.plot(wide.index, wide.mean(axis=1), style, color=colour, lw=2, label=label)
    guess = base["B"] / base["N"]
    axes.axhline(guess, color=GREY, lw=1, ls=":")
    axes.annotate(
        "a random label of the context", (1, guess), (0, -3), xycoords=("axes fraction", "data"),
        textcoords="offset points", ha="right", va="top", color=GREY, fontsize=8.5,
    )  # fmt: skip
    axes.set(ylim=(0, 1.03), xlabel="training steps", ylabel="accuracy, probability, attention")
    title(axes, "Two phases: mean and range over seeds")
    if axes.lines[1:]:
        axes.legend(frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1, 0.09))


def _by_seed(rows: pd.DataFrame) -> pd.DataFrame:
    wide = rows.astype({"step": float, "value": float})
    return wide.pivot_table(index="step", columns="seed", values="value").sort_index().dropna()


def laws(table: pd.DataFrame, base: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The laws of sequences, numbered: words -> cell fields beside the main condition's."""
    sizes = sorted(table["K"][table["method"] == "full"].unique())
    few, some = sizes[0], sizes[len(sizes) // 2]
    other = 1 if base["B"] != 1 else base["N"] // 2
    many = base["K"]
    named = {
        f"K = {few}, no bursts": {"K": few, "p_bursty": 0.0},
        f"K = {few}": {"K": few},
        f"K = {few}, eps = 1": {"K": few, "eps": 1.0},
        f"K = {some}": {"K": some},
        f"K = {many}, zipf = 1.5": {"zipf": 1.5},
        f"K = {many}, half bursty": {"p_bursty": 0.5},
        f"K = {many}, eps = 1": {"eps": 1.0},
        f"K = {many}, B = {other}": {"B": other},
        f"K = {many}": {},
    }
    return {f"{words}   {n}": law for n, (words, law) in enumerate(named.items(), 1)}


def _trade_off(
    axes: Axes,
    table: pd.DataFrame,
    base: Mapping[str, Any],
    conditions: Mapping[str, Mapping[str, Any]],
) -> None:
    for place, law in enumerate(reversed(conditions.values())):
        rows = select(table, {"method": "full", **base, **law})
        for name, colour, shift in (("ic", IC, 0.1), ("iwl", IWL, -0.1)):
            values = rows[name].to_numpy(dtype=float)
            if not len(values):
                continue
            level = place + shift
            axes.plot(np.clip(mean_interval(values), 0, 1), [level] * 2, color=colour, lw=2)
            axes.plot(values.mean(), level, "o", color=colour, ms=6)
    axes.set_yticks(range(len(conditions)), list(conditions)[::-1])
    axes.axvline(1 / base["L"], color=GREY, lw=1, ls=":")
    axes.set(xlim=(-0.02, 1.02), xlabel="final accuracy, mean and 95% interval (dotted: chance)")
    axes.plot([], [], "o", color=IC, label="ICL")
    axes.plot([], [], "o", color=IWL, label="IWL")
    axes.legend(frameon=False, fontsize=9, loc="center right")
    title(axes, "The data decide: in context or in weights")


def _side_by_side(
    axes: Axes,
    both: pd.DataFrame,
    base: Mapping[str, Any],
    conditions: Mapping[str, Mapping[str, Any]],
) -> None:
    law = [name for name in both if name not in ("seed", "full", "two_parameter")]
    axes.plot(both["full"], both["two_parameter"], "o", color=GREY, ms=4, alpha=0.5, mew=0)
    for number, settings in enumerate(conditions.values(), 1):
        wanted = {**base, **settings}
        rows = select(both, {name: wanted[name] for name in law})
        if not len(rows):
            continue
        centre = (rows["full"].mean(), rows["two_parameter"].mean())
        axes.plot(*centre, "o", color=INK, ms=13)
        axes.annotate(str(number), centre, ha="center", va="center", color="white", fontsize=8.5)
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":")
    axes.set(
        xlim=(0, 1), ylim=(0, 1.05), xlabel="full network: ICL accuracy, mean over training",
        ylabel="two-parameter model",
    )  # fmt: skip
    title(axes, "Two parameters for all attention (numbers: as above)")


def _waiting(
    axes: Axes, curves: pd.DataFrame, table: pd.DataFrame, base: Mapping[str, Any]
) -> None:
    distinct = {**base, "method": "full", "B": 1, "no_repeats": True, "optimizer": "sgd"}
    for L, colour in ((base["L"], IC), (base["N"], INK)):
        rows = select(curves, {**distinct, "L": L, "name": "ic"})
        wide = _by_seed(rows)
        if not len(wide):
            continue
        axes.fill_between(wide.index, wide.min(axis=1), wide.max(axis=1), color=colour, alpha=0.15)
        words = f"network, L = {L}, N = {base['N']}" + (
            " (no curriculum)" if base["N"] == L else ""
        )
        axes.plot(wide.index, wide.mean(axis=1), color=colour, lw=2, label=words)
    fits = select(table, {**distinct, "L": base["L"]})
    if "steps_per_unit" in fits and fits["steps_per_unit"].notna().any():
        best = fits.iloc[(fits["steps_per_unit"] - fits["steps_per_unit"].median()).abs().argmin()]
        course = icl_timing_model(
            base["L"], base["N"], start=float(best["timing_start"]), until=1e4
        )
        axes.plot(
            course.time * float(best["steps_per_unit"]), course.probability, "--", color=CLA, lw=2,
            label="three nested logits, fitted in time",
        )  # fmt: skip
        axes.set_xlim(0, float(wide.index.max()) if len(wide) else None)
    axes.set(ylim=(0, 1.03), xlabel="training steps (SGD, distinct labels)", ylabel="ICL accuracy")
    title(axes, "When ICL appears: networks and the three-logit model")
    if axes.lines:
        axes.legend(frameon=False, fontsize=8.5, loc="center right")
