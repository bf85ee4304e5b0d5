"""Job shops with blocking, swaps and interruptions, and networks that dispatch, in one place."""

from peira.control.isbjssp.environment import JobShopEnv
from peira.control.isbjssp.evaluation import makespans
from peira.control.isbjssp.exact import Solution, reoptimise_shop, solve_shop
from peira.control.isbjssp.graph import observe, to_pyg
from peira.control.isbjssp.l2d import L2DNetwork
from peira.control.isbjssp.live import LiveShop
from peira.control.isbjssp.policy import DispatchNetwork
from peira.control.isbjssp.ppo import PPO, DispatchTrainer
from peira.control.isbjssp.schedule import Schedule, draw_gantt, validate_schedule
from peira.control.isbjssp.shop import JobShop, ft06
from peira.control.isbjssp.simulator import (
    RULES,
    Episode,
    best_of_random,
    draw_outages,
    replay_orders,
    simulate_shop,
)

__all__ = [
    "PPO",
    "RULES",
    "DispatchNetwork",
    "DispatchTrainer",
    "Episode",
    "JobShop",
    "JobShopEnv",
    "L2DNetwork",
    "LiveShop",
    "Schedule",
    "Solution",
    "best_of_random",
    "draw_gantt",
    "draw_outages",
    "ft06",
    "makespans",
    "observe",
    "reoptimise_shop",
    "replay_orders",
    "simulate_shop",
    "solve_shop",
    "to_pyg",
    "validate_schedule",
]
