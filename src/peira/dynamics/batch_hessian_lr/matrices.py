"""Extremal eigenvalues of a fixed matrix plus random noise: the paper's theorems, and samplers.

A matrix with an outlying eigenvalue (a spike) is seen through noise of P dimensions averaged over b
examples. Additive symmetric noise is the batch Hessian's model, multiplicative noise (a sample
covariance) that of the Gauss-Newton matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from peira.data.errors import DataError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spike:
    """Where an outlier of the noise-free matrix is found in the noisy one.

    Attributes:
        eigenvalue: lambda' of the noisy matrix; the edge of the noise below the transition.
        overlap: squared cosine between the two eigenvectors; 0 below the transition.
        transition: magnitude of lambda above which the outlier can be seen.
    """

    eigenvalue: float
    overlap: float
    transition: float


def effective_batch(batch: float, examples: float = math.inf) -> float:
    """b = B / (1 - B/N): a batch drawn without replacement from N examples; infinite at B = N.

    Raises `DataError` for B below 1 or above N.
    """
    if not 1 <= batch <= examples:
        raise DataError("impossible batch size", value=batch, expected=f"1 to {examples:g}")
    return math.inf if batch == examples else batch / (1 - batch / examples)


def spiked_wigner(spike: float, size: float, b: float, variance: float) -> Spike:
    """An eigenvalue under additive symmetric noise (Granziol et al. 2022, theorem on H_batch).

    lambda' = lambda + (P/b) sigma^2 / lambda where |lambda| > sqrt(P/b) sigma, else the edge
    2 sqrt(P/b) sigma, with the sign of lambda; overlap 1 - (P/b) sigma^2 / lambda^2.

    Args:
        spike: lambda, an extremal eigenvalue without noise; negative for the lower edge.
        size: P, dimensions.
        b: effective batch size.
        variance: sigma^2, of one entry of a single example's matrix.
    """
    noise = size / b * variance
    transition = math.sqrt(noise)
    if abs(spike) > transition:
        return Spike(spike + noise / spike, 1 - noise / spike**2, transition)
    return Spike(math.copysign(2 * transition, spike), 0.0, transition)


def spiked_wishart(spike: float, size: float, b: float, scale: float) -> Spike:
    """An eigenvalue of a covariance as the covariance of b samples shows it (multiplicative noise).

    With gamma = P/b: lambda' = lambda (1 + gamma s / (lambda - s)) where
    lambda > s (1 + sqrt(gamma)), else the Marchenko-Pastur edge s (1 + sqrt(gamma))^2 (Baik and
    Silverstein 2006); the overlap is Paul's (2007).

    Args:
        spike: lambda, largest eigenvalue of the covariance; positive.
        size: P, dimensions.
        b: effective batch size.
        scale: s, the covariance's other eigenvalues.
    """
    gamma = size / b
    transition = scale * (1 + math.sqrt(gamma))
    if spike <= transition:
        return Spike(scale * (1 + math.sqrt(gamma)) ** 2, 0.0, transition)
    excess = spike / scale - 1
    overlap = (1 - gamma / excess**2) / (1 + gamma / excess)
    return Spike(spike * (1 + gamma * scale / (spike - scale)), overlap, transition)


@dataclass(frozen=True)
class Tridiagonal:
    """A symmetric tridiagonal matrix whose first axis is the spike's eigenvector."""

    diagonal: Floats
    beside: Floats

    def largest(self) -> tuple[float, float]:
        """The largest eigenvalue, and the squared cosine of its vector and the first axis."""
        from scipy.linalg import eigh_tridiagonal

        last = len(self.diagonal) - 1
        values, vectors = eigh_tridiagonal(
            self.diagonal, self.beside, select="i", select_range=(last, last)
        )
        return float(values[0]), float(vectors[0, 0] ** 2)


def draw_wigner(
    spike: float, size: int, b: float, variance: float, rng: np.random.Generator
) -> Tridiagonal:
    """A spike plus symmetric Gaussian noise with `variance` / b in each entry off the diagonal.

    Reflections that keep the first axis make such a matrix tridiagonal; what they leave has
    independent entries (Dumitriu and Edelman 2002), and is drawn instead of it: eigenvalues and
    overlaps have the dense matrix's distribution exactly, at a cost of P instead of P^3.
    """
    diagonal = rng.normal(scale=math.sqrt(2), size=size)
    beside = np.sqrt(rng.chisquare(np.arange(size - 1, 0, -1)))
    scale = math.sqrt(variance / b)
    diagonal *= scale
    diagonal[0] += spike
    return Tridiagonal(diagonal, beside * scale)


def draw_wishart(
    spike: float, size: int, b: int, scale: float, rng: np.random.Generator
) -> Tridiagonal:
    """The covariance of b >= P Gaussian vectors whose first variance is `spike`, others `scale`.

    From the bidiagonal form of their matrix, drawn as in `draw_wigner`.
    """
    diagonal = np.sqrt(rng.chisquare(np.arange(b, b - size, -1)) * scale / b)
    diagonal[0] *= math.sqrt(spike / scale)
    above = np.sqrt(rng.chisquare(np.arange(size - 1, 0, -1)) * scale / b)
    squares = diagonal**2
    squares[1:] += above**2
    return Tridiagonal(squares, diagonal[:-1] * above)
