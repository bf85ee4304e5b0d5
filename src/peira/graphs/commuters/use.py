"""Commands for a person's own places and flows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Annotated, Literal

import networkx as nx
import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from peira.data import DataError, load_model, read_table, save_model
from peira.data.tables import write_table
from peira.engine.files import atomic_path
from peira.graphs.commuters.evaluation import balanced_pairs, flow_metrics, is_link
from peira.graphs.commuters.evaluation import compare as compare_networks
from peira.graphs.commuters.method import CommuterModel
from peira.graphs.commuters.spatial_models import GravityModel, RadiationModel
from peira.graphs.commuters.table import ODTable

__all__ = ["baselines", "compare", "fit", "importance", "predict", "rebuild", "score"]

PLACES = Annotated[
    Path,
    typer.Argument(help="CSV or TSV with id, lon, lat and indicators, GeoJSON, or a shapefile"),
]
FLOWS = Annotated[Path, typer.Argument(help="CSV or TSV with origin, destination, flow")]
MODEL = Annotated[Path, typer.Argument(help="model file written by fit")]
COLUMNS = Annotated[
    str,
    typer.Option(help="names of the columns if they differ: id=GEOID,flow=S000,origin=h_geocode"),
]
CRS = Annotated[str | None, typer.Option(help="reference system of coordinates: EPSG:32618")]
UNDIRECTED = Annotated[bool, typer.Option(help="each row of flows counts in both directions")]
DROP = Annotated[bool, typer.Option(help="leave out flows of places that are not listed")]


def fit(
    places: PLACES,
    flows: FLOWS,
    model: Annotated[Path, typer.Argument(help="model file to write")],
    backend: Annotated[Literal["hist", "xgboost"], typer.Option()] = "hist",
    min_flow: Annotated[float, typer.Option(help="smallest flow that is a link")] = 0.0,
    seed: int = 0,
    columns: COLUMNS = "",
    crs: CRS = None,
    undirected: UNDIRECTED = False,
    drop_unknown: DROP = False,
) -> None:
    """Learn links and flows, say how well they are told on kept-out pairs, and save the model."""
    console = Console()
    net = _read(places, flows, columns, crs, undirected, drop_unknown)
    with console.status(f"learning from {net}"):
        found = CommuterModel(backend, min_flow=min_flow, random_state=seed).fit(net)
        kept = found.validation_pairs_
        links = kept[is_link(net.flows_of(kept), min_flow)]
        accuracy = found.score(net, kept)
        flow = flow_metrics(net.flows_of(links), found.flow(links))
    save_model(model, found)
    table = Table("on kept-out pairs", "value")
    table.add_row("accuracy, as many links as non-links", f"{accuracy:.3f}")
    table.add_row("R2 of log(1 + flow) of links", f"{flow['r2_log1p']:.3f}")
    table.add_row("common part of commuters on links", f"{flow['cpc']:.3f}")
    console.print(table)
    console.print(f"{net.self_flows} flows within a place left out; model: {model}")


def predict(
    model: MODEL,
    places: PLACES,
    pairs: Annotated[Path, typer.Argument(help="CSV or TSV with origin, destination")],
    out: Annotated[Path, typer.Argument(help="CSV to write: with probability and flow")],
    columns: COLUMNS = "",
    crs: CRS = None,
) -> None:
    """Probability of a link, and people if it is one, for the pairs of a file."""
    found, net = _load(model), _read(places, None, columns, crs)
    names = _names(columns)
    ends = [names.get(end, end) for end in ("origin", "destination")]
    wanted = read_table(pairs, dict.fromkeys(ends, "str"))[ends]
    wanted.attrs = {"path": pairs, "first_row": 2}
    numbers = net.pairs(wanted)
    wanted["probability"] = found.link_probability(numbers, net)
    wanted["flow"] = found.flow(numbers, net)
    write_table(out, wanted)
    Console().print(f"{len(wanted)} pairs: {out}")


def score(
    model: MODEL,
    places: PLACES,
    flows: FLOWS,
    columns: COLUMNS = "",
    crs: CRS = None,
    undirected: UNDIRECTED = False,
    drop_unknown: DROP = False,
) -> None:
    """How well a model tells the network of places it was not fitted to."""
    found = _load(model)
    net = _read(places, flows, columns, crs, undirected, drop_unknown)
    links = net.links(found.min_flow)
    table = Table("measure", "value")
    table.add_row("accuracy, as many links as non-links", f"{found.score(net):.3f}")
    flow = flow_metrics(net.flows_of(links), found.flow(links, net))
    table.add_row("R2 of log(1 + flow) of links", f"{flow['r2_log1p']:.3f}")
    table.add_row("common part of commuters on links", f"{flow['cpc']:.3f}")
    rebuilt = compare_networks(net, _rebuild(found, net, len(links), None))
    table.add_row("links among the pairs ranked first", f"{rebuilt['link_precision']:.3f}")
    table.add_row("common part of commuters, rebuilt", f"{rebuilt['cpc']:.3f}")
    Console().print(table)


def rebuild(
    model: MODEL,
    places: PLACES,
    out: Annotated[Path, typer.Argument(help="CSV to write: origin, destination, flow, ...")],
    links: Annotated[int | None, typer.Option(help="number of links; default by density")] = None,
    threshold: Annotated[float | None, typer.Option(help="or the probability of a link")] = None,
    columns: COLUMNS = "",
    crs: CRS = None,
) -> None:
    """Score all pairs of places and write the network that the model sees."""
    found, net = _load(model), _read(places, None, columns, crs)
    graph = _rebuild(found, net, links, threshold)
    with atomic_path(out) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["origin", "destination", "flow", "probability"])
        for origin, destination, edge in graph.edges(data=True):
            writer.writerow(
                [origin, destination, f"{edge['flow']:.6g}", f"{edge['probability']:.6g}"]
            )
    Console().print(f"{len(net)} places, {graph.number_of_edges()} links: {out}")


def importance(
    model: MODEL,
    places: PLACES,
    flows: FLOWS,
    task: Annotated[Literal["links", "flows"], typer.Option()] = "links",
    kind: Annotated[Literal["joint", "gain", "shap"], typer.Option()] = "joint",
    by: Annotated[Literal["indicator", "cluster"], typer.Option()] = "indicator",
    repeats: int = 20,
    pairs: Annotated[int, typer.Option(help="links to measure on, at most")] = 2000,
    columns: COLUMNS = "",
    crs: CRS = None,
    undirected: UNDIRECTED = False,
    drop_unknown: DROP = False,
) -> None:
    """Which indicators matter, measured on places that the model was not fitted to."""
    found = _load(model)
    net = _read(places, flows, columns, crs, undirected, drop_unknown)
    size = min(pairs, len(net.links(found.min_flow)))
    sample = balanced_pairs(net, size, np.random.default_rng(0), min_flow=found.min_flow)
    with Console().status("measuring"):
        result = found.importance(kind, task, sample, net, by, repeats)
    table = Table("feature", "importance", "sd", "cluster")
    for row in result.itertuples():
        table.add_row(row.feature, f"{row.mean:.4f}", f"{row.sd:.4f}", str(row.cluster or ""))
    Console().print(table)
    Console().print("features of one cluster carry much the same information")


def compare(
    places: PLACES,
    flows: FLOWS,
    rebuilt: Annotated[Path, typer.Argument(help="flows of the other network, CSV or TSV")],
    top: Annotated[int, typer.Option(help="largest flows to compare")] = 100,
    out: Annotated[Path | None, typer.Option(help="JSON file for the numbers")] = None,
    columns: COLUMNS = "",
    crs: CRS = None,
    undirected: UNDIRECTED = False,
    drop_unknown: DROP = False,
) -> None:
    """How alike two networks of the same places are."""
    real = _read(places, flows, columns, crs, undirected, drop_unknown)
    names = ",".join(p for p in columns.split(",") if p.split("=")[0] in ("id", "lon", "lat"))
    other = _read(places, rebuilt, names, crs)
    result = compare_networks(real, other, top)
    table = Table("measure", "value")
    for name, value in result.items():
        table.add_row(name.replace("_", " "), f"{value:.4g}")
    Console().print(table)
    if out is not None:
        with atomic_path(out) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def baselines(
    places: PLACES,
    flows: FLOWS,
    columns: COLUMNS = "",
    crs: CRS = None,
    undirected: UNDIRECTED = False,
    drop_unknown: DROP = False,
) -> None:
    """Fit gravity and radiation models to all links, and say how well they describe them."""
    net = _read(places, flows, columns, crs, undirected, drop_unknown)
    links = net.links()
    models = {
        "gravity, power": GravityModel(),
        "gravity, exponential": GravityModel(deterrence="exponential"),
        "gravity, origin totals": GravityModel("origin"),
        "gravity, both totals": GravityModel("doubly"),
        "radiation": RadiationModel(),
    }
    table = Table("model", "exponents", "CPC on links", "R2 of log(1 + flow)")
    for name, model in models.items():
        flow = model.fit(net, links).predict(net, links)
        found = flow_metrics(net.flows_of(links), flow)
        fitted = getattr(model, "exponents_", {})
        exponents = ", ".join(f"{k} {value:.3g}" for k, value in fitted.items())
        table.add_row(name, exponents, f"{found['cpc']:.3f}", f"{found['r2_log1p']:.3f}")
    Console().print(table)


def _names(columns: str) -> dict[str, str]:
    parts = [part.split("=", 1) for part in columns.split(",") if part]
    known = ("id", "lon", "lat", "origin", "destination", "flow")
    for part in parts:
        if len(part) != 2 or part[0] not in known:
            raise DataError("columns are not understood", value="=".join(part), expected="id=NAME")
    return dict(parts)


def _read(
    places: Path,
    flows: Path | None,
    columns: str,
    crs: str | None,
    undirected: bool = False,
    drop_unknown: bool = False,
) -> ODTable:
    names = _names(columns)
    return ODTable.from_files(
        places,
        flows,
        place=names.pop("id", "id"),
        crs=crs,
        directed=not undirected,
        unknown="drop" if drop_unknown else "refuse",
        **names,
    )


def _load(path: Path) -> CommuterModel:
    model = load_model(path)
    if not isinstance(model, CommuterModel):
        raise DataError("not a model of commuters", path, value=type(model).__name__)
    return model


def _rebuild(
    model: CommuterModel, net: ODTable, links: int | None, threshold: float | None
) -> nx.DiGraph:
    with Progress(transient=True) as progress:
        task = progress.add_task("scoring all pairs", total=len(net))
        return model.rebuild(
            links, net, threshold, lambda done: progress.update(task, completed=done)
        )
