"""One network, four papers at once, in a training loop of your own.

Cyclical curriculum (which samples), balanced distillation (which loss), polarised gates (which
blocks stay) and local blocks (which gradients) meet here on scikit-learn's digits; each can be left
out. What comes out is a plain network with a plain `state_dict`.

    python examples/one_network.py
    python examples/one_network.py curriculum gates
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from peira.data import digit_pictures
from peira.nn import accuracy, apply_masks, cifar_resnet, cost, magnitude_mask, sample_losses, slim
from peira.training import CyclicalCurriculum, LocalTrainer
from peira.weights import BalancedDistillation, ConsensusPruner, MutualLoss

TECHNIQUES = ("curriculum", "distillation", "gates", "local blocks", "masks")
IMAGE = (1, 8, 8)


class Result(NamedTuple):
    """A trained plain network and what was removed from the architecture it began with."""

    network: nn.Module
    kept: dict[str, Tensor | None]
    accuracy: float


def architecture() -> nn.Sequential:
    """The network that is to be trained: nothing of any technique in it."""
    return cifar_resnet(blocks=(2, 2), widths=(8, 16), channels=1)


def train(
    techniques: Collection[str], epochs: int = 12, samples: int = 1200, seed: int = 0
) -> Result:
    """Train the architecture on the digits with any of `TECHNIQUES`."""
    torch.manual_seed(seed)
    split = digit_pictures(torch.Generator().manual_seed(seed), train=samples)
    data = TensorDataset(split.train_inputs, split.train_labels)
    network, teacher = architecture(), cifar_resnet(blocks=(2, 2), widths=(16, 32), channels=1)
    if "masks" in techniques:
        apply_masks(network, magnitude_mask(dict(network.named_parameters()), keep=0.7))

    pruner = ConsensusPruner(network, sparsity=0.5) if "gates" in techniques else None
    model = pruner.model if pruner else network
    local = LocalTrainer(model, partition=2, image=IMAGE) if "local blocks" in techniques else None
    balanced, mutual = BalancedDistillation(), MutualLoss()
    trained = local or model
    optimizer = torch.optim.Adam(trained.parameters(), 3e-3)
    teacher_optimizer = torch.optim.Adam(teacher.parameters(), 3e-3)

    trained.train()
    for x, y in batches(data, epochs, "curriculum" in techniques):
        optimizer.zero_grad()
        if "distillation" in techniques:
            teacher_logits = teacher(x)
            loss = on_logits(balanced, teacher_logits.detach(), y)
        else:
            loss = on_logits(F.cross_entropy, y)
        if local:
            logits = local.backward(x, loss, extra=pruner.penalty if pruner else None)
        else:
            logits = model(x)
            (loss(logits) + (pruner.penalty() if pruner else 0)).backward()
        optimizer.step()
        if "distillation" in techniques:
            teacher_optimizer.zero_grad()
            mutual(teacher_logits, logits.detach(), y).backward()
            teacher_optimizer.step()

    kept = {}
    if pruner:
        kept = dict(pruner.observe(DataLoader(data, batch_size=256)).kept)
        network = pruner.extract()
    # Also makes masks plain zeros; without gates nothing is removed.
    network = slim(network, {})
    return Result(network, kept, accuracy(network, split.test_inputs, split.test_labels))


def on_logits(loss: Callable[..., Tensor], *rest: Tensor) -> Callable[[Tensor], Tensor]:
    """The loss as a function of logits alone, for every local head and the network's own."""
    return lambda logits: loss(logits, *rest)


def batches(data: TensorDataset, epochs: int, curriculum: bool):
    """Batches worth `epochs` passes over the data, shuffled or in cyclically growing subsets."""
    if not curriculum:
        for _ in range(epochs):
            yield from DataLoader(data, batch_size=64, shuffle=True)
        return
    scorer = architecture()
    optimizer = torch.optim.Adam(scorer.parameters(), 3e-3)
    for x, y in DataLoader(data, batch_size=64, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(scorer(x), y).backward()
        optimizer.step()
    losses = sample_losses(scorer, DataLoader(data, batch_size=256))
    rounds = CyclicalCurriculum(losses.numpy(), budget_epochs=epochs)
    loader = DataLoader(data, batch_size=64, sampler=rounds.sampler(data))
    while not rounds.done:
        yield from loader


def main(techniques: Collection[str]) -> None:
    """Train with the named techniques (all four without names) and say what came out."""
    unknown = set(techniques) - set(TECHNIQUES)
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; there are: {', '.join(TECHNIQUES)}")
    result = train(techniques or TECHNIQUES[:4])
    batch = torch.zeros(64, *IMAGE)
    before, after = cost(architecture(), batch), cost(result.network, batch)
    print(f"test accuracy {result.accuracy:.3f}")
    print(f"operations {after.flops / before.flops:.0%}, bytes {after.bytes / before.bytes:.0%}, "
          f"time {after.seconds / before.seconds:.0%} of the architecture's")  # fmt: skip
    print(f"state_dict: {len(result.network.state_dict())} plain tensors")


if __name__ == "__main__":
    main(sys.argv[1:])
