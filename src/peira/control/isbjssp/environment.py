"""The shop as a Gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool

from peira.control.isbjssp.graph import FEATURES, observe
from peira.control.isbjssp.ppo import Reward, reward_scale, spent
from peira.control.isbjssp.schedule import Schedule
from peira.control.isbjssp.shop import JobShop
from peira.control.isbjssp.simulator import Episode, When, draw_outages

Observation = dict[str, Any]

# Waiting times have no bound of their own; Gymnasium asks for one.
LARGEST = 1e9

# What an agent that ignores the mask pays for each illegal choice; a whole episode costs about 1.
ILLEGAL = 1.0


class JobShopEnv(gymnasium.Env[Observation, np.int64]):
    """Dispatch the jobs of a shop with blocking, swaps and interruptions.

    One step is one decision: the number of the job that moves to its next machine, one of those
    that `action_masks()` and `info["action_mask"]` mark. Decisions that leave no choice are taken
    inside.

    Observation (arrays of fixed size for this shop, rows of absent nodes are 0):
        nodes (operations, features): the features that `graph.FEATURES` names.
        present (operations): 1 for the nodes of the dynamic disjunctive graph.
        job, machine (operations): of each node; nodes of a job follow each other.
        action_mask (jobs): 1 for the jobs that can be moved.

    Reward: minus the time since the last decision (or the growth of the completion bound) over a
    machine's mean load, or minus the waiting time of all jobs since then over that load times the
    number of jobs. An episode ends when all
    jobs are done; `info["makespan"]` is then set. An illegal action changes nothing and costs
    `ILLEGAL`.

    Args:
        shop: an instance, or a function that draws one from the environment's random generator,
            always of one size.
        p, when: shutdowns, see `draw_outages`; drawn anew in every episode.
        reward: `makespan`, `waiting` or `bound`, see `PPO`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}

    def __init__(
        self,
        shop: JobShop | Callable[[np.random.Generator], JobShop],
        p: float = 0.0,
        when: When = "idle",
        reward: Reward = "makespan",
        render_mode: str | None = None,
    ) -> None:
        self.render_mode = render_mode
        self._shop, self._p, self._when, self._reward = shop, p, when, reward
        first = shop if isinstance(shop, JobShop) else shop(np.random.default_rng(0))
        self._size = (first.job_count, first.operation_count, first.machine_count)
        jobs, operations, machines = self._size
        self.action_space = spaces.Discrete(jobs)
        self.observation_space = spaces.Dict(
            {
                "nodes": spaces.Box(-1, LARGEST, (operations, len(FEATURES)), np.float32),
                "present": spaces.MultiBinary(operations),
                "job": spaces.Box(0, jobs - 1, (operations,), np.int64),
                "machine": spaces.Box(0, machines - 1, (operations,), np.int64),
                "action_mask": spaces.MultiBinary(jobs),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; the seed sets the shutdowns and the random shops."""
        super().reset(seed=seed)
        shop = self._shop if isinstance(self._shop, JobShop) else self._shop(self.np_random)
        size = (shop.job_count, shop.operation_count, shop.machine_count)
        if size != self._size:
            raise ValueError(f"shops of one environment must have one size; {size} != {self._size}")
        draw = int(self.np_random.integers(2**31))
        self.episode = Episode(shop, draw_outages(shop, self._p, draw, self._when))
        self.episode.dispatch_forced()
        return self._observation(), self._info()

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move one job. A job that cannot move changes nothing and costs `ILLEGAL`."""
        if not self.action_masks()[action]:
            return self._observation(), -ILLEGAL, self.episode.done, False, self._info()
        before = spent(self.episode, self._reward)
        self.episode.dispatch(int(action))
        self.episode.dispatch_forced()
        gain = before - spent(self.episode, self._reward)
        reward = gain / reward_scale(self.episode.shop, self._reward)
        return self._observation(), reward, self.episode.done, False, self._info()

    def action_masks(self) -> Bool[np.ndarray, " jobs"]:
        """Which jobs can be moved now (the name that maskable agents look for)."""
        mask = np.zeros(self._size[0], bool)
        mask[self.episode.legal] = True
        return mask

    def render(self) -> Any:
        """The Gantt chart so far, as a picture (height, width, 3)."""
        if self.render_mode != "rgb_array":
            return None
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from peira.control.isbjssp.schedule import draw_gantt

        figure = Figure(figsize=(9, 1.2 + 0.4 * self._size[2]), layout="constrained")
        canvas = FigureCanvasAgg(figure)
        draw_gantt(Schedule.of(self.episode), figure.subplots())
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"action_mask": self.action_masks().astype(np.int8)}
        if self.episode.done:
            info["makespan"] = self.episode.now
        return info

    def _observation(self) -> Observation:
        operations = self._size[1]
        shop, graph = self.episode.shop, observe(self.episode)
        job, operation = np.nonzero(shop.machines >= 0)
        first = np.cumsum(shop.lengths) - shop.lengths
        rows = first[graph.job] + graph.operation
        nodes = np.zeros((operations, len(FEATURES)), np.float32)
        nodes[rows] = graph.x
        present = np.zeros(operations, np.int8)
        present[rows] = 1
        return {
            "nodes": nodes,
            "present": present,
            "job": job,
            "machine": shop.machines[job, operation],
            "action_mask": self.action_masks().astype(np.int8),
        }
