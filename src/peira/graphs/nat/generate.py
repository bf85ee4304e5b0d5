"""Simulated temporal networks whose next link is decided by triadic closure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from peira.data.temporal import TemporalEdges

RECENT = 8
"""How many of its latest partners a node may close a wedge with."""


class _Partners:
    """The latest distinct partners of each node, newest last."""

    def __init__(self, nodes: int) -> None:
        self.of: list[list[int]] = [[] for _ in range(nodes)]

    def add(self, u: int, v: int) -> None:
        for a, b in ((u, v), (v, u)):
            if b in self.of[a]:
                self.of[a].remove(b)
            self.of[a].append(b)
            del self.of[a][:-RECENT]

    def wedge(self, rng: np.random.Generator, tries: int = 20) -> tuple[int, int, int] | None:
        """A random path u, middle, v of recent partners whose ends are no recent partners."""
        for _ in range(tries):
            u = int(rng.integers(len(self.of)))
            if not self.of[u]:
                continue
            middle = self.of[u][rng.integers(len(self.of[u]))]
            v = self.of[middle][rng.integers(len(self.of[middle]))]
            if v != u and v not in self.of[u]:
                return u, middle, v
        return None


def triadic_stream(
    rng: np.random.Generator,
    *,
    nodes: int = 300,
    events: int = 20_000,
    close: float = 0.6,
    repeat: float = 0.3,
    forget: int = 0,
) -> TemporalEdges:
    """A stream of closed wedges, repeated links and random links; waiting times Exp(1).

    Each event closes an open wedge of recent partners with probability `close`, repeats one of the
    last 100 events with probability `repeat`, and otherwise (or where nothing is there to close)
    links two nodes at random.

    Args:
        rng: source of randomness.
        nodes, events: sizes.
        close, repeat: probabilities.
        forget: after every `forget` events all nodes start over without partners, so that old
            neighbourhoods say nothing any more; 0 for never.
    """
    partners = _Partners(nodes)
    pairs: list[tuple[int, int]] = []
    for event in range(events):
        if forget and event % forget == 0:
            partners = _Partners(nodes)
        kind = rng.random()
        wedge = partners.wedge(rng) if kind < close else None
        if wedge is not None:
            u, v = wedge[0], wedge[2]
        elif close <= kind < close + repeat and pairs:
            u, v = pairs[-1 - int(rng.integers(min(event, 100)))]
        else:
            u, v = (int(i) for i in rng.choice(nodes, 2, replace=False))
        pairs.append((u, v))
        partners.add(u, v)
    ends = np.array(pairs)
    return TemporalEdges.from_arrays(ends[:, 0], ends[:, 1], rng.exponential(1.0, events).cumsum())


@dataclass(frozen=True)
class ClosureTask:
    """A stream in which every node has a twin with the same history.

    Attributes:
        edges: the stream.
        closing: events that close a wedge.
        decoy: for each event the twin of its destination: a node of the same degree and the same
            last activity, in fact of an isomorphic past.
    """

    edges: TemporalEdges
    closing: Bool[np.ndarray, " events"]
    decoy: Int[np.ndarray, " events"]


def closure_task(
    rng: np.random.Generator, *, nodes: int = 600, events: int = 8_000, close: float = 0.85
) -> ClosureTask:
    """Triadic closure that no single-vector representation can see (Fig. 1 of the paper, exactly).

    The stream is the double cover of a signed network: node x stands for twins x+ and x-, a link
    {x, y} of sign s for the two simultaneous events (x+, y^s) and (x-, y^-s). Random links get
    random signs, a closed wedge the product of the signs along it, and no link ever repeats.
    Exchanging all twins maps the stream onto itself, so whatever a model computes for x+ from its
    own past it computes for x- too; only what source and candidate share tells them apart.

    Args:
        rng: source of randomness.
        nodes: number of nodes, twins counted; even.
        events: number of events; even, and few enough that links need not repeat.
        close: share of links that close a wedge, where one is open.
    """
    half, links = nodes // 2, events // 2
    if links > half * (half - 1) // 4:
        raise ValueError(f"{events} events without repeats do not fit {nodes} nodes")
    partners = _Partners(half)
    sign: dict[tuple[int, int], int] = {}
    drawn: list[tuple[int, int, int, bool]] = []
    while len(drawn) < links:
        wedge = partners.wedge(rng) if rng.random() < close else None
        if wedge is not None:
            u, middle, v = wedge
            s = sign[u, middle] * sign[middle, v]
        else:
            u, v = (int(i) for i in rng.choice(half, 2, replace=False))
            s = 1 if rng.random() < 0.5 else -1
        if (u, v) in sign:
            continue
        sign[u, v] = sign[v, u] = s
        partners.add(u, v)
        drawn.append((u, v, s, wedge is not None))
    u, v, s, closing = (np.array(column) for column in zip(*drawn, strict=True))
    crossed = s < 0
    src = np.stack([2 * u, 2 * u + 1], 1).ravel()
    dst = np.stack([2 * v + crossed, 2 * v + 1 - crossed], 1).ravel()
    t = rng.exponential(1.0, links).cumsum().repeat(2)
    edges = TemporalEdges(
        src, dst, t, np.arange(nodes), np.zeros((events, 0), np.float32),
        np.zeros((nodes, 0), np.float32),
    )  # fmt: skip
    return ClosureTask(edges, closing.repeat(2), dst ^ 1)
