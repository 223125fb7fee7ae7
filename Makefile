# Everything needs Python 3.11 or newer, git and make; the rest is installed here. PYTHON=… chooses another interpreter.
SHELL := /bin/sh
PYTHON_IN := .venv/bin/python
BOOTSTRAP := PYTHON='$(PYTHON)' sh tools/bootstrap.sh
# Two workers: more only wait for each other's servers on a small machine.
PYTEST_WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=
# What mypy reads: the folders that hold Python, and the doors beside them.
TYPED := $(sort $(patsubst %/,%,$(dir $(wildcard app/*.py tests/*.py tools/*.py migrations/*.py bench/*.py)))) $(wildcard *.py)

.DEFAULT_GOAL := help
.PHONY: help run demo test bench check format lock clean

help: ## what there is
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile | expand -t 10

run: ## start the gateway with its own PostgreSQL and Valkey, data in ./data
	@$(BOOTSTRAP) run
	@exec $(PYTHON_IN) -m app serve

demo: ## the same, with a small language model beside it
	@$(BOOTSTRAP) run demo
	@exec $(PYTHON_IN) -m app serve --demo

test: ## install all that the tests need, run all tests
	@$(BOOTSTRAP) dev clients demo chromium
	@exec $(PYTHON_IN) -m pytest tests/ -n $(PYTEST_WORKERS) $(PYTEST_ARGS)

bench: ## what each promise costs, beside its floor (BENCH_ARGS=--short for the short form)
	@$(BOOTSTRAP) dev
	$(PYTHON_IN) -m bench $(BENCH_ARGS)

check: ## lint, format, types, layers and house rules
	@$(BOOTSTRAP) dev
	$(PYTHON_IN) -m ruff check .
	$(PYTHON_IN) -m ruff format --check .
	$(PYTHON_IN) -m mypy $(TYPED)
	$(PYTHON_IN) -c 'from importlinter.cli import lint_imports_command as lint; lint()' --no-logo
	$(PYTHON_IN) tools/check_house.py
	$(PYTHON_IN) tools/check_supply.py

format: ## let ruff write the code's form
	@$(BOOTSTRAP) dev
	$(PYTHON_IN) -m ruff check --fix .
	$(PYTHON_IN) -m ruff format .

lock: ## resolve pyproject.toml into the locked requirements (UPGRADE=1 takes newer versions)
	@$(BOOTSTRAP) lock

clean: ## remove environments and caches; ./data stays
	rm -rf .venv .venv-uv .venv-clients .venv-demo .bootstrap.lock
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find app bench tests tools migrations -name __pycache__ -type d -prune -exec rm -rf {} +
