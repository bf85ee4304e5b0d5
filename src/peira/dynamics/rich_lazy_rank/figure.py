"""The study's picture: alignment by rank, by singular value, by task, and in the linear theory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from peira.dynamics.rich_lazy_rank.verdicts import KA, matched
from peira.engine.figures import quiet, slide, title

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RULES = {
    "fro": ("same Frobenius norm (the paper)", "#d1495b", "-"),
    "spectral": ("same leading singular value", "#2e6f95", "--"),
    "radius": ("same spectral radius", "#e0a030", ":"),
}
# Kind of initial weights -> how it is shown.
KINDS = {
    "ranks, same norm": ("#d1495b", "o"),
    "ranks, same singular value": ("#2e6f95", "s"),
    "ranks, same radius": ("#e0a030", "D"),
    "full rank, other gains": ("#57606a", "^"),
    "orthogonal": ("#22272e", "P"),
    "cell types": ("#3c8d5a", "X"),
    "cell types, shuffled": ("#9ccfae", "X"),
    "chains": ("#7b5ea7", "v"),
    "chains, shuffled": ("#c3b3dc", "v"),
}
TASKS = {"2AF": "#d1495b", "DMS": "#2e6f95", "CXT": "#e0a030", "digits": "#3c8d5a"}
TASKS["sMNIST"] = TASKS["digits"]


def draw(table: pd.DataFrame) -> Figure:
    """Four panels on one slide (13.3 x 7.5 inches)."""
    figure = slide()
    panels = figure.subplots(2, 2)
    equal = matched(table)
    full = equal["rank"].isna()
    equal = equal.assign(rank_number=equal["rank"].fillna(equal["hidden"]), full=full)
    _by_rank(panels[0, 0], equal)
    _by_singular_value(panels[0, 1], equal)
    _by_task(panels[1, 0], equal)
    _theory(panels[1, 1], table)
    for axes in panels.flat:
        quiet(axes)
        axes.set(ylim=(0, 1.02), ylabel="tangent-kernel alignment")
    return figure


def _points(axes: Axes, rows: pd.DataFrame, x: str, **style: object) -> None:
    """Means with 95% intervals over seeds, seeds in the background."""
    from peira.engine.verdict import mean_interval

    grouped = rows.groupby("rank_number")
    means = grouped[[x, KA]].mean()
    ends = np.array([mean_interval(part[KA].to_numpy()) for _, part in grouped])
    spread = np.abs(ends - means[[KA]].to_numpy()).T if len(ends) else None
    axes.errorbar(means[x], means[KA], yerr=spread, capsize=3, lw=1.8, ms=6, **style)  # type: ignore[arg-type]


def _by_rank(axes: Axes, equal: pd.DataFrame) -> None:
    base = equal[(equal["task"] == "2AF") & (equal["init"] == "truncated")]
    base = base[base["gain"] == 1.25]
    for rule, (label, colour, line) in RULES.items():
        # The full matrix is the same under every rule.
        rows = base[(base["match"] == rule) | base["full"]]
        if len(rows):
            _points(axes, rows, "rank_number", color=colour, ls=line, marker="o", label=label)
    axes.set(xscale="log", xlabel="rank of the initial recurrent weights")
    _number_ticks(axes, base["rank_number"])
    title(axes, "Two-alternative task: does rank make learning lazy?")
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def _number_ticks(axes: Axes, values: pd.Series[float]) -> None:
    numbers = sorted(values.unique())
    axes.set_xticks(numbers, [f"{number:.0f}" for number in numbers])
    axes.minorticks_off()


def _kind(row: pd.Series) -> str:
    if row["init"] in ("block", "chain"):
        name = "cell types" if row["init"] == "block" else "chains"
        return name if row["shuffle"] == "none" else f"{name}, shuffled"
    if row["init"] == "orthogonal":
        return "orthogonal"
    if row["gain"] != 1.25:
        return "full rank, other gains"
    names = {"fro": "norm", "spectral": "singular value", "radius": "radius"}
    return f"ranks, same {names[row['match']]}"


def _by_singular_value(axes: Axes, equal: pd.DataFrame) -> None:
    conditions = ["init", "match", "shuffle", "gain", "rank_number"]
    rows = equal[equal["task"] == "2AF"]
    means = rows.groupby(conditions)[["leading_singular_value", KA]].mean().reset_index()
    if not len(means):
        return
    means["kind"] = means.apply(_kind, axis=1)
    for kind, (colour, marker) in KINDS.items():
        part = means[means["kind"] == kind]
        if len(part):
            axes.plot(
                part["leading_singular_value"], part[KA], marker, color=colour, ms=8, label=kind
            )
    axes.set(xscale="log", xlabel="leading singular value of the initial recurrent weights")
    low, high = (means["leading_singular_value"].agg(end) for end in ("min", "max"))
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100) if low / 2 <= tick <= high * 2]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlim(low / 1.3, high * 1.3)
    axes.minorticks_off()
    title(axes, "The same networks by their largest singular value (means)")
    axes.legend(frameon=False, fontsize=8.5, loc="upper right")


def _by_task(axes: Axes, equal: pd.DataFrame) -> None:
    usual = (equal["init"] == "truncated") & (equal["match"] == "fro") & (equal["gain"] == 1.25)
    rows = equal[usual]
    names = [name for name in TASKS if name in set(rows["task"])]
    for place, name in enumerate(names):
        part = rows[rows["task"] == name]
        ends = part[part["full"] | (part["rank_number"] == part["rank_number"].min())]
        for (_, full), some in ends.groupby(["rank_number", "full"]):
            left = place + (0.15 if full else -0.15)
            axes.plot(
                np.full(len(some), left), some[KA], "o", color=TASKS[name], ms=5, alpha=0.45, mew=0
            )
            axes.plot(
                left, some[KA].mean(), "o", ms=9, color=TASKS[name], mfc=None if full else "white"
            )
        lines = ends.pivot_table(index="seed", columns="full", values=KA).dropna()
        if lines.shape[1] == 2:
            axes.plot([place - 0.15, place + 0.15], lines.T, color=TASKS[name], lw=0.8, alpha=0.5)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, max(len(names), 1) - 0.5)
    axes.set_xlabel("task")
    title(axes, "Every task, by seed: lowest rank (hollow) and full rank")


def _theory(axes: Axes, table: pd.DataFrame) -> None:
    rows = table[(table["task"] == "linear") & (table["condition"] == 1)]
    rows = rows.assign(rank_number=rows["rank"].fillna(rows["hidden"]))
    shades = ["#2e6f95", "#74a9cf", "#b5cfe3"]
    for size, colour in zip(sorted(rows["hidden"].unique()), shades, strict=False):
        for init, line in (("flat", "-"), ("truncated", "--")):
            part = rows[(rows["init"] == init) & (rows["hidden"] == size)]
            name = {"flat": "equal singular values", "truncated": "truncated Gaussian"}[init]
            _points(
                axes, part, "rank_number", color=colour, ls=line, marker="o", mfc="white",
                label=f"{size} inputs, {name}",
            )  # fmt: skip
    known = rows[rows["init"].isin(["aligned", "against"])]
    for init, label, colour in (
        ("aligned", "rank 1 along the target", "#d1495b"),
        ("against", "rank 1 orthogonal to it, w infinitesimal", "#e0a030"),
    ):
        part = known[known["init"] == init]
        if len(part):
            axes.plot(1, part[KA].mean(), "*", ms=14, color=colour, label=label)
    axes.set(xscale="log", xlabel="rank of the first layer")
    if len(rows):
        _number_ticks(axes, rows["rank_number"])
    title(axes, "Linear network, exact flow, mean over 200 targets")
    axes.legend(frameon=False, fontsize=8.5, loc="lower right")
