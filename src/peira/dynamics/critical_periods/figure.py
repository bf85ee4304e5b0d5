"""The study's picture: equation over network, onset and depth, transfer, what makes it worse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from peira.dynamics.critical_periods.deficits import DeficitSchedule
from peira.dynamics.critical_periods.reduced import pathway_dynamics
from peira.engine.figures import GREY, INK, quiet, slide, title
from peira.engine.verdict import mean_interval, select

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

A, B = "#2e6f95", "#d1495b"
DEPTHS = {1: "#b8b8b8", 2: "#e0a030", 3: "#d1495b", 4: "#5b2a86"}
GATED = {"part": "pathways", "method": "gate", "activation": "linear"}
USUAL = {"rank": 5, "observed": 500}
LARGEST = 15**0.5


def draw(table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Six panels on one slide (13.3 x 7.5 inches)."""
    figure = slide()
    # Each row has a layout of its own, so that long labels in one do not squeeze the other.
    rows = figure.subfigures(2, 1)
    panels = np.array([row.subplots(1, 3) for row in rows])
    _race(panels[0, 0], curves, late=False)
    _race(panels[0, 1], curves, late=True)
    _onsets(panels[0, 2], table)
    _spectrum(panels[1, 0], curves)
    _transfer(panels[1, 1], table)
    _conditions(panels[1, 2], table)
    for axes in panels.flat:
        quiet(axes)
    return figure


def _legend(axes: Axes, **options: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8.5, **options)


def _race(axes: Axes, curves: pd.DataFrame, late: bool) -> None:
    """Strengths of both pathways, one network: circles; the equation: lines."""
    rows = select(curves, {**GATED, "depth": 4, "seed": 0})
    rows = rows[rows["onset"] > 0] if late else rows[rows["onset"] == 0]
    name = "late" if late else "early"
    title(axes, f"Depth 4, {name} deficit of pathway b")
    axes.set(xlabel="training step", ylabel="strength of a mode in a pathway")
    if not len(rows):
        return
    onset = sorted(rows["onset"].unique(), key=lambda step: (abs(step - 400), step))[0]
    rows = rows[rows["onset"] == onset]
    wide = rows.pivot_table(index="step", columns="name", values="value")
    for path, colour, said in (("a", A, "pathway a"), ("b", B, "pathway b")):
        for mode in (0, 1, 2, 4):
            net, ode = (wide[f"{kind}_{path}{mode}"] for kind in ("net", "ode"))
            line, fade = "-" if path == "a" else "--", 1 - 0.15 * mode
            axes.plot(ode.index, ode, line, color=colour, lw=1.6, alpha=fade)
            some = net.iloc[:: max(1, len(net) // 22)]
            label = f"{said}: network" if mode == 0 else None
            axes.plot(
                some.index, some, "o" if path == "a" else "s", color=colour, ms=4.5, mfc="none",
                alpha=fade, label=label,
            )  # fmt: skip
    axes.plot([], [], color=GREY, lw=1.6, label="equation (lines)")
    length = int(rows["length"].iloc[0])
    axes.axvspan(onset, onset + length, color=GREY, alpha=0.2, lw=0, label="b gets no gradient")
    axes.set_ylim(-0.1, 4.6)
    if late:
        _legend(axes, loc="upper right")


def _onsets(axes: Axes, table: pd.DataFrame) -> None:
    """K_b / K_a at the end against onset: means of networks, and the equation between."""
    rows = select(table, GATED)
    title(axes, "Largest mode at the end: 95% CI")
    axes.set(xlabel="onset of the deficit (step)", ylabel="strength in b / strength in a")
    if not len(rows):
        return
    length, steps, last = (int(rows[name].max()) for name in ("length", "steps", "onset"))
    onsets = np.unique(np.linspace(0, last, 101).round().astype(int))
    for depth, part in rows.groupby("depth"):
        deficits = [DeficitSchedule(start=onset, length=length) for onset in onsets]
        solved = pathway_dynamics(
            [LARGEST], (int(depth),), deficits=deficits, steps=steps, every=steps
        )
        colour = DEPTHS[int(depth)]
        axes.plot(onsets, solved.ratio[:, 0, 0], color=colour, lw=1.6, label=f"depth {depth}")
        _points(axes, part, "onset", "ratio", colour)
    axes.set_ylim(-0.03, 1.09)
    _legend(axes, loc="lower right", title="lines: equation")


def _spectrum(axes: Axes, curves: pd.DataFrame) -> None:
    """Singular values of matrix completion, network and equation, across the change of task."""
    rows = select(curves, {"part": "spectrum", "seed": 0})
    title(axes, "Singular values when the matrix changes")
    axes.set(xlabel="training step", ylabel="singular value of the product")
    if not len(rows):
        return
    wide = rows.pivot_table(index="step", columns="name", values="value")
    some = wide.iloc[:: max(1, len(wide) // 30)]
    for i in range(5):
        colour = [INK, A, B, "#e0a030", GREY][i]
        axes.plot(wide.index, wide[f"ode_s{i}"], color=colour, lw=1.5)
        axes.plot(some.index, some[f"net_s{i}"], "o", color=colour, ms=4, mfc="none")
    axes.plot([], [], color=GREY, lw=1.5, label="equation")
    axes.plot([], [], "o", color=GREY, mfc="none", ms=4, label="network, depth 3")
    change = int(rows["pretrain_steps"].iloc[0])
    axes.axvline(change, color=GREY, ls="--", lw=1)
    first, second = int(rows["rank"].iloc[0]), int(rows["second_rank"].iloc[0])
    top = axes.get_ylim()[1]
    axes.set_ylim(top=1.2 * top)
    axes.text(change, 1.12 * top, f"rank {first} first  ", ha="right", fontsize=8.5, color=INK)
    axes.text(change, 1.12 * top, f"  then rank {second}", fontsize=8.5, color=INK)
    _legend(axes, loc="upper left", bbox_to_anchor=(0, 0.92))


def _transfer(axes: Axes, table: pd.DataFrame) -> None:
    """Test loss on the second matrix against steps on the first."""
    title(axes, "A second matrix: mean, 95% CI")
    axes.set(xlabel="steps on the first matrix", ylabel="test loss (1 = nothing learned)")
    rows = _plain_transfers(table)
    if not len(rows):
        return
    for depth, part in rows.groupby("depth"):
        middle = part.groupby("pretrain_steps")["test_loss"].mean()
        colour = DEPTHS[int(depth)]
        axes.plot(middle.index, middle, color=colour, lw=1.6, label=f"depth {depth}")
        _points(axes, part, "pretrain_steps", "test_loss", colour)
    axes.set_xscale("symlog", linthresh=min(s for s in rows["pretrain_steps"].unique() if s))
    axes.set_xticks(ticks := sorted(rows["pretrain_steps"].unique()), [f"{t:,}" for t in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=-0.03)
    _legend(axes, loc="center left")


def _plain_transfers(table: pd.DataFrame) -> pd.DataFrame:
    rows = select(table, {"part": "transfer", "method": "task", "angle": None})
    rows = rows[rows["first_observed"].isna()] if len(rows) else rows
    return _at_usual(rows, ("rank", "observed", "init_scale"))


def _at_usual(rows: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """Rows of the commonest value of each name, which is what the sweeps start from."""
    for name in names:
        rows = rows[rows[name] == rows[name].mode().iat[0]] if len(rows) else rows
    return rows


def _conditions(axes: Axes, table: pd.DataFrame) -> None:
    """Damage after the longest first task, under every condition."""
    title(axes, "Damage at depth 3: seeds, 95% CI")
    axes.set(xlabel="rise of the test loss after the longest first task")
    shown = [(label, values) for label, values in _damages(table) if len(values)][::-1]
    for place, (label, values) in enumerate(shown):
        colour = B if label.startswith("usual") else INK
        axes.plot(values, np.full(len(values), place), "o", color=colour, ms=4, alpha=0.35, mew=0)
        low, high = mean_interval(values)
        axes.plot([low, high], [place, place], color=colour, lw=1.8)
        axes.plot(values.mean(), place, "o", color=colour, ms=6)
    axes.axvline(0, color=GREY, lw=1, ls="--", zorder=0)
    axes.set_yticks(range(len(shown)), [label for label, _ in shown])


def _damages(table: pd.DataFrame) -> list[tuple[str, np.ndarray]]:
    rows = select(table, {"part": "transfer", "depth": 3})
    if not len(rows) or "damage" not in rows:
        return []
    last = rows["pretrain_steps"].max()
    rows = rows[
        (rows["pretrain_steps"] == last) & (rows["init_scale"] == rows["init_scale"].mode().iat[0])
    ]
    same = rows[rows["first_observed"].notna()]
    rows = rows[rows["first_observed"].isna()]
    angled, rows = rows[rows["angle"].notna()], rows[rows["angle"].isna()]
    cured, rows = rows[rows["method"] == "cure"], rows[rows["method"] == "task"]
    usual = {name: cured[name].iat[0] if len(cured) else value for name, value in USUAL.items()}
    found: list[tuple[str, pd.DataFrame]] = [
        (f"usual: rank {usual['rank']}, {usual['observed']:,} entries", select(rows, usual)),
        ("learning rate x 4 afterwards", cured),
    ]
    for name, said in (("rank", "first rank {}"), ("observed", "{:,} entries")):
        rest = select(rows, {key: value for key, value in usual.items() if key != name})
        for value in sorted(set(rest[name]) - {usual[name]}):
            found.append((said.format(value), rest[rest[name] == value]))
    for angle, part in angled.groupby("angle"):
        found.append((f"subspaces at {angle:.0f}°", part))
    for count, part in same.groupby("observed"):
        entries = int(part["first_observed"].iat[0])
        found.append((f"same matrix, {entries:,} then {count:,}", part))
    return [(label, part["damage"].to_numpy(float)) for label, part in found]


def _points(axes: Axes, rows: pd.DataFrame, x: str, metric: str, colour: str) -> None:
    for value, part in rows.groupby(x):
        numbers = part[metric].to_numpy(float)
        low, high = mean_interval(numbers)
        axes.plot([value, value], [low, high], color=colour, lw=1.4, alpha=0.7)
        axes.plot(value, numbers.mean(), "o", color=colour, ms=5)
