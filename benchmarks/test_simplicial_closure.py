"""Closure counts against pure-Python sets, what both have in common against XGI.

The inputs are drawn: 20,000 groups of 2 to 5 among 300 nodes by the affiliation process, of the
size of the contact data sets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import xgi

from peira.data.hypergraph import TemporalHypergraph
from peira.graphs.simplicial_closure.closures import closure_table
from peira.graphs.simplicial_closure.complexes import OrientedComplex
from peira.graphs.simplicial_closure.structure import affiliation_process

Benchmark = Callable[..., Any]


@cache
def teams() -> TemporalHypergraph:
    return affiliation_process(300, 20_000, np.random.default_rng(0))


@cache
def node_sets() -> tuple[tuple[int, ...], ...]:
    h = teams()
    return tuple(tuple(sorted(h.simplex(s).tolist())) for s in range(len(h)))


@pytest.mark.benchmark(group="open_triangles")
def test_open_triangles_peira(benchmark: Benchmark) -> None:
    h = teams()
    assert benchmark(lambda: _count_open(_again(h))) == _open_with_sets(node_sets())


@pytest.mark.benchmark(group="open_triangles")
def test_open_triangles_sets(benchmark: Benchmark) -> None:
    sets = node_sets()
    benchmark.pedantic(_open_with_sets, args=(sets,), rounds=3)


@pytest.mark.benchmark(group="closures3")
def test_closures3_peira(benchmark: Benchmark) -> None:
    h = teams()

    def count() -> dict[str, tuple[int, int]]:
        old, new = _again(h).split(80)
        return {r.type: (r.n, r.c) for r in closure_table(old, new, 3).itertuples()}

    assert benchmark(count) == _closures_with_sets(h)


@pytest.mark.benchmark(group="closures3")
def test_closures3_sets(benchmark: Benchmark) -> None:
    h = teams()
    node_sets()
    benchmark.pedantic(_closures_with_sets, args=(h,), rounds=3)


@pytest.mark.benchmark(group="projection")
def test_projection_peira(benchmark: Benchmark) -> None:
    h = teams()
    benchmark(lambda: _again(h).projection)


@pytest.mark.benchmark(group="projection")
def test_projection_xgi(benchmark: Benchmark) -> None:
    built = xgi.Hypergraph([list(s) for s in node_sets()])
    weights = benchmark(lambda: xgi.adjacency_matrix(built, sparse=True, weighted=True))
    assert weights.sum() == teams().projection.sum()


@pytest.mark.benchmark(group="read_events")
def test_read_events_peira(benchmark: Benchmark) -> None:
    events = list(enumerate(node_sets()))
    benchmark(lambda: TemporalHypergraph.from_events(events))


@pytest.mark.benchmark(group="read_events")
def test_read_events_xgi(benchmark: Benchmark) -> None:
    sets = [list(s) for s in node_sets()]
    benchmark.pedantic(lambda: xgi.Hypergraph(sets), rounds=5)


@pytest.mark.benchmark(group="distinct")
def test_distinct_peira(benchmark: Benchmark) -> None:
    h = teams()
    benchmark(lambda: _again(h).distinct)


@pytest.mark.benchmark(group="distinct")
def test_distinct_xgi(benchmark: Benchmark) -> None:
    built = xgi.Hypergraph([list(s) for s in node_sets()])
    repeats = benchmark.pedantic(built.edges.duplicates, rounds=5)
    assert len(built.edges) - len(repeats) == len(teams().distinct[0])


def _again(h: TemporalHypergraph) -> TemporalHypergraph:
    """The same hypergraph without what it has already computed."""
    return TemporalHypergraph(h.sizes, h.nodes, h.times, h.ids, h.labels, h.name)


def _count_open(h: TemporalHypergraph) -> int:
    blocks = OrientedComplex.of(h).triangles()
    return sum(int((block.face_counts == 0).sum()) for block in blocks)


def _neighbours(sets: tuple[tuple[int, ...], ...]) -> dict[int, set[int]]:
    near: dict[int, set[int]] = {}
    for members in sets:
        for i in members:
            near.setdefault(i, set()).update(members)
    for i, others in near.items():
        others.discard(i)
    return near


def _triples(sets: tuple[tuple[int, ...], ...]) -> set[tuple[int, int, int]]:
    return {t for members in set(sets) for t in combinations(members, 3)}


def _triangles(near: dict[int, set[int]]) -> list[tuple[int, int, int]]:
    rank = {i: (len(others), i) for i, others in near.items()}
    above = {i: {j for j in others if rank[j] > rank[i]} for i, others in near.items()}
    return [(i, j, k) for i in near for j in above[i] for k in above[i] & above[j]]


def _open_with_sets(sets: tuple[tuple[int, ...], ...]) -> int:
    closed = _triples(sets)
    return sum(tuple(sorted(t)) not in closed for t in _triangles(_neighbours(sets)))


def _closures_with_sets(h: TemporalHypergraph) -> dict[str, tuple[int, int]]:
    sets, cut = node_sets(), h.cut(80)
    old = tuple(s for s, t in zip(sets, h.times, strict=True) if t <= cut)
    new = tuple(s for s, t in zip(sets, h.times, strict=True) if t > cut)
    near = _neighbours(old)
    weight = Counter(p for members in old for p in combinations(members, 2))
    before = _triples(old)

    def kind(i: int, j: int, k: int) -> str:
        pairs = ((i, j), (j, k), (i, k))
        return "".join(sorted(str(min(weight[min(p), max(p)], 2)) for p in pairs))

    opened = _open_types(near, weight, before, kind)
    closed = Counter(kind(*t) for t in _triples(new) - before if all(i in near for i in t))
    return {name: (opened[name], closed[name]) for name in sorted(opened)}


def _open_types(
    near: dict[int, set[int]],
    weight: Counter[tuple[int, int]],
    before: set[tuple[int, int, int]],
    kind: Callable[[int, int, int], str],
) -> dict[str, int]:
    """Triangles one by one, types with missing ties by inclusion and exclusion."""
    names = [a + b + c for a in "012" for b in "012" for c in "012" if a <= b <= c]
    opened = dict.fromkeys(names, 0)
    every = dict.fromkeys(names, 0)
    for t in _triangles(near):
        name = kind(*t)
        every[name] += 1
        opened[name] += tuple(sorted(t)) not in before
    strong = {i: sum(weight[min(i, j), max(i, j)] > 1 for j in js) for i, js in near.items()}
    weak = {i: len(js) - strong[i] for i, js in near.items()}
    opened["011"] = sum(w * (w - 1) // 2 for w in weak.values())
    opened["022"] = sum(s * (s - 1) // 2 for s in strong.values())
    opened["012"] = sum(weak[i] * strong[i] for i in near)
    for name, count in every.items():
        if "0" not in name:
            for pair in combinations(name, 2):
                opened["0" + "".join(pair)] -= count
    n = len(near)
    opened["001"], opened["002"] = (sum(d.values()) // 2 * (n - 2) for d in (weak, strong))
    for name in names:
        if name.count("0") < 2:
            count = opened[name] if "0" in name else every[name]
            for tie in name.replace("0", ""):
                opened["00" + tie] -= count
    opened["000"] = n * (n - 1) * (n - 2) // 6 - sum(every.values())
    opened["000"] -= sum(opened[name] for name in names if name.count("0") in (1, 2))
    return opened
