# `make demo` and `make test` do all of the set-up, on a machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread for each test process: more threads than cores slow each other down.
WORKERS ?= auto
# Of `make fuzz`.
MINUTES ?= 60
# Of `make faults`.
KILLS ?= 1000
# `make gpu` installs nothing: it takes a Python that has torch for this GPU and the package's dependencies.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
SUDO := $(shell test "$$(id -u)" = 0 || echo sudo)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

.PHONY: help demo browser docs test test-all fuzz faults bench gpu lint types format wheel clean

help:
	@echo "make demo      install, then train and compare three small backbones on synthetic faces"
	@echo "make test      install (with a browser if there is none), then run the quick tests"
	@echo "make test-all  run all tests"
	@echo "make fuzz      mutate files of each kind that is read, for MINUTES=60 in all; faults go to found/"
	@echo "make faults    kill trainings KILLS=1000 times, and disturb each command at each of its changes to the disk"
	@echo "make bench     run the main benchmarks of docs/performance.md; half an hour on an idle machine"
	@echo "make gpu       on a machine with a GPU: tests and figures in eight minutes, into gpu.json and gpu.md"
	@echo "make docs      build the documentation site; then open site/html/index.html"
	@echo "make lint      ruff, and the order of the layers (import-linter)"
	@echo "make types     mypy"
	@echo "make format    let ruff rewrite the code"
	@echo "make wheel     build the wheel, install it into an empty environment and train with it"
	@echo "make clean     remove the environment and what demo, docs, bench and gpu wrote"

demo: $(VENV)/installed
	$(BIN)/facebones demo --output demo

# The tests of the report's page need a browser: any of these, or Playwright's.
browser: $(VENV)/installed-dev
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  { command -v apt-get && { $(SUDO) apt-get install -y chromium || \
	    { $(SUDO) apt-get update && $(SUDO) apt-get install -y chromium; }; }; } || \
	  $(BIN)/playwright install chromium

test: $(VENV)/installed-dev browser
	$(PYTEST) -m "not slow"

test-all: $(VENV)/installed-dev browser
	$(PYTEST)

fuzz: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py --minutes $(MINUTES) --output found

faults: $(VENV)/installed-dev
	$(BIN)/python tests/faults/run_faults.py --kills $(KILLS)

bench: $(VENV)/installed-dev
	mkdir -p bench
	for name in startup training_step data_path evaluation memory; do \
	  echo "== $$name"; $(BIN)/python benchmarks/$$name.py --output bench/$$name.json || exit 1; done

gpu:
	PYTHONPATH=src $(GPU_PYTHON) benchmarks/gpu.py --output gpu.json

docs: $(VENV)/installed-dev
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env -b html -d site/trees docs site/html
	@echo "open site/html/index.html"

lint: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: $(VENV)/installed-dev
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: $(VENV)/installed-dev
	PYTHON=$(CURDIR)/$(BIN)/python .ci/wheel

clean:
	rm -rf $(VENV) demo site bench found gpu.json gpu.md

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/installed
