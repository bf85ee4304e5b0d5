"""Tasks whose truth is known: labels flipped on record, Gaussian classes with their posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from peira.data.errors import DataError


def flip_labels(
    labels: Int[Tensor, " n"],
    rate: float,
    generator: torch.Generator,
    classes: int | None = None,
    kind: Literal["symmetric", "pair"] = "symmetric",
) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"]]:
    """Labels of which exactly round(rate * n), drawn at random, are wrong.

    Args:
        labels: classes from 0.
        rate: share that is flipped, in [0, 1].
        generator: draws which, and to what.
        classes: how many there are; the largest label and one without it.
        kind: to any other class alike ("symmetric"), or always to the next ("pair").

    Returns:
        The labels and which of them are wrong.
    """
    if not 0 <= rate <= 1:
        raise DataError("not a share of labels", value=rate, expected="a number in [0, 1]")
    classes = classes or int(labels.max()) + 1
    if classes < 2:
        raise DataError("no other class to flip to", value=classes, expected="2 classes or more")
    flipped = torch.zeros(len(labels), dtype=torch.bool)
    flipped[torch.randperm(len(labels), generator=generator)[: round(rate * len(labels))]] = True
    shift = (
        torch.randint(1, classes, labels.shape, generator=generator)
        if kind == "symmetric"
        else torch.ones_like(labels)
    )
    return torch.where(flipped, (labels + shift) % classes, labels), flipped


@dataclass(frozen=True)
class GaussianClasses:
    """Classes of equal prior, each an isotropic Gaussian: the posterior is known in closed form.

    Attributes:
        means: of the classes.
        scale: standard deviation along every axis.
    """

    means: Float[Tensor, "classes features"]
    scale: float = 1.0

    def sample(
        self, n: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "n features"], Int[Tensor, " n"]]:
        """Independent points and their classes."""
        labels = torch.randint(len(self.means), (n,), generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator)
        return self.means[labels] + self.scale * noise, labels

    def posterior(self, x: Float[Tensor, "n features"]) -> Float[Tensor, "n classes"]:
        """p(class | x), Bayes' rule."""
        distance = torch.cdist(x, self.means).square()
        return torch.softmax(-distance / (2 * self.scale**2), 1)
