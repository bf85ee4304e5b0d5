"""Training time on a citation-like graph: propagation once per layer, against plain PyG.

2,708 nodes, 1,433 sparse binary features, 7 classes and 5,300 edges, as many as Cora has; two GCN
layers of 128. Every run trains 10 epochs (per layer for the forward learners).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch_geometric.nn import GCN, GCNConv

from peira.training.forwardgnn.baselines import BackpropNodes
from peira.training.forwardgnn.convolutions import Edges, SparseMatrix
from peira.training.forwardgnn.graph import NodeGraph, node_splits, virtual_edges
from peira.training.forwardgnn.learners import Settings, SingleForward

NODES, FEATURES, CLASSES, WORDS, LINKS, EPOCHS = 2708, 1433, 7, 18, 5300, 10


@pytest.fixture(scope="module")
def graph() -> NodeGraph:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    y = rng.integers(CLASSES, size=NODES)
    x = np.zeros((NODES, FEATURES), dtype=np.float32)
    words = (rng.integers(FEATURES // CLASSES, size=(NODES, WORDS)) * CLASSES + y[:, None]) % (
        FEATURES
    )
    x[np.arange(NODES)[:, None], words] = 1
    x /= x.sum(axis=1, keepdims=True)
    pairs = rng.integers(NODES, size=(2, LINKS))
    index = torch.from_numpy(np.hstack([pairs, pairs[::-1]]))
    train = torch.from_numpy(np.flatnonzero(node_splits(NODES, 0)[0]))
    known_y = torch.from_numpy(y)[train]
    return NodeGraph(SparseMatrix(x), Edges(index, NODES), CLASSES, train, known_y)


def train(learner: torch.nn.Module) -> None:
    while not learner.done:
        learner.step()


def plain_single_forward(graph: NodeGraph) -> None:
    """Single forward learning written out with PyG: every epoch convolves the whole graph."""
    index = virtual_edges(graph).index
    h = torch.cat([graph.x.dense(), torch.randn(CLASSES, FEATURES)])
    for width in (FEATURES, 128):
        conv = GCNConv(width, 128)
        optimizer = torch.optim.Adam(conv.parameters(), lr=1e-3, weight_decay=5e-4)
        h = h / (h.norm(dim=1, keepdim=True) + 1e-8)
        for _ in range(EPOCHS):
            z = conv(h, index).relu()
            logits = z[graph.known] @ z[NODES:].t()
            optimizer.zero_grad()
            F.cross_entropy(logits, graph.known_y).backward()
            optimizer.step()
        with torch.no_grad():
            h = conv(h, index).relu()


def plain_backpropagation(graph: NodeGraph) -> None:
    """PyG's GCN trained as its examples train it."""
    network = GCN(FEATURES, 128, 2, CLASSES)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=5e-4)
    x = graph.x.dense()
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        out = network(x, graph.edges.index)
        F.cross_entropy(out[graph.known], graph.known_y).backward()
        optimizer.step()


@pytest.mark.benchmark(group="single forward, 10 epochs per layer")
def test_single_forward_peira(benchmark, graph):
    settings = Settings(epochs=EPOCHS, val_every=EPOCHS)
    benchmark(lambda: train(SingleForward(settings, graph)))


@pytest.mark.benchmark(group="single forward, 10 epochs per layer")
def test_single_forward_pyg(benchmark, graph):
    benchmark(plain_single_forward, graph)


@pytest.mark.benchmark(group="backpropagation, 10 epochs")
def test_backpropagation_peira(benchmark, graph):
    settings = Settings(epochs=EPOCHS, val_every=EPOCHS)
    benchmark(lambda: train(BackpropNodes(settings, graph)))


@pytest.mark.benchmark(group="backpropagation, 10 epochs")
def test_backpropagation_pyg(benchmark, graph):
    benchmark(plain_backpropagation, graph)
