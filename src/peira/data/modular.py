"""Tables of modular arithmetic, the standard task of grokking, and how tables are split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from peira.data.errors import DataError

Operation = Literal["addition", "subtraction", "quadratic", "random", "sum"]

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "addition": lambda x, y: x + y,
    "subtraction": lambda x, y: x - y,
    "quadratic": lambda x, y: x**2 + x * y + y**2,
}


class Split(NamedTuple):
    """A task with its inputs and labels, in two disjoint parts."""

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor

    def to(self, device: torch.device | str) -> Split:
        """The same split on another device."""
        return Split(*(part.to(device) for part in self))


def modular_table(
    operation: Operation,
    modulus: int,
    symmetric: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, "pairs 2"], Int[Tensor, " pairs"]]:
    """The whole table of x o y mod p.

    Args:
        operation: addition x + y, subtraction x - y, quadratic x^2 + xy + y^2, each mod p; random
            labels (from `generator`); or the plain sum x + y with 2p - 1 classes.
        modulus: p.
        symmetric: only the p(p+1)/2 pairs with x <= y, else all p^2.
        generator: draws the random labels.

    Returns:
        Pairs in lexicographic order and their labels.
    """
    if modulus < 2:
        raise DataError("wrong modulus", value=modulus, expected="2 or more")
    numbers = torch.arange(modulus)
    pairs = (
        torch.combinations(numbers, with_replacement=True)
        if symmetric
        else torch.cartesian_prod(numbers, numbers)
    )
    x, y = pairs.unbind(1)
    if operation == "random":
        return pairs, torch.randint(modulus, (len(pairs),), generator=generator)
    if operation == "sum":
        return pairs, x + y
    if operation not in OPERATIONS:
        raise DataError("unknown operation", value=operation, expected=", ".join(OPERATIONS))
    return pairs, OPERATIONS[operation](x, y) % modulus


def split_table(
    inputs: Tensor, labels: Tensor, train_fraction: float, generator: torch.Generator
) -> Split:
    """Shuffle the rows; the first floor(`train_fraction` * n) train, the rest test.

    Raises:
        DataError: rows and labels differ in number, or one part would be empty.
    """
    if len(inputs) != len(labels):
        raise DataError(f"{len(inputs)} rows but {len(labels)} labels")
    size = int(train_fraction * len(inputs))
    if not 0 < size < len(inputs):
        raise DataError(
            f"a train fraction of {train_fraction} leaves one part of {len(inputs)} rows empty",
            expected="a fraction between 0 and 1 that leaves both parts some rows",
        )
    order = torch.randperm(len(inputs), generator=generator)
    train, test = order[:size], order[size:]
    return Split(inputs[train], labels[train], inputs[test], labels[test])
