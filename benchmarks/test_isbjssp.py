"""Paper 30: episodes, environment steps, networks, training; against plain Python and peers."""

from __future__ import annotations

import copy
import heapq
from collections import Counter
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from peira.control.isbjssp.environment import JobShopEnv
from peira.control.isbjssp.graph import collate, observe, to_pyg
from peira.control.isbjssp.policy import DispatchNetwork
from peira.control.isbjssp.ppo import (
    PPO,
    Decisions,
    DispatchTrainer,
    play,
    random_episodes,
    update,
)
from peira.control.isbjssp.shop import JobShop
from peira.control.isbjssp.simulator import Episode, best_of_random

SHOP = JobShop.random(10, 5, np.random.default_rng(0))
EPISODES = 20


class PlainShop:
    """The blocking shop with swaps as one writes it first: a heap of events and dictionaries."""

    def __init__(self, shop: JobShop) -> None:
        self.jobs = [
            list(zip(machines.tolist(), times.tolist(), strict=True))
            for machines, times in zip(shop.machines, shop.durations, strict=True)
        ]
        self.step = [0] * len(self.jobs)
        # Waiting job -> since when; job -> its machine; machine -> its job; job -> when it ends.
        self.waiting = dict.fromkeys(range(len(self.jobs)), 0)
        self.place: dict[int, int] = {}
        self.holder: dict[int, int] = {}
        self.finish: dict[int, int] = {}
        self.events: list[tuple[int, int]] = []
        self.now = 0

    def wanted(self, job: int) -> int:
        return self.jobs[job][self.step[job]][0]

    def enter(self, job: int) -> None:
        machine, duration = self.jobs[job][self.step[job]]
        self.step[job] += 1
        del self.waiting[job]
        self.holder[machine], self.place[job] = job, machine
        self.finish[job] = self.now + duration
        heapq.heappush(self.events, (self.now + duration, job))

    def cycle(self) -> list[int]:
        for first in self.holder.values():
            path, job = [], first
            while job in self.waiting:
                path.append(job)
                job = self.holder.get(self.wanted(job), -1)
                if job == first:
                    return path
                if job in path:
                    break
        return []

    def move(self, job: int) -> None:
        if job in self.place:
            del self.holder[self.place[job]]
        self.enter(job)

    def free(self) -> list[int]:
        """Jobs that can be moved, after swaps and as much time as that takes; none at the end."""
        while True:
            while ring := self.cycle():
                for job in ring:
                    del self.holder[self.place[job]]
                for job in ring:
                    self.enter(job)
            jobs = [job for job in sorted(self.waiting) if self.wanted(job) not in self.holder]
            if jobs or not self.events:
                return jobs
            self.now = self.events[0][0]
            while self.events and self.events[0][0] == self.now:
                _, job = heapq.heappop(self.events)
                if self.step[job] == len(self.jobs[job]):
                    del self.holder[self.place.pop(job)]
                else:
                    self.waiting[job] = self.now


def plain_fifo(shop: JobShop) -> int:
    plain = PlainShop(shop)
    while free := plain.free():
        plain.move(min(free, key=lambda job: (plain.waiting[job], job)))
    return plain.now


def plain_random(shop: JobShop, dice: list[float]) -> int:
    plain, left = PlainShop(shop), iter(dice)
    while free := plain.free():
        plain.move(free[int(next(left) * len(free))])
    return plain.now


def plain_best_of_random(shop: JobShop, trials: int) -> int:
    rng = np.random.default_rng(0)
    size = shop.operation_count
    return min(plain_random(shop, rng.random(size).tolist()) for _ in range(trials))


class PlainEnv(gymnasium.Env[dict[str, Any], int]):
    """`JobShopEnv` without shutdowns, with the same observations, in plain Python."""

    def __init__(self, shop: JobShop) -> None:
        self.shop = shop
        self.load = shop.durations.sum() / shop.machine_count

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.plain = PlainShop(self.shop)
        self.skip()
        return self.observation(), self.info()

    def step(self, action: int) -> Any:
        before = self.plain.now
        self.plain.move(action)
        self.skip()
        reward = (before - self.plain.now) / self.load
        return self.observation(), reward, not self.choices, False, self.info()

    def skip(self) -> None:
        """Take the moves that no other job competes with."""
        while True:
            self.choices = self.plain.free()
            rivals = Counter(self.plain.wanted(job) for job in self.choices)
            alone = [job for job in self.choices if rivals[self.plain.wanted(job)] == 1]
            if not alone:
                return
            self.plain.move(alone[0])

    def mask(self) -> list[int]:
        return [int(job in self.choices) for job in range(len(self.plain.jobs))]

    def info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"action_mask": np.array(self.mask(), np.int8)}
        if not self.choices:
            info["makespan"] = self.plain.now
        return info

    def observation(self) -> dict[str, Any]:
        plain, machines = self.plain, self.shop.machine_count
        longest = max(duration for job in plain.jobs for _, duration in job)
        nodes, present, owner, machine_of = [], [], [], []
        for job, operations in enumerate(plain.jobs):
            work, begun, done = sum(duration for _, duration in operations), plain.step[job], 0
            waited = plain.now - plain.waiting.get(job, plain.now)
            for place, (machine, duration) in enumerate(operations):
                done += duration
                here = place == begun - 1 and job in plain.place
                blocking = here and job in plain.waiting
                running = here and not blocking
                owner.append(job)
                machine_of.append(machine)
                present.append(int(place >= begun or here))
                if not present[-1]:
                    nodes.append([0.0] * 12)
                    continue
                nodes.append(
                    [
                        float(place >= begun), float(running), float(blocking), 0.0,
                        duration / work, done / work, (len(operations) - place) / machines,
                        waited / work if place == begun else 0.0,
                        (plain.finish[job] - plain.now) / work if running else -1.0,
                        0.0, waited / work if blocking else 0.0, duration / longest,
                    ]
                )  # fmt: skip
        return {
            "nodes": np.array(nodes, np.float32),
            "present": np.array(present, np.int8),
            "job": np.array(owner),
            "machine": np.array(machine_of),
            "action_mask": np.array(self.mask(), np.int8),
        }


def run_rule() -> list[int]:
    results = []
    for _ in range(EPISODES):
        episode = Episode(SHOP)
        episode.run("FIFO")
        results.append(episode.now)
    return results


def test_same_schedules() -> None:
    for seed in range(50):
        shop = JobShop.random(9, 6, np.random.default_rng(seed))
        episode = Episode(shop)
        episode.run("FIFO")
        assert episode.now == plain_fifo(shop)
        assert best_of_random(shop, 3) == plain_best_of_random(shop, 3)


@pytest.mark.benchmark(group="isbjssp: 20 episodes of FIFO, 10 x 5")
def test_episodes_peira(benchmark: Any) -> None:
    run_rule()
    assert len(benchmark(run_rule)) == EPISODES


@pytest.mark.benchmark(group="isbjssp: 20 episodes of FIFO, 10 x 5")
def test_episodes_python(benchmark: Any) -> None:
    assert benchmark(lambda: [plain_fifo(SHOP) for _ in range(EPISODES)]) == run_rule()


@pytest.mark.benchmark(group="isbjssp: 20 episodes of FIFO, 10 x 5")
def test_episodes_job_shop_lib(benchmark: Any) -> None:
    """The peer's dispatcher solves the classical shop with storage, an easier simulation."""
    peer = pytest.importorskip("job_shop_lib")
    rules = pytest.importorskip("job_shop_lib.dispatching.rules")
    jobs = [
        [peer.Operation(m, d) for m, d in zip(machines.tolist(), times.tolist(), strict=True)]
        for machines, times in zip(SHOP.machines, SHOP.durations, strict=True)
    ]
    instance = peer.JobShopInstance(jobs, name="peer")
    solver = rules.DispatchingRuleSolver("first_come_first_served")
    benchmark(lambda: [solver.solve(instance).makespan() for _ in range(EPISODES)])


@pytest.mark.benchmark(group="isbjssp: best of 500 episodes of random dispatching, 10 x 5")
def test_random_episodes_peira(benchmark: Any) -> None:
    best_of_random(SHOP, 2)
    benchmark(best_of_random, SHOP, 500)


@pytest.mark.benchmark(group="isbjssp: best of 500 episodes of random dispatching, 10 x 5")
def test_random_episodes_python(benchmark: Any) -> None:
    best = benchmark.pedantic(plain_best_of_random, (SHOP, 500), rounds=3)
    assert best == best_of_random(SHOP, 500)


def test_same_steps() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        shop = JobShop.random(8, 5, rng)
        ours, theirs = JobShopEnv(shop), PlainEnv(shop)
        (seen, info), (other, _) = ours.reset(seed=0), theirs.reset(seed=0)
        done = False
        while not done:
            for name, value in seen.items():
                np.testing.assert_allclose(other[name], value, rtol=1e-5, err_msg=name)
            action = int(rng.choice(np.flatnonzero(info["action_mask"])))
            seen, reward, done, _, info = ours.step(action)
            other, paid, over, _, message = theirs.step(action)
            assert (paid, over) == (pytest.approx(reward), done)
        assert message["makespan"] == info["makespan"]


def steps(env: gymnasium.Env) -> None:
    _, info = env.reset(seed=0)
    for _ in range(200):
        _, _, done, _, info = env.step(int(info["action_mask"].argmax()))
        if done:
            _, info = env.reset()


@pytest.mark.benchmark(group="isbjssp: 200 environment steps, 10 x 5")
def test_steps_peira(benchmark: Any) -> None:
    env = JobShopEnv(SHOP)
    steps(env)
    benchmark(steps, env)


@pytest.mark.benchmark(group="isbjssp: 200 environment steps, 10 x 5")
def test_steps_python(benchmark: Any) -> None:
    benchmark(steps, PlainEnv(SHOP))


LARGE = [observe(Episode(JobShop.random(20, 10, np.random.default_rng(1))))] * 16


@pytest.mark.benchmark(group="isbjssp: network on 16 graphs of 200 nodes")
def test_network_peira(benchmark: Any) -> None:
    torch.manual_seed(0)
    network, batch = DispatchNetwork(), collate(LARGE)
    with torch.no_grad():
        benchmark(network, batch)


@pytest.mark.benchmark(group="isbjssp: network on 16 graphs of 200 nodes")
def test_network_edges(benchmark: Any) -> None:
    """The same network with messages along explicit edges, as graph libraries send them."""
    data_module = pytest.importorskip("torch_geometric.data")
    torch.manual_seed(0)
    network, batch = DispatchNetwork(), collate(LARGE)
    data = data_module.Batch.from_data_list([to_pyg(graph) for graph in LARGE])
    edges = [data.edge_index[:, data.edge_type == kind] for kind in range(3)]
    sizes = torch.bincount(data.batch)[:, None]

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        h = data.x
        for layer in network.layers:
            sums = [torch.zeros_like(h).index_add(0, to, h[source]) for source, to in edges]
            total = h.new_zeros(16, h.shape[1]).index_add(0, data.batch, h)[data.batch]
            parts = (layer.predecessor(sums[0]), layer.successor(sums[1]), layer.rival(sums[2]))
            h = torch.cat([*(torch.relu(part) for part in (*parts, total)), h, data.x], 1)
            h = layer.norm(layer.update(h))
        mean = h.new_zeros(16, h.shape[1]).index_add(0, data.batch, h) / sizes
        chosen = torch.cat([h[batch.action], mean[batch.action_graph]], 1)
        return network.actor(chosen)[:, 0], network.critic(mean)[:, 0]

    with torch.no_grad():
        torch.testing.assert_close(forward()[0], network(batch)[0], atol=1e-4, rtol=1e-3)
        benchmark(forward)


def trainer() -> DispatchTrainer:
    torch.manual_seed(0)
    return DispatchTrainer(
        DispatchNetwork(), np.random.default_rng(0), torch.Generator().manual_seed(0), episodes=32
    )


def update_one_by_one(
    network: DispatchNetwork,
    optimizer: torch.optim.Optimizer,
    paths: list[Decisions],
    settings: PPO,
    rng: np.random.Generator,
) -> None:
    """PPO that hands the network one graph at a time; gradients add up over a minibatch."""
    gain = np.concatenate([path.advantage for path in paths])
    gain = (gain - gain.mean()) / (gain.std() + 1e-8)
    graphs = [graph for path in paths for graph in path.graphs]
    action, old, target = (
        np.concatenate([getattr(path, name) for path in paths])
        for name in ("action", "log_probability", "target")
    )
    for _ in range(settings.epochs):
        parts = max(1, round(len(gain) / settings.minibatch))
        for rows in np.array_split(rng.permutation(len(gain)), parts):
            optimizer.zero_grad()
            for row in rows:
                logits, value = network(collate([graphs[row]]))
                choice = torch.distributions.Categorical(logits=logits)
                ratio = (choice.log_prob(torch.tensor(action[row])) - float(old[row])).exp()
                clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
                surrogate = torch.minimum(ratio * float(gain[row]), clipped * float(gain[row]))
                critic = (value[0] - float(target[row])) ** 2
                total = settings.value * critic - settings.policy * surrogate
                total = total - settings.entropy * choice.entropy()
                (total / len(rows)).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.gradient)
            optimizer.step()


def step_one_by_one(learner: DispatchTrainer) -> None:
    """What `DispatchTrainer.step` does, shop after shop."""
    episodes = random_episodes(
        learner.episodes, learner.jobs, learner.machines, learner.shutdowns, learner.rng
    )
    paths = [
        play(learner.network, [episode], learner.settings, learner.generator)
        for episode in episodes
    ]
    update_one_by_one(learner.network, learner.optimizer, paths, learner.settings, learner.rng)


def test_same_update() -> None:
    learner, settings = trainer(), PPO(epochs=1, minibatch=10**6)
    episodes = random_episodes(8, (6, 6), (5, 5), (0.1,), np.random.default_rng(0))
    decisions = play(learner.network, episodes, settings, learner.generator)
    networks = [learner.network, copy.deepcopy(learner.network)]
    first, second = (torch.optim.SGD(network.parameters(), 0.1) for network in networks)
    update(networks[0], first, decisions, settings, learner.generator)
    update_one_by_one(networks[1], second, [decisions], settings, np.random.default_rng(0))
    before = dict(trainer().network.named_parameters())
    other = dict(networks[1].named_parameters())
    for name, value in networks[0].named_parameters():
        torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-4)
    assert any(not torch.allclose(before[name], value) for name, value in other.items())


@pytest.mark.benchmark(group="isbjssp: one PPO update, 32 episodes of 6 x 5")
def test_update_peira(benchmark: Any) -> None:
    benchmark.pedantic(trainer().step, rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="isbjssp: one PPO update, 32 episodes of 6 x 5")
def test_update_graph_by_graph(benchmark: Any) -> None:
    benchmark.pedantic(step_one_by_one, (trainer(),), rounds=3, warmup_rounds=1)
