"""Does the biased coin land heads more often?"""

import os
import signal
import time
import warnings
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

import peira
from peira.engine.verdict import larger, sooner
from peira_tiny.coin.method import heads


class Cell(peira.Cell):
    """One coin."""

    method: Literal["fair", "biased", "broken", "lethal"] = "fair"
    tosses: int = Field(50, ge=1, description="throws in all")
    pause: float = Field(0.0, ge=0, description="seconds to wait at each throw")
    together: bool = Field(False, description="thrown in one batch with others")


BIAS = {"fair": 0.5, "biased": 0.7, "broken": 0.5, "lethal": 0.5}


def coin_of(run: peira.Run, method: str) -> float:
    """The bias, as something several cells could share."""
    run.rng.random()
    return BIAS[method]


def toss(cell: Cell, run: peira.Run, bias: float, state: dict, step: int) -> None:
    """One throw; the broken and the lethal coin fail at the fifth."""
    if cell.method == "broken" and step == 5:
        print("printed where data should be")
        warnings.warn("an edge is near", stacklevel=1)
        raise ValueError("the coin fell on its edge\nand stayed there")
    if cell.method == "lethal" and step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(cell.pause)
    state["heads"] += heads(bias, 1, run.rng)
    run.log(step, heads=state["heads"])
    if state["heads"] >= 10 and state["tenth"] is None:
        state["tenth"] = step


def result(cell: Cell, run: peira.Run, state: dict) -> dict[str, float | peira.Censored]:
    """Share of heads, and the throw of the tenth."""
    tosses = run.budget(cell.tosses)
    tenth = state["tenth"] or peira.Censored(after=tosses)
    return {"heads": state["heads"] / tosses, "tenth": tenth}


class Study(peira.Study[Cell]):
    """Counts heads throw by throw, so that a killed cell has something to continue."""

    cell = Cell
    scales = {
        "smoke": peira.Scale([Cell(method="fair"), Cell(method="biased")], seeds=2),
        "small": peira.Scale(
            [Cell(method="fair", tosses=400), Cell(method="biased", tosses=400)], seeds=5
        ),
        "paper": peira.Scale(
            [Cell(method=m, tosses=40, pause=0.25) for m in ("fair", "biased")], seeds=2
        ),
        "together": peira.Scale(
            [Cell(method=m, tosses=40, together=True) for m in ("fair", "biased")], seeds=3
        ),
        "failing": peira.Scale(
            [Cell(method=m) for m in ("fair", "broken", "biased", "lethal")], seeds=3
        ),
    }

    batch_size = 4

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float | peira.Censored]:
        return self.measure_many([cell], [run])[0]

    def batch(self, cell: Cell) -> int | None:
        return cell.tosses if cell.together else None

    def measure_many(self, cells, runs) -> list[dict[str, float | peira.Censored]]:
        states = [{"heads": 0.0, "tenth": None} for _ in cells]
        thrown = list(zip(cells, runs, states, strict=True))
        biases = [run.shared("coin", coin_of, method=cell.method) for cell, run, _ in thrown]
        for step in runs[0].steps(cells[0].tosses, save=states):
            for (cell, run, state), bias in zip(thrown, biases, strict=True):
                toss(cell, run, bias, state, step)
        return [result(cell, run, state) for cell, run, state in thrown]

    def claims(self, table) -> Iterator[peira.Verdict]:
        yield larger(table, "heads", "biased", than="fair", claim=self.claim("C1"))
        yield sooner(table, "tenth", "biased", than="fair", claim=self.claim("C2"))

    def figure(self, table, curves):
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots()
        for method, part in curves.groupby("method"):
            mean = part.groupby("step")["value"].mean()
            axes.plot(mean.index, mean, label=method)
        axes.set(xlabel="throws", ylabel="heads (mean over seeds)")
        axes.legend()
        return figure
