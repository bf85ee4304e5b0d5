"""How the paper's claims are tested: the cells, what one cell measures, the verdicts."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

import peira
from peira.dynamics.critical_periods.completion import (
    Completion,
    Factors,
    initial_factors,
    low_rank_matrix,
    pretrain,
    related_matrix,
)
from peira.dynamics.critical_periods.deficits import Condition, DeficitSchedule
from peira.dynamics.critical_periods.digits import digit_views
from peira.dynamics.critical_periods.pathways import (
    Activation,
    PathwayTrainer,
    balanced_pathways,
    compress,
    gaussian_pathways,
    hierarchy,
)
from peira.dynamics.critical_periods.reduced import pathway_dynamics
from peira.dynamics.critical_periods.spectrum import singular_flow
from peira.engine import verdict as v

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ONSETS = (0, 50, 100, 150, 200, 400, 750)
DEEP = (2, 3, 4)
LOST_MODE = 1
CURE = {"pathways": 3.0, "transfer": 4.0}
RECORD_EVERY = 10


class Cell(peira.Cell):
    """One training with one deficit."""

    part: Literal["pathways", "large-init", "transfer", "spectrum", "digits"] = Field(
        "pathways",
        description="pathways of the hierarchy, their equation from large weights, two matrices, "
        "singular values of two matrices, digits",
    )
    method: Literal["none", "gate", "random-gate", "mode", "blur", "single", "task", "cure"] = (
        Field(
            "gate",
            description="what is wrong: nothing; pathway b gated, in each step, or in 90% of them, "
            "or while a lacks a mode; b blurred; b gated and a absent; another task first; gate or "
            "task, with a higher learning rate afterwards",
        )
    )
    depth: int = Field(3, ge=1, le=20, description="weight matrices of a pathway, or factors")
    activation: Activation = "linear"
    onset: int = Field(0, ge=0, description="step in which the deficit begins")
    length: int = Field(150, ge=0, description="steps that it lasts")
    pretrain_steps: int = Field(0, ge=0, description="steps on the first matrix")
    rank: int = Field(5, ge=1, description="of the first matrix")
    second_rank: int = Field(2, ge=1, description="of the second")
    observed: int = Field(500, ge=1, description="entries of the second matrix that are seen")
    first_observed: int | None = Field(
        None, ge=1, description="entries of the first; then both tasks are the same matrix"
    )
    angle: float | None = Field(
        None, ge=0, le=90, description="degrees between the tasks' subspaces; None: unrelated"
    )
    whole: bool = Field(False, description="both pathways see the whole digit, not a half each")
    size: int = Field(100, ge=2, description="width of pathways, side of matrices")
    steps: int = Field(1000, ge=1, description="of the training, or on the second matrix")
    rate: float = Field(0.01, gt=0, description="learning rate")
    init_scale: float = Field(0.01, gt=0, description="initial strength of a mode, or product")

    def deficits(self) -> Condition:
        """The deficits of this cell's pathways."""
        if self.method == "none":
            return None
        if self.method == "blur":
            return DeficitSchedule("blur", self.onset, self.length)
        chance = 0.9 if self.method == "random-gate" else 1.0
        gate = DeficitSchedule("gate_path", self.onset, self.length, probability=chance)
        if self.method != "mode":
            return gate
        # As in the official code the mode is lost for the whole training, b gated for its start.
        return gate, DeficitSchedule("gate_mode", 0, self.steps, mode=LOST_MODE)


TRANSFER = Cell(part="transfer", method="task", size=40, steps=4000, rate=0.2)
DIGITS = Cell(part="digits", size=32, steps=2000, rate=0.1, length=300)
SPECTRUM = Cell(
    part="spectrum", method="task", size=30, steps=2000, rate=0.2, rank=3, observed=450,
    pretrain_steps=2000,
)  # fmt: skip
LARGE = Cell(part="large-init", length=15, rate=0.001)


@dataclass(frozen=True)
class Sweep:
    """The transfers of one scale.

    Attributes:
        base: the usual one.
        visits: steps on the first matrix.
        ranks: of the first matrix, beside the usual one; the first and last are compared.
        entries: numbers of observed entries beside the usual one.
        more: those that should leave less damage than the usual number.
        enough: those that should leave none.
        angles: degrees between the tasks' subspaces.
    """

    base: Cell
    visits: tuple[int, ...]
    ranks: tuple[int, ...]
    entries: tuple[int, ...]
    more: int
    enough: int
    angles: tuple[int, ...] = (0, 30, 60, 90)


TINY = TRANSFER.changed({"size": 12, "steps": 20, "observed": 100, "rank": 3})
PUBLISHED = TRANSFER.changed(
    {"size": 100, "steps": 30_000, "rank": 10, "second_rank": 5, "observed": 2000}
    | {"init_scale": 0.001}
)
# By the side of the matrices.
SWEEPS = {
    12: Sweep(TINY, (0, 6, 12), (2, 4), (110, 130), 110, 130, (0, 45, 90)),
    40: Sweep(TRANSFER, (0, 500, 2000, 8000), (2, 10), (350, 800, 1200), 800, 1200),
    100: Sweep(
        PUBLISHED,
        (0, 1000, 5000, 10_000, 20_000, 40_000, 60_000, 80_000, 100_000),
        (2, 5, 15),
        (1000, 1500, 3000, 4000),
        3000,
        4000,
    ),
}


def pathway_cells(base: Cell, depths: Iterable[int], onsets: Iterable[int]) -> list[Cell]:
    """Depths, onsets, the three controls of competition, and networks with an activation."""
    depths, onsets = tuple(depths), tuple(onsets)
    deep = [depth for depth in depths if depth > 1]
    return [
        *_varied(base, depth=depths, method=("none",)),
        *_varied(base, depth=depths, onset=onsets),
        *_varied(base, depth=deep, method=("single", "cure")),
        base.changed({"method": "mode", "length": base.length * 4 // 3}),
        base.changed({"method": "random-gate"}),
        *_varied(base, activation=("tanh", "relu"), onset=(onsets[0], onsets[-2], onsets[-1])),
        *_varied(base, activation=("tanh", "relu"), method=("none",)),
    ]


def transfer_cells(sweep: Sweep) -> list[Cell]:
    """Depths, the attempted cure, ranks, numbers of entries and relations of the tasks."""
    base, visits = sweep.base, sweep.visits
    ends, shallow = (0, visits[-1]), base.changed({"depth": 1, "rate": 4 * base.rate})
    return [
        *_varied(base, depth=(2, 3), pretrain_steps=visits),
        *_varied(shallow, pretrain_steps=visits),
        *_varied(base, method=("cure",), pretrain_steps=ends),
        *_varied(base, rank=sweep.ranks, pretrain_steps=ends),
        *_varied(base, observed=sweep.entries, pretrain_steps=ends),
        *_varied(base, angle=sweep.angles, pretrain_steps=(0, *visits[-2:])),
    ]


def _varied(base: Cell, **values: Iterable[Any]) -> list[Cell]:
    cells = [base]
    for name, several in values.items():
        several = tuple(several)
        cells = [cell.changed({name: value}) for cell in cells for value in several]
    return cells


def smoke_cells() -> list[Cell]:
    """Every code path; narrow pathways, small matrices."""
    digits = DIGITS.changed({"size": 8, "steps": 20, "length": 5})
    return [
        *pathway_cells(Cell(size=12, steps=400), (2, 3, 4), (0, 100, 240)),
        *_varied(LARGE, depth=(2, 5, 8), onset=(0, 100)),
        *transfer_cells(SWEEPS[12]),
        TINY.changed({"first_observed": 90, "pretrain_steps": 12}),
        SPECTRUM.changed({"size": 12, "steps": 20, "observed": 80, "pretrain_steps": 20}),
        *_varied(digits, whole=(False, True), method=("none",)),
        *_varied(digits, whole=(False, True), method=("gate", "blur"), onset=(0, 10)),
    ]


def small_cells() -> list[Cell]:
    """The published pathways; 40 x 40 matrices; digits."""
    same = TRANSFER.changed({"first_observed": 200, "observed": 400, "rank": 2})
    return [
        *pathway_cells(Cell(), (1, 2, 3, 4), ONSETS),
        *_varied(LARGE, depth=(2, 5, 8, 13), onset=(0, 100)),
        *transfer_cells(SWEEPS[40]),
        *_varied(same, pretrain_steps=(0, 8000)),
        SPECTRUM,
        *_varied(DIGITS, whole=(False, True), method=("none",)),
        *_varied(DIGITS, whole=(False, True), method=("gate", "blur"), onset=(0, 300, 1500)),
    ]


def paper_cells() -> list[Cell]:
    """The published setting: pathways as at `small`, 100 x 100 matrices, up to 100,000 steps."""
    sweep = SWEEPS[100]
    same = sweep.base.changed({"rank": 5, "first_observed": 1000})
    return [
        *pathway_cells(Cell(), (1, 2, 3, 4), ONSETS),
        *_varied(LARGE, depth=(2, 5, 8, 13), onset=(0, 100)),
        *transfer_cells(sweep),
        *_varied(sweep.base, init_scale=(0.1, 0.01, 0.0001), pretrain_steps=sweep.visits),
        *_varied(same, observed=(1250, 1500, 1750, 2000), pretrain_steps=sweep.visits),
        SPECTRUM.changed({"size": 100, "observed": 5000, "rank": 8, "steps": 10_000}),
        *_varied(DIGITS, whole=(False, True), method=("none",)),
        *_varied(
            DIGITS, whole=(False, True), method=("gate", "blur"), onset=(0, 300, 600, 900, 1500)
        ),
    ]


class Study(peira.Study[Cell]):
    """Seeds draw initial weights, matrices, observed entries, and which digits train."""

    cell = Cell
    # Four networks of depth 4 and their gradients fit a core's own cache; eight do not.
    batch_size = 4
    scales = {
        "smoke": peira.Scale(cells=smoke_cells, seeds=2),
        "small": peira.Scale(cells=small_cells, seeds=10),
        "paper": peira.Scale(cells=paper_cells, seeds=10),
    }

    def seeds(self, cell: Cell, asked: int) -> int:
        """All for transfers, whose damage varies most; six at most of the rest."""
        return asked if cell.part == "transfer" else min(asked, 6)

    def batch(self, cell: Cell) -> Hashable | None:
        """Networks of one shape train at once; they differ in deficit, matrix and seed."""
        if cell.part == "pathways":
            kind = cell.method if cell.method in ("single", "cure") else ""
            return cell.part, kind, cell.depth, cell.activation, cell.size, cell.steps, cell.rate
        if cell.part == "transfer":
            return cell.part, cell.depth, cell.size, cell.steps
        return None

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float]:
        """Train one cell, or solve its equation."""
        if cell.part == "large-init":
            return measure_large(cell, run)
        if cell.part == "spectrum":
            return measure_spectrum(cell, run)
        if cell.part == "digits":
            return measure_digits(cell, run)
        return self.measure_many([cell], [run])[0]

    def measure_many(
        self, cells: Sequence[Cell], runs: Sequence[peira.Run]
    ) -> list[dict[str, float]]:
        """Train several networks of one shape at once."""
        measure = measure_pathways if cells[0].part == "pathways" else measure_transfer
        return measure(cells, runs)

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        """Claims C1 to C9 of the card."""
        base, sweep = bases(table)
        table = with_damage(table)
        yield from self._onset_and_depth(table, base)
        yield from self._transfers(table, sweep)
        yield from self._competition(table, base)
        related = related_rows(table, sweep.visits[-1])
        yield v.trend(related, "angle", "damage", self.claim("C8"))
        for id, whole in (("C9", False), ("C9b", True)):
            gated = {"part": "digits", "method": "gate", "whole": whole}
            late, early = ({**gated, "onset": onset} for onset in (latest(table, gated), 0))
            yield v.larger(table, "accuracy_b", late, early, self.claim(id))

    def _onset_and_depth(self, table: pd.DataFrame, base: Cell) -> Iterator[v.Verdict]:
        """C1 to C3b: pathways of the hierarchy and their equation."""
        claim, late = self.claim, latest_ratios(table)
        early_parts, late_parts = claim("C1").parts[:3], claim("C1").parts[3:]
        yield v.all_of(
            claim("C1"),
            [
                *(
                    v.below(table, "ratio", group(base, depth=depth), part)
                    for depth, part in zip(DEEP, early_parts, strict=True)
                ),
                *(
                    v.above(late, "late_ratio", {"depth": depth}, part)
                    for depth, part in zip(DEEP, late_parts, strict=True)
                ),
            ],
        )
        yield self._each_depth("C1b", table, "ratio", base, method="cure")
        middle = {depth: group(base, depth=depth, onset=100) for depth in DEEP}
        yield v.all_of(
            claim("C2"),
            [
                v.smaller(table, "ratio", middle[depth], middle[depth - 1], part)
                for depth, part in zip(DEEP[1:], claim("C2").parts, strict=True)
            ],
        )
        large = {"part": "large-init", "onset": 0}
        yield v.trend(table, "depth", "share", claim("C2b"), where=large, falling=True)
        yield self._each_depth("C3a", table, "ode_error", base)
        yield self._each_depth("C3b", table, "flow_error", base)

    def _transfers(self, table: pd.DataFrame, sweep: Sweep) -> Iterator[v.Verdict]:
        """C3c to C5: two matrices."""
        claim = self.claim
        yield v.below(table, "spectrum_error", {"part": "spectrum"}, claim("C3c"))
        yield v.all_of(claim("C4"), self._by_depth(table, sweep))
        after, before = (
            group(sweep.base, method="cure", pretrain_steps=steps)
            for steps in (sweep.visits[-1], 0)
        )
        yield v.larger(table, "test_loss", after, before, claim("C4b"))
        yield v.all_of(claim("C5"), self._rank_and_entries(table, sweep))

    def _competition(self, table: pd.DataFrame, base: Cell) -> Iterator[v.Verdict]:
        """C6 and C7: without a rival, and with an activation."""
        *alone, learned, kept = self.claim("C6").parts
        lost = {"part": "pathways", "method": "mode"}
        yield v.all_of(
            self.claim("C6"),
            [
                *(
                    v.above(table, "learned", group(base, method="single", depth=depth), part)
                    for depth, part in zip(DEEP, alone, strict=True)
                ),
                v.above(table, "learned", lost, learned),
                v.below(table, "ratio", lost, kept),
            ],
        )
        verdicts = []
        for kind, part in zip(("tanh", "relu"), self.claim("C7").parts, strict=True):
            last = latest(table, {"part": "pathways", "activation": kind})
            late, early = (group(base, activation=kind, onset=onset) for onset in (last, 0))
            verdicts.append(v.larger(table, "norm_ratio", late, early, part))
        yield v.all_of(self.claim("C7"), verdicts)

    def _each_depth(
        self, id: str, table: pd.DataFrame, metric: str, base: Cell, **changes: Any
    ) -> v.Verdict:
        parts = zip(DEEP, self.claim(id).parts, strict=True)
        return v.all_of(
            self.claim(id),
            [v.below(table, metric, group(base, depth=d, **changes), part) for d, part in parts],
        )

    def _by_depth(self, table: pd.DataFrame, sweep: Sweep) -> list[v.Verdict]:
        verdicts = []
        for depth, part in zip((2, 3, 1), self.claim("C4").parts, strict=True):
            rate = 4 * sweep.base.rate if depth == 1 else sweep.base.rate
            test = v.equivalent if depth == 1 else v.larger
            after, before = (
                group(sweep.base, depth=depth, rate=rate, pretrain_steps=steps)
                for steps in (sweep.visits[-1], 0)
            )
            verdicts.append(test(table, "test_loss", after, before, part))
        return verdicts

    def _rank_and_entries(self, table: pd.DataFrame, sweep: Sweep) -> list[v.Verdict]:
        by_rank, by_entries, enough = self.claim("C5").parts
        usual = sweep.base.changed({"pretrain_steps": sweep.visits[-1]})
        low, high = (group(usual, rank=rank) for rank in (sweep.ranks[0], sweep.ranks[-1]))
        more = group(usual, observed=sweep.more)
        return [
            v.rate(worse(table, high, low), by_rank),
            v.rate(worse(table, group(usual), more), by_entries),
            v.below(table, "damage", group(usual, observed=sweep.enough), enough),
        ]

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        """Equation over network, damage by onset and depth, transfer, what makes it worse."""
        from peira.dynamics.critical_periods.figure import draw

        return draw(with_damage(table), curves)


def measure_pathways(cells: Sequence[Cell], runs: Sequence[peira.Run]) -> list[dict[str, float]]:
    """Train pathways on the hierarchy and hold them against the equation."""
    first, task = cells[0], hierarchy()
    strengths, networks = [], []
    for cell, run in zip(cells, runs, strict=True):
        k0 = cell.init_scale * (1 + 0.1 * run.rng.standard_normal(len(task.modes[1])))
        count = 1 if cell.method == "single" else 2
        networks.append(balanced_pathways(task, cell.depth, cell.size, k0, run.rng, count))
        strengths.append(k0)
    trainer = PathwayTrainer(
        networks, task, [cell.deficits() for cell in cells], first.steps, first.rate,
        first.rate * CURE["pathways"] if first.method == "cure" else None,
        first.activation, [run.rng for run in runs],
    )  # fmt: skip
    record = {"times": [0], "k": [trainer.strengths()]}
    for step in runs[0].steps(first.steps, save=(trainer, record)):
        trainer.step(step - 1)
        if step % RECORD_EVERY == 0 or step == first.steps:
            record["times"].append(step)
            record["k"].append(trainer.strengths())
    k, norms, losses = np.stack(record["k"], axis=-1), trainer.norms(), trainer.loss()
    return [
        _pathway_metrics(cell, run, strengths[i], record["times"], k[i], norms[i], float(losses[i]))
        for i, (cell, run) in enumerate(zip(cells, runs, strict=True))
    ]


def _pathway_metrics(
    cell: Cell,
    run: peira.Run,
    k0: np.ndarray,
    times: Sequence[int],
    k: np.ndarray,
    norms: np.ndarray,
    loss: float,
) -> dict[str, float]:
    """What one network shows; `k` is (modes, pathways, times)."""
    s = hierarchy().modes[1]
    learned_mode = LOST_MODE if cell.method == "mode" else 0
    metrics = {"final_loss": loss, "learned": float(k[learned_mode, -1, -1] / s[learned_mode])}
    if cell.method != "single":
        metrics["norm_ratio"] = float(norms[1] / norms[0])
    if cell.activation != "linear":
        return metrics
    if cell.method != "single":
        ratios = k[:, 1, -1] / k[:, 0, -1]
        metrics |= {f"ratio_mode_{mode}": float(value) for mode, value in enumerate(ratios)}
        metrics["ratio"] = float(ratios[0])
    if cell.method in ("none", "gate", "mode", "single"):
        for name, method in (("ode_error", "euler"), ("flow_error", "rk4")):
            solved = equation(cell, k0, method)[:, -k.shape[1] :]
            error = np.abs(k - solved[..., np.asarray(times)]).max(axis=(1, 2))
            metrics[name] = float((error / s).max())
            if name == "ode_error" and run.seed == 0:
                _log_strengths(run, times, k, solved)
    return metrics


def equation(cell: Cell, k0: np.ndarray, method: Any) -> np.ndarray:
    """Strengths after every step by the reduced equation, (modes, 2, steps + 1)."""
    s = hierarchy().modes[1]
    deficits = cell.deficits()
    if cell.method == "single":
        # Without pathway a: all of its modes are lost for the whole training.
        gone = [DeficitSchedule("gate_mode", 0, cell.steps, mode=mode) for mode in range(len(s))]
        deficits = [deficits, *gone]
    return pathway_dynamics(
        s, (cell.depth,), k0, [deficits], cell.rate, cell.steps, method=method
    ).k[0, 0]


def _log_strengths(run: peira.Run, times: Sequence[int], k: np.ndarray, solved: np.ndarray) -> None:
    """Curves of one mode of each singular value, by network and by equation."""
    for place, step in enumerate(times):
        for mode in (0, 1, 2, 4):
            for path, name in enumerate("ab"[-k.shape[1] :]):
                run.log(
                    step,
                    **{
                        f"net_{name}{mode}": k[mode, path, place],
                        f"ode_{name}{mode}": solved[mode, path, step],
                    },
                )


def measure_large(cell: Cell, run: peira.Run) -> dict[str, float]:
    """The equation from large initial weights: S = 10, a hundred random starts, as published."""
    k0 = cell.init_scale * run.rng.standard_normal((100, 2))
    solved = pathway_dynamics(
        [10.0] * 100, (cell.depth,), k0, [cell.deficits()], cell.rate, cell.steps, "large",
        every=cell.steps,
    )  # fmt: skip
    return {"share": float(solved.share.mean())}


def matrices(cell: Cell, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """First and second task, and the entries that each observes.

    Every part has a generator of its own: cells that differ in the first rank or in the number of
    entries share the rest.
    """
    draws = [np.random.default_rng([seed, place]) for place in range(3)]
    first = low_rank_matrix(cell.size, cell.rank, draws[0])
    if cell.first_observed is not None:
        second = first
    elif cell.angle is None:
        second = low_rank_matrix(cell.size, cell.second_rank, draws[1])
    else:
        second = related_matrix(first, cell.second_rank, cell.angle, draws[1])
    order = draws[2].permutation(cell.size**2)
    seen = [
        (np.argsort(order) < count).reshape(first.shape)
        for count in (cell.first_observed or cell.observed, cell.observed)
    ]
    return first, second, *seen


def untrained(cell: Cell, seed: int) -> Factors:
    """Initial weights of the factors, the same for all tasks of a seed."""
    rng = np.random.default_rng([seed, 3])
    return initial_factors((cell.size, cell.size), cell.depth, cell.init_scale, rng=rng)


def pretrained(run: peira.Run, visits: list[int], **settings: Any) -> dict[int, Factors]:
    """Weights of one seed after each number of steps on the first matrix."""
    cell = Cell(**settings)
    first, _, seen, _ = matrices(cell, run.seed)
    trainer = Completion([untrained(cell, run.seed)], [first], [seen], cell.rate)
    found = pretrain(trainer, visits, lambda total, kept: run.steps(total, (kept,)))
    return {step: members[0] for step, members in found.items()}


def started(cell: Cell, run: peira.Run) -> Factors:
    """The cell's weights at the change of task."""
    if cell.pretrain_steps == 0:
        return untrained(cell, run.seed)
    asked = cell.pretrain_steps
    visits = next((list(s.visits) for s in SWEEPS.values() if asked in s.visits), [asked])
    # What the second task alone depends on has no part in the first.
    first = cell.changed(
        {"method": "task", "pretrain_steps": 0, "steps": 1, "second_rank": 1, "angle": None}
        | {"observed": cell.first_observed or cell.observed, "first_observed": None}
    )
    return run.shared("first-matrix", pretrained, visits=visits, **first.model_dump())[asked]


def measure_transfer(cells: Sequence[Cell], runs: Sequence[peira.Run]) -> list[dict[str, float]]:
    """Complete the second matrix from weights that have seen the first."""
    starts = [started(cell, run) for cell, run in zip(cells, runs, strict=True)]
    tasks = [matrices(cell, run.seed) for cell, run in zip(cells, runs, strict=True)]
    truths, seen = np.stack([task[1] for task in tasks]), np.stack([task[3] for task in tasks])
    rates = [cell.rate * (CURE["transfer"] if cell.method == "cure" else 1) for cell in cells]
    trainer = Completion(starts, truths, seen, rates)
    ranks = [_effective_rank(start) for start in starts]
    steps = cells[0].steps
    for step in runs[0].steps(steps, save=(trainer,)):
        trainer.step()
        if step % max(1, steps // 20) == 0:
            for run, error in zip(runs, trainer.errors(truths), strict=True):
                run.log(step, test_loss=error)
    trainer.check()
    test, train = trainer.errors(truths), trainer.errors(truths, seen) / 2
    return [
        {"test_loss": float(test[i]), "train_loss": float(train[i]), "rank_before": ranks[i]}
        for i in range(len(cells))
    ]


def _effective_rank(factors: Factors) -> float:
    """Participation ratio of the squared singular values of the product."""
    product = factors[0].astype(float)
    for layer in factors[1:]:
        product = layer @ product
    energy = np.linalg.svd(product, compute_uv=False) ** 2
    return float(energy.sum() ** 2 / np.square(energy).sum())


def measure_spectrum(cell: Cell, run: peira.Run) -> dict[str, float]:
    """Singular values of a balanced network and of their equation, across the change of task."""
    first, second, seen, seen_later = matrices(cell, run.seed)
    rng = np.random.default_rng([run.seed, 3])
    factors = initial_factors(
        first.shape, cell.depth, cell.init_scale, "orthogonal", rng, np.float64
    )
    network = Completion([factors], [first], [seen], cell.rate)
    record = {"singular": []}
    total = cell.pretrain_steps + cell.steps
    for step in run.steps(total, save=(network, record), name="network"):
        if step == cell.pretrain_steps + 1:
            network = Completion(network.members(), [second], [seen_later], cell.rate)
        network.step()
        if step % RECORD_EVERY == 0:
            record["singular"].append(_singular(network.product()[0]))
    tasks = ((first, seen), (second, seen_later))

    def gradient(w: np.ndarray, step: int) -> np.ndarray:
        target, mask = tasks[step >= cell.pretrain_steps]
        return np.where(mask, w - target, 0) / mask.sum()

    weight = factors[0]
    for layer in factors[1:]:
        weight = layer @ weight
    times, solved = singular_flow(
        weight, gradient, cell.depth, cell.rate, run.budget(total), RECORD_EVERY
    )
    found = np.array(record["singular"])
    for step, net, ode in zip(times[1:], found, solved[1:], strict=True):
        run.log(int(step), **{f"net_s{i}": net[i] for i in range(5)})
        run.log(int(step), **{f"ode_s{i}": ode[i] for i in range(5)})
    if not len(found):
        return {}
    return {"spectrum_error": float(np.abs(found - solved[1:]).max() / solved.max())}


def _singular(product: np.ndarray) -> list[float]:
    return np.linalg.svd(product, compute_uv=False)[:10].tolist()


def measure_digits(cell: Cell, run: peira.Run) -> dict[str, float]:
    """Two pathways read digits, a half each or both the whole; the second has the deficit."""
    digits = digit_views(run.rng, cell.whole)
    task = compress(digits.task)
    network = gaussian_pathways(task, cell.depth, cell.size, cell.init_scale, run.rng)
    trainer = PathwayTrainer([network], task, [cell.deficits()], cell.steps, cell.rate)
    for step in run.steps(cell.steps, save=(trainer,)):
        trainer.step(step - 1)
        if step % max(1, cell.steps // 40) == 0:
            run.log(step, **digits.accuracies(trainer))
    norms = trainer.norms()[0]
    return {**digits.accuracies(trainer), "norm_ratio": float(norms[1] / norms[0])}


def group(base: Cell, **changes: Any) -> dict[str, Any]:
    """The rows of one cell."""
    return base.changed(changes).model_dump()


def bases(table: pd.DataFrame) -> tuple[Cell, Sweep]:
    """The usual pathways and the transfers of the scale that the table is of."""
    paths, transfers = (v.select(table, {"part": part}) for part in ("pathways", "transfer"))
    usual = {name: int(paths[name].mode().iat[0]) for name in ("size", "steps") if len(paths)}
    side = int(transfers["size"].mode().iat[0]) if len(transfers) else 40
    return Cell().changed(usual), SWEEPS.get(side, SWEEPS[40])


def latest(table: pd.DataFrame, where: dict[str, Any]) -> int:
    """The last onset of a group."""
    rows = v.select(table, where)
    return int(rows["onset"].max()) if len(rows) else 0


def latest_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """For each depth and seed the lowest K_b / K_a over the onsets from 200 on."""
    if "ratio" not in table:
        return table
    rows = v.select(table, {"part": "pathways", "method": "gate", "activation": "linear"})
    late = rows[rows["onset"] >= 200].groupby(["depth", "seed"], as_index=False)["ratio"].min()
    return late.rename(columns={"ratio": "late_ratio"})


def with_damage(table: pd.DataFrame) -> pd.DataFrame:
    """The table, with what a first task adds to the test loss of each transfer."""
    if "test_loss" not in table:
        return table
    fields = [name for name in Cell.model_fields if name != "pretrain_steps"]
    plain = table[(table["part"] == "transfer") & (table["pretrain_steps"] == 0)]
    plain = plain[[*fields, "seed", "test_loss"]].rename(columns={"test_loss": "plain_loss"})
    merged = table.merge(plain, on=[*fields, "seed"], how="left")
    merged["damage"] = merged["test_loss"] - merged.pop("plain_loss")
    return merged


def related_rows(table: pd.DataFrame, steps: int) -> pd.DataFrame:
    """Transfers between tasks at an angle, after the longest first task."""
    if "damage" not in table:
        return table.assign(damage=np.nan)[:0]
    rows = table[(table["part"] == "transfer") & (table["pretrain_steps"] == steps)]
    return rows[rows["angle"].notna()]


def worse(table: pd.DataFrame, a: dict[str, Any], than: dict[str, Any]) -> list[bool]:
    """For each seed whether `a` has more damage."""
    if "damage" not in table:
        return []
    first, second = (v.select(table, one).set_index("seed")["damage"] for one in (a, than))
    both = first.index.intersection(second.index)
    return (first.loc[both] > second.loc[both]).tolist()
