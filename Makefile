# What a newcomer types: `make demo`, `make test`. Everything is set up in .venv, once; see `make help`.

# The first that runs and is new enough; a name alone says little (pyenv leaves shims of versions that are not active).
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
# More arguments for the installation of torch, as `--index-url https://download.pytorch.org/whl/cpu`.
TORCH_ARGS ?=
# Test processes; each computes on one thread.
JOBS ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt --editable
# Some libraries write into the home folder; tests and docs get one of their own.
SCRATCH := HOME="$(CURDIR)/.cache/home" OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint types docs bench clean

help:  ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

demo: .venv/.stamp-demo  ## train a small network and send it through the whole chain; files in out/demo
	$(BIN)/nutlet demo --out out/demo

test: .venv/.stamp-dev .cache/home  ## doctests and tests, without the slow ones
	$(SCRATCH) $(BIN)/python -m pytest -rs -m "not slow" -n $(JOBS) --dist loadfile

test-all: .venv/.stamp-dev .cache/home  ## the slow ones too
	$(SCRATCH) $(BIN)/python -m pytest -rs -n $(JOBS) --dist worksteal $(ARGS)

lint: .venv/.stamp-dev  ## ruff, style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.stamp-dev  ## mypy, strict
	$(BIN)/mypy

docs: .venv/.stamp-docs .cache/home  ## build docs/_build/html, warnings are errors
	$(SCRATCH) $(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "docs: docs/_build/html/index.html"

bench: .venv/.stamp-dev  ## measure the main job anew (needs NUTLET_DATA; hours: one case alone takes more than one on two cores) and rewrite the pages
	$(BIN)/python bench/main_job.py
	$(BIN)/python bench/tables.py

clean:  ## remove the environment and everything that was made
	rm -rf .venv .cache out build dist docs/_build .pytest_cache .mypy_cache .ruff_cache src/*.egg-info

.cache/home:
	mkdir -p $@

.venv/.stamp-torch: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: found no Python of version 3.11 or newer; install one," \
		"or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) does not run or is older than Python 3.11; name another: make PYTHON=python3.12" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(PIP) install --quiet $(TORCH_ARGS) torch==2.13.0
	@touch $@

.venv/.stamp-demo: .venv/.stamp-torch
	$(INSTALL) '.[demo]'
	$(call check_torch)
	@touch $@

.venv/.stamp-dev: .venv/.stamp-torch
	$(INSTALL) '.[demo,images,tables,huggingface,ray,dev]'
	$(call check_torch)
	@touch $@

.venv/.stamp-docs: .venv/.stamp-torch
	$(INSTALL) '.[demo,tables,docs]'
	$(call check_torch)
	@touch $@

# An installation that replaced torch would have pulled another build of it.
define check_torch
@$(BIN)/python -c 'import importlib.metadata as m, sys; v = m.version("torch"); \
	sys.exit(None if v.split("+")[0] == "2.13.0" else f"make: found torch {v}; expected 2.13.0: run make clean, then again")'
endef
