"""Networks trained together come out as if each had been alone."""

import pytest
import torch
from torch import nn

from peira.nn import Ensemble, mlp


def perceptron() -> nn.Module:
    return mlp((4, 6, 5, 3), "tanh").double()


def unbiased() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3)).double()


def normed() -> nn.Module:
    """Not a perceptron: run by vmap."""
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize("make_network", [perceptron, unbiased, normed])
@pytest.mark.parametrize("optimiser", ["SGD", "AdamW"])
def test_members_of_an_ensemble_train_as_if_alone(make_network, optimiser):
    torch.manual_seed(0)
    models, alone = ([make_network() for _ in range(3)] for _ in range(2))
    for a, b in zip(models, alone, strict=True):
        b.load_state_dict(a.state_dict())
    x, y = torch.randn(3, 8, 4).double(), torch.randn(3, 8, 3).double()
    together = Ensemble(models)
    assert together.perceptrons == (make_network is not normed)
    settings = {"lr": 0.01} | ({"momentum": 0.9} if optimiser == "SGD" else {"weight_decay": 0.1})
    make = getattr(torch.optim, optimiser)
    optimisers = [make(m.parameters(), **settings) for m in (together, *alone)]
    for _ in range(20):
        losses = [(together(x) - y).square().mean((1, 2)).sum()]
        losses += [(m(x[i]) - y[i]).square().mean() for i, m in enumerate(alone)]
        for o, loss in zip(optimisers, losses, strict=True):
            o.zero_grad()
            loss.backward()
            o.step()
    for state, single in zip(together.states(), alone, strict=True):
        torch.testing.assert_close(state, dict(single.state_dict()))
    alone = torch.cat([Ensemble([one])(x[i : i + 1]) for i, one in enumerate(models)])
    assert torch.equal(Ensemble(models).apart(x), alone)
    shared = Ensemble(models, shared=True)
    torch.testing.assert_close(shared.apart(x[0]), shared(x[0]))
    torch.testing.assert_close(shared(x[0])[1], models[1](x[0]))


def test_an_ensemble_is_of_one_architecture():
    with pytest.raises(ValueError, match="different shapes"):
        Ensemble([perceptron(), nn.Linear(4, 3)])
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])
