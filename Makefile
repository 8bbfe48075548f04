# Each target sets up .venv by itself when it is missing, or when pyproject.toml, constraints.txt or this folder's place changed.

PYTHON ?= python3
ARGS ?=
CONFIG ?=

BIN := .venv/bin
RUNNER := $(BIN)/python -m runner
PYTEST := env -u COMET_API_KEY OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Three tests at a time, each with one thread: some wait for processes that they started.
SIDE_BY_SIDE := -n 3 --dist worksteal
# What .venv/installed holds once everything is installed: compared by content, so a touched file installs nothing.
WANTED := { pwd; cat pyproject.toml constraints.txt; }

RIGHT_VERSION := (3, 11) <= sys.version_info[:2] <= (3, 13)
RIGHT_PYTHON := $(BIN)/python -c 'import pip, sys; sys.exit(not $(RIGHT_VERSION))' 2>/dev/null
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup train-quick train train-custom test test-zoo test-faults test-slow lint bench results wheel clean

help:
	@echo 'make train-quick                          set up, then train a small image-to-text model (about a minute)'
	@echo 'make train ARGS="experiment=NAME ..."     runner train with these arguments'
	@echo 'make train-custom CONFIG=my.yaml          runner train with an experiment file of your own (and ARGS)'
	@echo 'make test                                 the tests; ARGS goes to pytest: ARGS="-k resume"'
	@echo 'make test-zoo                             every encoder with every objective, parts from outside, and more (minutes)'
	@echo 'make test-faults                          signals and kills of real runs, in one process and two (minutes)'
	@echo 'make test-slow                            the tests that train whole runs (some minutes)'
	@echo 'make lint                                 ruff, its formatter and mypy'
	@echo 'make bench                                runner beside other training loops, into docs/BENCHMARKS.md (10 minutes)'
	@echo 'make results                              train on real sets, three seeds each, into docs/RESULTS.md (20 minutes)'
	@echo 'make wheel                                build dist/*.whl'
	@echo 'make setup                                only set up .venv'
	@echo 'make clean                                delete what the others built, .venv included; runs are kept'
	@echo
	@echo 'PYTHON=python3.12 picks the Python that a new .venv is made with (3.11 to 3.13; default python3).'

train-quick: setup
	$(RUNNER) train experiment=quick $(ARGS)

train: setup
	$(RUNNER) train $(ARGS)

# Hydra takes an experiment from a folder of experiments, so the file is copied into one.
train-custom: setup
	@if [ ! -f '$(CONFIG)' ]; then \
	    echo 'make train-custom: there is no file "$(CONFIG)". Name an experiment file: make train-custom CONFIG=my.yaml' >&2; exit 2; \
	fi
	@if ! awk 'NF { found = /^[ \t]*#[ \t]*@package[ \t]+_global_[ \t\r]*$$/; exit } END { exit !found }' '$(CONFIG)'; then \
	    echo 'make train-custom: $(CONFIG) must begin with the line "# @package _global_",' \
	        'as conf/experiment/quick.yaml does; without it its keys land under "experiment".' >&2; exit 2; \
	fi
	@mkdir -p build/custom/experiment
	@cp '$(CONFIG)' 'build/custom/experiment/$(basename $(notdir $(CONFIG))).yaml'
	$(RUNNER) train --config-dir build/custom 'experiment=$(basename $(notdir $(CONFIG)))' $(ARGS)

test: setup
	$(PYTEST) $(SIDE_BY_SIDE) $(ARGS)

test-slow: setup
	$(PYTEST) -m slow $(ARGS)

test-faults: setup
	$(PYTEST) -m faults $(ARGS)

test-zoo: setup
	$(PYTEST) $(SIDE_BY_SIDE) -m zoo $(ARGS)

lint: setup
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

bench: setup
	$(BIN)/python -m benchmarks.compare $(ARGS)

results: setup
	$(BIN)/python -m benchmarks.results $(ARGS)

wheel: setup
	$(BIN)/python -m build --no-isolation

setup:
	@if $(WANTED) | cmp -s - .venv/installed && $(RIGHT_PYTHON); then exit 0; fi; \
	set -e; \
	rm -f .venv/installed; \
	$(RIGHT_PYTHON) || { \
	    command -v '$(PYTHON)' >/dev/null || { \
	        echo 'make: there is no command $(PYTHON). Install Python 3.11 to 3.13, or name yours: make PYTHON=python3.12 ...' >&2; \
	        exit 2; }; \
	    '$(PYTHON)' -c 'import sys; sys.exit(not $(RIGHT_VERSION))' || { \
	        echo "make: $(PYTHON) is $$('$(PYTHON)' --version 2>&1), but 3.11 to 3.13 is needed;" \
	            'name another: make PYTHON=python3.12 ...' >&2; \
	        exit 2; }; \
	    '$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	        echo 'make: $(PYTHON) cannot make virtual environments (no venv or ensurepip);' \
	            'on Debian and Ubuntu: apt install python3-venv.' >&2; \
	        exit 2; }; \
	    '$(PYTHON)' -m venv --clear .venv; }; \
	echo 'Setting up .venv; the first time takes some minutes.'; \
	$(WANTED) > .venv/wanted; \
	torch=$$(grep '^torch==' constraints.txt); \
	echo "Installing $$torch."; \
	$(PIP_INSTALL) "$$torch"; \
	echo 'Installing this package and the rest of constraints.txt.'; \
	$(PIP_INSTALL) -e '.[dev]'; \
	mv .venv/wanted .venv/installed

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
