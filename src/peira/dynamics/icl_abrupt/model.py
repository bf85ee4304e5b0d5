"""The attention-only network, and the two-parameter model of its induction head.

Every parameter may have a leading dimension for the network: `stack` makes of several networks
one module that trains them at once, by batched products.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Classifier", "InContextNet", "InductionHead", "stack", "unstack"]

First = Literal["learned", "uniform", "previous", "self"]
M = TypeVar("M", bound=nn.Module)


def stack(networks: Sequence[M]) -> M:
    """One module whose parameters hold those of all networks, along a new first dimension."""
    stacked = copy.deepcopy(networks[0])
    with torch.no_grad():
        for name, parameter in stacked.named_parameters():
            parameter.data = torch.stack([net.get_parameter(name).data for net in networks])
    return stacked


def unstack(stacked: nn.Module, networks: Sequence[nn.Module]) -> None:
    """Give every network its weights of a stacked module."""
    with torch.no_grad():
        for name, parameter in stacked.named_parameters():
            for network, value in zip(networks, parameter.unbind(), strict=True):
                network.get_parameter(name).copy_(value)


class Classifier(nn.Module):
    """ReLU network from one vector to the logits of the labels.

    Args:
        dim: of the input.
        labels: number of labels.
        width: units of each hidden layer.
        depth: hidden layers.
        generator: of the initial weights (He; biases 0).
    """

    def __init__(
        self, dim: int, labels: int, width: int, depth: int, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        sizes = [dim, *[width] * depth, labels]
        gains = [2**0.5] * depth + [1.0]
        self.weights = nn.ParameterList(
            torch.randn(n, m, generator=generator) * gain / n**0.5
            for n, m, gain in zip(sizes, sizes[1:], gains, strict=False)
        )
        self.biases = nn.ParameterList(torch.zeros(1, m) for m in sizes[1:])

    def forward(self, x: Float[Tensor, "*nets batch dim"]) -> Float[Tensor, "*nets batch labels"]:
        *hidden, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in hidden:
            x = (x @ weight + bias).relu()
        return x @ last[0] + last[1]


class InContextNet(nn.Module):
    """Attention layers of one head without normalisation, then a classifier of the last token.

    A layer adds softmax(Q x . K x) V x to the residual stream: causal, the logits not divided by
    sqrt(dim). Only the last token's output is wanted, so the last layer is computed for that alone,
    and (x Q) K^T is x (Q K^T): the same function in about half the time.

    Args:
        dim: of a token.
        labels: number of labels.
        layers: attention layers; 2 in the paper, 0 leaves a classifier of the target alone.
        width: hidden units of the classifier, default `dim`.
        depth: hidden layers of the classifier.
        spread: standard deviation of the attention's initial weights, default dim^-1/2; the paper
            has D^-1/2.
        first: attention of the first layer: "learned", or held at "uniform" (over the tokens so
            far), at the "previous" token or at the token itself ("self").
        generator: of the initial weights.

    Reddy 2023, section 2.
    """

    def __init__(
        self,
        dim: int,
        labels: int,
        *,
        layers: int = 2,
        width: int | None = None,
        depth: int = 3,
        spread: float | None = None,
        first: First = "learned",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.first = first
        spread = dim**-0.5 if spread is None else spread
        self.query, self.key, self.value = (
            nn.ParameterList(
                torch.randn(dim, dim, generator=generator) * spread for _ in range(layers)
            )
            for _ in range(3)
        )
        self.classifier = Classifier(dim, labels, width or dim, depth, generator)

    def forward(self, tokens: Float[Tensor, "*nets S T dim"]) -> Float[Tensor, "*nets S labels"]:
        """Logits of the target's label."""
        return self.with_attention(tokens)[0]

    def with_attention(
        self, tokens: Float[Tensor, "*nets S T dim"]
    ) -> tuple[Float[Tensor, "*nets S labels"], list[Tensor]]:
        """Logits, and each layer's attention: (..., S, T, T), of the last layer (..., S, T)."""
        stream, maps = self._layers(tokens, len(self.query) - 1)
        target = stream[..., -1, :]
        if len(self.query):
            weights = self._target_attention(stream, target)
            target = target + (weights[..., None, :] @ stream).squeeze(-2) @ self.value[-1]
            maps.append(weights)
        return self.classifier(target), maps

    def attention_maps(
        self, tokens: Float[Tensor, "*nets S T dim"]
    ) -> list[Float[Tensor, "*nets S T T"]]:
        """The attention of every token in every layer."""
        return self._layers(tokens, len(self.query))[1]

    def _layers(self, tokens: Tensor, count: int) -> tuple[Tensor, list[Tensor]]:
        """The residual stream after the first `count` layers, and their attention."""
        stream, maps = tokens, []
        for layer in range(count):
            weights = self._attention(layer, stream)
            stream = stream + _rows(weights @ stream, self.value[layer])
            maps.append(weights)
        return stream, maps

    def _attention(
        self, layer: int, stream: Float[Tensor, "*nets S T dim"]
    ) -> Float[Tensor, "*nets S T T"]:
        length = stream.shape[-2]
        if layer == 0 and self.first != "learned":
            return _fixed(self.first, length).to(stream).expand(*stream.shape[:-2], length, length)
        both = self.query[layer] @ self.key[layer].transpose(-1, -2)
        logits = _rows(stream, both) @ stream.transpose(-1, -2)
        future = torch.ones(length, length, dtype=torch.bool, device=stream.device).triu(1)
        return logits.masked_fill(future, -torch.inf).softmax(dim=-1)

    def _target_attention(
        self, stream: Float[Tensor, "*nets S T dim"], target: Float[Tensor, "*nets S dim"]
    ) -> Float[Tensor, "*nets S T"]:
        asked = target @ self.query[-1] @ self.key[-1].transpose(-1, -2)
        return (stream @ asked[..., None]).squeeze(-1).softmax(dim=-1)


def _rows(x: Float[Tensor, "*nets S T n"], weight: Tensor) -> Float[Tensor, "*nets S T m"]:
    """`x @ weight` for all tokens of all sequences of a network as one product."""
    return (x.flatten(-3, -2) @ weight).unflatten(-2, x.shape[-3:-1])


def _fixed(first: First, length: int) -> Float[Tensor, "T T"]:
    if first == "uniform":
        weights = torch.ones(length, length).tril()
        return weights / weights.sum(dim=1, keepdim=True)
    if first == "self":
        return torch.eye(length)
    weights = torch.diag(torch.ones(length - 1), -1)
    weights[0, 0] = 1.0
    return weights


class InductionHead(nn.Module):
    """Two numbers in place of all attention weights, and the same classifier.

    Layer 1: token i attends to token i - 1 with logit beta_1, to the other tokens so far with
    logit 0, and copies content. Layer 2: the target x attends to token j with logit beta_2 (x .
    copied_j), and the contents so weighted go to a classifier of [x, output].

    Args:
        places: length of the position code, which is not looked at.
        D: dimension of the content.
        labels: number of labels.
        width, depth: of the classifier.
        gain: the logits are `gain` times the parameters. A network has dim^2 weights to move a
            logit with, these two have one; the gain gives their gradient steps its pace.
        generator: of the initial weights; both betas start at 0.

    Reddy 2023, section 4: the two-parameter model.
    """

    def __init__(
        self,
        places: int,
        D: int,
        labels: int,
        *,
        width: int | None = None,
        depth: int = 3,
        gain: float = 10.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.places, self.gain = places, gain
        # In double precision: optimisers round two single-precision numbers otherwise where they
        # are stacked with those of other networks.
        self.betas = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.classifier = Classifier(2 * D, labels, width or D, depth, generator)

    @property
    def beta(self) -> Float[Tensor, "*nets 2"]:
        """The two logits (beta_1, beta_2)."""
        return (self.gain * self.betas).to(self.classifier.weights[0].dtype)

    def forward(self, tokens: Float[Tensor, "*nets S T dim"]) -> Float[Tensor, "*nets S labels"]:
        """Logits of the target's label."""
        return self.with_attention(tokens)[0]

    def with_attention(
        self, tokens: Float[Tensor, "*nets S T dim"]
    ) -> tuple[Float[Tensor, "*nets S labels"], list[Tensor]]:
        """Logits, and the attention of layer 1 (..., S, T, T) and of the target (..., S, T)."""
        content = tokens[..., self.places :]
        target = content[..., -1, :]
        alike = (content @ target[..., None]).squeeze(-1)
        beta_2 = self.beta[..., 1, None, None]
        weights = (beta_2 * self._copied(alike)).softmax(dim=-1)
        output = (weights[..., None, :] @ content).squeeze(-2)
        logits = self.classifier(torch.cat([target, output], dim=-1))
        length = tokens.shape[-2]
        first = self._copy_weights(length)[..., None, :, :]
        return logits, [first.expand(*tokens.shape[:-1], length), weights]

    def _copied(self, values: Float[Tensor, "*nets S T"]) -> Float[Tensor, "*nets S T"]:
        """Layer 1's output for one value in each token: `values @ weights^T`, in closed form.

        All tokens so far weigh 1, the previous one e^beta_1.
        """
        more = (self.gain * self.betas[..., 0, None, None]).expm1().to(values)
        tokens = torch.arange(values.shape[-1], device=values.device)
        before = F.pad(values[..., :-1], (1, 0))
        return (values.cumsum(dim=-1) + more * before) / (tokens + 1 + more * (tokens > 0))

    @torch.no_grad()
    def _copy_weights(self, length: int) -> Float[Tensor, "*nets T T"]:
        beta_1 = self.beta[..., :1, None]
        before = torch.diag(torch.ones(length - 1), -1).to(beta_1)
        future = torch.ones_like(before, dtype=torch.bool).triu(1)
        return (beta_1 * before).masked_fill(future, -torch.inf).softmax(dim=-1)
