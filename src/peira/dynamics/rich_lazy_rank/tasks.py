"""The paper's tasks: three of neuroscience, as neurogym makes them, and images row by row.

Trials are those of neurogym's PerceptualDecisionMaking, DelayMatchSample and ContextDecisionMaking
as they were when the paper was written, with the timing that the official code sets: steps of
dt = 100 ms, 8 of them, the answer at the last. Noise has standard deviation 1/sqrt(dt) = 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from peira.data.errors import DataError
from peira.dynamics.rich_lazy_rank.network import RateRNN

Name = Literal["2AF", "DMS", "CXT", "digits", "sMNIST"]
Trials = tuple[Float[Tensor, "n time inputs"], Int[Tensor, "n time"]]

STEPS = 8
NOISE = 0.1
COHERENCES = (0.0, 6.4, 12.8, 25.6, 51.2)
CONTEXT_COHERENCES = (5.0, 15.0, 50.0)


def two_alternatives(n: int, generator: torch.Generator) -> Trials:
    """2AF: which of two noisy stimuli was stronger, seen for 700 ms, answered in 100 ms.

    Channels: fixation (on until the answer), two stimuli of mean 0.5 +- coherence/200, coherence in
    percent. Answers: 0 while fixating, then 1 or 2.
    """
    choice = torch.randint(2, (n,), generator=generator)
    x = torch.zeros(n, STEPS, 3)
    x[:, :-1, 0] = 1
    x[:, :-1, 1:] = _stimulus(choice, _coherence(COHERENCES, n, generator))[:, None]
    x[:, :-1, 1:] += NOISE * torch.randn(n, STEPS - 1, 2, generator=generator)
    return x, _answers(choice)


def delayed_match(n: int, generator: torch.Generator) -> Trials:
    """DMS: is the test (100 ms) the sample (100 ms) of 500 ms ago? Answer in 100 ms.

    Channels: fixation, two directions of the stimulus, 1 and 0 with noise. Answers: 0, then 1 for a
    match or 2 for none.
    """
    different = torch.randint(2, (n,), generator=generator)
    sample = torch.randint(2, (n,), generator=generator)
    x = torch.zeros(n, STEPS, 3)
    x[:, :-1, 0] = 1
    directions = torch.eye(2)
    for step, shown in ((0, sample), (STEPS - 2, (sample + different) % 2)):
        noise = NOISE * torch.randn(n, 2, generator=generator)
        x[:, step, 1:] = directions[shown] + noise
    return x, _answers(different)


def context_decision(n: int, generator: torch.Generator) -> Trials:
    """CXT: of two stimuli (200 ms), decide by the one that the context names, 500 ms later.

    Channels: fixation, two of each of two modalities (mean 0.5 +- coherence/200), two of context,
    on for the whole trial. Noise is on all seven while stimuli are. Answers as in 2AF.
    """
    choices = torch.randint(2, (n, 2), generator=generator)
    context = torch.randint(2, (n,), generator=generator)
    x = torch.zeros(n, STEPS, 7)
    x[:, :-1, 0] = 1
    for modality in range(2):
        stimulus = _stimulus(choices[:, modality], _coherence(CONTEXT_COHERENCES, n, generator))
        x[:, :2, 1 + 2 * modality : 3 + 2 * modality] = stimulus[:, None]
    x[torch.arange(n), :, 5 + context] = 1
    x[:, :2] += NOISE * torch.randn(n, 2, 7, generator=generator)
    return x, _answers(choices[torch.arange(n), context])


def _coherence(levels: tuple[float, ...], n: int, generator: torch.Generator) -> Tensor:
    return torch.tensor(levels)[torch.randint(len(levels), (n,), generator=generator)]


def _stimulus(choice: Tensor, coherence: Tensor) -> Float[Tensor, "n 2"]:
    towards = torch.where(choice == 0, coherence, -coherence) / 200
    return torch.stack([0.5 + towards, 0.5 - towards], dim=1)


def _answers(choice: Tensor) -> Int[Tensor, "n time"]:
    y = torch.zeros(len(choice), STEPS, dtype=torch.long)
    y[:, -1] = 1 + choice
    return y


# Trials that the loss is measured on, and batches of trials that laziness is measured on.
VALIDATION = 256
PROBE_BATCHES = 10

TRIALS = {"2AF": two_alternatives, "DMS": delayed_match, "CXT": context_decision}


@dataclass(frozen=True)
class Task:
    """What is trained on, one batch at a time, and what losses are compared on.

    Attributes:
        name: which one.
        inputs, outputs: channels and classes.
        images: training images (n, time, inputs) and classes; None for trials made as they go.
        held_out: images that only the loss is measured on.
    """

    name: Name
    inputs: int
    outputs: int
    images: tuple[Tensor, Tensor] | None = None
    held_out: tuple[Tensor, Tensor] | None = None

    @property
    def read(self) -> Literal["every", "last"]:
        """Steps whose outputs the loss and the kernel take."""
        return "last" if self.images else "every"

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n fresh trials, or n different training images; inputs and labels."""
        if self.images is None:
            return TRIALS[self.name](n, generator)
        inputs, labels = self.images
        chosen = torch.randperm(len(inputs), generator=generator)[:n]
        return inputs[chosen], labels[chosen]

    def validation(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What the loss is measured on: n fresh trials, or the held-out images."""
        return self.held_out if self.held_out is not None else self.batch(n, generator)


def make_task(name: Name, generator: torch.Generator) -> Task:
    """The task of that name; `generator` splits images, 5/6 to train (MNIST: 9,000 of 10,000).

    Raises:
        DataError: no such task.
        MissingData: MNIST's test file is not at hand.
    """
    if name in TRIALS:
        return Task(name, 7 if name == "CXT" else 3, 3)
    if name not in ("digits", "sMNIST"):
        raise DataError("task", value=name, expected=f"{', '.join(TRIALS)}, digits or sMNIST")
    pixels, labels = digit_rows() if name == "digits" else mnist_rows()
    order = torch.randperm(len(pixels), generator=generator)
    train = 9000 if name == "sMNIST" else len(pixels) * 5 // 6
    parts = [(pixels[part], labels[part]) for part in (order[:train], order[train:])]
    return Task(name, pixels.shape[2], 10, *parts)


def digit_rows() -> tuple[Tensor, Tensor]:
    """Scikit-learn's 1,797 digits as 8 steps of 8 pixels in [0, 1], top row first."""
    from peira.data.images import digits

    pixels, labels = digits()
    return torch.from_numpy(pixels / 16).float(), torch.from_numpy(labels.astype("int64"))


def mnist_rows() -> tuple[Tensor, Tensor]:
    """MNIST's 10,000 test-file images as 28 steps of 28 pixels in [0, 1], top row first."""
    from peira.data.images import mnist

    pixels, labels = mnist()
    return torch.from_numpy(pixels / 255).float(), torch.from_numpy(labels.astype("int64"))


@dataclass(frozen=True)
class Problem:
    """What all networks of one task and seed share.

    Attributes:
        task: what they are trained on.
        probe: inputs, fixed before training, that laziness is measured on: ten batches of trials
            as published, or one of images.
        validation: inputs and labels that losses are compared on.
    """

    task: Task
    probe: Tensor
    validation: tuple[Tensor, Tensor]

    @classmethod
    def make(cls, name: Name, batch_size: int, seed: int) -> Problem:
        """Draw it from streams that training does not use."""
        task = make_task(name, stream(seed, "split"))
        batches = PROBE_BATCHES if task.images is None else 1
        probe, _ = task.batch(batches * batch_size, stream(seed, "probe"))
        return cls(task, probe, task.validation(VALIDATION, stream(seed, "validation")))

    def network(self, hidden: int, seed: int) -> RateRNN:
        """The seed's network for this task; every condition starts from these outer weights."""
        task = self.task
        return RateRNN(
            task.inputs, hidden, task.outputs, read=task.read, generator=stream(seed, "network")
        )


def stream(seed: int, purpose: str) -> torch.Generator:
    """Random numbers of one purpose and seed, apart from those of training."""
    purposes = (
        "split", "probe", "validation", "network", "base", "structure", "shuffle", "training"
    )  # fmt: skip
    number = np.random.SeedSequence([seed, 1 + purposes.index(purpose)]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(number))
