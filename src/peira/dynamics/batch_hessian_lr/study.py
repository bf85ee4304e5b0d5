"""How the paper's claims are tested: the cells, what each measures, the verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

import peira
from peira.dynamics.batch_hessian_lr import experiments
from peira.dynamics.batch_hessian_lr.examples import cifar_paths
from peira.engine import verdict as v

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# How a network is trained up to the moments at which its spectrum is measured: batch, rate of SGD.
TRAINING = {"digits": (32, 0.3), "cifar100": (128, 0.05)}
# Sizes that the 1/b law is fitted to, as in the claim.
FITTED = (2, 4, 8, 16, 32, 64)
# A transition is no sharp line in finitely many dimensions: overlaps count this far from it.
NEAR_TRANSITION = 1.2
LEARNERS = (
    "grid",
    "slq",
    "slq-published",
    "full-curvature",
    "range-test",
    "line-search",
    "adahessian",
)


class Cell(peira.Cell):
    """One measurement; fields that its topic does not use keep their defaults."""

    topic: Literal["spectrum", "matrix", "largest-rate", "damping", "learner"] = "spectrum"
    method: Literal[
        "hessian",
        "ggn",
        "wigner",
        "wishart",
        "sgd",
        "adam",
        "rmsprop",
        "grid",
        "slq",
        "slq-published",
        "full-curvature",
        "range-test",
        "line-search",
        "adahessian",
    ] = Field("hessian", description="curvature, random matrix, optimiser or learner")
    task: Literal["digits", "quadratic", "cifar100"] = "digits"
    network: str = Field(
        "tanh-24",
        description="activation and hidden widths, linear, vgg16, preresnet110, wrn-28-10",
    )
    batch: int = Field(32, ge=1, description="examples in a batch")
    moment: int = Field(0, ge=0, description="SGD steps before the spectrum is measured")
    count: int = Field(48, ge=1, description="random batches, or random matrices")
    size: int = Field(500, ge=2, description="dimensions of a random matrix or noisy quadratic")
    spike: float = Field(1.0, gt=0, description="spike in units of the transition")
    learning_rate: float = Field(0.03, gt=0, description="of RMSprop on the noisy quadratic")
    horizon: int = Field(400, ge=1, description="training steps")
    tried: int = Field(40, ge=2, description="learning rates or dampings tried at once")
    chunk: int | None = Field(None, ge=1, description="examples at a time in full curvature")


def spectra(
    kinds: dict[str, tuple[int, ...]], batches: tuple[int, ...], **fields: Any
) -> list[Cell]:
    """Kind of curvature -> moments, at every batch size."""
    return [
        Cell(
            topic="spectrum", method=kind, moment=moment, batch=batch, **{**counts(batch), **fields}
        )
        for kind, moments in kinds.items()
        for moment in moments
        for batch in batches
    ]


def counts(batch: int) -> dict[str, int]:
    """Random batches: the fewer the examples, the wider the spread of their eigenvalues."""
    return {"count": 192 if batch <= 4 else 96 if batch <= 16 else 48}


def matrices(spikes: tuple[float, ...], **fields: Any) -> list[Cell]:
    """Both random matrix models at every spike."""
    return [
        Cell(topic="matrix", method=method, spike=spike, **fields)
        for method in ("wigner", "wishart")
        for spike in spikes
    ]


def largest_rates(batches: tuple[int, ...], **fields: Any) -> list[Cell]:
    """SGD and Adam at every batch size."""
    return [
        Cell(topic="largest-rate", method=method, batch=batch, **fields)
        for method in ("sgd", "adam")
        for batch in batches
    ]


def dampings(rates: tuple[float, ...], batches: tuple[int, ...], **fields: Any) -> list[Cell]:
    """RMSprop on the noisy quadratic at every rate and batch size."""
    return [
        Cell(topic="damping", method="rmsprop", learning_rate=rate, batch=batch, **fields)
        for rate in rates
        for batch in batches
    ]


def learners(**fields: Any) -> list[Cell]:
    """Every way to choose rate and momentum; the grid first, others wait for its loss."""
    return [Cell(topic="learner", method=method, **fields) for method in LEARNERS]


def smoke_cells() -> list[Cell]:
    """Every code path, a few steps each."""
    return [
        *spectra({"hessian": (0, 5), "ggn": (0,)}, (2, 8, 32), count=3, network="tanh-8"),
        *matrices((0.8, 1.5), size=60, count=2),
        *largest_rates((2, 4, 8), network="relu-8", tried=6, horizon=20),
        *dampings((0.01, 0.03, 0.1), (1, 2, 4), size=8, tried=12, horizon=200),
        *learners(network="relu-8", horizon=15),
        *learners(task="quadratic", network="linear", batch=400, horizon=10),
    ]


def small_cells() -> list[Cell]:
    """The paper's statements on networks that train in a second."""
    return [
        *spectra({"hessian": (0, 100, 1000), "ggn": (0, 1000)}, (2, 4, 8, 16, 32, 64, 128)),
        *matrices((0.5, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0), size=1000, count=60),
        *largest_rates((1, 2, 4, 8, 16, 32, 64, 128, 256), network="relu-32", tried=20),
        *dampings((0.01, 0.03, 0.1), (1, 2, 4, 8, 16), size=64, tried=32, horizon=3000),
        *learners(network="relu-32", batch=64),
        *learners(task="quadratic", network="linear", batch=400, horizon=100),
    ]


def paper_cells() -> list[Cell]:
    """Small, and the published networks on CIFAR-100."""
    pictures = {"task": "cifar100", "chunk": 500}
    convolutions = [
        cell
        for network in ("vgg16", "wrn-28-10")
        for cell in (
            *spectra(
                {"hessian": (0, 4000), "ggn": (0, 4000)},
                (32, 64, 128, 256, 512),
                network=network,
                count=4,
                **pictures,
            ),
            *largest_rates(
                (32, 64, 128, 256, 512), network=network, tried=12, horizon=4000, **pictures
            ),
        )
    ]
    return [
        *small_cells(),
        *convolutions,
        *learners(network="preresnet110", batch=128, horizon=39_000, task="cifar100"),
    ]


class Study(peira.Study[Cell]):
    """Spectra of batches, random matrices, largest rates, damping, and the learner."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(cells=smoke_cells, seeds=1),
        "small": peira.Scale(cells=small_cells, seeds=7),
        "paper": peira.Scale(cells=paper_cells, seeds=7),
    }

    def seeds(self, cell: Cell, asked: int) -> int:
        """Of up to seven, five of all but the largest rates, which scatter most."""
        return asked if cell.topic == "largest-rate" or asked > 7 else min(asked, 5)

    def inputs(self, cell: Cell) -> dict[str, str]:
        if cell.task != "cifar100":
            return {}
        from peira.data import fingerprint

        return {"cifar100": fingerprint(cifar_paths())}

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float | peira.Censored]:
        where = {"task": cell.task, "network": cell.network}
        if cell.topic == "matrix":
            return experiments.random_matrix(run, cell.method, cell.size, cell.spike, cell.count)
        if cell.topic == "damping":
            return experiments.smallest_damping(
                run, cell.learning_rate, cell.batch, cell.size, cell.tried, cell.horizon
            )
        if cell.topic == "largest-rate":
            return experiments.largest_rate(
                run, cell.method, cell.batch, cell.tried, cell.horizon, cell.chunk, **where
            )
        if cell.topic == "learner":
            every = 1 if cell.task == "quadratic" else max(5, cell.horizon // 400)
            return experiments.learner(
                run, cell.method, batch=cell.batch, horizon=cell.horizon, every=every, **where
            )
        batch, rate = TRAINING[cell.task]
        point = {**where, "moment": cell.moment, "batch": batch, "rate": rate}
        return experiments.spectrum(run, cell.method, cell.batch, cell.count, cell.chunk, point)

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        claim = self.claim
        table = without_pictures(table)
        yield self._inflation(inflation(table))
        yield self._inverse_law(table)
        yield self._matrices(worst_errors(table))
        slopes = scaling(table)
        small, last = claim("C4").parts
        yield v.all_of(
            claim("C4"),
            [
                v.above(slopes, "slope_small", "sgd", small),
                v.below(slopes, "slope_last", "sgd", last),
            ],
        )
        root, flatter = claim("C5").parts
        adam = {"topic": "largest-rate", "method": "adam"}
        yield v.all_of(
            claim("C5"),
            [
                v.power_law(table, "batch", "lr_max", root, adam),
                v.larger(slopes, "slope_compared", "sgd", "adam", flatter),
            ],
        )
        by_rate, by_batch = claim("C5b").parts
        damping = {"topic": "damping"}
        yield v.all_of(
            claim("C5b"),
            [
                v.power_law(table, "learning_rate", "damping", by_rate, {**damping, "batch": 4}),
                v.power_law(
                    table, "batch", "damping", by_batch, {**damping, "learning_rate": 0.03}
                ),
            ],
        )
        yield v.all_of(
            claim("C6"),
            [
                v.sooner(
                    table,
                    "steps_to_target",
                    {"topic": "learner", "task": task, "method": "slq"},
                    {"topic": "learner", "task": task, "method": "grid"},
                    part,
                )
                for task, part in zip(("digits", "quadratic"), claim("C6").parts, strict=True)
            ],
        )

    def _inflation(self, worst: pd.DataFrame) -> v.Verdict:
        claim = self.claim("C1")
        up, down, order, ggn_up, ggn_order = claim.parts
        return v.all_of(
            claim,
            [
                v.above(worst, "least_excess", "hessian", up),
                v.above(worst, "least_deficit", "hessian", down),
                v.below(worst, "rank", "hessian", order),
                v.above(worst, "least_excess", "ggn", ggn_up),
                v.below(worst, "rank", "ggn", ggn_order),
            ],
        )

    def _inverse_law(self, table: pd.DataFrame) -> v.Verdict:
        claim = self.claim("C2")
        fitted = table[table["batch"].isin(FITTED) & (table["method"] == "hessian")]
        errors = prediction_errors(fitted)
        moments = sorted(set(fitted["moment"])) or [0]
        verdicts = []
        for moment, (slope, error) in zip(
            (moments[0], moments[len(moments) // 2], moments[-1]),
            zip(claim.parts[::2], claim.parts[1::2], strict=True),
            strict=True,
        ):
            verdicts += [
                v.power_law(fitted, "effective_batch", "excess", slope, {"moment": moment}),
                v.below(errors, "error_directional", {"moment": moment}, error),
            ]
        return v.all_of(claim, verdicts)

    def _matrices(self, worst: pd.DataFrame) -> v.Verdict:
        claim = self.claim("C3")
        metrics = ("eigenvalue_error", "overlap_error")
        groups = [(method, metric) for method in ("wigner", "wishart") for metric in metrics]
        return v.all_of(
            claim,
            [
                v.below(worst, metric, method, part)
                for (method, metric), part in zip(groups, claim.parts, strict=True)
            ],
        )

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        from peira.dynamics.batch_hessian_lr.figure import draw

        return draw(without_pictures(table), without_pictures(curves))


def without_pictures(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that claims are judged on; pictures at `paper` are for the tables and curves."""
    return table[table["task"] != "cifar100"]


def inflation(table: pd.DataFrame) -> pd.DataFrame:
    """By seed and curvature, the worst of all moments and sizes: what "for every B" asks.

    Columns: least_excess = min (lambda_1' - lambda_1) / lambda_1, least_deficit = min (lambda_P -
    lambda_P') / |lambda_P|, rank = the highest rank correlation of lambda_1' with B.
    """
    import pandas as pd

    rows = table[table["topic"] == "spectrum"]
    found = []
    for (method, seed), part in rows.groupby(["method", "seed"]):
        ranks = [
            one["batch"].corr(one["largest"], method="spearman")
            for _, one in part.groupby("moment")
        ]
        found.append(
            {
                "method": method,
                "seed": seed,
                "least_excess": (part["excess"] / part["full_largest"]).min(),
                "least_deficit": (part["deficit"] / part["full_smallest"].abs()).min(),
                "rank": max(ranks),
            }
        )
    return pd.DataFrame(found, columns=["method", "seed", "least_excess", "least_deficit", "rank"])


def prediction_errors(rows: pd.DataFrame) -> pd.DataFrame:
    """By seed and moment: mean |log2| of predicted over measured excess, over batch sizes."""
    import pandas as pd

    found = []
    for (moment, seed), part in rows.groupby(["moment", "seed"]):
        measured = part["excess"].clip(lower=1e-12)
        errors = {
            f"error_{name}": np.log2(part[f"excess_{name}"].clip(lower=1e-12) / measured)
            .abs()
            .mean()
            for name in ("directional", "iid")
        }
        found.append({"moment": moment, "seed": seed, **errors})
    return pd.DataFrame(found, columns=["moment", "seed", "error_directional", "error_iid"])


def worst_errors(table: pd.DataFrame) -> pd.DataFrame:
    """By seed and matrix model, the worst over spikes; of overlaps away from the transition."""
    rows = table[table["topic"] == "matrix"].copy()
    near = rows["spike"].between(1 / NEAR_TRANSITION, NEAR_TRANSITION)
    if "overlap_error" in rows:
        rows.loc[near, "overlap_error"] = np.nan
    metrics = [name for name in ("eigenvalue_error", "overlap_error") if name in rows]
    return rows.groupby(["method", "seed"], as_index=False)[metrics].max()


def scaling(table: pd.DataFrame) -> pd.DataFrame:
    """By seed and optimiser: log-log slopes of the largest rate on B.

    slope_small: B <= 8. slope_last: between the two largest sizes. slope_compared: SGD's up to 8,
    Adam's over all sizes.
    """
    import pandas as pd

    rows = table[table["topic"] == "largest-rate"]
    found = []
    for (method, seed), part in rows.groupby(["method", "seed"]):
        part = part.sort_values("batch")
        logs = np.log(part[["batch", "lr_max"]].to_numpy(dtype=float))
        small, last = logs[part["batch"] <= 8], logs[-2:]
        slopes = [np.polyfit(some[:, 0], some[:, 1], 1)[0] for some in (small, last, logs)]
        found.append(
            {
                "method": method,
                "seed": seed,
                "slope_small": slopes[0],
                "slope_last": slopes[1],
                "slope_all": slopes[2],
                "slope_compared": slopes[0] if method == "sgd" else slopes[2],
            }
        )
    columns = ["method", "seed", "slope_small", "slope_last", "slope_all", "slope_compared"]
    return pd.DataFrame(found, columns=columns)


def rule_errors(table: pd.DataFrame, known: int = 16) -> pd.DataFrame:
    """How far each rule is from the largest rate measured: mean |log2| over the other sizes.

    Rules that carry a rate from one size to another start from the rate measured at `known`.
    Columns: method (optimiser), rule, seed, error.
    """
    import pandas as pd

    found = []
    rows = table[table["topic"] == "largest-rate"]
    for (method, seed), part in rows.groupby(["method", "seed"]):
        if known not in set(part["batch"]):
            continue
        at = part[part["batch"] == known].iloc[0]
        others = part[part["batch"] != known]
        scale = at["noise_scale"]
        ratio = others["batch"] / known
        predicted = {
            "law": others["lr_law"],
            "law, from B = 16": at["lr_max"] * others["lr_law"] / at["lr_law"],
            "2 / full curvature": others["lr_full"],
            "linear": at["lr_max"] * ratio,
            "square root": at["lr_max"] * np.sqrt(ratio),
            "noise scale": at["lr_max"] * (1 + scale / known) / (1 + scale / others["batch"]),
        }
        if method == "sgd":
            predicted["range test"] = others["lr_range_test"]
        found += [
            {
                "method": method,
                "rule": rule,
                "seed": seed,
                "error": np.log2(rates / others["lr_max"]).abs().mean(),
            }
            for rule, rates in predicted.items()
        ]
    return pd.DataFrame(found, columns=["method", "rule", "seed", "error"])
