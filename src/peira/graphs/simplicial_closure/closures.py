"""How often configurations of three and four nodes close into a simplex (Benson et al., Fig. 6)."""

from __future__ import annotations

from itertools import combinations, combinations_with_replacement

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from peira.data.hypergraph import TemporalHypergraph
from peira.graphs.simplicial_closure.complexes import OrientedComplex

TYPES3 = tuple("".join(t) for t in combinations_with_replacement("012", 3))
"""The 10 types of a triple: tie of each pair, 0 none, 1 in one simplex, 2 in several."""

TYPES4 = (
    *(f"{edges}:{face}" for edges in (3, 4) for face in "012"),
    *(f"5:{''.join(t)}" for t in combinations_with_replacement("012", 2)),
    *(f"6:{''.join(t)}" for t in combinations_with_replacement("012", 4)),
)
"""The 27 types of four nodes with a triangle: number of edges, then the class of each triangle.

A triangle is 0 if open, 1 if inside one simplex, 2 if inside several.
"""

_PAIRS4 = tuple(combinations(range(4), 2))
_FACES4 = ((0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3))


def closure_table(old: TemporalHypergraph, new: TemporalHypergraph, k: int = 3) -> pd.DataFrame:
    """Number of open configurations of each type in `old`, and how many close in `new`.

    A configuration is a set of k nodes, all of which occur in `old`, that is inside no simplex of
    `old`; four nodes must hold at least one triangle. It closes if one simplex of `new` holds it.

    Args:
        old, new: two windows of one hypergraph (`h.split(80)`).
        k: 3 or 4.

    Returns:
        Columns type, edges, n (open in old), c (closed in new), p = c / n (NaN where n is 0).

    Raises:
        ValueError: if k is neither 3 nor 4.

    Source: Benson et al. 2018, section "Simplicial closure"; types as in its Fig. 6.
    """
    if k not in (3, 4):
        raise ValueError(f"k must be 3 or 4, got {k}")
    before, after = OrientedComplex.of(old), OrientedComplex.of(new)
    if k == 3:
        types, opened, closed = TYPES3, _open_types3(before), _closed_types3(before, after)
        edges = [sum(digit != "0" for digit in t) for t in types]
    else:
        types, opened, closed = TYPES4, _open_types4(before), _closed_types4(before, after)
        edges = [int(t[0]) for t in types]
    n = np.array([opened[t] for t in types], dtype=np.int64)
    c = np.array([closed[t] for t in types], dtype=np.int64)
    with np.errstate(invalid="ignore"):
        p = np.where(n > 0, c / np.maximum(n, 1), np.nan)
    return pd.DataFrame({"type": types, "edges": edges, "n": n, "c": c, "p": p})


def _open_types3(old: OrientedComplex) -> dict[str, int]:
    every, unclosed = np.zeros(27, dtype=np.int64), np.zeros(27, dtype=np.int64)
    for block in old.triangles():
        codes = _codes(old.weights[block.edges])
        every += np.bincount(codes, minlength=27)
        unclosed += np.bincount(codes[block.face_counts == 0], minlength=27)
    triangles = {t: int(every[int(t, 3)]) for t in TYPES3 if "0" not in t}
    counts = {t: int(unclosed[int(t, 3)]) for t in triangles}
    counts |= _wedges(old, triangles)
    counts |= _lone_edges(old, triangles, counts)
    n = int(old.present.sum())
    rest = sum(triangles.values()) + sum(counts[t] for t in TYPES3 if t[0] == "0" and t != "000")
    counts["000"] = n * (n - 1) * (n - 2) // 6 - rest
    return counts


def _wedges(old: OrientedComplex, triangles: dict[str, int]) -> dict[str, int]:
    """Pairs of edges at a node, less those whose third edge is there as well."""
    strong = _degrees(old, old.weights > 1)
    weak = old.degree - strong
    counts = {
        "011": int((weak * (weak - 1) // 2).sum()),
        "012": int((weak * strong).sum()),
        "022": int((strong * (strong - 1) // 2).sum()),
    }
    for triangle, count in triangles.items():
        for pair in combinations(triangle, 2):
            counts["0" + "".join(pair)] -= count
    return counts


def _lone_edges(
    old: OrientedComplex, triangles: dict[str, int], wedges: dict[str, int]
) -> dict[str, int]:
    """Edges with a third node, less those where the third node is tied to an end."""
    n = int(old.present.sum())
    strong = int((old.weights > 1).sum())
    edges = {"1": len(old.weights) - strong, "2": strong}
    counts = {f"00{tie}": edges[tie] * (n - 2) for tie in "12"}
    for larger in (triangles, {t: wedges[t] for t in ("011", "012", "022")}):
        for name, count in larger.items():
            for tie in name.replace("0", ""):
                counts[f"00{tie}"] -= count
    return counts


def _closed_types3(old: OrientedComplex, new: OrientedComplex) -> dict[str, int]:
    triples = new.closed_triples()
    triples = triples[_all_present(old, triples)]
    triples = triples[~old.holds(triples)]
    ties = np.column_stack(
        [old.edge_weights(triples[:, a], triples[:, b]) for a, b in combinations(range(3), 2)]
    )
    counts = np.bincount(_codes(ties), minlength=27)
    return {t: int(counts[int(t, 3)]) for t in TYPES3}


def _open_types4(old: OrientedComplex) -> dict[str, int]:
    cliques, unclosed = old.tetrahedron_types()
    cliques4 = {t: int(cliques[int(t[2:], 3)]) for t in TYPES4 if t[0] == "6"}
    counts = {t: int(unclosed[int(t[2:], 3)]) for t in cliques4}
    on_edge, ties, total = _triangle_tallies(old)
    five = _pairs_of_triangles(on_edge, cliques4)
    four, three = {}, {}
    n = int(old.present.sum())
    for w in "012":
        in_clique = sum(count * t[2:].count(w) for t, count in cliques4.items())
        in_five = sum(count * t[2:].count(w) for t, count in five.items())
        four[f"4:{w}"] = int(ties[int(w)]) - 2 * in_five - 3 * in_clique
        rest = in_clique + in_five + four[f"4:{w}"]
        three[f"3:{w}"] = int(total[int(w)]) * (n - 3) - rest
    return counts | five | four | three


def _triangle_tallies(
    old: OrientedComplex,
) -> tuple[Int[np.ndarray, "edges 3"], Int[np.ndarray, " 3"], Int[np.ndarray, " 3"]]:
    """By class of triangle: how many on each edge, ties to further nodes, how many in all."""
    on_edge = np.zeros((len(old.heads), 3), dtype=np.int64)
    ties, total = np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)
    for block in old.triangles():
        kind = np.minimum(block.face_counts, 2)
        outward = old.degree[block.ranks].sum(axis=1) - 6
        for w in range(3):
            mine = kind == w
            on_edge[:, w] += np.bincount(block.edges[mine].ravel(), minlength=len(old.heads))
            ties[w] += outward[mine].sum()
            total[w] += mine.sum()
    return on_edge, ties, total


def _pairs_of_triangles(
    on_edge: Int[np.ndarray, "edges 3"], cliques4: dict[str, int]
) -> dict[str, int]:
    """Two triangles on one edge whose far ends are not tied (five edges)."""
    counts = {}
    for a, b in combinations_with_replacement(range(3), 2):
        first, second = on_edge[:, a], on_edge[:, b]
        pairs = first * (first - 1) // 2 if a == b else first * second
        counts[f"5:{a}{b}"] = int(pairs.sum())
    for name, count in cliques4.items():
        for pair in combinations(name[2:], 2):
            counts["5:" + "".join(pair)] -= count
    return counts


def _closed_types4(old: OrientedComplex, new: OrientedComplex) -> dict[str, int]:
    counts = dict.fromkeys(TYPES4, 0)
    for sets, _ in new.tetrahedra(closed=True):
        sets = sets[_all_present(old, sets)]
        tied = np.column_stack([old.edge_weights(sets[:, a], sets[:, b]) > 0 for a, b in _PAIRS4])
        edges = tied.sum(axis=1)
        pair = {p: tied[:, column] for column, p in enumerate(_PAIRS4)}
        triangle = np.column_stack([pair[a, b] & pair[a, c] & pair[b, c] for a, b, c in _FACES4])
        faces = np.column_stack([old.triple_counts(sets[:, list(face)]) for face in _FACES4])
        keep = triangle.any(axis=1)
        whole = keep & (faces > 0).all(axis=1)
        keep[whole] = ~old.holds(sets[whole])
        names, number = np.unique(
            _names4(edges[keep], triangle[keep], faces[keep]), return_counts=True
        )
        for name, count in zip(names.tolist(), number.tolist(), strict=True):
            counts[name] += count
    return counts


def _names4(
    edges: Int[np.ndarray, " m"],
    triangle: Bool[np.ndarray, "m 4"],
    faces: Int[np.ndarray, "m 4"],
) -> np.ndarray:
    """Type of each four nodes; only faces that are triangles are named."""
    kinds = np.where(triangle, np.minimum(faces, 2), -1)
    kinds.sort(axis=1)
    coded, inverse = np.unique(np.column_stack([edges, kinds]), axis=0, return_inverse=True)
    names = [
        f"{row[0]}:" + "".join(str(kind) for kind in row[1:] if kind >= 0) for row in coded.tolist()
    ]
    return np.array(names, dtype="U8")[inverse.ravel()]


def _codes(ties: Int[np.ndarray, "m 3"]) -> Int[np.ndarray, " m"]:
    """Base-3 number of the ascending classes min(weight, 2)."""
    classes = np.sort(np.minimum(ties, 2), axis=1)
    return classes @ np.array([9, 3, 1])


def _degrees(old: OrientedComplex, edge: Bool[np.ndarray, " edges"]) -> Int[np.ndarray, " n"]:
    ends = np.concatenate([old.tails[edge], old.heads[edge]])
    return np.bincount(ends, minlength=len(old.order))


def _all_present(old: OrientedComplex, sets: Int[np.ndarray, "m k"]) -> Bool[np.ndarray, " m"]:
    return old.present[old.rank[sets]].all(axis=1)
