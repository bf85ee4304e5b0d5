"""Does the network still do its work on the dictionary's reconstruction? Patching and steering."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from peira.data.errors import DataError
from peira.explain.g_sae.dictionary import Dictionary, SparseCode
from peira.explain.g_sae.store import (
    IGNORED,
    LossFn,
    Probed,
    channels_first,
    channels_last,
    cross_entropy_loss,
    probe,
)
from peira.nn import evaluating, replace_output

if TYPE_CHECKING:
    import pandas as pd

Selection = Literal["gradient", "none", "predicted", "shuffled"]
# What the units are selected with at inference. Only "gradient" knows the label.
SELECTIONS: dict[Selection, str] = {
    "none": "no gradient: the largest activations",
    "gradient": "gradient of the loss (knows the label)",
    "predicted": "gradient of the loss of the network's own prediction (no label)",
    "shuffled": "gradient of another token",
}


@dataclass(frozen=True)
class Patched:
    """What one reconstruction did to the network.

    Attributes:
        losses: (inputs, places) of the patched network.
        kl: mean KL(intact outputs || patched outputs), nats.
        nmse: squared error over squared deviation from the mean.
        firing: units that fire per row.
    """

    losses: Float[Tensor, "inputs places"]
    kl: float
    nmse: float
    firing: float


@dataclass(frozen=True)
class Faithfulness:
    """The network's loss, intact and with its activations replaced.

    Attributes:
        intact: (inputs, places) losses of the network as it is.
        ablated: the same with every activation replaced by the mean of the training set.
        tokens: places that count, all but padding (target -100, loss 0).
        patched: way of selecting units -> what the reconstruction did; dictionaries that use no
            gradient have "none" alone.
    """

    intact: Float[Tensor, "inputs places"]
    ablated: Float[Tensor, "inputs places"]
    tokens: int
    patched: dict[Selection, Patched]

    @property
    def best_known(self) -> Selection:
        """The selection that the method publishes: by gradient where it uses one."""
        return "gradient" if "gradient" in self.patched else "none"

    def mean(self, losses: Float[Tensor, "inputs places"]) -> float:
        """Mean loss of the places that count, nats."""
        return float(losses.double().sum() / self.tokens)

    def delta(self, selection: Selection) -> float:
        """Rise of the mean loss by the reconstruction, nats."""
        return self.mean(self.patched[selection].losses) - self.mean(self.intact)

    def recovered(self, selection: Selection) -> float:
        """(loss ablated - loss patched) / (loss ablated - loss intact): 1 is faithful."""
        lost = self.mean(self.ablated) - self.mean(self.intact)
        return 1 - self.delta(selection) / lost if lost else float("nan")

    def table(self) -> pd.DataFrame:
        """One row for each selection."""
        import pandas as pd

        rows = [
            {
                "selection": name,
                "loss": self.mean(found.losses),
                "delta": self.delta(name),
                "recovered": self.recovered(name),
                "kl": found.kl,
                "nmse": found.nmse,
                "firing": found.firing,
            }
            for name, found in self.patched.items()
        ]
        return pd.DataFrame(rows)


@dataclass
class _Sums:
    losses: list[Tensor]
    kl: float = 0.0
    outputs: int = 0
    squares: float = 0.0
    spread: float = 0.0
    firing: float = 0.0
    rows: int = 0


def faithfulness(
    dictionary: Dictionary,
    model: nn.Module,
    site: str,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_fn: LossFn | None = None,
    seed: int = 0,
) -> Faithfulness:
    """Replace the activations inside the running network and measure what it loses.

    Each batch runs intact, with the mean activation, and with the reconstruction: selected without
    a gradient and, where the dictionary uses one, with the gradient of the loss, of the loss of
    the network's own most likely outputs (which needs no label), and of another token.

    Args:
        dictionary: fitted at this site.
        model: any network; it is not changed.
        site: the module whose output is replaced.
        batches: pairs of inputs and targets, other than those it was fitted on.
        loss_fn: (outputs, targets) -> a loss for each token or sample; cross entropy without.
        seed: of the shuffle.

    Raises `DataError` and ValueError as `probe`, and for no batches.
    """
    if dictionary.d is None:
        raise DataError("the dictionary was not fitted")
    loss_fn = loss_fn or cross_entropy_loss
    generator = torch.Generator().manual_seed(seed)
    names: list[Selection] = list(SELECTIONS) if dictionary.uses_gradient else ["none"]
    intact, ablated = _Sums([]), _Sums([])
    sums = {name: _Sums([]) for name in names}
    for inputs, targets in batches:
        seen = probe(model, site, inputs, targets, loss_fn)
        if channels_last(seen.activations).shape[-1] != dictionary.d:
            raise DataError(
                f"{site!r} has another width than the dictionary",
                value=channels_last(seen.activations).shape[-1], expected=str(dictionary.d),
            )  # fmt: skip
        intact.losses.append(_by_input(seen.losses, len(inputs)))
        padding = seen.losses.shape == targets.shape and not targets.is_floating_point()
        counts = targets != IGNORED if padding else torch.ones_like(seen.losses, dtype=torch.bool)
        intact.rows += int(counts.sum())
        run = _Patcher(dictionary, model, site, inputs, targets, loss_fn, counts)
        run.replaced(dictionary.mean.expand_as(channels_last(seen.activations)), ablated)
        for name in names:
            hint = _hint(name, seen.gradients, model, site, inputs, loss_fn, generator)
            run.reconstructed(hint, sums[name], seen)
    if not intact.losses:
        raise DataError("no batches")
    patched = {
        name: Patched(
            torch.cat(total.losses),
            total.kl / total.outputs,
            total.squares / total.spread,
            total.firing / total.rows,
        )
        for name, total in sums.items()
    }
    return Faithfulness(torch.cat(intact.losses), torch.cat(ablated.losses), intact.rows, patched)


@dataclass
class _Patcher:
    """The network on one batch, with another tensor at the site."""

    dictionary: Dictionary
    model: nn.Module
    site: str
    inputs: Tensor
    targets: Tensor
    loss_fn: LossFn
    counts: Tensor

    def replaced(self, rows: Tensor, total: _Sums) -> Tensor:
        """Run with `rows` (features last) at the site; add up the losses."""
        with (
            evaluating(self.model),
            replace_output(self.model, self.site, lambda x: channels_first(rows, x).contiguous()),
        ):
            outputs = self.model(self.inputs)
            losses = self.loss_fn(outputs, self.targets)
        total.losses.append(_by_input(losses, len(self.inputs)))
        return outputs

    def reconstructed(self, hint: Tensor | None, total: _Sums, seen: Probed) -> None:
        """Run with the reconstruction, units selected with `hint`; add up what it does."""
        x = channels_last(seen.activations)
        rows = x.flatten(0, -2)
        with torch.no_grad():
            code = self.dictionary.encode(
                rows, None if hint is None else channels_last(hint).reshape(rows.shape)
            )
            rebuilt = self.dictionary.decode(code)
        outputs = self.replaced(rebuilt.reshape(x.shape), total)
        values = code.values if isinstance(code, SparseCode) else code
        moved = self._counted(divergence(seen.outputs, outputs))
        total.kl += float(moved.sum())
        total.outputs += len(moved)
        errors, deviations, firing = (
            self._counted(part.reshape(x.shape[:-1]))
            for part in (
                (rows - rebuilt).square().sum(1),
                (rows - self.dictionary.mean).square().sum(1),
                (values != 0).sum(1),
            )
        )
        total.squares += float(errors.sum())
        total.spread += float(deviations.sum())
        total.firing += float(firing.sum())
        total.rows += len(firing)

    def _counted(self, values: Tensor) -> Tensor:
        """Values of the places that are no padding, where values and targets correspond."""
        return values[self.counts] if values.shape == self.counts.shape else values.flatten()


def _hint(
    selection: Selection,
    gradients: Tensor,
    model: nn.Module,
    site: str,
    inputs: Tensor,
    loss_fn: LossFn,
    generator: torch.Generator,
) -> Tensor | None:
    if selection == "none":
        return None
    if selection == "gradient":
        return gradients
    if selection == "predicted":
        return _own_gradient(model, site, inputs, loss_fn)
    last = channels_last(gradients)
    rows = last.flatten(0, -2)
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    return channels_first(rows[order].reshape(last.shape), gradients)


def _own_gradient(model: nn.Module, site: str, inputs: Tensor, loss_fn: LossFn) -> Tensor:
    """Gradients where the network's most likely outputs stand for the labels."""

    def own(outputs: Tensor, _: Tensor) -> Tensor:
        return loss_fn(outputs, outputs.detach().argmax(-1))

    return probe(model, site, inputs, inputs, own).gradients


def divergence(
    intact: Float[Tensor, "*places classes"], patched: Float[Tensor, "*places classes"]
) -> Float[Tensor, "*places"]:
    """KL(softmax of the first || softmax of the second), nats, over the last dimension."""
    return F.kl_div(
        patched.log_softmax(-1), intact.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)


def _by_input(losses: Tensor, inputs: int) -> Tensor:
    if losses.numel() % inputs:
        raise DataError("losses do not divide among the inputs", value=tuple(losses.shape),
                        expected=f"a multiple of {inputs}")  # fmt: skip
    return losses.reshape(inputs, -1).cpu()


def bootstrap_difference(
    a: Float[Tensor, "inputs places"],
    b: Float[Tensor, "inputs places"],
    seed: int = 0,
    draws: int = 2000,
) -> tuple[float, float, float]:
    """Mean of a - b, and its 95% interval, from resampling whole inputs.

    Tokens of one text are not independent, so texts are drawn, not tokens.
    """
    differences = (a - b).double().mean(1).numpy()
    rng = np.random.default_rng(seed)
    means = differences[rng.integers(len(differences), size=(draws, len(differences)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)


def steered(
    model: nn.Module,
    site: str,
    push: Float[Tensor, " d"],
    where: Literal["all", "last"] = "all",
) -> AbstractContextManager[None]:
    """While the block runs, `push` is added to the site's output, at all or the last tokens."""
    return replace_output(
        model, site, lambda x: channels_first(_pushed(channels_last(x), push, where), x)
    )


def _pushed(x: Tensor, push: Tensor, where: str) -> Tensor:
    """x (batch, ..., d) plus a push, (d,) or (batch, d)."""
    if push.dim() == 2:
        push = push.reshape(len(x), *[1] * (x.dim() - 2), -1)
    if where == "all" or x.dim() < 3:
        return x + push
    moved = x.clone()
    moved[:, -1] += push[:, 0] if push.dim() == 3 else push
    return moved


@dataclass(frozen=True)
class Steering:
    """Effect of each direction on the outputs, mean over contexts.

    Attributes:
        kl: KL(intact || steered), nats.
        l2: length of the change of the logits.
    """

    kl: Float[Tensor, " directions"]
    l2: Float[Tensor, " directions"]


def steering_effects(
    model: nn.Module,
    site: str,
    inputs: Float[Tensor, "contexts ..."],
    directions: Float[Tensor, "n d"],
    strength: float,
    where: Literal["all", "last"] = "last",
    at_once: int = 16,
) -> Steering:
    """Push the activations along each direction by the same length; how much do outputs change?

    Args:
        model, site: the network and the module whose output is pushed.
        inputs: contexts; the effect is read at the last token where outputs have a time.
        directions: each is scaled to length 1.
        strength: length of the push, in the unit of the activations.
        where: push at every token or the last.
        at_once: directions that run in one pass.
    """
    pushes = strength * F.normalize(directions.detach(), dim=1)
    count = len(inputs)
    kl, l2 = [], []
    with evaluating(model):
        intact = _last(model(inputs))
        for part in pushes.split(at_once):
            tiled = inputs.repeat(len(part), *[1] * (inputs.dim() - 1))
            push = part.repeat_interleave(count, 0)
            with steered(model, site, push, where):
                moved = _last(model(tiled)).unflatten(0, (len(part), count))
            kl.append(divergence(intact.expand_as(moved), moved).mean(1))
            l2.append((moved - intact).norm(dim=-1).mean(1))
    return Steering(torch.cat(kl).cpu(), torch.cat(l2).cpu())


def _last(outputs: Tensor) -> Float[Tensor, "batch classes"]:
    return outputs if outputs.dim() == 2 else outputs.flatten(1, -2)[:, -1]
