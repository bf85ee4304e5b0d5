"""Networks trained together against networks trained one by one, and against plain vmap."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from peira.nn import Ensemble, mlp

torch.set_num_threads(1)

STEPS = 20
SIZES = pytest.mark.parametrize(
    ("members", "width"), [(32, 32), (8, 512)], ids=["32 of width 32", "8 of width 512"]
)


class PlainVmap(nn.Module):
    """An ensemble as in PyTorch's tutorial on model ensembling."""

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        params, _ = stack_module_state(models)
        self.names = list(params)
        self.stacked = nn.ParameterList([nn.Parameter(value.detach()) for value in params.values()])
        self.skeleton = (copy.deepcopy(models[0]).to("meta"),)

    def forward(self, x: Tensor) -> Tensor:
        params = dict(zip(self.names, self.stacked, strict=True))
        return vmap(lambda p: functional_call(self.skeleton[0], p, (x,)))(params)


def trained(model: nn.Module, members: int = 1) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(64, size, generator=generator) for size in (16, 1))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(STEPS):
        optimiser.zero_grad()
        ((model(x) - y).square().mean() * members).backward()
        optimiser.step()


def networks(members: int, width: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [mlp((16, width, width, 1)) for _ in range(members)]


@SIZES
def test_training_many_networks_peira(
    benchmark: Callable[..., None], members: int, width: int
) -> None:
    ensemble = Ensemble(networks(members, width), shared=True)
    benchmark.pedantic(trained, (ensemble, members), rounds=5, warmup_rounds=1)


@SIZES
def test_training_many_networks_vmap(
    benchmark: Callable[..., None], members: int, width: int
) -> None:
    ensemble = PlainVmap(networks(members, width))
    benchmark.pedantic(trained, (ensemble, members), rounds=3, warmup_rounds=1)


@SIZES
def test_training_many_networks_one_by_one(
    benchmark: Callable[..., None], members: int, width: int
) -> None:
    models = networks(members, width)

    def one_by_one() -> None:
        for model in models:
            trained(model)

    benchmark.pedantic(one_by_one, rounds=3, warmup_rounds=1)
