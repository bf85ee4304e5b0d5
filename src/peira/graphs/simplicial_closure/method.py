"""Closure statistics and higher-order link prediction of a temporal hypergraph, in one place."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pandas as pd
from jaxtyping import Int

from peira.data import hypergraph
from peira.graphs.simplicial_closure.closures import closure_table
from peira.graphs.simplicial_closure.prediction import (
    evaluate,
    evaluate_tetrahedra,
    open_triangles,
    rank,
)
from peira.graphs.simplicial_closure.scores import SCORES
from peira.graphs.simplicial_closure.significance import compare_types
from peira.graphs.simplicial_closure.structure import affiliation_process, random_triples

__all__ = [
    "SCORES",
    "TemporalHypergraph",
    "affiliation_process",
    "closure_table",
    "compare_types",
    "evaluate",
    "evaluate_tetrahedra",
    "open_triangles",
    "random_triples",
    "rank",
]


class TemporalHypergraph(hypergraph.TemporalHypergraph):
    """A temporal hypergraph that can be asked for its closures and its open triangles.

    Built by `from_files(stem)` or `from_events([(time, members), ...])`; see
    `peira.data.hypergraph.TemporalHypergraph` for the formats, the arrays and the errors.
    """

    def closures(self, k: int = 3, split: float = 80) -> pd.DataFrame:
        """How many configurations of k nodes are open until the split, and how many close after.

        Args:
            k: 3 (10 types) or 4 (27 types).
            split: percentile of the timestamps that ends the known part.

        Returns:
            Columns type, edges, n, c, p; see `closures.closure_table`.

        Raises:
            ValueError: if k is neither 3 nor 4.
            DataError: if the hypergraph cannot be split.
        """
        old, new = self.split(split)
        return closure_table(old, new, k)

    def open_triangles(self, until: float | None = None) -> Int[np.ndarray, "m 3"]:
        """Triples that are tied pairwise but are in no simplex, at or before a time.

        Args:
            until: last time that counts; all of the data by default.

        Returns:
            Node numbers, ascending in each row and from row to row; `label(node)` names them.
            The function `open_triangles` gives the same in blocks where there are millions.
        """
        window = self if until is None else self.until(until)
        blocks = list(chain([np.empty((0, 3), np.int64)], open_triangles(window)))
        triangles = np.concatenate(blocks)
        return triangles[np.lexsort(triangles.T[::-1])]
