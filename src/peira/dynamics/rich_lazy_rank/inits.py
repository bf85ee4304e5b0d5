"""Initial recurrent weights whose rank or structure is set while their norm stays the same.

Everywhere row i of a matrix is what unit i receives: rows are post-, columns presynaptic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from peira.data.errors import DataError

Match = Literal["fro", "spectral", "radius"]
Shuffle = Literal["elements", "degrees"]

# From here on a few leading singular triplets are found without all the others.
MANY_UNITS = 1500

# Cell types: excitatory, and three inhibitory ones in the pattern that Pfeffer et al. (2013) found
# in mouse visual cortex: PV inhibits all but SST and VIP, SST all but itself, VIP mostly SST.
# Shares of the cells; then, for each postsynaptic type (row), the probability and the mean strength
# of a connection from each presynaptic type (column). Round numbers, no measurements.
CELL_TYPES = ("E", "PV", "SST", "VIP")
SHARES = (0.80, 0.08, 0.07, 0.05)
PROBABILITIES = (
    (0.15, 0.60, 0.50, 0.05),
    (0.40, 0.60, 0.30, 0.05),
    (0.35, 0.10, 0.05, 0.50),
    (0.30, 0.10, 0.45, 0.05),
)
STRENGTHS = (
    (1.0, 2.0, 1.0, 0.5),
    (1.5, 2.0, 0.8, 0.5),
    (1.0, 0.5, 0.5, 1.2),
    (1.0, 0.5, 1.0, 0.5),
)


def gaussian_init(
    size: int, gain: float = 1.25, *, generator: torch.Generator | None = None
) -> Float[Tensor, "N N"]:
    """W_0 = gain G / sqrt(N) with G_ij ~ N(0, 1): the paper's base matrix (gain 1.25)."""
    return gain / math.sqrt(size) * torch.randn(size, size, generator=generator)


def low_rank_init(
    weights: Float[Tensor, "N N"], rank: int, match: Match = "fro"
) -> Float[Tensor, "N N"]:
    """The leading `rank` singular triplets of a matrix, rescaled to be as large as it was.

    Args:
        weights: square matrix W_0.
        rank: r, 1 to N; N gives W_0 back.
        match: what stays equal: the Frobenius norm (the paper), the leading singular value
            ("spectral"), or the spectral radius, the largest absolute eigenvalue.

    Raises:
        DataError: no square matrix, entries that are not finite or all zero, a rank out of range,
            a truncation without an eigenvalue to match.
    """
    _check_square(weights)
    if not 1 <= rank <= len(weights):
        raise DataError("rank", value=rank, expected=f"1 to {len(weights)}")
    u, s, v = _leading_triplets(weights.double(), rank)
    truncated = (u * s) @ v
    now, wanted = _size(truncated, match), _size(weights.double(), match)
    if not now > 1e-9 * wanted:
        raise DataError("the truncated matrix has spectral radius 0", expected="match='fro'")
    return (truncated * (wanted / now)).to(weights.dtype)


def orthogonal_init(
    size: int, norm: float, *, generator: torch.Generator | None = None
) -> Float[Tensor, "N N"]:
    """A random orthogonal matrix times norm / sqrt(N): equal singular values, Frobenius `norm`."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator))
    # The signs make the distribution that of Haar.
    return q * torch.sign(r.diagonal()) * (norm / math.sqrt(size))


def aligned_init(
    target: Float[Tensor, " d"],
    hidden: int,
    *,
    factor: Float[Tensor, "f d"] | None = None,
    norm: float = 1.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "hidden f"]:
    """First-layer weights of rank 1 that read out the target: u a^T with a^T F = beta^T.

    The task is beta^T x, the network sees z = F x. A truncated F gives partial alignment: the
    least-squares a.

    Args:
        target: beta.
        hidden: units; u is a random direction among them.
        factor: F; None is the identity.
        norm: Frobenius norm of the result.
        generator: draws u.

    Raises:
        DataError: shapes that do not fit, a target that F cannot express at all.
    """
    if target.ndim != 1 or (factor is not None and factor.shape[-1] != len(target)):
        raise DataError("target and factor do not fit", value=tuple(target.shape))
    direction = target if factor is None else torch.linalg.pinv(factor.T) @ target
    if not direction.norm() > 0:
        raise DataError("the target is zero, or out of the factor's range")
    u = torch.randn(hidden, generator=generator, dtype=target.dtype)
    return norm * torch.outer(u / u.norm(), direction / direction.norm())


def connectome_init(
    adjacency: Float[Tensor, "N N"],
    signs: Float[Tensor, " N"] | Sequence[int] | None = None,
    gain: float = 1.25,
    *,
    rows: Literal["post", "pre"],
) -> Float[Tensor, "N N"]:
    """Recurrent weights from a connectome, with the norm that a Gaussian matrix would have.

    Args:
        adjacency: weighted adjacency; what is in its rows is said by `rows`.
        signs: +1 or -1 for each neuron (Dale's law): the sign of everything that it sends; the
            adjacency must not be negative then. None keeps the signs of the adjacency.
        gain: g; the Frobenius norm becomes g sqrt(N), that of `gaussian_init` on average.
        rows: "post": entry (i, j) is what i receives from j; "pre": what i sends to j.

    Returns:
        Weights, rows postsynaptic.

    Raises:
        DataError: no square matrix, entries not finite or all zero, signs that do not fit.
    """
    _check_square(adjacency)
    if rows not in ("post", "pre"):
        raise DataError("rows", value=rows, expected="'post' or 'pre'")
    weights = adjacency.T.clone() if rows == "pre" else adjacency.clone()
    if signs is not None:
        given = torch.as_tensor(signs, dtype=weights.dtype)
        if given.shape != (len(weights),) or not (given.abs() == 1).all():
            raise DataError("signs", expected=f"{len(weights)} times +1 or -1")
        if (weights < 0).any():
            raise DataError("a negative weight beside signs", expected="no sign, or no weight < 0")
        weights = weights * given
    return weights * (gain * math.sqrt(len(weights)) / weights.norm())


def block_init(
    size: int, norm: float, *, generator: torch.Generator | None = None
) -> Float[Tensor, "N N"]:
    """Cell types that connect by type, Dale's law, and balance of excitation and inhibition.

    Probabilities and strengths are those of the table in this module; single strengths are
    exponential. For each postsynaptic type the inhibition is scaled so that it takes away the mean
    excitation.

    Args:
        size: N, 20 at least.
        norm: Frobenius norm of the result.
        generator: draws connections and strengths.
    """
    if size < 20:
        raise DataError("size", value=size, expected="20 units or more for four cell types")
    kinds = _cell_types(size)
    probability, strength = torch.tensor(PROBABILITIES), torch.tensor(STRENGTHS)
    # No unit connects to itself.
    partners = torch.bincount(kinds) - torch.eye(len(CELL_TYPES))
    mean = probability * strength * partners
    strength = strength.clone()
    strength[:, 1:] *= -(mean[:, 0] / mean[:, 1:].sum(1))[:, None]
    there = torch.rand(size, size, generator=generator) < probability[kinds][:, kinds]
    sizes = torch.empty(size, size).exponential_(generator=generator)
    weights = there * sizes * strength[kinds][:, kinds]
    return weights.fill_diagonal_(0) * (norm / weights.norm())


def _cell_types(size: int) -> Tensor:
    """Type of each of `size` cells, one of each type at least."""
    counts = [max(1, round(share * size)) for share in SHARES[1:]]
    counts = [size - sum(counts), *counts]
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def chain_init(
    size: int,
    norm: float,
    *,
    probability: float = 0.2,
    spread: float = 0.6,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "N N"]:
    """Gaussian weights on a sparse graph with more chains a -> b -> c than by chance.

    Units with many inputs have many outputs: an edge j -> i is there with probability
    p q_i q_j, q log-normal of mean 1, which multiplies the number of chains by E q^2.

    Args:
        size: N.
        norm: Frobenius norm of the result.
        probability: p, mean density.
        spread: standard deviation of log q; 0 is an Erdos-Renyi graph.
        generator: draws graph and weights.
    """
    q = torch.exp(spread * torch.randn(size, generator=generator) - spread**2 / 2)
    odds = (probability * torch.outer(q, q)).clamp(max=1)
    there = torch.rand(size, size, generator=generator) < odds
    weights = there * torch.randn(size, size, generator=generator)
    _check_square(weights)
    return weights * (norm / weights.norm())


def shuffle_weights(
    weights: Float[Tensor, "N N"],
    kind: Shuffle = "elements",
    *,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "N N"]:
    """A control of the same norm without the structure.

    Args:
        weights: square matrix, rows postsynaptic.
        kind: "elements" permutes all entries. "degrees" swaps the targets of pairs of edges, a->b
            and c->d into a->d and c->b, ten times the number of edges in all: every unit keeps how
            many it sends to and receives from, and the sign of what it sends.
        generator: draws the permutation or the swaps.

    Raises:
        DataError: no square matrix, entries not finite or all zero.
    """
    _check_square(weights)
    if kind == "elements":
        order = torch.randperm(weights.numel(), generator=generator)
        return weights.flatten()[order].view_as(weights)
    if kind != "degrees":
        raise DataError("kind of shuffle", value=kind, expected="elements or degrees")
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return _swap_edges(weights, np.random.default_rng(seed))


def _swap_edges(weights: Tensor, rng: np.random.Generator, times: int = 10) -> Tensor:
    post, pre = (index.numpy().copy() for index in weights.nonzero(as_tuple=True))
    values = weights[post, pre].clone()
    n, edges = len(weights), len(post)
    # Half of the edges meet the other half in each round.
    for _ in range(2 * times):
        order = rng.permutation(edges)
        a, b = order[: edges // 2], order[edges // 2 : 2 * (edges // 2)]
        wanted = np.concatenate([post[b] * n + pre[a], post[a] * n + pre[b]])
        _, first, repeats = np.unique(wanted, return_index=True, return_counts=True)
        alone = np.zeros(len(wanted), bool)
        alone[first] = repeats == 1
        free = alone & ~np.isin(wanted, post * n + pre) & (wanted // n != wanted % n)
        both = free[: len(a)] & free[len(a) :]
        post[a[both]], post[b[both]] = post[b[both]], post[a[both]]
    shuffled = torch.zeros_like(weights)
    shuffled[torch.from_numpy(post), torch.from_numpy(pre)] = values
    return shuffled


def _leading_triplets(weights: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular values with their vectors; by Lanczos where these are few of many."""
    if len(weights) < MANY_UNITS or rank > len(weights) // 20:
        u, s, v = torch.linalg.svd(weights)
        return u[:, :rank], s[:rank], v[:rank]
    from scipy.sparse.linalg import svds

    start = np.random.default_rng(0).normal(size=len(weights))
    found = svds(weights.numpy(), k=rank, v0=start)
    u, s, v = (torch.from_numpy(part.copy()) for part in found)
    return u, s, v


def _size(weights: Tensor, match: Match) -> float:
    if match == "fro":
        return float(weights.norm())
    if match == "spectral":
        return float(torch.linalg.matrix_norm(weights, 2))
    if match == "radius":
        return float(torch.linalg.eigvals(weights).abs().max())
    raise DataError("match", value=match, expected="fro, spectral or radius")


def _check_square(weights: Tensor) -> None:
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1]:
        raise DataError("recurrent weights", value=tuple(weights.shape), expected="a square matrix")
    bad = (~torch.isfinite(weights)).nonzero()
    if len(bad):
        row, column = (int(index) + 1 for index in bad[0])
        raise DataError(
            "recurrent weights", row=row, column=column, value=float(weights[row - 1, column - 1]),
            expected="finite numbers",
        )  # fmt: skip
    if not weights.any():
        raise DataError("recurrent weights that are all zero")
