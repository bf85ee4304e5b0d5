"""Loops that can be killed, randomness that is the same, work that is shared."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from peira.engine import runs
from peira.engine.cells import Censored
from peira.engine.errors import DiskError, StudyError
from peira.engine.runs import Run
from peira.engine.tasks import split_censored


class Kill(BaseException):
    pass


@pytest.fixture(autouse=True)
def checkpoint_always(monkeypatch):
    monkeypatch.setattr(runs, "CHECKPOINT_EVERY", -1.0)


def train(run: Run, steps: int = 12, kill_at: int | None = None) -> dict[str, object]:
    """A loop that draws from every generator and changes a module, an optimiser and a dict."""
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    state = {"best": 0.0}
    for step in run.steps(steps, save=(model, optimizer, state)):
        if step == kill_at:
            raise Kill
        x = torch.randn(4, 3, generator=run.generator) + torch.rand(1)
        noise = run.rng.normal() + np.random.normal() + random.random()
        loss = (model(x) ** 2).mean() + noise * model.bias.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state["best"] = max(state["best"], loss.item())
        run.log(step, loss=loss.item())
    return {"weights": model.weight.detach().clone(), **state}


def test_a_killed_loop_ends_with_the_numbers_of_an_uninterrupted_one(tmp_path):
    whole_run = Run(3)
    whole = train(whole_run)
    with pytest.raises(Kill):
        train(Run(3, tmp_path), kill_at=8)
    again = Run(3, tmp_path)
    resumed = train(again)
    assert torch.equal(whole["weights"], resumed["weights"])
    assert whole["best"] == resumed["best"]
    assert whole_run.curves == again.curves


def test_a_finished_loop_is_not_run_again(tmp_path):
    train(Run(3, tmp_path))
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters())
    assert list(Run(3, tmp_path).steps(12, save=(model, optimizer, {}))) == []


def test_two_loops_of_one_cell_resume_in_the_second(tmp_path):
    def measure(run: Run, kill_at: int | None = None) -> dict[str, float]:
        state = {"x": 0.0, "first": 0.0}
        for _ in run.steps(5, save=[state], name="first"):
            state["first"] += 1
            state["x"] += run.rng.random()
        for step in run.steps(5, save=[state], name="second"):
            if step == kill_at:
                raise Kill
            state["x"] *= run.rng.random()
        return state

    whole = measure(Run(0))
    with pytest.raises(Kill):
        measure(Run(0, tmp_path), kill_at=3)
    assert measure(Run(0, tmp_path)) == whole


def test_two_loops_need_two_names():
    run = Run(0)
    list(run.steps(1))
    with pytest.raises(StudyError, match="two loops named 'train'"):
        list(run.steps(1))


def test_steps_and_budget():
    assert list(Run(0).steps(3)) == [1, 2, 3]
    run = Run(0, max_steps=2)
    assert list(run.steps(3)) == [1, 2]
    assert run.budget(3) == 2 and run.budget(1) == 1


def test_seeds_pair_the_cells():
    first, second, other = Run(1), Run(1), Run(2)
    assert first.rng.random() == second.rng.random() != other.rng.random()
    draws = [torch.rand(2, generator=run.generator) for run in (first, second, other)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    Run(5)
    a = (torch.rand(1), np.random.rand(), random.random())
    Run(5)
    assert a == (torch.rand(1), np.random.rand(), random.random())


def test_shared_is_computed_once_and_leaves_the_random_state_alone(tmp_path):
    calls = []

    def costly(run: Run, width: int) -> np.ndarray:
        calls.append(width)
        return run.rng.random(width)

    def measure(folder) -> tuple[np.ndarray, float, float]:
        run = Run(7, shared=folder)
        return run.shared("net", costly, width=3), run.rng.random(), float(torch.rand(1))

    first, second, unshared = measure(tmp_path), measure(tmp_path), measure(None)
    assert calls == [3, 3]
    for values in zip(first, second, unshared, strict=True):
        assert np.array_equal(values[0], values[1]) and np.array_equal(values[0], values[2])
    Run(7, shared=tmp_path).shared("net", costly, width=4)
    Run(8, shared=tmp_path).shared("net", costly, width=3)
    Run(7, shared=tmp_path, revision="other code").shared("net", costly, width=3)
    assert calls == [3, 3, 4, 3, 3]


def test_two_that_ask_at_once_get_one_computation(tmp_path):
    calls = []
    go = threading.Event()

    def costly(run: Run) -> int:
        calls.append(1)
        go.wait(5)
        return 42

    got = []
    ask = [
        threading.Thread(target=lambda: got.append(Run(0, shared=tmp_path).shared("x", costly)))
        for _ in range(2)
    ]
    for thread in ask:
        thread.start()
    go.set()
    for thread in ask:
        thread.join()
    assert got == [42, 42] and calls == [1]


def test_a_killed_shared_computation_resumes(tmp_path):
    def net(run: Run, kill_at: int | None = None) -> torch.Tensor:
        return train(run, kill_at=kill_at)["weights"]

    whole = Run(3).shared("net", net)
    with pytest.raises(Kill):
        # The same settings, killed by hand half-way.
        Run(3, shared=tmp_path).shared("net", lambda run: net(run, kill_at=6))
    steps_done = []
    resumed = Run(
        3, shared=tmp_path, progress=lambda name, step, total: steps_done.append(step)
    ).shared("net", net)
    assert torch.equal(whole, resumed)


def test_censored_values_are_split_and_checked():
    assert split_censored({"a": 1, "t": Censored(after=30)}) == ({"a": 1.0, "t": 30.0}, ("t",))
    with pytest.raises(StudyError, match="metric 'a' is None"):
        split_censored({"a": None})


def test_settings_of_what_is_shared_are_plain_data(tmp_path):
    run = Run(0, shared=tmp_path)
    with pytest.raises(StudyError, match="settings of shared 'x' must be plain data"):
        run.shared("x", lambda run, mask: 1, mask=np.zeros(3))


def test_a_shared_folder_that_cannot_be_made_ends_the_study():
    with pytest.raises(DiskError, match="free space or choose another folder"):
        Run(0, shared=Path("/dev/null/x")).shared("x", lambda run: 1)
