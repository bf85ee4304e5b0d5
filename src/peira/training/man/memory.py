"""What a training step holds for its backward passes: counted, not estimated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peira.nn.saved_tensors import SavedTensors

Loss = Callable[[Tensor], Tensor]

# Bytes of an auxiliary network that cannot be: no partition ends a module there.
IMPOSSIBLE = 1 << 62


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of one training step; pictures and weights do not count as held for a backward pass.

    Attributes:
        modules: most bytes held while each local module trains, its auxiliary network included.
        left: bytes still held when each module is done; 0 where its memory is really freed.
        end_to_end: most bytes held by backpropagation through the whole network.
        weights: of the network.
        auxiliary_weights: of the auxiliary networks, which training needs besides.
    """

    modules: tuple[int, ...]
    left: tuple[int, ...]
    end_to_end: int
    weights: int
    auxiliary_weights: int

    @property
    def peak(self) -> int:
        """Most bytes held at any time of the step."""
        return max(self.modules)

    @property
    def share(self) -> float:
        """The peak as a share of end-to-end training's."""
        return self.peak / self.end_to_end


def weight_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of all parameters."""
    return sum(w.numel() * w.element_size() for module in modules for w in module.parameters())


def peaks(steps: Iterator[object], ignore: Iterable[Tensor]) -> tuple[list[int], list[int]]:
    """For each step of a training step: most bytes held within it, and bytes held after it.

    Args:
        steps: does one local module's forward and backward pass at each `next`.
        ignore: tensors that are there anyway.
    """
    highest, after = [], []
    with SavedTensors(ignore=ignore) as meter:
        for _ in steps:
            highest.append(meter.peak)
            after.append(meter.live)
            meter.peak = meter.live
    return highest, after


def peak_bytes(step: Callable[[], object], ignore: Iterable[Tensor]) -> int:
    """Most bytes that autograd holds while `step` runs; tensors in `ignore` do not count."""
    with SavedTensors(ignore=ignore) as meter:
        step()
    return meter.peak


def end_to_end_backward(
    network: nn.Module, images: Float[Tensor, "batch ..."], loss: Loss
) -> Float[Tensor, "batch classes"]:
    """Plain backpropagation; gradients are added to the weights', the outputs returned."""
    logits: Tensor = network(images)
    loss(logits).backward()
    return logits.detach()


def checkpointed_backward(
    modules: Sequence[nn.Module], images: Float[Tensor, "batch ..."], loss: Loss
) -> Float[Tensor, "batch classes"]:
    """Backpropagation that keeps only what passes between modules and computes the rest twice.

    The gradients are those of `end_to_end_backward`: the same saving without local losses, for
    about a third more time. Batch statistics are updated twice.

    Args:
        modules: runs of units whose composition is the network.
        images: one batch.
        loss: of the outputs.
    """
    # A reentrant segment needs an input with a gradient, which pictures have not.
    spark = torch.zeros((), requires_grad=True)
    x = images
    for module in modules[:-1]:
        x = checkpoint(lambda x, _, module=module: module(x), x, spark, use_reentrant=True)
    # Nothing is gained by forgetting the last segment: its backward pass comes at once.
    return end_to_end_backward(modules[-1], x, loss)


def running_bytes(
    units: Sequence[nn.Module],
    images: Float[Tensor, "batch ..."],
    auxiliaries: Mapping[int, nn.Module],
    auxiliary_loss: Callable[[nn.Module, Tensor], Tensor],
    loss: Loss,
) -> tuple[list[int], list[int], list[int]]:
    """What `balanced_partition` needs to know, measured in one forward pass.

    Args:
        units: stem, units, head.
        images: one batch.
        auxiliaries: unit number -> the auxiliary network that would stand behind it.
        auxiliary_loss: (auxiliary network, its input) -> local loss.
        loss: of the outputs.

    Returns:
        Bytes held after the stem and each unit (the last with head and loss), bytes of their
        outputs, bytes that their auxiliary networks add, `IMPOSSIBLE` where there is none.
    """
    live, inputs, added = [], [], []
    ignore = [
        images,
        *(weight for unit in (*units, *auxiliaries.values()) for weight in unit.parameters()),
    ]
    with SavedTensors(ignore=ignore) as meter:
        x = images
        for number, unit in enumerate(units[:-1]):
            x = unit(x)
            live.append(meter.live)
            inputs.append(x.untyped_storage().nbytes())
            if number not in auxiliaries:
                added.append(IMPOSSIBLE)
                continue
            # Saved tensors are let go by a backward pass, not by forgetting the graph.
            local = auxiliary_loss(auxiliaries[number], x.detach().requires_grad_())
            added.append(meter.live - live[-1])
            local.backward()
        last = loss(units[-1](x))
        live[-1] = meter.live
        last.backward()
    return live, inputs, added
