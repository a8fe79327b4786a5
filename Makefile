# Everything a reader or an author runs. `make` alone lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
COLAB ?= .venv-colab
JOBS ?= 2
# Tests that have a target of their own.
MARKS ?= not paper and not device
DRILLS ?= drill
BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
LISTS := pyproject.toml constraints.txt
# Two processes share the cores: one thread each is faster than both fighting for all of them.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: help here install dev sync colab book test mutants drill pdf lint full seeds bench pins clean

help:  ## List the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

install: $(VENV)/.installed  ## Make the environment in .venv (done once; again when the lists change)

# Programs of an environment begin with its path: a copy, or one that was moved, would run another folder's code.
here:
	@test ! -e $(BIN)/jupyter-book || grep -qF "$$(cd $(BIN) && pwd -P)/python" $(BIN)/jupyter-book \
	  || { echo "$(VENV) was made for another folder, and would run its code: rm -rf $(VENV), then make again" >&2; exit 1; }

$(VENV)/.python: | here
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; say where it is: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "Python has no venv module here; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.installed: $(VENV)/.python $(LISTS)
	@echo "Installing the book's environment into $(VENV) (some minutes, once)"
	@$(PIP_INSTALL) --editable '.[book,test]'
	@touch $@

dev: $(VENV)/.dev  ## Add the linters to the environment

$(VENV)/.dev: $(VENV)/.installed
	@$(PIP_INSTALL) --editable '.[book,test,dev]'
	@touch $@

sync: install  ## Make chapters/*.ipynb from chapters/*.md
	@$(BIN)/python -m bookkit.notebooks sync

colab: sync  ## Write self-contained notebooks to _build/colab
	@$(BIN)/python -m bookkit.colab

book: colab  ## Execute every chapter, check every claim, build the HTML book
	@$(BIN)/jupyter-book build . -W -n --keep-going
	@echo && echo "The book is at $$PWD/_build/html/index.html"

test: install  ## Run the tests, then every chapter as a test
	@$(ONE_THREAD) $(BIN)/python -m pytest tests nclib --doctest-modules -n $(JOBS) -m "$(MARKS)"
	@$(ONE_THREAD) $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 --timeout=1200 chapters -n $(JOBS)

mutants: install  ## Change formulas of nclib one at a time: do the tests see it? (ARGS="theory/flow --sample 50")
	@$(ONE_THREAD) $(BIN)/python -m tests.mutants --jobs $(JOBS) $(ARGS)

drill: colab $(COLAB)/.installed  ## Run every self-contained notebook as Colab does: its versions, then not on the CPU
	@$(ONE_THREAD) COLAB_PYTHON="$$PWD/$(COLAB)/bin/python" \
	  $(BIN)/python -m pytest tests/book/test_colab.py tests/book/test_colab_drill.py tests/pretend/test_lectures.py \
	    -m "$(DRILLS)" -n $(JOBS) --dist=load

# PyTorch comes in the version of the book's own environment: another one is gigabytes.
$(COLAB)/.installed: tests/book/colab-versions.txt constraints.txt
	@echo "Installing what Colab carries into $(COLAB) (some minutes, once)"
	@rm -rf $(COLAB) && $(PYTHON) -m venv $(COLAB) && mkdir -p _build
	@grep -v '^torch==' tests/book/colab-versions.txt > _build/colab-versions.txt
	@$(COLAB)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint _build/colab-versions.txt \
	  $$(grep '^torch==' constraints.txt) \
	  $$(sed -n 's/^\([a-z_-]*\)==.*/\1/p' _build/colab-versions.txt | grep -v -e '^dask' -e '^jupytext')
	@touch $@

pdf: install  ## Print the built book as one PDF, and test that (needs Chromium)
	@$(BIN)/python -m bookkit.pdf
	@$(BIN)/python -m pytest tests/book/test_pdf.py -m paper

lint: dev  ## Check style and types
	@$(BIN)/ruff check nclib tests bookkit chapters results benchmarks
	@$(BIN)/ruff format --check nclib tests bookkit chapters results benchmarks
	@$(BIN)/mypy

full: install  ## Compute the stored results of chapter 15 (a GPU; ARGS="--size cpu --jobs 2" for two cores)
	@$(BIN)/python results/remake.py $(ARGS)

seeds: install  ## How often does each claim hold? Ten base seeds, kept (ARGS="02 --seeds 1-20", "--longer 2 --finer 2")
	@$(BIN)/python -m bookkit.base_seeds --keep --jobs $(JOBS) $(ARGS)

bench: install  ## Time nclib beside baselines; set NCLIB_DATA to use real images
	@mkdir -p _build && $(BIN)/python -m benchmarks --json _build/benchmarks.json

pins: ## Resolve pyproject.toml afresh and rewrite constraints.txt
	@rm -rf _build/pins && $(PYTHON) -m venv _build/pins
	@_build/pins/bin/python -m pip install --quiet --disable-pip-version-check '.[book,test,dev]'
	@_build/pins/bin/python -m bookkit.pins > _build/pins.txt
	@mv _build/pins.txt constraints.txt && rm -rf _build/pins

clean:  ## Remove everything that was built (not the environment)
	@rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path './.venv*' -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
