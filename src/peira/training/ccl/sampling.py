"""From losses to easy-biased subsets: scores, and weighted sampling without replacement."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int

from peira.data.errors import DataError

Transform = Literal["inverse", "exp", "hard", "random"]
TRANSFORMS: tuple[Transform, ...] = ("inverse", "exp", "hard", "random")
# Keras clips probabilities here, so that no published loss is smaller.
FLOOR = 1e-7


def check_losses(losses: npt.ArrayLike) -> Float[np.ndarray, " n"]:
    """Losses as numbers; raises `DataError` naming the first sample whose loss is none.

    Losses are finite and not negative, and some are above zero.
    """
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise DataError("not losses", value=f"shape {values.shape}", expected="one per sample")
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(wrong):
        raise DataError(
            f"loss of sample {wrong[0]} (from 0)", value=float(values[wrong[0]]),
            expected="a finite number, 0 or more",
        )  # fmt: skip
    if not values.any():
        raise DataError("all losses are zero: nothing tells easy from hard")
    return values


def scores_from_losses(
    losses: npt.ArrayLike, transform: Transform = "inverse", lam: float = 0.5, floor: float = FLOOR
) -> Float[np.ndarray, " n"]:
    """Scores that samples are drawn in proportion to.

    Args:
        losses: cross entropy of each training sample under a trained model, nats.
        transform: "inverse", 1 / loss (easy first, the paper's default); "exp",
            lam exp(-lam loss), whose range is far smaller; "hard", the loss itself; "random", 1.
        lam: of "exp", per nat; the official code has 5, 0.5 and 0.25.
        floor: smaller losses count as this much (Keras clips there).

    Returns:
        Positive scores (n,).

    Raises:
        DataError: losses that are none, an unknown transform, `lam` or `floor` not above zero.
    """
    values = check_losses(losses)
    for name, number in (("lam", lam), ("floor", floor)):
        if not number > 0:
            raise DataError(f"{name} of the scores", value=number, expected="above 0")
    if transform == "inverse":
        return 1 / np.maximum(values, floor)
    if transform == "hard":
        return np.maximum(values, floor)
    if transform == "random":
        return np.ones_like(values)
    if transform == "exp":
        scores = lam * np.exp(-lam * values)
        # As in the official code: what underflows gets the smallest score there is.
        return np.where(scores > 0, scores, scores[scores > 0].min(initial=lam))
    raise DataError("no such transform", value=transform, expected=", ".join(TRANSFORMS))


def sampling_probabilities(scores: npt.ArrayLike) -> Float[np.ndarray, " n"]:
    """Scores over their sum: probabilities of the first sample drawn."""
    values = check_scores(scores)
    # The largest first, so that scores near the largest float do not add up to infinity.
    values = values / values.max()
    return values / values.sum()


def check_scores(scores: npt.ArrayLike) -> Float[np.ndarray, " n"]:
    """Scores as numbers: finite, not negative, not all zero; raises `DataError` otherwise."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise DataError("not scores", value=f"shape {values.shape}", expected="one per sample")
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(wrong):
        raise DataError(
            f"score of sample {wrong[0]} (from 0)", value=float(values[wrong[0]]),
            expected="a finite number, 0 or more",
        )  # fmt: skip
    if not values.any():
        raise DataError("all scores are zero")
    return values


def effective_sample_size(scores: npt.ArrayLike) -> float:
    """(sum p)^2 / sum p^2: how many equally likely samples would be drawn as unevenly."""
    p = sampling_probabilities(scores)
    return float(1 / np.square(p).sum())


def weighted_subset(
    scores: Float[np.ndarray, " n"], size: int, rng: np.random.Generator
) -> Int[np.ndarray, " size"]:
    """Distinct indices, drawn one after the other in proportion to the scores that are left.

    The law of `rng.choice(n, size, replace=False, p=scores / scores.sum())`, in O(n): the `size`
    smallest of independent exponential variables of rate `scores` (Efraimidis and Spirakis 2006).
    The indices come in random order.

    Raises:
        DataError: fewer positive scores than `size`, or a size outside 1 to n.
    """
    if not 1 <= size <= len(scores):
        raise DataError("size of the subset", value=size, expected=f"1 to {len(scores)}")
    possible = int(np.count_nonzero(scores))
    if possible < size:
        raise DataError(
            f"only {possible} of {len(scores)} samples have a positive score, a round needs {size}",
            expected="a smaller end, or scores with a floor above zero",
        )
    # The exponential that a score of zero never reaches is infinite.
    with np.errstate(divide="ignore"):
        keys = rng.standard_exponential(len(scores)) / scores
    chosen = np.argpartition(keys, size - 1)[:size]
    return rng.permutation(chosen)


def easiest(losses: npt.ArrayLike, keep: float) -> Int[np.ndarray, " kept"]:
    """Indices of the share `keep` of samples with the smallest losses: loss-based data pruning."""
    values = check_losses(losses)
    if not 0 < keep <= 1:
        raise DataError("share of the data to keep", value=keep, expected="in (0, 1]")
    return np.sort(np.argsort(values, kind="stable")[: max(1, round(keep * len(values)))])


def rank_suspects(losses: npt.ArrayLike) -> Int[np.ndarray, " n"]:
    """Indices of samples from the largest loss to the smallest: wrong labels come first.

    Losses of a model that has not yet learnt its labels by heart tell best: of an early one, or
    of samples that it was not trained on.
    """
    return np.argsort(-check_losses(losses), kind="stable")
