"""Channels and residual blocks taken out for good: a smaller network, not one with zeros.

`kept` says what stays, by name: indices of a block's inner channels, or None for a block of which
only the shortcut stays. The same `kept` on a fresh network of the old architecture makes the shape
that a saved plain `state_dict` loads into.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor, nn

from peira.nn.pruning import settle

Kept = Mapping[str, "Int[Tensor, ' channels'] | None"]

# Each inner convolution of a block with its norm and the convolution that reads it.
INNER = {
    "basic": (("conv1", "bn1", "conv2"),),
    "bottleneck": (("conv1", "bn1", "conv2"), ("conv2", "bn2", "conv3")),
}


def residual_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """Residual blocks by name: modules with torchvision's attributes conv1, bn1, conv2, bn2."""
    needed = ("conv1", "bn1", "conv2", "bn2", "downsample")
    return {
        name: module
        for name, module in network.named_modules()
        if name and all(hasattr(module, part) for part in needed)
    }


def inner_convolutions(block: nn.Module) -> tuple[tuple[str, str, str], ...]:
    """Inner (convolution, norm, next convolution) of a basic or a bottleneck block."""
    return INNER["bottleneck" if hasattr(block, "conv3") else "basic"]


def slim(network: nn.Module, kept: Kept) -> nn.Module:
    """A smaller copy of a network of residual blocks; the network itself stays as it is.

    Args:
        network: has residual blocks (see `residual_blocks`); outputs where nothing is removed, or
            where what is removed was zero, are those of the copy.
            Parametrizations (masks) become plain weights in the copy.
        kept: block name -> indices of the kept channels between its two convolutions ("NAME.conv1"
            and "NAME.conv2" for those of a bottleneck), or None: the block becomes its shortcut.

    Raises:
        ValueError: a name that is no residual block, no channel kept, an index out of range, or a
            grouped convolution.
    """
    small = _settled(copy.deepcopy(network))
    blocks = residual_blocks(small)
    for name, channels in kept.items():
        block_name, inner = _address(name, blocks)
        block = blocks[block_name]
        if channels is None:
            small.set_submodule(block_name, _shortcut(block))
            continue
        convolution, norm, following = next(
            trio for trio in inner_convolutions(block) if trio[0] == inner
        )
        indices = _checked(name, channels, block.get_submodule(convolution))
        block.set_submodule(convolution, _sliced(block.get_submodule(convolution), indices, None))
        block.set_submodule(norm, _sliced_norm(block.get_submodule(norm), indices))
        block.set_submodule(following, _sliced(block.get_submodule(following), None, indices))
    return small


def _settled(network: nn.Module) -> nn.Module:
    """The network with the weights that its parametrizations give, and without them."""
    for module in list(network.modules()):
        if isinstance(parts := getattr(module, "parametrizations", None), nn.ModuleDict):
            settle(module, parts)
    return network


def _address(name: str, blocks: Mapping[str, nn.Module]) -> tuple[str, str]:
    if name in blocks:
        return name, "conv1"
    block, _, inner = name.rpartition(".")
    if block in blocks and inner in {trio[0] for trio in inner_convolutions(blocks[block])}:
        return block, inner
    raise ValueError(f"no residual block {name!r}; there are: {', '.join(blocks)}")


def _shortcut(block: nn.Module) -> nn.Module:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    downsample = block.downsample
    if isinstance(downsample, nn.Module):
        parts["downsample"] = downsample
    # Its inputs may be negative where no ReLU stands before the block.
    parts["relu"] = nn.ReLU()
    return nn.Sequential(parts)


def _checked(name: str, channels: Tensor, convolution: nn.Module) -> Tensor:
    assert isinstance(convolution, nn.Conv2d)
    channels = torch.as_tensor(channels, dtype=torch.long, device=convolution.weight.device)
    if not len(channels):
        raise ValueError(f"no channel of {name!r} is kept: give None to keep only the shortcut")
    if int(channels.min()) < 0 or int(channels.max()) >= convolution.out_channels:
        raise ValueError(f"{name!r} has channels 0 to {convolution.out_channels - 1}; "
                         f"got {channels.tolist()}")  # fmt: skip
    return channels


def _sliced(module: nn.Module, outputs: Tensor | None, inputs: Tensor | None) -> nn.Conv2d:
    assert isinstance(module, nn.Conv2d)
    if module.groups != 1:
        raise ValueError("channels of a grouped convolution cannot be taken out one by one")
    weight, bias = module.weight, module.bias
    if outputs is not None:
        weight, bias = weight[outputs], None if bias is None else bias[outputs]
    if inputs is not None:
        weight = weight[:, inputs]
    small = copy.copy(module)
    small._parameters = dict(module._parameters)
    small.out_channels, small.in_channels = weight.shape[:2]
    small.weight = nn.Parameter(weight.detach().clone(), module.weight.requires_grad)
    small.bias = None if bias is None else nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return small


def _sliced_norm(module: nn.Module, indices: Tensor) -> nn.BatchNorm2d:
    assert isinstance(module, nn.BatchNorm2d)
    small = nn.BatchNorm2d(
        len(indices), module.eps, module.momentum, module.affine, module.track_running_stats,
        device=indices.device,
    )  # fmt: skip
    state = {
        name: part[indices] if part.ndim else part for name, part in module.state_dict().items()
    }
    for part in state.values():
        if part.is_floating_point():
            small.to(part.dtype)
    small.load_state_dict(state)
    return small.train(module.training)
