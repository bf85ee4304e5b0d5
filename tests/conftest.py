"""Fixtures: a home of its own for every test, the real data, the plug-in of `tests/plugin`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# A busy machine that runs tests side by side is no slower machine.
os.environ.setdefault("PEIRA_PATIENCE", "2")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# Of a process under test: tables in full, and a checkpoint soon enough to be killed after it.
SMALL = {"COLUMNS": "160", "PEIRA_CHECKPOINT_SECONDS": "0.5"}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs; making one takes seconds, copying it none."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def home(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh `PEIRA_HOME`."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    monkeypatch.setenv("PEIRA_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that `PEIRA_DATA` names; the test is skipped where it names none."""
    folder = os.environ.get("PEIRA_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs the real data: set PEIRA_DATA")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of `tests/plugin`, installed into a folder of its own."""
    target = tmp_path_factory.mktemp("plugin")
    source = target / "source"
    shutil.copytree(HERE / "plugin", source, ignore=shutil.ignore_patterns("*.egg-info", "build"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", target / "lib", source],
        check=True,
        capture_output=True,
    )
    return target / "lib"


@pytest.fixture
def peira(plugin: Path, home: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the `peira` command with the plug-in installed; gives output and exit status."""

    def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*words),
            capture_output=True,
            text=True,
            env={**environment(plugin, home), **variables},
            timeout=300,
        )

    return run


def command(*words: object) -> list[str]:
    """The command line of `peira` with these words."""
    return [sys.executable, "-m", "peira.cli", *map(str, words)]


def environment(plugin: Path, home: Path) -> dict[str, str]:
    """Variables of a process that sees the plug-in and has this home."""
    return {**os.environ, "PYTHONPATH": str(plugin), "PEIRA_HOME": str(home), **SMALL}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Tables of the docs that tests measure are written on demand only."""
    parser.addoption(
        "--record", action="store_true", help="write docs/combinations.json from what is measured"
    )
