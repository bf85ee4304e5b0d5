"""A small vocabulary of statistical tests that judge all claims.

Every function takes a tidy table (one row per cell and seed), one or two groups of its rows, and
the claim, which brings the threshold from `card.toml`; it returns a `Verdict`: an effect, a 95%
confidence interval, and `supported` when the whole interval is beyond the threshold, `refuted` when
all of it is short of it, `inconclusive` otherwise. Fewer than three seeds never support a claim.

Intervals over seeds are Student's t: with the three to ten seeds that studies have, bootstrap
intervals cover far less than they say. Ratios are judged on the log scale. Times that did not come
within the budget are censored values (log-rank test and restricted means), never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from peira.engine.cards import Claim
from peira.engine.errors import CardError, StudyError

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]
Group = str | Mapping[str, Any]
Judgement = Literal["supported", "refuted", "inconclusive"]

CONFIDENCE = 0.95
ENOUGH_SEEDS = 3


@dataclass(frozen=True)
class Verdict:
    """A claim judged: what was measured, how sure that is, and what follows.

    Attributes:
        claim: id of the claim.
        verdict: `supported`, `refuted` or `inconclusive`.
        effect: the measured quantity, in `unit`.
        ci: 95% confidence interval of `effect`; NaN where there is none.
        n: number of seeds (or pairs, comparisons, data sets) it rests on.
        unit: unit of `effect` and `threshold`.
        threshold: what the effect was held against.
        note: what a reader must know about this verdict.
        parts: verdicts of the parts, where the claim has several.
    """

    claim: str
    verdict: Judgement
    effect: float
    ci: tuple[float, float]
    n: int
    unit: str = ""
    threshold: float | None = None
    note: str = ""
    parts: tuple[Verdict, ...] = ()


def larger(
    table: pd.DataFrame,
    metric: str,
    a: Group,
    than: Group,
    claim: Claim,
    pair: Sequence[str] = ("seed",),
) -> Verdict:
    """`metric` of `a` exceeds that of `than` by more than the threshold (default 0), paired."""
    _uncensored(table, metric, a, than)
    first, second = _paired(table, metric, a, than, pair)
    return _beyond(_check(claim, "larger", 0.0), first - second)


def smaller(
    table: pd.DataFrame,
    metric: str,
    a: Group,
    than: Group,
    claim: Claim,
    pair: Sequence[str] = ("seed",),
) -> Verdict:
    """`metric` of `a` is below that of `than` by more than the threshold (default 0), paired.

    The effect is `than` minus `a`: positive in the claimed direction.
    """
    _uncensored(table, metric, a, than)
    first, second = _paired(table, metric, a, than, pair)
    return _beyond(_check(claim, "smaller", 0.0), second - first)


def at_least(
    table: pd.DataFrame,
    metric: str,
    a: Group,
    than: Group,
    claim: Claim,
    pair: Sequence[str] = ("seed",),
) -> Verdict:
    """The ratio `a` / `than` of a positive metric exceeds the threshold (geometric mean).

    Censored times bound the ratio: where `a` never came it is a lower bound, which cannot refute
    the claim; where `than` never came it is an upper bound, which cannot support it.
    """
    first, second = _paired(table, metric, a, than, pair)
    never_a, never_b = _paired_flags(table, metric, a, than, pair)
    result = _ratio(_check(claim, "at_least"), first, second)
    if not (never_a.any() or never_b.any()):
        return result
    counts = f"{never_a.sum()} and {never_b.sum()} of {len(first)} never came"
    return _bound(result, counts, bool(never_a.any()), bool(never_b.any()))


def above(table: pd.DataFrame, metric: str, a: Group, claim: Claim) -> Verdict:
    """The mean of `metric` over the seeds of `a` exceeds the threshold.

    Censored times make the mean a lower bound, which cannot refute the claim.
    """
    return _mean(table, metric, a, _check(claim, "above"), upward=True)


def below(table: pd.DataFrame, metric: str, a: Group, claim: Claim) -> Verdict:
    """The mean of `metric` over the seeds of `a` is below the threshold.

    Censored times make the mean a lower bound, which cannot support the claim.
    """
    return _mean(table, metric, a, _check(claim, "below"), upward=False)


def sooner(
    table: pd.DataFrame,
    metric: str,
    a: Group,
    than: Group,
    claim: Claim,
    pair: Sequence[str] = ("seed",),
) -> Verdict:
    """The speed-up, time of `than` / time of `a`, exceeds the threshold (default 1).

    Without censored times: geometric mean of the paired ratios. With censored times: ratio of the
    mean times restricted to the common budget (Kaplan-Meier, jackknife interval over the pairs),
    and a log-rank test at 5% on top. A restricted ratio is a bound: where `than` never came in
    time it cannot refute a speed-up, where `a` never came it cannot support one.
    """
    claim = _check(claim, "sooner", 1.0)
    first, second = _paired(table, metric, a, than, pair)
    never_a, never_b = _paired_flags(table, metric, a, than, pair)
    if not (never_a.any() or never_b.any()):
        return _ratio(claim, second, first)
    return _censored(claim, first, second, never_a, never_b)


def trend(
    table: pd.DataFrame,
    x: str,
    metric: str,
    claim: Claim,
    where: Group | None = None,
    falling: bool = False,
) -> Verdict:
    """`metric` rises (or falls) with `x`: mean over seeds of Spearman's rank correlation.

    The correlation in the claimed direction must exceed the threshold (default 0).
    """
    from scipy.stats import spearmanr

    _uncensored(table, metric, where)

    def correlation(part: pd.DataFrame) -> float:
        return float(spearmanr(part[x], part[metric]).statistic)

    values = _by_seed(table, metric, where, correlation)
    claim = _check(claim, "trend", 0.0)
    return _beyond(_negated(claim) if falling else claim, values, upward=not falling)


def power_law(
    table: pd.DataFrame, x: str, metric: str, claim: Claim, where: Group | None = None
) -> Verdict:
    """`metric` goes as a power of `x`: the log-log slope per seed equals the published one."""

    def slope(part: pd.DataFrame) -> float:
        numbers = part[[x, metric]].to_numpy(dtype=float)
        if not (numbers > 0).all():
            return math.nan
        logs = np.log(numbers)
        return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])

    _uncensored(table, metric, where)
    return _near(_check(claim, "power_law", 0.0), _by_seed(table, metric, where, slope))


def equals(table: pd.DataFrame, metric: str, a: Group, claim: Claim) -> Verdict:
    """The mean of `metric` over seeds is within `tolerance` of the published value."""
    _uncensored(table, metric, a)
    values = _floats(_values(table, metric, a, ("seed",)))
    return _near(_check(claim, "equals", 0.0), values)


def equivalent(
    table: pd.DataFrame,
    metric: str,
    a: Group,
    than: Group,
    claim: Claim,
    pair: Sequence[str] = ("seed",),
) -> Verdict:
    """`a` and `than` differ by less than the threshold: two one-sided t-tests at 5% each.

    The interval shown is the 95% one; the decision rests on the 90% one, as the two tests do.
    """
    _uncensored(table, metric, a, than)
    first, second = _paired(table, metric, a, than, pair)
    claim = _check(claim, "equivalent")
    return _within(claim, first - second, 0.0, _threshold(claim), confidence=0.90)


def rate(outcomes: Sequence[bool], claim: Claim) -> Verdict:
    """A share of independent outcomes exceeds the threshold: exact binomial interval."""
    from scipy.stats import binomtest

    claim = _check(claim, "rate")
    if not outcomes:
        return _nothing(claim, "nothing was measured")
    test = binomtest(sum(map(bool, outcomes)), len(outcomes))
    interval = test.proportion_ci(CONFIDENCE, method="exact")
    return _decide(
        claim, float(test.statistic), (float(interval.low), float(interval.high)), len(outcomes)
    )


def exactly(pairs: Mapping[str, tuple[float, float]], claim: Claim) -> Verdict:
    """Deterministic numbers equal the published ones; effect is the share that does.

    Args:
        pairs: what -> (measured, published); equal means within the card's `tolerance` (0).
    """
    claim = _check(claim, "exactly", 1.0)
    if not pairs:
        return _nothing(claim, "nothing was measured")
    tolerance = claim.tolerance or 0.0
    wrong = [name for name, (ours, theirs) in pairs.items() if not abs(ours - theirs) <= tolerance]
    share = 1 - len(wrong) / len(pairs)
    note = f"differ: {', '.join(wrong)}" if wrong else "deterministic: no sampling error"
    verdict: Judgement = "refuted" if wrong else "supported"
    return Verdict(claim.id, verdict, share, (share, share), len(pairs), claim.unit, 1.0, note)


def count(outcomes: Mapping[str, bool], claim: Claim) -> Verdict:
    """A statement holds on at least `threshold` of the named cases, counted without sampling."""
    claim = _check(claim, "count")
    if not outcomes:
        return _nothing(claim, "nothing was measured")
    holds = float(sum(map(bool, outcomes.values())))
    fails = [name for name, held in outcomes.items() if not held]
    needed = _threshold(claim)
    # Cases that were not run could still turn a count that is short, never one that suffices.
    verdict: Judgement = "supported" if holds >= needed else "refuted"
    note = f"fails on: {', '.join(fails)}" if fails else "holds on every case"
    if verdict == "refuted" and len(outcomes) < needed:
        verdict, note = "inconclusive", f"only {len(outcomes)} cases were measured"
    return Verdict(
        claim.id, verdict, holds, (holds, holds), len(outcomes), claim.unit, needed, note
    )


def all_of(claim: Claim, parts: Sequence[Verdict]) -> Verdict:
    """Supported when all parts are, refuted when any is; the effect is the weakest part's."""
    claim = _check(claim, "all_of", 0.0) if claim.test != "against_controls" else claim
    if not parts:
        return _nothing(claim, "nothing was measured")
    if claim.parts:
        if len(parts) != len(claim.parts):
            raise StudyError(
                f"claim {claim.id}: study judges {len(parts)} parts, card.toml has "
                f"{len(claim.parts)}"
            )
        said = [part.statement for part in claim.parts]
        parts = [
            replace(verdict, note="; ".join(word for word in (what, verdict.note) if word))
            for what, verdict in zip(said, parts, strict=True)
        ]
    weakest = min(parts, key=lambda part: (_ORDER[part.verdict], _margin(part)))
    return replace(weakest, claim=claim.id, parts=tuple(parts))


def against_controls(
    test: Callable[..., Verdict],
    table: pd.DataFrame,
    metric: str,
    a: Group,
    controls: Mapping[str, Group],
    claim: Claim,
) -> Verdict:
    """`a` beats every control (shuffled, random, norm-matched, ...) in a two-group test.

    Args:
        test: `larger`, `smaller`, `at_least` or `sooner`; the claim's threshold holds for each.
        controls: name of the control -> its group.
    """
    claim = _check(claim, "against_controls", 1.0 if test in (sooner, at_least) else 0.0)
    part = claim.model_copy(update={"test": test.__name__})
    verdicts = [
        replace(verdict, note=f"against {name}" + (f"; {verdict.note}" if verdict.note else ""))
        for name, group in controls.items()
        for verdict in [test(table, metric, a, group, part)]
    ]
    return all_of(claim, verdicts)


_ORDER = {"refuted": 0, "inconclusive": 1, "supported": 2}


def _margin(verdict: Verdict) -> float:
    return -math.inf if math.isnan(verdict.effect) else verdict.effect - (verdict.threshold or 0.0)


def _check(claim: Claim, test: str, default: float | None = None) -> Claim:
    if claim.test != test:
        raise CardError(
            f"claim {claim.id}: card.toml says test {claim.test!r}, study uses {test!r}"
        )
    if claim.threshold is not None:
        return claim
    if default is None:
        raise CardError(f"claim {claim.id}: card.toml must give a threshold for {test!r}")
    return claim.model_copy(update={"threshold": default})


def _threshold(claim: Claim) -> float:
    if claim.threshold is None:
        raise CardError(f"claim {claim.id}: card.toml must give a threshold")
    return claim.threshold


def _negated(claim: Claim) -> Claim:
    return claim.model_copy(update={"threshold": -_threshold(claim)})


def select(table: pd.DataFrame, group: Group | None) -> pd.DataFrame:
    """The rows of a group: a mapping of column -> value; a string stands for `method`."""
    if group is None:
        return table
    if isinstance(group, str):
        group = {"method": group}
    if not len(table) or not group:
        return table
    missing = [name for name in group if name not in table]
    if missing:
        raise StudyError(f"the table has no column {missing[0]!r}")
    keep = np.logical_and.reduce(
        [
            (table[name].isna() if value is None else table[name] == value).to_numpy()
            for name, value in group.items()
        ]
    )
    return table[keep]


def _values(
    table: pd.DataFrame, metric: str, group: Group, pair: Sequence[str]
) -> pd.Series[float]:
    import pandas as pd

    rows = select(table, group)
    if not len(rows) or metric not in rows:
        return pd.Series(dtype=float)
    values = rows.set_index(list(pair))[metric]
    if values.index.has_duplicates:
        raise StudyError(
            f"group {group} has several rows for the same {', '.join(pair)}: name more cell fields"
        )
    return values.astype(float)


def _floats(values: pd.Series[float]) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _paired(
    table: pd.DataFrame, metric: str, a: Group, b: Group, pair: Sequence[str]
) -> tuple[Floats, Floats]:
    first, second = (_values(table, metric, group, pair) for group in (a, b))
    both = first.index.intersection(second.index)
    return _floats(first.loc[both]), _floats(second.loc[both])


def _paired_flags(
    table: pd.DataFrame, metric: str, a: Group, b: Group, pair: Sequence[str]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    name = f"{metric}_censored"
    if name not in table:
        size = len(_paired(table, metric, a, b, pair)[0])
        return np.zeros(size, bool), np.zeros(size, bool)
    first, second = _paired(table, name, a, b, pair)
    return first.astype(bool), second.astype(bool)


def _any_censored(table: pd.DataFrame, metric: str, group: Group | None) -> bool:
    name = f"{metric}_censored"
    return name in table and bool(select(table, group)[name].astype(bool).any())


def _uncensored(table: pd.DataFrame, metric: str, *groups: Group | None) -> None:
    if any(_any_censored(table, metric, group) for group in groups):
        raise StudyError(f"{metric!r} has censored times, whose mean is not known: use `sooner`")


def _by_seed(
    table: pd.DataFrame,
    metric: str,
    where: Group | None,
    statistic: Callable[[pd.DataFrame], float],
) -> Floats:
    rows = select(table, where)
    if not len(rows) or metric not in rows:
        return np.empty(0)
    parts = [part for _, part in rows.groupby("seed") if len(part) >= 3]
    return np.array([statistic(part) for part in parts])


def mean_interval(values: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student-t confidence interval of the mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    from scipy.special import stdtrit

    half = (
        stdtrit(len(values) - 1, (1 + confidence) / 2) * np.std(values, ddof=1) / len(values) ** 0.5
    )
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _beyond(claim: Claim, values: Floats, upward: bool = True) -> Verdict:
    problem = _unusable(values)
    if problem:
        return _nothing(claim, problem, len(values))
    return _decide(claim, float(np.mean(values)), mean_interval(values), len(values), upward)


def _mean(table: pd.DataFrame, metric: str, a: Group, claim: Claim, upward: bool) -> Verdict:
    result = _beyond(claim, _floats(_values(table, metric, a, ("seed",))), upward)
    if not _any_censored(table, metric, a):
        return result
    return _bound(result, "some never came", from_below=upward, from_above=not upward)


def _bound(result: Verdict, note: str, from_below: bool, from_above: bool) -> Verdict:
    """A verdict on a number that bounds the true one; a bound decides in one direction only."""
    note = "; ".join(part for part in (f"{note}: a bound", result.note) if part)
    undecided = (from_below and result.verdict == "refuted") or (
        from_above and result.verdict == "supported"
    )
    return replace(result, note=note, verdict="inconclusive" if undecided else result.verdict)


def _ratio(claim: Claim, numerator: Floats, denominator: Floats) -> Verdict:
    problem = _unusable(numerator, denominator)
    if not problem and min(numerator.min(), denominator.min()) <= 0:
        problem = "a ratio needs positive values"
    if problem:
        return _nothing(claim, problem, len(numerator))
    logs = np.log(numerator / denominator)
    low, high = np.exp(mean_interval(logs))
    return _decide(claim, float(np.exp(logs.mean())), (float(low), float(high)), len(logs))


def _decide(
    claim: Claim, effect: float, ci: tuple[float, float], n: int, upward: bool = True
) -> Verdict:
    threshold = _threshold(claim)
    sign = 1 if upward else -1
    near, far = sorted(sign * end for end in ci)
    verdict: Judgement = "inconclusive"
    note = ""
    if near > sign * threshold:
        verdict = "supported"
    elif far < sign * threshold:
        verdict = "refuted"
    # A rate over independent outcomes counts them, not seeds, and its exact interval is wide
    # enough on its own; three is the floor there as well.
    if n < ENOUGH_SEEDS:
        verdict = "inconclusive" if verdict == "supported" else verdict
        note = f"n = {n}; at least {ENOUGH_SEEDS} are needed to support a claim"
    return Verdict(claim.id, verdict, effect, ci, n, claim.unit, threshold, note)


def _near(claim: Claim, values: Floats) -> Verdict:
    target = claim.published.value
    if target is None or claim.tolerance is None:
        raise CardError(f"claim {claim.id}: {claim.test!r} needs published.value and tolerance")
    claim = claim.model_copy(update={"threshold": target})
    return _within(claim, values, target, claim.tolerance or 0.0, CONFIDENCE)


def _within(
    claim: Claim, values: Floats, target: float, tolerance: float, confidence: float
) -> Verdict:
    problem = _unusable(values)
    if problem:
        return _nothing(claim, problem, len(values))
    low, high = mean_interval(values, confidence)
    verdict: Judgement = "inconclusive"
    if low >= target - tolerance and high <= target + tolerance:
        verdict = "supported"
    elif high < target - tolerance or low > target + tolerance:
        verdict = "refuted"
    note = f"within {tolerance:g} of {target:g} asked"
    if len(values) < ENOUGH_SEEDS and verdict == "supported":
        verdict, note = "inconclusive", f"{note}; n = {len(values)} is too few"
    effect, ci = float(np.mean(values)), mean_interval(values)
    return Verdict(claim.id, verdict, effect, ci, len(values), claim.unit, claim.threshold, note)


def _unusable(*groups: Floats) -> str:
    if not len(groups[0]):
        return "nothing was measured: its cells were not run or failed"
    broken = sum(int((~np.isfinite(values)).sum()) for values in groups)
    return f"{broken} values are infinite or not a number" if broken else ""


def not_measured(claim: Claim) -> Verdict:
    """The verdict on a claim when there is no row to judge it from."""
    return _nothing(claim, _unusable(np.empty(0)))


def _nothing(claim: Claim, note: str, n: int = 0) -> Verdict:
    none = (math.nan, math.nan)
    return Verdict(claim.id, "inconclusive", math.nan, none, n, claim.unit, claim.threshold, note)


def restricted_mean(times: Floats, censored: npt.NDArray[np.bool_], until: float) -> float:
    """Mean of min(time, `until`) from right-censored times: area under Kaplan-Meier's curve."""
    from scipy.stats import CensoredData, ecdf

    data = CensoredData(uncensored=times[~censored], right=times[censored])
    survival = ecdf(data).sf
    inside = survival.quantiles < until
    edges = np.concatenate([[0.0], survival.quantiles[inside], [until]])
    heights = np.concatenate([[1.0], survival.probabilities[inside]])
    return float(np.sum(np.diff(edges) * heights))


def _censored(
    claim: Claim,
    first: Floats,
    second: Floats,
    never_a: npt.NDArray[np.bool_],
    never_b: npt.NDArray[np.bool_],
) -> Verdict:
    from scipy.stats import CensoredData, logrank

    problem = _unusable(first, second)
    if not problem and min(first.min(), second.min()) <= 0:
        problem = "a ratio needs positive values"
    if not problem and never_a.all() and never_b.all():
        problem = "neither came within the budget"
    if problem:
        return _nothing(claim, problem, len(first))
    counts = f"{never_a.sum()} and {never_b.sum()} of {len(first)} never came"
    if not never_b.any():
        # Each pair's own ratio, with the budget in the place of a time, is an upper bound.
        capped = _bound(_ratio(claim, second, first), counts, False, True)
        if capped.verdict == "refuted":
            return capped
    until = min(first[never_a].min(initial=math.inf), second[never_b].min(initial=math.inf))

    def log_ratio(keep: npt.NDArray[np.bool_]) -> float:
        means = [
            restricted_mean(times[keep], never[keep], until)
            for times, never in ((first, never_a), (second, never_b))
        ]
        return math.log(means[1] / means[0])

    n = len(first)
    whole = log_ratio(np.ones(n, bool))
    pseudo = np.array([whole])
    if n > 1:
        left_out = [log_ratio(np.arange(n) != i) for i in range(n)]
        pseudo = n * whole - (n - 1) * np.array(left_out)
    low, high = np.exp(mean_interval(pseudo))
    # Without an event while both are at risk the test has nothing to divide by: no evidence.
    with np.errstate(invalid="ignore"):
        p = logrank(
            CensoredData(uncensored=first[~never_a], right=first[never_a]),
            CensoredData(uncensored=second[~never_b], right=second[never_b]),
        ).pvalue
    result = _decide(claim, math.exp(whole), (float(low), float(high)), n)
    unsure = not p < 1 - CONFIDENCE
    threshold = _threshold(claim)
    # What came after `until` is cut there, as if it were censored. The restricted ratio bounds the
    # true one from below where `than` is cut and from above where `a` is; a bound on the wrong
    # side decides nothing, but it never crosses 1.
    cut_a, cut_b = (
        (times > until) | never for times, never in ((first, never_a), (second, never_b))
    )
    if result.verdict == "supported" and (unsure or (cut_a.any() and threshold != 1)):
        result = replace(result, verdict="inconclusive")
    if result.verdict == "refuted" and cut_b.any() and (unsure or threshold < 1 or not high < 1):
        result = replace(result, verdict="inconclusive")
    note = f"restricted means; {counts} by {until:g}; log-rank p = {p:.2g}"
    return replace(result, note="; ".join(part for part in (note, result.note) if part))
