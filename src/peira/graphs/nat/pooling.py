"""Pooling of joint neighbourhoods, with a dropout that stores no mask."""

from __future__ import annotations

from typing import Any, Literal

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Pool = Literal["sum", "attention"]

# 2^32 / golden ratio: consecutive multiples of it are far apart.
_STRIDE = np.uint32(0x9E3779B9)


@numba.njit(inline="always")
def _mix(h):
    """A bijection of 32 bits whose outputs look random (constants of Wellons' lowbias32)."""
    h = np.uint32(h)
    h = np.uint32(h ^ (h >> np.uint32(16)))
    h = np.uint32(h * np.uint32(0x7FEB352D))
    h = np.uint32(h ^ (h >> np.uint32(15)))
    h = np.uint32(h * np.uint32(0x846CA68B))
    return np.uint32(h ^ (h >> np.uint32(16)))


@numba.njit(inline="always")
def _kept(row, column, threshold):
    return _mix(row ^ np.uint32(np.uint32(column) * _STRIDE)) >= threshold


# Only sums may be reordered: that lets them run in vector registers.
@numba.njit(cache=True, fastmath={"reassoc", "contract"})
def _forward(x, weight, pair, key, threshold, scale, total):
    members, width_in = x.shape
    width = weight.shape[1]
    h = np.empty(width, np.float32)
    for i in range(members):
        row = _mix(np.uint32(i) ^ key)
        h[:] = 0
        for d in range(width_in):
            if _kept(row, width + d, threshold):
                a = x[i, d] * scale
                for c in range(width):
                    h[c] += a * weight[d, c]
        into = total[pair[i]]
        for c in range(width):
            into[c] += h[c] * np.float32(_kept(row, c, threshold)) * scale


@numba.njit(cache=True, fastmath={"reassoc", "contract"})
def _backward(x, weight, pair, key, threshold, scale, grad, grad_x, grad_weight):
    members, width_in = x.shape
    width = weight.shape[1]
    g = np.empty(width, np.float32)
    for i in range(members):
        row = _mix(np.uint32(i) ^ key)
        of_pair = grad[pair[i]]
        for c in range(width):
            g[c] = of_pair[c] * np.float32(_kept(row, c, threshold)) * scale
        for d in range(width_in):
            if _kept(row, width + d, threshold):
                a = x[i, d] * scale
                along = np.float32(0)
                for c in range(width):
                    along += g[c] * weight[d, c]
                    grad_weight[d, c] += a * g[c]
                grad_x[i, d] = along * scale


class DroppedSum(torch.autograd.Function):
    """sum over the members i of each pair of drop(W drop(x_i)), on the CPU, member by member.

    Neither W x_i (30 MB for a batch of 200 events) nor a mask is kept: whether an element is
    dropped is a hash of `key`, member and column, computed again for the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "members width_in"],
        weight: Float[Tensor, "width width_in"],
        pair: Int[Tensor, " members"],
        pairs: int,
        p: float,
        key: int,
    ) -> Float[Tensor, "pairs width"]:
        """`pair` says which of the `pairs` each member belongs to, `p` is the dropout rate."""
        columns = weight.t().contiguous()
        ctx.save_for_backward(x, columns, pair)
        # In float32: a float64 factor would widen the inner loops.
        ctx.draws = np.uint32(key), np.uint32(round(p * 2**32)), np.float32(1 / (1 - p))
        total = x.new_zeros(pairs, len(weight))
        _forward(
            x.detach().numpy(), columns.detach().numpy(), pair.numpy(), *ctx.draws, total.numpy()
        )
        return total

    @staticmethod
    def backward(ctx: Any, grad: Float[Tensor, "pairs width"]) -> tuple[Tensor | None, ...]:
        """Gradients of x and W."""
        x, columns, pair = ctx.saved_tensors
        grad_x, grad_columns = torch.zeros_like(x), torch.zeros_like(columns)
        _backward(
            x.numpy(), columns.numpy(), pair.numpy(), *ctx.draws, grad.contiguous().numpy(),
            grad_x.numpy(), grad_columns.numpy(),
        )  # fmt: skip
        return grad_x, grad_columns.t(), None, None, None, None


class JointPool(nn.Module):
    """Pools the members of each pair with `heads` linear projections (eq. 8 of the paper).

    `attention` weighs members by softmax(LeakyReLU(a_h . W_h x)), as the paper writes it. `sum`
    adds the projections unweighted, as the official code does: there the scores are computed and
    multiplied by nothing.
    """

    def __init__(
        self, width_in: int, width_out: int, heads: int, dropout: float, pool: Pool
    ) -> None:
        super().__init__()
        self.heads, self.pool = heads, pool
        self.project = nn.Linear(width_in, heads * width_out, bias=False)
        self.bias = nn.Parameter(torch.zeros(width_out))
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.project.weight)
        if pool == "attention":
            self.score = nn.Parameter(torch.empty(1, heads, width_out))
            nn.init.xavier_uniform_(self.score)

    def forward(
        self, x: Float[Tensor, "members width_in"], pair: Int[Tensor, " members"], pairs: int
    ) -> Float[Tensor, "pairs width_out"]:
        """Pooled vector of each pair; every pair has members (its own two nodes)."""
        if self.pool == "sum" and x.device.type == "cpu":
            p = self.dropout.p if self.training else 0.0
            key = int(torch.randint(2**32, ()))
            pooled = DroppedSum.apply(x, self.project.weight, pair, pairs, p, key)
            return pooled.view(pairs, self.heads, -1).mean(1) + self.bias
        h = self.dropout(self.project(self.dropout(x)).view(len(x), self.heads, -1))
        if self.pool == "attention":
            h = h * self._weights(h, pair, pairs)[..., None]
        return h.new_zeros(pairs, h.shape[2]).index_add(0, pair, h.mean(1)) + self.bias

    def pooled_sum(
        self, total: Float[Tensor, "pairs width_in"]
    ) -> Float[Tensor, "pairs width_out"]:
        """`forward` of pool="sum" without dropout: projections are linear, the sum suffices."""
        return self.project(total).view(len(total), self.heads, -1).mean(1) + self.bias

    def _weights(
        self, h: Float[Tensor, "members heads width"], pair: Int[Tensor, " members"], pairs: int
    ) -> Float[Tensor, "members heads"]:
        score = nn.functional.leaky_relu((h * self.score).sum(-1), 0.2)
        index = pair[:, None].expand_as(score)
        highest = score.new_full((pairs, self.heads), -torch.inf)
        highest = highest.scatter_reduce(0, index, score.detach(), "amax")
        weight = (score - highest[pair]).exp()
        total = weight.new_zeros(pairs, self.heads).index_add(0, pair, weight)
        return self.dropout(weight / total[pair])
