# make demo | test | lint | slow | promises | world | clean, on a machine with Python 3.11 or newer and make.
# Everything is installed into .venv, which `make clean` leaves alone (something may run from it): rm -rf .venv.
# Where the index serves CUDA builds of torch, a CPU build comes with
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt $(PIP_FLAGS)

# Tests share cores with others: a waiting thread that spins costs more than it saves.
test slow promises: export OMP_WAIT_POLICY := passive

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint slow promises world clean

help:
	@sed -n '1,4s/^# //p' Makefile

demo: $(VENV)/.demo
	$(BIN)/starflow-world demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow and not gpu" --timeout 3600

# Also when tests fail: the page says which.
promises: $(VENV)/.dev
	-$(BIN)/python -m pytest -m "not gpu" --timeout 3600 --junit-xml out/promises.xml
	$(BIN)/python -m tests.promises out/promises.xml

# One of the recipes in configs/: make world NAME=dynamic-obstacles
NAME ?= babyai-gotolocal

world: $(VENV)/.demo
	$(BIN)/starflow-world make configs/$(NAME).yaml

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy -p starflow_world

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find starflow_world envs agents tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an install is repeated only when what it depends on has changed.
$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "no python3.11 or python3 on the path" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit("$(PYTHON) is too old: Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@touch $@

# torch first and by its exact version, so that pip takes the CPU build where one is offered.
$(VENV)/.torch: constraints.txt | $(VENV)/.python
	@echo "installing into $(VENV): a few minutes the first time"
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.demo: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) -e '.[envs]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) -e '.[dev]'
	@touch $@
