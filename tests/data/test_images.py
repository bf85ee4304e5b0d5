"""Pictures: official files read to the pixel, broken ones refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from peira.data import DataError, images


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_digits_are_split_exactly() -> None:
    split = images.digit_images(generator())
    assert split.train_inputs.shape == (200, 64)
    assert split.test_inputs.shape == (1597, 64)
    assert split.train_inputs.min() == 0
    assert split.train_inputs.max() == 1


def idx_file(path: Path, array: np.ndarray, cut: int = 0) -> Path:
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    content = bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()
    path.write_bytes(gzip.compress(content[: len(content) - cut]))
    return path


def test_idx_files_round_trip_and_broken_ones_are_refused(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert np.array_equal(images.read_idx(idx_file(tmp_path / "a.gz", array)), array)
    with pytest.raises(DataError, match="do not hold its shape"):
        images.read_idx(idx_file(tmp_path / "b.gz", array, cut=1))
    (tmp_path / "c").write_bytes(b"PNG picture")
    with pytest.raises(DataError, match="not an IDX file"):
        images.read_idx(tmp_path / "c")


def test_mnist_is_read_from_the_official_files(real_data: Path) -> None:
    split = images.mnist_images(generator())
    assert split.train_inputs.shape == (1000, 784)
    assert split.test_inputs.shape == (9000, 784)
    counts = torch.bincount(torch.cat([split.train_labels, split.test_labels]))
    assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize(("classes", "head"), [(10, [7]), (100, [3, 42])])
def test_cifar_files_are_read_and_checked(tmp_path: Path, classes: int, head: list[int]) -> None:
    record = bytes(head) + bytes(range(256)) * 12
    path = tmp_path / "train.bin"
    path.write_bytes(record * 2)
    pictures, labels = images.read_cifar(path, classes)
    assert pictures.shape == (2, 3, 32, 32)
    assert labels.tolist() == [head[-1]] * 2
    # The first plane is red, row by row.
    assert pictures[0, 0, 1, 2] == 34
    path.write_bytes(record[:-1])
    with pytest.raises(DataError, match=f"not the binary version of CIFAR-{classes}"):
        images.read_cifar(path, classes)
    path.write_bytes(record + bytes([*head[:-1], classes]) + record[len(head) :])
    with pytest.raises(DataError, match=f"row 2: impossible label; got {classes}"):
        images.read_cifar(path, classes)
