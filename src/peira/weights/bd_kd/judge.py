"""The claims as statements about the table of cells and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd

from peira.engine import verdict as v
from peira.engine.cards import Claim

Group = dict[str, Any]
# Fields of a cell beside its method and seed; a setting is one value of each.
FIELDS = (
    "task", "noise", "train", "network", "teacher", "student", "students", "epochs", "batch",
    "learning_rate", "schedule", "nu", "T", "alpha", "entropy_T",
)  # fmt: skip


def setting(table: pd.DataFrame, where: Mapping[str, Any]) -> Group:
    """The setting of the first rows that `where` holds for; empty where there are none."""
    known = all(name in table for name in where)
    rows = v.select(table, where) if known else table[:0]
    if not len(rows):
        return {}
    first = rows.iloc[0]
    return {name: None if pd.isna(first[name]) else first[name] for name in FIELDS}


def main_setting(table: pd.DataFrame) -> Group:
    """The setting of the ablations, in which most methods were run."""
    rows = table[table["task"] != "gaussian"] if "task" in table else table
    return setting(rows, {"method": "inverted"})


def clean_setting(table: pd.DataFrame) -> Group:
    """Digits as they are, where frozen teachers were run as well."""
    return setting(table, {"task": "digits", "noise": 0.0, "method": "kd"})


def few_setting(table: pd.DataFrame) -> Group:
    """Few clean digits for many epochs."""
    most = clean_setting(table).get("train", 0)
    return setting(table[table["train"] < most], {"task": "digits", "noise": 0.0}) if most else {}


def simulator_setting(table: pd.DataFrame) -> Group:
    """The Gaussian classes."""
    return setting(table, {"task": "gaussian"})


def group(base: Group, method: str, **changes: Any) -> Group:
    """The rows of one method in a setting; of none where the setting was not run."""
    return {**base, "method": method, **changes} if base else {"method": "not run"}


def verdicts(claim: Callable[[str], Claim], table: pd.DataFrame) -> Iterator[v.Verdict]:
    """One verdict for each claim of the card, in its order."""
    main, clean, few, simulator = (
        make(table) for make in (main_setting, clean_setting, few_setting, simulator_setting)
    )
    for name, base in (("C1", main), ("C1b", clean), ("C1c", few)):
        yield calibrated(claim(name), table, base)
    yield v.all_of(
        claim("C1d"),
        [
            v.smaller(table, "true_error", group(simulator, "bdkd"), group(simulator, than), part)
            for than, part in zip(("dml", "ce"), claim("C1d").parts, strict=True)
        ],
    )
    yield capacity(claim("C2"), table, main, "ce")
    yield capacity(claim("C2b"), table, main, "dml")
    yield v.all_of(
        claim("C3"),
        [
            v.larger(table, "teacher_accuracy", group(base, "bdkd"), group(base, "kd"), part)
            for base, part in zip((main, clean), claim("C3").parts, strict=True)
        ],
    )
    balanced, inverted = group(main, "bdkd"), group(main, "inverted")
    yield v.all_of(
        claim("C4"),
        [
            v.smaller(table, "ece", balanced, group(main, than), part)
            for than, part in zip(("dml", "reverse", "sum"), claim("C4").parts, strict=True)
        ],
    )
    yield v.all_of(
        claim("C4b"),
        [
            v.larger(table, "ece", inverted, group(main, than), part)
            for than, part in zip(("bdkd", "sum"), claim("C4b").parts, strict=True)
        ],
    )
    yield v.smaller(table, "ece", balanced, group(main, "sum-matched"), claim("C4c"))
    yield v.all_of(
        claim("C5"),
        [
            v.smaller(table, "mean_entropy_gap", balanced, group(main, than), part)
            for than, part in zip(("sum", "sum-matched"), claim("C5").parts, strict=True)
        ],
    )
    yield v.smaller(table, "temperature_distance", balanced, group(main, "ce"), claim("C6"))
    yield v.smaller(table, "ece", balanced, group(main, "scaled"), claim("C6b"))
    trend, bias = claim("C7").parts
    known = table.loc[table["task"] == "gaussian"] if "true_error" in table else table[:0]
    yield v.all_of(
        claim("C7"),
        [
            v.trend(known, "true_error", "ece", trend),
            v.below(known, "ece_bias", group(simulator, "bdkd"), bias),
        ],
    )
    others = {"KDCL": "kdcl", "SwitOKD": "switokd"}
    controls = {name: group(main, method) for name, method in others.items()}
    yield v.against_controls(v.smaller, table, "ece", balanced, controls, claim("C8"))


def calibrated(claim: Claim, table: pd.DataFrame, base: Group) -> v.Verdict:
    """ECE below that of DML and of labels alone, at no loss of accuracy."""
    against_dml, against_ce, accuracy = claim.parts
    balanced, dml = group(base, "bdkd"), group(base, "dml")
    return v.all_of(
        claim,
        [
            v.smaller(table, "ece", balanced, dml, against_dml),
            v.smaller(table, "ece", balanced, group(base, "ce"), against_ce),
            v.larger(table, "accuracy", balanced, dml, accuracy),
        ],
    )


def capacity(claim: Claim, table: pd.DataFrame, base: Group, than: str) -> v.Verdict:
    """A gain over another method, and its growth with the teacher's size."""
    level, growth = claim.parts
    return v.all_of(
        claim,
        [
            v.larger(table, "accuracy", group(base, "bdkd"), group(base, than), level),
            v.trend(gains(table, base, than), "size_ratio", "gain", growth),
        ],
    )


def gains(table: pd.DataFrame, base: Group, than: str) -> pd.DataFrame:
    """Accuracy of BD-KD minus that of another method, for every teacher and seed.

    Returns:
        Columns seed, teacher, size_ratio (parameters of teacher / student), gain.
    """
    if not base:
        return table[:0]
    free = {name: value for name, value in base.items() if name != "teacher"}
    ours = v.select(table, {**free, "method": "bdkd"})[
        ["seed", "teacher", "size_ratio", "accuracy"]
    ]
    other = v.select(table, {**free, "method": than})
    # Students of labels alone have no teacher: one row stands for all.
    keys = ["seed"] if than == "ce" else ["seed", "teacher"]
    both = ours.merge(other[[*keys, "accuracy"]], on=keys, suffixes=("", "_other"))
    return both.assign(gain=both["accuracy"] - both["accuracy_other"])
