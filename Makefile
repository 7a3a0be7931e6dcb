# Everything a newcomer or a machine runs. Each target works on a fresh checkout with only Python >= 3.11 and make.

# The first Python that is new enough; `make PYTHON=/path/to/python test` chooses another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
WORKERS ?= 2
# Everything with Python code in it; the Python blocks of Markdown files are formatted too.
CODE = $(wildcard src tests benchmarks docs tutorials *.py *.md)
EXAMPLES = README.md CONTRIBUTING.md $(wildcard docs/*.md docs/*/*.md)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check format bench mutants docs pin clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

# ------------------------------------------------------------------------------------------------ environments

# `pip` is tested and not the folder, so that an interrupted creation is finished by the next call.
.venv/bin/pip:
	@test -n "$(PYTHON)" || { echo "Weft needs Python 3.11 or newer, and none was found; name one: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Installing the versions of constraints.txt into .venv; this takes one to a few minutes."
	@quiet=; [ -t 1 ] || quiet=-qq; \
	$(BIN)/python -m pip install $$quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# pydoclint overwrites the docstring_parser that jsonargparse needs, so it lives apart.
.venv/doclint/.installed: constraints.txt | .venv/.installed
	@$(BIN)/python -m venv .venv/doclint
	@.venv/doclint/bin/python -m pip install -qq --constraint constraints.txt pydoclint
	@touch $@

# ------------------------------------------------------------------------------------------------------- running

demo: .venv/.installed ## train plain and parametrized networks on digits, write runs/demo/
	@$(BIN)/weft demo

# One thread per worker: two workers on two cores are faster than two threads fighting for them.
test: .venv/.installed ## the whole suite, without the tests marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow"

test-slow: .venv/.installed ## only the tests marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m slow

check: .venv/.installed .venv/doclint/.installed ## format, lint, types, docstrings, examples, strict docs
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	.venv/doclint/bin/pydoclint --quiet src
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --doctest-modules src/weft $(EXAMPLES)
	@$(MAKE) --no-print-directory docs

format: .venv/.installed ## put the code in the form that `check` asks for
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

bench: .venv/.installed ## every benchmark; writes benchmarks/results/
	@set -e; for script in $(filter-out benchmarks/harness.py, $(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script; done

mutants: .venv/.installed ## plant faults one by one; a fault that no test notices fails
	$(BIN)/python tests/mutants.py

# Every page is read anew: a build of the changed pages alone would pass over the warnings of the others.
docs: .venv/.installed ## the documentation, warnings are errors; open docs/_build/html/index.html
	@rm -rf docs/_generated
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html docs docs/_build/html

# ---------------------------------------------------------------------------------------------------- maintenance

pin: .venv/.installed .venv/doclint/.installed ## write the versions of .venv into constraints.txt
	@{ sed '/^[^#]/d' constraints.txt; \
	{ $(BIN)/python -m pip freeze --all --exclude-editable; .venv/doclint/bin/python -m pip freeze; } \
	| sed 's/+cpu$$//' | grep -v '^pip==' | LC_ALL=C sort -fu; } > constraints.new
	@mv constraints.new constraints.txt

clean: ## what runs, caches and builds left; keeps .venv and runs/
	rm -rf build dist docs/_build docs/_generated docs/tutorials \
	.pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find src tests benchmarks docs tutorials -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## clean, and .venv and runs/
	rm -rf .venv runs
