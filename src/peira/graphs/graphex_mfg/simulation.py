"""The finite game: every node of a graph is an agent that sees its own neighbours."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numba import njit
from scipy.sparse import csr_array

from peira.graphs.graphex_mfg.dynamics import Policy
from peira.graphs.graphex_mfg.games import Game
from peira.graphs.graphex_mfg.learning import Classes
from peira.graphs.graphex_mfg.networks import adjacency, degrees_of

# Agents, over all copies, that are simulated side by side.
MOST_AGENTS = 50_000
# Trial spread, as a multiple of that of independent agents, from which the limit is in doubt.
SUSPICIOUS_SPREAD = 5.0

Deviation = Callable[
    [int, Float[np.ndarray, " all_agents"]],
    tuple[Int[np.ndarray, " who"], Int[np.ndarray, " who"]],
]


@dataclass(frozen=True)
class Simulation:
    """What happened in repeated play of a finite game.

    Attributes:
        mean_fields: share of the agents in each state at times 0, ..., T, for each trial.
        class_mean_fields: the same inside each class, averaged over the trials; NaN where a class
            has no agent.
        returns: sum of rewards of each agent, averaged over the trials.
        degrees: number of neighbours of each agent.
        classes: class whose policy each agent plays.
    """

    mean_fields: Float[np.ndarray, "trials times states"]
    class_mean_fields: Float[np.ndarray, "classes times states"]
    returns: Float[np.ndarray, " agents"]
    degrees: Int[np.ndarray, " agents"]
    classes: Int[np.ndarray, " agents"]

    def spread(self) -> float:
        """Largest standard deviation over trials of a state's share, relative to that of as many
        independent agents with the same shares."""
        share = self.mean_fields.mean(0)
        independent = np.sqrt(np.maximum(share * (1 - share), 1.0 / len(self.degrees)))
        independent /= np.sqrt(len(self.degrees))
        return float((self.mean_fields.std(0, ddof=1) / independent).max())


class World:
    """Independent copies of one finite game, played side by side.

    Agents of all copies stand in one array, copy after copy.
    """

    def __init__(
        self,
        game: Game,
        matrix: csr_array,
        classes: Int[np.ndarray, " agents"],
        policies: Policy,
        copies: int,
    ) -> None:
        agents, edges = len(classes), matrix.nnz
        shift = np.arange(copies, dtype=np.int64)[:, None]
        ends = np.append((matrix.indptr[:-1] + edges * shift).ravel(), edges * copies)
        self.neighbours = (ends, (matrix.indices + agents * shift).ravel().astype(np.int32))
        self.game, self.copies, self.agents = game, copies, agents
        self.classes = np.tile(classes, copies)
        self.degrees = np.tile(degrees_of(matrix), copies)[:, None]
        self.policies = policies

    def start(self, rng: np.random.Generator) -> None:
        """Draw initial states."""
        initial = np.tile(self.game.initial, (self.agents * self.copies, 1))
        self.x = draw(initial, rng.random(len(initial)))
        self.counts = _count_neighbours(*self.neighbours, self.x, len(self.game.states))

    def shares(self) -> Float[np.ndarray, "all_agents states"]:
        """G of every agent: share of its neighbours in each state."""
        return self.counts / self.degrees

    def step(
        self, t: int, rng: np.random.Generator, deviate: Deviation | None = None
    ) -> Float[np.ndarray, " all_agents"]:
        """All agents act and move; returns their rewards.

        `deviate(t, chance)` may replace actions: it names agents and what they play instead.
        """
        g = self.shares()
        chance = rng.random(len(self.x))
        u = draw(self.policies[self.classes, t, self.x], chance)
        if deviate is not None:
            who, what = deviate(t, chance)
            u[who] = what
        gained = self.game.reward(self.x, u, g)
        y = draw(self.game.transition(self.x, u, g), rng.random(len(self.x)))
        _move(*self.neighbours, self.counts, self.x, y)
        return gained


def simulate(
    game: Game,
    graph: Any,
    solution: Classes,
    trials: int = 50,
    rng: np.random.Generator | None = None,
) -> Simulation:
    """Play the finite game: each agent follows the policy of the class of its own degree.

    Agents start independently from the game's initial distribution. At each step all choose an
    action, and then all move according to the states of their neighbours before the move.

    Args:
        graph: anything `networks.adjacency` takes.
        solution: policies, from `solve` or `propagate`.
        trials: independent repetitions on the same graph.

    Raises:
        ValueError: no trial.
        peira.data.DataError: not a graph, or a graph without edges.

    Warns:
        UserWarning: trials differ far more than independent agents would, so no deterministic
            mean field can describe this game on this graph.
    """
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    rng = np.random.default_rng() if rng is None else rng
    matrix = adjacency(graph)
    degrees = degrees_of(matrix)
    classes = solution.class_of(degrees)
    shares, returns = _play(game, matrix, classes, solution.policies, trials, rng)
    present = np.bincount(classes, minlength=len(solution.policies))
    with np.errstate(invalid="ignore"):
        inside = shares.mean(0) / present[:, None, None]
    result = Simulation(
        shares.sum(1) / len(degrees), inside, returns / trials, degrees, classes
    )  # fmt: skip
    if trials > 2 and result.spread() > SUSPICIOUS_SPREAD:
        warnings.warn(
            f"trials differ {result.spread():.0f} times as much as independent agents would: the "
            "dynamics amplify chance here and no deterministic mean field describes them",
            UserWarning,
            stacklevel=2,
        )
    return result


def _play(
    game: Game,
    matrix: csr_array,
    classes: Int[np.ndarray, " agents"],
    policies: Policy,
    trials: int,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "trials classes times states"], Float[np.ndarray, " agents"]]:
    """Numbers of agents by trial, class, time and state; returns of each agent over all trials."""
    kinds, states, agents = len(policies), len(game.states), len(classes)
    shares = np.zeros((trials, kinds, game.horizon + 1, states))
    returns = np.zeros(agents)
    together = max(1, min(trials, MOST_AGENTS // agents))
    for first in range(0, trials, together):
        copies = min(together, trials - first)
        world = World(game, matrix, classes, policies, copies)
        place = (np.repeat(np.arange(copies), agents) * kinds + world.classes) * states
        world.start(rng)
        for t in range(game.horizon + 1):
            tally = np.bincount(place + world.x, minlength=copies * kinds * states)
            shares[first : first + copies, :, t] = tally.reshape(copies, kinds, states)
            if t < game.horizon:
                returns += world.step(t, rng).reshape(copies, agents).sum(0)
    return shares, returns


def draw(
    probabilities: Float[np.ndarray, "rows outcomes"], chance: Float[np.ndarray, " rows"]
) -> Int[np.ndarray, " rows"]:
    """Outcome of each row: the first at which the sum of the probabilities exceeds `chance`."""
    return np.asarray(_draw(np.ascontiguousarray(probabilities, dtype=float), chance))


@njit(cache=True)
def _draw(probabilities, chance):  # type: ignore[no-untyped-def]
    rows, outcomes = probabilities.shape
    drawn = np.empty(rows, np.int64)
    for i in range(rows):
        total, k = probabilities[i, 0], 0
        while k < outcomes - 1 and chance[i] >= total:
            k += 1
            total += probabilities[i, k]
        drawn[i] = k
    return drawn


@njit(cache=True)
def _count_neighbours(indptr, indices, x, states):  # type: ignore[no-untyped-def]
    """Number of neighbours of each agent in each state."""
    counts = np.zeros((len(x), states), np.int32)
    for i in range(len(x)):
        for e in range(indptr[i], indptr[i + 1]):
            counts[i, x[indices[e]]] += 1
    return counts


@njit(cache=True)
def _move(indptr, indices, counts, x, y):  # type: ignore[no-untyped-def]
    """Set the states x to y. Only the neighbours of agents that change are counted anew."""
    for i in range(len(x)):
        if x[i] != y[i]:
            for e in range(indptr[i], indptr[i + 1]):
                counts[indices[e], x[i]] -= 1
                counts[indices[e], y[i]] += 1
            x[i] = y[i]


def delta_mu(
    simulated: Float[np.ndarray, "trials times states"],
    predicted: Float[np.ndarray, "times states"],
) -> float:
    """Mean-field error in percent: 100/(2T) E sum_t || mu_hat_t - mu_t ||_1 over t = 0, ..., T-1.

    The expectation is over trials (arXiv 2401.12686, Table 1).
    """
    error = np.abs(simulated[:, :-1] - predicted[:-1]).sum(-1)
    return float(50.0 * error.mean())
