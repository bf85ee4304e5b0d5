"""How the paper's claims are tested: the cells, what one cell measures, the verdicts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

import peira
from peira.data.images import mnist_paths
from peira.data.modular import Split
from peira.dynamics.grokking_lazy_rich.gap import GrokGap, grok_gap, logarithmic_steps
from peira.dynamics.grokking_lazy_rich.network import ReadoutDescent
from peira.dynamics.grokking_lazy_rich.polynomial import (
    Descent,
    LinearisedTwin,
    Task,
    eigenvector_task,
    gradient_flow,
    infinite_neurons,
    initial_weights,
    neurons,
    quadratic_task,
)
from peira.dynamics.grokking_lazy_rich.scaled import (
    RECIPES,
    Curve,
    classification_task,
    reference_loss,
    scaled_network,
    train_scaled,
)
from peira.dynamics.probes import ScaledOutput, laziness, relative_weight_change
from peira.engine import verdict as v

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Share of its start below which a loss has come down (polynomial tasks).
FRACTION = 0.05
# Twin and network agree while their test losses are within this share of each other.
AGREE = 0.10
# Training goes on for this much longer than the test loss took, so that curves show the end.
AFTER = 1.3
ALIGNED_ON = 300

Measured = dict[str, float | peira.Censored]


class Cell(peira.Cell):
    """One network trained one way."""

    task: Literal["polynomial", "modular", "digits", "mnist", "transformer"] = "polynomial"
    method: Literal["descent", "flow", "readouts"] = Field(
        "descent",
        description="polynomial tasks: gradient descent, gradient flow, readouts trained too",
    )
    alpha: float = Field(1.0, gt=0, description="output scale: large is lazy")
    eps: float = Field(0.05, gt=0, description="curvature of the activation: small is misaligned")
    samples: int = Field(220, ge=2, description="P, training samples (not of modular tasks)")
    dimension: int = Field(40, ge=1, description="D, inputs of the polynomial task; p of modular")
    width: int | None = Field(500, ge=1, description="N, neurons; None is infinitely many")
    rate: float = Field(3.0, gt=0, description="eta = rate N / alpha^2 (polynomial)")
    steps: int = Field(20_000, ge=1, description="budget; what has not come by then is censored")
    centred: bool = Field(True, description="fit f - f_0")
    norm: float = Field(1.0, gt=0, description="initial weights times this")
    kaiming: bool = Field(False, description="pictures: weights times sqrt(2 / fan-in) as well")
    aligned: float = Field(0.0, ge=0, le=1, description="share of the way to the solution")
    decay: float = Field(
        0.0, ge=0, description="share of each weight taken off per step (polynomial)"
    )
    weight_decay: float | None = Field(None, ge=0, description="of AdamW; None is the recipe's")
    eigenvector: int | None = Field(
        None, ge=1, description="targets: that eigenvector of the initial kernel; None: (beta.x)^2"
    )


def small_cells() -> list[Cell]:
    """One factor varied at a time around the grokking network."""
    main, digits = Cell(), Cell(task="digits", width=200, samples=200, steps=1000)
    lazy = main.changed({"alpha": 4.0, "steps": 80_000})
    return [
        main,
        *(main.changed({"alpha": alpha}) for alpha in (0.25, 16.0)),
        lazy,
        *(main.changed({"samples": samples}) for samples in (60, 150, 800)),
        *(main.changed({"eps": eps}) for eps in (0.2, 1.0)),
        *(main.changed({"norm": norm}) for norm in (0.5, 2.0)),
        *(main.changed({"aligned": 0.5, "centred": centred}) for centred in (True, False)),
        main.changed({"width": None}),
        main.changed({"method": "flow"}),
        lazy.changed({"decay": 1e-4, "centred": False}),
        *(digits.changed({"alpha": alpha}) for alpha in (1.0, 10.0, 100.0)),
    ]


def smoke_cells() -> list[Cell]:
    """Every code path, a few steps each."""
    tiny = Cell(dimension=6, samples=20, width=30, eps=0.3, rate=0.5, steps=60)
    digits = Cell(task="digits", samples=60, width=12, steps=12)
    return [
        tiny,
        *(tiny.changed({"method": method}) for method in ("flow", "readouts")),
        tiny.changed({"width": None, "alpha": 4.0}),
        tiny.changed({"aligned": 0.5, "norm": 2.0}),
        tiny.changed({"decay": 1e-3, "centred": False}),
        tiny.changed({"eigenvector": 15, "width": 2}),
        *(digits.changed({"alpha": alpha}) for alpha in (1.0, 100.0)),
        Cell(task="modular", dimension=5, width=20, steps=12, centred=False),
        Cell(task="transformer", dimension=5, width=8, steps=12, alpha=0.5),
    ]


def paper_cells() -> list[Cell]:
    """The published settings.

    The sweep over alpha has targets (beta.x)^2, twice those here: its alpha is halved instead,
    which is the same network.
    """
    first = Cell(dimension=100, samples=550, eps=0.02, rate=1.0, steps=100_000)
    swept = Cell(dimension=100, samples=450, eps=0.25, rate=0.5, steps=60_000)
    phase = first.changed({"rate": 20.0, "steps": 110_000})
    parts = Cell(samples=120, width=2, eps=0.25, rate=0.5, steps=50_000, centred=False)
    goldilocks = parts.changed({"width": 100, "eps": 0.5})
    eigen = Cell(dimension=100, samples=100, width=2, eps=0.25, rate=0.5, steps=25_000)
    modular = Cell(task="modular", dimension=23, width=100, steps=100_000, centred=False)
    images = Cell(
        task="mnist", samples=1000, width=200, steps=250_000, norm=150.0, centred=False,
        kaiming=True,
    )  # fmt: skip
    attention = Cell(task="transformer", dimension=113, width=128, steps=200_000)
    tenths = [round(0.4 * i, 1) for i in range(1, 15)]
    fiftieths = [round(0.02 * i, 2) for i in range(1, 15)]
    return [
        *small_cells(),
        first,
        *(swept.changed({"alpha": 2.0**power / 2}) for power in (-5, -2, -1, 0, 1, 2, 3, 4, 5)),
        *(swept.changed({"alpha": 0.5, "norm": norm}) for norm in (0.125, 0.25, 0.5, 2.0)),
        *(phase.changed({"alpha": a, "eps": e}) for a in tenths for e in fiftieths),
        parts,
        parts.changed({"method": "readouts", "rate": 0.05, "steps": 100_000}),
        *(parts.changed({"aligned": share}) for share in (0.05, 0.2, 0.5, 0.75, 0.95)),
        *(goldilocks.changed({"samples": samples}) for samples in (50, 120, 500)),
        *(eigen.changed({"eigenvector": k}) for k in (1, 5, 70, 75, 100, 150)),
        *(modular.changed({"alpha": scale**2}) for scale in (0.5, 1.0, 1.5, 2.0)),
        *(images.changed({"alpha": scale}) for scale in (1e-3, 0.01, 0.05, 0.5)),
        images.changed({"alpha": 1e-3, "kaiming": False}),
        *(attention.changed({"alpha": round(0.05 * i, 2)}) for i in range(1, 11)),
    ]


class Study(peira.Study[Cell]):
    """The output scale, the data and the start, each varied around a network that groks."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(cells=smoke_cells, seeds=2),
        "small": peira.Scale(cells=small_cells, seeds=5),
        "paper": peira.Scale(cells=paper_cells, seeds=5),
    }

    def inputs(self, cell: Cell) -> dict[str, str]:
        if cell.task != "mnist":
            return {}
        from peira.data import fingerprint

        return {"mnist": fingerprint(mnist_paths())}

    def measure(self, cell: Cell, run: peira.Run) -> Measured:
        if cell.task != "polynomial":
            return measure_scaled(cell, run)
        if cell.method == "flow":
            return measure_flow(cell, run)
        return measure_polynomial(cell, run)

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        claim = self.claim
        yield v.above(table, "gap", group(), claim("C1"))
        few, middling, many = claim("C2").parts
        yield v.all_of(
            claim("C2"),
            [
                v.above(table, "late_test", group(samples=60), few),
                v.above(table, "gap", group(samples=150), middling),
                v.below(table, "gap", group(samples=800), many),
            ],
        )
        lower, upper, fits, fails = claim("C3").parts
        yield v.all_of(
            claim("C3"),
            [
                v.at_least(table, "gap", group(), group(alpha=0.25), lower),
                v.at_least(table, "gap", group(alpha=4.0), group(), upper),
                v.below(table, "final_train", group(alpha=16.0), fits),
                v.above(table, "final_test", group(alpha=16.0), fails),
            ],
        )
        near, dominant = claim("C4").parts
        yield v.all_of(
            claim("C4"),
            [
                v.below(table, "decomposition_error", group(), near),
                v.above(table, "alignment_share", group(), dominant),
            ],
        )
        peak, end = claim("C5").parts
        curved = [group(eps=eps) for eps in (0.05, 0.2, 1.0)]
        yield v.all_of(
            claim("C5"),
            [
                v.trend(rows_of(table, curved), "eps", "peak_test", peak, falling=True),
                v.above(table, "final_test", group(eps=1.0), end),
            ],
        )
        yield v.below(table, "train_at_split", group(), claim("C6a"))
        yield v.equals(table, "peak_over_kernel", group(), claim("C6b"))
        digits = {"task": "digits", "centred": True, "norm": 1.0, "weight_decay": None}
        yield v.at_least(
            table, "gap", {**digits, "alpha": 100.0}, {**digits, "alpha": 1.0}, claim("C7")
        )
        yield v.at_least(table, "gap", group(norm=2.0), group(norm=0.5), claim("C8"))
        yield v.above(table, "norm_ratio", group(), claim("C9"))
        yield v.below(table, "gap", group(aligned=0.5), claim("C10"))

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        from peira.dynamics.grokking_lazy_rich.figure import draw

        return draw(table, curves)


def group(**settings: Any) -> dict[str, Any]:
    """The rows of the grokking network of D = 40, with some settings changed."""
    base = Cell().model_dump(exclude={"steps", "eigenvector", "weight_decay", "kaiming"})
    return {**base, **settings}


def rows_of(table: pd.DataFrame, groups: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows of several groups."""
    import pandas as pd

    return pd.concat([v.select(table, one) for one in groups])


def polynomial(cell: Cell, seed: int) -> tuple[Task, Descent | ReadoutDescent]:
    """Task and network at its start; cells of one seed share teacher and draws."""
    width = cell.width or 2 * cell.dimension
    draw = {"norm": cell.norm, "aligned": cell.aligned}
    if cell.eigenvector is not None:
        weights = initial_weights(width, cell.dimension, seed, norm=cell.norm)
        task = eigenvector_task(
            cell.dimension, cell.samples, weights, cell.eps, cell.eigenvector, seed
        )
    else:
        task = quadratic_task(cell.dimension, cell.samples, seed)
        assert task.beta is not None
        solution = task.beta / (cell.alpha * cell.eps) ** 0.5
        weights = initial_weights(width, cell.dimension, seed, solution=solution, **draw)
    settings: dict[str, Any] = {
        "alpha": cell.alpha,
        "eps": cell.eps,
        "rate": cell.rate,
        "centred": cell.centred,
    }
    if cell.method == "readouts":
        readouts = np.random.default_rng([seed, 4]).standard_normal(width)
        return task, ReadoutDescent(task.x, task.y, weights, readouts, **settings)
    factor = (
        neurons(weights, cell.eps)
        if cell.width is not None
        else infinite_neurons(cell.dimension, cell.eps, cell.norm)
    )
    return task, Descent(task.x, task.y, factor, decay=cell.decay, **settings)


def measure_polynomial(cell: Cell, run: peira.Run) -> Measured:
    """Train, with the exact test loss at every step and the rest at logarithmic distances."""
    task, descent = polynomial(cell, run.seed)
    twin = LinearisedTwin(descent) if isinstance(descent, Descent) else None
    watch = Watch(task, descent, twin)
    watch.look(0, run)
    kept = set(logarithmic_steps(cell.steps))
    for step in run.steps(cell.steps, save=(descent, watch)):
        descent.step()
        watch.follow(step)
        if step in kept:
            watch.look(step, run)
        if watch.over(step):
            break
    return watch.measured(run.budget(cell.steps))


class Watch:
    """What is kept of one training run: levels crossed, extremes, the twin's distance."""

    def __init__(
        self, task: Task, descent: Descent | ReadoutDescent, twin: LinearisedTwin | None
    ) -> None:
        self.task, self.descent, self.twin = task, descent, twin
        self.kernel_loss = self._twin_loss(np.inf) if twin else None
        train, test = float(descent.train_loss[0]), self._test_loss()
        self.state: dict[str, Any] = {
            "start": (train, test),
            "now": (1.0, 1.0),
            "fit_step": None,
            "generalise_step": None,
            "peak": 1.0,
            "late": np.inf,
            "split": None,
            "sampled": [],
            "shares": [],
            "norm": 1.0,
            "movement": 0.0,
            "alignment": [],
        }

    def follow(self, step: int) -> None:
        """After every step: losses as shares of their start, and the levels they cross."""
        state = self.state
        start_train, start_test = state["start"]
        test = self._test_loss() / start_test
        train = float(self.descent.train_loss[0]) / start_train
        if state["fit_step"] is None and train < FRACTION:
            state["fit_step"], state["movement"] = step, float(self.descent.movement()[0])
        if state["generalise_step"] is None and test < FRACTION:
            state["generalise_step"], state["norm"] = step, float(self.descent.norm_ratio()[0])
        state["now"], state["peak"] = (train, test), max(state["peak"], test)
        if state["fit_step"] is not None:
            state["late"] = min(state["late"], test)

    def look(self, step: int, run: peira.Run) -> None:
        """Now and then: sampled test loss, parts of the exact one, linearised twin, alignment."""
        state, task = self.state, self.task
        start_train, start_test = state["start"]
        train, test = float(self.descent.train_loss[0]) / start_train, self._test_loss()
        sampled = float(np.mean((self.descent.predict(task.x_test)[0] - task.y_test) ** 2))
        few = slice(ALIGNED_ON)
        aligned = self.descent.alignment(task.x_test[few], task.y_test[few])
        state["alignment"].append(aligned)
        run.log(step, train=train, test=test / start_test, sampled=sampled / start_test)
        run.log(step, alignment=aligned, movement=float(self.descent.movement()[0]))
        if task.beta is not None:
            parts = self.descent.components(task.beta)
            for name in ("variance", "alignment", "linear"):
                run.log(step, **{f"{name}_part": getattr(parts, name) / start_test})
            state["sampled"].append(abs(sampled / test - 1))
            if state["fit_step"] is not None and state["generalise_step"] is None:
                state["shares"].append(parts.alignment / test)
        if self.twin is not None:
            linear = self._twin_loss(step)
            run.log(step, twin_test=linear / start_test)
            run.log(step, twin_train=self.twin.train_loss(step) / start_train)
            if state["split"] is None and not abs(test / linear - 1) <= AGREE:
                state["split"] = (step, train)

    def over(self, step: int) -> bool:
        """Both levels are crossed, and the curves go on long enough to show it."""
        fit, test = self.state["fit_step"], self.state["generalise_step"]
        return fit is not None and test is not None and step >= AFTER * max(fit, test)

    def measured(self, budget: int) -> Measured:
        """The metrics of the run."""
        state = self.state
        fit, generalise = state["fit_step"], state["generalise_step"]
        train, test = state["now"]
        found: Measured = {
            **times(fit, generalise, budget),
            "peak_test": state["peak"],
            "final_train": train,
            "final_test": test,
            "late_test": test if fit is None else state["late"],
            "movement": state["movement"] if fit else float(self.descent.movement()[0]),
            "norm_ratio": state["norm"] if generalise else float(self.descent.norm_ratio()[0]),
            "alignment_start": state["alignment"][0],
            "alignment_end": state["alignment"][-1],
        }
        if state["sampled"]:
            found["decomposition_error"] = float(np.median(state["sampled"]))
        if state["shares"]:
            found["alignment_share"] = float(np.mean(state["shares"]))
        if self.kernel_loss is not None:
            step, train_then = state["split"] or (budget, train)
            found |= {
                "split_step": float(step),
                "train_at_split": train_then,
                "kernel_test": self.kernel_loss / state["start"][1],
                "peak_over_kernel": state["peak"] * state["start"][1] / self.kernel_loss,
            }
        return found

    def state_dict(self) -> dict[str, Any]:
        """What was kept so far."""
        return copy.deepcopy(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`."""
        self.state = copy.deepcopy(state)

    def _test_loss(self) -> float:
        if self.task.beta is not None:
            return self.descent.components(self.task.beta).total
        return float(np.mean((self.descent.predict(self.task.x_test)[0] - self.task.y_test) ** 2))

    def _twin_loss(self, step: float) -> float:
        assert self.twin is not None
        if self.task.beta is not None:
            return self.twin.components(self.task.beta, step).total
        start = 0.0
        if not self.descent.centred:
            start = self.descent.initial(self.task.x_test)[0]
        outputs = start + self.twin.predict(self.task.x_test, step)
        return float(np.mean((outputs - self.task.y_test) ** 2))


def times(fit: float | None, generalise: float | None, budget: int) -> Measured:
    """Steps until the losses came down, and their ratio, censored where one did not come."""
    never = peira.Censored(after=budget)
    found: Measured = {"fit_step": fit or never, "generalise_step": generalise or never}
    if fit:
        found["gap"] = generalise / fit if generalise else peira.Censored(after=budget / fit)
    return found


def measure_flow(cell: Cell, run: peira.Run) -> Measured:
    """The order parameters' differential equation, on the clock of the steps."""
    task, descent = polynomial(cell, run.seed)
    assert isinstance(descent, Descent) and task.beta is not None
    at = logarithmic_steps(run.budget(cell.steps), per_decade=40)
    beta, rows = task.beta, []
    for time, factor in gradient_flow(descent, at):
        descent.load_state_dict({"factor": factor[None]})
        rows.append((float(descent.train_loss[0]), descent.components(beta).total))
        shares = [now / start for now, start in zip(rows[-1], rows[0], strict=True)]
        run.log(int(time), train=shares[0], test=shares[1])
        if max(shares) < FRACTION:
            break
    train, test = np.array(rows).T
    gap = grok_gap(train, test, FRACTION, steps=at[: len(rows)])
    return {
        **times(gap.train_step, gap.test_step, run.budget(cell.steps)),
        "peak_test": float(test.max() / test[0]),
    }


def scaled(cell: Cell, seed: int) -> tuple[Split, ScaledOutput]:
    """Task and network of a cell that is no polynomial one."""
    assert cell.task != "polynomial"
    data = classification_task(cell.task, seed, modulus=cell.dimension, samples=cell.samples)
    network = scaled_network(
        cell.task,
        seed,
        alpha=cell.alpha,
        centred=cell.centred,
        pixels=data.train_inputs.shape[1],
        modulus=cell.dimension,
        width=cell.width or 200,
        gain=cell.norm,
        kaiming=cell.kaiming,
    )
    return data, network


def measure_scaled(cell: Cell, run: peira.Run) -> Measured:
    """Train a network with a scaled output on modular addition or pictures."""
    assert cell.task != "polynomial"
    recipe = RECIPES[cell.task]
    if cell.weight_decay is not None:
        recipe = replace(recipe, weight_decay=cell.weight_decay)
    data, model = scaled(cell, run.seed)
    data, model = data.to(run.device), model.to(run.device)
    reference = reference_loss(recipe.loss, len(data.train_labels.unique()))
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    probe = data.test_inputs[:50]

    def gap(curve: Curve) -> GrokGap:
        return grok_gap(
            curve.train_loss, curve.test_loss, recipe.fraction, steps=curve.steps,
            reference=reference,
        )  # fmt: skip

    def done(curve: Curve) -> bool:
        return gap(curve).ratio is not None

    curve = train_scaled(
        model, data, recipe, cell.steps, lambda save: run.steps(cell.steps, save), done
    )
    for step, train, test, accuracy in zip(*vars(curve).values(), strict=True):
        run.log(step, train=train / reference, test=test / reference, test_accuracy=accuracy)
    found, after = gap(curve), model.model.state_dict()
    measured: Measured = {
        **times(found.train_step, found.test_step, run.budget(cell.steps)),
        "peak_test": max(curve.test_loss) / reference,
        "final_train": curve.train_loss[-1] / reference,
        "final_test": curve.test_loss[-1] / reference,
        "test_accuracy": curve.test_accuracy[-1],
        "movement": relative_weight_change(before, after) ** 2,
    }
    # The Transformer's 114 outputs by 226,000 weights make a kernel that costs minutes.
    if cell.task != "transformer":
        measured["kernel_change"] = laziness(model.model, before, after, probe).kernel_change
    return measured
