"""What the forward learners are compared with: backpropagation, no graph, no learning."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import LabelPropagation

from peira.training.forwardgnn.convolutions import (
    Edges,
    Features,
    ForwardLayer,
    make_conv,
)
from peira.training.forwardgnn.graph import NodeGraph
from peira.training.forwardgnn.learners import NodeLearner, Settings, Training
from peira.training.forwardgnn.links import LinkLearner, pair_products


def backprop_layers(settings: Settings, features: int, outputs: int) -> list[ForwardLayer]:
    """ReLU layers and a linear one, as in PyG's `GCN`, `GraphSAGE` and `GAT` without dropout."""
    sizes = [features] + [settings.hidden] * (settings.layers - 1) + [outputs]
    last = settings.layers - 1
    return [
        ForwardLayer(
            make_conv(settings.conv, sizes[j], sizes[j + 1], last=j == last),
            settings.cache,
            activation=j < last,
        )
        for j in range(settings.layers)
    ]


class _EndToEnd(Training):
    """One loss at the top, its error sent back through all layers; one Adam for all."""

    def _trained_alone(self) -> list[nn.Module]:
        return [self.layers]

    @property
    def stages(self) -> int:
        """One: all layers train at once."""
        return 1

    def _output(self, x: Features, edges: Edges) -> Tensor:
        h: Features = x
        for layer in self.layers:
            h = layer(layer.prepare([h], edges))
        return h

    def _enter(self) -> None:
        """Nothing is constant but the graph."""


class BackpropNodes(_EndToEnd, NodeLearner):
    """Backpropagation with the same convolutions, widths and optimiser; cross entropy."""

    def _make_layers(self, settings: Settings, graph: NodeGraph) -> list[ForwardLayer]:
        return backprop_layers(settings, graph.x.shape[1], graph.classes)

    def _train(self) -> None:
        logits = self._output(self.graph.x, self.graph.edges)[self.graph.known]
        self._descend(0, F.cross_entropy(logits, self.graph.known_y))

    def _validation_scores(self) -> Tensor:
        return self.scores(self.graph, self.validation.nodes)

    @torch.no_grad()
    def scores(
        self, graph: NodeGraph, nodes: Int[Tensor, " wanted"]
    ) -> Float[Tensor, "wanted classes"]:
        """Class probabilities."""
        return self._output(graph.x, graph.edges)[nodes].softmax(dim=1)


class BackpropLinks(_EndToEnd, LinkLearner):
    """Backpropagation with the same convolutions; binary cross entropy on inner products."""

    def _make_layers(self, settings: Settings, features: int) -> list[ForwardLayer]:
        return backprop_layers(settings, features, settings.hidden)

    def _train(self) -> None:
        z = self._output(self.data.x, self.data.edges)
        logits = pair_products(z, self.data.pairs).sum(dim=1)
        self._descend(0, F.binary_cross_entropy_with_logits(logits, self.data.labels))

    def _validate(self) -> float | None:
        if self.validation is None:
            return None
        data = self.validation
        return self._auc(self.scores(data.x, data.edges, data.pairs))

    @torch.no_grad()
    def scores(
        self, x: Features, edges: Edges, pairs: Int[Tensor, "2 pairs"]
    ) -> Float[Tensor, " pairs"]:
        """Sigmoid of the inner product, in (0, 1)."""
        return pair_products(self._output(x, edges), pairs).sum(dim=1).sigmoid()


def propagated_labels(
    graph: NodeGraph, nodes: Int[Tensor, " wanted"], rounds: int = 50, share: float = 0.9
) -> Float[Tensor, "wanted classes"]:
    """Scores of label propagation (Zhu and Ghahramani 2002): known classes spread over edges."""
    y = torch.zeros(graph.nodes, dtype=torch.long, device=graph.device)
    y[graph.known] = graph.known_y
    known = torch.zeros(graph.nodes, dtype=torch.bool, device=graph.device)
    known[graph.known] = True
    spread = LabelPropagation(num_layers=rounds, alpha=share)
    return spread(y, graph.edges.index, mask=known)[nodes]
