"""What the hybrid graphex approach is compared with.

Other limits: an L^p graphon, whose neighbourhoods are not normalised by the agent's own degree
(Fabian, Cui and Koeppl 2023), and the heterogeneous mean field of epidemiology (Pastor-Satorras and
Vespignani 2001). The plain mean field game, which is also the graphon game of an Erdos-Renyi graph,
is the core alone: `propagate(..., kstar=0)`.

Other learning rules for the core: fixed-point iteration, fictitious play, Boltzmann iteration.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from peira.graphs.graphex_mfg.dynamics import (
    MeanField,
    Policy,
    Reward,
    compositions,
    greedy,
    multinomial,
    optimal_values,
    softmax,
)
from peira.graphs.graphex_mfg.games import Game, check_game, kernel
from peira.graphs.graphex_mfg.graphex import Graphex
from peira.graphs.graphex_mfg.learning import CoreSystem


class LpGraphon:
    """L^p graphon W = s s' of a degree sequence, with s = degree / mean degree.

    An agent sees G = s sum_d p_d s_d mu_d, cut off at 1 in each state: its neighbours are counted
    relative to the average degree and not to its own. The power-law L^p graphon exists only for
    tail exponents above 2; taking s from the degrees themselves serves any network.

    It has the members of `Graphex` that `solve` and `propagate` need; use it with `kstar=0`.

    Args:
        degrees: of the nodes of a graph.
        classes: number of classes, each with an equal share of the nodes where degrees allow.
    """

    def __init__(self, degrees: Int[np.ndarray, " nodes"], classes: int = 25) -> None:
        ranks = np.sort(degrees)
        parts = [part for part in np.array_split(ranks, classes) if len(part)]
        mean = np.array([part.mean() for part in parts])
        self._degree, group = np.unique(mean, return_inverse=True)
        self._share = np.bincount(group, [len(part) for part in parts]) / len(degrees)
        self._s = self._degree / degrees.mean()
        self._mean_degree = float(degrees.mean())

    @property
    def edge_mass(self) -> float:
        """Integral of W."""
        return float((self._share @ self._s) ** 2)

    def neighbour_matrix(self) -> Float[np.ndarray, "classes classes"]:
        """s_i s_j times the share of class j; rows do not sum to one."""
        return np.outer(self._s, self._share * self._s)

    def light_neighbours(self) -> Float[np.ndarray, " classes"]:
        """Classes in proportion to their edge ends."""
        return self._share * self._s / (self._share @ self._s)

    def core_shares(self, kstar: int, nu: float | None = None) -> Float[np.ndarray, " classes"]:
        """Share of the nodes in each class; all of them are core."""
        return self._share

    def core_class(
        self, degrees: Int[np.ndarray, " nodes"], nu: float
    ) -> Int[np.ndarray, " nodes"]:
        """Class of the nearest mean degree."""
        return np.searchsorted(0.5 * (self._degree[1:] + self._degree[:-1]), degrees)

    def degree_law(self, largest: int, nu: float | None = None) -> Float[np.ndarray, " degrees"]:
        """Share of the classes with mean degree 1, ..., `largest` (rounded)."""
        rounded = np.round(self._degree).astype(int)
        return np.bincount(rounded, self._share, largest + 1)[1 : largest + 1]


def heterogeneous_mean_field(
    game: Game,
    degrees: Int[np.ndarray, " nodes"],
    kstar: int = 10,
    policies: Policy | None = None,
) -> MeanField:
    """Mean fields of degree classes 1, ..., kstar and of all larger degrees.

    As the periphery of the hybrid, but neighbours are drawn from all classes in proportion to
    their edge ends, so that the periphery acts back.

    Args:
        degrees: of the nodes of a graph.
        policies: of the kstar + 1 classes; None plays uniformly.
    """
    check_game(game)
    states, actions = len(game.states), len(game.actions)
    if policies is None:
        policies = np.full((kstar + 1, game.horizon, states, actions), 1.0 / actions)
    group = np.minimum(degrees, kstar + 1) - 1
    ends = np.bincount(group, degrees, kstar + 1) / degrees.sum()
    counts = [compositions(k, states) for k in range(1, kstar + 1)]
    tables = [kernel(game, c / c[0].sum()) for c in counts]
    mu = np.empty((kstar + 1, game.horizon + 1, states))
    mu[:, 0] = game.initial
    for t in range(game.horizon):
        g = ends @ mu[:, t]
        p = [
            np.tensordot(multinomial(c, g[None])[0], k, 1)
            for c, k in zip(counts, tables, strict=True)
        ]
        p.append(kernel(game, g))
        mu[:, t + 1] = np.einsum("cx,cxu,cxuy->cy", mu[:, t], policies[:, t], np.stack(p))
    return mu


Learned = tuple[Policy, Float[np.ndarray, "iterations classes"]]


def fixed_point_iteration(game: Game, graphex: Graphex, iterations: int = 300) -> Learned:
    """Best response to the mean field of the last best response."""
    return _iterate(game, graphex, iterations, greedy)


def boltzmann_iteration(
    game: Game, graphex: Graphex, iterations: int = 300, temperature: float = 1.0
) -> Learned:
    """softmax(Q* / temperature) of the last mean field (Cui and Koeppl 2021)."""
    return _iterate(game, graphex, iterations, lambda q: softmax(q / temperature))


def _iterate(
    game: Game, graphex: Graphex, iterations: int, choose: Callable[[Reward], Policy]
) -> Learned:
    core = CoreSystem(game, graphex)
    policy, gains = core.uniform(), []
    for _ in range(iterations):
        gains.append(core.exploitability(policy))
        _, _, p, r = core.respond(policy)
        policy = choose(optimal_values(p, r))
    gains.append(core.exploitability(policy))
    return policy, np.array(gains)


def fictitious_play(game: Game, graphex: Graphex, iterations: int = 300) -> Learned:
    """Best responses to the average play, averaged by how often each visits a state."""
    core = CoreSystem(game, graphex)
    policy, gains = core.uniform(), []
    visited = core.respond(policy)[0][:, :-1, :, None]
    played = visited * policy
    for _ in range(iterations):
        gains.append(core.exploitability(policy))
        _, _, p, r = core.respond(policy)
        best = greedy(optimal_values(p, r))
        played = played + core.respond(best)[0][:, :-1, :, None] * best
        total = played.sum(-1, keepdims=True)
        uniform = 1.0 / played.shape[-1]
        policy = np.where(total > 0, played / np.where(total > 0, total, 1.0), uniform)
    gains.append(core.exploitability(policy))
    return policy, np.array(gains)
