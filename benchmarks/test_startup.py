"""Commands that a person waits for, as whole processes, beside an interpreter without work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PEIRA = str(Path(sys.executable).with_name("peira"))
ROUNDS = 15
# Seconds that a command may take before it feels slow; a busy machine gets more by PEIRA_PATIENCE.
LIMIT = 0.3 * float(os.environ.get("PEIRA_PATIENCE", "1"))


def run(*command: str) -> str:
    """Run a process to its end and return what it prints; raises when it fails."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def longest() -> str:
    """The paper with the most claims, whose card is the most to read and print."""
    papers = json.loads(run(PEIRA, "list", "--json"))
    return max(papers, key=lambda paper: paper["claims"])["slug"]


@pytest.mark.benchmark(group="peira list, whole process")
def test_list_command_peira(benchmark):
    benchmark.pedantic(run, [PEIRA, "list"], rounds=ROUNDS, warmup_rounds=1)
    assert benchmark.stats.stats.median < LIMIT


@pytest.mark.benchmark(group="peira list, whole process")
def test_list_command_bare_python(benchmark):
    benchmark.pedantic(run, [sys.executable, "-c", "pass"], rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.benchmark(group="peira show, whole process")
def test_show_command_peira(benchmark, longest):
    benchmark.pedantic(run, [PEIRA, "show", longest], rounds=ROUNDS, warmup_rounds=1)
    assert benchmark.stats.stats.median < LIMIT


@pytest.mark.benchmark(group="peira show, whole process")
def test_show_command_bare_python(benchmark):
    benchmark.pedantic(run, [sys.executable, "-c", "pass"], rounds=ROUNDS, warmup_rounds=1)
