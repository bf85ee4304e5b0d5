"""The vocabulary of tests against cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from peira.engine import verdict as v
from peira.engine.cards import Claim, Published
from peira.engine.errors import CardError, StudyError


def claim(test: str, threshold: float | None = None, **more: object) -> Claim:
    published = Published(value=more.pop("value", None), where="Table 1")
    return Claim(
        id="C1", statement="s", test=test, threshold=threshold, published=published, **more
    )


def two(a, b, metric="x") -> pd.DataFrame:
    """One row per seed for the methods `a` and `b`."""
    parts = [
        pd.DataFrame({"method": name, "seed": range(len(values)), metric: values})
        for name, values in (("a", a), ("b", b))
    ]
    return pd.concat(parts, ignore_index=True)


def times(a, b, budget: float) -> pd.DataFrame:
    """Times; infinite ones are censored at `budget`."""
    table = two(a, b, "t")
    table["t_censored"] = np.isinf(table["t"])
    table["t"] = table["t"].clip(upper=budget)
    return table


def test_a_group_without_settings_is_the_whole_table():
    table = two([1.0, 2.0], [3.0, 4.0])
    assert len(v.select(table, {})) == len(v.select(table, None)) == 4
    assert v.select(table, {"method": "b", "seed": 1})["x"].tolist() == [4.0]


def test_larger_gives_the_paired_t_interval():
    verdict = v.larger(two([3, 4, 5, 6], [1, 3, 2, 4]), "x", "a", "b", claim("larger"))
    # differences 2, 1, 3, 2: mean 2, sd sqrt(2/3), t(3, .975) = 3.182446
    half = 3.182446 * math.sqrt(2 / 3) / 2
    assert verdict.verdict == "supported"
    assert verdict.effect == 2
    assert verdict.ci == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert verdict.n == 4


def test_pairing_removes_what_the_seeds_share():
    seeds = np.array([0.0, 10, 20, 30, 40])
    table = two(seeds + np.array([1.0, 1.1, 0.9, 1.0, 1.05]), seeds)
    assert v.larger(table, "x", "a", "b", claim("larger")).verdict == "supported"


def test_rows_in_another_order_pair_the_same():
    table = two([3, 4, 5, 6], [1, 3, 2, 4])
    shuffled = table.sample(frac=1, random_state=3)
    judged = [v.larger(t, "x", "a", "b", claim("larger")) for t in (table, shuffled)]
    assert judged[0].ci == pytest.approx(judged[1].ci)


@pytest.mark.parametrize(
    ("test", "n"), [(v.larger, 3), (v.larger, 10), (v.smaller, 5), (v.at_least, 5), (v.sooner, 4)]
)
def test_no_effect_is_inconclusive_at_the_nominal_rate(test, n):
    rng = np.random.default_rng(n)
    threshold = {"larger": 0.0, "smaller": 0.0}.get(test.__name__, 1.0)
    judged = []
    for _ in range(1000):
        table = two(np.exp(rng.normal(size=n)), np.exp(rng.normal(size=n)))
        if test in (v.larger, v.smaller):
            table["x"] = np.log(table["x"])
        judged.append(test(table, "x", "a", "b", claim(test.__name__, threshold)).verdict)
    # 95% intervals: 950 expected, standard deviation 6.9.
    assert 925 <= judged.count("inconclusive") <= 975


def test_no_effect_with_censoring_is_seldom_decided():
    rng = np.random.default_rng(0)
    judged = []
    for _ in range(1000):
        a, b = rng.exponential(size=(2, 8))
        a[a > 1.5], b[b > 1.5] = math.inf, math.inf
        judged.append(v.sooner(times(a, b, 1.5), "t", "a", "b", claim("sooner", 1.0)).verdict)
    assert judged.count("inconclusive") >= 930


def test_wrong_direction_is_refuted():
    table = two([1, 2, 1, 2, 1], [5, 6, 5, 6, 5.5])
    assert v.larger(table, "x", "a", "b", claim("larger")).verdict == "refuted"
    assert v.smaller(table, "x", "b", "a", claim("smaller")).verdict == "refuted"
    assert v.at_least(table, "x", "a", "b", claim("at_least", 2.0)).verdict == "refuted"
    assert v.sooner(table, "x", "b", "a", claim("sooner")).verdict == "refuted"


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_seeds_never_support(n):
    table = two(np.full(n, 9.0) + np.arange(n) * 1e-9, np.ones(n))
    for test in (v.larger, v.at_least, v.sooner):
        group = ("b", "a") if test is v.sooner else ("a", "b")
        judged = test(table, "x", *group, claim(test.__name__, 1.0))
        assert judged.verdict == "inconclusive", test.__name__
    assert v.above(table, "x", "a", claim("above", 1.0)).verdict == "inconclusive"
    assert (
        v.equals(table, "x", "b", claim("equals", value=1.0, tolerance=0.5)).verdict
        == "inconclusive"
    )


def test_threshold_decides_the_size_of_the_effect():
    table = two([2.0, 2.1, 1.9, 2.0], [1.0, 1.0, 1.0, 1.0])
    assert v.larger(table, "x", "a", "b", claim("larger", 0.5)).verdict == "supported"
    assert v.larger(table, "x", "a", "b", claim("larger", 1.5)).verdict == "refuted"
    assert v.larger(table, "x", "a", "b", claim("larger", 1.0)).verdict == "inconclusive"


def test_ratio_is_a_geometric_mean():
    judged = v.at_least(two([2, 8, 4], [1, 1, 1]), "x", "a", "b", claim("at_least", 1.0))
    assert judged.effect == pytest.approx(4.0)


def test_groups_name_any_fields_and_must_be_unambiguous():
    table = pd.concat([two([2, 3, 4], [1, 1, 1]).assign(keep=k) for k in (0.2, 0.4)])
    a, b = {"method": "a", "keep": 0.4}, {"method": "b", "keep": 0.4}
    assert v.larger(table, "x", a, b, claim("larger")).effect == 2
    with pytest.raises(StudyError, match="several rows"):
        v.larger(table, "x", "a", "b", claim("larger"))
    assert v.larger(table, "x", "a", "b", claim("larger"), pair=("seed", "keep")).n == 6
    with pytest.raises(StudyError, match="no column 'kep'"):
        v.larger(table, "x", {"kep": 1}, "b", claim("larger"))


def test_what_was_not_measured_is_inconclusive_and_says_so():
    empty = two([], [])
    assert "nothing was measured" in v.larger(empty, "x", "a", "b", claim("larger")).note
    broken = two([1, 2, math.nan], [0, 0, 0])
    judged = v.larger(broken, "x", "a", "b", claim("larger"))
    assert judged.verdict == "inconclusive" and "not a number" in judged.note


def test_restricted_mean_by_hand():
    t = np.array([1.0, 2.0, 3.0, 4.0])
    never = np.array([False, True, False, True])
    # survival: 1 up to 1, 3/4 up to 3, 3/4 * 1/2 up to 4
    assert v.restricted_mean(t, never, 4.0) == pytest.approx(1 + 0.75 * 2 + 0.375)
    all_seen = np.zeros(4, bool)
    assert v.restricted_mean(t, all_seen, 10.0) == pytest.approx(2.5)
    assert v.restricted_mean(t, all_seen, 2.5) == pytest.approx(np.minimum(t, 2.5).mean())


def test_never_against_soon_is_supported_and_keeps_the_censored():
    table = times([100, 120, 110, 90], [math.inf] * 4, budget=1000)
    judged = v.sooner(table, "t", "a", "b", claim("sooner", 3.0))
    assert judged.verdict == "supported"
    assert judged.effect == pytest.approx(1000 / 105)
    assert judged.n == 4 and "4 of 4" in judged.note


def test_a_bound_never_refutes_what_it_cannot():
    # b never came by 200, so the ratio is at least 2: no evidence against "4 times sooner".
    table = times([99, 100, 101], [math.inf] * 3, budget=200)
    assert v.sooner(table, "t", "a", "b", claim("sooner", 4.0)).verdict == "inconclusive"
    # a never came by 1000 and b at 100: not sooner.
    table = times([math.inf] * 4, [99, 100, 101, 102], budget=1000)
    assert v.sooner(table, "t", "a", "b", claim("sooner", 1.0)).verdict == "refuted"
    # one a never came: a ratio of restricted means is too kind to it.
    table = times([10, 11, 12, 10, math.inf], [math.inf] * 5, budget=1000)
    assert v.sooner(table, "t", "a", "b", claim("sooner", 3.0)).verdict == "inconclusive"


def test_budgets_of_their_own_can_refute():
    # a is given up when b has come, pair by pair: never sooner, whatever the common budget.
    table = two([3900, 2600, 9500, 4000], [3900, 2500, 9400, 3900], "t")
    table["t_censored"] = [True, False, True, False] + [False] * 4
    judged = v.sooner(table, "t", "a", "b", claim("sooner", 2.0))
    assert judged.verdict == "refuted" and "2 and 0 of 4 never came: a bound" in judged.note
    assert v.sooner(table, "t", "a", "b", claim("sooner", 0.5)).verdict == "inconclusive"


def test_neither_came():
    table = times([math.inf] * 3, [math.inf] * 3, budget=10)
    judged = v.sooner(table, "t", "a", "b", claim("sooner"))
    assert judged.verdict == "inconclusive" and "neither" in judged.note


def test_censored_times_bound_a_ratio():
    # a never came by 100, b at 50: the ratio is at least 2.
    late = times([math.inf] * 3, [49, 50, 51], budget=100)
    judged = v.at_least(late, "t", "a", "b", claim("at_least", 1.5))
    assert judged.verdict == "supported" and "never came" in judged.note
    assert v.at_least(late, "t", "a", "b", claim("at_least", 3.0)).verdict == "inconclusive"
    # b never came: the ratio is at most 1/2.
    assert v.at_least(late, "t", "b", "a", claim("at_least", 0.3)).verdict == "inconclusive"
    assert v.at_least(late, "t", "b", "a", claim("at_least", 0.9)).verdict == "refuted"
    with pytest.raises(StudyError, match="censored times"):
        v.larger(late, "t", "a", "b", claim("larger"))


def line(slope: float, noise: float, seeds: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = np.tile(np.arange(1.0, 9.0), seeds)
    y = x**slope * np.exp(noise * rng.normal(size=len(x)))
    return pd.DataFrame({"width": x, "y": y, "seed": np.repeat(np.arange(seeds), 8)})


def test_trend():
    rising, falling = line(1.0, 0.05), line(-1.0, 0.05)
    assert v.trend(rising, "width", "y", claim("trend")).verdict == "supported"
    assert v.trend(falling, "width", "y", claim("trend")).verdict == "refuted"
    judged = v.trend(falling, "width", "y", claim("trend", 0.5), falling=True)
    assert judged.verdict == "supported" and judged.effect < -0.9
    assert v.trend(line(0.0, 1.0), "width", "y", claim("trend")).verdict == "inconclusive"


def test_power_law():
    want = claim("power_law", value=-0.5, tolerance=0.1)
    assert v.power_law(line(-0.5, 0.05), "width", "y", want).verdict == "supported"
    assert v.power_law(line(-1.0, 0.05), "width", "y", want).verdict == "refuted"
    assert v.power_law(line(-0.5, 0.0), "width", "y", want).effect == pytest.approx(-0.5)


def test_equals_and_equivalent():
    table = two([1.0, 1.01, 0.99, 1.0], [1.0, 1.0, 1.02, 0.99])
    near = claim("equals", value=1.0, tolerance=0.05)
    assert v.equals(table, "x", "a", near).verdict == "supported"
    far = claim("equals", value=2.0, tolerance=0.05)
    assert v.equals(table, "x", "a", far).verdict == "refuted"
    assert v.equivalent(table, "x", "a", "b", claim("equivalent", 0.05)).verdict == "supported"
    apart = two([1.0, 1.1, 1.2], [2.0, 2.1, 2.2])
    assert v.equivalent(apart, "x", "a", "b", claim("equivalent", 0.05)).verdict == "refuted"
    noisy = two([1.0, 3.0, 2.0], [2.0, 1.0, 3.0])
    assert v.equivalent(noisy, "x", "a", "b", claim("equivalent", 0.05)).verdict == "inconclusive"


def test_above_and_below():
    table = two([0.9, 0.91, 0.92], [0.1, 0.1, 0.12])
    assert v.above(table, "x", "a", claim("above", 0.8)).verdict == "supported"
    assert v.above(table, "x", "b", claim("above", 0.8)).verdict == "refuted"
    assert v.below(table, "x", "b", claim("below", 0.2)).verdict == "supported"
    assert v.below(table, "x", "a", claim("below", 0.2)).verdict == "refuted"


def test_rate_has_the_exact_binomial_interval():
    judged = v.rate([True] * 18 + [False] * 2, claim("rate", 0.6))
    # Clopper-Pearson of 18 of 20.
    assert judged.ci == pytest.approx((0.6830, 0.9877), abs=1e-4)
    assert judged.verdict == "supported"
    assert v.rate([True] * 2, claim("rate", 0.1)).verdict == "inconclusive"
    assert v.rate([False] * 20, claim("rate", 0.6)).verdict == "refuted"


def test_exactly_and_count():
    same = {"n": (3, 3), "m": (4, 4)}
    assert v.exactly(same, claim("exactly")).verdict == "supported"
    judged = v.exactly({**same, "k": (5, 6)}, claim("exactly"))
    assert judged.verdict == "refuted" and judged.effect == pytest.approx(2 / 3)
    assert "k" in judged.note
    assert v.exactly({"n": (math.nan, 3)}, claim("exactly")).verdict == "refuted"
    held = {"a": True, "b": True, "c": True, "d": False}
    assert v.count(held, claim("count", 3)).verdict == "supported"
    assert v.count(held, claim("count", 4)).verdict == "refuted"
    assert v.count({"a": True}, claim("count", 3)).verdict == "inconclusive"


def test_all_of_is_as_strong_as_its_weakest_part():
    good = v.larger(two([3, 4, 5, 6], [1, 3, 2, 4]), "x", "a", "b", claim("larger"))
    bad = v.larger(two([1, 1, 1.1], [5, 5, 5.2]), "x", "a", "b", claim("larger"))
    open_ = v.larger(two([1, 5, 2], [2, 3, 3]), "x", "a", "b", claim("larger"))
    whole = claim("all_of")
    assert v.all_of(whole, [good, good]).verdict == "supported"
    assert v.all_of(whole, [good, open_]).verdict == "inconclusive"
    judged = v.all_of(whole, [good, open_, bad])
    assert judged.verdict == "refuted" and judged.effect == bad.effect
    assert len(judged.parts) == 3


def test_every_control_must_be_beaten():
    table = pd.concat(
        [
            two([9, 9.5, 9.2], [1, 1.5, 1.2]),
            pd.DataFrame({"method": "c", "seed": range(3), "x": [9.1, 9.4, 9.3]}),
        ]
    )
    want = claim("against_controls")
    weak = v.against_controls(v.larger, table, "x", "a", {"random": "b"}, want)
    assert weak.verdict == "supported" and weak.parts[0].note == "against random"
    both = v.against_controls(v.larger, table, "x", "a", {"random": "b", "shuffled": "c"}, want)
    assert both.verdict == "inconclusive" and both.note == "against shuffled"


def test_study_and_card_must_agree_on_the_test():
    with pytest.raises(CardError, match=r"card\.toml says test 'larger', study uses 'smaller'"):
        v.smaller(two([1], [1]), "x", "a", "b", claim("larger"))
    with pytest.raises(CardError, match="must give a threshold"):
        v.at_least(two([1], [1]), "x", "a", "b", claim("at_least"))
    with pytest.raises(CardError, match=r"needs published.value and tolerance"):
        v.equals(two([1], [1]), "x", "a", claim("equals"))


def test_what_came_after_the_other_budget_bounds_as_a_censored_time_does():
    # `than` was given up at 1000; one `a` came at 5000. Cut at 1000 the ratio is 3.9, but nothing
    # says that the mean time of `than` is three times that of `a`.
    table = two([10.0, 10.1, 10.2, 9.9, 10.0, 10.1, 5000.0], [1000.0] * 7, "t")
    table["t_censored"] = table["method"] == "b"
    judged = v.sooner(table, "t", "a", "b", claim("sooner", 1.5))
    assert judged.verdict == "inconclusive"


def test_a_bound_decides_on_one_side_of_equal_times_only():
    # b never came by 100, a at about 200: the ratio is at least 0.5, perhaps far above 0.9.
    slow = two([200.0, 201.0, 199.0, 200.0], [100.0] * 4, "t")
    slow["t_censored"] = slow["method"] == "b"
    assert v.sooner(slow, "t", "a", "b", claim("sooner", 0.9)).verdict == "inconclusive"
    # a never came by 100, b at about 70: the ratio is at most 0.7, perhaps far below 0.5.
    late = times([math.inf] * 4, [69, 70, 71, 70], budget=100)
    assert v.sooner(late, "t", "a", "b", claim("sooner", 0.5)).verdict == "inconclusive"
    # A few b never came: cut at 100 the ratio is below 0.95, the true one may be far above.
    some = times([90, 91, 92, 90, 91, 92], [60, 61, 60, 61, 60, math.inf], budget=100)
    assert v.sooner(some, "t", "a", "b", claim("sooner", 0.95)).verdict == "inconclusive"


def test_a_mean_with_censored_times_is_a_lower_bound():
    table = times([98, 99, math.inf], [math.inf] * 3, budget=100)
    assert v.above(table, "t", "a", claim("above", 90)).verdict == "supported"
    assert v.above(table, "t", "a", claim("above", 150)).verdict == "inconclusive"
    assert v.below(table, "t", "a", claim("below", 150)).verdict == "inconclusive"
    judged = v.below(table, "t", "a", claim("below", 50))
    assert judged.verdict == "refuted" and "a bound" in judged.note
    for test, more in ((v.equals, {"value": 99.0, "tolerance": 5.0}), (v.equivalent, {})):
        groups = ("a",) if test is v.equals else ("a", "b")
        with pytest.raises(StudyError, match="censored times"):
            test(table, "t", *groups, claim(test.__name__, **more))
    for test in (v.trend, v.power_law):
        with pytest.raises(StudyError, match="censored times"):
            test(table, "seed", "t", claim(test.__name__))


def test_numbers_that_cannot_be_judged_are_inconclusive():
    zero = times([0, 0, 0], [math.inf] * 3, budget=10)
    assert "positive" in v.sooner(zero, "t", "a", "b", claim("sooner")).note
    infinite = v.above(two([1, math.inf, 2], [0, 0, 0]), "x", "a", claim("above", 0.0))
    assert infinite.verdict == "inconclusive" and "1 values are infinite" in infinite.note
    table = line(1.0, 0.1).assign(y=lambda t: t["y"] - 2)
    judged = v.power_law(table, "width", "y", claim("power_law", value=1.0, tolerance=0.1))
    assert judged.verdict == "inconclusive" and "not a number" in judged.note


def test_a_group_can_ask_for_none():
    table = two([3.0, 4.0, 5.0], [1.0, 1.0, 1.0]).assign(patience=None)
    group = {"method": "a", "patience": None}
    assert v.above(table, "x", group, claim("above", 1.0)).n == 3


def test_every_part_of_a_claim_is_judged():
    good = v.larger(two([3, 4, 5, 6], [1, 3, 2, 4]), "x", "a", "b", claim("larger"))
    part = {"test": "larger", "statement": "it is larger"}
    whole = claim("all_of", parts=(part, part))
    assert v.all_of(whole, [good, good]).parts[0].note == "it is larger"
    with pytest.raises(StudyError, match=r"judges 1 parts, card\.toml has 2"):
        v.all_of(whole, [good])
