"""The paper's ImageNet networks, as flat rows of units."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from peira.data import DataError
from peira.nn.networks import BasicBlock
from peira.training.man.partition import BLOCKS


class Bottleneck(nn.Module):
    """ReLU(x + BN(1x1) ReLU BN(3x3) ReLU BN(1x1)): He et al. 2016, with torchvision's names.

    Args:
        inputs: channels in.
        outputs: channels out, four times the width of a ResNet's inner convolutions.
        stride: of the 3x3 convolution.
        inner: channels between the convolutions.
        groups: of the 3x3 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, inner: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(
        self, x: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs h w"]:
        """The block's output."""
        short = x if self.downsample is None else self.downsample(x)
        hidden = self.relu(self.bn1(self.conv1(x)))
        hidden = self.relu(self.bn2(self.conv2(hidden)))
        joined: Tensor = self.relu(self.bn3(self.conv3(hidden)) + short)
        return joined


def imagenet_resnet(
    name: str, classes: int = 1000, blocks: Sequence[int] | None = None
) -> nn.Sequential:
    """One of the paper's networks for pictures of 224 x 224: stem, residual blocks, head.

    Parameters with 1000 classes: ResNet-34 21,797,672; ResNet-101 44,549,160; ResNet-152
    60,192,808; ResNeXt-101 32x8d 88,791,336.

    Args:
        name: resnet34, resnet101, resnet152 or resnext101_32x8d.
        classes: outputs.
        blocks: of each of the four stages; the network's own without it.

    Raises:
        DataError: an unknown name.
    """
    known = [one for one, stages in BLOCKS.items() if len(stages) == 4]
    if name not in known:
        raise DataError("unknown network", value=name, expected=", ".join(known))
    units: OrderedDict[str, nn.Module] = OrderedDict()
    units["stem"] = nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
    )  # fmt: skip
    inputs = 64
    for stage, count in enumerate(blocks or BLOCKS[name]):
        for number in range(count):
            stride = 2 if stage > 0 and number == 0 else 1
            unit, inputs = _block(name, inputs, 64 << stage, stride)
            units[f"stage{stage + 1}_{number}"] = unit
    units["head"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
    network = nn.Sequential(units)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _block(name: str, inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
    if name == "resnet34":
        return BasicBlock(inputs, width, stride), width
    if name == "resnext101_32x8d":
        return Bottleneck(inputs, 4 * width, stride, inner=4 * width, groups=32), 4 * width
    return Bottleneck(inputs, 4 * width, stride, inner=width), 4 * width
