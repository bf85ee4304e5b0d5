"""How the paper's claims are tested: the cells, what one cell measures, the verdicts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import nn

import peira
from peira.data.images import digit_pictures
from peira.data.modular import Split
from peira.data.picture_sets import official_paths, official_pictures
from peira.engine import verdict as v
from peira.nn.evaluation import accuracy, evaluating
from peira.nn.networks import cifar_resnet
from peira.weights.consensus_subnetwork.baselines import measured_blocks, prune_by_score
from peira.weights.consensus_subnetwork.conditions import Baseline, Pruned, prune_with
from peira.weights.consensus_subnetwork.energy import EnergyMeter
from peira.weights.consensus_subnetwork.extraction import open_share, remove
from peira.weights.consensus_subnetwork.gates import GatedBlock
from peira.weights.consensus_subnetwork.measures import (
    fidelity,
    inference_times,
    size,
    step_time,
    train_consensus,
)
from peira.weights.consensus_subnetwork.method import ConsensusPruner
from peira.weights.consensus_subnetwork.training import Recipe

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SPARSITIES = (0.2, 0.35, 0.5, 0.7)
RELATED: dict[str, Baseline] = {
    "L1 filter pruning, fine-tuned": "l1-tuned",
    "network slimming": "slimming",
    "polarization of batch norms": "bn-polarization",
    "L0 gates (hard concrete)": "hard-concrete",
    "a uniformly thin network": "thin",
}
CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100}
NETWORKS: dict[str, dict[str, Any]] = {
    "tiny": {"blocks": (2, 2), "widths": (4, 8)},
    "wide6": {"blocks": (6,), "widths": (16,)},
    "resnet56": {"depth": 56},
}


class Cell(peira.Cell):
    """One network, trained and made smaller one way."""

    method: Literal["consensus"] | Baseline = Field("consensus", description="how")
    mode: Literal["layer", "channel"] = Field("layer", description="what is removed")
    sparsity: float = Field(0.5, ge=0, lt=1, description="share of the operations to remove")
    polarization: float = Field(1.0, ge=0, description="weight of L_pol; 0: dynamic gates only")
    skip: bool = Field(False, description="leave closed parts out in training")
    data: Literal["digits", "cifar10", "cifar100"] = "digits"
    network: Literal["tiny", "wide6", "resnet56"] = Field(
        "wide6", description="tiny: 2 + 2 blocks of 4 and 8 channels; wide6: 6 blocks of 16"
    )
    train: int = Field(1200, ge=2, description="pictures that train, of the digits")
    epochs: int = Field(12, ge=1, description="in all, fine-tuning counted")
    batch: int = Field(64, ge=2, description="pictures a step")
    learning_rate: float = Field(2e-3, gt=0, description="of Adam")
    strength: float = Field(1e-2, ge=0, description="of penalties on batch norms' scales")


def small_cells() -> list[Cell]:
    """The main comparison in both modes, its controls, and the sweep of targets."""
    layer, channel = Cell(), Cell(mode="channel")
    return [
        Cell(method="dense"),
        layer,
        channel,
        *(base.changed({"polarization": 0.0}) for base in (layer, channel)),
        *(base.changed({"skip": True}) for base in (layer, channel)),
        *(
            channel.changed({"method": method})
            for method in ("l1", "random", *RELATED.values())
        ),
        layer.changed({"method": "random"}),
        *(
            base.changed({"sparsity": sparsity})
            for base in (layer, channel)
            for sparsity in SPARSITIES
            if sparsity != base.sparsity
        ),
    ]  # fmt: skip


def smoke_cells() -> list[Cell]:
    """Every kind of cell, one epoch each."""
    tiny = Cell(network="tiny", train=200, epochs=1)
    channel = tiny.changed({"mode": "channel"})
    return [
        dense_of(tiny),
        tiny,
        channel,
        channel.changed({"skip": True}),
        *(channel.changed({"method": method}) for method in ("l1", "slimming", "hard-concrete")),
        tiny.changed({"method": "random"}),
    ]


def paper_cells() -> list[Cell]:
    """ResNet-56 on CIFAR-10 and CIFAR-100, 200 epochs, at the targets of the sweep."""
    return [
        cell.changed(
            {"data": data, "network": "resnet56", "epochs": 200, "batch": 128, "strength": 1e-4}
        )
        for data in ("cifar10", "cifar100")
        for cell in small_cells()
    ]


class Study(peira.Study[Cell]):
    """One-pass consensus against the dense network, its own ablations and related pruning."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(cells=smoke_cells, seeds=1),
        "small": peira.Scale(cells=small_cells, seeds=5),
        "paper": peira.Scale(cells=paper_cells, seeds=3),
    }

    def seeds(self, cell: Cell, asked: int) -> int:
        """Of up to five, fewer of what is compared less closely: `small` has to fit its time."""
        plain = cell.polarization > 0 and not cell.skip and cell.sparsity == 0.5
        main = plain and cell.method in ("dense", "consensus", "l1")
        if main or asked > 5:
            return asked
        channels = cell.mode == "channel" and cell.sparsity == 0.5 and not cell.skip
        return min(asked, 4 if channels else 3)

    def inputs(self, cell: Cell) -> dict[str, str]:
        if cell.data == "digits":
            return {}
        from peira.data import fingerprint

        return {cell.data: fingerprint(official_paths(cell.data))}

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float | peira.Censored]:
        data, network = problem(cell, run.seed)
        data, network = data.to(run.device), network.to(run.device)
        with_gates = cell.method == "consensus"
        return (measure_consensus if with_gates else measure_baseline)(cell, run, data, network)

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        table = of_main_task(table)
        claim = self.claim
        layer, channel, dense = group("layer"), group("channel"), {"method": "dense"}
        loose = {mode: group(mode, polarization=0.0) for mode in ("layer", "channel")}
        fast = {mode: group(mode, skip=True) for mode in ("layer", "channel")}

        accurate, removed = claim("C1").parts
        yield v.all_of(
            claim("C1"),
            [
                v.larger(table, "accuracy", layer, dense, accurate),
                v.above(table, "removed", layer, removed),
            ],
        )
        split_layer, split_channel, agree_layer, agree_channel = claim("C2").parts
        yield v.all_of(
            claim("C2"),
            [
                v.smaller(table, "split_votes", layer, loose["layer"], split_layer),
                v.smaller(table, "split_votes", channel, loose["channel"], split_channel),
                v.above(table, "agreement", layer, agree_layer),
                v.above(table, "agreement", channel, agree_channel),
            ],
        )
        close, apart = claim("C3").parts
        yield v.all_of(
            claim("C3"),
            [
                v.below(table, "gap", channel, close),
                v.larger(table, "gap", loose["channel"], channel, apart),
            ],
        )
        targets = [
            group(mode, sparsity=sparsity)
            for mode in ("channel", "layer")
            for sparsity in SPARSITIES
        ]
        yield v.all_of(
            claim("C4"),
            [
                v.below(table, "target_error", target, part)
                for target, part in zip(targets, claim("C4").parts, strict=True)
            ],
        )
        untuned, alone = claim("C5a").parts
        yield v.all_of(
            claim("C5a"),
            [
                v.larger(table, "accuracy", channel, group("channel", "l1"), untuned),
                v.larger(table, "accuracy", channel, group("channel", "random"), alone),
            ],
        )
        related = {name: group("channel", method) for name, method in RELATED.items()}
        yield v.against_controls(v.larger, table, "accuracy", channel, related, claim("C5b"))
        gates, *times = claim("C6").parts
        yield v.all_of(
            claim("C6"),
            [
                v.below(table, "gates_left", channel, gates),
                *(
                    v.below(table, "excess_seconds", where, part)
                    for where, part in zip((layer, channel), times, strict=True)
                ),
            ],
        )
        yield v.all_of(
            claim("C7"),
            [
                v.below(table, "largest_difference", where, part)
                for where, part in zip((layer, channel), claim("C7").parts, strict=True)
            ],
        )
        metrics = ("train_operations", "step_seconds_ratio")
        yield v.all_of(
            claim("C8"),
            [
                v.below(table, metric, fast[mode], part)
                for (mode, metric), part in zip(
                    [(mode, metric) for mode in ("layer", "channel") for metric in metrics],
                    claim("C8").parts,
                    strict=True,
                )
            ],
        )

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        from peira.weights.consensus_subnetwork.figure import draw

        return draw(of_main_task(table), of_main_task(curves))


def measure_consensus(
    cell: Cell, run: peira.Run, data: Split, network: nn.Module
) -> dict[str, float | peira.Censored]:
    """One pass with gates: how it votes, and what the extracted network does."""
    trained = run.shared("consensus", one_pass, **consensus_of(cell).model_dump())
    for step, values in trained["curve"]:
        run.log(step, **values)
    pruner = pruner_of(cell, network, run.seed)
    pruner.model.load_state_dict(trained["state"])
    with evaluating(pruner.model):
        pruner.model(data.train_inputs[:2])
    plain, kept = pruner.plain(), pruner.kept
    small = remove(plain, kept)
    votes = torch.cat(list(pruner.votes.values()))
    static, dynamic = (
        accuracy(model, data.test_inputs, data.test_labels) for model in (small, pruner.model)
    )
    about = size(plain, small, data.train_inputs)
    measured: dict[str, float | peira.Censored] = {
        "accuracy": static,
        "dynamic_accuracy": dynamic,
        "gap": abs(dynamic - static),
        "split_votes": float((votes * (1 - votes)).mean()),
        "agreement": pruner.agreement,
        "open_cost": trained["open_cost"],
        "target_error": abs(trained["open_cost"] - pruner.target),
        "gates_left": float(sum(isinstance(part, GatedBlock) for part in small.modules())),
        **about,
        **fidelity(pruner, small, data.test_inputs),
        **trained["cost"],
        "train_epochs": float(cell.epochs),
    }
    if cell.polarization and cell.sparsity == 0.5 and not cell.skip:
        times = inference_times(plain, small, kept, data.train_inputs[:256])
        excess = times["inference_seconds_ratio"] - about["operations"]
        measured |= {**times, "excess_seconds": excess}
    if cell.skip:
        measured |= step_time(pruner, plain, data, recipe_of(cell))
    return measured


def measure_baseline(
    cell: Cell, run: peira.Run, data: Split, network: nn.Module
) -> dict[str, float | peira.Censored]:
    """The dense network or a related method, at the operations that the consensus kept."""
    before = copy.deepcopy(network)
    share = 1.0
    if cell.method != "dense":
        share = run.shared("consensus", one_pass, **consensus_of(cell).model_dump())["open_cost"]
    if cell.method in ("dense", "l1"):
        trained = run.shared("dense", dense, **dense_of(cell).model_dump())
        network.load_state_dict(trained["state"])
        kept = {}
        if cell.method == "l1":
            kept = prune_by_score(network, data.train_inputs, "l1", share, cell.mode)
        pruned = Pruned(remove(network, kept), kept, cell.epochs, cell.epochs)
        cost = trained["cost"]
    else:
        meter, began = EnergyMeter(), perf_counter()
        pruned = _prune(cell, run, data, network, share)
        cost = spent(meter, perf_counter() - began)
    about = size(before, pruned.network, data.train_inputs)
    blocks = measured_blocks(before, data.train_inputs, cell.mode)
    small_epochs = pruned.epochs - pruned.full_epochs
    return {
        "accuracy": accuracy(pruned.network, data.test_inputs, data.test_labels),
        "open_cost": open_share(blocks, pruned.kept),
        **about,
        **cost,
        "train_operations": (pruned.full_epochs + small_epochs * about["operations"])
        / pruned.epochs,
        "train_epochs": float(pruned.epochs),
    }


def one_pass(run: peira.Run, **settings: Any) -> dict[str, Any]:
    """Train gates and weights of one cell and seed."""
    cell = Cell(**settings)
    data, network = problem(cell, run.seed)
    pruner = pruner_of(cell, network.to(run.device), run.seed)
    meter, began = EnergyMeter(), perf_counter()
    trained = train_consensus(
        pruner,
        data.to(run.device),
        recipe_of(cell),
        torch.Generator().manual_seed(run.seed),
        run.steps,
    )
    cost = spent(meter, perf_counter() - began)
    return trained | {"cost": {"train_operations": trained["operations"], **cost}}


def dense(run: peira.Run, **settings: Any) -> dict[str, Any]:
    """Train the dense network of one seed."""
    cell = Cell(**settings)
    data, network = problem(cell, run.seed)
    network = network.to(run.device)
    meter, began = EnergyMeter(), perf_counter()
    _prune(cell, run, data.to(run.device), network, 1.0)
    return {"state": network.state_dict(), "cost": spent(meter, perf_counter() - began)}


def _prune(cell: Cell, run: peira.Run, data: Split, network: nn.Module, share: float) -> Pruned:
    return prune_with(
        cell.method,  # type: ignore[arg-type]
        network,
        data,
        recipe_of(cell),
        share,
        cell.mode,
        generator=torch.Generator().manual_seed(run.seed),
        strength=cell.strength,
        loops=lambda name: partial(run.steps, name=name),
    )


def spent(meter: EnergyMeter, seconds: float) -> dict[str, float]:
    """What training took: time, and energy where the machine counts it."""
    joules = meter.joules
    return {"train_seconds": seconds} | ({} if joules is None else {"train_watt_seconds": joules})


def problem(cell: Cell, seed: int) -> tuple[Split, nn.Module]:
    """The pictures and the network at its initial weights: the same for all methods."""
    generator = torch.Generator().manual_seed(seed)
    if cell.data == "digits":
        data = digit_pictures(generator, cell.train)
    else:
        data = centred(official_pictures(cell.data))
    classes = CLASSES[cell.data]
    channels = data.train_inputs.shape[1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = cifar_resnet(classes=classes, channels=channels, **NETWORKS[cell.network])
    return data, network


def centred(split: Split) -> Split:
    """Each channel less its mean over the training part, by its spread there."""
    train = split.train_inputs
    mean, spread = (f(train, dim=(0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
    return split._replace(
        train_inputs=(train - mean) / spread, test_inputs=(split.test_inputs - mean) / spread
    )


def pruner_of(cell: Cell, network: nn.Module, seed: int) -> ConsensusPruner:
    """The cell's pruner, its gates at the seed's initial weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ConsensusPruner(
            network, cell.mode, cell.sparsity, polarization=cell.polarization, skip=cell.skip
        )


def recipe_of(cell: Cell) -> Recipe:
    """How the cell trains; pictures of CIFAR are shifted and flipped."""
    return Recipe(cell.epochs, cell.batch, cell.learning_rate, augment=cell.data != "digits")


def dense_of(cell: Cell) -> Cell:
    """The dense network that the cell is compared with."""
    task = {name: getattr(cell, name) for name in ("data", "network", "train", "epochs", "batch")}
    return Cell(method="dense", learning_rate=cell.learning_rate, **task)


def consensus_of(cell: Cell) -> Cell:
    """The consensus at the cell's settings, without what does not concern it."""
    return cell.changed({"method": "consensus", "strength": Cell().strength})


def of_main_task(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the first data set and network: of the paper's scale, CIFAR-10."""
    if not len(table):
        return table
    first = table.iloc[0]
    return table[(table["data"] == first["data"]) & (table["network"] == first["network"])]


def group(mode: str, method: str = "consensus", **settings: Any) -> dict[str, Any]:
    """The rows of one condition at the main comparison's settings."""
    main = {"mode": mode, "method": method, "sparsity": 0.5, "polarization": 1.0, "skip": False}
    return main | settings
