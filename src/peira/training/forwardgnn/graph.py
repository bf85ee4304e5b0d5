"""The graph a learner sees: nodes with partly known classes, virtual class nodes, splits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import sparse
from sklearn.model_selection import KFold, train_test_split
from torch import Tensor
from torch.nn.functional import one_hot

from peira.training.forwardgnn.convolutions import Edges, Features, below, beside


@dataclass(frozen=True)
class NodeGraph:
    """A graph and what is known about the classes of its nodes.

    Attributes:
        x: node features.
        edges: its arcs.
        classes: number of classes C.
        known: nodes whose class is known and may be used as input.
        known_y: their classes, 0..C-1.
    """

    x: Features
    edges: Edges
    classes: int
    known: Int[Tensor, " known"]
    known_y: Int[Tensor, " known"]

    @property
    def nodes(self) -> int:
        """Number of real nodes."""
        return self.edges.nodes

    @property
    def device(self) -> torch.device:
        """Where its tensors lie."""
        return self.edges.index.device

    def without(self, hidden: Int[Tensor, " hidden"]) -> NodeGraph:
        """The same graph with the classes of these nodes not known."""
        keep = ~torch.isin(self.known, hidden)
        return replace(self, known=self.known[keep], known_y=self.known_y[keep])

    def with_known(self, nodes: Int[Tensor, " more"], y: Int[Tensor, " more"]) -> NodeGraph:
        """The same graph with more classes known."""
        return replace(
            self, known=torch.cat([self.known, nodes]), known_y=torch.cat([self.known_y, y])
        )


def label_columns(graph: NodeGraph) -> Float[Tensor, "nodes classes"]:
    """One-hot class of every node that is known, 1/C in all columns of the others."""
    columns = torch.full((graph.nodes, graph.classes), 1 / graph.classes, device=graph.device)
    columns[graph.known] = one_hot(graph.known_y, graph.classes).float()
    return columns


def augmented_columns(graph: NodeGraph) -> Float[Tensor, "nodes_and_classes classes"]:
    """`label_columns`, and below them an identity row for every virtual node."""
    return torch.cat([label_columns(graph), torch.eye(graph.classes, device=graph.device)])


def virtual_input(
    graph: NodeGraph,
    virtual_features: Float[Tensor, "classes width"],
    append_label: bool = False,
) -> Features:
    """Features of the N real nodes and, below them, of one virtual node per class.

    Args:
        virtual_features: features of the virtual nodes.
        append_label: put the label columns after the features, as a further input.
    """
    x = below(graph.x, virtual_features)
    return beside(x, augmented_columns(graph)) if append_label else x


def virtual_edges(graph: NodeGraph) -> Edges:
    """The arcs, and links both ways between every known node and the virtual node of its class.

    The virtual node of class c is number N + c. Nodes of unknown class get no link.
    """
    virtual = graph.nodes + graph.known_y
    there, back = torch.stack([graph.known, virtual]), torch.stack([virtual, graph.known])
    index = torch.cat([graph.edges.index, there, back], dim=1)
    return Edges(index, graph.nodes + graph.classes)


def wrong_classes(
    y: Int[Tensor, " nodes"], classes: int, sets: int | None = None
) -> list[Int[Tensor, " nodes"]]:
    """Wrong classes for every node, in an order of its own; one tensor per negative set.

    Args:
        y: true classes.
        classes: number of classes C.
        sets: how many negative sets; None (or more than there are) gives all C - 1.
    """
    order = torch.rand(len(y), classes, device=y.device)
    order[torch.arange(len(y), device=y.device), y] = 2.0
    wrong = order.argsort(dim=1)[:, : classes - 1]
    sets = classes - 1 if sets is None else min(sets, classes - 1)
    return [wrong[:, k].contiguous() for k in range(sets)]


def normalize_features(x: Any) -> Any:
    """Divide every row by its sum, as the published protocol does; rows summing to 0 stay.

    Args:
        x: non-negative features, NumPy array or SciPy sparse matrix, nodes x width.
    """
    total = np.asarray(x.sum(axis=1), dtype=np.float64).ravel()
    scale = np.divide(1.0, total, out=np.ones_like(total), where=total != 0)
    if sparse.issparse(x):
        return (sparse.diags(scale) @ x).tocsr().astype(np.float32)
    return (x * scale[:, None]).astype(np.float32)


def graph_arrays(
    graph: Any, label: str = "y", features: str = "x"
) -> tuple[Any, Int[np.ndarray, "2 arcs"], Int[np.ndarray, " nodes"]]:
    """Features, arcs and classes of a PyG `Data`, a networkx graph or an `AttributedGraph`.

    Args:
        graph: networkx nodes are numbered in their order; edges of an undirected graph give both
            directions. Where its nodes carry no features, every node gets a column of its own.
        label: networkx node attribute with the class, any value; absent or None is unknown.
        features: networkx node attribute with the features, a sequence of numbers.

    Returns:
        features, arcs, and classes with -1 where unknown. Classes of networkx nodes that are no
        whole numbers are numbered in sorted order.
    """
    if not hasattr(graph, "adj"):
        parts = (graph.x, graph.edge_index, graph.y)
        return tuple(p.cpu().numpy() if isinstance(p, Tensor) else p for p in parts)
    number = {node: place for place, node in enumerate(graph)}
    arcs = [(number[u], number[v]) for u, v in graph.edges]
    if not graph.is_directed():
        arcs += [(v, u) for u, v in arcs if u != v]
    described = [data.get(features) for _, data in graph.nodes(data=True)]
    x = np.eye(len(number)) if None in described else np.array(described, dtype=float)
    named = [data.get(label) for _, data in graph.nodes(data=True)]
    known = sorted({name for name in named if name is not None})
    whole = all(isinstance(name, int | np.integer) for name in known)
    code = {name: name if whole else place for place, name in enumerate(known)}
    y = np.array([-1 if name is None else code[name] for name in named], dtype=np.int64)
    return x.astype(np.float32), np.array(arcs, dtype=np.int64).reshape(-1, 2).T, y


def node_splits(
    nodes: int, split: int
) -> tuple[Bool[np.ndarray, " nodes"], Bool[np.ndarray, " nodes"], Bool[np.ndarray, " nodes"]]:
    """Masks of training (64%), validation (16%) and test (20%) nodes, published recipe.

    Five folds (shuffled, random state 101) give the test parts; a fifth of the rest, drawn with
    random state 127 * split, is for validation.

    Args:
        nodes: number of nodes.
        split: 0..4.
    """
    folds = list(KFold(n_splits=5, shuffle=True, random_state=101).split(np.arange(nodes)))
    if not 0 <= split < len(folds):
        raise ValueError(f"split must be 0..{len(folds) - 1}, got {split}")
    rest, test = folds[split]
    train, validation = train_test_split(rest, test_size=0.2, random_state=127 * split)
    masks = np.zeros((3, nodes), dtype=bool)
    for mask, part in zip(masks, (train, validation, test), strict=True):
        mask[part] = True
    return masks[0], masks[1], masks[2]


def stochastic_block_graph(
    rng: np.random.Generator,
    nodes: int = 400,
    classes: int = 5,
    p_in: float = 0.05,
    p_out: float = 0.005,
    width: int = 16,
    noise: float = 1.0,
) -> tuple[Float[np.ndarray, "nodes width"], Int[np.ndarray, "2 arcs"], Int[np.ndarray, " nodes"]]:
    """Features, both directions of every edge, and classes of a stochastic block model.

    Every pair of one class is linked with probability `p_in`, other pairs with `p_out`; features
    are N(mu_c, noise^2 I) with random class means of length 1. `p_in` = `p_out` makes the edges
    say nothing about the classes, `p_in` < `p_out` makes neighbours disagree.
    """
    y = rng.permutation(np.arange(nodes) % classes)
    means = rng.normal(size=(classes, width))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    x = means[y] + noise * rng.normal(size=(nodes, width))
    first, second = np.triu_indices(nodes, k=1)
    linked = rng.random(len(first)) < np.where(y[first] == y[second], p_in, p_out)
    first, second = first[linked], second[linked]
    edges = np.stack([np.concatenate([first, second]), np.concatenate([second, first])])
    return x.astype(np.float32), edges, y
