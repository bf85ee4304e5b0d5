"""Sequences without loops, the lean forward, networks that train at once: against plain ways."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from peira.dynamics.icl_abrupt.method import ICLTask, InContextNet, stack

torch.set_num_threads(1)
LAW = ICLTask()
BATCH = 128
SMALL = ICLTask(K=512, L=16, N=4, B=2, D=19, max_pairs=6)
NETWORKS = 8


def looped_sequences(law: ICLTask, count: int, rng: np.random.Generator) -> Tensor:
    """Shuffles and position codes sequence by sequence, as the published lineage of code does."""
    means, vectors = law.class_means.numpy(), law.label_vectors.numpy()
    classes = rng.integers(law.K, size=(count, law.N // law.B))
    context = np.tile(classes, law.B)
    for row in context:
        rng.shuffle(row)
    target = context[np.arange(count), rng.integers(law.N, size=count)]
    scale = 1 / np.sqrt(1 + law.eps**2)

    def items(chosen: np.ndarray) -> np.ndarray:
        noise = rng.normal(size=(*chosen.shape, law.D)) / np.sqrt(law.D)
        return scale * (means[chosen] + law.eps * noise)

    tokens = np.zeros((count, law.length, law.dim))
    tokens[:, :-1:2, law.places :] = items(context)
    tokens[:, 1:-1:2, law.places :] = vectors[context % law.L]
    tokens[:, -1, law.places :] = items(target)
    shifts = rng.integers(law.places - law.length + 1, size=count)
    for s in range(count):
        tokens[s, :, shifts[s] : shifts[s] + law.length] = np.eye(law.length)
    return torch.from_numpy(tokens).float()


@pytest.mark.benchmark(group="icl-abrupt sequences")
def test_sequences_peira(benchmark: Callable[..., None]) -> None:
    generator = torch.Generator().manual_seed(0)
    benchmark(lambda: LAW.sample(4 * BATCH, generator))


@pytest.mark.benchmark(group="icl-abrupt sequences")
def test_sequences_loops(benchmark: Callable[..., None]) -> None:
    rng = np.random.default_rng(0)
    benchmark(lambda: looped_sequences(LAW, 4 * BATCH, rng))


def plain(net: InContextNet, tokens: Tensor) -> Tensor:
    """Queries, keys and values of all tokens in both layers, by PyTorch's own attention."""
    stream = tokens
    for query, key, value in zip(net.query, net.key, net.value, strict=True):
        stream = stream + F.scaled_dot_product_attention(
            stream @ query, stream @ key, stream @ value, is_causal=True, scale=1.0
        )
    return net.classifier(stream[:, -1])


def step_of(law: ICLTask, batch: int, forward: Callable[[InContextNet, Tensor], Tensor]):
    """One training step on a fixed batch."""
    net = InContextNet(law.dim, law.L, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, fused=True)
    batch = law.sample(batch, torch.Generator().manual_seed(0))

    def step() -> None:
        loss = F.cross_entropy(forward(net, batch.tokens), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


@pytest.mark.benchmark(group="icl-abrupt step, published size")
def test_step_peira(benchmark: Callable[..., None]) -> None:
    benchmark(step_of(LAW, BATCH, lambda net, tokens: net(tokens)))


@pytest.mark.benchmark(group="icl-abrupt step, published size")
def test_step_plain(benchmark: Callable[..., None]) -> None:
    benchmark(step_of(LAW, BATCH, plain))


@pytest.mark.benchmark(group="icl-abrupt step, small size")
def test_small_step_peira(benchmark: Callable[..., None]) -> None:
    benchmark(step_of(SMALL, 64, lambda net, tokens: net(tokens)))


@pytest.mark.benchmark(group="icl-abrupt step, small size")
def test_small_step_plain(benchmark: Callable[..., None]) -> None:
    benchmark(step_of(SMALL, 64, plain))


def eight() -> tuple[list[InContextNet], Tensor, Tensor]:
    """Eight networks and a batch for each."""
    nets, tokens, labels = [], [], []
    for seed in range(NETWORKS):
        generator = torch.Generator().manual_seed(seed)
        nets.append(InContextNet(SMALL.dim, SMALL.L, width=64, generator=generator))
        batch = SMALL.sample(64, generator)
        tokens.append(batch.tokens)
        labels.append(batch.labels)
    return nets, torch.stack(tokens), torch.stack(labels)


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / 64


@pytest.mark.benchmark(group="icl-abrupt eight networks, one step")
def test_together_peira(benchmark: Callable[..., None]) -> None:
    nets, tokens, labels = eight()
    together = stack(nets)
    optimizer = torch.optim.Adam(together.parameters(), fused=True)

    def step() -> None:
        loss = summed_loss(together(tokens), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    benchmark(step)


@pytest.mark.benchmark(group="icl-abrupt eight networks, one step")
def test_together_vmap(benchmark: Callable[..., None]) -> None:
    nets, tokens, labels = eight()
    parameters, buffers = stack_module_state(nets)
    optimizer = torch.optim.Adam(parameters.values(), fused=True)
    forward = vmap(lambda p, b, x: functional_call(nets[0], (p, b), (x,)))

    def step() -> None:
        loss = summed_loss(forward(parameters, buffers, tokens), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    benchmark(step)


@pytest.mark.benchmark(group="icl-abrupt eight networks, one step")
def test_together_one_by_one(benchmark: Callable[..., None]) -> None:
    nets, tokens, labels = eight()
    optimizers = [torch.optim.Adam(net.parameters(), fused=True) for net in nets]

    def step() -> None:
        for net, optimizer, x, y in zip(nets, optimizers, tokens, labels, strict=True):
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    benchmark(step)
