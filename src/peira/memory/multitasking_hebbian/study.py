"""How the paper's claims are tested: the cells, what one cell measures, the verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field
from scipy.stats import spearmanr

import peira
from peira.data.images import digits, mnist, mnist_paths
from peira.engine import verdict as v
from peira.memory.multitasking_hebbian import baselines
from peira.memory.multitasking_hebbian.loss import parallel_loss
from peira.memory.multitasking_hebbian.network import pattern_energy
from peira.memory.multitasking_hebbian.patterns import (
    dataset_entropy,
    fill_blanks,
    ladder_spins,
    mean_examples,
    mixed_spins,
    noisy_examples,
    ternary_patterns,
)
from peira.memory.multitasking_hebbian.pictures import paste, quadrants
from peira.memory.multitasking_hebbian.theory import (
    Theory,
    critical_dilution,
    ladder_overlaps,
    regime,
    still_followed,
)
from peira.memory.spins import PatternEnergy, flip, heat_bath

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# A round is what runs between two checkpoints; the first half of the rounds is not averaged.
SWEEPS_PER_ROUND = 10
# Overlaps that are kept as metrics, at most.
SHOWN = 5
# Temperature where the cooling of the part `loss` begins.
HOTTEST = 1.5
# Of a corrupted start, the share of the hierarchical state's spins that are turned.
CORRUPTED = 0.2
# What is recalled: an overlap of this share of the pattern's entries, of either sign.
RECALLED = 0.9
# How far theory may be from the mean over seeds, in standard errors of it.
ERRORS = 3.0
# Distance in dilution from the critical one.
NEAR_CRITICAL = 0.04
# Quality r of the examples -> how many there are, at data-set entropies from 1.75 to 0.1.
QUALITIES = {0.2: (14, 32, 59, 119, 238), 0.4: (3, 7, 13, 26, 52)}
# Patterns per spin at high storage.
LOAD = 0.05
GRID_SPINS = 20_000
GROWTH_DILUTION = 0.4
RECALL = {"part": "recall"}
RULES = ("supervised", "unsupervised", "hopfield", "diluted-links", "pseudo-inverse", "oracle")

Rule = Literal[
    "storing",
    "supervised",
    "unsupervised",
    "hopfield",
    "diluted-links",
    "pseudo-inverse",
    "oracle",
]


class Cell(peira.Cell):
    """One network, where it starts, and what is measured on it."""

    part: Literal["recall", "teacher", "growth", "loss", "pictures"] = Field(
        "recall", description="which of the study's experiments the cell belongs to"
    )
    rule: Rule = Field("storing", description="how couplings come from archetypes or examples")
    start: Literal["ladder", "random", "mixed", "corrupted"] = Field(
        "ladder", description="first state: hierarchical spins, coins, sign of the sum, 20% turned"
    )
    spins: int = Field(20_000, ge=10, description="N; pictures: pixels of the canvas, a square")
    patterns: int = Field(3, ge=1, description="K")
    dilution: float = Field(0.25, ge=0, lt=1, description="d, share of blanks (not of pictures)")
    temperature: float = Field(0.05, ge=0, description="T, in units where the paramagnet ends at 1")
    quality: float = Field(1.0, gt=0, le=1, description="r of the examples")
    examples: int = Field(1, ge=1, description="M of each archetype")
    chains: int = Field(
        1, ge=1, description="independent dynamics; in `growth` on patterns of their own"
    )
    rounds: int = Field(8, ge=2, description="of 10 sweeps each; the second half is averaged")
    data: Literal["random", "digits", "mnist", "quadrants"] = Field(
        "random", description="drawn, pictures pasted on a canvas, or the quadrants of one digit"
    )

    @property
    def entropy(self) -> float:
        """rho of the cell's examples."""
        return 0.0 if self.rule == "storing" else dataset_entropy(self.quality, self.examples)


def hierarchy(spins: int, chains: int = 1) -> list[Cell]:
    """C1: the hierarchical state, and other ways into it."""
    cell = Cell(spins=spins, chains=chains)
    return [cell, *_varied(cell, start=("random", "mixed", "corrupted"))]


def around_critical(spins: int, sizes: tuple[int, ...]) -> list[Cell]:
    """C2: either side of the critical dilution of K = 3, 4, 5."""
    return [
        Cell(spins=spins, patterns=k, temperature=0.01, dilution=near_critical(k, side))
        for k in sizes
        for side in (-1, 1)
    ]


def near_critical(patterns: int, side: int) -> float:
    """The dilution just below (-1) or above (1) the critical one."""
    return round(critical_dilution(patterns) + side * NEAR_CRITICAL, 4)


def warm(spins: int, chains: int, dilutions: tuple[float, ...], rounds: int = 12) -> list[Cell]:
    """C3: from coins at T = 0.5."""
    return [
        Cell(spins=spins, chains=chains, dilution=d, temperature=0.5, start="random", rounds=rounds)
        for d in dilutions
    ]


def cold(spins: int, dilutions: tuple[float, ...]) -> list[Cell]:
    """The hierarchical state at all dilutions, for the figure."""
    return [Cell(spins=spins, dilution=d) for d in dilutions]


def against_theory(spins: int) -> list[Cell]:
    """C5: a grid of dilution, temperature and entropy."""
    base = Cell(spins=spins, rounds=12)
    stored = _varied(base, dilution=(0.25, 0.5, 0.8), temperature=(0.1, 0.5))
    # Data-set entropy 0.1.
    taught = [
        cell.changed({"rule": "supervised", "quality": 0.2, "examples": 240}) for cell in stored
    ]
    return [*stored, *taught]


def teachers(
    spins: int, crowded: int, examples: dict[float, tuple[int, ...]], control: tuple[int, ...]
) -> list[Cell]:
    """C4: both rules at growing numbers of examples; and 0.05 N patterns, without blanks and with.

    With blanks neither rule recalls at that load: what differs is told without.
    """
    base = Cell(part="teacher", spins=spins, temperature=0.1)
    few = [
        base.changed({"rule": rule, "quality": r, "examples": m})
        for r, ms in examples.items()
        for m in ms
        for rule in ("supervised", "unsupervised")
    ]
    many = base.changed(
        {"spins": crowded, "patterns": round(LOAD * crowded), "quality": 0.2, "rounds": 4}
    )
    return few + [
        many.changed({"rule": rule, "examples": m, "dilution": d})
        for d in (0.0, 0.25)
        for m in control
        for rule in ("supervised", "unsupervised")
    ]


def standard(spins: int) -> list[Cell]:
    """C7: no blanks, from one pattern and from coins, and couplings cut instead of entries."""
    cold_start = Cell(spins=spins, dilution=0.0)
    return [
        cold_start,
        *_varied(cold_start, start=("random", "mixed"), temperature=(0.5,)),
        cold_start.changed({"start": "mixed"}),
    ]


def cut_links(spins: int) -> list[Cell]:
    """Multitasking by diluted entries against diluted links, at the same share."""
    cell = Cell(spins=spins, chains=2)
    return [cell, cell.changed({"rule": "diluted-links"}), cell.changed({"rule": "pseudo-inverse"})]


def growth(sizes: tuple[int, ...], draws: int) -> list[Cell]:
    """C8: K = log N / log(1/d) patterns at T = 0."""
    return [
        Cell(
            part="growth", spins=n, dilution=GROWTH_DILUTION, temperature=0.0, rounds=2,
            patterns=math.floor(math.log(n) / math.log(1 / GROWTH_DILUTION)), chains=draws,
        )
        for n in sizes
    ]  # fmt: skip


def losses(spins: int) -> list[Cell]:
    """C6: energy and loss of descending states, archetypes stored and taught by examples."""
    cell = Cell(part="loss", spins=spins, start="random", chains=4, rounds=2, dilution=0.5)
    return [cell, cell.changed({"rule": "supervised", "quality": 0.2, "examples": 120})]


def pictures(
    data: Literal["digits", "mnist", "quadrants"], canvas: int, patterns: int, chains: int
) -> list[Cell]:
    """Pictures on one canvas, learned from noisy copies by each rule."""
    base = Cell(
        part="pictures", data=data, spins=canvas**2, patterns=patterns, quality=0.6, examples=20,
        start="random", temperature=0.1, chains=chains,
    )  # fmt: skip
    return _varied(base, rule=RULES)


def _varied(base: Cell, **values: Any) -> list[Cell]:
    cells = [base]
    for name, several in values.items():
        cells = [cell.changed({name: value}) for cell in cells for value in several]
    return cells


def smoke_cells() -> list[Cell]:
    """Every code path on few spins."""
    few = {0.4: (3, 7)}
    cells = [
        *hierarchy(400), *around_critical(400, (3,)), *warm(400, 2, (0.3, 0.8)),
        *standard(300), *cut_links(100), *growth((100, 200, 400), 2), *losses(300),
        *teachers(200, 100, few, (7,)), *pictures("digits", 16, 3, 1),
        *pictures("quadrants", 8, 4, 1),
    ]  # fmt: skip
    return [cell.changed({"rounds": 2}) for cell in cells]


def small_cells() -> list[Cell]:
    """The claims' own sizes; what is costly has fewer seeds."""
    return [
        *hierarchy(20_000),
        *around_critical(20_000, (3, 4, 5)),
        *warm(5000, 4, (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)),
        *warm(1250, 4, (0.7,)),
        *warm(20_000, 4, (0.7,)),
        *cold(20_000, (0.1, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
        *against_theory(GRID_SPINS),
        *teachers(5000, 1000, QUALITIES, (119, 238)),
        *standard(20_000),
        *cut_links(2000),
        *growth((1000, 3000, 10_000, 30_000, 100_000), 8),
        *losses(5000),
        *pictures("digits", 24, 4, 8),
        *pictures("quadrants", 8, 4, 8),
    ]


def paper_cells() -> list[Cell]:
    """Up to a million spins and a hundred chains; MNIST on its own canvas."""
    return [
        *hierarchy(100_000, 100),
        *around_critical(100_000, (3, 4, 5)),
        *warm(100_000, 100, (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)),
        *_varied(warm(1250, 100, (0.7,))[0], spins=(1250, 5000, 20_000, 1_000_000)),
        *cold(100_000, tuple(d / 20 for d in range(2, 19) if d != 5)),
        *against_theory(100_000),
        *teachers(20_000, 2000, QUALITIES, (119, 238)),
        *standard(100_000),
        *cut_links(4000),
        *growth((1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000), 20),
        Cell(spins=1_000_000, patterns=10, chains=100),
        *losses(100_000),
        *pictures("digits", 24, 4, 100),
        *pictures("quadrants", 8, 4, 100),
        *pictures("mnist", 84, 8, 20),
    ]


class Study(peira.Study[Cell]):
    """Monte Carlo of the networks beside the predictions for them."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(cells=smoke_cells, seeds=2),
        "small": peira.Scale(cells=small_cells, seeds=10),
        "paper": peira.Scale(cells=paper_cells, seeds=20),
    }

    def inputs(self, cell: Cell) -> dict[str, str]:
        """Fingerprint of MNIST's files where they are read."""
        if cell.data != "mnist":
            return {}
        from peira.data import fingerprint

        return {"mnist": fingerprint(mnist_paths())}

    def seeds(self, cell: Cell, asked: int) -> int:
        """All of them where theory, rules or sizes are compared closely, else half."""
        grid = cell.changed({"spins": GRID_SPINS}) in against_theory(GRID_SPINS)
        return asked if grid or cell.part in ("teacher", "growth") else max(2, asked // 2)

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float]:
        """Draw patterns, let the network run, hold its overlaps against the prediction."""
        if cell.part == "growth":
            return measure_growth(cell, run)
        archetypes = draw_patterns(cell, run.rng)
        if cell.rule == "oracle":
            state = baselines.block_oracle(archetypes, run.rng)[None]
            return recalled(state @ archetypes.T.astype(float) / cell.spins, archetypes)
        energy = couple(cell, archetypes, run.rng)
        states = first_states(cell, archetypes, run.rng)
        if cell.part == "loss":
            return measure_loss(cell, energy, states, archetypes, run)
        overlaps = mean_overlaps(cell, energy, states, archetypes, run)
        if cell.part == "pictures":
            return recalled(overlaps, archetypes)
        return measure_recall(cell, overlaps, archetypes)

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        """Claims C1 to C8 of the card."""
        claim = self.claim
        ladder = self._group(table, start="ladder", dilution=0.25, temperature=0.05)
        *overlaps, slope = claim("C1").parts
        yield v.all_of(
            claim("C1"),
            [
                *(
                    v.equals(ladder, f"size_{k}", RECALL, part)
                    for k, part in enumerate(overlaps, start=1)
                ),
                v.equals(ladder, "slope", RECALL, slope),
            ],
        )
        yield v.all_of(claim("C2"), list(self._critical(table)))
        yield v.count(parallel_conditions(table), claim("C3"))
        yield from self._teachers(table)
        yield v.rate(agreements(table), claim("C5"))
        stored, taught = claim("C6").parts
        yield v.all_of(
            claim("C6"),
            [
                v.equals(table, "rank correlation", {"part": "loss", "rule": "storing"}, stored),
                v.above(table, "rank correlation", {"part": "loss", "rule": "supervised"}, taught),
            ],
        )
        yield v.all_of(claim("C7"), list(self._standard(table)))
        grown = v.select(table, {"part": "growth"})
        yield v.trend(grown, "spins", "followed", claim("C8a"))
        yield v.above(largest(grown), "reach", {"part": "growth"}, claim("C8b"))

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        """Theory and Monte Carlo side by side, learning curves, and pictures recalled at once."""
        from peira.memory.multitasking_hebbian.figure import draw

        return draw(table)

    def _critical(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        parts = iter(self.claim("C2").parts)
        for k in (3, 4, 5):
            for side, test in ((-1, v.below), (1, v.above)):
                rows = self._group(
                    table, patterns=k, temperature=0.01, dilution=near_critical(k, side)
                )
                yield test(rows, "departure", RECALL, next(parts))

    def _teachers(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        curves = largest(v.select(table, {"part": "teacher", "patterns": 3}))
        conditions = [{"quality": r, "examples": m} for r, ms in QUALITIES.items() for m in ms]
        parts = zip(conditions, self.claim("C4a").parts, strict=True)
        rules = {"rule": "supervised"}, {"rule": "unsupervised"}
        yield v.all_of(
            self.claim("C4a"),
            [v.equivalent(v.select(curves, at), "largest", *rules, part) for at, part in parts],
        )
        yield v.above(crowded_gaps(table), "gap", {"part": "teacher"}, self.claim("C4b"))

    def _standard(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        one, coins, links, ours = self.claim("C7").parts
        dense = {"start": "ladder", "dilution": 0.0, "temperature": 0.05}
        yield v.below(self._group(table, **dense), "second", RECALL, one)
        warm_start = {"start": "random", "dilution": 0.0, "temperature": 0.5}
        yield v.below(self._group(table, **warm_start), "second", RECALL, coins)
        small = {"start": "ladder", "dilution": 0.25, "temperature": 0.05, "chains": 2}
        yield v.below(table, "second", {**small, "part": "recall", "rule": "diluted-links"}, links)
        yield v.above(table, "second", {**small, "part": "recall", "rule": "storing"}, ours)

    def _group(self, table: pd.DataFrame, **fields: Any) -> pd.DataFrame:
        """Cells of stored patterns with these settings, the largest network of them."""
        usual = {"part": "recall", "rule": "storing", "patterns": 3}
        return largest(v.select(table, {**usual, **fields}))


def draw_patterns(cell: Cell, rng: np.random.Generator) -> np.ndarray:
    """The cell's archetypes, (K, N)."""
    if cell.data == "random":
        exact = cell.part == "loss"
        return ternary_patterns(cell.patterns, cell.spins, cell.dilution, rng, exact)
    images, threshold = (mnist()[0], 127) if cell.data == "mnist" else (digits()[0], 7)
    if cell.data == "quadrants":
        return quadrants(images[rng.integers(len(images))], threshold)
    chosen = images[rng.choice(len(images), cell.patterns, replace=False)]
    return paste(chosen, math.isqrt(cell.spins), threshold, rng)


def couple(cell: Cell, archetypes: np.ndarray, rng: np.random.Generator) -> PatternEnergy:
    """The cell's network; all rules of one seed see the same examples."""
    dilution = 1 - float(np.mean(archetypes != 0)) if cell.data != "random" else cell.dilution
    power = cell.quality**2 * (1 + cell.entropy)
    if cell.rule == "storing":
        return pattern_energy(archetypes, dilution, 1.0)
    if cell.part == "recall":
        # Only the means are needed, and they can be drawn at once.
        means = mean_examples(archetypes, cell.quality, cell.examples, rng)
    else:
        seen = noisy_examples(archetypes, cell.quality, cell.examples, rng)
        if cell.rule == "unsupervised":
            return pattern_energy(seen.reshape(-1, cell.spins), dilution, power, cell.examples)
        means = seen.mean(axis=1)
    if cell.rule == "supervised":
        return pattern_energy(means, dilution, power)
    if cell.rule == "hopfield":
        return baselines.hopfield(means, rng)
    if cell.rule == "diluted-links":
        return baselines.diluted_links(means, dilution, rng)
    return baselines.pseudo_inverse(means)


def first_states(cell: Cell, archetypes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where the chains start, (chains, N)."""
    blank = np.zeros((cell.chains, cell.spins), np.int8)
    if cell.start == "random":
        return fill_blanks(blank, rng)
    spins = mixed_spins if cell.start == "mixed" else ladder_spins
    states = np.stack([spins(archetypes, rng) for _ in blank])
    return flip(states, CORRUPTED, rng) if cell.start == "corrupted" else states


def mean_overlaps(
    cell: Cell, energy: PatternEnergy, states: np.ndarray, archetypes: np.ndarray, run: peira.Run
) -> np.ndarray:
    """Overlaps with the archetypes, averaged over the second half of the rounds: (chains, K)."""
    beta = 1 / cell.temperature if cell.temperature else math.inf
    rounds = run.budget(cell.rounds)
    kept = {"states": states, "sum": np.zeros((cell.chains, cell.patterns))}
    for step in run.steps(cell.rounds, save=(kept,), name="rounds"):
        trace = heat_bath(energy, kept["states"], beta, SWEEPS_PER_ROUND, run.rng, archetypes)
        kept["states"] = trace.states
        if step > rounds // 2:
            kept["sum"] = kept["sum"] + trace.overlaps.mean(axis=0)
    return kept["sum"] / (rounds - rounds // 2)


def measure_recall(cell: Cell, overlaps: np.ndarray, archetypes: np.ndarray) -> dict[str, float]:
    """Overlaps (in the order of the ladder, or by size where the start prefers no pattern)."""
    ordered = cell.start in ("ladder", "corrupted")
    found = overlaps if ordered else -np.sort(-np.abs(overlaps), axis=1)
    sizes = -np.sort(-np.abs(overlaps), axis=1)
    mean = found.mean(axis=0)
    predicted = prediction(cell)
    measured = {
        "departure": float((archetypes[0] != 0).mean() - mean[0]),
        "worst balance": float((sizes[:, -1] / sizes[:, 0]).min()),
        "best balance": float((sizes[:, -1] / sizes[:, 0]).max()),
        "balance": float((sizes[:, -1] / sizes[:, 0]).mean()),
        "largest": float(sizes[:, 0].mean()),
    }
    if cell.patterns > 1:
        measured["second"] = float(sizes[:, 1].mean())
    # A pattern and its negative have the same energy: an overlap's size says what is recalled.
    absolute = np.abs(found).mean(axis=0)
    for k in range(min(cell.patterns, SHOWN)):
        measured[f"m_{k + 1}"] = float(mean[k])
        measured[f"size_{k + 1}"] = float(absolute[k])
        measured[f"theory_{k + 1}"] = float(predicted[k])
    if ordered and cell.dilution > 0 and cell.patterns > 1 and absolute.all():
        steps = np.polyfit(np.arange(cell.patterns), np.log(absolute), 1)[0]
        measured["slope"] = float(steps / math.log(cell.dilution))
    near = np.abs(sizes - np.sort(np.abs(predicted))[::-1]).max(axis=1) < 0.03
    return measured | {"reached": float(near.mean())}


def prediction(cell: Cell) -> np.ndarray:
    """Overlaps that theory gives: of the state below the ladder, or of lowest free energy."""
    if cell.patterns > SHOWN or not cell.temperature:
        return ladder_overlaps(cell.patterns, cell.dilution)
    if cell.start == "random" and cell.temperature >= 0.5:
        found = regime(cell.dilution, cell.patterns, cell.temperature, cell.entropy)
        return np.array(found.overlaps)
    theory = Theory(cell.patterns, cell.dilution, cell.temperature, cell.entropy)
    return theory.overlaps(theory.solve(ladder_overlaps(cell.patterns, cell.dilution)))[0]


def recalled(overlaps: np.ndarray, archetypes: np.ndarray) -> dict[str, float]:
    """How much of the patterns one state shows, and how many it shows whole."""
    share = np.abs(overlaps) / (archetypes != 0).mean(axis=1)
    return {
        "recalled": float((share > RECALLED).sum(axis=1).mean()),
        "shown": float(share.mean()),
        "overlap of windows": float(np.clip((archetypes != 0).sum(axis=0) - 1, 0, None).mean()),
    }


def measure_growth(cell: Cell, run: peira.Run) -> dict[str, float]:
    """How many patterns stay in the hierarchy, mean over draws of the patterns."""
    kept = {"followed": 0}
    sweeps = cell.rounds * SWEEPS_PER_ROUND
    for _ in run.steps(cell.chains, save=(kept,), name="draws"):
        archetypes = draw_patterns(cell, run.rng)
        start = ladder_spins(archetypes, run.rng)[None]
        energy = pattern_energy(archetypes, cell.dilution, 1.0)
        trace = heat_bath(energy, start, math.inf, sweeps, run.rng, archetypes)
        sizes = np.abs(trace.mean_overlaps(sweeps // 2)[0])
        kept["followed"] += still_followed(sizes, cell.dilution)
    followed = kept["followed"] / run.budget(cell.chains)
    return {"followed": followed, "reach": followed / cell.patterns}


def measure_loss(
    cell: Cell, energy: PatternEnergy, states: np.ndarray, archetypes: np.ndarray, run: peira.Run
) -> dict[str, float]:
    """Rank correlation of energy and loss in each chain as it cools from coins, sweep by sweep."""
    sweeps = cell.rounds * SWEEPS_PER_ROUND
    path = {"states": states, "energies": [], "losses": []}
    cooling = np.linspace(HOTTEST, cell.temperature, sweeps)
    for step in run.steps(sweeps, save=(path,), name="cooling"):
        trace = heat_bath(energy, path["states"], 1 / cooling[step - 1], 1, run.rng)
        loss = parallel_loss(trace.states, archetypes)
        path["states"] = trace.states
        path["energies"] = [*path["energies"], trace.energies[0] / cell.spins]
        path["losses"] = [*path["losses"], loss]
        run.log(step, energy=trace.energies[0, 0] / cell.spins, loss=loss[0])
    # Rounded, so that states of equal energy are ties in both.
    falling, failing = (np.round(path[name], 12) for name in ("energies", "losses"))
    chains = range(cell.chains)
    return {
        "rank correlation": float(
            np.mean([spearmanr(falling[:, c], failing[:, c]).statistic for c in chains])
        ),
        "energy fell": float((falling[0] - falling[-1]).mean()),
        "loss fell": float((failing[0] - failing[-1]).mean()),
    }


def parallel_conditions(table: pd.DataFrame) -> dict[str, bool]:
    """C3: smallest over largest overlap, in every seed and chain."""
    warm_start = {"part": "recall", "rule": "storing", "start": "random", "temperature": 0.5}
    rows = v.select(table, {**warm_start, "patterns": 3})
    outcomes = {}
    for d, column, sign, limit in (
        (0.3, "best balance", -1, 0.2), (0.8, "worst balance", 1, 0.6),
        (0.9, "worst balance", 1, 0.6),
    ):  # fmt: skip
        found = v.select(rows, {"dilution": d})
        if len(found):
            outcomes[f"d = {d}"] = bool((sign * (found[column] - limit) > 0).all())
    return outcomes


def crowded_gaps(table: pd.DataFrame) -> pd.DataFrame:
    """C4b: per seed, the largest difference of m_1 between the rules over M at high storage."""
    rows = v.select(table, {"part": "teacher", "dilution": 0.0})
    wide = rows.pivot_table(index=["seed", "examples"], columns="rule", values="m_1")
    if wide.empty:
        return rows.assign(gap=[])
    gaps = (wide["supervised"] - wide["unsupervised"]).abs().groupby("seed").max()
    return gaps.rename("gap").reset_index().assign(part="teacher")


def agreements(table: pd.DataFrame) -> list[bool]:
    """C5: for each grid point and pattern, is the theory within 3 standard errors of the mean?"""
    outcomes = []
    for cell in against_theory(GRID_SPINS):
        where = {
            name: getattr(cell, name)
            for name in ("part", "rule", "start", "dilution", "temperature", "examples")
        }
        rows = largest(v.select(table, where))
        for k in range(1, cell.patterns + 1) if len(rows) > 1 else ():
            values = rows[f"m_{k}"].to_numpy()
            error = values.std(ddof=1) / math.sqrt(len(values))
            away = abs(values.mean() - rows[f"theory_{k}"].iloc[0])
            outcomes.append(bool(away < ERRORS * error))
    return outcomes


def largest(rows: pd.DataFrame) -> pd.DataFrame:
    """Of rows that differ in the number of spins, those of the largest networks."""
    return rows[rows["spins"] == rows["spins"].max()] if len(rows) else rows
