"""Cyclical curriculum learning: sizes, sampling law, resuming, estimator, theory, study."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, stats
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.naive_bayes import MultinomialNB
from sklearn.utils.estimator_checks import check_estimator
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

from peira.data import DataError, load_model
from peira.data.arrays import read_tensors
from peira.nn import accuracy, mlp, sample_losses, small_cnn
from peira.training.ccl import use
from peira.training.ccl.baselines import (
    CosinePerSample,
    blend_samples,
    coteaching_losses,
    kept_by_coteaching,
)
from peira.training.ccl.curriculum import (
    CyclicalCurriculum,
    SelfPacedLearning,
    StagedSelfPacedLearning,
)
from peira.training.ccl.estimator import (
    CyclicalFit,
    classifier_losses,
    compare_fits,
    held_out_losses,
)
from peira.training.ccl.problems import make_problem
from peira.training.ccl.sampling import (
    easiest,
    effective_sample_size,
    rank_suspects,
    sampling_probabilities,
    scores_from_losses,
    weighted_subset,
)
from peira.training.ccl.sizes import (
    SCHEDULES,
    cycle_rounds,
    cyclic_from_full_sizes,
    cyclic_sizes,
    exponential_sizes,
    full_then_cyclic_sizes,
    growing_sizes,
    parabolic_sizes,
    plan_table,
    round_counts,
    sharp_sizes,
    shrinking_sizes,
)
from peira.training.ccl.theory import NoisyLeastSquares, compare_cycle

LOSSES = np.random.default_rng(0).exponential(size=60)


def recursion(start: float, end: float, alpha: float, budget: float) -> list[float]:
    """The recursion as the paper writes it: the last two sizes decide."""
    sizes = [start]
    while sum(sizes) < budget:
        n, rising = sizes[-1], len(sizes) > 1 and sizes[-2] < sizes[-1]
        up = n == start or (rising and n != end)
        sizes.append(min(n / alpha, end) if up else max(n * alpha, start))
    return sizes


def test_published_schedule() -> None:
    sizes = cyclic_sizes(0.25, 1.0, 0.5, 30)
    assert sizes[:9] == [0.25, 0.5, 1, 0.5, 0.25, 0.5, 1, 0.5, 0.25]
    assert len(sizes) == 54
    assert sum(sizes) == 30


@pytest.mark.parametrize("start", [0.1, 0.25, 0.3])
@pytest.mark.parametrize("end", [0.8, 1.0])
@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.7])
def test_sizes_follow_the_recursion(start: float, end: float, alpha: float) -> None:
    assert cyclic_sizes(start, end, alpha, 17) == pytest.approx(recursion(start, end, alpha, 17))


def test_uneven_alpha_stops_at_its_ends() -> None:
    sizes = cyclic_sizes(0.25, 1.0, 0.3, 5)
    assert sizes[:6] == pytest.approx([0.25, 0.25 / 0.3, 1, 0.3, 0.25, 0.25 / 0.3])
    assert cycle_rounds(0.25, 1.0, 0.3) == cycle_rounds() == 4


def test_rounding_costs_no_round() -> None:
    sizes = cyclic_sizes(1 / 9, 1.0, 1 / 3, 4)
    assert sizes[:5] == pytest.approx([1 / 9, 1 / 3, 1, 1 / 3, 1 / 9])
    assert round_counts([0.29], 100) == [29]


def test_other_schedules() -> None:
    assert sharp_sizes(budget=4)[:7] == [0.25, 0.5, 1, 0.25, 0.5, 1, 0.25]
    assert growing_sizes(budget=6)[::5] == [0.25, 0.5, 1]
    assert shrinking_sizes(budget=12)[::5][:4] == [1, 0.5, 0.25, 0.25]
    full = cyclic_from_full_sizes(budget=20)
    assert full[:5] == [1, 0.5, 0.25, 0.5, 1]
    # Official: the cycle of budget 21 without its first two rounds.
    assert full == recursion(0.25, 1.0, 0.5, 21)[2:]
    assert full_then_cyclic_sizes(budget=20) == [1.0] * 10 + recursion(0.25, 1.0, 0.5, 10)
    # 4%, half as many again; 4% times 1, 2, 3, ... to the power 1.5.
    assert exponential_sizes(budget=20)[::5][:4] == pytest.approx([0.04, 0.06, 0.09, 0.135])
    assert parabolic_sizes(budget=20)[::5][:3] == pytest.approx([0.04, 0.113137, 0.207846])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_sees_the_same_samples(schedule: str) -> None:
    curriculum = CyclicalCurriculum(
        np.ones(400), budget_epochs=12, schedule=schedule, transform="random"
    )
    seen = [len(set(subset.tolist())) for subset in curriculum]
    assert seen == curriculum.counts
    assert 12 * 400 <= sum(seen) < 13 * 400
    assert curriculum.plan()["samples_seen"].iloc[-1] == sum(seen) == curriculum.samples_seen


def test_plan() -> None:
    table = plan_table([0.25, 0.5, 1.0], 10)
    assert table["count"].tolist() == [2, 5, 10]
    assert table["samples_seen"].tolist() == [2, 7, 17]
    assert table["epochs_seen"].iloc[-1] == 1.7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": 0.9, "end": 0.5}, "start is above end"),
        ({"alpha": 1.0}, "alpha"),
        ({"alpha": 0.0}, "alpha"),
        ({"start": 0.0}, "start is no share"),
        ({"end": 1.1}, "end is no share"),
        ({"budget_epochs": 0.1}, "budget"),
        ({"budget_epochs": math.nan}, "budget"),
        ({"start": 0.02, "alpha": 0.99999, "budget_epochs": 1000.0}, "10,000 rounds"),
        ({"start": 0.01}, "empty"),
        ({"schedule": "cyclical"}, "cyclic"),
        ({"transform": "squared"}, "transform"),
        ({"losses": [0.1, math.nan]}, "sample 1"),
        ({"losses": [0.1, -1.0]}, "sample 1"),
        ({"losses": [0.0, 0.0]}, "all losses are zero"),
        ({"losses": None}, "either losses or scores"),
        ({"losses": None, "scores": [0.0, 0.0]}, "all scores are zero"),
        ({"losses": None, "scores": [1.0, 0, 0, 0]}, "only 1 of 4"),
        ({"scores": [1.0]}, "either losses or scores"),
        ({"ageing": 0.5}, "ageing"),
        ({"lam": 0.0, "transform": "exp"}, "lam"),
    ],
)
def test_bad_input_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        CyclicalCurriculum(**{"losses": LOSSES, **changes})


def test_other_lengths_are_refused() -> None:
    curriculum = CyclicalCurriculum(LOSSES)
    with pytest.raises(DataError, match="60 samples for a data set of 3"):
        curriculum.sampler([1, 2, 3])
    with pytest.raises(DataError, match="another data set"):
        curriculum.update([1.0, 2.0])
    with pytest.raises(DataError, match="another data set"):
        curriculum.load_state_dict(CyclicalCurriculum(LOSSES[:50]).state_dict())


def test_scores() -> None:
    losses = np.array([0.0, 0.5, 4.0])
    assert scores_from_losses(losses) == pytest.approx([1e7, 2, 0.25])
    assert scores_from_losses(losses, "hard", floor=0.1).tolist() == [0.1, 0.5, 4]
    exp = scores_from_losses(losses, "exp", 0.5)
    # A sample of loss 4 has 14% of the mass of one of loss 0, and not a forty-millionth.
    assert exp[2] / exp[0] == pytest.approx(math.exp(-2))
    assert exp[0] == 0.5
    underflow = scores_from_losses([1.0, 2.0, 1e4], "exp", 5.0)
    assert underflow[2] == underflow[1] == 5 * math.exp(-10)


def test_effective_sample_size() -> None:
    assert effective_sample_size(np.full(7, 1e300)) == pytest.approx(7)
    assert effective_sample_size([0, 3, 0]) == 1
    assert effective_sample_size([1, 1, 2]) == pytest.approx(16 / 6)
    assert sampling_probabilities([1, 3]).tolist() == [0.25, 0.75]


def test_subsets_have_the_law_of_draws_one_by_one() -> None:
    """Frequencies of all ten subsets against the exact law, summed over orders of drawing."""
    weights = np.array([1.0, 2, 3, 4, 10])
    exact: dict[frozenset[int], float] = {}
    for order in itertools.permutations(range(5), 3):
        left, p = weights.sum(), 1.0
        for i in order:
            p, left = p * weights[i] / left, left - weights[i]
        exact[frozenset(order)] = exact.get(frozenset(order), 0) + p
    rng, n = np.random.default_rng(1), 20_000
    drawn = dict.fromkeys(exact, 0)
    for _ in range(n):
        drawn[frozenset(weighted_subset(weights, 3, rng).tolist())] += 1
    found = stats.chisquare([drawn[s] for s in exact], [n * p for p in exact.values()])
    assert found.pvalue > 0.001


def test_inclusion_frequencies_are_those_of_numpy() -> None:
    rng, n, size = np.random.default_rng(2), 200, 60
    weights = 1 / rng.exponential(size=n)
    ours, theirs = np.zeros(n), np.zeros(n)
    for _ in range(3000):
        ours[weighted_subset(weights, size, rng)] += 1
        theirs[rng.choice(n, size, replace=False, p=weights / weights.sum())] += 1
    variance = (ours + theirs) * (1 - (ours + theirs) / 6000)
    use = variance > 20
    statistic = (np.square(ours - theirs)[use] / variance[use]).sum()
    # Draws without replacement are negatively correlated: the chi-square law errs to the safe side.
    assert stats.chi2(use.sum()).sf(statistic) > 0.001
    assert use.sum() > 150


def test_order_in_a_round_is_no_curriculum() -> None:
    rng = np.random.default_rng(3)
    weights = np.r_[np.full(50, 100.0), np.ones(50)]
    first = [weighted_subset(weights, 99, rng)[0] < 50 for _ in range(2000)]
    assert stats.binomtest(sum(first), 2000, 50 / 99).pvalue > 0.001


def test_zero_scores_are_never_drawn() -> None:
    weights = np.array([0.0, 1, 1, 0, 1])
    assert set(weighted_subset(weights, 3, np.random.default_rng(0)).tolist()) == {1, 2, 4}
    with pytest.raises(DataError, match="floor above zero"):
        weighted_subset(weights, 4, np.random.default_rng(0))


def test_hard_samples_keep_a_chance() -> None:
    losses = np.r_[np.full(30, 0.1), np.full(30, 1.0)]
    hard = [(CyclicalCurriculum(losses, rng=seed).subset() >= 30).sum() for seed in range(300)]
    # 15 of 60, ten to one: a top-k would never take a hard one, chance alone would take 7.5.
    assert 1.0 < np.mean(hard) < 3.5


@pytest.mark.parametrize("settings", [{}, {"ageing": 1.44}, {"transform": "exp"}])
def test_resume_in_mid_cycle(settings: dict[str, object]) -> None:
    whole = [s.tolist() for s in CyclicalCurriculum(LOSSES, budget_epochs=6, rng=3, **settings)]
    first = CyclicalCurriculum(LOSSES, budget_epochs=6, rng=3, **settings)
    for _ in range(5):
        next(iter(first))
    state = first.state_dict()
    for _ in first:
        pass
    second = CyclicalCurriculum(LOSSES[::-1], budget_epochs=6, rng=9, **settings)
    second.load_state_dict(state)
    assert [s.tolist() for s in second] == whole[5:]


def test_self_paced_scores_come_back() -> None:
    first = CyclicalCurriculum(LOSSES, rng=1)
    first.update(LOSSES[::-1])
    state = first.state_dict()
    second = CyclicalCurriculum(LOSSES, rng=1)
    second.load_state_dict(state)
    assert second.subset().tolist() == first.subset().tolist()
    assert second.subset().tolist() != CyclicalCurriculum(LOSSES, rng=1).subset().tolist()


def test_sampler_gives_a_round_a_pass() -> None:
    data = TensorDataset(torch.arange(60))
    curriculum = CyclicalCurriculum(LOSSES, budget_epochs=4, rng=2)
    expected = [s.tolist() for s in CyclicalCurriculum(LOSSES, budget_epochs=4, rng=2)]
    loader = DataLoader(data, batch_size=8, sampler=curriculum.sampler(data))
    passes = []
    while not curriculum.done:
        length = len(loader)
        batches = [batch for (batch,) in loader]
        assert len(batches) == length
        passes.append(torch.cat(batches).tolist())
    assert passes == expected
    assert list(loader) == []


def test_sampler_resumes_in_mid_round() -> None:
    expected = [s.tolist() for s in CyclicalCurriculum(LOSSES, budget_epochs=4, rng=2)]
    sampler = CyclicalCurriculum(LOSSES, budget_epochs=4, rng=2).sampler()
    assert list(sampler) == expected[0]
    running = iter(sampler)
    begun = [next(running) for _ in range(7)]
    state = sampler.state_dict()
    again = CyclicalCurriculum(LOSSES, budget_epochs=4, rng=2).sampler()
    again.load_state_dict(state)
    assert len(again) == len(expected[1]) - 7
    assert begun + list(again) == expected[1]
    assert list(again) == expected[2]
    # Without a restored state, a pass that was broken off counts as done.
    assert list(sampler) == expected[2]


def test_ageing_lasts_one_round() -> None:
    repeated = []
    for seed in range(3000):
        curriculum = CyclicalCurriculum(scores=np.ones(4), end=0.25, ageing=1.44, rng=seed)
        rounds = itertools.islice(curriculum, 3)
        first, second, third = (int(s[0]) for s in rounds)
        repeated.append(first == second)
        assert curriculum.recent.tolist() == [third]
    p = (1 / 1.44) / (3 + 1 / 1.44)
    assert stats.binomtest(sum(repeated), 3000, p).pvalue > 0.001


def test_self_paced_learning() -> None:
    losses = [0.1, 0.2, 0.4, 0.8]
    curriculum = SelfPacedLearning(4, budget_epochs=4, pace=0.5)
    seen = []
    while not curriculum.done:
        if curriculum.round:
            curriculum.update(losses, threshold=0.15)
        seen.append(sorted(curriculum.subset().tolist()))
        curriculum.advance()
    # Thresholds 0.15, 0.3, 0.6, ..., then all once the other rounds have cost three epochs.
    assert seen == [[0, 1, 2, 3], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert curriculum.samples_seen == 4 + 1 + 2 + 3 + 4 + 4


def test_self_paced_learning_below_every_loss() -> None:
    curriculum = SelfPacedLearning(3, budget_epochs=4)
    curriculum.advance()
    with pytest.raises(DataError, match="update"):
        curriculum.subset()
    curriculum.update([1.0, 2.0, 3.0], threshold=0.1)
    assert curriculum.subset().tolist() == [0]


def test_stages_are_balanced() -> None:
    labels = np.repeat([0, 1], [8, 4])
    losses = np.r_[np.arange(8) + 1.0, [9.0, 8.0, 7.0, 6.0]]
    curriculum = StagedSelfPacedLearning(labels, budget_epochs=10, stages=4)
    assert curriculum.stage_rounds == 4
    curriculum.update(losses)
    rounds = [sorted(s.tolist()) for s in curriculum]
    assert rounds[0] == [0, 1, 11]
    assert rounds[4] == [0, 1, 2, 3, 10, 11]
    assert [len(r) for r in rounds] == [3] * 4 + [6] * 4 + [9] * 4 + [12] * 4
    assert curriculum.samples_seen == 120


def test_easiest_and_suspects() -> None:
    losses = [0.5, 3.0, 0.1, 0.2, 2.0]
    assert easiest(losses, 0.4).tolist() == [2, 3]
    assert rank_suspects(losses).tolist() == [1, 4, 0, 3, 2]


def test_suspects_are_those_of_cleanlab() -> None:
    rank = pytest.importorskip("cleanlab.rank")
    rng = np.random.default_rng(0)
    p, labels = rng.dirichlet(np.ones(4), 200), rng.integers(4, size=200)
    quality = rank.get_label_quality_scores(labels, p, method="self_confidence")
    ours = rank_suspects(-np.log(p[np.arange(200), labels]))
    assert ours.tolist() == np.argsort(quality, kind="stable").tolist()


def test_cosine_counts_samples() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.2)
    schedule = CosinePerSample(optimizer, total_samples=100)
    rates = [optimizer.param_groups[0]["lr"]]
    for samples in (10, 40, 25, 25):
        optimizer.step()
        schedule.step(samples)
        rates.append(optimizer.param_groups[0]["lr"])
    expected = [0.1 * (1 + math.cos(math.pi * seen / 100)) for seen in (0, 10, 50, 75, 100)]
    assert rates == pytest.approx(expected)


def test_coteaching_swaps_small_losses() -> None:
    labels = torch.zeros(3, dtype=torch.long)
    first = torch.tensor([[5.0, 0], [0, 0], [0, 5.0]])
    second = torch.tensor([[0, 5.0], [0, 0], [5.0, 0]])
    a, b = coteaching_losses(first, second, labels, keep=0.4)
    # Each network is taught the one sample that the other finds easiest: the last, the first.
    assert a.item() == pytest.approx(math.log1p(math.exp(5)))
    assert b.item() == pytest.approx(math.log1p(math.exp(5)))
    assert [kept_by_coteaching(epoch, 0.3) for epoch in (0, 5, 10, 50)] == [1, 0.85, 0.7, 0.7]


def test_blends_are_halves() -> None:
    inputs = torch.eye(50)
    blended, mask = blend_samples(inputs, 0.3, torch.Generator().manual_seed(0))
    assert mask.sum() == 15
    assert torch.equal(blended[~mask], inputs[~mask])
    assert ((blended[mask] == 0.5).sum(dim=1) == 2).all()
    assert (blended.diagonal()[mask] == 0.5).all()


def test_losses_of_classifiers() -> None:
    X, y = load_digits(return_X_y=True)
    X, y = X[:300] / 16, y[:300]
    fitted = MultinomialNB().fit(X, y)
    losses = classifier_losses(fitted, X, y, fitted.classes_)
    assert losses.mean() == pytest.approx(log_loss(y, fitted.predict_proba(X)))
    two = y < 2
    linear = SGDClassifier(loss="log_loss", random_state=0).fit(X[two], y[two])
    by_margin = classifier_losses(_WithoutProbabilities(linear), X[two], y[two], [0, 1])
    assert by_margin == pytest.approx(classifier_losses(linear, X[two], y[two], [0, 1]), abs=1e-6)
    with pytest.raises(DataError, match="without losses"):
        classifier_losses(object(), X, y, fitted.classes_)


class _WithoutProbabilities:
    def __init__(self, fitted: SGDClassifier) -> None:
        self.decision_function = fitted.decision_function


def test_estimator_conventions() -> None:
    check_estimator(CyclicalFit(budget_epochs=3), on_skip=None)


def test_estimator_counts_samples_and_repeats_itself() -> None:
    X, y = load_digits(return_X_y=True)
    X, y = X / 16, y.astype(str)
    train, answers = X[:400], y[:400]
    model = CyclicalFit(random_state=0, budget_epochs=4)
    first = clone(model).fit(train, answers)
    assert first.score(X[400:], y[400:]) > 0.8
    assert first.scoring_samples_ == 4 * 400
    assert 4 * 400 <= first.samples_seen_ < 5 * 400
    again = clone(model).fit(train, answers)
    assert np.array_equal(first.predict_proba(X), again.predict_proba(X))
    given = clone(model).fit(train, answers, first.losses_)
    assert given.scoring_samples_ == 0
    assert np.array_equal(first.predict_proba(X), given.predict_proba(X))
    same = clone(model).fit(sparse.csr_matrix(train), answers)
    # Scikit-learn's SGD decays the intercept of sparse data: another model, as good.
    assert same.score(sparse.csr_matrix(X[400:]), y[400:]) > 0.8


def test_estimator_refuses_what_cannot_learn_in_batches() -> None:
    from sklearn.svm import SVC

    with pytest.raises(DataError, match="partial_fit"):
        CyclicalFit(SVC()).fit(np.eye(8), [0, 1] * 4)
    with pytest.raises(DataError, match="another data set"):
        CyclicalFit().fit(np.eye(8), [0, 1] * 4, losses=[1.0])


def test_wrong_labels_are_found() -> None:
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    flipped = np.zeros(len(y), bool)
    flipped[rng.permutation(len(y))[:180]] = True
    noisy = np.where(flipped, (y + rng.integers(1, 10, len(y))) % 10, y)
    losses = held_out_losses(SGDClassifier(loss="log_loss", random_state=0), X / 16, noisy)
    assert roc_auc_score(flipped, losses) > 0.95
    with pytest.raises(DataError, match="too few samples for 5 folds"):
        held_out_losses(SGDClassifier(), X[:12], y[:12])


def test_sample_losses_feed_the_curriculum() -> None:
    data = TensorDataset(torch.randn(40, 5), torch.randint(3, (40,)))
    losses = sample_losses(mlp([5, 8, 3]), DataLoader(data, batch_size=7))
    curriculum = CyclicalCurriculum(losses, start=0.5)
    assert curriculum.scores == pytest.approx(1 / losses.double().numpy())
    assert len(curriculum.subset()) == 20


def test_network_of_the_paper() -> None:
    network = small_cnn()
    trained = sum(weight.numel() for weight in network.parameters())
    statistics = sum(b.numel() for name, b in network.named_buffers() if "running" in name)
    assert (trained, statistics, trained + statistics) == (66_890, 320, 67_210)


def test_theory_without_bias_is_textbook() -> None:
    """The stationary error of SGD on one Gaussian problem: eta d sigma^2 / (2 - eta (d + 2))."""
    problem = NoisyLeastSquares(bias=0.0, hard_noise=0.7, easy_noise=0.7, dimension=5, rate=0.05)
    expected = 0.05 * 5 * 0.49 / (2 - 0.05 * 7)
    assert problem.errors([1.0] * 60)[-1] == pytest.approx(expected, rel=1e-9)


def test_theory_step_is_exact() -> None:
    """One step from a fixed start, expectation by brute-force quadrature over a 2-D input."""
    problem = NoisyLeastSquares(bias=0.8, dimension=2, rate=0.1, epoch=4, initial=0.5, easy=0.25)
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = weights / weights.sum()
    error, total = np.array([0.0, math.sqrt(0.5)]), 0.0
    for p, offset, noise in problem.groups(0.5):
        for (i, a), (j, b), (k, c) in itertools.product(enumerate(nodes), repeat=3):
            x = np.array([a, b])
            residual = x @ (error - [offset, 0]) - noise * c
            after = error - 0.1 * residual * x
            total += p * weights[i] * weights[j] * weights[k] * (after @ after)
    state = problem.step_matrix(0.5) @ [0.0, 0.5, 1.0]
    assert state[1] == pytest.approx(total, rel=1e-9)


def test_theory_agrees_with_simulation() -> None:
    problem = NoisyLeastSquares()
    sizes = cyclic_sizes(0.25, 1.0, 0.5, 6)
    simulated = problem.simulate(sizes, 1000, np.random.default_rng(4))
    assert simulated == pytest.approx(problem.errors(sizes), rel=0.05)


def test_theory_limits() -> None:
    # Unbiased easy data is best alone; very biased easy data is best left in the whole.
    assert not compare_cycle(NoisyLeastSquares(bias=0.0), 0.5).wins
    assert not compare_cycle(NoisyLeastSquares(bias=3.0), 0.5).wins
    middle = compare_cycle(NoisyLeastSquares(bias=0.5, hard_noise=2.0), 0.5)
    assert middle.wins == (middle.best < min(middle.full, middle.easy))
    with pytest.raises(DataError, match="diverges"):
        NoisyLeastSquares(rate=0.2)


def test_problems_are_split_and_noisy_as_said() -> None:
    generator = torch.Generator().manual_seed(0)
    problem = make_problem("digits", 898, 450, generator)
    assert problem.train_inputs.shape == (898, 1, 8, 8)
    assert (problem.validation, len(problem.held_labels), problem.classes) == (449, 898, 10)
    whole = torch.cat([problem.train_inputs, problem.held_inputs]).flatten(1)
    # Scikit-learn's digits have no two pictures alike: no sample is in two parts.
    assert len(whole.unique(dim=0)) == len(whole)
    noisy = problem.with_noise("symmetric", 0.3, generator)
    assert noisy.noisy.sum() == round(0.3 * 898)
    assert torch.equal(noisy.train_labels != problem.train_labels, noisy.noisy)
    kept = torch.arange(5)
    assert torch.equal(noisy.only(kept).noisy, noisy.noisy[:5])
    wine = make_problem("wine", 898, 450, generator)
    assert wine.train_inputs.mean(dim=0).abs().max() < 1e-5
    assert len(wine.train_labels) == 89


def test_reuters(real_data: Path) -> None:
    problem = make_problem("r8", 1000, 300, torch.Generator().manual_seed(0))
    assert problem.train_inputs.shape == (1000, 1000)
    assert problem.classes == 8
    norms = problem.train_inputs.norm(dim=1)
    assert torch.allclose(norms[norms > 0], torch.ones(int((norms > 0).sum())), atol=1e-5)


def test_oscillation_peaks_at_its_own_period() -> None:
    from peira.training.ccl.study import period_excess

    rounds = np.arange(40)
    noise = 0.05 * np.random.default_rng(0).standard_normal(40)
    trend = 0.001 * rounds
    assert period_excess(np.cos(np.pi * rounds / 2) + trend + noise, 4) > 0.5
    assert period_excess(np.cos(2 * np.pi * rounds / 3) + trend + noise, 4) < -0.5
    assert period_excess(np.ones(40), 4) == 0


def test_published_and_fair_measures_differ() -> None:
    from peira.training.ccl.study import Training, scored

    rows = [(50, 0.5, 0.9, 0.5), (150, 0.8, 0.6, 1.0), (250, 0.7, 0.7, 1.0)]
    plain = Training([(200, 0.5, 0.5, 1.0)], {}, 1.0)
    found = scored(Training(rows, {}, 2.0, forward=300), 100, plain)
    assert found["best_validation"] == 0.8
    assert found["selected_test"] == 0.6
    assert found["last_test"] == 0.7
    assert found["epochs_seen"] == 2.5
    # Its own epochs, those of the run for the scores, and a third of three forward passes.
    assert found["total_epochs"] == pytest.approx(2.5 + 2 + 1)


def test_sign_test_leaves_out_ties() -> None:
    from peira.training.ccl.study import Cell, comparisons

    rows = [
        {**Cell(method=method, data=data).model_dump(), "seed": seed, "selected_test": value}
        for data, method, values in (
            ("digits", "ccl", (0.9, 0.8, 0.7)),
            ("digits", "growing", (0.8, 0.8, 0.8)),
            ("wine", "ccl", (0.9,)),
            ("wine", "growing", (0.8,)),
        )
        for seed, value in enumerate(values)
    ]
    assert comparisons(pd.DataFrame(rows), "growing") == [True, False, True]


def invoke(*words: object) -> str:
    """Run one command and give its output; errors are raised."""
    import typer

    app = typer.Typer()
    for name in use.__all__:
        app.command(name)(getattr(use, name))
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_plan_and_scores_commands(tmp_path: Path) -> None:
    out = tmp_path / "plan.csv"
    assert "54 rounds" in invoke("plan", 1000, "--out", out)
    assert pd.read_csv(out)["samples_seen"].iloc[-1] == 30_000
    losses = tmp_path / "losses.csv"
    pd.DataFrame({"loss": LOSSES}).to_csv(losses, index=False)
    shown = invoke("scores", losses, "--out", tmp_path / "scores.csv", "--transform", "exp")
    assert "inverse" in shown
    found = pd.read_csv(tmp_path / "scores.csv")
    assert found["probability"].sum() == pytest.approx(1)
    assert found["score"].to_numpy() == pytest.approx(0.5 * np.exp(-0.5 * LOSSES))
    pd.DataFrame({"loss": [0.1, -0.2]}).to_csv(losses, index=False)
    with pytest.raises(DataError, match=r"losses.csv: loss of sample 1"):
        invoke("scores", losses, "--out", tmp_path / "no.csv")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    X, y = load_digits(return_X_y=True)
    keep = y[:600] < 3
    frame = pd.DataFrame(X[:600][keep][:, 10:30]).add_prefix("pixel")
    path = tmp_path / "table.csv"
    frame.assign(label=[f"class {c}" for c in y[:600][keep]]).to_csv(path, index=False)
    return path


def test_fit_command(table: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.skops"
    shown = invoke("fit", table, "--seeds", 2, "--epochs", 4, "--model", model)
    assert "cyclical curriculum" in shown
    frame = pd.read_csv(table)
    fitted = load_model(model)
    assert fitted.score(frame.drop(columns="label").to_numpy(), frame["label"]) > 0.9
    with pytest.raises(DataError, match="no column 'target'"):
        invoke("fit", table, "--label", "target")
    arrays = tmp_path / "arrays.npz"
    np.savez(arrays, x=np.ones((4, 2)), y=np.ones(3))
    with pytest.raises(DataError, match="4 rows of x but 3 of y"):
        invoke("fit", arrays)


def test_fit_and_noisy_commands_on_texts(tmp_path: Path) -> None:
    path, model = tmp_path / "texts.csv", tmp_path / "model.skops"
    words = {"ship": ["sea", "sail", "port"], "train": ["rail", "track", "station"]}
    rng = np.random.default_rng(0)
    rows = [
        {"text": " ".join(rng.choice(words[name], 6)), "label": name}
        for name in rng.choice(list(words), 80)
    ]
    rows[7]["label"] = "train" if rows[7]["label"] == "ship" else "ship"
    pd.DataFrame(rows).to_csv(path, index=False)
    invoke("fit", path, "--text", "text", "--seeds", 1, "--epochs", 4, "--model", model)
    assert load_model(model).predict(["sail port sea"]).tolist() == ["ship"]
    invoke("noisy", path, tmp_path / "suspects.csv", "--text", "text")
    assert pd.read_csv(tmp_path / "suspects.csv")["row"].iloc[0] == 7 + 2


def test_compare_fits_counts_what_scores_cost() -> None:
    from sklearn.preprocessing import StandardScaler

    X, y = load_digits(n_class=3, return_X_y=True)
    found = compare_fits(StandardScaler(), X, y, [0, 1], budget_epochs=4)
    means = found.groupby("method")[["samples", "scoring_samples"]].mean()
    train = len(y) - math.ceil(0.25 * len(y))
    assert means.loc["plain", "samples"] == 4 * train
    assert means.loc[["plain", "random cycle"], "scoring_samples"].tolist() == [0, 0]
    assert means.loc["cyclical curriculum", "scoring_samples"] == 4 * train
    assert abs(means.loc["cyclical curriculum", "samples"] - 4 * train) < train


def test_pictures_command(tmp_path: Path) -> None:
    images, labels = load_digits(return_X_y=True)
    path = tmp_path / "digits.npz"
    pictures = (images[:400].reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    wrong = labels[:400].copy()
    wrong[0] = (wrong[0] + 5) % 10
    np.savez(path, x=pictures, y=wrong)
    weights, suspects = tmp_path / "weights.safetensors", tmp_path / "suspects.csv"
    shown = invoke("pictures", path, "--width", 8, "--epochs", 6, "--batch", 16,
                   "--weights", weights, "--suspects", suspects)  # fmt: skip
    assert "cyclical curriculum" in shown
    tensors, about = read_tensors(weights)
    network = small_cnn((8, 16, 16), (1, 8, 8), int(about["classes"]), "same")
    network.load_state_dict(tensors)
    inputs = torch.from_numpy(pictures[:, None] / np.float32(255))
    assert accuracy(network, inputs, torch.from_numpy(labels[:400])) > 0.5
    assert len(pd.read_csv(suspects)) == 240
    np.savez(path, x=pictures)
    with pytest.raises(DataError, match="without labels"):
        invoke("pictures", path)
