"""Tests the claims on the commuters of New York State and on simulated ones of known causes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from sklearn.ensemble import (
    AdaBoostClassifier,
    AdaBoostRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer

import peira
from peira import Run, Scale, Verdict
from peira.data import fingerprint
from peira.engine import verdict as v
from peira.graphs.commuters.evaluation import (
    Split,
    compare,
    flow_metrics,
    is_link,
    link_metrics,
    place_folds,
    prevalence_metrics,
    sample_links,
    sample_non_links,
)
from peira.graphs.commuters.method import CommuterModel, Task
from peira.graphs.commuters.new_york import load_new_york, new_york_files
from peira.graphs.commuters.simulator import simulate_commuters
from peira.graphs.commuters.spatial_models import GravityModel, RadiationModel
from peira.graphs.commuters.table import ODTable

LEARNERS = (
    "trees", "trees-totals", "distance", "indicators", "logistic", "forest", "neighbours",
    "adaboost", "mlp",
)  # fmt: skip
SPATIAL = {
    "log-linear": lambda: GravityModel(estimation="log-linear"),
    "gravity": lambda: GravityModel(),
    "gravity-exponential": lambda: GravityModel(deterrence="exponential"),
    "gravity-origin": lambda: GravityModel("origin"),
    "gravity-doubly": lambda: GravityModel("doubly"),
    "gravity-links": lambda: GravityModel("doubly"),
    "radiation": lambda: RadiationModel(),
}
FOLDS = 10
CAUSES = ("gdp", "unemployment")


class Cell(peira.Cell):
    """One model on one table under one split."""

    data: Literal["new-york", "simulated"] = "new-york"
    method: Literal[
        "trees", "trees-totals", "distance", "indicators", "logistic", "forest",
        "neighbours", "adaboost", "mlp", "log-linear", "gravity", "gravity-exponential",
        "gravity-origin", "gravity-doubly", "gravity-links", "radiation",
    ] = "trees"  # fmt: skip
    split: Split = Field("random", description="what training and test pairs may share")
    min_flow: float = Field(0.0, ge=0, description="smallest flow that is a link, people")
    links: int = Field(8000, ge=60, description="training links, at most; as many non-links")
    test_links: int = Field(2000, ge=20, description="test links, at most; as many non-links")
    non_links: int = Field(20_000, ge=100, description="test non-links, at most, to stand for all")
    places: int = Field(400, ge=20, description="simulated cities")
    repeats: int = Field(5, ge=0, description="permutations for importance; 0: none")
    rebuild: Literal["no", "unseen", "whole"] = "no"


class Sample(NamedTuple):
    """Training pairs; test links and non-links; how many there are to sample from."""

    train: Int[np.ndarray, "m 2"]
    links: Int[np.ndarray, "k 2"]
    non_links: Int[np.ndarray, "l 2"]
    link_population: int
    non_link_population: int
    unseen: Bool[np.ndarray, " places"]


def _cells(data: str, **settings: Any) -> list[Cell]:
    """All models under the random split."""
    plain = settings | {"repeats": 0}
    return [Cell(data=data, method="trees", **settings)] + [
        Cell(data=data, method=m, **plain) for m in (*LEARNERS[1:], *SPATIAL)
    ]


def _splits(**settings: Any) -> list[Cell]:
    plain = settings | {"repeats": 0}
    return [
        Cell(split="origin", **plain),
        Cell(split="node", rebuild="unseen", **plain),
        Cell(split="block", **plain),
        Cell(min_flow=10, **plain),
        Cell(min_flow=50, **plain),
    ]


SIMULATED = {"links": 4000, "test_links": 2000}
TINY = {"places": 90, "links": 100, "test_links": 60, "non_links": 500, "repeats": 2}
FULL = {"links": 300_000, "test_links": 50_000, "non_links": 1_000_000, "repeats": 20}


class Study(peira.Study[Cell]):
    """Links and flows of commuters by machine learning, gravity and radiation."""

    cell = Cell
    scales = {
        "smoke": Scale(cells=_cells("simulated", **TINY), seeds=2),
        "small": Scale(
            cells=_cells("new-york") + _splits() + [Cell(data="simulated", **SIMULATED)], seeds=5
        ),
        "paper": Scale(
            cells=_cells("new-york", **FULL)
            + _splits(**FULL)
            + [
                Cell(data="simulated", repeats=20, **SIMULATED),
                Cell(data="simulated", places=5565, rebuild="whole", **FULL),
            ],
            seeds=5,
        ),
    }

    def inputs(self, cell: Cell) -> dict[str, str]:
        """Fingerprint of the New York files."""
        if cell.data == "simulated":
            return {}
        return {"deepgravity-ny": fingerprint(new_york_files())}

    def measure(self, cell: Cell, run: Run) -> dict[str, float]:
        """Fit on sampled pairs, measure on pairs it has not seen."""
        simulated = cell.data == "simulated"
        net = simulate_commuters(run.rng, cell.places) if simulated else load_new_york()
        sample = draw_pairs(net, cell, run.rng)
        if cell.method in SPATIAL:
            return measure_spatial(net, sample, cell)
        return measure_learner(net, sample, cell, run.seed)

    def claims(self, table: pd.DataFrame) -> Iterator[Verdict]:
        """C1 to C6 of the card."""
        plain = {"data": "new-york", "split": "random", "min_flow": 0.0}
        trees = plain | {"method": "trees"}
        c1, c3, c5 = (self.claim(name) for name in ("C1", "C3", "C5"))
        only = [plain | {"method": method} for method in ("distance", "indicators")]
        yield v.all_of(
            c1,
            [
                v.above(table, "accuracy", trees, c1.parts[0]),
                v.larger(table, "accuracy", trees, only[0], c1.parts[1]),
                v.larger(table, "accuracy", trees, only[1], c1.parts[2]),
            ],
        )
        gravity = plain | {"method": "log-linear"}
        yield v.larger(table, "r2_log1p", trees, gravity, claim=self.claim("C2"))
        ranked = [
            {"data": d, "method": "trees", "split": "random", "min_flow": 0.0}
            for d in ("new-york", "simulated")
        ]
        ranked[1]["places"] = 400
        tasks: tuple[Task, ...] = ("links", "flows")
        first = [
            v.below(table, f"distance_rank_{task}", group, part)
            for (group, task), part in zip(
                [(g, t) for g in ranked for t in tasks], c3.parts[:4], strict=True
            )
        ]
        then = [
            v.count(_top_four(table, ranked[1], task), part)
            for task, part in zip(tasks, c3.parts[4:], strict=True)
        ]
        yield v.all_of(c3, first + then)
        unseen = trees | {"split": "node"}
        yield v.equivalent(table, "accuracy", unseen, trees, claim=self.claim("C4"))
        yield v.all_of(
            c5,
            [
                v.below(table, "precision_at_links", trees, c5.parts[0]),
                v.larger(table, "average_precision", trees, only[0], c5.parts[1]),
            ],
        )
        opponents = {name: plain | {"method": name} for name in SPATIAL}
        yield v.against_controls(v.larger, table, "cpc", trees, opponents, self.claim("C6"))

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        """Accuracy, what is left of it at the true share of links, flows, importance."""
        figure = Figure(figsize=(11, 7.5), layout="constrained")
        axes = figure.subplots(2, 2)
        data = "new-york" if (table["data"] == "new-york").any() else "simulated"
        rows = table[table["data"] == data]
        random = rows[(rows["split"] == "random") & (rows["min_flow"] == 0)]
        where = "New York State tracts" if data == "new-york" else "simulated cities"
        learners = {name: random[random["method"] == name] for name in LEARNERS[::-1]}
        trees = rows[(rows["method"] == "trees") & (rows["min_flow"] == 0)]
        learners |= {
            f"trees, {split} split": trees[trees["split"] == split]
            for split in ("origin", "node", "block")
        }
        _dots(axes[0, 0], {k: r["accuracy"] for k, r in learners.items()})
        axes[0, 0].axvline(0.5, color="black", linestyle=":", linewidth=1)
        axes[0, 0].set(title=f"Link or no link, 1:1 ({where})", xlabel="accuracy on unseen pairs")
        measures = {
            "accuracy, 1:1": "accuracy",
            "average precision, true share": "average_precision",
            "precision at true number of links": "precision_at_links",
            "true share of links": "prevalence",
        }
        best = learners["trees"]
        _dots(axes[0, 1], {k: best[name] for k, name in list(measures.items())[::-1]})
        axes[0, 1].set(title="The same model among all pairs", xlabel="share", xlim=(0, 1))
        flows = [*SPATIAL, "trees-totals", "trees"]
        _dots(axes[1, 0], {k: random[random["method"] == k]["cpc"] for k in flows[::-1]})
        axes[1, 0].set(title=f"Flows of given links ({where})", xlabel="common part of commuters")
        _draw_importance(axes[1, 1], table)
        return figure


def draw_pairs(net: ODTable, cell: Cell, rng: np.random.Generator) -> Sample:
    """Training and test pairs that share no more than the split allows."""
    fold = place_folds(net, cell.split, FOLDS, rng, block_km=10.0)
    unseen = fold == 0
    seen_places: dict[str, Any] = {"min_flow": cell.min_flow}
    test_places: dict[str, Any] = {"min_flow": cell.min_flow}
    if cell.split != "random":
        seen_places["origins"], test_places["origins"] = ~unseen, unseen
    if cell.split in ("node", "block"):
        seen_places["destinations"], test_places["destinations"] = ~unseen, unseen
    links = sample_links(net, None, rng, **test_places)
    rows = int(unseen.sum()) if "origins" in test_places else len(net)
    columns = int(unseen.sum()) if "destinations" in test_places else len(net)
    others = rows * columns - min(rows, columns) - len(links)
    test = links[: cell.test_links]
    if cell.split == "random":
        train = links[cell.test_links :][: cell.links]
        size = min(cell.non_links, others - len(train))
        drawn = sample_non_links(net, size + len(train), rng, **test_places)
        non_links, train_non = drawn[:size], drawn[size:]
        # Pairs in training are not scored, so they are no part of what is sampled.
        counts = len(links) - len(train), others - len(train_non)
    else:
        train = sample_links(net, None, rng, **seen_places)[: cell.links]
        train_non = sample_non_links(net, len(train), rng, **seen_places)
        non_links = sample_non_links(net, min(cell.non_links, others), rng, **test_places)
        counts = len(links), others
    pairs = rng.permutation(np.concatenate([train, train_non]))
    return Sample(pairs, test, non_links, *counts, unseen)


def make_learner(cell: Cell, seed: int) -> CommuterModel:
    """The model of a learning method; all get the same pairs."""
    model = CommuterModel(min_flow=cell.min_flow, random_state=seed)
    if cell.method == "distance":
        model.set_params(indicators=[])
    elif cell.method == "indicators":
        model.set_params(use_distance=False)
    elif cell.method in OTHERS:
        classifier, regressor = OTHERS[cell.method](seed)
        model.set_params(classifier=classifier, regressor=regressor)
    return model


def _on_scores(model: Any, seed: int) -> Any:
    # Counts and distances are skewed over decades: what is not a tree gets their normal scores.
    scores = QuantileTransformer(n_quantiles=50, output_distribution="normal", random_state=seed)
    return make_pipeline(scores, model)


def _linear(seed: int) -> tuple[Any, Any]:
    return _on_scores(LogisticRegression(max_iter=1000), seed), _on_scores(LinearRegression(), seed)


def _forest(seed: int) -> tuple[Any, Any]:
    settings = {"n_estimators": 100, "min_samples_leaf": 3, "max_features": "sqrt"}
    return (
        RandomForestClassifier(random_state=seed, **settings),
        RandomForestRegressor(random_state=seed, **settings),
    )


def _neighbours(seed: int) -> tuple[Any, Any]:
    settings = {"n_neighbors": 15, "weights": "distance"}
    return (
        _on_scores(KNeighborsClassifier(**settings), seed),
        _on_scores(KNeighborsRegressor(**settings), seed),
    )


def _adaboost(seed: int) -> tuple[Any, Any]:
    return (
        AdaBoostClassifier(n_estimators=100, random_state=seed),
        AdaBoostRegressor(n_estimators=100, random_state=seed),
    )


def _mlp(seed: int) -> tuple[Any, Any]:
    settings = {"hidden_layer_sizes": (64,), "early_stopping": True, "random_state": seed}
    return _on_scores(MLPClassifier(**settings), seed), _on_scores(MLPRegressor(**settings), seed)


# The paper's other learners: classifier of links and regressor of flows.
OTHERS: Mapping[str, Callable[[int], tuple[Any, Any]]] = {
    "logistic": _linear,
    "forest": _forest,
    "neighbours": _neighbours,
    "adaboost": _adaboost,
    "mlp": _mlp,
}


def measure_learner(net: ODTable, sample: Sample, cell: Cell, seed: int) -> dict[str, float]:
    """Link and flow measures, importance and rebuilt network of a learning method."""
    if cell.method == "trees-totals":
        net = net.with_indicators(out_total=net.out_totals, in_total=net.in_totals)
    model = make_learner(cell, seed).fit(net, sample.train)
    pairs = np.concatenate([sample.links, sample.non_links])
    probability = model.link_probability(pairs)
    linked = is_link(net.flows_of(pairs), cell.min_flow)
    balanced = slice(0, 2 * len(sample.links))
    weight = np.where(
        linked,
        sample.link_population / len(sample.links),
        sample.non_link_population / len(sample.non_links),
    )
    flow = net.flows_of(sample.links)
    metrics = (
        link_metrics(linked[balanced], probability[balanced])
        | prevalence_metrics(linked, probability, weight)
        | flow_metrics(flow, model.flow(sample.links))
        | {"cpc": flow_metrics(flow, model.flow(sample.links, statistic="mean"))["cpc"]}
    )
    if cell.repeats:
        metrics |= measure_importance(model, pairs[balanced], cell)
    if cell.rebuild == "unseen":
        part = net.among(sample.unseen)
        metrics |= _rebuilt(part, model.rebuild(len(part.links(cell.min_flow)), net=part))
    elif cell.rebuild == "whole":
        began = time.perf_counter()
        graph = model.rebuild(len(net.links(cell.min_flow)))
        metrics |= {"whole_seconds": time.perf_counter() - began} | _rebuilt(net, graph)
    return metrics


def _rebuilt(net: ODTable, graph: Any) -> dict[str, float]:
    return {f"rebuilt_{name}": value for name, value in compare(net, graph).items()}


def measure_importance(
    model: CommuterModel, pairs: Int[np.ndarray, "m 2"], cell: Cell
) -> dict[str, float]:
    """Joint permutation importance on unseen pairs and the ranks that C3 is about."""
    metrics = {}
    tasks: tuple[Task, ...] = ("links", "flows")
    for task in tasks:
        table = model.importance("joint", task, pairs, n_repeats=cell.repeats)
        names = list(table["feature"])
        metrics |= {
            f"importance_{task}/{name}": value
            for name, value in zip(names, table["mean"], strict=True)
        }
        metrics[f"distance_rank_{task}"] = names.index("distance") + 1
        if cell.data == "simulated":
            indicators = [name for name in names if name != "distance"]
            worst = max(indicators.index(name) for name in CAUSES)
            metrics[f"causes_rank_{task}"] = worst + 1
    return metrics


def measure_spatial(net: ODTable, sample: Sample, cell: Cell) -> dict[str, float]:
    """Flow measures of a gravity or radiation model on the links that the learners are given.

    It knows the true totals of all places, test flows included, which the learners do not;
    "gravity-links" also knows all links of the network. As the others spread people over pairs
    without a link too, they are scaled to the total of the training links.
    """
    flow = net.flows_of(sample.train)
    links = sample.train[is_link(flow, cell.min_flow)]
    model = SPATIAL[cell.method]().fit(net, links)
    given = {"among": net.links()} if cell.method == "gravity-links" else {}
    predicted = model.predict(net, np.concatenate([links, sample.links]), **given)
    known, unseen = predicted[: len(links)], predicted[len(links) :]
    if cell.method not in ("log-linear", "gravity-links"):
        unseen = unseen * net.flows_of(links).sum() / known.sum()
    return flow_metrics(net.flows_of(sample.links), unseen)


def _top_four(table: pd.DataFrame, group: Mapping[str, Any], task: str) -> dict[str, bool]:
    """Seed -> whether both true causes are among the first four of the eleven indicators."""
    rows = v.select(table, group)
    ranks = rows.get(f"causes_rank_{task}", pd.Series(dtype=float))
    return {f"seed {s}": r <= 4 for s, r in zip(rows.get("seed", ()), ranks, strict=True)}


def _dots(axes: Axes, groups: Mapping[str, Float[pd.Series, " seeds"]]) -> None:
    """One row per group: a dot per seed, a bar for the mean."""
    shown = {name: values.dropna() for name, values in groups.items() if len(values.dropna())}
    for row, values in enumerate(shown.values()):
        axes.barh(row, values.mean(), color="#9fb8d1", height=0.7)
        axes.plot(values, np.full(len(values), row), "o", color="#1f3a5f", markersize=3)
    axes.set_yticks(range(len(shown)), list(shown))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_importance(axes: Axes, table: pd.DataFrame) -> None:
    rows = table[(table["data"] == "simulated") & (table["method"] == "trees")]
    prefix = "importance_links/"
    columns = [name for name in rows if name.startswith(prefix) and rows[name].notna().any()]
    order = rows[columns].mean().sort_values().index
    _dots(axes, {name.removeprefix(prefix).replace("_", " "): rows[name] for name in order})
    axes.set(
        title="What matters for links (simulated: distance,\npopulation, GDP, unemployment do)",
        xlabel="loss of area under the ROC curve, both ends permuted",
    )
