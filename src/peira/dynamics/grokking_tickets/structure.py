"""How periodic a network's token features are: the structure that a grokking ticket uncovers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def fourier_power(features: Float[Tensor, "tokens units"]) -> Float[Tensor, "frequencies units"]:
    """Share of each unit's variance over the tokens that lies at each frequency 1, 2, ..., p // 2.

    Columns sum to one; a unit that is constant over the tokens gets zeros.
    """
    power = torch.fft.rfft(features.detach().double(), dim=0).abs().square()[1:]
    if len(features) % 2 == 0:
        # The highest frequency of an even length has no mirror image; the others stand for two.
        power[-1] /= 2
    total = power.sum(dim=0, keepdim=True)
    return torch.where(total > 0, power / total.clamp_min(torch.finfo(power.dtype).tiny), 0.0)


def inverse_participation(power: Float[Tensor, "frequencies units"]) -> Float[Tensor, " units"]:
    """Sum of squared shares: 1 for a single frequency, 1 / (their number) when all are equal."""
    return power.square().sum(dim=0)


def periodicity(features: Float[Tensor, "tokens units"]) -> float:
    """Mean inverse participation ratio of the units, each weighted by its variance over tokens.

    Args:
        features: one column per unit, such as `TokenMLP.token_table()` or the embedding's rows.
    """
    variance = features.detach().double().var(dim=0)
    if not variance.any():
        return 0.0
    ratios = inverse_participation(fourier_power(features))
    return float((ratios * variance).sum() / variance.sum())
