"""Sampling, simulation and mirror descent against networkx, SciPy, MFGLib and OpenSpiel.

MFGLib and OpenSpiel are timed where they are importable. MFGLib learns the same game and must end
with the same policies. OpenSpiel's mean-field games are written in its own classes, so there the
game is its crowd modelling on a ring of ten places over ten steps, written for Peira as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np
import pytest

from peira.graphs.graphex_mfg.games import SIS
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


@pytest.mark.benchmark(group=f"graphex-mfg: {ITERATIONS} mirror descents on the core of SIS")
def test_sis_descent_peira(benchmark):
    solve(SIS(), HALF, 0, 1)
    benchmark(solve, SIS(), HALF, 0, ITERATIONS, 0.3)


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

    cost = torch.tensor([[0.0, -0.5], [-2.0, -2.5]])
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

    def transition(self, x, u, g):
        moved = np.eye(self.size)[(x + u - 1) % self.size]
        rows = (np.roll(moved, -1, -1) + moved + np.roll(moved, 1, -1)) / 3
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
