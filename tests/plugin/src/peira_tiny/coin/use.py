"""Commands on a person's own coin."""

import warnings

import numpy as np

from peira_tiny.coin.method import heads

__all__ = ["toss"]


def toss(bias: float = 0.5, tosses: int = 100) -> None:
    """Toss a coin and print the share of heads."""
    if tosses == 1:
        warnings.warn("one toss says little", UserWarning, stacklevel=1)
    print(heads(bias, tosses, np.random.default_rng(0)))
