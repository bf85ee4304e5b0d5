"""One cell's data, network and rounds: every method at the same number of samples."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

import peira
from peira.nn import mlp, predict, small_cnn
from peira.training.ccl.baselines import CosinePerSample, coteaching_losses, kept_by_coteaching
from peira.training.ccl.curriculum import (
    Curriculum,
    CyclicalCurriculum,
    SelfPacedLearning,
    StagedSelfPacedLearning,
)
from peira.training.ccl.problems import Problem, make_problem
from peira.training.ccl.sampling import easiest
from peira.training.ccl.sizes import MAX_ROUNDS
from peira.training.ccl.training import Loss, train_round, training_losses

if TYPE_CHECKING:
    from peira.training.ccl.study import Cell

# What each curriculum changes of `CyclicalCurriculum`.
CURRICULA: Mapping[str, dict[str, Any]] = {
    "ccl": {},
    "random": {"transform": "random"},
    "hard": {"transform": "hard"},
    "growing": {"schedule": "growing"},
    "shrinking": {"schedule": "shrinking"},
    "sharp": {"schedule": "sharp"},
    "exponential": {"schedule": "exponential"},
    "parabolic": {"schedule": "parabolic"},
    "full-then-cyclic": {"schedule": "full-then-cyclic"},
    "full-then-self-paced": {"schedule": "full-then-cyclic"},
    "self-paced": {"schedule": "cyclic-from-full"},
    "ageing": {"ageing": 1.44},
}
# Their scores come from the network as it is, before every round (but an untrained one's).
SELF_PACED = ("full-then-self-paced", "self-paced", "spl", "stage-spl")
# Before them there is no run for the scores.
WITHOUT_SCORES = ("vanilla", "smoothing", "co-teaching", "random", *SELF_PACED)


@dataclass
class Training:
    """What one training showed.

    Attributes:
        rows: after each round: samples seen, validation and test accuracy, share of the data.
        losses: of the training samples after a quarter of the epochs and at the end.
        seconds: of training and drawing subsets, without evaluation.
        forward: samples passed forward only, for scores.
        networks: trained at once, on the same samples.
    """

    rows: list[tuple[int, float, float, float]]
    losses: dict[str, Tensor]
    seconds: float
    forward: int = 0
    networks: int = 1


def problem_of(cell: Cell, run: peira.Run) -> Problem:
    """The cell's data with its noise: the same for all methods of one seed."""
    generator = torch.Generator().manual_seed(run.seed)
    problem = make_problem(cell.data, cell.train, cell.held_out, generator)
    if cell.noise_rate:
        problem = problem.with_noise(cell.noise, cell.noise_rate, generator)
    return problem.to(run.device)


def make_network(cell: Cell, problem: Problem, seed: int) -> nn.Module:
    """The picture network at the cell's width, or a small MLP, at its initial weights."""
    torch.manual_seed(seed)
    shape = tuple(problem.train_inputs.shape[1:])
    if len(shape) == 1:
        return mlp([shape[0], 32, problem.classes]).to(problem.train_inputs.device)
    channels = (cell.width, 2 * cell.width, 2 * cell.width)
    padding: Literal["same", "valid"] = "same" if min(shape[1:]) < 16 else "valid"
    network = small_cnn(channels, (shape[0], shape[1], shape[2]), problem.classes, padding)
    return network.to(problem.train_inputs.device)


def vanilla_of(cell: Cell, run: peira.Run) -> Training:
    """Plain training on the cell's data: the baseline, and where the losses come from."""
    settings = ("transform", "lam", "start", "end", "alpha", "keep")
    defaults = {name: type(cell).model_fields[name].default for name in settings}
    plain = cell.changed({"method": "vanilla", **defaults})
    return run.shared("vanilla", train_vanilla, **plain.model_dump())


def train_vanilla(run: peira.Run, **settings: Any) -> Training:
    """Plain training of one seed, with the losses of its samples."""
    from peira.training.ccl.study import Cell

    cell = Cell(**settings)
    problem = problem_of(cell, run)
    return train(cell, run, problem, plain_curriculum(cell, problem, run.seed), F.cross_entropy)


def train_method(
    cell: Cell, run: peira.Run, problem: Problem, teacher: Training | None
) -> Training:
    """One curriculum or baseline, from the losses of plain training where it needs them."""
    size, seed = len(problem.train_labels), run.seed
    if cell.method == "co-teaching":
        return co_teach(cell, run, problem)
    if cell.method == "smoothing":
        return train(cell, run, problem, plain_curriculum(cell, problem, seed), _smoothed)
    losses = teacher.losses["last"].numpy() if teacher else np.ones(size)
    if cell.method == "pruned":
        kept = torch.from_numpy(easiest(losses, cell.keep))
        rest = problem.only(kept.to(problem.train_labels.device))
        budget = cell.epochs * size / len(kept)
        return train(cell, run, rest, plain_curriculum(cell, rest, seed, budget), F.cross_entropy)
    return train(cell, run, problem, curriculum_of(cell, problem, losses, seed), F.cross_entropy)


def plain_curriculum(
    cell: Cell, problem: Problem, seed: int, budget: float | None = None
) -> Curriculum:
    """All samples in every round."""
    ones = np.ones(len(problem.train_labels))
    return CyclicalCurriculum(
        scores=ones, schedule="full", budget_epochs=budget or cell.epochs, rng=seed
    )


def curriculum_of(
    cell: Cell, problem: Problem, losses: Float[np.ndarray, " n"], seed: int
) -> Curriculum:
    """The cell's curriculum."""
    if cell.method == "spl":
        return SelfPacedLearning(len(losses), cell.epochs, rng=seed)
    if cell.method == "stage-spl":
        labels = problem.train_labels.cpu().numpy()
        return StagedSelfPacedLearning(labels, cell.epochs, rng=seed)
    settings: dict[str, Any] = {
        "start": cell.start, "end": cell.end, "alpha": cell.alpha, "budget_epochs": cell.epochs,
        "transform": cell.transform, "lam": cell.lam, "rng": seed,
    }  # fmt: skip
    return CyclicalCurriculum(losses, **(settings | CURRICULA[cell.method]))


def _smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


class Clock:
    """Seconds of work between `start` and `stop`: of the processor, or of the accelerator."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.seconds = self._began = 0.0

    def start(self) -> None:
        """From here."""
        self._began = self._now()

    def stop(self) -> None:
        """To here."""
        self.seconds += self._now() - self._began

    def _now(self) -> float:
        if not self.cuda:
            # A busy machine must not make one method slower than the other.
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def state_dict(self) -> dict[str, float]:
        """Seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from there."""
        self.seconds = state["seconds"]


def train(
    cell: Cell,
    run: peira.Run,
    problem: Problem,
    curriculum: Curriculum,
    loss: Loss,
) -> Training:
    """Rounds of a curriculum with Adam, each evaluated on validation and test data."""
    inputs, labels = problem.train_inputs, problem.train_labels
    network = make_network(cell, problem, run.seed)
    optimizer = torch.optim.Adam(network.parameters(), cell.learning_rate, fused=True)
    decay = _decay(cell, optimizer, len(labels))
    clock, record = Clock(run.device), Record()
    total = len(curriculum) if isinstance(curriculum, CyclicalCurriculum) else MAX_ROUNDS
    saved = [network, optimizer, decay, curriculum, clock, record]
    for _ in run.steps(total, save=saved):
        if curriculum.done:
            break
        clock.start()
        if cell.method in SELF_PACED and curriculum.round:
            record.forward += _tell_losses(curriculum, network, problem, record.mean_loss)
        subset = curriculum.subset()
        record.mean_loss = train_round(
            network, optimizer, inputs, labels, subset, cell.batch, loss, decay
        )
        curriculum.advance(subset)
        clock.stop()
        share = len(subset) / curriculum.size
        record.evaluate(network, problem, curriculum.samples_seen, share)
        quarter = curriculum.samples_seen >= cell.epochs * curriculum.size / 4
        if quarter and "early" not in record.losses:
            record.losses["early"] = training_losses(network, inputs, labels)
    record.losses["last"] = training_losses(network, inputs, labels)
    record.losses.setdefault("early", record.losses["last"])
    return Training(record.rows, record.losses, clock.seconds, record.forward)


class Record:
    """What training leaves behind, and can be put back."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, float, float]] = []
        self.losses: dict[str, Tensor] = {}
        self.forward, self.mean_loss = 0, 0.0

    def evaluate(self, network: nn.Module, problem: Problem, samples: int, share: float) -> None:
        """Accuracy on validation and test data, in one pass."""
        right = predict(network, problem.held_inputs, 256).argmax(-1) == problem.held_labels
        parts = right.split([problem.validation, len(right) - problem.validation])
        validation, test = (float(part.double().mean()) for part in parts)
        self.rows.append((samples, validation, test, share))

    def state_dict(self) -> dict[str, Any]:
        """Everything so far."""
        return {**vars(self), "rows": list(self.rows), "losses": dict(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        vars(self).update(state)


def _tell_losses(
    curriculum: Curriculum, network: nn.Module, problem: Problem, first_loss: float
) -> int:
    losses = training_losses(network, problem.train_inputs, problem.train_labels).numpy()
    if isinstance(curriculum, SelfPacedLearning):
        curriculum.update(losses, threshold=first_loss)
    else:
        curriculum.update(losses)
    return len(losses)


def _decay(cell: Cell, optimizer: torch.optim.Optimizer, size: int) -> CosinePerSample | _Constant:
    if cell.decay == "constant":
        return _Constant()
    return CosinePerSample(optimizer, cell.epochs * size)


class _Constant:
    """No decay, with the same face."""

    def step(self, samples: int) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def co_teach(cell: Cell, run: peira.Run, problem: Problem) -> Training:
    """Two networks that choose each other's samples; the first is measured.

    The noise rate is told to the method, as in its paper: an advantage over all others here.
    """
    networks = [make_network(cell, problem, run.seed), make_network(cell, problem, run.seed + 7919)]
    both = nn.ModuleList(networks)
    optimizer = torch.optim.Adam(both.parameters(), cell.learning_rate, fused=True)
    curriculum = plain_curriculum(cell, problem, run.seed)
    clock, record = Clock(run.device), Record()
    for epoch in run.steps(cell.epochs, save=[both, optimizer, curriculum, clock, record]):
        clock.start()
        keep = kept_by_coteaching(epoch - 1, cell.noise_rate, ramp=cell.epochs / 4)
        subset = curriculum.subset()
        _coteach_round(networks, optimizer, problem, subset, cell.batch, keep)
        curriculum.advance(subset)
        clock.stop()
        record.evaluate(networks[0], problem, curriculum.samples_seen, 1.0)
    return Training(record.rows, {}, clock.seconds, networks=2)


def _coteach_round(
    networks: Sequence[nn.Module],
    optimizer: torch.optim.Optimizer,
    problem: Problem,
    subset: Int[np.ndarray, " subset"],
    batch: int,
    keep: float,
) -> None:
    for network in networks:
        network.train()
    chosen = torch.from_numpy(subset).to(problem.train_labels.device)
    inputs, labels = problem.train_inputs[chosen], problem.train_labels[chosen]
    for x, y in zip(inputs.split(batch), labels.split(batch), strict=True):
        first, second = coteaching_losses(networks[0](x), networks[1](x), y, keep)
        optimizer.zero_grad()
        (first + second).backward()
        optimizer.step()
