# Everything runs in .venv, which the first target that needs it sets up by itself; see setup_env.py.
# `make demo` and `make test` need Python 3.11 or later and nothing else.

# The Python that .venv is made from: the first of these that is new enough, or make PYTHON=...
FIND_PYTHON = for p in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3 python); do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done
BIN := .venv/bin
SOURCES := $(wildcard tunewright tests recipes benchmarks setup_env.py)

.PHONY: help setup demo test test-postgresql check static format lint types layers fix lock clean

help:
	@echo 'make demo               check, train, evaluate and try a small model; about a minute'
	@echo 'make test               the whole test suite'
	@echo 'make test-postgresql    the tests of jobs and server, on PostgreSQL'
	@echo 'make check              format, lint, types, layers, tests: what CI runs'
	@echo 'make fix                format the code and mend what the linter can mend'
	@echo 'make lock               resolve requirements.lock again, keeping the pins that still fit'
	@echo 'make clean              remove .venv and caches'

setup:
	@$(BIN)/python setup_env.py --check 2>/dev/null || { python=$$($(FIND_PYTHON)); \
		if [ -n "$$python" ]; then $$python setup_env.py; \
		else echo 'No Python 3.11 or later was found. Install one, or name it: make PYTHON=/path/to/python3 ...' >&2; exit 1; fi; }

demo: setup
	@$(BIN)/tunewright demo

test: setup
	@$(BIN)/python -m pytest -n auto --dist loadfile

test-postgresql: setup
	@TUNEWRIGHT_TEST_DATABASE=postgresql $(BIN)/python -m pytest -n auto --dist loadfile $(shell grep -lE '^(from|import) serving' tests/test_*.py)

check: static
	@$(MAKE) --no-print-directory test

static: format lint types layers

format: setup
	$(BIN)/ruff format --check $(SOURCES)

lint: setup
	$(BIN)/ruff check $(SOURCES)

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports --no-logo

fix: setup
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

lock: setup
	$(BIN)/uv pip compile --quiet pyproject.toml --all-extras --group dev --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header --no-emit-package torch --output-file requirements.lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
