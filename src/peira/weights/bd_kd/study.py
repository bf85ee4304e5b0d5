"""How the paper's claims are tested: the cells, what one cell measures, the verdicts."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

import peira
from peira.engine import verdict as v
from peira.nn.calibration import calibration_report, expected_calibration_error, fit_temperature
from peira.nn.networks import cifar_resnet, mlp
from peira.weights.bd_kd.distiller import OnlineDistiller, cosine_decay, kd_sgd, step_decay
from peira.weights.bd_kd.ensemble import EnsembleDistiller
from peira.weights.bd_kd.loss import BalancedDistillation, MutualLoss
from peira.weights.bd_kd.problems import (
    PictureBatches,
    Problem,
    data_paths,
    pictures,
    simulated,
)
from peira.weights.bd_kd.scheme import (
    SCHEMES,
    Scheme,
    entropy_gap,
    make_scheme,
    posterior_divergence,
    true_calibration_error,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Students that learn without a teacher.
ALONE = ("ce", "smoothing", "scaled")
METHODS = (*SCHEMES, "scaled")
# Epochs between looks at the validation set.
LOOK = 2


class Cell(peira.Cell):
    """One way to train a student, and its teacher where there is one."""

    method: Literal[
        "ce", "smoothing", "scaled", "kd", "dml", "kdcl", "switokd", "reverse", "sum", "bdkd",
        "inverted", "smooth", "dml-matched", "sum-matched",
    ] = "bdkd"  # fmt: skip
    task: Literal["digits", "gaussian", "mnist", "cifar10", "cifar100"] = "digits"
    noise: float = Field(0.25, ge=0, le=1, description="share of wrong labels, in every part")
    train: int = Field(1000, ge=1, description="training samples")
    network: Literal["mlp", "resnet"] = "mlp"
    teacher: int = Field(256, ge=1, description="width of its three layers, or depth of a ResNet")
    student: int = Field(16, ge=1, description="width of its layer, or depth of a ResNet")
    students: int = Field(1, ge=1, description="students that learn together; the first is judged")
    epochs: int = Field(40, ge=1)
    batch: int = Field(64, ge=1)
    learning_rate: float = Field(0.02, gt=0)
    schedule: Literal["steps", "cosine"] = "steps"
    nu: float = Field(2.0, gt=0, description="emphasis of the balance")
    T: float = Field(4.0, gt=0, description="temperature of the divergences")
    alpha: float = Field(1.0, ge=0, description="weight of the divergences")
    entropy_T: float | None = Field(
        None, gt=0, description="temperature of the entropies; T without"
    )


DIGITS = Cell()
CLEAN = Cell(noise=0.0)
# As many updates as CLEAN on a quarter of the data, so that labels alone are learned by heart.
FEW = Cell(noise=0.0, train=256, epochs=150)
SIMULATOR = Cell(task="gaussian", noise=0.0, train=500, teacher=128)


def several(base: Cell, methods: Sequence[str], **changes: Any) -> list[Cell]:
    """The same setting with each method."""
    return [base.changed({"method": method, **changes}) for method in methods]


def small_cells() -> list[Cell]:
    """Every method on noisy digits; the sweep of teachers; clean digits; the simulator."""
    return [
        *several(DIGITS, METHODS),
        *(
            DIGITS.changed(change)
            for change in ({"entropy_T": 1.0}, {"nu": 4.0}, {"T": 1.0}, {"students": 2})
        ),
        DIGITS.changed({"method": "dml", "T": 1.0}),
        *(
            cell
            for width in (16, 48, 128)
            for cell in several(DIGITS, ("dml", "bdkd"), teacher=width)
        ),
        *several(CLEAN, ("ce", "scaled", "kd", "dml", "sum", "bdkd")),
        *several(FEW, ("ce", "dml", "bdkd")),
        *several(SIMULATOR, ("ce", "kd", "dml", "sum", "bdkd", "inverted")),
    ]


def smoke_cells() -> list[Cell]:
    """Every code path, for two epochs."""
    tiny = {"train": 128, "teacher": 16, "student": 4, "epochs": 2}
    noisy, clean, simulator = (one.changed(tiny) for one in (DIGITS, CLEAN, SIMULATOR))
    resnet = {"network": "resnet", "teacher": 8, "student": 8, "train": 64, "epochs": 2}
    return [
        *several(noisy, METHODS),
        noisy.changed({"entropy_T": 1.0, "students": 2}),
        *several(noisy, ("dml", "bdkd"), teacher=8),
        *several(noisy, ("dml", "bdkd"), teacher=32),
        *several(clean, ("ce", "scaled", "kd", "dml", "bdkd")),
        *several(clean, ("ce", "dml", "bdkd"), train=64),
        *several(simulator, ("ce", "dml", "bdkd")),
        DIGITS.changed({**resnet, "schedule": "cosine"}),
        DIGITS.changed({**resnet, "method": "kd"}),
    ]


def mnist_cells() -> list[Cell]:
    """3,000 of MNIST's test pictures to train, the others to test; a lower learning rate too."""
    base = Cell(task="mnist", noise=0.0, train=3000)
    return [
        *several(base, ("ce", "scaled", "dml", "sum", "bdkd", "inverted")),
        *several(base, ("ce", "dml", "bdkd"), learning_rate=0.005),
    ]


def resnets(task: str, teacher: int, student: int, **changes: Any) -> Cell:
    """A pair of CIFAR ResNets in the published recipe."""
    settings = {"epochs": 240, "learning_rate": 0.05, "noise": 0.0, "train": 49_800, **changes}
    return Cell(network="resnet", task=task, teacher=teacher, student=student, **settings)


def paper_cells() -> list[Cell]:
    """CIFAR-100 and CIFAR-10 with ResNet pairs of growing gap."""
    main = resnets("cifar100", 110, 20)
    pairs = [("cifar100", 56, 20), ("cifar100", 32, 20), ("cifar100", 20, 20), ("cifar10", 110, 20)]
    return [
        *several(main, METHODS),
        *(
            cell
            for pair in pairs
            for cell in several(resnets(*pair), ("ce", "scaled", "kd", "dml", "sum", "bdkd"))
        ),
        main.changed({"students": 2}),
    ]


class Study(peira.Study[Cell]):
    """Students that learn from labels, a frozen teacher, or together with their teacher."""

    cell = Cell
    scales = {
        "smoke": peira.Scale(cells=smoke_cells, seeds=2),
        "small": peira.Scale(cells=small_cells, seeds=8),
        "mnist": peira.Scale(cells=mnist_cells, seeds=5),
        "reduced": peira.Scale(
            cells=several(
                resnets("cifar100", 56, 20, epochs=60, schedule="cosine"),
                ("ce", "scaled", "kd", "dml", "sum", "bdkd", "inverted"),
            ),
            seeds=3,
        ),
        "paper": peira.Scale(cells=paper_cells, seeds=3),
    }

    def seeds(self, cell: Cell, asked: int) -> int:
        """Five of eight where the settings we do not know of the paper are varied."""
        usual = (DIGITS.nu, DIGITS.T, DIGITS.entropy_T, DIGITS.students)
        varied = (cell.nu, cell.T, cell.entropy_T, cell.students) != usual
        return min(asked, 5) if varied and asked == 8 else asked

    def inputs(self, cell: Cell) -> dict[str, str]:
        paths = data_paths(cell.task)
        if not paths:
            return {}
        from peira.data import fingerprint

        return {cell.task: fingerprint(paths)}

    def batch(self, cell: Cell) -> Hashable | None:
        """The seeds of one cell train at once where the networks are perceptrons."""
        return cell if cell.network == "mlp" else None

    def measure(self, cell: Cell, run: peira.Run) -> dict[str, float]:
        if cell.network == "resnet":
            return measure_resnets(cell, run)
        return self.measure_many([cell], [run])[0]

    def measure_many(
        self, cells: Sequence[Cell], runs: Sequence[peira.Run]
    ) -> list[dict[str, float]]:
        return measure_perceptrons(cells[0], runs)

    def claims(self, table: pd.DataFrame) -> Iterator[v.Verdict]:
        from peira.weights.bd_kd.judge import verdicts

        return verdicts(self.claim, table)

    def figure(self, table: pd.DataFrame, curves: pd.DataFrame) -> Figure:
        from peira.weights.bd_kd.figure import draw

        return draw(table, curves)


def problem_of(cell: Cell, seed: int) -> Problem:
    """The data of a seed, the same for all methods."""
    if cell.task == "gaussian":
        return simulated(cell.train, seed)
    found = pictures(cell.task, cell.train, cell.noise, seed)
    return found if cell.network == "resnet" else flat(found)


def flat(problem: Problem) -> Problem:
    """The same with pictures as rows of pixels."""
    parts = {name: getattr(problem, name) for name in ("train", "validation", "test")}
    rows = {name: (x.flatten(1), y) for name, (x, y) in parts.items()}
    return Problem(**rows, true_labels=problem.true_labels)


def networks_of(cell: Cell, problem: Problem, seed: int) -> list[nn.Sequential]:
    """A teacher and its students at their initial weights, the same for all methods."""
    inputs, classes = problem.train[0].shape[1], int(problem.true_labels.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if cell.network == "resnet":
            depths = [cell.teacher, *[cell.student] * cell.students]
            return [
                cifar_resnet(depth, classes, shortcut="pad", channels=inputs) for depth in depths
            ]
        students = [mlp((inputs, cell.student, classes)) for _ in range(cell.students)]
        return [mlp((inputs, *[cell.teacher] * 3, classes)), *students]


def scheme_of(cell: Cell) -> Scheme:
    """Who learns what from whom."""
    if cell.method == "bdkd":
        student = BalancedDistillation(cell.nu, cell.T, cell.alpha, entropy_T=cell.entropy_T)
        return Scheme(student, MutualLoss(cell.T, cell.alpha))
    return make_scheme(
        "ce" if cell.method == "scaled" else cell.method, cell.nu, cell.T, cell.alpha
    )


def factor_of(cell: Cell, epoch: int) -> float:
    """Share of the learning rate in an epoch."""
    return (step_decay if cell.schedule == "steps" else cosine_decay)(epoch, cell.epochs)


def measure_perceptrons(cell: Cell, runs: Sequence[peira.Run]) -> list[dict[str, float]]:
    """Train the networks of several seeds of one cell at once."""
    problems = [problem_of(cell, run.seed) for run in runs]
    parts = ("train", "validation", "test")
    inputs, labels = (
        {part: torch.stack([getattr(one, part)[place] for one in problems]) for part in parts}
        for place in (0, 1)
    )
    pairs = [networks_of(cell, one, run.seed) for one, run in zip(problems, runs, strict=True)]
    sizes = [[_parameters(network) for network in pair] for pair in pairs]
    if cell.method in ALONE:
        pairs = [pair[1:] for pair in pairs]

    def distiller(networks: Sequence[Sequence[nn.Sequential]], scheme: Scheme) -> EnsembleDistiller:
        return EnsembleDistiller(
            networks, scheme, inputs["train"], labels["train"], [run.seed for run in runs],
            cell.batch, cell.learning_rate,
        )  # fmt: skip

    trained = distiller(pairs, scheme_of(cell))
    if cell.method == "kd":
        alone = distiller([pair[:1] for pair in pairs], Scheme())
        for epoch in runs[0].steps(cell.epochs, save=(alone,), name="teacher"):
            alone.epoch(factor_of(cell, epoch))
        trained.networks[0] = alone.networks[0]
    state: dict[str, Any] = {"gaps": []}
    for epoch in runs[0].steps(cell.epochs, save=(trained, state)):
        trained.epoch(factor_of(cell, epoch))
        if epoch % LOOK == 0:
            logits = trained.logits(inputs["validation"])
            gaps = _gaps(cell, logits)
            state["gaps"] = [*state["gaps"], gaps]
            for place, run in enumerate(runs):
                members = [one[place] for one in logits]
                _look(run, epoch, members, labels["validation"][place], gaps[place])
    found = {part: trained.logits(inputs[part]) for part in ("validation", "test")}
    if problems[0].truth is not None:
        truth = torch.stack([one.truth for one in problems if one.truth is not None])
        found["truth"] = trained.logits(truth)
    paused = (trained.state["paused"] / max(1, trained.state["epoch"])).tolist()
    measured = []
    for place, problem in enumerate(problems):
        logits = {part: [one[place] for one in members] for part, members in found.items()}
        measured.append(
            judged(cell, problem, logits)
            | _gap_measures([gaps[place] for gaps in state["gaps"]])
            | {"paused": paused[place], "size_ratio": sizes[place][0] / sizes[place][1]}
        )
    return measured


def measure_resnets(cell: Cell, run: peira.Run) -> dict[str, float]:
    """Train one pair of convolutional networks."""
    problem = problem_of(cell, run.seed)
    networks = [network.to(run.device) for network in networks_of(cell, problem, run.seed)]
    augment = cell.task in ("cifar10", "cifar100")
    x, y = (part.to(run.device) for part in problem.train)

    def distiller(scheme: Scheme) -> OnlineDistiller:
        return OnlineDistiller(
            networks[0], networks[1:], scheme, amp=run.device.type == "cuda",
            optimizer=lambda weights: kd_sgd(weights, cell.learning_rate),
        )  # fmt: skip

    scheme = scheme_of(cell)
    if cell.method in ALONE:
        scheme.frozen = True
    if cell.method == "kd":
        settings = cell.model_dump()
        state = run.shared("teacher", teacher_alone, settings=settings)
        networks[0].load_state_dict(state)
    trained, batches = distiller(scheme), PictureBatches(x, y, cell.batch, run.seed, augment)
    held = {part: [getattr(problem, part)] for part in ("validation", "test")}
    state = {"gaps": []}
    for epoch in run.steps(cell.epochs, save=(trained, batches, state)):
        trained.epoch(batches, factor=factor_of(cell, epoch))
        if epoch % LOOK == 0:
            logits, labels = trained.logits(_chunks(held["validation"]))
            (gap,) = _gaps(cell, [one.unsqueeze(0) for one in logits])
            state["gaps"] = [*state["gaps"], gap]
            _look(run, epoch, logits, labels, gap)
    logits = {part: trained.logits(_chunks(data))[0] for part, data in held.items()}
    if cell.method in ALONE:
        logits = {part: both[1:] for part, both in logits.items()}
    sizes = [_parameters(network) for network in networks]
    paused = sum(row["paused"] for row in trained.rows) / max(1, len(trained.rows))
    return (
        judged(cell, problem, logits)
        | _gap_measures(state["gaps"])
        | {"paused": paused, "size_ratio": sizes[0] / sizes[1]}
    )


def teacher_alone(run: peira.Run, settings: dict[str, Any]) -> dict[str, Tensor]:
    """Weights of a teacher trained on the labels, for distillation after the fact."""
    cell = Cell(**settings)
    problem = problem_of(cell, run.seed)
    augment = cell.task in ("cifar10", "cifar100")
    teacher, student, *_ = (one.to(run.device) for one in networks_of(cell, problem, run.seed))
    # The teacher learns in the student's place, beside a frozen network that nobody listens to.
    alone = OnlineDistiller(
        student, teacher, Scheme(frozen=True), amp=run.device.type == "cuda",
        optimizer=lambda weights: kd_sgd(weights, cell.learning_rate),
    )  # fmt: skip
    x, y = (part.to(run.device) for part in problem.train)
    batches = PictureBatches(x, y, cell.batch, run.seed, augment)
    for epoch in run.steps(cell.epochs, save=(alone, batches)):
        alone.epoch(batches, factor=factor_of(cell, epoch))
    return {name: value.cpu() for name, value in teacher.state_dict().items()}


def judged(cell: Cell, problem: Problem, logits: dict[str, list[Tensor]]) -> dict[str, float]:
    """What is reported of the networks of one cell and seed; the student's have no prefix."""
    student = 1 if len(logits["test"]) > 1 else 0
    validation, test = logits["validation"][student].cpu(), logits["test"][student].cpu()
    temperature = fit_temperature(validation, problem.validation[1])
    labels = problem.test[1]
    scaled = (test / temperature).softmax(-1)
    probs = scaled if cell.method == "scaled" else test.softmax(-1)
    found = calibration_report(probs, labels)
    found |= {
        "temperature": temperature,
        "temperature_distance": abs(float(torch.tensor(temperature).log())),
        "scaled_ece": expected_calibration_error(scaled, labels),
    }
    if cell.noise:
        true = calibration_report(probs, problem.true_labels)
        found |= {f"true_label_{name}": true[name] for name in ("accuracy", "ece")}
    if student:
        teacher = calibration_report(logits["test"][0].cpu().softmax(-1), labels)
        found |= {f"teacher_{name}": teacher[name] for name in ("accuracy", "ece", "nll")}
    if problem.posterior is not None and problem.truth is not None:
        known = problem.posterior(problem.truth)
        shown = logits["truth"][student].softmax(-1)
        found["true_error"] = true_calibration_error(shown, known)
        found["posterior_divergence"] = posterior_divergence(shown, known)
        found["ece_bias"] = found["ece"] - found["true_error"]
    return found


def _chunks(data: Sequence[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in data:
        yield from zip(x.split(512), y.split(512), strict=True)


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _gaps(cell: Cell, logits: Sequence[Tensor]) -> list[dict[str, float]]:
    """Of each member mean |H_student - H_teacher| at the loss's temperature and at 1."""
    if len(logits) < 2 or cell.method in ALONE:
        return [{} for _ in range(len(logits[0]))]
    at_T, at_one = (entropy_gap(logits[1], logits[0], T).tolist() for T in (cell.T, 1.0))
    return [
        {"entropy_gap": warm, "entropy_gap_1": cold}
        for warm, cold in zip(at_T, at_one, strict=True)
    ]


def _gap_measures(gaps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the training: a gap that falls faster has the smaller mean."""
    if not gaps or not gaps[0]:
        return {}
    names = ("entropy_gap", "entropy_gap_1")
    means = {f"mean_{name}": sum(gap[name] for gap in gaps) / len(gaps) for name in names}
    return means | {f"final_{name}": gaps[-1][name] for name in names}


def _look(
    run: peira.Run, epoch: int, logits: Sequence[Tensor], labels: Tensor, gaps: dict[str, float]
) -> None:
    student = logits[1] if len(logits) > 1 else logits[0]
    report = calibration_report(student.cpu().softmax(-1), labels.cpu())
    run.log(epoch, **{f"val_{name}": report[name] for name in ("accuracy", "ece", "nll")}, **gaps)
