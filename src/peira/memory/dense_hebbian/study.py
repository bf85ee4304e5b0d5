"""How the paper's claims are tested: the cells, what one cell measures, the verdicts."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

import peira
from peira.data import fingerprint
from peira.data.images import digits, mnist, mnist_paths
from peira.engine import verdict as v
from peira.memory.dense_hebbian.examples import Examples, Mode, draw_patterns
from peira.memory.dense_hebbian.network import DenseHebbian
from peira.memory.dense_hebbian.plefka import plefka
from peira.memory.dense_hebbian.rules import nearest_mean, pseudo_inverse, softmax_memory
from peira.memory.dense_hebbian.simulation import dense_energy, simulate
from peira.memory.dense_hebbian.tensor import (
    coupling_tensor,
    measure_tolerated_noise,
    tensor_heat_bath,
)
from peira.memory.dense_hebbian.theory import (
    branches,
    critical_load,
    dense_examples_needed,
    glass,
    order_parameters,
    retrieval_temperature,
    tolerated_noise,
)
from peira.memory.spins import PatternEnergy, binarise, flip, heat_bath, spinodal

if TYPE_CHECKING:
    from jaxtyping import Int8
    from matplotlib.figure import Figure

Part = Literal[
    "storage", "load", "heat", "theory", "learning", "detection", "mean-field", "pictures"
]
Rule = Literal["dense", "pseudo-inverse", "softmax", "nearest-mean"]

PUBLISHED_LOADS = {3: 0.1261, 4: 0.03298, 6: 0.001314}
ENTROPIES = (0.0, 0.05, 0.2)
# Quality and number of examples that have these entropies.
QUALITY = {0.0: (1.0, 1), 0.05: (0.5, 60), 0.2: (0.5, 15)}
JUDGED_LOAD = 0.7
# Of the temperature where retrieval dies at alpha = 0; the second and third are judged.
LADDER = (0.0, 0.25, 0.5, 0.75, 0.9, 1.05)
TARGET = 0.9
FLIPS = (0.0, 0.15, 0.3, 0.45)
STANDARD_ERROR = 0.005
# Entries of the patterns above which two patterns are retrieved instead of sixteen.
COSTLY = 10**7


class Cell(peira.Cell):
    """One network, one set of equations, or one memory of pictures."""

    part: Part = Field("load", description="which of the paper's experiments")
    rule: Rule = Field("dense", description="the memory; all but dense are baselines")
    P: int = Field(4, ge=2, le=6, description="spins per coupling")
    N: int = Field(72, ge=8, description="spins")
    K: int = Field(72, ge=1, description="patterns")
    T: float = Field(0.0, ge=0, description="temperature, J0 = 1/P!")
    r: float = Field(1.0, gt=0, le=1, description="quality of an example")
    M: int = Field(1, ge=1, description="examples per pattern; 1 with r = 1 stores the pattern")
    mode: Mode = Field("supervised", description="average before or after the product")
    solver: Literal["monte-carlo", "tensor", "plefka-1", "plefka-2"] = Field(
        "monte-carlo", description="how a thermal state is found"
    )
    data: Literal["random", "digits", "mnist"] = Field("random", description="what is learned")
    centre: bool = Field(False, description="subtract the mean over classes of pictures")


def load_cells(P: int, N: int, fractions: tuple[float, ...], rho: float, part: Part) -> list[Cell]:
    """Networks loaded to these fractions of the critical load."""
    r, M = QUALITY[rho]
    full = critical_load(P, 0.0, rho) * N ** (P - 1)
    return [Cell(part=part, P=P, N=N, K=max(1, round(f * full)), r=r, M=M) for f in fractions]


def storage_cells(N: int, loads: tuple[int, ...], orders: tuple[int, ...]) -> list[Cell]:
    """Patterns and damaged cues, for every order and the baselines."""
    dense = [Cell(part="storage", P=P, N=N, K=K) for K in loads for P in orders]
    rules: tuple[Rule, ...] = ("pseudo-inverse", "softmax")
    return dense + [Cell(part="storage", rule=rule, P=2, N=N, K=K) for K in loads for rule in rules]


def learning_cells(
    N: int, K: int, supervised: tuple[float, ...], both: tuple[float, ...]
) -> list[Cell]:
    """Number of examples that is needed, by quality."""
    modes: tuple[tuple[Mode, tuple[float, ...]], ...] = (
        ("supervised", supervised + both),
        ("unsupervised", both),
    )
    return [Cell(part="learning", N=N, K=K, r=r, mode=mode) for mode, rs in modes for r in rs]


def detection_cells(sizes: dict[int, tuple[int, ...]]) -> list[Cell]:
    """K = N; pairwise networks, which hold no such load, K = N/20."""
    return [
        Cell(part="detection", P=P, N=N, K=N // 20 if P == 2 else N)
        for P, ns in sizes.items()
        for N in ns
    ]


def mean_field_cells(networks: tuple[tuple[int, int], ...], Ts: tuple[float, ...]) -> list[Cell]:
    """The same networks by Monte Carlo and by Plefka's equations; small ones with the tensor."""
    cells = []
    for (N, K), T in product(networks, Ts):
        for solver in ("monte-carlo", "plefka-1", "plefka-2", *(("tensor",) if N <= 40 else ())):
            cells.append(Cell(part="mean-field", N=N, K=K, T=T, solver=solver))
    return cells


def picture_cells(names: tuple[str, ...], M: int) -> list[Cell]:
    """Ten classes of M pictures, for every order, mode and baseline."""
    cells = []
    for name in names:
        common: dict[str, Any] = {"part": "pictures", "data": name, "K": 10, "M": M}
        common["N"] = 64 if name == "digits" else 784
        cells += [Cell(**common, P=P) for P in (2, 3, 4, 6)]
        cells += [Cell(**common, P=4, mode="unsupervised")]
        cells += [Cell(**common, P=P, centre=True) for P in (2, 4)]
        cells += [
            Cell(**common, P=2, rule=rule) for rule in ("pseudo-inverse", "softmax", "nearest-mean")
        ]
    return cells


def theory_cells() -> list[Cell]:
    """One per order."""
    return [Cell(part="theory", P=P) for P in (2, 3, 4, 6)]


def small_cells() -> list[Cell]:
    """Minutes on a laptop."""
    loads, beyond = (0.3, 0.5, JUDGED_LOAD), (0.9, 1.1, 1.3)
    cells = [*theory_cells(), *storage_cells(72, (72, 2000), (2, 3, 4, 6))]
    for P, N in ((2, 1000), (3, 200), (4, 96)):
        for rho in ENTROPIES if P > 2 else ENTROPIES[:1]:
            cells += load_cells(P, N, loads + beyond, rho, "load")
    cells += load_cells(6, 72, loads[:1], 0.0, "load")
    cells += load_cells(3, 200, loads, 0.0, "heat")
    cells += load_cells(4, 96, (0.1, *loads, 0.9, 1.1), 0.0, "heat")
    cells += learning_cells(48, 553, (0.1, 0.2), (0.4, 0.5, 0.6))
    cells += detection_cells({2: (20, 40, 80, 160), 3: (16, 24, 32, 40), 4: (16, 20, 24, 32, 40)})
    cells += mean_field_cells(((40, 320), (72, 3732)), (0.02, 0.04))
    return cells + picture_cells(("digits", "mnist"), M=50)


def paper_cells() -> list[Cell]:
    """Larger networks; P = 4 with 100,000 patterns on 784 spins as well."""
    loads = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, JUDGED_LOAD, 0.8, 0.9, 1.0, 1.1, 1.2)
    cells = [*theory_cells(), *storage_cells(784, (784, 10_000, 100_000), (2, 3, 4, 6))]
    for P, N in ((2, 5000), (3, 500), (4, 160)):
        for rho in ENTROPIES:
            cells += load_cells(P, N, loads, rho, "load")
        cells += load_cells(P, N, loads, 0.0, "heat")
    cells += load_cells(6, 72, (0.3, 0.5, JUDGED_LOAD), 0.0, "load")
    cells += learning_cells(96, 4424, (0.05, 0.1, 0.2, 0.3), (0.4, 0.5, 0.6, 0.7))
    sizes = {
        2: (20, 40, 80, 160, 320),
        3: (16, 24, 32, 40, 80),
        4: (16, 24, 32, 40, 64),
        6: (16, 20, 24),
    }
    cells += detection_cells(sizes)
    cells += mean_field_cells(((40, 320), (72, 3732), (160, 40_960)), (0.01, 0.02, 0.03, 0.04))
    return cells + picture_cells(("digits", "mnist"), M=500)


SMOKE = (
    *theory_cells()[2:3],
    *storage_cells(24, (24,), (2, 4)),
    *load_cells(4, 24, (0.5,), 0.2, "load"),
    *load_cells(4, 24, (0.5,), 0.0, "heat"),
    *learning_cells(16, 20, (), (0.5,)),
    *detection_cells({2: (20, 40), 4: (10, 12)}),
    *mean_field_cells(((24, 70),), (0.02,)),
    *picture_cells(("digits",), M=20),
)


class Study(peira.Study[Cell]):
    """Seeds draw patterns, examples, heat bath and pictures; the theory draws nothing."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(cells=SMOKE, seeds=2),
        "small": peira.Scale(cells=small_cells, seeds=5),
        "paper": peira.Scale(cells=paper_cells, seeds=10),
    }

    def inputs(self, cell: Cell) -> dict[str, str]:
        """Fingerprint of MNIST's test file where it is read."""
        return {"mnist": fingerprint(mnist_paths())} if cell.data == "mnist" else {}

    def seeds(self, cell: Cell, asked: int) -> int:
        """One for the theory, which draws nothing; three at most where a cell is costly."""
        if cell.part == "theory":
            return 1
        costly = cell.part == "pictures" or cell.N * cell.K > COSTLY
        return min(asked, 3) if costly else asked

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float]:
        """One experiment for one seed."""
        measures = {
            "storage": measure_storage, "load": measure_load, "heat": measure_heat,
            "theory": measure_theory, "learning": measure_learning,
            "detection": measure_detection, "mean-field": measure_mean_field,
            "pictures": measure_pictures,
        }  # fmt: skip
        return measures[cell.part](cell, run)

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        """Claims C1 to C7 of the card."""
        c1, c2, c3 = (self.claim(id) for id in ("C1", "C2", "C3"))
        small, large = ({"part": "storage", "rule": "dense", "K": K} for K in (72, 2000))
        parts = [
            v.above(table, "m", {**small, "P": 4}, c1.parts[0]),
            v.below(table, "m", {**small, "P": 2}, c1.parts[1]),
            v.above(table, "m", {**large, "P": 4}, c1.parts[2]),
        ]
        yield v.all_of(c1, parts)
        gaps = largest_gaps(table)
        parts = [
            v.below(gaps, "gap", {"part": part}, claim)
            for part, claim in zip(("load", "heat"), c2.parts, strict=True)
        ]
        yield v.all_of(c2, parts)
        yield v.all_of(c3, self._theory_parts(table))
        yield v.all_of(self.claim("C4"), self._learning_parts(table))
        c5 = self.claim("C5")
        parts = [
            v.power_law(table, "N", "omega", part, where={"part": "detection", "P": P})
            for P, part in zip((2, 4), c5.parts, strict=True)
        ]
        yield v.all_of(c5, parts)
        yield v.all_of(self.claim("C6"), self._mean_field_parts(table))
        c7 = self.claim("C7")
        memory = {"part": "pictures", "data": "mnist", "rule": "dense", "centre": False}
        memory["mode"] = "supervised"
        parts = [
            v.larger(table, f"overlap {share:g}", {**memory, "P": 4}, {**memory, "P": 2}, part)
            for share, part in zip(FLIPS, c7.parts, strict=True)
        ]
        yield v.all_of(c7, parts)

    def _theory_parts(self, table: pd.DataFrame) -> list[v.Verdict]:
        rows = v.select(table, {"part": "theory"})
        loads, shrinks = {}, {}
        for row in rows.to_dict("records"):
            P = int(row["P"])
            areas = [row[f"area {rho:g}"] for rho in ENTROPIES]
            shrinks[f"P = {P}"] = bool(areas[0] > areas[1] > areas[2])
            if P in PUBLISHED_LOADS:
                for way in ("parametric", "iterated"):
                    loads[f"P = {P}, {way}"] = (row[way] / PUBLISHED_LOADS[P], 1.0)
        first, second = self.claim("C3").parts
        return [v.exactly(loads, first), v.count(shrinks, second)]

    def _learning_parts(self, table: pd.DataFrame) -> list[v.Verdict]:
        parts = self.claim("C4").parts
        learning = {"part": "learning"}
        verdicts = [
            v.at_least(
                table, "examples",
                {**learning, "r": r, "mode": "unsupervised"},
                {**learning, "r": r, "mode": "supervised"},
                part,
            )
            for r, part in zip((0.6, 0.5, 0.4), parts, strict=False)
        ]  # fmt: skip
        verdicts.append(v.trend(example_ratios(table), "r", "ratio", parts[3], falling=True))
        supervised = v.select(table, {**learning, "mode": "supervised"})
        verdicts.append(v.power_law(supervised[supervised["r"] <= 0.4], "r", "examples", parts[4]))
        return verdicts

    def _mean_field_parts(self, table: pd.DataFrame) -> list[v.Verdict]:
        same, tensor, patterns = self.claim("C6").parts
        # Both temperatures count: a seed's value is their mean.
        solved = by_solver(table)
        groups = {
            (N, solver): {"N": N, "solver": solver}
            for N, solver in product((40, 72), ("monte-carlo", "tensor", "plefka-2"))
        }
        return [
            v.equivalent(solved, "m", groups[72, "plefka-2"], groups[72, "monte-carlo"], same),
            v.at_least(
                solved, "seconds_each", groups[40, "tensor"], groups[40, "plefka-2"], tensor
            ),
            v.at_least(
                solved, "seconds_each", groups[72, "monte-carlo"], groups[72, "plefka-2"], patterns
            ),
        ]

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        """Theory and Monte Carlo in one picture."""
        from peira.memory.dense_hebbian.figure import draw

        return draw(table, curves)


def quality(cell: Cell) -> Examples | None:
    """The examples of a cell; None where the patterns themselves are stored."""
    return None if cell.r == 1 else Examples(cell.r, cell.M, cell.mode)


def measure_storage(cell: Cell, run: peira.Run) -> dict[str, float]:
    """Overlap with the pattern after starting from it, and from a cue with 20% flipped spins."""
    patterns = draw_patterns(cell.K, cell.N, run.rng)
    targets = patterns[: min(16, cell.K)]
    cues = flip(targets, 0.2, run.rng)
    energy = dense_energy(patterns, cell.P, run.rng) if cell.rule == "dense" else None
    return {
        name: float((recall(cell.rule, patterns, energy, start, run.rng) * targets).mean())
        for name, start in (("m", targets), ("m from cue", cues))
    }


def recall(
    rule: Rule,
    patterns: Any,
    energy: PatternEnergy | None,
    cues: Int8[np.ndarray, "cues N"],
    rng: np.random.Generator,
) -> Int8[np.ndarray, "cues N"]:
    """States in which a memory of `patterns` settles from `cues`, at T = 0."""
    if energy is not None:
        return heat_bath(energy, cues, math.inf, 15, rng).states
    if rule == "pseudo-inverse":
        return pseudo_inverse(patterns, cues, rng)
    return softmax_memory(patterns, cues) if rule == "softmax" else nearest_mean(patterns, cues)


def measure_load(cell: Cell, run: peira.Run) -> dict[str, float]:
    """Overlap at T = 0 against the theory."""
    data = quality(cell)
    replicas = 2 if cell.N * cell.K > COSTLY else min(16, cell.K)
    found = simulate(cell.N, cell.K, cell.P, run.rng, data, replicas=replicas)
    alpha = cell.K / cell.N ** (cell.P - 1)
    expected = order_parameters(cell.P, alpha, 0.0, data or 0.0).m
    m = float(found.m[0])
    return {"alpha": alpha, "m": m, "theory": expected, "gap": abs(m - expected)}


def measure_heat(cell: Cell, run: peira.Run) -> dict[str, float]:
    """A network heated step by step from retrieved patterns, against the theory."""
    top = retrieval_temperature(cell.P)
    Ts = [share * top for share in LADDER]
    found = simulate(cell.N, cell.K, cell.P, run.rng, None, Ts, settle=15, average=15)
    alpha = cell.K / cell.N ** (cell.P - 1)
    gaps = []
    for step, T in enumerate(Ts):
        expected = order_parameters(cell.P, alpha, T).m
        m = float(found.m[step])
        gaps.append(abs(m - expected))
        run.log(step, T=T, m=m, error=float(found.error[step]), theory=expected)
    return {"alpha": alpha, "gap": max(gaps[1:3])}


def measure_theory(cell: Cell, run: peira.Run) -> dict[str, float]:
    """Critical loads in two ways, areas of retrieval, loads of equal free energy at T = 0."""
    P = cell.P
    top = retrieval_temperature(P)
    metrics = {"top": top, "parametric": critical_load(P)}

    def alive(alpha: float) -> bool:
        return order_parameters(P, alpha).m > 0.3

    metrics["iterated"] = spinodal(alive, 0.5 * metrics["parametric"], 2 * metrics["parametric"])
    Ts = np.linspace(0, top, 20)
    for rho in ENTROPIES:
        edge = [critical_load(P, float(T), rho) for T in Ts]
        metrics[f"area {rho:g}"] = float(np.trapezoid(edge, Ts))
    there = branches(P)
    for steps in (0, 1):
        lower = [
            f <= glass(P, float(alpha), 0.0, steps)[0]
            for alpha, f in zip(
                there.alpha[there.stable][::4], there.free_energy[there.stable][::4], strict=True
            )
        ]
        loads = there.alpha[there.stable][::4][np.array(lower)]
        metrics[f"lowest up to {steps} steps"] = float(loads.max())
    return metrics


def measure_learning(cell: Cell, run: peira.Run) -> dict[str, float]:
    """Examples per pattern at which m passes the target, by interpolation in log M."""
    alpha = cell.K / cell.N ** (cell.P - 1)
    expected = dense_examples_needed(cell.r, cell.P, TARGET, cell.mode, alpha)
    before: tuple[float, float] | None = None
    replicas = min(cell.K, 48 if cell.mode == "supervised" else 12)
    for step in range(12):
        M = max(1, round(expected * 2 ** (step / 2 - 1)))
        data = Examples(cell.r, M, cell.mode)
        m = float(simulate(cell.N, cell.K, cell.P, run.rng, data, replicas=replicas, settle=8).m[0])
        run.log(step, M=M, m=m)
        if m >= TARGET:
            break
        before = (math.log(M), m)
    else:
        return {"examples": math.nan, "theory": float(expected)}
    examples = float(M)
    if before is not None:
        share = (TARGET - before[1]) / (m - before[1])
        examples = math.exp(before[0] + share * (math.log(M) - before[0]))
    return {"examples": examples, "theory": float(expected)}


def measure_detection(cell: Cell, run: peira.Run) -> dict[str, float]:
    """Tolerated noise in the tensor."""
    omega = measure_tolerated_noise(cell.P, cell.N, cell.K, run.rng, networks=16)
    return {"omega": omega, "theory": tolerated_noise(cell.P, cell.N, cell.K)}


def measure_mean_field(cell: Cell, run: peira.Run) -> dict[str, float]:
    """Mean overlap of retrieved patterns at T > 0, and processor time per pattern."""
    patterns = draw_patterns(cell.K, cell.N, run.rng)
    energy = dense_energy(patterns, cell.P, run.rng)
    targets = patterns[:8]
    beta = 1 / cell.T
    expected = order_parameters(cell.P, cell.K / cell.N ** (cell.P - 1), cell.T).m
    warm = draw_patterns(8, cell.N, np.random.default_rng(0))
    solve = {
        "monte-carlo": _sample, "tensor": _sample_tensor, "plefka-1": _solve_1, "plefka-2": _solve_2
    }[cell.solver]  # fmt: skip
    # The first call compiles.
    solve(dense_energy(warm, cell.P, run.rng), warm, warm[:1], beta, np.random.default_rng(0))
    m, work, seconds = solve(energy, patterns, targets, beta, run.rng)
    return {"m": m, "theory": expected, "sweeps": work, "seconds_each": seconds / len(targets)}


def _sample(
    energy: PatternEnergy, patterns: Any, targets: Any, beta: float, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Sweeps until each replica's mean overlap has the standard error, from means of blocks."""
    began = time.process_time()
    block = 10
    states = heat_bath(energy, targets, beta, block, rng).states
    means: list[Any] = []
    while True:
        trace = heat_bath(energy, states, beta, block, rng, targets)
        states = trace.states
        means.append(np.diagonal(trace.mean_overlaps(block)))
        errors = np.std(means, axis=0, ddof=1) / math.sqrt(len(means)) if len(means) > 3 else 1.0
        if np.max(errors) < STANDARD_ERROR or len(means) == 200:
            break
    seconds = time.process_time() - began
    return float(np.mean(means)), float(block * (len(means) + 1)), seconds


def _sample_tensor(
    energy: PatternEnergy, patterns: Any, targets: Any, beta: float, rng: np.random.Generator
) -> tuple[float, float, float]:
    """As many sweeps as the Monte Carlo in pattern space takes; overlap of the last states."""
    sweeps = int(_sample(energy, patterns, targets, beta, rng)[1])
    tensor = coupling_tensor(patterns, energy.P)
    tensor_heat_bath(tensor, targets[:1], beta, 1, rng)
    began = time.process_time()
    states = tensor_heat_bath(tensor, targets, beta, sweeps, rng)
    seconds = time.process_time() - began
    return float((states * targets).mean()), float(sweeps), seconds


def _solve(
    energy: PatternEnergy, targets: Any, beta: float, order: int
) -> tuple[float, float, float]:
    began = time.process_time()
    found = plefka(energy, targets, beta, order)
    seconds = time.process_time() - began
    return float((found.m * targets).mean()), float(found.iterations.mean()), seconds


def _solve_1(
    energy: PatternEnergy, patterns: Any, targets: Any, beta: float, rng: np.random.Generator
) -> tuple[float, float, float]:
    return _solve(energy, targets, beta, 1)


def _solve_2(
    energy: PatternEnergy, patterns: Any, targets: Any, beta: float, rng: np.random.Generator
) -> tuple[float, float, float]:
    return _solve(energy, targets, beta, 2)


def measure_pictures(cell: Cell, run: peira.Run) -> dict[str, float]:
    """Overlap with the archetype from its damaged copies, accuracy on damaged test pictures.

    The archetype of a class is the sign of the mean of all its training pictures; the memory sees
    M of them. Test pictures are in neither.
    """
    images, labels = digits() if cell.data == "digits" else mnist()
    spins = binarise(images, 7 if cell.data == "digits" else 127)
    order = run.rng.permutation(len(spins))
    test, train = order[:200], order[200:]
    chosen = np.concatenate(
        [run.rng.choice(train[labels[train] == c], cell.M, replace=False) for c in range(10)]
    )
    means = np.array([spins[train[labels[train] == c]].mean(axis=0) for c in range(10)])
    archetypes = np.where(means >= 0, 1, -1).astype(np.int8)
    with warnings.catch_warnings():
        # Odd orders and pairwise overload are what is compared here.
        warnings.simplefilter("ignore", UserWarning)
        memory = DenseHebbian(cell.P, cell.mode, cell.centre, run.seed).fit(
            spins[chosen], labels[chosen]
        )
    metrics = {}
    for share in FLIPS:
        wanted = np.repeat(archetypes, 5, axis=0)
        states = _relax(cell, memory, flip(wanted, share, run.rng), run.rng)
        overlap = float((states * wanted).mean())
        states = _relax(cell, memory, flip(spins[test], share, run.rng), run.rng)
        answers = memory.answers(states)
        accuracy = float((answers == labels[test]).mean())
        run.log(round(100 * share), overlap=overlap, accuracy=accuracy)
        metrics |= {f"overlap {share:g}": overlap, f"accuracy {share:g}": accuracy}
    return metrics


def _relax(
    cell: Cell, memory: DenseHebbian, cues: Int8[np.ndarray, "cues N"], rng: np.random.Generator
) -> Int8[np.ndarray, "cues N"]:
    if cell.rule == "dense":
        return memory.retrieve(cues, sweeps=10).states
    return recall(cell.rule, memory.averages_, None, cues, rng)


def largest_gaps(table: pd.DataFrame) -> pd.DataFrame:
    """Largest deviation from the theory of each seed, over what the claim is about."""
    rows = table[table["part"].isin(("load", "heat")) & (table["N"] >= 72)]
    if not len(rows):
        return pd.DataFrame(columns=["part", "seed", "gap"])
    most = [
        JUDGED_LOAD * 1.01 * _critical(int(P), float(r), int(M))
        for P, r, M in zip(rows["P"], rows["r"], rows["M"], strict=True)
    ]
    judged = rows[rows["alpha"] <= most]
    return judged.groupby(["part", "seed"], as_index=False)["gap"].max()


def _critical(P: int, r: float, M: int) -> float:
    return critical_load(P, 0.0, 0.0 if r == 1 else Examples(r, M).rho)


def example_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Unsupervised over supervised number of examples, by quality and seed."""
    rows = v.select(table, {"part": "learning"})
    wide = rows.pivot_table(index=["r", "seed"], columns="mode", values="examples").dropna()
    return (wide["unsupervised"] / wide["supervised"]).rename("ratio").reset_index()


def by_solver(table: pd.DataFrame) -> pd.DataFrame:
    """Means over temperatures of what each solver found."""
    rows = v.select(table, {"part": "mean-field"})
    keys = ["N", "solver", "seed"]
    return rows.groupby(keys, as_index=False)[["m", "seconds_each"]].mean()
