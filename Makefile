# Every target creates the virtual environment itself; nothing but Python 3.11 and make is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2

.PHONY: compiled run test lint types unit notebooks lab validate bench bench-peers test-vllm test-slow nightly screens clean

run: $(STAMP)
	$(BIN)/windtunnel compare azure-chat azure-chat@tuned --replications 1 --out out --report out/report.html

test: lint types unit notebooks

lint: $(STAMP)
	$(BIN)/ruff check src tests sims
	$(BIN)/lint-imports --no-logo
	$(BIN)/nbstripout --verify notebooks/*.ipynb

types: $(STAMP)
	$(BIN)/mypy

# Simulations take half the time compiled; without a C compiler plain Python does the same.
compiled: $(STAMP)
	-$(BIN)/windtunnel compile

unit: compiled
	REQUIRE_COMPILED=$(if $(shell command -v cc),1) REQUIRE_REAL_LLAMA=1 WINDTUNNEL_FROZEN=1 $(BIN)/python -m pytest tests -n $(JOBS) -m "not slow and not screens" --ignore tests/notebooks
	REQUIRE_COMPILED=$(if $(shell command -v cc),1) $(BIN)/python -m pytest tests/parity -n $(JOBS) -m "not slow and not screens"

notebooks: compiled
	WINDTUNNEL_FAST=1 $(BIN)/python -m pytest --nbmake --nbmake-timeout=120 notebooks -n $(JOBS)

lab: compiled
	$(BIN)/jupyter lab notebooks

validate: compiled
	$(BIN)/python -m windtunnel.lab.validation --out data/VALIDATION.md --html out/validation.html --processes $(JOBS)

bench: compiled
	$(BIN)/python sims/bench/engine.py
	$(BIN)/python sims/bench/control.py
	$(BIN)/python sims/bench/scheduling.py
	$(BIN)/python sims/bench/admission.py
	$(BIN)/python sims/bench/routing.py
	$(BIN)/python sims/bench/planner.py --quick
	$(BIN)/python sims/bench/prefixes.py
	$(BIN)/python sims/bench/interactive.py
	$(BIN)/python sims/bench/oracles.py
	$(BIN)/python sims/bench/cooldown.py
	$(BIN)/python sims/bench/ab.py
	$(BIN)/python sims/bench/million.py
	$(BIN)/python sims/bench/live.py

bench-peers: compiled
	$(BIN)/python sims/bench/engine.py --peers

test-vllm: $(STAMP)
	$(BIN)/python -m pytest tests/engines/test_vllm_real.py -m slow -rs

test-slow: compiled
	REQUIRE_REAL_LLAMA=1 WINDTUNNEL_FROZEN=1 $(BIN)/python -m pytest tests -n $(JOBS) -m slow

nightly: compiled
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest tests/property -n $(JOBS) -rP --timeout 3600

screens: $(STAMP)
	$(BIN)/python -m pytest tests/screens -m screens

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

clean:
	rm -rf $(VENV) src/windtunnel/_compiled out runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
