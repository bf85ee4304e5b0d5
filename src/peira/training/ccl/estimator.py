"""Cyclical curriculum learning for scikit-learn classifiers that learn in batches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.linear_model import SGDClassifier
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from peira.data.errors import DataError
from peira.training.ccl.curriculum import Curriculum, CyclicalCurriculum
from peira.training.ccl.sampling import FLOOR, Transform

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[Any]


def _inner_has(name: str) -> Any:
    def check(wrapper: CyclicalFit) -> bool:
        inner = getattr(wrapper, "estimator_", None) or wrapper._inner()
        return hasattr(inner, name)

    return available_if(check)


class CyclicalFit(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    """A classifier trained by `partial_fit` on a cyclical curriculum.

    `fit` trains a first copy without a curriculum, takes the loss of every sample from it, and
    trains a fresh copy on the curriculum: twice the price of plain training, unless `losses` are
    given.

    Args:
        estimator: has `partial_fit` and `predict_proba` or `decision_function`; logistic
            regression by stochastic gradient descent where there is none.
        start: smallest share of the data in a round.
        end: largest share.
        alpha: multiplier of the share from round to round.
        budget_epochs: passes over the data, of either training.
        schedule: as in `CyclicalCurriculum`; "full" is plain training.
        score_transform: how losses become scores, `transform` of `CyclicalCurriculum`.
        lam: of the transform "exp".
        floor: smaller losses count as this much.
        batch_size: samples per `partial_fit`; the last of a round may have fewer.
        random_state: seed of the order and of both copies.

    Attributes:
        estimator_: the trained classifier.
        sizes_: share of the data in each round.
        losses_: per-sample losses that it was built on.
        samples_seen_: samples of the training on the curriculum.
        scoring_samples_: samples of the training before it.
        classes_, n_features_in_: as usual.

    Raises:
        DataError: an estimator that cannot be used; numbers that make no curriculum.
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        start: float = 0.25,
        end: float = 1.0,
        alpha: float = 0.5,
        budget_epochs: float = 20.0,
        schedule: str = "cyclic",
        score_transform: Transform = "inverse",
        lam: float = 0.5,
        floor: float = FLOOR,
        batch_size: int = 32,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.start = start
        self.end = end
        self.alpha = alpha
        self.budget_epochs = budget_epochs
        self.schedule = schedule
        self.score_transform = score_transform
        self.lam = lam
        self.floor = floor
        self.batch_size = batch_size
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def fit(self, X: Any, y: Any, losses: npt.ArrayLike | None = None) -> Self:
        """Train on X (samples, features), dense or sparse, and classes y (samples,).

        `losses` are per-sample losses from elsewhere; without them a first copy is trained.
        """
        needed = math.ceil(1 / self.start) if 0 < self.start <= 1 else 1
        X, y = validate_data(self, X, y, accept_sparse="csr", ensure_min_samples=needed)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise DataError("only one class", value=self.classes_[0], expected="two or more")
        random = check_random_state(self.random_state)
        seeds = random.randint(np.iinfo(np.int32).max, size=4)
        self.scoring_samples_ = 0
        if losses is None:
            scorer = self._fresh(seeds[0])
            self.scoring_samples_ = self._train(scorer, X, y, self._plain(len(y), seeds[1]))
            losses = classifier_losses(scorer, X, y, self.classes_)
        self.losses_ = np.asarray(losses, dtype=float)
        if len(self.losses_) != len(y):
            raise DataError("losses of another data set", value=len(self.losses_), expected=len(y))
        curriculum = CyclicalCurriculum(
            self.losses_, start=self.start, end=self.end, alpha=self.alpha,
            budget_epochs=self.budget_epochs, schedule=self.schedule, floor=self.floor,
            transform=self.score_transform, lam=self.lam, rng=int(seeds[2]),
        )  # fmt: skip
        self.estimator_ = self._fresh(seeds[3])
        self.samples_seen_ = self._train(self.estimator_, X, y, curriculum)
        self.sizes_ = np.array(curriculum.sizes)
        return self

    def predict(self, X: Any) -> Array:
        """Classes (samples,)."""
        X = self._checked(X)
        return self.estimator_.predict(X)

    @_inner_has("predict_proba")
    def predict_proba(self, X: Any) -> Array:
        """Probabilities (samples, classes)."""
        X = self._checked(X)
        return self.estimator_.predict_proba(X)

    @_inner_has("decision_function")
    def decision_function(self, X: Any) -> Array:
        """Decision values, as the estimator gives them."""
        X = self._checked(X)
        return self.estimator_.decision_function(X)

    def _checked(self, X: Any) -> Any:
        check_is_fitted(self)
        return validate_data(self, X, accept_sparse="csr", reset=False)

    def _inner(self) -> Any:
        return SGDClassifier(loss="log_loss") if self.estimator is None else self.estimator

    def _fresh(self, seed: int) -> Any:
        inner = clone(self._inner())
        if not hasattr(inner, "partial_fit"):
            raise DataError(
                "an estimator that does not learn in batches", value=type(inner).__name__,
                expected="one with partial_fit",
            )  # fmt: skip
        if "random_state" in inner.get_params():
            inner.set_params(random_state=int(seed))
        return inner

    def _plain(self, size: int, seed: int) -> Curriculum:
        return CyclicalCurriculum(
            scores=np.ones(size), schedule="full", budget_epochs=self.budget_epochs, rng=int(seed)
        )

    def _train(self, inner: Any, X: Any, y: Array, curriculum: Curriculum) -> int:
        if self.batch_size < 1:
            raise DataError("batch size", value=self.batch_size, expected="1 or more")
        for subset in curriculum:
            for begin in range(0, len(subset), self.batch_size):
                batch = subset[begin : begin + self.batch_size]
                inner.partial_fit(X[batch], y[batch], classes=self.classes_)
        return curriculum.samples_seen


def classifier_losses(fitted: Any, X: Any, y: npt.ArrayLike, classes: npt.ArrayLike) -> Array:
    """Cross entropy of each sample under a fitted classifier, nats (n,).

    Decision values of a classifier without probabilities go through a softmax (two classes: a
    logistic function).

    Raises `DataError` for a classifier with neither.
    """
    column = np.searchsorted(np.asarray(classes), np.asarray(y))
    if hasattr(fitted, "predict_proba"):
        p = np.asarray(fitted.predict_proba(X))[np.arange(len(column)), column]
        # As Keras clips: a model that is certain of everything leaves all samples alike.
        return -np.log(np.clip(p, FLOOR, 1 - FLOOR))
    if not hasattr(fitted, "decision_function"):
        raise DataError(
            "an estimator without losses", value=type(fitted).__name__,
            expected="predict_proba or decision_function",
        )  # fmt: skip
    values = np.asarray(fitted.decision_function(X))
    if values.ndim == 1:
        values = np.column_stack([-values / 2, values / 2])
    return logsumexp(values, axis=1) - values[np.arange(len(column)), column]


def held_out_losses(
    estimator: Any, X: Any, y: npt.ArrayLike, folds: int = 5, random_state: int = 0
) -> Array:
    """Cross entropy of each sample under a copy that was not trained on it, nats (n,).

    Args:
        estimator: classifier with `predict_proba`.
        X, y: samples and classes, each with `folds` samples or more.
        folds: parts of the data.
        random_state: seed of the parts.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    y = np.asarray(y)
    classes, counts = np.unique(y, return_counts=True)
    if counts.min() < folds:
        rare = classes[counts.argmin()]
        raise DataError(
            f"class {rare!s} has too few samples for {folds} folds", value=int(counts.min()),
            expected=f"{folds} or more",
        )  # fmt: skip
    parts = StratifiedKFold(folds, shuffle=True, random_state=random_state)
    found = cross_val_predict(estimator, X, y, cv=parts, method="predict_proba")
    p = found[np.arange(len(y)), np.searchsorted(classes, y)]
    return -np.log(np.clip(p, FLOOR, 1.0))


# What a person's own data is compared on; "plain" and "random cycle" are the controls.
COMPARED: dict[str, dict[str, Any]] = {
    "plain": {"schedule": "full", "score_transform": "random"},
    "random cycle": {"score_transform": "random"},
    "cyclical curriculum": {},
}


def compare_fits(
    features: Any,
    X: Any,
    y: npt.ArrayLike,
    seeds: Iterable[int],
    test_share: float = 0.25,
    **settings: Any,
) -> pd.DataFrame:
    """Test accuracy of plain training, a random cycle and the curriculum, on splits of one's data.

    Args:
        features: transformer that makes numbers of X; fitted to the training part of each split.
        X, y: samples and classes.
        seeds: one split and one training of each method for every seed.
        test_share: of the samples.
        settings: of `CyclicalFit`, for all methods where they do not say otherwise.

    Returns:
        One row for each method and seed: accuracy, samples of the training and of the scoring.
    """
    import pandas as pd
    from sklearn.model_selection import train_test_split

    y = np.asarray(y)
    classes, counts = np.unique(y, return_counts=True)
    if counts.min() < 2:
        raise DataError(
            "a class with one sample cannot be split", value=str(classes[counts.argmin()])
        )
    rows = []
    for seed in seeds:
        train, test = train_test_split(
            np.arange(len(y)), test_size=test_share, stratify=y, random_state=seed
        )
        fitted = clone(features).fit(_rows(X, train))
        inputs, unseen = (fitted.transform(_rows(X, part)) for part in (train, test))
        for method, changes in COMPARED.items():
            model = CyclicalFit(random_state=seed, **(settings | changes))
            # The controls draw without scores, and need no run for them.
            control = changes.get("score_transform") == "random"
            model.fit(inputs, y[train], losses=np.ones(len(train)) if control else None)
            rows.append(
                {
                    "method": method,
                    "seed": seed,
                    "accuracy": model.score(unseen, y[test]),
                    "samples": model.samples_seen_,
                    "scoring_samples": model.scoring_samples_,
                }
            )
    return pd.DataFrame(rows)


def _rows(X: Any, index: Array) -> Any:
    return [X[i] for i in index] if isinstance(X, list) else X[index]
