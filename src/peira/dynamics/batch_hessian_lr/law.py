"""How the largest curvature of a batch depends on its size: measured, predicted, extrapolated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from peira.data.errors import DataError
from peira.dynamics.batch_hessian_lr.matrices import (
    effective_batch,
    spiked_wigner,
    spiked_wishart,
)
from peira.dynamics.probes.curvature import (
    BatchSpectra,
    Data,
    Extremes,
    Kind,
    Loss,
    SpectralDensity,
    batch_operators,
    batch_spectra,
    curvature_operator,
    extreme_eigenvalues,
    gather,
    gradient_moments,
    random_start,
    spectral_density,
)

Estimator = Literal["directional", "fit", "iid"]
# What every result rests on; printed with it.
ASSUMPTIONS = (
    "smooth loss, second order only, batch gradients at fixed weights; "
    "nothing is said about generalisation"
)
# Two-sided 95% of a normal distribution.
Z95 = 1.96


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval."""

    value: float
    low: float
    high: float

    def __float__(self) -> float:
        return self.value

    @classmethod
    def of_mean(cls, values: Float[Tensor, " n"]) -> Estimate:
        """Mean of independent values; without an interval (NaN) for a single one."""
        mean = float(values.mean())
        half = Z95 * float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(mean, mean - half, mean + half)

    def scaled(self, factor: float) -> Estimate:
        """The quantity times a known factor of either sign."""
        ends = sorted((self.low * factor, self.high * factor))
        return Estimate(self.value * factor, *ends)


@dataclass(frozen=True)
class Curvature:
    """Curvature at one point of weights.

    Attributes:
        kind: "hessian" or "ggn".
        extremes: the largest and smallest eigenvalues of the full data, with residual bounds.
        density: spectral density by stochastic Lanczos quadrature.
        batches: extremal eigenvalues of random batches, if a batch size was asked for.
    """

    kind: Kind
    extremes: Extremes
    density: SpectralDensity
    batches: BatchSpectra | None


def curvature(
    model: nn.Module,
    loss: Loss,
    data: Data,
    kind: Kind = "hessian",
    batch: int | None = None,
    k: int = 10,
    *,
    params: Sequence[str] | None = None,
    chunk: int | None = None,
    steps: int = 60,
    probes: int = 8,
    generator: torch.Generator | None = None,
) -> Curvature:
    """Extremal eigenvalues and spectral density of the curvature of the mean loss.

    Args:
        model, loss, data, params, chunk: see `hessian_operator`.
        kind: Hessian or generalised Gauss-Newton matrix.
        batch: also measure 24 random batches of this size.
        k: eigenvalues at each end.
        steps: Lanczos steps of the density.
        probes: random vectors that the density is averaged over.
        generator: draws starts, probes and batches.
    """
    data = gather(data)
    operator = curvature_operator(kind, model, loss, data, params=params, chunk=chunk)
    k = min(k, operator.size // 2)
    extremes = extreme_eigenvalues(operator, k, k, steps=max(300, 10 * k), generator=generator)
    density = spectral_density(operator, steps=steps, probes=probes, generator=generator)
    batches = None
    if batch is not None:
        batches = batch_spectra(kind, model, loss, data, batch, params=params, generator=generator)
    return Curvature(kind, extremes, density, batches)


class Landscape:
    """A loss at fixed weights: its full curvature, and how single examples differ from it.

    Args:
        model, loss, data, params, chunk: see `hessian_operator`; the loss must be a mean.
        kind: Hessian or generalised Gauss-Newton matrix.
        samples: examples that single-example statistics are taken from, at most.
        generator: draws them.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Data,
        kind: Kind = "hessian",
        *,
        params: Sequence[str] | None = None,
        chunk: int | None = None,
        samples: int = 300,
        generator: torch.Generator | None = None,
    ) -> None:
        self.inputs, self.targets = gather(data)
        self.kind: Kind = kind
        self.operator = curvature_operator(
            kind, model, loss, (self.inputs, self.targets), params=params, chunk=chunk
        )
        self.generator = generator
        self._gradients = lambda: gradient_moments(
            model, loss, (self.inputs, self.targets), params=params
        )
        picked = torch.randperm(len(self.inputs), generator=generator)[:samples]
        # Examples whose graphs are kept together: a few products for each of thousands of weights.
        at_once = max(1, 2**22 // self.operator.size)
        self._singles = [
            batch_operators(
                kind, model, loss, self.inputs[part, None], self.targets[part, None], params=params
            )
            for part in picked.to(self.inputs.device).split(at_once)
        ]

    @property
    def examples(self) -> int:
        """N, the number of examples."""
        return len(self.inputs)

    @cached_property
    def gradient_moments(self) -> tuple[Float[Tensor, " size"], Float[Tensor, " size"]]:
        """Mean and variance of single examples' gradients, entry by entry."""
        return self._gradients()

    def noise(
        self, vector: Float[Tensor, " size"], scale: Float[Tensor, " size"] | None = None
    ) -> Float[Tensor, " samples"]:
        """|(H_i - H) v|^2 of the sampled examples i; of S H S for a diagonal S."""
        inner = vector if scale is None else scale * vector
        mean = self.operator @ inner
        norms = []
        for single in self._singles:
            products = single.apply(inner.expand(single.count, -1)) - mean
            norms.append((products if scale is None else scale * products).square().sum(dim=1))
        n = self.examples
        # Variance over a finite population, as the batch's factor 1 - B/N expects it.
        return torch.cat(norms).double() * (n / max(n - 1, 1))

    def adam_scale(self, batch: int, damping: float) -> Float[Tensor, " size"]:
        """D^-1/2 of Adam at these weights: D = sqrt(E g_B^2) + damping for batches of this size.

        E g_B^2 = g^2 + Var(g_i) / b is what Adam's second moment tends to while the weights stand
        still.
        """
        mean, variance = self.gradient_moments
        b = effective_batch(batch, self.examples)
        root = (mean.square() + variance / b).sqrt() + damping
        if not bool((root > 0).all()):
            raise DataError(
                "some weights have no gradient at all: Adam needs damping", value=damping,
                expected="above 0",
            )  # fmt: skip
        return root.rsqrt()


@dataclass(frozen=True)
class SizeMeasured:
    """What random batches of one size showed.

    Attributes:
        batch: B.
        effective: b = B / (1 - B/N).
        largest, smallest: mean extremal eigenvalues.
        overlap: mean squared cosine between their top eigenvectors and the full one.
    """

    batch: int
    effective: float
    largest: Estimate
    smallest: Estimate
    overlap: Estimate


@dataclass(frozen=True)
class BatchSpectrumLaw:
    """lambda_1'(B) = lambda_1 + c/b with b = B / (1 - B/N), and the same at the lower edge.

    Attributes:
        largest, smallest: extremal eigenvalues of the full curvature.
        coefficient: c = E |(H_i - H) u_1|^2 / lambda_1 over single examples i: second-order
            perturbation along the top eigenvector, the directional estimate.
        smallest_noise: E |(H_i - H) u_P|^2 along the lowest eigenvector.
        variance: sigma^2 = E |H_i - H|_F^2 / P^2, what noise with independent entries would have.
        vector: u_1, unit top eigenvector of the full curvature.
        measured: what random batches showed, by size.
        landscape: the point it was measured at.
    """

    largest: float
    smallest: float
    coefficient: Estimate
    smallest_noise: Estimate
    variance: Estimate
    vector: Float[Tensor, " size"] = field(repr=False)
    measured: tuple[SizeMeasured, ...]
    landscape: Landscape = field(repr=False)

    @property
    def examples(self) -> int:
        """N."""
        return self.landscape.examples

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return self.landscape.operator.size

    @cached_property
    def fit(self) -> Estimate:
        """c from the measured batches: weighted least squares of lambda_1' - lambda_1 on 1/b.

        Raises `DataError` unless two sizes below N were measured.
        """
        rows = self._rows()
        spread = [max((row.largest.high - row.largest.low) / 2 / Z95, 1e-12) for row in rows]
        inverse = [1 / row.effective for row in rows]
        excess = [row.largest.value - self.largest for row in rows]
        precision = sum((x / s) ** 2 for x, s in zip(inverse, spread, strict=True))
        c = sum(x * y / s**2 for x, y, s in zip(inverse, excess, spread, strict=True)) / precision
        half = Z95 / math.sqrt(precision)
        return Estimate(c, c - half, c + half)

    @cached_property
    def exponent(self) -> float:
        """Log-log slope of the measured excess on b; -1 is the law.

        NaN where a measured excess is not positive. Raises `DataError` as `fit` does.
        """
        rows = self._rows()
        excess = torch.tensor([row.largest.value - self.largest for row in rows])
        if bool((excess <= 0).any()):
            return math.nan
        return log_slope(torch.tensor([row.effective for row in rows]), excess)

    def _rows(self) -> list[SizeMeasured]:
        rows = [row for row in self.measured if math.isfinite(row.effective)]
        if len(rows) < 2:
            raise DataError(
                "a fit needs two batch sizes below the number of examples",
                value=[row.batch for row in self.measured],
            )
        return rows

    def largest_at(self, batch: int, estimator: Estimator = "directional") -> Estimate:
        """lambda_1' of batches of this size.

        Args:
            batch: B, 1 to N.
            estimator: "directional", "fit" (to the measured batches), or "iid": the paper's
                theorem with the variance of independent entries; for the Gauss-Newton matrix its
                multiplicative form.
        """
        b = effective_batch(batch, self.examples)
        if estimator == "iid":
            return self._theorem(b)
        c = self.fit if estimator == "fit" else self.coefficient
        return Estimate(*(self.largest + value / b for value in (c.value, c.low, c.high)))

    def _theorem(self, b: float) -> Estimate:
        def at(variance: float) -> float:
            variance = max(variance, 0.0)
            if math.isinf(b) or variance == 0:
                return self.largest
            if self.landscape.kind == "ggn":
                return spiked_wishart(self.largest, self.size, b, math.sqrt(variance)).eigenvalue
            return spiked_wigner(self.largest, self.size, b, variance).eigenvalue

        return Estimate(
            *(at(v) for v in (self.variance.value, self.variance.low, self.variance.high))
        )

    def smallest_at(self, batch: int) -> Estimate:
        """lambda_P' of batches of this size: the theorem with the noise along u_P.

        Near a minimum lambda_P is below the transition, and the edge of the noise is what remains.
        """
        b = effective_batch(batch, self.examples)
        if math.isinf(b) or self.smallest >= 0:
            return Estimate(self.smallest, self.smallest, self.smallest)
        noise = self.smallest_noise
        ends = [
            spiked_wigner(self.smallest, 1, b, max(value, 0.0)).eigenvalue
            for value in (noise.value, noise.low, noise.high)
        ]
        return Estimate(ends[0], min(ends[1:]), max(ends[1:]))

    def overlap_at(self, batch: int) -> float:
        """Squared cosine between u_1 and a batch's top eigenvector: 1 - c / (b lambda_1), >= 0."""
        b = effective_batch(batch, self.examples)
        return max(0.0, 1 - self.coefficient.value / (b * self.largest))

    def adam_largest_at(self, batch: int, damping: float = 1e-8) -> tuple[float, Estimate]:
        """lambda_1 and lambda_1'(B) of D^-1/2 H D^-1/2, with Adam's D at this batch size.

        See `Landscape.adam_scale` for D.
        """
        scale = self.landscape.adam_scale(batch, damping)
        found = extreme_eigenvalues(
            self.landscape.operator.scaled(scale), generator=torch.Generator().manual_seed(0)
        )
        largest = float(found.values[0])
        noise = Estimate.of_mean(self.landscape.noise(found.vectors[0], scale))
        c = noise.scaled(1 / (largest * effective_batch(batch, self.examples)))
        return largest, Estimate(largest + c.value, largest + c.low, largest + c.high)


def log_slope(x: Tensor, y: Tensor) -> float:
    """Least-squares slope of log y on log x."""
    x, y = x.double().log(), y.double().log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def batch_spectrum_law(
    model: nn.Module,
    loss: Loss,
    data: Data,
    sizes: Sequence[int] = (),
    *,
    kind: Kind = "hessian",
    count: int = 24,
    samples: int = 300,
    params: Sequence[str] | None = None,
    chunk: int | None = None,
    generator: torch.Generator | None = None,
) -> BatchSpectrumLaw:
    """Measure how the extremal curvature of a batch depends on its size.

    The extremal eigenpairs of the full data come from Lanczos, c from one vectorised product over
    single examples, the check from random batches of the given sizes.

    Args:
        model, loss, data, params, chunk: see `hessian_operator`; the loss must be a mean.
        sizes: batch sizes to measure; none measures no batches and leaves the directional estimate.
        kind: Hessian or generalised Gauss-Newton matrix.
        count: random batches of each size.
        samples: single examples, at most.
        generator: draws everything.

    Raises:
        DataError: a size above N, no positive curvature, and what `hessian_operator` raises.
    """
    inputs, targets = gather(data)
    for batch in sizes:
        effective_batch(batch, len(inputs))
    point = Landscape(
        model, loss, (inputs, targets), kind, params=params, chunk=chunk, samples=samples,
        generator=generator,
    )  # fmt: skip
    ends = extreme_eigenvalues(point.operator, 1, 1, generator=generator)
    largest, smallest = (float(value) for value in ends.values)
    if largest <= 0:
        raise DataError("the loss has no positive curvature here", value=largest)
    noise = Estimate.of_mean(point.noise(ends.vectors[0]))
    measured = []
    for batch in sizes:
        found = batch_spectra(
            kind, model, loss, (inputs, targets), batch, count=count, params=params,
            generator=generator,
        )  # fmt: skip
        measured.append(_summary(found, ends.vectors[0], len(inputs)))
    return BatchSpectrumLaw(
        largest,
        smallest,
        noise.scaled(1 / largest),
        Estimate.of_mean(point.noise(ends.vectors[1])),
        _entry_variance(point, generator),
        ends.vectors[0],
        tuple(measured),
        point,
    )


def _summary(found: BatchSpectra, vector: Tensor, examples: int) -> SizeMeasured:
    values = (found.largest, found.smallest, found.overlaps(vector))
    return SizeMeasured(
        found.batch,
        effective_batch(found.batch, examples),
        *(Estimate.of_mean(value.double()) for value in values),
    )


def _entry_variance(point: Landscape, generator: torch.Generator | None) -> Estimate:
    """E |H_i - H|_F^2 / P^2 from Rademacher probes z: E |A z|^2 = |A|_F^2."""
    probes = random_start(point.operator, 4, generator)
    norms = torch.stack([point.noise(probe) for probe in probes]).mean(dim=0)
    return Estimate.of_mean(norms / point.operator.size**2)
