PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= quickstart
OLDEST ?= .venv-oldest

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-nightly test-oldest lint docs bench benchall format clean

help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Runtime and development dependencies; reinstalled when pyproject.toml changes.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[text]"
	touch $@

$(VENV)/.developing: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

install: $(VENV)/.installed ## Create .venv and install the package with its text encoders

quickstart: $(VENV)/.installed ## Render, pre-train, evaluate and report; minutes on two cores
	$(BIN)/crosspair quickstart --out $(OUT)

test: $(VENV)/.developing ## Run the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-nightly: $(VENV)/.developing ## Run the tests with ten times as many random videos
	CROSSPAIR_COMBINATIONS=200 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# PyTorch stays at the version that pip chooses: its oldest release on PyPI needs CUDA.
test-oldest: pyproject.toml ## Run the tests with the lowest versions that pyproject.toml allows
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	$(OLDEST)/bin/uv pip compile --quiet --resolution lowest-direct --extra dev pyproject.toml \
		| grep --invert-match --extended-regexp '^(torch|triton|sympy|nvidia-.*)==' > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/constraints.txt --editable ".[dev]"
	$(OLDEST)/bin/python -m pytest --numprocesses 2 --dist worksteal

lint: $(VENV)/.developing ## Check style and types
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

docs: $(VENV)/.developing ## Build the documentation into build/site; warnings are errors
	$(BIN)/mkdocs build --quiet --strict

bench: $(VENV)/.developing ## Run the benchmarks
	$(BIN)/python -m benchmarks.loading
	$(BIN)/python -m benchmarks.network
	$(BIN)/python -m benchmarks.objectives
	$(BIN)/python -m benchmarks.training $(MANIFEST)
	$(BIN)/python -m benchmarks.heads
	$(BIN)/python -m benchmarks.curves
	$(BIN)/python -m benchmarks.traffic
	$(BIN)/python -m benchmarks.export
	$(BIN)/python -m benchmarks.gradient_figures

benchall: bench ## Run the benchmarks, including full-size evaluation
	$(BIN)/python -m benchmarks.evaluation

format: $(VENV)/.developing ## Format the code and apply automatic fixes
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

clean: ## Remove the environment and all caches
	rm -rf $(VENV) $(OLDEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis
