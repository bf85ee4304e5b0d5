"""Grokking tickets: train past memorisation, prune by magnitude, rewind, and generalise sooner.

Minegishi, Iwasawa, Matsuo, "Grokking Tickets: Lottery Tickets Accelerate Grokking",
arXiv 2310.19470. Works for any `nn.Module` that classifies; everything is full-batch.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peira.data.errors import DataError
from peira.data.modular import Split
from peira.dynamics.grokking_tickets.model import ImageMLP, TokenMLP, TokenTransformer
from peira.dynamics.grokking_tickets.structure import inverse_participation, periodicity
from peira.engine.errors import PeiraError
from peira.nn.evaluation import accuracy, evaluating
from peira.nn.grokfast import GrokfastEMA
from peira.nn.pruning import (
    Masks,
    Scope,
    apply_masks,
    grasp_scores,
    keep_top,
    kept_fraction,
    magnitude_mask,
    match_norm,
    prunable,
    random_scores,
    remove_masks,
    shuffle_masks,
    snip_scores,
    synflow_scores,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ImageMLP",
    "Recipe",
    "Ticket",
    "TokenMLP",
    "TokenTransformer",
    "Training",
    "find_ticket",
    "inverse_participation",
    "magnitude_mask",
    "periodicity",
    "retrain",
    "ticket_study",
    "train",
]

When = Literal["memorised", "transition", "generalised", "late"]
Method = Literal[
    "dense",
    "ticket",
    "l1-dense",
    "l2-dense",
    "shuffled",
    "redrawn",
    "random",
    "snip",
    "grasp",
    "synflow",
    "grokfast",
]
METHODS: tuple[Method, ...] = Method.__args__  # type: ignore[attr-defined]
# What needs the masks of a trained network.
FROM_TICKET: tuple[Method, ...] = ("ticket", "l1-dense", "l2-dense", "shuffled", "redrawn")

# "Late" comes at this multiple of the generalise step.
LATE = 1.2

Steps = Callable[[Sequence[Any]], Iterable[int]]


def squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error to one-hot labels, over examples and classes."""
    return F.mse_loss(outputs, F.one_hot(labels, outputs.shape[1]).to(outputs.dtype))


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: full-batch AdamW, and when it counts as grokked.

    Attributes:
        learning_rate: of AdamW.
        weight_decay: decoupled; 1 in the paper's base run.
        betas: of AdamW.
        steps: budget; what has not come by then is censored.
        loss: scalar loss of outputs and labels.
        evaluate_every: steps between evaluations (five at most until memorised).
        memorise_at: train accuracy that counts as memorised.
        transition_at: test accuracy half-way.
        generalise_at: test accuracy that counts as generalised.
        penalty: strength of a further penalty on sum |W|^`penalty_power`.
        penalty_power: p of that penalty.
        grokfast: strength of the slow-gradient filter; 0 is none.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1.0
    betas: tuple[float, float] = (0.9, 0.98)
    steps: int = 30_000
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    evaluate_every: int = 25
    memorise_at: float = 0.99
    transition_at: float = 0.5
    generalise_at: float = 0.95
    penalty: float = 0.0
    penalty_power: float = 1.0
    grokfast: float = 0.0

    def optimizer(self, model: nn.Module) -> torch.optim.AdamW:
        """A fresh AdamW over the model's parameters."""
        return torch.optim.AdamW(
            model.parameters(),
            lr=self.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
            fused=True,
        )


@dataclass
class Checkpoint:
    """Weights at one moment of training, with what they scored."""

    step: int
    train_accuracy: float
    test_accuracy: float
    state: dict[str, Tensor]


@dataclass
class Training:
    """What one training run showed.

    Attributes:
        memorise_step: first evaluation with train accuracy >= `memorise_at`; None if never.
        generalise_step: first evaluation with test accuracy >= `generalise_at`; None if never.
        curve: (step, loss, train accuracy, test accuracy) at each evaluation.
        checkpoints: weights at "memorised", "transition", "generalised", "late" (1.2 times the
            generalise step) as far as it got, and at "last", the end.
    """

    memorise_step: int | None = None
    generalise_step: int | None = None
    curve: list[tuple[int, float, float, float]] = field(default_factory=list)
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)

    @property
    def best_test_accuracy(self) -> float:
        """Highest test accuracy of all evaluations; 0 before the first."""
        return max((test for _, _, _, test in self.curve), default=0.0)

    def checkpoint(self, when: str) -> Checkpoint:
        """The checkpoint of that name.

        Raises:
            PeiraError: training never got there; says how far it got.
        """
        if when not in self.checkpoints:
            reached = f"best test accuracy {self.best_test_accuracy:.3f}"
            last = self.curve[-1][0] if self.curve else 0
            raise PeiraError(
                f"no {when!r} checkpoint after {last} steps ({reached}): train longer, "
                "with more weight decay, or on a larger share of the data"
            )
        return self.checkpoints[when]

    def state_dict(self) -> dict[str, Any]:
        """Everything, for a checkpoint of the run itself."""
        return copy.copy(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        vars(self).update(state)


def train(
    model: nn.Module,
    data: Split,
    recipe: Recipe,
    steps: Steps | None = None,
    until: When = "generalised",
) -> Training:
    """Train on the whole training set at every step, until a checkpoint or out of budget.

    Args:
        model: trained in place.
        data: inputs and labels 0, 1, ..., classes - 1.
        recipe: optimiser, loss, thresholds.
        steps: called with the objects that training changes, yields step numbers 1, 2, ...: where
            a caller shows progress or keeps checkpoints. `range(1, recipe.steps + 1)` by default.
        until: checkpoint to stop at.

    Raises:
        DataError: labels that are not classes of the model.
        PeiraError: the loss is not finite; names the step.
    """
    _check_labels(model, data)
    optimizer, training = recipe.optimizer(model), Training()
    filter_gradients = GrokfastEMA(model.parameters(), strength=recipe.grokfast)
    changing = [model, optimizer, training, filter_gradients]
    penalised = list(prunable(model).values()) if recipe.penalty else []
    for step in steps(changing) if steps else range(1, recipe.steps + 1):
        loss = recipe.loss(model(data.train_inputs), data.train_labels)
        for weight in penalised:
            loss = loss + recipe.penalty * weight.abs().pow(recipe.penalty_power).sum()
        optimizer.zero_grad()
        loss.backward()
        if recipe.grokfast:
            filter_gradients()
        optimizer.step()
        if _due(step, training, recipe):
            _evaluate(step, loss.item(), model, data, recipe, training)
            if until in training.checkpoints:
                break
    if training.curve:
        training.checkpoints["last"] = _snapshot(model, *_last(training))
    return training


def _due(step: int, training: Training, recipe: Recipe) -> bool:
    # Memorisation takes tens of steps, generalisation thousands: look closely only at first.
    every = recipe.evaluate_every
    return step % every == 0 or (training.memorise_step is None and step % min(5, every) == 0)


def _evaluate(
    step: int,
    loss: float,
    model: nn.Module,
    data: Split,
    recipe: Recipe,
    training: Training,
) -> None:
    if not math.isfinite(loss):
        raise PeiraError(f"the loss is {loss} at step {step}: lower the learning rate")
    train_accuracy = accuracy(model, data.train_inputs, data.train_labels)
    test_accuracy = accuracy(model, data.test_inputs, data.test_labels)
    training.curve.append((step, loss, train_accuracy, test_accuracy))
    if train_accuracy >= recipe.memorise_at:
        training.memorise_step = training.memorise_step or step
    if test_accuracy >= recipe.generalise_at:
        training.generalise_step = training.generalise_step or step
    reached = {
        "memorised": training.memorise_step is not None,
        "transition": test_accuracy >= recipe.transition_at,
        "generalised": training.generalise_step is not None,
        "late": step >= LATE * (training.generalise_step or math.inf),
    }
    for name, now in reached.items():
        if now and name not in training.checkpoints:
            training.checkpoints[name] = _snapshot(model, *_last(training))


def _last(training: Training) -> tuple[int, float, float]:
    step, _, train_accuracy, test_accuracy = training.curve[-1]
    return step, train_accuracy, test_accuracy


def _snapshot(model: nn.Module, step: int, train: float, test: float) -> Checkpoint:
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    return Checkpoint(step, train, test, state)


@dataclass(frozen=True)
class Ticket:
    """A subnetwork at its initial weights.

    Attributes:
        masks: which weights are kept, by parameter name.
        initial_state: the weights before any training; what a ticket is rewound to.
        source: where the masks were taken.
    """

    masks: Masks
    initial_state: dict[str, Tensor]
    source: Checkpoint

    @property
    def keep(self) -> float:
        """Fraction of the weights kept."""
        return kept_fraction(self.masks)

    def network(self, model: nn.Module) -> nn.Module:
        """A copy of `model` with the initial weights, wearing the masks."""
        return apply_masks(_at(model, self.initial_state), self.masks)


def find_ticket(
    model: nn.Module,
    initial_state: Mapping[str, Tensor] | None,
    data: Split,
    prune: float = 0.6,
    when: When = "generalised",
    recipe: Recipe | None = None,
    scope: Scope = "global",
    steps: Steps | None = None,
) -> Ticket:
    """Train a copy of the model to a checkpoint and keep its largest weights.

    One shot, all matrices ranked together, embeddings included (paper, section 3).

    Args:
        model: any classifier; it is not changed.
        initial_state: the weights to start from and rewind to; the model's own if None.
        data: the task. The test part tells when the network has generalised: report accuracies on
            a third part where the ticket itself is to be judged.
        prune: fraction REMOVED, in (0, 1). The official code's "sparsity" is 1 - `prune`.
        when: checkpoint to prune: "memorised", "transition", "generalised" or "late".
        recipe: how to train.
        scope: rank all matrices together or each on its own.
        steps: see `train`.

    Raises:
        DataError: `prune` outside (0, 1), or labels that are not classes of the model.
        PeiraError: no such checkpoint within the budget; says the test accuracy reached.
    """
    keep = _keep(prune)
    start = dict(initial_state or model.state_dict())
    start = {name: value.detach().clone() for name, value in start.items()}
    training = train(_at(model, start), data, recipe or Recipe(), steps, until=when)
    source = training.checkpoint(when)
    names = prunable(model)
    return Ticket(magnitude_mask({n: source.state[n] for n in names}, keep, scope), start, source)


def retrain(
    ticket: Ticket,
    model: nn.Module,
    data: Split,
    recipe: Recipe | None = None,
    steps: Steps | None = None,
) -> tuple[nn.Module, Training]:
    """Train the ticket from the initial weights with a fresh optimiser.

    Args:
        ticket: from `find_ticket`.
        model: the architecture; it is not changed.
        data, recipe, steps: see `train`.

    Returns:
        The trained network, pruned weights at zero and masks taken off, and what training showed.
    """
    network = ticket.network(model)
    training = train(network, data, recipe or Recipe(), steps)
    return remove_masks(network), training


def condition(
    method: Method,
    model: nn.Module,
    data: Split,
    recipe: Recipe,
    keep: float,
    generator: torch.Generator,
    masks: Masks | None = None,
) -> nn.Module:
    """A copy of `model`, at its initial weights, as a method wants it before training.

    Args:
        method: "dense" and "grokfast": as it is. "ticket": under `masks`. "l1-dense", "l2-dense":
            scaled to the ticket's norm. "shuffled": masks permuted within each matrix. "redrawn":
            masks on permuted initial weights. "random", "snip", "grasp", "synflow": pruned at
            initialisation to the same `keep`.
        model: at the initial weights.
        data: the training part scores SNIP and GraSP.
        recipe: for its loss.
        keep: fraction kept by the methods that prune at initialisation.
        generator: draws permutations and random scores.
        masks: the ticket's, for the methods in `FROM_TICKET`.
    """
    network = copy.deepcopy(model)
    if method in ("dense", "grokfast"):
        return network
    if method in FROM_TICKET:
        if masks is None:
            raise DataError(f"method {method!r} needs the masks of a ticket")
        return _from_ticket(method, network, masks, generator)
    scores = _initial_scores(method, network, data, recipe, generator)
    return apply_masks(network, keep_top(scores, keep))


def _from_ticket(
    method: Method, network: nn.Module, masks: Masks, generator: torch.Generator
) -> nn.Module:
    state = network.state_dict()
    if method in ("l1-dense", "l2-dense"):
        network.load_state_dict(match_norm(state, masks, 1 if method == "l1-dense" else 2))
        return network
    if method == "shuffled":
        masks = shuffle_masks(masks, generator)
    if method == "redrawn":
        # Permuted entries: new weights of exactly the old distribution, for any initialiser.
        permuted = shuffle_masks({name: state[name] for name in masks}, generator)
        network.load_state_dict({**state, **permuted})
    return apply_masks(network, masks)


def _initial_scores(
    method: Method, network: nn.Module, data: Split, recipe: Recipe, generator: torch.Generator
) -> dict[str, Tensor]:
    batch = data.train_inputs, data.train_labels, recipe.loss
    if method == "random":
        return random_scores(prunable(network), generator)
    if method == "snip":
        return snip_scores(network, *batch)
    if method == "grasp":
        return grasp_scores(network, *batch)
    if method == "synflow":
        inputs = data.train_inputs
        return synflow_scores(
            network, torch.ones_like(inputs) if inputs.is_floating_point() else inputs
        )
    raise DataError("unknown method", value=method, expected=", ".join(METHODS))


def ticket_study(
    model_fn: Callable[[], nn.Module],
    data: Split,
    methods: Sequence[Method] = ("dense", "ticket", "l1-dense", "l2-dense", "shuffled", "random"),
    prune: float = 0.6,
    when: When = "generalised",
    recipe: Recipe | None = None,
    seeds: int = 3,
    watch: Callable[[str, int, Iterable[int]], Iterable[int]] | None = None,
) -> pd.DataFrame:
    """Compare a ticket with its controls on one task, over seeds of the initial weights.

    Args:
        model_fn: makes a network with new initial weights; called after seeding PyTorch.
        data: the task.
        methods: see `condition`.
        prune: fraction removed, in (0, 1).
        when: checkpoint that the ticket is taken from.
        recipe: the same for all methods; the same budget.
        seeds: number of initialisations.
        watch: called as `watch(method, seed, steps)`, returns the steps: for a progress bar.

    Returns:
        One row per method and seed: method, seed, memorise_step, generalise_step (NaN: never in
        `budget`), budget, best_test_accuracy, kept, speed_up (dense / this, NaN where censored).
    """
    import pandas as pd

    recipe, keep = recipe or Recipe(), _keep(prune)
    rows = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = model_fn()
        generator = torch.Generator().manual_seed(seed)

        def steps_of(method: str, seed: int = seed) -> Steps:
            plain = range(1, recipe.steps + 1)
            return lambda _: watch(method, seed, plain) if watch else plain

        until: When = "late" if when == "late" else "generalised"
        dense = train(copy.deepcopy(model), data, recipe, steps_of("dense"), until)
        masks = None
        if set(methods) & set(FROM_TICKET):
            state = dense.checkpoint(when).state
            masks = magnitude_mask({name: state[name] for name in prunable(model)}, keep)
        for method in methods:
            training, network_kept = dense, 1.0
            if method != "dense":
                network = condition(method, model, data, recipe, keep, generator, masks)
                network_kept = keep if method not in ("l1-dense", "l2-dense", "grokfast") else 1.0
                training = train(network, data, _recipe_of(method, recipe), steps_of(method))
            rows.append(_row(method, seed, training, dense, recipe, network_kept))
    return pd.DataFrame(rows)


def _recipe_of(method: Method, recipe: Recipe) -> Recipe:
    # Strength of the Grokfast paper for its modular tasks.
    return replace(recipe, grokfast=2.0) if method == "grokfast" else recipe


def _row(
    method: str, seed: int, training: Training, dense: Training, recipe: Recipe, kept: float
) -> dict[str, Any]:
    ours, theirs = training.generalise_step, dense.generalise_step
    return {
        "method": method,
        "seed": seed,
        "memorise_step": training.memorise_step or math.nan,
        "generalise_step": ours or math.nan,
        "budget": recipe.steps,
        "best_test_accuracy": training.best_test_accuracy,
        "kept": kept,
        "speed_up": theirs / ours if ours and theirs else math.nan,
    }


def _at(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    network = copy.deepcopy(model)
    try:
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise DataError(f"these weights are of another network: {reason}") from error
    return network


def _keep(prune: float) -> float:
    if not 0 < prune < 1:
        raise DataError("wrong fraction to prune", value=prune, expected="above 0 and below 1")
    return 1 - prune


def _check_labels(model: nn.Module, data: Split) -> None:
    with evaluating(model):
        classes = model(data.train_inputs[:1]).shape[1]
    for part, labels in (("training", data.train_labels), ("test", data.test_labels)):
        wrong = (labels < 0) | (labels >= classes)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise DataError(
                f"label outside the classes in the {part} part",
                row=row + 1,
                value=int(labels[row]),
                expected=f"0 to {classes - 1}",
            )
    missing = set(data.test_labels.tolist()) - set(data.train_labels.tolist())
    if missing:
        warnings.warn(
            f"{len(missing)} of the test part's labels never occur in training",
            UserWarning,
            stacklevel=3,
        )
