"""Official parts of picture data sets, and the usual augmentation."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from peira.data import (
    DataError,
    MissingData,
    crop_and_flip,
    fingerprint,
    official_paths,
    official_pictures,
)

RNG = np.random.default_rng(0)


def test_parts_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    pixels = RNG.integers(0, 256, (6, 3072), dtype=np.uint8)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for number, name in enumerate(names):
        (folder / name).write_bytes(bytes([number]) + pixels[number].tobytes())
    monkeypatch.setenv("PEIRA_DATA", str(tmp_path))
    split = official_pictures("cifar10")
    assert split.train_labels.tolist() == [0, 1, 2, 3, 4]
    assert split.test_labels.tolist() == [5]
    expected = torch.from_numpy(pixels[5].reshape(1, 3, 32, 32) / np.float32(255))
    torch.testing.assert_close(split.test_inputs, expected)
    assert [path.name for path in official_paths("cifar10")] == names
    assert len(fingerprint(official_paths("cifar10"))) == 16


def test_labels_in_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for part, count in (("train", 3), ("t10k", 2)):
        head = bytes([0, 0, 8, 3]) + struct.pack(">3I", count, 2, 2)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(head + bytes(4 * count))
        head = bytes([0, 0, 8, 1]) + struct.pack(">I", count)
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(head + bytes(range(count)))
    monkeypatch.setenv("PEIRA_DATA", str(tmp_path))
    split = official_pictures("fashion-mnist")
    assert split.train_inputs.shape == (3, 1, 2, 2)
    assert split.test_labels.tolist() == [0, 1]


def test_what_is_not_at_hand_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEIRA_DATA", str(tmp_path))
    with pytest.raises(MissingData, match=r"stl10/train_X\.bin"):
        official_pictures("stl10")
    with pytest.raises(DataError, match="cifar10, cifar100"):
        official_pictures("cifar1000")


def test_crops_are_shifts_and_flips_are_mirrors() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.zeros(1, 1, 9, 9)
    picture[0, 0, 4, 4] = 1
    shifted = crop_and_flip(picture.expand(4000, -1, -1, -1), generator, 3, flip=False)
    places = shifted.flatten(1).argmax(1)
    assert set((places // 9).tolist()) == set((places % 9).tolist()) == set(range(1, 8))
    assert (shifted.sum((1, 2, 3)) == 1).all()
    ramp = torch.arange(4.0).expand(1000, 1, 2, 4)
    mirrored = crop_and_flip(ramp, generator, 0)
    turned = (mirrored[:, 0, 0, 0] == 3).double().mean()
    assert 0.45 < float(turned) < 0.55
    assert torch.equal(mirrored.sort(-1).values, ramp)
    framed = crop_and_flip(ramp + 1, generator, 1, reflect=True, flip=False)
    assert float(framed.min()) == 1
