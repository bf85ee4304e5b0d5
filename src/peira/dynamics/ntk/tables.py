"""Classification of small tables: kernels by regression, networks by training, same protocol."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from peira.dynamics.ntk.architecture import Architecture
from peira.dynamics.ntk.estimators import Floats, leave_one_out

Name = Literal["iris", "wine", "breast-cancer"]
Learner = Literal["ntk", "nngp", "rbf", "laplace", "network"]
LOADERS = {"iris": load_iris, "wine": load_wine, "breast-cancer": load_breast_cancer}
# Three settings each: depths of networks, bandwidths in medians of the distances, weight penalties.
DEPTHS = (2, 3, 4)
BANDWIDTHS = (0.5, 1.0, 2.0)
PENALTIES = (1e-4, 1e-2, 1.0)
HIDDEN = (128, 128)


class Parts(NamedTuple):
    """Standardised points and labels, two thirds to train and one third to test."""

    train: Floats
    train_labels: npt.NDArray[np.int64]
    test: Floats
    test_labels: npt.NDArray[np.int64]


def table(name: Name, seed: int) -> Parts:
    """A table that scikit-learn brings, split with the classes' shares kept."""
    x, labels = LOADERS[name](return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(
        x, labels, test_size=1 / 3, stratify=labels, random_state=seed
    )
    scaler = StandardScaler().fit(train)
    return Parts(scaler.transform(train), train_labels, scaler.transform(test), test_labels)


def accuracy(learner: Learner, parts: Parts, seed: int) -> float:
    """Test accuracy; settings are chosen on the training part alone."""
    found = _network if learner == "network" else _kernel_regression
    predicted = found(learner, parts, seed)
    return float(np.mean(predicted == parts.test_labels))


def _kernel_regression(learner: Learner, parts: Parts, seed: int) -> npt.NDArray[np.int64]:
    """Least squares on class indicators; kernel and ridge of the least leave-one-out error."""
    classes = np.eye(parts.train_labels.max() + 1)[parts.train_labels]
    centre = classes.mean(axis=0)
    best, least = None, np.inf
    for train, test in _candidates(learner, parts):
        ridge, error = leave_one_out(train, classes - centre)
        if error < least:
            best, least = (train, test, ridge), error
    assert best is not None
    train, test, ridge = best
    scores = test @ np.linalg.solve(train + ridge * np.eye(len(train)), classes - centre) + centre
    return scores.argmax(axis=1)


def _candidates(learner: Learner, parts: Parts) -> Iterator[tuple[Floats, Floats]]:
    """Kernels (n, n) of the training points and (m, n) of the test points with them."""
    if learner in ("ntk", "nngp"):
        for depth in DEPTHS:
            spec = Architecture.normalised(depth)
            both = spec.kernels(parts.train), spec.kernels(parts.test, parts.train)
            yield tuple(kernel.ntk if learner == "ntk" else kernel.nngp for kernel in both)
        return
    power = 2 if learner == "rbf" else 1
    distances = cdist(parts.train, parts.train), cdist(parts.test, parts.train)
    median = np.median(distances[0][np.triu_indices(len(parts.train), 1)])
    for bandwidth in BANDWIDTHS:
        yield tuple(np.exp(-((d / (bandwidth * median)) ** power)) for d in distances)


def _network(learner: Learner, parts: Parts, seed: int) -> npt.NDArray[np.int64]:
    """A trained ReLU network in standard parametrisation; penalty by a fifth of the training."""
    fit, kept, fit_labels, kept_labels = train_test_split(
        parts.train, parts.train_labels, test_size=0.2, stratify=parts.train_labels,
        random_state=seed,
    )  # fmt: skip
    settings = {"hidden_layer_sizes": HIDDEN, "max_iter": 200, "random_state": seed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores = [
            MLPClassifier(alpha=alpha, **settings).fit(fit, fit_labels).score(kept, kept_labels)
            for alpha in PENALTIES
        ]
        model = MLPClassifier(alpha=PENALTIES[int(np.argmax(scores))], **settings)
        return model.fit(parts.train, parts.train_labels).predict(parts.test)
