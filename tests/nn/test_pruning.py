"""Masks and scores against closed forms, torch's own pruning, and exact counts."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from peira.nn import pruning
from peira.nn.grokfast import GrokfastEMA


def deep_linear(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False)).double()


def squared(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return 0.5 * (outputs - labels).square().sum()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("keep", [1.0, 0.83, 0.6, 0.4, 0.1, 0.001])
def test_global_masks_keep_exactly_the_largest(keep: float) -> None:
    state = {"a": torch.randn(40, 50, generator=generator()), "b": torch.randn(7, 300) * 0.01}
    masks = pruning.magnitude_mask(state, keep) if keep > 0.5 else _quiet(state, keep)
    size = 40 * 50 + 7 * 300
    assert sum(int(mask.sum()) for mask in masks.values()) == size - int((1 - keep) * size)
    kept = torch.cat([state[name][masks[name]].abs() for name in state])
    gone = torch.cat([state[name][~masks[name]].abs() for name in state])
    assert keep == 1.0 or kept.min() > gone.max()


def _quiet(state: dict[str, torch.Tensor], keep: float) -> pruning.Masks:
    with pytest.warns(UserWarning, match="nothing is kept of 'b'"):
        return pruning.magnitude_mask({**state, "b": state["b"] * 1e-9}, keep)


def test_equal_scores_are_pruned_in_order_to_the_exact_count() -> None:
    scores = {"w": torch.tensor([[1.0, 0.0, 1.0, 1.0], [2.0, 1.0, 1.0, 3.0]])}
    masks = pruning.keep_top(scores, keep=0.5)
    assert masks["w"].int().tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    assert pruning.kept_fraction(pruning.keep_top({"w": torch.zeros(3, 7)}, 1 / 3)) == 1 / 3


def test_local_masks_keep_the_same_share_of_each_tensor_and_global_ones_do_not() -> None:
    state = {"large": torch.full((10, 10), 5.0), "small": torch.full((20, 10), 0.1)}
    local = pruning.magnitude_mask(state, 0.4, scope="local")
    assert [int(mask.sum()) for mask in local.values()] == [40, 80]
    ranked = pruning.magnitude_mask(state, 0.4)
    assert [int(mask.sum()) for mask in ranked.values()] == [100, 20]


def test_vectors_are_not_pruned() -> None:
    assert set(pruning.magnitude_mask(nn.Linear(3, 2).state_dict(), 0.5)) == {"weight"}


def test_keep_is_the_kept_and_not_the_pruned_fraction() -> None:
    masks = pruning.magnitude_mask({"w": torch.arange(10.0).view(2, 5)}, keep=0.3)
    assert masks["w"].flatten().tolist() == [False] * 7 + [True] * 3


def test_masks_agree_with_torch_global_unstructured() -> None:
    # 32 weights, half of them kept: torch rounds the count where we round down.
    ours, theirs = deep_linear(3), deep_linear(3)
    pruning.apply_masks(ours, pruning.magnitude_mask(ours.state_dict(), keep=0.5))
    prune.global_unstructured(
        [(layer, "weight") for layer in theirs], prune.L1Unstructured, amount=0.5
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.weight, other.weight)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.5, float("nan")])
def test_a_fraction_outside_its_range_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match="fraction kept"):
        pruning.magnitude_mask({"w": torch.ones(2, 2)}, keep)


def test_no_scores_and_broken_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="no parameter"):
        pruning.magnitude_mask({"bias": torch.ones(3)}, 0.5)
    with pytest.raises(ValueError, match="'w' are not finite"):
        pruning.magnitude_mask({"w": torch.full((2, 2), float("nan"))}, 0.5)


def test_masked_weights_act_as_zero_and_get_zero_gradient() -> None:
    network, batch = deep_linear(), torch.randn(6, 5, dtype=torch.float64)
    plain = copy.deepcopy(network)
    masks = pruning.magnitude_mask(network.state_dict(), 0.5)
    pruning.apply_masks(network, masks)
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            weight *= masks[name]
    assert torch.equal(network(batch), plain(batch))
    network(batch).square().sum().backward()
    plain(batch).square().sum().backward()
    for index, (mine, other) in enumerate(zip(network, plain, strict=True)):
        gradient = mine.parametrizations["weight"].original.grad
        mask = masks[f"{index}.weight"]
        assert not gradient[~mask].any()
        assert torch.equal(gradient, other.weight.grad * mask)


def test_masked_weights_stay_pruned_under_adamw_and_masks_come_off() -> None:
    network, batch = deep_linear(), torch.randn(6, 5, dtype=torch.float64)
    before = copy.deepcopy(network.state_dict())
    masks = pruning.magnitude_mask(before, 0.5)
    pruning.apply_masks(network, masks)
    assert all(torch.equal(pruning.masks_of(network)[name], masks[name]) for name in masks)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=1.0)
    for _ in range(5):
        optimizer.zero_grad()
        network(batch).square().sum().backward()
        optimizer.step()
    after = pruning.remove_masks(network).state_dict()
    assert after.keys() == before.keys()
    for name, mask in masks.items():
        assert not after[name][~mask].any()
        assert (after[name][mask] != before[name][mask]).all()


def test_masks_that_do_not_fit_are_refused() -> None:
    network = deep_linear()
    fitting = {"0.weight": torch.ones(4, 5, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"'0.weight' has shape \(5, 4\), the parameter \(4, 5\)"):
        pruning.apply_masks(network, {"0.weight": torch.ones(5, 4)})
    with pytest.raises(ValueError, match=r"no parameter '7\.weight'"):
        pruning.apply_masks(network, {"7.weight": torch.ones(5, 4)})
    with pytest.raises(ValueError, match=r"no parameter '0\.wait'"):
        pruning.apply_masks(network, {"0.wait": torch.ones(5, 4)})
    pruning.apply_masks(network, fitting)
    with pytest.raises(ValueError, match="has a mask already"):
        pruning.apply_masks(network, fitting)


def test_snip_on_a_linear_network_is_gradient_times_weight() -> None:
    """L = 1/2 |W x - y|^2: dL/dm = (W x - y) x^T * W."""
    layer = nn.Linear(5, 3, bias=False).double()
    x, y = torch.randn(1, 5, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    w = layer.weight.detach()
    expected = ((w @ x[0] - y[0])[:, None] * x * w).abs()
    scores = pruning.snip_scores(layer, x, y, squared)
    torch.testing.assert_close(scores["weight"], expected)


def test_grasp_on_a_linear_network_is_the_hessian_gradient_product() -> None:
    """L = 1/2 |W x / T - y|^2 has g = r x^T / T and H g = (x.x / T^2) g, r = W x / T - y."""
    layer = nn.Linear(5, 3, bias=False).double()
    x, y = torch.randn(1, 5, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    w, t = layer.weight.detach(), 7.0
    g = (w @ x[0] / t - y[0])[:, None] * x / t
    expected = w * g * (x @ x.T) / t**2
    scores = pruning.grasp_scores(layer, x, y, squared, temperature=t)
    torch.testing.assert_close(scores["weight"], expected)


def test_grasp_on_a_deep_network_is_the_derivative_of_gradient_flow() -> None:
    """w * (H g) is half the derivative of |g|^2 with respect to a gate on w: finite differences."""
    network, step = deep_linear(1), 1e-6
    x, y = torch.randn(4, 5).double(), torch.randn(4, 3).double()
    scores = pruning.grasp_scores(network, x, y, squared, temperature=1.0)

    def flow(gate: float) -> float:
        gated = copy.deepcopy(network)
        with torch.no_grad():
            gated[0].weight[2, 3] *= gate
        squared(gated(x), y).backward()
        return sum(float(w.grad.square().sum()) for w in gated.parameters())

    slope = (flow(1 + step) - flow(1 - step)) / (2 * step)
    assert scores["0.weight"][2, 3].item() == pytest.approx(slope / 2, rel=1e-6)


def test_synflow_on_a_linear_network_is_the_flow_through_each_weight() -> None:
    """R = 1^T |W2| |W1| 1: the score of a weight is the sum of all paths through it."""
    network = deep_linear()
    first, second = (layer.weight.detach().abs() for layer in network)
    scores = pruning.synflow_scores(network, torch.ones(1, 5, dtype=torch.float64))
    torch.testing.assert_close(scores["0.weight"], second.sum(0)[:, None] * first)
    torch.testing.assert_close(scores["1.weight"], second * first.sum(1))
    # Conservation (Tanaka et al., theorem 1): every layer carries the whole flow.
    totals = [float(score.sum()) for score in scores.values()]
    assert totals[0] == pytest.approx(totals[1])


def test_scores_leave_the_network_as_it_was() -> None:
    network = deep_linear()
    before = copy.deepcopy(network.state_dict())
    x, y = torch.randn(4, 5).double(), torch.randn(4, 3).double()
    pruning.snip_scores(network, x, y, squared)
    pruning.grasp_scores(network, x, y, squared)
    pruning.synflow_scores(network, x)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize("schedule", ["linear", "exponential"])
def test_rounds_never_bring_a_weight_back_and_end_at_the_asked_fraction(schedule: str) -> None:
    network, seen = deep_linear(), []

    def score(masks: pruning.Masks) -> pruning.Scores:
        seen.append(masks)
        return pruning.synflow_scores(network, torch.ones(1, 5).double(), masks)

    masks = pruning.prune_in_rounds(
        score, pruning.prunable(network), keep=0.25, rounds=4, schedule=schedule
    )
    shares = [pruning.kept_fraction(m) for m in [*seen, masks]]
    steps = [r / 4 for r in range(5)]
    wanted = [0.25**s if schedule == "exponential" else 1 - 0.75 * s for s in steps]
    assert shares == pytest.approx(wanted, abs=1 / 32)
    assert shares[-1] == 0.25
    for earlier, later in zip(seen, [*seen[1:], masks], strict=True):
        assert all((later[name] <= earlier[name]).all() for name in masks)


def test_one_round_is_one_shot() -> None:
    state = deep_linear().state_dict()
    scores = partial(lambda masks: pruning.magnitude_scores(state))
    once = pruning.prune_in_rounds(scores, state, keep=0.4)
    assert pruning.jaccard(once, pruning.magnitude_mask(state, 0.4)) == 1.0


def test_shuffling_keeps_the_density_of_every_layer() -> None:
    state = {"a": torch.randn(60, 50, generator=generator()), "b": 0.3 * torch.randn(20, 10)}
    masks = pruning.magnitude_mask(state, 0.3)
    shuffled = pruning.shuffle_masks(masks, generator(1))
    assert [int(m.sum()) for m in shuffled.values()] == [int(m.sum()) for m in masks.values()]
    # Independent masks of density q overlap by q / (2 - q).
    q = float(masks["a"].float().mean())
    overlap = pruning.jaccard({"a": masks["a"]}, {"a": shuffled["a"]})
    assert overlap == pytest.approx(q / (2 - q), abs=0.03)
    again = pruning.shuffle_masks(masks, generator(1))
    assert all(torch.equal(shuffled[name], again[name]) for name in masks)


@pytest.mark.parametrize("order", [1, 2])
def test_the_dense_control_has_exactly_the_norm_of_the_masked_weights(order: int) -> None:
    state = deep_linear(5).state_dict()
    masks = pruning.magnitude_mask(state, 0.4)
    matched = pruning.match_norm(state, masks, order)

    def norm(weights: dict[str, torch.Tensor]) -> float:
        flat = torch.cat([weights[name].flatten() for name in masks])
        return float(torch.linalg.vector_norm(flat, order))

    masked = {name: state[name] * masks[name] for name in masks}
    assert norm(matched) == pytest.approx(norm(masked), rel=1e-12)
    ratios = torch.cat([(matched[name] / state[name]).flatten() for name in masks])
    assert ratios.std() < 1e-12


def test_norm_ratio_by_hand() -> None:
    state, masks = {"w": torch.tensor([[3.0, 4.0]])}, {"w": torch.tensor([[True, False]])}
    assert pruning.norm_ratio(state, masks, 1) == pytest.approx(3 / 7)
    assert pruning.norm_ratio(state, masks, 2) == pytest.approx(3 / 5)


def test_jaccard_by_hand() -> None:
    one = {"w": torch.tensor([[True, True, False, False]])}
    two = {"w": torch.tensor([[True, False, True, False]])}
    assert pruning.jaccard(one, two) == pytest.approx(1 / 3)
    assert pruning.jaccard(one, one) == 1.0
    with pytest.raises(ValueError, match="different parameters"):
        pruning.jaccard(one, {"v": two["w"]})


def test_grokfast_adds_the_moving_average_of_the_gradients() -> None:
    weight = nn.Parameter(torch.zeros(3))
    grokfast = GrokfastEMA([weight], decay=0.9, strength=2.0)
    average = None
    for gradient in (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-1.0, 0.5, 4.0])):
        weight.grad = gradient.clone()
        grokfast()
        average = gradient if average is None else 0.9 * average + 0.1 * gradient
        torch.testing.assert_close(weight.grad, gradient + 2.0 * average)


def test_taking_masks_off_a_copy_leaves_the_original_alone():
    network = nn.Sequential(nn.Linear(4, 3))
    pruning.apply_masks(network, {"0.weight": torch.eye(3, 4).bool()})
    twin = pruning.remove_masks(copy.deepcopy(network))
    assert type(twin[0]) is nn.Linear
    assert torch.equal(twin[0].weight, network[0].weight)
    assert "0.weight" in pruning.masks_of(network)
    pruning.remove_masks(network)
    assert set(network.state_dict()) == {"0.weight", "0.bias"}
