"""What a network costs to run: operations, parameters, bytes, time."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import NamedTuple

from jaxtyping import Shaped
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from peira.nn.evaluation import evaluating


class Cost(NamedTuple):
    """Cost of one forward pass on one batch.

    Attributes:
        flops: floating-point operations of products and convolutions (a multiply and an add are
            two).
        parameters: trainable numbers.
        bytes: of parameters and buffers.
        seconds: median wall time.
    """

    flops: int
    parameters: int
    bytes: int
    seconds: float


def cost(model: nn.Module, inputs: Shaped[Tensor, "batch ..."], repeats: int = 20) -> Cost:
    """Measure a forward pass in evaluation mode.

    Args:
        model: any network.
        inputs: one batch.
        repeats: how often it is timed, after one pass that is not.
    """
    times = []
    with evaluating(model):
        model(inputs)
        for _ in range(repeats):
            started = perf_counter()
            model(inputs)
            # A device works on after the call returns.
            _wait_for(inputs)
            times.append(perf_counter() - started)
    held = [*model.parameters(), *model.buffers()]
    return Cost(
        flops(model, inputs),
        sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        sum(part.numel() * part.element_size() for part in held),
        median(times) if times else float("nan"),
    )


def flops(model: nn.Module, inputs: Shaped[Tensor, "batch ..."]) -> int:
    """Floating-point operations of products and convolutions in one forward pass."""
    with evaluating(model), FlopCounterMode(display=False) as counter:
        model(inputs)
    return int(counter.get_total_flops())


def unit_flops(
    model: nn.Module, inputs: Shaped[Tensor, "batch ..."], names: Sequence[str]
) -> dict[str, int]:
    """Operations of the named modules within one forward pass of the network."""
    with evaluating(model), FlopCounterMode(display=False) as counter:
        model(inputs)
    found = counter.get_flop_counts()
    root = type(model).__name__
    return {name: sum(found.get(f"{root}.{name}", {}).values()) for name in names}


def _wait_for(tensor: Tensor) -> None:
    if tensor.is_cuda:
        import torch

        torch.cuda.synchronize(tensor.device)
