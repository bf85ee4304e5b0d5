"""scikit-learn's digits for two pathways: one half for each, or the whole for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from peira.data import DataError
from peira.data.images import digits
from peira.dynamics.critical_periods.pathways import PathwayTask, PathwayTrainer, two_views

TRAIN = 1000


@dataclass(frozen=True)
class Digits:
    """Digits to train on as a task, and others to test on."""

    task: PathwayTask
    test_views: tuple[Float[np.ndarray, "pixels n"], Float[np.ndarray, "pixels n"]]
    test_labels: Int[np.ndarray, " n"]

    def accuracies(self, trainer: PathwayTrainer) -> dict[str, float]:
        """Test accuracy of both pathways together and of each on its own (first member)."""
        a, b = (output[0] for output in trainer.outputs(self.test_views))
        return {
            name: float((output.argmax(axis=0) == self.test_labels).mean())
            for name, output in (("accuracy", a + b), ("accuracy_a", a), ("accuracy_b", b))
        }


def digit_views(rng: np.random.Generator, whole: bool = False, sigma: float = 1.5) -> Digits:
    """1,000 of 1,797 digits of 8 x 8 pixels to train, drawn by `rng`; the rest to test.

    Pathway a sees the left half and b the right one, or both see the whole digit. Pixels are
    centred by their training mean and scaled by one standard deviation; targets are one-hot,
    centred. The blurred view is that of b under a Gaussian of `sigma` pixels.
    """
    pictures, labels = digits()
    images = pictures.reshape(len(pictures), -1).astype(float)
    order = rng.permutation(len(labels))
    train, test = order[:TRAIN], order[TRAIN:]
    mean, scale = images[train].mean(axis=0), images[train].std()
    pixels = ((images - mean) / scale).reshape(-1, 8, 8)
    sides = (pixels, pixels) if whole else np.split(pixels, 2, axis=2)
    a, b = (side.reshape(len(labels), -1) for side in sides)
    targets = np.eye(10)[labels]
    targets = targets - targets[train].mean(axis=0)
    blurred = blur(b[train], sides[1].shape[1:], sigma)
    task = two_views(a[train], b[train], targets[train], blurred)
    return Digits(task, (a[test].T, b[test].T), labels[test])


def blur(
    view: Float[np.ndarray, "examples features"], shape: Sequence[int], sigma: float
) -> Float[np.ndarray, "examples features"]:
    """Each row under a Gaussian filter; `shape` is that of its image, or (features,) for a line.

    Raises `DataError` for a shape that is not the row's or a sigma that is not positive.
    """
    from scipy.ndimage import gaussian_filter

    if int(np.prod(shape)) != view.shape[1]:
        raise DataError(
            "shape of the blurred view", value="x".join(map(str, shape)),
            expected=f"{view.shape[1]} features in all",
        )  # fmt: skip
    if not sigma > 0:
        raise DataError("width of the blur", value=sigma, expected="above 0")
    images = view.reshape(len(view), *shape)
    return gaussian_filter(images, (0, *[sigma] * len(shape)), mode="nearest").reshape(view.shape)
