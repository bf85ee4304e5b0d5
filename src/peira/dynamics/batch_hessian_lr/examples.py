"""Examples to train on: a person's file, scikit-learn's digits, CIFAR-100, a known quadratic."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from peira.data import DataError, images, locate
from peira.data.arrays import read_features, read_npz, refuse_absent
from peira.data.images import read_cifar, read_idx

CIFAR_FILES = ("train.bin", "test.bin")


class Examples(NamedTuple):
    """Inputs and targets to train on, and others to test on; on one device."""

    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    classes: int


def digits(seed: int) -> Examples:
    """Scikit-learn's 1,797 digits as 64 values in [0, 1]: 1,437 to train, 360 to test."""
    pictures, labels = images.digits()
    pixels = pictures.reshape(len(pictures), -1)
    order = np.random.default_rng(seed).permutation(len(labels))
    inputs, targets = (
        torch.from_numpy(pixels[order] / 16).float(),
        torch.from_numpy(labels[order].astype(np.int64)),
    )
    return Examples(inputs[:1437], targets[:1437], inputs[1437:], targets[1437:], 10)


def quadratic(seed: int, size: int = 100, condition: float = 100.0) -> Examples:
    """Least squares with a known Hessian: eigenvalues evenly spaced in log from 4 / condition to 4.

    Mean squared error of (4 size, size) inputs that fit their targets exactly. The test examples
    are the training ones: there is nothing to generalise.
    """
    rng = np.random.default_rng(seed)
    n = 4 * size
    left, _ = np.linalg.qr(rng.normal(size=(n, size)))
    right, _ = np.linalg.qr(rng.normal(size=(size, size)))
    eigenvalues = np.geomspace(4 / condition, 4, size)
    inputs = torch.from_numpy(left * np.sqrt(eigenvalues * n / 2) @ right.T)
    targets = inputs @ torch.from_numpy(rng.normal(size=(size, 1)))
    return Examples(inputs, targets, inputs, targets, 1)


def cifar_paths() -> list[Path]:
    """CIFAR-100's binary files; raises `MissingData` with the remedies."""
    return [locate("cifar100", name) for name in CIFAR_FILES]


def cifar100() -> Examples:
    """CIFAR-100, channels normalised with the training pictures' mean and deviation."""
    parts = [read_cifar(path, 100) for path in cifar_paths()]
    inputs, test_inputs = (torch.from_numpy(pictures / np.float32(255)) for pictures, _ in parts)
    targets, test_targets = (torch.from_numpy(labels.astype(np.int64)) for _, labels in parts)
    mean = inputs.mean(dim=(0, 2, 3), keepdim=True)
    spread = inputs.std(dim=(0, 2, 3), keepdim=True)
    return Examples(
        (inputs - mean) / spread, targets, (test_inputs - mean) / spread, test_targets, 100
    )


def read_examples(
    path: Path, label: str = "label", labels: Path | None = None, regression: bool = False
) -> tuple[Tensor, Tensor, int]:
    """A person's examples, with the number of outputs that a model of them needs.

    CSV or TSV: number columns, scaled to mean 0 and deviation 1, and a label column. NPZ: arrays
    "x" and "y", as they are. IDX (MNIST's format): pictures scaled to [0, 1], `labels` a second
    file.

    Args:
        path: the file.
        label: the label's column in a table.
        labels: the labels' file beside IDX pictures.
        regression: targets are numbers, not classes.

    Raises:
        DataError: anything wrong with the file; names row, column or key, and what was expected.
    """
    refuse_absent(path)
    if path.suffix == ".npz":
        arrays = read_npz(path, ("x", "y"))
        inputs, targets = arrays["x"], arrays["y"]
    elif "idx" in path.name or labels is not None:
        if labels is None:
            raise DataError("IDX pictures need --labels", path=path)
        inputs = read_idx(path).astype(np.float32)[:, None] / 255
        targets = read_idx(labels)
    else:
        inputs, targets = _read_table(path, label, regression)
    if len(inputs) != len(targets):
        raise DataError(
            "examples and labels differ in number", path=path, value=(len(inputs), len(targets))
        )
    _check_finite(path, inputs)
    x = torch.from_numpy(np.ascontiguousarray(inputs))
    x = x.float() if x.is_floating_point() else x
    if regression:
        y = _numbers(path, targets)
        return x, y, y.shape[1]
    classes, numbers = np.unique(targets, return_inverse=True)
    if targets.ndim != 1 or len(classes) < 2:
        raise DataError(
            "labels must be one of several classes for each example", path=path,
            value=f"shape {targets.shape}, {len(classes)} classes",
        )  # fmt: skip
    if len(classes) > math.sqrt(len(targets)) + 100:
        raise DataError(
            f"{len(classes)} classes in {len(targets)} examples: numbers to predict need "
            "--regression", path=path,
        )  # fmt: skip
    return x, torch.from_numpy(numbers.reshape(-1)), len(classes)


def _read_table(path: Path, label: str, regression: bool) -> tuple[np.ndarray, np.ndarray]:
    values, targets, _ = read_features(path, label, "float" if regression else "str")
    spread = values.std(axis=0)
    # A constant column says nothing; it must not divide by zero either.
    scaled = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return scaled.astype(np.float32), targets


def _check_finite(path: Path, inputs: np.ndarray) -> None:
    if inputs.dtype.kind not in "fiu" or inputs.ndim < 2 or not len(inputs):
        raise DataError(
            "inputs must be numbers, one row an example", path=path,
            value=f"{inputs.dtype} of shape {inputs.shape}",
        )  # fmt: skip
    wrong = np.argwhere(~np.isfinite(inputs))
    if len(wrong):
        raise DataError("not a finite number", path, int(wrong[0][0]) + 1, None, "nan or infinite")


def _numbers(path: Path, targets: np.ndarray) -> Float[Tensor, "n outputs"]:
    try:
        numbers = torch.from_numpy(np.asarray(targets, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise DataError("targets are no numbers", path=path) from error
    if not torch.isfinite(numbers).all():
        raise DataError("targets are not all finite", path=path)
    return numbers.reshape(len(numbers), -1)
