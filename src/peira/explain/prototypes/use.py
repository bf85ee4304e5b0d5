"""Commands for a person's own pictures or table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.model_selection import train_test_split
from torch import nn

from peira.data import (
    DataError,
    load_weights,
    own_module,
    read_features,
    read_pictures,
    read_table,
)
from peira.data.tables import write_table
from peira.engine.files import atomic_path
from peira.explain.prototypes.display import explanation_sheet, prototype_sheet
from peira.explain.prototypes.method import PrototypeClassifier

__all__ = ["explain", "fit", "picture", "predict"]

TABLES = (".csv", ".tsv", ".txt")
DATA = Annotated[
    Path,
    typer.Argument(
        help="pictures: .npz, .npy, IDX, CIFAR, SVHN, STL-10 or a folder with one folder of PNG or "
        "JPEG files for each class; or a table: CSV, TSV"
    ),
]
MODEL = Annotated[Path, typer.Argument(help="model file written by fit")]
ENCODER = Annotated[
    str, typer.Option(help="your own encoder, FILE.py:FUNCTION that returns a torch module")
]
DECODER = Annotated[str, typer.Option(help="your own decoder, FILE.py:FUNCTION")]
ROW = Annotated[int, typer.Option(min=1, help="which input, counted from 1")]


def fit(
    data: DATA,
    model: Annotated[Path, typer.Argument(help="model file to write, .safetensors")],
    labels: Annotated[
        Path | None, typer.Option(help="file of labels, for IDX, .npy and STL-10")
    ] = None,
    label: Annotated[str, typer.Option(help="a table's column of labels")] = "label",
    prototypes: Annotated[int, typer.Option(help="number of prototypes")] = 15,
    epochs: Annotated[int, typer.Option(help="passes over the training set")] = 1500,
    batch_size: Annotated[int, typer.Option(help="inputs of a step")] = 250,
    learning_rate: Annotated[float, typer.Option(help="of Adam")] = 0.002,
    elastic: Annotated[bool, typer.Option(help="deform every batch of pictures")] = True,
    encoder: ENCODER = "",
    weights: Annotated[
        Path | None, typer.Option(help=".safetensors with which your encoder starts")
    ] = None,
    decoder: DECODER = "",
    test: Annotated[float, typer.Option(help="share kept out, on which accuracy is told")] = 0.2,
    seed: int = 0,
) -> None:
    """Learn prototypes, say how well they classify what was kept out, and save the model."""
    if not 0 < test < 1:
        raise DataError("not a share to keep out", value=test, expected="between 0 and 1")
    inputs, found, names = _read(data, labels, label)
    if found is None:
        raise DataError("pictures without labels", path=data, expected="labels, see --labels")
    parts = {"encoder": _own(encoder), "decoder": _own(decoder)}
    if weights is not None:
        if parts["encoder"] is None:
            raise DataError("weights without an encoder", path=weights, expected="--encoder")
        load_weights(weights, parts["encoder"])
    classifier = PrototypeClassifier(
        prototypes, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate,
        elastic=elastic, random_state=seed, **parts,
    )  # fmt: skip
    with _said_of(data):
        if len(np.unique(found)) < 2:
            raise DataError("only one class", value=found[0], expected="at least two classes")
        rows, rest = train_test_split(
            np.arange(len(inputs)), test_size=test, random_state=seed, stratify=found
        )
        train, train_labels = _frame(inputs[rows], names), found[rows]
        classifier.fit(
            train,
            train_labels,
            watch=lambda steps: track(steps, "training", console=Console(stderr=True)),
        )
    # In the person's file, not in the part of it that trained.
    classifier.nearest_training_ = rows[classifier.nearest_training_]
    classifier.save(model)
    accuracy = {
        "training": classifier.score(train, train_labels),
        "kept out": classifier.score(_frame(inputs[rest], names), found[rest]),
    }
    shown = Table("measure", "value")
    shown.add_row("inputs to train, kept out", f"{len(rows)}, {len(rest)}")
    for part, share in accuracy.items():
        shown.add_row(f"accuracy, {part}", f"{share:.3f}")
    shown.add_row("classes of the prototypes", _counted(classifier))
    other = found[classifier.nearest_training_] != classifier.prototype_class_
    shown.add_row("nearest to an example of another class", f"{other.sum()} of {len(other)}")
    Console().print(shown)
    Console().print(f"model: {model}", highlight=False)


def predict(
    model: MODEL,
    data: DATA,
    out: Annotated[Path, typer.Argument(help="CSV to write, one row per input")],
    encoder: ENCODER = "",
    decoder: DECODER = "",
) -> None:
    """Class and probabilities of each input, and its nearest prototype."""
    classifier = PrototypeClassifier.load(model, _own(encoder), _own(decoder))
    inputs = _inputs(classifier, data)
    with _said_of(data):
        chances, distances = classifier.predict_proba(inputs), classifier.distances(inputs)
    closest = distances.argmin(axis=1)
    table = pd.DataFrame({"row": np.arange(1, len(chances) + 1)})
    table["predicted"] = classifier.classes_[chances.argmax(axis=1)]
    for k, name in enumerate(classifier.classes_):
        table[f"probability[{name}]"] = chances[:, k]
    table["nearest_prototype"] = closest
    table["prototype_class"] = classifier.prototype_class_[closest]
    table["distance"] = distances.min(axis=1)
    _write(out, table)
    Console().print(f"{len(table)} inputs: {out}", highlight=False)


def explain(
    model: MODEL,
    data: DATA,
    row: ROW = 1,
    top: Annotated[int, typer.Option(min=1, help="prototypes to show, nearest first")] = 15,
    out: Annotated[
        Path | None, typer.Option(help="CSV to write: all inputs, prototypes and classes")
    ] = None,
    encoder: ENCODER = "",
    decoder: DECODER = "",
) -> None:
    """What the logit of the predicted class is the sum of: distance x weight, by prototype."""
    classifier = PrototypeClassifier.load(model, _own(encoder), _own(decoder))
    inputs = _inputs(classifier, data)
    with _said_of(data):
        table = classifier.explain(inputs if out else _one(inputs, row, data))
    part = table[table["sample"] == (row - 1 if out else 0)]
    if not len(part):
        raise DataError("no such row", data, row, expected=f"1 to {len(inputs)}")
    predicted = part["predicted"].iloc[0]
    contribution = part[f"contribution[{predicted}]"]
    shown = Table(
        "prototype", "its class", "distance", f"weight to {predicted}", "contribution",
        "adds to the lead", "nearest training row", title=f"row {row}: class {predicted}",
    )  # fmt: skip
    for one in part.head(top).to_dict("records"):
        shown.add_row(
            str(one["prototype"]),
            str(one["prototype_class"]),
            f"{one['distance']:.4g}",
            f"{one[f'weight[{predicted}]']:.4g}",
            f"{one[f'contribution[{predicted}]']:.4g}",
            f"{one['lead']:.4g}",
            str(one["nearest_training"] + 1),
        )
    shown.add_section()
    shown.add_row(
        f"sum of {len(part)}", "", "", "", f"{contribution.sum():.4g}", f"{part['lead'].sum():.4g}"
    )
    Console().print(shown)
    Console().print(
        "the sum is the logit; the lead is over the second class, and decides", highlight=False
    )
    if out is not None:
        # Rows of a file are counted from 1.
        table[["sample", "nearest_training"]] += 1
        _write(out, table.rename(columns={"sample": "row", "nearest_training": "nearest_row"}))
        Console().print(f"{len(table)} rows: {out}", highlight=False)


def picture(
    model: MODEL,
    out: Annotated[Path, typer.Argument(help="picture to write: .png, .pdf, .svg")],
    data: Annotated[
        Path | None, typer.Option(help="pictures; then one of them is explained")
    ] = None,
    row: ROW = 1,
    encoder: ENCODER = "",
    decoder: DECODER = "",
) -> None:
    """Draw the decoded prototypes beside their nearest training examples, or one explanation."""
    classifier = PrototypeClassifier.load(model, _own(encoder), _own(decoder))
    if data is None:
        sheet = prototype_sheet(classifier)
    elif classifier.kind_ == "table":
        raise DataError("a model of a table; see explain", path=model, expected="one of pictures")
    else:
        inputs = _inputs(classifier, data)
        with _said_of(data):
            sheet = explanation_sheet(classifier, _one(inputs, row, data)[0])
    with atomic_path(out) as temporary:
        sheet.savefig(temporary, dpi=150)
    Console().print(f"{len(classifier.prototypes_)} prototypes: {out}", highlight=False)


def _is_table(path: Path) -> bool:
    return path.is_file() and any(suffix.lower() in TABLES for suffix in path.suffixes)


def _read(
    path: Path, labels: Path | None, column: str
) -> tuple[np.ndarray, np.ndarray | None, list[str] | None]:
    """Inputs, labels where there are any, and a table's columns."""
    if _is_table(path):
        return read_features(path, column, kind="str")
    inputs, found = read_pictures(path, labels)
    folders = sorted(part.name for part in path.iterdir() if part.is_dir()) if path.is_dir() else []
    return inputs, np.array(folders)[found] if folders and found is not None else found, None


def _inputs(classifier: PrototypeClassifier, path: Path) -> Any:
    """Inputs of a file for a fitted model; a table's other columns are left alone."""
    if classifier.kind_ == "pictures":
        if _is_table(path):
            raise DataError("a table", path=path, expected="pictures, as the model was fitted to")
        return read_pictures(path)[0]
    if not _is_table(path):
        raise DataError("not a table", path=path, expected="CSV or TSV, as the model was fitted to")
    names = [str(name) for name in classifier.feature_names_in_]
    table = read_table(path, dict.fromkeys(names, "float"))[names]
    gaps = np.argwhere(table.isna().to_numpy())
    if len(gaps):
        row, column = (int(place) for place in gaps[0])
        # The header is row 1.
        raise DataError("missing value", path, row + 2, names[column], expected="a number")
    return table


def _one(inputs: Any, row: int, path: Path) -> Any:
    if row > len(inputs):
        raise DataError("no such row", path, row, expected=f"1 to {len(inputs)}")
    return inputs[row - 1 : row]


def _frame(values: np.ndarray, names: list[str] | None) -> Any:
    return values if names is None else pd.DataFrame(values, columns=names)


def _own(reference: str) -> nn.Module | None:
    return own_module(reference) if reference else None


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """Name the file in what the method finds wrong with its contents."""
    try:
        yield
    except DataError as error:
        raise error if error.path else DataError(str(error), path=path) from error


def _counted(classifier: PrototypeClassifier) -> str:
    classes, counts = np.unique(classifier.prototype_class_, return_counts=True)
    missing = sorted(set(classifier.classes_.tolist()) - set(classes.tolist()), key=str)
    said = ", ".join(f"{name}: {count}" for name, count in zip(classes, counts, strict=True))
    return said + (f"; none for {', '.join(map(str, missing))}" if missing else "")


def _write(path: Path, table: pd.DataFrame) -> None:
    write_table(path, table)
