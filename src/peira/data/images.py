"""Pictures: scikit-learn's digits, MNIST's test file, a person's own IDX and CIFAR files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from peira.data.errors import DataError

if TYPE_CHECKING:
    import torch

    from peira.data.modular import Split

MNIST_FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")

Pictures = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


def digits() -> Pictures:
    """Scikit-learn's 1,797 digits: (n, 8, 8) pixels from 0 to 16, labels 0 to 9."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images.astype(np.uint8), found.target.astype(np.uint8)


def mnist() -> Pictures:
    """MNIST's test file: (10000, 28, 28) pixels from 0 to 255, labels 0 to 9.

    Raises `MissingData` with the remedies where it is not at hand.
    """
    images, labels = (read_idx(path) for path in mnist_paths())
    return images, labels


def mnist_paths() -> list[Path]:
    """Where the two files are; raises `MissingData` with the remedies."""
    from peira.data.sources import locate

    return [locate("mnist", name) for name in MNIST_FILES]


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An IDX file of unsigned bytes, gzipped or not.

    Raises:
        DataError: not an IDX file of bytes, or one that is cut off.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(error.strerror or str(error), path=path) from error
    try:
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"broken gzip file ({error})", path=path) from error
    if content[:3] != b"\0\0\x08":
        raise DataError("not an IDX file of bytes", path=path, expected="00 00 08 at its start")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:start]) if len(content) >= start else ()
    if not shape or len(content) - start != int(np.prod(shape)):
        raise DataError(f"{len(content)} bytes do not hold its shape {shape}", path=path)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_cifar(path: Path, classes: Literal[10, 100] = 10) -> Pictures:
    """One file of the binary version of CIFAR-10 or CIFAR-100.

    Args:
        path: such as `data_batch_1.bin` or `train.bin`.
        classes: 10, or 100 for the fine labels of CIFAR-100.

    Returns:
        (n, 3, 32, 32) pixels from 0 to 255, and labels.

    Raises:
        DataError: a size that is no whole number of records, or an impossible label.
    """
    # CIFAR-100 has the coarse label before the fine one.
    labels = 1 if classes == 10 else 2
    record = labels + 3 * 32 * 32
    try:
        raw = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(error.strerror or str(error), path=path) from error
    if not len(raw) or len(raw) % record:
        raise DataError(
            f"not the binary version of CIFAR-{classes}", path=path, value=f"{len(raw)} bytes",
            expected=f"records of {record} bytes",
        )  # fmt: skip
    rows = raw.reshape(-1, record)
    label = rows[:, labels - 1]
    wrong = np.flatnonzero(label >= classes)
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            "impossible label", path, row + 1, value=int(label[row]), expected=f"0 to {classes - 1}"
        )
    return rows[:, labels:].reshape(-1, 3, 32, 32), label


def digit_images(generator: torch.Generator, train: int = 200) -> Split:
    """The digits as rows of pixels in [0, 1]: `train` of them to train, the others to test."""
    return _split(digits(), 16, generator, train)


def mnist_images(generator: torch.Generator, train: int = 1000) -> Split:
    """MNIST's test file as rows of pixels in [0, 1]: `train` to train, the others to test."""
    return _split(mnist(), 255, generator, train)


def _split(pictures: Pictures, white: int, generator: torch.Generator, train: int) -> Split:
    import torch

    from peira.data.modular import split_table

    images, labels = pictures
    inputs = torch.from_numpy(images.reshape(len(images), -1) / white).float()
    # Half a row more, so that rounding down gives exactly `train`.
    share = (train + 0.5) / len(inputs)
    return split_table(inputs, torch.from_numpy(labels.astype("int64")), share, generator)
