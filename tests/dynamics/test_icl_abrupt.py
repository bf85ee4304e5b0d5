"""In-context classification: the law of sequences, the networks against plain forwards, timing."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from peira.data.errors import DataError
from peira.dynamics.icl_abrupt import features, method, model, report, study, task, timing, use
from peira.dynamics.icl_abrupt.method import ICLRecipe, ICLTask, InContextNet, InductionHead
from peira.engine.errors import PeiraError

torch.set_num_threads(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_task(**changes: Any) -> ICLTask:
    settings = {"K": 32, "L": 8, "N": 4, "B": 2, "D": 11, "max_pairs": 6, "novel_classes": 16}
    return ICLTask(**{**settings, **changes})


def content(law: ICLTask, sequences: task.Sequences) -> tuple[Tensor, Tensor]:
    """Contents of items (S, N+1, D) and labels (S, N, D)."""
    rows = sequences.tokens[..., law.places :]
    return rows[:, ::2], rows[:, 1::2]


def test_items_are_class_means_with_noise_of_the_published_size() -> None:
    """Same class: correlation 1 / (1 + eps^2); mean square length 1, as of a class mean."""
    law = small_task(D=400, eps=0.5, K=8)
    items, _ = content(law, law.sample(3000, generator()))
    assert items.square().sum(dim=-1).mean() == pytest.approx(1, abs=0.05)
    sequences = law.sample(3000, generator())
    items, _ = content(law, sequences)
    alike = (items[:, :-1] * items[:, -1:]).sum(dim=-1)[sequences.matches]
    assert alike.mean() == pytest.approx(1 / 1.25, abs=0.05)


def test_a_bursty_context_has_each_class_B_times_and_the_target() -> None:
    law = small_task(eps=0.0, K=1024, D=64)
    sequences = law.sample(500, generator())
    items, labels = content(law, sequences)
    same = (items[:, :-1, None] - items[:, None, :-1]).norm(dim=-1) < 1e-4
    # Two draws of the same class in one context are rare with 1024.
    assert (same.sum(dim=-1) == 2).all(dim=-1).float().mean() > 0.99
    assert (sequences.matches.sum(dim=1) >= 2).all()
    # The token after an item of the target's class is the vector of the target's label.
    wanted = law.label_vectors[sequences.labels][:, None].expand_as(labels)
    assert torch.equal(labels[sequences.matches], wanted[sequences.matches])
    assert torch.equal(labels, law.label_vectors[sequences.context_labels])


def test_positions_are_one_hot_at_every_shift_alike() -> None:
    law = small_task()
    tokens = law.sample(4000, generator()).tokens[..., : law.places]
    assert law.places == 13 and law.length == 9
    place = tokens.argmax(dim=-1)
    assert torch.equal(tokens.sum(dim=-1), torch.ones(4000, 9))
    assert torch.equal(place.diff(dim=1), torch.ones(4000, 8, dtype=torch.long))
    shares = place[:, 0].bincount(minlength=5) / 4000
    assert len(shares) == 5 and torch.allclose(shares, torch.full((5,), 0.2), atol=0.03)


def test_labels_are_classes_modulo_L_and_swapped_in_ic2() -> None:
    law = small_task(eps=0.0)
    for kind, shift in (("test", 0), ("ic2", 1)):
        sequences = law.sample(300, generator(), kind)
        items, _ = content(law, sequences)
        classes = torch.cdist(items.flatten(0, 1), law.class_means).argmin(dim=1)
        classes = classes.unflatten(0, (300, 5))
        assert torch.equal((classes[:, -1] + shift) % 8, sequences.labels)
        assert torch.equal((classes[:, :-1] + shift) % 8, sequences.context_labels)


def test_novel_classes_are_no_trained_ones() -> None:
    law = small_task(D=64)
    novel, _ = content(law, law.sample(200, generator(), "ic"))
    known, _ = content(law, law.sample(200, generator(), "test"))
    nearest = [torch.cdist(x.flatten(0, 1), law.class_means).amin(dim=1) for x in (novel, known)]
    assert nearest[0].min() > 0.5 > nearest[1].max()


def test_without_bursts_the_target_is_independent_of_the_context() -> None:
    """A class of the context is the target's with probability 1 / K."""
    for law, kind in ((small_task(), "iwl"), (small_task(p_bursty=0.0), "train")):
        share = law.sample(4000, generator(), kind).matches.float().mean()
        assert share == pytest.approx(1 / 32, abs=0.006)
    mixed = small_task(p_bursty=0.25).sample(4000, generator()).matches.any(dim=1)
    assert mixed.float().mean() == pytest.approx(0.25 + 0.75 * (1 - (31 / 32) ** 4), abs=0.025)
    none = small_task(B=0).sample(4000, generator()).matches.float().mean()
    assert none == pytest.approx(1 / 32, abs=0.006)


def test_classes_follow_zipf() -> None:
    law = small_task(zipf=1.5, eps=0.0, p_bursty=0.0, K=16)
    expected = torch.arange(1, 17) ** -1.5
    expected /= expected.sum()
    items, _ = content(law, law.sample(4000, generator()))
    classes = torch.cdist(items.flatten(0, 1), law.class_means).argmin(dim=1)
    assert torch.allclose(classes.bincount(minlength=16) / 20_000, expected, atol=0.012)


def test_no_repeats_gives_distinct_labels() -> None:
    law = small_task(B=1, no_repeats=True)
    for kind in ("train", "ic"):
        ordered = law.sample(500, generator(), kind).context_labels.sort(dim=1).values
        assert (ordered.diff(dim=1) > 0).all()
    assert (small_task(B=1).sample(500, generator()).context_labels.sort().values.diff() == 0).any()


def test_novel_training_sequences_come_in_their_share() -> None:
    law = small_task(p_novel=0.5, D=64, p_bursty=0.0)
    items, _ = content(law, law.sample(2000, generator()))
    far = torch.cdist(items[:, -1], law.class_means).amin(dim=1) > 0.5
    assert far.float().mean() == pytest.approx(0.5, abs=0.04)


def test_batches_depend_on_step_and_seed_alone() -> None:
    law = small_task()
    first, again = (law.batches(step, 8, 3).tokens for step in (1, task.CHUNK))
    assert torch.equal(first, again)
    assert not torch.equal(first, law.batches(task.CHUNK + 1, 8, 3).tokens)
    assert not torch.equal(first, law.batches(1, 8, 4).tokens)
    assert not torch.equal(first, law.batches(1, 8, 3 + 2**32).tokens)
    sets = [small_task(seed=s).test_sets(8)["test"].tokens[..., : law.places] for s in range(2)]
    assert not torch.equal(*sets)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"K": 30}, "do not share L labels evenly"),
        ({"novel_classes": 12}, "12 novel classes"),
        ({"B": 3}, "B does not fit N = 4"),
        ({"B": 4}, "B does not fit N = 4"),
        ({"max_pairs": 3}, "max_pairs"),
        ({"L": 2, "B": 1, "no_repeats": True}, "4 distinct labels"),
        ({"p_bursty": 1.5}, "p_bursty is no share"),
        ({"eps": math.nan}, "eps is negative or NaN"),
        ({"D": 0}, "D is too small"),
        ({"features": torch.ones(4)}, "wrong shape"),
        ({"features": torch.ones(4, 11)}, "class_ids do not belong"),
        ({"features": torch.ones(4, 11), "class_ids": torch.arange(4)}, "class 0 has one item"),
        ({"features": torch.ones(8, 11), "class_ids": torch.arange(8) // 2}, "4 classes are not"),
        ({"features": torch.full((2, 11), math.nan), "class_ids": torch.zeros(2)}, "row 1, col"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        small_task(**changes)


def own_items(kinds: int = 12, each: int = 8, D: int = 11) -> dict[str, Any]:
    """Items that say who they are: (class, number, noise...)."""
    ids = torch.arange(kinds).repeat_interleave(each)
    values = torch.randn(kinds, D, generator=generator())[ids]
    return {"features": values + 0.05 * torch.randn(len(ids), D), "class_ids": ids + 100}


def test_own_items_are_split_by_class_and_by_item() -> None:
    given = own_items()
    law = small_task(K=8, L=4, novel_classes=4, **given)
    scaled = law._pools.features
    assert scaled.square().sum(dim=1).mean() == pytest.approx(1, abs=1e-5)

    def seen(kind: str) -> tuple[set[int], Tensor]:
        sequences = law.sample(800, generator(), kind)
        items, _ = content(law, sequences)
        distance = torch.cdist(items.flatten(0, 1), scaled)
        assert distance.amin(dim=1).max() < 1e-3
        rows = distance.argmin(dim=1).unflatten(0, (800, 5))
        again = (rows[:, :-1] == rows[:, -1:])[sequences.matches]
        return set(rows.flatten().tolist()), again

    trained, again = seen("train")
    tested, _ = seen("test")
    novel, _ = seen("ic")
    # Of eight items of a class two are kept for the tests.
    assert len(trained) == 8 * 6 and len(tested) == 8 * 2 and not trained & tested
    classes = {row // 8 for row in trained}
    assert len(classes) == 8 and not classes & {row // 8 for row in novel}
    # The target never is the very item that it was paired with: at most one of two copies is.
    assert again.float().mean() < 0.2


def test_projection_keeps_lengths_on_average() -> None:
    raw = torch.randn(200, 300, generator=generator())
    found = method.project(raw, 64, seed=1)
    centred = raw - raw.mean(dim=0)
    assert found.shape == (200, 64)
    ratio = found.square().sum(dim=1) / centred.square().sum(dim=1)
    assert ratio.mean() == pytest.approx(1, abs=0.05)


def plain_forward(net: InContextNet, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """All queries, keys and values of all tokens in both layers, as published."""
    length = tokens.shape[1]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    stream, maps = tokens, []
    for query, key, value in zip(net.query, net.key, net.value, strict=True):
        logits = (stream @ query) @ (stream @ key).transpose(1, 2)
        weights = logits.masked_fill(future, -math.inf).softmax(dim=-1)
        stream = stream + weights @ (stream @ value)
        maps.append(weights)
    h = stream[:, -1]
    for weight, bias in zip(net.classifier.weights[:-1], net.classifier.biases, strict=False):
        h = torch.clamp(h @ weight + bias, min=0)
    return h @ net.classifier.weights[-1] + net.classifier.biases[-1], maps


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_the_lean_forward_is_the_published_one(layers: int) -> None:
    law = small_task()
    net = InContextNet(law.dim, 8, layers=layers, width=20, generator=generator()).double()
    tokens = law.sample(30, generator(1)).tokens.double()
    ours, maps = net.with_attention(tokens)
    theirs, full = plain_forward(net, tokens)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(net.attention_maps(tokens), full)
    for found, expected in zip(maps, full, strict=True):
        torch.testing.assert_close(found, expected if found.ndim == 3 else expected[:, -1])
    parameters = list(net.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), parameters),
        torch.autograd.grad(theirs.square().sum(), parameters),
    )


def test_published_sizes_and_spreads() -> None:
    law = ICLTask()
    net = InContextNet(law.dim, 32, spread=63**-0.5, generator=generator())
    assert law.dim == 128
    attention = [*net.query, *net.key, *net.value]
    assert sum(w.numel() for w in attention) == 98_304
    assert sum(w.numel() for w in net.classifier.weights) == 53_248
    assert net.key[1].detach().std() == pytest.approx(63**-0.5, rel=0.02)
    assert net.classifier.weights[1].detach().std() == pytest.approx((2 / 128) ** 0.5, rel=0.03)
    assert all((bias == 0).all() for bias in net.classifier.biases)


def test_held_attention() -> None:
    tokens = torch.randn(3, 5, 6)
    expected = {
        "uniform": torch.ones(5, 5).tril() / torch.arange(1, 6)[:, None],
        "previous": torch.eye(5).roll(-1, dims=1).tril(-1) + torch.diag(torch.eye(5)[0]),
        "self": torch.eye(5),
    }
    for first, weights in expected.items():
        net = InContextNet(6, 4, first=first, generator=generator())
        found = net.with_attention(tokens)[1][0]
        torch.testing.assert_close(found, weights.expand(3, 5, 5))


def test_the_induction_head_by_hand() -> None:
    """One sequence, loops over tokens, weights from the definition."""
    law = small_task()
    head = InductionHead(law.places, law.D, 8, width=20, gain=2.0, generator=generator()).double()
    beta_1, beta_2 = 1.4, 3.0
    head.betas.data = torch.tensor([beta_1, beta_2]).double() / 2.0
    tokens = law.sample(3, generator(1)).tokens.double()
    logits, (first, second) = head.with_attention(tokens)
    for s in range(3):
        x = tokens[s, :, law.places :]
        copied = torch.zeros_like(x)
        for i in range(9):
            weights = torch.tensor([math.exp(beta_1) if j == i - 1 else 1.0 for j in range(i + 1)])
            weights = weights.double() / weights.sum()
            torch.testing.assert_close(first[s, i, : i + 1], weights)
            copied[i] = weights @ x[: i + 1]
        attention = torch.softmax(beta_2 * copied @ x[-1], dim=0)
        torch.testing.assert_close(second[s], attention)
        expected = head.classifier(torch.cat([x[-1], attention @ x])[None])
        torch.testing.assert_close(logits[s : s + 1], expected)


def nets_of(kind: str, law: ICLTask, count: int) -> list[nn.Module]:
    if kind == "head":
        return [
            InductionHead(law.places, law.D, law.L, width=16, generator=generator(s))
            for s in range(count)
        ]
    return [InContextNet(law.dim, law.L, width=16, generator=generator(s)) for s in range(count)]


@pytest.mark.parametrize("kind", ["head", "net"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_networks_learn_together_as_alone(kind: str, optimizer: str) -> None:
    laws = [small_task(D=19, seed=s, K=32 * (s + 1)) for s in range(3)]
    recipe = ICLRecipe(12, 16, optimizer, 0.02, 1e-3, evaluate_every=5, test_size=32)
    together = nets_of(kind, laws[0], 3)
    rows = method.train_together(laws, together, recipe, [0, 1, 2])
    assert [row["step"] for row in rows[0]] == [0, 5, 10, 12]
    for seed, net in enumerate(nets_of(kind, laws[0], 3)):
        history = method.train_icl(laws[seed], net, recipe, seed)
        pd.testing.assert_frame_equal(history, pd.DataFrame(rows[seed]), rtol=1e-4)
        for ours, theirs in zip(net.parameters(), together[seed].parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_step_is_gradient_descent_on_the_mean_loss_with_decay() -> None:
    law = small_task()
    net, twin = nets_of("net", law, 1)[0], nets_of("net", law, 1)[0]
    method.train_icl(law, net, ICLRecipe(1, 16, "sgd", 0.1, 0.01, test_size=8), seed=5)
    batch = law.batches(1, 16, 5).part(slice(0, 16))
    nn.functional.cross_entropy(twin(batch.tokens), batch.labels).backward()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        expected = theirs - 0.1 * (theirs.grad + 0.01 * theirs)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_a_diverging_training_says_so() -> None:
    law = small_task()
    recipe = ICLRecipe(20, 16, "sgd", 1e8, evaluate_every=10, test_size=8)
    with pytest.raises(PeiraError, match="not finite at step 10"):
        method.train_icl(law, nets_of("net", law, 1)[0], recipe)


def test_the_two_parameter_model_learns_in_context() -> None:
    """With many classes and bursts it must find both logits; untrained it is at chance."""
    law = ICLTask(K=512, L=16, N=4, B=2, D=19, max_pairs=6)
    head = InductionHead(law.places, 19, 16, width=64, generator=generator())
    recipe = ICLRecipe(400, 64, "adam", 1e-3, evaluate_every=400, test_size=500)
    history = method.train_icl(law, head, recipe)
    assert history["ic"].iloc[0] < 0.15 and history["ic"].iloc[-1] > 0.95
    assert history["iwl"].iloc[-1] < 0.2
    assert (head.beta > 2).all()


@pytest.mark.slow
def test_the_full_network_forms_an_induction_head() -> None:
    law = ICLTask(K=512, L=16, N=4, B=2, D=19, max_pairs=6)
    net = InContextNet(law.dim, 16, width=64, spread=19**-0.5, generator=generator())
    recipe = ICLRecipe(1500, 64, "adam", 1e-3, evaluate_every=500, test_size=1000)
    history = method.train_icl(law, net, recipe)
    assert 0.35 < history["ic"].iloc[1] < 0.65
    assert history["ic"].iloc[-1] > 0.9 and history["ic2"].iloc[-1] > 0.9
    assert history["tla2"].iloc[-1] > 2 * history["tla2"].iloc[0]


def test_induction_scores_by_hand() -> None:
    """Two pairs and a target; attention written down."""
    first = torch.zeros(1, 5, 5)
    first[0, 0, 0] = 1
    first[0, 1, :2] = torch.tensor([0.6, 0.4])
    first[0, 2, :3] = torch.tensor([0.2, 0.3, 0.5])
    first[0, 3, :4] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    first[0, 4] = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1])
    matches = torch.tensor([[False, True]])
    found = method.induction_scores(first, first, matches)
    # Labels 1 and 3 look at items 0 and 2: (0.6 + 0.3) / 2. The target's pair is tokens 2 and 3.
    assert {k: round(float(v), 6) for k, v in found.items()} == {
        "ila1": 0.45,
        "tla2": 0.3,
        "tia2": 0.3,
    }
    other = method.induction_scores(first, first[:, -1], ~matches)
    assert float(other["tla2"]) == pytest.approx(0.2)
    assert set(method.induction_scores(first, first)) == {"ila1"}


class Sampler(nn.Module):
    """Another person's network: two of PyTorch's attention layers."""

    def __init__(self, dim: int, labels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.MultiheadAttention(dim, 2, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(dim, labels)

    def forward(self, tokens: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = tokens + layer(tokens, tokens, tokens)[0]
        return self.head(tokens[:, -1])


def test_any_module_is_read_through_hooks() -> None:
    law = small_task(D=13)
    net = Sampler(law.dim, 8)
    found = method.icl_report(
        net, law, method.record_attention(net, ["layers.0", "layers.1"]), count=40
    )
    sets = law.test_sets(40)
    tokens = sets["ic"].tokens
    first = net.layers[0](tokens, tokens, tokens)[1].detach()
    assert found["ila1"] == pytest.approx(
        float(first[:, [1, 3, 5, 7], [0, 2, 4, 6]].mean()), abs=1e-6
    )
    logits = net(sets["iwl"].tokens)
    share = float((logits.argmax(dim=1) == sets["iwl"].labels).float().mean())
    assert found["iwl"] == pytest.approx(share)
    assert "tla2" in found and not net.layers[0]._forward_hooks
    with pytest.raises(PeiraError, match="no attention map"):
        method.record_attention(net, ["head"])(tokens)


def test_context_label_mass_by_hand() -> None:
    law = small_task()

    def first_label(tokens: Tensor) -> Tensor:
        """All probability on the label of the first pair."""
        return -1e3 * torch.cdist(tokens[:, 1, law.places :], law.label_vectors)

    found = method.icl_report(first_label, law, count=500)
    assert found["cla"] == pytest.approx(1.0, abs=1e-5)
    # The first pair is of the target's class in half of the bursts, its label by luck in others.
    assert found["ic"] == pytest.approx(0.5 + 0.5 / 8, abs=0.07)
    uniform = method.icl_report(lambda tokens: torch.zeros(len(tokens), 8), law, count=500)
    present = law.test_sets(500)["ic"].context_labels
    distinct = np.mean([len(set(row)) for row in present.tolist()])
    assert uniform["cla"] == pytest.approx(distinct / 8, abs=1e-5)
    with pytest.raises(PeiraError, match=r"gives \(500, 3\).*expected"):
        method.icl_report(lambda tokens: torch.zeros(len(tokens), 3), law, count=500)


def test_the_oracles() -> None:
    law = small_task(D=48)
    nearest = method.icl_report(method.nearest_in_context(law), law, count=300)
    assert nearest["ic"] == nearest["ic2"] == 1.0 and nearest["iwl"] < 0.3
    weights = method.icl_report(method.bayes_in_weights(law), law, count=300)
    assert weights["iwl"] == 1.0 and weights["ic2"] == 0.0 and weights["ic"] < 0.3


def test_bayes_is_the_posterior_of_the_simulator() -> None:
    """Against densities of SciPy, with frequent and rare classes that overlap."""
    from scipy.stats import multivariate_normal

    law = small_task(K=16, D=3, eps=1.0, zipf=1.0)
    tokens = law.sample(20, generator()).tokens
    found = method.bayes_in_weights(law)(tokens).log_softmax(dim=1)
    for s in range(20):
        x = tokens[s, -1, law.places :].numpy()
        mass = np.zeros(8)
        for k in range(16):
            mean = law.class_means[k].numpy() / math.sqrt(2)
            density = multivariate_normal.pdf(x, mean, np.eye(3) * 0.5 / 3)
            mass[k % 8] += float(law.frequencies[k]) * density
        np.testing.assert_allclose(found[s].exp().numpy(), mass / mass.sum(), rtol=2e-3, atol=1e-5)


def loss_by_autograd(logits: Tensor, L: int, N: int) -> Tensor:
    """The formulas of the module, one by one."""
    beta, alpha, xi = logits
    w = beta.exp() / (beta.exp() + N)
    z = (alpha * w).exp() / ((alpha * w).exp() + 2 * N - 1)
    z0 = 1 / ((alpha * w).exp() + 2 * N - 1)
    right = (xi * z).exp()
    return -(right / (right + (N - 1) * (xi * z0).exp() + L - N)).log()


@pytest.mark.parametrize(("L", "N"), [(32, 8), (8, 8), (16, 2)])
def test_nested_logit_gradient_is_autograd_s(L: int, N: int) -> None:
    for point in ([0.0, 0.0, 0.0], [0.7, 1.3, 2.1], [3.0, 9.0, 8.0], [-1.0, 0.5, -0.3]):
        y = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        expected = loss_by_autograd(y, L, N)
        expected.backward()
        loss, gradient = method.nested_logit_loss(tuple(point), L, N)
        assert loss == pytest.approx(float(expected.detach()), rel=1e-12)
        np.testing.assert_allclose(gradient, y.grad.numpy(), rtol=1e-9, atol=1e-14)


def test_waiting_times_of_the_specification() -> None:
    """Times to 50%, simulated independently with a coarser integrator: 94, 115, 87, 304, 36."""
    published = {(32, 8): 94, (16, 8): 115, (64, 8): 87, (32, 16): 304, (32, 4): 36}
    for (L, N), time in published.items():
        assert method.icl_timing_model(L, N).waiting_time == pytest.approx(time, rel=0.03)


def test_the_flow_against_euler_and_its_abruptness() -> None:
    y, time = np.zeros(3), 0.0
    while method.nested_logit_loss(y, 32, 4)[0] > math.log(2):
        y = y - 0.01 * method.nested_logit_loss(y, 32, 4)[1]
        time += 0.01
    assert method.icl_timing_model(32, 4).waiting_time == pytest.approx(time, rel=0.002)
    half = method.icl_timing_model(32, 8).waiting_time
    third = method.icl_timing_model(32, 8, level=0.3).waiting_time
    assert 0 < half - third < 3 and third > 85


def test_without_absent_labels_nothing_starts() -> None:
    assert (method.nested_logit_loss((0, 0, 0), 8, 8)[1] == 0).all()
    assert method.icl_timing_model(8, 8, until=1e3).waiting_time == math.inf
    waits = [method.icl_timing_model(8, 8, start=s).waiting_time for s in (1e-2, 1e-3, 1e-4)]
    # Logarithmic in the start: each tenth adds as much.
    assert waits[1] - waits[0] == pytest.approx(waits[2] - waits[1], rel=0.02)
    assert waits[1] > 5 * method.icl_timing_model(16, 8).waiting_time


def test_a_fit_finds_the_time_scale() -> None:
    course = method.icl_timing_model(16, 4, start=0.1)
    steps = np.linspace(0, 3000, 61)
    accuracy = np.interp(steps / 40, course.time, course.probability)
    fit = method.fit_timing(steps, accuracy, 16, 4)
    assert fit.steps_per_unit == pytest.approx(40, rel=0.02)
    assert fit.start == pytest.approx(0.1, rel=1e-6) and fit.error < 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: timing.icl_timing_model(4, 8), "L >= N"),
        (lambda: timing.icl_timing_model(4, 1), "N is too small"),
        (lambda: timing.icl_timing_model(4, 2, level=0.2), "above 1/L"),
        (lambda: timing.fit_timing([1, 2, 2, 3], [0, 0, 0, 1], 8, 4), "must increase"),
    ],
)
def test_bad_timing_is_refused(call: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


def test_first_above_is_interpolated() -> None:
    steps, values = np.array([0.0, 10.0, 20.0]), np.array([0.2, 0.4, 0.8])
    assert study.first_above(steps, values, 0.7) == pytest.approx(17.5)
    assert study.first_above(steps, values, 0.1) == 0
    assert study.first_above(steps, values, 0.9) is None


def test_a_cell_s_measurement_by_hand() -> None:
    import peira

    cell, run = study.Cell(steps=300), peira.Run(0)
    names = ("train_loss", "test", "ic", "ic2", "iwl", "cla", "ila1", "tla2", "tia2")
    series = {"ic": [0.1, 0.5, 0.5, 0.9], "cla": [0.1, 0.5, 0.9, 0.9], "ila1": [0.3, 0.2, 0.2, 0.2]}
    rows = [
        {"step": 100.0 * i, **{n: series.get(n, [0.0, 0, 0, 1])[i] for n in names}}
        for i in range(4)
    ]
    found = study._measured(cell, run, rows)
    # IC is half-way from 2 copies of 4 to 1 at 0.75; context labels pass 0.8 at step 175.
    assert found["t_ic"] == pytest.approx(262.5) and found["ic_at_cla"] == pytest.approx(0.5)
    assert found["t_cla"] == pytest.approx(100) and found["mean_ic"] == pytest.approx(0.5)
    assert found["t_ila1"] == peira.Censored(300)


def test_waiting_statements_count_what_holds() -> None:
    waits = {(32, 4): 36, (32, 8): 94, (32, 16): 304, (16, 8): 115, (64, 8): 87, (8, 8): 1149}
    rows = [
        {"method": "timing", "L": L, "N": N, "waiting_time": time} for (L, N), time in waits.items()
    ]
    held = study.waits_as_published(pd.DataFrame(rows))
    assert list(held.values()) == [True, True, True, True, False]


def test_both_networks_are_paired_by_law_and_seed() -> None:
    laws = study.conditions(study.Cell(), few=32, some=128)
    cells = [law.changed({"method": m}) for law in laws for m in ("full", "two-parameter")]
    cells += [study.Cell(optimizer="sgd"), study.Cell(L=8)]
    rows = [
        {**cell.model_dump(), "seed": seed, "mean_ic": number + seed / 10}
        for number, cell in enumerate(cells)
        for seed in range(2)
    ]
    table = pd.DataFrame(rows)
    base = study.base_of(table)
    assert (base["K"], base["L"], base["B"], base["optimizer"]) == (512, 16, 2, "adam")
    both = study.compared(table, base)
    assert len(both) == 18
    assert (both["two_parameter"] - both["full"]).round(6).eq(1).all()


def write_table(path: Path, kinds: int = 8, each: int = 6, **cells: str) -> Path:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(kinds, 5))
    rows = [
        [f"{value:.4f}" for value in means[k] + 0.1 * rng.normal(size=5)] + [f"kind {k}"]
        for k in range(kinds)
        for _ in range(each)
    ]
    for place, value in cells.items():
        row, column = place.removeprefix("cell").split("_")
        rows[int(row)][int(column)] = value
    lines = ["a,b,c,d,e,label", *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_own_items_from_table_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = write_table(tmp_path / "items.csv")
    net, history = tmp_path / "net.safetensors", tmp_path / "history.csv"
    use.train(items, steps=30, out=net, history=history)
    assert "8 classes: 6 to train on, 2 novel" in capsys.readouterr().out
    rows = pd.read_csv(history)
    assert rows["step"].iloc[-1] == 30 and rows["train_loss"].iloc[-1] < rows["train_loss"].iloc[1]
    maps = tmp_path / "maps.npz"
    use.report(net, items, count=50, maps=maps)
    assert "swapped labels" in capsys.readouterr().out
    use.scores(maps)
    scored = capsys.readouterr().out
    values, ids, names = features.read_items(items)
    assert values.shape == (48, 5) and names[3] == "kind 3" and ids[20] == 3
    # The network that was written is the one that was trained.
    loaded, settings = use._read_net(net)
    law, _ = use._own_task(items, settings)
    found = method.icl_report(loaded, law, count=report.TEST_SIZE)
    assert found["cla"] == pytest.approx(rows["cla"].iloc[-1], abs=1e-6)
    assert f"{method.icl_report(loaded, law, count=64)['tla2']:.3f}" in scored


def test_a_data_set_becomes_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use.features("digits", tmp_path / "digits.npz", dim=15)
    values, ids, names = features.read_items(tmp_path / "digits.npz")
    assert values.shape == (1797, 15) and names == [str(n) for n in range(10)]
    assert "1,797 items of 10 classes" in capsys.readouterr().out
    assert int(ids.bincount()[0]) == 178
    with pytest.raises(DataError, match="unknown data set"):
        use.features("faces", tmp_path / "faces.npz")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"cell3_1": "x"}, "row 5, column 'b': wrong value; got 'x'"),
        ({"cell2_0": ""}, "row 4, column 'a': missing value"),
        ({"cell0_5": "odd"}, "class 'odd' has one item"),
    ],
)
def test_bad_tables_name_the_place(tmp_path: Path, cells: dict[str, str], message: str) -> None:
    items = write_table(tmp_path / "items.csv", **cells)
    with pytest.raises(DataError, match=message):
        use.train(items, steps=1)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    items = write_table(tmp_path / "items.csv")
    for labels, message in ((5, "8 classes are too few for 5 labels"),):
        with pytest.raises(DataError, match=message):
            use.train(items, labels=labels, steps=1)
    with pytest.raises(DataError, match="no column 'kind'"):
        use.train(items, label="kind", steps=1)
    with pytest.raises(DataError, match="no such file"):
        use.train(tmp_path / "none.csv", steps=1)
    wrong = {
        "only.npz": ({"features": np.ones((2, 3))}, "no array 'classes'"),
        "flat.npz": ({"features": np.ones(2), "classes": np.ones(2)}, "wrong shape"),
        "short.npz": ({"features": np.ones((2, 3)), "classes": np.ones(3)}, "do not belong"),
        "nan.npz": (
            {"features": np.full((2, 3), np.nan), "classes": np.ones(2)},
            "row 1, column 1",
        ),
    }
    for name, (arrays, message) in wrong.items():
        np.savez(tmp_path / name, **arrays)
        with pytest.raises(DataError, match=message):
            features.read_items(tmp_path / name)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        features.read_items(tmp_path / "text.npz")
    with pytest.raises(DataError, match=r"not a \.safetensors file"):
        use.report(tmp_path / "text.npz", items)


def test_attention_maps_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uniform = np.tril(np.ones((5, 5))) / np.arange(1, 6)[:, None]
    maps = np.stack([uniform] * 3)
    np.savez(tmp_path / "maps.npz", attn1=maps, attn2=maps, matches=np.eye(3, 2))
    use.scores(tmp_path / "maps.npz")
    # (1/2 + 1/4) / 2; two of three targets have a pair, each token of which gets 1/5.
    assert "0.375" in (printed := capsys.readouterr().out) and "0.133" in printed
    np.savez(tmp_path / "odd.npz", attn1=maps, attn2=maps * 2)
    with pytest.raises(DataError, match="rows that sum to 1"):
        use.scores(tmp_path / "odd.npz")


def test_waiting_times_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    use.timing(32, 8)
    assert "93." in capsys.readouterr().out
    use.timing(8, 8)
    assert "never" in capsys.readouterr().out


def drawing(dark: int) -> bytes:
    from PIL import Image

    pixels = np.full((105, 105), 255, dtype=np.uint8)
    pixels[:5, :dark] = 0
    stream = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(stream, format="PNG")
    return stream.getvalue()


def test_drawings_are_read_by_character(tmp_path: Path) -> None:
    for number, names in enumerate((["0001_01", "0001_02"], ["0001_02"])):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            archive.writestr("set/readme.txt", "none")
            for place, name in enumerate(names):
                archive.writestr(f"set/Greek/character01/{name}.png", drawing(5 * (place + 1)))
    ink, classes = features.read_drawings([tmp_path / "0.zip", tmp_path / "1.zip"])
    # The drawing that both files hold counts once.
    assert classes.tolist() == ["Greek/character01"] * 2
    assert ink.shape == (2, 441) and ink.sum() == pytest.approx(2)
    (tmp_path / "2.zip").write_text("none")
    with pytest.raises(DataError, match="not a readable zip"):
        features.read_drawings([tmp_path / "2.zip"])


def test_omniglot_s_official_files(real_data: Path) -> None:
    ink, classes = features.omniglot_features()
    names, counts = np.unique(classes, return_counts=True)
    assert (counts == 20).all() and len(ink) == 20 * len(names)
    assert all(name.count("/") == 1 for name in names)
    assert 0.01 < ink.mean() < 0.2


def test_stacking_keeps_the_given_networks_apart() -> None:
    law = small_task()
    first, second = nets_of("net", law, 2)
    both = model.stack([first, second])
    tokens = torch.stack([law.sample(5, generator(s)).tokens for s in range(2)])
    together = both(tokens)
    for net, logits, one in zip((first, second), together, tokens, strict=True):
        torch.testing.assert_close(net(one), logits)
    with torch.no_grad():
        both.classifier.biases[0].add_(1)
    assert (first.classifier.biases[0] == 0).all()
    model.unstack(both, [first, second])
    assert (second.classifier.biases[0] == 1).all()
