# Two commands need nothing but python3 (3.11 or newer), make and git: `make demo` and `make test`.
# Whichever runs first makes .venv; the other reuses it.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
RUN ?= runs/japanese-vowels

.PHONY: demo test check format bench clean

demo: $(READY)  ## train and compare six recurrent networks on real data, write a report
	$(BIN)/anyrnn compare japanese-vowels --out $(RUN) --overwrite

test: $(READY)  ## run every test
	$(BIN)/pytest -n auto

check: $(READY)  ## lint, format, types, import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## measure, side by side, what the README claims about speed
	$(BIN)/python benchmarks/layers.py
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/memory.py

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "anyrnn needs Python 3.11 or newer; got $$($(PYTHON) --version). Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:  ## remove the environment and everything that was built
	rm -rf .venv .mypy_cache .ruff_cache .import_linter_cache build dist runs
