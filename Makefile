PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= quickstart

.DEFAULT_GOAL := help
.PHONY: help install quickstart test lint docs bench benchall format clean

help: ## List the verbs
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# What the package needs to run, and what its developers need besides: made anew when it changes.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[text]"
	touch $@

$(VENV)/.developing: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

install: $(VENV)/.installed ## Make .venv and install the package with its text encoders

quickstart: $(VENV)/.installed ## Render, pre-train, evaluate, report: minutes on two cores
	$(BIN)/crosspair quickstart --out $(OUT)

test: $(VENV)/.developing ## Run the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: $(VENV)/.developing ## Check style and types
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy

docs: $(VENV)/.developing ## Build the pages into build/site; warnings are errors
	$(BIN)/mkdocs build --quiet --strict

bench: $(VENV)/.developing ## Measure, beside named alternatives
	$(BIN)/python -m benchmarks.loading
	$(BIN)/python -m benchmarks.network
	$(BIN)/python -m benchmarks.objectives
	$(BIN)/python -m benchmarks.training $(MANIFEST)
	$(BIN)/python -m benchmarks.curves
	$(BIN)/python -m benchmarks.traffic
	$(BIN)/python -m benchmarks.export
	$(BIN)/python -m benchmarks.gradient_figures

benchall: bench ## Measure evaluation at full size, too
	$(BIN)/python -m benchmarks.evaluation

format: $(VENV)/.developing ## Mend what style can be mended by itself
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

clean: ## Remove the environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
