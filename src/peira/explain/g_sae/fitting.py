"""How a dictionary is learnt: checks, initial values, the training loop; end-to-end training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from peira.data.errors import DataError
from peira.explain.g_sae.dictionary import CHUNK, GSAE, Dictionary, Steps
from peira.explain.g_sae.store import ActivationStore, Rows, channels_first, channels_last, take
from peira.nn import capture, evaluating, replace_output

Device = torch.device | str | None
# Rows that the geometric median is taken of, as in Gao et al.'s code.
MEDIAN_ROWS = 32_768


@dataclass(frozen=True)
class SAERecipe:
    """How a dictionary is trained.

    Attributes:
        steps: batches.
        batch: rows of a batch, drawn with replacement.
        learning_rate: of Adam, on activations of mean squared deviation 1.
        clip: largest norm of the gradient.
        dead_after: batches without firing after which a unit counts as dead.
        aux_weight: of the auxiliary loss AuxK, 1/32 in Gao et al. (2024).
    """

    steps: int = 2500
    batch: int = 4096
    learning_rate: float = 1e-3
    clip: float = 1.0
    dead_after: int = 100
    aux_weight: float = 1 / 32

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "learning_rate", "clip", "dead_after"):
            if not getattr(self, name) > 0:
                raise DataError(name, value=getattr(self, name), expected="a positive number")


def fit(
    dictionary: Dictionary,
    x: Rows | ActivationStore,
    g: Rows | None = None,
    recipe: SAERecipe | None = None,
    generator: torch.Generator | None = None,
    steps: Steps | None = None,
    device: Device = None,
) -> None:
    """`Dictionary.fit`."""
    recipe = recipe or SAERecipe()
    rows, gradients, unit = checked_rows(x, g, dictionary.uses_gradient)
    scale = _begin(dictionary, rows, gradients, unit, recipe, generator, device)

    def loss() -> Tensor:
        drawn = torch.randint(len(rows), (recipe.batch,), generator=generator)
        seen = take(rows, drawn, dictionary.decoder) / scale
        hint = None if gradients is None else take(gradients, drawn, dictionary.decoder) * unit
        return dictionary.training_loss(seen, hint, recipe)

    _train(dictionary, loss, scale, recipe, steps)


def fit_end_to_end(
    dictionary: Dictionary,
    model: nn.Module,
    site: str,
    inputs: Tensor,
    x: Rows | ActivationStore,
    recipe: SAERecipe | None = None,
    generator: torch.Generator | None = None,
    steps: Steps | None = None,
) -> None:
    """Learn a dictionary by what the network puts out when it is in place: KL alone.

    Loss: mean over outputs of KL(p of the intact network || p of the patched one); the activations
    need not be rebuilt (Braun et al. 2024, arXiv 2405.12241, "e2e").

    Args:
        dictionary: without gradients in its selection.
        model, site: the network, which is not changed, and the module whose output is replaced.
        inputs: (n, ...), of which `recipe.batch` rows' worth are drawn for a step.
        x: activations at the site, for the initial values.
    """
    recipe = recipe or SAERecipe()
    device = next((weight.device for weight in model.parameters()), None)
    scale = start(dictionary, x, None, recipe, generator, device)
    per_input = _rows_of_one(model, site, inputs[:1].to(dictionary.decoder.device))
    drawn_inputs = max(1, recipe.batch // per_input)

    def patch(seen: Tensor) -> Tensor:
        return channels_first(dictionary(channels_last(seen) / scale) * scale, seen)

    def loss() -> Tensor:
        some = inputs[torch.randint(len(inputs), (drawn_inputs,), generator=generator)]
        some = some.to(dictionary.decoder.device)
        with evaluating(model):
            intact = model(some).log_softmax(-1)
            with torch.enable_grad(), replace_output(model, site, patch):
                patched = model(some).log_softmax(-1)
        return F.kl_div(patched, intact, log_target=True, reduction="none").sum(-1).mean()

    asked = {weight: weight.requires_grad for weight in model.parameters()}
    model.requires_grad_(False)
    try:
        _train(dictionary, loss, scale, recipe, steps)
    finally:
        for weight, wanted in asked.items():
            weight.requires_grad_(wanted)


def start(
    dictionary: Dictionary,
    x: Rows | ActivationStore,
    g: Rows | None = None,
    recipe: SAERecipe | None = None,
    generator: torch.Generator | None = None,
    device: Device = None,
) -> float:
    """Initial values: random directions, bias at the geometric median; not yet trained.

    Returns:
        Root-mean-square distance of the rows to their mean, by which training divides them.
    """
    rows, gradients, unit = checked_rows(x, g, dictionary.uses_gradient)
    return _begin(dictionary, rows, gradients, unit, recipe or SAERecipe(), generator, device)


def _begin(
    dictionary: Dictionary,
    rows: Rows,
    gradients: Rows | None,
    unit: float,
    recipe: SAERecipe,
    generator: torch.Generator | None,
    device: Device,
) -> float:
    dictionary.least_batch(recipe)
    mean, spread = moments(rows)
    if not spread > 0:
        raise DataError("all activations are equal", value=spread)
    dictionary.build(rows.shape[1], generator)
    dictionary.to(device or (rows.device if isinstance(rows, Tensor) else "cpu"))
    # Fresh parameters are for rows of length 1.
    dictionary.rescale(spread)
    some: slice | Tensor = slice(0, len(rows))
    if len(rows) > MEDIAN_ROWS:
        some = torch.randperm(len(rows), generator=generator)[:MEDIAN_ROWS]
    with torch.no_grad():
        dictionary.mean.copy_(mean)
        dictionary.b_pre.copy_(geometric_median(take(rows, some, dictionary.decoder)))
    if isinstance(dictionary, GSAE):
        # Without gradients in training, a store still tells their unit for `selecting`.
        dictionary.gradient_scale.fill_(unit * (1 if gradients is None else rms_norm(gradients)))
    return spread


def _train(
    dictionary: Dictionary,
    loss: Callable[[], Tensor],
    scale: float,
    recipe: SAERecipe,
    steps: Steps | None,
) -> None:
    # Adam's step has a fixed size: it must not depend on the unit of the activations.
    dictionary.rescale(1 / scale)
    parameters = list(dictionary.parameters())
    fused = dictionary.decoder.device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(parameters, lr=recipe.learning_rate, eps=6.25e-10, fused=fused)
    plain = range(1, recipe.steps + 1)
    for _ in steps([dictionary, optimizer]) if steps else plain:
        found = loss()
        optimizer.zero_grad()
        found.backward()
        _remove_parallel(dictionary.decoder)
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimizer.step()
        with torch.no_grad():
            dictionary.decoder /= dictionary.decoder.norm(dim=1, keepdim=True)
    dictionary.rescale(scale)
    if not all(weight.isfinite().all() for weight in parameters):
        raise DataError("training diverged", expected="a smaller learning rate",
                        value=recipe.learning_rate)  # fmt: skip


@torch.no_grad()
def _remove_parallel(directions: nn.Parameter) -> None:
    """Take out of the gradient what would only change the length of a direction."""
    if directions.grad is not None:
        along = (directions.grad * directions).sum(1, keepdim=True)
        directions.grad.addcmul_(along, directions, value=-1)


def checked_rows(
    x: Rows | ActivationStore, g: Rows | None = None, needed: bool = False
) -> tuple[Rows, Rows | None, float]:
    """Activations and, where needed, gradients, both looked through.

    Returns:
        Activations, gradients or None, and what gradients are to be multiplied by to be those of
        the loss.

    Raises `DataError` as `Dictionary.fit` says.
    """
    unit = 1.0
    if isinstance(x, ActivationStore):
        if g is not None:
            raise DataError("gradients are given twice: the store has its own")
        x, g, unit = x.activations, x.gradients, x.gradient_scale
    _check_matrix("activations", x)
    if not needed:
        return x, None, unit
    if g is None:
        raise DataError("no gradients", expected='mode "topk", or the gradient of each row')
    _check_matrix("gradients", g)
    if tuple(x.shape) != tuple(g.shape):
        raise DataError("activations and gradients are not of the same shape",
                        value=f"{tuple(x.shape)} and {tuple(g.shape)}")  # fmt: skip
    if rms_norm(g) == 0:
        raise DataError(
            "all gradients are zero: the loss does not depend on the activations (detached, or "
            "computed under no_grad)"
        )
    return x, g, unit


def _check_matrix(name: str, values: Rows) -> None:
    if values.ndim != 2 or not len(values):
        raise DataError(name, value=tuple(values.shape), expected="(rows, features)")
    floating = (
        values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"
    )
    if not floating:
        raise DataError(name, value=str(values.dtype), expected="floating-point numbers")
    for first in range(0, len(values), CHUNK):
        part = take(values, slice(first, first + CHUNK))
        if not part.isfinite().all():
            row, column = (~part.isfinite()).nonzero()[0].tolist()
            raise DataError(f"{name}: not finite", row=first + row + 1, column=column + 1,
                            value=float(part[row, column]), expected="a number")  # fmt: skip


def moments(rows: Rows) -> tuple[Float[Tensor, " d"], float]:
    """Mean row, and root-mean-square distance to it, in double precision."""
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    squares = 0.0
    for first in range(0, len(rows), CHUNK):
        total += take(rows, slice(first, first + CHUNK)).double().sum(0).cpu()
    mean = total / len(rows)
    for first in range(0, len(rows), CHUNK):
        part = take(rows, slice(first, first + CHUNK)).double()
        squares += float((part - mean.to(part.device)).square().sum())
    return mean.float(), math.sqrt(squares / len(rows))


def rms_norm(rows: Rows) -> float:
    """Root-mean-square length of the rows."""
    squares = 0.0
    for first in range(0, len(rows), CHUNK):
        squares += float(take(rows, slice(first, first + CHUNK)).double().square().sum())
    return math.sqrt(squares / len(rows))


def geometric_median(
    points: Float[Tensor, "n d"], tolerance: float = 1e-6, most: int = 100
) -> Float[Tensor, " d"]:
    """The point of least summed distance to all rows: Weiszfeld's iteration.

    Args:
        tolerance: stop when a step is this much shorter than the mean distance.
    """
    centre = points.mean(0)
    for _ in range(most):
        distances = (points - centre).norm(dim=1)
        mean = distances.mean()
        # A row on the centre would get infinite weight.
        weights = 1 / distances.clamp_min(float(mean) * 1e-8 + torch.finfo(points.dtype).tiny)
        following = (weights[:, None] * points).sum(0) / weights.sum()
        step, centre = (following - centre).norm(), following
        if step <= tolerance * mean:
            break
    return centre


def _rows_of_one(model: nn.Module, site: str, one: Tensor) -> int:
    """Rows that a single input has at the site."""
    with evaluating(model), capture(model, site) as seen:
        model(one)
    return channels_last(seen[site]).flatten(0, -2).shape[0]
