"""How the paper's claims are tested: data and noise, one network's rounds, the verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field

import peira
from peira.engine import verdict as v
from peira.training.ccl.experiment import (
    WITHOUT_SCORES,
    Training,
    problem_of,
    train_method,
    vanilla_of,
)
from peira.training.ccl.problems import Problem, data_paths
from peira.training.ccl.sampling import (
    Transform,
    effective_sample_size,
    sampling_probabilities,
    scores_from_losses,
)
from peira.training.ccl.sizes import cycle_rounds, cyclic_sizes
from peira.training.ccl.theory import NoisyLeastSquares, compare_cycle

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Method = Literal[
    "vanilla", "ccl", "random", "hard", "growing", "shrinking", "sharp", "exponential",
    "parabolic", "full-then-cyclic", "full-then-self-paced", "self-paced", "ageing", "spl",
    "stage-spl", "pruned", "co-teaching", "smoothing",
]  # fmt: skip
METHODS: tuple[Method, ...] = Method.__args__  # type: ignore[attr-defined]
MAIN: tuple[Method, ...] = (
    "vanilla", "ccl", "random", "hard", "growing", "shrinking", "sharp",
)  # fmt: skip
MONOTONE: tuple[Method, ...] = ("growing", "shrinking", "sharp")
TABULAR = ("wine", "breast-cancer", "iris")
EXP_LAMBDAS = (5.0, 0.5, 0.25)
ALPHAS = (0.3, 0.5, 0.7)
PERIOD = 4
# A forward pass costs about a third of a training step.
FORWARD_SHARE = 1 / 3


class Cell(peira.Cell):
    """One network trained one way; or the theory's closed form against simulated runs."""

    task: Literal["train", "theory"] = "train"
    method: Method = "ccl"
    data: Literal[
        "digits", "mnist", "wine", "breast-cancer", "iris", "gaussians", "r8", "cifar10",
        "cifar100", "fashion-mnist", "stl10",
    ] = "digits"  # fmt: skip
    noise: Literal["symmetric", "pair", "blend"] = Field(
        "symmetric", description="labels flipped to any class, to the next, or inputs blended"
    )
    noise_rate: float = Field(0.0, ge=0, le=1, description="share of the training samples")
    transform: Transform = Field("inverse", description="how losses become scores")
    lam: float = Field(0.5, gt=0, description="of the transform exp, per nat")
    start: float = Field(0.25, gt=0, le=1, description="smallest share of the data in a round")
    end: float = Field(1.0, gt=0, le=1, description="largest share")
    alpha: float = Field(0.5, gt=0, lt=1, description="multiplier of the share")
    keep: float = Field(0.25, gt=0, le=1, description="share of the data that pruning keeps")
    epochs: int = Field(20, ge=1, description="budget, in passes over the training data")
    batch: int = Field(32, ge=1, description="samples in a step; a round's last has what is left")
    width: int = Field(16, ge=1, description="channels of the first unit; the others have twice")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam")
    decay: Literal["constant", "cosine"] = Field("constant", description="per sample seen")
    train: int = Field(898, ge=4, description="training samples, at most")
    held_out: int = Field(300, ge=2, description="validation samples, and test samples, at most")


def small_cells() -> list[Cell]:
    """The comparisons on scikit-learn's data, and MNIST in the place of CIFAR-10."""
    noisy = Cell(noise_rate=0.3)
    left_out = (*MAIN, "parabolic", "full-then-self-paced")
    others = [method for method in METHODS if method not in left_out]
    pair = ("vanilla", "ccl")
    return [
        *_methods(Cell(), MAIN),
        *_methods(noisy, MAIN),
        *_transforms(noisy),
        *_methods(noisy, others),
        noisy.changed({"method": "pruned", "keep": 0.7}),
        *(cell for rate in (0.2, 0.4) for cell in _methods(Cell(noise_rate=rate), pair)),
        *(cell for kind in ("pair", "blend") for cell in _methods(_noise(noisy, kind), pair)),
        *(
            cell
            for data in TABULAR
            for cell in _methods(_tabular(data), ("vanilla", "ccl", *MONOTONE))
        ),
        *_methods(Cell(data="mnist", train=1000, held_out=500, width=8), pair),
        Cell(task="theory"),
    ]


def smoke_cells() -> list[Cell]:
    """Every code path, few samples and rounds."""
    tiny = Cell(train=40, held_out=20, epochs=3, batch=32, width=2, noise_rate=0.3)
    pair = ("vanilla", "ccl")
    return [
        *_methods(tiny, METHODS),
        *_transforms(tiny)[:1],
        *_methods(tiny.changed({"noise_rate": 0.0, "decay": "cosine"}), pair),
        *(cell for kind in ("pair", "blend") for cell in _methods(_noise(tiny, kind), ("ccl",))),
        *_methods(tiny.changed({"data": "wine", "noise_rate": 0.0}), pair),
        *_methods(tiny.changed({"data": "gaussians"}), pair),
        Cell(task="theory", epochs=2),
    ]


def paper_cells() -> list[Cell]:
    """The published network, batches and epochs; R8 as text; and the comparisons of `small`."""
    whole: dict[str, Any] = {"width": 32, "train": 60_000, "held_out": 10_000}
    pictures = [
        Cell(data="cifar10", epochs=30, batch=128, **whole),
        Cell(data="cifar100", epochs=48, batch=128, **whole),
        Cell(data="fashion-mnist", epochs=39, batch=128, **whole),
        Cell(data="stl10", epochs=24, batch=32, **whole),
        Cell(data="r8", epochs=20, batch=512, **whole),
    ]
    noisy = pictures[0].changed({"noise_rate": 0.3})
    return [
        *(cell for base in pictures for cell in _methods(base, MAIN)),
        *_methods(noisy, METHODS),
        *_transforms(noisy),
        *small_cells(),
    ]


def _methods(base: Cell, methods: Sequence[str]) -> list[Cell]:
    return [base.changed({"method": method}) for method in methods]


def _transforms(base: Cell) -> list[Cell]:
    return [base.changed({"transform": "exp", "lam": lam}) for lam in EXP_LAMBDAS]


def _noise(base: Cell, kind: str) -> Cell:
    return base.changed({"noise": kind})


def _tabular(data: str) -> Cell:
    return Cell(data=data, batch=16)


class Study(peira.Study[Cell]):
    """Cyclic curricula, other curricula and baselines at the same number of samples."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(cells=smoke_cells, seeds=2),
        "small": peira.Scale(cells=small_cells, seeds=5),
        "paper": peira.Scale(cells=paper_cells, seeds=5),
    }

    def seeds(self, cell: Cell, asked: int) -> int:
        """Of five, three of slow pictures and of what only stands beside the claims."""
        if asked > 5 or cell.task == "theory" or cell.data not in ("digits", "mnist"):
            return asked
        plain = cell.noise == "symmetric" and cell.transform == "inverse" and cell.data == "digits"
        judged = cell.method in ("vanilla", "ccl") and cell.noise_rate in (0, 0.3)
        judged |= cell.method in MONOTONE and cell.noise_rate == 0
        return asked if plain and judged else min(asked, 3)

    def inputs(self, cell: Cell) -> dict[str, str]:
        from peira.data import fingerprint

        paths = data_paths(cell.data)
        return {cell.data: fingerprint(paths)} if paths else {}

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float]:
        if cell.task == "theory":
            return measure_theory(cell, run)
        problem = problem_of(cell, run)
        teacher = None if cell.method in WITHOUT_SCORES else vanilla_of(cell, run)
        if cell.method == "vanilla":
            training = vanilla_of(cell, run)
        else:
            training = train_method(cell, run, problem, teacher)
        for samples, validation, test, share in training.rows:
            run.log(samples, validation=validation, test=test, share=share)
        return {
            **scored(training, len(problem.train_labels), teacher),
            **(self._noise_told(training, problem) if cell.method == "vanilla" else {}),
            **self._evenness(cell, teacher),
            **oscillation(cell, training),
        }

    def _noise_told(self, training: Training, problem: Problem) -> dict[str, float]:
        """How well losses tell the noisy samples, and how likely those are drawn."""
        from sklearn.metrics import roc_auc_score

        noisy = problem.noisy.numpy()
        if not noisy.any() or noisy.all():
            return {}
        auc = {when: roc_auc_score(noisy, losses) for when, losses in training.losses.items()}
        p = sampling_probabilities(scores_from_losses(training.losses["last"].numpy()))
        return {
            "auc_early": float(auc["early"]),
            "auc_last": float(auc["last"]),
            "auc_drop": float(auc["early"] - auc["last"]),
            "noisy_probability_ratio": float(p[noisy].mean() / p[~noisy].mean()),
        }

    def _evenness(self, cell: Cell, teacher: Training | None) -> dict[str, float]:
        if teacher is None or cell.method != "ccl":
            return {}
        scores = scores_from_losses(teacher.losses["last"].numpy(), cell.transform, cell.lam)
        return {"effective_samples": effective_sample_size(scores)}

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        claim = self.claim
        for id, data in (("C1a", "cifar10"), ("C1b", "mnist")):
            yield v.larger(
                table, "selected_test", group(data=data), group("vanilla", data=data), claim(id)
            )
        noisy, noisy_vanilla = (group(method, noise_rate=0.3) for method in ("ccl", "vanilla"))
        yield v.larger(table, "last5_test", noisy, noisy_vanilla, claim("C2a"))
        yield v.larger(table, "selected_test", group(), group("vanilla"), claim("C2b"))
        yield v.all_of(
            claim("C3"),
            [
                v.rate(comparisons(table, method), part)
                for method, part in zip(MONOTONE, claim("C3").parts, strict=True)
            ],
        )
        ratio, early, drop = claim("C4").parts
        yield v.all_of(
            claim("C4"),
            [
                v.below(table, "noisy_probability_ratio", noisy_vanilla, ratio),
                v.above(table, "auc_early", noisy_vanilla, early),
                v.above(table, "auc_drop", noisy_vanilla, drop),
            ],
        )
        yield v.all_of(
            claim("C5"),
            [
                v.above(table, "period_excess", where, part)
                for where, part in zip((noisy, group()), claim("C5").parts, strict=True)
            ],
        )
        samples, seconds = claim("C6").parts
        yield v.all_of(
            claim("C6"),
            [
                v.below(furthest_from_budget(table), "excess", "furthest", samples),
                v.at_least(table, "train_seconds", noisy_vanilla, noisy, seconds),
            ],
        )
        transforms = {
            f"lam {lam:g}": group(noise_rate=0.3, transform="exp", lam=lam) for lam in EXP_LAMBDAS
        }
        even = transforms["lam 0.5"]
        yield v.at_least(table, "effective_samples", even, noisy, claim("C7a"))
        yield v.against_controls(v.larger, table, "last5_test", noisy, transforms, claim("C7b"))
        regions, simulated = claim("C8").parts
        yield v.all_of(
            claim("C8"),
            [
                v.count(alphas_with_region(table), regions),
                v.below(table, "simulation_error", {"task": "theory"}, simulated),
            ],
        )

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        from peira.training.ccl.figure import draw

        return draw(table, curves)


def group(method: str = "ccl", **settings: Any) -> dict[str, Any]:
    """The rows of one condition of the main comparison: digits, clean, published settings."""
    return {
        "task": "train",
        "method": method,
        "data": "digits",
        "noise": "symmetric",
        "noise_rate": 0.0,
        "transform": "inverse",
        "alpha": 0.5,
        "keep": 0.25,
        "decay": "constant",
        **({"lam": 0.5} | settings),
    }


def comparisons(table: pd.DataFrame, opponent: str) -> list[bool]:
    """Whether the cycle is above the opponent, for each data set and seed that is no tie."""
    outcomes = []
    for data in sorted(set(table["data"])):
        ours, theirs = (
            v.select(table, group(method, data=data)).set_index("seed")["selected_test"]
            for method in ("ccl", opponent)
        )
        difference = (ours - theirs).dropna()
        outcomes += [bool(value > 0) for value in difference if value]
    return outcomes


def furthest_from_budget(table: pd.DataFrame) -> pd.DataFrame:
    """By seed, the largest distance of samples seen from the budget, in epochs."""
    trained = table[table["task"] == "train"]
    excess = (trained["epochs_seen"] - trained["epochs"]).abs()
    furthest = excess.groupby(trained["seed"]).max().rename("excess").reset_index()
    return furthest.assign(method="furthest")


def alphas_with_region(table: pd.DataFrame) -> dict[str, bool]:
    """alpha -> whether the cycle errs less than both of its ends somewhere on the grid."""
    rows = v.select(table, {"task": "theory"})
    if "region_0.5" not in rows:
        return {}
    return {f"alpha {alpha:g}": bool((rows[f"region_{alpha:g}"] > 0).all()) for alpha in ALPHAS}


def scored(training: Training, size: int, teacher: Training | None) -> dict[str, float]:
    """Accuracies by the published measure and by fair ones, and what they cost."""
    rows = np.array(training.rows)
    seen, validation, test = rows[:, 0], rows[:, 1], rows[:, 2]
    chosen = int(validation.argmax())
    epochs = float(seen[-1]) / size
    scoring = teacher.rows[-1][0] / size if teacher else 0.0
    return {
        "best_validation": float(validation[chosen]),
        "selected_test": float(test[chosen]),
        "optimism": float(validation[chosen] - test[chosen]),
        "last_test": float(test[-1]),
        "last5_test": float(test[-5:].mean()),
        "rounds": float(len(rows)),
        "epochs_seen": epochs,
        "total_epochs": training.networks * epochs
        + scoring
        + FORWARD_SHARE * training.forward / size,
        "train_seconds": training.seconds,
    }


def oscillation(cell: Cell, training: Training) -> dict[str, float]:
    """Autocorrelation of validation accuracy at the cycle's period above other lags."""
    validation = np.array([row[1] for row in training.rows])
    if cell.method != "ccl" or len(validation) < 5 * PERIOD:
        return {}
    if cycle_rounds(cell.start, cell.end, cell.alpha) != PERIOD:
        return {}
    # Two cycles of fast learning go, then the slow trend.
    return {"period_excess": period_excess(validation[2 * PERIOD :], PERIOD)}


def period_excess(values: Float[np.ndarray, " rounds"], period: int) -> float:
    """Autocorrelation at the period minus the highest at the two lags on either side of it."""
    rounds = np.arange(len(values))
    left = values - np.polyval(np.polyfit(rounds, values, 2), rounds)
    power = float(np.square(left).sum())
    if power < 1e-12:
        return 0.0
    lags = {lag: float((left[lag:] * left[:-lag]).sum()) / power
            for lag in range(period - 2, period + 3)}  # fmt: skip
    return lags.pop(period) - max(lags.values())


def measure_theory(cell: Cell, run: peira.Run) -> dict[str, float]:
    """Where the cycle errs less than both of its ends, and closed form against 1,000 runs."""
    problem = NoisyLeastSquares()
    sizes = cyclic_sizes(problem.easy, 1.0, cell.alpha, budget=min(cell.epochs, 6))
    exact = problem.errors(sizes)
    simulated = problem.simulate(sizes, 1000, run.rng)
    regions = {
        f"{name}_{alpha:g}": float(grid.mean())
        for alpha in ALPHAS
        for name, grid in zip(("region", "region_mean"), region(alpha, cell.epochs), strict=True)
    }
    return {"simulation_error": float(np.abs(simulated / exact - 1).max()), **regions}


BIASES = np.linspace(0.05, 1.0, 20)
NOISES = np.linspace(0.25, 3.0, 12)


@cache
def region(
    alpha: float, epochs: int
) -> tuple[Bool[np.ndarray, "noises biases"], Bool[np.ndarray, "noises biases"]]:
    """Where the cycle beats both of its ends, at its best round and on average over rounds."""
    found = [
        [compare_cycle(NoisyLeastSquares(bias=b, hard_noise=n), alpha, epochs) for b in BIASES]
        for n in NOISES
    ]
    best = np.array([[one.wins for one in row] for row in found])
    mean = np.array([[one.wins_on_average for one in row] for row in found])
    return best, mean
