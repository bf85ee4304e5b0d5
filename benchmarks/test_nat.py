"""Training time of NAT against one-vector networks and online walks; its caches alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from peira.graphs.nat.attention import TGAT, MemoryNetwork
from peira.graphs.nat.generate import triadic_stream
from peira.graphs.nat.joint import join
from peira.graphs.nat.model import NATNetwork
from peira.graphs.nat.pooling import DroppedSum
from peira.graphs.nat.protocol import Negatives, Training, batches, replay, transductive
from peira.graphs.nat.pyg import GeometricTGN
from peira.graphs.nat.walks import WalkNetwork

NODES, EVENTS, BATCH = 1000, 12_000, 200
# The published sizes: 32 and 16 slots, F = 4, self 72, joint 172, dropout 0.1.
PUBLISHED = {"slots": (32, 16), "joint_dim": 172, "dropout": 0.1}


@pytest.fixture(scope="module")
def edges():
    torch.set_num_threads(1)
    return triadic_stream(np.random.default_rng(0), nodes=NODES, events=EVENTS)


def train_block(model, edges, count):
    """A function that trains on `count` batches with 10,000 events behind them."""
    training = Training(model, edges, transductive(edges), batch_size=BATCH)
    replay(model, edges, np.arange(10_000), BATCH)
    model.train()
    events = np.arange(10_000, 10_000 + count * BATCH)
    negatives = Negatives(edges, events)
    rng = np.random.default_rng(0)
    state = dict(model.state_dict())
    steps = [(b, negatives.draw(rng, b.edge.numpy(), 1)) for b in batches(edges, events, BATCH)]

    def restore():
        model.load_state_dict(state)

    def block():
        for batch, wrong in steps:
            training.step(batch, wrong)

    return block, restore


def timed(benchmark, model, edges, count=5, rounds=3):
    block, restore = train_block(model, edges, count)
    benchmark.pedantic(block, setup=restore, rounds=rounds, warmup_rounds=1)
    benchmark.extra_info["events_per_round"] = count * BATCH


@pytest.mark.benchmark(group="nat: train on 1000 events, published sizes")
def test_train_peira(benchmark, edges):
    timed(benchmark, NATNetwork(edges.num_nodes, **PUBLISHED), edges)


@pytest.mark.benchmark(group="nat: train on 1000 events, published sizes")
def test_train_peira_without_dropout(benchmark, edges):
    timed(benchmark, NATNetwork(edges.num_nodes, **{**PUBLISHED, "dropout": 0.0}), edges)


@pytest.mark.benchmark(group="nat: train on 1000 events, published sizes")
def test_train_pyg_tgn(benchmark, edges):
    pytest.importorskip("torch_geometric")
    timed(benchmark, GeometricTGN(edges), edges)


@pytest.mark.benchmark(group="nat: train on 1000 events, published sizes")
def test_train_tgn(benchmark, edges):
    timed(benchmark, MemoryNetwork(edges, "tgn"), edges)


@pytest.mark.benchmark(group="nat: train on 1000 events, published sizes")
def test_train_jodie(benchmark, edges):
    timed(benchmark, MemoryNetwork(edges, "jodie"), edges)


@pytest.mark.benchmark(group="nat: train on 1000 events, published sizes")
def test_train_dyrep(benchmark, edges):
    timed(benchmark, MemoryNetwork(edges, "dyrep"), edges)


@pytest.mark.benchmark(group="nat: train on 1000 events, published sizes")
def test_train_tgat(benchmark, edges):
    timed(benchmark, TGAT(edges), edges, rounds=1)


@pytest.mark.benchmark(group="nat: train on 1000 events, published sizes")
def test_train_cawn(benchmark, edges):
    timed(benchmark, WalkNetwork(edges), edges, rounds=1)


def write_block(benchmark, edges, backend):
    net = NATNetwork(edges.num_nodes, backend=backend)
    replay(net, edges, np.arange(10_000), BATCH)
    (batch,) = batches(edges, np.arange(10_000, 11_000), 1000)
    with torch.no_grad():
        read = net.read(torch.cat([batch.src, batch.dst]).unique())
    benchmark(net.write, *batch, read)


@pytest.mark.benchmark(group="nat: write 1000 events into the caches")
def test_write_peira(benchmark, edges):
    write_block(benchmark, edges, "numba")


@pytest.mark.benchmark(group="nat: write 1000 events into the caches")
def test_write_torch(benchmark, edges):
    write_block(benchmark, edges, "torch")


def join_block(benchmark, edges, backend):
    net = NATNetwork(edges.num_nodes)
    replay(net, edges, np.arange(10_000), BATCH)
    with torch.no_grad():
        entries = net.entries(net.read(torch.arange(1, edges.num_nodes + 1)))
    pairs = torch.from_numpy(np.random.default_rng(0).integers(0, edges.num_nodes, (2, 1000)))
    benchmark(join, entries, *pairs, backend)


@pytest.mark.benchmark(group="nat: join 1000 pairs")
def test_join_peira(benchmark, edges):
    join_block(benchmark, edges, "numba")


@pytest.mark.benchmark(group="nat: join 1000 pairs")
def test_join_torch(benchmark, edges):
    join_block(benchmark, edges, "torch")


def pool_block(benchmark, pool):
    """Forward and backward of the pooling of 17,000 members, as 200 events have them."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pair = torch.arange(17_000) * 400 // 17_000
    x = torch.randn(17_000, 20, requires_grad=True)
    weight = torch.randn(344, 20, requires_grad=True)

    def block():
        torch.autograd.grad(pool(x, weight, pair).sum(), (x, weight))

    benchmark.pedantic(block, rounds=8, warmup_rounds=1)


@pytest.mark.benchmark(group="nat: pool 17,000 members with dropout")
def test_pool_peira(benchmark):
    pool_block(benchmark, lambda x, weight, pair: DroppedSum.apply(x, weight, pair, 400, 0.1, 1))


@pytest.mark.benchmark(group="nat: pool 17,000 members with dropout")
def test_pool_torch(benchmark):
    drop = torch.nn.functional.dropout

    def pool(x, weight, pair):
        h = drop(drop(x, 0.1) @ weight.T, 0.1)
        return h.new_zeros(400, len(weight)).index_add(0, pair, h)

    pool_block(benchmark, pool)
