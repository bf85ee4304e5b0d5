"""Learning to dispatch: masked proximal policy optimisation on random shops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from peira.control.isbjssp.graph import Scene, Scenes, completion_bounds
from peira.control.isbjssp.policy import DispatchPolicy, rounds_of
from peira.control.isbjssp.shop import JobShop
from peira.control.isbjssp.simulator import Episode, draw_outages

Reward = Literal["waiting", "makespan", "bound"]


@dataclass(frozen=True)
class PPO:
    """Settings of proximal policy optimisation; the defaults are for minutes on one CPU core.

    Attributes:
        reward: `makespan` is minus the time that went by between two decisions, `waiting` minus the
            waiting time of all jobs in that time (Park et al. 2021), `bound` minus the growth of
            the largest completion bound (Zhang et al. 2020).
        gamma, trace: discount, and decay of generalised advantage estimation.
        clip: bound on the change of an action's probability in one update.
        policy, value, entropy: weights of the three terms of the loss.
        epochs, minibatch: passes over the episodes of an update, and decisions in a gradient step.
        gradient: largest norm of the gradient.
    """

    reward: Reward = "makespan"
    gamma: float = 1.0
    trace: float = 0.95
    clip: float = 0.2
    policy: float = 2.0
    value: float = 1.0
    entropy: float = 0.01
    epochs: int = 3
    minibatch: int = 128
    gradient: float = 0.5


class Decisions(NamedTuple):
    """What happened in a set of episodes, decision by decision, episode after episode."""

    graphs: list[Scene]
    action: Int[np.ndarray, " decisions"]  # place in the graph's list of actions
    log_probability: Float[np.ndarray, " decisions"]
    advantage: Float[np.ndarray, " decisions"]
    target: Float[np.ndarray, " decisions"]  # of the critic
    makespan: Float[np.ndarray, " episodes"]


def reward_scale(shop: JobShop, reward: Reward) -> float:
    """Divisor that makes returns of shops of all sizes alike: a machine's mean load, times jobs."""
    load = float(shop.durations.sum()) / shop.machine_count
    return load * shop.job_count if reward == "waiting" else load


def spent(episode: Episode, reward: Reward) -> int:
    """What an agent has paid so far, in time units; rewards are its decrements."""
    if reward == "bound":
        return int(completion_bounds(episode.state).max())
    return episode.waited if reward == "waiting" else episode.now


def log_softmax_by(
    logits: Float[Tensor, " actions"], graph: Int[Tensor, " actions"], graphs: int
) -> Float[Tensor, " actions"]:
    """Log-probabilities of the legal actions of each graph, all graphs at once."""
    top = logits.new_full((graphs,), -torch.inf).scatter_reduce(0, graph, logits.detach(), "amax")
    shifted = logits - top[graph]
    total = logits.new_zeros(graphs).index_add(0, graph, shifted.exp())
    return shifted - total.log()[graph]


def advantages(
    rewards: Float[np.ndarray, " steps"],
    values: Float[np.ndarray, " steps"],
    gamma: float,
    trace: float,
) -> Float[np.ndarray, " steps"]:
    """Generalised advantage estimates of one episode that ends (Schulman et al. 2016, eq. 16)."""
    following = np.append(values[1:], 0.0)
    errors = rewards + gamma * following - values
    estimate, sums = 0.0, np.empty_like(errors)
    for step in reversed(range(len(errors))):
        estimate = sums[step] = errors[step] + gamma * trace * estimate
    return sums


@torch.no_grad()
def play(
    network: DispatchPolicy,
    episodes: Sequence[Episode],
    settings: PPO,
    generator: torch.Generator,
) -> Decisions:
    """Carry episodes to their end with sampled actions, all of them in step."""
    device = next(network.parameters()).device
    steps: list[list[tuple[Scene, int, float, float, float]]] = [[] for _ in episodes]
    for _ in rounds_of(episodes):
        running = [number for number, episode in enumerate(episodes) if not episode.done]
        graphs = [network.observe(episodes[number]) for number in running]
        batch = network.collate(graphs)
        logits, values = network(batch.to(device))
        logits = log_softmax_by(logits.cpu(), batch.action_graph, batch.graph_count)
        action = _sample(logits, graphs, generator)
        first = np.cumsum([0] + [len(graph.action) for graph in graphs])
        for place, number in enumerate(running):
            graph, choice = graphs[place], int(action[place])
            paid = spent(episodes[number], settings.reward)
            log_probability = float(logits[first[place] + choice])
            steps[number].append((graph, choice, log_probability, float(values[place]), paid))
            episodes[number].dispatch(int(graph.action_job[choice]))
    return _gather(episodes, steps, settings)


def _sample(
    log_probability: Float[Tensor, " actions"], graphs: Sequence[Scene], generator: torch.Generator
) -> Int[np.ndarray, " graphs"]:
    """One action of each graph (Gumbel-max)."""
    uniform = torch.rand(len(log_probability), generator=generator)
    noisy = (log_probability - (-uniform.clamp(1e-12).log()).log()).numpy()
    ends = np.cumsum([len(graph.action) for graph in graphs])[:-1]
    return np.array([part.argmax() for part in np.split(noisy, ends)])


def _gather(
    episodes: Sequence[Episode],
    steps: list[list[tuple[Scene, int, float, float, float]]],
    settings: PPO,
) -> Decisions:
    gains, targets = [], []
    for episode, path in zip(episodes, steps, strict=True):
        values = np.array([step[3] for step in path])
        paid = np.array([step[4] for step in path] + [spent(episode, settings.reward)])
        rewards = -np.diff(paid) / reward_scale(episode.shop, settings.reward)
        gain = advantages(rewards, values, settings.gamma, settings.trace)
        gains.append(gain)
        targets.append(gain + values)
    flat = [step for path in steps for step in path]
    return Decisions(
        [step[0] for step in flat],
        np.array([step[1] for step in flat]),
        np.array([step[2] for step in flat], np.float32),
        np.concatenate(gains).astype(np.float32),
        np.concatenate(targets).astype(np.float32),
        np.array([episode.now for episode in episodes], float),
    )


def loss(
    network: DispatchPolicy,
    batch: Scenes,
    action: Int[Tensor, " decisions"],
    old: Float[Tensor, " decisions"],
    advantage: Float[Tensor, " decisions"],
    target: Float[Tensor, " decisions"],
    settings: PPO,
) -> Float[Tensor, ""]:
    """Clipped policy loss, critic loss and entropy bonus (Schulman et al. 2017, eq. 9).

    Args:
        action: row of the chosen action among the batch's actions.
        old: log-probability of that action when it was chosen.
    """
    logits, value = network(batch)
    log_probability = log_softmax_by(logits, batch.action_graph, batch.graph_count)
    entropy = -(log_probability.exp() * log_probability).sum() / batch.graph_count
    ratio = (log_probability[action] - old).exp()
    clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
    surrogate = torch.minimum(ratio * advantage, clipped * advantage).mean()
    critic = (value - target).square().mean()
    return settings.value * critic - settings.policy * surrogate - settings.entropy * entropy


def update(
    network: DispatchPolicy,
    optimizer: torch.optim.Optimizer,
    decisions: Decisions,
    settings: PPO,
    generator: torch.Generator,
) -> float:
    """Improve the network on a set of episodes; returns the mean loss."""
    device = next(network.parameters()).device
    gain = decisions.advantage
    gain = (gain - gain.mean()) / (gain.std() + 1e-8)
    losses = []
    for _ in range(settings.epochs):
        for rows in _minibatches(len(gain), settings.minibatch, generator):
            graphs = [decisions.graphs[row] for row in rows]
            batch = network.collate(graphs).to(device)
            first = np.cumsum([0] + [len(graph.action) for graph in graphs])[:-1]
            action = torch.from_numpy(first + decisions.action[rows]).to(device)
            parts = (decisions.log_probability, gain, decisions.target)
            old, advantage, target = (torch.from_numpy(part[rows]).to(device) for part in parts)
            value = loss(network, batch, action, old, advantage, target, settings)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.gradient)
            optimizer.step()
            losses.append(float(value.detach()))
    return float(np.mean(losses))


def _minibatches(
    count: int, size: int, generator: torch.Generator
) -> Iterator[Int[np.ndarray, " rows"]]:
    order = torch.randperm(count, generator=generator).numpy()
    yield from np.array_split(order, max(1, round(count / size)))


def random_episodes(
    count: int,
    jobs: tuple[int, int],
    machines: tuple[int, int],
    shutdowns: Sequence[float],
    rng: np.random.Generator,
) -> list[Episode]:
    """Fresh random shops with sizes and shutdown probability drawn for each.

    Args:
        jobs, machines: smallest and largest number.
        shutdowns: probabilities to choose from.
    """
    episodes = []
    for _ in range(count):
        size = [int(rng.integers(low, high + 1)) for low, high in (jobs, machines)]
        shop = JobShop.random(size[0], size[1], rng)
        p = float(rng.choice(shutdowns))
        episodes.append(Episode(shop, draw_outages(shop, p, int(rng.integers(2**31)))))
    return episodes


class DispatchTrainer:
    """A network that learns from random shops: `step()` plays and updates once.

    Args:
        network: what learns.
        settings: of PPO.
        learning_rate: of Adam.
        episodes: shops in one update.
        jobs, machines: range of the shops' sizes.
        shutdowns: probabilities of a shutdown to train on.
        updates: number of steps over which the learning rate falls to 0; by default it stays.
        rng, generator: of the shops, and of actions and minibatches.
    """

    def __init__(
        self,
        network: DispatchPolicy,
        rng: np.random.Generator,
        generator: torch.Generator,
        settings: PPO | None = None,
        learning_rate: float = 3e-3,
        episodes: int = 128,
        jobs: tuple[int, int] = (6, 6),
        machines: tuple[int, int] = (5, 5),
        shutdowns: Sequence[float] = (0.0, 0.05, 0.1, 0.2),
        updates: int | None = None,
    ) -> None:
        self.network, self.rng, self.generator = network, rng, generator
        self.settings = settings or PPO()
        self.optimizer = torch.optim.Adam(network.parameters(), learning_rate, fused=True)
        # Without an end in sight the rate stays as it is.
        self.schedule = torch.optim.lr_scheduler.LinearLR(
            self.optimizer, 1.0, 0.0 if updates else 1.0, updates or 1
        )
        self.episodes, self.jobs, self.machines = episodes, jobs, machines
        self.shutdowns = shutdowns

    def step(self) -> dict[str, float]:
        """Play a set of episodes and learn from them.

        Returns mean makespan relative to the mean load of a machine, and the loss.
        """
        episodes = random_episodes(
            self.episodes, self.jobs, self.machines, self.shutdowns, self.rng
        )
        decisions = play(self.network, episodes, self.settings, self.generator)
        loss = update(self.network, self.optimizer, decisions, self.settings, self.generator)
        self.schedule.step()
        load = [reward_scale(episode.shop, "makespan") for episode in episodes]
        return {"makespan_over_load": float((decisions.makespan / load).mean()), "loss": loss}
