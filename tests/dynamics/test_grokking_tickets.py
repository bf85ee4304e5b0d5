"""Grokking tickets: the networks against per-token forwards, rewinding, controls, bad input."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

from peira.data import images
from peira.data.errors import DataError
from peira.data.modular import Split, modular_table, split_table
from peira.dynamics.grokking_tickets import figure, method, model, structure, study, use
from peira.engine.errors import PeiraError
from peira.nn import accuracy, pruning


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def addition(modulus: int = 7, fraction: float = 0.6, seed: int = 0) -> Split:
    return split_table(*modular_table("addition", modulus), fraction, generator(seed))


def small_mlp(modulus: int = 7, seed: int = 0) -> model.TokenMLP:
    return model.TokenMLP(modulus, width=16, embedding=32, generator=generator(seed))


def test_the_symmetric_table_has_the_published_sizes() -> None:
    split = split_table(*modular_table("addition", 67), 0.4, generator())
    assert len(split.train_inputs) == 911
    assert len(split.train_inputs) + len(split.test_inputs) == 2278
    pairs = torch.cat([split.train_inputs, split.test_inputs])
    assert len(torch.unique(pairs, dim=0)) == 2278
    assert (pairs[:, 0] <= pairs[:, 1]).all()
    labels = torch.cat([split.train_labels, split.test_labels])
    assert torch.equal(labels, pairs.sum(dim=1) % 67)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [("addition", 1), ("subtraction", 3), ("quadratic", 3), ("sum", 6)],
)
def test_operations_by_hand(operation: str, expected: int) -> None:
    """2 o 4 mod 5: 6, -2, 4 + 8 + 16 = 28 = 3."""
    pairs, labels = modular_table(operation, 5, symmetric=False)
    at = int((pairs == torch.tensor([2, 4])).all(dim=1).nonzero())
    assert int(labels[at]) == expected
    assert len(pairs) == 25


def test_random_labels_are_the_generator_s() -> None:
    first, second = (modular_table("random", 11, generator=generator(s))[1] for s in (0, 0))
    assert torch.equal(first, second)
    assert len(first.unique()) > 5


def test_a_split_that_leaves_a_part_empty_is_refused() -> None:
    with pytest.raises(DataError, match="leaves one part of 28 rows empty"):
        split_table(*modular_table("addition", 7), 0.01, generator())
    with pytest.raises(DataError, match="2 or more"):
        modular_table("addition", 1)


def per_token_mlp(net: model.TokenMLP, tokens: torch.Tensor) -> torch.Tensor:
    """The published forward: every token through every matrix."""
    one_hot = F.one_hot(tokens, net.embed.shape[1]).to(net.embed.dtype)
    hidden = (one_hot @ net.embed.T @ net.project_in.T).sum(dim=1).relu()
    for layer in net.hidden:
        hidden = (hidden @ layer.weight.T).relu()
    return hidden @ net.project_out.T @ net.unembed


@pytest.mark.parametrize("hidden_layers", [0, 2])
@pytest.mark.parametrize("k", [2, 3])
def test_the_tables_compute_the_mlp_of_the_paper(hidden_layers: int, k: int) -> None:
    net = model.TokenMLP(13, 5, 11, 29, hidden_layers, generator=generator()).double()
    tokens = torch.randint(13, (40, k), generator=generator(1))
    torch.testing.assert_close(net(tokens), per_token_mlp(net, tokens))
    ours = torch.autograd.grad(net(tokens).square().sum(), list(net.parameters()))
    theirs = torch.autograd.grad(per_token_mlp(net, tokens).square().sum(), list(net.parameters()))
    torch.testing.assert_close(ours, theirs)


def per_token_transformer(net: model.TokenTransformer, tokens: torch.Tensor) -> torch.Tensor:
    """All tokens, all positions, causal mask; then the last one's logits."""
    h = net.embed.T[tokens]
    q, k, v = (h @ w.T for w in (net.query, net.key, net.value))
    z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    h = h + z @ net.attention_out.T
    h = h + (h @ net.mlp_in.T).relu() @ net.mlp_out.T
    return (h @ net.unembed)[:, -1]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_tables_compute_the_transformer_of_the_paper(k: int) -> None:
    net = model.TokenTransformer(13, 6, 10, generator()).double()
    tokens = torch.randint(13, (40, k), generator=generator(1))
    torch.testing.assert_close(net(tokens), per_token_transformer(net, tokens))
    ours = torch.autograd.grad(net(tokens).square().sum(), list(net.parameters()))
    theirs = torch.autograd.grad(
        per_token_transformer(net, tokens).square().sum(), list(net.parameters())
    )
    torch.testing.assert_close(ours, theirs)


def test_initial_weights_have_the_published_spread() -> None:
    net = model.TokenMLP(67, width=48, generator=generator())
    fan_in = {"embed": 67, "project_in": 500, "project_out": 48, "unembed": 500}
    assert net.embed.shape == net.unembed.shape == (500, 67)
    for name, weight in net.named_parameters():
        assert weight.std().item() == pytest.approx(fan_in[name] ** -0.5, rel=0.02)
    image = model.ImageMLP((64, 200, 10), generator=generator())
    assert [w.std().item() * w.shape[1] ** 0.5 for w in image.parameters()] == pytest.approx(
        [8, 8], rel=0.05
    )
    assert all(w.ndim == 2 for w in image.parameters())


def test_a_single_frequency_has_participation_one_and_a_spike_that_of_white_noise() -> None:
    p = 67
    angles = 2 * math.pi * torch.arange(p).double() / p
    waves = torch.stack([torch.cos(5 * angles), 3 * torch.sin(21 * angles + 1) + 7], dim=1)
    assert structure.inverse_participation(
        structure.fourier_power(waves)
    ).tolist() == pytest.approx([1, 1])
    assert structure.periodicity(waves) == pytest.approx(1)
    mixed = (torch.cos(5 * angles) + torch.cos(6 * angles))[:, None]
    assert structure.periodicity(mixed) == pytest.approx(1 / 2)
    spike = torch.zeros(p, 1)
    spike[3] = 1
    assert structure.periodicity(spike) == pytest.approx(1 / 33)
    assert structure.periodicity(torch.ones(p, 2)) == 0.0


def test_power_of_an_even_length_counts_its_highest_frequency_once() -> None:
    features = torch.randn(12, 3, dtype=torch.float64)
    power = structure.fourier_power(features)
    whole = torch.fft.fft(features, dim=0).abs().square()[1:]
    folded = torch.stack([whole[f] + whole[10 - f] for f in range(5)] + [whole[5]])
    torch.testing.assert_close(power, folded / whole.sum(dim=0))


# A small network on pictures generalises, late but within a second.
RECIPE = method.Recipe(
    learning_rate=1e-2, steps=600, memorise_at=0.9, generalise_at=0.85, loss=method.squared_error
)


def digits() -> Split:
    return images.digit_images(generator())


def small_image_mlp(seed: int = 0) -> model.ImageMLP:
    return model.ImageMLP((64, 32, 32, 10), weight_scale=2.0, generator=generator(seed))


@pytest.fixture(scope="module")
def found() -> tuple[nn.Module, Split, method.Ticket]:
    net, data = small_image_mlp(), digits()
    return net, data, method.find_ticket(net, None, data, prune=0.5, recipe=RECIPE)


def test_a_ticket_is_rewound_to_exactly_the_initial_weights(
    found: tuple[nn.Module, Split, method.Ticket],
) -> None:
    net, _, ticket = found
    assert ticket.keep == pytest.approx(0.5, abs=1e-3)
    assert ticket.source.test_accuracy >= 0.85
    for name, weight in net.state_dict().items():
        assert torch.equal(ticket.initial_state[name], weight)
        assert not torch.equal(ticket.source.state[name], weight)
    worn = pruning.remove_masks(ticket.network(net)).state_dict()
    for name, mask in ticket.masks.items():
        assert torch.equal(worn[name], net.state_dict()[name] * mask)
    kept = [ticket.source.state[name][mask].abs().min() for name, mask in ticket.masks.items()]
    gone = [ticket.source.state[name][~mask].abs().max() for name, mask in ticket.masks.items()]
    assert min(kept) > max(gone)


def test_a_retrained_ticket_generalises_and_its_pruned_weights_are_zero(
    found: tuple[nn.Module, Split, method.Ticket],
) -> None:
    net, data, ticket = found
    trained, training = method.retrain(ticket, net, data, RECIPE)
    assert training.generalise_step is not None
    assert accuracy(trained, data.test_inputs, data.test_labels) >= 0.85
    for name, weight in trained.named_parameters():
        assert not weight[~ticket.masks[name]].any()


def test_training_is_full_batch_adamw_step_by_step() -> None:
    net, data = small_mlp(), addition()
    plain = copy.deepcopy(net)
    recipe = method.Recipe(learning_rate=3e-3, weight_decay=0.5, steps=12, evaluate_every=12)
    training = method.train(net, data, recipe)
    optimizer = torch.optim.AdamW(
        plain.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.5, foreach=False
    )
    for _ in range(12):
        optimizer.zero_grad()
        F.cross_entropy(per_token_mlp(plain, data.train_inputs), data.train_labels).backward()
        optimizer.step()
    for mine, other in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)
    step, _, train_accuracy, test_accuracy = training.curve[-1]
    assert step == 12
    assert train_accuracy == accuracy(plain, data.train_inputs, data.train_labels)
    assert test_accuracy == accuracy(plain, data.test_inputs, data.test_labels)


def test_the_penalty_is_added_to_the_loss() -> None:
    net, data = small_mlp(), addition()
    recipe = method.Recipe(steps=1, evaluate_every=1, penalty=0.1, penalty_power=1.5)
    expected = F.cross_entropy(net(data.train_inputs), data.train_labels) + 0.1 * sum(
        weight.detach().abs().pow(1.5).sum() for weight in net.parameters()
    )
    training = method.train(net, data, recipe)
    assert training.curve[0][1] == pytest.approx(expected.item(), rel=1e-6)


def test_squared_error_is_over_one_hot_labels() -> None:
    outputs = torch.tensor([[1.0, 0.0, 2.0]])
    assert float(method.squared_error(outputs, torch.tensor([0]))) == pytest.approx(4 / 3)


def test_training_stops_at_the_checkpoint_asked_for() -> None:
    net, data = small_image_mlp(), digits()
    whole = method.train(copy.deepcopy(net), data, RECIPE, until="late")
    names = ("memorised", "transition", "generalised", "late")
    assert set(whole.checkpoints) == {*names, "last"}
    steps = {name: whole.checkpoints[name].step for name in names}
    assert whole.checkpoints["memorised"].train_accuracy >= 0.9
    assert whole.checkpoints["transition"].test_accuracy >= 0.5
    assert whole.checkpoints["generalised"].test_accuracy >= 0.85
    assert 1.2 <= steps["late"] / steps["generalised"] < 1.2 + 25 / steps["generalised"]
    for name, step in steps.items():
        network = copy.deepcopy(net)
        short = method.train(network, data, RECIPE, until=name)
        assert short.curve[-1][0] == step
        stored = whole.checkpoints[name].state
        assert all(torch.equal(stored[n], w) for n, w in network.state_dict().items())


def test_accuracies_come_from_the_curve_s_first_crossing() -> None:
    training = method.train(small_image_mlp(1), digits(), RECIPE, until="late")
    tests = {step: test for step, _, _, test in training.curve}
    trains = {step: train for step, _, train, _ in training.curve}
    assert training.generalise_step == min(s for s, test in tests.items() if test >= 0.85)
    assert training.memorise_step == min(s for s, train in trains.items() if train >= 0.9)
    assert training.best_test_accuracy == max(tests.values())


def test_a_budget_without_generalisation_says_what_was_reached() -> None:
    recipe = method.Recipe(steps=50)
    with pytest.raises(PeiraError, match=r"no 'generalised' checkpoint after 50 steps .best test"):
        method.find_ticket(small_mlp(), None, addition(), recipe=recipe)


@pytest.mark.parametrize("prune", [0.0, 1.0, -0.2, 3])
def test_a_fraction_to_prune_outside_its_range_is_refused(prune: float) -> None:
    with pytest.raises(DataError, match="wrong fraction to prune"):
        method.find_ticket(small_mlp(), None, addition(), prune=prune)


def test_labels_outside_the_classes_are_refused() -> None:
    data = addition()
    labels = data.train_labels.clone()
    labels[3] = 9
    broken = data._replace(train_labels=labels)
    with pytest.raises(
        DataError,
        match="row 4: label outside the classes in the training part; got 9; expected 0 to 6",
    ):
        method.train(small_mlp(), broken, RECIPE)


def test_a_loss_that_is_not_finite_ends_training() -> None:
    recipe = method.Recipe(steps=20, loss=lambda outputs, labels: outputs.sum() * float("nan"))
    with pytest.raises(PeiraError, match="the loss is nan at step 5"):
        method.train(small_mlp(), addition(), recipe)


def test_masks_of_another_network_are_refused() -> None:
    masks = pruning.magnitude_mask(small_mlp(13).state_dict(), 0.5)
    with pytest.raises(ValueError, match=r"'embed' has shape \(32, 13\), the parameter \(32, 7\)"):
        method.condition("ticket", small_mlp(), addition(), RECIPE, 0.5, generator(), masks)


@pytest.mark.parametrize("name", method.METHODS)
def test_every_condition_starts_where_it_says(name: method.Method) -> None:
    net, data = small_mlp(), addition()
    masks = pruning.magnitude_mask({n: w + 0.2 for n, w in net.state_dict().items()}, 0.4)
    start = method.condition(name, net, data, RECIPE, 0.4, generator(), masks)
    worn = pruning.masks_of(start)
    weights = pruning.remove_masks(start).state_dict()
    original = net.state_dict()
    if name in ("dense", "grokfast", "l1-dense", "l2-dense"):
        assert not worn
    else:
        assert pruning.kept_fraction(worn) == pytest.approx(0.4, abs=1e-3)
    if name == "ticket":
        assert pruning.jaccard(worn, masks) == 1.0
    if name == "shuffled":
        assert pruning.jaccard(worn, masks) < 0.5
        assert [int(m.sum()) for m in worn.values()] == [int(m.sum()) for m in masks.values()]
    for n, weight in weights.items():
        if name in ("l1-dense", "l2-dense"):
            ratio = pruning.norm_ratio(original, masks, 1 if name == "l1-dense" else 2)
            torch.testing.assert_close(weight, original[n] * ratio)
        elif name == "redrawn":
            kept = weight[worn[n]]
            assert not torch.equal(kept, original[n][worn[n]])
            assert torch.isin(kept, original[n]).all()
        else:
            assert torch.equal(weight, original[n] * worn.get(n, 1))


def test_a_study_pairs_methods_by_seed_and_marks_what_never_came() -> None:
    table = method.ticket_study(
        lambda: model.ImageMLP((64, 32, 32, 10), weight_scale=2.0),
        digits(),
        methods=("dense", "random"),
        prune=0.98,
        recipe=RECIPE,
        seeds=2,
    )
    assert table[["method", "seed"]].to_numpy().tolist() == [
        ["dense", 0],
        ["random", 0],
        ["dense", 1],
        ["random", 1],
    ]
    random = table[table["method"] == "random"]
    assert random["generalise_step"].isna().all()
    assert random["speed_up"].isna().all()
    assert random["kept"].tolist() == pytest.approx([0.02, 0.02], rel=0.02)
    dense = table[table["method"] == "dense"]
    assert (dense["speed_up"] == 1).all()
    assert dense["generalise_step"].nunique() == 2


@pytest.mark.slow
def test_modular_addition_groks_and_its_ticket_sooner() -> None:
    """The paper's setting on the study's clock: memorised by 50, generalised after 1,000."""
    data = split_table(*modular_table("addition", 67), 0.4, generator())
    net = model.TokenMLP(67, generator=generator(1))
    recipe = method.Recipe(learning_rate=3e-3, steps=12_000)
    dense = method.train(copy.deepcopy(net), data, recipe)
    assert dense.memorise_step is not None and dense.memorise_step <= 50
    assert dense.generalise_step is not None and dense.generalise_step >= 1000
    short = replace(recipe, steps=dense.generalise_step)
    ticket = method.find_ticket(net, None, data, recipe=short)
    _, training = method.retrain(ticket, net, data, recipe)
    assert training.generalise_step is not None
    assert dense.generalise_step / training.generalise_step > 2


def test_modules_are_any_classifier() -> None:
    """A plain convolutional network with biases: only its weights are pruned."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(144), nn.Linear(144, 2)
    )
    inputs = torch.randn(40, 1, 8, 8)
    labels = (inputs.mean(dim=(1, 2, 3)) > 0).long()
    data = Split(inputs[:30], labels[:30], inputs[30:], labels[30:])
    recipe = method.Recipe(learning_rate=1e-2, steps=60, generalise_at=0.6)
    ticket = method.find_ticket(net, None, data, prune=0.5, when="late", recipe=recipe)
    assert set(ticket.masks) == {"0.weight", "4.weight"}
    trained, _ = method.retrain(ticket, net, data, recipe)
    assert trained.state_dict().keys() == net.state_dict().keys()


def table_file(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_table_becomes_tokens_and_classes(tmp_path: Path) -> None:
    rows = ["10,7,yes", "-3,10,no", "7,7,yes"]
    path = table_file(tmp_path / "t.csv", "a,b,answer", rows)
    tokens, labels, vocabulary, classes = use.read_tokens(path, "answer", ordered=False)
    assert tokens.tolist() == [[2, 1], [0, 2], [1, 1]]
    assert labels.tolist() == [1, 0, 1]
    assert (vocabulary, classes) == (3, 2)
    tokens, _, vocabulary, _ = use.read_tokens(path, "answer", ordered=True)
    assert tokens.tolist() == [[2, 3], [0, 4], [1, 3]]
    assert vocabulary == 5


def test_numeric_labels_are_numbered_in_their_order(tmp_path: Path) -> None:
    path = table_file(tmp_path / "t.csv", "a,label", ["1,10", "2,9", "3,-1"])
    assert use.read_tokens(path, "label", ordered=False)[1].tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("a,b,label", "1,2.5,0", "row 2, column 'b': wrong value; got '2.5'"),
        ("a,b,labels", "1,2,0", "no column 'label'; did you mean 'labels'"),
        ("label", "1", "no columns beside the label"),
        ("a,label", "1,1", "only one class"),
    ],
)
def test_broken_tables_are_refused(tmp_path: Path, header: str, row: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        use.read_tokens(table_file(tmp_path / "t.csv", header, [row]), "label", ordered=False)


def threshold_table(path: Path) -> Path:
    """Whether x + y is 12 or more: learned within a few hundred steps."""
    rows = [f"{x},{y},{int(x + y >= 12)}" for x in range(13) for y in range(13)]
    return table_file(path, "x,y,label", rows)


def test_commands_find_and_retrain_a_ticket(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = threshold_table(tmp_path / "t.csv"), tmp_path / "ticket.safetensors"
    use.ticket(table, out, prune=0.5, train_fraction=0.7, width=16, steps=400, seed=1)
    assert "kept of all" in capsys.readouterr().out
    found, settings = use._read_ticket(out)
    assert found.keep == pytest.approx(0.5, abs=1e-3)
    assert found.source.test_accuracy >= 0.95
    assert settings["seed"] == 1
    trained = tmp_path / "trained.safetensors"
    use.retrain(out, table, out=trained)
    assert "generalised at step" in capsys.readouterr().out
    with safe_open(trained, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, mask in found.masks.items():
        assert not weights[name][~mask].any()
    with pytest.raises(DataError, match="not a ticket"):
        use.retrain(trained, table)
    with pytest.raises(DataError, match=r"not a \.safetensors file"):
        use.retrain(table, table)
    other = table_file(tmp_path / "other.csv", "x,y,label", ["1,2,0", "2,3,1", "4,1,0", "1,1,1"])
    with pytest.raises(DataError, match="of another network: size mismatch for"):
        use.retrain(out, other)


def test_the_study_command_writes_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = threshold_table(tmp_path / "t.csv"), tmp_path / "out.csv"
    use.study(table, "dense,ticket,l2-dense", out, train_fraction=0.7, width=16, steps=300, seeds=2)
    assert "ticket" in capsys.readouterr().out
    written = pd.read_csv(out)
    assert written.groupby("method").size().to_dict() == {"dense": 2, "l2-dense": 2, "ticket": 2}
    with pytest.raises(DataError, match="unknown method"):
        use.study(table, "dense,tickets")
    with pytest.raises(DataError, match="unknown checkpoint"):
        use.study(table, when="never")


def test_all_conditions_of_a_seed_share_data_and_initial_weights() -> None:
    cells = [
        study.Cell(),
        study.Cell(method="ticket", keep=0.2),
        study.Cell(method="snip", weight_decay=0.0),
    ]
    (first, net), *others = [study.problem(cell, 5) for cell in cells]
    for data, network in others:
        assert all(torch.equal(a, b) for a, b in zip(first, data, strict=True))
        states = net.state_dict(), network.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(study.problem(cells[0], 6)[1].embed, net.embed)


def test_scales_cover_every_condition_and_dense_networks_come_first() -> None:
    for name in ("smoke", "small", "paper"):
        cells = study.Study.scales[name].conditions()
        sources = {study.source_of(cell) for cell in cells}
        assert set(cells[: len(sources)]) == sources
        assert {cell.method for cell in cells} >= {"ticket", "shuffled", *study.AT_INITIALISATION}
    published = study.Study.scales["paper"].conditions()
    assert {cell.learning_rate for cell in published} == {1e-3}
    assert {cell.steps for cell in published} == {30_000, 100_000}


def measured(steps: dict[str, list[float]], **fields: object) -> pd.DataFrame:
    """A table of the main comparison with given times; infinite is censored at 4,000."""
    rows = [
        {
            **study.Cell(method=name).model_dump(),
            "seed": seed,
            "generalise_step": min(time, 4000.0),
            "generalise_step_censored": time > 4000,
            **fields,
        }
        for name, times in steps.items()
        for seed, time in enumerate(times)
    ]
    return pd.DataFrame(rows)


def test_speed_ups_are_paired_by_seed_and_bounds_where_it_never_came() -> None:
    table = measured({"dense": [1000, 3000], "ticket": [500, 100], "random": [2000, math.inf]})
    ratios, never = figure.speed_up(table, {"method": "ticket"})
    assert ratios.tolist() == [2, 30]
    assert not never.any()
    ratios, never = figure.speed_up(table, {"method": "random"})
    assert ratios.tolist() == [0.5, 0.75]
    assert never.tolist() == [False, True]


def test_tickets_of_networks_that_did_not_get_there_are_not_judged() -> None:
    table = measured({"dense": [1000.0], "ticket": [500.0]})
    table["source_reached"] = [math.nan, 0.0]
    assert study.with_valid_tickets(table)["method"].tolist() == ["dense"]
    table["source_reached"] = [math.nan, 1.0]
    assert len(study.with_valid_tickets(table)) == 2


def test_the_best_size_is_chosen_on_the_other_seeds() -> None:
    """Seed 0 alone prefers 0.2, seeds 1 and 2 prefer 0.6: seed 0 gets 0.6, the others what
    the remaining two agree on."""
    times = {0.6: [500.0, 100.0, 100.0], 0.2: [10.0, 400.0, 500.0]}
    parts = [measured({"ticket": steps}).assign(keep=keep) for keep, steps in times.items()]
    table = pd.concat([measured({"dense": [1000.0] * 3}), *parts])
    sized = study.with_best_size(table)
    best = sized[sized["method"] == "best-size"].sort_values("seed")
    # Geometric means without seed 1: 224 at 0.6, 71 at 0.2; without seed 2: 224 and 63.
    assert best["keep"].tolist() == [0.6, 0.2, 0.2]
    assert best["generalise_step"].tolist() == [500, 400, 500]
    assert len(sized) == len(table) + 3


def test_wider_networks_stay_out_of_the_main_comparison() -> None:
    narrow, wide = study.Cell(), study.Cell(width=128)
    pictures = study.Cell(task="digits", width=200)
    table = pd.DataFrame([cell.model_dump() for cell in (narrow, wide, pictures)])
    assert study.of_published_width(table)["width"].tolist() == [48, 200]
