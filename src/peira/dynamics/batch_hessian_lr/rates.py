"""Learning rates from curvature: stability limits, rules for other batch sizes, heavy ball."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

from peira.data.errors import DataError
from peira.dynamics.batch_hessian_lr.law import BatchSpectrumLaw, Estimate, Estimator
from peira.dynamics.probes.curvature import Data, Loss, gradient_moments

OptimizerName = Literal["sgd", "adam"]


def max_lr(
    law: BatchSpectrumLaw,
    batch: int,
    optimizer: OptimizerName = "sgd",
    momentum: float | None = None,
    damping: float = 1e-8,
    estimator: Estimator = "directional",
    published: bool = False,
) -> Estimate:
    """The largest stable learning rate at a batch size, with its interval.

    SGD: 2 (1 + mu) / (lambda_1 + e (1 + mu) / (1 - mu)), where e = lambda_1'(B) - lambda_1 is what
    the batch adds: along u_1 this is where heavy ball on a quadratic with random curvature becomes
    unstable in mean square. Without momentum it is the paper's 2 / lambda_1'(B). Adam: the same
    with rate lr (1 - beta_1) on the preconditioned curvature, at Adam's second moment for batches
    of this size.

    Args:
        law: from `batch_spectrum_law`.
        batch: B, 1 to N.
        optimizer: "sgd" or "adam".
        momentum: of SGD (0), or beta_1 of Adam (0.9).
        damping: Adam's epsilon.
        estimator: of lambda_1', for SGD.
        published: 2 (1 + mu) / lambda_1'(B), which forgets that momentum adds up noise.

    Raises `DataError` for B out of range, or momentum outside [0, 1).
    """
    mu = momentum if momentum is not None else 0.9 if optimizer == "adam" else 0.0
    limit = _limit(optimizer, mu)
    if optimizer == "adam":
        full, largest = law.adam_largest_at(batch, damping)
    else:
        full, largest = law.largest, law.largest_at(batch, estimator)
    gain = 1.0 if published else (1 + mu) / (1 - mu)

    def rate(batch_largest: float) -> float:
        # The interval of a noise may reach below none.
        return limit / (full + max(batch_largest - full, 0.0) * gain)

    return Estimate(rate(largest.value), rate(largest.high), rate(largest.low))


def _limit(optimizer: str, momentum: float) -> float:
    """Learning rate times curvature at which a quadratic becomes unstable."""
    if not 0 <= momentum < 1:
        raise DataError("impossible momentum", value=momentum, expected="0 up to below 1")
    if optimizer == "sgd":
        return 2 * (1 + momentum)
    if optimizer == "adam":
        return 2 * (1 + momentum) / (1 - momentum)
    raise DataError("unknown optimiser", value=optimizer, expected="'sgd' or 'adam'")


def min_damping(law: BatchSpectrumLaw, batch: int, lr: float, momentum: float = 0.0) -> Estimate:
    """The damping below which preconditioned steps lr g / (D + damping) are unstable where D is 0.

    lr / damping is then the rate of plain steps (with Adam's beta_1: times 1 - beta_1), so that
    damping = lr over the largest stable rate: proportional to lr / B where the noise dominates.

    Args:
        law, batch: as for `max_lr`.
        lr: learning rate.
        momentum: beta_1.
    """
    limit = max_lr(law, batch, "sgd", momentum)
    step = lr * (1 - momentum)
    return Estimate(step / limit.value, step / limit.high, step / limit.low)


def rescale_lr(
    lr: float,
    b_old: int,
    b_new: int,
    optimizer: OptimizerName = "sgd",
    law: BatchSpectrumLaw | None = None,
    momentum: float | None = None,
) -> float:
    """A learning rate that worked at one batch size, for another.

    Without a law the paper's rules: linear for SGD, square root for Adam. With one, in proportion
    to `max_lr`, which saturates where the full curvature takes over.

    Raises `DataError` for a rate or size that is not positive.
    """
    _limit(optimizer, 0.0)
    if lr <= 0 or b_old < 1 or b_new < 1:
        raise DataError("rate and sizes must be positive", value=(lr, b_old, b_new))
    if law is None:
        return lr * (b_new / b_old) ** (1.0 if optimizer == "sgd" else 0.5)
    new, old = (float(max_lr(law, b, optimizer, momentum)) for b in (b_new, b_old))
    return lr * new / old


def heavy_ball(largest: float, smallest: float) -> tuple[float, float]:
    """Learning rate and momentum that are best for a quadratic with these extremal curvatures.

    lr = 4 / (sqrt(lambda_1) + sqrt(lambda_min))^2, momentum = ((sqrt(lambda_1) - sqrt(lambda_min))
    / (sqrt(lambda_1) + sqrt(lambda_min)))^2 (Polyak 1964).

    Raises `DataError` unless 0 < smallest <= largest.
    """
    if not 0 < smallest <= largest:
        raise DataError("impossible curvatures", value=(largest, smallest))
    high, low = math.sqrt(largest), math.sqrt(smallest)
    return 4 / (high + low) ** 2, ((high - low) / (high + low)) ** 2


def noise_scale(model: nn.Module, loss: Loss, data: Data) -> float:
    """tr(Sigma) / |g|^2, the critical batch size of McCandlish et al. (2018), in examples."""
    mean, variance = gradient_moments(model, loss, data)
    return float(variance.sum() / mean.square().sum())


def noise_scale_lr(lr: float, b_old: int, b_new: int, scale: float) -> float:
    """Rescale by lr(B) = lr_inf / (1 + scale / B), the rule of the gradient noise scale."""
    return lr * (1 + scale / b_old) / (1 + scale / b_new)
