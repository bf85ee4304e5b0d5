"""Pictures as spins: one spin per pixel."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Int8, Real


def binarise(
    images: Real[np.ndarray, "images *pixels"], threshold: float | None = None
) -> Int8[np.ndarray, "images spins"]:
    """+1 where a pixel is brighter than `threshold`, else -1.

    Args:
        images: pixels on any scale.
        threshold: on the pixels' own scale; None takes each picture's median.
    """
    flat = np.asarray(images).reshape(len(images), -1)
    level = np.median(flat, axis=1, keepdims=True) if threshold is None else threshold
    return np.where(flat > level, 1, -1).astype(np.int8)


def flip(
    states: Int[np.ndarray, "states spins"], share: float, rng: np.random.Generator
) -> Int8[np.ndarray, "states spins"]:
    """A copy with `round(share N)` spins of each state turned, drawn without repetition.

    Raises:
        ValueError: a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of flipped spins must lie in [0, 1], not {share}")
    flipped = np.array(states, dtype=np.int8)
    turned = rng.random(flipped.shape).argsort(axis=1)[:, : round(share * flipped.shape[1])]
    rows = np.arange(len(flipped))[:, None]
    flipped[rows, turned] *= -1
    return flipped
