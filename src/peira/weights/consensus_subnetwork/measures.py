"""What is measured of a pruner: its training, its votes, the network it leaves, and its times."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from peira.data.modular import Split
from peira.nn.costs import flops
from peira.nn.evaluation import evaluating, predict
from peira.nn.pruning import apply_masks, remove_masks
from peira.nn.structured import residual_blocks
from peira.weights.consensus_subnetwork.extraction import consensus_masks, gates_of, open_share
from peira.weights.consensus_subnetwork.method import ConsensusPruner
from peira.weights.consensus_subnetwork.training import Recipe, Steps, train, train_step

# Repetitions of times that are compared, taken in turns.
REPEATS = 9


def train_consensus(
    pruner: ConsensusPruner,
    data: Split,
    recipe: Recipe,
    generator: torch.Generator,
    steps: Steps,
) -> dict[str, Any]:
    """Train a pruner's network and count its votes.

    Returns:
        `state` of the gated network, `curve` of (step, values) after each epoch, `open_cost` of
        what is kept, and `operations`: those of the whole training / those of the dense network's.
    """
    per_epoch = recipe.per_epoch(len(data.train_inputs))
    pruner.observe([data.train_inputs[:2]])
    dense = flops(pruner.plain(), data.train_inputs[:1])
    gates = sum(gate.flops for gate in pruner.gates.values())
    # A plain dict, so that a resumed loop finds it.
    record: dict[str, Any] = {"curve": [], "saved": 0.0, "steps": 0}

    def after(step: int, loss: float) -> None:
        record["saved"] += sum(
            sum(block.flops) * (1 - block.computed) for block in pruner.blocks.values()
        )
        record["steps"] = step
        if step % per_epoch == 0:
            shares = {name: gate.share.detach() for name, gate in pruner.gates.items()}
            votes = torch.cat(list(shares.values()))
            values = {
                "loss": loss,
                "open_cost": float(pruner.open_cost(shares)),
                "split_votes": float((votes * (1 - votes)).mean()),
            }
            record["curve"].append((step, values))

    train(
        pruner.model, data, recipe, generator,
        lambda total, save: steps(total, [*save, record]), pruner.penalty, after,
    )  # fmt: skip
    pruner.observe(data.train_inputs.split(512))
    return {
        "state": copy.deepcopy(pruner.model).state_dict(),
        "curve": record["curve"],
        "open_cost": open_share(pruner.blocks, pruner.kept),
        "operations": 1 + (gates - record["saved"] / max(1, record["steps"])) / dense,
    }


def size(before: nn.Module, after: nn.Module, inputs: Float[Tensor, "n ..."]) -> dict[str, float]:
    """Operations and parameters of a pruned network beside those before.

    Returns:
        `operations` and `parameters`: after / before, of the whole network; `removed`: share of the
        parameters of the blocks' branches (all but their shortcuts) that is gone.
    """
    counts = [sum(weight.numel() for weight in network.parameters()) for network in (before, after)]
    branches = sum(
        weight.numel()
        for block in residual_blocks(before).values()
        for name, weight in block.named_parameters()
        if not name.startswith("downsample")
    )
    return {
        "operations": flops(after, inputs[:1]) / flops(before, inputs[:1]),
        "parameters": counts[1] / counts[0],
        "removed": (counts[0] - counts[1]) / branches,
    }


def fidelity(
    pruner: ConsensusPruner, small: nn.Module, inputs: Float[Tensor, "n ..."]
) -> dict[str, float]:
    """How far the extracted network's logits are from the gated one's.

    Returns:
        `unanimous`: share of the inputs whose gates are all those of the majority;
        `largest_difference`: over their logits, where there are any.
    """
    kept = pruner.kept
    with evaluating(pruner.model):
        gated = pruner.model(inputs)
    alike = torch.ones(len(inputs), dtype=torch.bool, device=inputs.device)
    for name, block in pruner.blocks.items():
        decisions = pruner.gates[name].decisions
        assert decisions is not None
        wanted = gates_of(name, block, kept).to(decisions.device)
        alike &= (decisions == wanted).all(1)
    found = {"unanimous": float(alike.double().mean())}
    if alike.any():
        difference = (gated - predict(small, inputs, len(inputs)))[alike].abs().max()
        found["largest_difference"] = float(difference)
    return found


def inference_times(
    dense: nn.Module,
    small: nn.Module,
    kept: Mapping[str, Tensor | None],
    inputs: Float[Tensor, "n ..."],
) -> dict[str, float]:
    """Time of the extracted network on one batch beside the dense one's.

    Returns:
        `inference_seconds_ratio`; `masked_seconds_ratio`, with zeros in place of what is removed.
    """
    masked = remove_masks(apply_masks(copy.deepcopy(dense), consensus_masks(dense, kept)))
    with evaluating(dense), evaluating(small), evaluating(masked):
        times = in_turns(*(lambda n=network: n(inputs) for network in (dense, small, masked)))
    return {
        "inference_seconds_ratio": times[1] / times[0],
        "masked_seconds_ratio": times[2] / times[0],
    }


def step_time(
    pruner: ConsensusPruner, plain: nn.Module, data: Split, recipe: Recipe
) -> dict[str, float]:
    """Time of a training step with gates that skip / of one of the dense network.

    Both are copies of the trained ones: it is the step at the end of training.
    """
    inputs, labels = data.train_inputs[: recipe.batch], data.train_labels[: recipe.batch]

    def stepper(network: nn.Module, penalty: Callable[[], Tensor] | None) -> Callable[[], object]:
        network.train()
        optimizer = Recipe(learning_rate=0.0).optimizer(network)
        return lambda: train_step(network, inputs, labels, optimizer, penalty)

    probe = copy.deepcopy(pruner)
    gated, dense = in_turns(
        stepper(probe.model, probe.penalty), stepper(copy.deepcopy(plain), None)
    )
    return {"step_seconds_ratio": gated / dense}


def in_turns(*calls: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Shortest time of each call in seconds; they take turns, so that a busy machine is fair."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(repeats):
        for call, own in zip(calls, times, strict=True):
            began = perf_counter()
            call()
            # A device works on after the call returns.
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            own.append(perf_counter() - began)
    return [min(own) for own in times]
