"""Learning rate and momentum on the fly, from stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset

from peira.data.errors import DataError
from peira.dynamics.batch_hessian_lr.law import Estimate, Landscape
from peira.dynamics.batch_hessian_lr.matrices import effective_batch
from peira.dynamics.batch_hessian_lr.rates import heavy_ball
from peira.dynamics.probes.curvature import Data, Kind, Loss, lanczos, random_start

Floor = Literal["edge", "positive"]
# Single examples that the noise along u_1 is taken from.
SINGLES = 128


@dataclass(frozen=True)
class Tuning:
    """One measurement of the tuner, and what it set.

    Attributes:
        epoch: when.
        largest: lambda_1 of the sub-sample's curvature.
        floor: lambda_min, the lower curvature of the heavy-ball formula.
        batch_largest: lambda_1'(B), what a batch sees.
        lr, momentum: what was set.
        products: curvature products it took, each about two gradients of the sub-sample.
    """

    epoch: int
    largest: float
    floor: float
    batch_largest: float
    lr: float
    momentum: float
    products: int


class SLQTuner(LRScheduler):
    """Sets learning rate and momentum of SGD from the measured curvature, every few epochs.

    Momentum mu and rate are the heavy-ball optimum of [lambda_min, lambda_1] (Polyak 1964), the
    rate then lowered for what batches add to the curvature: 1 / (1/lr + e / (1 - mu)) with
    e = lambda_1'(B) - lambda_1, half-way to where the noise alone would be unstable in mean square.
    lambda_1 and e are the largest met so far, because the curvature of a classifier that fits
    vanishes and 1 / lambda_1 would grow without bound. With `published=True` they are the present
    ones, the rate is lr lambda_1 / lambda_1'(B) and at most 2 (1 + mu) / lambda_1'(B).

    Call `step()` once an epoch, like any scheduler; `history` says what was measured.

    Args:
        optimizer: has a `momentum` (SGD); all its groups get the same values.
        model, loss: see `hessian_operator`; measured at the model's present weights.
        data: the training data: (inputs, targets), a `DataLoader` or a `Dataset`.
        batch: examples in a training batch.
        every: epochs between measurements.
        examples: size of the sub-sample that is measured.
        steps: Lanczos steps.
        floor: lambda_min. "edge": the transition sqrt(e lambda_1), below which a batch's noise
            hides an eigenvalue, or the smallest positive Ritz value if that is larger. "positive":
            the smallest positive Ritz value.
        cap: highest momentum.
        kind: Hessian or generalised Gauss-Newton matrix.
        published: the paper's rule as it stands; it can diverge where the curvature vanishes.
        generator: draws sub-samples and probes.

    Raises `DataError` for an optimiser without momentum.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        loss: Loss,
        data: Data,
        batch: int,
        *,
        every: int = 1,
        examples: int = 512,
        steps: int = 25,
        floor: Floor = "edge",
        cap: float = 0.99,
        kind: Kind = "hessian",
        published: bool = False,
        generator: torch.Generator | None = None,
        last_epoch: int = -1,
    ) -> None:
        if any("momentum" not in group for group in optimizer.param_groups):
            raise DataError(
                "the optimiser has no momentum", value=type(optimizer).__name__,
                expected="torch.optim.SGD",
            )  # fmt: skip
        self.model, self.loss, self.data = model, loss, data
        self.batch, self.every, self.examples, self.lanczos_steps = batch, every, examples, steps
        self.floor, self.cap, self.kind, self.generator = floor, cap, kind, generator
        self.published = published
        self.history: list[Tuning] = []
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """The rate of every group; measures when it is time, and sets the momentum."""
        due = self.last_epoch % self.every == 0
        if due and (not self.history or self.history[-1].epoch != self.last_epoch):
            found = self._measure()
            if found is not None:
                self.history.append(found)
        if not self.history:
            return [group["lr"] for group in self.optimizer.param_groups]
        now = self.history[-1]
        for group in self.optimizer.param_groups:
            group["momentum"] = now.momentum
        return [now.lr for _ in self.optimizer.param_groups]

    def _measure(self) -> Tuning | None:
        """What is measured now; None where no curvature is positive."""
        inputs, targets, population = subsample(self.data, self.examples, self.generator)
        point = Landscape(
            self.model, self.loss, (inputs, targets), self.kind, samples=SINGLES,
            generator=self.generator,
        )  # fmt: skip
        start = random_start(point.operator, 1, self.generator)
        found = lanczos(point.operator.apply, start, self.lanczos_steps)
        values = found.values[0]
        largest = float(values[-1])
        if largest <= 0:
            return None
        noise = Estimate.of_mean(point.noise(found.vectors(-1)[0]))
        b = effective_batch(min(self.batch, population), population)
        excess = noise.value / largest / b
        floor = float(values[values > 0].min())
        if self.floor == "edge":
            floor = min(max(floor, math.sqrt(excess * largest)), largest)
        lr, momentum = self._rule(largest, excess, floor)
        # The mean product and one of all single examples come on top of the Lanczos steps.
        products = len(values) + 2
        return Tuning(self.last_epoch, largest, floor, largest + excess, lr, momentum, products)

    def _rule(self, largest: float, excess: float, floor: float) -> tuple[float, float]:
        if self.published:
            lr, momentum = heavy_ball(largest, floor)
            momentum = min(momentum, self.cap)
            inflated = largest + excess
            return min(lr * largest, 2 * (1 + momentum)) / inflated, momentum
        largest = max([largest, *(entry.largest for entry in self.history)])
        excess = max([excess, *(entry.batch_largest - entry.largest for entry in self.history)])
        lr, momentum = heavy_ball(largest, floor)
        momentum = min(momentum, self.cap)
        return 1 / (1 / lr + excess / (1 - momentum)), momentum

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimiser, the model and the data."""
        kept = {"last_epoch", "base_lrs", "_step_count", "_last_lr"}
        state = {name: value for name, value in vars(self).items() if name in kept}
        state["history"] = [asdict(entry) for entry in self.history]
        if self.generator is not None:
            state["generator"] = self.generator.get_state()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        state = dict(state_dict)
        self.history = [Tuning(**entry) for entry in state.pop("history")]
        drawn = state.pop("generator", None)
        if drawn is not None and self.generator is not None:
            self.generator.set_state(drawn)
        vars(self).update(state)


def subsample(
    data: Data, examples: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, float]:
    """Up to `examples` (inputs, targets), and how many there are in all (infinite if unknown)."""
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor):
        inputs, targets = data
        picked = torch.randperm(len(inputs), generator=generator)[:examples].to(inputs.device)
        return inputs[picked], targets[picked], len(inputs)
    parts, seen = [], 0
    if isinstance(data, Dataset):
        data = DataLoader(data, batch_size=examples, shuffle=True, generator=generator)
    for x, y in data:
        parts.append((x, y))
        seen += len(x)
        if seen >= examples:
            break
    if not parts:
        raise DataError("no examples")
    inputs, targets = (torch.cat(part)[:examples] for part in zip(*parts, strict=True))
    whole = getattr(data, "dataset", None)
    return inputs, targets, len(whole) if isinstance(whole, Sized) else float("inf")
