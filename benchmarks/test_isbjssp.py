"""Paper 30: episodes, environment steps, one training update; against plain Python and a peer."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import pytest
import torch

from peira.control.isbjssp.environment import JobShopEnv
from peira.control.isbjssp.graph import collate, observe, to_pyg
from peira.control.isbjssp.policy import DispatchNetwork
from peira.control.isbjssp.ppo import DispatchTrainer
from peira.control.isbjssp.shop import JobShop
from peira.control.isbjssp.simulator import Episode, best_of_random

SHOP = JobShop.random(10, 5, np.random.default_rng(0))
EPISODES = 20


def heap_simulation(shop: JobShop) -> int:
    """FIFO on the blocking shop with swaps: a heap of events, dictionaries, no arrays."""
    jobs = [
        list(zip(machines.tolist(), times.tolist(), strict=True))
        for machines, times in zip(shop.machines, shop.durations, strict=True)
    ]
    step = dict.fromkeys(range(len(jobs)), 0)
    waiting: dict[int, tuple[int, int]] = {job: (0, job) for job in step}
    place: dict[int, int] = {}
    holder: dict[int, int] = {}
    events: list[tuple[int, int]] = []
    now = 0

    def enter(job: int) -> None:
        machine, duration = jobs[job][step[job]]
        step[job] += 1
        del waiting[job]
        holder[machine], place[job] = job, machine
        heapq.heappush(events, (now + duration, job))

    def cycle() -> list[int]:
        for first in holder.values():
            path, job = [], first
            while job in waiting:
                path.append(job)
                job = holder.get(jobs[job][step[job]][0], -1)
                if job == first:
                    return path
                if job in path:
                    break
        return []

    while True:
        moved = True
        while moved:
            moved = False
            ring = cycle()
            if ring:
                for job in ring:
                    del holder[place[job]]
                for job in ring:
                    enter(job)
                moved = True
            free = [job for job in waiting if jobs[job][step[job]][0] not in holder]
            if free:
                job = min(free, key=waiting.__getitem__)
                if job in place:
                    del holder[place[job]]
                enter(job)
                moved = True
        if not events:
            return now
        now = events[0][0]
        while events and events[0][0] == now:
            _, job = heapq.heappop(events)
            if step[job] == len(jobs[job]):
                del holder[place.pop(job)]
            else:
                waiting[job] = (now, job)


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
        assert episode.now == heap_simulation(shop)


@pytest.mark.benchmark(group="isbjssp: 20 episodes of FIFO, 10 x 5")
def test_episodes_peira(benchmark: Any) -> None:
    run_rule()
    assert len(benchmark(run_rule)) == EPISODES


@pytest.mark.benchmark(group="isbjssp: 20 episodes of FIFO, 10 x 5")
def test_episodes_python(benchmark: Any) -> None:
    assert benchmark(lambda: [heap_simulation(SHOP) for _ in range(EPISODES)]) == run_rule()


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


@pytest.mark.benchmark(group="isbjssp: 1000 episodes of random dispatching")
def test_random_episodes_peira(benchmark: Any) -> None:
    best_of_random(SHOP, 2)
    benchmark(best_of_random, SHOP, 1000)


@pytest.mark.benchmark(group="isbjssp: 200 environment steps")
def test_steps_peira(benchmark: Any) -> None:
    env = JobShopEnv(SHOP, p=0.1)

    def steps() -> None:
        _, info = env.reset(seed=0)
        for _ in range(200):
            _, _, done, _, info = env.step(int(info["action_mask"].argmax()))
            if done:
                _, info = env.reset()

    steps()
    benchmark(steps)


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


@pytest.mark.benchmark(group="isbjssp: one PPO update, 32 episodes of 6 x 5")
def test_update_peira(benchmark: Any) -> None:
    torch.manual_seed(0)
    trainer = DispatchTrainer(
        DispatchNetwork(), np.random.default_rng(0), torch.Generator().manual_seed(0), episodes=32
    )
    benchmark.pedantic(trainer.step, rounds=5, warmup_rounds=1)
