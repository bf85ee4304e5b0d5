"""`peira run` on a plug-in paper: kill and resume, failures, workers, Ray, store, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.conftest import command, environment


def verdicts(finished: subprocess.CompletedProcess[str]) -> list[dict]:
    assert finished.returncode in (0, 1), finished.stderr
    return json.loads(finished.stdout)["claims"]


def rows(home, scale: str = "smoke") -> list[dict]:
    result = json.loads((home / f"results/tiny-coin/{scale}/result.json").read_text())
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result["rows"]]


def start(plugin, home, *words) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("run", "tiny-coin", *words),
        env=environment(plugin, home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_study_is_run_judged_drawn_and_stored(peira, home):
    finished = peira("run", "tiny-coin", "--json")
    assert finished.returncode == 0, finished.stderr
    data = json.loads(finished.stdout)
    assert set(data) == {"paper", "scale", "seeds", "claims", "failed", "store", "report"}
    assert (data["paper"], data["scale"], data["seeds"]) == ("tiny-coin", "small", 5)
    first = data["claims"][0]
    assert first["verdict"] == "supported"
    assert first["ci"][0] < first["effect"] < first["ci"][1]
    # 0.7 - 0.5 with 400 throws and 5 seeds: standard error of the mean difference 0.015.
    assert abs(first["effect"] - 0.2) < 0.06
    assert first["published"]["value"] == 0.2
    page = Path(data["report"]).read_text()
    assert "data:image/png;base64," in page and "peira run tiny-coin --scale small" in page
    assert "<script" not in page and "http-equiv" not in page
    assert "10/10 cells" in finished.stderr

    from mlflow import MlflowClient

    client = MlflowClient(data["store"])
    experiment = client.get_experiment_by_name("peira/tiny-coin")
    stored = client.search_runs([experiment.experiment_id])
    assert len(stored) == 10
    run = next(r for r in stored if r.data.params["method"] == "biased")
    assert {"tosses", "seed"} <= set(run.data.params)
    assert {"heads", "tenth"} <= set(run.data.metrics)
    assert "peira.version.numpy" in run.data.tags and "peira.git" in run.data.tags
    curve = client.get_metric_history(run.info.run_id, "curve.heads")
    assert len(curve) == 400 and curve[-1].value == run.data.metrics["heads"] * 400

    again = peira("run", "tiny-coin", "--json")
    assert json.loads(again.stdout)["claims"] == data["claims"]
    assert "cells measured" not in again.stderr
    assert len(client.search_runs([experiment.experiment_id])) == 10

    shown = json.loads(peira("show", "tiny-coin", "--json").stdout)
    assert shown["last_run"]["scale"] == "small"
    listed = json.loads(peira("list", "tiny-coin", "--json").stdout)
    assert listed[0]["verdicts"] == {"supported": 2}
    out = home / "out"
    reported = peira("report", "tiny-coin", "--out", out, "--json")
    assert json.loads(reported.stdout)["papers"] == ["tiny-coin"]
    assert "Measured" in (out / "peira-report.html").read_text()


def test_numbers_do_not_depend_on_the_workers(peira, home):
    tables = []
    for workers in (0, 1, 3):
        finished = peira("run", "tiny-coin", "--scale", "smoke", "--fresh", "--workers", workers)
        assert finished.returncode == 0, finished.stderr
        tables.append(rows(home))
    assert tables[0] == tables[1] == tables[2]
    assert len(tables[0]) == 4


def test_ray_gives_the_same_numbers(peira, home):
    pytest.importorskip("ray")
    assert peira("run", "tiny-coin", "--scale", "smoke").returncode == 0
    here = rows(home)
    finished = peira(
        "run", "tiny-coin", "--scale", "smoke", "--fresh", "--on", "ray", "--workers", 2
    )
    assert finished.returncode == 0, finished.stderr
    assert rows(home) == here


def test_a_failing_cell_is_recorded_and_the_others_go_on(peira, home):
    words = ["run", "tiny-coin", "--scale", "failing", "--json"]
    finished = peira(*words)
    assert finished.returncode == 1
    data = json.loads(finished.stdout)
    assert [f["cell"]["method"] for f in data["failed"]] == ["broken"] * 3 + ["lethal"] * 3
    assert data["failed"][0]["error"] == "ValueError: the coin fell on its edge"
    assert "SIGKILL" in data["failed"][3]["error"]
    assert "broken, seed 1: ValueError" in finished.stderr
    assert "Traceback" not in finished.stderr
    # What a cell prints and warns of is words: standard output held nothing but the JSON.
    assert (
        "printed where data should be" in finished.stderr and "an edge is near" in finished.stderr
    )
    assert data["claims"][0]["n"] == 3
    # Failed cells are tried again, finished ones are not.
    again = peira(*words)
    assert "6/6 cells" in again.stderr and again.returncode == 1

    from mlflow import MlflowClient

    client = MlflowClient(data["store"])
    experiment = client.get_experiment_by_name("peira/tiny-coin").experiment_id
    broken = client.search_runs([experiment], "params.method = 'broken'")
    # One run for a cell and seed, however often it was tried.
    assert [run.info.status for run in broken] == ["FAILED"] * 3
    assert "the coin fell on its edge" in broken[0].data.tags["peira.error"]


def test_kill_9_then_resume(plugin, home, peira):
    """Finished cells are not repeated, the cut one continues, and the numbers are the same."""
    words = ("--scale", "paper", "--workers", "2")
    running = start(plugin, home, *words)
    cells = home / "scratch/tiny-coin/cells"
    wait_for(lambda: len(list(home.glob("scratch/tiny-coin/cells/*/train.checkpoint"))) >= 2)
    running.send_signal(signal.SIGKILL)
    running.wait()
    # Workers end with their coordinator, so nothing writes beside the next run.
    left = {path: path.stat().st_mtime_ns for path in cells.rglob("*")}
    time.sleep(1.5)
    assert left == {path: path.stat().st_mtime_ns for path in cells.rglob("*")}

    began = time.monotonic()
    resumed = peira("run", "tiny-coin", *words, "--json")
    seconds = time.monotonic() - began
    assert resumed.returncode == 0, resumed.stderr
    interrupted = rows(home, "paper")
    fresh = peira(
        "run", "tiny-coin", *words, "--fresh", "--json", "--set", "pause=0", "--workers", "1"
    )
    plain = [{**row, "pause": 0.25} for row in rows(home, "paper-changed")]
    assert interrupted == plain
    assert verdicts(resumed) == verdicts(fresh)
    # 2 x 2 cells of 40 throws at 0.25 s on two workers are 20 s; some were already done.
    assert seconds < 20 + 10


def test_ctrl_c_keeps_what_is_finished(plugin, home, peira):
    running = start(plugin, home, "--scale", "paper", "--workers", "1")
    wait_for(lambda: any((home / "scratch/tiny-coin/cells").glob("*/train.checkpoint")))
    running.send_signal(signal.SIGINT)
    _, words = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "the same command continues" in words and "Traceback" not in words


def test_a_second_run_at_the_same_time_is_refused(plugin, home, peira):
    running = start(plugin, home, "--scale", "paper")
    try:
        wait_for((home / "scratch/tiny-coin/lock").exists)
        wait_for(lambda: any((home / "scratch/tiny-coin").glob("cells")) or running.poll())
        second = peira("run", "tiny-coin", "--scale", "smoke")
    finally:
        running.kill()
        running.communicate()
    assert second.returncode == 2
    assert "another `peira run tiny-coin` is at work" in second.stderr
    # The lock goes with the process that held it.
    assert peira("run", "tiny-coin", "--scale", "smoke").returncode == 0


def test_cells_set_seeds_and_max_steps(peira, home):
    finished = peira(
        "run", "tiny-coin", "--scale", "smoke", "--cells", "method=fair", "--set", "tosses=30",
        "--seeds", "3", "--max-steps", "7", "--json",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    table = rows(home, "smoke-changed")
    assert [row["seed"] for row in table] == [0, 1, 2]
    assert {row["method"] for row in table} == {"fair"}
    assert {row["tosses"] for row in table} == {30}
    assert all(row["tenth"] == 7 and row["tenth_censored"] for row in table)
    assert verdicts(finished)[0]["verdict"] == "inconclusive"
    # Another experiment than the scale as written: not what `show` calls its last verdicts.
    assert json.loads(peira("show", "tiny-coin", "--json").stdout)["last_run"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "tiny-con"], "did you mean 'tiny-coin'?"),
        (["show", "tiny-con"], "did you mean 'tiny-coin'?"),
        (["run", "tiny-coin", "--scale", "smal"], "did you mean 'small'?"),
        (["run", "tiny-coin", "--set", "toses=3"], "did you mean 'tosses'?"),
        (["run", "tiny-coin", "--set", "tosses=0"], "greater than or equal to 1; got '0'"),
        (["run", "tiny-coin", "--set", "tosses"], "expected NAME=VALUE"),
        (["run", "tiny-coin", "--cells", "method=magic"], "'fair', 'biased'"),
        (["run", "tiny-coin", "--cells", "method=lethal"], "no cell of this scale matches"),
        (["run", "tiny-coin", "--seeds", "0"], "at least 1 is needed"),
        (["run", "tiny-coin", "--max-steps", "0"], "at least 1 is needed"),
        (["run", "tiny-coin", "--workers", "-1"], "0 (this process) or more"),
        (["run", "tiny-coin", "--store", "http://127.0.0.1:9"], "cannot be used"),
        (["run", "tiny-coin", "--store", "nonsense://x"], "cannot be used"),
        (["list", "--field", "tinny"], "did you mean 'tiny'?"),
        (["list", "zebra"], "no paper has all of these words"),
        (["report", "tiny-coin"], "no results yet"),
        (["use", "tiny-con", "toss"], "did you mean 'tiny-coin'?"),
        (["new", "tiny-coin", "--field", "x"], "there is a paper 'tiny-coin' already"),
        (["new", "Bad Name", "--field", "x"], "lower-case words joined by dashes"),
    ],
)
def test_bad_input_is_one_line_and_status_2(peira, words, said):
    finished = peira(*words)
    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert said in finished.stderr
    assert finished.stderr.count("\n") == 1 and "Traceback" not in finished.stderr


def test_a_home_that_cannot_be_written(peira):
    finished = peira("run", "tiny-coin", "--scale", "smoke", PEIRA_HOME="/dev/null/peira")
    assert finished.returncode == 2
    assert "set PEIRA_HOME" in finished.stderr and finished.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_one_line_and_loses_nothing(peira, tmp_path, empty_store):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount a tmpfs here")
    store = f"sqlite:///{tmp_path}/store.db"
    try:
        assert peira(
            "run", "tiny-coin", "--scale", "smoke", "--store", store, PEIRA_HOME=str(small)
        ).returncode == 0  # fmt: skip
        for size in (1 << 16, 1 << 10, 1):
            _fill(small / f"ballast{size}", size)
        full = peira("run", "tiny-coin", "--store", store, PEIRA_HOME=str(small))
        assert full.returncode == 2, full.stdout + full.stderr
        assert "free space" in full.stderr and full.stderr.strip().count("\n") == 0
        assert "Traceback" not in full.stderr
        for path in small.glob("ballast*"):
            path.unlink()
        after = peira("run", "tiny-coin", "--store", store, PEIRA_HOME=str(small))
        assert after.returncode == 0, after.stderr
        smoke = peira("run", "tiny-coin", "--scale", "smoke", "--store", store)
        assert "cells measured" not in smoke.stderr
    finally:
        subprocess.run(["umount", small], check=False)


def _fill(path, size: int) -> None:
    try:
        with open(path, "wb", buffering=0) as file:
            while file.write(b"0" * size):
                pass
    except OSError:
        return
