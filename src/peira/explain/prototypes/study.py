"""How the paper's claims are tested: the cells, what one cell measures, the verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn import functional as F

import peira
from peira.data import (
    digits,
    fingerprint,
    mnist,
    official_paths,
    official_pictures,
    picture_tensors,
)
from peira.data.images import mnist_paths
from peira.engine import verdict as v
from peira.explain.prototypes.baselines import GLVQ, with_centres
from peira.explain.prototypes.elastic import ElasticDeformation
from peira.explain.prototypes.explanation import nearest
from peira.explain.prototypes.measures import NEIGHBOURS, Sets, encoded, look, network_report
from peira.explain.prototypes.model import (
    Lambdas,
    PrototypeNetwork,
    conv_autoencoder,
    objective,
)
from peira.explain.prototypes.training import Recipe, training
from peira.nn import accuracy

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

IDX_WATCH = 5000
TRAIN, WATCH = 0.6, 0.2
POINTS = 15


class Cell(peira.Cell):
    """One classifier."""

    method: Literal["prototypes", "linear", "kmeans", "kmedoids", "glvq", "knn"] = Field(
        "prototypes",
        description="the paper's network; its encoder with a linear head and nothing else; the "
        "trained network with cluster centres as prototypes; GLVQ and 5 neighbours on pixels",
    )
    data: Literal["digits", "mnist-test", "mnist", "fashion-mnist"] = Field(
        "digits", description="mnist-test: the 10,000 pictures of MNIST's test file, split"
    )
    pictures: int | None = Field(None, ge=20, description="use only so many; None: all")
    lambda_ce: float = Field(20.0, ge=0, description="weight of the cross entropy")
    lambda_ae: float = Field(1.0, ge=0, description="weight of the summed squared reconstruction")
    lambda_1: float = Field(1.0, ge=0, description="weight of R1, prototypes near inputs")
    lambda_2: float = Field(1.0, ge=0, description="weight of R2, inputs near prototypes")
    n_prototypes: int = Field(15, ge=1)
    elastic: bool = Field(True, description="deform every training batch")
    epochs: int = Field(150, ge=1)
    batch_size: int = Field(50, ge=2)
    learning_rate: float = Field(0.002, gt=0, description="of Adam")

    @property
    def lambdas(self) -> Lambdas:
        """Weights of the four terms."""
        return self.lambda_ce, self.lambda_ae, self.lambda_1, self.lambda_2

    @property
    def recipe(self) -> Recipe:
        """Length, batch and learning rate."""
        return Recipe(self.epochs, self.batch_size, self.learning_rate)


BASELINES = ("linear", "kmeans", "kmedoids", "glvq", "knn")
ABLATIONS: tuple[dict[str, Any], ...] = (
    {"lambda_1": 0.0},
    {"lambda_2": 0.0},
    {"lambda_ae": 0.0},
    {"elastic": False},
)
MAIN = {"method": "prototypes", "lambda_1": 1.0, "lambda_2": 1.0, "lambda_ae": 1.0, "elastic": True}


def cells(base: Cell) -> list[Cell]:
    """The network, its ablations, and the baselines that need it last."""
    return [
        base,
        *(base.changed(change) for change in ABLATIONS),
        *(base.changed({"method": method}) for method in BASELINES),
    ]


def smoke_cells() -> list[Cell]:
    """Every code path, eight steps each."""
    return cells(Cell(pictures=300, epochs=2, batch_size=40))


def small_cells() -> list[Cell]:
    """All of it on scikit-learn's digits."""
    return cells(Cell())


def paper_cells() -> list[Cell]:
    """The published settings."""
    published = Cell(data="mnist", epochs=1500, batch_size=250)
    return [*cells(published), *cells(published.changed({"data": "fashion-mnist"}))]


class Study(peira.Study[Cell]):
    """Prototypes against black boxes, against centres found afterwards, and without each term."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(cells=smoke_cells, seeds=2),
        "small": peira.Scale(cells=small_cells, seeds=5),
        "paper": peira.Scale(cells=paper_cells, seeds=3),
    }

    def seeds(self, cell: Cell, asked: int) -> int:
        """Of five, four of the ablations that a claim is about and three of the other two."""
        if asked != 5 or cell.method != "prototypes":
            return asked
        if not cell.elastic or not cell.lambda_ae:
            return 3
        return asked if cell.lambda_1 and cell.lambda_2 else 4

    def inputs(self, cell: Cell) -> dict[str, str]:
        paths = files_of(cell.data)
        return {cell.data: fingerprint(paths)} if paths else {}

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float]:
        sets = sets_of(cell, run.seed).to(run.device)
        if cell.method in ("glvq", "knn"):
            return measure_pixels(cell, sets, run.seed)
        if cell.method == "linear":
            return measure_linear(cell, sets, run)
        network = shared_network(cell, run)
        if cell.method in ("kmeans", "kmedoids"):
            network = with_centres(
                network, encoded(network, sets.train), sets.train_labels, cell.method, run.seed
            )
        elif run.seed == 0 and Cell.model_validate(cell.model_dump() | MAIN) == cell:
            log_pictures(run, network, sets)
        return network_report(network, sets, cell.batch_size)

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        claim = self.claim
        main = {**MAIN, "data": judged(table)}
        without_1, without_2 = ({**main, name: 0.0} for name in ("lambda_1", "lambda_2"))
        linear = {**main, "method": "linear"}
        yield v.above(table, "test_accuracy", main, claim("C1a"))
        yield v.larger(table, "test_accuracy", main, linear, claim("C1b"))
        yield v.below(table, "worst_picture", main, claim("C2a"))
        yield v.above(table, "knn_agrees", main, claim("C2b"))
        for id, without in (("C3a", without_1), ("C3b", without_2)):
            far, unlike = claim(id).parts
            parts = [
                v.at_least(table, "r1", without, main, far),
                v.larger(table, "picture_distance", without, main, unlike),
            ]
            yield v.all_of(claim(id), parts)
        yield v.at_least(table, "r2", without_2, main, claim("C4"))
        yield v.below(table, "additive_error", main, claim("C5a"))
        yield v.above(table, "top_over_random", main, claim("C5b"))
        yield v.above(table, "lead_over_random", main, claim("C5c"))
        yield v.equals(table, "classes_covered", main, claim("C6"))

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        from peira.explain.prototypes.figure import draw

        data = judged(table)
        return draw(v.select(table, {"data": data}), v.select(curves, {"data": data}))


def judged(table: pd.DataFrame) -> str:
    """The data that the claims are judged on: the paper's first where there are several."""
    present = set(table["data"]) if len(table) else set()
    return "mnist" if "mnist" in present else min(present, default="digits")


def files_of(data: str) -> list[Path]:
    """The files of a data set; none of what comes with scikit-learn."""
    if data == "digits":
        return []
    return mnist_paths() if data == "mnist-test" else official_paths(data)


def sets_of(cell: Cell, seed: int) -> Sets:
    """Pictures to train, to watch and to test; official parts where there are any."""
    if cell.data in ("mnist", "fashion-mnist"):
        images, labels, test, test_labels = official_pictures(cell.data)
        parts = [(images[IDX_WATCH:], labels[IDX_WATCH:]), (images[:IDX_WATCH], labels[:IDX_WATCH])]
        parts.append((test, test_labels))
    else:
        pixels, classes = digits() if cell.data == "digits" else mnist()
        images = picture_tensors(pixels[:, None] / 16 if cell.data == "digits" else pixels[:, None])
        labels = torch.tensor(classes).long()
        order = np.random.default_rng(seed).permutation(len(images))[: cell.pictures]
        cuts = np.round(np.array([TRAIN, TRAIN + WATCH]) * len(order)).astype(int)
        parts = [(images[rows], labels[rows]) for rows in np.split(order, cuts)]
    return Sets(*(tensor[: cell.pictures] for pair in parts for tensor in pair))


def shared_network(cell: Cell, run: peira.Run) -> PrototypeNetwork:
    """The trained network of a cell; the same for the cells that change it afterwards."""
    settings = cell.changed({"method": "prototypes"}).model_dump()
    state, curves = run.shared("network", train_network, **settings)
    if cell.method == "prototypes":
        run.curves += curves
    network = new_network(cell, sets_of(cell, run.seed), run)
    network.load_state_dict(state)
    return network


def new_network(cell: Cell, sets: Sets, run: peira.Run) -> PrototypeNetwork:
    """An untrained network for the pictures of a cell."""
    pair = conv_autoencoder(tuple(sets.train.shape[1:]), generator=run.generator)
    with torch.no_grad():
        latent = pair[0](sets.train[:1].cpu()).shape[1:]
    classes = int(sets.train_labels.max()) + 1
    network = PrototypeNetwork(*pair, latent, cell.n_prototypes, classes, run.generator)
    return network.to(run.device)


def train_network(
    run: peira.Run, **settings: Any
) -> tuple[dict[str, torch.Tensor], list[tuple[int, str, float]]]:
    """Weights of the trained network of a cell, and its curves."""
    cell = Cell(**settings)
    sets = sets_of(cell, run.seed).to(run.device)
    network = new_network(cell, sets, run)

    def loss(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return objective(network, x, labels).total(cell.lambdas)

    total = run.budget(cell.recipe.steps(len(sets.train)))
    for step in trained(network, loss, cell, sets, run):
        if watched(step, total):
            with torch.no_grad():
                terms = objective(network, sets.watch, sets.watch_labels)._asdict()
            run.log(step, **{name: float(term) for name, term in terms.items()})
            log_accuracy(run, step, network, sets)
    return {name: weight.cpu() for name, weight in network.state_dict().items()}, run.curves


def trained(network: nn.Module, loss: Any, cell: Cell, sets: Sets, run: peira.Run) -> Iterator[int]:
    """The steps of one training: the same data, batches and deformations for every method."""
    height, width = sets.train.shape[-2:]
    deform = ElasticDeformation.fitting(height, width, run.generator) if cell.elastic else None
    return training(
        network, loss, sets.train, sets.train_labels, cell.recipe, run.generator, deform, run.steps
    )


def watched(step: int, total: int) -> bool:
    """Whether a step is one of the curve's points."""
    return step == total or step % max(1, total // POINTS) == 0


def log_accuracy(run: peira.Run, step: int, network: nn.Module, sets: Sets) -> None:
    """Accuracy on the pictures that are neither trained on nor tested."""
    run.log(step, watch_accuracy=accuracy(network, sets.watch, sets.watch_labels))


def measure_linear(cell: Cell, sets: Sets, run: peira.Run) -> dict[str, float]:
    """The same encoder with a linear head: cross entropy alone, same budget."""
    encoder = new_network(cell, sets, run).encoder
    with torch.no_grad():
        size = encoder(sets.train[:1]).numel()
    head = nn.Linear(size, int(sets.train_labels.max()) + 1)
    network = nn.Sequential(encoder, nn.Flatten(), head).to(run.device)

    def loss(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(network(x), labels)

    total = run.budget(cell.recipe.steps(len(sets.train)))
    for step in trained(network, loss, cell, sets, run):
        if watched(step, total):
            log_accuracy(run, step, network, sets)
    return {"test_accuracy": accuracy(network, sets.test, sets.test_labels)}


def measure_pixels(cell: Cell, sets: Sets, seed: int) -> dict[str, float]:
    """GLVQ and nearest neighbours on the pixels."""
    train, test = (part.flatten(1).cpu().numpy() for part in (sets.train, sets.test))
    labels, truth = (part.cpu().numpy() for part in (sets.train_labels, sets.test_labels))
    if cell.method == "knn":
        model = KNeighborsClassifier(NEIGHBOURS).fit(train, labels)
        return {"test_accuracy": model.score(test, truth)}
    lvq = GLVQ(cell.n_prototypes, random_state=seed).fit(train, labels)
    pictures = torch.from_numpy(lvq.prototypes_).to(sets.train)
    classes = torch.from_numpy(lvq.prototype_class_).to(sets.train.device)
    return {"test_accuracy": lvq.score(test, truth), **look(pictures, classes, sets)}


def log_pictures(run: peira.Run, network: PrototypeNetwork, sets: Sets) -> None:
    """Keep what the figure shows: pixels of prototypes and of the training pictures nearest them.

    Curves are what a figure is drawn from besides the table: here a step is a pixel.
    """
    with torch.no_grad():
        decoded = network.pictures()
        closest = nearest(network.prototypes, encoded(network, sets.train))[1]
    for name, pictures in (("decoded", decoded), ("example", sets.train[closest])):
        for step, value in enumerate(pictures[:, 0].flatten().tolist()):
            run.log(step, **{name: value})
    for step, label in enumerate(network.prototype_classes().tolist()):
        run.log(step, prototype_class=label)
