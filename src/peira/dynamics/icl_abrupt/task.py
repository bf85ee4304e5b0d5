"""The in-context classification task: pairs of item and label, then an item to classify.

Reddy, "The mechanistic basis of data dependence and abrupt learning in an in-context
classification task", arXiv 2312.03002, section 2. All sequences of a batch are drawn at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from peira.data.errors import DataError

__all__ = ["ICLTask", "Sequences", "project", "stack_sequences"]

Kind = Literal["train", "test", "ic", "ic2", "iwl"]
TEST_SETS: tuple[Kind, ...] = ("test", "ic", "ic2", "iwl")
# Batches that are drawn together; a fixed number, because the draws depend on it.
CHUNK = 4


@dataclass(frozen=True, eq=False)
class Sequences:
    """Sequences x_1, l_1, ..., x_N, l_N, x of tokens, and what is to be said of them.

    Attributes:
        tokens: (..., S, 2N+1, positions + D): one-hot position at a random shift, then content.
        labels: (..., S) label of the target.
        context_labels: (..., S, N) labels in the context.
        matches: (..., S, N) whether a pair of the context is of the target's class.
    """

    tokens: Float[Tensor, "*nets sequences tokens dim"]
    labels: Int[Tensor, "*nets sequences"]
    context_labels: Int[Tensor, "*nets sequences pairs"]
    matches: Bool[Tensor, "*nets sequences pairs"]

    def part(self, rows: slice) -> Sequences:
        """Some of the sequences of an unstacked batch."""
        return Sequences(*(value[rows] for value in vars(self).values()))


def stack_sequences(several: Sequence[Sequences]) -> Sequences:
    """Sequences of several networks, with a leading dimension for the network."""
    columns = zip(*(vars(sequences).values() for sequences in several), strict=True)
    return Sequences(*(torch.stack(column) for column in columns))


@dataclass(frozen=True, eq=False)
class ICLTask:
    """A law of sequences, and the classes and labels that one seed draws.

    Class k has label k mod L. An item of class k is (mu_k + eps eta) / sqrt(1 + eps^2), where mu_k
    and eta have N(0, 1/D) entries; label vectors too. In a bursty sequence N/B classes are there B
    times each and the target is of one of them; in any other one, context and target are
    independent. With `features` the items are those of a person, unseen ones in the test sets.

    Attributes:
        K: classes to train on.
        L: labels; K is a multiple.
        N: pairs in the context.
        B: burstiness, copies of a class in a bursty context; divides N, below N. 0 makes no
            sequence bursty (test sets that need a burst then have N/2 copies).
        D: dimension of items and label vectors.
        eps: within-class variation of simulated items.
        zipf: exponent of the classes' rank-frequency law.
        p_bursty: share of bursty sequences.
        p_novel: share of sequences with classes drawn afresh.
        max_pairs: the position code has 2 max_pairs + 1 places.
        novel_classes: classes drawn afresh for each batch of novel sequences and the test; with
            `features`, how many classes are kept out of the training for them.
        no_repeats: labels of a bursty context are distinct.
        seed: of class means and labels.
        features: (items, D), in place of simulated items; centred and scaled to mean length 1.
        class_ids: (items,) class of each, any whole numbers; needed with `features`.

    Raises:
        DataError: settings that do not fit together, a class with fewer than two items, NaN.
    """

    K: int = 2048
    L: int = 32
    N: int = 8
    B: int = 1
    D: int = 63
    eps: float = 0.1
    zipf: float = 0.0
    p_bursty: float = 1.0
    p_novel: float = 0.0
    max_pairs: int = 32
    novel_classes: int = 128
    no_repeats: bool = False
    seed: int = 0
    features: Float[Tensor, "items D"] | None = None
    class_ids: Int[Tensor, " items"] | None = None

    def __post_init__(self) -> None:
        if self.features is not None:
            _check_features(self.features, self.class_ids)
        _check(self)

    @property
    def places(self) -> int:
        """Length of the position code."""
        return 2 * self.max_pairs + 1

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return 2 * self.N + 1

    @property
    def dim(self) -> int:
        """Dimension of a token: position and content."""
        return self.places + self.D

    @property
    def copies(self) -> int:
        """How often a class is in a bursty context."""
        return self.B or self.N // 2

    @cached_property
    def label_vectors(self) -> Float[Tensor, "L D"]:
        """Content of the labels' tokens."""
        return _normal(_generator(self.seed, 2), self.L, self.D)

    @cached_property
    def class_means(self) -> Float[Tensor, "K D"]:
        """Means of the classes: drawn, or those of the features."""
        if self._pools is not None:
            return self._pools.means()[: self.K]
        return _normal(_generator(self.seed, 3), self.K, self.D)

    @cached_property
    def frequencies(self) -> Float[Tensor, " K"]:
        """Probability of each class, p_k ~ k^-zipf."""
        weights = torch.arange(1, self.K + 1, dtype=torch.float64) ** -self.zipf
        return weights / weights.sum()

    @cached_property
    def _pools(self) -> _Pools | None:
        if self.features is None or self.class_ids is None:
            return None
        return _Pools(self.features, self.class_ids, _generator(self.seed, 4))

    def sample(self, count: int, generator: torch.Generator, kind: Kind = "train") -> Sequences:
        """Draw sequences.

        Args:
            count: how many.
            generator: of all draws.
            kind: "train" and "test": the task's law. "ic": novel classes, all bursty. "ic2":
                trained classes whose labels are swapped, k + 1 for k, all bursty. "iwl": target
                independent of the context. All but "train" take a person's unseen items.
        """
        classes, target = self._classes(count, generator, kind)
        labels = classes % self.L
        if kind == "ic2":
            labels = (labels + 1) % self.L
        matches = classes[:, :-1] == classes[:, -1:]
        tokens = self._tokens(self._items(classes, target, generator, kind), labels, generator)
        return Sequences(tokens, labels[:, -1], labels[:, :-1], matches)

    def batches(self, step: int, batch: int, seed: int) -> Sequences:
        """The training batches of the chunk that `step` (from 1) is in, `CHUNK` x `batch`.

        A function of its arguments alone, so that a resumed training sees the same sequences.
        """
        chunk = (step - 1) // CHUNK
        return self.sample(CHUNK * batch, _generator(seed, 0, chunk))

    def test_sets(self, count: int) -> dict[Kind, Sequences]:
        """`count` sequences of each of the four test sets, the same on every call."""
        generator = _generator(self.seed, 1)
        return {kind: self.sample(count, generator, kind) for kind in TEST_SETS}

    def _classes(
        self, count: int, generator: torch.Generator, kind: Kind
    ) -> tuple[Int[Tensor, "S N+1"], Int[Tensor, " S"]]:
        """Classes of context and target, and the pair that the target was taken from (or -1)."""
        always = kind in ("ic", "ic2")
        p_bursty = 1.0 if always else 0.0 if kind == "iwl" or not self.B else self.p_bursty
        p_novel = 1.0 if kind == "ic" else self.p_novel if kind in ("train", "test") else 0.0
        context = self._burst(count, generator, self.K)
        free = self._draw((count, self.N + 1), generator)
        picked = torch.randint(self.N, (count,), generator=generator)
        bursty = torch.rand(count, generator=generator) < p_bursty
        if p_novel:
            novel = torch.rand(count, generator=generator) < p_novel
            fresh = self._burst(count, generator, self.novel_classes) + self.K
            context = torch.where(novel[:, None], fresh, context)
            bursty = bursty | novel
        target = context.gather(1, picked[:, None])
        classes = torch.where(bursty[:, None], torch.cat([context, target], dim=1), free)
        return classes, torch.where(bursty, picked, -1)

    def _burst(self, count: int, generator: torch.Generator, K: int) -> Int[Tensor, "S N"]:
        """Contexts of N/B classes, B times each, in random order."""
        kinds = self.N // self.copies
        if self.no_repeats:
            label = torch.rand(count, self.L, generator=generator).argsort(dim=1)[:, :kinds]
            place = torch.randint(K // self.L, (count, kinds), generator=generator)
            chosen = place * self.L + label
        elif K == self.K:
            chosen = self._draw((count, kinds), generator)
        else:
            chosen = torch.randint(K, (count, kinds), generator=generator)
        order = torch.rand(count, self.N, generator=generator).argsort(dim=1)
        return chosen.repeat(1, self.copies).gather(1, order)

    def _draw(self, shape: tuple[int, int], generator: torch.Generator) -> Int[Tensor, "S n"]:
        if not self.zipf:
            return torch.randint(self.K, shape, generator=generator)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
        return torch.searchsorted(self.frequencies.cumsum(0), uniform).clamp_(max=self.K - 1)

    def _items(
        self,
        classes: Int[Tensor, "S N+1"],
        picked: Int[Tensor, " S"],
        generator: torch.Generator,
        kind: Kind,
    ) -> Float[Tensor, "S N+1 D"]:
        if self._pools is not None:
            return self._pools.items(classes, picked, generator, unseen=kind != "train")
        means = self.class_means
        if kind == "ic" or self.p_novel:
            means = torch.cat([means, _normal(generator, self.novel_classes, self.D)])
        noise = torch.randn(*classes.shape, self.D, generator=generator)
        items = means[classes].add_(noise, alpha=self.eps / self.D**0.5)
        return items.div_((1 + self.eps**2) ** 0.5)

    def _tokens(
        self,
        items: Float[Tensor, "S N+1 D"],
        labels: Int[Tensor, "S N+1"],
        generator: torch.Generator,
    ) -> Float[Tensor, "S tokens dim"]:
        """Items and labels in turn, each with its place in the position code."""
        count = len(items)
        tokens = torch.zeros(count, self.length, self.dim)
        shifts = torch.randint(self.places - self.length + 1, (count, 1), generator=generator)
        places = shifts + torch.arange(self.length)
        tokens.scatter_(2, places[..., None], 1.0)
        tokens[:, ::2, self.places :] = items
        tokens[:, 1::2, self.places :] = self.label_vectors[labels[:, :-1]]
        return tokens


class _Pools:
    """A person's items by class, each class split into items to train on and to test on."""

    def __init__(
        self, features: Tensor, class_ids: Tensor, generator: torch.Generator, test: float = 0.25
    ) -> None:
        centred = features.float() - features.float().mean(dim=0)
        self.features = centred / centred.square().sum(dim=1).mean().sqrt().clamp(min=1e-12)
        _, number = class_ids.unique(return_inverse=True)
        shuffled = torch.randperm(int(number.max()) + 1, generator=generator)[number]
        mixed = torch.randperm(len(number), generator=generator)
        self.order = mixed[shuffled[mixed].argsort(stable=True)]
        self.sizes = shuffled.bincount()
        self.starts = self.sizes.cumsum(0) - self.sizes
        self.held_out = (self.sizes * test).long().clamp(min=1)

    def means(self) -> Float[Tensor, "classes D"]:
        """Mean of the items to train on, by class."""
        parts = self.features[self.order].split(self.sizes.tolist())
        return torch.stack(
            [part[held:].mean(dim=0) for part, held in zip(parts, self.held_out, strict=True)]
        )

    def items(
        self, classes: Tensor, picked: Tensor, generator: torch.Generator, unseen: bool
    ) -> Float[Tensor, "S N+1 D"]:
        """Items at random; the target is another one than the pair it was taken from."""
        held, whole = self.held_out[classes], self.sizes[classes]
        size = held if unseen else whole - held
        uniform = torch.rand(classes.shape, generator=generator)
        offset = (uniform * size).long().minimum(size - 1)
        copy = offset.gather(1, picked.clamp(min=0)[:, None])[:, 0]
        others = (size[:, -1] - 1).clamp(min=1)
        away = copy + 1 + (uniform[:, -1] * others).long().minimum(others - 1)
        offset[:, -1] = torch.where(picked >= 0, away % size[:, -1], offset[:, -1])
        first = self.starts[classes] + (0 if unseen else held)
        return self.features[self.order[first + offset]]


def project(
    features: Float[Tensor, "items raw"], D: int, seed: int = 0
) -> Float[Tensor, "items D"]:
    """Frozen Gaussian projection to D dimensions, of centred features."""
    generator = torch.Generator().manual_seed(seed)
    centred = features.float() - features.float().mean(dim=0)
    return centred @ torch.randn(features.shape[1], D, generator=generator) / D**0.5


def _generator(*seeds: int) -> torch.Generator:
    """A generator of its own for every tuple: PyTorch's takes 32 bits of a seed and no more."""
    mixed = np.random.SeedSequence(seeds).generate_state(1)[0]
    return torch.Generator().manual_seed(int(mixed))


def _normal(generator: torch.Generator, count: int, D: int) -> Tensor:
    return torch.randn(count, D, generator=generator) / D**0.5


def _check(task: ICLTask) -> None:
    def wrong(message: str, value: object, expected: str) -> DataError:
        return DataError(message, value=value, expected=expected)

    for name in ("K", "L", "N", "D", "novel_classes"):
        if getattr(task, name) < 1:
            raise wrong(f"{name} is too small", getattr(task, name), "1 or more")
    for name in ("p_bursty", "p_novel"):
        if not 0 <= getattr(task, name) <= 1:
            raise wrong(f"{name} is no share", getattr(task, name), "0 to 1")
    for name in ("eps", "zipf"):
        if not getattr(task, name) >= 0:
            raise wrong(f"{name} is negative or NaN", getattr(task, name), "0 or more")
    if task.K % task.L:
        raise wrong(f"K = {task.K} classes do not share L labels evenly", task.L, "L divides K")
    if task.novel_classes % task.L:
        raise wrong(
            f"{task.novel_classes} novel classes do not share L labels evenly",
            task.L,
            "L divides novel_classes",
        )
    if task.B and (task.N % task.B or task.B >= task.N):
        raise wrong(f"B does not fit N = {task.N} pairs", task.B, "a divisor of N below N, or 0")
    if not task.B and task.N < 2:
        raise wrong("N is too small", task.N, "2 or more")
    if task.max_pairs < task.N:
        raise wrong(f"N = {task.N} pairs do not fit max_pairs", task.max_pairs, "N or more")
    if task.no_repeats and task.N // task.copies > task.L:
        raise wrong(
            f"no_repeats needs {task.N // task.copies} distinct labels in a context",
            task.L,
            "as many labels or more",
        )
    if task.features is not None and task.class_ids is not None:
        _check_fit(task, task.features, task.class_ids)


def _check_features(features: Tensor, class_ids: Tensor | None) -> None:
    if features.ndim != 2:
        raise DataError(
            "features have the wrong shape", value=tuple(features.shape), expected="(items, D)"
        )
    if class_ids is None or class_ids.shape != features.shape[:1]:
        raise DataError(
            "class_ids do not belong to the features",
            value=None if class_ids is None else tuple(class_ids.shape),
            expected=f"({len(features)},)",
        )
    bad = (~features.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise DataError(
            "features must be finite",
            row=row + 1,
            column=column + 1,
            value=float(features[row, column]),
            expected="a number",
        )
    ids, counts = class_ids.unique(return_counts=True)
    if (counts < 2).any():
        raise DataError(
            f"class {int(ids[counts < 2][0])} has one item", value=1, expected="2 or more"
        )


def _check_fit(task: ICLTask, features: Tensor, class_ids: Tensor) -> None:
    if features.shape[1] != task.D:
        raise DataError("features have another D", value=features.shape[1], expected=str(task.D))
    classes = len(class_ids.unique())
    if classes < task.K + task.novel_classes:
        raise DataError(
            f"{classes} classes are not enough for {task.K} to train on and {task.novel_classes} "
            "novel ones",
            value=classes,
            expected=f"{task.K + task.novel_classes} or more",
        )
