"""Many networks of one shape as one module: trained at once, each as if it were alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from peira.data.errors import DataError


class Ensemble(nn.Module):
    """E networks of one architecture, run in one call by `torch.func.vmap`.

    Optimisers that work element by element (SGD with momentum, Adam, AdamW) train each member as
    they would train it alone when the loss is the SUM of the members' losses.

    Args:
        models: networks that differ in their weights only.
        shared: whether all members see the same inputs; otherwise inputs have a first axis of E.
    """

    def __init__(self, models: Sequence[nn.Module], *, shared: bool = False) -> None:
        super().__init__()
        if not models:
            raise DataError("an ensemble of no networks", expected="at least one")
        shapes = {tuple((n, p.shape) for n, p in model.state_dict().items()) for model in models}
        if len(shapes) > 1:
            raise DataError("networks of different shapes", expected="one architecture")
        params, buffers = stack_module_state(list(models))
        self.names = list(params)
        self.stacked = nn.ParameterList([nn.Parameter(value.detach()) for value in params.values()])
        self._buffers_of = {name: value.detach() for name, value in buffers.items()}
        # In a tuple, so that the skeleton's weights are no part of what trains.
        self._skeleton = (copy.deepcopy(models[0]).to("meta"),)
        self.shared = shared

    def __len__(self) -> int:
        return len(self.stacked[0])

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "members ..."]:
        """Outputs of every member, members first."""
        params = dict(zip(self.names, self.stacked, strict=True))

        def call(values: dict[str, Tensor], buffers: dict[str, Tensor], one: Tensor) -> Tensor:
            return functional_call(self._skeleton[0], {**values, **buffers}, (one,))

        return vmap(call, (0, 0, None if self.shared else 0))(params, self._buffers_of, x)

    def states(self) -> list[dict[str, Tensor]]:
        """The `state_dict()` of each member as it is now (copies)."""
        params = dict(zip(self.names, self.stacked, strict=True))
        return [
            {
                name: value[i].detach().clone()
                for name, value in {**params, **self._buffers_of}.items()
            }
            for i in range(len(self))
        ]
