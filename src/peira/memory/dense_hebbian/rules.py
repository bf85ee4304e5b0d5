"""What a dense Hebbian network is compared with: other memories of the same patterns."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int8, Real
from scipy.special import softmax


def pseudo_inverse(
    patterns: Real[np.ndarray, "K N"],
    cues: Int8[np.ndarray, "cues N"],
    rng: np.random.Generator,
    sweeps: int = 20,
) -> Int8[np.ndarray, "cues N"]:
    """Hopfield network with the projector on the patterns (Personnaz, Guyon and Dreyfus 1985).

    Spins follow their fields in random order, without self-couplings; zero fields change nothing.
    """
    projector = np.linalg.pinv(np.asarray(patterns, float)) @ patterns
    np.fill_diagonal(projector, 0.0)
    states = cues.astype(float)
    for _ in range(sweeps):
        before = states.copy()
        for i in rng.permutation(states.shape[1]):
            fields = states @ projector[i]
            states[:, i] = np.where(np.abs(fields) > 1e-12, np.sign(fields), states[:, i])
        if (states == before).all():
            break
    return states.astype(np.int8)


def softmax_memory(
    patterns: Real[np.ndarray, "K N"],
    cues: Int8[np.ndarray, "cues N"],
    beta: float | None = None,
    steps: int = 20,
) -> Int8[np.ndarray, "cues N"]:
    """Modern Hopfield network: state <- softmax(beta state X^T) X (Ramsauer et al. 2021), signs.

    `beta` is 1/sqrt(N) where none is given, as in attention.
    """
    stored = np.asarray(patterns, float)
    scale = 1 / np.sqrt(stored.shape[1]) if beta is None else beta
    states: Float[np.ndarray, "cues N"] = cues.astype(float)
    for _ in range(steps):
        states = softmax(scale * states @ stored.T, axis=1) @ stored
    return np.where(states >= 0, 1, -1).astype(np.int8)


def nearest_mean(
    patterns: Real[np.ndarray, "K N"], cues: Int8[np.ndarray, "cues N"]
) -> Int8[np.ndarray, "cues N"]:
    """Signs of the pattern at the smallest Euclidean distance from each cue."""
    stored = np.asarray(patterns, float)
    nearest = (cues @ stored.T - (stored**2).sum(axis=1) / 2).argmax(axis=1)
    return np.where(stored[nearest] >= 0, 1, -1).astype(np.int8)
