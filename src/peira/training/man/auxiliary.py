"""What stands behind a local module while it trains: copies of the next unit, a head, a decoder."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from peira.data import DataError

Bias = Literal["unit", "vector", "units"]
Start = Literal["copy", "redrawn"]

HEADS = ("0c1f", "0c2f", "1c1f", "1c2f", "1c3f", "2c2f", "imagenet")
TEMPERATURE = 0.07
# Channels of the decoder of ImageNet pictures, by how often it doubles the picture.
DECODED = {2: (64, 12), 3: (128, 32, 12), 4: (192, 64, 32, 12)}


class MomentumPath(nn.Module):
    """y = EMA(x) + LB(x): the next unit's average, and a learnable copy of it ("learnable bias").

    Without both it is y = x, plain local learning.

    Args:
        unit: first unit of the next local module.
        width: channels (or features) of y.
        momentum: m of theta_EMA <- m theta_EMA + (1 - m) theta_unit; None for no EMA.
        bias: "unit" for a trained copy of the unit, "vector" for one number per channel, "units"
            for two trained copies (as large as MAN, without its average), None for none.
        start: whether the copies begin as copies, or "redrawn" as in the released code.
    """

    def __init__(
        self,
        unit: nn.Module,
        width: int,
        momentum: float | None,
        bias: Bias | None,
        start: Start = "copy",
    ) -> None:
        super().__init__()
        self.momentum = momentum
        self.average = None if momentum is None else copied(unit, start).requires_grad_(False)
        copies = {"unit": 1, "units": 2}.get(bias or "", 0)
        self.biases = nn.ModuleList(copied(unit, start) for _ in range(copies))
        # Two copies that start alike would stay alike.
        for twin in self.biases[1:]:
            redraw(twin)
        self.vector = nn.Parameter(torch.zeros(width)) if bias == "vector" else None

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """What the local heads see."""
        parts = [part(x) for part in (self.average, *self.biases) if part is not None]
        y = sum(parts[1:], parts[0]) if parts else x
        if self.vector is not None:
            y = y + self.vector.view(-1, *[1] * (y.ndim - 2))
        return y

    @torch.no_grad()
    def follow(self, unit: nn.Module) -> None:
        """One step of the average of the unit's parameters; batch statistics stay its own."""
        if self.average is not None and self.momentum is not None:
            ours, theirs = list(self.average.parameters()), list(unit.parameters())
            if ours:
                torch._foreach_lerp_(ours, theirs, 1 - self.momentum)


class Auxiliary(nn.Module):
    """What module i trains through: the momentum path, and the heads behind it.

    L_i = lambda_1 BCE(decoder(y_i), picture) + lambda_2 task(head(y_i)).

    Args:
        path: x_i -> y_i.
        head: classifier or projection; None where lambda_2 is 0.
        decoder: None where lambda_1 is 0.
        weights: lambda_1 and lambda_2.
        contrast: whether the task is the supervised contrastive loss.
    """

    def __init__(
        self,
        path: MomentumPath,
        head: nn.Module | None,
        decoder: nn.Module | None,
        weights: tuple[float, float],
        contrast: bool,
    ) -> None:
        super().__init__()
        self.path, self.head, self.decoder = path, head, decoder
        self.weights, self.contrast = weights, contrast

    def forward(
        self,
        x: Float[Tensor, "batch ..."],
        picture: Float[Tensor, "batch colours height width"] | None,
        loss: Callable[[Tensor], Tensor],
        labels: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, ""]:
        """The local loss."""
        y = self.path(x)
        local = x.new_zeros(())
        if self.decoder is not None and picture is not None:
            local = local + self.weights[0] * F.binary_cross_entropy(self.decoder(y), picture)
        if self.head is not None:
            if self.contrast:
                assert labels is not None
                task = supervised_contrastive(self.head(y), labels)
            else:
                task = loss(self.head(y))
            local = local + self.weights[1] * task
        return local


def copied(unit: nn.Module, start: Start) -> nn.Module:
    """A copy of a unit, its weights drawn anew if `start` is "redrawn"."""
    twin = copy.deepcopy(unit)
    if start == "redrawn":
        redraw(twin)
    return twin


@torch.no_grad()
def redraw(unit: nn.Module) -> None:
    """Fresh weights: convolutions as the residual networks draw them, the rest by default."""
    for module in unit.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif callable(reset := getattr(module, "reset_parameters", None)):
            reset()


def make_head(
    config: str, shape: Sequence[int], widest: int, outputs: int, hidden: int = 128
) -> nn.Sequential:
    """An auxiliary classifier or projection, for features of one shape.

    Args:
        config: "1c2f" is one convolution and two linear layers; or "imagenet", the deeper one of
            the ImageNet experiments.
        shape: of the features without the batch: (channels, height, width) or (features,).
        widest: channels of the network's last stage; below it a head doubles the channels and
            halves the picture.
        outputs: classes, or dimensions of the projection.
        hidden: width of the linear layers.

    Raises:
        DataError: an unknown configuration, or convolutions on what is no feature map.
    """
    if config not in HEADS:
        raise DataError("unknown auxiliary head", value=config, expected=", ".join(HEADS))
    maps = len(shape) == 3
    if not maps and config not in ("0c1f", "0c2f"):
        raise DataError(
            "convolutions on features that are no maps", value=f"aux {config!r} on {tuple(shape)}",
            expected="aux '0c1f' or '0c2f', or units of shape (channels, height, width)",
        )  # fmt: skip
    width = shape[0] if maps else shape[-1]
    if config == "imagenet":
        return _imagenet_head(width, outputs)
    convolutions, linear = (int(number) for number in re.findall(r"\d", config))
    layers: list[nn.Module] = []
    for number in range(convolutions):
        wider = min(2 * width, max(widest, width)) if number == 0 else width
        layers += _convolution(width, wider, 3, 2 if wider > width else 1)
        width = wider
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if maps else [nn.Flatten()]
    for _ in range(linear - 1):
        layers += [nn.Linear(width, hidden), nn.ReLU()]
        width = hidden
    return _drawn(nn.Sequential(*layers, nn.Linear(width, outputs)))


def _imagenet_head(width: int, outputs: int) -> nn.Sequential:
    return _drawn(
        nn.Sequential(
            *_convolution(width, width // 4, 1, 1),
            *_convolution(width // 4, 256, 3, 2),
            *_convolution(256, 512, 3, 2),
            *_convolution(512, 2048, 1, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2048, outputs),
        )
    )


class Decoder(nn.Module):
    """A picture in [0, 1] from features: the reconstruction of InfoPro (Wang et al. 2021).

    Args:
        shape: of the features, (channels, height, width).
        image: of the pictures, (channels, height, width).
        pyramid: double the features step by step, as for ImageNet; else to the full size at once.

    Raises:
        DataError: features that are no maps, or that a pyramid cannot double up to the picture.
    """

    def __init__(self, shape: Sequence[int], image: Sequence[int], pyramid: bool = False) -> None:
        super().__init__()
        if len(shape) != 3 or len(image) != 3:
            raise DataError(
                "a reconstruction needs pictures and feature maps",
                value=f"pictures {tuple(image)}, features {tuple(shape)}",
                expected="(channels, height, width) each",
            )
        if not pyramid:
            stages = _stage(shape[0], 12, 3, tuple(image[1:]))
        else:
            doublings = round(math.log2(image[1] / shape[1]))
            if doublings not in DECODED or shape[1] << doublings != image[1]:
                raise DataError(
                    "no decoder from these features", value=f"{tuple(shape)} to {tuple(image)}",
                    expected="pictures 4, 8 or 16 times as high",
                )  # fmt: skip
            stages = _pyramid(shape, image, doublings)
        self.layers = _drawn(
            nn.Sequential(*stages, nn.Conv2d(12, image[0], 3, padding=1), nn.Sigmoid())
        )

    def forward(
        self, y: Float[Tensor, "batch channels h w"]
    ) -> Float[Tensor, "batch colours height width"]:
        """The picture."""
        picture: Tensor = self.layers(y)
        return picture


def _stage(width: int, outputs: int, kernel: int, size: tuple[int, ...]) -> list[nn.Module]:
    upsampled = nn.Upsample(size=size, mode="bilinear", align_corners=True)
    return [upsampled, *_convolution(width, outputs, kernel, 1, bias=True)]


def _pyramid(shape: Sequence[int], image: Sequence[int], doublings: int) -> list[nn.Module]:
    width, layers = shape[0], []
    for step, outputs in enumerate(DECODED[doublings]):
        layers += _convolution(width, outputs, 1 if outputs > 32 else 3, 1, bias=True)
        size = tuple(side >> (doublings - step - 1) for side in image[1:])
        layers.append(nn.Upsample(size=size, mode="bilinear", align_corners=True))
        width = outputs
    return layers


def _convolution(
    width: int, outputs: int, kernel: int, stride: int, bias: bool = False
) -> list[nn.Module]:
    convolution = nn.Conv2d(width, outputs, kernel, stride, padding=kernel // 2, bias=bias)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def _drawn(layers: nn.Sequential) -> nn.Sequential:
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layers


def supervised_contrastive(
    features: Float[Tensor, "batch features"],
    labels: Int[Tensor, " batch"],
    temperature: float = TEMPERATURE,
) -> Float[Tensor, ""]:
    """Supervised contrastive loss of one view of each sample (Khosla et al. 2020, eq. 2).

    Mean over the samples of the mean over others of the same class of
    -log softmax of the cosine similarities / temperature; a sample alone in its class counts 0.
    """
    unit = F.normalize(features, dim=1)
    similar = unit @ unit.T / temperature
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    logs = similar.masked_fill(itself, -torch.inf).log_softmax(dim=1)
    mates = (labels[:, None] == labels[None, :]) & ~itself
    chosen = torch.where(mates, logs, 0.0).sum(dim=1)
    return -(chosen / mates.sum(dim=1).clamp(min=1)).mean()
