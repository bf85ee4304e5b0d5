"""Commands for a person's own stream of timed links."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from peira.data import DataError, read_table
from peira.data.tables import write_table
from peira.graphs.nat.method import NAT, as_edges
from peira.graphs.nat.method import compare as compare_rules

__all__ = ["evaluate", "fit", "neighbourhood", "predict", "update"]

STREAM = (
    "links with times: a CSV or TSV with columns src, dst, t (or source, target, time, ...), a "
    "JODIE CSV, a SNAP text file, or ml_NAME.csv with its two .npy files"
)
Stream = Annotated[Path, typer.Argument(help=STREAM)]
Model = Annotated[Path, typer.Argument(help="file written by `fit`")]
Epochs = Annotated[int, typer.Option(help="passes over the stream at most", min=1)]
Rate = Annotated[float, typer.Option(help="learning rate; 1e-4 is the published one")]
Hops = Annotated[int, typer.Option(help="slots of the first-hop table of a node", min=1)]
Alpha = Annotated[float, typer.Option(help="chance that a new neighbour overrides an old one")]
Seed = Annotated[int, typer.Option(help="seed of weights, negatives and hash")]


def fit(
    edges: Stream,
    model: Annotated[Path, typer.Argument(help="file to write, .safetensors")],
    epochs: Epochs = 50,
    learning_rate: Rate = 1e-4,
    slots: Hops = 32,
    alpha: Alpha = 0.9,
    extra_nodes: Annotated[int, typer.Option(help="room for nodes that come later", min=0)] = 0,
    seed: Seed = 0,
) -> None:
    """Train on a stream and keep weights and caches in one file."""
    stream = as_edges(edges)
    nat = NAT(
        slots=(slots, 16), epochs=epochs, learning_rate=learning_rate, alpha=alpha,
        extra_nodes=extra_nodes, random_state=seed,
    )  # fmt: skip
    with _bar(epochs) as on_epoch:
        nat.fit(stream, on_epoch=on_epoch)
    nat.save(model)
    best = nat.history_["val_ap"].max()
    Console().print(
        f"{model}: {stream.num_nodes} nodes, {len(stream)} events, "
        f"validation AP {best:.3f} after {len(nat.history_)} epochs"
    )


def predict(
    model: Model,
    pairs: Annotated[Path, typer.Argument(help="CSV or TSV with columns src, dst")],
    out: Annotated[Path, typer.Argument(help="CSV to write: src, dst, probability")],
) -> None:
    """Probability that each pair meets next, after everything the model was shown."""
    nat = NAT.load(model)
    kind: Literal["int", "str"] = "int" if nat.nodes_.dtype.kind in "iu" else "str"
    table = read_table(pairs, columns={"src": kind, "dst": kind})
    ends = table[["src", "dst"]].to_numpy(dtype=nat.nodes_.dtype if kind == "int" else str)
    try:
        probability = nat.predict_proba(ends)[:, 1]
    except DataError as error:
        row = None if error.row is None else error.row + 1
        raise DataError("unknown node", pairs, row, None, error.value, error.expected) from error
    write_table(out, table.assign(probability=probability))
    Console().print(f"{out}: {len(table)} pairs, mean probability {probability.mean():.3f}")


def update(model: Model, edges: Stream) -> None:
    """Show the model new events, without training, and keep it."""
    nat = NAT.load(model)
    stream = as_edges(edges)
    nat.update(stream).save(model)
    Console().print(f"{model}: {len(stream)} new events, the last at {nat.last_time_:g}")


def neighbourhood(
    model: Model,
    node: Annotated[str, typer.Argument(help="name of a node")],
    top: Annotated[int, typer.Option(help="rows per hop", min=1)] = 10,
) -> None:
    """What the caches of a node hold, newest first."""
    nat = NAT.load(model)
    integer = nat.nodes_.dtype.kind in "iu"
    if integer and not node.lstrip("-").isdigit():
        raise DataError("unknown node", value=node, expected="a whole number")
    frame = nat.neighbourhood(int(node) if integer else node)
    _show(frame.groupby("hop").head(top), f"neighbourhood of {node}")


def evaluate(
    edges: Stream,
    mode: Annotated[
        Literal["transductive", "inductive"],
        typer.Option(help="inductive: tests on nodes that training never saw"),
    ] = "transductive",
    epochs: Epochs = 50,
    learning_rate: Rate = 1e-4,
    slots: Hops = 32,
    alpha: Alpha = 0.9,
    seed: Seed = 0,
) -> None:
    """Train on the first 70% of time, test on the last 15%, beside the memory rules."""
    nat = NAT(
        slots=(slots, 16), epochs=epochs, learning_rate=learning_rate, alpha=alpha,
        random_state=seed,
    )  # fmt: skip
    stream = as_edges(edges)
    with _bar(epochs) as on_epoch:
        found = compare_rules(nat, stream, mode, on_epoch=on_epoch)
    _show(found.rename_axis("method").reset_index(), f"{edges.name}, {mode}")


@contextmanager
def _bar(epochs: int) -> Iterator[Callable[[dict[str, float]], None]]:
    with Progress(transient=True) as progress:
        task = progress.add_task("training", total=epochs)

        def on_epoch(row: dict[str, float]) -> None:
            progress.update(
                task, advance=1, description=f"training, validation AP {row['val_ap']:.3f}"
            )

        yield on_epoch


def _show(frame: pd.DataFrame, title: str) -> None:
    table = Table(title=title)
    for name in frame.columns:
        number = pd.api.types.is_numeric_dtype(frame[name])
        table.add_column(str(name), justify="right" if number else "left", no_wrap=not number)
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{x:.4g}" if isinstance(x, float) else str(x) for x in row))
    Console().print(table)
