"""Elastic deformation of a whole batch at once (Simard et al. 2003)."""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

# What the official code uses on 28 x 28 pixels: SciPy cuts the Gaussian at four sigmas.
SIGMA, ALPHA, SIDE = 4.0, 20.0, 28
TRUNCATE = 4.0
# A place this far beyond the border, in halves of the side, is a rounding error.
SLACK = 1e-6


@cache
def gaussian_matrix(side: int, sigma: float) -> Float[Tensor, "side side"]:
    """The Gaussian filter of one axis with zeros beyond the border, as a banded matrix."""
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    shift = torch.arange(side)[None] - torch.arange(side)[:, None]
    inside = shift.abs() <= radius
    return torch.where(inside, kernel[(shift + radius).clamp(0, 2 * radius)], 0.0)


def displacement(
    noise: Float[Tensor, "b 2 h w"], sigma: float = SIGMA, alpha: float = ALPHA
) -> Float[Tensor, "b 2 h w"]:
    """Smooth displacements along rows and columns, in pixels, from noise in [-1, 1).

    The separable filter is two matrix products, which at these sides are faster than convolutions.
    """
    height, width = noise.shape[-2:]
    rows, columns = (gaussian_matrix(side, sigma).to(noise) for side in (height, width))
    return alpha * (rows @ noise @ columns)


def warp(
    images: Float[Tensor, "b c h w"], shifts: Float[Tensor, "b 2 h w"]
) -> Float[Tensor, "b c h w"]:
    """Each picture read at its shifted pixels, bilinearly; 0 beyond the border.

    As in SciPy's `map_coordinates(order=1)` nothing is interpolated across the border: a point
    outside is 0 altogether.
    """
    sides = images.shape[-2:]
    scale = torch.tensor([2 / max(side - 1, 1) for side in sides]).to(shifts)
    axes = torch.meshgrid(*(torch.arange(side) for side in sides), indexing="ij")
    still = torch.stack(axes, dim=-1).to(shifts) * scale - 1
    places = torch.addcmul(still, shifts.permute(0, 2, 3, 1), scale)
    # Transposed pictures take (row, column) where PyTorch wants (x, y).
    read = F.grid_sample(images.mT, places, padding_mode="border", align_corners=True)
    row, column = places.unbind(-1)
    outside = torch.maximum(row.abs(), column.abs()) > 1 + SLACK
    return read.masked_fill_(outside[:, None], 0)


class ElasticDeformation(nn.Module):
    """Deforms every picture of a batch by a smooth random field of its own.

    The field is U[-1, 1) noise, filtered by a Gaussian of `sigma` pixels and multiplied by
    `alpha`; sigma 4 and alpha 20 on 28 x 28 pixels displace by 0.8 pixels (standard deviation).

    Args:
        sigma: width of the Gaussian, pixels.
        alpha: factor on the filtered noise, pixels.
        generator: draws the noise, on the CPU; default the global one.
    """

    def __init__(
        self,
        sigma: float = SIGMA,
        alpha: float = ALPHA,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not (sigma > 0 and math.isfinite(alpha)):
            raise ValueError(f"sigma must be positive and alpha finite; got {sigma} and {alpha}")
        self.sigma, self.alpha, self.generator = sigma, alpha, generator

    @classmethod
    def fitting(
        cls, height: int, width: int, generator: torch.Generator | None = None
    ) -> ElasticDeformation:
        """The published field scaled to other sides.

        It displaces by the same share of the side: the filter narrows in proportion, and because
        a narrower filter averages less, alpha goes with the square.
        """
        scale = min(height, width) / SIDE
        return cls(SIGMA * scale, ALPHA * scale**2, generator)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Deformed pictures of the same shape; all channels of one move together."""
        size = (len(images), 2, *images.shape[-2:])
        noise = torch.rand(size, generator=self.generator, dtype=images.dtype).to(images.device)
        return warp(images, displacement(2 * noise - 1, self.sigma, self.alpha))
