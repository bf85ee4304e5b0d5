"""Outputs inside a network: seen, differentiated, replaced; and networks evaluated."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from peira.nn import accuracy, capture, mlp, predict, replace_output, sample_losses


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Identity()

    def forward(self, x):
        return self.inside(x), x


def test_captured_outputs_are_those_of_the_module():
    network = mlp((3, 4, 2))
    x = torch.randn(5, 3)
    with capture(network, "0", "1") as seen:
        network(x)
    torch.testing.assert_close(seen["0"], network[0](x).detach())
    assert not seen["0"].requires_grad
    assert torch.equal(seen["1"], seen["0"].relu())
    network(x + 1)
    torch.testing.assert_close(seen["0"], network[0](x).detach())


def test_attached_outputs_can_be_differentiated():
    network = mlp((3, 4, 2), "tanh")
    x = torch.randn(5, 3)
    with capture(network, "1", detach=False) as seen:
        loss = network(x).sum()
    (gradient,) = torch.autograd.grad(loss, seen["1"])
    torch.testing.assert_close(gradient, network[2].weight.sum(0).expand(5, 4))


def test_replaced_outputs_reach_the_rest_and_only_inside_the_block():
    network = mlp((3, 4, 2))
    x = torch.randn(5, 3)
    before = network(x)
    with replace_output(network, "1", torch.zeros_like):
        assert torch.equal(network(x), network[2].bias.expand(5, 2))
    assert torch.equal(network(x), before)


def test_hooks_go_even_when_the_network_fails():
    network = mlp((3, 4, 2))
    with pytest.raises(RuntimeError), capture(network, "0"):
        network(torch.randn(5, 7))
    assert not network[0]._forward_hooks


def test_wrong_modules_are_named():
    with (
        pytest.raises(ValueError, match=r"no module 'deep'.*0, 1, 2"),
        capture(mlp((1, 2, 3)), "deep"),
    ):
        pass
    pair = nn.Sequential(Pair())
    with pytest.raises(ValueError, match=r"tuple.*0\.inside"), capture(pair, "0"):
        pair(torch.ones(2))


def test_evaluation_leaves_modes_and_statistics_alone():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    network[2].eval()
    before = network[1].running_mean.clone()
    x = torch.randn(700, 3)
    outputs = predict(network, x, batch=300)
    assert [part.training for part in network] == [True, True, False, True]
    assert torch.equal(network[1].running_mean, before)
    labels = outputs.argmax(1)
    labels[:70] = 1 - labels[:70]
    assert accuracy(network, x, labels) == pytest.approx(0.9)


def test_losses_come_in_the_order_of_the_data():
    torch.manual_seed(0)
    network = mlp((3, 4, 2))
    x, y = torch.randn(23, 3), torch.randint(2, (23,))
    data = TensorDataset(x, y)
    losses = sample_losses(network, DataLoader(data, batch_size=5))
    one_by_one = [
        nn.functional.cross_entropy(network(x[i : i + 1]), y[i : i + 1]) for i in range(23)
    ]
    torch.testing.assert_close(losses, torch.stack(one_by_one).detach())
    for wrong in ({"shuffle": True}, {"drop_last": True}):
        with pytest.raises(ValueError, match="order"):
            sample_losses(network, DataLoader(data, batch_size=5, **wrong))
