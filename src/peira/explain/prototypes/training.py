"""The training loop that all networks here share: Adam on full batches of shuffled epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
# (steps, what they change) -> 1, 2, ..., steps; `Run.steps` of a study is one.
Steps = Callable[[int, Sequence[Any]], Iterable[int]]


@dataclass(frozen=True)
class Recipe:
    """How long and how fast.

    Attributes:
        epochs: passes over the training set.
        batch_size: inputs of a step; all of them where there are fewer.
        learning_rate: of Adam.
    """

    epochs: int = 1500
    batch_size: int = 250
    learning_rate: float = 0.002

    def steps(self, inputs: int) -> int:
        """Steps on a training set of that size: an epoch has as many as there are full batches."""
        return self.epochs * max(1, inputs // self.batch_size)


class Batches:
    """Full batches from one shuffled pass after another.

    A batch at the end of a pass is filled from the next, as TensorFlow's MNIST reader did it: R1
    depends on the size of the batch, so all have the same.

    Args:
        inputs: size of the training set.
        size: of a batch; all inputs where there are fewer.
        generator: shuffles, on the CPU.
    """

    def __init__(self, inputs: int, size: int, generator: torch.Generator) -> None:
        self.inputs, self.size, self.generator = inputs, min(size, inputs), generator
        self.order = torch.empty(0, dtype=torch.long)

    def draw(self) -> Int[Tensor, " size"]:
        """Rows of the next batch."""
        if len(self.order) < self.size:
            fresh = torch.randperm(self.inputs, generator=self.generator)
            self.order = torch.cat([self.order, fresh])
        batch, self.order = self.order.split([self.size, len(self.order) - self.size])
        return batch

    def state_dict(self) -> dict[str, Tensor]:
        """What is left of the pass, and the generator."""
        return {"order": self.order, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where `state_dict` was taken."""
        self.order = state["order"]
        self.generator.set_state(state["generator"])


def plain(total: int, save: Sequence[Any] = ()) -> Iterable[int]:
    """Steps that nobody watches and nothing keeps."""
    return range(1, total + 1)


def training(
    network: nn.Module,
    loss: Loss,
    inputs: Float[Tensor, "n ..."],
    labels: Int[Tensor, " n"],
    recipe: Recipe,
    generator: torch.Generator,
    augment: nn.Module | None = None,
    steps: Steps = plain,
) -> Iterator[int]:
    """Train step by step; yields the number of each step once it is done.

    Args:
        network: its parameters that want gradients are trained.
        loss: (inputs, labels) of a batch -> scalar.
        inputs, labels: the training set, on the network's device.
        recipe: length, batch, learning rate.
        generator: shuffles; give the same one to `augment`, whose draws then resume with it.
        augment: deforms every batch.
        steps: makes the steps, such as `run.steps` of a study, which saves and resumes.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=recipe.learning_rate, fused=True)
    batches = Batches(len(inputs), recipe.batch_size, generator)
    network.train()
    for step in steps(recipe.steps(len(inputs)), (network, optimizer, batches)):
        rows = batches.draw().to(inputs.device)
        batch = inputs[rows] if augment is None else augment(inputs[rows])
        optimizer.zero_grad()
        loss(batch, labels[rows]).backward()
        optimizer.step()
        yield step
