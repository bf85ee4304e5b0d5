"""Layer-local learners of links: bottom-up (FL), with goodness (FF), and top-down."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from peira.training.forwardgnn.convolutions import (
    Edges,
    Features,
    ForwardLayer,
    shared_products,
    unit_rows,
)
from peira.training.forwardgnn.learners import (
    Settings,
    Training,
    forward_layers,
    goodness_loss,
    stacked,
)
from peira.training.forwardgnn.topdown import (
    SETTLING_STEPS,
    States,
    first_states,
    hearing_above,
    neighbouring_blocks,
    sweep,
)


@dataclass(frozen=True)
class LinkData:
    """Pairs of nodes to judge, and the graph through which messages pass.

    Attributes:
        x: node features.
        edges: arcs that messages take.
        pairs: first and second node of each pair.
        labels: 1 for a link, 0 for none.
    """

    x: Features
    edges: Edges
    pairs: Int[Tensor, "2 pairs"]
    labels: Float[Tensor, " pairs"]


def pair_products(
    z: Float[Tensor, "nodes width"], pairs: Int[Tensor, "2 pairs"]
) -> Float[Tensor, "pairs width"]:
    """z_u * z_v for every pair (u, v); its sum over columns is the score of the pair."""
    return z[pairs[0]] * z[pairs[1]]


def link_metrics(labels: Any, scores: Any) -> dict[str, float]:
    """ROC-AUC, average precision and NDCG (ties ignored, one ranking of all pairs).

    Args:
        labels: 1 for a link, 0 for none.
        scores: larger for likelier links.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    return {
        "auc": float(roc_auc_score(labels, scores)),
        "average_precision": float(average_precision_score(labels, scores)),
        "ndcg": float(ndcg_score(labels[None], scores[None], ignore_ties=True)),
    }


class LinkLearner(Training):
    """A learner of links.

    Args:
        settings: see `Settings`.
        data: training pairs and graph.
        validation: pairs and graph for early stopping (by AUC), if any.
    """

    def __init__(
        self, settings: Settings, data: LinkData, validation: LinkData | None = None
    ) -> None:
        super().__init__(settings, self._make_layers(settings, data.x.shape[1]))
        self.data, self.validation = data, validation
        self.to(data.edges.index.device)

    def _make_layers(self, settings: Settings, features: int) -> list[ForwardLayer]:
        return forward_layers(settings, stacked(settings, features))

    def _auc(self, scores: Tensor) -> float:
        return float(roc_auc_score(self.validation.labels.cpu(), scores.cpu()))


class BottomUpLinks(LinkLearner):
    """FL: every layer scores pairs by the inner product of its outputs.

    Binary cross entropy on the score; a prediction is the mean over layers of sigmoid(score).
    """

    @property
    def stages(self) -> int:
        """One stage per layer."""
        return len(self.layers)

    def _trained_module(self) -> torch.nn.Module:
        return self.layers[self.stage]

    def _loss(self, products: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(products.sum(dim=1), self.data.labels)

    def _logits(self, products: Tensor) -> Tensor:
        return products.sum(dim=1)

    def _enter(self) -> None:
        layer, below = self.layers[self.stage], self.layers[: self.stage]
        h = self._outputs(below, self.data)[-1]
        self._train_input = layer.prepare([unit_rows(h)], self.data.edges)
        if self.validation is not None:
            outputs = self._outputs(below, self.validation)
            self._base = sum(
                (self._likelihood(z, self.validation.pairs) for z in outputs[1:]),
                torch.zeros(len(self.validation.labels), device=self.data.labels.device),
            )
            h = unit_rows(outputs[-1])
            self._validation_input = layer.prepare([h], self.validation.edges)

    def _outputs(self, layers: torch.nn.ModuleList, data: LinkData) -> list[Features]:
        outputs: list[Features] = [data.x]
        for layer in layers:
            outputs.append(layer(layer.prepare([unit_rows(outputs[-1])], data.edges)))
        return outputs

    def _likelihood(self, z: Tensor, pairs: Tensor) -> Tensor:
        return self._logits(pair_products(z, pairs)).sigmoid()

    def _train(self) -> None:
        z = self.layers[self.stage](self._train_input)
        self._descend(self.stage, self._loss(pair_products(z, self.data.pairs)))

    def _validate(self) -> float | None:
        if self.validation is None:
            return None
        with torch.no_grad():
            z = self.layers[self.stage](self._validation_input)
            return self._auc(self._base + self._likelihood(z, self.validation.pairs))

    @torch.no_grad()
    def scores(
        self, x: Features, edges: Edges, pairs: Int[Tensor, "2 pairs"]
    ) -> Float[Tensor, " pairs"]:
        """Mean over layers of sigmoid(score), in (0, 1)."""
        data = LinkData(x, edges, pairs, torch.empty(0))
        outputs = self._outputs(self.layers, data)[1:]
        return torch.stack([self._likelihood(z, pairs) for z in outputs]).mean(dim=0)


class GoodnessLinks(BottomUpLinks):
    """FF: the goodness sum_k (z_uk z_vk)^2 of links is pushed above theta, of non-links below."""

    def _loss(self, products: Tensor) -> Tensor:
        link = self.data.labels == 1
        return goodness_loss(products[link], [products[~link]], self.settings.theta)

    def _logits(self, products: Tensor) -> Tensor:
        return products.square().sum(dim=1) - self.settings.theta


class TopDownLinks(LinkLearner):
    """FL-TopDown: as FL, but a layer also hears the state above; nothing is above the top."""

    def __init__(
        self, settings: Settings, data: LinkData, validation: LinkData | None = None
    ) -> None:
        super().__init__(settings, data, validation)
        self._heard = [settings.hidden] * (settings.layers - 1) + [0]
        self._resumed: list[Tensor] | None = None
        self._states: States = []

    def _make_layers(self, settings: Settings, features: int) -> list[ForwardLayer]:
        return forward_layers(settings, hearing_above(settings, features, 0))

    @property
    def stages(self) -> int:
        """One: all layers train at once."""
        return 1

    def _first(self, x: Features, edges: Edges) -> States:
        return [*first_states(self.layers, self._heard, unit_rows(x), edges), None]

    def _enter(self) -> None:
        self._states = self._first(self.data.x, self.data.edges)
        if self._resumed is not None:
            self._states[1:-1] = self._resumed

    def _extra_state(self) -> Any:
        return self._states[1:-1] or None

    def _load_extra_state(self, state: Any) -> None:
        self._resumed = state

    def _output(self, j: int, seen: States, edges: Edges) -> Tensor:
        layer = self.layers[j]
        return layer(layer.prepare(neighbouring_blocks(seen, j), edges))

    def _train(self) -> None:
        self._states = sweep(self._states, len(self.layers), self.settings.alternating, self._learn)

    def _learn(self, j: int, seen: States) -> Tensor:
        z = self._output(j, seen, self.data.edges)
        logits = pair_products(z, self.data.pairs).sum(dim=1)
        self._descend(j, F.binary_cross_entropy_with_logits(logits, self.data.labels))
        return unit_rows(z.detach())

    def _validate(self) -> float | None:
        if self.validation is None:
            return None
        data = self.validation
        return self._auc(self.scores(data.x, data.edges, data.pairs))

    @torch.no_grad()
    def scores(
        self, x: Features, edges: Edges, pairs: Int[Tensor, "2 pairs"]
    ) -> Float[Tensor, " pairs"]:
        """Mean of sigmoid(score) over layers and over the time steps after settling."""
        states, parts = self._first(x, edges), []

        def listen(j: int, seen: States, counts: bool) -> Tensor:
            z = self._output(j, seen, edges)
            if counts:
                parts.append(pair_products(z, pairs).sum(dim=1).sigmoid())
            return unit_rows(z)

        with shared_products():
            for step in range(self.settings.test_steps):
                update = partial(listen, counts=step >= SETTLING_STEPS)
                states = sweep(states, len(self.layers), self.settings.alternating, update)
        return torch.stack(parts).mean(dim=0)
