# Each target makes its own virtual environment when there is none and installs what it needs:
# a machine needs Python 3.11 or later and make, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
SOURCES = $(shell find frontend ir passes codegen runtime -name '*.py') pyproject.toml

.PHONY: demo test check bench bench-shapes bench-gpu accuracy ptx-report ptx-suite clean bench-eager

demo: $(VENV)/.run
	$(BIN)/python examples/digits.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2

# Types are checked on a copy with the folders in the places that pyproject.toml maps them to.
check: $(VENV)/.dev
	$(BIN)/ruff check .
	rm -rf $(VENV)/types && mkdir -p $(VENV)/types/weft
	cp -r frontend/. $(VENV)/types/weft && cp -r ir passes codegen runtime $(VENV)/types/weft
	cp pyproject.toml $(VENV)/types
	$(BIN)/pyright -p $(VENV)/types --pythonpath $(BIN)/python

# Peers (torch, jax) are measured where they are installed: pip install 'weft[parity]' jax
bench: $(VENV)/.run
	$(BIN)/python -m benchmarks.bench

# A hundred shapes that no one tuned for, forward and backward.
bench-shapes: $(VENV)/.run
	$(BIN)/python -m benchmarks.shapes

# Single eager operations beside torch's, small and large.
bench-eager: $(VENV)/.run
	$(BIN)/python -m benchmarks.eager

# On a machine with an NVIDIA GPU; torch is measured beside weft where it is installed with CUDA.
bench-gpu: $(VENV)/.run
	$(BIN)/python -m pip install -q '.[cuda]'
	$(BIN)/python -m benchmarks.gpu

# What ptxas (of the CUDA toolkit, or pip install nvidia-cuda-nvcc) says of the GPU kernels of the workloads;
# fails where it refuses one, or where one spills.
ptx-report: $(VENV)/.run
	$(BIN)/python -m benchmarks.ptx_report

# The same of every kernel that the tests make: they run once to collect them, without a cache.
ptx-suite: $(VENV)/.dev
	rm -rf $(VENV)/kernels
	WEFT_CACHE=0 WEFT_KERNELS=$(CURDIR)/$(VENV)/kernels $(BIN)/python -m pytest -q -n 2 -p benchmarks.ptx_collect
	$(BIN)/python -m benchmarks.ptx_report --suite $(VENV)/kernels

accuracy: $(VENV)/.run
	$(BIN)/python -m benchmarks.accuracy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The tests run against an installed wheel, so that a sub-package missing from pyproject.toml shows.
$(VENV)/.run: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install -q --upgrade --force-reinstall --no-deps .
	$(BIN)/python -m pip install -q '.[examples]'
	rm -rf build *.egg-info
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install -q '.[dev]'
	rm -rf build *.egg-info
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo-ir weft-dump
