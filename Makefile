# Everything from nothing: `make demo` and `make test` on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two test processes on two cores, each with one thread: more would fight for the cores.
WORKERS ?= auto
SUDO := $(shell test "$$(id -u)" = 0 || echo sudo)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

.PHONY: help demo browser test test-all bench lint types format clean

help:
	@echo "make demo      install, then train and compare three small backbones on synthetic faces"
	@echo "make test      install (a browser too, if there is none), then run the quick tests"
	@echo "make test-all  the slow tests too"
	@echo "make bench     the main figures of docs/performance.md, for half an hour; leave the machine alone meanwhile"
	@echo "make lint      ruff"
	@echo "make types     mypy"
	@echo "make format    let ruff rewrite the code"
	@echo "make clean     remove the environment and what the demo made"

demo: $(VENV)/installed
	$(BIN)/facebones demo --output demo

# For the tests of the report's page: any of these, or else Playwright's own.
browser: $(VENV)/installed-dev
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  { command -v apt-get && { $(SUDO) apt-get install -y chromium || \
	    { $(SUDO) apt-get update && $(SUDO) apt-get install -y chromium; }; }; } || \
	  $(BIN)/playwright install chromium

test: $(VENV)/installed-dev browser
	$(PYTEST) -m "not slow"

test-all: $(VENV)/installed-dev browser
	$(PYTEST)

bench: $(VENV)/installed-dev
	mkdir -p bench
	for name in startup training_step data_path evaluation memory; do \
	  echo "== $$name"; $(BIN)/python benchmarks/$$name.py --output bench/$$name.json || exit 1; done

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: $(VENV)/installed-dev
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) demo bench

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/installed
