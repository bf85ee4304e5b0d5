"""Commands for a person's own graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch_geometric.data import Data

from peira.data import DataError, read_table
from peira.data.planetoid import read_gnn_npz
from peira.data.tables import write_table
from peira.training.forwardgnn.graph import graph_arrays
from peira.training.forwardgnn.learners import Training
from peira.training.forwardgnn.method import ForwardGNN, ForwardLinkPredictor

__all__ = ["classify", "links", "predict"]

NODES = (
    "nodes: a CSV or TSV with a column `node` (any name), a column `label` (empty where unknown) "
    "and columns of features; or a graph2gauss / gnn-benchmark .npz, which holds the edges too"
)
Nodes = Annotated[Path, typer.Argument(help=NODES)]
Edges = Annotated[
    Path | None,
    typer.Argument(help="edges: a CSV or TSV with columns `source` and `target` (node names)"),
]
Conv = Annotated[Literal["gcn", "sage", "gat"], typer.Option(help="kind of graph convolution")]
Layers = Annotated[int, typer.Option(min=1, help="number of layers")]
Hidden = Annotated[int, typer.Option(min=1, help="width of every layer")]
Epochs = Annotated[int, typer.Option(min=1, help="most epochs per layer")]
Seed = Annotated[int, typer.Option(help="seed of weights and of the validation nodes")]
Output = Annotated[Path, typer.Option(help="file to write")]


def classify(
    nodes: Nodes,
    edges: Edges = None,
    out: Output = Path("classes.csv"),
    model: Annotated[Path | None, typer.Option(help="keep the model, .safetensors")] = None,
    learner: Annotated[
        Literal["sf", "ff_la", "ff_vn", "top2input", "top2loss"], typer.Option(help="how to learn")
    ] = "sf",
    conv: Conv = "gcn",
    layers: Layers = 2,
    hidden: Hidden = 128,
    epochs: Epochs = 1000,
    validation: Annotated[
        float, typer.Option(min=0, max=0.9, help="share of labelled nodes for early stopping")
    ] = 0.2,
    seed: Seed = 0,
) -> None:
    """Learn classes from the labelled nodes and write a class for every node."""
    x, arcs, y, names, classes = _read(nodes, edges)
    train, check = _held_out(y, validation, seed)
    network = ForwardGNN(
        conv=conv, layers=layers, hidden=hidden, learner=learner, epochs=epochs,
        symmetrize=True, random_state=seed,
    )  # fmt: skip
    _drive(network.begin(x, arcs, y, train, check if check.any() else None))
    network.end()
    probabilities = network.predict_proba(x, arcs)
    _write(out, names, classes[network.classes_], probabilities)
    if model is not None:
        network.save(model, list(classes[network.classes_]))
    table = Table("layer", "validation accuracy", title=f"{out}: {len(names)} nodes")
    for layer, accuracy in enumerate(network.layer_accuracy_, start=1):
        table.add_row(str(layer), "none kept" if np.isnan(accuracy) else f"{accuracy:.3f}")
    Console().print(table)


def predict(
    model: Annotated[Path, typer.Argument(help="file written by `classify --model`")],
    nodes: Nodes,
    edges: Edges = None,
    out: Output = Path("classes.csv"),
) -> None:
    """Write a class for every node of a graph, by a model that was kept."""
    network = ForwardGNN.load(model)
    x, arcs, _, names, _ = _read(nodes, edges)
    if x.shape[1] != network.n_features_in_:
        raise DataError(
            "the nodes have other features than the model's", path=nodes,
            value=f"{x.shape[1]} columns", expected=f"{network.n_features_in_}",
        )  # fmt: skip
    _write(out, names, np.array(network.class_names_), network.predict_proba(x, arcs))
    Console().print(f"{out}: {len(names)} nodes")


def links(
    nodes: Nodes,
    pairs: Annotated[Path, typer.Argument(help="pairs to score: columns `source`, `target`")],
    edges: Edges = None,
    out: Output = Path("links.csv"),
    learner: Annotated[Literal["fl", "ff", "topdown"], typer.Option(help="how to learn")] = "fl",
    conv: Conv = "gcn",
    layers: Layers = 2,
    hidden: Hidden = 128,
    epochs: Epochs = 1000,
    seed: Seed = 0,
) -> None:
    """Learn from the edges of a graph and write how likely each of the pairs is a link."""
    x, arcs, _, names, _ = _read(nodes, edges)
    asked = _node_pairs(pairs, names)
    predictor = ForwardLinkPredictor(
        conv=conv, layers=layers, hidden=hidden, learner=learner, epochs=epochs,
        symmetrize=True, random_state=seed,
    )  # fmt: skip
    dense = torch.from_numpy(np.asarray(x.todense() if hasattr(x, "todense") else x)).float()
    _drive(predictor.begin(Data(x=dense, edge_index=torch.from_numpy(arcs))))
    predictor.end()
    scored = pd.DataFrame(
        {
            "source": names[asked[0]],
            "target": names[asked[1]],
            "likelihood": predictor.score_edges(asked),
        }
    )
    write_table(out, scored)
    Console().print(f"{out}: {len(scored)} pairs, validation AUC {predictor.layer_auc_[-1]:.3f}")


def _read(nodes: Path, edges: Path | None) -> tuple[Any, np.ndarray, np.ndarray, Any, Any]:
    """Features, arcs, classes as numbers, node names, class names."""
    if nodes.suffix == ".npz":
        graph = read_gnn_npz(nodes)
        x, arcs, y = graph_arrays(graph)
        named = graph.classes or np.arange(y.max() + 1).astype(str)
        return x, arcs, y, np.arange(len(y)).astype(str), np.array(named)
    if edges is None:
        raise DataError("a table of nodes needs a table of edges beside it", path=nodes)
    table = read_table(nodes, columns={"node": "str"})
    names = table["node"].to_numpy()
    repeated = table["node"][table["node"].duplicated()]
    if len(repeated):
        raise DataError(
            "a node is there twice", path=nodes, row=int(repeated.index[0]) + 2, column="node",
            value=repeated.iloc[0],
        )  # fmt: skip
    labels = table["label"].astype(str).str.strip() if "label" in table else None
    y, classes = _coded(labels, len(table))
    return _features(table, nodes), _node_pairs(edges, names), y, names, classes


def _coded(labels: pd.Series[str] | None, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    if labels is None:
        return np.full(nodes, -1), np.empty(0, dtype=str)
    known = ~labels.isin(["", "nan"])
    classes, codes = np.unique(labels[known], return_inverse=True)
    y = np.full(nodes, -1)
    y[known] = codes
    return y, classes


def _features(table: pd.DataFrame, path: Path) -> np.ndarray:
    columns = [name for name in table if name not in ("node", "label")]
    if not columns:
        # Without features every node is told apart by a column of its own.
        return np.eye(len(table), dtype=np.float32)
    for name in columns:
        values = pd.to_numeric(table[name], errors="coerce")
        if values.isna().any():
            row = int(np.flatnonzero(values.isna())[0])
            raise DataError(
                "a feature is not a number", path=path, row=row + 2, column=str(name),
                value=str(table[name].iloc[row]), expected="a number in every row",
            )  # fmt: skip
    return table[columns].to_numpy(dtype=np.float32)


def _node_pairs(path: Path, names: Any) -> np.ndarray:
    table = read_table(path, columns={"source": "str", "target": "str"})
    number = {str(name): place for place, name in enumerate(names)}
    places = []
    for column in ("source", "target"):
        place = table[column].map(number)
        if place.isna().any():
            row = int(np.flatnonzero(place.isna())[0])
            raise DataError(
                "no such node", path=path, row=row + 2, column=column,
                value=table[column].iloc[row], expected="a name from the table of nodes",
            )  # fmt: skip
        places.append(place.to_numpy(dtype=np.int64))
    return np.stack(places)


def _held_out(y: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation masks; every class keeps at least one training node."""
    rng = np.random.default_rng(seed)
    check = np.zeros(len(y), dtype=bool)
    for c in np.unique(y[y >= 0]):
        members = rng.permutation(np.flatnonzero(y == c))
        check[members[: int(share * len(members))]] = True
    return (y >= 0) & ~check, check


def _drive(learner: Training) -> None:
    with Progress(transient=True) as bar:
        task = bar.add_task("training", total=learner.max_steps)
        while not learner.done:
            learner.step()
            bar.advance(task)


def _write(path: Path, names: Any, classes: Any, probabilities: np.ndarray) -> None:
    best = probabilities.argmax(axis=1)
    predicted = pd.DataFrame(
        {"node": names, "class": classes[best], "probability": probabilities.max(axis=1)}
    )
    write_table(path, predicted)
