"""Rounds of a network on subsets, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from peira.nn import accuracy, cross_entropies, predict
from peira.training.ccl.curriculum import CyclicalCurriculum

Loss = Callable[[Tensor, Tensor], Tensor]


class Decay(Protocol):
    """What is told the samples of every batch, such as `CosinePerSample`."""

    def step(self, samples: int) -> None:
        """Count them."""


def train_round(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Float[Tensor, "n ..."],
    labels: Int[Tensor, " n"],
    subset: Int[np.ndarray, " subset"],
    batch: int = 128,
    loss: Loss = F.cross_entropy,
    decay: Decay | None = None,
) -> float:
    """One pass over a subset in its order, in batches of which the last has what is left.

    Returns the mean loss of the samples while training.
    """
    network.train()
    chosen = torch.from_numpy(subset).to(labels.device)
    total = torch.zeros((), device=labels.device)
    for x, y in zip(inputs[chosen].split(batch), labels[chosen].split(batch), strict=True):
        value = loss(network(x), y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if decay is not None:
            decay.step(len(y))
        total += value.detach() * len(y)
    return float(total) / len(subset)


def training_losses(
    network: nn.Module, inputs: Float[Tensor, "n ..."], labels: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Cross entropy of each sample, in order, on the CPU."""
    return cross_entropies(predict(network, inputs, 256), labels).cpu()


# What pictures of a person's own are trained with; the first two are the controls.
COMPARED: dict[str, dict[str, Any]] = {
    "plain": {"schedule": "full", "transform": "random"},
    "random cycle": {"transform": "random"},
    "cyclical curriculum": {},
}


@dataclass
class Compared:
    """One network trained three ways on the same data.

    Attributes:
        accuracies: method -> (rounds, 2): accuracy on validation and test samples.
        samples: method -> samples trained on.
        early_losses: of the training samples, after a quarter of the plain training.
        network: the one of the curriculum.
    """

    accuracies: dict[str, Float[np.ndarray, "rounds 2"]]
    samples: dict[str, int]
    early_losses: Float[np.ndarray, " n"]
    network: nn.Module

    def chosen_round(self, method: str) -> int:
        """The round, from 0, that is best on validation samples."""
        return int(self.accuracies[method][:, 0].argmax())


def compare_networks(
    make: Callable[[], nn.Module],
    train: tuple[Float[Tensor, "n ..."], Int[Tensor, " n"]],
    validation: tuple[Float[Tensor, "v ..."], Int[Tensor, " v"]],
    test: tuple[Float[Tensor, "t ..."], Int[Tensor, " t"]],
    batch: int = 128,
    rounds: Callable[[str, Iterable[np.ndarray], int], Iterable[np.ndarray]] = lambda _, r, n: r,
    **settings: Any,
) -> Compared:
    """Plain training, a random cycle and the curriculum at the same number of samples.

    Args:
        make: gives the network at its initial weights, the same every time.
        train, validation, test: inputs and classes.
        batch: samples in a step.
        rounds: wraps each training's rounds (its name, the rounds, how many), to show progress.
        settings: of `CyclicalCurriculum`.
    """
    inputs, labels = train
    losses = early = np.ones(len(labels))
    accuracies, samples = {}, {}
    for method, changes in COMPARED.items():
        curriculum = CyclicalCurriculum(losses, **(settings | changes))
        network = make()
        optimizer = torch.optim.Adam(network.parameters())
        rows = []
        for number, subset in enumerate(rounds(method, curriculum, len(curriculum))):
            train_round(network, optimizer, inputs, labels, subset, batch)
            rows.append([accuracy(network, *part) for part in (validation, test)])
            if method == "plain" and number == len(curriculum) // 4:
                early = training_losses(network, inputs, labels).double().numpy()
        if method == "plain":
            losses = training_losses(network, inputs, labels).double().numpy()
        accuracies[method], samples[method] = np.array(rows), curriculum.samples_seen
    return Compared(accuracies, samples, early, network)
