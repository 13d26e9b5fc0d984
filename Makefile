# make demo   set up, then run the main experiment on Fashion-MNIST
# make test   set up, check style, types and layers, then run the tests
#
# Everything is installed into .venv; PYTHON=python3.12 chooses another interpreter for it.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.modnet-ready
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup demo test lint bench clean

setup: $(READY)

demo: setup
	$(BIN)/modnet train fashion-mnist/demo

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/modnet bench

# Caches and builds; .venv, runs and data stay.
clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find modnet tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is newer than pyproject.toml when there is nothing to install.
$(READY): pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[dev]'
	@touch $@

# Where Python comes without ensurepip (Debian without python3-venv), its own pip fills the environment.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "modnet needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(BIN)/python install pip; }
