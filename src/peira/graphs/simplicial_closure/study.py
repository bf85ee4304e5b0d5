"""How the paper's claims are tested: the cells, what one cell measures, the verdicts."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

import peira
from peira.data import TemporalHypergraph, fingerprint, locate
from peira.engine import verdict as v
from peira.graphs.simplicial_closure.closures import closure_table
from peira.graphs.simplicial_closure.prediction import evaluate
from peira.graphs.simplicial_closure.scores import MEAN_POWERS, SCORES, SUPERVISED
from peira.graphs.simplicial_closure.significance import LEVEL, compare_types
from peira.graphs.simplicial_closure.structure import (
    affiliation_process,
    random_triples,
    summary,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SIMULATED = "affiliation"
FOUR = ("email-Enron", "contact-high-school", "contact-primary-school", "NDC-classes")
# The rest of the authors' release, which lacks music-rap-genius and congress-committees.
OTHERS = (
    "email-Eu", "tags-ask-ubuntu", "threads-ask-ubuntu", "tags-math-sx", "threads-math-sx",
    "NDC-substances", "congress-bills", "DAWN", "coauth-MAG-History", "coauth-MAG-Geology",
    "coauth-DBLP", "tags-stack-overflow", "threads-stack-overflow",
)  # fmt: skip
FILES = ("nverts", "simplices", "times")

MEANS = tuple(f"mean:{p:g}" for p in MEAN_POWERS)
WALKS = ("katz", "weighted-katz", "ppr", "weighted-ppr")
FLOWS = tuple(name for name in SCORES if name.startswith("simplicial-ppr"))
LOCAL = tuple(name for name in SCORES if name not in (*WALKS, *FLOWS))
SIMPLE_MEANS = ("harmonic", "geometric", "arithmetic")

NULL_SIZES = (25, 50, 100)
NULL_POWERS = (0.8, 1.0, 1.2, 1.4, 1.6, 1.8)
CLAIMED_SHARE = 0.8
CLAIMED_POWERS = (-1.0, 1.0)


class Cell(peira.Cell):
    """One thing counted or scored on one data set, or one random hypergraph."""

    part: Literal["closures", "scores", "flows", "null"] = Field(
        "closures", description="closure tables, scores, edge PageRank, or the null model"
    )
    data: str = Field(SIMULATED, description="data set of the release, or the simulated teams")
    labels: Literal["correct", "published"] = Field(
        "correct", description="which open triangles count as closed, see `evaluate`"
    )
    n: int = Field(25, ge=4, le=400, description="nodes of the null model")
    b: float = Field(1.0, gt=0, le=3, description="null model: a triple is there with p = n^-b")


def on_data(names: tuple[str, ...], flows: tuple[str, ...]) -> list[Cell]:
    """Closures and scores under both label protocols, and edge PageRank where it is asked for."""
    return [
        *(Cell(part="closures", data=name) for name in names),
        *(
            Cell(part="scores", data=name, labels=labels)
            for name in names
            for labels in ("correct", "published")
        ),
        *(Cell(part="flows", data=name) for name in flows),
    ]


def null_cells(sizes: tuple[int, ...], powers: tuple[float, ...]) -> list[Cell]:
    """The grid of random hypergraphs."""
    return [Cell(part="null", n=n, b=b) for n, b in product(sizes, powers)]


class Study(peira.Study[Cell]):
    """Counts on real data are deterministic; seeds vary the null model and the simulated teams."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(
            cells=[*on_data((SIMULATED,), (SIMULATED,)), *null_cells((25,), (0.8, 1.2, 1.8))],
            seeds=2,
        ),
        "small": peira.Scale(
            cells=[*on_data(FOUR, FOUR[:1]), *null_cells(NULL_SIZES, NULL_POWERS)], seeds=3
        ),
        "paper": peira.Scale(
            cells=[
                *on_data((*FOUR, *OTHERS), (*FOUR, *OTHERS)),
                *null_cells(
                    (*NULL_SIZES, 200), tuple(np.arange(0.8, 1.81, 0.02).round(2).tolist())
                ),
            ],
            seeds=5,
        ),
    }

    def inputs(self, cell: Cell) -> dict[str, str]:
        """Fingerprint of the three files of a real data set."""
        if cell.part == "null" or cell.data == SIMULATED:
            return {}
        return {cell.data: fingerprint(data_files(cell.data))}

    def seeds(self, cell: Cell, asked: int) -> int:
        """One where the cell counts on real data and nothing is drawn."""
        return asked if cell.part == "null" or cell.data == SIMULATED else 1

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float]:
        """Count closures, or score and evaluate, or draw one random hypergraph."""
        if cell.part == "null":
            drawn = summary(random_triples(cell.n, cell.b, run.rng))
            return {name: drawn[name] for name in ("fraction_open", "average_degree", "density")}
        h = read(cell.data, run)
        if cell.part == "closures":
            return measure_closures(h)
        return measure_scores(h, cell)

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        """Claims C1 to C6 of the card."""
        published = published_numbers()
        closures = {name: row(table, part="closures", data=name) for name in FOUR}
        closures = {name: values for name, values in closures.items() if values}
        right = {name: row(table, part="scores", data=name, labels="correct") for name in FOUR}
        right = {name: values for name, values in right.items() if values}
        theirs = {name: row(table, part="scores", data=name, labels="published") for name in FOUR}
        yield v.exactly(_closure_pairs(closures, published), claim=self.claim("C1"))
        c2 = self.claim("C2")
        yield v.all_of(
            c2,
            [
                v.count(
                    {
                        name: values[f"rising share {k}"] >= CLAIMED_SHARE
                        for name, values in closures.items()
                    },
                    claim=part,
                )
                for k, part in zip((3, 4), c2.parts, strict=True)
            ],
        )
        yield v.count(
            {
                name: _best(values, SIMPLE_MEANS) > _best(values, WALKS)
                for name, values in right.items()
            },
            claim=self.claim("C3"),
        )
        yield v.exactly(_mean_pairs(theirs, published), claim=self.claim("C4"))
        low, high = CLAIMED_POWERS
        yield v.count(
            {name: low <= best_power(values) <= high for name, values in right.items()},
            claim=self.claim("C5"),
        )
        c6 = self.claim("C6")
        yield v.all_of(
            c6,
            [
                v.trend(
                    table, "b", "fraction_open", part, where={"part": "null", "n": n}, falling=True
                )
                for n, part in zip(NULL_SIZES, c6.parts, strict=True)
            ],
        )

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        """Closure probabilities, generalised means under both protocols, the null model."""
        from peira.graphs.simplicial_closure.figure import draw

        return draw(table)


def data_files(name: str) -> list[Path]:
    """The official files of one data set, found or fetched."""
    return [locate("scholp", f"{name}/{name}-{part}.txt.gz") for part in FILES]


def read(name: str, run: peira.Run) -> TemporalHypergraph:
    """A data set by name; the simulated one depends on the seed."""
    if name == SIMULATED:
        return affiliation_process(40, 600, run.rng)
    first = data_files(name)[0]
    return TemporalHypergraph.from_files(first.with_name(name), large="drop")


def measure_closures(h: TemporalHypergraph) -> dict[str, float]:
    """Both closure tables, how many comparisons rise, and the size of the hypergraph."""
    metrics: dict[str, float] = {}
    old, new = h.split(80)
    for k in (3, 4):
        closures = closure_table(old, new, k)
        for r in closures.itertuples():
            metrics |= {f"open {r.type}": float(r.n), f"closed {r.type}": float(r.c)}
        compared = compare_types(closures)
        compared = compared[compared["kind"] != "competing"]
        if len(compared):
            metrics[f"rising share {k}"] = float(compared["rises"].mean())
        metrics[f"rises at 1e-5 {k}"] = float((compared["p_rise"] < LEVEL).sum())
        metrics[f"falls at 1e-5 {k}"] = float((compared["p_fall"] < LEVEL).sum())
        metrics[f"compared {k}"] = float(len(compared))
    known = summary(old)
    return metrics | {name: float(known[name]) for name in ("open", "closed", "average_degree")}


def measure_scores(h: TemporalHypergraph, cell: Cell) -> dict[str, float]:
    """Improvement over random of every score (or of the four edge-PageRank scores)."""
    wanted = FLOWS if cell.part == "flows" else (*MEANS, *LOCAL, *WALKS, SUPERVISED)
    result = evaluate(h, wanted, labels=cell.labels)
    improvement = dict(zip(result["score"], result["improvement"].astype(float), strict=True))
    return improvement | {"positives": float(result["positives"].iloc[0])}


def row(table: pd.DataFrame, **group: Any) -> dict[str, float]:
    """The measurements of a deterministic cell (its seeds agree); empty if it was not run."""
    rows = v.select(table, group)
    if not len(rows):
        return {}
    numbers = rows.select_dtypes("number").iloc[0]
    return {str(name): float(value) for name, value in numbers.items() if not np.isnan(value)}


def best_power(values: dict[str, float]) -> float:
    """Power of the generalised mean with the highest average precision."""
    return MEAN_POWERS[int(np.argmax([values[name] for name in MEANS]))]


@cache
def published_numbers() -> dict[str, Any]:
    """What the authors released: closure tables and curves of the generalised means."""
    file = resources.files("peira.graphs.simplicial_closure").joinpath("published.toml")
    return tomllib.loads(file.read_text(encoding="utf-8"))


def _best(values: dict[str, float], names: tuple[str, ...]) -> float:
    return max(values[name] for name in names)


def _closure_pairs(
    closures: dict[str, dict[str, float]], published: dict[str, Any]
) -> dict[str, tuple[float, float]]:
    pairs = {}
    for name, values in closures.items():
        for kind, (opened, closed) in published[name]["closures"].items():
            pairs[f"{name} {kind} open"] = (values[f"open {kind}"], float(opened))
            pairs[f"{name} {kind} closed"] = (values[f"closed {kind}"], float(closed))
    return pairs


def _mean_pairs(
    scores: dict[str, dict[str, float]], published: dict[str, Any]
) -> dict[str, tuple[float, float]]:
    return {
        f"{name} {mean}": (values[mean], number)
        for name, values in scores.items()
        if values
        for mean, number in zip(MEANS, published[name]["means"]["improvement"], strict=True)
    }
