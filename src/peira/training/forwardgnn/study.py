"""How the claims are tested: accuracy, links, memory, forward passes, and locality of gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, Self

import networkx as nx
import numpy as np
import torch
from pydantic import Field
from torch_geometric.data import Data
from torch_geometric.transforms import RandomLinkSplit

import peira
from peira.data import fingerprint, locate
from peira.data.planetoid import PLANETOID_PARTS, read_gnn_npz, read_planetoid
from peira.engine.verdict import Verdict, above, all_of, at_least, below, exactly, larger
from peira.nn.saved_tensors import SavedTensors
from peira.training.forwardgnn.baselines import BackpropLinks, BackpropNodes, propagated_labels
from peira.training.forwardgnn.convolutions import Edges, NoGraph, as_features
from peira.training.forwardgnn.graph import (
    NodeGraph,
    node_splits,
    normalize_features,
    stochastic_block_graph,
)
from peira.training.forwardgnn.learners import NodeLearner, Settings, Training, Validation
from peira.training.forwardgnn.links import LinkData, LinkLearner, link_metrics
from peira.training.forwardgnn.method import (
    LINK_LEARNERS,
    NODE_LEARNERS,
    TEST_LINKS,
    VALIDATION_LINKS,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Method = Literal[
    "sf", "ff_la", "ff_vn", "top2input", "top2loss", "bp", "mlp", "labels", "fl", "ff", "topdown"
]
DataName = Literal[
    "cora_ml", "cora", "citeseer", "citeseer_full", "pubmed_full", "photo", "github", "club",
    "blocks",
]  # fmt: skip

# Attributed graphs in npz archives: data set and file. The Planetoid ones are in eight files.
ARCHIVES = {
    "cora_ml": ("planetoid", "cora_ml.npz"),
    "citeseer_full": ("gnn-benchmark", "citeseer.npz"),
    "pubmed_full": ("gnn-benchmark", "pubmed.npz"),
    "photo": ("gnn-benchmark", "amazon_electronics_photo.npz"),
    "github": ("gnn-benchmark", "github.npz"),
}
# Blocks: mean degree of the simulated graph at its default probabilities.
BLOCK_NODES, BLOCK_CLASSES, BLOCK_DEGREE = 400, 5, 5.5


class Cell(peira.Cell):
    """One condition."""

    task: Literal["nodes", "links", "memory", "passes", "locality"] = "nodes"
    method: Method = "sf"
    data: DataName = "cora_ml"
    conv: Literal["gcn", "sage", "gat"] = "gcn"
    layers: int = Field(2, ge=1, description="layers of the network")
    hidden: int = Field(128, ge=1, description="width of every layer")
    epochs: int = Field(1000, ge=1, description="most epochs per layer (time steps if top-down)")
    val_every: int = Field(10, ge=1, description="epochs between two looks at validation nodes")
    patience: int = Field(200, ge=1, description="epochs without improvement that end a layer")
    homophily: float = Field(0.7, ge=0, le=1, description="blocks: share of same-class neighbours")

    def settings(self) -> Settings:
        """The same for the learners."""
        return Settings(
            conv=NoGraph if self.method == "mlp" else self.conv,
            hidden=self.hidden,
            layers=self.layers,
            epochs=self.epochs,
            val_every=self.val_every,
            patience=max(1, self.patience // self.val_every),
        )


def node_cells(epochs: int, data: DataName, **fields: Any) -> list[Cell]:
    """Every learner of node classes and every baseline, on one data set."""
    methods = [*NODE_LEARNERS, "bp", "mlp", "labels"]
    return [Cell(method=method, data=data, epochs=epochs, **fields) for method in methods]


def link_cells(methods: list[str], epochs: int, data: DataName, **fields: Any) -> list[Cell]:
    """Learners of links on one data set."""
    return [
        Cell(task="links", method=method, data=data, epochs=epochs, **fields) for method in methods
    ]


def exact_cells(layers: list[int]) -> list[Cell]:
    """Memory at several depths, forward passes and locality: on the simulated blocks."""
    cells = [Cell(task="memory", data="blocks", layers=depth, epochs=1) for depth in layers]
    cells += [
        Cell(task="passes", method=method, data="blocks", epochs=3) for method in ("sf", "ff_la")
    ]
    learners = [*NODE_LEARNERS, *LINK_LEARNERS]
    return cells + [
        Cell(task="locality", method=method, data="blocks", layers=3, epochs=3)
        for method in learners
    ]


def homophily_cells(epochs: int) -> list[Cell]:
    """From neighbours that disagree to neighbours that agree, and no graph."""
    return [
        Cell(method=method, data="blocks", homophily=share, epochs=epochs)
        for method, share in product(("sf", "bp", "mlp"), (0.05, 0.2, 0.4, 0.8))
    ]


def block_cells(epochs: int) -> list[Cell]:
    """The other convolutions, and forward-forward with virtual nodes, on the simulated blocks."""
    fields: dict[str, Any] = {"data": "blocks", "homophily": 0.8, "epochs": epochs}
    cells = [
        Cell(method=method, conv=conv, **fields)
        for method, conv in product(("sf", "bp"), ("sage", "gat"))
    ]
    return [*cells, Cell(method="ff_vn", **fields)]


def smoke_cells() -> list[Cell]:
    """Every code path, on graphs that come with the packages or are simulated."""
    short: dict[str, Any] = {"hidden": 8, "val_every": 2}
    return [
        *node_cells(3, "club", **short),
        *node_cells(2, "blocks", **short),
        Cell(data="blocks", conv="sage", epochs=2, **short),
        Cell(data="blocks", conv="gat", epochs=2, **short),
        *link_cells([*LINK_LEARNERS, "bp"], 3, "blocks", **short),
        *exact_cells([2, 4]),
    ]


def small_cells() -> list[Cell]:
    """Two-layer GCNs on Cora_ML for the claims, and what else there is on simulated blocks."""
    methods = ["sf", "ff_la", "top2input", "top2loss", "bp", "labels"]
    return [
        *(Cell(method=method) for method in methods),
        Cell(method="ff_la", patience=1000),
        *link_cells(["fl", "bp"], 200, "cora_ml"),
        *exact_cells([2, 4, 8, 16]),
        *homophily_cells(200),
        *block_cells(200),
    ]


def paper_cells() -> list[Cell]:
    """Five data sets, three convolutions, four layers, published epochs and looks."""
    fields: dict[str, Any] = {"layers": 4, "val_every": 2}
    cells: list[Cell] = []
    names = ("citeseer_full", "cora_ml", "pubmed_full", "photo", "github")
    for data, conv in product(names, ("gcn", "sage", "gat")):
        cells += node_cells(1000, data, conv=conv, **fields)
        cells += link_cells([*LINK_LEARNERS, "bp"], 1000, data, conv=conv, **fields)
    cells += [
        Cell(method=method, data=data, **fields)
        for data, method in product(("cora", "citeseer"), ("sf", "bp"))
    ]
    cells += [Cell(method="ff_la", patience=1000, **fields)]
    return cells + exact_cells([2, 4, 8, 16])


class Resumable:
    """A learner's training state, as a run saves and restores it."""

    def __init__(self, learner: Training) -> None:
        self.learner = learner

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return self.learner.training_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self.learner.load_training_state(state)


def read_arrays(cell: Cell, rng: np.random.Generator) -> tuple[Any, np.ndarray, np.ndarray]:
    """Features, both directions of every edge, and classes (-1 unknown) of a cell's data."""
    if cell.data == "blocks":
        others = BLOCK_NODES - BLOCK_NODES // BLOCK_CLASSES
        return stochastic_block_graph(
            rng,
            nodes=BLOCK_NODES,
            classes=BLOCK_CLASSES,
            p_in=cell.homophily * BLOCK_DEGREE / (BLOCK_NODES - others - 1),
            p_out=(1 - cell.homophily) * BLOCK_DEGREE / others,
        )
    if cell.data == "club":
        club = nx.karate_club_graph()
        arcs = np.array([*club.edges, *((v, u) for u, v in club.edges)]).T
        y = np.array([int(club.nodes[v]["club"] == "Officer") for v in club])
        return np.eye(len(y), dtype=np.float32), arcs, y
    if cell.data in ARCHIVES:
        graph = read_gnn_npz(locate(*ARCHIVES[cell.data]))
    else:
        paths = [locate("planetoid", f"ind.{cell.data}.{part}") for part in PLANETOID_PARTS]
        graph = read_planetoid(paths[0].parent, cell.data)
    # The published protocol turns features into 0/1 and divides rows by their sums.
    present = (graph.x > 0).astype(np.float32)
    return normalize_features(present), graph.edge_index, graph.y


def node_problem(
    cell: Cell, run: peira.Run
) -> tuple[NodeGraph, Validation, torch.Tensor, torch.Tensor]:
    """Training graph, validation nodes, and test nodes with their classes."""
    x, edges, y = read_arrays(cell, run.rng)
    labelled = np.flatnonzero(y >= 0)
    train, validation, test = (
        torch.from_numpy(labelled[mask]).to(run.device)
        for mask in node_splits(len(labelled), run.seed % 5)
    )
    classes = torch.from_numpy(y).to(run.device)
    graph = NodeGraph(
        x=as_features(x, run.device),
        edges=Edges(torch.from_numpy(edges).to(run.device), len(y)),
        classes=int(y.max()) + 1,
        known=train,
        known_y=classes[train],
    )
    return graph, Validation(validation, classes[validation]), test, classes[test]


def link_problem(cell: Cell, run: peira.Run) -> tuple[LinkData, LinkData, LinkData]:
    """Training, validation and test pairs, each with the graph its messages take."""
    x, edges, _ = read_arrays(cell, run.rng)
    split = RandomLinkSplit(
        is_undirected=True, num_val=VALIDATION_LINKS, num_test=TEST_LINKS, neg_sampling_ratio=1.0
    )
    features = as_features(x, run.device)
    parts = split(Data(edge_index=torch.from_numpy(edges), num_nodes=x.shape[0]))
    train, validation, test = (
        LinkData(
            features,
            Edges(part.edge_index.to(run.device), x.shape[0]),
            part.edge_label_index.to(run.device),
            part.edge_label.float().to(run.device),
        )
        for part in parts
    )
    return train, validation, test


def node_learner(
    cell: Cell, settings: Settings, graph: NodeGraph, validation: Validation | None
) -> NodeLearner:
    """The untrained learner (or backpropagation) of a cell."""
    kind = NODE_LEARNERS.get(cell.method, BackpropNodes)
    return kind(settings, graph, validation)


def train(learner: Training, run: peira.Run) -> int:
    """Drive a learner to its end; returns the number of epochs it took."""
    step = 0
    for step in run.steps(learner.max_steps, save=[Resumable(learner)]):
        record = learner.step()
        looks = {name: value for name, value in record.items() if name.startswith("validation")}
        if looks:
            run.log(step, **looks)
        if learner.done:
            break
    learner.finish()
    return step


def crossing_gradients(learner: Training) -> int:
    """How often the loss of one layer left a gradient in the weights of another."""
    crossings = 0
    descend = learner._descend

    def watched(layer: int, *args: Any) -> None:
        nonlocal crossings
        for parameter in learner.parameters():
            parameter.grad = None
        descend(layer, *args)
        for other, module in enumerate(learner.layers):
            if other != layer:
                crossings += sum(p.grad is not None for p in module.parameters())

    learner._descend = watched  # type: ignore[method-assign]
    while not learner.done:
        learner.step()
    return crossings


class GpuPeak:
    """Context that measures what is allocated on a GPU beyond what was there when it began.

    Attributes:
        peak: the most bytes at a time; None on the CPU, where the allocator keeps no count.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak: int | None = None

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device) - self._before


def count_passes(learner: NodeLearner, action: Any) -> float:
    """Forward passes of the network (all layers once) that an action makes."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    hooks = [layer.register_forward_hook(count) for layer in learner.layers]
    action()
    for hook in hooks:
        hook.remove()
    return calls / len(learner.layers)


class Study(peira.Study[Cell]):
    """Local against global training: accuracy, memory, passes."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(smoke_cells, seeds=2),
        "small": peira.Scale(small_cells, seeds=3),
        "paper": peira.Scale(paper_cells, seeds=5),
    }

    def inputs(self, cell: Cell) -> dict[str, str]:
        """Fingerprint of the files of the cell's data set."""
        if cell.data in ("blocks", "club"):
            return {}
        if cell.data in ARCHIVES:
            return {cell.data: fingerprint(locate(*ARCHIVES[cell.data]))}
        parts = [f"ind.{cell.data}.{part}" for part in PLANETOID_PARTS]
        return {cell.data: fingerprint([locate("planetoid", part) for part in parts])}

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float]:
        """One cell for one seed; the seed picks the split."""
        kinds = {
            "nodes": self._nodes,
            "links": self._links,
            "memory": self._memory,
            "passes": self._passes,
            "locality": self._locality,
        }
        return kinds[cell.task](cell, run)

    def _nodes(self, cell: Cell, run: peira.Run) -> dict[str, float]:
        graph, validation, test, y = node_problem(cell, run)
        if cell.method == "labels":
            return {"test_accuracy": _accuracy(propagated_labels(graph, test), y)}
        learner = node_learner(cell, cell.settings(), graph, validation)
        epochs = train(learner, run)
        return {
            "test_accuracy": _accuracy(learner.scores(graph, test), y),
            "validation_accuracy": learner.layer_scores[-1],
            "epochs_trained": epochs,
        }

    def _links(self, cell: Cell, run: peira.Run) -> dict[str, float]:
        training, validation, test = link_problem(cell, run)
        learner: LinkLearner = LINK_LEARNERS.get(cell.method, BackpropLinks)(
            cell.settings(), training, validation
        )
        epochs = train(learner, run)
        scores = learner.scores(test.x, test.edges, test.pairs).cpu()
        return {**link_metrics(test.labels.cpu(), scores), "epochs_trained": epochs}

    def _memory(self, cell: Cell, run: peira.Run) -> dict[str, float]:
        graph, _, _, _ = node_problem(cell, run)
        # Plain PyG convolutions for both: no propagation beforehand.
        settings = replace(cell.settings(), cache=False)
        measured: dict[str, float] = {}
        for method, kind in (("sf", NODE_LEARNERS["sf"]), ("bp", BackpropNodes)):
            learner = kind(settings, graph, None)
            with GpuPeak(run.device) as gpu, SavedTensors(ignore=learner.parameters()) as meter:
                while not learner.done:
                    learner.step()
            measured[f"{method}_saved_mib"] = meter.peak / 2**20
            if gpu.peak is not None:
                measured[f"{method}_gpu_mib"] = gpu.peak / 2**20
        measured["saved_ratio"] = measured["sf_saved_mib"] / measured["bp_saved_mib"]
        return measured

    def _passes(self, cell: Cell, run: peira.Run) -> dict[str, float]:
        graph, _, test, _ = node_problem(cell, run)
        learner = node_learner(cell, replace(cell.settings(), negatives=1), graph, None)
        learner.step()
        # The second epoch of a layer: the first also lifts the input to that layer.
        epoch = count_passes(learner, learner.step) * len(learner.layers)
        learner.finish()
        predict = count_passes(learner, lambda: learner.scores(graph, test))
        return {"passes_per_epoch": epoch, "passes_to_predict": predict}

    def _locality(self, cell: Cell, run: peira.Run) -> dict[str, float]:
        if cell.method in LINK_LEARNERS:
            training, _, _ = link_problem(cell, run)
            return {
                "crossings": crossing_gradients(
                    LINK_LEARNERS[cell.method](cell.settings(), training)
                )
            }
        graph, _, _, _ = node_problem(cell, run)
        measured = {
            "crossings": crossing_gradients(node_learner(cell, cell.settings(), graph, None))
        }
        if cell.method == "sf":
            measured["lower_weights_changed"] = self._changed_below(cell, run, graph)
        return measured

    def _changed_below(self, cell: Cell, run: peira.Run, graph: NodeGraph) -> float:
        """Lower-layer weights that end up different when the layers above begin elsewhere."""
        weights = []
        for push in (0.0, 1.0):
            torch.manual_seed(run.seed)
            learner = node_learner(cell, cell.settings(), graph, None)
            with torch.no_grad():
                for parameter in learner.layers[1:].parameters():
                    parameter += push
            while not learner.done:
                learner.step()
            weights.append([w.clone() for w in learner.layers[0].parameters()])
        return sum(float((a != b).sum()) for a, b in zip(*weights, strict=True))

    def claims(self, table: pd.DataFrame) -> Iterator[Verdict]:
        """C1 to C7, on Cora_ML with two-layer GCNs where accuracy is meant."""
        layers = 4 if "layers" in table and _has(table, task="nodes", layers=4) else 2
        shared = {"task": "nodes", "data": "cora_ml", "conv": "gcn", "layers": layers}

        def nodes(method: str, patience: int = 200) -> dict[str, Any]:
            return {**shared, "method": method, "patience": patience}

        margin, floor = (self.claim("C1").parts[k] for k in range(2))
        sf, score = nodes("sf"), "test_accuracy"
        yield all_of(
            self.claim("C1"),
            [larger(table, score, sf, nodes("bp"), margin), above(table, score, sf, floor)],
        )
        yield all_of(
            self.claim("C2"),
            [
                larger(table, score, sf, nodes("ff_la", patience), part)
                for patience, part in zip((200, 1000), self.claim("C2").parts, strict=True)
            ],
        )
        yield exactly(_locality(table), self.claim("C3"))
        above_loss, above_input = (self.claim("C4").parts[k] for k in range(2))
        yield all_of(
            self.claim("C4"),
            [
                larger(table, score, nodes("top2loss"), sf, above_loss),
                larger(table, score, nodes("top2input"), sf, above_input),
            ],
        )
        four, sixteen = (self.claim("C5").parts[k] for k in range(2))
        yield all_of(
            self.claim("C5"),
            [
                below(table, "saved_ratio", {"task": "memory", "layers": 4}, four),
                below(table, "saved_ratio", {"task": "memory", "layers": 16}, sixteen),
            ],
        )
        yield exactly(_passes(table), self.claim("C6"))
        links = {**shared, "task": "links"}
        yield at_least(
            table, "auc", {**links, "method": "fl"}, {**links, "method": "bp"}, self.claim("C7")
        )

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        """Accuracy by learner, memory by depth, and accuracy as neighbours agree or not."""
        from peira.training.forwardgnn.figure import draw

        return draw(table)


def _accuracy(scores: torch.Tensor, y: torch.Tensor) -> float:
    return (scores.argmax(dim=1) == y).float().mean().item()


def _has(table: pd.DataFrame, **fields: Any) -> bool:
    keep = np.logical_and.reduce([(table[name] == value) for name, value in fields.items()])
    return bool(keep.any())


def _locality(table: pd.DataFrame) -> dict[str, tuple[float, float]]:
    rows = table[table["task"] == "locality"]
    pairs = {
        f"gradients across layers, {method}": (float(part["crossings"].sum()), 0.0)
        for method, part in rows.groupby("method")
    }
    if "lower_weights_changed" in rows and (rows["method"] == "sf").any():
        changed = rows["lower_weights_changed"].sum()
        pairs["weights below that a push above changed, sf"] = (float(changed), 0.0)
    return pairs


def _passes(table: pd.DataFrame) -> dict[str, tuple[float, float]]:
    published = {"sf": (1.0, 1.0), "ff_la": (2.0, float(BLOCK_CLASSES))}
    pairs = {}
    for method, part in table[table["task"] == "passes"].groupby("method"):
        epoch, predict = published[method]
        pairs[f"passes per epoch, {method}"] = (float(part["passes_per_epoch"].max()), epoch)
        pairs[f"passes to predict, {method}"] = (float(part["passes_to_predict"].max()), predict)
    return pairs
