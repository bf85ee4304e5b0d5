"""Samples of pairs, splits that do not leak, measures of links, flows and whole networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import networkx as nx
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import sparse
from scipy.stats import ks_2samp
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    precision_recall_fscore_support,
    r2_score,
    roc_auc_score,
)
from sklearn.model_selection import StratifiedKFold

from peira.data import DataError
from peira.graphs.commuters.geo import middle, to_plane
from peira.graphs.commuters.table import ODTable

Split = Literal["random", "origin", "node", "block"]
Mask = Bool[np.ndarray, " places"]


def is_link(flow: Float[np.ndarray, " m"], min_flow: float = 0.0) -> Bool[np.ndarray, " m"]:
    """Which flows make a link: above 0 and at least `min_flow`."""
    return (flow > 0) & (flow >= min_flow)


def sample_links(
    net: ODTable,
    size: int | None,
    rng: np.random.Generator,
    *,
    min_flow: float = 0.0,
    origins: Mask | None = None,
    destinations: Mask | None = None,
) -> Int[np.ndarray, "size 2"]:
    """`size` links (default all), drawn without replacement, with both ends in the masks."""
    links = net.links(min_flow)
    keep = np.ones(len(links), dtype=bool)
    for end, mask in enumerate((origins, destinations)):
        if mask is not None:
            keep &= mask[links[:, end]]
    links = links[keep]
    size = len(links) if size is None else size
    if size > len(links):
        raise DataError("not enough links", value=len(links), expected=f"at least {size}")
    return links[rng.choice(len(links), size, replace=False)]


def sample_non_links(
    net: ODTable,
    size: int,
    rng: np.random.Generator,
    *,
    min_flow: float = 0.0,
    origins: Mask | None = None,
    destinations: Mask | None = None,
) -> Int[np.ndarray, "size 2"]:
    """`size` ordered pairs that are no link, uniform without replacement, from surveyed origins."""
    n = len(net)
    rows = np.flatnonzero(net.surveyed if origins is None else net.surveyed & origins)
    columns = np.arange(n) if destinations is None else np.flatnonzero(destinations)
    links = net.links(min_flow)
    inside = np.isin(links[:, 0], rows) & np.isin(links[:, 1], columns)
    available = len(rows) * len(columns) - np.isin(rows, columns).sum() - inside.sum()
    if size > available:
        raise DataError("not enough pairs without a link", value=int(available), expected=f"{size}")
    if size > available // 2:
        i, j = np.repeat(rows, len(columns)), np.tile(columns, len(rows))
        codes = _without_link(net, i, j, min_flow)
        codes = rng.choice(codes, size, replace=False)
    else:
        codes = np.empty(0, dtype=np.int64)
        while len(codes) < size:
            i, j = rng.choice(rows, 2 * size), rng.choice(columns, 2 * size)
            codes = np.r_[codes, _without_link(net, i, j, min_flow)]
            codes = pd.unique(codes)
        codes = codes[:size]
    return np.column_stack(np.divmod(codes, n))


def _without_link(
    net: ODTable, i: Int[np.ndarray, " m"], j: Int[np.ndarray, " m"], min_flow: float
) -> Int[np.ndarray, " kept"]:
    """Codes origin * n + destination of the pairs of two places that are no link."""
    keep = (i != j) & ~is_link(net.flows_of(np.column_stack([i, j])), min_flow)
    return (i * len(net) + j)[keep]


def balanced_pairs(
    net: ODTable,
    size: int | None,
    rng: np.random.Generator,
    *,
    min_flow: float = 0.0,
    origins: Mask | None = None,
    destinations: Mask | None = None,
) -> Int[np.ndarray, "pairs 2"]:
    """`size` links (default all) and equally many non-links, in random order (the 1:1 protocol).

    Raises:
        DataError: there are not as many links or non-links.
    """
    links = sample_links(
        net, size, rng, min_flow=min_flow, origins=origins, destinations=destinations
    )
    others = sample_non_links(
        net, len(links), rng, min_flow=min_flow, origins=origins, destinations=destinations
    )
    return rng.permutation(np.concatenate([links, others]))


def place_folds(
    net: ODTable, kind: Split, folds: int, rng: np.random.Generator, block_km: float = 50.0
) -> Int[np.ndarray, " places"]:
    """Fold number of each place: places shuffled, or whole squares of `block_km` for "block"."""
    if kind != "block":
        return rng.permutation(len(net)) % folds
    x, y = to_plane(net.lon, net.lat, *middle(net.lon, net.lat))
    cells = np.column_stack([np.floor(x / block_km), np.floor(y / block_km)])
    _, block, sizes = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    if len(sizes) < folds:
        raise DataError(
            "blocks are too large to split the places",
            value=block_km,
            expected=f"a block_km with at least {folds} blocks",
        )
    # Largest blocks first, each into the smallest fold; ties and equal sizes at random.
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of, filled = np.empty(len(sizes), dtype=np.int64), np.zeros(folds)
    for b in order:
        fold_of[b] = np.argmin(filled)
        filled[fold_of[b]] += sizes[b]
    return fold_of[block.ravel()]


class PairSplit:
    """Cross-validation of pairs of places, in the manner of scikit-learn's splitters.

    | kind | a test pair shares with the training pairs |
    | --- | --- |
    | "random" | both its places, in other pairs (stratified by link): the usual, leaking protocol |
    | "origin" | its destination only |
    | "node" | nothing: both its places are unseen |
    | "block" | nothing, and its places lie in other squares of `block_km` |

    Pairs with one place on each side of a "node" or "block" split belong to neither part.

    Args:
        kind: see the table.
        n_splits: number of folds.
        block_km: side of the squares in km.
        random_state: seed.
    """

    def __init__(
        self,
        kind: Split = "random",
        n_splits: int = 10,
        block_km: float = 50.0,
        random_state: int | None = None,
    ) -> None:
        self.kind = kind
        self.n_splits = n_splits
        self.block_km = block_km
        self.random_state = random_state

    def get_n_splits(self) -> int:
        """Number of folds."""
        return self.n_splits

    def split(
        self, net: ODTable, pairs: Int[np.ndarray, "m 2"], linked: Bool[np.ndarray, " m"]
    ) -> Iterator[tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]]:
        """Indices into `pairs` of the training and the test part of each fold."""
        if self.kind == "random":
            folds = StratifiedKFold(self.n_splits, shuffle=True, random_state=self.random_state)
            yield from folds.split(pairs, linked)
            return
        rng = np.random.default_rng(self.random_state)
        fold = place_folds(net, self.kind, self.n_splits, rng, self.block_km)[pairs]
        for k in range(self.n_splits):
            inside = fold == k
            if self.kind == "origin":
                train, test = ~inside[:, 0], inside[:, 0]
            else:
                train, test = ~inside.any(axis=1), inside.all(axis=1)
            yield np.flatnonzero(train), np.flatnonzero(test)


def link_metrics(
    linked: Bool[np.ndarray, " m"], probability: Float[np.ndarray, " m"], threshold: float = 0.5
) -> dict[str, float]:
    """Accuracy, precision, recall, F1 at `threshold`, and area under the ROC curve."""
    predicted = probability >= threshold
    precision, recall, f1, _ = precision_recall_fscore_support(
        linked, predicted, average="binary", zero_division=0.0
    )
    return {
        "accuracy": float(accuracy_score(linked, predicted)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "auc": float(roc_auc_score(linked, probability)),
    }


def prevalence_metrics(
    linked: Bool[np.ndarray, " m"],
    probability: Float[np.ndarray, " m"],
    weight: Float[np.ndarray, " m"] | None = None,
) -> dict[str, float]:
    """Measures at the true share of links, where accuracy means nothing.

    Args:
        linked: which pairs are links.
        probability: scores.
        weight: how many pairs of the network each one stands for, where links and non-links were
            sampled at different rates.

    Returns:
        "prevalence" of links; "average_precision"; "precision_at_links": of the best-scored pairs,
        as many as there are links, the share that are links.
    """
    weight = np.ones(len(linked)) if weight is None else weight
    links = float(weight[linked].sum())
    # Non-links first among equal scores, so that a tie is never counted in the model's favour.
    order = np.lexsort([linked, -probability])
    before = np.cumsum(weight[order]) - weight[order]
    counted = np.clip(links - before, 0, weight[order])
    return {
        "prevalence": links / float(weight.sum()),
        "average_precision": float(
            average_precision_score(linked, probability, sample_weight=weight)
        ),
        "precision_at_links": float(counted[linked[order]].sum() / links),
    }


def common_part_of_commuters(
    flow: Float[np.ndarray, " m"], predicted: Float[np.ndarray, " m"]
) -> float:
    """CPC = 2 sum min(F, F') / (sum F + sum F'): 1 for equal flows, 0 for disjoint ones."""
    return float(2 * np.minimum(flow, predicted).sum() / (flow.sum() + predicted.sum()))


def flow_metrics(
    flow: Float[np.ndarray, " m"], predicted: Float[np.ndarray, " m"]
) -> dict[str, float]:
    """ "r2_log1p", share of variance of log(1 + flow) explained, and "cpc" of the flows."""
    return {
        "r2_log1p": float(r2_score(np.log1p(flow), np.log1p(predicted))),
        "cpc": common_part_of_commuters(flow, predicted),
    }


def compare(
    real: ODTable | nx.DiGraph, rebuilt: ODTable | nx.DiGraph, top: int = 100
) -> dict[str, float]:
    """How alike two networks of the same places are.

    Args:
        real, rebuilt: tables, or graphs whose edges carry `flow`.
        top: how many of the largest flows to compare.

    Returns:
        "links_real", "links_rebuilt"; "link_precision", "link_recall", "link_jaccard"; for in and
        out degree and strength the Kolmogorov-Smirnov distance of the distributions, "ks_...";
        "clustering_real", "clustering_rebuilt" (mean local, without direction);
        "top_overlap", share of the `top` largest flows in common; "cpc" of the flows.

    Raises:
        DataError: the places differ, or a network has no links.
    """
    (ids, a), (others, b) = _adjacency(real), _adjacency(rebuilt)
    if set(ids) != set(others):
        raise DataError("the networks have different places", expected="the same place ids")
    place = {name: k for k, name in enumerate(others)}
    order = np.array([place[name] for name in ids])
    b = sparse.csr_array(b[order][:, order])
    if not a.nnz or not b.nnz:
        raise DataError("a network without links", value=(int(a.nnz), int(b.nnz)))
    is_a, is_b = a.astype(bool).astype(float), b.astype(bool).astype(float)
    common = float((is_a * is_b).sum())
    distances = {
        f"ks_{end}_{what}": _ks_distance(x.sum(axis=axis), y.sum(axis=axis))
        for what, (x, y) in {"degree": (is_a, is_b), "strength": (a, b)}.items()
        for end, axis in (("out", 1), ("in", 0))
    }
    smaller = a.minimum(b).sum()
    return {
        "links_real": float(a.nnz),
        "links_rebuilt": float(b.nnz),
        "link_precision": common / b.nnz,
        "link_recall": common / a.nnz,
        "link_jaccard": common / (a.nnz + b.nnz - common),
        **distances,
        "clustering_real": _clustering(is_a),
        "clustering_rebuilt": _clustering(is_b),
        "top_overlap": _top_overlap(a, b, top),
        "cpc": float(2 * smaller / (a.sum() + b.sum())),
    }


def _adjacency(network: ODTable | nx.DiGraph) -> tuple[list[str], sparse.csr_array]:
    if isinstance(network, ODTable):
        return list(network.ids), network.matrix()
    names = list(network)
    matrix = sparse.csr_array(
        nx.to_scipy_sparse_array(network, nodelist=names, weight="flow", dtype=float)
    )
    matrix.eliminate_zeros()
    return [str(name) for name in names], matrix


def _ks_distance(x: Float[np.ndarray, " places"], y: Float[np.ndarray, " places"]) -> float:
    # The method concerns the p value alone, which is not used.
    return float(ks_2samp(x, y, method="asymp").statistic)


def _clustering(directed: sparse.csr_array) -> float:
    """Mean local clustering coefficient of the undirected graph."""
    graph = ((directed + directed.T) > 0).astype(float)
    triangles = (graph @ graph).multiply(graph).sum(axis=1) / 2
    degree = graph.sum(axis=1)
    wedges = degree * (degree - 1) / 2
    return float(np.divide(triangles, wedges, out=np.zeros_like(degree), where=wedges > 0).mean())


def _top_overlap(a: sparse.csr_array, b: sparse.csr_array, top: int) -> float:
    top = min(top, a.nnz, b.nnz)
    best = []
    for matrix in (a.tocoo(), b.tocoo()):
        i, j = matrix.coords
        codes = i.astype(np.int64) * matrix.shape[1] + j
        best.append(codes[np.lexsort([codes, -matrix.data])[:top]])
    return len(np.intersect1d(*best)) / top
