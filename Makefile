# `make run` and `make test` need no step before them: each builds what it uses, once.

PYTHON ?= python3
VENV ?= .venv
# Extra pip options for torch alone, for example an index with CPU-only builds.
TORCH_FLAGS ?=
PYTEST_ARGS ?=

PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install --disable-pip-version-check -c constraints.txt
STAMPS := $(VENV)/.stamps
SOURCES := p2penv baselines training

.DEFAULT_GOAL := help
.PHONY: help setup run test lint format bench clean

help:  ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "Variables: PYTHON=$(PYTHON)  TORCH_FLAGS=\"$(TORCH_FLAGS)\"  PYTEST_ARGS=\"$(PYTEST_ARGS)\""

setup: $(STAMPS)/train  ## Create .venv and install everything that training needs

run: setup  ## Train on the communication market
	$(PY) -m training train communication

test: $(STAMPS)/test  ## Run the tests (PYTEST_ARGS="-k name" narrows them)
	$(PY) -m pytest -n 2 $(PYTEST_ARGS)

lint: $(STAMPS)/dev  ## Check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy $(SOURCES)

format: $(STAMPS)/dev  ## Apply the automatic fixes and the formatter
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

bench: setup  ## Measure the speed of the environments
	$(PY) -m training bench

clean:  ## Remove the virtual environment, caches and build outputs (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps lie inside the virtual environment, so they go when it goes.
$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "p2penv needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# torch comes first and alone: pip then has one build to choose, and nothing later replaces it.
$(STAMPS)/torch: constraints.txt | $(STAMPS)/venv
	$(PIP_INSTALL) $(TORCH_FLAGS) torch
	@touch $@

$(STAMPS)/train: pyproject.toml constraints.txt $(STAMPS)/torch
	$(PIP_INSTALL) -e ".[train]"
	@touch $@

# The test extra contains train, so this brings that stamp up to date too.
$(STAMPS)/test: pyproject.toml constraints.txt $(STAMPS)/torch
	$(PIP_INSTALL) -e ".[test]"
	@touch $(STAMPS)/train $@

# The type checker reads the packages of every extra: with fewer of them it would report other things.
$(STAMPS)/dev: pyproject.toml constraints.txt $(STAMPS)/torch
	$(PIP_INSTALL) -e ".[test,dev]"
	@touch $(STAMPS)/train $(STAMPS)/test $@
