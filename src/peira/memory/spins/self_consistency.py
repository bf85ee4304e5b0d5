"""Self-consistency equations of order parameters: quadrature, many starts, branches, their end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import roots_hermitenorm

Update = Callable[[Float[np.ndarray, "points d"]], Float[np.ndarray, "points d"]]


@dataclass(frozen=True)
class FixedPoints:
    """Where the iterations from several starts ended, and whether they had come to rest."""

    points: Float[np.ndarray, "starts d"]
    converged: Bool[np.ndarray, " starts"]


def gauss_hermite(n: int = 41) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Nodes and weights of the mean of f(z) over a standard normal z; the weights add up to 1."""
    nodes, weights = roots_hermitenorm(n)
    return nodes, weights / weights.sum()


def fixed_point(
    update: Update,
    starts: Float[np.ndarray, "starts d"],
    damping: float = 0.5,
    tol: float = 1e-10,
    steps: int = 2000,
) -> FixedPoints:
    """Iterate x <- damping x + (1 - damping) update(x) from many starts at once.

    Args:
        update: maps any number of points (rows), each by itself.
        starts: where to begin.
        damping: share of the old point that is kept, in [0, 1).
        tol: a point rests when update moves no coordinate by more than this.
        steps: after these many a point that still moves counts as not converged.
    """
    points = np.array(starts, dtype=float)
    moving = np.arange(len(points))
    for _ in range(steps):
        step = update(points[moving]) - points[moving]
        points[moving] += (1 - damping) * step
        # A comparison with not-a-number is False: such a point never counts as at rest.
        moving = moving[~(np.abs(step).max(axis=1) <= tol)]
        if not len(moving):
            break
    converged = np.ones(len(points), bool)
    converged[moving] = False
    return FixedPoints(points, converged)


def follow_branch(
    update: Callable[[Float[np.ndarray, "points d"], float], Float[np.ndarray, "points d"]],
    start: Float[np.ndarray, " d"],
    values: Float[np.ndarray, " values"],
    alive: Callable[[Float[np.ndarray, " d"]], bool] | None = None,
    damping: float = 0.5,
    tol: float = 1e-10,
    steps: int = 2000,
) -> Float[np.ndarray, "values d"]:
    """Follow one solution while a parameter changes: each value starts from the last solution.

    Args:
        update: `update(points, value)`.
        start: where the first value begins.
        values: of the parameter, in the order in which to go through them.
        alive: whether a solution still is on the branch.
        damping, tol, steps: see `fixed_point`.

    Returns:
        One solution per value; not-a-number from the value on where the branch has ended.
    """
    branch = np.full((len(values), len(start)), np.nan)
    point = np.array(start, dtype=float)
    for row, value in enumerate(values):
        found = fixed_point(partial(_at, update, value), point[None], damping, tol, steps)
        point = found.points[0]
        if not found.converged[0] or (alive is not None and not alive(point)):
            break
        branch[row] = point
    return branch


def _at(
    update: Callable[[Float[np.ndarray, "points d"], float], Float[np.ndarray, "points d"]],
    value: float,
    points: Float[np.ndarray, "points d"],
) -> Float[np.ndarray, "points d"]:
    return update(points, value)


def spinodal(
    alive: Callable[[float], bool], inside: float, outside: float, tol: float = 1e-4
) -> float:
    """The parameter where a branch dies, by bisection between `inside` and `outside`.

    Args:
        alive: whether the branch is there at a value of the parameter.
        inside, outside: a value where it is and one where it is not, in either order.
        tol: relative to the value.

    Raises:
        ValueError: the branch is dead inside, or still there outside.
    """
    if not alive(inside) or alive(outside):
        raise ValueError(f"the branch must be there at {inside} and gone at {outside}")
    while abs(outside - inside) > tol * max(abs(inside), abs(outside)):
        middle = (inside + outside) / 2
        if alive(middle):
            inside = middle
        else:
            outside = middle
    return (inside + outside) / 2
