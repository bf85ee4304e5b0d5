"""Tangent kernels of the dynamics room against what people write without them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from peira.dynamics.probes import empirical_ntk, mlp

torch.set_num_threads(1)


def network(*widths: int) -> nn.Module:
    return mlp(widths, generator=torch.Generator().manual_seed(0))


def inputs(n: int, size: int) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(1))


WIDE = (network(64, 2048, 2048, 1), inputs(100, 64))
MANY_OUTPUTS = (network(64, 256, 256, 10), inputs(100, 64))


def by_jacrev(model: nn.Module, x: Tensor) -> Tensor:
    """Full kernel as in PyTorch's tutorial on tangent kernels: Jacobians by vmap, then einsum."""
    params = {name: p.detach() for name, p in model.named_parameters()}

    def single(values: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(model, values, (one.unsqueeze(0),)).squeeze(0)

    jacobians = vmap(jacrev(single), (None, 0))(params, x)
    parts = [j.flatten(2) for j in jacobians.values()]
    return torch.stack([torch.einsum("nkp,mlp->nmkl", j, j) for j in parts]).sum(0)


def by_gradients(model: nn.Module, x: Tensor) -> Tensor:
    """Full kernel from one call of autograd for each input and output."""
    params = list(model.parameters())
    rows = []
    for one in x:
        outputs = model(one)
        grads = [torch.autograd.grad(out, params, retain_graph=True) for out in outputs]
        rows.append(torch.stack([torch.cat([g.flatten() for g in each]) for each in grads]))
    j = torch.stack(rows)
    return torch.einsum("nkp,mlp->nmkl", j, j)


CASES = pytest.mark.parametrize("case", [WIDE, MANY_OUTPUTS], ids=["width 2048", "10 outputs"])


@CASES
def test_ntk_peira(benchmark: Callable[..., Tensor], case: tuple) -> None:
    model, x = case
    found = benchmark.pedantic(empirical_ntk, (model, x), rounds=5, warmup_rounds=1)
    torch.testing.assert_close(found, by_jacrev(model, x), rtol=1e-3, atol=1e-3)


@CASES
def test_ntk_jacrev(benchmark: Callable[..., Tensor], case: tuple) -> None:
    benchmark.pedantic(by_jacrev, case, rounds=2)


@CASES
def test_ntk_autograd_loop(benchmark: Callable[..., Tensor], case: tuple) -> None:
    benchmark.pedantic(by_gradients, case, rounds=2)
