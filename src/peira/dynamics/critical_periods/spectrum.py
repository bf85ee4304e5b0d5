"""Singular values and vectors of a deep linear network's product under gradient flow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from peira.data import DataError

Matrix = Float[np.ndarray, "rows columns"]


@dataclass(frozen=True)
class SingularRates:
    """Time derivatives of a singular value decomposition W = U diag(s) V^T.

    Attributes:
        s: rates of the singular values, (k,).
        u, v: rates of the left and right vectors, (rows, k) and (columns, k).
        guarded: pairs of singular values too close for their vectors to have a rate of their own.
    """

    s: Float[np.ndarray, " k"]
    u: Float[np.ndarray, "rows k"]
    v: Float[np.ndarray, "columns k"]
    guarded: int


def singular_rates(
    u: Float[np.ndarray, "rows k"],
    s: Float[np.ndarray, " k"],
    v: Float[np.ndarray, "columns k"],
    gradient: Matrix,
    depth: int,
    gap: float = 1e-8,
) -> SingularRates:
    """The exact equations of a balanced deep linear network.

    s_r' = -D s_r^(2-2/D) u_r^T G v_r,
    U' = -U (F o [U^T G V S + S V^T G^T U]) - (I - U U^T) G V S^(1-2/D), V' alike with G^T,
    F_qr = 1 / (s_r^(2/D) - s_q^(2/D)) off the diagonal.

    Within a group of equal singular values vectors may be turned without changing W, so F has no
    value there: pairs whose s^(2/D) differ by less than `gap` times the largest are left unturned
    and counted. (`singular_flow` integrates W itself and needs no guard.)

    Args:
        gradient: G, gradient of the loss with respect to the product W.
        depth: number D of factors; the vectors' equation needs singular values above 0 at depth 1.

    Source: Arora et al. 2019, theorem 3 and lemma 2; the paper's matrix completion uses them.
    """
    _check_depth(depth)
    inner = u.T @ gradient @ v
    root = s ** (2 / depth)
    difference = root[None, :] - root[:, None]
    near = np.abs(difference) <= gap * max(float(root.max()), np.finfo(float).tiny)
    f = np.where(near, 0.0, 1 / np.where(near, 1.0, difference))
    left = f * (inner * s[None, :] + s[:, None] * inner.T)
    right = f * (s[:, None] * inner + inner.T * s[None, :])
    beside = np.power(s, 1 - 2 / depth, where=s > 0, out=np.zeros_like(s))
    flow_u, flow_v = gradient @ v, gradient.T @ u
    return SingularRates(
        s=-depth * s ** (2 - 2 / depth) * np.diag(inner),
        u=-u @ left - (flow_u - u @ (u.T @ flow_u)) * beside,
        v=-v @ right - (flow_v - v @ (v.T @ flow_v)) * beside,
        guarded=int(np.triu(near, 1).sum()),
    )


def end_to_end_rate(weight: Matrix, gradient: Matrix, depth: int) -> Matrix:
    """Rate of the product of a balanced network: -Σ_j (W W^T)^((j-1)/D) G (W^T W)^((D-j)/D).

    In the singular basis of W this multiplies each entry of U^T G V by a sum without any division:
    equal and vanishing singular values need no special care.

    Source: Arora et al. 2018, theorem 1.
    """
    _check_depth(depth)
    u, s, vt = np.linalg.svd(weight)
    root = s ** (2 / depth)
    left, right = np.zeros(len(u)), np.zeros(len(vt))
    left[: len(s)] = right[: len(s)] = root
    factor = sum(np.outer(left ** (j - 1), right ** (depth - j)) for j in range(1, depth + 1))
    return -u @ (factor * (u.T @ gradient @ vt.T)) @ vt


def singular_flow(
    weight: Matrix,
    gradient: Callable[[Matrix, int], Matrix],
    depth: int,
    rate: float,
    steps: int | Iterable[int],
    every: int = 10,
    modes: int = 10,
) -> tuple[Int[np.ndarray, " records"], Float[np.ndarray, "records modes"]]:
    """Singular values of the product along the training, in steps of the learning rate.

    Args:
        weight: product of the initial, balanced factors.
        gradient: `gradient(W, step)` of the loss with respect to W in step 0, 1, ...; a change of
            task is a change of this function.
        depth: number of factors.
        rate: learning rate.
        steps: number of steps, or what yields 1, 2, ..., n.
        every: steps between records.
        modes: largest singular values to record.

    Returns:
        Steps of the records, and the singular values there.
    """
    w = np.asarray(weight, dtype=float)
    times, found = [0], [np.linalg.svd(w, compute_uv=False)[:modes]]
    for step in range(1, steps + 1) if isinstance(steps, int) else steps:
        w = w + rate * end_to_end_rate(w, gradient(w, step - 1), depth)
        if step % every == 0:
            times.append(step)
            found.append(np.linalg.svd(w, compute_uv=False)[:modes])
    return np.array(times), np.stack(found)


def _check_depth(depth: int) -> None:
    if depth < 1:
        raise DataError("depth", value=depth, expected="1 or more")
