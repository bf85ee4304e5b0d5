"""Rules without parameters that NAT is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class EdgeBank:
    """Score 1 for pairs that met before, in either direction (Poursafaei et al. 2022), else 0.

    Args:
        window: how long a meeting is remembered, in the unit of time; None for ever.
    """

    training = False

    def __init__(self, window: float | None = None) -> None:
        self.window = np.inf if window is None else window
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        self.last: dict[tuple[int, int], float] = {}

    def __call__(
        self, src: Tensor, candidates: Tensor, t: Tensor
    ) -> tuple[Float[Tensor, "events options"], None]:
        """1 or 0 for each source and candidate."""
        last = self.last
        scores = [
            [(u, v) in last and now - last[u, v] <= self.window for v in row]
            for u, row, now in zip(src.tolist(), candidates.tolist(), t.tolist(), strict=True)
        ]
        return torch.tensor(scores, dtype=torch.float64), None

    def write(self, src: Tensor, dst: Tensor, t: Tensor, edge: Tensor, read: Any = None) -> None:
        """Remember the batch."""
        for u, v, now in zip(src.tolist(), dst.tolist(), t.tolist(), strict=True):
            self.last[u, v] = self.last[v, u] = now


class CommonNeighbours:
    """Pairs that met before first; among the others (and among those) more common partners first.

    Args:
        halflife: a common partner counts 2^(-age / halflife), its age being the time since the
            older of the two last meetings; None counts every common partner 1.
    """

    training = False

    def __init__(self, halflife: float | None = None) -> None:
        self.halflife = halflife
        self.reset()

    def reset(self) -> None:
        """Forget the stream."""
        self.last: dict[int, dict[int, float]] = {}

    def __call__(
        self, src: Tensor, candidates: Tensor, t: Tensor
    ) -> tuple[Float[Tensor, "events options"], None]:
        """A score in [0, 2): its whole part says whether the pair met."""
        scores = [
            [self._score(u, v, now) for v in row]
            for u, row, now in zip(src.tolist(), candidates.tolist(), t.tolist(), strict=True)
        ]
        return torch.tensor(scores, dtype=torch.float64), None

    def _score(self, u: int, v: int, now: float) -> float:
        of_u, of_v = self.last.get(u, {}), self.last.get(v, {})
        few, many = (of_u, of_v) if len(of_u) < len(of_v) else (of_v, of_u)
        ages = [now - min(when, many[a]) for a, when in few.items() if a in many]
        if self.halflife is None:
            weight = float(len(ages))
        else:
            weight = float(np.exp2(-np.array(ages) / self.halflife).sum())
        return float(v in of_u) + weight / (1 + weight)

    def write(self, src: Tensor, dst: Tensor, t: Tensor, edge: Tensor, read: Any = None) -> None:
        """Remember the batch."""
        for u, v, now in zip(src.tolist(), dst.tolist(), t.tolist(), strict=True):
            self.last.setdefault(u, {})[v] = now
            self.last.setdefault(v, {})[u] = now
