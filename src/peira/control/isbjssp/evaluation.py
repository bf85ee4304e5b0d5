"""Makespans of any method on the same shops and the same shutdowns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from peira.control.isbjssp.policy import DispatchPolicy
from peira.control.isbjssp.shop import JobShop
from peira.control.isbjssp.simulator import Episode, When, draw_outages


def makespans(
    shops: Sequence[JobShop],
    method: str | DispatchPolicy,
    p: float = 0.0,
    repeats: int = 1,
    seed: int = 0,
    when: When = "idle",
) -> Int[np.ndarray, "shops repeats"]:
    """Makespan of every shop under `repeats` draws of shutdowns.

    Args:
        method: a dispatching rule, or a network that acts greedily.
        seed: of the shutdowns; the same seed meets every method with the same ones.
    """
    episodes = [
        Episode(shop, draw_outages(shop, p, (seed, number, repeat), when))
        for number, shop in enumerate(shops)
        for repeat in range(repeats)
    ]
    if isinstance(method, DispatchPolicy):
        method.follow(episodes)
    else:
        for number, episode in enumerate(episodes):
            episode.run(method, np.random.default_rng((seed, number)))
    return np.array([episode.now for episode in episodes]).reshape(len(shops), repeats)


def one_sided_p(ours: Int[np.ndarray, " shops"], theirs: Int[np.ndarray, " shops"]) -> float:
    """p-value of "ours is shorter on average", paired over shops (Student t)."""
    from scipy.stats import ttest_rel

    return float(ttest_rel(ours, theirs, alternative="less").pvalue)
