"""What the consensus is compared with: scores after training, penalties in training, L0 gates."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from peira.nn.evaluation import evaluating
from peira.nn.structured import inner_convolutions, residual_blocks
from peira.weights.consensus_subnetwork.extraction import Kept, majority, open_share
from peira.weights.consensus_subnetwork.gates import GatedBlock, Mode, gate_blocks

Score = Literal["l1", "norm", "random", "uniform"]


def prune_by_score(
    network: nn.Module,
    inputs: Float[Tensor, "batch ..."],
    score: Score,
    share: float,
    mode: Mode = "channel",
    generator: torch.Generator | None = None,
) -> Kept:
    """Keep the highest-scored channels (or blocks) until they cost at least `share`.

    Args:
        network: plain, with residual blocks.
        inputs: one batch; it tells what each block costs.
        score: "l1": sum of |W| of a channel's filter, ranked within its layer, the same share of
            each layer goes (Li et al. 2017); "norm": |gamma| of the batch norm after it, over all
            layers (Liu et al. 2017); "random": over all layers; "uniform": the first channels of
            each layer (the last blocks of each stage go): a thinner (shallower) network.
        share: of the blocks' operations, in (0, 1].
        mode: as of `ConsensusPruner`; "l1" and "norm" are about channels only.
        generator: draws random scores.

    Returns:
        `Kept` with the fewest channels whose cost is `share` or more: never cheaper.

    Raises:
        ValueError: a share outside (0, 1], or a score that blocks do not have.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is that of the operations kept, above 0 to 1; got {share}")
    if mode == "layer" and score in ("l1", "norm"):
        raise ValueError(f"{score!r} scores channels: use mode 'channel'")
    blocks = measured_blocks(network, inputs, mode)
    scores = {name: _scores(block, score, generator) for name, block in blocks.items()}
    if mode == "layer" and score == "uniform":
        scores = _depth_scores(list(scores))
    return keep_to_share(blocks, scores, share)


def keep_to_share(
    blocks: Mapping[str, GatedBlock], scores: Mapping[str, Float[Tensor, " gates"]], share: float
) -> Kept:
    """The highest-scored gates of all blocks, as few as cost `share` of the operations or more.

    Of equal scores the earlier goes first.
    """
    flat = torch.cat([score.detach().cpu() for score in scores.values()])
    order = flat.argsort(descending=True, stable=True)
    low, high = 1, len(flat)
    while low < high:
        middle = (low + high) // 2
        # A shortfall of that size is rounding, as where all is kept.
        if open_share(blocks, _top(blocks, order, middle)) >= share - 1e-9:
            high = middle
        else:
            low = middle + 1
    return _top(blocks, order, low)


def measured_blocks(
    network: nn.Module, inputs: Float[Tensor, "batch ..."], mode: Mode
) -> dict[str, GatedBlock]:
    """The network's blocks with open gates, on a copy that has run once: they know their costs."""
    probe = copy.deepcopy(network)
    blocks = gate_blocks(probe, mode, lambda _, gates: HardConcreteGate(gates))
    with evaluating(probe):
        probe(inputs[:2])
    return blocks


def slimming_penalty(network: nn.Module) -> Float[Tensor, ""]:
    """Sum of |gamma| of the norms between a block's convolutions (Liu et al. 2017)."""
    return torch.cat([norm.weight for norm in inner_norms(network)]).abs().sum()


def polarization_penalty(network: nn.Module, t: float = 1.2) -> Float[Tensor, ""]:
    """t sum |gamma| - sum |gamma - mean gamma|, the mean over all layers (Zhuang et al. 2020).

    It pushes the scales of the norms between a block's convolutions to 0 or to a common value.
    Keep them in [0, 1] after each step, as published (`clamp_norms`).
    """
    gamma = torch.cat([norm.weight for norm in inner_norms(network)])
    return t * gamma.abs().sum() - (gamma - gamma.mean()).abs().sum()


def clamp_norms(network: nn.Module) -> None:
    """Bring gamma of the inner norms back into [0, 1], in place."""
    with torch.no_grad():
        for norm in inner_norms(network):
            norm.weight.clamp_(0, 1)


def inner_norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Batch norms between the convolutions of residual blocks."""
    found = []
    for block in residual_blocks(network).values():
        for _, name, _ in inner_convolutions(block):
            norm = block.get_submodule(name)
            assert isinstance(norm, nn.BatchNorm2d)
            found.append(norm)
    return found


class HardConcreteGate(nn.Module):
    """Gates that no input changes: hard concrete variables (Louizos, Welling, Kingma 2018).

    z = clamp(s (zeta - gamma) + gamma, 0, 1) with s a binary concrete variable of temperature
    beta; in evaluation s = sigmoid(log alpha). With beta = 2/3, gamma = -0.1, zeta = 1.1.

    Args:
        gates: how many.
        open_at_start: probability that a gate is open.
        speed: the parameter is log alpha / speed. Adam moves a parameter by its learning rate: at
            2e-3 log alpha itself would need thousands of steps to close a gate.
    """

    BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1

    def __init__(self, gates: int, open_at_start: float = 0.95, speed: float = 50.0) -> None:
        super().__init__()
        self.speed = speed
        start = math.log(open_at_start / (1 - open_at_start)) + self._shift
        self.scaled = nn.Parameter(torch.full((gates,), start / speed))

    @property
    def log_alpha(self) -> Float[Tensor, " gates"]:
        """Location of each gate's binary concrete variable."""
        return self.speed * self.scaled

    @property
    def _shift(self) -> float:
        return self.BETA * math.log(-self.GAMMA / self.ZETA)

    @property
    def share(self) -> Float[Tensor, " gates"]:
        """Probability that each gate is not 0 (equation 12)."""
        return torch.sigmoid(self.log_alpha - self._shift)

    @property
    def values(self) -> Float[Tensor, " gates"]:
        """The gates in evaluation (equation 13)."""
        return self._stretched(torch.sigmoid(self.log_alpha))

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "one gates"]:
        """One draw for the whole batch; the fixed values in evaluation."""
        if not self.training:
            return self.values[None]
        uniform = torch.rand_like(self.scaled).clamp(1e-6, 1 - 1e-6)
        return self._stretched(torch.sigmoid((torch.logit(uniform) + self.log_alpha) / self.BETA))[
            None
        ]

    def _stretched(self, s: Tensor) -> Tensor:
        return (s * (self.ZETA - self.GAMMA) + self.GAMMA).clamp(0, 1)


def hard_concrete_kept(blocks: Mapping[str, GatedBlock], share: float) -> Kept:
    """The likeliest L0 gates, their values put into the weights that follow, in place.

    Afterwards the plain blocks, without what is not kept, compute what the gated ones would with
    the other gates at 0.

    Args:
        blocks: blocks with `HardConcreteGate`.
        share: of the operations, see `keep_to_share`.
    """
    values = {name: _hard_concrete(block).values.detach() for name, block in blocks.items()}
    scores = {name: _hard_concrete(block).log_alpha for name, block in blocks.items()}
    for name, block in blocks.items():
        with torch.no_grad():
            if block.mode == "layer":
                last = block.convolutions[-1][1]
                last.weight.mul_(values[name])
                last.bias.mul_(values[name])
                continue
            following = [convolution for convolution, _ in block.convolutions[1:]]
            parts = values[name].split(block.widths)
            for convolution, part in zip(following, parts, strict=True):
                convolution.weight.mul_(part[None, :, None, None])
    return keep_to_share(blocks, scores, share)


def _hard_concrete(block: GatedBlock) -> HardConcreteGate:
    assert isinstance(block.gate, HardConcreteGate)
    return block.gate


def _scores(block: GatedBlock, score: Score, generator: torch.Generator | None) -> Tensor:
    gates = sum(block.widths) if block.mode == "channel" else 1
    if score == "random":
        return torch.rand(gates, generator=generator)
    if score == "uniform":
        return torch.cat([1 - torch.arange(width) / width for width in block.widths])
    parts = []
    for convolution, norm in block.convolutions[:-1]:
        if score == "norm":
            parts.append(norm.weight.detach().abs().cpu())
        else:
            sizes = convolution.weight.detach().abs().sum((1, 2, 3)).cpu()
            # A layer's filters are larger or smaller than another's: only ranks compare.
            parts.append((sizes.argsort().argsort() + 1) / len(sizes))
    return torch.cat(parts)


def _depth_scores(names: list[str]) -> dict[str, Tensor]:
    """Earlier blocks of a stage before later ones, all stages alike."""
    stages: dict[str, list[str]] = {}
    for name in names:
        stages.setdefault(name.rpartition("_")[0] or name.rpartition(".")[0], []).append(name)
    return {
        name: torch.tensor([1 - place / len(stage)])
        for stage in stages.values()
        for place, name in enumerate(stage)
    }


def _top(blocks: Mapping[str, GatedBlock], order: Tensor, count: int) -> Kept:
    chosen = torch.zeros(len(order))
    chosen[order[:count]] = 1.0
    sizes = [sum(b.widths) if b.mode == "channel" else 1 for b in blocks.values()]
    return majority(blocks, dict(zip(blocks, chosen.split(sizes), strict=True)))
