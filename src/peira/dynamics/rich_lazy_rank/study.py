"""How the paper's claims are tested: the cells, what one cell measures, the verdicts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

import peira
from peira.data.errors import DataError
from peira.dynamics.rich_lazy_rank import linear
from peira.dynamics.rich_lazy_rank.compare import sizes_of
from peira.dynamics.rich_lazy_rank.inits import (
    Match,
    aligned_init,
    block_init,
    chain_init,
    gaussian_init,
    low_rank_init,
    orthogonal_init,
    shuffle_weights,
)
from peira.dynamics.rich_lazy_rank.network import RateRNN, recurrent_laziness
from peira.dynamics.rich_lazy_rank.tasks import Problem, stream
from peira.dynamics.rich_lazy_rank.training import Ending, Recipe, train_together
from peira.engine import verdict as v

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from peira.engine.cells import Measurement

Init = Literal[
    "truncated", "orthogonal", "block", "chain", "flat", "aligned", "partly-aligned", "against"
]

# The linear network: targets of length 1 and first layers of norm 1.5, as in the closed forms.
TARGETS, TARGET_NORM, FIRST_NORM = 200, 1.0, 1.5


class Cell(peira.Cell):
    """One network from one kind of initial weights, trained on one task."""

    task: Literal["2AF", "DMS", "CXT", "digits", "sMNIST", "linear"] = "2AF"
    init: Init = Field("truncated", description="kind of initial weights")
    rank: int | None = Field(None, ge=1, description="rank of the initial weights; None is full")
    match: Match = Field("fro", description="what a truncation keeps equal to the Gaussian matrix")
    shuffle: Literal["none", "elements", "degrees"] = "none"
    gain: float = Field(1.25, gt=0, description="g of the Gaussian matrix, whose norm all have")
    hidden: int = Field(100, ge=2, description="units; of the linear network also inputs")
    condition: float = Field(1.0, ge=1, description="condition number of the features F")
    features: Literal["task", "inputs"] = Field(
        "task", description="what F shapes: the target w^T F of white inputs, or inputs z = F x"
    )
    target_loss: float | None = Field(
        0.045, gt=0, description="validation loss (nats) to stop at; None trains all iterations"
    )
    iterations: int = Field(3000, ge=1, description="budget; the published number is 10,000")
    learning_rate: float = Field(3e-3, gt=0, description="of SGD with momentum 0.9")
    batch_size: int = Field(32, ge=1, description="trials or images per iteration")
    kernel_inputs: int = Field(32, ge=1, description="probe inputs that the kernel is of")


def ladder(base: Cell, ranks: Sequence[int | None]) -> list[Cell]:
    """The same network at several ranks."""
    return [base.changed({"rank": rank}) for rank in ranks]


def structured(base: Cell, init: Init) -> list[Cell]:
    """A kind of structure and its two shuffles."""
    return [
        base.changed({"init": init, "shuffle": kind}) for kind in ("none", "elements", "degrees")
    ]


def linear_cells(
    sizes: Mapping[int, Sequence[int | None]],
    known: int,
    conditions: Sequence[float] = (1.0, 4.0, 16.0),
) -> list[Cell]:
    """The linear network: ranks by number of inputs, and alignment with `known` inputs."""
    base = Cell(task="linear", hidden=known, target_loss=None)
    ranks = [
        cell
        for size, some in sizes.items()
        for init in ("flat", "truncated")
        for cell in ladder(base.changed({"hidden": size, "init": init}), some)
    ]
    ways = [
        base.changed({"condition": condition, "features": features, **kind})
        for features in ("task", "inputs")
        for condition in conditions
        for kind in ({"init": "flat", "rank": 1}, {"init": "aligned"}, {"init": "partly-aligned"})
        # With condition 1 the two are the same.
        if features == "task" or condition > 1
    ]
    return [*ranks, *ways, base.changed({"init": "against"})]


def small_cells() -> list[Cell]:
    """Networks of 100 units, to equal loss; the slowest tasks have the fewest ranks."""
    base = Cell()
    return [
        *ladder(base, (1, 5, 20, None)),
        *(cell for rule in ("spectral", "radius")
          for cell in ladder(base.changed({"match": rule}), (1, 20))),
        base.changed({"init": "orthogonal"}),
        *(base.changed({"gain": gain}) for gain in (0.6, 0.9, 1.8)),
        *structured(base, "block"),
        *ladder(base.changed({"target_loss": None, "iterations": 1500}), (1, 5, 20, None)),
        *ladder(base.changed({"task": "DMS", "iterations": 4000}), (1, None)),
        *ladder(base.changed({"task": "CXT", "target_loss": 0.06}), (1, None)),
        *ladder(base.changed({"task": "digits", "target_loss": 0.3}), (5, None)),
        *linear_cells({10: (1, 2, 5, None), 50: (1, 5, 20, None)}, 10),
    ]  # fmt: skip


def smoke_cells() -> list[Cell]:
    """Every code path, a few steps each."""
    base = Cell(hidden=20, iterations=20, batch_size=4, kernel_inputs=2, target_loss=1.0)
    return [
        *ladder(base, (1, 3, 6, None)),
        *(base.changed({"match": rule, "rank": 1}) for rule in ("spectral", "radius")),
        base.changed({"init": "orthogonal"}),
        base.changed({"init": "chain"}),
        *(base.changed({"gain": gain}) for gain in (0.6, 1.8)),
        *structured(base, "block"),
        *ladder(base.changed({"target_loss": None}), (1, None)),
        *(cell for task in ("DMS", "CXT") for cell in ladder(base.changed({"task": task}), (1,))),
        *ladder(base.changed({"task": "digits", "target_loss": 2.3}), (1, None)),
        *linear_cells({4: (1, 2, None)}, 4, conditions=(1.0, 4.0)),
    ]  # fmt: skip


def paper_cells() -> list[Cell]:
    """The published setting, 300 units and 10,000 iterations, and the same to equal loss."""
    tasks = {"2AF": 0.045, "DMS": 0.045, "CXT": 0.06, "sMNIST": 0.3}
    cells = []
    for name, loss in tasks.items():
        images = name == "sMNIST"
        base = Cell(
            task=name, hidden=300, iterations=10_000, target_loss=loss,
            batch_size=200 if images else 32, kernel_inputs=50 if images else 32,
        )  # fmt: skip
        ranks = (5, 30, None) if images else (1, 30, 100, None)
        for until in (base, base.changed({"target_loss": None})):
            cells += ladder(until, ranks)
        cells += [base.changed({"init": "orthogonal"})]
        cells += [cell for init in ("block", "chain") for cell in structured(base, init)]
        cells += [base.changed({"gain": gain}) for gain in (0.6, 0.9, 1.8)]
        cells += [
            cell
            for rule in ("spectral", "radius")
            for cell in ladder(base.changed({"match": rule}), ranks[:-1])
        ]
    sizes = {d: (1, 2, 5, d // 2, None) for d in (10, 20, 50)}
    return [*cells, *linear_cells(sizes, 10)]


class Study(peira.Study[Cell]):
    """Rank, structure, alignment and gain of initial weights against laziness."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(cells=smoke_cells, seeds=1),
        "small": peira.Scale(cells=small_cells, seeds=10),
        "paper": peira.Scale(cells=paper_cells, seeds=10),
    }
    batch_size = 20

    def seeds(self, cell: Cell, asked: int) -> int:
        """Of up to ten all for ranks and cell types in the main task; five of the rest, three of
        the linear network, which averages over targets, and of what no claim needs."""
        main = cell.task == "2AF" and cell.match == "fro" and cell.gain == 1.25
        if asked > 10 or (main and cell.init != "orthogonal" and cell.target_loss is not None):
            return asked
        return min(asked, 3 if cell.target_loss is None and cell.iterations < 10_000 else 5)

    def inputs(self, cell: Cell) -> dict[str, str]:
        if cell.task != "sMNIST":
            return {}
        from peira.data import fingerprint
        from peira.data.images import mnist_paths

        return {"mnist": fingerprint(mnist_paths())}

    def batch(self, cell: Cell) -> Hashable | None:
        """Recurrent networks that differ in their initial weights only train at once."""
        if cell.task == "linear":
            return None
        return cell.changed(
            {name: Cell.model_fields[name].default
             for name in ("init", "rank", "match", "shuffle", "gain")}
        )  # fmt: skip

    def measure(self, cell: Cell, run: peira.Run) -> Measurement:
        if cell.task == "linear":
            return measure_linear(cell, run.rng)
        return self.measure_many([cell], [run])[0]

    def measure_many(self, cells: Sequence[Cell], runs: Sequence[peira.Run]) -> list[Measurement]:
        shape, device = cells[0], runs[0].device
        problems = {
            run.seed: Problem.make(shape.task, shape.batch_size, run.seed)  # type: ignore[arg-type]
            for run in runs
        }
        networks = [
            problems[run.seed].network(cell.hidden, run.seed)
            for cell, run in zip(cells, runs, strict=True)
        ]
        for cell, run, network in zip(cells, runs, networks, strict=True):
            network.set_recurrent(recurrent_weights(cell, run.seed))
            network.to(device)
        recipe = Recipe(
            shape.target_loss, runs[0].budget(shape.iterations), shape.learning_rate,
            shape.batch_size,
        )  # fmt: skip
        endings = train_together(
            networks,
            [run.seed for run in runs],
            problems,
            # One stream of trials for each seed, whoever else is in the batch.
            {run.seed: run.generator for run in reversed(runs)},
            recipe,
            lambda save: runs[0].steps(shape.iterations, save),
            lambda member, step, loss: _log(runs[member], step, loss),
        )
        return [
            measured(cell, network, ending, problems[run.seed].probe.to(device))
            for cell, network, ending, run in zip(cells, networks, endings, runs, strict=True)
        ]

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        from peira.dynamics.rich_lazy_rank.verdicts import judge

        yield from judge(table, self.claim)

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        from peira.dynamics.rich_lazy_rank.figure import draw

        return draw(table)


def recurrent_weights(cell: Cell, seed: int) -> Tensor:
    """Initial recurrent weights of a cell, all of the Gaussian matrix's norm or size."""
    base = gaussian_init(cell.hidden, cell.gain, generator=stream(seed, "base"))
    norm, draws = float(base.norm()), stream(seed, "structure")
    if cell.init == "truncated":
        weights = base if cell.rank is None else low_rank_init(base, cell.rank, cell.match)
    elif cell.init == "orthogonal":
        weights = orthogonal_init(cell.hidden, norm, generator=draws)
    elif cell.init == "block":
        weights = block_init(cell.hidden, norm, generator=draws)
    elif cell.init == "chain":
        weights = chain_init(cell.hidden, norm, generator=draws)
    else:
        raise DataError("init of a recurrent network", value=cell.init)
    if cell.shuffle == "none":
        return weights
    return shuffle_weights(weights, cell.shuffle, generator=stream(seed, "shuffle"))


def measured(
    cell: Cell, network: RateRNN, ending: Ending, probe: Tensor
) -> dict[str, float | peira.Censored]:
    """Laziness, ranks before training, and when and how well training ended."""
    diverged = not math.isfinite(ending.loss)
    before = network.state_dict()
    result: dict[str, float | peira.Censored] = {
        "reached": float(ending.reached),
        "diverged": float(diverged),
        **sizes_of(before["recurrent.weight"].cpu()),
    }
    if cell.target_loss is not None:
        step = float(ending.step)
        result["stop_step"] = step if ending.reached else peira.Censored(after=step)
    if diverged:
        return result
    found = recurrent_laziness(
        network, before, ending.state, probe, kernel_inputs=min(cell.kernel_inputs, len(probe))
    )
    return result | {
        "loss": ending.loss,
        "kernel_alignment": found.kernel_alignment,
        "representation_alignment": found.representation_alignment,
        "sign_similarity": found.sign_similarity,
        "weight_change": found.weight_change,
        "relative_weight_change": found.relative_weight_change,
        "input_weight_change": found.layers["inputs.weight"],
        "readout_weight_change": found.layers["readout.weight"],
    }


def measure_linear(cell: Cell, rng: np.random.Generator) -> dict[str, float]:
    """Mean kernel alignment of the linear network over targets; error of the closed form."""
    d = cell.hidden
    spread = np.where(np.arange(d) < d // 2, cell.condition, 1.0)
    target = rng.normal(size=(TARGETS, d))
    if cell.features == "task":
        target *= spread
    target *= TARGET_NORM / np.linalg.norm(target, axis=1, keepdims=True)
    factor = spread if cell.features == "inputs" else np.ones(d)
    first = first_layers(cell, target, factor, rng)
    # Without a first push, orthogonal weights would never move: a saddle.
    push = 1e-7 if cell.init == "against" else 0.0
    second = push * rng.normal(size=first.shape[:2])
    after = linear.linear_flow(first, target, second=second, factor=factor)
    found = linear.alignments(
        linear.linear_kernel(first, np.zeros_like(second), factor),
        linear.linear_kernel(*after, factor),
    )
    result = {"kernel_alignment": float(found.mean()), "kernel_alignment_sd": float(found.std())}
    expected = closed_form(cell)
    if expected is not None:
        result["closed_form"] = expected
        result["closed_form_error"] = float(np.abs(found - expected).max())
    return result


def first_layers(
    cell: Cell, target: np.ndarray, factor: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Initial first layers, one for each target, without rows of zeros (they would stay zero)."""
    n, d = target.shape
    rank = cell.rank or d
    if cell.init == "flat":
        axes, _ = np.linalg.qr(rng.normal(size=(n, d, rank)))
        return FIRST_NORM / math.sqrt(rank) * axes.transpose(0, 2, 1)
    if cell.init == "truncated":
        _, s, axes = np.linalg.svd(rng.normal(size=(d, d)))
        rows = s[:rank, None] * axes[:rank]
        return np.broadcast_to(FIRST_NORM * rows / np.linalg.norm(rows), (n, rank, d))
    if cell.init == "against":
        first = np.zeros((n, d, d))
        other = rng.normal(size=(n, d))
        other -= target * (other * target).sum(1, keepdims=True) / TARGET_NORM**2
        first[:, 0] = FIRST_NORM * other / np.linalg.norm(other, axis=1, keepdims=True)
        return first
    if cell.init not in ("aligned", "partly-aligned"):
        raise DataError("init of a linear network", value=cell.init)
    half = np.arange(d) < d // 2
    seen = factor * half if cell.init == "partly-aligned" else factor
    # Where F shapes the task alone, its truncation takes away the weak half of the target.
    known = target * half if cell.init == "partly-aligned" else target
    rows = [
        aligned_init(
            torch.from_numpy(one), 1, factor=torch.from_numpy(np.diag(seen)), norm=FIRST_NORM
        ).numpy()
        for one in known
    ]
    return np.stack(rows)


def closed_form(cell: Cell) -> float | None:
    """The kernel alignment known in closed form, on isotropic inputs."""
    if cell.features == "inputs" and cell.condition != 1:
        return None
    size = FIRST_NORM, TARGET_NORM, cell.hidden
    if cell.init == "aligned":
        return linear.aligned_form(*size)
    if cell.init == "flat" and cell.rank in (None, cell.hidden):
        return linear.isotropic_form(*size)
    return linear.orthogonal_form(*size) if cell.init == "against" else None


def _log(run: peira.Run, step: int, loss: float) -> None:
    if math.isfinite(loss):
        run.log(step, loss=loss)
