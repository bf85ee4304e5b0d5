"""Patterns with blanks, noisy examples of them, and spins that follow several of them at once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int8, Shaped

Patterns = Shaped[np.ndarray, "patterns spins"]


def ternary_patterns(
    patterns: int, spins: int, dilution: float, rng: np.random.Generator, exact: bool = False
) -> Int8[np.ndarray, "patterns spins"]:
    """Archetypes: entries +1, -1 with probability (1-d)/2 each, 0 (blank) with probability d.

    Args:
        patterns, spins: K and N.
        dilution: d, share of blanks, from 0 to below 1.
        rng: source of the draws.
        exact: every pattern has exactly round(d N) blanks instead of d N on average.
    """
    check_dilution(dilution)
    signs = 2 * rng.integers(0, 2, (patterns, spins), dtype=np.int8) - 1
    if exact:
        order = rng.random((patterns, spins)).argsort(axis=1).argsort(axis=1)
        present = order >= round(dilution * spins)
    else:
        present = rng.random((patterns, spins)) >= dilution
    return np.where(present, signs, 0).astype(np.int8)


def noisy_examples(
    archetypes: Patterns, quality: float, examples: int, rng: np.random.Generator
) -> Int8[np.ndarray, "patterns examples spins"]:
    """`examples` copies of each archetype: an entry keeps its sign with probability (1+r)/2.

    Blanks stay blank. `quality` is r, from 0 (exclusive) to 1.
    """
    check_quality(quality)
    shape = (len(archetypes), examples, archetypes.shape[1])
    kept = rng.random(shape, dtype=np.float32) < (1 + quality) / 2
    return (np.where(kept, 1, -1) * archetypes[:, None, :]).astype(np.int8)


def mean_examples(
    archetypes: Patterns, quality: float, examples: int, rng: np.random.Generator
) -> Float[np.ndarray, "patterns spins"]:
    """What a teacher sees: the mean over `examples` noisy copies of each archetype.

    Distributed as `noisy_examples(...).mean(axis=1)`, drawn as a binomial in O(K N).
    """
    check_quality(quality)
    right = rng.binomial(examples, (1 + quality) / 2, archetypes.shape)
    return (2 * right / examples - 1) * archetypes


def ladder_spins(patterns: Patterns, rng: np.random.Generator) -> Int8[np.ndarray, " spins"]:
    """The hierarchical state: the first pattern's sign where it is not blank, else the second's...

    Where all patterns are blank the spin is a fair coin.
    """
    present = patterns != 0
    first = present.argmax(axis=0)
    signs = np.sign(patterns[first, np.arange(patterns.shape[1])])
    return np.where(present.any(axis=0), signs, _coins(patterns.shape[1:], rng)).astype(np.int8)


def mixed_spins(patterns: Patterns, rng: np.random.Generator) -> Int8[np.ndarray, " spins"]:
    """The symmetric mixture: the sign of the sum of all patterns, a fair coin where that is 0."""
    total = np.sign(patterns.sum(axis=0))
    return np.where(total != 0, total, _coins(total.shape, rng)).astype(np.int8)


def fill_blanks(
    values: Shaped[np.ndarray, "*shape"], rng: np.random.Generator
) -> Int8[np.ndarray, "*shape"]:
    """Signs of the values; a fair coin where a value is 0."""
    return np.where(values != 0, np.sign(values), _coins(values.shape, rng)).astype(np.int8)


def dataset_entropy(quality: float, examples: float) -> float:
    """rho = (1 - r^2) / (M r^2): the noise that M examples of quality r leave in their mean."""
    check_quality(quality)
    return (1 - quality**2) / (examples * quality**2)


def check_dilution(dilution: float) -> None:
    """Raise `ValueError` for a share of blanks that leaves no pattern."""
    if not 0 <= dilution < 1:
        raise ValueError(f"dilution is {dilution:g}; expected a share of blanks in [0, 1)")


def check_quality(quality: float) -> None:
    """Raise `ValueError` for examples that say nothing about their archetype."""
    if not 0 < quality <= 1:
        raise ValueError(f"quality r is {quality:g}; expected more than 0 and at most 1")


def _coins(shape: tuple[int, ...], rng: np.random.Generator) -> Int8[np.ndarray, "*shape"]:
    return 2 * rng.integers(0, 2, shape, dtype=np.int8) - 1
