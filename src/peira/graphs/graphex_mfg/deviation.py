"""Does one agent of the finite graph gain by leaving the equilibrium? Tabular Q-learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from peira.graphs.graphex_mfg.dynamics import greedy
from peira.graphs.graphex_mfg.games import Game, kernel, rewards
from peira.graphs.graphex_mfg.learning import Classes
from peira.graphs.graphex_mfg.networks import adjacency, degrees_of
from peira.graphs.graphex_mfg.simulation import World, draw

# Games played side by side, and share of random actions while learning.
COPIES = 16
EXPLORATION = 0.1
# Learning rate (new visits / all visits)^FORGETTING lets early estimates fade.
FORGETTING = 0.7


@dataclass(frozen=True)
class Gain:
    """What one agent gains in the finite game by its own learned policy.

    Attributes:
        gain: mean return of the learned policy minus that of the equilibrium policy.
        error: standard error of the gain.
        value: mean return of the equilibrium policy.
        policy: learned policy, deterministic.
    """

    gain: float
    error: float
    value: float
    policy: Float[np.ndarray, "time x u"]


def best_response_on_graph(
    game: Game,
    graph: Any,
    solution: Classes,
    agent: int,
    episodes: int = 480,
    rng: np.random.Generator | None = None,
) -> Gain:
    """Retrain one agent while everybody else keeps the policy of `solution`.

    Q-learning over (t, x, u) from plays of the whole graph: in each visited state all actions are
    updated with the observed neighbourhood, backwards in time. The learned policy and the
    equilibrium policy are then compared on fresh plays with common random numbers.

    Args:
        agent: number of the node in `adjacency(graph)`.
        episodes: plays for learning, and again for each side of the comparison.

    Raises:
        ValueError: no such agent, or fewer than two batches of plays.
    """
    rng = np.random.default_rng() if rng is None else rng
    matrix = adjacency(graph)
    if not 0 <= agent < matrix.shape[0]:
        raise ValueError(f"agent must be 0..{matrix.shape[0] - 1}, got {agent}")
    if episodes < 2 * COPIES:
        raise ValueError(f"episodes must be at least {2 * COPIES}, got {episodes}")
    classes = solution.class_of(degrees_of(matrix))
    world = World(game, matrix, classes, solution.policies, COPIES)
    batches = episodes // COPIES
    learned = greedy(_learn(world, agent, batches, rng))
    seed = int(rng.integers(2**63))
    before = _returns(world, agent, solution.policies[classes[agent]], batches, seed)
    after = _returns(world, agent, learned, batches, seed)
    gains = after - before
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    return Gain(float(gains.mean()), float(error), float(before.mean()), learned)


def _learn(
    world: World, agent: int, batches: int, rng: np.random.Generator
) -> Float[np.ndarray, "time x u"]:
    game = world.game
    horizon, states, actions = game.horizon, len(game.states), len(game.actions)
    mine = agent + world.agents * np.arange(world.copies)
    q = np.zeros((horizon, states, actions))
    visits = np.zeros((horizon, states))

    def explore(t: int, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        best = q[t, world.x[mine]].argmax(-1)
        any_action = rng.integers(actions, size=len(mine))
        return mine, np.where(rng.random(len(mine)) < EXPLORATION, any_action, best)

    for _ in range(batches):
        seen = []
        world.start(rng)
        for t in range(horizon):
            seen.append((world.x[mine].copy(), world.shares()[mine]))
            world.step(t, rng, explore)
        for t in range(horizon - 1, -1, -1):
            x, g = seen[t]
            to_come = q[t + 1].max(-1) if t + 1 < horizon else np.zeros(states)
            target = rewards(game, g) + kernel(game, g) @ to_come
            for state in np.unique(x):
                new = x == state
                visits[t, state] += new.sum()
                step = (new.sum() / visits[t, state]) ** FORGETTING
                q[t, state] += step * (target[new, state].mean(0) - q[t, state])
    return q


def _returns(
    world: World, agent: int, policy: Float[np.ndarray, "time x u"], batches: int, seed: int
) -> Float[np.ndarray, " episodes"]:
    """Returns of the agent when it follows `policy`."""
    rng = np.random.default_rng(seed)
    mine = agent + world.agents * np.arange(world.copies)

    def follow(t: int, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return mine, draw(policy[t, world.x[mine]], chance[mine])

    totals = []
    for _ in range(batches):
        world.start(rng)
        steps = [world.step(t, rng, follow)[mine] for t in range(world.game.horizon)]
        totals.append(np.sum(steps, axis=0))
    return np.concatenate(totals)
