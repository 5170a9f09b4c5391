# Aliases of run.py, which needs nothing but Python:  make test ARGS="-k nearest"
PYTHON ?= python3
ARGS ?=

.PHONY: help demo test bench docs gpu-check setup lint format clean
help demo test bench docs gpu-check setup lint format clean:
	@$(PYTHON) run.py $@ $(ARGS)
