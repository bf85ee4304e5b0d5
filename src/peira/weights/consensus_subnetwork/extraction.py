"""From votes to a smaller network: what is kept, removed for good, masked, written and read."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from peira.data.arrays import refuse_absent, write_tensors
from peira.data.errors import DataError
from peira.data.networks import load_weights
from peira.nn.pruning import Masks
from peira.nn.structured import inner_convolutions, residual_blocks, slim
from peira.weights.consensus_subnetwork.gates import GatedBlock

Kept = dict[str, Tensor | None]


def majority(
    blocks: Mapping[str, GatedBlock], votes: Mapping[str, Float[Tensor, " gates"]]
) -> Kept:
    """What more than half of the inputs open.

    Args:
        blocks: gated blocks by name.
        votes: share of inputs that open each gate of each block.

    Returns:
        Name -> None for a block that goes; in channel mode name (of a bottleneck's convolution:
        "NAME.conv1", "NAME.conv2") -> indices of the hidden channels that stay. A block with a
        hidden layer of no channel goes. Where everything would go, the most voted stays.
    """
    opened = {name: share > 0.5 for name, share in votes.items()}
    if not any(bool(gates.any()) for gates in opened.values()):
        best = max(votes, key=lambda name: float(votes[name].max()))
        parts = votes[best].split(_layers(blocks[best]))
        opened[best] = torch.cat([part == part.max() for part in parts])
    kept: Kept = {}
    for name, block in blocks.items():
        parts = opened[name].split(_layers(block))
        if not all(bool(part.any()) for part in parts):
            kept[name] = None
        elif block.mode == "channel":
            for address, part in zip(addresses(name, block.block), parts, strict=True):
                kept[address] = part.nonzero().flatten().cpu()
    return kept


def _layers(block: GatedBlock) -> list[int]:
    return block.widths if block.mode == "channel" else [1]


def addresses(name: str, block: nn.Module) -> list[str]:
    """Keys in `Kept` of a block's hidden layers: its name, or "NAME.conv1" and "NAME.conv2"."""
    inner = inner_convolutions(block)
    return [name] if len(inner) == 1 else [f"{name}.{trio[0]}" for trio in inner]


def remove(network: nn.Module, kept: Mapping[str, Tensor | None]) -> nn.Module:
    """A smaller copy of a plain network: `peira.nn.slim`, and identities for other units.

    Raises:
        ValueError: a name that the network has not, or channels of a module that is no block.
    """
    blocks = residual_blocks(network)
    modules = dict(network.named_modules())
    units = {name for name, indices in kept.items() if indices is None and name not in blocks}
    absent = sorted(units - modules.keys())
    if absent:
        raise ValueError(f"no module {absent[0]!r} in this network")
    small = slim(network, {name: indices for name, indices in kept.items() if name not in units})
    for name in units:
        small.set_submodule(name, nn.Identity())
    return small


def consensus_masks(network: nn.Module, kept: Mapping[str, Tensor | None]) -> Masks:
    """The same sub-network as masks, for `peira.nn.apply_masks`: zeros in place of removal.

    Args:
        network: plain, with residual blocks.
        kept: as `majority` gives it.

    Returns:
        Parameter name -> mask: rows of convolutions and their norms, columns of the convolutions
        that read them; of a block that goes all of its branch.

    Raises:
        ValueError: a name that is no residual block.
    """
    masks: Masks = {}
    blocks = residual_blocks(network)
    for name, indices in kept.items():
        if name not in blocks and name.rpartition(".")[0] not in blocks:
            raise ValueError(f"no residual block {name!r}; there are: {', '.join(blocks)}")
        if indices is None:
            for part in _branch(blocks[name]):
                for parameter, weight in blocks[name].get_submodule(part).named_parameters():
                    masks[f"{name}.{part}.{parameter}"] = torch.zeros_like(weight, dtype=torch.bool)
            continue
        block_name = name if name in blocks else name.rpartition(".")[0]
        block = blocks[block_name]
        convolution, norm, following = inner_convolutions(block)[
            addresses(block_name, block).index(name)
        ]
        stays = torch.zeros(block.get_submodule(convolution).out_channels, dtype=torch.bool)
        stays[indices] = True
        for part, along in ((convolution, 0), (norm, 0), (following, 1)):
            for parameter, weight in block.get_submodule(part).named_parameters():
                if weight.ndim > along:
                    _narrow(masks, f"{block_name}.{part}.{parameter}", weight, stays, along)
    return masks


def _branch(block: nn.Module) -> list[str]:
    last = len(inner_convolutions(block)) + 1
    return [f"{kind}{i}" for i in range(1, last + 1) for kind in ("conv", "bn")]


def _narrow(masks: Masks, name: str, weight: Tensor, stays: Tensor, along: int) -> None:
    shape = [1] * weight.ndim
    shape[along] = len(stays)
    mask = masks.get(name, torch.ones_like(weight, dtype=torch.bool))
    masks[name] = mask & stays.to(weight.device).view(shape)


def open_share(blocks: Mapping[str, GatedBlock], kept: Mapping[str, Tensor | None]) -> float:
    """Share of the gated blocks' operations that `kept` leaves."""
    left = sum(float(block.cost(gates_of(name, block, kept))) for name, block in blocks.items())
    return left / sum(sum(block.flops) for block in blocks.values())


def gates_of(
    name: str, block: GatedBlock, kept: Mapping[str, Tensor | None]
) -> Float[Tensor, " gates"]:
    """The block's gates as 0 and 1, of which `kept` leaves those at 1 open."""
    gone = name in kept and kept[name] is None
    if gone or block.mode == "layer":
        return torch.full((sum(_layers(block)),), 0.0 if gone else 1.0)
    parts = []
    for address, width in zip(addresses(name, block.block), block.widths, strict=True):
        indices = kept.get(address)
        part = torch.ones(width)
        if indices is not None:
            part = torch.zeros(width).index_fill(0, indices, 1.0)
        parts.append(part)
    return torch.cat(parts)


def save_pruned(
    path: Path,
    network: nn.Module,
    kept: Mapping[str, Tensor | None],
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write a pruned network: weights as .safetensors, what is kept as .json beside it.

    Args:
        path: of the weights.
        network: plain, pruned.
        kept: how it was pruned.
        about: further plain data for the JSON, such as how to build the network.

    Returns:
        Path of the JSON.
    """
    from peira.engine.files import write_json

    write_tensors(path, copy.deepcopy(network).cpu().state_dict())
    beside = path.with_suffix(".json")
    listed = {name: None if i is None else i.tolist() for name, i in kept.items()}
    write_json(beside, {**(about or {}), "kept": listed})
    return beside


def read_kept(path: Path) -> tuple[Kept, dict[str, Any]]:
    """What a JSON of `save_pruned` says: `kept`, and the rest.

    Raises `DataError` for a file that is absent or says something else.
    """
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        kept = about.pop("kept")
        indices = {
            name: None if listed is None else torch.tensor(listed, dtype=torch.long)
            for name, listed in kept.items()
        }
    except OSError as error:
        raise DataError(error.strerror or str(error), path=path) from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(
            f"not a list of what is kept ({type(error).__name__}: {error})", path=path,
            expected='"kept": {block name: null or [channels]}',
        ) from error  # fmt: skip
    return indices, about


def load_pruned(path: Path, network: nn.Module) -> nn.Module:
    """A pruned network from its two files.

    Args:
        path: the .safetensors; the .json lies beside it.
        network: a fresh network of the old architecture; stays as it is.

    Raises:
        DataError: a file that is absent, of another format, or of another architecture.
    """
    beside = path.with_suffix(".json")
    kept, _ = read_kept(beside)
    refuse_absent(path)
    try:
        small = remove(network, kept)
    except ValueError as error:
        raise DataError(f"kept parts of another network: {error}", path=beside) from error
    load_weights(path, small)
    return small
