"""Graphex mean field games and the hybrid learning of their equilibria.

Fabian, Cui, Koeppl: Learning Mean Field Games on Sparse Graphs: A Hybrid Graphex Approach,
ICLR 2024. Core agents have so many neighbours that they see the core's mean field itself;
periphery agents of degree k see k neighbours from the core, drawn afresh at each step. Periphery
agents do not act back on the core, so the core's equilibrium is learned first and each degree
afterwards, against frozen neighbourhoods.

The limit holds for sequences of graphs whose average degree diverges (tail exponent between 1 and
2), for dynamics that are continuous in the neighbourhood.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from peira.graphs.graphex_mfg.dynamics import (
    Kernel,
    MeanField,
    Policy,
    Reward,
    advance,
    exploitability,
    forward,
    mirror_descent,
    neighbour_expectation,
    softmax,
    state_action_values,
)
from peira.graphs.graphex_mfg.games import Game, check_game, kernel, rewards
from peira.graphs.graphex_mfg.graphex import Graphex


@dataclass(frozen=True)
class Classes:
    """Policies of all classes of agents and the mean fields that they bring about.

    Classes are numbered: degrees 1, ..., `kstar` of the periphery first, then the core.

    Attributes:
        game, graphex: what was solved.
        kstar: largest degree that has a class of its own.
        policies: pi_t(u | x) of each class.
        mean_fields: distribution of the state of each class at times 0, ..., T.
        neighbourhoods: mean of G_t for each class.
        gains: exploitability of each class before each iteration of learning and after the last;
            a single row where policies were given.
    """

    game: Game
    graphex: Graphex
    kstar: int
    policies: Policy
    mean_fields: MeanField
    neighbourhoods: Float[np.ndarray, "classes time states"]
    gains: Float[np.ndarray, "iterations classes"]

    def class_of(
        self, degrees: Int[np.ndarray, " nodes"], nu: float | None = None
    ) -> Int[np.ndarray, " nodes"]:
        """Class of a node of each degree in a graph of size `nu`.

        `nu` matters only where the core has several classes; None estimates it from the degrees
        (which are then those of the whole graph).
        """
        degrees = np.asarray(degrees)
        if nu is None:
            nu = float(np.sqrt(degrees.sum() / self.graphex.edge_mass))
        core = self.kstar + self.graphex.core_class(degrees, nu)
        return np.where(degrees <= self.kstar, degrees - 1, core)

    def policy(self, degree: int, nu: float | None = None) -> Float[np.ndarray, "time x u"]:
        """Equilibrium policy of an agent with `degree` neighbours."""
        if degree < 1:
            raise ValueError(f"an agent of the game has at least one neighbour, got {degree}")
        return self.policies[self.class_of(np.array([degree]), nu)[0]]

    def mean_field(
        self, degrees: Int[np.ndarray, " nodes"] | None = None, nu: float | None = None
    ) -> Float[np.ndarray, "times x"]:
        """Distribution of the states over the whole population at times 0, ..., T.

        Args:
            degrees: of the nodes of a graph, which weigh the classes; None takes the graphex's
                degree law (of size `nu`, or the limiting one).
            nu: size of the graph.
        """
        return np.tensordot(self.weights(degrees, nu), self.mean_fields, 1)

    def weights(
        self, degrees: Int[np.ndarray, " nodes"] | None = None, nu: float | None = None
    ) -> Float[np.ndarray, " classes"]:
        """Share of the population in each class; arguments as for `mean_field`."""
        classes = len(self.policies)
        if degrees is not None:
            return np.bincount(self.class_of(degrees, nu), minlength=classes) / len(degrees)
        low = self.graphex.degree_law(self.kstar, nu)
        core = self.graphex.core_shares(self.kstar, nu)
        return np.concatenate([low, (1.0 - low.sum()) * core])

    @property
    def exploitability(self) -> Float[np.ndarray, " classes"]:
        """Gain of the best response of one agent of each class in the limit system."""
        return self.gains[-1]


Core = tuple[MeanField, Float[np.ndarray, "classes time x"], Kernel, Reward]


class CoreSystem:
    """The core of a graphex game: classes that see each other through the neighbour matrix."""

    def __init__(self, game: Game, graphex: Graphex) -> None:
        check_game(game)
        self.game = game
        self.matrix = graphex.neighbour_matrix()
        self.initial = np.asarray(game.initial, dtype=float)
        self.shape = (
            len(self.matrix), game.horizon, len(game.states), len(game.actions)
        )  # fmt: skip

    def uniform(self) -> Policy:
        """The policy that plays every action equally often."""
        return np.full(self.shape, 1.0 / self.shape[-1])

    def respond(self, policy: Policy) -> Core:
        """Mean fields, neighbourhoods, kernels and rewards that `policy` brings about.

        Rows of the neighbour matrix of a graphex sum to one; the cap at one only matters for
        baselines whose neighbourhoods have a mass of their own.
        """
        classes, horizon, states, _ = self.shape
        mu = np.empty((classes, horizon + 1, states))
        mu[:, 0] = self.initial
        g = np.empty((classes, horizon, states))
        p = np.empty((*self.shape, states))
        for t in range(horizon):
            g[:, t] = np.minimum(self.matrix @ mu[:, t], 1.0)
            p[:, t] = kernel(self.game, g[:, t])
            mu[:, t + 1] = advance(mu[:, t], policy[:, t], p[:, t])
        return mu, g, p, rewards(self.game, g).copy()

    def exploitability(self, policy: Policy) -> Float[np.ndarray, " classes"]:
        """Gain of one agent's best response in each class."""
        _, _, p, r = self.respond(policy)
        return exploitability(p, r, policy, self.initial)


def solve(
    game: Game, graphex: Graphex, kstar: int = 10, iterations: int = 300, rate: float = 0.3
) -> Classes:
    """Approximate equilibrium by hybrid online mirror descent (Algorithm 1).

    Core: y <- y + rate Q, pi = softmax(y), with Q of the current policy in the current mean field.
    Periphery: the same with the core's last mean field frozen, one class for each degree up to
    `kstar`. Agents with more neighbours play the core's policy.

    Args:
        game: see `Game`.
        graphex: see `Graphex`.
        kstar: largest degree with a class of its own; 0 leaves the core alone.
        iterations: number of updates of each stage.
        rate: step size of mirror descent.

    Raises:
        ValueError: a game whose kernel is no probability, a negative kstar, iterations below 1, or
            a kstar with more than a million neighbourhoods.
    """
    if kstar < 0 or iterations < 1 or rate <= 0:
        raise ValueError("kstar must be at least 0, iterations at least 1 and rate positive")
    core = CoreSystem(game, graphex)
    y = np.zeros(core.shape)
    gains = np.empty((iterations + 1, core.shape[0]))
    for n in range(iterations + 1):
        policy = softmax(y)
        mu, g, p, r = core.respond(policy)
        gains[n] = exploitability(p, r, policy, core.initial)
        y += rate * state_action_values(p, r, policy)
    solution = Classes(game, graphex, 0, policy, mu, g, gains)
    return _with_periphery(
        solution, kstar, lambda p, r: mirror_descent(p, r, core.initial, iterations, rate)
    )


def propagate(
    game: Game,
    graphex: Graphex,
    kstar: int = 10,
    core_policy: Policy | None = None,
    periphery_policy: Policy | None = None,
) -> Classes:
    """The limit system under given policies (uniform where None).

    Args:
        core_policy: one policy for each core class.
        periphery_policy: one policy for each degree 1, ..., kstar.
    """
    core = CoreSystem(game, graphex)
    policy = core.uniform() if core_policy is None else core_policy
    mu, g, p, r = core.respond(policy)
    gain = exploitability(p, r, policy, core.initial)[None]
    classes = Classes(game, graphex, 0, policy, mu, g, gain)
    if periphery_policy is None:
        periphery_policy = np.full((kstar, *core.shape[1:]), 1.0 / core.shape[-1])
    given = periphery_policy

    def keep(p: Kernel, r: Reward) -> tuple[Policy, np.ndarray]:
        return given, exploitability(p, r, given, core.initial)[None]

    return _with_periphery(classes, kstar, keep)


def _with_periphery(
    core: Classes,
    kstar: int,
    learn: Callable[[Kernel, Reward], tuple[Policy, Float[np.ndarray, "iterations classes"]]],
) -> Classes:
    """Add a class for each degree 1, ..., kstar, whose neighbours are core agents."""
    if kstar == 0:
        return core
    game = core.game
    g = np.tensordot(core.graphex.light_neighbours(), core.mean_fields[:, :-1], 1)
    parts = [neighbour_expectation(game, k, g) for k in range(1, kstar + 1)]
    p, r = (np.stack(part) for part in zip(*parts, strict=True))
    policy, gains = learn(p, r)
    return replace(
        core,
        kstar=kstar,
        policies=np.concatenate([policy, core.policies]),
        mean_fields=np.concatenate([forward(p, policy, core.mean_fields[0, 0]), core.mean_fields]),
        neighbourhoods=np.concatenate([np.broadcast_to(g, (kstar, *g.shape)), core.neighbourhoods]),
        gains=np.concatenate([gains, core.gains], axis=1),
    )
