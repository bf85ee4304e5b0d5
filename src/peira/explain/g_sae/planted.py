"""Activations whose true features are known: big ones without effect, small ones with all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from peira.data.errors import DataError


class PlantedNetwork(nn.Module):
    """A place to look at, and a linear softmax head: logits = head(site(x))."""

    def __init__(self, head: Float[Tensor, "classes d"]) -> None:
        super().__init__()
        self.site = nn.Identity()
        self.head = nn.Linear(head.shape[1], len(head), bias=False)
        with torch.no_grad():
            self.head.weight.copy_(head)

    def forward(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch classes"]:
        logits: Tensor = self.head(self.site(x))
        return logits


@dataclass(frozen=True)
class Planted:
    """A law of activations x = sum of `active` big and `active` small directions.

    Of the unit directions the first half is big: amplitude 1, orthogonal to all rows of the head,
    so that they have no effect at all on the outputs. The others have amplitude `small` and the
    whole effect. Labels are drawn from the head's softmax. More directions than dimensions, and
    the small ones overlap with the big ones: superposition.

    Attributes:
        directions: (features, d), rows of length 1.
        head: (classes, d); its logits have standard deviation `sharpness` over draws of x.
        active: features of each kind that a row has.
        small: amplitude of a small feature.
    """

    directions: Float[Tensor, "features d"]
    head: Float[Tensor, "classes d"]
    active: int = 4
    small: float = 0.35

    @classmethod
    def draw(
        cls,
        generator: torch.Generator,
        d: int = 32,
        features: int = 64,
        classes: int = 8,
        active: int = 4,
        small: float = 0.35,
        sharpness: float = 9.0,
    ) -> Planted:
        """Random directions and head.

        Raises `DataError` for more classes than dimensions, an odd number of features or more
        active ones than there are.
        """
        half = features // 2
        if not 2 <= classes < d or features % 2 or not 1 <= active <= half:
            raise DataError(
                "planted features", value=f"d={d} features={features} classes={classes} "
                f"active={active}", expected="classes < d, features even, active <= features / 2",
            )  # fmt: skip
        seen = torch.linalg.qr(torch.randn(d, classes, generator=generator)).Q
        raw = torch.randn(features, d, generator=generator)
        raw[:half] -= raw[:half] @ seen @ seen.T
        directions = F.normalize(raw, dim=1)
        head = torch.randn(classes, classes, generator=generator) @ seen.T
        effects = small * directions[half:] @ head.T
        # Draws without replacement of `active` of `half` features.
        spread = effects.var(0).mean() * active * (1 - active / half)
        return cls(directions, head * (sharpness / math.sqrt(float(spread))), active, small)

    def network(self) -> PlantedNetwork:
        """The network that reads x; its module `site` puts out x itself."""
        return PlantedNetwork(self.head)

    def sample(
        self, n: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
        """Activations and labels."""
        half = len(self.directions) // 2
        x = torch.zeros(n, self.directions.shape[1])
        for first, amplitude in ((0, 1.0), (half, self.small)):
            ranks = torch.rand(n, half, generator=generator)
            chosen = first + ranks.topk(self.active, sorted=False).indices
            x += amplitude * self.directions[chosen].sum(1)
        odds = (x @ self.head.T).softmax(1)
        return x, torch.multinomial(odds, 1, generator=generator).squeeze(1)

    def recovered(
        self, directions: Float[Tensor, "units d"], cosine: float = 0.9
    ) -> tuple[int, int]:
        """Big and small features that some unit's direction matches: cosine above the bound."""
        alike = (self.directions @ F.normalize(directions.detach().cpu(), dim=1).T).amax(1)
        found = alike > cosine
        half = len(found) // 2
        return int(found[:half].sum()), int(found[half:].sum())
