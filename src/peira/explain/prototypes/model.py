"""The prototype network: encoder, decoder, prototype layer, and a last layer on distances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from peira.nn import mlp

STRIDE, KERNEL = 2, 3
# Spread of the initial filters in the official code.
FILTER_SPREAD = 0.01
MAPS, LAST_MAPS = 32, 10
TABLE_WIDTHS = (64, 32)
Lambdas = tuple[float, float, float, float]
LAMBDAS: Lambdas = (20.0, 1.0, 1.0, 1.0)


def same_padding(side: int, kernel: int = KERNEL, stride: int = STRIDE) -> tuple[int, int]:
    """Zeros before and after one side, as TensorFlow's "SAME": the odd one comes after.

    The convolution then gives ceil(side / stride) outputs. At stride 2 an even side is padded
    (0, 1), an odd one (1, 1).
    """
    total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A strided 3x3 convolution with TensorFlow's "SAME" padding."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, KERNEL, STRIDE)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Maps of half the sides, rounded up."""
        top, bottom = same_padding(x.shape[-2])
        left, right = same_padding(x.shape[-1])
        return super().forward(F.pad(x, (left, right, top, bottom)))


class SameConvTranspose2d(nn.ConvTranspose2d):
    """The transpose of `SameConv2d`, to the sides that its input had.

    Args:
        inputs, outputs: channels.
        sides: height and width of the outputs; several sides halve to the same, so it is forced.
    """

    def __init__(self, inputs: int, outputs: int, sides: tuple[int, int]) -> None:
        super().__init__(inputs, outputs, KERNEL, STRIDE)
        self.sides = sides

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "b c i j"]
    ) -> Float[Tensor, "b d h w"]:
        """Maps of `sides`: the full transposed convolution, less what was padding."""
        full = super().forward(x)
        height, width = self.sides
        top, left = same_padding(height)[0], same_padding(width)[0]
        return full[..., top : top + height, left : left + width]


def fitting_layers(height: int, width: int) -> int:
    """How many stride-2 layers bring the shorter side down to 2: 28 -> 4, 8 -> 2.

    Raises `ValueError` for pictures whose shorter side is below 3 pixels.
    """
    side = min(height, width)
    if side < 3:
        raise ValueError(f"pictures of {height} x {width} pixels are too small; at least 3 x 3")
    return math.ceil(math.log2(side)) - 1


def conv_autoencoder(
    shape: tuple[int, int, int],
    maps: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[nn.Sequential, nn.Sequential]:
    """The paper's encoder and decoder for pictures.

    3x3 convolutions of stride 2 with "SAME" padding, ReLU after each, the last included; the
    decoder mirrors them with weights of its own and ends in a sigmoid. Filters start as
    N(0, 0.01^2), biases at 0.

    Args:
        shape: channels, height and width of a picture.
        maps: feature maps of the layers; default 32, ..., 32, 10, with as many layers as bring the
            shorter side to 2. On 28 x 28 this is the published 32, 32, 32, 10.
        generator: draws the filters.

    Raises:
        ValueError: pictures too small for that many halvings.
    """
    channels, height, width = shape
    if maps is None:
        maps = (MAPS,) * (fitting_layers(height, width) - 1) + (LAST_MAPS,)
    sides = [(height, width)]
    for _ in maps:
        last = sides[-1]
        if min(last) < 2:
            raise ValueError(
                f"pictures of {height} x {width} pixels are too small for {len(maps)} layers of "
                f"stride 2; at least {2 ** (len(maps) - 1) + 1} pixels a side"
            )
        sides.append((math.ceil(last[0] / STRIDE), math.ceil(last[1] / STRIDE)))
    widths = [channels, *maps]
    encoder: list[nn.Module] = []
    decoder: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        encoder += [SameConv2d(inputs, outputs), nn.ReLU()]
    for level in reversed(range(len(maps))):
        decoder += [SameConvTranspose2d(widths[level + 1], widths[level], sides[level]), nn.ReLU()]
    decoder[-1] = nn.Sigmoid()
    # Channels last takes CPUs up to a fifth less time on 28 x 28 pixels.
    pair = tuple(
        nn.Sequential(*layers).to(memory_format=torch.channels_last)
        for layers in (encoder, decoder)
    )
    for name, weights in nn.ModuleList(pair).named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(weights)
        else:
            # Drawn in the order of the filter's axes, whatever its layout in memory.
            weights.data.copy_(torch.randn(weights.shape, generator=generator) * FILTER_SPREAD)
    return pair


def mlp_autoencoder(
    features: int,
    widths: Sequence[int] = TABLE_WIDTHS,
    generator: torch.Generator | None = None,
) -> tuple[nn.Sequential, nn.Sequential]:
    """Fully connected encoder and decoder for rows of a table scaled to [0, 1].

    As in the convolutional pair the encoder ends in a ReLU and the decoder in a sigmoid.

    Args:
        features: columns of the table.
        widths: hidden layers, the last of them the latent space.
        generator: draws the weights (Kaiming uniform).
    """
    encoder = nn.Sequential(*mlp([features, *widths]), nn.ReLU())
    decoder = nn.Sequential(*mlp([*reversed(widths), features]), nn.Sigmoid())
    for layer in [*encoder, *decoder]:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
    return encoder, decoder


def squared_distances(a: Float[Tensor, "b q"], b: Float[Tensor, "m q"]) -> Float[Tensor, "b m"]:
    """||a_i - b_j||^2 for all pairs by one matrix product; never below 0."""
    return torch.addmm(
        a.square().sum(1, keepdim=True) + b.square().sum(1), a, b.T, alpha=-2
    ).clamp_min(0)


class PrototypeNetwork(nn.Module):
    """Logits that are weighted sums of squared distances to m learned vectors.

    z = D W with D[b, j] = ||f(x_b) - p_j||^2. There is no bias, and a small distance means
    membership, so the class of a prototype is the most negative weight of its row.

    Args:
        encoder: f, pictures or rows -> latents of any shape; they are compared flattened.
        decoder: g, latents of that same shape -> pictures or rows.
        latent_shape: shape of one latent.
        prototypes: m.
        classes: K.
        generator: draws P and W, both from U[0, 1).
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        latent_shape: Sequence[int],
        prototypes: int = 15,
        classes: int = 10,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.latent_shape = tuple(latent_shape)
        size = math.prod(self.latent_shape)
        self.prototypes = nn.Parameter(torch.rand(prototypes, size, generator=generator))
        self.weight = nn.Parameter(torch.rand(prototypes, classes, generator=generator))

    def encode(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b q"]:
        """Flattened latents."""
        return self.encoder(x).flatten(1)

    def decode(self, latents: Float[Tensor, "m q"]) -> Float[Tensor, "m ..."]:
        """Pictures or rows of flattened latents."""
        return self.decoder(latents.unflatten(1, self.latent_shape))

    def distances(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b m"]:
        """Squared distance of each input's latent to each prototype."""
        return squared_distances(self.encode(x), self.prototypes)

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b classes"]:
        """Logits."""
        return self.distances(x) @ self.weight

    def pictures(self) -> Float[Tensor, "m ..."]:
        """The decoded prototypes."""
        return self.decode(self.prototypes)

    def prototype_classes(self) -> Int[Tensor, " m"]:
        """Class of each prototype: the smallest weight of its row."""
        return self.weight.argmin(dim=1)


class Terms(NamedTuple):
    """The four terms of the objective, each averaged over the batch.

    Attributes:
        cross_entropy: softmax cross entropy, nats.
        reconstruction: squared error summed over the pixels of a picture.
        r1: squared distance from each prototype to its nearest latent of the batch.
        r2: squared distance from each latent to its nearest prototype.
    """

    cross_entropy: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""]
    r1: Float[Tensor, ""]
    r2: Float[Tensor, ""]

    def total(self, lambdas: Lambdas = LAMBDAS) -> Float[Tensor, ""]:
        """The weighted sum that is minimised; a term of weight 0 costs no backward pass."""
        parts = zip(lambdas, self, strict=True)
        return torch.stack([weight * term for weight, term in parts if weight]).sum()


def objective(
    network: PrototypeNetwork, x: Float[Tensor, "b ..."], labels: Int[Tensor, " b"]
) -> Terms:
    """The four terms on one batch (equations 2 to 5 of the paper; weights of its code)."""
    latents = network.encode(x)
    distances = squared_distances(latents, network.prototypes)
    return Terms(
        F.cross_entropy(distances @ network.weight, labels),
        (network.decode(latents) - x).square().flatten(1).sum(1).mean(),
        distances.min(dim=0).values.mean(),
        distances.min(dim=1).values.mean(),
    )
