"""Commands for a person's own labelled pictures and, where they have one, their own network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from peira.data.errors import DataError
from peira.data.images import picture_split, picture_tensors
from peira.data.modular import Split
from peira.data.networks import own_module
from peira.data.pictures import Images, Labels, labelled_pictures
from peira.data.tables import write_table
from peira.nn.costs import Cost, cost
from peira.nn.evaluation import accuracy
from peira.nn.networks import cifar_resnet
from peira.weights.consensus_subnetwork.conditions import BASELINES
from peira.weights.consensus_subnetwork.extraction import load_pruned, read_kept, save_pruned
from peira.weights.consensus_subnetwork.method import ConsensusPruner, Report
from peira.weights.consensus_subnetwork.method import compare as compare_methods
from peira.weights.consensus_subnetwork.training import Recipe, train

__all__ = ["compare", "prune", "score"]

PICTURES = Annotated[
    Path,
    typer.Argument(help="labelled pictures: .npz of x and y, IDX, CIFAR, SVHN, folder of folders"),
]
LABELS = Annotated[Path | None, typer.Option(help="labels in a file of their own (IDX, .npy)")]
MODE = Annotated[
    str, typer.Option(help="remove whole blocks (layer) or channels in them (channel)")
]
SPARSITY = Annotated[float, typer.Option(help="share of the blocks' operations to remove")]
NETWORK = Annotated[
    str, typer.Option(help="FILE.py:FUNCTION, your network of residual blocks; else a ResNet")
]
DEPTH = Annotated[int, typer.Option(help="layers of the ResNet, 6n + 2")]
TEST = Annotated[float, typer.Option(help="share of the pictures that test, above 0, below 1")]
AUGMENT = Annotated[bool, typer.Option(help="flip and shift pictures in training")]


def prune(
    pictures: PICTURES,
    out: Annotated[Path, typer.Argument(help="weights to write (.safetensors), .json beside it")],
    labels: LABELS = None,
    mode: MODE = "channel",
    sparsity: SPARSITY = 0.5,
    polarization: Annotated[float, typer.Option(help="weight of the loss for agreement")] = 1.0,
    epochs: int = 12,
    batch: int = 64,
    learning_rate: float = 2e-3,
    network: NETWORK = "",
    depth: DEPTH = 20,
    test_share: TEST = 0.2,
    augment: AUGMENT = False,
    units: Annotated[
        str, typer.Option(help="what to gate, names with commas; else all residual blocks")
    ] = "",
    skip: Annotated[bool, typer.Option(help="leave closed parts out in training")] = False,
    seed: int = 0,
) -> None:
    """Train once with gates, remove what no picture needs, write the smaller network."""
    recipe = _recipe(epochs, batch, learning_rate, augment)
    images, found = labelled_pictures(pictures, labels)
    data = _split(pictures, images, found, test_share, seed)
    about = {"own": network} if network else _resnet(depth, found, images)
    torch.manual_seed(seed)
    pruner = _checked(
        lambda: ConsensusPruner(
            _build(about),
            _mode(mode),
            sparsity,
            polarization=polarization,
            skip=skip,
            units=[name.strip() for name in units.split(",") if name.strip()] or None,
        )
    )
    generator = torch.Generator().manual_seed(seed)
    train(pruner.model, data, recipe, generator, _watched("training"), pruner.penalty)
    pruner.observe(data.train_inputs.split(256))
    small = pruner.extract()
    accuracies = {
        name: accuracy(model, data.test_inputs, data.test_labels)
        for name, model in (("gated", pruner.model), ("extracted", small))
    }
    report = pruner.report(data.test_inputs[:256])
    beside = save_pruned(
        out, small, report.kept,
        {"network": about, "mode": mode, "sparsity": sparsity, "test_accuracy": accuracies},
    )  # fmt: skip
    _show(report, accuracies, min(256, len(data.test_inputs)))
    Console().print(f"written to {out} and {beside}", highlight=False)


def score(
    weights: Annotated[Path, typer.Argument(help=".safetensors from `prune`, its .json beside it")],
    pictures: PICTURES,
    labels: LABELS = None,
    network: NETWORK = "",
) -> None:
    """Load a pruned network as a plain one; its accuracy on pictures, and what it costs."""
    _, about = read_kept(weights.with_suffix(".json"))
    description = {"own": network} if network else about.get("network")
    if not isinstance(description, dict):
        raise DataError(
            "does not say which network", path=weights.with_suffix(".json"),
            expected="a file written by `prune`, or --network",
        )  # fmt: skip
    images, found = labelled_pictures(pictures, labels)
    inputs, truth = picture_tensors(images), torch.from_numpy(found)
    whole = _build(description)
    small = load_pruned(weights, whole)
    right = _checked(lambda: accuracy(small, inputs, truth))
    batch = inputs[:256]
    before, after = cost(whole, batch), cost(small, batch)
    shown = Table("quantity", "before", "pruned")
    shown.add_row(f"accuracy on {len(inputs):,} pictures", "", f"{right:.4f}")
    _add_costs(shown, before, after, len(batch))
    Console().print(shown)


def compare(
    pictures: PICTURES,
    labels: LABELS = None,
    methods: Annotated[
        str, typer.Option(help=f"consensus and some of {', '.join(BASELINES)}")
    ] = "dense,consensus,l1-tuned,random,thin",
    mode: MODE = "channel",
    sparsity: SPARSITY = 0.5,
    epochs: int = 12,
    batch: int = 64,
    learning_rate: float = 2e-3,
    network: NETWORK = "",
    depth: DEPTH = 20,
    test_share: TEST = 0.2,
    augment: AUGMENT = False,
    seeds: Annotated[int, typer.Option(min=1, help="repetitions")] = 3,
    out: Annotated[Path | None, typer.Option(help="CSV: a row per method and seed")] = None,
) -> None:
    """Would it help you? The consensus beside other pruning, at equal epochs and operations."""
    recipe = _recipe(epochs, batch, learning_rate, augment)
    images, found = labelled_pictures(pictures, labels)
    data = _split(pictures, images, found, test_share, 0)
    about = {"own": network} if network else _resnet(depth, found, images)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    console = Console(stderr=True)
    rows = _checked(
        lambda: compare_methods(
            partial(_build, about), data, names, _mode(mode), sparsity, recipe, seeds,
            lambda method, seed: console.print(f"seed {seed}: {method}", highlight=False),
        )
    )  # fmt: skip
    shown = Table("method", "accuracy by seed", "mean", "million operations", "parameters", "ms")
    size = min(256, len(data.test_inputs))
    for method, part in rows.groupby("method", sort=False):
        shown.add_row(
            str(method),
            ", ".join(f"{value:.4f}" for value in part["accuracy"]),
            f"{part['accuracy'].mean():.4f}",
            f"{part['flops'].mean() / size / 1e6:.2f}",
            f"{part['parameters'].mean():,.0f}",
            f"{1e3 * part['seconds'].mean():.1f}",
        )
    Console().print(shown)
    Console().print(f"operations for one picture, ms for {size}", highlight=False)
    if out is not None:
        write_table(out, rows)
        Console().print(f"written to {out}", highlight=False)


def _recipe(epochs: int, batch: int, learning_rate: float, augment: bool) -> Recipe:
    for name, value, least in (("epochs", epochs, 1), ("batch", batch, 2)):
        if value < least:
            raise DataError(f"wrong {name}", value=value, expected=f"{least} or more")
    if not learning_rate > 0:
        raise DataError("wrong learning rate", value=learning_rate, expected="above 0")
    return Recipe(epochs, batch, learning_rate, augment=augment)


def _split(path: Path, images: Images, labels: Labels, share: float, seed: int) -> Split:
    if not 0 < share < 1:
        raise DataError("wrong share of test pictures", value=share, expected="above 0, below 1")
    training = round((1 - share) * len(images))
    if not 2 <= training < len(images):
        raise DataError(
            "too few pictures to train and test", path=path, value=len(images), expected="10 or so"
        )
    return picture_split((images, labels), torch.Generator().manual_seed(seed), training)


def _resnet(depth: int, labels: Labels, images: Images) -> dict[str, Any]:
    return {"depth": depth, "classes": int(labels.max()) + 1, "channels": images.shape[1]}


def _build(about: dict[str, Any]) -> nn.Module:
    if "own" in about:
        return own_module(about["own"])
    return _checked(lambda: cifar_resnet(**about))


def _mode(mode: str) -> Literal["layer", "channel"]:
    return mode  # type: ignore[return-value]


def _checked(call: Any) -> Any:
    """What a wrong choice raises, as a person's error."""
    try:
        return call()
    except DataError:
        raise
    except (ValueError, RuntimeError, TypeError) as error:
        raise DataError(str(error)) from error


def _watched(name: str) -> Any:
    def steps(total: int, save: Sequence[Any]) -> Iterable[int]:
        yield from track(range(1, total + 1), name, console=Console(stderr=True))

    return steps


def _show(report: Report, accuracies: dict[str, float], batch: int) -> None:
    units = Table("unit", "gates kept", "mean vote", "most divided vote")
    for name, votes in report.votes.items():
        kept = sum(vote > 0.5 for vote in votes)
        divided = min(votes, key=lambda vote: abs(vote - 0.5))
        mean = sum(votes) / len(votes)
        units.add_row(name, f"{kept} of {len(votes)}", f"{mean:.3f}", f"{divided:.3f}")
    shown = Table("quantity", "with gates or before", "extracted")
    shown.add_row("test accuracy", f"{accuracies['gated']:.4f}", f"{accuracies['extracted']:.4f}")
    shown.add_row("unanimous gates", f"{report.agreement:.1%}", "")
    shown.add_row(
        "blocks' operations open", f"asked {report.target:.1%}", f"{report.open_cost:.1%}"
    )
    shown.add_row("gates' operations / blocks'", f"{report.gate_flops:.2%}", "0")
    _add_costs(shown, report.dense, report.extracted, batch)
    Console().print(units)
    Console().print(shown)


def _add_costs(shown: Table, before: Cost, after: Cost, batch: int) -> None:
    for name, factor, form in (
        ("flops", 1 / batch / 1e6, "{:.3f} million operations a picture"),
        ("parameters", 1, "{:,.0f} parameters"),
        ("bytes", 1, "{:,.0f} bytes"),
        ("seconds", 1e3, "{:.1f} ms for " + f"{batch} pictures"),
    ):
        shown.add_row(
            name, *(form.format(getattr(value, name) * factor) for value in (before, after))
        )
