"""Optimisers that choose their own step: Armijo line search and AdaHessian."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from peira.engine.errors import PeiraError


class ArmijoSGD(torch.optim.Optimizer):
    """SGD with a backtracking line search on each batch (Vaswani et al. 2019).

    `step(closure)` takes a closure that returns the batch's loss without calling `backward`. The
    trial rate doubles over an epoch, so that the search can go up again.

    Args:
        params: to train.
        lr: first trial rate, and the highest.
        batches: batches of an epoch.
        sufficient: share of the decrease that a linear model promises (c).
        shrink: factor of a rejected rate.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 10.0,
        batches: int = 1,
        sufficient: float = 0.1,
        shrink: float = 0.9,
    ) -> None:
        super().__init__(params, {"lr": lr, "evaluations": 0})
        self.highest, self.grow = lr, 2 ** (1 / batches)
        self.sufficient, self.shrink = sufficient, shrink

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """One step; the first group's "evaluations" counts the forward passes of the search."""
        if closure is None:
            raise PeiraError("a line search needs the closure of the batch's loss")
        params = [p for group in self.param_groups for p in group["params"]]
        with torch.enable_grad():
            loss = closure()
            gradients = torch.autograd.grad(loss, params)
        slope = float(sum(g.square().sum() for g in gradients))
        rate = min(self.param_groups[0]["lr"] * self.grow, self.highest)
        start = [p.detach().clone() for p in params]
        with torch.no_grad():
            for _ in range(100):
                for p, at, g in zip(params, start, gradients, strict=True):
                    p.copy_(at - rate * g)
                self.param_groups[0]["evaluations"] += 1
                if closure() <= loss - self.sufficient * rate * slope:
                    break
                rate *= self.shrink
        for group in self.param_groups:
            group["lr"] = rate
        return loss.detach()


class AdaHessian(torch.optim.Optimizer):
    """Adam with the Hessian's diagonal in the place of the gradient (Yao et al. 2021).

    Before `step` the weights' `grad` must carry its graph: from `torch.autograd.grad(loss, params,
    create_graph=True)`, or `loss.backward(create_graph=True)`. One Rademacher vector z a step;
    |z * H z| is averaged over the kernel of convolutions.

    Args:
        params: to train.
        lr: 0.15 in the paper.
        betas: of the moments.
        eps: added to the root.
        generator: draws z.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.15,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})
        self.generator = generator

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step from gradients that carry their graph."""
        params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        gradients = [p.grad for p in params]
        signs = [
            (torch.randint(0, 2, p.shape, generator=self.generator) * 2 - 1).to(p) for p in params
        ]
        products = torch.autograd.grad(gradients, params, signs)
        diagonals = {
            p: _averaged((z * hz).abs()) for p, z, hz in zip(params, signs, products, strict=True)
        }
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p in diagonals:
                        self._update(p, diagonals[p], group)

    def _update(self, p: Tensor, diagonal: Tensor, group: dict[str, Any]) -> None:
        state, (b1, b2) = self.state[p], group["betas"]
        if not state:
            state.update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
        state["step"] += 1
        gradient = p.grad.detach()
        state["mean"] = b1 * state["mean"] + (1 - b1) * gradient
        state["square"] = b2 * state["square"] + (1 - b2) * diagonal.square()
        root = (state["square"] / (1 - b2 ** state["step"])).sqrt() + group["eps"]
        p -= group["lr"] * state["mean"] / (1 - b1 ** state["step"]) / root
        # The graph of this batch hangs on the gradient.
        p.grad = None


def _averaged(diagonal: Tensor) -> Tensor:
    if diagonal.ndim < 4:
        return diagonal
    return diagonal.mean(dim=(-2, -1), keepdim=True).expand_as(diagonal)
