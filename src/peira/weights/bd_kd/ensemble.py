"""The same pair of networks from several seeds, trained at once as if each pair were alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from peira.engine.errors import PeiraError
from peira.nn.ensembles import Ensemble
from peira.weights.bd_kd.distiller import MOMENTUM, WEIGHT_DECAY
from peira.weights.bd_kd.scheme import Scheme

State = dict[str, Any]


class MemberSGD:
    """`kd_sgd` of members: Nesterov momentum 0.9, weight decay 5e-4, in place.

    The sum of the members' losses gives each the gradient it would have alone.
    """

    def __init__(self, members: Ensemble, learning_rate: float) -> None:
        self.parameters = list(members.parameters())
        self.momenta = [torch.zeros_like(one) for one in self.parameters]
        self.learning_rate = learning_rate

    @torch.no_grad()
    def step(self, factor: float = 1.0, paused: Bool[Tensor, " members"] | None = None) -> None:
        """Update the members that are not paused, and forget the gradients."""
        for weight, momentum in zip(self.parameters, self.momenta, strict=True):
            gradient = weight.grad
            assert gradient is not None
            weight.grad = None
            held = None if paused is None else (weight[paused], momentum[paused])
            gradient.add_(weight, alpha=WEIGHT_DECAY)
            momentum.mul_(MOMENTUM).add_(gradient)
            weight.add_(gradient.add_(momentum, alpha=MOMENTUM), alpha=-self.learning_rate * factor)
            if held is not None:
                weight[paused], momentum[paused] = held

    def state_dict(self) -> State:
        """The momenta."""
        return {"momenta": self.momenta}

    def load_state_dict(self, state: State) -> None:
        """Put back what `state_dict` gave."""
        self.momenta = state["momenta"]


class EnsembleDistiller:
    """`OnlineDistiller` for several seeds of one scheme.

    Args:
        networks: of every seed its networks, teacher first (students alone where the scheme is "ce"
            or "smoothing").
        scheme: who learns what from whom.
        inputs: training inputs of every seed.
        labels: their labels.
        seeds: give the order of the data.
        batch: samples of a step; what is left over in an epoch is not used in it.
        learning_rate: of every network.
    """

    def __init__(
        self,
        networks: Sequence[Sequence[nn.Sequential]],
        scheme: Scheme,
        inputs: Float[Tensor, "members n ..."],
        labels: Int[Tensor, "members n"],
        seeds: Sequence[int],
        batch: int = 64,
        learning_rate: float = 0.05,
    ) -> None:
        self.networks = [Ensemble(column) for column in zip(*networks, strict=True)]
        self.scheme, self.inputs, self.labels = scheme, inputs, labels
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.batch = min(batch, inputs.shape[1])
        first = int(scheme.frozen)
        self.optimizers = [MemberSGD(network, learning_rate) for network in self.networks[first:]]
        self.state: State = {"epoch": 0, "paused": torch.zeros(len(labels))}

    def epoch(self, factor: float = 1.0) -> None:
        """One pass over the data, at `factor` times the learning rate.

        Raises:
            PeiraError: a loss that is not finite.
        """
        members, n = self.labels.shape
        orders = torch.stack([torch.randperm(n, generator=one) for one in self.generators])
        rows = torch.arange(members).unsqueeze(1)
        batches = n // self.batch
        paused = torch.zeros(members)
        for place in orders[:, : batches * self.batch].split(self.batch, dim=1):
            paused += self._step(self.inputs[rows, place], self.labels[rows, place], factor)
        # The sum over epochs of the share of batches without the teacher.
        self.state = {
            "epoch": self.state["epoch"] + 1,
            "paused": self.state["paused"] + paused / batches,
        }

    def _step(self, x: Tensor, y: Tensor, factor: float) -> Tensor:
        frozen = self.scheme.frozen
        with torch.set_grad_enabled(not frozen):
            logits = [self.networks[0](x)]
        logits += [network(x) for network in self.networks[1:]]
        losses = self.scheme(logits, y)
        paused = self.scheme.paused(logits, y) if len(logits) > 1 else None
        total = torch.stack([loss for loss in losses if loss is not None]).sum()
        if not bool(total.isfinite()):
            raise PeiraError("the loss is not finite: lower the learning rate")
        total.backward()
        for number, optimizer in enumerate(self.optimizers):
            optimizer.step(factor, paused if number == 0 else None)
        return torch.zeros(len(y)) if paused is None else paused.float()

    def logits(self, x: Float[Tensor, "members n ..."]) -> list[Float[Tensor, "members n classes"]]:
        """Outputs of every network for inputs of every seed."""
        return [network.apart(x) for network in self.networks]

    def state_dict(self) -> State:
        """Networks, optimisers and counts."""
        return {
            "networks": [network.state_dict() for network in self.networks],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generators": [generator.get_state() for generator in self.generators],
            "state": self.state,
        }

    def load_state_dict(self, state: State) -> None:
        """Put back what `state_dict` gave."""
        for network, one in zip(self.networks, state["networks"], strict=True):
            network.load_state_dict(one)
        for optimizer, one in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(one)
        for generator, one in zip(self.generators, state["generators"], strict=True):
            generator.set_state(one)
        self.state = state["state"]
