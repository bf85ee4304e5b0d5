"""The memory as a scikit-learn classifier: learned from labelled examples, recalled from cues."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int8
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from peira.memory.dense_hebbian.examples import Mode, entropy
from peira.memory.dense_hebbian.plefka import plefka
from peira.memory.dense_hebbian.theory import critical_load
from peira.memory.spins import PatternEnergy, heat_bath


@dataclass(frozen=True)
class Retrieval:
    """What came back for each cue.

    Attributes:
        states: last states of +-1 spins; with Plefka's equations the signs of the magnetisations.
        overlaps: Mattis overlap of each state with the prototype of each class, in [-1, 1]; with
            centring the overlap with what tells the class from the mean.
        energies: after each sweep, per spin; one row with Plefka's equations.
    """

    states: Int8[np.ndarray, "cues spins"]
    overlaps: Float[np.ndarray, "cues classes"]
    energies: Float[np.ndarray, "sweeps cues"]


class DenseHebbian(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """P-body Hebbian memory of the classes' archetypes, which only noisy examples show.

    Supervised, H = - N^(1-P) sum_mu R_mu^(-P/2) e_P(etabar^mu_i sigma_i), with etabar^mu the mean
    of the class's examples and R_mu its mean square; unsupervised, the product over the P spins is
    formed for each example and then averaged (Agliari et al. 2023). Sums run over distinct spins.

    Args:
        P: how many spins interact, 2 to 6. Odd P tells a state from its mirror image.
        mode: "supervised" or "unsupervised".
        centre: couple what differs from the mean over classes (Amit, Gutfreund and Sompolinsky
            1987). Pictures that share their background fall into one common state without it; with
            it classes are told apart, and the recalled state shows the differences.
        random_state: seed of the heat bath.

    Attributes:
        classes_: labels, sorted.
        averages_: mean of each class's examples, (classes, spins).
        prototypes_: their signs, the best guess of the archetypes.
        centre_: what was subtracted, the mean of averages_, or zeros.
        quality_: r estimated from how far examples of one class agree; NaN with one example each.
        entropy_: rho = (1 - r^2) / (M r^2) with the mean M; 0 with one example each.
        load_: K / N^(P-1).
        critical_load_: where retrieval dies at T = 0, for structureless patterns.
    """

    def __init__(
        self,
        P: int = 4,
        mode: Mode = "supervised",
        centre: bool = False,
        random_state: int = 0,
    ) -> None:
        self.P = P
        self.mode = mode
        self.centre = centre
        self.random_state = random_state

    def fit(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike | None = None,
        classes: Sequence[Any] | None = None,
    ) -> Self:
        """Learn from examples.

        Args:
            X: (n, N) of -1/+1, 0/1 or bool.
            y: (n,) labels; without them each row is a pattern of its own.
            classes: labels that must be there; those of `y` where none are given.

        Raises:
            ValueError: values that are not binary, P above N or outside 2..6, an unknown mode, a
                class without examples or whose examples agree no more than coins do (r = 0).

        Warns:
            UserWarning: odd P, or a load beyond the critical one.
        """
        if self.mode not in ("supervised", "unsupervised"):
            raise ValueError(f"mode must be supervised or unsupervised, not {self.mode!r}")
        spins = as_spins(X)
        labels = np.arange(len(spins)) if y is None else np.asarray(y)
        if labels.shape != (len(spins),):
            raise ValueError(f"{len(spins)} examples but labels of shape {labels.shape}")
        self.n_features_in_ = spins.shape[1]
        self.classes_ = np.unique(labels if classes is None else np.asarray(classes))
        index = _index(labels, self.classes_)
        counts = np.bincount(index, minlength=len(self.classes_))
        sums = np.zeros((len(counts), spins.shape[1]))
        np.add.at(sums, index, spins)
        self.averages_ = sums / counts[:, None]
        self.prototypes_ = np.where(self.averages_ >= 0, 1, -1).astype(np.int8)
        qualities = _qualities(self.averages_, counts, self.classes_)
        repeated = counts.max() > 1
        self.quality_ = float(np.sqrt((qualities**2).mean())) if repeated else math.nan
        self.entropy_ = entropy(self.quality_, float(counts.mean())) if repeated else 0.0
        self.centre_ = self.averages_.mean(axis=0) * self.centre
        self._energy = self._couple(spins, index, counts, qualities)
        self.load_ = len(counts) / float(spins.shape[1]) ** (self.P - 1)
        self.critical_load_ = critical_load(self.P, 0.0, self.entropy_)
        self._warn()
        return self

    def retrieve(
        self,
        cues: npt.ArrayLike,
        T: float = 0.0,
        sweeps: int = 20,
        solver: Literal["monte-carlo", "plefka"] = "monte-carlo",
    ) -> Retrieval:
        """Let the network relax from each cue.

        Args:
            cues: (n, N) of -1/+1, 0/1 or bool.
            T: temperature; a fully retrieved pattern's field is 1/(P-1)! in its units.
            sweeps: of the heat bath.
            solver: Plefka's second-order equations find the mean state at T > 0 without sampling.

        Raises:
            ValueError: cues of another length or not binary, T below 0, or 0 with "plefka".
        """
        check_is_fitted(self)
        if not (math.isfinite(T) and T >= 0):
            raise ValueError(f"the temperature must be 0 or more, not {T:g}")
        states = as_spins(cues)
        if states.shape[1] != self.n_features_in_:
            raise ValueError(
                f"cues have {states.shape[1]} spins, the memory has {self.n_features_in_}"
            )
        if solver == "plefka":
            if T == 0:
                raise ValueError("plefka needs a temperature above 0: use monte-carlo at T = 0")
            signs = plefka(self._energy, states, 1 / T).m >= 0
            states = np.where(signs, 1, -1).astype(np.int8)
            energies = self._energy.energy(states)[None]
        elif solver == "monte-carlo":
            rng = np.random.default_rng(self.random_state)
            beta = math.inf if T == 0 else 1 / T
            trace = heat_bath(self._energy, states, beta, sweeps, rng)
            states, energies = trace.states, trace.energies
        else:
            raise ValueError(f"solver must be monte-carlo or plefka, not {solver!r}")
        if self.centre:
            # Spins on which all classes agree feel no field.
            same = (self.averages_ == self.centre_).all(axis=0)
            states[:, same] = np.where(self.centre_[same] >= 0, 1, -1)
        return Retrieval(states, self._overlaps(states), energies / self.n_features_in_)

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """Label of the class whose prototype the relaxed state overlaps most, at T = 0."""
        return self.answers(self.retrieve(X).states)

    def answers(self, states: Int8[np.ndarray, "cues spins"]) -> npt.NDArray[Any]:
        """Label of the class that each state of spins overlaps most, as it is."""
        labels: npt.NDArray[Any] = self.classes_[self._overlaps(states).argmax(axis=1)]
        return labels

    def _couple(
        self,
        spins: Int8[np.ndarray, "examples spins"],
        index: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int64],
        qualities: Float[np.ndarray, " classes"],
    ) -> PatternEnergy:
        scale = float(spins.shape[1]) ** (1 - self.P)
        if self.mode == "supervised":
            rows = self.averages_ - self.centre_
            norms = (rows**2).mean(axis=1)
            if not norms.all():
                raise ValueError("nothing is left of a class after centring: give more classes")
            return PatternEnergy(rows, self.P, scale * norms ** (-self.P / 2))
        products = qualities ** (2 * self.P)
        products += (1 - products) / counts
        weights = scale / (counts * np.sqrt(products))
        rows = spins - self.centre_ if self.centre else spins
        return PatternEnergy(rows, self.P, weights[index])

    def _overlaps(
        self, states: Int8[np.ndarray, "cues spins"]
    ) -> Float[np.ndarray, "cues classes"]:
        templates = self.prototypes_.astype(float)
        if self.centre:
            templates = self.averages_ - self.centre_
        found: Float[np.ndarray, "cues classes"] = states @ templates.T
        return found / np.abs(templates).sum(axis=1)

    def _warn(self) -> None:
        if self.P % 2:
            warnings.warn(
                f"P = {self.P} is odd: the mirror image of a pattern is not recalled, "
                "so cues with more than half of the spins wrong never are",
                UserWarning,
                stacklevel=3,
            )
        if self.load_ > self.critical_load_:
            warnings.warn(
                f"load {self.load_:.3g} is beyond the critical {self.critical_load_:.3g} of random "
                f"patterns at P = {self.P}, rho = {self.entropy_:.3g}: retrieval is not expected",
                UserWarning,
                stacklevel=3,
            )


def as_spins(X: npt.ArrayLike) -> Int8[np.ndarray, "rows spins"]:
    """-1/+1, 0/1 or bool as -1/+1.

    Raises:
        ValueError: no matrix, or another value: names its row, its column and the remedy.
    """
    values = np.asarray(X)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"(n, N) binary values expected, not an array of shape {values.shape}")
    if values.dtype == bool:
        return np.where(values, 1, -1).astype(np.int8)
    low = -1 if (values == -1).any() else 0
    wrong = np.argwhere((values != low) & (values != 1))
    if len(wrong):
        row, column = wrong[0]
        raise ValueError(
            f"row {row + 1}, column {column + 1}: {values[row, column]} where {low} or 1 is "
            "expected; make pictures binary with peira.memory.binarise(images, threshold)"
        )
    return np.where(values == 1, 1, -1).astype(np.int8)


def _index(labels: npt.NDArray[Any], classes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    missing = np.setdiff1d(classes, labels)
    if len(missing):
        raise ValueError(f"class {missing[0]} has 0 examples: leave it out or add one")
    unknown = np.setdiff1d(labels, classes)
    if len(unknown):
        raise ValueError(f"label {unknown[0]} is none of the classes given")
    return np.searchsorted(classes, labels).astype(np.int64)


def _qualities(
    averages: Float[np.ndarray, "classes spins"],
    counts: npt.NDArray[np.int64],
    classes: npt.NDArray[Any],
) -> Float[np.ndarray, " classes"]:
    """r of each class from E[etabar^2] = r^2 + (1 - r^2)/M; 1 where there is one example."""
    many = counts > 1
    squares = np.ones(len(counts))
    norms = (averages[many] ** 2).mean(axis=1)
    squares[many] = (counts[many] * norms - 1) / (counts[many] - 1)
    if (squares <= 0).any():
        worst = int(squares.argmin())
        raise ValueError(
            f"class {classes[worst]}: its {counts[worst]} examples agree no more than coins do "
            "(r = 0), there is nothing to learn"
        )
    return np.sqrt(squares)
