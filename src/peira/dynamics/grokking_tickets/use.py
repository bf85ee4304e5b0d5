"""Commands for a person's own table of whole numbers and a label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from peira.data import DataError, read_table
from peira.data.arrays import read_record, write_record
from peira.data.modular import Split, split_table
from peira.data.tables import write_table
from peira.dynamics.grokking_tickets.method import (
    METHODS,
    Checkpoint,
    Recipe,
    Steps,
    Ticket,
    find_ticket,
    ticket_study,
)
from peira.dynamics.grokking_tickets.method import retrain as retrain_ticket
from peira.dynamics.grokking_tickets.model import TokenMLP

__all__ = ["retrain", "study", "ticket"]

TICKET = "ticket"
TABLE = Annotated[
    Path, typer.Argument(help="CSV or TSV: whole-number columns and a label, one example a row")
]
LABEL = Annotated[str, typer.Option(help="name of the label's column")]
ORDERED = Annotated[
    bool, typer.Option(help="a number means another thing in each column (else a bag of numbers)")
]
STEPS = Annotated[int, typer.Option(min=1, help="training steps at most")]
SHARE = Annotated[float, typer.Option(help="fraction of the rows that train")]
PRUNE = Annotated[float, typer.Option(help="fraction of the weights REMOVED, above 0, below 1")]
WHEN = Annotated[str, typer.Option(help="memorised, transition, generalised or late")]


def ticket(
    table: TABLE,
    out: Annotated[Path, typer.Argument(help="ticket to write (.safetensors)")],
    label: LABEL = "label",
    prune: PRUNE = 0.6,
    when: WHEN = "generalised",
    ordered: ORDERED = False,
    train_fraction: SHARE = 0.4,
    width: int = 48,
    learning_rate: float = 3e-3,
    weight_decay: float = 1.0,
    steps: STEPS = 12_000,
    seed: int = 0,
) -> None:
    """Train an MLP on a table, find its ticket, and write masks and initial weights."""
    _check_when(when)
    settings = {
        "label": label,
        "ordered": ordered,
        "train_fraction": train_fraction,
        "width": width,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "steps": steps,
        "seed": seed,
    }
    data, model = _problem(table, settings)
    found = find_ticket(
        model, None, data, prune, when, _recipe(settings), steps=_watched("dense", steps)
    )  # type: ignore[arg-type]
    _write_ticket(out, found, settings)
    source = found.source
    shown = Table("quantity", "value")
    shown.add_row("checkpoint", f"{when}, step {source.step}")
    shown.add_row("test accuracy there", f"{source.test_accuracy:.3f}")
    for name, mask in found.masks.items():
        shown.add_row(f"kept of {name}", f"{mask.float().mean():.1%} of {mask.numel():,}")
    shown.add_row("kept of all", f"{found.keep:.1%}")
    Console().print(shown)
    Console().print(f"written to {out}", highlight=False)


def retrain(
    found: Annotated[Path, typer.Argument(help="ticket from `ticket`")],
    table: TABLE,
    out: Annotated[Path | None, typer.Option(help="trained weights to write")] = None,
) -> None:
    """Train a ticket from its initial weights on the table it was found on, or another."""
    subnetwork, settings = _read_ticket(found)
    data, model = _problem(table, settings)
    steps = settings["steps"]
    network, training = retrain_ticket(
        subnetwork, model, data, _recipe(settings), _watched("ticket", steps)
    )
    shown = Table("quantity", "dense", "ticket")
    dense = subnetwork.source
    never = f"not in {steps:,} steps"
    came = training.generalise_step
    shown.add_row("memorised at step", "", str(training.memorise_step or "not by then"))
    shown.add_row("checkpoint / generalised at step", str(dense.step), str(came or never))
    shown.add_row(
        "test accuracy", f"{dense.test_accuracy:.3f}", f"{training.best_test_accuracy:.3f}"
    )
    Console().print(shown)
    if out is not None:
        write_record(out, "trained network", network.state_dict(), settings)
        Console().print(f"written to {out}", highlight=False)


def study(
    table: TABLE,
    methods: Annotated[str, typer.Option(help=f"some of {', '.join(METHODS)}")] = (
        "dense,ticket,l1-dense,l2-dense,shuffled,random"
    ),
    out: Annotated[
        Path | None, typer.Option(help="CSV to write: a row per method and seed")
    ] = None,
    label: LABEL = "label",
    prune: PRUNE = 0.6,
    when: WHEN = "generalised",
    ordered: ORDERED = False,
    train_fraction: SHARE = 0.4,
    width: int = 48,
    learning_rate: float = 3e-3,
    weight_decay: float = 1.0,
    steps: STEPS = 12_000,
    seeds: Annotated[int, typer.Option(min=1, help="number of initialisations")] = 3,
) -> None:
    """Compare the ticket with its controls on a table: when does each generalise?"""
    _check_when(when)
    chosen = [name.strip() for name in methods.split(",") if name.strip()]
    for name in chosen:
        if name not in METHODS:
            raise DataError("unknown method", value=name, expected=", ".join(METHODS))
    settings: dict[str, Any] = {
        "label": label,
        "ordered": ordered,
        "train_fraction": train_fraction,
        "width": width,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "steps": steps,
        "seed": 0,
    }
    data, model = _problem(table, settings)
    tokens, classes = model.embed.shape[1], model.unembed.shape[1]
    rows = ticket_study(
        lambda: TokenMLP(tokens, classes, width),
        data,
        chosen,  # type: ignore[arg-type]
        prune,
        when,  # type: ignore[arg-type]
        _recipe(settings),
        seeds,
        watch=lambda method, seed, plain: _bar(f"{method}, seed {seed}", plain),
    )
    shown = Table("method", "generalised at step (by seed)", "speed-up", "best test accuracy")
    for method, part in rows.groupby("method", sort=False):
        times = ", ".join("never" if t != t else f"{t:.0f}" for t in part["generalise_step"])
        speed = part["speed_up"].median()
        shown.add_row(
            str(method),
            times,
            "" if speed != speed else f"{speed:.1f}x",
            f"{part['best_test_accuracy'].mean():.3f}",
        )
    Console().print(shown)
    if out is not None:
        write_table(out, rows)
        Console().print(f"written to {out}", highlight=False)


def _problem(path: Path, settings: dict[str, Any]) -> tuple[Split, TokenMLP]:
    """The table as tokens and classes, split, and the network for it."""
    inputs, labels, tokens, classes = read_tokens(path, settings["label"], settings["ordered"])
    generator = torch.Generator().manual_seed(settings["seed"])
    data = split_table(inputs, labels, settings["train_fraction"], generator)
    return data, TokenMLP(tokens, classes, settings["width"], generator=generator)


def read_tokens(
    path: Path, label: str, ordered: bool
) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Read a table of whole numbers and a label.

    Args:
        path: CSV or TSV with a header.
        label: column of the label; any values.
        ordered: give every column tokens of its own.

    Returns:
        Tokens (rows, columns), labels, size of the vocabulary, number of classes. Values are
        numbered in increasing order.
    """
    header = read_table(path, {label: "str"})
    names = [str(name) for name in header.columns if name != label]
    if not names:
        raise DataError("no columns beside the label", path=path)
    frame = read_table(path, {**dict.fromkeys(names, "int"), label: "str"})
    values = torch.tensor(frame[names].to_numpy())
    classes = sorted(set(frame[label].str.strip()), key=_natural)
    number = {name: index for index, name in enumerate(classes)}
    labels = torch.tensor([number[name] for name in frame[label].str.strip()])
    if len(classes) < 2:
        raise DataError("only one class", path=path, column=label, value=classes[0])
    if ordered:
        columns = [column.unique(return_inverse=True) for column in values.unbind(1)]
        sizes = [len(seen) for seen, _ in columns]
        starts = torch.tensor([0, *sizes]).cumsum(0)
        tokens = torch.stack([index for _, index in columns], dim=1) + starts[:-1]
        return tokens, labels, int(starts[-1]), len(classes)
    seen, tokens = values.unique(return_inverse=True)
    return tokens, labels, len(seen), len(classes)


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _recipe(settings: dict[str, Any]) -> Recipe:
    return Recipe(
        learning_rate=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
        steps=settings["steps"],
    )


def _check_when(when: str) -> None:
    known = ("memorised", "transition", "generalised", "late")
    if when not in known:
        raise DataError("unknown checkpoint", value=when, expected=", ".join(known))


def _watched(title: str, steps: int) -> Steps:
    return lambda _: _bar(title, range(1, steps + 1))


def _bar(title: str, steps: Iterable[int]) -> Iterator[int]:
    yield from track(steps, title, console=Console(stderr=True))


def _write_ticket(path: Path, found: Ticket, settings: dict[str, Any]) -> None:
    tensors = {f"mask.{name}": mask.cpu() for name, mask in found.masks.items()}
    tensors |= {f"initial.{name}": w.cpu() for name, w in found.initial_state.items()}
    source = {
        "step": found.source.step,
        "train_accuracy": found.source.train_accuracy,
        "test_accuracy": found.source.test_accuracy,
    }
    write_record(path, TICKET, tensors, {**settings, "source": source})


def _read_ticket(path: Path) -> tuple[Ticket, dict[str, Any]]:
    tensors, about = read_record(path, TICKET)
    parts: dict[str, dict[str, torch.Tensor]] = {"mask": {}, "initial": {}}
    for name, tensor in tensors.items():
        kind, _, parameter = name.partition(".")
        parts[kind][parameter] = tensor
    source = Checkpoint(**about.pop("source"), state={})
    return Ticket(parts["mask"], parts["initial"], source), about
