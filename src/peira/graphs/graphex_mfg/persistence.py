"""The periphery when an agent keeps its neighbours.

The paper's limit draws the states of an agent's k neighbours afresh at each step. On a graph the
neighbours stay the same and remember their states, so an agent that has just been infected sits
next to neighbours that are more likely infected than the mean field says. For given policies the
joint law of an agent and its neighbours can still be computed exactly in the limit, because core
agents move independently of each other and do not notice one agent of the periphery.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from peira.graphs.graphex_mfg.dynamics import MeanField, compositions, multinomial
from peira.graphs.graphex_mfg.games import Game, kernel
from peira.graphs.graphex_mfg.learning import Classes


@dataclass(frozen=True)
class _Neighbours:
    """Compositions of k neighbours, and how they arise from those of k - 1.

    Attributes:
        counts: compositions, in lexicographic order.
        dropped: composition that remains without one neighbour, and
        state: that neighbour's state, for each composition of k.
        raised: composition of k after a neighbour in each state joins, for each one of k - 1.
    """

    counts: Int[np.ndarray, "compositions states"]
    dropped: Int[np.ndarray, " compositions"]
    state: Int[np.ndarray, " compositions"]
    raised: Int[np.ndarray, "fewer states"]

    @classmethod
    def of(cls, degree: int, states: int) -> _Neighbours:
        counts, fewer = compositions(degree, states), compositions(degree - 1, states)
        # Lexicographic order is the order of the digits read as one number.
        digits = (degree + 1) ** np.arange(states - 1, -1, -1)
        state = (counts > 0).argmax(1)
        one = np.eye(states, dtype=np.int64)
        dropped = np.searchsorted(fewer @ digits, (counts - one[state]) @ digits)
        raised = np.searchsorted(counts @ digits, (fewer[:, None] + one) @ digits)
        return cls(counts, dropped, state, raised)

    def move(
        self, fewer: Float[np.ndarray, "fewer fewer"], step: Float[np.ndarray, "x y"]
    ) -> Float[np.ndarray, "compositions compositions"]:
        """Transition matrix of k independent neighbours from that of k - 1."""
        matrix = np.zeros((len(self.counts), len(self.counts)))
        for y in range(step.shape[1]):
            matrix[:, self.raised[:, y]] += fewer[self.dropped] * step[self.state, y][:, None]
        return matrix


def keep_neighbours(classes: Classes) -> Classes:
    """The same policies, with mean fields of the periphery for neighbours that stay.

    Exact in the limit of large graphs for given policies. The exploitability is left as it was:
    best responses against remembered neighbourhoods are a partially observed problem.

    Raises:
        ValueError: a core of several classes, whose members a periphery agent cannot tell apart.
    """
    if len(classes.policies) - classes.kstar != 1:
        raise ValueError("neighbours can be kept only where the core is one class")
    fields = _periphery(classes)
    return replace(classes, mean_fields=np.concatenate([fields, classes.mean_fields[-1:]]))


def _periphery(classes: Classes) -> MeanField:
    game, kstar = classes.game, classes.kstar
    states = len(game.states)
    groups = [_Neighbours.of(k, states) for k in range(1, kstar + 1)]
    tables = [kernel(game, group.counts / k) for k, group in enumerate(groups, start=1)]
    start = np.asarray(game.initial, dtype=float)
    joint = [np.outer(start, multinomial(group.counts, start[None])[0]) for group in groups]
    fields = np.empty((kstar, game.horizon + 1, states))
    fields[:, 0] = start
    for t in range(game.horizon):
        step = core_step(game, classes, t)
        move = np.ones((1, 1))
        for k, (group, table) in enumerate(zip(groups, tables, strict=True)):
            move = group.move(move, step)
            own = np.einsum("xu,gxuy->gxy", classes.policies[k, t], table)
            joint[k] = np.einsum("xg,gxy->yg", joint[k], own) @ move
            fields[k, t + 1] = joint[k].sum(1)
    return fields


def core_step(game: Game, classes: Classes, t: int) -> Float[np.ndarray, "x y"]:
    """Transition matrix of one core agent at time t."""
    p = kernel(game, classes.neighbourhoods[-1, t])
    return np.einsum("xu,xuy->xy", classes.policies[-1, t], p)
