"""The three networks of the paper, none with biases, normalisation or positions.

A full batch of n tuples over p tokens need not send every tuple through every matrix: products of
two weight matrices do not depend on the tuple. The token networks therefore multiply weights first
and look rows up afterwards, which is the same function (to rounding) at a fraction of the cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


def _normal(
    rows: int, columns: int, variance: float, scale: float, generator: torch.Generator | None
) -> nn.Parameter:
    return nn.Parameter(
        scale * math.sqrt(variance) * torch.randn(rows, columns, generator=generator)
    )


class TokenMLP(nn.Module):
    """logits = U^T Wout relu(sum of Win E over the tokens): sees a bag of tokens, not their order.

    With the tables T = E^T Win^T and V = Wout^T U a batch costs p * embedding * width + n * width *
    classes multiplications in place of n * embedding * (2 width + classes) and more.

    Args:
        tokens: size p of the vocabulary.
        classes: number of labels; p where not given.
        width: hidden units d.
        embedding: size of token embeddings.
        hidden_layers: further d x d layers with ReLU.
        weight_scale: multiplies all initial weights.
        generator: draws the initial weights, N(0, 1 / fan-in).
    """

    def __init__(
        self,
        tokens: int,
        classes: int | None = None,
        width: int = 48,
        embedding: int = 500,
        hidden_layers: int = 0,
        weight_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        scale = weight_scale
        self.embed = _normal(embedding, tokens, 1 / tokens, scale, generator)
        self.project_in = _normal(width, embedding, 1 / embedding, scale, generator)
        self.project_out = _normal(embedding, width, 1 / width, scale, generator)
        self.unembed = _normal(embedding, classes or tokens, 1 / embedding, scale, generator)
        layers = (nn.Linear(width, width, bias=False) for _ in range(hidden_layers))
        self.hidden = nn.ModuleList(layers)
        for layer in self.hidden:
            layer.weight = _normal(width, width, 1 / width, scale, generator)

    def token_table(self) -> Float[Tensor, "tokens width"]:
        """T = E^T Win^T: what each token adds to each hidden unit."""
        return self.embed.T @ self.project_in.T

    def forward(self, tokens: Int[Tensor, "batch k"]) -> Float[Tensor, "batch classes"]:
        """Logits of tuples of tokens."""
        features = F.relu(F.embedding(tokens, self.token_table()).sum(dim=1))
        for layer in self.hidden:
            features = F.relu(layer(features))
        return features @ (self.project_out.T @ self.unembed)


class TokenTransformer(nn.Module):
    """One block, one head, causal; logits of the last token: h += attention(h), h += MLP(h).

    Only the last token's logits count, so its attention weights come from a p x p table of scores
    and all linear maps before the ReLU from tables over the vocabulary.

    Args:
        tokens: size p of the vocabulary.
        classes: number of labels; p where not given.
        width: of the residual stream and of the MLP.
        generator: draws the initial weights, N(0, 1 / fan-in).
    """

    def __init__(
        self,
        tokens: int,
        classes: int | None = None,
        width: int = 128,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.embed = _normal(width, tokens, 1 / tokens, 1.0, generator)
        for name in ("key", "query", "value", "attention_out", "mlp_in", "mlp_out"):
            setattr(self, name, _normal(width, width, 1 / width, 1.0, generator))
        self.unembed = _normal(width, classes or tokens, 1 / width, 1.0, generator)

    def forward(self, tokens: Int[Tensor, "batch k"]) -> Float[Tensor, "batch classes"]:
        """Logits after the last token of each tuple."""
        embed, unembed = self.embed, self.unembed
        width, vocabulary = embed.shape
        last = tokens[:, -1]
        scores = (self.query @ embed).T @ (self.key @ embed) / math.sqrt(width)
        attention = scores.flatten()[last[:, None] * vocabulary + tokens].softmax(dim=1)
        # One matrix maps the residual stream to the hidden units and, beside them, to the logits.
        read = torch.cat([self.mlp_in, unembed.T])
        own = embed.T @ read.T
        moved = (self.attention_out @ (self.value @ embed)).T @ read.T
        mixed = F.embedding(last, own)
        for place in range(tokens.shape[1]):
            mixed = mixed + attention[:, place, None] * F.embedding(tokens[:, place], moved)
        hidden, direct = mixed[:, :width], mixed[:, width:]
        return direct + F.relu(hidden) @ (self.mlp_out.T @ unembed)


class ImageMLP(nn.Sequential):
    """Linear layers with ReLU between them; images come as rows of pixels.

    Args:
        sizes: pixels, hidden widths, classes; 784-200-200-10 in the paper.
        weight_scale: multiplies the initial weights; 8 delays generalisation.
        generator: draws the initial weights, N(0, 1 / fan-in).
    """

    def __init__(
        self,
        sizes: Sequence[int] = (784, 200, 200, 10),
        weight_scale: float = 8.0,
        generator: torch.Generator | None = None,
    ) -> None:
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            layer = nn.Linear(fan_in, fan_out, bias=False)
            layer.weight = _normal(fan_out, fan_in, 1 / fan_in, weight_scale, generator)
            layers += [layer, nn.ReLU()]
        super().__init__(*layers[:-1])
