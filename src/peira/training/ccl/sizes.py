"""How large a share of the training data each round sees, and what that costs in samples.

A sequence of shares is spent when its sum reaches the budget, which counts passes over the whole
training set: every method sees the same number of samples, within one round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, repeat
from typing import TYPE_CHECKING

from peira.data.errors import DataError
from peira.engine.errors import nearest

if TYPE_CHECKING:
    import pandas as pd

MAX_ROUNDS = 10_000
# Rounds that the one-way curricula stay at each share, as in the official code.
STAGE_ROUNDS = 5


def cyclic_sizes(
    start: float = 0.25, end: float = 1.0, alpha: float = 0.5, budget: float = 30.0
) -> list[float]:
    """Up by 1/alpha to `end`, down by alpha to `start`, and so on (the paper's size recursion).

    Args:
        start: smallest share of the training data, in (0, 1].
        end: largest share.
        alpha: multiplier in (0, 1); a share that would pass `end` or `start` stops there.
        budget: passes over the whole training set that the shares add up to, at least.

    Returns:
        Shares, such as 0.25, 0.5, 1, 0.5, 0.25, 0.5, 1, ...

    Raises:
        DataError: shares, multiplier or budget that make no schedule.
    """
    _check(start, end, alpha, budget)

    def shares() -> Iterator[float]:
        size, rising = start, True
        while True:
            yield size
            if size == start:
                rising = True
            elif size == end:
                rising = False
            size = _up(size, alpha, end) if rising else max(size * alpha, start)

    return _spend(shares(), budget)


def cycle_rounds(start: float = 0.25, end: float = 1.0, alpha: float = 0.5) -> int:
    """Rounds from one smallest share to the next: 4 for the defaults."""
    whole = cyclic_sizes(start, end, alpha, budget=start + 4 * end / (1 - alpha))
    return whole.index(start, 1)


def sharp_sizes(
    start: float = 0.25, end: float = 1.0, alpha: float = 0.5, budget: float = 30.0
) -> list[float]:
    """Up by 1/alpha to `end`, then at once back to `start`: the official `sharp_cycle`."""
    _check(start, end, alpha, budget)

    def shares() -> Iterator[float]:
        size = start
        while True:
            yield size
            size = start if size == end else _up(size, alpha, end)

    return _spend(shares(), budget)


def cyclic_from_full_sizes(
    start: float = 0.25, end: float = 1.0, alpha: float = 0.5, budget: float = 30.0
) -> list[float]:
    """The cycle from its first peak on: for scores that only a trained model gives (`splcycle`)."""
    _check(start, end, alpha, budget)
    rise = cyclic_sizes(start, end, alpha, budget=start + 2 * end / (1 - alpha))
    skipped = rise.index(end)
    return cyclic_sizes(start, end, alpha, budget + sum(rise[:skipped]))[skipped:]


def full_then_cyclic_sizes(
    start: float = 0.25, end: float = 1.0, alpha: float = 0.5, budget: float = 30.0
) -> list[float]:
    """Half of the budget on all data, the other half cyclic: the official `111cycle`."""
    _check(start, end, alpha, budget)
    full = int(budget // 2)
    return [1.0] * full + cyclic_sizes(start, end, alpha, budget - full)


def growing_sizes(
    start: float = 0.25, end: float = 1.0, alpha: float = 0.5, budget: float = 30.0
) -> list[float]:
    """Five rounds at each share on the way up, then `end`: curriculum, `lower_to_bigger`."""
    _check(start, end, alpha, budget)

    def stages() -> Iterator[float]:
        size = start
        while True:
            yield size
            size = _up(size, alpha, end)

    return _spend(_stay(stages()), budget)


def shrinking_sizes(
    start: float = 0.25, end: float = 1.0, alpha: float = 0.5, budget: float = 30.0
) -> list[float]:
    """Five rounds at each share on the way down, then `start`: `bigger_to_lower`."""
    _check(start, end, alpha, budget)

    def stages() -> Iterator[float]:
        size = end
        while True:
            yield size
            size = max(size * alpha, start)

    return _spend(_stay(stages()), budget)


def exponential_sizes(
    start: float = 0.04, end: float = 1.0, alpha: float = 1 / 1.5, budget: float = 30.0
) -> list[float]:
    """Exponential pacing: 4% of the data, half as many again after every five rounds."""
    return growing_sizes(start, end, alpha, budget)


def parabolic_sizes(
    start: float = 0.04, end: float = 1.0, power: float = 1.5, budget: float = 30.0
) -> list[float]:
    """Parabolic pacing: `start` times stage number to the power 1.5, five rounds each."""
    _check(start, end, 0.5, budget)
    stages = (min(start * (1 + stage) ** power, end) for stage in range(MAX_ROUNDS))
    return _spend(_stay(stages), budget)


def full_sizes(budget: float = 30.0) -> list[float]:
    """All data in every round: no curriculum."""
    _check(1.0, 1.0, 0.5, budget)
    return _spend(repeat(1.0), budget)


# Schedules by name; each takes start, end, alpha and budget.
SCHEDULES: dict[str, Callable[[float, float, float, float], list[float]]] = {
    "cyclic": cyclic_sizes,
    "sharp": sharp_sizes,
    "cyclic-from-full": cyclic_from_full_sizes,
    "full-then-cyclic": full_then_cyclic_sizes,
    "growing": growing_sizes,
    "shrinking": shrinking_sizes,
    "exponential": lambda start, end, alpha, budget: exponential_sizes(end=end, budget=budget),
    "parabolic": lambda start, end, alpha, budget: parabolic_sizes(end=end, budget=budget),
    "full": lambda start, end, alpha, budget: full_sizes(budget),
}


def schedule_sizes(
    schedule: str, start: float = 0.25, end: float = 1.0, alpha: float = 0.5, budget: float = 30.0
) -> list[float]:
    """The shares of a schedule by its name; raises `DataError` for an unknown one.

    The two pacing functions have a start and a pace of their own, the published ones.
    """
    if schedule not in SCHEDULES:
        raise DataError(f"no schedule {schedule!r}; {nearest(schedule, SCHEDULES)}")
    return SCHEDULES[schedule](start, end, alpha, budget)


def round_counts(sizes: Sequence[float], samples: int) -> list[int]:
    """Samples in each round: the share of all, rounded down.

    Raises `DataError` where that leaves a round without any.
    """
    # A share such as 0.29 of 100 is 28.999... in floating point.
    counts = [math.floor(share * samples + 1e-9) for share in sizes]
    if min(counts, default=0) < 1:
        raise DataError(
            f"a round of {min(sizes):g} of {samples} samples is empty",
            expected=f"at least {math.ceil(1 / min(sizes))} samples, or a larger start",
        )
    return counts


def plan_table(sizes: Sequence[float], samples: int) -> pd.DataFrame:
    """What a schedule will do: round, fraction, count, samples and epochs seen by its end."""
    import numpy as np
    import pandas as pd

    counts = np.array(round_counts(sizes, samples))
    seen = counts.cumsum()
    return pd.DataFrame(
        {
            "round": np.arange(1, len(counts) + 1),
            "fraction": np.asarray(sizes, dtype=float),
            "count": counts,
            "samples_seen": seen,
            "epochs_seen": seen / samples,
        }
    )


def _up(size: float, alpha: float, end: float) -> float:
    size = min(size / alpha, end)
    # 1/9 tripled twice is not 1 in floating point, and must not cost a round of its own.
    return end if math.isclose(size, end, rel_tol=1e-12) else size


def _stay(stages: Iterator[float]) -> Iterator[float]:
    return (share for stage in stages for share in repeat(stage, STAGE_ROUNDS))


def _spend(shares: Iterator[float], budget: float) -> list[float]:
    sizes, spent = [], 0.0
    for share in islice(shares, MAX_ROUNDS):
        sizes.append(share)
        spent += share
        if spent > budget - 1e-9:
            return sizes
    raise DataError(
        f"more than {MAX_ROUNDS:,} rounds to spend {budget:g} epochs",
        expected="a larger start or a smaller budget",
    )


def _check(start: float, end: float, alpha: float, budget: float) -> None:
    for name, value in (("start", start), ("end", end)):
        if not 0 < value <= 1:
            raise DataError(f"{name} is no share of the data", value=value, expected="in (0, 1]")
    if start > end:
        raise DataError("start is above end", value=start, expected=f"at most {end:g}")
    if not 0 < alpha < 1:
        raise DataError("alpha is no multiplier", value=alpha, expected="above 0 and below 1")
    if not (math.isfinite(budget) and budget >= start):
        raise DataError(
            "the budget does not pay for one round", value=budget,
            expected=f"at least start = {start:g} epochs",
        )  # fmt: skip
