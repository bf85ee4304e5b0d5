"""The extracted network against the dense, the masked and the gated one; steps that skip."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from peira.nn import apply_masks, cifar_resnet, remove_masks, slim
from peira.weights import ConsensusPruner, consensus_masks, prune_by_score

torch.set_num_threads(1)
# ResNet-8 on pictures of CIFAR's size, half of the operations removed.
PICTURES = torch.rand(256, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(10, (256,), generator=torch.Generator().manual_seed(0))
BATCH = 64


def network(depth: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return cifar_resnet(depth).eval()


def kept(dense: nn.Module, mode: str) -> Any:
    return prune_by_score(dense, PICTURES, "uniform", 0.5, mode)  # type: ignore[arg-type]


def settled(mode: str, skip: bool, dense: nn.Module) -> ConsensusPruner:
    """A pruner all of whose inputs keep what `kept` says."""
    pruner = ConsensusPruner(dense, mode, skip=skip)  # type: ignore[arg-type]
    chosen = kept(dense, mode)
    for name, gate in pruner.gates.items():
        gate.output.weight.data.zero_()
        gate.output.bias.data.fill_(-3.0 if name in chosen else 3.0)
        if chosen.get(name) is not None:
            gate.output.bias.data[chosen[name]] = 3.0
    return pruner


def variant(name: str) -> nn.Module:
    dense = network()
    if name == "dense":
        return dense
    if name == "gated":
        return settled("channel", False, dense).model.eval()
    if name == "masked":
        masks = consensus_masks(dense, kept(dense, "channel"))
        return remove_masks(apply_masks(dense, masks))
    return slim(dense, kept(dense, "layer" if name == "blocks" else "channel")).eval()


def infer(benchmark: Any, name: str, batch: int, rounds: int) -> None:
    model, inputs = variant(name), PICTURES[:batch]
    with torch.no_grad():
        model(inputs)
        benchmark.pedantic(lambda: model(inputs), rounds=rounds)


@pytest.mark.benchmark(group="consensus-subnetwork one picture, channels removed")
def test_one_peira(benchmark: Any) -> None:
    infer(benchmark, "channels", 1, 100)


@pytest.mark.benchmark(group="consensus-subnetwork one picture, channels removed")
def test_one_dense(benchmark: Any) -> None:
    infer(benchmark, "dense", 1, 100)


@pytest.mark.benchmark(group="consensus-subnetwork one picture, channels removed")
def test_one_masked(benchmark: Any) -> None:
    infer(benchmark, "masked", 1, 100)


@pytest.mark.benchmark(group="consensus-subnetwork one picture, channels removed")
def test_one_gated(benchmark: Any) -> None:
    infer(benchmark, "gated", 1, 100)


@pytest.mark.benchmark(group="consensus-subnetwork one picture, blocks removed")
def test_one_blocks_peira(benchmark: Any) -> None:
    infer(benchmark, "blocks", 1, 100)


@pytest.mark.benchmark(group="consensus-subnetwork one picture, blocks removed")
def test_one_blocks_dense(benchmark: Any) -> None:
    infer(benchmark, "dense", 1, 100)


@pytest.mark.benchmark(group="consensus-subnetwork 256 pictures, channels removed")
def test_many_peira(benchmark: Any) -> None:
    infer(benchmark, "channels", 256, 5)


@pytest.mark.benchmark(group="consensus-subnetwork 256 pictures, channels removed")
def test_many_dense(benchmark: Any) -> None:
    infer(benchmark, "dense", 256, 5)


@pytest.mark.benchmark(group="consensus-subnetwork 256 pictures, channels removed")
def test_many_masked(benchmark: Any) -> None:
    infer(benchmark, "masked", 256, 5)


@pytest.mark.benchmark(group="consensus-subnetwork 256 pictures, channels removed")
def test_many_gated(benchmark: Any) -> None:
    infer(benchmark, "gated", 256, 5)


@pytest.mark.benchmark(group="consensus-subnetwork 256 pictures, blocks removed")
def test_many_blocks_peira(benchmark: Any) -> None:
    infer(benchmark, "blocks", 256, 5)


@pytest.mark.benchmark(group="consensus-subnetwork 256 pictures, blocks removed")
def test_many_blocks_dense(benchmark: Any) -> None:
    infer(benchmark, "dense", 256, 5)


def step(model: nn.Module, penalty: Callable[[], torch.Tensor] | None = None) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), 0.0, fused=True)
    model.train()

    def run() -> None:
        loss = F.cross_entropy(model(PICTURES[:BATCH]), LABELS[:BATCH])
        if penalty is not None:
            loss = loss + penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    run()
    return run


def gated_step(mode: str, skip: bool) -> Callable[[], None]:
    pruner = settled(mode, skip, network())
    return step(pruner.model, pruner.penalty)


@pytest.mark.benchmark(group="consensus-subnetwork training step, half of the blocks closed")
def test_step_blocks_peira(benchmark: Any) -> None:
    benchmark.pedantic(gated_step("layer", True), rounds=8)


@pytest.mark.benchmark(group="consensus-subnetwork training step, half of the blocks closed")
def test_step_blocks_multiplied(benchmark: Any) -> None:
    benchmark.pedantic(gated_step("layer", False), rounds=8)


@pytest.mark.benchmark(group="consensus-subnetwork training step, half of the blocks closed")
def test_step_blocks_dense(benchmark: Any) -> None:
    benchmark.pedantic(step(network()), rounds=8)


@pytest.mark.benchmark(group="consensus-subnetwork training step, half of the channels closed")
def test_step_channels_peira(benchmark: Any) -> None:
    benchmark.pedantic(gated_step("channel", True), rounds=8)


@pytest.mark.benchmark(group="consensus-subnetwork training step, half of the channels closed")
def test_step_channels_multiplied(benchmark: Any) -> None:
    benchmark.pedantic(gated_step("channel", False), rounds=8)


@pytest.mark.benchmark(group="consensus-subnetwork training step, half of the channels closed")
def test_step_channels_dense(benchmark: Any) -> None:
    benchmark.pedantic(step(network()), rounds=8)


@pytest.mark.benchmark(group="consensus-subnetwork half of the channels of ResNet-56 removed")
def test_removal_peira(benchmark: Any) -> None:
    dense = network(56)
    chosen = kept(dense, "channel")
    benchmark.pedantic(lambda: slim(dense, chosen), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="consensus-subnetwork half of the channels of ResNet-56 removed")
def test_removal_torch_pruning(benchmark: Any) -> None:
    """Torch-Pruning traces the network for its groups; here only inner channels may go."""
    tp = pytest.importorskip("torch_pruning")
    dense = network(56)

    def prune() -> nn.Module:
        model = copy.deepcopy(dense)
        inner = [m.conv1 for m in model.modules() if hasattr(m, "conv1")]
        others = [
            m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear) and m not in inner
        ]
        tp.pruner.MagnitudePruner(
            model, PICTURES[:1], importance=tp.importance.MagnitudeImportance(p=1),
            pruning_ratio=0.5, ignored_layers=others,
        ).step()  # fmt: skip
        return model

    benchmark.pedantic(prune, rounds=5, warmup_rounds=1)
