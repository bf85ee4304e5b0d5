"""Picture data sets with parts of their own for training and test, and how recipes augment them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jaxtyping import Float

from peira.data.errors import DataError
from peira.data.pictures import read_pictures
from peira.data.sources import locate

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from peira.data.modular import Split


class _Files(NamedTuple):
    """Official files: (pictures, labels) pairs; labels None where they are inside."""

    train: tuple[tuple[str, str | None], ...]
    test: tuple[tuple[str, str | None], ...]


_IDX = _Files(
    (("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),),
    (("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),),
)
PICTURE_SETS = {
    "mnist": _IDX,
    "fashion-mnist": _IDX,
    "cifar10": _Files(
        tuple((f"data_batch_{number}.bin", None) for number in range(1, 6)),
        (("test_batch.bin", None),),
    ),
    "cifar100": _Files((("train.bin", None),), (("test.bin", None),)),
    "svhn": _Files((("train_32x32.mat", None),), (("test_32x32.mat", None),)),
    "stl10": _Files((("train_X.bin", "train_y.bin"),), (("test_X.bin", "test_y.bin"),)),
}


def official_paths(name: str) -> list[Path]:
    """The files of a picture data set.

    Raises:
        DataError: not one of mnist, fashion-mnist, cifar10, cifar100, svhn, stl10.
        MissingData: a file that is not at hand; says the remedy.
    """
    files = _files(name)
    return [locate(name, part) for pair in (*files.train, *files.test) for part in pair if part]


def official_pictures(name: str) -> Split:
    """A picture data set in its official parts, (n, channels, height, width) in [0, 1].

    Raises:
        DataError: as `official_paths`, or a file that is damaged.
        MissingData: a file that is not at hand; says the remedy.
    """
    import torch

    from peira.data.images import picture_tensors
    from peira.data.modular import Split

    parts = []
    for pairs in _files(name):
        read = [
            read_pictures(locate(name, images), locate(name, labels) if labels else None)
            for images, labels in pairs
        ]
        parts += [torch.cat([picture_tensors(images) for images, _ in read])]
        parts += [torch.cat([torch.from_numpy(labels) for _, labels in read if labels is not None])]
    return Split(*parts)


def crop_and_flip(
    images: Float[Tensor, "batch channels height width"],
    generator: torch.Generator,
    padding: int = 4,
    *,
    reflect: bool = False,
    flip: bool = True,
) -> Float[Tensor, "batch channels height width"]:
    """Each picture moved by up to `padding` pixels along both axes, and half of them mirrored.

    Args:
        images: one batch.
        generator: draws shifts and mirrors.
        padding: width of the frame from which the crop is taken.
        reflect: whether the frame mirrors the picture; else it is zero.
        flip: whether to mirror left to right at random.
    """
    import torch

    if padding:
        count, _, height, width = images.shape
        mode = "reflect" if reflect else "constant"
        padded = torch.nn.functional.pad(images, [padding] * 4, mode)
        top, left = torch.randint(2 * padding + 1, (2, count, 1), generator=generator)
        rows = (top + torch.arange(height)).to(images.device)
        columns = (left + torch.arange(width)).to(images.device)
        picture = torch.arange(count, device=images.device)[:, None, None]
        # Advanced indices apart from each other put their dimensions first.
        images = padded[picture, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if flip:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)
    return images


def _files(name: str) -> _Files:
    if name not in PICTURE_SETS:
        raise DataError("no such picture data set", value=name, expected=", ".join(PICTURE_SETS))
    return PICTURE_SETS[name]
