"""What prototypes are compared with: centres found afterwards, and GLVQ in input space."""

from __future__ import annotations

import copy
from typing import Literal, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from peira.explain.prototypes.model import PrototypeNetwork, squared_distances

Centres = Literal["kmeans", "kmedoids"]
Floats = Float[np.ndarray, "..."]


def with_centres(
    network: PrototypeNetwork,
    latents: Float[Tensor, "n q"],
    labels: Int[Tensor, " n"],
    centres: Centres = "kmeans",
    seed: int = 0,
) -> PrototypeNetwork:
    """The same network with prototypes found after training instead of learned.

    The prototypes are cluster centres of the trained latents, and the last layer on distances is
    fitted to them.

    Args:
        network: trained.
        latents: encoded training set.
        labels: 0, ..., K - 1, all of them present.
        centres: k-means, or the training examples nearest to its centres.
        seed: of k-means.
    """
    points = latents.cpu().numpy()
    count = len(network.prototypes)
    found = KMeans(count, n_init=4, random_state=seed).fit(points).cluster_centers_
    chosen = torch.from_numpy(found).to(latents)
    if centres == "kmedoids":
        chosen = latents[squared_distances(chosen, latents).argmin(dim=1)]
    changed = copy.deepcopy(network)
    distances = squared_distances(latents, chosen)
    with torch.no_grad():
        changed.prototypes.copy_(chosen)
        changed.weight.copy_(last_layer(distances, labels).to(latents))
    return changed


def last_layer(
    distances: Float[Tensor, "n m"], labels: Int[Tensor, " n"]
) -> Float[Tensor, "m classes"]:
    """W of a softmax without bias on distances: its cross entropy's minimum, slightly shrunk."""
    values = distances.cpu().double().numpy()
    # Shrinkage is scikit-learn's default on distances of size 1.
    scale = values.mean()
    model = LogisticRegression(fit_intercept=False, max_iter=1000)
    found = model.fit(values / scale, labels.cpu().numpy()).coef_ / scale
    both = np.concatenate([-found, found]) / 2 if len(found) == 1 else found
    return torch.from_numpy(both.T.copy())


class GLVQ(ClassifierMixin, BaseEstimator):
    """Generalised learning vector quantisation in input space (Sato and Yamada 1996).

    Prototypes have classes from the start; an input takes the class of the nearest one. Learned
    by L-BFGS on the sum of sigmoid(mu), mu = (d+ - d-) / (d+ + d-), with the squared distances to
    the nearest prototype of the right class and of a wrong one.

    Args:
        n_prototypes: in all; classes get as many each as there are, the first ones one more.
        max_iter: of L-BFGS.
        random_state: draws the training examples that the first prototypes start between.

    Attributes:
        prototypes_: (m, p).
        prototype_class_: label of each.
    """

    def __init__(
        self, n_prototypes: int = 15, max_iter: int = 200, random_state: int | None = None
    ) -> None:
        self.n_prototypes, self.max_iter = n_prototypes, max_iter
        self.random_state = random_state

    def fit(self, X: Floats, y: Int[np.ndarray, " n"]) -> Self:
        """Learn from rows (n, p) and labels (n,).

        Raises `ValueError` for one class only, and for fewer prototypes than classes.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"only one class: {self.classes_[0]!r}; at least two are needed")
        if self.n_prototypes < len(self.classes_):
            raise ValueError(
                f"n_prototypes={self.n_prototypes} for {len(self.classes_)} classes; each needs one"
            )
        classes = np.sort(np.arange(self.n_prototypes) % len(self.classes_))
        start = _starting_points(X, labels, classes, check_random_state(self.random_state))
        found = minimize(
            lambda flat: glvq_cost(flat.reshape(start.shape), classes, X, labels),
            start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": self.max_iter},
        )  # fmt: skip
        self.prototypes_ = found.x.reshape(start.shape)
        self.prototype_class_ = self.classes_[classes]
        self.n_iter_ = max(1, int(found.nit))
        return self

    def predict(self, X: Floats) -> Float[np.ndarray, " n"]:
        """Label of the nearest prototype."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self.prototype_class_[_squared(X, self.prototypes_).argmin(axis=1)]


def glvq_cost(
    prototypes: Float[np.ndarray, "m p"],
    classes: Int[np.ndarray, " m"],
    X: Float[np.ndarray, "n p"],
    labels: Int[np.ndarray, " n"],
) -> tuple[float, Float[np.ndarray, " mp"]]:
    """Cost of GLVQ and its gradient in the prototypes, flattened."""
    apart = _squared(X, prototypes)
    own = classes == labels[:, None]
    rows = np.arange(len(X))
    right = np.where(own, apart, np.inf).argmin(axis=1)
    wrong = np.where(own, np.inf, apart).argmin(axis=1)
    near, far = apart[rows, right], apart[rows, wrong]
    total = np.maximum(near + far, np.finfo(float).tiny)
    squashed = expit((near - far) / total)
    slope = 2 * squashed * (1 - squashed) / total**2
    # Of the sum of squashed costs in each distance; a distance's own gradient is 2 (w - x).
    pull = np.zeros_like(apart)
    pull[rows, right] = slope * far
    pull[rows, wrong] = -slope * near
    gradient = 2 * (pull.sum(axis=0)[:, None] * prototypes - pull.T @ X)
    return float(squashed.sum()), gradient.ravel()


def _starting_points(
    X: Floats, labels: Floats, classes: Floats, random: np.random.RandomState
) -> Floats:
    """Half-way between the mean of a class and one of its examples, so that no two coincide."""
    means = np.stack([X[labels == k].mean(axis=0) for k in range(classes.max() + 1)])
    drawn = np.stack([X[random.choice(np.flatnonzero(labels == k))] for k in classes])
    return (means[classes] + drawn) / 2


def _squared(a: Floats, b: Floats) -> Floats:
    apart = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.maximum(apart, 0)
