"""The largest usable learning rate, measured: many rates at once, and the range test."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from peira.data.errors import DataError
from peira.dynamics.batch_hessian_lr.rates import OptimizerName
from peira.dynamics.probes.curvature import Data, Loss, gather
from peira.dynamics.probes.parameters import flatten, select, unflatten

Outcome = Literal["learned", "slow", "diverged"]
Steps = Callable[[Sequence[Any]], Iterable[int]]


@dataclass(frozen=True)
class LRSweep:
    """What became of copies of one network that differ in nothing but the learning rate.

    Attributes:
        batch: examples in a batch.
        rates: learning rates, as given.
        losses: mean loss over all the data after the last step; NaN or infinite is possible.
        start: that loss before the first step.
        target: loss that counts as learned.
        weights: flat weights after the last step, in the order of the rates.
        curve: (step, losses of all copies over all the data), where asked for.
    """

    batch: int
    rates: Float[Tensor, " rates"]
    losses: Float[Tensor, " rates"]
    start: float
    target: float
    weights: Float[Tensor, "rates size"]
    curve: Sequence[tuple[int, Float[Tensor, " rates"]]] = ()

    @property
    def outcomes(self) -> list[Outcome]:
        """ "learned" below the target; else "diverged" above the initial loss, or "slow"."""
        return [
            "learned" if loss < self.target else "slow" if loss < self.start else "diverged"
            for loss in self.losses.tolist()
        ]

    @property
    def largest(self) -> float:
        """The largest rate that learned; NaN if none did."""
        learned = self.rates[self.losses < self.target]
        return float(learned.max()) if len(learned) else math.nan


def measure_max_lr(
    model: nn.Module,
    loss: Loss,
    data: Data,
    batch: int,
    rates: Sequence[float],
    *,
    target: float,
    optimizer: OptimizerName = "sgd",
    momentum: float | Sequence[float] | None = None,
    damping: float = 1e-8,
    horizon: int = 400,
    every: int | None = None,
    generator: torch.Generator | None = None,
    steps: Steps | None = None,
) -> LRSweep:
    """Train copies of a network side by side, one for each learning rate, on the same batches.

    A rate is usable when the loss over all the data ends below `target` within `horizon` steps.
    Batches go through the data in random order, epoch after epoch.

    Args:
        model: the network at its initial weights; it is not changed.
        loss, data: see `hessian_operator`.
        batch: examples in a batch, 1 to N.
        rates: learning rates.
        target: mean loss over all the data that counts as learned.
        optimizer: "sgd" or "adam".
        momentum: of SGD (0), or beta_1 of Adam (0.9), one for all or one for each rate; beta_2 is
            0.999.
        damping: Adam's epsilon.
        horizon: training steps, the same for every batch size.
        every: steps between losses over all the data, kept as the curve; none without it.
        generator: draws the order of the examples.
        steps: called with what training changes, yields step numbers 1, 2, ...
    """
    inputs, targets = gather(data)
    order = ShuffledBatches(len(inputs), batch, generator)
    of_all = _stacked_loss(model, loss)
    tried = torch.tensor(list(rates), dtype=torch.float64)
    start = flatten(select(model))
    weights = start.expand(len(tried), -1).clone()
    update = _Update(optimizer, tried.to(weights), momentum, damping, weights)
    state: dict[str, Any] = {"weights": weights, "curve": []}

    def evaluate(weights: Tensor) -> Tensor:
        with torch.no_grad():
            return mean_loss(lambda x, y: of_all(weights, x, y), inputs, targets).double()

    for step in steps([order, state, update.state]) if steps else range(1, horizon + 1):
        picked = next(order)
        now = state["weights"].detach().requires_grad_()
        losses = of_all(now, inputs[picked], targets[picked])
        (gradient,) = torch.autograd.grad(losses.sum(), now)
        state["weights"] = update(now.detach(), gradient, step)
        if every and step % every == 0:
            state["curve"].append((step, evaluate(state["weights"])))
    losses, before = evaluate(state["weights"]), float(evaluate(start[None]))
    return LRSweep(batch, tried, losses, before, target, state["weights"], state["curve"])


def mean_loss(
    loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor, at_once: int = 2048
) -> Tensor:
    """The mean of a loss (or of several) over many examples, some at a time."""
    parts = zip(inputs.split(at_once), targets.split(at_once), strict=True)
    return torch.stack([loss(x, y) * (len(x) / len(inputs)) for x, y in parts]).sum(dim=0)


def _stacked_loss(model: nn.Module, loss: Loss) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(copies, size) flat weights and one batch -> the loss of each copy."""
    chosen = select(model)

    def one(flat: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        return loss(functional_call(model, unflatten(flat, chosen), (inputs,)), targets)

    return vmap(one, in_dims=(0, None, None))


def load_flat(model: nn.Module, flat: Float[Tensor, " size"]) -> None:
    """Put a flat weight vector into the model's parameters that train."""
    chosen = select(model)
    with torch.no_grad():
        for name, part in unflatten(flat, chosen).items():
            chosen[name].copy_(part)


class _Update:
    """SGD with momentum, or Adam, on stacked flat weights with a rate for each row."""

    def __init__(
        self,
        optimizer: OptimizerName,
        rates: Tensor,
        momentum: float | Sequence[float] | None,
        damping: float,
        weights: Tensor,
    ) -> None:
        if optimizer not in ("sgd", "adam"):
            raise DataError("unknown optimiser", value=optimizer, expected="'sgd' or 'adam'")
        self.adam, self.rates, self.damping = optimizer == "adam", rates[:, None], damping
        usual = 0.9 if self.adam else 0.0
        given = usual if momentum is None else momentum
        self.momentum = torch.as_tensor(given, dtype=weights.dtype, device=weights.device)
        if self.momentum.ndim:
            self.momentum = self.momentum[:, None]
        zeros = torch.zeros_like(weights)
        self.state = {"first": zeros, "second": zeros}

    def __call__(self, weights: Tensor, gradient: Tensor, step: int) -> Tensor:
        state, beta = self.state, self.momentum
        if not self.adam:
            state["first"] = beta * state["first"] + gradient
            return weights - self.rates * state["first"]
        state["first"] = beta * state["first"] + (1 - beta) * gradient
        state["second"] = 0.999 * state["second"] + 0.001 * gradient.square()
        root = (state["second"] / (1 - 0.999**step)).sqrt() + self.damping
        return weights - self.rates / (1 - beta**step) * state["first"] / root


class ShuffledBatches(Iterator[Tensor]):
    """Endless index batches: each epoch a new random order, its incomplete last batch left out.

    Args:
        examples: N.
        batch: B; raises `DataError` unless 1 <= B <= N.
        generator: draws the orders.
    """

    def __init__(self, examples: int, batch: int, generator: torch.Generator | None = None) -> None:
        if not 1 <= batch <= examples:
            raise DataError("impossible batch size", value=batch, expected=f"1 to {examples}")
        self.examples, self.batch = examples, batch
        self.generator = generator or torch.Generator().manual_seed(torch.seed())
        self.left = torch.empty(0, dtype=torch.long)

    def __next__(self) -> Tensor:
        if len(self.left) < self.batch:
            self.left = torch.randperm(self.examples, generator=self.generator)
        picked, self.left = self.left[: self.batch], self.left[self.batch :]
        return picked

    def state_dict(self) -> dict[str, Tensor]:
        """Where it is."""
        return {"left": self.left, "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        self.left = state["left"]
        self.generator.set_state(state["generator"])


@dataclass(frozen=True)
class LRRange:
    """A learning-rate range test.

    Attributes:
        rates: learning rates, one step at each.
        losses: batch losses, smoothed.
    """

    rates: Float[Tensor, " steps"]
    losses: Float[Tensor, " steps"]

    @property
    def steepest(self) -> float:
        """The rate at which the smoothed loss falls fastest: a rate to train with."""
        return float(self.rates[self.losses.diff().argmin()])

    @property
    def divergence(self) -> float:
        """The rate reached when the smoothed loss is at its lowest: the last that helped."""
        return float(self.rates[self.losses.argmin()])


def lr_range_test(
    model: nn.Module,
    loss: Loss,
    data: Data,
    batch: int,
    *,
    low: float = 1e-4,
    high: float = 10.0,
    steps: int = 100,
    momentum: float = 0.0,
    generator: torch.Generator | None = None,
) -> LRRange:
    """Train a copy while the rate grows geometrically (Smith 2017); stops at 4 times the best loss.

    Args:
        model: it is not changed.
        low, high: first and last rate.
        steps: batches, one at each rate.
        momentum: of SGD.
        loss, data, batch, generator: see `measure_max_lr`.
    """
    inputs, targets = gather(data)
    order = ShuffledBatches(len(inputs), batch, generator)
    model = copy.deepcopy(model)
    trained = torch.optim.SGD(model.parameters(), lr=low, momentum=momentum)
    rates, losses, average = [], [], 0.0
    for step in range(steps):
        picked = next(order)
        value = loss(model(inputs[picked]), targets[picked])
        average = 0.9 * average + 0.1 * value.item()
        smooth = average / (1 - 0.9 ** (step + 1))
        if not math.isfinite(smooth) or (losses and smooth > 4 * min(losses)):
            break
        rate = low * (high / low) ** (step / (steps - 1))
        rates.append(rate)
        losses.append(smooth)
        trained.param_groups[0]["lr"] = rate
        trained.zero_grad()
        value.backward()
        trained.step()
    return LRRange(torch.tensor(rates), torch.tensor(losses))
