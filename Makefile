# Every target sets up .venv first, from PyPI; a second run starts at once.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help run test test-all test-pynq test-real test-install sim formal mutants gpu lint format clean

ARGS ?=
JOBS ?= 2
CACHE = $(or $(LUTRA_CACHE),$(HOME)/.cache/lutra)
BIN = .venv/bin

# $(call with_python,<script> <argument>...,<minor>): a script of the standard library alone, run by
# Python 3.10 or newer, older than 3.<minor> where that is given
define with_python
@python=""; \
for name in "$${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do \
	[ -n "$$name" ] || continue; \
	"$$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, $(or $(2),1000)))' 2>/dev/null || continue; \
	python=$$name; break; \
done; \
[ -n "$$python" ] || { \
	echo "error: Python 3.10 or newer$(if $(2), but older than 3.$(2)) is needed and is not on PATH: install it, or name it: make PYTHON=/path/to/python3" >&2; \
	exit 2; }; \
"$$python" $(1)
endef

# $(call environment,<extra>...): .venv with these extras of pyproject.toml
environment = $(call with_python,tools/environment.py $(1))

# where the package pynq runs: it ends at Python 3.12, and its NumPy is older than 2
PYNQ = .venv-pynq
PYNQ_PACKAGES = pynq==4.0.0 numpy==1.26.4 gguf pytest pytest-xdist tomli
# tests beside those that drive emulated boards
PYNQ_TESTS ?= tests/golden tests/host/devices/cpu tests/test_versions.py
NOT_SLOW ?= and not slow

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## tell a story from the simulated accelerator; ARGS="-n 64 --json" is passed on
	$(call environment,sim)
	@$(BIN)/lutra run $(ARGS)

test: ## run the tests that take seconds; ARGS="-k name" is passed to pytest
	$(call environment,sim dev formal)
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow" $(ARGS)

test-all: ## run every test, the slow ones too, and those of test-pynq
	$(call environment,sim dev formal)
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)
	@$(MAKE) --no-print-directory test-pynq NOT_SLOW=

test-pynq: ## test emulated boards in the package pynq, and the bits of its older NumPy, in .venv-pynq
	$(call with_python,tools/environment.py --venv $(PYNQ) $(PYNQ_PACKAGES:%=--with %) sim pynq,13)
	@$(PYNQ)/bin/python -m pytest -n $(JOBS) --dist worksteal -m "pynq $(NOT_SLOW)" tests/host/devices tests/system tests/test_versions.py $(ARGS)
	@$(PYNQ)/bin/python -m pytest -n $(JOBS) --dist worksteal -m "not pynq $(NOT_SLOW)" $(PYNQ_TESTS) $(ARGS)

test-real: ## compare real models with llama.cpp: QWEN=file.gguf OTHER=file.gguf TEXT=text.txt; takes long
	$(call environment,sim peers)
	@$(BIN)/python -m lutra_flows.real $(QWEN:%=--qwen %) $(GEMMA:%=--other %) $(OTHER:%=--other %) $(TEXT:%=--text %) $(ARGS)

test-install: ## resolve every extra with pip, installing nothing, for Pythons 3.10 and 3.12
	$(call with_python,tools/resolve.py $(ARGS))

sim: ## run all hardware verification (proofs, tests, line coverage) and print a table of it
	$(call environment,sim dev formal)
	@$(BIN)/python tools/verify.py --jobs $(JOBS) $(ARGS)

formal: ## prove properties of the RTL by model checking; ARGS="arbiter reader" picks checks
	$(call environment,sim formal)
	@$(BIN)/python -m lutra_sim.formal --jobs $(JOBS) $(ARGS)

mutants: ## plant faults and see whether tests catch them; ARGS="-p golden matmul" picks some
	$(call environment,sim dev)
	@$(BIN)/python -m lutra_sim.mutants --jobs $(JOBS) $(ARGS)

gpu: ## test, tune and time the kernels on this machine's GPU, JSON on the last line; 10 minutes
	$(call with_python,tools/gpu.py $(ARGS))

lint: ## check style, import directions and types
	$(call environment,sim dev)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/pyright

format: ## format the Python code and sort its imports
	$(call environment,sim dev)
	@$(BIN)/ruff check --select I --fix --quiet .
	@$(BIN)/ruff format .

clean: ## remove the environment, caches, built simulators and libraries
	rm -rf .venv $(PYNQ) build dist host/lutra/devices/cpu/built coverage .pytest_cache .ruff_cache .import_linter_cache
	rm -rf "$(CACHE)/cocotb" "$(CACHE)/cpu" "$(CACHE)/verilog" "$(CACHE)/rtl" "$(CACHE)/synth" "$(CACHE)/formal" "$(CACHE)/mutants"
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
