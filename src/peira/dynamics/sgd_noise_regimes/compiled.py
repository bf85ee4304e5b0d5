"""Compiled descent of fully connected networks: forward in full, backward for unfitted data only.

A hinge loss has no gradient where a datum is fitted, and late in training nearly all are. Small
networks that stop each at its own time run faster so, one after the other, than as one batch of
all of them in a framework.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from numba import njit
from torch import nn

from peira.dynamics.probes import NTKLinear
from peira.dynamics.sgd_noise_regimes.batches import draw, key_of
from peira.dynamics.sgd_noise_regimes.descent import (
    BLOWN_UP,
    BROKEN,
    DEAD,
    FITTED,
    RUNNING,
    SGDRecipe,
)
from peira.dynamics.sgd_noise_regimes.network import Flat, Normalised

# Tanh approximation of GELU.
ROOT, CUBIC = math.sqrt(2 / math.pi), 0.044715


@njit(cache=True)
def _activate(z, scale, gelu, factor, a):  # type: ignore[no-untyped-def]
    """Scale z in place; write factor * phi(z) into a."""
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            v = z[i, j] * scale
            z[i, j] = v
            if gelu:
                v *= 0.5 * (1 + math.tanh(ROOT * (v + CUBIC * v * v * v)))
            elif v < 0:
                v *= 0
            a[i, j] = factor * v


@njit(cache=True)
def _slope(v, gelu, factor):  # type: ignore[no-untyped-def]
    """factor * phi'(v)."""
    if not gelu:
        return factor if v > 0 else 0.0
    t = math.tanh(ROOT * (v + CUBIC * v * v * v))
    return factor * 0.5 * (1 + t + v * (1 - t * t) * ROOT * (1 + 3 * CUBIC * v * v))


@njit(cache=True)
def _forward(first, hidden, last, x, gelu, factor, z, a, f):  # type: ignore[no-untyped-def]
    """Write preactivations and activations (layers, n, h) and outputs (n,)."""
    width = len(last)
    np.dot(x, first.T, z[0])
    _activate(z[0], 1 / math.sqrt(first.shape[1]), gelu, factor, a[0])
    for layer in range(len(hidden)):
        np.dot(a[layer], hidden[layer].T, z[layer + 1])
        _activate(z[layer + 1], 1 / math.sqrt(width), gelu, factor, a[layer + 1])
    for i in range(len(x)):
        f[i] = 0
        for j in range(width):
            f[i] += a[-1, i, j] * last[j]
        f[i] /= width


@njit(cache=True)
def _outputs(first, hidden, last, x, gelu, factor):  # type: ignore[no-untyped-def]
    """f(x), (n,)."""
    z = np.empty((len(hidden) + 1, len(x), len(last)), np.float32)
    f = np.empty(len(x), np.float32)
    _forward(first, hidden, last, x, gelu, factor, z, np.empty_like(z), f)
    return f


@njit(cache=True)
def _add(weight, step, scale):  # type: ignore[no-untyped-def]
    for i in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            weight[i, j] += scale * step[i, j]


@njit(cache=True)
def _rows(source, wrong, count):  # type: ignore[no-untyped-def]
    """The first `count` rows that `wrong` names."""
    found = np.empty((count, source.shape[1]), np.float32)
    for i in range(count):
        for j in range(source.shape[1]):
            found[i, j] = source[wrong[i], j]
    return found


@njit(cache=True)
def _backward(first, hidden, last, x, z, a, push, wrong, count, gelu, factor):  # type: ignore[no-untyped-def]
    """Add sum_i push_i grad f(x_i) over the rows `wrong`; whether any gradient was not zero."""
    width = len(last)
    root = 1 / math.sqrt(width)
    delta = np.empty((count, width), np.float32)
    alive = False
    for i in range(count):
        for j in range(width):
            slope = _slope(z[-1, wrong[i], j], gelu, factor)
            delta[i, j] = push[wrong[i]] / width * last[j] * slope
    for i in range(count):
        for j in range(width):
            last[j] += push[wrong[i]] / width * a[-1, wrong[i], j]
            alive |= a[-1, wrong[i], j] != 0
    for layer in range(len(hidden) - 1, -1, -1):
        step = np.dot(delta.T, _rows(a[layer], wrong, count))
        delta = np.dot(delta, hidden[layer])
        for i in range(count):
            for j in range(width):
                delta[i, j] *= root * _slope(z[layer, wrong[i], j], gelu, factor)
        _add(hidden[layer], step, root)
    _add(first, np.dot(delta.T, _rows(x, wrong, count)), 1 / math.sqrt(first.shape[1]))
    return alive


@njit(cache=True)
def _all_fitted(f, y, start, margin):  # type: ignore[no-untyped-def]
    unfitted = 0
    for i in range(len(f)):
        unfitted += not y[i] * (f[i] - start[i]) >= margin
    return unfitted == 0


@njit(cache=True)
def _advance(
    first,
    hidden,
    last,
    x,
    y,
    start,
    gelu,
    factor,
    margin,
    dt,
    batch,
    gaussian,
    key,
    counters,
    until,
):  # type: ignore[no-untyped-def]
    """Descend in place; counters: step, last step that moved weights, steps since, dead steps."""
    size = len(x)
    seen = size if gaussian else batch
    chosen, weight = np.empty(seen, np.int64), np.empty(seen)
    push, f = np.empty(seen), np.empty(seen, np.float32)
    z = np.empty((len(hidden) + 1, seen, len(last)), np.float32)
    a, wrong = np.empty_like(z), np.empty(seen, np.int64)
    patience = (size + seen - 1) // seen
    limit = BLOWN_UP * (1 + margin)
    while counters[0] < until:
        counters[0] += 1
        draw(key, counters[0], size, batch, gaussian, chosen, weight)
        data = _rows(x, chosen, seen)
        _forward(first, hidden, last, data, gelu, factor, z, a, f)
        count = 0
        for k in range(seen):
            moved = f[k] - start[chosen[k]]
            if not abs(moved) < limit:
                return BROKEN
            push[k] = dt * weight[k] * y[chosen[k]]
            if not y[chosen[k]] * moved >= margin:
                wrong[count] = k
                count += 1
        if count == 0:
            counters[2] += 1
            if counters[2] % patience == 0:
                f_all = _outputs(first, hidden, last, x, gelu, factor)
                if _all_fitted(f_all, y, start, margin):
                    return FITTED
            continue
        counters[1], counters[2] = counters[0], 0
        alive = _backward(first, hidden, last, data, z, a, push, wrong, count, gelu, factor)
        # A network whose last features are all zero has no gradient and never moves again.
        counters[3] = 0 if alive else counters[3] + 1
        if counters[3] >= DEAD:
            return BROKEN
    return RUNNING


def compilable(model: nn.Module) -> bool:
    """Whether `CompiledMLP` can train this module: what `mean_field_mlp` makes, on the CPU."""
    if not isinstance(model, Flat):
        return False
    linear, between = list(model)[::2], list(model)[1::2]
    return (
        all(type(m) is NTKLinear and m.bias is None and m.weight.is_cpu for m in linear)
        and all(type(m) is Normalised for m in between)
        and len({m.name for m in between}) == 1
        and len({m.weight.shape for m in linear[1:-1]}) <= 1
        and linear[-1].weight.shape[0] == 1
        and all(m.weight.dtype == torch.float32 for m in linear)
    )


class CompiledMLP:
    """Descent of one `mean_field_mlp`, whose weights change in place.

    Args:
        model: the network.
        x: data (n, inputs).
        y: labels -1 and 1.
        recipe: step, scale, batch, budget.
        seed: of the batches.
    """

    def __init__(
        self,
        model: Flat,
        x: Float32[np.ndarray, "n inputs"],
        y: Float32[np.ndarray, "n"],
        recipe: SGDRecipe,
        seed: int,
    ) -> None:
        recipe.check_size(len(x))
        self.x, self.y = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(y, np.float32)
        self.recipe, self.key = recipe, key_of(seed)
        self._linear = list(model)[::2]
        self._act = list(model)[1]
        self.counters = np.zeros(4, np.int64)
        self._status = RUNNING
        self.start = self._outputs()

    def _weights(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first, *hidden, last = (m.weight.detach().numpy() for m in self._linear)
        width = last.shape[1]
        stack = np.stack(hidden) if hidden else np.empty((0, width, width), np.float32)
        return first, stack, last[0]

    def _activation(self) -> tuple[bool, np.float32]:
        return self._act.name == "gelu", np.float32(self._act.factor)

    def _outputs(self) -> np.ndarray:
        return _outputs(*self._weights(), self.x, *self._activation())

    def advance(self, until: int) -> None:
        """Go on to step `until` at most; stop where all data are fitted."""
        if self._status != RUNNING:
            return
        r = self.recipe
        first, hidden, last = self._weights()
        self._status = _advance(
            first, hidden, last, self.x, self.y, self.start, *self._activation(),
            np.float32(r.margin), r.dt, r.batch, r.noise == "gaussian", self.key, self.counters,
            min(until, r.steps),
        )  # fmt: skip
        # The hidden layers were stacked, which copied them; the others changed in place.
        for module, weight in zip(self._linear[1:-1], hidden, strict=True):
            module.weight.detach().copy_(torch.from_numpy(weight))
        if self._status == RUNNING and self.counters[0] == r.steps and not self.unfitted().any():
            self._status = FITTED

    def unfitted(self) -> np.ndarray:
        """Which data have a loss now, (n,)."""
        return ~(self.y * (self._outputs() - self.start) >= np.float32(self.recipe.margin))

    @property
    def status(self) -> np.ndarray:
        """Of the one run."""
        return np.array([self._status])

    @property
    def moved(self) -> np.ndarray:
        """Last step that changed the weights, of the one run."""
        return self.counters[1:2].copy()

    def state_dict(self) -> dict[str, Any]:
        """What changes."""
        weights = [m.weight.detach().clone() for m in self._linear]
        return {"weights": weights, "counters": self.counters.copy(), "status": self._status}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        for module, weight in zip(self._linear, state["weights"], strict=True):
            module.weight.detach().copy_(weight)
        self.counters, self._status = state["counters"].copy(), state["status"]
