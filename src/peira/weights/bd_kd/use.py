"""Commands for a person's own pictures, tables of features, and probabilities."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from peira.data import DataError, own_module, read_features, read_npz, read_table
from peira.data.arrays import read_record, refuse_gaps, write_record
from peira.data.images import picture_tensors
from peira.data.pictures import labelled_pictures, read_pictures
from peira.data.tables import write_table
from peira.engine.files import write_json
from peira.nn.calibration import calibration_report, fit_temperature, reliability
from peira.nn.evaluation import predict as outputs_of
from peira.nn.networks import mlp, small_cnn
from peira.weights.bd_kd.distiller import Distilled, OnlineDistiller, kd_sgd
from peira.weights.bd_kd.problems import PictureBatches
from peira.weights.bd_kd.scheme import SCHEMES

__all__ = ["calibration", "compare", "distill", "predict"]

KIND = "BD-KD student"
SHOWN = ("accuracy", "confidence", "ece", "adaptive_ece", "mce", "nll", "brier")

DATA = Annotated[
    Path,
    typer.Argument(help="pictures (.npz, IDX, CIFAR, SVHN, STL-10, a folder) or a CSV of features"),
]
LABELS = Annotated[Path | None, typer.Option(help="second file, where labels are kept apart")]
TARGET = Annotated[str, typer.Option(help="column of the class, in a CSV")]
TEACHER = Annotated[
    str | None, typer.Option(help="FILE.py:FUNCTION of your own network; a wide one without")
]
STUDENT = Annotated[
    str | None, typer.Option(help="FILE.py:FUNCTION of your own network; a tiny one without")
]
EPOCHS = Annotated[int, typer.Option(min=1)]
NU = Annotated[float, typer.Option(help="emphasis of the balance, above 1")]
TEMPERATURE = Annotated[float, typer.Option("--temperature", "-T", help="of the divergences")]
HELD = Annotated[float, typer.Option(help="share of the samples that is held out")]


@dataclass(frozen=True)
class Samples:
    """A person's data: inputs scaled for a network, labels, names of classes."""

    inputs: Tensor
    labels: Tensor
    classes: list[str]
    columns: list[str]
    # Mean and deviation of each column that tables were scaled by.
    scaling: tuple[Tensor, Tensor] | None


def distill(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="folder to write")],
    labels: LABELS = None,
    target: TARGET = "label",
    teacher: TEACHER = None,
    student: STUDENT = None,
    loss: Annotated[str, typer.Option(help=f"one of {', '.join(SCHEMES)}")] = "bdkd",
    nu: NU = 2.0,
    temperature: TEMPERATURE = 4.0,
    alpha: Annotated[float, typer.Option(help="weight of the divergences")] = 1.0,
    epochs: EPOCHS = 40,
    batch: Annotated[int, typer.Option(min=1)] = 64,
    learning_rate: float = 0.05,
    held_out: HELD = 0.3,
    seed: int = 0,
) -> None:
    """Train a teacher and a student together; write both, the history and a report."""
    _known(loss)
    train, test, _ = _parts(data, labels, target, held_out, seed)
    networks = _networks(train, teacher, student, seed)
    result = _train(
        networks, train, test, loss, (nu, temperature, alpha), epochs, batch, learning_rate, seed
    )
    about = {
        "classes": train.classes,
        "columns": train.columns,
        "shape": list(train.inputs.shape[1:]),
        "student": student,
        "scaling": None if train.scaling is None else [one.tolist() for one in train.scaling],
    }
    for name, network in (("student", result.student), ("teacher", result.teacher)):
        kind = KIND if name == "student" else "BD-KD teacher"
        write_record(out / f"{name}.safetensors", kind, dict(network.state_dict()), about)
    write_table(out / "history.csv", result.history)
    reports = {
        name: calibration_report(outputs_of(network, test.inputs).softmax(-1), test.labels)
        for name, network in (("student", result.student), ("teacher", result.teacher))
    }
    write_json(out / "report.json", reports)
    _show(f"{len(test.labels):,} held-out samples", reports)
    Console().print(f"written to {out}", highlight=False)


def compare(
    data: DATA,
    losses: Annotated[str, typer.Option(help=f"some of {', '.join(SCHEMES)}")] = "ce,dml,bdkd",
    labels: LABELS = None,
    target: TARGET = "label",
    teacher: TEACHER = None,
    student: STUDENT = None,
    nu: NU = 2.0,
    temperature: TEMPERATURE = 4.0,
    epochs: EPOCHS = 40,
    batch: Annotated[int, typer.Option(min=1)] = 64,
    learning_rate: float = 0.05,
    held_out: HELD = 0.3,
    seeds: Annotated[int, typer.Option(min=1, help="splits and initial weights")] = 3,
    out: Annotated[Path | None, typer.Option(help="CSV to write: a row per loss and seed")] = None,
) -> None:
    """Would it help me? Train students by several losses on the same splits and compare them."""
    chosen = [name.strip() for name in losses.split(",") if name.strip()]
    if not chosen:
        raise DataError("no losses", value=losses, expected=f"some of {', '.join(SCHEMES)}")
    for name in chosen:
        _known(name)
    rows = []
    for seed in range(seeds):
        train, test, validation = _parts(data, labels, target, held_out, seed)
        for name in chosen:
            networks = _networks(train, teacher, student, seed)
            result = _train(
                networks, train, test, name, (nu, temperature, 1.0), epochs, batch, learning_rate,
                seed,
            )  # fmt: skip
            logits = outputs_of(result.student, test.inputs)
            report = calibration_report(logits.softmax(-1), test.labels)
            rows.append(
                {"loss": name, "seed": seed, **report, "temperature": _fitted(result, validation)}
            )
    table = pd.DataFrame(rows)
    shown = Table("loss", *SHOWN, "fitted temperature", title=f"students, mean of {seeds} seeds")
    for name in chosen:
        part = table[table["loss"] == name].mean(numeric_only=True)
        shown.add_row(name, *(f"{part[m]:.4f}" for m in SHOWN), f"{part['temperature']:.2f}")
    Console().print(shown)
    if out is not None:
        write_table(out, table)
        Console().print(f"written to {out}", highlight=False)


def _fitted(result: Distilled, validation: Samples) -> float:
    """The temperature that validation asks for; NaN where no sample of it is wrong."""
    logits = outputs_of(result.student, validation.inputs)
    # Without an error the likeliest temperature is 0.
    if bool((logits.argmax(-1) == validation.labels).all()):
        return math.nan
    return fit_temperature(logits, validation.labels)


def predict(
    student: Annotated[Path, typer.Argument(help="student.safetensors from `distill`")],
    data: DATA,
    out: Annotated[Path, typer.Argument(help="CSV to write: a probability for each class")],
    target: Annotated[
        str | None, typer.Option(help="column of the class, in a CSV that has one")
    ] = None,
) -> None:
    """Class probabilities of a distilled student for new samples, with labels if it has any."""
    weights, about = read_record(student, KIND)
    network = _student(about["student"], about["shape"], len(about["classes"]))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(
            "weights of another network", path=student, value=about["student"]
        ) from error
    inputs, found = _inputs(data, target, about)
    table = pd.DataFrame(
        outputs_of(network, inputs).softmax(-1).numpy(),
        columns=[f"p_{name}" for name in about["classes"]],
    )
    if found is not None:
        table["label"] = found
    write_table(out, table)
    Console().print(f"{len(table):,} rows written to {out}", highlight=False)


def calibration(
    probabilities: Annotated[
        Path, typer.Argument(help="CSV: columns p_CLASS and a label; or .npz: probs and labels")
    ],
    label: Annotated[str, typer.Option(help="column of the true class, in a CSV")] = "label",
    bins: Annotated[int, typer.Option(min=1, help="of the reliability table")] = 15,
    equal_mass: Annotated[
        bool, typer.Option("--equal-mass", help="bins of as many samples each")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="CSV to write: the reliability table")] = None,
) -> None:
    """Can confidence be believed? Calibration errors, proper scores and a reliability table."""
    probs, labels = read_probabilities(probabilities, label)
    _show(f"{len(labels):,} samples", {"": calibration_report(probs, labels, bins)})
    found = reliability(probs, labels, bins, "mass" if equal_mass else "width")
    rows = pd.DataFrame(
        {
            "from": found.edges[:-1],
            "to": found.edges[1:],
            "samples": found.count,
            "confidence": found.confidence,
            "accuracy": found.accuracy,
        }
    )
    shown = Table("confidence", "samples", "mean confidence", "accuracy", "gap")
    for _, row in rows[rows["samples"] > 0].iterrows():
        gap = row["confidence"] - row["accuracy"]
        shown.add_row(
            f"{row['from']:.3f} to {row['to']:.3f}", f"{row['samples']:.0f}",
            f"{row['confidence']:.3f}", f"{row['accuracy']:.3f}", f"{gap:+.3f}",
        )  # fmt: skip
    Console().print(shown)
    if out is not None:
        write_table(out, rows)
        Console().print(f"written to {out}", highlight=False)


def read_probabilities(path: Path, label: str = "label") -> tuple[Tensor, Tensor]:
    """Probabilities (n, classes) and labels (n,) of a person's file.

    Args:
        path: CSV with columns `p_<class>` and one of labels; or .npz with `probs` and `labels`.
        label: name of the labels' column; its values are the names after `p_`.

    Raises:
        DataError: no such columns or arrays, a class without a column, or a row that is no
            probabilities.
    """
    if path.suffix == ".npz":
        arrays = read_npz(path, ("probs", "labels"))
        probs, found = arrays["probs"], arrays["labels"]
        if probs.ndim != 2 or found.shape != probs.shape[:1] or not len(found):
            raise DataError(
                "shapes do not fit", path=path, value=(probs.shape, found.shape),
                expected="probs (n, classes) and labels (n,)",
            )  # fmt: skip
        if probs.dtype.kind != "f" or found.dtype.kind not in "iu":
            raise DataError(
                "kinds of numbers", path=path, value=(str(probs.dtype), str(found.dtype)),
                expected="probs as fractions, labels as whole numbers",
            )  # fmt: skip
        names, first = list(range(probs.shape[1])), 1
        outside = np.flatnonzero((found < 0) | (found >= probs.shape[1]))
        if len(outside):
            raise DataError(
                "no such class", path, int(outside[0]) + 1, value=int(found[outside[0]]),
                expected=f"0 to {probs.shape[1] - 1}",
            )  # fmt: skip
    else:
        table = read_table(path, {label: "str"})
        columns = [str(name) for name in table if str(name).startswith("p_")]
        if len(columns) < 2:
            raise DataError(
                "too few columns of probabilities",
                path=path,
                value=columns,
                expected="p_<class>, ...",
            )
        table = read_table(path, {**dict.fromkeys(columns, "float"), label: "str"})
        probs, first = table[columns].to_numpy(dtype=float), 2
        names = [name.removeprefix("p_") for name in columns]
        unknown = np.flatnonzero(~table[label].isin(names))
        if len(unknown):
            row = int(unknown[0])
            raise DataError(
                "no column of this class", path, row + first, label, table[label].iloc[row],
                f"one of {', '.join(names)}",
            )  # fmt: skip
        found = table[label].map({name: i for i, name in enumerate(names)}).to_numpy()
    refuse_gaps(probs, path, [f"p_{name}" for name in names], first)
    wrong = np.flatnonzero((probs < 0).any(1) | (abs(probs.sum(1) - 1) > 1e-3))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            "no probabilities", path, row + first, value=[round(float(p), 6) for p in probs[row]],
            expected="numbers from 0 that sum to 1",
        )  # fmt: skip
    return torch.from_numpy(probs.astype(np.float64)), torch.from_numpy(found.astype(np.int64))


def _known(loss: str) -> None:
    if loss not in SCHEMES:
        raise DataError("unknown loss", value=loss, expected=", ".join(SCHEMES))


def _is_table(path: Path) -> bool:
    return {".csv", ".tsv"} & {suffix.lower() for suffix in path.suffixes} != set()


def _read(
    path: Path, labels: Path | None, target: str
) -> tuple[Tensor, Tensor, list[str], list[str]]:
    """Inputs, numbered classes, the names of these and of a table's columns."""
    columns: list[str] = []
    if _is_table(path):
        values, found, columns = read_features(path, target, "str")
        inputs = torch.from_numpy(values.astype(np.float32))
    else:
        images, found = labelled_pictures(path, labels)
        inputs = picture_tensors(images)
    classes, numbers = np.unique(found, return_inverse=True)
    if len(classes) < 2:
        raise DataError("only one class", path=path, value=str(classes[0]), expected="two or more")
    if 2 * len(classes) > len(found):
        raise DataError(
            f"{len(classes)} classes in {len(found)} samples", path=path,
            expected="two samples of each at least",
        )  # fmt: skip
    names = [str(name) for name in classes]
    return inputs, torch.from_numpy(numbers.astype(np.int64)), names, columns


def _parts(
    path: Path, labels: Path | None, target: str, held_out: float, seed: int
) -> tuple[Samples, Samples, Samples]:
    """Samples to train and to test, and a tenth of the first that also validates temperatures."""
    if not 0 < held_out < 1:
        raise DataError("share held out", value=held_out, expected="above 0 and below 1")
    inputs, numbers, classes, columns = _read(path, labels, target)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    tests = round(held_out * len(inputs))
    fits = len(inputs) - tests
    checks = max(1, fits // 10)
    if tests < 1 or fits - checks < 2:
        raise DataError("too few samples", path=path, value=len(inputs))
    test, validation, train = order.split([tests, checks, fits - checks])
    scaling = None
    if _is_table(path):
        spread = inputs[train].std(0)
        # A column that never changes says nothing, and must not be divided by nothing.
        scaling = (inputs[train].mean(0), torch.where(spread > 0, spread, 1.0))
        inputs = (inputs - scaling[0]) / scaling[1]
    return tuple(  # type: ignore[return-value]
        Samples(inputs[rows], numbers[rows], classes, columns, scaling)
        for rows in (train, test, validation)
    )


def _networks(
    train: Samples, teacher: str | None, student: str | None, seed: int
) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    shape, classes = list(train.inputs.shape[1:]), len(train.classes)
    if teacher:
        large = own_module(teacher)
    elif len(shape) == 1:
        large = mlp((shape[0], 256, 256, 256, classes))
    else:
        large = _convolutions((32, 64, 64), shape, classes)
    return large, _student(student, shape, classes)


def _student(student: str | None, shape: list[int], classes: int) -> nn.Module:
    if student:
        return own_module(student)
    if len(shape) == 1:
        return mlp((shape[0], 16, classes))
    return _convolutions((4, 8), shape, classes)


def _convolutions(channels: tuple[int, ...], shape: list[int], classes: int) -> nn.Module:
    depth, height, width = shape
    return small_cnn(channels, (depth, height, width), classes, padding="same")


def _train(
    networks: tuple[nn.Module, nn.Module],
    train: Samples,
    test: Samples,
    loss: str,
    settings: tuple[float, float, float],
    epochs: int,
    batch: int,
    learning_rate: float,
    seed: int,
) -> Distilled:
    nu, temperature, alpha = settings
    if loss == "kd":
        # A frozen teacher has learned from the labels before.
        students = copy.deepcopy(networks[1])
        _train(
            (networks[0], students), train, test, "ce", settings, epochs, batch, learning_rate, seed
        )
    distiller = OnlineDistiller(
        *networks, loss, nu=nu, T=temperature, alpha=alpha,
        optimizer=lambda weights: kd_sgd(weights, learning_rate),
    )  # fmt: skip
    batches = PictureBatches(train.inputs, train.labels, batch, seed)
    held = list(zip(test.inputs.split(512), test.labels.split(512), strict=True))
    return distiller.fit(batches, held, epochs, steps=_bar(f"{loss}, seed {seed}", epochs))


def _bar(title: str, epochs: int) -> Iterator[int]:
    steps: Iterable[int] = range(1, epochs + 1)
    yield from track(steps, title, console=Console(stderr=True))


def _inputs(path: Path, target: str | None, about: dict[str, Any]) -> tuple[Tensor, Any]:
    """New samples for a student, and their classes' names where the file has them."""
    if not _is_table(path):
        images, numbers = read_pictures(path)
        inputs, found = picture_tensors(images), numbers
    else:
        names = about["columns"]
        if not names:
            raise DataError("a table for a student of pictures", path=path)
        table = read_table(path, dict.fromkeys(names, "float"))
        values = table[names].to_numpy(dtype=np.float64)
        refuse_gaps(values, path, names, first=2)
        mean, spread = (torch.tensor(one) for one in about["scaling"])
        inputs = (torch.from_numpy(values.astype(np.float32)) - mean) / spread
        found = None if target is None else read_table(path, {target: "str"})[target]
    if list(inputs.shape[1:]) != about["shape"]:
        raise DataError(
            "inputs of another shape", path=path, value=tuple(inputs.shape[1:]),
            expected=f"{tuple(about['shape'])}",
        )  # fmt: skip
    return inputs, None if found is None else np.asarray(found).astype(str)


def _show(title: str, reports: dict[str, dict[str, float]]) -> None:
    shown = Table("measure", *reports, title=title)
    for name in SHOWN:
        shown.add_row(name, *(f"{report[name]:.4f}" for report in reports.values()))
    Console().print(shown)
