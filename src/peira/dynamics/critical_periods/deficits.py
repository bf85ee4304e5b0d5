"""What is wrong, from when, and for how long: temporary deficits of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from jaxtyping import Bool

from peira.data import DataError
from peira.engine.errors import nearest

Kind = Literal["gate_path", "gate_mode", "blur", "task"]
T = TypeVar("T")


@dataclass(frozen=True)
class DeficitSchedule:
    """A deficit that is on in steps `start`, ..., `start + length - 1`, counted from 0.

    Args:
        kind: `gate_path`: the last pathway gets no gradient, its output still counts;
            `gate_mode`: one singular mode is taken out of the first pathway's response;
            `blur`: the last pathway sees a degraded view;
            `task`: another task is trained.
        start: step of its onset.
        length: number of steps.
        mode: index of the singular mode (largest is 0), for `gate_mode` alone.
        probability: chance that it is on in each of these steps.

    Raises:
        DataError: unknown kind, negative start or length, a mode where there is none to name or
            none where there must be one, a probability outside (0, 1].
    """

    kind: Kind = "gate_path"
    start: int = 0
    length: int = 150
    mode: int | None = None
    probability: float = 1.0

    def __post_init__(self) -> None:
        kinds = get_args(Kind)
        if self.kind not in kinds:
            raise DataError(f"unknown deficit; {nearest(self.kind, kinds)}", value=self.kind)
        for name in ("start", "length"):
            value = getattr(self, name)
            if value < 0:
                raise DataError(f"{name} of a deficit", value=value, expected="0 or more steps")
        if (self.kind == "gate_mode") != (self.mode is not None):
            raise DataError(
                f"mode of a {self.kind} deficit", value=self.mode,
                expected="an index for gate_mode, None for others",
            )  # fmt: skip
        if not 0 < self.probability <= 1:
            raise DataError(
                "probability of a deficit", value=self.probability, expected="above 0, at most 1"
            )

    @property
    def end(self) -> int:
        """The first step without it."""
        return self.start + self.length

    def active(self, step: int, rng: np.random.Generator | None = None) -> bool:
        """Whether it is on in `step`; a probability below 1 draws from `rng`."""
        if not self.start <= step < self.end:
            return False
        if self.probability == 1:
            return True
        if rng is None:
            raise DataError("a deficit with a probability draws from a generator: give rng")
        return bool(rng.random() < self.probability)

    def gate(self, output: T, step: int, rng: np.random.Generator | None = None) -> T:
        """`output` of a pathway in any torch model; without its gradient while the deficit is on.

        Raises `DataError` for a deficit that is no `gate_path`.
        """
        if self.kind != "gate_path":
            raise DataError("only a gate_path deficit gates", value=self.kind)
        if not self.active(step, rng):
            return output
        detached: T = output.detach()  # type: ignore[attr-defined]
        return detached

    def swap(self, usual: T, deficient: T, step: int, rng: np.random.Generator | None = None) -> T:
        """`deficient` (blurred inputs, another task's targets) while it is on, else `usual`."""
        return deficient if self.active(step, rng) else usual

    def steps(self, total: int, rng: np.random.Generator | None = None) -> Bool[np.ndarray, " t"]:
        """Where it is on in a training of `total` steps.

        Raises `DataError` when it ends after the training.
        """
        if self.end > total:
            raise DataError(
                "deficit beyond the training", value=f"steps {self.start} to {self.end}",
                expected=f"to end by step {total}",
            )  # fmt: skip
        on = np.zeros(total, bool)
        on[self.start : self.end] = True
        if self.probability < 1:
            if rng is None:
                raise DataError("a deficit with a probability draws from a generator: give rng")
            on &= rng.random(total) < self.probability
        return on


# One training: no deficit, one, or several at once.
Condition = DeficitSchedule | Sequence[DeficitSchedule] | None


def schedules(condition: Condition) -> tuple[DeficitSchedule, ...]:
    """The deficits of one training."""
    if condition is None:
        return ()
    return (condition,) if isinstance(condition, DeficitSchedule) else tuple(condition)


def when(
    conditions: Sequence[Condition],
    kind: Kind,
    total: int,
    rng: np.random.Generator | None = None,
) -> Bool[np.ndarray, "conditions steps"]:
    """For each training, the steps in which a deficit of that kind is on."""
    on = np.zeros((len(conditions), total), bool)
    for row, condition in zip(on, conditions, strict=True):
        for deficit in schedules(condition):
            if deficit.kind == kind:
                row |= deficit.steps(total, rng)
    return on


def check_kinds(conditions: Sequence[Condition], known: Sequence[str], where: str) -> None:
    """Raise `DataError` for a deficit that `where` cannot have."""
    for condition in conditions:
        for deficit in schedules(condition):
            if deficit.kind not in known:
                raise DataError(
                    f"{where} has no such deficit", value=deficit.kind, expected=", ".join(known)
                )


def check_mode(deficit: Any, modes: int) -> int:
    """The mode of a `gate_mode` deficit; raises `DataError` when it is out of range."""
    if not 0 <= deficit.mode < modes:
        raise DataError("mode index of a deficit", value=deficit.mode, expected=f"0 to {modes - 1}")
    return int(deficit.mode)
