"""Commands for a person's own shop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from peira.control.isbjssp import exact
from peira.control.isbjssp.policy import DispatchNetwork
from peira.control.isbjssp.ppo import PPO, DispatchTrainer, Reward
from peira.control.isbjssp.schedule import Schedule, draw_gantt, validate_schedule
from peira.control.isbjssp.shop import JobShop
from peira.control.isbjssp.simulator import RULES, Policy, replay_orders, simulate_shop
from peira.data import DataError, read_table
from peira.data.tables import write_table
from peira.engine.errors import PeiraError
from peira.engine.files import atomic_path

__all__ = ["compare", "gantt", "random_shop", "simulate", "solve", "train", "validate"]

ShopFile = Annotated[Path, typer.Argument(help="instance, JSPLIB or Taillard format")]
RuleName = Annotated[str, typer.Option(help=f"dispatching rule: {', '.join(RULES)}")]
PolicyFile = Annotated[Path | None, typer.Option(help="network from `train`; instead of a rule")]
Shutdown = Annotated[
    float, typer.Option("--shutdown", "-p", help="probability of a shutdown before each job")
]
When = Annotated[
    Literal["idle", "running"], typer.Option(help="machines go down idle, or while they process")
]
AllowZero = Annotated[bool, typer.Option("--allow-zero", help="accept durations of 0")]
Seed = Annotated[int, typer.Option(min=0, help="of the shutdowns and of the rule `random`")]
CalendarFile = Annotated[
    Path | None, typer.Option(help="CSV of known shutdowns: machine, start, end")
]


def simulate(
    shop: ShopFile,
    rule: RuleName = "FIFO",
    policy: PolicyFile = None,
    shutdown: Shutdown = 0.0,
    when: When = "idle",
    seed: Seed = 0,
    swap: Annotated[bool, typer.Option(help="jobs may change places")] = True,
    calendar: CalendarFile = None,
    output: Annotated[Path | None, typer.Option(help="write the schedule to this CSV")] = None,
    allow_zero: AllowZero = False,
) -> None:
    """Schedule a shop with a dispatching rule or a trained network."""
    schedule = _schedule(shop, rule, policy, shutdown, when, seed, swap, calendar, allow_zero)
    _show(schedule, output)


def solve(
    shop: ShopFile,
    seconds: Annotated[float, typer.Option(min=0.1, help="time for the solver")] = 60.0,
    workers: Annotated[int, typer.Option(min=1, help="threads of the solver")] = 1,
    output: Annotated[Path | None, typer.Option(help="write the schedule to this CSV")] = None,
) -> None:
    """Find the shortest schedule without interruptions, or a good one with a lower bound."""
    instance = JobShop.from_file(shop)
    solution = exact.solve_shop(instance, seconds, workers)
    schedule = replay_orders(instance, solution.orders)
    schedule.validate()
    _show(schedule, output)
    known = "optimal" if solution.proved else f"not below {solution.bound}"
    Console().print(f"{known}; solver time {solution.seconds:.1f} s")


def compare(
    shops: Annotated[list[Path], typer.Argument(help="instances, JSPLIB or Taillard format")],
    policy: PolicyFile = None,
    shutdown: Shutdown = 0.0,
    when: When = "idle",
    repeats: Annotated[int, typer.Option(min=1, help="shutdown seeds for each shop")] = 50,
    allow_zero: AllowZero = False,
) -> None:
    """Mean makespan of every rule (and a trained network) on the same shutdowns."""
    from peira.control.isbjssp.evaluation import makespans

    instances = [JobShop.from_file(path, allow_zero) for path in shops]
    methods: dict[str, str | DispatchNetwork] = {rule: rule for rule in RULES}
    if policy is not None:
        methods[policy.stem] = DispatchNetwork.load(policy)
    table = Table("method", *(shop.name for shop in instances), "mean")
    results = {}
    for name, method in track(methods.items(), "simulating", transient=True):
        results[name] = makespans(instances, method, shutdown, repeats, 0, when).mean(1)
    for name, row in sorted(results.items(), key=lambda item: item[1].mean()):
        table.add_row(name, *(f"{value:.1f}" for value in row), f"{row.mean():.1f}")
    Console().print(table)


def train(
    output: Annotated[Path, typer.Argument(help="where to write the network (safetensors)")],
    updates: Annotated[int, typer.Option(min=1, help="updates of 128 episodes each")] = 100,
    jobs: Annotated[tuple[int, int], typer.Option(help="fewest and most jobs")] = (6, 6),
    machines: Annotated[tuple[int, int], typer.Option(help="fewest and most machines")] = (5, 5),
    shutdown: Annotated[
        list[float] | None, typer.Option("--shutdown", "-p", help="probabilities to train on")
    ] = None,
    reward: Annotated[Reward, typer.Option(help="what the network is paid for")] = "makespan",
    hidden: Annotated[int, typer.Option(min=4, help="width of the network")] = 64,
    seed: Seed = 0,
) -> None:
    """Train a dispatching network on random shops."""
    import torch

    if not (1 <= jobs[0] <= jobs[1] and 1 <= machines[0] <= machines[1]):
        raise PeiraError(f"sizes must rise: jobs {jobs}, machines {machines}")
    torch.manual_seed(seed)
    network = DispatchNetwork(hidden)
    trainer = DispatchTrainer(
        network, np.random.default_rng(seed), torch.Generator().manual_seed(seed),
        PPO(reward=reward), jobs=jobs, machines=machines,
        shutdowns=shutdown or (0.0, 0.05, 0.1, 0.2), updates=updates,
    )  # fmt: skip
    history = [trainer.step() for _ in track(range(updates), "training")]
    network.save(output)
    ratios = [step["makespan_over_load"] for step in history]
    tenth = max(1, updates // 10)
    Console().print(
        f"makespan / mean machine load: {np.mean(ratios[:tenth]):.3f} at first, "
        f"{np.mean(ratios[-tenth:]):.3f} at last; network in {output}"
    )


def gantt(
    shop: ShopFile,
    output: Annotated[Path, typer.Argument(help="picture to write: .png, .pdf or .svg")],
    rule: RuleName = "FIFO",
    policy: PolicyFile = None,
    shutdown: Shutdown = 0.0,
    when: When = "idle",
    seed: Seed = 0,
    calendar: CalendarFile = None,
    allow_zero: AllowZero = False,
) -> None:
    """Draw the Gantt chart of a rule or a trained network."""
    import matplotlib

    matplotlib.use("Agg")
    axes = draw_gantt(
        _schedule(shop, rule, policy, shutdown, when, seed, True, calendar, allow_zero)
    )
    try:
        with atomic_path(output) as temporary:
            axes.figure.savefig(temporary, dpi=150, format=output.suffix.lstrip(".") or "png")
    except ValueError as error:
        raise PeiraError(f"{output}: {error}") from error
    Console().print(f"chart in {output}")


def validate(
    shop: ShopFile,
    schedule: Annotated[
        Path, typer.Argument(help="CSV: job, operation, machine, start, end_processing, release")
    ],
    calendar: CalendarFile = None,
    swap: Annotated[bool, typer.Option(help="jobs may change places")] = True,
    allow_zero: AllowZero = False,
) -> None:
    """Check a schedule of any origin against the rules of the shop."""
    names = ("job", "operation", "machine", "start", "end_processing", "release")
    table = read_table(schedule, columns=dict.fromkeys(names, "int"))
    outages = pd.DataFrame(_calendar(calendar), columns=["machine", "start", "end"])
    validate_schedule(JobShop.from_file(shop, allow_zero), table, outages, swap)
    Console().print(f"valid; makespan {table['release'].max()}")


def random_shop(
    output: Annotated[Path, typer.Argument(help="instance to write, JSPLIB format")],
    jobs: Annotated[int, typer.Option(min=1)] = 10,
    machines: Annotated[int, typer.Option(min=1)] = 5,
    longest: Annotated[int, typer.Option(min=1, help="longest duration")] = 99,
    seed: Seed = 0,
) -> None:
    """Write a random instance: uniform durations, every machine once, in random order."""
    shop = JobShop.random(jobs, machines, np.random.default_rng(seed), longest)
    with atomic_path(output) as temporary:
        Path(temporary).write_text(shop.to_text(), encoding="utf-8")
    Console().print(f"{jobs} jobs, {machines} machines in {output}")


def _schedule(
    shop: Path,
    rule: str,
    policy: Path | None,
    shutdown: float,
    when: Literal["idle", "running"],
    seed: int,
    swap: bool,
    calendar: Path | None,
    allow_zero: bool,
) -> Schedule:
    method: str | Policy = rule if policy is None else DispatchNetwork.load(policy)
    instance = JobShop.from_file(shop, allow_zero)
    schedule = simulate_shop(instance, method, shutdown, seed, when, swap, _calendar(calendar))
    schedule.validate(swap)
    return schedule


def _calendar(path: Path | None) -> list[tuple[int, int, int]]:
    if path is None:
        return []
    table = read_table(path, columns=dict.fromkeys(("machine", "start", "end"), "int"))
    wrong = table.query("start < 0 or end <= start")
    if len(wrong):
        row = int(wrong.index[0])
        raise DataError(
            "shutdown ends before it starts", path, row + 2, "end", int(wrong["end"].iloc[0]),
            f"more than start, {int(wrong['start'].iloc[0])}",
        )  # fmt: skip
    return list(table[["machine", "start", "end"]].itertuples(index=False, name=None))


def _show(schedule: Schedule, output: Path | None) -> None:
    console = Console()
    if output is not None:
        write_table(output, schedule.table)
    else:
        table = Table(*schedule.table.columns)
        for row in schedule.table.itertuples(index=False):
            table.add_row(*map(str, row))
        console.print(table)
    lost = int((schedule.outages["end"] - schedule.outages["start"]).sum())
    console.print(
        f"{schedule.shop.name}: makespan {schedule.makespan}, blocked time "
        f"{schedule.table['blocked_time'].sum()}; {len(schedule.outages)} shutdowns, {lost} in all"
    )
