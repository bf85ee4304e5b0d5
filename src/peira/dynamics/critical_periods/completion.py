"""Matrix completion by deep linear networks: a first task, then a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from peira.data import DataError
from peira.engine.errors import PeiraError

Start = Literal["gaussian", "orthogonal", "identity"]
# W_1, ..., W_D; a leading axis where several networks train at once.
Factors = list[Float[np.ndarray, "*members out in"]]
Steps = Callable[[int, Any], Iterable[int]]


def low_rank_matrix(
    rows: int, rank: int, rng: np.random.Generator, columns: int | None = None
) -> Float[np.ndarray, "rows columns"]:
    """A random matrix of that rank whose entries have mean square 1 (Frobenius norm n if n x n).

    Raises `DataError` for a rank that the shape does not allow.
    """
    columns = rows if columns is None else columns
    if not 1 <= rank <= min(rows, columns):
        raise DataError("rank", value=rank, expected=f"1 to {min(rows, columns)}")
    return unit_scale(rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns)))


def related_matrix(
    first: Float[np.ndarray, "rows columns"], rank: int, angle: float, rng: np.random.Generator
) -> Float[np.ndarray, "rows columns"]:
    """A second task whose subspaces make a given angle with those of the first.

    Left and right singular subspaces are cos(angle) times random directions of the first matrix's
    subspaces plus sin(angle) times directions orthogonal to them: all principal angles are
    `angle`. Between them stands a random (rank, rank) core.

    Args:
        first: the first task.
        rank: rank of the second, at most that of the first.
        angle: degrees, from 0 (within the subspaces of the first) to 90 (orthogonal to them).

    Raises:
        DataError: an angle outside [0, 90], a rank above that of the first or for which there is
            no room beside it.
    """
    if not 0 <= angle <= 90:
        raise DataError("angle between the tasks", value=angle, expected="0 to 90 degrees")
    u, s, vt = np.linalg.svd(first)
    known = int((s > 1e-6 * s[0]).sum())
    room = min(known, min(first.shape) - known)
    if not 1 <= rank <= room:
        raise DataError("rank of the second task", value=rank, expected=f"1 to {room}")
    left, right = (_tilted(basis, known, rank, angle, rng) for basis in (u, vt.T))
    return unit_scale(left @ rng.standard_normal((rank, rank)) @ right.T)


def _tilted(
    basis: Float[np.ndarray, "n n"], known: int, rank: int, angle: float, rng: np.random.Generator
) -> Float[np.ndarray, "n rank"]:
    inside, outside = (
        part @ np.linalg.qr(rng.standard_normal((part.shape[1], rank)))[0]
        for part in (basis[:, :known], basis[:, known:])
    )
    return np.cos(np.radians(angle)) * inside + np.sin(np.radians(angle)) * outside


def unit_scale(matrix: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "rows columns"]:
    """The matrix with entries of mean square 1."""
    return matrix / np.sqrt(np.mean(np.square(matrix)))


def observe(
    shape: tuple[int, int], count: int, rng: np.random.Generator
) -> Bool[np.ndarray, "r c"]:
    """`count` entries drawn without replacement."""
    size = shape[0] * shape[1]
    if not 1 <= count <= size:
        raise DataError("observed entries", value=count, expected=f"1 to {size}")
    mask = np.zeros(size, bool)
    mask[rng.permutation(size)[:count]] = True
    return mask.reshape(shape)


def initial_factors(
    shape: tuple[int, int],
    depth: int,
    scale: float = 1e-3,
    start: Start = "gaussian",
    rng: np.random.Generator | None = None,
    dtype: Any = np.float32,
) -> Factors:
    """Initial weights of a deep factorisation; hidden layers are as wide as the shorter side.

    `gaussian`: standard deviation scale^(1/D) / sqrt(width); `orthogonal`: balanced, of product
    scale * sqrt(n) times an orthogonal matrix; `identity`: scale times the identity, where all
    singular values coincide.

    Raises `DataError` for a depth below 1 or a scale that is not positive.
    """
    rng = np.random.default_rng() if rng is None else rng
    if depth < 1:
        raise DataError("depth", value=depth, expected="1 or more")
    if not scale > 0:
        raise DataError("scale of the initial weights", value=scale, expected="above 0")
    rows, columns = shape
    width = min(shape)
    sizes = [columns, *[width] * (depth - 1), rows]
    root = (scale * width**0.5 if start == "orthogonal" else scale) ** (1 / depth)
    factors = []
    for into, out in pairwise(sizes):
        if start == "gaussian":
            layer = rng.standard_normal((out, into)) * width**-0.5
        elif start == "orthogonal":
            tall = np.linalg.qr(rng.standard_normal((max(out, into), min(out, into))))[0]
            layer = tall if out >= into else tall.T
        else:
            layer = np.eye(out, into)
        factors.append((root * layer).astype(dtype))
    return factors


class Completion:
    """Gradient descent of several deep factorisations at once, each on its own matrix.

    The loss of each is half the mean squared error over its observed entries.

    Args:
        factors: initial weights, one list for each member (copied).
        targets: the matrix of each member; unobserved entries are not looked at.
        masks: observed entries of each member.
        rates: learning rate of each member, or of all.
    """

    def __init__(
        self,
        factors: Sequence[Factors],
        targets: Sequence[Float[np.ndarray, "rows columns"]],
        masks: Sequence[Bool[np.ndarray, "rows columns"]],
        rates: float | Sequence[float],
    ) -> None:
        self.weights: Factors = [np.stack(layers) for layers in zip(*factors, strict=True)]
        dtype = self.weights[0].dtype
        mask = np.stack(masks)
        self._target = np.where(mask, np.stack(targets), 0).astype(dtype)
        count = mask.sum(axis=(1, 2), keepdims=True)
        rate = np.broadcast_to(np.asarray(rates, float), len(mask))[:, None, None]
        # The gradient of the mean, the mask and the learning rate in one array of weights.
        self._weight = (mask * rate / count).astype(dtype)

    def step(self) -> None:
        """One step of gradient descent."""
        products = [self.weights[0]]
        for layer in self.weights[1:]:
            products.append(layer @ products[-1])
        # The last product is a fresh array, save at depth 1 where it is the weights themselves.
        flow = np.subtract(products[-1], self._target)
        flow *= self._weight
        for place in range(len(self.weights) - 1, 0, -1):
            layer = self.weights[place]
            change = flow @ products[place - 1].swapaxes(-1, -2)
            flow = layer.swapaxes(-1, -2) @ flow
            layer -= change
        self.weights[0] -= flow

    def product(self) -> Float[np.ndarray, "members rows columns"]:
        """The matrix of each member, W_D ... W_1."""
        result = self.weights[0]
        for layer in self.weights[1:]:
            result = layer @ result
        return result

    def members(self) -> list[Factors]:
        """A copy of the weights of each member."""
        return [[layer[i].copy() for layer in self.weights] for i in range(len(self.weights[0]))]

    def errors(
        self, truths: np.ndarray, masks: np.ndarray | None = None
    ) -> Float[np.ndarray, " members"]:
        """Mean squared error of each member over all entries, or over those of `masks`."""
        square = np.square(self.product().astype(float) - truths)
        where = np.ones_like(square) if masks is None else np.broadcast_to(masks, square.shape)
        return np.where(where, square, 0).sum(axis=(1, 2)) / where.sum(axis=(1, 2))

    def check(self) -> None:
        """Raise `PeiraError` when the weights of a member have diverged."""
        if not all(np.isfinite(layer).all() for layer in self.weights):
            raise PeiraError("matrix completion diverged: take a lower learning rate")

    def state_dict(self) -> dict[str, Any]:
        """The weights."""
        return {"weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from such weights."""
        self.weights = state["weights"]


def pretrain(
    trainer: Completion, at: Sequence[int], steps: Steps | None = None
) -> dict[int, list[Factors]]:
    """Train once to the last step of `at`; weights of all members after each step of `at`.

    Args:
        steps: `steps(total, trainer)` yields 1, 2, ..., total; progress bars and checkpoints hook
            in here. Where it ends early, later steps get the last weights.
    """
    wanted = sorted(set(at))
    # In one place with the weights, so that a checkpoint keeps both.
    kept = _Snapshots(trainer)
    if wanted and wanted[0] == 0:
        kept.taken[0] = trainer.members()
    for step in (steps or _plain)(wanted[-1] if wanted else 0, kept):
        trainer.step()
        if step in wanted:
            trainer.check()
            kept.taken[step] = trainer.members()
    return {step: kept.taken.get(step) or trainer.members() for step in wanted}


class _Snapshots:
    """A trainer and the weights that were put aside on its way, saved together."""

    def __init__(self, trainer: Completion) -> None:
        self.trainer, self.taken = trainer, {}

    def state_dict(self) -> dict[str, Any]:
        return {"trainer": self.trainer.state_dict(), "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trainer.load_state_dict(state["trainer"])
        self.taken = state["taken"]


def _plain(total: int, _: Any) -> Iterable[int]:
    return range(1, total + 1)


@dataclass(frozen=True)
class Transfer:
    """How well a second matrix is completed after each amount of training on a first.

    Attributes:
        pretrain_steps: steps on the first matrix, one branch each.
        test_loss: mean squared error on the test entries of the second, in units of its mean
            square; shape (branches,).
        train_loss: half the mean squared error on its observed entries.
        steps, curve: test loss during the second task, (records,) and (branches, records).
        completed: the second matrix as each branch sees it, in its own units.
    """

    pretrain_steps: tuple[int, ...]
    test_loss: Float[np.ndarray, " branches"]
    train_loss: Float[np.ndarray, " branches"]
    steps: Int[np.ndarray, " records"]
    curve: Float[np.ndarray, "branches records"]
    completed: Float[np.ndarray, "branches rows columns"]

    @property
    def damage(self) -> Float[np.ndarray, " branches"]:
        """Test loss less that of the branch with the fewest steps on the first matrix."""
        return self.test_loss - self.test_loss[int(np.argmin(self.pretrain_steps))]


def matrix_transfer(
    first: Float[np.ndarray, "rows columns"],
    second: Float[np.ndarray, "rows columns"],
    mask: Bool[np.ndarray, "rows columns"] | None = None,
    *,
    depth: int = 3,
    pretrain_steps: Sequence[int] = (0, 1000, 5000),
    steps: int = 5000,
    rate: float | None = None,
    later_rate: float | None = None,
    init_scale: float = 1e-3,
    start: Start = "gaussian",
    holdout: float = 0.1,
    seed: int = 0,
    dtype: Any = np.float32,
    watch: Mapping[str, Steps] | None = None,
) -> Transfer:
    """Train a deep linear network on one matrix, then on another; what does the first cost?

    The first matrix is learned once, to the largest number of steps; its weights at each of
    `pretrain_steps` then learn the second as one batch.

    Args:
        first, second: matrices of one shape; NaN where an entry was not observed.
        mask: with complete matrices, the entries that both tasks observe; the test is then over
            all entries of the second, as published. Without it a share `holdout` of the second's
            observed entries is kept for the test.
        depth: number of factors; 1 learns no features.
        pretrain_steps: steps on the first matrix, a branch for each.
        steps: steps on the second.
        rate: learning rate; None takes 0.1 over the largest curvature of a matrix of rank 1.
        later_rate: learning rate of the second task; None keeps `rate`.
        init_scale: scale of the initial product.
        seed: of the initial weights and of the held-out entries.
        watch: for the loops `first` and `second`, what yields their steps (progress bars).

    Raises:
        DataError: shapes that differ, a row or column of which nothing is observed, values that
            are infinite, numbers of steps below 0, a holdout outside (0, 1), nothing left to hold
            out.
        PeiraError: the training diverged.

    Source: the paper's matrix completion; loss, learning rate and initial weights as in `main.py`.
    """
    rng = np.random.default_rng(seed)
    one, two = (np.asarray(matrix, dtype=float) for matrix in (first, second))
    seen_one, seen_two, tested = _entries(one, two, mask, holdout, rng)
    # What is held out has no part in the scale either.
    counted = (seen_one, seen_two) if mask is None else (np.ones_like(tested),) * 2
    scales = [np.sqrt(np.mean(m[part] ** 2)) for m, part in zip((one, two), counted, strict=True)]
    if min(scales) == 0:
        raise DataError("all observed entries are 0")
    one, two = one / scales[0], two / scales[1]
    branches = tuple(int(step) for step in pretrain_steps)
    if not branches or min(branches) < 0:
        raise DataError("steps on the first matrix", value=branches, expected="0 or more each")
    if steps < 1:
        raise DataError("steps on the second matrix", value=steps, expected="1 or more")
    if rate is None:
        rate = default_rate(one.shape, depth, int(min(seen_one.sum(), seen_two.sum())))
    watch = watch or {}
    factors = initial_factors(one.shape, depth, init_scale, start, rng, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        trainer = Completion([factors], [one], [seen_one], rate)
        snapshots = pretrain(trainer, branches, watch.get("first"))
        count = len(branches)
        members = [snapshots[step][0] for step in branches]
        later = Completion(members, [two] * count, [seen_two] * count, later_rate or rate)
        truth = np.where(tested, two, 0)
        records, curve = [0], [later.errors(truth, tested)]
        every = max(1, steps // 100)
        for step in (watch.get("second") or _plain)(steps, later):
            later.step()
            if step % every == 0 or step == steps:
                later.check()
                records.append(step)
                curve.append(later.errors(truth, tested))
    return Transfer(
        branches, curve[-1], later.errors(np.where(seen_two, two, 0), seen_two) / 2,
        np.array(records), np.stack(curve, axis=1), later.product() * scales[1],
    )  # fmt: skip


def default_rate(shape: tuple[int, int], depth: int, observed: int) -> float:
    """0.1 over the curvature of the loss at a matrix of rank 1 with entries of mean square 1.

    Its singular value is sqrt(rows * columns) = σ, the curvature D σ^(2-2/D) / observed.
    """
    sigma = (shape[0] * shape[1]) ** 0.5
    return float(0.1 * observed / (depth * sigma ** (2 - 2 / depth)))


def _entries(
    one: np.ndarray,
    two: np.ndarray,
    mask: np.ndarray | None,
    holdout: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training entries of both tasks, and test entries of the second."""
    if one.ndim != 2 or one.shape != two.shape:
        raise DataError("shape of the second matrix", value=two.shape, expected=f"{one.shape}")
    for name, matrix in (("first", one), ("second", two)):
        if np.isinf(matrix).any():
            raise DataError(f"{name} matrix has infinite entries")
    if mask is not None:
        seen = np.asarray(mask, dtype=bool)
        if seen.shape != one.shape:
            raise DataError("shape of the mask", value=seen.shape, expected=f"{one.shape}")
        if np.isnan(one).any() or np.isnan(two).any():
            raise DataError("matrices with a mask must be complete; leave the mask out for NaN")
        check_covered(seen, "mask")
        return seen, seen, np.ones_like(seen)
    if not 0 < holdout < 1:
        raise DataError("holdout", value=holdout, expected="between 0 and 1")
    seen_one, seen_two = ~np.isnan(one), ~np.isnan(two)
    check_covered(seen_one, "first matrix")
    check_covered(seen_two, "second matrix")
    kept = _keep_covered(seen_two, holdout, rng)
    return seen_one, kept, seen_two & ~kept


def check_covered(seen: Bool[np.ndarray, "rows columns"], name: str) -> None:
    """Raise `DataError` naming a row or column of which nothing is observed (counted from 1)."""
    for axis, what in ((1, "row"), (0, "column")):
        empty = np.flatnonzero(~seen.any(axis=axis))
        if len(empty):
            raise DataError(
                f"{name} has nothing observed in {what} {empty[0] + 1}",
                expected="an entry in every row and column",
            )


def _keep_covered(seen: np.ndarray, holdout: float, rng: np.random.Generator) -> np.ndarray:
    """`seen` less a share that is held out; every row and column keeps an entry."""
    kept = seen.copy()
    rows, columns = kept.sum(axis=1), kept.sum(axis=0)
    wanted = round(holdout * int(seen.sum()))
    for row, column in rng.permutation(np.argwhere(seen)):
        if wanted == 0:
            break
        if rows[row] > 1 and columns[column] > 1:
            kept[row, column] = False
            rows[row] -= 1
            columns[column] -= 1
            wanted -= 1
    if (kept == seen).all():
        raise DataError("too few entries to hold any out", value=int(seen.sum()))
    return kept
