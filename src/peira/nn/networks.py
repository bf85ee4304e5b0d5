"""Small reference networks of the field, as flat sequences of units, and a small GPT."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

Shortcut = Literal["conv", "pad"]
Activation = Literal["relu", "tanh", "gelu", "silu", "sigmoid", "erf"]


class Erf(nn.Module):
    """The error function, element by element."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """erf(x)."""
        return torch.erf(x)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "erf": Erf,
}


def activation_layer(name: str) -> nn.Module:
    """The layer of an activation's name; raises ValueError for an unknown one."""
    if name not in ACTIVATIONS:
        raise ValueError(f"no activation {name!r}; there are: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def mlp(widths: Sequence[int], activation: str = "relu") -> nn.Sequential:
    """A multilayer perceptron: linear layers of these widths, the activation between them.

    Args:
        widths: inputs, hidden layers, outputs.
        activation: relu, tanh, gelu, silu, sigmoid or erf.
    """
    if len(widths) < 2:
        raise ValueError(f"widths are those of inputs, hidden layers and outputs; got {widths}")
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation_layer(activation)]
    return nn.Sequential(*layers[:-1])


def small_cnn(
    channels: Sequence[int] = (32, 64, 64),
    image: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    padding: Literal["valid", "same"] = "valid",
) -> nn.Sequential:
    """Units of 3x3 convolution, batch norm, ReLU and (all but the last) 2x2 max pooling; a head.

    The defaults are the CIFAR-10 network of cyclical curriculum learning: 66,890 parameters and
    320 batch-norm statistics.

    Args:
        channels: one unit each.
        image: channels, height and width of a picture.
        classes: outputs.
        padding: of the convolutions.

    Raises:
        ValueError: pictures too small for that many units.
    """
    depth, height, width = image
    lost = 2 if padding == "valid" else 0
    units: OrderedDict[str, nn.Module] = OrderedDict()
    for number, outputs in enumerate(channels):
        last = number == len(channels) - 1
        unit: list[nn.Module] = [
            nn.Conv2d(depth, outputs, 3, padding=padding),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
        unit += [] if last else [nn.MaxPool2d(2)]
        units[f"unit{number}"] = nn.Sequential(*unit)
        height, width = height - lost, width - lost
        if not last:
            height, width = height // 2, width // 2
        depth = outputs
        if min(height, width) < 1:
            raise ValueError(f"pictures of {image[1]} by {image[2]} are too small for {channels}")
    units["head"] = nn.Sequential(nn.Flatten(), nn.Linear(depth * height * width, classes))
    return nn.Sequential(units)


class PadShortcut(nn.Module):
    """The shortcut without parameters: every `stride`-th pixel, new channels zero.

    He et al. 2016, section 4.2, option A.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs h w"]:
        """The picture at the block's output size."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """ReLU(x + BN(conv(ReLU(BN(conv(x)))))) with 3x3 convolutions (He et al. 2016).

    Attributes are named as torchvision's: conv1, bn1, conv2, bn2, relu, downsample.

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: of the first convolution.
        shortcut: where the shape changes, a 1x1 convolution with batch norm ("conv") or zeros for
            the new channels ("pad").
        inner: channels between the convolutions; `outputs` without it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        shortcut: Shortcut = "conv",
        inner: int | None = None,
    ) -> None:
        super().__init__()
        inner = inner or outputs
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            if shortcut == "pad":
                self.downsample = PadShortcut(inputs, outputs, stride)
            else:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

    def forward(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs h w"]:
        """The block's output."""
        short = x if self.downsample is None else self.downsample(x)
        hidden = self.relu(self.bn1(self.conv1(x)))
        joined: Tensor = self.relu(self.bn2(self.conv2(hidden)) + short)
        return joined


def cifar_resnet(
    depth: int | None = None,
    classes: int = 10,
    *,
    widths: Sequence[int] = (16, 32, 64),
    blocks: Sequence[int] | None = None,
    shortcut: Shortcut = "conv",
    channels: int = 3,
    stem: int | None = None,
) -> nn.Sequential:
    """The residual network for small pictures (He et al. 2016, section 4.2).

    A flat sequence of units: `stem`, the residual blocks `stage1_0`, `stage1_1`, ..., `head`.
    With 10 classes and "conv" shortcuts ResNet-32 has 466,906 parameters, ResNet-110 1,730,714.

    Args:
        depth: 6n + 2 layers: n blocks in each of three stages.
        classes: outputs.
        widths: channels of each stage; from the second on a stage halves the picture.
        blocks: blocks of each stage, in place of `depth`.
        shortcut: where shapes change ("conv": 1x1 convolution and batch norm, "pad": zeros).
        channels: of the pictures.
        stem: channels of the first convolution; that of the first stage without it.

    Raises:
        ValueError: a depth that is not 6n + 2, neither or both of depth and blocks, or a number of
            stages that differs from the widths'.
    """
    if (depth is None) == (blocks is None):
        raise ValueError("give either depth or blocks")
    if depth is not None:
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"a depth is 6n + 2 with n of 1 or more; got {depth}")
        blocks = [(depth - 2) // 6] * 3
    assert blocks is not None
    if len(blocks) != len(widths):
        raise ValueError(f"{len(blocks)} stages of blocks but {len(widths)} widths")
    inputs = stem or widths[0]
    units: OrderedDict[str, nn.Module] = OrderedDict()
    units["stem"] = nn.Sequential(
        nn.Conv2d(channels, inputs, 3, padding=1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU()
    )
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for number in range(count):
            stride = 2 if stage > 0 and number == 0 else 1
            units[f"stage{stage + 1}_{number}"] = BasicBlock(inputs, width, stride, shortcut)
            inputs = width
    units["head"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
    network = nn.Sequential(units)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


class TransformerBlock(nn.Module):
    """Pre-norm block of GPT-2: x + attention(norm(x)), then x + MLP(norm(x)); causal."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.mlp = mlp((width, 4 * width, width), "gelu")

    def forward(self, x: Float[Tensor, "batch time width"]) -> Float[Tensor, "batch time width"]:
        """The residual stream after the block."""
        batch, time, width = x.shape
        parts = self.attention(self.norm1(x)).view(batch, time, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, time, width))
        moved: Tensor = x + self.mlp(self.norm2(x))
        return moved


class TinyGPT(nn.Module):
    """A decoder-only Transformer after GPT-2: learnt positions, pre-norm blocks, GELU.

    The output of `blocks.0`, `blocks.1`, ... is the residual stream.

    Args:
        vocabulary: number of tokens.
        context: longest sequence.
        width: of the residual stream, a multiple of `heads`.
        layers: blocks.
        heads: of the attention.
    """

    def __init__(
        self, vocabulary: int, context: int, width: int = 64, layers: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width is a multiple of heads; got {width} and {heads}")
        self.context = context
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            # GPT-2's initialisation (Radford et al. 2019, section 2.3).
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocabulary"]:
        """Logits of the next token at each place; raises ValueError beyond the context."""
        time = tokens.shape[1]
        if time > self.context:
            raise ValueError(f"{time} tokens, but the context is {self.context}")
        stream = self.tokens(tokens) + self.positions.weight[:time]
        logits: Tensor = self.head(self.norm(self.blocks(stream)))
        return logits
