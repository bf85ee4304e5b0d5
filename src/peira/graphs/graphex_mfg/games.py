"""Games on networks: finite states and actions, dynamics and rewards that see the neighbours.

A game is any object with the members of `Game`. Its `transition` and `reward` are written once,
vectorised, and serve the limit system, the exact expectations over few neighbours and the
simulation of the finite graph alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int


class Game(Protocol):
    """What a game offers.

    Attributes:
        states, actions: names, in the order of their numbers.
        horizon: number of decisions T.
        initial: distribution of the state at time 0.
    """

    @property
    def states(self) -> tuple[str, ...]: ...
    @property
    def actions(self) -> tuple[str, ...]: ...
    @property
    def horizon(self) -> int: ...
    @property
    def initial(self) -> Float[np.ndarray, " states"]: ...

    def transition(
        self,
        x: Int[np.ndarray, "*shape"],
        u: Int[np.ndarray, "*shape"],
        g: Float[np.ndarray, "*shape states"],
    ) -> Float[np.ndarray, "*shape states"]:
        """P(. | x, u, G); x, u and the leading axes of g broadcast."""
        ...

    def reward(
        self,
        x: Int[np.ndarray, "*shape"],
        u: Int[np.ndarray, "*shape"],
        g: Float[np.ndarray, "*shape states"],
    ) -> Float[np.ndarray, "*shape"]:
        """r(x, u, G); x, u and the leading axes of g broadcast."""
        ...


GAMES = ("sis", "nonlinear-sis", "threshold-sis", "sir", "rumour", "colouring")


def named_game(name: str) -> Game:
    """The game of that name (one of `GAMES`) with its default parameters.

    Raises:
        ValueError: no such game.
    """
    makers = (SIS, NonlinearSIS, ThresholdSIS, SIR, Rumour, Colouring)
    for known, make in zip(GAMES, makers, strict=True):
        if known == name:
            return make()
    raise ValueError(f"no game {name!r}; choose from: {', '.join(GAMES)}")


def kernel(game: Game, g: Float[np.ndarray, "*any states"]) -> Float[np.ndarray, "*any x u y"]:
    """P(y | x, u, G) for all states x, y and actions u."""
    x, u = _states_and_actions(len(game.states), len(game.actions))
    shape = (*g.shape[:-1], len(x), len(u), len(x))
    rows = game.transition(x, u, g[..., None, None, :])
    # The limit system asks for one time step after another, and broadcasting is not free.
    return rows if rows.shape == shape else np.broadcast_to(rows, shape)


def rewards(game: Game, g: Float[np.ndarray, "*any states"]) -> Float[np.ndarray, "*any x u"]:
    """r(x, u, G) for all states x and actions u."""
    x, u = _states_and_actions(len(game.states), len(game.actions))
    return np.broadcast_to(
        game.reward(x, u, g[..., None, None, :]), (*g.shape[:-1], len(x), len(u))
    )


@cache
def _states_and_actions(states: int, actions: int) -> tuple[np.ndarray, np.ndarray]:
    """All states as a column and all actions as a row, which broadcast to all pairs."""
    return _frozen(np.arange(states)[:, None]), _frozen(np.arange(actions))


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def check_game(game: Game) -> None:
    """Raise ValueError where the game's numbers are no probabilities or no finite rewards.

    Looks at pure neighbourhoods, the uniform one and a hundred random ones.
    """
    n = len(game.states)
    _check_rows(np.asarray(game.initial, dtype=float)[None], "initial distribution", n)
    if game.horizon < 1 or len(game.actions) < 1:
        raise ValueError("a game needs a horizon of at least 1 and at least one action")
    g = np.concatenate(
        [np.eye(n), np.full((1, n), 1 / n), np.random.default_rng(0).dirichlet(np.ones(n), 100)]
    )
    _check_rows(kernel(game, g), "transition probabilities", n)
    if not np.isfinite(rewards(game, g)).all():
        raise ValueError("rewards must be finite")


def _check_rows(rows: np.ndarray, name: str, states: int) -> None:
    if rows.shape[-1] != states:
        raise ValueError(f"{name} must have {states} entries (one per state), not {rows.shape[-1]}")
    wrong = (rows < -1e-12).any(-1) | ~(np.abs(rows.sum(-1) - 1.0) < 1e-8)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        place = f" at (neighbourhood, state, action) {first}" if len(first) == 3 else ""
        raise ValueError(
            f"{name} must be non-negative and sum to one; got {rows[first].tolist()}{place}"
        )


def _rows(*probabilities: np.ndarray) -> np.ndarray:
    """Probabilities of the next states, side by side in a last axis."""
    shape = np.broadcast(*probabilities).shape
    rows = np.empty((*shape, len(probabilities)))
    for state, column in enumerate(probabilities):
        rows[..., state] = column
    return rows


@dataclass(frozen=True)
class SIS:
    """Susceptible and infected agents who may protect themselves (Cui and Koeppl 2022).

    Infection of a susceptible agent who plays u: `infection` (1 - u) G(I). Reward:
    -`cost_infection` while infected, -`cost_protection` while protected.
    """

    infection: float = 0.8
    recovery: float = 0.2
    cost_infection: float = 2.0
    cost_protection: float = 0.5
    initially_infected: float = 0.5
    horizon: int = 50
    states = ("susceptible", "infected")
    actions = ("nothing", "protect")

    @property
    def initial(self) -> np.ndarray:
        return np.array([1 - self.initially_infected, self.initially_infected])

    def pressure(self, infected: Float[np.ndarray, "*shape"]) -> np.ndarray:
        """Probability that an unprotected susceptible agent is infected."""
        return self.infection * infected

    def transition(self, x: np.ndarray, u: np.ndarray, g: np.ndarray) -> np.ndarray:
        caught = (1 - u) * self.pressure(g[..., 1])
        infected = np.where(x == 0, caught, 1 - self.recovery)
        return _rows(1 - infected, infected)

    def reward(self, x: np.ndarray, u: np.ndarray, g: np.ndarray) -> np.ndarray:
        cost = self.cost_infection * (x == 1) + self.cost_protection * u
        return -cost + 0.0 * g[..., 0]


@dataclass(frozen=True)
class NonlinearSIS(SIS):
    """SIS where each step brings several contacts: infection (1 - u) (1 - (1 - G(I))^contacts).

    In `SIS` the infection is linear in G, so the expectation over few random neighbours equals its
    value at the mean and every degree behaves alike; here the response is concave, and it does not.
    """

    contacts: int = 3

    def pressure(self, infected: Float[np.ndarray, "*shape"]) -> np.ndarray:
        return self.infection * (1 - (1 - infected) ** self.contacts)


@dataclass(frozen=True)
class ThresholdSIS(SIS):
    """SIS where infection needs more than half of the neighbours infected.

    The response is discontinuous, outside the theory's assumptions: the place where the mean
    field fails, kept to show it.
    """

    threshold: float = 0.5

    def pressure(self, infected: Float[np.ndarray, "*shape"]) -> np.ndarray:
        return self.infection * (np.asarray(infected) > self.threshold)


@dataclass(frozen=True)
class SIR:
    """Susceptible, infected and for ever recovered agents; otherwise as `SIS`."""

    infection: float = 0.8
    recovery: float = 0.2
    cost_infection: float = 2.0
    cost_protection: float = 0.5
    initially_infected: float = 0.1
    horizon: int = 50
    states = ("susceptible", "infected", "recovered")
    actions = ("nothing", "protect")

    @property
    def initial(self) -> np.ndarray:
        return np.array([1 - self.initially_infected, self.initially_infected, 0.0])

    def transition(self, x: np.ndarray, u: np.ndarray, g: np.ndarray) -> np.ndarray:
        caught = (1 - u) * self.infection * g[..., 1]
        return _rows(
            np.where(x == 0, 1 - caught, 0.0),
            np.where(x == 0, caught, np.where(x == 1, 1 - self.recovery, 0.0)),
            np.where(x == 2, 1.0, np.where(x == 1, self.recovery, 0.0)),
        )

    def reward(self, x: np.ndarray, u: np.ndarray, g: np.ndarray) -> np.ndarray:
        cost = self.cost_infection * (x == 1) + self.cost_protection * u
        return -cost + 0.0 * g[..., 0]


@dataclass(frozen=True)
class Rumour:
    """Aware agents choose each step whether to spread a rumour in the next.

    Spreading pays `pleasure` times the share of unaware neighbours and costs `embarrassment`
    times the share who know already. An unaware agent learns it with probability `rate` times the
    share of spreading neighbours; the actions of unaware agents do nothing.
    """

    rate: float = 0.8
    pleasure: float = 1.0
    embarrassment: float = 1.0
    initially_spreading: float = 0.1
    horizon: int = 50
    states = ("unaware", "silent", "spreading")
    actions = ("keep silent", "spread")

    @property
    def initial(self) -> np.ndarray:
        return np.array([1 - self.initially_spreading, 0.0, self.initially_spreading])

    def transition(self, x: np.ndarray, u: np.ndarray, g: np.ndarray) -> np.ndarray:
        heard, unaware = self.rate * g[..., 2], x == 0
        return _rows(
            np.where(unaware, 1 - heard, 0.0),
            np.where(unaware, heard, 1 - u),
            np.where(unaware, 0.0, u),
        )

    def reward(self, x: np.ndarray, u: np.ndarray, g: np.ndarray) -> np.ndarray:
        gain = self.pleasure * g[..., 0] - self.embarrassment * (g[..., 1] + g[..., 2])
        return np.where(x == 2, gain, 0.0) + 0.0 * u


@dataclass(frozen=True)
class Colouring:
    """Agents move on a ring of five colours and want few neighbours of their own colour.

    A move to the left or right succeeds with probability 1 - `slip`; otherwise one of the three
    moves is made at random. Reward: `preference`[x] - G(x) - `cost_move` for a move.
    """

    slip: float = 0.1
    cost_move: float = 0.1
    preference: tuple[float, ...] = (0.2, 0.1, 0.0, 0.0, 0.1)
    initial_colours: tuple[float, ...] = (0.6, 0.1, 0.1, 0.1, 0.1)
    horizon: int = 50
    states = ("red", "yellow", "green", "blue", "violet")
    actions = ("left", "stay", "right")

    @property
    def initial(self) -> np.ndarray:
        return np.array(self.initial_colours)

    def transition(self, x: np.ndarray, u: np.ndarray, g: np.ndarray) -> np.ndarray:
        n = len(self.states)
        table = np.zeros((n, 3, n))
        colour, move = np.meshgrid(np.arange(n), np.arange(3), indexing="ij")
        for slipped in range(3):
            table[colour, move, (colour + slipped - 1) % n] += self.slip / 3
        table[colour, move, (colour + move - 1) % n] += 1 - self.slip
        rows = table[x, u]
        return np.broadcast_to(rows, np.broadcast_shapes(rows.shape, g.shape))

    def reward(self, x: np.ndarray, u: np.ndarray, g: np.ndarray) -> np.ndarray:
        lead = np.broadcast_shapes(x.shape, u.shape, g.shape[:-1])
        colours = np.broadcast_to(x, lead)[..., None]
        own = np.take_along_axis(np.broadcast_to(g, (*lead, g.shape[-1])), colours, axis=-1)
        return np.array(self.preference)[x] - own[..., 0] - self.cost_move * (u != 1)
