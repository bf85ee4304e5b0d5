"""How the paper's claims are tested: the cells, what one cell measures, the verdicts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from sklearn.base import RegressorMixin

import peira
from peira.dynamics.hierarchical_polynomials.baselines import (
    KERNELS,
    PolynomialThenLink,
    RandomFeatureRidge,
    TunedKernelRidge,
)
from peira.dynamics.hierarchical_polynomials.link import LinkRegressor
from peira.dynamics.hierarchical_polynomials.method import (
    HierarchicalPolynomialRegressor,
    correlation,
)
from peira.dynamics.hierarchical_polynomials.network import (
    end_to_end_network,
    train,
    two_layer_network,
)
from peira.dynamics.hierarchical_polynomials.targets import (
    Array,
    HierarchicalTarget,
    Link,
    Spread,
    hierarchical_target,
)
from peira.engine import verdict as v

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Method = Literal[
    "three-layer", "ntk", "rbf", "polynomial", "random-features", "classical", "oracle",
    "end-to-end", "two-layer", "affine",
]  # fmt: skip
# Degree q of the links.
LINK_DEGREES: Mapping[Link, int] = {"cubic": 3, "even": 2, "square": 2}
LEARNING_RATES = (1e-3, 3e-3)
LEVEL = 0.75
# Share of the largest squared errors that the trimmed error leaves out.
TRIM = 0.01


class Cell(peira.Cell):
    """One learner on one kind of target, with one number of samples."""

    method: Method = Field("three-layer", description="what learns")
    dimension: int = Field(16, ge=2, description="d")
    degree: int = Field(2, ge=1, le=3, description="k, degree of the hidden feature")
    ratio: float = Field(8.0, gt=0, description="samples of each stage over d^k; all use both")
    link: Link = Field("cubic", description="g, see targets.LINKS")
    spread: Spread = Field("spread", description="whether p is spread over many directions")
    inner: Literal["exact", "hermite", "relu", "gelu"] = Field("exact", description="inner layer")
    inner_width: int = Field(4096, ge=1, description="m_2 of inner layers that are not exact")
    ridge: float = Field(0.0, ge=0, description="penalty of stage 2; 0: by leave-one-out error")
    draws: int = Field(1, ge=1, description="independent targets and samples, averaged")
    width: int = Field(256, ge=2, description="outer units; of trained networks every layer")
    epochs: int = Field(40, ge=1, description="of trained networks")
    test_rows: int = Field(4000, ge=10, description="fresh rows for all measures")

    @property
    def rows(self) -> int:
        """Samples of both stages together."""
        return 2 * max(4, round(self.ratio * self.dimension**self.degree))


def feature_cells(
    dimensions: Iterable[int], ratios: Iterable[float], **settings: Any
) -> list[Cell]:
    """Three layers over dimensions and numbers of samples, several targets each."""
    dimensions, ratios = list(dimensions), list(ratios)
    return [
        Cell(dimension=d, ratio=ratio, **{"draws": 8, **settings})
        for d in dimensions
        for ratio in ratios
    ]


def comparison_cells(
    methods: Iterable[Method], ratios: Iterable[float], **settings: Any
) -> list[Cell]:
    """Different learners on the same data."""
    methods = list(methods)
    return [Cell(method=method, ratio=ratio, **settings) for ratio in ratios for method in methods]


def small_cells() -> list[Cell]:
    """What fits three minutes of two cores; the costly kernels first."""
    ratios = (0.5, 1, 2, 4, 8)
    cheap: list[Method] = ["three-layer", "classical", "oracle"]
    return [
        *comparison_cells(KERNELS, ratios[::-1]),
        *comparison_cells(KERNELS, [16], dimension=12, link="even"),
        *comparison_cells(["end-to-end", "two-layer", "random-features"], [8]),
        *(cell for d in (8, 12) for cell in comparison_cells(KERNELS, [8], dimension=d)),
        *comparison_cells(cheap, ratios),
        *(Cell(ratio=ratio, ridge=1e-4) for ratio in ratios),
        *comparison_cells(cheap, [16], dimension=12, link="even"),
        *feature_cells([8, 12, 16, 24], ratios),
        *feature_cells([8, 12], [16]),
        *feature_cells([12], [8], inner="hermite", inner_width=1024, draws=1),
        *feature_cells([12], [8], inner="relu", inner_width=1024, draws=1),
        *feature_cells([6, 8, 10], (1, 2, 4, 8), degree=3),
        *feature_cells([16], [8], link="square"),
        *feature_cells([10], (0.5, 1, 2, 4, 8, 16), link="even"),
        *feature_cells([16, 24], [16], link="even"),
        *feature_cells([16], [4, 16], link="even", spread="concentrated"),
        Cell(method="affine", dimension=8, ratio=4),
    ]


def smoke_cells() -> list[Cell]:
    """Every code path on a few rows."""
    tiny = {"dimension": 4, "ratio": 2.0, "test_rows": 50, "width": 16, "epochs": 3}
    methods: Sequence[Method] = (
        "three-layer", *KERNELS, "random-features", "classical", "oracle", "end-to-end",
        "two-layer", "affine",
    )  # fmt: skip
    return [
        *(Cell(method=method, **tiny) for method in methods),
        *(Cell(**{**tiny, "dimension": d, "ratio": r}) for d in (3, 5) for r in (1, 4)),
        Cell(**{**tiny, "inner": "relu", "inner_width": 32}),
        Cell(**{**tiny, "degree": 3, "link": "square", "draws": 2}),
        Cell(**{**tiny, "link": "even", "spread": "concentrated", "ridge": 1e-3}),
    ]


def paper_cells() -> list[Cell]:
    """Larger dimensions, literal inner layers, wide networks."""
    ratios = (0.5, 1, 2, 4, 8)
    wide = {"width": 1024, "epochs": 200}
    cheap: list[Method] = ["three-layer", "classical", "oracle"]
    return [
        *feature_cells([8, 12, 16, 24, 32, 48, 64], (*ratios, 16)),
        *feature_cells([6, 8, 10, 12, 16, 20, 24], ratios, degree=3),
        *feature_cells([16], [8], link="square"),
        *feature_cells([10, 16, 24, 32, 48, 64], (*ratios, 16), link="even"),
        *feature_cells([16, 32], [4, 16], link="even", spread="concentrated"),
        *(
            cell
            for inner in ("hermite", "relu", "gelu")
            for cell in feature_cells([8, 12, 16, 24], ratios, inner=inner)
        ),
        *(
            cell
            for d in (8, 12, 16, 24, 32)
            for cell in comparison_cells((*KERNELS, "random-features", *cheap), ratios, dimension=d)
        ),
        *(
            cell
            for d in (12, 16, 20, 24)
            for cell in comparison_cells((*KERNELS, *cheap), [16], dimension=d, link="even")
        ),
        *(Cell(ratio=ratio, ridge=1e-4) for ratio in ratios),
        *comparison_cells(["end-to-end", "two-layer"], ratios, **wide),
        Cell(method="affine", dimension=8, ratio=4),
    ]


class Study(peira.Study[Cell]):
    """Feature recovery over d and n, and what it is worth against other learners."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(cells=smoke_cells, seeds=3),
        "small": peira.Scale(cells=small_cells, seeds=5),
        "paper": peira.Scale(cells=paper_cells, seeds=10),
    }

    def seeds(self, cell: Cell, asked: int) -> int:
        """Of up to five, three of what costs seconds and is clear: `small` has to fit its time."""
        kernels_of_even = cell.method in KERNELS and cell.link == "even"
        clear = cell.method in ("random-features", "end-to-end") or kernels_of_even
        return min(asked, 3) if clear and asked <= 5 else asked

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float]:
        if cell.method in ("end-to-end", "two-layer"):
            return trained(cell, run)
        device = str(run.device)
        measured = [one_draw(cell, run.seed, draw, device) for draw in range(cell.draws)]
        return {name: float(np.mean([m[name] for m in measured])) for name in measured[0]}

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        claim, found = self.claim, of_most_draws(table)
        yield v.all_of(
            claim("C1a"),
            [
                v.above(found, "correlation", recovery(dimension=d, ratio=8.0), part)
                for d, part in zip((16, 24), claim("C1a").parts, strict=True)
            ],
        )
        yield self._collapse(found)
        best = with_best_kernel(table)
        yield from self._against_kernels(best)
        yield v.power_law(needed_rows(found), "dimension", "rows_needed", claim("C3a"))
        given = compared("best-kernel", ratio=8.0)
        yield v.trend(best, "dimension", "nmse", claim("C3b"), given)
        yield v.all_of(
            claim("C4"),
            [
                v.above(found, "correlation", recovery(dimension=d, degree=3, ratio=8.0), part)
                for d, part in zip((6, 8, 10), claim("C4").parts, strict=True)
            ],
        )
        yield self._controls(found)
        yield v.exactly(invariances(table), claim("C5b"))
        ours = compared("three-layer", dimension=16, ratio=8.0)
        yield v.all_of(
            claim("C6"),
            [
                v.at_least(table, "nmse", {**ours, "method": method}, ours, part)
                for method, part in zip(("end-to-end", "two-layer"), claim("C6").parts, strict=True)
            ],
        )

    def _collapse(self, found: pd.DataFrame) -> v.Verdict:
        """The widest spread over d, at the number of samples over d^2 where it is widest."""
        claim, spreads = self.claim("C1b"), spread_over_dimensions(found)
        if not len(spreads):
            return v.not_measured(claim)
        widest = float(spreads.groupby("ratio")["spread"].mean().idxmax())
        verdict = v.below(spreads, "spread", {"ratio": widest}, claim)
        return replace(verdict, note=f"widest at n = {widest:g} d^2")

    def _against_kernels(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        ours, kernel = "three-layer", "best-kernel"
        for id, worse, better, at in (
            ("C2a", kernel, ours, {"dimension": 16, "ratio": 8.0}),
            ("C2b", kernel, ours, {"dimension": 12, "ratio": 16.0, "link": "even"}),
            ("C2c", ours, kernel, {"dimension": 16, "ratio": 0.5}),
        ):
            groups = compared(worse, **at), compared(better, **at)
            yield v.at_least(table, "nmse", *groups, self.claim(id))

    def _controls(self, found: pd.DataFrame) -> v.Verdict:
        claim = self.claim("C5")
        no_slope, concentrated, small, shrinks = claim.parts
        even = {"link": "even", "ratio": 16.0}
        # Single targets of the comparison with kernels are too noisy for a trend.
        averaged = found[found["draws"] == found["draws"].max()]
        measured = (
            (recovery(dimension=16, ratio=8.0, link="square"), no_slope),
            (recovery(dimension=16, spread="concentrated", **even), concentrated),
            (recovery(dimension=10, **even), small),
        )
        return v.all_of(
            claim,
            [
                *(v.below(found, "correlation", group, part) for group, part in measured),
                v.trend(averaged, "dimension", "correlation", shrinks, recovery(**even)),
            ],
        )

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        from peira.dynamics.hierarchical_polynomials.figure import draw

        return draw(table)


def problem(cell: Cell, seed: int, draw: int = 0) -> tuple[HierarchicalTarget, Array, Array]:
    """Target, rows and labels: the same for all learners; fewer samples are the first of more."""
    stream = [seed, draw, cell.dimension, cell.degree]
    target = hierarchical_target(
        cell.dimension, cell.degree, cell.link, cell.spread, np.random.default_rng([*stream, 0])
    )
    return target, *target.sample(cell.rows, np.random.default_rng([*stream, 1]))


def fresh(cell: Cell, target: HierarchicalTarget, seed: int, draw: int = 0) -> tuple[Array, Array]:
    """Rows and labels that no learner has seen."""
    stream = [seed, draw, cell.dimension, cell.degree, 2]
    return target.sample(cell.test_rows, np.random.default_rng(stream))


def one_draw(cell: Cell, seed: int, draw: int, device: str = "cpu") -> dict[str, float]:
    """One target learned and measured on fresh rows."""
    target, x, y = problem(cell, seed, draw)
    x_test, y_test = fresh(cell, target, seed, draw)
    p_test = target.feature(x_test)
    if cell.method == "oracle":
        link = LinkRegressor(cell.width, random_state=seed).fit(target.feature(x), y)
        return errors(link.predict(p_test), y_test)
    model = learner(cell, seed, device)
    with warnings.catch_warnings():
        # Half a sample per d^k is what the study is about.
        warnings.filterwarnings("ignore", message=".*rows for stage 1")
        model.fit(x, y)
    measured = errors(model.predict(x_test), y_test)
    if isinstance(model, HierarchicalPolynomialRegressor | PolynomialThenLink):
        measured["correlation"] = abs(float(correlation(model.feature(x_test), p_test)))
    if isinstance(model, HierarchicalPolynomialRegressor):
        measured["steps"] = float(model.steps_)
        measured["stage2_correlation"] = model.diagnostics_["correlation"]
        if cell.degree == 2:
            measured["reachable"] = target.reachable_correlation()
    if cell.method == "affine":
        measured |= under_affine_maps(model, x, y, x_test, y_test, p_test)
    return measured


def learner(cell: Cell, seed: int, device: str = "cpu") -> RegressorMixin:
    """The cell's unfitted estimator; inputs are standard normal, so nothing is whitened."""
    degree = cell.degree * LINK_DEGREES[cell.link]
    match cell.method:
        case "ntk" | "rbf" | "polynomial":
            return TunedKernelRidge(cell.method, degree=degree, random_state=seed)
        case "random-features":
            return RandomFeatureRidge(degree, random_state=seed)
        case "classical":
            return PolynomialThenLink(cell.degree, random_state=seed)
    exact = cell.inner == "exact"
    return HierarchicalPolynomialRegressor(
        cell.degree,
        inner_width="exact" if exact else cell.inner_width,
        inner_activation="hermite" if exact else cell.inner,
        outer_width=cell.width,
        ridge=cell.ridge or "auto",
        whiten=False,
        device=device,
        random_state=seed,
    )


def errors(predicted: Array, y: Array) -> dict[str, float]:
    """Mean squared error over the variance of the labels, whole and without the largest 1%."""
    squares = np.sort(np.square(predicted - y))
    kept = squares[: round((1 - TRIM) * len(squares))]
    return {
        "nmse": float(squares.mean() / y.var()),
        "trimmed_nmse": float(kept.mean() / y.var()),
    }


def under_affine_maps(
    model: HierarchicalPolynomialRegressor,
    x: Array,
    y: Array,
    x_test: Array,
    y_test: Array,
    p_test: Array,
) -> dict[str, float]:
    """The same measures with feature and link rewritten, and with labels on another scale."""
    scaled = -2 * model.feature(x_test) + 3
    rewritten = errors(model.link((scaled - 3) / -2), y_test)
    turned = HierarchicalPolynomialRegressor(**model.get_params()).fit(x, 5 - 3 * y)
    labels = errors(turned.predict(x_test), 5 - 3 * y_test)
    return {
        "nmse_rewritten": rewritten["nmse"],
        "correlation_rewritten": abs(float(correlation(scaled, p_test))),
        "nmse_turned": labels["nmse"],
        "correlation_turned": abs(float(correlation(turned.feature(x_test), p_test))),
    }


def trained(cell: Cell, run: peira.Run) -> dict[str, float]:
    """All layers trained at once on the rows of both stages; held-out rows choose the rate."""
    target, x, y = problem(cell, run.seed)
    x_test, y_test = fresh(cell, target, run.seed)
    inputs, labels, test = (
        torch.from_numpy(part).float().to(run.device)
        for part in (x, (y - y.mean()) / y.std(), x_test)
    )
    build = end_to_end_network if cell.method == "end-to-end" else two_layer_network
    best = np.inf
    for rate in LEARNING_RATES:
        draws = torch.Generator().manual_seed(run.seed)
        network, curve = train(
            build(cell.dimension, cell.width, draws).to(run.device),
            inputs,
            labels,
            cell.epochs,
            rate,
            draws,
            lambda epochs, save, rate=rate: run.steps(epochs, save, name=f"rate-{rate:g}"),
        )
        held_out = min(error for *_, error in curve)
        if held_out < best:
            best, chosen, chosen_curve, chosen_rate = held_out, network, curve, rate
    for epoch, loss, error in chosen_curve:
        run.log(epoch, train_loss=loss, held_out_loss=error)
    with torch.no_grad():
        predicted = chosen(test).cpu().double().numpy() * y.std() + y.mean()
    return {**errors(predicted, y_test), "learning_rate": chosen_rate}


def recovery(**settings: Any) -> dict[str, Any]:
    """Rows about what stage 1 finds: three layers, exact inner layer, default link and ridge."""
    defaults = Cell()
    names = ("method", "degree", "link", "spread", "inner", "ridge")
    return {**{name: getattr(defaults, name) for name in names}, **settings}


def compared(method: str, **settings: Any) -> dict[str, Any]:
    """Rows of the comparison of learners: one target a row, the same for all of them."""
    return {**recovery(), "draws": 1, "method": method, **settings}


def of_most_draws(table: pd.DataFrame) -> pd.DataFrame:
    """Of rows that differ only in how many targets they average, those that average most."""
    condition = [name for name in Cell.model_fields if name != "draws"]
    most = table.groupby([*condition, "seed"])["draws"].transform("max")
    return table[table["draws"] == most]


def spread_over_dimensions(found: pd.DataFrame) -> pd.DataFrame:
    """Largest less smallest correlation over d, by seed and number of samples over d^2.

    Numbers of samples that were not measured in all dimensions are left out.
    """
    wide = v.select(found, recovery(degree=2)).pivot_table(
        index=["ratio", "seed"], columns="dimension", values="correlation"
    )
    wide = wide.dropna()
    return (wide.max(axis=1) - wide.min(axis=1)).rename("spread").reset_index()


def needed_rows(found: pd.DataFrame, level: float = LEVEL) -> pd.DataFrame:
    """Samples of stage 1 at which the correlation first reaches `level`, by dimension and seed.

    Interpolated on the logarithm of the samples; NaN where it is never reached.
    """
    import pandas as pd

    needed = []
    for (dimension, seed), rows in v.select(found, recovery(degree=2)).groupby(
        ["dimension", "seed"]
    ):
        rows = rows.sort_values("ratio")
        samples = np.log(rows["ratio"].to_numpy() * dimension**2)
        needed.append((dimension, seed, _crossing(samples, rows["correlation"].to_numpy(), level)))
    return pd.DataFrame(needed, columns=["dimension", "seed", "rows_needed"])


def _crossing(log_samples: Array, values: Array, level: float) -> float:
    reached = np.flatnonzero(values >= level)
    if not len(reached):
        return np.nan
    after = reached[0]
    if after == 0:
        return float(np.exp(log_samples[0]))
    below, above = values[after - 1], values[after]
    share = (level - below) / (above - below)
    step = log_samples[after] - log_samples[after - 1]
    return float(np.exp(log_samples[after - 1] + share * step))


def with_best_kernel(table: pd.DataFrame) -> pd.DataFrame:
    """The table, and as method "best-kernel" the kernel with the least test error of every seed.

    Chosen on the test rows themselves, in favour of the kernels.
    """
    import pandas as pd

    kernels = table[table["method"].isin(KERNELS)]
    condition = [name for name in Cell.model_fields if name != "method"]
    best = kernels.loc[kernels.groupby([*condition, "seed"])["nmse"].idxmin()]
    return pd.concat([table, best.assign(method="best-kernel")], ignore_index=True)


def invariances(table: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Measures under affine maps beside the plain ones, by seed."""
    rows = table[table["method"] == "affine"]
    return {
        f"{name} {how}, seed {row['seed']}": (row[f"{name}_{how}"], row[name])
        for _, row in rows.iterrows()
        for how in ("rewritten", "turned")
        for name in ("correlation", "nmse")
    }
