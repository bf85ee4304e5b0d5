"""The picture of the study: the theory as lines, the Monte Carlo as points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peira.engine.figures import GREY, INK, quiet, slide, title
from peira.engine.verdict import mean_interval
from peira.memory.dense_hebbian.examples import Examples
from peira.memory.dense_hebbian.theory import (
    branches,
    critical_load,
    dense_examples_needed,
    phase_diagram,
    retrieval_temperature,
    tolerated_noise,
)

COLOURS = {2: "#d1495b", 3: "#edae49", 4: "#00798c", 6: "#6a4c93"}
ENTROPY_COLOURS = {0.0: "#00798c", 0.05: "#66a182", 0.2: "#b5838d"}


def draw(table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Six panels; those without rows stay empty.

    Args:
        table: one row per cell and seed.
        curves: overlaps while heating, and over flipped pixels.
    """
    figure = slide()
    axes = figure.subplots(2, 3).ravel()
    _load_panel(axes[0], table[table["part"] == "load"])
    _diagram_panel(axes[1], curves[curves["part"] == "heat"])
    _learning_panel(axes[2], table[table["part"] == "learning"])
    _detection_panel(axes[3], table[table["part"] == "detection"])
    _solver_panel(axes[4], table[table["part"] == "mean-field"])
    _picture_panel(axes[5], table[table["part"] == "pictures"])
    for panel in axes:
        quiet(panel)
    figure.suptitle(
        "Dense Hebbian networks: replica-symmetric theory (lines) and Monte Carlo "
        "(points, 95% intervals over seeds)",
        fontsize=13, color=INK,
    )  # fmt: skip
    return figure


def _load_panel(axes: Axes, rows: pd.DataFrame) -> None:
    title(axes, "Overlap against load, T = 0")
    for (P, r, M), part in rows.groupby(["P", "r", "M"]):
        data: Examples | float = 0.0 if r == 1 else Examples(float(r), int(M))
        rho = 0.0 if r == 1 else Examples(float(r), int(M)).rho
        if P != 4 and rho > 0:
            continue
        full = critical_load(int(P))
        colour = COLOURS[int(P)] if rho == 0 else ENTROPY_COLOURS[round(rho, 2)]
        there = branches(int(P), 0.0, data)
        x = there.alpha / full
        axes.plot(x[there.stable], there.m[there.stable], color=colour, lw=1.3)
        axes.plot(x[~there.stable], there.m[~there.stable], color=colour, lw=0.9, ls=":")
        label = f"P = {P}" + (f", ρ = {rho:.2f}" if rho else "")
        means = part.assign(x=part["alpha"] / full)
        _points(axes, means, "x", "m", colour, label)
    axes.set(xlabel="load α / α_c(ρ = 0)", ylabel="overlap m", xlim=(0, 1.45), ylim=(0, 1.03))
    _legend(axes, "lower left")


def _diagram_panel(axes: Axes, rows: pd.DataFrame) -> None:
    title(axes, "Where P = 4 retrieves")
    top, full = retrieval_temperature(4), critical_load(4)
    for rho, colour in ENTROPY_COLOURS.items():
        Ts = np.linspace(0, retrieval_temperature(4, rho), 60)
        edge = [critical_load(4, float(T), rho) / full for T in Ts]
        axes.plot(edge, Ts / top, color=colour, label=f"retrieval ends, ρ = {rho:g}")
    for steps, style in ((0, ":"), (1, "--")):
        edge, Ts = _equal_energy(steps)
        axes.plot(edge / full, Ts / top, color=GREY, lw=1, ls=style, label=f"equal f, {steps} RSB")
    heated = rows[(rows["P"] == 4) & (rows["name"].isin(("m", "T")))]
    if len(heated):
        wide = heated.pivot_table(
            index=["N", "K", "step"], columns="name", values="value"
        ).reset_index()
        shown = axes.scatter(
            wide["K"] / wide["N"] ** 3 / full, wide["T"] / top, c=wide["m"], cmap="viridis",
            vmin=0, vmax=1, s=34, edgecolors=INK, linewidths=0.5, zorder=3,
        )  # fmt: skip
        axes.figure.colorbar(shown, ax=axes, label="overlap m (Monte Carlo)")
    axes.set(
        xlabel="load α / α_c(T = 0)",
        ylabel="T / T at which α_c = 0",
        xlim=(0, 1.3),
        ylim=(-0.05, 1.6),
    )
    _legend(axes, "upper right")


def _equal_energy(steps: int) -> tuple[Any, Any]:
    """Loads at which retrieval and glass have one free energy, by temperature (P = 4)."""
    top = retrieval_temperature(4)
    edges, Ts = [], []
    for T in np.linspace(0, 0.95 * top, 14):
        loads = np.linspace(0.0, critical_load(4, float(T)), 50)
        phases = phase_diagram(4, 0.0, loads, [float(T)], steps)
        lowest = phases.loc[phases["phase"] == "retrieval", "alpha"]
        if len(lowest):
            edges.append(lowest.max())
            Ts.append(T)
    return np.array(edges), np.array(Ts)


def _learning_panel(axes: Axes, rows: pd.DataFrame) -> None:
    title(axes, "Examples for m = 0.9, P = 4")
    marks = {"supervised": "#00798c", "unsupervised": "#d1495b"}
    for mode, part in rows.groupby("mode"):
        qualities = np.geomspace(part["r"].min(), part["r"].max(), 12)
        alpha = float((part["K"] / part["N"] ** 3).iloc[0])
        M = [dense_examples_needed(float(r), 4, 0.9, mode, alpha) for r in qualities]
        axes.plot(qualities, M, color=marks[mode], lw=1.3)
        _points(axes, part, "r", "examples", marks[mode], mode)
    axes.set(xlabel="quality r of an example", ylabel="examples per pattern M")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([0.1, 0.2, 0.4, 0.6], ["0.1", "0.2", "0.4", "0.6"])
    axes.minorticks_off()
    _legend(axes, "upper right")


def _detection_panel(axes: Axes, rows: pd.DataFrame) -> None:
    title(axes, "Tolerated noise in the couplings, T = 0")
    for P, part in rows.groupby("P"):
        known = part.drop_duplicates("N").sort_values("N")
        expected = [
            tolerated_noise(int(P), n, k) for n, k in zip(known["N"], known["K"], strict=True)
        ]
        axes.plot(known["N"], expected, color=COLOURS[int(P)], lw=1.3)
        load = "N/20" if P == 2 else "N"
        _points(axes, part, "N", "omega", COLOURS[int(P)], f"P = {P}, K = {load}")
    axes.set(xlabel="spins N", ylabel="noise ω per pattern at m = 0.8")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([16, 32, 64, 128], ["16", "32", "64", "128"])
    axes.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    axes.minorticks_off()
    _legend(axes, "lower right")


def _solver_panel(axes: Axes, rows: pd.DataFrame) -> None:
    title(axes, "Plefka's equations against Monte Carlo, P = 4")
    names = {
        "tensor": ("Monte Carlo, tensor", "s", GREY),
        "monte-carlo": ("Monte Carlo, pattern space", "o", "#d1495b"),
        "plefka-1": ("Plefka, first order", "^", "#edae49"),
        "plefka-2": ("Plefka, second order", "D", "#00798c"),
    }
    networks = sorted({(int(n), float(t)) for n, t in zip(rows["N"], rows["T"], strict=True)})
    for solver, (label, mark, colour) in names.items():
        part = rows[rows["solver"] == solver]
        for place, (N, T) in enumerate(networks):
            group = part[(part["N"] == N) & (part["T"] == T)]
            if not len(group):
                continue
            milliseconds = 1000 * group["seconds_each"].to_numpy(float)
            low, high = mean_interval(np.log(milliseconds)) if len(group) > 1 else (np.nan, np.nan)
            middle = float(np.exp(np.log(milliseconds).mean()))
            axes.errorbar(
                middle, place, xerr=[[middle - np.exp(low)], [np.exp(high) - middle]], fmt=mark,
                color=colour, ms=6, elinewidth=1,
                label=label if place == len(networks) - 1 else None,
            )  # fmt: skip
            below = solver in ("plefka-1", "tensor")
            axes.annotate(
                f"{group['m'].mean():.3f}", (middle, place), (0, -15 if below else 8),
                textcoords="offset points", ha="center", fontsize=7.5, color=colour,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yticks(range(len(networks)), [f"N = {N}\nT = {T:g}" for N, T in networks])
    axes.set(xlabel="processor time per pattern (ms); numbers: overlap m", ylim=(-0.6, 5.4))
    for solver in names:
        # The tensor is for the small network only.
        if solver == "tensor" and (rows["solver"] == solver).any():
            axes.plot([], [], "s", color=GREY, label=names[solver][0])
    _legend(axes, "upper right")


def _picture_panel(axes: Axes, rows: pd.DataFrame) -> None:
    name = "mnist" if (rows["data"] == "mnist").any() else "digits"
    title(axes, f"Class means of {name.replace('mnist', 'MNIST')}")
    part = rows[rows["data"] == name]
    taught = part[(part["mode"] == "supervised") & (part["rule"] == "dense")]
    plain = taught[~taught["centre"].astype(bool)]
    four = taught[taught["P"] == 4]
    styles: dict[str, tuple[pd.DataFrame, str, str]] = {
        f"P = {P}": (plain[plain["P"] == P], COLOURS[P], "-") for P in (2, 4, 6)
    }
    styles["P = 4, centred"] = (four[four["centre"].astype(bool)], COLOURS[3], "-")
    styles["P = 4, unsupervised"] = (part[part["mode"] == "unsupervised"], COLOURS[4], ":")
    for rule, colour in (("pseudo-inverse", GREY), ("softmax", INK), ("nearest-mean", "#66a182")):
        styles[rule] = (part[part["rule"] == rule], colour, "--")
    for label, (group, colour, style) in styles.items():
        names = [c for c in group if str(c).startswith("overlap ")]
        if not len(group) or not names:
            continue
        shares = [100 * float(c.split()[1]) for c in names]
        values = group[names].to_numpy(float)
        intervals = np.array([mean_interval(column) for column in values.T])
        means = values.mean(axis=0)
        errors = np.abs(intervals.T - means)
        axes.errorbar(
            shares, means, errors, color=colour, ls=style, marker="o", ms=3.5, lw=1.2,
            elinewidth=1, label=label,
        )  # fmt: skip
    axes.set(
        xlabel="pixels flipped in the cue (%)",
        ylabel="overlap with the archetype",
        ylim=(-0.4, 1.03),
        yticks=np.linspace(0, 1, 6),
    )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7.5, loc="lower left", ncols=2)


def _points(axes: Axes, rows: pd.DataFrame, x: str, y: str, colour: str, label: str) -> None:
    groups = [(value, part[y].dropna().to_numpy(float)) for value, part in rows.groupby(x)]
    known = [(value, ys.mean(), *mean_interval(ys)) for value, ys in groups if len(ys) > 1]
    if not known:
        return
    xs, means, low, high = np.array(known).T
    axes.errorbar(
        xs, means, [means - low, high - means], fmt="o", ms=4, color=colour, elinewidth=1,
        label=label,
    )  # fmt: skip


def _legend(axes: Axes, place: str) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=7.5, loc=place)
