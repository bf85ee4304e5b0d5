"""How the paper's claims are tested: the cells, what one cell measures, the verdicts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

import peira
from peira.dynamics.icl_abrupt.method import (
    ICLRecipe,
    ICLTask,
    InContextNet,
    InductionHead,
    bayes_in_weights,
    fit_timing,
    icl_report,
    icl_timing_model,
    nearest_in_context,
    train_together,
)
from peira.engine import verdict as v
from peira.engine.cells import Measurement

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Method = Literal[
    "full", "two-parameter", "one-layer", "mlp", "uniform", "previous", "self",
    "nearest", "bayes", "timing",
]  # fmt: skip
UNTRAINED = ("nearest", "bayes", "timing")
BASELINES = ("self", "one-layer", "mlp", "nearest", "bayes")
# Of the network's context labels this probability is "on the context": the plateau's first half.
ON_CONTEXT = 0.8
# The progress measures whose order is judged; "ic" is the accuracy that they should precede.
PROGRESS = ("cla", "tla2", "ila1", "ic")
# Time of the phenomenological model at which a wait is given up.
PATIENCE = 1e5


class Cell(peira.Cell):
    """One network on one law of sequences, or one setting of the timing model."""

    method: Method = Field("full", description="what classifies; uniform, previous, self: layer 1")
    K: int = Field(512, ge=1, description="classes, a multiple of L")
    L: int = Field(16, ge=1, description="labels")
    N: int = Field(4, ge=2, description="pairs in the context")
    B: int = Field(2, ge=0, description="copies of a class in a bursty context")
    D: int = Field(19, ge=1, description="dimension of items and labels")
    eps: float = Field(0.1, ge=0, description="within-class variation")
    zipf: float = Field(0.0, ge=0, description="exponent of the classes' rank-frequency law")
    p_bursty: float = Field(1.0, ge=0, le=1, description="share of bursty sequences")
    no_repeats: bool = Field(False, description="labels of a context are distinct")
    max_pairs: int = Field(6, ge=1, description="the position code has 2 max_pairs + 1 places")
    width: int = Field(64, ge=1, description="hidden units of the classifier")
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(1e-3, gt=0, description="of the optimiser")
    batch: int = Field(64, ge=1, description="sequences of a step")
    steps: int = Field(1500, ge=1, description="training steps")
    evaluate_every: int = Field(50, ge=1, description="steps between reports")
    test_size: int = Field(512, ge=1, description="sequences in each test set")


# What may differ between networks that train at once.
FREE = ("K", "B", "eps", "zipf", "p_bursty", "no_repeats")


def conditions(base: Cell, few: int, some: int) -> list[Cell]:
    """The laws of sequences over which ICL and IWL trade off."""
    return [
        base,
        base.changed({"K": few, "p_bursty": 0.0}),
        base.changed({"K": few}),
        base.changed({"K": few, "eps": 1.0}),
        base.changed({"K": some}),
        base.changed({"p_bursty": 0.5}),
        base.changed({"eps": 1.0}),
        base.changed({"zipf": 1.5}),
        base.changed({"B": 1 if base.B != 1 else base.N // 2}),
    ]


def study_cells(base: Cell, few: int, some: int, other: dict[str, Any]) -> list[Cell]:
    """All cells of a scale.

    Args:
        base: the main condition, with the most classes.
        few, some: classes of the other conditions.
        other: settings of the optimiser that `base` does not have.
    """
    laws = conditions(base, few, some)
    distinct = base.changed(
        {"B": 1, "no_repeats": True, "optimizer": "sgd"}
        | ({"learning_rate": 0.1, "steps": 2 * base.steps} if base.optimizer == "adam" else {})
    )
    return [
        *laws,
        *(law.changed({"method": "two-parameter"}) for law in laws),
        base.changed(other),
        distinct,
        distinct.changed({"L": distinct.N}),
        *(base.changed({"method": name}) for name in ("uniform", "previous", "self")),
        *(base.changed({"method": name}) for name in ("one-layer", "mlp", "nearest", "bayes")),
        *timing_cells(),
    ]


def timing_cells() -> list[Cell]:
    """The settings of labels and pairs at which the three-logit model is solved."""
    settings = [(32, 4), (32, 8), (32, 16), (16, 8), (64, 8), (8, 8)]
    return [
        Cell(method="timing", L=L, N=N, K=L, B=1, max_pairs=32, no_repeats=True)
        for L, N in settings
    ]


def smoke_cells() -> list[Cell]:
    """Every code path, a few steps each."""
    base = Cell(
        K=64, L=8, N=4, D=5, max_pairs=5, width=16, batch=16, steps=12, evaluate_every=4,
        test_size=64,
    )  # fmt: skip
    return study_cells(base, few=16, some=32, other={"optimizer": "sgd", "learning_rate": 0.03})


def small_cells() -> list[Cell]:
    """The phenomena on a small task and a fast clock."""
    slow = {"optimizer": "sgd", "learning_rate": 0.03, "steps": 4000}
    return study_cells(Cell(), few=32, some=128, other=slow)


def paper_cells() -> list[Cell]:
    """The published setting: L 32, N 8, D 63, K 256 to 8192, SGD 0.01, 150,000 steps."""
    base = Cell(
        K=8192, L=32, N=8, B=1, D=63, max_pairs=32, width=128, optimizer="sgd",
        learning_rate=0.01, batch=128, steps=150_000, evaluate_every=500, test_size=10_000,
    )  # fmt: skip
    adam = {"optimizer": "adam", "learning_rate": 1e-3}
    return [
        *study_cells(base, few=256, some=1024, other=adam),
        *(base.changed({"K": K}) for K in (512, 2048, 4096)),
    ]


class Study(peira.Study[Cell]):
    """The full network, its two models, its ablations and the baselines, on the same sequences."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(cells=smoke_cells, seeds=2),
        "small": peira.Scale(cells=small_cells, seeds=5),
        "paper": peira.Scale(cells=paper_cells, seeds=6),
    }

    def seeds(self, cell: Cell, asked: int) -> int:
        """One of what draws nothing; of five asked, three of SGD's long runs and the baselines."""
        if cell.method == "timing":
            return 1
        fewer = cell.optimizer == "sgd" or cell.method in BASELINES
        return min(asked, 3) if asked <= 5 and fewer and cell.steps < 10_000 else asked

    def batch(self, cell: Cell) -> Hashable | None:
        if cell.method in UNTRAINED:
            return None
        return tuple(value for name, value in cell if name not in FREE)

    def measure(self, cell: Cell, run: peira.Run) -> Measurement:
        if cell.method == "timing":
            wait = icl_timing_model(cell.L, cell.N, until=PATIENCE).waiting_time
            return {"waiting_time": wait if math.isfinite(wait) else peira.Censored(PATIENCE)}
        if cell.method in UNTRAINED:
            task = task_of(cell, run.seed)
            model = (nearest_in_context if cell.method == "nearest" else bayes_in_weights)(task)
            return dict(icl_report(model, task, count=cell.test_size))
        return self.measure_many([cell], [run])[0]

    def measure_many(
        self, cells: Sequence[Cell], runs: Sequence[peira.Run]
    ) -> Sequence[Measurement]:
        tasks = [task_of(cell, run.seed) for cell, run in zip(cells, runs, strict=True)]
        nets = [
            network_of(cell, task, run.seed).to(run.device)
            for cell, task, run in zip(cells, tasks, runs, strict=True)
        ]
        first = cells[0]
        rows = train_together(
            tasks,
            nets,
            recipe_of(first),
            [run.seed for run in runs],
            lambda save: runs[0].steps(first.steps, save),
        )
        return [
            {**_measured(cell, run, part), **_betas(net)}
            for cell, run, part, net in zip(cells, runs, rows, nets, strict=True)
        ]

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        base = base_of(table)
        full = {"method": "full", **base}
        few = {**full, "K": int(_modelled(table)["K"].min())}
        claim = self.claim
        yield v.all_of(claim("C1"), _two_phases(table, full, claim("C1").parts))
        yield v.all_of(claim("C2"), _trade_off(table, full, few, claim("C2").parts))
        yield v.all_of(claim("C3"), _order(table, full, claim("C3").parts))
        counted, network = claim("C4").parts
        distinct = {**full, "B": 1, "no_repeats": True, "optimizer": "sgd"}
        curriculum = v.sooner(table, "t_ic", distinct, {**distinct, "L": base["N"]}, network)
        yield v.all_of(claim("C4"), [v.count(waits_as_published(table), counted), curriculum])
        yield v.trend(compared(table, base), "full", "two_parameter", claim("C4b"))
        adam, sgd = ({**full, "optimizer": name} for name in ("adam", "sgd"))
        plateau, final, slower = claim("C5").parts
        yield v.all_of(
            claim("C5"),
            [
                v.below(table, "ic_at_cla", sgd, plateau),
                v.above(table, "ic", sgd, final),
                v.sooner(table, "t_ic", adam, sgd, slower),
            ],
        )
        frozen, planted = claim("C6").parts
        yield v.all_of(
            claim("C6"),
            [
                v.below(table, "ic", {**full, "method": "uniform"}, frozen),
                v.above(table, "ic_at_cla", {**full, "method": "previous"}, planted),
            ],
        )

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        from peira.dynamics.icl_abrupt.figure import draw

        return draw(table, curves, base_of(table), compared(table, base_of(table)))


def task_of(cell: Cell, seed: int) -> ICLTask:
    """The law of sequences, with the classes and labels that all methods of a seed share."""
    names = ("K", "L", "N", "B", "D", "eps", "zipf", "p_bursty", "no_repeats", "max_pairs")
    return ICLTask(**{name: getattr(cell, name) for name in names}, seed=seed)


def network_of(cell: Cell, task: ICLTask, seed: int) -> nn.Module:
    """The network at its initial weights."""
    generator = torch.Generator().manual_seed(seed)
    if cell.method == "two-parameter":
        return InductionHead(task.places, task.D, task.L, width=cell.width, generator=generator)
    layers = {"mlp": 0, "one-layer": 1}.get(cell.method, 2)
    first = cell.method if cell.method in ("uniform", "previous", "self") else "learned"
    return InContextNet(
        task.dim,
        task.L,
        layers=layers,
        width=cell.width,
        spread=task.D**-0.5,
        first=first,  # type: ignore[arg-type]
        generator=generator,
    )


def recipe_of(cell: Cell) -> ICLRecipe:
    """Optimiser, batch and cadence of a cell."""
    names = ("steps", "batch", "optimizer", "learning_rate", "evaluate_every", "test_size")
    return ICLRecipe(**{name: getattr(cell, name) for name in names})


def _betas(net: nn.Module) -> dict[str, float]:
    if not isinstance(net, InductionHead):
        return {}
    return dict(zip(("beta_1", "beta_2"), net.beta.tolist(), strict=True))


def _measured(cell: Cell, run: peira.Run, rows: Sequence[dict[str, float]]) -> Measurement:
    for row in rows:
        run.log(int(row["step"]), **{k: y for k, y in row.items() if k != "step" and y == y})
    steps = np.array([row["step"] for row in rows])
    series = {name: np.array([row[name] for row in rows]) for name in rows[-1] if name != "step"}
    budget = peira.Censored(after=run.budget(cell.steps))
    measured: dict[str, float | peira.Censored] = {
        name: float(values[-1]) for name, values in series.items()
    }
    measured["mean_ic"] = float(series["ic"].mean())
    guess = (cell.B or cell.N // 2) / cell.N
    for name in PROGRESS:
        if name in series:
            start, end = (guess, 1.0) if name == "ic" else (series[name][0], series[name][-1])
            came = first_above(steps, series[name], (start + end) / 2) if end > start else None
            measured[f"t_{name}"] = came if came else budget
    on_context = first_above(steps, series["cla"], ON_CONTEXT)
    if on_context is not None:
        measured["ic_at_cla"] = float(np.interp(on_context, steps, series["ic"]))
    if cell.no_repeats and cell.B == 1 and cell.L > cell.N and len(steps) > 3:
        fit = fit_timing(steps, series["ic"], cell.L, cell.N)
        measured |= {
            "steps_per_unit": fit.steps_per_unit,
            "timing_start": fit.start,
            "timing_error": fit.error,
        }
    return measured


def first_above(steps: np.ndarray, values: np.ndarray, level: float) -> float | None:
    """Step at which `values` first crosses `level`, between reports by a straight line."""
    beyond = np.flatnonzero(values > level)
    if not len(beyond):
        return None
    at = int(beyond[0])
    if at == 0:
        return float(steps[0])
    before, after = values[at - 1], values[at]
    share = (level - before) / (after - before)
    return float(steps[at - 1] + share * (steps[at] - steps[at - 1]))


def base_of(table: pd.DataFrame) -> dict[str, Any]:
    """The main condition: the commonest value of each setting, and the most classes."""
    rows = _modelled(table)
    names = ("L", "N", "B", "eps", "zipf", "p_bursty", "no_repeats", "optimizer")
    return {**{name: rows[name].mode().iloc[0] for name in names}, "K": int(rows["K"].max())}


def _modelled(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the full network and its two-parameter model; all where there are none."""
    rows = table[table["method"].isin(["full", "two-parameter"])]
    return rows if len(rows) else table


def _two_phases(table: pd.DataFrame, full: dict[str, Any], parts: Sequence[Any]) -> list[v.Verdict]:
    plateau, in_context, swapped, in_weights = parts
    return [
        v.below(table, "ic_at_cla", full, plateau),
        v.above(table, "ic", full, in_context),
        v.above(table, "ic2", full, swapped),
        v.below(table, "iwl", full, in_weights),
    ]


def _trade_off(
    table: pd.DataFrame, many: dict[str, Any], few: dict[str, Any], parts: Sequence[Any]
) -> list[v.Verdict]:
    steady, varied, skewed = ({**few, "p_bursty": 0.0}, {**few, "eps": 1.0}, {**many, "zipf": 1.5})
    return [
        v.larger(table, "iwl", few, many, parts[0]),
        v.larger(table, "ic", many, few, parts[1]),
        v.larger(table, "iwl", steady, few, parts[2]),
        v.larger(table, "ic", few, steady, parts[3]),
        v.smaller(table, "iwl", varied, few, parts[4]),
        v.larger(table, "ic", varied, few, parts[5]),
        v.larger(table, "iwl", skewed, many, parts[6]),
    ]


def _order(table: pd.DataFrame, full: dict[str, Any], parts: Sequence[Any]) -> list[v.Verdict]:
    """Each progress measure as a group of its own, with its half-rise as time."""
    import pandas as pd

    rows = v.select(table, full)
    times = pd.concat(
        [
            pd.DataFrame(
                {
                    "method": name,
                    "seed": rows["seed"],
                    "time": rows[f"t_{name}"],
                    "time_censored": rows.get(f"t_{name}_censored", False),
                }
            )
            for name in PROGRESS
        ]
    )
    pairs = [("cla", "tla2"), ("cla", "ila1"), ("tla2", "ic"), ("ila1", "ic")]
    return [v.sooner(times, "time", a, b, part) for (a, b), part in zip(pairs, parts, strict=True)]


def waits_as_published(table: pd.DataFrame) -> dict[str, bool]:
    """The statements on the waiting time of the three-logit model, and whether each holds."""
    rows = table[table["method"] == "timing"]
    wait = {(row.L, row.N): row.waiting_time for row in rows.itertuples()}
    statements = {
        "N = 8 waits longer than N = 4": ((32, 8), (32, 4), 1),
        "N = 16 waits longer than N = 8": ((32, 16), (32, 8), 1),
        "L = 16 waits longer than L = 32": ((16, 8), (32, 8), 1),
        "L = 32 waits longer than L = 64": ((32, 8), (64, 8), 1),
        "L = N waits 10 times as long as L = 2N": ((8, 8), (16, 8), 10),
    }
    return {
        text: bool(wait[long] > times * wait[short])
        for text, (long, short, times) in statements.items()
        if long in wait and short in wait
    }


def compared(table: pd.DataFrame, base: dict[str, Any]) -> pd.DataFrame:
    """Mean in-context accuracy over training, both networks side by side, by law and seed."""
    same = {name: base[name] for name in ("L", "N", "optimizer", "no_repeats")}
    law = ["K", "B", "eps", "zipf", "p_bursty", "seed"]
    sides = []
    for method in ("full", "two-parameter"):
        rows = v.select(table, {"method": method, **same})
        column = method.replace("-", "_")
        sides.append(rows[[*law, "mean_ic"]].rename(columns={"mean_ic": column}))
    return sides[0].merge(sides[1], on=law)
