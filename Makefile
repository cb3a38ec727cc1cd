# Everything a fresh machine needs is python3 and make: each target sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What other versions of the dependencies may break; `make test` has the whole suite on those of constraints.txt.
CHAIN := tests/test_other_hosts.py $(patsubst %,tests/chain/test_%.py,beside_the_weights commands merge pins_by_content reground_command scan_as_input shipped_recipes verified_is_loaded)
LOWEST_TESTS := $(CHAIN) $(addprefix tests/,adapters distribution/test_base_install.py engine formats hub logits mergekit_plugin recipe tensors test_polling.py trajectory watch)
NEWEST_TESTS := $(CHAIN) $(addprefix tests/,evaluate hub localhub logits mergekit_plugin)
# What tests share. The tests themselves are checked by being run.
TYPED_TESTS := $(filter-out tests/test_%,$(wildcard tests/*.py)) tests/statistics/backtest_runs.py tests/statistics/sampled_runs.py tests/statistics/scan_runs.py
# Modules and their names that only later Pythons than the lowest have; ruff knows syntax. `file` is Python 2's to it.
VERMIN := --target=3.10- --violations --no-tips --quiet --exclude file
# One process of tests a core, for two cores; a file's tests share what they set up.
SIDE_BY_SIDE := -n 2 --dist loadfile
# Two busy cores fight over threads: one run came out 15 times slower without this.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo reground test test-slow test-base newest test-newest lowest test-lowest lint format hashes check-hashes docs tables bench clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,report]'
	touch $@

setup: $(VENV)/.ready  ## Make the virtual environment with everything in it.

demo: setup  ## Predict step 400 of a real run from its first 200 steps, push it, evaluate it; all on this machine.
	$(BIN)/python demo/run.py

reground: setup  ## Train the bundled task with and without re-grounding, measure both (over an hour on two cores).
	$(BIN)/python demo/reground.py

test: setup  ## Run the default suite (a few minutes).
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "not slow"

test-slow: setup  ## Run what the default suite leaves out.
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m slow

test-base: setup  ## Install without extras in .venv-base, use it against a loopback Hub, and say what it takes.
	$(BIN)/python .ci/base_install.py

newest:  ## Install today's newest versions of everything into .venv-newest.
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager -e '.[dev,report]'

test-newest: newest  ## Run a part of the suite on today's newest versions of everything (TESTS=tests runs all).
	.venv-newest/bin/python -m pytest -q $(SIDE_BY_SIDE) -m "not slow" $(or $(TESTS),$(NEWEST_TESTS))

lowest:  ## Install the lowest versions that pyproject.toml allows into .venv-lowest.
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) .ci/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-lowest/constraints.txt -e '.[dev,report]'

test-lowest: lowest  ## Run a part of the suite on the lowest versions that pyproject.toml allows.
	.venv-lowest/bin/python -m pytest -q $(SIDE_BY_SIDE) -m "not slow" $(or $(TESTS),$(LOWEST_TESTS))

lint: setup  ## Check style, formatting, spelling, types, and the version against the changelog.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/vermin $(VERMIN) hubextrap
	$(BIN)/python .ci/release.py
	$(BIN)/mypy
	$(BIN)/mypy $(TYPED_TESTS)

format: setup  ## Put the code in the one format.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

hashes:  ## Write anew what the GitHub action installs, by version and sha256 (Linux x86_64, Python 3.11).
	PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= $(PYTHON) .ci/hashes.py

check-hashes:  ## See that an index has the files that the GitHub action pins.
	PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= $(PYTHON) .ci/hashes.py --check

docs: setup  ## Write docs/api.md anew from signatures and docstrings.
	$(BIN)/python docs/build_api.py

tables: setup  ## Measure the tables in pages of docs/ anew; those of the full runs where HUBEXTRAP_DATA names them.
	$(BIN)/python docs/build_tables.py

bench: setup  ## Measure speed and memory against peers and targets, in turn (half an hour, 30 GB of disk; leave the machine alone).
	$(BIN)/python -m benchmarks

clean:  ## Remove what the other targets made.
	rm -rf $(VENV) .venv-base .venv-newest .venv-lowest .demo out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
