"""How the paper's claims are tested: the cells, what one cell measures, the verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import nn

import peira
from peira.data.images import digit_images, mnist_images, mnist_paths
from peira.data.modular import Split, modular_table, split_table
from peira.dynamics.grokking_tickets.method import (
    FROM_TICKET,
    Checkpoint,
    Method,
    Recipe,
    Training,
    When,
    condition,
    squared_error,
    train,
)
from peira.dynamics.grokking_tickets.model import ImageMLP, TokenMLP, TokenTransformer
from peira.dynamics.grokking_tickets.structure import periodicity
from peira.engine import verdict as v
from peira.nn.pruning import jaccard, kept_fraction, magnitude_mask, masks_of, prunable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Kept fractions of the sweep, and the one that the paper and its code use throughout.
KEPT = (0.8, 0.6, 0.4, 0.2, 0.1)
PUBLISHED_KEEP = 0.4
AT_INITIALISATION: tuple[Method, ...] = ("random", "snip", "grasp", "synflow")


class Cell(peira.Cell):
    """One network trained one way."""

    method: Method = Field("dense", description="what is trained, see `condition`")
    task: Literal["addition", "subtraction", "quadratic", "digits", "mnist"] = "addition"
    network: Literal["mlp", "transformer"] = "mlp"
    keep: float = Field(PUBLISHED_KEEP, gt=0, le=1, description="fraction of weights kept")
    when: When = Field("generalised", description="checkpoint that the ticket is taken from")
    weight_decay: float = Field(1.0, ge=0, description="decoupled; of this cell's own training")
    width: int = Field(48, ge=1, description="hidden units (transformer: of the residual stream)")
    modulus: int = Field(67, ge=3, description="p of modular arithmetic")
    learning_rate: float = Field(3e-3, gt=0, description="of AdamW")
    steps: int = Field(12_000, ge=1, description="budget; what has not come by then is censored")
    patience: float | None = Field(
        0.6,
        gt=0,
        description="pruned networks are given up at this share of the dense network's time",
    )

    @property
    def pictures(self) -> bool:
        """Whether the task is about images."""
        return self.task in ("digits", "mnist")


def tickets(base: Cell) -> list[Cell]:
    """Everything that is compared on one task and network."""
    return [
        *_varied(base, "ticket", keep=KEPT),
        *_varied(base, "ticket", when=("memorised", "transition", "late")),
        *(base.changed({"method": method}) for method in ("shuffled", "redrawn")),
        *(base.changed({"method": method}) for method in AT_INITIALISATION),
        *(source_of(base).changed({"method": method}) for method in ("l1-dense", "l2-dense")),
    ]


def without_decay(base: Cell, keep: Iterable[float]) -> list[Cell]:
    """Dense and tickets, retrained without weight decay."""
    base = base.changed({"weight_decay": 0.0})
    return [base, *_varied(base, "ticket", keep=keep)]


def faster_dense(base: Cell) -> list[Cell]:
    """Two plainer ways to hurry a dense network: more weight decay, amplified slow gradients."""
    dense = source_of(base)
    return [dense.changed({"weight_decay": 3.0}), dense.changed({"method": "grokfast"})]


def _varied(base: Cell, method: Method, **values: Iterable[Any]) -> list[Cell]:
    return [
        base.changed({"method": method, name: value})
        for name, several in values.items()
        for value in several
    ]


def small_cells() -> list[Cell]:
    """The paper's comparisons on a faster clock; dense networks first, others wait for them."""
    addition = Cell()
    # Its smallest initial weights (fan-in 128, the MLP's 500) are twice the MLP's: so is its step.
    attention = Cell(network="transformer", width=128, learning_rate=6e-3, patience=1.0)
    digits = Cell(task="digits", width=200, weight_decay=0.1, learning_rate=1e-2, patience=1.0)
    patient, hurried = (addition.changed({"patience": share}) for share in (1.0, 0.51))
    return [
        *(source_of(base) for base in (addition, attention, digits)),
        *_varied(addition, "ticket", keep=KEPT, when=("transition",)),
        *_varied(patient, "ticket", when=("memorised",)),
        *(patient.changed({"method": m}) for m in ("shuffled", "l1-dense", "l2-dense")),
        *(hurried.changed({"method": method}) for method in AT_INITIALISATION),
        *without_decay(hurried, keep=(PUBLISHED_KEEP,)),
        *(base.changed({"method": "ticket"}) for base in (attention, digits)),
    ]


def smoke_cells() -> list[Cell]:
    """Every code path, a few steps each."""
    tiny = Cell(modulus=17, width=16, steps=20)
    attention = tiny.changed({"network": "transformer"})
    digits = tiny.changed({"task": "digits", "weight_decay": 0.1})
    dense = source_of(tiny)
    return [
        *(source_of(base) for base in (tiny, attention, digits)),
        *(base.changed({"method": "ticket"}) for base in (tiny, attention, digits)),
        *_varied(tiny, "ticket", when=("memorised",), keep=(0.8,)),
        *(tiny.changed({"method": method}) for method in ("shuffled", "redrawn")),
        *(tiny.changed({"method": method}) for method in AT_INITIALISATION),
        *(dense.changed({"method": method}) for method in ("l1-dense", "grokfast")),
        *without_decay(tiny, keep=()),
    ]


def paper_cells() -> list[Cell]:
    """The published setting: learning rate 1e-3, 30,000 steps, images 100,000."""
    mlp = Cell(learning_rate=1e-3, steps=30_000, patience=None)
    attention = mlp.changed({"network": "transformer", "width": 128})
    images = mlp.changed({"task": "mnist", "width": 200, "weight_decay": 0.1, "steps": 100_000})
    wide = mlp.changed({"width": 128})
    arithmetic = [mlp.changed({"task": task}) for task in ("addition", "subtraction", "quadratic")]
    sweep = [round(0.11 + 0.04 * i, 2) for i in range(8)]
    return [
        *(source_of(base) for base in [*arithmetic, wide, attention, images]),
        *(cell for base in [*arithmetic, attention, images] for cell in tickets(base)),
        *faster_dense(mlp),
        *without_decay(mlp, keep=(0.2, 0.3, 0.4, 0.5)),
        *without_decay(wide, keep=(0.2, 0.3, 0.4, 0.5)),
        *_varied(images, "ticket", keep=sweep),
    ]


class Study(peira.Study[Cell]):
    """Tickets, their controls and the dense network, on one clock."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(cells=smoke_cells, seeds=2),
        "small": peira.Scale(cells=small_cells, seeds=4),
        "paper": peira.Scale(cells=paper_cells, seeds=5),
    }

    def seeds(self, cell: Cell, asked: int) -> int:
        """Of up to four, three of what is slow: `small` has to fit its time."""
        slow = cell.network == "transformer" or cell.weight_decay == 0
        fewer = slow or cell.method in AT_INITIALISATION
        return min(asked, 3) if fewer and asked <= 4 else asked

    def inputs(self, cell: Cell) -> dict[str, str]:
        if cell.task != "mnist":
            return {}
        from peira.data import fingerprint

        return {"mnist": fingerprint(mnist_paths())}

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float | peira.Censored]:
        data, network = problem(cell, run.seed)
        data, network = data.to(run.device), network.to(run.device)
        steps = self._steps(cell, run)
        training, about = self._trained(cell, run, data, network, steps)
        for step, loss, train_accuracy, test_accuracy in training.curve:
            run.log(
                step, train_loss=loss, train_accuracy=train_accuracy, test_accuracy=test_accuracy
            )
        budget = peira.Censored(after=run.budget(steps))
        memorised, generalised = training.memorise_step, training.generalise_step
        measured: dict[str, float | peira.Censored] = {
            "memorise_step": memorised or budget,
            "generalise_step": generalised or budget,
            "best_test_accuracy": training.best_test_accuracy,
            **about,
        }
        if memorised:
            late = budget.after / memorised
            measured["delay"] = generalised / memorised if generalised else peira.Censored(late)
        return measured

    def _trained(
        self, cell: Cell, run: peira.Run, data: Split, network: nn.Module, steps: int
    ) -> tuple[Training, dict[str, float]]:
        """How the cell's network trained, and what is known of its masks and structure."""
        recipe, about = recipe_of(cell), {}
        if cell == source_of(cell):
            training = self._source(cell, run)
            network.load_state_dict(_checkpoint(training, "generalised").state)
        else:
            masks = None
            if cell.method in FROM_TICKET:
                masks, about = self._ticket(cell, run, network)
            draws = torch.Generator().manual_seed(int(run.rng.integers(2**62)))
            network = condition(cell.method, network, data, recipe, cell.keep, draws, masks)
            about["kept"] = kept_fraction(masks_of(network)) if masks_of(network) else 1.0
            training = train(network, data, recipe, lambda save: run.steps(steps, save))
        if isinstance(network, TokenMLP):
            about["periodicity"] = periodicity(network.token_table())
        return training, about

    def _steps(self, cell: Cell, run: peira.Run) -> int:
        """The cell's budget; its patience where the dense network got there."""
        if cell.patience is None:
            return cell.steps
        dense = self._source(cell, run).generalise_step
        return math.ceil(cell.patience * dense) if dense else cell.steps

    def _source(self, cell: Cell, run: peira.Run) -> Training:
        until = "late" if cell.when == "late" else "generalised"
        return run.shared(
            "dense-network", train_source, until=until, **source_of(cell).model_dump()
        )

    def _ticket(
        self, cell: Cell, run: peira.Run, network: nn.Module
    ) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        source = self._source(cell, run)
        taken, generalised = (_checkpoint(source, when) for when in (cell.when, "generalised"))
        masks, usual = (
            magnitude_mask({name: checkpoint.state[name] for name in prunable(network)}, cell.keep)
            for checkpoint in (taken, generalised)
        )
        about = {
            "source_step": float(taken.step),
            "source_test_accuracy": taken.test_accuracy,
            "source_reached": float(cell.when in source.checkpoints),
            "overlap": jaccard(masks, usual),
        }
        return {name: mask.to(_device(network)) for name, mask in masks.items()}, about

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        table = of_published_width(every_width := with_valid_tickets(table))
        time, claim = "generalise_step", self.claim
        dense, ticket = group(), group("ticket")
        yield v.above(table, "delay", dense, claim("C1"))
        sized = with_best_size(table)
        best = {"method": "best-size"}
        yield v.sooner(sized, time, best, dense, claim("C2a"))
        sizes = [group("ticket", keep=keep) for keep in (max(KEPT), min(KEPT))]
        yield v.all_of(
            claim("C2b"),
            [
                v.sooner(sized, time, best, other, part)
                for other, part in zip(sizes, claim("C2b").parts, strict=True)
            ],
        )
        norms = {"same L1 norm": group("l1-dense"), "same L2 norm": group("l2-dense")}
        yield v.against_controls(v.sooner, table, time, ticket, norms, claim("C3"))
        early = group("ticket", when="memorised")
        at_least, sooner = claim("C4a").parts
        yield v.all_of(
            claim("C4a"),
            [
                v.at_least(table, time, early, dense, at_least),
                v.sooner(table, time, ticket, early, sooner),
            ],
        )
        midway = group("ticket", when="transition")
        yield v.at_least(table, time, midway, dense, claim("C4b"))
        yield v.all_of(
            claim("C5"),
            [
                v.at_least(table, time, group(method), dense, part)
                for method, part in zip(AT_INITIALISATION, claim("C5").parts, strict=True)
            ],
        )
        kept, nothing = claim("C6").parts
        undecayed = best_without_decay(every_width)
        yield v.all_of(
            claim("C6"),
            [
                v.above(undecayed, "best_test_accuracy", "ticket", kept),
                v.below(undecayed, "best_test_accuracy", "dense", nothing),
            ],
        )
        transformer = {"network": "transformer", "task": "addition"}
        for id, where in (("C7a", transformer), ("C7b", _image_task(table))):
            yield v.sooner(table, time, _shape(where, "ticket"), _shape(where, "dense"), claim(id))
        yield v.sooner(table, time, ticket, group("shuffled"), claim("C8"))

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        from peira.dynamics.grokking_tickets.figure import draw

        return draw(*map(of_published_width, (with_valid_tickets(table), curves)))


def problem(cell: Cell, seed: int) -> tuple[Split, nn.Module]:
    """The task's split and the network at its initial weights: the same for all methods."""
    generator = torch.Generator().manual_seed(seed)
    if cell.pictures:
        data = digit_images(generator) if cell.task == "digits" else mnist_images(generator)
        sizes = (data.train_inputs.shape[1], cell.width, cell.width, 10)
        return data, ImageMLP(sizes, generator=generator)
    data = split_table(*modular_table(cell.task, cell.modulus), 0.4, generator)
    if cell.network == "mlp":
        return data, TokenMLP(cell.modulus, width=cell.width, generator=generator)
    return data, TokenTransformer(cell.modulus, width=cell.width, generator=generator)


def recipe_of(cell: Cell) -> Recipe:
    """Optimiser, loss and thresholds of a cell."""
    recipe = Recipe(
        learning_rate=cell.learning_rate,
        weight_decay=cell.weight_decay,
        steps=cell.steps,
        grokfast=2.0 if cell.method == "grokfast" else 0.0,
    )
    # Images: squared error as published; 200 digits teach about 0.95, so 0.9 is generalised.
    return replace(recipe, loss=squared_error, generalise_at=0.9) if cell.pictures else recipe


def source_of(cell: Cell) -> Cell:
    """The dense network that the cell's ticket is taken from."""
    return cell.changed(
        {
            "method": "dense",
            "keep": PUBLISHED_KEEP,
            "when": "generalised",
            "weight_decay": 0.1 if cell.pictures else 1.0,
            "patience": None,
        }
    )


def train_source(run: peira.Run, until: When, **settings: Any) -> Training:
    """The dense network of one seed, as far as `until`, with its checkpoints."""
    cell = Cell(**settings)
    data, network = problem(cell, run.seed)
    return train(
        network.to(run.device),
        data.to(run.device),
        recipe_of(cell),
        lambda save: run.steps(cell.steps, save),
        until,
    )


def _checkpoint(source: Training, when: str) -> Checkpoint:
    # A budget too short to get there (a trial with few steps) still runs; `with_valid_tickets`
    # keeps its rows out of the verdicts.
    return source.checkpoints.get(when) or source.checkpoint("last")


def with_valid_tickets(table: pd.DataFrame) -> pd.DataFrame:
    """The rows whose ticket was taken where its cell says; a source may not have got there."""
    if "source_reached" not in table:
        return table
    return table[table["source_reached"].fillna(1.0) == 1.0]


def with_best_size(table: pd.DataFrame) -> pd.DataFrame:
    """The table, and for each seed the ticket of the size that is best on the OTHER seeds.

    These rows have method "best-size". Choosing on the same seeds would favour the ticket.
    """
    import numpy as np
    import pandas as pd

    sizes = {name: value for name, value in group("ticket").items() if name != "keep"}
    tickets = v.select(table, sizes)
    tickets = tickets[tickets["keep"].isin(KEPT)]
    times = np.log(tickets.pivot_table(index="seed", columns="keep", values="generalise_step"))
    chosen = [
        tickets[(tickets["seed"] == seed) & (tickets["keep"] == elsewhere.idxmin())]
        for seed in times.index
        for elsewhere in [times.drop(index=seed).mean()]
        if elsewhere.notna().any()
    ]
    return pd.concat([table, *(rows.assign(method="best-size") for rows in chosen)])


def of_published_width(table: pd.DataFrame) -> pd.DataFrame:
    """Of arithmetic MLPs of several widths, those of the narrowest, the published one."""
    arithmetic = (table["network"] == "mlp") & ~table["task"].isin(["digits", "mnist"])
    return table[~arithmetic | (table["width"] == table["width"][arithmetic].min())]


def group(method: str = "dense", **settings: Any) -> dict[str, Any]:
    """The rows of one condition of the main comparison: MLP, addition, published settings."""
    return {
        "task": "addition",
        "network": "mlp",
        "weight_decay": 1.0,
        "keep": PUBLISHED_KEEP,
        "when": "generalised",
        "method": method,
        **settings,
    }


def _shape(where: dict[str, Any], method: str) -> dict[str, Any]:
    return {"keep": PUBLISHED_KEEP, "when": "generalised", "method": method, **where}


def _image_task(table: pd.DataFrame) -> dict[str, Any]:
    return {"task": "mnist" if (table["task"] == "mnist").any() else "digits"}


def best_without_decay(table: pd.DataFrame) -> pd.DataFrame:
    """Best test accuracy over kept fractions and widths, per seed, without weight decay."""
    rows = table[(table["weight_decay"] == 0) & table["method"].isin(["dense", "ticket"])]
    return rows.groupby(["method", "seed"], as_index=False)["best_test_accuracy"].max()


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
