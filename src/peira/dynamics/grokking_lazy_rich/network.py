"""Networks of the paper: the plain polynomial one, modular addition, images, one Transformer."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor, nn
from torch.nn import functional as F

from peira.dynamics.grokking_lazy_rich.polynomial import Components, population_loss
from peira.dynamics.probes import empirical_ntk, kernel_task_alignment, mlp


class PolyNetwork(nn.Module):
    """f(x) = (alpha / N) sum_i a_i (z_i + (eps / 2) z_i^2), z = W x.

    The network that `Descent` trains in closed form, as a module for autograd.

    Args:
        weights: W, (N, D).
        alpha, eps: output scale and curvature.
        readouts: a, trained as well; None leaves it at 1.
    """

    def __init__(
        self,
        weights: Float[Tensor, "N D"],
        *,
        alpha: float,
        eps: float,
        readouts: Float[Tensor, " N"] | None = None,
    ) -> None:
        super().__init__()
        self.alpha, self.eps = alpha, eps
        self.weight = nn.Parameter(weights.clone())
        self.readout = None if readouts is None else nn.Parameter(readouts.clone())

    def forward(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Outputs, not centred."""
        z = F.linear(x, self.weight)
        phi = z + self.eps / 2 * z * z
        return self.alpha * (phi if self.readout is None else phi * self.readout).mean(1)

    @torch.no_grad()
    def order(self) -> tuple[Float[Tensor, " D"], Float[Tensor, "D D"]]:
        """mean a_i w_i and mean a_i w_i w_i^T; without readouts wbar and M."""
        weighted = self.weight if self.readout is None else self.weight * self.readout[:, None]
        return weighted.mean(0), weighted.T @ self.weight / len(self.weight)


class ReadoutDescent:
    """`Descent` for one network whose readouts train as well, by autograd in double precision.

    Args:
        x, y: training data.
        weights, readouts: W (N, D) and a (N,).
        alpha, eps, rate, centred: as in `Descent`.
    """

    def __init__(
        self,
        x: ndarray,
        y: ndarray,
        weights: ndarray,
        readouts: ndarray,
        *,
        alpha: float,
        eps: float,
        rate: float,
        centred: bool,
    ) -> None:
        self.x, self.y, self.alpha, self.eps, self.centred = x[None], y[None], alpha, eps, centred
        self.network = PolyNetwork(
            torch.from_numpy(weights), alpha=alpha, eps=eps, readouts=torch.from_numpy(readouts)
        )
        self._before = copy.deepcopy(self.network)
        self._rate = rate * len(weights) / alpha**2
        self._inputs = torch.from_numpy(x)
        self._wanted = torch.from_numpy(y) + self._offset(self._inputs)

    def step(self) -> None:
        """One step of gradient descent."""
        params = list(self.network.parameters())
        gradients = torch.autograd.grad(self._loss(), params)
        with torch.no_grad():
            for p, gradient in zip(params, gradients, strict=True):
                p -= self._rate * gradient

    @property
    def train_loss(self) -> Float[ndarray, " 1"]:
        """Mean squared error on the training data, now."""
        return self._loss().detach().numpy()[None]

    @torch.no_grad()
    def predict(self, x: Float[ndarray, "n D"]) -> Float[ndarray, "1 n"]:
        """Outputs for other inputs; f - f_0 where centred."""
        inputs = torch.from_numpy(x)
        return (self.network(inputs) - self._offset(inputs)).numpy()[None]

    def components(self, beta: Float[ndarray, " D"]) -> Components:
        """The exact population loss, with readout-weighted order parameters."""
        order = [part.numpy() for part in self.network.order()]
        if self.centred:
            before = (part.numpy() for part in self._before.order())
            order = [now - then for now, then in zip(order, before, strict=True)]
        return population_loss(*order, beta, alpha=self.alpha, eps=self.eps)

    def movement(self) -> Float[ndarray, " 1"]:
        """|theta - theta_0|^2 / |theta_0|^2, readouts included."""
        pairs = list(zip(self.network.parameters(), self._before.parameters(), strict=True))
        moved = sum(float((now - then).detach().square().sum()) for now, then in pairs)
        return np.array([moved / sum(float(then.detach().square().sum()) for _, then in pairs)])

    def norm_ratio(self) -> Float[ndarray, " 1"]:
        """|theta|^2 / |theta_0|^2."""
        now, then = (
            sum(float(p.detach().square().sum()) for p in net.parameters())
            for net in (self.network, self._before)
        )
        return np.array([now / then])

    def alignment(self, x: Float[ndarray, "n D"], y: Float[ndarray, " n"]) -> float:
        """Centred alignment of the present tangent kernel on inputs x with their targets."""
        kernel = empirical_ntk(self.network, torch.from_numpy(x), mode="trace", method="jacobian")
        return kernel_task_alignment(kernel, torch.from_numpy(y))

    def state_dict(self) -> dict[str, Tensor]:
        """The weights."""
        return {name: value.clone() for name, value in self.network.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state_dict()`."""
        self.network.load_state_dict(state)

    def _loss(self) -> Tensor:
        return (self.network(self._inputs) - self._wanted).square().mean()

    def _offset(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self._before(x) if self.centred else torch.zeros(len(x), dtype=x.dtype)


class ModularNetwork(nn.Module):
    """Two-layer network with squares on two one-hot numbers: scale / (2 p N) W2 (W1 x)^2.

    Args:
        modulus: p.
        width: N.
        generator: draws the weights, N(0, 1).
    """

    def __init__(
        self, modulus: int, width: int = 100, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.scale = 1 / (2 * modulus * width)
        self.first = nn.Parameter(torch.randn(width, 2 * modulus, generator=generator))
        self.second = nn.Parameter(torch.randn(modulus, width, generator=generator))
        self.register_buffer("places", torch.tensor([0, modulus]), persistent=False)

    def forward(self, numbers: Int[Tensor, "batch 2"]) -> Float[Tensor, "batch p"]:
        """One output per residue."""
        hidden = F.embedding(numbers + self.places, self.first.T).sum(1)
        return self.scale * F.linear(hidden.square(), self.second)


def image_network(
    pixels: int,
    gain: float = 1.0,
    width: int = 200,
    *,
    kaiming: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Three hidden ReLU layers, 1 / sqrt(fan-in) in the forward pass, 1 / width before the output.

    Args:
        gain: standard deviation of all weights; 150 in the paper's MNIST runs.
        kaiming: multiply the weights by sqrt(2 / fan-in) on top.
    """
    network = mlp(
        (pixels, width, width, width, 10), parametrisation="mean_field", generator=generator
    )
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(gain * math.sqrt(2 / weight.shape[1]) if kaiming else gain)
    return network


class OneLayerTransformer(nn.Module):
    """One causal block without normalisation that reads "a b =" and answers after "=".

    Args:
        modulus: p; the token p is "=".
        width, heads, hidden: 128, 4 and 512 in the paper.
        generator: draws the weights: N(0, 1 / width), the unembedding N(0, 1 / (p + 1)).
    """

    def __init__(
        self,
        modulus: int = 113,
        width: int = 128,
        heads: int = 4,
        hidden: int = 512,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is no multiple of {heads} heads")

        def draw(*shape: int, fan: int = width) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) / math.sqrt(fan))

        self.heads, self.equals = heads, modulus
        self.embed, self.position = draw(modulus + 1, width), draw(3, width)
        self.query, self.key, self.value = (draw(width, width) for _ in range(3))
        self.attention_out = draw(width, width)
        self.mlp_in, self.mlp_out = draw(hidden, width), draw(width, hidden)
        self.bias_in = nn.Parameter(torch.zeros(hidden))
        self.bias_out = nn.Parameter(torch.zeros(width))
        self.unembed = draw(width, modulus + 1, fan=modulus + 1)

    def forward(self, pairs: Int[Tensor, "batch 2"]) -> Float[Tensor, "batch p+1"]:
        """Logits after "="."""
        tokens = F.pad(pairs, (0, 1), value=self.equals)
        h = F.embedding(tokens, self.embed) + self.position
        # Only the last token's stream reaches the output, so only it asks.
        query = self._split(h[:, -1:] @ self.query.T)
        key, value = self._split(h @ self.key.T), self._split(h @ self.value.T)
        # Spelt out, because the fused kernel has no batching rule and tangent kernels need one.
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        mixed = scores.softmax(-1) @ value
        last = h[:, -1] + mixed.transpose(1, 2).flatten(1) @ self.attention_out.T
        hidden = F.relu(F.linear(last, self.mlp_in, self.bias_in))
        return (last + F.linear(hidden, self.mlp_out, self.bias_out)) @ self.unembed

    def _split(self, h: Tensor) -> Tensor:
        return h.unflatten(-1, (self.heads, -1)).transpose(1, 2)
