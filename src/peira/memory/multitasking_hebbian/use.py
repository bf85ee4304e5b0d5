"""Commands for a person's own patterns with blanks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from peira.data import DataError, read_npz
from peira.data.tables import write_table
from peira.engine.files import atomic_path
from peira.memory.multitasking_hebbian.files import read_rows
from peira.memory.multitasking_hebbian.network import FACTS, Mode, MultitaskingHebbian
from peira.memory.multitasking_hebbian.patterns import noisy_examples, ternary_patterns
from peira.memory.multitasking_hebbian.theory import (
    State,
    critical_dilution,
    dataset_entropy,
)
from peira.memory.multitasking_hebbian.theory import examples_needed as fewest_examples
from peira.memory.multitasking_hebbian.theory import regime as winning_regime

__all__ = ["examples_needed", "learn", "recall", "regime", "simulate"]

ROWS = "CSV with a header, or .npz: one row per example, -1, 1, and 0 or empty for a blank"
# Patterns that are named in a table, and most for which theory is solved unasked.
SHOWN = 8
Label = Annotated[str, typer.Option(help="column (.npz: array) of labels, if there is one")]
Temperature = Annotated[float, typer.Option(help="T, in units where order ends at 1")]
Dilution = Annotated[float, typer.Option(help="d, share of blanks in a pattern")]
Count = Annotated[int, typer.Option(help="K, number of patterns", min=1)]
Quality = Annotated[float, typer.Option(help="r: an entry is right with probability (1+r)/2")]


def learn(
    examples: Annotated[Path, typer.Argument(help=ROWS)],
    network: Annotated[Path, typer.Argument(help=".npz file to write")],
    label: Label = "label",
    mode: Annotated[str, typer.Option(help="supervised, unsupervised or storing")] = "supervised",
    temperature: Temperature = 0.05,
) -> None:
    """Learn patterns from a file, save the network, and say what it will recall."""
    rows, labels, _ = read_rows(examples, label, labelled=mode == "supervised")
    found = _network(mode, temperature).fit(rows, labels)
    with atomic_path(network) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **found.learned())
    console = Console()
    facts = Table(
        title=f"{examples}: {len(rows):,} rows of {rows.shape[1]:,} entries", show_header=False
    )
    facts.add_row("patterns K", f"{found.count_}")
    facts.add_row("examples of each M", f"{found.examples_:.4g}")
    facts.add_row("blanks d", f"{found.dilution_:.3f}")
    facts.add_row("quality r", f"{found.quality_:.3f}")
    facts.add_row("data-set entropy rho", f"{found.entropy_:.3g}")
    console.print(facts)
    if found.count_ <= SHOWN:
        _print_regime(console, found.dilution_, found.count_, temperature, found.entropy_)
    console.print(f"network: {network}", highlight=False)


def recall(
    network: Annotated[Path, typer.Argument(help=".npz file written by learn")],
    cues: Annotated[Path, typer.Argument(help=ROWS.replace("example", "cue"))],
    out: Annotated[Path, typer.Argument(help="CSV to write: the states, one row per cue")],
    label: Label = "label",
    temperature: Temperature = 0.05,
    sweeps: Annotated[int, typer.Option(help="updates of every spin", min=2)] = 60,
    seed: Annotated[int, typer.Option(help="of blanks and of the dynamics", min=0)] = 0,
) -> None:
    """Let the network settle from each cue, and show which patterns the state recalls at once."""
    found = _saved(network, temperature, seed)
    rows, _, names = read_rows(cues, label)
    answer = found.recall(rows, sweeps)
    write_table(out, pd.DataFrame(answer.states, columns=names))
    table = Table(title=f"overlaps of {len(rows)} states")
    table.add_column("cue", justify="right")
    table.add_column("regime")
    strongest = min(SHOWN, answer.overlaps.shape[1])
    table.add_column(f"strongest {strongest} patterns" if strongest > 1 else "pattern")
    for row, overlaps in enumerate(answer.overlaps):
        order = np.argsort(-np.abs(overlaps))[:strongest]
        text = "  ".join(f"{found.labels_[k]}: {overlaps[k]:+.3f}" for k in order)
        name = answer.regimes[row] if answer.regimes else "(examples)"
        table.add_row(str(row + 1), name, text)
    console = Console()
    console.print(table)
    console.print(f"states: {out}", highlight=False)


def regime(
    dilution: Dilution,
    patterns: Count = 3,
    temperature: Temperature = 0.05,
    entropy: Annotated[float, typer.Option(help="rho = (1-r^2)/(M r^2) of the examples")] = 0.0,
) -> None:
    """Which state theory predicts: pure, hierarchical, parallel or paramagnetic."""
    _print_regime(Console(), dilution, patterns, temperature, entropy)


def examples_needed(
    quality: Quality,
    dilution: Dilution,
    patterns: Count = 3,
    target: Annotated[float, typer.Option(help="share of the first pattern kept")] = 0.95,
) -> None:
    """How many noisy examples of each pattern are enough."""
    many = fewest_examples(quality, dilution, patterns, target)
    rho = dataset_entropy(quality, many)
    Console().print(f"{many} examples of each pattern (data-set entropy {rho:.3g})")


def simulate(
    out: Annotated[Path, typer.Argument(help="CSV to write: label and entries")],
    patterns: Count = 3,
    spins: Annotated[int, typer.Option(help="N, entries of a row", min=2)] = 500,
    dilution: Dilution = 0.25,
    quality: Quality = 0.4,
    examples: Annotated[int, typer.Option(help="M, of each pattern", min=1)] = 50,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write drawn examples, to try the other commands on."""
    rng = np.random.default_rng(seed)
    seen = noisy_examples(ternary_patterns(patterns, spins, dilution, rng), quality, examples, rng)
    table = pd.DataFrame(seen.reshape(-1, spins), columns=[f"x{i}" for i in range(1, spins + 1)])
    table.insert(0, "label", np.repeat([f"p{k}" for k in range(1, patterns + 1)], examples))
    write_table(out, table)
    Console().print(f"{len(table)} examples of {patterns} patterns: {out}", highlight=False)


def _network(mode: str, temperature: float, seed: int | None = None) -> MultitaskingHebbian:
    if not temperature > 0:
        raise DataError("no such temperature", value=temperature, expected="more than 0")
    chosen: Mode = mode  # type: ignore[assignment]  # checked by fit, with the choices
    return MultitaskingHebbian(1 / temperature, chosen, seed)


def _saved(path: Path, temperature: float, seed: int) -> MultitaskingHebbian:
    learned = read_npz(path, needed=("patterns", "scores", "labels", *FACTS))
    return _network("storing", temperature, seed).restore(learned)


def _print_regime(
    console: Console, dilution: float, patterns: int, temperature: float, entropy: float
) -> None:
    best = winning_regime(dilution, patterns, temperature, entropy)
    table = Table(
        title=f"theory: {best.name}", caption=f"d_c({patterns}) = {critical_dilution(patterns):.4f}"
    )
    for name in ("state", "overlaps", "free energy", "stable"):
        table.add_column(name)
    states: list[State] = [best, *best.others]
    for state in states:
        overlaps = "  ".join(f"{m:.3f}" for m in state.overlaps)
        table.add_row(
            state.name, overlaps, f"{state.free_energy:.4f}", "yes" if state.stable else "no"
        )
    console.print(table)
