"""How link prediction on a stream is trained and judged: splits, negatives, epochs, metrics."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from peira.data import DataError
from peira.data.temporal import TemporalEdges


class StreamModel(Protocol):
    """A scorer that reads the past and is then shown the present. Node ids count from 1."""

    training: bool

    def __call__(
        self,
        src: Int[Tensor, " events"],
        candidates: Int[Tensor, "events options"],
        t: Float[Tensor, " events"],
    ) -> tuple[Float[Tensor, "events options"], Any]:
        """Logits of each source with its candidates, and what `write` wants back."""

    def write(
        self,
        src: Int[Tensor, " events"],
        dst: Int[Tensor, " events"],
        t: Float[Tensor, " events"],
        edge: Int[Tensor, " events"],
        read: Any = None,
    ) -> None:
        """Take in events, in order of time; `edge` is the row of their features."""

    def reset(self) -> None:
        """Forget the stream."""


class Batch(NamedTuple):
    """Events in order of time, as tensors; node ids and feature rows count from 1."""

    src: Int[Tensor, " events"]
    dst: Int[Tensor, " events"]
    t: Float[Tensor, " events"]
    edge: Int[Tensor, " events"]


def batches(
    edges: TemporalEdges, events: Int[np.ndarray, " events"], size: int, device: Any = "cpu"
) -> Iterator[Batch]:
    """The chosen events in batches of `size`, oldest first."""
    whole = Batch(
        torch.from_numpy(edges.src[events] + 1).to(device),
        torch.from_numpy(edges.dst[events] + 1).to(device),
        torch.from_numpy(edges.t[events]).to(device),
        torch.from_numpy(events + 1).to(device),
    )
    for start in range(0, len(events), size):
        yield Batch(*(part[start : start + size] for part in whole))


@dataclass(frozen=True)
class Split:
    """Which events train, validate and test.

    Attributes:
        train, val, test: positions of events.
        replay: events that fill the caches before the test; empty where they go on from validation.
        masked: nodes that training never sees (inductive).
    """

    train: Int[np.ndarray, " train"]
    val: Int[np.ndarray, " val"]
    test: Int[np.ndarray, " test"]
    replay: Int[np.ndarray, " replay"]
    masked: Int[np.ndarray, " masked"]


VALIDATION_FROM, TEST_FROM = 0.70, 0.85
MASKED_SHARE = 0.10


def transductive(edges: TemporalEdges) -> Split:
    """Train, validation and test by the 0.70 and 0.85 quantiles of time (section 5.1)."""
    val_time, test_time = np.quantile(edges.t, [VALIDATION_FROM, TEST_FROM])
    old, late = edges.t <= val_time, edges.t > test_time
    nothing = np.empty(0, np.int64)
    return _checked(edges, old, ~old & ~late, late, nothing, nothing)


def inductive(edges: TemporalEdges, rng: np.random.Generator) -> Split:
    """As `transductive`, with a tenth of the nodes, active after the 0.70 quantile, held out.

    Training and validation see no event of a masked node; the test is on later events that touch
    one, after a replay of everything before.
    """
    val_time, test_time = np.quantile(edges.t, [VALIDATION_FROM, TEST_FROM])
    old, late = edges.t <= val_time, edges.t > test_time
    active = np.unique(np.concatenate([edges.src[~old], edges.dst[~old]]))
    wanted = int(MASKED_SHARE * edges.num_nodes)
    if not wanted or not len(active):
        raise DataError(
            "too few nodes to hold out a tenth of them", edges.path, value=edges.num_nodes,
            expected="at least 10, some of them active after the 0.70 quantile of time",
        )  # fmt: skip
    masked = rng.choice(active, min(wanted, len(active)), replace=False)
    touched = np.isin(edges.src, masked) | np.isin(edges.dst, masked)
    replay = np.flatnonzero(~late)
    return _checked(
        edges, old & ~touched, ~old & ~late & ~touched, late & touched, replay, np.sort(masked)
    )


def _checked(
    edges: TemporalEdges,
    train: Bool[np.ndarray, " events"],
    val: Bool[np.ndarray, " events"],
    test: Bool[np.ndarray, " events"],
    replay: Int[np.ndarray, " replay"],
    masked: Int[np.ndarray, " masked"],
) -> Split:
    parts = {"training": train, "validation": val, "test": test}
    for name, part in parts.items():
        if not part.any():
            reason = " without (test: with) the masked nodes" if len(masked) else ""
            raise DataError(
                f"no {name} events{reason} between the 0.70 and 0.85 quantiles of time",
                edges.path, value=f"{len(edges)} events, {len(np.unique(edges.t))} distinct times",
                expected="a longer stream with more distinct times",
            )  # fmt: skip
    return Split(*(np.flatnonzero(part) for part in parts.values()), replay, masked)


class Negatives:
    """Draws wrong destinations uniformly over those that occur in the given events.

    As in the official code a draw may hit the true destination, and the pool of the test holds
    every destination of the test.
    """

    def __init__(self, edges: TemporalEdges, *events: Int[np.ndarray, " events"]) -> None:
        self.pool = np.unique(edges.dst[np.concatenate(events)]) + 1

    def draw(
        self, rng: np.random.Generator, events: Int[np.ndarray, " events"], each: int
    ) -> Int[Tensor, "events each"]:
        """`each` ids for each of the events."""
        return torch.from_numpy(rng.choice(self.pool, (len(events), each)))


class Decoys:
    """One fixed wrong destination per event of the stream."""

    def __init__(self, decoy: Int[np.ndarray, " events"]) -> None:
        self.decoy = decoy + 1

    def draw(
        self, rng: np.random.Generator, events: Int[np.ndarray, " events"], each: int = 1
    ) -> Int[Tensor, "events 1"]:
        """The decoy of each of the events."""
        return torch.from_numpy(self.decoy[events][:, None])


def average_precision(positive: Bool[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> float:
    """Sum over distinct scores, highest first, of (gain in recall) x (precision)."""
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    gained = np.diff(hits[last], prepend=0)
    return float((gained * hits[last] / (last + 1)).sum() / hits[-1])


def roc_auc(positive: Float[np.ndarray, " p"], negative: Float[np.ndarray, " n"]) -> float:
    """Chance that a positive scores above a negative; ties count half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / (2 * len(negative)))


@torch.no_grad()
def evaluate(
    model: StreamModel,
    edges: TemporalEdges,
    events: Int[np.ndarray, " events"],
    negatives: Negatives | Decoys,
    rng: np.random.Generator,
    *,
    batch_size: int = 32,
    each: int = 1,
    counted: Bool[np.ndarray, " stream"] | None = None,
    device: Any = "cpu",
) -> dict[str, float]:
    """Score events against wrong destinations, then show them to the model, batch by batch.

    Returns `ap`, `auc`, `accuracy` as means over batches (the official protocol), `pooled_ap` and
    `pooled_auc` over all scores at once, and `mrr`, the mean of 1 / rank among `each` + 1 (ties
    share the mean rank). `counted` marks the events of the stream that count; None counts all.
    """
    _eval_mode(model)
    means, scores = [], []
    for batch in batches(edges, events, batch_size, device):
        positions = batch.edge.cpu().numpy() - 1
        wrong = negatives.draw(rng, positions, each).to(device)
        logits, read = model(batch.src, torch.cat([batch.dst[:, None], wrong], 1), batch.t)
        model.write(*batch, read)
        kept = logits.cpu().numpy().astype(float)
        kept = kept if counted is None else kept[counted[positions]]
        if len(kept):
            means.append(_binary_metrics(kept))
            scores.append(kept)
    every = np.concatenate(scores)
    ap, auc, accuracy = np.mean(means, axis=0)
    above = (every[:, 1:] > every[:, :1]).sum(1)
    ties = (every[:, 1:] == every[:, :1]).sum(1)
    pooled = _binary_metrics(every)
    return {
        "ap": float(ap), "auc": float(auc), "accuracy": float(accuracy),
        "pooled_ap": pooled[0], "pooled_auc": pooled[1],
        "mrr": float((1 / (1 + above + ties / 2)).mean()),
    }  # fmt: skip


def _eval_mode(model: Any) -> None:
    if isinstance(model, nn.Module):
        model.eval()


def _binary_metrics(logits: Float[np.ndarray, "events options"]) -> tuple[float, float, float]:
    positive, negative = logits[:, 0], logits[:, 1:].ravel()
    truth = np.arange(logits.size) < len(positive)
    accuracy = ((positive > 0).sum() + (negative <= 0).sum()) / logits.size
    score = np.concatenate([positive, negative])
    return average_precision(truth, score), roc_auc(positive, negative), float(accuracy)


class Training:
    """Epochs over a stream with early stopping; the best epoch comes back with its caches.

    Each epoch starts from an empty stream, takes the training events in order of time with one
    wrong destination each, and goes on through validation. Loss: binary cross-entropy of true plus
    of wrong pairs. Training draws new negatives every epoch, validation the same ones.

    Args:
        model: an `nn.Module` that is a `StreamModel` and keeps what it read in its `state_dict`.
        edges, split: the stream and its parts.
        seed: of the negatives.
        learning_rate, batch_size, eval_batch_size: Adam's rate, events per step and per test batch.
        patience, tolerance: stop after `patience` epochs in which validation AP gained no more than
            the fraction `tolerance`.
    """

    def __init__(
        self,
        model: Any,
        edges: TemporalEdges,
        split: Split,
        *,
        seed: int = 0,
        learning_rate: float = 1e-4,
        batch_size: int = 100,
        eval_batch_size: int = 32,
        patience: int = 3,
        tolerance: float = 1e-3,
        device: Any = "cpu",
    ) -> None:
        self.model, self.edges, self.split, self.seed = model, edges, split, seed
        self.batch_size, self.eval_batch_size, self.device = batch_size, eval_batch_size, device
        self.patience, self.tolerance = patience, tolerance
        self.optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        self.epochs, self.best_epoch, self.best_ap = 0, 0, 0.0
        self.best: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether validation has stopped improving."""
        return self.best is not None and self.epochs - self.best_epoch >= self.patience

    def epoch(self) -> dict[str, float]:
        """One pass; returns the mean `loss` and the validation metrics as `val_...`."""
        self.epochs += 1
        loss = self._train(np.random.default_rng([self.seed, self.epochs]))
        found = evaluate(
            self.model, self.edges, self.split.val,
            Negatives(self.edges, self.split.train, self.split.val),
            np.random.default_rng([self.seed, 0]),
            batch_size=self.eval_batch_size, device=self.device,
        )  # fmt: skip
        if self.best is None or found["ap"] - self.best_ap > self.tolerance * self.best_ap:
            self.best_ap, self.best_epoch = found["ap"], self.epochs
            self.best = _copied(self.model.state_dict())
        return {"loss": loss, **{f"val_{name}": value for name, value in found.items()}}

    def _train(self, rng: np.random.Generator) -> float:
        self.model.train()
        self.model.reset()
        negatives = Negatives(self.edges, self.split.train)
        losses = []
        for batch in batches(self.edges, self.split.train, self.batch_size, self.device):
            wrong = negatives.draw(rng, batch.edge.cpu().numpy(), 1).to(self.device)
            losses.append(self.step(batch, wrong))
        return float(torch.stack(losses).mean())

    def step(self, batch: Batch, wrong: Int[Tensor, "events 1"]) -> Float[Tensor, ""]:
        """One step of the optimiser on a batch, then the batch enters the stream."""
        logits, read = self.model(batch.src, torch.cat([batch.dst[:, None], wrong], 1), batch.t)
        truth = torch.zeros_like(logits)
        truth[:, 0] = 1
        # Mean over all logits is half of BCE(true) + BCE(wrong).
        loss = 2 * nn.functional.binary_cross_entropy_with_logits(logits, truth)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.model.write(*batch, read)
        return loss.detach()

    def restore_best(self) -> None:
        """Back to the weights and caches of the best epoch, as they were after its validation."""
        if self.best is not None:
            self.model.load_state_dict(self.best)

    def test(
        self,
        negatives: Negatives | Decoys | None = None,
        *,
        each: int = 1,
        counted: Bool[np.ndarray, " stream"] | None = None,
    ) -> dict[str, float]:
        """Metrics of the best epoch on the test events; inductive: after the replay.

        Args as in `evaluate`; negatives None draws from all destinations of the three parts.
        """
        self.restore_best()
        if len(self.split.replay):
            self.model.reset()
            replay(self.model, self.edges, self.split.replay, self.eval_batch_size, self.device)
        return evaluate(
            self.model, self.edges, self.split.test,
            negatives or Negatives(self.edges, self.split.train, self.split.val, self.split.test),
            np.random.default_rng([self.seed, 2**32 - 1]),
            batch_size=self.eval_batch_size, each=each, counted=counted, device=self.device,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, for checkpoints."""
        return {
            "model": _copied(self.model.state_dict()),
            "optimizer": deepcopy(self.optimizer.state_dict()),
            "best": self.best,
            "counts": (self.epochs, self.best_epoch, self.best_ap),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = state["best"]
        self.epochs, self.best_epoch, self.best_ap = state["counts"]


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: part.clone() if isinstance(part, Tensor) else part for name, part in state.items()
    }


@torch.no_grad()
def replay(
    model: StreamModel,
    edges: TemporalEdges,
    events: Int[np.ndarray, " events"],
    batch_size: int,
    device: Any = "cpu",
) -> None:
    """Show events to the model without training it."""
    _eval_mode(model)
    for batch in batches(edges, events, batch_size, device):
        model.write(*batch)
