r"""Why a cycle can beat both of its ends: stochastic gradient descent whose error is known exactly.

An illustration of our own, not the paper's theorem. Inputs are x ~ N(0, I_d), labels
y = x.theta_g + noise of variance sigma_g^2, in two groups g. A share q of the data is easy: little
noise, but its best parameters lie a distance b off the truth theta*, along a unit vector u. The
others are hard: much noise, and off the other way, so that all data together is unbiased. A round
of size S contains all easy samples and random hard ones: pi_easy = q / S. One step on one sample is

    theta' = theta - eta x (x.theta - y).

With e = theta - theta*, m = u.E[e] and s = E|e|^2, group means b_g = b_g u and
c = 1 - 2 eta + eta^2 (d + 2), both moments follow an affine recursion without approximation:

    m' = (1 - eta) m + eta sum_g pi_g b_g
    s' = sum_g pi_g [c (s - 2 b_g m + b_g^2) + 2 (1 - eta) b_g (m - b_g) + b_g^2
                     + eta^2 d sigma_g^2]

because E[(I - eta x x^T)^2] = c I for Gaussian inputs (Isserlis' theorem).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from peira.data.errors import DataError
from peira.training.ccl.sizes import cycle_rounds, cyclic_sizes, full_sizes


@dataclass(frozen=True)
class NoisyLeastSquares:
    """Two groups of data for least squares, and how SGD steps on them.

    Attributes:
        bias: distance from the truth to the best parameters of the easy group.
        hard_noise: standard deviation of the hard group's labels.
        easy_noise: the same of the easy group.
        easy: share q of easy data; the smallest round.
        dimension: d.
        rate: learning rate eta, below 2 / (d + 2).
        epoch: samples of all data.
        initial: squared distance from the truth at the start, orthogonal to u.
    """

    bias: float = 0.3
    hard_noise: float = 1.5
    easy_noise: float = 0.1
    easy: float = 0.25
    dimension: int = 20
    rate: float = 0.02
    epoch: int = 64
    initial: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.rate < 2 / (self.dimension + 2):
            raise DataError(
                "learning rate diverges", value=self.rate,
                expected=f"below 2 / (d + 2) = {2 / (self.dimension + 2):.3g}",
            )  # fmt: skip
        if not 0 < self.easy < 1:
            raise DataError("share of easy data", value=self.easy, expected="above 0 and below 1")

    def groups(self, size: float) -> list[tuple[float, float, float]]:
        """(probability, offset along u, noise) of the groups in a round of that share."""
        easy = min(self.easy / size, 1.0)
        away = -self.bias * self.easy / (1 - self.easy)
        return [(easy, self.bias, self.easy_noise), (1 - easy, away, self.hard_noise)]

    def step_matrix(self, size: float) -> Float[np.ndarray, "3 3"]:
        """One SGD step in a round of that share, on the vector (m, s, 1)."""
        eta, d = self.rate, self.dimension
        c = 1 - 2 * eta + eta**2 * (d + 2)
        matrix = np.array([[1 - eta, 0, 0], [0, c, 0], [0, 0, 1.0]])
        for p, b, noise in self.groups(size):
            matrix[0, 2] += eta * p * b
            matrix[1, 0] += p * b * 2 * ((1 - eta) - c)
            matrix[1, 2] += p * ((c - 2 * (1 - eta) + 1) * b**2 + eta**2 * d * noise**2)
        return matrix

    def errors(self, sizes: Sequence[float]) -> Float[np.ndarray, " rounds"]:
        """E|theta - theta*|^2 after each round of a schedule, exactly."""
        state = np.array([0.0, self.initial, 1.0])
        rounds = {
            size: np.linalg.matrix_power(self.step_matrix(size), self._steps(size))
            for size in set(sizes)
        }
        errors = []
        for size in sizes:
            state = rounds[size] @ state
            errors.append(state[1])
        return np.array(errors)

    def simulate(
        self, sizes: Sequence[float], runs: int, rng: np.random.Generator
    ) -> Float[np.ndarray, " rounds"]:
        """The same from simulated runs: mean of |theta - theta*|^2 over them."""
        d = self.dimension
        error = np.zeros((runs, d))
        # u is the first axis; the start is along the last.
        error[:, -1] = np.sqrt(self.initial)
        means = []
        for size in sizes:
            (p, b_easy, low), (_, b_hard, high) = self.groups(size)
            for _ in range(self._steps(size)):
                easy = rng.random(runs) < p
                x = rng.standard_normal((runs, d))
                noise = rng.standard_normal(runs) * np.where(easy, low, high)
                centre = np.where(easy, b_easy, b_hard)
                residual = np.einsum("rd,rd->r", x, error) - x[:, 0] * centre - noise
                error -= self.rate * residual[:, None] * x
            means.append(np.square(error).sum(axis=1).mean())
        return np.array(means)

    def _steps(self, size: float) -> int:
        return max(1, int(size * self.epoch + 1e-9))


@dataclass(frozen=True)
class Comparison:
    """Errors at equal samples seen.

    Attributes:
        full: after the last epoch on all data.
        easy: after the last round on easy data alone.
        best: after the best round of the last cycle.
        mean: averaged over the rounds of the last cycle, weighted by their samples.
    """

    full: float
    easy: float
    best: float
    mean: float

    @property
    def wins(self) -> bool:
        """Whether the cycle at its best round is below both of its ends."""
        return self.best < min(self.full, self.easy)

    @property
    def wins_on_average(self) -> bool:
        """Whether it is below both on average over the cycle, without choosing a round."""
        return self.mean < min(self.full, self.easy)


def compare_cycle(problem: NoisyLeastSquares, alpha: float, budget: float = 20.0) -> Comparison:
    """All data, easy data alone, and the cycle between them, at the same number of samples."""
    easy_rounds = [problem.easy] * round(budget / problem.easy)
    sizes = cyclic_sizes(problem.easy, 1.0, alpha, budget)
    period = cycle_rounds(problem.easy, 1.0, alpha)
    last, weights = problem.errors(sizes)[-period:], np.array(sizes[-period:])
    return Comparison(
        full=float(problem.errors(full_sizes(budget))[-1]),
        easy=float(problem.errors(easy_rounds)[-1]),
        best=float(last.min()),
        mean=float((last * weights).sum() / weights.sum()),
    )
