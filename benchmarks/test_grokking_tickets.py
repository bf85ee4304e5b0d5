"""The precomputed-table forward against the per-token one; our masks against torch's pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from peira.dynamics.grokking_tickets.model import TokenMLP, TokenTransformer
from peira.nn.pruning import apply_masks, magnitude_mask

torch.set_num_threads(1)
PAIRS = torch.combinations(torch.arange(67), with_replacement=True)
ORDER = torch.randperm(len(PAIRS), generator=torch.Generator().manual_seed(0))
INPUTS = PAIRS[ORDER][:911]
LABELS = INPUTS.sum(dim=1) % 67


def step_of(
    network: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> Callable[[], None]:
    """One full-batch training step of the paper."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1.0, fused=True)

    def step() -> None:
        loss = F.cross_entropy((forward or network)(INPUTS), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def mlp() -> TokenMLP:
    return TokenMLP(67, generator=torch.Generator().manual_seed(0))


def per_token_mlp(network: TokenMLP, tokens: torch.Tensor) -> torch.Tensor:
    """Every token of every pair through every matrix, as the official code does."""
    embedded = F.embedding(tokens, network.embed.T)
    hidden = (embedded @ network.project_in.T).sum(dim=1).relu()
    return hidden @ network.project_out.T @ network.unembed


def one_hot_mlp(network: TokenMLP, tokens: torch.Tensor) -> torch.Tensor:
    """The same with one-hot tokens."""
    embedded = F.one_hot(tokens, 67).float() @ network.embed.T
    hidden = (embedded @ network.project_in.T).sum(dim=1).relu()
    return hidden @ network.project_out.T @ network.unembed


@pytest.mark.benchmark(group="grokking-tickets MLP step")
def test_mlp_step_peira(benchmark: Callable[..., None]) -> None:
    benchmark(step_of(mlp()))


@pytest.mark.benchmark(group="grokking-tickets MLP step")
def test_mlp_step_per_token(benchmark: Callable[..., None]) -> None:
    network = mlp()
    benchmark(step_of(network, lambda tokens: per_token_mlp(network, tokens)))


@pytest.mark.benchmark(group="grokking-tickets MLP step")
def test_mlp_step_one_hot(benchmark: Callable[..., None]) -> None:
    network = mlp()
    benchmark(step_of(network, lambda tokens: one_hot_mlp(network, tokens)))


def transformer() -> TokenTransformer:
    return TokenTransformer(67, generator=torch.Generator().manual_seed(0))


def per_token_transformer(network: TokenTransformer, tokens: torch.Tensor) -> torch.Tensor:
    """All positions of every pair through the block."""
    h = F.embedding(tokens, network.embed.T)
    q, k, v = (h @ weight.T for weight in (network.query, network.key, network.value))
    h = h + F.scaled_dot_product_attention(q, k, v, is_causal=True) @ network.attention_out.T
    h = h + (h @ network.mlp_in.T).relu() @ network.mlp_out.T
    return h[:, -1] @ network.unembed


@pytest.mark.benchmark(group="grokking-tickets Transformer step")
def test_transformer_step_peira(benchmark: Callable[..., None]) -> None:
    benchmark(step_of(transformer()))


@pytest.mark.benchmark(group="grokking-tickets Transformer step")
def test_transformer_step_per_token(benchmark: Callable[..., None]) -> None:
    network = transformer()
    benchmark(step_of(network, lambda tokens: per_token_transformer(network, tokens)))


def matrices() -> nn.Module:
    """Square layers of 1 million weights in all, as both pruners take them."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(4)))


@pytest.mark.benchmark(group="grokking-tickets global magnitude pruning")
def test_prune_peira(benchmark: Callable[..., None]) -> None:
    def setup() -> tuple[tuple[nn.Module], dict[str, object]]:
        return (copy.deepcopy(network),), {}

    network = matrices()
    benchmark.pedantic(  # type: ignore[attr-defined]
        lambda net: apply_masks(net, magnitude_mask(net.state_dict(), 0.4)), setup=setup, rounds=20
    )


@pytest.mark.benchmark(group="grokking-tickets global magnitude pruning")
def test_prune_torch(benchmark: Callable[..., None]) -> None:
    def setup() -> tuple[tuple[nn.Module], dict[str, object]]:
        return (copy.deepcopy(network),), {}

    def global_magnitude(net: nn.Sequential) -> None:
        layers = [(layer, "weight") for layer in net]
        prune.global_unstructured(layers, prune.L1Unstructured, amount=0.6)

    network = matrices()
    benchmark.pedantic(global_magnitude, setup=setup, rounds=20)  # type: ignore[attr-defined]


@pytest.mark.benchmark(group="grokking-tickets masked step")
def test_masked_step_peira(benchmark: Callable[..., None]) -> None:
    network = mlp()
    benchmark(step_of(apply_masks(network, magnitude_mask(network.state_dict(), 0.4))))


@pytest.mark.benchmark(group="grokking-tickets masked step")
def test_masked_step_torch(benchmark: Callable[..., None]) -> None:
    network = mlp()
    weights = [(network, name) for name, _ in network.named_parameters()]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=0.6)
    benchmark(step_of(network))
