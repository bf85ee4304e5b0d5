"""Graphex mean field games against closed forms, enumeration and simulation."""

from __future__ import annotations

import gzip
import itertools
import json
from dataclasses import dataclass

import networkx as nx
import numpy as np
import pytest
from scipy.integrate import dblquad, quad
from scipy.sparse import csr_array
from scipy.special import gamma
from scipy.stats import multinomial as scipy_multinomial
from scipy.stats import poisson

from peira.data import DataError
from peira.graphs.graphex_mfg import use
from peira.graphs.graphex_mfg.baselines import (
    LpGraphon,
    boltzmann_iteration,
    fictitious_play,
    fixed_point_iteration,
    heterogeneous_mean_field,
)
from peira.graphs.graphex_mfg.deviation import best_response_on_graph
from peira.graphs.graphex_mfg.dynamics import (
    compositions,
    exploitability,
    forward,
    greedy,
    mirror_descent,
    multinomial,
    neighbour_expectation,
    optimal_values,
    state_action_values,
)
from peira.graphs.graphex_mfg.games import (
    GAMES,
    SIR,
    SIS,
    Colouring,
    NonlinearSIS,
    Rumour,
    ThresholdSIS,
    check_game,
    kernel,
    named_game,
    rewards,
)
from peira.graphs.graphex_mfg.graphex import GeneralisedGamma, SeparablePowerLaw
from peira.graphs.graphex_mfg.learning import CoreSystem, propagate, solve
from peira.graphs.graphex_mfg.networks import (
    adjacency,
    degrees_of,
    fit_graphex,
    read_network,
    tail_exponent,
)
from peira.graphs.graphex_mfg.persistence import _Neighbours, keep_neighbours
from peira.graphs.graphex_mfg.simulation import delta_mu, simulate
from peira.graphs.graphex_mfg.tabulated import TabulatedGraphex, _pair_within

HALF = SeparablePowerLaw(0.5)


def rng(seed=0):
    return np.random.default_rng(seed)


def statistics(graphex, nu, graphs, **settings):
    """Mean and standard error of edges and nodes, and pooled counts of degrees 1 to 3."""
    source, edges, nodes, low = rng(1), [], [], np.zeros(3)
    for _ in range(graphs):
        degrees = degrees_of(graphex.sample(nu, source, **settings))
        edges.append(degrees.sum() / 2)
        nodes.append(len(degrees))
        low += np.bincount(degrees, minlength=4)[1:4]
    error = np.std([edges, nodes], axis=1, ddof=1) / np.sqrt(graphs)
    return np.mean([edges, nodes], axis=1), error, low / sum(nodes)


# Graphex


def test_closed_forms_at_one_half():
    nu = 80.0
    assert HALF.expected_edges(nu) == pytest.approx(nu**2 / 2)
    assert HALF.expected_nodes(nu) == pytest.approx(nu * (np.sqrt(np.pi * nu) - 1), rel=1e-6)
    assert HALF.degree_law(4) == pytest.approx([1 / 2, 1 / 8, 1 / 16, 5 / 128])


@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.7])
def test_formulas_agree_with_quadrature(sigma):
    graphex, nu = SeparablePowerLaw(sigma), 40.0
    mass = dblquad(lambda b, a: float(graphex(a, b)), 0, np.inf, 0, np.inf)[0]
    assert graphex.edge_mass == pytest.approx(mass, rel=1e-3)

    def poisson(k):
        return lambda a: np.exp(-nu * graphex.xi(a)) * (nu * graphex.xi(a)) ** k

    isolated = (
        quad(lambda a: 1 - poisson(0)(a), 0, 1e4)[0]
        + quad(lambda a: 1 - poisson(0)(a), 1e4, np.inf)[0]
    )
    assert graphex.expected_nodes(nu) == pytest.approx(nu * isolated, rel=1e-3)
    ones = quad(poisson(1), 0, 1e4)[0] + quad(poisson(1), 1e4, np.inf)[0]
    assert graphex.degree_law(1, nu)[0] == pytest.approx(ones / isolated, rel=1e-3)


def test_degree_law_sums_to_one_and_has_its_tail():
    law = HALF.degree_law(200_000)
    assert law.sum() == pytest.approx(1.0, abs=2e-3)
    slope = np.log(law[99_999] / law[9_999]) / np.log(10)
    assert slope == pytest.approx(-1.5, abs=1e-3)
    assert HALF.degree_law(5, nu=1e6) == pytest.approx(HALF.degree_law(5), rel=2e-3)


@pytest.mark.parametrize(
    "graphex", [SeparablePowerLaw(0.3), HALF, GeneralisedGamma(0.5, 1.0), GeneralisedGamma(0.3, 2)]
)
def test_sampled_graphs_have_expected_size_and_degrees(graphex):
    nu = 40.0
    mean, error, low = statistics(graphex, nu, 400)
    expected = np.array([graphex.expected_edges(nu), graphex.expected_nodes(nu)])
    assert (np.abs(mean - expected) < 4 * error).all()
    assert low == pytest.approx(graphex.degree_law(3, nu), abs=0.01)


@pytest.mark.parametrize("graphex", [HALF, GeneralisedGamma(0.5, 1.0)])
def test_number_of_edges_does_not_depend_on_the_cut(graphex):
    # A large tolerance moves most edges from the direct draw to the two indirect ones.
    nu = 6.0
    mean, error, _ = statistics(graphex, nu, 4000, tolerance=3.0)
    assert abs(mean[0] - graphex.expected_edges(nu)) < 4 * error[0]


def test_sampler_agrees_with_brute_force():
    nu, reach = 4.0, 400.0
    source, edges, nodes = rng(3), [], []
    for _ in range(1500):
        weight = HALF.weight(source.uniform(0, reach, source.poisson(nu * reach)))
        heavy = np.sort(weight)[::-1][:200]
        joined = np.triu(source.random((len(heavy),) * 2) < np.outer(heavy, heavy), 1)
        edges.append(joined.sum())
        nodes.append(((joined + joined.T).sum(0) > 0).sum())
    mean, error, _ = statistics(HALF, nu, 1500)
    brute = np.array([np.mean(edges), np.mean(nodes)])
    spread = np.array([np.std(edges), np.std(nodes)]) / np.sqrt(1500)
    # Brute force misses edges of points beyond its reach: about nu^2 / reach of them.
    assert (np.abs(mean - brute) < 4 * np.hypot(error, spread) + nu**2 / reach).all()


def test_sample_is_simple_symmetric_and_reproducible():
    graph = HALF.sample(60.0, rng(5))
    assert (graph != graph.T).nnz == 0
    assert graph.diagonal().sum() == 0
    assert degrees_of(graph).min() >= 1
    assert set(graph.data) == {1}
    assert (graph != HALF.sample(60.0, rng(5))).nnz == 0


def test_generalised_gamma_core():
    graphex = GeneralisedGamma(0.4, 1.0, classes=31)
    total = quad(
        lambda w: float(graphex.xi(w)) * w**-1.4 * np.exp(-w) / gamma(0.6), 0, np.inf, limit=200
    )[0]
    assert graphex.edge_mass == pytest.approx(total, rel=1e-3)
    matrix = graphex.neighbour_matrix()
    assert matrix.sum(1) == pytest.approx(np.ones(31))
    # Heavier agents see lighter neighbours: for them all edges are sure, weight or not.
    assert matrix[-1, 0] > matrix[0, 0]
    expected = 50.0 * graphex.xi(graphex.core_weights())
    assert (graphex.core_class(expected, 50.0) == np.arange(31)).all()


def test_bad_graphex_settings_are_refused():
    for sigma in (0.0, 1.0, -0.2, 1.5):
        with pytest.raises(ValueError, match="sigma must lie"):
            SeparablePowerLaw(sigma)
    with pytest.raises(ValueError, match="nu must be positive"):
        HALF.sample(0.0, rng())
    with pytest.raises(ValueError, match="candidate points"):
        SeparablePowerLaw(0.95).sample(500.0, rng())
    with pytest.raises(ValueError, match="tau must be positive"):
        GeneralisedGamma(0.5, tau=0.0)


# A graphex of one's own


def own_half(reach=1000.0):
    """The power law with sigma 1/2, as a person would type it."""
    return TabulatedGraphex.from_function(lambda a, b: 1 / ((1 + a) * (1 + b)) ** 2, reach)


def test_own_function_has_the_closed_forms_of_the_same_graphex():
    own, nu = own_half(), 40.0
    assert own.edge_mass == pytest.approx(1.0, rel=3e-3)
    assert own.expected_nodes(nu) == pytest.approx(HALF.expected_nodes(nu), rel=0.01)
    assert own.degree_law(3, nu) == pytest.approx(HALF.degree_law(3, nu), abs=3e-3)
    assert own(0.02, 0.01) == pytest.approx(HALF(0.02, 0.01), rel=0.05)
    assert own(5.0, 1e6) == 0


def test_own_function_has_the_same_equilibrium():
    game = NonlinearSIS(horizon=12)
    ours, own = (solve(game, graphex, 2, 20) for graphex in (HALF, own_half(100.0)))
    assert own.policies.shape == (202, 12, 2, 2)
    assert own.policies[:2] == pytest.approx(ours.policies[:2])
    assert own.policies[2:] == pytest.approx(np.broadcast_to(ours.policies[2], (200, 12, 2, 2)))
    assert own.exploitability == pytest.approx(ours.exploitability[[0, 1] + [2] * 200])
    again = propagate(game, own.graphex, 2, own.policies[2:], own.policies[:2])
    assert again.exploitability == pytest.approx(own.exploitability)
    played = simulate(game, own.graphex.sample(60.0, rng()), own, 20, rng(1))
    assert delta_mu(played.mean_fields, own.mean_field(played.degrees)) < 6.0


@pytest.mark.parametrize(
    ("graphex", "nu"),
    [
        (own_half(300.0), 25.0),
        (TabulatedGraphex([0, 1, 4, 40], [[0.7, 0.2, 0.01], [0.2, 0, 0], [0.01, 0, 0.001]]), 20.0),
    ],
)
def test_own_graphs_have_expected_size_and_degrees(graphex, nu):
    mean, error, low = statistics(graphex, nu, 400)
    expected = np.array([graphex.expected_edges(nu), graphex.expected_nodes(nu)])
    assert (np.abs(mean - expected) < 4 * error).all()
    assert low == pytest.approx(graphex.degree_law(3, nu), abs=0.01)


def test_own_edges_join_the_right_cells():
    # Cell 0 is a complete graph, cells 1 and 2 have edges to cell 0 only: surely and never.
    graphex = TabulatedGraphex([0, 1, 2, 3], [[1, 1, 0], [1, 0, 0], [0, 0, 0]])
    degrees = degrees_of(graphex.sample(12.0, rng(4)))
    hubs = (degrees == len(degrees) - 1).sum()
    assert 0 < hubs < len(degrees)
    assert degrees.sum() / 2 == hubs * (hubs - 1) / 2 + hubs * (len(degrees) - hubs)
    assert (degrees[degrees < len(degrees) - 1] == hubs).all()
    assert [_pair_within(k) for k in range(10)] == [(r, c) for r in range(5) for c in range(r)]
    huge = 3_000_000_000 * 2_999_999_999 // 2
    assert _pair_within(huge) == (3_000_000_000, 0)
    assert _pair_within(huge - 1) == (2_999_999_999, 2_999_999_998)


def test_own_core_classes_see_the_cells_of_the_table():
    # Two cells that see only each other; the lighter one protects itself.
    graphex = TabulatedGraphex([0, 1, 3], [[0, 1], [1, 0]])
    assert graphex.neighbour_matrix().tolist() == [[0, 1], [1, 0]]
    policy = np.zeros((2, 2, 2, 2))
    policy[0, ..., 0] = policy[1, ..., 1] = 1.0
    infected = propagate(SIS(horizon=2), graphex, 1, policy).mean_fields[..., 1]
    assert infected[1] == pytest.approx([0.5, 0.6, 0.6 * 0.8 + 0.4 * 0.8 * 0.4])
    assert infected[2] == pytest.approx([0.5, 0.4, 0.4 * 0.8])
    # The periphery sees what the last cell sees: cell 0.
    assert infected[0] == pytest.approx([0.5, 0.5, 0.5 * 0.8 + 0.5 * 0.5 * 0.8 * 0.6])


def test_own_population_weighs_cells_by_their_nodes():
    graphex, nu = TabulatedGraphex([0, 1, 6], [[0.5, 0.1], [0.1, 0.0]]), 30.0
    rate = nu * np.array([1.0, 0.1])
    nodes = nu * np.array([1, 5]) * poisson.sf(0, rate)
    core = nu * np.array([1, 5]) * poisson.sf(2, rate)
    weights = propagate(SIS(horizon=2), graphex, 2).weights(nu=nu)
    assert weights.sum() == pytest.approx(1.0)
    assert weights[2:] == pytest.approx(core / nodes.sum())
    assert graphex.core_class(np.array([1, 3, 16, 17, 99]), nu).tolist() == [1, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="give the size nu"):
        propagate(SIS(horizon=2), graphex, 2).mean_field()


@pytest.mark.parametrize(
    ("grid", "table", "message"),
    [
        ([0, 1, 1], np.eye(2), "must rise from 0"),
        ([1, 2], [[1]], "must rise from 0"),
        ([0, 1, 2], [[1]], r"2 cells, but the table has shape \(1, 1\)"),
        ([0, 1, 2], [[1, 0], [0, 1.5]], r"in \[0, 1\]; got 1.5 in cells \(1, 1\)"),
        ([0, 1, 2], [[1, np.nan], [0, 1]], r"in \[0, 1\]; got nan in cells \(0, 1\)"),
        ([0, 1, 2], [[1, 0.5], [0.2, 1]], r"symmetric; got 0.5 and 0.2 in cells \(0, 1\)"),
        ([0, 1], [[0]], "no edge"),
    ],
)
def test_bad_tables_are_named(grid, table, message):
    with pytest.raises(ValueError, match=message):
        TabulatedGraphex(grid, table)


def test_bad_reach_and_size_are_named():
    with pytest.warns(UserWarning, match="8% of the edge ends lie beyond half.*raise reach=10"):
        own_half(10.0)
    with pytest.raises(ValueError, match="reach must be positive"):
        own_half(0.0)
    with pytest.raises(ValueError, match="nu must be positive"):
        own_half().sample(0.0, rng())
    with pytest.raises(ValueError, match="candidate points"):
        own_half().sample(1e6, rng())


# Networks


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("snap.txt", "# nodes: 3\n1\t2\n2\t1\n2\t3\n3\t3\n"),
        ("out.konect", "% sym unweighted\n1 2 1 100\n2 3 1 200\n"),
        ("graph.mtx", "%%MatrixMarket matrix coordinate\n% c\n3 3 2\n1 2\n2 3\n"),
        ("named.csv", "source,target\nann,bob\nbob,cem\n"),
    ],
)
def test_formats_of_edge_lists(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert read_network(path).toarray().tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert (read_network(packed) != read_network(path)).nnz == 0


def test_all_kinds_of_graph_give_the_same_matrix():
    karate = nx.karate_club_graph()
    expected = nx.to_numpy_array(karate, weight=None)
    edges = np.array(karate.edges)
    for graph in (karate, edges, edges.T, csr_array(expected), nx.DiGraph(karate)):
        assert (adjacency(graph).toarray() == expected).all()


def test_bad_networks_name_file_row_and_value(tmp_path):
    path = tmp_path / "edges.txt"
    path.write_text("1 2\n3\n")
    with pytest.raises(DataError, match=r"edges.txt, row 2: an edge needs two nodes; got '3'"):
        read_network(path)
    path.write_text("1 1\n")
    with pytest.raises(DataError, match="without edges"):
        read_network(path)
    with pytest.raises(DataError, match="no such file"):
        read_network(tmp_path / "missing.txt")
    with pytest.raises(DataError, match="not a graph"):
        adjacency(np.ones((3, 3)))
    with pytest.raises(DataError, match="without edges"):
        adjacency(nx.empty_graph(3))


def test_fit_recovers_sigma_and_size():
    fits = [fit_graphex(HALF.sample(120.0, rng(seed))) for seed in range(20)]
    sigma = np.array([fit.sigma for fit in fits])
    assert sigma.mean() == pytest.approx(0.5, abs=0.01)
    # The uncorrected estimator is biased upwards at this size.
    assert np.mean([fit.tail_index for fit in fits]) > 0.525
    assert np.mean([fit.nu for fit in fits]) == pytest.approx(120, rel=0.05)
    half_width = np.mean([fit.sigma_interval[1] - fit.sigma for fit in fits])
    assert half_width / 1.96 == pytest.approx(sigma.std(), rel=0.5)
    assert all(fit.tail_exponent < 2 for fit in fits)


def test_tail_exponent_of_a_power_law():
    draws = np.floor(0.5 * (1 - rng().random(20_000)) ** (-1 / 1.5) + 0.5).astype(int)
    assert tail_exponent(draws[draws > 0]) == pytest.approx(2.5, abs=0.1)


def test_finite_average_degree_warns_and_regular_graphs_are_refused():
    with pytest.warns(UserWarning, match="exponent 2.* above 2"):
        fit_graphex(nx.barabasi_albert_graph(1500, 2, seed=0))
    with pytest.raises(DataError, match="too regular"):
        fit_graphex(nx.path_graph(2))


# Games


@pytest.mark.parametrize("name", GAMES)
def test_games_are_games(name):
    check_game(named_game(name))


def test_values_of_kernels():
    g = np.array([0.7, 0.3])
    sis = kernel(SIS(), g)
    assert sis[0, 0] == pytest.approx([1 - 0.8 * 0.3, 0.8 * 0.3])
    assert sis[0, 1] == pytest.approx([1, 0])
    assert sis[1, 0] == pytest.approx([0.2, 0.8])
    assert rewards(SIS(), g).tolist() == [[0.0, -0.5], [-2.0, -2.5]]
    assert kernel(NonlinearSIS(), g)[0, 0, 1] == pytest.approx(0.8 * (1 - 0.7**3))
    assert kernel(ThresholdSIS(), np.array([0.5, 0.5]))[0, 0, 1] == 0
    assert kernel(ThresholdSIS(), np.array([0.4, 0.6]))[0, 0, 1] == 0.8
    assert kernel(SIR(), np.array([0.7, 0.3, 0]))[2].tolist() == [[0, 0, 1], [0, 0, 1]]
    rumour = kernel(Rumour(), np.array([0.5, 0.1, 0.4]))
    assert rumour[0, 1] == pytest.approx([1 - 0.32, 0.32, 0])
    assert rumour[2].tolist() == [[0, 1, 0], [0, 0, 1]]
    assert rewards(Rumour(), np.array([0.5, 0.1, 0.4]))[2] == pytest.approx([0, 0])
    colouring = kernel(Colouring(), np.full(5, 0.2))
    assert colouring[0, 0] == pytest.approx([0.1 / 3, 0.1 / 3, 0, 0, 0.9 + 0.1 / 3])
    assert rewards(Colouring(), np.eye(5)[0])[0] == pytest.approx([-0.9, -0.8, -0.9])


@dataclass(frozen=True)
class Leaky(SIS):
    def transition(self, x, u, g):
        return 0.9 * super().transition(x, u, g)


def test_games_that_lose_mass_are_refused():
    with pytest.raises(ValueError, match=r"must be non-negative and sum to one; got \[0.9"):
        solve(Leaky(), HALF)
    with pytest.raises(ValueError, match="non-negative"):
        check_game(SIS(infection=1.4))
    with pytest.raises(ValueError, match="horizon"):
        check_game(SIS(horizon=0))
    with pytest.raises(ValueError, match="no game 'chess'"):
        named_game("chess")


# Dynamic programming


def test_compositions_and_their_probabilities():
    counts = compositions(4, 3)
    assert len(counts) == 15
    assert sorted(map(tuple, counts)) == [tuple(row) for row in counts]
    g = np.array([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
    ours = multinomial(counts, g)
    theirs = np.array([[scipy_multinomial.pmf(row, 4, p) for row in counts] for p in g])
    assert ours == pytest.approx(theirs)
    with pytest.raises(ValueError, match="lower kstar"):
        compositions(200, 5)


def test_expectation_over_neighbours_agrees_with_sampling():
    game, g = NonlinearSIS(), np.array([[0.6, 0.4]])
    p, _ = neighbour_expectation(game, 3, g)
    drawn = rng().multinomial(3, g[0], 200_000) / 3
    sampled = kernel(game, drawn).mean(0)
    assert p[0] == pytest.approx(sampled, abs=4 * 0.5 / np.sqrt(200_000))
    # Jensen: the concave response is below its value at the mean, the linear one equal to it.
    assert p[0, 0, 0, 1] < kernel(game, g[0])[0, 0, 1] - 0.01
    assert neighbour_expectation(SIS(), 3, g)[0][0] == pytest.approx(kernel(SIS(), g[0]))


def random_process(states=3, actions=2, horizon=3):
    source = rng(7)
    p = source.dirichlet(np.ones(states), (1, horizon, states, actions))
    return p, source.normal(size=(1, horizon, states, actions))


def value_by_enumeration(p, r, policy, initial):
    """Mean return as a sum over all histories."""
    horizon, states, actions = r.shape
    total = 0.0
    for xs in itertools.product(range(states), repeat=horizon):
        for us in itertools.product(range(actions), repeat=horizon):
            chance = initial[xs[0]]
            for t in range(horizon):
                chance *= policy[t, xs[t], us[t]]
                if t + 1 < horizon:
                    chance *= p[t, xs[t], us[t], xs[t + 1]]
            total += chance * sum(r[t, xs[t], us[t]] for t in range(horizon))
    return total


def test_dynamic_programming_agrees_with_enumeration():
    p, r = random_process()
    initial = np.array([0.5, 0.3, 0.2])
    policy = rng(8).dirichlet(np.ones(2), (1, 3, 3))
    q = state_action_values(p, r, policy)
    value = initial @ (policy[0, 0] * q[0, 0]).sum(-1)
    assert value == pytest.approx(value_by_enumeration(p[0], r[0], policy[0], initial))
    # The best of all deterministic policies.
    best = max(
        value_by_enumeration(p[0], r[0], np.eye(2)[np.reshape(choice, (3, 3))], initial)
        for choice in itertools.product(range(2), repeat=9)
    )
    assert initial @ optimal_values(p, r)[0, 0].max(-1) == pytest.approx(best)
    assert exploitability(p, r, policy, initial)[0] == pytest.approx(best - value)
    response = greedy(optimal_values(p, r))
    assert exploitability(p, r, response, initial)[0] == pytest.approx(0, abs=1e-12)


def test_mirror_descent_finds_the_best_response():
    p, r = random_process()
    initial = np.array([0.5, 0.3, 0.2])
    policy, gains = mirror_descent(p, r, initial, 400, 1.0)
    assert gains[-1, 0] < 1e-3 * gains[0, 0]
    assert gains[-1] == pytest.approx(exploitability(p, r, policy, initial))
    assert policy.argmax(-1)[0, 0].tolist() == optimal_values(p, r).argmax(-1)[0, 0].tolist()


def test_forward_conserves_mass_and_agrees_with_powers():
    p, _ = random_process()
    policy = rng(8).dirichlet(np.ones(2), (1, 3, 3))
    initial = np.array([0.5, 0.3, 0.2])
    mu = forward(p, policy, initial)
    assert mu.sum(-1) == pytest.approx(np.ones((1, 4)))
    steps = [np.einsum("xu,xuy->xy", policy[0, t], p[0, t]) for t in range(3)]
    assert mu[0, 3] == pytest.approx(initial @ steps[0] @ steps[1] @ steps[2])


# Limit system and learning


@pytest.mark.parametrize("name", GAMES)
def test_mean_fields_keep_their_mass(name):
    game = named_game(name)
    classes = propagate(game, HALF, kstar=4)
    assert classes.mean_fields.shape == (5, 51, len(game.states))
    assert classes.mean_fields.sum(-1) == pytest.approx(np.ones((5, 51)), abs=1e-12)
    assert keep_neighbours(classes).mean_fields.sum(-1) == pytest.approx(np.ones((5, 51)), abs=1e-9)
    mixed = heterogeneous_mean_field(game, np.array([1, 1, 2, 3, 7, 12, 17]), kstar=4)
    assert mixed.sum(-1) == pytest.approx(np.ones((5, 51)), abs=1e-9)


def test_core_of_uniform_sis_by_hand():
    field = propagate(SIS(), HALF, kstar=0).mean_fields[0, :, 1]
    infected = 0.5
    for t in range(50):
        assert field[t] == pytest.approx(infected)
        infected = infected * 0.8 + (1 - infected) * 0.5 * 0.8 * infected
    # Endemic level of i = 0.8 i + 0.4 i (1 - i).
    assert field[-1] == pytest.approx(0.5, abs=1e-6)


def test_linear_response_makes_all_degrees_alike_and_concave_does_not():
    linear = propagate(SIS(), HALF, kstar=5).mean_fields
    assert linear == pytest.approx(np.broadcast_to(linear[-1], linear.shape))
    concave = propagate(NonlinearSIS(), HALF, kstar=5).mean_fields[:, -1, 1]
    assert (np.diff(concave) > 0.002).all()


def test_large_degrees_approach_the_core():
    fields = propagate(NonlinearSIS(), HALF, kstar=80).mean_fields[:, 20, 1]
    gaps = np.abs(fields[[9, 19, 39, 79]] - fields[-1])
    # The correction is of order 1/k.
    assert gaps[:-1] / gaps[1:] == pytest.approx(2.0, abs=0.15)


def test_nobody_protects_when_it_is_free_to_be_infected():
    equilibrium = solve(SIS(cost_infection=0.0), HALF, kstar=2, iterations=100, rate=1.0)
    assert equilibrium.policies[..., 0].min(axis=(0, 2))[:-1].min() > 0.99
    assert (equilibrium.exploitability < 0.05).all()


def test_learning_reduces_exploitability_and_uses_the_core():
    game = NonlinearSIS()
    equilibrium = solve(game, HALF, kstar=3, iterations=200, rate=0.1)
    left = equilibrium.gains[-1] / equilibrium.gains[0]
    assert (left < 0.06).all()
    assert equilibrium.gains.shape == (201, 4)
    # The gains reported are those of the policies returned.
    again = propagate(game, HALF, 3, equilibrium.policies[3:], equilibrium.policies[:3])
    assert again.gains[0] == pytest.approx(equilibrium.gains[-1])
    assert again.mean_fields == pytest.approx(equilibrium.mean_fields)
    # The core does not notice the periphery.
    alone = solve(game, HALF, kstar=0, iterations=200, rate=0.1)
    assert alone.policies[0] == pytest.approx(equilibrium.policies[-1])


def test_colouring_ends_almost_evenly():
    game = Colouring(preference=(0.0,) * 5)
    equilibrium = solve(game, HALF, kstar=0, iterations=300, rate=1.0)
    assert equilibrium.mean_fields[0, 40] == pytest.approx(np.full(5, 0.2), abs=0.05)
    assert equilibrium.gains[-1, 0] < 0.01 * equilibrium.gains[0, 0]


def test_classes_of_degrees_and_their_weights():
    classes = propagate(SIS(horizon=2), HALF, kstar=2)
    degrees = np.array([1, 1, 2, 3, 9])
    assert classes.class_of(degrees).tolist() == [0, 0, 1, 2, 2]
    assert classes.weights(degrees) == pytest.approx([0.4, 0.2, 0.4])
    assert classes.weights() == pytest.approx([0.5, 0.125, 0.375])
    assert classes.policy(7).shape == (2, 2, 2)
    with pytest.raises(ValueError, match="at least one neighbour"):
        classes.policy(0)
    with pytest.raises(ValueError, match="kstar"):
        solve(SIS(), HALF, kstar=-1)


def test_core_of_several_classes():
    graphex = GeneralisedGamma(0.5, classes=9)
    assert propagate(SIS(), graphex, 0).mean_fields[0] == pytest.approx(
        propagate(SIS(), HALF, 0).mean_fields[0]
    )
    found = solve(SIS(horizon=10), graphex, kstar=2, iterations=20)
    assert found.policies.shape == (11, 10, 2, 2)
    degrees = degrees_of(graphex.sample(40.0, rng()))
    assert found.weights(degrees).sum() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="one class"):
        keep_neighbours(found)


# Baselines


def test_lp_graphon_of_equal_degrees_is_the_plain_mean_field():
    graphon = LpGraphon(np.full(100, 8))
    assert propagate(SIS(), graphon, 0).mean_fields[0] == pytest.approx(
        propagate(SIS(), HALF, 0).mean_fields[0]
    )


def test_lp_graphon_counts_neighbours_against_the_mean_degree():
    degrees = np.array([1, 1, 1, 1, 16])
    found = propagate(SIS(), LpGraphon(degrees, classes=5), 0)
    mean = 0.5
    one_step = 0.5 * 0.8 + 0.5 * 0.5 * 0.8 * np.minimum(1, np.array([0.25, 4.0]) * mean)
    assert found.mean_fields[:, 1, 1] == pytest.approx(one_step)
    assert found.weights(degrees) == pytest.approx([0.8, 0.2])


def test_heterogeneous_mean_field_of_a_linear_game_is_the_core():
    degrees = np.array([1, 2, 2, 3, 5, 30])
    mixed = heterogeneous_mean_field(SIS(), degrees, 4)
    core = propagate(SIS(), HALF, 0).mean_fields[0]
    assert mixed == pytest.approx(np.broadcast_to(core, mixed.shape))


def test_other_learning_rules():
    game = Rumour()
    core = CoreSystem(game, HALF)
    for rule in (fixed_point_iteration, fictitious_play):
        policy, gains = rule(game, HALF, 60)
        assert gains[-1] == pytest.approx(core.exploitability(policy))
        assert gains[-1, 0] < 0.02 * gains[0, 0]
    # Hot Boltzmann play is uniform play.
    _, gains = boltzmann_iteration(game, HALF, 5, temperature=1e9)
    assert gains[-1] == pytest.approx(gains[0])


# Neighbours that stay


def joint_law_by_enumeration(game, policy, core_policy, g, horizon):
    """State law of an agent with two neighbours, over all states of the three."""
    start = game.initial
    joint = {s: np.prod([start[i] for i in s]) for s in itertools.product(range(2), repeat=3)}
    law = [start]
    for t in range(horizon):
        neighbour = np.einsum("xu,xuy->xy", core_policy[t], kernel(game, g[t]))
        after = dict.fromkeys(joint, 0.0)
        for (x, a, b), mass in joint.items():
            seen = np.bincount([a, b], minlength=2) / 2
            own = np.einsum("u,uy->y", policy[t, x], kernel(game, seen)[x])
            for y, c, d in after:
                after[y, c, d] += mass * own[y] * neighbour[a, c] * neighbour[b, d]
        joint = after
        law.append(np.array([sum(m for s, m in joint.items() if s[0] == x) for x in range(2)]))
    return np.array(law)


def test_kept_neighbours_agree_with_enumeration():
    game = NonlinearSIS(horizon=6)
    equilibrium = solve(game, HALF, kstar=3, iterations=30)
    kept = keep_neighbours(equilibrium)
    expected = joint_law_by_enumeration(
        game, equilibrium.policies[1], equilibrium.policies[-1], equilibrium.neighbourhoods[-1], 6
    )
    assert kept.mean_fields[1] == pytest.approx(expected)
    assert kept.mean_fields[-1] == pytest.approx(equilibrium.mean_fields[-1])
    # Both limits agree while nobody has a past to remember.
    assert kept.mean_fields[:, 1] == pytest.approx(equilibrium.mean_fields[:, 1])
    assert np.abs(kept.mean_fields[1, -1] - equilibrium.mean_fields[1, -1]).max() > 1e-3


def test_moves_of_several_neighbours_are_independent():
    step = np.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5], [0.3, 0.0, 0.7]])
    matrix = np.ones((1, 1))
    for k in (1, 2, 3):
        group = _Neighbours.of(k, 3)
        matrix = group.move(matrix, step)
    assert matrix.sum(1) == pytest.approx(np.ones(10))
    g = np.array([[0.5, 0.2, 0.3]])
    assert multinomial(group.counts, g) @ matrix == pytest.approx(
        multinomial(group.counts, g @ step)
    )


# Simulation


def test_simulation_of_a_pair_agrees_with_its_markov_chain():
    game = SIS(horizon=5)
    played = simulate(game, nx.path_graph(2), propagate(game, HALF, 2), 20_000, rng())
    chain = np.array([0.25, 0.25, 0.25, 0.25])
    levels = [0.5]
    for _ in range(5):
        after = np.zeros(4)
        for (a, b), mass in zip(itertools.product(range(2), repeat=2), chain, strict=True):
            up = [0.8 if own else 0.4 * other for own, other in ((a, b), (b, a))]
            for c, d in itertools.product(range(2), repeat=2):
                p = (up[0] if c else 1 - up[0]) * (up[1] if d else 1 - up[1])
                after[2 * c + d] += mass * p
        chain = after
        levels.append(chain[3] + 0.5 * (chain[1] + chain[2]))
    assert played.mean_fields.mean(0)[:, 1] == pytest.approx(levels, abs=4 * 0.5 / np.sqrt(2e4))
    returns = -2 * sum(levels[:5]) - 0.5 * 0.5 * 5
    assert played.returns.mean() == pytest.approx(returns, abs=0.1)


def test_simulation_keeps_everybody_and_its_seed():
    graph = HALF.sample(20.0, rng(2))
    solution = propagate(Colouring(), HALF, 4)
    first = simulate(Colouring(), graph, solution, 3, rng(1))
    assert first.mean_fields.sum(-1) == pytest.approx(np.ones((3, 51)))
    assert (
        first.mean_fields == simulate(Colouring(), graph, solution, 3, rng(1)).mean_fields
    ).all()
    present = np.unique(first.classes)
    assert first.class_mean_fields[present].sum(-1) == pytest.approx(np.ones((len(present), 51)))


def test_agents_follow_the_policy_of_their_degree():
    game = SIS(infection=1.0, recovery=1.0, initially_infected=1.0, horizon=3)
    protect, nothing = np.zeros((1, 3, 2, 2)), np.zeros((1, 3, 2, 2))
    protect[..., 1], nothing[..., 0] = 1.0, 1.0
    star = nx.star_graph(6)
    solution = propagate(game, HALF, 1, core_policy=nothing, periphery_policy=protect)
    played = simulate(game, star, solution, 2, rng())
    # All recover at once; nobody is infected again; leaves pay for protection at each step.
    assert played.returns[played.degrees == 6] == pytest.approx([-2.0])
    assert played.returns[played.degrees == 1] == pytest.approx(np.full(6, -2.0 - 1.5))
    assert played.mean_fields[0, 1:, 1].max() == 0


def test_dense_graphs_follow_the_core():
    played = simulate(SIS(), nx.complete_graph(800), propagate(SIS(), HALF, 0), 10, rng())
    assert delta_mu(played.mean_fields, propagate(SIS(), HALF, 0).mean_fields[0]) < 2.0
    assert 0.4 < played.spread() < 3.0


def test_delta_mu_by_hand():
    simulated = np.array([[[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], [[0.8, 0.2], [0.5, 0.5], [0, 1]]])
    predicted = np.array([[0.9, 0.1], [0.5, 0.5], [0.9, 0.1]])
    assert delta_mu(simulated, predicted) == pytest.approx(100 / 4 * 0.2)


def test_kept_neighbours_predict_graphs_better():
    graph = HALF.sample(150.0, rng(0))
    fresh = propagate(SIS(), HALF, 10)
    played = simulate(SIS(), graph, fresh, 10, rng(1))
    errors = [
        delta_mu(played.mean_fields, limit.mean_field(played.degrees))
        for limit in (fresh, keep_neighbours(fresh))
    ]
    assert errors[1] < 0.75 * errors[0]


def test_dynamics_that_amplify_chance_warn():
    game = ThresholdSIS()
    nothing = np.zeros((1, 50, 2, 2))
    nothing[..., 0] = 1.0
    with pytest.warns(UserWarning, match="no deterministic mean field"):
        simulate(game, nx.complete_graph(300), propagate(game, HALF, 0, nothing), 20, rng())
    with pytest.raises(ValueError, match="trials"):
        simulate(game, nx.path_graph(2), propagate(game, HALF, 0), 0)


def test_retrained_agent_finds_the_obvious_deviation():
    game = SIS(cost_infection=5.0, horizon=12)
    nothing = np.zeros((1, 12, 2, 2))
    nothing[..., 0] = 1.0
    reckless = propagate(game, HALF, 0, core_policy=nothing)
    found = best_response_on_graph(game, nx.complete_graph(30), reckless, 0, 160, rng())
    assert found.gain > 4 * found.error > 0
    # Protect while susceptible, except at the end, when it no longer pays.
    assert (found.policy[:9, 0, 1] == 1).all()
    assert found.policy[11, 0, 0] == 1
    assert (found.policy[:, 1, 0] == 1).all()
    with pytest.raises(ValueError, match="agent must be"):
        best_response_on_graph(game, nx.complete_graph(3), reckless, 3)
    with pytest.raises(ValueError, match="episodes"):
        best_response_on_graph(game, nx.complete_graph(3), reckless, 0, episodes=8)


# Commands


def test_commands(tmp_path, capsys):
    edges, policies = tmp_path / "edges.txt", tmp_path / "policies.json"
    use.sample(edges, nu=30.0, seed=1)
    assert sorted(degrees_of(read_network(edges))) == sorted(degrees_of(HALF.sample(30.0, rng(1))))
    use.fit(edges)
    use.compare(edges, game="nonlinear-sis", kstar=3, trials=3)
    use.equilibrium(edges, policies, kstar=2, iterations=10, trials=2)
    printed = capsys.readouterr().out
    assert "tail exponent" in printed
    assert "L^p graphon" in printed
    assert "mean-field error" in printed
    document = json.loads(policies.read_text())
    assert document["classes"] == ["degree 1", "degree 2", "core"]
    assert np.shape(document["policies"]) == (3, 50, 2, 2)


def test_real_network(real_data):
    with pytest.warns(UserWarning, match="above 2"):
        fit = fit_graphex(real_data / "collegemsg" / "CollegeMsg.txt")
    assert (fit.nodes, fit.edges) == (1899, 13838)
