"""Radiation, gravity and all-pairs scoring against scikit-mobility and plain Python loops.

scikit-mobility 1.3.1 asks for pandas below 2 and does not install beside Peira; where it is
importable it is timed, elsewhere the loops of this file stand in for it: the same algorithm,
origin by origin and pair by pair in pure Python, with the haversine distance (scikit-mobility's
radiation model uses the slower geodesic one).
"""

from __future__ import annotations

import math

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from peira.graphs.commuters import geo
from peira.graphs.commuters.evaluation import compare
from peira.graphs.commuters.method import CommuterModel
from peira.graphs.commuters.simulator import simulate_commuters
from peira.graphs.commuters.spatial_models import GravityModel, RadiationModel
from peira.graphs.commuters.table import ODTable

PLACES = 2000
LOOP_PLACES = 300


def country(n: int) -> ODTable:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "id": np.arange(n).astype(str),
            "lon": rng.uniform(-60, -40, n),
            "lat": rng.uniform(-25, -5, n),
            "population": np.exp(rng.normal(10, 1.1, n)).round(),
        }
    )
    i, j = rng.integers(n, size=(2, 20 * n))
    keep = i != j
    flows = pd.DataFrame({"origin": i, "destination": j, "flow": rng.integers(1, 99, 20 * n)})
    flows = flows[keep].drop_duplicates(["origin", "destination"]).astype({"flow": float})
    return ODTable(table, flows)


@pytest.fixture(scope="module")
def large() -> ODTable:
    return country(PLACES)


@pytest.fixture(scope="module")
def small() -> ODTable:
    return country(LOOP_PLACES)


def haversine(lon1: float, lat1: float, lon2: float, lat2: float) -> float:
    lam1, phi1, lam2, phi2 = map(math.radians, (lon1, lat1, lon2, lat2))
    h = math.sin((phi2 - phi1) / 2) ** 2
    h += math.cos(phi1) * math.cos(phi2) * math.sin((lam2 - lam1) / 2) ** 2
    return 2 * geo.EARTH_RADIUS_KM * math.asin(math.sqrt(h))


def radiation_by_loops(net: ODTable) -> list[tuple[int, int, float]]:
    lon, lat = net.lon.tolist(), net.lat.tolist()
    mass, out = net.indicators["population"].tolist(), net.out_totals.tolist()
    edges = []
    for i in range(len(net)):
        outwards = sorted(
            (haversine(lon[i], lat[i], lon[j], lat[j]), j) for j in range(len(net)) if j != i
        )
        inside = 0.0
        for _, j in outwards:
            below = (mass[i] + inside) * (mass[i] + mass[j] + inside)
            edges.append((i, j, out[i] * mass[i] * mass[j] / below))
            inside += mass[j]
    return edges


def gravity_by_loops(net: ODTable, exponent: float) -> list[tuple[int, int, float]]:
    lon, lat = net.lon.tolist(), net.lat.tolist()
    mass, out = net.indicators["population"].tolist(), net.out_totals.tolist()
    edges = []
    for i in range(len(net)):
        pull = [
            0.0 if j == i else mass[j] * haversine(lon[i], lat[i], lon[j], lat[j]) ** -exponent
            for j in range(len(net))
        ]
        total = sum(pull)
        edges += [(i, j, out[i] * pull[j] / total) for j in range(len(net)) if j != i]
    return edges


def tessellation(net: ODTable):
    geopandas = pytest.importorskip("geopandas")
    return geopandas.GeoDataFrame(
        {
            "tile_ID": net.ids,
            "relevance": net.indicators["population"],
            "tot_outflow": net.out_totals,
        },
        geometry=geopandas.points_from_xy(net.lon, net.lat),
        crs="EPSG:4326",
    )


@pytest.mark.benchmark(group="radiation 300 places")
def test_radiation_peira(benchmark, small):
    model = RadiationModel("population").fit(small)
    model.predict(small)
    flow = benchmark(lambda: model.predict(small))
    expected = {(i, j): value for i, j, value in radiation_by_loops(small)}
    order = [expected[i, j] for i, j in small.pairs("all").tolist()]
    np.testing.assert_allclose(flow, order, rtol=1e-8)


@pytest.mark.benchmark(group="radiation 300 places")
def test_radiation_loops(benchmark, small):
    benchmark.pedantic(radiation_by_loops, (small,), rounds=3)


@pytest.mark.benchmark(group="radiation 300 places")
def test_radiation_scikit_mobility(benchmark, small):
    skmob = pytest.importorskip("skmob.models.radiation")
    tiles = tessellation(small)
    model = skmob.Radiation()
    benchmark.pedantic(lambda: model.generate(tiles, out_format="probabilities"), rounds=1)


@pytest.mark.benchmark(group="radiation 2000 places")
def test_radiation_large_peira(benchmark, large):
    model = RadiationModel("population").fit(large)
    benchmark.pedantic(lambda: model.predict(large), rounds=3, warmup_rounds=1)


@pytest.mark.benchmark(group="radiation 2000 places")
def test_radiation_large_loops(benchmark, large):
    benchmark.pedantic(radiation_by_loops, (large,), rounds=1)


@pytest.mark.benchmark(group="gravity 300 places")
def test_gravity_peira(benchmark, small):
    model = GravityModel("origin", destination_mass="population")
    model.exponents_ = {"distance": 2.0, "destination": 1.0}
    model.predict(small)
    flow = benchmark(lambda: model.predict(small))
    expected = [value for *_, value in gravity_by_loops(small, 2.0)]
    np.testing.assert_allclose(flow, expected, rtol=1e-8)


@pytest.mark.benchmark(group="gravity 300 places")
def test_gravity_loops(benchmark, small):
    benchmark.pedantic(gravity_by_loops, (small, 2.0), rounds=3)


@pytest.mark.benchmark(group="gravity 300 places")
def test_gravity_scikit_mobility(benchmark, small):
    skmob = pytest.importorskip("skmob.models.gravity")
    tiles = tessellation(small)
    model = skmob.Gravity(gravity_type="singly constrained")
    benchmark.pedantic(lambda: model.generate(tiles, out_format="probabilities"), rounds=1)


@pytest.mark.benchmark(group="distances of 31 million pairs")
def test_distances_peira(benchmark):
    points = geo.unit_vectors(*np.random.default_rng(0).uniform(-60, 60, (2, 5565)))

    def walk() -> float:
        return max(
            geo.great_circle_rows(points, np.arange(s, min(s + 256, 5565))).max()
            for s in range(0, 5565, 256)
        )

    assert benchmark.pedantic(walk, rounds=3, warmup_rounds=1) < 20_100


@pytest.mark.benchmark(group="distances of 31 million pairs")
def test_distances_sklearn(benchmark):
    from sklearn.metrics.pairwise import haversine_distances

    points = np.radians(np.random.default_rng(0).uniform(-60, 60, (5565, 2)))
    benchmark.pedantic(lambda: haversine_distances(points), rounds=3)


@pytest.fixture(scope="module")
def fitted() -> tuple[CommuterModel, ODTable]:
    net = simulate_commuters(np.random.default_rng(0), places=300)
    return CommuterModel(random_state=0).fit(net), net


@pytest.mark.benchmark(group="rebuild 300 places")
def test_rebuild_peira(benchmark, fitted):
    model, net = fitted
    benchmark.pedantic(lambda: model.rebuild(len(net.flow)), rounds=3)


@pytest.mark.benchmark(group="rebuild 300 places")
def test_rebuild_whole_matrix(benchmark, fitted):
    """All features as one matrix, all scores sorted: what chunks must not be slower than."""
    model, net = fitted

    def rebuild() -> nx.DiGraph:
        i, j = np.divmod(np.arange(len(net) ** 2), len(net))
        i, j = i[i != j], j[i != j]
        x = net.indicators.to_numpy()
        km = geo.great_circle_km(net.lon[i], net.lat[i], net.lon[j], net.lat[j])
        features = np.column_stack([x[i], x[j], km])
        score = model.link_model_.predict_proba(features)[:, 1]
        best = np.argsort(-score)[: len(net.flow)]
        flow = model.flow_model_.predict(features[best])
        graph = nx.DiGraph()
        graph.add_nodes_from(net.ids)
        for k, value in zip(best, flow, strict=True):
            graph.add_edge(net.ids[i[k]], net.ids[j[k]], flow=float(np.expm1(value)))
        return graph

    benchmark.pedantic(rebuild, rounds=3)


@pytest.mark.benchmark(group="compare networks")
def test_compare_peira(benchmark, fitted):
    model, net = fitted
    rebuilt = model.rebuild(len(net.flow))
    found = benchmark(lambda: compare(net, rebuilt))
    assert 0 < found["link_jaccard"] < 1


@pytest.mark.benchmark(group="compare networks")
def test_compare_networkx(benchmark, fitted):
    model, net = fitted
    real, rebuilt = net.to_graph(), model.rebuild(len(net.flow))

    def by_networkx() -> dict[str, float]:
        found = {}
        for name, ends in (("out", "out_degree"), ("in", "in_degree")):
            for weight in (None, "flow"):
                a = [d for _, d in getattr(real, ends)(weight=weight)]
                b = [d for _, d in getattr(rebuilt, ends)(weight=weight)]
                found[f"{name}_{weight}"] = ks_2samp(a, b, method="asymp").statistic
        found["clustering"] = nx.average_clustering(nx.Graph(real))
        found["other"] = nx.average_clustering(nx.Graph(rebuilt))
        found["jaccard"] = len(real.edges & rebuilt.edges) / len(real.edges | rebuilt.edges)
        return found

    benchmark(by_networkx)
