# Each target makes the virtual environment and installs by itself; PYTHON picks the interpreter (3.11 or newer).
# Written for GNU make 3.81, which macOS ships.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test check bench docs

quickstart: .venv/installed
	$(BIN)/steersman quickstart

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m steersman.cli.docs --check

docs: .venv/installed
	$(BIN)/python -m steersman.cli.docs

bench: .venv/installed
	@test -d models/gemma-3-270m || { echo "The model is missing. Read Gemma's terms, which the README names, then:" \
	  "$(BIN)/pip install '.[sample-model]' && $(BIN)/steersman convert sample-model models/gemma-3-270m" >&2; exit 1; }
	set -e; for script in bench/*_*.py; do $(BIN)/python $$script; done
	$(BIN)/python bench/picture.py

.venv/installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Steersman needs Python 3.11 or newer, and '$(PYTHON)' is not. Install one, then: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "Python's venv module is missing. On Debian or Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
