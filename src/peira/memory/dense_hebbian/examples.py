"""Noisy examples of patterns: how good and how many, and what that does to the couplings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int8
from scipy.stats import binom

Mode = Literal["supervised", "unsupervised"]


@dataclass(frozen=True)
class Examples:
    """M examples of each pattern; each spin of an example is right with probability (1 + r)/2.

    Attributes:
        r: quality in (0, 1]: overlap of an example with its pattern.
        M: examples of each pattern.
        mode: "supervised" averages a pattern's examples, then forms the products of P spins;
            "unsupervised" forms the products of each example and averages those.

    Raises:
        ValueError: r outside (0, 1], no example, unknown mode.
    """

    r: float
    M: int
    mode: Mode = "supervised"

    def __post_init__(self) -> None:
        if not 0 < self.r <= 1:
            raise ValueError(f"the quality r must lie in (0, 1], not {self.r:g}: no signal else")
        if self.M < 1:
            raise ValueError(f"M must be 1 or more examples, not {self.M}")
        if self.mode not in ("supervised", "unsupervised"):
            raise ValueError(f"mode must be supervised or unsupervised, not {self.mode!r}")

    @property
    def rho(self) -> float:
        """Entropy of the data set, (1 - r^2) / (M r^2)."""
        return entropy(self.r, self.M)

    def squared_norm(self, P: int) -> float:
        """Mean square of a product of P (averaged) spins, by which the couplings are divided."""
        signal = self.r ** (2 * P)
        if self.mode == "supervised":
            return signal * (1 + self.rho) ** P
        return signal * (1 + entropy(self.r**P, self.M))

    def attenuation(self, P: int) -> float:
        """Signal in the couplings relative to their root mean square, at most 1."""
        return float(self.r**P / np.sqrt(self.squared_norm(P)))

    def sites(self) -> tuple[Float[np.ndarray, " values"], Float[np.ndarray, " values"]]:
        """Values of (1/M) sum_a chi_a / r over the spins, and their probabilities: binomial.

        Values of probability below 1e-13 are left out.
        """
        right = np.arange(self.M + 1)
        values = (2 * right - self.M) / (self.M * self.r)
        probabilities = binom.pmf(right, self.M, (1 + self.r) / 2)
        likely = probabilities > 1e-13
        return values[likely], probabilities[likely]


def entropy(r: float, M: float) -> float:
    """(1 - r^2) / (M r^2): noise of an average over M examples of quality r, relative to r^2."""
    return (1 - r * r) / (M * r * r)


def draw_patterns(K: int, N: int, rng: np.random.Generator) -> Int8[np.ndarray, "K N"]:
    """K patterns of N fair coins."""
    return (2 * rng.integers(2, size=(K, N), dtype=np.int8) - 1).astype(np.int8)


def draw_averages(
    patterns: Int8[np.ndarray, "K N"], r: float, M: int, rng: np.random.Generator
) -> Float[np.ndarray, "K N"]:
    """Mean of M noisy examples of each pattern (drawn as binomial numbers, not one by one)."""
    right = rng.binomial(M, (1 + r) / 2, size=patterns.shape)
    averages: Float[np.ndarray, "K N"] = patterns * ((2 * right - M) / M)
    return averages


def draw_examples(
    patterns: Int8[np.ndarray, "K N"], r: float, M: int, rng: np.random.Generator
) -> Int8[np.ndarray, "K*M N"]:
    """M noisy examples of each pattern; rows a pattern after the other."""
    examples = np.repeat(patterns, M, axis=0)
    # 16 bits decide: r is met to 2^-16, and millions of spins are drawn four times as fast.
    wrong = rng.integers(2**16, size=examples.shape, dtype=np.uint16) < round(2**15 * (1 - r))
    np.negative(examples, out=examples, where=wrong)
    return examples
