"""What ties the energy to learning: squared errors against a pattern and its negative."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Real


def squared_errors(
    states: Int[np.ndarray, "states spins"], patterns: Real[np.ndarray, "patterns spins"]
) -> tuple[Float[np.ndarray, "states patterns"], Float[np.ndarray, "states patterns"]]:
    """L+ and L-: (1/N) ||xi + sigma||^2 and (1/N) ||xi - sigma||^2.

    For patterns with (1-d) N non-blank entries they are (2-d) +- 2 m.
    """
    signs = states.astype(float)
    both = [
        np.stack([np.square(xi + sign * signs).mean(axis=1) for xi in patterns], axis=1)
        for sign in (1, -1)
    ]
    return both[0], both[1]


def parallel_loss(
    states: Int[np.ndarray, "states spins"], patterns: Real[np.ndarray, "patterns spins"]
) -> Float[np.ndarray, " states"]:
    """sum_mu L_mu^+ L_mu^-: small when a state is near each pattern or its negative.

    Equal to sum_mu ((2 - d_mu)^2 - 4 m_mu^2), so that H / N = (loss - constant) / (8 (1-d)).
    """
    plus, minus = squared_errors(states, patterns)
    return (plus * minus).sum(axis=1)
