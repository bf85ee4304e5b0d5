"""Graph convolutions whose constant input is propagated once instead of once per epoch.

In layer-local training the input of a layer does not change while the layer learns, so for
convolutions that are linear in their input (GCN, GraphSAGE with mean) the product of the
adjacency operator and the features is a constant too: an epoch is a dense product with the
weights, and only for the rows that the loss reads. Sparse features stay sparse, multiplied by the
weights first. The modules keep the parameters (and `state_dict`) of the PyG ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, SAGEConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import add_self_loops, remove_self_loops

GAT_HEADS = 4
# Below this share of non-zeros, sparse products are faster than dense ones.
SPARSE_BELOW = 0.1

ConvName = Literal["gcn", "sage", "gat"]
Conv: TypeAlias = ConvName | Callable[[int, int], nn.Module]


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: SparseMatrix, dense: Tensor) -> Tensor:
        ctx.matrix = matrix
        return matrix.stored @ dense

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, ctx.matrix.transposed @ gradient.contiguous()


class SparseMatrix:
    """A constant sparse matrix that multiplies dense ones inside autograd.

    Both it and its transpose are kept in CSR, so that the backward product is as fast as the
    forward one and nothing is saved for it.
    """

    def __init__(self, matrix: Any, device: torch.device | str = "cpu") -> None:
        self.matrix = sparse.csr_matrix(matrix, dtype=np.float32)
        self.device = torch.device(device)
        self._kept: tuple[Tensor, SparseMatrix] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.matrix.shape
        return rows, columns

    @cached_property
    def stored(self) -> Tensor:
        """As a torch CSR tensor."""
        return _torch_csr(self.matrix, self.device)

    @cached_property
    def transposed(self) -> Tensor:
        """Its transpose as a torch CSR tensor."""
        return _torch_csr(self.matrix.T.tocsr(), self.device)

    def __matmul__(self, dense: Float[Tensor, "columns width"]) -> Float[Tensor, "rows width"]:
        return _SparseProduct.apply(self, dense)

    def rows(self, index: Int[Tensor, " kept"] | None) -> SparseMatrix:
        """The matrix of these rows only (all of them for None).

        Asked again with the same tensor it returns the same object, so that passes which differ
        in their input only can share products.
        """
        if index is None:
            return self
        if self._kept is None or self._kept[0] is not index:
            self._kept = index, SparseMatrix(self.matrix[index.cpu().numpy()], self.device)
        return self._kept[1]

    def dense(self) -> Float[Tensor, "rows columns"]:
        """As a dense tensor."""
        return torch.from_numpy(self.matrix.toarray()).to(self.device)


Features: TypeAlias = Float[Tensor, "nodes width"] | SparseMatrix


def _torch_csr(matrix: sparse.csr_matrix, device: torch.device) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Sparse (CSR|invariant).*")
        parts = (matrix.indptr, matrix.indices, matrix.data)
        crow, columns, values = (torch.from_numpy(part.copy()) for part in parts)
        return torch.sparse_csr_tensor(
            crow.long(), columns.long(), values, size=matrix.shape, device=device
        )


def as_features(x: Any, device: torch.device | str = "cpu") -> Features:
    """Dense features as they are, mostly empty ones as a `SparseMatrix`.

    Args:
        x: dense array or tensor, or SciPy sparse matrix, nodes x width.
    """
    if isinstance(x, SparseMatrix):
        return x
    if sparse.issparse(x):
        return SparseMatrix(x, device)
    x = torch.as_tensor(x, dtype=torch.float32)
    if x.numel() and (x != 0).float().mean() < SPARSE_BELOW:
        return SparseMatrix(x.cpu().numpy(), device)
    return x.to(device)


def unit_rows(h: Features) -> Features:
    """n(h) = h / (||h||_2 + 1e-8) for every row; a zero row stays zero."""
    return unit_blocks(h)[0]


def unit_blocks(*blocks: Features) -> list[Features]:
    """n(h) where the columns of h come in blocks side by side."""
    squares = torch.stack([_squared_lengths(block) for block in blocks]).sum(dim=0)
    scale = 1 / (squares.sqrt() + 1e-8)
    return [_scaled_rows(block, scale) for block in blocks]


def _squared_lengths(h: Features) -> Float[Tensor, " nodes"]:
    if isinstance(h, SparseMatrix):
        squares = np.asarray(h.matrix.multiply(h.matrix).sum(axis=1)).ravel()
        return torch.from_numpy(squares).to(h.device)
    return h.square().sum(dim=1)


def _scaled_rows(h: Features, scale: Float[Tensor, " nodes"]) -> Features:
    if isinstance(h, SparseMatrix):
        return SparseMatrix(sparse.diags(scale.cpu().numpy()) @ h.matrix, h.device)
    return h * scale[:, None]


def beside(*parts: Features) -> Features:
    """Features side by side (more columns); sparse if any part is."""
    if any(isinstance(part, SparseMatrix) for part in parts):
        return SparseMatrix(sparse.hstack([scipy_csr(part) for part in parts]), parts[0].device)
    return torch.cat(parts, dim=1)


def below(*parts: Features) -> Features:
    """Features one under the other (more nodes); sparse if any part is."""
    if any(isinstance(part, SparseMatrix) for part in parts):
        return SparseMatrix(sparse.vstack([scipy_csr(part) for part in parts]), parts[0].device)
    return torch.cat(parts, dim=0)


def scipy_csr(part: Features) -> sparse.csr_matrix:
    """Features as a SciPy matrix."""
    return part.matrix if isinstance(part, SparseMatrix) else sparse.csr_matrix(part.cpu().numpy())


class Edges:
    """The arcs of a graph and the operators that convolutions derive from them, each made once.

    Args:
        index: source and target node of every arc.
        nodes: number of nodes.
    """

    def __init__(self, index: Int[Tensor, "2 arcs"], nodes: int) -> None:
        self.index, self.nodes = index, nodes

    @cached_property
    def gcn(self) -> SparseMatrix:
        """D^-1/2 (A + I) D^-1/2, rows are targets (Kipf and Welling)."""
        index, weight = gcn_norm(self.index, num_nodes=self.nodes)
        return self._operator(index, weight)

    @cached_property
    def mean(self) -> SparseMatrix:
        """D^-1 A, the mean over sources of arcs into each node."""
        degree = torch.bincount(self.index[1], minlength=self.nodes)
        return self._operator(self.index, 1.0 / degree[self.index[1]])

    @cached_property
    def looped(self) -> Int[Tensor, "2 arcs_and_nodes"]:
        """The arcs with exactly one self loop per node."""
        index, _ = remove_self_loops(self.index)
        index, _ = add_self_loops(index, num_nodes=self.nodes)
        return index

    def _operator(self, index: Tensor, weight: Tensor) -> SparseMatrix:
        source, target = index.cpu().numpy()
        shape = (self.nodes, self.nodes)
        matrix = sparse.csr_matrix((weight.cpu().numpy(), (target, source)), shape=shape)
        return SparseMatrix(matrix, self.index.device)


_products: ContextVar[dict[tuple[Any, ...], Any] | None] = ContextVar("products", default=None)


@contextmanager
def shared_products() -> Iterator[None]:
    """Within this context passes that share sparse features and weights multiply them once.

    Positive, negative and candidate passes differ in labels or links only; where the links are the
    same too, so is the propagated product. Weights must not change inside.
    """
    token = _products.set({})
    try:
        yield
    finally:
        _products.reset(token)


def _once(key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """What `make` returns; inside `shared_products` it is asked once for every key."""
    known = _products.get()
    if known is None:
        return make()
    key = (*key, torch.is_grad_enabled())
    if key not in known:
        known[key] = make()
    return known[key]


def _product(
    left: SparseMatrix | None, x: Features, weight: Float[Tensor, "out width"]
) -> Float[Tensor, "rows out"]:
    """M x W^T, or x W^T where `left` is None."""
    if not isinstance(x, SparseMatrix):
        return x @ weight.t()
    key = (id(left), id(x), weight.data_ptr(), weight.shape)
    if left is None:
        return _once(key, lambda: x @ weight.t())
    return _once(key, lambda: left @ _product(None, x, weight))


@dataclass(frozen=True)
class Term:
    """A constant M x, multiplied out where x is dense, kept as two sparse factors where not."""

    left: SparseMatrix | None
    right: Features

    @classmethod
    def of(
        cls, operator: SparseMatrix | None, x: Features, rows: Int[Tensor, " kept"] | None
    ) -> Term:
        """M x for the given rows (all for None); an operator of None is the identity."""
        if operator is None:
            if isinstance(x, SparseMatrix):
                return cls(None, x.rows(rows))
            return cls(None, x if rows is None else x[rows])
        if isinstance(x, SparseMatrix):
            return cls(operator.rows(rows), x)
        return cls(None, operator.rows(rows) @ x)

    def times(self, weight: Float[Tensor, "out width"]) -> Float[Tensor, "rows out"]:
        """M x W^T."""
        return _product(self.left, self.right, weight)

    @property
    def width(self) -> int:
        """Columns of x."""
        return self.right.shape[1]


@dataclass(frozen=True)
class Propagated:
    """The constant part of a linear convolution: for each of its weights, blocks of columns."""

    terms: tuple[tuple[Term, ...], ...]

    def times(self, which: int, weight: Float[Tensor, "out width"]) -> Float[Tensor, "rows out"]:
        """Sum over blocks of M x_block W_block^T."""
        blocks = self.terms[which]
        if len(blocks) == 1:
            return blocks[0].times(weight)
        widths = [term.width for term in blocks]
        # The gradient of every split is as wide as the whole weight.
        parts = _once((weight.data_ptr(), *widths), lambda: weight.split(widths, dim=1))
        products = [term.times(part) for term, part in zip(blocks, parts, strict=True)]
        return sum(products[1:], products[0])


@dataclass(frozen=True)
class Unpropagated:
    """Input of a convolution that has to see the whole graph in every pass."""

    blocks: tuple[Features, ...]
    edges: Edges
    rows: Int[Tensor, " kept"] | None

    @cached_property
    def x(self) -> Float[Tensor, "nodes width"]:
        """All columns as one dense tensor."""
        dense = [b.dense() if isinstance(b, SparseMatrix) else b for b in self.blocks]
        return dense[0] if len(dense) == 1 else torch.cat(dense, dim=1)

    def kept(self, out: Float[Tensor, "nodes out"]) -> Float[Tensor, "rows out"]:
        """The rows that were asked for."""
        return out if self.rows is None else out[self.rows]


def _propagated(
    operators: Sequence[SparseMatrix | None],
    blocks: Sequence[Features],
    rows: Int[Tensor, " kept"] | None,
) -> Propagated:
    return Propagated(
        tuple(tuple(Term.of(operator, x, rows) for x in blocks) for operator in operators)
    )


class GCN(GCNConv):
    """PyG's `GCNConv` that also takes an input propagated beforehand."""

    def prepare(
        self, blocks: Sequence[Features], edges: Edges, rows: Tensor | None = None
    ) -> Propagated:
        """A_hat x, blocks of columns side by side, for the given rows."""
        return _propagated([edges.gcn], blocks, rows)

    def forward(self, x: Any, edge_index: Any = None) -> Tensor:
        """Output of the rows in `x` if that was prepared, else of every node."""
        if isinstance(x, Propagated):
            return x.times(0, self.lin.weight) + self.bias
        return super().forward(x, edge_index)


class SAGE(SAGEConv):
    """PyG's `SAGEConv` with mean aggregation that also takes an input propagated beforehand."""

    def prepare(
        self, blocks: Sequence[Features], edges: Edges, rows: Tensor | None = None
    ) -> Propagated:
        """Neighbour means and x itself, blocks of columns side by side, for the given rows."""
        return _propagated([edges.mean, None], blocks, rows)

    def forward(self, x: Any, edge_index: Any = None) -> Tensor:
        """Output of the rows in `x` if that was prepared, else of every node."""
        if isinstance(x, Propagated):
            neighbours = x.times(0, self.lin_l.weight) + self.lin_l.bias
            return neighbours + x.times(1, self.lin_r.weight)
        return super().forward(x, edge_index)


class GAT(GATConv):
    """PyG's `GATConv` that keeps sparse features sparse; its attention changes every epoch."""

    def prepare(
        self, blocks: Sequence[Features], edges: Edges, rows: Tensor | None = None
    ) -> Unpropagated:
        """The input as it is: there is nothing to compute before the weights are known."""
        return Unpropagated(tuple(blocks), edges, rows)

    def forward(self, x: Any, edge_index: Any = None) -> Tensor:
        """Output of the rows in `x` if that was prepared, else of every node."""
        if not isinstance(x, Unpropagated):
            return super().forward(x, edge_index)
        own = _propagated([None], x.blocks, None)
        projected = own.times(0, self.lin.weight).view(-1, self.heads, self.out_channels)
        alpha = (
            (projected * self.att_src).sum(dim=-1),
            (projected * self.att_dst).sum(dim=-1),
        )
        looped = x.edges.looped
        alpha = self.edge_updater(looped, alpha=alpha, edge_attr=None, size=None)
        out = self.propagate(looped, x=(projected, projected), alpha=alpha, size=None)
        out = out.flatten(start_dim=1) if self.concat else out.mean(dim=1)
        return x.kept(out + self.bias)


class NoGraph(nn.Module):
    """A linear map that ignores the edges: the layer of a multilayer perceptron."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.lin = nn.Linear(in_channels, out_channels)

    def prepare(
        self, blocks: Sequence[Features], edges: Edges, rows: Tensor | None = None
    ) -> Propagated:
        """The features of the given rows."""
        return _propagated([None], blocks, rows)

    def forward(self, x: Any, edge_index: Any = None) -> Tensor:
        """x W^T + b."""
        if isinstance(x, Propagated):
            return x.times(0, self.lin.weight) + self.lin.bias
        return self.lin(x)


def make_conv(conv: Conv, in_channels: int, out_channels: int, last: bool = False) -> nn.Module:
    """A convolution by name (or by the caller's factory).

    Args:
        conv: "gcn", "sage", "gat", or a function of (inputs, outputs) that returns a module with
            `forward(x, edge_index)`.
        in_channels: width of the input.
        out_channels: width of the output; four heads share it for "gat".
        last: for "gat", average the heads instead of putting them side by side, as PyG does in
            the output layer of a network trained by backpropagation.

    Raises:
        ValueError: for an unknown name, or a width that the heads cannot share.
    """
    if not isinstance(conv, str):
        return conv(in_channels, out_channels)
    if conv == "gcn":
        return GCN(in_channels, out_channels)
    if conv == "sage":
        return SAGE(in_channels, out_channels)
    if conv != "gat":
        raise ValueError(f"unknown conv {conv!r}; choose gcn, sage, gat or pass a function")
    if last:
        return GAT(in_channels, out_channels, heads=GAT_HEADS, concat=False)
    if out_channels % GAT_HEADS:
        raise ValueError(
            f"hidden={out_channels} cannot be shared by the {GAT_HEADS} heads of conv='gat'; "
            f"choose a multiple of {GAT_HEADS}"
        )
    return GAT(in_channels, out_channels // GAT_HEADS, heads=GAT_HEADS)


class ForwardLayer(nn.Module):
    """One layer g(h) = ReLU(conv(h, E)).

    Args:
        conv: the convolution.
        cache: propagate constant inputs beforehand where the convolution allows it.
        activation: False leaves the ReLU out (output layer of a classifier).
    """

    def __init__(self, conv: nn.Module, cache: bool = True, activation: bool = True) -> None:
        super().__init__()
        self.conv, self.cache, self.activation = conv, cache, activation

    def prepare(
        self, blocks: Sequence[Features], edges: Edges, rows: Tensor | None = None
    ) -> Propagated | Unpropagated:
        """Everything in the layer's input that does not depend on its weights.

        Args:
            blocks: input columns, in blocks side by side; constant as far as this layer goes.
            edges: the graph.
            rows: nodes whose output is wanted; None for all.
        """
        if self.cache and hasattr(self.conv, "prepare"):
            return self.conv.prepare(blocks, edges, rows)
        return Unpropagated(tuple(blocks), edges, rows)

    def forward(self, inputs: Propagated | Unpropagated) -> Float[Tensor, "rows out"]:
        """Output for the prepared rows. One call is one forward pass of the layer."""
        if isinstance(inputs, Propagated) or (self.cache and hasattr(self.conv, "prepare")):
            out = self.conv(inputs)
        else:
            out = inputs.kept(self.conv(inputs.x, inputs.edges.index))
        return out.relu() if self.activation else out
