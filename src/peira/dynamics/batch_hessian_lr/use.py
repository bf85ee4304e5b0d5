"""Commands for a person's own data and network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from peira.data import DataError
from peira.data.arrays import refuse_absent, write_tensors
from peira.data.networks import load_weights, own_module
from peira.dynamics.batch_hessian_lr.examples import read_examples
from peira.dynamics.batch_hessian_lr.law import ASSUMPTIONS, BatchSpectrumLaw, batch_spectrum_law
from peira.dynamics.batch_hessian_lr.model import mlp
from peira.dynamics.batch_hessian_lr.rates import max_lr, noise_scale, rescale_lr
from peira.dynamics.batch_hessian_lr.sweep import ShuffledBatches, mean_loss
from peira.dynamics.batch_hessian_lr.tuner import SLQTuner
from peira.engine.files import write_json
from peira.nn.networks import ACTIVATIONS

__all__ = ["law", "rescale", "train"]

DATA = Annotated[
    Path, typer.Argument(help="CSV or TSV with a label column, NPZ with x and y, or IDX pictures")
]
LABEL = Annotated[str, typer.Option(help="the label's column in a table")]
LABELS = Annotated[Path | None, typer.Option(help="IDX file of labels, for IDX pictures")]
REGRESSION = Annotated[bool, typer.Option(help="targets are numbers: mean squared error")]
WIDTHS = Annotated[str, typer.Option(help="hidden widths of an MLP, such as 64,32")]
ACTIVATION = Annotated[str, typer.Option(help=f"of the MLP: {', '.join(ACTIVATIONS)}")]
MODEL = Annotated[
    str,
    typer.Option(help="FILE.py:FUNCTION, which returns your torch.nn.Module, in place of an MLP"),
]
WEIGHTS = Annotated[Path | None, typer.Option(help="weights of the model (.safetensors)")]


def law(
    data: DATA,
    sizes: Annotated[str, typer.Option(help="batch sizes to measure")] = "8,32,128",
    label: LABEL = "label",
    labels: LABELS = None,
    regression: REGRESSION = False,
    widths: WIDTHS = "32",
    activation: ACTIVATION = "tanh",
    model: MODEL = "",
    weights: WEIGHTS = None,
    kind: Annotated[str, typer.Option(help="hessian or ggn")] = "hessian",
    optimizer: Annotated[str, typer.Option(help="sgd or adam")] = "sgd",
    momentum: Annotated[float | None, typer.Option(help="of SGD (0), or beta_1 (0.9)")] = None,
    damping: Annotated[float, typer.Option(help="Adam's epsilon")] = 1e-8,
    count: Annotated[int, typer.Option(min=2, help="random batches of each size")] = 24,
    chunk: Annotated[int | None, typer.Option(min=1, help="examples at a time")] = None,
    seed: int = 0,
    out: Annotated[Path | None, typer.Option(help="JSON to write, for `rescale --law`")] = None,
) -> None:
    """Measure a network's curvature and its largest learning rate at several batch sizes."""
    if kind not in ("hessian", "ggn"):
        raise DataError("unknown curvature", value=kind, expected="hessian or ggn")
    if optimizer not in ("sgd", "adam"):
        raise DataError("unknown optimiser", value=optimizer, expected="sgd or adam")
    wanted = _whole_numbers(sizes, "--sizes")
    inputs, targets, outputs = read_examples(data, label, labels, regression)
    network = _network(model, weights, inputs, outputs, widths, activation, seed)
    loss = F.mse_loss if regression else F.cross_entropy
    with Console(stderr=True).status("measuring curvature"):
        found = batch_spectrum_law(
            network, loss, (inputs, targets), wanted, kind=kind, count=count, chunk=chunk,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        rates = {
            batch: max_lr(found, batch, optimizer, momentum, damping)  # type: ignore[arg-type]
            for batch in wanted
        }
        scale = noise_scale(network, loss, (inputs, targets))
    _print_point(found, scale, kind)
    shown = Table(
        "batch B", "λ₁'(B) measured", "by the law", "overlap", f"largest lr ({optimizer})"
    )
    for row in found.measured:
        by_law, rate = found.largest_at(row.batch), rates[row.batch]
        shown.add_row(
            f"{row.batch:,}",
            f"{row.largest.value:.4g} ± {row.largest.value - row.largest.low:.2g}",
            f"{by_law.value:.4g} [{by_law.low:.4g}, {by_law.high:.4g}]",
            f"{row.overlap.value:.2f}",
            f"{rate.value:.4g} [{rate.low:.4g}, {rate.high:.4g}]",
        )
    Console().print(shown)
    Console().print(f"Rests on: {ASSUMPTIONS}.", highlight=False)
    if out is not None:
        write_json(
            out,
            {
                "batch_hessian_lr": 1,
                "optimizer": optimizer,
                "kind": kind,
                "examples": found.examples,
                "largest": found.largest,
                "coefficient": found.coefficient.value,
                "rates": {str(batch): rate.value for batch, rate in rates.items()},
            },
        )
        Console().print(f"written to {out}", highlight=False)


def rescale(
    lr: Annotated[float, typer.Argument(help="learning rate that works now")],
    old: Annotated[int, typer.Argument(help="batch size that it works at")],
    new: Annotated[int, typer.Argument(help="batch size wanted")],
    optimizer: Annotated[str, typer.Option(help="sgd: linear; adam: square root")] = "sgd",
    law: Annotated[Path | None, typer.Option(help="JSON from `law --out`: saturates")] = None,
) -> None:
    """Carry a learning rate from one batch size to another, by rule or by a measured law."""
    by_rule = rescale_lr(lr, old, new, optimizer)  # type: ignore[arg-type]
    shown = Table("by", f"learning rate at B = {new:,}")
    shown.add_row("linear rule" if optimizer == "sgd" else "square-root rule", f"{by_rule:.4g}")
    if law is not None:
        rates = _read_law(law, optimizer)
        for batch in (old, new):
            if batch not in rates:
                raise DataError(
                    "not measured at this batch size", path=law, value=batch,
                    expected=f"one of {', '.join(map(str, rates))}",
                )  # fmt: skip
        shown.add_row("measured law", f"{lr * rates[new] / rates[old]:.4g}")
    Console().print(shown)


def train(
    data: DATA,
    out: Annotated[Path, typer.Argument(help="trained weights to write (.safetensors)")],
    batch: Annotated[int, typer.Option(min=1, help="examples in a batch")] = 32,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the training data")] = 20,
    every: Annotated[int, typer.Option(min=1, help="epochs between measurements")] = 1,
    held_out: Annotated[float, typer.Option(min=0, max=0.9, help="share kept for testing")] = 0.2,
    label: LABEL = "label",
    labels: LABELS = None,
    regression: REGRESSION = False,
    widths: WIDTHS = "32",
    activation: ACTIVATION = "tanh",
    model: MODEL = "",
    weights: WEIGHTS = None,
    published: Annotated[bool, typer.Option(help="the paper's rule without safeguards")] = False,
    seed: int = 0,
) -> None:
    """Train with learning rate and momentum set on the fly from the measured curvature."""
    inputs, targets, outputs = read_examples(data, label, labels, regression)
    network = _network(model, weights, inputs, outputs, widths, activation, seed)
    loss = F.mse_loss if regression else F.cross_entropy
    draws = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=draws)
    kept = order[: round(len(inputs) * held_out)]
    used = order[len(kept) :]
    x, y = inputs[used], targets[used]
    batches = ShuffledBatches(len(x), batch, draws)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.0)
    tuner = SLQTuner(
        optimizer, network, loss, (x, y), batch, every=every, published=published, generator=draws
    )
    for _ in track(range(epochs), "epochs", console=Console(stderr=True)):
        network.train()
        for _ in range(len(x) // batch):
            picked = next(batches)
            value = loss(network(x[picked]), y[picked])
            if not torch.isfinite(value):
                raise DataError(
                    f"the loss is {float(value)}: the learning rate of {tuner.history[-1].lr:.3g} "
                    "was too high; try a larger batch" + (", or without --published" * published)
                )
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        tuner.step()
    shown = Table("epoch", "λ₁", "λ₁'(B)", "learning rate", "momentum")
    for entry in tuner.history:
        shown.add_row(
            str(entry.epoch),
            f"{entry.largest:.4g}",
            f"{entry.batch_largest:.4g}",
            f"{entry.lr:.4g}",
            f"{entry.momentum:.3f}",
        )
    Console().print(shown)
    _print_scores(
        network.eval(), loss, regression, {"train": (x, y), "test": (inputs[kept], targets[kept])}
    )
    write_tensors(out, network.state_dict())
    Console().print(f"written to {out}", highlight=False)


def _print_point(found: BatchSpectrumLaw, scale: float, kind: str) -> None:
    shown = Table("quantity", "value")
    shown.add_row("examples, parameters", f"{found.examples:,}, {found.size:,}")
    shown.add_row(f"λ₁ of the full {kind}", f"{found.largest:.4g}")
    shown.add_row(f"λ_P of the full {kind}", f"{found.smallest:.4g}")
    c = found.coefficient
    shown.add_row("c of λ₁ + c/b", f"{c.value:.4g} [{c.low:.4g}, {c.high:.4g}]")
    try:
        fit = found.fit
        shown.add_row("c fitted to the batches", f"{fit.value:.4g} [{fit.low:.4g}, {fit.high:.4g}]")
        shown.add_row("log-log slope of the excess", f"{found.exponent:.2f} (law: -1)")
    except DataError:
        shown.add_row("c fitted to the batches", "needs two sizes below the number of examples")
    shown.add_row("gradient noise scale", f"{scale:.4g} examples")
    Console().print(shown)


def _print_scores(
    network: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    regression: bool,
    parts: dict[str, tuple[Tensor, Tensor]],
) -> None:
    shown = Table("examples", "number", "loss", *([] if regression else ["accuracy"]))
    for name, (x, y) in parts.items():
        if not len(x):
            continue
        with torch.no_grad():
            value = float(mean_loss(lambda a, b: loss(network(a), b), x, y))
            row = [name, f"{len(x):,}", f"{value:.4g}"]
            if not regression:
                hits = torch.cat([network(part).argmax(dim=1) for part in x.split(2048)]) == y
                row.append(f"{float(hits.double().mean()):.1%}")
        shown.add_row(*row)
    Console().print(shown)


def _network(
    model: str,
    weights: Path | None,
    inputs: Tensor,
    outputs: int,
    widths: str,
    activation: str,
    seed: int,
) -> nn.Module:
    """The person's model, or an MLP; with the weights of a file if there is one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model:
            network = own_module(model)
        elif activation not in ACTIVATIONS:
            raise DataError("unknown activation", value=activation, expected=", ".join(ACTIVATIONS))
        else:
            hidden = _whole_numbers(widths, "--widths") if widths else []
            network = mlp([inputs[0].numel(), *hidden, outputs], activation)
    if weights is not None:
        load_weights(weights, network)
    with torch.no_grad():
        try:
            answer = network.eval()(inputs[:2])
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"the model does not take inputs of shape {tuple(inputs.shape[1:])}: "
                f"{str(error).splitlines()[0]}"
            ) from error
    if not isinstance(answer, Tensor) or tuple(answer.shape) != (len(inputs[:2]), outputs):
        shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise DataError(
            "the model's outputs do not fit the targets", value=shape,
            expected=f"(examples, {outputs})",
        )  # fmt: skip
    return network


def _read_law(path: Path, optimizer: str) -> dict[int, float]:
    refuse_absent(path)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rates = {int(batch): float(rate) for batch, rate in found["rates"].items()}
        measured = found["optimizer"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError("not a law", path=path, expected="a file from `law --out`") from error
    if measured != optimizer:
        raise DataError("a law of another optimiser", path=path, value=measured, expected=optimizer)
    return rates


def _whole_numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise DataError(f"{option} must be whole numbers above 0", value=text, expected="8,32,128")
    return numbers
