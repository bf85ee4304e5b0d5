"""A person's own pictures, whatever official format they are in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from peira.data.arrays import read_npy, read_npz, refuse_absent
from peira.data.errors import DataError
from peira.data.images import read_cifar, read_idx

Images = npt.NDArray[Any]
Labels = npt.NDArray[np.int64]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
FORMATS = (
    "an .npz of x and y, an .npy, IDX (gzipped or not), CIFAR .bin or Python batch, "
    "SVHN .mat, STL-10 .bin, or a folder of one folder of PNG or JPEG files for each class"
)


def read_pictures(path: Path, labels: Path | None = None) -> tuple[Images, Labels | None]:
    """Pictures and, where there are any, their labels.

    Args:
        path: an `.npz` with arrays `x` or `images` and perhaps `y` or `labels`; an `.npy`; IDX
            (MNIST, Fashion-MNIST); CIFAR-10 or -100, binary or Python; SVHN's cropped `.mat`;
            STL-10's `_X.bin`; or a folder with one folder of PNG or JPEG files for each class
            (classes in alphabetical order), all of one size.
        labels: a second file, for formats that keep labels apart: IDX, `.npy`, STL-10's `_y.bin`.

    Returns:
        Pictures (n, channels, height, width), bytes or numbers in [0, 1] as the file has them, and
        labels (n,) from 0, or None.

    Raises:
        DataError: a file of none of these formats, or whose parts do not fit together.
    """
    if path.is_dir():
        images, found = _folder(path)
    else:
        refuse_absent(path)
        images, found = _file(path)
    if labels is not None:
        refuse_absent(labels)
        found = _labels(labels)
    images = _with_channels(images, path)
    if found is not None:
        if len(found) != len(images):
            raise DataError(f"{len(images)} pictures but {len(found)} labels", path=labels or path)
        whole = np.asarray(found, dtype=np.float64)
        wrong = np.flatnonzero((whole < 0) | (whole != np.floor(whole)))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                "not a label", labels or path, row + 1, value=float(whole[row]),
                expected="a whole number from 0",
            )  # fmt: skip
        found = whole.astype(np.int64)
    return images, found


def labelled_pictures(path: Path, labels: Path | None = None) -> tuple[Images, Labels]:
    """Pictures and their labels, as `read_pictures`; raises `DataError` also without labels."""
    images, found = read_pictures(path, labels)
    if found is None:
        raise DataError("pictures without labels", path=path, expected="labels, or --labels FILE")
    return images, found


def _file(path: Path) -> tuple[Images, Any]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    last = suffixes[-1] if suffixes else ""
    if last == ".npz":
        return _npz(path)
    if last == ".npy":
        return read_npy(path), None
    if last == ".mat":
        return _svhn(path)
    if last in SUFFIXES:
        return _open(path)[None], None
    if last == ".bin":
        return _bin(path)
    with path.open("rb") as file:
        head = file.read(4)
    if head[:2] == b"\x1f\x8b" or head[:3] == b"\0\0\x08":
        return read_idx(path), None
    if head[:1] == b"\x80":
        return _cifar(path)
    raise DataError("no pictures that can be read", path=path, expected=FORMATS)


def _npz(path: Path) -> tuple[Images, Any]:
    found = read_npz(path)
    images = next((found[name] for name in ("x", "images") if name in found), None)
    if images is None:
        raise DataError(
            "no array 'x' or 'images'", path=path, value=sorted(found), expected="pictures as x"
        )
    return images, next((found[name] for name in ("y", "labels") if name in found), None)


def _svhn(path: Path) -> tuple[Images, Any]:
    from scipy.io import loadmat

    try:
        found = loadmat(path)
        images, labels = found["X"], found["y"].ravel()
    # A damaged file can raise nearly anything.
    except Exception as error:
        raise DataError(
            f"not SVHN's cropped digits ({error})", path=path, expected="arrays X and y"
        ) from error
    # Height, width, channels, n; the digit 0 has the label 10.
    return np.moveaxis(images, (3, 2), (0, 1)), labels % 10


def _bin(path: Path) -> tuple[Images, Any]:
    size = path.stat().st_size
    if "_X" in path.stem or path.stem.startswith("unlabeled"):
        if not size or size % (3 * 96 * 96):
            raise DataError("not STL-10's pictures", path=path, value=f"{size} bytes")
        # STL-10 keeps each channel column by column.
        raw = np.fromfile(path, np.uint8).reshape(-1, 3, 96, 96)
        return raw.transpose(0, 1, 3, 2), None
    return _cifar(path)


def _cifar(path: Path) -> tuple[Images, Any]:
    try:
        return read_cifar(path, 10)
    except DataError:
        return read_cifar(path, 100)


def _labels(path: Path) -> Any:
    if path.suffix == ".npy":
        return read_npy(path)
    if path.suffix == ".bin":
        # STL-10 counts its classes from 1.
        return np.fromfile(path, np.uint8).astype(np.int64) - 1
    return read_idx(path)


def _folder(path: Path) -> tuple[Images, Any]:
    classes = sorted(part for part in path.iterdir() if part.is_dir())
    files = [
        (file, number)
        for number, folder in enumerate(classes)
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in SUFFIXES
    ]
    plain = not files
    if plain:
        files = [(f, 0) for f in sorted(path.iterdir()) if f.suffix.lower() in SUFFIXES]
    if not files:
        raise DataError("no pictures in this folder", path=path, expected=FORMATS)
    images = [_open(file) for file, _ in files]
    for image, (file, _) in zip(images, files, strict=True):
        if image.shape != images[0].shape:
            raise DataError(
                "pictures of different sizes", path=file, value=image.shape,
                expected=f"{images[0].shape} as {files[0][0].name}",
            )  # fmt: skip
    labels = None if plain else np.array([number for _, number in files])
    return np.stack(images), labels


def _open(path: Path) -> Images:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            grey = picture.mode in ("1", "L", "I", "I;16", "F")
            pixels = np.asarray(picture.convert("L" if grey else "RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"not a picture ({error})", path=path) from error
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _with_channels(images: Images, path: Path) -> Images:
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or not len(images) or images.dtype.kind not in "uif":
        raise DataError(
            "not pictures", path=path, value=f"{images.dtype} {images.shape}",
            expected="numbers (n, height, width), (n, channels, height, width) or channels last",
        )  # fmt: skip
    return images
