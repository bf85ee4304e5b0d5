"""The data of the study: digits, MNIST or CIFAR with or without flipped labels, and a simulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from peira.data import (
    crop_and_flip,
    digit_pictures,
    mnist_pictures,
    official_paths,
    official_pictures,
)
from peira.data.labels import GaussianClasses, flip_labels
from peira.data.modular import Split

# Samples that fit the temperature of post-hoc scaling and watch the training.
VALIDATION = 200
# The simulator: classes, features, spread of the means, test samples, samples with posterior.
CLASSES, FEATURES, SPREAD, TEST, TRUTH = 5, 8, 0.7, 2000, 20_000


@dataclass(frozen=True)
class Problem:
    """A classification task in three parts that are drawn alike.

    Attributes:
        train: inputs and labels.
        validation: fits temperatures and watches the training.
        test: judges.
        true_labels: of the test inputs, before any was flipped.
        posterior: of inputs, where it is known.
        truth: many more inputs, where the posterior is known.
    """

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    true_labels: Int[Tensor, " n"]
    posterior: Callable[[Tensor], Tensor] | None = None
    truth: Tensor | None = None


def pictures(task: str, train: int, noise: float, seed: int) -> Problem:
    """Pictures (n, channels, height, width) of which a share has a wrong label, in every part.

    Args:
        task: digits, mnist, cifar10 or cifar100.
        train: training samples; `VALIDATION` more validate, the rest of digits and MNIST tests.
        noise: share of labels that are flipped to any other class.
        seed: draws the parts and the flips.

    Returns:
        Pictures of which every channel has mean 0 and deviation 1 over the training samples, as
        published recipes have them.
    """
    generator = torch.Generator().manual_seed(seed)
    if task in ("cifar10", "cifar100"):
        whole = official_pictures(task)
        order = torch.randperm(len(whole.train_labels), generator=generator)[: train + VALIDATION]
        split = Split(whole.train_inputs[order], whole.train_labels[order], *whole[2:])
    else:
        reader = digit_pictures if task == "digits" else mnist_pictures
        split = reader(generator, train + VALIDATION)
    classes = int(split.train_labels.max()) + 1

    def flipped(labels: Tensor) -> Tensor:
        return flip_labels(labels, noise, generator, classes)[0] if noise else labels

    x, y = split.train_inputs, split.train_labels
    spread, mean = torch.std_mean(x[:train], dim=(0, 2, 3), keepdim=True)

    def scaled(images: Tensor) -> Tensor:
        return (images - mean) / spread

    return Problem(
        train=(scaled(x[:train]), flipped(y[:train])),
        validation=(scaled(x[train:]), flipped(y[train:])),
        test=(scaled(split.test_inputs), flipped(split.test_labels)),
        true_labels=split.test_labels,
    )


def simulated(train: int, seed: int) -> Problem:
    """Gaussian classes with unit variance, whose means are drawn from N(0, `SPREAD`^2)."""
    generator = torch.Generator().manual_seed(seed)
    law = GaussianClasses(SPREAD * torch.randn(CLASSES, FEATURES, generator=generator))
    fit, validation, test = (law.sample(n, generator) for n in (train, VALIDATION, TEST))
    truth = law.sample(TRUTH, generator)[0]
    return Problem(fit, validation, test, test[1], law.posterior, truth)


def data_paths(task: str) -> list[Path]:
    """Files that a task reads; none for bundled and simulated data."""
    if task == "mnist":
        from peira.data.images import mnist_paths

        return mnist_paths()
    return official_paths(task) if task in ("cifar10", "cifar100") else []


@dataclass
class PictureBatches:
    """Training batches in a new order every epoch, shifted and flipped if asked; on any device.

    Attributes:
        images: all of them.
        labels: theirs.
        batch: samples of a batch; what is left over in an epoch is not used in it.
        seed: of the order and the changes.
        augment: pad by 4 pixels, crop at random, flip left to right half of the time.
    """

    images: Float[Tensor, "n channels height width"]
    labels: Int[Tensor, " n"]
    batch: int
    seed: int
    augment: bool = False
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.batch = min(self.batch, len(self.images))

    def __len__(self) -> int:
        return len(self.images) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images), generator=self.generator)
        for rows in order[: len(self) * self.batch].split(self.batch):
            images = self.images[rows]
            if self.augment:
                images = crop_and_flip(images, self.generator)
            yield images, self.labels[rows]

    def state_dict(self) -> dict[str, Any]:
        """Where the random numbers are."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.generator.set_state(state["generator"])
