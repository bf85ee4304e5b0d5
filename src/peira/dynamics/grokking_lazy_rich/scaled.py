"""Networks with a scaled output on tasks of classification: recipes, data, one training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peira.data.errors import DataError
from peira.data.images import digit_images, mnist_images
from peira.data.modular import Split, modular_table, split_table
from peira.dynamics.grokking_lazy_rich.gap import logarithmic_steps
from peira.dynamics.grokking_lazy_rich.network import (
    ModularNetwork,
    OneLayerTransformer,
    image_network,
)
from peira.dynamics.probes import Laziness, LazinessTracker, ScaledOutput, empirical_ntk

TaskName = Literal["modular", "digits", "mnist", "transformer"]
Steps = Callable[[tuple[Any, ...]], Iterable[int]]


@dataclass(frozen=True)
class Recipe:
    """How a scaled network is trained.

    Attributes:
        optimiser: "sgd", or "adamw" with decoupled weight decay.
        learning_rate: at alpha = 1.
        rescale: divide the learning rate by alpha^2.
        weight_decay: of AdamW.
        betas: of AdamW.
        loss: "squares", mean over samples and classes, or "entropy".
        batch: samples per step, in file order and cyclically; None takes all.
        warm_up: steps over which the learning rate rises.
        fraction: of the reference loss, the level of the grok gap.
    """

    optimiser: Literal["sgd", "adamw"]
    learning_rate: float
    rescale: bool = False
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    loss: Literal["squares", "entropy"] = "squares"
    batch: int | None = None
    warm_up: int = 0
    fraction: float = 0.05


@dataclass
class Curve:
    """Losses and accuracies at the steps that were looked at."""

    steps: list[int] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)

    def state_dict(self) -> dict[str, list[Any]]:
        """A copy of the curve so far."""
        return {name: list(values) for name, values in vars(self).items()}

    def load_state_dict(self, state: dict[str, list[Any]]) -> None:
        """Go on from a `state_dict()`."""
        for name, values in state.items():
            setattr(self, name, list(values))


# Digits: squares of the test error level off near a fifth of the targets' mean square.
RECIPES: dict[TaskName, Recipe] = {
    "modular": Recipe("sgd", 100.0, rescale=True),
    "digits": Recipe("adamw", 1e-3, fraction=0.3),
    "mnist": Recipe("adamw", 1e-3, weight_decay=0.01, batch=200, fraction=0.3),
    "transformer": Recipe(
        "adamw", 6e-6, rescale=True, weight_decay=1.0, betas=(0.9, 0.98), loss="entropy", warm_up=10
    ),
}


def classification_task(
    name: TaskName, seed: int, *, modulus: int = 23, samples: int = 200
) -> Split:
    """The inputs and labels of one task, split.

    Args:
        name: "modular" and "transformer": addition of ordered pairs, 90% and 40% to train;
            "digits" and "mnist": `samples` pictures to train, the others to test.
    """
    generator = torch.Generator().manual_seed(seed)
    if name in ("modular", "transformer"):
        share = 0.9 if name == "modular" else 0.4
        table = modular_table("addition", modulus, symmetric=False)
        return split_table(*table, share, generator)
    return (digit_images if name == "digits" else mnist_images)(generator, samples)


def scaled_network(
    name: TaskName,
    seed: int,
    *,
    alpha: float,
    centred: bool,
    pixels: int = 64,
    modulus: int = 23,
    width: int = 200,
    gain: float = 1.0,
    kaiming: bool = False,
) -> ScaledOutput:
    """The task's network at its initial weights, with its output scaled."""
    generator = torch.Generator().manual_seed(seed)
    if name == "modular":
        network: nn.Module = ModularNetwork(modulus, width, generator)
    elif name == "transformer":
        network = OneLayerTransformer(modulus, width, hidden=4 * width, generator=generator)
    else:
        network = image_network(pixels, gain, width, kaiming=kaiming, generator=generator)
    return ScaledOutput(network, alpha, centred=centred)


def loss_of(kind: str, outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error to one-hot targets, or cross-entropy."""
    if kind == "entropy":
        return F.cross_entropy(outputs, labels)
    return F.mse_loss(outputs, F.one_hot(labels, outputs.shape[1]).to(outputs.dtype))


def reference_loss(kind: str, classes: int) -> float:
    """Loss of an output of zeros: what a centred network starts from."""
    return float(torch.tensor(classes).log()) if kind == "entropy" else 1 / classes


def train_scaled(
    model: ScaledOutput,
    data: Split,
    recipe: Recipe,
    total: int,
    steps: Steps | None = None,
    done: Callable[[Curve], bool] = lambda _: False,
) -> Curve:
    """Train a scaled network and look at both losses at logarithmic distances.

    Args:
        model: trained in place.
        data: labels are class numbers.
        recipe: optimiser, loss, batch.
        total: steps.
        steps: given what a checkpoint must hold, yields 1, 2, ..., `total`; plain counting where
            not given.
        done: leave when this is true of the curve so far.

    Raises:
        DataError: a loss that is no longer finite, with the step.
    """
    params = list(model.model.parameters())
    rate = model.learning_rate(recipe.learning_rate) if recipe.rescale else recipe.learning_rate
    optimiser: torch.optim.Optimizer = (
        torch.optim.SGD(params, lr=rate)
        if recipe.optimiser == "sgd"
        else torch.optim.AdamW(
            params, lr=rate, weight_decay=recipe.weight_decay, betas=recipe.betas, fused=True
        )
    )
    curve, looks = Curve(), set(logarithmic_steps(total, per_decade=40))
    _look(curve, 0, model, data, recipe)
    for step in steps((model, optimiser, curve)) if steps else range(1, total + 1):
        if recipe.warm_up:
            optimiser.param_groups[0]["lr"] = rate * min((step - 1) / recipe.warm_up, 1)
        inputs, labels = _batch(data, recipe.batch, step)
        loss = loss_of(recipe.loss, model(inputs), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step in looks:
            _look(curve, step, model, data, recipe)
            if not curve.train_loss[-1] < float("inf"):
                raise DataError(
                    f"training diverged at step {step}",
                    value=rate,
                    expected="a smaller learning rate",
                )
            if done(curve):
                break
    return curve


@torch.no_grad()
def _look(curve: Curve, step: int, model: nn.Module, data: Split, recipe: Recipe) -> None:
    train = model(data.train_inputs)
    test = torch.cat([model(part) for part in data.test_inputs.split(4096)])
    curve.steps.append(step)
    curve.train_loss.append(float(loss_of(recipe.loss, train, data.train_labels)))
    curve.test_loss.append(float(loss_of(recipe.loss, test, data.test_labels)))
    right = test.argmax(1) == data.test_labels
    curve.test_accuracy.append(float(right.double().mean()))


def _batch(data: Split, size: int | None, step: int) -> tuple[Tensor, Tensor]:
    if size is None or size >= len(data.train_inputs):
        return data.train_inputs, data.train_labels
    first = size * (step - 1) % len(data.train_inputs)
    part = slice(first, first + size)
    return data.train_inputs[part], data.train_labels[part]


def regression_sweep(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    alpha: float,
    learning_rate: float,
    total: int,
) -> tuple[Curve, Laziness]:
    """Fit numbers by full-batch gradient descent at one output scale, without regularisation.

    Args:
        network: one output per input; trained in place.
        x, y, x_test, y_test: inputs (n, ...) and targets (n,).
        alpha: output scale; the learning rate is divided by its square.
        learning_rate: at alpha = 1.
        total: steps.

    Returns:
        Losses at logarithmic distances (accuracies are left out), and how far the network went.

    Raises:
        DataError: a loss that is no longer finite, with the step and the largest stable rate.
    """
    model = ScaledOutput(network, alpha)
    tracker = LazinessTracker(network, x[:50])
    rate = model.learning_rate(learning_rate)
    optimiser = torch.optim.SGD(network.parameters(), lr=rate)
    curve, looks = Curve(), set(logarithmic_steps(total, per_decade=40))
    start = copy.deepcopy(network)
    for step in range(total + 1):
        loss = F.mse_loss(model(x).squeeze(-1), y)
        if step in looks:
            curve.steps.append(step)
            curve.train_loss.append(float(loss.detach()))
            with torch.no_grad():
                curve.test_loss.append(float(F.mse_loss(model(x_test).squeeze(-1), y_test)))
        if not loss < 1e6 * float(y.square().mean()):
            raise DataError(
                f"training diverged at step {step}",
                value=learning_rate,
                expected=f"a learning rate below {largest_stable_rate(start, x):.3g}",
            )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return curve, tracker.measure()


def largest_stable_rate(network: nn.Module, x: Tensor) -> float:
    """2 / lambda_max of the mean squared error's curvature at the start, for alpha = 1."""
    kernel = empirical_ntk(network, x, mode="trace").double()
    return len(x) / float(torch.linalg.eigvalsh(kernel)[-1])
