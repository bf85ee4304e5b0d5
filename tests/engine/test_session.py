"""A study in this process: batches, what a kill leaves, what changes a key, what goes wrong."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.engine.conftest import Watcher

from peira.cli.running import run_and_print
from peira.data.errors import MissingData
from peira.engine import conformance, runs, session
from peira.engine.errors import PeiraError, StudyError
from peira.engine.revision import code_fingerprint
from peira.engine.session import Request, finite, plan, record, run_study
from peira.engine.store import Store
from peira.engine.tasks import BatchWarning, Job, Outcome, outcome_from_json, perform

pytestmark = pytest.mark.filterwarnings("ignore:an edge is near")


@pytest.fixture(autouse=True)
def checkpoint_always(monkeypatch):
    monkeypatch.setattr(runs, "CHECKPOINT_EVERY", -1.0)
    monkeypatch.setattr(runs, "PROGRESS_EVERY", -1.0)


def run(watcher: Watcher | None = None, **asked):
    asked = {"scale": "smoke", **asked}
    return run_study(Request("tiny-coin", workers=0, **asked), watcher or Watcher())


def numbers(result) -> list[tuple]:
    return [(o.cell["method"], o.seed, o.metrics, o.censored, o.curves) for o in result.outcomes]


def failing_study(coin, monkeypatch, name: str) -> None:
    """Make `claims` or `figure` of the coin's study raise."""

    def fail(*_):
        raise RuntimeError("no\nthanks")

    monkeypatch.setattr(coin.module("study").Study, name, fail)


def test_a_batch_has_the_numbers_of_single_cells_even_when_killed(coin):
    killed = Watcher(stop_at=20)
    with pytest.raises(KeyboardInterrupt):
        run(killed, scale="together")
    resumed = Watcher()
    batched = run(resumed, scale="together")
    assert [len(job.tasks) for job in resumed.began] == [4, 2]
    assert resumed.steps[0] == 20, "the batch began anew"
    single = Watcher()
    alone = run(single, scale="together", settings={"together": "false"})
    assert [len(job.tasks) for job in single.began] == [1] * 6
    assert numbers(batched) == numbers(alone)
    # The second batch was whole; the time of a batch is shared out among its cells.
    assert len({outcome.seconds for outcome in batched.outcomes[:4]}) <= 4
    assert not any((coin.records.parents[1] / "scratch/tiny-coin/cells").iterdir())
    again = Watcher()
    assert numbers(run(again, scale="together")) == numbers(batched) and not again.began


def test_one_bad_cell_does_not_cost_its_batch(coin, home):
    cells = [cell.changed({"method": m, "together": True}) for m, cell in zip(
        ("fair", "broken"), coin.study().scale("smoke").conditions(), strict=True)]  # fmt: skip
    tasks = plan(coin, coin.study(), Request("tiny-coin", "smoke", seeds=1))
    job = Job(coin, tuple(replace(tasks[0], cell=cell) for cell in cells), home / "scratch")
    with pytest.warns(BatchWarning, match="measuring one by one"):
        good, bad = perform(job)
    assert not good.error and good.metrics
    assert bad.reason == "ValueError: the coin fell on its edge"


def test_conformance_sees_a_batch_that_differs(coin, monkeypatch, tmp_path):
    monkeypatch.setattr(conformance, "_tasks", lambda paper: plan(
        paper, paper.study(), Request("tiny-coin", "together")))  # fmt: skip
    outcomes = [o for task in conformance._tasks(coin) for o in perform(Job(coin, (task,), None))]
    monkeypatch.setattr(conformance, "_smoke", lambda paper: (outcomes, 0.0))
    conformance.batches_give_the_single_numbers(coin, tmp_path)
    outcomes[0].metrics["heads"] += 1e-12
    with pytest.raises(AssertionError, match="in a batch"):
        conformance.batches_give_the_single_numbers(coin, tmp_path / "other")


def test_what_was_measured_but_not_stored_is_not_measured_again(coin, monkeypatch):
    add = Store.add
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(scale="together")
    stored = []
    monkeypatch.setattr(
        Store, "add", lambda self, o, git: (stored.append(o.key), add(self, o, git))
    )
    watcher = Watcher()
    run(watcher, scale="together")
    assert [len(job.tasks) for job in watcher.began] == [2]
    assert len(stored) == len(set(stored)) == 6


def test_another_scale_leaves_an_interrupted_one_its_work(coin, home):
    with pytest.raises(KeyboardInterrupt):
        run(Watcher(stop_at=20), scale="small")
    scratch = home / "scratch/tiny-coin"
    left = sorted(path for path in scratch.rglob("*") if path.suffix in (".checkpoint", ".pickle"))
    assert {path.suffix for path in left} == {".checkpoint", ".pickle"}
    run()
    assert all(path.exists() for path in left)
    run(fresh=True)
    assert all(path.exists() for path in left if path.suffix == ".checkpoint")


def test_numbers_of_other_code_are_not_used(coin, monkeypatch):
    run()
    method = coin.folder / "method.py"
    source = method.read_text()
    watcher = Watcher()
    run(watcher)
    assert not watcher.began
    try:
        method.write_text(source + "\n# changed\n")
        run(watcher)
    finally:
        method.write_text(source)
    assert len(watcher.began) == 4
    run(watcher)
    assert len(watcher.began) == 4, "the old code's numbers are there still"


def test_the_revision_follows_lazy_and_relative_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    files = {
        "lazytoy/__init__.py": "",
        "lazytoy/data/__init__.py": "from peira.engine.lazy import exports\n"
        "__all__, __getattr__, __dir__ = exports(__name__, {'readers': ['read'], 'b': ['other']})",
        "lazytoy/data/readers.py": "def read(): ...",
        "lazytoy/data/b.py": "def other(): ...",
        "lazytoy/paper/__init__.py": "from .deep.inner import x",
        "lazytoy/paper/deep/__init__.py": "",
        "lazytoy/paper/deep/inner.py": "x = 1",
        "lazytoy/paper/study.py": "from lazytoy.data import read\nraise SystemExit('was run')",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = code_fingerprint("lazytoy.paper")
    for name, counts in {"data/readers": True, "paper/deep/inner": True, "data/b": False}.items():
        path = tmp_path / f"lazytoy/{name}.py"
        text = path.read_text()
        path.write_text(text + "\n")
        assert (code_fingerprint("lazytoy.paper") != before) == counts, name
        path.write_text(text)
    assert not any(name.startswith("lazytoy") for name in sys.modules)


def test_a_study_can_ask_for_fewer_seeds_of_a_cell(coin, monkeypatch):
    study = coin.module("study").Study
    monkeypatch.setattr(
        study, "seeds", lambda self, cell, asked: 1 if cell.method == "fair" else asked
    )
    result = run(seeds=3)
    assert [(o.cell["method"], o.seed) for o in result.outcomes] == [
        ("fair", 0), ("biased", 0), ("biased", 1), ("biased", 2)
    ]  # fmt: skip
    assert result.verdicts[0].n == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"on": "ray", "workers": 0}, "1 or more"),
        ({"workers": -1}, "0 \\(this process\\) or more"),
        ({"seeds": 0}, "at least 1"),
        ({"max_steps": 0}, "at least 1"),
    ],
)
def test_counts_out_of_range(coin, asked, said):
    with pytest.raises(StudyError, match=said):
        plan(coin, coin.study(), Request("tiny-coin", "smoke", **asked))


def test_a_figure_that_raises_costs_only_the_figure(coin, monkeypatch, capsys):
    run()
    assert (coin.records / "smoke/figure.png").exists()
    failing_study(coin, monkeypatch, "figure")
    assert run_and_print(Request("tiny-coin", "smoke", workers=0), as_json=True) == 1
    out, words = capsys.readouterr()
    assert len(json.loads(out)["claims"]) == 2
    assert "no figure RuntimeError: no (test_session.py, line" in " ".join(words.split())
    assert "Traceback" not in words
    assert coin.last()["verdicts"]
    # The figure of an earlier run must not stand beside these numbers.
    assert not (coin.records / "smoke/figure.png").exists()
    assert "data:image" not in (coin.records / "smoke/report.html").read_text()


def test_claims_that_raise_are_one_line(coin, monkeypatch):
    failing_study(coin, monkeypatch, "claims")
    with pytest.raises(
        StudyError, match=r"RuntimeError: no \(.*4 finished cells are kept$"
    ) as told:
        run()
    assert "\n" not in str(told.value)
    assert len(Store("tiny-coin").finished([t.key for t in plan(
        coin, coin.study(), Request("tiny-coin", "smoke"))])) == 4  # fmt: skip


def test_nothing_measured_is_judged_inconclusive(coin, monkeypatch):
    failing_study(coin, monkeypatch, "claims")
    failing_study(coin, monkeypatch, "measure_many")
    result = run()
    assert len(result.failed) == 4 and not result.no_figure
    assert {v.verdict for v in result.verdicts} == {"inconclusive"}
    assert "nothing was measured" in result.verdicts[0].note


@pytest.mark.parametrize("name", ["my home", "relative"])
def test_any_name_of_the_home_folder(coin, home, name, monkeypatch, tmp_path):
    place = tmp_path / name
    shutil.copytree(home, place)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEIRA_HOME", name)
    assert run_and_print(Request("tiny-coin", "smoke", workers=0), as_json=False) == 0
    assert {path.name for path in (place / "results/tiny-coin/smoke").iterdir()} == {
        "result.json", "figure.png", "figure.svg", "report.html"
    }  # fmt: skip
    watcher = Watcher()
    run(watcher)
    assert not watcher.began
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "home"])


def test_any_number_comes_back_from_the_store(coin):
    (task,) = plan(coin, coin.study(), Request("tiny-coin", "smoke", seeds=1))[:1]
    (outcome,) = perform(Job(coin, (task,), None))
    metrics = {"up": math.inf, "down": -math.inf, "none": math.nan, "tiny": 5e-324}
    points = ((1, "loss", math.inf), (2, "loss", math.nan), (2, "loss", 0.1))
    store = Store("tiny-coin")
    store.add(replace(outcome, metrics=metrics, curves=points), "abc")
    back = store.finished([task.key])[task.key]
    assert {k: repr(v) for k, v in back.metrics.items()} == {k: repr(v) for k, v in metrics.items()}
    assert sorted(map(repr, back.curves)) == sorted(map(repr, points))
    assert outcome_from_json(json.loads(json.dumps(vars(outcome)))) == outcome


@pytest.mark.parametrize("path", ["none/there.db", "text.db"])
def test_a_store_that_cannot_be_opened_is_said_at_once(tmp_path, path):
    (tmp_path / "text.db").write_text("not a database, but long enough to be read as one" * 99)
    began = time.monotonic()
    with pytest.raises(PeiraError, match="cannot be used"):
        Store("tiny-coin", f"sqlite:///{tmp_path / path}").reach()
    assert time.monotonic() - began < 20


def test_another_machines_unfinished_runs_are_left_alone(coin, monkeypatch):
    (task,) = plan(coin, coin.study(), Request("tiny-coin", "smoke", seeds=1))[:1]
    (outcome,) = perform(Job(coin, (task,), None))
    store = Store("tiny-coin")
    store.open()
    monkeypatch.setattr("mlflow.MlflowClient.set_terminated", lambda *_: None)
    for machine in ("here", "there"):
        monkeypatch.setattr("platform.node", lambda machine=machine: machine)
        store.add(outcome, "")
    store.open()
    left = [run.data.tags["peira.machine"] for run in store._runs("attributes.status = 'RUNNING'")]
    assert left == ["here"]


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        ({"tosses": 1.0}, "'tosses' has the name of another column"),
        ({"seed": 1.0}, "'seed' has the name of another column"),
        ({"seconds": 1.0}, "'seconds' has the name of another column"),
        ({"acc@1": 1.0}, "'acc@1' cannot be a metric's name"),
        ({"__x": 1.0}, "cannot be a metric's name"),
        ({"curve.x": 1.0}, "cannot be a metric's name"),
    ],
)
def test_metrics_that_would_be_lost_are_refused(coin, monkeypatch, measured, said):
    monkeypatch.setattr(coin.module("study").Study, "measure_many", lambda *_: [measured])
    (task,) = plan(coin, coin.study(), Request("tiny-coin", "smoke", seeds=1))[:1]
    (outcome,) = perform(Job(coin, (task,), None))
    assert outcome.reason.startswith("peira.engine.errors.StudyError") and said in outcome.reason


def test_versions_that_differ_are_all_named(coin):
    result = run()
    first = replace(result.outcomes[0], versions={"python": "3.0"})
    result = replace(result, outcomes=(first, *result.outcomes[1:]))
    assert record(result)["versions"]["python"].startswith("3.0 and 3.")


def test_numbers_of_numpy_become_json():
    import numpy as np

    value = {"n": np.int64(3), "yes": np.bool_(True), "x": np.float64("nan"), "y": [np.float32(1)]}
    assert json.dumps(finite(value)) == '{"n": 3, "yes": true, "x": null, "y": [1.0]}'


def test_a_worker_that_died_idle_costs_its_job_only(coin):
    from multiprocessing import Pipe

    from peira.engine.local import _Worker

    class Process:
        exitcode = -9

        def join(self) -> None:
            pass

    ours, theirs = Pipe()
    theirs.close()
    worker = _Worker(Process(), ours)
    worker.give(Job(coin, tuple(plan(coin, coin.study(), Request("tiny-coin", "smoke"))[:1]), None))
    (outcome,) = worker.receive(Watcher())
    assert "SIGKILL" in outcome.error and worker.job is None


def test_the_reason_is_the_line_that_names_the_error():
    text = (
        'Traceback (most recent call last):\n  File "a.py", line 1\n    x\nValueError: one\ntwo\n'
    )
    assert Outcome("", "", "", {}, 0, error=text).reason == "ValueError: one"
    assert Outcome("", "", "", {}, 0, error="WorkerDied: x").reason == "WorkerDied: x"


def test_missing_data_stops_before_anything_is_measured(coin, monkeypatch):
    def missing(self, cell):
        raise MissingData("not at hand")

    monkeypatch.setattr(coin.module("study").Study, "inputs", missing)
    with pytest.raises(PeiraError, match=r"^not at hand$"):
        run()


def test_a_study_without_its_module_and_one_without_a_library(coin, tmp_path, monkeypatch):
    with pytest.raises(StudyError, match=r"has no nothing\.py"):
        coin.module("nothing")
    (Path(coin.folder) / "broken.py").write_text("import peira_tiny.coin.helpers\n")
    try:
        with pytest.raises(StudyError, match=r"peira_tiny\.coin\.helpers"):
            coin.module("broken")
    finally:
        (Path(coin.folder) / "broken.py").unlink()
    assert session.paper("tiny-coin") == coin
