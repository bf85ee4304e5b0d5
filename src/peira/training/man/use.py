"""Commands for a person's own pictures and network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any, Literal

import pandas as pd
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from peira.data import (
    DataError,
    labelled_pictures,
    own_module,
    picture_split,
    picture_tensors,
    read_pictures,
    read_record,
    write_record,
)
from peira.data.modular import Split
from peira.data.tables import write_table
from peira.nn.evaluation import accuracy, predict
from peira.nn.networks import cifar_resnet
from peira.training.man.memory import checkpointed_backward, end_to_end_backward, peak_bytes
from peira.training.man.method import LocalTrainer

__all__ = ["classify", "memory", "train"]

KIND = "locally trained network"
MIB = 2**20

Pictures = Annotated[
    Path,
    typer.Argument(
        help="pictures: .npz of x and y, IDX, CIFAR .bin or batch, SVHN .mat, STL-10 _X.bin, or a "
        "folder of one folder of PNG or JPEG files for each class"
    ),
]
Labels = Annotated[Path | None, typer.Option(help="file of labels, for IDX, .npy and STL-10")]
NetworkName = Annotated[
    str,
    typer.Option(
        help="resnetD with D = 6n + 2, such as resnet20; or FILE.py:FUNCTION that returns an "
        "nn.Sequential of a stem, units and a head"
    ),
]
Width = Annotated[int, typer.Option(min=1, help="of a resnet: channels of its first stage")]
Partition = Annotated[
    str,
    typer.Option(help="even, balanced (by measured memory), or last units such as 2,5,9"),
]
Aux = Annotated[str, typer.Option(help="auxiliary head: 0c1f, 0c2f, 1c1f, 1c2f, 1c3f or 2c2f")]
LocalLoss = Annotated[
    Literal["ce", "infopro", "contrast"],
    typer.Option(help="classify; reconstruct the pictures too; or contrast classes"),
]
Momentum = Annotated[float, typer.Option(help="m of the moving average, in [0, 1)")]
Bias = Annotated[
    Literal["unit", "vector", "none"],
    typer.Option(help="learnable bias: a trained copy of the next unit, or one number per channel"),
]
Batch = Annotated[int, typer.Option(min=2, help="pictures in a step")]
Seed = Annotated[int, typer.Option(help="seed of weights, split and order")]


def train(
    pictures: Pictures,
    labels: Labels = None,
    out: Annotated[Path, typer.Option(help="weights to write")] = Path("network.safetensors"),
    network: NetworkName = "resnet20",
    width: Width = 16,
    modules: Annotated[int, typer.Option(min=1, help="local modules K; 1 is end to end")] = 4,
    partition: Partition = "even",
    aux: Aux = "1c2f",
    local_loss: LocalLoss = "ce",
    momentum: Momentum = 0.995,
    bias: Bias = "unit",
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch: Batch = 64,
    learning_rate: Annotated[float, typer.Option(min=0, help="highest, of a cosine")] = 0.1,
    test: Annotated[float, typer.Option(help="share of pictures kept to test")] = 0.2,
    seed: Seed = 0,
) -> None:
    """Train a network module by module and write its weights, without the auxiliary networks."""
    if not 0 < test < 1:
        raise DataError("share of pictures to test", value=test, expected="between 0 and 1")
    torch.manual_seed(seed)
    data, classes = _labelled(pictures, labels, test, seed)
    image = tuple(data.train_inputs.shape[1:])
    plain = _network(network, width, image, classes)
    trainer = _trainer(plain, partition, modules, image, aux, local_loss, momentum, bias)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer.to(device)
    batch = min(batch, len(data.train_inputs))
    loader = DataLoader(
        TensorDataset(data.train_inputs, data.train_labels), batch, shuffle=True, drop_last=True,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    trainer.fit(loader, epochs, learning_rate, watch=_bar)
    report = trainer.memory_report(data.train_inputs[:batch].to(device))
    score = accuracy(trainer.network, data.test_inputs.to(device), data.test_labels.to(device))
    about = {"network": network, "width": width, "image": image, "classes": classes}
    write_record(out, KIND, trainer.export().cpu().state_dict(), about)
    _show_modules(trainer, report.modules)
    say = Console(highlight=False).print
    say(f"held for backward passes: {report.peak / MIB:.1f} MiB, {report.share:.0%} of end to end")
    say(f"test accuracy {score:.3f} on {len(data.test_labels)} pictures kept apart")
    say(f"written to {out}")


def memory(
    pictures: Pictures,
    labels: Labels = None,
    network: NetworkName = "resnet20",
    width: Width = 16,
    modules: Annotated[str, typer.Option(help="numbers of local modules, with commas")] = "2,4,8",
    aux: Aux = "1c2f",
    local_loss: LocalLoss = "ce",
    batch: Batch = 64,
    repeats: Annotated[int, typer.Option(min=1, help="steps that are timed")] = 3,
    out: Annotated[Path | None, typer.Option(help="CSV to write")] = None,
) -> None:
    """What a training step holds and takes: end to end, MAN at several K, and checkpointing."""
    images = picture_tensors(read_pictures(pictures, labels)[0][:batch])
    if len(images) < 2:
        raise DataError("too few pictures", pictures, value=len(images), expected="2 or more")
    image = tuple(images.shape[1:])
    plain = _network(network, width, image, 10)
    targets = torch.zeros(len(images), dtype=torch.long)

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets)

    rows: list[dict[str, Any]] = []

    def add(name: str, k: int, ends: list[int], held: int, step: Callable[[], object]) -> None:
        rows.append(
            {
                "method": name, "K": k, "last units": " ".join(map(str, ends)),
                "MiB": held / MIB, "seconds": _seconds(step, repeats),
            }
        )  # fmt: skip

    for k in _numbers(modules, "modules"):
        for name, partition in (("MAN", "even"), ("MAN, balanced", "balanced")):
            trainer = _trainer(plain, partition, k, image, aux, local_loss, 0.995, "unit").train()
            report = trainer.memory_report(images)
            if not rows:
                ignore = [images, targets, *plain.parameters()]
                add("end to end", 1, [], report.end_to_end,
                    lambda: end_to_end_backward(plain, images, loss))  # fmt: skip
            add(name, k, trainer.ends, report.peak,
                lambda: trainer.backward(images, loss, labels=targets))  # noqa: B023  # fmt: skip
        parts = LocalTrainer(plain, k, "0c1f", momentum=None, bias=None, image=image).local_modules
        step = lambda: checkpointed_backward(parts, images, loss)  # noqa: B023, E731
        add("checkpointing", k, [], peak_bytes(step, ignore), step)
    frame = pd.DataFrame(rows)
    frame.insert(4, "share", frame["MiB"] / frame["MiB"][0])
    _show_frame(frame, f"one step on {len(images)} pictures of {image}")
    if out is not None:
        write_table(out, frame)
        Console().print(f"written to {out}", highlight=False)


def classify(
    model: Annotated[Path, typer.Argument(help="weights written by `train`")],
    pictures: Pictures,
    labels: Labels = None,
    out: Annotated[Path, typer.Option(help="CSV to write")] = Path("classes.csv"),
) -> None:
    """Write a class for every picture, by a network that `train` has written."""
    weights, about = read_record(model, KIND)
    images, answers = read_pictures(pictures, labels)
    inputs = picture_tensors(images)
    if list(inputs.shape[1:]) != about["image"]:
        raise DataError(
            "pictures of another shape", pictures, value=tuple(inputs.shape[1:]),
            expected=f"{tuple(about['image'])}, as in training",
        )  # fmt: skip
    plain = _network(about["network"], about["width"], tuple(about["image"]), about["classes"])
    plain.load_state_dict(weights)
    chances, best = predict(plain, inputs).softmax(1).max(1)
    frame = pd.DataFrame(
        {"picture": range(1, len(best) + 1), "class": best.numpy(), "probability": chances.numpy()}
    )
    write_table(out, frame)
    say = Console(highlight=False).print
    if answers is not None:
        say(f"accuracy {float((frame['class'] == answers).mean()):.3f} on {len(frame)} pictures")
    say(f"written to {out}")


def _labelled(pictures: Path, labels: Path | None, test: float, seed: int) -> tuple[Split, int]:
    """Pictures in two parts, and the number of classes."""
    images, found = labelled_pictures(pictures, labels)
    classes = int(found.max()) + 1
    if len(set(found.tolist())) < 2:
        raise DataError("only one class", pictures, value=int(found[0]), expected="2 or more")
    kept = len(images) - round(test * len(images))
    if not 2 <= kept < len(images):
        raise DataError(
            "too few pictures for that share", pictures, value=len(images),
            expected="2 or more to train and 1 to test",
        )  # fmt: skip
    return picture_split((images, found), torch.Generator().manual_seed(seed), kept), classes


def _network(name: str, width: int, image: tuple[int, ...], classes: int) -> nn.Sequential:
    if depth := re.fullmatch(r"resnet(\d+)", name):
        widths = (width, 2 * width, 4 * width)
        return cifar_resnet(int(depth[1]), classes, widths=widths, channels=image[0])
    made = own_module(name)
    if not isinstance(made, nn.Sequential):
        raise DataError(
            "not a row of units", value=type(made).__name__,
            expected="an nn.Sequential of a stem, units and a head",
        )  # fmt: skip
    return made


def _trainer(
    plain: nn.Sequential,
    partition: str,
    modules: int,
    image: tuple[int, ...],
    aux: str,
    local_loss: str,
    momentum: float,
    bias: str,
) -> LocalTrainer:
    cut: Any = modules
    if partition == "balanced":
        cut = "balanced"
    elif partition != "even":
        cut = _numbers(partition, "partition")
    settings: Any = {"local_loss": local_loss, "bias": None if bias == "none" else bias}
    return LocalTrainer(
        plain, cut, aux, momentum=momentum, image=image, modules=modules, **settings
    )


def _numbers(text: str, name: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise DataError(f"--{name}", value=text, expected="whole numbers with commas") from error


def _seconds(step: Callable[[], object], repeats: int) -> float:
    times = []
    step()
    for _ in range(repeats):
        began = perf_counter()
        step()
        times.append(perf_counter() - began)
    return median(times)


def _bar(epochs: Iterable[int]) -> Iterable[int]:
    return track(epochs, "epochs", console=Console(stderr=True))


def _show_modules(trainer: LocalTrainer, held: tuple[int, ...]) -> None:
    shown = Table("module", "units", "loss, first epoch", "last epoch", "MiB held")
    first, last = (trainer.history_[place]["losses"] for place in (0, -1))
    starts = [1, *(end + 1 for end in trainer.ends[:-1])]
    for number, (start, end) in enumerate(zip(starts, trainer.ends, strict=True)):
        shown.add_row(
            str(number + 1), f"{start} to {end}", f"{first[number]:.3f}", f"{last[number]:.3f}",
            f"{held[number] / MIB:.1f}",
        )  # fmt: skip
    Console().print(shown)


def _show_frame(frame: pd.DataFrame, heading: str) -> None:
    shown = Table(*frame.columns, title=heading)
    for row in frame.itertuples(index=False):
        cells = [f"{value:.3g}" if isinstance(value, float) else str(value) for value in row]
        shown.add_row(*cells)
    Console().print(shown)
