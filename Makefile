# Four targets; each sets up what it needs in a fresh clone (.venv, wheels pinned by constraints.txt).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test check clean

setup: .venv/ready

# rouge-score comes as pure Python source only; everything else must be a wheel.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	--only-binary :all: --no-binary rouge-score --no-build-isolation

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("stillroom needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(PIP) hatchling editables setuptools
	$(PIP) --editable '.[dev]'
	@# METEOR needs java; without it, or without the package, its tests say so and are skipped.
	@if command -v java >/dev/null 2>&1; then $(PIP) --no-deps pycocoevalcap || echo "no METEOR: pycocoevalcap could not be installed"; fi
	touch $@

demo: setup            ## the main job on the embedded default: about 10 minutes on 2 cores
	$(BIN)/stillroom demo --out runs/demo

test: setup            ## all tests but the slow and gpu ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow and not gpu'

check: setup           ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache
