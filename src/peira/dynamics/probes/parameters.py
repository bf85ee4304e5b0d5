"""Which parameters of a module a probe looks at, and the module as a function of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from peira.data.errors import DataError
from peira.engine.errors import nearest


def select(model: nn.Module, params: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Parameters by name, detached; all that can be trained, or those that `params` names.

    Args:
        model: any module.
        params: names of parameters or of submodules ("rnn", "rnn.weight"); None takes every
            parameter that requires a gradient.

    Raises:
        DataError: a name that the module does not have, or nothing left to look at.
    """
    named = dict(model.named_parameters())
    if params is None:
        found = {name: p for name, p in named.items() if p.requires_grad}
    else:
        for prefix in params:
            if not any(_fits(name, prefix) for name in named):
                raise DataError(f"the module has no parameter {prefix!r}; {nearest(prefix, named)}")
        # In the module's order, whatever the order of `params`.
        found = {n: p for n, p in named.items() if any(_fits(n, prefix) for prefix in params)}
    if not found:
        raise DataError("the module has no parameter to look at", expected="requires_grad=True")
    return {name: p.detach() for name, p in found.items()}


def _fits(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix.removesuffix(".") + ".")


def refuse_batch_coupling(model: nn.Module) -> None:
    """Raise `DataError` where one input's output depends on the others: batch norm in training."""
    for name, module in model.named_modules():
        coupled = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if coupled and (module.training or not module.track_running_stats):
            raise DataError(
                f"{name or 'the model'} normalises over the batch, so that one input's output "
                "depends on the others",
                value=type(module).__name__,
                expected="model.eval()",
            )


def as_function(model: nn.Module, params: dict[str, Tensor]) -> Callable[..., Tensor]:
    """The module as `f(params, x)` with outputs flattened to (batch, outputs)."""
    rest = {
        name: value.detach()
        for name, value in (*model.named_parameters(), *model.named_buffers())
        if name not in params
    }

    def call(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, {**rest, **values}, (x,)).reshape(len(x), -1)

    return call


def flatten(values: dict[str, Tensor]) -> Tensor:
    """One vector of all parameters, in the dictionary's order."""
    return torch.cat([value.reshape(-1) for value in values.values()])


def unflatten(vector: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `flatten`."""
    parts = vector.split([value.numel() for value in like.values()])
    return {name: part.view_as(like[name]) for name, part in zip(like, parts, strict=True)}
