"""Commands for a person's own losses, tables, texts and pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from peira.data import (
    DataError,
    labelled_pictures,
    picture_tensors,
    read_features,
    read_npy,
    read_npz,
    read_table,
    save_model,
    write_tensors,
)
from peira.data.arrays import refuse_gaps
from peira.data.tables import write_table
from peira.nn import small_cnn
from peira.training.ccl.estimator import CyclicalFit, compare_fits, held_out_losses
from peira.training.ccl.sampling import (
    check_losses,
    effective_sample_size,
    rank_suspects,
    sampling_probabilities,
    scores_from_losses,
)
from peira.training.ccl.sizes import plan_table, schedule_sizes
from peira.training.ccl.training import Compared, compare_networks

__all__ = ["fit", "noisy", "pictures", "plan", "scores"]

TABLE = Annotated[Path, typer.Argument(help="CSV or TSV of features or texts, or .npz of x and y")]
LABEL = Annotated[str, typer.Option(help="name of the label's column")]
TEXT = Annotated[str | None, typer.Option(help="column with a text; without it, number columns")]
START = Annotated[float, typer.Option(help="smallest share of the data in a round")]
END = Annotated[float, typer.Option(help="largest share")]
ALPHA = Annotated[float, typer.Option(help="multiplier of the share from round to round")]
EPOCHS = Annotated[float, typer.Option(help="budget, in passes over the training data")]
SCHEDULE = Annotated[
    str, typer.Option(help="cyclic, sharp, cyclic-from-full, full-then-cyclic, growing, shrinking")
]
TRANSFORM = Annotated[str, typer.Option(help="scores from losses: inverse, exp, hard or random")]
LAM = Annotated[float, typer.Option(help="of exp, per nat")]


def plan(
    samples: Annotated[int, typer.Argument(help="number of training samples", min=1)],
    start: START = 0.25,
    end: END = 1.0,
    alpha: ALPHA = 0.5,
    epochs: EPOCHS = 30.0,
    schedule: SCHEDULE = "cyclic",
    out: Annotated[Path | None, typer.Option(help="CSV to write")] = None,
) -> None:
    """Show the rounds of a schedule before any training: share, samples, and their sum."""
    table = plan_table(schedule_sizes(schedule, start, end, alpha, epochs), samples)
    shown = Table("round", "share", "samples", "seen so far", "epochs so far")
    for number, share, count, seen, spent in table.itertuples(index=False):
        # The middle of a long plan repeats its cycle.
        if len(table) > 24 and 12 < number <= len(table) - 6:
            if number == 13:
                shown.add_row(*["..."] * 5)
            continue
        shown.add_row(str(number), f"{share:.3g}", f"{count:,}", f"{seen:,}", f"{spent:.2f}")
    console = Console()
    console.print(shown)
    console.print(
        f"{len(table)} rounds instead of {epochs:g}; scores cost another {epochs:g} epochs",
        highlight=False,
    )
    _write(table, out)


def scores(
    losses: Annotated[Path, typer.Argument(help="losses of the training samples: .npy or CSV")],
    out: Annotated[Path | None, typer.Option(help="CSV to write: loss, score, probability")] = None,
    column: Annotated[str, typer.Option(help="column of a CSV")] = "loss",
    transform: TRANSFORM = "inverse",
    lam: LAM = 0.5,
) -> None:
    """What losses become: how unevenly samples would be drawn, for every kind of score."""
    values = _read_losses(losses, column)
    kinds = [("inverse", lam), ("exp", 5.0), ("exp", 0.5), ("exp", 0.25), ("hard", lam)]
    if (transform, lam) not in kinds and transform != "random":
        kinds.append((transform, lam))
    shown = Table("score", "effective samples", "of all", "largest probability", "smallest")
    for kind, rate in kinds:
        found = scores_from_losses(values, kind, rate)
        p, size = sampling_probabilities(found), effective_sample_size(found)
        name = f"{kind}, lam {rate:g}" if kind == "exp" else kind
        shown.add_row(
            name, f"{size:,.1f}", f"{size / len(p):.1%}", f"{p.max():.3g}", f"{p.min():.3g}"
        )
    Console().print(shown)
    chosen = scores_from_losses(values, transform, lam)
    _write(
        pd.DataFrame(
            {"loss": values, "score": chosen, "probability": sampling_probabilities(chosen)}
        ),
        out,
    )


def fit(
    table: TABLE,
    label: LABEL = "label",
    text: TEXT = None,
    start: START = 0.25,
    end: END = 1.0,
    alpha: ALPHA = 0.5,
    epochs: EPOCHS = 20.0,
    schedule: SCHEDULE = "cyclic",
    transform: TRANSFORM = "inverse",
    lam: LAM = 0.5,
    batch: Annotated[int, typer.Option(min=1, help="samples in a step")] = 32,
    seeds: Annotated[int, typer.Option(min=1, help="splits and trainings of each method")] = 5,
    test_share: Annotated[float, typer.Option(help="share of the rows to test on")] = 0.25,
    model: Annotated[Path | None, typer.Option(help="model to write, trained on all rows")] = None,
) -> None:
    """Train linear classifiers on a table or texts: plain, in a random cycle, on the curriculum."""
    features, inputs, labels = _read(table, label, text)
    if not 0 < test_share < 1:
        raise DataError("share of rows to test on", value=test_share, expected="above 0, below 1")
    settings: dict[str, Any] = {
        "start": start, "end": end, "alpha": alpha, "budget_epochs": epochs, "schedule": schedule,
        "score_transform": transform, "lam": lam, "batch_size": batch,
    }  # fmt: skip
    console = Console(stderr=True)
    watched = track(range(seeds), "splits", console=console)
    rows = compare_fits(features, inputs, labels, watched, test_share, **settings)
    shown = Table("method", "accuracy", "sd of splits", "trained on", "for scores")
    for method, part in rows.groupby("method", sort=False):
        shown.add_row(
            str(method), f"{part['accuracy'].mean():.4f}",
            f"{part['accuracy'].std():.4f}" if len(part) > 1 else "",
            f"{part['samples'].mean():,.0f}", f"{part['scoring_samples'].mean():,.0f}",
        )  # fmt: skip
    Console().print(shown)
    if model is not None:
        whole = make_pipeline(features, CyclicalFit(random_state=0, **settings))
        save_model(model, whole.fit(inputs, labels))
        Console().print(f"written to {model}", highlight=False)


def noisy(
    table: TABLE,
    out: Annotated[Path, typer.Argument(help="CSV to write: rows, most suspicious label first")],
    label: LABEL = "label",
    text: TEXT = None,
    folds: Annotated[int, typer.Option(min=2, help="parts; each is judged by the others")] = 5,
    top: Annotated[int, typer.Option(help="rows to show")] = 10,
    seed: int = 0,
) -> None:
    """Rank the rows of a table or texts by how badly their label fits: wrong labels come first."""
    features, inputs, labels = _read(table, label, text, folds)
    judge = make_pipeline(features, SGDClassifier(loss="log_loss", random_state=seed))
    with Console(stderr=True).status("judging every row by the others"):
        losses = held_out_losses(judge, inputs, labels, folds, seed)
    order = rank_suspects(losses)
    # In a table the header is row 1.
    first = 1 if table.suffix == ".npz" else 2
    found = pd.DataFrame({"row": order + first, "label": labels[order], "loss": losses[order]})
    _show_suspects(found, top)
    _write(found, out)


def pictures(
    path: Annotated[Path, typer.Argument(help="pictures: .npz, IDX, CIFAR, folder of classes ...")],
    labels: Annotated[Path | None, typer.Option(help="labels, where they are apart")] = None,
    start: START = 0.25,
    end: END = 1.0,
    alpha: ALPHA = 0.5,
    epochs: EPOCHS = 20.0,
    schedule: SCHEDULE = "cyclic",
    transform: TRANSFORM = "inverse",
    lam: LAM = 0.5,
    width: Annotated[int, typer.Option(min=1, help="channels of the first unit")] = 32,
    batch: Annotated[int, typer.Option(min=2, help="samples in a step")] = 128,
    held_out: Annotated[
        float, typer.Option(help="share to choose the round; as much to test")
    ] = 0.2,
    seed: int = 0,
    weights: Annotated[Path | None, typer.Option(help="weights to write (.safetensors)")] = None,
    suspects: Annotated[Path | None, typer.Option(help="CSV to write: doubtful labels")] = None,
) -> None:
    """Train the paper's small network on pictures: plain, in a random cycle, on the curriculum."""
    inputs, answers = _read_pictures(path, labels)
    train, validation, test = _split(len(answers), held_out, seed, path)
    classes = int(answers.max()) + 1

    def make() -> torch.nn.Module:
        torch.manual_seed(seed)
        return _network(inputs, classes, width, path)

    found = compare_networks(
        make, *((inputs[part], answers[part]) for part in (train, validation, test)), batch,
        _watched, start=start, end=end, alpha=alpha, budget_epochs=epochs, schedule=schedule,
        transform=transform, lam=lam, rng=seed,
    )  # fmt: skip
    _show_compared(found)
    if suspects is not None:
        order = rank_suspects(found.early_losses)
        rows = {"picture": train.numpy()[order], "label": answers[train].numpy()[order]}
        table = pd.DataFrame({**rows, "loss": found.early_losses[order]})
        _show_suspects(table, 10)
        _write(table, suspects)
    if weights is not None:
        shape = "x".join(map(str, inputs.shape[1:]))
        about = {"image": shape, "width": str(width), "classes": str(classes)}
        write_tensors(weights, found.network.state_dict(), about)
        Console().print(f"written to {weights}", highlight=False)


def _show_compared(found: Compared) -> None:
    shown = Table("method", "accuracy", "at round", "of", "last round", "trained on")
    for method, rows in found.accuracies.items():
        best = found.chosen_round(method)
        shown.add_row(
            method, f"{rows[best, 1]:.4f}", str(best + 1), str(len(rows)), f"{rows[-1, 1]:.4f}",
            f"{found.samples[method]:,}",
        )  # fmt: skip
    Console().print(shown)
    Console().print(
        "Accuracy is on test pictures, at the round that is best on validation pictures. "
        "The curriculum needs the plain training first: it costs twice as much."
    )


def _read(
    path: Path, label: str, text: str | None, least: int = 2
) -> tuple[StandardScaler | TfidfVectorizer, Any, np.ndarray]:
    """What makes features, the rows it makes them of, and their labels: `least` of each class."""
    features: StandardScaler | TfidfVectorizer = StandardScaler()
    if path.suffix == ".npz":
        inputs, labels = _read_arrays(path)
    elif text is None:
        inputs, labels, _ = read_features(path, label, "str")
    elif text == label:
        raise DataError("the text is the label", path=path, column=text)
    else:
        features = TfidfVectorizer(sublinear_tf=True)
        frame = read_table(path, {text: "str", label: "str"})
        inputs, labels = list(frame[text]), frame[label].to_numpy()
    labels = labels.astype(str)
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2:
        raise DataError("only one class", path=path, value=str(classes[0]))
    if counts.min() < least:
        raise DataError(
            f"class {classes[counts.argmin()]!s} has too few rows", path=path,
            value=int(counts.min()), expected=f"{least} or more",
        )  # fmt: skip
    return features, inputs, labels


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    arrays = read_npz(path, ("x", "y"))
    inputs, labels = arrays["x"].reshape(len(arrays["x"]), -1), arrays["y"]
    if len(inputs) != len(labels):
        raise DataError(f"{len(inputs)} rows of x but {len(labels)} of y", path=path)
    if inputs.dtype.kind not in "uif":
        raise DataError("x is no numbers", path=path, value=str(inputs.dtype))
    refuse_gaps(inputs, path)
    return inputs.astype(float), labels


def _read_losses(path: Path, column: str) -> np.ndarray:
    if path.suffix == ".npy":
        values = read_npy(path)
    else:
        values = read_table(path, {column: "float"})[column].to_numpy()
    try:
        return check_losses(values)
    except DataError as error:
        raise DataError(str(error), path=path) from error


def _read_pictures(path: Path, labels: Path | None) -> tuple[torch.Tensor, torch.Tensor]:
    images, found = labelled_pictures(path, labels)
    if found.max() < 1:
        raise DataError("only one class", path=path, value=int(found.max()), expected="two or more")
    return picture_tensors(images), torch.from_numpy(found)


def _split(n: int, share: float, seed: int, path: Path) -> tuple[torch.Tensor, ...]:
    """Indices to train, to choose the round, and to test."""
    if not 0 < share < 0.5:
        raise DataError("share to hold out", value=share, expected="above 0 and below 0.5")
    held = int(share * n)
    if not held:
        raise DataError("too few pictures to hold some out", path=path, value=n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[2 * held :], order[:held], order[held : 2 * held]


def _network(inputs: torch.Tensor, classes: int, width: int, path: Path) -> torch.nn.Module:
    channels, height, breadth = inputs.shape[1:]
    # Smaller pictures would end as one pixel, too few for batch norm where a batch has one sample.
    padding: Literal["same", "valid"] = "same" if min(height, breadth) < 22 else "valid"
    try:
        return small_cnn(
            (width, 2 * width, 2 * width), (channels, height, breadth), classes, padding
        )
    except ValueError as error:
        raise DataError(str(error), path=path) from error


def _watched(method: str, rounds: Iterable[np.ndarray], total: int) -> Iterable[np.ndarray]:
    return track(rounds, method, total=total, console=Console(stderr=True))


def _show_suspects(found: pd.DataFrame, top: int) -> None:
    shown = Table(*map(str, found.columns))
    for row in found.head(top).itertuples(index=False):
        shown.add_row(*map(str, row[:-1]), f"{row[-1]:.3f}")
    Console().print(shown)


def _write(table: pd.DataFrame, out: Path | None) -> None:
    if out is None:
        return
    write_table(out, table)
    Console().print(f"written to {out}", highlight=False)
