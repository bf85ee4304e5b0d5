"""The table of ratios, from a hand-written pytest-benchmark JSON."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "table.py"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    """`benchmarks/table.py`, which is a script and no part of the package."""
    spec = importlib.util.spec_from_file_location("bench_table", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def measured(*benchmarks: tuple[str, float]) -> dict:
    """The parts of pytest-benchmark's JSON that count; names like `file.py::test_x_peira[10]`."""
    return {
        "machine_info": {
            "machine": "x86_64",
            "system": "Linux",
            "python_version": "3.11.7",
            "cpu": {"brand_raw": "Abacus 9000", "count": 2},
        },
        "benchmarks": [
            {
                "fullname": name,
                "name": name.partition("::")[2],
                "param": name.partition("[")[2].rstrip("]") or None,
                "stats": {"median": median, "mean": 1e9},
            }
            for name, median in benchmarks
        ],
    }


def test_ratio_is_peer_over_peira(table):
    rows, alone = table.compare(
        measured(
            ("benchmarks/test_my_paper.py::test_walks_peira", 0.002),
            ("benchmarks/test_my_paper.py::test_walks_networkx", 0.05),
        )
    )
    (row,) = rows
    assert (row.topic, row.peer, row.ours, row.theirs) == (
        "my-paper: walks",
        "networkx",
        0.002,
        0.05,
    )
    assert row.ratio == pytest.approx(25.0)
    assert alone == []


def test_every_peer_and_parameter_is_compared_with_its_own(table):
    rows, alone = table.compare(
        measured(
            ("benchmarks/test_my_paper.py::test_fit_sklearn[10]", 3.0),
            ("benchmarks/test_my_paper.py::test_fit_peira[10]", 1.0),
            ("benchmarks/test_my_paper.py::test_fit_peira[99]", 10.0),
            ("benchmarks/test_my_paper.py::test_fit_sklearn[99]", 5.0),
            ("benchmarks/test_my_paper.py::test_fit_pure_python[99]", 40.0),
        )
    )
    assert {(row.topic, row.peer): row.ratio for row in rows} == {
        ("my-paper: fit [10]", "sklearn"): 3.0,
        ("my-paper: fit [99]", "sklearn"): 0.5,
        ("my-paper: fit [99]", "pure python"): 4.0,
    }
    assert alone == []


def test_longest_topic_wins_and_files_do_not_mix(table):
    rows, alone = table.compare(
        measured(
            ("benchmarks/test_other.py::test_walk_peira", 1.0),
            ("benchmarks/test_other.py::test_walk_sum_peira", 2.0),
            ("benchmarks/test_other.py::test_walk_sum_scipy", 8.0),
            ("benchmarks/test_my_paper.py::test_walk_scipy", 5.0),
        )
    )
    assert [(row.topic, row.peer, row.ratio) for row in rows] == [("other: walk sum", "scipy", 4.0)]
    assert alone == [
        "benchmarks/test_other.py::test_walk_peira",
        "benchmarks/test_my_paper.py::test_walk_scipy",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(2.0, "2 s"), (0.0421, "42.1 ms"), (3.5e-6, "3.5 µs"), (2e-10, "0.2 ns"), (0.9996, "1 s")],
)
def test_durations_read_well(table, seconds, said):
    assert table.duration(seconds) == said


def test_the_script_prints_ratio_machine_and_what_has_no_peer(tmp_path):
    file = tmp_path / "measured.json"
    file.write_text(
        json.dumps(
            measured(
                ("benchmarks/test_my_paper.py::test_walks_peira", 0.002),
                ("benchmarks/test_my_paper.py::test_walks_networkx", 0.05),
                ("benchmarks/test_my_paper.py::test_lonely_peira", 1.0),
            )
        )
    )
    done = subprocess.run(
        [sys.executable, SCRIPT, file], capture_output=True, text=True, check=True
    )
    line = next(line for line in done.stdout.splitlines() if "networkx" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        "my-paper: walks", "networkx", "2 ms", "50 ms", "25x",
    ]  # fmt: skip
    assert "Abacus 9000, 2 cores, Linux, Python 3.11.7" in done.stdout
    assert "not compared: benchmarks/test_my_paper.py::test_lonely_peira" in done.stdout
