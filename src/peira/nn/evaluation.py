"""How a trained network does: outputs, accuracy, the loss of each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler

SampleLoss = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The network in evaluation mode and without gradients; each part's own mode comes back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in modes.items():
            module.training = training


def predict(
    model: nn.Module, inputs: Float[Tensor, "n ..."], batch: int = 512
) -> Float[Tensor, "n ..."]:
    """Outputs for all inputs, in evaluation mode, `batch` at a time."""
    with evaluating(model):
        return torch.cat([model(part) for part in torch.split(inputs, batch)])


def accuracy(
    model: nn.Module, inputs: Float[Tensor, "n ..."], labels: Int[Tensor, " n"], batch: int = 512
) -> float:
    """Share of inputs whose largest output is their label."""
    return float((predict(model, inputs, batch).argmax(-1) == labels).double().mean())


def cross_entropies(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Cross entropy of each sample, nats."""
    return F.cross_entropy(logits, labels, reduction="none")


def sample_losses(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    loss: SampleLoss = cross_entropies,
) -> Float[Tensor, " n"]:
    """The loss of each sample, in the order of the data set, on the CPU.

    Args:
        model: takes the loader's inputs.
        loader: batches of (inputs, labels); a `DataLoader` that does not shuffle.
        loss: (outputs, labels) -> one loss for each sample.

    Raises:
        ValueError: a loader that shuffles or drops samples: their losses would have no order.
    """
    if isinstance(loader, DataLoader):
        ordered = loader.batch_sampler is None or isinstance(loader.sampler, SequentialSampler)
        if not ordered or loader.drop_last:
            raise ValueError("losses in data-set order need a DataLoader with shuffle=False, "
                             "drop_last=False and no sampler of its own")  # fmt: skip
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    with evaluating(model):
        parts = [loss(model(x.to(device)), y.to(device)).cpu() for x, y in loader]
    return torch.cat(parts)
