"""Grokfast: amplify the slow part of every gradient (Lee et al. 2024, arXiv 2405.20233)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class GrokfastEMA:
    """Adds `strength` times an exponential moving average of the gradients to the gradients.

    Call it between `backward()` and `optimizer.step()`; Algorithm 2 (Grokfast-EMA) of the paper.

    Args:
        parameters: what the optimiser trains.
        decay: of the moving average, alpha in the paper.
        strength: of the slow part, lambda in the paper.
    """

    def __init__(
        self, parameters: Iterable[Tensor], decay: float = 0.98, strength: float = 2.0
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay is in [0, 1); got {decay}")
        self.parameters = [p for p in parameters if p.requires_grad]
        self.decay, self.strength = decay, strength
        self.averages: list[Tensor] = []

    def __call__(self) -> None:
        """Filter the gradients in place; the average starts at the first gradient."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not self.averages:
            self.averages = [gradient.clone() for gradient in gradients]
        else:
            torch._foreach_lerp_(self.averages, gradients, 1 - self.decay)
        torch._foreach_add_(gradients, self.averages, alpha=self.strength)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The moving averages."""
        return {"averages": self.averages}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Continue from the averages of `state_dict`."""
        self.averages = state["averages"]
