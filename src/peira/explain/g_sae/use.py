"""Commands for a person's own network, or for activations and gradients that are there already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from peira.data import DataError, load_weights, own_module, read_npy, read_npz, read_tensors
from peira.data.tables import write_table
from peira.engine.errors import PeiraError
from peira.explain.g_sae.method import (
    GSAE,
    MODES,
    SELECTIONS,
    ActivationStore,
    Dictionary,
    GatedSAE,
    JumpReLUSAE,
    Mode,
    PCADictionary,
    ReLUSAE,
    Rows,
    SAERecipe,
    SparseCode,
    load_dictionary,
    steering_effects,
    token_batches,
)
from peira.explain.g_sae.method import pareto as pareto_table
from peira.explain.g_sae.store import take

__all__ = ["capture", "curve", "examples", "faithfulness", "fit", "report", "steer"]

Batches = list[tuple[Tensor, Tensor]]
Method = Literal["additive", "product", "topk", "relu", "gated", "jumprelu", "pca"]

MODEL = Annotated[str, typer.Argument(help="FILE.py:FUNCTION that returns a torch.nn.Module")]
INPUTS = Annotated[
    Path,
    typer.Argument(help="npz: inputs, and targets (without: tokens, the next one is the target)"),
]
ROWS = Annotated[
    Path,
    typer.Argument(help="activations: a file of `capture` (.safetensors, folder), or .npy (n, d)"),
]
DICTIONARY = Annotated[Path, typer.Argument(help="dictionary of `fit` (.safetensors)")]
SITE = Annotated[str, typer.Option(help="module whose output is taken, as named_modules() says")]
WEIGHTS = Annotated[Path | None, typer.Option(help="weights of the model (.safetensors)")]
GRADIENTS = Annotated[Path | None, typer.Option(help="gradients (.npy), for activations in .npy")]
BATCH = Annotated[int, typer.Option(min=1, help="inputs that run at once")]
ROWS_AT_ONCE = Annotated[int, typer.Option(min=2, help="rows of a training batch")]
STEPS = Annotated[int, typer.Option(min=1, help="training batches")]
RATE = Annotated[float, typer.Option(help="learning rate of Adam")]
UNITS = Annotated[int, typer.Option(min=1, help="units of the dictionary, h")]
FIRING = Annotated[int, typer.Option(min=1, help="units that fire, k (relu, gated: on average)")]
BETA = Annotated[float, typer.Option(help="weight of the gradient in `additive`")]
VOCABULARY = Annotated[Path | None, typer.Option(help="text file: a token a line")]
STRENGTH = Annotated[float, typer.Option(help="push, over the mean length of the activations")]


def capture(
    model: MODEL,
    inputs: INPUTS,
    out: Annotated[Path, typer.Argument(help="file (.safetensors), or folder (memory-mapped)")],
    site: SITE,
    weights: WEIGHTS = None,
    batch: BATCH = 32,
    half: Annotated[bool, typer.Option(help="store float16 (in a folder)")] = False,
) -> None:
    """Run a model and write what a module puts out, and the gradient of the loss there."""
    network, batches = _model(model, weights), _batches(inputs, batch)
    single = out.suffix == ".safetensors"
    if half and single:
        raise DataError("float16 is for folders", value=str(out), expected="a folder")
    with _own(model):
        store = ActivationStore.from_model(
            network, site, _bar("capture", batches), folder=None if single else out,
            precision="float16" if half else "float32",
        )  # fmt: skip
    if single:
        store.save(out)
    rows, width = store.activations.shape
    Console().print(
        f"{rows:,} rows of {width} features; gradients of root-mean-square norm "
        f"{store.gradient_scale:.3g}; written to {out}",
        highlight=False,
    )


def fit(
    activations: ROWS,
    out: Annotated[Path, typer.Argument(help="dictionary to write (.safetensors)")],
    gradients: GRADIENTS = None,
    method: Annotated[Method, typer.Option(help="additive and product are g-SAE")] = "additive",
    units: UNITS = 512,
    k: FIRING = 16,
    beta: BETA = 10.0,
    steps: STEPS = 2500,
    batch: ROWS_AT_ONCE = 1024,
    learning_rate: RATE = 1e-3,
    seed: int = 0,
) -> None:
    """Learn a dictionary of activations: g-SAE, TopK, ReLU + L1, Gated, JumpReLU or PCA."""
    store = _store(activations, gradients)
    made = _empty(method, units, k, beta)
    recipe = SAERecipe(steps, batch, learning_rate)
    with _from(activations, gradients):
        made.fit(
            store,
            recipe=recipe,
            generator=torch.Generator().manual_seed(seed),
            steps=lambda _: _bar(method, range(1, steps + 1)),
        )
    made.save(out)
    _print_report(made, store)
    Console().print(f"written to {out}", highlight=False)


def report(dictionary: DICTIONARY, activations: ROWS, gradients: GRADIENTS = None) -> None:
    """How well a dictionary rebuilds activations, by selection, and how many units are dead."""
    _print_report(load_dictionary(dictionary), _store(activations, gradients))


def faithfulness(
    model: MODEL,
    dictionary: DICTIONARY,
    inputs: INPUTS,
    site: SITE,
    weights: WEIGHTS = None,
    batch: BATCH = 32,
) -> None:
    """Put reconstructions in place of the activations and see what the model loses."""
    network, batches = _model(model, weights), _batches(inputs, batch)
    made = load_dictionary(dictionary)
    with _own(model):
        found = made.faithfulness(network, site, _bar("patch", batches))
    shown = Table(title=f"loss intact {found.mean(found.intact):.4f}, with the mean activation "
                        f"{found.mean(found.ablated):.4f} nats")  # fmt: skip
    for name in ("units selected by", "loss", "rise", "recovered", "KL", "NMSE", "firing"):
        shown.add_column(name, justify="left" if name == "units selected by" else "right")
    for row in found.table().itertuples():
        shown.add_row(
            SELECTIONS[row.selection],  # type: ignore[index]
            *(f"{value:.4f}" for value in (row.loss, row.delta)),
            f"{row.recovered:.1%}",
            *(f"{value:.3g}" for value in (row.kl, row.nmse, row.firing)),
        )
    Console().print(shown)


def curve(
    model: MODEL,
    inputs: INPUTS,
    site: SITE,
    weights: WEIGHTS = None,
    units: UNITS = 512,
    ks: Annotated[str, typer.Option(help="numbers of firing units")] = "8,16,32",
    modes: Annotated[str, typer.Option(help=f"some of {', '.join(MODES)}")] = "topk,additive",
    beta: BETA = 10.0,
    steps: STEPS = 1000,
    batch: ROWS_AT_ONCE = 1024,
    learning_rate: RATE = 1e-3,
    train_fraction: Annotated[float, typer.Option(help="share of the inputs to learn from")] = 0.75,
    out: Annotated[Path | None, typer.Option(help="CSV to write")] = None,
    seed: int = 0,
) -> None:
    """Compare TopK and g-SAE over k on a model: learn on some inputs, patch on the others."""
    sizes = [_whole(text) for text in ks.split(",")]
    chosen: list[Mode] = []
    for name in modes.split(","):
        if name.strip() not in MODES:
            raise DataError("unknown mode", value=name.strip(), expected=", ".join(MODES))
        chosen.append(name.strip())  # type: ignore[arg-type]
    network, batches = _model(model, weights), _batches(inputs, 32)
    learn, judge = _split(batches, train_fraction, inputs, seed)
    console = Console(stderr=True)
    with _own(model):
        store = ActivationStore.from_model(network, site, learn)
        table = pareto_table(
            store, network, site, judge, units, sizes, chosen, beta,
            SAERecipe(steps, batch, learning_rate), seed=seed,
            watch=lambda mode, k: console.print(f"{mode}, k = {k}", highlight=False),
        )  # fmt: skip
    shown = Table("k", "mode", "units selected by", "rise of the loss", "recovered", "NMSE")
    for row in table.itertuples():
        shown.add_row(
            str(row.k), str(row.mode), SELECTIONS[row.selection],  # type: ignore[index]
            f"{row.delta:.4f}", f"{row.recovered:.1%}", f"{row.nmse:.3g}",
        )  # fmt: skip
    Console().print(shown)
    if out is not None:
        write_table(out, table)
        Console().print(f"written to {out}", highlight=False)


def steer(
    model: MODEL,
    dictionary: DICTIONARY,
    inputs: INPUTS,
    site: SITE,
    unit: Annotated[int, typer.Option(min=0, help="unit whose direction is added")],
    strength: STRENGTH = 0.5,
    weights: WEIGHTS = None,
    vocabulary: VOCABULARY = None,
    top: Annotated[int, typer.Option(min=1, help="outputs to list")] = 5,
) -> None:
    """Push a model along one unit: which outputs rise and fall, and against random directions."""
    network, made = _model(model, weights), load_dictionary(dictionary)
    batches = _batches(inputs, 64)
    texts = batches[0][0]
    with _own(model):
        store = ActivationStore.from_model(network, site, batches[:1])
        push = strength * float(torch.as_tensor(store.activations).norm(dim=1).mean())
        if not unit < made.h:
            raise DataError("no such unit", value=unit, expected=f"0 to {made.h - 1}")
        random = torch.randn(32, made.decoder.shape[1], generator=torch.Generator().manual_seed(0))
        directions = torch.cat([made.decoder[unit : unit + 1].detach(), random])
        effects = steering_effects(network, site, texts, directions, push)
        with torch.no_grad():
            before = _last_probabilities(network, texts)
            with made.steer(network, site, unit, push, "last"):
                after = _last_probabilities(network, texts)
    Console().print(
        f"unit {unit}, push of length {push:.3g}, {len(texts)} inputs: KL {effects.kl[0]:.4f} "
        f"nats, change of logits {effects.l2[0]:.3g}; 32 random directions: KL "
        f"{effects.kl[1:].mean():.4f} (largest {effects.kl[1:].max():.4f})",
        highlight=False,
    )
    change = after - before
    words = _words(vocabulary) if vocabulary is not None else [str(n) for n in range(len(change))]
    if len(words) < len(change):
        raise DataError("fewer tokens than outputs", path=vocabulary, value=len(words),
                        expected=str(len(change)))  # fmt: skip
    shown = Table("output", "probability before", "after", "change")
    order = change.argsort(descending=True)
    most = min(top, len(order) // 2)
    for place in [*order[:most].tolist(), *order[len(order) - most :].tolist()]:
        shown.add_row(
            words[place], f"{before[place]:.4f}", f"{after[place]:.4f}", f"{change[place]:+.4f}"
        )
    Console().print(shown)


def examples(
    dictionary: DICTIONARY,
    activations: ROWS,
    unit: Annotated[int, typer.Option(min=0, help="unit to look at")],
    gradients: GRADIENTS = None,
    inputs: Annotated[
        Path | None, typer.Option(help="npz of the inputs, to show what is around each place")
    ] = None,
    vocabulary: VOCABULARY = None,
    count: Annotated[int, typer.Option(min=1)] = 10,
) -> None:
    """Where a unit fires most: row, input and position, and the tokens before it."""
    made, store = load_dictionary(dictionary), _store(activations, gradients)
    _same_width(made, store)
    found = made.top_examples(unit, store, count=count)
    tokens = _tokens(inputs) if inputs is not None else None
    words = _words(vocabulary) if vocabulary is not None else None
    shown = Table("row", "input", "position", "value", "tokens up to there")
    for row, value in found:
        place = ["", ""]
        around = ""
        if store.places is not None:
            first, position = (int(number) for number in store.places[row])
            place = [str(first), str(position)]
            around = _around(tokens, first, position, words)
        shown.add_row(f"{row:,}", *place, f"{value:.4g}", around)
    Console().print(shown)
    if not found:
        Console().print(f"unit {unit} never fires on these rows", highlight=False)


def _model(reference: str, weights: Path | None) -> nn.Module:
    network = own_module(reference)
    if weights is not None:
        load_weights(weights, network)
    return network


@contextmanager
def _own(model: str) -> Iterator[None]:
    """What a person's model raises, said in one line."""
    try:
        yield
    except PeiraError:
        raise
    except ValueError as error:
        raise DataError(str(error)) from error
    except (RuntimeError, IndexError, TypeError) as error:
        raise DataError(
            f"{model} fails on these inputs: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error


@contextmanager
def _from(activations: Path, gradients: Path | None) -> Iterator[None]:
    """Errors about numbers say which file these are in."""
    try:
        yield
    except DataError as error:
        if error.path is not None:
            raise
        wrong = gradients if gradients and "gradients" in str(error) else activations
        raise DataError(f"{wrong}: {error}") from error


def _tokens(path: Path) -> Tensor:
    return _tensor(read_npz(path, ["inputs"])["inputs"], path, "inputs")


def _tensor(values: np.ndarray[Any, Any], path: Path, name: str) -> Tensor:
    if values.dtype.kind not in "fiu":
        raise DataError(f"array {name!r}", path=path, value=str(values.dtype), expected="numbers")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        place = np.argwhere(~np.isfinite(values))[0]
        raise DataError(f"array {name!r}: not finite", path=path, row=int(place[0]) + 1)
    return torch.from_numpy(values.astype(np.float32 if values.dtype.kind == "f" else np.int64))


def _batches(path: Path, size: int) -> Batches:
    """Inputs and targets of an npz file, `size` at a time."""
    arrays = read_npz(path, ["inputs"])
    inputs = _tensor(arrays["inputs"], path, "inputs")
    if not len(inputs):
        raise DataError("no inputs", path=path)
    if "targets" not in arrays:
        if inputs.is_floating_point() or inputs.dim() != 2 or inputs.shape[1] < 2:
            raise DataError(
                "no array 'targets'", path=path, value=tuple(inputs.shape),
                expected="targets, or inputs of whole-number tokens (texts, at least 2)",
            )  # fmt: skip
        return list(token_batches(inputs, size))
    targets = _tensor(arrays["targets"], path, "targets")
    if len(targets) != len(inputs):
        raise DataError("inputs and targets differ in number", path=path,
                        value=f"{len(inputs)} and {len(targets)}")  # fmt: skip
    if targets.is_floating_point():
        raise DataError("array 'targets'", path=path, value="float", expected="class numbers")
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def _split(batches: Batches, share: float, path: Path, seed: int) -> tuple[Batches, Batches]:
    """Some inputs to learn from and the others to judge on."""
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    count = int(share * len(inputs))
    if not 0 < count < len(inputs):
        raise DataError("nothing to learn from, or to judge on", path=path, value=share,
                        expected="a train fraction between 0 and 1, and more inputs")  # fmt: skip
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    parts = order[:count], order[count:]
    return tuple(  # type: ignore[return-value]
        list(zip(inputs[part].split(32), targets[part].split(32), strict=True)) for part in parts
    )


def _store(activations: Path, gradients: Path | None) -> ActivationStore:
    if activations.suffix != ".npy":
        if gradients is not None:
            raise DataError("gradients are in the same file", path=activations,
                            expected=".npy activations beside --gradients")  # fmt: skip
        return ActivationStore.load(activations)
    return ActivationStore(
        read_npy(activations), None if gradients is None else _gradients(gradients)
    )


def _gradients(path: Path) -> Rows:
    if path.suffix != ".safetensors":
        return read_npy(path)
    tensors, _ = read_tensors(path)
    if "gradients" not in tensors:
        raise DataError("no tensor 'gradients'", path=path, value=sorted(tensors))
    return tensors["gradients"]


def _empty(method: Method, units: int, k: int, beta: float) -> Dictionary:
    if method == "pca":
        return PCADictionary(k)
    if method in MODES:
        return GSAE(units, k, beta, method)  # type: ignore[arg-type]
    kinds = {"relu": ReLUSAE, "gated": GatedSAE, "jumprelu": JumpReLUSAE}
    return kinds[method](units, k)


def _same_width(made: Dictionary, store: ActivationStore) -> None:
    if made.d != store.activations.shape[1]:
        raise DataError("activations of another width than the dictionary",
                        value=store.activations.shape[1], expected=str(made.d))  # fmt: skip


def _print_report(made: Dictionary, store: ActivationStore) -> None:
    _same_width(made, store)
    shown = Table("units selected by", "NMSE", "firing on a row", "units that never fire")
    hints: list[tuple[str, ActivationStore]] = [
        (SELECTIONS["none"], ActivationStore(store.activations))
    ]
    if made.uses_gradient and store.gradients is not None:
        hints += [
            (SELECTIONS["gradient"], store),
            (SELECTIONS["shuffled"], store.shuffled(torch.Generator().manual_seed(0))),
        ]
    for name, seen in hints:
        shown.add_row(name, *_rebuilt(made, seen))
    Console().print(shown)


def _rebuilt(made: Dictionary, store: ActivationStore) -> Sequence[str]:
    error = spread = 0.0
    fired = torch.zeros(made.h, dtype=torch.bool)
    firing = 0
    for first, code in made.codes(store):
        rows = take(store.activations, slice(first, first + 8192))
        dense = code.dense(made.h) if isinstance(code, SparseCode) else code
        with torch.no_grad():
            error += float((rows - made.decode(code)).square().sum())
        spread += float((rows - made.mean).square().sum())
        fired |= (dense != 0).any(0)
        firing += int((dense != 0).sum())
    dead = f"{int((~fired).sum()):,} of {made.h:,}"
    return f"{error / spread:.4f}", f"{firing / len(store):.2f}", dead


def _last_probabilities(network: nn.Module, inputs: Tensor) -> Tensor:
    """Mean over inputs of the probabilities at the last place."""
    outputs = network.eval()(inputs)
    last = outputs if outputs.dim() == 2 else outputs.flatten(1, -2)[:, -1]
    found: Tensor = last.softmax(-1).mean(0)
    return found


def _words(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError("no such file", path=path)
    return path.read_text(encoding="utf-8").split("\n")


def _around(tokens: Tensor | None, first: int, position: int, words: list[str] | None) -> str:
    if tokens is None:
        return ""
    if first >= len(tokens):
        raise DataError("fewer inputs than the activations are from", value=len(tokens),
                        expected=f"more than {first}")  # fmt: skip
    if tokens.is_floating_point():
        return " ".join(f"{value:.3g}" for value in tokens[first].flatten()[:8].tolist())
    numbers = tokens[first].flatten()[max(0, position - 15) : position + 1].tolist()
    if words is None:
        return " ".join(map(str, numbers))
    if max(numbers) >= len(words):
        raise DataError("a token beyond the vocabulary", value=max(numbers),
                        expected=f"below {len(words)}")  # fmt: skip
    joint = "" if all(len(word) <= 1 for word in words) else " "
    return joint.join(words[number] for number in numbers)


def _bar(title: str, steps: Iterable[Any]) -> Iterator[Any]:
    total = len(steps) if isinstance(steps, Sequence | range) else None
    yield from track(steps, title, total=total, console=Console(stderr=True))


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise DataError("not a whole number", value=text, expected="for instance 8,16") from error
