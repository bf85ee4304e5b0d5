"""Training networks of one shape at once, each until it is as good as the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from peira.dynamics.rich_lazy_rank.network import RateRNN
from peira.dynamics.rich_lazy_rank.tasks import Problem
from peira.nn import Ensemble

# Iterations between two looks at the validation loss.
EVERY = 20

Steps = Callable[[Sequence[Any]], Iterable[int]]
Log = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Recipe:
    """How networks are trained, and when they are done.

    Attributes:
        target_loss: validation loss in nats, looked at every 20 iterations, at which a network is
            done; None trains all iterations, as published.
        iterations: budget; published are 10,000.
        learning_rate: of SGD with momentum 0.9; published is 0.003.
        batch_size: trials or images per iteration; published are 32 and 200.
    """

    target_loss: float | None = 0.045
    iterations: int = 3000
    learning_rate: float = 3e-3
    batch_size: int = 32


@dataclass(frozen=True)
class Ending:
    """How one network's training ended.

    Attributes:
        step: iterations done.
        loss: validation loss then; not finite when training diverged.
        reached: whether it got to the target loss.
        state: the weights.
    """

    step: int
    loss: float
    reached: bool
    state: dict[str, Tensor]


def train_together(
    networks: Sequence[RateRNN],
    seeds: Sequence[int],
    problems: Mapping[int, Problem],
    streams: Mapping[int, torch.Generator],
    recipe: Recipe,
    steps: Steps | None = None,
    log: Log = lambda member, step, loss: None,
) -> list[Ending]:
    """Train networks of one shape at once, each until its validation loss is at the target.

    Args:
        networks: with their initial weights, which stay.
        seeds: of each network; the same seed means the same batches in the same order.
        problems: task, probe and validation data of each seed.
        streams: random numbers that each seed's batches are drawn from.
        recipe: how, and until when.
        steps: makes the loop from what it changes; None is 1 to `recipe.iterations`.
        log: called as `log(member, step, loss)` at each look at the loss.
    """
    cohort = Cohort(networks, recipe.learning_rate)
    device = next(networks[0].parameters()).device
    last = recipe.iterations

    def gather(parts: Mapping[int, tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Inputs and labels of each member still in, members first."""
        own = [parts[seeds[member]] for member in cohort.members]
        return [torch.stack(some).to(device) for some in zip(*own, strict=True)]

    for step in steps([cohort]) if steps else range(1, last + 1):
        here = dict.fromkeys(seeds[member] for member in cohort.members)
        batches = {s: problems[s].task.batch(recipe.batch_size, streams[s]) for s in here}
        cohort.step(*gather(batches))
        if step % EVERY and step != last:
            continue
        found = cohort.validate(*gather({s: problems[s].validation for s in here})).tolist()
        done = {}
        for member, loss in zip(cohort.members, found, strict=True):
            log(member, step, loss)
            reached = recipe.target_loss is not None and loss <= recipe.target_loss
            if reached or step == last or not math.isfinite(loss):
                done[member] = (step, loss, reached)
        if done:
            cohort.leave(done)
        if not cohort.members:
            break
    return [cohort.endings[member] for member in range(len(networks))]


class Cohort:
    """Recurrent networks under SGD with momentum; those that are done leave, the others go on.

    Each member trains exactly as it would alone. `members` are the numbers of those still in.

    Args:
        networks: of one shape.
        learning_rate, momentum: of SGD (published: 0.003 and 0.9).
    """

    def __init__(
        self, networks: Sequence[RateRNN], learning_rate: float, momentum: float = 0.9
    ) -> None:
        self.ensemble = Ensemble(networks)
        self.members = list(range(len(networks)))
        self.endings: dict[int, Ending] = {}
        self._rate = learning_rate, momentum
        self._new_optimizer()

    def step(self, x: Tensor, y: Tensor) -> None:
        """One step on a batch for each member, members first."""
        self.optimizer.zero_grad(set_to_none=True)
        losses(self.ensemble(x), y).sum().backward()
        self.optimizer.step()

    @torch.no_grad()
    def validate(self, x: Tensor, y: Tensor) -> Float[Tensor, " members"]:
        """Loss of each member, members first."""
        return losses(self.ensemble(x), y)

    def leave(self, done: Mapping[int, tuple[int, float, bool]]) -> None:
        """Take members out, with step, loss, whether they got there, and their weights as now."""
        states = dict(zip(self.members, self.ensemble.states(), strict=True))
        self.endings |= {member: Ending(*how, states[member]) for member, how in done.items()}
        stay = [place for place, member in enumerate(self.members) if member not in done]
        self.members = [self.members[place] for place in stay]
        weights = [value.detach()[stay] for value in self.ensemble.stacked]
        self._put(weights, [velocity[stay] for velocity in self._velocities()])

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes."""
        return {
            "members": list(self.members),
            "endings": dict(self.endings),
            "weights": [value.detach().clone() for value in self.ensemble.stacked],
            "velocities": [value.clone() for value in self._velocities()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.members, self.endings = list(state["members"]), dict(state["endings"])
        self._put(state["weights"], state["velocities"])

    def _new_optimizer(self) -> None:
        rate, momentum = self._rate
        self.optimizer = torch.optim.SGD(self.ensemble.parameters(), lr=rate, momentum=momentum)

    def _velocities(self) -> list[Tensor]:
        """Momentum of each stacked weight; zero before the first step."""
        kept = self.optimizer.state
        return [
            kept[value]["momentum_buffer"] if value in kept else torch.zeros_like(value)
            for value in self.ensemble.stacked
        ]

    def _put(self, weights: Sequence[Tensor], velocities: Sequence[Tensor]) -> None:
        for value, new in zip(self.ensemble.stacked, weights, strict=True):
            value.data = new.clone()
            value.grad = None
        self._new_optimizer()
        for value, velocity in zip(self.ensemble.stacked, velocities, strict=True):
            self.optimizer.state[value]["momentum_buffer"] = velocity.clone()


def losses(outputs: Tensor, labels: Tensor) -> Float[Tensor, " members"]:
    """Mean cross-entropy of each member over its examples, and over steps where these have labels.

    Args:
        outputs: (members, batch, time, classes) or (members, batch, classes).
        labels: (members, batch, time) or (members, batch).
    """
    each = F.cross_entropy(outputs.flatten(0, -2), labels.flatten(), reduction="none")
    return each.view(len(outputs), -1).mean(1)
