"""What single cells of the study measure: spectra, random matrices, rates, damping, learners."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import peira
from peira.dynamics.batch_hessian_lr.baselines import AdaHessian, ArmijoSGD
from peira.dynamics.batch_hessian_lr.examples import Examples, cifar100, digits, quadratic
from peira.dynamics.batch_hessian_lr.law import BatchSpectrumLaw, batch_spectrum_law
from peira.dynamics.batch_hessian_lr.matrices import (
    draw_wigner,
    draw_wishart,
    effective_batch,
    spiked_wigner,
    spiked_wishart,
)
from peira.dynamics.batch_hessian_lr.model import build
from peira.dynamics.batch_hessian_lr.rates import max_lr, noise_scale
from peira.dynamics.batch_hessian_lr.sweep import (
    ShuffledBatches,
    load_flat,
    lr_range_test,
    mean_loss,
    measure_max_lr,
)
from peira.dynamics.batch_hessian_lr.tuner import SLQTuner
from peira.dynamics.probes.curvature import Kind, Loss, batch_spectra
from peira.nn.evaluation import accuracy

# The grid that the learner is held against: 6 rates by 4 momenta.
GRID = [(float(lr), mu) for lr in np.geomspace(0.003, 1, 6) for mu in (0.0, 0.5, 0.9, 0.99)]
# The learner may take this many times the grid's steps.
ALLOWED = 1.5


def problem(task: str, network: str, run: peira.Run) -> tuple[Examples, nn.Module, Loss]:
    """The examples, the network at a seed's initial weights, and the loss, on the run's device."""
    found = {"digits": digits, "quadratic": quadratic}
    data = cifar100() if task == "cifar100" else found[task](run.seed)
    model = build(network, data.inputs[0].numel(), data.classes, run.seed)
    moved = Examples(*(part.to(run.device) for part in data[:4]), data.classes)
    return moved, model.to(run.device), F.mse_loss if task == "quadratic" else F.cross_entropy


def weights_at(
    run: peira.Run, task: str, network: str, moment: int, batch: int, rate: float
) -> dict[str, Tensor]:
    """The network's weights after `moment` steps of plain SGD."""
    data, model, loss = problem(task, network, run)
    order = ShuffledBatches(len(data.inputs), batch, run.generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in run.steps(moment, [model, optimizer, order], name="towards"):
        picked = next(order)
        value = loss(model(data.inputs[picked]), data.targets[picked])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return {name: value.cpu() for name, value in model.state_dict().items()}


def law_at(run: peira.Run, kind: Kind, chunk: int | None, where: dict[str, Any]) -> dict[str, Any]:
    """The law's numbers at one point of training, without measured batches."""
    data, model, loss = problem(where["task"], where["network"], run)
    model.load_state_dict(weights_at(run, **where))
    law = _law(model, loss, data, kind, chunk, run)
    return {
        "largest": law.largest,
        "smallest": law.smallest,
        "coefficient": law.coefficient.value,
        "batches": {
            batch: (law.largest_at(batch, "iid").value, law.smallest_at(batch).value)
            for batch in map(int, 2.0 ** np.arange(15))
            if batch <= law.examples
        },
        "vector": law.vector.cpu(),
        "state": {name: value.cpu() for name, value in model.state_dict().items()},
    }


def _law(
    model: nn.Module, loss: Loss, data: Examples, kind: Kind, chunk: int | None, run: peira.Run
) -> BatchSpectrumLaw:
    return batch_spectrum_law(
        model.eval(),
        loss,
        (data.inputs, data.targets),
        kind=kind,
        chunk=chunk,
        generator=run.generator,
    )


def spectrum(
    run: peira.Run,
    kind: Kind,
    batch: int,
    count: int,
    chunk: int | None,
    where: dict[str, Any],
) -> dict[str, float]:
    """Extremal eigenvalues of random batches beside those of all the data and the predictions."""
    full = run.shared("full-curvature", law_at, kind=kind, chunk=chunk, where=where)
    data, model, loss = problem(where["task"], where["network"], run)
    model.load_state_dict(full["state"])
    b = effective_batch(batch, len(data.inputs))
    generator = torch.Generator().manual_seed(int(run.rng.integers(2**62)))
    found = batch_spectra(
        kind, model.eval(), loss, (data.inputs, data.targets), batch, count=count,
        generator=generator,
    )  # fmt: skip
    largest, smallest = float(found.largest.mean()), float(found.smallest.mean())
    excess = full["coefficient"] / b
    iid, lower = full["batches"][batch]
    return {
        "effective_batch": b,
        "full_largest": full["largest"],
        "full_smallest": full["smallest"],
        "largest": largest,
        "smallest": smallest,
        "excess": largest - full["largest"],
        "deficit": full["smallest"] - smallest,
        "excess_directional": excess,
        "excess_iid": iid - full["largest"],
        "smallest_predicted": lower,
        "overlap": float(found.overlaps(full["vector"].to(found.vectors)).mean()),
        "overlap_predicted": max(0.0, 1 - excess / full["largest"]),
    }


def random_matrix(
    run: peira.Run, method: str, size: int, spike: float, draws: int
) -> dict[str, float]:
    """A spike of `spike` transitions under noise: mean eigenvalue and overlap, and the theorem."""
    if method == "wigner":
        theory = spiked_wigner(spike, size, size, 1.0)
        drawn = [draw_wigner(spike, size, size, 1.0, run.rng) for _ in range(draws)]
    else:
        # gamma = 1/2: the transition is at 1 + sqrt(1/2).
        b = 2 * size
        ell = 1 + spike * math.sqrt(size / b)
        theory = spiked_wishart(ell, size, b, 1.0)
        drawn = [draw_wishart(ell, size, b, 1.0, run.rng) for _ in range(draws)]
    found = [matrix.largest() for matrix in drawn]
    eigenvalue, overlap = np.mean(found, axis=0)
    return {
        "eigenvalue": float(eigenvalue),
        "eigenvalue_predicted": theory.eigenvalue,
        "eigenvalue_error": abs(float(eigenvalue) / theory.eigenvalue - 1),
        "overlap": float(overlap),
        "overlap_predicted": theory.overlap,
        "overlap_error": abs(float(overlap) - theory.overlap),
    }


def largest_rate(
    run: peira.Run,
    method: str,
    batch: int,
    rates: int,
    horizon: int,
    chunk: int | None,
    **where: Any,
) -> dict[str, float]:
    """The largest learning rate that learns within the horizon, and what predicts it."""
    data, model, loss = problem(where["task"], where["network"], run)
    pair = (data.inputs, data.targets)
    low, high = (0.02, 4.0) if method == "sgd" else (0.004, 0.8)
    rates_tried = np.geomspace(low, high, rates)
    found = measure_max_lr(
        model,
        loss,
        pair,
        batch,
        rates_tried.tolist(),
        target=0.5 * math.log(data.classes),
        optimizer="sgd" if method == "sgd" else "adam",
        horizon=horizon,
        generator=run.generator,
        steps=lambda save: run.steps(horizon, save),
    )
    predicted = run.shared("rates", predicted_rates, chunk=chunk, **where)
    largest = found.largest
    outcomes = [
        word for rate, word in zip(found.rates, found.outcomes, strict=True) if rate > largest
    ]
    share = outcomes.count("diverged") / len(outcomes) if outcomes else 0.0
    return {"lr_max": largest, "diverged_above": share, **predicted[method][batch]}


def predicted_rates(run: peira.Run, chunk: int | None, **where: Any) -> dict[str, Any]:
    """What the law, the full curvature and the range test say, by optimiser and batch size."""
    data, model, loss = problem(where["task"], where["network"], run)
    law = _law(model, loss, data, "hessian", chunk, run)
    pair = (data.inputs, data.targets)
    scale = noise_scale(model.eval(), loss, pair)
    # No cell has larger batches.
    sizes = [b for b in map(int, 2.0 ** np.arange(10)) if b <= len(data.inputs) / 4]

    def sgd(batch: int) -> dict[str, float]:
        tested = lr_range_test(model, loss, pair, batch, generator=run.generator)
        return {
            "lr_law": max_lr(law, batch).value,
            "lr_full": 2 / law.largest,
            "lr_range_test": tested.divergence,
            "noise_scale": scale,
        }

    def adam(batch: int) -> dict[str, float]:
        full, _ = law.adam_largest_at(batch)
        return {
            "lr_law": max_lr(law, batch, "adam").value,
            "lr_full": 2 * (1 + 0.9) / (1 - 0.9) / full,
            "noise_scale": scale,
        }

    return {"sgd": {b: sgd(b) for b in sizes}, "adam": {b: adam(b) for b in sizes}}


def smallest_damping(
    run: peira.Run, rate: float, batch: int, size: int, tried: int, horizon: int
) -> dict[str, float]:
    """The smallest damping with which RMSprop settles in a noisy quadratic.

    Loss mean_i (x_i . w)^2 / 2 with fresh standard normal x_i in every batch: the mean curvature is
    1 in every direction, and a batch's largest one about size / B. Settled is a loss |w|^2 / 2
    below 1e-6 of the first. The preconditioner vanishes with the gradients, so that the damping
    alone decides.
    """
    # The mean-square limit of plain SGD on Gaussian inputs is 2 B / (size + B + 1).
    expected = rate * (size + batch + 1) / (2 * batch)
    dampings = expected * np.geomspace(1 / 20, 20, tried)
    weights = np.repeat(run.rng.normal(size=(size, 1)), tried, axis=1)
    start = float((weights[:, 0] ** 2).sum())
    state = {"weights": weights, "square": np.zeros_like(weights)}
    for _ in run.steps(horizon, [state]):
        inputs = run.rng.normal(size=(batch, size))
        gradient = inputs.T @ (inputs @ state["weights"]) / batch
        state["square"] = 0.99 * state["square"] + 0.01 * gradient**2
        step = rate * gradient / (np.sqrt(state["square"]) + dampings)
        state["weights"] = state["weights"] - step
    settled = (state["weights"] ** 2).sum(axis=0) < 1e-6 * start
    smallest = float(dampings[settled].min()) if settled.any() else math.nan
    return {"damping": smallest, "damping_predicted": expected}


def learner(
    run: peira.Run, method: str, task: str, network: str, batch: int, horizon: int, every: int
) -> dict[str, float | peira.Censored]:
    """Steps until the loss of the best of the grid, without a grid."""
    best = run.shared(
        "grid", best_of_grid, task=task, network=network, batch=batch, horizon=horizon, every=every
    )
    if method == "grid":
        for step, loss in best["curve"]:
            run.log(step, train_loss=loss)
        return {**best["measured"], "steps_to_target": float(best["steps"])}
    budget = math.ceil(ALLOWED * run.budget(horizon))
    curve, measured = trained(run, method, task, network, batch, budget, every)
    for step, loss in curve:
        run.log(step, train_loss=loss)
    steps = first_at(curve, best["target"])
    return {
        **measured,
        "steps_to_target": float(steps) if steps else peira.Censored(run.budget(budget)),
        "loss_ratio": min(loss for _, loss in curve if math.isfinite(loss)) / best["target"],
    }


def best_of_grid(
    run: peira.Run, task: str, network: str, batch: int, horizon: int, every: int
) -> dict[str, Any]:
    """Of all rates and momenta the run with the lowest last loss, and when it got there."""
    data, model, loss = problem(task, network, run)
    found = measure_max_lr(
        model,
        loss,
        (data.inputs, data.targets),
        batch,
        [rate for rate, _ in GRID],
        target=0.0,
        momentum=[momentum for _, momentum in GRID],
        horizon=horizon,
        every=every,
        generator=torch.Generator().manual_seed(run.seed),
        steps=lambda save: run.steps(horizon, save, name="grid"),
    )
    best = int(torch.nan_to_num(found.losses, nan=math.inf).argmin())
    load_flat(model, found.weights[best])
    curve = [(step, float(losses[best])) for step, losses in found.curve]
    target = curve[-1][1]
    measured = {
        "final_loss": target,
        "learning_rate_used": GRID[best][0],
        "momentum_used": GRID[best][1],
        "gradients": float(len(GRID) * curve[-1][0]),
        **test_accuracy(model, data, task),
    }
    return {
        "target": target,
        "curve": curve,
        "steps": first_at(curve, target),
        "measured": measured,
    }


def test_accuracy(model: nn.Module, data: Examples, task: str) -> dict[str, float]:
    """Accuracy on the examples that did not train; nothing for the quadratic."""
    if task == "quadratic":
        return {}
    return {"test_accuracy": accuracy(model, data.test_inputs, data.test_targets, 2048)}


def first_at(curve: list[tuple[int, float]], target: float) -> int | None:
    """The first step of a loss curve at or below a target."""
    return next((step for step, loss in curve if loss <= target), None)


def trained(
    run: peira.Run,
    method: str,
    task: str,
    network: str,
    batch: int,
    horizon: int,
    every: int,
    rate: float = 0.1,
    momentum: float = 0.0,
) -> tuple[list[tuple[int, float]], dict[str, float]]:
    """Train with one method; loss over all the data every few steps, and what it cost."""
    data, model, loss = problem(task, network, run)
    pair = (data.inputs, data.targets)
    order = ShuffledBatches(len(data.inputs), batch, torch.Generator().manual_seed(run.seed))
    epoch = len(data.inputs) // batch
    draws = torch.Generator().manual_seed(run.seed + 1)
    rate, cost = _chosen_rate(method, model, loss, pair, batch, rate, draws)
    optimizer = _optimizer(method, model, rate, momentum, epoch, draws)
    tuner = None
    if method.startswith("slq"):
        tuner = SLQTuner(
            optimizer, model, loss, pair, batch, examples=min(512, len(data.inputs)),
            every=1 if epoch > 1 else 50, published=method == "slq-published", generator=draws,
        )  # fmt: skip
    state: dict[str, Any] = {"curve": []}
    draws_state = _Generator(draws)
    save = [model, optimizer, order, state, draws_state, *([tuner] if tuner else [])]
    for step in run.steps(horizon, save, name="learn"):
        picked = next(order)
        _step(method, model, loss, optimizer, data.inputs[picked], data.targets[picked])
        if tuner and step % epoch == 0:
            tuner.step()
        if step % every == 0 or step == run.budget(horizon):
            with torch.no_grad():
                value = mean_loss(lambda x, y: loss(model(x), y), *pair)
                state["curve"].append((step, float(value)))
    measured = {"final_loss": state["curve"][-1][1], **test_accuracy(model, data, task)}
    if tuner:
        products = sum(entry.products for entry in tuner.history)
        cost += 2 * products * min(512, len(data.inputs)) / batch
        measured["learning_rate_used"] = tuner.history[-1].lr
        measured["momentum_used"] = tuner.history[-1].momentum
    # A forward pass is a third of a gradient, a Hessian product on top of a gradient two of them.
    per_step = {"line-search": 1.0, "adahessian": 3.0}.get(method, 1.0)
    searched = optimizer.param_groups[0].get("evaluations", 0) / 3
    measured["gradients"] = cost + per_step * run.budget(horizon) + searched
    return state["curve"], measured


class _Generator:
    """A generator whose state goes into checkpoints."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def state_dict(self) -> Tensor:
        return self.generator.get_state()

    def load_state_dict(self, state: Tensor) -> None:
        self.generator.set_state(state)


def _chosen_rate(
    method: str,
    model: nn.Module,
    loss: Loss,
    pair: tuple[Tensor, Tensor],
    batch: int,
    rate: float,
    draws: torch.Generator,
) -> tuple[float, float]:
    """The rate that a method chooses before it starts, and what that cost in gradients."""
    if method == "full-curvature":
        law = batch_spectrum_law(model, loss, pair, generator=draws)
        return 2 / law.largest, 2 * 60 * len(pair[0]) / batch
    if method == "range-test":
        tested = lr_range_test(model, loss, pair, batch, momentum=0.9, generator=draws)
        return tested.steepest, float(len(tested.rates))
    return rate, 0.0


def _optimizer(
    method: str,
    model: nn.Module,
    rate: float,
    momentum: float,
    epoch: int,
    draws: torch.Generator,
) -> torch.optim.Optimizer:
    params = list(model.parameters())
    if method == "line-search":
        return ArmijoSGD(params, batches=epoch)
    if method == "adahessian":
        return AdaHessian(params, generator=draws)
    if method == "range-test":
        momentum = 0.9
    return torch.optim.SGD(params, lr=rate, momentum=momentum)


def _step(
    method: str,
    model: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
) -> None:
    if isinstance(optimizer, ArmijoSGD):
        optimizer.step(lambda: loss(model(inputs), targets))
        return
    value = loss(model(inputs), targets)
    params = list(model.parameters())
    gradients = torch.autograd.grad(value, params, create_graph=method == "adahessian")
    for weight, gradient in zip(params, gradients, strict=True):
        weight.grad = gradient
    optimizer.step()
