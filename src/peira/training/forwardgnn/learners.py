"""Layer-local training and the three bottom-up learners: single forward and two forward-forward.

A learner is the network and its training in one: `step()` does one epoch (or time step), `done`
says that training has ended, `scores` reads a graph. No learner ever propagates an error from one
layer to another: every layer sees a detached input and has a loss and an Adam of its own.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from peira.training.forwardgnn.convolutions import (
    Conv,
    Edges,
    Features,
    ForwardLayer,
    make_conv,
    shared_products,
    unit_blocks,
    unit_rows,
)
from peira.training.forwardgnn.graph import (
    NodeGraph,
    label_columns,
    virtual_edges,
    virtual_input,
    wrong_classes,
)

# Normalised input columns, in blocks side by side, and the edges.
Pass: TypeAlias = tuple[list[Features], Edges]


@dataclass(frozen=True)
class Settings:
    """What all learners share; the defaults are the published ones.

    Attributes:
        conv: kind of convolution.
        hidden: width of every layer.
        layers: number of layers L.
        epochs: epochs per layer; time steps for the top-down learners.
        val_every: epochs between two looks at the validation nodes.
        patience: looks without improvement after which a layer stops.
        lr: learning rate of Adam.
        weight_decay: L2 penalty inside Adam.
        theta: threshold of the goodness.
        negatives: negative sets; None takes all wrong classes.
        temperature: divides the logits of the single-forward learners.
        alternating: top-down learners update layers 1, 3, ... and then 2, 4, ...
        test_steps: time steps of a top-down prediction.
        append_label: put label columns beside the features of the virtual-node graph.
        bottom_up: how `top2loss` computes the states above a layer when it predicts: from
            normalised inputs as in training, or from raw ones as the released code does.
        cache: propagate constant inputs once per layer.
    """

    conv: Conv = "gcn"
    hidden: int = 128
    layers: int = 2
    epochs: int = 1000
    val_every: int = 2
    patience: int = 100
    lr: float = 1e-3
    weight_decay: float = 5e-4
    theta: float = 2.0
    negatives: int | None = None
    temperature: float = 1.0
    alternating: bool = True
    test_steps: int = 10
    append_label: bool = False
    bottom_up: Literal["normalised", "published"] = "normalised"
    cache: bool = True


@dataclass(frozen=True)
class Validation:
    """Nodes on which early stopping looks, with their true classes."""

    nodes: Int[Tensor, " validation"]
    y: Int[Tensor, " validation"]


def stacked(settings: Settings, features: int) -> list[tuple[int, int]]:
    """Width in and out of every layer of a plain stack."""
    sizes = [features] + [settings.hidden] * settings.layers
    return list(pairwise(sizes))


def forward_layers(settings: Settings, widths: Sequence[tuple[int, int]]) -> list[ForwardLayer]:
    """Layers of these widths in and out."""
    return [ForwardLayer(make_conv(settings.conv, *width), settings.cache) for width in widths]


def goodness_loss(
    positive: Float[Tensor, "nodes width"],
    negatives: Sequence[Float[Tensor, "nodes width"]],
    theta: float,
) -> Float[Tensor, ""]:
    """Forward-forward loss: goodness G = sum_k h_k^2 above theta for positives, below otherwise.

    BCE(G - theta, 1) on the positives plus the mean over negative sets of BCE(G - theta, 0).
    """

    def cross_entropy(h: Tensor, target: float) -> Tensor:
        logits = h.square().sum(dim=1) - theta
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    wrong = torch.stack([cross_entropy(h, 0.0) for h in negatives])
    return cross_entropy(positive, 1.0) + wrong.mean()


class EarlyStopping:
    """Remembers the best weights and says when to stop looking for better ones."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best: float | None = None
        self.weights: dict[str, Tensor] = {}
        self.waited = 0

    def look(self, score: float, module: nn.Module) -> bool:
        """Take in a validation score (larger is better); True if training should stop."""
        if self.best is None or score > self.best:
            self.best, self.waited = score, 0
            self.weights = copy.deepcopy(module.state_dict())
        else:
            self.waited += 1
        return self.waited >= self.patience

    def restore(self, module: nn.Module) -> None:
        """Put the best weights back."""
        if self.best is not None:
            module.load_state_dict(self.weights)


class Training(nn.Module, ABC):
    """Steps, early stopping and resume, for learners of nodes and of links.

    Attributes:
        layers: the layers, each trained on its own.
        done: whether training has ended.
        layer_scores: validation score of the accumulated prediction after each stage.
        losses: the last loss of each layer.
    """

    def __init__(self, settings: Settings, layers: Sequence[ForwardLayer]) -> None:
        super().__init__()
        self.settings = settings
        self.layers = nn.ModuleList(layers)
        self.optimizers = [
            # With wide sparse inputs an unfused step takes longer than the rest of the epoch.
            torch.optim.Adam(
                group.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
            )
            for group in self._trained_alone()
        ]
        self.stage = self.epoch = 0
        self.layer_scores: list[float] = []
        self.losses = [float("nan")] * len(self.optimizers)
        self._stopping = EarlyStopping(settings.patience)
        self._entered = False

    @property
    @abstractmethod
    def stages(self) -> int:
        """Stages of training: the layers, or 1 if they train together."""

    @abstractmethod
    def _enter(self) -> None:
        """Prepare the stage: everything that stays constant while it lasts."""

    @abstractmethod
    def _train(self) -> None:
        """One epoch of the stage."""

    @abstractmethod
    def _validate(self) -> float | None:
        """Score of the accumulated prediction so far on validation data; None if there is none."""

    def _trained_alone(self) -> Sequence[nn.Module]:
        """The parts that have a loss and an optimiser of their own."""
        return list(self.layers)

    def _trained_module(self) -> nn.Module:
        """What early stopping restores at the end of a stage."""
        return self

    @property
    def done(self) -> bool:
        """Whether every stage has ended."""
        return self.stage >= self.stages

    @property
    def max_steps(self) -> int:
        """Upper bound on the number of calls of `step`."""
        return self.stages * self.settings.epochs

    def step(self) -> dict[str, float]:
        """One epoch: the loss of each layer that was trained, and the validation score if due."""
        if not self._entered:
            with torch.no_grad():
                self._enter()
            self._entered = True
        stage = self.stage
        self._train()
        self.epoch += 1
        due = self.epoch % self.settings.val_every == 0 or self.epoch == self.settings.epochs
        score = self._validate() if due else None
        stop = score is not None and self._stopping.look(score, self._trained_module())
        if stop or self.epoch >= self.settings.epochs:
            self._leave()
        record = {f"loss_{j + 1}": loss for j, loss in enumerate(self.losses) if loss == loss}
        if score is not None:
            record[f"validation_{stage + 1}"] = score
        return record

    def finish(self) -> None:
        """End training now, each stage with the best weights that it has had."""
        while not self.done:
            if not self._entered:
                with torch.no_grad():
                    self._enter()
            self._leave()

    def _leave(self) -> None:
        self._stopping.restore(self._trained_module())
        score = self._validate()
        self.layer_scores.append(float("nan") if score is None else score)
        self._stopping = EarlyStopping(self.settings.patience)
        self.stage, self.epoch, self._entered = self.stage + 1, 0, False

    def _descend(self, layer: int, loss: Tensor, clip: float | None = None) -> None:
        """One Adam step of one layer on its own loss."""
        optimizer = self.optimizers[layer]
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(self.layers[layer].parameters(), clip)
        optimizer.step()
        self.losses[layer] = loss.item()

    def training_state(self) -> dict[str, Any]:
        """Everything that another learner of the same settings and graph needs to go on."""
        return {
            "network": self.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": (self.stage, self.epoch, self.layer_scores, self.losses),
            "stopping": vars(self._stopping),
            "extra": self._extra_state(),
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Go on where `training_state` was taken."""
        self.load_state_dict(state["network"])
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self.stage, self.epoch, self.layer_scores, self.losses = copy.deepcopy(state["progress"])
        vars(self._stopping).update(copy.deepcopy(state["stopping"]))
        self._load_extra_state(state["extra"])
        self._entered = False

    def _extra_state(self) -> Any:
        return None

    def _load_extra_state(self, state: Any) -> None:
        """For learners whose stage begins from more than the weights."""


class NodeLearner(Training):
    """A learner of node classes.

    Args:
        settings: see `Settings`.
        graph: the training graph; its known classes are the training classes.
        validation: nodes for early stopping, if any.
    """

    def __init__(
        self, settings: Settings, graph: NodeGraph, validation: Validation | None = None
    ) -> None:
        super().__init__(settings, self._make_layers(settings, graph))
        self.graph, self.validation = graph, validation
        self._own: tuple[Features, Edges] | None = None
        virtual = torch.randn(graph.classes, graph.x.shape[1])
        self.register_buffer("virtual_features", virtual)
        self.to(graph.device)

    def _make_layers(self, settings: Settings, graph: NodeGraph) -> list[ForwardLayer]:
        first = graph.x.shape[1] + graph.classes * settings.append_label
        return forward_layers(settings, stacked(settings, first))

    @abstractmethod
    def scores(
        self, graph: NodeGraph, nodes: Int[Tensor, " wanted"]
    ) -> Float[Tensor, "wanted classes"]:
        """Accumulated score of every class for the wanted nodes; none of them may be known."""

    def _raw_input(self, graph: NodeGraph) -> Features:
        return virtual_input(graph, self.virtual_features, self.settings.append_label)

    def _augmented(self, graph: NodeGraph) -> tuple[Features, Edges]:
        """Normalised input and edges of the graph with its virtual nodes."""
        if graph is not self.graph:
            return unit_rows(self._raw_input(graph)), virtual_edges(graph)
        if self._own is None:
            self._own = unit_rows(self._raw_input(graph)), virtual_edges(graph)
        return self._own

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Go on where `training_state` was taken."""
        super().load_training_state(state)
        self._own = None

    def _validate(self) -> float | None:
        if self.validation is None:
            return None
        with torch.no_grad():
            predicted = self._validation_scores().argmax(dim=1)
        return (predicted == self.validation.y).float().mean().item()

    @abstractmethod
    def _validation_scores(self) -> Float[Tensor, "validation classes"]:
        """Accumulated scores of the validation nodes as training stands."""


class LayerwiseLearner(NodeLearner):
    """Layers trained one after the other, each on the frozen output of those below."""

    @property
    def stages(self) -> int:
        """One stage per layer."""
        return len(self.layers)

    def _trained_module(self) -> nn.Module:
        return self.layers[self.stage]


def class_logits(
    h: Float[Tensor, "nodes width"], virtual: Float[Tensor, "classes width"], temperature: float
) -> Float[Tensor, "nodes classes"]:
    """Inner products of nodes and virtual class nodes, divided by the temperature."""
    return h @ virtual.t() / temperature


class SingleForward(LayerwiseLearner):
    """SF: every layer pulls nodes towards the virtual node of their class; no negative pass.

    Cross entropy of h_train h_virtual^T; the prediction sums softmax(h h_virtual^T) over layers.
    """

    def _enter(self) -> None:
        x, edges = self._augmented(self.graph)
        count, self._base = self.graph.nodes, None
        virtual = torch.arange(count, edges.nodes, device=self.graph.device)
        asked = self.validation.nodes if self.validation else virtual[:0]
        for layer in self.layers[: self.stage]:
            h = layer(layer.prepare([x], edges))
            part = self._probabilities(h[asked], h[virtual])
            self._base = part if self._base is None else self._base + part
            x = unit_rows(h)
        layer = self.layers[self.stage]
        self._train_input = layer.prepare([x], edges, torch.cat([self.graph.known, virtual]))
        self._validation_input = layer.prepare([x], edges, torch.cat([asked, virtual]))

    def _train(self) -> None:
        h = self.layers[self.stage](self._train_input)
        nodes, virtual = h[: -self.graph.classes], h[-self.graph.classes :]
        logits = class_logits(nodes, virtual, self.settings.temperature)
        self._descend(self.stage, F.cross_entropy(logits, self.graph.known_y))

    def _validation_scores(self) -> Tensor:
        h = self.layers[self.stage](self._validation_input)
        part = self._probabilities(h[: -self.graph.classes], h[-self.graph.classes :])
        return part if self._base is None else self._base + part

    def _probabilities(self, h: Tensor, virtual: Tensor) -> Tensor:
        return class_logits(h, virtual, self.settings.temperature).softmax(dim=1)

    @torch.no_grad()
    def scores(self, graph: NodeGraph, nodes: Tensor) -> Tensor:
        """Sum over layers of class probabilities: one forward pass in all."""
        x, edges = self._augmented(graph)
        total = torch.zeros(len(nodes), graph.classes, device=graph.device)
        for layer in self.layers:
            h = layer(layer.prepare([x], edges))
            total += self._probabilities(h[nodes], h[graph.nodes :])
            x = unit_rows(h)
        return total


class ForwardForward(LayerwiseLearner):
    """Two passes and more: goodness up on positive data, down on negative data.

    Subclasses say what the positive, the negative and the C candidate passes are.
    """

    def __init__(
        self, settings: Settings, graph: NodeGraph, validation: Validation | None = None
    ) -> None:
        super().__init__(settings, graph, validation)
        # Drawn once: a node keeps its order of wrong classes for the whole of training.
        wrong = wrong_classes(graph.known_y, graph.classes, settings.negatives)
        self.register_buffer("wrong", torch.stack(wrong), persistent=False)

    @abstractmethod
    def _candidates(self, graph: NodeGraph, nodes: Tensor) -> list[Pass]:
        """For each class, the graph in which all the given nodes carry it."""

    @abstractmethod
    def _training_passes(self) -> list[Pass]:
        """The positive pass, then the negative ones."""

    def _ascended(
        self, layer: ForwardLayer, passes: list[Pass], nodes: Tensor
    ) -> tuple[Float[Tensor, "wanted passes"], list[Pass]]:
        """Goodness of the wanted nodes in every pass, and the passes one layer higher."""
        with shared_products():
            outputs = [layer(layer.prepare(*one)) for one in passes]
        goodness = torch.stack([self._goodness(h[nodes]) for h in outputs], dim=1)
        edges = [edges for _, edges in passes]
        return goodness, [([unit_rows(h)], e) for h, e in zip(outputs, edges, strict=True)]

    def _lifted_training(self, layer: ForwardLayer, passes: list[Pass]) -> list[Pass]:
        """The training passes one layer higher."""
        return self._ascended(layer, passes, self.graph.known[:0])[1]

    def _goodness(self, h: Tensor) -> Tensor:
        return h.square().mean(dim=1) - self.settings.theta

    def _extra_state(self) -> Any:
        return self.wrong

    def _load_extra_state(self, state: Any) -> None:
        self.wrong = state

    def _negative_graphs(self) -> list[NodeGraph]:
        empty = self.graph.without(self.graph.known)
        return [empty.with_known(self.graph.known, classes) for classes in self.wrong]

    def _enter(self) -> None:
        asked = self.validation.nodes if self.validation else self.graph.known[:0]
        candidates = self._candidates(self.graph, asked) if self.validation else []
        passes = self._training_passes()
        self._base = torch.zeros(len(asked), self.graph.classes, device=self.graph.device)
        for layer in self.layers[: self.stage]:
            passes = self._lifted_training(layer, passes)
            if candidates:
                goodness, candidates = self._ascended(layer, candidates, asked)
                self._base = self._base + goodness
        layer, known = self.layers[self.stage], self.graph.known
        self._train_inputs = [layer.prepare(blocks, edges, known) for blocks, edges in passes]
        self._validation_inputs = [
            layer.prepare(blocks, edges, asked) for blocks, edges in candidates
        ]

    def _train(self) -> None:
        layer = self.layers[self.stage]
        with shared_products():
            positive, *negatives = [layer(inputs) for inputs in self._train_inputs]
        self._descend(self.stage, goodness_loss(positive, negatives, self.settings.theta))

    def _validation_scores(self) -> Tensor:
        layer = self.layers[self.stage]
        with shared_products():
            outputs = [layer(inputs) for inputs in self._validation_inputs]
        return self._base + torch.stack([self._goodness(h) for h in outputs], dim=1)

    @torch.no_grad()
    def scores(self, graph: NodeGraph, nodes: Tensor) -> Tensor:
        """Goodness minus theta summed over layers: one forward pass per candidate class."""
        candidates = self._candidates(graph, nodes)
        total = torch.zeros(len(nodes), graph.classes, device=graph.device)
        for layer in self.layers:
            goodness, candidates = self._ascended(layer, candidates, nodes)
            total += goodness
        return total


class LabelAppending(ForwardForward):
    """FF-LA: the class, right or wrong, is written beside the features of the node."""

    def _make_layers(self, settings: Settings, graph: NodeGraph) -> list[ForwardLayer]:
        return forward_layers(settings, stacked(settings, graph.x.shape[1] + graph.classes))

    def _training_passes(self) -> list[Pass]:
        return _written([self.graph, *self._negative_graphs()])

    def _candidates(self, graph: NodeGraph, nodes: Tensor) -> list[Pass]:
        return _written(_guesses(graph, nodes))


def _guesses(graph: NodeGraph, nodes: Tensor) -> list[NodeGraph]:
    """For each class, the graph in which the given nodes are thought to be of it."""
    return [
        graph.with_known(nodes, torch.full_like(nodes, candidate))
        for candidate in range(graph.classes)
    ]


def _written(graphs: list[NodeGraph]) -> list[Pass]:
    """Features and label columns, for graphs that differ only in which class a node has.

    A one-hot row is of length 1 whatever the class, so all share the normalised features.
    """
    columns = [label_columns(graph) for graph in graphs]
    shared = unit_blocks(graphs[0].x, columns[0])[0]
    return [
        ([shared, unit_blocks(graph.x, labels)[1]], graph.edges)
        for graph, labels in zip(graphs, columns, strict=True)
    ]


class VirtualNodes(ForwardForward):
    """FF-VN: the class is a link to its virtual node, right or wrong.

    All passes share the features; layers above the first see in every pass the output of the
    positive pass, with the links of the pass itself.
    """

    def _training_passes(self) -> list[Pass]:
        x, edges = self._augmented(self.graph)
        return [([x], edges)] + [([x], virtual_edges(graph)) for graph in self._negative_graphs()]

    def _lifted_training(self, layer: ForwardLayer, passes: list[Pass]) -> list[Pass]:
        above = unit_rows(layer(layer.prepare(*passes[0])))
        return [([above], edges) for _, edges in passes]

    def _candidates(self, graph: NodeGraph, nodes: Tensor) -> list[Pass]:
        guesses = _guesses(graph, nodes)
        if self.settings.append_label:
            return [([unit_rows(self._raw_input(g))], virtual_edges(g)) for g in guesses]
        x, _ = self._augmented(graph)
        return [([x], virtual_edges(guess)) for guess in guesses]
