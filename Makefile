# Four targets; each sets up what it needs in a fresh clone (.venv, wheels pinned by constraints.txt).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-oldest check clean

setup: .venv/ready

# rouge-score comes as pure Python source only; everything else must be a wheel.
FROM := --quiet --disable-pip-version-check --only-binary :all: --no-binary rouge-score --no-build-isolation
PIP := $(BIN)/python -m pip install --constraint constraints.txt $(FROM)
PIP_OLDEST := .venv-oldest/bin/python -m pip install --constraint .venv-oldest/constraints.txt $(FROM)

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("stillroom needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(PIP) hatchling editables setuptools
	$(PIP) --editable '.[dev]'
	@# METEOR needs java; without it, or without the package, its tests say so and are skipped.
	@if command -v java >/dev/null 2>&1; then $(PIP) --no-deps pycocoevalcap || echo "no METEOR: pycocoevalcap could not be installed"; fi
	touch $@

demo: setup            ## the main job on the embedded default: about 11 minutes on 2 cores
	$(BIN)/stillroom demo --out runs/demo

test: setup            ## all tests but the slow and gpu ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow and not gpu'

test-oldest: .venv-oldest/ready   ## what hangs on transformers, with the oldest that pyproject.toml allows
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -m 'not slow and not gpu' tests/engine tests/students \
		tests/distill/test_recipes.py tests/distill/test_language.py tests/distill/test_bad_starts.py

# The same pins but for transformers and what it brings along.
.venv-oldest/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-oldest
	sed -e 's/^transformers==.*/transformers==5.17.*/' -e '/^huggingface_hub==/d' constraints.txt > .venv-oldest/constraints.txt
	$(PIP_OLDEST) hatchling editables setuptools
	$(PIP_OLDEST) --editable '.[dev]'
	touch $@

check: setup           ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-oldest dist .pytest_cache .mypy_cache .ruff_cache
