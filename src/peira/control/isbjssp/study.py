"""How the claims are tested: the cells, what one cell measures, the verdicts, the figure."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field

import peira
from peira.control.isbjssp.evaluation import makespans, one_sided_p
from peira.control.isbjssp.exact import reoptimise_shop, solve_shop
from peira.control.isbjssp.l2d import L2DNetwork
from peira.control.isbjssp.policy import DispatchNetwork, DispatchPolicy
from peira.control.isbjssp.ppo import PPO, DispatchTrainer
from peira.control.isbjssp.schedule import draw_gantt
from peira.control.isbjssp.shop import JobShop, ft06
from peira.control.isbjssp.simulator import RULES, best_of_random, replay_orders, simulate_shop
from peira.data import fingerprint, locate
from peira.engine import verdict as v

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What is left out of the learned method, or changed; "l2d" is another method's network and reward.
VARIANTS: dict[str, dict[str, Any]] = {
    "learned": {},
    "no-disjunctive": {"disjunctive": False},
    "static-graph": {"static": True},
    "waiting-reward": {"reward": "waiting"},
    "l2d": {"reward": "bound"},
}
ABLATIONS = {"C5": "no-disjunctive", "C5b": "static-graph", "C5c": "waiting-reward"}
NETWORKS: dict[str, type[DispatchPolicy]] = {"l2d": L2DNetwork}
# Networks that meet every set of shops, and those that also meet shutdowns.
EVERYWHERE, INTERRUPTED = ("learned", "waiting-reward", "l2d"), ("learned", "l2d")
# The rules that claim C2 ranks the learned one among.
RANKED = ("SPT", "LPT", "FIFO", "MTWR", "LTWR", "MOR", "random")
SHUTDOWNS = (0.0, 0.05, 0.1, 0.2)

FILES = {
    "lawrence": tuple(f"la{n:02d}" for n in range(1, 6)),
    "10x10": (
        *(f"la{n}" for n in range(16, 21)), "abz5", "abz6", "ft10",
        *(f"orb{n:02d}" for n in range(1, 11)),
    ),
    "lawrence-all": tuple(f"la{n:02d}" for n in range(1, 41)),
    **{f"la{n:02d}": (f"la{n:02d}",) for n in range(1, 6)},
}  # fmt: skip
# Random shops: how many, jobs, machines.
RANDOM = {"random-4x3": (6, 4, 3), "random-6x5": (6, 6, 5), "random-10x5": (100, 10, 5)}
# Proved with OR-Tools CP-SAT by another model of the same problem.
OPTIMA = {"ft06": 63, "la01": 793, "la03": 715, "la04": 743, "la05": 664}


class Cell(peira.Cell):
    """One way to schedule one set of shops under one probability of shutdowns."""

    method: Literal[
        "learned", "no-disjunctive", "static-graph", "waiting-reward", "l2d", "FIFO", "LIFO", "SPT",
        "LPT", "MTWR", "LTWR", "MOR", "LOR", "STPT", "LTPT", "random", "best-of-100", "cp-sat",
        "rolling-cp-sat",
    ] = "learned"  # fmt: skip
    shops: str = Field(
        "random-10x5", description="ft06, a set of random shops, or JSPLIB instances"
    )
    p: float = Field(0.0, ge=0, le=1, description="probability of a shutdown before each job")
    updates: int = Field(50, ge=1, description="training updates")
    episodes: int = Field(128, ge=1, description="training episodes in an update")
    hidden: int = Field(32, ge=4, description="channels of the network")
    learning_rate: float = Field(3e-3, gt=0, description="of Adam, falls to 0")
    jobs: tuple[int, int] = Field((6, 6), description="fewest and most jobs in training")
    machines: tuple[int, int] = Field((5, 5), description="fewest and most machines in training")
    repeats: int = Field(50, ge=1, description="shutdown seeds for each shop where p > 0")
    limit: float = Field(10.0, gt=0, description="seconds for the exact solver on each shop")


def grid(
    learned: dict[str, Any],
    everywhere: Sequence[str],
    shutdowns: Sequence[float],
    repeats: int = 50,
) -> list[Cell]:
    """All methods on `everywhere` without shutdowns, the ranked ones on the first set with them."""
    cells = [
        Cell(method=method, shops=everywhere[-1], **learned)  # type: ignore[arg-type]
        for method in VARIANTS
    ]
    others = [*RULES, "best-of-100"]
    for shops in everywhere:
        cells += [Cell(method=m, shops=shops, **learned) for m in EVERYWHERE]  # type: ignore[arg-type]
        cells += [Cell(method=method, shops=shops) for method in others]  # type: ignore[arg-type]
    for p in shutdowns:
        where: dict[str, Any] = {"shops": everywhere[0], "p": p, "repeats": repeats}
        cells += [Cell(method=m, **where, **learned) for m in INTERRUPTED]  # type: ignore[arg-type]
        cells += [Cell(method=method, **where) for method in RANKED]
    return cells


class Study(peira.Study[Cell]):
    """Seeds vary the training, the random shops and the shutdowns, the same for every method."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(
            cells=[
                *grid({"updates": 2, "hidden": 8, "episodes": 8}, ["random-4x3"], [0.2], repeats=3),
                Cell(method="cp-sat", shops="ft06"),
                Cell(method="cp-sat", shops="random-4x3"),
            ],
            seeds=2,
        ),
        "small": peira.Scale(
            cells=[
                *grid({}, ["lawrence", "10x10", "random-10x5"], SHUTDOWNS[1:]),
                Cell(method="cp-sat", shops="ft06"),
                Cell(method="cp-sat", shops="random-6x5"),
                Cell(method="cp-sat", shops="la01", limit=5),
            ],
            seeds=5,
        ),
        "paper": peira.Scale(
            cells=[
                *grid(
                    {"updates": 5000, "hidden": 64, "learning_rate": 3e-4, "jobs": (5, 9),
                     "machines": (5, 9)},
                    ["lawrence", "10x10", "lawrence-all", "random-10x5"],
                    SHUTDOWNS[1:],
                ),
                *(Cell(method="cp-sat", shops=name, limit=600) for name in OPTIMA),
                Cell(method="cp-sat", shops="la02", limit=600),
                *(Cell(method="rolling-cp-sat", shops="lawrence", p=p, limit=2, repeats=5)
                  for p in SHUTDOWNS[1:]),
            ],
            seeds=5,
        ),
    }  # fmt: skip

    def inputs(self, cell: Cell) -> dict[str, str]:
        """Fingerprint of the instance files."""
        return {"jsplib": fingerprint(files(cell.shops))} if cell.shops in FILES else {}

    def seeds(self, cell: Cell, asked: int) -> int:
        """Exact solutions of given instances do not depend on the seed; only times do."""
        return min(asked, 3) if cell.method == "cp-sat" and cell.shops not in RANDOM else asked

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float | peira.Censored]:
        """Schedule the shops of a cell."""
        shops = read(cell.shops, run.seed)
        if cell.method == "cp-sat":
            return prove(shops, cell.limit)
        if cell.method == "rolling-cp-sat":
            return {"makespan": roll(shops, cell, run.seed)}
        if cell.method == "best-of-100":
            return {
                "makespan": float(np.mean([best_of_random(s, 100, 0.0, run.seed) for s in shops]))
            }
        random = cell.p > 0 or cell.method == "random"
        repeats = cell.repeats if random else 1
        if cell.method not in VARIANTS:
            return {
                "makespan": float(makespans(shops, cell.method, cell.p, repeats, run.seed).mean())
            }
        return self.schedule(cell, run, shops, repeats)

    def schedule(
        self, cell: Cell, run: peira.Run, shops: list[JobShop], repeats: int
    ) -> dict[str, float | peira.Censored]:
        """Train (once for all cells that ask for the same network), then schedule greedily."""
        trained = run.shared(
            f"policy-{cell.method}", train, variant=cell.method, updates=cell.updates,
            episodes=cell.episodes, hidden=cell.hidden, learning_rate=cell.learning_rate,
            jobs=cell.jobs, machines=cell.machines,
        )  # fmt: skip
        for step, ratio in trained["history"]:
            run.log(step, makespan_over_load=ratio)
        network = NETWORKS.get(cell.method, DispatchNetwork)(**trained["settings"])
        network.load_state_dict(trained["weights"])
        ours = makespans(shops, network, cell.p, repeats, run.seed).mean(1)
        # The first call of a process loads compiled code; only the second is timed.
        simulate_shop(shops[0], network)
        began = time.perf_counter()
        simulate_shop(shops[0], network)
        measured: dict[str, float | peira.Censored] = {
            "makespan": float(ours.mean()),
            "schedule_seconds": time.perf_counter() - began,
        }
        if cell.p == 0:
            rules = [makespans(shops, rule).mean(1) for rule in RULES[:-1]]
            measured["p_best_rule"] = one_sided_p(ours, min(rules, key=np.mean))
        return measured

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        """One verdict for each claim of the card."""
        ratios, ranks = relative(table), ranking(table)
        here: dict[str, Any] = {"p": 0.0, "shops": "random-10x5"}
        yield v.exactly(facts(table), self.claim("C0"))
        yield from (
            self.against_rules(table, ratios, claim, method)
            for claim, method in (("C1", "learned"), ("C1b", "waiting-reward"))
        )
        claim = self.claim("C2")
        yield v.all_of(
            claim,
            [
                v.below(ranks, "rank", {"method": "learned", "p": p}, part)
                for p, part in zip(SHUTDOWNS, claim.parts, strict=True)
            ],
        )
        group: dict[str, Any] = {"method": "learned", "shops": "10x10", "p": 0.0}
        yield v.below(ratios, "over_best_rule", group, self.claim("C3"))
        claim = self.claim("C4")
        quick = {"method": "learned", "shops": "lawrence", "p": 0.0}
        slow = {"method": "cp-sat", "shops": "la01"}
        yield v.all_of(
            claim,
            [
                v.below(table, "schedule_seconds", quick, claim.parts[0]),
                v.sooner(table, "schedule_seconds", quick, slow, claim.parts[1]),
            ],
        )
        for name, variant in ABLATIONS.items():
            pair = ({"method": "learned", **here}, {"method": variant, **here})
            pair = pair[::-1] if variant == "waiting-reward" else pair
            yield v.smaller(table, "makespan", *pair, self.claim(name))
        claim = self.claim("C6")
        places = [here, {"p": 0.0, "shops": "10x10"}, {"p": 0.2, "shops": "lawrence"}]
        yield v.all_of(
            claim,
            [
                v.smaller(
                    table, "makespan", {"method": "learned", **place}, {"method": "l2d", **place},
                    part,
                )
                for place, part in zip(places, claim.parts, strict=True)
            ],
        )  # fmt: skip

    def against_rules(
        self, table: pd.DataFrame, ratios: pd.DataFrame, name: str, method: str
    ) -> v.Verdict:
        """Better than the best rule in hindsight on both sets, shop by shop, and than chance."""
        claim = self.claim(name)
        lawrence, drawn = (
            {"method": method, "shops": shops, "p": 0.0} for shops in ("lawrence", "random-10x5")
        )
        return v.all_of(
            claim,
            [
                v.below(ratios, "over_best_rule", lawrence, claim.parts[0]),
                v.below(ratios, "over_best_rule", drawn, claim.parts[1]),
                v.below(table, "p_best_rule", drawn, claim.parts[2]),
                v.below(ratios, "over_random", drawn, claim.parts[3]),
            ],
        )

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        """Two Gantt charts of ft06, training curves, makespan against shutdowns."""
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(2, 2, figsize=(13, 8.5), layout="constrained")
        shop = ft06()
        draw_gantt(replay_orders(shop, solve_shop(shop, 30).orders), axes[0, 0])
        axes[0, 0].set_title("ft06, optimal: makespan 63 (hatched: blocked)")
        interrupted = simulate_shop(shop, "FIFO", 0.2, 5)
        draw_gantt(interrupted, axes[0, 1])
        axes[0, 1].set_title(f"ft06, FIFO, p = 0.2: makespan {interrupted.makespan} (black: down)")
        draw_training(curves, axes[1, 0])
        draw_shutdowns(table, axes[1, 1])
        return figure


def files(shops: str) -> list[Any]:
    """Paths of the JSPLIB files of a set."""
    return [locate("jsplib", f"instances/{name}") for name in FILES[shops]]


def read(shops: str, seed: int) -> list[JobShop]:
    """The instances of a set; random ones depend on the seed and are not seen in training."""
    if shops == "ft06":
        return [ft06()]
    if shops in RANDOM:
        count, jobs, machines = RANDOM[shops]
        # The 1 keeps these shops apart from those of training.
        rng = np.random.default_rng((seed, 1))
        return [JobShop.random(jobs, machines, rng, name=f"{shops}-{n}") for n in range(count)]
    if shops not in FILES:
        known = ", ".join(["ft06", *RANDOM, *FILES])
        raise peira.PeiraError(f"no set of shops {shops!r}; choose from: {known}")
    return [JobShop.from_file(path, allow_zero=True) for path in files(shops)]


def train(
    run: peira.Run,
    variant: str,
    updates: int,
    episodes: int,
    hidden: int,
    learning_rate: float,
    jobs: tuple[int, int],
    machines: tuple[int, int],
) -> dict[str, Any]:
    """Train one variant of the network; returns its settings, weights and training curve."""
    changes = dict(VARIANTS[variant])
    settings = PPO(reward=changes.pop("reward", PPO.reward))
    torch.manual_seed(run.seed)
    network = NETWORKS.get(variant, DispatchNetwork)(hidden, **changes).to(run.device)
    trainer = DispatchTrainer(
        network, run.rng, run.generator, settings, learning_rate, episodes, jobs, machines,
        SHUTDOWNS, updates,
    )  # fmt: skip
    history: dict[str, list[tuple[int, float]]] = {"history": []}
    for step in run.steps(updates, save=(network, trainer.optimizer, trainer.schedule, history)):
        history["history"].append((step, trainer.step()["makespan_over_load"]))
    weights = {name: value.cpu() for name, value in network.state_dict().items()}
    return {"settings": network.settings, "weights": weights, **history}


def prove(shops: list[JobShop], limit: float) -> dict[str, float | peira.Censored]:
    """Solve each shop exactly and hold simulator, replay and rules against the optimum."""
    wrong = short = 0
    solutions = [solve_shop(shop, limit) for shop in shops]
    for shop, solution in zip(shops, solutions, strict=True):
        schedule = replay_orders(shop, solution.orders)
        schedule.validate()
        # A solution that is not proved optimal may have slack, which a replay takes out.
        slack = solution.makespan - schedule.makespan
        wrong += slack != 0 if solution.proved else slack < 0
        ordinary = [simulate_shop(shop, rule, seed=n).makespan for n, rule in enumerate(RULES)]
        short += sum(makespan < solution.bound for makespan in ordinary)
    proved = all(solution.proved for solution in solutions)
    seconds = float(np.mean([solution.seconds for solution in solutions]))
    return {
        "makespan": float(np.mean([solution.makespan for solution in solutions])),
        "bound": float(np.mean([solution.bound for solution in solutions])),
        "wrong_replays": float(wrong),
        "rules_below_bound": float(short),
        "schedule_seconds": seconds if proved else peira.Censored(after=limit),
    }


def roll(shops: list[JobShop], cell: Cell, seed: int) -> float:
    """Mean makespan of CP-SAT that plans anew at every shutdown."""
    runs = [
        reoptimise_shop(shop, cell.p, (seed, number, repeat), cell.limit).makespan
        for number, shop in enumerate(shops)
        for repeat in range(cell.repeats)
    ]
    return float(np.mean(runs))


def facts(table: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """What exact solutions say about the simulator: (measured, expected)."""
    rows = v.select(table, "cp-sat")
    pairs: dict[str, tuple[float, float]] = {}
    for shops, part in rows.groupby("shops") if len(rows) else ():
        pairs[f"{shops}: replays off the optimum"] = (float(part["wrong_replays"].sum()), 0)
        pairs[f"{shops}: rules below the bound"] = (float(part["rules_below_bound"].sum()), 0)
        proved = (part["makespan"] == part["bound"]).all()
        if shops in OPTIMA and proved:
            pairs[f"{shops}: optimum"] = (float(part["makespan"].max()), OPTIMA[str(shops)])
    return pairs


def relative(table: pd.DataFrame) -> pd.DataFrame:
    """Makespan of the networks over that of the best rule in hindsight, and over random."""
    keys = ["seed", "shops", "p"]
    rules = table[table["method"].isin(RULES[:-1])].groupby(keys)["makespan"].min()
    chance = table[table["method"] == "random"].groupby(keys)["makespan"].min()
    ours = table[table["method"].isin(VARIANTS)].set_index(keys)
    return ours.assign(
        over_best_rule=ours["makespan"] / rules.reindex(ours.index),
        over_random=ours["makespan"] / chance.reindex(ours.index),
    ).reset_index().dropna(subset=["over_best_rule", "over_random"])  # fmt: skip


def ranking(table: pd.DataFrame) -> pd.DataFrame:
    """Rank (1 is the shortest makespan) of the learned method on Lawrence's shops."""
    part = table[(table["shops"] == "lawrence") & table["method"].isin(["learned", *RANKED])]
    ranks = part.assign(rank=part.groupby(["seed", "p"])["makespan"].rank())
    return ranks[ranks["method"] == "learned"]


def draw_training(curves: pd.DataFrame, axes: Axes) -> None:
    """Makespan during training, mean over seeds with its 95% interval."""
    for variant in VARIANTS:
        part = v.select(curves, variant)
        if len(part):
            runs = part.pivot_table(index="step", columns="seed", values="value")
            smooth = runs.rolling(5, min_periods=1, center=True).mean()
            low, high = np.array([v.mean_interval(row) for row in smooth.to_numpy()]).T
            (line,) = axes.plot(smooth.index, smooth.mean(axis=1), label=variant)
            axes.fill_between(smooth.index, low, high, color=line.get_color(), alpha=0.12, lw=0)
    axes.set(
        xlabel="update", ylabel="makespan / mean load of a machine",
        title="Training on random shops",
    )  # fmt: skip
    axes.legend()


def draw_shutdowns(table: pd.DataFrame, axes: Axes) -> None:
    """Mean makespan against the probability of shutdowns; of networks with its 95% interval."""
    where = "lawrence" if (table["shops"] == "lawrence").any() else table["shops"].iloc[0]
    part = table[(table["shops"] == where) & table["method"].isin([*INTERRUPTED, *RANKED])]
    for method, rows in part.groupby("method"):
        by_p = rows.groupby("p")["makespan"]
        mean, strong = by_p.mean(), method in INTERRUPTED
        (line,) = axes.plot(
            mean.index, mean, "o-" if strong else ".--", lw=2.5 if strong else 1, label=method
        )
        if strong:
            low, high = np.array([v.mean_interval(part.to_numpy()) for _, part in by_p]).T
            axes.fill_between(mean.index, low, high, color=line.get_color(), alpha=0.2, lw=0)
    axes.set(
        xlabel="probability of a shutdown p", ylabel="mean makespan",
        title=f"Interruptions ({where})",
    )  # fmt: skip
    axes.legend(ncols=2)
