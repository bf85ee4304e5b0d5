"""Tosses of a coin."""

import numpy as np

__all__ = ["heads"]


def heads(bias: float, tosses: int, rng: np.random.Generator) -> float:
    """Share of heads in `tosses` throws of a coin with that bias."""
    return float((rng.random(tosses) < bias).mean())
