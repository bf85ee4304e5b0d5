"""BD-KD: a large and a small classifier learn together; entropies balance the divergences.

A student that is more certain than its teacher is spread by the forward divergence, any other
sharpened by the reverse one (Amara et al. 2022). Use the losses in a training loop of your own, or
`OnlineDistiller` as it is.
"""

from __future__ import annotations

from peira.weights.bd_kd.distiller import (
    Distilled,
    OnlineDistiller,
    cosine_decay,
    kd_sgd,
    step_decay,
)
from peira.weights.bd_kd.loss import (
    BalancedDistillation,
    DistillationLoss,
    Divergences,
    MutualLoss,
    OfflineDistillation,
    Softened,
    balance_weights,
    bdkd_loss,
    divergences,
    expert_mode,
    smallest_logits,
)
from peira.weights.bd_kd.scheme import (
    Collaborative,
    Scheme,
    Switched,
    entropy_gap,
    make_scheme,
    posterior_divergence,
    true_calibration_error,
)

__all__ = [
    "BalancedDistillation",
    "Collaborative",
    "DistillationLoss",
    "Distilled",
    "Divergences",
    "MutualLoss",
    "OfflineDistillation",
    "OnlineDistiller",
    "Scheme",
    "Softened",
    "Switched",
    "balance_weights",
    "bdkd_loss",
    "cosine_decay",
    "divergences",
    "entropy_gap",
    "expert_mode",
    "kd_sgd",
    "make_scheme",
    "posterior_divergence",
    "smallest_logits",
    "step_decay",
    "true_calibration_error",
]
