"""Train a teacher and its students together, each by an optimiser of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from peira.data.errors import DataError
from peira.engine.errors import PeiraError
from peira.nn.calibration import calibration_report
from peira.nn.evaluation import evaluating
from peira.weights.bd_kd.loss import check_labels, check_shapes, check_values
from peira.weights.bd_kd.scheme import Scheme, Switched, entropy_gap, make_scheme

if TYPE_CHECKING:
    import pandas as pd

Batches = Iterable[tuple[Tensor, Tensor]]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Schedule = Callable[[int, int], float]
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
MEASURES = ("accuracy", "ece", "nll")


def step_decay(epoch: int, epochs: int) -> float:
    """A tenth at 5/8, 3/4 and 7/8 of the epochs: at 150, 180 and 210 of 240.

    Args:
        epoch: from 1.
        epochs: in all.
    """
    return float(0.1 ** sum(epoch > share * epochs for share in (5 / 8, 3 / 4, 7 / 8)))


def cosine_decay(epoch: int, epochs: int) -> float:
    """From 1 down to 0 along half a cosine; arguments as `step_decay`."""
    return (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2


def kd_sgd(
    parameters: Iterable[nn.Parameter], learning_rate: float = 0.05
) -> torch.optim.Optimizer:
    """SGD of the distillation benchmarks: Nesterov momentum 0.9, weight decay 5e-4."""
    return torch.optim.SGD(
        parameters, lr=learning_rate, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
    )


@dataclass(frozen=True)
class Distilled:
    """What came of a training.

    Attributes:
        teacher: the large network.
        students: the small ones.
        history: one row per epoch: epoch, learning_rate, the mean losses `teacher_loss`,
            `student_loss`, `entropy_gap` (mean |H_student - H_teacher| of training batches, nats)
            and `paused` (share of batches without the teacher); with held-out data also accuracy,
            ECE (15 bins) and NLL of each network (`student_ece`, ...) and `val_entropy_gap`.
            Further students are student2, student3, ...
    """

    teacher: nn.Module
    students: tuple[nn.Module, ...]
    history: pd.DataFrame

    @property
    def student(self) -> nn.Module:
        """The first student."""
        return self.students[0]


class OnlineDistiller:
    """Trains a teacher and one student, or several, from one joint forward pass per batch.

    Every network has an optimiser of its own; both are stepped after every batch (simultaneously).

    Args:
        teacher: any network that puts out logits.
        student: another with as many outputs, or several.
        loss: a name (see `make_scheme`; "kd" keeps the teacher as it is) or a `Scheme`.
        nu: emphasis of the balance; it and `T`, `alpha` are for a name.
        T: temperature.
        alpha: weight of the divergences.
        optimizer: makes an optimiser of parameters; that of the benchmarks (`kd_sgd`) by default.
        amp: bfloat16 in the networks, float32 in the losses.

    Raises:
        DataError: one module, or one parameter, is in two of the networks; no student.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module | Sequence[nn.Module],
        loss: str | Scheme = "bdkd",
        *,
        nu: float = 2.0,
        T: float = 4.0,
        alpha: float = 1.0,
        optimizer: MakeOptimizer = kd_sgd,
        amp: bool = False,
    ) -> None:
        students = [student] if isinstance(student, nn.Module) else list(student)
        if not students:
            raise DataError("no student", expected="one network or several")
        self.networks = [teacher, *students]
        self.names = ["teacher", "student", *(f"student{i + 2}" for i in range(len(students) - 1))]
        _refuse_shared(self.names, self.networks)
        self.scheme = make_scheme(loss, nu, T, alpha) if isinstance(loss, str) else loss
        if isinstance(self.scheme, Switched) and len(students) > 1:
            raise DataError("switokd with several students", expected="one student")
        learning = self.networks[1:] if self.scheme.frozen else self.networks
        self.optimizers = [optimizer(network.parameters()) for network in learning]
        self._rates = [[group["lr"] for group in one.param_groups] for one in self.optimizers]
        self.amp = amp
        self.rows: list[dict[str, float]] = []
        self._checked = False

    def step(
        self, inputs: Float[Tensor, "batch ..."], labels: Int[Tensor, " batch"]
    ) -> dict[str, float]:
        """One joint forward pass, and an update of every network that learns.

        Returns:
            Losses by name (`teacher_loss`, `student_loss`), `entropy_gap`, `paused`.

        Raises:
            DataError: networks with different numbers of outputs, labels out of range.
            PeiraError: a loss that is not finite; nothing is updated.
        """
        logits = self._forward(inputs)
        self._check(logits, labels)
        losses = self.scheme(logits, labels)
        paused = self.scheme.paused(logits, labels)
        if paused is not None and bool(paused):
            losses[0] = None
        total = torch.stack([loss for loss in losses if loss is not None]).sum()
        if not bool(total.isfinite()):
            raise PeiraError(f"the loss is not finite ({losses}): lower the learning rate")
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        total.backward()
        learners = losses[1:] if self.scheme.frozen else losses
        for optimizer, loss in zip(self.optimizers, learners, strict=True):
            if loss is not None:
                optimizer.step()
        seen = {
            f"{name}_loss": float(loss.detach())
            for name, loss in zip(self.names, losses, strict=True)
            if loss is not None
        }
        gap = float(entropy_gap(logits[1], logits[0], self.scheme.T))
        return seen | {"entropy_gap": gap, "paused": float(bool(paused))}

    def _forward(self, inputs: Tensor) -> list[Tensor]:
        frozen = self.scheme.frozen
        self.networks[0].train(not frozen)
        for network in self.networks[1:]:
            network.train()
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.amp):
            with torch.set_grad_enabled(not frozen):
                first = self.networks[0](inputs)
            return [first, *(network(inputs) for network in self.networks[1:])]

    def _check(self, logits: Sequence[Tensor], labels: Tensor) -> None:
        check_shapes(logits, labels)
        if not self._checked:
            check_values(logits, labels)
            self._checked = True
        elif labels.device.type == "cpu":
            check_labels(labels, logits[0].shape[-1])

    def epoch(
        self, loader: Batches, val_loader: Batches | None = None, factor: float = 1.0
    ) -> None:
        """One pass over the data, and a row of the history.

        Args:
            loader: batches of inputs and labels.
            val_loader: held-out ones.
            factor: of the learning rates that the optimisers were made with.
        """
        for optimizer, rates in zip(self.optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        seen: list[dict[str, float]] = []
        for inputs, labels in loader:
            seen.append(self.step(*self._here(inputs, labels)))
        if not seen:
            raise DataError("no batches to train on", expected="a loader that is not empty")
        row: dict[str, float] = {
            "epoch": len(self.rows) + 1,
            "learning_rate": self.optimizers[-1].param_groups[0]["lr"],
        }
        for name in dict.fromkeys(key for one in seen for key in one):
            values = [one[name] for one in seen if name in one]
            row[name] = sum(values) / len(values)
        if val_loader is not None:
            row |= self.evaluate(val_loader)
        # A new list: a checkpoint may still hold the old one.
        self.rows = [*self.rows, row]

    def _here(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        device = next(self.networks[1].parameters()).device
        return inputs.to(device), labels.to(device)

    def logits(self, loader: Batches) -> tuple[list[Tensor], Tensor]:
        """Outputs of every network for all data, in evaluation mode, and the labels; on the CPU."""
        outputs: list[list[Tensor]] = [[] for _ in self.networks]
        labels = []
        for x, y in loader:
            inputs, _ = self._here(x, y)
            labels.append(y.cpu())
            for network, parts in zip(self.networks, outputs, strict=True):
                with evaluating(network):
                    parts.append(network(inputs).float().cpu())
        if not labels:
            raise DataError("no batches to evaluate on", expected="a loader that is not empty")
        return [torch.cat(parts) for parts in outputs], torch.cat(labels)

    def evaluate(self, loader: Batches) -> dict[str, float]:
        """Accuracy, ECE and NLL of every network (`student_ece`, ...), and `val_entropy_gap`.

        Raises:
            PeiraError: outputs that are not finite.
        """
        logits, labels = self.logits(loader)
        found: dict[str, float] = {}
        for name, one in zip(self.names, logits, strict=True):
            if not bool(one.isfinite().all()):
                raise PeiraError(f"outputs of the {name} are not finite: lower the learning rate")
            report = calibration_report(one.softmax(-1), labels)
            found |= {f"{name}_{measure}": report[measure] for measure in MEASURES}
        found["val_entropy_gap"] = float(entropy_gap(logits[1], logits[0], self.scheme.T))
        return found

    def fit(
        self,
        loader: Batches,
        val_loader: Batches | None = None,
        epochs: int = 240,
        schedule: Schedule = step_decay,
        steps: Iterable[int] | None = None,
    ) -> Distilled:
        """Train until `epochs` epochs are done.

        Args:
            loader: batches of inputs and labels.
            val_loader: held-out ones, for the history alone.
            epochs: in all; a distiller that has done some goes on.
            schedule: (epoch from 1, epochs) -> factor of the learning rates.
            steps: gives the epochs to do, where something wants to watch them go by.

        Raises:
            DataError, PeiraError: as `step`.
        """
        import pandas as pd

        for epoch in steps if steps is not None else range(len(self.rows) + 1, epochs + 1):
            self.epoch(loader, val_loader, schedule(epoch, epochs))
        teacher, *students = self.networks
        return Distilled(teacher, tuple(students), pd.DataFrame(self.rows))

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers and history: all that a resumed training needs."""
        return {
            "networks": [network.state_dict() for network in self.networks],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rows": self.rows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        for network, one in zip(self.networks, state["networks"], strict=True):
            network.load_state_dict(one)
        for optimizer, one in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(one)
        self.rows = state["rows"]


def _refuse_shared(names: Sequence[str], networks: Sequence[nn.Module]) -> None:
    for (a, first), (b, second) in combinations(zip(names, networks, strict=True), 2):
        if first is second or {*first.parameters()} & {*second.parameters()}:
            raise DataError(f"{a} and {b} share weights", expected="two networks of their own")
