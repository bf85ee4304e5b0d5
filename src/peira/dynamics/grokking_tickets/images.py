"""Pictures as rows of pixels in [0, 1]: scikit-learn's digits, and MNIST's test file."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import torch

from peira.data.errors import DataError
from peira.data.modular import Split, split_table

MNIST_FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


def digit_images(generator: torch.Generator, train: int = 200) -> Split:
    """Scikit-learn's 1,797 digits of 8 x 8 pixels: `train` of them to train, the others to test."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy(pixels / 16).float()
    return split_table(inputs, torch.from_numpy(labels), _share(train, inputs), generator)


def mnist_images(generator: torch.Generator, train: int = 1000) -> Split:
    """MNIST's 10,000 test-file images: `train` to train, the others to test.

    The official code too trains on 1,000 images of this file.
    """
    images, labels = (read_idx(path) for path in mnist_paths())
    inputs = torch.from_numpy(images.reshape(len(images), -1) / 255).float()
    return split_table(
        inputs, torch.from_numpy(labels.astype("int64")), _share(train, inputs), generator
    )


def mnist_paths() -> list[Path]:
    """Where the two files are; raises `MissingData` with the remedies."""
    from peira.data import locate

    return [locate("mnist", name) for name in MNIST_FILES]


def read_idx(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """An IDX file of unsigned bytes, gzipped or not.

    Raises:
        DataError: not an IDX file of bytes, or one that is cut off.
    """
    raw = path.read_bytes()
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


def _share(size: int, inputs: torch.Tensor) -> float:
    # Half a row more, so that rounding down gives exactly `size`.
    return (size + 0.5) / len(inputs)
