"""Commuter networks from urban indicators (Spadon et al., Scientific Reports 9, 11801, 2019)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Self

import networkx as nx
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import RandomizedSearchCV, train_test_split
from sklearn.utils.validation import check_is_fitted

from peira.data import DataError
from peira.graphs.commuters.evaluation import (
    PairSplit,
    balanced_pairs,
    compare,
    is_link,
    sample_non_links,
)
from peira.graphs.commuters.simulator import simulate_commuters
from peira.graphs.commuters.spatial_models import GravityModel, RadiationModel
from peira.graphs.commuters.table import ODTable, make_graph

__all__ = [
    "CommuterModel",
    "GravityModel",
    "ODTable",
    "PairSplit",
    "RadiationModel",
    "compare",
    "indicator_clusters",
    "randomised_search",
    "simulate_commuters",
]

FEWEST_LINKS = 50
CHUNK_PAIRS = 1_000_000
"""Pairs whose features exist at once when all pairs are scored."""
EXTRA_NON_LINKS = 20_000
"""Non-links beyond the balanced sample that set the threshold of `rebuild`."""

Pairs = pd.DataFrame | np.ndarray
Task = Literal["links", "flows"]
Score = Callable[[Float[np.ndarray, "m features"]], float]


class CommuterModel(BaseEstimator):
    """Which pairs of places exchange commuters, and how many, from indicators of both places.

    The features of an ordered pair are all indicators of the origin, the same of the destination,
    and their distance. A classifier tells links from non-links, learnt from the links and equally
    many non-links drawn at random; a regressor tells the flow of links on a logarithmic scale.
    Both are gradient boosted trees unless given.

    It follows scikit-learn's conventions, with an `ODTable` in the place of X and ordered pairs
    as the samples: a frame of ids, or an array (m, 2) of row numbers of the table's places.

    Args:
        backend: "hist" (scikit-learn's histogram gradient boosting: 300 iterations, learning rate
            0.1, 31 leaves, early stopping) or "xgboost" (300 trees, depth 6, eta 0.1, subsample
            0.8).
        classifier, regressor: any scikit-learn estimators instead, `randomised_search` included.
        indicators: which indicators to use; default all of the table.
        use_distance: whether distance is a feature.
        min_flow: smallest flow that makes a link.
        flow_scale: scale on which flows are learnt, and on which R2 is stated.
        validation_fraction: share of the pairs given to `fit` that is kept from training and used
            for the threshold, the mean flow, and importance.
        random_state: seed of all that is drawn.

    Attributes:
        link_model_, flow_model_: the fitted classifier and regressor.
        feature_names_in_: names of the features, in order.
        indicators_: names of the indicators.
        density_: share of ordered pairs that are links in the table of `fit`.
        threshold_: probability above which as many pairs are taken for links as there are.
        smearing_: mean of (1 + flow) over its prediction on kept-out links (Duan 1983), which
            turns the predicted median flow into a mean.
        validation_pairs_: the kept-out pairs; not saved with the model.
        net_: the table given to `fit`, the default of the methods below; not saved either.
    """

    def __init__(
        self,
        backend: Literal["hist", "xgboost"] = "hist",
        classifier: Any = None,
        regressor: Any = None,
        indicators: Sequence[str] | None = None,
        use_distance: bool = True,
        min_flow: float = 0.0,
        flow_scale: Literal["log1p", "log10"] = "log1p",
        validation_fraction: float = 0.1,
        random_state: int | None = None,
    ) -> None:
        self.backend = backend
        self.classifier = classifier
        self.regressor = regressor
        self.indicators = indicators
        self.use_distance = use_distance
        self.min_flow = min_flow
        self.flow_scale = flow_scale
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, net: ODTable, pairs: Pairs | None = None) -> Self:
        """Learn links and flows from a table.

        Args:
            net: places and flows.
            pairs: the pairs to learn from; default all links and equally many non-links.

        Raises:
            DataError: fewer than 50 links or no non-links among the pairs; an indicator that the
                table lacks; no feature at all.
        """
        rng = np.random.default_rng(self.random_state)
        self._name_features(net)
        links = net.links(self.min_flow)
        if pairs is None and len(links) < FEWEST_LINKS:
            raise _too_few(len(links))
        extra = np.empty((0, 2), dtype=np.int64)
        if pairs is None:
            pairs = balanced_pairs(net, None, rng, min_flow=self.min_flow)
            extra = self._extra_non_links(net, pairs, rng)
        pairs = net.pairs(pairs)
        linked = is_link(net.flows_of(pairs), self.min_flow)
        if linked.sum() < FEWEST_LINKS:
            raise _too_few(int(linked.sum()))
        if linked.all():
            raise DataError("no pairs without a link to learn from", value=len(linked))
        train, kept = train_test_split(
            np.arange(len(pairs)),
            test_size=self.validation_fraction,
            stratify=linked,
            random_state=_seed(rng),
        )
        self.train_pairs_ = pairs[train]
        self.validation_pairs_ = pairs[kept]
        self.density_ = len(links) / (int(net.surveyed.sum()) * (len(net) - 1))
        self.link_model_, self.flow_model_ = self._models(_seed(rng))
        self._fit_models(net, self.train_pairs_)
        self.net_ = net
        self._calibrate(net, np.concatenate([self.validation_pairs_, extra]))
        return self

    def link_probability(
        self, pairs: Pairs | Literal["all"] = "all", net: ODTable | None = None
    ) -> Float[np.ndarray, " m"]:
        """Probability of a link for each pair, at equal numbers of links and non-links.

        "all" gives the n(n - 1) ordered pairs without the diagonal, by origin; they are scored in
        chunks. `net` may be a table of other places: only their indicators are needed.
        """
        net = self._table(net)
        chunks = [self._probability(net, chunk) for chunk in self._chunks(net, pairs)]
        return np.concatenate(chunks)

    def flow(
        self,
        pairs: Pairs | Literal["all"] = "all",
        net: ODTable | None = None,
        statistic: Literal["median", "mean"] = "median",
    ) -> Float[np.ndarray, " m"]:
        """People commuting along each pair, provided that it is a link."""
        net = self._table(net)
        chunks = []
        for chunk in self._chunks(net, pairs):
            scaled = self.flow_model_.predict(self._features(net, chunk))
            chunks.append(self._unscale(scaled, statistic))
        return np.concatenate(chunks)

    def predict(
        self, net: ODTable, pairs: Pairs | Literal["all"] = "all"
    ) -> Bool[np.ndarray, " m"]:
        """Whether each pair is a link, at probability 0.5 (links and non-links equally likely)."""
        return self.link_probability(pairs, net) >= 0.5

    def score(self, net: ODTable, pairs: Pairs | None = None) -> float:
        """Accuracy of `predict`; default pairs are all links of `net` and as many non-links.

        On the table that the model was fitted to, give pairs that it has not seen.
        """
        check_is_fitted(self, "link_model_")
        if pairs is None:
            rng = np.random.default_rng(self.random_state)
            pairs = balanced_pairs(net, None, rng, min_flow=self.min_flow)
        pairs = net.pairs(pairs)
        linked = is_link(net.flows_of(pairs), self.min_flow)
        return float((self.predict(net, pairs) == linked).mean())

    def rebuild(
        self,
        n_links: int | None = None,
        net: ODTable | None = None,
        threshold: float | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> nx.DiGraph:
        """The network as the model sees it: all pairs scored, the likeliest linked, with flows.

        Args:
            n_links: how many links to make, the likeliest first.
            net: the places; default the table given to `fit`.
            threshold: or, the probability from which a pair becomes a link; default `threshold_`,
                which makes about as many links as there were, for a table of like density.
            progress: called with the number of origins done.

        Returns:
            directed graph of all places; edges carry `flow` (mean number of people) and
            `probability`.

        Raises:
            DataError: `n_links` is out of range, or given with `threshold`.
        """
        net = self._table(net)
        if n_links is not None and threshold is not None:
            raise DataError("both n_links and threshold are given", expected="one of them")
        if n_links is not None and not 1 <= n_links <= len(net) * (len(net) - 1):
            raise DataError("n_links is out of range", value=n_links, expected="1 to n(n - 1)")
        floor = self.threshold_ if threshold is None else threshold
        codes, probability = self._best(net, n_links, floor, progress)
        pairs = np.column_stack(np.divmod(codes, len(net)))
        flow = self.flow(pairs, net, statistic="mean") if len(pairs) else np.empty(0)
        graph = make_graph(net, pairs, flow)
        for (i, j), value in zip(net.ids[pairs], probability.tolist(), strict=True):
            graph[i][j]["probability"] = value
        return graph

    def importance(
        self,
        kind: Literal["joint", "gain", "shap", "drop"] = "joint",
        task: Task = "links",
        pairs: Pairs | None = None,
        net: ODTable | None = None,
        by: Literal["indicator", "cluster"] = "indicator",
        n_repeats: int = 20,
    ) -> pd.DataFrame:
        """How much each indicator, and distance, matter.

        Args:
            kind: "joint": loss of score when the values of an indicator at origin and destination
                are shuffled together over the pairs; "drop": loss of score when the model is
                fitted again without it; "gain": share of the trees' gain; "shap": mean absolute
                SHAP value of both ends together (needs shap).
            task: "links" (score: area under the ROC curve) or "flows" (score: R2 on the model's
                scale, links only).
            pairs: pairs the model has not seen; default its kept-out pairs.
            net: the table of these pairs; default the one given to `fit`.
            by: "cluster" takes indicators that rise and fall together (`indicator_clusters`) as
                one: alone, each of them can be replaced by the others and seems useless.
            n_repeats: how often to shuffle.

        Returns:
            frame with columns feature, mean, sd, cluster; most important first. Features of one
            cluster number carry much the same information.
        """
        net = self._table(net)
        if pairs is None and not hasattr(self, "validation_pairs_"):
            raise DataError("a model read from a file has no kept-out pairs", expected="pairs=...")
        pairs = self.validation_pairs_ if pairs is None else net.pairs(pairs)
        if task == "flows":
            pairs = pairs[is_link(net.flows_of(pairs), self.min_flow)]
        cluster = indicator_clusters(net.indicators[self.indicators_])
        groups = self._groups(cluster, by)
        if kind == "joint":
            losses = self._joint_permutation(net, pairs, task, groups, n_repeats)
        elif kind == "drop":
            losses = self._drop_column(net, pairs, task, groups)
        else:
            share = self._gain(task) if kind == "gain" else self._shap(net, pairs, task)
            losses = {name: [share(columns)] for name, columns in groups.items()}
        table = pd.DataFrame(
            [
                {"feature": name, "mean": np.mean(values), "sd": np.std(values)}
                for name, values in losses.items()
            ]
        )
        first = {name: name.split(" + ")[0] for name in table["feature"]}
        table["cluster"] = [cluster.get(first[name], 0) for name in table["feature"]]
        return table.sort_values("mean", ascending=False, ignore_index=True)

    def __getstate__(self) -> dict[str, Any]:
        # A saved model must not carry the person's data.
        own = {"net_", "train_pairs_", "validation_pairs_"}
        return {k: v for k, v in super().__getstate__().items() if k not in own}

    def _table(self, net: ODTable | None) -> ODTable:
        check_is_fitted(self, "link_model_")
        if net is not None:
            return net
        if not hasattr(self, "net_"):
            raise DataError("a model read from a file has no table", expected="net=ODTable(...)")
        return self.net_

    def _name_features(self, net: ODTable) -> None:
        self.indicators_ = list(net.indicators if self.indicators is None else self.indicators)
        if not self.indicators_ and not self.use_distance:
            raise DataError("nothing to learn from", expected="indicators, or use_distance=True")
        if "distance" in self.indicators_:
            raise DataError("an indicator is named 'distance'", expected="another name for it")
        ends = [f"{end}:{name}" for end in ("origin", "destination") for name in self.indicators_]
        self.feature_names_in_ = np.array(ends + ["distance"] * self.use_distance, dtype=object)
        self.n_features_in_ = len(self.feature_names_in_)

    def _models(self, seed: int) -> tuple[Any, Any]:
        given = [None if m is None else clone(m) for m in (self.classifier, self.regressor)]
        default = _xgboost(seed) if self.backend == "xgboost" else _hist(seed)
        return tuple(d if g is None else g for g, d in zip(given, default, strict=True))

    def _fit_models(self, net: ODTable, pairs: Int[np.ndarray, "m 2"]) -> None:
        features, flow = self._features(net, pairs), net.flows_of(pairs)
        linked = is_link(flow, self.min_flow)
        self.link_model_.fit(features, linked)
        self.flow_model_.fit(features[linked], self._scale(flow[linked]))

    def _features(
        self, net: ODTable, pairs: Int[np.ndarray, "m 2"]
    ) -> Float[np.ndarray, "m features"]:
        missing = [name for name in self.indicators_ if name not in net.indicators]
        if missing:
            raise DataError(
                f"the table lacks indicators of the model: {', '.join(missing)}",
                expected=", ".join(self.indicators_),
            )
        values = net.indicators[self.indicators_].to_numpy(dtype=float)
        k = values.shape[1]
        features = np.empty((len(pairs), self.n_features_in_))
        features[:, :k] = values[pairs[:, 0]]
        features[:, k : 2 * k] = values[pairs[:, 1]]
        if self.use_distance:
            features[:, -1] = net.distance_km(pairs)
        return features

    def _chunks(
        self, net: ODTable, pairs: Pairs | Literal["all"]
    ) -> Iterator[Int[np.ndarray, "m 2"]]:
        if isinstance(pairs, str):
            for _, block in net.blocks(max(CHUNK_PAIRS // len(net), 1)):
                yield block
            return
        pairs = net.pairs(pairs)
        for start in range(0, max(len(pairs), 1), CHUNK_PAIRS):
            yield pairs[start : start + CHUNK_PAIRS]

    def _probability(self, net: ODTable, pairs: Int[np.ndarray, "m 2"]) -> Float[np.ndarray, " m"]:
        return self.link_model_.predict_proba(self._features(net, pairs))[:, 1]

    def _scale(self, flow: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        return np.log1p(flow) if self.flow_scale == "log1p" else np.log10(flow)

    def _unscale(
        self, scaled: Float[np.ndarray, " m"], statistic: Literal["median", "mean"]
    ) -> Float[np.ndarray, " m"]:
        factor = self.smearing_ if statistic == "mean" else 1.0
        if self.flow_scale == "log1p":
            return np.maximum(factor * np.exp(scaled) - 1, 0.0)
        return factor * 10.0**scaled

    def _extra_non_links(
        self, net: ODTable, pairs: Int[np.ndarray, "m 2"], rng: np.random.Generator
    ) -> Int[np.ndarray, "m 2"]:
        """Further non-links, unseen in training, for a threshold far out in their tail."""
        surveyed = int(net.surveyed.sum()) * (len(net) - 1)
        rest = surveyed - len(net.links(self.min_flow)) - len(pairs) // 2
        size = min(EXTRA_NON_LINKS, rest) + len(pairs) // 2
        drawn = sample_non_links(net, size, rng, min_flow=self.min_flow)
        n = len(net)
        seen = np.isin(drawn @ [n, 1], pairs @ [n, 1])
        return drawn[~seen][:EXTRA_NON_LINKS]

    def _calibrate(self, net: ODTable, pairs: Int[np.ndarray, "m 2"]) -> None:
        """Threshold and smearing factor from kept-out pairs."""
        flow, probability = net.flows_of(pairs), self._probability(net, pairs)
        linked = is_link(flow, self.min_flow)
        shares = np.where(
            linked, self.density_ / linked.sum(), (1 - self.density_) / max((~linked).sum(), 1)
        )
        order = np.argsort(-probability, kind="stable")
        last = np.searchsorted(np.cumsum(shares[order]), self.density_)
        self.threshold_ = float(probability[order[min(last, len(order) - 1)]])
        links = pairs[linked]
        scaled = self.flow_model_.predict(self._features(net, links))
        shift = 1.0 if self.flow_scale == "log1p" else 0.0
        unscaled = np.exp(scaled) if self.flow_scale == "log1p" else 10.0**scaled
        self.smearing_ = float(((flow[linked] + shift) / unscaled).mean())

    def _best(
        self,
        net: ODTable,
        n_links: int | None,
        floor: float,
        progress: Callable[[int], None] | None,
    ) -> tuple[Int[np.ndarray, " links"], Float[np.ndarray, " links"]]:
        """Codes origin * n + destination and probabilities of the links of `rebuild`."""
        n = len(net)
        codes, scores = np.empty(0, dtype=np.int64), np.empty(0)
        for origins, block in net.blocks(max(CHUNK_PAIRS // n, 1)):
            probability = self._probability(net, block)
            if n_links is None:
                keep = probability >= floor
            else:
                full = len(scores) >= n_links
                keep = probability > (scores.min() if full else -1.0)
            codes = np.r_[codes, block[keep] @ [n, 1]]
            scores = np.r_[scores, probability[keep]]
            if n_links is not None and len(scores) > n_links:
                # The earlier pair wins a tie, so the result does not depend on the chunks.
                best = np.lexsort([codes, -scores])[:n_links]
                codes, scores = codes[best], scores[best]
            if progress is not None:
                progress(origins.stop)
        order = np.argsort(codes)
        return codes[order], scores[order]

    def _groups(
        self, cluster: dict[str, int], by: Literal["indicator", "cluster"]
    ) -> dict[str, list[int]]:
        """Name -> columns of its features, origin and destination together."""
        k = len(self.indicators_)
        columns = {name: [c, k + c] for c, name in enumerate(self.indicators_)}
        if by == "cluster":
            together: dict[int, list[str]] = {}
            for name in self.indicators_:
                together.setdefault(cluster[name], []).append(name)
            columns = {
                " + ".join(names): [c for name in names for c in columns[name]]
                for names in together.values()
            }
        return columns | ({"distance": [2 * k]} if self.use_distance else {})

    def _scorer(self, net: ODTable, pairs: Int[np.ndarray, "m 2"], task: Task) -> Score:
        flow = net.flows_of(pairs)
        if task == "links":
            linked = is_link(flow, self.min_flow)
            return lambda x: float(roc_auc_score(linked, self.link_model_.predict_proba(x)[:, 1]))
        return lambda x: float(r2_score(self._scale(flow), self.flow_model_.predict(x)))

    def _joint_permutation(
        self,
        net: ODTable,
        pairs: Int[np.ndarray, "m 2"],
        task: Task,
        groups: dict[str, list[int]],
        n_repeats: int,
    ) -> dict[str, list[float]]:
        rng = np.random.default_rng(self.random_state)
        score, features = self._scorer(net, pairs, task), self._features(net, pairs)
        whole = score(features)
        losses: dict[str, list[float]] = {name: [] for name in groups}
        for name, columns in groups.items():
            for _ in range(n_repeats):
                shuffled = features.copy()
                shuffled[:, columns] = features[rng.permutation(len(features))][:, columns]
                losses[name].append(whole - score(shuffled))
        return losses

    def _drop_column(
        self, net: ODTable, pairs: Int[np.ndarray, "m 2"], task: Task, groups: dict[str, list[int]]
    ) -> dict[str, list[float]]:
        if net is not getattr(self, "net_", None):
            raise DataError("kind='drop' fits again", expected="the table given to fit")
        whole = self._scorer(net, pairs, task)(self._features(net, pairs))
        losses = {}
        for name in groups:
            parts = name.split(" + ")
            smaller = clone(self).set_params(
                indicators=[n for n in self.indicators_ if n not in parts],
                use_distance=self.use_distance and name != "distance",
            )
            smaller._name_features(net)
            smaller.link_model_, smaller.flow_model_ = (
                clone(self.link_model_),
                clone(self.flow_model_),
            )
            smaller._fit_models(net, self.train_pairs_)
            without = smaller._scorer(net, pairs, task)(smaller._features(net, pairs))
            losses[name] = [whole - without]
        return losses

    def _gain(self, task: Task) -> Callable[[list[int]], float]:
        gain = _feature_gain(self.link_model_ if task == "links" else self.flow_model_)
        return lambda columns: float(gain[columns].sum())

    def _shap(
        self, net: ODTable, pairs: Int[np.ndarray, "m 2"], task: Task
    ) -> Callable[[list[int]], float]:
        try:
            import shap
        except ImportError as error:
            raise DataError("kind='shap' needs shap", expected="pip install shap") from error
        explainer = shap.TreeExplainer(self.link_model_ if task == "links" else self.flow_model_)
        values = np.asarray(explainer.shap_values(self._features(net, pairs)))
        if values.ndim == 3:
            values = values[..., 1]
        return lambda columns: float(np.abs(values[:, columns].sum(axis=1)).mean())


def indicator_clusters(indicators: pd.DataFrame, correlation: float = 0.7) -> dict[str, int]:
    """Indicators that carry much the same information: name -> number of its cluster, from 1.

    Average linkage on 1 - |rho|, Spearman's rho over places, cut where |rho| falls below
    `correlation`.
    """
    names = list(indicators)
    if len(names) < 2:
        return dict.fromkeys(names, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rho = indicators.corr("spearman").fillna(0.0).abs().to_numpy(copy=True)
    np.fill_diagonal(rho, 1.0)
    tree = linkage(squareform(np.clip(1 - rho, 0, None), checks=False), method="average")
    return dict(zip(names, fcluster(tree, 1 - correlation, "distance").tolist(), strict=True))


def randomised_search(
    task: Task, n_iter: int = 20, folds: int = 5, random_state: int | None = None
) -> RandomizedSearchCV:
    """Search over depth, learning rate and subsample of XGBoost (needs xgboost).

    Give it to `CommuterModel(classifier=...)` ("links") or `regressor=...` ("flows").
    """
    classifier, regressor = _xgboost(random_state)
    return RandomizedSearchCV(
        classifier if task == "links" else regressor,
        {
            "max_depth": [4, 6, 8, 10],
            "learning_rate": [0.03, 0.1, 0.3],
            "subsample": [0.6, 0.8, 1.0],
        },
        n_iter=n_iter,
        scoring="accuracy" if task == "links" else "r2",
        cv=folds,
        random_state=random_state,
    )


def _too_few(links: int) -> DataError:
    return DataError("too few links to learn from", value=links, expected=f"{FEWEST_LINKS} or more")


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _hist(seed: int) -> tuple[Any, Any]:
    settings: dict[str, Any] = {
        "max_iter": 300,
        "learning_rate": 0.1,
        "max_leaf_nodes": 31,
        "early_stopping": True,
        "random_state": seed,
    }
    return HistGradientBoostingClassifier(**settings), HistGradientBoostingRegressor(**settings)


def _xgboost(seed: int | None) -> tuple[Any, Any]:
    try:
        from xgboost import XGBClassifier, XGBRegressor
    except ImportError as error:
        raise DataError(
            "backend 'xgboost' needs xgboost", expected="pip install xgboost"
        ) from error
    settings: dict[str, Any] = {
        "n_estimators": 300,
        "max_depth": 6,
        "learning_rate": 0.1,
        "subsample": 0.8,
        "importance_type": "total_gain",
        "random_state": seed,
    }
    return XGBClassifier(**settings), XGBRegressor(**settings)


def _feature_gain(model: Any) -> Float[np.ndarray, " features"]:
    """Share of the total gain of each feature's splits."""
    if hasattr(model, "feature_importances_"):
        gain = np.asarray(model.feature_importances_, dtype=float)
    elif isinstance(model, HistGradientBoostingClassifier | HistGradientBoostingRegressor):
        # scikit-learn keeps the gains but has no public access to them.
        gain = np.zeros(model.n_features_in_)
        for tree in (tree for trees in model._predictors for tree in trees):
            inner = tree.nodes[tree.nodes["is_leaf"] == 0]
            np.add.at(gain, inner["feature_idx"], inner["gain"])
    else:
        raise DataError("kind='gain' needs trees", value=type(model).__name__)
    return gain / gain.sum() if gain.sum() > 0 else gain
