"""Why a prediction came out: the terms it is the sum of, and what happens without one of them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def contributions(
    distances: Float[Tensor, "n m"], weight: Float[Tensor, "m classes"]
) -> Float[Tensor, "n m classes"]:
    """D[b, j] W[j, k]: what prototype j adds to the logit of class k; summed over j, the logit."""
    return distances[:, :, None] * weight


def leads(
    distances: Float[Tensor, "n m"], weight: Float[Tensor, "m classes"]
) -> Float[Tensor, "n m"]:
    """What each prototype adds to the lead of the predicted class over the second.

    Softmax does not see a constant added to a row of W, and a class's own contributions change
    with it. These differences do not, and their sum is the margin that decides.
    """
    first, second = (distances @ weight).topk(2, dim=1).indices.unbind(1)
    return distances * (weight.T[first] - weight.T[second])


def without_each(
    distances: Float[Tensor, "n m"], weight: Float[Tensor, "m classes"]
) -> Int[Tensor, "n m"]:
    """The class predicted when row j of W is deleted, for every j."""
    parts = contributions(distances, weight)
    return (parts.sum(dim=1, keepdim=True) - parts).argmax(dim=2)


def changed_by_deletion(
    distances: Float[Tensor, "n m"], weight: Float[Tensor, "m classes"]
) -> Bool[Tensor, "n m"]:
    """Whether deleting row j of W changes the prediction, for every j."""
    predicted = (distances @ weight).argmax(dim=1, keepdim=True)
    return without_each(distances, weight) != predicted


def deletion_test(
    distances: Float[Tensor, "n m"], weight: Float[Tensor, "m classes"]
) -> dict[str, float]:
    """Share of predictions that change when one prototype's row is deleted.

    Returns:
        `top`: the prototype that adds most to the logit of the predicted class; `lead`: the one
        that adds most to its lead over the second; `nearest`: the closest one; `random`: any one,
        averaged over all of them exactly.
    """
    changed = changed_by_deletion(distances, weight).double()
    predicted = (distances @ weight).argmax(dim=1)
    own = distances * weight.T[predicted]
    chosen = {
        "top": own.argmax(dim=1),
        "lead": leads(distances, weight).argmax(dim=1),
        "nearest": distances.argmin(dim=1),
    }
    rates = {name: float(changed.gather(1, rows[:, None]).mean()) for name, rows in chosen.items()}
    return {**rates, "random": float(changed.mean())}


def nearest(
    queries: Float[Tensor, "n p"],
    points: Float[Tensor, "N p"],
    skip_self: bool = False,
    chunk: int = 1024,
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """Euclidean distance of each query to its nearest point, and which point that is.

    Args:
        queries, points: rows.
        skip_self: the queries are the points, and none is its own neighbour.
        chunk: queries at once.
    """
    found = []
    for start in range(0, len(queries), chunk):
        # Without the expansion in squares, which loses digits where points nearly coincide.
        apart = torch.cdist(
            queries[start : start + chunk], points, compute_mode="donot_use_mm_for_euclid_dist"
        )
        if skip_self:
            rows = torch.arange(len(apart), device=apart.device)
            apart[rows, start + rows] = torch.inf
        found.append(apart.min(dim=1))
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])
