"""Commands for a person's own time-stamped groups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from peira.data.hypergraph import MAX_SIZE
from peira.engine.files import atomic_path
from peira.graphs.simplicial_closure.method import TemporalHypergraph
from peira.graphs.simplicial_closure.prediction import evaluate as evaluate_scores
from peira.graphs.simplicial_closure.prediction import open_triangles as find_open
from peira.graphs.simplicial_closure.prediction import rank as rank_triangles
from peira.graphs.simplicial_closure.scores import SCORES, SUPERVISED
from peira.graphs.simplicial_closure.significance import compare_types

__all__ = ["closures", "compare", "evaluate", "open_triangles", "rank"]

STEM = "path STEM of the files STEM-nverts.txt, STEM-simplices.txt, STEM-times.txt (or .txt.gz)"
Stem = Annotated[Path, typer.Argument(help=STEM)]
MaxSize = Annotated[int, typer.Option(help="largest group that is accepted")]
DropLarge = Annotated[bool, typer.Option("--drop-large", help="leave out larger groups")]
Split = Annotated[float, typer.Option(help="percentile of the timestamps that ends the known part")]
Nodes = Annotated[int, typer.Option(help="3 or 4", min=3, max=4)]
Scores = Annotated[
    list[str], typer.Option("--score", help=f"{', '.join(SCORES)}, {SUPERVISED} or mean:P")
]
DEFAULT_SCORES = ["harmonic", "geometric", "arithmetic", "adamic-adar", "weighted-ppr", SUPERVISED]


def closures(
    stem: Stem,
    nodes: Nodes = 3,
    split: Split = 80,
    max_size: MaxSize = MAX_SIZE,
    drop_large: DropLarge = False,
) -> None:
    """How many configurations of each type are open, and how many close later."""
    h = _read(stem, max_size, drop_large)
    _show(h.closures(nodes, split), f"{h.name}: closures of {nodes} nodes")


def compare(
    stem: Stem,
    nodes: Nodes = 3,
    split: Split = 80,
    max_size: MaxSize = MAX_SIZE,
    drop_large: DropLarge = False,
) -> None:
    """Test which types close more often than the type with fewer or weaker ties."""
    h = _read(stem, max_size, drop_large)
    _show(compare_types(h.closures(nodes, split)), f"{h.name}: types one step apart")


def open_triangles(
    stem: Stem,
    out: Annotated[Path, typer.Argument(help="CSV file to write, one open triangle a line")],
    until: Annotated[float | None, typer.Option(help="last time that counts")] = None,
    max_size: MaxSize = MAX_SIZE,
    drop_large: DropLarge = False,
) -> None:
    """Write the triples that are tied pairwise but never met in one group."""
    h = _read(stem, max_size, drop_large)
    window = h if until is None else h.until(until)
    written = 0
    with atomic_path(out) as part:
        pd.DataFrame(columns=["first", "second", "third"]).to_csv(part, index=False)
        for block in find_open(window):
            named = pd.DataFrame([[h.label(i) for i in row] for row in block.tolist()])
            named.to_csv(part, index=False, header=False, mode="a")
            written += len(named)
    Console().print(f"{written:,} open triangles of {h.name} -> {out}")


def rank(
    stem: Stem,
    score: Annotated[
        str, typer.Option(help=f"{', '.join(SCORES)}, {SUPERVISED} or mean:P")
    ] = "harmonic",
    top: Annotated[int, typer.Option(help="how many triples", min=1)] = 20,
    max_size: MaxSize = MAX_SIZE,
    drop_large: DropLarge = False,
) -> None:
    """The triples most likely to meet in one group next."""
    h = _read(stem, max_size, drop_large)
    _show(rank_triangles(h, score, top), f"{h.name}: open triangles by {score}")


def evaluate(
    stem: Stem,
    score: Scores = DEFAULT_SCORES,
    split: Split = 80,
    labels: Annotated[
        str, typer.Option(help="correct, or published for the released code's")
    ] = "correct",
    max_size: MaxSize = MAX_SIZE,
    drop_large: DropLarge = False,
) -> None:
    """How well scores would have foreseen the last part of the data."""
    h = _read(stem, max_size, drop_large)
    _show(evaluate_scores(h, score, split, labels), f"{h.name}: average precision, {labels} labels")


def _read(stem: Path, max_size: int, drop_large: bool) -> TemporalHypergraph:
    large = "drop" if drop_large else "refuse"
    return TemporalHypergraph.from_files(stem, max_size=max_size, large=large)


def _show(frame: pd.DataFrame, title: str) -> None:
    table = Table(title=title)
    for name in frame.columns:
        numeric = pd.api.types.is_numeric_dtype(frame[name])
        table.add_column(str(name), justify="right" if numeric else "left")
    for values in frame.itertuples(index=False):
        table.add_row(*(_text(value) for value in values))
    Console().print(table)


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
