"""Places with indicators and coordinates, and the flows between them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import networkx as nx
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import sparse

from peira.data import DataError, read_table
from peira.graphs.commuters import geo

# No settlement lies south of it (Villa Las Estrellas, 62.2 S, has nobody to commute to).
SOUTHERNMOST = -60.0
# Below this many flows, one-way or symmetric tables come about by chance.
ENOUGH_TO_JUDGE_DIRECTION = 50

GEOMETRY_READERS = {
    ".geojson": geo.read_geojson,
    ".json": geo.read_geojson,
    ".shp": geo.read_shapefile,
}


class ODTable:
    """An origin-destination table: places, their indicators, and the flows between them.

    Args:
        places: one row per place: id, longitude and latitude (degrees, WGS84), indicators.
        flows: one row per flow: origin id, destination id, number of people; None where nothing
            is known, as for new cities whose network is to be predicted.
        place, lon, lat: names of those columns of `places`.
        origin, destination, flow: names of those columns of `flows`.
        indicators: columns of `places` to use; default every other numeric column.
        crs: reference system of the `lon` and `lat` columns if they are not degrees, "EPSG:32618".
        directed: False reads each row as both directions (the rows of a pair are added).
        unknown: what happens to flows from or to an id that `places` lacks: "refuse" or "drop".
        surveyed: ids of the origins whose flows are fully recorded, where the table is partial;
            elsewhere a missing row says nothing, and no pair is taken for a non-link. Default all.
        distance: "great-circle" (sphere) or "geodesic" (ellipsoid, about 30 times slower).

    Attributes:
        ids: place ids as text, in the order of `places`; a place is known by its row number here.
        lon, lat: degrees.
        indicators: frame (places x indicators) of floats, NaN where unknown.
        origin, destination, flow: the recorded flows > 0 in order of (origin, destination).
        self_flows: number of rows dropped because origin and destination were the same place.
        self_total: people in them.
        unknown_flows: number of rows dropped because of an unknown place.

    Raises:
        DataError: names row (of the file, or of the frame from 1), column, value and what was
            expected, for: missing columns; repeated place ids; coordinates that are missing, out
            of range, swapped or projected; indicators that are not numbers; flows that are
            missing or negative; ids missing from places; an undirected table given as directed.

    Warns:
        UserWarning: repeated pairs (they are added), unknown indicators (they are kept as NaN),
            constant indicators, dropped flows.
    """

    def __init__(
        self,
        places: pd.DataFrame,
        flows: pd.DataFrame | None = None,
        *,
        place: str = "id",
        lon: str = "lon",
        lat: str = "lat",
        origin: str = "origin",
        destination: str = "destination",
        flow: str = "flow",
        indicators: Sequence[str] | None = None,
        crs: str | None = None,
        directed: bool = True,
        unknown: Literal["refuse", "drop"] = "refuse",
        surveyed: Sequence[str] | None = None,
        distance: Literal["great-circle", "geodesic"] = "great-circle",
    ) -> None:
        _require(places, [place, lon, lat], "places")
        self.ids = _unique_ids(places, place)
        self.lon, self.lat = _coordinates(places, lon, lat, crs)
        self.indicators = _indicators(places, indicators, {place, lon, lat})
        self.distance = distance
        self.self_flows, self.self_total, self.unknown_flows = 0, 0.0, 0
        if flows is None:
            flows = pd.DataFrame({origin: [], destination: [], flow: []})
        _require(flows, [origin, destination, flow], "flows")
        self._read_flows(flows, origin, destination, flow, directed, unknown)
        self.surveyed = np.ones(len(self.ids), dtype=bool)
        if surveyed is not None:
            self.surveyed[:] = False
            named = pd.DataFrame({"surveyed": list(surveyed)})
            self.surveyed[self._numbers(named, "surveyed")] = True

    @classmethod
    def from_files(
        cls,
        places: str | Path,
        flows: str | Path | None = None,
        *,
        place: str = "id",
        origin: str = "origin",
        destination: str = "destination",
        crs: str | None = None,
        **options: object,
    ) -> Self:
        """Read places from CSV, TSV, GeoJSON or a shapefile and flows from CSV or TSV.

        Ids are read as text, so "01" and "1" are different places. Other arguments as for the
        class. Raises `DataError` naming file, row, column and value.
        """
        read = GEOMETRY_READERS.get(Path(places).suffix.lower())
        if read is not None:
            place_table, place_crs = read(places, crs), None
            place_table.attrs = {"path": places, "first_row": 1}
        else:
            place_table, place_crs = read_table(places, {place: "str"}), crs
            place_table.attrs = {"path": places, "first_row": 2}
        flow_table = None
        if flows is not None:
            flow_table = read_table(flows, {origin: "str", destination: "str"})
            flow_table.attrs = {"path": flows, "first_row": 2}
        return cls(
            place_table,
            flow_table,
            place=place,
            origin=origin,
            destination=destination,
            crs=place_crs,
            **options,  # type: ignore[arg-type]
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"ODTable(places={len(self)}, indicators={self.indicators.shape[1]}, "
            f"links={len(self.flow)}, people={self.flow.sum():.0f})"
        )

    def _read_flows(
        self,
        flows: pd.DataFrame,
        origin: str,
        destination: str,
        flow: str,
        directed: bool,
        unknown: Literal["refuse", "drop"],
    ) -> None:
        value = _flow_values(flows, flow)
        i = self._numbers(flows, origin, refuse=unknown == "refuse")
        j = self._numbers(flows, destination, refuse=unknown == "refuse")
        known = (i >= 0) & (j >= 0)
        self.unknown_flows = int((~known).sum())
        if self.unknown_flows:
            _warn(
                f"{self.unknown_flows} flows from or to places that are not in the table: dropped"
            )
        own = known & (i == j)
        self.self_flows, self.self_total = int(own.sum()), float(value[own].sum())
        keep = known & ~own & (value > 0)
        i, j, value = i[keep], j[keep], value[keep]
        if directed:
            _refuse_undirected(i, j, value, len(self))
        else:
            i, j, value = np.r_[i, j], np.r_[j, i], np.r_[value, value]
        codes = i * len(self) + j
        self.codes, inverse = np.unique(codes, return_inverse=True)
        repeats = len(codes) - len(self.codes)
        if repeats and directed:
            _warn(f"{repeats} repeated (origin, destination) rows: their flows were added")
        self.origin, self.destination = np.divmod(self.codes, len(self))
        self.flow = np.bincount(inverse, weights=value, minlength=len(self.codes))

    def _numbers(
        self, frame: pd.DataFrame, column: str, refuse: bool = True
    ) -> Int[np.ndarray, " rows"]:
        ids = frame[column]
        numbers = pd.Index(self.ids).get_indexer(_as_text(ids))
        if refuse and (numbers < 0).any():
            row = int(np.flatnonzero(numbers < 0)[0])
            missing = ids[numbers < 0].nunique()
            raise _bad(
                frame,
                f"{missing} ids are not in the table of places",
                row,
                column,
                ids.iloc[row],
                "an id of a place, or unknown='drop' (--drop-unknown)",
            )
        return numbers.astype(np.int64)

    @cached_property
    def points(self) -> Float[np.ndarray, "places 3"]:
        """Places on the unit sphere."""
        return geo.unit_vectors(self.lon, self.lat)

    def pairs(self, pairs: pd.DataFrame | np.ndarray | Literal["all"]) -> Int[np.ndarray, "m 2"]:
        """Row numbers (origin, destination) of pairs given as ids, as row numbers, or "all".

        A frame holds ids in its first two columns; an array holds row numbers. "all" makes the
        n(n - 1) ordered pairs without the diagonal, by origin.
        """
        if isinstance(pairs, str):
            return np.concatenate([block for _, block in self.blocks(len(self))])
        if isinstance(pairs, pd.DataFrame):
            columns = [self._numbers(pairs, name) for name in pairs.columns[:2]]
            return np.column_stack(columns)
        pairs = np.asarray(pairs)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
            raise DataError("pairs have a wrong shape", expected="integers of shape (m, 2)")
        if pairs.size and (pairs.min() < 0 or pairs.max() >= len(self)):
            raise DataError("a pair names no place", expected=f"row numbers 0..{len(self) - 1}")
        return pairs.astype(np.int64)

    def blocks(self, rows: int) -> Iterator[tuple[range, Int[np.ndarray, "m 2"]]]:
        """All ordered pairs, `rows` origins at a time: (origins of the block, its pairs)."""
        n = len(self)
        for start in range(0, n, rows):
            origins = range(start, min(start + rows, n))
            i = np.repeat(np.arange(origins.start, origins.stop), n)
            j = np.tile(np.arange(n), len(origins))
            yield origins, np.column_stack([i, j])[i != j]

    def flows_of(self, pairs: Int[np.ndarray, "m 2"]) -> Float[np.ndarray, " m"]:
        """Recorded flow of each pair, 0 where there is none."""
        if not len(self.codes):
            return np.zeros(len(pairs))
        codes = pairs[:, 0] * len(self) + pairs[:, 1]
        place = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return np.where(self.codes[place] == codes, self.flow[place], 0.0)

    def links(self, min_flow: float = 0.0) -> Int[np.ndarray, "m 2"]:
        """Pairs with a recorded flow above 0 and of at least `min_flow`, from surveyed origins."""
        keep = (self.flow >= min_flow) & self.surveyed[self.origin]
        return np.column_stack([self.origin[keep], self.destination[keep]])

    def distance_km(self, pairs: Int[np.ndarray, "m 2"]) -> Float[np.ndarray, " m"]:
        """Distance of each pair in km."""
        if self.distance == "geodesic":
            i, j = pairs.T
            return geo.geodesic_km(self.lon[i], self.lat[i], self.lon[j], self.lat[j])
        return geo.great_circle_pairs(self.points, pairs[:, 0], pairs[:, 1])

    def distance_rows(self, rows: Int[np.ndarray, " block"]) -> Float[np.ndarray, "block n"]:
        """Distances in km from a block of places to all places."""
        if self.distance == "geodesic":
            i, j = np.repeat(rows, len(self)), np.tile(np.arange(len(self)), len(rows))
            km = geo.geodesic_km(self.lon[i], self.lat[i], self.lon[j], self.lat[j])
            return km.reshape(len(rows), len(self))
        return geo.great_circle_rows(self.points, rows)

    @cached_property
    def out_totals(self) -> Float[np.ndarray, " places"]:
        """People leaving each place, O_i."""
        return np.bincount(self.origin, weights=self.flow, minlength=len(self))

    @cached_property
    def in_totals(self) -> Float[np.ndarray, " places"]:
        """People arriving at each place, D_j."""
        return np.bincount(self.destination, weights=self.flow, minlength=len(self))

    def matrix(self) -> sparse.csr_array:
        """Flows as a sparse matrix, places x places."""
        shape = (len(self), len(self))
        return sparse.csr_array((self.flow, (self.origin, self.destination)), shape=shape)

    def to_graph(self, min_flow: float = 0.0) -> nx.DiGraph:
        """Network of the recorded links; nodes are place ids, edges carry `flow`."""
        pairs = self.links(min_flow)
        return make_graph(self, pairs, self.flows_of(pairs))

    def with_indicators(self, **columns: Float[np.ndarray, " places"]) -> Self:
        """The same table with further indicators."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.indicators = self.indicators.assign(**columns)
        return other

    def among(self, places: Bool[np.ndarray, " places"]) -> Self:
        """The table of the places where the mask is true, and the flows between them."""
        inside = places[self.origin] & places[self.destination]
        other = self.only(inside)
        number = np.cumsum(places) - 1
        for name in ("ids", "lon", "lat", "surveyed"):
            setattr(other, name, getattr(self, name)[places])
        other.indicators = self.indicators[places].reset_index(drop=True)
        other.origin, other.destination = number[other.origin], number[other.destination]
        other.codes = other.origin * len(other) + other.destination
        return other

    def only(self, flows: Bool[np.ndarray, " flows"]) -> Self:
        """The same places with the recorded flows where the mask is true (a partial table)."""
        other = object.__new__(type(self))
        cached = {"out_totals", "in_totals", "points"}
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k not in cached})
        for name in ("codes", "origin", "destination", "flow"):
            setattr(other, name, getattr(self, name)[flows])
        return other


def make_graph(
    net: ODTable, pairs: Int[np.ndarray, "m 2"], flow: Float[np.ndarray, " m"]
) -> nx.DiGraph:
    """networkx graph of all places of `net` with edges `pairs` that carry `flow`."""
    graph: nx.DiGraph = nx.DiGraph()
    for place, lon, lat in zip(net.ids, net.lon.tolist(), net.lat.tolist(), strict=True):
        graph.add_node(place, lon=lon, lat=lat)
    ends = net.ids[pairs]
    graph.add_weighted_edges_from(
        zip(ends[:, 0], ends[:, 1], flow.tolist(), strict=True), weight="flow"
    )
    return graph


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)


def _require(frame: pd.DataFrame, columns: list[str], what: str) -> None:
    for name in columns:
        if name not in frame:
            given = ", ".join(map(str, frame.columns))
            raise DataError(f"{what} have no column {name!r}", expected=f"one of: {given}")


def _as_text(ids: pd.Series[str]) -> pd.Series[str]:
    # A column of whole numbers with a gap is read as floats: 17.0 is still place 17.
    if pd.api.types.is_float_dtype(ids) and (ids.dropna() % 1 == 0).all() and ids.notna().all():
        ids = ids.astype("int64")
    return ids.astype(str).str.strip()


def _bad(
    frame: pd.DataFrame,
    message: str,
    row: int,
    column: str,
    value: object = None,
    expected: str | None = None,
) -> DataError:
    # Tables that came from a file are reported by its rows, frames by theirs.
    first = frame.attrs.get("first_row", 1)
    return DataError(message, frame.attrs.get("path"), row + first, column, value, expected)


def _unique_ids(places: pd.DataFrame, place: str) -> np.ndarray:
    if places[place].isna().any():
        row = int(np.flatnonzero(places[place].isna())[0])
        raise _bad(places, "a place without id", row, place)
    ids = _as_text(places[place])
    again = ids.duplicated()
    if again.any():
        row = int(np.flatnonzero(again)[0])
        raise _bad(
            places, "a place is listed twice", row, place, ids.iloc[row], "one row per place"
        )
    if len(ids) < 2:
        raise DataError("too few places", value=len(ids), expected="at least 2")
    return ids.to_numpy(dtype=object)


def _numeric(frame: pd.DataFrame, name: str) -> Float[np.ndarray, " rows"]:
    values = pd.to_numeric(frame[name], errors="coerce")
    bad = values.isna() & frame[name].notna() | np.isinf(values)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise _bad(frame, "wrong value", row, name, frame[name].iloc[row], "a number")
    return values.to_numpy(dtype=float)


def _coordinates(
    places: pd.DataFrame, lon: str, lat: str, crs: str | None
) -> tuple[Float[np.ndarray, " places"], Float[np.ndarray, " places"]]:
    x, y = _numeric(places, lon), _numeric(places, lat)
    for name, values in ((lon, x), (lat, y)):
        if np.isnan(values).any():
            row = int(np.flatnonzero(np.isnan(values))[0])
            raise _bad(places, "a place without coordinates", row, name)
    if crs is not None:
        x, y = geo.to_degrees(x, y, crs)

    def refuse(row: int, message: str, expected: str) -> DataError:
        point = (float(x[row]), float(y[row]))
        return _bad(places, message, row, f"{lon}, {lat}", point, expected)

    size = np.maximum(np.abs(x), np.abs(y))
    if not np.isfinite(size).all() or size.max() > 360:
        raise refuse(
            int(np.argmax(size)),
            "coordinates look projected",
            "degrees, or their reference system as crs='EPSG:...'",
        )
    outside = (np.abs(y) > 90) | (np.abs(x) > 180)
    swapped = (np.abs(y).max() > 90 and np.abs(x).max() <= 90) or y.max() < SOUTHERNMOST
    if outside.any() or swapped:
        hint = " (longitude and latitude look swapped)" if swapped else ""
        raise refuse(
            int(np.argmax(outside)),
            f"coordinates out of range{hint}",
            "longitude -180..180 and latitude -60..90 degrees",
        )
    return x, y


def _indicators(
    places: pd.DataFrame, wanted: Sequence[str] | None, taken: set[str]
) -> pd.DataFrame:
    if wanted is None:
        numeric = places.select_dtypes("number").columns
        wanted = [name for name in numeric if name not in taken]
    _require(places, list(wanted), "places")
    frame = pd.DataFrame({str(name): _numeric(places, name) for name in wanted})
    unknown = frame.isna().sum()
    if unknown.any():
        counts = ", ".join(f"{name} {count}" for name, count in unknown[unknown > 0].items())
        _warn(f"places with unknown indicators, kept as such: {counts}")
    constant = [name for name in frame if frame[name].nunique() <= 1]
    if constant:
        _warn(f"indicators with one value everywhere tell nothing: {', '.join(constant)}")
    return frame


def _flow_values(flows: pd.DataFrame, name: str) -> Float[np.ndarray, " rows"]:
    values = _numeric(flows, name)
    for bad, message in ((np.isnan(values), "a flow is missing"), (values < 0, "negative flow")):
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            value = None if np.isnan(values[row]) else float(values[row])
            raise _bad(flows, message, row, name, value, "a number of people, 0 or more")
    return values


def _refuse_undirected(
    i: Int[np.ndarray, " rows"],
    j: Int[np.ndarray, " rows"],
    value: Float[np.ndarray, " rows"],
    n: int,
) -> None:
    # A flow towards a place that reports no flows of its own says nothing about direction.
    reports = np.zeros(n, dtype=bool)
    reports[i] = True
    i, j, value = (column[reports[j]] for column in (i, j, value))
    if len(i) < ENOUGH_TO_JUDGE_DIRECTION:
        return
    there, back = i * n + j, j * n + i
    remedy = "a directed table, or directed=False (--undirected) to read each row both ways"
    one_way = not np.isin(there, back).any() and bool((i < j).all() or (i > j).all())
    if one_way:
        raise DataError("each pair is listed in one direction only", expected=remedy)
    order, reverse = np.argsort(there, kind="stable"), np.argsort(back, kind="stable")
    mirrored = np.array_equal(there[order], back[reverse])
    if mirrored and np.array_equal(value[order], value[reverse]):
        raise DataError("every pair has the same flow in both directions", expected=remedy)
