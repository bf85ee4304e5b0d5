"""How long the test loss lags behind the training loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from peira.data.errors import DataError


@dataclass(frozen=True)
class GrokGap:
    """When two loss curves first fall below a share of their start.

    Attributes:
        train_step, test_step: the first such step; None if it never came.
        last_step: the last step that was looked at.
    """

    train_step: float | None
    test_step: float | None
    last_step: float

    @property
    def ratio(self) -> float | None:
        """test_step / train_step; None where one of them never came."""
        if self.train_step is None or self.test_step is None:
            return None
        return self.test_step / self.train_step

    @property
    def at_least(self) -> float | None:
        """The ratio, or what it exceeds if the test loss has not come down; None without a fit."""
        if self.train_step is None:
            return None
        return (self.test_step or self.last_step) / self.train_step

    def __str__(self) -> str:
        if self.train_step is None:
            return f"the training loss did not come down in {self.last_step:g} steps"
        if self.test_step is None:
            return (
                f"train at step {self.train_step:g}, test not by {self.last_step:g}: "
                f"more than {self.at_least:.3g}x"
            )
        return f"train at step {self.train_step:g}, test at {self.test_step:g}: {self.ratio:.3g}x"


def grok_gap(
    train: Sequence[float] | ndarray,
    test: Sequence[float] | ndarray,
    fraction: float = 0.05,
    *,
    steps: Sequence[float] | ndarray | None = None,
    reference: float | None = None,
) -> GrokGap:
    """How much later the test loss falls than the training loss.

    Losses, not accuracies: a threshold on accuracy can show a delay that the loss does not have
    (paper, appendix).

    Args:
        train, test: losses at the same moments, the first before training.
        fraction: of the starting loss, the level that both must get below.
        steps: the moments, increasing, from 0 or above; 0, 1, 2, ... where not given.
        reference: the loss that `fraction` refers to, where the start is no sensible one.

    Raises:
        DataError: curves of different length, losses that are not finite at the start, steps that
            do not increase, a fraction outside (0, 1).
    """
    train, test = np.asarray(train, float), np.asarray(test, float)
    at = np.arange(len(train)) if steps is None else np.asarray(steps, float)
    if not (train.ndim == test.ndim == at.ndim == 1 and len(train) == len(test) == len(at) > 1):
        raise DataError(
            "loss curves",
            value=(train.shape, test.shape, at.shape),
            expected="as many training losses as test losses and steps, at least two",
        )
    if not 0 < fraction < 1:
        raise DataError("fraction", value=fraction, expected="a number between 0 and 1")
    if not (np.diff(at) > 0).all() or at[0] < 0:
        raise DataError("steps", expected="numbers from 0 on that increase")
    start = (train[0], test[0]) if reference is None else (reference, reference)
    if not (np.isfinite(start).all() and min(start) > 0):
        raise DataError("loss at the start", value=start, expected="a finite number above 0")

    def first(losses: ndarray, level: float) -> float | None:
        below = np.flatnonzero(losses < fraction * level)
        return float(at[below[0]]) if len(below) else None

    return GrokGap(first(train, start[0]), first(test, start[1]), float(at[-1]))


def logarithmic_steps(last: int, per_decade: int = 16) -> list[int]:
    """0, 1, 2, ... up to `last`, at even distances on a logarithmic axis."""
    count = max(2, int(per_decade * math.log10(max(last, 2))) + 1)
    return sorted({0, last, *np.geomspace(1, max(last, 1), count).round().astype(int).tolist()})
