# Two commands need nothing but python3 (3.11 or newer), make and git: `make demo` and `make test`.
# Whichever runs first makes .venv; the other reuses it. Another Python (make test PYTHON=python3.13) makes it anew.
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/japanese-vowels
BIN := $(VENV)/bin
ESTIMATORS := $(VENV)-estimators
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
READY := $(VENV)/.ready-$(VERSION)
READY_ESTIMATORS := $(ESTIMATORS)/.ready-$(VERSION)
READY_DOCS := $(VENV)/.ready-docs-$(VERSION)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(VENV)/constraints.txt
# A broken link, an unknown name, an error in a chapter: all of them are said, and the build fails.
SPHINX := $(BIN)/sphinx-build --builder html --quiet --fail-on-warning --keep-going --nitpicky --fresh-env --jobs 2
# Python keeps its bytecode, also where the environment says otherwise: more than a hundred processes start in the tests,
# and each would compile all sources anew.
unexport PYTHONDONTWRITEBYTECODE
# Each process keeps to neighbouring tests, which share fixtures and compiled cells; who is done takes from the other.
PYTEST := $(BIN)/pytest -n auto --dist worksteal $(OPTIONS)

# A processor without AVX-512: what oneDNN and our compiler may use. It takes one with AVX2 to play it.
AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 ANYRNN_CPU=x86-64-v3
ON_AVX2 := tests/test_smoke.py tests/cpu/test_any_cell.py tests/cpu/test_machine.py \
	tests/test_transforms.py::test_under_autocast_the_state_keeps_its_type_and_can_be_carried_on \
	tests/test_transforms.py::test_a_precision_is_refused_where_pytorchs_own_network_fails_in_it_and_auto_does_not_meet_it

# So many random cells of each kind, always the same ones for a seed: `make cells EXAMPLES=5000 SEED=7`.
RANDOM_CELLS := tests/cpu/test_random_cells.py tests/cpu/test_wild_cells.py tests/test_combinations.py
EXAMPLES ?= 100
SEED ?= 1
# What `make test-all` adds: so many minutes of damaged files of each kind.
MINUTES ?= 10

.PHONY: demo test long cells test-all test-avx2 test-torch test-estimators docs docs-quick check format bench clean

demo: $(READY)  ## train and compare six recurrent networks on real data, write a report
	$(BIN)/anyrnn compare japanese-vowels --out $(RUN) --overwrite

test: $(READY)  ## run every test, and some once more as on a processor without AVX-512
	$(PYTEST)
	if grep -qw avx2 /proc/cpuinfo; then $(AVX2) $(PYTEST) $(ON_AVX2); fi

long: $(READY)  ## run the tests that take longest, which `make test` leaves out
	$(PYTEST) --all -m long

cells: $(READY)  ## compare random cells with the loop: 100 of each of three kinds, or EXAMPLES=1000
	ANYRNN_EXAMPLES=$(EXAMPLES) $(PYTEST) --timeout 20000 --hypothesis-seed $(SEED) $(RANDOM_CELLS)

test-all: $(READY) test-estimators  ## run all cases of every test on both kinds of processor, 1,000 random cells of each kind, damaged files; an hour or two
	$(PYTEST) --all
	if grep -qw avx2 /proc/cpuinfo; then $(AVX2) $(PYTEST) --all; fi
	$(MAKE) cells EXAMPLES=1000 SEED=$$(date +%s)
	$(BIN)/python tests/workbench/test_fuzz_readers.py --minutes $(MINUTES) --seed $$(date +%s)
	$(BIN)/python tests/workbench/test_fuzz_runs.py $$((60 * $(MINUTES)))

test-avx2: $(READY)  ## run every test as on a processor without AVX-512
	$(AVX2) $(PYTEST)

# scikit-learn's checks once more, since there is pandas here; warnings are those of other libraries.
test-estimators: $(READY_ESTIMATORS)  ## run aeon's and sktime's checks, the pages about other libraries, a Dask cluster, searches by Optuna and TensorBoard's reading, in an environment of their own
	$(ESTIMATORS)/bin/python -m pytest -W default -o addopts="--doctest-modules -q -p no:cacheprovider" \
		tests/estimators tests/test_sklearn.py src/anyrnn/aeon.py src/anyrnn/sktime.py \
		tests/workbench/test_cluster.py tests/workbench/test_tune.py tests/workbench/test_callbacks.py
	$(ESTIMATORS)/bin/python -m pytest -W default tests/test_docs.py -k "runs_and_prints and (aeon or skorch or lightning)"

test-torch:  ## run every test with another PyTorch, in an environment of its own: make test-torch TORCH=2.14.1
	@[ -n "$(TORCH)" ] || { echo "Which PyTorch? Try: make test-torch TORCH=2.14.1"; exit 1; }
	$(MAKE) test VENV=.venv-torch-$(TORCH) TORCH=$(TORCH)

docs: $(READY_DOCS)  ## run every chapter, and build the documentation: build/site/index.html
	rm -rf build/site
	$(SPHINX) --doctree-dir build/doctrees docs build/site
	$(BIN)/python docs/check_links.py build/site
	@echo "Open build/site/index.html"

docs-quick: $(READY_DOCS)  ## build the documentation without running the chapters, to see that names and links are right
	rm -rf build/site-quick
	$(SPHINX) --define nb_execution_mode=off --doctree-dir build/doctrees-quick docs build/site-quick
	$(BIN)/python docs/check_links.py build/site-quick

check: $(READY)  ## lint, format, types, import direction, names and links in the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) docs-quick

format: $(READY)  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tests/test_chapters.py --format

bench: $(READY)  ## measure, side by side, what the README claims about speed
	$(BIN)/python benchmarks/layers.py
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/controls.py
	$(BIN)/python benchmarks/checkpoint.py

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "anyrnn needs Python 3.11 or newer; got $$($(PYTHON) --version). Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@[ -e $(BIN)/python$(VERSION) ] || rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	sed '$(if $(TORCH),s/^torch==.*/torch==$(TORCH)/)' constraints.txt > $(VENV)/constraints.txt
	$(INSTALL) torch
	$(INSTALL) --editable '.[dev]'
	@touch $@

# numba, of aeon and sktime, takes no NumPy and llvmlite as new as ours.
$(READY_ESTIMATORS): pyproject.toml constraints.txt
	@[ -e $(ESTIMATORS)/bin/python$(VERSION) ] || rm -rf $(ESTIMATORS)
	$(PYTHON) -m venv $(ESTIMATORS)
	sed -E '/^(numpy|llvmlite)==/d' constraints.txt > $(ESTIMATORS)/constraints.txt
	$(ESTIMATORS)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(ESTIMATORS)/constraints.txt torch
	$(ESTIMATORS)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(ESTIMATORS)/constraints.txt --editable '.[estimators]'
	@touch $@

$(READY_DOCS): $(READY)
	$(INSTALL) --editable '.[docs]'
	@touch $@

clean:  ## remove the environments and everything that was built
	rm -rf .venv .venv-torch-* .venv-estimators .mypy_cache .ruff_cache .import_linter_cache build dist runs
