"""A consensus sub-network: gates trained with the weights, made to agree, then removed.

Zhi, Babbar, Liu, Sun, Silavong, Shi, Moran, "Learning a Consensus Sub-Network with Polarization
Regularization and One Pass Training", arXiv 2302.10798. Dynamic gates decide for each input which
blocks or channels it uses; a polarization across inputs makes all inputs decide alike; what nobody
uses is removed, with the gates, and a smaller ordinary network remains.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from peira.data.modular import Split
from peira.nn.costs import Cost, cost
from peira.nn.evaluation import accuracy, evaluating
from peira.weights.consensus_subnetwork.baselines import (
    HardConcreteGate,
    polarization_penalty,
    prune_by_score,
    slimming_penalty,
)
from peira.weights.consensus_subnetwork.conditions import BASELINES, prune_with
from peira.weights.consensus_subnetwork.extraction import (
    Kept,
    consensus_masks,
    load_pruned,
    majority,
    open_share,
    remove,
    save_pruned,
)
from peira.weights.consensus_subnetwork.gates import Gate, GatedBlock, Mode, gate_blocks, ungated
from peira.weights.consensus_subnetwork.training import Recipe, set_rate, train, train_step

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ConsensusPruner",
    "Gate",
    "GatedBlock",
    "HardConcreteGate",
    "Recipe",
    "Report",
    "compare",
    "consensus_masks",
    "gate_blocks",
    "load_pruned",
    "polarization_penalty",
    "prune_by_score",
    "remove",
    "save_pruned",
    "slimming_penalty",
    "train",
    "vote_variance",
]

Form = Literal["hinge", "linear"]

# Below this share of unanimous gates a majority is no consensus.
AGREEMENT = 0.95
# How far the open cost may stay above its target before a person is told.
MISSED = 0.05


@dataclass(frozen=True)
class Report:
    """What a pruner found.

    Attributes:
        votes: gated unit -> share of inputs that open each of its gates.
        kept: what `peira.nn.slim` takes.
        agreement: share of gates on which 99% of the inputs agree.
        open_cost: share of the gated units' operations that is kept.
        target: the share that was asked for.
        gate_flops: operations of all gate modules / operations of the gated units, in training.
        dense: cost of the network before.
        extracted: cost of the network after.
    """

    votes: Mapping[str, list[float]]
    kept: Kept
    agreement: float
    open_cost: float
    target: float
    gate_flops: float
    dense: Cost
    extracted: Cost


def vote_variance(shares: Iterable[Float[Tensor, " gates"]]) -> Float[Tensor, ""]:
    """The polarization loss: mean over gates of s (1 - s), s the share of inputs that open one.

    1/4 at split votes, 0 when all inputs agree, whichever way.
    """
    every = torch.cat(list(shares))
    return (every * (1 - every)).mean()


class ConsensusPruner:
    """Gates on a network's residual blocks, the losses that close and unite them, and the result.

    Any loop that adds `penalty()` to its loss trains `model`; `fit` is such a loop. Then `observe`
    counts the votes of a training set (without it running averages count), and `extract` gives the
    smaller network. The loss is L_task + `activation` L_act + `polarization` L_pol with
    L_act = 10 max(0, C - target)^2 (hinge) or C (linear), C the open share of the units'
    operations, and L_pol as in `vote_variance`.

    Args:
        model: a network with residual blocks (torchvision's attribute names); copied.
        mode: "layer" removes whole blocks, "channel" channels between a block's convolutions.
        sparsity: share of the gated units' operations to remove, in [0, 1).
        polarization: weight of L_pol; 0 leaves dynamic gates without consensus.
        activation: weight of L_act; with form "linear" it sets the sparsity.
        form: of L_act.
        cost_weighted: count operations; else every unit (gate) counts the same.
        units: names of what to gate; all residual blocks without it.
        gate_width: hidden units of a gate module.
        noise: logistic noise on the gates' logits in training.
        skip: in training and evaluation leave out what no input (layer mode: this input) opens.

    Attributes:
        model: the gated network: a plain forward pass to logits.
        blocks: name -> gated block.

    Raises:
        ValueError: sparsity outside [0, 1), a negative weight, or nothing that can be gated.
    """

    def __init__(
        self,
        model: nn.Module,
        mode: Mode = "layer",
        sparsity: float = 0.5,
        *,
        polarization: float = 1.0,
        activation: float = 1.0,
        form: Form = "hinge",
        cost_weighted: bool = True,
        units: Sequence[str] | None = None,
        gate_width: int = 16,
        noise: bool = False,
        skip: bool = False,
    ) -> None:
        if not 0 <= sparsity < 1:
            raise ValueError(f"sparsity is the share removed, from 0 to below 1; got {sparsity}")
        if mode not in ("layer", "channel"):
            raise ValueError(f"mode is 'layer' or 'channel'; got {mode!r}")
        if polarization < 0 or activation < 0:
            raise ValueError("the weights of the losses must not be negative")
        self.model = copy.deepcopy(model)
        self.mode, self.sparsity = mode, sparsity
        self.polarization, self.activation = polarization, activation
        self.form, self.cost_weighted = form, cost_weighted
        self.blocks: dict[str, GatedBlock] = gate_blocks(
            self.model,
            mode,
            lambda channels, gates: Gate(channels, gates, gate_width, noise=noise),
            units,
            skip,
        )
        self._example: Tensor | None = None
        self._warned = False

    @property
    def gates(self) -> dict[str, Gate]:
        """Name -> gate module of each gated block."""
        return {name: cast(Gate, block.gate) for name, block in self.blocks.items()}

    @property
    def target(self) -> float:
        """Share of the operations that may stay open."""
        return 1 - self.sparsity

    def penalty(self, within: nn.Module | None = None) -> Float[Tensor, ""]:
        """`activation` L_act + `polarization` L_pol of the last forward pass.

        Args:
            within: only gates inside this module get a gradient (and pass it on to their inputs);
                the others enter as constants, so that a local block can go backward on its own.

        Raises:
            ValueError: before the first forward pass.
        """
        inside = None if within is None else set(within.modules())
        shares = {}
        for name, gate in self.gates.items():
            own = inside is None or gate in inside
            shares[name] = gate.share if own else gate.share.detach()
        self._warn_of_single()
        over = self.open_cost(shares)
        if self.form == "hinge":
            over = 10 * (over - self.target).clamp(min=0) ** 2
        return self.activation * over + self.polarization * vote_variance(shares.values())

    def open_cost(self, shares: Mapping[str, Float[Tensor, " gates"]]) -> Float[Tensor, ""]:
        """C: open share of the gated units' operations, for these open shares of the gates."""
        if not self.cost_weighted:
            return torch.cat(list(shares.values())).mean()
        # Local training asks before the later blocks have run: those do not count yet.
        known = {name: block for name, block in self.blocks.items() if block.flops}
        if not known:
            raise ValueError("the cost is known after a forward pass: run the network on a batch")
        left = torch.stack([block.cost(shares[name]) for name, block in known.items()]).sum()
        return left / sum(sum(block.flops) for block in known.values())

    def fit(
        self,
        loader: Iterable[tuple[Tensor, Tensor]],
        epochs: int,
        optimizer: torch.optim.Optimizer | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        watch: Callable[[int, float], None] | None = None,
    ) -> Self:
        """Train weights and gates together, then count the votes of the training set.

        Args:
            loader: batches of inputs and labels, iterated once an epoch.
            epochs: how often.
            optimizer: over `model`'s parameters, at its own rate; without it that of `Recipe`.
            loss: of outputs and labels.
            watch: called after each epoch with its number and mean loss.
        """
        device = next(self.model.parameters()).device
        recipe = None if optimizer else Recipe(epochs)
        optimizer = optimizer or Recipe().optimizer(self.model)
        for epoch in range(1, epochs + 1):
            if recipe is not None:
                set_rate(optimizer, recipe.rate((epoch - 1) / epochs))
            self.model.train()
            losses = [
                train_step(self.model, x.to(device), y.to(device), optimizer, self.penalty, loss)
                for x, y in loader
            ]
            if watch is not None and losses:
                watch(epoch, sum(losses) / len(losses))
        return self.observe(loader)

    def observe(self, loader: Iterable[Tensor | Sequence[Tensor]]) -> Self:
        """Count the votes of all inputs of a loader, in evaluation mode; `extract` goes by them.

        Args:
            loader: batches of inputs, or tuples that begin with them.

        Raises:
            ValueError: a loader that gives nothing (an iterator can be used up).
        """
        device = next(self.model.parameters()).device
        gates = self.gates
        sums = {name: torch.zeros_like(gate.votes) for name, gate in gates.items()}
        count = 0
        with evaluating(self.model):
            for batch in loader:
                x = (batch if isinstance(batch, Tensor) else batch[0]).to(device)
                self.model(x)
                self._example, count = x, count + len(x)
                for name, gate in gates.items():
                    if gate.decisions is not None:
                        sums[name] += gate.decisions.sum(0)
        if not count:
            raise ValueError("the loader gives no inputs")
        for name, gate in gates.items():
            gate.votes.copy_(sums[name] / count)
        return self

    @property
    def votes(self) -> dict[str, Float[Tensor, " gates"]]:
        """Share of inputs that open each gate of each unit."""
        return {name: gate.votes.clone() for name, gate in self.gates.items()}

    @property
    def kept(self) -> Kept:
        """What a majority of inputs opens, as `peira.nn.slim` takes it; never nothing at all."""
        return majority(self.blocks, self.votes)

    @property
    def agreement(self) -> float:
        """Share of gates that at least 99% of the inputs open, or at least 99% close."""
        votes = torch.cat(list(self.votes.values()))
        return float(((votes <= 0.01) | (votes >= 0.99)).double().mean())

    def plain(self) -> nn.Module:
        """A copy of the network without gates, nothing removed."""
        return ungated(self.model)

    def extract(self, recalibrate: Iterable[Sequence[Tensor]] | None = None) -> nn.Module:
        """The smaller plain network: what the majority keeps, without gates.

        Its outputs are the gated network's for all inputs whose gates are those of the majority.

        Args:
            recalibrate: batches that begin with inputs, on which all batch norms take their
                statistics anew; a help where gates do not agree. Without it they stay.

        Warns:
            UserWarning: gates that do not agree, a target that was missed, or all gates closed.
        """
        kept = self.kept
        if self.agreement < AGREEMENT:
            _warn(
                f"only {self.agreement:.0%} of the gates are unanimous: the extracted network "
                "differs from the gated one; use a larger polarization or train longer"
            )
        if all(bool((votes <= 0.5).all()) for votes in self.votes.values()):
            _warn("all gates are closed: the unit with the most votes is kept; lower the sparsity")
        elif any(block.flops for block in self.blocks.values()):
            achieved = open_share(self.blocks, kept)
            if self.form == "hinge" and achieved > self.target + self._granularity():
                _warn(
                    f"the target was not reached: {achieved:.0%} of the operations are open, "
                    f"{self.target:.0%} were asked for; train longer or raise activation"
                )
        small = remove(self.plain(), kept)
        if recalibrate is not None:
            update_bn(recalibrate, small, next(small.parameters()).device)
        return small

    def report(self, inputs: Tensor | None = None) -> Report:
        """Votes, agreement, and what the network costs before and after.

        Args:
            inputs: one batch to run on; the last that `observe` or `fit` saw without it.

        Raises:
            ValueError: no inputs were given and none were seen.
        """
        inputs = self._example if inputs is None else inputs
        if inputs is None:
            raise ValueError("give a batch of inputs: none was seen by fit or observe")
        kept, plain = self.kept, self.plain()
        if not all(block.flops for block in self.blocks.values()):
            with evaluating(self.model):
                self.model(inputs)
        units = sum(sum(block.flops) for block in self.blocks.values())
        return Report(
            votes={name: votes.tolist() for name, votes in self.votes.items()},
            kept=kept,
            agreement=self.agreement,
            open_cost=open_share(self.blocks, kept),
            target=self.target,
            gate_flops=sum(gate.flops for gate in self.gates.values()) / units,
            dense=cost(plain, inputs),
            extracted=cost(remove(plain, kept), inputs),
        )

    def _granularity(self) -> float:
        """How far from the target the open cost may end: a whole block in layer mode."""
        if self.mode == "channel":
            return MISSED
        costs = [sum(block.flops) for block in self.blocks.values()]
        return max(costs) / sum(costs)

    def _warn_of_single(self) -> None:
        decisions = next(iter(self.gates.values())).decisions
        single = decisions is not None and len(decisions) == 1 and self.model.training
        if single and not self._warned:
            self._warned = True
            _warn("a batch of one input: the share of inputs that agree means nothing; use more")


def compare(
    make_network: Callable[[], nn.Module],
    data: Split,
    methods: Sequence[str] = ("dense", "consensus", "l1-tuned", "random", "thin"),
    mode: Mode = "channel",
    sparsity: float = 0.5,
    recipe: Recipe | None = None,
    seeds: int = 3,
    watch: Callable[[str, int], None] | None = None,
) -> pd.DataFrame:
    """Pruning methods on a person's data, at equal epochs; the baselines keep what we keep.

    Args:
        make_network: gives a fresh network, drawn from PyTorch's global generator.
        data: inputs and labels, to train and to test.
        methods: "consensus" and some of `peira.weights.consensus_subnetwork.conditions.BASELINES`.
        mode: what is removed.
        sparsity: share of the blocks' operations that the consensus is to remove; the others keep
            as many as it did with that seed (without it: exactly the rest).
        recipe: epochs and learning rate.
        seeds: repetitions.
        watch: called with method and seed before each.

    Returns:
        A row for each method and seed: accuracy on the test part, and the network's `Cost` on up
        to 256 inputs.

    Raises:
        ValueError: an unknown method, or one that has no such mode.
    """
    import pandas as pd

    recipe = recipe or Recipe()
    for method in methods:
        if method not in ("consensus", *BASELINES):
            known = ", ".join(("consensus", *BASELINES))
            raise ValueError(f"no method {method!r}; there are: {known}")
    rows = []
    for seed in range(seeds):
        share = 1 - sparsity
        for method in sorted(methods, key=lambda name: name != "consensus"):
            if watch is not None:
                watch(method, seed)
            torch.manual_seed(seed)
            network, generator = make_network(), torch.Generator().manual_seed(seed)
            if method == "consensus":
                pruner = ConsensusPruner(network, mode, sparsity)
                train(pruner.model, data, recipe, generator, penalty=pruner.penalty)
                pruner.observe(data.train_inputs.split(512))
                small, share = pruner.extract(), open_share(pruner.blocks, pruner.kept)
            else:
                small = prune_with(
                    method, network, data, recipe, share, mode, generator=generator
                ).network  # type: ignore[arg-type]
            found = cost(small, data.test_inputs[:256])
            right = accuracy(small, data.test_inputs, data.test_labels)
            rows.append({"method": method, "seed": seed, "accuracy": right, **found._asdict()})
    return pd.DataFrame(rows)


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=3)
