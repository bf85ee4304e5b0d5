"""How far weights moved, and how many directions they use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from peira.data.errors import DataError

Rank = Literal["participation", "entropy", "stable", "count"]


def weight_change(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], params: Sequence[str] | None = None
) -> float:
    """Frobenius norm of the difference of two state dicts.

    Args:
        before, after: weights by name, as `state_dict()` gives them.
        params: names or prefixes ("rnn") to look at; None takes every tensor of floats.

    Raises:
        DataError: names or shapes that differ, a name that is absent.
    """
    squares = [
        (after[n] - before[n]).double().square().sum() for n in _names(before, after, params)
    ]
    return float(torch.stack(squares).sum().sqrt())


def relative_weight_change(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], params: Sequence[str] | None = None
) -> float:
    """`weight_change` as a share of the norm before."""
    names = _names(before, after, params)
    norm = torch.stack([before[name].double().square().sum() for name in names]).sum().sqrt()
    return weight_change(before, after, params) / float(norm) if norm > 0 else float("inf")


def layer_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """`weight_change` of each tensor by name."""
    return {name: weight_change(before, after, [name]) for name in _names(before, after, None)}


def _names(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], params: Sequence[str] | None
) -> list[str]:
    floats = [name for name, value in before.items() if value.is_floating_point()]
    names = floats
    if params is not None:
        names = [n for n in floats if any(n == p or n.startswith(f"{p}.") for p in params)]
        for p in params:
            if not any(n == p or n.startswith(f"{p}.") for n in floats):
                raise DataError("no such parameter", value=p, expected=f"one of {floats}")
    for name in names:
        if name not in after or after[name].shape != before[name].shape:
            raise DataError(
                f"{name}: not in both state dicts with one shape", expected="the same module"
            )
    if not names:
        raise DataError("nothing to compare", expected="at least one tensor of floats")
    return names


def effective_rank(
    w: Float[Tensor, "rows columns"], kind: Rank = "participation", *, fraction: float = 0.05
) -> float:
    """How many directions a matrix uses, from its singular values s.

    Args:
        w: the matrix.
        kind: "participation" (sum s^2)^2 / sum s^4; "entropy" exp(H(s / sum s)) (Roy and Vetterli
            2007); "stable" sum s^2 / s_1^2; "count" of s above `fraction` of s_1.
        fraction: of the largest singular value, for "count".

    Raises:
        DataError: no matrix, entries that are not finite, or all of them zero.
    """
    if w.ndim != 2:
        raise DataError("rank", value=tuple(w.shape), expected="a matrix")
    if not torch.isfinite(w).all():
        raise DataError("rank of a matrix with entries that are not finite")
    s = torch.linalg.svdvals(w.double())
    if not s[0] > 0:
        raise DataError("rank of a matrix that is zero")
    s = s / s[0]
    if kind == "participation":
        return float(s.square().sum() ** 2 / s.pow(4).sum())
    if kind == "entropy":
        p = s / s.sum()
        return float(torch.exp(torch.special.entr(p).sum()))
    if kind == "stable":
        return float(s.square().sum())
    return float((s > fraction).sum())
