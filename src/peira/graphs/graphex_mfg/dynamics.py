"""Exact dynamic programming of one class of agents, and expectations over few random neighbours.

Arrays have a leading axis of classes (core classes or degrees), then time, state x, action u and
next state y. A class is a finite-horizon decision process once the neighbourhoods are given.
"""

from __future__ import annotations

from math import comb

import numpy as np
from jaxtyping import Float, Int
from numba import njit
from scipy.special import gammaln

from peira.graphs.graphex_mfg.games import Game, kernel, rewards

# Neighbourhoods that one expectation may range over.
MOST_COMPOSITIONS = 1_000_000

Policy = Float[np.ndarray, "classes time x u"]
Kernel = Float[np.ndarray, "classes time x u y"]
Reward = Float[np.ndarray, "classes time x u"]
MeanField = Float[np.ndarray, "classes times x"]


def compositions(total: int, parts: int) -> Int[np.ndarray, "compositions parts"]:
    """All ways to put `total` neighbours into `parts` states, in lexicographic order.

    Raises:
        ValueError: more than a million of them.
    """
    count = comb(total + parts - 1, parts - 1)
    if count > MOST_COMPOSITIONS:
        raise ValueError(
            f"{total} neighbours in {parts} states have {count} compositions, more than "
            f"{MOST_COMPOSITIONS}: lower kstar"
        )
    if parts == 1:
        return np.array([[total]])
    blocks = []
    for first in range(total + 1):
        rest = compositions(total - first, parts - 1)
        blocks.append(np.column_stack([np.full(len(rest), first), rest]))
    return np.concatenate(blocks)


def multinomial(
    counts: Int[np.ndarray, "compositions states"], g: Float[np.ndarray, "time states"]
) -> Float[np.ndarray, "time compositions"]:
    """Probability of each composition when every neighbour's state is drawn from g.

    Rows are made to sum to one: g's own rounding error would otherwise grow by a factor of the
    degree at each step of a system whose neighbourhoods depend on this expectation.
    """
    total = counts[0].sum()
    coefficient = np.exp(gammaln(total + 1) - gammaln(counts + 1).sum(1))
    powers = np.ones((len(g), len(counts)))
    for state in range(counts.shape[1]):
        powers *= g[:, state, None] ** counts[:, state]
    chance = powers * coefficient
    return chance / chance.sum(1, keepdims=True)


def neighbour_expectation(
    game: Game, degree: int, g: Float[np.ndarray, "time states"]
) -> tuple[Float[np.ndarray, "time x u y"], Float[np.ndarray, "time x u"]]:
    """Transition probabilities and rewards of an agent with `degree` neighbours drawn from g."""
    counts = compositions(degree, len(game.states))
    chance = multinomial(counts, g)
    p, r = kernel(game, counts / degree), rewards(game, counts / degree)
    mean_p = (chance @ p.reshape(len(counts), -1)).reshape(len(g), *p.shape[1:])
    return mean_p, (chance @ r.reshape(len(counts), -1)).reshape(len(g), *r.shape[1:])


@njit(cache=True)
def _backward(p, r, policy, best):  # type: ignore[no-untyped-def]
    """Q by backward induction, of the policy or, where `best`, of the best response."""
    q = r.copy()
    classes, horizon, states, actions = r.shape
    for c in range(classes):
        for t in range(horizon - 2, -1, -1):
            for y in range(states):
                value = -np.inf if best else 0.0
                for u in range(actions):
                    if best:
                        value = max(value, q[c, t + 1, y, u])
                    else:
                        value += policy[c, t + 1, y, u] * q[c, t + 1, y, u]
                for x in range(states):
                    for u in range(actions):
                        q[c, t, x, u] += p[c, t, x, u, y] * value
    return q


def state_action_values(p: Kernel, r: Reward, policy: Policy) -> Reward:
    """Q[c, t, x, u] of the policy: the reward from time t on after x and u."""
    return np.asarray(_backward(p, r, policy, False))


def optimal_values(p: Kernel, r: Reward) -> Reward:
    """Q[c, t, x, u] of the best response."""
    return np.asarray(_backward(p, r, r, True))


def greedy(q: Reward) -> Policy:
    """Deterministic policy that plays the first action of largest value."""
    return np.eye(q.shape[-1])[q.argmax(-1)]


def softmax(y: Reward) -> Policy:
    """exp(y) normalised over the last axis."""
    weights = np.exp(y - y.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def exploitability(
    p: Kernel, r: Reward, policy: Policy, initial: Float[np.ndarray, " x"]
) -> Float[np.ndarray, " classes"]:
    """What one agent of each class would gain by its best response: max J(pi') - J(pi)."""
    best, now = optimal_values(p, r), state_action_values(p, r, policy)
    return (best[:, 0].max(-1) - (policy[:, 0] * now[:, 0]).sum(-1)) @ initial


def forward(p: Kernel, policy: Policy, initial: Float[np.ndarray, " x"]) -> MeanField:
    """Distribution of the state of each class at times 0, ..., T."""
    classes, horizon, states, _ = policy.shape
    mu = np.empty((classes, horizon + 1, states))
    mu[:, 0] = initial
    for t in range(horizon):
        mu[:, t + 1] = advance(mu[:, t], policy[:, t], p[:, t])
    return mu


def advance(
    mu: Float[np.ndarray, "classes x"],
    policy: Float[np.ndarray, "classes x u"],
    p: Float[np.ndarray, "classes x u y"],
) -> Float[np.ndarray, "classes y"]:
    """One step of the distribution of the state of each class."""
    classes, states = mu.shape
    played = (mu[..., None] * policy).reshape(classes, 1, -1)
    return np.matmul(played, p.reshape(classes, -1, states))[:, 0]


def mirror_descent(
    p: Kernel, r: Reward, initial: Float[np.ndarray, " x"], iterations: int, rate: float
) -> tuple[Policy, Float[np.ndarray, "iterations classes"]]:
    """Online mirror descent against fixed neighbourhoods.

    Returns the last policy and the exploitability before each update and after the last.
    """
    y = np.zeros_like(r)
    gains = np.empty((iterations + 1, len(r)))
    best = optimal_values(p, r)[:, 0].max(-1) @ initial
    for n in range(iterations + 1):
        policy = softmax(y)
        q = state_action_values(p, r, policy)
        gains[n] = best - (policy[:, 0] * q[:, 0]).sum(-1) @ initial
        y += rate * q
    return policy, gains
