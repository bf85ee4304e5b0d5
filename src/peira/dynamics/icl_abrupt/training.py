"""Training on the in-context task, one network or several of one shape at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peira.dynamics.icl_abrupt.model import stack, unstack
from peira.dynamics.icl_abrupt.report import TEST_SIZE, Report, stacked_report, stacked_sets
from peira.dynamics.icl_abrupt.task import CHUNK, ICLTask, Sequences
from peira.engine.errors import PeiraError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ICLRecipe", "train_icl", "train_together"]

# Of the saved state (objects that change) makes the steps to train: 1, 2, ...
Steps = Callable[[Sequence[Any]], Iterable[int]]


@dataclass(frozen=True)
class ICLRecipe:
    """How a network is trained.

    Attributes:
        steps: training steps, each on fresh sequences.
        batch: sequences of a step.
        optimizer: "sgd" (the paper's) or "adam" (about ten times as fast in steps).
        learning_rate: 0.01 for SGD in the paper.
        weight_decay: L2 penalty, 1e-6 in the paper.
        evaluate_every: steps between reports.
        test_size: sequences in each test set.
    """

    steps: int = 150_000
    batch: int = 128
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.01
    weight_decay: float = 1e-6
    evaluate_every: int = 500
    test_size: int = TEST_SIZE

    def optimise(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A new optimiser; several networks in one stacked parameter stay independent."""
        kind = torch.optim.SGD if self.optimizer == "sgd" else torch.optim.Adam
        return kind(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)


def train_icl(
    task: ICLTask,
    net: nn.Module,
    recipe: ICLRecipe | None = None,
    seed: int = 0,
    steps: Steps | None = None,
) -> pd.DataFrame:
    """Train a network in place, and report on it all the while.

    Args:
        task: law of the sequences.
        net: `InContextNet`, `InductionHead`, or a module whose parameters may have a leading
            dimension and that has their `with_attention`.
        recipe: optimiser and cadence; the paper's by default.
        seed: of the training sequences.
        steps: gives the steps to make, default 1 ... `recipe.steps`.

    Returns:
        History: column `step`, `train_loss` (mean since the row before, NaN at step 0), and those
        of `icl_report`; the first row is the network as given.

    Raises:
        PeiraError: the loss is no longer finite.
    """
    import pandas as pd

    (rows,) = train_together([task], [net], recipe, [seed], steps)
    return pd.DataFrame(rows)


def train_together(
    tasks: Sequence[ICLTask],
    nets: Sequence[nn.Module],
    recipe: ICLRecipe | None = None,
    seeds: Sequence[int] = (0,),
    steps: Steps | None = None,
) -> list[list[Report]]:
    """`train_icl` for several networks of one shape at once; each learns as it would alone.

    Returns:
        The rows of each network's history.
    """
    recipe = recipe or ICLRecipe()
    device = next(nets[0].parameters()).device
    together = stack(nets)
    optimizer = recipe.optimise(together.parameters())
    sets = stacked_sets(tasks, recipe.test_size, device)
    state: dict[str, Any] = {"rows": [], "step": 0}
    state["loss"] = torch.zeros(len(nets), device=device)
    _report(state, together, sets)
    batches = _Batches(tasks, seeds, recipe.batch, device)
    plain = range(1, recipe.steps + 1)
    for step in steps([together, optimizer, state]) if steps else plain:
        losses = _losses(together, *batches.at(step))
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        state["loss"] = state["loss"] + losses.detach()
        state["step"] = step
        if step % recipe.evaluate_every == 0:
            _report(state, together, sets)
    if state["step"] != state["rows"][-1][0]["step"]:
        _report(state, together, sets)
    unstack(together, nets)
    return [[row[place] for row in state["rows"]] for place in range(len(nets))]


def _report(state: dict[str, Any], together: nn.Module, sets: Mapping[Any, Sequences]) -> None:
    """Add a row for each network, with the mean loss since the last one."""
    step, rows = state["step"], state["rows"]
    passed = step - rows[-1][0]["step"] if rows else 0
    means = state["loss"] / (passed or torch.nan)
    if passed and not means.isfinite().all():
        raise PeiraError(f"the loss is not finite at step {step}: lower the learning rate")
    reports = stacked_report(together, sets)
    # A new list: a checkpoint may still hold the old one.
    state["rows"] = [
        *rows,
        [
            {"step": step, "train_loss": loss, **report}
            for loss, report in zip(means.tolist(), reports, strict=True)
        ],
    ]
    state["loss"] = torch.zeros_like(state["loss"])


def _losses(together: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each network."""
    logits = together(tokens)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.unflatten(0, labels.shape).mean(dim=1)


class _Batches:
    """Training batches of several tasks, drawn a chunk at a time into memory that is kept."""

    def __init__(
        self, tasks: Sequence[ICLTask], seeds: Sequence[int], batch: int, device: torch.device
    ) -> None:
        self.tasks, self.seeds, self.batch = tasks, seeds, batch
        # Step first, so that the batches of one step lie together.
        shape = (CHUNK, len(tasks), batch)
        self.tokens = torch.empty(*shape, tasks[0].length, tasks[0].dim, device=device)
        self.labels = torch.empty(*shape, dtype=torch.long, device=device)
        self.chunk = -1

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Tokens (networks, batch, T, dim) and labels (networks, batch) of one step."""
        chunk, place = divmod(step - 1, CHUNK)
        if chunk != self.chunk:
            for net, (task, seed) in enumerate(zip(self.tasks, self.seeds, strict=True)):
                drawn = task.batches(step, self.batch, seed)
                self.tokens[:, net] = drawn.tokens.unflatten(0, (CHUNK, self.batch))
                self.labels[:, net] = drawn.labels.unflatten(0, (CHUNK, self.batch))
            self.chunk = chunk
        return self.tokens[place], self.labels[place]
