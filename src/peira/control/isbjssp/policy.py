"""Networks that dispatch; the method's own: messages over the disjunctive graph, actor and critic.

Park, Chun, Kim, Kim, Park (2021), "Learning to schedule job-shop problems", the parent method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from peira.control.isbjssp.graph import FEATURES, Batch, Graph, Scene, Scenes, collate, observe
from peira.control.isbjssp.simulator import Episode
from peira.data.arrays import read_record, write_record
from peira.nn.networks import mlp

KIND = "dispatching network"


def sum_by(
    values: Float[Tensor, "rows channels"], group: Int[Tensor, " rows"], groups: int
) -> Float[Tensor, "groups channels"]:
    """Sum of the rows of each group: a product with a sparse 0/1 matrix."""
    return values.new_zeros(groups, values.shape[1]).index_add(0, group, values)


def mean_by(
    values: Float[Tensor, "rows channels"], group: Int[Tensor, " rows"], groups: int
) -> Float[Tensor, "groups channels"]:
    """Mean of the rows of each group."""
    rows = values.new_zeros(groups).index_add(0, group, values.new_ones(len(values)))
    return sum_by(values, group, groups) / rows[:, None]


def candidates(
    h: Float[Tensor, "nodes channels"], mean: Float[Tensor, "graphs channels"], batch: Scenes
) -> Float[Tensor, "actions 2*channels"]:
    """What an actor sees of every action: its node and its graph."""
    # The gradient of `index_select` is cheaper than that of indexing.
    node, graph = h.index_select(0, batch.action), mean.index_select(0, batch.action_graph)
    return torch.cat([node, graph], 1)


class MessageLayer(nn.Module):
    """One round of messages.

    h_v <- MLP( ReLU MLP_p(sum of predecessors) || ReLU MLP_s(sum of successors)
                || ReLU MLP_d(sum of the machine's other operations) || ReLU(sum of all)
                || h_v || x_v ), then layer normalisation.

    The sum over the other operations of a machine is the sum over all of them minus h_v, so a round
    costs one pass over the nodes however many disjunctive arcs there are.

    Args:
        inputs: channels of h. features: channels of x. hidden: channels that come out.
        disjunctive: False leaves the messages of the machine's other operations out.
    """

    def __init__(self, inputs: int, features: int, hidden: int, disjunctive: bool = True) -> None:
        super().__init__()
        self.predecessor = mlp((inputs, hidden, hidden))
        self.successor = mlp((inputs, hidden, hidden))
        self.rival = mlp((inputs, hidden, hidden)) if disjunctive else None
        self.update = mlp(((2 + disjunctive) * hidden + 2 * inputs + features, hidden, hidden))
        self.norm = nn.LayerNorm(hidden)

    def forward(
        self, h: Float[Tensor, "nodes inputs"], batch: Batch
    ) -> Float[Tensor, "nodes hidden"]:
        follows = batch.follows[:, None]
        edge = h.new_zeros(1, h.shape[1])
        before = torch.cat([edge, h[:-1]]) * follows
        after = torch.cat([(h * follows)[1:], edge])
        parts = [torch.relu(self.predecessor(before)), torch.relu(self.successor(after))]
        if self.rival is not None:
            shared = sum_by(h, batch.machine, batch.machine_count)
            others = shared.index_select(0, batch.machine) - h
            parts.append(torch.relu(self.rival(others)))
        everything = torch.relu(sum_by(h, batch.graph, batch.graph_count))
        everything = everything.index_select(0, batch.graph)
        return self.norm(self.update(torch.cat([*parts, everything, h, batch.x], 1)))


class DispatchPolicy(nn.Module):
    """A network that scores every job that can be moved now, for shops of any size.

    `next_action(episode)` is what `simulate_shop` and `Episode.follow` ask for. A network says how
    it sees a shop (`observe`, `collate`); its `forward` takes what `collate` gives and returns the
    unnormalised log-probability of every action and the value of every state. `settings` are the
    arguments that make another network of the same shape.
    """

    settings: dict[str, Any]

    def observe(self, episode: Episode) -> Scene:
        """The present state of a shop as the network reads it."""
        raise NotImplementedError

    def collate(self, scenes: Sequence[Any]) -> Scenes:
        """Join what `observe` gave for shops of any sizes."""
        raise NotImplementedError

    @torch.no_grad()
    def best_actions(self, episodes: Sequence[Episode]) -> Int[np.ndarray, " episodes"]:
        """The most probable job of each episode; one pass for all."""
        scenes = [self.observe(episode) for episode in episodes]
        batch = self.collate(scenes).to(next(self.parameters()).device)
        logits = self(batch)[0].cpu().numpy()
        ends = np.cumsum([len(scene.action) for scene in scenes])[:-1]
        return np.array(
            [
                scene.action_job[part.argmax()]
                for scene, part in zip(scenes, np.split(logits, ends), strict=True)
            ]
        )

    def next_action(self, episode: Episode) -> int:
        """The most probable job."""
        return int(self.best_actions([episode])[0])

    def follow(self, episodes: Sequence[Episode]) -> None:
        """Carry many episodes to their end together."""
        for _ in rounds_of(episodes):
            running = [episode for episode in episodes if not episode.done]
            for episode, job in zip(running, self.best_actions(running), strict=True):
                episode.dispatch(int(job))


class DispatchNetwork(DispatchPolicy):
    """The method's network, on the dynamic disjunctive graph.

    Args:
        hidden: channels of the node embeddings.
        rounds: rounds of messages.
        disjunctive: False leaves out the messages between operations of one machine.
        static: True keeps the nodes of operations that are over.
    """

    def __init__(
        self, hidden: int = 64, rounds: int = 2, disjunctive: bool = True, static: bool = False
    ) -> None:
        super().__init__()
        self.settings = {
            "hidden": hidden, "rounds": rounds, "disjunctive": disjunctive, "static": static,
        }  # fmt: skip
        self.static = static
        features = len(FEATURES)
        widths = [features] + [hidden] * rounds
        self.layers = nn.ModuleList(
            MessageLayer(inputs, features, hidden, disjunctive) for inputs in widths[:-1]
        )
        self.actor = mlp((2 * hidden, 32, 1))
        self.critic = mlp((hidden, 32, 1))

    def observe(self, episode: Episode) -> Graph:
        """The dynamic disjunctive graph, or the static one."""
        return observe(episode, self.static)

    def collate(self, scenes: Sequence[Graph]) -> Batch:
        """Several graphs as one."""
        return collate(scenes)

    def forward(self, batch: Batch) -> tuple[Float[Tensor, " actions"], Float[Tensor, " graphs"]]:
        """Unnormalised log-probability of every action, and the value of every graph."""
        h = batch.x
        for layer in self.layers:
            h = layer(h, batch)
        mean = mean_by(h, batch.graph, batch.graph_count)
        return self.actor(candidates(h, mean, batch))[:, 0], self.critic(mean)[:, 0]

    def save(self, path: str | Path) -> None:
        """Write weights and settings to one safetensors file."""
        write_record(Path(path), KIND, self.state_dict(), self.settings)

    @classmethod
    def load(cls, path: str | Path) -> DispatchNetwork:
        """Read what `save` wrote; raises `DataError` if the file is something else."""
        weights, settings = read_record(Path(path), KIND)
        network = cls(**settings)
        network.load_state_dict(weights)
        return network


def rounds_of(episodes: Sequence[Episode]) -> Iterator[None]:
    """Take forced decisions and yield until all episodes are done."""
    while True:
        for episode in episodes:
            episode.dispatch_forced()
        if all(episode.done for episode in episodes):
            return
        yield
