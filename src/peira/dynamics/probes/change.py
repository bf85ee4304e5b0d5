"""Did training learn features or only reweight those it started with?"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peira.data.errors import DataError
from peira.dynamics.probes.alignment import (
    kernel_alignment,
    kernel_change,
    representation_alignment,
    sign_similarity,
)
from peira.dynamics.probes.tangent import empirical_ntk
from peira.dynamics.probes.weights import layer_changes, relative_weight_change, weight_change

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Laziness:
    """Measures of change between two moments of one network; lazier is less change.

    Attributes:
        weight_change: Frobenius norm of the difference of the weights.
        relative_weight_change: as a share of the weights' norm before.
        representation_alignment: of R = H H^T before and after, at most 1.
        sign_similarity: share of activities whose sign stayed.
        kernel_alignment: of the tangent kernels (trace over outputs), at most 1.
        kernel_change: of the tangent kernels, relative.
        layers: weight change by parameter name.
    """

    weight_change: float
    relative_weight_change: float
    representation_alignment: float
    sign_similarity: float
    kernel_alignment: float
    kernel_change: float
    layers: dict[str, float]


def laziness(
    model: nn.Module,
    before: State,
    after: State,
    probe: Tensor,
    *,
    params: Sequence[str] | None = None,
    representation: str | None = None,
) -> Laziness:
    """Compare a network's weights, representation and tangent kernel at two moments.

    Args:
        model: the architecture; its own weights stay as they are.
        before, after: its `state_dict()` at the two moments.
        probe: inputs that were chosen before training.
        params: names or prefixes of the parameters whose change and kernel count; None takes all.
        representation: name of the submodule whose output is the representation; None takes the
            input of the last submodule with weights, the features that the read-out sees.

    Raises:
        DataError: names that the model does not have, state dicts of another model.
    """
    twin = copy.deepcopy(model)
    kernels, features = [], []
    for state in (before, after):
        try:
            twin.load_state_dict(state)
        except RuntimeError as error:
            raise DataError(
                f"weights of another model: {str(error).splitlines()[-1].strip()}"
            ) from None
        kernels.append(empirical_ntk(twin, probe, mode="trace", params=params))
        features.append(activity(twin, probe, representation))
    return Laziness(
        weight_change=weight_change(before, after, params),
        relative_weight_change=relative_weight_change(before, after, params),
        representation_alignment=representation_alignment(*features),
        sign_similarity=sign_similarity(*features),
        kernel_alignment=kernel_alignment(*kernels),
        kernel_change=kernel_change(*kernels),
        layers=layer_changes(before, after),
    )


def activity(model: nn.Module, x: Tensor, name: str | None = None) -> Tensor:
    """What a submodule gives for the inputs `x`, (n, ...).

    Args:
        model: any module.
        x: n inputs.
        name: of the submodule; None takes the input of the last submodule that holds weights.
            Of a submodule called several times, the last call counts.
    """
    modules = dict(model.named_modules())
    if name is not None and name not in modules:
        known = ", ".join(filter(None, modules))
        raise DataError("no such submodule", value=name, expected=f"one of {known}")
    holders = [m for m in modules.values() if next(m.parameters(recurse=False), None) is not None]
    watched = modules[name] if name is not None else holders[-1]
    found: list[Tensor] = []

    def hook(_: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        found.append((out if name is not None else given[0]).detach().clone())

    handle = watched.register_forward_hook(hook)
    try:
        with torch.no_grad():
            model(x)
    finally:
        handle.remove()
    if not found:
        raise DataError(f"the model does not call {name or 'its last submodule'}")
    return found[-1]


class LazinessTracker:
    """Remembers where a network started; measures how far it went, in any training loop.

    Args:
        model: the network that is trained; must not be copied or replaced meanwhile.
        probe: inputs to measure on, chosen before training.
        params, representation: as in `laziness`.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Tensor,
        *,
        params: Sequence[str] | None = None,
        representation: str | None = None,
    ) -> None:
        self.model, self.probe = model, probe
        self.params, self.representation = params, representation
        self.start = {name: value.clone() for name, value in model.state_dict().items()}

    def measure(self) -> Laziness:
        """The change since the start."""
        return laziness(
            self.model,
            self.start,
            self.model.state_dict(),
            self.probe,
            params=self.params,
            representation=self.representation,
        )
