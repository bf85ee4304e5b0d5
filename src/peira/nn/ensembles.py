"""Many networks of one shape as one module: trained at once, each as if it were alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

# Act on each number alone, so the same for one network and for many.
ELEMENTWISE = (
    nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.Identity,
)  # fmt: skip


class Ensemble(nn.Module):
    """E networks of one architecture, run in one call.

    Perceptrons (`nn.Sequential` of `nn.Linear` and activations) run as batched products, with
    weights kept as (inputs, outputs), since gradients of the other order have to be copied; all
    other networks by `torch.func.vmap`. Optimisers that work element by element (SGD with momentum,
    Adam, AdamW) train each member as they would train it alone when the loss is the SUM of the
    members' losses.

    Args:
        models: networks that differ in their weights only.
        shared: whether all members see the same inputs; otherwise inputs have a first axis of E.

    Raises:
        ValueError: no networks, or networks of different shapes.
    """

    def __init__(self, models: Sequence[nn.Module], *, shared: bool = False) -> None:
        super().__init__()
        if not models:
            raise ValueError("an ensemble needs at least one network")
        shapes = {tuple((n, p.shape) for n, p in model.state_dict().items()) for model in models}
        if len(shapes) > 1:
            raise ValueError("networks of different shapes: an ensemble is of one architecture")
        params, buffers = stack_module_state(list(models))
        self.names = list(params)
        self.perceptrons = _is_perceptron(models[0])
        self.stacked = nn.ParameterList([self._stored(value) for value in params.values()])
        self._buffers_of = {name: value.detach() for name, value in buffers.items()}
        # In a tuple, so that the skeleton's weights are no part of what trains.
        self._skeleton = (copy.deepcopy(models[0]).to("meta"),)
        self.shared = shared

    def __len__(self) -> int:
        return len(self.stacked[0])

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "members ..."]:
        """Outputs of every member, members first."""
        return self._run(x, slice(None))

    @torch.no_grad()
    def apart(self, x: Float[Tensor, "..."]) -> Float[Tensor, "members ..."]:
        """The same without gradients, to the bit those of a member in an ensemble of its own."""
        each = [slice(i, i + 1) for i in range(len(self))]
        return torch.cat([self._run(x if self.shared else x[one], one) for one in each])

    def states(self) -> list[dict[str, Tensor]]:
        """The `state_dict()` of each member as it is now (copies)."""
        whole = {**self._by_name(), **self._buffers_of}
        return [
            {name: value[i].detach().clone().contiguous() for name, value in whole.items()}
            for i in range(len(self))
        ]

    def _stored(self, value: Tensor) -> nn.Parameter:
        flipped = self.perceptrons and value.ndim == 3
        kept = value.detach().transpose(1, 2).contiguous() if flipped else value.detach()
        return nn.Parameter(kept)

    def _by_name(self) -> dict[str, Tensor]:
        return {
            name: value.transpose(1, 2) if self.perceptrons and value.ndim == 3 else value
            for name, value in zip(self.names, self.stacked, strict=True)
        }

    def _run(self, x: Tensor, members: slice) -> Tensor:
        if self.perceptrons and x.ndim == 3 - self.shared:
            return self._products(x, members)
        skeleton = self._skeleton[0]

        def call(values: dict[str, Tensor], one: Tensor) -> Tensor:
            outputs: Tensor = functional_call(skeleton, values, (one,))
            return outputs

        whole = {**self._by_name(), **self._buffers_of}
        values = {name: value[members] for name, value in whole.items()}
        outputs: Tensor = vmap(call, (0, None if self.shared else 0))(values, x)
        return outputs

    def _products(self, x: Tensor, members: slice) -> Tensor:
        values = {n: v[members] for n, v in zip(self.names, self.stacked, strict=True)}
        if self.shared:
            x = x.expand(len(next(iter(values.values()))), -1, -1)
        for name, layer in self._skeleton[0].named_children():
            if isinstance(layer, nn.Linear):
                weight, bias = values[f"{name}.weight"], values.get(f"{name}.bias")
                x = (
                    torch.bmm(x, weight)
                    if bias is None
                    else torch.baddbmm(bias.unsqueeze(1), x, weight)
                )
            else:
                x = layer(x)
        return x


def _is_perceptron(model: nn.Module) -> bool:
    return type(model) is nn.Sequential and all(
        type(layer) in (nn.Linear, *ELEMENTWISE) for layer in model
    )
