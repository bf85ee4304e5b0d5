"""A person's own items as feature vectors with classes, and three data sets as such vectors."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from peira.data.arrays import read_features, read_npz, refuse_absent, refuse_gaps
from peira.data.errors import DataError

OMNIGLOT_FILES = ("images_background_small1.zip", "images_background_small2.zip")
DRAWING = re.compile(r"[^/]+/(?P<alphabet>[^/]+)/(?P<character>character\d+)/[^/]+\.png")


def read_items(path: Path, label: str = "label") -> tuple[Tensor, Tensor, list[str]]:
    """Read items and their classes.

    Args:
        path: `.npz` with `features` (items, D) and `classes` (items,), or a CSV or TSV whose other
            columns are all numbers.
        label: column of the class in a CSV or TSV.

    Returns:
        Features (items, D), class ids (items,) from 0, and the classes' names in that order.

    Raises:
        DataError: a file, column or array that is missing, and values that are no numbers.
    """
    refuse_absent(path)
    values, classes = (
        _read_npz(path) if path.suffix == ".npz" else read_features(path, label, "str")[:2]
    )
    names, ids = np.unique(classes.astype(str), return_inverse=True)
    return torch.tensor(values).float(), torch.from_numpy(ids.reshape(-1)), names.tolist()


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    arrays = read_npz(path, ("features", "classes"))
    values, classes = arrays["features"], arrays["classes"]
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.number):
        raise DataError(
            "features have the wrong shape or kind",
            path=path,
            value=f"{values.dtype} {values.shape}",
            expected="numbers (items, D)",
        )
    if classes.shape != values.shape[:1]:
        raise DataError(
            "classes do not belong to the features",
            path=path,
            value=classes.shape,
            expected=str(values.shape[:1]),
        )
    refuse_gaps(values, path)
    return values, classes


def digit_features() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's 1,797 digits: pixels (items, 64) and classes 0 to 9."""
    from peira.data.images import digits

    images, classes = digits()
    return images.reshape(len(images), -1) / 16, classes.astype(np.int64)


def mnist_features() -> tuple[np.ndarray, np.ndarray]:
    """MNIST's 10,000 test-file images: pixels (items, 784) and classes 0 to 9."""
    from peira.data.images import mnist

    images, classes = mnist()
    return images.reshape(len(images), -1) / 255, classes.astype(np.int64)


def omniglot_features() -> tuple[np.ndarray, np.ndarray]:
    """Omniglot's two small background sets: 21 x 21 ink (items, 441), and the characters."""
    from peira.data import locate

    return read_drawings([locate("omniglot", name) for name in OMNIGLOT_FILES])


def read_drawings(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Drawings in Omniglot's folders: share of ink in 5 x 5 blocks, and alphabet/character.

    Args:
        paths: official zip files of 105 x 105 PNG; what several of them hold is read once.

    Raises:
        DataError: no zip file, no drawing in it, a drawing of another size.
    """
    from PIL import Image

    ink: dict[str, np.ndarray] = {}
    for path in paths:
        try:
            archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"not a readable zip file ({error})", path=path) from error
        with archive:
            for name in sorted(archive.namelist()):
                found = DRAWING.fullmatch(name)
                if found is None:
                    continue
                picture = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("L"))
                if picture.shape != (105, 105):
                    raise DataError(
                        f"{name} has another size", path=path, value=picture.shape,
                        expected="(105, 105)",
                    )  # fmt: skip
                blocks = (picture < 128).reshape(21, 5, 21, 5).mean(axis=(1, 3))
                drawing = name.rpartition("/")[2]
                ink[f"{found['alphabet']}/{found['character']}/{drawing}"] = blocks.reshape(-1)
        if not ink:
            raise DataError("no drawings", path=path, expected="<set>/<alphabet>/<character>/*.png")
    return np.stack(list(ink.values())), np.array([name.rpartition("/")[0] for name in ink])


DATASETS = {"digits": digit_features, "mnist": mnist_features, "omniglot": omniglot_features}
