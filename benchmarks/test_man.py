"""A training step of ResNet-32 on 64 pictures: MAN, backpropagation, checkpointing; the average.

`extra_info` of each step has the MiB that it holds for its backward passes.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peira.nn import cifar_resnet
from peira.training import LocalTrainer
from peira.training.man.memory import checkpointed_backward, end_to_end_backward, peak_bytes

MODULES = pytest.mark.parametrize("modules", [2, 4, 8])
STEP = pytest.mark.benchmark(group="man step of ResNet-32, batch 64")
AVERAGE = pytest.mark.benchmark(group="man moving average of 14 blocks")


def trainer(modules: int) -> LocalTrainer:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return LocalTrainer(cifar_resnet(32), modules).train()


def batch() -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    labels = torch.randint(10, (64,))
    return torch.rand(64, 3, 32, 32), lambda logits: F.cross_entropy(logits, labels)


def steps(benchmark: Callable[..., None], step: Callable[[], object], ignore: list[Tensor]) -> None:
    benchmark.extra_info["held_mib"] = round(peak_bytes(step, ignore) / 2**20, 1)
    benchmark.pedantic(step, rounds=3, warmup_rounds=0)


@STEP
@MODULES
def test_step_peira(benchmark: Callable[..., None], modules: int) -> None:
    local, (images, loss) = trainer(modules), batch()
    steps(benchmark, lambda: local.backward(images, loss), [images, *local.parameters()])


@STEP
@MODULES
def test_step_end_to_end(benchmark: Callable[..., None], modules: int) -> None:
    network, (images, loss) = trainer(modules).network, batch()
    step = lambda: end_to_end_backward(network, images, loss)  # noqa: E731
    steps(benchmark, step, [images, *network.parameters()])


@STEP
@MODULES
def test_step_checkpointing(benchmark: Callable[..., None], modules: int) -> None:
    parts, (images, loss) = trainer(modules).local_modules, batch()
    weights = [weight for part in parts for weight in part.parameters()]
    steps(benchmark, lambda: checkpointed_backward(parts, images, loss), [images, *weights])


@AVERAGE
def test_average_peira(benchmark: Callable[..., None]) -> None:
    local = trainer(15)
    units = [local.network[end + 1] for end in local.ends[:-1]]

    def follow() -> None:
        for part, unit in zip(local.auxiliaries, units, strict=True):
            part.path.follow(unit)

    benchmark(follow)


@AVERAGE
def test_average_released_loop(benchmark: Callable[..., None]) -> None:
    """As the released code does it: each parameter replaced by a new tensor."""
    local = trainer(15)
    units = [local.network[end + 1] for end in local.ends[:-1]]

    def follow() -> None:
        for part, unit in zip(local.auxiliaries, units, strict=True):
            average: nn.Module = part.path.average
            for ours, theirs in zip(average.parameters(), unit.parameters(), strict=True):
                ours.data = ours.data * 0.995 + theirs.data * (1 - 0.995)

    benchmark(follow)
