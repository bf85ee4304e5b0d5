"""Other ways to recall patterns with blanks: the rivals of the multitasking network."""

from __future__ import annotations

from itertools import product

import numpy as np
from jaxtyping import Int8

from peira.memory.multitasking_hebbian.patterns import Patterns, fill_blanks, ladder_spins
from peira.memory.spins import PatternEnergy


def hopfield(patterns: Patterns, rng: np.random.Generator) -> PatternEnergy:
    """The standard network: blanks are filled by fair coins, so that d = 0."""
    filled = fill_blanks(patterns, rng)
    return PatternEnergy(filled, P=2, weights=1 / filled.shape[1])


def diluted_links(patterns: Patterns, cut: float, rng: np.random.Generator) -> PatternEnergy:
    """Blanks filled by fair coins, each coupling cut with probability `cut`, others / (1 - cut).

    Any symmetric couplings are patterns: with J + s = L L^T the columns of L, because self terms
    do not count. Builds the N x N matrix.
    """
    filled = fill_blanks(patterns, rng).astype(float)
    spins = filled.shape[1]
    kept = np.triu(rng.random((spins, spins)) >= cut, 1)
    couplings = filled.T @ filled * (kept + kept.T) / (spins * (1 - cut))
    lowest = np.linalg.eigvalsh(couplings)[0]
    factor = np.linalg.cholesky(couplings + (1e-3 - lowest) * np.eye(spins))
    return PatternEnergy(factor.T, P=2)


def pseudo_inverse(patterns: Patterns) -> PatternEnergy:
    """J = xi^T C^-1 xi / N with the patterns' overlaps C: corrects for patterns that are alike.

    Raises:
        ValueError: a pattern that follows from the others.
    """
    spins = patterns.shape[1]
    values, vectors = np.linalg.eigh(patterns.astype(float) @ patterns.T / spins)
    if values[0] < 1e-9 * values[-1]:
        raise ValueError("the pseudo-inverse rule needs linearly independent patterns")
    root = vectors / np.sqrt(values)
    return PatternEnergy(root.T @ patterns, P=2, weights=1 / spins)


def block_oracle(patterns: Patterns, rng: np.random.Generator) -> Int8[np.ndarray, " spins"]:
    """The best that one network per block of known blanks could say.

    Each block recalls its first pattern or that pattern's negative. Where patterns overlap only
    one can be recalled, so all choices of signs are tried for the largest sum of overlaps.
    """
    best, most = ladder_spins(patterns, rng), -1.0
    for signs in product((1, -1), repeat=len(patterns) - 1):
        signed = patterns * np.array((1, *signs))[:, None]
        state = ladder_spins(signed, rng)
        total = float(np.abs(signed @ state.astype(float)).sum())
        if total > most:
            best, most = state, total
    return best
