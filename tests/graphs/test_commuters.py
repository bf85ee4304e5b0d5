from __future__ import annotations

import contextlib
import io
import json
import math
import warnings

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, PoissonRegressor
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from peira.cli.using import commands
from peira.data import DataError, load_model, save_model
from peira.graphs.commuters import geo, method
from peira.graphs.commuters.evaluation import (
    PairSplit,
    balanced_pairs,
    common_part_of_commuters,
    compare,
    flow_metrics,
    is_link,
    link_metrics,
    place_folds,
    prevalence_metrics,
    sample_non_links,
)
from peira.graphs.commuters.method import CommuterModel, indicator_clusters, randomised_search
from peira.graphs.commuters.new_york import load_new_york
from peira.graphs.commuters.simulator import EXPONENTS, simulate_commuters
from peira.graphs.commuters.spatial_models import (
    GravityModel,
    RadiationModel,
    furness,
    poisson_regression,
    radiation_shares,
)
from peira.graphs.commuters.study import Cell, draw_pairs, measure_learner
from peira.graphs.commuters.table import ODTable


def tiny(n: int = 7, seed: int = 0, **options) -> ODTable:
    """A few places within some hundred km, all pairs with a flow."""
    rng = np.random.default_rng(seed)
    places = pd.DataFrame(
        {
            "id": [f"p{k}" for k in range(n)],
            "lon": rng.uniform(5, 10, n),
            "lat": rng.uniform(45, 50, n),
            "population": rng.uniform(1e3, 1e5, n).round(),
        }
    )
    i, j = np.divmod(np.arange(n * n), n)
    flows = pd.DataFrame(
        {"origin": i, "destination": j, "flow": rng.integers(1, 200, n * n).astype(float)}
    )
    flows = flows[i != j]
    for end in ("origin", "destination"):
        flows[end] = [f"p{k}" for k in flows[end]]
    return ODTable(places, flows, **options)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    # Small trees on many threads spend their time waiting for each other.
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def country() -> ODTable:
    return simulate_commuters(np.random.default_rng(1), places=250)


@pytest.fixture(scope="module")
def fitted(country) -> CommuterModel:
    return CommuterModel(random_state=0).fit(country)


def test_great_circle_of_known_arcs():
    quarter = math.pi / 2 * geo.EARTH_RADIUS_KM
    assert geo.great_circle_km(0, 0, 90, 0) == pytest.approx(quarter)
    assert geo.great_circle_km(17, 0, 17, 90) == pytest.approx(quarter)
    assert geo.great_circle_km(-120, 0, 60, 0) == pytest.approx(2 * quarter)
    assert geo.great_circle_km(179.5, 0, -179.5, 0) == pytest.approx(quarter / 90)
    # Half way along a parallel of 60 degrees the great circle cuts over the pole: 60 degrees.
    assert geo.great_circle_km(0, 60, 180, 60) == pytest.approx(quarter * 2 / 3)


def test_geodesic_of_known_arcs():
    assert geo.geodesic_km(0, 0, 1, 0) == pytest.approx(111.319490793, abs=1e-6)
    assert geo.geodesic_km(0, 0, 0, 90) == pytest.approx(10001.965729, abs=1e-5)


def test_blocked_distances_equal_the_haversine_formula():
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-180, 180, 60), rng.uniform(-90, 90, 60)
    expected = geo.great_circle_km(lon[:, None], lat[:, None], lon, lat)
    rows = geo.great_circle_rows(geo.unit_vectors(lon, lat), np.array([3, 59, 0]))
    np.testing.assert_allclose(rows, expected[[3, 59, 0]], rtol=1e-10, atol=1e-9)
    close = geo.great_circle_rows(geo.unit_vectors(np.r_[5.0, 5 + 1e-6], np.r_[50.0, 50]), np.r_[0])
    metre = math.cos(math.radians(50)) * math.radians(1e-6) * geo.EARTH_RADIUS_KM
    assert close[0, 1] == pytest.approx(metre, rel=1e-6)


def test_distance_option_changes_the_metric():
    sphere, ellipsoid = tiny(), tiny(distance="geodesic")
    pairs = sphere.pairs("all")
    a, b = sphere.distance_km(pairs), ellipsoid.distance_km(pairs)
    assert 1e-5 < np.abs(a / b - 1).max() < 0.006
    np.testing.assert_allclose(ellipsoid.distance_rows(np.array([2]))[0, 5], b[2 * 6 + 4])


def test_plane_keeps_area_and_inverts():
    lon, lat = np.array([-3.0, 1.0, 4.0]), np.array([48.0, 50.0, 43.0])
    back = geo.from_plane(*geo.to_plane(lon, lat, 0.5, 47.0), 0.5, 47.0)
    np.testing.assert_allclose(back, [lon, lat], atol=1e-12)
    side = np.linspace(40, 41, 200)
    ring_lon = np.r_[np.full(200, 10.0), np.linspace(10, 11, 200), np.full(200, 11.0)]
    x, y = geo.to_plane(
        np.r_[ring_lon, np.linspace(11, 10, 200)],
        np.r_[side, np.full(200, 41.0), side[::-1], np.full(200, 40.0)],
        8.0,
        42.0,
    )
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    exact = (
        geo.EARTH_RADIUS_KM**2
        * math.radians(1)
        * (math.sin(math.radians(41)) - math.sin(math.radians(40)))
    )
    assert area == pytest.approx(exact, rel=1e-5)


def test_middle_of_points_across_the_antimeridian():
    lon, lat = geo.middle(np.array([179.0, -179.0]), np.array([10.0, 10.0]))
    assert abs(lon) == pytest.approx(180) and lat == pytest.approx(10, abs=0.01)


def test_centroid_is_that_of_the_area():
    shapely = pytest.importorskip("shapely")
    lon, lat = geo.centroid(shapely.box(10, 0, 20, 60).segmentize(0.1))
    # The mean latitude of the zone's area: the integral of phi cos(phi) over that of cos(phi).
    top = math.radians(60)
    mean = math.degrees((top * math.sin(top) + math.cos(top) - 1) / math.sin(top))
    assert lon == pytest.approx(15, abs=1e-3)
    assert lat == pytest.approx(mean, abs=0.5) and abs(lat - 30) > 2
    halves = shapely.MultiPolygon([shapely.box(179, -1, 180, 1), shapely.box(-180, -1, -179, 1)])
    lon, lat = geo.centroid(halves)
    assert abs(abs(lon) - 180) < 1e-6 and abs(lat) < 1e-6


def write_geojson(path, features, **members):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **members}))
    return path


def feature(geometry, **properties):
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def test_geojson_points_polygons_and_projected_coordinates(tmp_path):
    pytest.importorskip("shapely")
    square = [[[0, 0], [0, 2], [2, 2], [2, 0], [0, 0]]]
    path = write_geojson(
        tmp_path / "p.geojson",
        [
            feature({"type": "Point", "coordinates": [7, 47]}, id="a", jobs=3),
            {**feature({"type": "Polygon", "coordinates": square}, jobs=4), "id": "b"},
        ],
    )
    net = ODTable.from_files(path)
    assert list(net.ids) == ["a", "b"] and list(net.indicators) == ["jobs"]
    assert (net.lon[0], net.lat[0]) == (7, 47)
    assert net.lon[1] == pytest.approx(1) and net.lat[1] == pytest.approx(1, abs=1e-3)
    utm = [[[500000, 0], [500000, 2000], [502000, 2000], [502000, 0], [500000, 0]]]
    path = write_geojson(
        tmp_path / "utm.geojson",
        [feature({"type": "Polygon", "coordinates": utm}, id=str(k), jobs=k) for k in (1, 2)],
        crs={"type": "name", "properties": {"name": "EPSG:32632"}},
    )
    net = ODTable.from_files(path)
    assert net.lon[0] == pytest.approx(9 + 1 / 111.3, abs=1e-4)
    assert net.lat[0] == pytest.approx(1 / 110.6, abs=1e-4)


def test_a_shapefile_in_projected_coordinates(tmp_path):
    shapefile = pytest.importorskip("shapefile")
    pyproj = pytest.importorskip("pyproj")
    x, y = pyproj.Transformer.from_crs(4326, 32618, always_xy=True).transform(-74.0, 40.7)
    with shapefile.Writer(str(tmp_path / "towns.shp")) as writer:
        writer.field("id", "C")
        writer.field("jobs", "N", decimal=1)
        for name, shift in (("a", 0.0), ("b", 5000.0)):
            corners = [(-1, -1), (-1, 1), (1, 1), (1, -1), (-1, -1)]
            writer.poly([[(x + shift + 100 * i, y + 100 * j) for i, j in corners]])
            writer.record(name, 7.5)
    (tmp_path / "towns.prj").write_text(pyproj.CRS.from_epsg(32618).to_wkt("WKT1_ESRI"))
    net = ODTable.from_files(tmp_path / "towns.shp")
    table = geo.read_shapefile(tmp_path / "towns.shp")
    assert table["id"].tolist() == ["a", "b"] and table["jobs"].tolist() == [7.5, 7.5]
    assert table["lon"][0] == pytest.approx(-74.0, abs=1e-5)
    assert table["lat"][0] == pytest.approx(40.7, abs=1e-5)
    # UTM lengths are within 0.04% of those on the ground; the earth's radius adds 0.3%.
    assert net.distance_km(net.pairs("all"))[0] == pytest.approx(5.0, rel=5e-3)
    (tmp_path / "broken.shp").write_bytes(b"no shapes")
    with pytest.raises(DataError, match="not a readable shapefile"):
        geo.read_shapefile(tmp_path / "broken.shp")


def test_broken_geojson_names_the_feature(tmp_path):
    pytest.importorskip("shapely")
    good = feature({"type": "Point", "coordinates": [7, 47]}, id="a")
    for bad in (None, {"type": "Polygon", "coordinates": []}, {"type": "Point"}):
        path = write_geojson(tmp_path / "p.geojson", [good, feature(bad, id="b")])
        with pytest.raises(DataError, match=r"p.geojson, row 2, column 'geometry'"):
            geo.read_geojson(path)
    (tmp_path / "p.geojson").write_text("{}")
    with pytest.raises(DataError, match="not a GeoJSON file"):
        geo.read_geojson(tmp_path / "p.geojson")


def places(**columns) -> pd.DataFrame:
    base = {"id": ["a", "b", "c"], "lon": [7.0, 8, 9], "lat": [47.0, 48, 49], "jobs": [1.0, 5, 2]}
    return pd.DataFrame(base | columns)


def flows(rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["origin", "destination", "flow"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (places(lat=[47, 95, 49]), "row 2.*out of range"),
        (places(lon=[7, 190, 9]), "row 2.*out of range"),
        (places(lon=[47, 48, 49], lat=[107, 8, 9]), "swapped"),
        (places(lon=[40.7, 41, 42], lat=[-73.9, -74, -75]), "swapped"),
        (places(lon=[351234.0, 352000, 353000], lat=[4.5e6, 4.5e6, 4.5e6]), "projected.*crs="),
        (places(lon=[7, None, 9]), "row 2, column 'lon': a place without coordinates"),
        (places(lon=["7", "x", "9"]), "row 2, column 'lon': wrong value; got 'x'"),
        (places(id=["a", "b", "a"]), "row 3, column 'id': a place is listed twice; got 'a'"),
        (places(id=["a", None, "c"]), "row 2, column 'id': a place without id"),
        (places(jobs=[1, np.inf, 2]), "row 2, column 'jobs': wrong value"),
        (places().drop(columns="lat"), "places have no column 'lat'"),
        (places().iloc[:1], "too few places"),
    ],
)
def test_bad_places_are_refused(table, message):
    with pytest.raises(DataError, match=message):
        ODTable(table)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "b", 3), ("a", "c", -1)], "row 2, column 'flow': negative flow; got -1.0"),
        ([("a", "b", 3), ("a", "c", None)], "row 2, column 'flow': a flow is missing"),
        ([("a", "b", 3), ("x", "c", 1), ("x", "y", 1)], "row 2, column 'origin': 1 ids are not"),
        ([("a", "b", 3), ("a", "z", 1)], "column 'destination'.*got 'z'.*unknown='drop'"),
    ],
)
def test_bad_flows_are_refused(rows, message):
    with pytest.raises(DataError, match=message):
        ODTable(places(), flows(rows))


def test_messages_name_the_file_and_its_row(tmp_path):
    places().to_csv(tmp_path / "places.csv", index=False)
    flows([("a", "b", 3), ("a", "c", -1)]).to_csv(tmp_path / "flows.csv", index=False)
    with pytest.raises(DataError, match=r"flows.csv, row 3, column 'flow': negative flow"):
        ODTable.from_files(tmp_path / "places.csv", tmp_path / "flows.csv")


def test_header_map_and_text_ids(tmp_path):
    table = places(id=["01", "1", "3"]).rename(columns={"id": "geo", "lon": "x", "lat": "y"})
    table.to_csv(tmp_path / "places.csv", index=False)
    (tmp_path / "flows.csv").write_text("w_geocode,h_geocode,S000\n01,1,4\n1,3,2\n")
    net = ODTable.from_files(
        tmp_path / "places.csv",
        tmp_path / "flows.csv",
        place="geo",
        lon="x",
        lat="y",
        origin="h_geocode",
        destination="w_geocode",
        flow="S000",
    )
    assert list(net.ids) == ["01", "1", "3"]
    assert net.links().tolist() == [[1, 0], [2, 1]] and net.flow.tolist() == [4, 2]


def test_repeated_self_and_zero_flows():
    rows = [("a", "b", 3), ("b", "b", 7), ("a", "b", 4), ("c", "a", 0), ("c", "b", 1)]
    with pytest.warns(UserWarning, match="1 repeated"):
        net = ODTable(places(), flows(rows))
    assert net.links().tolist() == [[0, 1], [2, 1]] and net.flow.tolist() == [7, 1]
    assert (net.self_flows, net.self_total) == (1, 7.0)
    assert net.flows_of(np.array([[0, 1], [2, 0], [1, 0], [2, 1]])).tolist() == [7, 0, 0, 1]
    np.testing.assert_array_equal(net.matrix().toarray(), [[0, 7, 0], [0, 0, 0], [0, 1, 0]])
    assert net.out_totals.tolist() == [7, 0, 1] and net.in_totals.tolist() == [0, 8, 0]


def test_unknown_places_can_be_dropped_with_a_count():
    with pytest.warns(UserWarning, match="2 flows from or to places"):
        net = ODTable(
            places(), flows([("a", "b", 3), ("x", "b", 1), ("a", "y", 1)]), unknown="drop"
        )
    assert net.unknown_flows == 2 and net.flow.tolist() == [3]


def test_doubtful_indicators_are_kept_and_reported():
    with pytest.warns(UserWarning, match="kept as such: jobs 1"):
        net = ODTable(places(jobs=[1.0, np.nan, 2]))
    assert np.isnan(net.indicators["jobs"][1])
    with pytest.warns(UserWarning, match="one value everywhere tell nothing: jobs"):
        ODTable(places(jobs=[2.0, 2, 2]))


def test_an_undirected_table_is_refused_as_directed():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "id": [f"p{k:02d}" for k in range(20)],
            "lon": np.linspace(5, 9, 20),
            "lat": 47 + rng.random(20),
            "jobs": rng.random(20),
        }
    )
    i, j = np.triu_indices(20, 1)
    upper = flows(zip(table["id"][i], table["id"][j], rng.integers(1, 99, len(i)), strict=True))
    with pytest.raises(DataError, match=r"one direction only.*directed=False"):
        ODTable(table, upper)
    mirrored = upper.rename(columns={"origin": "destination", "destination": "origin"})
    with pytest.raises(DataError, match=r"same flow in both directions.*directed=False"):
        ODTable(table, pd.concat([upper, mirrored]))
    net = ODTable(table, upper, directed=False)
    matrix = net.matrix().toarray()
    np.testing.assert_array_equal(matrix, matrix.T)
    assert len(net.flow) == 2 * len(upper)
    # A table in which only some origins were asked is one-way without being undirected.
    star = upper[upper["origin"] == "p00"]
    far = pd.DataFrame({"id": [f"q{k}" for k in range(60)], "lon": 8.0, "lat": 47.5, "jobs": 1.0})
    out = flows([("p00", name, 1) for name in far["id"]])
    net = ODTable(pd.concat([table, far]), pd.concat([star, out]), surveyed=["p00"])
    assert len(net.flow) == 79


def test_pairs_and_subtables():
    net = tiny(5)
    everything = net.pairs("all")
    assert len(everything) == 20 and (everything[:, 0] != everything[:, 1]).all()
    blocks = np.concatenate([block for _, block in net.blocks(2)])
    np.testing.assert_array_equal(blocks, everything)
    named = pd.DataFrame({"from": ["p3", "p0"], "to": ["p1", "p4"]})
    assert net.pairs(named).tolist() == [[3, 1], [0, 4]]
    with pytest.raises(DataError, match="shape"):
        net.pairs(np.arange(4))
    with pytest.raises(DataError, match="names no place"):
        net.pairs(np.array([[0, 5]]))
    mask = np.array([True, False, True, True, False])
    part = net.among(mask)
    np.testing.assert_array_equal(part.matrix().toarray(), net.matrix().toarray()[mask][:, mask])
    np.testing.assert_array_equal(part.flows_of(part.links()), part.flow)
    assert part.distance_km(np.array([[0, 1]])) == net.distance_km(np.array([[0, 2]]))
    graph = net.to_graph(min_flow=50)
    assert graph.number_of_edges() == (net.flow >= 50).sum()
    i, j = net.links(50)[0]
    assert graph[f"p{i}"][f"p{j}"]["flow"] == net.flows_of(np.array([[i, j]]))[0]


def radiation_by_loops(net, mass, outflow, km):
    n = len(net)
    flow = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            between = sum(mass[k] for k in range(n) if k not in (i, j) and km[i, k] <= km[i, j])
            below = (mass[i] + between) * (mass[i] + mass[j] + between)
            flow[i, j] = outflow[i] * mass[i] * mass[j] / below
    return flow


def test_radiation_equals_the_formula_in_loops():
    net = tiny(9)
    km = net.distance_rows(np.arange(9))
    mass = net.indicators["population"].to_numpy()
    expected = radiation_by_loops(net, mass, net.out_totals, km)
    pairs = net.pairs("all")
    predicted = RadiationModel("population").fit(net).predict(net)
    np.testing.assert_allclose(predicted, expected[tuple(pairs.T)], rtol=1e-12)
    some = np.array([[8, 2], [0, 3], [8, 1], [0, 1]])
    np.testing.assert_allclose(
        RadiationModel("population").predict(net, some), expected[tuple(some.T)], rtol=1e-12
    )


def test_radiation_counts_places_at_equal_distance_for_each_other():
    km = np.array([[0.0, 1, 1, 2], [1, 0, 2, 3], [1, 2, 0, 1], [2, 3, 1, 0]])
    mass = np.array([2.0, 3, 5, 7])
    shares = radiation_shares(km, np.arange(4), mass)
    expected = radiation_by_loops(range(4), mass, np.ones(4), km)
    np.testing.assert_allclose(shares, expected, rtol=1e-12)
    assert shares[0, 1] == pytest.approx(2 * 3 / ((2 + 5) * (2 + 3 + 5)))


def test_radiation_sends_everybody_somewhere():
    net = tiny(30)
    mass = net.indicators["population"].to_numpy()
    shares = radiation_shares(net.distance_rows(np.arange(30)), np.arange(30), mass)
    # The sum over destinations telescopes.
    np.testing.assert_allclose(shares.sum(axis=1), 1 - mass / mass.sum(), rtol=1e-12)
    flow = RadiationModel("population", finite_size=True).predict(net).reshape(30, 29)
    np.testing.assert_allclose(flow.sum(axis=1), net.out_totals, rtol=1e-12)


def test_radiation_of_places_without_mass():
    km = np.array([[0.0, 1, 2], [1, 0, 2], [2, 2.5, 0]])
    shares = radiation_shares(km, np.arange(3), np.array([0.0, 4.0, 6.0]))
    assert np.isfinite(shares).all()
    assert shares[0].tolist() == [0, 1, 0]


def test_poisson_regression_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)) * [1, 5, 0.2] + [0, 30, 2]
    counts = rng.poisson(np.exp(0.3 + x @ [0.5, -0.05, 1.0])).astype(float)
    theta, effects = poisson_regression(x, counts, [np.zeros(400, int)])
    reference = PoissonRegressor(alpha=0, tol=1e-10, max_iter=10_000).fit(x, counts)
    np.testing.assert_allclose(theta, reference.coef_, rtol=1e-4, atol=1e-6)
    assert effects[0][0] == pytest.approx(reference.intercept_, abs=1e-3)


def test_poisson_regression_with_effects_equals_dummy_columns():
    rng = np.random.default_rng(1)
    i, j = np.divmod(np.arange(144), 12)
    x = rng.normal(size=(144, 1))
    counts = rng.poisson(np.exp(x[:, 0] + 0.1 * i - 0.05 * j + 1)).astype(float)
    dummies = np.column_stack([x, np.eye(12)[i][:, 1:], np.eye(12)[j][:, 1:]])
    reference = PoissonRegressor(alpha=0, tol=1e-10, max_iter=10_000).fit(dummies, counts)
    theta, (a, b) = poisson_regression(x, counts, [i, j])
    assert theta[0] == pytest.approx(reference.coef_[0], abs=1e-5)
    mean = np.exp(theta[0] * x[:, 0] + a[i] + b[j])
    np.testing.assert_allclose(mean, reference.predict(dummies), rtol=1e-4)


def test_gravity_without_constraint_is_its_formula():
    net = tiny(8)
    for deterrence in ("power", "exponential"):
        model = GravityModel("none", deterrence, origin_mass="population").fit(net)
        e = model.exponents_
        for (i, j), flow in zip(net.pairs("all"), model.predict(net), strict=True):
            km = geo.great_circle_km(net.lon[i], net.lat[i], net.lon[j], net.lat[j])
            f = km ** -e["distance"] if deterrence == "power" else math.exp(-km * e["distance"])
            mass = (
                net.indicators["population"][i] ** e["origin"]
                * net.in_totals[j] ** e["destination"]
            )
            assert flow == pytest.approx(math.exp(model.intercept_) * mass * f, rel=1e-9)
        assert model.predict(net).sum() == pytest.approx(net.flow.sum(), rel=1e-6)


def test_origin_constrained_gravity_in_loops():
    net = tiny(8)
    model = GravityModel("origin", "power", destination_mass="population").fit(net)
    g, b = model.exponents_["distance"], model.exponents_["destination"]
    km, mass = net.distance_rows(np.arange(8)), net.indicators["population"].to_numpy()
    expected = np.zeros((8, 8))
    for i in range(8):
        pull = [0.0 if j == i else mass[j] ** b * km[i, j] ** -g for j in range(8)]
        expected[i] = net.out_totals[i] * np.array(pull) / sum(pull)
    predicted = model.predict(net)
    np.testing.assert_allclose(predicted, expected[tuple(net.pairs("all").T)], rtol=1e-9)
    # At the maximum of the likelihood the mean log distance of flows is reproduced.
    log_km = np.log(net.distance_km(net.pairs("all")))
    assert predicted @ log_km == pytest.approx(net.flow @ log_km, rel=1e-7)


@pytest.mark.parametrize("deterrence", ["power", "exponential"])
def test_doubly_constrained_gravity_meets_both_totals(deterrence):
    net = tiny(12)
    predicted = GravityModel("doubly", deterrence).fit(net).predict(net)
    i, j = net.pairs("all").T
    np.testing.assert_allclose(np.bincount(i, predicted), net.out_totals, rtol=1e-7)
    np.testing.assert_allclose(np.bincount(j, predicted), net.in_totals, rtol=1e-7)
    km = net.distance_km(net.pairs("all"))
    deterrent = np.log(km) if deterrence == "power" else km
    assert predicted @ deterrent == pytest.approx(net.flow @ deterrent, rel=1e-6)


@pytest.mark.parametrize("constraint", ["origin", "doubly"])
def test_constraints_can_hold_over_the_links_alone(constraint):
    full = tiny(12)
    net = full.only(np.random.default_rng(0).random(len(full.flow)) < 0.4)
    links = net.links()
    model = GravityModel(constraint).fit(net, links)
    flow = model.predict(net, links[::-1], among=links)
    i, j = links[::-1].T
    np.testing.assert_allclose(np.bincount(i, flow, 12), net.out_totals, rtol=1e-6)
    if constraint == "doubly":
        np.testing.assert_allclose(np.bincount(j, flow, 12), net.in_totals, rtol=1e-6)
    else:
        g, b = model.exponents_["distance"], model.exponents_["destination"]
        pull = net.in_totals[j] ** b * net.distance_km(links[::-1]) ** -g
        np.testing.assert_allclose(
            flow, net.out_totals[i] * pull / np.bincount(i, pull, 12)[i], rtol=1e-9
        )
    everywhere = model.predict(full)
    pairs = full.pairs("all")
    np.testing.assert_allclose(model.predict(full, pairs, among=pairs), everywhere, rtol=1e-6)
    with pytest.raises(DataError, match="not among those that share"):
        model.predict(net, "all", among=links)


# Probabilities between five Swiss towns as scikit-mobility 1.3.1 gives them (Radiation; Gravity,
# singly constrained, with d^-1.5 and destination exponent 0.7).
SWISS = {
    "lon": [7.45, 8.54, 6.14, 9.37, 8.95],
    "lat": [46.95, 47.37, 46.2, 47.42, 46.0],
    "population": [134e3, 428e3, 203e3, 76e3, 62e3],
}
SCIKIT_MOBILITY = {
    "radiation": [
        0.894270416, 0.0742958398, 0.0185875594, 0.0128461844, 0.33907166, 0.261305263,
        0.286666667, 0.11295641, 0.512937685, 0.339665245, 0.0266505441, 0.120746525,
        0.034581945, 0.927247078, 0.0266505441, 0.011520433, 0.0291747788, 0.937863088,
        0.0213793103, 0.0115828226,
    ],
    "gravity": [
        0.612163781, 0.225077786, 0.0878846344, 0.074873798, 0.345779431, 0.126917477,
        0.431465825, 0.0958372661, 0.403101484, 0.40241269, 0.0857104058, 0.10877542,
        0.0927452464, 0.806108659, 0.0505045491, 0.0506415451, 0.211946851, 0.480286076,
        0.171927802, 0.135839271,
    ],
}  # fmt: skip


def test_models_agree_with_scikit_mobility():
    names = list("abcde")
    rows = zip(names, np.roll(names, 1), [1.0] * 5, strict=True)
    net = ODTable(pd.DataFrame(SWISS | {"id": names}), flows(rows))
    radiation = RadiationModel("population", finite_size=True).predict(net)
    np.testing.assert_allclose(radiation, SCIKIT_MOBILITY["radiation"], rtol=1e-7)
    model = GravityModel("origin", destination_mass="population")
    model.exponents_ = {"distance": 1.5, "destination": 0.7}
    np.testing.assert_allclose(model.predict(net), SCIKIT_MOBILITY["gravity"], rtol=1e-7)


def test_furness_reproduces_the_totals_of_a_product():
    a, b = np.array([1.0, 2, 3]), np.array([4.0, 1, 2])
    w = np.array([[0, 1, 2], [3, 0, 1], [1, 1, 0]], float)
    flow = a[:, None] * w * b
    x, y = furness(w, flow.sum(axis=1), flow.sum(axis=0))
    np.testing.assert_allclose(x[:, None] * w * y, flow, rtol=1e-6)
    with pytest.warns(UserWarning, match="still off"):
        furness(np.array([[0.0, 1], [1, 0]]), np.array([1.0, 9]), np.array([5.0, 5]), max_iter=50)


def test_gravity_recovers_the_exponents_of_its_own_flows():
    country = simulate_commuters(np.random.default_rng(2), places=120)
    pairs = country.pairs("all")
    mass = country.indicators["population"].to_numpy()
    i, j = pairs.T
    rate = mass[i] ** 0.8 * mass[j] ** 0.9 * country.distance_km(pairs) ** -2.0
    counts = np.random.default_rng(0).poisson(rate * 2e5 / rate.sum())
    table = country.indicators.assign(id=country.ids, lon=country.lon, lat=country.lat)
    flow_table = flows(zip(country.ids[i], country.ids[j], counts, strict=True))
    net = ODTable(table, flow_table)
    model = GravityModel(origin_mass="population", destination_mass="population").fit(net)
    assert model.exponents_ == pytest.approx(
        {"origin": 0.8, "destination": 0.9, "distance": 2.0}, abs=0.02
    )
    for constraint in ("origin", "doubly"):
        model = GravityModel(constraint, destination_mass="population").fit(net)
        assert model.exponents_["distance"] == pytest.approx(2.0, abs=0.02)


def test_simulator_has_the_effects_it_names():
    """Poisson regression on all true causes finds their coefficients, mean of six countries."""
    found = []
    for seed in range(6):
        net = simulate_commuters(np.random.default_rng(seed), places=300)
        assert len(net.flow) / (300 * 299) == pytest.approx(0.05, abs=0.002)
        pairs = net.pairs("all")
        i, j = pairs.T
        population = np.log(net.indicators["population"].to_numpy())
        wealth = np.log((net.indicators["gdp"] / net.indicators["population"]).to_numpy())
        rate = net.indicators["unemployment"].to_numpy()
        score = (np.log(rate / (1 - rate)) + 2.5) / 0.5
        km = np.maximum(net.distance_km(pairs), 1.0)
        causes = [population[i], population[j], wealth[j], score[i] - score[j], -np.log(km)]
        theta, _ = poisson_regression(
            np.column_stack(causes), net.flows_of(pairs), [np.zeros(len(i), int)]
        )
        found.append(theta)
    np.testing.assert_allclose(np.mean(found, axis=0), list(EXPONENTS.values()), atol=0.1)


def test_samples_are_what_they_say(country):
    rng = np.random.default_rng(0)
    pairs = balanced_pairs(country, 500, rng, min_flow=2)
    linked = is_link(country.flows_of(pairs), 2)
    assert linked.sum() == 500 and len(pairs) == 1000
    assert len(np.unique(pairs @ [250, 1])) == 1000 and (pairs[:, 0] != pairs[:, 1]).all()
    with pytest.raises(DataError, match="not enough links"):
        balanced_pairs(country, 10**6, rng)


def test_non_links_are_uniform_and_can_be_exhausted():
    net = tiny(6).only(np.arange(30) % 2 == 0)
    rng = np.random.default_rng(0)
    everything = sample_non_links(net, 15, rng)
    assert set(map(tuple, everything)) == set(map(tuple, net.pairs("all"))) - set(
        map(tuple, net.links())
    )
    counts = np.zeros((6, 6))
    for _ in range(3000):
        for i, j in sample_non_links(net, 3, rng):
            counts[i, j] += 1
    drawn = counts[tuple(everything.T)]
    assert drawn.sum() == 9000 and drawn.min() > 500 and drawn.max() < 700
    with pytest.raises(DataError, match="not enough pairs without a link"):
        sample_non_links(net, 16, rng)


def test_non_links_come_from_surveyed_origins_only():
    net = tiny(8, surveyed=["p1", "p4"]).only(np.arange(56) % 3 == 0)
    pairs = sample_non_links(net, 5, np.random.default_rng(0))
    assert set(pairs[:, 0]) <= {1, 4}
    assert set(net.links()[:, 0]) <= {1, 4}


@pytest.mark.parametrize("kind", ["random", "origin", "node", "block"])
def test_splits_share_only_what_they_say(country, kind):
    pairs = balanced_pairs(country, 1500, np.random.default_rng(0))
    linked = is_link(country.flows_of(pairs))
    split = PairSplit(kind, n_splits=4, block_km=150, random_state=0)
    tested = []
    for train, test in split.split(country, pairs, linked):
        assert len(train) and len(test) and not set(train) & set(test)
        tested += list(test)
        if kind == "origin":
            assert not set(pairs[train, 0]) & set(pairs[test, 0])
        if kind in ("node", "block"):
            assert not set(pairs[train].ravel()) & set(pairs[test].ravel())
    assert len(tested) == len(set(tested))
    if kind in ("random", "origin"):
        assert sorted(tested) == list(range(len(pairs)))


def test_block_folds_are_whole_squares(country):
    fold = place_folds(country, "block", 4, np.random.default_rng(0), block_km=100)
    x, y = geo.to_plane(country.lon, country.lat, *geo.middle(country.lon, country.lat))
    square = pd.Series(list(zip(x // 100, y // 100, strict=True)))
    assert pd.Series(fold).groupby(square).nunique().max() == 1
    assert np.bincount(fold).min() > 40
    with pytest.raises(DataError, match="blocks are too large"):
        place_folds(country, "block", 5, np.random.default_rng(0), block_km=1e5)


def test_common_part_of_commuters():
    assert common_part_of_commuters(np.array([3.0, 5]), np.array([3.0, 5])) == 1
    assert common_part_of_commuters(np.array([3.0, 0]), np.array([0.0, 5])) == 0
    assert common_part_of_commuters(np.array([4.0, 6]), np.array([2.0, 8])) == pytest.approx(0.8)
    metrics = flow_metrics(np.array([1.0, 3, 7]), np.array([1.0, 3, 7]))
    assert metrics == {"r2_log1p": 1.0, "cpc": 1.0}


def test_weighted_prevalence_equals_the_repeated_pairs():
    rng = np.random.default_rng(0)
    linked = np.r_[np.ones(20, bool), np.zeros(50, bool)]
    score = rng.normal(size=70) + linked
    weight = np.where(linked, 1.0, 30.0)
    repeats = weight.astype(int)
    full_linked, full_score = np.repeat(linked, repeats), np.repeat(score, repeats)
    found = prevalence_metrics(linked, score, weight)
    assert found["prevalence"] == pytest.approx(20 / 1520)
    assert found["average_precision"] == pytest.approx(
        average_precision_score(full_linked, full_score)
    )
    top = np.argsort(-full_score, kind="stable")[:20]
    assert found["precision_at_links"] == pytest.approx(full_linked[top].mean(), abs=1e-9)


def test_prevalence_of_perfect_and_of_constant_scores():
    linked = np.r_[np.ones(5, bool), np.zeros(95, bool)]
    perfect = prevalence_metrics(linked, linked.astype(float))
    assert perfect == pytest.approx(
        {"prevalence": 0.05, "average_precision": 1.0, "precision_at_links": 1.0}
    )
    blind = prevalence_metrics(linked, np.zeros(100))
    assert blind["average_precision"] == pytest.approx(0.05)
    assert blind["precision_at_links"] == 0
    counted = link_metrics(linked, np.full(100, 0.9))
    assert counted["precision"] == pytest.approx(0.05) and counted["recall"] == 1


def test_compare_with_itself_and_with_networkx(country):
    same = compare(country, country.to_graph())
    for key in ("link_precision", "link_recall", "link_jaccard", "top_overlap", "cpc"):
        assert same[key] == pytest.approx(1)
    assert all(same[key] == 0 for key in same if key.startswith("ks_"))
    graph = country.to_graph()
    expected = nx.average_clustering(nx.Graph(graph))
    assert same["clustering_real"] == pytest.approx(expected)


def test_compare_of_small_networks_by_hand():
    def graph(edges):
        g = nx.DiGraph()
        g.add_nodes_from("abcd")
        g.add_weighted_edges_from(edges, weight="flow")
        return g

    real = graph([("a", "b", 10), ("b", "c", 6), ("c", "a", 4)])
    rebuilt = graph([("a", "b", 8), ("c", "b", 2)])
    found = compare(real, rebuilt, top=1)
    assert found["link_precision"] == 0.5 and found["link_recall"] == pytest.approx(1 / 3)
    assert found["link_jaccard"] == 0.25 and found["top_overlap"] == 1
    assert found["cpc"] == pytest.approx(2 * 8 / 30)
    assert found["clustering_real"] == 0.75 and found["clustering_rebuilt"] == 0
    assert found["ks_out_degree"] == pytest.approx(0.25)
    with pytest.raises(DataError, match="different places"):
        compare(real, nx.DiGraph([("a", "z")]))


def test_model_finds_the_links_of_unseen_places(country):
    fold = place_folds(country, "node", 3, np.random.default_rng(0))
    known, unseen = country.among(fold != 0), country.among(fold == 0)
    model = CommuterModel(random_state=0).fit(known)
    alone = CommuterModel(indicators=[], random_state=0).fit(known)
    assert model.score(unseen) > 0.8
    assert model.score(unseen) > alone.score(unseen) + 0.05
    links = unseen.links()
    found = flow_metrics(unseen.flows_of(links), model.flow(links, unseen))
    assert found["r2_log1p"] > 0.5
    assert (model.predict(unseen, links) == (model.link_probability(links, unseen) >= 0.5)).all()


def test_permuted_links_teach_nothing(country):
    rng = np.random.default_rng(0)
    i, j = rng.permutation(250)[country.origin], rng.permutation(250)[country.destination]
    table = country.indicators.assign(id=country.ids, lon=country.lon, lat=country.lat)
    shuffled = flows(zip(country.ids[i], country.ids[j], country.flow, strict=True))
    net = ODTable(table, shuffled)
    fold = place_folds(net, "node", 2, rng)
    model = CommuterModel(random_state=0).fit(net.among(fold == 0))
    assert abs(model.score(net.among(fold == 1)) - 0.5) < 0.06


def test_importance_finds_the_known_causes(fitted):
    for task in ("links", "flows"):
        table = fitted.importance("joint", task, n_repeats=5)
        assert list(table["feature"][:2]) == ["distance", "unemployment"]
        assert "gdp" in set(table["feature"][:4])
    cluster = table.set_index("feature")["cluster"]
    assert cluster["population"] == cluster["gdp"] == cluster["female_population"]
    assert cluster["unemployment"] != cluster["population"]
    together = fitted.importance("joint", by="cluster", n_repeats=5)
    name = next(f for f in together["feature"] if "gdp" in f)
    assert set(name.split(" + ")) == {
        "population",
        "female_population",
        "male_population",
        "gdp",
    }
    single = fitted.importance("joint", n_repeats=5).set_index("feature")["mean"]
    # Alone, each copy of the population looks useless; together they are a main cause.
    assert (
        together.set_index("feature")["mean"][name] > 1.5 * single["gdp"] > 3 * single["population"]
    )


def test_joint_permutation_moves_both_ends_together(country):
    model = CommuterModel(
        classifier=LogisticRegression(),
        regressor=LinearRegression(),
        indicators=["unemployment", "gdp"],
        use_distance=False,
        random_state=0,
    ).fit(country)
    pairs = model.validation_pairs_
    x = model._features(country, pairs)
    groups = model._groups({"unemployment": 1, "gdp": 2}, "indicator")
    assert groups == {"unemployment": [0, 2], "gdp": [1, 3]}
    seen = []
    model.link_model_ = type(
        "Spy", (), {"predict_proba": lambda self, x: seen.append(x) or np.c_[x[:, 0], x[:, 0]]}
    )()
    model._joint_permutation(country, pairs, "links", {"unemployment": [0, 2]}, 1)
    whole, shuffled = seen
    np.testing.assert_array_equal(whole, x)
    np.testing.assert_array_equal(shuffled[:, [1, 3]], x[:, [1, 3]])
    assert (shuffled[:, 0] != x[:, 0]).mean() > 0.9
    assert sorted(map(tuple, shuffled[:, [0, 2]])) == sorted(map(tuple, x[:, [0, 2]]))


def test_gain_and_drop_column_agree(fitted, country):
    gain = fitted.importance("gain", "flows")
    assert list(gain["feature"][:2]) == ["distance", "unemployment"]
    assert gain["mean"].sum() == pytest.approx(1)
    causes = ["population", "gdp", "unemployment"]
    few = CommuterModel(indicators=[*causes, "homicides"], random_state=0).fit(country)
    drop = few.importance("drop", "flows").set_index("feature")["mean"]
    assert drop["distance"] > drop["unemployment"] > 0.05 > abs(drop["homicides"])


def test_shap_importance_agrees(fitted):
    pytest.importorskip("shap")
    table = fitted.importance("shap", pairs=fitted.validation_pairs_[:100])
    assert list(table["feature"][:2]) == ["distance", "unemployment"]


def test_chunks_do_not_change_the_result(fitted, country, monkeypatch):
    whole = fitted.link_probability()
    rebuilt = fitted.rebuild(n_links=500)
    monkeypatch.setattr(method, "CHUNK_PAIRS", 3000)
    np.testing.assert_array_equal(fitted.link_probability(), whole)
    again = fitted.rebuild(n_links=500)
    assert nx.utils.graphs_equal(again, rebuilt)


def test_rebuild_links_the_likeliest_pairs(fitted, country):
    graph = fitted.rebuild(n_links=700)
    assert graph.number_of_edges() == 700 and graph.number_of_nodes() == 250
    pairs, probability = country.pairs("all"), fitted.link_probability()
    best = pairs[np.argsort(-probability, kind="stable")[:700]]
    assert set(graph.edges) == {(country.ids[i], country.ids[j]) for i, j in best}
    i, j = best[0]
    edge = graph[country.ids[i]][country.ids[j]]
    assert edge["probability"] == probability.max()
    assert edge["flow"] == pytest.approx(fitted.flow(best[:1], statistic="mean")[0])
    by_threshold = fitted.rebuild(threshold=0.5)
    assert by_threshold.number_of_edges() == (probability >= 0.5).sum()
    with pytest.raises(DataError, match="n_links is out of range"):
        fitted.rebuild(n_links=0)
    with pytest.raises(DataError, match="one of them"):
        fitted.rebuild(n_links=5, threshold=0.5)


def test_default_threshold_makes_about_as_many_links_as_there_are(country, fitted):
    made = fitted.rebuild().number_of_edges()
    assert made == pytest.approx(len(country.flow), rel=0.25)
    assert 0.5 < fitted.threshold_ < 1


def test_mean_flow_restores_totals_and_median_does_not(country):
    fold = place_folds(country, "node", 2, np.random.default_rng(3))
    model = CommuterModel(random_state=0).fit(country.among(fold == 0))
    other = country.among(fold == 1)
    links = other.links()
    median, mean = (model.flow(links, other, s) for s in ("median", "mean"))
    np.testing.assert_allclose((mean + 1) / (median + 1), model.smearing_, rtol=0.3)
    assert abs(mean.sum() / other.flow.sum() - 1) < abs(median.sum() / other.flow.sum() - 1)


def test_scikit_learn_conventions(country):
    model = CommuterModel(backend="hist", min_flow=2, random_state=3)
    twin = clone(model)
    assert twin.get_params() == model.get_params()
    assert twin.set_params(flow_scale="log10").flow_scale == "log10"
    with pytest.raises(Exception, match="not fitted"):
        model.link_probability(np.array([[0, 1]]))
    model.fit(country)
    assert model.n_features_in_ == 23 and model.feature_names_in_[-1] == "distance"
    again = clone(model).fit(country)
    pairs = country.pairs("all")[:500]
    np.testing.assert_array_equal(model.link_probability(pairs), again.link_probability(pairs))
    linked = is_link(country.flows_of(model.train_pairs_), 2)
    assert abs(linked.mean() - 0.5) < 0.01
    seen = {tuple(p) for p in model.train_pairs_}
    assert not any(tuple(p) in seen for p in model.validation_pairs_)


def test_any_estimator_and_scale(country):
    model = CommuterModel(
        classifier=make_pipeline(StandardScaler(), LogisticRegression()),
        regressor=LinearRegression(),
        flow_scale="log10",
        random_state=0,
    ).fit(country)
    assert 0.6 < model.score(country, model.validation_pairs_) < 0.95
    links = country.links()[:50]
    expected = 10 ** model.flow_model_.predict(model._features(country, links))
    np.testing.assert_allclose(model.flow(links), expected)
    with pytest.raises(DataError, match="needs trees"):
        model.importance("gain")


def test_unknown_indicators_are_accepted_by_trees(country):
    table = country.indicators.assign(id=country.ids, lon=country.lon, lat=country.lat)
    table.loc[::5, "unemployment"] = np.nan
    i, j = country.ids[country.origin], country.ids[country.destination]
    with pytest.warns(UserWarning, match="unemployment 50"):
        net = ODTable(table, flows(zip(i, j, country.flow, strict=True)))
    model = CommuterModel(random_state=0).fit(net)
    assert model.score(net, model.validation_pairs_) > 0.75


def test_xgboost_backend(country):
    pytest.importorskip("xgboost")
    pairs = balanced_pairs(country, 600, np.random.default_rng(0))
    model = CommuterModel("xgboost", random_state=0).fit(country, pairs)
    assert model.link_model_.get_params()["n_estimators"] == 300
    assert model.score(country, model.validation_pairs_) > 0.75
    assert model.importance("gain")["feature"][0] == "distance"
    search = randomised_search("links", n_iter=2, folds=2, random_state=0)
    small = balanced_pairs(country, 200, np.random.default_rng(0))
    tuned = CommuterModel(classifier=search, random_state=0).fit(country, small)
    assert tuned.link_model_.best_params_["max_depth"] in (4, 6, 8, 10)


def test_fit_refuses_what_it_cannot_learn_from(country):
    with pytest.raises(DataError, match=r"too few links.*got 30.*50 or more"):
        CommuterModel().fit(country.only(np.arange(len(country.flow)) < 30))
    with pytest.raises(DataError, match="no pairs without a link"):
        CommuterModel().fit(country, country.links()[:80])
    with pytest.raises(DataError, match="nothing to learn from"):
        CommuterModel(indicators=[], use_distance=False).fit(country)
    with pytest.raises(DataError, match="lacks indicators of the model: jobs"):
        CommuterModel(indicators=["jobs"]).fit(country)


def test_saved_model_works_on_new_places_and_carries_no_data(tmp_path, country):
    fitted = CommuterModel(
        classifier=HistGradientBoostingClassifier(max_iter=5),
        regressor=HistGradientBoostingRegressor(max_iter=5),
    ).fit(country)
    save_model(tmp_path / "model.skops", fitted)
    loaded = load_model(tmp_path / "model.skops")
    pairs = country.pairs("all")[:100]
    np.testing.assert_array_equal(
        loaded.link_probability(pairs, country), fitted.link_probability(pairs)
    )
    assert not hasattr(loaded, "net_")
    with pytest.raises(DataError, match="has no table"):
        loaded.link_probability(pairs)
    with pytest.raises(DataError, match="has no kept-out pairs"):
        loaded.importance(net=country)


def test_clusters_of_indicators():
    rng = np.random.default_rng(0)
    size = rng.normal(size=300)
    table = pd.DataFrame({"a": size, "b": np.exp(-size), "c": rng.normal(size=300), "d": 1.0})
    cluster = indicator_clusters(table)
    assert cluster["a"] == cluster["b"]
    assert len({cluster["a"], cluster["c"], cluster["d"]}) == 3


def test_no_warnings_on_clean_tables():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        simulate_commuters(np.random.default_rng(0), places=60)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """CSV files of a small country, under a census's column names, and a model fitted to them."""
    folder = tmp_path_factory.mktemp("commuters")
    net = simulate_commuters(np.random.default_rng(5), places=70)
    table = net.indicators.assign(GEOID=net.ids, lon=net.lon, lat=net.lat)
    table.to_csv(folder / "places.csv", index=False)
    rows = flows(zip(net.ids[net.origin], net.ids[net.destination], net.flow, strict=True))
    rows.rename(columns={"flow": "S000"}).to_csv(folder / "flows.csv", index=False)
    command(folder, "fit", "places.csv", "flows.csv", "model.skops", "--columns", NAMES)
    return folder, net


NAMES = "id=GEOID,flow=S000"


def command(folder, *arguments: str) -> str:
    names = [str(folder / a) if "." in a and "=" not in a else a for a in arguments]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        commands("commuters")(names, standalone_mode=False)
    return printed.getvalue()


def test_commands_predict_rebuild_and_compare(files):
    folder, net = files
    model = load_model(folder / "model.skops")
    pd.DataFrame({"origin": ["c0003", "c0010"], "destination": ["c0040", "c0011"]}).to_csv(
        folder / "pairs.csv", index=False
    )
    command(folder, "predict", "model.skops", "places.csv", "pairs.csv", "out.csv",
            "--columns", NAMES)  # fmt: skip
    written = pd.read_csv(folder / "out.csv")
    pairs = np.array([[3, 40], [10, 11]])
    np.testing.assert_allclose(written["probability"], model.link_probability(pairs, net))
    np.testing.assert_allclose(written["flow"], model.flow(pairs, net))
    command(folder, "rebuild", "model.skops", "places.csv", "net.csv", "--links", "200",
            "--columns", NAMES)  # fmt: skip
    rebuilt = model.rebuild(200, net)
    assert len(pd.read_csv(folder / "net.csv")) == 200
    printed = command(folder, "compare", "places.csv", "flows.csv", "net.csv",
                      "--columns", NAMES, "--out", "same.json")  # fmt: skip
    expected = compare(net, rebuilt)
    assert json.loads((folder / "same.json").read_text()) == pytest.approx(expected, rel=1e-4)
    assert f"{expected['link_precision']:.4g}" in printed


def test_commands_score_importance_and_baselines(files):
    folder, net = files
    model = load_model(folder / "model.skops")
    printed = command(folder, "score", "model.skops", "places.csv", "flows.csv", "--columns", NAMES)
    assert f"{model.score(net):.3f}" in printed
    printed = command(folder, "importance", "model.skops", "places.csv", "flows.csv",
                      "--columns", NAMES, "--repeats", "2")  # fmt: skip
    assert printed.index("distance") < printed.index("unemployment") < printed.index("homicides")
    printed = command(folder, "baselines", "places.csv", "flows.csv", "--columns", NAMES)
    exponent = GravityModel("doubly").fit(net, net.links()).exponents_["distance"]
    assert f"distance {exponent:.3g}" in printed


def test_commands_refuse_bad_input(files):
    folder, _ = files
    with pytest.raises(DataError, match="no column 'id'"):
        command(folder, "fit", "places.csv", "flows.csv", "other.skops")
    with pytest.raises(DataError, match=r"columns are not understood.*'geo=GEOID'"):
        command(folder, "fit", "places.csv", "flows.csv", "m.skops", "--columns", "geo=GEOID")
    (folder / "pairs2.csv").write_text("origin,destination\nc0003,nowhere\n")
    with pytest.raises(DataError, match=r"pairs2.csv, row 2, column 'destination'.*'nowhere'"):
        command(folder, "predict", "model.skops", "places.csv", "pairs2.csv", "out2.csv",
                "--columns", NAMES)  # fmt: skip
    assert not (folder / "out2.csv").exists()


def test_study_draws_pairs_that_share_no_more_than_the_split_allows():
    net = simulate_commuters(np.random.default_rng(0), places=250)
    for split in ("random", "origin", "node", "block"):
        cell = Cell(data="simulated", split=split, links=400, test_links=20, non_links=100)
        sample = draw_pairs(net, cell, np.random.default_rng(0))
        test = np.concatenate([sample.links, sample.non_links])
        seen = {tuple(pair) for pair in sample.train}
        assert len(seen) == 800 and not any(tuple(pair) in seen for pair in test)
        assert (net.flows_of(sample.links) > 0).all()
        assert (net.flows_of(sample.non_links) == 0).all()
        assert is_link(net.flows_of(sample.train)).sum() == 400
        if split != "random":
            assert not set(sample.train[:, 0]) & set(test[:, 0])
        if split in ("node", "block"):
            assert not set(sample.train.ravel()) & set(test.ravel())
            n = int(sample.unseen.sum())
            assert sample.link_population + sample.non_link_population == n * (n - 1)
            assert sample.link_population == len(net.among(sample.unseen).flow)


def test_measures_of_the_true_share_agree_with_scoring_all_pairs():
    """The weights of sampled pairs stand for all pairs of unseen places."""
    net = simulate_commuters(np.random.default_rng(0), places=300)
    cell = Cell(data="simulated", split="node", links=1000, test_links=20, non_links=500,
                repeats=0, rebuild="unseen")  # fmt: skip
    found = measure_learner(net, draw_pairs(net, cell, np.random.default_rng(1)), cell, 0)
    part = len(net.ids) // 10
    assert found["prevalence"] == pytest.approx(
        found["rebuilt_links_real"] / (part * (part - 1)), rel=1e-9
    )
    assert found["rebuilt_links_rebuilt"] == found["rebuilt_links_real"]
    assert abs(found["precision_at_links"] - found["rebuilt_link_precision"]) < 0.15


def test_new_york_is_read_as_published(real_data):
    if not (real_data / "deepgravity-ny").is_dir():
        pytest.skip("deepgravity-ny is not in PEIRA_DATA")
    net = load_new_york()
    assert (len(net), len(net.flow), net.indicators.shape[1]) == (5367, 475_730, 18)
    tract = list(net.ids).index("36123150400")
    assert net.indicators["osm_15"][tract] == 13
    assert net.lon.min() == pytest.approx(-79.70, abs=0.01)
    assert net.lat.max() < 45.02
