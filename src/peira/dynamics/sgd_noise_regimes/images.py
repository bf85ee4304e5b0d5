"""Two labels on pictures: parity of digits, animals of CIFAR-10."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from peira.data import locate
from peira.data.images import digits, mnist, read_cifar

# Of the official code: mean and spread of all pixels.
MNIST_PIXELS = 33.31002426147461, 78.56748962402344
CIFAR_PIXELS = 120.93118286132812, 64.14186096191406
CIFAR_BATCHES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
# Airplane, automobile, ship, truck; the other six are animals.
VEHICLES = (0, 1, 8, 9)

Labelled = tuple[Float32[np.ndarray, "n ..."], Float32[np.ndarray, "n"]]


def parity(labels: np.ndarray) -> np.ndarray:
    """Even +1, odd -1."""
    return np.where(labels % 2 == 0, 1, -1).astype(np.float32)


def digits_parity() -> Labelled:
    """Scikit-learn's 1,797 digits (64 numbers each), mean 0 and spread 1 over all pixels."""
    images, labels = digits()
    pixels = images.reshape(len(images), -1)
    return ((pixels - pixels.mean()) / pixels.std()).astype(np.float32), parity(labels)


def mnist_parity() -> Labelled:
    """MNIST's 10,000 test-file pictures (784 numbers each)."""
    images, labels = mnist()
    mean, spread = MNIST_PIXELS
    return ((images.reshape(len(images), -1) - mean) / spread).astype(np.float32), parity(labels)


def cifar_paths() -> list[Path]:
    """The batches of CIFAR-10's binary version; raises `MissingData` with the remedy."""
    return [locate("cifar10", name) for name in CIFAR_BATCHES]


def cifar_animals() -> Labelled:
    """CIFAR-10: (n, 3, 32, 32) pictures, animals +1; raises as `cifar_paths` and `read_cifar`."""
    images, labels = (
        np.concatenate(parts)
        for parts in zip(*(read_cifar(path) for path in cifar_paths()), strict=True)
    )
    mean, spread = CIFAR_PIXELS
    signs = np.where(np.isin(labels, VEHICLES), -1, 1).astype(np.float32)
    return ((images - mean) / spread).astype(np.float32), signs
