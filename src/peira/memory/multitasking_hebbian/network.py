"""The network: couplings from examples with blanks, recall of several patterns in one state."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Int8, Shaped
from sklearn.base import BaseEstimator

from peira.memory.multitasking_hebbian.patterns import Patterns, fill_blanks
from peira.memory.multitasking_hebbian.theory import RegimeName, name_of
from peira.memory.spins import PatternEnergy, heat_bath

Mode = Literal["supervised", "unsupervised", "storing"]
MODES = ("supervised", "unsupervised", "storing")

# Dilutions further apart than this between patterns are remarked on: the theory has one.
UNEQUAL = 0.1
# Below this dilution more than log N patterns are remarked on: they disturb each other.
MILD = 0.5
# Overlaps below this many standard deviations of a chance overlap are none.
CHANCE = 4.0
# In a finite network overlaps this close count as equal.
LEVEL = 0.6


def pattern_energy(
    patterns: Patterns, dilution: float, power: float, terms: int = 1
) -> PatternEnergy:
    """H = -(1 / (N (1-d) power terms)) sum over patterns of sum_{i<j} x_i x_j sigma_i sigma_j.

    Args:
        patterns: archetypes, means of examples, or examples one by one.
        dilution: d, share of blanks.
        power: what makes the couplings' largest eigenvalue 1: mean square of a non-blank entry of
            the archetypes (1) or of the means, r^2 (1 + rho); the latter for single examples too.
        terms: M for single examples, else 1.
    """
    spins = patterns.shape[1]
    return PatternEnergy(patterns, P=2, weights=1 / (spins * (1 - dilution) * power * terms))


@dataclass(frozen=True)
class Recall:
    """What a network made of the cues.

    Attributes:
        states: last states.
        overlaps: with each pattern, (1/N) sum xi sigma, mean over the second half of the sweeps.
        regimes: name of each state by its overlaps; none where they are with single examples.
        energies: per spin, after each sweep.
    """

    states: Int8[np.ndarray, "cues spins"]
    overlaps: Float[np.ndarray, "cues patterns"]
    regimes: tuple[RegimeName, ...]
    energies: Float[np.ndarray, "sweeps cues"]


class MultitaskingHebbian(BaseEstimator):
    """A Hopfield network for patterns with blanks, which recalls several of them in one state.

    Args:
        beta: inverse temperature 1/T; the paramagnet ends at T = 1.
        mode: `supervised` groups the examples by label and couples their means, `unsupervised`
            couples every example, `storing` takes each row for an archetype of its own.
        random_state: seed of blanks in cues and of the dynamics.

    Attributes:
        patterns_: what is coupled: means, examples or archetypes, (rows, spins).
        scores_: what overlaps are measured with: the patterns' signs, or single examples where
            nothing says which belong together.
        labels_: label of each of `scores_`; its number where there are no labels.
        dilution_: d, mean share of blanks.
        quality_: r, estimated from the examples; 1 for archetypes.
        entropy_: rho = (1 - r^2) / (M r^2) of the examples; 0 for archetypes.
        examples_: M, mean number of examples of a pattern.
        count_: K, number of patterns; estimated where there are no labels.

    Source: Agliari and others, J. Stat. Mech. 2023, supervised and unsupervised Hebbian rules.
    """

    def __init__(
        self, beta: float = 20.0, mode: Mode = "supervised", random_state: int | None = None
    ) -> None:
        self.beta = beta
        self.mode = mode
        self.random_state = random_state

    def fit(
        self,
        examples: Shaped[np.ndarray, "examples spins"],
        labels: Sequence[object] | None = None,
    ) -> MultitaskingHebbian:
        """Learn from rows of -1, 0 (or not a number: blank) and 1.

        Labels group the examples of a teacher; without one they only name what is recalled.

        Raises:
            ValueError: other entries, a row that is all blank, labels that are missing or do not
                fit, examples that have nothing in common (r estimated <= 0), beta <= 0.
        """
        self._check()
        rows = ternary_rows(examples, "examples")
        _refuse_blank(rows)
        if self.mode == "supervised":
            self._teach(rows, _checked_labels(labels, len(rows)))
        elif self.mode == "unsupervised":
            self._gather(rows, labels)
        else:
            self._keep(rows, labels)
        self.dilution_ = float(np.mean(self._dilutions))
        self._remark()
        self._couple()
        return self

    def recall(
        self,
        cues: Shaped[np.ndarray, "cues spins"],
        sweeps: int = 60,
        archetypes: Shaped[np.ndarray, "patterns spins"] | None = None,
    ) -> Recall:
        """Heat-bath dynamics from each cue; blanks of a cue start as fair coins.

        Args:
            cues: rows of -1, 0 or not a number, and 1.
            sweeps: updates of every spin, at least 2.
            archetypes: patterns to measure overlaps with, where they are known; else `scores_`.

        Raises:
            ValueError: not fitted, or cues of another length or with other entries.
        """
        if not hasattr(self, "patterns_"):
            raise ValueError("the network has learned nothing yet: call fit")
        if sweeps < 2:
            raise ValueError(f"sweeps is {sweeps}; expected 2 or more")
        spins = self.patterns_.shape[1]
        rng = np.random.default_rng(self.random_state)
        starts = fill_blanks(ternary_rows(np.atleast_2d(cues), "cues", spins), rng)
        scores = self.scores_ if archetypes is None else archetypes
        scores = ternary_rows(scores, "archetypes", spins)
        trace = heat_bath(self.energy_, starts, self.beta, sweeps, rng, scores)
        overlaps = trace.mean_overlaps(sweeps - sweeps // 2)
        known = len(scores) == self.count_
        regimes = tuple(finite_name(m, scores) for m in overlaps) if known else ()
        return Recall(trace.states, overlaps, regimes, trace.energies / spins)

    def learned(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """What was learned, as plain arrays that `restore` takes back."""
        facts = {name: np.asarray(getattr(self, name)) for name in FACTS}
        arrays = {"patterns": self.patterns_, "scores": self.scores_}
        return {**arrays, "labels": self.labels_.astype(str), **facts}

    def restore(self, learned: dict[str, Shaped[np.ndarray, "..."]]) -> MultitaskingHebbian:
        """A network that has learned what `learned` gave; the arrays are not checked again."""
        self._check()
        self.patterns_, self.scores_ = learned["patterns"], learned["scores"]
        self.labels_ = learned["labels"]
        for name in FACTS:
            setattr(self, name, learned[name].item())
        self._couple()
        return self

    def _teach(
        self, rows: Int8[np.ndarray, "rows spins"], labels: Shaped[np.ndarray, " rows"]
    ) -> None:
        self.labels_, group = np.unique(labels, return_inverse=True)
        counts = np.bincount(group)
        if counts.max() > counts.min() * 2:
            warnings.warn(
                f"labels have {counts.min()} to {counts.max()} examples; the theory has one number",
                UserWarning,
                stacklevel=3,
            )
        groups = [rows[group == k] for k in range(len(counts))]
        means = np.stack([seen.mean(axis=0) for seen in groups])
        present = np.stack([(seen != 0).any(axis=0) for seen in groups])
        self.patterns_, self.scores_, self.count_ = means, np.sign(means), len(counts)
        self.examples_ = float(counts.mean())
        self._dilutions = 1 - present.mean(axis=1)
        self.power_ = float(np.mean(means[present] ** 2))
        # 1, but for entries that only some examples of a label have.
        squares = np.stack([np.square(seen).mean(axis=0) for seen in groups])
        self._set_quality(float(squares[present].mean()))

    def _gather(
        self, rows: Int8[np.ndarray, "rows spins"], labels: Sequence[object] | None
    ) -> None:
        self.patterns_ = self.scores_ = rows
        self.labels_ = np.arange(1, len(rows) + 1)
        if labels is not None:
            self.labels_, group = np.unique(_checked_labels(labels, len(rows)), return_inverse=True)
            self.scores_ = np.sign(
                np.stack([rows[group == k].sum(axis=0) for k in range(len(self.labels_))])
            )
        self._dilutions = (rows == 0).mean(axis=1)
        present = rows.shape[1] * (1 - self._dilutions.mean())
        common = common_directions(rows, present)
        if not len(common):
            raise ValueError(
                f"{len(rows)} examples have no pattern in common (r estimated <= 0); expected "
                "several examples of each pattern, or mode='storing'"
            )
        self.count_ = len(common)
        self.examples_ = len(rows) / len(common)
        # An archetype's direction has eigenvalue M r^2 + 1 - r^2 = M r^2 (1 + rho).
        self.power_ = float(common.mean() / self.examples_)
        self._set_quality(1.0)

    def _keep(self, rows: Int8[np.ndarray, "rows spins"], labels: Sequence[object] | None) -> None:
        self.patterns_ = self.scores_ = rows
        self.labels_ = np.arange(1, len(rows) + 1)
        if labels is not None:
            self.labels_ = _checked_labels(labels, len(rows))
        self._dilutions = (rows == 0).mean(axis=1)
        self.count_, self.examples_, self.power_ = len(rows), 1.0, 1.0
        self.quality_, self.entropy_ = 1.0, 0.0

    def _set_quality(self, square: float) -> None:
        """r from the power of the means, r^2 + (square - r^2) / M, with entries' mean square."""
        many = self.examples_
        if many == 1:
            warnings.warn(
                "one example of each pattern: its quality r cannot be estimated and is taken for 1",
                UserWarning,
                stacklevel=4,
            )
            self.quality_, self.entropy_ = 1.0, 0.0
            return
        agreement = (many * self.power_ - square) / (many - 1)
        if agreement <= 0:
            raise ValueError(
                f"examples of one label agree no more than chance (r^2 estimated {agreement:.3g}); "
                "expected noisy copies of one pattern under each label"
            )
        self.quality_ = math.sqrt(min(1.0, agreement))
        self.entropy_ = max(0.0, self.power_ / agreement - 1)

    def _remark(self) -> None:
        lowest, highest = self._dilutions.min(), self._dilutions.max()
        spins = self.patterns_.shape[1]
        if highest - lowest > UNEQUAL:
            warnings.warn(
                f"patterns have {lowest:.2f} to {highest:.2f} blanks; the theory has one dilution",
                UserWarning,
                stacklevel=3,
            )
        if self.count_ > math.log(spins) and self.dilution_ < MILD:
            warnings.warn(
                f"{self.count_} patterns are more than log N = {math.log(spins):.1f} at dilution "
                f"{self.dilution_:.2f}: the last ones will not be told from chance",
                UserWarning,
                stacklevel=3,
            )

    def _couple(self) -> None:
        terms = len(self.patterns_) / self.count_
        self.energy_ = pattern_energy(self.patterns_, self.dilution_, self.power_, terms)

    def _check(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta:g}; expected an inverse temperature above 0")
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; expected {', '.join(MODES)}")


FACTS = ("dilution_", "quality_", "entropy_", "examples_", "count_", "power_")


def ternary_rows(
    values: Shaped[np.ndarray, "rows spins"], what: str, spins: int | None = None
) -> Int8[np.ndarray, "rows spins"]:
    """Rows of -1, 0 and 1 as bytes; not a number becomes 0, a blank.

    Raises:
        ValueError: naming row and column (from 1) of another entry, or a wrong shape.
    """
    rows = np.asarray(values)
    if rows.ndim != 2 or not rows.size or rows.dtype.kind not in "biuf":
        raise ValueError(
            f"{what} have shape {rows.shape} of {rows.dtype}; expected a matrix of numbers"
        )
    if spins is not None and rows.shape[1] != spins:
        raise ValueError(f"{what} have {rows.shape[1]} entries; expected {spins} as learned")
    rows = np.where(np.isnan(rows), 0, rows) if rows.dtype.kind == "f" else rows.astype(np.int64)
    wrong = np.argwhere((rows != 0) & (np.abs(rows) != 1))
    if len(wrong):
        row, column = (int(i) for i in wrong[0])
        raise ValueError(
            f"{what}, row {row + 1}, column {column + 1}: got {rows[row, column]:g}; expected "
            "-1, 1, or 0 (blank)"
        )
    return rows.astype(np.int8)


def common_directions(
    rows: Int8[np.ndarray, "rows spins"], present: float
) -> Float[np.ndarray, " patterns"]:
    """Eigenvalues of the examples' overlaps beyond what unrelated examples would have.

    Unrelated rows have eigenvalues of about 1, at most (1 + sqrt(rows / entries))^2.

    Args:
        rows: examples.
        present: mean number of non-blank entries of a row.
    """
    values = rows.astype(np.float32)
    gram = values @ values.T if len(rows) <= rows.shape[1] else values.T @ values
    eigenvalues = np.linalg.eigvalsh(gram / present)
    # A tenth on top: the edge of finitely many rows is not sharp.
    return eigenvalues[eigenvalues > 1.1 * (1 + math.sqrt(len(rows) / present)) ** 2]


def finite_name(
    overlaps: Float[np.ndarray, " patterns"], patterns: Int[np.ndarray, "patterns spins"]
) -> RegimeName:
    """Name of a finite network's state: overlaps that chance could give count as none."""
    present = np.count_nonzero(patterns) / len(patterns)
    return name_of(overlaps, none=CHANCE * math.sqrt(present) / patterns.shape[1], equal=LEVEL)


def _checked_labels(labels: Sequence[object] | None, rows: int) -> Shaped[np.ndarray, " rows"]:
    if labels is None:
        raise ValueError("mode 'supervised' needs a label for each example; or take 'unsupervised'")
    found = np.asarray(labels)
    if found.shape != (rows,):
        raise ValueError(f"labels have shape {found.shape}; expected one for each of {rows} rows")
    return found


def _refuse_blank(rows: Int8[np.ndarray, "rows spins"]) -> None:
    blank = np.flatnonzero(~rows.any(axis=1))
    if len(blank):
        raise ValueError(f"examples, row {int(blank[0]) + 1}: all blank; expected some -1 or 1")
