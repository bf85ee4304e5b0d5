"""Curricula as iterators over subsets of indices, and as a PyTorch sampler that can resume."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int
from torch.utils.data import Sampler

from peira.data.errors import DataError
from peira.training.ccl.sampling import (
    FLOOR,
    Transform,
    check_losses,
    check_scores,
    scores_from_losses,
    weighted_subset,
)
from peira.training.ccl.sizes import plan_table, round_counts, schedule_sizes

if TYPE_CHECKING:
    import pandas as pd

Indices = Int[np.ndarray, " subset"]


class Curriculum(ABC):
    """Rounds of training, each on a subset of the samples.

    `for subset in curriculum` gives the indices of one round after the other. The draws of a round
    depend on the seed, the round and what is known of the samples, on nothing else: a curriculum
    that was restored by `load_state_dict` goes on with the very subsets that were to come.

    Attributes:
        size: number of samples.
        round: rounds that are done, or in a plain `for` loop begun.
        samples_seen: samples in those rounds.
    """

    def __init__(self, size: int, rng: int) -> None:
        self.size, self.rng = size, rng
        self.round = self.samples_seen = 0

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether the budget is spent."""

    @abstractmethod
    def _draw(self, rng: np.random.Generator) -> Indices:
        """Indices of the current round."""

    def subset(self) -> Indices:
        """Indices of the current round in random order; the same however often one asks."""
        return self._draw(np.random.default_rng([self.rng, self.round]))

    def advance(self, subset: Indices | None = None) -> None:
        """Count the current round as done; `subset` are its indices, if they are at hand."""
        self.samples_seen += len(self.subset() if subset is None else subset)
        self.round += 1

    def update(self, losses: npt.ArrayLike) -> None:
        """Tell the curriculum the losses of the samples under the model as it is now."""
        raise NotImplementedError

    def _own(self, losses: npt.ArrayLike) -> Float[np.ndarray, " n"]:
        """Losses of these samples, checked."""
        values = check_losses(losses)
        if len(values) != self.size:
            raise DataError("losses of another data set", value=len(values), expected=self.size)
        return values

    def __iter__(self) -> Iterator[Indices]:
        while not self.done:
            subset = self.subset()
            self.advance(subset)
            yield subset

    def sampler(self, dataset: Sized | None = None) -> CurriculumSampler:
        """A PyTorch sampler whose every pass is one round; checks the data set's length."""
        if dataset is not None and len(dataset) != self.size:
            raise DataError(
                f"scores of {self.size} samples for a data set of {len(dataset)}",
                expected="one score for each sample",
            )
        return CurriculumSampler(self)

    def state_dict(self) -> dict[str, Any]:
        """All that later rounds depend on."""
        return {
            name: value.copy() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; raises `DataError` for another number of samples."""
        if state["size"] != self.size:
            raise DataError("state of another data set", value=state["size"], expected=self.size)
        vars(self).update(state)


class CyclicalCurriculum(Curriculum):
    """Cyclical curriculum learning: easy-biased random subsets of cyclically varying size.

    Round r draws floor(S_r n) distinct samples with probabilities in proportion to their scores;
    hard samples keep a chance. S is `cyclic_sizes`, or another schedule at the same budget.

        curriculum = CyclicalCurriculum(losses, budget_epochs=30)
        sampler = curriculum.sampler(dataset)
        loader = DataLoader(dataset, batch_size=128, sampler=sampler)
        while not curriculum.done:
            for inputs, labels in loader:    # one round
                ...

    Args:
        losses: per-sample losses of a model that was trained without a curriculum.
        scores: instead of losses: non-negative numbers to draw in proportion to.
        start: smallest share of the data in a round.
        end: largest share.
        alpha: multiplier of the share from round to round, in (0, 1).
        budget_epochs: samples to see, in passes over the data.
        schedule: cyclic, sharp, cyclic-from-full, full-then-cyclic, growing (curriculum),
            shrinking, exponential, parabolic or full (no curriculum).
        transform: how losses become scores, see `scores_from_losses`; "hard" is anti-curriculum,
            "random" a curriculum in size alone.
        lam: of the transform "exp".
        floor: smaller losses count as this much.
        ageing: scores of the samples of the last round are divided by this; 1 does nothing, the
            official code has 1.44.
        rng: seed of the draws.

    Raises:
        DataError: both or neither of losses and scores; numbers that make no schedule, losses or
            scores that are none, fewer positive scores than a round needs.

    Source: Kesgin and Amasyali 2023, algorithm 1.
    """

    def __init__(
        self,
        losses: npt.ArrayLike | None = None,
        *,
        scores: npt.ArrayLike | None = None,
        start: float = 0.25,
        end: float = 1.0,
        alpha: float = 0.5,
        budget_epochs: float = 30.0,
        schedule: str = "cyclic",
        transform: Transform = "inverse",
        lam: float = 0.5,
        floor: float = FLOOR,
        ageing: float = 1.0,
        rng: int = 0,
    ) -> None:
        if (losses is None) == (scores is None):
            raise DataError("either losses or scores", expected="one of them")
        if not ageing >= 1:
            raise DataError("ageing", value=ageing, expected="1 or more")
        self.transform, self.lam, self.floor, self.ageing = transform, lam, floor, ageing
        self.scores = check_scores(scores) if losses is None else self._scores(losses)
        super().__init__(len(self.scores), rng)
        self.sizes = schedule_sizes(schedule, start, end, alpha, budget_epochs)
        self.counts = round_counts(self.sizes, self.size)
        self.recent = np.empty(0, dtype=np.int64)
        possible = int(np.count_nonzero(self.scores))
        if possible < max(self.counts):
            raise DataError(
                f"only {possible} of {self.size} samples have a positive score, but the largest "
                f"round has {max(self.counts)}",
                expected="a smaller end, or scores with a floor above zero",
            )

    def __len__(self) -> int:
        """Number of rounds."""
        return len(self.counts)

    @property
    def done(self) -> bool:
        """Whether all rounds are done."""
        return self.round >= len(self.counts)

    def plan(self) -> pd.DataFrame:
        """Round, fraction, count, samples_seen, epochs_seen: what is to come, before training."""
        return plan_table(self.sizes, self.size)

    def update(self, losses: npt.ArrayLike) -> None:
        """Scores from the model as it is now: the self-paced variant, if called every round."""
        self.scores = self._scores(self._own(losses))

    def advance(self, subset: Indices | None = None) -> None:
        """Count the current round as done."""
        subset = self.subset() if subset is None else subset
        super().advance(subset)
        if self.ageing > 1:
            self.recent = subset

    def _scores(self, losses: npt.ArrayLike) -> np.ndarray:
        return scores_from_losses(losses, self.transform, self.lam, self.floor)

    def _draw(self, rng: np.random.Generator) -> Indices:
        if self.done:
            raise DataError("the budget is spent", value=f"{self.round} rounds done")
        scores = self.scores
        if len(self.recent):
            scores = scores.copy()
            scores[self.recent] /= self.ageing
        return weighted_subset(scores, self.counts[self.round], rng)


class SelfPacedLearning(Curriculum):
    """Self-paced learning as the official code runs it: all samples below a growing threshold.

    A first round on everything; then `update(losses)` before every round, which trains on the
    samples whose loss is below the threshold; when one epoch of budget is left, everything again.

    Args:
        size: number of samples.
        budget_epochs: samples to see, in passes over the data; 2 or more.
        pace: the threshold is divided by this after every round; 0.75 in the official code.
        rng: seed of the order.
    """

    def __init__(
        self, size: int, budget_epochs: float = 30.0, pace: float = 0.75, rng: int = 0
    ) -> None:
        if not budget_epochs >= 2:
            raise DataError("budget of a first and a last epoch", value=budget_epochs, expected="2")
        if not 0 < pace < 1:
            raise DataError("pace", value=pace, expected="above 0 and below 1")
        super().__init__(size, rng)
        self.budget_epochs, self.pace = budget_epochs, pace
        self.threshold: float | None = None
        self.losses: np.ndarray | None = None
        self.finished = False

    @property
    def done(self) -> bool:
        """Whether the last round, on everything, is done."""
        return self.finished

    @property
    def _last(self) -> bool:
        return self.samples_seen >= (self.budget_epochs - 1) * self.size

    def update(self, losses: npt.ArrayLike, threshold: float | None = None) -> None:
        """Losses as they are now.

        `threshold` starts the pace: the mean loss while the first round trained, in the official
        code; without it, the mean of the first losses told.
        """
        self.losses = self._own(losses)
        if self.threshold is None:
            self.threshold = float(self.losses.mean()) if threshold is None else threshold

    def advance(self, subset: Indices | None = None) -> None:
        """Count the current round as done and raise the threshold."""
        self.finished = self.round > 0 and self._last
        later = self.round > 0
        super().advance(subset)
        if later and self.threshold is not None:
            self.threshold /= self.pace

    def _draw(self, rng: np.random.Generator) -> Indices:
        if self.round == 0 or self._last:
            return rng.permutation(self.size)
        if self.losses is None or self.threshold is None:
            raise DataError("self-paced learning needs `update(losses)` before its second round")
        below = np.flatnonzero(self.losses < self.threshold)
        # Below every loss: the official code stops with an error, here the easiest sample goes on.
        return rng.permutation(below) if len(below) else np.array([self.losses.argmin()])


class StagedSelfPacedLearning(Curriculum):
    """Staged self-paced learning: each class in parts from easy to hard, one more in every stage.

    Call `update(losses)` before every round but the first, whose parts are random as in the
    official code. All stages have the same number of rounds; the last, on everything, goes on
    until the budget is spent.

    Args:
        labels: class of each sample.
        budget_epochs: samples to see, in passes over the data.
        stages: number of parts.
        rng: seed of the order and of the first parts.
    """

    def __init__(
        self, labels: npt.ArrayLike, budget_epochs: float = 30.0, stages: int = 4, rng: int = 0
    ) -> None:
        self.labels = np.asarray(labels)
        if stages < 1:
            raise DataError("stages", value=stages, expected="1 or more")
        super().__init__(len(self.labels), rng)
        self.budget_epochs, self.stages = budget_epochs, stages
        # Rounds of 1, 2, ... parts cost (stages + 1) / 2 epochs together.
        self.stage_rounds = max(1, math.floor(2 * budget_epochs / (stages + 1)))
        self.losses: np.ndarray | None = None

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.samples_seen >= self.budget_epochs * self.size

    def update(self, losses: npt.ArrayLike) -> None:
        """Losses as they are now."""
        self.losses = self._own(losses)

    def _draw(self, rng: np.random.Generator) -> Indices:
        losses = rng.random(self.size) if self.losses is None else self.losses
        stage = min(1 + self.round // self.stage_rounds, self.stages)
        parts = []
        for one_class in np.unique(self.labels):
            members = np.flatnonzero(self.labels == one_class)
            easy_first = members[np.argsort(losses[members], kind="stable")]
            parts.append(easy_first[: len(members) * stage // self.stages])
        chosen = np.concatenate(parts)
        if not len(chosen):
            raise DataError("classes too small for that many stages", value=self.stages)
        return rng.permutation(chosen)


class CurriculumSampler(Sampler[int]):
    """One round of a curriculum in every pass, as a PyTorch sampler.

    `state_dict` may be taken in the middle of a round: after `load_state_dict` the next pass is
    the rest of that round. A `DataLoader` with workers asks ahead of what it has given out; with
    workers take the state between rounds. A pass that was broken off counts as done.
    """

    def __init__(self, curriculum: Curriculum) -> None:
        self.curriculum = curriculum
        self._position = 0
        self._resumed = False

    def __len__(self) -> int:
        """Samples that the next pass gives."""
        if self.curriculum.done:
            return 0
        return len(self.curriculum.subset()) - self._position * self._resumed

    def __iter__(self) -> Iterator[int]:
        if self._position and not self._resumed:
            self.curriculum.advance()
            self._position = 0
        self._resumed = False
        if self.curriculum.done:
            return
        subset = self.curriculum.subset()
        for index in subset[self._position :].tolist():
            self._position += 1
            yield index
        self.curriculum.advance(subset)
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """The curriculum's state and how much of the current round was given out."""
        return {"curriculum": self.curriculum.state_dict(), "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next pass goes on where the state was taken."""
        self.curriculum.load_state_dict(state["curriculum"])
        self._position, self._resumed = state["position"], True
