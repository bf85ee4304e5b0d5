"""A person's own pictures in every official format; broken files are named."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from peira.data import (
    DataError,
    GaussianClasses,
    flip_labels,
    labelled_pictures,
    picture_split,
    picture_tensors,
    read_pictures,
)

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (4, 5, 6), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)


def test_npz_with_and_without_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=GREY, y=[0, 2, 1, 0])
    images, labels = read_pictures(tmp_path / "a.npz")
    assert np.array_equal(images, GREY[:, None])
    assert labels is not None
    assert labels.tolist() == [0, 2, 1, 0]
    np.savez(
        tmp_path / "b.npz", images=GREY.transpose(1, 2, 0)[..., None, :3].transpose(3, 0, 1, 2)
    )
    images, labels = read_pictures(tmp_path / "b.npz")
    assert images.shape == (3, 1, 5, 6)
    assert labels is None


def test_idx_with_its_labels(tmp_path: Path) -> None:
    def write(name: str, array: np.ndarray) -> Path:
        shape = struct.pack(f">{array.ndim}I", *array.shape)
        (tmp_path / name).write_bytes(bytes([0, 0, 8, array.ndim]) + shape + array.tobytes())
        return tmp_path / name

    pictures, answers = write("x-ubyte", GREY), write("y-ubyte", np.arange(4, dtype=np.uint8))
    images, labels = read_pictures(pictures, answers)
    assert np.array_equal(images[:, 0], GREY)
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="4 pictures but 3 labels"):
        read_pictures(pictures, write("short", np.arange(3, dtype=np.uint8)))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", ["labels", "fine_labels"])
def test_cifar_python_batches(tmp_path: Path, protocol: int, name: str) -> None:
    batch = {b"data": COLOUR.reshape(2, -1), name.encode(): [3, 7]}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(batch, protocol))
    images, labels = read_pictures(tmp_path / "data_batch_1")
    assert np.array_equal(images, COLOUR)
    assert labels is not None
    assert labels.tolist() == [3, 7]


def test_cifar_binary_of_either_kind(tmp_path: Path) -> None:
    flat = COLOUR.reshape(2, -1)
    for name, head in (("ten.bin", [[5], [6]]), ("hundred.bin", [[1, 55], [2, 99]])):
        rows = np.concatenate([np.array(head, np.uint8), flat], 1)
        (tmp_path / name).write_bytes(rows.tobytes())
        images, labels = read_pictures(tmp_path / name)
        assert np.array_equal(images, COLOUR)
        assert labels is not None
        assert labels.tolist() == [row[-1] for row in head]


def test_a_pickle_that_acts_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (print, ("this must not be printed",))

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Trap(), 2))
    with pytest.raises(DataError, match="not allowed"):
        read_pictures(tmp_path / "data_batch_1")


def test_svhn_and_stl(tmp_path: Path) -> None:
    savemat(tmp_path / "test.mat", {"X": COLOUR.transpose(2, 3, 1, 0), "y": [[10], [4]]})
    images, labels = read_pictures(tmp_path / "test.mat")
    assert np.array_equal(images, COLOUR)
    assert labels is not None
    assert labels.tolist() == [0, 4]
    big = RNG.integers(0, 256, (2, 3, 96, 96), dtype=np.uint8)
    (tmp_path / "test_X.bin").write_bytes(big.transpose(0, 1, 3, 2).tobytes())
    (tmp_path / "test_y.bin").write_bytes(bytes([1, 10]))
    images, labels = read_pictures(tmp_path / "test_X.bin", tmp_path / "test_y.bin")
    assert np.array_equal(images, big)
    assert labels is not None
    assert labels.tolist() == [0, 9]


def test_folders_are_classes(tmp_path: Path) -> None:
    for name, index in (("bird/a.png", 0), ("ant/b.png", 1), ("ant/c.png", 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(GREY[index]).save(tmp_path / name)
    images, labels = read_pictures(tmp_path)
    assert np.array_equal(images[:, 0], GREY[[1, 2, 0]])
    assert labels is not None
    assert labels.tolist() == [0, 0, 1]
    Image.fromarray(COLOUR[0].transpose(1, 2, 0)).save(tmp_path / "bird/z.png")
    with pytest.raises(DataError, match=r"z\.png.*different sizes"):
        read_pictures(tmp_path)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"notes\.txt.*IDX"):
        read_pictures(tmp_path / "notes.txt")
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(DataError, match="not a picture"):
        read_pictures(tmp_path / "x.png")
    np.savez(tmp_path / "x.npz", x=GREY, y=[0, 1, -1, 0])
    with pytest.raises(DataError, match=r"row 3.*got -1"):
        read_pictures(tmp_path / "x.npz")
    with pytest.raises(DataError, match="no such file"):
        read_pictures(tmp_path / "absent.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures in this folder"):
        read_pictures(tmp_path / "empty")


def test_pictures_that_need_labels_are_refused_without(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=GREY)
    np.save(tmp_path / "y.npy", np.array([0, 2, 1, 0]))
    with pytest.raises(DataError, match=r"a\.npz: pictures without labels"):
        labelled_pictures(tmp_path / "a.npz")
    images, labels = labelled_pictures(tmp_path / "a.npz", tmp_path / "y.npy")
    assert np.array_equal(images[:, 0], GREY)
    assert labels.tolist() == [0, 2, 1, 0]


def test_pixels_are_scaled_or_refused() -> None:
    assert float(picture_tensors(np.full((1, 1, 2, 2), 255, np.uint8)).max()) == 1
    with pytest.raises(DataError, match="picture 1"):
        picture_tensors(np.array([0.5, 1.5]).reshape(2, 1, 1, 1))
    split = picture_split((GREY[:, None], np.arange(4)), torch.Generator().manual_seed(0), 3)
    assert split.train_inputs.shape == (3, 1, 5, 6)
    both = torch.cat([split.train_labels, split.test_labels])
    assert sorted(both.tolist()) == [0, 1, 2, 3]


def test_flips_are_exact_and_on_record() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (50_000,), generator=generator)
    noisy, flipped = flip_labels(labels, 0.3, generator)
    assert int(flipped.sum()) == 15_000
    assert torch.equal(noisy != labels, flipped)
    shift = torch.bincount((noisy - labels)[flipped] % 4, minlength=4) / 15_000
    torch.testing.assert_close(shift[1:], torch.full((3,), 1 / 3), atol=0.015, rtol=0)
    paired, flipped = flip_labels(labels, 0.1, generator, kind="pair")
    assert torch.equal(paired[flipped], (labels[flipped] + 1) % 4)
    with pytest.raises(DataError, match="share"):
        flip_labels(labels, 1.2, generator)


def test_posterior_is_what_frequencies_say() -> None:
    task = GaussianClasses(torch.tensor([[0.0], [1.0], [3.0]]), scale=0.8)
    x, y = task.sample(200_000, torch.Generator().manual_seed(1))
    near = (x[:, 0] - 0.6).abs() < 0.05
    shares = torch.bincount(y[near], minlength=3) / near.sum()
    torch.testing.assert_close(task.posterior(torch.tensor([[0.6]]))[0], shares, atol=0.02, rtol=0)
