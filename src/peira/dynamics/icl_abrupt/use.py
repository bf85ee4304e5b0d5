"""Commands: train on one's own items, report, read attention maps, predict the waiting time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from peira.data import DataError
from peira.data.arrays import read_npz, read_record, write_record
from peira.data.tables import write_table
from peira.dynamics.icl_abrupt.features import DATASETS, read_items
from peira.dynamics.icl_abrupt.method import (
    ICLRecipe,
    ICLTask,
    InContextNet,
    icl_report,
    icl_timing_model,
    induction_scores,
    nearest_in_context,
    project,
    train_icl,
)
from peira.engine.files import atomic_path

__all__ = ["features", "report", "scores", "simulate", "timing", "train"]

NETWORK = "in-context network"
ITEMS = Annotated[Path, typer.Argument(help="items: npz (features, classes), or CSV with a class")]
COLUMN = Annotated[str, typer.Option(help="column of the class in a CSV or TSV")]
LABELS = Annotated[int, typer.Option(min=2, help="labels that the classes share")]
PAIRS = Annotated[int, typer.Option(min=2, help="pairs of item and label in a context")]
COPIES = Annotated[int, typer.Option(min=0, help="copies of a class in a context; divides PAIRS")]
DIM = Annotated[int, typer.Option(min=1, help="more features are projected to this many")]
STEPS = Annotated[int, typer.Option(min=1, help="training steps")]
OPTIMIZER = Annotated[Literal["adam", "sgd"], typer.Option(help="adam 1e-3, or sgd 0.1")]
OUT = Annotated[Path | None, typer.Option(help="trained network to write (.safetensors)")]
HISTORY = Annotated[Path | None, typer.Option(help="CSV of all reports to write")]
MEASURES = {
    "test": "sequences as in training",
    "ic": "novel classes (ICL)",
    "ic2": "swapped labels (ICL)",
    "iwl": "uninformative context (IWL)",
    "cla": "probability on labels of the context",
    "ila1": "layer 1: label to its item",
    "tla2": "layer 2: target to its labels",
    "tia2": "layer 2: target to its items",
}


def features(
    dataset: Annotated[str, typer.Argument(help=f"one of {', '.join(DATASETS)}")],
    out: Annotated[Path, typer.Argument(help="npz to write, for `train`")],
    dim: DIM = 31,
    seed: int = 0,
) -> None:
    """Write a data set's pictures as features: pixels through a frozen random projection."""
    if dataset not in DATASETS:
        raise DataError("unknown data set", value=dataset, expected=", ".join(DATASETS))
    pixels, classes = DATASETS[dataset]()
    values = project(torch.from_numpy(pixels), dim, seed).numpy()
    # savez adds its suffix to a name, never to an open file.
    with atomic_path(out) as temporary, open(temporary, "wb") as file:
        np.savez(file, features=values, classes=classes)
    kinds = len(np.unique(classes))
    Console().print(f"{len(values):,} items of {kinds} classes, {dim} features: {out}")


def train(
    items: ITEMS,
    label: COLUMN = "label",
    labels: LABELS = 2,
    pairs: PAIRS = 4,
    copies: COPIES = 2,
    dim: DIM = 31,
    steps: STEPS = 1500,
    optimizer: OPTIMIZER = "adam",
    seed: int = 0,
    out: OUT = None,
    history: HISTORY = None,
) -> None:
    """Train the network on a file of items; a quarter of the classes is kept as novel ones."""
    settings = {
        "column": label, "L": labels, "N": pairs, "B": copies, "dim": dim, "seed": seed,
    }  # fmt: skip
    task, kinds = _own_task(items, settings)
    console = Console()
    console.print(
        f"{kinds} classes: {task.K} to train on, {task.novel_classes} novel; {labels} labels"
    )
    _train(task, steps, optimizer, out, history, settings, console)


def simulate(
    classes: Annotated[int, typer.Option(min=1, help="K, a multiple of the labels")] = 512,
    labels: LABELS = 16,
    pairs: PAIRS = 4,
    copies: COPIES = 2,
    dim: DIM = 31,
    eps: Annotated[float, typer.Option(min=0, help="within-class variation")] = 0.1,
    zipf: Annotated[float, typer.Option(min=0, help="exponent of the class frequencies")] = 0.0,
    bursty: Annotated[float, typer.Option(min=0, max=1, help="share of bursty sequences")] = 1.0,
    steps: STEPS = 1500,
    optimizer: OPTIMIZER = "adam",
    seed: int = 0,
    history: HISTORY = None,
) -> None:
    """Train the network on simulated classes: which law favours ICL, which IWL?"""
    task = ICLTask(
        K=classes, L=labels, N=pairs, B=copies, D=dim, eps=eps, zipf=zipf, p_bursty=bursty,
        max_pairs=2 * pairs, novel_classes=_novel(128, labels), seed=seed,
    )  # fmt: skip
    _train(task, steps, optimizer, None, history, {}, Console())


def report(
    model: Annotated[Path, typer.Argument(help="network from `train`")],
    items: ITEMS,
    count: Annotated[int, typer.Option(min=1, help="sequences in each test set")] = 2000,
    maps: Annotated[
        Path | None, typer.Option(help="npz to write: attention on 64 sequences, for `scores`")
    ] = None,
) -> None:
    """Test a trained network on a file of items: four test sets and the progress measures."""
    net, settings = _read_net(model)
    task, _ = _own_task(items, settings)
    if (task.dim, task.L) != (settings["token"], settings["L"]):
        raise DataError(
            "the network was trained on other features", path=items, value=task.D,
            expected=f"{settings['token'] - task.places} features",
        )  # fmt: skip
    shown = Table("measure", "network", "nearest item in the context")
    found = icl_report(net, task, count=count)
    oracle = icl_report(nearest_in_context(task), task, count=count)
    for name, words in MEASURES.items():
        other = f"{oracle[name]:.3f}" if name in ("test", "ic", "ic2", "iwl") else ""
        shown.add_row(words, f"{found[name]:.3f}", other)
    Console().print(shown)
    if maps is not None:
        _write_maps(maps, net, task)
        Console().print(f"written to {maps}", highlight=False)


def scores(
    maps: Annotated[Path, typer.Argument(help="npz: attn1, attn2 (S, T, T), matches (S, N)")],
) -> None:
    """Induction scores of any model's attention maps on sequences of pairs and a target."""
    names = ("attn1", "attn2", "matches")
    arrays = {
        name: torch.from_numpy(value) for name, value in read_npz(maps).items() if name in names
    }
    first, second, matches = (arrays.get(name) for name in ("attn1", "attn2", "matches"))
    for name, value in (("attn1", first), ("attn2", second)):
        if value is None or value.ndim != 3 or value.shape[1] != value.shape[2]:
            raise DataError(
                f"no attention map {name!r}", path=maps,
                value=None if value is None else tuple(value.shape), expected="shape (S, T, T)",
            )  # fmt: skip
        rows = value.sum(dim=-1)
        if not value.shape[1] % 2 or not torch.allclose(rows, torch.ones_like(rows), atol=1e-3):
            raise DataError(
                f"{name} is no attention over pairs and a target", path=maps,
                value=tuple(value.shape), expected="T = 2N + 1, rows that sum to 1",
            )  # fmt: skip
    assert first is not None and second is not None
    pairs = (len(first), first.shape[1] // 2)
    if first.shape != second.shape or (matches is not None and matches.shape != pairs):
        raise DataError("attn1, attn2 and matches do not belong together", path=maps)
    shown = Table("score", "mean over sequences")
    found = induction_scores(first, second, None if matches is None else matches.bool())
    for name, value in found.items():
        shown.add_row(MEASURES[name], f"{float(value):.3f}")
    Console().print(shown)


def timing(
    labels: Annotated[int, typer.Argument(help="L")],
    pairs: Annotated[int, typer.Argument(help="N")],
    start: Annotated[float, typer.Option(min=0, help="initial value of the three logits")] = 0.0,
) -> None:
    """Predict by the three-logit model when in-context learning appears, and how abruptly."""
    course = icl_timing_model(labels, pairs, start=start)
    shown = Table("probability of the right label", "time (units of gradient flow)")
    for level in (0.3, 0.5, 0.9):
        if course.probability[0] < level:
            beyond = np.flatnonzero(course.probability > level)
            time = f"{course.time[beyond[0]]:,.1f}" if len(beyond) else "never"
            shown.add_row(f"{level}", time)
    Console().print(shown)


def _own_task(path: Path, settings: dict[str, Any]) -> tuple[ICLTask, int]:
    """The task on a file's items, with about a quarter of the classes novel."""
    values, ids, names = read_items(path, settings["column"])
    L = settings["L"]
    novel = _novel(len(names) // 4, L)
    K = (len(names) - novel) // L * L
    if not K:
        raise DataError(
            f"{len(names)} classes are too few for {L} labels", path=path, value=len(names),
            expected=f"{2 * L} or more",
        )  # fmt: skip
    if values.shape[1] > settings["dim"]:
        values = project(values, settings["dim"], settings["seed"])
    alone = next((name for n, name in enumerate(names) if int((ids == n).sum()) < 2), None)
    if alone is not None:
        raise DataError(f"class {alone!r} has one item", path=path, expected="2 or more")
    task = ICLTask(
        K=K, L=L, N=settings["N"], B=settings["B"], D=values.shape[1], max_pairs=2 * settings["N"],
        novel_classes=novel, seed=settings["seed"], features=values, class_ids=ids,
    )  # fmt: skip
    return task, len(names)


def _novel(about: int, labels: int) -> int:
    return max(1, about // labels) * labels


def _train(
    task: ICLTask,
    steps: int,
    optimizer: Literal["adam", "sgd"],
    out: Path | None,
    history: Path | None,
    settings: dict[str, Any],
    console: Console,
) -> None:
    recipe = ICLRecipe(
        steps=steps,
        optimizer=optimizer,
        learning_rate=1e-3 if optimizer == "adam" else 0.1,
        evaluate_every=max(1, steps // 30),
    )
    generator = torch.Generator().manual_seed(task.seed)
    net = InContextNet(task.dim, task.L, spread=task.D**-0.5, generator=generator)
    rows = train_icl(task, net, recipe, task.seed, _watched(steps))
    shown = Table("step", *("test", "ic", "ic2", "iwl", "cla", "ila1", "tla2"))
    for row in rows.iloc[:: max(1, len(rows) // 10)].to_dict("records"):
        shown.add_row(f"{row['step']:.0f}", *(f"{row[c.header]:.2f}" for c in shown.columns[1:]))
    console.print(shown)
    for name in ("test", "ic", "ic2", "iwl", "cla", "ila1", "tla2"):
        console.print(f"  {name}: {MEASURES[name]}", highlight=False)
    oracle = icl_report(nearest_in_context(task), task)
    console.print(
        f"nearest item in the context: ic {oracle['ic']:.2f}, ic2 {oracle['ic2']:.2f}; "
        f"chance {1 / task.L:.2f}, a random label of the context {task.copies / task.N:.2f}"
    )
    if history is not None:
        write_table(history, rows)
        console.print(f"written to {history}", highlight=False)
    if out is not None:
        write_record(out, NETWORK, net.state_dict(), {**settings, "token": task.dim})
        console.print(f"written to {out}", highlight=False)


def _write_maps(path: Path, net: InContextNet, task: ICLTask) -> None:
    novel = task.test_sets(64)["ic"]
    with torch.no_grad():
        first, second = (found.numpy() for found in net.attention_maps(novel.tokens))
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, attn1=first, attn2=second, matches=novel.matches.numpy())


def _watched(steps: int) -> Callable[[Sequence[Any]], Iterable[int]]:
    def bar(_: Sequence[Any]) -> Iterator[int]:
        yield from track(range(1, steps + 1), "train", console=Console(stderr=True))

    return bar


def _read_net(path: Path) -> tuple[InContextNet, dict[str, Any]]:
    state, settings = read_record(path, NETWORK)
    net = InContextNet(settings["token"], settings["L"])
    net.load_state_dict(state)
    return net, settings
