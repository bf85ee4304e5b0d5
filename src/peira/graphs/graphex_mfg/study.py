"""How the claims are tested: limits against graphs, learning rules, one agent retrained."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field
from scipy.sparse import csr_array

import peira
from peira.data import fingerprint, locate
from peira.engine.verdict import (
    Verdict,
    above,
    all_of,
    below,
    count,
    equivalent,
    smaller,
)
from peira.graphs.graphex_mfg.baselines import (
    LpGraphon,
    boltzmann_iteration,
    fictitious_play,
    fixed_point_iteration,
    heterogeneous_mean_field,
)
from peira.graphs.graphex_mfg.deviation import best_response_on_graph
from peira.graphs.graphex_mfg.games import GAMES, Game, named_game
from peira.graphs.graphex_mfg.graphex import SeparablePowerLaw
from peira.graphs.graphex_mfg.learning import Classes, propagate, solve
from peira.graphs.graphex_mfg.networks import adjacency, degrees_of
from peira.graphs.graphex_mfg.persistence import keep_neighbours
from peira.graphs.graphex_mfg.simulation import Simulation, delta_mu, simulate

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

GRAPHEX = SeparablePowerLaw(0.5)
COLLEGEMSG = ("collegemsg", "CollegeMsg.txt")
RATES = (0.1, 0.3, 1.0)
# Games of claim C3; the discontinuous one has no equilibrium to be learned.
SMOOTH = tuple(name for name in GAMES if name != "threshold-sis")
TRIALS_AT_ONCE = 10
MODELS = ("hybrid", "persistent", "core", "lp-graphon", "heterogeneous")


class Cell(peira.Cell):
    """One condition; `task` says which of the settings matter."""

    task: Literal["predict", "learn", "deviate"] = Field(
        "predict",
        description="compare a limit with a simulated graph, learn in the limit, or retrain one "
        "agent of the graph",
    )
    game: Literal["sis", "nonlinear-sis", "threshold-sis", "sir", "rumour", "colouring"] = "sis"
    network: Literal["graphex", "collegemsg", "karate"] = "graphex"
    nu: float = Field(150.0, gt=0, description="size of the sampled graph (sigma is 1/2)")
    model: Literal["hybrid", "persistent", "core", "lp-graphon", "heterogeneous"] = Field(
        "hybrid", description="limit system; `persistent` is the hybrid with neighbours that stay"
    )
    policy: Literal["uniform", "nothing", "learned"] = Field(
        "uniform", description="what agents play; `nothing` is always action 0"
    )
    solver: Literal["mirror-descent", "fixed-point", "fictitious-play", "boltzmann"] = (
        "mirror-descent"
    )
    rate: float = Field(0.3, gt=0, description="step size of mirror descent")
    agent: Literal["periphery", "core"] = Field(
        "periphery", description="retrained agent: degree up to kstar, or above"
    )
    kstar: int = Field(10, ge=0, description="largest degree with a class of its own")
    trials: int = Field(20, ge=2, description="simulations of each graph")
    iterations: int = Field(300, ge=1, description="updates of the learning rule")
    episodes: int = Field(240, ge=32, description="plays for Q-learning")


def prediction_cells(nu: tuple[float, float], **settings: Any) -> list[Cell]:
    """All models on the larger graph; the hybrid on the smaller one; the broken dynamics."""
    cells = []
    for game in ("nonlinear-sis", "sis", "sir", "rumour"):
        cells += [Cell(game=game, model=m, nu=nu[0], **settings) for m in MODELS[:2]]
        cells += [Cell(game=game, model=m, nu=nu[1], **settings) for m in MODELS]
        learned = {"game": game, "policy": "learned", "rate": 0.1, "nu": nu[1]}
        cells += [Cell(model=m, **learned, **settings) for m in MODELS[:2]]
    threshold = {"game": "threshold-sis", "policy": "nothing"}
    return cells + [Cell(**threshold, nu=size, **settings) for size in nu]


def real_cells(network: str, games: tuple[str, ...], **settings: Any) -> list[Cell]:
    """All models on one real network."""
    return [
        Cell(game=game, model=model, network=network, **settings)
        for game in games
        for model in MODELS
    ]


def learning_cells(games: tuple[str, ...], **settings: Any) -> list[Cell]:
    """Mirror descent at three step sizes, and the other learning rules."""
    cells = []
    for game in games:
        cells += [Cell(task="learn", game=game, rate=rate, **settings) for rate in RATES]
        for solver in ("fixed-point", "fictitious-play", "boltzmann"):
            cells.append(Cell(task="learn", game=game, solver=solver, **settings))
    return cells


def deviation_cells(nu: tuple[float, float], **settings: Any) -> list[Cell]:
    """One agent of the periphery and one of the core, on two sizes."""
    return [
        Cell(task="deviate", policy="learned", agent=agent, nu=size, rate=0.1, **settings)
        for size in nu
        for agent in ("periphery", "core")
    ]


class Study(peira.Study[Cell]):
    """Mean-field error, exploitability and gain of a deviating agent."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(
            [
                Cell(game="nonlinear-sis", nu=20, trials=4),
                Cell(game="nonlinear-sis", model="lp-graphon", nu=20, trials=4),
                Cell(game="rumour", model="persistent", nu=15, trials=4),
                Cell(game="sir", network="karate", model="heterogeneous", trials=4),
                Cell(game="sis", model="core", policy="learned", nu=15, trials=4, iterations=20),
                Cell(task="learn", game="rumour", kstar=3, iterations=20),
                Cell(task="learn", solver="fictitious-play", iterations=10),
                Cell(task="deviate", nu=10, iterations=20, episodes=32, kstar=3),
            ],
            seeds=2,
        ),
        "small": peira.Scale(
            prediction_cells((50.0, 150.0))
            + real_cells("collegemsg", ("sis", "sir", "nonlinear-sis"))
            + learning_cells(SMOOTH)
            + deviation_cells((50.0, 150.0)),
            seeds=5,
        ),
        "paper": peira.Scale(
            prediction_cells((50.0, 150.0), trials=50)
            + prediction_cells((500.0, 1500.0), trials=50)
            + real_cells("collegemsg", SMOOTH, trials=50)
            + real_cells("collegemsg", SMOOTH, trials=50, policy="learned", iterations=1000)
            + learning_cells(SMOOTH)
            + learning_cells(SMOOTH, iterations=1000)
            + deviation_cells((50.0, 150.0))
            + deviation_cells((150.0, 500.0), episodes=2000),
            seeds=10,
        ),
    }

    def inputs(self, cell: Cell) -> dict[str, str]:
        if cell.network != "collegemsg":
            return {}
        return {"collegemsg": fingerprint(locate(*COLLEGEMSG))}

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float]:
        return {"predict": predict, "learn": learn, "deviate": deviate}[cell.task](cell, run)

    def claims(self, table: pd.DataFrame) -> Iterator[Verdict]:
        claim = self.claim("C1")
        large = {**_predict("nonlinear-sis"), "nu": _largest(table)}
        yield all_of(
            claim,
            [
                smaller(table, "delta_mu", large, {**large, "nu": 50.0}, claim.parts[0]),
                below(table, "delta_mu", large, claim.parts[1]),
            ],
        )
        yield self._against_other_limits(table)
        yield self._learning(table)
        yield self._deviation(table)
        claim = self.claim("C5")
        broken = {**_predict("threshold-sis"), "policy": "nothing", "nu": _largest(table)}
        yield all_of(
            claim,
            [
                above(table, "delta_mu", broken, claim.parts[0]),
                above(table, "spread", broken, claim.parts[1]),
            ],
        )
        yield self._published_order(table)
        claim = self.claim("C7")
        learned = {"policy": "learned", "nu": _largest(table)}
        yield all_of(
            claim,
            [
                below(table, "delta_mu", {**_predict(game), **learned}, part)
                for game, part in zip(("sis", "rumour"), claim.parts, strict=True)
            ],
        )

    def _against_other_limits(self, table: pd.DataFrame) -> Verdict:
        claim = self.claim("C2")
        size = {"nu": _largest(table)}
        nonlinear, linear = ({**_predict(g), **size} for g in ("nonlinear-sis", "sis"))
        core, lp = {"model": "core"}, {"model": "lp-graphon"}
        parts = claim.parts
        return all_of(
            claim,
            [
                smaller(table, "delta_mu", nonlinear, nonlinear | core, parts[0]),
                smaller(table, "delta_mu", nonlinear, nonlinear | lp, parts[1]),
                smaller(table, "delta_mu", linear, linear | lp, parts[2]),
                equivalent(table, "delta_mu", linear, linear | core, parts[3]),
            ],
        )

    def _learning(self, table: pd.DataFrame) -> Verdict:
        claim = self.claim("C3")
        left = {}
        rows = table[(table["task"] == "learn") & (table["iterations"] == 300)]
        descent = rows[rows["solver"] == "mirror-descent"]
        if len(descent):
            left = descent.groupby("game")["exploitability_left"].min().to_dict()
        fixed = rows[(rows["solver"] == "fixed-point") & (rows["game"] == "sis")]
        return all_of(
            claim,
            [
                count({game: ratio <= 0.05 for game, ratio in left.items()}, claim.parts[0]),
                count(
                    {"sis": float(fixed["exploitability_left"].min()) > 0.05} if len(fixed) else {},
                    claim.parts[1],
                ),
            ],
        )

    def _deviation(self, table: pd.DataFrame) -> Verdict:
        claim = self.claim("C4")
        verdicts = []
        for number, agent in enumerate(("periphery", "core")):
            at = {"task": "deviate", "agent": agent, "episodes": 240}
            near, far = {**at, "nu": 50.0}, {**at, "nu": 150.0}
            verdicts.append(below(table, "gain_percent", far, claim.parts[2 * number]))
            part = claim.parts[2 * number + 1]
            verdicts.append(smaller(table, "gain_percent", far, near, part))
        return all_of(claim, verdicts)

    def _published_order(self, table: pd.DataFrame) -> Verdict:
        claim = self.claim("C6")
        places = [
            {**_predict("sis"), "network": "collegemsg"},
            {**_predict("sir"), "network": "collegemsg"},
            {**_predict("sir"), "nu": _largest(table)},
        ]
        return all_of(
            claim,
            [
                smaller(table, "delta_mu", place, {**place, "model": "lp-graphon"}, part)
                for place, part in zip(places, claim.parts, strict=True)
            ],
        )

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        from matplotlib.figure import Figure

        curves = curves.astype({"step": int, "value": float})
        figure = Figure(figsize=(15, 5), layout="constrained")
        axes = figure.subplots(1, 3)
        _draw_mean_fields(axes[0], curves)
        _draw_errors(axes[1], table)
        _draw_learning(axes[2], curves)
        return figure


def _predict(game: str) -> dict[str, Any]:
    return {
        "task": "predict", "game": game, "model": "hybrid", "policy": "uniform",
        "network": "graphex",
    }  # fmt: skip


def _largest(table: pd.DataFrame) -> float:
    """Size at which the card's thresholds are written; the smoke scale has only smaller ones."""
    sizes = table.loc[table["task"] == "predict", "nu"]
    return 150.0 if (sizes == 150.0).any() or not len(sizes) else float(sizes.max())


def predict(cell: Cell, run: peira.Run) -> dict[str, float]:
    """Error of a limit's mean field on one graph."""
    game = named_game(cell.game)
    graph = network(cell, run.seed)
    solution = limit(cell, degrees_of(graph), run.budget(cell.iterations))
    # Policies that do not depend on the model are simulated once for all models.
    own = cell.policy == "learned" and cell.model in ("core", "lp-graphon")
    actor = cell.model if own else "hybrid"
    played: Simulation = run.shared(
        "play", lambda sub, **_: play(cell, game, graph, solution, sub), actor=actor,
        **cell.model_dump(include={"game", "network", "nu", "policy", "trials", "iterations"}),
    )  # fmt: skip
    predicted = _prediction(cell, game, solution, played)
    for t, (guess, real) in enumerate(zip(predicted, played.mean_fields.mean(0), strict=True)):
        run.log(t, predicted=guess[1], simulated=real[1])
    return {
        "delta_mu": delta_mu(played.mean_fields, predicted),
        "spread": played.spread(),
        "nodes": float(graph.shape[0]),
        "edges": graph.nnz / 2,
    }


def network(cell: Cell, seed: int) -> csr_array:
    """Graph of the cell; the same for all cells of a seed and size."""
    if cell.network == "graphex":
        return GRAPHEX.sample(cell.nu, np.random.default_rng([seed, 1]))
    return _real_network(cell.network)


@cache
def _real_network(name: str) -> csr_array:
    if name == "karate":
        import networkx

        return adjacency(networkx.karate_club_graph())
    return adjacency(locate(*COLLEGEMSG))


def limit(cell: Cell, degrees: np.ndarray, iterations: int) -> Classes:
    """Limit system of the cell's model; the heterogeneous one plays the hybrid's policies."""
    game = named_game(cell.game)
    graphex: Any = LpGraphon(degrees) if cell.model == "lp-graphon" else GRAPHEX
    kstar = 0 if cell.model in ("core", "lp-graphon") else cell.kstar
    if cell.policy == "learned":
        if cell.model == "lp-graphon":
            return solve(game, graphex, kstar, iterations, cell.rate)
        return learned(cell.game, kstar, iterations, cell.rate)
    if cell.policy == "uniform":
        return propagate(game, graphex, kstar)
    shape = (game.horizon, len(game.states), len(game.actions))
    nothing = np.zeros((max(len(graphex.neighbour_matrix()), kstar), *shape))
    nothing[..., 0] = 1.0
    return propagate(
        game, graphex, kstar, nothing[: len(graphex.neighbour_matrix())], nothing[:kstar]
    )


@cache
def learned(game: str, kstar: int, iterations: int, rate: float) -> Classes:
    """Equilibrium in the limit. It has no randomness, so seeds share it."""
    return solve(named_game(game), GRAPHEX, kstar, iterations, rate)


def play(cell: Cell, game: Game, graph: csr_array, solution: Classes, run: peira.Run) -> Simulation:
    """Simulate the graph, a few trials at a time so that a long cell can resume."""
    batches = -(-cell.trials // TRIALS_AT_ONCE)
    sizes = [len(part) for part in np.array_split(np.arange(cell.trials), batches)]
    state: dict[str, Any] = {"parts": []}
    for step in run.steps(batches, save=[state], name="trials"):
        rng = np.random.default_rng([run.seed, 2, step])
        with warnings.catch_warnings():
            # The spread that simulate warns of is a metric here.
            warnings.simplefilter("ignore", UserWarning)
            part = simulate(game, graph, solution, sizes[step - 1], rng)
        state["parts"] = [*state["parts"], part.mean_fields]
        state["last"] = part
    return replace(state["last"], mean_fields=np.concatenate(state["parts"]))


def _prediction(cell: Cell, game: Game, solution: Classes, played: Simulation) -> np.ndarray:
    degrees = played.degrees
    if cell.model == "persistent":
        return keep_neighbours(solution).mean_field(degrees)
    if cell.model != "heterogeneous":
        return solution.mean_field(degrees)
    fields = heterogeneous_mean_field(game, degrees, cell.kstar, solution.policies)
    return np.tensordot(solution.weights(degrees), fields, 1)


def learn(cell: Cell, run: peira.Run) -> dict[str, float]:
    """Exploitability that a learning rule leaves, relative to uniform play."""
    gains = _gains(cell.game, cell.solver, cell.rate, cell.kstar, run.budget(cell.iterations))
    for step in range(0, len(gains), max(1, len(gains) // 60)):
        run.log(step, exploitability=gains[step, -1])
    left = gains[-1] / np.maximum(gains[0], 1e-12)
    return {
        "exploitability_left": float(left.max()),
        "core_exploitability": float(gains[-1, -1]),
    }


@cache
def _gains(game: str, solver: str, rate: float, kstar: int, iterations: int) -> np.ndarray:
    """Exploitability by iteration and class (the last is the core)."""
    if solver == "mirror-descent":
        return learned(game, kstar, iterations, rate).gains
    rules = {
        "fixed-point": fixed_point_iteration,
        "fictitious-play": fictitious_play,
        "boltzmann": boltzmann_iteration,
    }
    return rules[solver](named_game(game), GRAPHEX, iterations)[1]


def deviate(cell: Cell, run: peira.Run) -> dict[str, float]:
    """Gain of one retrained agent, in percent of the size of its equilibrium return."""
    graph = network(cell, run.seed)
    degrees = degrees_of(graph)
    inside = degrees <= cell.kstar if cell.agent == "periphery" else degrees > cell.kstar
    rng = np.random.default_rng([run.seed, 3])
    agent = int(rng.choice(np.flatnonzero(inside)))
    solution = learned(cell.game, cell.kstar, run.budget(cell.iterations), cell.rate)
    found = best_response_on_graph(
        named_game(cell.game), graph, solution, agent, cell.episodes, rng
    )
    size = abs(found.value)
    return {
        "gain": found.gain,
        "gain_percent": 100 * found.gain / size,
        "gain_error_percent": 100 * found.error / size,
        "degree": float(degrees[agent]),
    }


def _draw_mean_fields(axes: Any, curves: pd.DataFrame) -> None:
    rows = curves[(curves["task"] == "predict") & (curves["game"] == "nonlinear-sis")]
    rows = rows[(rows["policy"] == "uniform") & (rows["network"] == "graphex")]
    rows = rows[rows["nu"] == rows["nu"].max()]
    real = rows[(rows["name"] == "simulated") & (rows["model"] == "hybrid")]
    by_step = real.pivot_table(index="step", columns="seed", values="value")
    axes.fill_between(by_step.index, by_step.min(axis=1), by_step.max(axis=1), color="0.85")
    axes.plot(by_step.index, by_step.mean(axis=1), "k", lw=3, label="simulated graphs")
    for number, model in enumerate(MODELS):
        part = rows[(rows["name"] == "predicted") & (rows["model"] == model)]
        mean = part.groupby("step")["value"].mean()
        if len(mean):
            axes.plot(mean.index, mean, "--", color=f"C{number}", label=model)
    axes.set(xlabel="time", ylabel="share infected", title="Nonlinear SIS: limits and graph")
    axes.legend(frameon=False, fontsize="small", loc="lower right", bbox_to_anchor=(1.0, 0.12))


def _draw_errors(axes: Any, table: pd.DataFrame) -> None:
    rows = table[(table["task"] == "predict") & (table["policy"] == "uniform")]
    rows = rows[(rows["network"] != "graphex") | (rows["nu"] == rows["nu"].max())]
    place = rows["game"] + "\n" + rows["network"]
    places = sorted(place.unique(), reverse=True)
    for number, model in enumerate(MODELS):
        of_model = rows[rows["model"] == model].groupby(place)["delta_mu"]
        mean, error = of_model.mean(), of_model.std().fillna(0.0)
        height = [places.index(name) + 0.32 - 0.16 * number for name in mean.index]
        axes.barh(height, mean, 0.16, xerr=error, color=f"C{number}", label=model)
    axes.set_yticks(range(len(places)), places, fontsize="small")
    axes.set(xlabel="mean-field error (%), bar: s.d. over seeds", title="Error of the limits")
    axes.set_xlim(0.0, 1.35 * axes.get_xlim()[1])
    axes.legend(frameon=False, fontsize="small", loc="center right")


def _draw_learning(axes: Any, curves: pd.DataFrame) -> None:
    rows = curves[(curves["task"] == "learn") & (curves["game"] == "sis")]
    rows = rows[rows["iterations"] == rows["iterations"].min()]
    for (solver, rate), part in rows.groupby(["solver", "rate"]):
        mean = part.groupby("step")["value"].mean()
        label = f"{solver}, rate {rate:g}" if solver == "mirror-descent" else solver
        style = "-" if solver == "mirror-descent" else ":"
        axes.plot(mean.index, mean, style, label=label)
    axes.set(
        xlabel="iteration", ylabel="exploitability of the core", yscale="log",
        title="Learning rules on SIS",
    )  # fmt: skip
    axes.set_ylim(bottom=0.15 * axes.get_ylim()[0])
    axes.legend(frameon=False, fontsize="small", loc="lower left")
