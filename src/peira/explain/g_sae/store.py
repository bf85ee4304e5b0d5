"""A network's activations at one place and the gradients of its loss there."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.lib.format import open_memmap
from torch import Tensor, nn
from torch.nn import functional as F

from peira.data.arrays import read_tensors, write_tensors
from peira.data.errors import DataError
from peira.engine.files import make_folder, read_json, write_json
from peira.nn import evaluating, replace_output

Rows = Tensor | np.ndarray[Any, Any]
# (outputs of the network, targets) -> one loss for each token or sample.
LossFn = Callable[[Tensor, Tensor], Tensor]
Precision = Literal["float16", "float32"]
IGNORED = -100


def cross_entropy_loss(
    outputs: Float[Tensor, "*places classes"], targets: Int[Tensor, "*places"]
) -> Float[Tensor, "*places"]:
    """Cross entropy of each token or sample, nats; 0 where the target is -100."""
    flat = F.cross_entropy(
        outputs.flatten(0, -2), targets.flatten(), reduction="none", ignore_index=IGNORED
    )
    return flat.reshape(targets.shape)


def token_batches(
    tokens: Int[Tensor, "n time"], batch: int = 32
) -> Iterator[tuple[Int[Tensor, "batch time"], Int[Tensor, "batch time"]]]:
    """Next-token prediction: (all tokens but the last, all but the first), `batch` at a time."""
    for part in tokens.split(batch):
        yield part[:, :-1], part[:, 1:]


class Probed(NamedTuple):
    """One batch, seen at one place of the network.

    Attributes:
        outputs: of the network.
        losses: one for each token or sample, as the loss function shapes them.
        activations: at the place, its own shape.
        gradients: of the SUM of the losses by the activations, same shape.
    """

    outputs: Tensor
    losses: Tensor
    activations: Tensor
    gradients: Tensor


def probe(
    model: nn.Module, site: str, inputs: Tensor, targets: Tensor, loss_fn: LossFn | None = None
) -> Probed:
    """Activations at a module's output, and how the summed loss of the batch changes with them.

    The network runs in evaluation mode; the part before the module is not differentiated.

    Raises:
        ValueError: no such module, or one whose output is no tensor (see `peira.nn.capture`).
        DataError: integer activations, a loss that is one number for many tokens (a mean would
            divide the gradient by the batch), one that does not depend on the activations, or a
            module that runs more than once.
    """
    leaves: list[Tensor] = []

    def cut(output: Tensor) -> Tensor:
        if not output.is_floating_point():
            raise DataError(f"the output of {site!r}", value=str(output.dtype),
                            expected="floating-point numbers")  # fmt: skip
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    with evaluating(model), torch.enable_grad(), replace_output(model, site, cut):
        outputs = model(inputs)
        if not isinstance(outputs, Tensor):
            raise DataError("the network's output", value=type(outputs).__name__,
                            expected="a tensor; wrap it so that it returns its logits")  # fmt: skip
        losses = (loss_fn or cross_entropy_loss)(outputs, targets)
        if len(leaves) != 1:
            raise DataError(f"{site!r} runs {len(leaves)} times in a pass", expected="once")
        if losses.dim() == 0:
            raise DataError(
                "the loss is one number for the whole batch", value=float(losses.detach()),
                expected="one for each token or sample (reduction='none')",
            )  # fmt: skip
        gradients = None
        if losses.requires_grad:
            (gradients,) = torch.autograd.grad(losses.sum(), leaves[0], allow_unused=True)
    if gradients is None:
        raise DataError(
            f"the loss does not depend on the output of {site!r}: it is detached, computed under "
            "no_grad, or the output is not used"
        )
    return Probed(outputs.detach(), losses.detach(), leaves[0].detach(), gradients)


@dataclass(frozen=True)
class ActivationStore:
    """Rows of activations and of gradients, in memory or memory-mapped.

    Attributes:
        activations: (rows, d).
        gradients: (rows, d), of the summed loss, divided by `gradient_scale`; None without.
        gradient_scale: root-mean-square norm of the gradients as the network gave them.
        places: (rows, 2): number of the input, and position in it, that each row is from.
    """

    activations: Rows
    gradients: Rows | None = None
    gradient_scale: float = 1.0
    places: Rows | None = None

    def __len__(self) -> int:
        return len(self.activations)

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        site: str,
        batches: Iterable[tuple[Tensor, Tensor]],
        loss_fn: LossFn | None = None,
        folder: str | Path | None = None,
        precision: Precision = "float32",
    ) -> Self:
        """Run a network and keep what its module `site` puts out, with the gradients there.

        Args:
            model: any network; it is not changed.
            site: name of a module whose output is one tensor, features last (four-dimensional
                outputs count as images, channels second).
            batches: pairs of inputs and targets; `token_batches` makes them from text.
            loss_fn: (outputs, targets) -> a loss for each token or sample; cross entropy without.
            folder: where to write memory-mapped files; without it rows stay in memory.
            precision: of the stored numbers.

        Tokens whose target is -100 (padding) are left out where targets and rows correspond.

        Raises `DataError` and ValueError as `probe`, for no batches, gradients that are zero
        everywhere, and numbers beyond the precision.
        """
        with tempfile.TemporaryDirectory(dir=_made(folder)) as scratch:
            spool = _Spool(Path(scratch) if folder is not None else None)
            first = 0
            for inputs, targets in batches:
                spool.add(probe(model, site, inputs, targets, loss_fn), targets, first)
                first += len(inputs)
            return cls(**spool.finish(Path(folder) if folder is not None else None, precision))

    def shuffled(self, generator: torch.Generator | None = None) -> ActivationStore:
        """The same with gradients of other rows: a control."""
        if self.gradients is None:
            raise DataError("the store has no gradients")
        order = torch.randperm(len(self), generator=generator)
        mixed = self.gradients[order if isinstance(self.gradients, Tensor) else order.numpy()]
        return ActivationStore(self.activations, mixed, self.gradient_scale, self.places)

    def save(self, path: str | Path) -> None:
        """Write everything to one .safetensors file."""
        tensors = {name: torch.as_tensor(value) for name, value in self._arrays().items()}
        write_tensors(Path(path), tensors, {"gradient_scale": repr(self.gradient_scale)})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a .safetensors file of `save`, or a folder of `from_model` (memory-mapped).

        Raises `DataError` for what is neither, or has no `activations`.
        """
        path = Path(path)
        if path.is_dir():
            about = read_json(path / "store.json") or {}
            files = {name: path / f"{name}.npy" for name in ("activations", "gradients", "places")}
            found: dict[str, Any] = {
                name: _mapped(file) for name, file in files.items() if file.is_file()
            }
        else:
            found, about = read_tensors(path)  # type: ignore[assignment]
        if "activations" not in found:
            raise DataError("no activations", path=path, value=sorted(found),
                            expected="arrays activations, gradients")  # fmt: skip
        known = {name: found.get(name) for name in ("activations", "gradients", "places")}
        return cls(**known, gradient_scale=float(about.get("gradient_scale", 1.0)))  # type: ignore[arg-type]

    def _arrays(self) -> dict[str, Rows]:
        named = {
            "activations": self.activations,
            "gradients": self.gradients,
            "places": self.places,
        }
        return {name: value for name, value in named.items() if value is not None}


class _Spool:
    """Rows as they come, in memory or in raw files; scaled and written when all are there."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.parts: dict[str, list[np.ndarray[Any, Any]]] = {
            name: [] for name in ("activations", "gradients", "places")
        }
        self.rows, self.width, self.squares = 0, 0, 0.0

    def add(self, seen: Probed, targets: Tensor, first: int) -> None:
        activations = channels_last(seen.activations)
        inputs = len(activations)
        count = activations[..., 0].numel() // inputs
        rows, gradients = (
            values.flatten(0, -2).float().cpu()
            for values in (activations, channels_last(seen.gradients))
        )
        places = torch.stack(
            [
                torch.arange(first, first + inputs).repeat_interleave(count),
                torch.arange(count).repeat(inputs),
            ],
            dim=1,
        )
        if targets.shape == activations.shape[:-1] and not targets.is_floating_point():
            kept = targets.flatten().cpu() != IGNORED
            rows, gradients, places = rows[kept], gradients[kept], places[kept]
        self.width = rows.shape[1]
        self.rows += len(rows)
        self.squares += float(gradients.double().square().sum())
        for name, values in (
            ("activations", rows), ("gradients", gradients), ("places", places)
        ):  # fmt: skip
            if self.folder is None:
                self.parts[name].append(values.numpy())
            else:
                with open(self.folder / name, "ab") as file:
                    file.write(values.numpy().tobytes())

    def finish(self, folder: Path | None, precision: Precision) -> dict[str, Any]:
        if not self.rows:
            raise DataError("no batches, or no token with a target")
        scale = math.sqrt(self.squares / self.rows)
        if scale == 0:
            raise DataError("all gradients are zero: the loss does not change with the activations")
        made = {
            name: self._whole(name, folder, precision, 1 / scale if name == "gradients" else 1.0)
            for name in self.parts
        }
        if folder is not None:
            write_json(folder / "store.json", {"gradient_scale": scale, "rows": self.rows})
        return {**made, "gradient_scale": scale}

    def _whole(self, name: str, folder: Path | None, precision: Precision, factor: float) -> Rows:
        kind = np.dtype(np.int64) if name == "places" else np.dtype(precision)
        if folder is None or self.folder is None:
            return torch.from_numpy(_scaled(np.concatenate(self.parts[name]), factor, kind, name))
        raw = np.dtype(np.int64) if name == "places" else np.dtype(np.float32)
        shape = (self.rows, 2 if name == "places" else self.width)
        source = np.memmap(self.folder / name, raw, "r", shape=shape)
        target = open_memmap(folder / f"{name}.npy", "w+", kind, shape)
        for begin in range(0, self.rows, 65_536):
            part = slice(begin, begin + 65_536)
            target[part] = _scaled(np.asarray(source[part]), factor, kind, name)
        target.flush()
        return _mapped(folder / f"{name}.npy")


def _scaled(
    values: np.ndarray[Any, Any], factor: float, kind: np.dtype[Any], name: str
) -> np.ndarray[Any, Any]:
    if kind.kind == "i":
        return values
    largest = float(np.abs(values).max()) * factor
    if largest > float(np.finfo(kind).max):
        raise DataError(f"{name} beyond {kind}", value=largest, expected="precision float32")
    return (values * factor).astype(kind)


def _mapped(path: Path) -> np.ndarray[Any, Any]:
    try:
        found: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"not a readable .npy file ({error})", path=path) from error
    return found


def _made(folder: str | Path | None) -> Path | None:
    if folder is None:
        return None
    make_folder(Path(folder))
    return Path(folder)


def take(rows: Rows, index: slice | Tensor, like: Tensor | None = None) -> Float[Tensor, "n d"]:
    """Some rows of a tensor or (memory-mapped) array, in single precision, where `like` is."""
    if isinstance(rows, Tensor):
        part = rows[index]
    else:
        part = torch.from_numpy(
            np.array(rows[index if isinstance(index, slice) else index.numpy()])
        )
    part = part.float()
    return part if like is None else part.to(like.device)


def channels_last(x: Tensor) -> Float[Tensor, "... d"]:
    """Features last: of images (batch, channels, height, width) the channels are the features."""
    return x.movedim(1, -1) if x.dim() == 4 else x


def channels_first(rows: Float[Tensor, "... d"], like: Tensor) -> Tensor:
    """Back to the shape of `like`, from what `channels_last` made of it."""
    return rows.movedim(-1, 1) if like.dim() == 4 else rows
