# Two commands on a bare machine: 'make search' and 'make test'. Both set up what they need in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help search ui test test-long test-clusters bench bench-scale check setup setup-dev clean

help:
	@echo "make search     set up, search on the bundled digits, print the winner (ARGS='--trials 20' for more)"
	@echo "make ui         open MLflow on loopback at the newest study"
	@echo "make test       set up, check the code, run the tests"
	@echo "make test-long  the tests that take minutes"
	@echo "make test-clusters  the cluster files, with a real 'ray up', 'ray submit', 'ray down' over ssh on loopback"
	@echo "make bench      speed and memory on this machine: steps, loops, trials, a search"
	@echo "make bench-scale  what a search of 2,000 simulated trials costs its driver, as it grows"
	@echo "make clean      remove the environment (runs/ stays)"

search: setup
	$(BIN)/akd search quickstart $(ARGS)

ui: setup
	$(BIN)/akd ui

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: setup-dev
	$(BIN)/python -m pytest -m long

test-clusters: setup-dev
	$(BIN)/python -m pytest -m 'long or not long' -rs tests/clusters

bench: setup
	$(BIN)/python tests/benchmarks/bench.py $(ARGS)

bench-scale: setup
	$(BIN)/python tests/benchmarks/scale.py $(ARGS)

check: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The stamps hold the moment of the last installation; a changed pyproject.toml installs again.
setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"akd needs Python 3.11 or newer, $(PYTHON) is {v.major}.{v.minor}; choose one with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# Files are compiled when first imported: compiling all of them now would take longer than installing them.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "setting up in $(VENV): about 6 GB, two to three minutes"
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV)
