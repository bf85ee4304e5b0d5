"""The study's pictures, their augmentation, and the linear probe of a network's blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from peira.data import (
    crop_and_flip,
    digit_pictures,
    mnist_pictures,
    official_paths,
    official_pictures,
)
from peira.data.images import mnist_paths
from peira.data.modular import Split
from peira.nn.evaluation import evaluating

DataName = Literal["digits", "mnist", "cifar10", "svhn", "stl10"]

RIDGE = 0.01


class Preparation(NamedTuple):
    """How the released code prepares the pictures of a data set.

    Attributes:
        mean, std: taken off each channel.
        padding: pixels around a picture before a random crop of its size.
        reflect: whether they mirror the picture; else they are black.
        flip: whether half of the pictures are mirrored.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int = 0
    reflect: bool = False
    flip: bool = False


HALF = (0.5, 0.5, 0.5)
PREPARED = {
    "cifar10": Preparation(
        (125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255), 4, True, True
    ),
    "svhn": Preparation(HALF, HALF, 2),
    "stl10": Preparation(HALF, HALF, 4, flip=True),
}
# Digits and MNIST train as they are.
PLAIN = Preparation((0.0,), (1.0,))


def load(data: DataName, train: int, generator: torch.Generator) -> Split:
    """Pictures in [0, 1] and labels; `train` of those that have no split of their own train."""
    if data == "digits":
        return digit_pictures(generator, train)
    if data == "mnist":
        return mnist_pictures(generator, train)
    return official_pictures(data)


def paths(data: DataName) -> list[Path]:
    """The files that `load` reads."""
    if data == "digits":
        return []
    if data == "mnist":
        return mnist_paths()
    return official_paths(data)


def normalised(
    images: Float[Tensor, "batch channels height width"], how: Preparation
) -> Float[Tensor, "batch channels height width"]:
    """Mean off and divided by the standard deviation, each channel."""
    mean, std = (images.new_tensor(part).view(-1, 1, 1) for part in (how.mean, how.std))
    return (images - mean) / std


def augmented(
    images: Float[Tensor, "batch channels height width"],
    how: Preparation,
    generator: torch.Generator,
) -> Float[Tensor, "batch channels height width"]:
    """Each picture shifted by up to `padding` pixels and perhaps mirrored, all at random."""
    return crop_and_flip(images, generator, how.padding, reflect=how.reflect, flip=how.flip)


@torch.no_grad()
def probe_accuracies(network: nn.Sequential, data: Split) -> list[float]:
    """Test accuracy of a linear classifier on the whole output of each unit but stem and head.

    Ridge regression onto centred one-hot labels, in its dual form, with a ridge of 0.01 of the mean
    squared norm of the centred features.

    Args:
        network: stem, units, head; trained.
        data: inputs as the network takes them.
    """
    found = []
    with evaluating(network):
        train, test = network[0](data.train_inputs), network[0](data.test_inputs)
        for unit in network[1:-1]:
            train, test = unit(train), unit(test)
            found.append(
                _ridge_accuracy(train.flatten(1), data.train_labels, test.flatten(1),
                                data.test_labels)
            )  # fmt: skip
    return found


def _ridge_accuracy(
    train: Float[Tensor, "n features"],
    labels: Int[Tensor, " n"],
    test: Float[Tensor, "m features"],
    answers: Int[Tensor, " m"],
) -> float:
    centre = train.mean(0)
    train, test = (train - centre).double(), (test - centre).double()
    targets = F.one_hot(labels).double()
    mean = targets.mean(0)
    gram = train @ train.T
    gram.diagonal().add_(RIDGE * float(gram.diagonal().mean()) + 1e-12)
    scores = test @ (train.T @ torch.linalg.solve(gram, targets - mean)) + mean
    return float((scores.argmax(1) == answers).double().mean())
