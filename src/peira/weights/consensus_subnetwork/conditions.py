"""Every way to a smaller network that is compared, at equal epochs and equal operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from peira.data.modular import Split
from peira.weights.consensus_subnetwork.baselines import (
    HardConcreteGate,
    Score,
    clamp_norms,
    hard_concrete_kept,
    inner_norms,
    polarization_penalty,
    prune_by_score,
    slimming_penalty,
)
from peira.weights.consensus_subnetwork.extraction import Kept, remove
from peira.weights.consensus_subnetwork.gates import Mode, gate_blocks, ungated
from peira.weights.consensus_subnetwork.training import Recipe, Steps, plain_steps, train

# How the loops of one condition run, by name.
Loops = Callable[[str], Steps]

Baseline = Literal[
    "dense", "l1", "l1-tuned", "slimming", "bn-polarization", "hard-concrete", "random", "thin"
]
BASELINES: tuple[Baseline, ...] = Baseline.__args__  # type: ignore[attr-defined]

OF_CHANNELS: tuple[Baseline, ...] = ("l1", "l1-tuned", "slimming", "bn-polarization")
PENALTIES: dict[str, Callable[[nn.Module], Tensor]] = {
    "slimming": slimming_penalty,
    "bn-polarization": polarization_penalty,
}

# Share of the epochs after which a network that is tuned afterwards is pruned.
PRUNED_AT = 2 / 3


@dataclass(frozen=True)
class Pruned:
    """A network after pruning, and how it got there.

    Attributes:
        network: plain and small.
        kept: what was kept.
        epochs: of training in all, fine-tuning counted.
        full_epochs: of these, at the size of the network before pruning.
    """

    network: nn.Module
    kept: Kept
    epochs: int
    full_epochs: int


def prune_with(
    method: Baseline,
    network: nn.Module,
    data: Split,
    recipe: Recipe,
    share: float,
    mode: Mode = "channel",
    *,
    generator: torch.Generator,
    strength: float = 1e-2,
    loops: Loops = lambda name: plain_steps,
) -> Pruned:
    """Train a network and make it smaller the way of one baseline.

    Args:
        method: dense (nothing removed); l1 (trained, smallest filters removed); l1-tuned (the same
            after two thirds of the epochs, the rest fine-tunes); slimming, bn-polarization
            (penalties on the batch norms' scales, smallest removed, likewise tuned);
            hard-concrete (L0 gates trained with the weights); random, thin (the smaller network
            is trained alone from its initial weights).
        network: at its initial weights; trained in place.
        data: what it is trained on.
        recipe: epochs in all, and how.
        share: of the blocks' operations that stay, or the next more that can be had.
        mode: what is removed.
        generator: order of the inputs, random choices.
        strength: of the penalties on the scales.
        loops: see `Loops`.

    Raises:
        ValueError: a method that is unknown, or one about channels in mode "layer".
    """
    inputs = data.train_inputs
    if method not in BASELINES:
        raise ValueError(f"no method {method!r}; there are: {', '.join(BASELINES)}")
    if mode == "layer" and method in OF_CHANNELS:
        raise ValueError(f"{method!r} scores channels: use mode 'channel'")
    if method in ("random", "thin"):
        score: Score = "random" if method == "random" else "uniform"
        kept = prune_by_score(network, inputs, score, share, mode, generator)
        small = remove(network, kept)
        train(small, data, recipe, generator, loops("train"))
        return Pruned(small, kept, recipe.epochs, 0)
    if method == "hard-concrete":
        return _hard_concrete(network, data, recipe, share, mode, generator, loops)
    if method in ("dense", "l1"):
        train(network, data, recipe, generator, loops("train"))
        if method == "dense":
            return Pruned(network, {}, recipe.epochs, recipe.epochs)
        kept = prune_by_score(network, inputs, "l1", share, mode)
        return Pruned(remove(network, kept), kept, recipe.epochs, recipe.epochs)
    return _tuned(method, network, data, recipe, share, mode, generator, strength, loops)


def _tuned(
    method: Baseline,
    network: nn.Module,
    data: Split,
    recipe: Recipe,
    share: float,
    mode: Mode,
    generator: torch.Generator,
    strength: float,
    loops: Loops,
) -> Pruned:
    """Train, prune after two thirds of the epochs, train on."""
    first = replace(recipe, epochs=max(1, round(PRUNED_AT * recipe.epochs)))
    penalise = PENALTIES.get(method)

    def penalty() -> Tensor:
        assert penalise is not None
        return strength * penalise(network)

    def clamp(step: int, loss: float) -> None:
        clamp_norms(network)

    if penalise is not None:
        _halve_norms(network)
    train(
        network, data, first, generator, loops("train"),
        penalty if penalise else None, clamp if method == "bn-polarization" else None,
    )  # fmt: skip
    score: Score = "l1" if method == "l1-tuned" else "norm"
    kept = prune_by_score(network, data.train_inputs, score, share, mode)
    small = remove(network, kept)
    rest = replace(recipe, epochs=recipe.epochs - first.epochs)
    if rest.epochs:
        train(small, data, rest, generator, loops("tune"))
    return Pruned(small, kept, first.epochs + rest.epochs, first.epochs)


def _hard_concrete(
    network: nn.Module,
    data: Split,
    recipe: Recipe,
    share: float,
    mode: Mode,
    generator: torch.Generator,
    loops: Loops,
) -> Pruned:
    """L0 gates under the same penalty on the cost as the consensus: 10 max(0, C - share)^2."""
    blocks = gate_blocks(network, mode, lambda _, gates: HardConcreteGate(gates))

    def penalty() -> Tensor:
        costs = [block.cost(block.gate.share) for block in blocks.values()]  # type: ignore[arg-type]
        whole = sum(sum(block.flops) for block in blocks.values())
        return 10 * (torch.stack(costs).sum() / whole - share).clamp(min=0) ** 2

    train(network, data, recipe, generator, loops("train"), penalty)
    kept = hard_concrete_kept(blocks, share)
    return Pruned(remove(ungated(network), kept), kept, recipe.epochs, recipe.epochs)


def _halve_norms(network: nn.Module) -> None:
    """Scales start at 1/2, as in the official code of both penalties."""
    with torch.no_grad():
        for norm in inner_norms(network):
            norm.weight.fill_(0.5)
