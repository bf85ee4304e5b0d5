"""The damage of a deficit as a function of its onset, in any training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from peira.data import DataError
from peira.dynamics.critical_periods.deficits import DeficitSchedule
from peira.dynamics.critical_periods.pathways import PathwayTask, PathwayTrainer, gaussian_pathways
from peira.engine.errors import PeiraError
from peira.engine.verdict import mean_interval

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CriticalPeriod:
    """A deficit of one length at several onsets.

    Attributes:
        onsets: steps, rising.
        length: steps that each deficit lasts.
        damage: loss of score against the same seed without a deficit, (seeds, onsets).
        baseline: score without a deficit, (seeds,).
    """

    onsets: tuple[int, ...]
    length: int
    damage: Float[np.ndarray, "seeds onsets"]
    baseline: Float[np.ndarray, " seeds"]

    @property
    def mean(self) -> Float[np.ndarray, " onsets"]:
        """Damage at each onset, mean over seeds."""
        return self.damage.mean(axis=0)

    @cached_property
    def interval(self) -> Float[np.ndarray, "onsets 2"]:
        """95% confidence interval of the mean over seeds (Student's t); NaN for one seed."""
        return np.array([mean_interval(column) for column in self.damage.T])

    @property
    def certain(self) -> bool:
        """Whether the largest damage is above 0 beyond doubt (95% interval)."""
        return bool(self.interval[int(np.argmax(self.mean)), 0] > 0)

    @property
    def window(self) -> tuple[int, ...]:
        """Critical period: onsets with more than half of the largest mean damage.

        Empty where no damage is certain: half of noise is no window.
        """
        if not self.certain:
            return ()
        return tuple(
            onset for onset, value in zip(self.onsets, self.mean, strict=True)
            if value > self.mean.max() / 2
        )  # fmt: skip

    @property
    def end(self) -> tuple[float, tuple[float, float]]:
        """Onset at which the damage has fallen to half, and its 95% interval over seeds.

        Between two onsets it is interpolated. NaN where a seed has no damage, or where it never
        falls to half by the last onset.
        """
        ends = np.array([_half(self.onsets, row) for row in self.damage])
        return float(ends.mean()), mean_interval(ends)

    def frame(self) -> pd.DataFrame:
        """A row for each onset: damage, its interval, whether it is in the window."""
        import pandas as pd

        low, high = self.interval.T
        return pd.DataFrame(
            {
                "onset": self.onsets,
                "damage": self.mean,
                "low": low,
                "high": high,
                "critical": [onset in self.window for onset in self.onsets],
            }
        )


def critical_period_scan(
    train: Callable[[DeficitSchedule | None, int], float],
    onsets: Sequence[int],
    length: int,
    seeds: int | Sequence[int] = 3,
    *,
    deficit: DeficitSchedule | None = None,
    steps: int | None = None,
    higher_is_better: bool = True,
) -> CriticalPeriod:
    """Find the critical period of any training.

    Args:
        train: `train(deficit, seed)` trains from scratch with that deficit (None: without one) and
            gives the final score; the loop asks `deficit.gate(output, step)`,
            `deficit.swap(usual, deficient, step)` or `deficit.active(step)`.
        onsets: steps at which a deficit begins.
        length: steps that it lasts.
        seeds: how many trainings of each kind, or their seeds.
        deficit: kind, mode and probability of the deficits; `gate_path` by default.
        steps: length of the training; given, a deficit beyond it is refused before any training.
        higher_is_better: False for losses.

    Raises:
        DataError: no onset, two equal ones, a negative onset or length, a deficit beyond `steps`,
            no seed.
        PeiraError: a score that is no finite number.
    """
    conditions = _conditions(onsets, length, deficit or DeficitSchedule(), steps)
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers:
        raise DataError("seeds", value=seeds, expected="1 or more")
    scores = np.array(
        [[_score(train, one, seed) for one in (None, *conditions)] for seed in numbers]
    )
    return from_scores(conditions, scores, higher_is_better)


def view_scan(
    task: PathwayTask,
    onsets: Sequence[int],
    length: int,
    seeds: int = 3,
    *,
    score: Callable[[PathwayTrainer], Float[np.ndarray, " members"]] | None = None,
    deficit: DeficitSchedule | None = None,
    depth: int = 3,
    width: int = 32,
    steps: int = 2000,
    rate: float = 0.05,
    init_scale: float = 0.01,
    progress: Callable[[range], Any] = iter,
) -> CriticalPeriod:
    """The critical period of the last pathway of a linear two-view network, all onsets at once.

    Args:
        task: from `two_views`, best after `compress`.
        score: of a trained network, one number for each condition, higher is better; by default
            the last pathway's share of the response, |b| / (|a| + |b|).
        deficit: kind, mode and probability of the deficits; `gate_path` by default.
        progress: wraps the range of steps of each seed.

    Warns (UserWarning) when damage still heals as the training ends: it is not lasting damage then.

    Raises:
        DataError: as `critical_period_scan`, and for a deficit that the task lacks.
        PeiraError: the training diverged.
    """
    conditions = _conditions(onsets, length, deficit or DeficitSchedule(), steps)
    scores = np.empty((2, seeds, len(conditions) + 1))
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        network = gaussian_pathways(task, depth, width, init_scale, rng)
        count = len(conditions) + 1
        trainer = PathwayTrainer(
            [network] * count, task, [None, *conditions], steps, rate, rngs=[rng] * count
        )
        with np.errstate(over="ignore", invalid="ignore"):
            for step in progress(range(steps)):
                trainer.step(step)
                if step + 1 == steps - steps // 10:
                    scores[0, seed] = (score or _share)(trainer)
            scores[1, seed] = (score or _share)(trainer)
        if not np.isfinite(scores[:, seed]).all():
            raise PeiraError(f"seed {seed}: the training diverged; take a lower learning rate")
    before, found = (from_scores(conditions, one) for one in scores)
    healing = 1 - found.mean.max() / before.mean.max() if before.mean.max() > 0 else 0.0
    if healing > 0.1:
        warnings.warn(
            f"the largest damage still fell by {healing:.0%} in the last tenth of the training: it "
            "is not lasting damage; train longer",
            UserWarning,
            stacklevel=2,
        )
    return found


def from_scores(
    conditions: Sequence[DeficitSchedule],
    scores: Float[np.ndarray, "seeds conditions+1"],
    higher_is_better: bool = True,
) -> CriticalPeriod:
    """The critical period from scores: first column without a deficit, then one for each onset."""
    sign = 1 if higher_is_better else -1
    return CriticalPeriod(
        tuple(one.start for one in conditions), conditions[0].length,
        sign * (scores[:, :1] - scores[:, 1:]), scores[:, 0],
    )  # fmt: skip


def _conditions(
    onsets: Sequence[int], length: int, deficit: DeficitSchedule, steps: int | None
) -> list[DeficitSchedule]:
    if not len(onsets) or len(set(onsets)) != len(onsets):
        raise DataError("onsets", value=list(onsets), expected="at least one, all different")
    found = [replace(deficit, start=int(onset), length=length) for onset in sorted(onsets)]
    if steps is not None:
        # Only the check: a deficit that draws needs a generator, its times do not.
        replace(found[-1], probability=1.0).steps(steps)
    return found


def _score(
    train: Callable[[DeficitSchedule | None, int], float], one: DeficitSchedule | None, seed: int
) -> float:
    value = float(train(one, seed))
    if not np.isfinite(value):
        what = "without a deficit" if one is None else f"with onset {one.start}"
        raise PeiraError(
            f"training {what}, seed {seed}: score is {value}; expected a finite number"
        )
    return value


def _share(trainer: PathwayTrainer) -> Float[np.ndarray, " members"]:
    norms = trainer.norms()
    return norms[:, -1] / norms.sum(axis=1)


def _half(onsets: Sequence[int], damage: Float[np.ndarray, " onsets"]) -> float:
    """Where the damage crosses half of its largest value for the last time."""
    level = damage.max() / 2
    above = np.flatnonzero(damage > level)
    if level <= 0 or above[-1] == len(onsets) - 1:
        return float("nan")
    i = above[-1]
    part = (damage[i] - level) / (damage[i] - damage[i + 1])
    return float(onsets[i] + part * (onsets[i + 1] - onsets[i]))
