# Development commands; `make` lists them. Everything runs in .venv, which holds exactly requirements.lock.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv demo test test-cluster test-long lint format lock clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 14

venv: $(STAMP)  ## create or refresh .venv from requirements.lock (uses uv if there is one; PYTHON=python3.12 picks one)

$(STAMP): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null \
		|| { echo "error: no $(PYTHON) on PATH; run: make venv PYTHON=<a Python 3.11 or 3.12>" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 13) else \
		f"error: retina-ray needs Python 3.11 or 3.12, but $(PYTHON) is {v.major}.{v.minor}; " \
		"run: make venv PYTHON=<one of these>")'
	@if command -v uv >/dev/null; then \
		[ -x $(BIN)/python ] || uv venv --quiet --python "$$(command -v $(PYTHON))" $(VENV); \
		uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock; \
		uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .; \
	else \
		$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
			echo "error: $(PYTHON) lacks ensurepip; on Debian and Ubuntu run: apt-get install python3-venv" >&2; \
			exit 1; \
		}; \
		$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV); \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .; \
	fi
	@touch $@

demo: $(STAMP)  ## draw a small data set, train, search, report and query a model on the CPU (minutes)
	$(BIN)/retina-ray demo

QUICK := not long and not cluster
# Folders whose tests keep mostly to one process, so that files of theirs are tested side by side.
SIDE_BY_SIDE := unit or papers or serving

test: $(STAMP)  ## run the tests (minutes; those that need a GPU skip themselves without one)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "($(QUICK)) and ($(SIDE_BY_SIDE))"
	$(BIN)/python -m pytest -m "($(QUICK)) and not ($(SIDE_BY_SIDE))"

test-cluster: $(STAMP)  ## run the tests that start Ray clusters of their own, such as an endpoint's
	$(BIN)/python -m pytest -rA --show-capture=stdout -m "cluster and not long"

test-long: $(STAMP)  ## run the long tests as well
	$(BIN)/python -m pytest -rA --show-capture=stdout

lint: $(STAMP)  ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP)  ## format, and mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock:  ## rewrite requirements.lock from pyproject.toml, keeping the pins that still fit
	@uv=$$(command -v uv) || { \
		scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
		$(PYTHON) -m venv "$$scratch"; "$$scratch/bin/python" -m pip install --quiet uv; uv="$$scratch/bin/uv"; \
	}; \
	"$$uv" pip compile pyproject.toml --quiet --extra dev --generate-hashes --python-version 3.11 --universal \
		--custom-compile-command 'make lock' -o requirements.lock

clean:  ## remove caches and build output (keeps .venv)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
