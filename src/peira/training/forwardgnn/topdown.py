"""The two learners of node classes that send signals down from the layers above.

All layers train together in time steps. What a layer hears from above is the state of the time
step before: a number, never a gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from peira.training.forwardgnn.convolutions import (
    Edges,
    Features,
    ForwardLayer,
    shared_products,
    unit_rows,
)
from peira.training.forwardgnn.graph import NodeGraph, augmented_columns
from peira.training.forwardgnn.learners import (
    NodeLearner,
    Settings,
    class_logits,
    forward_layers,
)

# States settle this many time steps before predictions count.
SETTLING_STEPS = 2
GRADIENT_NORM = 1.0

States = list[Features | None]


def hearing_above(settings: Settings, features: int, top: int) -> list[tuple[int, int]]:
    """Width in (below and above together) and out of every layer; `top` columns above the last."""
    sizes = [features] + [settings.hidden] * settings.layers + [top]
    return [(sizes[j] + sizes[j + 2], sizes[j + 1]) for j in range(settings.layers)]


def sweep(
    states: States, layers: int, alternating: bool, update: Callable[[int, States], Tensor]
) -> States:
    """One time step: a new state for every layer.

    Args:
        states: input, normalised state of each layer, and possibly a top, from the step before.
        layers: number of layers.
        alternating: update layers 1, 3, ... first and let 2, 4, ... see their new states;
            otherwise all see the old ones.
        update: state of layer j (from 0) given the states it may see.
    """
    groups = [range(0, layers, 2), range(1, layers, 2)] if alternating else [range(layers)]
    new = list(states)
    for group in groups:
        seen = list(new) if alternating else states
        for j in group:
            new[j + 1] = update(j, seen)
    return new


def neighbouring_blocks(states: States, j: int) -> list[Features]:
    """States below and above layer j; nothing above if that is None."""
    return [state for state in (states[j], states[j + 2]) if state is not None]


def first_states(
    layers: Sequence[ForwardLayer], widths: Sequence[int], x: Features, edges: Edges
) -> States:
    """Input and layer states of one bottom-up pass that hears zeros from above.

    Args:
        widths: width of what each layer hears from above (0 for nothing).
    """
    states: States = [x]
    for layer, width in zip(layers, widths, strict=True):
        above = [torch.zeros(edges.nodes, width, device=edges.index.device)] if width else []
        states.append(unit_rows(layer(layer.prepare([states[-1], *above], edges))))
    return states


class TopDownLearner(NodeLearner):
    """Layers that train together, one epoch being one time step."""

    # Largest norm of a layer's gradient.
    _clip: float | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._resumed: list[Tensor] | None = None
        self._states: States = []

    @property
    def stages(self) -> int:
        """One: all layers train at once."""
        return 1

    @abstractmethod
    def _first(self, x: Features, edges: Edges, graph: NodeGraph) -> States:
        """States before the first time step."""

    @abstractmethod
    def _embed(self, j: int, seen: States, edges: Edges) -> tuple[Tensor, Tensor]:
        """New output of layer j, and the embedding that its loss and its prediction read."""

    def _enter(self) -> None:
        x, self._edges = self._augmented(self.graph)
        first = self._first(x, self._edges, self.graph)
        if self._resumed is not None:
            # The input (and the labels above) are made anew; what the layers said is kept.
            first[1 : 1 + len(self.layers)] = self._resumed
        self._states = first

    def _extra_state(self) -> Any:
        return self._states[1 : 1 + len(self.layers)] or None

    def _load_extra_state(self, state: Any) -> None:
        self._resumed = state

    def _train(self) -> None:
        self._states = sweep(self._states, len(self.layers), self.settings.alternating, self._learn)

    def _learn(self, j: int, seen: States) -> Tensor:
        h, embedding = self._embed(j, seen, self._edges)
        nodes, virtual = embedding[self.graph.known], embedding[self.graph.nodes :]
        logits = class_logits(nodes, virtual, self.settings.temperature)
        self._descend(j, F.cross_entropy(logits, self.graph.known_y), self._clip)
        return unit_rows(h.detach())

    def _validation_scores(self) -> Tensor:
        return self.scores(self.graph, self.validation.nodes)

    def _probabilities(self, embedding: Tensor, graph: NodeGraph, nodes: Tensor) -> Tensor:
        virtual = embedding[graph.nodes :]
        return class_logits(embedding[nodes], virtual, self.settings.temperature).softmax(dim=1)


class TopToInput(TopDownLearner):
    """SF-Top2Input: a layer's input is the state below and, beside it, the state above.

    The labels stand above the last layer: one-hot for known nodes, uniform for the others, an
    identity row for every virtual node.
    """

    def _make_layers(self, settings: Settings, graph: NodeGraph) -> list[ForwardLayer]:
        first = graph.x.shape[1] + graph.classes * settings.append_label
        return forward_layers(settings, hearing_above(settings, first, graph.classes))

    def _first(self, x: Features, edges: Edges, graph: NodeGraph) -> States:
        heard = [self.settings.hidden] * (len(self.layers) - 1) + [graph.classes]
        top = unit_rows(augmented_columns(graph))
        return [*first_states(self.layers, heard, x, edges), top]

    def _embed(self, j: int, seen: States, edges: Edges) -> tuple[Tensor, Tensor]:
        layer = self.layers[j]
        h = layer(layer.prepare(neighbouring_blocks(seen, j), edges))
        return h, h

    @torch.no_grad()
    def scores(
        self, graph: NodeGraph, nodes: Int[Tensor, " wanted"]
    ) -> Float[Tensor, "wanted classes"]:
        """Class probabilities summed over layers and over the time steps after settling."""
        x, edges = self._augmented(graph)
        states = self._first(x, edges, graph)
        total = torch.zeros(len(nodes), graph.classes, device=graph.device)

        def listen(j: int, seen: States, counts: bool) -> Tensor:
            h, _ = self._embed(j, seen, edges)
            if counts:
                total.add_(self._probabilities(h, graph, nodes))
            return unit_rows(h)

        with shared_products():
            for step in range(self.settings.test_steps):
                update = partial(listen, counts=step >= SETTLING_STEPS)
                states = sweep(states, len(self.layers), self.settings.alternating, update)
        return total


class TopToLoss(TopDownLearner):
    """SF-Top2Loss: a layer's loss reads the mean of its output and the states above.

    Gradients are clipped to norm 1.
    """

    _clip = GRADIENT_NORM

    def _first(self, x: Features, edges: Edges, graph: NodeGraph) -> States:
        return first_states(self.layers, [0] * len(self.layers), x, edges)

    def _embed(self, j: int, seen: States, edges: Edges) -> tuple[Tensor, Tensor]:
        layer = self.layers[j]
        h = layer(layer.prepare([seen[j]], edges))
        return h, torch.stack([h, *seen[j + 2 :]]).mean(dim=0)

    @torch.no_grad()
    def scores(
        self, graph: NodeGraph, nodes: Int[Tensor, " wanted"]
    ) -> Float[Tensor, "wanted classes"]:
        """Class probabilities summed over layers, from states of one bottom-up pass."""
        x, edges = self._augmented(graph)
        states = self._first(x, edges, graph)
        if self.settings.bottom_up == "published":
            states = self._raw_states(self._raw_input(graph), edges)
        total = torch.zeros(len(nodes), graph.classes, device=graph.device)
        for j in range(len(self.layers)):
            total += self._probabilities(self._embed(j, states, edges)[1], graph, nodes)
        return total

    def _raw_states(self, x: Features, edges: Edges) -> States:
        """States of a pass whose layers see raw inputs, as the released code computes them."""
        states: States = [unit_rows(x)]
        h = x
        for layer in self.layers:
            h = layer(layer.prepare([h], edges))
            states.append(unit_rows(h))
        return states
