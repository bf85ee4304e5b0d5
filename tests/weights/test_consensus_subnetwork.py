"""Gates, their losses, what extraction leaves, the baselines, and a person's own pictures."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from peira.data import DataError
from peira.data.images import digit_pictures, digits
from peira.nn import accuracy, apply_masks, cifar_resnet, flops, slim
from peira.nn.evaluation import evaluating
from peira.weights.consensus_subnetwork import use
from peira.weights.consensus_subnetwork.baselines import (
    HardConcreteGate,
    clamp_norms,
    hard_concrete_kept,
    inner_norms,
    measured_blocks,
    polarization_penalty,
    prune_by_score,
    slimming_penalty,
)
from peira.weights.consensus_subnetwork.conditions import BASELINES, prune_with
from peira.weights.consensus_subnetwork.energy import EnergyMeter
from peira.weights.consensus_subnetwork.extraction import (
    addresses,
    consensus_masks,
    load_pruned,
    majority,
    open_share,
    remove,
    save_pruned,
)
from peira.weights.consensus_subnetwork.gates import Gate, GatedBlock, gate_blocks, ungated
from peira.weights.consensus_subnetwork.measures import size
from peira.weights.consensus_subnetwork.method import ConsensusPruner, compare, vote_variance
from peira.weights.consensus_subnetwork.study import Cell, problem
from peira.weights.consensus_subnetwork.training import Recipe, train

torch.set_num_threads(1)
MODES = ("layer", "channel")


class Bottleneck(nn.Module):
    """torchvision's bottleneck, attribute for attribute."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width + 2, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width + 2)
        self.conv3 = nn.Conv2d(width + 2, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        short = x if self.downsample is None else self.downsample(x)
        h = self.relu(self.bn1(self.conv1(x)))
        h = self.relu(self.bn2(self.conv2(h)))
        return self.relu(self.bn3(self.conv3(h)) + short)


def basic(shortcut: str = "conv") -> nn.Sequential:
    return cifar_resnet(blocks=(2, 2), widths=(4, 6), channels=1, shortcut=shortcut)


def bottlenecks() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        Bottleneck(8, 4, 8),
        Bottleneck(8, 4, 12, stride=2),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)),
    )


NETWORKS = {"conv": basic, "pad": lambda: basic("pad"), "bottleneck": bottlenecks}


def trained_like(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, norms and statistics as training might leave them."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, spread, centre in (
                (module.weight, 0.3, 1.0),
                (module.bias, 0.3, 0.1),
                (module.running_mean, 0.3, 0.0),
            ):
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.data.copy_(centre + spread * noise)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return network.eval()


def pictures(n: int = 16, size: int = 8) -> torch.Tensor:
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(1))


def settle(pruner: ConsensusPruner, closed: float = 0.5, seed: int = 0) -> None:
    """Make every input decide alike: gates by their output bias alone."""
    generator = torch.Generator().manual_seed(seed)
    for place, gate in enumerate(pruner.gates.values()):
        gate.output.weight.data.zero_()
        shut = torch.rand(gate.output.bias.shape, generator=generator) < closed
        # Where all is closed something is kept all the same, and that is another test.
        shut[0] &= place > 0 or closed == 1
        gate.output.bias.data = torch.where(shut, -2.0, 2.0)


def test_gate_is_binary_and_its_gradient_that_of_p() -> None:
    torch.manual_seed(0)
    gate = Gate(3, 5).double()
    gate.output.bias.data.normal_()
    x = torch.randn(7, 3, 4, 4).double()
    weights = torch.randn(7, 5).double()
    (gate(x) * weights).sum().backward()
    straight = {name: part.grad.clone() for name, part in gate.named_parameters()}
    gate.zero_grad()
    hidden = F.relu(gate.hidden(x.mean((2, 3))))
    p = torch.sigmoid(gate.output(hidden))
    (p * weights).sum().backward()
    for name, part in gate.named_parameters():
        assert torch.equal(straight[name], part.grad)
    assert torch.equal(gate(x), (p > 0.5).double())
    assert torch.allclose(gate.share, (p > 0.5).double().mean(0))


def test_gate_noise_opens_with_probability_p() -> None:
    torch.manual_seed(0)
    gate = Gate(2, 1, noise=True)
    gate.output.weight.data.zero_()
    gate.output.bias.data.fill_(0.7)
    x = torch.zeros(20_000, 2)
    share = gate(x).mean().item()
    # Five standard errors of 20,000 draws.
    assert share == pytest.approx(torch.sigmoid(torch.tensor(0.7)).item(), abs=0.017)
    assert bool((gate.eval()(x) == 1).all())


def test_vote_variance_and_its_push() -> None:
    share = torch.tensor([0.0, 0.5, 1.0, 0.2], requires_grad=True)
    loss = vote_variance([share[:2], share[2:]])
    assert loss.item() == pytest.approx((0.25 + 0.16) / 4)
    loss.backward()
    assert torch.allclose(share.grad, (1 - 2 * share.detach()) / 4)


def test_votes_count_inputs_and_gradients_agree_with_brute_force() -> None:
    pruner = ConsensusPruner(basic(), "channel").observe([pictures()])
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in pruner.blocks}
    pruner.model.eval()
    for x in pictures():
        pruner.model(x[None])
        for name, gate in pruner.gates.items():
            seen[name].append(gate.decisions[0])
    for name, votes in pruner.votes.items():
        assert torch.allclose(votes, torch.stack(seen[name]).mean(0))
    both = pruner.observe(pictures().split(5)).votes
    assert all(torch.allclose(both[name], torch.stack(seen[name]).mean(0)) for name in both)


@pytest.mark.parametrize("form", ["hinge", "linear"])
def test_penalty_closed_form(form: str) -> None:
    pruner = ConsensusPruner(basic(), "layer", 0.5, polarization=0.3, activation=2.0, form=form)
    pruner.model(pictures())
    shares = [0.25, 1.0, 0.75, 0.5]
    costs = []
    for gate, share, block in zip(
        pruner.gates.values(), shares, pruner.blocks.values(), strict=True
    ):
        gate.decisions = torch.tensor([[1.0]] * int(8 * share) + [[0.0]] * int(8 - 8 * share))
        costs.append(sum(block.flops))
    c = sum(f * s for f, s in zip(costs, shares, strict=True)) / sum(costs)
    act = 10 * max(0.0, c - 0.5) ** 2 if form == "hinge" else c
    pol = sum(s * (1 - s) for s in shares) / 4
    assert pruner.penalty().item() == pytest.approx(2.0 * act + 0.3 * pol, rel=1e-5)


def test_equal_weights_count_gates() -> None:
    pruner = ConsensusPruner(basic(), "layer", 0.5, cost_weighted=False)
    shares = {name: torch.tensor([s]) for name, s in zip(pruner.blocks, (1, 0, 0, 0), strict=True)}
    assert pruner.open_cost({k: v.float() for k, v in shares.items()}).item() == 0.25


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", MODES)
def test_open_cost_is_what_the_slim_network_computes(name: str, mode: str) -> None:
    network = trained_like(NETWORKS[name]())
    x = pictures(2)
    kept = prune_by_score(network, x, "random", 0.5, mode, torch.Generator().manual_seed(2))
    blocks = measured_blocks(network, x, mode)
    branches = sum(sum(block.flops) for block in blocks.values())
    whole = flops(network, x[:1])
    left = flops(remove(network, kept), x[:1])
    assert whole - left == round((1 - open_share(blocks, kept)) * branches)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", MODES)
def test_open_gates_change_nothing(name: str, mode: str) -> None:
    network = trained_like(NETWORKS[name]())
    x = pictures()
    expected = network(x)
    pruner = ConsensusPruner(network, mode)
    settle(pruner, closed=0.0)
    assert torch.allclose(pruner.model(x), expected, atol=1e-5)
    assert torch.allclose(pruner.plain()(x), expected, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("closed", [0.4, 0.8])
def test_extracted_masked_and_gated_are_one(name: str, mode: str, closed: float) -> None:
    network = trained_like(NETWORKS[name]())
    x = pictures()
    pruner = ConsensusPruner(network, mode, 0.5, activation=0.0, form="linear")
    settle(pruner, closed)
    gated = pruner.observe([x]).model.eval()(x)
    assert pruner.agreement == 1.0
    small = pruner.extract()
    assert not any(isinstance(part, Gate | GatedBlock) for part in small.modules())
    assert torch.allclose(small(x), gated, atol=1e-5)
    masked = apply_masks(copy.deepcopy(network), consensus_masks(network, pruner.kept))
    assert torch.allclose(masked(x), gated, atol=1e-5)
    removed = pruner.report().open_cost < 1
    assert (flops(small, x) < flops(network, x)) == removed
    assert flops(network, x) == flops(masked, x)
    again = slim(network, pruner.kept)
    again.load_state_dict(small.state_dict())


def test_recalibration_takes_statistics_of_the_extracted_network() -> None:
    pruner = ConsensusPruner(trained_like(basic()), "layer", 0.0)
    settle(pruner, closed=0.5, seed=1)
    x = pictures()
    plain = pruner.observe([x]).extract()
    small = pruner.extract(recalibrate=[(x,)])
    norm = small.get_submodule("stem")[1]
    assert torch.allclose(norm.running_mean, small.get_submodule("stem")[0](x).mean((0, 2, 3)))
    assert not torch.allclose(norm.running_mean, plain.get_submodule("stem")[1].running_mean)


def test_block_without_a_channel_becomes_its_shortcut() -> None:
    """conv2 and bn2 of no channel would still add a constant: the gate closes the whole branch."""
    network = trained_like(basic())
    x = pictures()
    pruner = ConsensusPruner(network, "channel")
    settle(pruner, closed=0.0)
    pruner.gates["stage2_0"].output.bias.data.fill_(-2.0)
    gated = pruner.observe([x]).model.eval()(x)
    assert pruner.kept["stage2_0"] is None
    expected = remove(network, {"stage2_0": None})(x)
    assert torch.allclose(gated, expected, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_something_always_stays(mode: str) -> None:
    network = trained_like(basic())
    pruner = ConsensusPruner(network, mode)
    settle(pruner, closed=1.0)
    pruner.observe([pictures()])
    for name, gate in pruner.gates.items():
        gate.votes.fill_(0.3 if name == "stage2_1" else 0.1)
    kept = pruner.kept
    assert {name for name, indices in kept.items() if indices is None} == {
        "stage1_0", "stage1_1", "stage2_0",
    }  # fmt: skip
    with pytest.warns(UserWarning, match="all gates are closed"), pytest.warns(match="unanimous"):
        pruner.extract()


def test_skipping_computes_the_same_in_evaluation() -> None:
    torch.manual_seed(0)
    for mode in MODES:
        network = trained_like(basic())
        pruner = ConsensusPruner(network, mode)
        for gate in pruner.gates.values():
            gate.output.weight.data.normal_(std=3.0)
            gate.output.bias.data.normal_()
        x = pictures()
        model = pruner.model.eval()
        expected = model(x)
        for block in pruner.blocks.values():
            block.skip = True
        assert torch.allclose(model(x), expected, atol=1e-5)
        opened = [float((gate.decisions > 0).double().mean()) for gate in pruner.gates.values()]
        computed = [block.computed for block in pruner.blocks.values()]
        if mode == "layer":
            assert computed == pytest.approx(opened)
            assert min(computed) < 1


def test_skipped_layer_trains_on_its_open_inputs_only() -> None:
    """Output, gradients and batch statistics are those of the open inputs alone."""
    network = trained_like(basic()).train()
    block = network.get_submodule("stage2_0")
    reference = copy.deepcopy(block)
    x = torch.rand(9, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    opened = torch.tensor([1, 0, 1, 1, 0, 0, 0, 1, 0]).bool()

    class Fixed(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return opened.float()[:, None]

    gated = GatedBlock(block, Fixed(), "layer", skip=True).train()
    reference.train()
    out = gated(x)
    out.square().sum().backward()
    branch = GatedBlock(reference, Fixed(), "layer")
    short = branch.shortcut(x)
    part = branch.residual(x[opened])
    expected = torch.relu(
        short + torch.zeros_like(short).index_add(0, opened.nonzero()[:, 0], part)
    )
    expected.square().sum().backward()
    assert torch.allclose(out, expected, atol=1e-5)
    assert torch.allclose(block.conv1.weight.grad, reference.conv1.weight.grad, atol=1e-5)
    assert torch.allclose(block.bn1.running_mean, reference.bn1.running_mean)
    assert gated.computed == pytest.approx(4 / 9)
    assert flops(gated, x) < flops(GatedBlock(reference, Fixed(), "layer"), x)


@pytest.mark.parametrize("name", ["conv", "bottleneck"])
def test_skipped_channels_train_as_if_multiplied_by_zero(name: str) -> None:
    """Batch norm is per channel, so open channels cannot tell whether closed ones were computed."""
    network = trained_like(NETWORKS[name]())
    plain, skipping = (ConsensusPruner(network, "channel", skip=skip) for skip in (False, True))
    outputs = []
    for pruner in (plain, skipping):
        settle(pruner, closed=0.5, seed=4)
        out = pruner.model.train()(pictures())
        out.square().sum().backward()
        outputs.append(out)
    assert torch.allclose(*outputs, atol=1e-5)
    states = [
        {n: p for n, p in pruner.model.state_dict().items() if "gate" not in n}
        for pruner in (plain, skipping)
    ]
    gradients = [dict(pruner.model.named_parameters()) for pruner in (plain, skipping)]
    closed_channels = 0
    for key, block in plain.blocks.items():
        gates = block.gate(torch.rand(1, block.block.conv1.in_channels, 4, 4))[0]
        if not all(part.any() for part in gates.split(block.widths)):
            continue
        for i, part in enumerate(gates.split(block.widths), start=1):
            closed_channels += int((part == 0).sum())
            weight = f"{key}.block.conv{i}.weight"
            got, wanted = (g[weight].grad[part > 0] for g in (gradients[1], gradients[0]))
            assert torch.allclose(got, wanted, atol=1e-5)
            assert not gradients[1][weight].grad[part == 0].any()
            mean = f"{key}.block.bn{i}.running_mean"
            assert torch.allclose(states[1][mean][part > 0], states[0][mean][part > 0])
    assert closed_channels > 0
    assert min(block.computed for block in skipping.blocks.values()) < 1


def test_single_open_input_does_not_break_batch_norm() -> None:
    block = cifar_resnet(blocks=(1,), widths=(4,), channels=1).get_submodule("stage1_0")

    class First(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.eye(len(x))[:, :1]

    gated = GatedBlock(block, First(), "layer", skip=True).train()
    out = gated(torch.rand(5, 4, 1, 1))
    assert torch.isfinite(out).all()
    assert gated.computed == 1.0


def test_copies_state_and_pickles_after_a_pass() -> None:
    pruner = ConsensusPruner(basic(), "channel")
    x = pictures()
    pruner.model(x)
    twin = copy.deepcopy(pruner.model)
    other = ConsensusPruner(basic(), "channel")
    other.model.load_state_dict(pruner.model.state_dict())
    loaded = pickle.loads(pickle.dumps(pruner.model))
    expected = pruner.model.eval()(x)
    for model in (twin, other.model, loaded):
        assert torch.equal(model.eval()(x), expected)
    assert torch.equal(other.gates["stage1_0"].votes, pruner.gates["stage1_0"].votes)
    # Moved apart, the copy does not follow.
    twin.get_submodule("stage1_0").gate.output.bias.data.fill_(-9)
    assert torch.equal(pruner.model(x), expected)


def test_penalty_of_one_local_part() -> None:
    pruner = ConsensusPruner(basic(), "channel", 0.8)
    pruner.model(pictures())
    part = nn.Sequential(pruner.model.get_submodule("stage1_1"))
    local = pruner.penalty(within=part)
    assert local.item() == pytest.approx(pruner.penalty().item())
    local.backward()
    assert pruner.gates["stage1_1"].output.weight.grad is not None
    # What comes before is reached through the gate's input, which a local trainer detaches.
    assert pruner.gates["stage2_0"].output.weight.grad is None
    assert pruner.gates["stage2_1"].output.weight.grad is None


def test_local_parts_can_go_backward_one_after_the_other() -> None:
    """Detached between units, with the penalty of each: as a local trainer does it."""
    pruner = ConsensusPruner(basic(), "layer", 0.6)
    x = pictures()
    for unit in pruner.model:
        out = unit(x)
        loss = out.square().mean()
        if isinstance(unit, GatedBlock):
            loss = loss + pruner.penalty(within=unit)
        loss.backward()
        x = out.detach()
    assert all(gate.hidden.weight.grad is not None for gate in pruner.gates.values())


@pytest.mark.parametrize("mode", MODES)
def test_one_pass_reaches_target_and_agreement_on_digits(mode: str) -> None:
    data = digit_pictures(torch.Generator().manual_seed(0), 300)
    torch.manual_seed(0)
    pruner = ConsensusPruner(cifar_resnet(blocks=(4,), widths=(8,), channels=1), mode, 0.5)
    start = pruner.observe(data.train_inputs.split(300)).votes
    assert torch.cat(list(start.values())).mean() > 0.9
    recipe = Recipe(epochs=12, batch=32, learning_rate=4e-3)
    generator = torch.Generator().manual_seed(0)
    train(pruner.model, data, recipe, generator, penalty=pruner.penalty)
    pruner.observe(data.train_inputs.split(300))
    report = pruner.report()
    # Blocks are coarse and do not open again for being too few; channels meet the target.
    assert report.open_cost == pytest.approx(0.5, abs=0.06) or (
        mode == "layer" and report.open_cost < 0.5
    )
    assert report.gate_flops < 0.01
    assert report.extracted.flops < 0.65 * report.dense.flops
    inputs, labels = data.test_inputs[:500], data.test_labels[:500]
    assert accuracy(remove(pruner.plain(), report.kept), inputs, labels) > 0.5
    votes = torch.cat(list(pruner.votes.values()))
    assert (votes * (1 - votes)).mean() < 0.06


def test_fit_with_a_loader() -> None:
    data = digit_pictures(torch.Generator().manual_seed(0), 128)
    loader = [
        (x, y)
        for x, y in zip(data.train_inputs.split(32), data.train_labels.split(32), strict=True)
    ]
    losses: list[float] = []
    torch.manual_seed(0)
    pruner = ConsensusPruner(basic(), "layer", 0.25)
    assert pruner.fit(loader, 3, watch=lambda epoch, loss: losses.append(loss)) is pruner
    assert len(losses) == 3 and losses[-1] < losses[0]
    report = pruner.report()
    assert set(report.votes) == {"stage1_0", "stage1_1", "stage2_0", "stage2_1"}


def test_what_cannot_be_gated_is_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to below 1; got 1"):
        ConsensusPruner(basic(), sparsity=1)
    with pytest.raises(ValueError, match="no residual block"):
        ConsensusPruner(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()))
    with pytest.raises(ValueError, match=r"no module 'stage9_0'.*stage1_0"):
        ConsensusPruner(basic(), units=["stage9_0"])
    with pytest.raises(ValueError, match="only mode 'layer'"):
        ConsensusPruner(basic(), "channel", units=["stem"])
    odd = basic()
    odd.get_submodule("stage1_1").relu = nn.Identity()
    odd.get_submodule("stage1_1").forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"'stage1_1'.*something other"):
        ConsensusPruner(odd)
    grouped = basic()
    grouped.get_submodule("stage1_0").conv2 = nn.Conv2d(4, 4, 3, padding=1, groups=2)
    ConsensusPruner(grouped, "layer")
    with pytest.raises(ValueError, match="grouped"):
        ConsensusPruner(grouped, "channel")
    with pytest.raises(ValueError, match="after a forward pass"):
        ConsensusPruner(basic()).penalty()
    with pytest.raises(ValueError, match="give a batch"):
        ConsensusPruner(basic()).report()


def test_a_unit_by_name_becomes_the_identity() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())
    )
    pruner = ConsensusPruner(network, "layer", 0.5, units=["1"])
    x = pictures()
    assert torch.allclose(pruner.model.eval()(x), network(x), atol=1e-6)
    pruner.gates["1"].output.bias.data.fill_(-9)
    pruner.gates["1"].output.weight.data.zero_()
    pruner.observe([x])
    assert torch.equal(pruner.model(x), network[0](x))
    assert torch.equal(remove(network, {"1": None})(x), network[0](x))
    widening = ConsensusPruner(nn.Sequential(nn.Conv2d(1, 3, 3)), "layer", units=["0"])
    with pytest.raises(ValueError, match="becomes the identity"):
        widening.model(x)


def test_warnings_say_what_to_do() -> None:
    pruner = ConsensusPruner(basic(), "layer", 0.9)
    with pytest.warns(UserWarning, match="batch of one"):
        pruner.model.train()(pictures(1))
        pruner.penalty()
    settle_open = pruner.observe([pictures()])
    for gate in settle_open.gates.values():
        gate.votes.fill_(1.0)
    with pytest.warns(UserWarning, match=r"100% of the operations are open, 10% were asked"):
        pruner.extract()
    pruner.gates["stage1_0"].votes.fill_(0.6)
    with pytest.warns(UserWarning, match="only 75% of the gates are unanimous"):
        pruner.extract()


@pytest.mark.parametrize("score", ["l1", "norm", "random", "uniform"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.77])
def test_pruning_by_score_is_never_cheaper_and_no_channel_too_many(
    score: str, share: float
) -> None:
    network = trained_like(basic())
    x = pictures(2)
    kept = prune_by_score(network, x, score, share, generator=torch.Generator().manual_seed(0))
    blocks = measured_blocks(network, x, "channel")
    achieved = open_share(blocks, kept)
    largest = max(
        sum(block.flops) / block.widths[0] for block in blocks.values()
    ) / sum(sum(block.flops) for block in blocks.values())  # fmt: skip
    assert share <= achieved < share + largest


def test_scores_rank_what_their_papers_rank() -> None:
    network = trained_like(basic())
    x = pictures(2)
    norms = dict(
        zip(("stage1_0", "stage1_1", "stage2_0", "stage2_1"), inner_norms(network), strict=True)
    )
    kept = prune_by_score(network, x, "norm", 0.5)
    left = [
        float(norms[name].weight.abs()[indices].min())
        for name, indices in kept.items()
        if indices is not None
    ]
    gone = []
    for name, norm in norms.items():
        indices = kept[name]
        mask = torch.ones(len(norm.weight), dtype=torch.bool)
        if indices is not None:
            mask[indices] = False
        gone += norm.weight.abs()[mask].tolist()
    assert min(left) >= max(gone)
    # L1: in every layer the same share goes, the smallest filters.
    kept = prune_by_score(network, x, "l1", 0.5)
    for name, indices in kept.items():
        sizes = network.get_submodule(name).conv1.weight.abs().sum((1, 2, 3))
        assert len(indices) == len(sizes) // 2
        assert set(indices.tolist()) == set(sizes.topk(len(indices)).indices.tolist())


def test_uniform_blocks_leave_each_stage_its_first() -> None:
    network = cifar_resnet(blocks=(3, 3), widths=(4, 4), channels=1)
    kept = prune_by_score(network, pictures(2), "uniform", 0.65, "layer")
    assert set(kept) == {"stage1_2", "stage2_2"}
    with pytest.raises(ValueError, match="scores channels"):
        prune_by_score(network, pictures(2), "l1", 0.5, "layer")
    with pytest.raises(ValueError, match="above 0 to 1"):
        prune_by_score(network, pictures(2), "l1", 0.0)


def test_penalties_on_norms_closed_form() -> None:
    network = basic()
    gammas = [norm.weight for norm in inner_norms(network)]
    for i, gamma in enumerate(gammas):
        gamma.data.fill_(float(i % 2))
    # Channels 4, 4, 6, 6: half of the scales are 1, their mean is 1/2.
    assert slimming_penalty(network).item() == 10
    assert polarization_penalty(network, t=1.2).item() == pytest.approx(1.2 * 10 - 20 * 0.5)
    for gamma in gammas:
        gamma.data.fill_(0.5)
    assert polarization_penalty(network, t=1.2).item() == pytest.approx(1.2 * 10)
    gammas[0].data.fill_(-3.0)
    gammas[1].data.fill_(7.0)
    clamp_norms(network)
    assert gammas[0].unique().tolist() == [0.0] and gammas[1].unique().tolist() == [1.0]


def test_hard_concrete_gate() -> None:
    torch.manual_seed(0)
    gate = HardConcreteGate(5)
    assert torch.allclose(gate.share, torch.tensor(0.95))
    wanted = torch.tensor([-4.0, -1.6, 0.0, 1.0, 6.0])
    gate.scaled.data = wanted / gate.speed
    draws = torch.cat([gate(torch.zeros(1)) for _ in range(2000)])
    assert torch.allclose((draws > 0).float().mean(0), gate.share, atol=0.06)
    stretched = torch.sigmoid(wanted) * 1.2 - 0.1
    assert torch.allclose(gate.eval()(torch.zeros(1))[0], stretched.clamp(0, 1))


@pytest.mark.parametrize("mode", MODES)
def test_hard_concrete_values_go_into_the_weights(mode: str) -> None:
    network = trained_like(basic())
    x = pictures()
    blocks = gate_blocks(network, mode, lambda _, gates: HardConcreteGate(gates))
    generator = torch.Generator().manual_seed(0)
    for block in blocks.values():
        logits = 3 * torch.randn(block.gate.scaled.shape, generator=generator)
        # Well away from 0, so that what is not kept is exactly closed.
        logits = torch.where(logits > 0, logits - 1, torch.tensor(-6.0))
        block.gate.scaled.data = logits / block.gate.speed
    expected = network.eval()(x)
    opened = {name: (block.gate.values > 0).double() for name, block in blocks.items()}
    share = open_share(blocks, majority(blocks, opened))
    kept = hard_concrete_kept(blocks, share)
    assert torch.allclose(remove(ungated(network), kept)(x), expected, atol=1e-5)


@pytest.mark.parametrize("method", BASELINES)
def test_baselines_keep_the_share_and_count_epochs(method: str) -> None:
    data = digit_pictures(torch.Generator().manual_seed(0), 96)
    torch.manual_seed(0)
    network = basic()
    before = copy.deepcopy(network)
    recipe = Recipe(epochs=3, batch=48)
    pruned = prune_with(
        method, network, data, recipe, 0.5, generator=torch.Generator().manual_seed(0)
    )
    assert pruned.epochs == 3
    tuned = ("l1-tuned", "slimming", "bn-polarization")
    full = {"random": 0, "thin": 0, **dict.fromkeys(tuned, 2)}
    assert pruned.full_epochs == full.get(method, 3)
    removed = size(before, pruned.network, data.train_inputs)["removed"]
    assert removed == 0 if method == "dense" else 0.2 < removed < 0.8
    blocks = measured_blocks(before, data.train_inputs, "channel")
    share = open_share(blocks, pruned.kept)
    assert share == 1 if method == "dense" else 0.5 <= share < 0.6


def test_compare_gives_the_baselines_what_the_consensus_kept() -> None:
    data = digit_pictures(torch.Generator().manual_seed(0), 96)
    rows = compare(
        lambda: basic(), data, ("thin", "consensus", "dense"), "channel", 0.3, Recipe(2, 48), 1
    ).set_index("method")
    assert list(rows.index) == ["consensus", "thin", "dense"]
    assert rows.flops["consensus"] <= rows.flops["thin"] <= rows.flops["dense"]
    with pytest.raises(ValueError, match="'slimming' scores channels"):
        compare(basic, data, ("slimming",), "layer", recipe=Recipe(1, 48), seeds=1)
    with pytest.raises(ValueError, match="no method 'best'"):
        compare(basic, data, ("best",))


def test_files_round_trip_and_refuse_what_is_wrong(tmp_path: Path) -> None:
    network = trained_like(basic())
    kept = prune_by_score(network, pictures(2), "norm", 0.4)
    small = remove(network, kept)
    path = tmp_path / "small.safetensors"
    beside = save_pruned(path, small, kept, {"note": "x"})
    x = pictures()
    again = load_pruned(path, basic()).eval()
    assert torch.equal(again(x), small(x))
    save_pruned(tmp_path / "whole.safetensors", network, {})
    assert path.stat().st_size < (tmp_path / "whole.safetensors").stat().st_size
    with pytest.raises(DataError, match="another network"):
        load_pruned(path, cifar_resnet(blocks=(1, 1), widths=(4, 6), channels=1))
    with pytest.raises(DataError, match="weights of another network"):
        load_pruned(path, cifar_resnet(blocks=(2, 2), widths=(4, 6), channels=3))
    beside.write_text(json.dumps({"kept": [1]}))
    with pytest.raises(DataError, match="not a list of what is kept"):
        load_pruned(path, basic())
    beside.unlink()
    with pytest.raises(DataError, match="No such file"):
        load_pruned(path, basic())


def test_masks_address_a_bottleneck() -> None:
    network = bottlenecks()
    blocks = measured_blocks(network, pictures(2), "channel")
    assert addresses("1", blocks["1"].block) == ["1.conv1", "1.conv2"]
    kept = {"1.conv1": torch.tensor([0, 2]), "1.conv2": torch.tensor([1]), "2": None}
    masks = consensus_masks(network, kept)
    assert int(masks["1.conv2.weight"].sum()) == 2 * 1 * 9
    assert int(masks["1.conv3.weight"].sum()) == 8
    assert not masks["2.bn3.bias"].any()
    assert "1.bn3.weight" not in masks
    with pytest.raises(ValueError, match="no residual block '7'"):
        consensus_masks(network, {"7": None})


def test_energy_counts_packages_once_and_survives_a_wrap(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).joules is None
    for name, start in (("intel-rapl:0", 5_000_000), ("intel-rapl:1", 900), ("intel-rapl:0:0", 1)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "energy_uj").write_text(str(start))
        (folder / "max_energy_range_uj").write_text("6000000")
    meter = EnergyMeter(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1000000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("1000900")
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("999999")
    assert meter.joules == pytest.approx(2.0 + 1.0)


def test_cifar_files_are_centred_by_their_training_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar10"
    folder.mkdir()
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        rows = rng.integers(0, 256, (4, 3073), dtype=np.uint8)
        rows[:, 0] %= 10
        rows.tofile(folder / name)
    monkeypatch.setenv("PEIRA_DATA", str(tmp_path))
    data, network = problem(Cell(data="cifar10", network="tiny"), 0)
    assert data.train_inputs.shape == (20, 3, 32, 32) and len(data.test_labels) == 4
    assert torch.allclose(data.train_inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(data.train_inputs.std((0, 2, 3)), torch.ones(3), atol=1e-5)
    assert network(data.test_inputs).shape == (4, 10)
    twin = problem(Cell(data="cifar10", network="tiny", method="thin"), 0)[1]
    assert torch.equal(network.stem[0].weight, twin.stem[0].weight)


def own_files(tmp_path: Path) -> Path:
    images, labels = digits()
    np.savez(tmp_path / "own.npz", x=(images[:240] / 16).astype(np.float32), y=labels[:240])
    return tmp_path / "own.npz"


def test_commands_on_own_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = own_files(tmp_path), tmp_path / "small.safetensors"
    (tmp_path / "mine.py").write_text(
        "from peira.nn import cifar_resnet\n"
        "def make():\n    return cifar_resnet(blocks=(2,), widths=(4,), channels=1)\n"
    )
    own = f"{tmp_path / 'mine.py'}:make"
    with pytest.warns(UserWarning):
        use.prune(data, out, network=own, epochs=2, sparsity=0.4)
    use.score(out, data)
    shown = capsys.readouterr().out
    assert "unanimous gates" in shown and "accuracy on 240" in shown
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["network"] == {"own": own} and set(about["kept"]) == {"stage1_0", "stage1_1"}
    table = tmp_path / "rows.csv"
    use.compare(data, methods="dense,thin", network=own, epochs=1, seeds=1, out=table)
    assert len(table.read_text().splitlines()) == 3


def test_commands_refuse_bad_input(tmp_path: Path) -> None:
    data, out = own_files(tmp_path), tmp_path / "small.safetensors"
    cases = [
        ({"sparsity": 1.5}, "got 1.5"),
        ({"mode": "both"}, "'both'"),
        ({"depth": 9}, "6n"),
        ({"batch": 1}, "batch.*2 or more"),
        ({"test_share": 1.0}, "share of test"),
        ({"network": "nowhere.py:make"}, "nowhere.py"),
        ({"learning_rate": 0.0}, "learning rate"),
    ]
    for settings, message in cases:
        with pytest.raises(DataError, match=message):
            use.prune(data, out, **{"depth": 8, **settings})
    np.savez(tmp_path / "bare.npz", x=np.zeros((20, 8, 8), np.uint8))
    with pytest.raises(DataError, match="without labels"):
        use.prune(tmp_path / "bare.npz", out)
    with pytest.raises(DataError, match=r"small\.json"):
        use.score(out, data)
    assert not out.exists()


def test_evaluation_mode_leaves_the_votes_alone() -> None:
    pruner = ConsensusPruner(basic(), "channel")
    before = pruner.votes
    for gate in pruner.gates.values():
        gate.output.bias.data.fill_(-3)
    with evaluating(pruner.model):
        pruner.model(pictures())
    assert all(torch.equal(before[name], votes) for name, votes in pruner.votes.items())
    pruner.model.train()(pictures())
    for votes in pruner.votes.values():
        assert torch.allclose(votes, torch.tensor(0.9))


def test_rate_and_batches_of_a_recipe() -> None:
    recipe = Recipe(epochs=2, batch=10, learning_rate=1.0, hold=0.5)
    assert [recipe.rate(p) for p in (0, 0.5, 0.75, 1)] == pytest.approx([1, 1, 0.5, 0])
    # A last batch of one input would have no vote; 21 inputs make two batches, 22 three.
    assert [recipe.per_epoch(n) for n in (10, 20, 21, 22)] == [1, 2, 2, 3]
