"""How the claims are tested: accuracy of local learners, memory and time of a step."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from itertools import pairwise
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import peira
from peira.data import fingerprint
from peira.engine import verdict as v
from peira.nn.evaluation import accuracy
from peira.nn.networks import cifar_resnet
from peira.training.man.imagenet import imagenet_resnet
from peira.training.man.memory import (
    checkpointed_backward,
    end_to_end_backward,
    peak_bytes,
    weight_bytes,
)
from peira.training.man.method import LocalTrainer, set_rate, sgd
from peira.training.man.partition import PUBLISHED, published_partition, released_weights
from peira.training.man.problems import (
    PLAIN,
    PREPARED,
    DataName,
    augmented,
    load,
    normalised,
    paths,
    probe_accuracies,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# What each method puts behind its modules. MAN and its parts have the linear head of greedy
# learning; "man-dgl" and "man-infopro" put MAN in front of the heads of DGL and of InfoPro.
# "released" is the command of the released code for ResNet-32, its oddities included.
METHODS: dict[str, dict[str, Any]] = {
    "greedy": {"aux": "0c1f", "momentum": None, "bias": None},
    "ema": {"aux": "0c1f", "bias": None},
    "lb": {"aux": "0c1f", "momentum": None},
    "lb2": {"aux": "0c1f", "momentum": None, "bias": "units"},
    "vector": {"aux": "0c1f", "bias": "vector"},
    "redrawn": {"aux": "0c1f", "start": "redrawn"},
    "man": {"aux": "0c1f"},
    "dgl": {"aux": "1c2f", "momentum": None, "bias": None},
    "man-dgl": {"aux": "1c2f"},
    "infopro": {"aux": "1c2f", "momentum": None, "bias": None, "local_loss": "infopro"},
    "man-infopro": {"aux": "1c2f", "local_loss": "infopro"},
    "released": {"aux": "2c2f", "local_loss": "infopro", "start": "redrawn"},
}
Method = Literal[
    "e2e", "checkpoint", "greedy", "ema", "lb", "lb2", "vector", "redrawn", "man", "dgl", "man-dgl",
    "infopro", "man-infopro", "released",
]  # fmt: skip
Network = Literal["tiny", "mini", "resnet32", "resnet110", "resnet34", "resnet101", "resnet152"]
LARGE = ("resnet34", "resnet101", "resnet152")
# Blocks and channels of each stage: ResNet-20 at half its width, and a sixth of that.
OWN = {"mini": ((3, 3, 3), (8, 16, 32)), "tiny": ((2, 1), (4, 8))}
MINI_UNITS = 9
TIMED = 3
MIB = 2**20


class Cell(peira.Cell):
    """One condition."""

    part: Literal["accuracy", "memory"] = "accuracy"
    method: Method = "man"
    modules: int = Field(MINI_UNITS, ge=1, description="local modules K; 1 is end to end")
    momentum: float = Field(0.995, ge=0, lt=1, description="m of the moving average")
    network: Network = "mini"
    data: DataName = "digits"
    train: int = Field(500, ge=2, description="training pictures, where the data has no split")
    epochs: int = Field(12, ge=1)
    batch: int = Field(50, ge=2, description="pictures in a step")
    learning_rate: float = Field(0.1, gt=0, description="highest, of a cosine")
    warmup: int = Field(0, ge=0, description="epochs in which the rate rises from 0.01")
    side: int = Field(32, ge=4, description="memory: height and width of the pictures")


def end_to_end(cell: Cell) -> Cell:
    """Backpropagation under the same settings."""
    return cell.changed({"method": "e2e", "modules": 1, "momentum": 0.995})


def accuracy_cells(base: Cell, methods: list[str]) -> list[Cell]:
    """Each method once, and backpropagation."""
    return [end_to_end(base), *(base.changed({"method": method}) for method in methods)]


def varied(base: Cell, **values: list[Any]) -> list[Cell]:
    """The base with one field changed at a time."""
    return [base.changed({name: value}) for name, several in values.items() for value in several]


def memory_cells(base: Cell, modules: list[int]) -> list[Cell]:
    """One training step: end to end, MAN and checkpointing at each K."""
    return [
        end_to_end(base),
        *(base.changed({"method": "man-dgl", "modules": k}) for k in modules),
        *(base.changed({"method": "checkpoint", "modules": k}) for k in modules),
    ]


def imagenet_cells(base: Cell, networks: list[str]) -> list[Cell]:
    """One step of the ImageNet networks, K = 2, with the decoders and heads of the paper."""
    two = [
        base.changed({"method": "man-infopro", "modules": 2, "network": name}) for name in networks
    ]
    return [cell for man in two for cell in (end_to_end(man), man)]


COMPARED = ["greedy", "ema", "lb", "lb2", "man", "dgl", "man-dgl", "infopro", "man-infopro"]


def small_cells() -> list[Cell]:
    """A thin ResNet-20 on 500 digits, each block a module; memory of the published networks."""
    base = Cell()
    step = Cell(part="memory", network="resnet32", batch=64)
    return [
        *accuracy_cells(base, COMPARED),
        *varied(base.changed({"method": "greedy"}), modules=[2, 4]),
        *varied(base, modules=[2, 4], momentum=[0.9, 0.99, 0.999]),
        *memory_cells(step, [2, 4, 8]),
        *imagenet_cells(step.changed({"batch": 2, "side": 224}), ["resnet101", "resnet152"]),
    ]


def smoke_cells() -> list[Cell]:
    """Every code path, a few steps each."""
    base = Cell(network="tiny", modules=3, train=40, epochs=1, batch=20)
    step = Cell(part="memory", network="tiny", batch=4, side=8)
    return [
        *accuracy_cells(base, [*METHODS]),
        *varied(base.changed({"method": "greedy"}), modules=[2]),
        *varied(base, modules=[2], momentum=[0.9, 0.999]),
        *memory_cells(step, [2, 3]),
    ]


def paper_cells() -> list[Cell]:
    """400 epochs on CIFAR-10, SVHN and STL-10; steps of the ImageNet networks at batch 128."""
    cifar = Cell(
        network="resnet32", data="cifar10", modules=16, epochs=400, batch=1024, learning_rate=0.8,
        warmup=10,
    )  # fmt: skip
    stl = cifar.changed({"data": "stl10", "batch": 128, "learning_rate": 0.1})
    deep = cifar.changed({"network": "resnet110", "modules": 55})
    step = Cell(part="memory", network="resnet32", batch=1024)
    man, greedy = (cifar.changed({"method": method}) for method in ("man", "greedy"))
    return [
        *accuracy_cells(cifar, [*METHODS]),
        *(cell for one in (greedy, man) for cell in varied(one, modules=[2, 4, 8])),
        *varied(man, momentum=[0.9, 0.99, 0.999]),
        *accuracy_cells(deep, ["dgl", "man-dgl", "infopro", "man-infopro"]),
        *accuracy_cells(cifar.changed({"data": "svhn"}), COMPARED),
        *accuracy_cells(stl, COMPARED),
        *memory_cells(step, [2, 4, 8, 16]),
        *imagenet_cells(step.changed({"batch": 128, "side": 224}), list(LARGE)),
    ]


class Study(peira.Study[Cell]):
    """Local learners against backpropagation: accuracy, memory, time."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(cells=smoke_cells, seeds=1),
        "small": peira.Scale(cells=small_cells, seeds=5),
        "paper": peira.Scale(cells=paper_cells, seeds=3),
    }

    def seeds(self, cell: Cell, asked: int) -> int:
        """One where nothing is drawn that matters; three of what costs most or is no claim."""
        if cell.part == "memory":
            return 1
        spared = cell.method in ("infopro", "man-infopro")
        return min(asked, 3) if spared or cell.momentum != 0.995 else asked

    def inputs(self, cell: Cell) -> dict[str, str]:
        if cell.part == "memory" or cell.data == "digits":
            return {}
        return {cell.data: fingerprint(paths(cell.data))}

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float]:
        return measure_step(cell, run) if cell.part == "memory" else train(cell, run)

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        claim = self.claim
        rows = main_rows(table)
        every = rows[rows["modules"].isin([1, rows["modules"].max()])]
        more, closes = claim("C1a").parts
        yield v.all_of(
            claim("C1a"),
            [
                v.larger(every, "accuracy", MAN, GREEDY, more),
                v.above(gap_closed(every), "closed", MAN, closes),
            ],
        )
        bases = {"DGL": ("man-dgl", "dgl"), "InfoPro": ("man-infopro", "infopro")}
        yield v.all_of(
            claim("C1b"),
            [
                v.larger(every, "accuracy", usual(ours), usual(base), part)
                for (ours, base), part in zip(bases.values(), claim("C1b").parts, strict=True)
            ],
        )
        yield v.larger(every, "accuracy", MAN, usual("lb2"), claim("C1c"))
        yield v.larger(every, "accuracy", MAN, usual("ema"), claim("C2a"))
        yield v.larger(every, "accuracy", MAN, usual("lb"), claim("C2b"))
        yield v.count(memory_falls(table), claim("C3a"))
        yield v.count(imagenet_saves(table), claim("C3b"))
        slopes = gap_slopes(rows)
        yield v.larger(slopes, "slope", GREEDY, MAN, claim("C4"))
        yield v.all_of(
            claim("C5"),
            [
                v.larger(every, "accuracy", MAN, {**MAN, "momentum": end}, part)
                for end, part in zip((0.9, 0.999), claim("C5").parts, strict=True)
            ],
        )
        yield v.larger(every, "early_probe", MAN, GREEDY, claim("C6"))

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        from peira.training.man.figure import draw

        return draw(table, curves)


def usual(method: str) -> dict[str, Any]:
    """Rows of a method at the published momentum."""
    return {"method": method, "momentum": 0.995}


MAN, GREEDY = usual("man"), usual("greedy")


def main_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy on the first data set and network: what the claims are judged on."""
    rows = table[table["part"] == "accuracy"]
    first = rows[["data", "network"]].head(1)
    return rows.merge(first)


def gap_closed(rows: pd.DataFrame) -> pd.DataFrame:
    """MAN's rows with `closed`: how far it is on the way from greedy learning to end to end."""
    wide = rows[rows["momentum"] == 0.995].pivot_table(
        index="seed", columns="method", values="accuracy"
    )
    wide = wide.reindex(columns=["man", "greedy", "e2e"]).dropna()
    closed = (wide["man"] - wide["greedy"]) / (wide["e2e"] - wide["greedy"])
    ours = v.select(rows, MAN)
    return ours.assign(closed=ours["seed"].map(closed)).dropna(subset="closed")


def gap_slopes(rows: pd.DataFrame) -> pd.DataFrame:
    """Per method and seed, `slope`: accuracy lost against end to end, per doubling of K."""
    import numpy as np
    import pandas as pd

    best = v.select(rows, "e2e").set_index("seed")["accuracy"]
    found = []
    for method in (GREEDY, MAN):
        for seed, part in v.select(rows, method).groupby("seed"):
            if seed in best.index and part["modules"].nunique() > 1:
                gaps = best[seed] - part["accuracy"]
                slope = float(np.polyfit(np.log2(part["modules"]), gaps, 1)[0])
                found.append({**method, "seed": seed, "slope": slope})
    return pd.DataFrame(found, columns=["method", "momentum", "seed", "slope"])


def memory_falls(table: pd.DataFrame) -> dict[str, bool]:
    """Whether a step's peak falls with each K, and to half at K = 8."""
    rows = table[(table["part"] == "memory") & (table["modules"] <= 8)]
    rows = rows.merge(rows.loc[rows["method"] == "man-dgl", ["network"]].head(1))
    ours = rows[rows["method"].isin(["e2e", "man-dgl"])]
    peak = dict(ours.groupby("modules")["saved_mib"].mean())
    outcomes = {
        f"K = {b} below K = {a}": bool(peak[b] < peak[a]) for a, b in pairwise(sorted(peak))
    }
    if 1 in peak and 8 in peak:
        outcomes["K = 8 at most half"] = bool(peak[8] <= 0.5 * peak[1])
    return outcomes


def imagenet_saves(table: pd.DataFrame) -> dict[str, bool]:
    """Whether MAN needs at most 0.55 of what backpropagation needs, by ImageNet network.

    Judged on the allocator of an accelerator where there is one, else on what autograd holds.
    """
    rows = table[(table["part"] == "memory") & table["network"].isin(["resnet101", "resnet152"])]
    measured = "gpu_mib" if "gpu_mib" in rows and rows["gpu_mib"].notna().all() else "saved_mib"
    if not len(rows):
        return {}
    wide = rows.pivot_table(index="network", columns="method", values=measured)
    wide = wide.reindex(columns=["e2e", "man-infopro"]).dropna()
    return {
        str(name): bool(row["man-infopro"] <= 0.55 * row["e2e"]) for name, row in wide.iterrows()
    }


def network_of(cell: Cell, channels: int, classes: int = 10) -> nn.Sequential:
    """The cell's network at its initial weights."""
    if cell.network in OWN:
        blocks, widths = OWN[cell.network]
        return cifar_resnet(classes=classes, blocks=blocks, widths=widths, channels=channels)
    if cell.network in LARGE:
        return imagenet_resnet(cell.network)
    return cifar_resnet(int(cell.network.removeprefix("resnet")), classes, channels=channels)


def trainer_of(
    cell: Cell, network: nn.Sequential, image: tuple[int, ...], **settings: Any
) -> LocalTrainer:
    """The cell's method around its network."""
    published = cell.modules > 1 and cell.modules in PUBLISHED.get(cell.network, {})
    partition: Any = published_partition(cell.network, cell.modules) if published else cell.modules
    known = METHODS.get(cell.method, {"momentum": None, "bias": None, "aux": "0c1f"})
    chosen = {"momentum": cell.momentum, **known, "image": image, **settings}
    if published and cell.method == "released":
        chosen["weights"] = released_weights(cell.network, cell.modules)
    return LocalTrainer(network, partition, **chosen)


def train(cell: Cell, run: peira.Run) -> dict[str, float]:
    """Train the cell's network; test accuracy, the blocks' linear probes, time."""
    how = PREPARED.get(cell.data, PLAIN)
    raw = load(cell.data, cell.train, run.generator).to(run.device)
    data = raw._replace(test_inputs=normalised(raw.test_inputs, how))
    image = tuple(raw.train_inputs.shape[1:])
    network = network_of(cell, image[0]).to(run.device)
    scale = None if how is PLAIN else (how.mean, how.std)
    trainer = trainer_of(cell, network, image, normalised=scale).to(run.device)
    optimizer = sgd(trainer, cell.learning_rate)
    count = len(raw.train_inputs)
    each = max(1, count // cell.batch)
    order = torch.cat(
        [torch.randperm(count, generator=run.generator)[: each * cell.batch]
         for _ in range(cell.epochs)]
    ).split(cell.batch)  # fmt: skip
    seconds = 0.0
    total, every = len(order), max(1, cell.epochs // 4) * each
    for step in run.steps(total, save=(trainer, optimizer)):
        began = clock(run.device)
        chosen = order[step - 1].to(run.device)
        images = augmented(raw.train_inputs[chosen], how, run.generator)
        labels = raw.train_labels[chosen]
        set_rate(optimizer, cell.learning_rate, (step - 1) / total, cell.warmup / cell.epochs)
        optimizer.zero_grad()
        trainer.backward(normalised(images, how), cross_entropy(labels))
        optimizer.step()
        seconds += clock(run.device) - began
        if step % every == 0 and step < total:
            run.log(step // each, accuracy=accuracy(network, data.test_inputs, data.test_labels))
    score = accuracy(network, data.test_inputs, data.test_labels)
    run.log(cell.epochs, accuracy=score)
    probes = probe_accuracies(network, data) if cell.network in OWN else []
    for block, probed in enumerate(probes, start=1):
        run.log(block, probe=probed)
    return {
        "accuracy": score,
        "early_probe": statistics.mean(probes[: len(probes) // 3]) if probes else float("nan"),
        "trained_parameters": float(
            sum(w.numel() for w in trainer.parameters() if w.requires_grad)
        ),
        "seconds_per_epoch": seconds / cell.epochs,
    }


def cross_entropy(labels: Tensor) -> Callable[[Tensor], Tensor]:
    """The loss of a batch with these labels."""
    return lambda logits: F.cross_entropy(logits, labels)


def measure_step(cell: Cell, run: peira.Run) -> dict[str, float]:
    """Bytes held and seconds of one training step on random pictures."""
    classes = 1000 if cell.network in LARGE else 10
    image = (3, cell.side, cell.side)
    network = network_of(cell, 3).to(run.device).train()
    deep = cell.network in LARGE and cell.method in METHODS
    settings = {"aux": "imagenet", "weights": (5.0, 0.75)} if deep else {}
    trainer = trainer_of(cell, network, image, **settings).to(run.device).train()
    images = torch.rand(cell.batch, *image, generator=run.generator).to(run.device)
    labels = torch.randint(classes, (cell.batch,), generator=run.generator).to(run.device)
    loss = cross_entropy(labels)
    backward = {
        "e2e": lambda: end_to_end_backward(network, images, loss),
        "checkpoint": lambda: checkpointed_backward(trainer.local_modules, images, loss),
    }
    step = backward.get(cell.method, lambda: trainer.backward(images, loss))
    measured = {
        "saved_mib": peak_bytes(step, [images, labels, *trainer.parameters()]) / MIB,
        "weights_mib": weight_bytes([network]) / MIB,
        "auxiliary_mib": weight_bytes([trainer.auxiliaries]) / MIB,
        **gpu_peak(step, run.device),
    }
    # Two pictures of ImageNet say nothing about its time.
    if cell.network not in LARGE or run.device.type == "cuda":
        measured["step_seconds"] = timed(step, run.device)
    return measured


def clock(device: torch.device) -> float:
    """Seconds: of the processor where it computes (others may use it too), else of the wall."""
    if device.type != "cuda":
        return process_time()
    torch.cuda.synchronize(device)
    return perf_counter()


def timed(step: Callable[[], object], device: torch.device) -> float:
    """Time of a step: the shortest of a few, which other programs disturb least."""
    times = []
    for _ in range(TIMED):
        began = clock(device)
        step()
        times.append(clock(device) - began)
    return min(times)


def gpu_peak(step: Callable[[], object], device: torch.device) -> dict[str, float]:
    """What the allocator of an accelerator had at most: weights, gradients and all."""
    if device.type != "cuda":
        return {}
    torch.cuda.reset_peak_memory_stats(device)
    step()
    return {"gpu_mib": torch.cuda.max_memory_allocated(device) / MIB}
