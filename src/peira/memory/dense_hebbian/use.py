"""Commands for a person's own pictures, and for planning a memory before building it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from peira.data import DataError
from peira.data.pictures import read_pictures
from peira.engine.files import atomic_path
from peira.memory.dense_hebbian.method import (
    DenseHebbian,
    Examples,
    critical_load,
    dense_examples_needed,
    nearest_mean,
    pseudo_inverse,
    retrieval_temperature,
    softmax_memory,
)
from peira.memory.dense_hebbian.method import phase_diagram as find_phase_diagram
from peira.memory.spins import binarise, flip

__all__ = ["compare", "examples_needed", "phase_diagram", "retrieve"]

FORMATS = "pictures: .npz with images and labels, .npy, IDX (.gz), CIFAR, or a folder of folders"
Pictures = Annotated[Path, typer.Argument(help=FORMATS)]
Labels = Annotated[Path | None, typer.Option(help="labels of the pictures, where kept apart")]
Order = Annotated[int, typer.Option("--p", help="spins per coupling", min=2, max=6)]
Threshold = Annotated[
    float | None, typer.Option(help="a pixel above it is +1; without: each picture's median")
]
Unsupervised = Annotated[
    bool, typer.Option("--unsupervised", help="average examples after the product, not before")
]
Centre = Annotated[
    bool, typer.Option("--centre", help="couple what differs between classes: for look-alikes")
]
Flips = Annotated[float, typer.Option("--flip", help="share of pixels flipped in the cues first")]
Sweeps = Annotated[int, typer.Option(help="of the heat bath", min=1)]
Temperature = Annotated[
    float, typer.Option(help="temperature; a stored picture's field is 1/(P-1)!")
]
Load = Annotated[float, typer.Option(help="load K / N^(P-1)")]
Mode = Literal["supervised", "unsupervised"]


def retrieve(
    pictures: Pictures,
    cues: Annotated[Path, typer.Argument(help="damaged pictures to complete, same formats")],
    out: Annotated[Path, typer.Argument(help="npz to write: images, classes, overlaps, energies")],
    labels: Labels = None,
    cue_labels: Annotated[Path | None, typer.Option(help="labels of the cues, to score")] = None,
    p: Order = 4,
    threshold: Threshold = None,
    flip_share: Flips = 0.0,
    temperature: Temperature = 0.0,
    sweeps: Sweeps = 20,
    unsupervised: Unsupervised = False,
    centre: Centre = False,
    seed: int = 0,
) -> None:
    """Learn the classes of pictures and complete damaged ones."""
    memory, shape = _memory(pictures, labels, p, threshold, unsupervised, centre, seed)
    images, wanted = read_pictures(cues, cue_labels)
    if images.shape[1:] != shape:
        raise DataError(
            "pictures of another size", cues, value=images.shape[1:], expected=str(shape)
        )
    start = flip(binarise(images, threshold), flip_share, np.random.default_rng(seed))
    found = memory.retrieve(start, temperature, sweeps)
    answers = memory.classes_[found.overlaps.argmax(axis=1)]
    completed = np.where(found.states > 0, 255, 0).astype(np.uint8).reshape(len(start), *shape)
    with atomic_path(out) as part, open(part, "wb") as file:
        np.savez_compressed(
            file, images=completed, classes=answers, overlaps=found.overlaps,
            energies=found.energies,
        )  # fmt: skip
    table = Table(title=f"{len(start)} pictures completed -> {out}")
    for name in ("class", "retrieved", "mean overlap", *(["right"] if wanted is not None else [])):
        table.add_column(name, justify="right")
    for row, label in enumerate(memory.classes_):
        mine = answers == label
        cells = [str(label), str(int(mine.sum())), "-" if not mine.any() else ""]
        if mine.any():
            cells[2] = f"{found.overlaps[mine, row].mean():.3f}"
        if wanted is not None:
            shown = wanted == label
            cells.append(f"{(answers[shown] == label).mean():.3f}" if shown.any() else "-")
        table.add_row(*cells)
    Console().print(table)
    _show_memory(memory)


def compare(
    pictures: Pictures,
    labels: Labels = None,
    threshold: Threshold = None,
    test: Annotated[float, typer.Option(help="share of the pictures kept for testing")] = 0.2,
    sweeps: Sweeps = 10,
    seed: int = 0,
) -> None:
    """Accuracy of dense, pairwise and other memories on held-out pictures, whole and damaged."""
    images, found = read_pictures(pictures, labels)
    answers = _needed(found, pictures)
    if not 0 < test < 1:
        raise DataError("--test is no share", value=test, expected="a number between 0 and 1")
    spins = binarise(images, threshold)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(spins))
    held, kept = np.split(order, [max(1, round(test * len(spins)))])
    if not len(kept):
        raise DataError("no picture is left to learn from", pictures, value=len(spins))
    flips = (0.0, 0.15, 0.3, 0.45)
    table = Table("memory", *(f"{share:.0%} flipped" for share in flips))
    cues = [flip(spins[held], share, rng) for share in flips]
    memories = {
        P: DenseHebbian(P, random_state=seed).fit(spins[kept], answers[kept]) for P in (2, 4)
    }
    stored = memories[4]
    centred = DenseHebbian(4, centre=True, random_state=seed).fit(spins[kept], answers[kept])
    recalls = {
        "dense, P = 4": lambda cue: memories[4].retrieve(cue, sweeps=sweeps).states,
        "dense, P = 4, centred": lambda cue: centred.retrieve(cue, sweeps=sweeps).states,
        "Hebb, P = 2": lambda cue: memories[2].retrieve(cue, sweeps=sweeps).states,
        "pseudo-inverse": lambda cue: pseudo_inverse(stored.averages_, cue, rng, sweeps),
        "softmax Hopfield": lambda cue: softmax_memory(stored.averages_, cue),
        "nearest class mean": lambda cue: nearest_mean(stored.averages_, cue),
    }
    for name, recall in recalls.items():
        scores = []
        for cue in cues:
            judge = centred if name.endswith("centred") else stored
            guess = judge.answers(recall(cue))
            scores.append(f"{(guess == answers[held]).mean():.3f}")
        table.add_row(name, *scores)
    table.title = f"accuracy on {len(held)} pictures, learned from {len(kept)}"
    Console().print(table)


def phase_diagram(
    p: Order = 4,
    rho: Annotated[float, typer.Option(help="entropy (1 - r^2) / (M r^2) of the data")] = 0.0,
    loads: Annotated[int, typer.Option(help="values of the load", min=2)] = 9,
    temperatures: Annotated[int, typer.Option(help="values of the temperature", min=2)] = 9,
    out: Annotated[Path | None, typer.Option(help="CSV to write, one point a line")] = None,
) -> None:
    """Where a memory retrieves: overlap and phase over load and temperature."""
    most, hottest = critical_load(p, 0.0, rho), retrieval_temperature(p, rho)
    found = find_phase_diagram(
        p, rho, np.linspace(0, 1.2 * most, loads), np.linspace(0, 1.1 * hottest, temperatures)
    )
    if out is not None:
        with atomic_path(out) as part:
            found.to_csv(part, index=False)
    table = Table(title=f"P = {p}, rho = {rho:g}: overlap m, and phase (R lowest, M metastable)")
    table.add_column("T \\ load")
    for alpha in sorted(found["alpha"].unique()):
        table.add_column(f"{alpha:.3g}", justify="right")
    for T, row in found.sort_values("alpha").groupby("T"):
        marks = {"retrieval": " R", "metastable": " M", "glass": "glass", "paramagnet": "para"}
        table.add_row(
            f"{T:.3g}",
            *(
                f"{m:.2f}{marks[name]}" if m > 0 else marks[name]
                for m, name in zip(row["m"], row["phase"], strict=True)
            ),
        )
    Console().print(table)


def examples_needed(
    quality: Annotated[float, typer.Option(help="r, overlap of an example with its pattern")] = 0.5,
    p: Order = 4,
    target: Annotated[float, typer.Option(help="overlap with the pattern to reach")] = 0.95,
    load: Load = 0.0,
    temperature: Temperature = 0.0,
) -> None:
    """How many examples of each pattern a memory needs, with and without a teacher."""
    table = Table("learning", "examples per pattern", "overlap then")
    for mode in ("supervised", "unsupervised"):
        M = dense_examples_needed(quality, p, target, mode, load, temperature)
        rho = Examples(quality, M).rho
        table.add_row(mode, f"{M:,}", f">= {target:g} (rho = {rho:.3g})")
    table.title = f"quality {quality:g}, P = {p}, load {load:g}, temperature {temperature:g}"
    Console().print(table)


def _memory(
    path: Path,
    labels: Path | None,
    p: int,
    threshold: float | None,
    unsupervised: bool,
    centre: bool,
    seed: int,
) -> tuple[DenseHebbian, tuple[int, ...]]:
    images, found = read_pictures(path, labels)
    mode: Mode = "unsupervised" if unsupervised else "supervised"
    memory = DenseHebbian(p, mode, centre, seed).fit(binarise(images, threshold), found)
    return memory, images.shape[1:]


def _needed(labels: Any, path: Path) -> Any:
    if labels is None:
        raise DataError("no labels", path, expected="labels in the file or with --labels")
    return labels


def _show_memory(memory: DenseHebbian) -> None:
    known = Table("of the memory", "value")
    known.add_row("classes, spins", f"{len(memory.classes_)}, {memory.n_features_in_}")
    known.add_row("quality r of the examples", f"{memory.quality_:.3f}")
    known.add_row("entropy rho of the data", f"{memory.entropy_:.3g}")
    known.add_row("load, critical load", f"{memory.load_:.3g}, {memory.critical_load_:.3g}")
    Console().print(known)
