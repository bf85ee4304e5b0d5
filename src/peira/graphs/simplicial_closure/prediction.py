"""Higher-order link prediction: which open triangles close, and how well scores say so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from peira.data.errors import DataError
from peira.data.hypergraph import TemporalHypergraph
from peira.graphs.simplicial_closure.complexes import CHUNK, OrientedComplex
from peira.graphs.simplicial_closure.scores import (
    SUPERVISED,
    Score,
    features,
    generalized_mean,
    named,
    power_mean,
)
from peira.graphs.simplicial_closure.windows import OpenTriangles, Window

Labels = Literal["correct", "published"]

TRAIN_SHARE = 0.75
"""Part of a window that the supervised score learns from; of the first 80% it is the first 60%."""


def closes(
    triangles: OpenTriangles, new: OrientedComplex, labels: Labels = "correct"
) -> Bool[np.ndarray, " m"]:
    """Whether each open triangle is inside one simplex of the later window.

    `labels="published"` gives what the released code computes: it looks the nodes up in the order
    (lowest degree first, the others ascending) in a set of ascending triples, and so finds a
    closure only where the node of lowest degree has the lowest number, about a third of them.
    """
    closed = new.holds(triangles.nodes)
    if labels == "published":
        closed &= triangles.nodes[:, 0] < triangles.nodes[:, 1]
    return closed


def evaluate(
    h: TemporalHypergraph,
    scores: str | Score | Iterable[str | Score] = "harmonic",
    split: float = 80,
    labels: Labels = "correct",
) -> pd.DataFrame:
    """Average precision of scores that see the first `split` percent of time, on the rest.

    Args:
        h: the whole hypergraph.
        scores: names (`peira.graphs.SCORES`, `supervised`, `mean:P`) or functions
            `(window, triangles) -> numbers`.
        split: percentile of the timestamps that ends the known part.
        labels: `correct`, or `published` for the protocol of the released code (its labels, and
            means added up in the order of the nodes). See `closes`.

    Returns:
        One row per score: score, average_precision, improvement (average precision over the rate
        of positives, which is what a random ranking expects), rate, positives, triangles.

    Raises:
        DataError: if no open triangle closes (average precision is undefined) or the hypergraph
            cannot be split.
        PeiraError: if a score is unknown.

    Source: Benson et al. 2018, section "Higher-order link prediction", Table 2.
    """
    if labels not in ("correct", "published"):
        raise DataError("unknown label protocol", value=labels, expected="correct or published")
    wanted = [scores] if isinstance(scores, str) or callable(scores) else list(scores)
    old, new = h.split(split)
    window, later = Window(old), OrientedComplex.of(new)
    functions = [_ready(score, h, split, labels) for score in wanted]
    truth, values = [np.empty(0, dtype=bool)], [np.empty((0, len(wanted)))]
    for block in window.open_triangles():
        truth.append(closes(block, later, labels))
        values.append(np.column_stack([function(window, block) for function in functions]))
    positive = np.concatenate(truth)
    if not positive.any():
        raise DataError(
            f"none of the {len(positive):,} open triangles of {h.name} closes after the split",
            value=0,
            expected="at least one positive",
        )
    table = np.concatenate(values)
    precision = [average_precision_score(positive, column) for column in table.T]
    rate = float(positive.mean())
    return pd.DataFrame(
        {
            "score": [score if isinstance(score, str) else _title(score) for score in wanted],
            "average_precision": precision,
            "improvement": np.array(precision) / rate,
            "rate": rate,
            "positives": int(positive.sum()),
            "triangles": len(positive),
        }
    )


def rank(h: TemporalHypergraph, score: str | Score = "harmonic", top: int = 20) -> pd.DataFrame:
    """The open triangles of all of `h` that are most likely to become one simplex next.

    Ties are broken by node number. Open triangles are scored in blocks, so their number is not
    limited by memory.

    Returns:
        Columns rank (from 1), score, first, second, third (labels, or official ids).

    Raises:
        DataError: if there is no open triangle, or `top` is below 1.
        PeiraError: if the score is unknown.
    """
    if top < 1:
        raise DataError("the number of triples is too small", value=top, expected="at least 1")
    window = Window(h)
    function = _supervised(h, TRAIN_SHARE * 100) if score == SUPERVISED else named(score)
    nodes, values = np.empty((0, 3), dtype=np.int64), np.empty(0)
    for block in window.open_triangles():
        nodes = np.concatenate([nodes, np.sort(block.nodes, axis=1)])
        values = np.concatenate([values, function(window, block)])
        best = np.lexsort((*nodes.T[::-1], -values))[:top]
        nodes, values = nodes[best], values[best]
    if len(values) == 0:
        raise DataError(f"{h.name} has no open triangle", expected="three nodes tied pairwise")
    columns = {name: [h.label(i) for i in nodes[:, c]] for c, name in enumerate(_NAMES)}
    return pd.DataFrame({"rank": np.arange(1, len(values) + 1), "score": values, **columns})


_NAMES = ("first", "second", "third")


def evaluate_tetrahedra(h: TemporalHypergraph, p: float = 1.0, split: float = 80) -> pd.DataFrame:
    """Average precision for four nodes, with the generalised mean M_p over faces and over edges.

    Candidates are the sets of four nodes with all six ties that no simplex of the known part
    holds; a positive is inside one later simplex.

    Returns:
        One row per score (faces, edges), columns as in `evaluate`.

    Raises:
        DataError: if no candidate closes or the hypergraph cannot be split.
    """
    old, new = h.split(split)
    known, later = OrientedComplex.of(old), OrientedComplex.of(new)
    truth, values = [np.empty(0, dtype=bool)], [np.empty((0, 2))]
    for nodes, faces in known.tetrahedra(closed=False):
        truth.append(later.holds(nodes))
        edges = np.column_stack([known.edge_weights(nodes[:, a], nodes[:, b]) for a, b in _PAIRS])
        values.append(np.column_stack([_sorted_mean(faces, p), _sorted_mean(edges, p)]))
    positive = np.concatenate(truth)
    if not positive.any():
        raise DataError(
            f"none of the {len(positive):,} open tetrahedra of {h.name} closes after the split",
            value=0,
            expected="at least one positive",
        )
    table, rate = np.concatenate(values), float(positive.mean())
    precision = [average_precision_score(positive, column) for column in table.T]
    return pd.DataFrame(
        {
            "score": ["faces", "edges"],
            "average_precision": precision,
            "improvement": np.array(precision) / rate,
            "rate": rate,
            "positives": int(positive.sum()),
            "triangles": len(positive),
        }
    )


_PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


def _sorted_mean(counts: Int[np.ndarray, "m k"], p: float) -> Float[np.ndarray, " m"]:
    return power_mean(np.sort(counts.astype(np.float64), axis=1), p)


def _ready(score: str | Score, h: TemporalHypergraph, split: float, labels: Labels) -> Score:
    if score == SUPERVISED:
        return _supervised(h, TRAIN_SHARE * split, split, labels)
    function = named(score)
    is_mean = isinstance(function, partial) and function.func is generalized_mean
    return partial(function, sort=False) if is_mean and labels == "published" else function


def _supervised(
    h: TemporalHypergraph, first: float, until: float = 100, labels: Labels = "correct"
) -> Score:
    """Logistic regression on open triangles of [0, first], labelled by (first, until]."""
    old, new = h.split(first, until)
    window, later = Window(old), OrientedComplex.of(new)
    rows, truth = [np.empty((0, 26))], [np.empty(0, dtype=bool)]
    for block in window.open_triangles():
        rows.append(features(window, block))
        truth.append(closes(block, later, labels))
    positive = np.concatenate(truth)
    if positive.all() or not positive.any():
        raise DataError(
            f"the supervised score of {h.name} has only one class to learn from",
            value=f"{int(positive.sum())} of {len(positive)} open triangles closed",
            expected="some that close and some that do not",
        )
    model = LogisticRegression(C=1.0, solver="liblinear", max_iter=1000)
    model.fit(np.concatenate(rows), positive)

    def score(window: Window, triangles: OpenTriangles) -> Float[np.ndarray, " m"]:
        return model.predict_proba(features(window, triangles))[:, 1]

    return score


def _title(score: Score) -> str:
    return getattr(score, "__name__", type(score).__name__)


def open_triangles(h: TemporalHypergraph, chunk: int = CHUNK) -> Iterator[Int[np.ndarray, "m 3"]]:
    """Open triangles of `h` in blocks of about `chunk`, nodes ascending in each."""
    for block in Window(h).open_triangles(chunk):
        yield np.sort(block.nodes, axis=1)
