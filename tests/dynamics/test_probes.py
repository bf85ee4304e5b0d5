"""Probes against closed forms, brute force and independent libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from peira.data.errors import DataError
from peira.dynamics.probes import (
    LazinessTracker,
    LinearisedModel,
    NTKLinear,
    ScaledOutput,
    activity,
    effective_rank,
    empirical_ntk,
    jacobian,
    kernel_alignment,
    kernel_change,
    kernel_task_alignment,
    laziness,
    learning_rate_scale,
    mlp,
    ntk_operator,
    relative_weight_change,
    representation_alignment,
    sign_similarity,
    weight_change,
)


class Recurrent(nn.Module):
    """h <- relu(W h + U x), read out at every step; W is used several times."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.within, self.out = (
            nn.Linear(3, 6),
            nn.Linear(6, 6, bias=False),
            nn.Linear(6, 2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, outs = x.new_zeros(len(x), 6), []
        for t in range(x.shape[1]):
            h = torch.relu(self.within(h) + self.inward(x[:, t]))
            outs.append(self.out(h))
        return torch.stack(outs, 1)


class Tied(nn.Module):
    """Uses one weight in a call and outside of it, which no hook sees."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(torch.tanh(self.a(x)), self.a.weight)


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 4, 3, padding=2, padding_mode="circular", dilation=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def perceptron() -> nn.Module:
    return mlp((4, 7, 5, 3), nn.Tanh, parametrisation="ntk", weight_std=1.3, bias_std=0.1)


MODELS = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "mlp": (perceptron, (4,)),
    "in-place": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2)),
        (4,),
    ),
    "recurrent": (Recurrent, (5, 3)),
    "convolution": (conv, (1, 8, 8)),
}


def brute_force(model: nn.Module, x: torch.Tensor, x2: torch.Tensor, names=None) -> torch.Tensor:
    """(n, m, k, k) from one autograd.grad per output and input."""

    def rows(batch: torch.Tensor) -> torch.Tensor:
        params = [p for n, p in model.named_parameters() if names is None or n in names]
        result = []
        for one in batch:
            outputs = model(one[None]).flatten()
            result.append(
                torch.stack(
                    [
                        torch.cat(
                            [
                                g.flatten()
                                for g in torch.autograd.grad(out, params, retain_graph=True)
                            ]
                        )
                        for out in outputs
                    ]
                )
            )
        return torch.stack(result)

    return torch.einsum("nkp,mlp->nmkl", rows(x), rows(x2))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["layers", "jacobian", "products"])
def test_tangent_kernel_is_that_of_autograd(name, method):
    make, shape = MODELS[name]
    model = make().double()
    x, x2 = torch.randn(4, *shape).double(), torch.randn(3, *shape).double()
    expected = brute_force(model, x, x2)
    full = empirical_ntk(model, x, x2, method=method)
    torch.testing.assert_close(full, expected)
    trace = empirical_ntk(model, x, x2, method=method, mode="trace")
    torch.testing.assert_close(trace, expected.diagonal(dim1=2, dim2=3).sum(2))
    diagonal = empirical_ntk(model, x, x2, method=method, mode="diag")
    torch.testing.assert_close(diagonal, expected.diagonal(dim1=2, dim2=3))
    itself = empirical_ntk(model, x, method=method, chunk=3)
    torch.testing.assert_close(itself, brute_force(model, x, x))


@pytest.mark.parametrize("long", [2, 40])
def test_recurrent_kernel_of_one_weight_at_few_and_many_steps(long):
    model = Recurrent().double()
    x = torch.randn(3, long, 3).double()
    expected = brute_force(model, x, x, names=["within.weight"])
    found = empirical_ntk(model, x, params=["within"], method="layers")
    torch.testing.assert_close(found, expected)
    for mode in ("trace", "diag"):
        a, b = (
            empirical_ntk(model, x, params=["within"], mode=mode, method=m)
            for m in ("layers", "jacobian")
        )
        torch.testing.assert_close(a, b)


def test_auto_notices_a_weight_used_outside_its_module():
    model, x = Tied().double(), torch.randn(3, 4).double()
    torch.testing.assert_close(empirical_ntk(model, x), brute_force(model, x, x))
    with pytest.raises(DataError, match="used outside"):
        empirical_ntk(model, x, method="layers")


def test_auto_takes_jacobians_for_layers_it_does_not_know():
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2)).double()
    x = torch.randn(3, 4).double()
    torch.testing.assert_close(empirical_ntk(model, x), brute_force(model, x, x))


def test_frozen_parameters_count_only_when_named():
    model, x = perceptron(), torch.randn(3, 4)
    model[0].weight.requires_grad_(False)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    without = empirical_ntk(model, x)
    torch.testing.assert_close(without, empirical_ntk(model, x, params=names))
    first = empirical_ntk(model, x, params=["0.weight"])
    assert not model[0].weight.requires_grad
    model[0].weight.requires_grad_(True)
    torch.testing.assert_close(empirical_ntk(model, x), without + first)


def test_products_of_the_operator_are_those_of_the_matrix():
    model, x = perceptron().double(), torch.randn(5, 4).double()
    full = empirical_ntk(model, x).permute(0, 2, 1, 3).reshape(15, 15).numpy()
    operator = ntk_operator(model, x)
    vector = np.random.default_rng(0).normal(size=15)
    np.testing.assert_allclose(operator @ vector, full @ vector, rtol=1e-10)
    j = jacobian(model, x).reshape(15, -1).numpy()
    np.testing.assert_allclose(j @ j.T, full, rtol=1e-10)


def test_batch_norm_in_training_is_refused():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    with pytest.raises(DataError, match=r"expected model.eval\(\)"):
        empirical_ntk(model, torch.randn(3, 4))
    assert empirical_ntk(model.eval(), torch.randn(3, 4)).shape == (3, 3, 2, 2)


def test_unknown_parameters_are_named():
    with pytest.raises(DataError, match="'rnn'"):
        empirical_ntk(perceptron(), torch.randn(3, 4), params=["rnn"])


def test_linearised_network_follows_its_own_kernel():
    """Under gradient flow on squared error the twin's outputs obey f' = -K (f - y) exactly."""
    model, x = perceptron().double(), torch.randn(4, 4).double()
    twin, y = LinearisedModel(model), torch.randn(4, 3).double()
    torch.testing.assert_close(twin(x), model(x))
    rate, steps = 0.01, 50
    optimiser = torch.optim.SGD(twin.parameters(), lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        (0.5 * (twin(x) - y).square().sum()).backward()
        optimiser.step()
    k = empirical_ntk(model, x).permute(0, 2, 1, 3).reshape(12, 12)
    shrink = torch.linalg.matrix_power(torch.eye(12).double() - rate * k, steps)
    expected = y.flatten() + shrink @ (model(x) - y).flatten()
    torch.testing.assert_close(twin(x).flatten(), expected)


def test_alignment_of_kernels():
    a = torch.randn(6, 6).double()
    a = a @ a.T
    assert kernel_alignment(a, 3 * a) == pytest.approx(1)
    assert kernel_alignment(torch.eye(4), torch.ones(4, 4)) == pytest.approx(4 / (2 * 4))
    shifted = a + 5.0  # a constant feature, which centring takes away
    assert kernel_alignment(a, shifted) < 1 - 1e-3
    assert kernel_alignment(a, shifted, centred=True) == pytest.approx(1)
    assert kernel_change(a, 1.25 * a) == pytest.approx(0.25)
    with pytest.raises(DataError, match="shapes differ"):
        kernel_alignment(a, a[:3])
    with pytest.raises(DataError, match="not all zero"):
        kernel_alignment(a, torch.zeros(6, 6))


@pytest.mark.parametrize("features", [3, 30])
def test_alignment_of_representations_is_that_of_their_kernels(features):
    h, g = torch.randn(8, features).double(), torch.randn(8, features + 1).double()
    assert representation_alignment(h, g) == pytest.approx(kernel_alignment(h @ h.T, g @ g.T))
    turn = torch.linalg.qr(torch.randn(features, features).double())[0]
    assert representation_alignment(h, h @ turn) == pytest.approx(1)


def test_task_alignment_is_one_for_the_targets_own_kernel():
    y = torch.tensor([1.0, -1.0, 2.0, 0.5])
    y = y - y.mean()
    assert kernel_task_alignment(torch.outer(y, y), y) == pytest.approx(1)
    assert kernel_task_alignment(torch.eye(4), y, centred=False) == pytest.approx(1 / 2)
    with pytest.raises(DataError, match="not constant"):
        kernel_task_alignment(torch.eye(4), torch.ones(4))


def test_signs():
    assert sign_similarity(torch.tensor([1.0, -2, 0, 3]), torch.tensor([2.0, 2, 0, 1])) == 0.75


@pytest.mark.parametrize("kind", ["participation", "entropy", "stable", "count"])
def test_effective_rank_of_equal_singular_values_is_their_number(kind):
    q = torch.linalg.qr(torch.randn(9, 9).double())[0]
    assert effective_rank(7 * q[:, :4] @ q[:4], kind) == pytest.approx(4)


def test_effective_ranks_of_unequal_singular_values():
    w = torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.0]))
    assert effective_rank(w) == pytest.approx(36 / 18)
    assert effective_rank(w, "stable") == pytest.approx(1.5)
    assert effective_rank(w, "entropy") == pytest.approx(math.exp(1.5 * math.log(2)))
    assert effective_rank(w, "count", fraction=0.6) == 1
    with pytest.raises(DataError, match="zero"):
        effective_rank(torch.zeros(3, 3))


def test_change_of_weights():
    before, after = (
        {"a": torch.zeros(3), "b.w": torch.ones(4)},
        {"a": torch.ones(3), "b.w": torch.ones(4) * 2},
    )
    assert weight_change(before, after) == pytest.approx(math.sqrt(7))
    assert weight_change(before, after, ["b"]) == pytest.approx(2)
    assert relative_weight_change(before, after, ["b"]) == pytest.approx(1)
    with pytest.raises(DataError, match="'c'"):
        weight_change(before, after, ["c"])


def test_output_scale_makes_training_lazy():
    """At one pace of the function (rate / alpha^2) large alpha moves weights and kernel less."""
    x, y = torch.randn(20, 4), torch.randn(20, 1)
    changes, losses = [], []
    for alpha in (0.5, 5.0, 50.0):
        torch.manual_seed(1)
        net = mlp((4, 64, 1), nn.Tanh, parametrisation="ntk")
        tracker = LazinessTracker(net, x)
        model = ScaledOutput(net, alpha)
        assert model(x).abs().max() == 0
        optimiser = torch.optim.SGD(net.parameters(), lr=model.learning_rate(0.5))
        for _ in range(200):
            optimiser.zero_grad()
            (loss := (model(x) - y).square().mean()).backward()
            optimiser.step()
        found = tracker.measure()
        changes.append((found.kernel_change, found.relative_weight_change))
        losses.append(float(loss.detach()))
    assert changes[0][0] > 3 * changes[1][0] > 9 * changes[2][0]
    assert changes[0][1] > 3 * changes[1][1] > 9 * changes[2][1]
    # In the lazy limit the pace no longer depends on alpha.
    assert losses[2] == pytest.approx(losses[1], rel=0.05)
    with pytest.raises(DataError, match="alpha"):
        ScaledOutput(net, 0)


@pytest.mark.parametrize("parametrisation", ["standard", "ntk", "mean_field"])
def test_pace_does_not_depend_on_width(parametrisation):
    """With the scale of its learning rate, training has a limit in width; kernels move as known."""
    x, y = torch.randn(16, 4), torch.randn(16, 1)
    losses, moved = [], []
    for width in (256, 4096):
        final, change = [], []
        for seed in range(3):
            torch.manual_seed(seed)
            net = mlp((4, width, 1), nn.Tanh, parametrisation=parametrisation)
            model = ScaledOutput(net, 1.0)
            tracker = LazinessTracker(net, x)
            rate = 0.3 * learning_rate_scale(parametrisation, width)
            optimiser = torch.optim.SGD(net.parameters(), lr=rate)
            for _ in range(60):
                optimiser.zero_grad()
                (loss := (model(x) - y).square().mean()).backward()
                optimiser.step()
            final.append(float(loss.detach()))
            change.append(tracker.measure().kernel_change)
        losses.append(np.mean(final))
        moved.append(np.mean(change))
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    if parametrisation == "mean_field":
        assert moved[1] == pytest.approx(moved[0], rel=0.2)
    elif parametrisation == "ntk":  # between 1 / sqrt(width) and 1 / width, a factor of 4 to 16
        assert 3 < moved[0] / moved[1] < 20
    else:  # at this pace the first layer, whose kernel is the smaller part, hardly moves at all
        assert moved[0] / moved[1] > 20


def test_parametrisations_start_as_one_function():
    x = torch.randn(2000, 4)
    spread = {}
    for kind in ("standard", "ntk"):
        generator = torch.Generator().manual_seed(3)
        net = mlp(
            (4, 512, 1), parametrisation=kind, weight_std=1.5, bias_std=0.2, generator=generator
        )
        spread[kind] = net(x).detach()
    torch.testing.assert_close(spread["standard"], spread["ntk"])
    assert isinstance(net[0], NTKLinear)


def test_laziness_of_a_network_that_stayed_and_of_one_that_turned():
    model, x = perceptron(), torch.randn(10, 4)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    same = laziness(model, start, start, x)
    assert same.weight_change == same.kernel_change == 0
    assert same.kernel_alignment == pytest.approx(1)
    assert same.representation_alignment == pytest.approx(1)
    assert same.sign_similarity == 1
    flipped = {k: -v if k.startswith("2") else v for k, v in start.items()}
    turned = laziness(model, start, flipped, x, params=["2"])
    assert turned.weight_change == pytest.approx(
        turned.relative_weight_change
        * float(torch.cat([start["2.weight"].flatten(), start["2.bias"]]).norm())
    )
    assert turned.relative_weight_change == pytest.approx(2)
    assert turned.sign_similarity == 0
    assert turned.layers["0.weight"] == 0 < turned.layers["2.weight"]
    with pytest.raises(DataError, match="weights of another model"):
        laziness(model, start, {"0.weight": x}, x)


def test_activity_is_that_of_the_named_module():
    model, x = perceptron(), torch.randn(5, 4)
    torch.testing.assert_close(activity(model, x, "1"), model[:2](x).detach())
    torch.testing.assert_close(activity(model, x), model[:4](x).detach())
    with pytest.raises(DataError, match="'9'"):
        activity(model, x, "9")
