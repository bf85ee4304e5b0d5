"""The fused losses against `kl_div` calls, seeds at once against one by one, ECE against peers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from peira.nn.calibration import expected_calibration_error
from peira.nn.networks import mlp
from peira.weights.bd_kd.ensemble import EnsembleDistiller
from peira.weights.bd_kd.method import BalancedDistillation, OnlineDistiller, make_scheme

torch.set_num_threads(1)
T, NU = 4.0, 2.0
SIZES = pytest.mark.parametrize("classes", [10, 100, 1000])


def problem(classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a student and of a teacher for a batch, and labels."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 128, classes, generator=generator)
    labels = torch.randint(classes, (128,), generator=generator)
    return student.requires_grad_(), teacher.requires_grad_(), labels


def kl(target: Tensor, own: Tensor) -> Tensor:
    """KL(target || own) of each sample as one writes it with `kl_div`."""
    parts = F.kl_div((own / T).log_softmax(-1), (target / T).softmax(-1), reduction="none")
    return parts.sum(-1)


def entropy(logits: Tensor) -> Tensor:
    return -((logits / T).softmax(-1) * (logits / T).log_softmax(-1)).sum(-1)


def student_by_kl_div(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The student's loss by four softmaxes for the divergences and four for the entropies."""
    fixed = teacher.detach()
    with torch.no_grad():
        certain = entropy(student) < entropy(fixed)
    f, r = torch.where(certain, NU, 1.0), torch.where(certain, 1.0, NU)
    terms = f * kl(fixed, student) + r * kl(student, fixed)
    return F.cross_entropy(student, labels) + T**2 * terms.mean()


def backward(student: Tensor, teacher: Tensor, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One evaluation of a loss and of its gradients."""

    def step() -> None:
        student.grad = teacher.grad = None
        loss().backward()

    return step


@SIZES
@pytest.mark.benchmark(group="bd-kd student's loss and gradient, 128 samples")
def test_student_loss_peira(benchmark: Callable[..., None], classes: int) -> None:
    student, teacher, labels = problem(classes)
    loss = BalancedDistillation(NU, T)
    benchmark(backward(student, teacher, lambda: loss(student, teacher, labels)))


@SIZES
@pytest.mark.benchmark(group="bd-kd student's loss and gradient, 128 samples")
def test_student_loss_kl_div(benchmark: Callable[..., None], classes: int) -> None:
    student, teacher, labels = problem(classes)
    benchmark(backward(student, teacher, lambda: student_by_kl_div(student, teacher, labels)))


@SIZES
@pytest.mark.benchmark(group="bd-kd losses of student and teacher, 128 samples")
def test_both_losses_peira(benchmark: Callable[..., None], classes: int) -> None:
    student, teacher, labels = problem(classes)
    scheme = make_scheme("bdkd", NU, T)
    benchmark(backward(student, teacher, lambda: sum(scheme([teacher, student], labels))))


@SIZES
@pytest.mark.benchmark(group="bd-kd losses of student and teacher, 128 samples")
def test_both_losses_kl_div(benchmark: Callable[..., None], classes: int) -> None:
    student, teacher, labels = problem(classes)

    def both() -> Tensor:
        teaching = F.cross_entropy(teacher, labels) + T**2 * kl(student.detach(), teacher).mean()
        return student_by_kl_div(student, teacher, labels) + teaching

    benchmark(backward(student, teacher, both))


INPUTS, LABELS = torch.rand(8, 512, 64), torch.randint(10, (8, 512))


def pairs(width: int) -> list[list[torch.nn.Sequential]]:
    return [[mlp((64, width, width, width, 10)), mlp((64, 16, 10))] for _ in range(8)]


@pytest.mark.parametrize("width", [48, 256])
@pytest.mark.benchmark(group="bd-kd epoch of eight pairs of perceptrons")
def test_eight_pairs_peira(benchmark: Callable[..., None], width: int) -> None:
    together = EnsembleDistiller(pairs(width), make_scheme("bdkd"), INPUTS, LABELS, range(8))
    benchmark(together.epoch)


@pytest.mark.parametrize("width", [48, 256])
@pytest.mark.benchmark(group="bd-kd epoch of eight pairs of perceptrons")
def test_eight_pairs_one_by_one(benchmark: Callable[..., None], width: int) -> None:
    alone = [OnlineDistiller(*networks) for networks in pairs(width)]
    batches = [
        list(zip(x.split(64), y.split(64), strict=True))
        for x, y in zip(INPUTS, LABELS, strict=True)
    ]

    def epochs() -> None:
        for distiller, loader in zip(alone, batches, strict=True):
            distiller.epoch(loader)

    benchmark(epochs)


def probabilities() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    probs = (3 * torch.randn(10_000, 100, generator=generator)).softmax(-1)
    return probs, torch.randint(100, (10_000,), generator=generator)


@pytest.mark.benchmark(group="bd-kd ECE of 10,000 samples")
def test_ece_peira(benchmark: Callable[..., float]) -> None:
    probs, labels = probabilities()
    benchmark(lambda: expected_calibration_error(probs, labels))


@pytest.mark.benchmark(group="bd-kd ECE of 10,000 samples")
def test_ece_torchmetrics(benchmark: Callable[..., float]) -> None:
    functional = pytest.importorskip("torchmetrics.functional.classification")
    probs, labels = probabilities()

    def ece() -> float:
        found = functional.multiclass_calibration_error(probs, labels, num_classes=100, n_bins=15)
        return float(found)

    assert ece() == pytest.approx(expected_calibration_error(probs, labels), abs=1e-5)
    benchmark(ece)


@pytest.mark.benchmark(group="bd-kd ECE of 10,000 samples")
def test_ece_netcal(benchmark: Callable[..., float]) -> None:
    metrics = pytest.importorskip("netcal.metrics")
    probs, labels = (one.numpy() for one in probabilities())
    measure = metrics.ECE(15)
    expected = expected_calibration_error(torch.from_numpy(probs), torch.from_numpy(labels))
    assert float(measure.measure(probs, labels)) == pytest.approx(expected, abs=1e-3)
    benchmark(lambda: measure.measure(probs, labels))


@pytest.mark.benchmark(group="bd-kd ECE of 10,000 samples")
def test_ece_loop(benchmark: Callable[..., float]) -> None:
    """Bin by bin in NumPy, as most code does it."""
    probs, labels = (one.numpy() for one in probabilities())

    def ece() -> float:
        confidence, correct = probs.max(1), probs.argmax(1) == labels
        total = 0.0
        for low in np.arange(15) / 15:
            inside = (confidence > low) & (confidence <= low + 1 / 15)
            if inside.any():
                total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
        return total

    benchmark(ece)
