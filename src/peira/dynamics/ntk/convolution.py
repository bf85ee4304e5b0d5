"""Kernels of convolutional networks with infinitely many channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from peira.data import DataError
from peira.dynamics.probes.infinite import (
    Activation,
    Floats,
    InfiniteKernels,
    activation_of,
    refuse_beyond_memory,
)
from peira.engine.errors import PeiraError

# Numbers of one block of rows: 0.25 GB for each of a few arrays.
ROOM = 2**25


def convolutional_kernels(
    x: npt.ArrayLike,
    x2: npt.ArrayLike | None = None,
    *,
    depth: int,
    filter_size: int = 3,
    pooling: Literal["none", "average"] = "none",
    activation: str | Callable[..., object] | Activation = "relu",
    weight_var: float = 1.0,
    bias_var: float = 0.0,
    gain: float = 1.0,
) -> InfiniteKernels:
    """NNGP and tangent kernel of a convolutional network, the recursion on patch covariances.

    `depth` - 1 convolutions (stride 1, zero padding to the same size), each followed by the
    activation, then a dense layer on all positions (pooling "none") or on their average. Weights
    are scaled by the root of fan-in as in the fully connected case (Novak et al. 2019; Arora et
    al. 2019).

    Args:
        x, x2: images, (n, height, width, channels) and (m, height, width, channels).
        depth: weight layers.
        filter_size: an odd number of pixels.
        pooling: with "average" all pairs of positions correlate: (height * width)^2 numbers for
            each pair of images instead of height * width.
        activation, weight_var, bias_var, gain: as in `kernels`.

    Returns:
        (n, m) each, float64.

    Raises:
        DataError: images that are no numbers or differ in size.
        PeiraError: settings that cannot be, kernels beyond the memory.
    """
    left = _images(x, "x")
    right = left if x2 is None else _images(x2, "x2")
    if left.shape[1:] != right.shape[1:]:
        raise DataError("x2 differs from x", value=right.shape[1:], expected=f"{left.shape[1:]}")
    if depth < 2 or filter_size < 1 or filter_size % 2 == 0:
        raise PeiraError(
            f"depth {depth}, filter_size {filter_size}; expected 2 or more, and an odd size"
        )
    if pooling not in ("none", "average"):
        raise PeiraError(f"pooling is {pooling!r}; expected 'none' or 'average'")
    refuse_beyond_memory(len(left), len(right))
    network = _Network(
        activation_of(activation), depth, filter_size, weight_var, bias_var, weight_var * gain**2
    )
    places = left.shape[1] * left.shape[2]
    size = len(right) * (places if pooling == "none" else places**2)
    step = max(1, ROOM // size)
    nngp, ntk = (np.empty((len(left), len(right))) for _ in range(2))
    for start in range(0, len(left), step):
        rows = slice(start, start + step)
        nngp[rows], ntk[rows] = network.block(left[rows], right, pooling == "average")
    return InfiniteKernels(nngp, ntk)


class _Network:
    """The settings, and the recursion for one block of images."""

    def __init__(
        self,
        dual: Activation,
        depth: int,
        filter_size: int,
        weight_var: float,
        bias_var: float,
        scale: float,
    ) -> None:
        self.dual, self.depth, self.reach = dual, depth, filter_size // 2
        self.weight_var, self.bias_var, self.scale = weight_var, bias_var, scale

    def block(self, left: Floats, right: Floats, pooled: bool) -> tuple[Floats, Floats]:
        """Both kernels of two sets of images.

        Covariances are (height, width, n, m) for equal positions, or (height, width, height,
        width, n, m) for all pairs, whose two positions shift together under a filter.
        """
        layers = [self._variances(part) for part in (left, right)]
        channels = left.shape[-1]
        pattern = "nhwc,mijc->hwijnm" if pooled else "nhwc,mhwc->hwnm"
        cov = np.einsum(pattern, left, right, optimize=True) / channels
        nngp = self.weight_var * self._filtered(cov) + self.bias_var
        ntk = nngp
        for layer in range(self.depth - 1):
            value, slope = self._activated(nngp, layers[0][layer], layers[1][layer], pooled)
            moved = slope * ntk
            if layer == self.depth - 2:
                axes = tuple(range(value.ndim - 2))
                nngp = self.scale * value.mean(axis=axes) + self.bias_var
                return nngp, self.scale * moved.mean(axis=axes) + nngp
            nngp = self.scale * self._filtered(value) + self.bias_var
            ntk = self.scale * self._filtered(moved) + nngp
        raise AssertionError("depth is 2 or more")

    def _variances(self, images: Floats) -> list[Floats]:
        """Variance of every position and image before each activation, (height, width, n)."""
        start = np.einsum("nhwc,nhwc->hwn", images, images)[..., None] / images.shape[-1]
        found = [self.weight_var * self._filtered(start) + self.bias_var]
        for _ in range(self.depth - 2):
            square = self.dual.square(found[-1].ravel()).reshape(found[-1].shape)
            found.append(self.scale * self._filtered(square) + self.bias_var)
        return [variance[..., 0] for variance in found]

    def _activated(
        self, cov: Floats, left: Floats, right: Floats, pooled: bool
    ) -> tuple[Floats, Floats]:
        value, slope = np.empty_like(cov), np.empty_like(cov)
        points = [
            {place: self.dual.of_points(part[place]) for place in np.ndindex(part.shape[:2])}
            for part in (left, right)
        ]
        for place, other in _pairs(left.shape[:2], pooled):
            at = place + other if pooled else place
            value[at], slope[at] = self.dual.pair(points[0][place], points[1][other], cov[at])
        return value, slope

    def _filtered(self, cov: Floats) -> Floats:
        """Mean over a filter's window, zero outside of the image; position axes come first."""
        reach = self.reach
        positions = 2 * ((cov.ndim - 2) // 2)
        padded = np.pad(cov, [(reach, reach)] * positions + [(0, 0)] * (cov.ndim - positions))
        height, width = cov.shape[:2]
        total = np.zeros_like(cov)
        for down in range(2 * reach + 1):
            for across in range(2 * reach + 1):
                window = (slice(down, down + height), slice(across, across + width))
                total += padded[window * (positions // 2)]
        return total / (2 * reach + 1) ** 2


def _pairs(
    size: tuple[int, ...], pooled: bool
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for place in np.ndindex(size):
        yield from ((place, other) for other in (np.ndindex(size) if pooled else [place]))


def _images(x: npt.ArrayLike, name: str) -> Floats:
    try:
        found = np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is not an array of numbers ({error})") from error
    if found.ndim != 4 or not found.size:
        raise DataError(
            f"{name} has the shape {found.shape}", expected="(images, height, width, channels)"
        )
    if not np.isfinite(found).all():
        image = int(np.argwhere(~np.isfinite(found))[0][0])
        raise DataError(f"{name} has a value that is no number", row=image)
    return found
