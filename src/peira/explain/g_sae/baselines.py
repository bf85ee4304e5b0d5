"""Other dictionaries of activations: ReLU + L1, Gated, JumpReLU, and principal components.

None of the first three fixes how many units fire. To compare at equal sparsity, ReLU and Gated
adapt `penalty`, the weight of their L1 term, while they train until `k` units fire on average;
JumpReLU is trained for that number.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from peira.data.errors import DataError
from peira.explain.g_sae.dictionary import Dictionary
from peira.explain.g_sae.store import take

if TYPE_CHECKING:
    from peira.explain.g_sae.dictionary import Steps
    from peira.explain.g_sae.fitting import SAERecipe
    from peira.explain.g_sae.store import ActivationStore, Rows

# How fast the logarithm of the penalty follows the logarithm of (units firing / k).
PENALTY_RATE = 0.03
# Rows that thresholds are adjusted on.
CALIBRATION_ROWS = 2048
# Width of the kernel that stands for the derivative of JumpReLU's step, for rows of length about 1.
BANDWIDTH = 0.05


class _Averaged(Dictionary):
    """Dictionaries of which k units fire on average, not on every row."""

    def __init__(self, h: int, k: float = 32, d: int | None = None) -> None:
        if not 0 < k <= h:
            raise DataError("k units of h fire on average", value=k, expected=f"up to h = {h}")
        self.k = k
        super().__init__(h, d)

    def about(self) -> dict[str, Any]:
        return {**super().about(), "k": self.k}

    def _before(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows units"]:
        return torch.addmm(self.b_enc, x - self.b_pre, self.encoder.T)


class _Penalised(_Averaged):
    """Those with an L1 penalty, whose weight is steered to the number of firing units."""

    def build(self, d: int, generator: torch.Generator | None = None) -> None:
        super().build(d, generator)
        self.penalty: Tensor
        self.register_buffer("penalty", torch.tensor(1e-2))

    def _adapt(self, firing: Float[Tensor, ""]) -> None:
        """Raise the penalty where more than k units fire, lower it where fewer do."""
        off = (firing.detach().clamp_min(1e-3) / self.k).log().clamp(-1, 1)
        self.penalty.mul_((PENALTY_RATE * off).exp())


class ReLUSAE(_Penalised):
    """ReLU autoencoder with an L1 penalty (Bricken et al. 2023).

    Args:
        h: number of units.
        k: units that shall fire on average.
        d: width of the activations; without it `fit` takes it from the data.
    """

    def encode(
        self, x: Float[Tensor, "rows d"], g: Float[Tensor, "rows d"] | None = None
    ) -> Float[Tensor, "rows units"]:
        return self._before(x).relu()

    def training_loss(
        self, x: Float[Tensor, "rows d"], g: Float[Tensor, "rows d"] | None, recipe: SAERecipe
    ) -> Float[Tensor, ""]:
        code = self.encode(x)
        weight = self.penalty.clone()
        self._adapt((code > 0).float().sum(1).mean())
        return (x - self.decode(code)).square().sum(1).mean() + weight * code.sum(1).mean()


class GatedSAE(_Penalised):
    """Gated autoencoder (Rajamanoharan et al. 2024, arXiv 2404.16014).

    A gate decides which units fire, a tied encoder by how much; the L1 penalty and an auxiliary
    reconstruction from the gate alone, through a frozen decoder, train the gate.

    Args:
        h: number of units.
        k: units that shall fire on average.
        d: width of the activations; without it `fit` takes it from the data.
    """

    def build(self, d: int, generator: torch.Generator | None = None) -> None:
        super().build(d, generator)
        # `b_enc` is the gate's bias.
        self.log_magnitude = nn.Parameter(torch.zeros(self.h))
        self.b_magnitude = nn.Parameter(torch.zeros(self.h))

    def rescale(self, factor: float) -> None:
        super().rescale(factor)
        with torch.no_grad():
            self.b_magnitude *= factor

    def encode(
        self, x: Float[Tensor, "rows d"], g: Float[Tensor, "rows d"] | None = None
    ) -> Float[Tensor, "rows units"]:
        return self._gated(self._before(x))

    def _gated(self, gate: Float[Tensor, "rows units"]) -> Float[Tensor, "rows units"]:
        magnitude = (gate - self.b_enc) * self.log_magnitude.exp() + self.b_magnitude
        return (gate > 0) * magnitude.relu()

    def training_loss(
        self, x: Float[Tensor, "rows d"], g: Float[Tensor, "rows d"] | None, recipe: SAERecipe
    ) -> Float[Tensor, ""]:
        gate = self._before(x)
        code, opened = self._gated(gate), gate.relu()
        weight = self.penalty.clone()
        self._adapt((code > 0).float().sum(1).mean())
        from_gate = torch.addmm(self.b_pre.detach(), opened, self.decoder.detach())
        errors = (x - self.decode(code)).square().sum(1) + (x - from_gate).square().sum(1)
        return errors.mean() + weight * opened.sum(1).mean()


class _Step(torch.autograd.Function):
    """1 where z exceeds the threshold; its derivative by the threshold is a kernel estimate."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(z, threshold)
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[None, Tensor]:
        z, threshold = ctx.saved_tensors
        inside = ((z - threshold).abs() < BANDWIDTH / 2).to(z.dtype)
        return None, -(slope * inside).sum(0) / BANDWIDTH


class _JumpReLU(torch.autograd.Function):
    """z where it exceeds the threshold, else 0; straight-through derivative by the threshold."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(z, threshold)
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
        z, threshold = ctx.saved_tensors
        inside = ((z - threshold).abs() < BANDWIDTH / 2).to(z.dtype)
        return slope * (z > threshold), -(slope * inside).sum(0) * threshold / BANDWIDTH


class JumpReLUSAE(_Averaged):
    """JumpReLU autoencoder (Rajamanoharan et al. 2024, arXiv 2407.14435).

    Loss: squared error + (L0 / k - 1)^2, the variant that is trained for a number of firing units.
    After training, one factor on all thresholds makes that number exact on the training rows.

    Args:
        h: number of units.
        k: units that shall fire on average.
        d: width of the activations; without it `fit` takes it from the data.
    """

    def build(self, d: int, generator: torch.Generator | None = None) -> None:
        super().build(d, generator)
        # Half of what k orthogonal units need for a row of length 1.
        self.log_threshold = nn.Parameter(torch.full((self.h,), math.log(0.5 / self.k**0.5)))

    def rescale(self, factor: float) -> None:
        super().rescale(factor)
        with torch.no_grad():
            self.log_threshold += math.log(factor)

    def encode(
        self, x: Float[Tensor, "rows d"], g: Float[Tensor, "rows d"] | None = None
    ) -> Float[Tensor, "rows units"]:
        return _JumpReLU.apply(self._before(x).relu(), self.log_threshold.exp())

    def training_loss(
        self, x: Float[Tensor, "rows d"], g: Float[Tensor, "rows d"] | None, recipe: SAERecipe
    ) -> Float[Tensor, ""]:
        z, threshold = self._before(x).relu(), self.log_threshold.exp()
        code = _JumpReLU.apply(z, threshold)
        firing = _Step.apply(z, threshold).sum(1).mean()
        return (x - self.decode(code)).square().sum(1).mean() + (firing / self.k - 1).square()

    def fit(
        self,
        x: Rows | ActivationStore,
        g: Rows | None = None,
        recipe: SAERecipe | None = None,
        generator: torch.Generator | None = None,
        steps: Steps | None = None,
        device: torch.device | str | None = None,
    ) -> JumpReLUSAE:
        from peira.explain.g_sae.fitting import checked_rows

        super().fit(x, g, recipe, generator, steps, device)
        rows, _, _ = checked_rows(x)
        drawn = torch.randint(len(rows), (CALIBRATION_ROWS,), generator=generator)
        with torch.no_grad():
            z = self._before(take(rows, drawn, self.decoder)).relu()
            # A unit fires where z / threshold exceeds 1: make the right number of them do so.
            reached = (z / self.log_threshold.exp()).flatten()
            count = min(round(self.k * len(z)), int((reached > 0).sum()))
            if count:
                self.log_threshold += reached.topk(count).values[-1].log()
        return self


class PCADictionary(Dictionary):
    """The first k principal components: the best linear code of k numbers, none of them sparse.

    Args:
        h: number of components.
        d: width of the activations; without it `fit` takes it from the data.
    """

    def encode(
        self, x: Float[Tensor, "rows d"], g: Float[Tensor, "rows d"] | None = None
    ) -> Float[Tensor, "rows units"]:
        return (x - self.b_pre) @ self.decoder.T

    def fit(
        self,
        x: Rows | ActivationStore,
        g: Rows | None = None,
        recipe: SAERecipe | None = None,
        generator: torch.Generator | None = None,
        steps: Steps | None = None,
        device: torch.device | str | None = None,
    ) -> PCADictionary:
        from peira.explain.g_sae.dictionary import CHUNK
        from peira.explain.g_sae.fitting import checked_rows, moments

        rows, _, _ = checked_rows(x)
        d = rows.shape[1]
        if self.h > d:
            raise DataError("more components than features", value=self.h, expected=f"up to {d}")
        mean, _ = moments(rows)
        covariance = torch.zeros(d, d, dtype=torch.float64)
        for first in range(0, len(rows), CHUNK):
            part = take(rows, slice(first, first + CHUNK)).double().cpu() - mean
            covariance += part.T @ part
        self.build(d, generator)
        self.to(device or (rows.device if isinstance(rows, Tensor) else "cpu"))
        with torch.no_grad():
            self.b_pre.copy_(mean)
            self.mean.copy_(mean)
            self.decoder.copy_(torch.linalg.eigh(covariance).eigenvectors.T.flip(0)[: self.h])
            self.encoder.copy_(self.decoder)
        return self
