"""One way to train every network that is compared: Adam on the cross entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peira.data.modular import Split
from peira.data.picture_sets import crop_and_flip

# (number of steps, what they change) -> 1, 2, ...; may keep and restore what it is handed.
Steps = Callable[[int, Sequence[Any]], Iterable[int]]


def plain_steps(total: int, save: Sequence[Any]) -> Iterable[int]:
    """1 to `total`."""
    return range(1, total + 1)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the training set, each in a new order.
        batch: inputs per step; of an epoch's last batch what is left, if more than one.
        learning_rate: of Adam; falls to 0 along half a cosine after `hold`.
        hold: share of the steps at the full learning rate, in which gates can still move.
        weight_decay: L2, of Adam.
        augment: flip and shift pictures (4 pixels, reflected edges) at random.
    """

    epochs: int = 12
    batch: int = 64
    learning_rate: float = 2e-3
    hold: float = 0.6
    weight_decay: float = 0.0
    augment: bool = False

    def steps(self, inputs: int) -> int:
        """Steps in all for that many training inputs."""
        return self.epochs * self.per_epoch(inputs)

    def per_epoch(self, inputs: int) -> int:
        """Steps of an epoch."""
        return max(1, math.ceil((inputs - 1) / self.batch))

    def rate(self, progress: float) -> float:
        """Learning rate after that share of the steps."""
        falling = max(0.0, (progress - self.hold) / (1 - self.hold)) if self.hold < 1 else 0.0
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * falling))

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """A fresh Adam over the network's parameters."""
        return torch.optim.Adam(
            network.parameters(), self.learning_rate, weight_decay=self.weight_decay, fused=True
        )


def train(
    network: nn.Module,
    data: Split,
    recipe: Recipe,
    generator: torch.Generator,
    steps: Steps = plain_steps,
    penalty: Callable[[], Tensor] | None = None,
    after: Callable[[int, float], None] | None = None,
) -> None:
    """Train a network in place.

    Args:
        network: takes `data`'s inputs, gives logits.
        data: inputs and labels.
        recipe: how.
        generator: draws the order of the inputs, on the CPU.
        steps: runs the loop, see `Steps`.
        penalty: added to the cross entropy after each forward pass.
        after: called with step and loss after each step.
    """
    inputs, labels = data.train_inputs, data.train_labels
    total, per_epoch = recipe.steps(len(inputs)), recipe.per_epoch(len(inputs))
    optimizer = recipe.optimizer(network)
    state: dict[str, Any] = {}
    save = [network, optimizer, state]
    network.train()
    for step in steps(total, save):
        place = (step - 1) % per_epoch
        if place == 0:
            state["order"] = torch.randperm(len(inputs), generator=generator)
        chosen = state["order"][place * recipe.batch : (place + 1) * recipe.batch]
        set_rate(optimizer, recipe.rate((step - 1) / total))
        images = inputs[chosen.to(inputs.device)]
        if recipe.augment:
            images = crop_and_flip(images, generator, reflect=True)
        loss = train_step(network, images, labels[chosen.to(labels.device)], optimizer, penalty)
        if after is not None:
            after(step, loss)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameters this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def train_step(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    penalty: Callable[[], Tensor] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> float:
    """One step on one batch; its loss with the penalty."""
    value = loss(network(images), labels)
    if penalty is not None:
        value = value + penalty()
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    return float(value.detach())
