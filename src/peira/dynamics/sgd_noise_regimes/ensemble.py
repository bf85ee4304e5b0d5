"""Descent of many networks of any architecture at once, each with its own step, scale and stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from peira.dynamics.sgd_noise_regimes.batches import draw_many, key_of
from peira.dynamics.sgd_noise_regimes.descent import (
    BLOWN_UP,
    BROKEN,
    DEAD,
    FITTED,
    RUNNING,
    SGDRecipe,
    same_of,
)
from peira.nn import Ensemble

# Rows that all members see at once when every datum is looked at.
ROWS = 256
# The batch of members is rebuilt once this share of it has stopped.
STOPPED = 0.25


class EnsembleDescent:
    """Runs of one architecture and one size that train together and stop one by one.

    A run that is fitted has no gradient left; it is taken out of the batch with those that broke.

    Args:
        models: one for each run; they get their weights when it stops, or at `synchronise`.
        x: all data.
        y: their labels, -1 and 1.
        index: the data of each run.
        recipes: one for each run; batch, budget and noise are the same.
        seeds: of the batches.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        x: Float[Tensor, "all ..."],
        y: Float[Tensor, "all"],
        index: Int[Tensor, "runs n"],
        recipes: Sequence[SGDRecipe],
        seeds: Sequence[int],
    ) -> None:
        self.recipe = same_of(recipes)
        self.size = index.shape[1]
        self.recipe.check_size(self.size)
        self.models, self.x, self.index = list(models), x, index
        self.y = y[index]
        self._keys = np.array([key_of(seed) for seed in seeds])
        self._dt = torch.tensor([r.dt for r in recipes], device=x.device)
        self._margin = torch.tensor([r.margin for r in recipes], device=x.device)
        self._status = np.full(len(self.models), RUNNING)
        self._moved = np.zeros(len(self.models), np.int64)
        self._idle, self._dead = np.zeros_like(self._moved), np.zeros_like(self._moved)
        self.step = 0
        seen = self.size if self.recipe.noise == "gaussian" else self.recipe.batch
        # Steps in which every datum is seen once, about.
        self._patience = -(-self.size // seen)
        self._gather(np.arange(len(self.models)))
        self.start = self._outputs()[: len(self.models)]

    def _gather(self, members: np.ndarray) -> None:
        """Build the batch of the runs `members` from their models."""
        self._members = members
        # A batch of one takes another path through the matrix product; pairs give equal bits.
        rows = members if len(members) > 1 else np.repeat(members, 2)
        self._rows = torch.as_tensor(rows, device=self.x.device)
        self._batch = Ensemble([self.models[i] for i in rows]).to(self.x.device)

    def synchronise(self) -> None:
        """Write the weights as they are now into the models."""
        for member, state in zip(self._members, self._batch.states(), strict=False):
            self.models[member].load_state_dict(state)

    @torch.no_grad()
    def _outputs(self) -> Float[Tensor, "rows n"]:
        """f of every datum for the runs of the batch."""
        parts = [self._batch(self.x[part]) for part in self.index[self._rows].split(ROWS, dim=1)]
        return torch.cat(parts, dim=1)

    @property
    def status(self) -> np.ndarray:
        """RUNNING, FITTED or BROKEN by run."""
        return self._status.copy()

    @property
    def moved(self) -> np.ndarray:
        """The last step by run that changed weights."""
        return self._moved.copy()

    def advance(self, until: int) -> None:
        """Go on to step `until`, or to where all have stopped; then the models are up to date."""
        until = min(until, self.recipe.steps)
        while self.step < until and (self._status == RUNNING).any():
            self._one_step()
            if self.step % self._patience == 0:
                self._find_fitted(idle=self._patience)
                stopped = self._status[self._members] != RUNNING
                if stopped.mean() >= STOPPED:
                    self._take_out()
        if self.step == self.recipe.steps:
            self._find_fitted(idle=0)
        self.synchronise()

    def _one_step(self) -> None:
        rows, r = self._rows, self.recipe
        members = rows.cpu().numpy()
        chosen, weight = draw_many(
            self._keys[members], self.step + 1, self.size, r.batch, r.noise == "gaussian"
        )
        data = torch.from_numpy(chosen).to(rows.device)
        at = (rows[:, None], data)
        f = self._batch(self.x[self.index[at]])
        y = self.y[at]
        change = f.detach() - self.start[at]
        limit = BLOWN_UP * (1 + self._margin[rows, None])
        blown = ~(change.abs() < limit).all(1).cpu().numpy()
        if blown.any():
            # They leave with the weights they have; the others take this step without them.
            self._status[members[blown]] = BROKEN
            self._take_out()
            return
        self.step += 1
        wrong = ~(y * change >= self._margin[rows, None])
        # The hinge pushes every unfitted datum's output by y, whatever its loss is.
        push = torch.from_numpy(weight).to(f) * y * wrong
        grads = torch.autograd.grad((push * f).sum(), list(self._batch.stacked))
        with torch.no_grad():
            for value, grad in zip(self._batch.stacked, grads, strict=True):
                value.addcmul_(grad, self._dt[rows].view(-1, *[1] * (grad.ndim - 1)))
        self._count(members, wrong, grads)

    def _count(self, members: np.ndarray, wrong: Tensor, grads: Sequence[Tensor]) -> None:
        """Note which runs moved, and which are dead: unfitted, with a gradient of zero."""
        moves = wrong.any(1)
        still = torch.stack([~grad.flatten(1).any(1) for grad in grads]).all(0) & moves
        moves, still = moves.cpu().numpy(), still.cpu().numpy()
        running = self._status[members] == RUNNING
        self._moved[members[moves & running]] = self.step
        self._idle[members] = np.where(moves, 0, self._idle[members] + 1)
        dead = np.where(still, self._dead[members] + 1, 0)
        self._dead[members] = np.where(moves, dead, self._dead[members])
        self._status[members[running & (self._dead[members] >= DEAD)]] = BROKEN

    def _find_fitted(self, idle: int) -> None:
        """Mark the runs without a move for `idle` steps whose data are all fitted."""
        members, rows = self._members, self._rows
        waiting = (self._status[members] == RUNNING) & (self._idle[members] >= idle)
        if waiting.any():
            change = self._outputs() - self.start[rows]
            fitted = (self.y[rows] * change >= self._margin[rows, None]).all(1).cpu().numpy()
            self._status[members[waiting & fitted[: len(members)]]] = FITTED

    def _take_out(self) -> None:
        """Go on with the runs that have not stopped."""
        self.synchronise()
        left = self._members[self._status[self._members] == RUNNING]
        if len(left):
            self._gather(left)

    def state_dict(self) -> dict[str, Any]:
        """What changes."""
        self.synchronise()
        return {
            "models": [model.state_dict() for model in self.models],
            "counts": (self._status, self._moved, self._idle, self._dead, self.step),
            "members": self._members,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        for model, values in zip(self.models, state["models"], strict=True):
            model.load_state_dict(values)
        self._status, self._moved, self._idle, self._dead = (a.copy() for a in state["counts"][:4])
        self.step = state["counts"][4]
        self._gather(state["members"])
