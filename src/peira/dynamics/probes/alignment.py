"""How alike two kernels or two representations of the same inputs are."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from peira.data.errors import DataError


def kernel_alignment(
    a: Float[Tensor, "n m"], b: Float[Tensor, "n m"], *, centred: bool = False
) -> float:
    """<A, B> / (|A| |B|) in Frobenius norm; 1 for kernels equal up to a factor.

    Args:
        a, b: kernels of the same inputs, any shape that both share.
        centred: take the mean feature away first, which gives centred kernel alignment (CKA,
            Cortes et al. 2012; Kornblith et al. 2019). The kernels must then be square.

    Raises:
        DataError: shapes that differ, a kernel that is zero or not finite.
    """
    a, b = _same_shape(a, b)
    if centred:
        a, b = _centre(a), _centre(b)
    return float(_inner(a, b, "kernel"))


def kernel_change(before: Tensor, after: Tensor) -> float:
    """|K_after - K_before| / |K_before| in Frobenius norm."""
    before, after = _same_shape(before, after)
    return float((after - before).norm() / _norm(before, "kernel"))


def kernel_task_alignment(
    kernel: Float[Tensor, "n n"],
    y: Float[Tensor, "n"] | Float[Tensor, "n k"],
    *,
    centred: bool = True,
) -> float:
    """y^T K y / (|K| |y|^2): how much of the kernel's power lies along the targets.

    Args:
        kernel: of the n inputs.
        y: their targets, one or several columns (then the alignment with Y Y^T).
        centred: take the mean off y and the column means off K, as in the centred kernel alignment
            of Kumar et al. (2024).

    Raises:
        DataError: constant targets, shapes that differ.
    """
    n = len(kernel)
    if kernel.ndim != 2 or kernel.shape[1] != n or len(y) != n:
        raise DataError(
            "kernel and targets do not fit",
            value=(tuple(kernel.shape), tuple(y.shape)),
            expected="shapes (n, n) and (n,) or (n, k)",
        )
    targets = y.double().reshape(n, -1)
    k = kernel.double()
    if centred:
        targets, k = targets - targets.mean(0), k - k.mean(0)
    power = (targets.T @ targets).norm()
    if not power > 0:
        raise DataError("targets", expected="targets that are not constant")
    return float((targets * (k @ targets)).sum() / (_norm(k, "kernel") * power))


def representation_alignment(
    before: Float[Tensor, "n ..."], after: Float[Tensor, "n ..."], *, centred: bool = False
) -> float:
    """Alignment of R = H H^T of two representations of the same n inputs.

    The numbers of features may differ. |H^T H'|^2 is used in place of <R, R'> (they are equal), so
    that the cost is n x features^2 where there are fewer features than inputs.
    """
    if len(before) != len(after):
        raise DataError(
            "representations of different inputs",
            value=(len(before), len(after)),
            expected="the same number of inputs",
        )
    a, b = before.double().reshape(len(before), -1), after.double().reshape(len(after), -1)
    if centred:
        a, b = a - a.mean(0), b - b.mean(0)
    if a.shape[1] + b.shape[1] > 2 * len(a):
        return float(_inner(a @ a.T, b @ b.T, "representation"))
    norms = _norm(a.T @ a, "representation") * _norm(b.T @ b, "representation")
    return float((a.T @ b).square().sum() / norms)


def sign_similarity(before: Tensor, after: Tensor) -> float:
    """Share of entries whose sign is the same before and after; zero is a sign of its own."""
    before, after = _same_shape(before, after)
    return float((torch.sign(before) == torch.sign(after)).double().mean())


def _same_shape(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise DataError(
            "shapes differ", value=(tuple(a.shape), tuple(b.shape)), expected="equal shapes"
        )
    return a.double(), b.double()


def _inner(a: Tensor, b: Tensor, what: str) -> Tensor:
    return (a * b).sum() / (_norm(a, what) * _norm(b, what))


def _norm(a: Tensor, what: str) -> Tensor:
    norm = a.norm()
    if not (torch.isfinite(norm) and norm > 0):
        raise DataError(f"{what} of norm {float(norm)}", expected="finite numbers, not all zero")
    return norm


def _centre(kernel: Tensor) -> Tensor:
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise DataError("centring", value=tuple(kernel.shape), expected="a square kernel")
    return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()
