"""What a curriculum is held against: co-teaching, and steps of the learning rate per sample."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from peira.data.errors import DataError


def kept_by_coteaching(epoch: float, noise_rate: float, ramp: float = 10.0) -> float:
    """Share of a batch that co-teaching trusts: from 1 down to 1 - noise rate in `ramp` epochs.

    Source: Han et al. 2018, "Co-teaching", R(T) of algorithm 1.
    """
    return 1 - noise_rate * min(epoch / ramp, 1.0)


def coteaching_losses(
    first: Float[Tensor, "batch classes"],
    second: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    keep: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Each network's mean loss on the samples that have a small loss under the other one.

    Args:
        first, second: logits of the two networks.
        labels: classes, some of them wrong.
        keep: share of the batch that counts.

    Source: Han et al. 2018, "Co-teaching", algorithm 1.
    """
    if not 0 < keep <= 1:
        raise DataError("share of the batch to keep", value=keep, expected="in (0, 1]")
    losses = [F.cross_entropy(logits, labels, reduction="none") for logits in (first, second)]
    count = max(1, math.floor(keep * len(labels)))
    chosen = [loss.detach().argsort(stable=True)[:count] for loss in losses]
    return losses[0][chosen[1]].mean(), losses[1][chosen[0]].mean()


class CosinePerSample(LRScheduler):
    """A cosine from the optimiser's learning rate to zero, over samples seen and not over rounds.

    Rounds of a cycle are cheaper than epochs: a schedule that steps once a round would decay too
    fast. Call `step(samples)` after every batch.

    Args:
        optimizer: its learning rates are the starting ones.
        total_samples: where the learning rate reaches zero.
    """

    def __init__(self, optimizer: Optimizer, total_samples: int) -> None:
        self.total_samples, self.samples = total_samples, 0
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """Learning rates at the samples seen so far."""
        share = min(self.samples / self.total_samples, 1.0)
        return [rate * (1 + math.cos(math.pi * share)) / 2 for rate in self.base_lrs]

    def step(self, samples: int = 0) -> None:  # type: ignore[override]
        """Count the samples of a batch."""
        self.samples += samples
        super().step()


def blend_samples(
    inputs: Float[Tensor, "n ..."], rate: float, generator: torch.Generator
) -> tuple[Float[Tensor, "n ..."], Tensor]:
    """Make a share of the samples ambiguous: the mean of the sample and another one.

    Labels stay. Returns the inputs and which of them (n,) are blends.
    """
    if not 0 <= rate <= 1:
        raise DataError("not a share of samples", value=rate, expected="a number in [0, 1]")
    n = len(inputs)
    chosen = torch.randperm(n, generator=generator)[: round(rate * n)]
    # A shift of 1 to n - 1 places: never the sample itself.
    others = (chosen + torch.randint(1, n, chosen.shape, generator=generator)) % n
    blended = inputs.clone()
    blended[chosen] = (inputs[chosen] + inputs[others]) / 2
    mask = torch.zeros(n, dtype=torch.bool)
    mask[chosen] = True
    return blended, mask
