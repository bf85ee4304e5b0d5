PYTHON ?= python3
BIN := .venv/bin
# Studies and tests run side by side; threads of the libraries would only get in their way.
export OMP_NUM_THREADS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export NO_MKDOCS_2_WARNING := 1

.PHONY: run setup test test-all lint bench docs clean

run: setup
	$(BIN)/peira run grokking-tickets --scale small

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Peira needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all]'
	touch $@

test: setup
	$(BIN)/pytest -n 2 --dist loadgroup

test-all: setup
	$(BIN)/pytest -n 2 --dist loadgroup -m 'slow or not slow'

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: setup
	$(BIN)/pytest benchmarks --benchmark-only -m 'slow or not slow' --benchmark-json=benchmarks/latest.json
	$(BIN)/python benchmarks/table.py benchmarks/latest.json

docs: setup
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv site benchmarks/latest.json
