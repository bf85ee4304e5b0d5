"""Sampling, simulation and mirror descent against networkx, SciPy, NumPy, MFGLib and OpenSpiel.

The descents in NumPy follow Algorithm 1 as one would write it, with array operations over states
and actions inside a loop over time. MFGLib and OpenSpiel are timed where they are importable.
MFGLib learns the same game and must end with the same policies. OpenSpiel's mean-field games are
written in its own classes, so there the game is its crowd modelling on a ring of ten places over
ten steps, written for Peira as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import numpy as np
import pytest
from scipy.stats import binom

from peira.graphs.graphex_mfg.games import SIS, NonlinearSIS
from peira.graphs.graphex_mfg.graphex import SeparablePowerLaw
from peira.graphs.graphex_mfg.learning import propagate, solve
from peira.graphs.graphex_mfg.networks import degrees_of
from peira.graphs.graphex_mfg.simulation import simulate

HALF = SeparablePowerLaw(0.5)
ITERATIONS = 30


@pytest.fixture(scope="module")
def large():
    """55,000 agents, half a million edges."""
    return HALF.sample(1000.0, np.random.default_rng(0))


@pytest.mark.benchmark(group="graphex-mfg: sample a graph of 3,100 nodes")
def test_sample_peira(benchmark):
    rng = np.random.default_rng(0)
    HALF.sample(20.0, rng)
    graph = benchmark(HALF.sample, 150.0, rng)
    assert 2000 < graph.shape[0] < 4500


@pytest.mark.benchmark(group="graphex-mfg: sample a graph of 3,100 nodes")
def test_sample_networkx(benchmark):
    # The Chung-Lu graph of the same expected degrees, without the points that stay isolated.
    degrees = degrees_of(HALF.sample(150.0, np.random.default_rng(0))).tolist()
    graph = benchmark(nx.expected_degree_graph, degrees, seed=0, selfloops=False)
    assert graph.number_of_edges() > 8000


def by_products(game, graph, trials, seed):
    """Uniform play of SIS with neighbour counts from a sparse product, as one would write it.

    Measures what `simulate` does: shares of the states in each degree class, and returns.
    """
    rng = np.random.default_rng(seed)
    degrees = graph.sum(1)
    matrix, kind = graph.astype(float), np.minimum(degrees, 11) - 1
    infected = np.empty((trials, 11, game.horizon + 1))
    returns = np.zeros(len(degrees))
    for trial in range(trials):
        x = (rng.random(len(degrees)) < game.initially_infected).astype(float)
        for t in range(game.horizon + 1):
            infected[trial, :, t] = np.bincount(kind, x, 11)
            if t == game.horizon:
                break
            g = (matrix @ np.column_stack([1 - x, x])) / degrees[:, None]
            u = rng.random(len(x)) < 0.5
            returns -= game.cost_infection * x + game.cost_protection * u
            caught = np.where(x == 0, (1 - u) * game.infection * g[:, 1], 1 - game.recovery)
            x = (rng.random(len(x)) < caught).astype(float)
    return infected.sum(1) / len(degrees), returns / trials


@pytest.mark.benchmark(group="graphex-mfg: simulate 55,000 agents, 500,000 edges, 50 steps")
def test_simulate_peira(benchmark, large):
    game = SIS()
    solution = propagate(game, HALF, 10)
    simulate(game, nx.path_graph(2), solution, 1)
    played = benchmark.pedantic(
        simulate, (game, large, solution, 3, np.random.default_rng(0)), rounds=3
    )
    shares, returns = by_products(game, large, 3, 1)
    assert played.mean_fields[0, :, 1] == pytest.approx(shares[0], abs=0.02)
    assert played.returns.mean() == pytest.approx(returns.mean(), rel=0.02)


@pytest.mark.benchmark(group="graphex-mfg: simulate 55,000 agents, 500,000 edges, 50 steps")
def test_simulate_scipy(benchmark, large):
    benchmark.pedantic(by_products, (SIS(), large, 3, 0), rounds=3)


def by_arrays(initial, horizon, kernel, reward, actions, iterations, rate):
    """Mirror descent on one class: policies and the exploitability before each update.

    `kernel(t, mu)` has axes x, u, y and `reward(mu)` axes x, u.
    """
    states = len(initial)
    y = np.zeros((horizon, states, actions))
    gains = []
    for _ in range(iterations + 1):
        weights = np.exp(y - y.max(-1, keepdims=True))
        policy = weights / weights.sum(-1, keepdims=True)
        mu, p, r = [initial], [], []
        for t in range(horizon):
            p.append(kernel(t, mu[t]))
            r.append(reward(mu[t]))
            mu.append(np.einsum("x,xu,xuy->y", mu[t], policy[t], p[t]))
        q, best = np.empty_like(y), np.empty_like(y)
        value, highest = np.zeros(states), np.zeros(states)
        for t in reversed(range(horizon)):
            q[t], best[t] = r[t] + p[t] @ value, r[t] + p[t] @ highest
            value, highest = (policy[t] * q[t]).sum(-1), best[t].max(-1)
        gains.append((highest - value) @ initial)
        y += rate * q
    return policy, np.array(gains), np.array(mu)


SIS_COST = np.array([[0.0, -0.5], [-2.0, -2.5]])


def sis_kernel(caught, recovery=0.2):
    """Axes x, u, y for the infection probability of an agent without protection."""
    sick = [recovery, 1 - recovery]
    return np.array([[[1 - caught, caught], [1.0, 0.0]], [sick, sick]])


@pytest.mark.benchmark(group=f"graphex-mfg: {ITERATIONS} mirror descents on the core of SIS")
def test_sis_descent_peira(benchmark):
    solve(SIS(), HALF, 0, 1)
    benchmark(solve, SIS(), HALF, 0, ITERATIONS, 0.3)


@pytest.mark.benchmark(group=f"graphex-mfg: {ITERATIONS} mirror descents on the core of SIS")
def test_sis_descent_numpy(benchmark):
    game = SIS()
    policy, gains, _ = benchmark(
        by_arrays, game.initial, game.horizon, lambda t, mu: sis_kernel(0.8 * mu[1]),
        lambda mu: SIS_COST, 2, ITERATIONS, 0.3,
    )  # fmt: skip
    ours = solve(game, HALF, 0, ITERATIONS, 0.3)
    assert policy == pytest.approx(ours.policies[0], abs=1e-9)
    assert gains == pytest.approx(ours.gains[:, 0], abs=1e-9)


def hybrid_by_arrays(game, kstar, iterations, rate):
    """Algorithm 1 on nonlinear SIS: the core, then each degree with the core frozen."""

    def caught(infected):
        return game.infection * (1 - (1 - infected) ** game.contacts)

    def learn(kernel):
        return by_arrays(
            game.initial, game.horizon, kernel, lambda mu: SIS_COST, 2, iterations, rate
        )

    policy, _, mu = learn(lambda t, mu: sis_kernel(caught(mu[1])))
    policies = []
    for k in range(1, kstar + 1):
        sick = np.arange(k + 1)
        mean = [binom.pmf(sick, k, infected) @ caught(sick / k) for infected in mu[:-1, 1]]
        fresh = [sis_kernel(p) for p in mean]
        policies.append(learn(lambda t, mu, fresh=fresh: fresh[t])[0])
    return np.array([*policies, policy])


@pytest.mark.benchmark(group=f"graphex-mfg: {ITERATIONS} descents on core and degrees 1 to 10")
def test_hybrid_descent_peira(benchmark):
    solve(NonlinearSIS(), HALF, 2, 1)
    benchmark(solve, NonlinearSIS(), HALF, 10, ITERATIONS, 0.3)


@pytest.mark.benchmark(group=f"graphex-mfg: {ITERATIONS} descents on core and degrees 1 to 10")
def test_hybrid_descent_numpy(benchmark):
    policies = benchmark(hybrid_by_arrays, NonlinearSIS(), 10, ITERATIONS, 0.3)
    ours = solve(NonlinearSIS(), HALF, 10, ITERATIONS, 0.3)
    assert policies == pytest.approx(ours.policies, abs=1e-9)


@pytest.mark.benchmark(group=f"graphex-mfg: {ITERATIONS} mirror descents on the core of SIS")
def test_sis_descent_mfglib(benchmark):
    torch = pytest.importorskip("torch")
    env, algorithms = pytest.importorskip("mfglib.env"), pytest.importorskip("mfglib.alg")
    game = SIS()

    def transition(env, t, law):
        caught = game.infection * law.sum(1)[1]
        p = torch.zeros(2, 2, 2)
        p[1, 0, 0], p[0, 0, 0], p[0, 0, 1] = caught, 1 - caught, 1.0
        p[0, 1], p[1, 1] = game.recovery, 1 - game.recovery
        return p

    cost = torch.from_numpy(SIS_COST).float()
    # Its horizon counts from 0, so 49 stands for 50 decisions.
    problem = env.Environment(
        T=game.horizon - 1, S=(2,), A=(2,), mu0=torch.tensor([0.5, 0.5]), r_max=2.5,
        reward_fn=lambda env, t, law: cost, transition_fn=transition,
    )  # fmt: skip
    descent = algorithms.OnlineMirrorDescent(alpha=0.3)
    policies, gains, _ = benchmark.pedantic(
        lambda: descent.solve(problem, max_iter=ITERATIONS, atol=None, rtol=None), rounds=3
    )
    ours = solve(game, HALF, 0, ITERATIONS, 0.3)
    assert np.array(gains) == pytest.approx(ours.gains[: len(gains), 0], rel=2e-3, abs=2e-3)
    assert policies[-1].numpy() == pytest.approx(ours.policies[0], abs=2e-3)


@dataclass(frozen=True)
class CrowdModelling:
    """Ring of ten places: move by -1, 0 or 1 and as much at random; be near the middle, alone."""

    size: int = 10
    horizon: int = 10
    actions = ("left", "stay", "right")

    @property
    def states(self):
        return tuple(map(str, range(self.size)))

    @property
    def initial(self):
        return np.full(self.size, 1 / self.size)

    @cached_property
    def table(self):
        moved = np.eye(self.size)[(np.arange(self.size)[:, None] + np.arange(-1, 2)) % self.size]
        return (np.roll(moved, -1, -1) + moved + np.roll(moved, 1, -1)) / 3

    def transition(self, x, u, g):
        rows = self.table[x, u]
        return np.broadcast_to(rows, np.broadcast_shapes(rows.shape, g.shape))

    def reward(self, x, u, g):
        half = self.size // 2
        places = np.broadcast_to(x, np.broadcast_shapes(x.shape, u.shape, g.shape[:-1]))
        shares = np.broadcast_to(g, (*places.shape, self.size))
        crowd = np.log(np.take_along_axis(shares, places[..., None], -1)[..., 0] + 1e-25)
        return 1 - np.abs(x - half) / half - np.abs(u - 1) / self.size - crowd


@pytest.mark.benchmark(group=f"graphex-mfg: {ITERATIONS} mirror descents on crowd modelling")
def test_crowd_descent_peira(benchmark):
    game = CrowdModelling()
    solve(game, HALF, 0, 1)
    found = benchmark(solve, game, HALF, 0, ITERATIONS, 0.1)
    assert found.gains[-1, 0] < 1.0


@pytest.mark.benchmark(group=f"graphex-mfg: {ITERATIONS} mirror descents on crowd modelling")
def test_crowd_descent_numpy(benchmark):
    size, places, moves = 10, np.arange(10), np.array([-1, 0, 1])
    p = np.zeros((size, 3, size))
    for x in places:
        for u, move in enumerate(moves):
            for noise in moves:
                p[x, u, (x + move + noise) % size] += 1 / 3
    liked = 1 - np.abs(places - 5)[:, None] / 5 - np.abs(moves) / size

    def reward(mu):
        return liked - np.log(mu + 1e-25)[:, None]

    policy, gains, _ = benchmark(
        by_arrays, np.full(size, 1 / size), 10, lambda t, mu: p, reward, 3, ITERATIONS, 0.1
    )
    ours = solve(CrowdModelling(), HALF, 0, ITERATIONS, 0.1)
    assert policy == pytest.approx(ours.policies[0], abs=1e-9)
    assert gains == pytest.approx(ours.gains[:, 0], abs=1e-9)


@pytest.mark.benchmark(group=f"graphex-mfg: {ITERATIONS} mirror descents on crowd modelling")
def test_crowd_descent_openspiel(benchmark):
    pyspiel = pytest.importorskip("pyspiel")
    pytest.importorskip("ml_collections")
    from open_spiel.python.mfg.algorithms import mirror_descent, nash_conv
    from open_spiel.python.mfg.games import crowd_modelling  # noqa: F401  (registers the game)

    game = pyspiel.load_game("python_mfg_crowd_modelling")

    def learn():
        descent = mirror_descent.MirrorDescent(game, lr=0.1)
        for _ in range(ITERATIONS):
            descent.iteration()
        return descent.get_policy()

    policy = benchmark.pedantic(learn, rounds=1)
    assert nash_conv.NashConv(game, policy).nash_conv() < 1.0
