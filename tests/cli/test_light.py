"""`peira list` and `peira show` import nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ["torch", "mlflow", "pandas", "numpy", "scipy", "sklearn", "matplotlib", "numba", "ray"]
# Checking cards takes these, once after each change of a card.
CHECKING = ["pydantic", "tomllib"]


@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["show", "grokking-tickets"]])
def test_nothing_heavy_is_imported(words, home):
    for absent in (HEAVY, HEAVY + CHECKING):
        assert imported(absent, words) == []


def imported(absent, words):
    """Which of the modules the command has imported."""
    code = (
        "import sys, json\n"
        "from peira.cli.main import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print(json.dumps([m for m in {absent!r} if m in sys.modules]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "grokking" in done.stdout.lower()
    return json.loads(done.stderr.splitlines()[-1])
