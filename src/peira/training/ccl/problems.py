"""The study's data: training, validation and test parts, and noise whose place is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from peira.data import (
    GaussianClasses,
    digits,
    flip_labels,
    locate,
    mnist,
    official_paths,
    official_pictures,
    picture_tensors,
)
from peira.training.ccl.baselines import blend_samples

OFFICIAL = ("cifar10", "cifar100", "fashion-mnist", "stl10")
R8_FILES = ("R8.txt", "R8.clean.txt")
VOCABULARY = 1000
# Gaussian classes at a distance where a linear rule is right for about nine in ten.
GAUSSIAN_CLASSES, GAUSSIAN_FEATURES, GAUSSIAN_SPREAD = 5, 10, 0.9

Arrays = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """A classification task in parts.

    Attributes:
        train_inputs: pictures in [0, 1] (n, channels, h, w), or features (n, features).
        train_labels: classes (n,), some of them wrong where noise was added.
        held_inputs: validation samples, then test samples.
        held_labels: their classes, always right.
        validation: how many of them are validation samples.
        classes: number of classes.
        noisy: which training samples have a wrong label or are blends.
    """

    train_inputs: Float[Tensor, "n ..."]
    train_labels: Int[Tensor, " n"]
    held_inputs: Float[Tensor, "m ..."]
    held_labels: Int[Tensor, " m"]
    validation: int
    classes: int
    noisy: Bool[Tensor, " n"]

    def with_noise(
        self, kind: Literal["symmetric", "pair", "blend"], rate: float, generator: torch.Generator
    ) -> Problem:
        """The same task with a share of its training samples made noisy."""
        if kind == "blend":
            inputs, noisy = blend_samples(self.train_inputs, rate, generator)
            return replace(self, train_inputs=inputs, noisy=noisy)
        labels, noisy = flip_labels(self.train_labels, rate, generator, self.classes, kind)
        return replace(self, train_labels=labels, noisy=noisy)

    def only(self, kept: Int[Tensor, " kept"]) -> Problem:
        """The same task with these training samples."""
        return replace(
            self,
            train_inputs=self.train_inputs[kept],
            train_labels=self.train_labels[kept],
            noisy=self.noisy[kept.cpu()],
        )

    def to(self, device: torch.device) -> Problem:
        """The same task on a device; the noise mask stays."""
        moved = ("train_inputs", "train_labels", "held_inputs", "held_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in moved})


def make_problem(data: str, train: int, held_out: int, generator: torch.Generator) -> Problem:
    """A task by its name, split at random.

    Args:
        data: name of the data set.
        train: training samples, at most; half of the data where it has no test part of its own.
        held_out: validation samples, and test samples, at most.
        generator: draws the parts.
    """
    whole, tested = read_arrays(data, generator, train + 2 * held_out)
    order = torch.randperm(len(whole[1]), generator=generator)
    if tested is None:
        train = min(train, len(order) // 2)
        tested = tuple(part[order[train:]] for part in whole)
    else:
        shuffled = torch.randperm(len(tested[1]), generator=generator)
        tested = tuple(part[shuffled] for part in tested)
    inputs, labels = (part[order[:train]] for part in whole)
    size = min(held_out, len(tested[1]) // 2)
    held, held_labels = tested[0][: 2 * size], tested[1][: 2 * size]
    if inputs.ndim == 2 and data != "r8":
        spread, mean = torch.std_mean(inputs, dim=0)
        inputs, held = ((part - mean) / spread.clamp_min(1e-6) for part in (inputs, held))
    classes = int(max(labels.max(), held_labels.max())) + 1
    noisy = torch.zeros(len(labels), dtype=torch.bool)
    return Problem(inputs, labels, held, held_labels, size, classes, noisy)


def read_arrays(data: str, generator: torch.Generator, size: int) -> tuple[Arrays, Arrays | None]:
    """Inputs and classes of a data set, and of its test part where it has one of its own."""
    if data in OFFICIAL:
        split = official_pictures(data)
        return split[:2], split[2:]
    if data == "r8":
        return _reuters()
    if data == "digits":
        images, labels = digits()
        return (picture_tensors(images[:, None] / 16), _classes(labels)), None
    if data == "mnist":
        images, labels = mnist()
        return (picture_tensors(images[:, None]), _classes(labels)), None
    if data == "gaussians":
        means = torch.randn(GAUSSIAN_CLASSES, GAUSSIAN_FEATURES, generator=generator)
        return GaussianClasses(GAUSSIAN_SPREAD * means).sample(size, generator), None
    return _table(data), None


def data_paths(data: str) -> list[Path]:
    """The files that a data set is read from; none where it is bundled or simulated."""
    if data == "mnist":
        from peira.data.images import mnist_paths

        return mnist_paths()
    if data == "r8":
        return [locate("r8", name) for name in R8_FILES]
    return official_paths(data) if data in OFFICIAL else []


def _classes(labels: Any) -> Tensor:
    return torch.from_numpy(np.asarray(labels).astype(np.int64))


def _table(data: str) -> Arrays:
    from sklearn import datasets

    load = {
        "wine": datasets.load_wine,
        "breast-cancer": datasets.load_breast_cancer,
        "iris": datasets.load_iris,
    }[data]
    inputs, labels = load(return_X_y=True)
    return torch.from_numpy(inputs).float(), _classes(labels)


def _reuters() -> tuple[Arrays, Arrays]:
    """R8 as tf-idf of its most frequent words, known from the training part alone."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    index, text = (locate("r8", name).read_text(encoding="utf-8") for name in R8_FILES)
    lines = [line.split("\t") for line in index.splitlines()]
    documents = text.splitlines()
    names = sorted({line[2] for line in lines})
    classes = torch.tensor([names.index(line[2]) for line in lines])
    for_training = np.array([line[1] == "train" for line in lines])
    words = TfidfVectorizer(max_features=VOCABULARY)
    words.fit(np.array(documents)[for_training])
    features = torch.from_numpy(words.transform(documents).toarray()).float()
    train, test = (np.flatnonzero(mask) for mask in (for_training, ~for_training))
    return (features[train], classes[train]), (features[test], classes[test])
