"""The paper's recurrent network, and how far training moved it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from peira.data.errors import DataError
from peira.dynamics.probes import (
    activity,
    empirical_ntk,
    kernel_alignment,
    layer_changes,
    relative_weight_change,
    representation_alignment,
    sign_similarity,
    weight_change,
)

# Bytes of the largest array that a kernel may need before a person is asked.
ROOM = 4 * 2**30


class RateRNN(nn.Module):
    """Leaky rate units without biases: h_t = relu((1 - a) h_{t-1} + a (W_in x_t + W h_{t-1})).

    y_t = W_out h_t, h_0 = 0. `inputs`, `recurrent` and `readout` are the three matrices, all
    trained; a = dt/tau, which is 1 in the paper (main.py, CTRNN).

    Args:
        inputs, hidden, outputs: sizes.
        leak: a, in (0, 1].
        read: outputs after "every" step, (batch, time, outputs), or after the "last" only,
            (batch, outputs).
        generator: draws the default uniform weights of the three linear maps.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        leak: float = 1.0,
        read: Literal["every", "last"] = "every",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 0 < leak <= 1:
            raise DataError("leak", value=leak, expected="dt/tau in (0, 1]")
        self.leak, self.read = leak, read
        self.inputs = _linear(inputs, hidden, generator)
        self.recurrent = _linear(hidden, hidden, generator)
        self.readout = _linear(hidden, outputs, generator)

    def set_recurrent(self, weights: Float[Tensor, "post pre"]) -> None:
        """Start from these recurrent weights; row i is what unit i receives.

        Raises:
            DataError: another shape, or entries that are not finite.
        """
        current = self.recurrent.weight
        if weights.shape != current.shape:
            raise DataError(
                "recurrent weights", value=tuple(weights.shape), expected=f"{tuple(current.shape)}"
            )
        if not torch.isfinite(weights).all():
            raise DataError("recurrent weights that are not finite")
        with torch.no_grad():
            current.copy_(weights)

    def forward(self, x: Float[Tensor, "batch time inputs"]) -> Tensor:
        """Outputs of every step or of the last."""
        drive = self.inputs(x)
        h = torch.relu(self.leak * drive[:, 0])
        hidden = [h]
        for t in range(1, x.shape[1]):
            h = torch.relu((1 - self.leak) * h + self.leak * (drive[:, t] + self.recurrent(h)))
            hidden.append(h)
        return self.readout(h if self.read == "last" else torch.stack(hidden, dim=1))


def _linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    """PyTorch's default: uniform in +- 1/sqrt(inputs)."""
    layer = nn.Linear(inputs, outputs, bias=False)
    with torch.no_grad():
        layer.weight.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
    return layer


@dataclass(frozen=True)
class RecurrentLaziness:
    """How far a recurrent network moved; lazier is a smaller change, a larger alignment.

    Attributes:
        weight_change: |W_f - W_0| (Frobenius) of the recurrent matrix.
        relative_weight_change: as a share of |W_0|.
        representation_alignment: of R = H H^T, H the hidden activity at the last step.
        sign_similarity: share of those activities whose sign stayed.
        kernel_alignment: of K = J J^T, J the derivative of all outputs by the recurrent weights.
        layers: weight change by parameter name.
    """

    weight_change: float
    relative_weight_change: float
    representation_alignment: float
    sign_similarity: float
    kernel_alignment: float
    layers: dict[str, float]


def recurrent_laziness(
    model: nn.Module,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    probe: Float[Tensor, "n time inputs"],
    *,
    recurrent: str = "recurrent",
    kernel_inputs: int = 32,
) -> RecurrentLaziness:
    """The paper's measures of laziness, between two moments of one recurrent network.

    The kernel is that of every single output at every step, (n k) x (n k), not centred, by the
    recurrent weights alone. Where these are an `nn.Linear`, or another linear map that
    `empirical_ntk` knows, it is contracted from back-propagated deltas and J is never formed.

    Args:
        model: any recurrent module; its read-out must be the last submodule with weights.
        before, after: its `state_dict()` at the two moments; the model's own weights stay.
        probe: inputs fixed before training.
        recurrent: name of the recurrent parameter or submodule.
        kernel_inputs: how many of the probe's inputs the kernel takes, from the first.

    Raises:
        DataError: a parameter that is not there, state dicts of another model, a kernel that does
            not fit into 4 GiB.
    """
    if not 1 <= kernel_inputs <= len(probe):
        raise DataError("kernel_inputs", value=kernel_inputs, expected=f"1 to {len(probe)}")
    own = {name: value.clone() for name, value in model.state_dict().items()}
    kernels, features = [], []
    try:
        for state in (before, after):
            _load(model, state)
            kernels.append(output_kernel(model, probe[:kernel_inputs], recurrent))
            features.append(_last_step(activity(model, probe)))
    finally:
        model.load_state_dict(own)
    return RecurrentLaziness(
        weight_change=weight_change(before, after, [recurrent]),
        relative_weight_change=relative_weight_change(before, after, [recurrent]),
        representation_alignment=representation_alignment(*features),
        sign_similarity=sign_similarity(*features),
        kernel_alignment=kernel_alignment(*kernels),
        layers=layer_changes(before, after),
    )


def output_kernel(
    model: nn.Module, x: Float[Tensor, "n time inputs"], recurrent: str = "recurrent"
) -> Float[Tensor, "nk nk"]:
    """K = J J^T of all n k outputs, J their derivative by the recurrent weights.

    Raises:
        DataError: it would need more than 4 GiB; says how much, and what to do.
    """
    with torch.no_grad():
        outputs = len(x) * model(x[:1]).numel()
    size = 2 * outputs**2 * x.element_size()
    if size > ROOM:
        fits = int((ROOM / (2 * x.element_size())) ** 0.5 * len(x) / outputs)
        raise DataError(
            f"the kernel of {outputs:,} outputs needs {size / 2**30:.1f} GiB",
            value=f"{len(x)} inputs",
            expected=f"at most {fits} inputs (kernel_inputs), or outputs of the last step only",
        )
    full = empirical_ntk(model, x, mode="full", params=[recurrent])
    return full.permute(0, 2, 1, 3).reshape(outputs, outputs)


def _last_step(hidden: Tensor) -> Float[Tensor, "n hidden"]:
    return hidden[:, -1] if hidden.ndim == 3 else hidden


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        last = str(error).splitlines()[-1].strip()
        raise DataError(f"weights of another model: {last}") from None
