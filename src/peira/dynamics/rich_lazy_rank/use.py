"""Commands for a person's own weights and connectomes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from peira.data import DataError
from peira.data.arrays import read_npy, read_tensors, write_tensors
from peira.data.tables import write_table
from peira.dynamics.rich_lazy_rank.compare import compare_inits, sizes_of, with_controls
from peira.dynamics.rich_lazy_rank.connectome import read_connectome
from peira.dynamics.rich_lazy_rank.inits import connectome_init, gaussian_init, low_rank_init
from peira.dynamics.rich_lazy_rank.network import RateRNN, recurrent_laziness
from peira.dynamics.rich_lazy_rank.training import Recipe
from peira.engine.errors import nearest
from peira.engine.files import atomic_path

__all__ = ["compare", "init", "laziness", "ranks"]

MATRIX = Annotated[
    Path,
    typer.Argument(
        help="connectome (edge list or matrix in .csv, .npy, .graphml, .json) or .safetensors"
    ),
]
ROWS = Annotated[
    str | None, typer.Option(help="of a matrix: 'post' (row i: inputs of i) or 'pre' (its outputs)")
]
SIGNS = Annotated[
    Path | None, typer.Option(help="CSV with the columns neuron, sign (+1 or -1): Dale's law")
]
TENSOR = Annotated[str | None, typer.Option(help="of a .safetensors file: name of the matrix")]
GAIN = Annotated[float, typer.Option(help="Frobenius norm / sqrt(units); 0 keeps the file's")]
SEED = Annotated[int, typer.Option(help="of all random draws")]


def ranks(
    matrix: MATRIX,
    rows: ROWS = None,
    signs: SIGNS = None,
    tensor: TENSOR = None,
    seed: SEED = 0,
) -> None:
    """Effective ranks and sizes of a matrix, beside its shuffles and a Gaussian of its norm."""
    weights = _read(matrix, rows, signs, tensor, gain=0.0)
    square = weights.shape[0] == weights.shape[1]
    shown = with_controls(weights, seed) if square else {"given": weights}
    columns = {name: sizes_of(one) for name, one in shown.items()}
    table = Table("quantity", *columns)
    for quantity in columns["given"]:
        table.add_row(quantity, *(f"{column[quantity]:.4g}" for column in columns.values()))
    Console().print(f"{weights.shape[0]} x {weights.shape[1]}, rows postsynaptic", highlight=False)
    Console().print(table)


def init(
    out: Annotated[Path, typer.Argument(help="file to write: .npy or .safetensors")],
    size: Annotated[int, typer.Option(min=1, help="units of a Gaussian matrix")] = 100,
    matrix: Annotated[Path | None, typer.Option(help="start from this matrix instead")] = None,
    rank: Annotated[int | None, typer.Option(help="keep this many singular triplets")] = None,
    match: Annotated[str, typer.Option(help="what stays equal: fro, spectral, radius")] = "fro",
    gain: GAIN = 1.25,
    rows: ROWS = None,
    signs: SIGNS = None,
    tensor: TENSOR = None,
    seed: SEED = 0,
) -> None:
    """Write initial recurrent weights of a given rank, Gaussian or from a matrix."""
    if matrix is None:
        generator = torch.Generator().manual_seed(seed)
        weights = gaussian_init(size, gain or 1.0, generator=generator)
    else:
        weights = _read(matrix, rows, signs, tensor, gain)
    if rank is not None:
        weights = low_rank_init(weights, rank, match)  # type: ignore[arg-type]
    _write(out, weights)
    table = Table("quantity", "value")
    for quantity, value in sizes_of(weights).items():
        table.add_row(quantity, f"{value:.4g}")
    Console().print(table)
    Console().print(f"written to {out}, rows postsynaptic", highlight=False)


def compare(
    matrix: MATRIX,
    out: Annotated[Path | None, typer.Option(help="CSV to write: a row per init and seed")] = None,
    task: Annotated[str, typer.Option(help="2AF, DMS, CXT, digits or sMNIST")] = "2AF",
    target_loss: Annotated[float, typer.Option(help="validation loss (nats) to stop at")] = 0.045,
    iterations: Annotated[int, typer.Option(min=1, help="budget of each network")] = 3000,
    learning_rate: float = 3e-3,
    gain: GAIN = 1.25,
    rows: ROWS = None,
    signs: SIGNS = None,
    tensor: TENSOR = None,
    seeds: Annotated[int, typer.Option(min=1, help="number of repetitions")] = 3,
) -> None:
    """Train a network from a matrix, and from its shuffles and a Gaussian, to one loss."""
    weights = _read(matrix, rows, signs, tensor, gain)
    recipe = Recipe(target_loss, iterations, learning_rate)
    found = compare_inits(
        with_controls(weights), task,  # type: ignore[arg-type]
        seeds=seeds, recipe=recipe, steps=lambda _: _bar(task, iterations),
    )  # fmt: skip
    wanted = ("kernel_alignment", "representation_alignment", "weight_change")
    shown = Table(
        "init", "participation rank", *(w.replace("_", " ") for w in wanted), "iterations"
    )
    for name, part in found.groupby("init", sort=False):
        done = part[part["reached"]]
        values = [_mean(done[w]) if w in done else "" for w in wanted]
        steps = ", ".join(
            str(step) if got else f"not in {step}"
            for step, got in zip(part["steps"], part["reached"], strict=True)
        )
        shown.add_row(str(name), f"{part['participation_rank'].mean():.1f}", *values, steps)
    Console().print(shown)
    Console().print(f"at a validation loss of {target_loss:g}; lazier: alignment nearer to 1")
    if out is not None:
        write_table(out, found)
        Console().print(f"written to {out}", highlight=False)


def laziness(
    before: Annotated[Path, typer.Argument(help="weights before training (.safetensors)")],
    after: Annotated[Path, typer.Argument(help="weights after training (.safetensors)")],
    probe: Annotated[Path, typer.Argument(help=".npy, shape (inputs, time, channels)")],
    names: Annotated[
        str, typer.Option(help="keys of input, recurrent and read-out weights")
    ] = "inputs.weight,recurrent.weight,readout.weight",
    leak: Annotated[float, typer.Option(help="dt/tau")] = 1.0,
    last: Annotated[bool, typer.Option(help="outputs of the last step only")] = False,
    kernel_inputs: Annotated[int, typer.Option(min=1, help="inputs of the kernel")] = 32,
) -> None:
    """How far training moved a ReLU rate network without biases: weights, activity, kernel."""
    keys = [name.strip() for name in names.split(",")]
    if len(keys) != 3:
        raise DataError("--names", value=names, expected="three keys with commas between")
    states = [_state(path, keys) for path in (before, after)]
    x = _probe(probe, states[0]["inputs.weight"].shape[1])
    hidden, inputs = states[0]["inputs.weight"].shape
    network = RateRNN(
        inputs,
        hidden,
        len(states[0]["readout.weight"]),
        leak=leak,
        read="last" if last else "every",
    )
    _fits(network, states[0], before)
    _fits(network, states[1], after)
    found = recurrent_laziness(network, *states, x, kernel_inputs=min(kernel_inputs, len(x)))
    shown = Table("measure", "value")
    for name, value in vars(found).items():
        if name != "layers":
            shown.add_row(name.replace("_", " "), f"{value:.4f}")
    for key, value in zip(keys, found.layers.values(), strict=True):
        shown.add_row(f"change of {key}", f"{value:.4f}")
    for when, state in zip(("before", "after"), states, strict=True):
        rank = sizes_of(state["recurrent.weight"])["participation_rank"]
        shown.add_row(f"participation rank {when}", f"{rank:.1f}")
    Console().print(shown)


def _read(
    path: Path, rows: str | None, signs: Path | None, tensor: str | None, gain: float
) -> Tensor:
    """The weights of a file, rows postsynaptic, rescaled when `gain` is not 0."""
    if rows not in (None, "post", "pre"):
        raise DataError("--rows", value=rows, expected="post or pre")
    if path.suffix == ".safetensors":
        weights, dale = _matrix(path, tensor), None
        if rows == "pre":
            weights = weights.T
    else:
        found = read_connectome(path, rows=rows, signs=signs)  # type: ignore[arg-type]
        weights, dale = found.weights, found.signs
    if dale is None and not gain:
        return weights
    scaled = connectome_init(weights, dale, gain or 1.0, rows="post")
    return scaled if gain else scaled * (weights.norm() / scaled.norm())


def _matrix(path: Path, tensor: str | None) -> Tensor:
    tensors = read_tensors(path)[0]
    matrices = [name for name, value in tensors.items() if value.ndim == 2]
    if tensor is None and len(matrices) == 1:
        return tensors[matrices[0]].float()
    if tensor not in matrices:
        raise DataError(
            "no such matrix" if tensor else "several tensors: say which by --tensor",
            path=path, value=tensor, expected=f"one of {', '.join(matrices) or 'none'}",
        )  # fmt: skip
    return tensors[tensor].float()


def _state(path: Path, keys: Sequence[str]) -> dict[str, Tensor]:
    tensors = read_tensors(path)[0]
    for key in keys:
        if key not in tensors:
            raise DataError(f"no tensor {key!r}; {nearest(key, list(tensors))}", path=path)
        if tensors[key].ndim != 2:
            raise DataError(f"tensor {key!r}", path, value=tuple(tensors[key].shape),
                            expected="a matrix")  # fmt: skip
    own = ("inputs.weight", "recurrent.weight", "readout.weight")
    return {name: tensors[key].float() for name, key in zip(own, keys, strict=True)}


def _fits(network: RateRNN, state: dict[str, Tensor], path: Path) -> None:
    for name, value in network.state_dict().items():
        if state[name].shape != value.shape:
            raise DataError(
                name, path, value=tuple(state[name].shape), expected=f"shape {tuple(value.shape)}"
            )
        if not torch.isfinite(state[name]).all():
            raise DataError(f"{name} is not finite", path)


def _probe(path: Path, channels: int) -> Tensor:
    values = read_npy(path)
    if values.ndim != 3 or values.shape[2] != channels:
        raise DataError(
            "probe", path=path, value=values.shape,
            expected=f"shape (inputs, time, {channels})",
        )  # fmt: skip
    if values.dtype.kind not in "iufb" or not np.isfinite(values).all() or 0 in values.shape:
        raise DataError("probe", path=path, value=str(values.dtype), expected="finite numbers")
    return torch.from_numpy(values.astype(np.float32))


def _write(path: Path, weights: Tensor) -> None:
    if path.suffix == ".safetensors":
        write_tensors(path, {"recurrent.weight": weights})
        return
    if path.suffix != ".npy":
        raise DataError("file to write", path=path, expected=".npy or .safetensors")
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, weights.numpy())


def _mean(values: Any) -> str:
    if not len(values):
        return ""
    return f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"


def _bar(title: str, steps: int) -> Iterator[int]:
    bar: Iterable[int] = track(range(1, steps + 1), title, console=Console(stderr=True))
    yield from bar
