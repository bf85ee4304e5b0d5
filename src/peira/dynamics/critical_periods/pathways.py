"""Networks of parallel pathways whose outputs add up, trained with temporary deficits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from peira.data import DataError
from peira.dynamics.critical_periods.deficits import Condition, check_kinds, when
from peira.dynamics.critical_periods.reduced import modes_removed

Activation = Literal["linear", "tanh", "relu"]
# One matrix for each layer of each pathway; a leading axis where several networks train at once.
Pathways = list[list[Float[np.ndarray, "*members out in"]]]

# Activation and its derivative as a function of the activation's value.
ACTIVATIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "linear": (lambda x: x, lambda y: 1.0),
    "tanh": (np.tanh, lambda y: 1 - y**2),
    "relu": (lambda x: np.maximum(x, 0), lambda y: (y > 0).astype(y.dtype)),
}


@dataclass(frozen=True)
class PathwayTask:
    """What pathways learn together: examples in columns.

    Args:
        views: for each pathway its view of the examples, (features, examples).
        targets: (outputs, examples).
        blurred: the last pathway's view under a `blur` deficit.
        other_targets: targets under a `task` deficit.

    Raises:
        DataError: shapes that do not fit, or values that are not finite.
    """

    views: tuple[Float[np.ndarray, "features examples"], ...]
    targets: Float[np.ndarray, "outputs examples"]
    blurred: Float[np.ndarray, "features examples"] | None = None
    other_targets: Float[np.ndarray, "outputs examples"] | None = None

    def __post_init__(self) -> None:
        last = self.views[-1]
        parts = {f"view {number}": view for number, view in enumerate(self.views)}
        parts |= {"targets": self.targets}
        if self.blurred is not None:
            parts["blurred view"] = self.blurred
            if self.blurred.shape != last.shape:
                raise DataError(
                    "blurred view", value=self.blurred.shape, expected=f"shape {last.shape}"
                )
        if self.other_targets is not None:
            parts["other targets"] = self.other_targets
            if self.other_targets.shape != self.targets.shape:
                raise DataError(
                    "other targets", value=self.other_targets.shape,
                    expected=f"shape {self.targets.shape}",
                )  # fmt: skip
        for name, part in parts.items():
            if part.ndim != 2 or part.shape[1] != last.shape[1]:
                raise DataError(name, value=part.shape, expected=f"(..., {last.shape[1]})")
            if not np.isfinite(part).all():
                raise DataError(f"{name} has values that are not finite")

    @cached_property
    def modes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """U (outputs, k), S (k,), Z (examples, k) with targets = U S Z^T, S falling."""
        u, s, zt = np.linalg.svd(self.targets, full_matrices=False)
        return u, s, zt.T


def hierarchy(items: int = 8) -> PathwayTask:
    """The paper's task: one-hot items, seen by both pathways, and their places in a binary tree.

    8 items have 15 features: 1 all share, 2 by halves, 4 by quarters, 8 of single items; singular
    values √15, √7, √3 twice, 1 four times.

    Raises `DataError` when `items` is no power of 2.
    """
    if items < 2 or items & (items - 1):
        raise DataError("items of the hierarchy", value=items, expected="2, 4, 8, ...")
    one = np.eye(items)
    levels = [
        np.kron(np.eye(groups), np.ones(items // groups))
        for groups in (2**level for level in range(items.bit_length()))
    ]
    return PathwayTask((one, one), np.vstack(levels))


def two_views(
    first: Float[np.ndarray, "examples features"],
    second: Float[np.ndarray, "examples features"],
    targets: Float[np.ndarray, "examples outputs"],
    blurred: Float[np.ndarray, "examples features"] | None = None,
    other_targets: Float[np.ndarray, "examples outputs"] | None = None,
) -> PathwayTask:
    """Any table with two groups of columns as the views of two pathways.

    Examples are rows here. Divided by the root of their number, so that the loss is the mean over
    examples. Scale columns as you would for any network.
    """
    scale = len(first) ** -0.5
    parts = (
        None if part is None else np.asarray(part, dtype=float).T * scale
        for part in (first, second, targets, blurred, other_targets)
    )
    a, b, y, blur, other = parts
    return PathwayTask((a, b), y, blur, other)


def compress(task: PathwayTask) -> PathwayTask:
    """The same task for LINEAR networks, with as many examples as its views have rank.

    Gradients are the same to the last digits and the loss differs by a constant, because both see
    the examples only through their inner products: thousands of examples of 64 pixels become 64.
    """
    features = [*task.views, *([] if task.blurred is None else [task.blurred])]
    basis, triangle = np.linalg.qr(np.vstack(features).T)
    u, s, vt = np.linalg.svd(triangle.T, full_matrices=False)
    rank = max(1, int((s > 1e-12 * s[0]).sum()))
    parts = np.split((u * s)[:, :rank], np.cumsum([len(part) for part in features])[:-1])
    examples = basis @ vt[:rank].T
    other = None if task.other_targets is None else task.other_targets @ examples
    views = tuple(parts[: len(task.views)])
    blurred = None if task.blurred is None else parts[-1]
    return PathwayTask(views, task.targets @ examples, blurred, other)


def balanced_pathways(
    task: PathwayTask,
    depth: int,
    width: int = 100,
    k0: float | Float[np.ndarray, " modes"] = 0.01,
    rng: np.random.Generator | None = None,
    pathways: int = 2,
) -> Pathways:
    """Initial weights in the basis of the task: W_1 = R d V^T, W_i = R d R^T, W_D = U d R^T.

    d = k0^(1/D) and R is a random orthogonal matrix, the same in all pathways as in the official
    code; every linear pathway starts with strengths `k0` and stays diagonal in the task's modes.

    Args:
        task: one whose views are orthonormal, such as one-hot items.
        depth: weight matrices of each pathway.
        k0: initial strength of each mode.

    Raises:
        DataError: a depth below 1, a width below the number of modes, views that are not
            orthonormal, a k0 that is not positive.
    """
    rng = np.random.default_rng() if rng is None else rng
    u, s, z = task.modes
    k = np.broadcast_to(np.asarray(k0, dtype=float), s.shape)
    if depth < 1:
        raise DataError("depth", value=depth, expected="1 or more")
    if depth > 1 and width < len(s):
        raise DataError("width", value=width, expected=f"at least the {len(s)} modes")
    if not (k > 0).all():
        raise DataError("k0 of balanced weights", value=float(k.min()), expected="above 0")
    for view in task.views:
        if view.shape[0] != view.shape[1] or not np.allclose(view @ view.T, np.eye(len(view))):
            raise DataError("views of balanced weights are not orthonormal")
    modes, size = len(s), max(width, len(s))
    r = np.linalg.qr(rng.standard_normal((size, size)))[0]
    # Directions of the hidden layers that no mode uses start as strong as the modes on average:
    # linear networks never excite them, those with an activation do.
    d = np.append(k, np.full(size - modes, k.mean())) ** (1 / depth)
    first, hidden, last = r[:, :modes] * d[:modes], (r * d) @ r.T, (u * d[:modes]) @ r[:, :modes].T
    network = []
    for view in task.views[:pathways]:
        v = view @ z
        if depth == 1:
            network.append([(u * d[:modes]) @ v.T])
        else:
            network.append([first @ v.T, *(hidden.copy() for _ in range(depth - 2)), last.copy()])
    return network


def gaussian_pathways(
    task: PathwayTask,
    depth: int,
    width: int,
    scale: float = 0.1,
    rng: np.random.Generator | None = None,
) -> Pathways:
    """Independent Gaussian weights of standard deviation scale^(1/D) / sqrt(layer's inputs)."""
    rng = np.random.default_rng() if rng is None else rng
    network = []
    for view in task.views:
        sizes = [len(view), *[width] * (depth - 1), len(task.targets)]
        network.append(
            [
                rng.standard_normal((out, into)) * scale ** (1 / depth) * into**-0.5
                for into, out in pairwise(sizes)
            ]
        )
    return network


def initial_strengths(network: Pathways, task: PathwayTask) -> Float[np.ndarray, "modes pathways"]:
    """Mode strengths of linear pathways, for `pathway_dynamics`; also of torch weights on the CPU.

    Warns (UserWarning) where the reduced equation does not hold: layers that are not balanced
    (W_{i+1}^T W_{i+1} differs from W_i W_i^T by more than 1%), or modes that mix.
    """
    weights = [[np.asarray(layer, dtype=float) for layer in path] for path in network]
    worst = max(imbalance(path) for path in weights)
    if worst > 0.01:
        warnings.warn(
            f"layers are not balanced (they differ by {worst:.0%}): the reduced equation of the "
            "modes does not hold for these weights",
            UserWarning,
            stacklevel=2,
        )
    u, _, z = task.modes
    strengths = []
    for path, view in zip(weights, task.views, strict=True):
        k = u.T @ _response(path, view) @ z
        mixed = np.abs(k - np.diag(np.diag(k))).max()
        if mixed > 0.01 * np.abs(np.diag(k)).max():
            warnings.warn(
                "modes of the task mix in the initial weights: the reduced equation does not hold",
                UserWarning,
                stacklevel=2,
            )
        strengths.append(np.diag(k))
    return np.stack(strengths, axis=-1)


def imbalance(path: Sequence[Float[np.ndarray, "out in"]]) -> float:
    """Largest relative difference between W_{i+1}^T W_{i+1} and W_i W_i^T over the layers.

    Seen by the signal only: in the range of W_i ... W_1.
    """
    worst, signal = 0.0, np.eye(path[0].shape[1])
    for below, above in pairwise(path):
        signal = np.linalg.qr(below @ signal)[0]
        up, down = above @ signal, below.T @ signal
        pair = up.T @ up, down.T @ down
        size = sum(map(np.linalg.norm, pair))
        worst = max(worst, 2 * float(np.linalg.norm(pair[0] - pair[1]) / size) if size else 0.0)
    return worst


class PathwayTrainer:
    """Full-batch gradient descent of several networks at once, each with its own deficits.

    The loss is half the sum of squared errors of the added outputs. Where layers have an
    activation it follows every layer, the last one too, as in the official code.

    Args:
        networks: initial weights, one network for each condition (copied).
        task: what they learn.
        conditions: for each network None, a deficit or several.
        steps: length of the training.
        rate: learning rate.
        later_rate: learning rate from the step in which the last deficit ends.
        activation: `linear`, `tanh` or `relu`.
        rngs: for each network, what draws a deficit with a probability.

    Raises:
        DataError: a deficit beyond the training, a mode index out of range, a `blur` or `task`
            deficit where the task has no blurred view or other targets, numbers of networks and
            conditions that differ.
    """

    def __init__(
        self,
        networks: Sequence[Pathways],
        task: PathwayTask,
        conditions: Sequence[Condition],
        steps: int,
        rate: float = 0.01,
        later_rate: float | None = None,
        activation: Activation = "linear",
        rngs: Sequence[np.random.Generator] | None = None,
    ) -> None:
        if len(networks) != len(conditions):
            raise DataError(
                "networks",
                value=len(networks),
                expected=f"one for each of {len(conditions)} conditions",
            )
        if activation not in ACTIVATIONS:
            raise DataError("activation", value=activation, expected=", ".join(ACTIVATIONS))
        self.task, self.activation = task, ACTIVATIONS[activation]
        self.weights = stack(networks)
        known = ["gate_path", "gate_mode"]
        known += ["blur"] if task.blurred is not None else []
        known += ["task"] if task.other_targets is not None else []
        check_kinds(conditions, known, "this task")
        drawn = list(zip(conditions, rngs or [None] * len(networks), strict=True))
        self._gated, self._blurred, self._other = (
            np.vstack([when([one], kind, steps, rng) for one, rng in drawn])
            for kind in ("gate_path", "blur", "task")
        )
        modes = len(task.modes[1])
        self._lost = np.vstack([modes_removed([one], modes, steps, rng) for one, rng in drawn])
        wrong = self._gated | self._blurred | self._other | self._lost.any(axis=1)
        # Number of steps until the last deficit is over.
        over = np.where(wrong.any(axis=1), steps - wrong[:, ::-1].argmax(axis=1), 0)
        self._rates = np.where(
            np.arange(steps) < over[:, None], rate, rate if later_rate is None else later_rate
        )

    def step(self, number: int) -> None:
        """The gradient step `number`, counted from 0."""
        views, targets = self._data(number)
        outputs, trail = self._forward(views)
        lost = self._lost[:, :, number]
        outputs[0] = self._without(outputs[0], lost)
        error = sum(outputs[1:], outputs[0]) - targets
        for place, (path, values) in enumerate(zip(self.weights, trail, strict=True)):
            rates = self._rates[:, number]
            if place == len(self.weights) - 1:
                rates = rates * ~self._gated[:, number]
            flow = self._without(error, lost) if place == 0 else error
            self._descend(path, values, flow, rates[:, None, None])

    def outputs(self, views: Sequence[np.ndarray] | None = None) -> list[np.ndarray]:
        """Output of each pathway, (members, outputs, examples), without any deficit."""
        return self._forward(self.task.views if views is None else views)[0]

    def strengths(self) -> Float[np.ndarray, "members modes pathways"]:
        """Diagonal of U^T Ω V for each pathway: how much of each mode it carries."""
        u, _, z = self.task.modes
        found = [np.einsum("om,bon,nm->bm", u, out, z) for out in self.outputs()]
        return np.stack(found, axis=-1)

    def norms(self) -> Float[np.ndarray, "members pathways"]:
        """Frobenius norm of each pathway's response to the examples."""
        return np.stack([np.linalg.norm(out, axis=(1, 2)) for out in self.outputs()], axis=-1)

    def loss(self) -> Float[np.ndarray, " members"]:
        """Half the sum of squared errors, without any deficit."""
        outputs = self.outputs()
        error = sum(outputs[1:], outputs[0]) - self.task.targets
        return 0.5 * np.square(error).sum(axis=(1, 2))

    def state_dict(self) -> dict[str, Any]:
        """The weights."""
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such weights."""
        self.weights = state["weights"]

    def _data(self, number: int) -> tuple[list[Any], Any]:
        views, targets = list(self.task.views), self.task.targets
        if self._blurred[:, number].any():
            on = self._blurred[:, number, None, None]
            views[-1] = np.where(on, self.task.blurred, views[-1])
        if self._other[:, number].any():
            targets = np.where(self._other[:, number, None, None], self.task.other_targets, targets)
        return views, targets

    def _forward(self, views: Sequence[Any]) -> tuple[list[Any], list[list[Any]]]:
        act = self.activation[0]
        trail = []
        for path, view in zip(self.weights, views, strict=False):
            values = [view]
            for layer in path:
                values.append(act(layer @ values[-1]))
            trail.append(values)
        return [values[-1] for values in trail], trail

    def _without(self, response: Any, lost: Any) -> Any:
        """The response, (members, outputs, examples), without its share in the lost modes."""
        if not lost.any():
            return response
        u, _, z = self.task.modes
        keep_out = np.eye(len(u)) - np.einsum("om,bm,pm->bop", u, lost, u)
        keep_in = np.eye(len(z)) - np.einsum("nm,bm,km->bnk", z, lost, z)
        return keep_out @ response @ keep_in

    def _descend(self, path: list[Any], values: list[Any], flow: Any, rates: Any) -> None:
        slope = self.activation[1]
        for place in range(len(path) - 1, -1, -1):
            flow = flow * slope(values[place + 1])
            step = flow @ values[place].swapaxes(-1, -2)
            if place:
                flow = path[place].swapaxes(-1, -2) @ flow
            step *= rates
            path[place] -= step


def stack(networks: Sequence[Pathways]) -> Pathways:
    """Networks of one shape as one, with a leading axis."""
    paths = zip(*networks, strict=True)
    return [[np.stack(layers) for layers in zip(*path, strict=True)] for path in paths]


def _response(path: Sequence[np.ndarray], view: np.ndarray) -> np.ndarray:
    for layer in path:
        view = layer @ view
    return view
