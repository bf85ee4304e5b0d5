"""Weighted sampling without replacement, and a curriculum's rounds, against the usual tools."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.data import WeightedRandomSampler

from peira.training.ccl.curriculum import CyclicalCurriculum
from peira.training.ccl.sampling import weighted_subset

torch.set_num_threads(1)
N, SIZE = 1_000_000, 250_000
LOSSES = np.random.default_rng(0).exponential(size=N)
SCORES = 1 / LOSSES
P = SCORES / SCORES.sum()
RNG = np.random.default_rng(1)


@pytest.mark.benchmark(group="ccl subset of 250,000 from 1,000,000, scores 1 / loss")
def test_subset_peira(benchmark: Callable[..., None]) -> None:
    benchmark.pedantic(lambda: weighted_subset(SCORES, SIZE, RNG), rounds=7, warmup_rounds=1)


@pytest.mark.benchmark(group="ccl subset of 250,000 from 1,000,000, scores 1 / loss")
def test_subset_numpy(benchmark: Callable[..., None]) -> None:
    # What the official code calls.
    benchmark.pedantic(lambda: RNG.choice(N, SIZE, replace=False, p=P), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="ccl subset of 250,000 from 1,000,000, scores 1 / loss")
def test_subset_legacy_numpy(benchmark: Callable[..., None]) -> None:
    benchmark.pedantic(
        lambda: np.random.choice(N, SIZE, replace=False, p=P), rounds=5, warmup_rounds=1
    )


@pytest.mark.benchmark(group="ccl subset of 250,000 from 1,000,000, scores 1 / loss")
def test_subset_torch_multinomial(benchmark: Callable[..., None]) -> None:
    weights = torch.from_numpy(P)
    benchmark.pedantic(
        lambda: torch.multinomial(weights, SIZE, replacement=False), rounds=5, warmup_rounds=1
    )


@pytest.mark.benchmark(group="ccl most of the data: 950,000 of 1,000,000")
def test_most_peira(benchmark: Callable[..., None]) -> None:
    benchmark.pedantic(lambda: weighted_subset(SCORES, 950_000, RNG), rounds=7, warmup_rounds=1)


@pytest.mark.benchmark(group="ccl most of the data: 950,000 of 1,000,000")
def test_most_numpy(benchmark: Callable[..., None]) -> None:
    benchmark.pedantic(
        lambda: RNG.choice(N, 950_000, replace=False, p=P), rounds=3, warmup_rounds=0
    )


@pytest.mark.benchmark(group="ccl sampler: one pass over 50,000 indices")
def test_pass_peira(benchmark: Callable[..., None]) -> None:
    curriculum = CyclicalCurriculum(LOSSES[:50_000], schedule="full", budget_epochs=1000)
    sampler = curriculum.sampler()
    benchmark.pedantic(lambda: sum(1 for _ in sampler), rounds=10, warmup_rounds=1)


@pytest.mark.benchmark(group="ccl sampler: one pass over 50,000 indices")
def test_pass_torch_weighted_random_sampler(benchmark: Callable[..., None]) -> None:
    weights = torch.from_numpy(SCORES[:50_000])
    sampler = WeightedRandomSampler(weights, 50_000, replacement=False)
    benchmark.pedantic(lambda: sum(1 for _ in sampler), rounds=10, warmup_rounds=1)
