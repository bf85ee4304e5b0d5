"""The card's claims, judged from the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from peira.engine import verdict as v

if TYPE_CHECKING:
    import pandas as pd

    from peira.engine.cards import Claim

MAIN = {"init": "truncated", "match": "fro", "gain": 1.25, "shuffle": "none"}
KA = "kernel_alignment"


def judge(table: pd.DataFrame, claim: Callable[[str], Claim]) -> Iterator[v.Verdict]:
    """One verdict for each claim, in the card's order."""
    equal, recurrent = matched(table), table[table["task"] != "linear"]
    low, full = group(rank=1), group()
    yield v.larger(equal, KA, full, low, claim("C1a"))
    yield _ladder(equal, claim("C1b"))
    yield v.larger(equal, "representation_alignment", full, low, claim("C1c"))
    published = recurrent[recurrent["target_loss"].isna() & (recurrent["hidden"] >= 300)]
    yield v.all_of(
        claim("C1d"),
        [
            v.smaller(published, "weight_change", *_ends(published, task), part)
            for task, part in zip(("2AF", "DMS", "CXT", "sMNIST"), claim("C1d").parts, strict=True)
        ],
    )
    images = "sMNIST" if (table["task"] == "sMNIST").any() else "digits"
    yield v.all_of(
        claim("C1e"),
        [
            v.larger(equal, KA, *_ends(equal, task), part)
            for task, part in zip(("DMS", "CXT", images), claim("C1e").parts, strict=True)
        ],
    )
    yield v.all_of(
        claim("C1f"),
        [
            v.larger(equal, KA, full, group(rank=1, match=rule), part)
            for rule, part in zip(("spectral", "radius"), claim("C1f").parts, strict=True)
        ],
    )
    yield _theory(table, claim("C2"))
    for id, features in (("C3a", "task"), ("C3b", "inputs")):
        yield _alignment(table, claim(id), features)
    yield v.all_of(
        claim("C4"),
        [
            v.rate(concordant(equal, kind), part)
            for kind, part in zip(("elements", "degrees"), claim("C4").parts, strict=True)
        ],
    )
    gains = {name: value for name, value in full.items() if name != "gain"}
    yield v.trend(equal, "gain", KA, claim("C5"), where=gains)


def group(task: str = "2AF", rank: int | None = None, **settings: Any) -> dict[str, Any]:
    """The rows of one rank of the main comparison."""
    return {"task": task, **MAIN, "rank": rank, **settings}


def matched(table: pd.DataFrame) -> pd.DataFrame:
    """Recurrent networks that got to the loss at which they are compared."""
    return table[(table["task"] != "linear") & (table["reached"] == 1)]


def concordant(equal: pd.DataFrame, kind: str) -> list[bool]:
    """By seed: of cell-type structure and its shuffle, has the one of lower rank the lower
    kernel alignment?"""
    where = {name: value for name, value in group(init="block").items() if name != "shuffle"}
    rows = v.select(equal, where)
    both = [rows[rows["shuffle"] == name].set_index("seed") for name in ("none", kind)]
    seeds = both[0].index.intersection(both[1].index)
    ranks, alignments = (
        both[0].loc[seeds, name] - both[1].loc[seeds, name] for name in ("participation_rank", KA)
    )
    return [bool(value) for value in ranks * alignments > 0]


def _ladder(equal: pd.DataFrame, claim: Claim) -> v.Verdict:
    """Each rank of the main comparison against the next lower one."""
    where = {name: value for name, value in group().items() if name != "rank"}
    ranks = sorted(v.select(equal, where)["rank"].dropna().unique())
    steps = [int(rank) for rank in ranks] + [None]
    if len(steps) != len(claim.parts) + 1:
        return v.not_measured(claim)
    return v.all_of(
        claim,
        [
            v.larger(equal, KA, group(rank=higher), group(rank=lower), part)
            for lower, higher, part in zip(steps, steps[1:], claim.parts, strict=False)
        ],
    )


def _ends(table: pd.DataFrame, task: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Full rank and the lowest rank of a task."""
    ranks = table["rank"][table["task"] == task].dropna()
    return group(task), group(task, rank=int(ranks.min()) if len(ranks) else 1)


def _theory(table: pd.DataFrame, claim: Claim) -> v.Verdict:
    """Rank correlations in the smallest and the largest linear network, then the closed forms."""
    rows = table[(table["task"] == "linear") & (table["condition"] == 1)]
    rows = rows.assign(rank_number=rows["rank"].fillna(rows["hidden"]))
    many = rows[rows["init"] == "truncated"]["hidden"]
    sizes = (many.min(), many.max())
    parts = iter(claim.parts)
    rising = [
        v.trend(rows, "rank_number", KA, next(parts), where={"init": init, "hidden": size})
        for init in ("flat", "truncated")
        for size in sizes
    ]
    known = rows[(rows["hidden"] == sizes[0]) & rows["closed_form"].notna()]
    closed = [
        v.below(known, "closed_form_error", {"init": init}, next(parts))
        for init in ("aligned", "flat", "against")
    ]
    return v.all_of(claim, [*rising, *closed])


def _alignment(table: pd.DataFrame, claim: Claim, features: str) -> v.Verdict:
    """Aligned against random rank 1, for each condition number."""
    rows = table[table["task"] == "linear"]
    rows = rows[rows["hidden"] == rows.loc[rows["init"] == "aligned", "hidden"].min()]
    parts = []
    for condition, part in zip((1.0, 4.0, 16.0), claim.parts, strict=True):
        # With condition 1 task and inputs are the same.
        where = {"condition": condition, "features": features if condition > 1 else "task"}
        aligned = {**where, "init": "aligned"}
        random = {**where, "init": "flat", "rank": 1}
        parts.append(v.larger(rows, KA, aligned, random, part))
    return v.all_of(claim, parts)
