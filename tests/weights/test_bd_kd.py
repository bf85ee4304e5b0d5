"""BD-KD: gradients and weights against brute force, detach rules, training, simulator, commands."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from peira.cli.main import app
from peira.data import DataError
from peira.data.labels import GaussianClasses
from peira.engine.catalogue import paper
from peira.engine.errors import PeiraError
from peira.nn.calibration import expected_calibration_error
from peira.nn.networks import cifar_resnet, mlp
from peira.weights.bd_kd import judge, use
from peira.weights.bd_kd.ensemble import EnsembleDistiller
from peira.weights.bd_kd.method import (
    BalancedDistillation,
    Collaborative,
    MutualLoss,
    OfflineDistillation,
    OnlineDistiller,
    Softened,
    Switched,
    balance_weights,
    bdkd_loss,
    cosine_decay,
    divergences,
    expert_mode,
    kd_sgd,
    make_scheme,
    posterior_divergence,
    smallest_logits,
    step_decay,
    true_calibration_error,
)
from peira.weights.bd_kd.problems import PictureBatches, pictures, simulated
from peira.weights.bd_kd.study import (
    Cell,
    Study,
    measure_perceptrons,
    measure_resnets,
    networks_of,
    problem_of,
    resnets,
)

CLASSES = 7
# These networks are too small for several threads.
torch.set_num_threads(1)


def logits(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*(shape or (32, CLASSES)), generator=generator, dtype=torch.float64)


def labels(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CLASSES, shape or (32,), generator=generator)


def by_hand(
    student: Tensor, teacher: Tensor, y: Tensor, nu: float, T: float, alpha: float
) -> float:
    """The student's loss sample by sample and class by class, in plain Python."""
    total = 0.0
    for s, t, true in zip(student.tolist(), teacher.tolist(), y.tolist(), strict=True):

        def soft(row: list[float], heat: float) -> list[float]:
            powers = [math.exp(x / heat) for x in row]
            return [p / sum(powers) for p in powers]

        p_s, p_t = soft(s, T), soft(t, T)
        forward = sum(b * math.log(b / a) for a, b in zip(p_s, p_t, strict=True))
        reverse = sum(a * math.log(a / b) for a, b in zip(p_s, p_t, strict=True))
        h_s, h_t = (-sum(p * math.log(p) for p in one) for one in (p_s, p_t))
        f, r = (nu, 1.0) if h_s < h_t else (1.0, nu)
        total += -math.log(soft(s, 1.0)[true]) + alpha * T**2 * (f * forward + r * reverse)
    return total / len(y)


@pytest.mark.parametrize(("nu", "T", "alpha"), [(2.0, 4.0, 1.0), (3.0, 1.0, 0.5), (1.0, 2.0, 2.0)])
def test_students_loss_is_the_sum_by_hand(nu: float, T: float, alpha: float) -> None:
    student, teacher, y = logits(0), logits(1), labels(2)
    found = bdkd_loss(student, teacher, y, nu, T, alpha)
    assert float(found) == pytest.approx(by_hand(student, teacher, y, nu, T, alpha), rel=1e-12)


def test_loss_agrees_with_torchs_kl_div() -> None:
    student, teacher, y = logits(0), logits(1), labels(2)
    T, nu = 4.0, 2.0
    forward = F.kl_div((student / T).log_softmax(-1), (teacher / T).softmax(-1), reduction="none")
    reverse = F.kl_div((teacher / T).log_softmax(-1), (student / T).softmax(-1), reduction="none")
    entropies = [
        torch.distributions.Categorical(logits=one / T).entropy() for one in (student, teacher)
    ]
    certain = entropies[0] < entropies[1]
    f, r = torch.where(certain, nu, 1.0), torch.where(certain, 1.0, nu)
    expected = (
        F.cross_entropy(student, y) + T**2 * (f * forward.sum(-1) + r * reverse.sum(-1)).mean()
    )
    torch.testing.assert_close(BalancedDistillation(nu, T)(student, teacher, y), expected)


def test_gradients_are_the_published_formulas() -> None:
    T = 3.0
    student, teacher = logits(0).requires_grad_(), logits(1)
    own, peer = Softened.of(student, T), Softened.of(teacher, T)
    found = divergences(own, peer)
    p_s, p_t = own.prob.detach(), peer.prob
    (forward,) = torch.autograd.grad(found.forward.sum(), student, retain_graph=True)
    torch.testing.assert_close(forward, (p_s - p_t) / T)
    (reverse,) = torch.autograd.grad(found.reverse.sum(), student)
    ratio = (p_s / p_t).log()
    expected = p_s * (ratio - found.reverse.detach().unsqueeze(1)) / T
    torch.testing.assert_close(reverse, expected)


@pytest.mark.parametrize(
    "loss",
    [
        BalancedDistillation(2.0, 3.0),
        BalancedDistillation(entropy_T=1.0),
        MutualLoss(2.0),
        MutualLoss(2.0, forward=0.5, reverse=1.5),
        OfflineDistillation(),
    ],
)
def test_gradients_reach_the_student_alone(loss: nn.Module) -> None:
    student, teacher = logits(0, 6, 4).requires_grad_(), logits(1, 6, 4).requires_grad_()
    y = labels(2, 6) % 4
    assert torch.autograd.gradcheck(lambda one: loss(one, teacher.detach(), y), student)
    loss(student, teacher, y).backward()
    assert teacher.grad is None


def test_weights_follow_the_entropies_and_have_no_gradient() -> None:
    certain, flat = torch.tensor([[6.0, 0, 0]]), torch.tensor([[1.0, 0.5, 0]])
    low, high = (Softened.of(one, 4.0).entropy() for one in (certain, flat))
    assert low < high
    assert [float(w) for w in balance_weights(low, high, 2.0)] == [2.0, 1.0]
    assert [float(w) for w in balance_weights(high, low, 2.0)] == [1.0, 2.0]
    assert [float(w) for w in balance_weights(low, low, 2.0)] == [1.0, 2.0]
    f, r = balance_weights(low, high, smooth=4.0)
    assert float(f + r) == pytest.approx(2)
    assert float(r) == pytest.approx(2 / (1 + math.exp(4 * float(high - low))))
    student = certain.clone().requires_grad_()
    own, peer = Softened.of(student, 4.0), Softened.of(flat, 4.0)
    rule = BalancedDistillation(smooth=4.0)
    f, r = rule.weights(own, peer)
    found = divergences(own, peer)
    pieces = [torch.autograd.grad(one.sum(), student, retain_graph=True)[0] for one in found]
    (whole,) = torch.autograd.grad(rule.divergence(own, peer), student)
    torch.testing.assert_close(whole, 16 * (f * pieces[0] + r * pieces[1]))


def test_entropies_may_have_a_temperature_of_their_own() -> None:
    student, teacher = logits(0, 400, 4), logits(1, 400, 4)
    own, peer = Softened.of(student, 4.0), Softened.of(teacher, 4.0)
    found = BalancedDistillation(entropy_T=1.0).weights(own, peer)
    entropies = (
        torch.distributions.Categorical(logits=one).entropy() for one in (student, teacher)
    )
    expected = balance_weights(*entropies)
    assert torch.equal(found.forward, expected.forward)
    assert not torch.equal(found.forward, BalancedDistillation().weights(own, peer).forward)


def test_special_cases_are_each_other() -> None:
    student, teacher, y = logits(0), logits(1), labels(2)
    plain = MutualLoss(4.0, forward=1, reverse=1)(student, teacher, y)
    torch.testing.assert_close(BalancedDistillation(nu=1.0)(student, teacher, y), plain)
    # Swapped weights are those of 1 / nu, scaled by nu.
    with pytest.warns(UserWarning, match="below 1"):
        halved = BalancedDistillation(nu=0.5, alpha=2.0)
    (inverted,) = make_scheme("inverted")([teacher, student], y)[1:]
    torch.testing.assert_close(inverted, halved(student, teacher, y))
    offline = OfflineDistillation(4.0, 0.9)(student, teacher, y)
    dml = MutualLoss(4.0)(student, teacher, y)
    ce = F.cross_entropy(student, y)
    torch.testing.assert_close(offline, 0.1 * ce + 0.9 * (dml - ce))


def test_T_squared_keeps_the_gradient_over_temperatures() -> None:
    """At high temperature T^2 KL tends to |centred difference|^2 / (2 K), whatever T is."""
    student, teacher, y = logits(0), logits(1), labels(2)
    difference = student - teacher
    centred = difference - difference.mean(1, keepdim=True)
    limit = centred.square().sum(1).mean() / (2 * CLASSES)
    ce = F.cross_entropy(student, y)
    for T in (300.0, 900.0):
        found = MutualLoss(T)(student, teacher, y) - ce
        assert float(found) == pytest.approx(float(limit), rel=0.02)


def test_members_first_gives_each_its_own_loss() -> None:
    student, teacher, y = logits(0, 3, 8, CLASSES), logits(1, 3, 8, CLASSES), labels(2, 3, 8)
    for name in ("ce", "smoothing", "dml", "kdcl", "switokd", "bdkd", "inverted", "smooth"):
        scheme = make_scheme(name)
        together = scheme([teacher, student], y)
        for place in range(3):
            alone = scheme([teacher[place], student[place]], y[place])
            for many, one in zip(together, alone, strict=True):
                torch.testing.assert_close(many[place], one)
    paused = Switched().paused([teacher, student], y)
    alone = [expert_mode(student[i], teacher[i], y[i]) for i in range(3)]
    assert paused.tolist() == [bool(one) for one in alone]


def test_teacher_gets_the_mutual_term_of_the_paper() -> None:
    student, teacher, y = logits(0), logits(1).requires_grad_(), labels(2)
    T = 4.0
    first, _ = make_scheme("bdkd", T=T)([teacher, student], y)
    kl = F.kl_div((teacher / T).log_softmax(-1), (student / T).softmax(-1), reduction="batchmean")
    torch.testing.assert_close(first, F.cross_entropy(teacher, y) + T**2 * kl)


def test_several_students_average_over_all_the_others() -> None:
    a, b, t, y = logits(0), logits(1), logits(3), labels(2)
    rule, ce = BalancedDistillation(), F.cross_entropy(a, y)
    teacher, first, _ = make_scheme("bdkd")([t, a, b], y)
    torch.testing.assert_close(first, (rule(a, t, y) + rule(a, b, y)) / 2)
    torch.testing.assert_close(teacher, (MutualLoss(4.0)(t, a, y) + MutualLoss(4.0)(t, b, y)) / 2)
    assert not torch.isclose(first, ce)


def test_minlogit_teacher_has_the_smallest_cross_entropy() -> None:
    several, y = [logits(i) for i in range(3)], labels(5)
    target = smallest_logits(several, y)
    best = F.cross_entropy(target, y, reduction="none")
    for one in several:
        assert (best <= F.cross_entropy(one, y, reduction="none") + 1e-12).all()
    assert target.gather(1, y[:, None]).abs().max() == 0
    mutual = Collaborative(4.0)(several, y)
    kl = F.kl_div((several[2] / 4).log_softmax(-1), (target / 4).softmax(-1), reduction="batchmean")
    torch.testing.assert_close(mutual[2], F.cross_entropy(several[2], y) + 16 * kl)


def test_switokd_pauses_by_the_published_threshold() -> None:
    seen = set()
    for seed in range(40):
        student, teacher, y = logits(seed), logits(seed + 100), labels(seed)
        # A teacher that knows more of the labels than the student, in half of the draws.
        teacher = teacher + (seed % 2) * 3 * F.one_hot(y, CLASSES)
        p_s, p_t, target = student.softmax(1), teacher.softmax(1), F.one_hot(y, CLASSES)
        s, t, gap = (
            (a - b).abs().sum(1).mean() for a, b in ((p_s, target), (p_t, target), (p_s, p_t))
        )
        expected = bool(t < s) and bool(gap > s - torch.exp(-t / (s + t)) * t)
        assert bool(expert_mode(student, teacher, y)) == expected
        seen.add(expected)
    assert seen == {True, False}


# Training


def task(n: int = 256) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 8, generator=generator)
    return x, x[:, :4].argmax(1)


def pair(seed: int = 0) -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(seed)
    return mlp((8, 32, 32, 4)), mlp((8, 6, 4))


def batches(n: int = 256, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    x, y = task(n)
    return list(zip(x.split(size), y.split(size), strict=True))


def test_one_step_is_two_separate_steps_from_one_joint_forward() -> None:
    teacher, student = pair()
    by_hand = [copy.deepcopy(teacher), copy.deepcopy(student)]
    distiller = OnlineDistiller(teacher, student)
    for x, y in batches():
        distiller.step(x, y)
    optimizers = [kd_sgd(network.parameters()) for network in by_hand]
    for x, y in batches():
        outputs = [network(x) for network in by_hand]
        losses = [
            MutualLoss(4.0)(outputs[0], outputs[1].detach(), y),
            BalancedDistillation()(outputs[1], outputs[0].detach(), y),
        ]
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for ours, theirs in zip((teacher, student), by_hand, strict=True):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_fit_learns_and_reports_every_epoch() -> None:
    result = OnlineDistiller(*pair()).fit(batches(size=8), batches(), epochs=8)
    last = result.history.iloc[-1]
    assert len(result.history) == 8
    assert last["student_accuracy"] > 0.8 and last["teacher_accuracy"] > 0.8
    logits = result.student(task()[0])
    found = expected_calibration_error(logits.softmax(-1), task()[1])
    assert last["student_ece"] == pytest.approx(found, abs=1e-6)
    assert last["student_loss"] < result.history.iloc[0]["student_loss"]
    assert last["learning_rate"] == pytest.approx(0.05 * 0.1**3)


def test_schedules() -> None:
    assert [step_decay(e, 240) for e in (1, 150, 151, 180, 181, 211)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.001]
    )
    assert cosine_decay(1, 60) == 1 and cosine_decay(31, 60) == pytest.approx(0.5)


def test_frozen_teacher_stays_and_a_paused_one_too() -> None:
    teacher, student = pair()
    before = copy.deepcopy(teacher.state_dict())
    start = copy.deepcopy(student.state_dict())
    OnlineDistiller(teacher, student, "kd").fit(batches(), epochs=1)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not torch.equal(start["0.weight"], student.state_dict()["0.weight"])

    class Always(Switched):
        def paused(self, logits: object, labels: object) -> Tensor:
            return torch.tensor(True)

    row = OnlineDistiller(teacher, student, Always()).fit(batches(), epochs=1).history.iloc[0]
    assert row["paused"] == 1
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_resumed_training_ends_with_the_same_weights() -> None:
    whole, first, second = (OnlineDistiller(*pair()) for _ in range(3))
    for _ in range(4):
        whole.epoch(batches())
    for _ in range(2):
        first.epoch(batches())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    result = second.fit(batches(), epochs=4, schedule=lambda epoch, epochs: 1.0)
    assert len(result.history) == 4
    for a, b in zip(whole.networks[1].parameters(), result.student.parameters(), strict=True):
        assert torch.equal(a, b)


def test_networks_with_batch_norm_and_bfloat16_train() -> None:
    torch.manual_seed(0)
    networks = [cifar_resnet(blocks=(1, 1), widths=(4, 8), channels=1, classes=4) for _ in "ab"]
    x, y = torch.rand(32, 1, 8, 8), torch.randint(4, (32,))
    distiller = OnlineDistiller(*networks, amp=True)
    before = networks[1].head[2].weight.clone()
    seen = distiller.step(x, y)
    assert math.isfinite(seen["student_loss"]) and not torch.equal(
        before, networks[1].head[2].weight
    )
    assert networks[1].head[2].weight.dtype == torch.float32


@pytest.mark.parametrize("name", ["bdkd", "kd", "switokd", "kdcl"])
def test_ensemble_is_the_single_training(name: str) -> None:
    x, y = task()
    seeds = (3, 4, 5)
    together = EnsembleDistiller(
        [pair(seed) for seed in seeds], make_scheme(name), x.expand(3, -1, -1), y.expand(3, -1),
        seeds,
    )  # fmt: skip
    for factor in (1.0, 0.5):
        together.epoch(factor)
    for place, seed in enumerate(seeds):
        alone = OnlineDistiller(*pair(seed), name)
        loader = PictureBatches(x, y, 64, seed)
        for factor in (1.0, 0.5):
            alone.epoch(loader, factor=factor)
        for network, members in zip(alone.networks, together.networks, strict=True):
            expected = network(x)
            found = members(x.expand(3, -1, -1))[place]
            torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
        paused = sum(row["paused"] for row in alone.rows)
        assert together.state["paused"][place] == pytest.approx(paused)


def test_bad_input_is_refused() -> None:
    student, teacher, y = logits(0), logits(1), labels(2)
    with pytest.raises(DataError, match=r"numbers of classes differ; got \[6, 7\]"):
        bdkd_loss(student[:, :6], teacher, y)
    with pytest.raises(DataError, match="shape of the logits"):
        bdkd_loss(student[:5], teacher[:5], y)
    with pytest.raises(DataError, match=r"temperature T; got 0"):
        BalancedDistillation(T=0.0)
    with pytest.raises(DataError, match="label of sample 3; got 7; expected 0 to 6"):
        bdkd_loss(student, teacher, torch.cat([y[:2], torch.tensor([7]), y[3:]]))
    with pytest.warns(UserWarning, match="before the softmax"):
        bdkd_loss(student.softmax(-1), teacher, y)
    with pytest.raises(DataError, match="no loss 'bdk'; did you mean 'bdkd'"):
        make_scheme("bdk")
    network = pair()[0]
    with pytest.raises(DataError, match="teacher and student share weights"):
        OnlineDistiller(network, network)
    with pytest.raises(DataError, match="share weights"):
        OnlineDistiller(network, nn.Sequential(network[0], nn.Linear(32, 4)))
    with pytest.raises(DataError, match="one student"):
        OnlineDistiller(pair()[0], [pair(1)[1], pair(2)[1]], "switokd")


def test_training_refuses_what_cannot_be_learned() -> None:
    x, y = task(64)
    distiller = OnlineDistiller(*pair())
    distiller.step(x, y)
    with pytest.raises(DataError, match="expected 0 to 3"):
        distiller.step(x, torch.full((64,), 4))
    before = copy.deepcopy(distiller.networks[1].state_dict())
    with pytest.raises(PeiraError, match="not finite"):
        distiller.step(x * math.inf, y)
    assert torch.equal(before["0.weight"], distiller.networks[1].state_dict()["0.weight"])
    with pytest.raises(DataError, match="no batches"):
        distiller.epoch([])


# The simulator


def test_true_calibration_error_is_known_for_a_distorted_posterior() -> None:
    """Two classes on a line: log-odds c z have the error E |sigmoid(c|z|) - sigmoid(|z|)|."""
    law = GaussianClasses(torch.tensor([[-1.0], [1.0]], dtype=torch.float64))
    x, _ = law.sample(100_000, torch.Generator().manual_seed(0))
    posterior = law.posterior(x)
    assert true_calibration_error(posterior, posterior) < 1e-12
    assert posterior_divergence(posterior, posterior) == pytest.approx(0, abs=1e-12)
    grid = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
    density = 0.5 * sum(torch.exp(-((grid - m) ** 2) / 2) / math.sqrt(2 * math.pi) for m in (-1, 1))
    for sharpness in (0.5, 3.0):
        shown = (posterior.log() * sharpness).softmax(1)
        z = 2 * grid.abs()
        gap = (torch.sigmoid(sharpness * z) - torch.sigmoid(z)).abs()
        exact = float(torch.trapezoid(density * gap, grid))
        assert true_calibration_error(shown, posterior) == pytest.approx(exact, abs=2e-3)
        kl = (torch.sigmoid(z) * (torch.sigmoid(z) / torch.sigmoid(sharpness * z)).log()) + (
            torch.sigmoid(-z) * (torch.sigmoid(-z) / torch.sigmoid(-sharpness * z)).log()
        )
        expected = float(torch.trapezoid(density * kl, grid))
        assert posterior_divergence(shown, posterior) == pytest.approx(expected, rel=0.03)


def test_ece_of_labels_tends_to_the_true_error_from_above() -> None:
    law = GaussianClasses(0.7 * torch.randn(5, 8, generator=torch.Generator().manual_seed(1)))
    biases = {}
    for n in (200, 50_000):
        x, y = law.sample(n, torch.Generator().manual_seed(2))
        posterior = law.posterior(x)
        shown = (posterior.double().log() * 1.5).softmax(1)
        exact = true_calibration_error(shown, posterior, bins=15)
        biases[n] = expected_calibration_error(shown, y) - exact
    assert biases[200] > 0.005 and abs(biases[50_000]) < 0.005


def test_problems_are_drawn_alike_and_paired() -> None:
    one, again = (pictures("digits", 1000, 0.25, 3) for _ in range(2))
    assert torch.equal(one.train[1], again.train[1])
    assert [len(part[1]) for part in (one.train, one.validation, one.test)] == [1000, 200, 597]
    wrong = float((one.test[1] != one.true_labels).double().mean())
    assert wrong == pytest.approx(0.25, abs=1e-3)
    assert torch.equal(pictures("digits", 1000, 0.0, 3).test[1], one.true_labels)
    law = simulated(500, 0)
    assert law.posterior is not None and law.truth is not None
    sums = law.posterior(law.truth).sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_augmented_pictures_are_crops_and_flips() -> None:
    images = torch.arange(2 * 64.0).view(2, 1, 8, 8) + 1
    found = next(iter(PictureBatches(images, torch.tensor([0, 1]), 2, 0, augment=True)))
    padded = F.pad(images, (4, 4, 4, 4))
    for image, label in zip(*found, strict=True):
        crops = [
            version
            for top in range(9)
            for left in range(9)
            for crop in [padded[label, :, top : top + 8, left : left + 8]]
            for version in (crop, crop.flip(-1))
        ]
        assert any(torch.equal(image, crop) for crop in crops)


# The study


def test_networks_have_the_cards_sizes() -> None:
    for depth, count in ((20, 275_572), (56, 858_868), (110, 1_733_812)):
        network = cifar_resnet(depth, 100, shortcut="pad")
        assert sum(weight.numel() for weight in network.parameters()) == count
    cell = Cell()
    problem = problem_of(cell, 0)
    teacher, student = networks_of(cell, problem, 0)
    assert [one.out_features for one in teacher if isinstance(one, nn.Linear)] == [256] * 3 + [10]
    assert sum(weight.numel() for weight in student.parameters()) == 64 * 16 + 16 + 16 * 10 + 10


def test_scaled_is_labels_alone_with_a_temperature() -> None:
    from peira.engine.runs import Run

    tiny = {"train": 128, "student": 4, "epochs": 2}
    ce, scaled = (
        measure_perceptrons(Cell(method=method, **tiny), [Run(0)])[0] for method in ("ce", "scaled")
    )
    assert scaled["accuracy"] == ce["accuracy"]
    assert scaled["ece"] == ce["scaled_ece"] != ce["ece"]
    assert "teacher_accuracy" not in ce


def test_cifar_pairs_train_from_the_official_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peira.engine.runs import Run

    rng = np.random.default_rng(0)
    for name, count in (("train.bin", 300), ("test.bin", 40)):
        records = rng.integers(0, 256, (count, 2 + 3072)).astype(np.uint8)
        records[:, 1] = rng.integers(0, 100, count)
        (tmp_path / "cifar100").mkdir(exist_ok=True)
        records.tofile(tmp_path / "cifar100" / name)
    monkeypatch.setenv("PEIRA_DATA", str(tmp_path))
    cell = resnets("cifar100", 8, 8, train=64, epochs=1, batch=32)
    problem = problem_of(cell, 0)
    assert problem.train[0].shape == (64, 3, 32, 32) and len(problem.test[1]) == 40
    spread, mean = torch.std_mean(problem.train[0], dim=(0, 2, 3))
    torch.testing.assert_close(spread, torch.ones(3))
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-5, rtol=0)
    measured = measure_resnets(cell, Run(0))
    assert 0 <= measured["teacher_accuracy"] <= 1 and measured["size_ratio"] == 1
    assert Study(paper("bd-kd").card).inputs(cell).keys() == {"cifar100"}


def test_gains_pair_teachers_and_seeds() -> None:
    import pandas as pd

    base = Cell().model_dump()
    rows = [
        {**base, "method": method, "teacher": width, "seed": seed, "size_ratio": width / 16,
         "accuracy": accuracy + seed / 100}
        for method, width, accuracy in [
            ("ce", 256, 0.5), ("dml", 256, 0.6), ("dml", 16, 0.55), ("bdkd", 256, 0.7),
            ("bdkd", 16, 0.5), ("inverted", 256, 0.1),
        ]
        for seed in (0, 1)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    main = judge.main_setting(table)
    assert main["entropy_T"] is None and main["teacher"] == 256
    over_ce = judge.gains(table, main, "ce").sort_values(["teacher", "seed"])["gain"]
    assert over_ce.tolist() == pytest.approx([0.0, 0.0, 0.2, 0.2])
    over_dml = judge.gains(table, main, "dml").sort_values(["teacher", "seed"])["gain"]
    assert over_dml.tolist() == pytest.approx([-0.05, -0.05, 0.1, 0.1])


# Commands


def peira(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["use", "bd-kd", *map(str, words)])
    return result.exit_code, " ".join((result.output + str(result.exception or "")).split())


@pytest.fixture
def table(tmp_path: Path) -> Path:
    x, y = task(200)
    path = tmp_path / "table.csv"
    header = ",".join([*(f"x{i}" for i in range(8)), "constant", "label"])
    lines = [
        ",".join([*(f"{v:.5f}" for v in row), "1", f"kind{k}"])
        for row, k in zip(x.tolist(), y.tolist(), strict=True)
    ]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_commands_go_from_a_table_to_its_calibration(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    use.distill(table, out, epochs=20, batch=16)
    report = json.loads((out / "report.json").read_text())
    assert report["student"]["accuracy"] > 0.6
    probs = tmp_path / "probs.csv"
    use.predict(out / "student.safetensors", table, probs, target="label")
    found, labels = use.read_probabilities(probs)
    assert found.shape == (200, 4)
    correct = float((found.argmax(1) == labels).double().mean())
    assert correct > 0.6
    reliability = tmp_path / "reliability.csv"
    use.calibration(probs, out=reliability)
    rows = np.genfromtxt(reliability, delimiter=",", names=True)
    assert rows["samples"].sum() == 200
    gaps = np.abs(rows["accuracy"] - rows["confidence"]) * rows["samples"] / 200
    assert gaps.sum() == pytest.approx(expected_calibration_error(found, labels))


def test_pictures_and_own_networks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 60)
    x = rng.integers(0, 50, (60, 1, 8, 8)) + 80 * y[:, None, None, None]
    np.savez(tmp_path / "pictures.npz", x=x.astype(np.uint8), y=y)
    (tmp_path / "own.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    )
    out = tmp_path / "out"
    own = f"{tmp_path / 'own.py'}:net"
    use.distill(tmp_path / "pictures.npz", out, student=own, epochs=2, batch=16)
    use.predict(out / "student.safetensors", tmp_path / "pictures.npz", tmp_path / "p.csv")
    found, labels = use.read_probabilities(tmp_path / "p.csv")
    assert found.shape == (60, 3) and labels.tolist() == y.tolist()
    comparison = tmp_path / "rows.csv"
    use.compare(tmp_path / "pictures.npz", "ce,kd,bdkd", epochs=1, seeds=1, out=comparison)
    assert [line.split(",")[0] for line in comparison.read_text().splitlines()] == [
        "loss", "ce", "kd", "bdkd",
    ]  # fmt: skip


def test_bad_files_get_one_line(table: Path, tmp_path: Path) -> None:
    probs = tmp_path / "probs.csv"
    probs.write_text("p_a,p_b,label\n0.5,0.5,a\n0.5,0.6,b\n")
    code, text = peira("calibration", probs)
    assert code == 1 and "row 3: no probabilities; got [0.5, 0.6]" in text
    probs.write_text("p_a,p_b,label\n0.5,0.5,c\n")
    assert (
        "row 2, column 'label': no column of this class; got 'c'" in peira("calibration", probs)[1]
    )
    np.savez(tmp_path / "p.npz", probs=np.full((2, 2), 0.5), labels=np.array([0, 2]))
    assert (
        "row 2: no such class; got 2; expected 0 to 1"
        in peira("calibration", tmp_path / "p.npz")[1]
    )
    assert "unknown loss; got 'dkd'" in peira("distill", table, tmp_path / "o", "--loss", "dkd")[1]
    assert "no column 'class'" in peira("distill", table, tmp_path / "o", "--target", "class")[1]
    every = tmp_path / "every.csv"
    every.write_text("x,label\n" + "".join(f"{i},{i}\n" for i in range(9)))
    found = peira("distill", every, tmp_path / "o")[1]
    assert "9 classes in 9 samples; expected two samples of each at least" in found
    assert "no such file" in peira("predict", tmp_path / "none", table, tmp_path / "p.csv")[1]
