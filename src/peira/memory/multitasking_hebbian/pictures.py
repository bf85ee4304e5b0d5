"""Patterns with real blanks: pictures on one canvas, each blank outside its own window."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int8, Real

from peira.data import DataError
from peira.memory.spins import binarise


def paste(
    images: Real[np.ndarray, "images height width"],
    canvas: int,
    threshold: float,
    rng: np.random.Generator,
) -> Int8[np.ndarray, "images spins"]:
    """Black-and-white pictures at drawn places of a square canvas; they may overlap.

    Args:
        images: pixels on any scale.
        canvas: side of the canvas in pixels.
        threshold: brighter pixels are +1, others -1.
        rng: draws the places.

    Returns:
        One row of canvas^2 entries per picture, 0 outside its window.

    Raises:
        DataError: a canvas smaller than the pictures.
    """
    count, height, width = images.shape
    if canvas < max(height, width):
        raise DataError(
            "canvas too small", value=canvas, expected=f"a side of {max(height, width)} or more"
        )
    signs = binarise(images, threshold).reshape(images.shape)
    pasted = np.zeros((count, canvas, canvas), np.int8)
    tops = rng.integers(0, canvas - height + 1, count)
    lefts = rng.integers(0, canvas - width + 1, count)
    for picture, top, left, sign in zip(pasted, tops, lefts, signs, strict=True):
        picture[top : top + height, left : left + width] = sign
    return pasted.reshape(count, -1)


def quadrants(
    image: Real[np.ndarray, "height width"], threshold: float
) -> Int8[np.ndarray, "4 spins"]:
    """The four quadrants of one picture, each a pattern that is blank elsewhere (d = 3/4)."""
    height, width = image.shape
    signs = binarise(image[None], threshold).reshape(height, width)
    lower, right = np.arange(height) >= height // 2, np.arange(width) >= width // 2
    number = 2 * lower[:, None] + right
    return np.stack([np.where(number == k, signs, 0).ravel() for k in range(4)]).astype(np.int8)
