"""The verdicts: statements about the table of all runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from peira.dynamics.sgd_noise_regimes.crossover import characteristic_temperature
from peira.engine import verdict as v
from peira.engine.errors import PeiraError

if TYPE_CHECKING:
    from peira.engine.cards import Claim

# gamma = 1 / (1 + chi) and b = 1 + 2 / (1 + chi) are held against these sizes.
SIZES = {0.0: (32, 512), 1.0: (256, 4096), 3.0: (256, 4096)}
# Sizes whose local slope of t* counts as that of small and of large P.
LOWER = {0.0: (32, 128), 1.0: (256, 1024), 3.0: (256, 1024)}
UPPER = {0.0: (512, 2048), 1.0: (1024, 4096), 3.0: (1024, 4096)}
HOT, WARM = 8.0, 2.0
ALPHA = 2.0**15
# Change of the weights, as a share of their norm at the start, at which laziness is taken to end.
LEVEL = 0.01


def verdicts(claim: Callable[[str], Claim], table: pd.DataFrame) -> Iterator[v.Verdict]:
    """One verdict for each claim, in the card's order."""
    runs = perceptron_runs(table)
    yield v.all_of(
        claim("C1"),
        [
            v.equals(signal_ratios(runs, chi, size), "ratio", "hot / warm", part)
            for (chi, size), part in zip(
                ((chi, size) for chi in (0.0, 1.0) for size in (256, 512)),
                claim("C1").parts,
                strict=True,
            )
        ],
    )
    yield _signal_exponents(claim("C2"), runs)
    yield _time_exponents(claim("C3"), runs)
    yield _critical_of_perceptron(claim("C4"), runs)
    yield _collapse(claim("C4b"), runs)
    yield _critical_of_network(claim("C5"), network_runs(table))
    yield _end_of_laziness(claim("C5b"), network_runs(table))
    grid = phase_diagram(table)
    lowers, raises = (chosen_elsewhere(grid, sign) for sign in (1, -1))
    better, worse = claim("C6").parts
    yield v.all_of(
        claim("C6"),
        [
            _signs(v.larger(lowers, "test_error", "cold", "hot", better), lowers, 1),
            _signs(v.larger(raises, "test_error", "hot", "cold", worse), raises, -1),
        ],
    )
    corner = lazy_corner(grid)
    raised, lowered = claim("C6b").parts
    yield v.all_of(
        claim("C6b"),
        [
            v.larger(corner, "test_error", "hot", "cold", raised),
            v.smaller(corner, "test_error", "feature", "cold", lowered),
        ],
    )
    random = table[(table["labels"] == "random") & (table["network"] == "linear")]
    yield v.rate([bool(fitted == 0) for fitted in random["fitted"]], claim("C7"))


def perceptron_runs(table: pd.DataFrame) -> pd.DataFrame:
    """The perceptron's runs with true labels, of the dimension that all claims are about."""
    rows = v.select(table, {"task": "perceptron", "labels": "true", "dimension": 16})
    return rows[rows["method"] != "max-margin"]


def by_minibatch(runs: pd.DataFrame, **settings: Any) -> pd.DataFrame:
    """Fitted perceptron runs by SGD at the published batch, B = 2."""
    rows = v.select(runs, {"method": "sgd", "batch": 2, **settings})
    return rows[rows["fitted"] == 1]


def signal_ratios(runs: pd.DataFrame, chi: float, size: int) -> pd.DataFrame:
    """w_1 at T = 8 over that at T = 2, by seed."""
    rows = by_minibatch(runs, depletion=chi, size=size)
    wide = rows.pivot_table(index="seed", columns="temperature", values="signal")
    if not {HOT, WARM} <= set(wide):
        return _nothing("ratio")
    ratio = (wide[HOT] / wide[WARM]).dropna()
    return pd.DataFrame({"seed": ratio.index, "method": "hot / warm", "ratio": ratio.to_numpy()})


def _nothing(*metrics: str) -> pd.DataFrame:
    return pd.DataFrame(columns=["seed", "method", *metrics])


def slopes(runs: pd.DataFrame, metric: str, sizes: dict[float, tuple[int, int]]) -> pd.DataFrame:
    """Log-log slope of a metric in P at T = 8, by seed and chi (in the column `method`)."""
    rows = []
    for chi, (least, most) in sizes.items():
        part = by_minibatch(runs, depletion=chi)
        part = part[(part["temperature"] == HOT) & part["size"].between(least, most)]
        for seed, some in part.groupby("seed"):
            if some["size"].nunique() >= 3:
                logs = np.log(some[["size", metric]].to_numpy(dtype=float))
                slope = float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
                rows.append({"seed": seed, "method": f"chi {chi:g}", "slope": slope})
    return pd.DataFrame(rows) if rows else _nothing("slope")


def _signal_exponents(claim: Claim, runs: pd.DataFrame) -> v.Verdict:
    table = slopes(runs, "signal", SIZES)
    names = [f"chi {chi:g}" for chi in SIZES]
    fitted = [
        v.equals(table, "slope", name, part)
        for name, part in zip(names, claim.parts[:3], strict=True)
    ]
    return v.all_of(claim, [*fitted, *_in_order(table, names, claim.parts[3:])])


def _in_order(table: pd.DataFrame, names: list[str], parts: tuple[Any, ...]) -> list[v.Verdict]:
    return [
        v.larger(table, "slope", first, second, part)
        for (first, second), part in zip(pairwise(names), parts, strict=True)
    ]


def _time_exponents(claim: Claim, runs: pd.DataFrame) -> v.Verdict:
    names = [f"chi {chi:g}" for chi in SIZES]
    whole = slopes(runs, "time", SIZES)
    local = [
        slopes(runs, "time", sizes).groupby("seed", as_index=False)["slope"].mean().assign(method=m)
        for m, sizes in (("smaller P", LOWER), ("larger P", UPPER))
    ]
    rises = v.larger(pd.concat(local), "slope", "larger P", "smaller P", claim.parts[2])
    return v.all_of(claim, [*_in_order(whole, names, claim.parts[:2]), rises])


def critical_by_seed(runs: pd.DataFrame, metric: str, level: float | None = None) -> pd.DataFrame:
    """T_c of every size and seed on its own: seed, size, critical, octaves (its log2), exponent.

    It is the break of the metric, or where that reaches `level`. Sizes without one are left out.
    """
    estimator = "intersection" if level is None else "level"
    found = []
    for seed, part in runs.groupby("seed"):
        try:
            fit = characteristic_temperature(part, metric, estimator, level, resamples=1)
        except PeiraError:
            # Too few temperatures were fitted: this seed says nothing.
            continue
        found.append(fit.assign(seed=seed))
    if not found:
        return _nothing("size", "critical", "octaves", "exponent")
    table = pd.concat(found, ignore_index=True).dropna(subset=["critical"])
    return table.assign(octaves=np.log2(table["critical"]))


def sweep_of_perceptron(runs: pd.DataFrame) -> pd.DataFrame:
    """Sizes at several temperatures, chi = 1."""
    rows = v.select(runs, {"method": "sgd", "batch": 2, "depletion": 1.0})
    swept = rows.groupby("size")["temperature"].nunique()
    return rows[rows["size"].isin(swept.index[swept >= 4])]


def _critical_of_perceptron(claim: Claim, runs: pd.DataFrame) -> v.Verdict:
    sweep = sweep_of_perceptron(runs)
    table = critical_by_seed(sweep, "norm")
    table = table.assign(method=[f"P = {size}" for size in table["size"]])
    result = v.smaller(table, "octaves", "P = 1024", "P = 256", claim)
    return replace(result, note="; ".join(part for part in (result.note, law(table)) if part))


def law(table: pd.DataFrame) -> str:
    """The exponent a of T_c ~ P^-a over the seeds, as a note."""
    exponents = [
        -float(np.polyfit(np.log2(part["size"].astype(float)), part["octaves"], 1)[0])
        for _, part in table.groupby("seed")
        if part["size"].nunique() >= 3
    ]
    if len(exponents) < 2:
        return ""
    low, high = v.mean_interval(np.array(exponents))
    return f"a = {np.mean(exponents):.2f} [{low:.2f}, {high:.2f}]"


def _collapse(claim: Claim, runs: pd.DataFrame) -> v.Verdict:
    rows = v.select(runs, {"method": "sgd", "depletion": 1.0, "size": 256})
    rows = rows[(rows["temperature"] == WARM) & (rows["fitted"] == 1)]
    rows = rows.assign(
        method=[f"B = {batch}" for batch in rows["batch"]],
        signal=np.log(rows["signal"].astype(float)),
        time=np.log(rows["time"].astype(float)),
    )
    pairs = [(metric, f"B = {batch}") for metric in ("signal", "time") for batch in (1, 4, 8)]
    rows = rows[[column for column in rows if not str(column).endswith("_censored")]]
    return v.all_of(
        claim,
        [
            v.equivalent(rows, metric, batch, "B = 2", part)
            for (metric, batch), part in zip(pairs, claim.parts, strict=True)
        ],
    )


def network_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Temperature sweeps of the fully connected network at the largest alpha."""
    rows = v.select(table, {"network": "mlp", "method": "sgd", "labels": "true", "alpha": ALPHA})
    swept = rows.groupby("size")["temperature"].nunique()
    return rows[rows["size"].isin(swept.index[swept >= 4])]


def _critical_of_network(claim: Claim, sweep: pd.DataFrame) -> v.Verdict:
    flat, steep, falling = claim.parts
    known = critical_by_seed(sweep, "weight_change")
    cold = cold_slopes(sweep)
    hot = known.groupby("seed", as_index=False)["exponent"].mean().assign(method="hot")
    trend = v.trend(known, "size", "octaves", falling, falling=True)
    trend = replace(trend, note="; ".join(part for part in (trend.note, law(known)) if part))
    return v.all_of(
        claim,
        [v.below(cold, "slope", "cold", flat), v.above(hot, "exponent", "hot", steep), trend],
    )


def _end_of_laziness(claim: Claim, sweep: pd.DataFrame) -> v.Verdict:
    known = critical_by_seed(sweep, "relative_weight_change", LEVEL)
    result = v.trend(known, "size", "octaves", claim, falling=True)
    return replace(result, note="; ".join(part for part in (result.note, law(known)) if part))


def cold_slopes(sweep: pd.DataFrame) -> pd.DataFrame:
    """Slope of log |w - w_0| in log T between the two lowest temperatures, mean over P."""
    rows = []
    fitted = sweep[sweep["fitted"] == 1]
    for (seed, _), part in fitted.groupby(["seed", "size"]):
        two = part.sort_values("temperature").head(2)
        if len(two) == 2:
            logs = np.diff(np.log(two[["temperature", "weight_change"]].to_numpy(float)), axis=0)[0]
            rows.append({"seed": seed, "method": "cold", "slope": float(logs[1] / logs[0])})
    if not rows:
        return _nothing("slope")
    return pd.DataFrame(rows).groupby(["seed", "method"], as_index=False).mean()


def phase_diagram(table: pd.DataFrame, whole: bool = False) -> pd.DataFrame:
    """Runs of the grid in alpha and dt; `whole` gives its gradient descent instead."""
    rows = v.select(table, {"network": "mlp", "method": "sgd", "labels": "true"})
    rows = rows[rows["alpha"] != ALPHA]
    rows = rows[rows["size"] == rows["size"].min()]
    if whole:
        return rows[rows["batch"] == rows["size"]]
    return rows[rows["batch"].isin(rows["batch"].mode())]


def steady(column: pd.DataFrame) -> list[float]:
    """Steps dt at which every seed fitted its data, rising."""
    fitted = column.groupby("dt")["fitted"].min()
    return sorted(fitted.index[fitted == 1])


def chosen_elsewhere(grid: pd.DataFrame, sign: int) -> pd.DataFrame:
    """Errors at low T ("cold") and at a higher one ("hot") of the same alpha, by seed.

    Low is the smallest step that every seed fitted; alpha and the higher step are those with the
    largest fall (sign 1) or rise (sign -1) of the mean error of the OTHER seeds.
    """
    rows = []
    seeds = sorted(grid["seed"].unique()) if len(grid) else []
    effects = {}
    for alpha, column in grid.groupby("alpha"):
        steps = steady(column)
        errors = column.pivot_table(index="seed", columns="dt", values="test_error")
        for dt in steps[1:]:
            effects[alpha, steps[0], dt] = sign * (errors[steps[0]] - errors[dt])
    if not effects or len(seeds) < 2:
        return _nothing("test_error", "alpha", "dt")
    table = pd.DataFrame(effects)
    for seed in seeds:
        alpha, cold, hot = table.drop(index=seed).mean().idxmax()
        for method, dt in (("cold", cold), ("hot", hot)):
            run = v.select(grid, {"alpha": alpha, "dt": dt, "seed": seed})
            wrong = 100 * float(run["test_error"].iloc[0])
            rows.append(
                {"seed": seed, "method": method, "test_error": wrong, "alpha": alpha, "dt": dt}
            )
    return pd.DataFrame(rows)


def _signs(result: v.Verdict, chosen: pd.DataFrame, sign: int) -> v.Verdict:
    """Add the sign test and the choices to a verdict's note."""
    if not len(chosen):
        return result
    from scipy.stats import binomtest

    wide = chosen.pivot_table(index="seed", columns="method", values="test_error")
    change = sign * (wide["cold"] - wide["hot"])
    right, decided = int((change > 0).sum()), int((change != 0).sum())
    p = binomtest(right, decided, alternative="greater").pvalue if decided else math.nan
    hot = chosen[chosen["method"] == "hot"]
    where = ", ".join(
        f"alpha 2^{math.log2(alpha):.0f} dt 2^{math.log2(dt):.0f} ({count})"
        for (alpha, dt), count in hot.groupby(["alpha", "dt"]).size().items()
    )
    note = f"sign test {right} of {decided}, p = {p:.2g}; chosen: {where}"
    return replace(result, note="; ".join(part for part in (result.note, note) if part))


def lazy_corner(grid: pd.DataFrame) -> pd.DataFrame:
    """Errors of three corners of the grid, by seed, in percent.

    "cold" is the largest alpha at the smallest step that every seed fitted there and at the
    smallest alpha; "hot" raises the step as far as every seed still fits; "feature" is the
    smallest alpha at the cold step.
    """
    if not len(grid):
        return _nothing("test_error")
    columns = dict(list(grid.groupby("alpha")))
    low, high = min(columns), max(columns)
    both = sorted(set(steady(columns[low])) & set(steady(columns[high])))
    if not both or low == high:
        return _nothing("test_error")
    corners = {
        "cold": (high, both[0]),
        "hot": (high, steady(columns[high])[-1]),
        "feature": (low, both[0]),
    }
    parts = [
        v.select(grid, {"alpha": alpha, "dt": dt}).assign(method=name)
        for name, (alpha, dt) in corners.items()
    ]
    table = pd.concat(parts)
    return table.assign(test_error=100 * table["test_error"])[["seed", "method", "test_error"]]
