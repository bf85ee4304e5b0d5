"""What every paper must hold to, built in or plugged in.

Each check takes a `Paper` and a scratch folder and raises `AssertionError` or `PeiraError` with
what is wrong. A plug-in's tests can run them all:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_conforms(check, tmp_path):
        check(paper("my-paper"), tmp_path)
"""

from __future__ import annotations

import inspect
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path

from peira.engine import runs
from peira.engine.catalogue import Paper
from peira.engine.errors import nearest
from peira.engine.files import write_json
from peira.engine.report import write_report
from peira.engine.session import Request, Result, draw, group, judge, plan, record
from peira.engine.tasks import BatchWarning, Job, Outcome, Task, perform

SMOKE_SECONDS = 10.0


class _Killed(BaseException):
    """Stands for a kill: nothing in a cell may catch it."""


def card_is_valid(paper: Paper, folder: Path) -> None:
    """The card reads, and has a title, claims with published numbers, data and an example."""
    card = paper.card
    assert card.slug == paper.slug
    compile(card.example, f"{paper.slug}: example of card.toml", "exec")


def public_names_import(paper: Paper, folder: Path) -> None:
    """The card's public names exist where a person imports them, and have docstrings."""
    method = paper.module("method")
    room = import_module(paper.package.rsplit(".", 1)[0])
    for name in paper.card.public:
        found = getattr(method, name, None)
        assert found is not None, f"method.py has no {name}; {nearest(name, dir(method))}"
        elsewhere = getattr(room, name, found)
        assert elsewhere is found, f"{name} of {room.__name__} is another paper's"
        if callable(found):
            assert inspect.getdoc(found), f"{name} has no docstring"


def commands_are_documented(paper: Paper, folder: Path) -> None:
    """`use.py` names its commands, and each says what it does and has typed parameters."""
    module = paper.module("use")
    names = getattr(module, "__all__", [])
    assert names, "use.py: __all__ must name the commands"
    for name in names:
        command = getattr(module, name)
        assert inspect.getdoc(command), f"{name} has no docstring"
        for parameter in inspect.signature(command).parameters.values():
            assert parameter.annotation is not parameter.empty, f"{name}: {parameter.name} untyped"


def scales_are_there(paper: Paper, folder: Path) -> None:
    """The study has the scales smoke, small and paper, the latter two with three seeds or more.

    Deterministic studies have one seed: their cells say so by having no random draw to repeat.
    """
    scales = paper.study().scales
    assert {"smoke", "small", "paper"} <= set(scales), f"scales: {sorted(scales)}"
    for name in ("smoke", "small", "paper"):
        assert scales[name].conditions(), f"{name} has no cells"


def smoke_is_quick_and_judged(paper: Paper, folder: Path) -> None:
    """`smoke` runs in 10 s without data, every claim gets its verdict, figure and report draw."""
    outcomes, seconds = _smoke(paper)
    assert not any(outcome.error for outcome in outcomes), outcomes[0].error
    assert seconds < SMOKE_SECONDS * _patience(), f"smoke took {seconds:.1f} s"
    study = paper.study()
    verdicts = judge(study, outcomes)
    assert [verdict.claim for verdict in verdicts] == paper.card.ids()
    draw(study, outcomes, folder)
    assert (folder / "figure.png").stat().st_size > 5000
    with _home(folder):
        result = Result(Request(paper.slug, "smoke"), verdicts, outcomes, folder, "", seconds)
        write_json(folder / "result.json", record(result))
        page, _ = write_report([paper.slug], folder / "report.html", folder)
        text = page.read_text(encoding="utf-8")
    assert "data:image/png;base64," in text
    assert all(claim.id in text for claim in paper.card.claims)


def same_seed_gives_same_numbers(paper: Paper, folder: Path) -> None:
    """Every smoke cell, measured again, gives the same numbers to the last bit."""
    for before, task in zip(_smoke(paper)[0], _tasks(paper), strict=True):
        (again,) = perform(Job(paper, (task,), None))
        assert not again.error, again.error
        assert _same(before, again), f"{task.label}: {before.metrics} then {again.metrics}"


def resume_gives_same_numbers(paper: Paper, folder: Path) -> None:
    """A cell killed in its loop and started again ends with the uninterrupted numbers."""
    for before, task in _looping(paper):
        job = Job(paper, (task,), folder)
        with _checkpoints_at_every_step():
            try:
                perform(job, _kill_at_half())
            except _Killed as kill:
                written = any(folder.rglob("*.checkpoint"))
                assert written or kill.args[0] == 1, f"{task.label}: no checkpoint was written"
            (after,) = perform(job)
        assert not after.error, after.error
        assert _same(before, after), f"{task.label}: {before.metrics}, resumed {after.metrics}"


def batches_give_the_single_numbers(paper: Paper, folder: Path) -> None:
    """Cells measured together, killed half-way and resumed, have the numbers of single ones."""
    alone = {outcome.key: outcome for outcome in _smoke(paper)[0]}
    for job in group(paper, paper.study(), _tasks(paper), folder):
        if len(job.tasks) == 1:
            continue
        # A batch that fails is measured one by one with a warning: here that is an error.
        with _checkpoints_at_every_step(), warnings.catch_warnings():
            warnings.simplefilter("error", BatchWarning)
            with suppress(_Killed):
                perform(job, _kill_at_half())
            outcomes = perform(job)
        for outcome in outcomes:
            single = alone[outcome.key]
            assert not outcome.error, outcome.error
            assert _same(single, outcome), (
                f"{outcome.label}: {single.metrics} alone, {outcome.metrics} in a batch"
            )


CHECKS: tuple[Callable[[Paper, Path], None], ...] = (
    card_is_valid,
    public_names_import,
    commands_are_documented,
    scales_are_there,
    smoke_is_quick_and_judged,
    same_seed_gives_same_numbers,
    resume_gives_same_numbers,
    batches_give_the_single_numbers,
)


def _tasks(paper: Paper) -> list[Task]:
    return plan(paper, paper.study(), Request(paper.slug, "smoke"))


@cache
def _smoke(paper: Paper) -> tuple[tuple[Outcome, ...], float]:
    study = paper.study()
    began = time.perf_counter()
    outcomes: list[Outcome] = []
    for task in plan(paper, study, Request(paper.slug, "smoke")):
        outcomes += perform(Job(paper, (task,), None))
    return tuple(outcomes), time.perf_counter() - began


def _looping(paper: Paper) -> list[tuple[Outcome, Task]]:
    """Up to three smoke cells, of different kinds where there are."""
    pairs = list(zip(_smoke(paper)[0], _tasks(paper), strict=True))
    return pairs[:: max(1, len(pairs) // 3)][:3]


def _same(a: Outcome, b: Outcome) -> bool:
    def close(x: float, y: float) -> bool:
        return x == y or (math.isnan(x) and math.isnan(y))

    timing = {name for name in a.metrics if "seconds" in name or "speed" in name}
    names = set(a.metrics) - timing
    return (
        names == set(b.metrics) - timing
        and all(close(a.metrics[name], b.metrics[name]) for name in names)
        and a.censored == b.censored
        and [point[:2] for point in a.curves] == [point[:2] for point in b.curves]
        and all(close(p[2], q[2]) for p, q in zip(a.curves, b.curves, strict=True))
    )


def _kill_at_half() -> Callable[[str, int, int], None]:
    def progress(name: str, step: int, total: int) -> None:
        if step >= max(1, total // 2):
            raise _Killed(step)

    return progress


@contextmanager
def _checkpoints_at_every_step() -> Iterator[None]:
    before = runs.CHECKPOINT_EVERY, runs.PROGRESS_EVERY
    runs.CHECKPOINT_EVERY = runs.PROGRESS_EVERY = -1.0
    try:
        yield
    finally:
        runs.CHECKPOINT_EVERY, runs.PROGRESS_EVERY = before


@contextmanager
def _home(folder: Path) -> Iterator[None]:
    before = os.environ.get("PEIRA_HOME")
    os.environ["PEIRA_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PEIRA_HOME"]
        else:
            os.environ["PEIRA_HOME"] = before


def _patience() -> float:
    """Slower machines and test runs side by side get more time, by `PEIRA_PATIENCE`."""
    return float(os.environ.get("PEIRA_PATIENCE", "1"))
