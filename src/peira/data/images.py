"""Pictures: scikit-learn's digits, MNIST's test file, a person's own IDX and CIFAR files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from peira.data.errors import DataError
from peira.data.pickles import read_pickle

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
    """One file of CIFAR-10 or CIFAR-100, of the binary or the Python version.

    Args:
        path: such as `data_batch_1.bin`, `train.bin` or `data_batch_1`.
        classes: 10, or 100 for the fine labels of CIFAR-100.

    Returns:
        (n, 3, 32, 32) pixels from 0 to 255, and labels.

    Raises:
        DataError: neither version of these classes, or an impossible label.
    """
    try:
        # A pickle of protocol 2 begins with this byte; a label of a record never does.
        python = path.read_bytes()[:1] == b"\x80"
        pictures, label = (_cifar_pickle if python else _cifar_binary)(path, classes)
    except OSError as error:
        raise DataError(error.strerror or str(error), path=path) from error
    wrong = np.flatnonzero(label >= classes)
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            "impossible label", path, row + 1, value=int(label[row]), expected=f"0 to {classes - 1}"
        )
    return pictures, label


def _cifar_binary(path: Path, classes: int) -> Pictures:
    # CIFAR-100 has the coarse label before the fine one.
    labels = 1 if classes == 10 else 2
    record = labels + 3 * 32 * 32
    raw = np.fromfile(path, np.uint8)
    if not len(raw) or len(raw) % record:
        raise DataError(
            f"not the binary version of CIFAR-{classes}", path=path, value=f"{len(raw)} bytes",
            expected=f"records of {record} bytes",
        )  # fmt: skip
    rows = raw.reshape(-1, record)
    return rows[:, labels:].reshape(-1, 3, 32, 32), rows[:, labels - 1]


def _cifar_pickle(path: Path, classes: int) -> Pictures:
    batch = read_pickle(path)
    name = "labels" if classes == 10 else "fine_labels"
    # Written by Python 2 the keys are text here, written by Python 3 they may be bytes.
    found = (
        {k.decode() if isinstance(k, bytes) else k: v for k, v in batch.items()}
        if isinstance(batch, dict)
        else {}
    )
    data, labels = found.get("data"), found.get(name)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072 or not labels:
        raise DataError(
            f"not a batch of CIFAR-{classes}", path=path, value=sorted(found),
            expected=f"data (n, 3072) and {name}",
        )  # fmt: skip
    if len(labels) != len(data):
        raise DataError(f"{len(data)} pictures but {len(labels)} labels", path=path)
    return data.astype(np.uint8).reshape(-1, 3, 32, 32), np.asarray(labels).astype(np.uint8)


def digit_images(generator: torch.Generator, train: int = 200) -> Split:
    """The digits as rows of pixels in [0, 1]: `train` of them to train, the others to test."""
    return _flat(digit_pictures(generator, train))


def mnist_images(generator: torch.Generator, train: int = 1000) -> Split:
    """MNIST's test file as rows of pixels in [0, 1]: `train` to train, the others to test."""
    return _flat(mnist_pictures(generator, train))


def digit_pictures(generator: torch.Generator, train: int = 1000) -> Split:
    """The digits as (n, 1, 8, 8) in [0, 1]: `train` of them to train, the others to test."""
    images, labels = digits()
    return picture_split((images[:, None] / 16, labels), generator, train)


def mnist_pictures(generator: torch.Generator, train: int = 5000) -> Split:
    """MNIST's test file as (n, 1, 28, 28) in [0, 1]: `train` to train, the others to test."""
    images, labels = mnist()
    return picture_split((images[:, None], labels), generator, train)


def picture_split(
    pictures: tuple[npt.NDArray[Any], npt.NDArray[Any]], generator: torch.Generator, train: int
) -> Split:
    """Pictures and labels in two parts at random: `train` to train, the others to test.

    Args:
        pictures: (n, channels, height, width), bytes or already in [0, 1]; labels (n,).
        generator: draws the parts.
        train: how many train.

    Returns:
        Inputs (n, channels, height, width) in [0, 1], float32, and labels.
    """
    import torch

    from peira.data.modular import split_table

    images, labels = pictures
    # Half a row more, so that rounding down gives exactly `train`.
    share = (train + 0.5) / len(images)
    return split_table(
        picture_tensors(images), torch.from_numpy(labels.astype("int64")), share, generator
    )


def picture_tensors(images: npt.NDArray[Any]) -> torch.Tensor:
    """Pictures as float32 in [0, 1]: bytes are divided by 255, other numbers stay as they are.

    Raises `DataError` for numbers that are not finite or outside [0, 1].
    """
    import torch

    if images.dtype == np.uint8:
        return torch.from_numpy(images.astype(np.float32) / np.float32(255))
    found = torch.from_numpy(np.asarray(images, dtype=np.float32))
    wrong = torch.nonzero(~((found >= 0) & (found <= 1)))
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        raise DataError(
            f"a pixel outside [0, 1] in picture {place[0]}", value=float(found[place]),
            expected="numbers in [0, 1], or bytes",
        )  # fmt: skip
    return found


def _flat(split: Split) -> Split:
    return split._replace(
        train_inputs=split.train_inputs.flatten(1), test_inputs=split.test_inputs.flatten(1)
    )
