"""`peira new`: a folder that conforms as soon as its blanks are filled."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

BLANK = re.compile(r"FILL IN ")


@pytest.fixture
def blank(peira, tmp_path):
    made = peira("new", "robust-mean", "--field", "statistics", "--into", tmp_path)
    assert made.returncode == 0, made.stderr
    return tmp_path / "peira-robust-mean"


def test_a_plugin_conforms_once_its_blanks_are_filled(blank, tmp_path, plugin, home):
    card = blank / "src/peira_robust_mean/card.toml"
    for path in (card, card.with_name("__init__.py")):
        path.write_text(BLANK.sub("", path.read_text()))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    target = tmp_path / "lib"
    subprocess.run(
        [*install, "--no-build-isolation", "--target", target, blank],
        check=True,
        capture_output=True,
    )
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", blank / "tests"],
        env={**os.environ, "PYTHONPATH": str(target), "PEIRA_HOME": str(home)},
        cwd=blank,
        capture_output=True,
        text=True,
    )
    assert tests.returncode == 0, tests.stdout + tests.stderr
    assert "10 passed" in tests.stdout


def test_blanks_are_refused_until_they_are_filled(blank):
    from peira.engine.cards import Card
    from peira.engine.errors import CardError

    with pytest.raises(CardError, match="still a blank: 'FILL IN the title'"):
        Card.read(blank / "src/peira_robust_mean/card.toml")


def test_in_a_checkout_it_becomes_a_paper_of_its_room(peira, tmp_path):
    (tmp_path / "src/peira/engine").mkdir(parents=True)
    table = '[project.entry-points."peira.papers"]\n'
    (tmp_path / "pyproject.toml").write_text(f"[project]\n\n{table}other = 'x'\n")
    made = peira("new", "robust-mean", "--field", "statistics", "--into", tmp_path)
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "src/peira/statistics/robust_mean"
    names = {path.name for path in folder.iterdir()}
    assert names == {"__init__.py", "card.toml", "method.py", "study.py", "use.py"}
    entered = (tmp_path / "pyproject.toml").read_text()
    assert f'{table}robust-mean = "peira.statistics.robust_mean"\nother' in entered
    assert (tmp_path / "tests/statistics/test_robust_mean.py").exists()
    # The room gives out its papers' public names, as every room does.
    assert "room(__name__)" in (folder.parent / "__init__.py").read_text()
    again = peira("new", "robust-mean", "--field", "statistics", "--into", tmp_path)
    assert again.returncode == 2 and "exists already" in again.stderr


def test_nothing_is_left_of_a_paper_that_cannot_be_entered(tmp_path):
    from peira.cli.scaffold import make_paper
    from peira.engine.errors import PeiraError

    (tmp_path / "src/peira/engine").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    with pytest.raises(PeiraError, match="no table"):
        make_paper("robust-mean", "statistics", tmp_path)
    assert not (tmp_path / "src/peira/statistics").exists()
    with pytest.raises(PeiraError, match="'lambda' is a word of Python"):
        make_paper("lambda", "statistics", tmp_path)
