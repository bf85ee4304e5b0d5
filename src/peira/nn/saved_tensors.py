"""How much memory autograd keeps between the forward and the backward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import torch
from torch import Tensor


class SavedTensors:
    """Context that counts the bytes autograd keeps alive for backward passes.

    Storages are counted once however many operations save them, and released when the graph that
    holds them is freed. Works on every device, unlike allocator statistics. Tensors in `ignore`
    (and views of them) do not count: parameters and data sets are there with or without autograd.

    Attributes:
        live: bytes held now.
        peak: largest `live` so far.

    Example:
        >>> x = torch.ones(10, requires_grad=True)
        >>> with SavedTensors() as saved:
        ...     x.exp().sum().backward()
        >>> saved.peak
        40
    """

    def __init__(self, ignore: Iterable[Tensor] = ()) -> None:
        # Holding the tensors keeps their addresses from being given to others meanwhile.
        self._ignored_tensors = list(ignore)
        self._ignored = {key for tensor in self._ignored_tensors for key, _ in _storages(tensor)}
        self._holders: Counter[int] = Counter()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)
        self.live = self.peak = 0

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def _pack(self, tensor: Tensor) -> _Held:
        return _Held(self, tensor)

    def _hold(self, storages: list[tuple[int, int]]) -> None:
        for key, size in storages:
            if key not in self._ignored:
                self._holders[key] += 1
                self.live += size if self._holders[key] == 1 else 0
        self.peak = max(self.peak, self.live)

    def _release(self, storages: list[tuple[int, int]]) -> None:
        for key, size in storages:
            if key not in self._ignored:
                self._holders[key] -= 1
                self.live -= size if self._holders[key] == 0 else 0


class _Held:
    """A saved tensor; its end is the end of its part in the count."""

    def __init__(self, meter: SavedTensors, tensor: Tensor) -> None:
        self.tensor, self._meter, self._storages = tensor, meter, _storages(tensor)
        meter._hold(self._storages)

    def __del__(self) -> None:
        self._meter._release(self._storages)


def _unpack(held: _Held) -> Tensor:
    return held.tensor


def _storages(tensor: Tensor) -> list[tuple[int, int]]:
    return [
        (part.untyped_storage().data_ptr(), part.untyped_storage().nbytes())
        for part in _dense_parts(tensor)
        if part.untyped_storage().nbytes()
    ]


def _dense_parts(tensor: Tensor) -> list[Tensor]:
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    return [tensor]
