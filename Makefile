# `make demo` and `make test` set up everything they need in .venv, once.

PYTHON ?= python3
BIN := .venv/bin

# Two processes with one OpenMP thread each: two OpenMP programs with two threads each slow one another tenfold.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal
ALONE := $(BIN)/pytest -p no:xdist

.PHONY: demo test slow rounds fuzz peers lint format clean

demo: .venv/zoo ## quantize EfficientNet-Lite0, score it, time it
	$(BIN)/octavo demo

test: lint ## what CI runs
	$(PYTEST) -m "not slow"

slow: .venv/test ## proofs that take minutes; run alone on the machine
	$(ALONE) -m slow

rounds: .venv/test ## the suite with fresh seeds, again and again until one fails
	for round in $$(seq 20); do OCTAVO_SEED=fresh $(PYTEST) -m "not slow" || exit 1; done

fuzz: .venv/test ## 20,000 mutations of saved networks and studies
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py

peers: ## what benchmarks/latency.py compares with, in an environment of its own
	test -x .peers/bin/python || $(PYTHON) -m venv .peers
	.peers/bin/python -m pip install --quiet --requirement benchmarks/peers/requirements.txt

lint: .venv/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .peers runs

.venv/zoo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[zoo]"
	touch $@

.venv/test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@
