# Two commands are enough: `make demo` and `make test`. Both set up .venv first.
# On Linux pip takes the CUDA build of torch, several GB; on a machine without a GPU write
#   make demo PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: demo test test-all soak bench check format clean

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(f"miclip needs Python 3.11 or newer, found {sys.version.split()[0]}: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/miclip demo

check: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(VENV)/.ready-dev check
	$(BIN)/python -m pytest -q -m "not slow and not soak and not bench"

test-all: $(VENV)/.ready-dev check
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,spark]'
	$(BIN)/python -m pytest -q -m "not soak and not bench"

soak: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -m soak -s

bench: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -m bench -s

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) miclip-demo build *.egg-info
