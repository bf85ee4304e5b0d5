"""The batched elastic warp against SciPy's loop, distances by one product, GLVQ."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from sklearn.datasets import load_digits

from peira.explain.prototypes.baselines import GLVQ
from peira.explain.prototypes.elastic import displacement, warp
from peira.explain.prototypes.model import squared_distances

torch.set_num_threads(1)
Benchmark = Callable[..., None]
# The published batch.
IMAGES = np.random.default_rng(0).random((250, 28, 28)).astype(np.float32)
NOISE = np.random.default_rng(1).uniform(-1, 1, (250, 2, 28, 28)).astype(np.float32)
LATENTS, PROTOTYPES = torch.rand(10_000, 40), torch.rand(15, 40)


@pytest.mark.benchmark(group="prototypes elastic deformation of 250 pictures")
def test_elastic_peira(benchmark: Benchmark) -> None:
    images, noise = torch.from_numpy(IMAGES)[:, None], torch.from_numpy(NOISE)
    benchmark(lambda: warp(images, displacement(noise)))


@pytest.mark.benchmark(group="prototypes elastic deformation of 250 pictures")
def test_elastic_scipy_loop(benchmark: Benchmark) -> None:
    rows, columns = np.mgrid[:28, :28]

    def loop() -> None:
        for image, (first, second) in zip(IMAGES, NOISE, strict=True):
            dx = gaussian_filter(first, 4, mode="constant") * 20
            dy = gaussian_filter(second, 4, mode="constant") * 20
            map_coordinates(image, (rows + dx, columns + dy), order=1)

    benchmark(loop)


@pytest.mark.benchmark(group="prototypes distances of 10,000 latents")
def test_distances_peira(benchmark: Benchmark) -> None:
    benchmark(squared_distances, LATENTS, PROTOTYPES)


@pytest.mark.benchmark(group="prototypes distances of 10,000 latents")
def test_distances_differences(benchmark: Benchmark) -> None:
    benchmark(lambda: (LATENTS[:, None] - PROTOTYPES).square().sum(2))


@pytest.mark.benchmark(group="prototypes distances of 10,000 latents")
def test_distances_cdist(benchmark: Benchmark) -> None:
    benchmark(lambda: torch.cdist(LATENTS, PROTOTYPES).square())


DIGITS = load_digits()


@pytest.mark.benchmark(group="prototypes GLVQ on digits")
def test_glvq_peira(benchmark: Benchmark) -> None:
    model = GLVQ(10, random_state=0)
    benchmark.pedantic(model.fit, (DIGITS.data / 16, DIGITS.target), rounds=3)


@pytest.mark.benchmark(group="prototypes GLVQ on digits")
def test_glvq_sklearn_lvq(benchmark: Benchmark) -> None:
    sklearn_lvq = pytest.importorskip("sklearn_lvq")
    model = sklearn_lvq.GlvqModel(prototypes_per_class=1, random_state=0)
    benchmark.pedantic(model.fit, (DIGITS.data / 16, DIGITS.target), rounds=3)
