"""Characteristic temperature and exponents, from runs that may be censored, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from peira.data.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Estimator = Literal["intersection", "rise", "level"]
# A metric that is this much above its plateau has risen.
RISE = 1.2
RESAMPLES = 1000
ENOUGH_TEMPERATURES, ENOUGH_SIZES = 4, 3
COLUMNS = ["size", "critical", "low", "high", "plateau", "exponent", "seeds", "censored"]


def characteristic_temperature(
    table: pd.DataFrame,
    metric: str = "weight_change",
    estimator: Estimator = "intersection",
    level: float | None = None,
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Where noise starts to matter: T_c of every size, with a 95% bootstrap interval over seeds.

    Below T_c the metric is what gradient flow gives, a plateau; above it grows as T^delta.
    "intersection" fits log m = log plateau + delta max(0, log T - log T_c) to the means of log m;
    "rise" is where the means, joined by lines, are 20% above that of the coldest runs; "level" is
    where they reach a given level, such as the change of weights that ends the lazy regime.

    Args:
        table: a row per run with columns size, temperature, seed, `metric` (positive) and, if runs
            may have been censored or have broken, fitted (1 or 0). Unfitted runs are left out, and
            so is a temperature where they are the majority.
        metric: column to look at.
        estimator: "intersection", "rise" or "level".
        level: of the metric, for "level".
        resamples: of the seeds.

    Returns:
        A row per size: size, critical, low, high, plateau, exponent, seeds, censored (runs left
        out). NaN where the metric does not leave its plateau or cross the level.

    Raises:
        DataError: columns that are absent, fewer than 4 temperatures of a size with fitted runs, a
            level that is absent or not positive.
    """
    import pandas as pd

    _need(table, ("size", "temperature", "seed", metric))
    if estimator == "level" and not (level is not None and level > 0):
        raise DataError("level", value=level, expected="a number above 0")
    fits = {
        "intersection": _intersection,
        "rise": _crossing,
        "level": partial(_crossing, level=math.log(level or 1)),
    }[estimator]
    rows = []
    for size, part in table.groupby("size"):
        used, temperatures, logs = _curves(part, metric)
        if len(temperatures) < ENOUGH_TEMPERATURES:
            raise DataError(
                f"size {size}: temperatures with fitted runs",
                value=len(temperatures),
                expected=f"{ENOUGH_TEMPERATURES} or more",
            )
        fit = fits(np.log(temperatures), _resampled_means(logs, resamples))
        rows.append(
            {
                "size": size,
                "critical": fit[0, 0],
                **_bounds(fit[1:, 0]),
                "plateau": math.exp(fit[0, 1]),
                "exponent": fit[0, 2],
                "seeds": len(logs),
                "censored": len(part) - used,
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def _need(table: pd.DataFrame, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in table:
            raise DataError("columns", value=sorted(map(str, table)), expected=f"also {name!r}")


def is_fitted(table: pd.DataFrame) -> np.ndarray:
    """Which rows fitted all their data; all, where the table does not say."""
    if "fitted" not in table:
        return np.ones(len(table), bool)
    return table["fitted"].to_numpy(dtype=float) == 1


def _curves(part: pd.DataFrame, metric: str) -> tuple[int, np.ndarray, np.ndarray]:
    """Runs used, temperatures, and log metric (seeds, temperatures), NaN where unfitted."""
    fitted = part[is_fitted(part)]
    values = fitted[metric].to_numpy(dtype=float)
    if not (np.isfinite(values) & (values > 0)).all():
        wrong = values[~(np.isfinite(values) & (values > 0))][0]
        raise DataError(f"{metric} of a fitted run", value=wrong, expected="a positive number")
    ran = part.groupby("temperature").size()
    share = fitted.groupby("temperature").size().reindex(ran.index, fill_value=0) / ran
    kept = fitted[fitted["temperature"].isin(share.index[share > 0.5])]
    wide = np.log(kept.pivot_table(index="seed", columns="temperature", values=metric))
    return len(kept), wide.columns.to_numpy(dtype=float), wide.to_numpy(dtype=float)


def _resampled_means(logs: Float[np.ndarray, "seeds t"], resamples: int) -> np.ndarray:
    """Mean over all seeds, then over `resamples` draws of the seeds: (1 + resamples, t)."""
    rng = np.random.default_rng(0)
    rows = [np.arange(len(logs)), *rng.integers(len(logs), size=(resamples, len(logs)))]
    drawn = logs[np.array(rows)]
    there = ~np.isnan(drawn)
    sums = np.where(there, drawn, 0).sum(axis=1)
    whole = np.nanmean(logs, axis=0)
    # A temperature that a resample has no run of keeps the mean of all of them.
    return np.where(there.any(axis=1), sums / np.maximum(there.sum(axis=1), 1), whole)


def _intersection(t: np.ndarray, means: np.ndarray) -> np.ndarray:
    """T_c, log plateau and exponent of each row of means, by least squares of a broken line."""
    breaks = np.linspace(t[0], t[-1], 401)[1:-1]
    bend = np.maximum(0, t[None] - breaks[:, None])
    bend = bend - bend.mean(axis=1, keepdims=True)
    power = (bend**2).sum(axis=1)
    centred = means - means.mean(axis=1, keepdims=True)
    slopes = centred @ bend.T / power
    # The residual is least where the explained sum of squares is most; only a rise counts.
    explained = np.where(slopes > 0, slopes**2 * power, -np.inf)
    best = explained.argmax(axis=1)
    rows = np.arange(len(means))
    slope, at = slopes[rows, best], breaks[best]
    plateau = means.mean(axis=1) - slope * np.maximum(0, t[None] - at[:, None]).mean(axis=1)
    rises = slope * (t[-1] - at) > math.log(RISE)
    critical = np.where(rises, np.exp(at), np.nan)
    return np.column_stack([critical, plateau, np.where(rises, slope, np.nan)])


def _crossing(t: np.ndarray, means: np.ndarray, level: float | None = None) -> np.ndarray:
    """T where each row of means crosses a level, or rises 20% above its first value."""
    found = []
    for row in means:
        wanted = row[0] + math.log(RISE) if level is None else level
        i = int((row > wanted).argmax())
        if i == 0:
            found.append([math.nan, row[0], math.nan])
            continue
        share = (wanted - row[i - 1]) / (row[i] - row[i - 1])
        slope = np.polyfit(t[i - 1 :], row[i - 1 :], 1)[0]
        found.append([math.exp(t[i - 1] + share * (t[i] - t[i - 1])), row[0], slope])
    return np.array(found)


def _bounds(values: np.ndarray) -> dict[str, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return {"low": math.nan, "high": math.nan}
    low, high = np.quantile(values, [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


@dataclass(frozen=True)
class Exponent:
    """A power law's exponent.

    Attributes:
        name: of what.
        value: fitted.
        low, high: 95% bootstrap interval over seeds.
        runs: that it rests on.
        censored: of those, how many had not come to their end.
    """

    name: str
    value: float
    low: float
    high: float
    runs: int
    censored: int


def fit_exponents(
    table: pd.DataFrame, critical: pd.DataFrame | None = None, resamples: int = 200
) -> dict[str, Exponent]:
    """Exponents of T_c ~ P^-a and, above T_c, of |w - w_0| ~ T^delta P^gamma and t* ~ T^tau P^b.

    The last two are regressions of logarithms in which an unfitted run is right-censored (normal
    errors, maximum likelihood), as weights and time only grow until the data are fitted.

    Args:
        table: a row per run: size, temperature, seed, weight_change, time, fitted; broken (1 or 0)
            where there is. Broken runs are left out.
        critical: of `characteristic_temperature`; None computes it from the table.
        resamples: of the seeds.

    Returns:
        name -> exponent: "a", "delta", "gamma", "tau", "b".

    Raises:
        DataError: fewer than 3 sizes, or no temperature above T_c.
    """
    _need(table, ("size", "temperature", "seed", "weight_change", "time"))
    if table["size"].nunique() < ENOUGH_SIZES:
        raise DataError(
            "sizes for an exponent",
            value=sorted(table["size"].unique()),
            expected=f"{ENOUGH_SIZES} or more",
        )
    critical = characteristic_temperature(table) if critical is None else critical
    hot = _above(table, critical)
    if hot["temperature"].nunique() < 2 or hot["size"].nunique() < ENOUGH_SIZES:
        raise DataError(
            "runs above T_c",
            value=len(hot),
            expected="two temperatures and three sizes above twice T_c",
        )
    found = {"a": _exponent_of_critical(table, resamples)}
    for metric, names in (("weight_change", ("delta", "gamma")), ("time", ("tau", "b"))):
        found |= _exponents(hot, metric, names, resamples)
    return found


def _above(table: pd.DataFrame, critical: pd.DataFrame) -> pd.DataFrame:
    """The runs hotter than twice the T_c of their size that did not break."""
    limit = table["size"].map(critical.set_index("size")["critical"])
    broken = table["broken"] == 1 if "broken" in table else np.zeros(len(table), bool)
    return table[(table["temperature"] > 2 * limit) & ~broken]


def _exponent_of_critical(table: pd.DataFrame, resamples: int) -> Exponent:
    """-d log T_c / d log P; the seeds of all sizes are drawn together."""
    sizes, fits, runs = [], [], 0
    for size, part in table.groupby("size"):
        used, temperatures, logs = _curves(part, "weight_change")
        fits.append(_intersection(np.log(temperatures), _resampled_means(logs, resamples))[:, 0])
        sizes.append(size)
        runs += used
    logs = np.log(np.array(fits, dtype=float))
    sizes_log = np.log(np.array(sizes, dtype=float))
    slopes = np.array([_slope(sizes_log, column) for column in logs.T])
    bounds = _bounds(-slopes[1:])
    return Exponent("a", -float(slopes[0]), bounds["low"], bounds["high"], runs, len(table) - runs)


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    there = np.isfinite(y)
    return float(np.polyfit(x[there], y[there], 1)[0]) if there.sum() >= 2 else math.nan


def _exponents(
    hot: pd.DataFrame, metric: str, names: tuple[str, str], resamples: int
) -> dict[str, Exponent]:
    """Exponents in T and P of one metric, from runs of which some are censored."""
    x = np.log(hot[["temperature", "size"]].to_numpy(dtype=float))
    y = np.log(hot[metric].to_numpy(dtype=float))
    censored = ~is_fitted(hot)
    seeds = hot["seed"].to_numpy()
    each = [np.flatnonzero(seeds == seed) for seed in np.unique(seeds)]
    whole = censored_regression(x, y, censored)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(resamples):
        rows = np.concatenate([each[i] for i in rng.integers(len(each), size=len(each))])
        drawn.append(censored_regression(x[rows], y[rows], censored[rows], whole))
    found = {}
    for place, name in enumerate(names, start=1):
        bounds = _bounds(np.array(drawn)[:, place])
        found[name] = Exponent(
            name, float(whole[place]), bounds["low"], bounds["high"], len(y), int(censored.sum())
        )
    return found


def censored_regression(
    x: Float[np.ndarray, "n k"],
    y: Float[np.ndarray, "n"],
    censored: np.ndarray,
    start: Float[np.ndarray, "k+1"] | None = None,
) -> Float[np.ndarray, "k+1"]:
    """Intercept and slopes of y on x where a censored y is only a lower bound (Tobit).

    Expectation and maximisation: a censored value is replaced by its mean given that it lies above
    the bound, and the spread by the matching second moment, until nothing changes. `start` is a
    guess; None takes the regression without censoring.
    """
    from scipy.special import log_ndtr

    design = np.column_stack([np.ones(len(x)), x])
    solve = np.linalg.pinv(design)
    if not censored.any():
        return solve @ y
    beta = solve @ y if start is None else start
    sigma = max(float(np.std(y - design @ beta)), 1e-6)
    for _ in range(500):
        mean = design @ beta
        gap = (y - mean) / sigma
        # Mills' ratio phi(gap) / (1 - Phi(gap)).
        mills = np.exp(-(gap**2) / 2 - log_ndtr(-gap)) / math.sqrt(2 * math.pi)
        filled = np.where(censored, mean + sigma * mills, y)
        spread = np.where(censored, sigma**2 * (1 + gap * mills - mills**2), 0)
        new = solve @ filled
        sigma = math.sqrt(float(np.mean((filled - design @ new) ** 2 + spread))) or 1e-6
        if np.abs(new - beta).max() < 1e-6:
            return new
        beta = new
    return beta


@dataclass(frozen=True)
class Advice:
    """Where a training setting lies.

    Attributes:
        temperature: T = lr / B.
        critical: T_c for the size of the training set.
        low, high: its 95% interval.
        regime: "below" (noise does not matter), "above" (it does), "at" (within the interval).
        same_noise: learning rate at twice the batch with the same T (the linear scaling rule).
        extrapolated: whether the size is outside the sizes that T_c was measured at.
    """

    temperature: float
    critical: float
    low: float
    high: float
    regime: Literal["below", "at", "above"]
    same_noise: float
    extrapolated: bool


def recommend(critical: pd.DataFrame, batch: int, learning_rate: float, size: int) -> Advice:
    """Whether the noise of a training setting matters, from measured T_c.

    Args:
        critical: of `characteristic_temperature`, 2 sizes or more; T_c is taken from the power law
            through them.
        batch: B.
        learning_rate: of plain SGD, in the same units as the measured runs.
        size: P, of the training set.

    Raises:
        DataError: fewer than two sizes with a T_c, or a setting that is no setting.
    """
    known = critical[np.isfinite(critical["critical"].to_numpy(dtype=float))]
    if len(known) < 2:
        raise DataError("sizes with a T_c", value=len(known), expected="2 or more")
    if not 1 <= batch <= size:
        raise DataError("batch", value=batch, expected=f"1 to the {size} data")
    if not learning_rate > 0:
        raise DataError("learning_rate", value=learning_rate, expected="a number above 0")
    at = {name: _extend(known, name, size) for name in ("critical", "low", "high")}
    temperature = learning_rate / batch
    regime: Literal["below", "at", "above"] = "at"
    if temperature < at["low"]:
        regime = "below"
    elif temperature > at["high"]:
        regime = "above"
    outside = not known["size"].min() <= size <= known["size"].max()
    return Advice(
        temperature, **at, regime=regime, same_noise=2 * learning_rate, extrapolated=outside
    )


def _extend(known: pd.DataFrame, name: str, size: int) -> float:
    """The power law through a column of T_c, at a size."""
    sizes, values = (np.log(known[column].to_numpy(dtype=float)) for column in ("size", name))
    slope, level = np.polyfit(sizes, values, 1)
    return float(math.exp(level + slope * math.log(size)))
